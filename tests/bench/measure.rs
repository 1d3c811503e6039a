//! The measurements themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use wattd::reading::{DeviceId, Entry, Mac, Reading};
use wattd::sim::{Feed, Load, Model, PlugSpec};
use wattd::store::chunk::{Columns, Stored};
use wattd::store::disk::log_of;
use wattd::store::{self, DeviceNumber, Keeping, Order, Page, Row, Scan, Store, Tier};
use wattd::units::{Milliwatts, UnixMillis};

use super::disk::{self, Image};
use super::report::{Peer, Report, Target};
use super::sqlite::{Schema, Sqlite};
use super::workload::{self, DAY, DAYS, Draw, INTERVAL, PLUGS};

const HOUR: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR;
const MINUTE: i64 = 60_000;
const END: i64 = workload::START + DAYS as i64 * DAY_MS;
/// Where the last of the seven days begins.
const LAST_DAY: i64 = END - DAY_MS;

const SEALED: TableDefinition<'_, (u32, i64), &[u8]> = TableDefinition::new("sealed");

/// Whose, and what.
type Fed = (usize, Stored);

pub fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["child-memory", dir] => child_memory(Path::new(dir)),
        ["child-dies", dir] => child_dies(Path::new(dir)),
        ["year"] => year(),
        ["years"] => years(),
        _ => week(),
    }
}

/// Beside the build folder: a temporary directory may be in memory.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn id(n: usize) -> DeviceId {
    DeviceId::plug(Mac::new([0x9c, 0x53, 0x22, 0, (n >> 8) as u8, n as u8]))
}

fn open(dir: &Path) -> Store {
    Store::open(store::on_disk(store::path_in(dir)), Keeping::default()).unwrap()
}

/// A closed store with its log, into another directory.
fn copy(from: &Path, to: &Path) {
    let (from, to) = (store::path_in(from), store::path_in(to));
    fs::copy(&from, &to).unwrap();
    fs::copy(log_of(&from), log_of(&to)).unwrap();
}

/// The workload over all plugs in order of time.
fn entries() -> Vec<Fed> {
    let stored = |entry| Stored { entry, interval_ms: INTERVAL };
    let mut all: Vec<_> = (0..PLUGS)
        .flat_map(|n| workload::plug(n, DAYS * DAY).into_iter().map(move |entry| (n, stored(entry))))
        .collect();
    all.sort_by_key(|(n, stored)| (stored.entry.time(), *n));
    all
}

fn between(all: &[Fed], from: i64, to: i64) -> &[Fed] {
    let at = |time: i64| all.partition_point(|(_, stored)| stored.entry.time().get() < time);
    &all[at(from)..at(to)]
}

fn readings(entries: &[Fed]) -> impl Iterator<Item = (usize, Reading)> + '_ {
    entries.iter().filter_map(|(n, stored)| match stored.entry {
        Entry::Reading(reading) => Some((*n, reading)),
        Entry::Gap { .. } => None,
    })
}

/// What one commit takes.
fn batches(entries: &[Fed], every: i64) -> impl Iterator<Item = &[Fed]> {
    entries.chunk_by(move |a, b| a.1.entry.time().get() / every == b.1.entry.time().get() / every)
}

fn feed(store: &Store, entries: &[Fed], every: i64) {
    for batch in batches(entries, every) {
        for (n, stored) in batch {
            match stored.entry {
                Entry::Reading(reading) => {
                    store.append(id(*n), reading, Duration::from_millis(stored.interval_ms.into()));
                }
                Entry::Gap { time } => store.gap(id(*n), time),
            }
        }
        let now = batch.last().unwrap().1.entry.time();
        smol::block_on(store.commit(now)).unwrap();
    }
}

fn feed_sqlite(sqlite: &mut Sqlite, entries: &[Fed], every: i64) {
    batches(entries, every).for_each(|batch| sqlite.insert(readings(batch)));
}

fn page(store: &Store, scan: Scan) -> Page {
    smol::block_on(store.scan(scan)).unwrap()
}

fn scan(devices: Vec<DeviceNumber>, from: i64, to: i64, order: Order, limit: usize) -> Scan {
    let (from, to) = (UnixMillis::new(from), UnixMillis::new(to));
    Scan { devices, from, to, order, after: None, limit, columns: Columns::ALL }
}

fn week() {
    let mut report =
        Report::new("20 plugs x 10 s x 7 days, in batches of 60 s unless said otherwise; the peer is fed alike");
    let all = entries();
    let count = readings(&all).count() as f64;
    let dir = scratch();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    fs::create_dir_all(&ours).unwrap();
    fs::create_dir_all(&theirs).unwrap();

    // Six days; what stands here is where each wear measurement starts from. Then the seventh.
    let (before, last) = (between(&all, 0, LAST_DAY), between(&all, LAST_DAY, i64::MAX));
    let base = dir.path().join("base");
    fs::create_dir_all(&base).unwrap();
    let mut spent = [Duration::ZERO; 2];
    {
        let store = open(&ours);
        spent[0] += timed(|| feed(&store, before, MINUTE));
    }
    copy(&ours, &base);
    {
        let store = open(&ours);
        spent[0] += timed(|| feed(&store, last, MINUTE));
    }
    for schema in [Schema::Indexed, Schema::ByTime, Schema::ByDevice] {
        let path = theirs.join(schema.name());
        let mut sqlite = Sqlite::open(&path, schema);
        let first = timed(|| feed_sqlite(&mut sqlite, before, MINUTE));
        sqlite.checkpoint();
        fs::copy(&path, base.join(schema.name())).unwrap();
        let second = timed(|| feed_sqlite(&mut sqlite, last, MINUTE));
        if schema == Schema::Indexed {
            spent[1] = first + second;
        }
    }
    let [speed, peer_speed] = spent.map(|spent| count / spent.as_secs_f64());
    let peer = Some((Schema::Indexed.name(), peer_speed));
    report.add("store.ingest_60s", speed, "readings/s", peer, Target::AtLeast(20_000.0));

    sizes(&mut report, &ours, &theirs, count);
    latencies(&mut report, dir.path(), &ours, &theirs);
    cold(&mut report, &ours, &theirs);
    wear(&mut report, dir.path(), &base, last);
    reopening(&mut report, dir.path(), &ours);
    memory(&mut report, dir.path(), &ours);
    report.write();
}

fn timed(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

// ---- at rest ----

fn sizes(report: &mut Report, ours: &Path, theirs: &Path, count: f64) {
    let copy = ours.join("measured");
    fs::copy(store::path_in(ours), &copy).unwrap();
    let mut file = Database::create(&copy).unwrap();
    let write = file.begin_write().unwrap();
    let stats = write.stats().unwrap();
    let live = (stats.allocated_pages() * stats.page_size() as u64) as f64;
    write.abort().unwrap();
    let tables = of_tables(&file);
    while file.compact().unwrap() {}
    drop(file);
    let compacted = fs::metadata(&copy).unwrap().len() as f64;
    fs::remove_file(copy).unwrap();
    let size = |schema: Schema| Sqlite::open(&theirs.join(schema.name()), schema).size() as f64;
    let (indexed, by_time, by_device) = (size(Schema::Indexed), size(Schema::ByTime), size(Schema::ByDevice));
    let mut add =
        |name: &str, value: f64, peer: Option<Peer<'_>>, target| report.add(name, value / count, "B", peer, target);
    add("store.bytes_per_reading", live, Some((Schema::Indexed.name(), indexed / count)), Target::AtMost(3.8));
    // Frames of the log take whole blocks: nearly all of them one, at this pace. Its fixed length is not counted.
    let blocks = open(ours).figures().head_batches as f64 * 4_096.0;
    add("store.bytes_per_reading_with_log", live + blocks, None, Target::AtMost(3.8));
    add("store.size_vs_indexed", live, Some((Schema::Indexed.name(), indexed / count)), Target::Ratio(1.0 / 15.0));
    add("store.size_vs_best", live, Some((Schema::ByTime.name(), by_time / count)), Target::Ratio(1.0 / 7.0));
    add("store.size_vs_clustered", live, Some((Schema::ByDevice.name(), by_device / count)), Target::None);
    add("store.file_bytes_per_reading_compacted", compacted, None, Target::None);
    for (name, pages) in tables {
        add(&format!("store.bytes_per_reading.{name}"), pages, None, Target::None);
    }
}

/// Bytes of each large table's pages.
fn of_tables(file: &Database) -> [(&'static str, f64); 3] {
    let read = file.begin_read().unwrap();
    let bytes = |stats: redb::TableStats| ((stats.leaf_pages() + stats.branch_pages()) * 4_096) as f64;
    let head: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("head");
    let rollup: TableDefinition<'_, (u8, u32, i32), &[u8]> = TableDefinition::new("rollup");
    // A head batch larger than a page has pages of its own; its bytes are what counts there.
    let in_head = read.open_table(head).unwrap().stats().unwrap();
    let in_head = (in_head.stored_bytes() + in_head.metadata_bytes() + in_head.fragmented_bytes()) as f64;
    [
        ("sealed", bytes(read.open_table(SEALED).unwrap().stats().unwrap())),
        ("rollup", bytes(read.open_table(rollup).unwrap().stats().unwrap())),
        ("head", in_head),
    ]
}

// ---- latencies ----

const QUERIES: usize = 400;

/// p50 and p99 in microseconds of `QUERIES` runs after some to warm up.
fn quantiles(mut query: impl FnMut(&mut Draw) -> usize) -> (f64, f64) {
    let mut draw = Draw(7);
    let mut times = Vec::new();
    for n in 0..QUERIES + 40 {
        let start = Instant::now();
        assert!(query(&mut draw) > 0);
        if n >= 40 {
            times.push(start.elapsed());
        }
    }
    times.sort();
    let micros = |at: usize| times[at].as_secs_f64() * 1e6;
    (micros(QUERIES / 2), micros(QUERIES * 99 / 100))
}

fn latencies(report: &mut Report, dir: &Path, ours: &Path, theirs: &Path) {
    let store = open(ours);
    let number = |n: usize| store.number(id(n)).unwrap();
    let everyone: Vec<_> = (0..PLUGS).map(number).collect();
    let [indexed, by_device] =
        [Schema::Indexed, Schema::ByDevice].map(|schema| Sqlite::open(&theirs.join(schema.name()), schema));
    let plug = |draw: &mut Draw| draw.bits() as usize % PLUGS;
    let day = |draw: &mut Draw| workload::START + (draw.unit() * (6 * DAY_MS) as f64) as i64;
    let mut add = |name: &str, ours: (f64, f64), theirs: (f64, f64), schema: Schema, most: f64| {
        report.add(&format!("{name}.p50"), ours.0, "us", Some((schema.name(), theirs.0)), Target::None);
        report.add(&format!("{name}.p99"), ours.1, "us", Some((schema.name(), theirs.1)), Target::Ratio(most));
    };

    let newest = quantiles(|draw| {
        page(&store, scan(vec![number(plug(draw))], END - DAY_MS, END, Order::Descending, 100)).rows.len()
    });
    let peer = quantiles(|draw| indexed.newest(plug(draw), 100));
    add("store.newest_100", newest, peer, Schema::Indexed, 0.05);

    let raw = quantiles(|draw| {
        let (n, from) = (plug(draw), day(draw));
        page(&store, scan(vec![number(n)], from, from + DAY_MS, Order::Ascending, 10_000)).rows.len()
    });
    let ranged = |sqlite: &Sqlite| {
        quantiles(|draw| {
            let (n, from) = (plug(draw), day(draw));
            sqlite.range(n, from, from + DAY_MS)
        })
    };
    add("store.raw_24h", raw, ranged(&indexed), Schema::Indexed, 0.5);
    add("store.raw_24h_clustered", raw, ranged(&by_device), Schema::ByDevice, 1.0);
    let power = quantiles(|draw| {
        let (n, from) = (plug(draw), day(draw));
        let wanted = scan(vec![number(n)], from, from + DAY_MS, Order::Ascending, 10_000);
        page(&store, Scan { columns: Columns::POWER, ..wanted }).rows.len()
    });
    add("store.raw_24h_power_only", power, ranged(&indexed), Schema::Indexed, 0.25);

    let hour =
        quantiles(|_| page(&store, scan(everyone.clone(), END - HOUR, END, Order::Ascending, 10_000)).rows.len());
    let peer = quantiles(|_| indexed.range_of_all(PLUGS, END - HOUR, END));
    add("store.last_hour_of_all", hour, peer, Schema::Indexed, 0.05);
    drop(store);

    // A month, polled each minute: an hour is an hour.
    let month = dir.join("month");
    fs::create_dir_all(&month).unwrap();
    let store = open(&month);
    let feed = fleet(PLUGS, 31, 60, 3_600);
    smol::block_on(feed.run(&store, |_| {})).unwrap();
    let id = |n: usize| DeviceId::plug(feed.plugs[n].mac);
    let from = feed.to.plus(-30 * DAY_MS);
    let hours = |n: usize| smol::block_on(store.buckets(id(n), Tier::Hour, from, feed.to, feed.to)).unwrap();
    let mut sqlite = Sqlite::open(&month.join("sqlite"), Schema::Indexed);
    sqlite.insert_hours((0..PLUGS).flat_map(|n| hours(n).into_iter().map(move |hour| (n, hour))));
    let rolled = quantiles(|draw| hours(plug(draw)).len());
    let peer = quantiles(|draw| sqlite.hours(plug(draw), from.get(), feed.to.get()));
    add("store.hours_of_30_days", rolled, peer, Schema::Indexed, 0.2);
}

/// Plugs with one outlet each, over `days` days, with a commit every `commit` seconds.
fn fleet(plugs: usize, days: i64, interval: u64, commit: u64) -> Feed {
    let loads = [Load::Fridge, Load::Standby, Load::WashingMachine, Load::Kettle, Load::Zero];
    let plug = |n: usize| {
        let address = [127, 70, (n / 250) as u8, (n % 250) as u8 + 1].into();
        PlugSpec::new(Model::Kp115, address, n as u64).loads(&loads[n % 5..][..1])
    };
    Feed {
        plugs: (0..plugs).map(plug).collect(),
        from: UnixMillis::new(END - days * DAY_MS),
        to: UnixMillis::new(END),
        interval: Duration::from_secs(interval),
        strip_interval: Duration::from_secs(interval),
        commit_every: Duration::from_secs(commit),
    }
}

/// What a range costs with nothing in memory: everything read from the file after it was opened.
fn cold(report: &mut Report, ours: &Path, theirs: &Path) {
    let (from, to) = (workload::START + 2 * DAY_MS, workload::START + 3 * DAY_MS);
    let mut most = [0_u64; 2];
    for n in 0..5 {
        let (disk, counts) = disk::counted(store::path_in(ours));
        let store = Store::open(disk, Keeping::default()).unwrap();
        let before = counts.read();
        let devices = vec![store.number(id(n)).unwrap()];
        assert!(page(&store, scan(devices, from, to, Order::Ascending, 10_000)).rows.len() > 8_000);
        most[0] = most[0].max(counts.read() - before);
        let sqlite = Sqlite::open(&theirs.join(Schema::Indexed.name()), Schema::Indexed);
        let before = disk::of_self("io", "rchar:");
        assert!(sqlite.range(n, from, to) > 8_000);
        most[1] = most[1].max(disk::of_self("io", "rchar:") - before);
    }
    let [ours, theirs] = most.map(|bytes| bytes as f64 / 1e3);
    report.add("store.cold_24h_read", ours, "kB", Some((Schema::Indexed.name(), theirs)), Target::AtMost(100.0));
}

// ---- wear ----

/// Bytes per reading of the last day, which is put on top of six days, at each commit interval; then on top of a file of
/// 300 MB.
fn wear(report: &mut Report, dir: &Path, base: &Path, last: &[Fed]) {
    let image = Image::new(dir);
    if image.is_none() {
        println!("no loop device to be had: bytes at the device are the sizes of what was written to the file");
    }
    let place: PathBuf = image.as_ref().map_or_else(|| dir.join("wear"), |image| image.path().join("wear"));
    fs::create_dir_all(&place).unwrap();
    let device = || image.as_ref().map_or_else(|| disk::of_self("io", "write_bytes:"), Image::written);
    let large = dir.join("large");
    fs::create_dir_all(&large).unwrap();
    copy(base, &large);
    grow(&store::path_in(&large), 300_000_000);

    let count = readings(last).count() as f64;
    let mut indexed_at = std::collections::BTreeMap::new();
    for (seconds, from, suffix, target) in [
        (10, base, "", Target::None),
        (60, base, "", Target::AtMost(200.0)),
        (300, base, "", Target::AtMost(60.0)),
        (60, &large, "_300MB", Target::AtMost(650.0)),
        (300, &large, "_300MB", Target::AtMost(200.0)),
    ] {
        copy(from, &place);
        let (disk, counts) = disk::counted(store::path_in(&place));
        let store = Store::open(disk, Keeping::default()).unwrap();
        let (at_device, at_file) = (device(), counts.written());
        feed(&store, last, seconds * 1_000);
        let at_file = (counts.written() - at_file) as f64;
        let at_device = if image.is_some() { (device() - at_device) as f64 } else { at_file };
        let commits = batches(last, seconds * 1_000).count();
        let what =
            format!("{} syncs in {commits} commits, {:.1} kB each", counts.syncs(), at_file / commits as f64 / 1e3);
        drop(store);
        fs::remove_file(store::path_in(&place)).unwrap();

        let theirs = *indexed_at.entry(seconds).or_insert_with(|| {
            let path = place.join("sqlite");
            fs::copy(base.join(Schema::Indexed.name()), &path).unwrap();
            let mut sqlite = Sqlite::open(&path, Schema::Indexed);
            let before = device();
            feed_sqlite(&mut sqlite, last, seconds * 1_000);
            sqlite.checkpoint();
            let written = (device() - before) as f64;
            drop(sqlite);
            fs::remove_file(&path).unwrap();
            written
        });
        let name = format!("store.device_bytes_{seconds}s{suffix}");
        let peer = Some((Schema::Indexed.name(), theirs / count));
        report.add(&name, at_device / count, "B/reading", peer, target);
        report.add(&format!("{name}.ratio"), at_device / count, "B/reading", peer, Target::Ratio(0.25));
        let peer = Some((Schema::Indexed.name(), theirs / 1e6));
        report.add(&format!("store.device_day_{seconds}s{suffix}"), at_device / 1e6, "MB/day", peer, Target::None);
        report.add(&format!("store.file_bytes_{seconds}s{suffix}"), at_file / count, "B/reading", None, Target::None);
        println!("    {what}");
    }
}

/// Puts copies of a store's chunks under earlier times until it has `bytes`: history without the wait.
fn grow(path: &Path, bytes: u64) {
    let file = Database::create(path).unwrap();
    let chunks: Vec<_> = {
        let table = file.begin_read().unwrap().open_table(SEALED).unwrap();
        table
            .iter()
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|(key, bytes)| (key.value(), bytes.value().to_vec()))
            .collect()
    };
    let copies = (bytes / 4_096) as usize / chunks.len();
    for copy in 1..=copies as i64 {
        let write = file.begin_write().unwrap();
        {
            let mut table = write.open_table(SEALED).unwrap();
            for ((device, first), bytes) in &chunks {
                table.insert((*device, first - copy * 8 * DAY_MS), bytes.as_slice()).unwrap();
            }
        }
        write.commit().unwrap();
    }
}

// ---- reopening ----

/// A run of this program, with what it printed.
fn child(args: &[&str]) -> String {
    let done = Command::new(std::env::current_exe().unwrap()).args(args).output().unwrap();
    eprint!("{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// Some commits, then kill -9.
fn child_dies(dir: &Path) {
    let store = open(dir);
    let latest = store.devices().iter().filter_map(|device| store.latest(device.record.id)).max_by_key(|r| r.time);
    let latest = latest.unwrap();
    for n in 1..4 {
        for device in store.devices() {
            let reading = Reading { time: latest.time.plus(n * MINUTE), ..latest };
            store.append(device.record.id, reading, Duration::from_secs(10));
        }
        smol::block_on(store.commit(latest.time.plus(n * MINUTE))).unwrap();
    }
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
}

fn reopening(report: &mut Report, dir: &Path, ours: &Path) {
    for (name, bytes, most) in [("20MB", 20_000_000, 50.0), ("250MB", 250_000_000, 10.0)] {
        let place = dir.join("killed");
        fs::create_dir_all(&place).unwrap();
        copy(ours, &place);
        grow(&store::path_in(&place), bytes);
        let mut times: Vec<f64> = (0..5)
            .map(|_| {
                child(&["child-dies", place.to_str().unwrap()]);
                let mut store = None;
                let spent = timed(|| store = Some(open(&place)));
                spent.as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        report.add(&format!("store.reopen_killed_{name}"), times[2], "ms", None, Target::AtMost(most));
        fs::remove_file(store::path_in(&place)).unwrap();
    }
}

// ---- memory ----

/// Records for an hour on top of what is there, asks for all of it, and says what that took.
fn child_memory(dir: &Path) {
    let opened = disk::of_self("status", "RssAnon:");
    let store = open(dir);
    let started = disk::of_self("status", "RssAnon:");
    let devices = store.devices();
    let latest = devices.iter().filter_map(|device| store.latest(device.record.id)).map(|r| r.time).max().unwrap();
    let mut draw = Draw(3);
    for second in (10..3_600).step_by(10) {
        let now = latest.plus(second * 1_000);
        for device in &devices {
            let Some(last) = store.latest(device.record.id) else { continue };
            let power = Milliwatts::new(40_000 + (draw.bits() % 900) as i64).unwrap();
            store.append(device.record.id, Reading { time: now, power, ..last }, Duration::from_secs(10));
        }
        if second % 60 == 0 {
            smol::block_on(store.commit(now)).unwrap();
        }
    }
    let recorded = disk::of_self("status", "RssAnon:");
    let mut rows = 0_u64;
    for device in &devices {
        let mut wanted = scan(vec![device.number], 0, i64::MAX, Order::Descending, 10_000);
        loop {
            let page = page(&store, wanted.clone());
            rows += page.rows.len() as u64;
            wanted.after = page.rows.last().map(Row::position);
            if let Some(position) = wanted.after {
                wanted.to = position.time.plus(1);
            }
            if !page.more {
                break;
            }
        }
        for tier in [Tier::QuarterHour, Tier::Hour] {
            for days in [1, 31, 400] {
                let mut at = Some(latest.plus(-days * DAY_MS));
                while let Some(from) = at {
                    at = smol::block_on(store.bucket_page(device.record.id, tier, from, latest, latest)).unwrap().next;
                }
            }
        }
    }
    let everyone: Vec<_> = devices.iter().map(|device| device.number).collect();
    rows += page(&store, scan(everyone, 0, i64::MAX, Order::Descending, 10_000)).rows.len() as u64;
    println!("{} {started} {recorded} {rows} {opened}", disk::of_self("status", "RssAnon:"));
}

fn memory_of(dir: &Path) -> f64 {
    let printed = child(&["child-memory", dir.to_str().unwrap()]);
    let numbers: Vec<f64> = printed.split_whitespace().map(|word| word.parse().unwrap()).collect();
    println!(
        "    RssAnon {} kB at start, {} opened, {} after an hour of recording, {} after reading {} rows",
        numbers[4], numbers[1], numbers[2], numbers[0], numbers[3]
    );
    numbers[0] / 1e3
}

fn memory(report: &mut Report, dir: &Path, ours: &Path) {
    report.add("store.rss_anon_20_plugs_week", memory_of(ours), "MB", None, Target::AtMost(5.0));
    let many = dir.join("many");
    fs::create_dir_all(&many).unwrap();
    smol::block_on(fleet(200, 1, 10, 60).run(&open(&many), |_| {})).unwrap();
    report.add("store.rss_anon_200_plugs_day", memory_of(&many), "MB", None, Target::AtMost(10.0));
}

// ---- a year ----

fn year() {
    let mut report = Report::new("20 plugs x 10 s x 365 days");
    let dir = scratch();
    let feed = fleet(PLUGS, 365, 10, 300);
    let mut readings = 0;
    let spent = timed(|| readings = smol::block_on(feed.run(&open(dir.path()), |_| {})).unwrap());
    report.add("store.year_fed", spent.as_secs_f64(), "s", None, Target::None);
    report.add("store.year_readings", readings as f64 / 1e6, "million", None, Target::None);
    let size = fs::metadata(store::path_in(dir.path())).unwrap().len() as f64;
    report.add("store.year_file", size / 1e6, "MB", None, Target::None);
    report.add("store.rss_anon_20_plugs_year", memory_of(dir.path()), "MB", None, Target::AtMost(5.0));
    report.write();
}

/// Three years of five plugs, of which single readings are kept for 90 days: the file must not grow once they begin to go.
fn years() {
    let mut report = Report::new("5 plugs x 60 s x 3 years, single readings kept for 90 days, fast-forwarded");
    let dir = scratch();
    let days = |n: u64| Some(Duration::from_secs(n * 86_400));
    let keeping = Keeping { raw: days(90), quarter_hour: None, hour: None, max_size: None };
    let mut sizes = Vec::new();
    for quarter in 0..12 {
        let store = Store::open(store::on_disk(store::path_in(dir.path())), keeping).unwrap();
        let whole = fleet(5, 12 * 91, 60, 600);
        let from = whole.from.plus(quarter * 91 * DAY_MS);
        let feed = Feed { from, to: from.plus(91 * DAY_MS), ..whole };
        smol::block_on(feed.run(&store, |_| {})).unwrap();
        drop(store);
        sizes.push(fs::metadata(store::path_in(dir.path())).unwrap().len() as f64 / 1e6);
    }
    println!("    MB after each quarter: {sizes:.1?}");
    report.add("store.file_after_2_quarters", sizes[1], "MB", None, Target::None);
    let peer = Some(("after half a year", sizes[1]));
    report.add("store.file_after_3_years", sizes[11], "MB", peer, Target::Ratio(1.5));
    report.write();
}
