//! Reading and writing, as `rustix::io` has it.

use std::io::{IoSlice, IoSliceMut};

pub use ::rustix::io::{Errno, ReadWriteFlags, Result};

use super::super::disk;
use super::super::fd::{AsFd, AsRawFd};
use super::super::world;

/// Reads and writes at this offset are where the file stands.
const WHERE_IT_STANDS: u64 = u64::MAX;

pub(super) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn read(fd: impl AsFd, buffer: &mut [u8]) -> Result<usize> {
    let (number, me) = (fd.as_fd().as_raw_fd(), world::current().process());
    disk::call("read", |state| state.shown(me, number), |state, who| state.read(who, number, None, buffer))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn write(fd: impl AsFd, bytes: &[u8]) -> Result<usize> {
    let (number, me) = (fd.as_fd().as_raw_fd(), world::current().process());
    disk::call("write", |state| state.shown(me, number), |state, who| state.write(who, number, None, bytes))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn preadv2(fd: impl AsFd, buffers: &mut [IoSliceMut<'_>], offset: u64, _: ReadWriteFlags) -> Result<usize> {
    let (number, me) = (fd.as_fd().as_raw_fd(), world::current().process());
    let at = (offset != WHERE_IT_STANDS).then_some(offset);
    let Some(buffer) = buffers.iter_mut().find(|buffer| !buffer.is_empty()) else { return Ok(0) };
    disk::call("preadv2", |state| state.shown(me, number), |state, who| state.read(who, number, at, buffer))
}

/// # Errors
///
/// As of the system call.
#[track_caller]
pub fn pwritev2(fd: impl AsFd, buffers: &[IoSlice<'_>], offset: u64, _: ReadWriteFlags) -> Result<usize> {
    let (number, me) = (fd.as_fd().as_raw_fd(), world::current().process());
    let at = (offset != WHERE_IT_STANDS).then_some(offset);
    let Some(bytes) = buffers.iter().find(|buffer| !buffer.is_empty()) else { return Ok(0) };
    disk::call("pwritev2", |state| state.shown(me, number), |state, who| state.write(who, number, at, bytes))
}
