//! How much may move, from what a byte for byte comparison of two directories says, and what may be lost.
//!
//! What moves to a follower that comes back is at most
//!
//! - what its copy *lacks*, file by file: of one that is a prefix of the leader's the rest; of one that is not (cut, replaced, diverged) all
//!   from the chunk on in which it begins to differ, because digests are of chunks: that is less than [`CHUNK_BYTES`] a file more than what differs;
//!   of one that is not there the whole, unless it is at least a chunk and another file, whose place it is not, begins with the same chunk: it is renamed, and lacks what that one lacks;
//! - and what is announced from then on: each byte once. Until it is in the stream again a follower is not told of changes, but they are found, when files are
//!   compared and in rounds of catching up: a file that was cut meanwhile moves whole, and one that got another name, too, if
//!   the copy is less than a chunk.
//!
//! Beside that content goes what says where it belongs ([`Allowance`]).

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use paceline::protocol::extension::CHUNK_BYTES;

use crate::model::{Bytes, Tree};
use crate::support;

/// All replicated files.
pub fn tree(dir: &Path) -> Tree {
    support::all_contents(dir).into_iter().map(|(name, bytes)| (name, Rc::new(bytes))).collect()
}

fn chunk() -> usize {
    usize::try_from(CHUNK_BYTES).unwrap()
}

fn common(a: &[u8], b: &[u8]) -> usize {
    // By blocks first: what differs does so at once, and what does not is compared fast.
    let blocks = a.chunks(4096).zip(b.chunks(4096)).take_while(|(a, b)| a == b).count() * 4096;
    let from = blocks.min(a.len()).min(b.len());
    from + a[from..].iter().zip(&b[from..]).take_while(|(a, b)| a == b).count()
}

/// What a copy of a file lacks of it.
fn lacking(ours: &[u8], copy: &[u8]) -> usize {
    let same = common(ours, copy);
    if same == copy.len() { ours.len() - same } else { ours.len() - same / chunk() * chunk() }
}

/// Bytes that a copy lacks, and the number of files that are not the same.
pub fn missed(ours: &Tree, copy: &Tree) -> (u64, u64) {
    let is_at_home = |name: &str, bytes: &Bytes| {
        ours.get(name).is_some_and(|ours| {
            let same = common(ours, bytes);
            same >= chunk() || (same > 0 && same == bytes.len())
        })
    };
    let homeless: Vec<_> = copy.iter().filter(|(name, bytes)| !is_at_home(name, bytes)).collect();
    let mut bytes = 0;
    for (name, ours) in ours {
        let own = copy.get(name);
        let mut lacks = own.map_or(ours.len(), |copy| lacking(ours, copy));
        if ours.len() >= chunk() && !own.is_some_and(|copy| is_at_home(name, copy)) {
            let begin_alike = homeless.iter().filter(|(_, copy)| common(ours, copy) >= chunk());
            lacks = begin_alike.map(|(_, copy)| lacking(ours, copy)).min().unwrap_or(lacks);
        }
        bytes += lacks as u64;
    }
    let changed = ours.iter().filter(|(name, bytes)| copy.get(*name) != Some(bytes)).count();
    let gone = copy.keys().filter(|name| !ours.contains_key(*name)).count();
    (bytes, (changed + gone) as u64)
}

/// What moves of a file that gets another name while nobody tells the follower: it is found to be the same by its first chunk.
pub fn whole_if_renamed(bytes: &[u8]) -> u64 {
    bytes.len().min(chunk()) as u64
}

/// What of a file was destroyed: nowhere in the directory, nor in what was kept.
pub fn lost<'a>(before: &'a Tree, dir: &Path) -> Option<&'a str> {
    // Parts of files by the offset they are from.
    let mut there: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
    there.entry(0).or_default().extend(support::all_contents(dir).into_values());
    for time in std::fs::read_dir(dir.join(".paceline/kept")).into_iter().flatten() {
        let time = time.unwrap().path();
        if time.is_dir() {
            for (name, bytes) in support::all_contents(&time) {
                let from = name.split_once(".from-").map_or("0", |(_, from)| from.split('-').next().unwrap());
                there.entry(from.parse().unwrap()).or_default().push(bytes);
            }
        }
    }
    let is_there = |bytes: &[u8]| {
        // As far as some part of the right place goes, and then from there on.
        let mut at = 0;
        while at < bytes.len() {
            let reach = |(from, parts): (&usize, &Vec<Vec<u8>>)| {
                let begins = at.checked_sub(*from)?;
                parts.iter().filter_map(|part| Some(common(&bytes[at..], part.get(begins..)?))).max()
            };
            match there.iter().filter_map(reach).max() {
                None | Some(0) => return false,
                Some(more) => at += more,
            }
        }
        true
    };
    before.iter().find(|(_, bytes)| !is_there(bytes)).map(|(name, _)| name.as_str())
}

/// What may move from one moment of a connection, or from before it, on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowance {
    /// Content: missed, and announced since.
    pub content: u64,
    /// Files that were not the same, and changes announced since.
    pub changes: u64,
    /// Files there are, and their bytes.
    pub files: u64,
    pub there: u64,
    pub connections: u64,
    pub seconds: u64,
}

impl Allowance {
    /// To the follower. A connection begins with a handshake, what is asked and where the stream is: under 200 bytes. A change has a header, a name (under 32
    /// bytes here) and a frame of its own, should it be sent alone, and a heartbeat goes once a second. What does not compress grows by a 16-byte frame and header for each
    /// 64 KiB, at least 4 KiB of content.
    pub fn to_follower(self) -> u64 {
        self.content + self.content / 256 + 256 * self.changes + 1024 * self.connections + 128 * self.seconds
    }

    /// To the leader: a handshake, the sums of all files, and of each its name and the digests of its chunks, 20 bytes each; what came, for
    /// each change and each 16 KiB at most; and heartbeats.
    pub fn to_leader(self) -> u64 {
        let inventory = 64 * (self.files + self.changes) + (self.there + self.content) * 20 / CHUNK_BYTES;
        (512 + inventory) * self.connections + 64 * self.changes + self.content / 256 + 128 * self.seconds
    }
}
