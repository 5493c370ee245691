//! Descriptors of a simulated world, under the names of `std::os::fd`: each belongs to the process that opened it.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use super::disk::{self, AT_FDCWD};
use super::world::{self, ProcessId, World};

pub type RawFd = i32;

/// As [`std::os::fd::OwnedFd`].
pub struct OwnedFd {
    world: Arc<World>,
    owner: ProcessId,
    number: RawFd,
}

impl OwnedFd {
    /// The descriptor of that number, of this thread's process.
    pub(super) fn own(number: RawFd) -> Self {
        let world = world::current();
        Self { owner: world.process(), world, number }
    }

    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let again = disk::call(
            "fcntl",
            |state| state.shown(self.owner, self.number),
            |state, who| Ok(state.duplicate(who, self.number)?),
        );
        Ok(Self::own(again?))
    }
}

impl Drop for OwnedFd {
    fn drop(&mut self) {
        self.world.with_disks(|state| state.close(self.owner, self.number));
    }
}

impl fmt::Debug for OwnedFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedFd").field("fd", &self.number).finish()
    }
}

/// As [`std::os::fd::BorrowedFd`].
#[derive(Clone, Copy)]
pub struct BorrowedFd<'a> {
    number: RawFd,
    of: PhantomData<&'a OwnedFd>,
}

impl BorrowedFd<'static> {
    pub(super) const CWD: Self = Self { number: AT_FDCWD, of: PhantomData };
}

impl BorrowedFd<'_> {
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn try_clone_to_owned(&self) -> io::Result<OwnedFd> {
        let number = self.number;
        Ok(OwnedFd::own(disk::call("fcntl", |_| number.to_string(), |state, who| Ok(state.duplicate(who, number)?))?))
    }
}

impl fmt::Debug for BorrowedFd<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BorrowedFd").field("fd", &self.number).finish()
    }
}

/// As [`std::os::fd::AsFd`].
pub trait AsFd {
    fn as_fd(&self) -> BorrowedFd<'_>;
}

/// As [`std::os::fd::AsRawFd`].
pub trait AsRawFd {
    fn as_raw_fd(&self) -> RawFd;
}

impl AsFd for OwnedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        BorrowedFd { number: self.number, of: PhantomData }
    }
}

impl AsFd for BorrowedFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        *self
    }
}

impl<T: AsFd + ?Sized> AsFd for &T {
    fn as_fd(&self) -> BorrowedFd<'_> {
        T::as_fd(self)
    }
}

impl<T: AsFd + ?Sized> AsFd for &mut T {
    fn as_fd(&self) -> BorrowedFd<'_> {
        T::as_fd(self)
    }
}

impl<T: AsFd + ?Sized> AsFd for Arc<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        T::as_fd(self)
    }
}

impl<T: AsFd + ?Sized> AsFd for Box<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        T::as_fd(self)
    }
}

/// The client proxies are out of the simulation's reach: their sockets count as the first descriptor.
impl AsFd for std::net::TcpStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        BorrowedFd { number: 3, of: PhantomData }
    }
}

impl AsRawFd for BorrowedFd<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.number
    }
}

impl AsRawFd for OwnedFd {
    fn as_raw_fd(&self) -> RawFd {
        self.number
    }
}
