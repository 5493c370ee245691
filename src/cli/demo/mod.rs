//! `paceline demo`: a leader and three followers as real processes, one of which is stopped, evicted, resumed and rejoins.
//!
//! The main thread is the script. It reads what the leader process says ([`link`]) from a channel that a thread named
//! `leader-output` fills, and signals followers. Processes and directory end with their values ([`processes`]).

mod compare;
mod link;
mod load;
mod processes;
mod show;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::ChildStdout;
use std::time::{Duration, Instant};

use clap::Args;
use crossbeam_channel::{Receiver, bounded, select};
use rustix::process::Signal;

use self::compare::compare;
use self::link::{FollowerNow, Latency, Message, Order};
pub(crate) use self::load::{Options as LeaderOptions, run as run_leader};
pub(crate) use self::processes::end_with_parent;
use self::processes::{Process, TemporaryDir};
use super::units::show_bytes;
use super::{Failure, say, signals};

const FOLLOWERS: [&str; 3] = ["a", "b", "c"];
/// The one that is stopped.
const VICTIM: &str = "b";
const HEALTHY: Duration = Duration::from_secs(6);
const AFTER_EVICTION: Duration = Duration::from_secs(3);
const AFTER_REJOIN: Duration = Duration::from_secs(1);
/// How long rejoining is waited for while the leader is saturated. On a machine with few processors a joiner may not keep
/// up with that; then the writers slow down.
const REJOIN_UNDER_LOAD_MAX: Duration = Duration::from_secs(4);
/// How long after that, before the writers end.
const REJOIN_SLOW_MAX: Duration = Duration::from_secs(6);
/// For every step that should take a moment.
const STEP_MAX: Duration = Duration::from_secs(30);

#[derive(Args)]
pub(crate) struct Options {
    /// Where to make the temporary directory; it takes up to 800 MiB [default: the system's]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// What the leader process has said so far.
#[derive(Default)]
struct Told {
    followers: Vec<FollowerNow>,
    phases: Vec<(String, u64, Duration, Latency)>,
    /// Id and reason.
    evictions: Vec<(String, String)>,
    bytes: u64,
    seconds: u64,
    /// Whether the writing has begun.
    measuring: bool,
}

impl Told {
    fn follower(&self, id: &str) -> Option<&FollowerNow> {
        self.followers.iter().find(|follower| follower.id == id)
    }

    fn all(&self, is: impl Fn(&FollowerNow) -> bool) -> bool {
        FOLLOWERS.iter().all(|id| self.follower(id).is_some_and(&is))
    }
}

struct Demo {
    // In the order they are dropped: processes first, then their directory.
    followers: Vec<Process>,
    leader: Process,
    messages: Receiver<Message>,
    signals: Receiver<i32>,
    told: Told,
    dir: TemporaryDir,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let signals = signals()?;
    let dir = TemporaryDir::new(options.dir.as_deref().unwrap_or(&std::env::temp_dir()))?;
    let mut demo = Demo::start(dir, signals)?;
    demo.until_healthy()?;
    demo.order(Order::Healthy)?;
    demo.told.measuring = true;
    let started = Instant::now();
    demo.watch(HEALTHY, |_| false)?;
    let evicted = demo.stop_a_follower()?;
    let rejoined = demo.resume_it()?;
    demo.drain(started)?;
    demo.end()?;
    demo.conclude(&evicted, &rejoined)
}

impl Demo {
    fn start(dir: TemporaryDir, signals: Receiver<i32>) -> Result<Self, Failure> {
        let secret = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let data = dir.path().join("leader");
        std::fs::create_dir(&data).map_err(|error| Failure::runtime(format!("make {}: {error}", data.display())))?;
        let arguments = ["demo-leader", "--id", "leader", "--data-dir", &data.to_string_lossy()];
        let mut leader = Process::start(&arguments, &secret, dir.path().join("leader.log"))?;
        let stdout = leader.take_stdout().ok_or_else(|| leader.failed("has no stdout"))?;
        let messages = read_messages(stdout)?;
        let told = Told::default();
        let mut demo = Self { followers: Vec::new(), leader, messages, signals, told, dir };
        let address = match demo.next_message(STEP_MAX)? {
            Some(Message::Listening(address)) => address.to_string(),
            _ => return Err(demo.leader.failed("does not listen")),
        };
        for id in FOLLOWERS {
            let (data, log) = (demo.data_dir(id), demo.dir.path().join(format!("follower-{id}.log")));
            let data = data.to_string_lossy();
            let arguments = ["follow", &address, "--id", id, "--data-dir", &data, "--end-with-parent"];
            demo.followers.push(Process::start(&arguments, &secret, log)?);
        }
        say(&format!("1 leader at {address} with 4 writing threads, 3 followers, in {}", demo.dir.path().display()));
        Ok(demo)
    }

    fn data_dir(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("follower-{id}"))
    }

    // --- the script ---

    fn until_healthy(&mut self) -> Result<(), Failure> {
        if !self.watch(STEP_MAX, |told| told.all(FollowerNow::in_sync))? {
            return Err(Failure::runtime("not all followers were in sync within 30 s; nothing was measured"));
        }
        say("latencies are those of Leader::append, of 1 KiB records, as the writing threads see them\n");
        show::header(&FOLLOWERS);
        Ok(())
    }

    /// Returns how its eviction went.
    fn stop_a_follower(&mut self) -> Result<String, Failure> {
        self.victim().signal(Signal::STOP)?;
        self.order(Order::Stopped)?;
        let stopped = Instant::now();
        show::remark(&format!("follower {VICTIM} is stopped (SIGSTOP): it reads nothing any more"));
        let before = self.told.evictions.len();
        if !self.watch(STEP_MAX, |told| told.evictions[before..].iter().any(|(id, _)| id == VICTIM))? {
            return Err(Failure::runtime(format!("stopped follower {VICTIM} was not evicted within 30 s")));
        }
        let after = stopped.elapsed();
        self.watch(AFTER_EVICTION, |_| false)?;
        let reason = self.told.evictions[before..].iter().find(|(id, _)| id == VICTIM);
        let reason = reason.map_or("", |(_, reason)| reason);
        Ok(format!("{:.1} s after it was stopped, for: {reason}", after.as_secs_f64()))
    }

    /// Returns how its rejoining went.
    fn resume_it(&mut self) -> Result<String, Failure> {
        self.victim().signal(Signal::CONT)?;
        self.order(Order::Resumed)?;
        let resumed = Instant::now();
        show::remark(&format!("follower {VICTIM} is resumed (SIGCONT): it reconnects and gets what it missed"));
        let in_sync = |told: &Told| told.follower(VICTIM).is_some_and(FollowerNow::in_sync);
        let mut load = "full load";
        let mut rejoined = self.watch(REJOIN_UNDER_LOAD_MAX, in_sync)?;
        if !rejoined {
            show::remark("too few processors to catch up with the saturated leader: the writers slow down");
            self.order(Order::Slow)?;
            load = "less load: not at full load within 4 s";
            rejoined = self.watch(REJOIN_SLOW_MAX, in_sync)?;
        }
        let mut after = resumed.elapsed();
        if rejoined {
            show::remark(&format!("follower {VICTIM} is in sync again"));
            self.watch(AFTER_REJOIN, |_| false)?;
        }
        self.order(Order::Cease)?;
        if !rejoined {
            load = "no load: not before the writing ended";
            if !self.watch(STEP_MAX, in_sync)? {
                return Err(Failure::runtime(format!("follower {VICTIM} did not rejoin within 30 s without load")));
            }
            after = resumed.elapsed();
        }
        Ok(format!("in sync {:.1} s after it was resumed, under {load}", after.as_secs_f64()))
    }

    fn drain(&mut self, started: Instant) -> Result<(), Failure> {
        show::remark("the writing has ended; followers acknowledge the rest");
        let ceased = Instant::now();
        if !self.watch(STEP_MAX, |told| told.all(|follower| follower.drained))? {
            return Err(Failure::runtime("not all followers had acknowledged everything within 30 s"));
        }
        let (drained, total) = (ceased.elapsed(), started.elapsed());
        show::remark(&format!("all have after {:.1} s; {:.0} s in all", drained.as_secs_f64(), total.as_secs_f64()));
        Ok(())
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.order(Order::Quit)?;
        self.leader.wait(STEP_MAX)?;
        // What it said last is still in the channel.
        while let Ok(message) = self.messages.recv() {
            self.take_note(message);
        }
        for follower in &mut self.followers {
            follower.signal(Signal::TERM)?;
            follower.wait(STEP_MAX)?;
        }
        Ok(())
    }

    fn conclude(&self, evicted: &str, rejoined: &str) -> Result<(), Failure> {
        say(&format!("\n  {:<34}{:>9} {:>9} {:>9} {:>12}", "append", "p50", "p99.9", "max", "written"));
        for (name, bytes, time, latency) in &self.told.phases {
            let what = match Order::parse(name) {
                Some(Order::Healthy) => "all followers healthy".to_owned(),
                Some(Order::Stopped) => format!("follower {VICTIM} stopped"),
                Some(Order::Slow) => format!("follower {VICTIM} rejoining, slow writers"),
                _ => format!("follower {VICTIM} rejoining"),
            };
            show::phase(&what, *bytes, *time, latency);
        }
        say(&format!("\n  evicted     follower {VICTIM}, {evicted}"));
        say(&format!("  rejoined    follower {VICTIM}, {rejoined}"));
        say(&format!("  replicated  {} to each healthy follower", show_bytes(self.told.bytes)));
        let mut wrong = Vec::new();
        for id in FOLLOWERS {
            match compare(&self.dir.path().join("leader"), &self.data_dir(id)) {
                Ok(Ok(equal)) => {
                    let bytes = show_bytes(equal.bytes);
                    say(&format!("  compared    follower {id}: {} files, {bytes}, byte for byte equal", equal.files));
                }
                Ok(Err(difference)) => wrong.push(format!("the copy of follower {id} is not equal: {difference}")),
                Err(error) => wrong.push(format!("the copy of follower {id} cannot be compared: {error}")),
            }
        }
        let healthy_evicted = self.told.evictions.iter().filter(|(id, reason)| id != VICTIM && reason != "shutdown");
        wrong.extend(healthy_evicted.map(|(id, reason)| format!("healthy follower {id} was evicted: {reason}")));
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(Failure::runtime(wrong.join("; "))),
        }
    }

    // --- the leader process ---

    fn victim(&self) -> &Process {
        let at = FOLLOWERS.iter().position(|id| *id == VICTIM).unwrap_or(0);
        &self.followers[at]
    }

    fn order(&mut self, order: Order) -> Result<(), Failure> {
        self.leader.order(order)
    }

    /// Shows what happens until `done`, or until `time` has passed; returns whether it was done.
    fn watch(&mut self, time: Duration, done: impl Fn(&Told) -> bool) -> Result<bool, Failure> {
        let deadline = Instant::now() + time;
        loop {
            if done(&self.told) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            if let Some(message) = self.next_message(left)? {
                self.take_note(message);
            }
        }
    }

    /// `None` after `timeout`.
    fn next_message(&self, timeout: Duration) -> Result<Option<Message>, Failure> {
        select! {
            recv(self.messages) -> message => match message {
                Ok(message) => Ok(Some(message)),
                Err(_) => Err(self.leader.failed("has ended")),
            },
            recv(self.signals) -> signal => match signal {
                Ok(_) => Err(Failure::runtime("interrupted; all processes were ended, all files removed")),
                Err(_) => Ok(None),
            },
            default(timeout) => Ok(None),
        }
    }

    fn take_note(&mut self, message: Message) {
        match message {
            Message::Listening(_) => {}
            Message::Followers(followers) => self.told.followers = followers,
            Message::Second { .. } if !self.told.measuring => {}
            Message::Second { bytes, latency } => {
                self.told.seconds += 1;
                let time = Duration::from_secs(self.told.seconds);
                show::row(time, bytes, &latency, &FOLLOWERS, &self.told.followers);
            }
            Message::Evicted { id, reason, lag_bytes, queued_bytes } => {
                if reason != "shutdown" {
                    let (lag, queued) = (show_bytes(lag_bytes), show_bytes(queued_bytes));
                    show::remark(&format!("follower {id} is evicted: {reason} (lag {lag}, queue {queued})"));
                }
                self.told.evictions.push((id, reason));
            }
            Message::Phase { name, bytes, time, latency } => {
                self.told.bytes += bytes;
                self.told.phases.push((name, bytes, time, latency));
            }
        }
    }
}

/// What the leader process says, until it ends.
fn read_messages(stdout: ChildStdout) -> Result<Receiver<Message>, Failure> {
    let (tx, rx) = bounded(1024);
    let read = move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(message) = Message::parse(&line)
                && tx.send(message).is_err()
            {
                return;
            }
        }
    };
    let spawned = std::thread::Builder::new().name("leader-output".into()).spawn(read);
    spawned.map(|_| rx).map_err(|error| Failure::runtime(format!("cannot start a thread: {error}")))
}
