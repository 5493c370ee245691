//! The managed program, as its node sees it: started, permitted to go on, and stopped, through its [`guard`].
//!
//! One thread, `program`, reads what the guard says, and reaps it. It ends with the guard. Dropping a [`Program`] closes the
//! socket, upon which the guard ends the program by itself; [`Program::stop`] waits for that.

pub mod guard;

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpgid};

use crate::datadir::DirLock;
use crate::error::Error;
use crate::sys::channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};
use crate::sys::thread;
use crate::sys::time::Instant;
use crate::thread::{Group, deadline};

/// Permits that end within so little of each other are one.
const SAME: Duration = Duration::from_millis(20);
/// How often a process group whose guard was killed is looked at, until it is gone.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A program that runs where the node leads.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProgramConfig {
    /// Run by `sh -c`. It stays in the foreground: when the shell ends, the program has.
    pub command: String,
    /// What runs [`guard::run`] with the command and the grace time in milliseconds as its last two arguments.
    pub guard: Vec<OsString>,
    /// How long the program may take to end after SIGTERM, before SIGKILL. Defaults to 10 s.
    pub stop_grace: Duration,
}

impl ProgramConfig {
    /// The defaults, for this command and guard.
    pub fn new(command: impl Into<String>, guard: Vec<OsString>) -> Self {
        Self { command: command.into(), guard, stop_grace: Duration::from_secs(10) }
    }
}

/// A program that was started, and what it started itself.
pub(super) struct Program {
    control: UnixStream,
    events: Receiver<Event>,
    ended: Option<String>,
    gone: bool,
    permit: Option<Instant>,
    /// Its thread is left alone: it ends with the guard.
    _thread: Group,
}

enum Event {
    /// How the program itself ended.
    Ended(String),
    /// All that it started has ended, and is reaped.
    Gone,
}

impl Program {
    /// Starts it, with the permit to go on until then. The guard holds the lock for as long as anything of it runs.
    pub(super) fn start(config: &ProgramConfig, lock: &DirLock, until: Instant) -> Result<Self, Error> {
        let Some((program, arguments)) = config.guard.split_first() else {
            return Err(Error::Setting { name: "guard", reason: "names no program".into() });
        };
        let failed = |error: io::Error| Error::io("start the guard of the program", program, error);
        let (control, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(program);
        command.arg0("paceline").args(arguments).arg(&config.command).arg(config.stop_grace.as_millis().to_string());
        without_secrets(&mut command);
        // A process group of its own: Ctrl-C is for the node, which then stops the program in its own order.
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs))).process_group(0);
        let (sender, events) = unbounded();
        let thread = Group::default();
        let reader = BufReader::new(control.try_clone().map_err(failed)?);
        // Before the guard: where there is no thread for it, there is nothing to end.
        let (started, guard) = bounded(1);
        let life = move || {
            if let Ok(guard) = guard.recv() {
                attend(guard, reader, &sender);
            }
        };
        thread.spawn("program", life).map_err(failed)?;
        let guard = command.spawn().map_err(failed)?;
        // The command holds our copy of the guard's end: without that the guard's end would not be seen.
        drop(command);
        let _ = started.send(guard);
        drop(started);
        let mut program = Self { control, events, ended: None, gone: false, permit: None, _thread: thread };
        send_lock(&program.control, lock).map_err(failed)?;
        program.permit(until);
        Ok(program)
    }

    /// Permits it to go on until then. Never blocks.
    pub(super) fn permit(&mut self, until: Instant) {
        // The same moment, reckoned from one clock to another, is never quite the same.
        if self.permit.is_some_and(|last| until <= last + SAME && last <= until + SAME) {
            return;
        }
        self.permit = Some(until);
        let left = until.saturating_duration_since(Instant::now());
        let ns = guard::now_ns().saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX));
        self.order(&format!("until {ns}\n"));
    }

    /// How the program ended, once it has; what it started may still run. Never blocks.
    pub(super) fn ended(&mut self) -> Option<&str> {
        loop {
            match self.events.try_recv() {
                Ok(event) => self.note(event),
                Err(TryRecvError::Disconnected) if !self.gone => {
                    self.ended.get_or_insert_with(|| "the thread that attends to it has failed".to_owned());
                    break;
                }
                Err(_) => break,
            }
        }
        self.ended.as_deref()
    }

    /// Asks it to end; the first step of [`wait`](Self::wait). Never blocks.
    pub(super) fn stop(&self) {
        self.order("stop\n");
    }

    /// Waits until all of it is reaped; `false` if that is not so after `timeout`.
    pub(super) fn wait(&mut self, timeout: Duration) -> bool {
        let deadline = deadline(timeout);
        while !self.gone {
            match self.events.recv_deadline(deadline) {
                Ok(event) => self.note(event),
                Err(RecvTimeoutError::Timeout) => return false,
                // Its thread panicked, which is a defect: take nothing for granted.
                Err(RecvTimeoutError::Disconnected) => {
                    thread::park_timeout(timeout);
                    return false;
                }
            }
        }
        true
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Ended(how) => self.ended = Some(how),
            Event::Gone => {
                self.ended.get_or_insert_with(|| "an unknown end".to_owned());
                self.gone = true;
            }
        }
    }

    fn order(&self, line: &str) {
        // Not taken: the guard is gone, or it is frozen and has thousands of lines to read.
        let _ = send(&self.control, line.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

/// What an operator wrote. It gets none of our secrets: those in the environment are for us.
pub(super) fn shell(command: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command);
    without_secrets(&mut shell);
    shell
}

fn without_secrets(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("PACELINE_")) {
            command.env_remove(name);
        }
    }
}

/// No program runs in a simulated world.
#[cfg(feature = "simulate")]
fn send_lock(_: &UnixStream, _: &DirLock) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(feature = "simulate"))]
fn send_lock(control: &UnixStream, lock: &DirLock) -> io::Result<()> {
    let descriptors = [lock.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(control, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The thread's life.
fn attend(mut guard: Child, reader: BufReader<UnixStream>, events: &Sender<Event>) {
    let (mut group, mut ended) = (None, false);
    // Until the guard has ended: it alone holds the other end.
    for line in reader.lines() {
        match line.as_deref().map(|line| line.split_once(' ')) {
            Ok(Some(("started", pid))) => group = pid.parse().ok().and_then(Pid::from_raw),
            Ok(Some(("ended", how))) => {
                ended = true;
                let _ = events.send(Event::Ended(how.to_owned()));
            }
            _ => break,
        }
    }
    let how = match guard.wait() {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("its guard ended with {status}")),
        Err(error) => Some(format!("its guard is lost: {error}")),
    };
    if let Some(how) = how {
        log::error!("the program is killed: {how}");
        group.into_iter().for_each(kill_group);
        if !ended {
            let _ = events.send(Event::Ended(how));
        }
    }
    let _ = events.send(Event::Gone);
}

/// For a guard that could not do it. Returns when the group is gone.
fn kill_group(group: Pid) {
    while kill_process_group(group, Signal::KILL) != Err(Errno::SRCH) {
        // Where this process is the first of a container, its orphans are ours, and stay until they are reaped.
        let _ = waitpgid(group, WaitOptions::NOHANG);
        thread::park_timeout(LOOK_EVERY);
    }
}
