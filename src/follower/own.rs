//! What a follower has in `.paceline/` (see [`own_folder`](crate::own_folder)) while it works: the marks of a
//! directory that is no copy. (What is staged there is in [`stage`](super::stage).) Part of [`Dir`], whose way to a file these take, and whose flusher.

use super::dir::Dir;
use crate::error::Error;
use crate::own_folder::{INCOMPLETE_MARK, SUSPECT_MARK};
use crate::sys::fd::AsFd;
use crate::sys::rustix;
use crate::sys::rustix::fs::{AtFlags, OFlags};
use crate::sys::rustix::io::Errno;
use crate::types::{OWN_FOLDER, RelPath};

/// Names in the folder.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) incomplete: RelPath,
    pub(super) suspect: RelPath,
}

impl Own {
    pub(super) fn new() -> Result<Self, Error> {
        let own = |name| RelPath::new(&format!("{OWN_FOLDER}/{name}"));
        Ok(Self { incomplete: own(INCOMPLETE_MARK)?, suspect: own(SUSPECT_MARK)? })
    }
}

impl Dir {
    /// Marks the directory as incomplete; the mark is on disk when this returns.
    pub(super) fn mark_incomplete(&self) -> Result<(), Error> {
        let file = self.open_made(&self.own.incomplete, OFlags::WRONLY | OFlags::CREATE)?;
        self.flush_file(self.own.incomplete.as_str(), &file)?;
        self.flush_folders([OWN_FOLDER].into_iter())
    }

    /// Takes the mark away; that is on disk when this returns.
    pub(super) fn clear_incomplete(&self) -> Result<(), Error> {
        self.remove_own(&self.own.incomplete)?;
        self.flush_folders([OWN_FOLDER].into_iter())
    }

    /// Removes a mark, or what is staged, if it is there.
    pub(super) fn remove_own(&self, mark: &RelPath) -> Result<(), Error> {
        let Some((folder, name)) = self.parent(mark, false)? else { return Ok(()) };
        match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed("remove", mark.as_str(), error)),
        }
    }

    /// Makes a mark, durable if that can be done.
    pub(super) fn leave_mark(&self, mark: &RelPath) -> Result<(), Error> {
        let file = self.open_made(mark, OFlags::WRONLY | OFlags::CREATE)?;
        // A disk that has just failed may do so again; the mark is there, and tells whom the cache would deceive.
        let _ = self.flusher.file(file.as_fd());
        let _ = self.open_folder(OWN_FOLDER)?.map(|folder| self.flusher.folder(folder.as_fd()));
        let _ = self.flusher.folder(self.root());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_staged_goes_and_the_mark_stays_until_it_is_cleared() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let left = || fs::read_dir(root.path().join(OWN_FOLDER)).unwrap().count();
        dir.mark_incomplete().unwrap();
        drop(dir.stage(&RelPath::new("a").unwrap()).unwrap());
        crate::own_folder::OwnFolder::of(root.path()).unwrap().tidy().unwrap();
        assert!(crate::own_folder::is_incomplete(root.path()));
        assert_eq!(left(), 1);
        dir.clear_incomplete().unwrap();
        assert!(!crate::own_folder::is_incomplete(root.path()));
        assert_eq!(left(), 0);
    }
}
