//! The plugs that can be simulated, and what tells them apart on the wire.

use std::fmt;
use std::str::FromStr;

/// A model with its hardware and firmware version, as real ones report themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// HS110(EU) hardware 1.0: floats in W, V, A and kWh.
    Hs110V1,
    /// HS110(EU) hardware 4.0: integers in thousandths.
    Hs110V4,
    /// KP115(EU): integers in thousandths.
    Kp115,
    /// HS300(US) hardware 2.0: a strip of six metered outlets.
    Hs300,
    /// HS103(US): a plug without a meter.
    Hs103,
}

/// How a meter writes its readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeterStyle {
    /// `power`, `voltage`, `current` with six decimals and `total` in kWh with three.
    Floats,
    /// `power_mw`, `voltage_mv`, `current_ma`, `total_wh`.
    Integers,
    /// Integers and `slot_id`.
    IntegersWithSlot,
}

impl Model {
    /// Every model, in the order in which [`super::FleetSpec::mixed`] meets them.
    pub const ALL: [Self; 5] = [Self::Hs110V1, Self::Hs110V4, Self::Kp115, Self::Hs300, Self::Hs103];

    /// The model as the plug writes it, with its region.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hs110V1 | Self::Hs110V4 => "HS110(EU)",
            Self::Kp115 => "KP115(EU)",
            Self::Hs300 => "HS300(US)",
            Self::Hs103 => "HS103(US)",
        }
    }

    /// Hardware version.
    #[must_use]
    pub const fn hardware(self) -> &'static str {
        match self {
            Self::Hs110V1 | Self::Kp115 => "1.0",
            Self::Hs110V4 => "4.0",
            Self::Hs300 => "2.0",
            Self::Hs103 => "2.1",
        }
    }

    /// Firmware version.
    #[must_use]
    pub const fn firmware(self) -> &'static str {
        match self {
            Self::Hs110V1 => "1.2.5 Build 171213 Rel.101523",
            Self::Hs110V4 => "1.0.4 Build 191111 Rel.143903",
            Self::Kp115 => "1.0.16 Build 210205 Rel.163735",
            Self::Hs300 => "1.0.12 Build 220121 Rel.175814",
            Self::Hs103 => "1.1.2 Build 201111 Rel.100218",
        }
    }

    /// The long name in `dev_name`.
    #[must_use]
    pub const fn device_name(self) -> &'static str {
        match self {
            Self::Hs110V1 | Self::Hs110V4 => "Smart Wi-Fi Plug With Energy Monitoring",
            Self::Kp115 => "Smart Wi-Fi Plug Mini",
            Self::Hs300 => "Wi-Fi Smart Power Strip",
            Self::Hs103 => "Smart Wi-Fi Plug Mini",
        }
    }

    /// What the plug can do, as it says in `feature`: `ENE` is the meter.
    #[must_use]
    pub const fn feature(self) -> &'static str {
        if self.meter().is_some() { "TIM:ENE" } else { "TIM" }
    }

    /// How it writes its readings; `None` for a plug that does not measure.
    #[must_use]
    pub const fn meter(self) -> Option<MeterStyle> {
        match self {
            Self::Hs110V1 => Some(MeterStyle::Floats),
            Self::Hs110V4 | Self::Kp115 => Some(MeterStyle::Integers),
            Self::Hs300 => Some(MeterStyle::IntegersWithSlot),
            Self::Hs103 => None,
        }
    }

    /// Outlets with an id of their own: six for a strip, else none.
    #[must_use]
    pub const fn children(self) -> u8 {
        match self {
            Self::Hs300 => 6,
            _ => 0,
        }
    }

    /// Loads that can be connected: one, or one for each outlet of a strip.
    #[must_use]
    pub const fn outlets(self) -> u8 {
        if self.children() == 0 { 1 } else { self.children() }
    }

    /// The name in tables and options, which unlike [`Model::label`] tells hardware versions apart.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hs110V1 => "hs110v1",
            Self::Hs110V4 => "hs110v4",
            Self::Kp115 => "kp115",
            Self::Hs300 => "hs300",
            Self::Hs103 => "hs103",
        }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Model {
    type Err = NotAModel;

    /// A name as [`Model::name`] gives it.
    fn from_str(text: &str) -> Result<Self, NotAModel> {
        Self::ALL.into_iter().find(|model| model.name() == text).ok_or(NotAModel)
    }
}

/// A text that names no model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAModel;

impl fmt::Display for NotAModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such model; there are hs110v1, hs110v4, kp115, hs300 and hs103")
    }
}

impl std::error::Error for NotAModel {}
