//! The guard: a process of its own between a node and the program it manages, so that the program ends with its node,
//! whatever becomes of that.
//!
//! ```text
//!   node ◀── socket ──▶ guard ──▶ sh -c CMD ──▶ what that starts
//! ```
//!
//! The program is ended when the node says so, when the node is gone (its end of the socket closes, also on SIGKILL), and
//! when the node's permit has run out: a node that is frozen renews none, and by then another node may lead. It is asked first
//! (SIGTERM to its process group) and killed after the grace time; at the end of the permit it is killed at once. *It* is
//! everything that descends from the guard: orphans become the guard's children (`PR_SET_CHILD_SUBREAPER`), so a program that
//! makes itself a daemon does not escape. The guard ends when all of them are reaped, and holds the data directory's lock
//! until then, so nobody works on the directory before.
//!
//! Should the guard itself be killed with SIGKILL, the kernel kills the shell or, where that became the program, as it does for
//! a plain command, the program (`PR_SET_PDEATHSIG`); then the node kills the process group. What had left both survives. The
//! kernel forgets its promise for a program that changes its user.
//!
//! # The socket
//!
//! First a byte, with a file descriptor of the lock. Then lines. From the node: `until NS`, the end of the permit on the clock
//! that goes on while the machine sleeps; and `stop`. To the node: `started PID`, the process group, and `ended HOW`, when
//! the shell has ended.
//!
//! # Threads
//!
//! The main thread decides; `orders` reads from the node, `reaper` waits for children. They end with the process.

use std::fs;
use std::io::{self, BufRead, BufReader, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, getppid, kill_process_group, pidfd_open,
    pidfd_send_signal, set_child_subreaper, set_parent_process_death_signal, wait,
};
use rustix::time::{ClockId, clock_gettime};

use crate::sys::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use crate::sys::thread;
use crate::sys::time::Instant;
use crate::thread::deadline;

/// How often what was killed is killed again, should it have started something meanwhile.
const KILL_AGAIN: Duration = Duration::from_millis(50);
/// How long the guard sleeps at most while a permit runs: its sleep does not count the time for which the machine sleeps.
const LOOK_AT_CLOCK: Duration = Duration::from_millis(250);
/// No line of the socket is longer.
const LINE_BYTES_MAX: u64 = 64;

enum Event {
    Permit(u64),
    /// An order of the node, or its end.
    Stop,
    Reaped(Pid, WaitStatus),
    AllReaped,
}

/// Nanoseconds of the clock that permits are given in.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    seconds.unwrap_or_default() * 1_000_000_000 + nanoseconds.unwrap_or_default()
}

/// The guard process's life: starts `sh -c command` through `starter`, an executable and arguments that lead to [`exec`],
/// and returns when the program and all that it started are gone. How the program ended is for the node to hear.
///
/// Its stdin is the socket to the node; stdout and stderr are the program's. The caller has SIGTERM, SIGINT and
/// SIGHUP ignored or handled: the guard has to outlive its node.
///
/// # Errors
///
/// If it was not started by a node, or the system refuses what it takes; then no program was started, or its end is the node's to see to.
pub fn run(starter: &[&str], command: &str, grace: Duration) -> io::Result<()> {
    set_child_subreaper(Some(getpid()))?;
    let node = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let _lock = receive_lock(&node)?;
    let (events, received) = unbounded();
    let orders = BufReader::new(node.try_clone()?);
    let of_thread = events.clone();
    thread::Builder::new().name("orders".into()).spawn(move || read_orders(orders, &of_thread))?;
    let Ok(Event::Permit(permit)) = received.recv() else { return Ok(()) };
    let Some((program, arguments)) = starter.split_first() else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut start = Command::new(program);
    start.arg0("paceline").args(arguments).arg(getpid().to_string()).arg(command);
    let mut child = start.stdin(Stdio::null()).process_group(0).spawn()?;
    let group = Pid::from_child(&child);
    // From here on the reaper has all children: the standard library must wait for none.
    if let Err(error) = thread::Builder::new().name("reaper".into()).spawn(move || reap(&events)) {
        let _ = kill_process_group(group, Signal::KILL);
        child.wait()?;
        return Err(error);
    }
    let mut guard = Guard { node, group, grace, permit, kill_at: None, killing: false };
    guard.tell(format_args!("started {group}"));
    guard.run(&received);
    Ok(())
}

/// Becomes `sh -c command`, to be killed when its guard is; returns only to say why it could not.
pub fn exec(guard: i32, command: &str) -> io::Error {
    if let Err(errno) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return errno.into();
    }
    // It may have gone before the kernel was asked.
    if getppid().map(Pid::as_raw_pid) != Some(guard) {
        return io::Error::other("the guard is gone");
    }
    Command::new("/bin/sh").arg("-c").arg(command).exec()
}

/// Blocks until the node has sent it, with a byte of its own.
fn receive_lock(node: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(node, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(lock) = descriptors.next()
        {
            return Ok(lock);
        }
    }
    Err(io::Error::other("no lock came from the node"))
}

fn read_orders(mut orders: BufReader<UnixStream>, events: &Sender<Event>) {
    loop {
        let mut line = String::new();
        let last = !matches!(orders.by_ref().take(LINE_BYTES_MAX).read_line(&mut line), Ok(1..));
        let event = match line.trim_end().split_once(' ') {
            Some(("until", ns)) => ns.parse().map_or(Event::Stop, Event::Permit),
            _ => Event::Stop,
        };
        if events.send(event).is_err() || last {
            return;
        }
    }
}

fn reap(events: &Sender<Event>) {
    loop {
        let event = match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => Event::Reaped(pid, status),
            Ok(None) | Err(Errno::INTR) => continue,
            Err(_) => Event::AllReaped,
        };
        let last = matches!(event, Event::AllReaped);
        if events.send(event).is_err() || last {
            return;
        }
    }
}

struct Guard {
    node: UnixStream,
    /// Of the program; the shell's own id.
    group: Pid,
    grace: Duration,
    permit: u64,
    /// Set once the program is to end.
    kill_at: Option<Instant>,
    killing: bool,
}

impl Guard {
    fn run(&mut self, events: &Receiver<Event>) {
        loop {
            let now = Instant::now();
            if self.kill_at.is_some_and(|at| now >= at) || (!self.killing && now_ns() >= self.permit) {
                kill_descendants();
                self.killing = true;
                self.kill_at = Some(now + KILL_AGAIN);
            }
            match events.recv_timeout(self.wait(now)) {
                Ok(Event::Permit(until)) => self.permit = until,
                Ok(Event::Stop) => self.end(),
                Ok(Event::Reaped(pid, status)) if pid == self.group => {
                    self.tell(format_args!("ended {}", describe(status)));
                    self.end();
                }
                Ok(Event::Reaped(..)) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Event::AllReaped) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Until something is due.
    fn wait(&self, now: Instant) -> Duration {
        let permitted = Duration::from_nanos(self.permit.saturating_sub(now_ns())).min(LOOK_AT_CLOCK);
        match self.kill_at.map(|at| at.saturating_duration_since(now)) {
            Some(wait) if self.killing => wait,
            Some(wait) => wait.min(permitted),
            None => permitted,
        }
    }

    /// Asks the program to end.
    fn end(&mut self) {
        if self.kill_at.is_none() {
            self.kill_at = Some(deadline(self.grace));
            let _ = kill_process_group(self.group, Signal::TERM);
        }
    }

    fn tell(&mut self, what: std::fmt::Arguments<'_>) {
        // A node that does not listen is gone, and that comes as an order.
        let _ = self.node.write_all(format!("{what}\n").as_bytes());
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        _ => "unknown".to_owned(),
    }
}

/// Kills all that descends from this process. A child that is started meanwhile is found the next time, as our own.
fn kill_descendants() {
    let mut parents: Vec<(Pid, Pid)> = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        if let Some((pid, parent)) = pid.and_then(|pid| Some((pid, parent_of(pid)?))) {
            parents.push((pid, parent));
        }
    }
    let mut ancestors = vec![getpid()];
    while let Some(ancestor) = ancestors.pop() {
        for (child, parent) in parents.iter().filter(|(_, parent)| *parent == ancestor) {
            ancestors.push(*child);
            // The descriptor is of the process that has this id now: is that still the one we saw?
            if let Ok(process) = pidfd_open(*child, PidfdFlags::empty())
                && parent_of(*child) == Some(*parent)
            {
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
        }
    }
}

fn parent_of(pid: Pid) -> Option<Pid> {
    Pid::from_raw(parent_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)
}

pub(crate) fn parent_in(stat: &str) -> Option<i32> {
    // The name before it may hold anything, parentheses too.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}
