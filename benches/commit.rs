//! Commits a second, and how long each takes, by how many threads commit and what they ask for; beside a loop of `fdatasync` on
//! the same file system, and a real Redis with one replica (`appendfsync always` on both, and `WAIT 1`), at as many clients.
//!
//! Each thread appends 256 B to one log, as Redis does for its clients, and commits, again and again, with or without a pause between
//! two commits: what one leaves undone, the next one does in its place, and only a pause shows it. The slowest of all rounds is
//! to be held against the slowest `fdatasync`. The follower is a process of its own, with
//! its directory on the same disk: all sides sync that one disk.
#![allow(missing_docs)]
#![allow(clippy::cast_precision_loss, reason = "figures for people to read")]

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::children::{ChildProcess, run_if_child};
use common::table::{Table, nanos, ratio};
use common::{BenchLeader, Options, PATIENCE, finish, machine, median, wait_joined};
use hdrhistogram::Histogram;
use paceline::RelPath;
use paceline::config::Durability;
use paceline::leader::{CommitLevel, Quorum};

const RECORD: [u8; 256] = [b'x'; 256];

/// Who commits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Load {
    threads: usize,
    /// Between two commits of a thread.
    pause: Duration,
}

const LOADS: [Load; 7] = [
    Load { threads: 1, pause: Duration::ZERO },
    Load { threads: 1, pause: Duration::from_micros(100) },
    Load { threads: 1, pause: Duration::from_millis(1) },
    Load { threads: 1, pause: Duration::from_millis(5) },
    Load { threads: 8, pause: Duration::ZERO },
    Load { threads: 64, pause: Duration::ZERO },
    Load { threads: 256, pause: Duration::ZERO },
];

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    Fdatasync,
    Redis,
    Commit(CommitLevel),
}

impl Way {
    const ALL: [Self; 4] = [
        Self::Fdatasync,
        Self::Redis,
        Self::Commit(CommitLevel { durability: Durability::Written, quorum: Quorum::All }),
        Self::Commit(CommitLevel { durability: Durability::Durable, quorum: Quorum::Count(1) }),
    ];

    fn name(self) -> String {
        match self {
            Self::Fdatasync => "one thread, fdatasync".into(),
            Self::Redis => "Redis, WAIT 1".into(),
            Self::Commit(level) => format!("commit, {level}"),
        }
    }
}

/// What was done in a while.
struct Done {
    per_s: f64,
    latency: Histogram<u64>,
}

fn main() {
    run_if_child();
    let options = Options::parse(5, 0);
    let time = Duration::from_millis(if options.quick { 300 } else { 2000 });
    println!("commit: commits a second and their latency, {} B records, one follower", RECORD.len());
    println!("{}", machine());
    println!("{} rounds of {time:?} each\n", options.rounds);
    let redis = Redis::start();
    if redis.is_none() {
        println!("without redis-server (Debian's package redis-server): not beside Redis");
    }
    let mut results: HashMap<(Load, Way), Vec<Done>> = HashMap::new();
    let mut invalid = Vec::new();
    for _ in 0..options.rounds {
        for load in LOADS.into_iter().filter(|load| options.has_threads(load.threads)) {
            for way in Way::ALL {
                let done = match way {
                    Way::Fdatasync => fdatasync(load.pause, time),
                    Way::Redis => match &redis {
                        Some(redis) => redis.run(load, time),
                        None => continue,
                    },
                    Way::Commit(level) => match commit(level, load, time) {
                        Ok(done) => done,
                        Err(error) => {
                            invalid.push(error);
                            continue;
                        }
                    },
                };
                results.entry((load, way)).or_default().push(done);
            }
        }
    }
    print(&results);
    drop(redis);
    finish(&invalid);
}

fn print(results: &HashMap<(Load, Way), Vec<Done>>) {
    let columns = ["threads", "pause", "way", "/s", "p50", "p99", "max", "over fdatasync", "over Redis"];
    let mut table = Table::new(&columns);
    for load in LOADS {
        table.gap();
        for way in Way::ALL {
            let Some(rounds) = results.get(&(load, way)) else { continue };
            let over = |other: Way| match results.get(&(load, other)) {
                // Round by round: what the machine was like then is in both.
                Some(others) => median(rounds.iter().zip(others).map(|(done, other)| done.per_s / other.per_s)),
                None => f64::NAN,
            };
            let quantile = |quantile| median(rounds.iter().map(|done| done.latency.value_at_quantile(quantile) as f64));
            table.row(vec![
                load.threads.to_string(),
                nanos(load.pause.as_nanos() as f64),
                way.name(),
                format!("{:.0}", median(rounds.iter().map(|done| done.per_s))),
                nanos(quantile(0.5)),
                nanos(quantile(0.99)),
                nanos(rounds.iter().map(|done| done.latency.max()).max().unwrap_or(0) as f64),
                ratio(over(Way::Fdatasync)),
                ratio(over(Way::Redis)),
            ]);
        }
    }
    table.print();
}

/// Runs `one` again and again, each thread with what `open` gave it.
fn measure<T: Send>(load: Load, time: Duration, open: impl Fn(usize) -> T, one: impl Fn(&mut T) + Sync) -> Done {
    let stop = AtomicBool::new(false);
    let mut with: Vec<_> = (0..load.threads).map(open).collect();
    let begun = Instant::now();
    let mut latency = Histogram::<u64>::new_with_max(600_000_000_000, 3).expect("ten minutes in three digits");
    std::thread::scope(|scope| {
        let (stop, one) = (&stop, &one);
        let running: Vec<_> = with
            .iter_mut()
            .map(|with| {
                scope.spawn(move || {
                    let mut latency =
                        Histogram::<u64>::new_with_max(600_000_000_000, 3).expect("ten minutes in three digits");
                    while !stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        one(with);
                        latency.saturating_record(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
                        if !load.pause.is_zero() {
                            std::thread::sleep(load.pause);
                        }
                    }
                    latency
                })
            })
            .collect();
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        for thread in running {
            latency.add(thread.join().expect("a thread panicked")).expect("of one kind");
        }
    });
    Done { per_s: latency.len() as f64 / begun.elapsed().as_secs_f64(), latency }
}

/// What programs do that know of nothing better.
fn fdatasync(pause: Duration, time: Duration) -> Done {
    let dir = tempfile::tempdir().expect("a directory");
    let open = |_| File::create(dir.path().join("log")).expect("a file");
    measure(Load { threads: 1, pause }, time, open, |file| {
        file.write_all(&RECORD).and_then(|()| file.sync_data()).expect("a disk that works");
    })
}

fn commit(level: CommitLevel, load: Load, time: Duration) -> Result<Done, String> {
    let leader = BenchLeader::start(|config| config.min_in_sync = 1);
    let follower = ChildProcess::follower(leader.address, 2, false);
    wait_joined(&leader, 1);
    let deadline = Instant::now() + PATIENCE;
    while leader.leader.in_sync().followers.is_empty() {
        assert!(Instant::now() < deadline, "the follower is not in sync");
        std::thread::sleep(Duration::from_millis(1));
    }
    let failed = AtomicBool::new(false);
    let name = RelPath::new("log").expect("a name");
    let open = |_| leader.leader.file(&name).expect("a file");
    let done = measure(load, time, open, |file| {
        let position = file.append(&RECORD).expect("an append");
        if !leader.leader.commit_at(position, level, PATIENCE).is_committed() {
            failed.store(true, Ordering::Relaxed);
        }
    });
    drop(follower);
    let valid = !failed.load(Ordering::Relaxed) && leader.leader.evictions().is_empty();
    if valid { Ok(done) } else { Err(format!("{} threads, {level}: a commit was not confirmed", load.threads)) }
}

/// A Redis and its replica, on ports that were free a moment ago.
struct Redis {
    port: u16,
    servers: Vec<Child>,
    _dirs: Vec<tempfile::TempDir>,
}

impl Redis {
    fn start() -> Option<Self> {
        let free = || Some(TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port());
        let (port, replica) = (free()?, free()?);
        let mut this = Self { port, servers: Vec::new(), _dirs: Vec::new() };
        let of = format!("127.0.0.1 {port}");
        for (port, replica_of) in [(port, None), (replica, Some(of.as_str()))] {
            let dir = tempfile::tempdir().ok()?;
            this.servers.push(serve(port, dir.path(), replica_of)?);
            this._dirs.push(dir);
        }
        let deadline = Instant::now() + PATIENCE;
        while !Client::connect(port).is_some_and(|mut client| client.set_and_wait()) {
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(this)
    }

    fn run(&self, load: Load, time: Duration) -> Done {
        let open = |_| Client::connect(self.port).expect("Redis takes connections");
        measure(load, time, open, |client| assert!(client.set_and_wait(), "the replica has it"))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn serve(port: u16, dir: &Path, replica_of: Option<&str>) -> Option<Child> {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]);
    command.args(["--appendfsync", "always", "--repl-diskless-sync-delay", "0", "--dir"]).arg(dir);
    if let Some(of) = replica_of {
        command.args(["--replicaof", of]);
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(port: u16) -> Option<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self(BufReader::new(stream)))
    }

    /// Whether a replica has it.
    fn set_and_wait(&mut self) -> bool {
        let mut request = format!("*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n${}\r\n", RECORD.len()).into_bytes();
        request.extend_from_slice(&RECORD);
        request.extend_from_slice(b"\r\n*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$5\r\n10000\r\n");
        if self.0.get_mut().write_all(&request).is_err() {
            return false;
        }
        let mut answer = || {
            let mut line = String::new();
            self.0.read_line(&mut line).ok().map(|_| line)
        };
        answer().as_deref() == Some("+OK\r\n") && answer().as_deref() == Some(":1\r\n")
    }
}
