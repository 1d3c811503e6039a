//! `check`: looks at a closed store and tells everything that is wrong with it.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::json;

use super::Outcome;
use super::args::Format;
use crate::store::check::{Report, check};
use crate::store::{self, StoreError};

/// Checks the store in `data_dir`. The exit code is 1 when something is wrong with it, or it cannot be looked at.
#[must_use]
pub fn run(data_dir: &Path, format: Format) -> Outcome {
    let path = store::path_in(data_dir);
    match check(&path) {
        Ok(report) => print(&path, &report, format),
        Err(StoreError::InUse) => refuse(&path, "a running wattd has it open; stop it first, then check"),
        Err(error) => refuse(&path, &error.to_string()),
    }
}

fn refuse(path: &Path, why: &str) -> Outcome {
    Outcome { stderr: format!("{}: {why}\n", path.display()), code: 1, ..Outcome::default() }
}

fn print(path: &Path, report: &Report, format: Format) -> Outcome {
    let is_sound = report.problems.is_empty();
    let code = u8::from(!is_sound);
    let stdout = match format {
        Format::Json => {
            let problems: Vec<_> =
                report.problems.iter().map(|problem| json!({ "table": problem.table, "what": problem.what })).collect();
            let document = json!({
                "file": path.display().to_string(),
                "ok": is_sound,
                "devices": report.devices,
                "readings": report.readings,
                "batches": report.batches,
                "chunks": report.chunks,
                "blobs": report.blobs,
                "recomputed": report.recomputed,
                "problems": problems,
            });
            format!("{document}\n")
        }
        Format::Table => {
            let mut text = String::new();
            for problem in &report.problems {
                let _ = writeln!(text, "{problem}"); // a String takes everything
            }
            let _ = writeln!(
                text,
                "{}: {}; {} devices, {} readings in {} chunks and {} batches, {} blobs of buckets, {} buckets recomputed",
                path.display(),
                if is_sound { "ok".to_owned() } else { format!("{} problems", report.problems.len()) },
                report.devices,
                report.readings,
                report.chunks,
                report.batches,
                report.blobs,
                report.recomputed
            );
            text
        }
    };
    Outcome { stdout, code, ..Outcome::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Keeping, Store, on_disk, path_in};

    #[test]
    fn a_store_is_sound_open_damaged_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(run(dir.path(), Format::Table).code, 1);
        let store = Store::open(on_disk(path_in(dir.path())), Keeping::default()).unwrap();
        let open = run(dir.path(), Format::Table);
        assert!(open.code == 1 && open.stderr.contains("stop it first"), "{open:?}");
        drop(store);
        let sound = run(dir.path(), Format::Table);
        assert!(sound.code == 0 && sound.stdout.contains("ok; 0 devices"), "{sound:?}");
        std::fs::write(path_in(dir.path()), "no store").unwrap();
        let foreign = run(dir.path(), Format::Json);
        let document: serde_json::Value = serde_json::from_str(&foreign.stdout).unwrap();
        assert_eq!((foreign.code, &document["ok"]), (1, &json!(false)));
        assert!(document["problems"][0]["what"].as_str().unwrap().contains("not a wattd store"), "{document}");
    }
}
