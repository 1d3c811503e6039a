//! What polling costs and loses: `cargo bench --bench polling -- adaptive` compares adaptive intervals with fixed ones on
//! the same generated loads, in virtual time; `cargo bench --bench polling -- disk 60` runs the agent with 200 simulated
//! plugs on a disk whose sync takes 2 s and whose reads take 20 ms each, and measures polls and `/latest` meanwhile.
#![allow(clippy::disallowed_methods)] // it measures real time

#[path = "../common/slow_disk.rs"]
#[allow(dead_code)] // the tests use the rest
mod slow_disk;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use slow_disk::SlowDisk;
use wattd::agent::{Agent, Outside};
use wattd::clock::SystemClock;
use wattd::config::Config;
use wattd::limits;
use wattd::plug::Tcp;
use wattd::plug::discovery::Ports;
use wattd::poll::adaptive::{Adaptive, Bounds};
use wattd::reading::{DeviceId, Reading};
use wattd::sim::{Fleet, FleetSpec, Load, Model, PlugSpec};
use wattd::store::{Keeping, Store};
use wattd::sys::Order;
use wattd::sys::supervisor::Supervisor;
use wattd::units::{Milliwatts, UnixMillis};

const SECOND: Duration = Duration::from_secs(1);
const DAYS: u64 = 7;
const SEEDS: u64 = 4;
/// An appliance runs above this, in milliwatts; a cycle begins after five minutes below it.
const RUNS: u32 = 20_000;
const REST: f64 = 300.0;

/// What polling made of one load.
#[derive(Default)]
struct Account {
    polls: u64,
    joules: f64,
    truth: f64,
    starts: Vec<f64>,
    missed: u64,
}

/// Finds the starts of cycles in a stream of readings.
#[derive(Default)]
struct Cycles {
    last_on: Option<f64>,
    starts: Vec<f64>,
}

impl Cycles {
    fn note(&mut self, at: f64, power: Milliwatts) {
        if power.get() >= RUNS {
            if self.last_on.is_none_or(|last| at - last > REST) {
                self.starts.push(at);
            }
            self.last_on = Some(at);
        }
    }
}

fn account(load: Load, seed: u64, adapts: bool, into: &mut Account) {
    let base = 10 * SECOND;
    let bounds = Bounds { base, least: 5 * SECOND, most: limits::ADAPTIVE_LAST };
    let end = SECOND * (DAYS as u32 * 86_400);
    let mut adaptive = Adaptive::default();
    let (mut cycles, mut truth) = (Cycles::default(), Cycles::default());
    let mut now = SECOND.mul_f64(seed as f64 * 2.37);
    let begin = now.as_secs_f64().ceil();
    while now < end {
        let power = load.power(seed, now);
        cycles.note(now.as_secs_f64(), power);
        adaptive.note(0, power);
        let interval = if adapts { adaptive.decide(bounds).0 } else { base };
        into.polls += 1;
        into.joules += f64::from(power.get()) / 1e3 * interval.min(end - now).as_secs_f64();
        now += interval;
    }
    for second in begin as u64..DAYS * 86_400 {
        let power = load.power(seed, SECOND * second as u32);
        truth.note(second as f64, power);
        into.truth += f64::from(power.get()) / 1e3;
    }
    for start in truth.starts {
        match cycles.starts.iter().find(|found| (start - 1.0..start + REST).contains(*found)) {
            Some(found) => into.starts.push((found - start).max(0.0)),
            None => into.missed += 1,
        }
    }
}

fn adaptive() {
    println!(
        "{DAYS} days, {SEEDS} plugs of each load, base 10 s, 5 s to 300 s; energy as held readings, without the counter"
    );
    println!(
        "| load | polls saved | energy error, fixed | adaptive | start of a cycle late by, fixed | adaptive | cycles | missed, fixed | adaptive |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let (mut all, mut all_fixed) = (0, 0);
    for load in [Load::Fridge, Load::Kettle, Load::WashingMachine, Load::Standby, Load::Zero] {
        let (mut fixed, mut adapted) = (Account::default(), Account::default());
        for seed in 1..=SEEDS {
            account(load, seed, false, &mut fixed);
            account(load, seed, true, &mut adapted);
        }
        let error = |a: &Account| {
            if a.truth > 0.0 { format!("{:+.2} %", (a.joules / a.truth - 1.0) * 100.0) } else { "0".to_owned() }
        };
        let late = |a: &Account| {
            let count = a.starts.len();
            if count == 0 {
                return "-".to_owned();
            }
            let mut sorted = a.starts.clone();
            sorted.sort_by(f64::total_cmp);
            format!("mean {:.0} s, most {:.0} s", sorted.iter().sum::<f64>() / count as f64, sorted[count - 1])
        };
        let saved = 100.0 * (1.0 - adapted.polls as f64 / fixed.polls as f64);
        println!(
            "| {load} | {saved:.0} % | {} | {} | {} | {} | {} | {} | {} |",
            error(&fixed),
            error(&adapted),
            late(&fixed),
            late(&adapted),
            fixed.starts.len() as u64 + fixed.missed,
            fixed.missed,
            adapted.missed
        );
        (all, all_fixed) = (all + adapted.polls, all_fixed + fixed.polls);
    }
    println!("all together: {:.0} % of the polls saved", 100.0 * (1.0 - all as f64 / all_fixed as f64));
}

/// Gets `path` again and again with pauses; the times of all replies.
fn ask(address: SocketAddr, path: &str, pause: Duration, over: &AtomicBool) -> Vec<Duration> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let (mut times, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
    while !over.load(Ordering::Relaxed) {
        let start = Instant::now();
        stream.write_all(request.as_bytes()).unwrap();
        let mut filled = 0;
        loop {
            let read = stream.read(&mut buffer[filled..]).unwrap();
            assert!(read > 0, "the server hung up");
            filled += read;
            let text = String::from_utf8_lossy(&buffer[..filled.min(1_024)]).to_ascii_lowercase();
            let Some(head) = text.find("\r\n\r\n") else { continue };
            assert!(text.starts_with("http/1.1 200"), "{text}");
            let length = text.split_once("content-length: ").unwrap().1.split("\r\n").next().unwrap();
            if filled == head + 4 + length.parse::<usize>().unwrap() {
                break;
            }
        }
        times.push(start.elapsed());
        thread::sleep(pause);
    }
    times.sort();
    times
}

fn disk(seconds: u64) {
    let mut spec = FleetSpec::mixed(200, [127, 63, 0, 1].into(), 1).unwrap();
    for (n, plug) in spec.plugs.iter_mut().enumerate() {
        *plug = PlugSpec::new(Model::Kp115, plug.address, n as u64);
    }
    let plugs = Fleet::start(spec).unwrap();
    let disk = SlowDisk::default();
    {
        // Six hours of readings, so that there is something to read.
        let store = Store::open(disk.clone().into_disk(), Keeping::default()).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        for step in (1..2_160).rev() {
            for (n, plug) in (0..).zip(plugs.plugs()) {
                let (time, power) = (UnixMillis::new(now - step * 10_000 + n), Milliwatts::new(40_000 + n).unwrap());
                let reading = Reading { time, power, voltage: None, current: None, counter: None, relay: None };
                store.append(DeviceId::plug(plug.mac), reading, Duration::from_secs(10));
            }
            if step % 6 == 0 {
                smol::block_on(store.commit(UnixMillis::MIN)).unwrap();
            }
        }
        smol::block_on(store.commit(UnixMillis::MIN)).unwrap();
    }
    let mut config = Config { listen: ([127, 0, 0, 1], 0).into(), ..Config::default() };
    config.discovery.targets = vec![plugs.discovery().unwrap()];
    config.commit_interval = 5 * SECOND;
    let executor = Rc::new(smol::LocalExecutor::new());
    let outside =
        Outside { clock: Rc::new(SystemClock::start()), transport: Rc::new(Tcp), ports: Ports::REAL, seed: 1 };
    let agent = Agent::new(config, disk.clone().into_disk(), outside, executor.clone()).unwrap();
    disk.slow_down(2 * SECOND, Duration::from_millis(20));
    let before = disk.counts();
    let (picture, store) = (agent.fleet.clone(), agent.store.clone());
    let (tell, told) = mpsc::channel();
    let over = Arc::new(AtomicBool::new(false));
    let clients = {
        let over = over.clone();
        thread::spawn(move || {
            let address: SocketAddr = told.recv().unwrap();
            let of = |path: &'static str, pause| {
                let over = over.clone();
                thread::spawn(move || ask(address, path, pause, &over))
            };
            let latest = of("/api/v1/latest", Duration::from_millis(50));
            let rows = of("/api/v1/readings?start=-6h&order=asc&limit=1000", Duration::from_millis(200));
            (latest.join().unwrap(), rows.join().unwrap())
        })
    };
    let stop = async {
        smol::Timer::after(Duration::from_secs(seconds)).await;
        over.store(true, Ordering::Relaxed);
        smol::Timer::after(SECOND * 10).await; // until the clients have their last replies
        Order::Stop("the bench is over")
    };
    let orders = Box::pin(smol::stream::once_future(stop));
    smol::block_on(executor.run(agent.run(orders, Supervisor::default(), |address| tell.send(address).unwrap())))
        .unwrap();
    let (latest, rows) = clients.join().unwrap();
    let part = |times: &[Duration], percent: usize| times[(times.len() - 1) * percent / 100];
    let (lateness, figures, after) = (picture.borrow().lateness, store.figures(), disk.counts());
    println!("200 plugs at 10 s for {seconds} s, sync 2 s, 20 ms a read, a commit every 5 s, 6 h of readings on disk");
    println!(
        "  {} syncs, {} reads of the disk; {} readings dropped",
        after.0 - before.0,
        after.1 - before.1,
        figures.dropped
    );
    println!(
        "  {} polls: p50 {:.0?}, p99 {:.0?}, worst {:.0?} late",
        lateness.polls,
        lateness.quantile(500),
        lateness.quantile(990),
        lateness.worst
    );
    println!(
        "  /latest, {} times: p50 {:.1?}, p99 {:.1?}, worst {:.1?}",
        latest.len(),
        part(&latest, 50),
        part(&latest, 99),
        part(&latest, 100)
    );
    println!("  1,000 rows from disk, {} times: p50 {:.1?}, p99 {:.1?}", rows.len(), part(&rows, 50), part(&rows, 99));
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    match args.first().map(String::as_str) {
        Some("disk") => disk(args.get(1).and_then(|arg| arg.parse().ok()).unwrap_or(60)),
        Some("adaptive") => adaptive(),
        _ => {
            adaptive();
            disk(60);
        }
    }
}
