//! inotify: watches of folders, and their events as values.

use std::mem::MaybeUninit;
use std::path::Path;

use crate::error::Error;
use crate::sys::rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use crate::sys::rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use crate::sys::rustix::io::Errno;

/// Events read before what they touched is examined, so that a storm of them cannot keep us from announcing.
const EVENTS_PER_ROUND_MAX: usize = 65_536;
const BUFFER_BYTES: usize = 64 << 10;

/// Writes and truncations; names that come and go; and the folder itself going.
///
/// Not `ATTRIB` nor `CLOSE_WRITE`: they come after times were set by hand (`tar`, `cp -p`), which looks like a change.
const WATCHED: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::DONT_FOLLOW);

/// What an event says.
pub(super) enum Event<'a> {
    /// Something happened to this name in the watched folder; `appeared`: it was created there or moved there.
    Entry { watch: i32, name: &'a [u8], appeared: bool },
    /// The watch is gone: its folder was deleted or unmounted, or we removed it.
    Ended { watch: i32 },
    /// The folder itself was moved.
    Moved { watch: i32 },
    /// Events were lost.
    Overflow,
}

pub(super) struct Inotify {
    fd: OwnedFd,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Inotify {
    pub(super) fn new() -> Result<Self, Error> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(|errno| match errno {
            Errno::MFILE => Error::Setting {
                name: "fs.inotify.max_user_instances",
                reason: "this user has no inotify instance left: raise it with sysctl, or stop other watchers".into(),
            },
            errno => Error::io("watch", "inotify", errno),
        })?;
        Ok(Self { fd, buffer: vec![MaybeUninit::uninit(); BUFFER_BYTES] })
    }

    /// Watches a folder. A folder that is watched already, also under another name, gets the same watch.
    pub(super) fn add(&self, folder: &Path) -> Result<i32, Errno> {
        inotify::add_watch(&self.fd, folder, WATCHED)
    }

    /// Forgets a watch; one that has ended by itself is no error.
    pub(super) fn remove(&self, watch: i32) {
        let _ = inotify::remove_watch(&self.fd, watch);
    }

    /// Calls `sink` with the events that are pending; never blocks.
    pub(super) fn read(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> Result<(), Errno> {
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
                let appeared = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
                sink(Event::Entry { watch, name: name.to_bytes(), appeared });
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
