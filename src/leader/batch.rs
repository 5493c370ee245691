//! A sealed part of the stream, shared by the queues of all followers and compressed once.

use std::io::Read;

use crate::protocol::extension::Control;
use crate::protocol::{
    APPEND_BYTES_MAX, ActionDecoder, ActionKind, BLOCK_BYTES_MAX, BlockEncoder, Event, FRAME_HEADER,
    encode_action_header, frame_reader, framing_bytes,
};
use crate::sys::hash::HashMap;
use crate::sys::sync::{Mutex, OnceLock};
use crate::sys::time::Instant;
use crate::types::RelPath;

/// The most raw bytes in a batch, but for one that holds a single longer action: one LZ4 block.
pub(super) const BATCH_BYTES_MAX: usize = BLOCK_BYTES_MAX;

/// A whole number of actions: nobody attaches to the stream, or is cut off it, within one.
#[derive(Debug)]
pub(super) struct Batch {
    /// The stream position after it.
    pub(super) end: u64,
    /// Action bytes in it.
    pub(super) bytes: u64,
    pub(super) sealed_at: Instant,
    pub(super) body: Body,
    /// What a follower of 1.0.0 gets instead, to the same effect (an empty file is none to it); `None`: the same.
    pub(super) instead: Option<Instead>,
}

#[derive(Debug)]
pub(super) enum Body {
    Actions(Actions),
    File(FileRange),
    /// What protocol 1.0.0 has no words for.
    Control(Control),
}

/// A step that changes one file of a follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Delete(RelPath),
    Send(FileRange),
    /// Only for followers that know the extension.
    Control(Control),
}

/// What becomes of a change for a follower of 1.0.0, which has no words for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Instead {
    /// These, to the same effect.
    Steps(Vec<Step>),
    /// Nothing for now: what it has of this file does not count until all of it comes ...
    Later(RelPath),
    /// ... which is now, in these steps; none, if there is no such file any more. To who knows the extension it is nothing.
    Now(RelPath, Vec<Step>),
}

impl Step {
    /// Action bytes it goes as.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Delete(path) => framing_bytes(path),
            Self::Send(range) => range.action_bytes(),
            Self::Control(control) => control_bytes(control),
        }
    }
}

/// Action bytes a control goes as.
pub(super) fn control_bytes(control: &Control) -> u64 {
    let mut encoded = Vec::new();
    control.encode(&mut encoded);
    encoded.len() as u64
}

/// Actions in memory: as encoded for the stream until the first writer needs them, compressed from then on.
#[derive(Debug)]
pub(super) struct Actions {
    raw: Mutex<Vec<u8>>,
    /// Action bytes.
    len: u64,
    /// Bytes this may hold at its largest.
    held: u64,
    blocks: OnceLock<Box<[u8]>>,
}

/// What a queue's bookkeeping of one batch costs: slot, `Arc`, and what the writer keeps until it is acknowledged.
const OVERHEAD_BYTES: u64 = 256;

impl Batch {
    pub(super) fn actions(end: u64, raw: Vec<u8>) -> Self {
        let len = raw.len() as u64;
        // Blocks that do not shrink go raw, so the compressed form is never larger than this either.
        let held = raw.capacity() as u64 + OVERHEAD_BYTES;
        let body = Body::Actions(Actions { raw: Mutex::new(raw), len, held, blocks: OnceLock::new() });
        Self { end, bytes: len, sealed_at: Instant::now(), body, instead: None }
    }

    pub(super) fn file(end: u64, range: FileRange) -> Self {
        let (bytes, body) = (range.action_bytes(), Body::File(range));
        Self { end, bytes, sealed_at: Instant::now(), body, instead: None }
    }

    pub(super) fn control(end: u64, control: Control) -> Self {
        let (bytes, body) = (control_bytes(&control), Body::Control(control));
        Self { end, bytes, sealed_at: Instant::now(), body, instead: None }
    }

    /// Bytes of memory it counts for in a queue.
    pub(super) fn cost(&self) -> u64 {
        match &self.body {
            Body::Actions(actions) => actions.held,
            Body::File(_) | Body::Control(_) => OVERHEAD_BYTES,
        }
    }
}

impl Actions {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Calls `read` with the actions as encoded, whichever form they are held in.
    pub(super) fn with_raw<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        let raw = self.raw.lock();
        if !raw.is_empty() {
            return read(&raw);
        }
        drop(raw);
        // A writer needed the blocks first: they are here, or about to be.
        let blocks = self.blocks(&mut BlockEncoder::default(), &Buffers::default());
        let mut raw = Vec::new();
        let frame = FRAME_HEADER.chain(blocks).chain(&[0; 4][..]);
        frame_reader(frame).read_to_end(&mut raw).expect("our own blocks");
        read(&raw)
    }

    /// The same less what adds to files that `lack` something before it, which those have no place for; a file that is deleted or replaced lacks nothing
    /// from then on. `None`: all of it can be applied. Blocks while another thread compresses.
    pub(super) fn applicable<T>(&self, lack: &mut HashMap<RelPath, T>) -> Option<Vec<u8>> {
        self.with_raw(|raw| {
            let (mut decoder, mut input, mut applicable) = (ActionDecoder::new(), raw, Vec::new());
            let mut is_kept = true;
            loop {
                let action = input;
                match decoder.next(&mut input).expect("our own actions") {
                    // All of it is here, with what it is about.
                    Some(Event::Action { path, kind: ActionKind::Append(len) }) if Control::is_control(&path) => {
                        let content = &input[..usize::try_from(len).expect("in memory")];
                        if let Ok(Some(Control::PatchAt { path, .. })) = Control::decode(&path, content) {
                            is_kept = !lack.contains_key(&path);
                        }
                    }
                    Some(Event::Action { path, kind: ActionKind::Append(_) }) => is_kept = !lack.contains_key(&path),
                    Some(Event::Action { path, .. }) => {
                        lack.remove(&path);
                        is_kept = true;
                    }
                    Some(_) => {}
                    None => break,
                }
                if is_kept {
                    applicable.extend_from_slice(&action[..action.len() - input.len()]);
                }
            }
            (applicable.len() < raw.len()).then_some(applicable)
        })
    }

    /// The LZ4 blocks. The first caller compresses, with `encoder`, and gives back the buffer; others wait for it.
    pub(super) fn blocks(&self, encoder: &mut BlockEncoder, buffers: &Buffers) -> &[u8] {
        self.blocks.get_or_init(|| {
            let raw = std::mem::take(&mut *self.raw.lock());
            let blocks = encoder.encode(&raw);
            buffers.give(raw);
            blocks
        })
    }
}

/// Buffers of [`BATCH_BYTES_MAX`], on their way from batches that were compressed to batches to come. Memory that was just
/// given back to the system costs an append a page fault for every 4 KiB. The lock is a leaf.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// Kept while not in use: 2 MiB.
    const KEPT_MAX: usize = 32;

    /// An empty buffer that was given back, whose memory the system has provided.
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        self.0.lock().pop()
    }

    /// The same, or a new one, which takes the time of some page faults.
    pub(super) fn take_or_allocate(&self) -> Vec<u8> {
        self.take().unwrap_or_else(|| {
            // Not zeros: for those the allocator may leave what is fresh from the system untouched.
            let mut buffer = vec![1; BATCH_BYTES_MAX];
            buffer.clear();
            buffer
        })
    }

    /// Keeps a buffer that is not needed any more, or frees it.
    pub(super) fn give(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() != BATCH_BYTES_MAX {
            return;
        }
        buffer.clear();
        let mut kept = self.0.lock();
        if kept.len() < Self::KEPT_MAX {
            kept.push(buffer);
        }
    }
}

/// Bytes that are not in memory: a range of a file, read by each writer when it gets there. Its size alone fills no queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileRange {
    pub(super) path: RelPath,
    /// Once the index has another generation, the range's content is void: what made it so is announced further on.
    pub(super) generation: u64,
    pub(super) kind: RangeKind,
    pub(super) offset: u64,
    pub(super) len: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RangeKind {
    /// Goes as appends of at most [`APPEND_BYTES_MAX`].
    Append,
    /// Counts as one replace, which protocol 1.0.0 cannot cut; the offset is 0. To followers that know the extension it goes as
    /// pieces that are staged.
    Replace,
    /// Goes as patches of at most [`APPEND_BYTES_MAX`], in place; only to followers that know the extension.
    Patch,
}

impl FileRange {
    /// Offsets and lengths of the actions it counts as.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, u64)> {
        self.parts(self.piece_bytes_max())
    }

    fn piece_bytes_max(&self) -> u64 {
        match self.kind {
            RangeKind::Append | RangeKind::Patch => APPEND_BYTES_MAX as u64,
            RangeKind::Replace => u64::MAX,
        }
    }

    /// Offsets and lengths of its parts of at most so many bytes.
    pub(super) fn parts(&self, most: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (offset, len) = (self.offset, self.len);
        (0..len.div_ceil(most)).map(move |part| (offset + part * most, (len - part * most).min(most)))
    }

    /// Where it ends in the file.
    pub(super) fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// Writes what goes before a piece's bytes to the end of `out`.
    pub(super) fn encode_header(&self, out: &mut Vec<u8>, (offset, len): (u64, u64)) {
        let kind = match self.kind {
            RangeKind::Append | RangeKind::Patch => ActionKind::Append(len),
            RangeKind::Replace => ActionKind::Replace(len),
        };
        if self.kind == RangeKind::Patch {
            Control::PatchAt { path: self.path.clone(), offset }.encode(out);
        }
        encode_action_header(out, &self.path, kind);
    }

    /// Action bytes, framing included.
    pub(super) fn action_bytes(&self) -> u64 {
        self.action_bytes_up_to(self.end())
    }

    /// Action bytes of the pieces that are whole once it was sent up to this offset in the file.
    pub(super) fn action_bytes_up_to(&self, offset: u64) -> u64 {
        let (sent, most) = (offset - self.offset, self.piece_bytes_max());
        let pieces = if sent < self.len { sent / most } else { self.len.div_ceil(most) };
        let mut header = Vec::new();
        // All headers are of one size: numbers in them are.
        self.pieces().take(1).for_each(|piece| self.encode_header(&mut header, piece));
        pieces * header.len() as u64 + pieces.saturating_mul(most).min(self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_builds_on_a_file_that_lacks_something_is_left_out_until_it_is_whole() {
        let path = |name| RelPath::new(name).unwrap();
        let actions = [
            ("a", ActionKind::Append(1), false),
            ("b", ActionKind::Append(2), true),
            ("a", ActionKind::Append(3), false),
            ("a", ActionKind::Replace(4), true),
            ("a", ActionKind::Append(5), true),
            ("c", ActionKind::Append(6), false),
            ("c", ActionKind::Delete, true),
            ("c", ActionKind::Append(7), true),
            ("d", ActionKind::Append(8), false),
        ];
        let encoded = |all: bool| {
            let mut raw = Vec::new();
            for (name, kind, _) in actions.iter().filter(|(.., is_kept)| all || *is_kept) {
                encode_action_header(&mut raw, &path(name), *kind);
                raw.resize(raw.len() + usize::try_from(kind.payload_bytes()).unwrap(), b'x');
            }
            raw
        };
        for is_compressed in [false, true] {
            let Body::Actions(body) = Batch::actions(1, encoded(true)).body else { panic!() };
            if is_compressed {
                body.blocks(&mut BlockEncoder::default(), &Buffers::default());
            }
            let mut lack = ["a", "c", "d"].map(|name| (path(name), ())).into_iter().collect();
            assert_eq!(body.applicable(&mut lack), Some(encoded(false)));
            assert_eq!(lack.into_keys().collect::<Vec<_>>(), [path("d")]);
            assert_eq!(body.applicable(&mut ["e"].map(|name| (path(name), ())).into_iter().collect()), None);
        }
    }

    #[test]
    fn a_range_counts_as_the_actions_it_goes_as() {
        const MIB: u64 = 1 << 20;
        for (kind, len, pieces) in [
            (RangeKind::Append, 1, vec![1]),
            (RangeKind::Append, 2 * MIB, vec![MIB, MIB]),
            (RangeKind::Append, 2 * MIB + 1, vec![MIB, MIB, 1]),
            (RangeKind::Replace, 2 * MIB + 1, vec![2 * MIB + 1]),
        ] {
            let range = FileRange { path: RelPath::new("abc").unwrap(), generation: 1, kind, offset: 0, len };
            assert_eq!(range.pieces().map(|(_, len)| len).collect::<Vec<_>>(), pieces);
            assert_eq!(range.action_bytes(), len + pieces.len() as u64 * (4 + 3 + 8));
        }
        let path = RelPath::new("abc").unwrap();
        let range = FileRange { path, generation: 1, kind: RangeKind::Append, offset: 5, len: 2 * MIB + 1 };
        let piece = MIB + 4 + 3 + 8;
        for (sent, expected) in [
            (0, 0),
            (MIB - 1, 0),
            (MIB, piece),
            (2 * MIB - 1, piece),
            (2 * MIB, 2 * piece),
            (2 * MIB + 1, range.action_bytes()),
        ] {
            assert_eq!(range.action_bytes_up_to(5 + sent), expected, "{sent}");
        }
    }
}
