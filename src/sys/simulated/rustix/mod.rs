//! What is used of `rustix`, in a simulated world. Plain data is the real crate's.

pub mod event;
pub mod fs;
pub mod io;

pub mod fd {
    pub use super::super::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
}

pub mod param {
    #[must_use]
    pub fn page_size() -> usize {
        4096
    }
}

pub mod process {
    pub use ::rustix::process::{Resource, Rlimit};

    use super::super::world;

    /// Of [`Resource::Nofile`]; of nothing else.
    #[must_use]
    pub fn getrlimit(resource: Resource) -> Rlimit {
        let world = world::current();
        let most = world.with_disks(|state| state.limit_of(world.process()));
        let limit = matches!(resource, Resource::Nofile).then_some(most);
        Rlimit { current: limit, maximum: limit }
    }
}

pub mod rand {
    pub use ::rustix::rand::GetRandomFlags;

    use super::super::{random, world};

    /// # Errors
    ///
    /// The world says so.
    pub fn getrandom(bytes: &mut [u8], _: GetRandomFlags) -> ::rustix::io::Result<usize> {
        world::current().may_fail("getrandom").map_err(|error| super::io::errno(&error))?;
        random::fill(bytes);
        Ok(bytes.len())
    }
}
