//! What the benches share: options, followers in processes of their own, data, CPU clocks, tables. Each bench uses a part.
#![allow(dead_code, missing_docs, unreachable_pub)]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people to read"
)]

pub mod appender;
pub mod children;
pub mod data;
pub mod files;
pub mod processes;
pub mod relay;
pub mod rsync;
pub mod table;

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use paceline::{Leader, LeaderConfig, NodeId, RelPath, Secret};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

/// How long anything may take before a bench gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn secret() -> Secret {
    Secret::new("the benches' secret").expect("short enough")
}

// ---- options ----

/// What the command line asks for.
#[derive(Debug)]
pub struct Options {
    /// Just enough to see that everything still runs.
    pub quick: bool,
    /// Followers that decode and acknowledge, and write nothing.
    pub sinks: bool,
    /// Whether there is a baseline; a profile is easier to read without.
    pub baseline: bool,
    pub rounds: usize,
    /// MiB/s that writers offer, all threads together; 0: as fast as they can.
    pub rate: usize,
    /// MiB of files, where a bench makes some.
    pub mib: Option<usize>,
    /// How many files, where a bench makes many.
    pub files: Option<usize>,
    /// GiB of one sparse file beside them.
    pub sparse_gib: Option<usize>,
    /// How many followers, where it is a matter of how many.
    pub followers_many: Option<usize>,
    /// Seconds that one step may take.
    pub limit: Option<usize>,
    sizes: Option<Vec<usize>>,
    followers: Option<Vec<usize>>,
    threads: Option<Vec<usize>>,
}

const USAGE: &str = "options: [--quick] [--sinks] [--no-baseline] [--rounds N] [--rate MIB_PER_S] [--mib N]
         [--sizes BYTES,..] [--followers N,..] [--threads N,..]
         [--files N] [--sparse-gib N] [--followers-many N] [--limit SECONDS]
Without `--bench`, which `cargo bench` passes, it is quick: so it is when run as a test.";

impl Options {
    /// Reads the command line; the process ends if it makes no sense.
    pub fn parse(rounds: usize, rate: usize) -> Self {
        let mut args: Vec<String> = std::env::args().skip(1).collect();
        let mut flag = |name: &str| {
            let before = args.len();
            args.retain(|arg| arg != name);
            args.len() < before
        };
        let quick = flag("--quick") | !flag("--bench");
        let sinks = flag("--sinks");
        let baseline = !flag("--no-baseline");
        let mut options = Self {
            quick,
            sinks,
            baseline,
            rounds: if quick { 1 } else { rounds },
            rate,
            mib: None,
            files: None,
            sparse_gib: None,
            followers_many: None,
            limit: None,
            sizes: None,
            followers: None,
            threads: None,
        };
        let mut args = args.into_iter();
        while let Some(name) = args.next() {
            let numbers: Option<Vec<usize>> =
                args.next().and_then(|list| list.split(',').map(|number| number.parse().ok()).collect());
            match (name.as_str(), numbers) {
                ("--rounds", Some(numbers)) if numbers.len() == 1 && numbers[0] > 0 => options.rounds = numbers[0],
                ("--rate", Some(numbers)) if numbers.len() == 1 => options.rate = numbers[0],
                ("--mib", Some(numbers)) if numbers.len() == 1 && numbers[0] > 0 => options.mib = Some(numbers[0]),
                ("--files", Some(numbers)) if numbers.len() == 1 && numbers[0] > 0 => {
                    options.files = numbers.first().copied()
                }
                ("--sparse-gib", Some(numbers)) if numbers.len() == 1 => options.sparse_gib = numbers.first().copied(),
                ("--followers-many", Some(numbers)) if numbers.len() == 1 => {
                    options.followers_many = numbers.first().copied()
                }
                ("--limit", Some(numbers)) if numbers.len() == 1 => options.limit = numbers.first().copied(),
                ("--sizes", numbers @ Some(_)) => options.sizes = numbers,
                ("--followers", numbers @ Some(_)) => options.followers = numbers,
                ("--threads", numbers @ Some(_)) => options.threads = numbers,
                _ => {
                    eprintln!("{USAGE}");
                    std::process::exit(2);
                }
            }
        }
        options
    }

    pub fn has_size(&self, size: usize) -> bool {
        self.sizes.as_ref().is_none_or(|sizes| sizes.contains(&size))
    }

    pub fn has_followers(&self, followers: usize) -> bool {
        self.followers.as_ref().is_none_or(|wanted| wanted.contains(&followers))
    }

    pub fn has_threads(&self, threads: usize) -> bool {
        self.threads.as_ref().is_none_or(|wanted| wanted.contains(&threads))
    }
}

// ---- the leader ----

/// A leader on a directory of its own, listening on loopback.
pub struct BenchLeader {
    pub leader: Leader,
    pub address: SocketAddr,
    pub dir: TempDir,
}

impl BenchLeader {
    pub fn start(change: impl FnOnce(&mut LeaderConfig)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut config = LeaderConfig::new(dir.path(), secret());
        config.id = Some(NodeId::new(1).expect("positive"));
        change(&mut config);
        let leader = Leader::open(config).expect("a leader");
        let address = leader.listen("127.0.0.1:0").expect("a port");
        Self { leader, address, dir }
    }

    /// Waits until all of `ids` have acknowledged everything. `Err` says who is not there any more.
    pub fn wait_acknowledged(&self, ids: &[NodeId]) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let followers = self.leader.followers();
            let end = self.leader.position();
            let done =
                |id: &NodeId| followers.iter().any(|follower| follower.id == *id && follower.acknowledged == Some(end));
            if ids.iter().all(done) {
                return Ok(());
            }
            self.healthy(ids)?;
            if Instant::now() > deadline {
                return Err(format!("followers did not acknowledge within {PATIENCE:?}"));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// `Err` if one of `ids` was evicted.
    pub fn healthy(&self, ids: &[NodeId]) -> Result<(), String> {
        match self.leader.evictions().iter().find(|eviction| ids.contains(&eviction.id)) {
            Some(eviction) => Err(format!("a healthy follower was evicted: {eviction}")),
            None => Ok(()),
        }
    }
}

/// Waits until the leader has this many followers in the stream.
pub fn wait_joined(leader: &BenchLeader, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let end = leader.leader.position();
        let joined = leader.leader.followers().iter().filter(|follower| follower.acknowledged == Some(end)).count();
        if joined == count {
            return;
        }
        assert!(Instant::now() < deadline, "{joined} of {count} followers joined");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Segments are deleted at this size, so that directories stay small.
const SEGMENT_BYTES_MAX: u64 = 32 << 20;

/// A log of one thread, in segments of which only the last is kept; writes to the file and announces, each when asked.
pub struct Log<'a> {
    leader: &'a Leader,
    root: &'a Path,
    name: String,
    segment: u32,
    pub path: RelPath,
    file: File,
    announced: u64,
    written: u64,
}

impl<'a> Log<'a> {
    pub fn new(leader: &'a BenchLeader, name: &str) -> Self {
        let root = leader.dir.path();
        let (path, file) = segment(root, name, 0);
        Self { leader: &leader.leader, root, name: name.to_owned(), segment: 0, path, file, announced: 0, written: 0 }
    }

    /// Writes to the file and tells nobody.
    pub fn write(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).expect("space on disk");
        self.written += bytes.len() as u64;
    }

    /// Announces bytes that were written.
    #[inline]
    pub fn announce(&mut self, bytes: &[u8]) {
        self.leader.append(&self.path, self.announced, bytes).expect("an append in order");
        self.announced += bytes.len() as u64;
    }

    /// Begins a new segment if this one is long enough; all that was written must have been announced.
    pub fn rotate(&mut self) {
        if self.written < SEGMENT_BYTES_MAX {
            return;
        }
        debug_assert_eq!(self.written, self.announced);
        fs::remove_file(self.path.below(self.root)).expect("the segment is ours");
        self.leader.delete(&self.path).expect("not shut down");
        self.segment += 1;
        (self.path, self.file) = segment(self.root, &self.name, self.segment);
        (self.written, self.announced) = (0, 0);
    }
}

fn segment(root: &Path, name: &str, number: u32) -> (RelPath, File) {
    let path = RelPath::new(&format!("{name}-{number:06}.log")).expect("a good name");
    let file = File::create(path.below(root)).expect("a new file");
    (path, file)
}

/// A plain file with the same life as a [`Log`]'s: begun anew when it is long enough.
pub struct PlainFile {
    path: PathBuf,
    file: File,
    written: u64,
}

impl PlainFile {
    pub fn new(path: PathBuf) -> Self {
        let file = File::create(&path).expect("a new file");
        Self { path, file, written: 0 }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).expect("space on disk");
        self.written += bytes.len() as u64;
        if self.written >= SEGMENT_BYTES_MAX {
            fs::remove_file(&self.path).expect("the file is ours");
            self.file = File::create(&self.path).expect("a new file");
            self.written = 0;
        }
    }
}

// ---- clocks ----

/// CPU time of this process, all threads, without its children.
pub fn process_cpu() -> Duration {
    cpu(ClockId::ProcessCPUTime)
}

/// CPU time of the calling thread.
pub fn thread_cpu() -> Duration {
    cpu(ClockId::ThreadCPUTime)
}

fn cpu(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).expect("CPU time is positive")
}

/// What a pair of looks at the clock costs, in ns: the median of many. It is in every latency that is printed.
pub fn timer_cost_ns() -> u64 {
    let mut costs: Vec<_> = std::iter::repeat_with(|| std::hint::black_box(Instant::now()).elapsed().as_nanos() as u64)
        .take(100_001)
        .collect();
    median_by(&mut costs)
}

fn median_by<T: Ord + Copy>(values: &mut [T]) -> T {
    values.sort_unstable();
    values[values.len() / 2]
}

/// The median; the mean of the middle two if there is an even number.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// One line about the machine: figures mean nothing without it.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |it| it.1);
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("?");
    format!("machine: {cores} cores, {model}, Linux {}, load {load} at start", kernel.trim())
}

/// Ends the process: 1 if a run was invalid.
pub fn finish(invalid: &[String]) -> ! {
    for why in invalid {
        println!("INVALID RUN: {why}");
    }
    std::process::exit(i32::from(!invalid.is_empty()));
}
