//! What is announced, as it goes into the open batch, and how that is sealed.

use std::sync::Arc;

use super::{After, Ordered, SEALED_BYTES_MAX, Sleep};
use crate::index::{FileId, Slot, Version};
use crate::leader::batch::{BATCH_BYTES_MAX, Batch, FileRange, Instead, RangeKind, Step, control_bytes};
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
    /// Where a file is, if it is there, and how long it is.
    pub(super) fn there(&self, path: &RelPath) -> (Option<Slot>, u64) {
        let slot = self.index.slot(path.as_str()).filter(|&slot| self.index.version_at(slot).exists());
        (slot, slot.map_or(0, |slot| self.index.version_at(slot).len))
    }

    /// The number of the change that is announced next.
    pub(super) fn change(&self) -> u64 {
        self.position + 1
    }

    /// Makes `path` a new file with this content.
    pub(super) fn put(&mut self, path: &RelPath, content: Content<'_>, file: Option<FileId>) {
        let was = self.index.get(path.as_str());
        if !was.exists() {
            self.clear_the_way(path);
        }
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

    /// Puts other bytes in the place of some of a file that exists; it has them all.
    pub(super) fn write_at(&mut self, path: &RelPath, slot: Slot, offset: u64, bytes: Content<'_>) {
        let len = bytes.len();
        if len == 0 {
            return;
        }
        self.index.rewrite(slot, offset, len, self.change());
        let generation = self.index.version_at(slot).generation;
        let range = FileRange { path: path.clone(), generation, kind: RangeKind::Patch, offset, len };
        self.owe(path);
        match bytes {
            Content::Bytes(bytes) => self.encode_patch(&range, bytes),
            Content::OnDisk(_) => {
                if self.queues > 0 {
                    self.seal();
                }
                self.position += range.action_bytes();
                self.push_later(path, |end| Batch::file(end, range));
            }
        }
    }

    /// A patch of one piece, whose control and bytes stay together.
    fn encode_patch(&mut self, range: &FileRange, bytes: &[u8]) {
        debug_assert!(range.len <= APPEND_BYTES_MAX as u64);
        let length = range.action_bytes();
        // Together with other actions only if these, too, are the same to all.
        let is_for_all = self.queues_of_v1 == 0 && length <= BATCH_BYTES_MAX as u64;
        if self.queues > 0 && (!is_for_all || length > (BATCH_BYTES_MAX - self.open.len()) as u64) {
            self.seal();
        }
        self.position += length;
        if self.queues == 0 {
            return;
        }
        let mut alone = Vec::new();
        let out = if is_for_all { self.open_batch() } else { &mut alone };
        range.encode_header(out, (range.offset, range.len));
        out.extend_from_slice(bytes);
        if !is_for_all {
            self.push_later(&range.path, |end| Batch::actions(end, alone));
        }
    }

    /// What followers of 1.0.0 get later.
    fn push_later(&mut self, path: &RelPath, batch: impl FnOnce(u64) -> Batch) {
        if self.queues > 0 {
            self.push_sealed_instead(batch(self.position), Some(Instead::Later(path.clone())));
        }
    }

    /// Makes zeros, and no room taken on the disk, of what is there from `offset` on; a file that exists may grow by that.
    pub(super) fn hole(&mut self, path: &RelPath, slot: Slot, offset: u64, len: u64) {
        let Version { generation, len: had } = self.index.version_at(slot);
        let within = len.min(had - offset);
        if within > 0 {
            self.index.rewrite(slot, offset, within, self.change());
            self.owe(path);
            self.encode_control_instead(
                Control::Hole { path: path.clone(), offset, len: within },
                Instead::Later(path.clone()),
            );
        }
        if len > within {
            let more = len - within;
            self.index.grow(slot, more, self.change());
            let range = FileRange { path: path.clone(), generation, kind: RangeKind::Append, offset: had, len: more };
            let hole = Control::Hole { path: path.clone(), offset: had, len: more };
            self.encode_control(hole, vec![Step::Send(range)]);
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
        let open = self.open_batch();
        encode_action_header(open, path, kind);
        open.extend_from_slice(payload);
    }

    fn open_batch(&mut self) -> &mut Vec<u8> {
        if self.open.capacity() == 0 {
            self.open = self.spares.pop().unwrap_or_else(|| Vec::with_capacity(BATCH_BYTES_MAX));
        }
        &mut self.open
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
            self.push_sealed_instead(Batch::file(self.position, range), None);
        }
    }

    /// What 1.0.0 has no words for is a batch of its own.
    pub(super) fn encode_control(&mut self, control: Control, instead: Vec<Step>) {
        self.encode_control_instead(control, Instead::Steps(instead));
    }

    fn encode_control_instead(&mut self, control: Control, instead: Instead) {
        if self.queues > 0 {
            self.seal();
        }
        self.position += control_bytes(&control);
        if self.queues > 0 {
            self.push_sealed_instead(Batch::control(self.position, control), Some(instead));
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
        let instead = self.spoiled_temporary(path).map(|_| Instead::Steps(self.replace_steps(path, version)));
        let is_alone = instead.is_some() || matches!(content, Content::OnDisk(_));
        if !is_alone || self.queues == 0 {
            match content {
                Content::Bytes(bytes) => self.encode(path, ActionKind::Replace(version.len), bytes),
                Content::OnDisk(_) => self.encode_range(whole(path, version)),
            }
            return;
        }
        self.seal();
        self.position += whole(path, version).action_bytes();
        let batch = match content {
            Content::Bytes(bytes) => {
                let mut raw = Vec::new();
                encode_action_header(&mut raw, path, ActionKind::Replace(version.len));
                raw.extend_from_slice(bytes);
                Batch::actions(self.position, raw)
            }
            Content::OnDisk(_) => Batch::file(self.position, whole(path, version)),
        };
        self.push_sealed_instead(batch, instead);
    }

    /// What is in the open batch, which is empty after.
    pub(super) fn take_open(&mut self) -> Vec<u8> {
        if self.open.is_empty() {
            return Vec::new();
        }
        std::mem::take(&mut self.open)
    }

    /// What is in a batch that is not full moves to a smaller buffer: it may wait in a queue for long, next to many others, and counts there for what it holds.
    pub(super) fn seal(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let raw = if is_mostly_empty(&self.open) {
            let small = self.open.as_slice().to_vec();
            self.open.clear();
            small
        } else {
            self.take_open()
        };
        self.push_sealed(raw);
    }

    pub(super) fn push_sealed(&mut self, raw: Vec<u8>) {
        self.push_sealed_instead(Batch::actions(self.position, raw), None);
    }

    /// A batch that goes in another form to followers of 1.0.0.
    pub(super) fn push_sealed_instead(&mut self, batch: Batch, instead: Option<Instead>) {
        self.sealed_bytes += batch.cost();
        self.sealed.push(Arc::new(Batch { instead, ..batch }));
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

/// Whether a batch holds so much less than its buffer could that it is worth to copy it.
pub(super) fn is_mostly_empty(open: &Vec<u8>) -> bool {
    open.len() < open.capacity() / 8 * 7
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
