//! A real Redis writes in the leader's directory, under load and with rewrites of its file; the followers' copies are what
//! a Redis starts from.
//!
//! All values of keys come from Redis' own clients: redis-benchmark for load, one connection of ours where the test has to
//! know what was acknowledged.
#![allow(missing_docs)]

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;
use support::processes::{
    Flush, FollowerProcess, LeaderProcess, Redis, RedisClient, Stage, assert_benchmark_succeeded, run, wait_same,
};
use support::wait_until;

/// Runs redis-benchmark, and rewrites of the file for as long as it runs.
fn load_with_rewrites(stage: &Stage, redis: &Redis, requests: u32) {
    let mut benchmark = redis.benchmark(stage, "set,incr,lpush", requests);
    let mut rewrites = 0;
    while !benchmark.has_ended() || rewrites == 0 {
        redis.rewrite();
        rewrites += 1;
    }
    assert_benchmark_succeeded(&mut benchmark);
}

/// Starts a Redis on a copy of the follower's copy.
fn redis_on_copy(stage: &Stage, follower: &FollowerProcess) -> Redis {
    let dir = stage.path("restored");
    copy(&follower.dir, &dir);
    Redis::start(stage, "restored-redis", &dir, Flush::EverySecond)
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-r").arg(from).arg(to));
}

fn assert_no_evictions(leader: &LeaderProcess) {
    let evictions = leader.evictions();
    assert!(evictions.is_empty(), "{evictions:?}");
}

#[test]
fn copies_of_a_redis_under_load_and_rewrites_equal_it() {
    let stage = Stage::new();
    let dir = stage.folder("data");
    let redis = Redis::start(&stage, "redis", &dir, Flush::EverySecond);
    let mut leader = stage.leader(&dir, &[]);
    let mut followers = stage.followers(2, leader.address);
    load_with_rewrites(&stage, &redis, 150_000);
    // One joins under load.
    followers.push(stage.follower("follower3", leader.address));
    for _ in 0..2 {
        load_with_rewrites(&stage, &redis, 150_000);
    }
    // The last word is a rewrite, which begins an empty file that Redis insists on.
    redis.rewrite();
    redis.settle();
    assert!(has_empty_file(&dir), "the rewrite has not begun an empty file");
    leader.wait_copies(&followers);
    assert_no_evictions(&leader);
    assert!(has_empty_file(&followers[2].dir));
    let restored = redis_on_copy(&stage, &followers[2]);
    assert_eq!(restored.digest(), redis.digest());
    leader.end(&mut followers);
}

/// Sets key after key, and counts those that Redis acknowledged, until the connection breaks.
fn set_until_killed(mut client: RedisClient, acknowledged: &AtomicU32) {
    const PIPELINED: u32 = 50;
    for first in (0..).step_by(PIPELINED as usize) {
        let keys = first..first + PIPELINED;
        if keys.clone().any(|key| client.send(&["SET", &format!("key:{key}"), &value(key)]).is_err()) {
            return;
        }
        for _ in keys {
            if client.answer().is_err() {
                return;
            }
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn value(key: u32) -> String {
    format!("value {key} ").repeat(1 + key as usize % 20)
}

#[test]
fn a_redis_on_a_copy_has_every_acknowledged_key_after_redis_and_leader_were_killed() {
    let stage = Stage::new();
    let dir = stage.folder("data");
    let mut redis = Redis::start(&stage, "redis", &dir, Flush::Always);
    let mut leader = stage.leader(&dir, &[]);
    let followers = stage.followers(3, leader.address);
    let acknowledged = AtomicU32::new(0);
    let count = || acknowledged.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let client = redis.client();
        scope.spawn(|| set_until_killed(client, &acknowledged));
        let _others = redis.benchmark(&stage, "incr,lpush", 10_000_000);
        wait_until("some keys are acknowledged", || count() > 10_000);
        redis.rewrite();
        let before = count();
        wait_until("more keys are acknowledged", || count() > before + 10_000);
        // In the middle of a rewrite.
        redis.client().command(&["BGREWRITEAOF"]).unwrap();
        redis.process.kill();
    });
    for follower in &followers {
        wait_same(&dir, &follower.dir);
    }
    assert_no_evictions(&leader);
    leader.process.kill();
    let restored = redis_on_copy(&stage, &followers[0]);
    let mut client = restored.client();
    let keys = acknowledged.into_inner();
    for key in 0..keys {
        let found = client.command(&["GET", &format!("key:{key}")]);
        assert_eq!(found.ok(), Some(value(key)), "key {key} of {keys}");
    }
}

#[test]
fn a_leader_killed_and_restarted_under_load_gets_its_followers_back() {
    let stage = Stage::new();
    let dir = stage.folder("data");
    let redis = Redis::start(&stage, "redis", &dir, Flush::EverySecond);
    let mut leader = stage.leader(&dir, &[]);
    let mut followers = stage.followers(3, leader.address);
    let mut benchmark = redis.benchmark(&stage, "set,incr,lpush", 200_000);
    wait_until("a follower has something", || appended(&followers[0].dir) > 1 << 20);
    leader.process.kill();
    // What is rewritten while nobody leads must be found by the scan.
    redis.rewrite();
    let mut leader = stage.leader_at(&leader.address.to_string(), &dir, &[]);
    redis.rewrite();
    assert_benchmark_succeeded(&mut benchmark);
    redis.settle();
    leader.end(&mut followers);
}

/// Whether one of Redis' append-only files is empty.
fn has_empty_file(dir: &Path) -> bool {
    let mut entries = std::fs::read_dir(dir.join("appendonlydir")).unwrap();
    entries.any(|entry| entry.unwrap().metadata().unwrap().len() == 0)
}

/// Bytes in Redis' append-only files.
fn appended(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir.join("appendonlydir")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
}

#[test]
fn a_stopped_follower_is_evicted_while_redis_and_the_others_go_on_and_comes_back() {
    let stage = Stage::new();
    let dir = stage.folder("data");
    let redis = Redis::start(&stage, "redis", &dir, Flush::EverySecond);
    let mut leader = stage.leader(&dir, &["--queue-bytes", "1MiB"]);
    let mut followers = stage.followers(3, leader.address);
    leader.wait_joined(3);

    let stalled = followers.pop().unwrap();
    stalled.process.signal(Signal::STOP);
    let mut benchmark = redis.benchmark(&stage, "set,incr,lpush", 50_000);
    // What does not compress fills sockets and queue.
    let mut client = redis.client();
    let mut random = fastrand::Rng::with_seed(1);
    wait_until("the stopped follower is evicted", || {
        let value: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(100_000).collect();
        assert_eq!(client.command(&[&b"SET"[..], b"noise", &value]).unwrap(), "OK");
        !leader.evictions().is_empty()
    });
    assert_benchmark_succeeded(&mut benchmark);
    redis.settle();
    leader.wait_copies(&followers);

    stalled.process.signal(Signal::CONT);
    followers.push(stalled);
    leader.wait_copies(&followers);
    let evictions = leader.evictions();
    assert_eq!(evictions.len(), 1, "{evictions:?}");
    assert!(evictions[0].contains("queue full"), "{evictions:?}");
    leader.end(&mut followers);
}
