//! Memory with followers that stand still: bounded by one queue, however many they are. In a binary of its own, because it
//! looks at the process.
#![allow(missing_docs)]

mod support;

use paceline::leader::{EvictionReason, FollowerState};
use support::{PATIENCE, TestLeader, noise, path, wait_until};

const MIB: u64 = 1 << 20;

/// The most memory that was resident at once so far.
fn resident_max() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// Threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn stopped_followers_cost_one_queue_together() {
    let queue = 16 * MIB;
    let leader = TestLeader::with(|config| {
        config.queue_bytes = queue;
        config.write_timeout = PATIENCE;
        config.ack_timeout = PATIENCE;
    });
    let record = noise(16 << 10);
    let threads_before = threads();
    let before = resident_max();
    let mut most_queued = 0;
    for round in 0..10 {
        let stopped: Vec<_> = (0..4).map(|_| leader.narrow_fake().join()).collect();
        for peer in &stopped {
            leader.wait_state(peer.id(), FollowerState::InSync);
        }
        let mut file = leader.leader.file(&path("log")).unwrap();
        wait_until("all are evicted", || {
            for _ in 0..64 {
                file.append(&record).unwrap();
            }
            let followers = leader.leader.followers();
            most_queued = followers.iter().map(|follower| follower.queued_bytes).chain([most_queued]).max().unwrap();
            followers.is_empty()
        });
        for peer in &stopped {
            leader.wait_evicted_for(peer.id(), &EvictionReason::QueueFull);
        }
        // Their queues are freed when their writers end, which may take a while where cores are scarce.
        wait_until("their threads have ended", || threads() <= threads_before);
        drop(file);
        leader.replace("log", &[round]);
    }
    let batch = 512 << 10;
    assert!(most_queued > queue / 2 && most_queued <= queue + batch, "{most_queued} bytes were queued");
    // Four queues of their own would be 64 MiB.
    let grown = resident_max() - before;
    assert!(grown < 3 * queue, "{} MiB more than before", grown / MIB);
    println!("{} MiB more than before", grown / MIB);
}
