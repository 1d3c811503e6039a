//! A backup made while readings arrive, and the store restored from it: the same readings and buckets up to the snapshot.
//! What is cut off or changed is refused and replaces nothing; the verbs find the agent or the closed store.

#[path = "common/pages.rs"]
mod pages;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use pages::{all_buckets, all_rows};
use wattd::reading::{DeviceId, Mac, Reading};
use wattd::rollup::Bucket;
use wattd::store::backup::{self, BackupError};
use wattd::store::chunk::Columns;
use wattd::store::{self, Keeping, Order, Scan, Store, StoreError, Tier};
use wattd::units::{Milliwatts, UnixMillis};

const START: i64 = 1_767_225_600_000;

fn id(n: i64) -> DeviceId {
    DeviceId::plug(Mac::new([0x9c, 0x53, 0x22, 0, 0, n as u8]))
}

fn reading(n: i64) -> Reading {
    Reading {
        time: UnixMillis::new(START + n * 600_000),
        power: Milliwatts::new(n % 1_000_000).unwrap(),
        voltage: None,
        current: None,
        counter: None,
        relay: None,
    }
}

fn open(path: &Path) -> Result<Store, StoreError> {
    Store::open(store::on_disk(path.to_owned()), Keeping::default())
}

/// Appends readings with a commit after every fourth.
fn record(store: &Store, from: i64, to: i64) {
    for n in from..to {
        store.append(id(n % 2), reading(n), Duration::from_secs(1_200));
        if n % 4 == 3 {
            smol::block_on(store.commit(reading(n).time)).unwrap();
        }
    }
}

fn rows(store: &Store) -> Vec<Reading> {
    let devices = store.devices().iter().map(|device| device.number).collect();
    let (from, to) = (UnixMillis::MIN, UnixMillis::MAX);
    let (order, columns) = (Order::Ascending, Columns::ALL);
    let scan = Scan { devices, from, to, order, after: None, limit: 10_000, columns };
    all_rows(store, scan).unwrap().into_iter().map(|row| row.reading).collect()
}

fn buckets(store: &Store, n: i64) -> Vec<Bucket> {
    let (from, to) = (UnixMillis::MIN, UnixMillis::MAX);
    all_buckets(store, id(n), Tier::QuarterHour, (from, to), UnixMillis::new(START * 2))
}

/// A backup as the HTTP server sends it.
fn pieces(store: &Store) -> Vec<u8> {
    let pieces = store.back_up().unwrap();
    std::iter::from_fn(|| pieces.recv_blocking().ok()).flat_map(Result::unwrap).collect()
}

#[test]
fn a_backup_made_while_readings_arrive_restores_all_up_to_its_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let path = store::path_in(dir.path());
    let store = open(&path).unwrap();
    record(&store, 0, 8_000);
    let (before, quarters) = (rows(&store), [buckets(&store, 0), buckets(&store, 1)]);
    let before_total = store.total(id(0));

    let taken = store.back_up().unwrap();
    let mut bytes = taken.recv_blocking().unwrap().unwrap(); // the snapshot is taken
    // More than the queue holds is left to take, so it still runs.
    assert!(matches!(store.back_up(), Err(StoreError::BackupRunning)));
    record(&store, 8_000, 9_000);
    bytes.extend(std::iter::from_fn(|| taken.recv_blocking().ok()).flat_map(Result::unwrap));
    assert_eq!(rows(&store).len(), 9_000);

    let file = dir.path().join("backup");
    std::fs::write(&file, &bytes).unwrap();
    let summary = backup::verify(&file).unwrap();
    let new = dir.path().join("restored.redb");
    let restored = backup::restore(&file, &new, false).unwrap();
    assert_eq!((restored.summary, restored.problems), (summary, Vec::new()));
    let again = open(&new).unwrap();
    assert_eq!(rows(&again), before);
    assert_eq!([buckets(&again, 0), buckets(&again, 1)], quarters);
    assert_eq!(again.devices(), store.devices());
    assert_eq!(again.total(id(0)), before_total);
    // It goes on from there, and another backup can be made of both; they stay one store.
    record(&again, 8_000, 8_400);
    assert_eq!(rows(&again).len(), 8_400);
    std::fs::write(&file, pieces(&again)).unwrap();
    assert_eq!(backup::verify(&file).unwrap().store_id, summary.store_id);
    let other = open(&dir.path().join("other.redb")).unwrap();
    record(&other, 0, 4);
    std::fs::write(&file, pieces(&other)).unwrap();
    assert_ne!(backup::verify(&file).unwrap().store_id, summary.store_id);
}

#[test]
fn a_taker_that_goes_away_ends_the_backup() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&store::path_in(dir.path())).unwrap();
    record(&store, 0, 2_000);
    let taken = store.back_up().unwrap();
    taken.recv_blocking().unwrap().unwrap();
    drop(taken);
    // Its thread notices at its next piece.
    let pieces = loop {
        match store.back_up() {
            Ok(pieces) => break pieces,
            Err(StoreError::BackupRunning) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    assert!(pieces.recv_blocking().unwrap().is_ok());
}

#[test]
fn a_backup_that_is_cut_off_or_changed_is_refused_and_replaces_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = store::path_in(dir.path());
    let store = open(&path).unwrap();
    record(&store, 0, 400);
    let bytes = pieces(&store);
    drop(store);
    let before = std::fs::read(&path).unwrap();
    let file = dir.path().join("backup");
    let refused = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let error = backup::restore(&file, &path, true).expect_err("a damaged backup was restored");
        assert!(std::fs::read(&path).unwrap() == before, "the store was changed");
        error
    };
    for length in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        let error = refused(&bytes[..length]);
        assert!(matches!(error, BackupError::Damaged(_) | BackupError::NotABackup), "{length}: {error:?}");
    }
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..400 {
        let (mut bytes, bit) = (bytes.clone(), random.usize(..bytes.len() * 8));
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = refused(&bytes);
        assert!(!matches!(error, BackupError::Io(_) | BackupError::Store(_)), "bit {bit}: {error:?}");
    }
    let longer = [&bytes[..], b"more"].concat();
    assert!(matches!(refused(&longer), BackupError::Damaged(_)));
    let mut newer = bytes.clone();
    newer[12] = 9;
    assert!(matches!(refused(&newer), BackupError::Newer));
    assert!(refused(&newer).to_string().contains("newer wattd"));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("restore")), "{left:?}");

    std::fs::write(&file, &bytes).unwrap();
    assert!(matches!(backup::restore(&file, &path, false), Err(BackupError::Exists)));
    let agent = open(&path).unwrap();
    assert!(matches!(backup::restore(&file, &path, true), Err(BackupError::Store(StoreError::InUse))));
    drop(agent);
    backup::restore(&file, &path, true).unwrap();
    assert_eq!(rows(&open(&path).unwrap()).len(), 400);
}

fn wattd(dir: &Path, listen: SocketAddr, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wattd"));
    command.args(words).args(["--config", "/dev/null", "--listen", &listen.to_string(), "--data-dir"]).arg(dir);
    command.output().unwrap()
}

/// An agent without plugs, and where it listens.
fn agent(dir: &Path) -> (Child, SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_wattd"))
        .args(["run", "--config", "/dev/null", "--listen", "127.0.0.1:0", "--discovery-enabled", "false", "--data-dir"])
        .arg(dir)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let address = lines.find_map(|line| Some(line.split_once("serving http://")?.1.trim_end_matches('/').to_owned()));
    std::thread::spawn(move || lines.count()); // what else it says must not block it
    (child, address.expect("the agent ended by itself").parse().unwrap())
}

#[test]
fn the_verbs_take_the_running_agents_store_or_the_closed_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let store = open(&store::path_in(&data)).unwrap();
    record(&store, 0, 400);
    drop(store);
    let nobody = "127.0.0.1:1".parse().unwrap();
    let [closed, live] = ["closed", "live"].map(|name| dir.path().join(name));
    let done = wattd(&data, nobody, &["backup", closed.to_str().unwrap()]);
    assert!(done.status.success(), "{done:?}");

    let (mut child, address) = agent(&data);
    let done = wattd(&data, address, &["backup", live.to_str().unwrap()]);
    assert!(done.status.success(), "{done:?}");
    let [closed, live_rows] = [&closed, &live].map(|path| {
        let mut rows = std::collections::BTreeSet::new();
        let read = backup::read(std::fs::File::open(path).unwrap(), |table, key, value| {
            rows.insert((table.to_owned(), key.to_vec(), value.to_vec()));
            Ok(())
        });
        read.unwrap();
        rows
    });
    // The agent notes that it began; that commit says what was written so far and drops batches that are sealed.
    let different: Vec<_> = live_rows.symmetric_difference(&closed).map(|(table, ..)| table.as_str()).collect();
    assert!(different.iter().all(|table| ["event", "head", "meta"].contains(table)), "{different:?}");
    assert!(!dir.path().join("live.part").exists());
    for words in [&["check"][..], &["restore", "--force", live.to_str().unwrap()]] {
        let refused = wattd(&data, address, words);
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.status.code() == Some(1) && text.contains("stop it first"), "{words:?}: {text}");
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let new = dir.path().join("new");
    let done = wattd(&new, nobody, &["restore", live.to_str().unwrap()]);
    assert!(done.status.success(), "{done:?}");
    let done = wattd(&new, nobody, &["restore", live.to_str().unwrap()]);
    assert!(done.status.code() == Some(1) && String::from_utf8(done.stderr).unwrap().contains("--force"));
    let done = wattd(&new, nobody, &["check", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((report["ok"].as_bool(), report["readings"].as_u64()), (Some(true), Some(400)), "{report}");
    assert_eq!(rows(&open(&store::path_in(&new)).unwrap()).len(), 400);
}
