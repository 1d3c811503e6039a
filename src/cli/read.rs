//! `read HOST`: one reading of one plug, now, without a store.
//!
//! The running agent is asked first: it holds the plug's only connection, and a second one may end the first. Without
//! an agent, or with `--direct`, the plug itself is asked.

use std::io;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::args::{Format, Route};
use super::{Outcome, discover, keyring, table};
use crate::agent;
use crate::clock::Clock;
use crate::config::Config;
use crate::http::client;
use crate::http::rows::{RowView, RowWriter, Shape, TimeForm};
use crate::limits;
use crate::plug::discovery::{self, Ports, Sighting};
use crate::plug::{Answer, Client, Means, Patience, Place, PollError, Tcp};
use crate::query::field::Field;
use crate::reading::{DeviceId, Protocol, Reading};

/// Reads the plug that `host` names: an address or host name, or, with the agent's help, an id or an alias.
pub async fn run(
    config: &Config,
    clock: &dyn Clock,
    ports: Ports,
    host: &str,
    route: Route,
    format: Format,
) -> Outcome {
    let address = match route {
        Route::Direct => None,
        Route::AgentFirst => match ask_agent(config, clock, host).await {
            Ok(Told::Readings(document)) => return print_document(&document, format),
            Ok(Told::At(address)) => Some(address),
            Ok(Told::Nothing) | Err(_) => None,
        },
    };
    let found = match address {
        Some(address) => Ok(address),
        None => resolve(host).await,
    };
    match found {
        Err(error) => refuse(format!(
            "{host} is no address and no name that can be looked up ({error}), and no running agent knows a plug by it"
        )),
        Ok(ip) => read_at(config, clock, ports, ip, format).await,
    }
}

/// Asks the plug at `ip` itself, in the protocol that it announces; in the open when it announces none.
async fn read_at(config: &Config, clock: &dyn Clock, ports: Ports, ip: IpAddr, format: Format) -> Outcome {
    let announced = discovery::locate(ip, ports, clock).await.ok().flatten();
    if let Some(error) = announced.as_ref().and_then(Sighting::trouble) {
        return refuse(format!("{ip}: {error}"));
    }
    let open = Place { address: SocketAddr::new(ip, ports.iot), protocol: Protocol::IotXor };
    let place = announced.as_ref().map_or(open, Sighting::place);
    let (keys, note) = keyring(config);
    let patience = Patience { exchange: config.poll.timeout, poll: limits::POLL_BUDGET };
    let means = Means { transport: &Tcp, clock, keys: &keys, patience };
    match Client::new(place, announced.map(|sighting| sighting.facts.mac)).poll(means).await {
        Err(error @ PollError::Session(_)) => refuse(format!("{ip}: {error}\n{note}").trim_end().to_owned()),
        Err(error) => refuse(format!("{ip}: {error}")),
        Ok(answer) => print_answer(&answer, place.address, format),
    }
}

fn refuse(why: String) -> Outcome {
    Outcome { stderr: why + "\n", code: 1, ..Outcome::default() }
}

async fn resolve(host: &str) -> io::Result<IpAddr> {
    if let Ok(ip) = host.parse() {
        return Ok(ip);
    }
    let found = async_net::resolve((host, 0)).await?;
    found.first().map(SocketAddr::ip).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// What a running agent says about a plug.
enum Told {
    /// Its device and fresh readings.
    Readings(Value),
    /// The agent knows it but has nothing fresh: where it is.
    At(IpAddr),
    /// The agent does not know it.
    Nothing,
}

/// What the running agent says at `path`. None when it has nothing to say there.
///
/// # Errors
/// When no agent answers.
pub(super) async fn ask(config: &Config, clock: &dyn Clock, path: &str) -> io::Result<Option<Value>> {
    let token = agent::token(config).ok().flatten();
    let body = client::get(clock, config.listen, path, token.as_ref()).await?;
    Ok(body.and_then(|body| serde_json::from_slice(&body).ok()))
}

async fn ask_agent(config: &Config, clock: &dyn Clock, host: &str) -> io::Result<Told> {
    let get = async |path: &str| ask(config, clock, path).await;
    let Some(devices) = get("/api/v1/devices").await? else { return Ok(Told::Nothing) };
    let found = list(&devices, "devices").iter().find_map(|device| {
        let is_named = |thing: &&Value| ["id", "alias", "address"].iter().any(|key| text(thing, key) == Some(host));
        let named = std::iter::once(device).chain(list(device, "outlets")).find(is_named)?;
        Some((device, text(named, "id")?))
    });
    let Some((device, id)) = found else { return Ok(Told::Nothing) };
    let Some(latest) = get(&format!("/api/v1/latest?device={id}")).await? else { return Ok(Told::Nothing) };
    // A reading that is older than two polls is no reading "now".
    let interval = device.get("interval_s").and_then(Value::as_f64).unwrap_or(0.0).clamp(0.0, 3_600.0);
    let is_fresh = |reading: &Value| {
        let age = reading.get("age_ms").and_then(Value::as_f64).unwrap_or(f64::INFINITY);
        reading.get("online") == Some(&Value::Bool(true)) && age <= interval * 2_000.0
    };
    let readings = list(&latest, "readings");
    if !readings.is_empty() && readings.iter().all(is_fresh) {
        return Ok(Told::Readings(json!({ "device": device, "readings": readings })));
    }
    Ok(text(device, "address").and_then(|address| address.parse().ok()).map_or(Told::Nothing, Told::At))
}

pub(super) fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

pub(super) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn print_document(document: &Value, format: Format) -> Outcome {
    let stdout = match format {
        Format::Json => format!("{document:#}\n"),
        Format::Table => table::from_json(list(document, "readings")),
    };
    Outcome { stdout, ..Outcome::default() }
}

/// A reading in the form that the HTTP API gives it.
fn object(id: DeviceId, reading: &Reading) -> Value {
    let writer = RowWriter { fields: Field::OF_READINGS.to_vec(), time: TimeForm::Rfc3339, shape: Shape::Object };
    let mut json = Vec::new();
    writer.write_row(&mut json, RowView { id, reading, latest: None });
    serde_json::from_slice(&json).unwrap_or_default()
}

fn print_answer(answer: &Answer, address: SocketAddr, format: Format) -> Outcome {
    let Answer { facts, readings, implausible, silent, broken_off, .. } = answer;
    let stdout = match format {
        Format::Json => {
            let readings: Vec<Value> = readings.iter().map(|(id, reading)| object(*id, reading)).collect();
            format!("{:#}\n", json!({ "device": discover::description(facts, address), "readings": readings }))
        }
        Format::Table if !facts.has_meter => String::new(),
        Format::Table => table::readings(readings.iter().map(|(id, reading)| (*id, facts.name_of(*id), *reading))),
    };
    let mut stderr = String::new();
    if !facts.has_meter {
        stderr += &format!("{} ({}) has no meter: there is nothing to read\n", facts.alias, facts.model);
    }
    for (id, value) in implausible {
        stderr += &format!("{id}: {value}; left out\n");
    }
    for (id, error) in silent {
        stderr += &format!("{id}: {error}\n");
    }
    let failed = broken_off.as_ref().map(PollError::to_string);
    stderr +=
        &failed.as_ref().map(|why| format!("the outlets after these did not answer: {why}\n")).unwrap_or_default();
    Outcome { stdout, stderr, code: u8::from(failed.is_some() || !implausible.is_empty() || !silent.is_empty()) }
}
