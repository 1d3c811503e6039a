//! Bytes per reading and speed of chunks: `cargo bench --bench chunk`, with real power traces too when `WATTD_TRACES`
//! names a file with the columns device, appliance, ts_ms, power_w.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::disallowed_methods
)]

mod workload;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use wattd::reading::{Entry, Reading};
use wattd::store::chunk::{self, Clock, Columns, Encoder, Refused, STREAMS, Stored};
use wattd::units::Milliwatts;
use workload::{DAY, DAYS, INTERVAL, PLUGS};

const NAMES: [&str; STREAMS] = ["events", "time", "power", "voltage", "current", "counter"];
const KEY: usize = 12;

fn main() {
    let loads: Vec<_> =
        (0..PLUGS).map(|plug| (format!("{:?}", workload::load_of(plug)), workload::plug(plug, DAYS * DAY))).collect();
    report("generated, 20 plugs x 7 d x 10 s", &loads);
    let coarse =
        loads.iter().map(|(name, entries)| (name.clone(), entries.iter().map(coarse).collect())).collect::<Vec<_>>();
    report("the same as an old plug shows it: 1 W, 0.1 V, 10 mA", &coarse);
    if let Ok(path) = std::env::var("WATTD_TRACES") {
        report("real traces, 1 W, with modelled voltage, current and counter", &traced(&path, false));
        report("real traces with the noise of a fine meter added", &traced(&path, true));
    }
    speed("fridge", &workload::plug(0, DAY));
    speed("washing machine", &workload::plug(2, DAY));
    speed("off", &workload::plug(9, DAY));
}

fn coarse(entry: &Entry) -> Entry {
    let Entry::Reading(r) = *entry else { return *entry };
    let round = |n: u32, unit: u32| i64::from((n + unit / 2) / unit * unit);
    Entry::Reading(Reading {
        power: Milliwatts::new(round(r.power.get(), 1_000)).unwrap(),
        voltage: r.voltage.map(|v| wattd::units::Millivolts::new(round(v.get(), 100)).unwrap()),
        current: r.current.map(|i| wattd::units::Milliamps::new(round(i.get(), 10)).unwrap()),
        ..r
    })
}

fn traced(path: &str, noise: bool) -> Vec<(String, Vec<Entry>)> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut shapes: BTreeMap<(usize, String), Vec<Option<f64>>> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let fields: Vec<_> = line.split(',').collect();
        let slot = (fields[2].parse::<i64>().unwrap() - workload::START) / i64::from(INTERVAL);
        let shape =
            shapes.entry((fields[0].parse().unwrap(), fields[1].to_owned())).or_insert_with(|| vec![None; DAYS * DAY]);
        shape[usize::try_from(slot).unwrap()] = Some(fields[3].parse().unwrap());
    }
    let factor = |watts: f64| {
        if watts > 1_000.0 {
            0.99
        } else if watts > 50.0 {
            0.7
        } else {
            0.5
        }
    };
    let metered = |((plug, name), shape): ((usize, String), Vec<Option<f64>>)| {
        (name, workload::metered(plug, DAYS * DAY, noise, &mut |slot| shape[slot].map(|watts| (watts, factor(watts)))))
    };
    shapes.into_iter().map(metered).collect()
}

/// Chunks of one device, each sealed when it is full, and the bytes of their streams.
fn seal(entries: &[Entry]) -> (Vec<Vec<u8>>, [usize; STREAMS]) {
    let (mut chunks, mut columns) = (Vec::new(), [0; STREAMS]);
    let mut encoder = Encoder::new(Clock::Trusted);
    let mut finish = |encoder: Encoder| {
        for (sum, size) in columns.iter_mut().zip(encoder.column_sizes()) {
            *sum += size;
        }
        chunks.push(encoder.finish());
    };
    for entry in entries {
        let stored = Stored { entry: *entry, interval_ms: INTERVAL };
        if let Err(refused) = encoder.push(stored) {
            let Refused::Full(stored) = refused else { panic!("{refused:?}") };
            finish(std::mem::replace(&mut encoder, Encoder::new(Clock::Trusted)));
            encoder.push(stored).unwrap();
        }
    }
    finish(encoder);
    (chunks, columns)
}

fn report(title: &str, devices: &[(String, Vec<Entry>)]) {
    println!("{title}");
    let (mut readings, mut bytes, mut chunks, mut columns) = (0, 0, 0, [0; STREAMS]);
    let mut by_load: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (name, entries) in devices {
        let (sealed, sizes) = seal(entries);
        let decoded: Vec<_> =
            sealed.iter().flat_map(|c| chunk::decode(c, Columns::ALL).unwrap()).map(|s| s.entry).collect();
        assert!(decoded == *entries, "{name} comes back as it was");
        let n = entries.iter().filter(|e| matches!(e, Entry::Reading(_))).count();
        let size = sealed.iter().map(|c| c.len() + KEY).sum::<usize>();
        let load = by_load.entry(name).or_default();
        *load = (load.0 + n, load.1 + size);
        (readings, bytes, chunks) = (readings + n, bytes + size, chunks + sealed.len());
        for (sum, size) in columns.iter_mut().zip(sizes) {
            *sum += size;
        }
    }
    let per = |bytes: usize| bytes as f64 / readings as f64;
    println!("  {readings} readings in {chunks} chunks: {:.3} B/reading with keys", per(bytes));
    let streams: usize = columns.iter().sum();
    for (name, size) in NAMES.iter().zip(columns) {
        println!("    {name:8} {:.3}", per(size));
    }
    println!("    {:8} {:.3}", "rest", per(bytes - streams));
    for (name, (readings, bytes)) in by_load {
        println!("  {name:16} {:.3}", bytes as f64 / readings as f64);
    }
}

fn best(mut f: impl FnMut()) -> Duration {
    let run = |_| {
        let start = Instant::now();
        f();
        start.elapsed()
    };
    (0..30).map(run).min().unwrap()
}

fn speed(name: &str, entries: &[Entry]) {
    let (chunks, _) = seal(entries);
    let decode =
        |columns| best(|| chunks.iter().for_each(|c| drop(std::hint::black_box(chunk::decode(c, columns).unwrap()))));
    let encode = best(|| drop(std::hint::black_box(seal(entries))));
    let summary = best(|| chunks.iter().for_each(|c| _ = std::hint::black_box(chunk::summary(c).unwrap())));
    println!(
        "24 h of {name}, {} entries in {} chunks: encode {encode:.2?}, decode power {:.2?}, all {:.2?}, summaries {summary:.2?}",
        entries.len(),
        chunks.len(),
        decode(Columns::POWER),
        decode(Columns::ALL),
    );
}
