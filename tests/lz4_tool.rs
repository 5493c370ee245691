//! What our leader sends is an LZ4 frame to others, too: the `lz4` tool decodes it.
#![allow(missing_docs)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use paceline::protocol;
use support::{TestFollower, TestLeader, noise};

/// Stands between one follower and the leader, and keeps what the leader says.
fn relay(leader: SocketAddr) -> (SocketAddr, JoinHandle<Vec<u8>>) {
    fn copy(mut from: TcpStream, mut to: TcpStream) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 65536];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            all.extend_from_slice(&buffer[..length]);
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        all
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let recording = std::thread::spawn(move || {
        let near = listener.accept().unwrap().0;
        let far = TcpStream::connect(leader).unwrap();
        near.set_nodelay(true).unwrap();
        far.set_nodelay(true).unwrap();
        let (from, to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        std::thread::spawn(move || copy(from, to));
        copy(far, near)
    });
    (address, recording)
}

fn decoded_by_the_tool(frame: Vec<u8>) -> Vec<u8> {
    let spawned = Command::new("lz4").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut tool = match spawned {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("this test compares with the lz4 tool, which is not installed: install the package `lz4`")
        }
        spawned => spawned.unwrap(),
    };
    let mut input = tool.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(&frame));
    let mut decoded = Vec::new();
    tool.stdout.take().unwrap().read_to_end(&mut decoded).unwrap();
    assert!(tool.wait().unwrap().success(), "lz4 refused the frame");
    writer.join().unwrap().unwrap();
    decoded
}

#[test]
fn the_lz4_tool_decodes_everything_a_leader_sends() {
    let leader = TestLeader::start();
    leader.append("bulk/noise", &noise(1_000_000));
    leader.append("bulk/same", &[7; 1_000_000]);
    leader.append("bulk/one", b"1");
    let (address, recording) = relay(leader.address);
    let follower = TestFollower::v1(address);
    leader.wait_in_sync(1);
    for at in 0..300 {
        leader.append("log", &noise(at * 7));
        leader.append("json", br#"{"level":"info","message":"request done","status":200}"#);
    }
    leader.append("log", &noise(2_000_000));
    leader.append("json", &[b' '; 500_000]);
    leader.replace("bulk/one", &noise(400_000));
    leader.delete("bulk/same");
    leader.assert_copies(&[&follower]);
    leader.shut_down();

    let mut frame = recording.join().unwrap();
    assert_eq!(frame.remove(0), protocol::ACCEPTED);
    // A leader only ever cuts its frame.
    frame.extend_from_slice(&[0; 4]);
    let mut ours = Vec::new();
    protocol::frame_reader(&frame[..]).read_to_end(&mut ours).unwrap();
    assert!(ours.len() > 5_000_000, "bulk and stream are in it: {}", ours.len());
    let theirs = decoded_by_the_tool(frame);
    assert!(theirs == ours, "{} bytes by the tool, {} by us", theirs.len(), ours.len());
}
