//! A follower that is told to follow another leader.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::time::Duration;

use paceline::follower::State;
use support::{TestFollower, TestLeader, noise, path, wait_until};
use tempfile::TempDir;

/// A leader on a copy of this one's directory.
fn successor(leader: &TestLeader) -> TestLeader {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(".paceline")).unwrap();
    let names = leader.leader.files().into_iter().map(|(name, _)| name.to_string());
    for name in names.chain([".paceline/data-set".to_owned()]) {
        fs::copy(leader.dir.path().join(&name), dir.path().join(&name)).unwrap();
    }
    TestLeader::on(dir, |_| ())
}

/// A follower in sync that would otherwise wait for ever before it connects anew.
fn patient_follower(leader: &TestLeader, dir: TempDir) -> TestFollower {
    let follower = TestFollower::with(leader.address, dir, |config| {
        (config.retry_delay_min, config.retry_delay_max) = (Duration::from_secs(3600), Duration::from_secs(3600));
    });
    leader.wait_in_sync(1);
    follower
}

#[test]
fn it_moves_at_once_and_gets_what_it_lacks() {
    const BYTES: usize = 3 << 20;
    let first = TestLeader::start();
    let follower = patient_follower(&first, tempfile::tempdir().unwrap());
    first.append("big", &noise(BYTES));
    first.append("log", b"a line\n");
    first.wait_in_sync(1);
    let second = successor(&first);
    second.append("log", b"another line\n");
    follower.follower.follow(Some(&second.address.to_string()));
    second.assert_copies(&[&follower]);
    wait_until("the first leader has no follower", || first.leader.followers().is_empty());
    let sync = follower.follower.status().sync;
    assert!(sync.bytes_received < 1 << 20, "{sync:?}");
    // By now it knows what it has.
    let third = successor(&second);
    follower.follower.follow(Some(&third.address.to_string()));
    third.assert_copies(&[&follower]);
    let sync = follower.follower.status().sync;
    assert!(sync.bytes_hashed < BYTES as u64, "{sync:?}");
    // What it was told last counts, and what it knows already is no news.
    follower.follower.follow(Some(&first.address.to_string()));
    follower.follower.follow(Some(&second.address.to_string()));
    second.append("log", b"a third\n");
    second.assert_copies(&[&follower]);
}

#[test]
fn it_follows_nobody_until_it_is_told_whom() {
    let leader = TestLeader::start();
    let follower = patient_follower(&leader, tempfile::tempdir().unwrap());
    follower.follower.follow(None);
    wait_until("the leader has no follower", || leader.leader.followers().is_empty());
    wait_until("it is at rest", || follower.follower.status().state == State::Connecting);
    leader.append("log", b"a line\n");
    assert_eq!(follower.follower.status().connections, 1);
    follower.follower.follow(Some(&leader.address.to_string()));
    leader.assert_copies(&[&follower]);
    follower.follower.follow(None);
    follower.stop();
}

#[test]
fn it_leaves_a_leader_that_does_not_answer() {
    let leader = TestLeader::start();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let follower = TestFollower::with(nobody.local_addr().unwrap(), tempfile::tempdir().unwrap(), |config| {
        config.connect_timeout = Duration::from_secs(3600);
    });
    let _connected = nobody.accept().unwrap();
    leader.append("log", b"a line\n");
    follower.follower.follow(Some(&leader.address.to_string()));
    leader.assert_copies(&[&follower]);
    assert_eq!(leader.leader.file_len(&path("log")), Some(7));
}
