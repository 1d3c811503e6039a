//! From the text of `wattd.toml` to settings with their lines.
//!
//! Owns the file's grammar: which tables and keys there are, and what type of TOML value each takes. Promises to go on
//! after a problem, so that one look at the list mends the file. What a text means is left to `keys` and `value`.

use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, EntryKey, Key, LISTS, PLUG_KEYS, PRICE_KEYS, Shape};
use super::value::{self, Shown, ValueError};
use super::{Cause, Origin, Plug, Problem};
use crate::limits;
use crate::nearest::nearest;
use crate::reading::Alias;
use crate::tariff::{Days, Hours, Rule, Season};

/// A scalar setting as it stands in the file, not yet understood.
pub(super) struct Entry {
    pub key: &'static Key,
    pub text: String,
    pub origin: Origin,
}

/// A known plug, checked, with the lines of its keys.
pub(super) struct PlugEntry {
    pub plug: Plug,
    pub address: Origin,
    pub name: Option<Origin>,
}

/// A price by time, checked, with its values as they were written and their lines.
pub(super) struct PriceEntry {
    pub rule: Rule,
    pub origin: Origin,
    pub texts: Vec<(&'static str, String, Origin)>,
}

/// What a file says. `problems` are in the order of their lines.
#[derive(Default)]
pub(super) struct Contents {
    pub entries: Vec<Entry>,
    pub plugs: Vec<PlugEntry>,
    pub prices: Vec<PriceEntry>,
    pub problems: Vec<Problem>,
}

/// Reads the `text` of the file at `path`, at most [`limits::CONFIG_FILE`] bytes of it.
pub(super) fn read(path: &Path, text: &str) -> Contents {
    let mut reader = Reader { lines: Lines::of(path, text), out: Contents::default() };
    if text.len() > limits::CONFIG_FILE {
        reader.problem(0..0, Cause::TooLarge { limit: limits::CONFIG_FILE });
        return reader.out;
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut said = Vec::new();
    for error in &errors {
        // One broken bracket can be found broken dozens of times.
        let place = error.span().map(|span| (reader.lines.origin(&span), error.message().to_owned()));
        if said.contains(&place) {
            continue;
        }
        said.push(place);
        // Of the parser's error only the message: its own text repeats the line, which may hold anything.
        reader.problem(error.span().unwrap_or(0..0), Cause::Syntax { what: error.message().to_owned() });
    }
    let broken: Vec<Option<usize>> = reader.out.problems.iter().map(|problem| problem.origin.line()).collect();
    reader.root(root.get_ref());
    // The parser's guess at a line that it could not read is no ground for further complaints.
    let is_sound = |p: &Problem| matches!(p.cause, Cause::Syntax { .. }) || !broken.contains(&p.origin.line());
    reader.out.problems.retain(is_sound);
    reader.out.entries.retain(|entry| !broken.contains(&entry.origin.line()));
    reader.out.problems.sort_by_key(|problem| problem.origin.line());
    reader.out
}

/// Where each line begins, so that a position finds its line without counting from the top each time.
struct Lines {
    path: PathBuf,
    starts: Vec<usize>,
}

impl Lines {
    fn of(path: &Path, text: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { path: path.to_owned(), starts }
    }

    fn origin(&self, span: &Range<usize>) -> Origin {
        let line = self.starts.partition_point(|start| *start <= span.start);
        Origin::File { path: self.path.clone(), line }
    }
}

struct Reader {
    lines: Lines,
    out: Contents,
}

impl Reader {
    fn problem(&mut self, span: Range<usize>, cause: Cause) {
        let origin = self.lines.origin(&span);
        self.out.problems.push(Problem { origin, cause });
    }

    fn root(&mut self, root: &DeTable<'_>) {
        for (name, value) in root {
            let (span, name) = (name.span(), name.get_ref().as_ref());
            let is_section = keys::sections().any(|section| section == name);
            match value.get_ref() {
                DeValue::Table(table) if is_section && !is_list(name) => self.section(name, table),
                DeValue::Array(plugs) if name == "plugs" => {
                    for plug in plugs.iter() {
                        self.plug(plug);
                    }
                    self.too_many("plugs", self.out.plugs.len(), limits::PLUGS, span);
                }
                DeValue::Array(prices) if name == "prices" => {
                    for price in prices.iter() {
                        self.price(price);
                    }
                    self.too_many("prices", self.out.prices.len(), limits::CONFIG_LIST, span);
                }
                other if is_section => {
                    let allowed = if is_list(name) { one_for_each(name) } else { "a table".to_owned() };
                    self.problem(span, Cause::WrongType { key: name.to_owned(), got: other.type_str(), allowed });
                }
                other if is_table(other) && keys::find("", name).is_none() => {
                    let nearest = nearest(name, keys::sections()).map(str::to_owned);
                    self.problem(span, Cause::UnknownTable { name: Shown::new(name), nearest });
                }
                _ => self.scalar("", name, span, value),
            }
        }
    }

    fn section(&mut self, section: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            self.scalar(section, name.get_ref(), name.span(), value);
        }
    }

    fn scalar(&mut self, section: &str, name: &str, span: Range<usize>, value: &Spanned<DeValue<'_>>) {
        let Some(key) = keys::find(section, name) else {
            let nearest = keys::nearest_key(section, name);
            let path = if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
            self.problem(span, Cause::UnknownKey { key: Shown::new(&path), nearest });
            return;
        };
        match text_of(key, value.get_ref()) {
            Ok(text) => {
                let origin = self.lines.origin(&value.span());
                self.out.entries.push(Entry { key, text, origin });
            }
            Err(cause) => self.problem(value.span(), cause),
        }
    }

    /// The table of an entry of the list `name`, or a complaint.
    fn entry<'t>(&mut self, name: &str, entry: &'t Spanned<DeValue<'_>>) -> Option<&'t DeTable<'t>> {
        let table = entry.get_ref().as_table();
        if table.is_none() {
            let (got, allowed) = (entry.get_ref().type_str(), one_for_each(name));
            self.problem(entry.span(), Cause::WrongType { key: name.to_owned(), got, allowed });
        }
        table
    }

    fn unknown_in(&mut self, list: &str, key: &str, span: Range<usize>) {
        let nearest = keys::nearest_key(list, key);
        self.problem(span, Cause::UnknownKey { key: Shown::new(&format!("{list}.{key}")), nearest });
    }

    fn plug(&mut self, entry: &Spanned<DeValue<'_>>) {
        let Some(table) = self.entry("plugs", entry) else { return };
        // `None` while a key is absent, `Some(None)` when it is there and wrong.
        let (mut address, mut name) = (None, None);
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "address" => address = Some(self.value_in(("plugs", PLUG_KEYS), "address", value, plug_address)),
                "name" => name = self.value_in(("plugs", PLUG_KEYS), "name", value, plug_name),
                other => self.unknown_in("plugs", other, key.span()),
            }
        }
        let Some(address) = address else {
            self.problem(entry.span(), Cause::NoAddress);
            return;
        };
        let Some((address, at)) = address else { return };
        if let Some(other) = self.out.plugs.iter().find(|other| other.plug.address == address) {
            let first = other.address.line();
            self.out.problems.push(Problem { origin: at, cause: Cause::SamePlug { address, first } });
            return;
        }
        let (name, name_at) = name.unzip();
        self.out.plugs.push(PlugEntry { plug: Plug { address, name: name.flatten() }, address: at, name: name_at });
    }

    fn price(&mut self, entry: &Spanned<DeValue<'_>>) {
        let Some(table) = self.entry("prices", entry) else { return };
        let list = ("prices", PRICE_KEYS);
        let (mut price, mut days, mut hours, mut season) = (None, Some(Days::ALL), Some(Hours::ALL), Some(Season::ALL));
        let (mut is_priced, mut texts) = (false, Vec::new());
        for (key, value) in table {
            let name = match key.get_ref().as_ref() {
                "price" => {
                    is_priced = true;
                    price = self.value_in(list, "price", value, value::amount).map(|(price, _)| price);
                    "price"
                }
                "days" => {
                    days = self.value_in(list, "days", value, value::days).map(|(days, _)| days);
                    "days"
                }
                "hours" => {
                    hours = self.value_in(list, "hours", value, value::hours).map(|(hours, _)| hours);
                    "hours"
                }
                "season" => {
                    season = self.value_in(list, "season", value, value::season).map(|(season, _)| season);
                    "season"
                }
                other => {
                    self.unknown_in("prices", other, key.span());
                    continue;
                }
            };
            if let Some(text) = text_in(value.get_ref()) {
                texts.push((name, text, self.lines.origin(&value.span())));
            }
        }
        if !is_priced {
            self.problem(entry.span(), Cause::NoPrice);
        }
        if let (Some(price), Some(days), Some(hours), Some(season)) = (price, days, hours, season) {
            let origin = self.lines.origin(&entry.span());
            self.out.prices.push(PriceEntry { rule: Rule { price, days, hours, season }, origin, texts });
        }
    }

    fn value_in<T>(
        &mut self,
        (list, keys): (&str, &[EntryKey]),
        name: &str,
        value: &Spanned<DeValue<'_>>,
        parse: fn(&str) -> Result<T, ValueError>,
    ) -> Option<(T, Origin)> {
        let key = format!("{list}.{name}");
        let allowed = keys.iter().find(|key| key.name == name).map_or("", |key| key.allowed).to_owned();
        let text = if name == "price" { text_in(value.get_ref()) } else { value.get_ref().as_str().map(str::to_owned) };
        let cause = match text.as_deref() {
            None => Cause::WrongType { key, got: value.get_ref().type_str(), allowed },
            Some(text) => match parse(text.trim()) {
                Ok(parsed) => return Some((parsed, self.lines.origin(&value.span()))),
                Err(error) => Cause::BadValue { key, error, allowed },
            },
        };
        self.problem(value.span(), cause);
        None
    }

    fn too_many(&mut self, list: &str, count: usize, limit: usize, span: Range<usize>) {
        if count > limit {
            let (key, allowed) = (list.to_owned(), format!("at most {limit}"));
            self.problem(span, Cause::BadValue { key, error: ValueError::TooMany { limit }, allowed });
        }
    }
}

fn is_list(name: &str) -> bool {
    LISTS.iter().any(|(list, _)| *list == name)
}

fn one_for_each(list: &str) -> String {
    format!("one [[{list}]] for each")
}

/// A text, or a number as it was written: a price is exact, so no float comes between.
fn text_in(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        _ => None,
    }
}

/// Whether a value was written as `[name]` or `[[name]]`, or could have been.
fn is_table(value: &DeValue<'_>) -> bool {
    value.is_table() || value.get(0).is_some_and(|first| first.get_ref().is_table())
}

/// An address that one plug can have. A mapped IPv4 address is taken for the IPv4 address it is.
fn plug_address(text: &str) -> Result<IpAddr, ValueError> {
    let address = text.parse().map(|address: IpAddr| address.to_canonical()).ok();
    let is_host = |a: &IpAddr| !a.is_unspecified() && !a.is_multicast() && *a != IpAddr::from([255; 4]);
    address.filter(is_host).ok_or_else(|| ValueError::Form(Shown::new(text)))
}

/// A name that is kept whole; an empty one is none.
fn plug_name(text: &str) -> Result<Option<Alias>, ValueError> {
    let name = Alias::new(text);
    if name.as_str() == value::words(text, 64)? {
        return Ok(Some(name).filter(|name| !name.is_empty()));
    }
    Err(ValueError::Form(Shown::new(text)))
}

/// A TOML value in the form of the environment, or what is wrong with its type.
fn text_of(key: &Key, value: &DeValue<'_>) -> Result<String, Cause> {
    let wrong_type = |got| Cause::WrongType { key: key.path(), got, allowed: key.kind.allowed() };
    match (key.kind.shape(), value) {
        (Shape::Truth, DeValue::Boolean(truth)) => Ok(truth.to_string()),
        (Shape::Text | Shape::OptionalText | Shape::Quantity, DeValue::String(text)) => Ok(text.to_string()),
        // A bare number where a duration belongs gets the hint about units, which helps more than one about types.
        (Shape::Number | Shape::Quantity, DeValue::Integer(number)) => {
            let decimal = i64::from_str_radix(number.as_str(), number.radix());
            // Beyond 64 bits the digits as written: out of bounds is what they are.
            Ok(decimal.map_or_else(|_| number.to_string(), |decimal| decimal.to_string()))
        }
        (Shape::OptionalDecimal, value) => text_in(value).ok_or_else(|| wrong_type(value.type_str())),
        (Shape::List, DeValue::Array(items)) => {
            let mut texts = Vec::new();
            for item in items.iter() {
                let text = item.get_ref().as_str().ok_or_else(|| wrong_type(item.get_ref().type_str()))?;
                // A list is handed on with commas, so an item may not bring its own, nor be nothing.
                if text.contains(',') || text.trim().is_empty() {
                    let error = ValueError::Form(Shown::new(text));
                    return Err(Cause::BadValue { key: key.path(), error, allowed: key.kind.allowed() });
                }
                texts.push(text);
            }
            Ok(texts.join(","))
        }
        (_, other) => Err(wrong_type(other.type_str())),
    }
}
