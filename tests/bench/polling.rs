//! What polling costs and loses: `cargo bench --bench polling -- adaptive` compares adaptive intervals with fixed ones on
//! the same generated loads, in virtual time, `... -- adaptive TRACES.csv.xz` on recorded ones; `cargo bench --bench polling -- disk 60` runs the agent with 200 simulated
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
use wattd::reading::{DeviceId, Entry, Reading};
use wattd::rollup::Fold;
use wattd::sim::{Fleet, FleetSpec, Load, Model, PlugSpec};
use wattd::store::{Keeping, Store};
use wattd::sys::Order;
use wattd::sys::supervisor::Supervisor;
use wattd::units::{MilliwattHours, Milliwatts, UnixMillis};

const SECOND: Duration = Duration::from_secs(1);
const DAYS: u64 = 7;
const SEEDS: u64 = 4;
/// An appliance runs above this, in milliwatts; a cycle begins after five minutes below it.
const RUNS: u32 = 20_000;
const REST: f64 = 300.0;

/// What flows, by the second, in milliwatts; none where a recording has a gap.
type Truth = Vec<Option<u32>>;

/// What polling made of one load, or of several.
#[derive(Default)]
struct Account {
    polls: u64,
    /// Buckets of the readings' power alone, and with a counter of whole Wh beside it: joules, seconds, energy in Wh.
    alone: (f64, f64, f64),
    counted: (f64, f64, f64),
    truth: (f64, f64),
    /// Sums of how far quarter hours' means are off, in W, without and with the counter, and how many there were.
    off: (f64, f64, u64),
    starts: Vec<f64>,
    missed: u64,
}

impl Account {
    fn bias(got: (f64, f64, f64), truth: (f64, f64)) -> String {
        let (mean, wanted) = (got.0 / got.1, truth.0 / truth.1);
        if wanted > 0.0 { format!("{:+.2} %", (mean / wanted - 1.0) * 100.0) } else { "0".to_owned() }
    }

    fn late(&self) -> String {
        let mut sorted = self.starts.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(most) = sorted.last() else { return "-".to_owned() };
        format!("mean {:.0} s, most {most:.0} s", sorted.iter().sum::<f64>() / sorted.len() as f64)
    }
}

/// Finds the starts of cycles in a stream of readings.
#[derive(Default)]
struct Cycles {
    last_on: Option<f64>,
    starts: Vec<f64>,
}

impl Cycles {
    fn note(&mut self, at: f64, milliwatts: u32) {
        if milliwatts >= RUNS {
            if self.last_on.is_none_or(|last| at - last > REST) {
                self.starts.push(at);
            }
            self.last_on = Some(at);
        }
    }
}

/// Polls `truth` from `begin` on, in virtual time, and rolls up what was read as the agent does.
fn account(truth: &Truth, begin: f64, base: Duration, adapts: bool, into: &mut Account) {
    let bounds = Bounds { base, least: 5 * SECOND, most: limits::ADAPTIVE_LAST };
    let mut drawn = vec![0_u64]; // mJ at each second
    for power in truth {
        drawn.push(drawn[drawn.len() - 1] + u64::from(power.unwrap_or(0)));
    }
    let mut adaptive = Adaptive::default();
    let (mut cycles, mut all) = (Cycles::default(), Cycles::default());
    let (mut alone, mut counted) = ((Fold::new(), Vec::new()), (Fold::new(), Vec::new()));
    let mut observed = None; // the last reading's time and interval
    let mut now = begin;
    while (now as usize) < truth.len() {
        into.polls += 1;
        let mut interval = base;
        let time = |seconds: f64| UnixMillis::new((seconds * 1e3) as i64);
        let entry = if let Some(power) = truth[now as usize] {
            cycles.note(now, power);
            let power = Milliwatts::new(power.into()).unwrap();
            adaptive.note(0, power);
            if adapts {
                interval = adaptive.decide(bounds).0;
            }
            observed = Some((now, interval));
            let counter = MilliwattHours::new((drawn[now as usize] / 3_600_000 * 1_000) as i64).unwrap();
            let (voltage, current, relay) = (None, None, None);
            Some(Reading { time: time(now), power, voltage, current, counter: Some(counter), relay })
        } else {
            adaptive.forget();
            None
        };
        let entries = match entry {
            Some(reading) => [Reading { counter: None, ..reading }, reading].map(Entry::Reading),
            None => {
                let Some((last, held)) = observed.take() else {
                    now += base.as_secs_f64();
                    continue;
                };
                [Entry::Gap { time: time((last + held.as_secs_f64()).min(now)) }; 2]
            }
        };
        for ((fold, buckets), entry) in [&mut alone, &mut counted].into_iter().zip(entries) {
            fold.push(&entry, interval.as_millis() as u32, |bucket| buckets.push(bucket));
        }
        now += interval.as_secs_f64();
    }
    for (buckets, sums, off) in
        [(&alone.1, &mut into.alone, &mut into.off.0), (&counted.1, &mut into.counted, &mut into.off.1)]
    {
        for bucket in buckets {
            sums.0 += bucket.power.get() as f64 / 1e3;
            sums.1 += bucket.observed.as_secs_f64();
            sums.2 += bucket.energy.get() as f64 / 1e3;
            let start = (bucket.start.get() / 1_000) as usize;
            if let Some(all) = truth.get(start..start + 900)
                && all.iter().all(Option::is_some)
                && bucket.observed >= 890 * SECOND
            {
                let mean = (drawn[start + 900] - drawn[start]) as f64 / 900.0;
                *off += (f64::from(bucket.mean().unwrap().get()) - mean).abs() / 1e3;
                into.off.2 += 1;
            }
        }
    }
    for (second, power) in truth.iter().enumerate().skip(begin.ceil() as usize) {
        let Some(power) = power else { continue };
        all.note(second as f64, *power);
        into.truth.0 += f64::from(*power) / 1e3;
        into.truth.1 += 1.0;
    }
    for start in all.starts {
        match cycles.starts.iter().find(|found| (start - 1.0..start + REST).contains(*found)) {
            Some(found) => into.starts.push((found - start).max(0.0)),
            None => into.missed += 1,
        }
    }
}

/// Recorded loads: a CSV of device, appliance, time in ms and watts, one row for each 10 s; unpacked where it ends in .xz.
fn traces(path: &str) -> Vec<(String, Vec<Truth>)> {
    let text = if path.ends_with(".xz") {
        let out = std::process::Command::new("xz").args(["-dc", path]).output().expect("xz unpacks the file");
        String::from_utf8(out.stdout).unwrap()
    } else {
        std::fs::read_to_string(path).unwrap()
    };
    let mut loads: Vec<(String, String, Truth)> = Vec::new();
    let mut begin = None;
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let [device, name, time, watts] = fields[..] else { panic!("{line:?} is not device,appliance,ts_ms,power_w") };
        let seconds = time.parse::<usize>().unwrap() / 1_000;
        let second = seconds - *begin.get_or_insert(seconds / 86_400 * 86_400);
        if loads.last().is_none_or(|(last, ..)| last != device) {
            loads.push((device.to_owned(), name.to_owned(), Truth::new()));
        }
        let truth = &mut loads.last_mut().unwrap().2;
        truth.resize(second, None);
        truth.resize(second + 10, Some((watts.parse::<f64>().unwrap() * 1e3) as u32));
    }
    loads.into_iter().map(|(device, name, truth)| (format!("{name} ({device})"), vec![truth])).collect()
}

fn generated() -> Vec<(String, Vec<Truth>)> {
    let of = |load: Load, seed| (0..DAYS * 86_400).map(move |n| Some(load.power(seed, SECOND * n as u32).get()));
    [Load::Fridge, Load::Kettle, Load::WashingMachine, Load::Standby, Load::Zero]
        .map(|load| (load.to_string(), (1..=SEEDS).map(|seed| of(load, seed).collect()).collect()))
        .into()
}

fn adaptive(loads: &[(String, Vec<Truth>)], base: Duration) {
    println!("fixed {base:?} against adaptive, to {:?}:", limits::ADAPTIVE_LAST.min(base * 4));
    println!(
        "| load | polls saved | mean, fixed | adaptive | with a counter | energy with a counter | quarter hours off by, fixed \
         | adaptive | with a counter | start of a cycle late by, fixed | adaptive | cycles | missed, fixed | adaptive |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let (mut all, mut all_fixed) = (0, 0);
    for (name, truths) in loads {
        let (mut fixed, mut adapted) = (Account::default(), Account::default());
        for (seed, truth) in (1..).zip(truths) {
            account(truth, f64::from(seed) * 2.37, base, false, &mut fixed);
            account(truth, f64::from(seed) * 2.37, base, true, &mut adapted);
        }
        let saved = 100.0 * (1.0 - adapted.polls as f64 / fixed.polls as f64);
        let count = |account: &Account| account.off.2.max(2) as f64 / 2.0;
        println!(
            "| {name} | {saved:.0} % | {} | {} | {} | {} | {:.2} W | {:.2} W | {:.2} W | {} | {} | {} | {} | {} |",
            Account::bias(fixed.alone, fixed.truth),
            Account::bias(adapted.alone, adapted.truth),
            Account::bias(adapted.counted, adapted.truth),
            Account::bias((adapted.counted.2 * 3_600.0, adapted.counted.1, 0.0), adapted.truth),
            fixed.off.0 / count(&fixed),
            adapted.off.0 / count(&adapted),
            adapted.off.1 / count(&adapted),
            fixed.late(),
            adapted.late(),
            fixed.starts.len() as u64 + fixed.missed,
            fixed.missed,
            adapted.missed
        );
        (all, all_fixed) = (all + adapted.polls, all_fixed + fixed.polls);
    }
    println!("all together: {:.0} % of the polls saved\n", 100.0 * (1.0 - all as f64 / all_fixed as f64));
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
    let (verb, argument) = (args.first().map_or("", String::as_str), args.get(1));
    if matches!(verb, "adaptive" | "") {
        let loads = argument.map_or_else(generated, |path| traces(path));
        adaptive(&loads, 10 * SECOND);
        adaptive(&loads, 60 * SECOND);
    }
    if matches!(verb, "disk" | "") {
        disk(argument.and_then(|arg| arg.parse().ok()).unwrap_or(60));
    }
}
