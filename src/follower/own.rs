//! `.paceline/`, the follower's own folder in the data directory: the one temporary file, and the marks of a directory that is no
//! copy. Part of [`Dir`]. The folder is there only while there is something in it. One thread may find it empty and remove it
//! while another makes it for a file: one leaf lock, held for those few system calls, puts the one before the other.

use std::fs::File;
use std::os::fd::AsFd;

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{AtFlags, Dir as Entries, FileType, OFlags};
use rustix::io::Errno;

use super::dir::Dir;
use crate::datadir::{INCOMPLETE_MARK, SUSPECT_MARK};
use crate::error::Error;
use crate::types::{OWN_FOLDER, RelPath};

/// Names in the folder.
#[derive(Debug)]
pub(super) struct Own {
    /// The one file that is being received: there is one reader, and it receives one at a time.
    temporary: RelPath,
    pub(super) incomplete: RelPath,
    pub(super) suspect: RelPath,
    /// Held while the folder is removed, and while it and a file in it are made.
    changing: Mutex<()>,
}

impl Own {
    pub(super) fn new() -> Result<Self, Error> {
        let own = |name| RelPath::new(&format!("{OWN_FOLDER}/{name}"));
        let (temporary, incomplete, suspect) = (own("incoming")?, own(INCOMPLETE_MARK)?, own(SUSPECT_MARK)?);
        Ok(Self { temporary, incomplete, suspect, changing: Mutex::default() })
    }

    /// Taken before the own folder is removed, or something in it is made; nothing for any other name.
    pub(super) fn lock_for(&self, path: &str) -> Option<MutexGuard<'_, ()>> {
        (path.split('/').next() == Some(OWN_FOLDER)).then(|| self.changing.lock())
    }
}

impl Dir {
    /// A new, empty temporary file. Only one can be in use at a time.
    pub(super) fn create_temporary(&self) -> Result<File, Error> {
        self.remove_temporary()?;
        self.open_made(&self.own.temporary, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)
    }

    /// Removes the temporary file, if there is one, and the own folder, if there is nothing else in it.
    pub(super) fn remove_temporary(&self) -> Result<(), Error> {
        self.remove(&self.own.temporary).map(drop)
    }

    /// Makes the temporary file the content of `path`, in one step: nobody sees a part of it.
    pub(super) fn place_temporary(&self, path: &RelPath) -> Result<(), Error> {
        let (folder, name) = self.parent_made(path)?;
        if self.kind_of(&folder, name, path)? == Some(FileType::Directory) {
            return Err(self.refused(path.as_str(), "is a folder that is not empty, and the leader has a file there"));
        }
        let (own, temporary) = self.parent_made(&self.own.temporary)?;
        rustix::fs::renameat(own, temporary, folder, name).map_err(|error| self.failed("replace", path.as_str(), error))
    }

    /// Removes the own folder, if there is nothing in it.
    pub(super) fn remove_own_folder(&self) {
        self.remove_folder(OWN_FOLDER);
    }

    /// Removes what an earlier run left in the own folder, except for the marks.
    pub(super) fn tidy(&self) -> Result<(), Error> {
        let Some((folder, _)) = self.parent(&self.own.incomplete, false)? else { return Ok(()) };
        let failed = |error: Errno| self.failed("list", OWN_FOLDER, error);
        for entry in Entries::read_from(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if [&b"."[..], b"..", INCOMPLETE_MARK.as_bytes(), SUSPECT_MARK.as_bytes()].contains(&name.to_bytes()) {
                continue;
            }
            match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                // Not ours to take apart, and in nobody's way.
                Err(Errno::ISDIR | Errno::PERM) => log::warn!("left alone: {OWN_FOLDER}/{}", name.to_string_lossy()),
                Err(error) => {
                    return Err(self.failed("remove", &format!("{OWN_FOLDER}/{}", name.to_string_lossy()), error));
                }
            }
        }
        self.remove_own_folder();
        Ok(())
    }

    /// Marks the directory as incomplete; the mark is on disk when this returns.
    pub(super) fn mark_incomplete(&self) -> Result<(), Error> {
        let file = self.open_made(&self.own.incomplete, OFlags::WRONLY | OFlags::CREATE)?;
        self.flush_file(self.own.incomplete.as_str(), &file)?;
        self.flush_folders([OWN_FOLDER].into_iter())
    }

    /// Takes the mark away; that is on disk when this returns.
    pub(super) fn clear_incomplete(&self) -> Result<(), Error> {
        self.remove_mark(&self.own.incomplete)?;
        self.flush_folders([OWN_FOLDER].into_iter())?;
        self.remove_own_folder();
        Ok(())
    }

    /// Removes a mark, if it is there.
    pub(super) fn remove_mark(&self, mark: &RelPath) -> Result<(), Error> {
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
    use std::io::Write;

    use super::*;

    fn opened() -> (tempfile::TempDir, Dir) {
        let temporary = tempfile::tempdir().unwrap();
        let dir = Dir::open(temporary.path()).unwrap();
        (temporary, dir)
    }

    #[test]
    fn the_own_folder_may_be_removed_by_one_thread_while_another_needs_it() {
        let (_root, dir) = opened();
        std::thread::scope(|scope| {
            let remover = scope.spawn(|| (0..20_000).for_each(|_| dir.remove_own_folder()));
            while !remover.is_finished() {
                dir.create_temporary().unwrap().write_all(b"x").unwrap();
                dir.place_temporary(&RelPath::new("a").unwrap()).unwrap();
            }
        });
    }

    #[test]
    fn leftovers_go_and_the_mark_stays_until_it_is_cleared() {
        let (root, dir) = opened();
        dir.mark_incomplete().unwrap();
        drop(dir.create_temporary().unwrap());
        dir.tidy().unwrap();
        assert!(crate::datadir::is_incomplete(root.path()));
        assert_eq!(fs::read_dir(root.path().join(OWN_FOLDER)).unwrap().count(), 1);
        dir.clear_incomplete().unwrap();
        assert!(!crate::datadir::is_incomplete(root.path()) && !root.path().join(OWN_FOLDER).exists());
    }
}
