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
pub mod client;
pub mod devices;
mod list;
pub mod media;
pub mod openapi;
pub mod page;
pub mod params;
pub mod readings;
pub mod reply;
pub mod rollups;
pub mod routes;
pub mod rows;
pub mod schema;
pub mod server;
mod stream;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING, VARY, X_CONTENT_TYPE_OPTIONS};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use jiff::tz::TimeZone;

use crate::clock::Clock;
use crate::config::Discovery;
use crate::poll::fleet::Fleet;
use crate::poll::requests::Requests;
use crate::store::Store;
use crate::tariff::Tariff;
use access::Access;
use params::{Params, decode_path};
use reply::{Body, Problem};
use routes::{Endpoint, Route};

pub use server::serve;

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
}

impl App {
    /// An interface to these for this machine alone, in UTC, that is ready and reaches no plug: the parts that are otherwise
    /// are put in their places.
    #[must_use]
    pub fn local(store: Rc<Store>, fleet: Rc<RefCell<Fleet>>, clock: Rc<dyn Clock>) -> Self {
        Self {
            store,
            fleet,
            requests: Requests::unserved(),
            clock,
            access: Access { loopback: true, ..Access::default() },
            zone: TimeZone::UTC,
            tariff: Rc::default(),
            discovery: Discovery::default(),
            ready: Rc::new(Cell::new(true)),
        }
    }

    /// The answer to a request whose head is `request`. Its body, if any, is not read: a request that has one is refused.
    ///
    /// A HEAD has the headers of its GET and no body.
    pub async fn handle(&self, request: &Parts) -> Response<Body> {
        let mut response = match self.answer(request).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(),
        };
        let length = response.body().length();
        let headers = response.headers_mut();
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        if request.method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response
    }

    async fn answer(&self, request: &Parts) -> Result<Response<Body>, Problem> {
        let host = self.access.check_host(request)?;
        let path = request.uri.path();
        if path != routes::HEALTH {
            self.access.check_token(request)?;
        }
        if request.method != Method::GET && request.method != Method::HEAD {
            return Err(Problem::method_not_allowed());
        }
        if has_body(request) {
            let message = "this request has a body; no path here takes one";
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_refused", message, "send it without"));
        }
        let (route, rest) = routes::find(path)?;
        if route.endpoint == Endpoint::Backup {
            self.access.check_owner(request)?;
        }
        let params = Params::read(request.uri.query(), route.params())?;
        let media = media::choose(params.format()?, request, route.media)?;
        let mut response = self.dispatch(route, rest, &params, media, request, host).await?;
        if route.media.len() > 1 {
            response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
        }
        Ok(response)
    }

    async fn dispatch(
        &self,
        route: &Route,
        rest: &str,
        params: &Params,
        media: media::Media,
        request: &Parts,
        host: Option<&str>,
    ) -> Result<Response<Body>, Problem> {
        match route.endpoint {
            Endpoint::Page => Ok(page::page(self)),
            Endpoint::Style => Ok(page::style()),
            Endpoint::Landing => Ok(routes::landing(host, self.access.wants_token())),
            Endpoint::Health => Ok(devices::health(self)),
            Endpoint::Ready => devices::ready(self),
            Endpoint::Devices => Ok(devices::list(self)),
            Endpoint::Device => devices::one(self, &decode_path(rest)?),
            Endpoint::Latest => readings::latest(self, params, media).await,
            Endpoint::Readings => readings::readings(self, params, media, request.method == Method::HEAD).await,
            Endpoint::Rollups => rollups::rollups(self, params, media, request.method == Method::HEAD).await,
            Endpoint::Summary => rollups::summary(self, params, media).await,
            Endpoint::OpenApi => Ok(openapi::openapi()),
            Endpoint::Backup => backup::backup(self, media, request.method == Method::HEAD).await,
        }
    }
}

/// Whether a request announces a body. An empty one is none.
fn has_body(request: &Parts) -> bool {
    let length = request.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    length || request.headers.contains_key(TRANSFER_ENCODING)
}
