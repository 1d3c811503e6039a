//! Figures of the benchmarks: a line each for the reader, and `target/bench.json` for those who compare.
//!
//! Owns that file: one object per figure, in a list. A benchmark replaces its own figures and leaves those of others.
#![allow(dead_code)] // each benchmark uses a part of it
#![allow(missing_docs, clippy::unwrap_used, clippy::as_conversions)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// What a figure is compared with: the peer's name and its figure for the same.
pub type Peer<'a> = (&'a str, f64);

/// The bound that a figure is to keep.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    None,
    AtMost(f64),
    AtLeast(f64),
    /// Of the peer's figure.
    Ratio(f64),
}

/// The figures of one benchmark.
pub struct Report {
    figures: Vec<Value>,
    missed: usize,
}

impl Report {
    /// Prints the table's head.
    pub fn new(title: &str) -> Self {
        println!("{title}\n");
        println!(
            "{:<40} {:>9} {:<10} {:>9} {:<16} {:>7}  target",
            "figure", "value", "unit", "peer's", "peer", "ratio"
        );
        Self { figures: Vec::new(), missed: 0 }
    }

    /// Adds a figure and prints it.
    pub fn add(&mut self, name: &str, value: f64, unit: &str, peer: Option<Peer<'_>>, target: Target) {
        let ratio = peer.map(|(_, of_peer)| value / of_peer);
        let (bound, is_kept) = match target {
            Target::None => (String::new(), true),
            Target::AtMost(most) => (format!("<= {most}"), value <= most),
            Target::AtLeast(least) => (format!(">= {least}"), value >= least),
            Target::Ratio(most) => (format!("ratio <= {most:.3}"), ratio.is_some_and(|ratio| ratio <= most)),
        };
        let (peer_value, peer_name) = peer.map_or((String::new(), ""), |(name, value)| (number(value), name));
        let shown = ratio.map_or(String::new(), |ratio| format!("{ratio:.3}"));
        let mark = if is_kept { "" } else { "  MISSED" };
        let value_shown = number(value);
        println!("{name:<40} {value_shown:>9} {unit:<10} {peer_value:>9} {peer_name:<16} {shown:>7}  {bound}{mark}");
        self.missed += usize::from(!is_kept);
        self.figures.push(json!({
            "name": name, "value": rounded(value), "unit": unit, "peer": peer.map(|(name, _)| name),
            "peer_value": peer.map(|(_, value)| rounded(value)), "ratio": ratio.map(rounded),
        }));
    }

    /// Puts the figures into `target/bench.json` in place of older ones of the same names.
    pub fn write(self) {
        let path = path();
        let old = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Vec<Value>>(&bytes).ok());
        let is_other = |old: &Value| self.figures.iter().all(|figure| figure["name"] != old["name"]);
        let mut all: Vec<Value> = old.unwrap_or_default().into_iter().filter(is_other).collect();
        println!("\n{} figures, {} beyond their target, in target/bench.json", self.figures.len(), self.missed);
        all.extend(self.figures);
        let lines: Vec<_> = all.iter().map(Value::to_string).collect();
        fs::write(path, format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
    }
}

/// Beside the build's own files, wherever those are.
fn path() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("bench.json")
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1_000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// Five digits: more would be noise.
fn rounded(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap()
}
