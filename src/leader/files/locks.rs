//! Who changes a file.

use crate::sys::sync::{Mutex, MutexGuard};
use crate::types::RelPath;

/// Locks by name, for what must not overlap on one file: reading its new content and announcing it, or writing to it and
/// announcing that; and for another name or a smaller length, which must not come between those two. Taken before all locks of
/// the stream; joining followers never take one.
pub(in crate::leader) struct FileLocks([Mutex<()>; 64]);

impl Default for FileLocks {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(())))
    }
}

impl FileLocks {
    pub(in crate::leader) fn of(&self, path: &RelPath) -> &Mutex<()> {
        &self.0[self.at(path)]
    }

    /// Locks both; in one order, whoever locks which.
    pub(in crate::leader) fn both(
        &self,
        one: &RelPath,
        other: &RelPath,
    ) -> (MutexGuard<'_, ()>, Option<MutexGuard<'_, ()>>) {
        let (one, other) = (self.at(one), self.at(other));
        let first = self.0[one.min(other)].lock();
        (first, (one != other).then(|| self.0[one.max(other)].lock()))
    }

    fn at(&self, path: &RelPath) -> usize {
        use std::hash::BuildHasher;
        let hash = foldhash::fast::FixedState::default().hash_one(path);
        usize::try_from(hash % self.0.len() as u64).expect("less than the number of locks")
    }
}
