//! What a person would look at when something seems wrong, judged. Pure: facts in, findings out.
//!
//! Owns the judgement and its words; the facts are gathered by whoever asks. Promises that each finding which is not fine
//! ends in what to do, and that nothing is called wrong which keeps no reading from being taken and kept.

use serde_json::Value;

use crate::clock::BUILT;
use crate::config::{Loaded, Origin, Problems, Warning};
use crate::units::UnixMillis;

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at: one word.
    pub topic: &'static str,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub what: String,
    /// What to do. None for what is fine.
    pub advice: Option<String>,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As it should be.
    Fine,
    /// It works, but may not as the user wants.
    Doubtful,
    /// Readings are lost, wrong or out of reach.
    Wrong,
}

impl State {
    /// Its name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Doubtful => "warning",
            Self::Wrong => "problem",
        }
    }
}

impl Finding {
    /// Nothing to do.
    pub fn fine(topic: &'static str, what: impl Into<String>) -> Self {
        Self { topic, state: State::Fine, what: what.into(), advice: None }
    }

    /// Worth a look.
    pub fn doubtful(topic: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { topic, state: State::Doubtful, what: what.into(), advice: Some(advice.into()) }
    }

    /// To be mended.
    pub fn wrong(topic: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { topic, state: State::Wrong, what: what.into(), advice: Some(advice.into()) }
    }
}

/// The settings: read from where, or what is wrong with them.
#[must_use]
pub fn settings(loaded: &Result<Loaded, Problems>) -> Vec<Finding> {
    let warned = |warnings: &[Warning]| -> Vec<Finding> {
        let advice = "change it, or leave it: `wattd config show` prints what is in force";
        warnings.iter().map(|warning| Finding::doubtful("settings", warning.to_string(), advice)).collect()
    };
    match loaded {
        Ok(loaded) => {
            let set = loaded.settings.iter().filter(|setting| setting.origin != Origin::Default).count();
            let file = loaded.file.as_ref().map_or("no file".to_owned(), |path| path.display().to_string());
            let mut findings = vec![Finding::fine("settings", format!("{file}, {set} values set"))];
            findings.extend(warned(&loaded.warnings));
            findings
        }
        Err(problems) => {
            let advice = "mend it; `wattd config check` says whether all is well";
            let wrong = problems.problems.iter().map(|problem| Finding::wrong("settings", problem.to_string(), advice));
            wrong.chain(warned(&problems.warnings)).collect()
        }
    }
}

/// The machine's clock. `synchronised`: what the system says of it, if it says anything.
#[must_use]
pub fn clock(wall: UnixMillis, synchronised: Option<bool>) -> Finding {
    let set = "set it from the network: sudo timedatectl set-ntp true";
    match synchronised {
        _ if wall < BUILT => Finding::wrong("clock", format!("{wall} is before this program was written"), set),
        Some(true) => Finding::fine("clock", format!("{wall}, synchronised")),
        Some(false) => Finding::doubtful("clock", format!("{wall}, not synchronised"), set),
        None => Finding::doubtful(
            "clock",
            format!("{wall}; nothing here says whether it is synchronised"),
            "compare it with another clock; on a Pi let systemd-timesyncd or chrony run",
        ),
    }
}

/// The time zone in which days begin, and who said so.
#[must_use]
pub fn zone(name: &str, origin: &Origin) -> Finding {
    if name == "UTC" && *origin == Origin::Default {
        let advice = "set the system's zone (sudo timedatectl set-timezone Europe/Berlin), or `timezone` in wattd.toml";
        return Finding::doubtful("zone", "days begin at midnight in UTC", advice);
    }
    Finding::fine("zone", format!("days begin at midnight in {name}"))
}

/// Whether there is a network beyond this machine. `routes` is the text of /proc/net/route.
#[must_use]
pub fn network(routes: &str) -> Finding {
    let mut devices: Vec<&str> = routes.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    devices.dedup();
    devices.retain(|device| *device != "lo");
    if devices.is_empty() {
        let advice = "plug in the cable, or join the Wi-Fi: sudo nmtui";
        return Finding::wrong("network", "this machine has no way to any other", advice);
    }
    Finding::fine("network", format!("up on {}", devices.join(", ")))
}

/// The running agent. `health` is its answer to /health, if it answered.
#[must_use]
pub fn agent(listen: &str, health: Option<&Value>) -> Finding {
    let Some(health) = health else {
        let advice = "start it: sudo systemctl enable --now wattd, or by hand: wattd run";
        return Finding::wrong("agent", format!("no agent answers at {listen}"), advice);
    };
    let count = |key: &str| health.get(key).and_then(Value::as_u64).unwrap_or(0);
    let version = health.get("version").and_then(Value::as_str).unwrap_or("?");
    let kept = format!("{} readings on disk, {} waiting", count("readings_committed"), count("readings_pending"));
    match (count("readings_dropped"), version == env!("CARGO_PKG_VERSION")) {
        (0, true) => Finding::fine("agent", format!("version {version} at {listen}: {kept}")),
        (0, false) => Finding::doubtful(
            "agent",
            format!("the agent at {listen} is version {version}, this program {}", env!("CARGO_PKG_VERSION")),
            "start the agent anew: sudo systemctl restart wattd",
        ),
        (dropped, _) => Finding::wrong(
            "agent",
            format!("{kept}, and {dropped} lost because the disk took none"),
            "look at the disk below, and at journalctl -u wattd -p err",
        ),
    }
}

/// Signal below which packets get lost, in dBm.
const WEAK: i64 = -75;

/// One plug, as the agent's /api/v1/devices describes it.
#[must_use]
pub fn plug(device: &Value) -> Finding {
    let text = |key: &str| device.get(key).and_then(Value::as_str).unwrap_or("?");
    let trouble = device.get("last_error").and_then(|error| error.get("text")).and_then(Value::as_str);
    let title = format!("{} ({}) at {}", text("alias"), text("id"), text("address"));
    let detail = format!("{}, {}, firmware {}", text("model"), text("protocol"), text("firmware"));
    let polls = |key: &str| device.get("polls").and_then(|polls| polls.get(key)).and_then(Value::as_u64).unwrap_or(0);
    let (answered, failed) = (polls("answered"), polls("failed"));
    let signal = device.get("signal_dbm").and_then(Value::as_i64);
    match device.get("online").and_then(Value::as_bool) {
        Some(false) => {
            let why = trouble.map(|trouble| format!(": {trouble}")).unwrap_or_default();
            Finding::wrong(
                "plug",
                format!("{title}: offline{why}"),
                "see that it has power and is in this network; then wait a minute",
            )
        }
        None => Finding::doubtful("plug", format!("{title}: not asked yet"), "ask again in a minute"),
        Some(true) if signal.is_some_and(|signal| signal < WEAK) => Finding::doubtful(
            "plug",
            format!("{title}: {detail}; weak signal of {} dBm", signal.unwrap_or(0)),
            "bring it or the access point nearer; below -75 dBm polls get lost",
        ),
        Some(true) if failed > 10 && failed.saturating_mul(20) > answered => Finding::doubtful(
            "plug",
            format!("{title}: {detail}; {failed} of {} polls failed", answered.saturating_add(failed)),
            trouble
                .map_or("see that nothing else asks it: many plugs serve one client at a time".to_owned(), |trouble| {
                    format!("the last time: {trouble}")
                }),
        ),
        Some(true) if device.get("has_meter") == Some(&Value::Bool(false)) => {
            Finding::fine("plug", format!("{title}: {detail}; it has no meter, so there is nothing to record"))
        }
        Some(true) => {
            let signal = signal.map(|signal| format!("; signal {signal} dBm")).unwrap_or_default();
            Finding::fine("plug", format!("{title}: {detail}{signal}"))
        }
    }
}

/// A file system with the readings on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// The data directory.
    pub dir: String,
    /// Its kind: ext4, tmpfs.
    pub kind: String,
    /// Bytes that can still be written.
    pub free: u64,
    /// Bytes that the readings take.
    pub used: u64,
    /// The most that they may take.
    pub allowed: u64,
    /// How much of its life a soldered flash has behind it, in tenths, the worse of its two areas; SD cards do not tell.
    pub worn: Option<u8>,
}

/// Bytes that a commit may need at once, generously.
const TIGHT: u64 = 64 * 1024 * 1024;

/// Where the readings are kept.
#[must_use]
pub fn disk(disk: &Disk) -> Vec<Finding> {
    const MB: u64 = 1_000_000;
    let Disk { dir, kind, free, used, allowed, worn } = disk;
    let seen = format!("{dir} ({kind}): {} MB free, readings take {} MB", free / MB, used / MB);
    let space = if matches!(kind.as_str(), "tmpfs" | "ramfs" | "overlay") {
        let advice = "give another data_dir, on a disk; on a Pi switch the overlay file system off (raspi-config)";
        Finding::wrong("disk", format!("{seen}; a {kind} forgets everything at a restart"), advice)
    } else if *free < TIGHT {
        Finding::wrong("disk", seen, "make room, or lower retention.max_size")
    } else if *free < allowed.saturating_sub(*used).min(1024 * MB) {
        let advice = format!("make room, or lower retention.max_size, which allows {} MB", allowed / MB);
        Finding::doubtful("disk", format!("{seen}, and may come to take more than there is"), advice)
    } else {
        Finding::fine("disk", seen)
    };
    let wear = worn.map(|tenths| match tenths {
        0..=7 => Finding::fine("wear", format!("the flash has used at most {} % of its life", u16::from(tenths) * 10)),
        _ => Finding::doubtful(
            "wear",
            format!("the flash has used {} % of its life or more", u16::from(tenths).saturating_sub(1) * 10),
            "make a backup (wattd backup FILE), and have another card or disk at hand",
        ),
    });
    std::iter::once(space).chain(wear).collect()
}

/// A file with a secret in it, and who may read it. `mode` is none when it cannot be looked at.
#[must_use]
pub fn secret(path: &str, mode: Option<u32>) -> Finding {
    match mode {
        None => {
            Finding::wrong("secret", format!("{path} cannot be looked at"), "see that it is there, and ask as root")
        }
        Some(mode) if mode & 0o077 != 0 => Finding::doubtful(
            "secret",
            format!("others on this machine may read {path} (mode {:o})", mode & 0o777),
            format!("sudo chmod 600 {path}"),
        ),
        Some(_) => Finding::fine("secret", format!("{path} is its owner's alone")),
    }
}

/// What `systemctl show` says of the unit: lines of NAME=VALUE.
#[must_use]
pub fn unit(show: &str) -> Finding {
    let value = |name: &str| {
        let mut values = show.lines().filter_map(|line| line.split_once('='));
        values.find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    };
    let restarts: u64 = value("NRestarts").parse().unwrap_or(0);
    let log = "read why: journalctl -u wattd -n 50";
    match (value("LoadState"), value("ActiveState"), value("UnitFileState")) {
        ("not-found", ..) | ("", ..) => Finding::doubtful(
            "unit",
            "systemd knows no wattd.service, so nothing starts it with the machine",
            "install the package, or run sudo make install",
        ),
        (_, "failed", _) => Finding::wrong("unit", format!("wattd.service has failed ({})", value("Result")), log),
        (_, "active", _) if restarts > 3 => {
            Finding::doubtful("unit", format!("wattd.service runs, but was started anew {restarts} times"), log)
        }
        (_, _, "disabled") => Finding::doubtful(
            "unit",
            "wattd.service does not start with the machine",
            "sudo systemctl enable --now wattd",
        ),
        (_, "active", _) => Finding::fine("unit", "wattd.service runs, and starts with the machine"),
        (_, state, _) => Finding::wrong(
            "unit",
            format!("wattd.service is {state}"),
            "sudo systemctl start wattd; then look here again",
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn state(finding: &Finding) -> State {
        assert_eq!(finding.advice.is_none(), finding.state == State::Fine, "{finding:?} ends in what to do");
        finding.state
    }

    #[test]
    fn the_clock_of_a_machine_without_one_is_wrong_until_it_is_set() {
        assert_eq!(state(&clock(UnixMillis::new(4_000), Some(false))), State::Wrong);
        let today = BUILT.plus(86_400_000);
        assert_eq!(state(&clock(today, Some(false))), State::Doubtful);
        assert_eq!(state(&clock(today, None)), State::Doubtful);
        assert_eq!(state(&clock(today, Some(true))), State::Fine);
    }

    #[test]
    fn a_network_is_a_route_that_is_not_loopback() {
        let head = "Iface\tDestination\tGateway\n";
        assert_eq!(state(&network(head)), State::Wrong);
        assert_eq!(state(&network(&format!("{head}lo\t0000007F\t0\n"))), State::Wrong);
        let up = network(&format!("{head}wlan0\t00000000\t0101A8C0\nwlan0\t0001A8C0\t0\n"));
        assert_eq!((state(&up), up.what.as_str()), (State::Fine, "up on wlan0"));
    }

    #[test]
    fn plugs_are_judged_by_what_the_agent_says_of_them() {
        let device = |online: Value, signal: i64, answered: u64, failed: u64| {
            json!({"id": "9c5322aabbcc", "alias": "fridge", "model": "HS110", "address": "192.168.1.20",
                "protocol": "iot-xor", "firmware": "1.2.5", "has_meter": true, "online": online, "signal_dbm": signal,
                "polls": {"answered": answered, "failed": failed}, "last_error": {"text": "no answer within 5s"}})
        };
        let fine = plug(&device(json!(true), -50, 100, 1));
        assert_eq!(state(&fine), State::Fine);
        assert!(fine.what.contains("iot-xor") && fine.what.contains("1.2.5") && fine.what.contains("-50 dBm"));
        assert_eq!(state(&plug(&device(json!(true), -80, 100, 1))), State::Doubtful);
        assert_eq!(state(&plug(&device(json!(true), -50, 100, 20))), State::Doubtful);
        assert_eq!(state(&plug(&device(json!(null), -50, 0, 0))), State::Doubtful);
        let offline = plug(&device(json!(false), -50, 100, 20));
        assert_eq!(state(&offline), State::Wrong);
        assert!(offline.what.ends_with("offline: no answer within 5s"));
    }

    #[test]
    fn a_disk_that_is_full_worn_or_none_is_told() {
        let good = Disk {
            dir: "/var/lib/wattd".to_owned(),
            kind: "ext4".to_owned(),
            free: 20_000_000_000,
            used: 5_000_000,
            allowed: 2_000_000_000,
            worn: Some(1),
        };
        assert!(disk(&good).iter().all(|finding| state(finding) == State::Fine));
        let first = |disk_: Disk| state(&disk(&disk_)[0]);
        assert_eq!(first(Disk { free: 10_000_000, ..good.clone() }), State::Wrong);
        assert_eq!(first(Disk { free: 500_000_000, ..good.clone() }), State::Doubtful);
        assert_eq!(first(Disk { kind: "tmpfs".to_owned(), ..good.clone() }), State::Wrong);
        assert_eq!(state(&disk(&Disk { worn: Some(10), ..good })[1]), State::Doubtful);
    }

    #[test]
    fn the_unit_is_judged_by_what_systemd_shows() {
        let show = |load: &str, active: &str, file: &str, restarts: u32| {
            let lines = format!("LoadState={load}\nActiveState={active}\nUnitFileState={file}\nResult=exit-code\n");
            state(&unit(&format!("{lines}NRestarts={restarts}\n")))
        };
        assert_eq!(show("loaded", "active", "enabled", 0), State::Fine);
        assert_eq!(show("loaded", "active", "enabled", 9), State::Doubtful);
        assert_eq!(show("loaded", "active", "disabled", 0), State::Doubtful);
        assert_eq!(show("loaded", "failed", "enabled", 9), State::Wrong);
        assert_eq!(show("loaded", "inactive", "enabled", 0), State::Wrong);
        assert_eq!(show("not-found", "inactive", "", 0), State::Doubtful);
    }

    #[test]
    fn secrets_lost_readings_and_a_missing_agent_are_told() {
        assert_eq!(state(&secret("/etc/wattd/token", Some(0o100_600))), State::Fine);
        assert_eq!(state(&secret("/etc/wattd/token", Some(0o100_644))), State::Doubtful);
        assert_eq!(state(&secret("/etc/wattd/token", None)), State::Wrong);
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(state(&agent("127.0.0.1:8650", None)), State::Wrong);
        let health = |dropped: u64, version: &str| json!({"version": version, "readings_dropped": dropped});
        assert_eq!(state(&agent("127.0.0.1:8650", Some(&health(0, version)))), State::Fine);
        assert_eq!(state(&agent("127.0.0.1:8650", Some(&health(0, "0.0.9")))), State::Doubtful);
        assert_eq!(state(&agent("127.0.0.1:8650", Some(&health(7, version)))), State::Wrong);
    }
}
