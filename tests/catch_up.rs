//! Followers that fall behind and are demoted instead of evicted: they sync anew on the same connection, and end with exact copies.
#![allow(missing_docs)]

mod support;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use paceline::config::Protocol;
use paceline::leader::{EvictionReason, FollowerState, FollowerStatus};
use paceline::{LeaderConfig, NodeId, OnFull};
use support::relay::Relay;
use support::{PATIENCE, StopOnDrop, TestFollower, TestLeader, assert_same, logs, noise, path, wait_until};

/// No deadline is near but that of the queue, which is short: nor does a follower soon take a leader that is held up for gone.
fn demoting(config: &mut LeaderConfig) {
    config.on_full = OnFull::CatchUp;
    config.queue_bytes = 1 << 20;
    config.write_timeout = PATIENCE;
    config.ack_timeout = PATIENCE;
    config.heartbeat_interval = PATIENCE / 3;
}

/// A leader and a follower in sync, over a link that can be held up.
fn scene(protocol: Protocol, change: impl FnOnce(&mut LeaderConfig)) -> (TestLeader, Relay, TestFollower) {
    let leader = TestLeader::with(|config| {
        demoting(config);
        change(config);
    });
    let relay = Relay::start(leader.address);
    leader.append("log", b"from before ");
    leader.append("untouched", b"and never again");
    let follower = TestFollower::with(relay.address, tempfile::tempdir().unwrap(), |config| config.protocol = protocol);
    leader.wait_state(follower.follower.id(), FollowerState::InSync);
    (leader, relay, follower)
}

fn status(leader: &TestLeader, id: NodeId) -> FollowerStatus {
    leader.leader.followers().into_iter().find(|follower| follower.id == id).expect("it is connected")
}

/// Appends until the follower's queue was full `times` times.
fn append_until_demoted(leader: &TestLeader, id: NodeId, times: u64) {
    let bytes = noise(50_000);
    wait_until("the follower is demoted", || {
        leader.append("log", &bytes);
        status(leader, id).demotions >= times
    });
}

/// It stayed connected all along, and its copy is exact.
fn assert_unbroken(leader: &TestLeader, follower: &TestFollower, connected_from: std::net::SocketAddr) {
    leader.wait_in_sync(1);
    assert_same(leader.dir.path(), follower.dir.path());
    assert_eq!(status(leader, follower.follower.id()).address, connected_from, "it connected again");
    assert!(leader.leader.evictions().is_empty(), "{:?}", leader.leader.evictions());
    leader.shut_down();
}

#[test]
fn a_follower_whose_queue_is_full_catches_up_on_its_connection() {
    let (leader, relay, follower) = scene(Protocol::Auto, |_| ());
    let id = follower.follower.id();
    let address = status(&leader, id).address;
    relay.hold();
    append_until_demoted(&leader, id, 1);
    let demoted = status(&leader, id);
    assert_eq!(demoted.state, FollowerState::CatchingUp);
    assert_eq!((demoted.acknowledged, demoted.lag_bytes), (None, None), "it is not in sync");
    wait_until("its queue is given back, although it reads nothing", || status(&leader, id).queued_batches <= 1);
    relay.release();
    leader.wait_in_sync(1);
    let named = format!("id {id},");
    let lines = logs::lines(&["WARN demoted follower: queue full; address", &named, "in sync, lag", "queue"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_unbroken(&leader, &follower, address);
}

#[test]
fn a_follower_that_is_too_far_behind_with_what_is_read_from_files_catches_up_on_its_connection() {
    let (leader, relay, follower) = scene(Protocol::Auto, |config| config.lag_bytes = Some(8 << 20));
    let id = follower.follower.id();
    let address = status(&leader, id).address;
    relay.hold();
    let record = noise(300 << 10);
    for _ in 0..100 {
        leader.append("log", &record);
    }
    wait_until("it is demoted", || status(&leader, id).demotions == 1);
    relay.release();
    leader.wait_in_sync(1);
    let named = format!("id {id},");
    assert_eq!(logs::lines(&["WARN demoted follower: too far behind; address", &named]).len(), 1);
    assert_unbroken(&leader, &follower, address);
}

#[test]
fn a_follower_of_1_0_0_is_evicted_in_this_mode_too() {
    let (leader, relay, follower) = scene(Protocol::V1, |_| ());
    let id = follower.follower.id();
    relay.hold();
    let bytes = noise(50_000);
    wait_until("it is evicted", || {
        leader.append("log", &bytes);
        leader.leader.evictions().iter().any(|eviction| eviction.id == id)
    });
    leader.wait_evicted_for(id, &EvictionReason::QueueFull);
    relay.release();
    leader.assert_copies(&[&follower]);
    leader.shut_down();
}

#[test]
fn what_is_discarded_may_be_of_any_kind() {
    let (leader, relay, follower) = scene(Protocol::Auto, |_| ());
    let id = follower.follower.id();
    let address = status(&leader, id).address;
    for name in ["replaced", "deleted", "made-again", "by-reference", "emptied", "tmp-twin", "tmp-twin.tmp"] {
        leader.append(name, name.as_bytes());
    }
    leader.wait_in_sync(1);
    relay.hold();
    // Behind this its writer waits; all that follows is discarded.
    leader.append("log", &noise(4 << 20));
    leader.replace("replaced", b"something else");
    leader.append("replaced", b", and more");
    leader.replace("tmp-twin", b"by way of its twin");
    leader.delete("deleted");
    leader.delete("made-again");
    leader.append("made-again", b"new");
    leader.append("by-reference", &noise(700_000));
    leader.append("by-reference", b"and a little");
    leader.replace("by-reference-too", &noise(300_000));
    leader.replace("emptied", b"");
    leader.append("short-lived", b"x");
    leader.delete("short-lived");
    append_until_demoted(&leader, id, 1);
    // After the cut, and before it goes on.
    leader.append("replaced", b", and yet more");
    leader.append("made-again", b"er");
    leader.delete("by-reference-too");
    relay.release();
    assert_unbroken(&leader, &follower, address);
}

#[test]
fn of_files_renamed_or_cut_short_nothing_moves_that_was_there() {
    const MIB: usize = 1 << 20;
    let (leader, relay, follower) = scene(Protocol::Auto, |_| ());
    let id = follower.follower.id();
    let address = status(&leader, id).address;
    let on_disk = |name: &str| leader.dir.path().join(name);
    let rename = |from: &str, to: &str| {
        std::fs::rename(on_disk(from), on_disk(to)).unwrap();
        leader.leader.rename(&path(from), &path(to)).unwrap();
    };
    let truncate = |name: &str, len: usize| {
        std::fs::File::options().write(true).open(on_disk(name)).unwrap().set_len(len as u64).unwrap();
        leader.leader.truncate(&path(name), len as u64).unwrap();
    };
    for name in ["rotated", "rotated.1", "cut", "cut-and-renamed", "renamed-over"] {
        leader.append(name, &noise(8 * MIB));
    }
    leader.wait_in_sync(1);
    let before = status(&leader, id).sent_bytes;
    let begun = leader.leader.position();
    relay.hold();
    // Behind this its writer waits; all that follows is discarded.
    leader.append("log", &noise(4 * MIB));
    rename("rotated.1", "rotated.2");
    rename("rotated", "rotated.1");
    leader.append("rotated", b"made anew");
    leader.append("rotated.1", b"to a file that has moved");
    truncate("cut", 5 * MIB);
    leader.append("cut", b"after a cut");
    truncate("cut-and-renamed", 7 * MIB);
    rename("cut-and-renamed", "renamed-over");
    truncate("renamed-over", 6 * MIB);
    append_until_demoted(&leader, id, 1);
    relay.release();
    leader.wait_in_sync(1);
    let sent = status(&leader, id).sent_bytes - before;
    let appended = leader.leader.position().since(begun);
    assert!(sent < appended + MIB as u64, "{sent} bytes were sent, and {appended} were appended");
    assert_unbroken(&leader, &follower, address);
}

#[test]
fn a_follower_may_be_demoted_again_and_again() {
    let (leader, relay, follower) = scene(Protocol::Auto, |_| ());
    let id = follower.follower.id();
    let address = status(&leader, id).address;
    for times in 1..=3 {
        relay.hold();
        append_until_demoted(&leader, id, times);
        relay.release();
        leader.wait_in_sync(1);
    }
    assert_eq!(status(&leader, id).demotions, 3);
    assert_unbroken(&leader, &follower, address);
}

#[test]
fn a_follower_slower_than_the_writers_is_kept_and_ends_exact() {
    let (leader, relay, follower) = scene(Protocol::Auto, |_| ());
    let id = follower.follower.id();
    let address = status(&leader, id).address;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (leader, stop) = (&leader, &stop);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                while !stop.load(Ordering::Relaxed) {
                    let name = format!("dir{}/file{}", thread % 2, thread * 10 + random.u64(..10));
                    match random.u8(..100) {
                        0 => leader.replace(&name, &vec![random.u8(..); random.usize(1..300_000)]),
                        1 => leader.append(&name, &vec![random.u8(..); 400_000]),
                        2 if leader.leader.file_len(&path(&name)).is_some() => leader.delete(&name),
                        _ => leader.append(&name, &vec![random.u8(..); random.usize(1..2_000)]),
                    }
                }
            });
        }
        let _stop = StopOnDrop(&stop);
        relay.hold();
        wait_until("it is demoted", || status(&leader, id).demotions > 0);
        relay.release();
        // It catches up, and is demoted again perhaps, for as long as the writers go on.
        let begun = leader.leader.position();
        wait_until("as much again was appended", || leader.leader.position().since(begun) > 16 << 20);
    });
    assert_unbroken(&leader, &follower, address);
}

#[test]
fn a_follower_that_takes_nothing_is_evicted_in_this_mode_too() {
    let (leader, relay, follower) = scene(Protocol::Auto, |config| config.write_timeout = Duration::from_secs(3));
    let id = follower.follower.id();
    relay.hold();
    // First more than the system's buffers take on any host: the writer is blocked in it when the queue is full. All of it is on
    // disk before anything is announced, so that the queue is full long before the writer's time is up.
    let pieces: Vec<_> = [16 << 20].into_iter().chain([50_000; 40]).map(noise).collect();
    let mut log = std::fs::File::options().append(true).open(leader.dir.path().join("log")).unwrap();
    pieces.iter().for_each(|piece| log.write_all(piece).unwrap());
    for (at, piece) in pieces.iter().enumerate() {
        let end = leader.leader.file_len(&path("log")).unwrap();
        leader.leader.append(&path("log"), end, piece).unwrap();
        if at == 0 {
            wait_until("the writer has taken it", || status(&leader, id).sent_bytes >= 1 << 20);
        }
    }
    let eviction = leader.wait_evicted_for(id, &EvictionReason::WriteTimeout);
    assert_eq!(eviction.state, FollowerState::CatchingUp);
    relay.release();
    // It comes back by itself.
    leader.assert_copies(&[&follower]);
}

#[test]
fn who_catches_up_no_faster_than_writers_append_is_reported() {
    let leader = TestLeader::with(demoting);
    leader.append("log", b"from before ");
    let mut slow = leader.narrow_fake();
    let id = slow.id();
    for _ in 0..2 {
        slow.list();
        slow.request([]);
    }
    // Of which neither list tells.
    leader.append("log", &noise(4 << 20));
    slow.pass_probe();
    let (in_first_round, appended) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 65536];
            while let Ok(length @ 1..) = slow.frame.read(&mut buffer) {
                let round = leader.leader.followers().iter().any(|f| f.id == id && f.catch_up.is_some());
                if round && !in_first_round.swap(true, Ordering::Relaxed) {
                    let catch_up = status(&leader, id).catch_up.expect("it has not acknowledged the round");
                    assert!(catch_up.missing_bytes > 0, "{catch_up:?}");
                    let is_faster = catch_up.rate_bytes_per_s > catch_up.append_bytes_per_s;
                    assert_eq!(catch_up.estimated.is_some(), is_faster, "{catch_up:?}");
                    wait_until("more is appended", || appended.load(Ordering::Relaxed));
                }
                slow.ack(length as u64);
            }
        });
        wait_until("the first round has begun", || in_first_round.load(Ordering::Relaxed));
        // More than that round brings.
        leader.append("log", &noise(32 << 20));
        appended.store(true, Ordering::Relaxed);
        let named = format!("follower {id} at");
        wait_until("that it does not converge is logged", || {
            !logs::lines(&["WARN", &named, "bytes are missing", "bytes/s appended: it never ends"]).is_empty()
        });
        assert_eq!(logs::lines(&["INFO", &named, "catches up:"]).len(), 1);
        leader.wait_state(id, FollowerState::InSync);
        assert_eq!(status(&leader, id).catch_up, None);
        leader.shut_down();
    });
}
