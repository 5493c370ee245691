//! What it costs to replicate a directory that other programs write, by kind of writer.
//!
//! A real `paceline leader` watches the directory, one `paceline follow` has a copy. Each writer writes for some seconds, with the pauses that such programs make; then the copy is
//! waited for, and compared.
//!
//! - *amplification*: bytes that the follower wrote by system calls (`wchar` of `/proc/PID/io`) over those that the writer wrote. What writers in the bench write is counted; that of SQLite and
//!   etcd is their own `wchar`.
//! - *latency*: from the end of a record's `write` to when the copy has its length, of a log with a record of 100 B each 2 ms; what the look at the copy takes is in it.
//! - *CPU*: time on a core, of all threads of the leader and of the follower, while the writer wrote and until the copy was equal; for each MiB that was written.
//!
//! Medians over the rounds, with the lowest and highest. SQLite and etcd are left out where they are not installed, which is said.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people to read"
)]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::processes::Process;
use common::table::{Table, nanos, ratio};
use common::{Options, PATIENCE, machine, median};
use paceline::RelPath;
use paceline::verify::compare;

const SECRET: &str = "the benches' secret";
const PAGE: usize = 4096;

/// How much each writer does, as the options say.
#[derive(Clone, Copy)]
struct Much {
    mib: usize,
}

/// A writer: what it is called, and what it does to a directory. It returns how many bytes it wrote; `None`: it is not installed.
type Writer = (&'static str, fn(&Path, Much) -> Option<u64>);

const WRITERS: [Writer; 7] = [
    ("log", log),
    ("preallocated log", preallocated),
    ("pages, at random", pages),
    ("pages, and growth", pages_that_grow),
    ("SQLite, WAL", |dir, much| sqlite(dir, much, "wal")),
    ("SQLite, rollback", |dir, much| sqlite(dir, much, "delete")),
    ("etcd", etcd),
];

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::fill(&mut bytes);
    bytes
}

fn pause() {
    std::thread::sleep(Duration::from_millis(1));
}

/// 64 KiB at a time, at some 60 MB/s.
fn log(dir: &Path, much: Much) -> Option<u64> {
    let mut file = File::options().append(true).create(true).open(dir.join("log")).ok()?;
    let record = noise(64 << 10);
    for _ in 0..much.mib * 16 {
        file.write_all(&record).ok()?;
        pause();
    }
    Some((much.mib * 16 * record.len()) as u64)
}

fn preallocated(dir: &Path, much: Much) -> Option<u64> {
    let file = File::options().write(true).create(true).truncate(false).open(dir.join("preallocated")).ok()?;
    file.set_len(64 << 20).ok()?;
    let (writes, mut at) = (much.mib * 256 / 4, 0);
    for _ in 0..writes {
        file.write_all_at(&noise(PAGE), at).ok()?;
        at += PAGE as u64;
        pause();
    }
    Some((writes * PAGE) as u64)
}

fn pages(dir: &Path, much: Much) -> Option<u64> {
    let file = File::options().write(true).open(dir.join("pages")).ok()?;
    for _ in 0..much.mib * 16 {
        file.write_all_at(&noise(PAGE), fastrand::u64(..16_384) * PAGE as u64).ok()?;
        pause();
    }
    Some((much.mib * 16 * PAGE) as u64)
}

fn pages_that_grow(dir: &Path, much: Much) -> Option<u64> {
    let file = File::options().write(true).create(true).truncate(false).open(dir.join("grows")).ok()?;
    let mut len = file.metadata().ok()?.len() / PAGE as u64;
    for times in 0..much.mib * 16 {
        let page = if times % 4 == 0 { len } else { fastrand::u64(..=len) };
        file.write_all_at(&noise(PAGE), page * PAGE as u64).ok()?;
        len = len.max(page + 1);
        pause();
    }
    Some((much.mib * 16 * PAGE) as u64)
}

/// Transactions of 20 rows, by its shell.
fn sqlite(dir: &Path, much: Much, journal: &str) -> Option<u64> {
    let installed = Command::new("sqlite3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !installed {
        return None;
    }
    let mut shell = Process::start(Command::new("sqlite3").arg(dir.join(format!("{journal}.db"))));
    let until = Instant::now() + PATIENCE;
    shell.tell(&format!(
        "PRAGMA journal_mode = {journal}; CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, text);"
    ));
    for transaction in 0..much.mib * 4 {
        shell.tell(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20) INSERT INTO t (text) SELECT hex(randomblob(50)) FROM n; \
             SELECT 'done {transaction}';"
        ));
        shell.wait_for(&format!("done {transaction}"), until).ok()?;
        std::thread::sleep(Duration::from_millis(5));
    }
    shell.tell("PRAGMA wal_checkpoint; SELECT 'all done';");
    shell.wait_for("all done", until).ok()?;
    Some(shell.usage().written)
}

/// Puts of 1 KiB, one after the other.
fn etcd(dir: &Path, much: Much) -> Option<u64> {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).ok();
    let (client, peer) = (format!("http://{}", free()?), format!("http://{}", free()?));
    let mut command = Command::new("etcd");
    command.args(["--name", "bench", "--data-dir", dir.join("etcd").to_str()?]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("bench={peer}"), "--logger", "zap"]);
    Command::new("etcd").arg("--version").output().ok()?;
    let mut server = Process::start(&mut command);
    server.wait_for("serving client traffic insecurely", Instant::now() + PATIENCE).ok()?;
    let address = client.strip_prefix("http://")?;
    for put in 0..much.mib * 4 {
        use std::io::Read;
        let value: String = (0..1366).map(|_| fastrand::alphanumeric()).collect();
        let body = format!(r#"{{"key": "{:08}", "value": "{}"}}"#, 10_000_000 + put % 1000, &value[..1364]);
        let mut stream = std::net::TcpStream::connect(address).ok()?;
        write!(stream, "POST /v3/kv/put HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).ok()?;
        stream.read_to_string(&mut String::new()).ok()?;
        pause();
    }
    let written = server.usage().written;
    server.terminate();
    Some(written)
}

/// Leader and follower of a directory.
struct Scene {
    data: tempfile::TempDir,
    copy: tempfile::TempDir,
    leader: Process,
    follower: Process,
}

impl Scene {
    fn begin() -> Self {
        let folder = || tempfile::tempdir().expect("a temporary directory");
        let (data, copy) = (folder(), folder());
        // For who writes to pages of a file that is there.
        fs::write(data.path().join("pages"), noise(64 << 20)).expect("written");
        let mut leader =
            Process::start(&mut paceline(&["leader", "--listen", "127.0.0.1:0", "--data-dir", path(data.path())]));
        let until = Instant::now() + PATIENCE;
        let (_, line) = leader.wait_for("listening on", until).expect("it listens");
        let address = line.rsplit(' ').next().expect("an address").to_owned();
        let mut follower = Process::start(&mut paceline(&["follow", &address, "--data-dir", path(copy.path())]));
        follower.wait_for("in sync, following the stream", until).expect("it follows");
        Self { data, copy, leader, follower }
    }

    fn wait_equal(&self) {
        let until = Instant::now() + PATIENCE;
        let differs = || {
            let mut first = None;
            let mut note = |path: &RelPath, how| first = first.take().or_else(|| Some(format!("{path}: {how:?}")));
            compare(self.data.path(), self.copy.path(), &mut note, &mut |_| true).expect("both can be read");
            first
        };
        while let Some(difference) = differs() {
            assert!(Instant::now() < until, "the copy is not equal: {difference}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn paceline(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paceline"));
    command.args(args).env("PACELINE_SECRET", SECRET).env("RUST_LOG", "info");
    command
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Lowest, median and highest.
fn spread(figures: &mut [f64]) -> [f64; 3] {
    figures.sort_by(f64::total_cmp);
    [figures[0], median(figures.iter().copied()), figures[figures.len() - 1]]
}

fn main() {
    let options = Options::parse(3, 0);
    let much = Much { mib: options.mib.unwrap_or(if options.quick { 1 } else { 32 }) };
    println!("{}", machine());
    let header = ["writer", "written", "amplification", "lowest", "highest", "leader, ms/MiB", "follower, ms/MiB"];
    let mut table = Table::new(&header);
    for (name, write) in WRITERS {
        let (mut amplifications, mut cpus, mut followers_cpus, mut mib) = (Vec::new(), Vec::new(), Vec::new(), 0.0);
        for _ in 0..options.rounds {
            let scene = Scene::begin();
            let before = (scene.leader.usage(), scene.follower.usage());
            let Some(written) = write(scene.data.path(), much) else { break };
            scene.wait_equal();
            let (leader, follower) = (scene.leader.usage().since(before.0), scene.follower.usage());
            mib = written as f64 / (1 << 20) as f64;
            amplifications.push((follower.written - before.1.written) as f64 / written as f64);
            cpus.push(leader.cpu.as_secs_f64() * 1e3 / mib);
            followers_cpus.push(follower.since(before.1).cpu.as_secs_f64() * 1e3 / mib);
        }
        if amplifications.is_empty() {
            println!("{name}: not installed, or it did not do what it was asked");
            continue;
        }
        let [low, middle, high] = spread(&mut amplifications);
        let [_, cpu, _] = spread(&mut cpus);
        let [_, followers_cpu, _] = spread(&mut followers_cpus);
        let cells = [format!("{mib:.1} MiB"), ratio(middle), ratio(low), ratio(high), ratio(cpu), ratio(followers_cpu)];
        table.row([vec![name.to_owned()], cells.to_vec()].concat());
    }
    table.print();
    latency(if options.quick { 100 } else { 2000 });
}

/// How long records of a log take to be in the copy.
fn latency(records: usize) {
    let scene = Scene::begin();
    let mut file = File::create(scene.data.path().join("log")).expect("a file");
    let copy = scene.copy.path().join("log");
    let mut took = Vec::new();
    for record in 1..=records {
        file.write_all(&[b'x'; 100]).expect("written");
        let written = Instant::now();
        while fs::metadata(&copy).map_or(0, |meta| meta.len()) < record as u64 * 100 {
            assert!(written.elapsed() < PATIENCE, "a record did not come");
            std::hint::spin_loop();
        }
        took.push(written.elapsed().as_nanos() as f64);
        std::thread::sleep(Duration::from_millis(2));
    }
    took.sort_by(f64::total_cmp);
    let at = |part: f64| nanos(took[((took.len() - 1) as f64 * part) as usize]);
    println!("\nlog, {records} records: p50 {}, p99 {}, longest {}", at(0.5), at(0.99), at(1.0));
}
