//! Sealing, rollups and retention through the real store: nothing is lost, doubled or changed on the way from the head into
//! chunks, the buckets are those of a fold over all readings, and old readings go without their energy.

#[path = "common/pages.rs"]
mod pages;
#[path = "bench/workload.rs"]
mod workload;

use std::collections::BTreeMap;
use std::time::Duration;

use pages::{all_buckets, all_rows};
use redb::ReadableTableMetadata;
use wattd::reading::{DeviceId, Entry, Mac, Reading};
use wattd::rollup::{Bucket, Fold};
use wattd::store::chunk::{Columns, Stored};
use wattd::store::{self, Keeping, Order, Scan, Store, Tier};
use wattd::units::UnixMillis;

const HOUR: i64 = 3_600_000;

fn id(n: usize) -> DeviceId {
    DeviceId::plug(Mac::new([0x9c, 0x53, 0x22, 0, 0, n as u8]))
}

fn open(dir: &tempfile::TempDir, keeping: Keeping) -> Store {
    Store::open(store::on_disk(store::path_in(dir.path())), keeping).unwrap()
}

/// Every device's entries, and the same in order of time over all devices.
fn entries(plugs: usize, days: u32) -> (Vec<Vec<Stored>>, Vec<(usize, Stored)>) {
    let stored = |entry| Stored { entry, interval_ms: workload::INTERVAL };
    let plug = |n| workload::plug(n, days as usize * workload::DAY).into_iter().map(stored).collect();
    let each: Vec<Vec<Stored>> = (0..plugs).map(plug).collect();
    let mut all: Vec<_> = each.iter().enumerate().flat_map(|(n, list)| list.iter().map(move |s| (n, *s))).collect();
    all.sort_by_key(|(n, stored)| (stored.entry.time(), *n));
    (each, all)
}

/// Appends `all` with a commit for every minute of their time; `reopen` after so many commits.
fn feed(dir: &tempfile::TempDir, keeping: Keeping, all: &[(usize, Stored)], reopen: Option<usize>) -> Store {
    let mut store = open(dir, keeping);
    let mut minute = 0;
    for (n, stored) in all {
        let time = stored.entry.time();
        if time.get() / 60_000 != minute {
            minute = time.get() / 60_000;
            smol::block_on(store.commit(time)).unwrap();
            if reopen.is_some_and(|every| (minute as usize).is_multiple_of(every)) {
                drop(store);
                store = open(dir, keeping);
            }
        }
        match stored.entry {
            Entry::Reading(reading) => store.append(id(*n), reading, Duration::from_millis(stored.interval_ms.into())),
            Entry::Gap { time } => store.gap(id(*n), time),
        }
    }
    store
}

fn read(store: &Store, n: usize, order: Order, columns: Columns) -> Vec<Reading> {
    let devices = vec![store.number(id(n)).unwrap()];
    let scan = Scan { devices, from: UnixMillis::MIN, to: UnixMillis::MAX, order, after: None, limit: 3_333, columns };
    all_rows(store, scan).unwrap().into_iter().map(|row| row.reading).collect()
}

fn readings(list: &[Stored]) -> Vec<Reading> {
    let reading = |stored: &Stored| match stored.entry {
        Entry::Reading(reading) => Some(reading),
        Entry::Gap { .. } => None,
    };
    list.iter().filter_map(reading).collect()
}

fn folded(list: &[Stored], now: UnixMillis) -> Vec<Bucket> {
    let (mut fold, mut buckets) = (Fold::new(), Vec::new());
    for stored in list {
        fold.push(&stored.entry, stored.interval_ms, |bucket| buckets.push(bucket));
    }
    fold.peek(now, |bucket| buckets.push(bucket));
    buckets
}

fn buckets(store: &Store, n: usize, tier: Tier, from: UnixMillis, to: UnixMillis, now: UnixMillis) -> Vec<Bucket> {
    all_buckets(store, id(n), tier, (from, to), now)
}

#[test]
fn what_was_appended_is_read_back_from_chunks_head_and_memory_alike() {
    let (each, all) = entries(3, 2);
    let now = all.last().unwrap().1.entry.time();
    for reopen in [None, Some(97)] {
        let dir = tempfile::tempdir().unwrap();
        let store = feed(&dir, Keeping::default(), &all, reopen);
        let figures = store.figures();
        assert!(reopen.is_some() || figures.chunks >= 3 * 4, "{figures:?}");
        assert!(figures.head_batches < 9 * 60, "the head stays short: {figures:?}");
        for (n, list) in each.iter().enumerate() {
            let expected = readings(list);
            assert_eq!(read(&store, n, Order::Ascending, Columns::ALL), expected, "device {n}");
            let mut backwards = read(&store, n, Order::Descending, Columns::ALL);
            backwards.reverse();
            assert_eq!(backwards, expected, "device {n} backwards");
            let power: Vec<_> = read(&store, n, Order::Ascending, Columns::POWER).iter().map(|r| r.power).collect();
            assert_eq!(power, expected.iter().map(|r| r.power).collect::<Vec<_>>());

            let quarters = folded(list, now);
            let stored = buckets(&store, n, Tier::QuarterHour, UnixMillis::MIN, UnixMillis::MAX, now);
            assert_eq!(stored, quarters, "device {n}");
            // Hours, as far as they are sealed, are the sums of their quarters.
            let hours = buckets(&store, n, Tier::Hour, UnixMillis::MIN, UnixMillis::MAX, now);
            assert!(hours.len() < quarters.len() / 2);
            let by_hour = |list: &[Bucket]| {
                let mut sums: BTreeMap<i64, Bucket> = BTreeMap::new();
                for bucket in list {
                    let hour = UnixMillis::new(bucket.start.get() / HOUR * HOUR);
                    sums.entry(hour.get()).or_insert(Bucket::empty(hour)).merge(bucket);
                }
                sums
            };
            assert_eq!(by_hour(&hours), by_hour(&quarters), "device {n}");
            let total = store.total(id(n)).unwrap().get();
            let sum: u64 = quarters.iter().map(|bucket| bucket.energy.get()).sum();
            // The last bucket holds the last reading on until now.
            assert!((total..total + 5_000).contains(&sum), "device {n}: {total} {sum}");
        }
    }
}

#[test]
fn old_readings_go_and_their_buckets_stay() {
    let (each, all) = entries(2, 3);
    let now = all.last().unwrap().1.entry.time();
    let dir = tempfile::tempdir().unwrap();
    let keeping = Keeping { raw: Some(Duration::from_secs(86_400)), ..Keeping::default() };
    let store = feed(&dir, keeping, &all, None);
    for (n, list) in each.iter().enumerate() {
        let kept = read(&store, n, Order::Ascending, Columns::ALL);
        let all = readings(list);
        assert_eq!(kept, all[all.len() - kept.len()..], "what is left is the newest part");
        let oldest = kept[0].time;
        assert!(oldest <= now.plus(-24 * HOUR), "everything of the last day is there");
        assert!(oldest > now.plus(-40 * HOUR), "what is older went, a chunk at a time: {oldest}");
        let stored = buckets(&store, n, Tier::QuarterHour, UnixMillis::MIN, UnixMillis::MAX, now);
        assert_eq!(stored, folded(list, now), "device {n}");
    }
}

#[test]
fn a_size_cap_drops_the_oldest_first_whoever_it_belongs_to() {
    let (each, all) = entries(3, 2);
    let dir = tempfile::tempdir().unwrap();
    let keeping = Keeping { max_size: Some(12 * 4_160), ..Keeping::default() };
    let store = feed(&dir, keeping, &all, None);
    let starts: Vec<_> = (0..3).map(|n| read(&store, n, Order::Ascending, Columns::POWER)[0].time).collect();
    assert!(starts.iter().zip(&each).all(|(start, list)| *start > list[0].entry.time()), "{starts:?}");
    drop(store);
    let file = redb::Database::create(store::path_in(dir.path())).unwrap();
    let table: redb::TableDefinition<'_, (u32, i64), &[u8]> = redb::TableDefinition::new("sealed");
    let chunks = redb::ReadableDatabase::begin_read(&file).unwrap().open_table(table).unwrap().len().unwrap();
    assert!(chunks <= 12 + 8, "{chunks} chunks");
}

#[test]
fn readings_that_come_late_are_kept_wherever_their_time_lies() {
    let (_, all) = entries(2, 1);
    let dir = tempfile::tempdir().unwrap();
    let store = feed(&dir, Keeping::default(), &all, None);
    let end = all.last().unwrap().1.entry.time();
    let start = all[0].1.entry.time();
    let mut expected = read(&store, 0, Order::Ascending, Columns::ALL);
    let template = expected[0];
    // The clock is set back by hours: among what is sealed, what is in the head, and what is in memory.
    for (k, time) in
        [start.plus(5_001), start.plus(HOUR + 1), end.plus(-HOUR + 2), end.plus(-30_003)].iter().enumerate()
    {
        let reading = Reading { time: *time, ..template };
        store.append(id(0), reading, Duration::from_secs(10));
        expected.push(reading);
        if k % 2 == 0 {
            smol::block_on(store.commit(end)).unwrap();
        }
    }
    expected.sort_by_key(|reading| reading.time);
    assert_eq!(read(&store, 0, Order::Ascending, Columns::ALL), expected);
    // And they stay when everything around them is sealed.
    for n in 0..9 {
        store.append(id(1), Reading { time: end.plus(20 * HOUR + n), ..template }, Duration::from_secs(10));
        smol::block_on(store.commit(end.plus(20 * HOUR + n))).unwrap();
    }
    assert!(store.figures().head_batches <= 12, "{:?}", store.figures());
    assert_eq!(read(&store, 0, Order::Ascending, Columns::ALL), expected);
    drop(store);
    let store = open(&dir, Keeping::default());
    assert_eq!(read(&store, 0, Order::Descending, Columns::ALL).len(), expected.len());
}

#[test]
fn a_gap_right_after_everything_was_sealed_is_not_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut reading = readings(&entries(1, 1).0[0])[0];
    let start = reading.time;
    for reopen in [false, true] {
        let path = dir.path().join(format!("{reopen}.redb"));
        let open = || Store::open(store::on_disk(path.clone()), Keeping::default()).unwrap();
        let mut store = open();
        let mut list = Vec::new();
        let mut append = |store: &Store, reading: Reading| {
            store.append(id(0), reading, Duration::from_secs(600));
            list.push(Stored { entry: Entry::Reading(reading), interval_ms: 600_000 });
        };
        reading.time = start;
        append(&store, reading);
        smol::block_on(store.commit(start.plus(7 * HOUR))).unwrap(); // old enough to be sealed, and the only one
        assert_eq!(store.figures().chunks, 1);
        if reopen {
            drop(store);
            store = open();
        }
        store.gap(id(0), start.plus(60_000));
        reading.time = start.plus(HOUR);
        append(&store, reading);
        list.insert(1, Stored { entry: Entry::Gap { time: start.plus(60_000) }, interval_ms: 600_000 });
        let now = start.plus(2 * HOUR);
        let stored = buckets(&store, 0, Tier::QuarterHour, UnixMillis::MIN, UnixMillis::MAX, now);
        assert_eq!(stored, folded(&list, now), "reopened: {reopen}");
    }
}
