//! A leader of the extension made of protocol functions and one socket, which does exactly what a test says, good or bad.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use paceline::RelPath;
use paceline::protocol::extension::{
    Attributes, CHUNK_BYTES, Control, Fields, Held, Item, Marks, Message, Start, Sum, TELL_MAX, VERSION, field,
};
use paceline::protocol::{self, FRAME_HEADER, FrameWriter, read_secret};

use super::fake_leader::{FakeLeader, PATIENCE, sha1};

/// An interval that no test waits for.
pub(crate) const LONG: Duration = Duration::from_secs(600);

/// What a leader says of itself.
pub(crate) fn about(heartbeat: Duration) -> Fields {
    let interval = u32::try_from(heartbeat.as_millis()).unwrap();
    Fields::default()
        .with(field::ID, &0x7fff_fff0_i32.to_le_bytes())
        .with(field::EPOCH, &7_u64.to_le_bytes())
        .with(field::HEARTBEAT_MS, &interval.to_le_bytes())
}

pub(crate) fn encoded(controls: &[Control]) -> Vec<u8> {
    let mut wire = Vec::new();
    controls.iter().for_each(|control| control.encode(&mut wire));
    wire
}

pub(crate) fn path(name: &str) -> RelPath {
    RelPath::new(name).unwrap()
}

/// What an inventory says of a file with this content.
pub(crate) fn held(name: &str, content: &[u8]) -> Held {
    let chunk = usize::try_from(CHUNK_BYTES).unwrap();
    Held {
        path: path(name),
        len: content.len() as u64,
        digests: content.chunks(chunk).map(sha1).collect(),
        attributes: Attributes::UNKNOWN,
    }
}

fn unknown(held: Held) -> Held {
    Held { attributes: Attributes::UNKNOWN, ..held }
}

impl FakeLeader {
    /// The next connection, which asks for the extension, of which the start header was read.
    #[track_caller]
    pub(crate) fn accept_extension_start(&self) -> TcpStream {
        let mut socket = self.accept_raw();
        assert_eq!(Start::read(&mut socket).unwrap(), Start::Extension(VERSION));
        socket
    }

    /// The next connection, in the extension, up to the beginning of the frame.
    #[track_caller]
    pub(crate) fn accept_extension(&self, about: &Fields) -> Extension {
        let mut socket = self.accept_extension_start();
        // It says nothing more until it is answered.
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        assert_eq!(socket.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(&Start::Extension(VERSION).header()).unwrap();
        let secret = read_secret(&mut socket).unwrap();
        socket.write_all(&[protocol::ACCEPTED]).unwrap();
        let fields = Fields::read(&mut socket).unwrap();
        about.write(&mut socket).unwrap();
        socket.write_all(&FRAME_HEADER).unwrap();
        let out = FrameWriter::new(socket.try_clone().unwrap());
        Extension { socket, out, secret, fields, sent: 0, marks: Marks::default(), heartbeats: 0, digested: 0 }
    }

    /// A connection whose inventory was told, and whose sync has ended with nothing sent.
    #[track_caller]
    pub(crate) fn accept_in_sync(&self) -> (Extension, Vec<Held>) {
        let mut connection = self.accept_extension(&about(LONG));
        let inventory = connection.inventory();
        connection.sync(b"");
        (connection, inventory)
    }
}

/// A follower's connection, seen from the leader.
pub(crate) struct Extension {
    pub(crate) socket: TcpStream,
    pub(crate) out: FrameWriter<TcpStream>,
    pub(crate) secret: Vec<u8>,
    pub(crate) fields: Fields,
    /// Action bytes.
    pub(crate) sent: u64,
    /// The last that were read.
    pub(crate) marks: Marks,
    pub(crate) heartbeats: u64,
    /// As the last heartbeat said.
    pub(crate) digested: u64,
}

impl Extension {
    /// Sends these actions in a block; returns how many bytes of actions were sent before.
    #[track_caller]
    pub(crate) fn send(&mut self, actions: &[u8]) -> u64 {
        let before = self.sent;
        self.sent += actions.len() as u64;
        self.out.write_all(actions).unwrap();
        self.out.flush().unwrap();
        before
    }

    #[track_caller]
    pub(crate) fn control(&mut self, control: Control) -> u64 {
        self.send(&encoded(&[control]))
    }

    /// Asks for the sums of 2^`bits` buckets and reads them.
    #[track_caller]
    pub(crate) fn sums(&mut self, bits: u8) -> Vec<Sum> {
        self.control(Control::Want(bits));
        let mut sums = Vec::new();
        loop {
            match self.message() {
                Message::Sums(some) => sums.extend(some),
                Message::SumsEnd => break,
                Message::Inventory(_) | Message::Items(_) | Message::InventoryEnd => panic!("nobody asked for files"),
                Message::Marks(_) | Message::Heartbeat(_) | Message::Farewell(_) | Message::Kept(_) => {}
            }
        }
        assert_eq!(sums.len(), 1 << bits);
        sums
    }

    /// Asks for the files of these buckets and reads them; without their attributes.
    #[track_caller]
    pub(crate) fn files_of(&mut self, buckets: &[u32]) -> Vec<Held> {
        self.all_of(buckets).0.into_iter().map(unknown).collect()
    }

    /// The same with attributes, folders and links.
    #[track_caller]
    pub(crate) fn all_of(&mut self, buckets: &[u32]) -> (Vec<Held>, Vec<(RelPath, Item)>) {
        for some in buckets.chunks(TELL_MAX) {
            self.control(Control::Tell(some.to_vec()));
        }
        self.control(Control::TellEnds);
        let (mut inventory, mut all_items) = (Vec::new(), Vec::new());
        loop {
            match self.message() {
                Message::Inventory(files) => inventory.extend(files),
                Message::Items(items) => all_items.extend(items),
                Message::InventoryEnd => return (inventory, all_items),
                Message::Sums(_) | Message::SumsEnd => panic!("nobody asked for sums"),
                Message::Marks(_) | Message::Heartbeat(_) | Message::Farewell(_) | Message::Kept(_) => {}
            }
        }
    }

    /// Asks for all that there is and reads it.
    #[track_caller]
    pub(crate) fn inventory(&mut self) -> Vec<Held> {
        let sums = self.sums(1);
        let (inventory, items) = self.all_of(&[0, 1]);
        assert_eq!(sums == [Sum::default(); 2], inventory.is_empty() && items.is_empty());
        inventory.into_iter().map(unknown).collect()
    }

    /// A sync of these actions, of which nothing is left out; returns when they are written and it is durable.
    #[track_caller]
    pub(crate) fn sync(&mut self, actions: &[u8]) {
        self.control(Control::SyncBegins { files: 1, bytes: actions.len() as u64 });
        self.send(actions);
        self.control(Control::SyncEnds);
        let end = self.control(Control::Position(0));
        self.wait_durable(end);
    }

    /// Sends these actions and waits until they are written.
    #[track_caller]
    pub(crate) fn stream(&mut self, actions: &[u8]) {
        self.send(actions);
        self.wait_written(self.sent);
    }

    /// Reads a message. Marks are checked and kept.
    #[track_caller]
    pub(crate) fn message(&mut self) -> Message {
        let message = Message::read(&mut self.socket).unwrap().expect("a known message");
        match &message {
            Message::Marks(marks) => {
                let before = std::mem::replace(&mut self.marks, *marks);
                assert!(marks.received >= marks.written && marks.written >= marks.durable, "{marks:?}");
                assert!(marks.received <= self.sent, "{marks:?} of {}", self.sent);
                assert!(marks.received >= before.received && marks.written >= before.written, "{before:?} {marks:?}");
                assert!(marks.durable >= before.durable && *marks != before, "{before:?} {marks:?}");
            }
            Message::Heartbeat(digested) => {
                assert!(*digested >= self.digested, "{digested} after {}", self.digested);
                self.digested = *digested;
                self.heartbeats += 1;
            }
            _ => {}
        }
        message
    }

    #[track_caller]
    pub(crate) fn wait_written(&mut self, total: u64) {
        while self.marks.written < total {
            self.message();
        }
    }

    #[track_caller]
    pub(crate) fn wait_durable(&mut self, total: u64) {
        while self.marks.durable < total {
            self.message();
        }
    }

    /// Reads until the follower has closed the connection.
    #[track_caller]
    pub(crate) fn wait_closed(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "the follower went on");
            match self.socket.read(&mut [0; 4096]) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) fn close_now(self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
