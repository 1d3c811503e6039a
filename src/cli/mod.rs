//! The command line: what was asked for, and the verbs that answer at once.
//!
//! Owns the words of `wattd VERB`. Each verb is a function from checked input to an [`Outcome`], so that all but the
//! printing is tested without a process; `main` prints and exits. stdout is data, stderr is talk.

pub mod args;
pub mod backup;
pub mod check;
pub mod config;
pub mod discover;
pub mod doctor;
pub mod export;
pub mod once;
pub mod read;
pub mod table;

use crate::agent;
use crate::config::Config;
use crate::plug::keyring::Keyring;

/// The keys to plugs that want a login, and what to say when the password cannot be read: most plugs need none, and not
/// everybody may read it.
fn keyring(config: &Config) -> (Keyring, String) {
    match agent::account(config) {
        Ok(account) => (Keyring::new(account), String::new()),
        Err(error) => (Keyring::new(None), format!("asked without the account: {error}\n")),
    }
}

/// What a verb wants printed, and how the program ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For stdout: data. Ends in a newline unless empty.
    pub stdout: String,
    /// For stderr: talk. Ends in a newline unless empty.
    pub stderr: String,
    /// The exit code: 0 done, 1 failed.
    pub code: u8,
}
