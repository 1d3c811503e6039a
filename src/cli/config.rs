//! `config show` and `config check`.
//!
//! Owns how settings and their problems are written out. Takes them as [`read`](crate::config::read) gave them. Prints
//! no secret, because settings hold none: only the paths of files with secrets.

use serde_json::{Value, json};

use super::Outcome;
use super::args::Format;
use crate::config::{Loaded, Origin, Problems, Setting, Shape, Warning};

/// `config show`: every setting with its value and origin. Warnings, and problems if there are any, go to stderr.
#[must_use]
pub fn show(loaded: &Result<Loaded, Problems>, format: Format) -> Outcome {
    match loaded {
        Err(problems) => refused(problems),
        Ok(loaded) => {
            let stdout = match format {
                Format::Table => table(&loaded.settings),
                Format::Json => document(loaded),
            };
            Outcome { stdout, stderr: lines("warning: ", &loaded.warnings), code: 0 }
        }
    }
}

/// `config check`: every problem on stderr and exit code 1, or `config: ok` with the file that was read.
#[must_use]
pub fn check(loaded: &Result<Loaded, Problems>) -> Outcome {
    match loaded {
        Err(problems) => refused(problems),
        Ok(loaded) => {
            let file = loaded.file.as_ref().map_or_else(|| "no file".to_owned(), |path| path.display().to_string());
            Outcome { stdout: format!("config: ok ({file})\n"), stderr: lines("warning: ", &loaded.warnings), code: 0 }
        }
    }
}

/// What any verb says when the configuration is refused.
#[must_use]
pub fn refused(problems: &Problems) -> Outcome {
    let stderr = lines("", &problems.problems) + &lines("warning: ", &problems.warnings);
    Outcome { stdout: String::new(), stderr, code: 1 }
}

fn lines<T: ToString>(prefix: &str, items: &[T]) -> String {
    items.iter().map(|item| format!("{prefix}{}\n", item.to_string())).collect()
}

/// Three columns, as wide as what stands in them.
fn table(settings: &[Setting]) -> String {
    let rows = settings.iter().map(|s| [s.key.clone(), shown(s).to_owned(), s.origin.to_string()]);
    let rows: Vec<[String; 3]> = [["key", "value", "origin"].map(str::to_owned)].into_iter().chain(rows).collect();
    let width = |texts: &dyn Fn(&[String; 3]) -> usize| rows.iter().map(texts).max().unwrap_or_default();
    let (keys, values) = (width(&|[key, ..]| key.chars().count()), width(&|[_, value, _]| value.chars().count()));
    rows.iter().map(|[key, value, origin]| format!("{key:keys$}  {value:values$}  {origin}\n")).collect()
}

/// The value, or a dash for none.
fn shown(setting: &Setting) -> &str {
    if setting.text.is_empty() { "-" } else { &setting.text }
}

fn document(loaded: &Loaded) -> String {
    let settings: Vec<Value> = loaded.settings.iter().map(entry).collect();
    let file = loaded.file.as_ref().map(|path| path.display().to_string());
    let warnings: Vec<String> = loaded.warnings.iter().map(Warning::to_string).collect();
    let document = json!({ "file": file, "settings": settings, "warnings": warnings });
    format!("{document:#}\n")
}

fn entry(setting: &Setting) -> Value {
    let text = setting.text.as_str();
    let value = match setting.shape {
        Shape::Truth => json!(text == "true"),
        Shape::Number => text.parse::<u64>().map_or_else(|_| json!(text), |number| json!(number)),
        Shape::OptionalText | Shape::OptionalDecimal if text.is_empty() => Value::Null,
        Shape::OptionalDecimal => text.parse::<f64>().map_or_else(|_| json!(text), |number| json!(number)),
        Shape::List if text.is_empty() => json!([]),
        Shape::List => text.split(',').map(str::trim).collect(),
        Shape::Text | Shape::OptionalText | Shape::Quantity => json!(text),
    };
    let (kind, place) = match &setting.origin {
        Origin::Default => ("default", None),
        Origin::File { .. } | Origin::WholeFile(_) => ("file", Some(setting.origin.to_string())),
        Origin::Variable(_) => ("environment", Some(setting.origin.to_string())),
        Origin::Flag(_) => ("flag", Some(setting.origin.to_string())),
    };
    json!({ "key": setting.key, "value": value, "origin": kind, "place": place })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{KEYS, Machine, Sources, load};

    fn loaded(text: &str) -> Result<Loaded, Problems> {
        let machine = Machine { is_root: true, zone: Some("Europe/Berlin".to_owned()), ..Machine::default() };
        let env = [("WATTD_POLL_ADAPTIVE", "true"), ("WATTD_FORWARD_URL", "http://10.0.0.1/w")];
        let env = env.map(|(name, text)| (name.to_owned(), text.to_owned())).to_vec();
        load(&Sources { file: Some(("w.toml".into(), text.to_owned())), env, flags: Vec::new(), machine })
    }

    #[test]
    fn show_prints_every_setting_with_its_origin() {
        let outcome = show(&loaded("[poll]\ninterval = \"7s\"\n[[plugs]]\naddress = \"10.0.0.1\""), Format::Table);
        assert_eq!((outcome.stdout.lines().count(), outcome.code), (1 + KEYS.len() + 1, 0));
        let row = |key: &str| -> Vec<String> {
            let line = outcome.stdout.lines().find(|line| line.split_whitespace().next() == Some(key)).unwrap();
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(row("poll.interval"), ["poll.interval", "7s", "w.toml:2"]);
        assert_eq!(row("poll.adaptive"), ["poll.adaptive", "true", "WATTD_POLL_ADAPTIVE"]);
        assert_eq!(row("timezone"), ["timezone", "Europe/Berlin", "default"]);
        assert_eq!(row("http.token_file"), ["http.token_file", "-", "default"]);
        assert_eq!(row("plugs[0].address"), ["plugs[0].address", "10.0.0.1", "w.toml:4"]);
        assert_eq!(outcome.stderr, "warning: WATTD_FORWARD_URL: `forward.url` has no effect in this version\n");
    }

    #[test]
    fn show_as_json_has_typed_values() {
        let outcome = show(&loaded("[poll]\ninterval = \"7s\""), Format::Json);
        let document: Value = serde_json::from_str(&outcome.stdout).unwrap();
        let value = |key: &str| {
            document["settings"].as_array().unwrap().iter().find(|setting| setting["key"] == key).cloned().unwrap()
        };
        assert_eq!(document["file"], "w.toml");
        assert_eq!(value("poll.in_flight")["value"], 16);
        assert_eq!(value("poll.adaptive")["value"], true);
        assert_eq!(value("http.token_file")["value"], Value::Null);
        assert_eq!(value("http.hosts")["value"], json!([]));
        assert_eq!(value("discovery.targets")["value"], json!(["255.255.255.255"]));
        assert_eq!(
            value("poll.interval"),
            json!({"key": "poll.interval", "value": "7s", "origin": "file", "place": "w.toml:2"})
        );
    }

    #[test]
    fn check_tells_every_problem_or_that_all_is_well() {
        let fine = check(&loaded(""));
        assert_eq!((fine.stdout.as_str(), fine.code), ("config: ok (w.toml)\n", 0));
        let bad = check(&loaded("lisen = 1\n[poll]\ninterval = 5"));
        assert_eq!((bad.stdout.as_str(), bad.code), ("", 1));
        assert_eq!(bad.stderr.lines().count(), 3, "{}", bad.stderr);
        assert!(bad.stderr.starts_with("w.toml:1: unknown key `lisen`; did you mean `listen`?\n"), "{}", bad.stderr);
        assert_eq!(show(&loaded("lisen = 1"), Format::Json).code, 1);
    }
}
