//! Lists that are walked through: a page of them as JSON, or all of them as a stream of lines.
//!
//! The one place for what readings and rollups have in common. A page does the work of its rows; a stream holds a portion
//! of them.

use std::rc::Rc;

use hyper::Response;
use smol::future::yield_now;

use crate::http::media::Media;
use crate::http::params::Params;
use crate::http::reply::{Body, Problem, typed, whole};
use crate::http::rows::Shape;
use crate::http::stream;
use crate::limits;
use crate::query::cursor::Cursor;
use crate::store::{Store, StoreError};

/// Rows written between two turns of the executor: some milliseconds on the smallest machine.
const ROWS_PER_TURN: usize = 500;

/// How rows are written in a media type.
pub fn shape(media: Media) -> Shape {
    match media {
        Media::Ndjson => Shape::Line,
        Media::Csv => Shape::Cells,
        _ => Shape::Object,
    }
}

/// A list on its way to a client.
pub trait List {
    /// One row.
    type Row;

    /// The next rows, at most so many, and where to go on after them.
    async fn page(&mut self, store: &Store, limit: usize) -> Result<(Vec<Self::Row>, Option<Cursor>), StoreError>;

    /// The next portion of rows, about so many. None at the end.
    async fn portion(&mut self, store: &Store, about: usize) -> Result<Option<Vec<Self::Row>>, StoreError>;

    /// What comes before the first row.
    fn open(&self) -> Vec<u8>;

    /// Writes a row.
    fn write(&self, store: &Store, out: &mut Vec<u8>, row: &Self::Row);
}

/// A page of `list` as JSON, of `usual` rows unless the request says otherwise, or all of it in other media. `offset` rows
/// are passed over. `head_only` reads no row for a stream.
///
/// # Errors
/// 400 for a wrong limit, 503 when the store cannot be read.
pub async fn send<L: List + 'static>(
    store: &Rc<Store>,
    mut list: L,
    params: &Params,
    media: Media,
    (usual, offset): (usize, usize),
    head_only: bool,
) -> Result<Response<Body>, Problem> {
    let paged = shape(media) == Shape::Object;
    let limit = params.limit(if paged { limits::PAGE_ROWS } else { usize::MAX })?;
    if head_only && !paged {
        return Ok(typed(media, stream::none()));
    }
    if offset > 0 {
        list.page(store, offset).await?;
    }
    if !paged {
        let head = list.open();
        let feed = Feed { store: store.clone(), list, left: limit.unwrap_or(usize::MAX) };
        return Ok(typed(media, stream::start(head, feed).await?));
    }
    let (rows, next) = list.page(store, limit.unwrap_or(usual)).await?;
    let mut out = list.open();
    write_all(&mut out, Shape::Object, &rows, |out, row| list.write(store, out, row)).await;
    match next {
        Some(cursor) => out.extend(format!("],\"next\":\"{cursor}\"}}\n").as_bytes()),
        None => out.extend(b"],\"next\":null}\n"),
    }
    Ok(whole(media, out))
}

/// Writes `rows`, with what stands between them, and gives others a turn now and then.
pub async fn write_all<R>(out: &mut Vec<u8>, shape: Shape, rows: &[R], mut write: impl FnMut(&mut Vec<u8>, &R)) {
    for (n, row) in rows.iter().enumerate() {
        if n > 0 {
            if shape == Shape::Object {
                out.push(b',');
            }
            if n % ROWS_PER_TURN == 0 {
                yield_now().await;
            }
        }
        write(out, row);
    }
}

/// The rows of a list, up to a limit, as a stream takes them.
struct Feed<L> {
    store: Rc<Store>,
    list: L,
    /// Rows that may still be sent.
    left: usize,
}

impl<L: List> stream::Feed for Feed<L> {
    type Row = L::Row;

    async fn next_rows(&mut self) -> Result<Option<Vec<L::Row>>, StoreError> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut rows = self.list.portion(&self.store, self.left.min(limits::EXPORT_ROWS)).await?;
        if let Some(rows) = &mut rows {
            rows.truncate(self.left);
            self.left = self.left.saturating_sub(rows.len());
        }
        Ok(rows)
    }

    fn write(&self, out: &mut Vec<u8>, row: &L::Row) {
        self.list.write(&self.store, out, row);
    }
}
