//! inotify of the simulated file systems: who watches which inode, and the events that wait to be read.

use std::collections::{BTreeMap, VecDeque};

use ::rustix::fs::inotify::{ReadFlags, WatchFlags};
use ::rustix::io::Errno;

use super::super::world::{self, Key};
use super::volume::Id;

/// As of the kernel's `fs.inotify.max_queued_events` and `max_user_watches`.
#[derive(Clone, Copy, Debug)]
pub struct WatchLimits {
    pub queued_max: usize,
    pub watches_max: usize,
}

impl Default for WatchLimits {
    fn default() -> Self {
        Self { queued_max: 16_384, watches_max: 65_536 }
    }
}

/// An event as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Event {
    pub(in super::super) watch: i32,
    pub(in super::super) flags: ReadFlags,
    pub(in super::super) cookie: u32,
    pub(in super::super) name: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Instance {
    /// The watches, by inode.
    watches: BTreeMap<i32, (usize, Id, WatchFlags)>,
    next: i32,
    queue: VecDeque<Event>,
    key: Key,
}

#[derive(Debug, Default)]
pub(super) struct Watches {
    instances: BTreeMap<u64, Instance>,
    next: u64,
    cookie: u32,
    pub(super) limits: WatchLimits,
}

impl Watches {
    pub(super) fn add_instance(&mut self, key: Key) -> u64 {
        self.next += 1;
        let instance = Instance { watches: BTreeMap::new(), next: 1, queue: VecDeque::new(), key };
        self.instances.insert(self.next, instance);
        self.next
    }

    pub(super) fn remove_instance(&mut self, instance: u64) {
        self.instances.remove(&instance);
    }

    pub(super) fn key(&self, instance: u64) -> Option<Key> {
        self.instances.get(&instance).map(|instance| instance.key)
    }

    pub(super) fn has_events(&self, instance: u64) -> bool {
        self.instances.get(&instance).is_some_and(|instance| !instance.queue.is_empty())
    }

    pub(super) fn add(&mut self, instance: u64, volume: usize, id: Id, flags: WatchFlags) -> Result<i32, Errno> {
        let watches: usize = self.instances.values().map(|instance| instance.watches.len()).sum();
        let full = watches >= self.limits.watches_max;
        let instance = self.instances.get_mut(&instance).ok_or(Errno::INVAL)?;
        let there = instance.watches.iter_mut().find(|(_, watch)| (watch.0, watch.1) == (volume, id));
        if let Some((watch, (_, _, had))) = there {
            *had = if flags.contains(WatchFlags::MASK_ADD) { *had | flags } else { flags };
            return Ok(*watch);
        }
        if full {
            return Err(Errno::NOSPC);
        }
        let watch = instance.next;
        instance.next += 1;
        instance.watches.insert(watch, (volume, id, flags));
        Ok(watch)
    }

    pub(super) fn remove(&mut self, instance: u64, watch: i32) -> Result<(), Errno> {
        let limits = self.limits;
        let instance = self.instances.get_mut(&instance).ok_or(Errno::INVAL)?;
        instance.watches.remove(&watch).ok_or(Errno::INVAL)?;
        instance.push(Event { watch, flags: ReadFlags::IGNORED, cookie: 0, name: None }, limits);
        Ok(())
    }

    pub(super) fn take(&mut self, instance: u64, most: usize) -> Vec<Event> {
        let Some(instance) = self.instances.get_mut(&instance) else { return Vec::new() };
        let count = instance.queue.len().min(most);
        instance.queue.drain(..count).collect()
    }

    pub(super) fn new_cookie(&mut self) -> u32 {
        self.cookie += 1;
        self.cookie
    }

    /// Something happened to an inode, or to a name in it.
    pub(super) fn tell(&mut self, volume: usize, id: Id, flags: ReadFlags, cookie: u32, name: Option<&[u8]>) {
        let kind = ReadFlags::from_bits_retain(flags.bits() & !ReadFlags::ISDIR.bits());
        for instance in self.instances.values_mut() {
            let watching = instance.watches.iter().find(|(_, watch)| (watch.0, watch.1) == (volume, id));
            let Some((watch, (_, _, wanted))) = watching else { continue };
            if wanted.bits() & kind.bits() != 0 {
                let event = Event { watch: *watch, flags, cookie, name: name.map(<[u8]>::to_vec) };
                instance.push(event, self.limits);
            }
        }
    }

    /// An inode is no more.
    pub(super) fn gone(&mut self, volume: usize, id: Id) {
        self.tell(volume, id, ReadFlags::DELETE_SELF, 0, None);
        self.end(|watched| watched == (volume, id));
    }

    /// A file system is no more.
    pub(super) fn unmounted(&mut self, volume: usize) {
        let of_volume = |instance: &Instance| {
            instance.watches.iter().filter(|(_, of)| of.0 == volume).map(|(watch, _)| *watch).collect::<Vec<_>>()
        };
        for instance in self.instances.values_mut() {
            for watch in of_volume(instance) {
                instance.push(Event { watch, flags: ReadFlags::UNMOUNT, cookie: 0, name: None }, self.limits);
            }
        }
        self.end(|watched| watched.0 == volume);
    }

    fn end(&mut self, is_over: impl Fn((usize, Id)) -> bool) {
        for instance in self.instances.values_mut() {
            let over = instance.watches.iter().filter(|(_, (volume, id, _))| is_over((*volume, *id)));
            for watch in over.map(|(watch, _)| *watch).collect::<Vec<_>>() {
                instance.watches.remove(&watch);
                instance.push(Event { watch, flags: ReadFlags::IGNORED, cookie: 0, name: None }, self.limits);
            }
        }
    }
}

impl Instance {
    fn push(&mut self, event: Event, limits: WatchLimits) {
        if self.queue.back() == Some(&event) {
            return;
        }
        if self.queue.len() < limits.queued_max {
            self.queue.push_back(event);
        } else if self.queue.back().is_none_or(|last| !last.flags.contains(ReadFlags::QUEUE_OVERFLOW)) {
            self.queue.push_back(Event { watch: -1, flags: ReadFlags::QUEUE_OVERFLOW, cookie: 0, name: None });
        }
        world::wake(self.key);
    }
}
