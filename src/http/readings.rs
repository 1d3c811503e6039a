//! Readings over HTTP: the newest of each device, and pages or streams of stored ones.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use hyper::Response;

use crate::clock::Now;
use crate::http::App;
use crate::http::cache::Ages;
use crate::http::list::{self, List, shape};
use crate::http::media::Media;
use crate::http::params::Params;
use crate::http::reply::{Body, Problem, whole};
use crate::http::rows::{self, Cells, RowView, RowWriter, Shape};
use crate::limits;
use crate::query::cursor::Cursor;
use crate::query::field::Field;
use crate::query::latest::{Latest, Since};
use crate::query::readings::{NoWalk, Walk};
use crate::reading::{DeviceId, Mac};
use crate::store::{Row, Store, StoreError};

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
        let names = app.names();
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
    let mut ages = Ages::default();
    let found = ids.into_iter().filter_map(|id| Latest::of(id, &fleet, &app.store, now));
    for (n, latest) in found.enumerate() {
        if n > 0 && writer.shape == Shape::Object {
            out.push(b',');
        }
        let view = RowView { id: latest.id, reading: &latest.reading, latest: Some(&latest) };
        let age_at = Cell::new(None);
        writer.write_row(&mut out, Ageless { view, age_at: &age_at });
        ages.slots.extend(age_at.get().map(|at| (at, latest.since)));
        // One that is live will not be if nothing comes; an age by the wall clock moves when that is set.
        let live = latest.online.then(|| now.elapsed.saturating_add(latest.live_for));
        let by_wall = matches!(latest.since, Since::Wall(_)).then(|| now.elapsed.saturating_add(limits::CACHE_MOVING));
        ages.until = ages.until.into_iter().chain(live).chain(by_wall).min();
    }
    if writer.shape == Shape::Object {
        out.extend(b"]}\n");
    }
    let mut response = whole(media, out);
    response.extensions_mut().insert(ages);
    Ok(response)
}

/// A row of which the age is left out, and the place where it belongs.
struct Ageless<'a> {
    view: RowView<'a>,
    age_at: &'a Cell<Option<usize>>,
}

impl Cells<Field> for Ageless<'_> {
    fn write(&self, column: Field, cell: &mut rows::Cell<'_>) {
        match column {
            Field::Age => self.age_at.set(Some(cell.position())),
            other => self.view.write(other, cell),
        }
    }
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
    let names = app.names();
    let ids = params.devices(&names)?.unwrap_or_else(|| names.metered().collect());
    let writer =
        RowWriter { fields: params.fields(Field::OF_READINGS)?, time: params.time_form()?, shape: shape(media) };
    let now = app.clock.wall();
    let (wanted, offset) = params.walk(now, &app.zone)?;
    // An id without a number has no readings.
    let devices = ids.into_iter().filter_map(|id| app.store.number(id)).collect();
    let walk = Walk::new(devices, Field::stored_columns(&writer.fields), wanted, now)?;
    list::send(
        &app.store,
        Stored { walk, writer, over: false },
        params,
        media,
        (limits::DEFAULT_ROWS, offset),
        head_only,
    )
    .await
}

/// Stored readings as a list.
struct Stored {
    walk: Walk,
    writer: RowWriter,
    over: bool,
}

impl List for Stored {
    type Row = Row;

    async fn page(&mut self, store: &Store, limit: usize) -> Result<(Vec<Row>, Option<Cursor>), StoreError> {
        let page = self.walk.page(store, limit).await?;
        self.over = !page.more;
        Ok((page.rows, self.walk.cursor()))
    }

    async fn portion(&mut self, store: &Store, about: usize) -> Result<Option<Vec<Row>>, StoreError> {
        if self.over {
            return Ok(None);
        }
        Ok(Some(self.page(store, about).await?.0))
    }

    fn open(&self) -> Vec<u8> {
        self.writer.open("readings")
    }

    fn write(&self, store: &Store, out: &mut Vec<u8>, row: &Row) {
        if let Some(id) = store.id(row.device) {
            self.writer.write_row(out, RowView { id, reading: &row.reading, latest: None });
        }
    }
}
