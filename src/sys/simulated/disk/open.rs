//! Open files and the descriptors that processes have of them.

use std::collections::BTreeSet;

use ::rustix::fs::OFlags;
use ::rustix::fs::inotify::WatchFlags;
use ::rustix::io::Errno;

use super::super::world::{Key, ProcessId};
use super::state::{Place, State, Stop};
use super::volume::Id;
use super::walk::How;
use super::watch::Event;

/// The current folder, in place of a descriptor.
pub(in super::super) const AT_FDCWD: i32 = -100;
/// As most systems have it.
const DESCRIPTORS_MAX: u64 = 1024;
/// 0, 1 and 2 are taken.
const FIRST: i32 = 3;

#[derive(Debug)]
pub(super) enum Object {
    Inode(Place),
    /// Opened with `O_PATH`: to be looked at only.
    Path(Place),
    /// `/proc/self/mountinfo`, and how often what is mounted had changed when it was last looked at.
    Mounts {
        seen: u64,
        text: Vec<u8>,
    },
    Inotify(u64),
    Event {
        count: u64,
        key: Key,
    },
}

/// What `open` makes, and several descriptors may share.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) object: Object,
    pub(super) flags: OFlags,
    pub(super) offset: u64,
    /// The folder and the name by which it was opened.
    pub(super) name: Option<(usize, Id, Vec<u8>)>,
    /// For the trace.
    pub(super) path: String,
    pub(super) listing: Option<Listing>,
    /// How many failures of its file it was told of, or others before it ...
    pub(super) failures_told: u64,
    /// ... and how many of its file system.
    pub(super) disk_failures_told: u64,
    descriptors: u32,
}

/// A folder being listed.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) left: Vec<Vec<u8>>,
    /// Names that were considered: each is told once at most.
    pub(super) known: BTreeSet<Vec<u8>>,
}

impl OpenFile {
    pub(super) fn new(object: Object, flags: OFlags, path: &[u8]) -> Self {
        let path = String::from_utf8_lossy(path).into_owned();
        Self {
            object,
            flags,
            offset: 0,
            name: None,
            path,
            listing: None,
            failures_told: 0,
            disk_failures_told: 0,
            descriptors: 0,
        }
    }

    pub(super) fn reads(&self) -> bool {
        self.flags & OFlags::ACCMODE != OFlags::WRONLY
    }

    pub(super) fn writes(&self) -> bool {
        self.flags & OFlags::ACCMODE != OFlags::RDONLY
    }
}

impl State {
    pub(in super::super) fn limit_of(&self, who: ProcessId) -> u64 {
        self.limits.get(&who).copied().unwrap_or(DESCRIPTORS_MAX)
    }

    pub(super) fn free_number(&self, who: ProcessId) -> Result<i32, Errno> {
        let mut number = FIRST;
        for (_, taken) in self.descriptors.range((who, FIRST)..=(who, i32::MAX)).map(|(key, _)| key) {
            if *taken > number {
                break;
            }
            number = taken + 1;
        }
        if u64::try_from(number).is_ok_and(|number| number < self.limit_of(who)) {
            Ok(number)
        } else {
            Err(Errno::MFILE)
        }
    }

    /// Gives a descriptor of something new.
    pub(super) fn add_open(&mut self, who: ProcessId, file: OpenFile) -> Result<i32, Errno> {
        let number = self.free_number(who)?;
        let (mut failures_told, mut disk_failures_told) = (0, 0);
        if let Object::Inode(at) | Object::Path(at) = file.object {
            let live = self.volumes[at.volume].get_mut(at.id)?;
            live.opens += 1;
            failures_told = live.failures.told_to_new();
            disk_failures_told = self.volumes[at.volume].failures.told_to_new();
        }
        let open = self.next_open;
        self.next_open += 1;
        self.open.insert(open, OpenFile { descriptors: 1, failures_told, disk_failures_told, ..file });
        self.descriptors.insert((who, number), open);
        Ok(number)
    }

    pub(in super::super) fn duplicate(&mut self, who: ProcessId, number: i32) -> Result<i32, Errno> {
        let open = *self.descriptors.get(&(who, number)).ok_or(Errno::BADF)?;
        let again = self.free_number(who)?;
        self.descriptors.insert((who, again), open);
        self.open.get_mut(&open).ok_or(Errno::BADF)?.descriptors += 1;
        Ok(again)
    }

    pub(in super::super) fn close(&mut self, who: ProcessId, number: i32) {
        let Some(open) = self.descriptors.remove(&(who, number)) else { return };
        let Some(file) = self.open.get_mut(&open) else { return };
        file.descriptors -= 1;
        if file.descriptors > 0 {
            return;
        }
        let Some(file) = self.open.remove(&open) else { return };
        self.locks.retain(|_, holder| *holder != open);
        match file.object {
            Object::Inode(at) | Object::Path(at) => {
                if let Some(live) = self.volumes[at.volume].live.get_mut(&at.id) {
                    live.opens = live.opens.saturating_sub(1);
                }
                self.release(at.volume, at.id);
            }
            Object::Inotify(instance) => self.watches.remove_instance(instance),
            _ => {}
        }
    }

    pub(in super::super) fn close_all(&mut self, who: ProcessId) {
        let numbers: Vec<i32> =
            self.descriptors.range((who, i32::MIN)..=(who, i32::MAX)).map(|(key, _)| key.1).collect();
        for number in numbers {
            self.close(who, number);
        }
    }

    pub(super) fn open_id(&self, who: ProcessId, number: i32) -> Result<u64, Errno> {
        self.descriptors.get(&(who, number)).copied().ok_or(Errno::BADF)
    }

    pub(super) fn file(&mut self, who: ProcessId, number: i32) -> Result<&mut OpenFile, Errno> {
        let open = self.open_id(who, number)?;
        self.open.get_mut(&open).ok_or(Errno::BADF)
    }

    /// For the trace.
    pub(in super::super) fn shown(&self, who: ProcessId, number: i32) -> String {
        let open = self.descriptors.get(&(who, number)).and_then(|open| self.open.get(open));
        open.map_or_else(|| number.to_string(), |open| open.path.clone())
    }

    /// The inode that a descriptor is of, also one opened with `O_PATH`.
    pub(super) fn place_of(&mut self, who: ProcessId, number: i32) -> Result<Place, Stop> {
        match self.file(who, number)?.object {
            Object::Inode(at) | Object::Path(at) => {
                self.live(at)?;
                self.touched = Some(at.volume);
                Ok(at)
            }
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// The inode that a descriptor is of, to be used.
    pub(super) fn inode_of(&mut self, who: ProcessId, number: i32) -> Result<Place, Stop> {
        match self.file(who, number)?.object {
            Object::Path(_) => Err(Errno::BADF.into()),
            _ => self.place_of(who, number),
        }
    }

    /// Where a path that is relative to a descriptor begins.
    pub(super) fn start_of(&mut self, who: ProcessId, number: i32, path: &[u8]) -> Result<Place, Stop> {
        if number == AT_FDCWD || path.starts_with(b"/") {
            return Ok(self.top());
        }
        match self.file(who, number)?.object {
            Object::Inode(at) | Object::Path(at) => match self.live(at)?.node.is_folder() {
                true => Ok(at),
                false => Err(Errno::NOTDIR.into()),
            },
            _ => Err(Errno::NOTDIR.into()),
        }
    }
}

impl State {
    pub(in super::super) fn add_event(&mut self, who: ProcessId, count: u64, key: Key) -> Result<i32, Errno> {
        self.add_open(who, OpenFile::new(Object::Event { count, key }, OFlags::RDWR, b"eventfd"))
    }

    pub(in super::super) fn add_inotify(&mut self, who: ProcessId, key: Key) -> Result<i32, Errno> {
        self.free_number(who)?;
        let instance = self.watches.add_instance(key);
        self.add_open(who, OpenFile::new(Object::Inotify(instance), OFlags::RDONLY, b"inotify"))
    }

    pub(in super::super) fn inotify_of(&mut self, who: ProcessId, number: i32) -> Result<u64, Errno> {
        match self.file(who, number)?.object {
            Object::Inotify(instance) => Ok(instance),
            _ => Err(Errno::INVAL),
        }
    }

    pub(in super::super) fn add_watch(
        &mut self,
        who: ProcessId,
        number: i32,
        path: &[u8],
        flags: WatchFlags,
    ) -> Result<i32, Stop> {
        let instance = self.inotify_of(who, number)?;
        let start = self.top();
        let follow = !flags.contains(WatchFlags::DONT_FOLLOW);
        let place = self.find(who, start, path, How { follow, ..How::FOLLOW })?;
        let live = self.live(place)?;
        if flags.contains(WatchFlags::ONLYDIR) && !live.node.is_folder() {
            return Err(Errno::NOTDIR.into());
        }
        if !self.may(who, live, 4) {
            return Err(Errno::ACCESS.into());
        }
        Ok(self.watches.add(instance, place.volume, place.id, flags)?)
    }

    pub(in super::super) fn remove_watch(&mut self, who: ProcessId, number: i32, watch: i32) -> Result<(), Errno> {
        let instance = self.inotify_of(who, number)?;
        self.watches.remove(instance, watch)
    }

    pub(in super::super) fn take_events(
        &mut self,
        who: ProcessId,
        number: i32,
        most: usize,
    ) -> Result<Vec<Event>, Errno> {
        let instance = self.inotify_of(who, number)?;
        let events = self.watches.take(instance, most);
        if events.is_empty() { Err(Errno::AGAIN) } else { Ok(events) }
    }
}
