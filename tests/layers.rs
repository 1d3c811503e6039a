//! The house has levels, and nobody reaches up: each module uses modules of lower levels only, and the real clock,
//! transport and disk are named together in one place.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Every top-level module and its level.
const LEVELS: &[(&str, u32)] = &[
    ("limits", 0),
    ("markup", 0),
    ("nearest", 0),
    ("units", 0),
    ("clock", 1),
    ("reading", 1),
    ("tariff", 1),
    ("watchdog", 1),
    ("config", 2),
    ("plug", 2),
    ("rollup", 2),
    ("stats", 2),
    ("poll", 3),
    ("store", 3),
    ("chart", 5),
    ("query", 5),
    ("http", 6),
    ("sys", 6),
    ("agent", 7),
    ("doctor", 7),
    ("cli", 8),
];

/// The simulator stands beside the house: it may use these, and nobody in the house uses it.
const SIM_USES: &[&str] = &["clock", "limits", "plug", "reading", "store", "units"];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Each source file's top-level module and its text without comments.
fn modules() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    let module = |path: PathBuf| {
        let first = path.strip_prefix(&root).unwrap().components().next().unwrap();
        let name = Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let code: Vec<_> = text.lines().map(|line| line.split("//").next().unwrap()).collect();
        (name, path, code.join("\n"))
    };
    let mut modules: Vec<_> = found.into_iter().map(module).collect();
    modules.retain(|(name, ..)| !matches!(name.as_str(), "lib" | "main" | "bin"));
    modules
}

/// The top-level modules that a text names through `crate::`.
fn used(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let list = if let Some(group) = rest.strip_prefix('{') {
            // A group is at the top level only: its members' first words.
            let (mut depth, mut words, mut word) = (1, Vec::new(), String::new());
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 || depth == 1 && c == ',' {
                    words.push(std::mem::take(&mut word));
                } else {
                    word.push(c);
                }
                if depth == 0 {
                    break;
                }
            }
            words
        } else {
            vec![rest.to_owned()]
        };
        let first_word = |text: &String| {
            text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
        };
        names.extend(list.iter().map(first_word).filter(|word| !word.is_empty()));
    }
    names
}

#[test]
fn a_module_uses_lower_levels_only() {
    let levels: BTreeMap<&str, u32> = LEVELS.iter().copied().collect();
    let mut breaches = Vec::new();
    for (name, path, code) in modules() {
        for used in used(&code).into_iter().filter(|used| *used != name) {
            let allowed = match (levels.get(name.as_str()), levels.get(used.as_str())) {
                _ if name == "sim" => SIM_USES.contains(&used.as_str()),
                (Some(own), Some(other)) => other < own,
                (None, _) => panic!("{name} has no level: add it to this test and to lib.rs"),
                (_, None) => false,
            };
            if !allowed {
                breaches.push(format!("{} uses {used}", path.display()));
            }
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn every_level_stands_in_the_map_of_lib() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for (name, level) in LEVELS {
        let row = lib.lines().find(|line| line.contains(&format!("[`{name}`]")) && line.starts_with("//! |"));
        let row = row.unwrap_or_else(|| panic!("lib.rs does not name {name}"));
        assert!(row.starts_with(&format!("//! | {level} |")), "{name} is on level {level}, lib.rs says {row}");
    }
}

#[test]
fn the_clocks_the_environment_and_the_wire_have_one_door_each() {
    let doors = [
        ("SystemTime::now", "clock"),
        ("Instant::now", "clock"),
        ("env::var", "config"),
        ("env::vars", "config"),
        ("redb::", "store"),
        ("hyper::", "http plug"),
        ("UdpSocket", "plug"),
    ];
    for (name, path, code) in modules() {
        for (word, owner) in doors {
            let free = owner.split(' ').any(|owner| name == owner) || name == "sim";
            assert!(free || !code.contains(word), "{} names {word}, which is {owner}'s", path.display());
        }
    }
}

#[test]
fn the_readers_of_use_lines_read_them() {
    let code = "use crate::units::{A, B};\nuse crate::{clock, store::{Row, Page}, poll};\nlet x = crate::http::y;";
    assert_eq!(used(code), ["units", "clock", "store", "poll", "http"]);
}
