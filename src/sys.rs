//! The system around the program: where log lines go, and how it is told to stop.
//!
//! Owns the log's form and the signals. Promises one line per event, without control characters, whatever a plug or a
//! client put into it.

use std::future::Future;
use std::io::{self, Write as _};

use async_signal::{Signal, Signals};
use smol::stream::StreamExt as _;

use crate::clock::{Clock, SystemClock};
use crate::config::LogFilter;

/// Starts the log on stderr. For the journal a line begins with its priority and leaves the time to the journal; for a
/// terminal or a file it begins with the time.
pub fn start_log(filter: &LogFilter, to_journal: bool) {
    let clock = SystemClock::start();
    let write = move |out: &mut env_logger::fmt::Formatter, record: &log::Record<'_>| {
        let line = record.args().to_string().replace(|c: char| c.is_control(), " ");
        if to_journal {
            let priority = match record.level() {
                log::Level::Error => 3,
                log::Level::Warn => 4,
                log::Level::Info => 6,
                log::Level::Debug | log::Level::Trace => 7,
            };
            writeln!(out, "<{priority}>{line}")
        } else {
            writeln!(out, "{} {:5} {line}", clock.wall(), record.level())
        }
    };
    env_logger::Builder::new().parse_filters(filter.as_str()).format(write).init();
}

/// Sets the handlers for SIGTERM and SIGINT; the future is ready with the signal's name when one comes.
///
/// # Errors
/// When the system lets no handler be set.
pub fn told_to_stop() -> io::Result<impl Future<Output = &'static str>> {
    let mut signals = Signals::new([Signal::Term, Signal::Int])?;
    Ok(async move {
        match signals.next().await {
            Some(Ok(Signal::Int)) => "SIGINT",
            // The signals' own pipe failing leaves no way to be told later: stop while readings can still be kept.
            Some(Ok(_) | Err(_)) | None => "SIGTERM",
        }
    })
}
