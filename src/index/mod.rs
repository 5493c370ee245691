//! What is announced: every file's generation and length, and what changed since a moment. No locks, no I/O.
//!
//! The index, not the disk, says how long a file is: a length advances in the same critical section that puts the bytes
//! into the stream, so a *cut* of the index is an exact moment of the stream.
//!
//! A cut costs O(1) however many files there are or have changed. It begins a new *epoch*; an entry's first change in an
//! epoch saves what the entry was before. Who made the cut then reads the entries in small portions, each as of the
//! cut, while changes go on. That works for one cut at a time: the next may only be made once everything wanted of this
//! one was read (the leader's `cut` lock sees to it).
//!
//! A *tracker* is somebody who wants to know what changed between its cuts. While there is one, changed entries are noted
//! once an epoch, and deleted entries stay; while there is none, neither costs anything.

pub(crate) mod chunks;
pub(crate) mod hash;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::sys::hash::HashMap;
use crate::types::RelPath;

/// What a file was at a moment: which incarnation of the name, and how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Version {
    /// New whenever the file is replaced, or deleted and made again; 0 says there is no file.
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

#[derive(Debug)]
struct Entry {
    path: RelPath,
    now: Version,
    /// What it was when `epoch` began.
    before: Version,
    /// The epoch of its last change.
    epoch: u64,
    /// Which file on disk it is: announced as such, and nothing else was read for it. `None`: that is in doubt.
    file: Option<FileId>,
    /// The turn of its last change: that turn's [`Unsynced`] has its slot.
    turn: u64,
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

/// Names a tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TrackerId(u64);

#[derive(Debug)]
struct Tracker {
    id: TrackerId,
    /// The epoch its last cut began.
    since: u64,
}

/// A moment of the index. See the module's documentation for how long it can be read.
#[derive(Debug)]
pub(crate) struct Cut {
    epoch: u64,
    wanted: Wanted,
}

#[derive(Debug)]
enum Wanted {
    /// All slots below this.
    All(Slot),
    Changed(Vec<Arc<Vec<Slot>>>),
}

impl Cut {
    /// The slots to read: each once, in order.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        match &self.wanted {
            Wanted::All(end) => (0..*end).collect(),
            Wanted::Changed(lists) => {
                let mut slots: Vec<_> = lists.iter().flat_map(|list| list.iter().copied()).collect();
                slots.sort_unstable();
                slots.dedup();
                slots
            }
        }
    }
}

/// All announced files.
#[derive(Debug)]
pub(crate) struct Index {
    entries: Vec<Entry>,
    slots: HashMap<RelPath, Slot>,
    free: Vec<Slot>,
    /// Where the files are now whose generation began under another name.
    renamed: HashMap<u64, RelPath>,
    /// Slots of files that were deleted while tracked; some may exist again.
    dead: Vec<Slot>,
    last_generation: u64,
    epoch: u64,
    last_tracker: u64,
    trackers: Vec<Tracker>,
    /// What changed in past epochs, the oldest that a tracker needs first, with its epoch.
    closed: VecDeque<(u64, Arc<Vec<Slot>>)>,
    /// What changed in this epoch; kept up while there are trackers.
    changed: Vec<Slot>,
    unsynced: Unsynced,
    /// Files there are, and bytes in them.
    totals: (u64, u64),
    /// That it is of.
    turn: u64,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self {
            entries: Vec::new(),
            slots: HashMap::default(),
            free: Vec::new(),
            renamed: HashMap::default(),
            dead: Vec::new(),
            last_generation: 0,
            epoch: 1,
            last_tracker: 0,
            trackers: Vec::new(),
            closed: VecDeque::new(),
            changed: Vec::new(),
            // Nobody knows what of the files found at the start is durable.
            unsynced: Unsynced { others: true, ..Unsynced::default() },
            totals: (0, 0),
            turn: 1,
        }
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
        let entries = unsynced.slots.iter().map(|&slot| &self.entries[slot as usize]);
        if self.unsynced.others || entries.clone().any(|entry| self.unsynced.names.contains(&entry.path)) {
            return None;
        }
        let there = entries.filter(|entry| entry.now.exists());
        there.map(|entry| entry.file.map(|file| (entry.path.clone(), file))).collect()
    }

    /// What `path` is now.
    pub(crate) fn get(&self, path: &str) -> Version {
        self.slots.get(path).map_or(Version::ABSENT, |&slot| self.entries[slot as usize].now)
    }

    /// Where `path` is, if it is or recently was there; for [`grow`](Self::grow).
    pub(crate) fn slot(&self, path: &str) -> Option<Slot> {
        self.slots.get(path).copied()
    }

    /// Whether the slot holds a file now.
    pub(crate) fn version_at(&self, slot: Slot) -> Version {
        self.entries[slot as usize].now
    }

    /// Adds `length` bytes to the file in `slot`, which exists.
    pub(crate) fn grow(&mut self, slot: Slot, length: u64) {
        let entry = self.touch(slot);
        debug_assert!(entry.now.exists());
        entry.now.len += length;
        self.totals.1 += length;
    }

    /// Makes `path` a new incarnation of this length, and returns it. `file`: which file on disk it is, if that is sure.
    pub(crate) fn put(&mut self, path: &RelPath, len: u64, file: Option<FileId>) -> Version {
        self.last_generation += 1;
        let version = Version { generation: self.last_generation, len };
        self.set(path, version, file);
        version
    }

    /// Shortens `path`, which exists. The generation is a new one: what was sent of the old length is void. The file is the same.
    pub(crate) fn truncate(&mut self, path: &RelPath, len: u64) -> Version {
        debug_assert!(len <= self.get(path.as_str()).len);
        self.put(path, len, self.file_of(path))
    }

    /// Moves `from`, which exists, over whatever `to` is; it keeps its generation.
    pub(crate) fn rename(&mut self, from: &RelPath, to: &RelPath) -> Version {
        let file = self.file_of(from);
        let version = self.remove(from.as_str());
        debug_assert!(version.exists() && from != to);
        self.set(to, version, file);
        self.renamed.insert(version.generation, to.clone());
        version
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
        self.slot(path.as_str()).and_then(|slot| self.entries[slot as usize].file)
    }

    fn entry_mut(&mut self, path: &RelPath) -> Option<&mut Entry> {
        self.slot(path.as_str()).map(|slot| &mut self.entries[slot as usize])
    }

    fn set(&mut self, path: &RelPath, version: Version, file: Option<FileId>) {
        let slot = match self.slots.get(path) {
            Some(&slot) => slot,
            None => self.insert(path),
        };
        let entry = self.touch(slot);
        entry.file = file;
        let was = std::mem::replace(&mut entry.now, version);
        self.count(was, version);
        // Also a file that was there may have been replaced by way of a rename.
        self.unsynced.note_name(path);
        self.renamed.remove(&was.generation);
    }

    /// Removes `path`, and returns what it was.
    pub(crate) fn remove(&mut self, path: &str) -> Version {
        let Some(&slot) = self.slots.get(path) else { return Version::ABSENT };
        let entry = self.touch(slot);
        entry.file = None;
        let was = std::mem::replace(&mut entry.now, Version::ABSENT);
        let path = entry.path.clone();
        self.count(was, Version::ABSENT);
        self.unsynced.note_name(&path);
        self.renamed.remove(&was.generation);
        self.dead.push(slot);
        if self.trackers.is_empty() {
            self.sweep(1);
        }
        was
    }

    fn insert(&mut self, path: &RelPath) -> Slot {
        // Epoch 0 is none: the entry's first change counts as one in whatever epoch this is.
        let (now, before) = (Version::ABSENT, Version::ABSENT);
        let entry = Entry { path: path.clone(), now, before, epoch: 0, file: None, turn: 0 };
        let slot = match self.free.pop() {
            Some(slot) => {
                // If the slot is noted already, it is not noted again.
                let turn = self.entries[slot as usize].turn;
                self.entries[slot as usize] = Entry { turn, ..entry };
                slot
            }
            None => {
                self.entries.push(entry);
                Slot::try_from(self.entries.len() - 1).expect("fewer files than 2^32")
            }
        };
        self.slots.insert(path.clone(), slot);
        slot
    }

    /// The entry, about to be changed.
    fn touch(&mut self, slot: Slot) -> &mut Entry {
        let entry = &mut self.entries[slot as usize];
        if entry.turn != self.turn {
            entry.turn = self.turn;
            self.unsynced.slots.push(slot);
        }
        if entry.epoch != self.epoch {
            entry.before = entry.now;
            entry.epoch = self.epoch;
            if !self.trackers.is_empty() {
                self.changed.push(slot);
            }
        }
        entry
    }

    /// Frees the slots of up to `most` deleted files; returns whether more are left. Does nothing while anybody tracks.
    pub(crate) fn sweep(&mut self, most: usize) -> bool {
        if !self.trackers.is_empty() {
            return false;
        }
        for slot in self.dead.split_off(self.dead.len().saturating_sub(most)) {
            let entry = &self.entries[slot as usize];
            // It may exist again, or stand here twice.
            if !entry.now.exists() && self.slots.get(&entry.path) == Some(&slot) {
                self.slots.remove(&entry.path);
                self.free.push(slot);
            }
        }
        !self.dead.is_empty()
    }

    /// Begins to track changes. The tracker's first cut is [`cut_all`](Self::cut_all).
    pub(crate) fn track(&mut self) -> TrackerId {
        self.last_tracker += 1;
        let id = TrackerId(self.last_tracker);
        self.trackers.push(Tracker { id, since: self.epoch });
        id
    }

    /// Ends it. Who calls this calls [`sweep`](Self::sweep) until nothing is left.
    pub(crate) fn untrack(&mut self, id: TrackerId) {
        self.trackers.retain(|tracker| tracker.id != id);
        if self.trackers.is_empty() {
            self.changed = Vec::new();
        }
        self.forget_unneeded();
    }

    /// A cut of everything.
    pub(crate) fn cut_all(&mut self, id: TrackerId) -> Cut {
        let end = Slot::try_from(self.entries.len()).expect("fewer files than 2^32");
        self.begin_epoch(id);
        Cut { epoch: self.epoch, wanted: Wanted::All(end) }
    }

    /// A cut of what changed since the tracker's last cut.
    pub(crate) fn cut_changed(&mut self, id: TrackerId) -> Cut {
        let since = self.begin_epoch(id);
        let lists = self.closed.iter().filter(|(epoch, _)| *epoch >= since).map(|(_, list)| list.clone()).collect();
        self.forget_unneeded();
        Cut { epoch: self.epoch, wanted: Wanted::Changed(lists) }
    }

    /// Returns the epoch that the tracker's last cut began.
    fn begin_epoch(&mut self, id: TrackerId) -> u64 {
        self.closed.push_back((self.epoch, Arc::new(std::mem::take(&mut self.changed))));
        self.epoch += 1;
        let tracker = self.trackers.iter_mut().find(|tracker| tracker.id == id).expect("a tracker cuts");
        std::mem::replace(&mut tracker.since, self.epoch)
    }

    fn forget_unneeded(&mut self) {
        let needed = self.trackers.iter().map(|tracker| tracker.since).min().unwrap_or(u64::MAX);
        while self.closed.front().is_some_and(|(epoch, _)| *epoch < needed) {
            self.closed.pop_front();
        }
    }

    /// What stood in `slot` at the cut. Absent files of a cut of changes are those deleted since; in a cut of everything they
    /// mean nothing, and may bear the name of a file that is there.
    pub(crate) fn at(&self, cut: &Cut, slot: Slot) -> (&RelPath, Version) {
        debug_assert_eq!(cut.epoch, self.epoch, "one cut is read at a time");
        let entry = &self.entries[slot as usize];
        let version = if entry.epoch == cut.epoch { entry.before } else { entry.now };
        (&entry.path, version)
    }
}

#[cfg(test)]
mod tests;
