//! The SMART dialect of a plug: state, request and time in, JSON out. No sockets, no clock, no cipher.
//!
//! Owns the methods and their errors, and which model knows which. Promises what [`super::reply()`] promises for the IOT
//! dialect: the answer follows from state, request and time alone, writes are counted, and each outlet's reading stands
//! once in [`PlugState::take_served`], however many methods of one request gave it.

use std::time::Duration;

use base64ct::{Base64, Encoding};
use jiff::ToSpan;
use jiff::civil::{Date, DateTime};
use serde_json::{Value, json};

use super::load::{self, mix};
use super::reply::{Lie, PlugState, ServedReading, local_time, rssi};
use super::{Fault, Model};
use crate::reading::{DeviceId, Relay};
use crate::units::{MilliwattHours, Milliwatts};

/// Requests in one batch.
const BATCH: usize = 16;
/// Children in one page.
const PAGE: usize = 10;
/// The same under [`Fault::ShortPages`].
const SHORT_PAGE: usize = 4;

/// The JSON reply to a JSON request; `None` when nothing is ever said.
pub fn reply(plug: &mut PlugState, request: &[u8], fault: Option<Fault>, now: Duration) -> Option<Vec<u8>> {
    let Ok(request) = serde_json::from_slice::<Value>(request) else { return Some(error(-1_003).to_string().into()) };
    let served = plug.served.len();
    let answer = Asked { outlet: None, fault, now }.answer(plug, &request);
    // One request is one reading of each outlet, in whatever words.
    let mut seen = Vec::new();
    let mut at = 0;
    plug.served.retain(|reading| {
        at += 1;
        at <= served
            || !seen.contains(&reading.device) && {
                seen.push(reading.device);
                true
            }
    });
    answer.map(|answer| answer.to_string().into_bytes())
}

fn error(code: i32) -> Value {
    json!({ "error_code": code })
}

/// What every method of a request has in common.
#[derive(Clone, Copy)]
struct Asked {
    /// The child that is asked, inside `control_child`.
    outlet: Option<usize>,
    fault: Option<Fault>,
    now: Duration,
}

/// A refusal.
struct Code(i32);

const UNKNOWN_METHOD: Code = Code(-1_002);
const NOT_JSON: Code = Code(-1_003);
const PARAMETERS: Code = Code(-1_008);

impl Asked {
    /// `None` when nothing is ever said.
    fn answer(self, plug: &mut PlugState, request: &Value) -> Option<Value> {
        let method = request.get("method").and_then(Value::as_str).unwrap_or_default();
        let nothing = json!({});
        let params = request.get("params").unwrap_or(&nothing);
        let result = match method {
            "multipleRequest" if self.fault == Some(Fault::SilentBatch) => return None,
            "get_device_time" if self.fault == Some(Fault::SlowClock) => return None,
            "multipleRequest" => self.batch(plug, params)?,
            "control_child" => self.child(plug, params)?,
            _ => self.result(plug, method, params),
        };
        Some(match result {
            Ok(Value::Null) => error(0),
            Ok(result) => json!({"result": result, "error_code": 0}),
            Err(Code(code)) => error(code),
        })
    }

    /// A batch ends with the first item that fails.
    fn batch(self, plug: &mut PlugState, params: &Value) -> Option<Result<Value, Code>> {
        if plug.model == Model::P100 || self.fault == Some(Fault::NoBatch) {
            return Some(Err(NOT_JSON));
        }
        let Some(requests) = params.get("requests").and_then(Value::as_array) else { return Some(Err(PARAMETERS)) };
        let mut responses = Vec::new();
        for request in requests.iter().take(BATCH) {
            let mut answer = self.answer(plug, request)?;
            let failed = answer.get("error_code") != Some(&json!(0));
            if let Some(fields) = answer.as_object_mut() {
                let method = request.get("method").cloned().unwrap_or_default();
                fields.insert("method".to_owned(), method);
            }
            responses.push(answer);
            if failed {
                break;
            }
        }
        Some(Ok(json!({ "responses": responses })))
    }

    fn child(self, plug: &mut PlugState, params: &Value) -> Option<Result<Value, Code>> {
        let id = params.get("device_id").and_then(Value::as_str).unwrap_or_default();
        let children = plug.model.children();
        let found = (0..usize::from(children)).find(|n| plug.child_id(*n) == id);
        let (Some(outlet), None, Some(request)) = (found, self.outlet, params.get("requestData")) else {
            return Some(Err(PARAMETERS));
        };
        let answer = Self { outlet: Some(outlet), ..self }.answer(plug, request)?;
        Some(Ok(json!({ "responseData": answer })))
    }

    fn result(self, plug: &mut PlugState, method: &str, params: &Value) -> Result<Value, Code> {
        let is_strip = plug.model.children() > 0;
        match method {
            "component_nego" => Ok(json!({"component_list": components(plug.model, self.outlet.is_some())})),
            "get_device_info" => Ok(match self.outlet {
                Some(n) => self.child_info(plug, n),
                None => self.device_info(plug),
            }),
            "get_device_time" => Ok(json!({
                "timestamp": jiff::tz::TimeZone::UTC.to_timestamp(self.clock(plug)).map_or(0, |moment| moment.as_second()),
                "time_diff": 0, "region": "UTC",
            })),
            "get_emeter_data" if has_emeter(plug.model, self.outlet) => self.emeter_data(plug),
            "get_emeter_vgain_igain" if has_emeter(plug.model, self.outlet) => {
                Ok(json!({"vgain": 125_922, "igain": 11_369}))
            }
            "get_energy_usage" if self.has_energy(plug) => self.energy_usage(plug),
            "get_current_power" if self.has_energy(plug) && plug.model != Model::P110V1 => {
                let reading = self.read(plug, true);
                Ok(json!({"current_power": reading.power.get() / 1_000}))
            }
            "get_device_usage" => self.device_usage(plug),
            "get_energy_data" if self.has_energy(plug) && plug.model != Model::P110V1 => self.energy_data(plug, params),
            "get_power_data" if self.has_energy(plug) && plug.model != Model::P110V1 => self.power_data(plug, params),
            "get_child_device_list" if is_strip && self.outlet.is_none() => {
                let start = start_index(params)?;
                let all: Vec<_> = (0..usize::from(plug.model.children())).map(|n| self.child_info(plug, n)).collect();
                let page = if self.fault == Some(Fault::ShortPages) { SHORT_PAGE } else { PAGE };
                let page: Vec<_> = all.iter().skip(start).take(page).collect();
                Ok(json!({"child_device_list": page, "start_index": start, "sum": all.len()}))
            }
            "get_child_device_component_list" if is_strip && self.outlet.is_none() => {
                let start = start_index(params)?;
                let all: Vec<_> = (0..usize::from(plug.model.children()))
                    .map(|n| json!({"device_id": plug.child_id(n), "component_list": components(plug.model, true)}))
                    .collect();
                let page: Vec<_> = all.iter().skip(start).take(PAGE).collect();
                Ok(json!({"child_component_list": page, "start_index": start, "sum": all.len()}))
            }
            "set_device_info" => {
                plug.writes += 1;
                if let Some(is_on) = params.get("device_on").and_then(Value::as_bool) {
                    let relay = if is_on { Relay::On } else { Relay::Off };
                    let chosen = self.outlet;
                    for (n, outlet) in plug.outlets.iter_mut().enumerate() {
                        if chosen.is_none_or(|chosen| chosen == n) {
                            outlet.switch(relay, self.now);
                        }
                    }
                }
                Ok(Value::Null)
            }
            "device_reboot" => {
                plug.writes += 1;
                plug.has_to_restart = true;
                Ok(Value::Null)
            }
            _ => {
                if !method.starts_with("get_") {
                    plug.writes += 1;
                }
                Err(UNKNOWN_METHOD)
            }
        }
    }

    /// Whether what is asked measures: a plug with a meter, or an outlet of a strip; of the strips themselves only one.
    fn has_energy(self, plug: &PlugState) -> bool {
        plug.model.meter().is_some()
            && (self.outlet.is_some() || plug.model.children() == 0 || plug.model == Model::P316m)
    }

    /// The plug's own clock, which is UTC here, or what it says when nobody has told it the time.
    fn clock(self, plug: &PlugState) -> DateTime {
        if self.fault == Some(Fault::ClockUnset) {
            let run = i64::try_from(self.now.as_secs() % 86_400).unwrap_or_default();
            return DateTime::constant(2000, 1, 1, 0, 0, 0, 0).saturating_add(run.seconds());
        }
        local_time(plug.epoch, self.now)
    }

    fn clock_text(self, plug: &PlugState) -> String {
        self.clock(plug).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    /// Outlets that what is asked stands for.
    fn outlets(self, plug: &PlugState) -> std::ops::Range<usize> {
        match self.outlet {
            Some(n) => n..n + 1,
            None => 0..plug.outlets.len(),
        }
    }

    /// The reading, which is noted as served. `in_watts` when the answer holds no finer power.
    fn read(self, plug: &mut PlugState, in_watts: bool) -> ServedReading {
        let mains = if plug.model.children() > 0 { mix(plug.seed, 9) } else { plug.seed };
        let (mac, voltage) = (plug.mac(), load::mains_voltage(mains, self.now));
        let is_glitch = plug.lie == Some(Lie::Power);
        let is_strip = plug.model.children() > 0;
        let range = self.outlets(plug);
        let (mut milliwatts, mut energy, mut kind, mut relay) = (0_u32, 0_u64, load::Load::Zero, Relay::Off);
        for outlet in plug.outlets.iter_mut().skip(range.start).take(range.len()) {
            milliwatts = milliwatts.saturating_add(outlet.power(self.now).get());
            outlet.counter(self.now);
            energy += outlet.energy.since_base();
            kind = outlet.load;
            relay = if outlet.relay == Relay::On { Relay::On } else { relay };
        }
        if in_watts {
            milliwatts = milliwatts / 1_000 * 1_000;
        }
        let power = Milliwatts::from_base(f64::from(milliwatts) / 1e3).unwrap_or(Milliwatts::ZERO);
        let device = match self.outlet.and_then(|n| u8::try_from(n).ok()) {
            Some(n) if is_strip => DeviceId::outlet(mac, n),
            _ => DeviceId::plug(mac),
        };
        let counter =
            MilliwattHours::new(i64::try_from(energy / 1_000 * 1_000).unwrap_or(i64::MAX)).unwrap_or_default();
        let reading =
            ServedReading { device, power, voltage, current: load::current(power, voltage, kind), counter, relay };
        // A strip's own sum is no reading of an outlet, and what no outlet can have is no reading at all.
        if !is_glitch && (self.outlet.is_some() || !is_strip) {
            plug.served.push(reading);
        }
        reading
    }

    /// What a plug that lies says of its power.
    fn told(plug: &PlugState, reading: &ServedReading) -> u32 {
        if plug.lie == Some(Lie::Power) { 20_000_000 } else { reading.power.get() }
    }

    fn emeter_data(self, plug: &mut PlugState) -> Result<Value, Code> {
        let reading = self.read(plug, false);
        Ok(json!({
            "power_mw": Self::told(plug, &reading), "voltage_mv": reading.voltage.get(),
            "current_ma": reading.current.get(), "energy_wh": reading.counter.get() / 1_000,
        }))
    }

    fn energy_usage(self, plug: &mut PlugState) -> Result<Value, Code> {
        if self.fault == Some(Fault::ClockUnset) {
            return Err(NOT_JSON);
        }
        let (today, month) = self.today_and_month(plug);
        let clock = self.clock(plug);
        let midnight =
            u64::try_from(clock.hour()).unwrap_or_default() * 60 + u64::try_from(clock.minute()).unwrap_or_default();
        let days = u64::try_from(clock.day() - 1).unwrap_or_default();
        let mut usage = json!({
            "today_runtime": midnight, "month_runtime": days * 1_440 + midnight, "today_energy": today,
            "month_energy": month, "local_time": self.clock_text(plug), "electricity_charge": [0, 0, 0],
        });
        let says_power = plug.model != Model::P304m;
        if let Some(fields) = usage.as_object_mut().filter(|_| says_power) {
            let reading = self.read(plug, false);
            fields.insert("current_power".to_owned(), json!(Self::told(plug, &reading)));
        }
        if plug.model == Model::P110V1
            && let Some(fields) = usage.as_object_mut()
        {
            fields.insert("past24h".to_owned(), json!(vec![today / 24; 24]));
            fields.insert("past7d".to_owned(), json!(vec![vec![today / 24; 24]; 7]));
            fields.insert("past30d".to_owned(), json!(vec![today; 30]));
            fields.insert("past1y".to_owned(), json!(vec![month; 12]));
        }
        Ok(usage)
    }

    fn device_usage(self, plug: &mut PlugState) -> Result<Value, Code> {
        if self.fault == Some(Fault::ClockUnset) {
            return Err(Code(-1_601));
        }
        let (today, month) = self.today_and_month(plug);
        let usage = |today: u64, month: u64| json!({"today": today, "past7": month.min(today * 7), "past30": month});
        Ok(json!({"time_usage": usage(60, 1_800), "power_usage": usage(today, month), "saved_power": usage(0, 0)}))
    }

    /// Wh of the plug's own day and month.
    fn today_and_month(self, plug: &mut PlugState) -> (u64, u64) {
        let today = self.clock(plug).date();
        let days = self.days(plug, today.first_of_month(), today);
        (days.last().copied().unwrap_or_default(), days.iter().sum())
    }

    /// Wh of each day from `from` to `to`, both included: invented before today as the IOT lists are, counted today,
    /// nothing later.
    fn days(self, plug: &mut PlugState, from: Date, to: Date) -> Vec<u64> {
        let today = self.clock(plug).date();
        let range = self.outlets(plug);
        let now = self.now;
        let mut days = Vec::new();
        for date in from.series(1.day()).take_while(|date| *date <= to).take(400) {
            let mut sum = 0;
            for outlet in plug.outlets.iter_mut().skip(range.start).take(range.len()) {
                outlet.counter(now);
                if date == today {
                    sum += outlet.energy.since_base() / 1_000;
                } else if date < today {
                    sum += outlet.day_wh(date);
                }
            }
            days.push(sum);
        }
        days
    }

    /// `interval` 60: hours of days from `start_timestamp` to `end_timestamp`, at most eight; 1440: days of the quarter
    /// that begins at the start; 43200: months of the year that does. The stamps are seconds, read by the plug's clock.
    fn energy_data(self, plug: &mut PlugState, params: &Value) -> Result<Value, Code> {
        if self.fault == Some(Fault::ClockUnset) {
            return Err(Code(-1_601));
        }
        let (start, end, interval) = span(params)?;
        let (from, to) = (date(start)?, date(end)?);
        let data: Vec<u64> = match interval {
            60 => {
                let today = self.clock(plug);
                let days = self.days(plug, from, to.min(from.saturating_add(7.days())));
                let hours =
                    from.series(1.day()).zip(days).flat_map(|(date, wh)| (0..24_u64).map(move |hour| (date, hour, wh)));
                let hour_now = u64::try_from(today.hour()).unwrap_or_default();
                hours
                    .map(|(date, hour, wh)| match date == today.date() {
                        // Of today what was counted stands in the hour that runs.
                        true => u64::from(hour == hour_now) * wh,
                        false => share(wh, hour),
                    })
                    .collect()
            }
            1_440 => {
                let last = from.saturating_add(3.months()).saturating_sub(1.day());
                self.days(plug, from, last)
            }
            43_200 => (0..12)
                .map(|n| {
                    let first = from.saturating_add(i64::from(n).months());
                    self.days(plug, first, first.last_of_month()).iter().sum()
                })
                .collect(),
            _ => return Err(PARAMETERS),
        };
        Ok(json!({
            "local_time": self.clock_text(plug), "data": data, "start_timestamp": start, "end_timestamp": end,
            "interval": interval,
        }))
    }

    /// Mean power in watts of each 5 or 60 minutes, -1 where the plug knows none; at most 144 of them.
    fn power_data(self, plug: &mut PlugState, params: &Value) -> Result<Value, Code> {
        let (start, end, interval) = span(params)?;
        if !matches!(interval, 5 | 60) {
            return Err(PARAMETERS);
        }
        let steps = u64::try_from(end.saturating_sub(start)).unwrap_or_default() / (interval.unsigned_abs() * 60);
        let today = self.clock(plug).date();
        let day = self.days(plug, date(start)?, date(start)?).first().copied().unwrap_or_default();
        let data: Vec<i64> = (0..steps.min(144))
            .map(|n| {
                let at = date(start.saturating_add(i64::try_from(n).unwrap_or_default() * interval * 60));
                if at.is_ok_and(|at| at < today) { i64::try_from(day / 24).unwrap_or_default() } else { -1 }
            })
            .collect();
        Ok(json!({"data": data, "start_timestamp": start, "end_timestamp": end, "interval": interval}))
    }

    fn device_info(self, plug: &PlugState) -> Value {
        let hash = |salt| format!("{:016X}{:016X}", mix(plug.seed, salt), mix(plug.seed, salt + 1));
        let mut info = json!({
            "device_id": plug.device_id(), "fw_ver": plug.model.firmware(), "hw_ver": plug.model.hardware(),
            "type": kind(plug.model), "model": short_label(plug.model), "mac": mac(plug), "hw_id": hash(0x6877),
            "fw_id": "0".repeat(32), "oem_id": hash(0x6f65), "ip": plug.address.to_string(), "time_diff": 0,
            "ssid": Base64::encode_string(b"home"), "rssi": rssi(plug), "signal_level": 2, "lang": "en_US",
            "specs": "", "avatar": "plug", "region": "UTC", "has_set_location_info": false,
            "nickname": Base64::encode_string(plug.alias().as_bytes()),
        });
        if let Some(fields) = info.as_object_mut()
            && plug.model.children() == 0
            && let Some(outlet) = plug.outlets.first()
        {
            let more = json!({
                "device_on": outlet.relay == Relay::On, "on_time": outlet.on_time(self.now),
                "default_states": {"type": "last_states", "state": {}}, "auto_off_status": "off",
                "auto_off_remain_time": 0,
            });
            if let Value::Object(more) = more {
                fields.extend(more);
            }
            // Fields come and go with the firmware: the older one has none of these.
            if plug.model != Model::P110V1 {
                for name in ["overheat_status", "power_protection_status", "overcurrent_status", "charging_status"] {
                    fields.insert(name.to_owned(), json!("normal"));
                }
            }
        }
        info
    }

    fn child_info(self, plug: &PlugState, n: usize) -> Value {
        let Some(outlet) = plug.outlets.get(n) else { return json!({}) };
        json!({
            "device_id": plug.child_id(n), "original_device_id": plug.device_id(), "position": n + 1,
            "slot_number": plug.model.children(), "nickname": Base64::encode_string(outlet.alias.as_bytes()),
            "device_on": outlet.relay == Relay::On, "on_time": outlet.on_time(self.now), "fw_ver": plug.model.firmware(),
            "hw_ver": plug.model.hardware(), "model": short_label(plug.model), "mac": mac(plug).replace('-', ""),
            "category": "plug.powerstrip.sub-plug", "is_usb": false, "type": kind(plug.model), "hw_id": "", "fw_id": "", "oem_id": "",
            "bind_count": 1, "lang": "en_US", "region": "UTC", "status_follow_edge": true, "avatar": "plug",
            "has_set_location_info": false, "auto_off_status": "off", "auto_off_remain_time": 0,
            "default_states": {"type": "last_states", "state": {}}, "overheat_status": "normal",
            "power_protection_status": "normal", "overcurrent_status": "normal", "charging_status": "normal",
        })
    }
}

fn has_emeter(model: Model, outlet: Option<usize>) -> bool {
    match model {
        Model::P110 | Model::Kp125m => true,
        Model::P316m => outlet.is_some(),
        _ => false,
    }
}

/// A day's energy spread over its hours, without a remainder lost.
const fn share(day: u64, hour: u64) -> u64 {
    day * (hour + 1) / 24 - day * hour / 24
}

fn start_index(params: &Value) -> Result<usize, Code> {
    let index = params.get("start_index").map_or(Some(0), Value::as_u64);
    index.and_then(|index| usize::try_from(index).ok()).ok_or(PARAMETERS)
}

fn span(params: &Value) -> Result<(i64, i64, i64), Code> {
    let number = |name| params.get(name).and_then(Value::as_i64).ok_or(PARAMETERS);
    Ok((number("start_timestamp")?, number("end_timestamp")?, number("interval")?))
}

fn date(stamp: i64) -> Result<Date, Code> {
    let moment = jiff::Timestamp::from_second(stamp).map_err(|_| PARAMETERS)?;
    Ok(jiff::tz::TimeZone::UTC.to_datetime(moment).date())
}

fn components(model: Model, is_child: bool) -> Value {
    let version = |id: &str, version: u8| json!({"id": id, "ver_code": version});
    let mut list = vec![version("device", 2), version("time", 1)];
    let has_energy = model.meter().is_some() && (model.children() == 0 || is_child || model.is_smart());
    if has_energy {
        list.push(version("energy_monitoring", if model == Model::P110V1 { 1 } else { 2 }));
    }
    if model.children() > 0 && !is_child {
        list.extend([version("child_device", 2), version("control_child", 2)]);
    }
    json!(list)
}

/// The vendor's word for what a model is.
pub(super) const fn kind(model: Model) -> &'static str {
    match model {
        Model::Kp125m => "SMART.KASAPLUG",
        _ if model.is_smart() => "SMART.TAPOPLUG",
        _ => "IOT.SMARTPLUGSWITCH",
    }
}

/// The model without its region.
fn short_label(model: Model) -> &'static str {
    model.label().split_once('(').map_or(model.label(), |(name, _)| name)
}

/// The MAC as this dialect writes it.
pub(super) fn mac(plug: &PlugState) -> String {
    plug.mac().bytes().map(|byte| format!("{byte:02X}")).join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::PlugSpec;
    use crate::units::UnixMillis;
    use std::net::Ipv4Addr;

    fn plug(model: Model) -> PlugState {
        let spec = PlugSpec::new(model, Ipv4Addr::new(127, 1, 2, 3), 1).alias("test");
        PlugState::new(&spec, UnixMillis::new(1_795_423_474_120)) // 2026-11-23T08:44:34Z
    }

    fn ask(plug: &mut PlugState, request: &Value) -> Value {
        asked_under(plug, request, None).unwrap()
    }

    fn asked_under(plug: &mut PlugState, request: &Value, fault: Option<Fault>) -> Option<Value> {
        let reply = reply(plug, request.to_string().as_bytes(), fault, Duration::from_secs(100))?;
        Some(serde_json::from_slice(&reply).unwrap())
    }

    fn code(plug: &mut PlugState, method: &str) -> i64 {
        ask(plug, &json!({ "method": method }))["error_code"].as_i64().unwrap()
    }

    #[test]
    fn models_know_different_methods() {
        let methods = ["get_emeter_data", "get_energy_usage", "get_current_power", "get_device_info", "component_nego"];
        let known = |model| methods.map(|method| code(&mut plug(model), method));
        assert_eq!(known(Model::P110), [0; 5]);
        assert_eq!(known(Model::Kp125m), [0; 5]);
        assert_eq!(known(Model::P110V1), [-1_002, 0, -1_002, 0, 0]);
        assert_eq!(known(Model::P304m), [-1_002, -1_002, -1_002, 0, 0]);
        assert_eq!(known(Model::P316m), [-1_002, 0, 0, 0, 0]);
        assert_eq!(known(Model::P100), [-1_002, -1_002, -1_002, 0, 0]);
    }

    #[test]
    fn one_request_is_one_reading_in_whatever_words() {
        let mut plug = plug(Model::P110);
        let batch = json!({"method": "multipleRequest", "params": {"requests": [
            {"method": "get_emeter_data"}, {"method": "get_energy_usage"}, {"method": "get_current_power"}]}});
        let answer = ask(&mut plug, &batch);
        let responses = answer["result"]["responses"].as_array().unwrap();
        let served = plug.take_served();
        assert_eq!(served.len(), 1);
        assert_eq!(responses[0]["result"]["power_mw"], served[0].power.get());
        assert_eq!(responses[1]["result"]["current_power"], served[0].power.get());
        assert_eq!(responses[2]["result"]["current_power"], served[0].power.get() / 1_000);
        assert_eq!(responses[0]["result"]["energy_wh"].as_u64().unwrap() * 1_000, served[0].counter.get());
    }

    #[test]
    fn a_batch_ends_with_the_first_that_fails() {
        let batch = json!({"method": "multipleRequest", "params": {"requests": [
            {"method": "get_device_info"}, {"method": "get_emeter_data"}, {"method": "get_energy_usage"}]}});
        let answer = ask(&mut plug(Model::P110V1), &batch);
        let responses = answer["result"]["responses"].as_array().unwrap();
        let codes: Vec<_> = responses.iter().map(|item| item["error_code"].as_i64().unwrap()).collect();
        assert_eq!(codes, [0, -1_002]);
        assert_eq!(ask(&mut plug(Model::P100), &batch)["error_code"], -1_003);
        assert_eq!(asked_under(&mut plug(Model::P110), &batch, Some(Fault::SilentBatch)), None);
        assert_eq!(asked_under(&mut plug(Model::P110), &batch, Some(Fault::NoBatch)).unwrap()["error_code"], -1_003);
    }

    #[test]
    fn a_strip_lists_its_outlets_by_pages_and_answers_for_each() {
        let mut strip = plug(Model::P316m);
        let mut ids = Vec::new();
        loop {
            let request = json!({"method": "get_child_device_list", "params": {"start_index": ids.len()}});
            let answer = asked_under(&mut strip, &request, Some(Fault::ShortPages)).unwrap();
            let page = answer["result"]["child_device_list"].as_array().unwrap();
            if page.is_empty() {
                break;
            }
            assert!(page.len() <= SHORT_PAGE && answer["result"]["sum"] == 6);
            ids.extend(page.iter().map(|child| child["device_id"].as_str().unwrap().to_owned()));
        }
        assert_eq!(ids.len(), 6);
        let of = |id: &str, method: &str| json!({"method": "control_child", "params": {"device_id": id, "requestData": {"method": method}}});
        let answer = ask(&mut strip, &of(&ids[2], "get_emeter_data"));
        let served = strip.take_served();
        assert_eq!(served[0].device.outlet, Some(2));
        assert_eq!(answer["result"]["responseData"]["result"]["power_mw"], served[0].power.get());
        assert_eq!(ask(&mut strip, &of("nobody", "get_emeter_data"))["error_code"], -1_008);

        let mut plain = plug(Model::P304m);
        let id = plain.child_id(3);
        let answer = ask(&mut plain, &of(&id, "get_energy_usage"));
        assert!(answer["result"]["responseData"]["result"].get("current_power").is_none());
        let answer = ask(&mut plain, &of(&id, "get_current_power"));
        let served = plain.take_served();
        assert_eq!(answer["result"]["responseData"]["result"]["current_power"], served[0].power.get() / 1_000);
        assert_eq!(served[0].power.get() % 1_000, 0);
    }

    #[test]
    fn the_kept_history_is_the_same_in_hours_days_and_months() {
        let mut plug = plug(Model::P110);
        let mut data = |start: i64, end: i64, interval: i64| -> Vec<u64> {
            let params = json!({"start_timestamp": start, "end_timestamp": end, "interval": interval});
            let answer = ask(&mut plug, &json!({"method": "get_energy_data", "params": params}));
            answer["result"]["data"].as_array().unwrap().iter().map(|wh| wh.as_u64().unwrap()).collect()
        };
        let day = 86_400;
        let october = 1_790_812_800; // 2026-10-01T00:00:00Z
        let days = data(october, october, 1_440);
        assert_eq!(days.len(), 92);
        assert_eq!(days[60..].iter().sum::<u64>(), 0, "days to come");
        let hours = data(october + 3 * day, october + 4 * day, 60);
        assert_eq!(hours.len(), 48);
        assert_eq!(hours[..24].iter().sum::<u64>(), days[3]);
        let months = data(1_767_225_600, 1_767_225_600, 43_200);
        assert_eq!((months.len(), months[9]), (12, days[..31].iter().sum::<u64>()));
    }

    #[test]
    fn a_plug_whose_clock_was_never_set_says_so() {
        let mut plug = plug(Model::P110);
        let mut under =
            |method: &str| asked_under(&mut plug, &json!({ "method": method }), Some(Fault::ClockUnset)).unwrap();
        assert_eq!(under("get_device_usage")["error_code"], -1_601);
        assert_eq!(under("get_energy_usage")["error_code"], -1_003);
        assert_eq!(under("get_emeter_data")["error_code"], 0);
        assert!(under("get_device_time")["result"]["timestamp"].as_i64().unwrap() < 946_771_200);
        assert_eq!(asked_under(&mut plug, &json!({"method": "get_device_time"}), Some(Fault::SlowClock)), None);
    }

    #[test]
    fn writes_are_counted_and_done() {
        let mut plug = plug(Model::P110);
        ask(&mut plug, &json!({"method": "set_device_info", "params": {"device_on": false}}));
        assert_eq!(code(&mut plug, "get_device_info"), 0);
        assert_eq!(code(&mut plug, "set_anything"), -1_002);
        assert_eq!(ask(&mut plug, &json!({"method": "get_emeter_data"}))["result"]["power_mw"], 0);
        assert_eq!(plug.writes_seen(), 2);
        assert_eq!(reply(&mut plug, b"\xff", None, Duration::ZERO).unwrap(), br#"{"error_code":-1003}"#);
    }
}
