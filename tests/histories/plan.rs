//! What is done next, by seed.

use std::time::Duration;

use fastrand::Rng;
use paceline::protocol::extension::CHUNK_BYTES;

use crate::host::{Content, Op};
use crate::machine::LANES;
use crate::model::Tree;

/// In each lane. `d` is a file or a folder, whichever comes first.
const NAMES: [&str; 8] = ["log", "log.1", "log.2", "a", "a.tmp", "d", "d/b", "d/e/c"];
/// Before each lane's.
const FOLDERS: [&str; LANES] = ["", "in/"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection.
    Cut,
    KillFollower,
    StopFollower,
    KillLeader,
    StopLeader,
    KillBoth,
    /// Cut off, the leader goes on alone, and is killed; who followed leads, and it follows.
    Change,
    /// Both end by themselves, and swap their parts.
    Swap,
}

const FAULTS: [Fault; 8] = [
    Fault::Cut,
    Fault::KillFollower,
    Fault::StopFollower,
    Fault::KillLeader,
    Fault::StopLeader,
    Fault::KillBoth,
    Fault::Change,
    Fault::Swap,
];

pub struct Plan {
    pub random: Rng,
}

impl Plan {
    pub fn fault(&mut self) -> Fault {
        FAULTS[self.random.usize(..FAULTS.len())]
    }

    pub fn chance(&mut self, percent: u8) -> bool {
        self.random.u8(..100) < percent
    }

    /// A moment within what is going on: mostly a short one.
    pub fn moment(&mut self) -> Duration {
        let most = 1 << self.random.u32(6..16);
        Duration::from_micros(self.random.u64(..most))
    }

    /// What is done to files that hold this, by lane, and what they hold after it is not told.
    pub fn ops(&mut self, files: &Tree, most: usize, large: bool) -> Vec<(usize, Op)> {
        let mut lens: Vec<(String, usize)> = files.iter().map(|(name, bytes)| (name.clone(), bytes.len())).collect();
        let count = self.random.usize(..=most);
        (0..count).map(|_| self.op(&mut lens, large)).collect()
    }

    fn op(&mut self, lens: &mut Vec<(String, usize)>, large: bool) -> (usize, Op) {
        let lane = self.random.usize(..LANES);
        let late = if self.random.bool() { Duration::ZERO } else { self.late() };
        let there: Vec<_> = (0..lens.len()).filter(|at| lane_of(&lens[*at].0) == lane).collect();
        let some = (!there.is_empty()).then(|| there[self.random.usize(..there.len())]);
        let free = self.name(lane, lens);
        let len_of = |lens: &[(String, usize)], name: &str| lens.iter().find(|(known, _)| known == name).map(|at| at.1);
        let set = |lens: &mut Vec<(String, usize)>, name: &str, len: usize| {
            lens.retain(|(known, _)| known != name);
            lens.push((name.to_owned(), len));
        };
        let op = match (self.random.u8(..100), some) {
            (0..40, _) => {
                let content = self.content(large);
                let was = len_of(lens, &free).unwrap_or(0);
                set(lens, &free, was + content.len);
                Op::Append { name: free, content, late }
            }
            (40..55, _) => {
                let content = self.content(large);
                set(lens, &free, content.len);
                let in_place = self.chance(30);
                Op::Replace { name: free, content, in_place, late }
            }
            (55..70, Some(at)) if lens[at].0 != free && !is_within(&free, &lens[at].0) => {
                let (from, len) = lens.swap_remove(at);
                set(lens, &free, len);
                Op::Rename { from, to: free, late }
            }
            (70..80, Some(at)) => {
                let (name, len) = lens[at].clone();
                let len = if self.chance(20) { 0 } else { self.random.usize(..=len) };
                lens[at].1 = len;
                Op::Truncate { name, len, late }
            }
            (80..90, Some(at)) => Op::Delete { name: lens.swap_remove(at).0, late },
            (90..94, _) => Op::Commit,
            _ => Op::Pause(self.moment()),
        };
        (lane, op)
    }

    /// A name that a file may come to have, or has.
    fn name(&mut self, lane: usize, lens: &[(String, usize)]) -> String {
        let is_free = |name: &String| !lens.iter().any(|(is, _)| is_within(is, name) || is_within(name, is));
        let mut names: Vec<_> = NAMES.iter().map(|name| format!("{}{name}", FOLDERS[lane])).filter(is_free).collect();
        names.swap_remove(self.random.usize(..names.len()))
    }

    fn late(&mut self) -> Duration {
        Duration::from_micros(self.random.u64(1..2000))
    }

    pub fn content(&mut self, large: bool) -> Content {
        let chunk = usize::try_from(CHUNK_BYTES).unwrap();
        let len = match self.random.u8(..if large { 200 } else { 100 }) {
            0..8 => 0,
            8..60 => self.random.usize(1..4000),
            60..88 => self.random.usize(1..60_000),
            88..92 => chunk,
            92..98 => self.random.usize(1..chunk + 60_000),
            98..100 => self.random.usize(1..3 * chunk),
            _ => self.random.usize(40_000..250_000),
        };
        Content { seed: self.random.u64(..), len }
    }
}

pub fn lane_of(name: &str) -> usize {
    usize::from(name.starts_with(FOLDERS[1]))
}

fn is_within(name: &str, folder: &str) -> bool {
    name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}
