//! Sealed chunks stay small on the loads of a household.
#![allow(clippy::as_conversions)] // counts, far below what a float holds

#[path = "bench/workload.rs"]
mod workload;

use wattd::reading::Entry;
use wattd::store::chunk::{self, Clock, Columns, Encoder, Refused, Stored};

/// Bytes that the store's B-tree needs beside a chunk: its key.
const KEY: usize = 12;

/// Readings and bytes of one device's chunks, each sealed when it is full.
fn sealed(entries: &[Entry]) -> (usize, usize) {
    let mut encoder = Encoder::new(Clock::Trusted);
    let (mut readings, mut bytes, mut back) = (0, 0, Vec::new());
    let mut seal = |encoder: Encoder| {
        let chunk = encoder.finish();
        assert!(chunk.len() <= chunk::MAX_BYTES);
        bytes += chunk.len() + KEY;
        readings += chunk::summary(&chunk).unwrap().readings as usize;
        back.extend(chunk::decode(&chunk, Columns::ALL).unwrap().into_iter().map(|stored| stored.entry));
    };
    for entry in entries {
        let stored = Stored { entry: *entry, interval_ms: workload::INTERVAL };
        match encoder.push(stored) {
            Ok(()) => {}
            Err(Refused::NotLater(stored)) => panic!("{stored:?}"),
            Err(Refused::Full(stored)) => {
                assert!(encoder.size() + 60 > chunk::MAX_BYTES, "stopped at {} bytes", encoder.size());
                seal(std::mem::replace(&mut encoder, Encoder::new(Clock::Trusted)));
                encoder.push(stored).unwrap();
            }
        }
    }
    seal(encoder);
    assert!(back == entries, "entries come back as they were");
    (readings, bytes)
}

#[test]
fn a_reading_takes_less_than_three_bytes() {
    let plugs: Vec<_> = (0..10).map(|plug| sealed(&workload::plug(plug, workload::DAY))).collect();
    let (readings, bytes) = plugs.iter().fold((0, 0), |sum, plug| (sum.0 + plug.0, sum.1 + plug.1));
    let per_reading = bytes as f64 / readings as f64;
    assert!(per_reading <= 2.80, "{per_reading:.3} B/reading over {readings} readings");
    for (plug, (readings, bytes)) in plugs.iter().enumerate() {
        let per_reading = *bytes as f64 / *readings as f64;
        assert!(per_reading <= 3.30, "plug {plug}: {per_reading:.3} B/reading");
    }
}
