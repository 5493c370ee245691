//! How fast a follower is filled that has nothing.
//!
//! # What is measured
//!
//! A directory is copied into an empty one on the same file system: 4 files of 1 GiB, and 100,000 of 4 KiB in 100 folders,
//! of random bytes, which no compression shrinks.
//!
//! - *Paceline*: `paceline leader` has the directory; the time is that of `paceline follow --once`, from when the process is
//!   started until it has ended.
//! - *rsync*: the time of `rsync -a --whole-file` from a daemon on loopback.
//! - *cp*: the time of `cp -a`, from directory to directory.
//!
//! # What is durable when
//!
//! `paceline follow --once` ends when all it received is on disk. rsync and cp end when it is in the page cache, which the
//! system then writes for them. So each has two times: until it *ended*, and until it ended and a `sync -f` of the directory's file system
//! returned, which makes it *durable*; with Paceline they are almost the same. The second time is what compares like with like; the
//! first flatters rsync and cp by as much as fits the page cache. `rsync --fsync` is shown too: it makes each file durable on
//! its own, before it goes on.
//!
//! # How to read it
//!
//! Ways take turns; before each, what others left to write is flushed. Copies of small files are not deleted before the end,
//! because some file systems are slow to make files where many were just deleted. MB/s are 10^6 bytes of content a second, medians over the
//! rounds, with the lowest and highest. The originals are in the page cache, as far as it holds them. Copies are compared byte for
//! byte in the first round; a difference makes the run invalid, which it says, and it exits with 1. Where rsync is missing its
//! rows are left out. `--mib N` is the size of the four files together; of the small ones there are then fewer in proportion.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people to read"
)]

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::files::{first_difference, flush, random_file, require_space};
use common::rsync::{Daemon, version};
use common::table::{Table, ratio};
use common::{Options, finish, machine, median};
use tempfile::TempDir;

const SECRET: &str = "the benches' secret";
const PACELINE: &str = env!("CARGO_BIN_EXE_paceline");
const SMALL_BYTES: u64 = 4 << 10;
const FOLDER_FILES: u64 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Way {
    Paceline,
    Rsync,
    RsyncFsync,
    Cp,
}

impl Way {
    const ALL: [Self; 4] = [Self::Paceline, Self::Rsync, Self::RsyncFsync, Self::Cp];

    fn name(self) -> &'static str {
        match self {
            Self::Paceline => "paceline follow --once",
            Self::Rsync => "rsync -a --whole-file",
            Self::RsyncFsync => "rsync -a --whole-file --fsync",
            Self::Cp => "cp -a",
        }
    }

    fn is_rsync(self) -> bool {
        matches!(self, Self::Rsync | Self::RsyncFsync)
    }
}

/// How long one copy took.
#[derive(Clone, Copy)]
struct Took {
    ended: Duration,
    durable: Duration,
}

/// A directory to copy.
struct Origin {
    name: String,
    dir: TempDir,
    files: Vec<PathBuf>,
    bytes: u64,
}

impl Origin {
    fn large(total: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let files: Vec<_> = (0..4).map(|number| PathBuf::from(format!("large-{number}"))).collect();
        let bytes = total / 4;
        for (seed, file) in files.iter().enumerate() {
            random_file(&dir.path().join(file), bytes, seed as u64);
        }
        Self { name: format!("4 x {} MiB", bytes >> 20), dir, files, bytes: bytes * 4 }
    }

    fn small(count: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let name = |number| PathBuf::from(format!("folder-{:03}/small-{number:06}", number / FOLDER_FILES));
        let files: Vec<_> = (0..count).map(name).collect();
        for folder in 0..count.div_ceil(FOLDER_FILES) {
            fs::create_dir(dir.path().join(format!("folder-{folder:03}"))).expect("a new folder");
        }
        for (seed, file) in files.iter().enumerate() {
            random_file(&dir.path().join(file), SMALL_BYTES, seed as u64);
        }
        Self { name: format!("{count} x 4 KiB"), dir, files, bytes: count * SMALL_BYTES }
    }
}

fn main() {
    let options = Options::parse(3, 0);
    let total = options.mib.map_or(if options.quick { 128 << 20 } else { 4 << 30 }, |mib| (mib as u64) << 20);
    let count = match (options.quick, options.mib) {
        (true, None) => 2000,
        _ => (total * 100_000 / (4 << 30)).max(FOLDER_FILES),
    };
    println!("full_sync: into an empty directory");
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
    let ways: Vec<_> = Way::ALL.into_iter().filter(|way| with_rsync || !way.is_rsync()).collect();

    // A small file takes a block, and its share of a folder and of the inodes.
    let small = (1 + options.rounds as u64 * ways.len() as u64) * count * 2 * SMALL_BYTES;
    require_space(small.max(2 * total));
    let mut invalid = Vec::new();
    for make in [&(|| Origin::large(total)) as &dyn Fn() -> Origin, &|| Origin::small(count)] {
        let origin = make();
        let results = measure(&origin, &ways, options.rounds, &mut invalid);
        let mut table = table();
        rows(&mut table, &origin, &results);
        table.print();
        outcome(&origin, &results).iter().for_each(|aim| println!("{aim}"));
        println!();
    }
    finish(&invalid);
}

fn measure(origin: &Origin, ways: &[Way], rounds: usize, invalid: &mut Vec<String>) -> HashMap<Way, Vec<Took>> {
    let mut results: HashMap<Way, Vec<Took>> = HashMap::new();
    let leader = LeaderProcess::start(origin.dir.path());
    let daemon = ways.contains(&Way::Rsync).then(|| Daemon::start(origin.dir.path()));
    // File systems are slow to make files where many were just deleted: copies of many files stay to the end.
    let mut kept = Vec::new();
    for round in 0..rounds {
        for turn in 0..ways.len() {
            let way = ways[(turn + round) % ways.len()];
            let copy = tempfile::tempdir().expect("a temporary directory");
            flush(copy.path());
            let began = Instant::now();
            let done = match (way, &daemon) {
                (Way::Rsync, Some(daemon)) => daemon.copy_to(copy.path(), &["--whole-file", "--exclude=/.*"]).map(drop),
                (Way::RsyncFsync, Some(daemon)) => {
                    daemon.copy_to(copy.path(), &["--whole-file", "--fsync", "--exclude=/.*"]).map(drop)
                }
                (Way::Cp, _) => cp(origin.dir.path(), copy.path()),
                _ => leader.followed_by(copy.path()),
            };
            let ended = began.elapsed();
            flush(copy.path());
            let durable = began.elapsed();
            let same = |()| match first_difference(origin.dir.path(), copy.path(), &origin.files) {
                Some(file) if round == 0 => Err(format!("{} is not the same after {}", file.display(), way.name())),
                _ => Ok(()),
            };
            match if round == 0 { done.and_then(same) } else { done } {
                Ok(()) => results.entry(way).or_default().push(Took { ended, durable }),
                Err(why) => invalid.push(why),
            }
            if origin.files.len() > 4 {
                kept.push(copy);
            }
        }
    }
    results
}

/// As `cp -a` of all that is in a directory.
fn cp(from: &Path, to: &Path) -> Result<(), String> {
    run(Command::new("cp").arg("-a").arg(from.join(".")).arg(to))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// `paceline leader`, until this is dropped.
struct LeaderProcess {
    child: Child,
    address: String,
}

impl LeaderProcess {
    fn start(dir: &Path) -> Self {
        let mut child = Command::new(PACELINE)
            .args(["leader", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir)
            .env("PACELINE_SECRET", SECRET)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the leader's process");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("what the leader says");
        let address = line.trim().strip_prefix("listening on ").expect("an address").to_owned();
        Self { child, address }
    }

    fn followed_by(&self, copy: &Path) -> Result<(), String> {
        run(Command::new(PACELINE)
            .args(["follow", &self.address, "--once", "--data-dir"])
            .arg(copy)
            .env("PACELINE_SECRET", SECRET)
            .env("RUST_LOG", "warn"))
    }
}

impl Drop for LeaderProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- what came of it ----

fn table() -> Table {
    Table::new(&["files", "way", "ended MB/s", "min-max", "durable MB/s", "min-max", "files/s"])
}

fn rates(took: &[Took], bytes: u64, pick: fn(&Took) -> Duration) -> impl Iterator<Item = f64> {
    took.iter().map(move |took| bytes as f64 / 1e6 / pick(took).as_secs_f64())
}

fn rows(table: &mut Table, origin: &Origin, results: &HashMap<Way, Vec<Took>>) {
    for way in Way::ALL {
        let Some(took) = results.get(&way) else { continue };
        let mut row = vec![origin.name.clone(), way.name().into()];
        for pick in [(|took| took.ended) as fn(&Took) -> Duration, |took| took.durable] {
            let (min, max) = rates(took, origin.bytes, pick)
                .fold((f64::MAX, 0.0), |(min, max): (f64, f64), rate| (min.min(rate), max.max(rate)));
            row.push(format!("{:.0}", median(rates(took, origin.bytes, pick))));
            row.push(format!("{min:.0}-{max:.0}"));
        }
        let seconds = median(took.iter().map(|took| took.durable.as_secs_f64()));
        row.push(format!("{:.0}", origin.files.len() as f64 / seconds));
        table.row(row);
    }
}

/// The aims, and what came of them.
fn outcome(origin: &Origin, results: &HashMap<Way, Vec<Took>>) -> Vec<String> {
    let rate = |way, pick| results.get(&way).map(|took| median(rates(took, origin.bytes, pick)));
    let against = |other: Way, aim: &str| {
        let over = |pick| rate(Way::Paceline, pick).zip(rate(other, pick)).map(|(ours, its)| ours / its);
        let durable = over(|took| took.durable)?;
        let ended = over(|took| took.ended)?;
        let (name, durable, ended) = (other.name(), ratio(durable), ratio(ended));
        Some(format!("{}: Paceline over {name}: {durable} until durable, {ended} until ended ({aim})", origin.name))
    };
    let cp_aim = if origin.files.len() > 4 { "no aim" } else { "aim: over 0.7" };
    [against(Way::Rsync, "aim: over 1"), against(Way::Cp, cp_aim)].into_iter().flatten().collect()
}
