//! What happened, over HTTP: pages or streams of events.

use hyper::Response;

use crate::http::App;
use crate::http::list::{self, List, shape};
use crate::http::media::Media;
use crate::http::params::Params;
use crate::http::reply::{Body, Problem};
use crate::http::rows::RowWriter;
use crate::limits;
use crate::query::cursor::Cursor;
use crate::query::field::EventField;
use crate::query::history::{Row, Walk};
use crate::store::{Store, StoreError};

/// A page of events as JSON, or all of them as a stream of lines. `head_only` reads no row for a stream.
///
/// # Errors
/// 400 and 404 for wrong parameters, 503 when the store cannot be read.
pub async fn history(app: &App, params: &Params, media: Media, head_only: bool) -> Result<Response<Body>, Problem> {
    let names = app.names();
    let writer = RowWriter { fields: params.fields(EventField::ALL)?, time: params.time_form()?, shape: shape(media) };
    let now = app.clock.wall();
    let (wanted, offset) = params.walk(now, &app.zone)?;
    // An id without a number has no events.
    let numbers = |ids: Vec<_>| ids.into_iter().filter_map(|id| app.store.number(id)).collect();
    let walk = Walk::new(params.plugs(&names)?.map(numbers), wanted, now)?;
    let events = Events { walk, writer, over: false };
    list::send(&app.store, events, params, media, (limits::DEFAULT_ROWS, offset), head_only).await
}

/// Events as a list.
struct Events {
    walk: Walk,
    writer: RowWriter<EventField>,
    over: bool,
}

impl List for Events {
    type Row = Row;

    async fn page(&mut self, store: &Store, limit: usize) -> Result<(Vec<Row>, Option<Cursor>), StoreError> {
        let page = self.walk.page(store, limit).await?;
        self.over = !page.more;
        let rows = page.events.into_iter().map(|event| Row::of(event, store)).collect();
        Ok((rows, self.walk.cursor().filter(|_| page.more)))
    }

    async fn portion(&mut self, store: &Store, about: usize) -> Result<Option<Vec<Row>>, StoreError> {
        if self.over {
            return Ok(None);
        }
        Ok(Some(self.page(store, about).await?.0))
    }

    fn open(&self) -> Vec<u8> {
        self.writer.open("events")
    }

    fn write(&self, _store: &Store, out: &mut Vec<u8>, row: &Row) {
        self.writer.write_row(out, row);
    }
}
