//! `paceline follow`, killed at any moment: the next one makes the copy whole, and what moves is what was missing. And `paceline
//! leader`, told to end while its directory is still written to.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::Path;

use fastrand::Rng;
use paceline::leader::{FollowerState, FollowerStatus, Window};
use rustix::process::Signal;
use support::processes::Stage;
use support::relay::Relay;
use support::{PATIENCE, TestLeader, all_contents, assert_exact, noise_of, wait_until};

/// The most that may move for what was missed.
fn bound(missed: u64) -> u64 {
    missed + missed / 10 + (1 << 20)
}

fn leader() -> TestLeader {
    let leader = TestLeader::with(|config| {
        config.write_timeout = PATIENCE;
        config.ack_timeout = PATIENCE;
    });
    let mut random = Rng::with_seed(1);
    for number in 0..4 {
        leader.append(&format!("queues/{number}"), &noise_of(&mut random, 4 << 20));
    }
    leader.append("empty", b"");
    leader
}

/// The one follower that is there, once it is in sync.
fn in_sync(leader: &TestLeader) -> FollowerStatus {
    let mut found = None;
    wait_until("the follower is in sync", || {
        found = leader.leader.followers().into_iter().find(|status| status.state == FollowerState::InSync);
        found.is_some()
    });
    found.unwrap()
}

fn append(leader: &TestLeader, random: &mut Rng) {
    let name = format!("queues/{}", random.u8(..8));
    let length = random.usize(1..60_000);
    leader.append(&name, &noise_of(random, length));
    leader.leader.wait_for_window(&Window::new(1 << 20), PATIENCE);
}

fn is_incomplete(dir: &Path) -> bool {
    dir.join(".paceline/incomplete").exists()
}

#[test]
fn killed_in_mid_write_it_gets_what_it_missed() {
    let (stage, leader) = (Stage::new(), leader());
    let mut follower = stage.follower("follower", leader.address);
    let mut random = Rng::with_seed(2);
    let mut acknowledged = in_sync(&leader).acknowledged.unwrap();
    for _ in 0..3 {
        let begun = leader.leader.position();
        while leader.leader.position().since(begun) < 4 << 20 {
            append(&leader, &mut random);
            if let [FollowerStatus { acknowledged: Some(position), .. }] = leader.leader.followers()[..] {
                acknowledged = position;
            }
        }
        // More than it takes off its socket at once.
        leader.append("queues/0", &noise_of(&mut random, 4 << 20));
        follower.process.kill();
        append(&leader, &mut random);
        wait_until("it has gone", || leader.leader.followers().is_empty());
        follower = stage.follower("follower", leader.address);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..50).for_each(|_| append(&leader, &mut random)));
            let status = in_sync(&leader);
            let missed = leader.leader.position().since(acknowledged);
            assert!(status.sent_bytes <= bound(missed), "{missed} missed: {status:?}");
        });
    }
    leader.wait_in_sync(1);
    assert_exact(leader.dir.path(), &follower.dir);
    wait_until("the copy is marked as whole", || !is_incomplete(&follower.dir));
    follower.process.stop();
    leader.shut_down();
}

#[test]
fn killed_in_mid_sync_it_goes_on_where_it_was() {
    let (stage, leader) = (Stage::new(), leader());
    let relay = Relay::start(leader.address);
    relay.hold();
    let mut had = 0;
    for part in 1..=3 {
        relay.allow(3 << 20);
        let mut follower = stage.follower("follower", relay.address);
        wait_until("a part has come", || {
            relay.is_idle() && follower.dir.exists() && stored(&follower.dir) > had + (2 << 20)
        });
        assert!(is_incomplete(&follower.dir), "part {part}");
        follower.process.kill();
        relay.cut();
        had = stored(&follower.dir);
        // What was there when the list was made is not what there is at the end.
        leader.append("queues/1", b"and more");
        leader.append("late-empty", b"");
        wait_until("it has gone", || leader.leader.followers().is_empty());
    }
    relay.release();
    let mut follower = stage.follower("follower", relay.address);
    let status = in_sync(&leader);
    leader.wait_in_sync(1);
    let exists: u64 = all_contents(leader.dir.path()).values().map(|content| content.len() as u64).sum();
    assert!(had > 6 << 20 && status.sent_bytes <= bound(exists - had), "{had} of {exists} were there: {status:?}");
    assert_exact(leader.dir.path(), &follower.dir);
    wait_until("the copy is marked as whole", || !is_incomplete(&follower.dir));
    follower.process.stop();
    leader.shut_down();
}

/// The bytes of all files in its folder.
fn stored(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir.join("queues")) else { return 0 };
    entries.map(|entry| entry.and_then(|entry| entry.metadata()).map_or(0, |meta| meta.len())).sum()
}

#[test]
fn what_is_written_while_followers_drain_is_in_their_copies() {
    let stage = Stage::new();
    let dir = stage.folder("leader");
    let options = ["--drain-timeout", "60s", "--write-timeout", "60s", "--ack-timeout", "60s"];
    let mut leader = stage.leader(&dir, &options);
    let link = Relay::start(leader.address);
    let mut follower = stage.follower("follower", link.address);
    leader.wait_joined(1);
    link.hold();
    // More than the system's buffers take on any host.
    fs::write(dir.join("log"), support::noise(16 << 20)).unwrap();
    leader.process.signal(Signal::TERM);
    wait_until("it ends", || leader.process.log().contains("shutting down"));
    fs::write(dir.join("last"), "words").unwrap();
    link.release();
    assert!(leader.process.wait().success());
    assert!(leader.process.log().contains("ended; 1 follower has everything"), "{}", leader.process.log());
    assert_exact(&dir, &follower.dir);
    follower.process.stop();
}
