//! The demo's processes and its temporary directory; both are gone when their values are, whatever happened.
//!
//! On a panic and on Ctrl-C the values are dropped; if the demo itself is killed the kernel kills its children
//! (`PR_SET_PDEATHSIG`), also one that is stopped.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use super::link::Order;
use crate::cli::{Failure, SECRET_VARIABLE};

/// Has the kernel kill this process when the thread that started it ends.
pub(crate) fn end_with_parent() -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Failure::runtime(format!("cannot ask to end with the parent: {error}")))
}

/// A directory of our own that is removed with all that is in it.
pub(crate) struct TemporaryDir(PathBuf);

impl TemporaryDir {
    pub(crate) fn new(parent: &Path) -> Result<Self, Failure> {
        let path = parent.join(format!("paceline-demo-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| {
            Failure::runtime(format!("make {}: {error}; give a writable directory with --dir", path.display()))
        })?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One of our own processes; killed and reaped when dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts this executable with `arguments`; it logs to a file.
    pub(crate) fn start(arguments: &[&str], secret: &str, log: PathBuf) -> Result<Self, Failure> {
        let start = || -> io::Result<Child> {
            let mut command = Command::new(std::env::current_exe()?);
            // Settings meant for another node must not reach these.
            for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PACELINE_")) {
                command.env_remove(name);
            }
            command.args(arguments).env(SECRET_VARIABLE, secret).stderr(File::create(&log)?);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        };
        let child = start().map_err(|error| Failure::runtime(format!("start paceline {}: {error}", arguments[0])))?;
        Ok(Self { child, log })
    }

    pub(crate) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    pub(crate) fn order(&mut self, order: Order) -> Result<(), Failure> {
        let mut pipe = self.child.stdin.as_ref().ok_or_else(|| self.failed("has no stdin"))?;
        writeln!(pipe, "{}", order.word()).map_err(|error| self.failed(&error.to_string()))
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).map_err(|error| self.failed(&format!("cannot be signalled ({error})")))
    }

    /// An error that ends with the last line of the process's log, which is removed with the directory.
    pub(crate) fn failed(&self, cause: &str) -> Failure {
        let name = self.log.file_stem().unwrap_or_default().to_string_lossy();
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().last().unwrap_or("nothing");
        Failure::runtime(format!("{name} {cause}; the last it logged is: {last}"))
    }

    /// Waits until it has ended, which must be with exit code 0.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(self.failed(&format!("ended with {status}"))),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
                Ok(None) => return Err(self.failed("did not end in time")),
                Err(error) => return Err(self.failed(&error.to_string())),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
