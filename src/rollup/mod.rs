//! From readings to energy and buckets: arithmetic alone, no clock, no disk.
//!
//! Owns what a bucket is and how energy is accounted ([`Energy`]), how a stream of entries becomes buckets of 15
//! minutes ([`Fold`]), where civil hours, days and months begin ([`civil`]), and a bucket's bytes ([`codec`]). Promises
//! that buckets are a pure function of the entries in order of time, that sums over any cut equal the whole exactly,
//! and that nothing here panics, whatever a plug or a file says. Leaves to `store` when buckets are made and kept, and
//! to `query` which are shown.

pub mod bucket;
pub mod civil;
pub mod codec;
pub mod energy;
pub mod fold;

pub use bucket::{Bucket, Flags, Millijoules, PowerRange};
pub use civil::{Period, Step, periods};
pub use energy::Energy;
pub use fold::Fold;

#[cfg(test)]
mod tests;
