//! A leader that is still reading its directory: followers that come meanwhile wait, and are in sync soon after.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use paceline::follower::State;
use paceline::leader::{FollowerState, Opening};
use paceline::{Error, LeaderConfig, NodeId};
use rustix::io::Errno;
use rustix::process::Signal;
use support::fake_follower::FakeFollower;
use support::inject::Injection;
use support::processes::Stage;
use support::{TestFollower, assert_same, contents, secret, wait_until};

const FILES: usize = 200;

fn fill(dir: &Path) {
    for at in 0..FILES {
        fs::write(dir.join(format!("file-{at}")), at.to_string()).unwrap();
    }
}

fn opening(dir: &Path) -> Opening {
    let mut config = LeaderConfig::new(dir, secret());
    config.heartbeat_interval = Duration::from_millis(20);
    Opening::new(config).unwrap()
}

/// Longer than a leader with such heartbeats may be silent.
const LONGER_THAN_SILENCE: Duration = Duration::from_millis(2500);

#[test]
fn whoever_comes_while_the_directory_is_read_waits_and_is_in_sync_soon_after() {
    support::begin();
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    let opening = opening(dir.path());
    let address = opening.listen("127.0.0.1:0").unwrap();
    let (go, gate) = mpsc::channel::<()>();
    let opened = thread::spawn(move || {
        opening.open(&mut |files| {
            // Disconnected once it is to go on.
            let _ = if files < 64 { Ok(()) } else { gate.recv() };
            true
        })
    });
    let follower = TestFollower::on(address, tempfile::tempdir().unwrap());
    wait_until("it is told how far the leader is", || {
        let status = follower.follower.status();
        status.state == State::LeaderOpening && status.leader_files >= Some(64)
    });
    let mut old = FakeFollower::connect(address).shake(NodeId::random());
    thread::sleep(LONGER_THAN_SILENCE);
    let status = follower.follower.status();
    assert_eq!((status.state, status.connections, status.last_disconnect), (State::LeaderOpening, 1, None));
    assert!(contents(follower.dir.path()).is_empty(), "it was sent something");
    drop(go);
    let leader = opened.join().unwrap().unwrap();
    assert_eq!(old.list().len(), FILES, "one of 1.0.0 waits for its list");
    wait_until("it is in sync", || {
        let id = follower.id();
        leader.followers().iter().any(|follower| follower.id == id && follower.state == FollowerState::InSync)
    });
    let status = follower.follower.status();
    assert_eq!((status.connections, status.leader_files), (1, None));
    assert_same(dir.path(), follower.dir.path());
    leader.shutdown(Duration::ZERO);
}

#[test]
fn a_leader_that_is_not_to_go_on_lets_all_go_and_leaves_its_directory_as_it_was() {
    support::begin();
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    let first = opening(dir.path());
    let address = first.listen("127.0.0.1:0").unwrap();
    let follower = TestFollower::on(address, tempfile::tempdir().unwrap());
    let mut waits = false;
    let ended = first.open(&mut |_| {
        wait_until("it waits", || follower.follower.status().state == State::LeaderOpening);
        !std::mem::replace(&mut waits, true)
    });
    let ended = ended.map(drop);
    assert!(matches!(ended, Err(Error::ShuttingDown)), "{ended:?}");
    assert!(waits, "it was not asked");
    wait_until("the follower is let go", || follower.follower.status().last_disconnect.is_some());
    assert!(!dir.path().join(".clustering_id").exists() && !dir.path().join(".paceline/data-set").exists());
    // Nor is anything left of it in the way.
    let second = opening(dir.path());
    second.listen(address).unwrap();
    let leader = second.open(&mut |_| true).unwrap();
    wait_until("it is in sync", || leader.followers().iter().any(|follower| follower.state == FollowerState::InSync));
    assert_same(dir.path(), follower.dir.path());
    leader.shutdown(Duration::ZERO);
}

#[test]
fn who_waits_for_a_leader_that_turns_out_not_to_lead_keeps_all_it_has() {
    support::begin();
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    let first = opening(dir.path());
    let address = first.listen("127.0.0.1:0").unwrap();
    let leader = first.open(&mut |_| true).unwrap();
    let follower = TestFollower::on(address, tempfile::tempdir().unwrap());
    wait_until("it is in sync", || leader.followers().iter().any(|follower| follower.state == FollowerState::InSync));
    leader.shutdown(Duration::ZERO);
    drop(leader);
    for at in 1..FILES {
        fs::remove_file(dir.path().join(format!("file-{at}"))).unwrap();
    }
    let second = opening(dir.path());
    second.listen(address).unwrap();
    let ended = second.open(&mut |_| {
        wait_until("it waits", || follower.follower.status().state == State::LeaderOpening);
        true
    });
    let ended = ended.map(drop);
    assert!(matches!(ended, Err(Error::Missing { .. })), "{ended:?}");
    assert_eq!(contents(follower.dir.path()).len(), FILES);
}

#[test]
fn a_signal_while_the_directory_is_read_ends_the_program() {
    let stage = Stage::new();
    let (dir, follower) = (stage.folder("leader"), stage.path("follower"));
    fs::create_dir(dir.join("slow")).unwrap();
    for at in 0..5000 {
        fs::write(dir.join(format!("slow/{at}")), b"").unwrap();
    }
    // It takes 50 s.
    let slow = Injection::new(&stage, "slow", &["newfstatat", "statx"], Errno::IO).about("/slow/").slow();
    let mut leader = slow.opening_leader(&stage, &dir);
    let at = leader.address.to_string();
    let args = ["follow", &at, "--data-dir", follower.to_str().unwrap()];
    let mut follower = stage.start("follower", Path::new(env!("CARGO_BIN_EXE_paceline")), args);
    wait_until("the follower says what it waits for", || {
        follower.log().contains("the leader is reading its directory")
    });
    leader.process.signal(Signal::TERM);
    assert!(leader.process.wait().success());
    assert!(leader.process.log().contains("ended before the directory was read"), "{}", leader.process.log());
    follower.stop();
}
