//! Hosts that would rather slow down than lose a replica, and leaders that suspect themselves before their followers.
#![allow(missing_docs)]

mod support;

use std::io::Read;
use std::time::{Duration, Instant};

use paceline::config::BackPressure;
use paceline::leader::{EvictionReason, FollowerState};
use paceline::{AppendError, LeaderConfig};
use support::fake_follower::FakeFollower;
use support::{PATIENCE, TestLeader, logs, noise, path, wait_until};

const QUEUE: u64 = 1 << 20;

fn leader(back_pressure: BackPressure) -> TestLeader {
    TestLeader::with(|config: &mut LeaderConfig| {
        config.queue_bytes = QUEUE;
        config.min_in_sync = 1;
        config.back_pressure = back_pressure;
        config.write_timeout = PATIENCE;
        config.ack_timeout = PATIENCE;
    })
}

/// A follower in sync that reads nothing any more.
fn stopped(leader: &TestLeader) -> FakeFollower {
    let stopped = leader.narrow_fake().join();
    leader.wait_state(stopped.id(), FollowerState::InSync);
    stopped
}

/// Appends until that is refused.
fn append_until_refused(leader: &TestLeader, record: usize) -> AppendError {
    let name = path("log");
    let bytes = noise(record);
    let mut refused = None;
    wait_until("an append is refused", || {
        refused = leader.leader.file(&name).unwrap().append(&bytes).err();
        refused.is_some()
    });
    refused.unwrap()
}

/// Reads and acknowledges everything that comes.
fn resume(stopped: FakeFollower) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || drop(stopped.drain()))
}

/// Appends are taken again when this follower reads again, and it is still the leader's.
fn goes_on_with(leader: TestLeader, stopped: FakeFollower) {
    let reader = resume(stopped);
    wait_until("an append is taken again", || leader.leader.file(&path("log")).unwrap().append(b"more").is_ok());
    leader.wait_in_sync(1);
    assert!(leader.leader.evictions().is_empty(), "{:?}", leader.leader.evictions());
    leader.shut_down();
    reader.join().unwrap();
}

#[test]
fn an_append_would_block_while_the_last_replica_that_is_needed_cannot_keep_up() {
    let leader = leader(BackPressure::WouldBlock(PATIENCE));
    let stopped = stopped(&leader);
    assert!(matches!(append_until_refused(&leader, 50_000), AppendError::WouldBlock));
    let local = std::fs::metadata(leader.dir.path().join("log")).unwrap().len();
    assert_eq!(leader.leader.file_len(&path("log")), Some(local), "what was refused is not in the file either");
    let held = leader.status(stopped.id()).unwrap().queued_bytes;
    assert!(held <= QUEUE + (8 << 20), "{held} bytes are held");
    goes_on_with(leader, stopped);
}

#[test]
fn an_append_would_block_while_the_last_replica_that_is_needed_is_too_far_behind() {
    let leader = leader(BackPressure::WouldBlock(PATIENCE));
    let stopped = stopped(&leader);
    assert!(matches!(append_until_refused(&leader, 300_000), AppendError::WouldBlock));
    let status = leader.status(stopped.id()).unwrap();
    assert!(status.queued_bytes < QUEUE && status.lag_bytes > Some(8 * QUEUE), "{status:?}");
    goes_on_with(leader, stopped);
}

#[test]
fn an_append_waits_while_the_last_replica_that_is_needed_cannot_keep_up() {
    let leader = leader(BackPressure::Wait(PATIENCE));
    let stopped = stopped(&leader);
    let bytes = noise(50_000);
    std::thread::scope(|scope| {
        let appender = scope.spawn(|| {
            for _ in 0..400 {
                leader.append("log", &bytes);
            }
        });
        wait_until("its queue is full", || leader.status(stopped.id()).is_some_and(|it| it.queued_bytes > QUEUE));
        assert!(!appender.is_finished());
        let reader = resume(stopped);
        appender.join().unwrap();
        leader.wait_in_sync(1);
        assert!(leader.leader.evictions().is_empty(), "{:?}", leader.leader.evictions());
        leader.shut_down();
        reader.join().unwrap();
    });
}

/// Appends such records, each of which may wait, until the stopped follower is evicted for that reason.
fn evicted_after_all_for(reason: &EvictionReason, record: usize) {
    let leader = leader(BackPressure::Wait(Duration::from_millis(200)));
    let stopped = stopped(&leader);
    let bytes = noise(record);
    wait_until("it is evicted", || {
        leader.append("log", &bytes);
        leader.status(stopped.id()).is_none()
    });
    leader.wait_evicted_for(stopped.id(), reason);
    // Nobody is needed who is not there.
    leader.append("log", b"more");
    leader.shut_down();
}

#[test]
fn when_the_host_has_waited_long_enough_the_replica_is_evicted_after_all() {
    evicted_after_all_for(&EvictionReason::QueueFull, 50_000);
}

#[test]
fn when_the_host_has_waited_long_enough_a_replica_that_is_too_far_behind_is_evicted_for_that() {
    // What is read from the file when its turn comes takes next to nothing of the queue.
    evicted_after_all_for(&EvictionReason::TooFarBehind, 300_000);
}

#[test]
fn a_replica_that_is_not_needed_is_evicted_at_once() {
    let leader = leader(BackPressure::WouldBlock(PATIENCE));
    let healthy = leader.follower();
    let stopped = stopped(&leader);
    leader.wait_state(healthy.id(), FollowerState::InSync);
    let bytes = noise(50_000);
    wait_until("it is evicted", || {
        leader.append("log", &bytes);
        let end = Some(leader.leader.position());
        let follows = || leader.status(healthy.id()).is_some_and(|it| it.acknowledged >= end);
        // That it makes something durable is asked for now and then, and counts as well.
        wait_until("the healthy one follows", follows);
        leader.status(stopped.id()).is_none()
    });
    leader.wait_evicted_for(stopped.id(), &EvictionReason::QueueFull);
    leader.assert_copies(&[&healthy]);
    leader.shut_down();
}

/// A leader that evicts who is above the soft limit for so long, and for nothing else.
fn leader_with_soft_limit(time: Duration) -> TestLeader {
    TestLeader::with(|config| {
        config.queue_soft_bytes = Some(QUEUE);
        config.queue_soft_time = time;
        config.write_timeout = PATIENCE;
        config.ack_timeout = PATIENCE;
    })
}

#[test]
fn a_burst_passes_the_soft_limit() {
    let leader = leader_with_soft_limit(PATIENCE);
    let stopped = stopped(&leader);
    let bytes = noise(50_000);
    wait_until("it is above the limit", || {
        leader.append("log", &bytes);
        leader.status(stopped.id()).is_some_and(|it| it.queued_bytes > 2 * QUEUE)
    });
    let reader = resume(stopped);
    leader.wait_in_sync(1);
    assert!(leader.leader.evictions().is_empty(), "{:?}", leader.leader.evictions());
    leader.shut_down();
    reader.join().unwrap();
}

#[test]
fn who_stays_above_the_soft_limit_is_evicted() {
    let soft_time = Duration::from_millis(300);
    let leader = leader_with_soft_limit(soft_time);
    let stopped = stopped(&leader);
    // More than the system's buffers take: its writer takes nothing else off the queue, which only grows from here.
    leader.append("log", &noise(16 << 20));
    let bytes = noise(50_000);
    let mut last_below = Instant::now();
    wait_until("it is above the limit, or evicted for that by now", || {
        leader.append("log", &bytes);
        let looked = Instant::now();
        let is_below = leader.status(stopped.id()).is_some_and(|it| it.queued_bytes <= QUEUE);
        if is_below {
            last_below = looked;
        }
        !is_below
    });
    // A full queue is noticed when something is to be put in it, and while no writer waits that is a full batch.
    let bytes = noise(20_000);
    wait_until("it is evicted", || {
        leader.append("log", &bytes);
        leader.status(stopped.id()).is_none()
    });
    let eviction = leader.wait_evicted_for(stopped.id(), &EvictionReason::QueueFull);
    assert!(eviction.queued_bytes < 64 << 20, "{eviction:?}");
    assert!(last_below.elapsed() >= soft_time, "not before its time");
    leader.shut_down();
}

#[test]
fn followers_that_are_all_late_together_get_one_more_deadline() {
    let ack_timeout = Duration::from_millis(400);
    let leader = TestLeader::with(|config| config.ack_timeout = ack_timeout);
    let mut silent = [leader.fake().join(), leader.fake().join()];
    for follower in &silent {
        leader.wait_state(follower.id(), FollowerState::InSync);
    }
    let begun = Instant::now();
    leader.append("log", b"content");
    for follower in &mut silent {
        follower.frame.read_exact(&mut [0; 4 + 3 + 8 + 7]).unwrap();
    }
    for follower in &silent {
        leader.wait_evicted_for(follower.id(), &EvictionReason::NoAckProgress);
    }
    // A lower bound: nobody went with the first deadline. (The last one left was no longer one of several.)
    assert!(begun.elapsed() >= ack_timeout * 3 / 2, "they were evicted after {:?}", begun.elapsed());
    assert!(!logs::lines(&["WARN all followers have missed their deadline of 400ms together"]).is_empty());
    leader.shut_down();
}
