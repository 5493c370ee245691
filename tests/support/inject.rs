//! System calls that fail: the n-th of a kind, in a process and all it starts, caught by seccomp (see `inject.c`, which the test
//! builds with `cc`). Needs no privileges but to read other processes' memory where paths matter (root, in CI).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::io::Errno;

use super::processes::{LeaderProcess, Process, Stage, find};

/// Which calls fail: all of these, unless told otherwise.
#[derive(Clone)]
pub struct Injection {
    calls: String,
    /// None: they are slow.
    errno: Option<Errno>,
    first: u64,
    times: u64,
    part: OsString,
    armed: PathBuf,
    report: PathBuf,
}

impl Injection {
    /// Calls named as the kernel names them, counted together; the library functions of one name often make another call, so
    /// name all that may be meant: `&["openat", "openat2"]`. `name` tells this injection from others of the stage.
    pub fn new(stage: &Stage, name: &str, calls: &[&str], errno: Errno) -> Self {
        let report = stage.path(&format!("{name}.injected"));
        Self {
            calls: calls.join(","),
            errno: Some(errno),
            first: 1,
            times: 0,
            part: OsString::new(),
            armed: PathBuf::new(),
            report,
        }
    }

    /// They do not fail, but take 10 ms longer, one after another.
    pub fn slow(mut self) -> Self {
        self.errno = None;
        self
    }

    /// Only from the `first` that counts on (1 is the first), so many `times`.
    pub fn at(mut self, first: u64, times: u64) -> Self {
        (self.first, self.times) = (first, times);
        self
    }

    /// Only those count that are about a file with this in its full path, be it named or open.
    pub fn about(mut self, part: impl AsRef<OsStr>) -> Self {
        self.part = part.as_ref().to_owned();
        self
    }

    /// Only those count that are made while this file is there.
    pub fn while_there(mut self, file: &Path) -> Self {
        self.armed = file.to_owned();
        self
    }

    /// The command that runs another one so.
    fn command(&self) -> Vec<OsString> {
        let number = |number: u64| OsString::from(number.to_string());
        let errno = self.errno.map_or(0, Errno::raw_os_error).to_string();
        let program = injector().as_os_str().to_owned();
        let (part, armed, report) = (self.part.clone(), self.armed.clone().into(), self.report.clone().into());
        vec![program, (&self.calls).into(), errno.into(), number(self.first), number(self.times), part, armed, report]
    }

    /// Starts a process of which they fail.
    pub fn start(&self, stage: &Stage, name: &str, program: &Path, args: &[&str]) -> Process {
        let command = self.command();
        let rest = command[1..].iter().map(OsString::as_os_str).chain([program.as_os_str()]);
        stage.start(name, &command[0], rest.chain(args.iter().map(|arg| arg.as_ref())))
    }

    /// Starts `paceline leader`, of which they fail, on a directory.
    pub fn leader(&self, stage: &Stage, dir: &Path, options: &[&str]) -> LeaderProcess {
        self.leader_under(&[], stage, dir, options)
    }

    /// The same, by a command that runs another one.
    pub fn leader_under(&self, command: &[OsString], stage: &Stage, dir: &Path, options: &[&str]) -> LeaderProcess {
        stage.leader_under(&[command, &self.command()].concat(), dir, options)
    }

    /// Starts `paceline leader` so, which is perhaps still reading its directory.
    pub fn opening_leader(&self, stage: &Stage, dir: &Path) -> LeaderProcess {
        stage.opening_leader_under(&self.command(), dir)
    }

    /// Starts `paceline follow` into a directory.
    pub fn follower(&self, stage: &Stage, name: &str, leader: std::net::SocketAddr) -> Process {
        let (dir, leader) = (stage.path(name), leader.to_string());
        let args = ["follow", &leader, "--data-dir", dir.to_str().unwrap()];
        self.start(stage, name, Path::new(env!("CARGO_BIN_EXE_paceline")), &args)
    }

    /// How many counted so far.
    pub fn counted(&self) -> u64 {
        self.reported().0
    }

    /// How many failed so far.
    pub fn failed(&self) -> u64 {
        self.reported().1
    }

    fn reported(&self) -> (u64, u64) {
        let text = fs::read_to_string(&self.report).unwrap_or_default();
        let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

/// The program, built when it is first needed.
fn injector() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (made, at) = (folder.join(format!("inject.{}", std::process::id())), folder.join("inject"));
        let mut cc = Command::new(find("cc", "gcc libc6-dev"));
        cc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-x", "c", "-", "-o"]).arg(&made).stdin(Stdio::piped());
        let mut cc = cc.spawn().unwrap();
        cc.stdin.take().unwrap().write_all(include_bytes!("inject.c")).unwrap();
        assert!(cc.wait().unwrap().success(), "inject.c does not compile");
        fs::rename(made, &at).unwrap(); // other test programs do the same
        at
    })
}
