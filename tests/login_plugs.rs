//! Plugs that want a login: each protocol is read, each fault ends in nothing false, no storm and recovery without help,
//! and a plug that changes its protocol or its address goes on under its own id. Nothing secret is ever said.

mod common;

use std::net::UdpSocket;
use std::time::Duration;

use common::{House, logged, quick};
use wattd::plug::keyring::Keyring;
use wattd::plug::klap::Hashes;
use wattd::plug::session::{Credentials, Whose};
use wattd::plug::tdp;
use wattd::poll::fleet::Presence;
use wattd::reading::{DeviceId, Protocol};
use wattd::sim::{Fault, Fleet, FleetSpec, Load, Model, PlugSpec, TestNet, account, test_net};

/// How every test's account is called and opened: none of this may ever show.
const SECRETS: [&str; 3] = ["hunter22", "user@example.com", "60b3af8bfe3735623c7d4a5ef749bb6ac1a4413a"];

fn keys() -> Keyring {
    Keyring::new(Some(account()))
}

/// The ids that a simulated plug's readings have.
fn ids(plugs: &Fleet, n: usize) -> Vec<DeviceId> {
    let view = &plugs.plugs()[n];
    match view.model.children() {
        0 if view.model.meter().is_none() => Vec::new(),
        0 => vec![DeviceId::plug(view.mac)],
        outlets => (0..outlets).map(|outlet| DeviceId::outlet(view.mac, outlet)).collect(),
    }
}

/// What holds whatever happens: one connection, one request at a time, and never a write.
fn assert_gentle(plugs: &Fleet) {
    let seen = plugs.total();
    assert_eq!((seen.max_in_flight, seen.writes_seen, seen.over_limit), (1, 0, 0), "{seen:?}");
    assert!(seen.max_connections <= 1, "{seen:?}");
}

fn assert_nothing_secret_was_said() {
    for level in [log::Level::Error, log::Level::Warn, log::Level::Info, log::Level::Debug] {
        for line in logged(level, "") {
            assert!(SECRETS.iter().all(|secret| !line.contains(secret)), "{line}");
        }
    }
}

/// One plug that will misbehave, and a fridge that will not.
fn two(net: &TestNet, model: Model, protocol: Protocol) -> Fleet {
    let spec = net.fleet(vec![
        PlugSpec::new(model, net.host(1), 1).alias("kettle").loads(&[Load::Kettle]).protocol(protocol),
        PlugSpec::new(Model::Hs110V1, net.host(2), 2).alias("fridge").loads(&[Load::Fridge]),
    ]);
    Fleet::start(spec).unwrap()
}

#[test]
fn every_protocol_is_read_with_one_login_for_each_session() {
    let net = test_net(0).unwrap();
    let base = net.host(1);
    let sorts = FleetSpec::every_protocol(10, base, 1).unwrap();
    let plugs = Fleet::start(net.fleet(sorts.plugs)).unwrap();
    House::run_with(keys(), quick(net.broadcast()), async |house| {
        for n in 0..10 {
            house.until_read(&ids(&plugs, n), 3).await;
        }
        for view in plugs.plugs() {
            house.until("the plug without a meter", || house.fleet.borrow().get(view.mac).is_some()).await;
            let plug = house.plug(view.mac);
            assert_eq!((plug.facts.protocol, plug.facts.has_meter), (view.protocol, view.model.meter().is_some()));
            assert_eq!((plug.facts.alias.as_str(), plug.last_error), (view.alias.as_str(), None));
            assert_eq!(plug.facts.outlets.len(), usize::from(view.model.children()));
            let seen = plugs.counters(view.index);
            let logins = u64::from(view.protocol != Protocol::IotXor);
            assert_eq!((seen.handshakes, seen.logins_refused), (logins, 0), "{view:?}");
        }
        house.assert_all_was_served(&plugs).await;
    });
    assert_gentle(&plugs);
    assert_nothing_secret_was_said();
}

#[test]
fn plugs_without_an_owner_need_no_account_and_all_hashes_are_found() {
    let net = test_net(0).unwrap();
    let plug = |n: u8, model| PlugSpec::new(model, net.host(n), u64::from(n));
    let plugs = Fleet::start(net.fleet(vec![
        plug(1, Model::P110).owner(Whose::Blank),
        plug(2, Model::Kp115).protocol(Protocol::IotKlap).owner(Whose::KasaDefault).hashes(Hashes::V1),
        plug(3, Model::Kp125m).owner(Whose::TapoDefault),
        plug(4, Model::P110).owner(Whose::Account),
    ]))
    .unwrap();
    House::run(quick(net.broadcast()), async |house| {
        for n in 0..3 {
            house.until_read(&ids(&plugs, n), 2).await;
        }
        let owned = ids(&plugs, 3)[0];
        let trouble = || house.fleet.borrow().get(owned.plug).and_then(|plug| plug.last_error.clone());
        house.until("the owned plug to ask for its account", || trouble().is_some()).await;
        assert!(trouble().unwrap().text.contains("[account]"), "{:?}", trouble());
        assert!(house.readings(owned).await.is_empty());
    });
    assert_gentle(&plugs);
}

/// A fault that stops readings: the plug goes offline with one line, and comes back when it is over.
fn stops_readings(protocol: Protocol, fault: Fault, words: &str) {
    let net = test_net(0).unwrap();
    let model = if protocol == Protocol::IotKlap { Model::Kp115 } else { Model::P110 };
    let plugs = two(&net, model, protocol);
    let (kettle, fridge) = (ids(&plugs, 0), ids(&plugs, 1));
    House::run_with(keys(), quick(net.broadcast()), async |house| {
        house.until_read(&kettle, 2).await;
        house.until_read(&fridge, 1).await;
        let mac = kettle[0].plug;
        plugs.set_fault(0, fault).unwrap();
        if fault == Fault::LocalOff {
            plugs.set_fault(0, Fault::SessionLost).unwrap(); // a session that is open stays so
        }
        house.until("offline", || matches!(house.plug(mac).presence, Presence::Offline { .. })).await;
        house.until_read(&fridge, 5).await;
        let trouble = house.plug(mac).last_error.unwrap().text;
        assert!(trouble.contains(words), "{fault:?}: {trouble}");
        let warnings = logged(log::Level::Warn, "kettle");
        assert_eq!(warnings.len(), 1, "{warnings:?}");

        plugs.clear(0).unwrap();
        house.until_read(&kettle, 3).await;
        assert_eq!((house.plug(mac).presence, house.plug(mac).last_error), (Presence::Online, None));
        house.assert_all_was_served(&plugs).await;
    });
    assert_gentle(&plugs);
    assert_nothing_secret_was_said();
}

#[test]
fn silence() {
    stops_readings(Protocol::SmartKlap, Fault::Silence, "no complete answer within");
}

#[test]
fn connections_refused() {
    stops_readings(Protocol::SmartTpap, Fault::Refuse, "port is closed");
}

#[test]
fn connections_closed_at_once() {
    stops_readings(Protocol::SmartKlap, Fault::Close, "closed the connection");
}

#[test]
fn half_a_reply_and_the_end() {
    stops_readings(Protocol::IotKlap, Fault::HalfThenClose, "closed the connection");
}

#[test]
fn half_a_reply_and_silence() {
    stops_readings(Protocol::SmartKlap, Fault::HalfThenSilence, "no complete answer within");
}

#[test]
fn a_huge_length() {
    stops_readings(Protocol::SmartKlap, Fault::HugeLength, "64 KiB");
}

#[test]
fn garbage() {
    stops_readings(Protocol::SmartTpap, Fault::Garbage, "it");
}

#[test]
fn one_byte_a_second() {
    stops_readings(Protocol::SmartKlap, Fault::Drip, "no complete answer within");
}

#[test]
fn a_wrong_signature() {
    stops_readings(Protocol::SmartKlap, Fault::WrongSignature, "not signed");
}

#[test]
fn a_plug_that_forgets_each_session_at_once() {
    stops_readings(Protocol::IotKlap, Fault::NoSession, "ended the session");
}

#[test]
fn local_access_switched_off() {
    stops_readings(Protocol::SmartKlap, Fault::LocalOff, "Third-Party Compatibility");
}

/// A fault that a poll gets over by itself: readings go on.
fn goes_on(model: Model, protocol: Protocol, fault: Fault) -> (Fleet, u64) {
    let net = test_net(0).unwrap();
    let plugs = two(&net, model, protocol);
    let kettle = ids(&plugs, 0);
    let mut logins = 0;
    House::run_with(keys(), quick(net.broadcast()), async |house| {
        house.until_read(&kettle, 2).await;
        plugs.set_fault(0, fault).unwrap();
        house.until_read(&kettle, 5).await;
        plugs.clear(0).unwrap();
        house.until_read(&kettle, 2).await;
        logins = plugs.counters(0).handshakes;
        house.assert_all_was_served(&plugs).await;
    });
    assert_gentle(&plugs);
    assert_nothing_secret_was_said();
    (plugs, logins)
}

#[test]
fn a_plug_that_closes_after_each_reply_keeps_its_session() {
    assert_eq!(goes_on(Model::P110, Protocol::SmartKlap, Fault::OneReply).1, 1);
}

#[test]
fn a_reset_of_a_kept_connection_costs_one_reconnection_and_no_login() {
    assert_eq!(goes_on(Model::P110, Protocol::SmartKlap, Fault::ResetReused).1, 1);
}

#[test]
fn a_lost_session_costs_one_login() {
    for protocol in [Protocol::SmartKlap, Protocol::SmartTpap, Protocol::SmartAes] {
        assert_eq!(goes_on(Model::P110, protocol, Fault::SessionLost).1, 2, "{protocol}");
    }
}

#[test]
fn a_clock_that_was_never_set_and_one_that_never_answers_do_not_matter() {
    goes_on(Model::P110, Protocol::SmartKlap, Fault::ClockUnset);
    goes_on(Model::P110, Protocol::SmartKlap, Fault::SlowClock);
}

#[test]
fn an_answer_in_the_open_inside_aes_is_taken() {
    goes_on(Model::P110V1, Protocol::SmartAes, Fault::PlainInner);
}

/// A plug that takes no batches from the start.
fn without_batches(fault: Fault) {
    let net = test_net(0).unwrap();
    let plugs = two(&net, Model::P110, Protocol::SmartKlap);
    plugs.set_fault(0, fault).unwrap();
    let kettle = ids(&plugs, 0);
    House::run_with(keys(), quick(net.broadcast()), async |house| {
        house.until_read(&kettle, 6).await;
        assert_eq!(house.plug(kettle[0].plug).last_error, None);
        let figures = house.plug(kettle[0].plug).polls;
        // Found out once: no poll after the first few takes as long as a time-out.
        assert!(figures.last < Duration::from_millis(700), "{figures:?}");
        house.assert_all_was_served(&plugs).await;
    });
    assert_gentle(&plugs);
}

#[test]
fn a_plug_that_refuses_batches() {
    without_batches(Fault::NoBatch);
}

#[test]
fn a_plug_that_never_answers_a_batch() {
    without_batches(Fault::SilentBatch);
}

/// A password that the plug does not take is tried once, and then not for long, though the plug is heard of all the time.
fn refuses_the_password(protocol: Protocol) {
    let net = test_net(0).unwrap();
    let plugs = two(&net, Model::P110, protocol);
    let (kettle, fridge) = (ids(&plugs, 0), ids(&plugs, 1));
    plugs.set_fault(0, Fault::WrongPassword).unwrap();
    let mut settings = quick(net.broadcast());
    settings.discover_every = Some(Duration::from_millis(200));
    House::run_with(keys(), settings, async |house| {
        let mac = kettle[0].plug;
        let trouble = || house.fleet.borrow().get(mac).and_then(|plug| plug.last_error.clone());
        house.until("the refusal", || trouble().is_some()).await;
        let tried = plugs.counters(0).handshakes;
        // Two seconds of polls of the other plug. What follows a refusal pauses for at least 0.4 s at this pace (two
        // minutes in life), and each attempt may try the account in two ways of writing and the plug's own default.
        house.until_read(&fridge, 20).await;
        let text = trouble().unwrap().text;
        assert!(text.contains("e-mail and password") && text.contains("not asked again before"), "{text}");
        let seen = plugs.counters(0);
        assert!(seen.handshakes <= tried * 5, "{protocol}: {tried} at first, then {seen:?}");
        assert_eq!(logged(log::Level::Warn, "e-mail and password").len(), 1);
        plugs.clear(0).unwrap();
        house.until_read(&kettle, 2).await;
        house.assert_all_was_served(&plugs).await;
    });
    assert_gentle(&plugs);
    assert_nothing_secret_was_said();
}

#[test]
fn a_wrong_password_over_klap() {
    refuses_the_password(Protocol::SmartKlap);
}

#[test]
fn a_wrong_password_over_tpap() {
    refuses_the_password(Protocol::SmartTpap);
}

#[test]
fn a_wrong_password_over_aes() {
    refuses_the_password(Protocol::SmartAes);
}

#[test]
fn a_locked_plug_is_left_alone() {
    let net = test_net(0).unwrap();
    let plugs = two(&net, Model::P110, Protocol::SmartTpap);
    let (kettle, fridge) = (ids(&plugs, 0), ids(&plugs, 1));
    plugs.set_fault(0, Fault::Locked).unwrap();
    let mut settings = quick(net.broadcast());
    settings.discover_every = Some(Duration::from_millis(200));
    House::run_with(keys(), settings, async |house| {
        let trouble = || house.fleet.borrow().get(kettle[0].plug).and_then(|plug| plug.last_error.clone());
        house.until("the lock", || trouble().is_some()).await;
        house.until_read(&fridge, 15).await;
        let text = trouble().unwrap().text;
        assert!(text.contains("locked") && text.contains("not asked again before"), "{text}");
        assert_eq!(plugs.counters(0).requests, 1, "{:?}", plugs.counters(0));
        plugs.clear(0).unwrap();
        house.until_read(&kettle, 2).await;
    });
    assert_gentle(&plugs);
}

#[test]
fn a_wrong_password_of_ours_is_told_from_none() {
    let net = test_net(0).unwrap();
    let plugs = two(&net, Model::P110, Protocol::SmartKlap);
    let mac = ids(&plugs, 0)[0].plug;
    for (keys, words) in [
        (Keyring::new(None), "wants the e-mail and password"),
        (Keyring::new(Some(Credentials::new("user@example.com", "wrong"))), "does not take the account's"),
    ] {
        House::run_with(keys, quick(net.broadcast()), async |house| {
            let trouble = || house.fleet.borrow().get(mac).and_then(|plug| plug.last_error.clone());
            house.until("the refusal", || trouble().is_some()).await;
            assert!(trouble().unwrap().text.contains(words), "{:?}", trouble());
        });
    }
}

/// A plug that takes other firmware over night is found again, and goes on under its id.
fn changes(model: Model, from: Protocol, to: Protocol) {
    let net = test_net(0).unwrap();
    let plugs = two(&net, model, from);
    let kettle = ids(&plugs, 0);
    House::run_with(keys(), quick(net.broadcast()), async |house| {
        house.until_read(&kettle, 2).await;
        plugs.speak(0, to).unwrap();
        house.until("the other protocol", || house.plug(kettle[0].plug).facts.protocol == to).await;
        house.until_read(&kettle, 3).await;
        assert_eq!(house.fleet.borrow().plugs().count(), 2);
        assert_eq!(logged(log::Level::Info, "is now asked over").len(), 1);
        let remembered = house.store.devices();
        let remembered = remembered.iter().find(|device| device.record.id.plug == kettle[0].plug).unwrap();
        let plug = remembered.record.plug.as_ref().unwrap();
        assert_eq!(plug.facts.protocol, to, "kept with the plug, for the next start");
        house.assert_all_was_served(&plugs).await;
    });
    assert_gentle(&plugs);
    assert_nothing_secret_was_said();
}

#[test]
fn port_9999_closes_over_night() {
    changes(Model::Kp115, Protocol::IotXor, Protocol::IotKlap);
}

#[test]
fn klap_becomes_tpap_over_night() {
    changes(Model::P110, Protocol::SmartKlap, Protocol::SmartTpap);
}

#[test]
fn aes_becomes_klap_over_night() {
    changes(Model::P110, Protocol::SmartAes, Protocol::SmartKlap);
}

#[test]
fn port_9999_opens_again() {
    changes(Model::Kp115, Protocol::IotKlap, Protocol::IotXor);
}

#[test]
fn a_plug_that_moves_goes_on_under_its_id() {
    let net = test_net(0).unwrap();
    let plugs = two(&net, Model::P110, Protocol::SmartKlap);
    let kettle = ids(&plugs, 0);
    House::run_with(keys(), quick(net.broadcast()), async |house| {
        house.until_read(&kettle, 2).await;
        plugs.move_to(0, net.host(9)).unwrap();
        house.until("the other address", || house.plug(kettle[0].plug).address.ip() == net.host(9)).await;
        house.until_read(&kettle, 2).await;
        assert_eq!(logged(log::Level::Info, "moved here from").len(), 1);
        house.assert_all_was_served(&plugs).await;
    });
    assert_gentle(&plugs);
}

#[test]
fn another_plug_at_the_address_is_never_taken_for_the_one_expected() {
    let net = test_net(0).unwrap();
    let plugs = two(&net, Model::P110, Protocol::SmartKlap);
    let kettle = ids(&plugs, 0);
    House::run_with(keys(), quick(net.broadcast()), async |house| {
        house.until_read(&kettle, 2).await;
        plugs.set_fault(0, Fault::WrongDevice).unwrap();
        house.until("the other plug", || house.fleet.borrow().plugs().count() > 2).await;
        let count = house.readings(kettle[0]).await.len();
        house.until_read(&ids(&plugs, 1), 5).await;
        assert_eq!(house.readings(kettle[0]).await.len(), count);
        plugs.clear(0).unwrap();
        house.until_read(&kettle, 2).await;
        house.assert_all_was_served(&plugs).await;
    });
}

#[test]
fn a_port_that_opens_only_after_a_probe_gets_one() {
    let net = test_net(0).unwrap();
    let plugs = two(&net, Model::P110, Protocol::SmartKlap);
    plugs.set_fault(0, Fault::Asleep).unwrap();
    let kettle = ids(&plugs, 0);
    let mut settings = quick(net.broadcast());
    settings.discover_every = None; // the pinned address alone
    settings.pinned = vec![(net.host(1).into(), None)];
    House::run_with(keys(), settings, async |house| {
        house.until_read(&kettle, 3).await;
    });
    assert_gentle(&plugs);
}

#[test]
fn what_wants_an_unknown_protocol_is_named_and_what_is_no_plug_is_passed_over() {
    let net = test_net(0).unwrap();
    let plugs = two(&net, Model::P110, Protocol::SmartKlap);
    let answer = |kind: &str, mac: &str, scheme: &str| {
        let json = format!(
            r#"{{"result":{{"device_type":"{kind}","device_model":"P199","mac":"{mac}",
            "mgt_encrypt_schm":{{"encrypt_type":"{scheme}","http_port":80}}}},"error_code":0}}"#
        );
        tdp::packet(0, 0, json.as_bytes())
    };
    let strangers = [
        (net.host(20), answer("SMART.TAPOPLUG", "50-C7-BF-00-00-01", "NEW")),
        (net.host(21), answer("HOMEWIFISYSTEM", "50-C7-BF-00-00-02", "KLAP")),
        (net.host(22), answer("SMART.IPCAMERA", "50-C7-BF-00-00-03", "AES")),
        (net.host(23), b"\x02 and nonsense".to_vec()),
    ];
    let mut settings = quick(net.broadcast());
    settings.discover_every = Some(Duration::from_millis(300));
    let threads: Vec<_> = strangers
        .into_iter()
        .map(|(at, answer)| {
            settings.targets.push(at);
            let socket = UdpSocket::bind((at, tdp::PORTS[0])).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 2_048];
                for _ in 0..3 {
                    let Ok((_, from)) = socket.recv_from(&mut buffer) else { return };
                    socket.send_to(&answer, from).unwrap();
                }
            })
        })
        .collect();
    settings.pinned = vec![(net.host(20).into(), None)];
    House::run_with(keys(), settings, async |house| {
        house.until_read(&ids(&plugs, 0), 5).await;
        house
            .until("the unknown protocol to be named", || {
                let fleet = house.fleet.borrow();
                let mut unmet = fleet.unmet().filter_map(|unmet| unmet.last_error.as_ref());
                unmet.any(|trouble| trouble.text.contains("\"NEW\""))
            })
            .await;
        assert_eq!(house.fleet.borrow().plugs().count(), 2);
        assert!(logged(log::Level::Warn, "50c7bf").is_empty());
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Fifty plugs over all transports: never two connections, never two requests at once, never faster than their minimum,
/// one login for each session.
#[test]
fn fifty_plugs_over_all_transports() {
    let net = test_net(0).unwrap();
    let sorts = FleetSpec::every_protocol(50, net.host(1), 7).unwrap();
    let plugs = Fleet::start(net.fleet(sorts.plugs)).unwrap();
    let mut settings = quick(net.broadcast());
    settings.interval = Duration::from_secs(2);
    settings.strip_interval = Duration::from_secs(3);
    settings.min_interval = Duration::from_secs(1);
    settings.patience.exchange = Duration::from_secs(5);
    settings.patience.poll = Duration::from_secs(15);
    House::run_with(keys(), settings, async |house| {
        let all: Vec<_> = (0..50).flat_map(|n| ids(&plugs, n)).collect();
        house.until_read(&all, 3).await;
        for view in plugs.plugs() {
            let seen = plugs.counters(view.index);
            let logins = u64::from(view.protocol != Protocol::IotXor);
            assert_eq!((seen.handshakes, seen.logins_refused), (logins, 0), "{view:?}");
            assert!(seen.max_in_flight <= 1 && seen.max_connections <= 1, "{view:?}");
            // The minimum counts from when a plug is asked to when it is asked; a busy machine may be late with the first.
            assert!(seen.closest.is_none_or(|closest| closest > Duration::from_millis(500)), "{view:?}");
        }
        house.assert_all_was_served(&plugs).await;
    });
    assert_gentle(&plugs);
}
