//! Followers that come back, after whatever it was: they end with exact copies, and what moves is what they missed, not what
//! exists.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use fastrand::Rng;
use paceline::follower::State;
use paceline::leader::{EvictionReason, FollowerState, FollowerStatus, Window};
use paceline::protocol::extension::CHUNK_BYTES;
use paceline::{LeaderConfig, NodeId, OnFull};
use support::relay::Relay;
use support::{PATIENCE, TestFollower, TestLeader, assert_exact, noise_of, wait_until};
use tempfile::TempDir;

/// The most that may move for what was missed.
fn bound(missed: u64) -> u64 {
    missed + missed / 10 + (1 << 20)
}

/// 21 MiB in files large, small and empty.
fn base() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Rng::with_seed(1);
    fs::create_dir_all(dir.path().join("queues/deep")).unwrap();
    for number in 0..4 {
        fs::write(dir.path().join(format!("queues/{number}")), noise_of(&mut random, (5 << 20) + number * 999))
            .unwrap();
    }
    for number in 0..40 {
        fs::write(dir.path().join(format!("queues/deep/{number}")), noise_of(&mut random, number * 1000)).unwrap();
    }
    fs::write(dir.path().join("empty"), b"").unwrap();
    dir
}

/// Only a full queue ends a connection, and a follower that was sent away for that is taken back at once.
fn patient(config: &mut LeaderConfig) {
    config.queue_bytes = 4 << 20;
    config.write_timeout = PATIENCE;
    config.ack_timeout = PATIENCE;
    config.readmit_delay_max = std::time::Duration::ZERO;
    config.readmit_delay_min = std::time::Duration::ZERO;
}

/// Appends like a busy host, at the pace of the followers that keep up.
fn append(leader: &TestLeader, random: &mut Rng) {
    let name = format!("queues/{}", random.u8(..12));
    let length = random.usize(1..60_000);
    leader.append(&name, &noise_of(random, length));
    leader.leader.wait_for_window(&Window::new(1 << 20), PATIENCE);
}

fn append_bytes(leader: &TestLeader, random: &mut Rng, bytes: u64) {
    let begun = leader.leader.position();
    while leader.leader.position().since(begun) < bytes {
        append(leader, random);
    }
}

/// What it was sent so far on this connection, and the stream's position after that.
fn sent(leader: &TestLeader, id: NodeId) -> (FollowerStatus, paceline::StreamPosition) {
    let status = leader.status(id).expect("it is connected");
    (status, leader.leader.position())
}

/// Waits until it is in sync, on another connection than `before`.
fn wait_back(leader: &TestLeader, id: NodeId, before: std::net::SocketAddr) {
    wait_until("it is back", || {
        leader.status(id).is_some_and(|status| status.state == FollowerState::InSync && status.address != before)
    });
}

#[test]
fn who_was_evicted_gets_what_it_missed_under_load() {
    let leader = TestLeader::on(base(), patient);
    let healthy = leader.follower();
    let relay = Relay::start(leader.address);
    let returning = TestFollower::on(relay.address, tempfile::tempdir().unwrap());
    let id = returning.id();
    leader.wait_in_sync(2);
    let mut random = Rng::with_seed(2);
    for times in 1..=3 {
        relay.hold();
        let before = leader.status(id).unwrap();
        let mut acknowledged = before.acknowledged.unwrap();
        wait_until("it is evicted", || {
            append(&leader, &mut random);
            if let Some(FollowerStatus { acknowledged: Some(position), .. }) = leader.status(id) {
                acknowledged = position;
            }
            leader.leader.evictions().len() == times
        });
        std::thread::scope(|scope| {
            scope.spawn(|| append_bytes(&leader, &mut random, 8 << 20));
            relay.release();
            wait_back(&leader, id, before.address);
            let (status, now) = sent(&leader, id);
            let missed = now.since(acknowledged);
            assert!(status.sent_bytes <= bound(missed), "{} sent for {missed} missed", status.sent_bytes);
        });
        leader.wait_in_sync(2);
        let (status, now) = sent(&leader, id);
        let missed = now.since(acknowledged);
        assert!(status.sent_bytes <= bound(missed), "{} sent for {missed} missed", status.sent_bytes);
    }
    leader.assert_copies(&[&healthy, &returning]);
    let evictions = leader.leader.evictions();
    assert!(evictions.iter().all(|e| e.id == id && e.reason == EvictionReason::QueueFull), "{evictions:?}");
    leader.shut_down();
}

/// Changes the directory of a leader that is not running; returns how much of it is new.
fn change_by_hand(dir: &Path) -> u64 {
    let mut random = Rng::with_seed(3);
    let at = |name: &str| dir.join(name);
    let tail = noise_of(&mut random, 700_001);
    fs::File::options().append(true).open(at("queues/0")).unwrap().write_all(&tail).unwrap();
    fs::File::options().write(true).open(at("queues/1")).unwrap().set_len(3_000_000).unwrap();
    fs::remove_file(at("queues/deep/9")).unwrap();
    fs::write(at("queues/deep/8"), b"").unwrap();
    fs::write(at("empty"), b"no more").unwrap();
    fs::write(at("another-empty"), b"").unwrap();
    fs::create_dir(at("new")).unwrap();
    fs::write(at("new/file"), noise_of(&mut random, 300_000)).unwrap();
    // The cut is within a chunk, which moves.
    700_001 + 300_000 + 7 + 3_000_000 % CHUNK_BYTES
}

#[test]
fn after_a_restart_of_the_leader_ten_at_once_get_what_they_missed() {
    let leader = TestLeader::on(base(), patient);
    let followers: Vec<_> = (0..10).map(|_| leader.follower()).collect();
    leader.wait_in_sync(10);
    leader.append("queues/2", b"the last before");
    leader.assert_copies(&followers.iter().collect::<Vec<_>>());
    let mut missed = 0;
    let leader = leader.restart(patient, |dir| missed = change_by_hand(dir));
    leader.assert_copies(&followers.iter().collect::<Vec<_>>());
    for follower in &followers {
        let sync = follower.follower.status().sync;
        assert_eq!(sync.bytes_received, missed, "{sync:?}");
        let (status, _) = sent(&leader, follower.id());
        assert!(status.sent_bytes <= bound(missed), "{status:?}");
        assert_eq!(status.sync.bytes_sent, missed, "{status:?}");
    }
    // Nor had they to read again what they had written themselves.
    let again = leader.restart(patient, |_| ());
    again.append("queues/3", b"more");
    again.assert_copies(&followers.iter().collect::<Vec<_>>());
    for follower in &followers {
        let sync = follower.follower.status().sync;
        assert!(sync.bytes_received <= 4, "{sync:?}");
    }
    again.shut_down();
}

/// Flips a byte, and leaves the times as they were.
fn damage(file: &Path, at: u64) {
    let opened = fs::File::options().read(true).write(true).open(file).unwrap();
    let modified = opened.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    opened.read_exact_at(&mut byte, at).unwrap();
    opened.write_all_at(&[byte[0] ^ 1], at).unwrap();
    opened.set_modified(modified).unwrap();
}

#[test]
fn of_a_damaged_file_the_damaged_chunks_move() {
    let leader = TestLeader::on(base(), |_| ());
    let relay = Relay::start(leader.address);
    let follower = TestFollower::on(relay.address, tempfile::tempdir().unwrap());
    leader.wait_in_sync(1);
    let before = leader.status(follower.id()).unwrap().address;
    relay.hold();
    relay.cut();
    // Two bytes of one chunk, one of another, one of the last, which is no whole chunk.
    damage(&follower.dir.path().join("queues/0"), 1_000_000);
    damage(&follower.dir.path().join("queues/0"), 1_000_001);
    damage(&follower.dir.path().join("queues/1"), 0);
    damage(&follower.dir.path().join("queues/3"), (5 << 20) + 5);
    relay.release();
    wait_back(&leader, follower.id(), before);
    leader.assert_copies(&[&follower]);
    let expected = 2 * CHUNK_BYTES + 3 * 999;
    assert_eq!(follower.follower.status().sync.bytes_received, expected);
    let (status, _) = sent(&leader, follower.id());
    assert_eq!(status.sync.bytes_sent, expected);
    assert!(status.sent_bytes < expected + (16 << 10), "{status:?}");

    // And where that happens while it is down: what it kept of that file is not believed.
    let dir = follower.stop();
    wait_until("the leader noticed", || leader.leader.followers().is_empty());
    damage(&dir.path().join("queues/2"), 5 << 18);
    let damaged = fs::metadata(dir.path().join("queues/2")).unwrap().len();
    let follower = TestFollower::on(leader.address, dir);
    leader.assert_copies(&[&follower]);
    let sync = follower.follower.status().sync;
    assert_eq!(sync.bytes_received, CHUNK_BYTES, "{sync:?}");
    assert!(sync.bytes_hashed >= damaged, "it was believed unseen: {sync:?}");
    leader.shut_down();
}

#[test]
fn a_leader_that_was_ahead_returns_as_the_follower_of_another() {
    let old = TestLeader::on(base(), patient);
    let relay = Relay::start(old.address);
    let successor = TestFollower::on(relay.address, tempfile::tempdir().unwrap());
    old.append("journal", &noise_of(&mut Rng::with_seed(4), 3_000_000));
    old.wait_in_sync(1);
    // Its copy is whole, and it knows.
    wait_until("it follows the stream", || successor.follower.status().state == State::Streaming);
    relay.hold();
    relay.cut();
    // Nobody will ever have this.
    let mut random = Rng::with_seed(5);
    old.append("journal", &noise_of(&mut random, 500_000));
    old.append("queues/0", &noise_of(&mut random, 100));
    old.append("only-old", &noise_of(&mut random, 1 << 20));
    old.append("only-old-empty", b"");
    let dir = successor.stop();
    drop(relay);
    assert_eq!(old.leader.shutdown(std::time::Duration::ZERO).threads_left, 0);
    let TestLeader { leader, dir: old_dir, .. } = old;
    drop(leader);

    let new = TestLeader::on(dir, patient);
    // Longer than what was lost, and shorter.
    new.append("journal", &noise_of(&mut random, 900_000));
    new.append("queues/0", &noise_of(&mut random, 50));
    new.append("only-new", &noise_of(&mut random, 200_000));
    new.append("only-new-empty", b"");
    let follower = TestFollower::on(new.address, old_dir);
    new.assert_copies(&[&follower]);
    let sync = follower.follower.status().sync;
    let differing = 900_000 + 50 + 200_000;
    let changed_files = 2;
    assert!(sync.bytes_received <= differing + changed_files * CHUNK_BYTES, "{sync:?}");
    let (status, _) = sent(&new, follower.id());
    assert!(status.sent_bytes <= bound(differing + changed_files * CHUNK_BYTES), "{status:?}");
    new.append("journal", b"on we go");
    new.assert_copies(&[&follower]);
    new.shut_down();
}

/// Half of what is appended passes the link, for so many bytes.
fn outpace(leader: &TestLeader, relay: &Relay, random: &mut Rng, bytes: u64) {
    let begun = leader.leader.position();
    let mut allowed = 0;
    relay.hold();
    while leader.leader.position().since(begun) < bytes {
        append(leader, random);
        let half = leader.leader.position().since(begun) / 2;
        relay.allow(half - allowed);
        allowed = half;
    }
}

#[test]
fn who_is_slower_than_the_writers_is_evicted_and_ends_exact_once_they_stop() {
    let leader = TestLeader::on(base(), patient);
    let healthy = leader.follower();
    let relay = Relay::start(leader.address);
    let slow = TestFollower::on(relay.address, tempfile::tempdir().unwrap());
    leader.wait_in_sync(2);
    let mut random = Rng::with_seed(6);
    let begun = leader.leader.position();
    for times in 1..=2 {
        wait_until("it is evicted", || {
            outpace(&leader, &relay, &mut random, 4 << 20);
            leader.leader.evictions().len() == times
        });
        // It is back, and too slow.
        outpace(&leader, &relay, &mut random, 4 << 20);
        relay.release();
        leader.wait_in_sync(2);
    }
    leader.assert_copies(&[&healthy, &slow]);
    // The last connection alone: at most all that was appended.
    let (status, now) = sent(&leader, slow.id());
    assert!(status.sent_bytes <= bound(now.since(begun)), "{status:?}");
    let evictions = leader.leader.evictions();
    assert!(evictions.iter().all(|e| e.id == slow.id() && e.reason == EvictionReason::QueueFull), "{evictions:?}");
    leader.shut_down();
}

#[test]
fn who_is_slower_than_the_writers_is_never_evicted_where_it_may_catch_up() {
    let leader = TestLeader::on(base(), |config| {
        patient(config);
        config.on_full = OnFull::CatchUp;
    });
    let healthy = leader.follower();
    let relay = Relay::start(leader.address);
    let slow = TestFollower::on(relay.address, tempfile::tempdir().unwrap());
    leader.wait_in_sync(2);
    let (before, begun) = sent(&leader, slow.id());
    let mut random = Rng::with_seed(7);
    wait_until("it is demoted", || {
        outpace(&leader, &relay, &mut random, 8 << 20);
        sent(&leader, slow.id()).0.demotions >= 1
    });
    outpace(&leader, &relay, &mut random, 8 << 20);
    relay.release();
    leader.assert_copies(&[&healthy, &slow]);
    let (status, now) = sent(&leader, slow.id());
    assert_eq!(status.address, before.address, "it connected again");
    assert!(leader.leader.evictions().is_empty(), "{:?}", leader.leader.evictions());
    // Nothing was sent twice.
    let (moved, missed) = (status.sent_bytes - before.sent_bytes, now.since(begun));
    assert!(moved <= bound(missed), "{moved} sent for {missed} appended");
    leader.shut_down();
}

#[test]
fn joining_and_leaving_under_load_costs_each_what_it_missed() {
    let leader = TestLeader::on(base(), patient);
    let healthy = leader.follower();
    leader.wait_in_sync(1);
    let mut dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Rng::with_seed(8);
            append_bytes(&leader, &mut random, 48 << 20);
        });
        let mut left_at = vec![None; dirs.len()];
        for round in 0..3 {
            for (dir, left_at) in dirs.iter_mut().zip(&mut left_at) {
                let taken = std::mem::replace(dir, tempfile::tempdir().unwrap());
                let follower = TestFollower::on(leader.address, taken);
                leader.wait_state(follower.id(), FollowerState::InSync);
                let (status, now) = sent(&leader, follower.id());
                if let Some(left_at) = *left_at {
                    let missed = now.since(left_at);
                    assert!(status.sent_bytes <= bound(missed), "round {round}: {missed} missed, {status:?}");
                }
                *left_at = status.acknowledged;
                *dir = follower.stop();
            }
        }
    });
    for dir in dirs {
        let follower = TestFollower::on(leader.address, dir);
        leader.wait_in_sync(2);
        assert_exact(leader.dir.path(), follower.dir.path());
        follower.stop();
        leader.wait_in_sync(1);
    }
    leader.assert_copies(&[&healthy]);
    leader.shut_down();
}
