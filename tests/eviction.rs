//! Each reason to let a follower go, over real sockets: it is logged once, the others go on and end with exact copies, and
//! appends work meanwhile.
#![allow(missing_docs)]

mod support;

use std::io::Write;
use std::time::Duration;

use paceline::NodeId;
use paceline::leader::{EvictionReason, FollowerState};
use support::fake_follower::FakeFollower;
use support::relay::Relay;
use support::{PATIENCE, TestFollower, TestLeader, logs, noise, path, wait_until};

const SHORT: Duration = Duration::from_millis(300);

/// A leader, a healthy follower of it, and the one to be evicted.
fn scene(leader: &TestLeader) -> TestFollower {
    leader.append("log", b"from before ");
    let healthy = leader.follower();
    leader.wait_state(healthy.follower.id(), FollowerState::InSync);
    healthy
}

/// The healthy follower was not evicted, gets what comes after, and nothing is left behind of the others.
fn assert_unharmed(leader: &TestLeader, healthy: &TestFollower) {
    leader.append("log", b" and after");
    leader.assert_copies(&[healthy]);
    let evictions = leader.leader.evictions();
    assert!(evictions.iter().all(|eviction| eviction.id != healthy.follower.id()), "{evictions:?}");
    leader.shut_down();
}

/// Appends, slowly enough for the healthy follower, until the other one is evicted.
fn append_until_evicted(leader: &TestLeader, healthy: &TestFollower, stopped: &FakeFollower, bytes: &[u8]) {
    let id = stopped.id();
    wait_until("the stopped follower is evicted", || {
        leader.append("log", bytes);
        let end = Some(leader.leader.position());
        wait_until("the healthy one follows", || {
            leader.leader.followers().iter().any(|f| f.id == healthy.follower.id() && f.acknowledged >= end)
        });
        leader.leader.followers().iter().all(|follower| follower.id != id)
    });
}

#[test]
fn a_queue_full_in_bytes_evicts() {
    let leader = TestLeader::with(|config| config.queue_bytes = 256 << 10);
    let healthy = scene(&leader);
    let stopped = leader.narrow_fake().join();
    leader.wait_state(stopped.id(), FollowerState::InSync);
    append_until_evicted(&leader, &healthy, &stopped, &noise(50_000));
    let eviction = leader.wait_evicted_for(stopped.id(), &EvictionReason::QueueFull);
    assert!(eviction.queued_bytes > 256 << 10, "{eviction:?}");
    assert!(eviction.lag_bytes.unwrap() >= eviction.queued_bytes / 2, "{eviction:?}");
    assert!(eviction.lag.unwrap() > Duration::ZERO, "{eviction:?}");
    stopped.wait_closed();
    assert_unharmed(&leader, &healthy);
}

#[test]
fn a_queue_full_in_batches_evicts() {
    let leader = TestLeader::with(|config| config.queue_batches = 4);
    let healthy = scene(&leader);
    let stopped = leader.narrow_fake().join();
    leader.wait_state(stopped.id(), FollowerState::InSync);
    // Each time the healthy one has caught up, its writer is hungry: every append is a batch of its own.
    append_until_evicted(&leader, &healthy, &stopped, &noise(50_000));
    let eviction = leader.wait_evicted_for(stopped.id(), &EvictionReason::QueueFull);
    assert!(eviction.queued_batches >= 4 && eviction.queued_bytes < 4 << 20, "{eviction:?}");
    assert_unharmed(&leader, &healthy);
}

#[test]
fn who_gets_less_than_is_written_is_evicted_though_what_it_lacks_is_read_from_files() {
    let leader = TestLeader::with(|config| {
        config.queue_bytes = 256 << 10;
        config.lag_bytes = Some(16 << 20);
        config.write_timeout = PATIENCE;
        config.ack_timeout = PATIENCE;
    });
    let healthy = scene(&leader);
    let link = Relay::start(leader.address);
    let slow = TestFollower::on(link.address, tempfile::tempdir().unwrap());
    leader.wait_state(slow.id(), FollowerState::InSync);
    let evicted = || leader.leader.evictions().iter().any(|eviction| eviction.id == slow.id());
    link.hold();
    let record = noise(257 << 10);
    for _ in 0..1000 {
        if evicted() {
            break;
        }
        leader.append("log", &record);
        link.allow(100 << 10);
        let end = Some(leader.leader.position());
        wait_until("the link has carried its part", || link.is_idle() || evicted());
        wait_until("the healthy one follows", || leader.status(healthy.id()).is_some_and(|it| it.acknowledged >= end));
    }
    let eviction = leader.wait_evicted_for(slow.id(), &EvictionReason::TooFarBehind);
    let lag = eviction.lag_bytes.unwrap();
    assert!(eviction.queued_bytes < 256 << 10 && (15 << 20..18 << 20).contains(&lag), "{eviction:?}");
    link.release();
    leader.assert_copies(&[&healthy, &slow]);
    leader.shut_down();
}

#[test]
fn one_record_larger_than_every_limit_evicts_nobody() {
    let leader = TestLeader::with(|config| {
        config.queue_bytes = 256 << 10;
        config.lag_bytes = Some(1 << 20);
        config.write_timeout = PATIENCE;
        config.ack_timeout = PATIENCE;
    });
    let healthy = scene(&leader);
    let link = Relay::start(leader.address);
    let held_up = TestFollower::on(link.address, tempfile::tempdir().unwrap());
    leader.wait_state(held_up.id(), FollowerState::InSync);
    link.hold();
    leader.append("log", &noise(16 << 20));
    leader.replace("state", &noise(4 << 20));
    for _ in 0..10 {
        leader.append("log", b"a little");
    }
    wait_until("it is far behind", || leader.status(held_up.id()).is_some_and(|it| it.lag_bytes > Some(20 << 20)));
    link.release();
    leader.assert_copies(&[&healthy, &held_up]);
    assert!(leader.leader.evictions().is_empty(), "{:?}", leader.leader.evictions());
    leader.shut_down();
}

#[test]
fn a_follower_that_takes_nothing_off_its_socket_is_evicted_for_the_write_timeout() {
    let leader = TestLeader::with(|config| config.write_timeout = SHORT);
    let healthy = scene(&leader);
    let stopped = leader.narrow_fake().join();
    leader.wait_state(stopped.id(), FollowerState::InSync);
    leader.append("log", &noise(16 << 20));
    leader.wait_evicted_for(stopped.id(), &EvictionReason::WriteTimeout);
    assert_unharmed(&leader, &healthy);
}

#[test]
fn a_follower_that_reads_everything_and_acknowledges_nothing_is_evicted() {
    let leader = TestLeader::with(|config| config.ack_timeout = SHORT);
    let healthy = scene(&leader);
    let mut silent = leader.fake().join();
    let id = silent.id();
    leader.wait_state(id, FollowerState::InSync);
    let reader = std::thread::spawn(move || std::io::copy(&mut silent.frame, &mut std::io::sink()).unwrap());
    leader.append("log", &noise(100_000));
    leader.wait_evicted_for(id, &EvictionReason::NoAckProgress);
    assert!(reader.join().unwrap() > 100_000);
    assert_unharmed(&leader, &healthy);
}

#[test]
fn acknowledgements_of_nothing_are_no_progress() {
    let leader = TestLeader::with(|config| config.ack_timeout = SHORT);
    let healthy = scene(&leader);
    let chatty = leader.fake().join();
    let id = chatty.id();
    leader.wait_state(id, FollowerState::InSync);
    leader.append("log", b"something");
    wait_until("it is evicted, whatever it says", || {
        let _ = (&chatty.socket).write_all(&[0; 8]);
        leader.leader.followers().iter().all(|follower| follower.id != id)
    });
    leader.wait_evicted_for(id, &EvictionReason::NoAckProgress);
    assert_unharmed(&leader, &healthy);
}

#[test]
fn a_joiner_that_asks_for_nothing_and_says_nothing_is_evicted() {
    let leader = TestLeader::with(|config| config.sync_timeout = SHORT);
    let healthy = scene(&leader);
    let silent = leader.fake();
    leader.wait_evicted_for(silent.id(), &EvictionReason::NoSyncProgress);
    assert_unharmed(&leader, &healthy);
}

#[test]
fn a_joiner_that_does_not_acknowledge_the_end_of_its_sync_is_evicted() {
    let leader = TestLeader::with(|config| config.sync_timeout = SHORT);
    let healthy = scene(&leader);
    let mut silent = leader.fake();
    silent.sync();
    let eviction = leader.wait_evicted_for(silent.id(), &EvictionReason::NoSyncProgress);
    assert_eq!(eviction.state, FollowerState::CatchingUp);
    assert_unharmed(&leader, &healthy);
}

#[test]
fn a_follower_that_never_acknowledges_what_it_caught_up_with_is_evicted() {
    let leader = TestLeader::with(|config| {
        config.sync_timeout = SHORT;
        config.ack_timeout = SHORT;
    });
    let healthy = scene(&leader);
    let mut silent = leader.fake();
    let names: Vec<_> = silent.list().into_iter().map(|entry| entry.path).collect();
    // It is missing from the cut, so it comes after the probe.
    leader.append("late", b"appended during the sync");
    silent.request(&names);
    names.iter().for_each(|_| drop(silent.content()));
    silent.list();
    silent.request([]);
    silent.pass_probe();
    leader.wait_state(silent.id(), FollowerState::Attached);
    let eviction = leader.wait_evicted_for(silent.id(), &EvictionReason::NoSyncProgress);
    assert_eq!(eviction.state, FollowerState::Attached);
    assert_unharmed(&leader, &healthy);
}

#[test]
fn a_newer_connection_with_the_same_id_takes_the_place() {
    let leader = TestLeader::start();
    let healthy = scene(&leader);
    let older = leader.narrow_fake().join();
    leader.wait_state(older.id(), FollowerState::InSync);
    // More than it will ever read: nobody may wait for it.
    leader.append("log", &noise(8 << 20));
    let mut newer = FakeFollower::connect(leader.address).shake(older.id());
    let eviction = leader.wait_evicted_for(older.id(), &EvictionReason::Replaced);
    assert_eq!(eviction.address, older.socket.local_addr().unwrap());
    older.wait_closed();
    assert_eq!(newer.sync()[&path("log")], std::fs::read(leader.dir.path().join("log")).unwrap());
    newer.pass_probe();
    leader.wait_state(older.id(), FollowerState::InSync);
    drop(newer);
    assert_unharmed(&leader, &healthy);
}

#[test]
fn who_returns_is_told_apart_by_the_reason_of_its_last_eviction() {
    let leader = TestLeader::with(|config| config.sync_timeout = SHORT);
    let silent = leader.fake();
    leader.wait_evicted_for(silent.id(), &EvictionReason::NoSyncProgress);
    let _back = FakeFollower::connect(leader.address).shake(silent.id());
    let named = format!("follower {} at", silent.id());
    wait_until("its return is logged with the reason", || {
        support::logs::lines(&[&named, "is back; evicted", "no sync progress"]).len() == 1
    });
    leader.shut_down();
}

#[test]
fn shutting_down_evicts_all_and_says_so() {
    let leader = TestLeader::start();
    let fakes: Vec<_> = (0..3).map(|_| leader.fake()).collect();
    let joined = leader.fake().join();
    wait_until("all are connected", || leader.leader.followers().len() == 4);
    leader.shut_down();
    for fake in fakes.iter().chain([&joined]) {
        leader.wait_evicted_for(fake.id(), &EvictionReason::Shutdown);
        fake.wait_closed();
    }
}

#[test]
fn two_followers_with_one_id_do_not_take_each_others_place_for_ever_and_are_told() {
    let leader = TestLeader::start();
    leader.append("log", b"a line");
    let id = NodeId::random();
    let followers: [_; 2] = std::array::from_fn(|_| {
        TestFollower::with(leader.address, tempfile::tempdir().unwrap(), |config| config.id = Some(id))
    });
    for each in &followers {
        let told =
            || each.follower.status().last_eviction.is_some_and(|why| why.contains("another follower has the id"));
        wait_until("it is told", told);
    }
    let said = logs::lines(&[&format!("two followers have the id {id}, at ")]);
    assert!(said.len() == 1 && said[0].starts_with("ERROR"), "{said:?}");
    let evictions = leader.leader.evictions();
    assert!(evictions.iter().all(|eviction| eviction.reason == EvictionReason::Replaced), "{evictions:?}");
    // Each waits longer than the one before.
    assert!(evictions.len() < 10, "{evictions:?}");
    leader.wait_state(id, FollowerState::InSync);
    leader.shut_down();
}
