//! The parameters of requests: every name, every form, every refusal, in this one place. Pure.
//!
//! A route declares which parameters it takes. One that it does not take, that comes twice or cannot be read is an error
//! that names it and what would be right; nothing is ignored.

use std::borrow::Cow;
use std::time::Duration;

use hyper::StatusCode;
use jiff::tz::TimeZone;

use crate::config;
use crate::http::drawing::Kind;
use crate::http::media::Media;
use crate::http::reply::{Problem, quoted};
use crate::http::rows::TimeForm;
use crate::limits;
use crate::nearest::nearest;
use crate::query::cursor::Cursor;
use crate::query::field::{self, BadFields, Column};
use crate::query::names::{NameError, Names};
use crate::query::readings::Wanted;
use crate::query::summary::Window;
use crate::query::time::{self, Moment};
use crate::query::view::Range;
use crate::reading::DeviceId;
use crate::rollup::Step;
use crate::store::Order;
use crate::units::UnixMillis;

/// A parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// An id or alias; may be repeated.
    Device,
    /// The start of a range.
    Start,
    /// The end of a range, not in it.
    End,
    /// `asc` or `desc`.
    Order,
    /// Columns.
    Fields,
    /// The most rows.
    Limit,
    /// The length of a bucket.
    Step,
    /// A span of time up to now.
    Window,
    /// What a chart shows, up to now.
    Range,
    /// What a chart is of.
    Kind,
    /// Whether the outlets of a strip are drawn together.
    Outlets,
    /// Where the page before ended.
    Cursor,
    /// Rows to pass over.
    Offset,
    /// `json`, `ndjson` or `csv`.
    Format,
    /// `rfc3339` or `ms`: how times are written.
    Time,
    /// How old a newest reading may be before its plug is asked.
    MaxAge,
    /// The last event that a client heard.
    LastEventId,
}

impl Param {
    /// Every one.
    pub const ALL: &'static [Self] = &[
        Self::Device,
        Self::Start,
        Self::End,
        Self::Order,
        Self::Fields,
        Self::Limit,
        Self::Step,
        Self::Window,
        Self::Range,
        Self::Kind,
        Self::Outlets,
        Self::Cursor,
        Self::Offset,
        Self::Format,
        Self::Time,
        Self::MaxAge,
        Self::LastEventId,
    ];

    /// The name in requests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Start => "start",
            Self::End => "end",
            Self::Order => "order",
            Self::Fields => "fields",
            Self::Limit => "limit",
            Self::Step => "step",
            Self::Window => "window",
            Self::Range => "range",
            Self::Kind => "kind",
            Self::Outlets => "outlets",
            Self::Cursor => "cursor",
            Self::Offset => "offset",
            Self::Format => "format",
            Self::Time => "time",
            Self::MaxAge => "max_age",
            Self::LastEventId => "last_event_id",
        }
    }

    /// What it is for, in one line.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::Device => {
                "An id or, while only one device has it, an alias; may be repeated. All of them without one"
            }
            Self::Start => "The start of the range: RFC 3339, a date, Unix seconds or milliseconds, or relative (-24h)",
            Self::End => "The end of the range, not in it; in the same forms, or now",
            Self::Order => "Which end comes first",
            Self::Fields => "Columns, comma between them, in the order wanted",
            Self::Limit => "The most rows; a stream (NDJSON, CSV) may have more than this document says",
            Self::Step => "The length of a bucket; days and months are those of the configured time zone",
            Self::Window => "The time up to now: a span such as 15m, 24h or 7d, or today, week, month or year",
            Self::Range => "What is drawn, up to now",
            Self::Kind => "A line of power, or bars of energy",
            Self::Outlets => "A strip's outlets in one chart, or each in its own",
            Self::Cursor => "`next` of the page before, unchanged",
            Self::Offset => "Rows to pass over; deeper pages are what `cursor` is for",
            Self::Format => "In place of Accept",
            Self::Time => "How times are written",
            Self::MaxAge => "A plug whose reading is older is asked first",
            Self::LastEventId => {
                "The id of the last event heard, in place of the header: what came after it comes first"
            }
        }
    }

    /// What it can be, as JSON Schema.
    #[must_use]
    pub fn schema(self) -> serde_json::Value {
        use serde_json::json;
        match self {
            Self::Device => json!({"type": "array", "items": {"type": "string"}, "maxItems": limits::REQUEST_DEVICES}),
            Self::Order => json!({"type": "string", "enum": ["asc", "desc"]}),
            Self::Limit => json!({"type": "integer", "minimum": 1, "maximum": limits::PAGE_ROWS}),
            Self::Offset => json!({"type": "integer", "minimum": 0, "maximum": limits::OFFSET}),
            Self::Step => json!({"type": "string", "enum": ["15m", "1h", "1d", "1mo"]}),
            Self::Format => json!({"type": "string", "enum": ["json", "ndjson", "csv"]}),
            Self::Time => json!({"type": "string", "enum": ["rfc3339", "ms"]}),
            Self::Start | Self::End => json!({"type": "string", "examples": ["-24h", "2026-11-23T00:00:00Z", "now"]}),
            Self::Window => json!({"type": "string", "examples": ["1h", "today"]}),
            Self::Range => json!({"type": "string", "enum": Range::WORDS.map(|(word, _)| word)}),
            Self::Kind => json!({"type": "string", "enum": Kind::WORDS.map(|(word, _)| word)}),
            Self::Outlets => json!({"type": "string", "enum": ["together", "apart"]}),
            Self::MaxAge => json!({"type": "string", "examples": ["2s"]}),
            Self::Fields | Self::Cursor | Self::LastEventId => json!({"type": "string"}),
        }
    }
}

/// The parameters of one request, decoded, each one that its route takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params {
    pairs: Vec<(Param, String)>,
}

impl Params {
    /// Reads a query string.
    ///
    /// # Errors
    /// 400 for what is not UTF-8 or badly escaped, for a parameter that the route does not take, and for one that comes
    /// twice, `device` apart.
    pub fn read(query: Option<&str>, taken: impl Iterator<Item = Param> + Clone) -> Result<Self, Problem> {
        let mut pairs: Vec<(Param, String)> = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name, true)?, decode(value, true)?);
            let Some(param) = taken.clone().find(|param| param.name() == name) else {
                return Err(unknown(&name, taken));
            };
            if param == Param::Device {
                if pairs.iter().filter(|(known, _)| *known == param).count() >= limits::REQUEST_DEVICES {
                    let message = format!("a request may name {} devices", limits::REQUEST_DEVICES);
                    return Err(Problem::bad("too_many_devices", message, "leave out `device` for all of them"));
                }
            } else if pairs.iter().any(|(known, _)| *known == param) {
                let message = format!("`{}` comes twice", param.name());
                return Err(Problem::bad("duplicate_parameter", message, "send it once"));
            }
            pairs.push((param, value.into_owned()));
        }
        Ok(Self { pairs })
    }

    /// Whether it was sent.
    #[must_use]
    pub fn has(&self, wanted: Param) -> bool {
        self.one(wanted).is_some()
    }

    fn all(&self, wanted: Param) -> impl Iterator<Item = &str> {
        self.pairs.iter().filter(move |(param, _)| *param == wanted).map(|(_, value)| value.as_str())
    }

    /// The text of one that comes once.
    #[must_use]
    pub fn one(&self, wanted: Param) -> Option<&str> {
        self.all(wanted).next()
    }

    /// One of a few words.
    fn word<T: Copy>(&self, param: Param, words: &[(&'static str, T)]) -> Result<Option<T>, Problem> {
        let Some(text) = self.one(param) else { return Ok(None) };
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| Some(*value)).ok_or_else(|| {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            bad(param, text, nearest_or(text, &known, format!("it is one of {}", known.join(", "))))
        })
    }

    fn count(&self, param: Param, least: usize, most: usize) -> Result<Option<usize>, Problem> {
        let Some(text) = self.one(param) else { return Ok(None) };
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let count = text.parse().ok().filter(|count| digits && (least..=most).contains(count));
        let range = if most == usize::MAX { format!("from {least} up") } else { format!("from {least} to {most}") };
        count.map(Some).ok_or_else(|| bad(param, text, format!("it is a whole number {range}")))
    }

    /// The format asked for by name.
    ///
    /// # Errors
    /// 400 for any other word.
    pub fn format(&self) -> Result<Option<Media>, Problem> {
        self.word(Param::Format, &[("json", Media::Json), ("ndjson", Media::Ndjson), ("csv", Media::Csv)])
    }

    /// How times are to be written.
    ///
    /// # Errors
    /// 400 for any other word.
    pub fn time_form(&self) -> Result<TimeForm, Problem> {
        let words = [("rfc3339", TimeForm::Rfc3339), ("ms", TimeForm::Millis)];
        Ok(self.word(Param::Time, &words)?.unwrap_or(TimeForm::Rfc3339))
    }

    /// How old a newest reading may be: up to a day.
    ///
    /// # Errors
    /// 400 for what is no such duration.
    pub fn max_age(&self) -> Result<Option<Duration>, Problem> {
        const DAY: Duration = Duration::from_secs(86_400);
        let Some(text) = self.one(Param::MaxAge) else { return Ok(None) };
        config::duration(text, Duration::ZERO, DAY)
            .map(Some)
            .map_err(|_| bad(Param::MaxAge, text, "it is a duration from 0s to 1d, such as 500ms, 2s or 1m".to_owned()))
    }

    /// Which end of the range comes first.
    ///
    /// # Errors
    /// 400 for any other word.
    fn order(&self) -> Result<Option<Order>, Problem> {
        self.word(Param::Order, &[("asc", Order::Ascending), ("desc", Order::Descending)])
    }

    /// The length of a bucket, an hour unless the request says otherwise.
    ///
    /// # Errors
    /// 400 for any other word.
    pub fn step(&self) -> Result<Step, Problem> {
        let words = [("15m", Step::QuarterHour), ("1h", Step::Hour), ("1d", Step::Day), ("1mo", Step::Month)];
        Ok(self.word(Param::Step, &words)?.unwrap_or(Step::Hour))
    }

    /// The length of a bucket, when the request says it.
    ///
    /// # Errors
    /// 400 for any other word.
    pub fn given_step(&self) -> Result<Option<Step>, Problem> {
        if self.one(Param::Step).is_some() { self.step().map(Some) } else { Ok(None) }
    }

    /// What a chart shows: 24 hours unless the request says otherwise.
    ///
    /// # Errors
    /// 400 for any other word.
    pub fn range(&self) -> Result<Range, Problem> {
        Ok(self.word(Param::Range, &Range::WORDS)?.unwrap_or(Range::Day))
    }

    /// What a chart is of: power unless the request says otherwise.
    ///
    /// # Errors
    /// 400 for any other word.
    pub fn kind(&self) -> Result<Kind, Problem> {
        Ok(self.word(Param::Kind, &Kind::WORDS)?.unwrap_or(Kind::Power))
    }

    /// Whether each outlet of a strip has a chart of its own.
    ///
    /// # Errors
    /// 400 for any other word.
    pub fn apart(&self) -> Result<bool, Problem> {
        Ok(self.word(Param::Outlets, &[("together", false), ("apart", true)])?.unwrap_or(false))
    }

    /// What the request calls the devices that it names.
    pub fn device_names(&self) -> impl Iterator<Item = &str> {
        self.all(Param::Device)
    }

    /// The window up to now.
    ///
    /// # Errors
    /// 400 for what is none.
    pub fn window(&self) -> Result<Window, Problem> {
        let Some(text) = self.one(Param::Window) else { return Ok(Window::USUAL) };
        Window::parse(text).map_err(|why| bad(Param::Window, text, why.to_string()))
    }

    /// The most rows, when the request says it: from 1 to `most`.
    ///
    /// # Errors
    /// 400 for what is no such number.
    pub fn limit(&self, most: usize) -> Result<Option<usize>, Problem> {
        self.count(Param::Limit, 1, most)
    }

    /// The walk wanted, and the rows to pass over first: a cursor or an offset, not both.
    ///
    /// # Errors
    /// 400 for both, for what is no number up to [`limits::OFFSET`], no cursor, no moment and no order.
    pub fn walk(&self, now: UnixMillis, zone: &TimeZone) -> Result<(Wanted, usize), Problem> {
        let offset = self.count(Param::Offset, 0, limits::OFFSET)?;
        let cursor = self.one(Param::Cursor).map(|text| {
            text.parse::<Cursor>().map_err(|why| {
                let message = format!("`cursor` {} is not one of this server's", quoted(text));
                Problem::bad("bad_cursor", message, why.to_string())
            })
        });
        let cursor = cursor.transpose()?;
        if offset.is_some() && cursor.is_some() {
            let hint = "leave out `offset`: the cursor says where to go on";
            return Err(Problem::bad("bad_parameter", "`offset` and `cursor` do not go together", hint));
        }
        let (start, end) = (self.moment(Param::Start, now, zone)?, self.moment(Param::End, now, zone)?);
        Ok((Wanted { start, end, order: self.order()?, cursor }, offset.unwrap_or(0)))
    }

    /// The moment that `param` names.
    ///
    /// # Errors
    /// 400 for what names none.
    fn moment(&self, param: Param, now: UnixMillis, zone: &TimeZone) -> Result<Option<Moment>, Problem> {
        let Some(text) = self.one(param) else { return Ok(None) };
        time::parse(text, now, zone).map(Some).map_err(|why| {
            let message = format!("`{}` cannot be {}", param.name(), quoted(text));
            Problem::bad("bad_time", message, why.to_string())
        })
    }

    /// The columns asked for; all of `known` when the request names none.
    ///
    /// # Errors
    /// 400 for a column that is not one of them, or that comes twice.
    pub fn fields<C: Column>(&self, known: &'static [C]) -> Result<Vec<C>, Problem> {
        let Some(text) = self.one(Param::Fields) else { return Ok(known.to_vec()) };
        let names: Vec<_> = known.iter().map(|field| field.name()).collect();
        let all = format!("the fields here are {}", names.join(", "));
        field::parse(text, known).map_err(|why| match why {
            BadFields::Unknown { name, nearest } => {
                let hint = nearest.map_or(all, |nearest| format!("did you mean {nearest}?"));
                Problem::bad("unknown_field", format!("there is no field {}", quoted(&name)), hint)
            }
            BadFields::Twice(name) => {
                Problem::bad("bad_parameter", format!("`fields` names {name} twice"), "name it once")
            }
            BadFields::Empty => Problem::bad("bad_parameter", "`fields` names no field", all),
        })
    }

    /// The ids under which the readings of the devices asked for are recorded, in order of asking, each once. None when
    /// the request names no device.
    ///
    /// # Errors
    /// 404 for a device that nobody is, 400 for an alias that several have.
    pub fn devices(&self, names: &Names) -> Result<Option<Vec<DeviceId>>, Problem> {
        let mut ids = Vec::new();
        let mut named = false;
        for text in self.all(Param::Device) {
            named = true;
            for id in names.recorded_under(find_device(names, text)?) {
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        Ok(named.then_some(ids))
    }
}

impl Params {
    /// As [`Params::devices`], with the plug itself beside its outlets: what befalls a strip as a whole befalls them.
    ///
    /// # Errors
    /// As [`Params::devices`].
    pub fn plugs(&self, names: &Names) -> Result<Option<Vec<DeviceId>>, Problem> {
        let mut ids = self.devices(names)?;
        for text in self.all(Param::Device) {
            let id = find_device(names, text)?;
            ids.get_or_insert_default().extend([id, DeviceId::plug(id.plug)]);
        }
        Ok(ids)
    }
}

/// Whom `text` means.
///
/// # Errors
/// 404 `unknown_device`, 400 `ambiguous_device`, with what to write instead.
pub fn find_device(names: &Names, text: &str) -> Result<DeviceId, Problem> {
    names.find(text).map_err(|why| match why {
        NameError::Unknown { near } => {
            let hint = if near.is_empty() {
                "see /api/v1/devices for all of them".to_owned()
            } else {
                format!("did you mean {}? See /api/v1/devices for all", near.join(" or "))
            };
            let message = format!("no device is called {}", quoted(text));
            Problem::new(StatusCode::NOT_FOUND, "unknown_device", message, hint)
        }
        NameError::Ambiguous { ids } => {
            let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
            let message = format!("{} devices are called {}", ids.len(), quoted(text));
            Problem::bad("ambiguous_device", message, format!("use an id: {}", ids.join(" or ")))
        }
    })
}

/// The decoded text of a path's segment.
///
/// # Errors
/// 400 for what is not UTF-8 or badly escaped.
pub fn decode_path(segment: &str) -> Result<String, Problem> {
    decode(segment, false).map(Cow::into_owned)
}

fn unknown(name: &str, taken: impl Iterator<Item = Param>) -> Problem {
    let names: Vec<_> = taken.map(Param::name).collect();
    let all = if names.is_empty() { "this path takes none".to_owned() } else { format!("known: {}", names.join(", ")) };
    let hint = nearest_or(name, &names, all);
    Problem::bad("unknown_parameter", format!("there is no parameter {}", quoted(name)), hint)
}

fn bad(param: Param, text: &str, hint: String) -> Problem {
    Problem::bad("bad_parameter", format!("`{}` cannot be {}", param.name(), quoted(text)), hint)
}

fn nearest_or(text: &str, known: &[&str], otherwise: String) -> String {
    nearest(text, known.iter().copied()).map_or(otherwise, |nearest| format!("did you mean {nearest}?"))
}

/// Percent-decoding, with `+` as a space where it is one.
fn decode(text: &str, plus_is_space: bool) -> Result<Cow<'_, str>, Problem> {
    if !text.contains(['%', '+']) {
        return Ok(Cow::Borrowed(text));
    }
    let refuse = || {
        let message = format!("{} is not well escaped UTF-8", quoted(text));
        Problem::bad(
            "bad_encoding",
            message,
            "write other bytes than letters and digits as %XX; with curl: -G --data-urlencode",
        )
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                let (high, low) = (digit().ok_or_else(refuse)?, digit().ok_or_else(refuse)?);
                u8::try_from(high << 4 | low).map_err(|_| refuse())?
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| refuse())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::field::Field;
    use proptest::prelude::*;

    const TAKEN: &[Param] =
        &[Param::Device, Param::Limit, Param::Order, Param::Offset, Param::Cursor, Param::Fields, Param::MaxAge];

    fn taken() -> impl Iterator<Item = Param> + Clone {
        TAKEN.iter().copied()
    }

    fn refusal(query: &str) -> (&'static str, String, String) {
        let read = Params::read(Some(query), taken()).and_then(|params| {
            params.limit(10_000)?;
            params.walk(UnixMillis::new(0), &TimeZone::UTC)?;
            params.max_age()?;
            params.fields(Field::OF_READINGS)
        });
        let problem = read.unwrap_err();
        (problem.code, problem.message, problem.hint)
    }

    #[test]
    fn every_wrong_parameter_is_named_with_what_would_be_right() {
        for (query, code, message, hint) in [
            ("limt=1", "unknown_parameter", "limt", "did you mean limit?"),
            ("step=1h", "unknown_parameter", "step", "known: device, limit"),
            ("limit=1&limit=1", "duplicate_parameter", "`limit`", "once"),
            ("limit=0", "bad_parameter", "`limit`", "from 1 to 10000"),
            ("limit=10001", "bad_parameter", "`limit`", "from 1 to 10000"),
            ("limit=", "bad_parameter", "`limit`", "whole number"),
            ("limit=%2B5", "bad_parameter", "`limit`", "whole number"),
            ("order=dsc", "bad_parameter", "`order`", "did you mean desc?"),
            ("order=up", "bad_parameter", "`order`", "asc, desc"),
            ("offset=10001", "bad_parameter", "`offset`", "from 0 to 10000"),
            ("max_age=2", "bad_parameter", "`max_age`", "such as 500ms, 2s"),
            ("max_age=2d", "bad_parameter", "`max_age`", "from 0s to 1d"),
            ("maxage=2s", "unknown_parameter", "maxage", "did you mean max_age?"),
            ("cursor=zz", "bad_cursor", "`cursor`", "unchanged"),
            ("fields=watt", "unknown_field", "watt", "the fields here are time"),
            ("fields=powr_w", "unknown_field", "powr_w", "did you mean power_w?"),
            ("device=%zz", "bad_encoding", "%zz", "%XX"),
            ("device=%ff", "bad_encoding", "%ff", "%XX"),
            ("device=%4", "bad_encoding", "%4", "%XX"),
        ] {
            let refused = refusal(query);
            assert_eq!(refused.0, code, "{query}");
            assert!(refused.1.contains(message) && refused.2.contains(hint), "{query}: {refused:?}");
        }
        let many = "device=a&".repeat(limits::REQUEST_DEVICES + 1);
        assert_eq!(Params::read(Some(&many), taken()).unwrap_err().code, "too_many_devices");
    }

    #[test]
    fn names_and_values_are_decoded() {
        let params = Params::read(Some("&device=K%C3%BChl+schrank&de%76ice=a%2Bb&"), taken()).unwrap();
        assert_eq!(params.all(Param::Device).collect::<Vec<_>>(), ["Kühl schrank", "a+b"]);
        assert_eq!(decode_path("a+b%20c").unwrap(), "a+b c");
        assert_eq!(Params::read(None, taken()), Params::read(Some(""), [].into_iter()));
    }

    impl PartialEq for Problem {
        fn eq(&self, other: &Self) -> bool {
            self.to_json() == other.to_json()
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(query in "\\PC{0,60}") {
            let _ = Params::read(Some(&query), taken());
        }

        #[test]
        fn any_text_survives_its_escaping(text in "\\PC{0,30}") {
            let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(decode(&escaped, true).unwrap().into_owned(), text);
        }
    }
}
