//! `discover`: who answers on this network.
//!
//! A plug that answers in the open tells all of itself. One that wants a login only announces itself: what else there is
//! to know of it, the running agent knows, or a login brings.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use smol::LocalExecutor;

use super::args::Format;
use super::read::{self, text};
use super::{Outcome, keyring};
use crate::clock::{Clock, within};
use crate::config::Config;
use crate::limits;
use crate::plug::discovery::{self, Manner, Ports, Sighting};
use crate::plug::keyring::Keyring;
use crate::plug::{Client, Means, Patience, Tcp};
use crate::reading::{Alias, DeviceId, Label, Mac, OutletFacts, PlugFacts, Protocol};

/// Where probes go: the discovery targets and the known plugs.
fn targets(config: &Config) -> Vec<IpAddr> {
    let found = config.discovery.targets.iter().copied().map(IpAddr::V4).filter(|_| config.discovery.enabled);
    let mut targets: Vec<_> = found.chain(config.plugs.iter().map(|plug| plug.address)).collect();
    targets.dedup();
    targets
}

/// What [`run`] would send, and where.
#[must_use]
pub fn dry_run(config: &Config, ports: Ports) -> Outcome {
    let [first, second] = ports.announcing;
    let line = |target| {
        let open = SocketAddr::new(target, ports.iot);
        let times = limits::DISCOVERY_PROBES;
        format!(
            "UDP {open}: get_sysinfo, {times} times; UDP {target} ports {first} and {second}: probe, {times} times\n"
        )
    };
    Outcome { stdout: targets(config).into_iter().map(line).collect(), ..Outcome::default() }
}

/// Probes for [`limits::DISCOVERY_ROUND`] and lists what answered, each plug once. Exit code 1 when nothing did.
pub async fn run(config: &Config, clock: &dyn Clock, ports: Ports, format: Format) -> Outcome {
    match probe(config, clock, ports).await {
        Err(error) => Outcome { stderr: format!("no probe can be sent: {error}\n"), code: 1, ..Outcome::default() },
        Ok((found, mut stderr)) => {
            let (keys, note) = keyring(config);
            let rows = look_closer(config, clock, &keys, found).await;
            if rows.is_empty() {
                stderr += "nothing answered. Plugs must be on this network and powered, and let themselves be asked from \
                    it (in the vendor's app: Me > Third-Party Services > Third-Party Compatibility).\n";
            }
            if rows.iter().any(|row| row.trouble.is_some()) {
                stderr += &note;
            }
            let stdout = match format {
                Format::Table => table(&rows),
                Format::Json => {
                    let devices: Vec<_> = rows.iter().map(Row::json).collect();
                    format!("{:#}\n", json!({ "devices": devices }))
                }
            };
            Outcome { stdout, stderr, code: u8::from(rows.is_empty()) }
        }
    }
}

pub(super) type Found = BTreeMap<Mac, Sighting>;

pub(super) async fn probe(config: &Config, clock: &dyn Clock, ports: Ports) -> io::Result<(Found, String)> {
    let (prober, mut listener) = discovery::open(ports).await?;
    let start = clock.elapsed();
    let (mut found, mut troubles) = (Found::new(), String::new());
    for turn in 1..=limits::DISCOVERY_PROBES {
        for target in targets(config) {
            if let Err(error) = prober.probe(target).await
                && turn == 1
            {
                troubles += &format!("nothing can be sent to {target}: {error}\n");
            }
        }
        let until = start.saturating_add(limits::DISCOVERY_ROUND * turn / limits::DISCOVERY_PROBES);
        while let Some(sighting) = within(clock, until, listener.next()).await {
            let sighting = sighting?;
            let known = found.get(&sighting.facts.mac);
            // A plug that answers in the open as well is asked there.
            let is_better = known.is_none_or(|known| rank(&sighting) > rank(known));
            if is_better && (known.is_some() || found.len() < limits::DISCOVERED_HOSTS) {
                found.insert(sighting.facts.mac, sighting);
            }
        }
    }
    Ok((found, troubles))
}

fn rank(sighting: &Sighting) -> u8 {
    match sighting.manner {
        Manner::Unsupported(_) => 0,
        Manner::Announced => 1,
        Manner::Introduced => 2,
    }
}

/// A plug, what is known of it, and why it is not more.
struct Row {
    sighting: Sighting,
    /// Whether all of its facts are there.
    is_whole: bool,
    trouble: Option<String>,
}

/// Finds out more about plugs that only announce themselves: the agent knows some, the others are asked.
async fn look_closer(config: &Config, clock: &dyn Clock, keys: &Keyring, found: Found) -> Vec<Row> {
    let is_shy = |sighting: &&Sighting| sighting.manner == Manner::Announced;
    let agent = match found.values().any(|sighting| is_shy(&sighting)) {
        true => read::ask(config, clock, "/api/v1/devices").await.ok().flatten().unwrap_or_default(),
        false => Value::Null,
    };
    let patience = Patience { exchange: config.poll.timeout, poll: limits::POLL_BUDGET };
    let executor = LocalExecutor::new();
    let rows: Vec<_> = found
        .into_values()
        .map(|sighting| {
            let known = told_by_agent(&agent, sighting.facts.mac);
            executor.spawn(async move {
                let means = Means { transport: &Tcp, clock, keys, patience };
                closer(sighting, known, means).await
            })
        })
        .collect();
    executor
        .run(async {
            let mut done = Vec::with_capacity(rows.len());
            for row in rows {
                done.push(row.await);
            }
            done
        })
        .await
}

async fn closer(mut sighting: Sighting, known: Option<Told>, means: Means<'_, Tcp>) -> Row {
    if let Some(error) = sighting.trouble() {
        return Row { sighting, is_whole: false, trouble: Some(error.to_string()) };
    }
    if sighting.manner == Manner::Introduced {
        return Row { sighting, is_whole: true, trouble: None };
    }
    match known {
        // The agent holds the plug's only session: another login would end it.
        Some(Told { facts, trouble }) => {
            let is_whole = !facts.firmware.is_empty();
            sighting.facts = PlugFacts { protocol: sighting.facts.protocol, ..facts };
            Row { sighting, is_whole, trouble }
        }
        None => match Client::new(sighting.place(), Some(sighting.facts.mac)).poll(means).await {
            Ok(answer) => {
                sighting.facts = answer.facts;
                Row { sighting, is_whole: true, trouble: None }
            }
            Err(error) => Row { sighting, is_whole: false, trouble: Some(error.to_string()) },
        },
    }
}

/// What the running agent says of a plug.
struct Told {
    facts: PlugFacts,
    trouble: Option<String>,
}

fn told_by_agent(devices: &Value, mac: Mac) -> Option<Told> {
    let id = mac.to_string();
    let device = read::list(devices, "devices").iter().find(|device| text(device, "id") == Some(&id))?;
    let label = |key| Label::new(text(device, key).unwrap_or_default());
    let outlet = |outlet: &Value| OutletFacts {
        alias: Alias::new(text(outlet, "alias").unwrap_or_default()),
        child: Default::default(),
    };
    let facts = PlugFacts {
        mac,
        alias: Alias::new(text(device, "alias").unwrap_or_default()),
        model: label("model"),
        hardware: label("hardware"),
        firmware: label("firmware"),
        protocol: Protocol::IotXor, // the sighting's counts
        has_meter: device.get("has_meter") == Some(&Value::Bool(true)),
        outlets: read::list(device, "outlets").iter().map(outlet).collect(),
    };
    let trouble = device.get("last_error").and_then(|error| text(error, "text")).map(str::to_owned);
    Some(Told { facts, trouble })
}

fn table(rows: &[Row]) -> String {
    let mut table = format!(
        "{:<15} {:<12} {:<20} {:<14} {:<10} {:<32} {}\n",
        "ADDRESS", "ID", "ALIAS", "MODEL", "PROTOCOL", "FIRMWARE", "METER"
    );
    for row in rows {
        let Sighting { address, facts, manner } = &row.sighting;
        let meter = match (row.is_whole, facts.has_meter, facts.outlets.len()) {
            (false, ..) => "?".to_owned(),
            (_, false, _) => "no".to_owned(),
            (_, true, 0) => "yes".to_owned(),
            (_, true, outlets) => format!("yes, {outlets} outlets"),
        };
        let protocol = match manner {
            Manner::Unsupported(name) => name.as_str(),
            _ => facts.protocol.name(),
        };
        table += &format!(
            "{:<15} {:<12} {:<20} {:<14} {protocol:<10} {:<32} {meter}\n",
            address.ip(),
            facts.mac,
            facts.alias,
            facts.model,
            facts.firmware
        );
        if let Some(trouble) = &row.trouble {
            table += &format!("{:<15} {trouble}\n", "");
        }
    }
    table
}

impl Row {
    fn json(&self) -> Value {
        let Sighting { address, facts, manner } = &self.sighting;
        let mut value = description(facts, *address);
        if let Some(fields) = value.as_object_mut() {
            if !self.is_whole {
                fields.insert("has_meter".to_owned(), Value::Null);
            }
            if let Manner::Unsupported(name) = manner {
                fields.insert("protocol".to_owned(), name.as_str().into());
            }
            fields.insert("last_error".to_owned(), json!(self.trouble));
        }
        value
    }
}

/// A plug in JSON, with the names that the HTTP API uses.
#[must_use]
pub fn description(facts: &PlugFacts, address: SocketAddr) -> Value {
    let outlets = facts.outlets.iter().enumerate().map(|(n, outlet)| {
        let id = u8::try_from(n).map(|n| DeviceId::outlet(facts.mac, n).to_string());
        json!({ "id": id.unwrap_or_default(), "alias": outlet.alias.as_str() })
    });
    json!({
        "id": facts.mac.to_string(),
        "alias": facts.alias.as_str(),
        "model": facts.model.as_str(),
        "hardware": facts.hardware.as_str(),
        "firmware": facts.firmware.as_str(),
        "protocol": facts.protocol.name(),
        "address": address.ip().to_string(),
        "port": address.port(),
        "has_meter": facts.has_meter,
        "outlets": outlets.collect::<Vec<_>>(),
    })
}
