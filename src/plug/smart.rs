//! The SMART dialect: the JSON that Tapo plugs and newer Kasa plugs speak. Pure, bytes in and typed values out.
//!
//! Owns the requests, which only ever read, and the reading of replies. Every field but the MAC may be missing: they come
//! and go with the firmware. A plug says in its components what it can; what its meter says comes from the best
//! [`Source`] it has. Never asks for the plug's clock, which on some firmware stalls a whole batch, and believes no time
//! that a plug tells. Source: replies of 16 metered devices of firmware 1.0.1 to 1.3.1.

use base64ct::{Base64, Encoding as _};
use serde_json::{Value, json};

use super::PollError;
use super::measured::Measured;
use crate::reading::{Alias, ChildId, Label, MAX_OUTLETS, Mac, OutletFacts, PlugFacts, Protocol, Relay};
use crate::units::{Dbm, UnixMillis};

/// What can be asked. All of it only reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// What the plug can do.
    Components,
    /// Who it is, its switch, its signal.
    Info,
    /// What it measures.
    Meter(Source),
    /// A strip's outlets, from this one on.
    Children(usize),
    /// What a strip's outlets can do, from this one on.
    ChildComponents(usize),
}

impl Method {
    /// Its name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Components => "component_nego",
            Self::Info => "get_device_info",
            Self::Meter(source) => source.name(),
            Self::Children(_) => "get_child_device_list",
            Self::ChildComponents(_) => "get_child_device_component_list",
        }
    }

    fn params(self) -> Option<Value> {
        match self {
            Self::Children(start) | Self::ChildComponents(start) => Some(json!({ "start_index": start })),
            _ => None,
        }
    }

    fn wire(self) -> Value {
        match self.params() {
            None => json!({ "method": self.name() }),
            Some(params) => json!({ "method": self.name(), "params": params }),
        }
    }
}

/// Where a meter's values come from, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Power, voltage, current and a counter that falls only when the plug restarts.
    Emeter,
    /// Power in milliwatts. Its energy figures restart with the plug's own day and are no counter.
    Usage,
    /// Power in whole watts.
    Power,
}

impl Source {
    const fn name(self) -> &'static str {
        match self {
            Self::Emeter => "get_emeter_data",
            Self::Usage => "get_energy_usage",
            Self::Power => "get_current_power",
        }
    }

    /// What to ask where this one is not to be had.
    #[must_use]
    pub const fn next(self) -> Option<Self> {
        match self {
            Self::Emeter => Some(Self::Usage),
            Self::Usage => Some(Self::Power),
            Self::Power => None,
        }
    }
}

/// Requests in one batch at most: what every plug takes that takes batches at all.
pub const BATCH: usize = 5;

/// What each request carries beside its question.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// When it is sent.
    pub time: UnixMillis,
    /// Who asks: 22 or more letters that stay the same while the program runs.
    pub terminal: &'a str,
}

impl Stamp<'_> {
    fn put_on(&self, mut request: Value) -> Vec<u8> {
        if let Some(fields) = request.as_object_mut() {
            fields.insert("request_time_milis".to_owned(), self.time.get().into());
            fields.insert("terminal_uuid".to_owned(), self.terminal.into());
        }
        request.to_string().into_bytes()
    }
}

/// A request for one thing, of the plug itself.
#[must_use]
pub fn single(method: Method, stamp: Stamp<'_>) -> Vec<u8> {
    stamp.put_on(method.wire())
}

/// A request for one thing, of one of a strip's outlets.
#[must_use]
pub fn of_child(child: &ChildId, method: Method, stamp: Stamp<'_>) -> Vec<u8> {
    let params = json!({ "device_id": child.as_str(), "requestData": method.wire() });
    stamp.put_on(json!({ "method": "control_child", "params": params }))
}

/// A request for several things at once, at most [`BATCH`].
#[must_use]
pub fn batch(methods: &[Method], stamp: Stamp<'_>) -> Vec<u8> {
    let requests: Vec<Value> = methods.iter().take(BATCH).map(|method| method.wire()).collect();
    stamp.put_on(json!({ "method": "multipleRequest", "params": { "requests": requests } }))
}

/// What a plug says to a single request.
///
/// # Errors
/// [`PollError::NotJson`], or [`PollError::Refused`] with the plug's code.
pub fn result(bytes: &[u8]) -> Result<Value, PollError> {
    let reply: Value = serde_json::from_slice(bytes).map_err(|_| PollError::NotJson)?;
    succeeded(reply)
}

/// What a strip's outlet says to a single request.
///
/// # Errors
/// As [`result`]; the outlet's refusal counts as much as the strip's.
pub fn child_result(bytes: &[u8]) -> Result<Value, PollError> {
    let mut result = result(bytes)?;
    let inner = result.get_mut("responseData").map(Value::take);
    succeeded(inner.ok_or(PollError::Missing { what: "responseData" })?)
}

/// What a plug says to each part of a batch: the answers in order, up to the first that failed, that one included. A
/// plug does not answer what comes after it.
///
/// # Errors
/// As [`result`], when it refuses the batch as a whole.
pub fn results(bytes: &[u8]) -> Result<Vec<Part>, PollError> {
    let mut result = result(bytes)?;
    let parts = result.get_mut("responses").map(Value::take);
    let Some(Value::Array(parts)) = parts else { return Err(PollError::Missing { what: "responses" }) };
    let part = |part: Value| {
        let name = text(&part, "method").unwrap_or_default().to_owned();
        Part { name, result: succeeded(part) }
    };
    Ok(parts.into_iter().take(BATCH).map(part).collect())
}

/// One answer of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The method that it answers.
    pub name: String,
    /// What it says.
    pub result: Result<Value, PollError>,
}

fn succeeded(mut reply: Value) -> Result<Value, PollError> {
    if !reply.is_object() {
        return Err(PollError::NotJson);
    }
    match reply.get("error_code").map(Value::as_i64) {
        None | Some(Some(0)) => Ok(reply.get_mut("result").map(Value::take).unwrap_or_default()),
        Some(None) => Err(PollError::NotJson),
        Some(Some(code)) => {
            let message = text(&reply, "msg").or_else(|| text(&reply, "message")).map(Label::new);
            Err(PollError::Refused { code, message: message.unwrap_or_else(|| Label::new(words(code))) })
        }
    }
}

/// What the codes mean that a reader meets.
const fn words(code: i64) -> &'static str {
    match code {
        -1001 => "unspecific failure",
        -1002 => "unknown method",
        -1003 => "malformed request",
        -1008 => "wrong parameters",
        -1010 => "malformed key",
        -1301 => "device error",
        -1603..=-1601 => "its clock is not set",
        1002 | 1112 => "transport not available",
        _ => "no reason given",
    }
}

/// Whether a refusal means that this plug does not have what was asked for.
#[must_use]
pub const fn is_not_available(code: i64) -> bool {
    matches!(code, -1001 | -1002 | -1003 | -1008 | -1601 | -1602 | -1603)
}

/// Whether a refusal of a whole batch means that this plug takes no batches. Any refusal does that is not about the
/// session: real plugs use -1003, -1002 and codes that nobody knows.
#[must_use]
pub const fn is_no_batch(code: i64) -> bool {
    !matches!(code, 9999 | 1002 | 1112 | -2402)
}

/// What a plug can do, as far as it matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Components {
    /// It measures energy.
    pub energy: bool,
    /// It has outlets of its own.
    pub children: bool,
}

/// What [`Method::Components`] brought.
#[must_use]
pub fn components(result: &Value) -> Components {
    let has = |id: &str| list(result, "component_list").iter().any(|component| text(component, "id") == Some(id));
    Components { energy: has("energy_monitoring"), children: has("child_device") || has("control_child") }
}

/// Whether any of the outlets in what [`Method::ChildComponents`] brought measures energy.
#[must_use]
pub fn has_metered_child(result: &Value) -> bool {
    list(result, "child_component_list").iter().any(|child| components(child).energy)
}

/// What a plug said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// What changes rarely; without outlets, which are asked for apart, and without a meter.
    pub facts: PlugFacts,
    /// The switch; None for a strip.
    pub relay: Option<Relay>,
    /// Signal strength.
    pub signal: Option<Dbm>,
}

/// What [`Method::Info`] brought.
///
/// # Errors
/// [`PollError::NotAPlug`] for a bulb or a hub, [`PollError::Missing`] without a MAC.
pub fn info(result: &Value, protocol: Protocol) -> Result<Info, PollError> {
    let kind = text(result, "type").unwrap_or_default();
    if !kind.to_ascii_uppercase().contains("PLUG") {
        return Err(PollError::NotAPlug { kind: Label::new(kind) });
    }
    let mac = text(result, "mac").ok_or(PollError::Missing { what: "mac" })?;
    let mac: Mac = mac.parse().map_err(|_| PollError::Missing { what: "a mac that is one" })?;
    let label = |key| Label::new(text(result, key).unwrap_or_default());
    let model = match (label("model"), text(result, "specs").unwrap_or_default()) {
        (model, "") => model,
        (model, region) if model.as_str().contains('(') || region.len() > 4 => model,
        (model, region) => Label::new(&format!("{model}({region})")),
    };
    let facts = PlugFacts {
        mac,
        alias: name(result),
        model,
        hardware: label("hw_ver"),
        firmware: label("fw_ver"),
        protocol,
        has_meter: false,
        outlets: Vec::new(),
    };
    let signal = result.get("rssi").and_then(Value::as_i64).and_then(|dbm| i8::try_from(dbm).ok());
    Ok(Info { facts, relay: relay(result), signal: signal.filter(|dbm| *dbm < 0).map(Dbm) })
}

/// One of a strip's outlets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Who it is.
    pub facts: OutletFacts,
    /// Its switch.
    pub relay: Option<Relay>,
    /// Where on the strip it is, from 1, where it tells.
    position: Option<u64>,
}

/// One page of a strip's outlets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Children {
    /// The outlets.
    pub page: Vec<Child>,
    /// How many there are in all, as the strip says.
    pub sum: usize,
}

/// What [`Method::Children`] brought.
///
/// # Errors
/// [`PollError::Missing`] for an outlet without id, [`PollError::TooManyOutlets`].
pub fn children(result: &Value) -> Result<Children, PollError> {
    let listed = list(result, "child_device_list");
    let sum = result.get("sum").and_then(Value::as_u64).and_then(|sum| usize::try_from(sum).ok());
    let sum = sum.unwrap_or(listed.len());
    if listed.len() > MAX_OUTLETS || sum > MAX_OUTLETS {
        return Err(PollError::TooManyOutlets);
    }
    let child = |child: &Value| {
        let id = text(child, "device_id").ok_or(PollError::Missing { what: "child_device_list[].device_id" })?;
        let facts = OutletFacts { alias: name(child), child: ChildId::new(id) };
        let position = child.get("position").and_then(Value::as_u64);
        Ok::<_, PollError>(Child { facts, relay: relay(child), position })
    };
    Ok(Children { page: listed.iter().map(child).collect::<Result<_, _>>()?, sum })
}

/// All outlets in the order in which they sit on the strip; as they were listed where it does not tell.
#[must_use]
pub fn in_order(mut outlets: Vec<Child>) -> Vec<Child> {
    outlets.sort_by_key(|child| child.position); // stable
    outlets
}

/// What [`Method::Meter`] brought.
///
/// # Errors
/// [`PollError::Missing`] when it lacks the power.
pub fn measured(source: Source, result: &Value) -> Result<Measured, PollError> {
    let number = |key: &str| result.get(key).and_then(Value::as_f64);
    let milli = |key: &str| number(key).map(|thousandths| thousandths / 1_000.0);
    let missing = PollError::Missing { what: "power" };
    match source {
        Source::Emeter => {
            let watt_hours = milli("energy_mwh").or(number("energy_wh"));
            let power = milli("power_mw").ok_or(missing)?;
            Ok(Measured::new(power, milli("voltage_mv"), milli("current_ma"), watt_hours))
        }
        Source::Usage => Ok(Measured::new(milli("current_power").ok_or(missing)?, None, None, None)),
        Source::Power => Ok(Measured::new(number("current_power").ok_or(missing)?, None, None, None)),
    }
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The owner's name, which is base64 of UTF-8. What is not is taken as it is.
fn name(value: &Value) -> Alias {
    let wire = text(value, "nickname").unwrap_or_default();
    let decoded = Base64::decode_vec(wire).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    Alias::new(decoded.as_deref().unwrap_or(wire))
}

fn relay(value: &Value) -> Option<Relay> {
    value.get("device_on").and_then(Value::as_bool).map(|on| if on { Relay::On } else { Relay::Off })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAMP: Stamp<'_> = Stamp { time: UnixMillis::new(1_700_000_000_000), terminal: "AAAAAAAAAAAAAAAAAAAAAA==" };

    fn refusal(code: i64) -> Result<Value, PollError> {
        succeeded(json!({ "error_code": code }))
    }

    #[test]
    fn requests_have_the_form_that_plugs_know() {
        let parsed = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
        assert_eq!(
            parsed(single(Method::Info, STAMP)),
            json!({"method":"get_device_info","request_time_milis":1_700_000_000_000_i64,"terminal_uuid":STAMP.terminal})
        );
        let five = [Method::Info, Method::Meter(Source::Emeter), Method::Children(10)];
        let batch = parsed(batch(&five, STAMP));
        assert_eq!(
            batch["params"]["requests"],
            json!([{"method":"get_device_info"},{"method":"get_emeter_data"},
                {"method":"get_child_device_list","params":{"start_index":10}}])
        );
        let child = parsed(of_child(&ChildId::new("80\"2"), Method::Meter(Source::Usage), STAMP));
        assert_eq!(child["params"], json!({"device_id":"80\"2","requestData":{"method":"get_energy_usage"}}));
    }

    #[test]
    fn a_batch_is_at_most_five_and_never_asks_for_the_time() {
        let asked = batch(&[Method::Info; 9], STAMP);
        let asked: Value = serde_json::from_slice(&asked).unwrap();
        assert_eq!(asked["params"]["requests"].as_array().unwrap().len(), BATCH);
        let all = [
            Method::Components,
            Method::Info,
            Method::Meter(Source::Emeter),
            Method::Meter(Source::Usage),
            Method::Meter(Source::Power),
            Method::Children(0),
            Method::ChildComponents(0),
        ];
        assert!(all.iter().all(|method| !method.name().contains("time") && !method.name().starts_with("set")));
    }

    #[test]
    fn who_a_plug_is() {
        let reply = br#"{"error_code":0,"result":{"device_id":"8022","fw_ver":"1.3.0 Build 230905 Rel.152200",
            "hw_ver":"1.0","type":"SMART.TAPOPLUG","model":"P110","mac":"48-22-54-00-11-22","specs":"UK",
            "nickname":"a2V0dGxl","ssid":"c2VjcmV0","device_on":true,"on_time":7,"rssi":-44,"signal_level":3}}"#;
        let Info { facts, relay, signal } = info(&result(reply).unwrap(), Protocol::SmartKlap).unwrap();
        assert_eq!((facts.mac.to_string().as_str(), facts.alias.as_str()), ("482254001122", "kettle"));
        assert_eq!((facts.model.as_str(), facts.protocol), ("P110(UK)", Protocol::SmartKlap));
        assert_eq!((relay, signal), (Some(Relay::On), Some(Dbm(-44))));
    }

    #[test]
    fn every_field_but_the_mac_may_be_missing_or_odd() {
        let bare = json!({"type":"SMART.KASAPLUG","mac":"48-22-54-00-11-22"});
        let Info { facts, relay, signal } = info(&bare, Protocol::SmartAes).unwrap();
        assert_eq!((facts.alias.as_str(), facts.model.as_str(), relay, signal), ("", "", None, None));
        let odd = json!({"type":"SMART.KASAPLUG","mac":"48-22-54-00-11-22","rssi":-1e9,"device_on":"yes",
            "nickname":"no base64!","model":7,"specs":null,"fw_ver":[]});
        let Info { facts, relay, signal } = info(&odd, Protocol::SmartAes).unwrap();
        assert_eq!((facts.alias.as_str(), facts.model.as_str(), relay, signal), ("no base64!", "", None, None));
        assert!(matches!(info(&json!({"type":"SMART.TAPOBULB"}), Protocol::SmartAes), Err(PollError::NotAPlug { .. })));
        assert!(matches!(info(&json!({"type":"SMART.TAPOPLUG"}), Protocol::SmartAes), Err(PollError::Missing { .. })));
    }

    #[test]
    fn each_source_says_what_it_can() {
        let emeter = json!({"current_ma":211,"energy_wh":4012,"power_mw":41_237,"voltage_mv":231_402});
        let measured_ = measured(Source::Emeter, &emeter).unwrap();
        assert_eq!(measured_.power.unwrap().get(), 41_237);
        assert_eq!((measured_.voltage.unwrap().get(), measured_.current.unwrap().get()), (231_402, 211));
        assert_eq!(measured_.counter.unwrap().get(), 4_012_000);
        let finer = json!({"energy_wh":4012,"energy_mwh":4_012_345,"power_mw":1});
        assert_eq!(measured(Source::Emeter, &finer).unwrap().counter.unwrap().get(), 4_012_345);
        // What restarts at the plug's own midnight is no counter.
        let usage =
            json!({"today_energy":120,"month_energy":4000,"current_power":41_237,"local_time":"2000-01-01 00:00:00"});
        let measured_ = measured(Source::Usage, &usage).unwrap();
        assert_eq!((measured_.power.unwrap().get(), measured_.counter), (41_237, None));
        let power = measured(Source::Power, &json!({"current_power":41})).unwrap();
        assert_eq!(power.power.unwrap().get(), 41_000);
        let glitch = measured(Source::Power, &json!({"current_power":20_000})).unwrap();
        assert_eq!((glitch.power, glitch.implausible.len()), (None, 1));
        for source in [Source::Emeter, Source::Usage, Source::Power] {
            assert!(matches!(measured(source, &json!({"today_energy":1})), Err(PollError::Missing { .. })));
        }
    }

    #[test]
    fn a_batch_ends_with_the_first_part_that_failed() {
        let reply = br#"{"error_code":0,"result":{"responses":[
            {"method":"get_device_info","error_code":0,"result":{"mac":"x"}},
            {"method":"get_emeter_data","error_code":-1002}]}}"#;
        let parts = results(reply).unwrap();
        assert_eq!(parts.len(), 2);
        assert_eq!((parts[0].name.as_str(), parts[0].result.is_ok()), ("get_device_info", true));
        assert!(matches!(parts[1].result, Err(PollError::Refused { code: -1002, .. })));
        assert!(matches!(results(br#"{"error_code":-1003}"#), Err(PollError::Refused { code: -1003, .. })));
        assert!(matches!(results(br#"{"error_code":0,"result":{}}"#), Err(PollError::Missing { .. })));
        assert!(is_no_batch(-1003) && is_no_batch(-77) && !is_no_batch(9999));
        assert!(is_not_available(-1001) && !is_not_available(-1301));
    }

    #[test]
    fn outlets_are_put_in_the_order_of_the_strip() {
        let page = json!({"sum":3,"start_index":0,"child_device_list":[
            {"device_id":"B","nickname":"dHY=","position":2,"device_on":false},
            {"device_id":"A","nickname":"","position":1,"device_on":true},
            {"device_id":"C","position":3}]});
        let Children { page, sum } = children(&page).unwrap();
        let ordered = in_order(page);
        let ids: Vec<_> = ordered.iter().map(|child| child.facts.child.as_str()).collect();
        assert_eq!((sum, ids), (3, vec!["A", "B", "C"]));
        assert_eq!(
            (ordered[1].facts.alias.as_str(), ordered[1].relay, ordered[2].relay),
            ("tv", Some(Relay::Off), None)
        );
        assert!(matches!(children(&json!({"sum":1000,"child_device_list":[]})), Err(PollError::TooManyOutlets)));
        assert!(matches!(children(&json!({"child_device_list":[{}]})), Err(PollError::Missing { .. })));
    }

    #[test]
    fn components_say_what_a_plug_can() {
        let both = json!({"component_list":[{"id":"device","ver_code":2},{"id":"energy_monitoring","ver_code":2}]});
        assert_eq!(components(&both), Components { energy: true, children: false });
        assert_eq!(components(&json!({"component_list":7})), Components::default());
        let strip =
            json!({"child_component_list":[{"component_list":[]},{"component_list":[{"id":"energy_monitoring"}]}]});
        assert!(has_metered_child(&strip) && !has_metered_child(&both));
    }

    #[test]
    fn refusals_of_a_strip_and_of_its_outlet_both_count() {
        let inner = br#"{"error_code":0,"result":{"responseData":{"error_code":-1002}}}"#;
        assert!(matches!(child_result(inner), Err(PollError::Refused { code: -1002, .. })));
        let fine = br#"{"error_code":0,"result":{"responseData":{"error_code":0,"result":{"power_mw":1}}}}"#;
        assert_eq!(child_result(fine).unwrap(), json!({"power_mw":1}));
        assert!(
            matches!(refusal(-1601), Err(PollError::Refused { message, .. }) if message.as_str() == "its clock is not set")
        );
        assert!(matches!(result(b"[1]"), Err(PollError::NotJson)));
        assert!(matches!(result(br#"{"error_code":"0"}"#), Err(PollError::NotJson)));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>, text in "[\\[\\]{}:,\"a-z0-9_-]{0,60}") {
            for bytes in [&bytes[..], text.as_bytes()] {
                let _ = result(bytes);
                let _ = child_result(bytes);
                let _ = results(bytes);
                if let Ok(value) = serde_json::from_slice::<Value>(bytes) {
                    let _ = (info(&value, Protocol::SmartKlap), children(&value), components(&value));
                    let _ = measured(Source::Emeter, &value);
                }
            }
        }
    }
}
