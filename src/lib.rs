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
//! | 0 | [`limits`], [`markup`], [`nearest`], [`units`] |
//! | 1 | [`clock`], [`reading`], [`tariff`], [`watchdog`] |
//! | 2 | [`config`], [`plug`], [`rollup`], [`stats`] |
//! | 3 | [`poll`], [`store`] |
//! | 5 | [`chart`], [`query`] |
//! | 6 | [`http`], [`sys`] |
//! | 7 | [`agent`], [`doctor`] |
//! | 8 | [`cli`] |
//!
//! [`sim`] is the other side of the plug protocols, for `plugsim` and the tests; nothing above uses it.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::as_conversions)]
#![deny(clippy::disallowed_methods)]
#![cfg_attr(test, allow(clippy::as_conversions))]

pub mod agent;
pub mod chart;
pub mod cli;
pub mod clock;
pub mod config;
pub mod doctor;
pub mod http;
pub mod limits;
pub mod markup;
pub mod nearest;
pub mod plug;
pub mod poll;
pub mod query;
pub mod reading;
pub mod rollup;
pub mod sim;
pub mod stats;
pub mod store;
pub mod sys;
pub mod tariff;
pub mod units;
pub mod watchdog;
