//! The system around the program: where log lines go, what signals ask for, and what systemd hears.
//!
//! Owns the log's form, the signals and the [`supervisor`]. Promises one line per event, without control characters,
//! whatever a plug or a client put into it.

pub mod supervisor;

use std::io::{self, Write as _};
use std::sync::{PoisonError, RwLock};

use async_signal::{Signal, Signals};
use smol::stream::{Stream, StreamExt as _};

use crate::clock::{Clock, SystemClock};
use crate::config::{Loaded, LogFilter, Problems};

/// What a signal asks for.
#[derive(Debug)]
pub enum Order {
    /// End, for this reason.
    Stop(&'static str),
    /// Go on with these settings, or with the present ones where they are refused.
    Reload(Box<Result<Loaded, Problems>>),
}

/// The log, whose filter a reload may change.
static LOG: Log = Log(RwLock::new(None));

struct Log(RwLock<Option<env_logger::Logger>>);

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        let logger = self.0.read().unwrap_or_else(PoisonError::into_inner);
        logger.as_ref().is_some_and(|logger| logger.enabled(metadata))
    }

    fn log(&self, record: &log::Record<'_>) {
        let logger = self.0.read().unwrap_or_else(PoisonError::into_inner);
        logger.iter().for_each(|logger| logger.log(record));
    }

    fn flush(&self) {}
}

/// Starts the log on stderr, or gives it another filter. For the journal a line begins with its priority and leaves the
/// time to the journal; for a terminal or a file it begins with the time.
pub fn start_log(filter: &LogFilter, to_journal: bool) {
    let clock = SystemClock::start();
    let write = move |out: &mut env_logger::fmt::Formatter, record: &log::Record<'_>| {
        let line = record.args().to_string().replace(|c: char| c.is_control(), " ");
        if to_journal {
            writeln!(out, "<{}>{line}", priority(record.level()))
        } else {
            writeln!(out, "{} {:5} {line}", clock.wall(), record.level())
        }
    };
    let logger = env_logger::Builder::new().parse_filters(filter.as_str()).format(write).build();
    log::set_max_level(logger.filter());
    *LOG.0.write().unwrap_or_else(PoisonError::into_inner) = Some(logger);
    let _ = log::set_logger(&LOG); // fails when it is set already, as it is after a reload
}

/// A level as syslog(3) counts, which the journal reads.
const fn priority(level: log::Level) -> u8 {
    match level {
        log::Level::Error => 3,
        log::Level::Warn => 4,
        log::Level::Info => 6,
        log::Level::Debug | log::Level::Trace => 7,
    }
}

/// Sets the handlers for SIGTERM, SIGINT and SIGHUP; each signal becomes an order. `read` reads the settings anew.
///
/// # Errors
/// When the system lets no handler be set.
pub fn orders(read: impl Fn() -> Result<Loaded, Problems>) -> io::Result<impl Stream<Item = Order>> {
    let signals = Signals::new([Signal::Term, Signal::Int, Signal::Hup])?;
    Ok(signals.map(move |signal| match signal {
        Ok(Signal::Hup) => Order::Reload(Box::new(read())),
        Ok(Signal::Int) => Order::Stop("SIGINT"),
        // The signals' own pipe failing leaves no way to be told later: stop while readings can still be kept.
        Ok(_) | Err(_) => Order::Stop("SIGTERM"),
    }))
}
