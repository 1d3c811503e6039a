//! `run --once`: one round of polls, recorded and printed.

use super::{Outcome, table};
use crate::agent::{Agent, AgentError};
use crate::clock::Clock;
use crate::plug::Transport;
use std::time::Duration;

/// How often it is looked whether the round is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Polls every plug once, commits, and prints the readings. Exit code 1 when no plug answered.
///
/// # Errors
/// [`AgentError`] when the readings cannot be committed.
pub async fn run<T>(agent: Agent<T>, clock: &dyn Clock) -> Result<Outcome, AgentError>
where
    T: Transport + 'static,
    T::Stream: 'static,
{
    let start = clock.wall();
    let (polling, _) = agent.start_polling().await;
    while !agent.ready.get() {
        clock.sleep_until(clock.elapsed().saturating_add(LOOK_EVERY)).await;
    }
    polling.cancel().await;
    agent.commit_last().await?;

    let fleet = agent.fleet.borrow();
    let mut silent = String::new();
    let mut rows = Vec::new();
    for plug in fleet.plugs() {
        if let Some(trouble) = &plug.last_error {
            silent += &format!("{}: {}\n", plug.title(), trouble.text);
        }
        for id in plug.facts.metered_ids() {
            rows.extend(agent.store.latest(id).filter(|r| r.time >= start).map(|r| (id, plug.device_name(id), r)));
        }
    }
    for unmet in fleet.unmet() {
        let why = unmet.last_error.as_ref().map_or("not asked", |trouble| trouble.text.as_str());
        silent += &format!("{}: {why}\n", unmet.address.ip());
    }
    if fleet.plugs().next().is_none() && silent.is_empty() {
        silent += "no plugs were found; see `wattd discover`\n";
    }
    let code = u8::from(rows.is_empty());
    Ok(Outcome { stdout: if rows.is_empty() { String::new() } else { table::readings(rows) }, stderr: silent, code })
}
