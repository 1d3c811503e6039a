//! A disk that fails, is full, cannot be written, is cut short or has a flipped bit: recording goes on in bounded memory,
//! errors are plain, nothing that was acknowledged is lost, and everything is written when the disk is back.

#[path = "common/disk.rs"]
mod disk;
#[path = "common/pages.rs"]
mod pages;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use disk::{Image, Recorder};
use pages::all_rows;
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use wattd::limits;
use wattd::reading::{DeviceId, Mac, Reading};
use wattd::store::chunk::Columns;
use wattd::store::{self, Keeping, Order, Scan, Store, StoreError, Tier};
use wattd::units::{Milliwatts, UnixMillis};

const START: i64 = 1_767_225_600_000;
const MINUTE: i64 = 60_000;

fn id(n: i64) -> DeviceId {
    DeviceId::plug(Mac::new([0x9c, 0x53, 0x22, 0, 0, n as u8]))
}

/// Reading `n` of all: two devices in turn, ten minutes apart.
fn reading(n: i64) -> Reading {
    Reading {
        time: UnixMillis::new(START + n * 10 * MINUTE),
        power: Milliwatts::new(n % 1_000_000).unwrap(),
        voltage: None,
        current: None,
        counter: None,
        relay: None,
    }
}

fn append(store: &Store, n: i64) {
    store.append(id(n % 2), reading(n), Duration::from_secs(1_200));
}

fn commit(store: &Store, n: i64) -> Result<usize, StoreError> {
    smol::block_on(store.commit(reading(n).time))
}

fn scan(store: &Store) -> Result<Vec<Reading>, StoreError> {
    let devices = store.devices().iter().map(|device| device.number).collect();
    let (from, to) = (UnixMillis::MIN, UnixMillis::MAX);
    let (order, columns) = (Order::Ascending, Columns::ALL);
    let scan = Scan { devices, from, to, order, after: None, limit: 10_000, columns };
    Ok(all_rows(store, scan)?.into_iter().map(|row| row.reading).collect())
}

fn all(count: i64) -> Vec<Reading> {
    (0..count).map(reading).collect()
}

fn open(disk: &Recorder) -> Result<Store, StoreError> {
    Store::open(disk.disk(), Keeping::default())
}

fn empty() -> Vec<u8> {
    let disk = Recorder::default();
    drop(open(&disk).unwrap());
    disk.bytes()
}

/// Appends `rounds` readings with a commit after each other one; a commit may fail. The first that fails is returned.
fn record(store: &Store, rounds: i64) -> Option<StoreError> {
    let mut first = None;
    for n in 0..rounds {
        append(store, n);
        if n % 2 == 1 {
            first = first.or(commit(store, n).err());
        }
    }
    first
}

/// An empty store with its log.
fn empty_both() -> Image {
    let disk = Recorder::holding_both([empty(), Vec::new()]);
    drop(open(&disk).unwrap());
    disk.image()
}

#[test]
fn when_every_operation_from_some_moment_on_fails_nothing_is_lost() {
    const ROUNDS: i64 = 90;
    let base = empty_both();
    let whole = Recorder::holding_both(base.clone());
    let store = open(&whole).unwrap();
    let before = whole.operations();
    assert!(record(&store, ROUNDS).is_none());
    let operations = whole.operations() - before;
    drop(store);
    for n in 0..operations {
        let disk = Recorder::holding_both(base.clone());
        let store = open(&disk).unwrap();
        disk.fail_from(Some(n));
        let failed = record(&store, ROUNDS);
        let why = failed.unwrap_or_else(|| panic!("from operation {n}: nobody noticed"));
        assert!(why.to_string().contains("store's file"), "{why}");
        // What is in memory is served.
        assert_eq!(store.latest(id((ROUNDS - 1) % 2)), Some(reading(ROUNDS - 1)));
        assert_eq!(scan(&store).unwrap(), all(ROUNDS), "from operation {n}: a scan without the file");
        if n % 3 == 0 {
            // The machine goes down meanwhile: what was acknowledged is there, nothing else, in order.
            let acknowledged = ROUNDS - store.figures().pending as i64;
            drop(store);
            let kept = scan(&open(&Recorder::holding_both(disk.image())).unwrap()).unwrap();
            assert!(kept.len() as i64 >= acknowledged, "from operation {n}: {} {acknowledged}", kept.len());
            assert_eq!(kept, all(kept.len() as i64), "from operation {n}");
            continue;
        }
        disk.fail_from(None);
        append(&store, ROUNDS);
        commit(&store, ROUNDS).unwrap_or_else(|error| panic!("from operation {n}: the disk is back: {error}"));
        assert_eq!(scan(&store).unwrap(), all(ROUNDS + 1), "from operation {n}");
        assert_eq!((store.figures().pending, store.figures().dropped), (0, 0));
        drop(store);
        assert_eq!(scan(&open(&disk).unwrap()).unwrap(), all(ROUNDS + 1), "from operation {n}");
    }
    println!("{operations} moments");
}

#[test]
fn a_store_of_before_the_log_is_opened_and_gets_one() {
    let old = Recorder::holding(empty());
    let store = open(&old).unwrap();
    assert!(record(&store, 60).is_none());
    drop(store);
    set_format(&old, 1);
    drop_checksums(&old);
    let disk = Recorder::holding_both([old.bytes(), Vec::new()]);
    for round in 0..3 {
        let store = open(&disk).unwrap();
        assert_eq!(scan(&store).unwrap(), all(60 + round));
        append(&store, 60 + round);
        commit(&store, 60 + round).unwrap();
        drop(store);
    }
    assert!(!disk.image()[1].is_empty());
    // Without its log it is refused: what is only there would be missing.
    assert!(matches!(open(&Recorder::holding(disk.bytes())).err().unwrap(), StoreError::Log(_)));
    assert!(matches!(open(&Recorder::holding_both([disk.bytes(), Vec::new()])).err().unwrap(), StoreError::Log(_)));
}

/// Makes a store one of an older format.
fn set_format(disk: &Recorder, format: u16) {
    let database = redb::Builder::new().create_with_backend(disk.backend()).unwrap();
    let write = database.begin_write().unwrap();
    let meta = TableDefinition::<&str, &[u8]>::new("meta");
    write.open_table(meta).unwrap().insert("format", format.to_le_bytes().as_slice()).unwrap();
    write.commit().unwrap();
}

/// Makes records and tails as they were before they had a checksum.
fn drop_checksums(disk: &Recorder) {
    let database = redb::Builder::new().create_with_backend(disk.backend()).unwrap();
    let write = database.begin_write().unwrap();
    for name in NUMBERED {
        let mut table = write.open_table(TableDefinition::<u32, &[u8]>::new(name)).unwrap();
        let rows: Vec<_> = table
            .iter()
            .unwrap()
            .map(|row| row.unwrap())
            .map(|(key, row)| (key.value(), row.value().to_vec()))
            .collect();
        assert!(!rows.is_empty());
        for (device, row) in rows {
            assert_eq!(row[0], 2);
            table.insert(device, [&[1], &row[5..]].concat().as_slice()).unwrap();
        }
    }
    write.commit().unwrap();
}

#[test]
fn a_full_disk_of_any_size_keeps_what_it_has_and_takes_the_rest_later() {
    const ROUNDS: i64 = 160;
    let base = empty();
    let whole = Recorder::holding(base.clone());
    assert!(record(&open(&whole).unwrap(), ROUNDS).is_none());
    let most = whole.bytes().len();
    let mut full = 0;
    for size in (base.len()..most + 8_192).step_by(4_096) {
        for sparse in [false, true] {
            let disk = Recorder::holding(base.clone());
            disk.resize(Some(size), sparse);
            let store = open(&disk).unwrap();
            full += usize::from(record(&store, ROUNDS).is_some());
            assert_eq!(store.latest(id(1)), Some(reading(ROUNDS - 1)), "size {size}");
            disk.resize(None, false);
            append(&store, ROUNDS);
            commit(&store, ROUNDS).unwrap_or_else(|error| panic!("size {size}: there is room again: {error}"));
            assert_eq!(scan(&store).unwrap(), all(ROUNDS + 1), "size {size}");
            drop(store);
            assert_eq!(scan(&open(&disk).unwrap()).unwrap(), all(ROUNDS + 1), "size {size}");
        }
    }
    println!("{full} runs met a full disk of up to {most} bytes");
    assert!(full > 2);
}

#[test]
fn memory_is_bounded_while_the_disk_takes_nothing_and_what_is_dropped_is_counted() {
    let disk = Recorder::holding(empty());
    let store = open(&disk).unwrap();
    disk.fail_from(Some(0));
    let total = limits::PENDING_READINGS as i64 + limits::BATCH_READINGS as i64 + 5_000;
    for n in 0..total {
        let reading = Reading { time: UnixMillis::new(START + n), ..reading(n) };
        store.append(id(n % 2), reading, Duration::from_secs(10));
        if n % 20_000 == 0 {
            assert!(smol::block_on(store.commit(UnixMillis::new(START))).is_err());
        }
    }
    let figures = store.figures();
    assert!(figures.pending <= limits::PENDING_READINGS + limits::BATCH_READINGS, "{figures:?}");
    assert_eq!(figures.pending as u64 + figures.dropped, total as u64);
    disk.fail_from(None);
    let committed = smol::block_on(store.commit(UnixMillis::new(START))).unwrap();
    assert_eq!(committed, figures.pending);
    let kept = scan(&store).unwrap();
    assert_eq!(kept.len(), committed);
    assert!(kept.windows(2).all(|pair| pair[0].time < pair[1].time));
}

/// A small file system of its own, where that is allowed.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).output();
        let mounted = done.is_ok_and(|done| done.status.success());
        mounted.then_some(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).output();
    }
}

#[test]
fn a_small_file_system_fills_up_and_is_made_larger() {
    let Some(small) = Small::mount("256k") else {
        println!("skipped: no file system can be mounted here");
        return;
    };
    let path = store::path_in(small.0.path());
    let store = Store::open(store::on_disk(path.clone()), Keeping::default()).unwrap();
    let mut error = None;
    let mut count = 0;
    while error.is_none() && count < 40_000 {
        for _ in 0..200 {
            store.append(
                id(count % 2),
                Reading { time: UnixMillis::new(START + count * 10_007), ..reading(count * 7_919) },
                Duration::from_secs(10),
            );
            count += 1;
        }
        error = smol::block_on(store.commit(UnixMillis::new(START + count * 10_007))).err();
    }
    let error = error.expect("256 KiB took everything");
    assert!(error.to_string().to_lowercase().contains("space"), "{error}");
    let grown = Command::new("mount").args(["-o", "remount,size=16m"]).arg(small.0.path()).status().unwrap();
    assert!(grown.success());
    smol::block_on(store.commit(UnixMillis::new(START + count * 10_007))).unwrap();
    assert_eq!(scan(&store).unwrap().len() as i64, count);
    drop(store);
    let store = Store::open(store::on_disk(path), Keeping::default()).unwrap();
    assert_eq!(scan(&store).unwrap().len() as i64, count);
}

#[test]
fn a_new_file_that_a_power_cut_left_half_made_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = store::path_in(dir.path());
    std::fs::write(path.with_extension("new"), [0; 10_000]).unwrap();
    let store = Store::open(store::on_disk(path.clone()), Keeping::default()).unwrap();
    append(&store, 0);
    commit(&store, 0).unwrap();
    drop(store);
    assert!(!path.with_extension("new").exists());
    let store = Store::open(store::on_disk(path), Keeping::default()).unwrap();
    assert_eq!(scan(&store).unwrap(), all(1));
}

/// A file with something in every table.
fn filled() -> Recorder {
    let disk = Recorder::holding(empty());
    let store = open(&disk).unwrap();
    assert!(record(&store, 200).is_none());
    // One that came late, after its time was sealed.
    store.append(id(0), Reading { time: UnixMillis::new(START + 7), ..reading(3) }, Duration::from_secs(10));
    commit(&store, 200).unwrap();
    for n in 201..300 {
        append(&store, n);
        commit(&store, n).unwrap();
    }
    drop(store);
    disk
}

#[test]
fn a_file_that_is_cut_short_is_refused() {
    let whole = filled().bytes();
    for length in (1..whole.len()).step_by(4_000) {
        let error = open(&Recorder::holding(whole[..length].to_vec())).err();
        let error = error.unwrap_or_else(|| panic!("{length} of {} bytes are taken for a store", whole.len()));
        assert!(matches!(error, StoreError::BeyondRepair(_) | StoreError::NotAStore), "{length}: {error:?}");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_a_plain_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = store::path_in(dir.path());
    std::fs::write(&path, filled().bytes()).unwrap();
    // Root may write what is not to be written; a file system that is read-only holds for root too.
    let bind = |options: &str| {
        let mut mount = Command::new("mount");
        mount.args(["-o", options]);
        if options == "bind" {
            mount.arg(dir.path());
        }
        mount.arg(dir.path()).output().is_ok_and(|done| done.status.success())
    };
    if !bind("bind") {
        println!("skipped: nothing can be mounted here");
        return;
    }
    let is_read_only = bind("remount,bind,ro");
    let opened = Store::open(store::on_disk(path), Keeping::default());
    let unmounted = Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(unmounted.success());
    if is_read_only {
        let error = opened.err().expect("a file that cannot be written was opened");
        assert!(error.to_string().to_lowercase().contains("read-only"), "{error}");
    }
}

/// The tables by device number.
const NUMBERED: [&str; 2] = ["device", "tail"];

/// Changes a bit of one value of `table`, as a bad cell of the card would: the page's own checksum is wrong then.
fn flip(bytes: &mut [u8], value: &[u8], bit: usize) {
    let at: Vec<_> = bytes.windows(value.len()).enumerate().filter(|(_, w)| *w == value).map(|(at, _)| at).collect();
    assert!(!at.is_empty());
    for at in at {
        bytes[at + bit / 8] ^= 1 << (bit % 8);
    }
}

/// The first value of each table, as bytes in the file.
fn values(disk: &Recorder) -> Vec<(&'static str, Vec<u8>)> {
    let database = redb::Builder::new().create_with_backend(disk.backend()).unwrap();
    let read = database.begin_read().unwrap();
    let mut values = Vec::new();
    for name in NUMBERED {
        let table = read.open_table(TableDefinition::<u32, &[u8]>::new(name)).unwrap();
        values.push((name, table.first().unwrap().unwrap().1.value().to_vec()));
    }
    for name in ["sealed", "late"] {
        let table = read.open_table(TableDefinition::<(u32, i64), &[u8]>::new(name)).unwrap();
        values.push((name, table.first().unwrap().unwrap().1.value().to_vec()));
    }
    let rollup = read.open_table(TableDefinition::<(u8, u32, i32), &[u8]>::new("rollup")).unwrap();
    values.push(("rollup", rollup.first().unwrap().unwrap().1.value().to_vec()));
    let head = read.open_table(TableDefinition::<u64, &[u8]>::new("head")).unwrap();
    values.push(("head", head.first().unwrap().unwrap().1.value().to_vec()));
    let meta = read.open_table(TableDefinition::<&str, &[u8]>::new("meta")).unwrap();
    values.push(("meta", meta.get("store_id").unwrap().unwrap().value().to_vec()));
    values.push(("device_id", id(0).to_string().into_bytes()));
    values
}

#[test]
fn a_flipped_bit_in_any_table_is_an_error_that_names_it_and_the_rest_is_readable() {
    let whole = filled();
    let good = scan(&open(&whole).unwrap()).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    for (table, value) in values(&whole) {
        for _ in 0..24 {
            let mut bytes = whole.bytes();
            let bit = random.usize(..value.len() * 8);
            flip(&mut bytes, &value, bit);
            // Looked at page by page, the file is known to be damaged, whatever the bit meant.
            let dir = tempfile::tempdir().unwrap();
            let path = store::path_in(dir.path());
            std::fs::write(&path, &bytes).unwrap();
            let report = store::check::check(&path).unwrap();
            assert!(report.problems.iter().any(|problem| problem.table == "file"), "{table}, bit {bit}: {report:?}");
            let is_named = report.problems.iter().any(|problem| problem.table == table);
            let has_own_checksum = ["device", "tail", "sealed", "late", "rollup", "head"].contains(&table);
            assert!(is_named || !has_own_checksum, "{table}, bit {bit}: {report:?}");
            assert!(std::fs::read(&path).unwrap() == bytes, "{table}, bit {bit}: check has changed the file");
            if matches!(table, "meta" | "device_id") {
                // redb stops the program at a key that should be a text and is none; after a start of the machine the
                // file is looked at first.
                let error = Store::open(store::on_disk(path), Keeping::default()).err().unwrap();
                assert!(matches!(error, StoreError::BeyondRepair(_)), "{table}, bit {bit}: {error:?}");
                continue;
            }
            // What redb does not look at while the machine runs is found by our own checksums.
            let store = open(&Recorder::holding(bytes)).unwrap_or_else(|error| panic!("{table}, bit {bit}: {error}"));
            let left = scan(&store).unwrap();
            assert!(left.iter().all(|reading| good.contains(reading)), "{table}, bit {bit}: made up");
            assert!(left.len() * 2 > good.len(), "{table}, bit {bit}: {} of {}", left.len(), good.len());
            for n in 0..2 {
                let (from, to) = (UnixMillis::MIN, UnixMillis::MAX);
                smol::block_on(store.buckets(id(n), Tier::QuarterHour, from, to, to)).unwrap();
            }
            append(&store, 400);
            commit(&store, 400).unwrap();
        }
    }
}

/// Everything that is to be seen of a store.
fn seen(store: &Store) -> impl PartialEq + std::fmt::Debug + use<> {
    let (from, to) = (UnixMillis::MIN, UnixMillis::MAX);
    let buckets = |n| smol::block_on(store.buckets(id(n), Tier::QuarterHour, from, to, reading(299).time)).unwrap();
    let devices: Vec<_> = store.devices().iter().map(|device| (device.record.id, device.record.first_seen)).collect();
    (devices, scan(store).unwrap(), [0, 1].map(buckets), [0, 1].map(|n| store.total(id(n))), store.figures().readings)
}

#[test]
fn a_damaged_record_or_tail_is_made_again_and_costs_nothing_else() {
    let whole = filled();
    let good = seen(&open(&whole).unwrap());
    for (table, value) in values(&whole).into_iter().take(NUMBERED.len()) {
        for bit in (0..value.len() * 8).step_by(7) {
            let mut bytes = whole.bytes();
            flip(&mut bytes, &value, bit);
            let disk = Recorder::holding(bytes);
            assert_eq!(seen(&open(&disk).unwrap()), good, "{table}, bit {bit}");
            // It is whole again, and stays so.
            let dir = tempfile::tempdir().unwrap();
            let path = store::path_in(dir.path());
            std::fs::write(&path, disk.bytes()).unwrap();
            assert_eq!(store::check::check(&path).unwrap().problems, [], "{table}, bit {bit}");
            let store = open(&disk).unwrap();
            append(&store, 300);
            commit(&store, 300).unwrap();
            assert_eq!(scan(&store).unwrap().len(), 301, "{table}, bit {bit}");
        }
    }
}

#[test]
fn a_tail_made_again_after_its_first_readings_were_deleted_still_knows_the_whole_energy() {
    let disk = Recorder::holding(empty());
    let keeping = Keeping { raw: Some(Duration::from_secs(12 * 3_600)), ..Keeping::default() };
    let store = Store::open(disk.disk(), keeping).unwrap();
    assert!(record(&store, 400).is_none());
    let total = store.total(id(0)).unwrap();
    assert!(scan(&store).unwrap().len() < 300, "nothing was deleted");
    drop(store);
    let tail = {
        let database = redb::Builder::new().create_with_backend(disk.backend()).unwrap();
        let table = database.begin_read().unwrap().open_table(TableDefinition::<u32, &[u8]>::new("tail")).unwrap();
        table.get(0).unwrap().unwrap().value().to_vec()
    };
    let mut bytes = disk.bytes();
    flip(&mut bytes, &tail, 60);
    let disk = Recorder::holding(bytes);
    // What was below one mWh is not in the buckets.
    let again = Store::open(disk.disk(), keeping).unwrap().total(id(0)).unwrap();
    assert!(again.get().abs_diff(total.get()) <= 1, "{again} instead of {total}");
    let dir = tempfile::tempdir().unwrap();
    let path = store::path_in(dir.path());
    std::fs::write(&path, disk.bytes()).unwrap();
    assert_eq!(store::check::check(&path).unwrap().problems, []);
}

#[test]
fn a_record_whose_id_is_lost_too_is_refused() {
    let disk = filled();
    let database = redb::Builder::new().create_with_backend(disk.backend()).unwrap();
    let write = database.begin_write().unwrap();
    write
        .open_table(TableDefinition::<&str, u32>::new("device_id"))
        .unwrap()
        .remove(id(0).to_string().as_str())
        .unwrap();
    write.open_table(TableDefinition::<u32, &[u8]>::new("device")).unwrap().insert(0, [7; 20].as_slice()).unwrap();
    write.commit().unwrap();
    drop(database);
    let error = open(&disk).err().unwrap();
    assert!(matches!(error, StoreError::BadRecord { device } if device.get() == 0), "{error:?}");
}

#[test]
fn a_sound_store_passes_the_check_with_its_buckets_recomputed() {
    let dir = tempfile::tempdir().unwrap();
    let path = store::path_in(dir.path());
    let bytes = filled().bytes();
    std::fs::write(&path, &bytes).unwrap();
    let report = store::check::check(&path).unwrap();
    assert_eq!(report.problems, []);
    assert_eq!((report.devices, report.readings), (2, 300));
    assert!(report.chunks >= 4 && report.recomputed > 50, "{report:?}");
    assert!(std::fs::read(&path).unwrap() == bytes, "check has changed the file");
    let _agent = Store::open(store::on_disk(path.clone()), Keeping::default()).unwrap();
    assert!(matches!(store::check::check(&path), Err(StoreError::InUse)));
}

#[test]
fn buckets_that_are_not_what_readings_say_are_found() {
    let disk = filled();
    let dir = tempfile::tempdir().unwrap();
    let path = store::path_in(dir.path());
    std::fs::write(&path, disk.bytes()).unwrap();
    // A blob of another device, sound in itself.
    let database = redb::Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut rollup = write.open_table(TableDefinition::<(u8, u32, i32), &[u8]>::new("rollup")).unwrap();
        let (key, other) = {
            let first = rollup.range((0, 0, i32::MIN)..(0, 1, i32::MIN)).unwrap().next().unwrap().unwrap();
            let (_, _, period) = first.0.value();
            ((0, 0, period), rollup.get((0, 1, period)).unwrap().unwrap().value().to_vec())
        };
        rollup.insert(key, other.as_slice()).unwrap();
    }
    write.commit().unwrap();
    drop(database);
    let report = store::check::check(&path).unwrap();
    assert!(report.problems.iter().any(|problem| problem.table == "rollup"), "{report:?}");
}

#[test]
fn random_damage_never_passes_a_start_of_the_machine() {
    let whole = filled().bytes();
    let mut random = fastrand::Rng::with_seed(2);
    let dir = tempfile::tempdir().unwrap();
    for round in 0..200 {
        let mut bytes = whole.clone();
        let at = random.usize(..bytes.len());
        bytes[at] ^= 1 << random.u8(..8);
        let path = store::path_in(dir.path());
        std::fs::write(&path, &bytes).unwrap();
        let _ = std::fs::remove_file(Path::new(&path).with_extension("opened"));
        // In a free page it changes nothing; else it is seen.
        match Store::open(store::on_disk(path.clone()), Keeping::default()) {
            Ok(store) => assert_eq!(scan(&store).unwrap().len(), 300, "round {round}, byte {at}"),
            Err(error) => {
                let is_clear = matches!(error, StoreError::BeyondRepair(_) | StoreError::NotAStore);
                assert!(is_clear, "round {round}, byte {at}: {error:?}");
            }
        }
    }
}
