//! A program that appends all the time, in a process of its own, and tells how long its longest append took.
//!
//! Each millisecond it appends some records to a log: by writing to a file, and, if it is a leader as well, by announcing
//! what it wrote. It does what it reads from its standard input, a line each:
//!
//! | line | what it does | answer |
//! |---|---|---|
//! | `longest` | waits for the append under way | `longest NS NS`: the longest since it was last asked, and of it the announcing alone |
//! | `grow FIRST COUNT STRIDE` | appends to so many numbered files | `grown` |
//! | `end` | shuts the leader down and ends | |

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use paceline::{AppendError, Leader, LeaderConfig, RelPath};
use parking_lot::Mutex;

use super::processes::{Missing, Process};
use super::{PATIENCE, secret};

pub const APPENDS: &str = "appends";
pub const LEADS: &str = "leads";

const RECORD_BYTES: usize = 100;
const DRAIN: Duration = Duration::from_secs(10);
const FOLDER_FILES: usize = 1000;

/// The numbered files.
pub fn numbered(number: usize) -> PathBuf {
    PathBuf::from(format!("folder-{:04}/file-{number:07}", number / FOLDER_FILES))
}

/// Makes so many of them, with a record each.
pub fn make_numbered(dir: &Path, count: usize) {
    for number in 0..count {
        let file = dir.join(numbered(number));
        if number % FOLDER_FILES == 0 {
            fs::create_dir(file.parent().expect("a folder")).expect("a new folder");
        }
        fs::write(file, record()).expect("space on disk");
    }
}

/// What no compression shrinks.
fn record() -> [u8; RECORD_BYTES] {
    std::array::from_fn(|_| fastrand::u8(..))
}

/// Which of the numbered files.
#[derive(Clone, Copy)]
pub struct Numbers {
    pub first: usize,
    pub count: usize,
    pub stride: usize,
}

impl Numbers {
    fn names(self) -> impl Iterator<Item = PathBuf> {
        (0..self.count).map(move |at| numbered(self.first + at * self.stride))
    }

    /// Appends a record to each; `announce` is told.
    pub fn grow(self, dir: &Path, announce: impl Fn(&RelPath, u64, &[u8])) {
        for name in self.names() {
            let file = File::options().write(true).open(dir.join(&name)).expect("one that was made");
            let (at, record) = (file.metadata().expect("open").len(), record());
            file.write_all_at(&record, at).expect("space on disk");
            announce(&RelPath::new(name.to_str().expect("ASCII")).expect("a good name"), at, &record);
        }
    }
}

// ---- the process ----

#[derive(Default)]
struct Longest {
    append: Duration,
    announce: Duration,
}

/// The life of such a process.
pub fn run(role: &str, address: &str, records: usize, dir: &Path) {
    let leader = (role == LEADS).then(|| {
        env_logger::init();
        let listener = Leader::bind(address).expect("a port that was free");
        let mut config = LeaderConfig::new(dir, secret());
        // Of small queues where there are many.
        config.queue_bytes = if records > 1 { 4 << 20 } else { config.queue_bytes };
        let leader = Leader::open(config).expect("a leader");
        println!("listening on {}", leader.listen_on(listener).expect("bound"));
        Arc::new(leader)
    });
    let longest = Arc::new(Mutex::new(Longest::default()));
    let (its, of, name) = (leader.clone(), longest.clone(), format!("log-{}", std::process::id()));
    let log = File::create(dir.join(&name)).expect("a new file");
    let path = RelPath::new(&name).expect("a good name");
    let appends = std::thread::spawn(move || append(&log, &path, records, its.as_deref(), &of));
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["longest"] => {
                let Longest { append, announce } = std::mem::take(&mut *longest.lock());
                println!("longest {} {}", append.as_nanos(), announce.as_nanos());
            }
            ["grow", first, count, stride] => {
                let number = |word: &str| word.parse().expect("a number");
                let numbers = Numbers { first: number(first), count: number(count), stride: number(stride) };
                numbers.grow(dir, |path, at, record| {
                    if let Some(leader) = &leader {
                        leader.append(path, at, record).expect("an append in order");
                    }
                });
                println!("grown");
            }
            ["end"] => break,
            _ => panic!("it was told {line}"),
        }
    }
    if let Some(leader) = leader {
        leader.shutdown(DRAIN);
        appends.join().expect("no panic");
    }
}

/// Until the leader is shut down; what it did not announce then is not in the file.
fn append(log: &File, path: &RelPath, records: usize, leader: Option<&Leader>, longest: &Mutex<Longest>) {
    let mut at = 0;
    loop {
        std::thread::sleep(Duration::from_millis(1));
        for _ in 0..records {
            let record = record();
            // Held throughout: who asks for the longest waits for this one.
            let mut longest = longest.lock();
            let began = Instant::now();
            log.write_all_at(&record, at).expect("space on disk");
            let written = Instant::now();
            match leader.map(|leader| leader.append(path, at, &record)) {
                None | Some(Ok(_)) => {}
                Some(Err(AppendError::ShuttingDown)) => return log.set_len(at).expect("ours"),
                Some(Err(error)) => panic!("{error}"),
            }
            if leader.is_some() {
                longest.announce = longest.announce.max(written.elapsed());
            }
            longest.append = longest.append.max(began.elapsed());
            at += RECORD_BYTES as u64;
        }
    }
}

// ---- its parent ----

/// A process that appends, this many records each millisecond, in `dir`; with the role of a leader it listens on `address`.
pub fn start(role: &str, address: &str, records: usize, dir: &Path) -> Process {
    let executable = std::env::current_exe().expect("a path to this executable");
    let mut command = Command::new(executable);
    command.args([super::children::HIDDEN, role, address, &records.to_string()]).arg(dir).env("RUST_LOG", "info");
    Process::start(&mut command)
}

/// How long the longest append took since this was last asked, and of it the announcing alone; zero if the process has ended.
pub fn longest(process: &mut Process) -> [Duration; 2] {
    process.tell("longest");
    match process.wait_for("longest ", Instant::now() + PATIENCE) {
        Ok((_, line)) => {
            let mut nanos = line.split(' ').skip(1).map(|word| Duration::from_nanos(word.parse().expect("a number")));
            std::array::from_fn(|_| nanos.next().expect("two numbers"))
        }
        Err(Missing::Ended | Missing::Late) => Default::default(),
    }
}

/// Has it append to some of the numbered files.
pub fn grow(process: &mut Process, numbers: Numbers) -> Result<(), String> {
    process.tell(&format!("grow {} {} {}", numbers.first, numbers.count, numbers.stride));
    process.wait_for("grown", Instant::now() + PATIENCE).map(drop).map_err(|_| "the leader has ended".to_owned())
}
