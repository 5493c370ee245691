//! The extension in bytes: what its page (`src/protocol/extension/PROTOCOL.md`) describes is what is spoken. The files in `tests/vectors` are for whoever
//! writes another implementation.
#![allow(missing_docs)]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;

use paceline::protocol::extension::{Attributes, Control, Fields, Held, Item, Marks, Message, Start, field};
use paceline::protocol::{ActionDecoder, ActionKind, EMPTY_BLOCK, Event, FRAME_HEADER, frame_reader};
use paceline::{DataSetId, RelPath};
use sha1::{Digest, Sha1};
use support::{PATIENCE, TestFollower, TestLeader, path, wait_until};

fn vectors(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn attributes() -> Attributes {
    Attributes { mode: 0o640, mtime: 1_700_000_000_123_456_789 }
}

fn items() -> [(RelPath, Item); 2] {
    let folder = Item::Folder(Attributes { mode: 0o755, mtime: Attributes::NO_TIME });
    [(path("dir"), folder), (path("dir/link"), Item::link(b"../target").unwrap())]
}

fn controls() -> Vec<(&'static str, Control)> {
    let (a, b) = (path("a"), path("dir/b"));
    let [(dir, folder), (name, link)] = items();
    vec![
        ("attributes", Control::Attributes(b.clone(), attributes())),
        ("item", Control::Item(dir.clone(), folder)),
        ("item", Control::Item(name, link)),
        ("remove-item", Control::RemoveItem(dir)),
        ("rename", Control::Rename { from: a.clone(), to: b.clone() }),
        ("truncate", Control::Truncate { path: a.clone(), len: 258 }),
        ("empty", Control::Empty(b.clone())),
        ("patch", Control::PatchAt { path: b.clone(), offset: 1 << 18 }),
        ("hole", Control::Hole { path: b, offset: 1 << 18, len: 1 << 16 }),
        ("make-durable", Control::MakeDurable),
        ("opening?", Control::Opening(500_000)),
        ("want", Control::Want(4)),
        ("tell", Control::Tell(vec![1, 9])),
        ("tell-ends", Control::TellEnds),
        ("sync-begins", Control::SyncBegins { files: 2, bytes: 1 << 33 }),
        ("stage", Control::Stage(a)),
        ("place", Control::Place),
        ("unstage", Control::Unstage),
        ("sync-ends", Control::SyncEnds),
        ("position", Control::Position(77)),
        ("heartbeat", Control::Heartbeat { position: 77, clock_us: 1_800_000_000_000_000 }),
        ("goodbye", Control::Goodbye { back_in_ms: 1000, reason: "the leader shuts down".to_owned() }),
    ]
}

fn messages() -> Vec<(&'static str, Message)> {
    let digest: [u8; 20] = Sha1::digest(b"content").into();
    let held = Held { path: path("dir/b"), len: 7, digests: vec![digest], attributes: attributes() };
    vec![
        ("sums", Message::Sums(vec![[0; 20], digest])),
        ("sums end", Message::SumsEnd),
        ("inventory", Message::Inventory(vec![held])),
        ("items", Message::Items(items().to_vec())),
        ("inventory end", Message::InventoryEnd),
        ("marks", Message::Marks(Marks { received: 300, written: 200, durable: 100 })),
        ("heartbeat", Message::Heartbeat(1 << 20)),
        ("farewell", Message::Farewell("the disk is full".to_owned())),
        ("kept", Message::Kept(77)),
    ]
}

fn fields() -> Vec<(&'static str, Fields)> {
    let follower = Fields::default().with(field::ID, &1_i32.to_le_bytes());
    let leader = Fields::default()
        .with(field::ID, &2_i32.to_le_bytes())
        .with(field::DATA_SET, &DataSetId::from_bytes([3; 16]).to_bytes())
        .with(field::EPOCH, &4_u64.to_le_bytes())
        .with(field::HEARTBEAT_MS, &1000_u32.to_le_bytes())
        .with(field::TERM, &5_u64.to_le_bytes())
        .with(field::ADMITTED_IN_MS, &6000_u32.to_le_bytes())
        .with(field::LAST_EVICTION, b"queue full (7 s ago)");
    vec![("of a follower", follower), ("of a leader", leader)]
}

fn encoded_message(message: &Message) -> Vec<u8> {
    let mut wire = Vec::new();
    message.encode(&mut wire);
    wire
}

/// Each in bytes, as the file has it.
fn table() -> String {
    let mut lines = vec![
        ("start", hex(&Start::Extension(2).header())),
        ("frame header", hex(&FRAME_HEADER)),
        ("empty block", hex(&EMPTY_BLOCK)),
    ];
    let mut wires: Vec<(&str, &str, Vec<u8>)> = Vec::new();
    for (name, fields) in fields() {
        let mut wire = Vec::new();
        fields.write(&mut wire).unwrap();
        wires.push(("fields", name, wire));
    }
    wires.extend(messages().iter().map(|(name, message)| ("message", *name, encoded_message(message))));
    for (name, control) in controls() {
        let mut wire = Vec::new();
        control.encode(&mut wire);
        wires.push(("control", name, wire));
    }
    let mut table = String::new();
    for (name, hex) in lines.drain(..) {
        let _ = writeln!(table, "{name}: {hex}");
    }
    for (kind, name, wire) in wires {
        let _ = writeln!(table, "{kind} {name}: {}", hex(&wire));
    }
    table
}

#[test]
fn fields_messages_and_controls_are_these_bytes() {
    let kept = fs::read_to_string(vectors("extension.txt")).unwrap();
    let kept: Vec<_> = kept.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(kept, table().lines().collect::<Vec<_>>());
    for (name, message) in messages() {
        assert_eq!(Message::read(&mut &encoded_message(&message)[..]).unwrap(), Some(message), "{name}");
    }
    for (name, control) in controls() {
        let mut wire = Vec::new();
        control.encode(&mut wire);
        let (mut decoder, mut input) = (ActionDecoder::new(), &wire[..]);
        let Some(Event::Action { path, kind }) = decoder.next(&mut input).unwrap() else { panic!("{name}") };
        assert_eq!(path.as_str(), format!("$paceline/{name}"));
        assert_eq!(kind, ActionKind::Append(input.len() as u64), "{name}");
        assert_eq!(Control::decode(&path, input).unwrap(), Some(control));
    }
}

/// What a leader said, one line for each action and control.
fn leader_said(mut wire: &[u8]) -> String {
    assert_eq!(Start::read(&mut wire).unwrap(), Start::Extension(2));
    assert_eq!(wire[0], 0, "accepted");
    wire = &wire[1..];
    let fields = Fields::read(&mut wire).unwrap();
    let mut said =
        format!("fields: heartbeat {:?} ms, term {:?}\n", fields.u32(field::HEARTBEAT_MS), fields.u64(field::TERM));
    let mut raw = Vec::new();
    // Never ended, only cut.
    let _ = frame_reader(wire).read_to_end(&mut raw);
    let (mut decoder, mut input) = (ActionDecoder::new(), &raw[..]);
    let mut last = None;
    while let Some(event) = decoder.next(&mut input).unwrap() {
        match event {
            Event::Action { path, kind } if Control::is_control(&path) => {
                last = Some((path, kind.payload_bytes(), Vec::new()))
            }
            Event::Action { path, kind } => {
                let _ = writeln!(said, "{kind:?} {path}");
            }
            Event::Payload { bytes, remaining } => {
                if let Some((path, _, content)) = &mut last {
                    content.extend_from_slice(bytes);
                    if remaining == 0 {
                        match Control::decode(path, content).unwrap().unwrap() {
                            // Of its own time.
                            Control::Heartbeat { .. } => {}
                            control => {
                                let _ = writeln!(said, "{control:?}");
                            }
                        }
                        last = None;
                    }
                }
            }
            Event::Heartbeat => {}
        }
    }
    said
}

/// What a follower said, without how often it said where it is.
fn follower_said(mut wire: &[u8]) -> String {
    assert_eq!(Start::read(&mut wire).unwrap(), Start::Extension(2));
    let secret = usize::from(wire[0]);
    wire = &wire[1 + secret..];
    let fields = Fields::read(&mut wire).unwrap();
    let mut said = format!("fields: data set {}\n", fields.data_set().is_some());
    let mut last = Marks::default();
    while !wire.is_empty() {
        match Message::read(&mut wire).unwrap().unwrap() {
            Message::Heartbeat(_) | Message::Kept(_) => {}
            Message::Marks(marks) => {
                assert!(marks.received >= marks.written && marks.written >= marks.durable, "{marks:?}");
                assert!(
                    marks.received >= last.received && marks.written >= last.written && marks.durable >= last.durable
                );
                last = marks;
            }
            message => {
                let _ = writeln!(said, "{message:?}");
            }
        }
    }
    let _ = writeln!(said, "at the end {last:?}");
    said
}

#[test]
fn a_captured_session_is_read_as_it_was_meant() {
    let leader = leader_said(&fs::read(vectors("extension-leader.bin")).unwrap());
    let follower = follower_said(&fs::read(vectors("extension-follower.bin")).unwrap());
    let kept = fs::read_to_string(vectors("extension-session.txt")).unwrap();
    assert_eq!(format!("leader\n{leader}\nfollower\n{follower}"), kept);
}

/// Passes everything on, and keeps what came.
fn record(mut from: TcpStream, mut to: TcpStream) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        all.extend_from_slice(&buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    all
}

#[test]
#[ignore = "writes the vectors anew"]
fn write_the_vectors() {
    fs::write(vectors("extension.txt"), format!("# See README.md.\n{}", table())).unwrap();
    let leader = TestLeader::with(|config| config.heartbeat_interval = PATIENCE);
    for (name, content) in [("same", &b"content"[..]), ("grown", b"content, and more"), ("new", b"new")] {
        leader.append(name, content);
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [("same", "content"), ("grown", "content"), ("gone", "not the leader's")] {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = between.local_addr().unwrap();
    let recorder = std::thread::spawn(move || {
        let (follower, _) = between.accept().unwrap();
        let leader_socket = TcpStream::connect(leader.address).unwrap();
        let (from, to) = (follower.try_clone().unwrap(), leader_socket.try_clone().unwrap());
        let said = std::thread::spawn(move || record(from, to));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                leader.wait_in_sync(1);
                leader.append("same", b" appended");
                fs::rename(leader.dir.path().join("new"), leader.dir.path().join("renamed")).unwrap();
                leader.leader.rename(&path("new"), &path("renamed")).unwrap();
                leader.delete("grown");
                leader.leader.request_durable().unwrap();
                leader.wait_in_sync(1);
                leader.leader.shutdown(PATIENCE);
            });
            let leader_bytes = record(leader_socket, follower);
            (leader_bytes, said.join().unwrap())
        })
    });
    let follower = TestFollower::with(address, dir, |config| config.adopt = paceline::config::Adopt::Nobodys);
    wait_until("the session has ended", || recorder.is_finished());
    drop(follower);
    let (leader_bytes, follower_bytes) = recorder.join().unwrap();
    let session = format!("leader\n{}\nfollower\n{}", leader_said(&leader_bytes), follower_said(&follower_bytes));
    fs::write(vectors("extension-leader.bin"), leader_bytes).unwrap();
    fs::write(vectors("extension-follower.bin"), follower_bytes).unwrap();
    fs::write(vectors("extension-session.txt"), session).unwrap();
}
