//! Simulated TP-Link plugs on loopback addresses, with faults on request. All it does is in `wattd::sim`.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::as_conversions)]
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::io::{self, BufRead, ErrorKind, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_signal::{Signal, Signals};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::json;
use smol::stream::StreamExt;
use wattd::clock::{Clock, SystemClock};
use wattd::sim::{Feed, Fleet, FleetSpec, Ledger, Order, Pace, PlugView};
use wattd::store::{self, Keeping, Store};

/// The longest line of orders that is read; a longer one ends the reading.
const LINE: u64 = 4_096;
/// Served readings that are remembered, for the list: two of each outlet of a few hundred plugs.
const LEDGER: usize = 4_096;
/// Where a frozen fleet stands: every kettle boils then.
const FROZEN_AT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let matches = command().get_matches(); // ends with 2 by itself when the usage is wrong
    match run(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "plugsim: {error}");
            ExitCode::from(if error.kind() == ErrorKind::InvalidInput { 2 } else { 1 })
        }
    }
}

fn command() -> Command {
    Command::new("plugsim")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Simulates TP-Link Kasa and Tapo plugs on loopback addresses, over the real protocols.")
        .after_help(format!(
            "Prints one line per plug, the discovery address and then \"ready\". Ends on SIGTERM, SIGINT or quit.\n\
             Plugs that want an account take user@example.com with the password hunter22.\n\
             While stdin is open it takes orders:\n{}",
            Order::HELP
        ))
        .arg(option("plugs", "N").default_value("6").value_parser(value_parser!(u16).range(1..=2_000)).help("How many"))
        .arg(
            option("base", "ADDRESS")
                .default_value("127.80.0.1")
                .value_parser(value_parser!(Ipv4Addr))
                .help("Loopback address of the first plug; the others follow. x.y.255.255 is where all are discovered"),
        )
        .arg(
            option("port", "PORT")
                .default_value("9999")
                .value_parser(value_parser!(u16).range(1..))
                .help("TCP and UDP port of the plugs that speak XOR; clients expect 9999"),
        )
        .arg(
            option("http-port", "PORT")
                .default_value("9980")
                .value_parser(value_parser!(u16).range(1..))
                .help("TCP port of those that speak HTTP, as they announce it; real ones have 80, which needs root"),
        )
        .arg(
            option("mix", "MIX")
                .default_value("iot")
                .value_parser(["iot", "every"])
                .help("iot: Kasa plugs that need no account; every: Kasa and Tapo plugs of every protocol"),
        )
        .arg(option("seed", "N").default_value("1").value_parser(value_parser!(u64)).help("Same seed, same readings"))
        .arg(
            option("fault", "N=NAME[:SECONDS]")
                .action(ArgAction::Append)
                .value_parser(Order::parse_fault)
                .help("Fault of plug N, from 1, right from the start; may be repeated"),
        )
        .arg(
            option("speed", "X")
                .default_value("1")
                .value_parser(speed)
                .help("Simulated seconds per second for loads, counters and the plugs' clocks, 0.001 to 100000"),
        )
        .arg(
            Arg::new("frozen").long("frozen").action(ArgAction::SetTrue).conflicts_with("speed").help(
                "Simulated time stands at one minute: every reading stays the same, so that peers can be compared",
            ),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("List the fleet as one line of JSON"))
        .args_conflicts_with_subcommands(true)
        .subcommand(feed_command())
}

fn feed_command() -> Command {
    let number = |name, value, default| {
        option(name, value).default_value(default).value_parser(value_parser!(u64).range(1..=1_000_000))
    };
    Command::new("feed")
        .about("Puts history of a fleet, up to now, into an empty store: a year of 20 plugs takes some minutes.")
        .arg(option("data-dir", "DIR").required(true).value_parser(value_parser!(PathBuf)).help("As wattd's data_dir"))
        .arg(number("days", "N", "7").help("How many days"))
        .arg(option("plugs", "N").default_value("6").value_parser(value_parser!(u16).range(1..=2_000)).help("How many"))
        .arg(
            option("base", "ADDRESS")
                .default_value("127.80.0.1")
                .value_parser(value_parser!(Ipv4Addr))
                .help("As the running fleet's, so that it goes on with the same plugs"),
        )
        .arg(option("seed", "N").default_value("1").value_parser(value_parser!(u64)).help("As the running fleet's"))
        .arg(number("interval", "SECONDS", "10").help("Between two polls of a plug"))
        .arg(number("strip-interval", "SECONDS", "60").help("Between two polls of a strip's outlets"))
        .arg(number("commit-interval", "SECONDS", "300").help("Of history, between two commits"))
}

fn option(name: &'static str, value: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value)
}

fn speed(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|x| (0.001..=100_000.0).contains(x)).ok_or("a number from 0.001 to 100000 is needed")
}

/// The value of an option that has a default or is known to be there.
fn value<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> io::Result<T> {
    matches.get_one(name).cloned().ok_or_else(|| io::Error::other(format!("bug: --{name} has no value")))
}

fn feed(matches: &ArgMatches) -> io::Result<()> {
    let plugs =
        FleetSpec::mixed(value::<u16>(matches, "plugs")?.into(), value(matches, "base")?, value(matches, "seed")?)?;
    let dir: PathBuf = value(matches, "data-dir")?;
    std::fs::create_dir_all(&dir)?;
    let store = Store::open(store::on_disk(store::path_in(&dir)), Keeping::default()).map_err(io::Error::other)?;
    if store.figures().readings > 0 {
        let what = format!("{} holds readings already; name another directory", dir.display());
        return Err(io::Error::new(ErrorKind::InvalidInput, what));
    }
    let seconds = |name: &str| value(matches, name).map(Duration::from_secs);
    let clock = SystemClock::start();
    let to = clock.wall();
    let days = i64::try_from(value::<u64>(matches, "days")?).unwrap_or(i64::MAX);
    let feed = Feed {
        plugs: plugs.plugs,
        from: to.plus(-days.saturating_mul(86_400_000)),
        to,
        interval: seconds("interval")?,
        strip_interval: seconds("strip-interval")?,
        commit_every: seconds("commit-interval")?,
    };
    let mut told = Duration::ZERO;
    let readings = smol::block_on(feed.run(&store, |time| {
        if clock.elapsed() >= told + Duration::from_secs(5) {
            told = clock.elapsed();
            let _ = writeln!(io::stderr(), "plugsim: at {time}");
        }
    }));
    let readings = readings.map_err(io::Error::other)?;
    print(&format!("{readings} readings of {days} days in {:.1?}\n", clock.elapsed()))
}

fn run(matches: &ArgMatches) -> io::Result<()> {
    if let Some(("feed", matches)) = matches.subcommand() {
        return feed(matches);
    }
    // Before the fleet's thread starts, so that a signal in between is not lost.
    let mut signals = Signals::new([Signal::Term, Signal::Int])?;
    let (count, base, seed) =
        (value::<u16>(matches, "plugs")?.into(), value(matches, "base")?, value(matches, "seed")?);
    let mut spec = match value::<String>(matches, "mix")?.as_str() {
        "every" => FleetSpec::every_protocol(count, base, seed)?,
        _ => FleetSpec::mixed(count, base, seed)?,
    };
    spec.port = value(matches, "port")?;
    spec.http_port = value(matches, "http-port")?;
    spec.ledger = LEDGER;
    spec.pace =
        if matches.get_flag("frozen") { Pace::Frozen(FROZEN_AT) } else { Pace::Times(value(matches, "speed")?) };
    let fleet = Arc::new(Fleet::start(spec)?);
    for order in matches.get_many::<Order>("fault").into_iter().flatten() {
        order.give(&fleet).map_err(|error| io::Error::new(ErrorKind::InvalidInput, format!("--fault: {error}")))?;
    }
    let is_json = matches.get_flag("json");
    print(&list(&fleet, is_json))?;
    print("ready\n")?;

    let (quit, has_quit) = smol::channel::bounded::<()>(1);
    let ordered = Arc::clone(&fleet);
    // Not joined: it may stand in a read that nothing but the end of the process ends.
    std::thread::Builder::new().name("orders".to_owned()).spawn(move || {
        if take_orders(&ordered, is_json).unwrap_or(false) {
            quit.close();
        } else {
            std::mem::forget(quit); // stdin has closed: signals are what is left to end it
        }
    })?;
    smol::block_on(smol::future::or(
        async {
            signals.next().await;
        },
        async {
            let _ = has_quit.recv().await;
        },
    ));
    Ok(())
}

/// Does what stdin says until it closes; true when it said quit.
fn take_orders(fleet: &Fleet, is_json: bool) -> io::Result<bool> {
    let mut stdin = io::stdin().lock();
    loop {
        let mut line = String::new();
        if io::Read::take(&mut stdin, LINE).read_line(&mut line)? == 0 {
            return Ok(false);
        }
        if line.trim().is_empty() {
            continue;
        }
        let answer = match Order::parse(&line) {
            Err(error) => format!("error: {error}\n"),
            Ok(Order::Quit) => return Ok(true),
            Ok(Order::Help) => format!("{}\n", Order::HELP),
            Ok(Order::List) => list(fleet, is_json),
            Ok(order) => match order.give(fleet) {
                Ok(()) => "ok\n".to_owned(),
                Err(error) => format!("error: {error}\n"),
            },
        };
        print(&answer)?;
    }
}

/// Writes to stdout. A reader that has gone is no reason to stop simulating.
fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn list(fleet: &Fleet, is_json: bool) -> String {
    let plugs = fleet.plugs();
    if is_json {
        let ledger = fleet.ledger();
        let plugs: Vec<_> = plugs.iter().map(|plug| as_json(plug, &ledger)).collect();
        return format!(
            "{}\n",
            json!({"plugs": plugs, "discovery": fleet.discovery(), "port": fleet.port(), "http_port": fleet.http_port()})
        );
    }
    let mut text = String::new();
    for plug in &plugs {
        let loads = names(plug).join(" ");
        let fault = plug.fault.map(|fault| format!("  FAULT {fault}")).unwrap_or_default();
        text += &format!(
            "{:>4}  {:<15}  {}  {:<7}  {:<10}  {:<18}  {loads}  requests {}, writes {}{fault}\n",
            plug.index + 1,
            plug.address,
            plug.mac,
            plug.model,
            plug.protocol,
            plug.alias,
            plug.counters.requests,
            plug.counters.writes_seen,
        );
    }
    if let Some(address) = fleet.discovery() {
        text += &format!("discovery  {address}  port {}\n", fleet.port());
    }
    text
}

fn names(plug: &PlugView) -> Vec<String> {
    plug.loads.iter().map(ToString::to_string).collect()
}

fn as_json(plug: &PlugView, ledger: &Ledger) -> serde_json::Value {
    let seen = plug.counters;
    // The last that was served of each outlet.
    let of_plug = ledger.iter().map(|served| served.reading).filter(|reading| reading.device.plug == plug.mac);
    let last: BTreeMap<_, _> = of_plug.map(|reading| (reading.device, reading)).collect();
    let served = last.values().map(|reading| {
        json!({
            "device": reading.device.to_string(), "power_mw": reading.power.get(), "voltage_mv": reading.voltage.get(),
            "current_ma": reading.current.get(), "counter_wh": reading.counter.get() / 1_000,
        })
    });
    json!({
        "plug": plug.index + 1, "address": plug.address, "id": plug.mac.to_string(), "model": plug.model.name(),
        "label": plug.model.label(), "alias": plug.alias, "has_meter": plug.model.meter().is_some(),
        "outlets": plug.model.children(), "loads": names(plug), "fault": plug.fault.map(|fault| fault.to_string()),
        "connections": seen.connections, "max_connections": seen.max_connections, "requests": seen.requests,
        "datagrams": seen.datagrams, "max_in_flight": seen.max_in_flight, "split_requests": seen.split_requests,
        "writes_seen": seen.writes_seen, "protocol": plug.protocol.name(),
        "served": served.collect::<Vec<_>>(), "handshakes": seen.handshakes,
        "logins_refused": seen.logins_refused, "closest_s": seen.closest.map(|gap| gap.as_secs_f64()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
        let matches =
            command().try_get_matches_from(["plugsim", "--fault", "2=delay:0.5", "--fault", "1=close"]).unwrap();
        assert_eq!(matches.get_many::<Order>("fault").unwrap().count(), 2);
        for wrong in [&["--plugs", "0"][..], &["--fault", "close"], &["--speed", "nan"], &["--frozen", "--speed", "2"]]
        {
            let words = ["plugsim"].iter().chain(wrong);
            assert_eq!(command().try_get_matches_from(words).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }
}
