//! Rows of readings, buckets and summaries as bytes, the one place for it: JSON objects and CSV lines, written straight into a buffer.
//!
//! Promises exact decimals, `null` (JSON) or an empty cell (CSV) for what is absent, and CSV after RFC 4180. Aliases are
//! the only cells that a stranger could write (a plug's owner does); they are always in quotes and otherwise exact. A
//! spreadsheet may still take one that begins with `=` for a formula: the data stays what it is, import it as text.

use std::time::Duration;

use crate::http::plain::Plain;
use crate::query::field::{BucketField, Column, EventField, Field};
use crate::query::latest::Latest;
use crate::query::{history, rollups, summary};
use crate::reading::{DeviceId, Reading, Relay};
use crate::rollup::{Bucket, Flags};
use crate::store::What;
use crate::units::{Thousandths, UnixMillis};

/// How times are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeForm {
    /// `2026-11-23T08:44:34.120Z`.
    Rfc3339,
    /// Unix milliseconds.
    Millis,
}

/// How a row is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A JSON object, without a line end.
    Object,
    /// A JSON object and a line end.
    Line,
    /// Cells and a CR LF.
    Cells,
}

/// A row to write.
#[derive(Clone, Copy, Debug)]
pub struct RowView<'a> {
    /// The id it is recorded under.
    pub id: DeviceId,
    /// What was read.
    pub reading: &'a Reading,
    /// What is known of it besides, for the newest reading of a device.
    pub latest: Option<&'a Latest>,
}

/// A row with columns of the kind `C`.
pub trait Cells<C> {
    /// Writes one column's value.
    fn write(&self, column: C, cell: &mut Cell<'_>);
}

/// Writes rows of chosen columns in one shape.
#[derive(Clone, Debug)]
pub struct RowWriter<C = Field> {
    /// The columns, in order.
    pub fields: Vec<C>,
    /// How times are written.
    pub time: TimeForm,
    /// How a row is written.
    pub shape: Shape,
}

impl<C: Column> RowWriter<C> {
    /// What comes before the first row: the beginning of the object with the list `name`, the line of names of a CSV, or
    /// nothing.
    #[must_use]
    pub fn open(&self, name: &str) -> Vec<u8> {
        let mut out = Vec::new();
        if self.shape == Shape::Object {
            out.extend_from_slice(b"{\"");
            name.put(&mut out);
            out.extend_from_slice(b"\":[");
        }
        self.write_head(&mut out);
        out
    }

    /// The line of names of a CSV, else nothing.
    pub fn write_head(&self, out: &mut Vec<u8>) {
        if self.shape == Shape::Cells {
            for (n, field) in self.fields.iter().enumerate() {
                if n > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(field.name().as_bytes());
            }
            out.extend(b"\r\n");
        }
    }

    /// One row.
    pub fn write_row(&self, out: &mut Vec<u8>, row: impl Cells<C>) {
        let cells = self.shape == Shape::Cells;
        if !cells {
            out.push(b'{');
        }
        for (n, field) in self.fields.iter().enumerate() {
            if n > 0 {
                out.push(b',');
            }
            if !cells {
                out.push(b'"');
                out.extend_from_slice(field.name().as_bytes());
                out.extend_from_slice(b"\":");
            }
            row.write(*field, &mut Cell { out, time: self.time, shape: self.shape });
        }
        out.extend(match self.shape {
            Shape::Object => b"}".as_slice(),
            Shape::Line => b"}\n",
            Shape::Cells => b"\r\n",
        });
    }
}

impl Cells<Field> for RowView<'_> {
    fn write(&self, field: Field, cell: &mut Cell<'_>) {
        let (reading, latest) = (self.reading, self.latest);
        match field {
            Field::Time => cell.time(reading.time),
            Field::Device => cell.word(self.id),
            Field::Alias => cell.text(latest.map_or("", |latest| &latest.alias)),
            Field::Power => cell.number(reading.power.decimal()),
            Field::Voltage => cell.number_or_null(reading.voltage.map(|value| value.decimal())),
            Field::Current => cell.number_or_null(reading.current.map(|value| value.decimal())),
            Field::Counter => cell.number_or_null(reading.counter.map(|value| value.decimal())),
            Field::Relay => cell.number_or_null(reading.relay.map(|relay| relay == Relay::On)),
            Field::Total => {
                cell.number_or_null(latest.and_then(|latest| latest.total).map(|total| total.decimal()));
            }
            Field::Age => cell.number_or_null(latest.map(|latest| latest.age.as_millis())),
            Field::Online => cell.number_or_null(latest.map(|latest| latest.online)),
        }
    }
}

impl Cells<BucketField> for &rollups::Row {
    fn write(&self, field: BucketField, cell: &mut Cell<'_>) {
        match field {
            BucketField::Start => cell.time(self.period.start),
            BucketField::End => cell.time(self.period.end),
            BucketField::Device => cell.word(self.device),
            BucketField::Cost => cell.number_or_null(self.cost),
            other => write_bucket(Some(&self.bucket), other, cell),
        }
    }
}

impl Cells<BucketField> for &summary::Summary {
    fn write(&self, field: BucketField, cell: &mut Cell<'_>) {
        let latest = self.who.latest.as_ref();
        match field {
            BucketField::Start => cell.time(self.window.start),
            BucketField::End => cell.time(self.window.end),
            BucketField::Device => cell.word(self.who.id),
            BucketField::Alias => cell.text(&self.who.alias),
            BucketField::Cost => cell.number_or_null(self.cost),
            BucketField::Total => {
                cell.number_or_null(latest.and_then(|latest| latest.total).map(|total| total.decimal()));
            }
            BucketField::LastSeen => match latest {
                Some(latest) => cell.time(latest.reading.time),
                None => cell.null(),
            },
            BucketField::Online => cell.number(latest.is_some_and(|latest| latest.online)),
            other => write_bucket(self.bucket.as_ref(), other, cell),
        }
    }
}

impl Cells<EventField> for &history::Row {
    fn write(&self, field: EventField, cell: &mut Cell<'_>) {
        let what = &self.event.what;
        match field {
            EventField::Time => cell.time(self.event.time),
            EventField::Device => match self.device {
                Some(device) => cell.word(device),
                None => cell.null(),
            },
            EventField::Event => cell.word(what.name()),
            EventField::Since => match what {
                What::Gap { since } => cell.time(*since),
                _ => cell.null(),
            },
            EventField::From => match what {
                What::Relay { to } => cell.word(if *to == Relay::On { "off" } else { "on" }),
                What::CounterRestart { from, .. } => cell.word(from.decimal()),
                What::ClockStep { from } => cell.time_word(*from),
                What::Firmware { from, .. } | What::Protocol { from, .. } => cell.text(from.as_str()),
                What::Renamed { from, .. } => cell.text(from.as_str()),
                _ => cell.null(),
            },
            EventField::To => match what {
                What::Relay { to } => cell.word(if *to == Relay::On { "on" } else { "off" }),
                What::CounterRestart { to, .. } => cell.word(to.decimal()),
                What::ClockStep { .. } => cell.time_word(self.event.time),
                What::Firmware { to, .. } | What::Protocol { to, .. } => cell.text(to.as_str()),
                What::Renamed { to, .. } => cell.text(to.as_str()),
                What::AgentStart { version } => cell.text(version.as_str()),
                _ => cell.null(),
            },
        }
    }
}

/// A column of a bucket; of none, when nothing was recorded.
fn write_bucket(bucket: Option<&Bucket>, field: BucketField, cell: &mut Cell<'_>) {
    let range = bucket.and_then(|bucket| bucket.range);
    match field {
        BucketField::Energy => cell.number_or_null(bucket.map(|bucket| bucket.energy.decimal())),
        BucketField::PowerMean => cell.number_or_null(bucket.and_then(Bucket::mean).map(|mean| mean.decimal())),
        BucketField::PowerMin => cell.number_or_null(range.map(|range| range.min.decimal())),
        BucketField::PowerMax => cell.number_or_null(range.map(|range| range.max.decimal())),
        BucketField::On => cell.number_or_null(bucket.and_then(|bucket| bucket.on).map(seconds)),
        BucketField::Observed => {
            cell.number(seconds(bucket.map_or(Duration::ZERO, |bucket| bucket.observed)));
        }
        BucketField::Readings => cell.number(bucket.map_or(0, |bucket| bucket.readings)),
        BucketField::Flags => cell.words(bucket.map_or(Flags::NONE, |bucket| bucket.flags).names()),
        // The rest is not a bucket's.
        _ => cell.null(),
    }
}

fn seconds(time: Duration) -> Thousandths {
    Thousandths(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// The place for one value.
pub struct Cell<'a> {
    out: &'a mut Vec<u8>,
    time: TimeForm,
    shape: Shape,
}

impl Cell<'_> {
    /// Where the value stands among all bytes.
    pub(super) fn position(&self) -> usize {
        self.out.len()
    }

    fn time(&mut self, time: UnixMillis) {
        match self.time {
            TimeForm::Millis => self.number(time.get()),
            TimeForm::Rfc3339 => self.word(time),
        }
    }

    /// A time in a column of texts.
    fn time_word(&mut self, time: UnixMillis) {
        match self.time {
            TimeForm::Millis => self.word(time.get()),
            TimeForm::Rfc3339 => self.word(time),
        }
    }

    /// A number, `true` or `false`.
    fn number(&mut self, value: impl Plain) {
        value.put(self.out);
    }

    fn null(&mut self) {
        if self.shape != Shape::Cells {
            self.out.extend(b"null");
        }
    }

    fn number_or_null(&mut self, value: Option<impl Plain>) {
        match value {
            Some(value) => self.number(value),
            None => self.null(),
        }
    }

    /// A text of ours that needs no escaping: quoted in JSON, bare in CSV.
    fn word(&mut self, word: impl Plain) {
        let quote = self.shape != Shape::Cells;
        if quote {
            self.out.push(b'"');
        }
        word.put(self.out);
        if quote {
            self.out.push(b'"');
        }
    }

    /// Several of them: a list in JSON, with spaces between them in CSV.
    fn words(&mut self, words: impl Iterator<Item = &'static str>) {
        let cells = self.shape == Shape::Cells;
        if !cells {
            self.out.push(b'[');
        }
        for (n, word) in words.enumerate() {
            if n > 0 {
                self.out.push(if cells { b' ' } else { b',' });
            }
            self.word(word);
        }
        if !cells {
            self.out.push(b']');
        }
    }

    /// A text from outside.
    fn text(&mut self, text: &str) {
        if self.shape == Shape::Cells {
            self.out.push(b'"');
            text.replace('"', "\"\"").as_str().put(self.out);
            self.out.push(b'"');
        } else {
            let _ = serde_json::to_writer(&mut *self.out, text); // a Vec takes everything, and every str is JSON
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::latest::Since;
    use crate::reading::Mac;
    use crate::units::{Milliamps, Millivolts, MilliwattHours, Milliwatts};

    const ID: DeviceId = DeviceId::outlet(Mac::new([0x9c, 0x53, 0x22, 0xaa, 0xbb, 0xcc]), 0);

    fn reading() -> Reading {
        Reading {
            time: UnixMillis::new(1_795_423_474_120),
            power: Milliwatts::new(41_237).unwrap(),
            voltage: Some(Millivolts::new(231_400).unwrap()),
            current: Some(Milliamps::new(214).unwrap()),
            counter: Some(MilliwattHours::new(8_123_000).unwrap()),
            relay: Some(Relay::On),
        }
    }

    fn written(fields: &[Field], time: TimeForm, shape: Shape, reading: &Reading, latest: Option<&Latest>) -> String {
        let writer = RowWriter { fields: fields.to_vec(), time, shape };
        let mut out = Vec::new();
        writer.write_head(&mut out);
        writer.write_row(&mut out, RowView { id: ID, reading, latest });
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_row_is_the_contracts_example() {
        assert_eq!(
            written(Field::OF_READINGS, TimeForm::Rfc3339, Shape::Object, &reading(), None),
            r#"{"time":"2026-11-23T08:44:34.120Z","device":"9c5322aabbcc.0","power_w":41.237,"voltage_v":231.4,"current_a":0.214,"counter_wh":8123,"relay":true}"#
        );
        assert_eq!(
            written(Field::OF_READINGS, TimeForm::Millis, Shape::Cells, &reading(), None),
            "time,device,power_w,voltage_v,current_a,counter_wh,relay\r\n1795423474120,9c5322aabbcc.0,41.237,231.4,0.214,8123,true\r\n"
        );
    }

    #[test]
    fn what_is_absent_is_null_or_an_empty_cell() {
        let bare = Reading { voltage: None, current: None, counter: None, relay: None, ..reading() };
        let fields = [Field::Voltage, Field::Relay, Field::Counter];
        assert_eq!(
            written(&fields, TimeForm::Millis, Shape::Line, &bare, None),
            "{\"voltage_v\":null,\"relay\":null,\"counter_wh\":null}\n"
        );
        assert_eq!(
            written(&fields, TimeForm::Millis, Shape::Cells, &bare, None),
            "voltage_v,relay,counter_wh\r\n,,\r\n"
        );
    }

    #[test]
    fn aliases_are_escaped_for_where_they_stand() {
        let alias = "=1+1, \"<b>\"".to_owned();
        let latest = Latest {
            id: ID,
            alias,
            reading: reading(),
            total: None,
            since: Since::Elapsed(Duration::ZERO),
            age: Duration::from_millis(7),
            online: false,
            live_for: Duration::ZERO,
        };
        let fields = [Field::Alias, Field::Total, Field::Age, Field::Online];
        assert_eq!(
            written(&fields, TimeForm::Millis, Shape::Object, &reading(), Some(&latest)),
            r#"{"alias":"=1+1, \"<b>\"","total_wh":null,"age_ms":7,"online":false}"#
        );
        assert_eq!(
            written(&fields, TimeForm::Millis, Shape::Cells, &reading(), Some(&latest)),
            "alias,total_wh,age_ms,online\r\n\"=1+1, \"\"<b>\"\"\",,7,false\r\n"
        );
    }
}
