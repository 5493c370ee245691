//! Commands that are told of a change of roles: run by `sh -c` to their end, in a process group of their own.
//!
//! No thread and no lock: whoever runs a hook waits for it. What it leaves running is not its node's any more.

use std::fmt;
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::sys::thread;
use crate::sys::time::Instant;
use crate::thread::deadline;

/// How often a running hook is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How a hook ended otherwise than well.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookFailure {
    #[error("cannot be run: {0}")]
    NotRun(std::io::Error),
    #[error("ended with {0}")]
    Status(ExitStatus),
    #[error("did not end within {0:?} and was killed")]
    Late(Duration),
    #[error("was killed: {0}")]
    CutShort(&'static str),
}

/// A command of the operator's.
#[derive(Clone, Debug)]
pub(super) struct Hook {
    pub(super) command: String,
    pub(super) timeout: Duration,
    /// The soft limit of open files, if it is not to be our own.
    pub(super) descriptors: Option<u64>,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.command)
    }
}

impl Hook {
    /// Runs it; its output is passed on. Blocks until it has ended, or is killed with all of its process group: when the
    /// time is up, or `cut_short` says why it should be.
    pub(super) fn run(&self, cut_short: &dyn Fn() -> Option<&'static str>) -> Result<(), HookFailure> {
        let mut command = match self.descriptors {
            Some(limit) => super::program::shell(&format!("ulimit -Sn {limit}\n{}", self.command)),
            None => super::program::shell(&self.command),
        };
        let mut child = command.stdin(Stdio::null()).process_group(0).spawn().map_err(HookFailure::NotRun)?;
        let deadline = deadline(self.timeout);
        loop {
            match child.try_wait().map_err(HookFailure::NotRun)? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(HookFailure::Status(status)),
                None => {}
            }
            if let Some(why) = cut_short() {
                kill(&mut child);
                return Err(HookFailure::CutShort(why));
            }
            if Instant::now() >= deadline {
                kill(&mut child);
                return Err(HookFailure::Late(self.timeout));
            }
            thread::park_timeout(LOOK_EVERY);
        }
    }
}

fn kill(child: &mut Child) {
    // Not reaped yet: the group's number is still its own.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn hook(command: String, timeout: Duration) -> Hook {
        Hook { command, timeout, descriptors: None }
    }

    #[test]
    fn a_hook_is_run_to_its_end_and_its_exit_code_counts() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made");
        hook(format!("sleep 0.05; echo done > {}", made.display()), LONG).run(&|| None).unwrap();
        assert_eq!(fs::read_to_string(made).unwrap(), "done\n");
        let error = hook("exit 3".into(), LONG).run(&|| None).unwrap_err();
        assert!(matches!(&error, HookFailure::Status(status) if status.code() == Some(3)), "{error}");
    }

    #[test]
    fn a_hook_that_does_not_end_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let (pid, command) = (dir.path().join("pid"), "sleep 1000 & echo $! > pid; wait");
        let command = format!("cd {}; {command}", dir.path().display());
        // Only once it has started what is to be killed.
        let started = Cell::new(false);
        let cut_short = || {
            started.set(fs::read_to_string(&pid).is_ok_and(|pid| pid.ends_with('\n')));
            started.get().then_some("the test says so")
        };
        let error = hook(command, LONG).run(&cut_short).unwrap_err();
        assert_eq!(error.to_string(), "was killed: the test says so");
        let stat = format!("/proc/{}/stat", fs::read_to_string(&pid).unwrap().trim());
        let deadline = Instant::now() + LONG;
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < deadline, "it runs on");
            std::thread::park_timeout(Duration::from_millis(2));
        }
        let error = hook("sleep 1000".into(), Duration::from_millis(50)).run(&|| None).unwrap_err();
        assert!(matches!(error, HookFailure::Late(_)), "{error}");
    }
}
