//! Announcing what was written, or is not known.

use std::io;

use crate::error::AppendError;
use crate::leader::Leader;
use crate::leader::stream::Content;
use crate::leader::stream::INLINE_BYTES_MAX;
use crate::types::RelPath;
use crate::types::StreamPosition;

/// What is announced at once of a change in place: so much is noted in parts, for who joins, while others wait.
const REWRITTEN_BYTES_MAX: usize = 4 << 20;

impl Leader {
    /// Announces `bytes` that are already written to the file at `offset`, and returns the stream position after them.
    ///
    /// Never blocks on a follower; the cost does not depend on what any of them does. More than 256 KiB are not copied but read
    /// from the file again, when each follower gets there. Empty `bytes` make the file known, should it not be.
    ///
    /// # Errors
    ///
    /// If `offset` is not the file's announced length, which means that appends were announced out of order; if the name is
    /// never replicated; if the leader is shut down. Nothing was announced then.
    pub fn append(&self, path: &RelPath, offset: u64, bytes: &[u8]) -> Result<StreamPosition, AppendError> {
        self.announce_append(path, offset, content_of(bytes))
    }

    /// Like [`append`](Self::append), for `length` bytes that the caller does not hold: all are read from the file, when each
    /// follower gets there. Looks whether the file is as long.
    ///
    /// # Errors
    ///
    /// As of [`append`](Self::append); and [`AppendError::Io`] if the file is not there, or shorter than that.
    pub fn append_from_file(&self, path: &RelPath, offset: u64, length: u64) -> Result<StreamPosition, AppendError> {
        let failed = |source| AppendError::Io { doing: "append from", path: path.clone(), source };
        let on_disk = self.core.dir.root().metadata(path).map_err(failed)?;
        let on_disk = on_disk.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?.len();
        if offset.checked_add(length).is_none_or(|end| end > on_disk) {
            let short = format!("{length} bytes at {offset} were announced, but the file ends at {on_disk}");
            return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, short)));
        }
        self.announce_append(path, offset, Content::OnDisk(length))
    }

    fn announce_append(
        &self,
        path: &RelPath,
        offset: u64,
        content: Content<'_>,
    ) -> Result<StreamPosition, AppendError> {
        if let Some(position) = self.core.stream.append(path, offset, content)? {
            return Ok(position);
        }
        if !self.replicates(path) {
            return Err(AppendError::NotReplicated(path.clone()));
        }
        self.core.stream.create(path, content, self.core.file_at(path), self.core.unreadable.is_kept(path))
    }

    /// Announces that the file has new content, complete on disk, and returns the stream position after it.
    ///
    /// Reads up to 256 KiB of it here; more is read when each follower gets there. Never blocks on a follower. Protocol 1.0.0
    /// cannot say that a file became empty: followers delete it then, until it has content again.
    ///
    /// For a commit to outlive a power loss of this host, it syncs new content before it renames it over what was committed.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, the name is never replicated, or the leader is shut down. Nothing was announced then.
    pub fn replace(&self, path: &RelPath) -> Result<StreamPosition, AppendError> {
        if !self.replicates(path) {
            return Err(AppendError::NotReplicated(path.clone()));
        }
        let noted = self.core.noted(path);
        self.core.stream.admit()?;
        let announced = {
            let _one_at_a_time = self.core.file_locks.of(path).lock();
            self.core.announce_locked(path, true)
        };
        if announced.is_ok() {
            self.core.can_read(path, noted);
        }
        announced
    }

    /// Announces that the file is gone, and returns the stream position after that. Never blocks on a follower. Does nothing
    /// for a file that was not announced.
    ///
    /// The file must be gone, and not be made again until this returns.
    ///
    /// # Errors
    ///
    /// If the leader is shut down.
    pub fn delete(&self, path: &RelPath) -> Result<StreamPosition, AppendError> {
        self.core.stream.admit()?;
        let _one_at_a_time = self.core.file_locks.of(path).lock();
        self.core.stream.delete(path)
    }

    /// Announces that a file was renamed, over whatever the new name was, and returns the stream position after it. Never blocks
    /// on a follower. Followers that know the extension rename theirs; others get it whole under the new name.
    ///
    /// The file must have its new name already. Where only one of the names is replicated, this is a delete or a replace; so it
    /// is where the old name was another file's, or none's, when it was read for a follower.
    ///
    /// # Errors
    ///
    /// If the file was not announced and cannot be read under its new name, or the leader is shut down.
    pub fn rename(&self, from: &RelPath, to: &RelPath) -> Result<StreamPosition, AppendError> {
        if !self.replicates(to) {
            return self.delete(from);
        }
        self.core.stream.admit()?;
        let _one_at_a_time = self.core.file_locks.both(from, to);
        match self.core.stream.rename(from, to, self.core.file_at(to))? {
            Some(position) => Ok(position),
            None => {
                self.core.stream.delete(from)?;
                self.core.announce_locked(to, true)
            }
        }
    }

    /// Announces that the file ends at `len` from now on, and returns the stream position after it. Never blocks on a follower.
    /// Followers that know the extension cut theirs off; others get it whole. If that is beyond its announced length, what is between is zeros, in the file as in
    /// the copies: a hole, where the follower knows the extension and its file system has holes.
    ///
    /// # Errors
    ///
    /// If the file was not announced, or the leader is shut down.
    pub fn truncate(&self, path: &RelPath, len: u64) -> Result<StreamPosition, AppendError> {
        self.core.stream.admit()?;
        let _one_at_a_time = self.core.file_locks.of(path).lock();
        self.core.stream.truncate(path, len)
    }

    /// Announces `bytes` that are already written to the file at `offset`, in place of others that it has, and returns the stream position after them: a page of a
    /// storage engine, say. Never blocks on a follower. More than 256 KiB are not copied but read from the file again, when each follower gets there.
    ///
    /// Followers that know the extension write them to the same place; others get the file whole, once for all such writes of a moment: 20 ms, and at least 200 ms
    /// after the last time, or for as long as such files take at 100 MB/s. Until then they have less of the stream: commits wait for them.
    ///
    /// What a follower has while it catches up, or in the middle of a commit of a storage engine, is a mixture of both contents, as it is in the file itself. To be announced within
    /// seconds of being written: a file at rest for longer than that is taken for what was announced. Threads that write to the same bytes write and announce in one order.
    ///
    /// # Errors
    ///
    /// If these bytes are not all within the announced length (what is beyond it is for [`append`](Self::append)): nothing was announced then. If the leader is shut down; of more than
    /// 4 MiB a part may have been announced.
    pub fn write_at(&self, path: &RelPath, offset: u64, bytes: &[u8]) -> Result<StreamPosition, AppendError> {
        self.core.stream.admit()?;
        // Who announces the whole file reads it under the same lock: whoever reads last announces last.
        let _one_at_a_time = self.core.file_locks.of(path).lock();
        let mut position = self.rewritten(path, offset, bytes.len() as u64)?;
        let mut offset = offset;
        for part in bytes.chunks(REWRITTEN_BYTES_MAX) {
            position = self.core.stream.write_at(path, offset, content_of(part))?;
            offset += part.len() as u64;
        }
        Ok(position)
    }

    /// Announces that so many bytes from `offset` on are zeros now, which take no room on the disk (`fallocate` with `FALLOC_FL_PUNCH_HOLE`), and returns the stream position after
    /// that. Never blocks on a follower. Followers that know the extension make the same hole, or write zeros where their file system has none; others get the file
    /// whole, as after [`write_at`](Self::write_at).
    ///
    /// # Errors
    ///
    /// As of [`write_at`](Self::write_at).
    pub fn punch_hole(&self, path: &RelPath, offset: u64, length: u64) -> Result<StreamPosition, AppendError> {
        self.core.stream.admit()?;
        let _one_at_a_time = self.core.file_locks.of(path).lock();
        let position = self.rewritten(path, offset, length)?;
        if length > 0 { self.core.stream.hole(path, offset, length) } else { Ok(position) }
    }

    /// Before it is announced: what is known of what was there is not true any more.
    fn rewritten(&self, path: &RelPath, offset: u64, length: u64) -> Result<StreamPosition, AppendError> {
        let version = self.core.stream.version(path);
        if !version.exists() || offset.checked_add(length).is_none_or(|end| end > version.len) {
            return Err(AppendError::Offset { path: path.clone(), offset, length: version.len });
        }
        if length > 0 {
            self.core.chunks.rewritten(version.generation, offset, length);
        }
        Ok(self.core.stream.position())
    }

    /// Asks followers that know the extension to make durable everything announced so far, and returns the stream position that
    /// [`FollowerStatus::durable`](crate::leader::FollowerStatus::durable) reaches once they have. Never blocks on a follower. So followers sync their disks when
    /// the host needs it, and not at the pace of the stream.
    ///
    /// # Errors
    ///
    /// If the leader is shut down.
    pub fn request_durable(&self) -> Result<StreamPosition, AppendError> {
        self.core.stream.request_durable()
    }

    /// For a host that announces what others write: says that it cannot tell what is at `path`, or in it, for now. Followers
    /// are not told that it is gone. Call [`is_readable`](Self::is_readable) once that is over.
    pub fn is_unreadable(&self, path: &RelPath, error: &io::Error) {
        self.core.unreadable.note(self.core.dir.path(), path, error, true);
    }

    /// Ends what [`is_unreadable`](Self::is_unreadable) began.
    pub fn is_readable(&self, path: &RelPath) {
        self.core.can_read(path, self.core.noted(path));
    }
}

/// How these bytes, which are on disk, get to followers.
pub(super) fn content_of(bytes: &[u8]) -> Content<'_> {
    let length = bytes.len() as u64;
    if length > INLINE_BYTES_MAX { Content::OnDisk(length) } else { Content::Bytes(bytes) }
}
