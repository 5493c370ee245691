//! Many small maps in place of a large one: each grows by itself, so that no insertion ever moves more than some hundred entries.

use std::borrow::Borrow;
use std::hash::Hash;

use crate::sys::hash::HashMap;

/// A power of two. Some ten microseconds is what it takes to grow one of them where there are a million entries.
const MAPS: usize = 1 << 12;

/// What tells the maps apart: any part of a key that mostly differs, and costs nothing to compute.
pub(super) trait Spread {
    fn spread(&self) -> u64;
}

impl Spread for u64 {
    fn spread(&self) -> u64 {
        *self
    }
}

/// A map, see the module's documentation.
#[derive(Debug)]
pub(super) struct Names<K, V>(Vec<HashMap<K, V>>);

impl<K, V> Default for Names<K, V> {
    fn default() -> Self {
        Self((0..MAPS).map(|_| HashMap::default()).collect())
    }
}

/// Fibonacci hashing: the highest bits depend on all.
fn map_of(key: &(impl Spread + ?Sized)) -> usize {
    let highest = key.spread().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - MAPS.trailing_zeros());
    usize::try_from(highest).expect("fewer than MAPS")
}

impl<K: Hash + Eq + Spread, V> Names<K, V> {
    pub(super) fn get<Q: Hash + Eq + Spread + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0[map_of(key)].get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.0[map_of(&key)].insert(key, value);
    }

    pub(super) fn remove<Q: Hash + Eq + Spread + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.0[map_of(key)].remove(key);
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().flatten()
    }
}
