//! `export`: readings or rollups as CSV or NDJSON on stdout.
//!
//! The running agent is asked, over HTTP; without one, the store's file is read directly, by the same code that would
//! answer in the agent: the bytes are the same. Promises bounded memory however much there is, a plain refusal while
//! another process holds the file, and that a reader who has seen enough (`| head`) is no failure.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

use super::Outcome;
use super::args::Export;
use crate::agent;
use crate::clock::Clock;
use crate::config::Config;
use crate::http::App;
use crate::http::client::{self, StreamError};
use crate::store::{self, Keeping, Store};

/// Writes what is asked for to `out`.
pub async fn run(config: &Config, clock: Rc<dyn Clock>, wanted: &Export, out: &mut dyn Write) -> Outcome {
    let target = target(wanted);
    let mut sink = |bytes: &[u8]| out.write_all(bytes);
    let token = match agent::token(config) {
        Ok(token) => token,
        Err(error) => return Outcome { stderr: format!("{error}\n"), code: 1, ..Outcome::default() },
    };
    let mut done = client::stream(clock.as_ref(), config.listen, &target, token.as_ref(), &mut sink).await;
    if let Err(StreamError::NoAgent) = done {
        let app = match open(config, clock) {
            Ok(app) => app,
            Err(why) => return refuse(&why),
        };
        done = client::stream_from(&app, &target, &mut sink).await;
    }
    match done.and_then(|()| out.flush().map_err(StreamError::Sink)) {
        Err(StreamError::Sink(error)) if error.kind() == io::ErrorKind::BrokenPipe => Outcome::default(),
        Err(error) => refuse(&error.to_string()),
        Ok(()) => Outcome::default(),
    }
}

fn refuse(why: &str) -> Outcome {
    Outcome { stderr: format!("{why}\n"), code: 1, ..Outcome::default() }
}

/// The request that the agent would be sent. Everything that is kept, oldest first, unless the user says otherwise.
fn target(wanted: &Export) -> String {
    let rollups = (wanted.what != "readings").then_some(("step", wanted.what.as_str()));
    let path = if rollups.is_some() { "/api/v1/rollups" } else { "/api/v1/readings" };
    let optional = |name, value: &'_ Option<String>| value.clone().map(|value| (name, value));
    let given = [optional("end", &wanted.to), optional("fields", &wanted.fields), optional("time", &wanted.time)];
    let given: Vec<(&str, String)> = given.into_iter().flatten().collect();
    let start = wanted.from.as_deref().unwrap_or("0");
    let params = wanted.devices.iter().map(|device| ("device", device.as_str())).chain(rollups);
    let params = params.chain([("start", start), ("order", "asc"), ("format", wanted.format.as_str())]);
    client::target(path, params.chain(given.iter().map(|(name, value)| (*name, value.as_str()))))
}

/// What the agent would answer from, as far as the file knows it.
fn open(config: &Config, clock: Rc<dyn Clock>) -> Result<App, String> {
    let path = store::path_in(&config.data_dir);
    if let Err(error) = std::fs::metadata(&path) {
        let path = path.display();
        return Err(format!("no agent runs at {}, and there is no store at {path}: {error}", config.listen));
    }
    let store = Store::open(store::on_disk(path), Keeping::default())
        .map_err(|error| format!("no agent runs at {}, and the store cannot be read: {error}", config.listen))?;
    let mut fleet = agent::recall(&store);
    for known in &config.plugs {
        let mac = fleet.plugs().find(|plug| plug.address.ip() == known.address).map(|plug| plug.facts.mac);
        if let Some(plug) = mac.and_then(|mac| fleet.get_mut(mac)) {
            plug.name.clone_from(&known.name);
        }
    }
    Ok(App {
        zone: config.timezone.clone(),
        tariff: Rc::new(config.tariff.clone()),
        ..App::local(Rc::new(store), Rc::new(RefCell::new(fleet)), clock)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_what_was_asked_for_escaped() {
        let mut wanted = Export {
            devices: vec!["Kühl & Co".to_owned(), "b".to_owned()],
            from: Some("-7d".to_owned()),
            to: Some("2026-11-23T00:00:00+01:00".to_owned()),
            what: "1d".to_owned(),
            format: "csv".to_owned(),
            fields: Some("start,energy_wh".to_owned()),
            time: None,
        };
        assert_eq!(
            target(&wanted),
            "/api/v1/rollups?device=K%C3%BChl%20%26%20Co&device=b&step=1d&start=-7d&order=asc&format=csv\
             &end=2026-11-23T00%3A00%3A00%2B01%3A00&fields=start%2Cenergy_wh"
        );
        wanted = Export { devices: vec![], from: None, to: None, what: "readings".to_owned(), fields: None, ..wanted };
        assert_eq!(target(&wanted), "/api/v1/readings?start=0&order=asc&format=csv");
    }
}
