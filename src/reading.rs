//! The nouns of this program: who a plug is, what one poll of it said.
//!
//! Owns identity ([`Mac`], [`DeviceId`]), what a plug tells of itself ([`PlugFacts`]) and the [`Reading`]. Promises that
//! texts which came from a plug are bounded and hold no control characters, so that they are safe in logs and replies.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::{Milliamps, Millivolts, MilliwattHours, Milliwatts, UnixMillis};

/// A plug's hardware address: the one name that survives a new IP address, a new alias and new firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac([u8; 6]);

impl Mac {
    /// From its six bytes, most significant first.
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Its six bytes, most significant first.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    /// Lower-case hex without separators: `9c5322aabbcc`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is not an id of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnId;

impl fmt::Display for NotAnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a device id; one looks like 9c5322aabbcc, or 9c5322aabbcc.0 for a strip's first outlet")
    }
}

impl std::error::Error for NotAnId {}

impl FromStr for Mac {
    type Err = NotAnId;

    /// Twelve hex digits, with or without `:` or `-` between the bytes.
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let mut bytes = [0; 6];
        let mut digits = text.chars().filter(|c| !matches!(c, ':' | '-'));
        for byte in &mut bytes {
            let mut digit = || digits.next().and_then(|c| c.to_digit(16)).and_then(|d| u8::try_from(d).ok());
            let (high, low) = (digit().ok_or(NotAnId)?, digit().ok_or(NotAnId)?);
            *byte = high << 4 | low;
        }
        if digits.next().is_some() { Err(NotAnId) } else { Ok(Self(bytes)) }
    }
}

/// One thing that has readings: a plug, or one outlet of a strip. Public form: `9c5322aabbcc` or `9c5322aabbcc.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceId {
    /// The plug or strip.
    pub plug: Mac,
    /// The outlet, from 0, when the plug is a strip.
    pub outlet: Option<u8>,
}

impl DeviceId {
    /// A plug with a single outlet, or a strip as a whole.
    #[must_use]
    pub const fn plug(plug: Mac) -> Self {
        Self { plug, outlet: None }
    }

    /// Outlet `outlet` of a strip, from 0.
    #[must_use]
    pub const fn outlet(plug: Mac, outlet: u8) -> Self {
        Self { plug, outlet: Some(outlet) }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.outlet {
            None => write!(f, "{}", self.plug),
            Some(outlet) => write!(f, "{}.{outlet}", self.plug),
        }
    }
}

impl FromStr for DeviceId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        match text.split_once('.') {
            None => Ok(Self::plug(text.parse()?)),
            Some((plug, outlet)) => Ok(Self::outlet(plug.parse()?, outlet.parse().map_err(|_| NotAnId)?)),
        }
    }
}

/// A text of at most `N` bytes from outside, cut at a character border, control characters replaced by spaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Text<const N: usize>(heapless::String<N>);

impl<const N: usize> Text<N> {
    /// As much of `text` as fits.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut kept = heapless::String::new();
        for c in text.trim().chars() {
            if kept.push(if is_harmless(c) { c } else { ' ' }).is_err() {
                break;
            }
        }
        Self(kept)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether there is no text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// No control characters and none of the marks that reorder what a terminal or a page shows.
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The name that a plug's owner gave it. The vendor's app allows 31 characters.
pub type Alias = Text<64>;
/// A model, hardware or firmware name as the plug writes it.
pub type Label = Text<48>;
/// A strip's own name for one of its outlets, as its requests want it.
pub type ChildId = Text<48>;

/// How a plug is spoken to: its payload dialect and what carries it.
///
/// Stored by number: new ones are added at the end, and none is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// IOT JSON over the XOR cipher, port 9999.
    IotXor,
    /// IOT JSON inside KLAP, over HTTP.
    IotKlap,
    /// SMART JSON inside KLAP, over HTTP.
    SmartKlap,
    /// SMART JSON inside TPAP, over HTTP.
    SmartTpap,
    /// SMART JSON inside the AES passthrough, over HTTP.
    SmartAes,
}

impl Protocol {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::IotXor, Self::IotKlap, Self::SmartKlap, Self::SmartTpap, Self::SmartAes];

    /// The name in replies and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::IotXor => "iot-xor",
            Self::IotKlap => "iot-klap",
            Self::SmartKlap => "smart-klap",
            Self::SmartTpap => "smart-tpap",
            Self::SmartAes => "smart-aes",
        }
    }

    /// Whether the payload is SMART JSON; else it is IOT JSON.
    #[must_use]
    pub const fn is_smart(self) -> bool {
        matches!(self, Self::SmartKlap | Self::SmartTpap | Self::SmartAes)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Whether an outlet is switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relay {
    /// No current flows.
    Off,
    /// The load is connected.
    On,
}

/// One outlet of a strip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutletFacts {
    /// The owner's name for it.
    pub alias: Alias,
    /// The strip's name for it.
    pub child: ChildId,
}

/// The most outlets a strip may have. The largest sold has eight.
pub const MAX_OUTLETS: usize = 16;

/// What a plug says of itself; changes rarely.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlugFacts {
    /// Its identity.
    pub mac: Mac,
    /// The owner's name for it; empty when it has none.
    pub alias: Alias,
    /// Model with region, for example `HS110(EU)`.
    pub model: Label,
    /// Hardware version.
    pub hardware: Label,
    /// Firmware version.
    pub firmware: Label,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Whether it measures power.
    pub has_meter: bool,
    /// A strip's outlets in order, at most [`MAX_OUTLETS`]; empty for a plug with a single outlet.
    pub outlets: Vec<OutletFacts>,
}

impl PlugFacts {
    /// What to call one of this plug's devices: an outlet's own alias, else the plug's, else the model.
    #[must_use]
    pub fn name_of(&self, id: DeviceId) -> &str {
        let outlet = id.outlet.and_then(|n| self.outlets.get(usize::from(n))).map(|outlet| outlet.alias.as_str());
        let names = [outlet.unwrap_or_default(), self.alias.as_str()];
        names.into_iter().find(|name| !name.is_empty()).unwrap_or(self.model.as_str())
    }

    /// The ids under which this plug's readings are recorded: itself, or each outlet of a strip. None without a meter.
    pub fn metered_ids(&self) -> impl Iterator<Item = DeviceId> + '_ {
        let single = (self.has_meter && self.outlets.is_empty()).then(|| DeviceId::plug(self.mac));
        let outlets = self.outlets.iter().enumerate().filter(|_| self.has_meter);
        let outlets = outlets.filter_map(|(n, _)| u8::try_from(n).ok().map(|n| DeviceId::outlet(self.mac, n)));
        single.into_iter().chain(outlets)
    }
}

/// What one poll said about one outlet. Absent is `None`, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// When the answer arrived.
    pub time: UnixMillis,
    /// Active power.
    pub power: Milliwatts,
    /// Mains voltage.
    pub voltage: Option<Millivolts>,
    /// Current.
    pub current: Option<Milliamps>,
    /// The plug's own energy counter. It falls to zero when the plug restarts or is reset.
    pub counter: Option<MilliwattHours>,
    /// The switch.
    pub relay: Option<Relay>,
}

/// One entry of a device's stream, in order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// What a poll brought.
    Reading(Reading),
    /// Observation ended: polls failed or the agent was off, from this time until the next reading.
    Gap {
        /// From when.
        time: UnixMillis,
    },
}

impl Entry {
    /// When.
    #[must_use]
    pub const fn time(&self) -> UnixMillis {
        match self {
            Self::Reading(reading) => reading.time,
            Self::Gap { time } => *time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_in_every_form_plugs_write_them_and_written_in_one() {
        for text in ["9C:53:22:AA:BB:CC", "9c-53-22-aa-bb-cc", "9c5322aabbcc", "9C5322AABBCC"] {
            assert_eq!(text.parse::<Mac>().unwrap().to_string(), "9c5322aabbcc");
        }
        for text in ["", "9c5322aabbc", "9c5322aabbccd", "9c5322aabbcg", "kettle"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        let outlet: DeviceId = "9c5322aabbcc.3".parse().unwrap();
        assert_eq!((outlet.outlet, outlet.to_string().as_str()), (Some(3), "9c5322aabbcc.3"));
        assert!("9c5322aabbcc.".parse::<DeviceId>().is_err());
        assert!("9c5322aabbcc.256".parse::<DeviceId>().is_err());
    }

    #[test]
    fn protocols_are_stored_under_the_numbers_they_always_had() {
        for (number, protocol) in (0..).zip(Protocol::ALL) {
            assert_eq!(postcard::to_allocvec(&protocol).unwrap(), [number]);
            assert_eq!(postcard::from_bytes(&[number]), Ok(protocol));
        }
        let names: std::collections::BTreeSet<_> = Protocol::ALL.map(Protocol::name).into();
        assert_eq!(names.len(), Protocol::ALL.len());
    }

    #[test]
    fn texts_from_plugs_are_cut_at_a_character_and_lose_their_control_characters() {
        assert_eq!(Text::<8>::new("  fridge\n\u{1b}[31m").as_str(), "fridge  ");
        assert_eq!(Text::<5>::new("ääää").as_str(), "ää");
        assert_eq!(Text::<9>::new("a\u{202e}b").as_str(), "a b");
    }
}
