//! Short histories of a leader's index and a follower's files, in memory: planned as joining and catching up do, and carried out on a model.
//!
//! Each has a seed. `HISTORIES=1000000 cargo test --release --lib short_histories -- --nocapture` runs as many, `HISTORY=7` that one. The content of a file is a list
//! of blocks, a quarter of a chunk each, of which no two are the same; a digest is those of its chunk, so that nothing has to be hashed.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fastrand::Rng;

use super::*;
use crate::index::Index;
use crate::leader::stream::{Changes, Rewritten};
use crate::leader::sync::view::View;
use crate::sums::{Sums, bucket_of, differing};
use crate::sys::hash::HashMap;
use crate::types::StreamPosition;

/// How many, if nothing else is said.
const HISTORIES: u64 = 100_000;

const BLOCK_BYTES: u64 = CHUNK_BYTES / BLOCKS_A_CHUNK as u64;
const BLOCKS_A_CHUNK: usize = 4;

type Blocks = Vec<u32>;
/// A follower's files, and those of a leader without their generations.
type Files = BTreeMap<RelPath, Blocks>;

#[test]
fn short_histories_end_with_equal_files_and_move_what_was_missed() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (first, count) = match number("HISTORY") {
        Some(seed) => (seed, 1),
        None => (0, number("HISTORIES").unwrap_or(HISTORIES)),
    };
    let begun = std::time::Instant::now();
    let names = ["a", "a.tmp", "b", "c", "d", "d/x", "d/y/z"].map(|name| RelPath::new(name).unwrap());
    let mut leader = (Index::new(), 0);
    for seed in first..first + count {
        let history = AssertUnwindSafe(|| History::new(seed, &names, leader).run());
        let Ok(after) = catch_unwind(history) else {
            panic!("once more: HISTORY={seed} cargo test --lib short_histories");
        };
        leader = after;
    }
    println!("{count} histories in {:.1} s", begun.elapsed().as_secs_f64());
}

struct History<'a> {
    random: Rng,
    names: &'a [RelPath],
    // The leader.
    index: Index,
    at: u64,
    files: BTreeMap<RelPath, (Version, Blocks)>,
    next_block: u32,
    // The follower.
    copy: Files,
    // What the leader knows of it, as of a position, and how long each generation was then; `None`: they are not connected.
    told: Option<(View, StreamPosition, HashMap<u64, u64>)>,
    /// Blocks that moved.
    moved: u64,
}

impl<'a> History<'a> {
    /// With an index that has no files, and its position: to make one takes longer than a history.
    fn new(seed: u64, names: &'a [RelPath], (index, at): (Index, u64)) -> Self {
        Self {
            random: Rng::with_seed(seed),
            names,
            index,
            at,
            files: BTreeMap::new(),
            next_block: 0,
            copy: Files::new(),
            told: None,
            moved: 0,
        }
    }

    /// Returns the index without files.
    fn run(mut self) -> (Index, u64) {
        for _ in 0..self.random.u32(2..16) {
            match self.random.u8(..100) {
                0..65 => self.change(),
                // Its process dies, the connection is lost: part of what it was sent may be there or not.
                65..72 => self.told = None,
                // It led meanwhile, or a disk was put back.
                72..82 => self.diverge(),
                82..92 => self.connect(true),
                _ => self.round(true),
            }
        }
        self.connect(false);
        self.round(false);
        for path in self.files.keys() {
            self.at += 1;
            self.index.remove(path.as_str(), self.at);
        }
        (self.index, self.at)
    }

    // ---- the leader ----

    fn blocks(&mut self, most: usize) -> Blocks {
        let count = u32::try_from(self.random.usize(..=most)).unwrap();
        self.next_block += count;
        (self.next_block - count..self.next_block).collect()
    }

    /// A name that a file can come to have beside these.
    fn free<T>(random: &mut Rng, names: &[RelPath], files: &BTreeMap<RelPath, T>) -> RelPath {
        loop {
            let name = &names[random.usize(..names.len())];
            let within = |one: &RelPath, other: &RelPath| one != other && is_at_or_below(one, other.as_str());
            if !files.keys().any(|is| within(is, name) || within(name, is)) {
                return name.clone();
            }
        }
    }

    fn some<T>(random: &mut Rng, files: &BTreeMap<RelPath, T>) -> Option<RelPath> {
        files.keys().nth(random.usize(..files.len().max(1))).cloned()
    }

    fn change(&mut self) {
        let to = Self::free(&mut self.random, self.names, &self.files);
        let of = Self::some(&mut self.random, &self.files);
        // As in the stream, each change is one position at least.
        self.at += 1;
        let change = self.at;
        match (self.random.u8(..10), of) {
            (0..3, Some(path)) => {
                let more = self.blocks(6);
                if more.is_empty() {
                    return;
                }
                let (version, blocks) = self.files.get_mut(&path).unwrap();
                let bytes = more.len() as u64 * BLOCK_BYTES;
                version.len += bytes;
                blocks.extend(more);
                self.index.grow(self.index.slot(path.as_str()).unwrap(), bytes, change);
            }
            (3, Some(path)) => {
                let (version, blocks) = self.files.get_mut(&path).unwrap();
                blocks.truncate(self.random.usize(..=blocks.len()));
                *version = self.index.truncate(&path, blocks.len() as u64 * BLOCK_BYTES, change);
            }
            (4, Some(path)) => {
                self.index.remove(path.as_str(), change);
                self.files.remove(&path);
            }
            (5 | 6, Some(from)) if from != to && !is_at_or_below(&to, from.as_str()) => {
                self.index.rename(&from, &to, change);
                let file = self.files.remove(&from).unwrap();
                self.files.insert(to, file);
            }
            _ => {
                let blocks = self.blocks(9);
                let version = self.index.put(&to, blocks.len() as u64 * BLOCK_BYTES, None, change);
                self.files.insert(to, (version, blocks));
            }
        }
    }

    // ---- the follower ----

    fn diverge(&mut self) {
        self.told = None;
        let to = Self::free(&mut self.random, self.names, &self.copy);
        let Some(path) = Self::some(&mut self.random, &self.copy) else { return };
        match self.random.u8(..5) {
            0 => {
                let more = self.blocks(6);
                self.copy.get_mut(&path).unwrap().extend(more);
            }
            1 => {
                let blocks = self.copy.get_mut(&path).unwrap();
                blocks.truncate(self.random.usize(..=blocks.len()));
            }
            2 => drop(self.copy.remove(&path)),
            3 if !is_at_or_below(&to, path.as_str()) => {
                let blocks = self.copy.remove(&path).unwrap();
                self.copy.insert(to, blocks);
            }
            _ => {
                let other = self.blocks(1);
                let blocks = self.copy.get_mut(&path).unwrap();
                if let (Some(block), false) = (other.first(), blocks.is_empty()) {
                    let at = self.random.usize(..blocks.len());
                    blocks[at] = *block;
                }
            }
        }
    }

    /// Carries out steps, in the midst of which the leader's files may change. What cannot be sent any more is void.
    fn apply(&mut self, steps: &[Step], view: &mut View, changes: bool) {
        let changes_at = self.random.usize(..=2 * steps.len());
        for (number, step) in steps.iter().enumerate() {
            if changes && number == changes_at {
                self.change();
            }
            match step {
                Step::Delete(path) => drop(self.copy.remove(path)),
                Step::Control(Control::Rename { from, to }) => {
                    let blocks = self.copy.remove(from).expect("the renamed file is there");
                    self.copy.insert(to.clone(), blocks);
                }
                Step::Control(Control::Empty(path)) => drop(self.copy.insert(path.clone(), Vec::new())),
                Step::Control(Control::Truncate { path, len }) => {
                    self.copy.get_mut(path).expect("the cut file is there").truncate(blocks_of(*len));
                }
                Step::Send(range) => {
                    if !self.send(range) {
                        view.void(&range.path);
                    }
                }
                step => panic!("{step:?}"),
            }
            let names: Vec<_> = self.copy.keys().collect();
            let is_in_the_way = |pair: &[&RelPath]| is_at_or_below(pair[1], pair[0].as_str());
            assert!(!names.windows(2).any(is_in_the_way), "a file is where a folder has to be: {names:?}");
        }
    }

    fn send(&mut self, range: &FileRange) -> bool {
        // Under whatever name it has now.
        let found = self.files.values().find(|(version, _)| version.generation == range.generation);
        let part = blocks_of(range.offset)..blocks_of(range.offset + range.len);
        let Some(blocks) = found.and_then(|(_, blocks)| blocks.get(part.clone())) else { return false };
        self.moved += blocks.len() as u64;
        let copy = self.copy.entry(range.path.clone()).or_default();
        match range.kind {
            RangeKind::Append => {
                assert_eq!(copy.len(), part.start, "appended where it ends");
                copy.extend(blocks);
            }
            RangeKind::Replace => *copy = blocks.to_vec(),
            RangeKind::Patch => copy[part].copy_from_slice(blocks),
        }
        true
    }

    // ---- the two together ----

    /// Who is not connected joins: what it has is compared.
    fn connect(&mut self, changes: bool) {
        if self.told.is_some() {
            return;
        }
        let all: Vec<_> = self.files.iter().map(|(path, (version, _))| (path.clone(), *version)).collect();
        let (as_of, ours) = (StreamPosition(self.at), self.contents());
        let mut view = View::of(&all);
        let bits = self.random.u8(..4);
        let sums = |files: &Files| {
            let mut sums = Sums::new(bits);
            files.iter().for_each(|(path, blocks)| {
                sums.add(path, blocks.len() as u64 * BLOCK_BYTES, &digests(blocks), Attributes::UNKNOWN)
            });
            sums.finish()
        };
        let buckets = differing(&sums(&ours), &sums(&self.copy));
        let is_asked = |path: &RelPath| buckets.binary_search(&bucket_of(path, bits)).is_ok();
        let in_question: Vec<_> = all.iter().filter(|(path, _)| is_asked(path)).cloned().collect();
        let mut comparison = Comparison::of(&in_question);
        let mut of_ours = |path: &RelPath, _: Version, len: u64| Ok(Some(digests(&ours[path][..blocks_of(len)])));
        for (path, blocks) in self.copy.iter().filter(|(path, _)| is_asked(path)) {
            let (path, len, digests) = (path.clone(), blocks.len() as u64 * BLOCK_BYTES, digests(blocks));
            comparison.told(Held { path, len, digests, attributes: Attributes::UNKNOWN }, &mut of_ours).unwrap();
        }
        let Lacking { gone, steps, unread } = comparison.lacking(&mut of_ours).unwrap();
        assert!(unread.is_empty());
        let steps: Vec<_> = gone.into_iter().map(Step::Delete).chain(steps).collect();
        let (at, missed) = (self.at, missed(&ours, &self.copy));
        self.moved = 0;
        self.apply(&steps, &mut view, changes);
        assert!(self.moved <= missed, "{} blocks moved, {missed} were missed: {steps:?}", self.moved);
        if self.at == at {
            assert_eq!(self.copy, ours);
        }
        let lens = all.iter().map(|(_, version)| (version.generation, version.len)).collect();
        self.told = Some((view, as_of, lens));
    }

    /// Who is connected gets what changed since.
    fn round(&mut self, changes: bool) {
        let Some((mut view, since, lens)) = self.told.take() else { return };
        let (walk, mut found) = (self.index.begin_walk(since.0, None), Vec::new());
        while self.index.walk(&walk, 3, &mut found) {}
        self.index.end_walk(walk);
        let as_of = StreamPosition(self.at);
        let files: Vec<_> = found.into_iter().map(|found| (found.path, found.version)).collect();
        let known = |version: &Version| lens.get(&version.generation).copied().unwrap_or(0);
        let announced: u64 = files.iter().map(|(_, version)| version.len - known(version)).sum();
        let steps = view.plan(Changes { files, attributes: Vec::new(), as_of, whole: false }, &Rewritten::default());
        let (at, ours) = (self.at, self.contents());
        self.moved = 0;
        self.apply(&steps, &mut view, changes);
        let most = announced / BLOCK_BYTES;
        assert!(self.moved <= most, "{} blocks moved, {most} were announced: {steps:?}", self.moved);
        if self.at == at {
            assert_eq!(self.copy, ours);
        }
        let lens = self.files.values().map(|(version, _)| (version.generation, version.len)).collect();
        self.told = Some((view, as_of, if self.at == at { lens } else { HashMap::default() }));
    }

    fn contents(&self) -> Files {
        self.files.iter().map(|(path, (_, blocks))| (path.clone(), blocks.clone())).collect()
    }
}

fn blocks_of(bytes: u64) -> usize {
    usize::try_from(bytes / BLOCK_BYTES).unwrap()
}

fn digests(blocks: &[u32]) -> Vec<ChunkDigest> {
    let digest = |chunk: &[u32]| {
        let mut digest = ChunkDigest::default();
        for (number, block) in chunk.iter().enumerate() {
            digest[4 * number..][..4].copy_from_slice(&(block + 1).to_le_bytes());
        }
        digest
    };
    blocks.chunks(BLOCKS_A_CHUNK).map(digest).collect()
}

/// What a copy lacks of a file: from the chunk on in which it begins to differ, unless it is a prefix.
fn lacking(ours: &[u32], copy: &[u32]) -> usize {
    let same = ours.iter().zip(copy).take_while(|(ours, copy)| ours == copy).count();
    ours.len() - if same == copy.len() { same } else { same - same % BLOCKS_A_CHUNK }
}

/// Blocks that a copy lacks. A file of a chunk at least may be there under another name, if that is not the place of one of which it has something.
fn missed(ours: &Files, copy: &Files) -> u64 {
    let begins_alike = |a: &Blocks, b: &Blocks| {
        let first = |blocks: &Blocks| blocks.get(..BLOCKS_A_CHUNK).map(<[u32]>::to_vec);
        first(a).is_some() && first(a) == first(b)
    };
    let is_at_home = |path: &RelPath| {
        let (Some(ours), Some(copy)) = (ours.get(path), copy.get(path)) else { return false };
        digests(copy).iter().zip(&digests(&ours[..ours.len().min(copy.len())])).any(|(a, b)| a == b)
    };
    let lacks = |(path, blocks): (&RelPath, &Blocks)| {
        let own = copy.get(path).map_or(blocks.len(), |copy| lacking(blocks, copy));
        if is_at_home(path) {
            return own as u64;
        }
        let homeless = copy.iter().filter(|(path, copy)| !is_at_home(path) && begins_alike(blocks, copy));
        homeless.map(|(_, copy)| lacking(blocks, copy)).min().unwrap_or(own) as u64
    };
    ours.iter().map(lacks).sum()
}
