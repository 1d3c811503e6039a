//! Plugs: who they are and what they measure, over their own protocols.
pub mod xor;
