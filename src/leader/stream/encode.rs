//! What is announced, as it goes into the open batch, and how that is sealed.

use std::sync::Arc;

use super::{After, Ordered, SEALED_BYTES_MAX, Sleep};
use crate::index::{FileId, Slot, Version};
use crate::leader::batch::{BATCH_BYTES_MAX, Batch, FileRange, RangeKind, Step, control_bytes};
use crate::protocol::extension::Control;
use crate::protocol::{APPEND_BYTES_MAX, ActionKind, encode_action_header, framing_bytes};
use crate::types::RelPath;

/// Content up to this size goes through memory; beyond it by reference to the file.
pub(in crate::leader) const INLINE_BYTES_MAX: u64 = 256 << 10;

/// Bytes announced.
#[derive(Clone, Copy)]
pub(in crate::leader) enum Content<'a> {
    Bytes(&'a [u8]),
    /// This many bytes, to be read from the file when a writer gets there.
    OnDisk(u64),
}

impl Content<'_> {
    pub(super) fn len(self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::OnDisk(len) => len,
        }
    }
}

impl Ordered {
    /// The number of the change that is announced next.
    pub(super) fn change(&self) -> u64 {
        self.position + 1
    }

    /// Makes `path` a new file with this content.
    pub(super) fn put(&mut self, path: &RelPath, content: Content<'_>, file: Option<FileId>) {
        let was = self.index.get(path.as_str());
        let version = self.index.put(path, content.len(), file, self.position + 1);
        if version.len == 0 {
            // To a 1.0.0 follower an empty file and none are the same: it may hold either.
            let instead = if was.len > 0 { vec![Step::Delete(path.clone())] } else { Vec::new() };
            self.encode_control(Control::Empty(path.clone()), instead);
        } else {
            self.encode_replace(path, version, content);
        }
    }

    /// The same with what is on disk, whatever file that is.
    pub(super) fn put_doubted(&mut self, path: &RelPath, len: u64) {
        self.put(path, Content::OnDisk(len), None);
    }

    /// Adds bytes to a file that exists. None are no change: it would be one beyond the position, and who attaches here is told of those up to it.
    pub(super) fn append(&mut self, path: &RelPath, slot: Slot, bytes: Content<'_>) {
        if bytes.len() == 0 {
            return;
        }
        self.index.grow(slot, bytes.len(), self.change());
        match bytes {
            Content::Bytes(bytes) => {
                for piece in bytes.chunks(APPEND_BYTES_MAX) {
                    self.encode(path, ActionKind::Append(piece.len() as u64), piece);
                }
            }
            Content::OnDisk(len) => {
                let Version { generation, len: end } = self.index.version_at(slot);
                let (path, offset) = (path.clone(), end - len);
                self.encode_range(FileRange { path, generation, kind: RangeKind::Append, offset, len });
            }
        }
    }

    pub(super) fn remove(&mut self, path: &RelPath) {
        self.index.remove(path.as_str(), self.change());
        self.encode(path, ActionKind::Delete, &[]);
    }

    pub(super) fn encode(&mut self, path: &RelPath, kind: ActionKind, payload: &[u8]) {
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
    pub(super) fn encode_range(&mut self, range: FileRange) {
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
    pub(super) fn encode_control(&mut self, control: Control, instead: Vec<Step>) {
        if self.queues > 0 {
            self.seal();
        }
        self.position += control_bytes(&control);
        if self.queues > 0 {
            self.sealed.push(Arc::new(Batch::control(self.position, control, instead)));
        }
    }

    /// A replace by reference, as 1.0.0 followers need it. A LavinMQ follower replaces `x` by way of `x.tmp`, and so destroys a
    /// replicated file of that name: that one goes first, and comes back after.
    pub(super) fn replace_steps(&self, path: &RelPath, version: Version) -> Vec<Step> {
        let mut steps = vec![Step::Send(whole(path, version))];
        if let Some((temporary, version)) = self.spoiled_temporary(path) {
            steps.insert(0, Step::Delete(temporary.clone()));
            if version.len > 0 {
                // As an append to the deleted file: a replace would go by way of a temporary file again.
                steps.push(Step::Send(FileRange { kind: RangeKind::Append, ..whole(&temporary, version) }));
            }
        }
        steps
    }

    fn spoiled_temporary(&self, path: &RelPath) -> Option<(RelPath, Version)> {
        let temporary = temporary_of(path)?;
        let version = self.index.get(temporary.as_str());
        version.exists().then_some((temporary, version))
    }

    /// The same with the content at hand. Who knows the extension keeps the file that 1.0.0 spoils: it may hold what was committed.
    fn encode_replace(&mut self, path: &RelPath, version: Version, content: Content<'_>) {
        let instead = self.spoiled_temporary(path).map(|_| self.replace_steps(path, version));
        if instead.is_some() && self.queues > 0 {
            self.seal();
        }
        let before = self.sealed.len();
        match content {
            Content::Bytes(bytes) => self.encode(path, ActionKind::Replace(version.len), bytes),
            Content::OnDisk(_) => self.encode_range(whole(path, version)),
        }
        if instead.is_some() && self.queues > 0 {
            self.seal();
            let [batch] = &mut self.sealed[before..] else { unreachable!("one action is one batch") };
            Arc::get_mut(batch).expect("it is not pushed yet").instead = instead;
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

    pub(super) fn push_sealed(&mut self, raw: Vec<u8>) {
        let batch = Batch::actions(self.position, raw);
        self.sealed_bytes += batch.cost();
        self.sealed.push(Arc::new(batch));
    }

    /// To be called last in the critical section.
    pub(super) fn after(&mut self) -> After {
        debug_assert!(self.index.last_change() <= self.position, "a change is in the stream");
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
