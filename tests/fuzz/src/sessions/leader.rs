//! A leader and what followers may say.
//!
//! One leader serves all inputs, one connection each. A thread reads what it says, so that an input can wait for a list or for the end
//! of a sync, and acknowledge what was sent, or a little more.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use paceline::protocol::extension::{
    Attributes, CHUNK_BYTES, Control, Fields, Held, Marks, Message, Start, VERSION, field,
};
use paceline::protocol::{
    ActionDecoder, Event, ProtocolError, frame_reader, framing_bytes, read_file_size, read_list_entry, write_end,
    write_hello, write_name, write_node_id,
};
use paceline::{Leader, LeaderConfig, NodeId, RelPath, Secret};
use sha1::{Digest, Sha1};
use tempfile::TempDir;

use paceline_fuzz::{bounded, folder, input};

/// Some seconds of a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long an input may wait in all for what may never come.
const WAITS_MAX: Duration = Duration::from_millis(40);

/// Beyond the input: buffers for hashing and chunks, encoders of two connections, what waits for a follower.
const LEADER_BYTES_MAX: usize = 48 << 20;

/// The log is begun anew beyond it.
const LOG_BYTES_MAX: u64 = 1 << 20;

const SECRET: &str = "secret";

const BIG: u64 = CHUNK_BYTES + 5000;

struct Led {
    leader: Leader,
    address: SocketAddr,
    dir: TempDir,
    secret: Secret,
    log: RelPath,
    /// What a follower that is in sync would have.
    held: Vec<Held>,
}

impl Led {
    fn start() -> Self {
        let dir = folder();
        let big: Vec<u8> = (0..BIG).map(|at| (at % 251) as u8).collect();
        fs::create_dir(dir.path().join("d")).unwrap();
        let files = [("a", &b"0123456789"[..]), ("d/big", &big), ("empty", b"")];
        let mut held = Vec::new();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
            let digests = content.chunks(CHUNK_BYTES as usize).map(|chunk| Sha1::digest(chunk).into()).collect();
            held.push(Held {
                path: RelPath::new(name).unwrap(),
                len: content.len() as u64,
                digests,
                attributes: Attributes::UNKNOWN,
            });
        }
        let secret = Secret::new(SECRET).unwrap();
        let leader = Leader::open(LeaderConfig::new(dir.path(), secret.clone())).unwrap();
        let address = leader.listen("127.0.0.1:0").unwrap();
        Self { leader, address, dir, secret, log: RelPath::new("log").unwrap(), held }
    }

    fn append(&self, bytes: &[u8]) {
        let at = self.leader.file_len(&self.log).unwrap_or(0);
        if at > LOG_BYTES_MAX || bytes.is_empty() {
            let _ = fs::remove_file(self.dir.path().join("log"));
            self.leader.delete(&self.log).unwrap();
            return;
        }
        let mut file = fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        file.write_all(bytes).unwrap();
        self.leader.append(&self.log, at, bytes).unwrap();
    }
}

/// What a reader has seen so far.
#[derive(Default)]
struct Seen {
    /// Action bytes.
    received: u64,
    /// Names of the last list of 1.0.0.
    listed: Vec<RelPath>,
    /// Lists, and ends of syncs.
    steps: u32,
    /// Files asked for, once a round was asked for.
    asked: Option<usize>,
    /// Nothing more is said to the leader.
    ended: bool,
    closed: bool,
}

#[derive(Default)]
struct Reader {
    seen: Mutex<Seen>,
    changed: Condvar,
}

impl Reader {
    fn update(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap());
        self.changed.notify_all();
    }

    /// Waits until `until`, or for what is left of the time for that.
    fn wait(&self, left: &mut Duration, until: impl Fn(&Seen) -> bool) {
        let began = Instant::now();
        let seen = self.seen.lock().unwrap();
        drop(self.changed.wait_timeout_while(seen, *left, |seen| !seen.closed && !until(seen)));
        *left = left.saturating_sub(began.elapsed());
    }

    fn read(&self, socket: &TcpStream, extension: bool) {
        let mut raw = socket;
        let _ = self.follow(&mut raw, extension);
        let mut rest = [0; 4096];
        while matches!(raw.read(&mut rest), Ok(1..)) {}
        self.update(|seen| seen.closed = true);
    }

    fn follow(&self, socket: &mut impl Read, extension: bool) -> Result<(), ProtocolError> {
        if extension {
            Start::read(socket)?;
            socket.read_exact(&mut [0])?;
            Fields::read(socket)?;
        } else {
            socket.read_exact(&mut [0])?;
        }
        let mut frame = frame_reader(socket);
        if !extension {
            for _round in 0..2 {
                self.round(&mut frame)?;
            }
        }
        self.stream(&mut frame)
    }

    fn round(&self, frame: &mut impl Read) -> Result<(), ProtocolError> {
        let mut listed = Vec::new();
        while let Some(entry) = read_list_entry(frame)? {
            listed.push(entry.path);
        }
        self.update(|seen| {
            seen.listed = listed;
            seen.steps += 1;
        });
        let mut left = PATIENCE;
        self.wait(&mut left, |seen| seen.asked.is_some() || seen.ended);
        let asked = self.seen.lock().unwrap().asked.take().unwrap_or(0);
        for _ in 0..asked {
            let bytes = read_file_size(frame)?;
            io::copy(&mut frame.take(bytes), &mut io::sink())?;
        }
        Ok(())
    }

    fn stream(&self, frame: &mut impl Read) -> Result<(), ProtocolError> {
        let (mut decoder, mut buffer, mut name) = (ActionDecoder::new(), [0; 4096], None);
        loop {
            let read = frame.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            let (mut piece, mut received, mut steps) = (&buffer[..read], 0, 0);
            while let Some(event) = decoder.next(&mut piece)? {
                match event {
                    Event::Action { path, .. } => {
                        received += framing_bytes(&path);
                        name = Some(path);
                    }
                    Event::Payload { bytes, remaining } => {
                        received += bytes.len() as u64;
                        let step = name.as_ref().filter(|name| remaining == 0 && Control::is_control(name));
                        steps += u32::from(step.is_some());
                    }
                    Event::Heartbeat => {}
                }
            }
            self.update(|seen| {
                seen.received += received;
                seen.steps += steps;
            });
        }
    }
}

thread_local! {
    static LED: Led = Led::start();
}

pub fn connection(input: &[u8]) {
    LED.with(|led| {
        bounded(LEADER_BYTES_MAX + input.len() * 64, 16 << 20, || serve(led, input));
    });
}

fn serve(led: &Led, input: &[u8]) {
    let rest = &mut &input[..];
    let mode = input::byte(rest) % 3;
    let socket = TcpStream::connect(led.address).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let reader = Arc::new(Reader::default());
    std::thread::scope(|scope| {
        scope.spawn(|| reader.read(&socket, mode == 2));
        // It may close at any time.
        let _ = match mode {
            0 => (&socket).write_all(rest),
            1 => Peer::v1(led, &socket, &reader, rest),
            _ => Peer::extension(led, &socket, &reader, rest),
        };
        let _ = socket.shutdown(Shutdown::Write);
        let mut left = PATIENCE;
        reader.update(|seen| seen.ended = true);
        reader.wait(&mut left, |_| false);
        assert!(!left.is_zero(), "it does not close");
    });
    let began = Instant::now();
    while !led.leader.followers().is_empty() {
        assert!(began.elapsed() < PATIENCE, "it does not leave: {:?}", led.leader.followers());
        std::thread::yield_now();
    }
    assert!(led.leader.failure().is_none());
}

struct Peer<'a> {
    led: &'a Led,
    socket: &'a TcpStream,
    reader: &'a Reader,
    wait_left: Duration,
    /// Acknowledged so far.
    said: u64,
}

impl<'a> Peer<'a> {
    fn new(led: &'a Led, socket: &'a TcpStream, reader: &'a Reader) -> Self {
        Self { led, socket, reader, wait_left: WAITS_MAX, said: 0 }
    }

    fn v1(led: &'a Led, mut socket: &'a TcpStream, reader: &'a Reader, rest: &mut &[u8]) -> io::Result<()> {
        write_hello(&mut socket, &led.secret)?;
        write_node_id(&mut socket, id(rest))?;
        let mut peer = Self::new(led, socket, reader);
        while !rest.is_empty() {
            peer.step(rest, false)?;
        }
        Ok(())
    }

    fn extension(led: &'a Led, mut socket: &'a TcpStream, reader: &'a Reader, rest: &mut &[u8]) -> io::Result<()> {
        socket.write_all(&Start::Extension(VERSION).header())?;
        socket.write_all(&[&[SECRET.len() as u8], SECRET.as_bytes()].concat())?;
        let mut fields = Fields::default().with(field::ID, &id(rest).get().to_le_bytes());
        if input::byte(rest).is_multiple_of(2) {
            fields = fields.with(field::DATA_SET, &led.leader.data_set().to_bytes());
        }
        fields.write(&mut socket)?;
        let mut peer = Self::new(led, socket, reader);
        while !rest.is_empty() {
            peer.step(rest, true)?;
        }
        Ok(())
    }

    fn step(&mut self, rest: &mut &[u8], extension: bool) -> io::Result<()> {
        match input::byte(rest) % 8 {
            0 => {
                let most = usize::from(input::byte(rest));
                self.socket.write_all(input::bytes(rest, most))
            }
            1 => {
                let before = self.reader.seen.lock().unwrap().received;
                self.reader.wait(&mut self.wait_left, |seen| seen.received > before);
                Ok(())
            }
            2 => {
                let steps = u32::from(input::byte(rest) % 8);
                self.reader.wait(&mut self.wait_left, |seen| seen.steps >= steps);
                Ok(())
            }
            3 => {
                let most = usize::from(input::byte(rest));
                self.led.append(input::bytes(rest, most));
                Ok(())
            }
            4 if extension => self.marks(rest),
            4 => self.acknowledge(rest),
            5 if extension => self.inventory(rest),
            5 => self.requests(rest),
            6 => {
                let _ = self.led.leader.request_durable();
                Ok(())
            }
            _ if extension => self.say(&Message::Heartbeat(u64::from(input::byte(rest)))),
            _ => Ok(()),
        }
    }

    fn say(&mut self, message: &Message) -> io::Result<()> {
        let mut wire = Vec::new();
        message.encode(&mut wire);
        self.socket.write_all(&wire)
    }

    /// All that was received, and a little more or less.
    fn marks(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        let received = self.reader.seen.lock().unwrap().received;
        let mut mark = || received.saturating_add_signed(i64::from(input::byte(rest).cast_signed()));
        let marks = Marks { received: mark(), written: mark(), durable: mark() };
        self.say(&Message::Marks(marks))
    }

    fn acknowledge(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        let received = self.reader.seen.lock().unwrap().received;
        let received = received.saturating_add_signed(i64::from(input::byte(rest).cast_signed()));
        let bytes = received.wrapping_sub(self.said);
        self.said = received;
        self.socket.write_all(&bytes.to_le_bytes())
    }

    /// A sum that is not the leader's, or several, and then the leader's files, some of them spoilt.
    fn inventory(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        let how = input::byte(rest);
        self.say(&Message::Sums(vec![[how; 20]; 1 + usize::from(how / 250)]))?;
        self.say(&Message::SumsEnd)?;
        let mut files = Vec::new();
        for held in &self.led.held {
            let how = input::byte(rest);
            let mut file = held.clone();
            if how & 1 != 0 {
                continue;
            }
            if how & 2 != 0 {
                file.len = (file.len / 2) + u64::from(how >> 4);
                file.digests.resize(file.len.div_ceil(CHUNK_BYTES) as usize, [how; 20]);
            }
            if how & 4 != 0 {
                file.digests.iter_mut().for_each(|digest| digest[0] ^= how >> 4);
            }
            if how & 8 != 0 {
                let name = input::bytes(rest, usize::from(how >> 4));
                file.path = RelPath::from_bytes(name).unwrap_or(file.path);
            }
            files.push(file);
        }
        self.say(&Message::Inventory(files))?;
        self.say(&Message::InventoryEnd)
    }

    /// Some of the files that were listed.
    fn requests(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        let which = input::byte(rest);
        let listed = std::mem::take(&mut self.reader.seen.lock().unwrap().listed);
        let asked: Vec<_> = listed.iter().enumerate().filter(|(at, _)| which >> (at % 8) & 1 != 0).collect();
        for (_, name) in &asked {
            write_name(&mut self.socket, name)?;
        }
        self.reader.update(|seen| seen.asked = Some(asked.len()));
        write_end(&mut self.socket)
    }
}

fn id(rest: &mut &[u8]) -> NodeId {
    NodeId::new(i32::from(input::byte(rest)) + 1).expect("it is 1 or above")
}
