//! What followers were sent of watched files: digests of blocks, by which a change is found that nobody announced.
//!
//! A digest is of the bytes that followers *were sent*, never of a mere later read. Of each block of a generation it is known one of these:
//!
//! | a block is | which means | when a file is compared |
//! |---|---|---|
//! | *unknown* | nobody has it through this leader; whoever reads it later is noted then | nothing |
//! | *pending* | it is being read for a follower, for the first time | it is not proven: compared again |
//! | *known* | all who have it have content of this digest | announced if it differs |
//! | *torn* | followers may have different things | announced, whether it differs or not |
//!
//! What is announced by value makes a block known, *before* it is announced ([`Blocks::set`]): who reads it after that is compared with what will have been
//! announced last. Of a generation that an announcement begins there is none to note before that; what it brought is compared with what was read
//! meanwhile ([`Blocks::sent`]).
//!
//! Each read of content for a follower, or for digests by which followers are told that they have a file, is noted ([`Blocks::begin`], [`Reading::took`]): what was unknown is known from then on,
//! and what is known to be something else is torn, and its file under suspicion: the comparison may have passed long before, when a file was changed and
//! changed back. An unknown block is *pending* before it is read, because a comparison that finds it unknown would be over before it becomes known for what it was before.
//!
//! One lock, a leaf, never held while a file is read.

use std::mem::take;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use super::Version;
use crate::sys::fs::{File, FileExt};
use crate::sys::hash::HashMap;
use crate::sys::sync::Mutex;
use crate::types::RelPath;

/// What is compared, and announced anew, as one.
pub(crate) const BLOCK_BYTES: u64 = 16 << 10;
const BLOCK: usize = 16 << 10;

/// Digests that are held at most, of 8 bytes each: of 1 TiB. What is read beyond that is torn.
const BLOCKS_MAX: usize = 64 << 20;

/// How often a block is read once more because its file had grown meanwhile.
const ROUNDS_MAX: u32 = 4;

const UNKNOWN: u64 = 0;
const PENDING: u64 = 1;
const TORN: u64 = 2;

/// Never one of those above.
fn digest(bytes: &[u8]) -> u64 {
    xxh3_64(bytes).max(TORN + 1)
}

type Waker = Arc<dyn Fn() + Send + Sync>;

/// The digests of all files, by generation.
#[derive(Default)]
pub(crate) struct Blocks {
    is_watched: AtomicBool,
    table: Mutex<Table>,
    /// Told of a file under suspicion.
    waker: Mutex<Option<Waker>>,
}

#[derive(Default)]
struct Table {
    /// The generations of the files that were found at the start.
    first: u64,
    /// Of those that are one block; the others are below.
    found: Vec<u64>,
    files: HashMap<u64, Blocked>,
    /// How many digests there are in `files`.
    held: usize,
    /// Generations up to this one may have been read before anybody noted it.
    read_before: u64,
    /// Generations under suspicion, and where they were when that was noted.
    suspects: HashMap<u64, RelPath>,
}

/// The blocks of a file.
#[derive(Default)]
struct Blocked {
    /// How far they go: the last one may be of a part of a block.
    len: u64,
    digests: Digests,
    /// There was no room for them: all of it is torn.
    is_lost: bool,
    /// It was compared with the digests of chunks that outlived the leader before.
    is_founded: bool,
}

/// Most files have one.
enum Digests {
    One(u64),
    More(Vec<u64>),
}

impl Default for Digests {
    fn default() -> Self {
        Self::One(UNKNOWN)
    }
}

impl Digests {
    fn get(&self, at: u64) -> u64 {
        match self {
            Self::One(one) if at == 0 => *one,
            Self::One(_) => UNKNOWN,
            Self::More(more) => usize::try_from(at).ok().and_then(|at| more.get(at)).copied().unwrap_or(UNKNOWN),
        }
    }

    /// Returns how many more it holds than before.
    fn set(&mut self, at: u64, digest: u64) -> usize {
        match self {
            Self::One(one) if at == 0 => {
                *one = digest;
                0
            }
            Self::One(one) => {
                *self = Self::More(vec![*one]);
                1 + self.set(at, digest)
            }
            Self::More(more) => {
                let (at, before) = (usize::try_from(at).expect("a block in memory"), more.len());
                if at >= before {
                    more.resize(at + 1, UNKNOWN);
                }
                more[at] = digest;
                more.len() - before
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::One(_) => 0,
            Self::More(more) => more.len(),
        }
    }
}

/// The blocks that a range touches.
fn blocks_of(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES)
}

/// Where a block begins and ends in a file of `len` bytes.
fn bounds(block: u64, len: u64) -> Range<u64> {
    block * BLOCK_BYTES..((block + 1) * BLOCK_BYTES).min(len)
}

impl Table {
    fn place(&self, generation: u64) -> Option<usize> {
        let place = usize::try_from(generation.checked_sub(self.first)?).ok()?;
        (place < self.found.len()).then_some(place)
    }

    fn is_lost(&self, generation: u64) -> bool {
        self.files.get(&generation).map_or(generation <= self.read_before, |file| file.is_lost)
    }

    fn get(&self, generation: u64, block: u64) -> u64 {
        if self.is_lost(generation) {
            return TORN;
        }
        match (self.files.get(&generation), self.place(generation)) {
            (Some(file), _) => file.digests.get(block),
            (None, Some(place)) if block == 0 => self.found[place],
            (None, _) => UNKNOWN,
        }
    }

    /// How far the digests of a generation go; `None`: as far as it was found, or there are none.
    fn len(&self, generation: u64) -> Option<u64> {
        self.files.get(&generation).map(|file| file.len)
    }

    /// What is known of a file of more than a block, or of one that has changed since it was found.
    fn file(&mut self, generation: u64, len: u64) -> &mut Blocked {
        let (found, is_lost) = (self.place(generation), self.is_lost(generation));
        let is_new = !self.files.contains_key(&generation);
        let first = found.map(|place| take(&mut self.found[place])).filter(|_| is_new);
        let file = self.files.entry(generation).or_default();
        if is_new {
            // What was found is as long as it was found, which is what `len` is for whoever asks for it first.
            *file = Blocked { digests: Digests::One(first.unwrap_or(UNKNOWN)), is_lost, len, ..Blocked::default() };
        }
        file
    }

    fn set(&mut self, generation: u64, block: u64, digest: u64, len: u64) {
        if block == 0
            && !self.files.contains_key(&generation)
            && len <= BLOCK_BYTES
            && let Some(place) = self.place(generation)
        {
            self.found[place] = digest;
            return;
        }
        let held = self.held;
        let file = self.file(generation, len);
        file.len = file.len.max(len);
        if file.is_lost {
            return;
        }
        // Also those between that nobody has take room.
        let needed = usize::try_from(block).unwrap_or(usize::MAX).saturating_add(1).saturating_sub(file.digests.len());
        if block > 0 && needed > BLOCKS_MAX.saturating_sub(held) {
            let lost = file.digests.len();
            (file.digests, file.is_lost) = (Digests::default(), true);
            self.held -= lost;
            return;
        }
        self.held += file.digests.set(block, digest);
    }

    /// Some follower got, or has by its digests, a block of this digest. `false`: others may have something else.
    fn has_come(&mut self, generation: u64, block: u64, digest: u64, len: u64) -> bool {
        match self.get(generation, block) {
            UNKNOWN | PENDING => self.set(generation, block, digest, len),
            TORN => {}
            known if known == digest => {}
            _ => {
                self.set(generation, block, TORN, len);
                return false;
            }
        }
        true
    }
}

/// How what a file holds compares with what followers were sent of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    /// Ranges to be announced, in order.
    pub(crate) differs: Vec<Range<u64>>,
    /// Somebody is reading some of it, and it is to be compared again after that.
    pub(crate) is_pending: bool,
}

/// What followers may have of the block that a file ends in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing.
    Nobody,
    /// What is there now.
    Same,
    /// Something else, perhaps.
    Other,
}

impl Blocks {
    /// Notes what is read from now on. Asks after that up to which generation somebody may have read before.
    pub(crate) fn watch(&self, read: impl FnOnce() -> Option<u64>) {
        if !self.is_watched.swap(true, Ordering::SeqCst)
            && let Some(read) = read()
        {
            self.table.lock().read_before = read;
        }
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Relaxed)
    }

    /// `wake` is called when a file comes under suspicion, with no lock held; it must not block.
    pub(crate) fn wake_with(&self, wake: impl Fn() + Send + Sync + 'static) {
        *self.waker.lock() = Some(Arc::new(wake));
    }

    /// Makes room for files of generations that follow each other. Nothing is known before.
    pub(crate) fn make_room(&self, generations: Range<u64>) {
        let count = usize::try_from(generations.end - generations.start).unwrap_or_default();
        let mut table = self.table.lock();
        (table.first, table.found) = (generations.start, vec![UNKNOWN; count]);
    }

    /// To be called before a range of a generation is read for a follower, or digested, of which so many bytes are announced at least.
    pub(crate) fn begin<'a>(
        &'a self,
        path: &'a RelPath,
        generation: u64,
        range: Range<u64>,
        announced: u64,
    ) -> Option<Reading<'a>> {
        if !self.is_watched() || range.is_empty() {
            return None;
        }
        let mut table = self.table.lock();
        let len = table.len(generation).unwrap_or_default().max(announced).max(range.end);
        for block in blocks_of(&range) {
            if table.get(generation, block) == UNKNOWN {
                table.set(generation, block, PENDING, bounds(block, len).end);
            }
        }
        let noted = range.start - range.start % BLOCK_BYTES;
        Some(Reading { blocks: self, path, generation, range, len, noted })
    }

    /// Notes what is about to be announced: all of some blocks, but for the last, of which it is all there is. In a generation that exists.
    pub(crate) fn set(&self, generation: u64, offset: u64, bytes: &[u8]) {
        debug_assert!(offset.is_multiple_of(BLOCK_BYTES));
        if !self.is_watched() {
            return;
        }
        let mut table = self.table.lock();
        // Also of one that was found: how long it was, its digest does not say.
        table.file(generation, 0);
        for (block, bytes) in (offset / BLOCK_BYTES..).zip(bytes.chunks(BLOCK)) {
            table.set(generation, block, digest(bytes), block * BLOCK_BYTES + bytes.len() as u64);
        }
    }

    /// Notes what was announced: the beginning of a new generation.
    pub(crate) fn sent(&self, path: &RelPath, generation: u64, bytes: &[u8]) {
        if !self.is_watched() {
            return;
        }
        let is_torn = {
            let mut table = self.table.lock();
            table.file(generation, 0);
            let mut is_torn = false;
            for (block, bytes) in (0..).zip(bytes.chunks(BLOCK)) {
                let end = block * BLOCK_BYTES + bytes.len() as u64;
                is_torn |= !table.has_come(generation, block, digest(bytes), end);
            }
            is_torn
        };
        if is_torn {
            self.suspect(path, generation);
        }
    }

    /// Notes that followers may have different things in a range of a file of `len` bytes.
    pub(crate) fn tear(&self, generation: u64, range: Range<u64>, len: u64) {
        if self.is_watched() && !range.is_empty() {
            let mut table = self.table.lock();
            table.file(generation, len);
            for block in blocks_of(&range) {
                table.set(generation, block, TORN, bounds(block, len).end);
            }
        }
    }

    /// Notes that whoever has these bytes, if anybody has, has them from somewhere else: what is unknown is known.
    pub(crate) fn found(&self, generation: u64, offset: u64, bytes: &[u8]) -> Compared {
        {
            let mut table = self.table.lock();
            for (block, bytes) in (offset / BLOCK_BYTES..).zip(bytes.chunks(BLOCK)) {
                if table.get(generation, block) == UNKNOWN {
                    table.set(generation, block, digest(bytes), block * BLOCK_BYTES + bytes.len() as u64);
                }
            }
        }
        self.compare(generation, offset, bytes)
    }

    /// Compares whole blocks, and the last one of a file, with what followers were sent.
    pub(crate) fn compare(&self, generation: u64, offset: u64, bytes: &[u8]) -> Compared {
        debug_assert!(offset.is_multiple_of(BLOCK_BYTES));
        let blocks = bytes.chunks(BLOCK).map(|bytes| (digest(bytes), bytes.len() as u64));
        let blocks: Vec<_> = (offset / BLOCK_BYTES..).zip(blocks).collect();
        let mut compared = Compared::default();
        let table = self.table.lock();
        for (block, (digest, len)) in blocks {
            let known = table.get(generation, block);
            let range = block * BLOCK_BYTES..block * BLOCK_BYTES + len;
            match known {
                UNKNOWN => {}
                PENDING => compared.is_pending = true,
                // Of another length it has another digest.
                known if known == digest => {}
                _ => match compared.differs.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => compared.differs.push(range),
                },
            }
        }
        compared
    }

    /// Whether there is nothing to compare in a range: nobody has any of it.
    pub(crate) fn is_unknown(&self, generation: u64, range: &Range<u64>) -> bool {
        let table = self.table.lock();
        blocks_of(range).all(|block| table.get(generation, block) == UNKNOWN)
    }

    /// What followers have of the block in which a file ended at `end`, of which these are the bytes now.
    pub(crate) fn end(&self, generation: u64, end: u64, bytes: &[u8]) -> End {
        let now = digest(bytes);
        match self.table.lock().get(generation, end / BLOCK_BYTES) {
            UNKNOWN | PENDING => End::Nobody,
            known if known == now => End::Same,
            _ => End::Other,
        }
    }

    /// Whether all that followers may have is known here: not so of what was found at the start, until it is [`is_founded`](Self::founded).
    pub(crate) fn is_founded(&self, generation: u64) -> bool {
        let table = self.table.lock();
        table.place(generation).is_none() || table.files.get(&generation).is_some_and(|file| file.is_founded)
    }

    /// All of a file of so many bytes was compared with what was known of it before the start.
    pub(crate) fn founded(&self, generation: u64, len: u64) {
        let mut table = self.table.lock();
        if table.place(generation).is_some() {
            table.file(generation, len).is_founded = true;
        }
    }

    /// A generation is no more.
    pub(crate) fn forget(&self, generation: u64) {
        let mut table = self.table.lock();
        if let Some(place) = table.place(generation) {
            table.found[place] = UNKNOWN;
        }
        if let Some(file) = table.files.remove(&generation) {
            table.held -= file.digests.len();
        }
    }

    /// Whether there was no room for what followers have of a generation.
    pub(crate) fn is_lost(&self, generation: u64) -> bool {
        self.table.lock().is_lost(generation)
    }

    /// Of how many files more than one digest is kept.
    #[cfg(test)]
    pub(crate) fn files(&self) -> usize {
        self.table.lock().files.len()
    }

    /// Forgets all that `keep` refuses.
    pub(crate) fn retain(&self, mut keep: impl FnMut(u64) -> bool) {
        let mut table = self.table.lock();
        let mut gone = 0;
        table.files.retain(|generation, file| {
            let keeps = keep(*generation);
            gone += if keeps { 0 } else { file.digests.len() };
            keeps
        });
        table.held -= gone;
    }

    /// Files of which somebody was sent something else than others, told once: their generations, and names that they had.
    pub(crate) fn take_suspects(&self) -> HashMap<u64, RelPath> {
        take(&mut self.table.lock().suspects)
    }

    fn suspect(&self, path: &RelPath, generation: u64) {
        self.table.lock().suspects.insert(generation, path.clone());
        let waker = self.waker.lock().clone();
        if let Some(wake) = waker {
            wake();
        }
    }
}

/// With what a reader of a file notes what it reads.
#[derive(Clone)]
pub(crate) struct Notes {
    blocks: Arc<Blocks>,
    path: RelPath,
    version: Version,
}

impl Notes {
    /// `None` if nobody asks for it. So much as `version` says is announced of the file at least.
    pub(crate) fn of(blocks: &Arc<Blocks>, path: &RelPath, version: Version) -> Option<Self> {
        blocks.is_watched().then(|| Self { blocks: blocks.clone(), path: path.clone(), version })
    }

    /// To be called before a range is read.
    pub(crate) fn begin(&self, range: Range<u64>) -> Option<Reading<'_>> {
        let Version { generation, len } = self.version;
        // Nobody is sent what is behind it.
        self.blocks.begin(&self.path, generation, range.start..range.end.min(len), len)
    }
}

/// A range that is being read. Dropped before it [`took`](Self::took) it, what it began with is in doubt.
pub(crate) struct Reading<'a> {
    blocks: &'a Blocks,
    path: &'a RelPath,
    generation: u64,
    range: Range<u64>,
    /// How long the file is.
    len: u64,
    /// Up to where it was noted what was read.
    noted: u64,
}

impl Reading<'_> {
    /// Notes what was read, from the beginning of the range on. Of blocks that are only in part in it, the rest is read from the file.
    pub(crate) fn took(mut self, file: &File, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(usize::try_from(self.range.end - self.range.start).expect("in memory"))];
        let range = self.range.start..self.range.start + bytes.len() as u64;
        let mut is_torn = false;
        for block in blocks_of(&range) {
            is_torn |= !self.note(file, &range, Some(bytes), block);
        }
        self.noted = range.end;
        if is_torn {
            self.blocks.suspect(self.path, self.generation);
        }
    }

    /// Notes that there were nothing but zeros; not so if that was not found again after this began.
    pub(crate) fn took_hole(mut self, file: &File, is_there: bool) {
        let range = self.range.clone();
        if is_there {
            let zeros = digest(&[0; BLOCK]);
            let mut is_torn = false;
            for block in blocks_of(&range) {
                let whole = bounds(block, u64::MAX);
                is_torn |= if whole.start >= range.start && whole.end <= range.end {
                    !self.blocks.table.lock().has_come(self.generation, block, zeros, whole.end)
                } else {
                    !self.note(file, &range, None, block)
                };
            }
            self.noted = range.end;
            if is_torn {
                self.blocks.suspect(self.path, self.generation);
            }
        } else {
            self.blocks.tear(self.generation, range.clone(), self.len);
            self.noted = range.end;
            self.blocks.suspect(self.path, self.generation);
        }
    }

    /// Notes what was read of a block, `None` being zeros. `false`: followers have different things.
    fn note(&self, file: &File, range: &Range<u64>, bytes: Option<&[u8]>, block: u64) -> bool {
        let mut len = self.len;
        for _ in 0..ROUNDS_MAX {
            let digest = self.digest(file, range, bytes, bounds(block, len));
            let mut table = self.blocks.table.lock();
            let now = table.len(self.generation).unwrap_or_default().max(self.len);
            if bounds(block, now).end != bounds(block, len).end {
                // It has grown meanwhile, and the block has: what is known of it is of all of that.
                len = now;
                continue;
            }
            let is_gone = table.len(self.generation).is_none() && table.place(self.generation).is_none();
            return match digest {
                _ if is_gone => true,
                Some(digest) => table.has_come(self.generation, block, digest, bounds(block, len).end),
                None => break,
            };
        }
        // What else is in the block is not known.
        self.blocks.tear(self.generation, bounds(block, len), len);
        false
    }

    /// Of a block that goes so far; `None`: the rest of it cannot be read.
    fn digest(&self, file: &File, range: &Range<u64>, bytes: Option<&[u8]>, bounds: Range<u64>) -> Option<u64> {
        let (from, to) = (bounds.start.max(range.start), bounds.end.min(range.end));
        let at = |offset: u64| usize::try_from(offset - range.start).expect("in memory");
        let read = bytes.map(|bytes| &bytes[at(from)..at(to)]);
        if let Some(read) = read.filter(|_| (from, to) == (bounds.start, bounds.end)) {
            return Some(digest(read));
        }
        let mut all = vec![0; usize::try_from(bounds.end - bounds.start).expect("a block")];
        file.read_exact_at(&mut all, bounds.start).ok()?;
        let at = |offset: u64| usize::try_from(offset - bounds.start).expect("a block");
        match read {
            Some(read) => all[at(from)..at(to)].copy_from_slice(read),
            None => all[at(from)..at(to)].fill(0),
        }
        Some(digest(&all))
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        // Also of what was not read of it, if that ends in the midst of a block.
        let left = self.noted.next_multiple_of(BLOCK_BYTES)..self.range.end;
        if left.is_empty() {
            return;
        }
        let mut table = self.blocks.table.lock();
        for block in blocks_of(&left) {
            if table.get(self.generation, block) == PENDING {
                table.set(self.generation, block, TORN, bounds(block, self.len).end);
            }
        }
    }
}

#[cfg(test)]
mod tests;
