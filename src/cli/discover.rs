//! `discover`: who answers on this network.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::Outcome;
use super::args::Format;
use crate::clock::{Clock, within};
use crate::config::Config;
use crate::limits;
use crate::plug::discovery::{self, Sighting};
use crate::reading::{DeviceId, Mac, PlugFacts};

/// Where probes go: the discovery targets and the known plugs.
fn targets(config: &Config) -> Vec<IpAddr> {
    let found = config.discovery.targets.iter().copied().map(IpAddr::V4).filter(|_| config.discovery.enabled);
    let mut targets: Vec<_> = found.chain(config.plugs.iter().map(|plug| plug.address)).collect();
    targets.dedup();
    targets
}

/// What [`run`] would send, and where.
#[must_use]
pub fn dry_run(config: &Config, port: u16) -> Outcome {
    let line =
        |target| format!("UDP {}: get_sysinfo, {} times\n", SocketAddr::new(target, port), limits::DISCOVERY_PROBES);
    Outcome { stdout: targets(config).into_iter().map(line).collect(), ..Outcome::default() }
}

/// Probes for [`limits::DISCOVERY_ROUND`] and lists what answered, each plug once. Exit code 1 when nothing did.
pub async fn run(config: &Config, clock: &dyn Clock, port: u16, format: Format) -> Outcome {
    match probe(config, clock, port).await {
        Err(error) => Outcome { stderr: format!("no probe can be sent: {error}\n"), code: 1, ..Outcome::default() },
        Ok((found, troubles)) => {
            let hint = if found.is_empty() {
                "nothing answered. Plugs must be on this network and powered; newer firmware closes port 9999.\n"
            } else {
                ""
            };
            let stdout = match format {
                Format::Table => table(&found),
                Format::Json => {
                    let devices: Vec<_> = found.values().map(device).collect();
                    format!("{:#}\n", json!({ "devices": devices }))
                }
            };
            Outcome { stdout, stderr: troubles + hint, code: u8::from(found.is_empty()) }
        }
    }
}

pub(super) type Found = BTreeMap<Mac, Sighting>;

pub(super) async fn probe(config: &Config, clock: &dyn Clock, port: u16) -> io::Result<(Found, String)> {
    let (prober, mut listener) = discovery::open(port).await?;
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
            if found.len() < limits::DISCOVERED_HOSTS {
                found.entry(sighting.facts.mac).or_insert(sighting);
            }
        }
    }
    Ok((found, troubles))
}

fn table(found: &Found) -> String {
    let mut text = format!(
        "{:<15} {:<12} {:<20} {:<14} {:<10} {:<32} {}\n",
        "ADDRESS", "ID", "ALIAS", "MODEL", "PROTOCOL", "FIRMWARE", "METER"
    );
    for Sighting { address, facts } in found.values() {
        let meter = match (facts.has_meter, facts.outlets.len()) {
            (false, _) => "no".to_owned(),
            (true, 0) => "yes".to_owned(),
            (true, outlets) => format!("yes, {outlets} outlets"),
        };
        text += &format!(
            "{:<15} {:<12} {:<20} {:<14} {:<10} {:<32} {meter}\n",
            address.ip(),
            facts.mac,
            facts.alias,
            facts.model,
            facts.protocol,
            facts.firmware
        );
    }
    text
}

fn device(sighting: &Sighting) -> Value {
    description(&sighting.facts, sighting.address)
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
        "has_meter": facts.has_meter,
        "outlets": outlets.collect::<Vec<_>>(),
    })
}
