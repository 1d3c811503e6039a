//! The plugs that can be simulated, and what tells them apart on the wire.

use std::fmt;
use std::str::FromStr;

use crate::reading::Protocol;

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
    /// P110(EU) of firmware 1.3: everything that a SMART meter says.
    P110,
    /// P110(EU) of firmware 1.0: the first version of energy monitoring, which knows `get_energy_usage` alone.
    P110V1,
    /// KP125M(US): a Kasa plug of the SMART dialect.
    Kp125m,
    /// P304M(UK): a strip of four, whose outlets say neither voltage nor energy since the start, and power in whole watts.
    P304m,
    /// P316M(US): a strip of six, whose outlets say everything and which answers for itself as well.
    P316m,
    /// P100(EU): a SMART plug without a meter, which closes after each reply and takes no batches.
    P100,
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
    /// The SMART dialect's methods.
    Smart,
}

impl Model {
    /// Every model of the IOT dialect, in the order in which [`super::FleetSpec::mixed`] meets them.
    pub const IOT: [Self; 5] = [Self::Hs110V1, Self::Hs110V4, Self::Kp115, Self::Hs300, Self::Hs103];

    /// Every model of the SMART dialect.
    pub const SMART: [Self; 6] = [Self::P110, Self::P110V1, Self::Kp125m, Self::P304m, Self::P316m, Self::P100];

    /// Whether it speaks the SMART dialect.
    #[must_use]
    pub const fn is_smart(self) -> bool {
        matches!(self, Self::P110 | Self::P110V1 | Self::Kp125m | Self::P304m | Self::P316m | Self::P100)
    }

    /// What it speaks as it left the factory.
    #[must_use]
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::P110V1 => Protocol::SmartAes,
            _ if self.is_smart() => Protocol::SmartKlap,
            _ => Protocol::IotXor,
        }
    }

    /// The model as the plug writes it, with its region.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hs110V1 | Self::Hs110V4 => "HS110(EU)",
            Self::Kp115 => "KP115(EU)",
            Self::Hs300 => "HS300(US)",
            Self::Hs103 => "HS103(US)",
            Self::P110 | Self::P110V1 => "P110(EU)",
            Self::Kp125m => "KP125M(US)",
            Self::P304m => "P304M(UK)",
            Self::P316m => "P316M(US)",
            Self::P100 => "P100(EU)",
        }
    }

    /// Hardware version.
    #[must_use]
    pub const fn hardware(self) -> &'static str {
        match self {
            Self::Hs110V1
            | Self::Kp115
            | Self::P110
            | Self::P110V1
            | Self::Kp125m
            | Self::P304m
            | Self::P316m
            | Self::P100 => "1.0",
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
            Self::P110 => "1.3.1 Build 240621 Rel.162048",
            Self::P110V1 => "1.0.7 Build 211009 Rel.151238",
            Self::Kp125m => "1.2.3 Build 240624 Rel.154806",
            Self::P304m => "1.0.3 Build 240516 Rel.104251",
            Self::P316m => "1.0.5 Build 240801 Rel.153011",
            Self::P100 => "1.4.9 Build 221021 Rel.143712",
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
            Self::P110 | Self::P110V1 | Self::Kp125m | Self::P100 => "Mini Smart Wi-Fi Socket",
            Self::P304m | Self::P316m => "Smart Wi-Fi Power Strip",
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
            Self::P110 | Self::P110V1 | Self::Kp125m | Self::P304m | Self::P316m => Some(MeterStyle::Smart),
            Self::Hs103 | Self::P100 => None,
        }
    }

    /// Outlets with an id of their own: four or six for a strip, else none.
    #[must_use]
    pub const fn children(self) -> u8 {
        match self {
            Self::Hs300 | Self::P316m => 6,
            Self::P304m => 4,
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
            Self::P110 => "p110",
            Self::P110V1 => "p110v1",
            Self::Kp125m => "kp125m",
            Self::P304m => "p304m",
            Self::P316m => "p316m",
            Self::P100 => "p100",
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
        Self::IOT.into_iter().chain(Self::SMART).find(|model| model.name() == text).ok_or(NotAModel)
    }
}

/// A text that names no model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAModel;

impl fmt::Display for NotAModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such model; there are")?;
        Model::IOT.into_iter().chain(Model::SMART).try_for_each(|model| write!(f, " {}", model.name()))
    }
}

impl std::error::Error for NotAModel {}
