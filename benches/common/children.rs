//! Followers, and what a baseline writes to, in processes of their own: so the leader's CPU time is the leader's, and
//! nobody shares an allocator or a lock with it. The bench's own executable is run again, with hidden arguments.
//!
//! A child ends when its standard input does, which is when its parent drops it, or dies.

use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use paceline::leader::FollowerState;
use paceline::protocol::extension::{Control, Fields, Message, Start, VERSION, field};
use paceline::protocol::{
    ACCEPTED, ActionDecoder, Event, FrameReader, PROBE_NAME, START_HEADER, frame_reader, read_list_entry, write_end,
    write_hello, write_node_id,
};
use paceline::{Follower, FollowerConfig, Leader, LeaderConfig, NodeId};
use tempfile::TempDir;

use super::appender::{self, APPENDS, LEADS};
use super::{PlainFile, secret};

pub const HIDDEN: &str = "--as-child";
/// The role of who tells its parent something.
const LEADER: &str = "leader";

/// The first thing in `main`: does not return if this process is a child.
pub fn run_if_child() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() != Some(HIDDEN) {
        return;
    }
    let mut next = || args.next().expect("an argument more");
    let (role, address, id, dir) = (next(), next(), next(), next());
    if [APPENDS, LEADS].contains(&&*role) {
        appender::run(&role, &address, id.parse().expect("a number"), Path::new(&dir));
        std::process::exit(0);
    }
    let address: SocketAddr = address.parse().expect("an address");
    let id = NodeId::new(id.parse().expect("a number")).expect("positive");
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    match role.as_str() {
        "returning" => {
            let mut config = FollowerConfig::new(address.to_string(), dir, secret());
            config.id = Some(id);
            // What is measured begins when it comes, not when it tries to.
            (config.retry_delay_min, config.retry_delay_max) = (Duration::from_millis(20), Duration::from_millis(20));
            let ended = Follower::start(config).expect("a follower").wait(None);
            eprintln!("follower {id} ended: {ended:?}");
        }
        "follower" => {
            let mut config = FollowerConfig::new(address.to_string(), dir, secret());
            config.id = Some(id);
            let follower = Follower::start(config).expect("a follower");
            let ended = follower.wait(None);
            eprintln!("follower {id} ended: {ended:?}");
        }
        "joining" => {
            beside_others();
            loop {
                // Within the parent's: a process that is killed removes nothing.
                let dir = tempfile::tempdir_in(&dir).expect("a temporary directory");
                let mut config = FollowerConfig::new(address.to_string(), dir.path(), secret());
                config.once = true;
                let ended = Follower::start(config).expect("a follower").wait(None);
                if !matches!(ended, Some(Ok(()))) {
                    eprintln!("a joining follower ended: {ended:?}");
                    break;
                }
            }
        }
        "joining-sink" => {
            beside_others();
            let error = loop {
                if let Err(error) = sync_and_drop(address) {
                    break error;
                }
            };
            eprintln!("a joining sink ended: {error}");
        }
        LEADER => lead(Path::new(&dir)),
        "sink" => {
            let ended = RawFollower::join(address, id).and_then(|raw| raw.read_at(None, &AtomicBool::new(false)));
            eprintln!("sink {id} ended: {ended:?}");
        }
        "reader" => read_plain(address, PathBuf::from(dir)).expect("the baseline's socket"),
        role => panic!("no such role: {role}"),
    }
    std::process::exit(0);
}

/// Leads the files in `dir`. Says where, and then that a follower is joining.
fn lead(dir: &Path) {
    let leader = Leader::open(LeaderConfig::new(dir, secret())).expect("a leader");
    println!("{}", leader.listen("127.0.0.1:0").expect("a port"));
    while !leader.followers().iter().any(|follower| follower.state == FollowerState::Syncing) {
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("joining");
    loop {
        std::thread::park();
    }
}

/// What stands for a machine of its own is not to take this one's time from what is measured.
fn beside_others() {
    // Not allowed everywhere, and no harm where it is not.
    let _ = rustix::process::setpriority_process(None, 19);
}

/// A child process and its directory.
pub struct ChildProcess {
    pub id: NodeId,
    child: Child,
    /// Goes with it, if it is its own.
    dir: Option<TempDir>,
}

impl ChildProcess {
    fn spawn(role: &str, address: SocketAddr, number: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut child = Self::spawn_in(dir.path(), role, address, number);
        child.dir = Some(dir);
        child
    }

    /// A [`Follower`] whose directory has the files of `given` already, as hard links: it is sent nothing of them.
    pub fn follower_with(address: SocketAddr, number: usize, given: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        link_files(given, dir.path());
        let mut child = Self::spawn_in(dir.path(), "follower", address, number);
        child.dir = Some(dir);
        child
    }

    /// Joins with nothing, is sent everything, goes, and joins again with nothing, each time as a new follower. With `sink` what
    /// it is sent is decoded and dropped.
    pub fn joining(address: SocketAddr, sink: bool) -> Self {
        Self::spawn(if sink { "joining-sink" } else { "joining" }, address, 0)
    }

    /// The same, and a leader of the files of `given` that it joins. Returns when that has begun.
    pub fn joining_another(given: &Path, sink: bool) -> [Self; 2] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        link_files(given, dir.path());
        let nobody = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut leader = Self::spawn_in(dir.path(), LEADER, nobody, 0);
        leader.dir = Some(dir);
        let mut says = io::BufReader::new(leader.child.stdout.take().expect("piped")).lines();
        let mut next = || says.next().expect("a line more").expect("text");
        let joiner = Self::joining(next().parse().expect("an address"), sink);
        assert_eq!(next(), "joining");
        [joiner, leader]
    }

    fn spawn_in(dir: &Path, role: &str, address: SocketAddr, number: usize) -> Self {
        let id = id(number);
        let executable = std::env::current_exe().expect("a path to this executable");
        let child = Command::new(executable)
            .args([HIDDEN, role, &address.to_string(), &id.get().to_string()])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(if role == LEADER { Stdio::piped() } else { Stdio::null() })
            .spawn()
            .expect("a process");
        Self { id, child, dir: None }
    }

    /// A [`Follower`] of the leader at `address`; with `sink` one that writes nothing.
    pub fn follower(address: SocketAddr, number: usize, sink: bool) -> Self {
        Self::spawn(if sink { "sink" } else { "follower" }, address, number)
    }

    /// A [`Follower`] on a directory that is there before and after it, and that is soon back when it was disconnected.
    pub fn returning(address: SocketAddr, number: usize, dir: &Path) -> Self {
        Self::spawn_in(dir, "returning", address, number)
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The id of a bench's follower; the leader is 1.
pub fn id(number: usize) -> NodeId {
    NodeId::new(i32::try_from(number + 2).expect("a few followers")).expect("positive")
}

/// Links all files of one directory into another.
pub fn link_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("readable");
        std::fs::hard_link(entry.path(), to.join(entry.file_name())).expect("on the same file system");
    }
}

// ---- the baseline ----

/// Sockets to children that write what they read to files.
pub struct PlainReaders {
    sockets: Vec<TcpStream>,
    _children: Vec<ChildProcess>,
}

impl PlainReaders {
    pub fn start(count: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let children = (0..count).map(|number| ChildProcess::spawn("reader", address, number)).collect();
        let accept = |_| {
            let (socket, _) = listener.accept().expect("a child");
            socket.set_nodelay(true).expect("a TCP socket");
            socket
        };
        Self { sockets: (0..count).map(accept).collect(), _children: children }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        for socket in &mut self.sockets {
            socket.write_all(bytes).expect("a child that reads");
        }
    }

    /// Waits until everything is in the children's files.
    pub fn finish(&mut self) {
        for socket in &self.sockets {
            socket.shutdown(std::net::Shutdown::Write).expect("an open socket");
        }
        for socket in &mut self.sockets {
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).expect("an answer");
            assert_eq!(answer, b".");
        }
    }
}

fn read_plain(address: SocketAddr, dir: PathBuf) -> io::Result<()> {
    let mut socket = TcpStream::connect(address)?;
    let mut file = PlainFile::new(dir.join("copy"));
    let mut buffer = vec![0; 128 << 10];
    loop {
        let length = socket.read(&mut buffer)?;
        if length == 0 {
            return socket.write_all(b".");
        }
        file.write(&buffer[..length]);
    }
}

// ---- followers made by hand ----

/// Joins by the extension as a new follower that has nothing, and reads until its sync has ended.
fn sync_and_drop(address: SocketAddr) -> io::Result<()> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.write_all(&Start::Extension(VERSION).header())?;
    Start::read(&mut socket).map_err(other)?;
    let mut hello = Vec::new();
    write_hello(&mut hello, &secret())?;
    socket.write_all(&hello[START_HEADER.len()..])?;
    let mut answer = [0];
    socket.read_exact(&mut answer)?;
    assert_eq!(answer[0], ACCEPTED);
    let id = NodeId::random();
    Fields::default().with(field::ID, &id.get().to_le_bytes()).write(&mut socket)?;
    Fields::read(&mut socket).map_err(other)?;
    let mut frame = frame_reader(socket.try_clone()?);
    let mut decoder = ActionDecoder::new();
    let mut control = None;
    loop {
        let mut block = frame.fill_buf()?;
        let length = block.len();
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while let Some(event) = decoder.next(&mut block).map_err(other)? {
            if let Event::Action { path, .. } = &event {
                control = Control::is_control(path).then(|| (path.clone(), Vec::new()));
            }
            let (Event::Payload { bytes, remaining }, Some((path, content))) = (event, &mut control) else { continue };
            content.extend_from_slice(bytes);
            if remaining > 0 {
                continue;
            }
            match Control::decode(path, content).map_err(other)? {
                Some(Control::Want(bits)) => {
                    let mut wire = Vec::new();
                    Message::Sums(vec![Default::default(); 1 << bits]).encode(&mut wire);
                    Message::SumsEnd.encode(&mut wire);
                    socket.write_all(&wire)?;
                }
                Some(Control::TellEnds) => {
                    let mut wire = Vec::new();
                    Message::InventoryEnd.encode(&mut wire);
                    socket.write_all(&wire)?;
                }
                Some(Control::SyncEnds) => return Ok(()),
                _ => {}
            }
        }
        frame.consume(length);
    }
}

/// A follower made by hand, which writes nothing and may misbehave.
pub struct RawFollower {
    socket: TcpStream,
    frame: FrameReader<TcpStream>,
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

impl RawFollower {
    /// Connects and joins, properly: both rounds, asking for nothing, and the acknowledgement of the probe.
    pub fn join(address: SocketAddr, id: NodeId) -> io::Result<Self> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        write_hello(&mut socket, &secret())?;
        let mut answer = [0];
        socket.read_exact(&mut answer)?;
        assert_eq!(answer[0], ACCEPTED);
        write_node_id(&mut socket, id)?;
        let mut raw = Self { frame: frame_reader(socket.try_clone()?), socket };
        for _ in 0..2 {
            while read_list_entry(&mut raw.frame).map_err(other)?.is_some() {}
            write_end(&mut raw.socket)?;
        }
        let mut probe = vec![0; 4 + PROBE_NAME.len() + 8];
        raw.frame.read_exact(&mut probe)?;
        raw.acknowledge(probe.len())?;
        Ok(raw)
    }

    fn acknowledge(&mut self, bytes: usize) -> io::Result<()> {
        let bytes = i64::try_from(bytes).map_err(other)?;
        self.socket.write_all(&bytes.to_le_bytes())
    }

    /// Reads and acknowledges, this many bytes a second at most, until the leader closes or `stop`.
    pub fn read_at(mut self, bytes_per_second: Option<usize>, stop: &AtomicBool) -> io::Result<()> {
        /// A slow reader's steps.
        const STEPS_PER_SECOND: usize = 100;
        let mut buffer = vec![0; bytes_per_second.map_or(128 << 10, |bytes| bytes / STEPS_PER_SECOND)];
        let began = Instant::now();
        for step in 1.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let length = self.frame.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            self.acknowledge(length)?;
            if bytes_per_second.is_some() {
                let next = Duration::from_secs(1) * step / u32::try_from(STEPS_PER_SECOND).expect("small");
                std::thread::sleep(next.saturating_sub(began.elapsed()));
            }
        }
        Ok(())
    }
}

/// What is wrong with a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Illness {
    /// It reads nothing any more.
    Stopped,
    /// It reads this many bytes a second, and acknowledges them.
    Slow(usize),
}

/// An ill follower, in a thread of its own.
pub struct IllFollower {
    stop: Arc<AtomicBool>,
    socket: TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl IllFollower {
    /// Joins, then falls ill. Returns when it has joined.
    pub fn join(address: SocketAddr, number: usize, illness: Illness) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (joined, has_joined) = mpsc::channel();
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            let raw = RawFollower::join(address, id(number)).expect("it joins");
            joined.send(raw.socket.try_clone().expect("a socket")).expect("somebody waits");
            match illness {
                Illness::Stopped => {
                    while !stopping.load(Ordering::Relaxed) {
                        std::thread::park();
                    }
                }
                // Being evicted is what it is there for.
                Illness::Slow(rate) => drop(raw.read_at(Some(rate), &stopping)),
            }
        });
        let socket = has_joined.recv().expect("it joined");
        Self { stop, socket, thread: Some(thread) }
    }
}

impl Drop for IllFollower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It may be gone already.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
