//! The columns of readings, buckets and summaries, and lists of them as clients choose them. Pure.

use crate::nearest::nearest;
use crate::store::chunk::Columns;

/// A column of some kind of row.
pub trait Column: Copy + PartialEq + 'static {
    /// The name in requests, replies and header lines.
    fn name(self) -> &'static str {
        self.tell().name
    }

    /// What there is to know of it.
    fn tell(self) -> Told;
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A moment.
    Time,
    /// A text.
    Text,
    /// A decimal number, not negative.
    Number,
    /// A whole number, not negative.
    Count,
    /// True or false.
    Truth,
    /// A list of words.
    Words,
}

/// A column as it is described to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Whether it may be absent.
    pub optional: bool,
    /// What it means, in one line.
    pub about: &'static str,
}

impl Told {
    const fn always(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self { name, kind, optional: false, about }
    }

    const fn maybe(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self { name, kind, optional: true, about }
    }
}

/// What there is to know of each of `columns`.
#[must_use]
pub fn tell(columns: &[impl Column]) -> Vec<Told> {
    columns.iter().map(|column| column.tell()).collect()
}

/// A column of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// When the reading was taken.
    Time,
    /// The id it is recorded under.
    Device,
    /// The name people know the device by.
    Alias,
    /// Power, W.
    Power,
    /// Voltage, V.
    Voltage,
    /// Current, A.
    Current,
    /// The plug's own counter, Wh.
    Counter,
    /// The switch.
    Relay,
    /// Our monotone total, Wh.
    Total,
    /// Milliseconds since the reading was taken.
    Age,
    /// Whether the value is live.
    Online,
}

impl Field {
    /// The columns of a stored reading, in their usual order.
    pub const OF_READINGS: &'static [Self] =
        &[Self::Time, Self::Device, Self::Power, Self::Voltage, Self::Current, Self::Counter, Self::Relay];
    /// The columns of a device's newest reading, in their usual order.
    pub const OF_LATEST: &'static [Self] = &[
        Self::Time,
        Self::Device,
        Self::Alias,
        Self::Power,
        Self::Voltage,
        Self::Current,
        Self::Counter,
        Self::Relay,
        Self::Total,
        Self::Age,
        Self::Online,
    ];

    /// The stored columns that `fields` need.
    #[must_use]
    pub fn stored_columns(fields: &[Self]) -> Columns {
        let column = |field: &Self| match field {
            Self::Voltage => Columns::VOLTAGE,
            Self::Current => Columns::CURRENT,
            Self::Counter => Columns::COUNTER,
            _ => Columns::POWER,
        };
        fields.iter().map(column).fold(Columns::POWER, Columns::with)
    }
}

impl Column for Field {
    fn tell(self) -> Told {
        match self {
            Self::Time => Told::always("time", Kind::Time, "when the reading was taken"),
            Self::Device => Told::always("device", Kind::Text, "the id that it is recorded under"),
            Self::Alias => Told::always("alias", Kind::Text, "the name that people know the device by"),
            Self::Power => Told::always("power_w", Kind::Number, "power, W"),
            Self::Voltage => Told::maybe("voltage_v", Kind::Number, "voltage, V"),
            Self::Current => Told::maybe("current_a", Kind::Number, "current, A"),
            Self::Counter => Told::maybe("counter_wh", Kind::Number, "the plug's own counter, Wh"),
            Self::Relay => Told::maybe("relay", Kind::Truth, "whether the switch is on"),
            Self::Total => {
                Told::maybe("total_wh", Kind::Number, "all energy since the device was first seen, Wh; never falls")
            }
            Self::Age => Told::maybe("age_ms", Kind::Count, "how long ago the reading was taken"),
            Self::Online => Told::maybe("online", Kind::Truth, "whether the value is live"),
        }
    }
}

/// A column of a bucket, or of a device's summary, which is one bucket and what is known of the device now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketField {
    /// Its first moment.
    Start,
    /// The first moment after it.
    End,
    /// The id it is recorded under.
    Device,
    /// The name people know the device by.
    Alias,
    /// Energy, Wh.
    Energy,
    /// The time-weighted mean of the power, W.
    PowerMean,
    /// The smallest power, W.
    PowerMin,
    /// The largest power, W.
    PowerMax,
    /// Seconds for which the relay was known to be on.
    On,
    /// Seconds for which a reading was held.
    Observed,
    /// Readings taken.
    Readings,
    /// What else is to be known.
    Flags,
    /// What the energy cost.
    Cost,
    /// Our monotone total, Wh.
    Total,
    /// When the device's newest reading was taken.
    LastSeen,
    /// Whether that reading is live.
    Online,
}

impl BucketField {
    /// The columns of a bucket, in their usual order.
    pub const OF_ROLLUPS: &'static [Self] = &[
        Self::Start,
        Self::End,
        Self::Device,
        Self::Energy,
        Self::PowerMean,
        Self::PowerMin,
        Self::PowerMax,
        Self::On,
        Self::Observed,
        Self::Readings,
        Self::Flags,
        Self::Cost,
    ];
    /// The columns of a summary, in their usual order.
    pub const OF_SUMMARY: &'static [Self] = &[
        Self::Device,
        Self::Alias,
        Self::Start,
        Self::End,
        Self::Energy,
        Self::PowerMean,
        Self::PowerMin,
        Self::PowerMax,
        Self::On,
        Self::Observed,
        Self::Readings,
        Self::Flags,
        Self::Cost,
        Self::Total,
        Self::LastSeen,
        Self::Online,
    ];
}

impl Column for BucketField {
    fn tell(self) -> Told {
        match self {
            Self::Start => Told::always("start", Kind::Time, "the first moment"),
            Self::End => Told::always("end", Kind::Time, "the first moment after the last"),
            Self::Device => Told::always("device", Kind::Text, "the id that it is recorded under"),
            Self::Alias => Told::always("alias", Kind::Text, "the name that people know the device by"),
            Self::Energy => Told::maybe("energy_wh", Kind::Number, "energy, Wh"),
            Self::PowerMean => Told::maybe("power_mean_w", Kind::Number, "time-weighted mean of the power, W"),
            Self::PowerMin => Told::maybe("power_min_w", Kind::Number, "least power, W"),
            Self::PowerMax => Told::maybe("power_max_w", Kind::Number, "greatest power, W"),
            Self::On => Told::maybe("on_s", Kind::Number, "seconds for which the switch was known to be on"),
            Self::Observed => Told::always("observed_s", Kind::Number, "seconds for which a reading was held"),
            Self::Readings => Told::always("readings", Kind::Count, "readings taken"),
            Self::Flags => Told::always("flags", Kind::Words, "what else is to be known"),
            Self::Cost => Told::maybe("cost", Kind::Number, "what the energy cost"),
            Self::Total => {
                Told::maybe("total_wh", Kind::Number, "all energy since the device was first seen, Wh; never falls")
            }
            Self::LastSeen => Told::maybe("last_seen", Kind::Time, "when the newest reading was taken"),
            Self::Online => Told::always("online", Kind::Truth, "whether that reading is live"),
        }
    }
}

/// A column of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventField {
    /// When it happened; of a gap, when it ended.
    Time,
    /// To whom; nobody for what concerns the agent as a whole.
    Device,
    /// What happened, in a word.
    Event,
    /// When it began, for what has a length.
    Since,
    /// What was before.
    From,
    /// What is now.
    To,
}

impl EventField {
    /// Every column, in their usual order.
    pub const ALL: &'static [Self] = &[Self::Time, Self::Device, Self::Event, Self::Since, Self::From, Self::To];
}

impl Column for EventField {
    fn tell(self) -> Told {
        match self {
            Self::Time => Told::always("time", Kind::Time, "when it happened; of a gap, when it ended"),
            Self::Device => Told::maybe("device", Kind::Text, "to whom; null for what concerns the agent as a whole"),
            Self::Event => Told::always(
                "event",
                Kind::Text,
                "relay, counter_restart, gap, offline, online, clock_step, firmware, protocol, renamed, agent_start or agent_stop",
            ),
            Self::Since => Told::maybe("since", Kind::Time, "when a gap began"),
            Self::From => Told::maybe("from", Kind::Text, "what was before; of counters, Wh"),
            Self::To => Told::maybe("to", Kind::Text, "what is now; of counters, Wh"),
        }
    }
}

/// Why a list of columns is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadFields {
    /// A name that is no column here, and the column it may have been meant to be.
    Unknown {
        /// The name that came.
        name: String,
        /// The nearest column.
        nearest: Option<&'static str>,
    },
    /// A column named twice.
    Twice(&'static str),
    /// No column at all.
    Empty,
}

/// The columns that `text` lists, comma between them, in that order.
///
/// # Errors
/// [`BadFields`] for a name that `known` has not, for one that comes twice, and for an empty list.
pub fn parse<C: Column>(text: &str, known: &'static [C]) -> Result<Vec<C>, BadFields> {
    let mut fields = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let Some(field) = known.iter().copied().find(|field| field.name() == name) else {
            let nearest = nearest(name, known.iter().map(|field| field.name()));
            return Err(BadFields::Unknown { name: name.to_owned(), nearest });
        };
        if fields.contains(&field) {
            return Err(BadFields::Twice(field.name()));
        }
        fields.push(field);
    }
    if fields.is_empty() { Err(BadFields::Empty) } else { Ok(fields) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_in_the_order_they_are_asked_for() {
        assert_eq!(parse("power_w, time", Field::OF_READINGS), Ok(vec![Field::Power, Field::Time]));
    }

    #[test]
    fn what_is_no_column_is_named_with_the_nearest() {
        let unknown = |name: &str, nearest| Err(BadFields::Unknown { name: name.to_owned(), nearest });
        assert_eq!(parse("time,power", Field::OF_READINGS), unknown("power", Some("power_w")));
        assert_eq!(parse("age_ms", Field::OF_READINGS), unknown("age_ms", None));
        assert_eq!(parse("time;drop table", Field::OF_READINGS), unknown("time;drop table", None));
        assert_eq!(parse("time,time", Field::OF_READINGS), Err(BadFields::Twice("time")));
        assert_eq!(parse(" , ", Field::OF_READINGS), Err(BadFields::Empty));
    }
}
