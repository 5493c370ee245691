//! The end of a file's content: as long as that is there, and its beginning, the file has only grown.

use std::io;

use sha1::{Digest, Sha1};

use crate::digests::Digested;
use crate::protocol::extension::{CHUNK, CHUNK_BYTES};
use crate::sys::fs::{File, FileExt};

/// Bytes before the announced length that are compared before growth is taken for an append.
pub(crate) const TAIL_BYTES_MAX: u64 = 4096;
const TAIL_BYTES: usize = 4096;

/// A hash of the last bytes before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    end: u64,
    hash: [u8; 20],
    /// Where the run of equal bytes begins that these are, if they are: what is inserted before it moves it. Not before
    /// [`RUN_BYTES_MAX`].
    run: Option<u64>,
}

/// How far back the beginning of a run of equal bytes is looked for.
const RUN_BYTES_MAX: u64 = 1 << 20;
const RUN_BYTES: usize = 1 << 20;

/// The byte that all of them are.
fn only_byte(bytes: &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    rest.iter().all(|byte| byte == first).then_some(*first)
}

/// Where the run of this byte begins that ends at `end`.
fn run_start(file: &File, byte: u8, end: u64) -> io::Result<u64> {
    let mut from = end;
    while from > end.saturating_sub(RUN_BYTES_MAX) {
        let before = from.saturating_sub(64 << 10);
        let bytes = read_range(file, before, from)?;
        if let Some(last) = bytes.iter().rposition(|other| *other != byte) {
            return Ok(before + last as u64 + 1);
        }
        from = before;
    }
    Ok(from)
}

impl Tail {
    /// Of a file with no content.
    pub(crate) fn empty() -> Self {
        Self { end: 0, hash: Sha1::digest([]).into(), run: None }
    }

    /// Of content of `file` that ends at `end`, of which `bytes` are the last (at least what a tail needs).
    pub(crate) fn of(file: &File, end: u64, bytes: &[u8]) -> io::Result<Self> {
        let from = bytes.len().saturating_sub(usize::try_from(TAIL_BYTES_MAX).unwrap_or(usize::MAX));
        let run = only_byte(&bytes[from..]).map(|byte| run_start(file, byte, Self::start(end))).transpose()?;
        Ok(Self { end, hash: Sha1::digest(&bytes[from..]).into(), run })
    }

    /// Of content that ends at `end`, of which `bytes` are the last: all, or as much as a run is looked for in.
    fn within(bytes: &[u8], end: u64) -> Self {
        let at = bytes.len() - bytes.len().min(TAIL_BYTES);
        let (before, tail) = bytes.split_at(at);
        let start = end - bytes.len() as u64;
        let run = only_byte(tail).map(|byte| {
            let searched = &before[before.len().saturating_sub(RUN_BYTES)..];
            let equal = searched.iter().rev().take_while(|other| **other == byte).count();
            start + (at - equal) as u64
        });
        Self { end, hash: Sha1::digest(tail).into(), run }
    }

    /// Where the bytes begin that a tail before `end` covers.
    pub(crate) fn start(end: u64) -> u64 {
        end.saturating_sub(TAIL_BYTES_MAX)
    }

    pub(crate) fn read(file: &File, end: u64) -> io::Result<Self> {
        Self::of(file, end, &read_range(file, Self::start(end), end)?)
    }

    pub(crate) fn still_there(&self, file: &File) -> io::Result<bool> {
        Ok(Self::read(file, self.end)? == *self)
    }

    /// The tail of what had these digests; `None` if the file does not end so any more.
    pub(crate) fn verified(file: &File, held: &Digested) -> io::Result<Option<Self>> {
        let end = held.bytes;
        let from = Self::start(end).saturating_sub(RUN_BYTES_MAX) / CHUNK_BYTES;
        let last = usize::try_from(from).ok().and_then(|from| held.chunks.get(from..)).unwrap_or_default();
        let bytes = read_range(file, from * CHUNK_BYTES, end)?;
        let is_there = bytes.chunks(CHUNK).map(|chunk| <[u8; 20]>::from(Sha1::digest(chunk))).eq(last.iter().copied());
        Ok(is_there.then(|| Self::within(&bytes, end)))
    }

    /// Whether these are the last bytes before `end`.
    pub(crate) fn is_before(&self, end: u64) -> bool {
        self.end == end
    }

    /// Whether it covers all of a file of this length.
    pub(crate) fn covers(&self, len: u64) -> bool {
        self.end == len && len <= TAIL_BYTES_MAX
    }
}

/// Reads exactly `from..to`; `UnexpectedEof` if the file has become shorter.
pub(crate) fn read_range(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(to.saturating_sub(from)).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes)
}
