//! A sealed part of the stream, shared by the queues of all followers and compressed once.

use std::io::Read;
use std::sync::OnceLock;
use std::time::Instant;

use parking_lot::Mutex;

use crate::protocol::{APPEND_BYTES_MAX, FRAME_HEADER, encode_blocks, frame_reader, framing_bytes};
use crate::types::RelPath;

/// A whole number of actions: nobody attaches to the stream, or is cut off it, within one.
#[derive(Debug)]
pub(super) struct Batch {
    /// The stream position after it.
    pub(super) end: u64,
    pub(super) sealed_at: Instant,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Actions(Actions),
    File(FileRange),
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
        Self { end, sealed_at: Instant::now(), body }
    }

    pub(super) fn file(end: u64, range: FileRange) -> Self {
        Self { end, sealed_at: Instant::now(), body: Body::File(range) }
    }

    /// Bytes of memory it counts for in a queue.
    pub(super) fn cost(&self) -> u64 {
        match &self.body {
            Body::Actions(actions) => actions.held,
            Body::File(_) => OVERHEAD_BYTES,
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
        let blocks = self.blocks(&mut Vec::new());
        let mut raw = Vec::new();
        let frame = FRAME_HEADER.chain(blocks).chain(&[0; 4][..]);
        frame_reader(frame).read_to_end(&mut raw).expect("our own blocks");
        read(&raw)
    }

    /// The LZ4 blocks. The first caller compresses, with `scratch`; others wait for it.
    pub(super) fn blocks(&self, scratch: &mut Vec<u8>) -> &[u8] {
        self.blocks.get_or_init(|| {
            let raw = std::mem::take(&mut *self.raw.lock());
            scratch.clear();
            encode_blocks(&raw, scratch);
            Box::from(&scratch[..])
        })
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
    /// Goes as one replace, which protocol 1.0.0 cannot cut; the offset is 0.
    Replace,
}

impl FileRange {
    /// The lengths of the actions it goes as.
    pub(super) fn pieces(&self) -> impl Iterator<Item = u64> {
        let most = match self.kind {
            RangeKind::Append => APPEND_BYTES_MAX as u64,
            RangeKind::Replace => u64::MAX,
        };
        let len = self.len;
        (0..len.div_ceil(most)).map(move |piece| (len - piece * most).min(most))
    }

    /// Action bytes, framing included.
    pub(super) fn action_bytes(&self) -> u64 {
        let pieces = match self.kind {
            RangeKind::Append => self.len.div_ceil(APPEND_BYTES_MAX as u64),
            RangeKind::Replace => 1,
        };
        pieces * framing_bytes(&self.path) + self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(range.pieces().collect::<Vec<_>>(), pieces);
            assert_eq!(range.action_bytes(), len + pieces.len() as u64 * (4 + 3 + 8));
        }
    }
}
