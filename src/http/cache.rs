//! Replies that are kept to be sent again.
//!
//! A reply is kept under its canonical request (path, media type, ids of the devices, the other parameters in one order)
//! together with the version of what it was made of: the data of its devices in its range, and the picture of the fleet
//! where it shows that. It is sent again only while that version is the same, so it is never stale. What also depends on
//! the time of asking is kept for [`limits::CACHE_MOVING`] at most, or until it would say something else.
//!
//! Every whole reply has an `ETag`: a hash of its bytes, so that it means the same in every run of the program. The ages
//! in `latest` are written in when it is sent and are not in the hash, so its tag is a weak one. The compressed form is
//! made once and kept beside the plain one.
//!
//! Bounded in bytes: when it is full, what has not been asked for longest goes.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_ENCODING, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, VARY};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};

use crate::clock::Now;
use crate::http::App;
use crate::http::gzip;
use crate::http::media::Media;
use crate::http::params::{Param, Params};
use crate::http::plain::Plain;
use crate::http::reply::{Body, Problem};
use crate::http::routes::{Basis, Endpoint, Route};
use crate::limits;
use crate::query::latest::Since;
use crate::query::time::Moment;
use crate::rollup::periods;
use crate::store::{DataVersion, Order};
use crate::units::UnixMillis;

/// Whether a reply was kept.
const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// What a handler tells of a reply whose bytes lack the ages. It travels as an extension of the response.
#[derive(Clone, Debug, Default)]
pub struct Ages {
    /// Where each age belongs in the bytes, in order, and from when it counts.
    pub slots: Vec<(usize, Since)>,
    /// When the reply will say something else although nothing has come, by elapsed time.
    pub until: Option<Duration>,
}

/// What a request asks for, and which state of it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    key: String,
    version: (u64, u64),
    /// When a reply made now is too old, by elapsed time.
    until: Option<Duration>,
}

impl Ask {
    /// None for a reply that is not kept.
    ///
    /// # Errors
    /// 400 and 404 for wrong parameters.
    pub fn of(app: &App, route: &Route, rest: &str, params: &Params, media: Media) -> Result<Option<Self>, Problem> {
        let fleet = app.fleet.borrow().version();
        let soon = || Some(app.clock.elapsed().saturating_add(limits::CACHE_MOVING));
        let mut key = format!("{} {rest} {media:?}", route.path);
        let (version, until) = match route.basis {
            Basis::Moment => return Ok(None),
            Basis::Program => ((0, 0), None),
            Basis::Fleet => ((fleet, app.store.version(&[], UnixMillis::MAX).get()), None),
            // Plugs may be asked.
            Basis::Now if params.has(Param::MaxAge) => return Ok(None),
            Basis::Now => {
                let data = version(app, params, UnixMillis::MAX, &mut key)?;
                // The newest readings say themselves when they will say something else; a window moves.
                ((fleet, data.get()), if route.endpoint == Endpoint::Latest { None } else { soon() })
            }
            // A stream has no bound.
            Basis::Range if media != Media::Json => return Ok(None),
            Basis::Range => {
                let (end, fixed) = reach(app, route, params)?;
                let data = version(app, params, end, &mut key)?;
                ((0, data.get()), if fixed { None } else { soon() })
            }
        };
        for param in Param::ALL.iter().filter(|param| !matches!(param, Param::Device | Param::Format)) {
            if let Some(text) = params.one(*param) {
                let _ = write!(key, " {}={text}", param.name()); // a String takes everything
            }
        }
        Ok(Some(Self { key, version, until }))
    }
}

/// The state before `end` of the devices asked for; they are a part of the key when they are named.
fn version(app: &App, params: &Params, end: UnixMillis, key: &mut String) -> Result<DataVersion, Problem> {
    if params.has(Param::Device) {
        let ids = params.devices(&app.names())?.unwrap_or_default();
        for id in &ids {
            let _ = write!(key, " {id}"); // a String takes everything
        }
        return Ok(app.store.version(&ids, end));
    }
    // Of everything up to now: what changes anything changes this.
    let all = if end < UnixMillis::MAX { app.names().metered().collect() } else { Vec::new() };
    Ok(app.store.version(&all, end))
}

/// Before which time everything lies that the reply shows, and whether the same request shows the same range later on.
fn reach(app: &App, route: &Route, params: &Params) -> Result<(UnixMillis, bool), Problem> {
    let now = app.clock.wall();
    let (wanted, _) = params.walk(now, &app.zone)?;
    let is_fixed = |moment: Option<Moment>| moment.is_some_and(|moment| !moment.relative);
    let (mut end, mut fixed) = match wanted.end.filter(|end| !end.relative) {
        Some(end) => (end.time, wanted.start.is_none() || is_fixed(wanted.start)),
        None => (UnixMillis::MAX, false),
    };
    // The pages of one walk have the range of the first one.
    if let Some(cursor) = wanted.cursor {
        fixed = true;
        end = match cursor.order {
            Order::Ascending => cursor.far.min(end),
            Order::Descending => cursor.position.time.plus(1),
        };
    }
    if route.endpoint == Endpoint::Rollups && end < UnixMillis::MAX {
        // A period that begins in the range is shown to its end.
        let last = periods(params.step()?, &app.zone, end.plus(-1), end).next();
        end = last.map_or(end, |period| period.end);
    }
    Ok((end, fixed && end <= now))
}

/// A reply as it is kept.
pub struct Kept {
    headers: HeaderMap,
    /// Without the ages.
    bytes: Bytes,
    ages: Vec<(usize, Since)>,
    /// What both forms' tags have in common, and each as it is sent, the compressed one second.
    tag: String,
    tags: [HeaderValue; 2],
    version: (u64, u64),
    until: Option<Duration>,
    /// The plain form with its ages, as of the millisecond that it was made for.
    whole: RefCell<Option<((i64, u128), Bytes)>>,
    /// The compressed form, likewise.
    compressed: RefCell<Option<((i64, u128), Bytes)>>,
}

impl Kept {
    /// A response that can be kept: a whole one of status 200. Any other comes back.
    ///
    /// # Errors
    /// The response.
    pub fn of(mut response: Response<Body>, ask: Option<&Ask>) -> Result<Self, Box<Response<Body>>> {
        if response.status() != StatusCode::OK {
            return Err(Box::new(response));
        }
        let bytes = match response.body_mut() {
            Body::Whole(bytes) => bytes.take().unwrap_or_default(),
            Body::Stream(_) | Body::Socket(_) => return Err(Box::new(response)),
        };
        let ages = response.extensions_mut().remove::<Ages>().unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let asked = ask.and_then(|ask| ask.until);
        let tag = format!("{:016x}", hasher.finish());
        let weak = if ages.slots.is_empty() { "" } else { "W/" };
        let tags = ["", "-gzip"].map(|form| {
            HeaderValue::try_from(format!("{weak}\"{tag}{form}\"")).unwrap_or(HeaderValue::from_static("\"\"")) // hex
        });
        let mut headers = std::mem::take(response.headers_mut());
        headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Ok(Self {
            headers,
            bytes,
            tag,
            tags,
            version: ask.map_or((0, 0), |ask| ask.version),
            until: asked.into_iter().chain(ages.until).min(),
            ages: ages.slots,
            whole: RefCell::default(),
            compressed: RefCell::default(),
        })
    }

    /// The reply to `request`: 304 when the client has it, compressed when it likes that.
    pub async fn send(&self, request: &Parts, now: Now) -> Response<Body> {
        let zip = self.bytes.len() >= limits::GZIP_LEAST && gzip::is_wanted(request);
        let mut response = Response::new(Body::empty());
        *response.headers_mut() = self.headers.clone();
        let headers = response.headers_mut();
        let [plain, compressed] = &self.tags;
        headers.insert(ETAG, if zip { compressed } else { plain }.clone());
        if self.is_known_to(request) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
        let bytes = if zip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            self.compressed(now).await
        } else {
            self.whole(now)
        };
        *response.body_mut() = Body::Whole(Some(bytes));
        response
    }

    /// Whether `If-None-Match` names this reply, in whichever form.
    fn is_known_to(&self, request: &Parts) -> bool {
        let lines = request.headers.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).map(str::trim).any(|known| {
            let opaque = known.strip_prefix("W/").unwrap_or(known).trim_matches('"');
            known == "*" || opaque.strip_suffix("-gzip").unwrap_or(opaque) == self.tag
        })
    }

    /// All ages are the same within a millisecond.
    fn moment(&self, now: Now) -> (i64, u128) {
        if self.ages.is_empty() { (0, 0) } else { (now.wall.get(), now.elapsed.as_millis()) }
    }

    fn whole(&self, now: Now) -> Bytes {
        if self.ages.is_empty() {
            return self.bytes.clone();
        }
        let moment = self.moment(now);
        if let Some((_, whole)) = self.whole.borrow().as_ref().filter(|(made, _)| *made == moment) {
            return whole.clone();
        }
        let mut whole = Vec::with_capacity(self.bytes.len() + 8 * self.ages.len());
        let mut from = 0;
        for (at, since) in &self.ages {
            whole.extend(self.bytes.get(from..*at).unwrap_or_default());
            since.age(now).as_millis().put(&mut whole);
            from = *at;
        }
        whole.extend(self.bytes.get(from..).unwrap_or_default());
        let whole = Bytes::from(whole);
        self.whole.replace(Some((moment, whole.clone())));
        whole
    }

    async fn compressed(&self, now: Now) -> Bytes {
        let moment = self.moment(now);
        if let Some((_, compressed)) = self.compressed.borrow().as_ref().filter(|(made, _)| *made == moment) {
            return compressed.clone();
        }
        let compressed = gzip::compress(&self.whole(now)).await;
        self.compressed.replace(Some((moment, compressed.clone())));
        compressed
    }

    /// Bytes of memory, about.
    #[must_use]
    pub fn size(&self) -> usize {
        let form = |form: &RefCell<Option<(_, Bytes)>>| {
            form.borrow().as_ref().map_or(0, |(_, bytes): &(_, Bytes)| bytes.len())
        };
        limits::CACHE_ENTRY + self.bytes.len() + 40 * self.ages.len() + form(&self.whole) + form(&self.compressed)
    }
}

/// How often replies of one route were kept ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Sent again.
    pub hits: u64,
    /// Made.
    pub misses: u64,
}

/// Kept replies.
pub struct Cache {
    capacity: Cell<usize>,
    inner: RefCell<Inner>,
    counts: RefCell<BTreeMap<&'static str, Hits>>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<Rc<str>, Entry>,
    /// Keys by when they were used last.
    order: BTreeMap<u64, Rc<str>>,
    uses: u64,
    bytes: usize,
}

struct Entry {
    kept: Rc<Kept>,
    used: u64,
    bytes: usize,
}

impl Default for Cache {
    fn default() -> Self {
        Self::new(limits::CACHE_BYTES)
    }
}

impl Cache {
    /// A cache of at most so many bytes; none with 0.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity: Cell::new(capacity), inner: RefCell::default(), counts: RefCell::default() }
    }

    /// The kept reply to `ask`, when it is as it would be made now. Counts.
    pub fn find(&self, route: &Route, ask: &Ask, elapsed: Duration, fresh: bool) -> Option<Rc<Kept>> {
        let kept = self
            .inner
            .borrow_mut()
            .find(&ask.key)
            .filter(|kept| kept.version == ask.version && kept.until.is_none_or(|until| elapsed < until) && !fresh);
        let mut counts = self.counts.borrow_mut();
        let count = counts.entry(route.path).or_default();
        *(if kept.is_some() { &mut count.hits } else { &mut count.misses }) += 1;
        kept
    }

    /// Keeps a reply, or what it has grown to.
    pub fn keep(&self, ask: Ask, kept: &Rc<Kept>) {
        let (capacity, size) = (self.capacity.get(), kept.size().saturating_add(2 * ask.key.len()));
        let mut inner = self.inner.borrow_mut();
        inner.remove(&ask.key);
        // One reply does not push out all others.
        if size > capacity / 4 {
            return;
        }
        inner.insert(ask.key.into(), kept.clone(), size);
        while inner.bytes > capacity {
            let Some(oldest) = inner.order.first_key_value().map(|(_, key)| key.clone()) else { break };
            inner.remove(&oldest);
        }
    }

    /// Lets all of it go, for want of memory.
    pub fn clear(&self) {
        self.inner.take();
    }

    /// Bytes in use, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.inner.borrow().bytes
    }

    /// Replies kept.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.inner.borrow().entries.len()
    }

    /// The counts of each route that was asked since the start, by path.
    #[must_use]
    pub fn counts(&self) -> Vec<(&'static str, Hits)> {
        self.counts.borrow().iter().map(|(path, hits)| (*path, *hits)).collect()
    }
}

impl Inner {
    fn find(&mut self, key: &str) -> Option<Rc<Kept>> {
        let entry = self.entries.get_mut(key)?;
        self.uses += 1;
        if let Some(key) = self.order.remove(&entry.used) {
            self.order.insert(self.uses, key);
        }
        entry.used = self.uses;
        Some(entry.kept.clone())
    }

    fn insert(&mut self, key: Rc<str>, kept: Rc<Kept>, bytes: usize) {
        self.uses += 1;
        self.bytes += bytes;
        self.order.insert(self.uses, key.clone());
        self.entries.insert(key, Entry { kept, used: self.uses, bytes });
    }

    fn remove(&mut self, key: &str) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }
}

/// Says in `response` whether it was kept.
pub fn tell(response: &mut Response<Body>, hit: bool) {
    response.headers_mut().insert(X_CACHE, HeaderValue::from_static(if hit { "HIT" } else { "MISS" }));
}

/// Whether the client wants a reply that is made for it.
pub fn wants_fresh(request: &Parts) -> bool {
    let lines = request.headers.get_all(CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).any(|word| matches!(word, "no-cache" | "no-store"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::reply::whole;
    use crate::http::routes::ROUTES;

    fn kept(bytes: usize, ask: &Ask) -> Rc<Kept> {
        Rc::new(Kept::of(whole(Media::Json, vec![b'x'; bytes]), Some(ask)).ok().unwrap())
    }

    fn ask(key: &str, version: u64) -> Ask {
        Ask { key: key.to_owned(), version: (0, version), until: Some(Duration::from_secs(5)) }
    }

    #[test]
    fn what_was_not_asked_for_longest_goes_and_bytes_are_bounded() {
        let cache = Cache::new(40 * 1024);
        let find = |key: &str| cache.find(&ROUTES[0], &ask(key, 1), Duration::ZERO, false).is_some();
        for n in 0..100 {
            let asked = ask(&n.to_string(), 1);
            cache.keep(asked.clone(), &kept(1_000, &asked));
            assert!(cache.bytes() <= 40 * 1024);
            assert!(n < 3 || find("3"), "{n}");
        }
        assert!(find("99") && !find("4"));
        assert!(cache.entries() > 20 && cache.entries() < 41);
        let large = ask("large", 1);
        cache.keep(large.clone(), &kept(20 * 1024, &large));
        assert!(!find("large") && find("99"), "one reply does not push out the others");
        cache.clear();
        assert_eq!((cache.bytes(), cache.entries()), (0, 0));
    }

    #[test]
    fn another_version_and_an_old_one_are_made_anew() {
        let cache = Cache::new(1 << 20);
        let asked = ask("a", 1);
        cache.keep(asked.clone(), &kept(10, &asked));
        let find = |version, at, fresh| cache.find(&ROUTES[0], &ask("a", version), Duration::from_secs(at), fresh);
        assert!(find(1, 4, false).is_some());
        assert!(find(2, 4, false).is_none() && find(1, 5, false).is_none() && find(1, 4, true).is_none());
        assert_eq!(cache.counts(), [(ROUTES[0].path, Hits { hits: 1, misses: 3 })]);
        let none = Cache::new(0);
        none.keep(asked.clone(), &kept(10, &asked));
        assert_eq!(none.entries(), 0);
    }

    #[test]
    fn ages_are_written_in_when_sent() {
        let mut response = whole(Media::Json, "{\"a\":,\"b\":}");
        let slots = vec![(5, Since::Elapsed(Duration::from_secs(1))), (10, Since::Wall(UnixMillis::new(500)))];
        response.extensions_mut().insert(Ages { slots, until: None });
        let kept = Kept::of(response, None).ok().unwrap();
        let at = |wall, secs| Now { wall: UnixMillis::new(wall), elapsed: Duration::from_secs(secs) };
        assert_eq!(kept.whole(at(700, 3)), "{\"a\":2000,\"b\":200}");
        assert_eq!(kept.whole(at(400, 4)), "{\"a\":3000,\"b\":0}");
        for (wall, secs) in [(700, 3), (700, 3), (701, 3), (900, 9)] {
            let (plain, small) = (kept.whole(at(wall, secs)), smol::block_on(kept.compressed(at(wall, secs))));
            assert_eq!(gzip::tests::unzip(&small), plain, "as of the sending in this form too");
        }
    }
}
