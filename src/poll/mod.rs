//! Asking plugs, at their pace.
pub mod fleet;
