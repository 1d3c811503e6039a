//! What a client may ask of readings and rollups, in typed form: moments, ranges, fields, names of devices, pages.
//!
//! Owns the meaning of every word in a request, and the shape of its answer as rows. Promises that a page does work in
//! proportion to its rows, that a walk through pages sees each row once whatever arrives meanwhile, and that every
//! refusal says what was wrong and what would be right. Knows nothing of HTTP, nor of how rows become text.

pub mod cost;
pub mod cursor;
pub mod field;
pub mod history;
pub mod latest;
pub mod names;
pub mod readings;
pub mod rollups;
pub mod summary;
pub mod time;
pub mod view;
