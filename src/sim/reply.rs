//! A plug's answers: state, request and time in, JSON out. No sockets, no clock, no cipher.
//!
//! Owns the module and command table of the IOT dialect with its errors, the readings in the style of each model, and
//! the energy counters. Promises that the answer is a function of the state, the request and the time alone, that writes
//! are answered as a plug would and counted, and that every reading in an answer stands in [`PlugState::take_served`].
//! Leaves sending, and with it the question what was really served, to `fleet`.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use jiff::civil::{Date, DateTime};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Value, json};

use super::load::{self, mix, unit};
use super::{Load, MeterStyle, Model, PlugSpec};
use crate::reading::{DeviceId, Mac, Relay};
use crate::units::{Milliamps, Millivolts, MilliwattHours, Milliwatts, UnixMillis};

/// Commands answered in one request; a plug's buffer holds no more either.
const COMMANDS: usize = 64;

/// What carried a request. A strip shortens its outlets' ids over UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A connection.
    Tcp,
    /// A datagram.
    Udp,
}

/// A plug that does not say the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// It is another plug: another MAC and another device id.
    Identity,
    /// Every reading says 20 kW.
    Power,
}

/// A reading as a plug served it, in the units of the wire rounded to thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServedReading {
    /// The plug, or the outlet of a strip, under the MAC that it claimed at the time.
    pub device: DeviceId,
    /// Active power.
    pub power: Milliwatts,
    /// Mains voltage.
    pub voltage: Millivolts,
    /// Current.
    pub current: Milliamps,
    /// The energy counter, in whole watt-hours on every model.
    pub counter: MilliwattHours,
    /// The switch at that moment.
    pub relay: Relay,
}

/// A [`ServedReading`] that left in a whole reply, with its place in the fleet's ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Counts up by one over the whole fleet, from 0.
    pub sequence: u64,
    /// What was served.
    pub reading: ServedReading,
}

/// One outlet: switch, load and counter.
#[derive(Debug)]
pub(super) struct Outlet {
    pub alias: String,
    pub load: Load,
    seed: u64,
    pub relay: Relay,
    /// When the relay was last switched, or the plug last got power.
    since: Duration,
    pub energy: Energy,
}

impl Outlet {
    pub(super) fn power(&self, at: Duration) -> Milliwatts {
        match self.relay {
            Relay::Off => Milliwatts::ZERO,
            Relay::On => self.load.power(self.seed, at),
        }
    }

    pub(super) fn counter(&mut self, now: Duration) -> MilliwattHours {
        let (load, seed, relay) = (self.load, self.seed, self.relay);
        self.energy.at(now, |at| if relay == Relay::On { load.power(seed, at) } else { Milliwatts::ZERO })
    }

    pub(super) fn switch(&mut self, relay: Relay, now: Duration) {
        if self.relay != relay {
            self.counter(now);
            self.relay = relay;
            self.since = now;
        }
    }

    pub(super) fn on_time(&self, now: Duration) -> u64 {
        if self.relay == Relay::On { now.saturating_sub(self.since).as_secs() } else { 0 }
    }

    /// Wh of a day before the start, which is invented.
    pub(super) fn day_wh(&self, date: Date) -> u64 {
        let salt = date.day_of_year().unsigned_abs();
        let watt_hours = self.load.usual_day_wh() * (0.7 + 0.6 * unit(mix(self.seed, u64::from(salt))));
        MilliwattHours::from_base(watt_hours).unwrap_or_default().get() / 1_000
    }
}

/// An energy counter: the load's power summed over a grid of whole simulated seconds, so that it does not matter when and
/// how often it is read.
#[derive(Debug)]
pub(super) struct Energy {
    base: u64,
    /// Whole seconds summed so far.
    until: u64,
    /// Milliwatt-milliseconds since the base.
    sum: u64,
    /// The last value given, in mWh: a counter never falls by itself.
    last: u64,
}

impl Energy {
    /// Seconds summed one by one at a time; a longer absence is summed in coarser steps, so that a reply stays cheap.
    const STEPS: u64 = 1_000_000;
    const PER_MWH: u64 = 3_600_000;

    const fn starting(base: u64, now: Duration) -> Self {
        Self { base, until: now.as_secs(), sum: 0, last: 0 }
    }

    fn at(&mut self, now: Duration, power: impl Fn(Duration) -> Milliwatts) -> MilliwattHours {
        let now_second = now.as_secs();
        let stride = (now_second.saturating_sub(self.until) / Self::STEPS).max(1);
        let part = |from: u64, millis: u64| u64::from(power(Duration::from_secs(from)).get()).saturating_mul(millis);
        while self.until.saturating_add(stride) <= now_second {
            self.sum = self.sum.saturating_add(part(self.until, stride * 1_000));
            self.until += stride;
        }
        // The rest is added to the answer, not to the sum: the grid stays the same whenever it is read.
        let rest = u64::try_from(now.saturating_sub(Duration::from_secs(self.until)).as_millis()).unwrap_or_default();
        let sum = self.sum.saturating_add(part(self.until, rest));
        self.last = self.last.max(self.base.saturating_add(sum / Self::PER_MWH));
        MilliwattHours::new(i64::try_from(self.last).unwrap_or(i64::MAX)).unwrap_or(MilliwattHours::MAX)
    }

    /// Energy since the start or the last reset.
    pub(super) const fn since_base(&self) -> u64 {
        self.last.saturating_sub(self.base)
    }
}

/// Everything a plug remembers between two requests.
#[derive(Debug)]
pub struct PlugState {
    pub(super) model: Model,
    mac: Mac,
    alias: String,
    pub(super) address: Ipv4Addr,
    pub(super) seed: u64,
    pub(super) epoch: UnixMillis,
    is_led_off: bool,
    pub(super) outlets: Vec<Outlet>,
    pub(super) lie: Option<Lie>,
    pub(super) served: Vec<ServedReading>,
    pub(super) writes: u64,
    pub(super) has_to_restart: bool,
}

/// The seed of a plug's outlet.
pub(super) const fn outlet_seed(plug: u64, n: u64) -> u64 {
    mix(plug, 0x6f75_7400 + n)
}

impl PlugState {
    /// A plug that has run for a while: its counters start between 2 and 200 kWh. `epoch` is wall time at simulated time 0.
    #[must_use]
    pub fn new(spec: &PlugSpec, epoch: UnixMillis) -> Self {
        let mut loads = spec.loads.iter().copied().cycle();
        let outlets = (0..spec.model.outlets()).map(|n| {
            let seed = outlet_seed(spec.seed, n.into());
            let alias =
                if spec.model.children() == 0 { spec.alias.clone() } else { format!("{} {}", spec.alias, n + 1) };
            let base = 2_000_000 + mix(seed, 5) % 198_000_000;
            let energy = Energy::starting(base, Duration::ZERO);
            let load = loads.next().unwrap_or(Load::Zero);
            Outlet { alias, load, seed, relay: Relay::On, since: Duration::ZERO, energy }
        });
        Self {
            model: spec.model,
            mac: spec.mac,
            alias: spec.alias.clone(),
            address: spec.address,
            seed: spec.seed,
            epoch,
            is_led_off: false,
            outlets: outlets.collect(),
            lie: None,
            served: Vec::new(),
            writes: 0,
            has_to_restart: false,
        }
    }

    /// The MAC it claims, which is another one while it lies about it.
    #[must_use]
    pub fn mac(&self) -> Mac {
        let [a, b, c, d, e, f] = self.mac.bytes();
        if self.lie == Some(Lie::Identity) { Mac::new([a, b, c, !d, e, f]) } else { self.mac }
    }

    /// The device id it claims: 40 hex digits in upper case.
    #[must_use]
    pub fn device_id(&self) -> String {
        let bytes = self.mac().bytes();
        let low = bytes.iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
        format!("8006{:016X}{:016X}{:04X}", mix(low, 1), mix(low, 2), mix(low, 3) >> 48)
    }

    /// The alias, which a write may have changed.
    #[must_use]
    pub fn alias(&self) -> &str {
        &self.alias
    }

    /// Where it is from now on: some say so themselves.
    pub fn set_address(&mut self, address: Ipv4Addr) {
        self.address = address;
    }

    /// What it lies about from now on.
    pub fn set_lie(&mut self, lie: Option<Lie>) {
        self.lie = lie;
    }

    /// The readings in the last answers, in their order; the list is empty afterwards.
    pub fn take_served(&mut self) -> Vec<ServedReading> {
        std::mem::take(&mut self.served)
    }

    /// How many commands came that change something or disturb the plug's network.
    #[must_use]
    pub const fn writes_seen(&self) -> u64 {
        self.writes
    }

    /// Whether a command asked for a restart since this was last called.
    pub fn take_restart(&mut self) -> bool {
        std::mem::take(&mut self.has_to_restart)
    }

    /// All counters fall to 0, as after `erase_emeter_stat`.
    pub fn reset_counters(&mut self, now: Duration) {
        for outlet in &mut self.outlets {
            outlet.energy = Energy::starting(0, now);
        }
    }

    /// Power was lost and came back: counters and on-time start from 0. Relays keep their position, as real ones do.
    pub fn restart(&mut self, now: Duration) {
        self.reset_counters(now);
        for outlet in &mut self.outlets {
            outlet.since = now;
        }
    }

    pub(super) fn child_id(&self, n: usize) -> String {
        format!("{}{n:02}", self.device_id())
    }

    fn is_strip(&self) -> bool {
        self.model.children() > 0
    }
}

/// The plain JSON that a plug sends for the plain JSON it got; empty when it says nothing, which it does to a datagram
/// that is not JSON. Over TCP such a message is answered with `{}`.
///
/// `now` is simulated time; it must not run backwards from call to call.
pub fn reply(plug: &mut PlugState, request: &[u8], via: Via, now: Duration) -> Vec<u8> {
    let Ok(Pairs(modules)) = serde_json::from_slice::<Pairs<Module>>(request) else {
        return if via == Via::Tcp { b"{}".to_vec() } else { Vec::new() };
    };
    let context = modules.iter().position(|(name, _)| name == "context");
    let selection = context.and_then(|at| modules.get(at)).map_or(Ok(None), |(_, module)| select(plug, module));
    let mut answer = Object::default();
    let mut left = COMMANDS;
    for (at, (name, module)) in modules.iter().enumerate() {
        if context == Some(at) {
            continue; // the first one selects, a second is a module that no plug has
        }
        if !has_module(plug.model, name) {
            plug.writes +=
                module.commands().iter().filter(|(command, _)| is_write(name, command)).map(|_| 1).sum::<u64>();
            answer.add(name, &Failure::MODULE.object());
            continue;
        }
        let mut inner = Object::default();
        for (command, arguments) in module.commands() {
            let Some(rest) = left.checked_sub(1) else { break };
            left = rest;
            plug.writes += u64::from(is_write(name, command));
            let call = Call { module: name, command, arguments, selection, via, now };
            inner.add(command, &call.run(plug).unwrap_or_else(Failure::object));
        }
        answer.add_text(name, &inner.finish());
    }
    answer.finish().into_bytes()
}

/// Whether a monitor has no business to send this: all but reading, and everything that touches the plug's network.
fn is_write(module: &str, command: &str) -> bool {
    !command.starts_with("get_") || module == "netif"
}

fn has_module(model: Model, name: &str) -> bool {
    match name {
        "system" | "cnCloud" | "schedule" | "count_down" | "anti_theft" | "time" | "netif" => true,
        "emeter" => model.meter().is_some(),
        _ => false,
    }
}

/// Which outlet `context.child_ids` names. Only the first counts, but one that does not exist spoils them all.
fn select(plug: &PlugState, context: &Module) -> Result<Option<usize>, Failure> {
    let Some((_, ids)) = context.commands().iter().find(|(name, _)| name == "child_ids") else { return Ok(None) };
    if !plug.is_strip() {
        return Ok(None); // a plug without outlets of its own does not look at it
    }
    let ids = ids.as_array().ok_or(Failure::ARGUMENT)?;
    let mut found = Vec::new();
    for id in ids {
        let id = id.as_str().ok_or(Failure::ARGUMENT)?;
        found.push((0..plug.outlets.len()).find(|n| plug.child_id(*n) == id).ok_or(Failure::ENTRY)?);
    }
    found.first().copied().map(Some).ok_or(Failure::ENTRY)
}

/// One command with everything it depends on but the plug itself.
struct Call<'a> {
    module: &'a str,
    command: &'a str,
    arguments: &'a Value,
    selection: Result<Option<usize>, Failure>,
    via: Via,
    now: Duration,
}

impl Call<'_> {
    fn run(&self, plug: &mut PlugState) -> Result<Value, Failure> {
        match (self.module, self.command) {
            ("system", "get_sysinfo") => Ok(done(sysinfo(plug, self.via, self.now))),
            ("system", "set_relay_state") => self.set_relay_state(plug),
            ("system", "set_dev_alias") => {
                let alias = self.text("alias")?.to_owned();
                match self.selection? {
                    Some(n) => plug.outlets.get_mut(n).ok_or(Failure::ENTRY)?.alias = alias,
                    None => plug.alias = alias,
                }
                Ok(done(json!({})))
            }
            ("system", "set_led_off") => {
                plug.is_led_off = self.number("off")? == 1;
                Ok(done(json!({})))
            }
            ("system", "reboot" | "reset") => {
                self.number("delay")?;
                plug.has_to_restart = true;
                Ok(done(json!({})))
            }
            ("system", "get_dev_icon") => Ok(done(json!({"icon": "", "hash": ""}))),
            ("system", "get_download_state") => Err(Failure { code: -7, message: "unknown error" }),
            ("emeter", "get_realtime") => self.realtime(plug),
            ("emeter", "get_daystat") => self.day_list(plug),
            ("emeter", "get_monthstat") => self.month_list(plug),
            ("emeter", "erase_emeter_stat") => {
                let outlet = plug.outlets.get_mut(self.slot()?).ok_or(Failure::ENTRY)?;
                outlet.energy = Energy::starting(0, self.now);
                Ok(done(json!({})))
            }
            ("emeter", "get_vgain_igain") => Ok(done(json!({"vgain": 13_255, "igain": 16_489}))),
            ("time", "get_time") => {
                let zoned = local_time(plug.epoch, self.now);
                Ok(done(json!({
                    "year": zoned.year(), "month": zoned.month(), "mday": zoned.day(),
                    "hour": zoned.hour(), "min": zoned.minute(), "sec": zoned.second(),
                })))
            }
            ("time", "get_timezone") => Ok(done(json!({"index": 38}))), // UTC
            ("cnCloud", "get_info") => Ok(done(json!({
                "username": "", "server": "n-devs.tplinkcloud.com", "binded": 0, "cld_connection": 0,
                "illegalType": 0, "stopConnect": 0, "tcspStatus": 0, "fwDlPage": "", "tcspInfo": "", "fwNotifyType": -1,
            }))),
            ("cnCloud", "get_intl_fw_list") => Ok(done(json!({"fw_list": []}))),
            ("cnCloud", "unbind") => Err(Failure { code: -8, message: "device not bind" }),
            ("schedule" | "count_down" | "anti_theft", "get_rules") => {
                self.selection?;
                Ok(done(match self.module {
                    "count_down" => json!({"rule_list": []}),
                    _ => json!({"enable": 0, "rule_list": [], "version": 2}),
                }))
            }
            ("schedule" | "anti_theft", "get_next_action") => self.selection.map(|_| done(json!({"type": -1}))),
            ("schedule", "get_daystat") => self.selection.map(|_| done(json!({"day_list": []}))),
            ("schedule", "get_monthstat") => self.selection.map(|_| done(json!({"month_list": []}))),
            ("netif", "get_stainfo") => Ok(done(json!({"ssid": "home", "key_type": 3, "rssi": rssi(plug)}))),
            ("netif", "get_scaninfo") => Ok(done(json!({"ap_list": [{"ssid": "home", "key_type": 3}]}))),
            // Known writes without an effect here are granted; what begins otherwise no plug has.
            ("emeter", "set_vgain_igain" | "start_calibration")
            | ("system", "set_dev_location" | "set_dev_icon" | "download_firmware" | "set_test_mode")
            | ("netif", "set_stainfo")
            | ("cnCloud", "bind" | "set_server_url")
            | ("time", "set_timezone" | "set_time")
            | (
                "schedule" | "count_down" | "anti_theft",
                "add_rule" | "edit_rule" | "delete_rule" | "delete_all_rules" | "set_overall_enable"
                | "erase_runtime_stat",
            ) => self.arguments.is_object().then(|| done(json!({}))).ok_or(Failure::ARGUMENT),
            _ => Err(Failure::MEMBER),
        }
    }

    fn set_relay_state(&self, plug: &mut PlugState) -> Result<Value, Failure> {
        let relay = match self.number("state")? {
            0 => Relay::Off,
            1 => Relay::On,
            _ => return Err(Failure::ARGUMENT),
        };
        // Without a context a strip switches all its outlets.
        let selected = self.selection?;
        for (n, outlet) in plug.outlets.iter_mut().enumerate() {
            if selected.is_none_or(|selected| selected == n) {
                outlet.switch(relay, self.now);
            }
        }
        Ok(done(json!({})))
    }

    fn realtime(&self, plug: &mut PlugState) -> Result<Value, Failure> {
        let slot = self.slot()?;
        let (style, is_strip) = (plug.model.meter().ok_or(Failure::MEMBER)?, plug.is_strip());
        let (mac, lie) = (plug.mac(), plug.lie);
        let mains = if is_strip { mix(plug.seed, 9) } else { plug.seed };
        let outlet = plug.outlets.get_mut(slot).ok_or(Failure::ENTRY)?;
        let (power, voltage) = (outlet.power(self.now), load::mains_voltage(mains, self.now));
        let current = load::current(power, voltage, outlet.load);
        let watt_hours = outlet.counter(self.now).get() / 1_000;
        let device = match (is_strip, u8::try_from(slot)) {
            (true, Ok(n)) => DeviceId::outlet(mac, n),
            _ => DeviceId::plug(mac),
        };
        let counter = MilliwattHours::new(i64::try_from(watt_hours * 1_000).unwrap_or(i64::MAX)).unwrap_or_default();
        let mut milliwatts = power.get();
        if lie == Some(Lie::Power) {
            milliwatts = 20_000_000; // no outlet can; so it is no reading that may be recorded, and not in the list
        } else {
            plug.served.push(ServedReading { device, power, voltage, current, counter, relay: outlet.relay });
        }
        let finer = |thousandths: u32| -> f64 {
            // Six decimals, of which the last three never change what it rounds to. Made by way of a text, because only
            // that gives the number with just these decimals.
            let rest = if thousandths == 0 { 0 } else { mix(outlet.seed, u64::from(thousandths)) % 450 };
            let text = format!("{}.{:03}{rest:03}", thousandths / 1_000, thousandths % 1_000);
            text.parse().unwrap_or(0.0)
        };
        let integers = || {
            json!({
                "power_mw": milliwatts, "voltage_mv": voltage.get(), "current_ma": current.get(), "total_wh": watt_hours,
            })
        };
        Ok(done(match style {
            MeterStyle::Floats => json!({
                "power": finer(milliwatts), "voltage": finer(voltage.get()), "current": finer(current.get()),
                "total": kilowatt_hours(watt_hours),
            }),
            MeterStyle::Integers | MeterStyle::Smart => integers(),
            MeterStyle::IntegersWithSlot => {
                let mut reading = integers();
                if let Some(fields) = reading.as_object_mut() {
                    fields.insert("slot_id".to_owned(), json!(slot));
                }
                reading
            }
        }))
    }

    fn day_list(&self, plug: &mut PlugState) -> Result<Value, Failure> {
        let (year, month) = (self.number("year")?, self.number("month")?);
        let days = self.days(plug, year, month)?;
        let list: Vec<Value> = days
            .into_iter()
            .map(|(day, wh)| energy(plug.model, json!({"year": year, "month": month, "day": day}), wh))
            .collect();
        Ok(done(json!({ "day_list": list })))
    }

    fn month_list(&self, plug: &mut PlugState) -> Result<Value, Failure> {
        let year = self.number("year")?;
        let mut list = Vec::new();
        for month in 1..=12 {
            let days = self.days(plug, year, month)?;
            if !days.is_empty() {
                let sum = days.iter().map(|(_, wh)| wh).sum();
                list.push(energy(plug.model, json!({"year": year, "month": month}), sum));
            }
        }
        Ok(done(json!({ "month_list": list })))
    }

    /// Day of the month and Wh: invented before today, what was counted since the start for today, nothing from a year
    /// ago and earlier.
    fn days(&self, plug: &mut PlugState, year: i64, month: i64) -> Result<Vec<(i8, u64)>, Failure> {
        let outlet = plug.outlets.get_mut(self.slot()?).ok_or(Failure::ENTRY)?;
        let today = local_time(plug.epoch, self.now).date();
        outlet.counter(self.now);
        let (year, month) = (i16::try_from(year).ok(), i8::try_from(month).ok());
        let first =
            year.zip(month).and_then(|(year, month)| Date::new(year, month, 1).ok()).ok_or(Failure::ARGUMENT)?;
        let mut days = Vec::new();
        for day in 1..=first.days_in_month() {
            let Ok(date) = Date::new(first.year(), first.month(), day) else { continue };
            if date == today {
                days.push((day, outlet.energy.since_base() / 1_000));
            } else if date < today && (date.year(), date.month(), day) > (today.year() - 1, today.month(), today.day())
            {
                days.push((day, outlet.day_wh(date)));
            }
        }
        Ok(days)
    }

    /// The outlet of commands that have one: without a context a strip's first.
    fn slot(&self) -> Result<usize, Failure> {
        self.selection.map(Option::unwrap_or_default)
    }

    fn number(&self, name: &str) -> Result<i64, Failure> {
        self.arguments.get(name).and_then(Value::as_i64).ok_or(Failure::ARGUMENT)
    }

    fn text(&self, name: &str) -> Result<&str, Failure> {
        self.arguments.get(name).and_then(Value::as_str).ok_or(Failure::ARGUMENT)
    }
}

fn sysinfo(plug: &PlugState, via: Via, now: Duration) -> Value {
    let id = plug.device_id();
    let mac = plug.mac().bytes().map(|byte| format!("{byte:02X}")).join(":");
    let hash = |salt| format!("{:016X}{:016X}", mix(plug.seed, salt), mix(plug.seed, salt + 1));
    let mut info = json!({
        "alias": plug.alias, "deviceId": id, "hwId": hash(0x6877), "oemId": hash(0x6f65),
        "model": plug.model.label(), "hw_ver": plug.model.hardware(), "sw_ver": plug.model.firmware(),
        "dev_name": plug.model.device_name(), "feature": plug.model.feature(), "mac": mac,
        "rssi": rssi(plug), "led_off": u8::from(plug.is_led_off), "updating": 0,
    });
    let Some(fields) = info.as_object_mut() else { return info };
    let mut add = |more: Value| {
        if let Value::Object(more) = more {
            fields.extend(more);
        }
    };
    match plug.model {
        Model::Hs110V1 => {
            add(
                json!({"type": "IOT.SMARTPLUGSWITCH", "fwId": "0".repeat(32), "icon_hash": "", "latitude": 0.0, "longitude": 0.0}),
            );
        }
        _ => add(json!({
            "mic_type": "IOT.SMARTPLUGSWITCH", "latitude_i": 0, "longitude_i": 0, "obd_src": "tplink", "ntc_state": 0,
            "status": "new",
        })),
    }
    if plug.is_strip() {
        let child = |(n, outlet): (usize, &Outlet)| {
            // Only the last two characters over UDP: so that the answer fits a datagram.
            let id = if via == Via::Udp { format!("{n:02}") } else { plug.child_id(n) };
            json!({
                "id": id, "alias": outlet.alias, "state": state(outlet.relay), "on_time": outlet.on_time(now),
                "next_action": {"type": -1},
            })
        };
        let children: Vec<Value> = plug.outlets.iter().enumerate().map(child).collect();
        add(json!({"child_num": children.len(), "children": children}));
    } else if let Some(outlet) = plug.outlets.first() {
        add(json!({
            "relay_state": state(outlet.relay), "on_time": outlet.on_time(now), "active_mode": "none",
            "next_action": {"type": -1},
        }));
    }
    info
}

const fn state(relay: Relay) -> u8 {
    match relay {
        Relay::Off => 0,
        Relay::On => 1,
    }
}

/// Signal strength from -70 to -41 dBm, the plug's own.
pub(super) fn rssi(plug: &PlugState) -> i64 {
    i64::try_from(mix(plug.seed, 0x7273) % 30).unwrap_or_default() - 70
}

/// The plug's own date and time, in UTC: it moves with simulated time.
pub(super) fn local_time(epoch: UnixMillis, now: Duration) -> DateTime {
    let millis = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    let moment = jiff::Timestamp::from_millisecond(epoch.plus(millis).get()).unwrap_or_default();
    jiff::tz::TimeZone::UTC.to_datetime(moment)
}

/// kWh with three decimals.
fn kilowatt_hours(watt_hours: u64) -> f64 {
    f64::from(u32::try_from(watt_hours).unwrap_or(u32::MAX)) / 1e3
}

/// An entry of a day or month list with its energy in the model's style.
fn energy(model: Model, mut entry: Value, watt_hours: u64) -> Value {
    if let Some(fields) = entry.as_object_mut() {
        match model.meter() {
            Some(MeterStyle::Floats) => fields.insert("energy".to_owned(), json!(kilowatt_hours(watt_hours))),
            _ => fields.insert("energy_wh".to_owned(), json!(watt_hours)),
        };
    }
    entry
}

/// A result with the code of success.
fn done(mut result: Value) -> Value {
    if let Some(fields) = result.as_object_mut() {
        fields.insert("err_code".to_owned(), json!(0));
    }
    result
}

/// What a plug says when it does not do as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    code: i32,
    message: &'static str,
}

impl Failure {
    const MODULE: Self = Self { code: -1, message: "module not support" };
    const MEMBER: Self = Self { code: -2, message: "member not support" };
    const ARGUMENT: Self = Self { code: -3, message: "invalid argument" };
    const ENTRY: Self = Self { code: -14, message: "entry not exist" };

    fn object(self) -> Value {
        json!({"err_code": self.code, "err_msg": self.message})
    }
}

/// A JSON object that is written in the order in which it is built: replies mirror their requests.
#[derive(Default)]
struct Object(String);

impl Object {
    fn add(&mut self, name: &str, value: &Value) {
        self.add_text(name, &value.to_string());
    }

    fn add_text(&mut self, name: &str, json: &str) {
        let Self(text) = self;
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push_str(&Value::from(name).to_string());
        text.push(':');
        text.push_str(json);
    }

    fn finish(self) -> String {
        if self.0.is_empty() { "{}".to_owned() } else { self.0 + "}" }
    }
}

/// A JSON object as it came: in its order, with what is named twice.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(InOrder(std::marker::PhantomData))
    }
}

/// What a request has under a module's name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Module {
    Commands(Pairs<Value>),
    Other(serde::de::IgnoredAny),
}

impl Module {
    fn commands(&self) -> &[(String, Value)] {
        match self {
            Self::Commands(Pairs(commands)) => commands,
            Self::Other(_) => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plug(model: Model) -> PlugState {
        let spec = PlugSpec::new(model, Ipv4Addr::new(127, 1, 2, 3), 1).alias("test");
        PlugState::new(&spec, UnixMillis::new(1_795_423_474_120)) // 2026-11-23T08:44:34Z
    }

    fn ask(plug: &mut PlugState, request: &str, seconds: u64) -> Value {
        serde_json::from_slice(&reply(plug, request.as_bytes(), Via::Tcp, Duration::from_secs(seconds))).unwrap()
    }

    fn realtime(plug: &mut PlugState, seconds: u64) -> serde_json::Map<String, Value> {
        let answer = ask(plug, r#"{"emeter":{"get_realtime":{}}}"#, seconds);
        answer["emeter"]["get_realtime"].as_object().unwrap().clone()
    }

    #[test]
    fn every_model_says_who_it_is() {
        for model in Model::IOT {
            let mut plug = plug(model);
            let answer = ask(&mut plug, r#"{"system":{"get_sysinfo":{}}}"#, 12);
            let info = &answer["system"]["get_sysinfo"];
            assert_eq!(info["err_code"], 0);
            assert_eq!(info["model"], model.label());
            assert_eq!(info["deviceId"].as_str().unwrap().len(), 40);
            assert_eq!(info["mac"].as_str().unwrap().parse::<Mac>().unwrap(), plug.mac());
            assert_eq!(info["feature"] == "TIM:ENE", model.meter().is_some());
            assert_eq!(info.get("relay_state").is_some(), model != Model::Hs300);
            assert_eq!(info.get("children").is_some(), model == Model::Hs300);
            assert_eq!(info.get("type").is_some(), model == Model::Hs110V1);
            let length = info.to_string().len();
            assert!((400..2_000).contains(&length), "{model}: {length} bytes");
        }
    }

    #[test]
    fn old_meters_write_floats_and_new_ones_integers() {
        let mut old = plug(Model::Hs110V1);
        let fields = realtime(&mut old, 5);
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["current", "err_code", "power", "total", "voltage"]);
        let served = old.take_served();
        assert_eq!(served.len(), 1);
        let power = Milliwatts::from_base(fields["power"].as_f64().unwrap()).unwrap();
        assert_eq!(power, served[0].power);
        assert_eq!(Millivolts::from_base(fields["voltage"].as_f64().unwrap()).unwrap(), served[0].voltage);
        assert_eq!(Milliamps::from_base(fields["current"].as_f64().unwrap()).unwrap(), served[0].current);
        let total = fields["total"].as_f64().unwrap() * 1_000.0;
        assert_eq!(MilliwattHours::from_base(total).unwrap(), served[0].counter);

        let mut new = plug(Model::Kp115);
        let fields = realtime(&mut new, 5);
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["current_ma", "err_code", "power_mw", "total_wh", "voltage_mv"]);
        assert!(realtime(&mut plug(Model::Hs300), 5).contains_key("slot_id"));
    }

    #[test]
    fn floats_round_to_the_milliwatts_in_the_list_at_any_time() {
        let mut old = plug(Model::Hs110V1);
        for second in 0..5_000 {
            let fields = realtime(&mut old, second);
            let served = old.take_served();
            let read = |name: &str| fields[name].as_f64().unwrap();
            assert_eq!(Milliwatts::from_base(read("power")).unwrap(), served[0].power);
            assert_eq!(Milliamps::from_base(read("current")).unwrap(), served[0].current);
            let decimals = fields["power"].to_string();
            assert!(decimals.split_once('.').is_none_or(|(_, rest)| rest.len() <= 6), "{decimals}");
        }
    }

    #[test]
    fn errors_are_those_of_real_firmware() {
        let mut lamp = plug(Model::Hs103);
        let answer = ask(&mut lamp, r#"{"emeter":{"get_realtime":{}},"system":{"get_sysinfo":null}}"#, 0);
        assert_eq!(answer["emeter"], json!({"err_code": -1, "err_msg": "module not support"}));
        assert_eq!(answer["system"]["get_sysinfo"]["err_code"], 0);
        let mut plug = plug(Model::Kp115);
        let answer = ask(&mut plug, r#"{"emeter":{"get_smile":{},"get_daystat":{"month":13,"year":2026}},"x":{}}"#, 0);
        assert_eq!(answer["emeter"]["get_smile"], json!({"err_code": -2, "err_msg": "member not support"}));
        assert_eq!(answer["emeter"]["get_daystat"], json!({"err_code": -3, "err_msg": "invalid argument"}));
        assert_eq!(answer["x"]["err_code"], -1);
    }

    #[test]
    fn what_is_not_json_gets_an_empty_object_or_nothing() {
        let mut plug = plug(Model::Kp115);
        for junk in [&b"\xff\xfe"[..], b"", b"[]", b"7", b"{\"system\":"] {
            assert_eq!(reply(&mut plug, junk, Via::Tcp, Duration::ZERO), b"{}");
            assert_eq!(reply(&mut plug, junk, Via::Udp, Duration::ZERO), b"");
        }
        assert_eq!(reply(&mut plug, br#"{"system":7}"#, Via::Tcp, Duration::ZERO), br#"{"system":{}}"#);
    }

    #[test]
    fn replies_keep_the_order_of_their_request() {
        let mut plug = plug(Model::Kp115);
        let request = br#"{"time":{"get_timezone":{}},"emeter":{"a":{}},"anti_theft":{"b":{}}}"#;
        let text = String::from_utf8(reply(&mut plug, request, Via::Tcp, Duration::ZERO)).unwrap();
        let places = ["\"time\"", "\"emeter\"", "\"anti_theft\""].map(|name| text.find(name).unwrap());
        assert!(places.is_sorted(), "{text}");
    }

    #[test]
    fn a_strip_answers_for_the_outlet_that_the_context_names() {
        let mut strip = plug(Model::Hs300);
        let answer = ask(&mut strip, r#"{"system":{"get_sysinfo":{}}}"#, 0);
        let ids: Vec<String> = answer["system"]["get_sysinfo"]["children"]
            .as_array()
            .unwrap()
            .iter()
            .map(|child| child["id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(ids.len(), 6);
        assert!(ids.iter().all(|id| id.len() == 42 && id.starts_with(&strip.device_id())));
        let by_udp = reply(&mut strip, br#"{"system":{"get_sysinfo":{}}}"#, Via::Udp, Duration::ZERO);
        let by_udp: Value = serde_json::from_slice(&by_udp).unwrap();
        assert_eq!(by_udp["system"]["get_sysinfo"]["children"][5]["id"], "05");

        let mut of = |ids: Value| {
            let request = json!({"context": {"child_ids": ids}, "emeter": {"get_realtime": {}}}).to_string();
            ask(&mut strip, &request, 70)["emeter"]["get_realtime"].clone()
        };
        assert_eq!(of(json!([ids[1]]))["slot_id"], 1);
        assert_eq!(of(json!([ids[4], ids[1]]))["slot_id"], 4);
        assert_eq!(of(json!(["nonsense"])), json!({"err_code": -14, "err_msg": "entry not exist"}));
        assert_eq!(of(json!([ids[1], "nonsense"]))["err_code"], -14);
        assert_eq!(of(json!([]))["err_code"], -14);
        assert_eq!(of(json!("nonsense"))["err_code"], -3);
        assert_eq!(realtime(&mut strip, 70)["slot_id"], 0);
        let devices: Vec<_> = strip.take_served().into_iter().map(|reading| reading.device.outlet).collect();
        assert_eq!(devices, [Some(1), Some(4), Some(0)]);
    }

    #[test]
    fn a_bad_outlet_spoils_only_the_commands_that_have_one() {
        let request = r#"{"context":{"child_ids":["x"]},"system":{"get_sysinfo":{}},"emeter":{"get_realtime":{}}}"#;
        let answer = ask(&mut plug(Model::Hs300), request, 0);
        assert_eq!(answer["system"]["get_sysinfo"]["err_code"], 0);
        assert_eq!(answer["emeter"]["get_realtime"]["err_code"], -14);
        assert!(answer.get("context").is_none());
        let answer = ask(&mut plug(Model::Kp115), request, 0);
        assert_eq!(answer["emeter"]["get_realtime"]["err_code"], 0);
    }

    #[test]
    fn the_counter_is_the_integral_of_the_power_however_often_it_is_read() {
        let (mut often, mut seldom) = (plug(Model::Kp115), plug(Model::Kp115));
        let first = realtime(&mut often, 0)["total_wh"].as_u64().unwrap();
        let mut sum = 0;
        let mut before = 0;
        for second in 0..7_200 {
            let fields = realtime(&mut often, second);
            sum += fields["power_mw"].as_u64().unwrap();
            let total = fields["total_wh"].as_u64().unwrap();
            assert!(total >= before);
            before = total;
        }
        let last = realtime(&mut seldom, 7_199)["total_wh"].as_u64().unwrap();
        assert_eq!(last, before);
        assert!((last - first).abs_diff(sum / 3_600_000) <= 1, "{} Wh counted, {} mW s served", last - first, sum);
    }

    #[test]
    fn writes_do_what_they_say_and_are_counted() {
        let mut plug = plug(Model::Kp115);
        assert!(realtime(&mut plug, 1)["power_mw"].as_u64().unwrap() > 0);
        assert_eq!(plug.writes_seen(), 0);
        ask(&mut plug, r#"{"system":{"set_relay_state":{"state":0}}}"#, 2);
        let fields = realtime(&mut plug, 3);
        assert_eq!((&fields["power_mw"], &fields["current_ma"]), (&json!(0), &json!(0)));
        assert_eq!(plug.take_served().last().unwrap().relay, Relay::Off);
        ask(&mut plug, r#"{"emeter":{"erase_emeter_stat":{}}}"#, 4);
        assert_eq!(realtime(&mut plug, 5)["total_wh"], 0);
        assert!(!plug.take_restart());
        ask(&mut plug, r#"{"system":{"reboot":{"delay":1},"set_relay_state":{"state":2}}}"#, 6);
        assert!(plug.take_restart());
        let answer = ask(&mut plug, r#"{"netif":{"get_scaninfo":{"refresh":1}},"nothing":{"set_x":{}}}"#, 7);
        assert_eq!(answer["nothing"]["err_code"], -1);
        assert_eq!(plug.writes_seen(), 6);
    }

    #[test]
    fn lists_hold_past_days_and_a_growing_today() {
        let mut plug = plug(Model::Hs110V1);
        let request = r#"{"emeter":{"get_daystat":{"month":11,"year":2026},"get_monthstat":{"year":2026}}}"#;
        let answer = ask(&mut plug, request, 3_600);
        let days = answer["emeter"]["get_daystat"]["day_list"].as_array().unwrap();
        assert_eq!(days.len(), 23);
        assert!(days[0]["energy"].as_f64().unwrap() > 0.4);
        let months = answer["emeter"]["get_monthstat"]["month_list"].as_array().unwrap();
        assert_eq!(months.len(), 11);
        assert_eq!(
            ask(&mut plug, r#"{"emeter":{"get_daystat":{"month":11,"year":2027}}}"#, 0)["emeter"]["get_daystat"]["day_list"],
            json!([])
        );
        let time = ask(&mut plug, r#"{"time":{"get_time":{}}}"#, 3_600);
        assert_eq!(time["time"]["get_time"]["mday"], 23);
        assert_eq!(time["time"]["get_time"]["hour"], 9);
    }

    #[test]
    fn lies_are_told_and_are_not_in_the_list() {
        let mut plug = plug(Model::Kp115);
        let honest = plug.mac();
        plug.set_lie(Some(Lie::Identity));
        assert_ne!(plug.mac(), honest);
        realtime(&mut plug, 1);
        assert_eq!(plug.take_served()[0].device, DeviceId::plug(plug.mac()));
        plug.set_lie(Some(Lie::Power));
        assert_eq!(realtime(&mut plug, 2)["power_mw"], 20_000_000);
        assert!(plug.take_served().is_empty());
    }

    #[test]
    fn a_restart_begins_counters_and_on_time_at_0() {
        let mut plug = plug(Model::Kp115);
        plug.restart(Duration::from_secs(1_000));
        assert_eq!(realtime(&mut plug, 1_001)["total_wh"], 0);
        let answer = ask(&mut plug, r#"{"system":{"get_sysinfo":{}}}"#, 1_007);
        assert_eq!(answer["system"]["get_sysinfo"]["on_time"], 7);
    }
}
