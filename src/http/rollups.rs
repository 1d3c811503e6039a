//! Rollups over HTTP: pages or streams of buckets, and one summary of each device.

use hyper::Response;

use crate::clock::Now;
use crate::http::App;
use crate::http::list::{self, List, shape};
use crate::http::media::Media;
use crate::http::params::Params;
use crate::http::reply::{Body, Problem, whole};
use crate::http::rows::{RowWriter, Shape};
use crate::limits;
use crate::query::cost;
use crate::query::cursor::Cursor;
use crate::query::field::BucketField;
use crate::query::rollups::{Row, Walk};
use crate::query::summary::{Pricing, Summary, Who};
use crate::store::{Store, StoreError};

/// A page of buckets as JSON, or all of them as a stream of lines. `head_only` reads no row for a stream.
///
/// # Errors
/// 400 and 404 for wrong parameters, 503 when the store cannot be read.
pub async fn rollups(app: &App, params: &Params, media: Media, head_only: bool) -> Result<Response<Body>, Problem> {
    let names = app.names();
    let ids = params.devices(&names)?.unwrap_or_else(|| names.metered().collect());
    let fields = params.fields(BucketField::OF_ROLLUPS)?;
    let writer = RowWriter { fields, time: params.time_form()?, shape: shape(media) };
    let now = app.clock.wall();
    let (wanted, offset) = params.walk(now, &app.zone)?;
    // An id without a number has no buckets.
    let devices = ids.into_iter().filter_map(|id| Some((app.store.number(id)?, id))).collect();
    let walk = Walk::new(devices, params.step()?, wanted, (&app.zone, app.tariff.clone()), now)?;
    let head = open(&writer, "buckets", &currency(app));
    list::send(&app.store, Buckets { walk, writer, head }, params, media, (limits::DEFAULT_BUCKETS, offset), head_only)
        .await
}

/// Buckets as a list.
struct Buckets {
    walk: Walk,
    writer: RowWriter<BucketField>,
    head: Vec<u8>,
}

impl List for Buckets {
    type Row = Row;

    async fn page(&mut self, store: &Store, limit: usize) -> Result<(Vec<Row>, Option<Cursor>), StoreError> {
        let page = self.walk.page(store, limit).await?;
        Ok((page.rows, page.next))
    }

    async fn portion(&mut self, store: &Store, about: usize) -> Result<Option<Vec<Row>>, StoreError> {
        self.walk.next_rows(store, about).await
    }

    fn open(&self) -> Vec<u8> {
        self.head.clone()
    }

    fn write(&self, _: &Store, out: &mut Vec<u8>, row: &Row) {
        self.writer.write_row(out, row);
    }
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
        let names = app.names();
        let ids = params.devices(&names)?.unwrap_or_else(|| names.metered().collect());
        ids.into_iter().map(|id| Who::of(id, &fleet, &app.store, Now::of(app.clock.as_ref()))).collect()
    };
    let summaries = Summary::of(&app.store, who, window, Pricing { tariff: &app.tariff, zone: &app.zone }).await?;
    let charge = cost::standing_charge(&app.tariff, &app.zone, window);
    let charge = charge.map(|charge| format!("\"standing_charge\":{charge},")).unwrap_or_default();
    let mut out = open(&writer, "devices", &(currency(app) + &charge));
    list::write_all(&mut out, writer.shape, &summaries, |out, row| writer.write_row(out, row)).await;
    if writer.shape == Shape::Object {
        out.extend(b"]}\n");
    }
    Ok(whole(media, out))
}

/// What costs are in, as a member of an object that has others; nothing without a tariff.
fn currency(app: &App) -> String {
    app.tariff.currency.map(|currency| format!("\"currency\":\"{currency}\",")).unwrap_or_default()
}

/// What comes before the first row; of an object, `members` too.
fn open(writer: &RowWriter<BucketField>, name: &str, members: &str) -> Vec<u8> {
    match writer.shape {
        Shape::Object => format!("{{{members}\"{name}\":[").into_bytes(),
        _ => writer.open(name),
    }
}
