//! The store against a plain list that does the same: every reading once, in order, whatever the pages and the moment.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;
use redb::ReadableTable;
use smol::LocalExecutor;
use wattd::reading::{DeviceId, Mac, Reading};
use wattd::store::chunk::Columns;
use wattd::store::{self, Keeping, Order, Position, Row, Scan, Store, StoreError};
use wattd::units::{Milliwatts, UnixMillis};

fn id(n: u8) -> DeviceId {
    DeviceId::plug(Mac::new([0x9c, 0x53, 0x22, 0, 0, n]))
}

fn reading(time: i64, power: i64) -> Reading {
    Reading {
        time: UnixMillis::new(time),
        power: Milliwatts::new(power).unwrap(),
        voltage: None,
        current: None,
        counter: None,
        relay: None,
    }
}

fn open(dir: &tempfile::TempDir) -> Result<Store, StoreError> {
    Store::open(store::on_disk(store::path_in(dir.path())), Keeping::default())
}

/// All rows of a scan, page by page.
async fn all_pages(store: &Store, mut scan: Scan) -> Vec<Row> {
    let mut rows = Vec::new();
    loop {
        let page = store.scan(scan.clone()).await.unwrap();
        assert!(page.rows.len() <= scan.limit);
        scan.after = page.rows.last().map(Row::position).or(scan.after);
        rows.extend(page.rows);
        if !page.more {
            return rows;
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    /// A reading of a device, so long after (or before) the last one.
    Append(u8, i64),
    Commit,
    Reopen,
    Scan {
        from: i64,
        length: i64,
        limit: usize,
        descending: bool,
        devices: BTreeSet<u8>,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let step = prop_oneof![20 => 1..20_000_i64, 2 => -10_000_000..10_000_000_i64, 1 => Just(0)];
    let scan = (
        0..40_000_000_i64,
        0..30_000_000_i64,
        1..40_usize,
        any::<bool>(),
        proptest::collection::btree_set(0..5_u8, 1..4),
    );
    prop_oneof![
        20 => (0..5_u8, step).prop_map(|(device, step)| Act::Append(device, step)),
        3 => Just(Act::Commit),
        1 => Just(Act::Reopen),
        4 => scan.prop_map(|(from, length, limit, descending, devices)| Act::Scan { from, length, limit, descending, devices }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn store_agrees_with_a_list(acts in proptest::collection::vec(act(), 1..120)) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(&dir).unwrap();
        let mut model: Vec<Row> = Vec::new();
        let mut now = 20_000_000;
        smol::block_on(async {
            for act in acts {
                match act {
                    Act::Append(device, step) => {
                        now = (now + step).max(0);
                        store.append(id(device), reading(now, i64::from(device) * 1_000), Duration::from_secs(10));
                        let row = Row { device: store.number(id(device)).unwrap(), reading: reading(now, i64::from(device) * 1_000) };
                        prop_assert_eq!(store.latest(id(device)), Some(row.reading));
                        if !model.iter().any(|old| old.position() == row.position()) {
                            model.push(row);
                        }
                    }
                    Act::Commit => drop(store.commit(UnixMillis::new(now)).await.unwrap()),
                    Act::Reopen => {
                        store.commit(UnixMillis::new(now)).await.unwrap();
                        drop(store);
                        store = open(&dir).unwrap();
                    }
                    Act::Scan { from, length, limit, descending, devices } => {
                        let devices: Vec<_> = devices.iter().filter_map(|n| store.number(id(*n))).collect();
                        let order = if descending { Order::Descending } else { Order::Ascending };
                        let (from, to) = (UnixMillis::new(from), UnixMillis::new(from + length));
                        let rows = all_pages(&store, Scan { devices: devices.clone(), from, to, order, after: None, limit, columns: Columns::ALL }).await;
                        let mut expected: Vec<_> = model.iter().copied()
                            .filter(|row| devices.contains(&row.device) && row.reading.time >= from && row.reading.time < to).collect();
                        expected.sort_by_key(Row::position);
                        if descending { expected.reverse(); }
                        prop_assert_eq!(rows, expected);
                    }
                }
            }
            Ok(())
        })?;
    }
}

#[test]
fn pages_miss_nothing_and_repeat_nothing_while_readings_arrive_and_are_committed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Rc::new(open(&dir).unwrap());
    let executor = LocalExecutor::new();
    let written = Rc::new(RefCell::new(0_i64));
    let writer = {
        let (store, written) = (store.clone(), written.clone());
        executor.spawn(async move {
            for n in 0..3_000 {
                store.append(id((n % 3) as u8), reading(n * 100, n), Duration::from_secs(10));
                *written.borrow_mut() = n + 1;
                if n % 37 == 0 {
                    store.commit(UnixMillis::new(n * 100)).await.unwrap();
                } else {
                    smol::future::yield_now().await;
                }
            }
        })
    };
    smol::block_on(executor.run(async {
        while *written.borrow() < 500 {
            smol::future::yield_now().await;
        }
        for order in [Order::Ascending, Order::Descending] {
            let before = *written.borrow();
            let devices = (0..3).map(|n| store.number(id(n)).unwrap()).collect();
            let scan = Scan {
                devices,
                from: UnixMillis::MIN,
                to: UnixMillis::MAX,
                order,
                after: None,
                limit: 7,
                columns: Columns::ALL,
            };
            let mut times: Vec<_> = all_pages(&store, scan).await.iter().map(|row| row.reading.time.get()).collect();
            if order == Order::Descending {
                times.reverse();
            }
            assert!(times.len() as i64 >= before, "{order:?}: a reading is missing");
            assert!(times.iter().enumerate().all(|(n, time)| *time == n as i64 * 100), "{order:?}: a hole or a repeat");
        }
        writer.await;
    }));
}

#[test]
fn a_cursor_stands_between_rows_of_the_same_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).unwrap();
    for n in 0..4 {
        store.append(id(n), reading(1_000, 1), Duration::from_secs(10));
    }
    let devices: Vec<_> = (0..4).map(|n| store.number(id(n)).unwrap()).collect();
    let after = Some(Position { time: UnixMillis::new(1_000), device: devices[1] });
    let scan = Scan {
        devices: devices.clone(),
        from: UnixMillis::MIN,
        to: UnixMillis::MAX,
        order: Order::Ascending,
        after,
        limit: 10,
        columns: Columns::ALL,
    };
    let rows = smol::block_on(store.scan(scan)).unwrap().rows;
    assert_eq!(rows.iter().map(|row| row.device).collect::<Vec<_>>(), devices[2..]);
}

#[test]
fn a_second_process_on_the_same_file_is_refused_and_told_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(&dir).unwrap();
    let error = open(&dir).err().unwrap();
    assert!(matches!(error, StoreError::InUse));
    assert!(error.to_string().contains("data_dir"), "{error}");
}

#[test]
fn a_newer_file_a_foreign_file_and_a_broken_file_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = store::path_in(dir.path());
    let table: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("meta");

    let foreign = redb::Database::create(&path).unwrap();
    let write = foreign.begin_write().unwrap();
    write.open_table(redb::TableDefinition::<u8, u8>::new("other")).unwrap();
    write.commit().unwrap();
    drop(foreign);
    assert!(matches!(open(&dir).err().unwrap(), StoreError::NotAStore));

    std::fs::remove_file(&path).unwrap();
    drop(open(&dir).unwrap());
    let newer = redb::Database::create(&path).unwrap();
    let write = newer.begin_write().unwrap();
    write.open_table(table).unwrap().insert("format", 999_u16.to_le_bytes().as_slice()).unwrap();
    write.commit().unwrap();
    drop(newer);
    let error = open(&dir).err().unwrap();
    assert!(matches!(error, StoreError::Newer { format: 999 }));
    assert!(error.to_string().contains("newer wattd"), "{error}");

    for bytes in [&b"hello, I am a text file, not a database at all"[..], &[0xff; 10_000], &[0; 10_000]] {
        std::fs::write(&path, bytes).unwrap();
        let error = open(&dir).err().unwrap();
        assert!(matches!(error, StoreError::NotAStore | StoreError::Disk(_)), "{error:?}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "the file was changed");
    }
}

#[test]
fn a_damaged_batch_is_left_out_and_the_rest_is_readable() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).unwrap();
    for n in 0..5 {
        // A device that is new is written into the file, and its batch with it.
        store.append(id(n as u8), reading(n * 1_000, n), Duration::from_secs(10));
        smol::block_on(store.commit(UnixMillis::MIN)).unwrap();
    }
    drop(store);
    let table: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("head");
    let file = redb::Database::create(store::path_in(dir.path())).unwrap();
    let write = file.begin_write().unwrap();
    {
        let mut head = write.open_table(table).unwrap();
        let mut bytes = head.get(2).unwrap().unwrap().value().to_vec();
        bytes[20] ^= 1;
        head.insert(2, bytes.as_slice()).unwrap();
    }
    write.commit().unwrap();
    drop(file);
    let store = open(&dir).unwrap();
    let devices = (0..5).map(|n| store.number(id(n)).unwrap()).collect();
    let scan = Scan {
        devices,
        from: UnixMillis::MIN,
        to: UnixMillis::MAX,
        order: Order::Ascending,
        after: None,
        limit: 10,
        columns: Columns::ALL,
    };
    let rows = smol::block_on(store.scan(scan)).unwrap().rows;
    assert_eq!(rows.iter().map(|row| row.reading.power.get()).collect::<Vec<_>>(), [0, 1, 3, 4]);
    store.append(id(1), reading(9_000, 9), Duration::from_secs(10));
    smol::block_on(store.commit(UnixMillis::MIN)).unwrap();
    assert_eq!(store.figures().batches, 6, "the damaged batch keeps its number");
}

#[test]
fn a_page_of_noise_anywhere_in_the_file_is_an_error_or_harmless_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).unwrap();
    for n in 0..40 {
        for device in 0..8 {
            store.append(id(device), reading(n * 10_000, n), Duration::from_secs(10));
        }
        smol::block_on(store.commit(UnixMillis::new(n * 10_000))).unwrap();
    }
    drop(store);
    let whole = std::fs::read(store::path_in(dir.path())).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let mut refused = 0;
    for page in 1..whole.len() / 4_096 {
        let mut bytes = whole.clone();
        bytes[page * 4_096..][..4_096].fill_with(|| random.u8(..));
        std::fs::write(store::path_in(dir.path()), bytes).unwrap();
        match open(&dir) {
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
            Ok(store) => {
                let devices = (0..8).filter_map(|n| store.number(id(n))).collect();
                let (from, to) = (UnixMillis::MIN, UnixMillis::MAX);
                let order = Order::Ascending;
                let scan = Scan { devices, from, to, order, after: None, limit: 1_000, columns: Columns::ALL };
                let _ = smol::block_on(store.scan(scan)); // rows or an error
                store.append(id(1), reading(1_000_000, 1), Duration::from_secs(10));
                let _ = smol::block_on(store.commit(UnixMillis::new(1_000_000)));
            }
        }
    }
    assert!(refused > 0);
}

fn newest(store: &Store, n: u8, limit: usize) -> Vec<u32> {
    let devices = vec![store.number(id(n)).unwrap()];
    let (from, to, order, columns) = (UnixMillis::MIN, UnixMillis::MAX, Order::Descending, Columns::ALL);
    let scan = Scan { devices, from, to, order, after: None, limit, columns };
    let page = smol::block_on(store.scan(scan)).unwrap();
    page.rows.iter().map(|row| row.reading.power.get()).collect()
}

#[test]
fn the_version_changes_with_what_can_be_asked_and_not_with_what_is_past() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).unwrap();
    const HOUR: i64 = 3_600_000;
    let append = |n: u8, time: i64| store.append(id(n), reading(time, time / 1_000), Duration::from_secs(10));
    append(1, 0);
    append(2, 0);
    let (one, two, both) = (&[id(1)][..], &[id(2)][..], &[id(1), id(2)][..]);
    let now = |ids: &[DeviceId]| store.version(ids, UnixMillis::MAX);
    let past = |ids: &[DeviceId]| store.version(ids, UnixMillis::new(HOUR));
    let before = (now(one), now(two), now(both), past(one));
    append(1, 10_000);
    assert!(now(one) != before.0 && now(two) == before.1 && now(both) != before.2 && past(one) != before.3);
    append(1, 2 * HOUR);
    append(2, 2 * HOUR);
    let settled = (past(one), past(both));
    append(1, 3 * HOUR);
    assert_eq!((past(one), past(both)), settled, "the past goes on as it was");
    append(2, HOUR / 2);
    assert!(past(one) == settled.0 && past(both) != settled.1, "something came late");
    let before = now(one);
    smol::block_on(store.commit(UnixMillis::new(3 * HOUR))).unwrap();
    assert_eq!(now(one), before, "what is on the disk now is what was shown before");
    smol::block_on({
        append(2, 12 * HOUR);
        store.commit(UnixMillis::new(12 * HOUR))
    })
    .unwrap();
    assert_ne!(now(one), before, "it was sealed");
    let last = now(both);
    drop(store);
    assert_ne!(open(&dir).unwrap().version(both, UnixMillis::MAX), last, "another run has numbers of its own");
}

#[test]
fn newest_readings_come_from_memory_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(&dir).unwrap();
    for n in 0..3_000 {
        store.append(id(1), reading(n * 10_000, n), Duration::from_secs(10));
        if n % 60 == 59 {
            smol::block_on(store.commit(UnixMillis::new(n * 10_000))).unwrap();
        }
    }
    assert!(store.figures().chunks > 0);
    let expected: Vec<u32> = (0..3_000).rev().collect();
    for _ in 0..2 {
        assert_eq!(newest(&store, 1, 300), expected[..300]);
        assert_eq!(newest(&store, 1, 2_999), expected[..2_999]);
        assert!(store.figures().recent_bytes < 40_000, "{:?}", store.figures());
        drop(store);
        store = open(&dir).unwrap();
    }
}

#[test]
fn a_log_that_is_missing_or_belongs_to_another_store_is_refused_and_damage_in_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).unwrap();
    for n in 0..20 {
        store.append(id(1), reading(n * 1_000, n), Duration::from_secs(10));
        smol::block_on(store.commit(UnixMillis::new(n * 1_000))).unwrap();
    }
    assert!(store.figures().file_commits < 3, "{:?}", store.figures());
    drop(store);
    let path = store::path_in(dir.path());
    let log = store::disk::log_of(&path);
    let whole = std::fs::read(&log).unwrap();
    let (readings, problems) = {
        let report = store::check::check(&path).unwrap();
        (report.readings, report.problems)
    };
    assert_eq!((readings, problems.len()), (20, 0), "{problems:?}");

    let other = tempfile::tempdir().unwrap();
    drop(open(&other).unwrap());
    let other_log = std::fs::read(store::disk::log_of(&store::path_in(other.path()))).unwrap();
    // Another store's log has none of this one's commits: what is only there is not made up.
    for bytes in [&other_log[..], &[], &[0; 100_000]] {
        std::fs::write(&log, bytes).unwrap();
        let error = open(&dir).err().unwrap();
        assert!(matches!(error, StoreError::Log(_)) && error.is_damage(), "{error:?}");
        assert!(error.to_string().contains("wattd backup"), "{error}");
    }
    // A bit in the middle: what is before it is there, and somebody says so.
    let mut damaged = whole.clone();
    damaged[4_096 * 10 + 60] ^= 1;
    std::fs::write(&log, &damaged).unwrap();
    let report = store::check::check(&path).unwrap();
    assert!(report.problems.iter().any(|problem| problem.table == "log"), "{report:?}");
    let store = open(&dir).unwrap();
    let kept = newest(&store, 1, 100);
    assert!(kept.len() < 20 && kept.len() > 5 && kept[kept.len() - 1] == 0, "{kept:?}");
    drop(store);
    std::fs::write(&log, whole).unwrap();
}
