//! `doctor`: gathers what a person would look at, and prints what [`doctor`] makes of it.
//!
//! The running agent is asked for what only it knows: its plugs, whose one connection each it holds, and its store. Without
//! an agent the plugs themselves are asked.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::args::Format;
use super::{Outcome, discover, keyring};
use crate::agent;
use crate::clock::{Clock, SYNCHRONISED};
use crate::config::{Config, Loaded, Problems};
use crate::doctor::{self, Disk, Finding, State};
use crate::http::client;
use crate::limits;
use crate::plug::discovery::Ports;
use crate::plug::{Client, Means, Patience, Place, Tcp};
use crate::reading::Protocol;
use crate::store;

/// Looks at everything. Exit code 1 when something is wrong.
pub async fn run(loaded: &Result<Loaded, Problems>, clock: &dyn Clock, ports: Ports, format: Format) -> Outcome {
    let mut findings = doctor::settings(loaded);
    findings.push(doctor::clock(clock.wall(), synchronised()));
    findings.push(doctor::network(&fs::read_to_string("/proc/net/route").unwrap_or_default()));
    if let Ok(loaded) = loaded {
        let zone = loaded.settings.iter().find(|setting| setting.key == "timezone");
        findings.extend(zone.map(|setting| doctor::zone(&setting.text, &setting.origin)));
        findings.extend(disk(&loaded.config));
        findings.extend(secrets(&loaded.config));
        findings.extend(plugs(&loaded.config, clock, ports).await);
    }
    findings.extend(unit());
    print(&findings, format)
}

/// What the system says of its clock, by timedatectl or by the mark of systemd's time service.
fn synchronised() -> Option<bool> {
    let asked = Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).output().ok();
    match asked.as_ref().map(|output| output.stdout.trim_ascii()) {
        Some(b"yes") => Some(true),
        Some(b"no") => Some(false),
        _ => Path::new(SYNCHRONISED).exists().then_some(true),
    }
}

fn unit() -> Option<Finding> {
    if !Path::new("/run/systemd/system").exists() {
        return None; // another init, or a container
    }
    let properties = "--property=LoadState,ActiveState,UnitFileState,Result,NRestarts";
    let output = Command::new("systemctl").args(["show", "wattd.service", properties]).output().ok()?;
    Some(doctor::unit(&String::from_utf8_lossy(&output.stdout)))
}

fn secrets(config: &Config) -> Vec<Finding> {
    let files = [&config.http.token_file, &config.account.password_file];
    let mode = |path: &Path| fs::metadata(path).map(|file| file.permissions().mode()).ok();
    files.into_iter().flatten().map(|path| doctor::secret(&path.display().to_string(), mode(path))).collect()
}

fn disk(config: &Config) -> Vec<Finding> {
    let dir = &config.data_dir;
    let found = fs::metadata(dir).and_then(|meta| Ok((meta, rustix::fs::statvfs(dir)?)));
    let (meta, space) = match found {
        Ok(found) => found,
        Err(error) => {
            let advice = "start the agent once: it makes the directory; if it is there, ask as root";
            return vec![Finding::doubtful("disk", format!("{}: {error}", dir.display()), advice)];
        }
    };
    let used = fs::metadata(store::path_in(dir)).map_or(0, |file| file.blocks().saturating_mul(512));
    let disk = Disk {
        dir: dir.display().to_string(),
        kind: kind_of(dir, &fs::read_to_string("/proc/self/mounts").unwrap_or_default()),
        free: space.f_bavail.saturating_mul(space.f_frsize),
        used,
        allowed: config.retention.max_size.get(),
        worn: worn(meta.dev()),
    };
    doctor::disk(&disk)
}

/// The kind of the file system that `dir` is on: that of the longest mount point above it, the last of several.
fn kind_of(dir: &Path, mounts: &str) -> String {
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let above = mounts.filter(|(point, _)| dir.starts_with(point));
    above.max_by_key(|(point, _)| point.len()).map_or("?", |(_, kind)| kind).to_owned()
}

/// How much of its life an eMMC says that it has used, in tenths.
fn worn(device: u64) -> Option<u8> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    // A partition's directory lies in its disk's.
    let disk = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let life = disk.ancestors().take(2).find_map(|dir| fs::read_to_string(dir.join("device/life_time")).ok())?;
    let tenths = |text: &str| u8::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    life.split_whitespace().filter_map(tenths).max()
}

/// The agent and its plugs, or the plugs themselves.
async fn plugs(config: &Config, clock: &dyn Clock, ports: Ports) -> Vec<Finding> {
    let token = agent::token(config).ok().flatten();
    let get = async |path: &str| -> Option<Value> {
        let body = client::get(clock, config.listen, path, token.as_ref()).await.ok()??;
        serde_json::from_slice(&body).ok()
    };
    let health = get("/health").await;
    let mut findings = vec![doctor::agent(&config.listen.to_string(), health.as_ref())];
    if health.is_none() {
        findings.extend(ask_plugs(config, clock, ports).await);
        return findings;
    }
    let Some(devices) = get("/api/v1/devices").await else {
        let advice = "ask as root, who can read the token";
        findings.push(Finding::doubtful("plug", "the agent does not tell about its plugs without the token", advice));
        return findings;
    };
    let list = |key: &str| devices.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let (met, unmet) = (list("devices"), list("unmet"));
    findings.extend(met.iter().map(doctor::plug));
    for unmet in &unmet {
        let address = unmet.get("address").and_then(Value::as_str).unwrap_or("?");
        let why = unmet.get("last_error").and_then(|error| error.get("text")).and_then(Value::as_str);
        let what = format!("no plug answers at {address}, which the settings name: {}", why.unwrap_or("not asked yet"));
        findings.push(Finding::wrong("plug", what, "see that it has power, and that this is still its address"));
    }
    if met.is_empty() && unmet.is_empty() {
        findings.push(no_plugs());
    }
    findings
}

fn no_plugs() -> Finding {
    let advice =
        "plugs must have power and be in this network; `wattd discover` asks again, [[plugs]] names one by its address";
    Finding::wrong("plug", "no plug answers", advice)
}

/// Asks the plugs that answer a probe, and those that the settings name, as long as the store's agent does not run.
async fn ask_plugs(config: &Config, clock: &dyn Clock, ports: Ports) -> Vec<Finding> {
    let found = match discover::probe(config, clock, ports).await {
        Ok((found, _)) => found,
        Err(error) => {
            let advice = "see what the firewall or another program does with UDP";
            return vec![Finding::wrong("plug", format!("no probe can be sent: {error}"), advice)];
        }
    };
    let mut places: Vec<_> = found.values().map(|sighting| (sighting.place(), sighting.trouble())).collect();
    for plug in &config.plugs {
        if !places.iter().any(|(place, _)| place.address.ip() == plug.address) {
            let address = SocketAddr::new(plug.address, ports.iot);
            places.push((Place { address, protocol: Protocol::IotXor }, None));
        }
    }
    let (keys, _) = keyring(config); // that the password cannot be read is a finding of its own
    let patience = Patience { exchange: config.poll.timeout, poll: limits::POLL_BUDGET };
    let means = Means { transport: &Tcp, clock, keys: &keys, patience };
    let mut findings = Vec::new();
    for (place, trouble) in places {
        let address = place.address;
        let answer = match trouble {
            Some(error) => Err(error),
            None => Client::new(place, None).poll(means).await,
        };
        findings.push(match answer {
            Err(error) => Finding::wrong(
                "plug",
                format!("{}: {error}", address.ip()),
                "see that it has power and that no other program talks with it",
            ),
            Ok(answer) => {
                let mut device = discover::description(&answer.facts, address);
                if let Some(device) = device.as_object_mut() {
                    device.insert("online".to_owned(), json!(true));
                    device.insert("signal_dbm".to_owned(), json!(answer.signal.map(|signal| signal.0)));
                }
                doctor::plug(&device)
            }
        });
    }
    if findings.is_empty() {
        findings.push(no_plugs());
    }
    findings
}

fn print(findings: &[Finding], format: Format) -> Outcome {
    let worst = findings.iter().map(|finding| finding.state).max().unwrap_or(State::Fine);
    let stdout = match format {
        Format::Json => {
            let entry = |finding: &Finding| {
                json!({
                    "topic": finding.topic,
                    "state": finding.state.name(),
                    "what": finding.what,
                    "advice": finding.advice,
                })
            };
            let findings: Vec<Value> = findings.iter().map(entry).collect();
            format!("{:#}\n", json!({ "ok": worst < State::Wrong, "findings": findings }))
        }
        Format::Table => {
            let line = |finding: &Finding| {
                let advice =
                    finding.advice.as_ref().map(|advice| format!("{:19}-> {advice}\n", "")).unwrap_or_default();
                format!("{:8} {:9} {}\n{advice}", finding.state.name(), finding.topic, finding.what)
            };
            findings.iter().map(line).collect()
        }
    };
    Outcome { stdout, code: u8::from(worst == State::Wrong), ..Outcome::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_that_of_the_nearest_mount_point() {
        let mounts = "/dev/root / ext4 rw 0 0\ntmpfs /nonexistent tmpfs rw 0 0\n/dev/sda1 /nonexistent/a ext4 rw 0 0\n";
        assert_eq!(kind_of(Path::new("/nonexistent/b"), mounts), "tmpfs");
        assert_eq!(kind_of(Path::new("/nonexistent/a/b"), mounts), "ext4");
        assert_eq!(kind_of(Path::new("/nonexistent-not"), mounts), "ext4");
    }

    #[test]
    fn findings_are_printed_with_what_to_do_and_only_a_problem_fails() {
        let mut findings = vec![Finding::fine("zone", "good"), Finding::doubtful("wear", "old", "buy another")];
        let outcome = print(&findings, Format::Table);
        assert_eq!(outcome.code, 0);
        assert_eq!(
            outcome.stdout,
            "ok       zone      good\nwarning  wear      old\n                   -> buy another\n"
        );
        findings.push(Finding::wrong("disk", "full", "make room"));
        let outcome = print(&findings, Format::Json);
        let document: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!((outcome.code, &document["ok"]), (1, &json!(false)));
        assert_eq!(document["findings"][2]["state"], "problem");
        assert_eq!(document["findings"][2]["advice"], "make room");
    }
}
