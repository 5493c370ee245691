//! Making durable: which calls do it, what they tell of failures, and what holds after one.
//!
//! No threads and no locks; one latch, which any thread sets and the reader clears between two connections.
//!
//! # One by one, or the file system
//!
//! [`Unflushed`] collects what was changed. Up to [`FLUSHED_SINGLY_FILES_MAX`] files are flushed one by one (`fdatasync`, which
//! includes the length; `fsync` if mode or times were set, which that leaves out) and then the folders whose entries changed; more, with one `syncfs`. Measured on ext4: each
//! `fdatasync` costs a commit of the journal, 0.2 to 3 ms on an idle or busy disk, a folder after it next to nothing; a `syncfs`
//! costs one and a half to two commits *and* whatever else is dirty on the file system, 2 ms a MiB. So on an idle file system it
//! is the cheaper way from 2 files on (64 files: 11 against 2 ms), beside another writer with 16 MiB of dirty data from 16
//! on, and beside one with 256 MiB not at all (64 files: 35 against 400 ms). 8 files lose little either way.
//!
//! # Failures are told once
//!
//! When writing back a page fails, Linux marks the page clean and notes the failure, in the file and, since 5.8, in its file
//! system. Each open file description is told of it once by its next `fsync` if it was open by then; one that is opened later
//! only if nobody was told before, and only while the inode stays in memory. `syncfs` does the same with the file system's note.
//! So:
//!
//! - A file's handle through which it was written is kept, the oldest one, until the file was flushed through it.
//! - When there are too many to keep, it is `syncfs` through the directory's own descriptor, which is open for as long as the
//!   follower lives, and one for each file system that is mounted below it (see [`Mounts`](crate::mounts)): it is told of every failure in that time, of any file, whoever was told too.
//! - After a start the first flush is a `syncfs`: it is told also of failures since the follower before was killed, unless
//!   another process's `syncfs` was told first. That case is not covered.
//!
//! Before Linux 5.8 `syncfs` tells nothing of failures; the follower warns when it starts there.
//!
//! What holds after a failure is in [`mend`](super::mend).
//!
//! # What is durable stays so
//!
//! In the stream nothing durable is lost to what is not durable yet: content is flushed before its name takes the place of another
//! file, and so is a cut before the file grows again (`guard` in [`Actions`](super::apply::Actions)). Otherwise a power loss could
//! leave neither the old nor the new content: file systems other than ext4 with its defaults (XFS, say) may have the new name on
//! disk long before what it names. That holds whether or not this leader has asked for anything to be made durable: another one may
//! have, or this one before it was started anew, and whoever is in the recorded set was elected by that.
//!
//! It costs the reader one `fdatasync` for each replacement of a file that is here, and each truncation; none for a new name, for
//! an append or a delete, and none in a sync.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::dir::Dir;
use crate::error::Error;
use crate::sys::fd::AsFd;
use crate::sys::fs::File;
use crate::sys::hash::HashSet;
use crate::types::RelPath;

/// At most so many files are flushed one by one; beyond it the file system is.
const FLUSHED_SINGLY_FILES_MAX: usize = 8;

/// The same for folders.
const FLUSHED_SINGLY_FOLDERS_MAX: usize = 64;

/// At most so many files are kept open until they are flushed. With those that are being flushed, and those open to append to,
/// that stays well below the usual 1024 of a process.
pub(super) const FILES_KEPT_MAX: usize = 128;

/// Changes that are not durable yet.
#[derive(Debug, Default)]
pub(super) struct Unflushed {
    files: Vec<Changed>,
    folders: HashSet<String>,
    /// The directory itself.
    top: bool,
    /// More than can be told.
    all: bool,
}

/// A file that is not durable, and the handle through which it was first written since it was.
#[derive(Debug)]
pub(super) struct Changed {
    /// A name it had, for messages.
    pub(super) path: RelPath,
    pub(super) file: Arc<File>,
    /// Its mode or its times, too.
    pub(super) is_whole: bool,
}

impl Unflushed {
    /// Whatever is on the file system.
    pub(super) fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    pub(super) fn is_all(&self) -> bool {
        self.all
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.all && !self.top && self.files.is_empty() && self.folders.is_empty()
    }

    /// More than can be told was changed.
    pub(super) fn everything(&mut self) {
        self.all = true;
        self.bound();
    }

    /// Adds files, each handle once.
    pub(super) fn add_files(&mut self, files: impl IntoIterator<Item = Changed>) {
        for changed in files {
            match self.files.iter_mut().find(|ours| Arc::ptr_eq(&ours.file, &changed.file)) {
                Some(ours) => ours.is_whole |= changed.is_whole,
                None => self.files.push(changed),
            }
        }
        self.bound();
    }

    /// A name was put into its folder, or taken out of it; folders may have been made, or removed, on the way.
    pub(super) fn add_folders_of(&mut self, path: &RelPath) {
        if self.all {
            return;
        }
        let mut above = path.as_str();
        while let Some((folder, _)) = above.rsplit_once('/') {
            above = folder;
            if !self.folders.insert(folder.to_owned()) {
                return;
            }
        }
        self.top = true;
    }

    /// A folder was made, or its mode set.
    pub(super) fn add_folder(&mut self, path: &RelPath) {
        if !self.all {
            self.add_folders_of(path);
            self.folders.insert(path.as_str().to_owned());
        }
    }

    /// Adds others.
    pub(super) fn merge(&mut self, others: Self) {
        self.folders.extend(others.folders);
        self.top |= others.top;
        self.all |= others.all;
        self.add_files(others.files);
    }

    fn bound(&mut self) {
        self.all |= self.files.len() > FILES_KEPT_MAX;
        if self.all {
            self.files.clear();
            self.folders.clear();
        }
    }

    /// Makes them durable. Blocks as long as the disk takes.
    pub(super) fn flush(&self, dir: &Dir) -> Result<(), Error> {
        dir.check_mounts()?;
        let many = self.files.len() > FLUSHED_SINGLY_FILES_MAX || self.folders.len() > FLUSHED_SINGLY_FOLDERS_MAX;
        if self.all || many {
            dir.flush()?;
        } else {
            for changed in &self.files {
                match changed.is_whole {
                    true => dir.flush_whole_file(changed.path.as_str(), &changed.file)?,
                    false => dir.flush_file(changed.path.as_str(), &changed.file)?,
                }
            }
            if self.top || !self.folders.is_empty() {
                dir.flush_folders(self.folders.iter().map(String::as_str))?;
            }
        }
        dir.check_flushed()
    }

    /// The files, unless they cannot be told.
    pub(super) fn files(&self) -> Option<impl Iterator<Item = &File>> {
        (!self.all).then(|| self.files.iter().map(|changed| &*changed.file))
    }
}

impl Dir {
    /// Makes a file's content durable.
    pub(super) fn flush_file(&self, path: &str, file: &File) -> Result<(), Error> {
        self.flusher.file(file.as_fd()).map_err(|error| self.flush_failed(path, error))
    }

    /// Makes a file's content, mode and times durable.
    pub(super) fn flush_whole_file(&self, path: &str, file: &File) -> Result<(), Error> {
        self.flusher.whole_file(file.as_fd()).map_err(|error| self.flush_failed(path, error))
    }

    /// Makes durable what was put into, or taken out of, these folders and the directory itself.
    pub(super) fn flush_folders<'a>(&self, folders: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        for path in folders {
            // It may have gone meanwhile, or something else is there: then those above it say so.
            if let Some(folder) = self.folder_if_any(path)? {
                self.flusher.folder(folder.as_fd()).map_err(|error| self.flush_failed(path, error))?;
            }
        }
        self.flusher.folder(self.root()).map_err(|error| self.flush_failed("", error))
    }

    /// Makes all that was written durable, by whomever, on the file systems of the directory. Blocks as long as the disks take.
    pub(super) fn flush(&self) -> Result<(), Error> {
        self.check_mounts()?;
        self.sync_file_systems()?.map_err(|error| self.flush_failed("", error))
    }

    /// Syncs each of them, also if one fails. The outer error says that nothing was synced, for want of a descriptor perhaps:
    /// then no flush has failed.
    pub(super) fn sync_file_systems(&self) -> Result<io::Result<()>, Error> {
        let others = self.mounts.handles().map_err(|error| self.failed("look at the mounts below", "", error))?;
        let own = self.flusher.file_system(self.root());
        Ok(others.iter().map(|handle| self.flusher.file_system(handle.as_fd())).fold(own, io::Result::and))
    }

    /// A connection begins: what is mounted now is what it will be about.
    pub(super) fn note_mounts(&self) -> Result<(), Error> {
        let looked = self.mounts.refresh().and_then(|()| self.mounts.changes());
        let changes = looked.map_err(|error| self.failed("look at the mounts below", "", error))?;
        self.mounts_seen.store(changes, Ordering::Relaxed);
        Ok(())
    }

    /// `Err` if something was mounted or unmounted below the directory since: files that are open may be others than those that
    /// are seen there, so nothing is said of them before all were compared again.
    pub(super) fn check_mounts(&self) -> Result<(), Error> {
        let changes = self.mounts.changes().map_err(|error| self.failed("look at the mounts below", "", error))?;
        if changes == self.mounts_seen.load(Ordering::Relaxed) {
            return Ok(());
        }
        let said = "a file system was mounted or unmounted below it: all files are compared with the leader's again";
        Err(self.failed("follow into", "", io::Error::other(said)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::AtomicBool;

    use parking_lot::Mutex;

    use super::*;
    use crate::flusher::Flusher;

    /// Notes its calls, and fails when told to.
    #[derive(Debug, Default)]
    pub(in super::super) struct Noted {
        pub(in super::super) calls: Mutex<String>,
        pub(in super::super) fails: AtomicBool,
    }

    impl Noted {
        fn call(&self, call: char) -> io::Result<()> {
            self.calls.lock().push(call);
            if self.fails.load(Ordering::Relaxed) { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
        }
    }

    impl Flusher for Noted {
        fn file(&self, _: BorrowedFd<'_>) -> io::Result<()> {
            self.call('f')
        }

        fn whole_file(&self, _: BorrowedFd<'_>) -> io::Result<()> {
            self.call('F')
        }

        fn folder(&self, _: BorrowedFd<'_>) -> io::Result<()> {
            self.call('d')
        }

        fn file_system(&self, _: BorrowedFd<'_>) -> io::Result<()> {
            self.call('S')
        }
    }

    pub(in super::super) fn opened() -> (tempfile::TempDir, Arc<Noted>, Dir) {
        let (root, noted) = (tempfile::tempdir().unwrap(), Arc::<Noted>::default());
        let dir = Dir::open_flushed_by(root.path(), noted.clone()).unwrap();
        (root, noted, dir)
    }

    pub(in super::super) fn changed(dir: &Dir, name: &str) -> Changed {
        let path = RelPath::new(name).unwrap();
        Changed { file: Arc::new(dir.open_append(&path).unwrap()), path, is_whole: false }
    }

    /// The calls for so many files in one folder.
    fn calls(files: usize) -> String {
        let (_root, noted, dir) = opened();
        let mut unflushed = Unflushed::default();
        for n in 0..files {
            let file = changed(&dir, &format!("folder/{n}"));
            unflushed.add_folders_of(&file.path);
            unflushed.add_files([file]);
        }
        unflushed.flush(&dir).unwrap();
        noted.calls.lock().clone()
    }

    #[test]
    fn few_files_are_flushed_one_by_one_and_then_their_folders_and_many_with_their_file_system() {
        assert_eq!(calls(0), "");
        assert_eq!(calls(2), "ffdd");
        assert_eq!(calls(FLUSHED_SINGLY_FILES_MAX), "f".repeat(FLUSHED_SINGLY_FILES_MAX) + "dd");
        assert_eq!(calls(FLUSHED_SINGLY_FILES_MAX + 1), "S");
        assert_eq!(calls(FILES_KEPT_MAX + 1), "S");
    }

    #[test]
    fn a_handle_is_kept_once_and_not_too_many_are() {
        let (_root, _, dir) = opened();
        let file = changed(&dir, "a");
        let again = || Changed { path: file.path.clone(), file: file.file.clone(), is_whole: false };
        let mut unflushed = Unflushed::default();
        unflushed.add_files([again(), again()]);
        let mut others = Unflushed::default();
        others.add_files([again(), changed(&dir, "b")]);
        unflushed.merge(others);
        assert_eq!(unflushed.files().unwrap().count(), 2);
        unflushed.add_files((0..FILES_KEPT_MAX).map(|n| changed(&dir, &n.to_string())));
        assert!(unflushed.is_all() && unflushed.files().is_none() && Arc::strong_count(&file.file) == 1);
        unflushed.add_files([again()]);
        assert!(unflushed.files().is_none());
    }
}
