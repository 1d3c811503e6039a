//! Every path: what it takes, what it sends, what it is for.

use std::fmt::Write;

use hyper::{Response, StatusCode};

use crate::http::media::Media;
use crate::http::params::Param;
use crate::http::reply::{Body, Problem, quoted, whole};
use crate::nearest::nearest;

/// What answers a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The page for people.
    Page,
    /// Its style.
    Style,
    /// The list of paths.
    Landing,
    /// Alive.
    Health,
    /// Ready to be asked.
    Ready,
    /// Every plug.
    Devices,
    /// One plug.
    Device,
    /// Newest readings.
    Latest,
    /// Stored readings.
    Readings,
    /// Readings rolled up.
    Rollups,
    /// What each device used in a window up to now.
    Summary,
    /// Everything that is stored.
    Backup,
}

/// A path and its rules.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The path. One that ends in `{id}` takes one more segment there.
    pub path: &'static str,
    /// What answers it.
    pub endpoint: Endpoint,
    /// The parameters it takes.
    pub params: &'static [Param],
    /// What it can send, the usual first; empty when it sends its one thing whatever `Accept` says.
    pub media: &'static [Media],
    /// An example and what it is for, where the landing list shows it.
    pub example: Option<(&'static str, &'static str)>,
}

/// The path that is open to everybody.
pub const HEALTH: &str = "/health";

const ROWS: &[Media] = &[Media::Json, Media::Ndjson, Media::Csv];

/// Every route.
pub const ROUTES: &[Route] = &[
    Route { path: "/", endpoint: Endpoint::Page, params: &[], media: &[Media::Html], example: None },
    Route { path: "/style.css", endpoint: Endpoint::Style, params: &[], media: &[], example: None },
    Route { path: "/api/v1/", endpoint: Endpoint::Landing, params: &[], media: &[], example: None },
    Route { path: "/api/v1", endpoint: Endpoint::Landing, params: &[], media: &[], example: None },
    Route {
        path: "/api/v1/devices",
        endpoint: Endpoint::Devices,
        params: &[],
        media: &[Media::Json],
        example: Some(("/api/v1/devices", "every plug: model, address, online, last error")),
    },
    Route {
        path: "/api/v1/devices/{id}",
        endpoint: Endpoint::Device,
        params: &[],
        media: &[Media::Json],
        example: Some(("/api/v1/devices/ID", "one plug, by id or alias")),
    },
    Route {
        path: "/api/v1/latest",
        endpoint: Endpoint::Latest,
        params: &[Param::Device, Param::MaxAge, Param::Fields, Param::Format, Param::Time],
        media: ROWS,
        example: Some(("/api/v1/latest?fields=alias,power_w,online", "what each device uses now")),
    },
    Route {
        path: "/api/v1/readings",
        endpoint: Endpoint::Readings,
        params: &[
            Param::Device,
            Param::Start,
            Param::End,
            Param::Order,
            Param::Fields,
            Param::Limit,
            Param::Cursor,
            Param::Offset,
            Param::Format,
            Param::Time,
        ],
        media: ROWS,
        example: Some((
            "/api/v1/readings?start=-1h&limit=10",
            "the newest readings; `next` is the cursor of the next page",
        )),
    },
    Route {
        path: "/api/v1/rollups",
        endpoint: Endpoint::Rollups,
        params: &[
            Param::Device,
            Param::Step,
            Param::Start,
            Param::End,
            Param::Order,
            Param::Fields,
            Param::Limit,
            Param::Cursor,
            Param::Format,
            Param::Time,
        ],
        media: ROWS,
        example: Some(("/api/v1/rollups?step=1h", "energy and power by the hour, the last day")),
    },
    Route {
        path: "/api/v1/summary",
        endpoint: Endpoint::Summary,
        params: &[Param::Device, Param::Window, Param::Fields, Param::Format, Param::Time],
        media: ROWS,
        example: Some(("/api/v1/summary?window=1h", "who used what in the last hour; or 24h, 7d, today, month")),
    },
    Route {
        path: "/api/v1/backup",
        endpoint: Endpoint::Backup,
        params: &[],
        media: &[Media::Bytes],
        example: Some((
            "/api/v1/backup",
            "everything that is stored, for `wattd restore`: better fetched by `wattd backup FILE`",
        )),
    },
    Route {
        path: HEALTH,
        endpoint: Endpoint::Health,
        params: &[],
        media: &[],
        example: Some((HEALTH, "alive? Always open")),
    },
    Route {
        path: "/ready",
        endpoint: Endpoint::Ready,
        params: &[],
        media: &[],
        example: Some(("/ready", "store open and first round of polls done?")),
    },
];

/// More lines of the landing list.
const MORE_EXAMPLES: &[(&str, &str)] = &[
    (
        "/api/v1/latest?device=ID&max_age=2s",
        "one device, asked anew if its reading is older (within poll.min_interval)",
    ),
    ("/api/v1/readings?device=ID&start=-7d&order=asc&format=csv", "a week of one device for a spreadsheet, streamed"),
    ("/api/v1/readings?start=2026-11-23&end=2026-11-24&format=ndjson", "one day, a JSON object to a line, streamed"),
    ("/api/v1/rollups?step=1d&start=-30d&fields=start,device,energy_wh&format=csv", "Wh of each day for a spreadsheet"),
    ("/api/v1/rollups?device=ID&step=1mo", "one device, the last twelve months"),
];

/// The route of a path, and what stands in it for `{id}`.
///
/// # Errors
/// 404 with the nearest path.
pub fn find(path: &str) -> Result<(&'static Route, &str), Problem> {
    for route in ROUTES {
        if let Some(prefix) = route.path.strip_suffix("{id}") {
            let rest = path.strip_prefix(prefix).filter(|rest| !rest.is_empty() && !rest.contains('/'));
            if let Some(rest) = rest {
                return Ok((route, rest));
            }
        } else if route.path == path {
            return Ok((route, ""));
        }
    }
    let known = || ROUTES.iter().map(|route| route.path);
    let trimmed = path.trim_end_matches('/');
    let same = known().find(|known| known.strip_prefix("/api/v1").is_some_and(|end| end == trimmed && !end.is_empty()));
    let hint = match same.or_else(|| nearest(trimmed, known())) {
        Some(near) => format!("did you mean {near}? /api/v1/ lists every path"),
        None => "/api/v1/ lists every path".to_owned(),
    };
    Err(Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {}", quoted(path)), hint))
}

/// The list of paths as curl lines. `host` is how the client called this server, checked.
#[must_use]
pub fn landing(host: Option<&str>, wants_token: bool) -> Response<Body> {
    let host = host.unwrap_or("localhost");
    let auth = if wants_token { " -H \"Authorization: Bearer $TOKEN\"" } else { "" };
    let mut text = format!("wattd {}\n", env!("CARGO_PKG_VERSION"));
    for (path, about) in ROUTES.iter().filter_map(|route| route.example.as_ref()).chain(MORE_EXAMPLES) {
        let _ = write!(text, "\n# {about}\ncurl -s{auth} 'http://{host}{path}'\n"); // a String takes everything
    }
    text.push_str("\nThe page for people: http://");
    text.push_str(host);
    text.push_str("/\n");
    whole(Media::Text, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_or_the_nearest_is_named() {
        assert_eq!(find("/api/v1/devices/Kettle%20a").unwrap().1, "Kettle%20a");
        assert_eq!(find("/api/v1/devices").unwrap().0.endpoint, Endpoint::Devices);
        for (path, near) in [
            ("/devices", "/api/v1/devices?"),
            ("/api/v1/latest/", "/api/v1/latest?"),
            ("/api/v1/reading", "/api/v1/readings?"),
            ("/helth", "/health?"),
        ] {
            let refused = find(path).unwrap_err();
            assert!(refused.hint.contains(near), "{path}: {}", refused.hint);
        }
        assert!(find("/api/v1/devices/a/b").is_err());
    }
}
