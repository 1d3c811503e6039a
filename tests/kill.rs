//! The real program, killed in the middle of its work again and again: every reading of every commit that was reported is
//! there afterwards, in order, once.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use wattd::reading::Reading;
use wattd::sim::{Fleet, Load, Model, Pace, PlugSpec, test_net};
use wattd::store::chunk::Columns;
use wattd::store::{self, DeviceNumber, Keeping, Order, Row, Scan, Store};
use wattd::units::UnixMillis;

const ROUNDS: usize = 50;

fn agent(dir: &Path, target: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wattd"));
    command
        .args(["run", "--listen", "127.0.0.1:0", "--poll-interval", "100ms"])
        .args(["--poll-min-interval", "100ms", "--poll-strip-interval", "200ms", "--log-level", "debug"])
        .args(["--discovery-targets", target, "--config", "/dev/null", "--data-dir"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn start(dir: &Path, target: &str) -> Child {
    agent(dir, target).args(["--commit-interval", "100ms"]).spawn().unwrap()
}

/// The number in a log line of the form `... committed N readings, B batches so far`.
fn committed(line: &str) -> Option<(u64, u64)> {
    let (readings, rest) = line.split_once("committed ")?.1.split_once(" readings, ")?;
    Some((readings.parse().ok()?, rest.split(' ').next()?.parse().ok()?))
}

fn all(store: &Store) -> BTreeMap<DeviceNumber, Vec<Reading>> {
    let mut rows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for device in store.devices() {
        let mut scan = Scan {
            devices: vec![device.number],
            from: UnixMillis::MIN,
            to: UnixMillis::MAX,
            order: Order::Ascending,
            after: None,
            limit: 10_000,
            columns: Columns::ALL,
        };
        loop {
            let page = smol::block_on(store.scan(scan.clone())).unwrap();
            scan.after = page.rows.last().map(Row::position);
            rows.entry(device.number).or_default().extend(page.rows.iter().map(|row| row.reading));
            if !page.more {
                break;
            }
        }
    }
    rows
}

#[test]
fn killed_fifty_times_nothing_committed_is_lost_or_doubled() {
    let net = test_net(0).unwrap();
    let mut spec = net.fleet(vec![
        PlugSpec::new(Model::Kp115, net.host(1), 1).alias("kettle").loads(&[Load::Kettle]),
        PlugSpec::new(Model::Hs110V1, net.host(2), 2).alias("fridge").loads(&[Load::Fridge]),
        PlugSpec::new(Model::Hs300, net.host(3), 3).alias("strip").loads(&[Load::Standby]),
    ]);
    spec.pace = Pace::Times(60.0);
    let plugs = Fleet::start(spec).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut before: BTreeMap<DeviceNumber, Vec<Reading>> = BTreeMap::new();
    let mut random = fastrand::Rng::with_seed(1);

    for round in 0..ROUNDS {
        let mut agent = start(dir.path(), &net.broadcast().to_string());
        let mut lines = BufReader::new(agent.stderr.take().unwrap()).lines();
        // Killed somewhere after the first to fourth commit of this run: in a poll, in a commit, between both.
        let wanted = random.usize(1..4);
        let (mut reported, mut batches) = (0, 0);
        for _ in 0..wanted {
            let report = lines.by_ref().map_while(Result::ok).find_map(|line| committed(&line));
            let (readings, so_far) = report.expect("the agent ended by itself");
            reported += readings;
            batches = so_far;
        }
        std::thread::sleep(Duration::from_micros(random.u64(..30_000))); // the moment of the kill, not a wait
        agent.kill().unwrap();
        agent.wait().unwrap();

        let store = Store::open(store::on_disk(store::path_in(dir.path())), Keeping::default()).unwrap();
        assert!(store.figures().batches >= batches, "round {round}: a reported batch is gone");
        let now = all(&store);
        let count = |rows: &BTreeMap<_, Vec<_>>| rows.values().map(Vec::len).sum::<usize>();
        assert!(count(&now) >= count(&before) + reported as usize, "round {round}: reported readings are gone");
        for (device, readings) in &now {
            let old = before.get(device).map_or(&[][..], Vec::as_slice);
            assert_eq!(&readings[..old.len()], old, "round {round}: what was there has changed");
            assert!(readings.windows(2).all(|pair| pair[0].time < pair[1].time), "round {round}: order, once");
        }
        before = now;
    }

    // And none of it was made up.
    let ledger = plugs.ledger();
    assert_eq!(ledger.len() as u64, ledger.served());
    let store = Store::open(store::on_disk(store::path_in(dir.path())), Keeping::default()).unwrap();
    let mut seen = BTreeSet::new();
    for (number, readings) in &before {
        let id = store.id(*number).unwrap();
        let mut served = ledger.iter().filter(|entry| entry.reading.device == id);
        for reading in readings {
            let entry = served
                .find(|entry| (entry.reading.power, Some(entry.reading.counter)) == (reading.power, reading.counter));
            let entry = entry.unwrap_or_else(|| panic!("{id}: {reading:?} was never served"));
            assert!(seen.insert(entry.sequence));
        }
    }
    assert!(seen.len() > ROUNDS, "{} readings", seen.len());
}

/// The body of a GET.
fn get(address: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[test]
fn with_a_journal_not_even_uncommitted_readings_are_lost() {
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return println!("no /dev/shm here: not tested") };
    let net = test_net(1).unwrap();
    let plug = PlugSpec::new(Model::Kp115, net.host(1), 1).alias("kettle").loads(&[Load::Kettle]);
    let _plugs = Fleet::start(net.fleet(vec![plug])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for round in 0..12 {
        let mut command = agent(dir.path(), &net.broadcast().to_string());
        // Nothing is committed in this time.
        let mut agent = command.args(["--commit-interval", "1h", "--journal-dir"]).arg(memory.path()).spawn().unwrap();
        let mut lines = BufReader::new(agent.stderr.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("serving http://")?.1.trim_end_matches('/').to_owned()));
        let (address, wanted) = (address.unwrap(), seen.len() + 5);
        let mut now: BTreeSet<String> = BTreeSet::new();
        let patience = std::iter::repeat_n((), 3_000);
        for () in patience {
            now = get(&address, "/api/v1/readings?format=ndjson&start=-1d").lines().map(str::to_owned).collect();
            if now.len() >= wanted {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(now.len() >= wanted, "round {round}: only {} readings", now.len());
        agent.kill().unwrap();
        agent.wait().unwrap();
        assert!(now.is_superset(&seen), "round {round}: a reading is gone");
        seen = now;
    }
}
