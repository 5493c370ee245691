//! Followers that stop reading, or read slowly, at each stage: who stands still is let go by that stage's deadline and holds
//! up nobody, who moves is kept.
#![allow(missing_docs)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use paceline::leader::{EvictionReason, FollowerState};
use paceline::protocol::START_HEADER;
use paceline::{LeaderConfig, NodeId};
use support::fake_follower::FakeFollower;
use support::lavinmq::LavinMq;
use support::{PATIENCE, StopOnDrop, TestLeader, contents, noise, path, wait_until};
use tempfile::TempDir;

const SHORT: Duration = Duration::from_millis(400);

/// Files whose list is more than a socket's buffers hold: long names that do not compress.
fn thousands_of_files() -> TempDir {
    let mut random = fastrand::Rng::with_seed(1);
    let mut name = || std::iter::repeat_with(|| random.alphanumeric()).take(250).collect::<String>();
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..20 {
        let folder = dir.path().join(name());
        std::fs::create_dir(&folder).unwrap();
        for _ in 0..400 {
            std::fs::write(folder.join(name()), "x").unwrap();
        }
    }
    dir
}

fn one_big_file() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("big"), noise(24 << 20)).unwrap();
    dir
}

/// No deadline but those that a test sets is near.
fn patient(config: &mut LeaderConfig) {
    config.handshake_timeout = PATIENCE;
    config.sync_timeout = 10 * PATIENCE;
    config.write_timeout = PATIENCE;
    config.ack_timeout = PATIENCE;
}

/// A new follower joins, and appends are taken and reach it.
fn assert_others_work(leader: &TestLeader) {
    let follower = leader.follower();
    leader.wait_state(follower.follower.id(), FollowerState::InSync);
    for _ in 0..100 {
        leader.append("other", &[3; 1000]);
    }
    wait_until("the follower has it all", || {
        let end = Some(leader.leader.position());
        leader.leader.followers().iter().any(|f| f.id == follower.follower.id() && f.acknowledged >= end)
    });
    assert_eq!(contents(follower.dir.path()), contents(leader.dir.path()));
}

/// Waits until the leader's writes no longer move.
fn wait_stalled(leader: &TestLeader, id: NodeId) {
    let sent = || leader.leader.followers().iter().find(|f| f.id == id).map_or(0, |f| f.sent_bytes);
    let (mut last, mut since) = (0, Instant::now());
    wait_until("the follower's socket is full", || {
        let now = sent();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        now > 0 && since.elapsed() > Duration::from_millis(100)
    });
}

/// What a silent peer says before it falls silent, in each stage of the handshake.
fn handshake_beginnings() -> Vec<Vec<u8>> {
    let hello = [&START_HEADER[..], b"\x11the tests' secret"].concat();
    [0, 4, 8, 9, 15, hello.len(), hello.len() + 2]
        .into_iter()
        .map(|length| [&hello[..], &[1, 0, 0, 0]].concat()[..length].to_vec())
        .collect()
}

#[test]
fn silence_in_the_handshake_is_ended_by_its_deadline() {
    let leader = TestLeader::with(|config| {
        patient(config);
        config.handshake_timeout = SHORT;
    });
    let peers: Vec<_> = handshake_beginnings()
        .into_iter()
        .map(|beginning| {
            let peer = FakeFollower::connect(leader.address);
            (&peer.socket).write_all(&beginning).unwrap();
            peer
        })
        .collect();
    assert_others_work(&leader);
    for peer in peers {
        peer.wait_closed();
        let from = format!("{}: did not authenticate within", peer.socket.local_addr().unwrap());
        wait_until("why is logged", || support::logs::lines(&[&from]).len() == 1);
    }
    leader.shut_down();
}

#[test]
fn a_follower_that_stops_reading_the_list_is_ended_by_the_sync_deadline() {
    let leader = TestLeader::on(thousands_of_files(), |config| {
        patient(config);
        config.sync_timeout = SHORT;
    });
    let stalled = leader.narrow_fake();
    leader.wait_evicted_for(stalled.id(), &EvictionReason::NoSyncProgress);
    stalled.wait_closed();
    leader.shut_down();
}

#[test]
fn a_follower_that_stops_reading_the_bulk_is_ended_by_the_sync_deadline() {
    let leader = TestLeader::on(one_big_file(), |config| {
        patient(config);
        config.sync_timeout = SHORT;
    });
    let mut stalled = leader.narrow_fake();
    stalled.list();
    stalled.request([&path("big")]);
    let eviction = leader.wait_evicted_for(stalled.id(), &EvictionReason::NoSyncProgress);
    assert_eq!(eviction.state, FollowerState::Syncing);
    stalled.wait_closed();
    leader.shut_down();
}

#[test]
fn a_follower_that_stops_reading_what_it_catches_up_with_is_ended_by_the_sync_deadline() {
    let big = noise(24 << 20);
    let leader = TestLeader::with(|config| {
        patient(config);
        config.sync_timeout = 5 * SHORT;
    });
    let mut stalled = leader.narrow_fake();
    stalled.list();
    leader.append("big", &big);
    stalled.request([]);
    stalled.list();
    stalled.request([]);
    stalled.pass_probe();
    let eviction = leader.wait_evicted_for(stalled.id(), &EvictionReason::NoSyncProgress);
    assert_eq!(eviction.state, FollowerState::CatchingUp);
    leader.shut_down();
}

#[test]
fn joiners_that_never_send_their_requests_keep_nobody_from_joining() {
    let leader = TestLeader::with(patient);
    leader.append("log", b"something");
    let mut silent: Vec<_> = (0..3).map(|_| leader.fake()).collect();
    silent.iter_mut().for_each(|peer| assert_eq!(peer.list().len(), 1));
    assert_others_work(&leader);
    // In the second round neither.
    for peer in &mut silent {
        peer.request([]);
        peer.list();
    }
    assert_others_work(&leader);
    leader.shut_down();
}

#[test]
fn a_joiner_that_stops_reading_the_list_keeps_nobody_from_joining() {
    let leader = TestLeader::on(thousands_of_files(), patient);
    let stalled = leader.narrow_fake();
    wait_stalled(&leader, stalled.id());
    assert_others_work(&leader);
    leader.shut_down();
}

#[test]
fn a_joiner_that_stops_reading_the_bulk_keeps_nobody_from_joining() {
    let leader = TestLeader::on(one_big_file(), patient);
    let mut stalled = leader.narrow_fake();
    stalled.list();
    stalled.request([&path("big")]);
    wait_stalled(&leader, stalled.id());
    assert_others_work(&leader);
    leader.shut_down();
}

#[test]
fn a_joiner_that_reads_a_trickle_keeps_nobody_from_joining() {
    let leader = TestLeader::on(one_big_file(), patient);
    let mut slow = leader.narrow_fake();
    slow.list();
    slow.request([&path("big")]);
    let socket = slow.socket.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        while slow.frame.read_exact(&mut [0; 512]).is_ok() {
            std::thread::park_timeout(Duration::from_millis(10));
        }
    });
    assert_others_work(&leader);
    leader.shut_down();
    socket.shutdown(Shutdown::Both).unwrap();
    reader.join().unwrap();
}

/// Nothing of the leader moves but the appending thread: whatever an append waited for would never come.
#[test]
fn appends_complete_while_followers_stand_still_in_every_stage() {
    let leader = TestLeader::on(thousands_of_files(), |config| {
        patient(config);
        config.queue_bytes = 64 << 20;
    });
    std::fs::write(leader.dir.path().join("big"), noise(24 << 20)).unwrap();
    leader.leader.replace(&path("big")).unwrap();
    let mut stalled = Vec::new();
    for beginning in handshake_beginnings() {
        let mut peer = FakeFollower::connect(leader.address);
        peer.socket.write_all(&beginning).unwrap();
        stalled.push(peer);
    }
    // These come first: nobody attaches once others stand still in their bulk.
    for _ in 0..2 {
        let peer = leader.narrow_fake().join();
        leader.wait_state(peer.id(), FollowerState::InSync);
        stalled.push(peer);
    }
    leader.append("log", &noise(8 << 20));
    wait_stalled(&leader, stalled.last().unwrap().id());
    let in_list = leader.narrow_fake();
    wait_stalled(&leader, in_list.id());
    let mut in_bulk = leader.narrow_fake();
    in_bulk.list();
    in_bulk.request([&path("big")]);
    wait_stalled(&leader, in_bulk.id());
    let mut before_requests = leader.fake();
    before_requests.list();
    let mut before_probe_is_acknowledged = leader.fake();
    for _ in 0..2 {
        before_probe_is_acknowledged.list();
        before_probe_is_acknowledged.request([]);
    }
    leader.wait_state(before_probe_is_acknowledged.id(), FollowerState::CatchingUp);
    assert_eq!(leader.leader.followers().len(), 6);
    for _ in 0..20_000 {
        leader.append("log", &[5; 500]);
    }
    leader.replace("small", b"replaced");
    leader.replace("big", &noise(1 << 20));
    leader.delete("small");
    assert_eq!(leader.leader.followers().len(), 6, "nobody had to go for it: {:?}", leader.leader.evictions());
    leader.shut_down();
    drop((stalled, in_list, in_bulk, before_requests, before_probe_is_acknowledged));
}

/// Reads a little at a time off a full socket.
fn read_slowly(socket: &TcpStream, is_done: impl Fn() -> bool) {
    let mut buffer = [0; 4 << 10];
    while !is_done() {
        assert!((&*socket).read(&mut buffer).unwrap() > 0, "the leader closed it");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn a_slow_reader_is_kept_as_long_as_bytes_move() {
    // The kernels tell each other of freed buffers in steps that take this reader most of a second.
    let limit = 5 * SHORT;
    let leader = TestLeader::on(one_big_file(), |config| {
        config.sync_timeout = limit;
        config.write_timeout = limit;
        config.ack_timeout = limit;
    });
    // So much in flight makes the leader's own buffer grow until a third of it takes the reader longer than the limits.
    let connect = || FakeFollower::connect(leader.address).shake(NodeId::random());
    let in_stream = connect().join();
    leader.wait_state(in_stream.id(), FollowerState::InSync);
    // Both read until the end: who stops is not slow.
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = StopOnDrop(&is_done);
        leader.append("log", &noise(24 << 20));
        scope.spawn(|| read_slowly(&in_stream.socket, || is_done.load(Ordering::Relaxed)));
        let mut in_bulk = connect();
        in_bulk.list();
        in_bulk.request([&path("big")]);
        let begun = Instant::now();
        read_slowly(&in_bulk.socket, || begun.elapsed() >= 3 * limit);
        assert!(leader.leader.followers().iter().all(|follower| follower.sent_bytes < 20 << 20), "it was slow enough");
    });
    let evictions = leader.leader.evictions();
    assert!(evictions.is_empty(), "{evictions:?}");
    leader.shut_down();
}

#[test]
fn a_follower_that_acknowledges_only_whole_actions_is_kept_and_ends_exact() {
    let leader = TestLeader::with(|config| {
        config.sync_timeout = SHORT;
        config.write_timeout = SHORT;
        config.ack_timeout = SHORT;
    });
    let follower = LavinMq::start(leader.narrow_fake(), tempfile::tempdir().unwrap());
    leader.wait_state(follower.id, FollowerState::InSync);
    for _ in 0..3 {
        leader.append("log", &noise(9 << 20));
        leader.append("log", &noise(100));
    }
    leader.wait_in_sync(1);
    assert!(leader.leader.evictions().is_empty());
    assert_eq!(contents(follower.dir.path()), contents(leader.dir.path()));
    leader.shut_down();
    follower.stop();
}
