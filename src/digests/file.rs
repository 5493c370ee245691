//! `.paceline/digests`: what the files of a directory hold, and how each looked then.
//!
//! | bytes | what |
//! |---|---|
//! | 19 | [`MAGIC`] |
//! | 1 | who has written to the directory since: a follower alone, or programs; the one byte that is changed in its place |
//! | 17 | whether the boot is known, and its id |
//! | … | a record for each file |
//! | … | the end, with their number |
//! | 20 | SHA-1 of all that but the second |
//!
//! A name takes only what differs from the one before it, numbers only what differs from those before: some 30 bytes a file, and 20 a chunk. It
//! is written while the directory changes, to a temporary name: what changes meanwhile shows in the stamps. It is read twice, and not one record is
//! believed before the sum was found right: torn, it is absent. The sum is against torn writes and bad disks, not against a person. Neither writing
//! nor reading takes memory that grows with the number of files.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use sha1::{Digest, Sha1};

use super::bytes::{Bytes, Tapped, put, put_bytes, put_delta, unsound};
use super::{Digested, Stamps};
use crate::error::Error;
use crate::own_folder::{DIGESTS, OwnFolder, Replacement};
use crate::protocol::NAME_BYTES_MAX;
use crate::protocol::extension::CHUNK_BYTES;
use crate::sys::fs::{File, FileExt};
use crate::types::RelPath;

const MAGIC: [u8; 19] = *b"paceline digests 1\n";
/// Behind it.
const WHO_AT: u64 = MAGIC.len() as u64;
const SUM_BYTES: u64 = 20;
const WRITE_AT_ONCE_BYTES: usize = 64 << 10;

/// Who writes to a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// A follower, in its own order, and never in place; `is_marked`: it is no copy at the moment.
    Follower { is_marked: bool },
    /// Programs, as they like; or a follower in place, as they do.
    Leader,
}

impl Who {
    fn byte(self) -> u8 {
        match self {
            Self::Follower { .. } => 0,
            Self::Leader => 1,
        }
    }
}

/// Programs write to the directory from now on, or a follower does in place: that is on disk when this returns.
pub(crate) fn led(own: &OwnFolder) -> Result<(), Error> {
    own.change(DIGESTS, |file| file.write_all_at(&[Who::Leader.byte()], WHO_AT))
}

/// Writes it. Dropped before its end, it was never there, and the one before it stays.
#[derive(Debug)]
pub(crate) struct Writer {
    file: Replacement,
    /// By the clock of the file system.
    began: i64,
    buffer: Vec<u8>,
    sum: Sha1,
    codec: Codec,
}

impl Writer {
    /// Everything that is pushed is to be looked at after this.
    pub(crate) fn begin(own: &OwnFolder, who: Who) -> Result<Self, Error> {
        Self::begin_in(own, who, own.boot_id())
    }

    fn begin_in(own: &OwnFolder, who: Who, boot: Option<u128>) -> Result<Self, Error> {
        let mut file = own.replace(DIGESTS)?;
        file.write_all(&MAGIC)?;
        file.write_all(&[who.byte()])?;
        let began = file.written_at()?;
        let mut buffer = vec![u8::from(boot.is_some())];
        buffer.extend(boot.unwrap_or_default().to_le_bytes());
        Ok(Self { file, began, buffer, sum: Sha1::new_with_prefix(MAGIC), codec: Codec::default() })
    }

    /// Puts a file in, and says so; one that does not look like that any more, or has just changed, is left out.
    pub(crate) fn push(&mut self, path: &RelPath, looked: &Stamps, known: &Digested) -> Result<bool, Error> {
        if known.chunks.is_empty() || !known.stamps.are(looked) || !looked.settled(self.began) {
            return Ok(false);
        }
        self.codec.put(&mut self.buffer, path, looked, known);
        if self.buffer.len() >= WRITE_AT_ONCE_BYTES {
            self.write()?;
        }
        Ok(true)
    }

    /// To be called when what was pushed has been synced. It is on disk, in place of the one before, when this returns.
    pub(crate) fn finish(mut self) -> Result<(), Error> {
        self.codec.put_end(&mut self.buffer);
        self.write()?;
        self.file.write_all(&self.sum.finalize())?;
        self.file.place()
    }

    fn write(&mut self) -> Result<(), Error> {
        self.sum.update(&self.buffer);
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

/// Reads what is sound and to be believed: files in the order in which they were written, each as it looked.
pub(crate) struct Reader {
    records: Records<BufReader<io::Take<File>>>,
    is_same_boot: bool,
    bytes: u64,
}

/// What a file of up to a chunk takes here, with a name of some length.
const FILE_BYTES: u64 = 64;

impl Reader {
    /// `None`: there is nothing. Reads all of it.
    pub(crate) fn open(own: &OwnFolder, who: Who) -> Option<Self> {
        let opened = own.open(DIGESTS).map_err(|error| error.to_string());
        let read = opened.and_then(|file| match file {
            Some(file) => Self::read(file, own.boot_id(), who).map_err(|error| error.to_string()),
            None => Ok(None),
        });
        read.unwrap_or_else(|error| {
            log::warn!("the digests in .paceline/{DIGESTS} are of no use, and the files are read again: {error}");
            None
        })
    }

    fn read(mut file: File, now: Option<u128>, who: Who) -> io::Result<Option<Self>> {
        let torn = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                io::Error::other("torn, or of another version")
            }
            _ => error,
        };
        let len = file.metadata()?.len().checked_sub(SUM_BYTES).ok_or_else(unsound).map_err(torn)?;
        check(&mut file, len).map_err(torn)?;
        file.seek(SeekFrom::Start(0))?;
        let mut bytes = Bytes(BufReader::new(file.take(len)));
        let header = Header::read(&mut bytes)?;
        let is_same_boot = now.is_some() && now == header.boot;
        let is_believed = is_same_boot || (who == Who::Follower { is_marked: false } && !header.was_led);
        Ok(is_believed.then(|| Self { records: Records::new(bytes), is_same_boot, bytes: len }))
    }
}

impl Reader {
    /// How many files that is, if most are small: no more than have room in it.
    pub(crate) fn files_about(&self) -> usize {
        usize::try_from(self.bytes / FILE_BYTES).unwrap_or(0)
    }
}

impl Iterator for Reader {
    type Item = io::Result<(RelPath, Digested)>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.records.next()?;
        Some(record.map(|(path, mut known)| {
            if !self.is_same_boot {
                known.stamps = known.stamps.anywhere();
            }
            (path, known)
        }))
    }
}

struct Header {
    was_led: bool,
    boot: Option<u128>,
}

impl Header {
    fn read(bytes: &mut Bytes<impl BufRead>) -> io::Result<Self> {
        if bytes.array()? != MAGIC {
            return Err(unsound());
        }
        // Any other than the one is not a follower's alone.
        let was_led = bytes.byte()? != 0;
        let (is_known, boot) = (bytes.byte()? == 1, u128::from_le_bytes(bytes.array()?));
        Ok(Self { was_led, boot: is_known.then_some(boot) })
    }
}

/// Whether all of it is sound.
fn check(file: &mut File, len: u64) -> io::Result<()> {
    let mut start = [0; MAGIC.len() + 1];
    file.read_exact(&mut start)?;
    let mut sum = Sha1::new_with_prefix(&start[..MAGIC.len()]);
    let rest = len.checked_sub(start.len() as u64).ok_or_else(unsound)?;
    let mut tapped = Tapped(Read::take(&mut *file, rest), |portion: &[u8]| sum.update(portion));
    if io::copy(&mut tapped, &mut io::sink())? < rest {
        return Err(unsound());
    }
    if Bytes(BufReader::new(file)).array::<20>()? == *sum.finalize() { Ok(()) } else { Err(unsound()) }
}

/// From behind the header to the end.
struct Records<R> {
    bytes: Bytes<R>,
    codec: Codec,
    is_over: bool,
}

impl<R: BufRead> Records<R> {
    fn new(bytes: Bytes<R>) -> Self {
        Self { bytes, codec: Codec::default(), is_over: false }
    }
}

impl<R: BufRead> Iterator for Records<R> {
    type Item = io::Result<(RelPath, Digested)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let record = self.codec.read(&mut self.bytes).transpose();
        self.is_over = !matches!(record, Some(Ok(_)));
        record
    }
}

/// Digests that room is made for before they are read.
const CHUNKS_AT_ONCE: usize = 1024;

// The first byte of a record.
const END: u8 = 0;
const FILE: u8 = 1;
// And with `FILE`:
const SAME_DEV: u8 = 2;
const ALL_DIGESTED: u8 = 4;

/// What the record before was, as far as the next one goes on from it.
#[derive(Debug, Default)]
struct Codec {
    path: Vec<u8>,
    dev: u64,
    ino: u64,
    ctime: u64,
    files: u64,
}

impl Codec {
    fn put(&mut self, out: &mut Vec<u8>, path: &RelPath, stamps: &Stamps, known: &Digested) {
        let same_dev = if stamps.dev == self.dev { SAME_DEV } else { 0 };
        let all = if known.bytes == stamps.size { ALL_DIGESTED } else { 0 };
        out.push(FILE | same_dev | all);
        let path = path.as_str().as_bytes();
        let shared = self.path.iter().zip(path).take_while(|(before, now)| before == now).count();
        put(out, shared as u64);
        put_bytes(out, &path[shared..]);
        self.path.truncate(shared);
        self.path.extend(&path[shared..]);
        if same_dev == 0 {
            put(out, stamps.dev);
        }
        let (mtime, ctime) = (stamps.mtime.cast_unsigned(), stamps.ctime.cast_unsigned());
        put_delta(out, stamps.ino, self.ino);
        put_delta(out, ctime, self.ctime);
        put_delta(out, mtime, ctime);
        put(out, stamps.size);
        if all == 0 {
            put(out, known.bytes);
        }
        known.chunks.iter().for_each(|digest| out.extend(digest));
        (self.dev, self.ino, self.ctime) = (stamps.dev, stamps.ino, ctime);
        self.files += 1;
    }

    fn put_end(&self, out: &mut Vec<u8>) {
        out.push(END);
        put(out, self.files);
    }

    /// `None`: that was all, and as many as there should be.
    fn read(&mut self, bytes: &mut Bytes<impl BufRead>) -> io::Result<Option<(RelPath, Digested)>> {
        match bytes.byte()? {
            END if bytes.number()? == self.files && bytes.ends()? => Ok(None),
            with if with & FILE != 0 && with < 2 * ALL_DIGESTED => {
                let path = self.read_name(bytes)?;
                self.files += 1;
                Ok(Some((path, self.read_known(bytes, with)?)))
            }
            _ => Err(unsound()),
        }
    }

    fn read_name(&mut self, bytes: &mut Bytes<impl BufRead>) -> io::Result<RelPath> {
        let shared = usize::try_from(bytes.number()?).ok().filter(|shared| *shared <= self.path.len());
        self.path.truncate(shared.ok_or_else(unsound)?);
        self.path.extend(bytes.bytes(NAME_BYTES_MAX - self.path.len())?);
        RelPath::from_bytes(&self.path).ok().filter(|path| !path.is_reserved()).ok_or_else(unsound)
    }

    fn read_known(&mut self, bytes: &mut Bytes<impl BufRead>, with: u8) -> io::Result<Digested> {
        let dev = if with & SAME_DEV == 0 { bytes.number()? } else { self.dev };
        let (ino, ctime) = (bytes.delta(self.ino)?, bytes.delta(self.ctime)?);
        let mtime = bytes.delta(ctime)?;
        let size = bytes.number()?;
        let digested = if with & ALL_DIGESTED == 0 { bytes.number()? } else { size };
        if digested > size {
            return Err(unsound());
        }
        let count = digested.div_ceil(CHUNK_BYTES);
        // What is not there cannot be allocated for.
        let mut chunks = Vec::with_capacity(usize::try_from(count).unwrap_or(usize::MAX).min(CHUNKS_AT_ONCE));
        for _ in 0..count {
            chunks.push(bytes.array()?);
        }
        chunks.shrink_to_fit();
        (self.dev, self.ino, self.ctime) = (dev, ino, ctime);
        let stamps = Stamps { dev, ino, size, mtime: mtime.cast_signed(), ctime: ctime.cast_signed() };
        Ok(Digested { stamps, bytes: digested, chunks })
    }
}

#[cfg(test)]
mod tests;
