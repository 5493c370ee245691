//! Real programs as processes: the paceline binary, Redis, logrotate.
//!
//! A [`Stage`] is the temporary directory of one test. Each process logs to a file in it, which is shown when the test
//! fails, and is killed and reaped when its value is dropped, with what it started itself (Redis forks to rewrite its
//! file); should the test's process be killed, the kernel kills it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use paceline::RelPath;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use super::{PATIENCE, assert_exact, wait_until};

const SECRET: &str = "the tests' secret";

/// The directory of one test, or a folder in another one's.
pub struct Stage {
    dir: PathBuf,
    /// Removes it.
    temporary: Option<TempDir>,
}

impl Stage {
    pub fn new() -> Self {
        super::begin();
        let temporary = tempfile::Builder::new().prefix("paceline-").tempdir().unwrap();
        Self { dir: temporary.path().to_owned(), temporary: Some(temporary) }
    }

    /// A new folder in this one, which must live longer.
    pub fn inner(&self, name: &str) -> Self {
        Self { dir: self.folder(name), temporary: None }
    }

    /// Leaves the directory where it is, for a person to look at.
    pub fn keep(&mut self) -> &Path {
        if let Some(temporary) = &mut self.temporary {
            temporary.disable_cleanup(true);
        }
        &self.dir
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes a folder.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        path
    }

    pub fn start(
        &self,
        name: &str,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item: AsRef<OsStr>>,
    ) -> Process {
        let log = self.path(&format!("{name}.log"));
        let open = |path: &Path| File::options().create(true).append(true).open(path).unwrap();
        let mut command = Command::new(find("setpriv", "util-linux"));
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(args).process_group(0);
        // Settings meant for another node must not reach ours.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PACELINE_")) {
            command.env_remove(name);
        }
        command.env("PACELINE_SECRET", SECRET).env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(open(&log)).stderr(open(&log));
        Process { name: name.to_owned(), child: command.spawn().unwrap(), log }
    }

    /// Starts `paceline leader` on a directory, on a port the system gives.
    pub fn leader(&self, dir: &Path, options: &[&str]) -> LeaderProcess {
        self.leader_at("127.0.0.1:0", dir, options)
    }

    /// Starts it on this port, which was one's before; tries again while the system has not given it back.
    pub fn leader_at(&self, listen: &str, dir: &Path, options: &[&str]) -> LeaderProcess {
        self.leader_by(&[], listen, dir, options, " replicates ")
    }

    /// Starts it by a command that runs another one.
    pub fn leader_under(&self, command: &[OsString], dir: &Path, options: &[&str]) -> LeaderProcess {
        self.leader_by(command, "127.0.0.1:0", dir, options, " replicates ")
    }

    /// The same, but one that is perhaps still reading its directory.
    pub fn opening_leader_under(&self, command: &[OsString], dir: &Path) -> LeaderProcess {
        self.leader_by(command, "127.0.0.1:0", dir, &[], "")
    }

    /// Returns once it listens, and has said `says`.
    fn leader_by(&self, command: &[OsString], listen: &str, dir: &Path, options: &[&str], says: &str) -> LeaderProcess {
        let args = [env!("CARGO_BIN_EXE_paceline"), "leader", "--listen", listen, "--data-dir", dir.to_str().unwrap()];
        let args = args.iter().chain(options).map(OsString::from);
        let args: Vec<_> = command.iter().cloned().chain(args).collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log_before = fs::read_to_string(self.path("leader.log")).unwrap_or_default().len();
            let mut process = self.start("leader", &args[0], &args[1..]);
            while !process.has_ended() {
                let log = process.log();
                let said = &log[log_before..];
                if said.contains(says)
                    && let Some(address) = said.lines().find_map(|line| line.strip_prefix("listening on "))
                {
                    let address = address.parse().unwrap();
                    return LeaderProcess { process, dir: dir.to_owned(), address, log_before };
                }
                assert!(Instant::now() < deadline, "the leader does not listen");
                std::thread::park_timeout(Duration::from_millis(2));
            }
            let in_use = process.log()[log_before..].contains("Address already in use");
            assert!(in_use && Instant::now() < deadline, "the leader ended");
        }
    }

    /// Starts `paceline follow` into a directory of this name, which may be there already.
    pub fn follower(&self, name: &str, leader: SocketAddr) -> FollowerProcess {
        let dir = self.path(name);
        let leader = leader.to_string();
        let args = ["follow", &leader, "--data-dir", dir.to_str().unwrap()];
        FollowerProcess { process: self.start(name, env!("CARGO_BIN_EXE_paceline"), args), dir }
    }

    pub fn followers(&self, count: usize, leader: SocketAddr) -> Vec<FollowerProcess> {
        (1..=count).map(|number| self.follower(&format!("follower{number}"), leader)).collect()
    }
}

/// A program to run; fails the test if it is not installed.
pub fn find(program: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{program} is not installed: run .ci/test, or apt-get install {package}"))
}

/// What runs a command that may use no file whose mode forbids it, also where we are root.
pub fn without_privileges() -> Vec<OsString> {
    if !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    let setpriv = find("setpriv", "util-linux").into_os_string();
    let args = ["--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all", "--"];
    [setpriv].into_iter().chain(args.map(Into::into)).collect()
}

/// Runs a program to its end, which must be a good one, and returns what it printed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} ended with {}:\n{out}{err}", output.status);
    out.into_owned()
}

/// A process of our own, in a process group of its own.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// All that it, and what had its name before, printed to stdout and stderr.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// SIGKILL, also to what it started itself.
    pub fn kill(&mut self) {
        if !self.has_ended() {
            kill_process_group(Pid::from_child(&self.child), Signal::KILL).unwrap();
        }
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait_until(&format!("the end of {}", self.name), || self.has_ended());
        self.child.wait().unwrap()
    }

    /// SIGTERM, upon which it must end with exit code 0.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "{} ended with {status}", self.name);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its group may outlive it; if there is none any more, this fails.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
        if std::thread::panicking() {
            const SHOWN: usize = 80;
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let left_out = lines.len().saturating_sub(SHOWN);
            eprintln!("--- log of {} ({left_out} lines left out)\n{}", self.name, lines[left_out..].join("\n"));
        }
    }
}

/// `paceline leader`.
pub struct LeaderProcess {
    pub process: Process,
    pub dir: PathBuf,
    pub address: SocketAddr,
    /// Length of what an earlier leader logged.
    log_before: usize,
}

impl LeaderProcess {
    /// The lines that say who was evicted.
    pub fn evictions(&self) -> Vec<String> {
        let log = self.process.log();
        let evictions = log[self.log_before..].lines().filter(|line| line.contains("evicted follower"));
        evictions.map(str::to_owned).collect()
    }

    /// Waits until so many followers have joined since the leader began to listen.
    #[track_caller]
    pub fn wait_joined(&self, count: usize) {
        wait_until("the followers have joined", || {
            self.process.log()[self.log_before..].matches("follows the stream").count() >= count
        });
    }

    /// Waits until the copies equal the directory, which nobody changes any more.
    #[track_caller]
    pub fn wait_copies(&self, followers: &[FollowerProcess]) {
        for follower in followers {
            wait_same(&self.dir, &follower.dir);
        }
    }

    /// Waits as above, ends all processes in order, and compares once more: nothing may have followed.
    #[track_caller]
    pub fn end(&mut self, followers: &mut [FollowerProcess]) {
        self.wait_copies(followers);
        self.process.stop();
        for follower in followers {
            follower.process.stop();
            assert_exact(&self.dir, &follower.dir);
        }
    }
}

/// `paceline follow`.
pub struct FollowerProcess {
    pub process: Process,
    pub dir: PathBuf,
}

/// Waits until two directories hold the same, while the second one, or both, may still change.
#[track_caller]
pub fn wait_same(leader: &Path, follower: &Path) {
    wait_same_within(PATIENCE, leader, follower);
}

/// The same, for so long.
#[track_caller]
pub fn wait_same_within(patience: Duration, leader: &Path, follower: &Path) {
    let deadline = Instant::now() + patience;
    while !same(leader, follower).unwrap_or(false) {
        if Instant::now() >= deadline {
            assert_exact(leader, follower);
            panic!("the copy came late, or one of the directories does not come to rest");
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Whether two directories hold the same; an error where one of them changes meanwhile.
pub fn same(leader: &Path, follower: &Path) -> io::Result<bool> {
    Ok(lengths(leader)? == lengths(follower)? && same_bytes(leader, follower)?)
}

/// Names and lengths of all files that are replicated.
fn lengths(root: &Path) -> io::Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let full = entry?.path();
            let meta = full.symlink_metadata()?;
            let name = full.strip_prefix(root).unwrap();
            if RelPath::new(name.to_str().unwrap()).unwrap().is_reserved() {
                continue;
            }
            if meta.is_dir() {
                folders.push(full);
            } else if meta.is_file() {
                found.insert(name.to_owned(), meta.len());
            }
        }
    }
    Ok(found)
}

fn same_bytes(leader: &Path, follower: &Path) -> io::Result<bool> {
    for name in lengths(leader)?.keys() {
        if fs::read(leader.join(name))? != fs::read(follower.join(name))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// When Redis flushes what it appended.
#[derive(Clone, Copy)]
pub enum Flush {
    EverySecond,
    /// Before it answers: what was acknowledged was written.
    Always,
}

/// A Redis that appends to `appendonlydir/` in its directory, reached through a Unix socket.
pub struct Redis {
    pub process: Process,
    socket: PathBuf,
}

impl Redis {
    /// Returns when it has loaded what is there.
    #[track_caller]
    pub fn start(stage: &Stage, name: &str, dir: &Path, flush: Flush) -> Self {
        let socket = stage.path(&format!("{name}.sock"));
        let _ = fs::remove_file(&socket);
        let flush = match flush {
            Flush::EverySecond => "everysec",
            Flush::Always => "always",
        };
        let settings: [(&str, &OsStr); 8] = [
            ("--port", "0".as_ref()),
            ("--unixsocket", socket.as_ref()),
            ("--dir", dir.as_ref()),
            ("--appendonly", "yes".as_ref()),
            ("--appendfsync", flush.as_ref()),
            ("--save", "".as_ref()),
            // Rewrites are the tests'.
            ("--auto-aof-rewrite-percentage", "0".as_ref()),
            ("--enable-debug-command", "local".as_ref()),
        ];
        let args = settings.iter().flat_map(|(name, value)| [name.as_ref(), *value]);
        let mut process = stage.start(name, find("redis-server", "redis-server"), args);
        wait_until("Redis answers", || {
            assert!(!process.has_ended(), "Redis ended");
            UnixStream::connect(&socket).is_ok_and(|stream| RedisClient::on(stream).command(&["PING"]).is_ok())
        });
        Self { process, socket }
    }

    pub fn client(&self) -> RedisClient {
        RedisClient::on(UnixStream::connect(&self.socket).unwrap())
    }

    /// Starts redis-benchmark: for each of the commands, `requests` with random keys.
    pub fn benchmark(&self, stage: &Stage, commands: &str, requests: u32) -> Process {
        let socket = self.socket.to_str().unwrap();
        let requests = requests.to_string();
        let args =
            ["-s", socket, "-t", commands, "-n", &requests, "-r", "20000", "-P", "16", "-c", "20", "-d", "64", "-q"];
        stage.start("redis-benchmark", find("redis-benchmark", "redis-tools"), args)
    }

    /// Has it write its file anew, and waits until that is done.
    #[track_caller]
    pub fn rewrite(&self) {
        let mut client = self.client();
        client.command(&["BGREWRITEAOF"]).unwrap();
        wait_until("Redis has rewritten its file", || {
            let info = client.persistence();
            info["aof_rewrite_in_progress"] == "0" && info["aof_rewrite_scheduled"] == "0"
        });
        assert_eq!(client.persistence()["aof_last_bgrewrite_status"], "ok");
    }

    /// Waits until everything is in its files.
    #[track_caller]
    pub fn settle(&self) {
        let mut client = self.client();
        wait_until("Redis has written everything", || {
            let info = client.persistence();
            ["aof_rewrite_in_progress", "aof_rewrite_scheduled", "aof_buffer_length", "aof_pending_bio_fsync"]
                .iter()
                .all(|name| info[*name] == "0")
        });
    }

    /// How many keys there are, and a digest of all that they hold.
    pub fn digest(&self) -> (String, String) {
        let mut client = self.client();
        (client.command(&["DBSIZE"]).unwrap(), client.command(&["DEBUG", "DIGEST"]).unwrap())
    }
}

/// redis-benchmark ended, and none of its requests had failed.
#[track_caller]
pub fn assert_benchmark_succeeded(benchmark: &mut Process) {
    let status = benchmark.wait();
    let log = benchmark.log();
    let reports = log.lines().filter(|line| line.contains("requests per second")).count();
    assert!(status.success() && reports > 0 && !log.contains("rror"), "{status}: {log}");
}

/// One connection.
pub struct RedisClient {
    stream: BufReader<Box<dyn Connection>>,
}

trait Connection: Read + Write + Send {}

impl<T: Read + Write + Send> Connection for T {}

impl RedisClient {
    fn on(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(Box::new(stream)) }
    }

    /// Connects over TCP; each answer must come within `timeout`.
    pub fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        Ok(Self { stream: BufReader::new(Box::new(stream)) })
    }

    pub fn command(&mut self, parts: &[impl AsRef<[u8]>]) -> io::Result<String> {
        self.send(parts)?;
        self.answer()
    }

    /// Sends without waiting for the answer.
    pub fn send(&mut self, parts: &[impl AsRef<[u8]>]) -> io::Result<()> {
        let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
        for part in parts {
            let part = part.as_ref();
            write!(bytes, "${}\r\n", part.len())?;
            bytes.extend_from_slice(part);
            bytes.extend_from_slice(b"\r\n");
        }
        self.stream.get_mut().write_all(&bytes)
    }

    /// The next answer, which must be one value; an error from Redis is an error.
    pub fn answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 || !line.ends_with("\r\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            "+" | ":" => Ok(rest.to_owned()),
            "$" => {
                let length: usize = rest.parse().map_err(|_| io::Error::other("no such key"))?;
                let mut bytes = vec![0; length + 2];
                self.stream.read_exact(&mut bytes)?;
                bytes.truncate(length);
                String::from_utf8(bytes).map_err(io::Error::other)
            }
            _ => Err(io::Error::other(line)),
        }
    }

    /// INFO persistence.
    fn persistence(&mut self) -> BTreeMap<String, String> {
        let info = self.command(&["INFO", "persistence"]).unwrap();
        info.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name.into(), value.into())).collect()
    }
}
