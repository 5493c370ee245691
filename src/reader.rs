//! Reading a file in order, without reading its holes.
//!
//! Where a sparse file has nothing it reads as zeros, and the file system says so (`SEEK_DATA`, `SEEK_HOLE`). Its word is as good as what was read at that moment: what is
//! written there afterwards is written after the file was read. It is asked where that costs little beside what it may save; and believed where it is known to be
//! right about what was written a moment ago. What nobody knows of is read.

use std::borrow::Borrow;
use std::io::{self, Read};

use crate::index::blocks::Notes;
use crate::sys::fs::{File, FileExt};
use crate::sys::rustix::fs::{SeekFrom, fstatfs, seek};
use crate::sys::rustix::io::Errno;
use crate::uncached::{self, READ_AT_ONCE_BYTES};

/// A file of less than that is faster read than asked for holes. (What is simulated is small.)
const ASKED_BYTES_MIN: u64 = if cfg!(feature = "simulate") { 8 << 10 } else { 1 << 20 };

/// A hole that is worth more than to read it.
pub(crate) const HOLE_BYTES_MIN: u64 = if cfg!(feature = "simulate") { 4 << 10 } else { 64 << 10 };

/// So much of a hole is noted at once: others note what they read as well.
const NOTED_AT_ONCE_BYTES: u64 = 64 << 20;

/// File systems that tell what is not on the disk yet from a hole: ext4, XFS, btrfs, F2FS, tmpfs; and overlays, which ask the one below. (OpenZFS, for one, did not
/// before 2.2.2; file systems in user space may not, and those of other machines are of any kind.)
const BELIEVED: [u32; 6] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994, 0x794c_7630];

/// What comes next in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    /// So many bytes that have to be read to be known.
    Data(u64),
    /// So many zeros.
    Hole(u64),
}

/// A file read from an offset on.
pub(crate) struct Reader<F = File> {
    file: F,
    offset: u64,
    read_at: fn(&File, &mut [u8], u64) -> io::Result<usize>,
    /// Whether the file is asked for holes; `None`: it was not thought of.
    asks: Option<bool>,
    /// No hole that is worth it is before that.
    data_until: u64,
    /// What is read is noted with these.
    notes: Option<Notes>,
}

impl<F: Borrow<File>> Reader<F> {
    /// Reads as usual.
    pub(crate) fn new(file: F) -> Self {
        Self { file, offset: 0, read_at: File::read_at, asks: None, data_until: 0, notes: None }
    }

    /// Leaves nothing in the page cache that was not there, if possible.
    pub(crate) fn uncached(file: F) -> Self {
        Self { read_at: uncached::read_at, ..Self::new(file) }
    }

    /// Notes what it reads, be it for a follower or to be digested.
    pub(crate) fn noted(self, notes: Option<Notes>) -> Self {
        Self { notes, ..self }
    }

    /// What it reads.
    pub(crate) fn file(&self) -> &File {
        self.file.borrow()
    }

    /// Where it stands.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes on at this offset.
    pub(crate) fn seek(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// Goes on behind so many bytes of a hole.
    pub(crate) fn skip(&mut self, bytes: u64) {
        let end = self.offset + bytes;
        while self.notes.is_some() && self.offset < end {
            let range = self.offset..end.min(self.offset + NOTED_AT_ONCE_BYTES);
            if let Some(reading) = self.notes.as_ref().and_then(|notes| notes.begin(range.clone())) {
                // It was found before that was noted.
                let is_there = self.data_from(range.start, range.end) == Some(range.end);
                reading.took_hole(self.file(), is_there);
            }
            self.offset = range.end;
        }
        self.offset = end;
    }

    /// What comes next, up to `to`, which is behind where it stands: a hole of at least `hole_bytes_min`, or of all there is up to there; or what is before
    /// such a hole. Whether the file goes so far only reading tells, where there is no hole.
    pub(crate) fn next(&mut self, to: u64, hole_bytes_min: u64) -> Span {
        if self.offset >= self.data_until && self.is_asked(to, hole_bytes_min) {
            let hole = self.look(to, hole_bytes_min);
            if hole > 0 {
                return Span::Hole(hole);
            }
        }
        let until = if self.asks == Some(true) { self.data_until.min(to) } else { to };
        Span::Data(until - self.offset)
    }

    /// How long the hole is that comes next, if one does. Otherwise notes up to where there is none.
    fn look(&mut self, to: u64, hole_bytes_min: u64) -> u64 {
        let from = self.offset;
        let mut hole = from;
        while let Some(begins) = self.data_from(hole, to) {
            if begins - hole >= hole_bytes_min || begins == to {
                self.data_until = hole;
                return if hole == from { begins - from } else { 0 };
            }
            if to - from <= READ_AT_ONCE_BYTES as u64 {
                // To find the end of data may mean to look through all of the file.
                break;
            }
            hole = match seek(self.file(), SeekFrom::Hole(begins)) {
                Ok(hole) if hole > begins => hole,
                _ => u64::MAX,
            };
            if hole >= to || hole - from >= READ_AT_ONCE_BYTES as u64 {
                self.data_until = hole;
                return 0;
            }
        }
        self.data_until = u64::MAX;
        0
    }

    /// Where the next data are, or `to`; `None`: that is not told, or the file does not go so far.
    fn data_from(&self, offset: u64, to: u64) -> Option<u64> {
        match seek(self.file(), SeekFrom::Data(offset)) {
            Ok(data) => (data >= offset).then_some(data.min(to)),
            // Nothing but a hole comes, or it ends before.
            Err(Errno::NXIO) => self.file().metadata().is_ok_and(|meta| meta.len() >= to).then_some(to),
            Err(_) => None,
        }
    }

    fn is_asked(&mut self, to: u64, hole_bytes_min: u64) -> bool {
        let is_worth_it = to >= ASKED_BYTES_MIN && to - self.offset >= hole_bytes_min;
        let is_believed =
            |file| fstatfs(file).is_ok_and(|of| u32::try_from(of.f_type).is_ok_and(|of| BELIEVED.contains(&of)));
        let asks = self.asks.unwrap_or_else(|| is_worth_it && is_believed(self.file()));
        self.asks = Some(asks);
        asks
    }
}

impl<F: Borrow<File>> Read for Reader<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let range = self.offset..self.offset + buffer.len() as u64;
        let reading = self.notes.as_ref().and_then(|notes| notes.begin(range));
        let length = (self.read_at)(self.file.borrow(), buffer, self.offset)?;
        if let Some(reading) = reading {
            reading.took(self.file.borrow(), &buffer[..length]);
        }
        self.offset += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn either_way_reads_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        std::fs::write(&path, &bytes).unwrap();
        for make in [Reader::new, Reader::uncached] {
            let mut reader = make(File::open(&path).unwrap());
            reader.seek(1000);
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            assert!(read == bytes[1000..]);
        }
    }

    /// A file of 2 MiB with 4 KiB of data at each of these blocks of 4 KiB.
    fn sparse(blocks: &[u64]) -> (File, Vec<u8>) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 << 20).unwrap();
        for block in blocks {
            file.write_all_at(&[1; 4096], block * 4096).unwrap();
        }
        let content = std::fs::read(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).unwrap();
        (file, content)
    }

    fn spans(file: &File, from: u64, to: u64) -> Vec<Span> {
        let (mut reader, mut spans) = (Reader::new(file), Vec::new());
        reader.seek(from);
        while reader.offset() < to {
            let span = reader.next(to, HOLE_BYTES_MIN);
            let (Span::Data(bytes) | Span::Hole(bytes)) = span;
            assert!(bytes > 0);
            reader.skip(bytes);
            spans.push(span);
        }
        spans
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_told_to_be_a_hole_is_zeros(
            blocks in prop::collection::vec(0..512_u64, 0..20), from in 0..1_000_000_u64, short in 0..10_000_u64
        ) {
            let (file, content) = sparse(&blocks);
            let (mut at, to) = (from, (2 << 20) - short);
            let mut data = 0;
            for span in spans(&file, from, to) {
                let (Span::Data(bytes) | Span::Hole(bytes)) = span;
                let range = usize::try_from(at).unwrap()..usize::try_from(at + bytes).unwrap();
                match span {
                    Span::Data(bytes) => data += bytes,
                    Span::Hole(_) => prop_assert!(content[range].iter().all(|byte| *byte == 0)),
                }
                at += bytes;
            }
            prop_assert_eq!(at, to);
            let worst = blocks.len() as u64 * (4096 + HOLE_BYTES_MIN) + READ_AT_ONCE_BYTES as u64;
            prop_assert!(data <= worst, "{data} bytes of data where there are {} blocks", blocks.len());
        }
    }

    #[test]
    fn a_hole_is_told_where_it_is_worth_it_and_surely_one() {
        const MIB: u64 = 1 << 20;
        let (file, _) = sparse(&[2, 10, 100]);
        let expected =
            [Span::Data(11 * 4096), Span::Hole(89 * 4096), Span::Data(4096), Span::Hole(2 * MIB - 101 * 4096)];
        assert_eq!(spans(&file, 0, 2 * MIB), expected);
        assert_eq!(spans(&file, 0, MIB - 1), [Span::Data(MIB - 1)], "too little to ask");
        assert_eq!(spans(&file, MIB, MIB + HOLE_BYTES_MIN), [Span::Hole(HOLE_BYTES_MIN)]);
        assert_eq!(spans(&file, 0, MIB), [Span::Data(MIB)], "too little to look where data end");
        assert_eq!(spans(&file, 500, 2 * MIB + 1).last(), Some(&Span::Data(2 * MIB + 1 - 100 * 4096)), "it is shorter");
        // All of what is written is there, on the disk or not.
        let (file, _) = sparse(&(0..512).collect::<Vec<_>>());
        assert_eq!(spans(&file, 0, 2 * MIB), [Span::Data(2 * MIB)]);
    }
}
