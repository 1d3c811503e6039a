//! Readings over HTTP: the newest of each device, and pages or streams of stored ones.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use hyper::Response;
use smol::future::yield_now;

use crate::clock::Now;
use crate::http::App;
use crate::http::media::Media;
use crate::http::params::{Param, Params};
use crate::http::reply::{Body, Problem, typed, whole};
use crate::http::rows::{RowView, RowWriter, Shape};
use crate::http::stream;
use crate::limits;
use crate::query::field::Field;
use crate::query::latest::Latest;
use crate::query::names::Names;
use crate::query::readings::{NoWalk, Walk, Wanted};
use crate::reading::{DeviceId, Mac};
use crate::store::{Row, Store, StoreError};

/// Rows written between two turns of the executor: some milliseconds on the smallest machine.
pub(super) const ROWS_PER_TURN: usize = 500;

/// How rows are written in a media type.
pub(super) fn shape(media: Media) -> Shape {
    match media {
        Media::Ndjson => Shape::Line,
        Media::Csv => Shape::Cells,
        _ => Shape::Object,
    }
}

impl From<NoWalk> for Problem {
    fn from(why: NoWalk) -> Self {
        let (code, hint) = match why {
            NoWalk::Empty { .. } => ("empty_range", "start lies before end; end is not in the range"),
            NoWalk::OtherOrder => ("bad_cursor", "send `order` as it was in the first request"),
            NoWalk::OtherList => ("bad_cursor", "send path and `step` as they were in the first request"),
        };
        Self::bad(code, why.to_string(), hint)
    }
}

/// The newest reading of each device asked for, of all when none is named. One without readings is left out.
///
/// Answered from memory. Only with `max_age` may plugs be asked whose reading is older: through their schedule, once for
/// all who want it, and never more often than their minimum interval. The wait is bounded; then the newest reading there
/// is goes out with its true age, whatever was wanted.
///
/// # Errors
/// 400 and 404 for wrong parameters.
pub async fn latest(app: &App, params: &Params, media: Media) -> Result<Response<Body>, Problem> {
    let ids: Vec<_> = {
        let names = Names::of(&app.fleet.borrow(), &app.store);
        params.devices(&names)?.unwrap_or_else(|| names.metered().collect())
    };
    let writer = RowWriter { fields: params.fields(Field::OF_LATEST)?, time: params.time_form()?, shape: shape(media) };
    if let Some(max_age) = params.max_age()? {
        let older = older_than(app, &ids, max_age);
        if !older.is_empty() {
            app.requests.freshen(older, app.clock.as_ref()).await;
        }
    }
    let fleet = app.fleet.borrow();
    let now = Now::of(app.clock.as_ref());
    let mut out = writer.open("readings");
    let found = ids.into_iter().filter_map(|id| Latest::of(id, &fleet, &app.store, now));
    for (n, latest) in found.enumerate() {
        if n > 0 && writer.shape == Shape::Object {
            out.push(b',');
        }
        writer.write_row(&mut out, RowView { id: latest.id, reading: &latest.reading, latest: Some(&latest) });
    }
    if writer.shape == Shape::Object {
        out.extend(b"]}\n");
    }
    Ok(whole(media, out))
}

/// The plugs of which one of these devices has no reading as young as that.
fn older_than(app: &App, ids: &[DeviceId], max_age: Duration) -> BTreeSet<Mac> {
    let (fleet, now) = (app.fleet.borrow(), Now::of(app.clock.as_ref()));
    let is_older = |id: &&DeviceId| Latest::of(**id, &fleet, &app.store, now).is_none_or(|it| it.age > max_age);
    ids.iter().filter(is_older).map(|id| id.plug).filter(|mac| fleet.get(*mac).is_some()).collect()
}

/// A page of stored readings as JSON, or all of them as a stream of lines. `head_only` reads no row for a stream.
///
/// # Errors
/// 400 and 404 for wrong parameters, 503 when the store cannot be read.
pub async fn readings(app: &App, params: &Params, media: Media, head_only: bool) -> Result<Response<Body>, Problem> {
    let names = Names::of(&app.fleet.borrow(), &app.store);
    let ids = params.devices(&names)?.unwrap_or_else(|| names.metered().collect());
    let writer =
        RowWriter { fields: params.fields(Field::OF_READINGS)?, time: params.time_form()?, shape: shape(media) };
    let now = app.clock.wall();
    let (offset, cursor) = params.place()?;
    let wanted = Wanted {
        start: params.moment(Param::Start, now, &app.zone)?,
        end: params.moment(Param::End, now, &app.zone)?,
        order: params.order()?,
        cursor,
    };
    let paged = writer.shape == Shape::Object;
    let limit = params.limit(if paged { limits::PAGE_ROWS } else { usize::MAX })?;
    // An id without a number has no readings.
    let devices = ids.into_iter().filter_map(|id| app.store.number(id)).collect();
    let mut walk = Walk::new(devices, Field::stored_columns(&writer.fields), wanted, now)?;
    if paged {
        walk.skip(&app.store, offset).await?;
        let bytes = page(&app.store, &mut walk, limit.unwrap_or(limits::DEFAULT_ROWS), &writer).await?;
        return Ok(whole(media, bytes));
    }
    if head_only {
        return Ok(typed(media, stream::none()));
    }
    walk.skip(&app.store, offset).await?;
    let head = writer.open("readings");
    let left = limit.unwrap_or(usize::MAX);
    let feed = Feed { store: app.store.clone(), walk, writer, left, more: true };
    Ok(typed(media, stream::start(head, feed).await?))
}

async fn page(store: &Store, walk: &mut Walk, limit: usize, writer: &RowWriter) -> Result<Vec<u8>, StoreError> {
    let page = walk.page(store, limit).await?;
    let mut out = writer.open("readings");
    for (n, row) in page.rows.iter().enumerate() {
        if n > 0 {
            out.push(b',');
            if n % ROWS_PER_TURN == 0 {
                yield_now().await;
            }
        }
        write(store, writer, &mut out, row);
    }
    match walk.cursor().filter(|_| page.more) {
        Some(cursor) => out.extend(format!("],\"next\":\"{cursor}\"}}\n").as_bytes()),
        None => out.extend(b"],\"next\":null}\n"),
    }
    Ok(out)
}

fn write(store: &Store, writer: &RowWriter, out: &mut Vec<u8>, row: &Row) {
    if let Some(id) = store.id(row.device) {
        writer.write_row(out, RowView { id, reading: &row.reading, latest: None });
    }
}

/// The rows of a walk, up to a limit, as a stream takes them.
struct Feed {
    store: Rc<Store>,
    walk: Walk,
    writer: RowWriter,
    /// Rows that may still be read.
    left: usize,
    /// Whether the walk goes on.
    more: bool,
}

impl stream::Feed for Feed {
    type Row = Row;

    async fn next_rows(&mut self) -> Result<Option<Vec<Row>>, StoreError> {
        if !self.more || self.left == 0 {
            return Ok(None);
        }
        let page = self.walk.page(&self.store, self.left.min(limits::EXPORT_ROWS)).await?;
        self.left = self.left.saturating_sub(page.rows.len());
        self.more = page.more;
        Ok(Some(page.rows))
    }

    fn write(&self, out: &mut Vec<u8>, row: &Row) {
        write(&self.store, &self.writer, out, row);
    }
}
