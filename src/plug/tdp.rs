//! Discovery on UDP 20002 and 20004: a header of 16 bytes, then JSON in the open. Pure.
//!
//! Owns the probe and the reading of answers: which protocol a plug wants, and on which port. Promises to tell plugs
//! from routers, cameras and whatever else answers there, and to take nothing for granted but the type and the MAC. The
//! address in the JSON is not even read: only the datagram's own source counts. Source: known answers in the tests, and
//! the discovery replies of 80 SMART devices and one IOT device.

use md5::{Digest, Md5};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::session::Credentials;
use super::{PollError, lenient, xor};
use crate::reading::{Label, Mac, Protocol};

/// The ports on which plugs listen for this.
pub const PORTS: [u16; 2] = [20_002, 20_004];

/// Bytes of the header.
pub const HEADER: usize = 16;

/// What stands in the place of the checksum while it is made.
const CRC_SEED: u32 = 0x5a6b_7c8d;

/// Where HTTP is when a plug does not say.
const HTTP_PORT: u16 = 80;

/// The probe: a header alone. Whoever is a plug answers with its plain fields.
#[must_use]
pub fn probe() -> Vec<u8> {
    packet(0, 0, b"")
}

/// A packet with its checksum.
#[must_use]
pub fn packet(flags: u8, serial: u32, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 1]; // version, type, and the operation: a probe
    packet.extend(u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend([flags, 0]);
    packet.extend(serial.to_be_bytes());
    packet.extend(CRC_SEED.to_be_bytes());
    packet.extend(payload);
    let crc = crc32fast::hash(&packet);
    for (to, from) in packet.iter_mut().skip(HEADER - 4).zip(crc.to_be_bytes()) {
        *to = from;
    }
    packet
}

/// What a plug announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Who it is.
    pub mac: Mac,
    /// What it is, with its region: `P110(UK)`.
    pub model: Label,
    /// How it wants to be spoken to.
    pub way: Way,
    /// The MD5 of the e-mail address of the account it is bound to, in upper-case hex.
    owner: Option<Label>,
}

/// How a plug wants to be spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// In a protocol that is known here.
    Known {
        /// Which.
        protocol: Protocol,
        /// On which TCP port.
        port: u16,
    },
    /// In one that is not.
    Unknown {
        /// What the plug calls it.
        name: Label,
    },
}

impl Announcement {
    /// Whether the plug is bound to this account; `None` when it does not say. Where it is not, no login will help.
    #[must_use]
    pub fn is_owned_by(&self, account: &Credentials) -> Option<bool> {
        let owner = self.owner.as_ref()?;
        let matches = |email: &str| {
            let hash: String = Md5::digest(email).iter().map(|byte| format!("{byte:02X}")).collect();
            bool::from(hash.as_bytes().ct_eq(owner.as_str().as_bytes()))
        };
        Some(matches(account.user()) || matches(&account.user().to_lowercase()))
    }
}

#[derive(Deserialize)]
struct WireReply {
    result: WireResult,
}

#[derive(Deserialize)]
struct WireResult {
    #[serde(default, deserialize_with = "lenient")]
    device_type: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    device_model: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    mac: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    owner: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    mgt_encrypt_schm: Option<WireScheme>,
    #[serde(default, deserialize_with = "lenient")]
    tpap: Option<WireTpap>,
}

#[derive(Deserialize)]
struct WireScheme {
    #[serde(default, deserialize_with = "lenient")]
    encrypt_type: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    is_support_https: Option<bool>,
    #[serde(default, deserialize_with = "lenient")]
    http_port: Option<u16>,
}

#[derive(Deserialize)]
struct WireTpap {
    #[serde(default, deserialize_with = "lenient")]
    tls: Option<i64>,
    #[serde(default, deserialize_with = "lenient")]
    port: Option<u16>,
}

/// Reads an answer.
///
/// # Errors
/// [`PollError::NotJson`] for what is no answer, [`PollError::NotAPlug`] for whatever else answers here, and
/// [`PollError::Missing`] when it does not say who it is.
pub fn parse(datagram: &[u8]) -> Result<Announcement, PollError> {
    // Of the header only the version is looked at: plugs fill the rest as they like.
    let (header, json) = datagram.split_at_checked(HEADER).ok_or(PollError::NotJson)?;
    if header.first() != Some(&2) {
        return Err(PollError::NotJson);
    }
    let WireReply { result } = serde_json::from_slice(json).map_err(|_| PollError::NotJson)?;
    let kind = result.device_type.unwrap_or_default();
    let (dialect, what) = kind.split_once('.').unwrap_or(("", &kind));
    let is_plug = what.contains("PLUG") || what.ends_with("SWITCH");
    if !is_plug || !matches!(dialect, "IOT" | "SMART") {
        return Err(PollError::NotAPlug { kind: Label::new(&kind) });
    }
    let mac = result.mac.and_then(|mac| mac.parse().ok()).ok_or(PollError::Missing { what: "mac" })?;
    Ok(Announcement {
        mac,
        model: Label::new(&result.device_model.unwrap_or_default()),
        way: way(dialect == "IOT", result.mgt_encrypt_schm, result.tpap),
        owner: result.owner.filter(|owner| !owner.is_empty()).map(|owner| Label::new(&owner)),
    })
}

fn way(is_iot: bool, scheme: Option<WireScheme>, tpap: Option<WireTpap>) -> Way {
    let unknown = |name: &str| Way::Unknown { name: Label::new(name) };
    let known =
        |protocol, port: Option<u16>| Way::Known { protocol, port: port.filter(|p| *p > 0).unwrap_or(HTTP_PORT) };
    let (name, is_https, port) = match scheme {
        Some(scheme) => (scheme.encrypt_type, scheme.is_support_https == Some(true), scheme.http_port),
        None => (None, false, None),
    };
    // What the scheme names counts; a plug in TPAP mode may leave it out.
    let name = name.unwrap_or_else(|| if tpap.is_some() { "TPAP" } else { "" }.to_owned());
    match (name.as_str(), is_iot) {
        ("XOR", true) => Way::Known { protocol: Protocol::IotXor, port: xor::PORT },
        ("TPAP", false) => match tpap {
            Some(tpap) if tpap.tls.unwrap_or_default() != 0 => unknown("TPAP over TLS"),
            Some(tpap) => known(Protocol::SmartTpap, tpap.port.or(port)),
            None => known(Protocol::SmartTpap, port),
        },
        (name, _) if is_https => unknown(&format!("{name} over TLS")),
        ("KLAP", true) => known(Protocol::IotKlap, port),
        ("KLAP", false) => known(Protocol::SmartKlap, port),
        ("AES", false) => known(Protocol::SmartAes, port),
        (name, _) => unknown(name),
    }
}

#[cfg(test)]
mod tests {
    use super::super::hex;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_answers() {
        assert_eq!(probe(), hex("020000010000000000000000463cb5d3"));
        let payload = br#"{"params":{"rsa_key":"X"}}"#;
        let wanted = "02000001001a110001020304cce1d1f97b22706172616d73223a7b227273615f6b6579223a2258227d7d";
        assert_eq!(packet(17, 0x0102_0304, payload), hex(wanted));
    }

    fn answer(json: &str) -> Result<Announcement, PollError> {
        parse(&packet(0, 0, json.as_bytes()))
    }

    fn way_of(kind: &str, rest: &str) -> Way {
        let json =
            format!(r#"{{"result":{{"device_type":"{kind}","mac":"48-22-54-00-11-22",{rest}}},"error_code":0}}"#);
        answer(&json).unwrap().way
    }

    #[test]
    fn a_plug_says_who_it_is_and_how_to_speak_to_it() {
        let found = answer(
            r#"{"result":{"device_id":"0123456789abcdef0123456789abcdef","owner":"B58996C504C5638798EB6B511E6F49AF",
            "device_type":"SMART.TAPOPLUG","device_model":"P110(UK)","ip":"10.0.0.9","mac":"48-22-54-AA-BB-CC",
            "is_support_iot_cloud":true,"obd_src":"tplink","factory_default":false,
            "mgt_encrypt_schm":{"is_support_https":false,"encrypt_type":"KLAP","http_port":80,"lv":2}},"error_code":0}"#,
        )
        .unwrap();
        assert_eq!((found.mac.to_string().as_str(), found.model.as_str()), ("482254aabbcc", "P110(UK)"));
        assert_eq!(found.way, Way::Known { protocol: Protocol::SmartKlap, port: 80 });
        assert_eq!(found.is_owned_by(&Credentials::new("user@example.com", "")), Some(true));
        assert_eq!(found.is_owned_by(&Credentials::new("User@Example.com", "")), Some(true));
        assert_eq!(found.is_owned_by(&Credentials::new("other@example.com", "")), Some(false));
    }

    #[test]
    fn every_pair_of_dialect_and_transport_is_one_protocol() {
        let known = |protocol, port| Way::Known { protocol, port };
        let scheme = |name: &str| format!(r#""mgt_encrypt_schm":{{"encrypt_type":"{name}","http_port":8080,"lv":2}}"#);
        assert_eq!(way_of("IOT.SMARTPLUGSWITCH", &scheme("KLAP")), known(Protocol::IotKlap, 8_080));
        assert_eq!(way_of("IOT.SMARTPLUGSWITCH", &scheme("XOR")), known(Protocol::IotXor, 9_999));
        assert_eq!(way_of("SMART.KASAPLUG", &scheme("KLAP")), known(Protocol::SmartKlap, 8_080));
        assert_eq!(way_of("SMART.KASAPLUG", &scheme("AES")), known(Protocol::SmartAes, 8_080));
        assert_eq!(way_of("SMART.TAPOSWITCH", &scheme("TPAP")), known(Protocol::SmartTpap, 8_080));
        let tpap = |tls| format!(r#""tpap":{{"tls":{tls},"dac":1,"pake":[2],"port":8081}}"#);
        assert_eq!(way_of("SMART.TAPOPLUG", &tpap(0)), known(Protocol::SmartTpap, 8_081));
        assert_eq!(way_of("SMART.TAPOPLUG", &tpap(2)), Way::Unknown { name: Label::new("TPAP over TLS") });
        // Known to TPAP, but asked to speak KLAP by the app's switch.
        let both = format!("{},{}", scheme("KLAP"), tpap(0));
        assert_eq!(way_of("SMART.TAPOPLUG", &both), known(Protocol::SmartKlap, 8_080));
        let https = r#""mgt_encrypt_schm":{"encrypt_type":"AES","is_support_https":true,"http_port":443}"#;
        assert_eq!(way_of("SMART.TAPOPLUG", https), Way::Unknown { name: Label::new("AES over TLS") });
        assert_eq!(way_of("SMART.TAPOPLUG", &scheme("NEW")), Way::Unknown { name: Label::new("NEW") });
        assert_eq!(way_of("SMART.TAPOPLUG", r#""mgt_encrypt_schm":7"#), Way::Unknown { name: Label::new("") });
    }

    #[test]
    fn what_is_no_plug_is_passed_over() {
        for kind in ["HOMEWIFISYSTEM", "SMART.IPCAMERA", "SMART.TAPOBULB", "SMART.TAPOHUB", "X.SMARTPLUG", ""] {
            let json = format!(r#"{{"result":{{"device_type":"{kind}","mac":"48-22-54-00-11-22"}}}}"#);
            assert!(matches!(answer(&json), Err(PollError::NotAPlug { .. })), "{kind}");
        }
        assert!(matches!(answer(r#"{"result":{"device_type":"SMART.TAPOPLUG"}}"#), Err(PollError::Missing { .. })));
        assert_eq!(answer("{}"), Err(PollError::NotJson));
        assert_eq!(parse(b"short"), Err(PollError::NotJson));
        assert_eq!(parse(&[1; 40]), Err(PollError::NotJson));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>, json in "[{}\":,a-z0-9\\[\\]]{0,200}") {
            let _ = parse(&bytes);
            let _ = parse(&packet(0, 0, json.as_bytes()));
        }

        #[test]
        fn damaged_answers_never_panic(at: prop::sample::Index, byte: u8) {
            let json = br#"{"result":{"device_type":"SMART.TAPOPLUG","mac":"48-22-54-AA-BB-CC","owner":"00",
                "mgt_encrypt_schm":{"encrypt_type":"KLAP","http_port":80},"tpap":{"tls":0,"port":80}}}"#;
            let mut bytes = packet(0, 0, json);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = parse(&bytes);
        }
    }
}
