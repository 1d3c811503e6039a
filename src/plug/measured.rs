//! What a meter said, in either dialect.

use crate::units::{Milliamps, Millivolts, MilliwattHours, Milliwatts, OutOfRange};

/// What a meter said of one outlet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Active power. None when the plug claims one that no outlet can have.
    pub power: Option<Milliwatts>,
    /// Mains voltage.
    pub voltage: Option<Millivolts>,
    /// Current.
    pub current: Option<Milliamps>,
    /// Energy since the plug's counter was last at zero.
    pub counter: Option<MilliwattHours>,
    /// What was claimed and cannot be; the field for it is None.
    pub implausible: Vec<OutOfRange>,
}

impl Measured {
    /// From decimals of W, V, A and Wh: what is beyond belief is set apart.
    #[must_use]
    pub fn new(watts: f64, volts: Option<f64>, amps: Option<f64>, watt_hours: Option<f64>) -> Self {
        let mut implausible = Vec::new();
        Self {
            power: believed(Milliwatts::from_base(watts), &mut implausible),
            voltage: volts.and_then(|volts| believed(Millivolts::from_base(volts), &mut implausible)),
            current: amps.and_then(|amps| believed(Milliamps::from_base(amps), &mut implausible)),
            counter: watt_hours.and_then(|energy| believed(MilliwattHours::from_base(energy), &mut implausible)),
            implausible,
        }
    }
}

fn believed<T>(value: Result<T, OutOfRange>, implausible: &mut Vec<OutOfRange>) -> Option<T> {
    value.map_err(|value| implausible.push(value)).ok()
}
