//! Every bound of the program that is not the user's to set, each with its reason.
//!
//! Owns numbers only. A module that waits, buffers or believes a foreign length takes its bound from here.

use std::time::Duration;

// ---- plugs ----

/// The longest XOR payload believed. Real replies stay below 16 KiB; the length is checked before memory is taken.
pub const XOR_PAYLOAD: usize = 64 * 1024;
/// The longest UDP datagram read.
pub const DATAGRAM: usize = 64 * 1024;
/// The most hosts one discovery round believes: replies come from anyone on the network.
pub const DISCOVERED_HOSTS: usize = 512;
/// The most plugs one agent watches. One thread at 10 s has CPU for several times as many.
pub const PLUGS: usize = 1_024;
/// How long a discovery round listens, and how often it asks in that time: datagrams get lost.
pub const DISCOVERY_ROUND: Duration = Duration::from_secs(3);
/// Probes sent to each target in one discovery round.
pub const DISCOVERY_PROBES: u32 = 3;
/// The longest one poll may take with all its exchanges, a strip's outlets and a login included.
pub const POLL_BUDGET: Duration = Duration::from_secs(15);

// ---- back-off ----

/// The first pause after a failure.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(5);
/// The longest pause between tries of a plug that does not answer.
pub const BACKOFF_LAST: Duration = Duration::from_secs(300);
/// Polls missed in a row before a plug counts as offline: one lost datagram or one busy moment is not an outage.
pub const MISSES_UNTIL_OFFLINE: u32 = 2;

// ---- store ----

/// redb's page cache. Measured: 1 MiB costs 2.3 MB of memory over a whole scan of a 100 MB file, 16 MiB costs 18 MB.
pub const STORE_CACHE: usize = 1024 * 1024;
/// Readings held in memory while the store cannot take them (24 bytes each in the packed form, more while in use).
/// 20 plugs at 10 s fill this in nine hours; then the oldest go, and are counted.
pub const PENDING_READINGS: usize = 65_536;
/// Readings in one batch: a batch is decoded as a whole, and must not hold the executor.
pub const BATCH_READINGS: usize = 16_384;
/// The longest encoded batch believed when it is read back.
pub const BATCH_BYTES: usize = 1024 * 1024;
/// Rows in one page of a scan.
pub const PAGE_ROWS: usize = 10_000;

// ---- HTTP ----

/// Open connections. 1,000 idle ones cost 14.5 MB, measured.
pub const HTTP_CONNECTIONS: usize = 64;
/// Bytes of a request's head.
pub const HTTP_HEAD: usize = 16 * 1024;
/// Headers of a request.
pub const HTTP_HEADERS: usize = 64;
/// How long a client may take to send a request's head, and how long an idle connection is kept.
pub const HTTP_HEAD_TIME: Duration = Duration::from_secs(30);
/// How long a reply may take to be made and sent, exports apart.
pub const HTTP_REPLY_TIME: Duration = Duration::from_secs(30);
/// How long a client of a streamed export may stall before it is cut off.
pub const HTTP_STALL_TIME: Duration = Duration::from_secs(30);
/// Rows in a page unless the request says otherwise.
pub const DEFAULT_ROWS: usize = 100;
/// Devices named in one request.
pub const REQUEST_DEVICES: usize = 256;
/// The largest `offset`: deeper pages are what cursors are for.
pub const OFFSET: usize = 10_000;
/// Bytes of a chunk of a streamed reply.
pub const STREAM_CHUNK: usize = 16 * 1024;

// ---- run ----

/// How long the last commit may take when the agent is told to stop. systemd's default patience is 90 s.
pub const STOP_TIME: Duration = Duration::from_secs(60);
