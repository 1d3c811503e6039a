//! The HTTP server: requests in, bytes out.
//!
//! Owns routes, who may ask ([`access`]), the reading of parameters ([`params`]), every encoding ([`rows`], [`page`]) and
//! connections ([`server`]). Promises that a request is answered or refused with a reason in bounded time and memory,
//! that errors after the request's head are JSON, and that nothing a client sent reaches a log or a page unescaped.
//! Read-only: nothing here changes a plug or a stored reading.
//!
//! [`App::handle`] is the whole of it without a socket; [`serve`] puts it on one.

pub mod access;
pub mod backup;
pub mod batch;
pub mod cache;
pub mod client;
pub mod devices;
pub mod drawing;
pub mod gzip;
pub mod history;
mod list;
pub mod live;
pub mod media;
pub mod metrics;
pub mod openapi;
pub mod page;
pub mod params;
mod plain;
pub mod readings;
pub mod reply;
pub mod rollups;
pub mod routes;
pub mod rows;
pub mod schema;
pub mod server;
pub mod stats;
mod stream;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use jiff::tz::TimeZone;

use crate::clock::{Clock, Now};
use crate::config::Discovery;
use crate::limits;
use crate::poll::fleet::Fleet;
use crate::poll::requests::Requests;
use crate::query::names::Names;
use crate::reading::Text;
use crate::stats::Stats;
use crate::store::Store;
use crate::tariff::Tariff;
use crate::units::UnixMillis;
use access::Access;
use cache::{Ask, Cache, Kept};
use live::Hub;
use media::Media;
use params::{Params, decode_path};
use reply::{Body, Problem};
use routes::{Endpoint, Route};

pub use server::{bind, serve};

/// Everyone known, and the versions of fleet and store that the names were made of.
type Named = Option<((u64, u64), Rc<Names>)>;

/// What requests are answered from.
#[derive(Clone)]
pub struct App {
    /// The readings.
    pub store: Rc<Store>,
    /// The plugs, now.
    pub fleet: Rc<RefCell<Fleet>>,
    /// The way to ask for newer values than those.
    pub requests: Requests,
    /// The time.
    pub clock: Rc<dyn Clock>,
    /// Who may ask.
    pub access: Access,
    /// The zone of dates in requests and of times on the page.
    pub zone: TimeZone,
    /// What energy costs.
    pub tariff: Rc<Tariff>,
    /// Where plugs are looked for, for a page that has none to show.
    pub discovery: Discovery,
    /// Whether the first round of polls is done.
    pub ready: Rc<Cell<bool>>,
    /// The most connections at a time.
    pub connections: usize,
    /// Replies that are kept.
    pub cache: Rc<Cache>,
    /// Names, and the versions of what they were made of.
    pub named: Rc<RefCell<Named>>,
    /// Who may compress a stream.
    pub gzip: gzip::Permits,
    /// How everything goes.
    pub stats: Rc<Stats>,
    /// What happens, for those who listen.
    pub live: Rc<Hub>,
}

impl App {
    /// An interface to these for this machine alone, in UTC, that is ready and reaches no plug: the parts that are otherwise
    /// are put in their places.
    #[must_use]
    pub fn local(store: Rc<Store>, fleet: Rc<RefCell<Fleet>>, clock: Rc<dyn Clock>) -> Self {
        Self {
            live: Rc::new(Hub::new(
                clock.clone(),
                store.stats().clone(),
                limits::event_places(limits::HTTP_CONNECTIONS),
            )),
            stats: store.stats().clone(),
            store,
            fleet,
            requests: Requests::unserved(),
            clock,
            access: Access { loopback: true, ..Access::default() },
            zone: TimeZone::UTC,
            tariff: Rc::default(),
            discovery: Discovery::default(),
            ready: Rc::new(Cell::new(true)),
            connections: limits::HTTP_CONNECTIONS,
            cache: Rc::default(),
            named: Rc::default(),
            gzip: gzip::Permits::default(),
        }
    }

    /// Everyone known now.
    #[must_use]
    pub fn names(&self) -> Rc<Names> {
        let fleet = self.fleet.borrow();
        let version = (fleet.version(), self.store.version(&[], UnixMillis::MAX).get());
        if let Some((_, names)) = self.named.borrow().as_ref().filter(|(known, _)| *known == version) {
            return names.clone();
        }
        let names = Rc::new(Names::of(&fleet, &self.store));
        self.named.replace(Some((version, names.clone())));
        names
    }

    /// The answer to a request whose head is `request`. Its body, if any, is not read: a request that has one is refused.
    ///
    /// A HEAD has the headers of its GET and no body.
    pub async fn handle(&self, request: &Parts) -> Response<Body> {
        self.handle_with(request, None).await
    }

    /// The same for a request with a body, which is read only where one belongs.
    pub async fn handle_with(&self, request: &Parts, body: Option<Incoming>) -> Response<Body> {
        let started = self.clock.elapsed();
        let mut response = match self.answer(request, body).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(),
        };
        self.note(request, response.status(), self.clock.elapsed().saturating_sub(started));
        let (length, unchanged) = (response.body().length(), response.status() == StatusCode::NOT_MODIFIED);
        let headers = response.headers_mut();
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
        if let Some(length) = length.filter(|_| !unchanged) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        if request.method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response
    }

    /// Notes how a request went. A path that is none is noted as one of those.
    fn note(&self, request: &Parts, status: StatusCode, took: Duration) {
        let route = routes::find(request.uri.path()).map_or("none", |(route, _)| route.path);
        self.stats.replied(route, status.as_u16(), took, || shown(request, status));
    }

    /// Lets go of what is only kept to be quicker.
    pub fn drop_caches(&self) {
        self.cache.clear();
        self.named.take();
    }

    async fn answer(&self, request: &Parts, body: Option<Incoming>) -> Result<Response<Body>, Problem> {
        let host = self.access.check_host(request)?;
        let path = request.uri.path();
        if path != routes::HEALTH {
            self.access.check_token(request)?;
        }
        let (route, rest) = routes::find(path)?;
        route.check_method(&request.method)?;
        if route.body.is_some() {
            Params::read(request.uri.query(), route.params())?;
            return batch::batch(self, request, body).await;
        }
        if has_body(request) {
            let message = "this request has a body; no path here takes one";
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_refused", message, "send it without"));
        }
        if route.endpoint == Endpoint::Backup {
            self.access.check_owner(request)?;
        }
        let params = Params::read(request.uri.query(), route.params())?;
        let media = media::choose(params.format()?, request, route.media)?;
        let ask = Ask::of(self, route, rest, &params, media)?;
        let now = Now::of(self.clock.as_ref());
        let fresh = cache::wants_fresh(request);
        if let Some((ask, kept)) =
            ask.as_ref().and_then(|ask| Some((ask, self.cache.find(route, ask, now.elapsed, fresh)?)))
        {
            let before = kept.size();
            let mut response = kept.send(request, now).await;
            if kept.size() != before {
                self.cache.keep(ask.clone(), &kept);
            }
            cache::tell(&mut response, true);
            return Ok(response);
        }
        let response = self.dispatch(route, rest, &params, media, request, host).await?;
        match Kept::of(response, ask.as_ref()) {
            Ok(kept) => {
                let kept = Rc::new(kept);
                let mut response = kept.send(request, Now::of(self.clock.as_ref())).await;
                if let Some(ask) = ask {
                    self.cache.keep(ask, &kept);
                    cache::tell(&mut response, false);
                }
                Ok(response)
            }
            Err(response) => Ok(self.compress(*response, media, request)),
        }
    }

    /// Compresses a stream of rows when the client likes that and not too many are on their way.
    fn compress(&self, mut response: Response<Body>, media: Media, request: &Parts) -> Response<Body> {
        if !matches!(media, Media::Ndjson | Media::Csv) {
            return response;
        }
        let Body::Stream(_) = response.body() else { return response };
        response.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
        if let Some(permit) = gzip::is_wanted(request).then(|| self.gzip.take()).flatten()
            && let Body::Stream(chunks) = std::mem::replace(response.body_mut(), Body::empty())
        {
            *response.body_mut() = Body::Stream(gzip::stream(chunks, permit));
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    async fn dispatch(
        &self,
        route: &Route,
        rest: &str,
        params: &Params,
        media: Media,
        request: &Parts,
        host: Option<&str>,
    ) -> Result<Response<Body>, Problem> {
        match route.endpoint {
            Endpoint::Page => page::overview(self, params).await,
            Endpoint::PlugPage => page::plug(self, params, &decode_path(rest)?).await,
            Endpoint::Chart => drawing::svg(self, params).await,
            Endpoint::Landing => Ok(routes::landing(host, self.access.wants_token())),
            Endpoint::Metrics => Ok(metrics::metrics(self)),
            Endpoint::Stats => Ok(stats::stats(self)),
            Endpoint::Health => Ok(devices::health(self)),
            Endpoint::Ready => devices::ready(self),
            Endpoint::Devices => Ok(devices::list(self)),
            Endpoint::Device => devices::one(self, &decode_path(rest)?),
            Endpoint::Latest => readings::latest(self, params, media).await,
            Endpoint::Readings => readings::readings(self, params, media, request.method == Method::HEAD).await,
            Endpoint::Rollups => rollups::rollups(self, params, media, request.method == Method::HEAD).await,
            Endpoint::Summary => rollups::summary(self, params, media).await,
            Endpoint::History => history::history(self, params, media, request.method == Method::HEAD).await,
            Endpoint::Events => live::sse::events(self, params, request, request.method == Method::HEAD),
            Endpoint::Socket => live::ws::agree(self, params, request),
            // It has a body, and was answered before.
            Endpoint::Batch => Err(Problem::method_not_allowed("POST")),
            Endpoint::OpenApi => Ok(openapi::openapi()),
            Endpoint::Backup => backup::backup(self, media, request.method == Method::HEAD).await,
        }
    }
}

/// A request as a log line shows it, cut, without anything that would mean something to a terminal.
fn shown(request: &Parts, status: StatusCode) -> String {
    let target = request.uri.path_and_query().map_or("", |target| target.as_str()).escape_debug().to_string();
    format!("{} {} {}", request.method.as_str().escape_debug(), Text::<200>::new(&target), status.as_u16())
}

/// Whether a request announces a body. An empty one is none.
fn has_body(request: &Parts) -> bool {
    let length = request.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    length || request.headers.contains_key(TRANSFER_ENCODING)
}
