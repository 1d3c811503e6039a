//! Everything that is stored, as one stream, while recording goes on.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Response, StatusCode};
use smol::stream;

use crate::clock::{Clock, within};
use crate::http::App;
use crate::http::media::Media;
use crate::http::reply::{Body, Problem, typed};
use crate::limits;
use crate::store::{Pieces, StoreError};

/// A backup of what is stored now. `head_only` reads nothing.
///
/// # Errors
/// 409 while another is being made, 503 when there is no thread for it.
pub async fn backup(app: &App, media: Media, head_only: bool) -> Result<Response<Body>, Problem> {
    if head_only {
        return Ok(typed(media, Body::Stream(Box::pin(stream::empty()))));
    }
    // What waits in memory is a part of what is stored, when the disk takes it.
    if let Err(error) = app.store.commit(app.clock.wall()).await {
        log::warn!("a backup is made without the readings that wait in memory: {error}");
    }
    let pieces = app.store.back_up().map_err(|error| match error {
        StoreError::BackupRunning => {
            let hint = "one is made at a time; come again when it is done";
            Problem::new(StatusCode::CONFLICT, "backup_running", error.to_string(), hint)
        }
        other => other.into(),
    })?;
    let until = app.clock.elapsed().saturating_add(limits::BACKUP_TIME);
    let sending = Sending { pieces: Some(pieces), clock: app.clock.clone(), until };
    Ok(typed(media, Body::Stream(Box::pin(stream::unfold(sending, Sending::next)))))
}

struct Sending {
    /// None after an error.
    pieces: Option<Pieces>,
    clock: Rc<dyn Clock>,
    until: Duration,
}

impl Sending {
    async fn next(mut self) -> Option<(Result<Bytes, StoreError>, Self)> {
        let pieces = self.pieces.take()?;
        let is_late = self.clock.elapsed() >= self.until;
        let piece = if is_late { None } else { within(self.clock.as_ref(), self.until, pieces.recv()).await };
        match piece {
            Some(Ok(Ok(piece))) => {
                self.pieces = Some(pieces);
                Some((Ok(piece.into()), self))
            }
            Some(Err(_)) => None, // the sender is gone: that was all
            Some(Ok(Err(error))) => self.broken(error),
            None => self.broken(StoreError::BackupTooSlow),
        }
    }

    fn broken(self, error: StoreError) -> Option<(Result<Bytes, StoreError>, Self)> {
        log::error!("a backup is not sent to its end: {error}");
        Some((Err(error), self))
    }
}
