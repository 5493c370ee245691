//! What very many files cost: starting, coming back, changing leaders, and what an append notices of it.
//!
//! # What is measured
//!
//! A directory of `--files` files of 100 B in folders of 1,000, and one sparse file of `--sparse-gib`. A leader and its
//! followers are processes; the followers are `paceline follow`. There are two leaders, and each goes through all steps:
//!
//! - *program*: `paceline leader`, with its watcher. A process of its own writes to a log in the directory.
//! - *embedded*: a process that has the library and no watcher, and that appends itself: it writes to a log, and announces.
//!
//! | step | measured until |
//! |---|---|
//! | start | the leader accepts followers |
//! | first sync | an empty follower is in sync |
//! | nothing missed | a follower that was stopped and started is |
//! | files missed | the same, of 1,000 files appended to meanwhile (a hundredth of all, if that is less) |
//! | killed | a follower killed with SIGKILL in the midst of such appends is back in sync, from when it is started again |
//! | leader restarted | the follower is back in sync with a leader that was stopped, from when that is started again |
//! | leader killed | the same of one that was killed with SIGKILL |
//! | leader changed | another follower is in sync with the first one's directory, which leads now, from when that is started |
//!
//! *In sync* is when the follower says so. What it waits before it tries to connect again (up to 10 s, by chance) is in the time
//! where the leader goes. A step that is not done within `--limit` seconds (start and first sync: ten times that) is printed so, with what both
//! sides complained of; it is no error, and the next one begins where it left off.
//!
//! - *listens*, *serves*, *watches*: when the leader had its port, when it let followers in, and when all of the directory was watched.
//! - *CPU*: time on a core, of all threads of the process. Of a process that was started in the step all it took, otherwise what it took in it. On a machine that
//!   is busy with other things this is what can be compared, and not the time.
//! - *moved*: bytes over the network, both ways, through a relay of the bench's.
//! - *read*: bytes that the process read by system calls from files, in the page cache or not (`rchar` of `/proc/PID/io`; what is
//!   received from sockets is not in it), and those that came from the disk (`read_bytes`). Of a process that was started
//!   in the step all it read, otherwise what it read in it. The files were just written: they are in the page cache as far as it holds them.
//!   The program's watcher reads up to 8 KiB of the log for each of its records, which is in it.
//! - *RSS*: at the step's end, and its peak in the step, over the number of files.
//! - *longest append*: of a record of 100 B each millisecond, all through the step. With the program that is one `write`, with the
//!   embedded leader `write` and announcing; *announce* is the latter alone. *Control* is the longest `write` of the same records at the
//!   same time in another directory by another process that knows nothing of Paceline. What both have is the machine's.
//!
//! Last, so many followers (`--followers-many`) follow an embedded leader of small queues that is appended to, 4 records each
//! millisecond, and a tenth of them: what the leader's CPU time and the longest append make of it. Of small files there are none then.
//!
//! # What was measured
//!
//! The README has a table of 500,000 files. Where memory is told, some of it is what the allocator keeps of what a sync took for a moment. The longest
//! append is up to tens of milliseconds where many other processes want the cores: then who holds the lock of appends is made to wait for one.
//!
//! # How to read it
//!
//! Medians over the rounds, with the lowest and highest. In each round there are new followers, with empty directories, and a leader that has
//! never led. The copies are compared byte for byte after *leader killed* and *leader changed*, if they were reached; a difference makes the run
//! invalid, which it says, and it exits with 1.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people to read"
)]

mod common;

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use common::appender::{self, APPENDS, LEADS, Numbers, grow, longest, make_numbered, numbered};
use common::children::run_if_child;
use common::files::{first_difference, require_space};
use common::processes::{Missing, Process, Usage};
use common::relay::Relay;
use common::table::{Table, nanos, ratio};
use common::{Options, PATIENCE, finish, machine, median};
use tempfile::TempDir;

const SECRET: &str = "the benches' secret";
const PACELINE: &str = env!("CARGO_BIN_EXE_paceline");
const IN_SYNC: &str = "in sync, following the stream";
/// What the embedded leader says when it accepts followers, and what `paceline leader` says, which listens before that ...
const SERVES: &str = "listening on ";
const PROGRAM_SERVES: &str = " replicates ";
/// ... and when it has looked at everything.
const WATCHES: &str = "all there is is watched";
const SPARSE: &str = "sparse";
/// What is shown of what was said in a step that was not done.
const COMPLAINTS_MOST: usize = 4;
/// Start and first sync, on which all that comes after depends, may take so many times as long as another step.
const FIRST_TIMES: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum By {
    Program,
    Embedded,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Embedded => "embedded",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Start,
    First,
    Nothing,
    Missed,
    Killed,
    LeaderRestarted,
    LeaderKilled,
    LeaderChanged,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Start,
        Self::First,
        Self::Nothing,
        Self::Missed,
        Self::Killed,
        Self::LeaderRestarted,
        Self::LeaderKilled,
        Self::LeaderChanged,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::First => "first sync",
            Self::Nothing => "nothing missed",
            Self::Missed => "files missed",
            Self::Killed => "killed",
            Self::LeaderRestarted => "leader restarted",
            Self::LeaderKilled => "leader killed",
            Self::LeaderChanged => "leader changed",
        }
    }
}

/// How large everything is.
struct Sizes {
    files: usize,
    sparse: u64,
    many: usize,
    limit: Duration,
}

impl Sizes {
    fn missed(&self) -> usize {
        (self.files / 100).clamp(2, 1000)
    }

    /// So many of the files that are missed, from this one on, spread over all.
    fn numbers(&self, first: usize, count: usize) -> Numbers {
        let stride = self.files / self.missed();
        Numbers { first: first * stride, count, stride }
    }
}

/// What one step came to.
struct Seen {
    /// Why it was not done.
    failed: Option<String>,
    time: Duration,
    reached: Reached,
    moved: u64,
    leader: Usage,
    follower: Usage,
    /// The longest append, of it the announcing, and the control's.
    longest: [Duration; 3],
    complaints: Vec<String>,
}

type Results = HashMap<(By, Step), Vec<Seen>>;

fn main() {
    run_if_child();
    let options = Options::parse(3, 0);
    let sizes = Sizes {
        files: options.files.unwrap_or(if options.quick { 1000 } else { 20_000 }),
        sparse: (options.sparse_gib.unwrap_or(usize::from(!options.quick)) as u64) << 30,
        many: options.followers_many.unwrap_or(if options.quick { 10 } else { 30 }),
        limit: Duration::from_secs(options.limit.unwrap_or(120) as u64),
    };
    let Sizes { files, sparse, .. } = sizes;
    println!("scale: {files} files of 100 B, one sparse file of {} GiB", sparse >> 30);
    println!("{}", machine());
    println!("{} rounds; not more than {} s for a step\n", options.rounds, sizes.limit.as_secs());

    // Three directories, each file with a block and an inode.
    require_space(3 * (files as u64 * (5 << 10)));
    let (mut results, mut invalid) = (Results::new(), Vec::new());
    for _ in 0..options.rounds {
        for by in [By::Program, By::Embedded] {
            let mut pass = Pass::new(by, &sizes);
            if let Err(why) = pass.run(&mut results) {
                invalid.push(format!("{}: {why}", by.name()));
            }
        }
    }
    print_times(&results);
    print_memory(&results, files);
    if sizes.many > 0 {
        print_many(sizes.many, options.quick, options.rounds, &mut invalid);
    }
    finish(&invalid);
}

/// One leader's way through all steps.
struct Pass<'a> {
    by: By,
    sizes: &'a Sizes,
    /// The leader's, the follower's, and the other follower's.
    dirs: [TempDir; 3],
    /// Of those, the one that leads.
    leads: usize,
    address: SocketAddr,
    relay: Relay,
    leader: Option<Process>,
    /// Writes to the directory of a leader that does not itself.
    writer: Option<Process>,
    control: Process,
    _control_dir: TempDir,
    follower: Option<Process>,
}

/// How far a step came.
#[derive(Default)]
struct Reached {
    listens: Option<Duration>,
    serves: Option<Duration>,
    watches: Option<Duration>,
}

impl<'a> Pass<'a> {
    fn new(by: By, sizes: &'a Sizes) -> Self {
        let dirs: [TempDir; 3] = std::array::from_fn(|_| tempfile::tempdir().expect("a temporary directory"));
        make_numbered(dirs[0].path(), sizes.files);
        File::create(dirs[0].path().join(SPARSE)).and_then(|file| file.set_len(sizes.sparse)).expect("a sparse file");
        common::files::flush(dirs[0].path());
        let address = free_address();
        let control_dir = tempfile::tempdir().expect("a temporary directory");
        let control = appender::start(APPENDS, "-", 1, control_dir.path());
        let mut pass = Self {
            by,
            sizes,
            dirs,
            leads: 0,
            address,
            relay: Relay::start(address),
            leader: None,
            writer: None,
            control,
            _control_dir: control_dir,
            follower: None,
        };
        pass.start_writer();
        pass
    }

    fn run(&mut self, results: &mut Results) -> Result<(), String> {
        for step in Step::ALL {
            if let Err(why) = self.prepare(step) {
                println!("{:>9}  {:>16}  not tried: {why}", self.by.name(), step.name());
                break;
            }
            let seen = self.measure(step);
            show(self.by, step, &seen);
            results.entry((self.by, step)).or_default().push(seen);
        }
        end(&mut self.writer);
        self.end_leader();
        let reached =
            |step| results.get(&(self.by, step)).and_then(|seen| seen.last()).is_some_and(|it| it.failed.is_none());
        for (step, copy) in [(Step::LeaderKilled, 1), (Step::LeaderChanged, 2)] {
            if reached(step) {
                self.compare(copy)?;
            }
        }
        Ok(())
    }

    /// What comes before a step.
    fn prepare(&mut self, step: Step) -> Result<(), String> {
        let half = self.sizes.missed() / 2;
        match step {
            Step::Start | Step::First => {}
            Step::Nothing => terminate(&mut self.follower),
            Step::Missed => {
                terminate(&mut self.follower);
                self.grow(0, 2 * half)?;
                // The watcher has looked by then.
                std::thread::sleep(Duration::from_millis(500));
            }
            Step::Killed => {
                self.grow(0, half)?;
                self.follower = None;
                self.grow(half, half)?;
            }
            Step::LeaderRestarted => self.end_leader(),
            Step::LeaderKilled => self.leader = None,
            Step::LeaderChanged => {
                let mut other = self.follow(2);
                let until = other.began + self.sizes.limit * FIRST_TIMES;
                other.wait_for(IN_SYNC, until).map_err(|_| "the other follower is not in sync".to_owned())?;
                end(&mut self.writer);
                // It sends what is left.
                self.end_leader();
                terminate(&mut self.follower);
                self.follower = Some(other);
                self.leads = 1;
                self.start_writer();
            }
        }
        Ok(())
    }

    fn measure(&mut self, step: Step) -> Seen {
        let began = Instant::now();
        let before = [&mut self.leader, &mut self.follower].map(|process| {
            let Some(process) = process else { return Usage::default() };
            process.begin_anew();
            process.forget_peak();
            process.usage()
        });
        self.relay.open();
        self.longest();
        let mut reached = Reached::default();
        let (failed, time) = match self.reach(step, &mut reached) {
            Ok(time) => (None, time),
            Err(why) => (Some(why), Duration::ZERO),
        };
        let moved = self.relay.moved();
        let longest = self.longest();
        let mut usage = [Usage::default(); 2];
        let mut complaints = Vec::new();
        for (at, process) in [&mut self.leader, &mut self.follower].into_iter().enumerate() {
            let Some(process) = process else { continue };
            let is_new = process.began > began;
            usage[at] = if is_new { process.usage() } else { process.usage().since(before[at]) };
            let who = ["leader", "follower"][at];
            complaints.extend(process.complaints().into_iter().map(|said| format!("{who}, {said}")));
        }
        let [leader, follower] = usage;
        Seen { failed, time, reached, moved, leader, follower, longest, complaints }
    }

    /// Returns how long it took.
    fn reach(&mut self, step: Step, reached: &mut Reached) -> Result<Duration, String> {
        match step {
            Step::Start => {
                self.start_leader(step, reached)?;
                self.wait_until_watched(step, reached)?;
                return Ok(reached.serves.expect("it has"));
            }
            Step::First | Step::Nothing | Step::Missed | Step::Killed => self.follower = Some(self.follow(1)),
            Step::LeaderRestarted | Step::LeaderKilled | Step::LeaderChanged => self.start_leader(step, reached)?,
        }
        let newest = [&self.leader, &self.follower].into_iter().flatten().map(|process| process.began).max();
        let began = newest.expect("one was started");
        let limit = self.limit(step);
        let follower = self.follower.as_mut().ok_or("there is no follower")?;
        let in_sync = follower.wait_for(IN_SYNC, began + limit);
        let time = in_sync.map(|(at, _)| at - began).map_err(|missing| not_done(&missing, limit))?;
        if reached.serves.is_some() {
            self.wait_until_watched(step, reached)?;
        }
        Ok(time)
    }

    /// That is no part of the time until somebody is in sync.
    fn wait_until_watched(&mut self, step: Step, reached: &mut Reached) -> Result<(), String> {
        let limit = self.limit(step);
        if self.by == By::Program
            && let Some(leader) = &mut self.leader
        {
            let watched = leader.wait_for(WATCHES, leader.began + limit);
            let (at, _) = watched.map_err(|missing| not_done(&missing, limit))?;
            reached.watches = Some(at - leader.began);
        }
        Ok(())
    }

    fn limit(&self, step: Step) -> Duration {
        self.sizes.limit * if matches!(step, Step::Start | Step::First) { FIRST_TIMES } else { 1 }
    }

    fn start_leader(&mut self, step: Step, reached: &mut Reached) -> Result<(), String> {
        let limit = self.limit(step);
        let (dir, address) = (self.dirs[self.leads].path(), self.address.to_string());
        let leader = self.leader.insert(match self.by {
            By::Embedded => appender::start(LEADS, &address, 1, dir),
            By::Program => Process::start(paceline(&["leader", "--listen", &address]).arg("--data-dir").arg(dir)),
        });
        let until = leader.began + limit;
        while !listens(self.address) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        let listens = leader.began.elapsed();
        reached.listens = Some(listens);
        let says = if self.by == By::Program { PROGRAM_SERVES } else { SERVES };
        let (at, _) = leader.wait_for(says, until).map_err(|missing| not_done(&missing, limit))?;
        let serves = at - leader.began;
        (reached.listens, reached.serves) = (Some(listens.min(serves)), Some(serves));
        Ok(())
    }

    fn follow(&self, dir: usize) -> Process {
        let address = self.relay.address.to_string();
        Process::start(paceline(&["follow", &address]).arg("--data-dir").arg(self.dirs[dir].path()))
    }

    fn start_writer(&mut self) {
        if self.by == By::Program {
            self.writer = Some(appender::start(APPENDS, "-", 1, self.dirs[self.leads].path()));
        }
    }

    fn end_leader(&mut self) {
        match self.by {
            By::Program => terminate(&mut self.leader),
            By::Embedded => end(&mut self.leader),
        }
    }

    /// Appends to some of the files that are to be missed.
    fn grow(&mut self, first: usize, count: usize) -> Result<(), String> {
        let numbers = self.sizes.numbers(first, count);
        match (&mut self.leader, self.by) {
            (Some(leader), By::Embedded) => grow(leader, numbers),
            (None, By::Embedded) => Err("there is no leader".to_owned()),
            (_, By::Program) => {
                numbers.grow(self.dirs[self.leads].path(), |_, _, _| ());
                Ok(())
            }
        }
    }

    /// The longest append, of it the announcing, and the control's, since it was last asked.
    fn longest(&mut self) -> [Duration; 3] {
        let appends = if self.by == By::Program { &mut self.writer } else { &mut self.leader };
        let [append, announce] = appends.as_mut().map(longest).unwrap_or_default();
        [append, announce, longest(&mut self.control)[0]]
    }

    /// That a follower has all that was in the first leader's directory.
    fn compare(&self, copy: usize) -> Result<(), String> {
        let mut files: Vec<PathBuf> = (0..self.sizes.files).map(numbered).chain([SPARSE.into()]).collect();
        let top =
            fs::read_dir(self.dirs[0].path()).expect("a directory").map(|entry| entry.expect("readable").file_name());
        files.extend(top.map(PathBuf::from).filter(|name| name.to_string_lossy().starts_with("log-")));
        match first_difference(self.dirs[0].path(), self.dirs[copy].path(), &files) {
            Some(file) => Err(format!("{} is not the same at follower {copy}", file.display())),
            None => Ok(()),
        }
    }
}

fn not_done(missing: &Missing, limit: Duration) -> String {
    match missing {
        Missing::Late => format!("not within {} s", limit.as_secs()),
        Missing::Ended => "it ended".to_owned(),
    }
}

/// One that is free again, so that each leader can take it.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

fn paceline(args: &[&str]) -> Command {
    let mut command = Command::new(PACELINE);
    command.args(args).env("PACELINE_SECRET", SECRET).env("RUST_LOG", "info");
    command
}

/// Whether anybody listens there.
fn listens(address: SocketAddr) -> bool {
    let sockets = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    sockets.contains(&format!(":{:04X} 00000000:0000 0A", address.port()))
}

fn terminate(process: &mut Option<Process>) {
    if let Some(mut process) = process.take() {
        process.terminate();
    }
}

/// The same of one of the bench's own.
fn end(process: &mut Option<Process>) {
    if let Some(mut process) = process.take() {
        process.tell("end");
        process.wait_end();
    }
}

// ---- very many followers ----

struct Many {
    /// Of the leader's, in a second.
    cpu: f64,
    longest: [Duration; 3],
    resident: u64,
    evictions: usize,
}

/// An interval with so many followers.
fn many(count: usize, quick: bool) -> Result<Many, String> {
    let interval = Duration::from_secs(if quick { 1 } else { 5 });
    let (dir, control_dir) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let address = free_address().to_string();
    let mut leader = appender::start(LEADS, &address, 4, dir.path());
    let mut control = appender::start(APPENDS, "-", 4, control_dir.path());
    leader.wait_for(SERVES, Instant::now() + PATIENCE).map_err(|_| "there is no leader".to_owned())?;
    let copies: Vec<TempDir> = (0..count).map(|_| tempfile::tempdir().expect("a directory")).collect();
    let follow = |copy: &TempDir| Process::start(paceline(&["follow", &address]).arg("--data-dir").arg(copy.path()));
    let mut followers: Vec<Process> = copies.iter().map(follow).collect();
    for follower in &mut followers {
        follower.wait_for(IN_SYNC, Instant::now() + PATIENCE).map_err(|_| "a follower did not come".to_owned())?;
    }
    leader.begin_anew();
    longest(&mut leader);
    longest(&mut control);
    let (cpu, began) = (leader.cpu(), Instant::now());
    std::thread::sleep(interval);
    let cpu = (leader.cpu() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    let ([append, announce], [alone, _]) = (longest(&mut leader), longest(&mut control));
    let evictions = leader.complaints().iter().filter(|said| said.contains("evicted follower")).count();
    Ok(Many { cpu, longest: [append, announce, alone], resident: leader.usage().resident, evictions })
}

fn print_many(most: usize, quick: bool, rounds: usize, invalid: &mut Vec<String>) {
    let counts = [most.div_ceil(10), most];
    let mut seen: [Vec<Many>; 2] = Default::default();
    for _ in 0..rounds {
        for (seen, count) in seen.iter_mut().zip(counts) {
            match many(count, quick) {
                Ok(many) => seen.push(many),
                Err(why) => invalid.push(format!("{count} followers: {why}")),
            }
        }
    }
    let mut table = Table::new(&[
        "followers",
        "leader's CPU",
        "min-max",
        "ratio",
        "longest append",
        "announce",
        "control",
        "RSS",
        "evicted",
    ]);
    let cpu = |seen: &[Many]| median(seen.iter().map(|it| it.cpu));
    for (count, of) in counts.into_iter().zip(&seen) {
        let (min, max) = bounds(of.iter().map(|it| it.cpu));
        let longest = |at: usize| nanos(median(of.iter().map(|it| it.longest[at].as_nanos() as f64)));
        table.row(vec![
            count.to_string(),
            format!("{:.1}%", cpu(of) * 100.0),
            format!("{:.1}-{:.1}%", min * 100.0, max * 100.0),
            ratio(cpu(of) / cpu(&seen[0])),
            longest(0),
            longest(1),
            longest(2),
            mib(median(of.iter().map(|it| it.resident as f64))),
            of.iter().map(|it| it.evictions).sum::<usize>().to_string(),
        ]);
    }
    println!("\nmany followers, 4 records of 100 B each millisecond");
    table.print();
}

// ---- what came of it ----

fn mib(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

fn seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::MAX, 0.0), |(min, max): (f64, f64), value| (min.min(value), max.max(value)))
}

/// One step, when it is done: a run may take long, and may be ended before its tables.
fn show(by: By, step: Step, seen: &Seen) {
    let time = seen.failed.clone().unwrap_or_else(|| seconds(seen.time.as_secs_f64()));
    println!(
        "{:>9}  {:>16}  {time:>17}  {:>8} and {:>8} of CPU  {:>10} moved  {:>10} and {:>10} read  {:>10} and {:>10} resident",
        by.name(),
        step.name(),
        seconds(seen.leader.cpu.as_secs_f64()),
        seconds(seen.follower.cpu.as_secs_f64()),
        mib(seen.moved as f64),
        mib(seen.leader.read as f64),
        mib(seen.follower.read as f64),
        mib(seen.leader.peak as f64),
        mib(seen.follower.peak as f64),
    );
    if seen.failed.is_some() {
        seen.complaints.iter().take(COMPLAINTS_MOST).for_each(|said| println!("{:>29}{said}", ""));
    }
}

/// The rows of a table: for each step and leader, those cells.
fn print_table(results: &Results, header: &[&str], cells: impl Fn(&[Seen]) -> Vec<String>) {
    let mut table = Table::new(&[&["step", "leader"], header].concat());
    for step in Step::ALL {
        table.gap();
        for by in [By::Program, By::Embedded] {
            if let Some(seen) = results.get(&(by, step)) {
                table.row([vec![step.name().to_owned(), by.name().to_owned()], cells(seen)].concat());
            }
        }
    }
    println!();
    table.print();
}

fn median_of(seen: &[Seen], pick: impl Fn(&Seen) -> f64) -> f64 {
    median(seen.iter().map(pick))
}

fn print_times(results: &Results) {
    let header = [
        "time",
        "min-max",
        "listens",
        "serves",
        "watches",
        "CPU",
        "follower's",
        "moved",
        "leader read",
        "from disk",
        "follower read",
        "from disk",
    ];
    print_table(results, &header, |seen| {
        let done: Vec<f64> = seen.iter().filter(|it| it.failed.is_none()).map(|it| it.time.as_secs_f64()).collect();
        let (min, max) = bounds(done.iter().copied());
        let failed = seen.iter().find_map(|it| it.failed.clone());
        let share = format!("{} of {}", seen.len() - done.len(), seen.len());
        let leader = |pick: fn(&Reached) -> Option<Duration>| {
            let median = median(seen.iter().filter_map(|it| pick(&it.reached)).map(|it| it.as_secs_f64()));
            if median.is_nan() { "-".to_owned() } else { seconds(median) }
        };
        vec![
            failed.map_or_else(|| seconds(median(done.iter().copied())), |why| format!("{why} ({share})")),
            if done.is_empty() { "-".to_owned() } else { format!("{}-{}", seconds(min), seconds(max)) },
            leader(|reached| reached.listens),
            leader(|reached| reached.serves),
            leader(|reached| reached.watches),
            seconds(median_of(seen, |it| it.leader.cpu.as_secs_f64())),
            seconds(median_of(seen, |it| it.follower.cpu.as_secs_f64())),
            mib(median_of(seen, |it| it.moved as f64)),
            mib(median_of(seen, |it| it.leader.read as f64)),
            mib(median_of(seen, |it| it.leader.read_from_disk as f64)),
            mib(median_of(seen, |it| it.follower.read as f64)),
            mib(median_of(seen, |it| it.follower.read_from_disk as f64)),
        ]
    });
}

fn print_memory(results: &Results, files: usize) {
    let header = [
        "leader RSS",
        "B/file",
        "peak B/file",
        "follower RSS",
        "B/file",
        "peak B/file",
        "longest append",
        "announce",
        "control",
        "ratio",
    ];
    print_table(results, &header, |seen| {
        let per_file = |pick: fn(&Seen) -> u64| format!("{:.0}", median_of(seen, |it| pick(it) as f64) / files as f64);
        let longest = |at: usize| median_of(seen, |it| it.longest[at].as_nanos() as f64);
        vec![
            mib(median_of(seen, |it| it.leader.resident as f64)),
            per_file(|it| it.leader.resident),
            per_file(|it| it.leader.peak),
            mib(median_of(seen, |it| it.follower.resident as f64)),
            per_file(|it| it.follower.resident),
            per_file(|it| it.follower.peak),
            latency(longest(0)),
            latency(longest(1)),
            latency(longest(2)),
            ratio(if longest(2) > 0.0 { longest(0) / longest(2) } else { f64::NAN }),
        ]
    });
}

/// Where nothing was appended, or announced, there is none.
fn latency(longest: f64) -> String {
    if longest > 0.0 { nanos(longest) } else { "-".to_owned() }
}
