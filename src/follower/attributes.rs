//! What a file has besides its content: its mode, and when that changed last. Part of [`Actions`] and of [`Dir`].
//!
//! Set through a descriptor of the file, never by a name. What is known of the content stays known: only what `stat` says of it
//! is noted anew. Bits of a mode above `0777` are given to no file. That a file system, or the rights of this process, does not let
//! them be set ends nothing: it is counted, and said once a connection.
//!
//! A mode may keep us from a file, unless we are root. It is widened for the moment in which the file is opened, by way of
//! `/proc/self/fd`, since a file that cannot be opened for anything has no other descriptor than one of `O_PATH`. A lock of [`Dir`] is held for that, and while a mode is
//! looked at and set: no thread takes a widened mode for the file's, or puts an old one back over a new one.

use std::sync::Arc;

use super::apply::Actions;
use super::dir::{Dir, FILE, Folder};
use super::reshape::unreserved;
use crate::datadir::attributes_of;
use crate::digests::{NANOS, Stamps};
use crate::error::Error;
use crate::protocol::extension::Attributes;
use crate::sys::fd::{AsFd, AsRawFd, OwnedFd};
use crate::sys::fs::File;
use crate::sys::rustix;
use crate::sys::rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use crate::sys::rustix::io::{Errno, Result as Done};
use crate::types::RelPath;

/// Permissions, and the bits that a copy gives no file.
const ALL_BITS: u32 = 0o7777;

impl Actions<'_> {
    /// Gives a file these, as far as it has others. Does nothing where there is no file.
    pub(super) fn attributes(&mut self, path: &RelPath, wanted: Attributes) -> Result<(), Error> {
        self.settle()?;
        unreserved(path)?;
        let Some(file) = self.file_at(path)? else {
            log::debug!("attributes of {path}, which is no file here");
            return Ok(());
        };
        // Not while another thread has its mode widened.
        let one_at_a_time = self.dir.widening.lock();
        let stat = rustix::fs::fstat(&*file).map_err(|errno| self.dir.failed("stat", path.as_str(), errno))?;
        let before = Stamps::of(&stat);
        let mode = Some(wanted.mode & Attributes::MODE_BITS).filter(|mode| stat.st_mode & ALL_BITS != u32::from(*mode));
        let mtime = Some(wanted.mtime).filter(|mtime| *mtime != Attributes::NO_TIME && *mtime != before.mtime);
        if mode.is_none() && mtime.is_none() {
            return Ok(());
        }
        if let Some(track) = &mut self.track {
            track.sets_attributes(path, &file);
        }
        // In this order: the mode moves no time but that of the change.
        let set = mode.map_or(Ok(()), |mode| rustix::fs::fchmod(&*file, bits(mode)));
        let set = set.and(mtime.map_or(Ok(()), |mtime| set_mtime(&file, mtime)));
        self.dir.look_otherwise(path, &before, &file);
        drop(one_at_a_time);
        set.or_else(|errno| self.refused(path, errno))
    }

    /// A file that is here, open for whatever it may be.
    fn file_at(&self, path: &RelPath) -> Result<Option<Arc<File>>, Error> {
        match self.opened(path) {
            Some(file) => Ok(Some(file)),
            None => Ok(self.dir.file_if_any(path)?.map(Arc::new)),
        }
    }

    /// Attributes cannot be set here: nothing ends for that. What is another failure does.
    pub(super) fn refused(&mut self, path: &RelPath, errno: Errno) -> Result<(), Error> {
        match errno {
            Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::NAMETOOLONG => {}
            errno => return Err(self.dir.failed("set the attributes of", path.as_str(), errno)),
        }
        self.attributes_refused += 1;
        if self.attributes_refused == 1 {
            let error = self.dir.failed("set the attributes of", path.as_str(), errno);
            log::warn!(
                "{error}; this copy differs from the leader's files in that, and goes on: have the user that the follower runs as own \
                 the directory, on a file system that has modes, times and links"
            );
        }
        Ok(())
    }
}

fn bits(mode: u16) -> Mode {
    Mode::from_raw_mode(mode.into())
}

fn set_mtime(file: &File, mtime: i64) -> Done<()> {
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let last_modification = Timespec { tv_sec: mtime.div_euclid(NANOS), tv_nsec: mtime.rem_euclid(NANOS) };
    rustix::fs::futimens(file, &Timestamps { last_access, last_modification })
}

/// Gives a copy of a file that takes its place the mode and the time of that, as far as they can be set.
pub(super) fn as_of(file: &File, copy: &File) -> Done<()> {
    let attributes = attributes_of(&rustix::fs::fstat(file)?);
    let set = rustix::fs::fchmod(copy, bits(attributes.mode)).and_then(|()| set_mtime(copy, attributes.mtime));
    match set {
        Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        set => set,
    }
}

impl Dir {
    /// What is known of a file's content, which looked like this before, stays known: something else was changed, by us.
    fn look_otherwise(&self, path: &RelPath, before: &Stamps, file: impl AsFd) {
        if let Ok(now) = Stamps::of_file(file) {
            self.digests.look_otherwise(path, before, now);
        }
    }

    /// Opens a file to read; `None` if there is none, whatever else may be there or on the way.
    fn file_if_any(&self, path: &RelPath) -> Result<Option<File>, Error> {
        if let Some(fd) = self.open_at_once(path, OFlags::RDONLY) {
            return Ok(self.regular(path, fd).ok());
        }
        let Some((folder, name)) = self.way_to(path, false)? else { return Ok(None) };
        match self.kind_at(&folder, name, path)? {
            Some(FileType::RegularFile) => self.open_file(path, OFlags::RDONLY),
            _ => Ok(None),
        }
    }

    /// Opens a file whose mode forbids it. `None`: it is not that, or nothing can be done about it.
    pub(super) fn open_despite_mode(
        &self,
        (folder, name): (&Folder<'_>, &str),
        path: &RelPath,
        flags: OFlags,
    ) -> Option<OwnedFd> {
        if self.changes_nothing {
            return None;
        }
        let looks = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let looked_at = rustix::fs::openat(folder, name, looks, Mode::empty()).ok()?;
        let by_number = format!("/proc/self/fd/{}", looked_at.as_raw_fd());
        let flags = (flags | FILE).difference(OFlags::NOFOLLOW | OFlags::CREATE | OFlags::EXCL);
        let ours = Mode::RUSR | Mode::WUSR;
        let chmod = |mode: Mode| rustix::fs::chmodat(rustix::fs::CWD, &*by_number, mode, AtFlags::empty());
        let one_at_a_time = self.widening.lock();
        let stat = rustix::fs::fstat(&looked_at).ok()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        let mode = Mode::from_raw_mode(stat.st_mode);
        if mode.contains(ours) {
            // It is something else that forbids it, or it did before another thread put the mode back.
            return rustix::fs::open(&*by_number, flags, Mode::empty()).ok();
        }
        chmod(mode | ours).ok()?;
        let opened = rustix::fs::open(&*by_number, flags, Mode::empty());
        let put_back = chmod(mode);
        self.look_otherwise(path, &Stamps::of(&stat), &looked_at);
        drop(one_at_a_time);
        if let Err(errno) = put_back {
            log::warn!("{}", self.failed("put back the mode of", path.as_str(), errno));
        }
        opened.ok()
    }
}

#[cfg(test)]
mod tests;
