//! Processes of a simulated world, as they see themselves.

use super::fd::{AsFd, AsRawFd};
use super::world;

/// As [`std::process::id`].
#[must_use]
pub fn id() -> u32 {
    u32::try_from(world::current().process().0).expect("few")
}

/// Another one after each power cut of the disk that `root` is on: that is what a machine is known by.
#[must_use]
pub fn boot_id(root: impl AsFd) -> Option<u128> {
    let (world, number) = (world::current(), root.as_fd().as_raw_fd());
    let boots = world.with_disks(|state| state.boots(world.process(), number)).ok();
    world.trace(|| format!("boot id {boots:?}"));
    boots
}
