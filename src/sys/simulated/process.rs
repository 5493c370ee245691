//! Processes of a simulated world, as they see themselves.

use super::world;

/// As [`std::process::id`].
#[must_use]
pub fn id() -> u32 {
    u32::try_from(world::current().process().0).expect("few")
}
