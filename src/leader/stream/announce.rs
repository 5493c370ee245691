//! Announcing: the critical section of every append, replace, delete, rename and truncation, and what they are encoded as.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::{After, Ordered, Sleep, Stream};
use crate::error::AppendError;
use crate::index::{FileId, Version};
use crate::leader::batch::{BATCH_BYTES_MAX, Batch, ControlAction, FileRange, RangeKind, Step, control_bytes};
use crate::protocol::extension::Control;
use crate::protocol::{APPEND_BYTES_MAX, ActionKind, encode_action_header, framing_bytes};
use crate::types::{RelPath, StreamPosition};

/// What may be sealed and not yet pushed before the appender pushes itself.
pub(super) const SEALED_BYTES_MAX: u64 = 4 << 20;

/// Content up to this size goes through memory; beyond it by reference to the file.
pub(in crate::leader) const INLINE_BYTES_MAX: u64 = 256 << 10;

impl Stream {
    /// Announces `bytes` at `offset`, the announced length of `path`. An unknown file begins at offset 0, if `may_create`
    /// lets it.
    pub(in crate::leader) fn append(
        &self,
        path: &RelPath,
        offset: u64,
        bytes: Content<'_>,
        may_create: impl FnOnce() -> bool,
    ) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.enter()?;
        let slot = ordered.index.slot(path.as_str());
        let version = slot.map_or(Version::ABSENT, |slot| ordered.index.version_at(slot));
        if version.len != offset {
            return Err(AppendError::Offset { path: path.clone(), offset, length: version.len });
        }
        let (slot, generation) = match slot {
            Some(slot) if version.exists() => (slot, version.generation),
            _ if !may_create() => return Err(AppendError::NotReplicated(path.clone())),
            _ => {
                let version = ordered.index.put(path, 0);
                (ordered.index.slot(path.as_str()).expect("just put"), version.generation)
            }
        };
        ordered.index.grow(slot, bytes.len());
        match bytes {
            Content::Bytes(bytes) => {
                for piece in bytes.chunks(APPEND_BYTES_MAX) {
                    ordered.encode(path, ActionKind::Append(piece.len() as u64), piece);
                }
            }
            Content::OnDisk(len) => {
                ordered.encode_range(FileRange {
                    path: path.clone(),
                    generation,
                    kind: RangeKind::Append,
                    offset,
                    len,
                });
            }
        }
        Ok(self.finish(ordered))
    }

    /// Announces that `path` has new content; only if it is of `generation`, when one is given.
    pub(in crate::leader) fn replace(
        &self,
        path: &RelPath,
        content: Content<'_>,
        generation: Option<u64>,
    ) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.enter()?;
        let was = ordered.index.get(path.as_str());
        if generation.is_some_and(|generation| generation != was.generation) {
            return Ok(StreamPosition(ordered.position));
        }
        let version = ordered.index.put(path, content.len());
        if version.len == 0 {
            // To a 1.0.0 follower an empty file and none are the same: it may hold either.
            let instead = if was.len > 0 { vec![Step::Delete(path.clone())] } else { Vec::new() };
            ordered.encode_control(Control::Empty(path.clone()), was.len, instead);
        } else {
            ordered.encode_replace(path, version, content);
        }
        Ok(self.finish(ordered))
    }

    /// Announces that `path` has gone; only if it was of `generation`, when one is given. For an unknown file there is
    /// nothing to announce.
    pub(in crate::leader) fn delete(
        &self,
        path: &RelPath,
        generation: Option<u64>,
    ) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.enter()?;
        let was = ordered.index.get(path.as_str());
        if was.exists() && generation.is_none_or(|generation| generation == was.generation) {
            ordered.index.remove(path.as_str());
            ordered.encode(path, ActionKind::Delete, &[]);
        }
        Ok(self.finish(ordered))
    }

    /// Announces that `from` was renamed to `to`, over whatever that was. `None`: `from` is unknown, or another file than this
    /// was read in its name; nothing was announced.
    pub(in crate::leader) fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        file: Option<FileId>,
    ) -> Result<Option<StreamPosition>, AppendError> {
        let mut ordered = self.enter()?;
        if !ordered.index.get(from.as_str()).exists() || !ordered.index.only_read_from(from, file) {
            return Ok(None);
        }
        if from != to {
            let was = ordered.index.get(to.as_str());
            let version = ordered.index.rename(from, to);
            let mut instead = vec![Step::Delete(from.clone())];
            if version.len > 0 {
                instead.extend(ordered.replace_steps(to, version));
            } else if was.len > 0 {
                instead.push(Step::Delete(to.clone()));
            }
            ordered.encode_control(Control::Rename { from: from.clone(), to: to.clone() }, version.len, instead);
        }
        Ok(Some(self.finish(ordered)))
    }

    /// Asks all followers that know the extension to make durable what came before this.
    pub(in crate::leader) fn request_durable(&self) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.enter()?;
        ordered.encode_control(Control::MakeDurable, 0, Vec::new());
        Ok(self.finish(ordered))
    }

    /// Announces that `path` ends at `len` from now on, which is less than its announced length.
    pub(in crate::leader) fn truncate(&self, path: &RelPath, len: u64) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.enter()?;
        let was = ordered.index.get(path.as_str());
        if was.len < len {
            return Err(AppendError::Offset { path: path.clone(), offset: len, length: was.len });
        }
        if was.len > len {
            let version = ordered.index.truncate(path, len);
            let instead = match len {
                0 => vec![Step::Delete(path.clone())],
                _ => ordered.replace_steps(path, version),
            };
            ordered.encode_control(Control::Truncate { path: path.clone(), len }, was.len, instead);
        }
        Ok(self.finish(ordered))
    }

    /// Begins the critical section, unless nothing may be announced any more.
    fn enter(&self) -> Result<MutexGuard<'_, Ordered>, AppendError> {
        let ordered = self.ordered.lock();
        if ordered.closed { Err(AppendError::ShuttingDown) } else { Ok(ordered) }
    }

    /// Ends it, and does what it left to do.
    fn finish(&self, mut ordered: MutexGuard<'_, Ordered>) -> StreamPosition {
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

    /// Notes which file is read for a generation; see [`Index::reads`](crate::index::Index::reads).
    pub(in crate::leader) fn reads(&self, path: &RelPath, generation: u64, file: FileId) -> bool {
        self.ordered.lock().index.reads(path, generation, file)
    }

    /// What `path` is now.
    pub(in crate::leader) fn version(&self, path: &RelPath) -> Version {
        self.ordered.lock().index.get(path.as_str())
    }

    /// Refuses whatever is announced from now on, and returns the last position.
    pub(in crate::leader) fn close(&self) -> StreamPosition {
        let mut ordered = self.ordered.lock();
        ordered.closed = true;
        StreamPosition(ordered.position)
    }

    /// All files and their lengths, read in portions.
    pub(in crate::leader) fn files(self: &Arc<Self>) -> Vec<(RelPath, Version)> {
        self.track().all()
    }
}

/// Bytes announced.
#[derive(Clone, Copy)]
pub(in crate::leader) enum Content<'a> {
    Bytes(&'a [u8]),
    /// This many bytes, to be read from the file when a writer gets there.
    OnDisk(u64),
}

impl Content<'_> {
    fn len(self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::OnDisk(len) => len,
        }
    }
}

impl Ordered {
    fn encode(&mut self, path: &RelPath, kind: ActionKind, payload: &[u8]) {
        let length = framing_bytes(path) + payload.len() as u64;
        if self.queues == 0 {
            self.position += length;
            return;
        }
        let room = BATCH_BYTES_MAX - self.open.len();
        if length > room as u64 {
            // Rather than let the buffer grow: moving it costs as much as all the appends in it.
            self.seal();
        }
        self.position += length;
        if length > BATCH_BYTES_MAX as u64 {
            let mut raw = Vec::with_capacity(payload.len() + 4096);
            encode_action_header(&mut raw, path, kind);
            raw.extend_from_slice(payload);
            self.push_sealed(raw);
            return;
        }
        if self.open.capacity() == 0 {
            self.open = self.spares.pop().unwrap_or_else(|| Vec::with_capacity(BATCH_BYTES_MAX));
        }
        encode_action_header(&mut self.open, path, kind);
        self.open.extend_from_slice(payload);
    }

    /// A range is a batch of its own.
    fn encode_range(&mut self, range: FileRange) {
        if range.len == 0 {
            return;
        }
        if self.queues > 0 {
            self.seal();
        }
        self.position += range.action_bytes();
        if self.queues > 0 {
            self.sealed.push(Arc::new(Batch::file(self.position, range)));
        }
    }

    /// What 1.0.0 has no words for is a batch of its own.
    /// `had` is the length of its file before.
    fn encode_control(&mut self, control: Control, had: u64, instead: Vec<Step>) {
        if self.queues > 0 {
            self.seal();
        }
        self.position += control_bytes(&control);
        if self.queues > 0 {
            self.sealed.push(Arc::new(Batch::control(self.position, ControlAction { control, had, instead })));
        }
    }

    /// A replace by reference, as 1.0.0 followers need it. A LavinMQ follower replaces `x` by way of `x.tmp`, and so destroys a
    /// replicated file of that name: that one goes first, and comes back after.
    fn replace_steps(&self, path: &RelPath, version: Version) -> Vec<Step> {
        let temporary = temporary_of(path)
            .map(|temporary| (self.index.get(temporary.as_str()), temporary))
            .filter(|(version, _)| version.exists());
        let mut steps = vec![Step::Send(whole(path, version))];
        if let Some((version, temporary)) = temporary {
            steps.insert(0, Step::Delete(temporary.clone()));
            if version.len > 0 {
                // As an append to the deleted file: a replace would go by way of a temporary file again.
                steps.push(Step::Send(FileRange { kind: RangeKind::Append, ..whole(&temporary, version) }));
            }
        }
        steps
    }

    /// The same with the content at hand.
    fn encode_replace(&mut self, path: &RelPath, version: Version, content: Content<'_>) {
        for step in self.replace_steps(path, version) {
            match (step, content) {
                (Step::Delete(temporary), _) => self.encode(&temporary, ActionKind::Delete, &[]),
                (Step::Send(range), Content::Bytes(bytes)) if range.kind == RangeKind::Replace => {
                    self.encode(path, ActionKind::Replace(version.len), bytes);
                }
                (Step::Send(range), _) => self.encode_range(range),
                (Step::Control(_), _) => {}
            }
        }
    }

    /// What is in the open batch, which is empty after.
    pub(super) fn take_open(&mut self) -> Vec<u8> {
        if self.open.is_empty() {
            return Vec::new();
        }
        std::mem::take(&mut self.open)
    }

    pub(super) fn seal(&mut self) {
        let raw = self.take_open();
        if !raw.is_empty() {
            self.push_sealed(raw);
        }
    }

    fn push_sealed(&mut self, raw: Vec<u8>) {
        let batch = Batch::actions(self.position, raw);
        self.sealed_bytes += batch.cost();
        self.sealed.push(Arc::new(batch));
    }

    /// To be called last in the critical section.
    pub(super) fn after(&mut self) -> After {
        let wake = match self.sleep {
            Sleep::Awake => false,
            Sleep::UntilAppend => !self.open.is_empty() || !self.sealed.is_empty(),
            Sleep::UntilSealed => !self.sealed.is_empty(),
        };
        if wake {
            self.sleep = Sleep::Awake;
        }
        After { position: self.position, wake, push: self.sealed_bytes > SEALED_BYTES_MAX }
    }
}

/// All of a file, as one replace.
pub(in crate::leader) fn whole(path: &RelPath, version: Version) -> FileRange {
    FileRange {
        path: path.clone(),
        generation: version.generation,
        kind: RangeKind::Replace,
        offset: 0,
        len: version.len,
    }
}

/// What a LavinMQ follower writes a replacement of `path` to, if that can be a replicated file's name.
pub(in crate::leader) fn temporary_of(path: &RelPath) -> Option<RelPath> {
    RelPath::new(&format!("{path}.tmp")).ok()
}
