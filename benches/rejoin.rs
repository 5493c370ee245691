//! What it costs a follower to come back: it should be what it missed, not what exists.
//!
//! # What is measured
//!
//! A leader has a directory of 4 GiB (`--mib`) in 16 files of random bytes, and a follower a copy of it. The follower is
//! disconnected, misses 1 MiB or 100 MiB that are appended, to the last file or to all 16, and comes back:
//!
//! - *same process*: its connection was cut. It knows what it has written itself, and reads nothing again but the last
//!   chunk of each file.
//! - *restarted*: its process was killed, and a new one is started. It believes nothing, reads all it has, and tells its digests.
//!   The leader is the same, and remembers its own.
//! - *both restarted*: once a round, with nothing missed. Both read all they have.
//!
//! Bytes are counted by a relay between the two, as they go over the wire, in both directions and from the first byte of the
//! handshake on: inventory, content, acknowledgements. The time runs from when the follower connects (for a restarted one from
//! when its process is started) until the leader has it in sync with everything acknowledged; the relay's work is in it.
//!
//! # Beside it
//!
//! `rsync -a --append-verify` and `rsync -a`, of the same pair of directories, from a daemon on loopback: so rsync compares as
//! it does between two machines, while between two local directories it would copy changed files whole. The copy's times of
//! modification were set to the originals' before: so rsync passes over what did not change without reading it. A restarted
//! follower has no such rule, for equal lengths and times prove nothing after a crash: where one file of
//! many has changed, that is what it pays for verifying. Bytes are those that rsync tells. Nobody waits for the disk.
//!
//! # How to read it
//!
//! Ways take turns; bytes and times are medians over the rounds. Moved over missed is aimed to be under 1.1, plus 1 MiB. After
//! every round the directories are compared byte for byte. A round that ends with a difference makes the run
//! invalid, and so does a follower that was evicted; it says so, and exits with 1. Where rsync is missing its rows are left out.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people to read"
)]

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::children::{ChildProcess, id, run_if_child};
use common::files::{first_difference, flush, random_file, require_space};
use common::relay::Relay;
use common::rsync::{Daemon, version};
use common::table::{Table, ratio};
use common::{Options, finish, machine, median, secret};
use paceline::leader::FollowerState;
use paceline::{Leader, LeaderConfig, NodeId, RelPath};
use tempfile::TempDir;

const FILES: u64 = 16;
/// How long a return may take before the bench gives up: a restarted follower reads all it has.
const RETURN_MAX: Duration = Duration::from_secs(600);
const MISSED_MIB: [u64; 2] = [1, 100];

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    SameProcess,
    Restarted,
    AppendVerify,
    Rsync,
}

impl Way {
    const ALL: [Self; 4] = [Self::SameProcess, Self::Restarted, Self::AppendVerify, Self::Rsync];

    fn name(self) -> &'static str {
        match self {
            Self::SameProcess => "Paceline, same process",
            Self::Restarted => "Paceline, restarted",
            Self::AppendVerify => "rsync -a --append-verify",
            Self::Rsync => "rsync -a",
        }
    }

    fn is_rsync(self) -> bool {
        matches!(self, Self::AppendVerify | Self::Rsync)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Cell {
    missed: u64,
    /// Files that it was appended to.
    files: u64,
    way: Way,
}

#[derive(Clone, Copy)]
struct Cost {
    moved: u64,
    time: Duration,
}

fn main() {
    run_if_child();
    let options = Options::parse(5, 0);
    let total = options.mib.map_or(if options.quick { 128 << 20 } else { 4 << 30 }, |mib| (mib as u64) << 20);
    println!("rejoin: what it costs to come back, {} MiB in {FILES} files of random bytes", total >> 20);
    println!("{}", machine());
    let with_rsync = match version() {
        Ok(version) => {
            println!("beside: {version}");
            true
        }
        Err(remedy) => {
            println!("{remedy}");
            false
        }
    };
    println!("{} rounds\n", options.rounds);

    // The copy, and what is appended.
    require_space(2 * total + (2 << 30));
    let pair = Pair::new(total);
    let mut results: HashMap<Cell, Vec<Cost>> = HashMap::new();
    let (mut first, mut restarts, mut invalid) = (None, Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let measured = pair.round(round, with_rsync, &mut results);
        match measured.and_then(|cost| pair.compare().map(|()| cost)) {
            Ok(cost) if first.is_none() => {
                // The very first time it had nothing.
                first = Some(cost);
            }
            Ok(cost) => restarts.push(cost),
            Err(why) => {
                invalid.push(why);
                break;
            }
        }
    }
    print(&results, first, &restarts);
    summary(&results);
    // It would outlive the process.
    drop(pair);
    finish(&invalid);
}

/// The directories.
struct Pair {
    origin: TempDir,
    copy: TempDir,
    files: Vec<PathBuf>,
    /// What each file has when a round begins.
    file_bytes: u64,
}

impl Pair {
    fn new(total: u64) -> Self {
        let (origin, copy) =
            (tempfile::tempdir().expect("a temporary directory"), tempfile::tempdir().expect("a temporary directory"));
        let files: Vec<_> = (0..FILES).map(|number| PathBuf::from(format!("segment-{number:04}"))).collect();
        let file_bytes = total / FILES;
        for (seed, file) in files.iter().enumerate() {
            random_file(&origin.path().join(file), file_bytes, seed as u64);
        }
        flush(origin.path());
        Self { origin, copy, files, file_bytes }
    }

    /// All cells, with a leader of their own; returns what the first join cost, when neither side remembered anything.
    fn round(&self, round: usize, with_rsync: bool, results: &mut HashMap<Cell, Vec<Cost>>) -> Result<Cost, String> {
        self.cut(self.file_bytes);
        let mut running = Running::start(self);
        let first = running.returns(Way::Restarted, || Ok(()))?;
        let ways: Vec<_> = Way::ALL.into_iter().filter(|way| with_rsync || !way.is_rsync()).collect();
        for mib in MISSED_MIB {
            for files in [1, FILES] {
                for turn in 0..ways.len() {
                    let way = ways[(turn + round) % ways.len()];
                    let cell = Cell { missed: mib << 20, files, way };
                    let cost = running.measure(cell)?;
                    results.entry(cell).or_default().push(cost);
                }
            }
        }
        Ok(first)
    }

    /// Makes all files as long as they were.
    fn cut(&self, len: u64) {
        for file in self.files.iter().flat_map(|file| [self.origin.path().join(file), self.copy.path().join(file)]) {
            // The copy has nothing at first.
            if let Ok(file) = File::options().write(true).open(file) {
                file.set_len(len).expect("ours");
            }
        }
    }

    fn compare(&self) -> Result<(), String> {
        match first_difference(self.origin.path(), self.copy.path(), &self.files) {
            Some(file) => Err(format!("{} is not the same on both sides", file.display())),
            None => Ok(()),
        }
    }

    /// Gives the copies the originals' times of modification, as rsync would have.
    fn same_times(&self) {
        for file in &self.files {
            let time = self.origin.path().join(file).metadata().and_then(|meta| meta.modified()).expect("a file");
            let copy = File::options().write(true).open(self.copy.path().join(file)).expect("a file");
            copy.set_modified(time).expect("ours");
        }
    }
}

/// A leader, and perhaps a follower behind a relay.
struct Running<'a> {
    pair: &'a Pair,
    leader: Leader,
    relay: Relay,
    follower: Option<ChildProcess>,
    appended: Vec<u8>,
}

impl<'a> Running<'a> {
    fn start(pair: &'a Pair) -> Self {
        let mut config = LeaderConfig::new(pair.origin.path(), secret());
        config.id = Some(NodeId::new(1).expect("positive"));
        let leader = Leader::open(config).expect("a leader");
        let relay = Relay::start(leader.listen("127.0.0.1:0").expect("a port"));
        relay.close();
        Self { pair, leader, relay, follower: None, appended: Vec::new() }
    }

    fn measure(&mut self, cell: Cell) -> Result<Cost, String> {
        let Cell { missed, files, way } = cell;
        if way.is_rsync() {
            return self.rsync(cell);
        }
        if self.follower.is_none() {
            // After rsync; it misses nothing.
            self.returns(Way::Restarted, || Ok(()))?;
        }
        if way == Way::SameProcess {
            // What it wrote as a sync began it may not know yet.
            self.returns(way, || Ok(()))?;
        }
        let mut append = std::mem::take(&mut self.appended);
        random(&mut append, missed);
        let (leader, pair) = (&self.leader, self.pair);
        let content = &append;
        let cost = Self::returns_to(&mut self.follower, &self.relay, leader, pair, way, || {
            append_to(leader, pair, files, content)
        });
        self.appended = append;
        cost
    }

    fn returns(&mut self, way: Way, meanwhile: impl FnOnce() -> Result<(), String>) -> Result<Cost, String> {
        Self::returns_to(&mut self.follower, &self.relay, &self.leader, self.pair, way, meanwhile)
    }

    /// The follower goes, and comes back.
    fn returns_to(
        follower: &mut Option<ChildProcess>,
        relay: &Relay,
        leader: &Leader,
        pair: &Pair,
        way: Way,
        meanwhile: impl FnOnce() -> Result<(), String>,
    ) -> Result<Cost, String> {
        relay.close();
        if way == Way::Restarted {
            *follower = None;
        }
        wait(leader, "the follower did not go", || leader.followers().is_empty())?;
        meanwhile()?;
        relay.open();
        let started = Instant::now();
        if way == Way::Restarted {
            *follower = Some(ChildProcess::returning(relay.address, 0, pair.copy.path()));
        }
        wait(leader, "the follower did not come back", || {
            let end = leader.position();
            let here = |it: &paceline::leader::FollowerStatus| {
                it.id == id(0) && it.state == FollowerState::InSync && it.acknowledged == Some(end)
            };
            leader.followers().iter().any(here)
        })?;
        let now = Instant::now();
        let from = if way == Way::Restarted { started } else { relay.accepted().unwrap_or(started) };
        Ok(Cost { moved: relay.moved(), time: now - from })
    }

    fn rsync(&mut self, cell: Cell) -> Result<Cost, String> {
        self.relay.close();
        self.follower = None;
        let pair = self.pair;
        pair.same_times();
        random(&mut self.appended, cell.missed);
        append_to(&self.leader, pair, cell.files, &self.appended)?;
        let daemon = Daemon::start(pair.origin.path());
        // What is not replicated is not rsync's either.
        let mut options = vec!["--exclude=/.*", "--exclude=/checksums.*"];
        if cell.way == Way::AppendVerify {
            options.push("--append-verify");
        }
        let began = Instant::now();
        let moved = daemon.copy_to(pair.copy.path(), &options)?;
        Ok(Cost { moved, time: began.elapsed() })
    }
}

fn random(buffer: &mut Vec<u8>, bytes: u64) {
    buffer.resize(bytes as usize, 0);
    fastrand::fill(buffer);
}

/// Appends to the last files, in equal parts, and announces it.
fn append_to(leader: &Leader, pair: &Pair, files: u64, content: &[u8]) -> Result<(), String> {
    let part = content.len().div_ceil(files as usize);
    for (file, bytes) in pair.files.iter().rev().zip(content.chunks(part)) {
        let path = RelPath::new(file.to_str().expect("a good name")).expect("a good name");
        let local =
            File::options().write(true).open(pair.origin.path().join(file)).map_err(|error| error.to_string())?;
        let mut at = leader.file_len(&path).ok_or("a file has gone")?;
        for piece in bytes.chunks(64 << 10) {
            local.write_all_at(piece, at).map_err(|error| error.to_string())?;
            leader.append(&path, at, piece).map_err(|error| error.to_string())?;
            at += piece.len() as u64;
        }
    }
    Ok(())
}

fn wait(leader: &Leader, otherwise: &str, done: impl Fn() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + RETURN_MAX;
    while !done() {
        if let Some(eviction) = leader.evictions().first() {
            return Err(eviction.to_string());
        }
        if Instant::now() > deadline {
            return Err(format!("{otherwise} within {RETURN_MAX:?}"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

// ---- what came of it ----

fn mib(bytes: f64) -> String {
    format!("{:.2} MiB", bytes / f64::from(1 << 20))
}

fn seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}

fn moved(costs: &[Cost]) -> f64 {
    median(costs.iter().map(|cost| cost.moved as f64))
}

fn time(costs: &[Cost]) -> f64 {
    median(costs.iter().map(|cost| cost.time.as_secs_f64()))
}

fn print(results: &HashMap<Cell, Vec<Cost>>, first: Option<Cost>, restarts: &[Cost]) {
    let mut table = Table::new(&[
        "missed",
        "in files",
        "who comes back",
        "moved",
        "over missed",
        "time",
        "min-max",
        "over append-verify",
        "over rsync -a",
    ]);
    for missed in MISSED_MIB {
        for files in [1, FILES] {
            table.gap();
            let of = |way| results.get(&Cell { missed: missed << 20, files, way }).map(|costs| &costs[..]);
            for way in Way::ALL {
                let Some(costs) = of(way) else { continue };
                let over = |other| of(other).map_or(f64::NAN, |other| time(costs) / time(other));
                let seen = costs.iter().map(|cost| cost.time.as_secs_f64());
                let (min, max) = seen.fold((f64::MAX, 0.0), |(min, max): (f64, f64), it| (min.min(it), max.max(it)));
                table.row(vec![
                    format!("{missed} MiB"),
                    files.to_string(),
                    way.name().into(),
                    mib(moved(costs)),
                    ratio(moved(costs) / (missed << 20) as f64),
                    seconds(time(costs)),
                    format!("{}-{}", seconds(min), seconds(max)),
                    ratio(over(Way::AppendVerify)),
                    ratio(over(Way::Rsync)),
                ]);
            }
        }
    }
    table.print();
    println!();
    if let Some(first) = first {
        println!(
            "the first join, of an empty directory: {}, {}",
            mib(first.moved as f64),
            seconds(first.time.as_secs_f64())
        );
    }
    if !restarts.is_empty() {
        println!("both restarted, nothing missed: {}, {}", mib(moved(restarts)), seconds(time(restarts)));
    }
}

/// The aim, and what came of it.
fn summary(results: &HashMap<Cell, Vec<Cost>>) {
    let ours = results.iter().filter(|(cell, _)| !cell.way.is_rsync());
    let over = |(cell, costs): (&Cell, &Vec<Cost>)| {
        (costs.iter().map(|cost| cost.moved).max().unwrap_or(0) as f64 - f64::from(1 << 20)) / cell.missed as f64
    };
    let worst = ours.map(over).fold(f64::NAN, f64::max);
    println!("highest of all returns, moved less 1 MiB, over missed: {} (aim: under 1.1)", ratio(worst));
}
