//! inotify: watches of folders, and their events as values.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::path::Path;

use crate::error::Error;
use crate::sys::rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use crate::sys::rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use crate::sys::rustix::io::Errno;

/// Events read before what they touched is examined, so that a storm of them cannot keep us from announcing.
const EVENTS_PER_ROUND_MAX: usize = 65_536;
const BUFFER_BYTES: usize = 64 << 10;

/// Events that are kept at most.
const KEPT_MAX: usize = 65_536;

/// Writes and truncations; names that come and go; and the folder itself going.
///
/// `ATTRIB` says nothing of a content: it comes after permissions, owners and times were set (`tar`, `cp -p`), which no file is compared for.
const WATCHED: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::DONT_FOLLOW);

/// What an event says.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event<'a> {
    /// Something happened to this name in the watched folder; `appeared`: it was created there or moved there.
    Entry { watch: i32, name: Cow<'a, [u8]>, appeared: bool },
    /// Permissions, owner or times of this name in the watched folder were set.
    Attributes { watch: i32, name: Cow<'a, [u8]> },
    /// The watch is gone: its folder was deleted or unmounted, or we removed it.
    Ended { watch: i32 },
    /// The folder itself was moved.
    Moved { watch: i32 },
    /// Events were lost.
    Overflow,
}

impl Event<'_> {
    fn into_owned(self) -> Event<'static> {
        match self {
            Self::Entry { watch, name, appeared } => Event::Entry { watch, name: name.into_owned().into(), appeared },
            Self::Attributes { watch, name } => Event::Attributes { watch, name: name.into_owned().into() },
            Self::Ended { watch } => Event::Ended { watch },
            Self::Moved { watch } => Event::Moved { watch },
            Self::Overflow => Event::Overflow,
        }
    }
}

pub(crate) struct Inotify {
    fd: OwnedFd,
    buffer: Vec<MaybeUninit<u8>>,
    /// Read, and not given to anybody yet.
    kept: BTreeSet<Event<'static>>,
}

impl Inotify {
    pub(crate) fn new() -> Result<Self, Error> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(|errno| match errno {
            Errno::MFILE => Error::Setting {
                name: "fs.inotify.max_user_instances",
                reason: "this user has no inotify instance left: raise it with sysctl, or stop other watchers".into(),
            },
            errno => Error::io("watch", "inotify", errno),
        })?;
        Ok(Self { fd, buffer: vec![MaybeUninit::uninit(); BUFFER_BYTES], kept: BTreeSet::new() })
    }

    /// Watches a folder. A folder that is watched already, also under another name, gets the same watch.
    pub(crate) fn add(&self, folder: &Path) -> Result<i32, Errno> {
        inotify::add_watch(&self.fd, folder, WATCHED)
    }

    /// Forgets a watch; one that has ended by itself is no error.
    pub(crate) fn remove(&self, watch: i32) {
        let _ = inotify::remove_watch(&self.fd, watch);
    }

    /// Reads the events that are pending, so that the system's queue has room, and keeps each once for the next [`read`](Self::read); never blocks.
    /// What is beyond [`KEPT_MAX`] is lost, as it would be there.
    pub(crate) fn keep(&mut self) {
        let mut kept = std::mem::take(&mut self.kept);
        // Whoever reads next meets the same error.
        let _ = self.read(&mut |event| {
            let is_room = kept.len() < KEPT_MAX;
            kept.insert(if is_room { event.into_owned() } else { Event::Overflow });
        });
        self.kept = kept;
    }

    /// What an overflow of the system's queue does.
    #[cfg(test)]
    pub(crate) fn lose_pending(&mut self) {
        let _ = self.read(&mut |_| {});
        self.kept.insert(Event::Overflow);
    }

    /// Calls `sink` with the events that are kept, and those that are pending; never blocks.
    pub(crate) fn read(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> Result<(), Errno> {
        std::mem::take(&mut self.kept).into_iter().for_each(&mut *sink);
        let mut reader = inotify::Reader::new(self.fd.as_fd(), &mut self.buffer);
        let mut events = 0;
        while events < EVENTS_PER_ROUND_MAX || !reader.is_buffer_empty() {
            events += 1;
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            let (watch, flags) = (event.wd(), event.events());
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                sink(Event::Overflow);
            } else if flags.contains(ReadFlags::IGNORED) {
                sink(Event::Ended { watch });
            } else if flags.contains(ReadFlags::MOVE_SELF) {
                sink(Event::Moved { watch });
            } else if let Some(name) = event.file_name() {
                if flags.contains(ReadFlags::ATTRIB) {
                    sink(Event::Attributes { watch, name: name.to_bytes().into() });
                    continue;
                }
                let appeared = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
                sink(Event::Entry { watch, name: name.to_bytes().into(), appeared });
            }
        }
        Ok(())
    }
}

impl AsFd for Inotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn events_are_kept_once_each() {
        let dir = tempfile::tempdir().unwrap();
        let mut inotify = Inotify::new().unwrap();
        let watch = inotify.add(dir.path()).unwrap();
        for round in 0..3 {
            for name in ["a", "b"] {
                fs::write(dir.path().join(name), [round]).unwrap();
            }
            inotify.keep();
        }
        fs::write(dir.path().join("c"), "c").unwrap();
        let mut read = Vec::new();
        let mut note = |event: Event<'_>| match event {
            Event::Entry { watch: of, name, .. } if of == watch => read.push(String::from_utf8(name.to_vec()).unwrap()),
            _ => panic!("another event"),
        };
        inotify.read(&mut note).unwrap();
        read.sort();
        assert_eq!(read, ["a", "a", "b", "b", "c", "c"], "made, and written");
    }
}
