//! What is announced: every file's generation and length, and what changed since a position. No locks, no I/O.
//!
//! The index, not the disk, says how long a file is: a length advances in the same critical section that puts the bytes
//! into the stream, so a *cut* of the index is an exact moment of the stream.
//!
//! Everything is told by position. A change *at* a position is the action whose first byte comes next after it: the change's number is that
//! position and one. Of each file the index knows at which its content began (its *generation*), and at which it changed last. Entries
//! are linked in the order of their last change ([`recency`]), so what changed since a position is found without looking at anything else, however many files there are.
//! Files that are gone stay for a while, so that this is said too: a bounded number of them, and the index says from which position on it knows of all ([`Index::complete_since`]).
//!
//! No step grows with the number of files: entries are in chunks, where names stand in many small tables, so nothing is ever moved or hashed anew as a whole.

pub(crate) mod blocks;
pub(crate) mod chunks;
pub(crate) mod hash;
pub(crate) mod items;
mod names;
pub(crate) mod recency;
pub(crate) mod rewrites;
mod slots;

use std::collections::VecDeque;

pub(crate) use self::items::Items;
use self::names::Names;
use self::recency::Recency;
use self::rewrites::Rewrites;
use self::slots::Slots;
use crate::protocol::extension::Attributes;
use crate::types::RelPath;

/// What a file was at a moment: which incarnation of the name, and how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Version {
    /// New whenever the file is replaced, cut short, or deleted and made again: the number of that change; 0 says there is no file.
    pub(crate) generation: u64,
    /// Its announced length in bytes.
    pub(crate) len: u64,
}

impl Version {
    pub(crate) const ABSENT: Self = Self { generation: 0, len: 0 };

    pub(crate) fn exists(self) -> bool {
        self.generation != 0
    }
}

/// Which file on disk: its device and inode.
pub(crate) type FileId = (u64, u64);

/// Where a file stands in the index.
pub(crate) type Slot = u32;

/// No slot.
const NONE: Slot = Slot::MAX;

#[derive(Debug)]
struct Entry {
    path: RelPath,
    now: Version,
    /// The number of its last change.
    changed: u64,
    /// The one that changed next, and the one that changed before it.
    newer: Slot,
    older: Slot,
    /// Which file on disk it is: announced as such, and nothing else was read for it. `None`: that is in doubt.
    file: Option<FileId>,
    /// The turn of its last change: that turn's [`Unsynced`] has its slot.
    turn: u64,
    /// Its attributes as they were announced; not known of a new incarnation. The time is not known of a content that changed since.
    mtime: i64,
    mode: u16,
}

impl Entry {
    fn attributes(&self) -> Attributes {
        Attributes { mode: self.mode, mtime: self.mtime }
    }
}

/// What changed in a *turn*, at the end of which it is made durable here, on this host; see [`Index::take_unsynced`].
#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    /// Those that changed, each once.
    slots: Vec<Slot>,
    /// Files that came or went by these names, so that their folders changed.
    names: Vec<RelPath>,
    /// Something changed that is not named here.
    pub(crate) others: bool,
}

/// Names remembered singly for their folders' sake.
const UNSYNCED_NAMES_MAX: usize = 1024;

impl Unsynced {
    /// How many files changed, those that came or went included.
    pub(crate) fn files(&self) -> usize {
        self.slots.len()
    }

    /// Files that came or went: their folders have changed.
    pub(crate) fn names(&self) -> &[RelPath] {
        &self.names
    }

    fn note_name(&mut self, path: &RelPath) {
        if self.names.last() == Some(path) {
            return;
        }
        if self.names.len() < UNSYNCED_NAMES_MAX {
            self.names.push(path.clone());
        } else {
            self.others = true;
        }
    }
}

/// Entries that are allocated at once.
const CHUNK_ENTRIES: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 9;

/// Entries, in chunks that stay where they are.
#[derive(Debug, Default)]
struct Entries(Vec<Vec<Entry>>);

impl Entries {
    fn len(&self) -> usize {
        self.0.last().map_or(0, |last| (self.0.len() - 1) * CHUNK_ENTRIES + last.len())
    }

    fn push(&mut self, entry: Entry) -> Slot {
        let slot = Slot::try_from(self.len()).ok().filter(|slot| *slot != NONE).expect("fewer files than 2^32");
        match self.0.last_mut() {
            Some(last) if last.len() < CHUNK_ENTRIES => last.push(entry),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK_ENTRIES);
                chunk.push(entry);
                self.0.push(chunk);
            }
        }
        slot
    }
}

impl std::ops::Index<Slot> for Entries {
    type Output = Entry;

    fn index(&self, slot: Slot) -> &Entry {
        &self.0[slot as usize >> CHUNK_BITS][slot as usize % CHUNK_ENTRIES]
    }
}

impl std::ops::IndexMut<Slot> for Entries {
    fn index_mut(&mut self, slot: Slot) -> &mut Entry {
        &mut self.0[slot as usize >> CHUNK_BITS][slot as usize % CHUNK_ENTRIES]
    }
}

/// Files that are gone and still known to have been there.
#[derive(Debug)]
struct Tombstones {
    /// The oldest first: where they stand, and when they went. Some exist again, or went once more since.
    slots: VecDeque<(Slot, u64)>,
    most: usize,
}

/// The most [`Tombstones`], each of the size of a file's entry.
const TOMBSTONES_MAX: usize = 1 << 16;

/// All announced files.
#[derive(Debug)]
pub(crate) struct Index {
    entries: Entries,
    slots: Slots,
    free: Vec<Slot>,
    /// Where the files are now whose generation began under another name.
    renamed: Names<u64, RelPath>,
    recency: Recency,
    rewrites: Rewrites,
    tombstones: Tombstones,
    complete_since: u64,
    unsynced: Unsynced,
    /// Files there are, and bytes in them.
    totals: (u64, u64),
    /// That `unsynced` is of.
    turn: u64,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self {
            entries: Entries::default(),
            slots: Slots::default(),
            free: Vec::new(),
            renamed: Names::default(),
            recency: Recency::default(),
            rewrites: Rewrites::default(),
            tombstones: Tombstones { slots: VecDeque::new(), most: TOMBSTONES_MAX },
            complete_since: 0,
            // Nobody knows what of the files found at the start is durable.
            unsynced: Unsynced { others: true, ..Unsynced::default() },
            totals: (0, 0),
            turn: 1,
        }
    }

    /// From this position on it is known which files went.
    pub(crate) fn complete_since(&self) -> u64 {
        self.complete_since
    }

    /// How many files there are, and how many bytes in them. O(1).
    pub(crate) fn totals(&self) -> (u64, u64) {
        self.totals
    }

    fn count(&mut self, was: Version, now: Version) {
        let (files, bytes) = self.totals;
        self.totals = (
            files + u64::from(now.exists()) - u64::from(was.exists()),
            bytes.wrapping_add(now.len).wrapping_sub(was.len),
        );
    }

    /// What changed since the last call, for the caller to make durable: O(1). What changes after it belongs to the next turn.
    pub(crate) fn take_unsynced(&mut self) -> Unsynced {
        self.turn += 1;
        std::mem::take(&mut self.unsynced)
    }

    /// The files of the last turn taken: under which names they are, and which they are on disk. To be asked of a few.
    ///
    /// `None` if that is not known of each: one was renamed, replaced or deleted since, or is in doubt. A name is no more than where to
    /// look: also on disk it may mean another file by now, and the host has not come to announce it.
    pub(crate) fn syncing(&self, unsynced: &Unsynced) -> Option<Vec<(RelPath, FileId)>> {
        let entries = unsynced.slots.iter().map(|&slot| &self.entries[slot]);
        if self.unsynced.others || entries.clone().any(|entry| self.unsynced.names.contains(&entry.path)) {
            return None;
        }
        let there = entries.filter(|entry| entry.now.exists());
        there.map(|entry| entry.file.map(|file| (entry.path.clone(), file))).collect()
    }

    /// What `path` is now.
    pub(crate) fn get(&self, path: &str) -> Version {
        self.slot(path).map_or(Version::ABSENT, |slot| self.entries[slot].now)
    }

    /// What `path` is now, and which file on disk, if that is sure.
    pub(crate) fn announced(&self, path: &str) -> (Version, Option<FileId>) {
        self.slot(path).map_or((Version::ABSENT, None), |slot| (self.entries[slot].now, self.entries[slot].file))
    }

    /// The same, where names are asked for in the order in which files were put here, or backwards: the next is beside the one before, `at`, and no table is asked. Nothing was
    /// removed yet.
    pub(crate) fn announced_beside(&self, path: &str, at: &mut Slot) -> (Version, Option<FileId>) {
        debug_assert!(self.free.is_empty());
        let is_at = |slot: &Slot| (*slot as usize) < self.entries.len() && self.entries[*slot].path.as_str() == path;
        let beside = [at.wrapping_sub(1), at.wrapping_add(1)].into_iter().find(is_at);
        let Some(slot) = beside.or_else(|| self.slot(path)) else { return (Version::ABSENT, None) };
        *at = slot;
        (self.entries[slot].now, self.entries[slot].file)
    }

    /// The file of this name, if it is surely this one on disk: its name, which is shared, and what it is now.
    pub(crate) fn find_file(&self, path: &str, file: FileId) -> Option<(RelPath, Version)> {
        let entry = &self.entries[self.slot(path)?];
        (entry.file == Some(file)).then(|| (entry.path.clone(), entry.now))
    }

    /// Where `path` is, if it is or recently was there; for [`grow`](Self::grow).
    pub(crate) fn slot(&self, path: &str) -> Option<Slot> {
        self.slots.get(path, &self.entries)
    }

    /// Whether the slot holds a file now.
    pub(crate) fn version_at(&self, slot: Slot) -> Version {
        self.entries[slot].now
    }

    /// Adds `length` bytes to the file in `slot`, which exists. `change` is the number of the change, here and below.
    pub(crate) fn grow(&mut self, slot: Slot, length: u64, change: u64) {
        let entry = self.touch(slot, change);
        debug_assert!(entry.now.exists());
        entry.now.len += length;
        entry.mtime = Attributes::NO_TIME;
        self.totals.1 += length;
    }

    /// Notes that `length` bytes at `offset` of the file in `slot`, which exists, are other ones now. It keeps its generation: what is read of it for a
    /// follower may be older or younger than what was announced last, which comes after it (see [`rewrites`]).
    pub(crate) fn rewrite(&mut self, slot: Slot, offset: u64, length: u64, change: u64) {
        let entry = self.touch(slot, change);
        entry.mtime = Attributes::NO_TIME;
        let generation = entry.now.generation;
        self.rewrites.note(generation, offset, length, change);
    }

    /// Makes `path` a new incarnation of this length, and returns it. `file`: which file on disk it is, if that is sure.
    pub(crate) fn put(&mut self, path: &RelPath, len: u64, file: Option<FileId>, change: u64) -> Version {
        let version = Version { generation: change, len };
        self.set(path, version, file, change);
        version
    }

    /// Shortens `path`, which exists. The generation is a new one: what was sent of the old length is void. The file is the same.
    pub(crate) fn truncate(&mut self, path: &RelPath, len: u64, change: u64) -> Version {
        debug_assert!(len <= self.get(path.as_str()).len);
        self.put(path, len, self.file_of(path), change)
    }

    /// Moves `from`, which exists, over whatever `to` is; it keeps its generation.
    pub(crate) fn rename(&mut self, from: &RelPath, to: &RelPath, change: u64) -> Version {
        let file = self.file_of(from);
        let attributes = self.attributes(from.as_str());
        let rewritten = self.rewrites.last(self.get(from.as_str()).generation);
        let version = self.remove(from.as_str(), change);
        debug_assert!(version.exists() && from != to);
        self.set(to, version, file, change);
        self.describe(to.as_str(), attributes);
        self.renamed.insert(version.generation, to.clone());
        self.rewrites.set_last(version.generation, rewritten);
        version
    }

    /// The attributes of a file as they were announced.
    pub(crate) fn attributes(&self, path: &str) -> Attributes {
        self.slot(path).map_or(Attributes::UNKNOWN, |slot| self.attributes_at(slot))
    }

    fn attributes_at(&self, slot: Slot) -> Attributes {
        self.entries[slot].attributes()
    }

    /// Says which they are of a file, which is no change of it.
    pub(crate) fn describe(&mut self, path: &str, attributes: Attributes) {
        if let Some(slot) = self.slot(path) {
            let entry = &mut self.entries[slot];
            (entry.mode, entry.mtime) = (attributes.mode, attributes.mtime);
        }
    }

    /// A file that exists has these, which is a change.
    pub(crate) fn attribute(&mut self, path: &str, attributes: Attributes, change: u64) {
        if let Some(slot) = self.slot(path) {
            self.touch(slot, change);
            self.describe(path, attributes);
        }
    }

    /// The generation of a file, when it changed last, and which attributes were announced; `None` if it does not exist.
    pub(crate) fn described(&self, path: &str) -> Option<(u64, u64, Attributes)> {
        let entry = &self.entries[self.slot(path)?];
        entry.now.exists().then(|| (entry.now.generation, entry.changed, entry.attributes()))
    }

    /// Where the file of a generation is that may have been under `path`; `None` if there is none any more.
    pub(crate) fn find(&self, path: &RelPath, generation: u64) -> Option<RelPath> {
        if self.get(path.as_str()).generation == generation {
            return Some(path.clone());
        }
        self.renamed.get(&generation).cloned()
    }

    /// Notes that for the file of a generation `id` was read, found under `path`. `false`: it has another name by now.
    ///
    /// Between a rename on disk and its announcement the old name may be another file's. A replacement would put right what
    /// was read then, a rename would not: it must not keep the generation unless [`only_read_from`](Self::only_read_from).
    /// Nor would the file's return to its name, after which there is nothing to announce: its host has to ask the same.
    pub(crate) fn reads(&mut self, path: &RelPath, generation: u64, id: FileId) -> bool {
        let Some(entry) = self.entry_mut(path).filter(|entry| entry.now.generation == generation) else { return false };
        entry.file = entry.file.filter(|file| *file == id);
        true
    }

    /// Notes that of a generation, found where it was last known under `path`, somebody may have something else than what was
    /// announced. Returns where it is and what; `None` if it is no more.
    ///
    /// It stays so until the file is announced anew, and [`only_read_from`](Self::only_read_from) says it.
    pub(crate) fn doubt(&mut self, path: &RelPath, generation: u64) -> Option<(RelPath, Version)> {
        let path = self.find(path, generation)?;
        let entry = self.entry_mut(&path)?;
        entry.file = None;
        let version = entry.now;
        Some((path, version))
    }

    /// Whether `path`, if it exists, is this file, nothing else was ever read for it, and nothing of it is in doubt. Without `id`:
    /// whether that is so of some file.
    pub(crate) fn only_read_from(&self, path: &RelPath, id: Option<FileId>) -> bool {
        let file = self.file_of(path);
        !self.get(path.as_str()).exists() || file.is_some() && (id.is_none() || file == id)
    }

    fn file_of(&self, path: &RelPath) -> Option<FileId> {
        self.slot(path.as_str()).and_then(|slot| self.entries[slot].file)
    }

    fn entry_mut(&mut self, path: &RelPath) -> Option<&mut Entry> {
        self.slot(path.as_str()).map(|slot| &mut self.entries[slot])
    }

    fn set(&mut self, path: &RelPath, version: Version, file: Option<FileId>, change: u64) {
        let slot = match self.slot(path.as_str()) {
            Some(slot) => slot,
            None => self.insert(path),
        };
        let entry = self.touch(slot, change);
        entry.file = file;
        (entry.mode, entry.mtime) = (Attributes::UNKNOWN.mode, Attributes::NO_TIME);
        let was = std::mem::replace(&mut entry.now, version);
        self.count(was, version);
        // Also a file that was there may have been replaced by way of a rename.
        self.unsynced.note_name(path);
        self.ends(was.generation);
    }

    /// There is no file of this generation any more.
    fn ends(&mut self, generation: u64) {
        self.renamed.remove(&generation);
        self.rewrites.forget(generation);
    }

    /// Removes `path`, and returns what it was.
    pub(crate) fn remove(&mut self, path: &str, change: u64) -> Version {
        let Some(slot) = self.slot(path).filter(|&slot| self.entries[slot].now.exists()) else {
            return Version::ABSENT;
        };
        let entry = self.touch(slot, change);
        entry.file = None;
        let was = std::mem::replace(&mut entry.now, Version::ABSENT);
        let path = entry.path.clone();
        self.count(was, Version::ABSENT);
        self.unsynced.note_name(&path);
        self.ends(was.generation);
        self.tombstones.slots.push_back((slot, change));
        if self.tombstones.slots.len() > self.tombstones.most {
            self.bury_oldest();
        }
        was
    }

    /// Forgets the file that has been gone for longest.
    fn bury_oldest(&mut self) {
        let Some((slot, went)) = self.tombstones.slots.pop_front() else { return };
        let entry = &self.entries[slot];
        // Otherwise it exists again, or has gone once more.
        if entry.changed == went && !entry.now.exists() {
            self.complete_since = went;
            self.recency.unlink(&mut self.entries, slot);
            self.slots.remove(slot, &self.entries);
            self.free.push(slot);
        }
    }

    fn insert(&mut self, path: &RelPath) -> Slot {
        let entry = Entry {
            path: path.clone(),
            now: Version::ABSENT,
            changed: 0,
            newer: NONE,
            older: NONE,
            file: None,
            turn: 0,
            mtime: Attributes::NO_TIME,
            mode: Attributes::UNKNOWN.mode,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                // If the slot is noted already, it is not noted again.
                let turn = self.entries[slot].turn;
                self.entries[slot] = Entry { turn, ..entry };
                slot
            }
            None => self.entries.push(entry),
        };
        self.recency.link(&mut self.entries, slot);
        self.slots.insert(slot, &self.entries);
        slot
    }

    /// The entry, about to be changed.
    fn touch(&mut self, slot: Slot, change: u64) -> &mut Entry {
        let entry = &mut self.entries[slot];
        if entry.turn != self.turn {
            entry.turn = self.turn;
            self.unsynced.slots.push(slot);
        }
        self.recency.touch(&mut self.entries, slot, change);
        &mut self.entries[slot]
    }
}

#[cfg(test)]
mod tests;
