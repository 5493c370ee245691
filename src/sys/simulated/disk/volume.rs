//! One file system: its inodes as programs see them, what of them is on the medium, and what is on its way there.
//!
//! The medium is kept as a second set of inodes. Each change is made to the first set at once, and waits as an [`Effect`] of a file or as
//! a [`NameChange`] until a sync brings it to the second.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use ::rustix::io::Errno;

use super::super::world::Key;
use super::content::{Content, Effect};

/// An inode: never given twice by a file system, unlike its number.
pub(in super::super) type Id = u64;

/// How a file system behaves.
#[derive(Clone, Debug)]
pub struct DiskSettings {
    /// Room for the content of files.
    pub capacity_bytes: u64,
    /// What the times of files are rounded down to: 4 ms for many kernels, 1 s for old file systems.
    pub clock_tick: Duration,
    /// How long `fsync`, `fdatasync` and `syncfs` take.
    pub sync_time: Range<Duration>,
    /// How often another call takes its time, and how long then.
    pub slow_call: (f64, Range<Duration>),
    /// Whether the number of a removed file is given to the next new one, as ext4 does.
    pub reuses_numbers: bool,
    /// Whether files without a name can be had (`O_TMPFILE`).
    pub has_tmpfile: bool,
    /// Whether it can only be read.
    pub read_only: bool,
    /// What a power cut leaves of names that were made, changed and removed without a sync.
    pub names: NamesAtPowerCut,
}

/// What a power cut leaves of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamesAtPowerCut {
    /// All that was done up to some moment, as with a journal.
    Prefix,
    /// Any of it that POSIX lets: only what was done to one name is in order, and a rename is whole.
    Any,
}

impl Default for DiskSettings {
    fn default() -> Self {
        Self {
            capacity_bytes: 1 << 40,
            clock_tick: Duration::from_millis(4),
            sync_time: Duration::from_micros(50)..Duration::from_millis(5),
            slow_call: (0.0, Duration::ZERO..Duration::ZERO),
            reuses_numbers: true,
            has_tmpfile: true,
            read_only: false,
            names: NamesAtPowerCut::Any,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Folder(BTreeMap<Vec<u8>, Id>),
    File(Content),
    Link(Vec<u8>),
    Fifo,
}

/// What there is of an inode, on the medium or in memory.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    /// Ids of user and group.
    pub(super) owner: (u32, u32),
    pub(super) modified: Duration,
    pub(super) changed: Duration,
    pub(super) born: Duration,
}

impl Node {
    pub(super) fn entries(&self) -> Option<&BTreeMap<Vec<u8>, Id>> {
        match &self.kind {
            Kind::Folder(entries) => Some(entries),
            _ => None,
        }
    }

    pub(super) fn is_folder(&self) -> bool {
        matches!(self.kind, Kind::Folder(_))
    }

    fn entries_mut(&mut self) -> &mut BTreeMap<Vec<u8>, Id> {
        match &mut self.kind {
            Kind::Folder(entries) => entries,
            _ => unreachable!("only folders have entries"),
        }
    }

    pub(super) fn content(&self) -> Option<&Content> {
        match &self.kind {
            Kind::File(content) => Some(content),
            _ => None,
        }
    }

    pub(super) fn content_mut(&mut self) -> Option<&mut Content> {
        match &mut self.kind {
            Kind::File(content) => Some(content),
            _ => None,
        }
    }
}

/// An inode as programs see it.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) node: Node,
    /// Names it has.
    pub(super) links: u32,
    /// Of a folder: where it is.
    pub(super) parent: Id,
    /// Open files of it.
    pub(super) opens: u32,
    /// What was done to a file and may not be on the medium.
    pub(super) pending: Vec<Effect>,
    pub(super) failures: Failures,
}

/// A change to names that is not on the medium: each of these is set to an inode, or removed, or nothing of it is done.
#[derive(Clone, Debug)]
pub(super) struct NameChange {
    pub(super) seq: u64,
    pub(super) sets: Vec<(Id, Vec<u8>, Option<Id>)>,
    /// A folder is moved: such changes keep their order, or folders could contain each other.
    pub(super) moves_folder: bool,
}

/// What a file, or a file system, knows of syncs that failed: each open file is told once of those since it was opened, or before if nobody was
/// told.
#[derive(Debug, Default)]
pub(super) struct Failures {
    count: u64,
    /// Somebody was told of the last one.
    is_told: bool,
}

impl Failures {
    pub(super) fn another(&mut self) {
        (self.count, self.is_told) = (self.count + 1, false);
    }

    /// Fails if there is one that an open file, which was told of so many, was not told of.
    pub(super) fn tell(&mut self, told: &mut u64) -> Result<(), Errno> {
        if std::mem::replace(told, self.count) == self.count {
            return Ok(());
        }
        self.is_told = true;
        Err(Errno::IO)
    }

    /// Whoever opens a file now is told of none that others were told of.
    pub(super) fn told_to_new(&self) -> u64 {
        if self.is_told { self.count } else { 0 }
    }
}

#[derive(Debug)]
pub(super) struct Volume {
    pub(super) settings: DiskSettings,
    pub(super) dev: (u32, u32),
    pub(super) root: Id,
    pub(super) live: BTreeMap<Id, Live>,
    pub(super) durable: BTreeMap<Id, Node>,
    pub(super) names: Vec<NameChange>,
    pub(super) seq: u64,
    pub(super) failures: Failures,
    /// Until when each call waits; the inner `None`: until told otherwise.
    pub(super) stalled: Option<Option<Duration>>,
    pub(super) key: Key,
    /// How often its machine lost power.
    pub(super) power_cuts: u64,
    next_id: Id,
    next_number: u64,
    free_numbers: BTreeSet<u64>,
}

pub(super) const ROOT: Id = 1;
/// As of the ext file systems: their top folder's number.
const ROOT_NUMBER: u64 = 2;
/// A file with more effects than this has the older half written back; so have names with more changes.
const PENDING_MAX: usize = 1024;
pub(super) const BLOCK_BYTES: u64 = 4096;

impl Volume {
    pub(super) fn new(settings: DiskSettings, dev: (u32, u32), key: Key, now: Duration) -> Self {
        let at = stamp(now, settings.clock_tick);
        let node = Node {
            number: ROOT_NUMBER,
            kind: Kind::Folder(BTreeMap::new()),
            mode: 0o755,
            owner: (0, 0),
            modified: at,
            changed: at,
            born: at,
        };
        let top = Live {
            node: node.clone(),
            links: 1,
            parent: ROOT,
            opens: 0,
            pending: Vec::new(),
            failures: Failures::default(),
        };
        Self {
            settings,
            dev,
            root: ROOT,
            live: BTreeMap::from([(ROOT, top)]),
            durable: BTreeMap::from([(ROOT, node)]),
            names: Vec::new(),
            seq: 0,
            failures: Failures::default(),
            stalled: None,
            key,
            power_cuts: 0,
            next_id: ROOT + 1,
            next_number: 11,
            free_numbers: BTreeSet::new(),
        }
    }

    pub(super) fn get(&self, id: Id) -> Result<&Live, Errno> {
        self.live.get(&id).ok_or(Errno::STALE)
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Result<&mut Live, Errno> {
        self.live.get_mut(&id).ok_or(Errno::STALE)
    }

    pub(super) fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    pub(super) fn stamp(&self, now: Duration) -> Duration {
        stamp(now, self.settings.clock_tick)
    }

    /// Bytes that are in use.
    pub(super) fn used(&self) -> u64 {
        self.live.values().filter_map(|live| live.node.content()).map(Content::allocated).sum()
    }

    pub(super) fn available(&self) -> u64 {
        self.settings.capacity_bytes.saturating_sub(self.used())
    }

    /// A new inode that has no name.
    pub(super) fn make(&mut self, kind: Kind, mode: u32, parent: Id, now: Duration) -> Id {
        let (id, at) = (self.next_id, self.stamp(now));
        self.next_id += 1;
        let number = self.new_number();
        let node = Node { number, kind, mode, owner: (0, 0), modified: at, changed: at, born: at };
        self.durable.insert(id, node.clone());
        self.live
            .insert(id, Live { node, links: 0, parent, opens: 0, pending: Vec::new(), failures: Failures::default() });
        id
    }

    fn new_number(&mut self) -> u64 {
        if self.settings.reuses_numbers
            && let Some(number) = self.free_numbers.pop_first()
        {
            return number;
        }
        self.next_number += 1;
        self.next_number
    }

    /// Changes names: all of these, or after a power cut perhaps none of them.
    pub(super) fn set_names(&mut self, sets: Vec<(Id, Vec<u8>, Option<Id>)>, now: Duration) -> Vec<Id> {
        let (seq, at) = (self.next_seq(), self.stamp(now));
        let (mut touched, mut moves_folder) = (BTreeSet::new(), false);
        let mut removed = BTreeSet::new();
        for (folder, name, to) in &sets {
            let Some(above) = self.live.get_mut(folder) else { continue };
            let entries = above.node.entries_mut();
            let was = match to {
                Some(id) => entries.insert(name.clone(), *id),
                None => entries.remove(name),
            };
            (above.node.modified, above.node.changed) = (at, at);
            if let Some(was) = was {
                removed.insert(was);
                touched.insert(was);
                self.live.entry(was).and_modify(|live| live.links -= 1);
            }
            if let Some(live) = to.and_then(|id| self.live.get_mut(&id)) {
                live.links += 1;
                live.node.changed = at;
                touched.extend(*to);
                if live.node.is_folder() {
                    moves_folder |= live.parent != *folder;
                    live.parent = *folder;
                }
            }
        }
        for was in &removed {
            if let Some(live) = self.live.get_mut(was) {
                live.node.changed = at;
            }
        }
        self.names.push(NameChange { seq, sets, moves_folder });
        if self.names.len() > PENDING_MAX {
            self.sync_names(None, self.names[PENDING_MAX / 2].seq);
        }
        touched.into_iter().filter(|id| self.live.get(id).is_some_and(|live| live.links == 0)).collect()
    }

    /// Forgets an inode that has neither a name nor an open file; `true` if that is so.
    pub(super) fn release(&mut self, id: Id) -> bool {
        let Some(live) = self.live.get(&id) else { return false };
        if live.links > 0 || live.opens > 0 || id == self.root {
            return false;
        }
        self.free_numbers.insert(live.node.number);
        self.live.remove(&id);
        if self.durable.len() > 2 * self.live.len() + 64 {
            self.sweep();
        }
        true
    }

    /// Forgets what is on the medium and can never be reached again.
    fn sweep(&mut self) {
        let mut wanted: BTreeSet<Id> = self.live.keys().copied().collect();
        wanted.extend(self.names.iter().flat_map(|change| change.sets.iter().filter_map(|set| set.2)));
        for node in self.durable.values() {
            wanted.extend(node.entries().into_iter().flat_map(|entries| entries.values()));
        }
        self.durable.retain(|id, _| wanted.contains(id));
    }

    /// The time of a change to a file, and the effect of it.
    pub(super) fn push(&mut self, id: Id, change: super::content::Change, now: Duration) {
        let (seq, at) = (self.next_seq(), self.stamp(now));
        let Some(live) = self.live.get_mut(&id) else { return };
        (live.node.modified, live.node.changed) = (at, at);
        let len = live.node.content().map_or(0, Content::len);
        live.pending.push(Effect { seq, lost: false, change, len, modified: at, changed: at });
        if live.pending.len() > PENDING_MAX {
            let upto = live.pending[PENDING_MAX / 2].seq;
            self.sync_file(id, upto, true);
        }
    }

    /// The mode, or the time, of a file or folder was set.
    pub(super) fn push_attributes(&mut self, id: Id, now: Duration) {
        let (seq, at) = (self.next_seq(), self.stamp(now));
        let Some(live) = self.live.get_mut(&id) else { return };
        live.node.changed = at;
        let Some(len) = live.node.content().map(Content::len) else { return };
        let change = super::content::Change::Times;
        live.pending.push(Effect { seq, lost: false, change, len, modified: live.node.modified, changed: at });
    }

    /// Brings what was done to a file up to then to the medium; its times and its mode only if asked.
    pub(super) fn sync_file(&mut self, id: Id, upto: u64, with_times: bool) {
        let (Some(live), Some(node)) = (self.live.get_mut(&id), self.durable.get_mut(&id)) else { return };
        if let Some(content) = node.content_mut() {
            let last = live.pending.iter().rfind(|effect| effect.seq <= upto).cloned();
            super::content::write_back(&mut live.pending, content, upto);
            if let Some(last) = last {
                if with_times {
                    (node.modified, node.changed) = (last.modified, last.changed);
                    live.pending.retain(|effect| effect.seq > upto || !effect.is_times());
                } else {
                    live.pending.insert(0, last.times_only());
                }
            }
        }
        if with_times {
            node.mode = live.node.mode;
        }
        if with_times && live.pending.is_empty() {
            (node.modified, node.changed) = (live.node.modified, live.node.changed);
        }
    }

    /// Brings the names of a folder (of all: `None`) up to then to the medium, and what they depend on.
    ///
    /// With a journal, that is all that was done before.
    pub(super) fn sync_names(&mut self, folder: Option<Id>, upto: u64) {
        let folder = folder.filter(|_| self.settings.names == NamesAtPowerCut::Any);
        let names = std::mem::take(&mut self.names);
        let asked = |change: &NameChange| {
            change.seq <= upto && folder.is_none_or(|folder| change.sets.iter().any(|set| set.0 == folder))
        };
        let chosen = with_dependencies(&names, names.iter().map(asked).collect());
        for (change, chosen) in names.into_iter().zip(chosen) {
            if chosen { self.apply(&change) } else { self.names.push(change) }
        }
    }

    pub(super) fn apply(&mut self, change: &NameChange) {
        for (folder, name, to) in &change.sets {
            let times = self.live.get(folder).map(|live| (live.node.modified, live.node.changed));
            let Some(node) = self.durable.get_mut(folder) else { continue };
            match to {
                Some(id) => drop(node.entries_mut().insert(name.clone(), *id)),
                None => drop(node.entries_mut().remove(name)),
            }
            (node.modified, node.changed) = times.unwrap_or((node.modified, node.changed));
        }
    }

    /// Brings all to the medium that was done up to then.
    pub(super) fn sync_all(&mut self, upto: u64) {
        self.sync_names(None, upto);
        for id in self.live.keys().copied().collect::<Vec<_>>() {
            self.sync_file(id, upto, true);
        }
    }

    /// A sync failed: pages that were dirty count as clean, and are not on the medium.
    pub(super) fn lose_dirty(&mut self, only: Option<Id>) {
        for (id, live) in &mut self.live {
            let is_meant = only.is_none_or(|only| only == *id);
            if is_meant && (super::content::lose(&mut live.pending) || only.is_some()) {
                live.failures.another();
            }
        }
    }

    /// From now on all is as it is on the medium, and nothing is on its way there.
    pub(super) fn adopt(&mut self, durable: BTreeMap<Id, Node>) {
        let mut reached = BTreeMap::from([(self.root, (1, self.root))]);
        let mut folders = vec![self.root];
        while let Some(folder) = folders.pop() {
            let Some(entries) = durable.get(&folder).and_then(Node::entries) else { continue };
            for id in entries.values() {
                let place = reached.entry(*id).or_insert((0, folder));
                place.0 += 1;
                if place.0 == 1 && durable.get(id).is_some_and(Node::is_folder) {
                    folders.push(*id);
                }
            }
        }
        let opens: BTreeMap<Id, u32> = self.live.iter().map(|(id, live)| (*id, live.opens)).collect();
        let mut numbers = BTreeSet::new();
        (self.live, self.durable) = (BTreeMap::new(), BTreeMap::new());
        self.names.clear();
        self.failures = Failures::default();
        self.next_id = self.next_id.max(durable.keys().max().map_or(0, |last| last + 1));
        for (id, mut node) in durable {
            let Some((links, parent)) = reached.get(&id).copied() else { continue };
            self.next_number = self.next_number.max(node.number);
            if !numbers.insert(node.number) {
                self.next_number += 1;
                node.number = self.next_number;
                numbers.insert(node.number);
            }
            let opens = opens.get(&id).copied().unwrap_or_default();
            self.durable.insert(id, node.clone());
            self.live
                .insert(id, Live { node, links, parent, opens, pending: Vec::new(), failures: Failures::default() });
        }
        self.free_numbers = (12..self.next_number).filter(|number| !numbers.contains(number)).collect();
    }
}

/// These changes of names and those before them without which they cannot be: to the same names, and of folders that were moved.
pub(super) fn with_dependencies(names: &[NameChange], mut chosen: Vec<bool>) -> Vec<bool> {
    let (mut needed, mut folders_moved) = (BTreeSet::new(), false);
    for (change, chosen) in names.iter().zip(&mut chosen).rev() {
        *chosen |= change.sets.iter().any(|(folder, name, _)| needed.contains(&(*folder, name)));
        *chosen |= change.moves_folder && folders_moved;
        if *chosen {
            needed.extend(change.sets.iter().map(|(folder, name, _)| (*folder, name)));
            folders_moved |= change.moves_folder;
        }
    }
    chosen
}

fn stamp(now: Duration, tick: Duration) -> Duration {
    let tick = tick.as_nanos().max(1);
    let nanos = now.as_nanos() / tick * tick;
    Duration::new(
        u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX),
        u32::try_from(nanos % 1_000_000_000).unwrap_or_default(),
    )
}
