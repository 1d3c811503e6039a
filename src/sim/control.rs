//! What a person at `plugsim` may order while it runs: one line, one order.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;

use super::{Fault, Fleet, NotAFault, Which};
use crate::reading::Protocol::{self, IotKlap, IotXor, SmartAes, SmartKlap, SmartTpap};

/// An order from a line of text. Plugs are named by their number from 1 or by their address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `fault PLUG NAME[:SECONDS]`
    Fault(Which, Fault),
    /// `clear PLUG`
    Clear(Which),
    /// `move PLUG ADDRESS`
    Move(Which, Ipv4Addr),
    /// `speak PLUG PROTOCOL`
    Speak(Which, Protocol),
    /// `list`
    List,
    /// `help`
    Help,
    /// `quit`
    Quit,
}

impl Order {
    /// What can be ordered, for a person.
    pub const HELP: &str =
        "fault PLUG NAME[:SECONDS]   misbehave: silence refuse close one-reply delay:S half-close half-silence
                            huge-length zero-length garbage drip stray wrong-device
                            glitch counter-reset restart:S
                            over HTTP also: reset-reused session-lost no-session
                            wrong-signature wrong-password locked local-off no-batch
                            silent-batch short-pages clock-unset slow-clock
                            plain-inner asleep
clear PLUG                  behave again
move PLUG ADDRESS           listen on another loopback address
speak PLUG PROTOCOL         take other firmware: iot-xor iot-klap, or smart-klap
                            smart-tpap smart-aes
list                        all plugs with their faults and counts
quit                        end
PLUG is a number from 1 or an address.";

    /// The order in `line`.
    ///
    /// # Errors
    /// [`OrderError`] for anything else, an empty line included.
    pub fn parse(line: &str) -> Result<Self, OrderError> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["fault", plug, fault] => Ok(Self::Fault(which(plug)?, fault.parse().map_err(OrderError::Fault)?)),
            ["clear", plug] => Ok(Self::Clear(which(plug)?)),
            ["move", plug, to] => Ok(Self::Move(which(plug)?, to.parse().map_err(|_| OrderError::Address)?)),
            ["speak", plug, protocol] => {
                let all = [IotXor, IotKlap, SmartKlap, SmartTpap, SmartAes];
                let found = all.into_iter().find(|known| known.name() == *protocol);
                Ok(Self::Speak(which(plug)?, found.ok_or(OrderError::Protocol)?))
            }
            ["list"] => Ok(Self::List),
            ["help"] => Ok(Self::Help),
            ["quit"] => Ok(Self::Quit),
            _ => Err(OrderError::Unknown),
        }
    }

    /// A fault for a plug as an option gives it: `N=NAME[:SECONDS]`.
    ///
    /// # Errors
    /// [`OrderError`] when a part of it is not understood.
    pub fn parse_fault(text: &str) -> Result<Self, OrderError> {
        let (plug, fault) = text.split_once('=').ok_or(OrderError::NoPlug)?;
        Ok(Self::Fault(which(plug)?, fault.parse().map_err(OrderError::Fault)?))
    }

    /// Does it. [`Order::List`], [`Order::Help`] and [`Order::Quit`] change nothing in the fleet.
    ///
    /// # Errors
    /// Those of [`Fleet::set_fault`], [`Fleet::clear`], [`Fleet::move_to`] and [`Fleet::speak`].
    pub fn give(self, fleet: &Fleet) -> io::Result<()> {
        match self {
            Self::Fault(which, fault) => fleet.set_fault(which, fault),
            Self::Clear(which) => fleet.clear(which),
            Self::Move(which, to) => fleet.move_to(which, to),
            Self::Speak(which, protocol) => fleet.speak(which, protocol),
            Self::List | Self::Help | Self::Quit => Ok(()),
        }
    }
}

/// A plug as people write it: its number from 1, or its address.
fn which(text: &str) -> Result<Which, OrderError> {
    if let Ok(address) = text.parse() {
        return Ok(Which::Address(address));
    }
    let number: usize = text.parse().map_err(|_| OrderError::NoPlug)?;
    number.checked_sub(1).map(Which::Index).ok_or(OrderError::NoPlug)
}

/// Why a line is no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderError {
    /// The first word is none, or the words behind it are too few or too many.
    Unknown,
    /// What names a plug is neither a number from 1 nor an address.
    NoPlug,
    /// Where to move is not an address.
    Address,
    /// What to speak is no protocol.
    Protocol,
    /// The fault is none.
    Fault(NotAFault),
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("not understood; try help"),
            Self::NoPlug => f.write_str("a plug is its number from 1, or its address"),
            Self::Address => f.write_str("not an address; one looks like 127.80.0.99"),
            Self::Protocol => {
                f.write_str("no such protocol; there are iot-xor iot-klap smart-klap smart-tpap smart-aes")
            }
            Self::Fault(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OrderError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_orders() {
        assert_eq!(Order::parse(" fault 3  silence\n"), Ok(Order::Fault(Which::Index(2), Fault::Silence)));
        let address = Ipv4Addr::new(127, 80, 0, 99);
        assert_eq!(Order::parse("move 1 127.80.0.99"), Ok(Order::Move(Which::Index(0), address)));
        assert_eq!(Order::parse("clear 127.80.0.99"), Ok(Order::Clear(Which::Address(address))));
        assert_eq!(Order::parse("list"), Ok(Order::List));
        assert_eq!(Order::parse_fault("2=close"), Ok(Order::Fault(Which::Index(1), Fault::Close)));
    }

    #[test]
    fn what_is_no_order_is_said_so() {
        assert_eq!(Order::parse(""), Err(OrderError::Unknown));
        assert_eq!(Order::parse("fault 3"), Err(OrderError::Unknown));
        assert_eq!(Order::parse("fault 0 close"), Err(OrderError::NoPlug));
        assert_eq!(Order::parse("fault 1 sulk"), Err(OrderError::Fault(NotAFault::Unknown)));
        assert_eq!(Order::parse("move 1 kitchen"), Err(OrderError::Address));
        assert_eq!(Order::parse_fault("close"), Err(OrderError::NoPlug));
    }

    #[test]
    fn help_names_every_fault() {
        assert!(Fault::ALL.iter().all(|fault| Order::HELP.contains(fault.name())));
    }
}
