//! Who may sync, and when: returning followers take turns, and those that keep being evicted for being slow wait longer.
#![allow(missing_docs)]

mod support;

use std::time::Duration;

use paceline::NodeId;
use paceline::leader::{EvictionReason, FollowerState};
use support::fake_follower::FakeFollower;
use support::{PATIENCE, TestFollower, TestLeader, logs, noise, wait_until};

const SHORT: Duration = Duration::from_millis(200);

/// Connects, says nothing, and is evicted for it. Returns how often that was so.
fn connect_and_be_evicted(leader: &TestLeader, id: NodeId) {
    let evicted = || leader.leader.evictions().iter().filter(|eviction| eviction.id == id).count();
    let before = evicted();
    let fake = FakeFollower::connect(leader.address).shake(id);
    wait_until("it is evicted", || evicted() > before);
    assert_eq!(leader.leader.evictions().last().unwrap().reason, EvictionReason::NoSyncProgress);
    fake.wait_closed();
}

#[test]
fn a_follower_that_keeps_being_slow_waits_where_it_can_be_seen() {
    let leader = TestLeader::with(|config| {
        config.sync_timeout = SHORT;
        config.readmit_delay_min = PATIENCE;
        config.readmit_delay_max = PATIENCE;
    });
    leader.append("log", b"something");
    let id = NodeId::random();
    connect_and_be_evicted(&leader, id);
    // The first eviction costs nothing: it is listed to, and evicted for its silence again.
    connect_and_be_evicted(&leader, id);
    let _flapping = FakeFollower::connect(leader.address).shake(id);
    wait_until("it waits", || {
        let followers = leader.leader.followers();
        let waiting = followers.iter().find(|follower| follower.id == id);
        waiting.is_some_and(|follower| {
            follower.state == FollowerState::Waiting && follower.admitted_in.is_some_and(|time| time > Duration::ZERO)
        })
    });
    let named = format!("follower {id} at");
    wait_until("that is logged", || logs::lines(&["INFO", &named, "evicted 2 times", "it is admitted in"]).len() == 1);
    // Nobody else waits for it, and neither does the end.
    let other = leader.fake().join();
    leader.wait_state(other.id(), FollowerState::InSync);
    leader.shut_down();
}

#[test]
fn a_follower_that_waited_is_admitted() {
    let leader = TestLeader::with(|config| {
        config.sync_timeout = SHORT;
        config.readmit_delay_min = Duration::from_millis(50);
    });
    leader.append("log", b"something");
    let id = NodeId::random();
    for _ in 0..3 {
        connect_and_be_evicted(&leader, id);
    }
    let mut back = FakeFollower::connect(leader.address).shake(id);
    assert_eq!(back.sync().len(), 1);
    back.pass_probe();
    leader.wait_state(id, FollowerState::InSync);
    assert_eq!(leader.leader.followers()[0].admitted_in, None);
    leader.shut_down();
}

#[test]
fn ten_followers_that_come_at_once_take_turns_and_end_exact() {
    let leader = TestLeader::with(|config| {
        config.syncs_max = 2;
        // More than moves: that it is waited for, not for how long.
        config.sync_rate = Some(256 << 20);
    });
    for file in 0..50 {
        leader.append(&format!("dir{}/file{file}", file % 5), &noise(20_000 * file + 1));
    }
    let followers: Vec<_> = (0..10).map(|_| leader.follower()).collect();
    for file in 0..50 {
        leader.append(&format!("dir{}/file{file}", file % 5), b" and more");
    }
    leader.assert_copies(&followers.iter().collect::<Vec<_>>());
    assert!(leader.leader.evictions().is_empty(), "{:?}", leader.leader.evictions());
    leader.shut_down();
}

#[test]
fn a_follower_that_knows_the_extension_hears_from_the_leader_while_it_waits() {
    let leader = TestLeader::with(|config| {
        // The follower has to answer within this on a busy machine, too.
        config.sync_timeout = SHORT * 10;
        config.heartbeat_interval = Duration::from_millis(20);
        config.readmit_delay_min = Duration::from_secs(3);
    });
    leader.append("log", b"something");
    let id = NodeId::random();
    for _ in 0..2 {
        connect_and_be_evicted(&leader, id);
    }
    // It would give up on a leader that is silent for three beats and two seconds.
    let follower = TestFollower::with(leader.address, tempfile::tempdir().unwrap(), |config| config.id = Some(id));
    leader.assert_copies(&[&follower]);
    let named = format!("follower {id} at");
    assert_eq!(logs::lines(&["INFO", &named, "it is admitted in"]).len(), 1, "it waited once");
    assert_eq!(leader.leader.evictions().len(), 2);
    leader.shut_down();
}
