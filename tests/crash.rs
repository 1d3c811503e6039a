//! Power cuts at every moment, on a disk that keeps what was synced and any part of the rest: the real store opens again
//! with every batch whose commit had returned, whole and once, and nothing else but the batch under way, whole or absent.
//! Its buckets are those of a fold over all entries. The same for cuts while a cut file is being repaired, during sealing
//! and retention. A disk that lies about syncs gives an older committed state or a clear refusal, never a mixture, to a
//! store that looks at every page first, as `store::on_disk` does after a start of the machine.
//!
//! While a run is recorded its state is compared with a plain list after each commit, and noted as a digest; what is
//! opened after a cut must have one of the digests that are allowed at this moment.

#[path = "common/disk.rs"]
mod disk;
#[path = "common/pages.rs"]
mod pages;

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use disk::{Event, Image, Playback, Recorder};
use pages::{all_buckets, all_rows};
use wattd::reading::{Alias, DeviceId, Entry, Mac, PlugFacts, Protocol, Reading, Relay, Text};
use wattd::rollup::{Bucket, Fold};
use wattd::store::chunk::{Columns, Stored};
use wattd::store::disk::{Disk, Medium};
use wattd::store::{Keeping, Order, Row, Scan, Store, StoreError, Tier};
use wattd::units::{Millivolts, MilliwattHours, Milliwatts, UnixMillis};

const START: i64 = 1_767_225_600_000;
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
/// Buckets are looked at as of a time when nothing is held any more.
const LATER: UnixMillis = UnixMillis::new(START + 400 * 24 * HOUR);
const THREADS: usize = 2;

fn id(n: usize) -> DeviceId {
    DeviceId::plug(Mac::new([0x9c, 0x53, 0x22, 0, 0, n as u8]))
}

fn facts(n: usize, alias: &str) -> PlugFacts {
    PlugFacts {
        mac: id(n).plug,
        alias: Alias::new(alias),
        model: Text::new("KP115(EU)"),
        hardware: Text::new("1.0"),
        firmware: Text::new("1.0.16"),
        protocol: Protocol::IotXor,
        has_meter: true,
        outlets: Vec::new(),
    }
}

/// What is appended before one commit, and when that commit is.
struct Step {
    entries: Vec<(usize, Stored)>,
    now: UnixMillis,
    /// The store is closed and opened again after it.
    reopen: bool,
}

struct Script {
    steps: Vec<Step>,
    keeping: Keeping,
    devices: usize,
    /// Whether entries come out of order.
    late: bool,
}

/// Times that wander, powers that jump, a counter that counts, gaps. What one commit takes spans less than an hour, so that
/// it is one batch; what comes late has a commit of its own.
fn script(devices: usize, commits: usize, per_commit: usize, every: i64, keeping: Keeping, late: bool) -> Script {
    let mut random = fastrand::Rng::with_seed(commits as u64);
    let mut counters = vec![8_000_000_i64; devices];
    let mut time = START;
    let mut steps = Vec::new();
    for commit in 0..commits {
        let mut entries = Vec::new();
        for _ in 0..per_commit {
            time += every;
            for (n, counter) in counters.iter_mut().enumerate() {
                let at = UnixMillis::new(time + random.i64(0..every / 4));
                *counter += random.i64(0..2_000);
                let reading = Reading {
                    time: at,
                    power: Milliwatts::new(random.i64(0..3) * 60_000 + random.i64(0..200)).unwrap(),
                    voltage: (n != 1).then(|| Millivolts::new(230_000 + random.i64(-900..900)).unwrap()),
                    current: None,
                    counter: Some(MilliwattHours::new(*counter).unwrap()),
                    relay: [None, Some(Relay::On)][n % 2],
                };
                let interval_ms = every as u32;
                let entry = match random.u8(..24) {
                    0 => Entry::Gap { time: at },
                    1 if late => {
                        let time = at.plus(-random.i64(HOUR / 7..9 * HOUR));
                        let entry = Entry::Reading(Reading { time, ..reading });
                        let before = std::mem::take(&mut entries);
                        let late = vec![(n, Stored { entry, interval_ms })];
                        for entries in [before, late] {
                            steps.push(Step { entries, now: at, reopen: false });
                        }
                        continue;
                    }
                    _ => Entry::Reading(reading),
                };
                entries.push((n, Stored { entry, interval_ms }));
            }
        }
        steps.push(Step { entries, now: UnixMillis::new(time), reopen: commit % 29 == 28 });
    }
    Script { steps, keeping, devices, late }
}

/// Everything that a store shows, as digests that tell what differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    devices: u64,
    rows: u64,
    count: usize,
    quarters: u64,
    hours: u64,
    totals: u64,
}

fn rows(store: &Store) -> Vec<Row> {
    let devices = store.devices().iter().map(|device| device.number).collect();
    let scan = Scan {
        devices,
        from: UnixMillis::MIN,
        to: UnixMillis::MAX,
        order: Order::Ascending,
        after: None,
        limit: 10_000,
        columns: Columns::ALL,
    };
    all_rows(store, scan).unwrap()
}

fn buckets(store: &Store, n: usize, tier: Tier) -> Vec<Bucket> {
    all_buckets(store, id(n), tier, (UnixMillis::MIN, UnixMillis::MAX), LATER)
}

fn digest_of_buckets(store: &Store, devices: usize, tier: Tier) -> u64 {
    let mut hasher = DefaultHasher::new();
    for n in 0..devices {
        for bucket in buckets(store, n, tier) {
            let (min, max) = bucket.range.map_or((0, 0), |range| (range.min.get(), range.max.get()));
            hasher.write_i64(bucket.start.get());
            hasher.write_u64(bucket.energy.get());
            hasher.write_u64(bucket.power.get());
            hasher.write_u128(bucket.observed.as_millis());
            hasher.write_u128(bucket.on.map_or(u128::MAX, |on| on.as_millis()));
            hasher.write_u64(u64::from(min) << 32 | u64::from(max));
            hasher.write_u64(u64::from(bucket.readings) << 8 | u64::from(bucket.flags.bits()));
        }
        hasher.write_u8(1);
    }
    hasher.finish()
}

fn digest_of_rows(rows: &[Row]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for Row { device, reading } in rows {
        hasher.write_u32(device.get());
        hasher.write_i64(reading.time.get());
        hasher.write_u32(reading.power.get());
        hasher.write_u64(reading.voltage.map_or(u64::MAX, |v| v.get().into()));
        hasher.write_u64(reading.current.map_or(u64::MAX, |v| v.get().into()));
        hasher.write_u64(reading.counter.map_or(u64::MAX, |v| v.get()));
        hasher.write_u8(reading.relay.map_or(2, |relay| relay as u8));
    }
    hasher.finish()
}

fn shown(store: &Store, devices: usize) -> Shown {
    let rows = rows(store);
    let mut records = DefaultHasher::new();
    for device in store.devices() {
        records.write(&postcard::to_stdvec(&device.record).unwrap());
    }
    let mut totals = DefaultHasher::new();
    for n in 0..devices {
        totals.write_u64(store.total(id(n)).map_or(0, MilliwattHours::get));
        totals.write_i64(store.latest(id(n)).map_or(0, |reading| reading.time.get()));
    }
    Shown {
        devices: records.finish(),
        rows: digest_of_rows(&rows),
        count: rows.len(),
        quarters: digest_of_buckets(store, devices, Tier::QuarterHour),
        hours: digest_of_buckets(store, devices, Tier::Hour),
        totals: totals.finish(),
    }
}

/// A commit of a run: events that had happened when it began and when it returned, and what the store shows after it.
struct Point {
    began: usize,
    returned: usize,
    shown: Shown,
}

struct Run {
    /// The disk before the first event.
    base: Image,
    events: Vec<Event>,
    /// The first is the opening of the file.
    points: Vec<Point>,
    devices: usize,
}

impl Run {
    /// What the store may show when power is cut after `events` events.
    fn allowed(&self, events: usize) -> &[Point] {
        let done = self.points.partition_point(|point| point.returned <= events);
        let begun = self.points.partition_point(|point| point.began <= events);
        &self.points[done.saturating_sub(1)..begun.max(1)]
    }
}

/// Plays a script on the real store and compares what it shows with a list, commit by commit.
fn record(script: &Script) -> Run {
    // A new file is made beside and renamed when it is whole: what follows begins with an empty one.
    let disk = Recorder::default();
    drop(redb::Builder::new().create_with_backend(disk.backend()).unwrap());
    let base = [disk.bytes(), Vec::new()];
    let disk = Recorder::recording(base.clone());
    let mut store = Store::open(disk.disk(), script.keeping).unwrap();
    let mut points = vec![Point { began: 0, returned: disk.event_count(), shown: shown(&store, script.devices) }];
    let mut model: Vec<BTreeMap<UnixMillis, Reading>> = vec![BTreeMap::new(); script.devices];
    let mut folds: Vec<(Fold, Vec<Bucket>)> = vec![(Fold::new(), Vec::new()); script.devices];
    let mut sealed = 0;
    for (k, step) in script.steps.iter().enumerate() {
        if k % 13 == 0 {
            let address = "192.168.1.7:9999".parse().unwrap();
            store.remember(&facts(k % script.devices, &format!("plug {k}")), address, step.now);
        }
        for (n, stored) in &step.entries {
            let (fold, finished) = &mut folds[*n];
            match stored.entry {
                Entry::Reading(reading) => {
                    model[*n].entry(reading.time).or_insert(reading);
                    store.append(id(*n), reading, Duration::from_millis(stored.interval_ms.into()));
                    fold.push(&stored.entry, stored.interval_ms, |bucket| finished.push(bucket));
                }
                Entry::Gap { time } => {
                    let before = store.figures().pending;
                    store.gap(id(*n), time);
                    assert_eq!(store.figures().pending, before, "a gap is no reading");
                    if model[*n].last_key_value().is_some_and(|(last, _)| *last < time) {
                        fold.push(&stored.entry, stored.interval_ms, |bucket| finished.push(bucket));
                    }
                }
            }
        }
        let began = disk.event_count();
        smol::block_on(store.commit(step.now)).unwrap();
        let returned = disk.event_count();
        sealed += store.figures().chunks;

        // Everything that is young enough is there, nothing is that was not appended.
        let limit = script.keeping.raw.map_or(UnixMillis::MIN, |raw| step.now.plus(-(raw.as_millis() as i64)));
        let rows = rows(&store);
        assert!(rows.windows(2).all(|pair| pair[0].position() < pair[1].position()), "order, once");
        for (n, model) in model.iter().enumerate() {
            let Some(number) = store.number(id(n)) else { continue };
            let kept: Vec<_> = rows.iter().filter(|row| row.device == number).map(|row| row.reading).collect();
            assert!(kept.iter().all(|reading| model.get(&reading.time) == Some(reading)), "commit {k}: made up");
            // A size cap takes the oldest.
            let capped = kept.first().filter(|_| script.keeping.max_size.is_some()).map(|reading| reading.time);
            let young = |reading: &&Reading| reading.time >= limit && capped.is_none_or(|from| reading.time >= from);
            let wanted: Vec<_> = model.values().filter(young).copied().collect();
            assert!(kept.iter().filter(young).eq(wanted.iter()), "commit {k}: lost");
            if !script.late {
                let (fold, finished) = &folds[n];
                let mut expected = finished.clone();
                fold.peek(LATER, |bucket| expected.push(bucket));
                assert_eq!(buckets(&store, n, Tier::QuarterHour), expected, "commit {k}: buckets of device {n}");
            }
        }
        let state = shown(&store, script.devices);
        if step.reopen {
            drop(store);
            store = Store::open(disk.disk(), script.keeping).unwrap();
            assert_eq!(shown(&store, script.devices), state, "commit {k}: closing and opening changed what is shown");
        }
        points.push(Point { began, returned, shown: state });
    }
    assert!(sealed > 0, "nothing was sealed");
    drop(store);
    Run { base, events: disk.events(), points, devices: script.devices }
}

/// How much is tried.
#[derive(Clone, Copy)]
struct Effort {
    /// Choices of what a cut leaves, at each event.
    choices: usize,
    /// One in so many images is cut again while it is repaired and written to.
    nested: usize,
    /// One in so many cuts is taken.
    cuts: usize,
}

/// Opens what a cut has left. The store must show one of `allowed` and take a new commit, which is still there after one
/// more opening. Returns the disk with all that it did, and the moments of it.
fn open_again(image: Image, allowed: &[Point], devices: usize, what: &dyn Fn() -> String) -> (Recorder, Vec<Point>) {
    let disk = Recorder::recording(image);
    let store = Store::open(disk.disk(), Keeping::default());
    let store = store.unwrap_or_else(|error| panic!("{}: {error}", what()));
    let opened = disk.event_count();
    let first = shown(&store, devices);
    if !allowed.iter().any(|point| point.shown == first) {
        let allowed: Vec<_> = allowed.iter().map(|point| point.shown).collect();
        panic!("{}: shows {first:#?}\nallowed was one of {allowed:#?}", what());
    }
    let reading = Reading {
        time: rows(&store).last().map_or(UnixMillis::new(START), |row| row.reading.time.plus(MINUTE)),
        power: Milliwatts::new(1_000).unwrap(),
        voltage: None,
        current: None,
        counter: None,
        relay: None,
    };
    store.append(id(0), reading, Duration::from_secs(10));
    let began = disk.event_count();
    let committed = smol::block_on(store.commit(UnixMillis::MIN));
    assert_eq!(committed.unwrap_or_else(|error| panic!("{}: {error}", what())), 1);
    let returned = disk.event_count();
    let second = shown(&store, devices);
    assert_eq!((second.count, second.hours == first.hours), (first.count + 1, second.hours == first.hours));
    assert_eq!(store.latest(id(0)), Some(reading), "{}", what());
    drop(store);
    let points = vec![Point { began: 0, returned: opened, shown: first }, Point { began, returned, shown: second }];
    (disk, points)
}

/// Cuts a run at every event and looks at what is left. Returns how many images were looked at.
fn cut_everywhere(run: &Run, effort: Effort, name: &str) -> usize {
    let images = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let images = &images;
            scope.spawn(move || {
                let mut disk = Playback::from(run.base.clone());
                for (cut, event) in run.events.iter().enumerate() {
                    disk.play(event, false);
                    let mine = cut / effort.cuts % THREADS == thread && cut % effort.cuts == 0;
                    if mine {
                        images.fetch_add(cut_here(run, effort, &disk, cut + 1, name), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    images.into_inner()
}

fn cut_here(run: &Run, effort: Effort, disk: &Playback, cut: usize, name: &str) -> usize {
    let mut random = fastrand::Rng::with_seed(cut as u64);
    let mut seen = HashSet::new();
    let mut images = 0;
    let choices = [Vec::new(), disk.all()].into_iter();
    let choices: Vec<_> = choices.chain((2..effort.choices).map(|_| disk.choose(&mut random))).collect();
    for kept in choices {
        if !seen.insert(kept.clone()) {
            continue;
        }
        images += 1;
        let image = disk.image(&kept);
        let what = || format!("{name}, cut after event {cut}, kept {kept:?} of {}", disk.loose());
        let (repaired, points) = open_again(image.clone(), run.allowed(cut), run.devices, &what);
        if random.usize(..effort.nested) != 0 {
            continue;
        }
        let again = Run { base: image, events: repaired.events(), points, devices: run.devices };
        let mut disk = Playback::from(again.base.clone());
        for (second_cut, event) in again.events.iter().enumerate() {
            disk.play(event, false);
            let second_cut = second_cut + 1;
            // Before the opening returned, nobody has seen which of the states it is.
            let opening = again.points.first().is_some_and(|point| second_cut < point.returned);
            let allowed = if opening { run.allowed(cut) } else { again.allowed(second_cut) };
            let kept = disk.choose(&mut random);
            let what = || format!("{}; then after event {second_cut}, kept {kept:?} of {}", what(), disk.loose());
            open_again(disk.image(&kept), allowed, run.devices, &what);
            images += 1;
        }
    }
    images
}

fn keeping_a_day() -> Keeping {
    Keeping { raw: Some(Duration::from_secs(86_400)), quarter_hour: None, hour: None, max_size: Some(4_160 * 16) }
}

#[test]
fn a_power_cut_at_any_event_costs_no_committed_reading() {
    // Forty minutes between commits: each device seals a chunk every ten of them, and after a day old ones go.
    let script = script(3, 110, 3, 13 * MINUTE, keeping_a_day(), false);
    let run = record(&script);
    let effort = Effort { choices: 78, nested: 200, cuts: 1 };
    let images = cut_everywhere(&run, effort, "in order");
    println!("{images} images of {} events in {} commits", run.events.len(), run.points.len());
    assert!(images >= 38_000, "{images} images: too few to mean much");
}

#[test]
fn nor_while_readings_come_out_of_order() {
    let script = script(2, 70, 3, 13 * MINUTE, keeping_a_day(), true);
    let run = record(&script);
    let effort = Effort { choices: 24, nested: 200, cuts: 1 };
    let images = cut_everywhere(&run, effort, "out of order");
    println!("{images} images of {} events in {} commits", run.events.len(), run.points.len());
    assert!(images >= 11_000, "{images} images: too few to mean much");
}

#[test]
fn nor_while_chunks_fill_a_page_and_a_size_cap_removes_them() {
    let keeping = Keeping { max_size: Some(4_160 * 3), ..Keeping::default() };
    let script = script(2, 14, 350, 10_000, keeping, false);
    let run = record(&script);
    let effort = Effort { choices: 8, nested: 100, cuts: 1 };
    let images = cut_everywhere(&run, effort, "full chunks");
    println!("{images} images of {} events in {} commits", run.events.len(), run.points.len());
    assert!(images >= 1_500, "{images} images: too few to mean much");
}

#[test]
fn nor_while_the_log_goes_round_and_round() {
    let script = script(2, 130, 1, 29 * MINUTE, Keeping::default(), false);
    let run = record(&script);
    let in_log = run.events.iter().filter(|event| event.file == 1).count();
    assert!(in_log > 80, "{in_log} events of the log");
    let effort = Effort { choices: 14, nested: 200, cuts: 1 };
    let images = cut_everywhere(&run, effort, "round and round");
    println!("{images} images of {} events, {in_log} of the log", run.events.len());
    assert!(images >= 4_000, "{images} images: too few to mean much");
}

#[test]
fn a_disk_that_lies_about_syncs_gives_an_older_state_or_a_refusal() {
    let script = script(3, 60, 3, 13 * MINUTE, keeping_a_day(), false);
    let run = record(&script);
    let (mut images, mut refused, mut of_log, mut older) = (0, 0, 0, 0);
    for seed in 0..400 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut disk = Playback::from(run.base.clone());
        let honest_one_in = random.usize(2..20);
        for (cut, event) in run.events.iter().enumerate() {
            disk.play(event, random.usize(..honest_one_in) != 0);
            if random.usize(..40) != 0 {
                continue;
            }
            let kept = disk.choose(&mut random);
            let image = disk.image(&kept);
            let what = || format!("seed {seed}, cut after event {}, kept {kept:?}", cut + 1);
            images += 1;
            let begun = run.points.partition_point(|point| point.began <= cut + 1);
            let left = Recorder::holding_both(image.clone());
            match look(&run, begun, checked(&left)) {
                Ok(Some(state)) => older += usize::from(state + 2 < begun),
                Ok(None) => panic!("{}: a mixture", what()),
                Err(error) => {
                    refused += 1;
                    let is_refusal = matches!(error, StoreError::BeyondRepair(_) | StoreError::Log(_));
                    assert!(is_refusal, "{}: {error:?}", what());
                    if matches!(error, StoreError::Log(_)) {
                        of_log += 1;
                        continue; // redb has noted that the file was closed in order
                    }
                    // redb notes in the header that the file is open; nothing else has changed.
                    let ([file, log], left) = (&image, left.image());
                    assert!(left[0].len() == file.len() && left[0][64..] == file[64..], "{}: changed", what());
                    assert!(left[1] == *log, "{}: changed", what());
                }
            }
        }
    }
    println!("{images} images: {refused} refused, {of_log} of them for the log, {older} older states");
    assert!(refused > of_log && of_log > 0 && older > 0);
}

/// A disk whose every page is looked at before it is used.
struct Checked(Recorder);

impl Medium for Checked {
    fn open(&self, builder: &mut redb::Builder) -> Result<Box<dyn redb::StorageBackend>, redb::DatabaseError> {
        builder.set_check_integrity_on_open(true);
        self.0.open(builder)
    }

    fn open_log(&self) -> std::io::Result<Option<Box<dyn redb::StorageBackend>>> {
        self.0.open_log()
    }

    fn log_bytes(&self) -> u64 {
        self.0.log_bytes()
    }
}

fn checked(disk: &Recorder) -> Disk {
    Box::new(Checked(disk.clone()))
}

/// Which of the first `begun` states of a run a disk shows. None when it is none of them.
fn look(run: &Run, begun: usize, disk: Disk) -> Result<Option<usize>, StoreError> {
    let store = Store::open(disk, Keeping::default())?;
    let shown = shown(&store, run.devices);
    Ok(run.points[..begun].iter().rposition(|point| point.shown == shown))
}
