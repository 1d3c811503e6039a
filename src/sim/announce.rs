//! What a plug announces to a discovery probe on port 20002 or 20004.

use md5::{Digest, Md5};
use serde_json::json;

use super::door::Keeper;
use super::load::mix;
use super::reply::PlugState;
use super::smart;
use crate::plug::klap::Hashes;
use crate::plug::tdp;
use crate::reading::Protocol;

/// The answer, with its header.
pub(super) fn reply(plug: &PlugState, protocol: Protocol, http_port: u16, keeper: &Keeper) -> Vec<u8> {
    let user = keeper.credentials.user();
    let is_owned = !user.is_empty() && !user.ends_with("@tp-link.net");
    let owner: String = Md5::digest(user).iter().map(|byte| format!("{byte:02X}")).collect();
    let scheme = match protocol {
        Protocol::IotXor => "XOR",
        Protocol::IotKlap | Protocol::SmartKlap => "KLAP",
        Protocol::SmartTpap => "TPAP",
        Protocol::SmartAes => "AES",
    };
    // The one on this port is not the one in the device's own replies.
    let id = format!("{:016x}{:016x}", mix(plug.seed, 0x7464), mix(plug.seed, 0x7465));
    let mut scheme = json!({"is_support_https": false, "encrypt_type": scheme, "http_port": http_port});
    if let Some(fields) = scheme.as_object_mut() {
        match (protocol, keeper.hashes) {
            (Protocol::IotKlap, Hashes::V1) => {}
            (Protocol::IotKlap, _) => fields.extend([("new_klap".to_owned(), json!(1)), ("lv".to_owned(), json!(2))]),
            _ => fields.extend([("lv".to_owned(), json!(2))]),
        }
    }
    let mut result = json!({
        "device_id": id, "owner": if is_owned { owner } else { String::new() }, "device_type": smart::kind(plug.model),
        "device_model": plug.model.label(), "ip": plug.address.to_string(), "mac": smart::mac(plug),
        "is_support_iot_cloud": true, "obd_src": "tplink", "factory_default": !is_owned, "protocol_version": 1,
        "mgt_encrypt_schm": scheme,
    });
    if protocol == Protocol::SmartTpap
        && let Some(fields) = result.as_object_mut()
    {
        fields.insert("tpap".to_owned(), tpap(http_port));
        fields.insert("tpap_preferred".to_owned(), json!(true));
    }
    tdp::packet(0, 0, json!({"result": result, "error_code": 0}).to_string().as_bytes())
}

/// How the plug wants to be logged in to over TPAP.
pub(super) fn tpap(http_port: u16) -> serde_json::Value {
    json!({"tls": 0, "dac": 0, "noc": 0, "pake": [2], "port": http_port, "user_hash_type": 0})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plug::tdp::Way;
    use crate::sim::{Model, PlugSpec, account};
    use crate::units::UnixMillis;

    #[test]
    fn the_client_understands_every_announcement() {
        for (model, protocol) in [
            (Model::Kp115, Protocol::IotKlap),
            (Model::P110, Protocol::SmartKlap),
            (Model::Kp125m, Protocol::SmartTpap),
            (Model::P110V1, Protocol::SmartAes),
        ] {
            let spec = PlugSpec::new(model, [127, 1, 2, 3].into(), 1);
            let plug = PlugState::new(&spec, UnixMillis::new(0));
            let found = tdp::parse(&reply(&plug, protocol, 8_080, &Keeper::new(&spec, &account()))).unwrap();
            assert_eq!((found.mac, found.model.as_str()), (spec.mac, model.label()));
            assert_eq!(found.way, Way::Known { protocol, port: 8_080 });
            assert_eq!(found.is_owned_by(&account()), Some(true));
        }
    }
}
