//! The processes of a history: this program started anew, which leads or follows until it is told to end, or is killed.
//!
//! What they are told, and answer, is a line each.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use paceline::follower::State;
use paceline::leader::FollowerState;
use paceline::{Follower, FollowerConfig, Leader, LeaderConfig, OnFull};

use crate::host::Op;
use crate::support::{self, PATIENCE, secret};

/// The first arguments of such processes.
pub const LEAD: &str = "lead";
pub const FOLLOW: &str = "follow";
/// A host has so many threads, with files of their own.
pub const LANES: usize = 2;
/// Queues are so small where followers are demoted.
const SMALL_QUEUE: u64 = 256 << 10;
/// How long followers may take for what was announced when a leader ends.
const DRAIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A process, as seen from outside.
pub struct Machine {
    child: Child,
    told: ChildStdin,
    answers: Receiver<String>,
    log: PathBuf,
}

impl Machine {
    fn start(args: &[&str], log: &Path) -> Self {
        let to = File::options().append(true).create(true).open(log).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(to)
            .spawn()
            .unwrap();
        let (told, answered) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let (send, answers) = channel();
        std::thread::spawn(move || answered.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, told, answers, log: log.to_owned() }
    }

    /// One that leads a directory, and where it listens.
    pub fn lead(dir: &Path, demotes: bool, log: &Path) -> Result<(Self, SocketAddr), String> {
        let on_full = if demotes { "demote" } else { "evict" };
        let mut machine = Self::start(&[LEAD, dir.to_str().unwrap(), on_full], log);
        let line = machine.answer()?;
        let address = line.strip_prefix("listening ").ok_or(line.clone())?.parse().unwrap();
        Ok((machine, address))
    }

    pub fn follow(dir: &Path, leader: SocketAddr, log: &Path) -> Result<Self, String> {
        let mut machine = Self::start(&[FOLLOW, dir.to_str().unwrap(), &leader.to_string()], log);
        let line = machine.answer()?;
        if line == "follows" { Ok(machine) } else { Err(line) }
    }

    /// One that is gone does not hear it.
    pub fn tell(&mut self, line: &str) {
        let _ = self.told.write_all(format!("{line}\n").as_bytes());
    }

    /// The next line; an error if the process ends, or says nothing for too long.
    pub fn answer(&mut self) -> Result<String, String> {
        match self.answers.recv_timeout(PATIENCE * 2) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => Err(format!("no answer; see {}", self.log.display())),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().unwrap();
                Err(format!("it ended by itself, {status}; see {}", self.log.display()))
            }
        }
    }

    pub fn ask(&mut self, line: &str) -> Result<String, String> {
        self.tell(line);
        self.answer()
    }

    /// Kills it, and returns what it had still said.
    pub fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.answers.recv().ok()).collect()
    }

    /// Lets it end by itself.
    pub fn stop(mut self) -> Result<(), String> {
        let line = self.ask("stop")?;
        let status = self.child.wait().unwrap();
        if line == "stopped" && status.success() { Ok(()) } else { Err(format!("{line}, {status}")) }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Such a process' life.
pub fn run(args: &[String]) -> ! {
    env_logger::builder().filter_level(log::LevelFilter::Debug).init();
    support::end_on_deadlock();
    match args {
        [what, dir, on_full] if what == LEAD => lead(Path::new(dir), on_full == "demote"),
        [what, dir, leader] if what == FOLLOW => follow(Path::new(dir), leader),
        _ => panic!("{args:?}"),
    }
    std::process::exit(0)
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody hears it any more if that fails.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn orders() -> impl Iterator<Item = String> {
    std::io::stdin().lines().map_while(Result::ok)
}

fn lead(dir: &Path, demotes: bool) {
    let mut config = LeaderConfig::new(dir, secret());
    if demotes {
        (config.on_full, config.queue_bytes, config.lag_bytes) = (OnFull::CatchUp, SMALL_QUEUE, Some(2 * SMALL_QUEUE));
    }
    (config.write_timeout, config.ack_timeout) = (PATIENCE, PATIENCE);
    (config.readmit_delay_min, config.readmit_delay_max) = (Duration::ZERO, Duration::ZERO);
    // Histories may delete most of what there is.
    (config.accept_missing, config.min_in_sync) = (true, 1);
    let leader = match Leader::open(config) {
        Ok(leader) => leader,
        Err(error) => return say(&format!("it does not lead: {error}")),
    };
    say(&format!("listening {}", leader.listen("127.0.0.1:0").unwrap()));
    std::thread::scope(|scope| {
        let lanes = [(); LANES].map(|()| channel::<Op>());
        let (lanes, ops): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
        for (lane, ops) in ops.into_iter().enumerate() {
            let leader = &leader;
            scope.spawn(move || {
                for op in ops {
                    let done = op.run(leader, dir).unwrap_or_else(|error| format!("failed {error}").leak());
                    say(&format!("{lane} {done}"));
                }
            });
        }
        for order in orders() {
            match order.split_once(' ') {
                Some((lane, op)) => lanes[lane.parse::<usize>().unwrap()].send(Op::parse(op)).unwrap(),
                None if order == "rest" => say(&rest(&leader)),
                None if order == "position" => say(&leader.position().to_string()),
                None if order == "stop" => {
                    drop(lanes);
                    let left = leader.shutdown(DRAIN).threads_left;
                    say(&if left == 0 { "stopped".to_owned() } else { format!("{left} threads are left") });
                    return;
                }
                None => panic!("{order}"),
            }
        }
    });
}

/// Waits until the one follower there is has everything.
fn rest(leader: &Leader) -> String {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let (end, followers) = (leader.position(), leader.followers());
        if let [follower] = &followers[..]
            && follower.state == FollowerState::InSync
            && follower.acknowledged >= Some(end)
        {
            return format!("rest {end} {}", follower.demotions);
        }
        if std::time::Instant::now() > deadline {
            return format!("no rest at {end}: {followers:?}, let go {:?}", leader.evictions());
        }
        std::thread::park_timeout(LOOK_EVERY);
    }
}

fn follow(dir: &Path, leader: &str) {
    let mut config = FollowerConfig::new(leader, dir, secret());
    (config.retry_delay_min, config.retry_delay_max) = (Duration::from_millis(4), Duration::from_millis(30));
    let follower = match Follower::start(config) {
        Ok(follower) => follower,
        Err(error) => return say(&format!("it does not follow: {error}")),
    };
    say("follows");
    for order in orders() {
        match &*order {
            "apart" => say(&apart(&follower)),
            "stop" => {
                follower.stop();
                return say("stopped");
            }
            _ => panic!("{order}"),
        }
    }
}

/// Waits until it is connected to nobody, with nothing left to apply.
fn apart(follower: &Follower) -> String {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let status = follower.status();
        if status.state == State::Connecting {
            return "apart".to_owned();
        }
        if std::time::Instant::now() > deadline {
            return format!("not apart: {status:?}");
        }
        std::thread::park_timeout(LOOK_EVERY);
    }
}
