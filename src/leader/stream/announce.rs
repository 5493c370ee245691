//! Announcing: the critical section of every append, replace, delete, rename and truncation, and what they are encoded as.

use super::encode::Content;
use super::{Ordered, Stream};
use crate::error::AppendError;
use crate::index::{FileId, Index, Unsynced, Version};
use crate::leader::batch::Step;
use crate::protocol::extension::Control;
use crate::protocol::{ActionKind, PAYLOAD_BYTES_MAX};
use crate::sys::sync::MutexGuard;
use crate::types::{RelPath, StreamPosition};

/// What may be sealed and not yet pushed before the appender pushes itself.
pub(super) const SEALED_BYTES_MAX: u64 = 4 << 20;

impl Stream {
    /// Announces `bytes` at `offset`, the announced length of `path`. `None`: it is unknown, and begins with these; see
    /// [`create`](Self::create).
    pub(in crate::leader) fn append(
        &self,
        path: &RelPath,
        offset: u64,
        bytes: Content<'_>,
    ) -> Result<Option<StreamPosition>, AppendError> {
        let mut ordered = self.enter()?;
        let slot = ordered.index.slot(path.as_str());
        let version = slot.map_or(Version::ABSENT, |slot| ordered.index.version_at(slot));
        if version.len != offset {
            return Err(AppendError::Offset { path: path.clone(), offset, length: version.len });
        }
        let Some(slot) = slot.filter(|_| version.exists()) else { return Ok(None) };
        ordered.append(path, slot, bytes);
        Ok(Some(self.finish(ordered)))
    }

    /// Announces bytes at the end of a file as it was `announced`. Never held back: see [`admit`](Self::admit), which was to be
    /// called before they were written.
    pub(in crate::leader) fn append_to(
        &self,
        path: &RelPath,
        announced: Version,
        bytes: Content<'_>,
    ) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.ordered.lock();
        if ordered.closed.is_some() {
            return Err(AppendError::ShuttingDown);
        }
        let slot = ordered.index.slot(path.as_str());
        match slot.map(|slot| (slot, ordered.index.version_at(slot))) {
            Some((slot, now)) if now == announced => ordered.append(path, slot, bytes),
            now => {
                let (offset, length) = (announced.len, now.map_or(0, |(_, now)| now.len));
                return Err(AppendError::Offset { path: path.clone(), offset, length });
            }
        }
        Ok(self.finish(ordered))
    }

    /// Announces that `path`, so far unknown, begins with `bytes`. `file` is which one it is on disk, if that is known; `whole`:
    /// some followers may have another one under that name.
    pub(in crate::leader) fn create(
        &self,
        path: &RelPath,
        bytes: Content<'_>,
        file: Option<FileId>,
        whole: bool,
    ) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.enter()?;
        let version = ordered.index.get(path.as_str());
        if version.len > 0 {
            return Err(AppendError::Offset { path: path.clone(), offset: 0, length: version.len });
        }
        if (bytes.len() == 0 || whole) && !version.exists() {
            ordered.put(path, bytes, file);
            return Ok(self.finish(ordered));
        }
        if !version.exists() {
            ordered.clear_the_way(path);
            let change = ordered.change();
            ordered.index.put(path, 0, file, change);
        }
        let slot = ordered.index.slot(path.as_str()).expect("just put");
        ordered.append(path, slot, bytes);
        Ok(self.finish(ordered))
    }

    // What follows is announced with the file's lock held, and so is never held back: see [`admit`](Self::admit), which was to be called before that.

    /// Announces that `path` has new content, that of this file.
    pub(in crate::leader) fn replace(
        &self,
        path: &RelPath,
        content: Content<'_>,
        file: FileId,
    ) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.entered()?;
        ordered.put(path, content, Some(file));
        Ok(self.finish(ordered))
    }

    /// The same for a thread that was not admitted, and must not wait: [`AppendError::WouldBlock`] if announcements are held back.
    pub(in crate::leader) fn replace_at_once(
        &self,
        path: &RelPath,
        content: Content<'_>,
        file: FileId,
    ) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.enter_at_once()?;
        ordered.put(path, content, Some(file));
        Ok(self.finish(ordered))
    }

    /// Announces that `path` has gone. For an unknown file there is nothing to announce.
    pub(in crate::leader) fn delete(&self, path: &RelPath) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.entered()?;
        if ordered.index.get(path.as_str()).exists() {
            ordered.remove(path);
        }
        Ok(self.finish(ordered))
    }

    /// Announces that a file has gone that some followers may have and nobody else knows. Never held back, but refused.
    pub(in crate::leader) fn delete_kept(&self, path: &RelPath) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.enter_at_once()?;
        if !ordered.index.get(path.as_str()).exists() {
            ordered.encode(path, ActionKind::Delete, &[]);
        }
        Ok(self.finish(ordered))
    }

    /// Notes that a generation, once under `path`, cannot be read as it was announced; see
    /// [`Index::doubt`](crate::index::Index::doubt). What it returns is for [`mend`](Self::mend), after a look at the disk.
    pub(in crate::leader) fn doubt(&self, path: &RelPath, generation: u64) -> Option<(RelPath, Version)> {
        self.ordered.lock().index.doubt(path, generation)
    }

    /// Announces what is left of a file that was `doubted`: so many bytes were `found` on disk after that, or no file. Does
    /// nothing if the host has announced what became of it. It stays in doubt.
    ///
    /// Neither held back nor refused at the end, as what a host announces is: this is our own repair, and what was sent in place of the
    /// content counts for it once this is announced. Who calls is a follower's writer, which must not wait for its own queue.
    pub(in crate::leader) fn mend(&self, path: &RelPath, doubted: Version, found: Option<u64>) {
        let mut ordered = self.ordered.lock();
        let now = ordered.index.get(path.as_str());
        if now.generation != doubted.generation {
            return;
        }
        match found {
            None if now == doubted => ordered.remove(path),
            Some(found) if now == doubted => ordered.put_doubted(path, found.min(now.len)),
            // Appended to since: all of it is there then (I2).
            _ => ordered.put_doubted(path, now.len),
        }
        ordered.closed = ordered.closed.map(|_| ordered.position);
        if ordered.durable_at_end {
            ordered.encode_control(Control::MakeDurable, Vec::new());
        }
        self.finish(ordered);
    }

    /// Announces that `from` was renamed to `to`, over whatever that was. `None`: `from` is unknown, or another file than this
    /// was read in its name; nothing was announced.
    pub(in crate::leader) fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        file: Option<FileId>,
    ) -> Result<Option<StreamPosition>, AppendError> {
        let mut ordered = self.entered()?;
        if !ordered.index.get(from.as_str()).exists() || !ordered.index.only_read_from(from, file) {
            return Ok(None);
        }
        if from != to {
            let was = ordered.index.get(to.as_str());
            if !was.exists() {
                ordered.clear_the_way(to);
            }
            let change = ordered.change();
            let version = ordered.index.rename(from, to, change);
            let mut instead = vec![Step::Delete(from.clone())];
            if version.len > 0 {
                instead.extend(ordered.replace_steps(to, version));
            } else if was.len > 0 {
                instead.push(Step::Delete(to.clone()));
            }
            ordered.encode_control(Control::Rename { from: from.clone(), to: to.clone() }, instead);
        }
        Ok(Some(self.finish(ordered)))
    }

    /// Asks all followers that know the extension to make durable what came before this.
    pub(in crate::leader) fn request_durable(&self) -> Result<StreamPosition, AppendError> {
        self.ask_for_durable(|_| ()).map(|(position, ())| position)
    }

    /// The same, and takes what has to be made durable here for that: see [`Index::take_unsynced`](crate::index::Index::take_unsynced).
    pub(in crate::leader) fn make_durable(&self) -> Result<(StreamPosition, Unsynced), AppendError> {
        self.ask_for_durable(Index::take_unsynced)
    }

    fn ask_for_durable<T>(&self, take: impl FnOnce(&mut Index) -> T) -> Result<(StreamPosition, T), AppendError> {
        // Not held back: it is what makes room.
        let mut ordered = self.ordered.lock();
        if ordered.closed.is_some() {
            return Err(AppendError::ShuttingDown);
        }
        ordered.encode_control(Control::MakeDurable, Vec::new());
        let taken = take(&mut ordered.index);
        Ok((self.finish(ordered), taken))
    }

    /// What of the last turn is to be synced; see [`Index::syncing`](crate::index::Index::syncing).
    pub(in crate::leader) fn syncing(&self, unsynced: &Unsynced) -> Option<Vec<(RelPath, FileId)>> {
        self.ordered.lock().index.syncing(unsynced)
    }

    /// Announces that `path` ends at `len` from now on. What that is more than its announced length is a hole.
    pub(in crate::leader) fn truncate(&self, path: &RelPath, len: u64) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.entered()?;
        let was = ordered.index.get(path.as_str());
        if was.len < len {
            match ordered.there(path).0.filter(|_| len <= PAYLOAD_BYTES_MAX) {
                Some(slot) => ordered.hole(path, slot, was.len, len - was.len),
                None => return Err(AppendError::Offset { path: path.clone(), offset: len, length: was.len }),
            }
            return Ok(self.finish(ordered));
        }
        if was.len > len {
            let change = ordered.change();
            let version = ordered.index.truncate(path, len, change);
            let instead = match len {
                0 => vec![Step::Delete(path.clone())],
                _ => ordered.replace_steps(path, version),
            };
            ordered.encode_control(Control::Truncate { path: path.clone(), len }, instead);
        }
        Ok(self.finish(ordered))
    }

    /// Announces that a file has these bytes at `offset` from now on, in place of others.
    pub(in crate::leader) fn write_at(
        &self,
        path: &RelPath,
        offset: u64,
        bytes: Content<'_>,
    ) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.entered()?;
        let (slot, len) = ordered.there(path);
        match slot.filter(|_| offset.checked_add(bytes.len()).is_some_and(|end| end <= len)) {
            Some(slot) => ordered.write_at(path, slot, offset, bytes),
            None => return Err(AppendError::Offset { path: path.clone(), offset, length: len }),
        }
        Ok(self.finish(ordered))
    }

    /// Announces that a file has zeros from `offset` on from now on, in place of what it had there.
    pub(in crate::leader) fn hole(&self, path: &RelPath, offset: u64, len: u64) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.entered()?;
        let (slot, had) = ordered.there(path);
        match slot.filter(|_| offset.checked_add(len).is_some_and(|end| end <= had)) {
            Some(slot) => ordered.hole(path, slot, offset, len),
            None => return Err(AppendError::Offset { path: path.clone(), offset, length: had }),
        }
        Ok(self.finish(ordered))
    }

    /// When a generation was last written to in place; 0: never.
    pub(in crate::leader) fn last_rewrite(&self, generation: u64) -> u64 {
        self.ordered.lock().index.last_rewrite(generation)
    }

    /// Begins the critical section, unless nothing may be announced any more, or not now.
    fn enter(&self) -> Result<MutexGuard<'_, Ordered>, AppendError> {
        self.admit()?;
        self.entered()
    }

    fn enter_at_once(&self) -> Result<MutexGuard<'_, Ordered>, AppendError> {
        if self.pressure.is_on() { Err(AppendError::WouldBlock) } else { self.entered() }
    }

    fn entered(&self) -> Result<MutexGuard<'_, Ordered>, AppendError> {
        let ordered = self.ordered.lock();
        if ordered.closed.is_some() { Err(AppendError::ShuttingDown) } else { Ok(ordered) }
    }

    /// Ends it, and does what it left to do.
    pub(super) fn finish(&self, mut ordered: MutexGuard<'_, Ordered>) -> StreamPosition {
        let after = ordered.after();
        drop(ordered);
        if after.wake {
            self.wake_leader();
        }
        if after.push {
            self.push();
        }
        StreamPosition(after.position)
    }

    pub(in crate::leader) fn position(&self) -> StreamPosition {
        StreamPosition(self.ordered.lock().position)
    }

    /// Where the file of this generation is now that was under `path`; `None` if there is none any more.
    pub(in crate::leader) fn find(&self, path: &RelPath, generation: u64) -> Option<RelPath> {
        self.ordered.lock().index.find(path, generation)
    }

    /// Whether nothing but this file was read for `path`, and nothing of it is in doubt; see
    /// [`Index::only_read_from`](crate::index::Index::only_read_from).
    pub(in crate::leader) fn only_read_from(&self, path: &RelPath, file: FileId) -> bool {
        self.ordered.lock().index.only_read_from(path, Some(file))
    }

    /// Notes which file is read for a generation; see [`Index::reads`](crate::index::Index::reads).
    pub(in crate::leader) fn reads(&self, path: &RelPath, generation: u64, file: FileId) -> bool {
        self.ordered.lock().index.reads(path, generation, file)
    }

    /// What `path` is now, and which file on disk, if that is sure.
    pub(in crate::leader) fn announced(&self, path: &RelPath) -> (Version, Option<FileId>) {
        self.ordered.lock().index.announced(path.as_str())
    }

    /// The file of this name, if it is surely this one: its name, and what it is now.
    pub(in crate::leader) fn find_file(&self, path: &str, file: FileId) -> Option<(RelPath, Version)> {
        self.ordered.lock().index.find_file(path, file)
    }

    /// What `path` is now.
    pub(in crate::leader) fn version(&self, path: &RelPath) -> Version {
        self.ordered.lock().index.get(path.as_str())
    }

    /// Refuses whatever a host announces from now on, and returns the last position. With `durable`, the last that is announced is
    /// the request to make everything so.
    pub(in crate::leader) fn close(&self, durable: bool) -> StreamPosition {
        let mut ordered = self.ordered.lock();
        if ordered.closed.is_none() {
            ordered.settle_owed(usize::MAX);
            ordered.closed = Some(ordered.position);
            if durable {
                ordered.encode_control(Control::MakeDurable, Vec::new());
                ordered.durable_at_end = true;
            }
        }
        StreamPosition(ordered.position)
    }

    /// The position; once a host announces nothing any more, that after the last that changed a file. Who has all up to here
    /// lacks nothing.
    pub(in crate::leader) fn end(&self) -> StreamPosition {
        let ordered = self.ordered.lock();
        StreamPosition(ordered.closed.unwrap_or(ordered.position))
    }

    /// All files and their lengths, read in portions.
    pub(in crate::leader) fn files(&self) -> Vec<(RelPath, Version)> {
        self.all().files
    }
}

#[cfg(test)]
mod tests;
