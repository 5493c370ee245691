//! Shutting down: at every stage of a follower, with everything in motion, it never hangs and leaves no thread.
#![allow(missing_docs)]

mod support;

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use paceline::leader::FollowerState;
use paceline::protocol::{START_HEADER, write_hello, write_node_id};
use paceline::{AppendError, Error, LeaderConfig, NodeId};
use support::fake_follower::FakeFollower;
use support::relay::Relay;
use support::{PATIENCE, TestFollower, TestLeader, assert_exact, assert_same, noise, path, secret, wait_until};

/// No deadline ends what shutting down should.
fn patient(config: &mut LeaderConfig) {
    config.handshake_timeout = 10 * PATIENCE;
    config.sync_timeout = 10 * PATIENCE;
    config.write_timeout = 10 * PATIENCE;
    config.ack_timeout = 10 * PATIENCE;
}

/// With a file larger than what sockets hold, listed first, and one of a few bytes.
fn leader() -> TestLeader {
    let leader = TestLeader::with(patient);
    leader.append("big", &noise(24 << 20));
    leader.append("small", b"few bytes");
    leader
}

type Stage = (&'static str, fn(&TestLeader) -> FakeFollower);

fn joined(leader: &TestLeader) -> FakeFollower {
    let peer = leader.narrow_fake().join();
    leader.wait_state(peer.id(), FollowerState::InSync);
    peer
}

/// Each brings a follower to a stage and leaves it there.
const STAGES: [Stage; 13] = [
    ("silent", |leader| FakeFollower::connect(leader.address)),
    ("half a header", |leader| {
        let mut peer = FakeFollower::connect(leader.address);
        peer.socket.write_all(&START_HEADER[..4]).unwrap();
        peer
    }),
    ("before its id", |leader| {
        let mut peer = FakeFollower::connect(leader.address);
        assert_eq!(peer.hello(&secret()), 0);
        peer
    }),
    ("refused and still there", |leader| {
        let mut peer = FakeFollower::connect(leader.address);
        peer.socket.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        peer
    }),
    ("waiting for its turn", |leader| {
        // It sits in the first one's bulk.
        std::mem::forget(in_bulk(leader));
        let peer = leader.fake();
        leader.wait_state(peer.id(), FollowerState::Waiting);
        peer
    }),
    ("not reading its list", |leader| {
        let peer = leader.narrow_fake();
        leader.wait_state(peer.id(), FollowerState::Syncing);
        peer
    }),
    ("before its requests", |leader| {
        let mut peer = leader.fake();
        peer.list();
        peer
    }),
    ("in its bulk", in_bulk),
    ("before its second requests", |leader| {
        let mut peer = leader.fake();
        peer.list();
        peer.request([]);
        peer.list();
        peer
    }),
    ("before the probe's acknowledgement", |leader| {
        let mut peer = leader.fake();
        for _ in 0..2 {
            peer.list();
            peer.request([]);
        }
        leader.wait_state(peer.id(), FollowerState::CatchingUp);
        peer
    }),
    ("catching up", |leader| {
        let mut peer = leader.narrow_fake();
        peer.list();
        leader.append("more", &noise(24 << 20));
        peer.request([]);
        peer.list();
        peer.request([]);
        peer.pass_probe();
        leader.wait_state(peer.id(), FollowerState::CatchingUp);
        peer
    }),
    ("idle in the stream", joined),
    ("stalled in the stream", |leader| {
        let peer = joined(leader);
        leader.append("big", &noise(24 << 20));
        peer
    }),
];

fn in_bulk(leader: &TestLeader) -> FakeFollower {
    let mut peer = leader.narrow_fake();
    peer.list();
    peer.request([&path("big")]);
    let sent = || leader.leader.followers().iter().find(|f| f.id == peer.id()).map_or(0, |f| f.sync.bytes_sent);
    wait_until("its bulk has begun", || sent() > 0);
    peer
}

#[test]
fn followers_standing_still_at_any_stage_do_not_hold_it_up() {
    for (stage, bring) in STAGES {
        let leader = leader();
        let peer = bring(&leader);
        let report = leader.leader.shutdown(Duration::ZERO);
        assert_eq!(report.threads_left, 0, "{stage}: {report:?}");
        assert!(leader.leader.followers().is_empty(), "{stage}");
        peer.wait_closed();
        let again = leader.leader.shutdown(PATIENCE);
        assert!(
            again.drained.is_empty() && again.undrained.is_empty() && again.threads_left == 0,
            "{stage}: {again:?}"
        );
    }
}

#[test]
fn followers_at_all_stages_at_once_do_not_hold_it_up_nor_what_is_drained() {
    let leader = TestLeader::with(patient);
    leader.append("big", &noise(24 << 20));
    let healthy = leader.follower();
    leader.wait_in_sync(1);
    // A full sync at a time: who stands still in one only after all others got where they should.
    let _peers: Vec<_> = STAGES.iter().rev().map(|(_, bring)| bring(&leader)).collect();
    leader.append("log", &noise(2 << 20));
    let report = leader.leader.shutdown(Duration::from_secs(3));
    assert_eq!(report.threads_left, 0, "{report:?}");
    assert_eq!(report.drained.iter().filter(|id| **id == healthy.follower.id()).count(), 1, "{report:?}");
    assert!(report.undrained.iter().any(|(_, lag)| lag.is_some_and(|lag| lag > 2 << 20)), "{report:?}");
    assert!(report.undrained.iter().any(|(_, lag)| lag.is_none()), "{report:?}");
    assert_same(leader.dir.path(), healthy.dir.path());
}

#[test]
fn everything_announced_before_it_is_delivered() {
    for round in 0..10 {
        let leader = TestLeader::start();
        let followers = [leader.follower(), leader.follower()];
        leader.wait_in_sync(2);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let leader = &leader;
                scope.spawn(move || {
                    for at in 0..200 {
                        leader.append(&format!("log{thread}"), &vec![round; at * 10]);
                    }
                    leader.append("shared", &noise(700_000));
                });
            }
        });
        let report = leader.leader.shutdown(PATIENCE);
        assert_eq!((report.drained.len(), report.undrained.len(), report.threads_left), (2, 0, 0), "{report:?}");
        for follower in &followers {
            assert_same(leader.dir.path(), follower.dir.path());
        }
    }
}

#[test]
fn appends_from_many_threads_are_refused_from_some_moment_on_and_never_hang() {
    let leader = TestLeader::start();
    let _follower = leader.follower();
    let _stalled = joined(&leader);
    let taken = AtomicUsize::new(0);
    let files: Vec<_> = (0..4).map(|at| leader.leader.file(&path(&format!("log{at}"))).unwrap()).collect();
    std::thread::scope(|scope| {
        for mut file in files {
            let taken = &taken;
            scope.spawn(move || {
                loop {
                    match file.append(&[1; 2000]) {
                        Ok(_) => taken.fetch_add(1, Ordering::Relaxed),
                        Err(AppendError::ShuttingDown) => return,
                        Err(error) => panic!("{error}"),
                    };
                }
            });
        }
        wait_until("appends are taken", || taken.load(Ordering::Relaxed) > 1000);
        leader.shut_down();
    });
    assert!(matches!(leader.leader.delete(&path("log0")), Err(AppendError::ShuttingDown)));
    assert!(matches!(leader.leader.listen("127.0.0.1:0"), Err(Error::ShuttingDown)));
}

#[test]
fn connections_that_come_meanwhile_are_closed() {
    for _ in 0..40 {
        let leader = TestLeader::with(patient);
        let stop = AtomicBool::new(false);
        let connected = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (stop, connected, address) = (&stop, &connected, leader.address);
                scope.spawn(move || {
                    let mut peers = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let Ok(mut socket) = std::net::TcpStream::connect(address) else { continue };
                        if thread == 0 {
                            let _ = write_hello(&mut socket, &secret());
                            let _ = write_node_id(&mut socket, NodeId::random());
                        }
                        peers.push(socket);
                        connected.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            wait_until("some are connected", || connected.load(Ordering::Relaxed) > 20);
            let report = leader.leader.shutdown(Duration::ZERO);
            stop.store(true, Ordering::Relaxed);
            assert_eq!(report.threads_left, 0, "{report:?}");
        });
    }
}

#[test]
fn followers_that_leave_as_they_attach_leave_nothing_behind() {
    let leader = TestLeader::start();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..150).for_each(|_| drop(leader.fake().join())));
        }
    });
    // Nothing is appended: nobody but their own threads can notice.
    wait_until("all have gone", || leader.leader.followers().is_empty());
    leader.shut_down();
}

#[test]
fn who_was_not_sent_what_had_gone_lacks_it_at_the_end_too() {
    let leader = TestLeader::with(patient);
    let relay = Relay::start(leader.address);
    let follower = TestFollower::on(relay.address, tempfile::tempdir().unwrap());
    leader.wait_state(follower.id(), FollowerState::InSync);
    relay.hold();
    // More than the system's buffers take on any host: what comes after is read when the link is released.
    leader.append("log", &noise(16 << 20));
    leader.append("cut", &noise(1 << 20));
    let cut = std::fs::File::options().write(true).open(leader.dir.path().join("cut")).unwrap();
    cut.set_len(1000).unwrap();
    let report = std::thread::scope(|scope| {
        let ending = scope.spawn(|| leader.leader.shutdown(PATIENCE));
        wait_until("nothing is announced any more", || leader.leader.request_durable().is_err());
        relay.release();
        ending.join().unwrap()
    });
    assert_eq!(report.drained, [follower.id()], "{report:?}");
    assert_exact(leader.dir.path(), follower.dir.path());
}
