//! The LZ4 frame that carries all a leader says.
//!
//! We send *independent* blocks, so that a sealed batch is compressed once and goes to every follower as it is, behind the
//! frame header of that follower's own connection. Real LavinMQ leaders send *linked* blocks, which [`frame_reader`] takes as
//! well. A block that does not shrink goes raw, as the format allows.
//!
//! An *empty* block says nothing but that the leader is alive. It may stand between any two blocks of a leader that speaks the extension, and [`frame_reader`]
//! passes over it.
//!
//! Blocks are of up to 64 KiB, those of the bulk of large files of up to 256 KiB: each costs both sides a system call or
//! more, and a follower's file system takes few large writes for less than many small ones.

use std::io::{self, BufReader, IoSlice, Read, Write};

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use lz4_flex::frame::FrameDecoder;

/// Version 1, independent blocks of at most 256 KiB, no checksums, no content size.
pub const FRAME_HEADER: [u8; 7] = [0x04, 0x22, 0x4D, 0x18, 0x60, 0x50, 0xFB];

/// The most uncompressed bytes in a block of what is gathered.
pub const BLOCK_BYTES_MAX: usize = 64 << 10;

/// The most uncompressed bytes in a block of what is written in one go, in line with [`FRAME_HEADER`].
const LARGE_BLOCK_BYTES_MAX: usize = 256 << 10;

/// Read off a connection at once, at most.
const READ_AHEAD_BYTES: usize = 2 * BLOCK_BYTES_MAX;

/// Set in a block's length when its bytes are not compressed.
const RAW_BIT: u32 = 1 << 31;

/// A block without content, which does not end the frame: raw, of no bytes.
pub const EMPTY_BLOCK: [u8; 4] = RAW_BIT.to_le_bytes();

/// After a block that did not shrink, this many go raw without being tried: data that is already compressed tends to
/// stay so, and trying costs more than sending.
const RAW_RUN_BLOCKS: u32 = 8;

/// A block shorter than this says little about what follows it.
const TELLING_BYTES_MIN: usize = BLOCK_BYTES_MAX / 2;

/// Makes independent blocks; keeps what the next ones can use too, and remembers whether the last did not shrink.
pub struct BlockEncoder {
    table: CompressTable,
    compressed: Box<[u8]>,
    raw_run: u32,
}

impl Default for BlockEncoder {
    fn default() -> Self {
        Self::new()
    }
}

impl BlockEncoder {
    /// Allocates some 300 KiB.
    #[must_use]
    pub fn new() -> Self {
        Self {
            // The small one, half the size, hashes four bytes instead of five: slower on text, and no better at it.
            table: CompressTable::large(),
            compressed: vec![0; get_maximum_output_size(LARGE_BLOCK_BYTES_MAX)].into(),
            raw_run: 0,
        }
    }

    /// `bytes` as blocks with their lengths.
    #[must_use]
    pub fn encode(&mut self, bytes: &[u8]) -> Box<[u8]> {
        let mut out = Vec::new();
        for block in bytes.chunks(BLOCK_BYTES_MAX) {
            self.encode_block(block, &mut out);
        }
        out.into()
    }

    fn encode_block(&mut self, block: &[u8], out: &mut Vec<u8>) {
        let (header, body) = self.block(block);
        // All of it: most batches are one block, and then it is their final place.
        out.reserve_exact(4 + body.len());
        out.extend_from_slice(&header.to_le_bytes());
        out.extend_from_slice(body);
    }

    fn block<'a>(&'a mut self, block: &'a [u8]) -> (u32, &'a [u8]) {
        if self.raw_run > 0 {
            self.raw_run -= 1;
        } else {
            match compress_into_with_table(block, &mut self.compressed, &mut self.table) {
                Ok(length) if length < block.len() => return (block_length(length), &self.compressed[..length]),
                _ if block.len() >= TELLING_BYTES_MIN => self.raw_run = RAW_RUN_BLOCKS,
                _ => {}
            }
        }
        (block_length(block.len()) | RAW_BIT, block)
    }
}

fn block_length(length: usize) -> u32 {
    u32::try_from(length).expect("a block has at most 256 KiB")
}

/// Writes bytes as blocks to `inner`, a block at a time; [`flush`](Write::flush) sends what is there as a shorter one. What is
/// written in pieces of [`BLOCK_BYTES_MAX`] or more is not copied, unless it is compressed.
///
/// Dropping it does not flush, and nothing ends the frame: a leader only ever cuts it.
pub struct FrameWriter<W> {
    inner: W,
    raw: Vec<u8>,
    encoded: Vec<u8>,
    encoder: BlockEncoder,
}

impl<W: Write> FrameWriter<W> {
    /// Writes blocks to `inner`, on which the frame header was or will be written.
    pub fn new(inner: W) -> Self {
        Self { inner, raw: Vec::with_capacity(BLOCK_BYTES_MAX), encoded: Vec::new(), encoder: BlockEncoder::new() }
    }

    /// What the blocks are written to. Bytes not yet flushed are not there.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// For blocks that are written around this writer's own buffer.
    pub fn encoder(&mut self) -> &mut BlockEncoder {
        &mut self.encoder
    }

    fn write_block(&mut self) -> io::Result<()> {
        self.encode_gathered();
        self.inner.write_all(&self.encoded)
    }

    fn encode_gathered(&mut self) {
        self.encoded.clear();
        self.encoder.encode_block(&self.raw, &mut self.encoded);
        self.raw.clear();
    }

    /// Writes `bytes` as a block of their own, after what was gathered.
    fn write_through(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.encoded.clear();
        if !self.raw.is_empty() {
            self.encode_gathered();
        }
        let (header, body) = self.encoder.block(bytes);
        self.encoded.extend_from_slice(&header.to_le_bytes());
        write_both(&mut self.inner, &self.encoded, body)
    }
}

/// Writes `first` and `then`, in one write if `inner` takes it.
fn write_both(inner: &mut impl Write, first: &[u8], then: &[u8]) -> io::Result<()> {
    let written = loop {
        match inner.write_vectored(&[IoSlice::new(first), IoSlice::new(then)]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            written => break written?,
        }
    };
    if written < first.len() {
        inner.write_all(&first[written..])?;
    }
    inner.write_all(&then[written.saturating_sub(first.len())..])
}

impl<W: Write> Write for FrameWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() >= BLOCK_BYTES_MAX {
            let taken = bytes.len().min(LARGE_BLOCK_BYTES_MAX);
            self.write_through(&bytes[..taken])?;
            return Ok(taken);
        }
        let taken = bytes.len().min(BLOCK_BYTES_MAX - self.raw.len());
        self.raw.extend_from_slice(&bytes[..taken]);
        if self.raw.len() == BLOCK_BYTES_MAX {
            self.write_block()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.raw.is_empty() {
            self.write_block()?;
        }
        self.inner.flush()
    }
}

/// Decodes a leader's frame from a blocking `peer`, as far as it has come; its [`BufRead`](io::BufRead) side hands out a
/// block at a time.
///
/// It cannot go on after a read timeout within a block, and a connection cut within a block header looks like the
/// frame's end: take both for a disconnect, and unblock it by shutting the socket down.
pub fn frame_reader<R: Read>(peer: R) -> FrameReader<R> {
    FrameDecoder::new(Blocks::new(BufReader::with_capacity(READ_AHEAD_BYTES, peer)))
}

/// What decodes a leader's frame.
pub type FrameReader<R> = FrameDecoder<Blocks<R>>;

/// A frame without its empty blocks, which [`FrameDecoder`] would take for the frame's end.
///
/// Of a frame with another header than [`FRAME_HEADER`] or LavinMQ's, which have neither sizes nor checksums, nothing is taken out.
pub struct Blocks<R> {
    inner: BufReader<R>,
    at: At,
}

/// What comes next.
enum At {
    /// The frame header, of which there were so many bytes.
    Header(usize),
    /// So many bytes as they are; then a block's length.
    Within(u32),
    /// What is left, from here on, of a block's length that was read.
    Length([u8; 4], usize),
    /// Whatever it is.
    Unknown,
}

/// Magic number, flags, block size, checksum.
const HEADER_BYTES: usize = FRAME_HEADER.len();
/// Where the flags are, and those that say that something stands between header and blocks, or behind a block.
const FLAGS_AT: usize = 4;
const FLAGS_OF_MORE: u8 = 0b0001_1001;

impl<R: Read> Blocks<R> {
    fn new(inner: BufReader<R>) -> Self {
        Self { inner, at: At::Header(0) }
    }

    /// Reads the length of the next block that is not empty. `false`: it is torn, or none comes.
    fn next_length(&mut self) -> io::Result<bool> {
        let mut length = [0; 4];
        loop {
            match self.inner.read_exact(&mut length) {
                Ok(()) if length == EMPTY_BLOCK => {}
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.at = At::Length(length, 0);
        Ok(true)
    }
}

impl<R: Read> Read for Blocks<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if matches!(self.at, At::Within(0)) && !bytes.is_empty() && !self.next_length()? {
            return Ok(0);
        }
        match &mut self.at {
            At::Header(seen) => {
                let most = bytes.len().min(HEADER_BYTES - *seen);
                let read = self.inner.read(&mut bytes[..most])?;
                let flags = FLAGS_AT.checked_sub(*seen).and_then(|at| bytes[..read].get(at));
                let magic = FRAME_HEADER[..FLAGS_AT].get(*seen..).unwrap_or_default();
                let is_other = magic.iter().zip(&bytes[..read]).any(|(ours, theirs)| ours != theirs);
                *seen += read;
                if is_other || flags.is_some_and(|flags| flags & FLAGS_OF_MORE != 0) {
                    self.at = At::Unknown;
                } else if *seen == HEADER_BYTES {
                    self.at = At::Within(0);
                }
                Ok(read)
            }
            At::Within(left) => {
                let most = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                let read = self.inner.read(&mut bytes[..most])?;
                *left -= u32::try_from(read).expect("no more than was left");
                Ok(read)
            }
            At::Length(length, given) => {
                let read = bytes.len().min(length.len() - *given);
                bytes[..read].copy_from_slice(&length[*given..*given + read]);
                *given += read;
                if *given == length.len() {
                    self.at = match u32::from_le_bytes(*length) & !RAW_BIT {
                        // The frame's end.
                        0 => At::Unknown,
                        left => At::Within(left),
                    };
                }
                Ok(read)
            }
            At::Unknown => self.inner.read(bytes),
        }
    }
}

#[cfg(test)]
mod tests;
