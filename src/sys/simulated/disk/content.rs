//! The bytes of a file, what was done to them and is not on the medium, and what a power cut leaves of that.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::volume::BLOCK_BYTES;

/// What a medium writes whole.
const SECTOR_BYTES: u64 = 512;

/// The bytes of a file: those, and zeros up to its length.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    bytes: Vec<u8>,
    len: u64,
    /// Room that was asked for (`fallocate`).
    reserved: u64,
    /// Where it is the same, so is the content.
    version: u64,
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        (self.len, self.reserved, &self.bytes) == (other.len, other.reserved, &other.bytes)
    }
}

impl Eq for Content {}

/// The last version of any content. Nothing depends on more of it than whether two are the same.
static VERSIONS: AtomicU64 = AtomicU64::new(0);

impl Content {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn bytes(&self) -> Cow<'_, [u8]> {
        if self.bytes.len() as u64 == self.len { Cow::Borrowed(&self.bytes) } else { Cow::Owned(self.to_vec()) }
    }

    fn changes(&mut self) {
        self.version = VERSIONS.fetch_add(1, Ordering::Relaxed) + 1;
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes it takes on the medium.
    pub(super) fn allocated(&self) -> u64 {
        (self.bytes.len() as u64).max(self.reserved).div_ceil(BLOCK_BYTES) * BLOCK_BYTES
    }

    pub(super) fn reserve(&mut self, upto: u64) {
        self.reserved = self.reserved.max(upto);
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes.resize(usize::try_from(self.len).expect("a file that fits into memory"), 0);
        bytes
    }

    pub(super) fn read(&self, at: u64, buffer: &mut [u8]) -> usize {
        let left = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(self.bytes.len());
        let there = length.min(self.bytes.len() - from);
        buffer[..there].copy_from_slice(&self.bytes[from..from + there]);
        buffer[there..length].fill(0);
        length
    }

    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.changes();
        let from = usize::try_from(at).expect("an offset that fits into memory");
        let to = from + bytes.len();
        if self.bytes.len() < to {
            self.bytes.resize(to, 0);
        }
        self.bytes[from..to].copy_from_slice(bytes);
        self.len = self.len.max(to as u64);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        self.changes();
        if len < self.len {
            self.bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
            self.reserved = self.reserved.min(len);
        }
        self.len = len;
    }

    /// The first byte from `at` on that is in a block with anything but zeros; the file goes beyond `at`. A block of zeros that was written is a hole, too: a file
    /// system may have it so.
    pub(super) fn data_from(&self, at: u64) -> Option<u64> {
        self.blocks_from(at).find(|begins| !self.is_hole(*begins)).map(|begins| begins.max(at))
    }

    /// The first byte from `at` on that is in a block of zeros, or the end.
    pub(super) fn hole_from(&self, at: u64) -> u64 {
        self.blocks_from(at).find(|begins| self.is_hole(*begins)).map_or(self.len, |begins| begins.max(at))
    }

    /// Those that may not be holes, and one behind them if the file goes so far.
    fn blocks_from(&self, at: u64) -> impl Iterator<Item = u64> {
        let end = self.len.min((self.bytes.len() as u64).max(at) + BLOCK_BYTES);
        (page_of(at)..end.div_ceil(BLOCK_BYTES)).map(|block| block * BLOCK_BYTES)
    }

    fn is_hole(&self, begins: u64) -> bool {
        let from = usize::try_from(begins).unwrap_or(usize::MAX);
        self.bytes.iter().skip(from).take(usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX)).all(|byte| *byte == 0)
    }

    /// So many bytes from `at` on that can be anything but zeros.
    pub(super) fn written(&self, at: u64, length: u64) -> u64 {
        (self.bytes.len() as u64).saturating_sub(at).min(length)
    }

    /// How many bytes of a write have room, when so many are left on the medium.
    pub(super) fn fits(&self, at: u64, length: u64, available: u64) -> u64 {
        let end = self.allocated() + available / BLOCK_BYTES * BLOCK_BYTES;
        end.saturating_sub(at).min(length)
    }
}

/// What was done to a file.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { at: u64, bytes: Vec<u8> },
    Length,
    Times,
}

/// Something that was done to a file and may not be on the medium, and how the file was after it.
#[derive(Clone, Debug)]
pub(super) struct Effect {
    pub(super) seq: u64,
    /// A sync of it failed: no later one brings it to the medium.
    pub(super) lost: bool,
    pub(super) change: Change,
    pub(super) len: u64,
    pub(super) modified: Duration,
    pub(super) changed: Duration,
}

impl Effect {
    pub(super) fn is_times(&self) -> bool {
        matches!(self.change, Change::Times)
    }

    pub(super) fn times_only(self) -> Self {
        Self { change: Change::Times, lost: false, ..self }
    }

    fn apply(&self, content: &mut Content) {
        match &self.change {
            Change::Write { at, bytes } => content.write(*at, bytes),
            Change::Length => content.set_len(self.len),
            Change::Times => {}
        }
    }
}

fn page_of(at: u64) -> u64 {
    at / BLOCK_BYTES
}

/// Cuts a write where blocks of so many bytes end.
fn pieces(at: u64, bytes: &[u8], block: u64) -> impl Iterator<Item = (u64, &[u8])> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(from..).filter(|rest| !rest.is_empty())?;
        let start = at + from as u64;
        let length = usize::try_from(block - start % block).unwrap_or(usize::MAX).min(rest.len());
        from += length;
        Some((start, &rest[..length]))
    })
}

/// The writes that are on their way to the medium never get there. Returns whether there are any that were not lost before.
pub(super) fn lose(pending: &mut Vec<Effect>) -> bool {
    let mut lost = Vec::with_capacity(pending.len());
    let is_dirty = pending.iter().any(|effect| !effect.lost && matches!(effect.change, Change::Write { .. }));
    for effect in pending.drain(..) {
        match &effect.change {
            Change::Write { at, bytes } => {
                for (at, piece) in pieces(*at, bytes, BLOCK_BYTES) {
                    let change = Change::Write { at, bytes: piece.to_vec() };
                    lost.push(Effect { change, lost: true, ..effect.clone() });
                }
                // The length is no page: it stays on its way.
                lost.push(Effect { change: Change::Times, ..effect });
            }
            _ => lost.push(effect),
        }
    }
    *pending = lost;
    is_dirty
}

/// Brings what was done up to then to the medium. Writes that were lost get there only with a page that was written again.
pub(super) fn write_back(pending: &mut Vec<Effect>, content: &mut Content, upto: u64) {
    let mut pages = BTreeSet::new();
    for effect in pending.iter().filter(|effect| effect.seq <= upto && !effect.lost) {
        if let Change::Write { at, bytes } = &effect.change
            && pending.iter().any(|effect| effect.lost)
        {
            pages.extend(page_of(*at)..=page_of((at + bytes.len() as u64).saturating_sub(1)));
        }
    }
    let mut kept: Vec<Effect> = Vec::new();
    for effect in pending.drain(..) {
        if effect.seq > upto {
            kept.push(effect);
            continue;
        }
        if effect.lost {
            match &effect.change {
                Change::Write { at, .. } if !pages.contains(&page_of(*at)) => kept.push(effect),
                _ => effect.apply(content),
            }
            continue;
        }
        if matches!(effect.change, Change::Length) {
            for lost in &mut kept {
                if let Change::Write { at, bytes } = &mut lost.change {
                    bytes.truncate(usize::try_from(effect.len.saturating_sub(*at)).unwrap_or(usize::MAX));
                }
            }
        }
        effect.apply(content);
        if content.len() < effect.len {
            content.set_len(effect.len);
        }
    }
    for lost in kept.iter_mut().filter(|effect| effect.seq <= upto) {
        lost.len = content.len();
    }
    *pending = kept;
}

/// What a power cut leaves of a file: its content and times.
pub(super) fn survivor(
    rng: &mut fastrand::Rng,
    durable: &Content,
    times: (Duration, Duration),
    pending: &[Effect],
) -> (Content, (Duration, Duration)) {
    let mut content = durable.clone();
    let count = pending.len();
    let style = rng.u8(..6);
    match style {
        0 => {}
        1 => apply_first(rng, &mut content, pending, count),
        2 | 3 => {
            let whole = rng.usize(..=count);
            apply_first(rng, &mut content, pending, whole);
            if let Some(Effect { change: Change::Write { at, bytes }, .. }) = pending.get(whole) {
                let sectors = pieces(*at, bytes, SECTOR_BYTES).count();
                for (at, piece) in pieces(*at, bytes, SECTOR_BYTES).take(rng.usize(..sectors.max(1))) {
                    content.write(at, piece);
                }
            }
        }
        _ => mixed(rng, &mut content, pending),
    }
    let of = match style {
        1 if rng.bool() => count,
        _ => rng.usize(..=count),
    };
    let times = of.checked_sub(1).map_or(times, |last| (pending[last].modified, pending[last].changed));
    (content, times)
}

fn apply_first(rng: &mut fastrand::Rng, content: &mut Content, pending: &[Effect], count: usize) {
    for effect in &pending[..count] {
        if !effect.lost || rng.bool() {
            effect.apply(content);
        }
        if content.len() < effect.len {
            content.set_len(effect.len);
        }
    }
}

/// Any of the sectors, and a length that the file had; but what was written after it was cut needs the cut.
fn mixed(rng: &mut fastrand::Rng, content: &mut Content, pending: &[Effect]) {
    let mut before = content.len();
    let mut cuts = Vec::new();
    for (at, effect) in pending.iter().enumerate() {
        if effect.len < before {
            cuts.push(at);
        }
        before = effect.len;
    }
    let cuts_made = rng.usize(..=cuts.len());
    let end = cuts.get(cuts_made).copied().unwrap_or(pending.len());
    let likely = [0.1, 0.5, 0.9][rng.usize(..3)];
    let mut lengths = vec![content.len()];
    for effect in &pending[..end] {
        if effect.len < *lengths.last().expect("there is one") {
            content.set_len(effect.len);
            lengths.clear();
        }
        lengths.push(effect.len);
        if let Change::Write { at, bytes } = &effect.change {
            scatter(rng, likely, content, *at, bytes, u64::MAX);
        }
    }
    content.set_len(lengths[rng.usize(..lengths.len())]);
    // What was written in place is no worse off for a cut that came between and was lost.
    let mut floor = content.len();
    for effect in &pending[end..] {
        floor = floor.min(effect.len);
        if let Change::Write { at, bytes } = &effect.change {
            scatter(rng, likely, content, *at, bytes, floor);
        }
    }
}

fn scatter(rng: &mut fastrand::Rng, likely: f64, content: &mut Content, at: u64, bytes: &[u8], below: u64) {
    let whole = rng.bool();
    if whole && rng.f64() >= likely {
        return;
    }
    for (at, piece) in pieces(at, bytes, SECTOR_BYTES) {
        if whole || rng.f64() < likely {
            let length = usize::try_from(below.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
            content.write(at, &piece[..length]);
        }
    }
}
