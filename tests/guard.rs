//! The process between a node and its program: whatever becomes of the node, the program ends, and the directory's lock is
//! held until all of it has.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use support::processes::Stage;
use support::{PATIENCE, wait_until};

/// A guard whose node is the test.
struct Guard {
    child: Child,
    node: Option<UnixStream>,
    lines: BufReader<UnixStream>,
    lock: PathBuf,
    output: PathBuf,
    program: Pid,
}

impl Guard {
    /// Starts it, and waits until the program has printed its first line.
    fn start(stage: &Stage, command: &str, grace: Duration, permit: Duration) -> Self {
        let (node, theirs) = UnixStream::pair().unwrap();
        node.set_read_timeout(Some(PATIENCE)).unwrap();
        let output = stage.path("output");
        let mut start = Command::new(env!("CARGO_BIN_EXE_paceline"));
        start.args(["guard", command, &grace.as_millis().to_string()]).stdin(Stdio::from(OwnedFd::from(theirs)));
        let child = start.stdout(File::create(&output).unwrap()).spawn().unwrap();
        drop(start);
        let lock = stage.path("lock");
        send_lock(&node, &File::create(&lock).unwrap());
        let mut lines = BufReader::new(node.try_clone().unwrap());
        permit_until(&node, permit);
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let program = line.trim().strip_prefix("started ").and_then(|pid| Pid::from_raw(pid.parse().unwrap())).unwrap();
        let guard = Self { child, node: Some(node), lines, lock, output, program };
        wait_until("the program runs", || !guard.printed().is_empty());
        guard
    }

    fn printed(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    fn say(&self, line: &str) {
        writeln!(self.node.as_ref().unwrap(), "{line}").unwrap();
    }

    /// How the guard says the program ended.
    fn told_end(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().strip_prefix("ended ").unwrap().to_owned()
    }

    fn lock_is_free(&self) -> bool {
        File::open(&self.lock).unwrap().try_lock().is_ok()
    }

    /// Waits for its end, before which the lock must not be free.
    fn assert_ends_well(&mut self) {
        let status = loop {
            let free = self.lock_is_free();
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(!free || !exists(self.program), "the lock was free before the end");
            std::thread::park_timeout(Duration::from_millis(2));
        };
        assert!(status.success(), "{status}");
        assert!(self.lock_is_free() && !exists(self.program));
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.node.take());
        let _ = self.lines.get_ref().shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

fn send_lock(node: &UnixStream, lock: &File) {
    lock.try_lock().unwrap();
    let descriptors = [lock.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(node, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty()).unwrap();
}

fn permit_until(mut node: &UnixStream, permit: Duration) {
    let now = clock_gettime(ClockId::Boottime);
    let now = Duration::new(now.tv_sec.try_into().unwrap(), now.tv_nsec.try_into().unwrap());
    writeln!(node, "until {}", (now + permit).as_nanos()).unwrap();
}

/// Whether the process runs, and is not only waiting to be reaped.
fn exists(pid: Pid) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with('Z'))
}

/// The pids that the program printed, one a line, `count` of them.
fn printed_pids(guard: &Guard, count: usize) -> Vec<Pid> {
    wait_until("the program has started all", || guard.printed().lines().count() >= count);
    guard.printed().lines().map(|line| Pid::from_raw(line.parse().unwrap()).unwrap()).collect()
}

/// A shell that does not end when asked, one of its children, and one in a session of its own whose parent is gone.
const STUBBORN: &str = "trap '' TERM; echo $$; (echo $(exec sh -c 'echo $PPID'); while :; do sleep 1; done) & \
                        (setsid sh -c 'echo $$; while :; do sleep 1; done' &); while :; do sleep 1; done";

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn a_program_that_is_told_to_stop_is_asked_first_and_its_end_is_told() {
    let stage = Stage::new();
    let command = "trap 'echo asked; exit 7' TERM; echo runs; while :; do sleep 0.01; done";
    let mut guard = Guard::start(&stage, command, LONG, LONG);
    assert!(!guard.lock_is_free());
    guard.say("stop");
    assert_eq!(guard.told_end(), "exit code 7");
    guard.assert_ends_well();
    assert_eq!(guard.printed(), "runs\nasked\n");
}

#[test]
fn a_program_that_ends_by_itself_takes_along_what_it_started() {
    let stage = Stage::new();
    let mut guard = Guard::start(&stage, "sleep 1000 & echo $!; kill -ABRT $$", LONG, LONG);
    let left = printed_pids(&guard, 1)[0];
    assert_eq!(guard.told_end(), "signal 6");
    guard.assert_ends_well();
    assert!(!exists(left));
}

#[test]
fn what_does_not_end_when_asked_is_killed_after_the_grace_time_daemons_included() {
    let stage = Stage::new();
    let mut guard = Guard::start(&stage, STUBBORN, Duration::from_millis(300), LONG);
    let pids = printed_pids(&guard, 3);
    guard.say("stop");
    assert_eq!(guard.told_end(), "signal 9");
    guard.assert_ends_well();
    assert!(pids.iter().all(|pid| !exists(*pid)));
}

#[test]
fn the_program_ends_with_its_node() {
    let stage = Stage::new();
    let mut guard = Guard::start(&stage, STUBBORN, Duration::from_millis(300), LONG);
    let pids = printed_pids(&guard, 3);
    // As the kernel does for a process that is killed.
    drop(guard.node.take());
    guard.lines.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
    guard.assert_ends_well();
    assert!(pids.iter().all(|pid| !exists(*pid)));
}

#[test]
fn the_program_is_killed_at_once_when_the_permit_runs_out_and_not_before() {
    let stage = Stage::new();
    let mut guard = Guard::start(&stage, STUBBORN, LONG, Duration::from_secs(30));
    let pids = printed_pids(&guard, 3);
    permit_until(guard.node.as_ref().unwrap(), LONG);
    assert!(guard.child.try_wait().unwrap().is_none() && exists(guard.program));
    permit_until(guard.node.as_ref().unwrap(), Duration::ZERO);
    assert_eq!(guard.told_end(), "signal 9");
    guard.assert_ends_well();
    assert!(pids.iter().all(|pid| !exists(*pid)));
}

#[test]
fn a_permit_that_runs_out_cuts_the_grace_time_short() {
    let stage = Stage::new();
    let mut guard = Guard::start(&stage, STUBBORN, LONG, LONG);
    printed_pids(&guard, 3);
    guard.say("stop");
    permit_until(guard.node.as_ref().unwrap(), Duration::from_millis(100));
    assert_eq!(guard.told_end(), "signal 9");
    guard.assert_ends_well();
}

#[test]
fn a_signal_does_not_end_the_guard_and_its_own_death_ends_the_program() {
    let stage = Stage::new();
    let mut guard = Guard::start(&stage, "echo runs; exec sleep 1000", LONG, LONG);
    let process = Pid::from_child(&guard.child);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(process, signal).unwrap();
    }
    assert!(guard.child.try_wait().unwrap().is_none() && exists(guard.program));
    kill_process(process, Signal::KILL).unwrap();
    guard.child.wait().unwrap();
    wait_until("the kernel kills the program", || !exists(guard.program));
}

#[test]
fn a_guard_that_no_node_started_starts_nothing() {
    let stage = Stage::new();
    let made = stage.path("made");
    let mut start = Command::new(env!("CARGO_BIN_EXE_paceline"));
    start.args(["guard", &format!("touch {}", made.display()), "1000"]).stdin(Stdio::null());
    let output = start.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with("paceline: error: the guard of the program: ") && !made.exists(), "{error}");
}
