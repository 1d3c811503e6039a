//! What the system says of this process: memory, and bytes written. Cheap: two short files of /proc.

use std::fs;

/// Memory and bytes written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Memory of its own, bytes: RssAnon.
    pub anonymous: u64,
    /// Memory in all, pages of files that others may share included: VmRSS.
    pub resident: u64,
    /// The most it ever was: VmHWM.
    pub peak: u64,
    /// Bytes that it caused to be written to a disk. None where the system does not say.
    pub written: Option<u64>,
}

impl Process {
    /// Now. None where there is no /proc.
    #[must_use]
    pub fn now() -> Option<Self> {
        let written = fs::read_to_string("/proc/self/io").ok();
        let written = written.as_deref().and_then(|text| number(text, "write_bytes:"));
        Some(Self { written, ..parse_status(&fs::read_to_string("/proc/self/status").ok()?)? })
    }
}

fn parse_status(text: &str) -> Option<Process> {
    let bytes = |name| number(text, name).map(|kib| kib.saturating_mul(1024));
    Some(Process { anonymous: bytes("RssAnon:")?, resident: bytes("VmRSS:")?, peak: bytes("VmHWM:")?, written: None })
}

/// The number that follows `name` at the beginning of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// Watches the memory of its own: says when it has grown beyond what is meant to be, once each time. Pure.
#[derive(Clone, Copy, Debug)]
pub struct Guard {
    most: u64,
    over: bool,
}

impl Guard {
    /// A guard that strikes above `most` bytes.
    #[must_use]
    pub const fn new(most: u64) -> Self {
        Self { most, over: false }
    }

    /// Whether caches are to be dropped at this many bytes. After that only when it had fallen below nine tenths of the most:
    /// memory that dropping does not bring back is not asked for again and again.
    pub fn strikes(&mut self, anonymous: u64) -> bool {
        if anonymous > self.most {
            return !std::mem::replace(&mut self.over, true);
        }
        self.over &= anonymous > self.most / 10 * 9;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_words_are_understood() {
        let text = "Name:\twattd\nVmHWM:\t    7120 kB\nVmRSS:\t    6980 kB\nRssAnon:\t    2848 kB\nThreads:\t4\n";
        let process = parse_status(text).unwrap();
        assert_eq!((process.anonymous, process.resident, process.peak), (2_916_352, 7_147_520, 7_290_880));
        assert_eq!(parse_status("RssAnon:\tmany kB\n"), None);
        assert!(Process::now().unwrap().anonymous > 0);
    }

    #[test]
    fn the_guard_strikes_once_until_memory_has_fallen_again() {
        let mut guard = Guard::new(1_000);
        let struck: Vec<bool> = [900, 1_001, 2_000, 950, 1_001, 900, 1_001].map(|bytes| guard.strikes(bytes)).to_vec();
        assert_eq!(struck, [false, true, false, false, false, false, true]);
    }
}
