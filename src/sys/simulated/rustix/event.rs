//! `poll` and `eventfd`, as `rustix::event` has them.

use std::time::Duration;

pub use ::rustix::event::{EventfdFlags, PollFlags, Timespec};
use ::rustix::io::Result;

use super::super::disk;
use super::super::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use super::super::world::{self, What};

/// As [`::rustix::event::PollFd`].
#[derive(Clone, Debug)]
pub struct PollFd<'fd> {
    fd: BorrowedFd<'fd>,
    wanted: PollFlags,
    found: PollFlags,
}

impl<'fd> PollFd<'fd> {
    pub fn new(fd: &'fd impl AsFd, wanted: PollFlags) -> Self {
        Self { fd: fd.as_fd(), wanted, found: PollFlags::empty() }
    }

    #[must_use]
    pub fn revents(&self) -> PollFlags {
        self.found
    }
}

/// # Errors
///
/// The process has no descriptor left.
#[track_caller]
pub fn eventfd(count: u32, _: EventfdFlags) -> Result<OwnedFd> {
    let key = world::current().new_key();
    let made = disk::call("eventfd2", |_| String::new(), |state, who| Ok(state.add_event(who, count.into(), key)?));
    Ok(OwnedFd::own(made?))
}

/// # Errors
///
/// The world says so, or a descriptor is none.
#[track_caller]
pub fn poll(fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> Result<usize> {
    let world = world::current();
    let who = world.process();
    world::step();
    world.may_fail("poll").map_err(|error| super::io::errno(&error))?;
    let timeout = timeout.map(|time| {
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
    });
    let deadline = timeout.and_then(|timeout| world.now().checked_add(timeout));
    let mut keys = Vec::new();
    for fd in &*fds {
        keys.extend(world.with_disks(|state| state.poll_key(who, fd.fd.as_raw_fd()))?);
    }
    let mut ready = || {
        let mut count = 0;
        for fd in &mut *fds {
            fd.found = world.with_disks(|state| state.poll(who, fd.fd.as_raw_fd(), fd.wanted));
            count += usize::from(!fd.found.is_empty());
        }
        (count > 0).then_some(count)
    };
    if timeout == Some(Duration::ZERO) {
        // It blocks nobody, so locks may be held.
        return Ok(ready().unwrap_or_default());
    }
    Ok(world::wait(What::Socket, &keys, deadline, ready).unwrap_or_default())
}
