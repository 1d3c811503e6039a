//! Every path: what it takes, what it sends, what it is for.

use std::fmt::Write;

use hyper::{Response, StatusCode};

use crate::http::media::Media;
use crate::http::params::Param;
use crate::http::reply::{Body, Problem, quoted, whole};
use crate::http::schema::Schema;
use crate::http::{batch, devices, stats};
use crate::limits;
use crate::nearest::nearest;
use crate::query::field::{BucketField, EventField, Field, Told, tell};

/// What answers a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The page for people.
    Page,
    /// The page of one plug.
    PlugPage,
    /// A chart as a drawing.
    Chart,
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
    /// The contract.
    OpenApi,
    /// Several of the others in one call.
    Batch,
    /// What happened.
    History,
    /// What happens, as Server-Sent Events.
    Events,
    /// What happens, over a WebSocket.
    Socket,
    /// What Prometheus scrapes.
    Metrics,
    /// The agent about itself.
    Stats,
}

/// What a reply is made of, and so for how long it may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Of this very moment: it is not kept.
    Moment,
    /// Of the program.
    Program,
    /// Of the picture of the plugs.
    Fleet,
    /// Of that and of the data of the devices asked for, up to now.
    Now,
    /// Of the data of the devices asked for, in the range asked for.
    Range,
}

/// How a path is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET, and HEAD.
    Get,
    /// POST.
    Post,
}

/// What a path sends when all is well.
#[derive(Clone, Copy, Debug)]
pub enum Reply {
    /// JSON of this form.
    Json(Schema),
    /// Rows of columns, as JSON in a list of that name, with a cursor where the list has pages.
    Rows {
        /// The list's name.
        list: &'static str,
        /// The columns.
        columns: fn() -> Vec<Told>,
        /// Whether the list has pages.
        next: bool,
    },
    /// An OpenAPI document.
    OpenApi,
    /// A WebSocket.
    Socket,
    /// Something else, of this media type.
    Other(Media),
}

/// A path and its rules.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The path. One that ends in `{id}` takes one more segment there.
    pub path: &'static str,
    /// What answers it.
    pub endpoint: Endpoint,
    /// How it is asked.
    pub method: Method,
    /// What it is for, in one line.
    pub about: &'static str,
    /// The parameters it takes, in groups.
    pub params: &'static [&'static [Param]],
    /// What it can send, the usual first; empty when it sends its one thing whatever `Accept` says.
    pub media: &'static [Media],
    /// What it sends.
    pub reply: Reply,
    /// The JSON that it is sent, when it is asked with some.
    pub body: Option<Schema>,
    /// What that is made of.
    pub basis: Basis,
    /// Examples and what they are for, for the landing list.
    pub examples: &'static [(&'static str, &'static str)],
}

impl Route {
    const USUAL: Self = Self {
        path: "",
        endpoint: Endpoint::Landing,
        method: Method::Get,
        about: "",
        params: &[],
        media: &[],
        reply: Reply::Other(Media::Text),
        body: None,
        basis: Basis::Moment,
        examples: &[],
    };

    /// Whether it is asked by GET and can send JSON as a whole.
    #[must_use]
    pub fn sends_json(&self) -> bool {
        self.method == Method::Get && matches!(self.reply, Reply::Json(_) | Reply::Rows { .. } | Reply::OpenApi)
    }

    /// The parameters it takes.
    pub fn params(&self) -> impl Iterator<Item = Param> + Clone + use<> {
        self.params.iter().copied().flatten().copied()
    }
}

/// The path that is open to everybody.
pub const HEALTH: &str = "/health";

const ROWS: &[Media] = &[Media::Json, Media::Ndjson, Media::Csv];
/// Of everything that is made of rows.
const LOOKS: &[Param] = &[Param::Fields, Param::Format, Param::Time];
/// Of a list that is walked through page by page.
const PAGES: &[Param] = &[Param::Start, Param::End, Param::Order, Param::Limit, Param::Cursor, Param::Offset];

/// Every route.
pub const ROUTES: &[Route] = &[
    Route {
        path: "/",
        endpoint: Endpoint::Page,
        about: "The page for people",
        params: &[&[Param::Range]],
        media: &[Media::Html],
        reply: Reply::Other(Media::Html),
        ..Route::USUAL
    },
    Route {
        path: "/plug/{id}",
        endpoint: Endpoint::PlugPage,
        about: "The page of one plug or outlet",
        params: &[&[Param::Range, Param::Outlets]],
        media: &[Media::Html],
        reply: Reply::Other(Media::Html),
        ..Route::USUAL
    },
    Route { path: "/api/v1/", about: "Every path as a line to copy", ..Route::USUAL },
    Route { path: "/api/v1", about: "The same", ..Route::USUAL },
    Route {
        path: "/api/v1/devices",
        endpoint: Endpoint::Devices,
        about: "Every plug",
        media: &[Media::Json],
        reply: Reply::Json(devices::LIST),
        basis: Basis::Fleet,
        examples: &[("/api/v1/devices", "every plug: model, address, online, last error")],
        ..Route::USUAL
    },
    Route {
        path: "/api/v1/devices/{id}",
        endpoint: Endpoint::Device,
        about: "One plug",
        media: &[Media::Json],
        reply: Reply::Json(devices::DEVICE),
        basis: Basis::Fleet,
        examples: &[("/api/v1/devices/ID", "one plug, by id or alias")],
        ..Route::USUAL
    },
    Route {
        path: "/api/v1/latest",
        endpoint: Endpoint::Latest,
        about: "The newest reading of each device",
        params: &[&[Param::Device, Param::MaxAge], LOOKS],
        media: ROWS,
        reply: Reply::Rows { list: "readings", columns: || tell(Field::OF_LATEST), next: false },
        basis: Basis::Now,
        examples: &[
            ("/api/v1/latest?fields=alias,power_w,online", "what each device uses now"),
            (
                "/api/v1/latest?device=ID&max_age=2s",
                "one device, asked anew if its reading is older (within poll.min_interval)",
            ),
        ],
        ..Route::USUAL
    },
    Route {
        path: "/api/v1/readings",
        endpoint: Endpoint::Readings,
        about: "Stored readings, newest first",
        params: &[&[Param::Device], PAGES, LOOKS],
        media: ROWS,
        reply: Reply::Rows { list: "readings", columns: || tell(Field::OF_READINGS), next: true },
        basis: Basis::Range,
        examples: &[
            ("/api/v1/readings?start=-1h&limit=10", "the newest readings; `next` is the cursor of the next page"),
            (
                "/api/v1/readings?device=ID&start=-7d&order=asc&format=csv",
                "a week of one device for a spreadsheet, streamed",
            ),
            (
                "/api/v1/readings?start=2026-11-23&end=2026-11-24&format=ndjson",
                "one day, a JSON object to a line, streamed",
            ),
        ],
        ..Route::USUAL
    },
    Route {
        path: "/api/v1/rollups",
        endpoint: Endpoint::Rollups,
        about: "Readings rolled up into quarter hours, hours, days or months, oldest first",
        params: &[&[Param::Device, Param::Step], PAGES, LOOKS],
        media: ROWS,
        reply: Reply::Rows { list: "buckets", columns: || tell(BucketField::OF_ROLLUPS), next: true },
        basis: Basis::Range,
        examples: &[
            ("/api/v1/rollups?step=1h", "energy and power by the hour, the last day"),
            (
                "/api/v1/rollups?step=1d&start=-30d&fields=start,device,energy_wh&format=csv",
                "Wh of each day for a spreadsheet",
            ),
            ("/api/v1/rollups?device=ID&step=1mo", "one device, the last twelve months"),
        ],
        ..Route::USUAL
    },
    Route {
        path: "/api/v1/summary",
        endpoint: Endpoint::Summary,
        about: "What each device used in a window up to now",
        params: &[&[Param::Device, Param::Window], LOOKS],
        media: ROWS,
        reply: Reply::Rows { list: "devices", columns: || tell(BucketField::OF_SUMMARY), next: false },
        basis: Basis::Now,
        examples: &[("/api/v1/summary?window=1h", "who used what in the last hour; or 24h, 7d, today, month")],
        ..Route::USUAL
    },
    Route {
        path: "/api/v1/chart.svg",
        endpoint: Endpoint::Chart,
        about: "Power or energy as a drawing, for dashboards and e-mails",
        params: &[&[Param::Device, Param::Range, Param::Kind, Param::Step]],
        media: &[Media::Svg],
        reply: Reply::Other(Media::Svg),
        basis: Basis::Now,
        examples: &[("/api/v1/chart.svg?device=ID&range=7d&kind=energy", "a chart; kind=power (the usual) or energy")],
        ..Route::USUAL
    },
    Route {
        path: "/api/v1/history",
        endpoint: Endpoint::History,
        about: "What happened: switches, gaps, restarts, changes of plugs and of the clock; newest first",
        params: &[&[Param::Device], PAGES, LOOKS],
        media: ROWS,
        reply: Reply::Rows { list: "events", columns: || tell(EventField::ALL), next: true },
        examples: &[(
            "/api/v1/history?start=-7d",
            "what happened: switches, gaps, restarts, new firmware, clock steps",
        )],
        ..Route::USUAL
    },
    Route {
        path: "/api/v1/backup",
        endpoint: Endpoint::Backup,
        about: "Everything that is stored",
        media: &[Media::Bytes],
        reply: Reply::Other(Media::Bytes),
        examples: &[(
            "/api/v1/backup",
            "everything that is stored, for `wattd restore`: better fetched by `wattd backup FILE`",
        )],
        ..Route::USUAL
    },
    Route {
        path: "/api/v1/batch",
        endpoint: Endpoint::Batch,
        method: Method::Post,
        about: "Several of the paths that send JSON in one call",
        reply: Reply::Json(batch::ANSWERS),
        body: Some(batch::ASKED),
        ..Route::USUAL
    },
    Route {
        path: "/api/v1/events",
        endpoint: Endpoint::Events,
        about: "Readings and comings and goings of plugs as they happen: Server-Sent Events",
        params: &[&[Param::Device, Param::LastEventId]],
        media: &[Media::EventStream],
        reply: Reply::Other(Media::EventStream),
        examples: &[("/api/v1/events", "readings as they come, for as long as you listen; better with curl -N")],
        ..Route::USUAL
    },
    Route {
        path: "/api/v1/ws",
        endpoint: Endpoint::Socket,
        about: "The same over a WebSocket, as {\"type\":\"batch\",\"messages\":[...]}",
        params: &[&[Param::Device, Param::LastEventId]],
        reply: Reply::Socket,
        ..Route::USUAL
    },
    Route {
        path: "/api/v1/stats",
        endpoint: Endpoint::Stats,
        about: "The agent about itself",
        media: &[Media::Json],
        reply: Reply::Json(stats::STATS),
        examples: &[("/api/v1/stats", "the agent about itself: how long things take, queues, memory, bytes written")],
        ..Route::USUAL
    },
    Route {
        path: "/metrics",
        endpoint: Endpoint::Metrics,
        about: "Plugs and agent for Prometheus",
        reply: Reply::Other(Media::Exposition),
        examples: &[("/metrics", "for Prometheus")],
        ..Route::USUAL
    },
    Route {
        path: HEALTH,
        endpoint: Endpoint::Health,
        about: "Alive, and how much is stored; open to everybody",
        reply: Reply::Json(devices::HEALTH),
        examples: &[(HEALTH, "alive? Always open")],
        ..Route::USUAL
    },
    Route {
        path: "/ready",
        endpoint: Endpoint::Ready,
        about: "The store is open and the first round of polls is done",
        reply: Reply::Json(devices::READY),
        examples: &[("/ready", "store open and first round of polls done?")],
        ..Route::USUAL
    },
    Route {
        path: "/api/v1/openapi.json",
        endpoint: Endpoint::OpenApi,
        about: "This contract, for programs",
        media: &[Media::Json],
        reply: Reply::OpenApi,
        basis: Basis::Program,
        examples: &[("/api/v1/openapi.json", "all of this for programs: OpenAPI 3.1")],
        ..Route::USUAL
    },
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

/// The list of paths as curl lines, from the same table. `host` is how the client called this server, checked.
#[must_use]
pub fn landing(host: Option<&str>, wants_token: bool) -> Response<Body> {
    let host = host.unwrap_or("localhost");
    let auth = if wants_token { " -H \"Authorization: Bearer $TOKEN\"" } else { "" };
    let mut text = format!("wattd {}\n", env!("CARGO_PKG_VERSION"));
    for (path, about) in ROUTES.iter().flat_map(|route| route.examples) {
        let _ = write!(text, "\n# {about}\ncurl -s{auth} 'http://{host}{path}'\n"); // a String takes everything
    }
    let _ = write!(
        text,
        "\n# up to {} of them in one call, each answered with its own status\n\
         curl -s{auth} --json '[{{\"id\": 1, \"path\": \"/api/v1/latest\"}}, {{\"id\": 2, \"path\": \"/api/v1/summary\"}}]' \
         'http://{host}/api/v1/batch'\n",
        limits::BATCH_PATHS
    ); // a String takes everything
    text.push_str("\nThe page for people: http://");
    text.push_str(host);
    text.push_str("/\n");
    whole(Media::Text, text)
}

impl Route {
    /// Whether it answers a request of this method.
    ///
    /// # Errors
    /// 405 with the methods that it answers.
    pub fn check_method(&self, method: &hyper::Method) -> Result<(), Problem> {
        let (allowed, fits) = match self.method {
            Method::Get => ("GET, HEAD", method == hyper::Method::GET || method == hyper::Method::HEAD),
            Method::Post => ("POST", method == hyper::Method::POST),
        };
        if fits { Ok(()) } else { Err(Problem::method_not_allowed(allowed)) }
    }
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
