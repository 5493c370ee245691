//! The calls that make files and folders durable, at leader and follower.

use std::fmt::Debug;
use std::io;

use crate::sys::fd::BorrowedFd;
use crate::sys::rustix;

/// The calls that make durable. The system's own, but for tests: those look on, or let them fail.
#[doc(hidden)]
pub trait Flusher: Debug + Send + Sync {
    /// Content and length of a file.
    fn file(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(file)?)
    }

    /// Content, length, mode and times of a file.
    fn whole_file(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        Ok(rustix::fs::fsync(file)?)
    }

    /// Entries of a folder, and its mode.
    fn folder(&self, folder: BorrowedFd<'_>) -> io::Result<()> {
        Ok(rustix::fs::fsync(folder)?)
    }

    /// Everything on the file system of a directory.
    fn file_system(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        Ok(rustix::fs::syncfs(directory)?)
    }
}

/// The system's calls.
#[derive(Debug)]
pub(crate) struct SystemFlusher;

impl Flusher for SystemFlusher {}
