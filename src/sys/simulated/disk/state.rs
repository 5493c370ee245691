//! All file systems of a world, what is mounted where, and what is open.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::rustix::io::Errno;

use super::super::world::{Key, ProcessId};
use super::open::OpenFile;
use super::volume::{DiskSettings, Id, Live, ROOT, Volume};
use super::watch::Watches;

/// Why a call does not go on.
#[derive(Debug)]
pub(in super::super) enum Stop {
    Errno(Errno),
    /// The disk stalls: to be tried again then.
    Stalled(Key, Option<Duration>),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// An inode, and by which mount it was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Place {
    pub(super) volume: usize,
    pub(super) id: Id,
    pub(super) mount: u64,
}

#[derive(Debug)]
pub(super) struct Mount {
    pub(super) volume: usize,
    pub(super) parent: u64,
    /// `None`: the top of all.
    pub(super) at: Option<Place>,
    pub(super) path: Vec<u8>,
}

pub(in super::super) struct State {
    pub(super) volumes: Vec<Volume>,
    pub(super) mounts: BTreeMap<u64, Mount>,
    /// How often what is mounted has changed.
    pub(super) mount_changes: u64,
    pub(super) mounts_key: Key,
    pub(super) next_mount: u64,
    pub(super) descriptors: BTreeMap<(ProcessId, i32), u64>,
    pub(super) open: BTreeMap<u64, OpenFile>,
    pub(super) next_open: u64,
    /// Who holds the lock of a file (`flock`).
    pub(super) locks: BTreeMap<(usize, Id), u64>,
    pub(super) limits: BTreeMap<ProcessId, u64>,
    /// Processes that are not root.
    pub(super) unprivileged: BTreeSet<ProcessId>,
    pub(super) watches: Watches,
    /// On the clock of files: since 1970.
    pub(super) now: Duration,
    /// Since the world began.
    pub(super) world_now: Duration,
    /// The disk that the call touched last.
    pub(super) touched: Option<usize>,
}

/// The first mount's id: as it looks on a real machine.
const FIRST_MOUNT: u64 = 21;
const MAJOR: u32 = 8;

impl State {
    pub(super) fn new(new_key: impl Fn() -> Key, now: Duration) -> Self {
        let settings = DiskSettings { sync_time: Duration::ZERO..Duration::ZERO, ..DiskSettings::default() };
        let mut state = Self {
            volumes: Vec::new(),
            mounts: BTreeMap::new(),
            mount_changes: 0,
            mounts_key: new_key(),
            next_mount: FIRST_MOUNT + 1,
            descriptors: BTreeMap::new(),
            open: BTreeMap::new(),
            next_open: 1,
            locks: BTreeMap::new(),
            limits: BTreeMap::new(),
            unprivileged: BTreeSet::new(),
            watches: Watches::default(),
            now,
            world_now: Duration::ZERO,
            touched: None,
        };
        state.add_volume(settings, new_key());
        state.mounts.insert(FIRST_MOUNT, Mount { volume: 0, parent: 1, at: None, path: b"/".to_vec() });
        state
    }

    pub(super) fn add_volume(&mut self, settings: DiskSettings, key: Key) -> usize {
        let minor = u32::try_from(self.volumes.len()).expect("a few disks") * 16 + 1;
        self.volumes.push(Volume::new(settings, (MAJOR, minor), key, self.now));
        self.volumes.len() - 1
    }

    /// The top of all.
    pub(super) fn top(&self) -> Place {
        self.cross(Place { volume: 0, id: ROOT, mount: FIRST_MOUNT })
    }

    /// An inode, unless its disk stalls.
    pub(super) fn live(&self, at: Place) -> Result<&Live, Stop> {
        self.go_on(at.volume)?;
        Ok(self.volumes[at.volume].get(at.id)?)
    }

    pub(super) fn volume(&mut self, at: Place) -> Result<&mut Volume, Stop> {
        self.go_on(at.volume)?;
        self.touched = Some(at.volume);
        Ok(&mut self.volumes[at.volume])
    }

    fn go_on(&self, volume: usize) -> Result<(), Stop> {
        let volume = &self.volumes[volume];
        match volume.stalled {
            Some(until) if until.is_none_or(|until| until > self.world_now) => Err(Stop::Stalled(volume.key, until)),
            _ => Ok(()),
        }
    }

    /// Whether the disk of that key stalls.
    pub(super) fn stalls(&self, key: Key) -> bool {
        (0..self.volumes.len()).any(|volume| self.volumes[volume].key == key && self.go_on(volume).is_err())
    }

    /// Whether the folder may be changed by this process.
    pub(super) fn may_change(&self, who: ProcessId, folder: Place) -> Result<(), Stop> {
        let live = self.live(folder)?;
        if !self.may(who, live, 3) {
            return Err(Errno::ACCESS.into());
        }
        if self.volumes[folder.volume].settings.read_only {
            return Err(Errno::ROFS.into());
        }
        if live.links == 0 && folder.id != ROOT {
            return Err(Errno::NOENT.into());
        }
        Ok(())
    }

    pub(super) fn is_mount_point(&self, at: Place) -> bool {
        at.id == self.volumes[at.volume].root || self.mounts.values().any(|mount| mount.at == Some(at))
    }

    /// Changes names, and lets go of what has none then.
    pub(super) fn set_names(&mut self, volume: usize, sets: Vec<(Id, Vec<u8>, Option<Id>)>) {
        self.touched = Some(volume);
        let now = self.now;
        for id in self.volumes[volume].set_names(sets, now) {
            self.release(volume, id);
        }
    }

    /// Lets go of an inode that has neither a name nor an open file.
    pub(super) fn release(&mut self, volume: usize, id: Id) {
        if self.volumes[volume].release(id) {
            self.watches.gone(volume, id);
        }
    }

    /// The content of `/proc/self/mountinfo`.
    pub(super) fn mount_table(&self) -> Vec<u8> {
        let mut table = Vec::new();
        for (id, mount) in &self.mounts {
            let volume = &self.volumes[mount.volume];
            let (major, minor) = volume.dev;
            let mode = if volume.settings.read_only { "ro" } else { "rw" };
            table.extend(format!("{id} {} {major}:{minor} / ", mount.parent).into_bytes());
            for byte in &mount.path {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => table.extend(format!("\\{byte:03o}").into_bytes()),
                    _ => table.push(*byte),
                }
            }
            let disk = mount.volume;
            table.extend(format!(" {mode},relatime shared:{id} - ext4 /dev/simulated{disk} {mode}\n").into_bytes());
        }
        table
    }
}
