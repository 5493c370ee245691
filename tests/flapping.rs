//! A follower that comes and goes, and what is left of that at the leader. In a binary of its own, because it looks at the process.
#![allow(missing_docs)]

mod support;

use std::fs;

use fastrand::Rng;
use paceline::leader::{EvictionReason, FollowerState, Window};
use support::relay::Relay;
use support::{PATIENCE, TestFollower, TestLeader, noise_of, wait_until};

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_flapping_follower_ends_equal_and_leaves_nothing_behind() {
    let leader = TestLeader::with(|config| {
        config.write_timeout = PATIENCE;
        config.ack_timeout = PATIENCE;
        config.readmit_delay_max = std::time::Duration::ZERO;
        config.readmit_delay_min = std::time::Duration::ZERO;
    });
    let mut random = Rng::with_seed(1);
    for number in 0..30 {
        leader.append(&format!("files/{number}"), &noise_of(&mut random, 200_000));
    }
    let healthy = leader.follower();
    leader.wait_in_sync(1);
    let (mut threads_before, mut resident_before) = (0, 0);
    let dir = std::thread::scope(|scope| {
        let mut dir = tempfile::tempdir().unwrap();
        let (writers, done) = crossbeam_channel::bounded::<()>(0);
        let leader = &leader;
        scope.spawn(move || {
            let mut random = Rng::with_seed(2);
            // Until the other side is dropped, also by a panic; and never without end.
            for _ in 0..200_000 {
                if !matches!(done.try_recv(), Err(crossbeam_channel::TryRecvError::Empty)) {
                    break;
                }
                let name = format!("files/{}", random.u8(..40));
                match random.u8(..60) {
                    0 if leader.leader.file_len(&support::path(&name)).is_some() => leader.delete(&name),
                    1 => leader.replace(&name, &noise_of(&mut random, 100_000)),
                    _ => leader.append(&name, &noise_of(&mut random, 2_000)),
                }
                leader.leader.wait_for_window(&Window::new(256 << 10), PATIENCE);
            }
        });
        let _writers = writers;
        for round in 0..20_u64 {
            // It dies after so many of the leader's bytes: in the handshake, the sync, a round, the stream.
            let relay = Relay::start(leader.address);
            relay.hold();
            let follower = TestFollower::on(relay.address, dir);
            let most = 1 << random.u32(4..24);
            relay.allow(random.u64(..most));
            if round % 4 == 0 {
                relay.release();
                leader.wait_state(follower.id(), FollowerState::InSync);
            }
            wait_until("it gets no further", || relay.is_idle() || round % 4 == 0);
            dir = if round % 2 == 0 {
                // The connection breaks first.
                relay.cut();
                follower.stop()
            } else {
                follower.stop()
            };
            drop(relay);
            if round == 3 {
                wait_until("it has gone", || leader.leader.followers().len() == 1);
                (threads_before, resident_before) = (threads(), resident());
            }
        }
        dir
    });
    wait_until("only the healthy one is left", || leader.leader.followers().len() == 1);
    // One less: the writer's.
    wait_until("all threads have ended", || threads() <= threads_before);
    let grown = resident().saturating_sub(resident_before);
    assert!(grown < 32 << 20, "{grown} bytes more are resident");
    let follower = TestFollower::on(leader.address, dir);
    leader.assert_copies(&[&healthy, &follower]);
    drop(follower);
    drop(healthy);
    wait_until("nobody is left", || leader.leader.followers().is_empty());
    // It may be back before the leader has noticed that it went.
    let evictions = leader.leader.evictions();
    assert!(evictions.iter().all(|eviction| eviction.reason == EvictionReason::Replaced), "{evictions:?}");
    leader.shut_down();
}
