//! The store against SQLite in the same run: size, wear, latencies, ingest, memory, reopening.
//! `cargo bench --bench store` (some minutes); `cargo bench --bench store -- year` for memory and sizes with a year of
//! 20 plugs (63 M readings, some minutes more).
//!
//! Prints a table and writes `target/bench.json`. Ratios of one run can be trusted, times cannot be compared between
//! machines. Bytes at the block device are counted on an ext4 of its own behind a loop device where this process may make
//! one, else as the sizes of what was written to the file.
#![allow(clippy::disallowed_methods)] // a measurement reads the clock
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::as_conversions)]

#[cfg(target_arch = "x86_64")]
mod disk;
#[cfg(target_arch = "x86_64")]
mod measure;
#[cfg(target_arch = "x86_64")]
mod report;
#[cfg(target_arch = "x86_64")]
mod sqlite;
#[cfg(target_arch = "x86_64")]
mod workload;

fn main() {
    #[cfg(target_arch = "x86_64")]
    measure::main();
    #[cfg(not(target_arch = "x86_64"))]
    println!("the peer is built on x86-64 only");
}
