//! What the agent costs, measured on the release binary with simulated plugs over loopback:
//! `cargo bench --bench agent` (about three minutes), `cargo bench --bench agent -- writes 660` for bytes written,
//! `cargo bench --bench agent -- every 120` for 50 plugs over all protocols.
//! `cargo bench --bench agent -- events 1000` for listeners to events.
//!
//! Memory and CPU come from /proc of the running agent; latencies from one keep-alive connection while it polls.
#![allow(clippy::disallowed_methods)] // a measurement reads the clock

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use wattd::reading::{DeviceId, Reading, Relay};
use wattd::sim::{Fleet, FleetSpec, Load, Model, PlugSpec};
use wattd::store::{self, Keeping, Store};
use wattd::units::{Milliamps, Millivolts, MilliwattHours, Milliwatts, UnixMillis};

/// Plugs with one outlet each, on loopback addresses of their own.
fn fleet(count: usize, second: u8) -> Fleet {
    let loads = [Load::Fridge, Load::Standby, Load::WashingMachine, Load::Kettle, Load::Zero];
    let mut spec = FleetSpec::mixed(count, [127, second, 0, 1].into(), 1).unwrap();
    for (n, plug) in spec.plugs.iter_mut().enumerate() {
        *plug =
            PlugSpec::new(Model::Kp115, plug.address, n as u64).alias(&format!("plug {n}")).loads(&loads[n % 5..][..1]);
    }
    Fleet::start(spec).unwrap()
}

struct Agent {
    child: Child,
    address: String,
}

impl Agent {
    fn start(dir: &Path, fleet: &Fleet, settings: &[&str]) -> Self {
        let target = fleet.discovery().unwrap().to_string();
        let mut child = Command::new(env!("CARGO_BIN_EXE_wattd"))
            .args(["run", "--config", "/dev/null", "--listen", "127.0.0.1:0", "--discovery-targets", &target])
            .args(settings)
            .arg("--data-dir")
            .arg(dir)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("serving http://")?.1.trim_end_matches('/').to_owned()));
        lines.by_ref().map_while(Result::ok).find(|line| line.contains(" ready: ")).unwrap();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop)); // so that the agent can go on logging
        Self { child, address: address.unwrap() }
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    fn field(&self, file: &str, name: &str) -> u64 {
        let text = self.proc(file);
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// CPU time used so far, in clock ticks of 10 ms.
    fn cpu(&self) -> Duration {
        let stat = self.proc("stat");
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        Duration::from_millis(10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A day of readings of these plugs, so that queries find something.
fn fill(dir: &Path, fleet: &Fleet, days: i64) {
    let store = Store::open(store::on_disk(store::path_in(dir)), Keeping::default()).unwrap();
    let now = fs::metadata(dir).unwrap().modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
    let start = now.as_millis() as i64 - days * 86_400_000 - 60_000;
    let plugs = fleet.plugs();
    let mut random = fastrand::Rng::with_seed(1);
    for step in 0..days * 8_640 {
        for (n, plug) in plugs.iter().enumerate() {
            let reading = Reading {
                time: UnixMillis::new(start + step * 10_000 + random.i64(0..300)),
                power: Milliwatts::new(40_000 + random.i64(0..900)).unwrap(),
                voltage: Some(Millivolts::new(230_000 + random.i64(0..900)).unwrap()),
                current: Some(Milliamps::new(180 + random.i64(0..9)).unwrap()),
                counter: Some(MilliwattHours::new((step / 9 + n as i64) * 1_000).unwrap()),
                relay: Some(Relay::On),
            };
            store.append(DeviceId::plug(plug.mac), reading, Duration::from_secs(10));
        }
        if step % 6 == 5 {
            smol::block_on(store.commit(UnixMillis::MIN)).unwrap();
        }
    }
    smol::block_on(store.commit(UnixMillis::MIN)).unwrap();
}

/// p50 and p99 of `count` GETs over one connection, and the length of a reply.
fn latency(agent: &Agent, path: &str, count: usize) -> (Duration, Duration, usize) {
    let mut stream = TcpStream::connect(&agent.address).unwrap();
    stream.set_nodelay(true).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", agent.address);
    let (mut times, mut length, mut buffer) = (Vec::new(), 0, vec![0; 1 << 20]);
    for _ in 0..count {
        let start = Instant::now();
        stream.write_all(request.as_bytes()).unwrap();
        let mut filled = 0;
        length = loop {
            filled += stream.read(&mut buffer[filled..]).unwrap();
            let text = String::from_utf8_lossy(&buffer[..filled.min(1_024)]).to_ascii_lowercase();
            let Some(head) = text.find("\r\n\r\n") else { continue };
            assert!(text.starts_with("http/1.1 200"), "{text}");
            let body: usize =
                text.split_once("content-length: ").unwrap().1.split("\r\n").next().unwrap().parse().unwrap();
            if filled == head + 4 + body {
                break body;
            }
        };
        times.push(start.elapsed());
    }
    times.sort();
    (times[count / 2], times[count * 99 / 100], length)
}

fn costs(count: usize, seconds: u64) {
    let fleet = fleet(count, 60);
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), &fleet, 1);
    let start = Instant::now();
    let agent = Agent::start(dir.path(), &fleet, &[]);
    println!("{count} plugs at 10 s, a day of readings on disk: ready after {:.1?}", start.elapsed());
    let (cpu, since) = (agent.cpu(), Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let used = (agent.cpu() - cpu).as_secs_f64() / since.elapsed().as_secs_f64() * 3_600.0;
    println!("  CPU {used:.1} s per hour, over {seconds} s");
    for (name, path) in [("/latest", "/api/v1/latest"), ("1,000 rows", "/api/v1/readings?limit=1000&device=plug%203")] {
        let (p50, p99, length) = latency(&agent, path, 2_000);
        println!("  {name}: p50 {p50:.2?}, p99 {p99:.2?}, {length} bytes");
    }
    let memory = |name| agent.field("status", name);
    println!(
        "  after that RssAnon {} kB, VmRSS {} kB, {} threads",
        memory("RssAnon:"),
        memory("VmRSS:"),
        memory("Threads:")
    );
}

/// Fifty plugs that speak every protocol, at 10 s: what logins and ciphers cost, and how the plugs were treated.
fn every(seconds: u64) {
    let fleet = Fleet::start(FleetSpec::every_protocol(50, [127, 62, 0, 1].into(), 1).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    fs::write(&password, "hunter22").unwrap();
    let account = ["--account-username", "user@example.com", "--account-password-file", password.to_str().unwrap()];
    let start = Instant::now();
    let agent = Agent::start(&dir.path().join("store"), &fleet, &account);
    println!(
        "50 plugs over all protocols at 10 s: ready after {:.1?}, CPU until then {:.2?}",
        start.elapsed(),
        agent.cpu()
    );
    let (cpu, since) = (agent.cpu(), Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let used = (agent.cpu() - cpu).as_secs_f64() / since.elapsed().as_secs_f64() * 3_600.0;
    let memory = |name| agent.field("status", name);
    println!("  CPU {used:.1} s per hour, over {seconds} s");
    println!("  RssAnon {} kB, VmRSS {} kB, {} threads", memory("RssAnon:"), memory("VmRSS:"), memory("Threads:"));
    let seen = fleet.total();
    println!(
        "  most connections to a plug {}, most requests at once {}, closest two readings of an outlet {:.1?}",
        seen.max_connections,
        seen.max_in_flight,
        seen.closest.unwrap_or_default()
    );
    let plugs = fleet.plugs();
    let with_login = plugs.iter().filter(|plug| plug.protocol != wattd::reading::Protocol::IotXor).count();
    println!("  {} logins for {with_login} plugs that want one, {} refused", seen.handshakes, seen.logins_refused);
}

fn writes(seconds: u64) {
    let fleet = fleet(20, 61);
    // Beside the build folder: a temporary directory may be in memory.
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir_in(root).unwrap()).collect();
    let intervals = ["10s", "60s", "300s"];
    let start =
        |(dir, every): (&tempfile::TempDir, &&str)| Agent::start(dir.path(), &fleet, &["--commit-interval", every]);
    let agents: Vec<_> = dirs.iter().zip(&intervals).map(start).collect();
    let before: Vec<_> = agents.iter().map(|agent| agent.field("io", "write_bytes:")).collect();
    std::thread::sleep(Duration::from_secs(seconds));
    for ((agent, before), every) in agents.iter().zip(before).zip(intervals) {
        let written = agent.field("io", "write_bytes:") - before;
        let day = written as f64 * 86_400.0 / seconds as f64 / 1e6;
        println!(
            "20 plugs at 10 s, commit every {every}: {day:.0} MB/day, over {seconds} s (/proc/PID/io write_bytes)"
        );
    }
}

/// What so many listeners to events cost, one of them stuck, while 20 plugs are polled every five seconds.
fn events(count: u64, seconds: u64) {
    let fleet = fleet(20, 62);
    let dir = tempfile::tempdir().unwrap();
    // Listeners may take three quarters of the connections.
    let connections = (count * 4 / 3 + 16).to_string();
    let settings = ["--http-connections", &connections, "--poll-interval", "5s", "--commit-interval", "2s"];
    let agent = Agent::start(dir.path(), &fleet, &settings);
    let heard = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    for listeners in [0, count] {
        let address = agent.address.clone();
        let open = move || {
            let mut stream = TcpStream::connect(&address).unwrap();
            write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
            stream.read_exact(&mut [0; 12]).unwrap();
            stream
        };
        let streams: Vec<_> = (0..listeners).map(|_| open()).collect();
        if listeners > 0 {
            let heard = heard.clone();
            std::thread::spawn(move || listen(streams, &heard));
        }
        let before = ask(&agent, "/api/v1/stats");
        let (cpu, since) = (agent.cpu(), Instant::now());
        std::thread::sleep(Duration::from_secs(seconds));
        let (used, passed) = ((agent.cpu() - cpu).as_secs_f64(), since.elapsed().as_secs_f64());
        let after = ask(&agent, "/api/v1/stats");
        let more = |path: &str| {
            after.pointer(path).unwrap().as_u64().unwrap() - before.pointer(path).unwrap().as_u64().unwrap()
        };
        println!(
            "{listeners} listeners: RssAnon {} kB, VmRSS {} kB, CPU {:.1} %; in {passed:.0} s {} polls, {} commits, {} failures",
            agent.field("status", "RssAnon:"),
            agent.field("status", "VmRSS:"),
            used / passed * 100.0,
            more("/operations/poll/count"),
            more("/operations/commit/count"),
            more("/operations/poll/errors") + more("/operations/commit/errors"),
        );
        let late = |path: &str| after.pointer(path).unwrap().as_f64().unwrap_or(0.0);
        println!(
            "  so far: poll late p99 {} ms, at most {} ms; commit p99 {} ms; batches {}, events heard {}, listeners dropped {}",
            late("/polls/late_p99_ms"),
            late("/polls/late_max_ms"),
            late("/operations/commit/p99_ms"),
            more("/events/batches"),
            heard.load(std::sync::atomic::Ordering::Relaxed),
            more("/events/dropped"),
        );
    }
}

/// Reads from all streams but the last, which is stuck, and counts events.
fn listen(mut streams: Vec<TcpStream>, heard: &std::sync::atomic::AtomicU64) {
    let _stuck = streams.pop();
    smol::block_on(async {
        let executor = smol::LocalExecutor::new();
        let tasks: Vec<_> = streams
            .into_iter()
            .map(|stream| {
                executor.spawn(async move {
                    let mut stream = smol::Async::new(stream).unwrap();
                    let mut buffer = vec![0; 16 * 1024];
                    while let Ok(count @ 1..) = smol::io::AsyncReadExt::read(&mut stream, &mut buffer).await {
                        let events = buffer[..count].windows(14).filter(|part| *part == b"event: reading").count();
                        heard.fetch_add(events as u64, std::sync::atomic::Ordering::Relaxed);
                    }
                })
            })
            .collect();
        executor
            .run(async {
                for task in tasks {
                    task.await
                }
            })
            .await;
    });
}

fn ask(agent: &Agent, path: &str) -> serde_json::Value {
    let mut stream = TcpStream::connect(&agent.address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", agent.address).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap()
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let number = |n: usize, default| args.get(n).and_then(|arg| arg.parse().ok()).unwrap_or(default);
    if args.first().is_some_and(|arg| arg == "writes") {
        return writes(number(1, 660));
    }
    if args.first().is_some_and(|arg| arg == "events") {
        return events(number(1, 1_000), number(2, 60));
    }
    if args.first().is_some_and(|arg| arg == "every") {
        return every(number(1, 120));
    }
    for count in [20, 200] {
        costs(count, number(0, 60));
    }
}
