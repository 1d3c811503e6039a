use proptest::prelude::*;

use super::header::HAS_POWER;
use super::*;
use crate::reading::Relay;

/// A number of a column: often near the one before, sometimes coarse, sometimes anything.
fn any_value(most: i64) -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => 0..=most.min(3_000),
        2 => (0..=most / 1_000).prop_map(|n| n * 1_000),
        1 => (0..=most / 100).prop_map(|n| n * 100),
        2 => 0..=most,
        1 => Just(0),
        1 => Just(most),
    ]
}

fn any_interval() -> impl Strategy<Value = u32> {
    prop_oneof![20 => Just(10_000_u32), 2 => Just(1_000), 1 => Just(0), 1 => Just(u32::MAX), 1 => any::<u32>()]
}

fn any_step() -> impl Strategy<Value = i64> {
    prop_oneof![6 => Just(10_000_i64), 6 => 9_950..10_050_i64, 2 => Just(1), 2 => 1..100_000_000_i64, 1 => 1..1_000_000_000_000_i64]
}

/// Entries that any plug could bring, in order of time. Columns come and go.
fn any_entries() -> impl Strategy<Value = Vec<Stored>> {
    let relay = prop_oneof![Just(None), Just(Some(Relay::Off)), Just(Some(Relay::On))];
    let often = |most: i64| proptest::option::weighted(0.9, any_value(most));
    let entry = (
        any_step(),
        proptest::bool::weighted(0.05),
        any_value(5_000_000),
        (often(500_000), often(100_000), often(1_000_000_000_000)),
        relay,
        any_interval(),
    );
    (0..2_000_000_000_000_i64, proptest::collection::vec(entry, 1..400)).prop_map(|(start, entries)| {
        let mut time = start;
        let stored = |(step, is_gap, power, (voltage, current, counter), relay, interval_ms)| {
            time += step;
            let reading = Reading {
                time: UnixMillis::new(time),
                power: Milliwatts::new(power).unwrap(),
                voltage: Option::map(voltage, |n| Millivolts::new(n).unwrap()),
                current: Option::map(current, |n| Milliamps::new(n).unwrap()),
                counter: Option::map(counter, |n| MilliwattHours::new(n).unwrap()),
                relay,
            };
            let entry = if is_gap { Entry::Gap { time: reading.time } } else { Entry::Reading(reading) };
            Stored { entry, interval_ms }
        };
        entries.into_iter().map(stored).collect()
    })
}

/// As many chunks as the entries take, and how many entries each has.
fn seal(entries: &[Stored]) -> Vec<Vec<u8>> {
    let (mut chunks, mut encoder) = (Vec::new(), Encoder::new(Clock::Trusted));
    for stored in entries {
        if let Err(refused) = encoder.push(*stored) {
            assert_eq!(refused, Refused::Full(*stored));
            chunks.push(std::mem::replace(&mut encoder, Encoder::new(Clock::Doubtful)).finish());
            encoder.push(*stored).unwrap();
        }
    }
    let most = encoder.size();
    chunks.push(encoder.finish());
    assert!(chunks.last().unwrap().len() <= most);
    chunks
}

fn project(stored: &Stored, columns: Columns) -> Stored {
    let Entry::Reading(r) = stored.entry else { return *stored };
    let entry = Entry::Reading(Reading {
        voltage: r.voltage.filter(|_| columns.has(Columns::VOLTAGE)),
        current: r.current.filter(|_| columns.has(Columns::CURRENT)),
        counter: r.counter.filter(|_| columns.has(Columns::COUNTER)),
        ..r
    });
    Stored { entry, ..*stored }
}

/// What the summary of these entries must be, by the plainest way.
fn summed(entries: &[Stored], clock: Clock) -> Summary {
    let readings: Vec<_> =
        entries.iter().filter_map(|s| if let Entry::Reading(r) = s.entry { Some(r) } else { None }).collect();
    let powers: Vec<_> = readings.iter().map(|r| r.power).collect();
    let counters: Vec<_> = readings.iter().filter_map(|r| r.counter).collect();
    let (mut held_ms, mut work) = (0, 0_u64);
    for pair in entries.windows(2) {
        if let Entry::Reading(r) = pair[0].entry {
            let elapsed = u64::try_from(pair[1].entry.time().since(r.time)).unwrap();
            let held = elapsed.min(3 * u64::from(pair[0].interval_ms));
            held_ms += held;
            work = work.saturating_add(held * u64::from(r.power.get()));
        }
    }
    Summary {
        first: entries[0].entry.time(),
        last: entries[entries.len() - 1].entry.time(),
        readings: readings.len() as u32,
        gaps: (entries.len() - readings.len()) as u32,
        power: powers.iter().min().map(|min| PowerSummary {
            min: *min,
            max: *powers.iter().max().unwrap(),
            sum: powers.iter().map(|p| u64::from(p.get())).sum(),
        }),
        counter: counters.first().map(|first| CounterSummary {
            first: *first,
            last: *counters.last().unwrap(),
            falls: counters.windows(2).filter(|pair| pair[1] < pair[0]).count() as u32,
        }),
        held_ms,
        work,
        clock,
    }
}

fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn decode_undoes_push_and_no_chunk_is_too_long(entries in any_entries()) {
        let chunks = seal(&entries);
        let (mut at, mut clock) = (0, Clock::Trusted);
        for chunk in &chunks {
            prop_assert!(chunk.len() <= MAX_BYTES);
            let decoded = decode(chunk, Columns::ALL).unwrap();
            let expected = &entries[at..at + decoded.len()];
            prop_assert_eq!(&decoded, expected);
            prop_assert_eq!(summary(chunk).unwrap(), summed(expected, clock));
            for columns in [Columns::POWER, Columns::VOLTAGE, Columns::CURRENT, Columns::COUNTER.with(Columns::VOLTAGE)] {
                let some: Vec<_> = expected.iter().map(|stored| project(stored, columns)).collect();
                prop_assert_eq!(decode(chunk, columns).unwrap(), some);
            }
            (at, clock) = (at + decoded.len(), Clock::Doubtful);
        }
        prop_assert_eq!(at, entries.len());
    }

    #[test]
    fn any_damaged_bit_is_an_error(entries in any_entries(), at: prop::sample::Index, bit in 0..8_u8) {
        let mut chunk = seal(&entries).remove(0);
        let at = at.index(chunk.len());
        chunk[at] ^= 1 << bit;
        prop_assert!(decode(&chunk, Columns::ALL).is_err());
        prop_assert!(summary(&chunk).is_err());
        prop_assert!(decode(&chunk[..at], Columns::ALL).is_err());
    }

    #[test]
    fn damage_under_a_right_checksum_never_panics(
        entries in any_entries(),
        hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut: prop::sample::Index,
    ) {
        let mut content = seal(&entries).remove(0);
        content.truncate(content.len() - CRC_BYTES);
        for (at, byte) in hits {
            let at = at.index(content.len());
            content[at] = byte;
        }
        let _ = decode(&with_checksum(content[..cut.index(content.len())].to_vec()), Columns::ALL);
        if let Ok(entries) = decode(&with_checksum(content), Columns::ALL) {
            prop_assert!(entries.len() <= limits::CHUNK_ENTRIES);
        }
    }

    #[test]
    fn foreign_bytes_under_a_right_checksum_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        bytes.splice(0..0, [CODEC, HAS_POWER]);
        let bytes = with_checksum(bytes);
        let _ = summary(&bytes);
        let _ = decode(&bytes, Columns::ALL);
    }
}

fn reading(time: i64) -> Reading {
    Reading {
        time: UnixMillis::new(time),
        power: Milliwatts::new(41_237).unwrap(),
        voltage: Some(Millivolts::new(231_423).unwrap()),
        current: Some(Milliamps::new(214).unwrap()),
        counter: Some(MilliwattHours::new(8_123_000).unwrap()),
        relay: Some(Relay::On),
    }
}

const NOW: i64 = 1_795_423_474_120;

fn stored(entry: Entry) -> Stored {
    Stored { entry, interval_ms: 10_000 }
}

fn encoded(entries: impl IntoIterator<Item = Stored>) -> Encoder {
    let mut encoder = Encoder::new(Clock::Trusted);
    entries.into_iter().for_each(|entry| encoder.push(entry).unwrap());
    encoder
}

#[test]
fn an_unchanged_reading_costs_next_to_nothing() {
    // A counter that stands still although power flows is the one surprise of this plug.
    let row = |n: i64| stored(Entry::Reading(reading(NOW + n * 10_000)));
    let streams = |n: i64| encoded((0..n).map(row)).column_sizes().iter().sum::<usize>();
    assert!(streams(1_000) < 200, "{} bytes", streams(1_000));
    let idle = |n: i64| {
        let idle = Reading { power: Milliwatts::ZERO, current: Some(Milliamps::ZERO), ..reading(NOW + n * 10_000) };
        stored(Entry::Reading(idle))
    };
    let streams = |n: i64| encoded((0..n).map(idle)).column_sizes().iter().sum::<usize>();
    assert!(streams(1_000) < 60, "{} bytes", streams(1_000));
}

#[test]
fn what_costs_nothing_still_ends() {
    let mut encoder = Encoder::new(Clock::Trusted);
    let mut pushed = 0;
    let full = loop {
        if let Err(refused) = encoder.push(stored(Entry::Reading(reading(NOW + pushed * 10_000)))) {
            break refused;
        }
        pushed += 1;
    };
    assert!(matches!(full, Refused::Full(_)));
    assert_eq!(usize::try_from(pushed).unwrap(), limits::CHUNK_ENTRIES);
    assert_eq!(decode(&encoder.finish(), Columns::ALL).unwrap().len(), limits::CHUNK_ENTRIES);
}

#[test]
fn time_must_pass_between_entries() {
    let first = stored(Entry::Reading(reading(NOW)));
    let mut encoder = encoded([first]);
    for time in [NOW, NOW - 1] {
        let late = stored(Entry::Gap { time: UnixMillis::new(time) });
        assert_eq!(encoder.push(late), Err(Refused::NotLater(late)));
    }
    assert_eq!(decode(&encoder.finish(), Columns::ALL).unwrap(), [first]);
}

#[test]
fn nothing_is_no_chunk() {
    assert!(Encoder::new(Clock::Trusted).is_empty());
    assert_eq!(decode(&Encoder::new(Clock::Trusted).finish(), Columns::ALL), Err(BadChunk::Value));
    assert_eq!(decode(&[], Columns::ALL), Err(BadChunk::Length));
    assert_eq!(summary(&vec![0; MAX_BYTES + 1]), Err(BadChunk::Length));
    assert_eq!(summary(&with_checksum(vec![CODEC + 1])), Err(BadChunk::Length));
    assert_eq!(summary(&with_checksum(vec![CODEC + 1, 0])), Err(BadChunk::Codec(CODEC + 1)));
}

#[test]
fn a_gap_and_a_turn_of_the_switch_cost_a_few_bytes() {
    let row = |n: i64| {
        let relay = if n / 100 % 2 == 0 { Relay::On } else { Relay::Off };
        let time = NOW + n * 10_000;
        if n % 100 == 50 {
            stored(Entry::Gap { time: UnixMillis::new(time) })
        } else {
            stored(Entry::Reading(Reading { relay: Some(relay), ..reading(time) }))
        }
    };
    let [events, ..] = encoded((0..1_000).map(row)).column_sizes();
    assert!(events < 60, "{events} bytes for 10 gaps and 9 turns");
}

/// The bytes themselves, so that no change of the codec goes unseen, nor a machine that computes something else.
#[test]
fn the_format_stays_as_it_is() {
    let mut bits = 1_u32;
    let mut draw = move |below: u32| {
        bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        i64::from((bits >> 8) % below)
    };
    let mut counter = 5_000_000;
    let mut row = |n: i64| {
        let power = if n % 200 < 60 { 90_000 + draw(300) } else { 1_200 + draw(40) };
        counter += if n % 4 == 0 { 1_000 } else { 0 };
        let voltage = 230_000 + draw(300);
        let time = UnixMillis::new(NOW + n * 10_000 + draw(40));
        stored(match n % 97 {
            96 => Entry::Gap { time },
            _ => Entry::Reading(Reading {
                time,
                power: Milliwatts::new(power).unwrap(),
                voltage: Some(Millivolts::new(voltage).unwrap()),
                current: Some(Milliamps::new(power * 1_500 / voltage).unwrap()),
                counter: Some(MilliwattHours::new(counter).unwrap()),
                relay: Some(if n % 150 < 75 { Relay::On } else { Relay::Off }),
            }),
        })
    };
    let chunk = encoded((0..600).map(&mut row)).finish();
    assert_eq!((chunk.len(), crc32fast::hash(&chunk)), (1_812, 558_161_692));
}
