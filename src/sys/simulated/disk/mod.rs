//! The disks of a simulated world: file systems that know what was synced.
//!
//! Each change is seen at once by all who look, and waits until a sync (`fsync`, `fdatasync`, `syncfs`) brings it to the medium.
//! [`power_cut`] leaves of what waits whatever a real file system could: any of the sectors of a file, a length without its bytes, bytes
//! without their time, any of the names that POSIX lets, each rename whole or not at all. A sync that fails (a [`Fault`] of `fsync`,
//! `fdatasync` or `syncfs`) loses what was dirty, as Linux does: the next one succeeds, once the open file was told.
//!
//! Programs reach the disks through [`super::fs`], [`super::fd`] and [`super::rustix`]. What is here is for the driver of a history:
//! to make disks and mount them, to take their power, fill, stall and restore them, and to look at what is on them.
//!
//! There is one tree of mounts for all processes. Descriptors belong to the process that opened them and end with it.
//!
//! [`Fault`]: super::world::Fault

mod content;
mod data;
mod driver;
mod names;
mod open;
mod state;
#[cfg(test)]
mod tests;
mod volume;
mod walk;
mod watch;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::rustix::io::Errno;

use super::time::SystemTime;
use super::world::{self, Key, ProcessId, What, World};
pub(super) use data::{Looks, SyncKind};
pub use driver::{
    Disk, Entry, Seen, Snapshot, add, content, durable_snapshot, durable_tree, mount, power_cut, restore,
    set_descriptors_max, set_privileged, set_watch_limits, settings, snapshot, stall, sync_all, tree, unmount, visit,
    visit_durable,
};
pub(super) use names::is_proc;
pub(super) use open::AT_FDCWD;
pub(super) use state::{State, Stop};
pub use volume::{DiskSettings, NamesAtPowerCut};
pub(super) use walk::How;
pub(super) use watch::Event as WatchEvent;
pub use watch::WatchLimits;

/// All disks of a world.
#[derive(Default)]
pub struct Disks(Mutex<Option<State>>);

impl Disks {
    pub(super) fn process_ended(&self, process: ProcessId) {
        if let Some(state) = &mut *self.lock() {
            state.close_all(process);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    /// Looks at the disks, or changes them; nothing else happens meanwhile.
    pub(super) fn with_disks<R>(&self, use_them: impl FnOnce(&mut State) -> R) -> R {
        let now = self.now();
        let since_epoch = SystemTime::at(now).since_epoch();
        let mut state = self.disks.lock();
        let state = state.get_or_insert_with(|| State::new(|| self.new_key(), since_epoch));
        (state.now, state.world_now) = (since_epoch, now);
        use_them(state)
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn outcome<T>(result: &Result<T, Errno>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(errno) => format!("{:?}", std::io::Error::from(*errno).kind()),
    }
}

/// Calls that change nothing that others could see, and see little of others: no scheduling points, or half of all steps would be
/// theirs.
const LOOKS: [&str; 9] =
    ["fcntl", "fstat", "fstatfs", "lseek", "newfstatat", "readlink", "readlinkat", "statfs", "statx"];

/// A system call of this thread's process: `name`, as `strace` shows it; `about`, for the trace; and what it does, tried again as long as
/// a disk that it needs stalls.
#[track_caller]
pub(super) fn call<T>(
    name: &'static str,
    about: impl FnOnce(&State) -> String,
    mut body: impl FnMut(&mut State, ProcessId) -> Result<T, Stop>,
) -> Result<T, Errno> {
    let world = world::current();
    if !LOOKS.contains(&name) {
        world::step();
    }
    let who = world.process();
    let result = match world.may_fail(name) {
        Err(error) => Err(errno(&error)),
        Ok(()) => loop {
            let stopped = world.with_disks(|state| {
                state.touched = None;
                body(state, who)
            });
            match stopped {
                Ok(done) => break Ok(done),
                Err(Stop::Errno(errno)) => break Err(errno),
                Err(Stop::Stalled(key, until)) => wait_for_disk(&world, key, until),
            }
        },
    };
    world.trace(|| format!("{name} {} -> {}", world.with_disks(|state| about(state)), outcome(&result)));
    let slow = world.with_disks(|state| state.slowness());
    if let Some((likely, from, to)) = slow
        && world.chance(fastrand::Rng::f64) < likely
    {
        take_time(&world, (from, to));
    }
    result
}

/// A sync of what a descriptor is of. What is done meanwhile by others is none of its.
#[track_caller]
pub(super) fn sync(name: &'static str, number: i32, kind: SyncKind) -> Result<(), Errno> {
    let world = world::current();
    world::step();
    let who = world.process();
    let begun = loop {
        match world.with_disks(|state| state.begin_sync(who, number, kind)) {
            Ok(begun) => break begun,
            Err(Stop::Errno(errno)) => return Err(errno),
            Err(Stop::Stalled(key, until)) => wait_for_disk(&world, key, until),
        }
    };
    take_time(&world, begun.time);
    let result = match world.may_fail(name) {
        Err(error) => {
            world.with_disks(|state| state.fail_sync(who, number, begun));
            Err(errno(&error))
        }
        Ok(()) => loop {
            match world.with_disks(|state| state.end_sync(who, number, begun)) {
                Ok(()) => break Ok(()),
                Err(Stop::Errno(errno)) => break Err(errno),
                Err(Stop::Stalled(key, until)) => wait_for_disk(&world, key, until),
            }
        },
    };
    world.trace(|| format!("{name} {} -> {}", world.with_disks(|state| state.shown(who, number)), outcome(&result)));
    result
}

/// Waits until a disk goes on; who tried meanwhile may have to wait again.
#[track_caller]
fn wait_for_disk(world: &World, key: Key, until: Option<Duration>) {
    world::wait(What::Disk, &[key], until, || world.with_disks(|state| !state.stalls(key)).then_some(()));
}

#[track_caller]
fn take_time(world: &World, (from, to): (Duration, Duration)) {
    let time = match from < to {
        true => world.chance(|rng| Duration::from_nanos(rng.u64(nanos(from)..nanos(to)))),
        false => from,
    };
    let until = world.now().checked_add(time);
    world::wait(What::Disk, &[], until, || None::<()>);
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
