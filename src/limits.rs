//! Every bound of the program that is not the user's to set, each with its reason.
//!
//! Owns numbers only. A module that waits, buffers or believes a foreign length takes its bound from here.

use std::time::Duration;

// ---- config ----

/// Bytes of the configuration file. A file for the most plugs that are watched has a tenth of this.
pub const CONFIG_FILE: usize = 1024 * 1024;
/// Items in one list of the configuration: discovery targets, host names.
pub const CONFIG_LIST: usize = 64;
/// Bytes of one text of the configuration: a path (Linux allows no longer one), a URL, a list given by a flag.
pub const CONFIG_TEXT: usize = 4_096;

// ---- plugs ----

/// The longest XOR payload believed. Real replies stay below 16 KiB; the length is checked before memory is taken.
pub const XOR_PAYLOAD: usize = 64 * 1024;
/// The longest body of a plug's HTTP reply. Real ones stay below 16 KiB.
pub const HTTP_PLUG_BODY: usize = 64 * 1024;
/// The longest head of a plug's HTTP reply. Real ones have some 200 bytes.
pub const HTTP_PLUG_HEAD: usize = 8 * 1024;
/// The longest session cookie believed. Real ones have 45 bytes with name and timeout.
pub const COOKIE: usize = 256;
/// PBKDF2 rounds that a plug may ask for. Real ones ask for 3,000, a tenth of a second on the smallest Pi.
pub const PBKDF2_ITERATIONS: u32 = 20_000;
/// The longest salt of a plug believed. Real ones have 16 bytes.
pub const TPAP_SALT: usize = 64;
/// Logins within one poll, after a plug has forgotten its session. Some forget it right after a login, once or twice.
pub const LOGINS_A_POLL: u32 = 3;
/// Time between two logins of one poll.
pub const LOGIN_SPACING: Duration = Duration::from_secs(1);
/// Requests of one login at most. The longest has three.
pub const LOGIN_STEPS: u32 = 8;
/// How long a session is used whose plug does not say how long it lasts.
pub const SESSION_TIME: Duration = Duration::from_secs(86_400);
/// The pause before a new connection to a plug that has closed the one before: some (P100) close after every reply and
/// refuse for a moment.
pub const RECONNECT_PAUSE: Duration = Duration::from_millis(250);
/// How long a plug that has locked itself after wrong passwords is left alone: it locks for half an hour.
pub const LOCKED_OUT: Duration = Duration::from_secs(1_800);
/// The longest UDP datagram read.
pub const DATAGRAM: usize = 64 * 1024;
/// The most hosts one discovery round believes: replies come from anyone on the network.
pub const DISCOVERED_HOSTS: usize = 512;
/// Plugs watched at once that were only heard of by datagram and have never answered a poll: anyone can send datagrams.
pub const STRANGERS: usize = 64;
/// Polls that such a plug may miss before it is forgotten until it is heard of again.
pub const STRANGER_MISSES: u32 = 4;
/// Plugs that one address may have turned out to be: a few, where leases are short.
pub const PLUGS_AN_ADDRESS: usize = 4;
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

/// A plug that answers probes but no poll is tried this often, or at its interval where that is longer: it may be busy,
/// and whoever sees it alive does not expect to wait out the longest pause.
pub const RETRY_SEEN: Duration = Duration::from_secs(30);
/// Requests that wait for one plug's newest value. More come with as many connections, and are answered from memory.
pub const WAITERS: usize = HTTP_CONNECTIONS;

// ---- adaptive intervals ----

/// The longest interval that adapting may choose: a quarter hour, the finest bucket, then still has three readings.
pub const ADAPTIVE_LAST: Duration = Duration::from_secs(300);

// ---- store ----

/// The largest file of which every page is looked at after the machine was started: some ten seconds on an SD card.
pub const CHECK_AT_BOOT: u64 = 64 * 1024 * 1024;
/// redb's page cache. Measured: 1 MiB costs 2.3 MB of memory over a whole scan of a 100 MB file, 16 MiB costs 18 MB.
pub const STORE_CACHE: usize = 1024 * 1024;
/// Bytes of sealed readings from which each commit also writes which pages are free: 12 to 20 KB more, and the file opens
/// in milliseconds after a power cut. A smaller one is read whole then, twice: 112 ms for 100 MB here, seconds on a card.
pub const QUICK_REPAIR: u64 = 64 * 1024 * 1024;
/// Entries in one chunk. What costs next to nothing, such as readings that never change, must not make a chunk endless:
/// this many are most of a day at 10 s, and take 0.5 MB when decoded.
pub const CHUNK_ENTRIES: usize = 8_192;
/// Readings held in memory while the store cannot take them (24 bytes each in the packed form, more while in use).
/// 20 plugs at 10 s fill this in nine hours; then the oldest go, and are counted.
pub const PENDING_READINGS: usize = 65_536;
/// Readings in one batch: a batch is decoded as a whole, and must not hold the executor.
pub const BATCH_READINGS: usize = 16_384;
/// The longest encoded batch believed when it is read back.
pub const BATCH_BYTES: usize = 1024 * 1024;
/// How long readings wait for a clock that can be trusted, and how many of them.
pub const HOLD_TIME: Duration = Duration::from_secs(600);
/// 200 plugs at 10 s for ten minutes, and a few.
pub const HELD_READINGS: usize = 16_384;
/// Events held in memory while the disk takes none: a thousand switches.
pub const PENDING_EVENTS: usize = 1_024;
/// The journal of entries between two commits, in memory: ten hours of 20 plugs at 10 s.
pub const JOURNAL_BYTES: usize = 8 * 1024 * 1024;
/// The log beside the store: six hours of commits each 10 s, a day and more of commits each 60 s.
pub const LOG_BYTES: u64 = 8 * 1024 * 1024;
/// Rows in one page of a scan.
pub const PAGE_ROWS: usize = 10_000;
/// Buckets in one page, or a blob more: 64 days of quarter hours, 0.6 MB.
pub const PAGE_BUCKETS: usize = 6_144;
/// Problems that a check lists: beyond these the file is what is wrong.
pub const CHECK_PROBLEMS: usize = 1_000;
/// How long a backup may take: its snapshot keeps the store from using freed pages again.
pub const BACKUP_TIME: Duration = Duration::from_secs(600);

// ---- rollup ----

/// How many polling intervals a reading holds when nothing follows it; after that nothing counts as observed, or as live.
pub const HOLD_INTERVALS: u32 = 3;
/// The most buckets in one blob: a year of days, with room.
pub const BLOB_BUCKETS: usize = 400;

// ---- HTTP ----

/// Open connections unless the configuration says otherwise. 1,000 idle ones cost 14.5 MB, measured.
pub const HTTP_CONNECTIONS: usize = 64;
/// Connections that wait to be accepted; who comes when all wait tries again after a second. As many as Linux allows.
pub const HTTP_BACKLOG: i32 = 4_096;
/// How long a client may take to send the body of a request.
pub const HTTP_BODY_TIME: Duration = Duration::from_secs(10);
/// Bytes of the body of a batch.
pub const BATCH_BODY: usize = 64 * 1024;
/// Requests in a batch.
pub const BATCH_PATHS: usize = 20;
/// Bytes of kept replies unless the configuration says otherwise: the whole agent is to stay within 5 MB.
pub const CACHE_BYTES: usize = 1024 * 1024;
/// What a kept reply costs beside its bytes and its key: headers, and the places in two maps.
pub const CACHE_ENTRY: usize = 600;
/// How long a reply is kept that depends on the time of asking: a window that ends now, a period under way.
pub const CACHE_MOVING: Duration = Duration::from_secs(1);
/// Bytes from which a reply is compressed: a smaller one fits into one packet anyway.
pub const GZIP_LEAST: usize = 1_024;
/// Streams that are compressed at the same time; each has 300 KB. Others are sent as they are.
pub const GZIP_STREAMS: usize = 4;
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
/// How long running requests may take to end when the server stops.
pub const HTTP_STOP_TIME: Duration = Duration::from_secs(5);
/// The pause after the system refused a connection for want of files or memory.
pub const HTTP_ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Bytes read of the file with the token.
pub const TOKEN_FILE: u64 = 4 * 1024;
/// Rows in a page unless the request says otherwise.
pub const DEFAULT_ROWS: usize = 100;
/// Buckets in a page unless the request says otherwise: a chart is one page.
pub const DEFAULT_BUCKETS: usize = 1_000;
/// Steps of one chart: more than a screen has columns.
pub const CHART_STEPS: i64 = 1_000;
/// Devices named in one request.
pub const REQUEST_DEVICES: usize = 256;
/// The largest `offset`: deeper pages are what cursors are for.
pub const OFFSET: usize = 10_000;
/// Rows that a streamed reply reads from the store at once: about 200 KB in memory.
pub const EXPORT_ROWS: usize = 2_000;
/// Bytes of a chunk of a streamed reply.
pub const STREAM_CHUNK: usize = 16 * 1024;

// ---- events ----

/// Readings that leave together at most, and how long the first of them waits for others.
pub const EVENT_BATCH: usize = 10;
/// See [`EVENT_BATCH`].
pub const EVENT_DELAY: Duration = Duration::from_millis(100);
/// Batches that wait for one listener beside what its socket holds: half a minute of 20 plugs at 10 s, all of them shared
/// with the other listeners.
pub const EVENT_QUEUE: usize = 64;
/// After so long a silence listeners get a sign of life. Shorter than [`HTTP_STALL_TIME`], which it keeps from ending.
pub const EVENT_BEAT: Duration = Duration::from_secs(15);
/// Listeners at once where there may be so many connections: three quarters, so that others are always answered.
#[must_use]
pub const fn event_places(connections: usize) -> usize {
    connections / 4 * 3
}
/// Bytes of a frame or message that a WebSocket's client sends. It has nothing to say.
pub const SOCKET_MESSAGE: usize = 4 * 1024;
/// Bytes that wait to be written to a WebSocket: a batch and a pong.
pub const SOCKET_WRITE: usize = 64 * 1024;

// ---- what the agent notes about itself ----

/// A poll that takes longer than this is said in the log. A healthy plug answers in a tenth of a second, a strip in two.
pub const SLOW_POLL: Duration = Duration::from_secs(5);
/// A commit longer than this. A worn card takes a second now and then.
pub const SLOW_COMMIT: Duration = Duration::from_secs(2);
/// A read of the store longer than this.
pub const SLOW_QUERY: Duration = Duration::from_secs(1);
/// A request whose reply takes longer than this to begin.
pub const SLOW_REQUEST: Duration = Duration::from_secs(1);
/// Memory of its own (RssAnon) above which the caches are dropped: more than twice what 200 plugs with full caches take.
pub const GUARD_MEMORY: u64 = 24 * 1024 * 1024;
/// How often that is looked at: one short file of /proc.
pub const GUARD_EVERY: Duration = Duration::from_secs(60);
/// One line about each kind of slowness in this time.
pub const SLOW_LOG_EVERY: Duration = Duration::from_secs(60);

// ---- run ----

/// How long the last commit may take when the agent is told to stop. systemd's default patience is 90 s.
pub const STOP_TIME: Duration = Duration::from_secs(60);
/// How late the poll loop may turn before it counts as stuck: it never works for longer than milliseconds, and a poll has
/// its own end at [`POLL_BUDGET`].
pub const POLLS_STUCK: Duration = Duration::from_secs(60);
/// How long a commit may take before it counts as stuck. Cheap cards stall for many seconds while they tidy up.
pub const COMMIT_STUCK: Duration = Duration::from_secs(90);
/// How often systemd is told how the program is, where it does not ask for more.
pub const STATUS_EVERY: Duration = Duration::from_secs(60);
