//! Whom a text means: ids and aliases of every plug and outlet known, in this run or an earlier one.
//!
//! An alias works wherever an id does while it is unique: as it is written first, else without regard to case.

use std::collections::BTreeSet;

use crate::nearest::nearest_few;
use crate::poll::fleet::Fleet;
use crate::reading::{DeviceId, Mac};
use crate::store::Store;

/// Near names that an error lists.
const NEAR: usize = 3;

/// Everyone known at one moment.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Ids that have readings or could have them.
    metered: BTreeSet<DeviceId>,
    /// Every id that may be asked for, plugs without a meter included.
    ids: BTreeSet<DeviceId>,
    /// Each name people use and whom it means; a strip by its plug's id.
    aliases: Vec<(String, DeviceId)>,
}

/// Why a text means nobody in particular.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameError {
    /// Nobody has this id or alias; these are near it.
    Unknown {
        /// Ids and aliases, the nearest first.
        near: Vec<String>,
    },
    /// Several have this alias.
    Ambiguous {
        /// Their ids.
        ids: Vec<DeviceId>,
    },
}

impl Names {
    /// Everyone in the fleet and in the store.
    #[must_use]
    pub fn of(fleet: &Fleet, store: &Store) -> Self {
        let mut names = Self::default();
        for device in store.devices() {
            let id = device.record.id;
            names.ids.insert(id);
            // A plug's own record stands in the store even when only its outlets are metered.
            let metered = match &device.record.plug {
                Some(plug) if id.outlet.is_none() => plug.facts.metered_ids().any(|metered| metered == id),
                _ => true,
            };
            if metered || store.latest(id).is_some() {
                names.metered.insert(id);
            }
        }
        for plug in fleet.plugs() {
            let id = DeviceId::plug(plug.facts.mac);
            names.ids.insert(id);
            names.metered.extend(plug.facts.metered_ids());
            names.name(plug.display_name(), id);
            names.name(plug.facts.alias.as_str(), id);
            for (n, outlet) in (0..).zip(&plug.facts.outlets) {
                let id = DeviceId::outlet(plug.facts.mac, n);
                names.ids.insert(id);
                names.name(outlet.alias.as_str(), id);
            }
        }
        names
    }

    fn name(&mut self, alias: &str, id: DeviceId) {
        if !alias.is_empty() {
            self.aliases.push((alias.to_owned(), id));
        }
    }

    /// Every id that has readings or could have them, in order.
    pub fn metered(&self) -> impl Iterator<Item = DeviceId> + '_ {
        self.metered.iter().copied()
    }

    /// Whom `text` means: a plug, a strip as a whole, or one outlet.
    ///
    /// # Errors
    /// [`NameError`] with what to write instead.
    pub fn find(&self, text: &str) -> Result<DeviceId, NameError> {
        if let Some(id) = text.parse().ok().filter(|id| self.ids.contains(id)) {
            return Ok(id);
        }
        let lower = text.to_lowercase();
        let exact = self.called(|alias| alias == text);
        let found = if exact.is_empty() { self.called(|alias| alias.to_lowercase() == lower) } else { exact };
        let mut ids = found.into_iter();
        match (ids.next(), ids.len()) {
            (Some(id), 0) => Ok(id),
            (Some(first), _) => Err(NameError::Ambiguous { ids: std::iter::once(first).chain(ids).collect() }),
            (None, _) => Err(NameError::Unknown { near: self.near(text) }),
        }
    }

    /// The ids under which the readings of `id` are recorded: a strip's outlets, else itself.
    #[must_use]
    pub fn recorded_under(&self, id: DeviceId) -> Vec<DeviceId> {
        if id.outlet.is_some() { vec![id] } else { self.of_plug(id.plug).collect() }
    }

    fn of_plug(&self, plug: Mac) -> impl Iterator<Item = DeviceId> + '_ {
        self.metered.range(DeviceId::plug(plug)..=DeviceId::outlet(plug, u8::MAX)).copied()
    }

    fn called(&self, is_meant: impl Fn(&str) -> bool) -> BTreeSet<DeviceId> {
        self.aliases.iter().filter(|(alias, _)| is_meant(alias)).map(|(_, id)| *id).collect()
    }

    fn near(&self, text: &str) -> Vec<String> {
        let ids: Vec<String> = self.ids.iter().map(ToString::to_string).collect();
        let known = self.aliases.iter().map(|(alias, _)| alias.as_str()).chain(ids.iter().map(String::as_str));
        nearest_few(text, known, NEAR).into_iter().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(aliases: &[(&str, DeviceId)]) -> Names {
        let ids: BTreeSet<DeviceId> = aliases.iter().map(|(_, id)| *id).collect();
        let aliases = aliases.iter().map(|(alias, id)| ((*alias).to_owned(), *id)).collect();
        Names { metered: ids.clone(), ids, aliases }
    }

    const A: DeviceId = DeviceId::plug(Mac::new([0xaa; 6]));
    const B: DeviceId = DeviceId::plug(Mac::new([0xbb; 6]));
    const C0: DeviceId = DeviceId::outlet(Mac::new([0xcc; 6]), 0);
    const C1: DeviceId = DeviceId::outlet(Mac::new([0xcc; 6]), 1);

    #[test]
    fn an_alias_is_taken_as_written_then_without_case_and_only_while_unique() {
        let names = names(&[("Fridge", A), ("fridge", B), ("Kettle", C0), ("Lamp", A), ("Lamp", B)]);
        assert_eq!(names.find("Fridge"), Ok(A));
        assert_eq!(names.find("fridge"), Ok(B));
        assert_eq!(names.find("FRIDGE"), Err(NameError::Ambiguous { ids: vec![A, B] }));
        assert_eq!(names.find("kettle"), Ok(C0));
        assert_eq!(names.find("Lamp"), Err(NameError::Ambiguous { ids: vec![A, B] }));
        assert_eq!(names.find("AA-AA-AA-AA-AA-AA"), Ok(A));
        assert_eq!(names.find("Ketle"), Err(NameError::Unknown { near: vec!["Kettle".to_owned()] }));
        assert_eq!(names.find("ddeeff001122"), Err(NameError::Unknown { near: vec![] }));
    }

    #[test]
    fn a_strip_means_its_outlets() {
        let strip = DeviceId::plug(C0.plug);
        let names = names(&[("Left", C0), ("Right", C1), ("Fridge", A)]);
        assert_eq!(names.recorded_under(strip), [C0, C1]);
        assert_eq!(names.recorded_under(C1), [C1]);
        assert_eq!(names.recorded_under(A), [A]);
        assert_eq!(names.recorded_under(B), []);
    }
}
