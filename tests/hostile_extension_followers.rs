//! Peers that ask for the extension and then break it, or say nothing: each is let go with a reason, and everyone else goes on.
#![allow(missing_docs)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use paceline::leader::{EvictionReason, FollowerState};
use paceline::protocol::extension::{
    Attributes, CHUNK_BYTES, Control, Fields, Held, MESSAGE_BYTES_MAX, Marks, Message, Start, VERSION, field,
};
use paceline::protocol::{ACCEPTED, ActionDecoder, ActionKind, EMPTY_BLOCK, Event, FRAME_HEADER};
use paceline::{NodeId, OnFull};
use support::logs::lines;
use support::{PATIENCE, TestFollower, TestLeader, path, wait_until};

/// A follower of the extension made by hand.
struct Peer {
    socket: TcpStream,
    frame: Box<dyn Read>,
    /// Empty blocks of the frame that came.
    empty_blocks: Arc<AtomicU64>,
    decoder: ActionDecoder,
    id: NodeId,
    /// Action bytes read, controls included.
    received: u64,
    buffer: Vec<u8>,
}

/// What the leader said.
#[derive(Debug, PartialEq)]
enum Said {
    Control(Control),
    Action(String, ActionKind, Vec<u8>),
}

/// An action that begins, or bytes of its content.
type Heard = (Option<(String, ActionKind)>, Vec<u8>);

/// Counts the empty blocks of a frame.
struct Counted {
    socket: TcpStream,
    empty: Arc<AtomicU64>,
    /// Bytes until the next block's length.
    within: usize,
    length: Vec<u8>,
}

impl Read for Counted {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let read = self.socket.read(out)?;
        let mut rest = &out[..read];
        while !rest.is_empty() {
            let passed = self.within.min(rest.len());
            (self.within, rest) = (self.within - passed, &rest[passed..]);
            let wanted = (4 - self.length.len()).min(rest.len());
            self.length.extend_from_slice(&rest[..wanted]);
            rest = &rest[wanted..];
            if let Ok(length) = <[u8; 4]>::try_from(&self.length[..]) {
                self.empty.fetch_add(u64::from(length == EMPTY_BLOCK), Ordering::SeqCst);
                self.within = usize::try_from(u32::from_le_bytes(length) & !(1 << 31)).unwrap();
                self.length.clear();
            }
        }
        Ok(read)
    }
}

/// From all that was sent, the marks to say.
type Spoil = fn(u64) -> [u64; 3];

/// Up to where the fields of the follower are due.
fn accepted(leader: &TestLeader) -> TcpStream {
    let mut socket = TcpStream::connect(leader.address).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(&Start::Extension(7).header()).unwrap();
    assert_eq!(Start::read(&mut socket).unwrap(), Start::Extension(VERSION));
    socket.write_all(b"\x11the tests' secret").unwrap();
    let mut answer = [0];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [ACCEPTED]);
    socket
}

impl Peer {
    fn connect(leader: &TestLeader) -> Self {
        let mut socket = accepted(leader);
        let id = NodeId::random();
        let fields = Fields::default().with(60_000, b"of a later version").with(field::ID, &id.get().to_le_bytes());
        fields.write(&mut socket).unwrap();
        let about = Fields::read(&mut socket).unwrap();
        assert_eq!(about.id().unwrap(), leader.leader.id());
        assert!(about.u64(field::EPOCH).is_some() && about.u32(field::HEARTBEAT_MS).is_some());
        let empty_blocks = Arc::default();
        let counted = Counted {
            socket: socket.try_clone().unwrap(),
            empty: Arc::clone(&empty_blocks),
            within: FRAME_HEADER.len(),
            length: Vec::new(),
        };
        let frame = Box::new(paceline::protocol::frame_reader(counted));
        Self { socket, frame, empty_blocks, decoder: ActionDecoder::new(), id, received: 0, buffer: Vec::new() }
    }

    fn say(&mut self, message: &Message) {
        let mut wire = Vec::new();
        message.encode(&mut wire);
        self.raw(&wire);
    }

    /// The leader may have closed already.
    fn raw(&mut self, wire: &[u8]) {
        let _ = self.socket.write_all(wire);
    }

    fn marks(&mut self, received: u64, written: u64, durable: u64) {
        self.say(&Message::Marks(Marks { received, written, durable }));
    }

    fn acknowledge(&mut self) {
        self.marks(self.received, self.received, 0);
    }

    /// The next that the leader says, heartbeats left out; `None` at the end.
    fn next(&mut self) -> Option<Said> {
        loop {
            match self.hear()? {
                // Each that joins, this or another, is asked to make durable what it has.
                Said::Control(Control::MakeDurable) => {}
                said => return Some(said),
            }
        }
    }

    fn hear(&mut self) -> Option<Said> {
        loop {
            let (name, kind) = match self.event()? {
                (Some(action), _) => action,
                (None, _) => continue,
            };
            let mut content = Vec::new();
            let mut left = kind.payload_bytes();
            while left > 0 {
                let (_, bytes) = self.event()?;
                left -= bytes.len() as u64;
                content.extend_from_slice(&bytes);
            }
            self.received += 4 + name.len() as u64 + 8 + content.len() as u64;
            let at = path(&name);
            if !Control::is_control(&at) {
                return Some(Said::Action(name, kind, content));
            }
            match Control::decode(&at, &content).unwrap().expect("a control of this version") {
                Control::Heartbeat { .. } => {}
                control => return Some(Said::Control(control)),
            }
        }
    }

    fn event(&mut self) -> Option<Heard> {
        loop {
            let mut input = &self.buffer[..];
            let before = input.len();
            let event = match self.decoder.next(&mut input).unwrap() {
                None => None,
                Some(Event::Action { path, kind }) => Some((Some((path.to_string(), kind)), Vec::new())),
                Some(Event::Payload { bytes, .. }) => Some((None, bytes.to_vec())),
                Some(Event::Heartbeat) => Some((None, Vec::new())),
            };
            let used = before - input.len();
            self.buffer.drain(..used);
            if event.is_some() {
                return event;
            }
            let mut more = [0; 4096];
            match self.frame.read(&mut more) {
                Ok(length) if length > 0 => self.buffer.extend_from_slice(&more[..length]),
                _ => return None,
            }
        }
    }

    #[track_caller]
    fn expect(&mut self, control: &Control) {
        assert_eq!(self.next(), Some(Said::Control(control.clone())));
    }

    /// Reads up to the end of the sync; returns what came in it.
    fn sync(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        loop {
            match self.next().expect("the sync ends") {
                Said::Control(Control::SyncEnds) => return said,
                other => said.push(other),
            }
        }
    }

    /// Says that it has something else than the leader, and is asked for it.
    fn asked(mut self) -> Self {
        self.expect(&Control::Want(0));
        self.say(&Message::Sums(vec![[7; 20]]));
        self.say(&Message::SumsEnd);
        self.expect(&Control::Tell(vec![0]));
        self.expect(&Control::TellEnds);
        self
    }

    /// With an inventory of nothing: in sync, with an empty directory.
    fn join(mut self, leader: &TestLeader) -> Self {
        self = self.asked();
        self.say(&Message::InventoryEnd);
        self.sync();
        self.acknowledge();
        assert!(matches!(self.next(), Some(Said::Control(Control::Position(_)))));
        self.acknowledge();
        leader.wait_state(self.id, FollowerState::InSync);
        assert_eq!(self.hear(), Some(Said::Control(Control::MakeDurable)));
        self.acknowledge();
        self
    }
}

fn held(name: &str, content: &[u8]) -> Held {
    use sha1::{Digest, Sha1};
    let chunk = usize::try_from(CHUNK_BYTES).unwrap();
    let digests = content.chunks(chunk).map(|chunk| Sha1::digest(chunk).into()).collect();
    Held { path: path(name), len: content.len() as u64, digests, attributes: Attributes::UNKNOWN }
}

fn encoded(messages: &[Message]) -> Vec<u8> {
    let mut wire = Vec::new();
    messages.iter().for_each(|message| message.encode(&mut wire));
    wire
}

/// A message of this kind and body, however wrong.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &u32::try_from(body.len()).unwrap().to_le_bytes(), body].concat()
}

/// A leader with something, and a healthy follower.
fn scene() -> (TestLeader, TestFollower) {
    let leader = TestLeader::with(|config| config.readmit_delay_max = Duration::ZERO);
    leader.append("log", b"content");
    leader.append("other", b"content");
    let healthy = leader.follower();
    leader.wait_state(healthy.id(), FollowerState::InSync);
    (leader, healthy)
}

fn assert_unharmed(leader: &TestLeader, healthy: &TestFollower) {
    leader.append("log", b" and after");
    leader.assert_copies(&[healthy]);
    assert!(leader.leader.evictions().iter().all(|eviction| eviction.id != healthy.id()));
    leader.shut_down();
}

#[track_caller]
fn assert_violation(leader: &TestLeader, peer: &mut Peer, why: &str) {
    let eviction = leader.wait_evicted(peer.id);
    let EvictionReason::ProtocolViolation(said) = &eviction.reason else { panic!("{why}: {eviction}") };
    assert!(said.contains(why), "{said:?} does not say {why:?}");
    while peer.next().is_some() {}
}

#[test]
fn bad_fields_are_refused() {
    let (leader, healthy) = scene();
    let with_id = |id: i32| {
        let mut wire = Vec::new();
        Fields::default().with(field::ID, &id.to_le_bytes()).write(&mut wire).unwrap();
        wire
    };
    let record = |body: &[u8]| [&u32::try_from(body.len()).unwrap().to_le_bytes()[..], body].concat();
    let cases = [
        (with_id(0), "node id 0"),
        (with_id(-5), "node id -5"),
        (with_id(leader.leader.id().get()), "the leader's own id"),
        (record(b""), "node id 0"),
        (record(&[1, 0, 2, 0, 1, 0]), "node id 0"),
        (record(&[1, 0, 4]), "field"),
        (record(&[1, 0, 5, 0, 1, 0, 0, 0]), "field"),
        (u32::MAX.to_le_bytes().to_vec(), "length of fields"),
        (16_385_u32.to_le_bytes().to_vec(), "length of fields"),
    ];
    for (wire, why) in cases {
        let mut socket = accepted(&leader);
        let from = format!("refused connection from {}:", socket.local_addr().unwrap());
        socket.write_all(&wire).unwrap();
        wait_until(why, || lines(&[&from]).iter().any(|line| line.contains(why)));
        assert_eq!(socket.read(&mut [0]).unwrap_or(0), 0, "{why}: it was answered");
    }
    assert!(leader.leader.evictions().is_empty());
    assert_unharmed(&leader, &healthy);
}

#[test]
fn who_is_demoted_and_does_not_tell_what_it_has_is_evicted() {
    let leader = TestLeader::with(|config| {
        config.on_full = OnFull::CatchUp;
        config.queue_bytes = 1 << 20;
        config.sync_timeout = Duration::from_millis(400);
        (config.write_timeout, config.ack_timeout) = (PATIENCE, PATIENCE);
    });
    leader.append("log", b"content");
    let mut silent = Peer::connect(&leader).join(&leader);
    let bytes = support::noise(50_000);
    wait_until("it is demoted", || {
        leader.append("log", &bytes);
        leader.leader.followers().iter().any(|follower| follower.id == silent.id && follower.demotions > 0)
    });
    let mut asked = false;
    while let Some(said) = silent.next() {
        asked |= said == Said::Control(Control::Want(0));
        silent.acknowledge();
    }
    assert!(asked, "it was not asked what it has");
    let eviction = leader.wait_evicted_for(silent.id, &EvictionReason::NoSyncProgress);
    assert_ne!(eviction.state, FollowerState::InSync);
    leader.shut_down();
}

#[test]
fn bad_messages_end_the_connection_and_say_why() {
    let (leader, healthy) = scene();
    let name = |name: &[u8]| {
        let mut file = u16::try_from(name.len()).unwrap().to_le_bytes().to_vec();
        file.extend_from_slice(name);
        file.extend_from_slice(&0_u64.to_le_bytes());
        message(1, &file)
    };
    let twice = || Message::Inventory(vec![held("log", b"content")]);
    let marks = |received, written, durable| encoded(&[Message::Marks(Marks { received, written, durable })]);
    let sums = |count: usize| Message::Sums(vec![[7; 20]; count]);
    // In place of the sums.
    let beginning = [
        (encoded(&[sums(2)]), "sums"),
        (encoded(&[sums(1), sums(1)]), "sums"),
        (encoded(&[Message::SumsEnd]), "sums"),
        (message(6, &[0; 21]), "message"),
        (encoded(&[twice()]), "inventory"),
        (encoded(&[Message::InventoryEnd]), "inventory"),
    ];
    // Before, and in place of, the inventory's end.
    let joining = [
        (encoded(&[twice(), twice(), Message::InventoryEnd]), "request for \"log\""),
        (encoded(&[Message::InventoryEnd, Message::InventoryEnd]), "inventory"),
        (encoded(&[Message::InventoryEnd, twice()]), "inventory"),
        (encoded(&[sums(1)]), "inventory"),
        (encoded(&[Message::SumsEnd]), "inventory"),
        (name(b"../log"), "`..`"),
        (name(b"a/../log"), "`..`"),
        (name(b"/etc/passwd"), "absolute"),
        (name(b"log\0"), "NUL"),
        (name(b"l\xffg"), "not UTF-8"),
        (name(b""), "empty"),
        (message(1, &[3, 0, b'l']), "inventory"),
        (message(1, &[1, 0, b'l', 1, 0, 0, 0, 0, 0, 0, 0]), "inventory"),
        (message(1, &[&[1, 0, b'l'][..], &u64::MAX.to_le_bytes()].concat()), "inventory"),
        (message(2, b"x"), "message"),
        ([&[1][..], &u32::MAX.to_le_bytes()].concat(), "message length"),
        ([&[200][..], &u32::try_from(MESSAGE_BYTES_MAX + 1).unwrap().to_le_bytes()].concat(), "message length"),
        (marks(1_000_000, 0, 0), "acknowledged"),
    ];
    // By who is in sync.
    let streaming = [
        (encoded(&[Message::InventoryEnd]), "inventory"),
        (encoded(&[twice()]), "inventory"),
        (marks(0, 0, 0), "marks"),
        (marks(u64::MAX, u64::MAX, u64::MAX), "acknowledged"),
        (marks(50, 51, 0), "marks"),
        (marks(51, 50, 51), "marks"),
        (message(3, &[0; 23]), "marks"),
        (message(3, &[255; 25]), "message"),
        (message(4, b"x"), "heartbeat"),
        (message(4, &[1; 9]), "message"),
    ];
    for (wire, why) in &beginning {
        let mut peer = Peer::connect(&leader);
        peer.expect(&Control::Want(0));
        peer.raw(wire);
        assert_violation(&leader, &mut peer, why);
    }
    for (wire, why) in &joining {
        let mut peer = Peer::connect(&leader).asked();
        peer.raw(wire);
        assert_violation(&leader, &mut peer, why);
    }
    for (wire, why) in &streaming {
        let mut peer = Peer::connect(&leader).join(&leader);
        peer.raw(wire);
        assert_violation(&leader, &mut peer, why);
    }
    assert_eq!(leader.leader.evictions().len(), beginning.len() + joining.len() + streaming.len());
    assert_unharmed(&leader, &healthy);
}

#[test]
fn each_mark_goes_forward_only_and_not_beyond_what_was_sent() {
    let (leader, healthy) = scene();
    let spoiled: [(Spoil, &str); 5] = [
        (|all| [all + 1, all, 0], "acknowledged"),
        (|all| [all, all, all + 1], "marks"),
        (|all| [all - 1, all - 1, 0], "marks"),
        (|all| [all, all - 1, 0], "marks"),
        (|all| [all - 1, all, 0], "marks"),
    ];
    for (marks, why) in spoiled {
        let mut peer = Peer::connect(&leader).join(&leader);
        let [received, written, durable] = marks(peer.received);
        peer.marks(received, written, durable);
        assert_violation(&leader, &mut peer, why);
    }
    // Durable may stand still, and may come late.
    let mut peer = Peer::connect(&leader).join(&leader);
    leader.append("log", b"more");
    assert!(matches!(peer.next(), Some(Said::Action(name, ActionKind::Append(4), _)) if name == "log"));
    let all = peer.received;
    peer.marks(all, all - 1, all - 1);
    peer.marks(all, all, all - 1);
    peer.marks(all, all, all);
    wait_until("its marks are shown", || {
        let marks = leader.status(peer.id).unwrap().marks;
        marks == Some(Marks { received: all, written: all, durable: all })
    });
    drop(peer);
    wait_until("it has gone", || leader.leader.followers().len() == 1);
    assert_unharmed(&leader, &healthy);
}

#[test]
fn messages_of_a_later_version_are_passed_over() {
    let (leader, healthy) = scene();
    let mut peer = Peer::connect(&leader);
    peer.raw(&message(77, &[1; 1000]));
    peer = peer.asked();
    peer.raw(&message(255, b""));
    peer.say(&Message::Heartbeat(9));
    peer.say(&Message::Inventory(vec![held("log", b"content"), held("gone", b"x"), held("$reserved", b"y")]));
    peer.raw(&message(0, b"0"));
    peer.say(&Message::InventoryEnd);
    let said = peer.sync();
    assert!(matches!(said[0], Said::Control(Control::SyncBegins { files: 1, bytes: 7 })), "{said:?}");
    let expected = [
        Said::Action("gone".to_owned(), ActionKind::Delete, vec![]),
        Said::Action("other".to_owned(), ActionKind::Append(7), b"content".to_vec()),
    ];
    assert_eq!(said[1..], expected);
    peer.acknowledge();
    assert!(matches!(peer.next(), Some(Said::Control(Control::Position(_)))));
    peer.raw(&message(200, b"later"));
    peer.acknowledge();
    leader.wait_state(peer.id, FollowerState::InSync);
    drop(peer);
    wait_until("it has gone", || leader.leader.followers().len() == 1);
    assert!(leader.leader.evictions().is_empty());
    assert_unharmed(&leader, &healthy);
}

#[test]
fn a_leader_that_reads_slowly_says_that_it_is_alive_between_two_pieces_too() {
    let leader = TestLeader::with(|config| {
        config.heartbeat_interval = Duration::from_millis(10);
        // Read, and sent, in eight pieces.
        config.sync_rate = Some(1 << 20);
    });
    let content: Vec<u8> = std::iter::repeat_with({
        let mut random = fastrand::Rng::with_seed(3);
        move || random.u8(..)
    })
    .take(1 << 20)
    .collect();
    leader.append("log", &content);
    let mut peer = Peer::connect(&leader).asked();
    peer.say(&Message::InventoryEnd);
    loop {
        match peer.event().expect("it is sent") {
            (Some((name, ActionKind::Append(_))), _) if name == "log" => break,
            _ => {}
        }
    }
    let before = peer.empty_blocks.load(Ordering::SeqCst);
    let (mut received, mut within) = (0, before);
    while received < content.len() {
        // What has been read ahead is less than what is missing by then.
        if received < content.len() / 2 {
            within = peer.empty_blocks.load(Ordering::SeqCst);
        }
        received += peer.event().expect("it is sent").1.len();
    }
    assert!(within > before, "between two pieces nothing said that the leader is alive");
}

#[test]
fn who_says_nothing_is_let_go_and_who_does_is_not() {
    let leader = TestLeader::with(|config| config.heartbeat_interval = Duration::from_millis(50));
    leader.append("log", b"content");
    let healthy = leader.follower();
    leader.wait_state(healthy.id(), FollowerState::InSync);
    // In sync, it owes nothing but a sign of life.
    let silent = Peer::connect(&leader).join(&leader);
    // Joining, it owes the inventory.
    let dumb = Peer::connect(&leader);
    leader.wait_evicted_for(silent.id, &EvictionReason::Silent);
    leader.wait_evicted_for(dumb.id, &EvictionReason::Silent);
    assert_unharmed(&leader, &healthy);
}

#[test]
fn who_has_everything_is_told_of_a_shutdown() {
    let (leader, healthy) = scene();
    let mut peer = Peer::connect(&leader).join(&leader);
    let mut behind = Peer::connect(&leader).join(&leader);
    leader.append("log", b"the last");
    assert!(matches!(peer.next(), Some(Said::Action(..))));
    peer.acknowledge();
    wait_until("two have it", || {
        let end = Some(leader.leader.position());
        leader.leader.followers().iter().filter(|follower| follower.acknowledged >= end).count() == 2
    });
    let report = leader.leader.shutdown(Duration::ZERO);
    assert_eq!(report.threads_left, 0, "{report:?}");
    let mut drained = report.drained.clone();
    drained.sort();
    let mut expected = vec![healthy.id(), peer.id];
    expected.sort();
    assert_eq!(drained, expected);
    assert_eq!(report.undrained.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [behind.id]);
    match peer.next() {
        Some(Said::Control(Control::Goodbye { back_in_ms, reason })) => {
            assert!(back_in_ms > 0 && reason.contains("shuts down"), "{reason}");
        }
        other => panic!("{other:?} in place of a goodbye"),
    }
    assert_eq!(peer.next(), None);
    while let Some(said) = behind.next() {
        assert!(!matches!(said, Said::Control(Control::Goodbye { .. })), "it had not everything");
    }
    wait_until("the follower knows why", || {
        healthy.follower.status().last_eviction.is_some_and(|why| why.contains("shuts down"))
    });
}

#[test]
fn a_replacement_that_cannot_be_read_to_its_end_is_given_up_and_the_connection_goes_on() {
    const LONG: usize = 32 << 20;
    let leader = TestLeader::with(|config| (config.write_timeout, config.ack_timeout) = (PATIENCE, PATIENCE));
    let mut peer = Peer::connect(&leader).join(&leader);
    let content = support::noise(LONG);
    leader.replace("a", &content);
    peer.expect(&Control::Stage(path("a")));
    leader.leader.append(&path("a"), LONG as u64, b"has no place there").unwrap();
    leader.append("b", b"of another");
    // It is being read: what does not fit the connection was not yet.
    let file = std::fs::File::options().write(true).open(leader.dir.path().join("a")).unwrap();
    file.set_len(1000).unwrap();
    let mut got = Vec::new();
    let append = |name: &str, bytes: &[u8]| {
        Said::Action(name.to_owned(), ActionKind::Append(bytes.len() as u64), bytes.to_vec())
    };
    loop {
        match peer.next().expect("the connection goes on") {
            Said::Action(name, ActionKind::Append(_), bytes) if name == "a" => got.extend_from_slice(&bytes),
            said => break assert_eq!(said, Said::Control(Control::Unstage)),
        }
    }
    assert!(got.len() < LONG && content.starts_with(&got), "{} bytes that the file never had", got.len());
    // Positions are told where less was sent than was announced.
    let mut next = || {
        loop {
            match peer.next() {
                Some(Said::Control(Control::Position(_))) => {}
                said => return said,
            }
        }
    };
    assert_eq!(next(), Some(Said::Control(Control::Empty(path("b")))));
    assert_eq!(next(), Some(append("b", b"of another")));
    // As it is on disk by now.
    assert_eq!(next(), Some(Said::Control(Control::Stage(path("a")))));
    assert_eq!(next(), Some(append("a", &content[..1000])));
    assert_eq!(next(), Some(Said::Control(Control::Place)));
    assert!(matches!(peer.next(), Some(Said::Control(Control::Position(_)))));
}

#[test]
fn what_it_has_of_a_file_that_cannot_be_sent_and_is_renamed_is_renamed_and_never_deleted() {
    let leader = TestLeader::with(|config| (config.write_timeout, config.ack_timeout) = (PATIENCE, PATIENCE));
    let mut peer = Peer::connect(&leader).join(&leader);
    leader.append("a", b"what it has");
    // More than the connection holds: what follows is to be read when it is gone.
    leader.append("first", &support::noise(32 << 20));
    leader.append("a", &support::noise(1 << 20));
    std::fs::File::options().write(true).open(leader.dir.path().join("a")).unwrap().set_len(11).unwrap();
    leader.rename("a", "b");
    let mut said = Vec::new();
    while said.last() != Some(&Said::Control(Control::Place)) {
        match peer.next().expect("it is not let go") {
            Said::Action(name, ..) if name == "first" => {}
            Said::Control(Control::Position(_) | Control::Empty(_)) => {}
            other => said.push(other),
        }
    }
    let append = |name: &str| Said::Action(name.to_owned(), ActionKind::Append(11), b"what it has".to_vec());
    let expected = [
        append("a"),
        Said::Control(Control::Rename { from: path("a"), to: path("b") }),
        // As it was found, and announced anew.
        Said::Control(Control::Stage(path("b"))),
        append("b"),
        Said::Control(Control::Place),
    ];
    assert_eq!(said, expected);
    assert!(leader.leader.evictions().is_empty());
}

#[test]
fn a_file_of_which_it_has_nothing_and_that_cannot_be_sent_is_not_renamed() {
    let leader = TestLeader::with(|config| (config.write_timeout, config.ack_timeout) = (PATIENCE, PATIENCE));
    let mut peer = Peer::connect(&leader).join(&leader);
    leader.append("first", &support::noise(32 << 20));
    leader.append("a", &support::noise(1 << 20));
    std::fs::File::options().write(true).open(leader.dir.path().join("a")).unwrap().set_len(0).unwrap();
    leader.rename("a", "b");
    let mut said = Vec::new();
    while said.last() != Some(&Said::Control(Control::Empty(path("b")))) {
        match peer.next().expect("it is not let go") {
            Said::Action(name, ..) if name == "first" => {}
            Said::Control(Control::Position(_)) => {}
            Said::Control(Control::Empty(made)) if made != path("b") => {}
            other => said.push(other),
        }
    }
    let gone = Said::Action("a".to_owned(), ActionKind::Delete, Vec::new());
    assert_eq!(said, [gone, Said::Control(Control::Empty(path("b")))]);
    assert!(leader.leader.evictions().is_empty());
}
