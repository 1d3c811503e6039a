use super::*;

const NOW: i64 = 1_795_423_474_120; // 2026-11-23T08:44:34.120Z
const QUARTER: i64 = 900_000;

fn frame<'a>(name: &'a str, zone: &'a TimeZone, place: Place) -> Frame<'a> {
    let end = UnixMillis::new(NOW - NOW % 3_600_000 + 3_600_000);
    let span = Period { start: end.plus(-24 * 3_600_000), end };
    Frame { name, span, step: Step::Hour, zone, currency: Currency::parse("EUR"), place, id: "a" }
}

fn levels(frame: &Frame<'_>, quarters: impl Iterator<Item = i64>) -> Vec<Level> {
    let level = |n: i64| {
        let start = frame.span.start.plus(n * QUARTER);
        let mean = 40_000 + u64::try_from(n).unwrap() * 100;
        let band = Some((Thousandths(mean - 5_000), Thousandths(mean + 5_000)));
        Level { period: Period { start, end: start.plus(QUARTER) }, mean: Thousandths(mean), band }
    };
    quarters.map(level).collect()
}

#[test]
fn a_gap_in_the_readings_is_a_gap_in_the_line() {
    let zone = TimeZone::get("Europe/Berlin").unwrap();
    let frame = frame("fridge", &zone, Place::File);
    let whole = frame.power(&levels(&frame, 0..96));
    let broken = frame.power(&levels(&frame, (0..40).chain(50..96)));
    let count = |svg: &str, what: &str| svg.matches(what).count();
    assert_eq!((count(&whole, "class=\"l\""), count(&whole, "class=\"n\"")), (1, 1));
    assert_eq!((count(&broken, "class=\"l\""), count(&broken, "class=\"n\"")), (2, 2));
    assert_eq!(whole, frame.power(&levels(&frame, 0..96)), "the same rows, the same bytes");
    let expected =
        "22 Nov 2026 10:00 to 23 Nov 2026 10:00 (Europe/Berlin): mean 44.8 W, least 35.0 W, greatest 54.5 W.";
    assert!(whole.contains(expected), "{whole}");
    assert!(frame.power(&[]).contains("nothing recorded"));
}

#[test]
fn a_hostile_name_is_only_a_name() {
    let zone = TimeZone::UTC;
    let frame = frame("</text><script>alert(1)</script>\" onload='x\u{0}&", &zone, Place::File);
    for svg in [frame.power(&levels(&frame, 0..4)), frame.energy(&[])] {
        assert!(!svg.contains("<script") && !svg.contains("onload='"), "{svg}");
        assert!(svg.contains("&lt;/text&gt;&lt;script&gt;"), "{svg}");
        assert!(!svg.contains('\u{0}'));
    }
}

#[test]
fn bars_say_when_how_much_and_what_it_cost() {
    let zone = TimeZone::get("Europe/Berlin").unwrap();
    let frame = frame("fridge", &zone, Place::Page);
    let start = frame.span.start;
    let price = crate::tariff::Amount::parse("0.3").unwrap();
    let energy = crate::units::MilliwattHours::new(250_000).unwrap();
    let bar = Bar {
        period: Period { start, end: start.plus(3_600_000) },
        energy: Thousandths(energy.get()),
        cost: Some(price.of(energy)),
    };
    let svg = frame.energy(&[bar]);
    assert!(svg.contains("<title>Sun 22 Nov 10:00: 0.250 kWh, 0.08 EUR</title>"), "{svg}");
    assert!(svg.contains(&format!("data-v=\"[[{},{},250000,0.075]]\"", start.get(), start.get() + 3_600_000)), "{svg}");
    assert!(svg.contains("0.250 kWh, 0.08 EUR in all, most Sun 22 Nov 10:00 with 0.250 kWh."), "{svg}");
}

#[test]
fn numbers_are_rounded_as_people_read_them() {
    let power = |mw| watts(Thousandths(mw));
    assert_eq!([power(0), power(1_237), power(41_237), power(1_966_770)], ["0.00 W", "1.24 W", "41.2 W", "1967 W"]);
    let energy = |mwh| kilowatt_hours(Thousandths(mwh));
    assert_eq!([energy(42_499), energy(12_345_600), energy(1_234_000_000)], ["0.042 kWh", "12.35 kWh", "1234.0 kWh"]);
}
