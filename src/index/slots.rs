//! Where each name stands: many small tables in place of a large one, so that no insertion ever moves more than about a hundred. They hold
//! slots alone; the names are with the entries.

use std::hash::BuildHasher;

use super::{Entries, NONE, Slot};
use crate::sys::hash::State;
use crate::types::RelPath;

/// A power of two. Some microseconds is what it takes to grow one of them where there are a million entries.
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
    places: Box<[Slot]>,
    used: usize,
}

impl Default for Slots {
    fn default() -> Self {
        Self { hasher: State::default(), tables: vec![Table::default(); TABLES] }
    }
}

/// The highest bits tell the table, the lowest the place.
fn table_of(hash: u64) -> usize {
    usize::try_from(hash >> (u64::BITS - TABLE_BITS)).expect("fewer than TABLES")
}

impl Table {
    /// Where the search for this hash begins, and what leads on from a place.
    fn place(&self, hash: u64) -> usize {
        usize::try_from(hash & (self.places.len() as u64 - 1)).expect("less than the length")
    }

    fn next(&self, place: usize) -> usize {
        (place + 1) & (self.places.len() - 1)
    }

    fn put(&mut self, hash: u64, slot: Slot) {
        let mut place = self.place(hash);
        while self.places[place] != NONE {
            place = self.next(place);
        }
        self.places[place] = slot;
    }

    fn insert(&mut self, slot: Slot, hash_of: impl Fn(Slot) -> u64) {
        // No fuller than three quarters.
        if (self.used + 1) * 4 > self.places.len() * 3 {
            self.grow(&hash_of);
        }
        self.used += 1;
        self.put(hash_of(slot), slot);
    }

    fn grow(&mut self, hash_of: impl Fn(Slot) -> u64) {
        let places = vec![NONE; (self.places.len() * 2).max(PLACES_MIN)].into();
        for slot in std::mem::replace(&mut self.places, places) {
            if slot != NONE {
                self.put(hash_of(slot), slot);
            }
        }
    }

    /// Where the slot of a name is.
    fn find(&self, hash: u64, path: &str, entries: &Entries) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let mut place = self.place(hash);
        while self.places[place] != NONE {
            if entries[self.places[place]].path.as_str() == path {
                return Some(place);
            }
            place = self.next(place);
        }
        None
    }

    /// Empties a place; what was put behind it for want of it is moved up.
    fn empty(&mut self, mut hole: usize, hash_of: impl Fn(Slot) -> u64) {
        let mut place = self.next(hole);
        while self.places[place] != NONE {
            let home = self.place(hash_of(self.places[place]));
            // Whether its home is not between the hole and it, going round.
            let behind = place.wrapping_sub(home) & (self.places.len() - 1);
            if behind >= place.wrapping_sub(hole) & (self.places.len() - 1) {
                self.places[hole] = self.places[place];
                hole = place;
            }
            place = self.next(place);
        }
        self.places[hole] = NONE;
        self.used -= 1;
    }
}

impl Slots {
    pub(super) fn get(&self, path: &str, entries: &Entries) -> Option<Slot> {
        let hash = self.hasher.hash_one(path);
        let table = &self.tables[table_of(hash)];
        table.find(hash, path, entries).map(|place| table.places[place])
    }

    /// Adds the slot of a name that is in its entry, and was not here.
    pub(super) fn insert(&mut self, slot: Slot, entries: &Entries) {
        let hash_of = |slot: Slot| self.hasher.hash_one(entries[slot].path.as_str());
        self.tables[table_of(hash_of(slot))].insert(slot, hash_of);
    }

    /// Removes a name; the entries are all still there.
    pub(super) fn remove(&mut self, path: &RelPath, entries: &Entries) {
        let hash_of = |slot: Slot| self.hasher.hash_one(entries[slot].path.as_str());
        let hash = self.hasher.hash_one(path.as_str());
        let table = &mut self.tables[table_of(hash)];
        if let Some(place) = table.find(hash, path.as_str(), entries) {
            table.empty(place, hash_of);
        }
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = Slot> {
        self.tables.iter().flat_map(|table| table.places.iter().copied()).filter(|slot| *slot != NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Entry;
    use super::*;
    use crate::index::Version;
    use proptest::prelude::*;

    fn entry(name: u16) -> Entry {
        let path = RelPath::new(&name.to_string()).unwrap();
        Entry { path, now: Version::ABSENT, changed: 0, newer: NONE, older: NONE, file: None, turn: 0 }
    }

    proptest! {
        /// With names that are nearly all in the same places.
        #[test]
        fn names_are_found_until_they_are_removed(changes in prop::collection::vec((0..200_u16, any::<bool>()), 0..500)) {
            let mut entries = Entries::default();
            let mut there = std::collections::BTreeMap::new();
            for name in 0..200 {
                entries.push(entry(name));
            }
            let mut table = Table::default();
            // Few different hashes, so that they collide and go round.
            let hash_of = |slot: Slot| u64::from(slot % 7) * 5;
            for (name, adds) in changes {
                let (slot, path) = (Slot::from(name), name.to_string());
                let found = table.find(hash_of(slot), &path, &entries);
                prop_assert_eq!(found.map(|place| table.places[place]), there.get(&name).copied());
                match (adds, found) {
                    (true, None) => {
                        table.insert(slot, hash_of);
                        there.insert(name, slot);
                    }
                    (false, Some(place)) => {
                        table.empty(place, hash_of);
                        there.remove(&name);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.used, there.len());
                for (name, slot) in &there {
                    prop_assert!(table.find(hash_of(*slot), &name.to_string(), &entries).is_some());
                }
            }
        }
    }
}
