//! wattd records what TP-Link Kasa and Tapo plugs measure.
//!
//! Data moves one way, and each module may use only those on lower levels (`tests/layers.rs` keeps it so):
//!
//! ```text
//! plug -> poll -> store -> query -> http | cli
//! ```
//!
//! | level | modules |
//! |---|---|
//! | 0 | [`units`], [`limits`] |
//! | 1 | [`clock`], [`reading`] |
//! | 2 | [`config`], [`plug`] |
//! | 3 | [`poll`], [`store`] |
//! | 5 | [`query`] |
//! | 6 | [`http`], [`sys`] |
//! | 7 | [`cli`], [`agent`] |
//!
//! [`sim`] is the other side of the plug protocols, for `plugsim` and the tests; nothing above uses it.
#![cfg_attr(test, allow(clippy::as_conversions))]

pub mod clock;
pub mod config;
pub mod limits;
pub mod plug;
pub mod poll;
pub mod query;
pub mod reading;
pub mod sim;
pub mod store;
pub mod units;
