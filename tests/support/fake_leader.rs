//! A leader of 1.0.0 made of protocol functions and one socket, which does exactly what a test says, good or bad.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use paceline::protocol::extension::Start;
use paceline::protocol::{
    self, ActionKind, FRAME_HEADER, FrameWriter, START_HEADER, encode_action_header, read_name, read_node_id,
    read_secret, write_end, write_list_entry,
};
use paceline::{Follower, FollowerConfig, NodeId, RelPath, Secret};
use sha1::{Digest, Sha1};
use tempfile::TempDir;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Of a follower that comes back at once.
pub(crate) fn config(leader: &FakeLeader, dir: &Path) -> FollowerConfig {
    let mut config = FollowerConfig::new(leader.address(), dir, Secret::new("s3cret").unwrap());
    config.retry_delay_min = Duration::from_millis(1);
    config.retry_delay_max = Duration::from_millis(20);
    config
}

/// A leader, and a follower with an empty directory.
pub(crate) fn started() -> (FakeLeader, TempDir, Follower) {
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    let follower = Follower::start(config(&leader, dir.path())).unwrap();
    (leader, dir, follower)
}

pub(crate) fn sha1(bytes: &[u8]) -> [u8; 20] {
    Sha1::digest(bytes).into()
}

/// Name to content.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

pub(crate) fn files(files: &[(&str, &[u8])]) -> Files {
    files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect()
}

/// All files in a directory and its folders, but for the follower's own that are always there; a folder without any file is
/// a defect, but for the follower's.
pub(crate) fn files_in(root: &Path) -> Files {
    fn add(root: &Path, at: &Path, files: &mut Files) {
        let before = files.len();
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            // What a sync took away is no part of the copy.
            if name == ".paceline/kept" {
                continue;
            }
            if path.is_dir() {
                add(root, &path, files);
            } else if ![".lock", ".clustering_id", ".paceline/data-set", ".paceline/digests"].contains(&&*name) {
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
        let own = at == root || at.ends_with(".paceline");
        assert!(files.len() > before || own, "{} is an empty folder", at.display());
    }
    let mut files = Files::new();
    add(root, root, &mut files);
    files
}

/// The bytes of an action.
pub(crate) fn action(name: &str, kind: ActionKind, payload: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    encode_action_header(&mut wire, &RelPath::new(name).unwrap(), kind);
    wire.extend_from_slice(payload);
    wire
}

pub(crate) fn append(name: &str, payload: &[u8]) -> Vec<u8> {
    action(name, ActionKind::Append(payload.len() as u64), payload)
}

pub(crate) fn replace(name: &str, payload: &[u8]) -> Vec<u8> {
    action(name, ActionKind::Replace(payload.len() as u64), payload)
}

pub(crate) fn delete(name: &str) -> Vec<u8> {
    action(name, ActionKind::Delete, b"")
}

/// Waits for followers.
pub(crate) struct FakeLeader {
    listener: TcpListener,
}

impl FakeLeader {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener }
    }

    pub(crate) fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// Makes the sockets of connections to come hold little.
    pub(crate) fn shrink_buffers(&self) {
        let socket = socket2::SockRef::from(&self.listener);
        socket.set_recv_buffer_size(4 << 10).unwrap();
        socket.set_send_buffer_size(4 << 10).unwrap();
    }

    /// The next connection, of which nothing has been read.
    #[track_caller]
    pub(crate) fn accept_raw(&self) -> TcpStream {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    socket.set_nonblocking(false).unwrap();
                    socket.set_nodelay(true).unwrap();
                    // A test fails rather than hangs.
                    socket.set_read_timeout(Some(PATIENCE)).unwrap();
                    socket.set_write_timeout(Some(PATIENCE)).unwrap();
                    return socket;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            assert!(Instant::now() < deadline, "no follower came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The next connection that speaks 1.0.0, of which the start header has been read. One that asks for the extension is
    /// answered as LavinMQ answers any header that it does not know.
    #[track_caller]
    pub(crate) fn accept_start(&self) -> TcpStream {
        loop {
            let mut socket = self.accept_raw();
            match Start::read(&mut socket) {
                Ok(Start::V1) => return socket,
                Ok(Start::Extension(_)) => socket.write_all(&START_HEADER).unwrap(),
                // It was stopped meanwhile, and another one comes.
                Err(error) if error.is_disconnect() => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next connection, accepted: the handshake is done and nothing of the LZ4 frame is sent.
    #[track_caller]
    pub(crate) fn accept_without_frame(&self) -> Connection {
        loop {
            let mut socket = self.accept_start();
            let secret = read_secret(&mut socket).unwrap();
            socket.write_all(&[protocol::ACCEPTED]).unwrap();
            match read_node_id(&mut socket) {
                Ok(id) => {
                    return Connection { out: FrameWriter::new(socket.try_clone().unwrap()), socket, secret, id };
                }
                // It had waited for too long, and another one comes.
                Err(error) if error.is_disconnect() => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next connection, accepted, with the frame begun.
    #[track_caller]
    pub(crate) fn accept(&self) -> Connection {
        let mut connection = self.accept_without_frame();
        connection.socket.write_all(&FRAME_HEADER).unwrap();
        connection
    }
}

/// A follower's connection, seen from the leader.
pub(crate) struct Connection {
    pub(crate) socket: TcpStream,
    pub(crate) out: FrameWriter<TcpStream>,
    pub(crate) secret: Vec<u8>,
    pub(crate) id: NodeId,
}

impl Connection {
    /// Sends these bytes in a block.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.out.write_all(bytes).unwrap();
        self.out.flush().unwrap();
    }

    /// Sends a list with these files' true SHA-1s.
    #[track_caller]
    pub(crate) fn list(&mut self, files: &Files) {
        for (name, content) in files {
            write_list_entry(&mut self.out, &RelPath::new(name).unwrap(), &sha1(content)).unwrap();
        }
        write_end(&mut self.out).unwrap();
        self.out.flush().unwrap();
    }

    /// Sends a list that nobody checked.
    pub(crate) fn raw_list(&mut self, names: &[&[u8]]) {
        let mut wire = Vec::new();
        for name in names {
            wire.extend_from_slice(&i32::try_from(name.len()).unwrap().to_le_bytes());
            wire.extend_from_slice(name);
            wire.extend_from_slice(&[1; 20]);
        }
        wire.extend_from_slice(&[0; 4]);
        // A follower that refuses it may close before all of it is sent.
        let _ = self.out.write_all(&wire).and_then(|()| self.out.flush());
    }

    /// Reads a round of requests.
    #[track_caller]
    pub(crate) fn requests(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(name) = read_name(&mut self.socket).unwrap() {
            names.push(name.to_string());
        }
        names
    }

    /// Answers a request.
    #[track_caller]
    pub(crate) fn content(&mut self, bytes: &[u8]) {
        self.out.write_all(&(bytes.len() as u64).to_le_bytes()).unwrap();
        self.send(bytes);
    }

    /// A round as a good leader does it; returns what was asked for.
    #[track_caller]
    pub(crate) fn round(&mut self, files: &Files) -> Vec<String> {
        self.list(files);
        let names = self.requests();
        for name in &names {
            self.content(&files[name]);
        }
        names
    }

    /// Both rounds; returns what was asked for in the first. There must be nothing to ask for in the second.
    #[track_caller]
    pub(crate) fn sync(&mut self, files: &Files) -> Vec<String> {
        let names = self.round(files);
        assert_eq!(self.round(files), [""; 0], "asked for in the second round");
        names
    }

    /// Reads acknowledgements until they add up to `bytes`.
    #[track_caller]
    pub(crate) fn acknowledged(&mut self, bytes: usize) {
        let mut rest = i64::try_from(bytes).unwrap();
        while rest > 0 {
            let mut count = [0; 8];
            self.socket.read_exact(&mut count).unwrap();
            let count = i64::from_le_bytes(count);
            assert!(count > 0 && count <= rest, "acknowledged {count} of {rest}");
            rest -= count;
        }
    }

    /// Streams this and waits until all of it is acknowledged.
    #[track_caller]
    pub(crate) fn stream(&mut self, actions: &[u8]) {
        self.send(actions);
        self.acknowledged(actions.len());
    }

    /// Whether the follower has closed the connection, with nothing more said.
    #[track_caller]
    pub(crate) fn is_closed_silently(&mut self) -> bool {
        match self.socket.read(&mut [0]) {
            Ok(length) => length == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }

    pub(crate) fn close(self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
