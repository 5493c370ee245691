//! Peers that are no followers, or break the protocol: each is closed with a logged reason, and everyone else goes on.
#![allow(missing_docs)]

mod support;

use std::io::{Read, Write};
use std::time::Duration;

use paceline::leader::{EvictionReason, FollowerState};
use paceline::protocol::{ACCEPTED, PROBE_NAME, REFUSED, START_HEADER, write_node_id};
use paceline::{NodeId, Secret};
use support::fake_follower::FakeFollower;
use support::logs::lines;
use support::{PATIENCE, TestLeader, path, secret, wait_until};

/// What it gets until the leader closes, and the line that is logged for it.
fn answer_to(leader: &TestLeader, sent: &[u8]) -> (Vec<u8>, String) {
    let mut peer = FakeFollower::connect(leader.address);
    peer.socket.write_all(sent).unwrap();
    let mut answer = Vec::new();
    peer.socket.read_to_end(&mut answer).expect("closed in good order");
    let from = format!("refused connection from {}:", peer.socket.local_addr().unwrap());
    let mut logged = Vec::new();
    wait_until("the refusal is logged", || {
        logged = lines(&[&from]);
        !logged.is_empty()
    });
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert!(logged[0].starts_with("WARN "), "{}", logged[0]);
    (answer, logged.remove(0))
}

fn hello(secret: &[u8]) -> Vec<u8> {
    [&START_HEADER[..], &[u8::try_from(secret.len()).unwrap()], secret].concat()
}

fn hello_with_id(id: i32) -> Vec<u8> {
    [&hello(b"the tests' secret")[..], &id.to_le_bytes()].concat()
}

/// A healthy follower that was there all the time is there still, and a new one gets in.
fn assert_others_go_on(leader: &TestLeader) {
    let follower = leader.follower();
    leader.wait_state(follower.follower.id(), FollowerState::InSync);
    leader.append("log", b"after");
    leader.assert_copies(&[&follower]);
    leader.shut_down();
}

#[test]
fn another_header_is_answered_with_ours() {
    let leader = TestLeader::start();
    for header in [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), b"REPLI\x01\x01\x00".to_vec(), vec![0; 4000]] {
        let (answer, logged) = answer_to(&leader, &header);
        assert_eq!(answer, START_HEADER);
        assert!(logged.contains("unknown start header"), "{logged}");
    }
    assert_others_go_on(&leader);
}

#[test]
fn a_wrong_secret_is_refused_and_no_secret_is_logged() {
    let leader = TestLeader::start();
    for wrong in [&b"Tell nobody this one"[..], b"the tests' secreT", b"the tests' secret!", &[b'q'; 255], b"\0"] {
        let (answer, logged) = answer_to(&leader, &hello(wrong));
        assert_eq!(answer, [REFUSED]);
        assert!(logged.contains("wrong secret"), "{logged}");
    }
    let (answer, logged) = answer_to(&leader, &hello(b""));
    assert_eq!(answer, [REFUSED]);
    assert!(logged.contains("empty secret"), "{logged}");
    assert_others_go_on(&leader);
    for secret in ["Tell nobody", "tests' secre", "qqqq"] {
        assert_eq!(lines(&[secret]), [""; 0]);
        let bytes = format!("{:02x?}", secret.as_bytes());
        assert_eq!(lines(&[bytes.trim_matches(['[', ']'])]), [""; 0]);
    }
}

#[test]
fn the_leaders_own_id_and_ids_below_1_are_accepted_and_closed() {
    let leader = TestLeader::with(|config| config.id = Some(NodeId::new(77).unwrap()));
    for (id, why) in [(77, "the leader's own id 25"), (0, "node id 0"), (-1, "node id -1"), (i32::MIN, "node id -214")]
    {
        let (answer, logged) = answer_to(&leader, &hello_with_id(id));
        assert_eq!(answer, [ACCEPTED], "id {id}");
        assert!(logged.contains(why), "{logged}");
    }
    assert!(leader.leader.evictions().is_empty());
    assert_others_go_on(&leader);
}

#[test]
fn of_too_many_unauthenticated_connections_the_oldest_is_closed() {
    let leader = TestLeader::with(|config| {
        config.unauthenticated_max = 3;
        config.handshake_timeout = PATIENCE;
    });
    let mut silent: Vec<_> = (0..3).map(|_| FakeFollower::connect(leader.address)).collect();
    for _ in 0..3 {
        silent.push(FakeFollower::connect(leader.address));
        silent.remove(0).wait_closed();
    }
    // It counts as one until it has authenticated, and then no more.
    assert_others_go_on(&leader);
    silent.remove(0).wait_closed();
}

#[test]
fn authenticated_connections_do_not_count_as_unauthenticated() {
    let leader = TestLeader::with(|config| {
        config.unauthenticated_max = 1;
        config.handshake_timeout = PATIENCE;
    });
    let connected = || {
        let follower = leader.fake();
        wait_until("it is connected", || leader.leader.followers().iter().any(|f| f.id == follower.id()));
        follower
    };
    let mut followers: Vec<_> = (0..3).map(|_| connected()).collect();
    let _silent = FakeFollower::connect(leader.address);
    followers.push(connected());
    assert_eq!(leader.leader.followers().len(), 4);
    leader.shut_down();
}

#[test]
fn the_deadline_is_one_for_the_whole_handshake() {
    let leader = TestLeader::with(|config| config.handshake_timeout = Duration::from_millis(300));
    let peer = FakeFollower::connect(leader.address);
    let sent = hello(&[b'x'; 255]);
    let mut bytes = sent.iter();
    // A byte now and then: each read is in time, and there are enough for a minute.
    wait_until("it is closed in mid-secret", || {
        std::thread::park_timeout(Duration::from_millis(20));
        (&peer.socket).write_all(&[*bytes.next().expect("closed before all of it was read")]).is_err()
    });
    let from = format!("{}: did not authenticate within 300ms", peer.socket.local_addr().unwrap());
    assert_eq!(lines(&[&from]).len(), 1);
    assert_others_go_on(&leader);
}

#[test]
fn breaking_the_protocol_ends_the_connection_and_says_how() {
    let leader = TestLeader::start();
    leader.append("log", b"content");
    leader.append("other", b"content");
    let healthy = leader.follower();
    leader.wait_state(healthy.follower.id(), FollowerState::InSync);
    let name = |name: &[u8]| [&i32::try_from(name.len()).unwrap().to_le_bytes()[..], name].concat();
    let probe_bytes = i64::try_from(4 + PROBE_NAME.len() + 8).unwrap();
    // What a follower says once it was sent its first list.
    let requests = [
        (name(b"absent"), "request for \"absent\""),
        (name(b"lo"), "request for \"lo\""),
        (name(b".lock"), "request for \".lock\""),
        (name(b"log\nWARN evicted follower"), "request for \"log\\n"),
        ([name(b"log"), name(b"other"), name(b"log")].concat(), "request for \"log\""),
        (name(b"/etc/passwd"), "absolute"),
        (name(b"../log"), "`..`"),
        (name(b"x/../log"), "`..`"),
        (name(b"./log"), "`.`"),
        (name(b"log\0"), "NUL"),
        (name(b"l\xffg"), "not UTF-8"),
        ((-1_i32).to_le_bytes().to_vec(), "name length of -1"),
        (4097_i32.to_le_bytes().to_vec(), "name length of 4097"),
        (i32::MAX.to_le_bytes().to_vec(), "name length of 2147483647"),
        (i32::MIN.to_le_bytes().to_vec(), "name length of -2147483648"),
    ];
    // What it says once it has joined.
    let acks = [
        (1_i64.to_le_bytes().to_vec(), "acknowledged"),
        (i64::MAX.to_le_bytes().to_vec(), "acknowledged"),
        ((-1_i64).to_le_bytes().to_vec(), "acknowledgement of -1"),
        (i64::MIN.to_le_bytes().to_vec(), "acknowledgement of -9223372036854775808"),
        ([i64::MAX.to_le_bytes(), i64::MAX.to_le_bytes(), i64::MAX.to_le_bytes()].concat(), "acknowledged"),
    ];
    // And where only the probe was sent, which acknowledges it twice.
    let early = [((2 * probe_bytes).to_le_bytes().to_vec(), "when only")];
    for (case, (bytes, why)) in requests.iter().chain(&acks).chain(&early).enumerate() {
        let mut peer = leader.fake();
        if case < requests.len() {
            peer.list();
        } else if case < requests.len() + acks.len() {
            peer = peer.join();
            leader.wait_state(peer.id(), FollowerState::InSync);
        } else {
            peer.sync();
        }
        peer.socket.write_all(bytes).unwrap();
        let eviction = leader.wait_evicted(peer.id());
        let EvictionReason::ProtocolViolation(said) = &eviction.reason else { panic!("{why}: {eviction}") };
        assert!(said.contains(why), "{said:?} does not say {why:?}");
        peer.wait_closed();
    }
    assert_eq!(leader.leader.evictions().len(), requests.len() + acks.len() + early.len());
    leader.append("log", b" and after");
    leader.assert_copies(&[&healthy]);
    leader.shut_down();
}

#[test]
fn what_was_void_or_asked_for_before_may_be_asked_for_in_the_second_round() {
    let leader = TestLeader::start();
    leader.append("log", b"content");
    let mut peer = leader.fake();
    for _ in 0..2 {
        assert_eq!(peer.list().len(), 1);
        peer.request([&path("log")]);
        assert_eq!(peer.content(), b"content");
    }
    peer.pass_probe();
    leader.wait_state(peer.id(), FollowerState::InSync);
}

#[test]
fn acknowledgements_in_any_pieces_are_understood() {
    let leader = TestLeader::start();
    let mut peer = leader.fake().join();
    leader.wait_state(peer.id(), FollowerState::InSync);
    leader.append("log", &[7; 1000]);
    let mut bytes = vec![0; 4 + 3 + 8 + 1000];
    peer.frame.read_exact(&mut bytes).unwrap();
    for ack in std::iter::repeat_n(1_i64, 15).chain(std::iter::repeat_n(10, 100)) {
        for byte in ack.to_le_bytes() {
            peer.socket.write_all(&[byte]).unwrap();
        }
    }
    wait_until("all is acknowledged", || leader.leader.followers()[0].acknowledged == Some(leader.leader.position()));
}

#[test]
fn bytes_before_their_time_are_taken_for_what_they_will_be() {
    let leader = TestLeader::start();
    leader.append("log", b"content");
    let mut peer = FakeFollower::connect(leader.address);
    assert_eq!(peer.hello(&secret()), ACCEPTED);
    // Both rounds' requests at once, with the id: neither list is there yet.
    let mut early = Vec::new();
    write_node_id(&mut early, NodeId::random()).unwrap();
    early.extend_from_slice(&[0; 8]);
    peer.socket.write_all(&early).unwrap();
    assert_eq!((peer.list().len(), peer.list().len()), (1, 1));
    peer.pass_probe();
    wait_until("it is in sync", || {
        leader.leader.followers().iter().any(|follower| follower.state == FollowerState::InSync)
    });
    let wrong = Secret::new("another").unwrap();
    assert_eq!(FakeFollower::connect(leader.address).hello(&wrong), REFUSED);
}
