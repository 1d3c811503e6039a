//! Media types, and the choice between them. Pure.

use hyper::StatusCode;
use hyper::header::ACCEPT;
use hyper::http::request::Parts;

use crate::http::reply::Problem;

/// A media type that this server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// JSON, one object.
    Json,
    /// JSON, one object to a line.
    Ndjson,
    /// Comma-separated values (RFC 4180).
    Csv,
    /// A page.
    Html,
    /// A drawing.
    Svg,
    /// Plain text.
    Text,
    /// Prometheus' text format.
    Exposition,
    /// Server-Sent Events.
    EventStream,
    /// Bytes for a program.
    Bytes,
}

impl Media {
    /// The `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::Html => "text/html; charset=utf-8",
            Self::Svg => "image/svg+xml",
            Self::Text => "text/plain; charset=utf-8",
            Self::EventStream => "text/event-stream",
            Self::Exposition => "text/plain; version=0.0.4; charset=utf-8",
            Self::Bytes => "application/octet-stream",
        }
    }

    /// The types and subtypes that clients ask for it by, the usual one first.
    const fn names(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Json => &[("application", "json")],
            Self::Ndjson => &[("application", "x-ndjson"), ("application", "ndjson"), ("application", "jsonl")],
            Self::Csv => &[("text", "csv")],
            Self::Html => &[("text", "html")],
            Self::Svg => &[("image", "svg+xml")],
            Self::EventStream => &[("text", "event-stream")],
            Self::Text | Self::Exposition => &[("text", "plain")],
            Self::Bytes => &[("application", "octet-stream")],
        }
    }
}

/// The one of `offers` to send: what `format` says, else what `Accept` likes best, else the first.
///
/// A route that offers nothing to choose from sends what it has. A request without `Accept` takes anything.
///
/// # Errors
/// 406 when none is acceptable.
pub fn choose(format: Option<Media>, request: &Parts, offers: &[Media]) -> Result<Media, Problem> {
    let Some(first) = offers.first() else { return Ok(Media::Json) };
    if let Some(format) = format {
        return Ok(format);
    }
    let lines: Vec<&str> = request.headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok()).collect();
    if lines.is_empty() {
        return Ok(*first);
    }
    let ranges: Vec<Range<'_>> = lines.iter().flat_map(|line| line.split(',')).filter_map(Range::parse).collect();
    let mut best: Option<((u16, u8), Media)> = None;
    for offer in offers {
        let liking = ranges.iter().filter_map(|range| Some((range.fits(*offer)?, range.quality))).max();
        let liked = best.map(|(liked, _)| liked);
        match liking {
            Some((fit, quality)) if quality > 0 && liked.is_none_or(|liked| (quality, fit) > liked) => {
                best = Some(((quality, fit), *offer));
            }
            _ => {}
        }
    }
    best.map(|(_, media)| media).ok_or_else(|| {
        let offered: Vec<_> = offers.iter().map(|offer| offer.content_type()).collect();
        let hint = format!("this path sends {}", offered.join(", or "));
        Problem::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", "nothing that Accept names is sent here", hint)
    })
}

/// One range of an `Accept`: `text/*;q=0.5`.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    /// In thousandths.
    quality: u16,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let quality = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
        Some(Self { kind, subtype, quality: quality.map_or(Some(1_000), parse_quality)? })
    }

    /// How exactly the range names a media type. None when it does not.
    fn fits(&self, media: Media) -> Option<u8> {
        let is = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        let named = media.names().iter().any(|(kind, subtype)| is(self.kind, kind) && is(self.subtype, subtype));
        let within = self.subtype == "*" && media.names().iter().any(|(kind, _)| is(self.kind, kind));
        match (named, within, self.kind == "*" && self.subtype == "*") {
            (true, _, _) => Some(2),
            (_, true, _) => Some(1),
            (_, _, true) => Some(0),
            _ => None,
        }
    }
}

/// `0` to `1` with up to three decimals, in thousandths.
fn parse_quality(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let thousandths: u16 = format!("{decimals:0<3}").parse().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1_000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &[Media] = &[Media::Json, Media::Ndjson, Media::Csv];

    fn chosen(accept: &str, offers: &[Media]) -> Option<Media> {
        let request = hyper::Request::builder().header(ACCEPT, accept).body(()).unwrap().into_parts().0;
        choose(None, &request, offers).ok()
    }

    #[test]
    fn accept_is_weighed_and_the_exact_name_wins_a_tie() {
        assert_eq!(chosen("*/*", ROWS), Some(Media::Json));
        assert_eq!(chosen("text/csv", ROWS), Some(Media::Csv));
        assert_eq!(chosen("text/*", ROWS), Some(Media::Csv));
        assert_eq!(chosen("text/csv, */*", ROWS), Some(Media::Csv));
        assert_eq!(chosen("text/csv;q=0.5, application/x-ndjson", ROWS), Some(Media::Ndjson));
        assert_eq!(chosen("application/json;q=0, */*", ROWS), Some(Media::Ndjson));
        assert_eq!(chosen("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", ROWS), Some(Media::Json));
        assert_eq!(chosen("image/png", ROWS), None);
        assert_eq!(chosen("text/csv;q=0", ROWS), None);
        assert_eq!(chosen("nonsense", ROWS), None);
        assert_eq!(chosen("APPLICATION/JSON;charset=utf-8", &[Media::Json]), Some(Media::Json));
    }

    #[test]
    fn a_format_wins_over_accept_and_no_accept_takes_the_first() {
        let request = hyper::Request::builder().body(()).unwrap().into_parts().0;
        assert_eq!(choose(None, &request, ROWS).unwrap(), Media::Json);
        let request = hyper::Request::builder().header(ACCEPT, "image/png").body(()).unwrap().into_parts().0;
        assert_eq!(choose(Some(Media::Csv), &request, ROWS).unwrap(), Media::Csv);
    }
}
