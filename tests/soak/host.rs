//! The program under test: a host that embeds a node with etcd as its coordinator, and writes and commits while that leads.
//!
//! This program started anew, with [`HOST`] as its first argument. Each thread of its has a log and a state beside it (`records.rs`).
//! What is acknowledged goes to a file outside the node's directory, a line a commit:
//!
//! - `ack SERIES FIRST LAST WRITER BEGAN ENDED`: these records were confirmed as durable on all by a commit that began and ended then
//! - `idle PAUSE LOG WRITER`: writes nothing while that pause lasts
//! - `slow BEGAN TOOK`: an append of more than [`SLOW`]; `longest TOOK`: the longest so far, if that is shorter
//! - `not OUTCOME`: a commit that was not confirmed
//!
//! Times are nanoseconds of the machine's monotonic clock.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use paceline::config::OnFull;
use paceline::coordinator::{Coordinator, CoordinatorError, EtcdConfig, EtcdCoordinator, EtcdEndpoint};
use paceline::leader::{CommitLevel, CommitOutcome, Refusal, ReplicatedFile, Unknown, Window};
use paceline::node::{Host, HostError, Node, NodeConfig, Role, Term};
use paceline::{AppendError, Leader, NodeId};
use parking_lot::Mutex;

use crate::records::{LOGS, Record, SEGMENT_RECORDS, SEGMENTS_KEPT, Series, records, segment, segments, state};
use crate::support;

/// The first argument of a host's process.
pub const HOST: &str = "host";
/// How long a leader that is lost stays leader.
pub const LEASE_TTL: Duration = Duration::from_secs(5);
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Appends that took longer are said one by one.
const SLOW: Duration = Duration::from_millis(20);
/// How long writers wait for followers that are slow, before each append.
const WINDOW_WAIT_MAX: Duration = Duration::from_millis(200);
/// After something failed, before it is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// What a host is started with, in the order of its arguments.
#[derive(Clone)]
pub struct Settings {
    pub id: NodeId,
    pub listen: String,
    pub etcd: String,
    pub dir: PathBuf,
    /// Where it says what is acknowledged.
    pub told: PathBuf,
    /// A number in this file: a pause.
    pub pause: PathBuf,
    pub seed: u64,
}

impl Settings {
    pub fn args(&self) -> Vec<String> {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let id = self.id.to_string();
        let (dir, told, pause) = (path(&self.dir), path(&self.told), path(&self.pause));
        vec![HOST.into(), id, self.listen.clone(), self.etcd.clone(), dir, told, pause, self.seed.to_string()]
    }

    fn queue_bytes(&self) -> u64 {
        [256 << 10, 1 << 20, 64 << 20][usize::try_from(self.seed / 2 % 3).unwrap()]
    }

    fn of(args: &[String]) -> Self {
        let [_, id, listen, etcd, dir, told, pause, seed] = args else { panic!("{args:?}") };
        Self {
            id: id.parse().unwrap(),
            listen: listen.clone(),
            etcd: etcd.clone(),
            dir: dir.into(),
            told: told.into(),
            pause: pause.into(),
            seed: seed.parse().unwrap(),
        }
    }
}

/// The process's life.
pub fn run(args: &[String]) -> i32 {
    let settings = Settings::of(args);
    env_logger::builder().filter_level(log::LevelFilter::Info).filter_module("ureq", log::LevelFilter::Warn).init();
    support::end_on_deadlock();
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, asked.clone()).unwrap();
    }
    let mut etcd = EtcdConfig::new(EtcdEndpoint::parse_list(&settings.etcd).unwrap());
    (etcd.lease_ttl, etcd.answer_timeout) = (LEASE_TTL, LEASE_TTL / 5);
    let coordinator = Arc::new(EtcdCoordinator::new(&etcd).unwrap());
    let secret = loop {
        match coordinator.secret() {
            Ok(secret) => break secret,
            Err(error @ CoordinatorError::Unavailable(_)) => log::warn!("{error}; trying again"),
            Err(error) => panic!("{error}"),
        }
        if asked.load(Ordering::Relaxed) {
            return 0;
        }
        std::thread::sleep(AGAIN);
    };
    let mut config = NodeConfig::new(&settings.dir, secret, &settings.listen, format!("tcp://{}", settings.listen));
    (config.leader.id, config.follower.id) = (Some(settings.id), Some(settings.id));
    config.leader.min_in_sync = 1;
    // What makes followers leave, and come back, often.
    config.leader.queue_bytes = settings.queue_bytes();
    config.leader.readmit_delay_max = Duration::from_secs(3);
    config.leader.write_timeout = Duration::from_secs(2);
    config.leader.ack_timeout = Duration::from_secs(3);
    config.leader.on_full = if settings.seed.is_multiple_of(2) { OnFull::Evict } else { OnFull::CatchUp };
    config.follower.keep_bytes = 4 << 20;
    config.stall_timeout = Duration::from_secs(5);
    let told = Told::open(&settings.told);
    let host = Committing { settings, told, life: Arc::default(), threads: Vec::new() };
    let node = match Node::start(config, coordinator, host) {
        Ok(node) => node,
        Err(error) => return failed(&error),
    };
    let mut role = Role::Following;
    while !asked.load(Ordering::Relaxed) {
        let now = node.wait_for_another_role(role, Duration::from_millis(100));
        if now != std::mem::replace(&mut role, now) {
            log::info!("node {} is {now}", node.id());
        }
        if now == Role::Stopped {
            break;
        }
    }
    node.stop().map_or_else(|error| failed(&error), |()| 0)
}

fn failed(error: &dyn std::fmt::Display) -> i32 {
    log::error!("{error}");
    1
}

pub fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let nanos = |value: i64| u64::try_from(value).unwrap();
    nanos(now.tv_sec) * 1_000_000_000 + nanos(now.tv_nsec)
}

/// The file outside: a line is one write, so that none is half there when the process is killed.
#[derive(Clone)]
struct Told(Arc<Mutex<File>>);

impl Told {
    fn open(path: &Path) -> Self {
        Self(Arc::new(Mutex::new(File::options().append(true).create(true).open(path).unwrap())))
    }

    fn say(&self, line: &str) {
        self.0.lock().write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// One term's.
#[derive(Default)]
struct Life {
    stop: AtomicBool,
    /// Nothing can be made durable here any more.
    failed: AtomicBool,
    longest: AtomicU64,
}

struct Committing {
    settings: Settings,
    told: Told,
    life: Arc<Life>,
    threads: Vec<JoinHandle<()>>,
}

impl Host for Committing {
    fn start(&mut self, term: &Term) -> Result<(), HostError> {
        self.life = Arc::default();
        for log in 0..LOGS {
            let mut window = Window::new(self.settings.queue_bytes() / 2);
            // All machines are one.
            window.stall_grace = Duration::from_millis(500);
            let writer = Writer {
                window,
                leader: term.leader().clone(),
                settings: self.settings.clone(),
                told: self.told.clone(),
                life: self.life.clone(),
                log,
                name: fastrand::u64(..),
            };
            self.threads.push(std::thread::Builder::new().name(format!("log-{log}")).spawn(move || writer.run())?);
        }
        Ok(())
    }

    fn check(&mut self, _: &Term) -> Result<(), HostError> {
        // Only a new leader can call anything durable.
        if self.life.failed.load(Ordering::Relaxed) {
            Err("the leader's own files cannot be synced".into())
        } else {
            Ok(())
        }
    }

    fn stop(&mut self, _: &Term) -> Result<(), HostError> {
        self.life.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().expect("a writer panicked"));
        Ok(())
    }
}

/// Writes one log and its state, for one term.
struct Writer {
    leader: Arc<Leader>,
    settings: Settings,
    told: Told,
    life: Arc<Life>,
    window: Window,
    log: u32,
    name: u64,
}

/// Where it is.
struct At<'a> {
    file: ReplicatedFile<'a>,
    next: u64,
    state: u64,
    /// The first record that is not acknowledged.
    unacked: u64,
}

#[derive(Debug)]
enum Failed {
    /// Tried again, from what is on disk.
    Passing(String),
    Over,
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Passing(error.to_string())
    }
}

impl From<AppendError> for Failed {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::ShuttingDown => Self::Over,
            error => Self::Passing(error.to_string()),
        }
    }
}

impl Writer {
    fn run(&self) {
        while !self.is_over() {
            match self.write() {
                Ok(()) | Err(Failed::Over) => return,
                Err(Failed::Passing(why)) => log::warn!("log {}: {why}", self.log),
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn is_over(&self) -> bool {
        self.life.stop.load(Ordering::Relaxed)
    }

    fn path(&self, name: &paceline::RelPath) -> PathBuf {
        self.settings.dir.join(name.as_str())
    }

    /// Goes on where the last leader was: what is torn at the end was never acknowledged.
    fn recover(&self) -> Result<At<'_>, Failed> {
        let newest = segments(&self.settings.dir, self.log)?.pop_last();
        let (number, open) = newest.unwrap_or((0, true));
        let (number, next) = if open {
            let name = segment(self.log, number, true);
            let (records, whole, length) = match records(&self.path(&name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((Vec::new(), 0, 0)),
                read => read,
            }?;
            if whole < length {
                // It may be announced, or not.
                log::info!("{name}: cut off at {whole} of {length} bytes");
                File::options().write(true).open(self.path(&name))?.set_len(whole)?;
                if self.leader.file_len(&name).is_some_and(|announced| announced > whole) {
                    self.leader.truncate(&name, whole)?;
                }
            }
            (number, number * SEGMENT_RECORDS + records.len() as u64)
        } else {
            (number + 1, (number + 1) * SEGMENT_RECORDS)
        };
        // Of the state, what is there; what is beside it was never finished.
        let state = match records(&self.path(&state(self.log))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some(read?),
        };
        let state = state.and_then(|(records, _, _)| records.first().map(|record| record.number + 1)).unwrap_or(0);
        let mut at = At { file: self.leader.file(&segment(self.log, number, true))?, next, state, unacked: next };
        if next > number * SEGMENT_RECORDS && next.is_multiple_of(SEGMENT_RECORDS) {
            self.seal(&mut at)?;
        }
        Ok(at)
    }

    fn write(&self) -> Result<(), Failed> {
        let mut at = self.recover()?;
        let mut random = fastrand::Rng::with_seed(self.name);
        while !self.is_over() {
            self.wait_pause();
            let series = Series::Log(self.log);
            let mut began = now();
            for _ in 0..if random.u32(..20) == 0 { random.u32(1..200) } else { 1 } {
                began = now();
                self.append(&mut at, series)?;
            }
            if random.u32(..10) > 0 {
                let (first, last) = (at.unacked, at.next - 1);
                // What was not confirmed now is so with what comes after it.
                if self.commit(at.file.position(), (series, first, last), began, random.bool()) {
                    at.unacked = at.next;
                }
            }
            if random.u32(..16) == 0 {
                self.replace_state(&mut at)?;
            }
            std::thread::sleep(Duration::from_micros(random.u64(1000..20_000)));
        }
        Ok(())
    }

    fn append<'a>(&'a self, at: &mut At<'a>, series: Series) -> Result<(), Failed> {
        // So that who keeps up is not evicted, who is slow soon is.
        self.leader.wait_for_window(&self.window, WINDOW_WAIT_MAX);
        let record = Record { series, number: at.next, writer: self.name }.bytes();
        let began = now();
        let appended = at.file.append(&record);
        let took = now() - began;
        if took > u64::try_from(SLOW.as_nanos()).unwrap() {
            self.told.say(&format!("slow {began} {took}"));
        } else if self.life.longest.fetch_max(took, Ordering::Relaxed) < took {
            self.told.say(&format!("longest {took}"));
        }
        appended?;
        at.next += 1;
        if at.next.is_multiple_of(SEGMENT_RECORDS) {
            self.seal(at)?;
        }
        Ok(())
    }

    /// Begins the next segment, and drops the oldest.
    fn seal<'a>(&'a self, at: &mut At<'a>) -> Result<(), Failed> {
        let number = at.next / SEGMENT_RECORDS;
        let (from, to) = (segment(self.log, number - 1, true), segment(self.log, number - 1, false));
        fs::rename(self.path(&from), self.path(&to))?;
        self.leader.rename(&from, &to)?;
        at.file = self.leader.file(&segment(self.log, number, true))?;
        let there = segments(&self.settings.dir, self.log)?;
        for (old, open) in there.range(..(number + 1).saturating_sub(SEGMENTS_KEPT)) {
            let name = segment(self.log, *old, *open);
            fs::remove_file(self.path(&name))?;
            self.leader.delete(&name)?;
        }
        Ok(())
    }

    fn replace_state(&self, at: &mut At<'_>) -> Result<(), Failed> {
        let (series, began, name) = (Series::State(self.log), now(), state(self.log));
        // A name that is never replicated.
        let new = self.settings.dir.join(format!("$state-{}", self.log));
        let mut file = File::create(&new)?;
        file.write_all(&Record { series, number: at.state, writer: self.name }.bytes())?;
        file.sync_all()?;
        fs::rename(new, self.path(&name))?;
        let position = self.leader.replace(&name)?;
        at.state += 1;
        self.commit(position, (series, at.state - 1, at.state - 1), began, false);
        Ok(())
    }

    /// What of a series is acknowledged once the position is committed. `false`: it was not.
    fn commit(
        &self,
        position: paceline::StreamPosition,
        (series, first, last): (Series, u64, u64),
        began: u64,
        later: bool,
    ) -> bool {
        let (told, name, life) = (self.told.clone(), self.name, self.life.clone());
        let say = move |outcome: CommitOutcome| {
            if outcome.is_committed() {
                let ended = now();
                told.say(&format!("ack {} {first} {last} {name} {began} {ended}", series.number()));
                return true;
            }
            let is_failure = matches!(
                outcome,
                CommitOutcome::Refused(Refusal::LocalSyncFailed) | CommitOutcome::Unknown(Unknown::LocalSyncFailed)
            );
            life.failed.fetch_or(is_failure, Ordering::Relaxed);
            told.say(&format!("not {outcome}"));
            false
        };
        if later {
            let done = move |outcome| {
                say(outcome);
            };
            self.leader.commit_then(position, CommitLevel::ALL_DURABLE, COMMIT_TIMEOUT, done);
            return true;
        }
        say(self.leader.commit(position, COMMIT_TIMEOUT))
    }

    /// While a pause lasts, and this node leads.
    fn wait_pause(&self) {
        let mut said = None;
        while let Ok(pause) = fs::read_to_string(&self.settings.pause)
            && !self.is_over()
        {
            if said.as_ref() != Some(&pause) {
                self.told.say(&format!("idle {pause} {} {}", self.log, self.name));
                said = Some(pause);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
