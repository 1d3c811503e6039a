//! Simulated plugs: the other side of every protocol that plugs speak.
//!
//! Owns what a plug does: its answers (IOT in [`reply()`] and SMART, pure functions of state, request and time), its logins
//! and sessions (by rules of its own; only hashes and ciphers are shared with the clients), the loads behind its
//! outlets ([`Load`]), its faults ([`Fault`]) and a [`Fleet`] of them on loopback addresses, each on its own address with
//! TCP and UDP as real plugs are. Promises that a fleet is deterministic in its seed and the time since its start, that it
//! keeps count of everything a monitor must not do (parallel requests, more than one connection, writes), and that it
//! serves loopback addresses only. A [`Feed`] gives a store the history that such plugs would have. Used by `plugsim` and by tests; nothing of the agent may use it.
//!
//! ```no_run
//! use wattd::sim::{Fault, Fleet, FleetSpec};
//!
//! # fn main() -> std::io::Result<()> {
//! let fleet = Fleet::start(FleetSpec::mixed(6, "127.90.0.1".parse().unwrap(), 1)?)?;
//! fleet.set_fault(0, Fault::Silence)?;
//! fleet.clear(0)?;
//! assert_eq!(fleet.total().writes_seen, 0);
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "aes-passthrough")]
mod aes;
mod announce;
mod control;
mod door;
mod fault;
mod feed;
mod fleet;
mod klap;
mod load;
mod model;
mod reply;
mod smart;
mod spec;
mod tpap;
mod web;

pub use control::{Order, OrderError};
pub use fault::{Fault, NotAFault};
pub use feed::Feed;
pub use fleet::{CONNECTIONS_PER_PLUG, Counters, Fleet, Ledger, PlugView, Which};
pub use load::{Load, current, mains_voltage};
pub use model::{MeterStyle, Model};
pub use reply::{Lie, PlugState, Served, ServedReading, Via, reply};
pub use spec::{FleetSpec, HTTP_PORT, Pace, PlugSpec, TestNet, account, test_net};
