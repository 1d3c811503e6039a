//! The program as systemd sees it: what it says on the notification socket, what SIGHUP does, how lines reach the journal.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use wattd::sim::{Fleet, Load, Model, PlugSpec, test_net};

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Service {
    agent: Child,
    systemd: UnixDatagram,
    lines: Lines<BufReader<ChildStderr>>,
    config: PathBuf,
    address: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

impl Service {
    fn start(dir: &Path, settings: &str) -> Self {
        let (socket, config) = (dir.join("notify"), dir.join("wattd.toml"));
        let systemd = UnixDatagram::bind(&socket).unwrap();
        systemd.set_read_timeout(Some(PATIENCE)).unwrap();
        std::fs::write(&config, settings).unwrap();
        let mut agent = Command::new(env!("CARGO_BIN_EXE_wattd"))
            .args(["run", "--config"])
            .arg(&config)
            .arg("--data-dir")
            .arg(dir.join("store"))
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "400000")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(agent.stderr.take().unwrap()).lines();
        let mut service = Self { agent, systemd, lines, config, address: String::new() };
        let line = service.line("serving http://");
        line.split_once("http://").unwrap().1.trim_end_matches('/').clone_into(&mut service.address);
        service
    }

    /// The next log line with `what` in it.
    fn line(&mut self, what: &str) -> String {
        let line = self.lines.by_ref().map_while(Result::ok).find(|line| line.contains(what));
        line.unwrap_or_else(|| panic!("the agent ended without a line with {what:?}"))
    }

    /// The next message to systemd that begins with `what`.
    fn told(&self, what: &str) -> String {
        let mut buffer = [0; 4_096];
        loop {
            let length = self.systemd.recv(&mut buffer).unwrap_or_else(|error| panic!("waiting for {what}: {error}"));
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if message.starts_with(what) {
                return message;
            }
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.agent.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    fn get(&self, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    fn stop(&mut self) {
        self.signal("-TERM");
        self.told("STOPPING=1");
        assert!(self.agent.wait().unwrap().success());
    }
}

const QUIET: &str = "listen = \"127.0.0.1:0\"\n[discovery]\nenabled = false\n";

#[test]
fn systemd_hears_that_the_agent_is_ready_and_that_a_quiet_house_is_well() {
    let dir = tempfile::tempdir().unwrap();
    let mut service = Service::start(dir.path(), QUIET);
    let ready = service.told("READY=1");
    assert_eq!(ready, "READY=1\nSTATUS=0 of 0 plugs answer; 0 readings on disk, 0 waiting to be written");
    // Ready means that it answers.
    assert!(service.get("/health").contains("200 OK"));
    for _ in 0..5 {
        service.told("WATCHDOG=1");
        service.told("STATUS=0 of 0 plugs answer;");
    }
    service.stop();
}

#[test]
fn sighup_brings_new_settings_into_force_while_the_store_stays_open() {
    let net = test_net(0).unwrap();
    let plug = PlugSpec::new(Model::Kp115, net.host(1), 1).alias("kettle").loads(&[Load::Kettle]);
    let _plugs = Fleet::start(net.fleet(vec![plug])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Service::start(dir.path(), QUIET);
    service.told("READY=1");
    let quick = "poll.interval = \"200ms\"\npoll.min_interval = \"200ms\"\n";
    let plugs = format!("[[plugs]]\naddress = \"{}\"\nname = \"tea\"\n", net.host(1));
    let settings = format!("retention.raw = \"30d\"\n{quick}{QUIET}{plugs}");
    std::fs::write(&service.config, settings).unwrap();
    service.signal("-HUP");
    service.line("the new settings are in force, but for retention, which only a restart changes");
    let told = service.told("READY=1");
    assert!(told.contains("STATUS=the new settings are in force"), "{told}");
    service.told("STATUS=1 of 1 plugs answer");
    assert!(service.get("/api/v1/latest?device=tea").contains("\"alias\":\"tea\""));
    service.stop();
}

#[test]
fn sighup_with_settings_that_cannot_be_used_keeps_the_old_ones_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut service = Service::start(dir.path(), QUIET);
    service.told("READY=1");
    std::fs::write(&service.config, format!("pol = 1\n{QUIET}")).unwrap();
    service.signal("-HUP");
    let line = service.line("the new settings are refused, the old ones stay in force");
    assert!(line.contains("wattd.toml:1: unknown key `pol`"), "{line}");
    service.told("STATUS=new settings refused, the old ones are in force: ");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("listen = \"{}\"", taken.local_addr().unwrap());
    std::fs::write(&service.config, QUIET.replace("listen = \"127.0.0.1:0\"", &listen)).unwrap();
    service.signal("-HUP");
    let line = service.line("the new settings are refused");
    assert!(line.contains("is taken; is another wattd running?"), "{line}");
    assert!(service.get("/health").contains("200 OK"), "the old door is open");

    std::fs::write(&service.config, QUIET.replace("[disc", "[http]\ntoken_file = \"/nonexistent\"\n[disc")).unwrap();
    service.signal("-HUP");
    let line = service.line("the new settings are refused");
    assert!(line.contains("http.token_file /nonexistent"), "{line}");
    service.told("WATCHDOG=1");
    service.stop();
}
