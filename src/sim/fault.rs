//! What can go wrong with a plug, as its peer sees it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How a plug misbehaves. All but [`Fault::CounterReset`], [`Fault::SessionLost`] and [`Fault::Restart`] last until they
/// are cleared. Those from [`Fault::ResetReused`] on are for plugs that speak HTTP and leave others healthy.
///
/// Over UDP there is no connection and no length: [`Fault::Close`], [`Fault::HugeLength`], [`Fault::ZeroLength`] and
/// [`Fault::Drip`] leave UDP healthy; half a reply is half a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Accepts, reads, never answers. No UDP answers.
    Silence,
    /// Nothing listens: connections are refused, no UDP answers.
    Refuse,
    /// Accepts and closes at once.
    Close,
    /// Answers rightly, but this much later.
    Delay(Duration),
    /// Sends the first half of the reply, then closes.
    HalfThenClose,
    /// Sends the first half of the reply, then nothing more.
    HalfThenSilence,
    /// Announces a message of 0xffffffff bytes, then sends nothing more.
    HugeLength,
    /// Announces a message of 0 bytes.
    ZeroLength,
    /// Sends a well-framed message of bytes that mean nothing.
    Garbage,
    /// Sends the reply at one byte per second.
    Drip,
    /// Sends three more bytes behind each reply.
    StrayBytes,
    /// Answers rightly and closes after each reply, as some firmware does.
    OneReply,
    /// Another plug answers here: other MAC, other device id.
    WrongDevice,
    /// Every reading says 20 kW.
    Glitch,
    /// The energy counters fall to 0, once; another fault stays as it is.
    CounterReset,
    /// Loses power: connections drop, refuses for this long, then is healthy with counters and on-time at 0.
    Restart(Duration),
    /// Resets a connection on which a second request comes.
    ResetReused,
    /// Its session is gone, once; another fault stays as it is.
    SessionLost,
    /// Lets peers log in and then knows no session.
    NoSession,
    /// Signs its replies with another key.
    WrongSignature,
    /// Has another password.
    WrongPassword,
    /// Locked after too many wrong passwords.
    Locked,
    /// Local access is switched off in the vendor's app.
    LocalOff,
    /// Takes no batches, and says so.
    NoBatch,
    /// Never answers a batch.
    SilentBatch,
    /// Lists its outlets in pages of four instead of ten.
    ShortPages,
    /// Its clock was never set: it is the year 2000 there, and some methods fail of it.
    ClockUnset,
    /// Never answers what time it is.
    SlowClock,
    /// Answers in the open inside AES passthrough.
    PlainInner,
    /// Its HTTP port opens only after a discovery probe.
    Asleep,
}

impl Fault {
    /// One of each, for tests that try them all.
    pub const ALL: [Self; 30] = [
        Self::Silence,
        Self::Refuse,
        Self::Close,
        Self::Delay(Duration::from_secs(1)),
        Self::HalfThenClose,
        Self::HalfThenSilence,
        Self::HugeLength,
        Self::ZeroLength,
        Self::Garbage,
        Self::Drip,
        Self::StrayBytes,
        Self::OneReply,
        Self::WrongDevice,
        Self::Glitch,
        Self::CounterReset,
        Self::Restart(Self::RESTART),
        Self::ResetReused,
        Self::SessionLost,
        Self::NoSession,
        Self::WrongSignature,
        Self::WrongPassword,
        Self::Locked,
        Self::LocalOff,
        Self::NoBatch,
        Self::SilentBatch,
        Self::ShortPages,
        Self::ClockUnset,
        Self::SlowClock,
        Self::PlainInner,
        Self::Asleep,
    ];

    /// How long a restart takes unless told otherwise.
    const RESTART: Duration = Duration::from_secs(2);

    /// Whether an answer comes over UDP: not from a plug that is silent or off.
    #[must_use]
    pub const fn is_mute(self) -> bool {
        matches!(self, Self::Silence | Self::Refuse | Self::Restart(_))
    }

    /// The name in tables and options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Silence => "silence",
            Self::Refuse => "refuse",
            Self::Close => "close",
            Self::Delay(_) => "delay",
            Self::HalfThenClose => "half-close",
            Self::HalfThenSilence => "half-silence",
            Self::HugeLength => "huge-length",
            Self::ZeroLength => "zero-length",
            Self::Garbage => "garbage",
            Self::Drip => "drip",
            Self::StrayBytes => "stray",
            Self::OneReply => "one-reply",
            Self::WrongDevice => "wrong-device",
            Self::Glitch => "glitch",
            Self::CounterReset => "counter-reset",
            Self::Restart(_) => "restart",
            Self::ResetReused => "reset-reused",
            Self::SessionLost => "session-lost",
            Self::NoSession => "no-session",
            Self::WrongSignature => "wrong-signature",
            Self::WrongPassword => "wrong-password",
            Self::Locked => "locked",
            Self::LocalOff => "local-off",
            Self::NoBatch => "no-batch",
            Self::SilentBatch => "silent-batch",
            Self::ShortPages => "short-pages",
            Self::ClockUnset => "clock-unset",
            Self::SlowClock => "slow-clock",
            Self::PlainInner => "plain-inner",
            Self::Asleep => "asleep",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delay(time) | Self::Restart(time) => write!(f, "{}:{}", self.name(), time.as_secs_f64()),
            _ => f.pad(self.name()),
        }
    }
}

impl FromStr for Fault {
    type Err = NotAFault;

    /// A name as [`Fault::name`] gives it; `delay` and `restart` take seconds: `delay:0.5`.
    fn from_str(text: &str) -> Result<Self, NotAFault> {
        let (name, argument) = match text.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (text, None),
        };
        let found = Self::ALL.into_iter().find(|fault| fault.name() == name).ok_or(NotAFault::Unknown)?;
        let Some(argument) = argument else { return Ok(found) };
        // An hour is longer than any test waits.
        let seconds = argument.parse().ok().filter(|s| (0.0..=3_600.0).contains(s)).ok_or(NotAFault::Seconds)?;
        match found {
            Self::Delay(_) => Ok(Self::Delay(Duration::from_secs_f64(seconds))),
            Self::Restart(_) => Ok(Self::Restart(Duration::from_secs_f64(seconds))),
            _ => Err(NotAFault::NoArgument),
        }
    }
}

/// A text that names no fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAFault {
    /// No fault has this name.
    Unknown,
    /// The argument is not a number of seconds from 0 to 3600.
    Seconds,
    /// This fault takes no argument.
    NoArgument,
}

impl fmt::Display for NotAFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => {
                f.write_str("no such fault; there are")?;
                Fault::ALL.iter().try_for_each(|fault| write!(f, " {}", fault.name()))
            }
            Self::Seconds => f.write_str("the argument is a number of seconds from 0 to 3600, as in delay:0.5"),
            Self::NoArgument => f.write_str("only delay and restart take an argument"),
        }
    }
}

impl std::error::Error for NotAFault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for fault in Fault::ALL {
            assert_eq!(fault.to_string().parse(), Ok(fault));
            assert_eq!(fault.name().parse(), Ok(fault));
        }
        assert_eq!("delay:0.25".parse(), Ok(Fault::Delay(Duration::from_millis(250))));
    }

    #[test]
    fn what_is_wrong_with_a_name_is_said() {
        assert_eq!("sulk".parse::<Fault>(), Err(NotAFault::Unknown));
        assert_eq!("silence:3".parse::<Fault>(), Err(NotAFault::NoArgument));
        for text in ["delay:", "delay:x", "delay:-1", "delay:nan", "restart:1e9"] {
            assert_eq!(text.parse::<Fault>(), Err(NotAFault::Seconds), "{text}");
        }
        assert!(NotAFault::Unknown.to_string().contains("half-silence"));
    }
}
