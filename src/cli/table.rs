//! Readings as a table for people.

use serde_json::Value;

use crate::reading::{DeviceId, Reading, Relay};

/// One line per reading under a line of titles.
#[must_use]
pub fn readings<'a>(rows: impl IntoIterator<Item = (DeviceId, &'a str, Reading)>) -> String {
    let mut text = titles();
    for (id, name, reading) in rows {
        let switch = match reading.relay {
            None => "-",
            Some(Relay::Off) => "off",
            Some(Relay::On) => "on",
        };
        text += &line([
            id.to_string(),
            name.to_owned(),
            reading.power.to_string(),
            reading.voltage.map_or_else(dash, |voltage| voltage.to_string()),
            reading.current.map_or_else(dash, |current| current.to_string()),
            reading.counter.map_or_else(dash, |counter| counter.to_string()),
            switch.to_owned(),
        ]);
    }
    text
}

/// The same table from readings as the HTTP API writes them.
#[must_use]
pub fn from_json(readings: &[Value]) -> String {
    let rows = readings.iter().map(|row| {
        let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let number = |key: &str, unit| {
            row.get(key).and_then(Value::as_f64).map_or_else(dash, |number| format!("{number} {unit}"))
        };
        let switch = row.get("relay").and_then(Value::as_bool).map_or("-", |on| if on { "on" } else { "off" });
        line([
            text("device"),
            text("alias"),
            number("power_w", "W"),
            number("voltage_v", "V"),
            number("current_a", "A"),
            number("counter_wh", "Wh"),
            switch.to_owned(),
        ])
    });
    titles() + &rows.collect::<String>()
}

fn titles() -> String {
    line(["ID", "NAME", "POWER", "VOLTAGE", "CURRENT", "COUNTER", "SWITCH"].map(str::to_owned))
}

fn dash() -> String {
    "-".to_owned()
}

fn line([id, name, power, voltage, current, counter, switch]: [String; 7]) -> String {
    format!("{id:<15} {name:<24} {power:>12} {voltage:>10} {current:>9} {counter:>14}  {switch}\n")
}
