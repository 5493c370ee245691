//! Digests of announced files by chunk, computed without any lock and remembered; and what they say of another's copy.
//!
//! What is below an announced length is read once while its file lives, whatever it is called; but for a last chunk that was not whole, once the file
//! has grown, and for chunks that were written to in place. That is told *before* it is announced ([`ChunkCache::rewritten`]): so what is known of a chunk
//! once it is announced was read after it was written. The cache's lock guards look-ups and is never held while reading a file.
//!
//! How a file looks that was at rest while it was read is remembered as well, so that its digests may outlive the process (see [`digests`](crate::digests)).

use std::io::{self, ErrorKind};
use std::num::NonZeroI64;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::FileId;
use super::blocks::Notes;
use crate::digests::{ChunkBuffer, Chunked, DIRTY_MAX, Digested, SETTLED_COARSE, Stamps, now};
use crate::protocol::extension::{CHUNK_BYTES, ChunkDigest, Held};
use crate::reader::Reader;
use crate::sys::fs::File;
use crate::sys::hash::HashMap;
use crate::sys::sync::{Mutex, MutexGuard};

/// Digests computed so far, from each file's beginning, by generation.
#[derive(Default)]
pub(crate) struct ChunkCache {
    known: Mutex<Table>,
    /// What was written in place and `known` was not told yet. A leaf, and held for a push or to take them all: who writes must not wait for those who look something up.
    rewrites: Mutex<Vec<Rewrite>>,
    /// Programs write to the files that announce nothing themselves.
    is_watched: AtomicBool,
    /// Files of which it became known how they look at rest.
    learned: AtomicU64,
}

/// What is known of files. Most are those that were found at the start, whose generations follow each other.
#[derive(Default)]
struct Table {
    first: u64,
    found: Vec<Known>,
    later: HashMap<u64, Known>,
    /// Files that are being read.
    readings: Vec<Reading>,
    last_reading: u64,
    /// How often anything was written in place.
    rewrites: u64,
    /// How files look that hold what was announced, as far as who watches them has found.
    proven: HashMap<u64, Stamps>,
}

/// A file being read, and which of its chunks were written to in place since that began, with those between them.
struct Reading {
    id: u64,
    generation: u64,
    rewritten: Range<usize>,
}

/// Chunks that were written to in place.
struct Rewrite {
    generation: u64,
    chunks: Range<usize>,
}

/// So many wait for somebody to look something up; whoever writes more settles them if that needs no waiting.
const NOTED_MAX: usize = 4096;

/// Stands for the digest of a chunk that is not known any more. Nothing has it.
const UNKNOWN: ChunkDigest = [0; 20];

/// Which chunks some bytes are in, not none.
fn chunks_of(offset: u64, len: u64) -> Range<usize> {
    let chunk = |at: u64| usize::try_from(at / CHUNK_BYTES).unwrap_or(usize::MAX - 1);
    chunk(offset)..chunk(offset.saturating_add(len - 1)) + 1
}

#[derive(Clone, Default)]
struct Known {
    digests: Chunks,
    /// What they are of.
    bytes: u64,
    /// When the file had last changed, and its inode, in nanoseconds since 1970: as it looked when it had been at rest, if they are of all of it.
    times: Option<Times>,
}

#[derive(Clone, Copy)]
struct Times {
    mtime: i64,
    // Not zero, so that there is room for a file of which it is not known.
    ctime: NonZeroI64,
}

/// Most files have one.
#[derive(Clone)]
enum Chunks {
    One(ChunkDigest),
    More(Box<[ChunkDigest]>),
}

impl Default for Chunks {
    fn default() -> Self {
        Self::More(Box::default())
    }
}

impl From<Vec<ChunkDigest>> for Chunks {
    fn from(digests: Vec<ChunkDigest>) -> Self {
        match digests[..] {
            [one] => Self::One(one),
            _ => Self::More(digests.into()),
        }
    }
}

impl Chunks {
    fn all(&self) -> &[ChunkDigest] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }

    fn all_mut(&mut self) -> &mut [ChunkDigest] {
        match self {
            Self::One(one) => std::slice::from_mut(one),
            Self::More(more) => more,
        }
    }

    fn has_unknown(&self) -> bool {
        self.all().contains(&UNKNOWN)
    }
}

impl Times {
    fn of(stamps: &Stamps) -> Option<Self> {
        NonZeroI64::new(stamps.ctime).map(|ctime| Self { mtime: stamps.mtime, ctime })
    }
}

impl Known {
    /// What of it is true of the first `len` bytes: the digests, some of them unknown, and how many bytes they are of.
    fn of(&self, len: u64) -> (Vec<ChunkDigest>, u64) {
        let digests = self.digests.all();
        if self.bytes == len {
            return (digests.to_vec(), len);
        }
        let whole = usize::try_from(self.bytes.min(len) / CHUNK_BYTES).unwrap_or(usize::MAX).min(digests.len());
        (digests[..whole].to_vec(), whole as u64 * CHUNK_BYTES)
    }
}

impl Table {
    /// Where a generation stands among those found.
    fn place(&self, generation: u64) -> Option<usize> {
        let place = usize::try_from(generation.checked_sub(self.first)?).ok()?;
        (place < self.found.len()).then_some(place)
    }

    fn get(&self, generation: u64) -> Option<&Known> {
        match self.place(generation) {
            Some(place) => Some(&self.found[place]).filter(|known| known.bytes > 0),
            None => self.later.get(&generation),
        }
    }

    fn get_mut(&mut self, generation: u64) -> Option<&mut Known> {
        match self.place(generation) {
            Some(place) => Some(&mut self.found[place]).filter(|known| known.bytes > 0),
            None => self.later.get_mut(&generation),
        }
    }

    fn insert(&mut self, generation: u64, known: Known) {
        match self.place(generation) {
            Some(place) => self.found[place] = known,
            None => drop(self.later.insert(generation, known)),
        }
    }

    /// Takes what was read of a generation, but for the chunks that were written to meanwhile. Returns whether all of it is known, and how it looks at rest.
    fn learn(
        &mut self,
        generation: u64,
        mut digests: Vec<ChunkDigest>,
        bytes: u64,
        times: Option<Times>,
        rewritten: Range<usize>,
    ) -> bool {
        let times = times.filter(|_| rewritten.is_empty());
        let end = rewritten.end.min(digests.len());
        digests[rewritten.start.min(end)..end].fill(UNKNOWN);
        if let Some(known) = self.get_mut(generation).filter(|known| known.bytes > bytes) {
            // Of whole chunks only: the last one may be a part of what is known.
            let whole = usize::try_from(bytes / CHUNK_BYTES).unwrap_or(usize::MAX);
            let news = known.digests.all_mut().iter_mut().zip(&digests).take(whole);
            news.filter(|(ours, _)| **ours == UNKNOWN).for_each(|(ours, read)| *ours = *read);
            return false;
        }
        let is_kept = times.is_some();
        self.insert(generation, Known { digests: digests.into(), bytes, times });
        is_kept
    }
}

/// A reading under way, until it is dropped.
struct Registered<'a> {
    cache: &'a ChunkCache,
    id: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.cache.known.lock().readings.retain(|reading| reading.id != self.id);
    }
}

impl Table {
    /// What was known of some chunks is not true any more.
    fn rewritten(&mut self, Rewrite { generation, chunks }: &Rewrite) {
        for reading in self.readings.iter_mut().filter(|reading| reading.generation == *generation) {
            let before = reading.rewritten.clone();
            reading.rewritten = match before.is_empty() {
                true => chunks.clone(),
                false => before.start.min(chunks.start)..before.end.max(chunks.end),
            };
        }
        if let Some(known) = self.get_mut(*generation) {
            let digests = known.digests.all_mut();
            let end = chunks.end.min(digests.len());
            digests[chunks.start.min(end)..end].fill(UNKNOWN);
            known.times = None;
        }
        self.proven.remove(generation);
    }
}

impl ChunkCache {
    /// Makes room for files of generations that follow each other. Nothing is known before.
    pub(crate) fn make_room(&self, generations: Range<u64>) {
        let count = usize::try_from(generations.end - generations.start).unwrap_or_default();
        let mut found = Vec::new();
        found.resize_with(count, Known::default);
        *self.known.lock() = Table { first: generations.start, found, ..Table::default() };
    }

    /// The digests of the first `len` bytes of the file of this generation that `open` opens; `None` if it has gone or is shorter than that.
    ///
    /// Blocks for as long as it takes to read what was not digested before; `go_on` is told, chunk by chunk, the bytes that were read for it (none in a hole), and its
    /// error ends it.
    pub(crate) fn digests(
        &self,
        open: impl FnOnce() -> io::Result<Option<File>>,
        generation: u64,
        len: u64,
        notes: Option<Notes>,
        go_on: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<Option<Vec<ChunkDigest>>> {
        let (mut digests, done, reading) = self.begin_reading(generation, len);
        let is_unknown = |at: &usize| digests[*at] == UNKNOWN;
        let unknown: Vec<usize> = (0..digests.len()).filter(is_unknown).collect();
        if done == len && unknown.is_empty() {
            return Ok(Some(digests));
        }
        let (began, is_all_read) = (now(), digests.is_empty());
        let Some(file) = open()? else { return Ok(None) };
        let (mut file, mut buffer) = (Reader::uncached(file).noted(notes), ChunkBuffer::default());
        let looks = Stamps::of_file(file.file())?;
        let chunk = |at: usize| (at as u64 * CHUNK_BYTES, len.min((at as u64 + 1) * CHUNK_BYTES));
        let spans = unknown.into_iter().map(chunk).chain((done < len).then_some((done, len)));
        for (from, to) in spans {
            file.seek(from);
            while file.offset() < to {
                let first = usize::try_from(file.offset() / CHUNK_BYTES).unwrap_or(usize::MAX);
                let chunks = match buffer.next(&mut file, to) {
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
                    chunks => chunks?,
                };
                for (at, chunk) in (first..).zip(chunks.digested()) {
                    match digests.get_mut(at) {
                        Some(digest) => *digest = chunk.digest,
                        None => digests.push(chunk.digest),
                    }
                    go_on(chunk.read)?;
                }
            }
        }
        let rests = looks.at_rest(len, began, file.file());
        let read = digests.clone();
        let mut table = self.table();
        let is_of_now = is_all_read && self.may_be_kept(&looks, began);
        let is_true = is_of_now || self.is_true(&table, generation, &looks);
        let times = rests.as_ref().filter(|_| is_true).and_then(Times::of);
        let rewritten = table.readings.iter().find(|its| its.id == reading.id).map(|its| its.rewritten.clone());
        let is_kept = table.learn(generation, read, len, times, rewritten.unwrap_or_default());
        drop(table);
        self.learned.fetch_add(u64::from(is_kept), Ordering::Relaxed);
        Ok(Some(digests))
    }

    /// Programs write to the files, and somebody watches that.
    pub(crate) fn watch(&self) {
        self.is_watched.store(true, Ordering::Relaxed);
    }

    /// Whoever watches has found that a file of this generation that looks like this holds what was announced.
    pub(crate) fn proven(&self, generation: u64, stamps: Stamps) {
        self.table().proven.insert(generation, stamps);
    }

    /// A generation is no more.
    pub(crate) fn forget(&self, generation: u64) {
        let mut table = self.known.lock();
        table.proven.remove(&generation);
        table.later.remove(&generation);
    }

    /// Whether what is known of a file is of what it holds when it looks like this, also where it was read before it looked so. A host announces what it changes, and does so within seconds. Of what
    /// programs change somebody has to have found that all of it is announced, when no more could change without a trace: else what was read before a change, and kept on disk with how the file looks
    /// after it, would hide it for good.
    fn is_true(&self, table: &Table, generation: u64, looks: &Stamps) -> bool {
        !self.is_watched() || table.proven.get(&generation) == Some(looks)
    }

    /// Whether all that is read of a file now, at rest, is what it holds for as long as it looks like this: what programs have mapped may be stored to without a trace for as long as a page
    /// stays dirty.
    fn may_be_kept(&self, looks: &Stamps, began: i64) -> bool {
        !self.is_watched() || looks.settled_for(DIRTY_MAX, began)
    }

    /// For how long a file is to be at rest before it is digested to its end.
    pub(crate) fn rest(&self) -> Duration {
        if self.is_watched() { DIRTY_MAX + SETTLED_COARSE } else { SETTLED_COARSE }
    }

    fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Relaxed)
    }

    /// What is known of the first bytes of a generation, some of it perhaps not any more; the rest is about to be read. In one step: whatever is written to after it is noted.
    fn begin_reading(&self, generation: u64, len: u64) -> (Vec<ChunkDigest>, u64, Registered<'_>) {
        let mut table = self.table();
        table.last_reading += 1;
        let id = table.last_reading;
        table.readings.push(Reading { id, generation, rewritten: 0..0 });
        let (digests, done) = table.get(generation).map(|known| known.of(len)).unwrap_or_default();
        (digests, done, Registered { cache: self, id })
    }

    /// Some bytes of a generation, not none, were written in place: what is known of the chunks they are in is not true any more. To be called when they are written, and before that
    /// is announced. Never waits for who looks something up.
    pub(crate) fn rewritten(&self, generation: u64, offset: u64, len: u64) {
        let rewrite = Rewrite { generation, chunks: chunks_of(offset, len) };
        let noted = {
            let mut rewrites = self.rewrites.lock();
            rewrites.push(rewrite);
            rewrites.len()
        };
        if noted >= NOTED_MAX
            && let Some(mut table) = self.known.try_lock()
        {
            self.settle(&mut table);
        }
    }

    /// The table, as of now: before anybody sees it, it is told what was written in place.
    fn table(&self) -> MutexGuard<'_, Table> {
        let mut table = self.known.lock();
        self.settle(&mut table);
        table
    }

    fn settle(&self, table: &mut Table) {
        let rewrites = std::mem::take(&mut *self.rewrites.lock());
        table.rewrites += rewrites.len() as u64;
        rewrites.into_iter().for_each(|rewrite| table.rewritten(&rewrite));
    }

    /// How often anything was written in place; for [`was_read`](Self::was_read).
    pub(crate) fn rewrites(&self) -> u64 {
        self.table().rewrites
    }

    /// Takes the digests of the first bytes of a generation, which were read for another reason: of a file that looked like this before, when
    /// that `began`, and is open. `rewrites`: as of then.
    pub(crate) fn was_read(
        &self,
        generation: u64,
        mut read: Chunked,
        (looks, began, rewrites): (Stamps, i64, u64),
        file: &File,
    ) {
        let (bytes, mut digests) = (read.bytes(), Vec::new());
        read.take(&mut digests);
        let rests = looks.at_rest(bytes, began, file).filter(|looks| self.may_be_kept(looks, began));
        let times = rests.as_ref().and_then(Times::of);
        let mut table = self.table();
        let is_news = table.get(generation).is_none_or(|known| known.bytes < bytes);
        let is_kept = is_news && table.rewrites == rewrites && table.learn(generation, digests, bytes, times, 0..0);
        drop(table);
        self.learned.fetch_add(u64::from(is_kept), Ordering::Relaxed);
    }

    /// How often it became known how a file looks at rest, so that its digests can be kept.
    pub(crate) fn learned(&self) -> u64 {
        self.learned.load(Ordering::Relaxed)
    }

    /// What is known of all of a generation, which is this file, that would still be, and be true, after a restart.
    pub(crate) fn kept(&self, generation: u64, (dev, ino): FileId) -> Option<Digested> {
        let table = self.table();
        let known = table.get(generation)?;
        let Times { mtime, ctime } = known.times?;
        let stamps = Stamps { dev, ino, size: known.bytes, mtime, ctime: ctime.get() };
        Some(Digested { stamps, bytes: known.bytes, chunks: known.digests.all().to_vec() })
    }

    /// Whether [`kept`](Self::kept) knows all of it.
    pub(crate) fn is_kept(&self, generation: u64) -> bool {
        self.table().get(generation).is_some_and(|known| known.times.is_some())
    }

    /// Takes what was known before a restart, of a file that looks as it did.
    pub(crate) fn know(&self, generation: u64, digested: Digested) {
        let Digested { stamps, bytes, chunks } = digested;
        let times = Times::of(&stamps).filter(|_| stamps.size == bytes);
        self.known.lock().insert(generation, Known { digests: chunks.into(), bytes, times });
    }

    /// The digest of one chunk of a generation, of so many bytes, if it is known.
    pub(crate) fn chunk(&self, generation: u64, at: u64, bytes: u64) -> Option<ChunkDigest> {
        let known = self.known.lock();
        let is_of = |known: &&Known| known.bytes.saturating_sub(at * CHUNK_BYTES).min(CHUNK_BYTES) == bytes;
        let digest = known.get(generation).filter(is_of)?.digests.all().get(usize::try_from(at).ok()?).copied();
        // What stands for one that is not known.
        digest.filter(|digest| *digest != ChunkDigest::default())
    }

    /// How many of the first bytes of a generation are digested.
    pub(crate) fn digested(&self, generation: u64) -> u64 {
        self.table().get(generation).map_or(0, |known| known.bytes)
    }

    /// Notes how the file looks that has been at rest since it became what this generation is.
    pub(crate) fn is_at_rest(&self, generation: u64, stamps: Stamps) {
        let mut table = self.table();
        let is_true = self.is_true(&table, generation, &stamps);
        let is_all = |known: &&mut Known| known.bytes == stamps.size && !known.digests.has_unknown();
        if let Some(known) = table.get_mut(generation).filter(is_all).filter(|_| is_true) {
            known.times = Times::of(&stamps);
            self.learned.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Shows the digests of the first `len` bytes of a generation, if they are known. `false`: they are not.
    pub(crate) fn show(&self, generation: u64, len: u64, show: impl FnOnce(&[ChunkDigest])) -> bool {
        if len == 0 {
            show(&[]);
            return true;
        }
        let table = self.table();
        let known = table.get(generation).filter(|known| known.bytes == len && !known.digests.has_unknown());
        known.map(|known| show(known.digests.all())).is_some()
    }

    /// Of how many files that were not found at the start something is known.
    pub(crate) fn later_files(&self) -> usize {
        self.known.lock().later.len()
    }

    /// Forgets all those of them that `keep` refuses.
    pub(crate) fn retain(&self, mut keep: impl FnMut(u64) -> bool) {
        let mut table = self.known.lock();
        table.later.retain(|generation, _| keep(*generation));
        table.proven.retain(|generation, _| keep(*generation));
    }
}

/// How to make a copy equal to the first `len` bytes of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Repair {
    /// Ranges to write anew in place: offset and length, in order.
    pub(crate) patches: Vec<(u64, u64)>,
    /// Where the copy has to be cut off; `None` if it is not too long.
    pub(crate) truncate: Option<u64>,
    /// Where the bytes begin that have to be appended after that, up to `len`.
    pub(crate) append_from: u64,
}

/// The bytes of a copy worth comparing with a file of `len` bytes: all of it, unless it is longer than the file. Then the
/// last chunk of the file is only a part of the copy's, and the copy's digest tells nothing of that part.
pub(crate) fn comparable_bytes(held: &Held, len: u64) -> u64 {
    let told = (held.digests.len() as u64).saturating_mul(CHUNK_BYTES).min(held.len);
    if told <= len { told } else { len - len % CHUNK_BYTES }
}

/// Compares a copy with a file of `len` bytes whose first [`comparable_bytes`] have the digests `ours`.
///
/// Damage is patched chunk by chunk; a copy of which most is different is cut off where it begins to be.
pub(crate) fn compare(held: &Held, len: u64, ours: &[ChunkDigest]) -> Repair {
    let comparable = comparable_bytes(held, len);
    let differs = |at: &usize| held.digests.get(*at) != ours.get(*at);
    let differing: Vec<usize> = (0..ours.len()).filter(differs).collect();
    let offset = |chunk: usize| chunk as u64 * CHUNK_BYTES;
    if differing.len() * 2 > ours.len() {
        let kept = offset(differing[0]);
        return Repair { patches: Vec::new(), truncate: (kept < held.len).then_some(kept), append_from: kept };
    }
    let patches = differing.iter().map(|&chunk| (offset(chunk), CHUNK_BYTES.min(comparable - offset(chunk)))).collect();
    Repair { patches, truncate: (comparable < held.len).then_some(comparable), append_from: comparable }
}

#[cfg(test)]
mod tests;
