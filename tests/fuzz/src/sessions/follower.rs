//! A follower and what a leader may say.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use paceline::fuzzing::{FromLeader, Stands, follow_extension, follow_v1};
use paceline::protocol::extension::{Control, Fields, Start, VERSION, field};
use paceline::protocol::{ACCEPTED, FRAME_HEADER, FrameWriter, read_node_id, read_secret, read_start_header};
use paceline::{Adopt, DataSetId, Follower, FollowerConfig, NodeId, Protocol, Secret};

use paceline_fuzz::{Scene, bounded, input};

thread_local! {
    static SCENE: RefCell<Option<Scene>> = const { RefCell::new(None) };
}

fn with_scene(body: impl FnOnce(&Scene)) {
    SCENE.with_borrow_mut(|scene| body(scene.get_or_insert_with(Scene::make)));
}

/// Beyond the input: buffers for hashing and for appends, a list's tables.
const FOLLOWER_BYTES_MAX: usize = 4 << 20;

/// How it stands, and with which blocks it is read, in a byte.
fn leader<'a>(rest: &mut &'a [u8]) -> (FromLeader<'a>, bool) {
    let (how, block_bytes) = (input::byte(rest), usize::from(input::byte(rest)) * 8);
    let stands = [Stands::Trusted, Stands::Unproven, Stands::Guest][usize::from(how) % 3];
    let leader = FromLeader { said: rest, block_bytes: block_bytes.max(1), stands, other: how & 0x40 != 0 };
    (leader, how & 0x80 == 0)
}

pub fn v1(input: &[u8]) {
    let (leader, with_files) = leader(&mut &input[..]);
    with_scene(|scene| {
        let path = scene.begin(with_files);
        bounded(FOLLOWER_BYTES_MAX + input.len() * 64, 64 << 10, || {
            let Err(error) = follow_v1(path, &leader);
            assert!(!error.to_string().is_empty());
        });
        scene.end();
    });
}

/// What comes before an input's own actions.
fn opening(kind: u8) -> Vec<u8> {
    let mut said = Vec::new();
    if kind > 0 {
        Control::Want(1).encode(&mut said);
    }
    if kind == 2 {
        Control::Tell(vec![1]).encode(&mut said);
        Control::TellEnds.encode(&mut said);
    }
    if kind > 1 {
        Control::SyncBegins { files: 1, bytes: 10 }.encode(&mut said);
    }
    if kind > 2 {
        Control::SyncEnds.encode(&mut said);
    }
    if kind > 3 {
        Control::Position(10).encode(&mut said);
        Control::MakeDurable.encode(&mut said);
    }
    said
}

pub fn extension(input: &[u8]) {
    let rest = &mut &input[..];
    let mut said = opening(input::byte(rest) % 5);
    let (leader, with_files) = leader(rest);
    said.extend_from_slice(leader.said);
    let leader = FromLeader { said: &said, ..leader };
    with_scene(|scene| {
        let path = scene.begin(with_files);
        bounded(FOLLOWER_BYTES_MAX + input.len() * 64, 256 << 10, || {
            if let Err(error) = follow_extension(path, &leader) {
                assert!(!error.to_string().is_empty());
            }
        });
        scene.end();
    });
}

/// Some seconds of a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

const SECRET: &str = "secret";

/// Beyond the input: the frame's blocks, threads, buffers of sockets' readers.
const CONNECTION_BYTES_MAX: usize = 24 << 20;

pub fn connection(input: &[u8]) {
    let rest = &mut &input[..];
    let mode = input::byte(rest);
    let said = *rest;
    thread_local! {
        static LISTENER: TcpListener = TcpListener::bind("127.0.0.1:0").unwrap();
    }
    with_scene(|scene| {
        let path = scene.begin(mode & 0x80 == 0);
        LISTENER.with(|listener| {
            let mut config =
                FollowerConfig::new(listener.local_addr().unwrap().to_string(), path, Secret::new(SECRET).unwrap());
            config.once = mode & 0x40 == 0;
            config.protocol = if matches!(mode % 5, 1 | 3) { Protocol::V1 } else { Protocol::Auto };
            config.adopt = if mode & 0x20 == 0 { Adopt::Nothing } else { Adopt::Nobodys };
            config.retry_delay_min = Duration::from_secs(600);
            config.retry_delay_max = Duration::from_secs(600);
            bounded(CONNECTION_BYTES_MAX + input.len() * 64, 1 << 20, || {
                let follower = Follower::start(config).unwrap();
                serve(listener, &follower, mode, said);
                follower.stop();
            });
        });
        scene.end();
    });
}

/// Serves its connections until there are no more.
fn serve(listener: &TcpListener, follower: &Follower, mode: u8, said: &[u8]) {
    listener.set_nonblocking(true).unwrap();
    let began = Instant::now();
    loop {
        match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(false).unwrap();
                // The follower may close at any time.
                let _ = speak(&socket, mode, said);
                until_closed(&socket);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        let status = follower.status();
        if status.last_disconnect.is_some() || follower.wait(Some(Duration::from_micros(200))).is_some() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "it does not end: {status:?}");
    }
}

/// As far as a leader comes before an input's own bytes; these are within the frame in the last two modes.
fn speak(mut socket: &TcpStream, mode: u8, said: &[u8]) -> Result<(), paceline::protocol::ProtocolError> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mode = mode % 5;
    match mode {
        1 | 3 => {
            read_start_header(&mut socket)?;
            read_secret(&mut socket)?;
            socket.write_all(&[ACCEPTED])?;
            read_node_id(&mut socket)?;
        }
        2 | 4 => {
            Start::read(&mut socket)?;
            socket.write_all(&Start::Extension(VERSION).header())?;
            read_secret(&mut socket)?;
            socket.write_all(&[ACCEPTED])?;
            Fields::read(&mut socket)?;
            if mode == 4 {
                let id = NodeId::new(i32::MAX).expect("it is an id");
                let fields = Fields::default().with(field::ID, &id.get().to_le_bytes());
                fields.with(field::DATA_SET, &DataSetId::from_bytes([1; 16]).to_bytes()).write(&mut socket)?;
            }
        }
        _ => {}
    }
    if mode < 3 {
        socket.write_all(said)?;
    } else {
        let mut frame = FrameWriter::new(FRAME_HEADER.to_vec());
        if mode == 4 {
            // The answer comes while the rest is on its way.
            let mut want = Vec::new();
            Control::Want(0).encode(&mut want);
            frame.write_all(&want)?;
            frame.flush()?;
            socket.write_all(frame.get_mut())?;
            frame.get_mut().clear();
            let mut sums = [0; 64];
            let _ = socket.read(&mut sums)?;
        }
        frame.write_all(said)?;
        frame.flush()?;
        socket.write_all(frame.get_mut())?;
    }
    Ok(())
}

fn until_closed(mut socket: &TcpStream) {
    let _ = socket.shutdown(Shutdown::Write);
    let _ = socket.set_read_timeout(Some(PATIENCE));
    let mut buffer = [0; 4096];
    loop {
        match socket.read(&mut buffer) {
            Ok(1..) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("it does not close"),
            _ => return,
        }
    }
}
