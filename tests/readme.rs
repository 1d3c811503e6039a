//! README says what the program does.

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_table_of_settings_is_the_programs_own() {
    let readme = read("README.md");
    let (_, rest) = readme.split_once("<!-- settings:").unwrap();
    let (table, _) = rest.split_once("-->\n").unwrap().1.split_once("<!-- end of settings -->").unwrap();
    let own = wattd::config::reference();
    assert!(table.trim() == own.trim(), "README's table of settings differs; it should be:\n{own}");
}

#[test]
fn every_crate_has_a_line_and_every_make_target_exists() {
    let (readme, cargo, makefile) = (read("README.md"), read("Cargo.toml"), read("Makefile"));
    let dependencies = cargo.split("[dependencies]").nth(1).unwrap().split("\n\n").next().unwrap();
    for line in dependencies.lines().filter(|line| line.contains('=')) {
        let name = line.split(' ').next().unwrap();
        let row = |row: &str| row.starts_with('|') && row.split([' ', ',', '|']).any(|word| word == name);
        assert!(readme.lines().any(row), "README has no line for the crate {name}");
    }
    for (at, _) in readme.match_indices("make ") {
        let target: String = readme[at + 5..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
        let known = makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
        assert!(target.is_empty() || known || readme[..at].ends_with("to "), "README names `make {target}`");
    }
}
