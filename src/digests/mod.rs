//! The digests of a directory's files, and how it is known, without reading a file, that they are still true. Leader and follower each keep their own.
//!
//! # Why content
//!
//! What a follower lacks is found by comparing content (see [`extension`](crate::protocol::extension)), not by a position in a stream that each
//! directory would keep: then absence, deletions, forks, renames, restored backups, other programs in between, and torn or
//! padded files would each need a rule of their own, and each wrong one would lose data. Digests are of what is there now. So all that has to be
//! right here is one sentence: *this digest is of what this file holds*. Whatever is in doubt is read again.
//!
//! # How it is known
//!
//! By the file's [`Stamps`]: device, inode, length and times. A digest is kept with the stamps that were the same before and after the
//! reading. In memory a follower keeps them current through its own writes, and a leader goes by generations. On disk ([`mod@file`]):
//!
//! - A change in the same tick of the file system's clock as a look shows in no stamp. So only what was *settled* is kept: unchanged for longer
//!   than the coarsest tick, by the clock of the file system itself (the time of the file that is being written), which may not be ours.
//! - All file systems are synced after the last look and before the file gets its name: what it vouches for is on disk.
//! - *The same boot:* files whose stamps are the same are believed.
//! - *Another boot:* power may have been lost, and then data that was written in place may have reached the disk without its time. A program
//!   writes so, a follower only while its directory is marked incomplete, and where a program did. So a follower believes what only a follower has written since, unless the
//!   directory is marked, or it wrote in place what a program did; a leader believes nothing. Devices may have other numbers then.
//!
//! # A file that grows all the time
//!
//! After a kill of its holder such a file is read whole: it looks different from when its digests were kept, and nothing shows that it has only grown. That it has
//! would have to be written down, durably, with how it looks after each append, which costs a sync of its own for each. Less than that is not enough: with "only
//! appended to since" for a promise, broken durably before the first other change, whatever somebody else did to the file between the last look and
//! the next start (a backup put in its place by `cp`, an editor, a repair) would pass for growth, in a copy that differs for good with nobody to notice; and so would
//! what an interval of looks leaves out. Times of change tell the two apart only for a file that has come to rest.
//!
//! # How it is used
//!
//! ```ignore
//! // At the start. A leader then calls `file::led(own)`, before any program writes: no later boot believes what is there.
//! if let Some(kept) = file::Reader::open(own, Who::Leader) {          // reads all of it once: sound, or `None`
//!     for known in kept { let (path, digested) = known?; /* keep it if digested.stamps.are(&found.stamps) */ }
//! }
//! // From time to time, and at the end.
//! let mut writer = file::Writer::begin(own, Who::Leader)?;
//! /* only now: walk, or look at, the files */
//! writer.push(&path, &looked, &digested)?;   // left out (`false`) unless `digested.stamps` are `looked`, and settled
//! /* sync the file systems; if that fails, drop the writer */
//! writer.finish()?;
//! ```
//!
//! A leaf. No threads, no locks: whoever writes here holds the directory's `.lock`.

mod bytes;
mod chunked;
pub(crate) mod file;
mod reading;
mod stamps;

use crate::protocol::extension::{CHUNK_BYTES, ChunkDigest, chunks_max};

pub(crate) use self::chunked::{Chunked, ON_THE_WAY_BYTES_MAX};
pub(crate) use self::reading::ChunkBuffer;
pub(crate) use self::stamps::{DIRTY_MAX, NANOS, SETTLED, SETTLED_COARSE, Stamps, nanos, now};

/// How many bytes of a file are digested at most: of more nobody is told. (A hole of any size takes no time to digest, but memory.)
pub(crate) fn digested_bytes_max() -> u64 {
    chunks_max() as u64 * CHUNK_BYTES
}

/// What is known of a file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Digested {
    /// How it looked.
    pub(crate) stamps: Stamps,
    /// How many bytes, from its beginning, the digests are of; all, or less.
    pub(crate) bytes: u64,
    /// One for each chunk of these; the last may be of a part of one.
    pub(crate) chunks: Vec<ChunkDigest>,
}

impl Digested {
    /// A file of which nothing is known.
    pub(crate) fn nothing(stamps: Stamps) -> Self {
        Self { stamps, bytes: 0, chunks: Vec::new() }
    }

    /// Keeps the digests of the whole chunks below `len`.
    pub(crate) fn cut(&mut self, len: u64) {
        let whole = self.bytes.min(len) / CHUNK_BYTES;
        self.chunks.truncate(usize::try_from(whole).unwrap_or(usize::MAX));
        self.bytes = self.chunks.len() as u64 * CHUNK_BYTES;
    }

    /// Takes over the digests of all of the file, as it came. `false`: it is not as long as what came.
    pub(crate) fn fill(&mut self, filled: &mut Chunked) -> bool {
        self.cut(filled.taken());
        let fits = self.bytes == filled.taken() && self.stamps.size == filled.bytes();
        if fits {
            filled.take(&mut self.chunks);
            self.bytes = self.stamps.size;
        }
        fits
    }

    /// At most so many digests, and what they are of.
    pub(crate) fn first(&self, chunks_max: usize) -> (u64, &[ChunkDigest]) {
        match self.chunks.get(..chunks_max) {
            Some(first) => (self.bytes.min(chunks_max as u64 * CHUNK_BYTES), first),
            None => (self.bytes, &self.chunks),
        }
    }

    /// Whether they are of all of the file, or as many as are wanted at most.
    pub(crate) fn is_complete(&self, chunks_max: usize) -> bool {
        self.bytes == self.stamps.size || self.bytes / CHUNK_BYTES >= chunks_max as u64
    }
}
