//! Live events as bytes: Server-Sent Events, and messages of a WebSocket. The rows in both are those of `/api/v1/readings`.

use std::io::Write;

use bytes::Bytes;
use serde::Serialize;

use crate::http::rows::{RowView, RowWriter, Shape, TimeForm};
use crate::query::field::Field;
use crate::reading::{DeviceId, Reading};
use crate::store::replay::Mark;
use crate::units::UnixMillis;

/// How a client hears of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Server-Sent Events.
    Stream,
    /// Text messages of a WebSocket.
    Socket,
}

/// A plug that answers, or does not.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceEvent {
    /// When.
    pub time: String,
    /// Its id.
    pub device: String,
    /// Its name.
    pub alias: String,
    /// Whether it answers. None before it was asked.
    pub online: Option<bool>,
}

impl DeviceEvent {
    /// The event of a plug at `time`.
    #[must_use]
    pub fn new(time: UnixMillis, device: DeviceId, alias: &str, online: Option<bool>) -> Self {
        Self { time: time.to_string(), device: device.to_string(), alias: alias.to_owned(), online }
    }
}

#[derive(Serialize)]
struct Reset<'a> {
    reason: &'a str,
    hint: &'a str,
}

impl Form {
    /// Readings together. `mark` is the place after the last of them; none when the place cannot be told.
    #[must_use]
    pub fn batch<'a>(self, rows: impl Iterator<Item = (DeviceId, &'a Reading)>, mark: Option<Mark>) -> Bytes {
        let mut out = Vec::new();
        let head = match (self, mark) {
            (Self::Stream, Some(mark)) => format!("id: {mark}\nevent: reading\ndata: {{\"readings\":["),
            (Self::Stream, None) => "event: reading\ndata: {\"readings\":[".to_owned(),
            (Self::Socket, Some(mark)) => format!("{{\"type\":\"batch\",\"id\":\"{mark}\",\"messages\":["),
            (Self::Socket, None) => "{\"type\":\"batch\",\"id\":null,\"messages\":[".to_owned(),
        };
        out.extend(head.into_bytes());
        let writer = RowWriter { fields: Field::OF_READINGS.to_vec(), time: TimeForm::Rfc3339, shape: Shape::Object };
        for (n, (id, reading)) in rows.enumerate() {
            if n > 0 {
                out.push(b',');
            }
            writer.write_row(&mut out, RowView { id, reading, latest: None });
        }
        out.extend(self.end(b"]}"));
        out.into()
    }

    /// What became of plugs: one message, or one event for each.
    #[must_use]
    pub fn devices(self, events: &[DeviceEvent]) -> Bytes {
        self.several("device", events)
    }

    /// What the client missed cannot be told.
    #[must_use]
    pub fn reset(self, reason: &str) -> Bytes {
        self.several(
            "reset",
            &[Reset { reason, hint: "fetch what was missed from /api/v1/readings; the stream goes on from now" }],
        )
    }

    fn several(self, name: &str, values: &[impl Serialize]) -> Bytes {
        let mut out = Vec::new();
        // A Vec takes everything, and these values are JSON.
        for (n, value) in values.iter().enumerate() {
            let _ = match (self, n) {
                (Self::Stream, _) => write!(out, "event: {name}\ndata: "),
                (Self::Socket, 0) => write!(out, "{{\"type\":\"{name}\",\"messages\":["),
                (Self::Socket, _) => write!(out, ","),
            };
            let _ = serde_json::to_writer(&mut out, value);
            if self == Self::Stream {
                out.extend(b"\n\n");
            }
        }
        if self == Self::Socket && !values.is_empty() {
            out.extend(b"]}");
        }
        out.into()
    }

    /// The end of an object, and of what carries it.
    fn end(self, close: &[u8]) -> Vec<u8> {
        match self {
            Self::Stream => [close, b"\n\n"].concat(),
            Self::Socket => close.to_vec(),
        }
    }
}
