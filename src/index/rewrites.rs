//! What was written in place, for those who join meanwhile: a file keeps its generation then, and its length.
//!
//! A joiner is sent what a file held when it was read. What is written in place after that has to be sent again, and no more than that of a file that may be large: so
//! parts of files are noted with the number of their last change, and told from a position on, like everything else. Nobody needs that while nobody joins, and
//! then nothing is noted but when each file was last written to in place.
//!
//! Bounded: beyond [`PARTS_MAX`] the part that was changed longest ago is forgotten, and of files that were written to in place by then it is not
//! known any more which parts. Ordered maps throughout: no step takes longer than some hundred nanoseconds, however many there are.

use std::collections::{BTreeMap, BTreeSet};

use super::Index;

/// Parts are noted so large, or so: small ones, or a page here and there would cost the joiner many times what was written, and rounds that never end; large ones for what is larger.
const SMALL_BYTES: u64 = 4 << 10;
const LARGE_BYTES: u64 = 256 << 10;

/// Parts that are noted at most: 2 GiB of small ones, in some 60 MiB of memory.
const PARTS_MAX: usize = 1 << 19;

/// Of more parts at once it is only noted that it was the file: such a change is of most of it, and nobody is to wait for all of them to be noted.
const PARTS_AT_ONCE_MAX: u64 = 65;

/// A part that was changed: the number of its last change, the file's generation, and which part: where it begins, and one more if it is a large one.
pub(crate) type Part = (u64, u64, u64);

/// Where a part is: offset and length in bytes.
pub(crate) fn range_of(part: u64) -> (u64, u64) {
    if part.is_multiple_of(2) { (part, SMALL_BYTES) } else { (part - 1, LARGE_BYTES) }
}

/// The parts that some bytes, not none, are in; `None`: too many.
fn parts_of(offset: u64, len: u64) -> Option<impl Iterator<Item = u64>> {
    let (bytes, large) = if len <= LARGE_BYTES { (SMALL_BYTES, 0) } else { (LARGE_BYTES, 1) };
    let (first, last) = (offset / bytes, (offset + len - 1) / bytes);
    (last - first < PARTS_AT_ONCE_MAX).then(|| (first..=last).map(move |number| number * bytes + large))
}

#[derive(Debug, Default)]
pub(super) struct Rewrites {
    /// The number of the last such change of a file, by generation.
    last: BTreeMap<u64, u64>,
    parts: BTreeSet<Part>,
    /// When each of them was changed.
    changes: BTreeMap<(u64, u64), u64>,
    /// Files of which too many parts were changed at once, and when that was last.
    whole: BTreeMap<u64, u64>,
    complete_since: u64,
    joining: usize,
}

/// What nobody needs any more; dropped where no lock is held.
#[derive(Debug)]
pub(crate) struct Forgotten {
    _parts: BTreeSet<Part>,
    _changes: BTreeMap<(u64, u64), u64>,
    _whole: BTreeMap<u64, u64>,
}

impl Rewrites {
    pub(super) fn note(&mut self, generation: u64, offset: u64, len: u64, change: u64) {
        self.last.insert(generation, change);
        if self.joining == 0 || len == 0 {
            return;
        }
        let Some(parts) = parts_of(offset, len) else {
            self.whole.insert(generation, change);
            return;
        };
        for part in parts {
            if let Some(before) = self.changes.insert((generation, part), change) {
                self.parts.remove(&(before, generation, part));
            }
            self.parts.insert((change, generation, part));
        }
        while self.parts.len() > PARTS_MAX
            && let Some((change, generation, part)) = self.parts.pop_first()
        {
            self.changes.remove(&(generation, part));
            self.complete_since = change;
        }
    }

    /// When a generation was last written to in place; 0: never.
    pub(super) fn last(&self, generation: u64) -> u64 {
        self.last.get(&generation).copied().unwrap_or(0)
    }

    /// The file is no more.
    pub(super) fn forget(&mut self, generation: u64) {
        self.last.remove(&generation);
    }

    pub(super) fn set_last(&mut self, generation: u64, change: u64) {
        if change > 0 {
            self.last.insert(generation, change);
        }
    }
}

impl Index {
    /// Somebody joins: what is written in place from now on is told by part. `position`: the present one.
    pub(crate) fn begin_join(&mut self, position: u64) {
        let rewrites = &mut self.rewrites;
        if rewrites.joining == 0 {
            rewrites.complete_since = position;
        }
        rewrites.joining += 1;
    }

    /// Somebody has joined.
    pub(crate) fn end_join(&mut self) -> Option<Forgotten> {
        let rewrites = &mut self.rewrites;
        rewrites.joining -= 1;
        (rewrites.joining == 0).then(|| Forgotten {
            _parts: std::mem::take(&mut rewrites.parts),
            _changes: std::mem::take(&mut rewrites.changes),
            _whole: std::mem::take(&mut rewrites.whole),
        })
    }

    /// The parts that were changed after the number `since`, at most so many; ascending. To be asked again from the last of them on, until there are none.
    pub(crate) fn rewritten(&self, since: Part, most: usize) -> Vec<Part> {
        let after = (std::ops::Bound::Excluded(since), std::ops::Bound::Unbounded);
        self.rewrites.parts.range(after).take(most).copied().collect()
    }

    /// Files of which not all parts are known that were changed after a number, as far as the `parts` before are known; else all that were ever written to in place. In the order of their
    /// generations, from one on: at most so many, each with the number of its last such change.
    pub(crate) fn rewritten_files(&self, from: u64, parts: bool, most: usize) -> Vec<(u64, u64)> {
        let files = if parts { &self.rewrites.whole } else { &self.rewrites.last };
        files.range(from..).take(most).map(|(generation, change)| (*generation, *change)).collect()
    }

    /// From this position on all parts are known that were changed. To be asked after they were read.
    pub(crate) fn rewritten_complete_since(&self) -> u64 {
        self.rewrites.complete_since
    }

    /// The number of the last change in place of the file of a generation; 0 if there was none.
    pub(crate) fn last_rewrite(&self, generation: u64) -> u64 {
        self.rewrites.last(generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RelPath;

    const ALL: Part = (0, u64::MAX, u64::MAX);

    fn with_file() -> (Index, RelPath, u64) {
        let mut index = Index::new();
        let path = RelPath::new("f").unwrap();
        let version = index.put(&path, 1 << 40, None, 1);
        (index, path, version.generation)
    }

    #[test]
    fn parts_are_told_in_the_order_of_their_last_change_while_somebody_joins() {
        let (mut index, path, generation) = with_file();
        let slot = index.slot(path.as_str()).unwrap();
        index.rewrite(slot, 0, 1, 2);
        assert!(index.rewritten(ALL, 9).is_empty() && index.last_rewrite(generation) == 2);
        index.begin_join(2);
        index.rewrite(slot, SMALL_BYTES - 1, 2, 3);
        index.rewrite(slot, 5 * SMALL_BYTES, SMALL_BYTES, 4);
        index.rewrite(slot, 7, 1, 5);
        let all = [(3, generation, SMALL_BYTES), (4, generation, 5 * SMALL_BYTES), (5, generation, 0)];
        assert_eq!(index.rewritten(ALL, 9), all);
        assert_eq!(index.rewritten(all[0], 1), all[1..2]);
        assert_eq!(index.rewritten((4, u64::MAX, u64::MAX), 9), all[2..]);
        assert_eq!(index.rewritten_complete_since(), 2);
        // Much of it, and nearly all.
        index.rewrite(slot, LARGE_BYTES, LARGE_BYTES + 1, 6);
        let large: Vec<_> = index.rewritten(all[2], 9).into_iter().map(|(.., part)| range_of(part)).collect();
        assert_eq!(large, [(LARGE_BYTES, LARGE_BYTES), (2 * LARGE_BYTES, LARGE_BYTES)]);
        index.rewrite(slot, 0, 66 * LARGE_BYTES, 7);
        assert_eq!((index.rewritten(ALL, 9).len(), index.rewritten_files(0, true, 9)), (5, vec![(generation, 7)]));
        index.begin_join(7);
        assert!(index.end_join().is_none() && index.rewritten(ALL, 9).len() == 5);
        assert!(index.end_join().is_some() && index.rewritten(ALL, 9).is_empty());
    }

    #[test]
    fn it_outlives_a_rename_and_not_the_file() {
        let (mut index, path, generation) = with_file();
        index.rewrite(index.slot(path.as_str()).unwrap(), 0, 1, 2);
        let other = RelPath::new("g").unwrap();
        index.rename(&path, &other, 3);
        assert_eq!(index.last_rewrite(generation), 2);
        index.put(&other, 5, None, 4);
        assert_eq!(index.last_rewrite(generation), 0);
    }

    #[test]
    fn beyond_the_bound_it_is_known_from_when_on_it_is_known() {
        let (mut index, path, _) = with_file();
        let slot = index.slot(path.as_str()).unwrap();
        index.begin_join(1);
        for change in 0..=PARTS_MAX as u64 {
            index.rewrite(slot, change * SMALL_BYTES, 1, change + 2);
        }
        assert_eq!(index.rewritten(ALL, usize::MAX).len(), PARTS_MAX);
        assert_eq!(index.rewritten_complete_since(), 2);
    }
}
