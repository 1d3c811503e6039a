//! The IOT dialect: the JSON that Kasa plugs speak. Pure, bytes in and typed values out.
//!
//! Owns the requests, which only ever read, and the reading of replies. Every field may be missing, numbers come in two
//! styles (floats in W, V, A, kWh on first-generation hardware, integers in mW, mV, mA, Wh on later), and each reply is
//! judged by the keys it has. Source: replies of 12 metered devices of firmware 1.0.3 to 1.2.6.

use serde::Deserialize;

use super::measured::Measured;
use super::{PollError, lenient};
use crate::reading::{Alias, ChildId, Label, MAX_OUTLETS, Mac, OutletFacts, PlugFacts, Protocol, Relay};
use crate::units::Dbm;

/// Asks who a plug is. Also the discovery probe. Nothing else is asked before the answer says that there is a meter:
/// modules that a plug lacks can hang it.
pub const SYSINFO: &[u8] = br#"{"system":{"get_sysinfo":{}}}"#;

/// Asks a plug with a single outlet who it is and what it measures, in one exchange.
pub const SYSINFO_AND_METER: &[u8] = br#"{"system":{"get_sysinfo":{}},"emeter":{"get_realtime":{}}}"#;

/// Asks a strip what one of its outlets measures. A strip answers for one outlet at a time.
#[must_use]
pub fn outlet_meter(child: &ChildId) -> Vec<u8> {
    let child = serde_json::Value::from(child.as_str());
    format!(r#"{{"context":{{"child_ids":[{child}]}},"emeter":{{"get_realtime":{{}}}}}}"#).into_bytes()
}

/// The same on a new connection, where the strip has to say who it is as well.
#[must_use]
pub fn sysinfo_and_outlet_meter(child: &ChildId) -> Vec<u8> {
    let child = serde_json::Value::from(child.as_str());
    format!(
        r#"{{"context":{{"child_ids":[{child}]}},"system":{{"get_sysinfo":{{}}}},"emeter":{{"get_realtime":{{}}}}}}"#
    )
    .into_bytes()
}

/// What a plug said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysinfo {
    /// What changes rarely.
    pub facts: PlugFacts,
    /// The switch of each outlet, in outlet order; of the plug itself when it has only one.
    pub relays: Vec<Option<Relay>>,
    /// Signal strength.
    pub signal: Option<Dbm>,
}

/// A whole reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The answer to `get_sysinfo`, when it was asked.
    pub sysinfo: Option<Sysinfo>,
    /// The answer to `get_realtime`, when it was asked.
    pub measured: Option<Measured>,
}

#[derive(Deserialize)]
struct WireReply {
    system: Option<WireSystem>,
    emeter: Option<WireEmeter>,
    #[serde(default, deserialize_with = "lenient")]
    err_code: Option<i64>,
    #[serde(default, deserialize_with = "lenient")]
    err_msg: Option<String>,
}

#[derive(Deserialize)]
struct WireSystem {
    get_sysinfo: Option<WireSysinfo>,
    #[serde(default, deserialize_with = "lenient")]
    err_code: Option<i64>,
    #[serde(default, deserialize_with = "lenient")]
    err_msg: Option<String>,
}

#[derive(Deserialize)]
struct WireEmeter {
    get_realtime: Option<WireRealtime>,
    #[serde(default, deserialize_with = "lenient")]
    err_code: Option<i64>,
    #[serde(default, deserialize_with = "lenient")]
    err_msg: Option<String>,
}

#[derive(Deserialize)]
struct WireSysinfo {
    #[serde(default, deserialize_with = "lenient")]
    err_code: Option<i64>,
    #[serde(default, deserialize_with = "lenient")]
    err_msg: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    mac: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    mic_mac: Option<String>,
    #[serde(rename = "deviceId", default, deserialize_with = "lenient")]
    device_id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    alias: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    model: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    hw_ver: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    sw_ver: Option<String>,
    #[serde(rename = "type", default, deserialize_with = "lenient")]
    kind: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    mic_type: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    feature: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    rssi: Option<i64>,
    #[serde(default, deserialize_with = "lenient")]
    relay_state: Option<i64>,
    #[serde(default, deserialize_with = "lenient")]
    children: Option<Vec<WireChild>>,
}

#[derive(Deserialize)]
struct WireChild {
    #[serde(default, deserialize_with = "lenient")]
    id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    alias: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    state: Option<i64>,
}

#[derive(Deserialize)]
struct WireRealtime {
    #[serde(default, deserialize_with = "lenient")]
    err_code: Option<i64>,
    #[serde(default, deserialize_with = "lenient")]
    err_msg: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    power: Option<f64>,
    #[serde(default, deserialize_with = "lenient")]
    voltage: Option<f64>,
    #[serde(default, deserialize_with = "lenient")]
    current: Option<f64>,
    #[serde(default, deserialize_with = "lenient")]
    total: Option<f64>,
    #[serde(default, deserialize_with = "lenient")]
    power_mw: Option<f64>,
    #[serde(default, deserialize_with = "lenient")]
    voltage_mv: Option<f64>,
    #[serde(default, deserialize_with = "lenient")]
    current_ma: Option<f64>,
    #[serde(default, deserialize_with = "lenient")]
    total_wh: Option<f64>,
}

/// Reads a reply.
///
/// # Errors
/// [`PollError::NotJson`] for what is no reply, [`PollError::Refused`] when the plug says that it cannot,
/// [`PollError::Missing`] when a reply lacks what a plug must say, [`PollError::NotAPlug`] for a bulb or a camera.
pub fn parse(bytes: &[u8]) -> Result<Reply, PollError> {
    let reply: WireReply = serde_json::from_slice(bytes).map_err(|_| PollError::NotJson)?;
    succeeded(reply.err_code, reply.err_msg)?;
    let sysinfo = reply.system.map(|system| {
        succeeded(system.err_code, system.err_msg)?;
        parse_sysinfo(system.get_sysinfo.ok_or(PollError::Missing { what: "system.get_sysinfo" })?)
    });
    let measured = reply.emeter.map(|emeter| {
        succeeded(emeter.err_code, emeter.err_msg)?;
        parse_realtime(emeter.get_realtime.ok_or(PollError::Missing { what: "emeter.get_realtime" })?)
    });
    Ok(Reply { sysinfo: sysinfo.transpose()?, measured: measured.transpose()? })
}

fn succeeded(code: Option<i64>, message: Option<String>) -> Result<(), PollError> {
    match code {
        None | Some(0) => Ok(()),
        Some(code) => Err(PollError::Refused { code, message: Label::new(&message.unwrap_or_default()) }),
    }
}

fn parse_sysinfo(info: WireSysinfo) -> Result<Sysinfo, PollError> {
    succeeded(info.err_code, info.err_msg)?;
    let text = |text: Option<String>| Label::new(&text.unwrap_or_default());
    // Only plugs and strips are read; a bulb or a camera that answers is passed over.
    let kind = info.kind.or(info.mic_type).unwrap_or_default();
    if !kind.to_ascii_uppercase().contains("PLUG") {
        return Err(PollError::NotAPlug { kind: Label::new(&kind) });
    }
    let mac = info.mac.or(info.mic_mac).ok_or(PollError::Missing { what: "mac" })?;
    let mac: Mac = mac.parse().map_err(|_| PollError::Missing { what: "a mac that is one" })?;
    let device_id = info.device_id.unwrap_or_default();
    let children = info.children.unwrap_or_default();
    if children.len() > MAX_OUTLETS {
        return Err(PollError::TooManyOutlets);
    }
    let (mut outlets, mut relays) = (Vec::new(), Vec::new());
    for child in children {
        let id = child.id.ok_or(PollError::Missing { what: "children[].id" })?;
        // Over UDP a strip shortens its outlets' ids to the last two characters.
        let id = if id.len() <= 2 { format!("{device_id}{id}") } else { id };
        outlets.push(OutletFacts { alias: Alias::new(&child.alias.unwrap_or_default()), child: ChildId::new(&id) });
        relays.push(relay(child.state));
    }
    if outlets.is_empty() {
        relays.push(relay(info.relay_state));
    }
    let facts = PlugFacts {
        mac,
        alias: Alias::new(&info.alias.unwrap_or_default()),
        model: text(info.model),
        hardware: text(info.hw_ver),
        firmware: text(info.sw_ver),
        protocol: Protocol::IotXor,
        has_meter: info.feature.is_some_and(|feature| feature.split(':').any(|part| part == "ENE")),
        outlets,
    };
    let signal = info.rssi.and_then(|dbm| i8::try_from(dbm).ok()).filter(|dbm| *dbm < 0).map(Dbm);
    Ok(Sysinfo { facts, relays, signal })
}

fn relay(state: Option<i64>) -> Option<Relay> {
    match state? {
        0 => Some(Relay::Off),
        1 => Some(Relay::On),
        _ => None,
    }
}

fn parse_realtime(meter: WireRealtime) -> Result<Measured, PollError> {
    succeeded(meter.err_code, meter.err_msg)?;
    // Later firmware's integers come first: where both are given they are the finer.
    let milli = |milli: Option<f64>, base: Option<f64>| milli.map(|n| n / 1_000.0).or(base);
    let power = milli(meter.power_mw, meter.power).ok_or(PollError::Missing { what: "power" })?;
    let watt_hours = meter.total_wh.or(meter.total.map(|kwh| kwh * 1_000.0));
    Ok(Measured::new(power, milli(meter.voltage_mv, meter.voltage), milli(meter.current_ma, meter.current), watt_hours))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HS110: &str = r#"{"system":{"get_sysinfo":{"err_code":0,"sw_ver":"1.2.5 Build 171213","hw_ver":"1.0",
        "type":"IOT.SMARTPLUGSWITCH","model":"HS110(EU)","mac":"50:C7:BF:00:11:22","deviceId":"8006AA",
        "alias":"Fridge","relay_state":1,"on_time":12,"rssi":-51,"feature":"TIM:ENE","led_off":0}},
        "emeter":{"get_realtime":{"current":0.214035,"voltage":231.402,"power":41.237448,"total":8.123,"err_code":0}}}"#;

    #[test]
    fn floats_of_the_first_generation() {
        let reply = parse(HS110.as_bytes()).unwrap();
        let info = reply.sysinfo.unwrap();
        assert_eq!(info.facts.mac.to_string(), "50c7bf001122");
        assert!(info.facts.has_meter && info.facts.outlets.is_empty());
        assert_eq!((info.relays.as_slice(), info.signal), (&[Some(Relay::On)][..], Some(Dbm(-51))));
        let measured = reply.measured.unwrap();
        assert_eq!(measured.power.unwrap().get(), 41_237);
        assert_eq!(measured.voltage.unwrap().get(), 231_402);
        assert_eq!(measured.current.unwrap().get(), 214);
        assert_eq!(measured.counter.unwrap().get(), 8_123_000);
    }

    #[test]
    fn integers_of_later_generations() {
        let reply = parse(
            br#"{"emeter":{"get_realtime":{"slot_id":1,"current_ma":29,"voltage_mv":121302,"power_mw":2345,"total_wh":7,"err_code":0}}}"#,
        );
        let measured = reply.unwrap().measured.unwrap();
        assert_eq!((measured.power.unwrap().get(), measured.voltage.unwrap().get()), (2_345, 121_302));
        assert_eq!((measured.current.unwrap().get(), measured.counter.unwrap().get()), (29, 7_000));
    }

    #[test]
    fn a_strip_names_its_outlets_in_full_whether_it_was_asked_over_tcp_or_udp() {
        for (first, second) in [("8006AA00", "8006AA01"), ("00", "01")] {
            let reply = format!(
                r#"{{"system":{{"get_sysinfo":{{"mic_type":"IOT.SMARTPLUGSWITCH","model":"HS300(US)","mac":"50:C7:BF:00:11:23",
                "deviceId":"8006AA","feature":"TIM:ENE","child_num":2,"err_code":0,
                "children":[{{"id":"{first}","state":1,"alias":"tv"}},{{"id":"{second}","state":0,"alias":"amp"}}]}}}}}}"#
            );
            let info = parse(reply.as_bytes()).unwrap().sysinfo.unwrap();
            let children: Vec<_> = info.facts.outlets.iter().map(|outlet| outlet.child.as_str()).collect();
            assert_eq!(children, ["8006AA00", "8006AA01"]);
            assert_eq!(info.relays.as_slice(), [Some(Relay::On), Some(Relay::Off)]);
        }
        assert_eq!(
            outlet_meter(&ChildId::new("8006AA00")),
            br#"{"context":{"child_ids":["8006AA00"]},"emeter":{"get_realtime":{}}}"#
        );
    }

    #[test]
    fn refusals_are_found_on_every_level() {
        for reply in [
            r#"{"emeter":{"err_code":-1,"err_msg":"module not support"}}"#,
            r#"{"emeter":{"get_realtime":{"err_code":-1,"err_msg":"module not support"}}}"#,
            r#"{"err_code":-1,"err_msg":"module not support"}"#,
        ] {
            let error = parse(reply.as_bytes()).unwrap_err();
            assert!(matches!(error, PollError::Refused { code: -1, .. }), "{reply}: {error}");
        }
        assert!(matches!(parse(b"{\"emeter\":{}}"), Err(PollError::Missing { .. })));
        assert!(matches!(parse(b"\xff\x00"), Err(PollError::NotJson)));
        assert!(matches!(
            parse(br#"{"system":{"get_sysinfo":{"mic_type":"IOT.SMARTBULB"}}}"#),
            Err(PollError::NotAPlug { .. })
        ));
    }

    #[test]
    fn a_number_that_no_outlet_can_have_is_told_apart_from_a_broken_reply() {
        let reply = parse(br#"{"emeter":{"get_realtime":{"power_mw":20000000,"voltage_mv":230000,"err_code":0}}}"#);
        let measured = reply.unwrap().measured.unwrap();
        assert_eq!((measured.power, measured.implausible[0].what), (None, "power"));
        let reply = parse(br#"{"emeter":{"get_realtime":{"power_mw":20000,"voltage_mv":900000,"err_code":0}}}"#);
        let measured = reply.unwrap().measured.unwrap();
        assert_eq!((measured.power.unwrap().get(), measured.voltage, measured.implausible.len()), (20_000, None, 1));
    }

    #[test]
    fn one_odd_field_does_not_cost_the_plug() {
        let reply = parse(
            br#"{"system":{"get_sysinfo":{"type":"IOT.SMARTPLUGSWITCH","mac":"50:C7:BF:00:11:22","feature":"TIM:ENE",
            "rssi":-1e9,"relay_state":"on","children":null,"alias":7,"err_code":0}}}"#,
        );
        let info = reply.unwrap().sysinfo.unwrap();
        assert_eq!((info.relays.as_slice(), info.signal, info.facts.alias.as_str()), (&[None][..], None, ""));
        assert!(info.facts.has_meter);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }

        #[test]
        fn damaged_replies_never_panic(at in 0..HS110.len(), byte: u8) {
            let mut bytes = HS110.as_bytes().to_vec();
            bytes[at] = byte;
            let _ = parse(&bytes);
        }
    }
}
