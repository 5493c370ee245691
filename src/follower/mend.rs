//! What becomes of a directory in which a flush has failed.
//!
//! Nothing is called durable any more, in any thread ([`Dir::is_suspect`] is a latch): the connection ends and nothing is
//! acknowledged. What must not happen then is that the next connection reads the files to compare them, gets what the page cache
//! has, which is what the leader has, flushes, which succeeds because the kernel took those pages for clean when it could not
//! write them, and calls durable what is on no disk (PostgreSQL's "fsyncgate").
//!
//! So before the next connection the reader *copies* each file that was not durable to a new one, flushes that and puts
//! it in the other's place ([`Dir::mend`]). Whatever was read, cached or stale, is on disk then, and reading, which always follows,
//! compares with the leader what is on disk. If it cannot be done, the follower stays away and tries again.
//!
//! Less was tried, and does not do. Writing the same bytes to the same place is not enough: on ext4 (6.18) the blocks of a failed
//! write stay as if they had never been written, though the second write and its flush succeed; they read as zeros after a power
//! loss. Dropping the cache before (`POSIX_FADV_DONTNEED`) helps, but is a hint to the kernel, and not all file systems
//! have `O_DIRECT`. A new file has no past. It costs reading and writing the files in question, and room for the largest of them.
//!
//! Which those are is known as long as their handles are kept (see [`flush`](super::flush)); otherwise, all. A failure also
//! leaves a mark, `.paceline/suspect`: a follower that is started anew mends as well, and nobody serves from the directory, because bytes that
//! were durable share pages with those that failed. What is mended is marked as incomplete until its next sync has ended. A leader whose sync fails leaves
//! the same mark (see `leader/commit/syncer.rs`), and whoever follows with its directory then copies all of it.
//!
//! Entries of folders cannot be mended. It is taken for granted that the file system is journaled or copies on write, and so stops
//! (becomes read-only) when it cannot write them, as ext4, XFS and btrfs do.
//!
//! Runs on the reader thread, when there is no other; only the latch is set by any. No locks.

use std::io::{self, Read, Write};
use std::sync::atomic::Ordering;

use super::attributes::as_of;
use super::dir::{Dir, Here};
use super::flush::Unflushed;
use crate::error::Error;
use crate::sys::fs::{File, MetadataExt};
use crate::sys::hash::HashSet;
use crate::sys::rustix::fs::OFlags;
use crate::types::RelPath;

/// Bytes copied at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Device and inode.
type Identity = (u64, u64);

impl Dir {
    /// Whether a flush has failed and what was not durable by then was not mended since.
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire)
    }

    /// `Err` if so: a flush that succeeds after that says nothing.
    pub(super) fn check_flushed(&self) -> Result<(), Error> {
        if self.is_suspect() {
            return Err(self.failed("flush", "", io::Error::other("an earlier flush has failed")));
        }
        Ok(())
    }

    /// To be called when any call that makes durable has failed.
    pub(super) fn flush_failed(&self, path: &str, error: io::Error) -> Error {
        if !self.suspect.swap(true, Ordering::AcqRel)
            && let Err(error) = self.leave_mark(&self.own.suspect)
        {
            log::warn!("the failed flush leaves no mark: {error}; have this process go on until it has mended it");
        }
        self.failed("flush", path, error)
    }

    /// See the module's documentation. `lost` is what was not durable. Returns how many bytes were copied. `go_on` is asked before
    /// each piece. Blocks as long as the disk takes.
    pub(super) fn mend(&self, lost: &Unflushed, go_on: &dyn Fn() -> Result<(), Error>) -> Result<u64, Error> {
        // What has failed so far is answered by what follows; the flush at the end is to tell of nothing but that.
        let _ = self.sync_file_systems()?;
        // Before the mark goes that is there: mended, it is no copy yet.
        self.mark_incomplete()?;
        let suspects = lost.files().map(|files| files.map(identity).collect::<io::Result<HashSet<_>>>());
        let suspects = suspects.transpose().map_err(|error| self.failed("stat", "", error))?;
        let (mut bytes, mut buffer) = (0, vec![0; BUFFER_BYTES]);
        for Here { path, .. } in self.inventory()?.files {
            let Some(file) = self.open_file(&path, OFlags::RDONLY)? else { continue };
            let identity = identity(&file).map_err(|error| self.failed("stat", path.as_str(), error))?;
            if suspects.as_ref().is_none_or(|suspects| suspects.contains(&identity)) {
                bytes += self.copy(&path, file, &mut buffer, go_on)?;
            }
        }
        self.flush()?;
        self.remove_own(&self.own.suspect)?;
        self.suspect.store(false, Ordering::Release);
        Ok(bytes)
    }

    /// Puts a durable copy of a file in its place.
    fn copy(
        &self,
        path: &RelPath,
        mut from: File,
        buffer: &mut [u8],
        go_on: &dyn Fn() -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let (mut staged, mut bytes) = (self.stage(path)?, 0);
        loop {
            go_on()?;
            let length = match from.read(buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.failed("read", path.as_str(), error)),
            };
            staged.file.write_all(&buffer[..length]).map_err(|error| self.failed("copy", path.as_str(), error))?;
            bytes += length as u64;
        }
        as_of(&from, &staged.file).map_err(|error| self.failed("copy", path.as_str(), error))?;
        self.flush_whole_file(path.as_str(), &staged.file)?;
        self.place(staged, path)?;
        Ok(bytes)
    }
}

fn identity(file: &File) -> io::Result<Identity> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::follower::flush::tests::{changed, opened};
    use crate::own_folder::is_incomplete;

    #[test]
    fn after_a_failed_flush_none_is_believed_until_what_was_not_durable_was_copied() {
        let (root, noted, dir) = opened();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("deep/er")).unwrap();
        for name in ["durable", "written", "deep/er/written"] {
            fs::write(at(name), name).unwrap();
        }
        let inode = |name: &str| fs::metadata(at(name)).unwrap().ino();
        let before = ["durable", "written", "deep/er/written"].map(inode);
        let mut lost = Unflushed::default();
        lost.add_files([changed(&dir, "written"), changed(&dir, "deep/er/written"), changed(&dir, "gone")]);
        fs::remove_file(at("gone")).unwrap();

        noted.fails.store(true, Ordering::Relaxed);
        assert!(lost.flush(&dir).is_err() && dir.is_suspect());
        assert!(is_incomplete(root.path()) && at(".paceline/suspect").exists());
        assert!(dir.mend(&lost, &|| Ok(())).is_err() && dir.is_suspect());
        noted.fails.store(false, Ordering::Relaxed);
        assert!(Unflushed::default().flush(&dir).is_err() && Unflushed::all().flush(&dir).is_err());

        assert!(matches!(dir.mend(&lost, &|| Err(Error::ShuttingDown)), Err(Error::ShuttingDown)));
        assert_eq!(dir.mend(&lost, &|| Ok(())).unwrap(), 7 + 15);
        assert!(Unflushed::all().flush(&dir).is_ok() && !dir.is_suspect());
        assert!(is_incomplete(root.path()) && !at(".paceline/suspect").exists());
        let after = ["durable", "written", "deep/er/written"].map(inode);
        assert!(after[0] == before[0] && after[1] != before[1] && after[2] != before[2]);
        assert_eq!(fs::read_to_string(at("deep/er/written")).unwrap(), "deep/er/written");
    }

    #[test]
    fn whoever_starts_on_a_suspect_directory_copies_all() {
        let (root, noted, dir) = opened();
        fs::write(root.path().join("a"), "1").unwrap();
        fs::write(root.path().join("b"), "2").unwrap();
        noted.fails.store(true, Ordering::Relaxed);
        assert!(dir.flush().is_err());
        let dir = Dir::open(root.path()).unwrap();
        assert!(dir.is_suspect());
        assert_eq!(dir.mend(&Unflushed::all(), &|| Ok(())).unwrap(), 2);
        assert!(!Dir::open(root.path()).unwrap().is_suspect());
    }
}
