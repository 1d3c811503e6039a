//! `wattd`: reads the command line, does one verb, and turns its outcome into output and an exit code.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::as_conversions)]
#![deny(clippy::disallowed_methods)]

use std::future::Future;
use std::io::Write as _;
use std::process::ExitCode;
use std::rc::Rc;

use smol::future::FutureExt as _;
use wattd::agent::{Agent, AgentError, Outside};
use wattd::cli::args::{self, Probing, Rounds, Verb};
use wattd::cli::{Outcome, backup, check, config, discover, doctor, export, once, read};
use wattd::clock::{Clock, SystemClock};
use wattd::config::{Config, Loaded, Problems};
use wattd::plug::Tcp;
use wattd::plug::discovery::Ports;
use wattd::sys::supervisor::Supervisor;
use wattd::{store, sys};

fn main() -> ExitCode {
    let invocation = args::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let read = || wattd::config::read(invocation.config.as_deref(), invocation.flags.clone());
    let loaded = read();
    let outcome = match (invocation.verb, loaded) {
        (Verb::ConfigShow(format), loaded) => config::show(&loaded, format),
        (Verb::ConfigCheck, loaded) => config::check(&loaded),
        (Verb::Doctor(format), loaded) => wait_for(doctor::run(&loaded, &SystemClock::start(), Ports::REAL, format)),
        (_, Err(problems)) => config::refused(&problems),
        (Verb::Check(format), Ok(loaded)) => check::run(&loaded.config.data_dir, format),
        (Verb::Backup { file }, Ok(loaded)) => wait_for(backup::run(&loaded.config, &SystemClock::start(), &file)),
        (Verb::Restore { file, existing }, Ok(loaded)) => backup::restore(&loaded.config.data_dir, &file, existing),
        (Verb::Run(rounds), Ok(loaded)) => run(loaded, rounds, read),
        (Verb::Discover { probing: Probing::DryRun, .. }, Ok(loaded)) => discover::dry_run(&loaded.config, Ports::REAL),
        (Verb::Discover { format, .. }, Ok(loaded)) => {
            wait_for(discover::run(&loaded.config, &SystemClock::start(), Ports::REAL, format))
        }
        (Verb::Read { host, format, route }, Ok(loaded)) => {
            wait_for(read::run(&loaded.config, &SystemClock::start(), Ports::REAL, &host, route, format))
        }
        (Verb::Export(wanted), Ok(loaded)) => {
            let clock = Rc::new(SystemClock::start());
            wait_for(export::run(&loaded.config, clock, &wanted, &mut std::io::stdout().lock()))
        }
    };
    finish(&outcome)
}

/// Runs a verb to its end. Behind one pointer, because the loop that waits is compiled anew for each kind of future.
fn wait_for(verb: impl Future<Output = Outcome>) -> Outcome {
    smol::block_on(verb.boxed_local())
}

fn finish(outcome: &Outcome) -> ExitCode {
    let stdout = std::io::stdout().write_all(outcome.stdout.as_bytes());
    let stderr = std::io::stderr().write_all(outcome.stderr.as_bytes());
    // Whoever read our output may have seen enough (`| head`): no failure of ours.
    let _ = (stdout, stderr);
    ExitCode::from(outcome.code)
}

fn run(loaded: Loaded, rounds: Rounds, read: impl Fn() -> Result<Loaded, Problems>) -> Outcome {
    sys::start_log(&loaded.config.log.level, wattd::config::stderr_is_journal());
    for warning in &loaded.warnings {
        log::warn!("{warning}");
    }
    match run_agent(loaded.config, rounds, read) {
        Ok(outcome) => outcome,
        Err(error) => {
            log::error!("{error}");
            Outcome { code: 1, ..Outcome::default() }
        }
    }
}

fn run_agent(
    config: Config,
    rounds: Rounds,
    read: impl Fn() -> Result<Loaded, Problems>,
) -> Result<Outcome, AgentError> {
    // First of all: whoever tells us to stop while the store opens must be heard.
    let orders = sys::orders(read).map_err(AgentError::System)?;
    std::fs::create_dir_all(&config.data_dir)
        .map_err(|source| AgentError::DataDir { path: config.data_dir.clone(), source })?;
    let clock = Rc::new(SystemClock::start());
    let disk = store::on_disk(store::path_in(&config.data_dir));
    let seed = u64::from(std::process::id()) ^ clock.wall().get().cast_unsigned();
    let outside = Outside { clock: clock.clone(), transport: Rc::new(Tcp), ports: Ports::REAL, seed };
    let executor = Rc::new(smol::LocalExecutor::new());
    let agent = Agent::new(config, disk, outside, executor.clone())?;
    smol::block_on(executor.run(async {
        match rounds {
            Rounds::Forever => {
                agent.run(orders, Supervisor::of(&wattd::config::unit()), |_| ()).await?;
                Ok(Outcome::default())
            }
            Rounds::Once => once::run(agent, clock.as_ref()).await,
        }
    }))
}
