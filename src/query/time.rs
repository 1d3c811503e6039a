//! Moments as people write them. Pure: the present moment and the time zone are given.
//!
//! | text | meaning |
//! |---|---|
//! | `now` | the moment of the request |
//! | `-90s`, `-30m`, `-24h`, `-7d`, `-2w` | that long before; a day is 24 hours |
//! | `1795423474`, `1795423474.120` | Unix seconds, below 1e11 |
//! | `1795423474120` | Unix milliseconds, from 1e11 up |
//! | `2026-11-23T08:44:34Z`, `...+01:00` | RFC 3339 |
//! | `2026-11-23`, `2026-11-23T08:44` | midnight, or that time of day, in the configured time zone |

use std::fmt;

use jiff::tz::TimeZone;

use crate::units::UnixMillis;

/// From here up a bare number counts milliseconds: as seconds it would be the year 5138.
const MILLIS_FROM: i64 = 100_000_000_000;

/// A moment, and whether it moves with the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// When.
    pub time: UnixMillis,
    /// Whether the same text means another time later on.
    pub relative: bool,
}

/// A text that names no moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAMoment;

impl fmt::Display for NotAMoment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a time is RFC 3339 (2026-11-23T08:44:34Z), a date (2026-11-23), Unix seconds or milliseconds, \
             now, or relative: -90s, -30m, -24h, -7d, -2w",
        )
    }
}

impl std::error::Error for NotAMoment {}

/// The moment that `text` names. Moments before 1970 become 1970; parts of a millisecond are cut off.
///
/// # Errors
/// [`NotAMoment`], whose text lists every form.
pub fn parse(text: &str, now: UnixMillis, zone: &TimeZone) -> Result<Moment, NotAMoment> {
    let fixed = |time| Moment { time, relative: false };
    if text == "now" {
        return Ok(Moment { time: now, relative: true });
    }
    if let Some(span) = text.strip_prefix('-') {
        return Ok(Moment { time: now.plus(-parse_span(span)?), relative: true });
    }
    if let Some(time) = parse_number(text) {
        return Ok(fixed(time?));
    }
    // An unescaped `+` of an offset arrives as a space; no form of a moment has one there.
    let mended = match text.rsplit_once(' ') {
        Some((before, offset)) if before.contains(['T', 't']) => format!("{before}+{offset}"),
        _ => text.to_owned(),
    };
    if let Ok(time) = mended.parse::<jiff::Timestamp>() {
        return Ok(fixed(UnixMillis::new(time.as_millisecond())));
    }
    let local = mended.parse::<jiff::civil::DateTime>().ok().filter(|_| is_local(&mended)).ok_or(NotAMoment)?;
    let time = zone.to_timestamp(local).map_err(|_| NotAMoment)?;
    Ok(fixed(UnixMillis::new(time.as_millisecond())))
}

/// Whether a text is a bare date or date and time: jiff would also read `2026-11-23[Asia/Tokyo]` and drop the zone.
fn is_local(text: &str) -> bool {
    text.len() >= "2026-11-23".len() && text.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | ':' | '.' | 'T'))
}

/// Milliseconds of a span like `24h`.
pub(super) fn parse_span(text: &str) -> Result<i64, NotAMoment> {
    let unit = match text.chars().last() {
        Some('s') => 1_000,
        Some('m') => 60_000,
        Some('h') => 3_600_000,
        Some('d') => 86_400_000,
        Some('w') => 604_800_000,
        _ => return Err(NotAMoment),
    };
    let count = text.get(..text.len() - 1).filter(|digits| is_digits(digits)).ok_or(NotAMoment)?;
    count.parse::<i64>().ok().and_then(|count| count.checked_mul(unit)).ok_or(NotAMoment)
}

/// Unix seconds or milliseconds. None when the text is no number at all.
fn parse_number(text: &str) -> Option<Result<UnixMillis, NotAMoment>> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let Ok(whole) = whole.parse::<i64>() else { return Some(Err(NotAMoment)) };
    if whole >= MILLIS_FROM {
        return Some(Ok(UnixMillis::new(whole)));
    }
    let thousandths = fraction
        .bytes()
        .chain([b'0'; 3])
        .take(3)
        .fold(0, |sum, digit| sum * 10 + i64::from(digit.saturating_sub(b'0')));
    Some(Ok(UnixMillis::new(whole * 1_000 + thousandths)))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixMillis = UnixMillis::new(1_795_423_474_120);

    fn read(text: &str) -> Option<String> {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        parse(text, NOW, &berlin).ok().map(|moment| moment.time.to_string())
    }

    #[test]
    fn every_form_of_a_moment_is_read() {
        for (text, time) in [
            ("now", "2026-11-23T08:44:34.120Z"),
            ("-90s", "2026-11-23T08:43:04.120Z"),
            ("-30m", "2026-11-23T08:14:34.120Z"),
            ("-24h", "2026-11-22T08:44:34.120Z"),
            ("-7d", "2026-11-16T08:44:34.120Z"),
            ("-2w", "2026-11-09T08:44:34.120Z"),
            ("1795423474", "2026-11-23T08:44:34.000Z"),
            ("1795423474.12", "2026-11-23T08:44:34.120Z"),
            ("1795423474.1209", "2026-11-23T08:44:34.120Z"),
            ("1795423474120", "2026-11-23T08:44:34.120Z"),
            ("1795423474120.9", "2026-11-23T08:44:34.120Z"),
            ("99999999999", "5138-11-16T09:46:39.000Z"),
            ("100000000000", "1973-03-03T09:46:40.000Z"),
            ("2026-11-23T08:44:34.12Z", "2026-11-23T08:44:34.120Z"),
            ("2026-11-23T09:44:34+01:00", "2026-11-23T08:44:34.000Z"),
            ("2026-11-23T09:44:34 01:00", "2026-11-23T08:44:34.000Z"),
            ("2026-11-23", "2026-11-22T23:00:00.000Z"),
            ("2026-07-23", "2026-07-22T22:00:00.000Z"),
            ("2026-11-23T08:44", "2026-11-23T07:44:00.000Z"),
            ("1066-10-14", "1970-01-01T00:00:00.000Z"),
            ("0", "1970-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(read(text).as_deref(), Some(time), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "-",
            "24h",
            "-h",
            "-1y",
            "--1h",
            "-1.5h",
            "yesterday",
            "1e9",
            "1.",
            ".5",
            "+5",
            "-5",
            "NOW",
            "99999999999999999999",
            "-99999999999999999999w",
            "2026-13-01",
            "2026-11-23T25:00Z",
            "2026-11",
            "2026-11-23[Asia/Tokyo]",
            "-é",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn only_moments_that_hang_on_the_clock_are_relative() {
        let relative = |text| parse(text, NOW, &TimeZone::UTC).unwrap().relative;
        assert!(relative("now") && relative("-1h"));
        assert!(!relative("1795423474") && !relative("2026-11-23"));
    }

    proptest! {
        #[test]
        fn what_we_write_we_read(millis in 0..=UnixMillis::MAX.get()) {
            let time = UnixMillis::new(millis);
            prop_assert_eq!(parse(&time.to_string(), NOW, &TimeZone::UTC).unwrap().time, time);
        }

        #[test]
        fn garbage_never_panics(text in "\\PC{0,40}") {
            let _ = parse(&text, NOW, &TimeZone::UTC);
        }
    }
}
