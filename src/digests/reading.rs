//! Digests of files as they are read, chunk by chunk.

use std::borrow::Borrow;
use std::io::{self, Read};

use sha1::{Digest, Sha1};

use crate::protocol::extension::{CHUNK, CHUNK_BYTES, ChunkDigest};
use crate::reader::{Reader, Span};
use crate::sys::fs::File;
use crate::uncached::READ_AT_ONCE_BYTES;

// So that what is read at once is whole chunks, but for the end of a file.
const _: () = assert!(READ_AT_ONCE_BYTES.is_multiple_of(CHUNK));

/// The digest of a chunk of zeros.
const OF_ZEROS: ChunkDigest = [
    0x2e, 0x00, 0x0f, 0xa7, 0xe8, 0x57, 0x59, 0xc7, 0xf4, 0xc2, 0x54, 0xd4, 0xd9, 0xc3, 0x3e, 0xf4, 0x81, 0xe4, 0x59,
    0xa7,
];

/// Of a hole so much comes at once: some milliseconds' work.
const HOLE_AT_ONCE_BYTES: u64 = 4096 * CHUNK_BYTES;

/// Room for some chunks, to be used again.
#[derive(Default)]
pub(crate) struct ChunkBuffer(Vec<u8>);

/// Some chunks of a file: read, or a hole.
pub(crate) struct Chunks<'a> {
    read: &'a [u8],
    hole: u64,
}

/// A chunk of a file, or what there is of it.
pub(crate) struct Chunk {
    pub(crate) digest: ChunkDigest,
    pub(crate) bytes: u64,
    /// How many of them were read.
    pub(crate) read: u64,
}

impl ChunkBuffer {
    /// The next chunks from where `file` stands, at the beginning of one, up to `to`, which is behind that: as many as are best read at once, or that a hole has.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file ends before.
    pub(crate) fn next<F: Borrow<File>>(&mut self, file: &mut Reader<F>, to: u64) -> io::Result<Chunks<'_>> {
        let left = to - file.offset();
        match file.next(to, CHUNK_BYTES) {
            Span::Hole(hole) => {
                let whole = if hole == left { hole } else { hole - hole % CHUNK_BYTES };
                let hole = whole.min(HOLE_AT_ONCE_BYTES);
                file.skip(hole);
                Ok(Chunks { read: &[], hole })
            }
            Span::Data(data) => {
                let bytes = usize::try_from(data.next_multiple_of(CHUNK_BYTES).min(left)).unwrap_or(usize::MAX);
                self.0.resize(bytes.min(READ_AT_ONCE_BYTES), 0);
                file.read_exact(&mut self.0)?;
                Ok(Chunks { read: &self.0, hole: 0 })
            }
        }
    }
}

impl Chunks<'_> {
    pub(crate) fn bytes(&self) -> u64 {
        self.read.len() as u64 + self.hole
    }

    /// Digests each when it is asked for.
    pub(crate) fn digested(&self) -> impl Iterator<Item = Chunk> {
        let read = self.read.chunks(CHUNK).map(|chunk| {
            let bytes = chunk.len() as u64;
            Chunk { digest: Sha1::digest(chunk).into(), bytes, read: bytes }
        });
        let hole = self.hole;
        let zeros = (0..hole.div_ceil(CHUNK_BYTES)).map(move |number| {
            let bytes = (hole - number * CHUNK_BYTES).min(CHUNK_BYTES);
            Chunk { digest: of_zeros(bytes), bytes, read: 0 }
        });
        read.chain(zeros)
    }
}

/// The digest of so many zeros: a chunk, or less.
fn of_zeros(bytes: u64) -> ChunkDigest {
    match usize::try_from(bytes) {
        Ok(bytes) if bytes < CHUNK => Sha1::digest(vec![0; bytes]).into(),
        _ => OF_ZEROS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_have_the_digest_of_zeros() {
        for bytes in [0, 1, CHUNK - 1, CHUNK] {
            let digest: ChunkDigest = Sha1::digest(vec![0; bytes]).into();
            assert_eq!(of_zeros(bytes as u64), digest);
        }
    }
}
