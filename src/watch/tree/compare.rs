//! Comparing what files hold with what followers were sent of them.

use std::ops::Range;
use std::time::Duration;

use sha1::{Digest, Sha1};

use super::files::read_range;
use super::{AGAIN, Tree, Trouble};
use crate::digests::Stamps;
use crate::index::Version;
use crate::index::blocks::{BLOCK_BYTES, Compared};
use crate::protocol::extension::{CHUNK_BYTES, ChunkDigest};
use crate::sys::fs::File;
use crate::sys::time::Instant;
use crate::types::RelPath;
use crate::watch::announce::Announce;
use crate::watch::file::Seen;

/// What is read at once: looks at other files are not held up for longer than that takes.
const SLICE_BYTES: u64 = CHUNK_BYTES;

/// What is compared of a file whenever it is seen to have changed, around where it differed last.
const HOT_BYTES: u64 = 4 * BLOCK_BYTES;

/// A file of which more blocks than half differ is replaced: looked at so many of a large one, once a whole slice differs.
const SAMPLES: u64 = 8;

/// So many chunks without anything to compare are passed over at once.
const SKIPPED_MAX: u64 = 1 << 16;

impl<A: Announce> Tree<A> {
    /// When the next file is to be compared; `None`: all are proven.
    pub(in crate::watch) fn next_comparison(&self) -> Option<Instant> {
        self.suspects.next_due()
    }

    /// The same of files that could be read.
    pub(in crate::watch) fn next_comparison_of_readable(&self) -> Option<Instant> {
        self.suspects.next_due_readable()
    }

    /// Compares a slice of the file that is due next. `false`: none is.
    pub(in crate::watch) fn compare(&mut self) -> Result<bool, Trouble> {
        for (generation, path) in self.announce.blocks().take_suspects() {
            if let Some(path) = self.announce.find(&path, generation) {
                self.suspects.has_changed(&path, Instant::now());
                // What was compared of it in this circle was compared before that was noted.
                self.suspects.begins_anew(&path);
            }
        }
        let began = Instant::now();
        let Some(path) = self.suspects.first_due(began) else { return Ok(false) };
        match self.compare_slice(&path, began) {
            Ok(()) => {}
            Err(Trouble::Later(at)) => self.suspects.put_off(&path, at),
            Err(Trouble::Io(error)) => {
                // Whoever looks at it finds the same, and says so.
                log::debug!("{path} cannot be compared now: {error}");
                self.dirty.insert(path.clone());
                self.suspects.is_unreadable(&path, Instant::now() + super::AFTER_IO_ERROR_MIN);
            }
            Err(trouble) => return Err(trouble),
        }
        Ok(true)
    }

    fn compare_slice(&mut self, path: &RelPath, began: Instant) -> Result<(), Trouble> {
        let (Some(known), Some(version)) = (self.files.get(path), self.announce.version(path)) else {
            self.suspects.remove(path);
            self.dirty.insert(path.clone());
            return Ok(());
        };
        let Version { generation, len } = version;
        let file = self.open_file(path)?;
        let seen = Seen::of(&file.metadata()?);
        if seen.id() != known.id() || known.announced != len || seen.len < len || !self.is_vouched_for(path, &seen) {
            // A look comes first.
            self.dirty.insert(path.clone());
            return Err(Trouble::Later(began + AGAIN));
        }
        if self.announce.blocks().is_lost(generation) {
            // There is no room to know what followers have of it. They have what was read since it was replaced, and that is what it holds if it looks as it did, at rest, before that.
            if known.seen.settled && known.seen.looks_like(&seen) {
                self.suspects.is_proven(path, seen.age(), began);
                return Ok(());
            }
            return self.replace(path, seen);
        }
        let has_grown = seen.len > len;
        if has_grown {
            self.dirty.insert(path.clone());
        }
        let Some(suspect) = self.suspects.get_mut(path) else { return Ok(()) };
        if !suspect.looks.is_some_and(|(before, of)| of == generation && before.looks_like(&seen)) || suspect.read == 0
        {
            (suspect.looks, suspect.read, suspect.is_disturbed) = (Some((seen, generation)), 0, false);
        }
        let from = if suspect.next < len { suspect.next - suspect.next % SLICE_BYTES } else { 0 };
        let range = self.next_to_read(generation, from, len);
        let compared = self.compare_range(path, &file, version, range.clone())?;
        let meta = file.metadata()?;
        let after = Seen::of(&meta);
        let now = Instant::now();
        self.suspects.has_read(path, range.end - from, compared.announced, now.saturating_duration_since(began));
        let Some(suspect) = self.suspects.get_mut(path) else { return Ok(()) };
        suspect.next = range.end;
        suspect.is_disturbed |= compared.is_pending;
        if has_grown || !after.looks_like(&seen) || self.announce.version(path) != Some(version) {
            suspect.read = 0;
            suspect.looks = None;
        } else if suspect.read >= len {
            let is_proven = !suspect.is_disturbed && suspect.looks.is_some_and(|(before, _)| before.settled);
            if is_proven && self.suspects.may_change_unheard(path, after.age(), now) {
                self.suspects.begins_anew(path);
                return Ok(());
            }
            if is_proven {
                let is_clean = self.suspects.is_proven(path, after.age(), now);
                self.announce.blocks().founded(generation, len);
                if let Some(known) = self.files.get_mut(path) {
                    known.seen = after;
                }
                if is_clean {
                    self.announce.proven(generation, Stamps::of_metadata(&meta));
                }
                return Ok(());
            }
            self.suspects.goes_on(path, len, now);
            self.suspects.begins_anew(path);
            return Ok(());
        }
        self.suspects.goes_on(path, len, now);
        Ok(())
    }

    /// What of a file is read next: a chunk, behind those of which nobody has anything. Those were read, too.
    fn next_to_read(&self, generation: u64, from: u64, len: u64) -> Range<u64> {
        let mut range = from..from;
        for _ in 0..SKIPPED_MAX {
            range = range.end..(range.end - range.end % SLICE_BYTES + SLICE_BYTES).min(len);
            if !self.has_nobody(generation, &range) {
                return range;
            }
            if range.end == len {
                break;
            }
        }
        range.end..range.end
    }

    fn has_nobody(&self, generation: u64, range: &Range<u64>) -> bool {
        self.announce.blocks().is_unknown(generation, range) && self.kept_chunk(generation, range.clone()).is_none()
    }

    /// What was known before the start of a chunk that was not compared since.
    fn kept_chunk(&self, generation: u64, range: Range<u64>) -> Option<ChunkDigest> {
        if !range.start.is_multiple_of(CHUNK_BYTES) || self.announce.blocks().is_founded(generation) {
            return None;
        }
        self.announce.chunk(generation, range.start / CHUNK_BYTES, range.end - range.start)
    }

    /// A file is about to grow from `end`: from then on what was known of its last chunk before the start is not of a chunk any more.
    pub(super) fn know_last_chunk(&self, file: &File, generation: u64, end: u64) -> std::io::Result<()> {
        let range = end - end % CHUNK_BYTES..end;
        if let Some(kept) = self.kept_chunk(generation, range.clone()) {
            self.compare_kept(generation, &range, &read_range(file, range.start, end)?, kept, end);
        }
        Ok(())
    }

    /// Compares with what was known before the start.
    fn compare_kept(&self, generation: u64, range: &Range<u64>, bytes: &[u8], kept: ChunkDigest, len: u64) -> Compared {
        let blocks = self.announce.blocks();
        if ChunkDigest::from(Sha1::digest(bytes)) == kept {
            return blocks.found(generation, range.start, bytes);
        }
        blocks.tear(generation, range.clone(), len);
        blocks.compare(generation, range.start, bytes)
    }

    /// Compares a range of whole blocks, but for the last, and announces what differs.
    fn compare_range(
        &mut self,
        path: &RelPath,
        file: &File,
        version: Version,
        range: Range<u64>,
    ) -> Result<Announced, Trouble> {
        let mut result = Announced::default();
        if range.is_empty() {
            return Ok(result);
        }
        let Version { generation, len } = version;
        let bytes = read_range(file, range.start, range.end)?;
        let Compared { differs, is_pending } = match self.kept_chunk(generation, range.clone()) {
            Some(kept) => self.compare_kept(generation, &range, &bytes, kept, len),
            None => self.announce.blocks().compare(generation, range.start, &bytes),
        };
        result.is_pending = is_pending;
        let Some(first) = differs.first() else { return Ok(result) };
        let differing: u64 = differs.iter().map(|range| range.end - range.start).sum();
        if let Some(suspect) = self.suspects.get_mut(path) {
            suspect.hot = Some(first.start);
        }
        if differing * 2 > range.end - range.start && self.differs_mostly(file, version, &range)? {
            log::debug!("replace {path}: most of it is different");
            result.announced = len;
            self.replace(path, Seen::of(&file.metadata()?))?;
            return Ok(result);
        }
        for differs in differs {
            let at = |offset: u64| usize::try_from(offset - range.start).expect("in memory");
            let bytes = &bytes[at(differs.start)..at(differs.end)];
            log::debug!("{path} differs at {differs:?}");
            // Before it is announced: see there.
            self.announce.blocks().set(generation, differs.start, bytes);
            self.write_at(path, differs.start, bytes)?;
            self.still_is(path, generation, differs.clone());
            result.announced += bytes.len() as u64;
        }
        Ok(result)
    }

    /// Whether most of a file differs, of which most of a range does.
    fn differs_mostly(&self, file: &File, version: Version, range: &Range<u64>) -> std::io::Result<bool> {
        let Version { generation, len } = version;
        if range.end - range.start == len {
            return Ok(true);
        }
        let blocks = len.div_ceil(BLOCK_BYTES);
        let mut differing = 0;
        for sample in 0..SAMPLES {
            let start = blocks * sample / SAMPLES * BLOCK_BYTES;
            let bytes = read_range(file, start, (start + BLOCK_BYTES).min(len))?;
            differing += u64::from(!self.announce.blocks().compare(generation, start, &bytes).differs.is_empty());
        }
        Ok(differing * 2 > SAMPLES)
    }

    /// Compares what is around where a file differed last, which has changed.
    pub(super) fn compare_hot(&mut self, path: &RelPath, file: &File) -> Result<(), Trouble> {
        let hot = self.suspects.get(path).and_then(|suspect| suspect.hot);
        if let (Some(hot), Some(version)) = (hot, self.announce.version(path)) {
            let range = hot.saturating_sub(BLOCK_BYTES).min(version.len)..(hot + HOT_BYTES).min(version.len);
            self.compare_range(path, file, version, range)?;
        }
        Ok(())
    }
}

/// What a comparison came to.
#[derive(Default)]
struct Announced {
    announced: u64,
    is_pending: bool,
}

/// How much of a core comparisons may take: after some work they rest.
pub(in crate::watch) struct Share {
    percent: u32,
    /// What may be used at once.
    left: Duration,
    at: Instant,
}

/// Work that is saved up for when it is needed.
const SAVED_MAX: Duration = Duration::from_millis(300);

impl Share {
    pub(in crate::watch) fn new(percent: u32, now: Instant) -> Self {
        Self { percent: percent.clamp(1, 100), left: SAVED_MAX, at: now }
    }

    /// Whether there is any left now; otherwise when there will be.
    pub(in crate::watch) fn is_left(&mut self, now: Instant) -> Result<(), Instant> {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        self.left = (self.left + passed * self.percent / 100).min(SAVED_MAX);
        if self.left.is_zero() { Err(now + Duration::from_millis(2)) } else { Ok(()) }
    }

    pub(in crate::watch) fn uses(&mut self, spent: Duration) {
        self.left = self.left.saturating_sub(spent);
    }
}
