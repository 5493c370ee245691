//! A file that is written and replicated in one go.

use std::io::{self, Write};

use super::announce::content_of;
use crate::error::AppendError;
use crate::index::Version;
use crate::leader::Leader;
use crate::sys::fs::{File, FileExt};
use crate::types::{RelPath, StreamPosition};

/// Appends to a local file and replicates what it writes; see [`Leader::file`].
///
/// Any number of them may be open on one file, in any number of threads: each write is appended whole. Bytes go where the
/// announced length says, so what a failed write may have left behind is overwritten by the next. While a file is written by these,
/// nobody announces appends to it otherwise.
pub struct ReplicatedFile<'a> {
    leader: &'a Leader,
    path: RelPath,
    file: File,
    /// The incarnation of the name that `file` is.
    generation: u64,
    position: StreamPosition,
}

impl Leader {
    /// Opens a local file to append to, made with mode 0600 if absent (its folders with 0700); through no symbolic link. What
    /// is written to it is in the local file and announced when [`write`](Write::write) returns. Should the file not be as long
    /// as announced, it is announced anew as it is.
    ///
    /// # Errors
    ///
    /// If the name is never replicated, the file cannot be opened, or the leader is shut down.
    pub fn file(&self, path: &RelPath) -> Result<ReplicatedFile<'_>, AppendError> {
        if !self.replicates(path) {
            return Err(AppendError::NotReplicated(path.clone()));
        }
        let core = &self.core;
        if !core.stream.version(path).exists() {
            core.stream.admit()?;
        }
        let _one_at_a_time = core.file_locks.of(path).lock();
        let open = || {
            if let Some(lost) = core.dir.lost() {
                return Err(io::Error::other(lost));
            }
            let file = core.dir.root().file_made(path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = open().map_err(|source| AppendError::Io { doing: "open", path: path.clone(), source })?;
        let announced = core.stream.version(path);
        if !announced.exists() || announced.len != length {
            core.announce_locked(path, true)?;
        }
        let generation = core.stream.version(path).generation;
        Ok(ReplicatedFile { leader: self, path: path.clone(), file, generation, position: self.position() })
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
    /// If the local write fails, the bytes cannot be announced (they are taken out of the local file again), or the file was replaced or deleted since this was opened: open it again.
    pub fn append(&mut self, bytes: &[u8]) -> Result<StreamPosition, AppendError> {
        let failed = |source| AppendError::Io { doing: "write", path: self.path.clone(), source };
        let core = &self.leader.core;
        // Before anything is written: what is on disk is announced, whether a follower keeps up by then or not. And before the lock: others wait
        // for that who must not wait for a follower.
        core.stream.admit()?;
        let _one_at_a_time = core.file_locks.of(&self.path).lock();
        let announced = core.stream.version(&self.path);
        if announced.generation != self.generation {
            return Err(failed(io::Error::other("it was replaced or deleted since it was opened: open it again")));
        }
        if let Err(error) = self.file.write_all_at(bytes, announced.len) {
            self.cut_off(announced);
            return Err(failed(error));
        }
        match core.stream.append_to(&self.path, announced, content_of(bytes)) {
            Ok(position) => {
                self.position = position;
                Ok(position)
            }
            Err(error) => {
                self.cut_off(announced);
                Err(error)
            }
        }
    }

    /// Takes what was written behind the announced end off the file again: a leader that starts here later would take it for
    /// content. Not if more of the file was announced since, which may be what would be cut off.
    fn cut_off(&self, announced: Version) {
        if self.leader.core.stream.version(&self.path) == announced {
            // The next write goes over it.
            let _ = self.file.set_len(announced.len);
        }
    }
}

impl Write for ReplicatedFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.append(bytes) {
            Ok(_) => Ok(bytes.len()),
            Err(AppendError::Io { source, .. }) => Err(source),
            Err(error @ AppendError::WouldBlock) => Err(io::Error::new(io::ErrorKind::WouldBlock, error)),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Does nothing: nothing is held back.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
