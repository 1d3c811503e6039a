//! Replies that are made while they are sent: rows in, chunks of bytes out.
//!
//! Promises that a stream holds one portion of rows and one chunk of bytes, however long it gets; that the first portion is
//! read before the reply begins, so that a store that cannot be read is said with a status; and that a stream that breaks
//! off later breaks the connection, so that half of it is never taken for the whole.

use bytes::Bytes;
use smol::future::yield_now;

use crate::http::reply::Body;
use crate::limits;
use crate::store::StoreError;

/// Where the rows of a stream come from.
pub trait Feed {
    /// One row.
    type Row;

    /// The next portion of rows, about [`limits::EXPORT_ROWS`] of them. None at the end.
    async fn next_rows(&mut self) -> Result<Option<Vec<Self::Row>>, StoreError>;

    /// Writes a row.
    fn write(&self, out: &mut Vec<u8>, row: &Self::Row);
}

/// The body of a stream that nobody is going to read.
pub fn none() -> Body {
    Body::Stream(Box::pin(smol::stream::empty()))
}

/// A body of `head` and all rows of `feed`.
///
/// # Errors
/// [`StoreError`] when the first rows cannot be read.
pub async fn start<F: Feed + 'static>(head: Vec<u8>, mut feed: F) -> Result<Body, StoreError> {
    let rows = feed.next_rows().await?;
    let more = rows.is_some();
    let stream = Stream { feed, rows: rows.unwrap_or_default().into_iter(), more, out: head };
    Ok(Body::Stream(Box::pin(smol::stream::unfold(stream, Stream::next))))
}

/// A stream on its way.
struct Stream<F: Feed> {
    feed: F,
    /// Rows read and not yet written.
    rows: std::vec::IntoIter<F::Row>,
    /// Whether there may be more after them.
    more: bool,
    /// Bytes to send next.
    out: Vec<u8>,
}

impl<F: Feed> Stream<F> {
    async fn next(mut self) -> Option<(Result<Bytes, StoreError>, Self)> {
        loop {
            while self.out.len() < limits::STREAM_CHUNK {
                let Some(row) = self.rows.next() else { break };
                self.feed.write(&mut self.out, &row);
            }
            if self.out.len() >= limits::STREAM_CHUNK || !self.more {
                let chunk = std::mem::take(&mut self.out);
                yield_now().await;
                return (!chunk.is_empty()).then(|| (Ok(chunk.into()), self));
            }
            match self.feed.next_rows().await {
                Ok(Some(rows)) => self.rows = rows.into_iter(),
                Ok(None) => self.more = false,
                Err(error) => {
                    log::error!("a stream of rows breaks off: {error}");
                    self.more = false;
                    return Some((Err(error), self));
                }
            }
        }
    }
}
