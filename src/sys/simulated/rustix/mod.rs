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
    use ::rustix::io::Result;
    pub use ::rustix::process::{Pid, Resource, Rlimit};

    use super::super::world;

    /// Of [`Resource::Nofile`]; of nothing else.
    #[must_use]
    pub fn getrlimit(resource: Resource) -> Rlimit {
        let world = world::current();
        let most = world.with_disks(|state| state.limit_of(world.process()));
        let limit = matches!(resource, Resource::Nofile).then_some(most);
        Rlimit { current: limit, maximum: limit }
    }

    /// # Errors
    ///
    /// None: there are no priorities in a simulated world.
    pub fn getpriority_process(_: Option<Pid>) -> Result<i32> {
        Ok(0)
    }

    /// # Errors
    ///
    /// None: there are no priorities in a simulated world.
    pub fn setpriority_process(_: Option<Pid>, _: i32) -> Result<()> {
        Ok(())
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

pub mod thread {
    pub use ::rustix::thread::Pid;

    /// The same for all threads: it is only used to set priorities.
    #[must_use]
    pub fn gettid() -> Pid {
        Pid::INIT
    }
}
