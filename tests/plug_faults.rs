//! Every way a plug can misbehave: nothing false is recorded, the other plugs keep their pace, the log says it in one
//! line, and the plug comes back by itself.

mod common;

use std::time::Duration;

use common::{House, logged, quick};
use wattd::poll::fleet::Presence;
use wattd::reading::DeviceId;
use wattd::sim::{Fault, Fleet, Load, Model, PlugSpec, TestNet, test_net};

/// A kettle that will misbehave, and two plugs that will not.
fn plugs(net: &TestNet) -> Fleet {
    let spec = net.fleet(vec![
        PlugSpec::new(Model::Kp115, net.host(1), 1).alias("kettle").loads(&[Load::Kettle]),
        PlugSpec::new(Model::Hs110V1, net.host(2), 2).alias("fridge").loads(&[Load::Fridge]),
        PlugSpec::new(Model::Hs300, net.host(3), 3).alias("strip").loads(&[Load::Standby]),
    ]);
    Fleet::start(spec).unwrap()
}

fn ids(plugs: &Fleet) -> (DeviceId, Vec<DeviceId>) {
    let views = plugs.plugs();
    let strip = (0..6).map(|outlet| DeviceId::outlet(views[2].mac, outlet));
    (DeviceId::plug(views[0].mac), std::iter::once(DeviceId::plug(views[1].mac)).chain(strip).collect())
}

/// A fault that stops readings: the plug goes offline with one line, and comes back when it is over.
fn stops_readings(fault: Fault, words: &str) {
    let net = test_net(0).unwrap();
    let plugs = plugs(&net);
    let (kettle, others) = ids(&plugs);
    House::run(quick(net.broadcast()), async |house| {
        house.until_read(&[kettle], 2).await;
        house.until_read(&others, 1).await;
        let before = plugs.counters(0);
        plugs.set_fault(0, fault).unwrap();
        let away = || matches!(house.plug(kettle.plug).presence, Presence::Offline { .. });
        house.until("offline", away).await;
        // Other plugs keep their pace: in the time of ten polls each gets about ten.
        let (start, worst) = (house.now(), house.fleet.borrow().lateness.worst);
        house.until_read(&others[..1], 10).await;
        let took = house.now() - start;
        assert!(took < Duration::from_secs(8), "ten polls of a healthy plug took {took:?}, worst wait {worst:?}");
        let trouble = house.plug(kettle.plug).last_error.unwrap().text;
        assert!(trouble.contains(words), "{fault:?}: {trouble}");
        let warnings = logged(log::Level::Warn, "kettle");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains(words) && warnings[0].contains("offline"), "{warnings:?}");

        plugs.clear(0).unwrap();
        house.until_read(&[kettle], 3).await;
        assert_eq!(house.plug(kettle.plug).presence, Presence::Online);
        assert_eq!(house.plug(kettle.plug).last_error, None);
        assert_eq!(logged(log::Level::Info, "answers again").len(), 1);
        let asked = plugs.counters(0).requests - before.requests;
        assert!(asked < 2_000, "no storm of requests: {asked}");
        house.assert_all_was_served(&plugs).await;
    });
    assert_gentle(&plugs);
}

/// What holds whatever happens: one connection, one request at a time, in one piece, and never a write.
fn assert_gentle(plugs: &Fleet) {
    let seen = plugs.total();
    assert_eq!((seen.max_in_flight, seen.split_requests, seen.writes_seen, seen.over_limit), (1, 0, 0, 0), "{seen:?}");
}

#[test]
fn silence() {
    stops_readings(Fault::Silence, "no complete answer within");
}

#[test]
fn connections_refused() {
    stops_readings(Fault::Refuse, "port is closed");
}

#[test]
fn connections_closed_at_once() {
    stops_readings(Fault::Close, "closed the connection");
}

#[test]
fn an_answer_that_comes_too_late() {
    stops_readings(Fault::Delay(Duration::from_secs(2)), "no complete answer within");
}

#[test]
fn half_a_reply_and_the_end() {
    stops_readings(Fault::HalfThenClose, "closed the connection");
}

#[test]
fn half_a_reply_and_silence() {
    stops_readings(Fault::HalfThenSilence, "no complete answer within");
}

#[test]
fn a_huge_length() {
    stops_readings(Fault::HugeLength, "4294967295 bytes");
}

#[test]
fn a_length_of_zero() {
    stops_readings(Fault::ZeroLength, "0 bytes");
}

#[test]
fn garbage() {
    stops_readings(Fault::Garbage, "not in the protocol's form");
}

#[test]
fn one_byte_a_second() {
    stops_readings(Fault::Drip, "no complete answer within");
}

#[test]
fn another_plug_behind_the_address() {
    stops_readings(Fault::WrongDevice, "another plug answers there");
}

#[test]
fn stray_bytes_cost_the_connection_and_no_reading() {
    let net = test_net(0).unwrap();
    let plugs = plugs(&net);
    let (kettle, _) = ids(&plugs);
    House::run(quick(net.broadcast()), async |house| {
        house.until_read(&[kettle], 2).await;
        plugs.set_fault(0, Fault::StrayBytes).unwrap();
        let before = plugs.counters(0).connections;
        house.until("new connections", || plugs.counters(0).connections >= before + 3).await;
        plugs.clear(0).unwrap();
        house.until_read(&[kettle], 3).await;
        house.assert_all_was_served(&plugs).await;
    });
    assert_gentle(&plugs);
}

#[test]
fn a_strip_that_closes_after_each_reply_says_who_it_is_each_time() {
    let net = test_net(0).unwrap();
    let plugs = plugs(&net);
    let strip = plugs.plugs()[2].mac;
    let outlets: Vec<_> = (0..6).map(|n| DeviceId::outlet(strip, n)).collect();
    plugs.set_fault(2, Fault::OneReply).unwrap();
    House::run(quick(net.broadcast()), async |house| {
        house.until_read(&outlets, 3).await;
        assert_eq!(house.plug(strip).presence, Presence::Online);
        let seen = plugs.counters(2);
        assert!(seen.connections >= seen.requests, "a connection for each request: {seen:?}");
        // From here on another strip answers: nothing of it is recorded under the first one's name.
        plugs.set_fault(2, Fault::WrongDevice).unwrap();
        house.until("it is noticed", || matches!(house.plug(strip).presence, Presence::Offline { .. })).await;
        house.assert_all_was_served(&plugs).await;
    });
    assert_gentle(&plugs);
}

#[test]
fn impossible_power_is_refused_and_counted_and_said_once() {
    let net = test_net(0).unwrap();
    let plugs = plugs(&net);
    let (kettle, _) = ids(&plugs);
    House::run(quick(net.broadcast()), async |house| {
        house.until_read(&[kettle], 2).await;
        plugs.set_fault(0, Fault::Glitch).unwrap();
        house.until("refused values", || house.plug(kettle.plug).polls.refused >= 5).await;
        assert_eq!(house.plug(kettle.plug).presence, Presence::Online);
        let warnings = logged(log::Level::Warn, "kettle");
        assert!(warnings.len() == 1 && warnings[0].contains("power 20000 is outside 0 to 5000"), "{warnings:?}");
        plugs.clear(0).unwrap();
        house.until_read(&[kettle], 2).await;
        let readings = house.readings(kettle).await;
        assert!(readings.iter().all(|reading| reading.power.get() < 5_000_000));
    });
}

#[test]
fn a_counter_that_falls_and_a_restart_are_recorded_as_they_are() {
    let net = test_net(0).unwrap();
    let plugs = plugs(&net);
    let (kettle, _) = ids(&plugs);
    House::run(quick(net.broadcast()), async |house| {
        house.until_read(&[kettle], 2).await;
        plugs.set_fault(0, Fault::CounterReset).unwrap();
        let counter = || house.store.latest(kettle).unwrap().counter.unwrap().get();
        house.until("the counter to fall", || counter() < 1_000).await;
        plugs.set_fault(0, Fault::Restart(Duration::from_millis(500))).unwrap();
        house.until_read(&[kettle], 3).await;
        house.assert_all_was_served(&plugs).await;
    });
    assert_gentle(&plugs);
}

#[test]
fn a_plug_that_moves_is_found_again_and_goes_on_under_its_id() {
    let net = test_net(0).unwrap();
    let plugs = plugs(&net);
    let (kettle, others) = ids(&plugs);
    House::run(quick(net.broadcast()), async |house| {
        house.until_read(&[kettle], 2).await;
        house.until_read(&others, 1).await;
        let count = house.store.devices().len();
        plugs.move_to(0, net.host(99)).unwrap();
        house.until("the new address", || house.plug(kettle.plug).address.ip() == net.host(99)).await;
        house.until_read(&[kettle], 3).await;
        assert_eq!(house.store.devices().len(), count, "no new device");
        assert_eq!(logged(log::Level::Info, "moved here from").len(), 1);
        house.assert_all_was_served(&plugs).await;
    });
    assert_gentle(&plugs);
}

#[test]
fn a_plug_that_answers_is_not_moved_by_what_a_datagram_claims() {
    let net = test_net(0).unwrap();
    let plugs = plugs(&net);
    let liar_net = test_net(1).unwrap();
    let (kettle, _) = ids(&plugs);
    let mut liar = PlugSpec::new(Model::Kp115, liar_net.host(1), 9).alias("liar");
    liar.mac = kettle.plug;
    let liar = Fleet::start(liar_net.fleet(vec![liar])).unwrap();
    let mut settings = quick(net.broadcast());
    settings.targets.push(liar_net.broadcast());
    settings.discover_every = Some(Duration::from_millis(200));
    House::run(settings, async |house| {
        house.until("an answer of one of them", || house.fleet.borrow().get(kettle.plug).is_some()).await;
        house.until_read(&[kettle], 1).await;
        let at = house.plug(kettle.plug).address;
        house.until("the liar to be heard", || liar.counters(0).datagrams >= 5).await;
        house.until_read(&[kettle], 10).await;
        assert_eq!(house.plug(kettle.plug).address, at);
        assert!(
            liar.counters(0).requests == 0 || plugs.counters(0).requests == 0,
            "readings of two plugs under one id"
        );
    });
}

#[test]
fn a_plug_without_a_meter_is_listed_and_never_asked_for_energy() {
    let net = test_net(0).unwrap();
    let spec = net.fleet(vec![PlugSpec::new(Model::Hs103, net.host(1), 1).alias("hall lamp")]);
    let plugs = Fleet::start(spec).unwrap();
    let mac = plugs.plugs()[0].mac;
    House::run(quick(net.broadcast()), async |house| {
        let online = || house.fleet.borrow().get(mac).is_some_and(|plug| plug.polls.answered >= 3);
        house.until("answers", online).await;
        assert!(!house.plug(mac).facts.has_meter);
        assert!(house.readings(DeviceId::plug(mac)).await.is_empty());
        assert!(plugs.ledger().is_empty());
    });
}

#[test]
fn a_pinned_address_is_polled_without_discovery_and_takes_the_configured_name() {
    let net = test_net(0).unwrap();
    let plugs = plugs(&net);
    let (kettle, _) = ids(&plugs);
    let mut settings = quick(net.broadcast());
    settings.discover_every = None;
    settings.pinned = vec![(net.host(1).into(), Some(wattd::reading::Alias::new("tea"))), (net.host(77).into(), None)];
    House::run(settings, async |house| {
        house.until_read(&[kettle], 1).await;
        assert_eq!(house.plug(kettle.plug).display_name(), "tea");
        house
            .until("the empty address to be noticed", || {
                house
                    .fleet
                    .borrow()
                    .unmet()
                    .any(|unmet| unmet.address.ip() == net.host(77) && unmet.last_error.is_some())
            })
            .await;
        assert_eq!(house.fleet.borrow().plugs().count(), 1);
    });
}

#[test]
fn a_forged_datagram_does_not_take_away_a_plug_that_was_silent_for_a_moment() {
    let net = test_net(0).unwrap();
    let plugs = plugs(&net);
    let forger_net = test_net(1).unwrap();
    let (kettle, _) = ids(&plugs);
    let mut forger = PlugSpec::new(Model::Kp115, forger_net.host(1), 9).alias("forger");
    forger.mac = kettle.plug;
    let forger = Fleet::start(forger_net.fleet(vec![forger])).unwrap();
    forger.set_fault(0, Fault::Close).unwrap(); // it answers datagrams, and no poll
    let mut settings = quick(net.broadcast());
    settings.discover_every = Some(Duration::from_millis(300));
    settings.targets.push(forger_net.broadcast());
    House::run(settings, async |house| {
        house.until("an answer", || house.fleet.borrow().get(kettle.plug).is_some_and(|p| p.polls.answered > 2)).await;
        plugs.set_fault(0, Fault::Refuse).unwrap();
        house.until("the forger to be tried", || forger.counters(0).connections > 0).await;
        plugs.clear(0).unwrap();
        house.until_read(&[kettle], 3).await;
        assert_eq!(house.plug(kettle.plug).address.ip(), net.host(1));
        house.assert_all_was_served(&plugs).await;
    });
}
