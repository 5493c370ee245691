//! A file that is written and replicated in one go.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;

use parking_lot::Mutex;

use super::Leader;
use crate::datadir::private;
use crate::error::AppendError;
use crate::types::{RelPath, StreamPosition};

/// Locks by name, for what must not overlap on one file: reading its new content and announcing it, or writing to it and
/// announcing that. Taken before all locks of the stream; joining followers never take one.
pub(super) struct FileLocks([Mutex<()>; 64]);

impl Default for FileLocks {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(())))
    }
}

impl FileLocks {
    pub(super) fn of(&self, path: &RelPath) -> &Mutex<()> {
        use std::hash::BuildHasher;
        let hash = foldhash::fast::FixedState::default().hash_one(path);
        let at = usize::try_from(hash % self.0.len() as u64).expect("less than the number of locks");
        &self.0[at]
    }
}

/// Appends to a local file and replicates what it writes; see [`Leader::file`].
///
/// Any number of them may be open on one file, in any number of threads: each write is appended whole. A write that fails
/// half-way is taken back, so that the file ends where its announced length does; should that fail too, every later write
/// fails.
pub struct ReplicatedFile<'a> {
    leader: &'a Leader,
    path: RelPath,
    file: File,
    position: StreamPosition,
    torn: bool,
}

impl Leader {
    /// Opens a local file to append to, made with mode 0600 if absent (its folders with 0700). What is written is on disk's
    /// way and announced when [`write`](Write::write) returns.
    ///
    /// # Errors
    ///
    /// If the name is never replicated, or the file cannot be opened.
    pub fn file(&self, path: &RelPath) -> Result<ReplicatedFile<'_>, AppendError> {
        if !self.replicates(path) {
            return Err(AppendError::NotReplicated(path.clone()));
        }
        let full = path.below(self.core.dir.path());
        let open = || {
            if let Some(folder) = full.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            }
            private(File::options().append(true).create(true)).open(&full)
        };
        let file = open().map_err(|source| AppendError::Io { doing: "open", path: path.clone(), source })?;
        Ok(ReplicatedFile { leader: self, path: path.clone(), file, position: self.position(), torn: false })
    }
}

impl ReplicatedFile<'_> {
    /// The stream position after the last write; the leader's when this was opened, if there was none.
    #[must_use]
    pub fn position(&self) -> StreamPosition {
        self.position
    }

    /// The local file, to sync it for example.
    #[must_use]
    pub fn local(&self) -> &File {
        &self.file
    }

    /// Writes all of `bytes` to the local file and announces them. Blocks on the local disk, never on a follower.
    ///
    /// # Errors
    ///
    /// If the local write fails, or the file has bytes that were not announced.
    pub fn append(&mut self, bytes: &[u8]) -> Result<StreamPosition, AppendError> {
        let io_error = |doing, source| AppendError::Io { doing, path: self.path.clone(), source };
        let core = &self.leader.core;
        let _one_at_a_time = core.file_locks.of(&self.path).lock();
        let offset = core.stream.version(&self.path).len;
        if self.torn {
            return Err(io_error("write", io::Error::other("an earlier write failed and could not be taken back")));
        }
        if let Err(error) = (&self.file).write_all(bytes) {
            self.torn = self.file.set_len(offset).is_err();
            return Err(io_error("write", error));
        }
        self.position = self.leader.append(&self.path, offset, bytes)?;
        Ok(self.position)
    }
}

impl Write for ReplicatedFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.append(bytes) {
            Ok(_) => Ok(bytes.len()),
            Err(AppendError::Io { source, .. }) => Err(source),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Does nothing: nothing is held back.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
