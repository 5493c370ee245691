//! Entries in the order of their last change, and who reads along it.
//!
//! A *walk* goes from the newest entry to older ones, in portions, while changes go on. An entry that changes moves to the front: it is behind
//! every walk then, and belongs to the next one, which begins where this one did. So a walk is no exact moment, and need not be: whoever has what it
//! found, and asks again for what changed since it began, lacks nothing.
//!
//! Only who is attached to the stream needs an exact moment: a *cut*, one at a time. From then until its walk is done, what an entry
//! was at the cut is saved at its first change after it, unless nothing of it is wanted.

use super::{Entries, Index, NONE, Slot, Version};
use crate::protocol::extension::Attributes;
use crate::types::RelPath;

/// A file as a walk found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) path: RelPath,
    /// Absent: it went.
    pub(crate) version: Version,
    /// The number of its last change.
    pub(crate) changed: u64,
    /// What was announced of them.
    pub(crate) attributes: Attributes,
}

/// Names a walk under way.
#[derive(Debug)]
pub(crate) struct WalkId(u64);

#[derive(Debug)]
struct Walk {
    id: u64,
    next: Slot,
    since: u64,
    /// With a cut, what is wanted of no more than that.
    cut: Option<Cut>,
}

#[derive(Debug)]
struct Cut {
    /// The position.
    at: u64,
    /// What changed since, as of the cut; in pieces, so that none of it is moved where an append waits.
    saved: Vec<Vec<Found>>,
}

const SAVED_AT_ONCE: usize = 256;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Recency {
    newest: Slot,
    walks: Vec<Walk>,
    last_walk: u64,
    oldest: Slot,
}

impl Default for Recency {
    fn default() -> Self {
        Self { newest: NONE, oldest: NONE, walks: Vec::new(), last_walk: 0 }
    }
}

impl Recency {
    /// Puts the entry, which is nowhere, in front.
    pub(super) fn link(&mut self, entries: &mut Entries, slot: Slot) {
        let older = std::mem::replace(&mut self.newest, slot);
        (entries[slot].newer, entries[slot].older) = (NONE, older);
        match older {
            NONE => self.oldest = slot,
            older => entries[older].newer = slot,
        }
    }

    /// Takes it out.
    pub(super) fn unlink(&mut self, entries: &mut Entries, slot: Slot) {
        let (newer, older) = (entries[slot].newer, entries[slot].older);
        match newer {
            NONE => self.newest = older,
            newer => entries[newer].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => entries[older].newer = newer,
        }
        for walk in self.walks.iter_mut().filter(|walk| walk.next == slot) {
            walk.next = older;
        }
    }

    /// Notes that the entry is about to be changed.
    pub(super) fn touch(&mut self, entries: &mut Entries, slot: Slot, change: u64) {
        let entry = &mut entries[slot];
        debug_assert!(entry.changed <= change, "positions do not go back");
        for walk in &mut self.walks {
            if let Some(cut) = &mut walk.cut
                && (walk.since + 1..=cut.at).contains(&entry.changed)
            {
                let found = Found {
                    path: entry.path.clone(),
                    version: entry.now,
                    changed: entry.changed,
                    // Are told at the end of what is told, and not as of the cut.
                    attributes: Attributes::UNKNOWN,
                };
                match cut.saved.last_mut() {
                    Some(piece) if piece.len() < SAVED_AT_ONCE => piece.push(found),
                    _ => {
                        let mut piece = Vec::with_capacity(SAVED_AT_ONCE);
                        piece.push(found);
                        cut.saved.push(piece);
                    }
                }
            }
        }
        entry.changed = change;
        if self.newest != slot {
            self.unlink(entries, slot);
            self.link(entries, slot);
        }
    }
}

impl Index {
    /// The number of the last change; 0 if there was none.
    pub(crate) fn last_change(&self) -> u64 {
        if self.recency.newest == NONE { 0 } else { self.entries[self.recency.newest].changed }
    }

    /// Begins a walk over what changed after position `since`. `cut`: the position now, of which everything is wanted exactly.
    pub(crate) fn begin_walk(&mut self, since: u64, cut: Option<u64>) -> WalkId {
        let recency = &mut self.recency;
        recency.last_walk += 1;
        let cut = cut.map(|at| Cut { at, saved: Vec::new() });
        recency.walks.push(Walk { id: recency.last_walk, next: recency.newest, since, cut });
        WalkId(recency.last_walk)
    }

    /// Reads up to `most` entries on. `false`: there are no more.
    pub(crate) fn walk(&mut self, id: &WalkId, most: usize, found: &mut Vec<Found>) -> bool {
        let walks = &mut self.recency.walks;
        let walk = walks.iter_mut().find(|walk| walk.id == id.0).expect("it was begun, and has not ended");
        for _ in 0..most {
            if walk.next == NONE || self.entries[walk.next].changed <= walk.since {
                return false;
            }
            let entry = &self.entries[walk.next];
            if walk.cut.as_ref().is_none_or(|cut| entry.changed <= cut.at) {
                found.push(Found {
                    path: entry.path.clone(),
                    version: entry.now,
                    changed: entry.changed,
                    attributes: entry.attributes(),
                });
            }
            walk.next = entry.older;
        }
        true
    }

    /// Ends it. With a cut, returns what else there was at it: each that changed since, and some of them were found as well.
    pub(crate) fn end_walk(&mut self, id: WalkId) -> Vec<Vec<Found>> {
        let walks = &mut self.recency.walks;
        let at = walks.iter().position(|walk| walk.id == id.0).expect("it was begun, and has not ended");
        walks.swap_remove(at).cut.map_or_else(Vec::new, |cut| cut.saved)
    }
}
