//! inotify, as `rustix::fs::inotify` has it.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

pub use ::rustix::fs::inotify::{CreateFlags, ReadFlags, WatchFlags};
use ::rustix::io::Result;
use ::rustix::path::Arg;

use super::super::super::disk;
use super::super::super::fd::{AsFd, AsRawFd, OwnedFd};
use super::super::super::world;

/// What an event takes of a buffer at least.
const EVENT_BYTES: usize = 32;

/// # Errors
///
/// The process has no descriptor left.
#[track_caller]
pub fn init(_: CreateFlags) -> Result<OwnedFd> {
    let key = world::current().new_key();
    let made = disk::call("inotify_init1", |_| String::new(), |state, who| Ok(state.add_inotify(who, key)?));
    Ok(OwnedFd::own(made?))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn add_watch(fd: impl AsFd, path: impl Arg, flags: WatchFlags) -> Result<i32> {
    let number = fd.as_fd().as_raw_fd();
    let path = path.into_c_str()?;
    let about = |_: &disk::State| path.to_string_lossy().into_owned();
    disk::call("inotify_add_watch", about, |state, who| state.add_watch(who, number, path.to_bytes(), flags))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn remove_watch(fd: impl AsFd, watch: i32) -> Result<()> {
    let number = fd.as_fd().as_raw_fd();
    disk::call("inotify_rm_watch", |_| watch.to_string(), |state, who| Ok(state.remove_watch(who, number, watch)?))
}

/// As [`::rustix::fs::inotify::Reader`]; it never blocks.
pub struct Reader<'buf, Fd: AsFd> {
    fd: Fd,
    events: VecDeque<disk::WatchEvent>,
    most: usize,
    buffer: PhantomData<&'buf mut [MaybeUninit<u8>]>,
}

/// As [`::rustix::fs::inotify::Event`].
#[derive(Debug)]
pub struct Event<'a> {
    event: disk::WatchEvent,
    name: Option<CString>,
    reader: PhantomData<&'a ()>,
}

impl<'buf, Fd: AsFd> Reader<'buf, Fd> {
    pub fn new(fd: Fd, buffer: &'buf mut [MaybeUninit<u8>]) -> Self {
        Self { fd, events: VecDeque::new(), most: (buffer.len() / EVENT_BYTES).max(1), buffer: PhantomData }
    }

    /// # Errors
    ///
    /// As of `read`: `EAGAIN` if there is none.
    #[track_caller]
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Event<'_>> {
        if self.events.is_empty() {
            let (number, most) = (self.fd.as_fd().as_raw_fd(), self.most);
            let taken =
                disk::call("read", |_| "inotify".into(), |state, who| Ok(state.take_events(who, number, most)?));
            self.events = taken?.into();
        }
        let event = self.events.pop_front().ok_or(::rustix::io::Errno::AGAIN)?;
        let name = event.name.clone().map(|name| CString::new(name).expect("a name has no zero byte"));
        Ok(Event { event, name, reader: PhantomData })
    }

    pub fn is_buffer_empty(&self) -> bool {
        self.events.is_empty()
    }
}

impl Event<'_> {
    #[must_use]
    pub fn wd(&self) -> i32 {
        self.event.watch
    }

    #[must_use]
    pub fn events(&self) -> ReadFlags {
        self.event.flags
    }

    #[must_use]
    pub fn cookie(&self) -> u32 {
        self.event.cookie
    }

    #[must_use]
    pub fn file_name(&self) -> Option<&CStr> {
        self.name.as_deref()
    }
}
