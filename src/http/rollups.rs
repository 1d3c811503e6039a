//! Rollups over HTTP: pages or streams of buckets, and one summary of each device.

use std::rc::Rc;

use hyper::Response;
use smol::future::yield_now;

use crate::clock::Now;
use crate::http::App;
use crate::http::media::Media;
use crate::http::params::{Param, Params};
use crate::http::readings::{ROWS_PER_TURN, shape};
use crate::http::reply::{Body, Problem, typed, whole};
use crate::http::rows::{RowWriter, Shape};
use crate::http::stream;
use crate::limits;
use crate::query::field::BucketField;
use crate::query::names::Names;
use crate::query::rollups::{Row, Walk, Wanted};
use crate::query::summary::{Summary, Who};
use crate::store::{Store, StoreError};

/// A page of buckets as JSON, or all of them as a stream of lines. `head_only` reads no row for a stream.
///
/// # Errors
/// 400 and 404 for wrong parameters, 503 when the store cannot be read.
pub async fn rollups(app: &App, params: &Params, media: Media, head_only: bool) -> Result<Response<Body>, Problem> {
    let names = Names::of(&app.fleet.borrow(), &app.store);
    let ids = params.devices(&names)?.unwrap_or_else(|| names.metered().collect());
    let fields = params.fields(BucketField::OF_ROLLUPS)?;
    let writer = RowWriter { fields, time: params.time_form()?, shape: shape(media) };
    let now = app.clock.wall();
    let (_, cursor) = params.place()?;
    let wanted = Wanted {
        step: params.step()?,
        start: params.moment(Param::Start, now, &app.zone)?,
        end: params.moment(Param::End, now, &app.zone)?,
        order: params.order()?,
        cursor,
    };
    let paged = writer.shape == Shape::Object;
    let limit = params.limit(if paged { limits::PAGE_ROWS } else { usize::MAX })?;
    // An id without a number has no buckets.
    let devices = ids.into_iter().filter_map(|id| Some((app.store.number(id)?, id))).collect();
    let walk = Walk::new(devices, wanted, &app.zone, now)?;
    if paged {
        let page = walk.page(&app.store, limit.unwrap_or(limits::DEFAULT_BUCKETS)).await?;
        let mut out = write_list(&writer, "buckets", &page.rows).await;
        match page.next {
            Some(cursor) => out.extend(format!("],\"next\":\"{cursor}\"}}\n").as_bytes()),
            None => out.extend(b"],\"next\":null}\n"),
        }
        return Ok(whole(media, out));
    }
    if head_only {
        return Ok(typed(media, stream::none()));
    }
    let head = writer.open("buckets");
    let feed = Feed { store: app.store.clone(), walk, writer, left: limit.unwrap_or(usize::MAX) };
    Ok(typed(media, stream::start(head, feed).await?))
}

/// What each device used in a window up to now.
///
/// # Errors
/// 400 and 404 for wrong parameters, 503 when the store cannot be read.
pub async fn summary(app: &App, params: &Params, media: Media) -> Result<Response<Body>, Problem> {
    let fields = params.fields(BucketField::OF_SUMMARY)?;
    let writer = RowWriter { fields, time: params.time_form()?, shape: shape(media) };
    let now = app.clock.wall();
    let window = params.window()?.span(&app.zone, now);
    let who = {
        let fleet = app.fleet.borrow();
        let names = Names::of(&fleet, &app.store);
        let ids = params.devices(&names)?.unwrap_or_else(|| names.metered().collect());
        ids.into_iter().map(|id| Who::of(id, &fleet, &app.store, Now::of(app.clock.as_ref()))).collect()
    };
    let summaries = Summary::of(&app.store, who, window).await?;
    let mut out = write_list(&writer, "devices", &summaries).await;
    if writer.shape == Shape::Object {
        out.extend(b"]}\n");
    }
    Ok(whole(media, out))
}

/// The reply's beginning and all `rows`.
async fn write_list<R>(writer: &RowWriter<BucketField>, name: &str, rows: &[R]) -> Vec<u8>
where
    for<'a> &'a R: crate::http::rows::Cells<BucketField>,
{
    let mut out = writer.open(name);
    for (n, row) in rows.iter().enumerate() {
        if n > 0 {
            if writer.shape == Shape::Object {
                out.push(b',');
            }
            if n % ROWS_PER_TURN == 0 {
                yield_now().await;
            }
        }
        writer.write_row(&mut out, row);
    }
    out
}

/// The rows of a walk, up to a limit, as a stream takes them.
struct Feed {
    store: Rc<Store>,
    walk: Walk,
    writer: RowWriter<BucketField>,
    /// Rows that may still be sent.
    left: usize,
}

impl stream::Feed for Feed {
    type Row = Row;

    async fn next_rows(&mut self) -> Result<Option<Vec<Row>>, StoreError> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut rows = self.walk.next_rows(&self.store, self.left.min(limits::EXPORT_ROWS)).await?;
        if let Some(rows) = &mut rows {
            rows.truncate(self.left);
            self.left = self.left.saturating_sub(rows.len());
        }
        Ok(rows)
    }

    fn write(&self, out: &mut Vec<u8>, row: &Row) {
        self.writer.write_row(out, row);
    }
}
