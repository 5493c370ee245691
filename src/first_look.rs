//! The first look at a directory that is watched: each folder is watched before it is listed, so what happens after the look at a file raises an event.
//!
//! It is taken during a walk ([`walk`](crate::datadir::walk)), whose visitor passes on what it meets. A leader that will be watched does so in the walk it is opened with,
//! and whoever watches takes it over ([`Leader::take_first_look`](crate::leader::Leader)): so nothing is looked at twice. Events that come until then are read from time to time, and kept. Should too many come, or the
//! system's queue overflow, everything is looked at again, as after any overflow.
//!
//! A leaf. No threads, no locks.

use std::path::Path;
use std::sync::Arc;

use crate::beneath::{Beneath, FileLooks};
use crate::digests::{Stamps, now};
use crate::error::Error;
use crate::notify::Inotify;
use crate::sys::fd::BorrowedFd;
use crate::sys::rustix::fs::fstat;
use crate::sys::rustix::io::Errno;
use crate::types::RelPath;

pub(crate) struct FirstLook {
    pub(crate) dir: Arc<Beneath>,
    pub(crate) inotify: Inotify,
    /// Each after the one it is in; the first is the directory itself.
    pub(crate) folders: Vec<WatchedFolder>,
    /// Those that were at rest.
    pub(crate) files: RestingFiles,
    /// Whatever wants another look.
    pub(crate) others: Vec<RelPath>,
    /// Before the files of the folder were looked at whose turn it is, in nanoseconds since 1970.
    now: i64,
}

/// A folder that was watched, and listed after.
pub(crate) struct WatchedFolder {
    /// `None`: the directory itself.
    pub(crate) path: Option<RelPath>,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) watch: Result<i32, Errno>,
}

/// Files that had not changed for so long that a change after the look shows in their times: some 56 bytes each.
#[derive(Default)]
pub(crate) struct RestingFiles {
    pub(crate) files: Vec<RestingFile>,
    pub(crate) devices: Vec<u64>,
}

pub(crate) struct RestingFile {
    pub(crate) path: RelPath,
    pub(crate) ino: u64,
    born: i64,
    pub(crate) len: u64,
    /// When anything of it changed last, in nanoseconds since 1970.
    pub(crate) changed: i64,
    /// Which of the devices it is on; none is the last of all numbers.
    pub(crate) device: u16,
}

/// A time of birth that nobody knows.
const UNKNOWN: i64 = i64::MIN;

impl FirstLook {
    /// At the directory at `root`, before the walk.
    ///
    /// # Errors
    ///
    /// The directory cannot be opened; [`Error::Setting`] if there is no inotify instance to be had.
    pub(crate) fn begin(root: &Path) -> Result<Self, Error> {
        let inotify = Inotify::new()?;
        let dir = Beneath::open(root).map_err(|error| Error::io("open", root, error))?;
        // Before anything is found: what is mounted now is what may be missing later.
        dir.look_at_mounts().map_err(|error| Error::io("look at the mounts below", root, error))?;
        let (folders, files, others) = (Vec::new(), RestingFiles::default(), Vec::new());
        Ok(Self { dir: Arc::new(dir), inotify, folders, files, others, now: i64::MIN })
    }

    /// A folder is about to be listed; `None` is the directory itself.
    pub(crate) fn lists(&mut self, path: Option<&RelPath>, folder: BorrowedFd<'_>) {
        self.now = now();
        let full = path.map_or_else(|| self.dir.path().to_owned(), |path| path.below(self.dir.path()));
        let looked = fstat(folder).map(|stat| (stat.st_dev, stat.st_ino));
        let watch = self.inotify.add(&full);
        match (looked, path) {
            (Ok((dev, ino)), _) => self.folders.push(WatchedFolder { path: path.cloned(), dev, ino, watch }),
            (Err(_), Some(path)) => self.others.push(path.clone()),
            (Err(errno), None) => self.folders.push(WatchedFolder { path: None, dev: 0, ino: 0, watch: Err(errno) }),
        }
    }

    /// A file that was looked at.
    pub(crate) fn file(&mut self, path: RelPath, looks: &FileLooks) {
        if !looks.stamps.settled(self.now) || !self.files.push(&path, looks) {
            self.others.push(path);
        }
    }

    /// Reads the events that are pending, and keeps them; never blocks. To be called often.
    pub(crate) fn keep_events(&mut self) {
        self.inotify.keep();
    }
}

impl RestingFiles {
    /// `false`: there are too many devices.
    pub(crate) fn push(&mut self, path: &RelPath, looks: &FileLooks) -> bool {
        let FileLooks { stamps: Stamps { dev, ino, size, ctime, .. }, born } = *looks;
        let device = self.devices.iter().position(|device| *device == dev).unwrap_or_else(|| {
            self.devices.push(dev);
            self.devices.len() - 1
        });
        let Some(device) = u16::try_from(device).ok().filter(|device| *device < u16::MAX) else { return false };
        let born = born.unwrap_or(UNKNOWN);
        self.files.push(RestingFile { path: path.clone(), ino, born, len: size, changed: ctime, device });
        true
    }
}

impl RestingFile {
    /// When it was made, in nanoseconds since 1970, where the file system knows.
    pub(crate) fn born(&self) -> Option<i64> {
        Some(self.born).filter(|born| *born != UNKNOWN)
    }
}
