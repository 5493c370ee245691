//! Where each name stands: many small tables in place of a large one, so that no insertion ever moves more than about a hundred. The names
//! are with the entries.

use std::hash::BuildHasher;

use super::{Entries, NONE, Slot};
use crate::sys::hash::State;

/// A power of two.
const TABLES: usize = 1 << TABLE_BITS;
const TABLE_BITS: u32 = 14;

/// Of a table that is not empty; a power of two.
const PLACES_MIN: usize = 4;

/// See the module's documentation. A slot is in the first free place from where its name's hash says, in its table, which has room.
#[derive(Debug)]
pub(super) struct Slots {
    hasher: State,
    tables: Vec<Table>,
}

#[derive(Clone, Debug, Default)]
struct Table {
    places: Box<[Place]>,
    used: usize,
}

/// A slot, and the lowest bits of its name's hash: so that few names are looked at, and none when a table grows.
#[derive(Clone, Copy, Debug)]
struct Place {
    slot: Slot,
    hash: u32,
}

const FREE: Place = Place { slot: NONE, hash: 0 };

impl Default for Slots {
    fn default() -> Self {
        Self { hasher: State::default(), tables: vec![Table::default(); TABLES] }
    }
}

impl Place {
    fn is_free(self) -> bool {
        self.slot == NONE
    }
}

impl Table {
    /// Where the search for this hash begins, and what leads on from a place.
    fn place(&self, hash: u32) -> usize {
        hash as usize & (self.places.len() - 1)
    }

    fn next(&self, place: usize) -> usize {
        (place + 1) & (self.places.len() - 1)
    }

    fn put(&mut self, new: Place) {
        let mut place = self.place(new.hash);
        while !self.places[place].is_free() {
            place = self.next(place);
        }
        self.places[place] = new;
    }

    fn insert(&mut self, new: Place) {
        // No fuller than three quarters.
        if (self.used + 1) * 4 > self.places.len() * 3 {
            let places = vec![FREE; (self.places.len() * 2).max(PLACES_MIN)].into();
            for place in std::mem::replace(&mut self.places, places) {
                if !place.is_free() {
                    self.put(place);
                }
            }
        }
        self.used += 1;
        self.put(new);
    }

    /// Where the slot of a name is that `is` the one.
    fn find(&self, hash: u32, is: impl Fn(Slot) -> bool) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let mut place = self.place(hash);
        while !self.places[place].is_free() {
            let Place { slot, hash: its } = self.places[place];
            if its == hash && is(slot) {
                return Some(place);
            }
            place = self.next(place);
        }
        None
    }

    /// Empties a place; what was put behind it for want of it is moved up.
    fn empty(&mut self, mut hole: usize) {
        let around = self.places.len() - 1;
        let mut place = self.next(hole);
        while !self.places[place].is_free() {
            let home = self.place(self.places[place].hash);
            // Whether its home is not between the hole and it, going round.
            if place.wrapping_sub(home) & around >= place.wrapping_sub(hole) & around {
                self.places[hole] = self.places[place];
                hole = place;
            }
            place = self.next(place);
        }
        self.places[hole] = FREE;
        self.used -= 1;
    }
}

impl Slots {
    /// Which table a name is in, by the highest bits of its hash, and the lowest.
    fn hash(&self, path: &str) -> (usize, u32) {
        let hash = self.hasher.hash_one(path);
        let table = usize::try_from(hash >> (u64::BITS - TABLE_BITS)).expect("fewer than TABLES");
        (table, u32::try_from(hash & u64::from(u32::MAX)).expect("the lowest 32 bits"))
    }

    pub(super) fn get(&self, path: &str, entries: &Entries) -> Option<Slot> {
        let (table, hash) = self.hash(path);
        let table = &self.tables[table];
        table.find(hash, |slot| entries[slot].path.as_str() == path).map(|place| table.places[place].slot)
    }

    /// Adds the slot of a name that is in its entry, and was not here.
    pub(super) fn insert(&mut self, slot: Slot, entries: &Entries) {
        let (table, hash) = self.hash(entries[slot].path.as_str());
        self.tables[table].insert(Place { slot, hash });
    }

    /// Removes a slot, whose entry still has its name.
    pub(super) fn remove(&mut self, slot: Slot, entries: &Entries) {
        let (table, hash) = self.hash(entries[slot].path.as_str());
        let table = &mut self.tables[table];
        if let Some(place) = table.find(hash, |other| other == slot) {
            table.empty(place);
        }
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = Slot> {
        self.tables
            .iter()
            .flat_map(|table| table.places.iter())
            .filter(|place| !place.is_free())
            .map(|place| place.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_slot_is_found_until_it_is_removed(changes in prop::collection::vec((0..200_u32, any::<bool>()), 0..500)) {
            let mut there = std::collections::BTreeSet::new();
            let mut table = Table::default();
            // Few different hashes, so that they collide and go round.
            let hash = |slot: Slot| slot % 7 * 5;
            for (slot, adds) in changes {
                let found = table.find(hash(slot), |other| other == slot);
                prop_assert_eq!(found.is_some(), there.contains(&slot));
                match (adds, found) {
                    (true, None) => {
                        table.insert(Place { slot, hash: hash(slot) });
                        there.insert(slot);
                    }
                    (false, Some(place)) => {
                        table.empty(place);
                        there.remove(&slot);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.used, there.len());
                for slot in &there {
                    prop_assert!(table.find(hash(*slot), |other| other == *slot).is_some());
                }
            }
        }
    }
}
