//! Renames, truncations and empty files, told in the stream, in rounds of catching up and on return: copies are exact, and large
//! files do not move because of them.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use fastrand::Rng;
use paceline::leader::{FollowerState, Window};
use paceline::{LeaderConfig, OnFull, Protocol};
use support::relay::Relay;
use support::{PATIENCE, TestFollower, TestLeader, assert_exact, assert_same, noise_of, path, wait_until};

const MIB: usize = 1 << 20;

fn patient(config: &mut LeaderConfig) {
    config.write_timeout = PATIENCE;
    config.ack_timeout = PATIENCE;
}

/// What a host does to its files, local and announced.
trait Host {
    fn truncate(&self, name: &str, len: u64);
    fn len(&self, name: &str) -> Option<u64>;
}

impl Host for TestLeader {
    fn truncate(&self, name: &str, len: u64) {
        fs::File::options().write(true).open(self.dir.path().join(name)).unwrap().set_len(len).unwrap();
        self.leader.truncate(&path(name), len).unwrap();
    }

    fn len(&self, name: &str) -> Option<u64> {
        self.leader.file_len(&path(name))
    }
}

/// Takes the folders that renames have emptied away, as a host may.
fn remove_empty_folder(leader: &TestLeader, name: &str) {
    fs::remove_dir(leader.dir.path().join(name)).unwrap();
}

/// 16 MiB in four files.
fn with_large_files(leader: &TestLeader) {
    let mut random = Rng::with_seed(1);
    for name in ["a", "b", "c", "folder/d"] {
        leader.append(name, &noise_of(&mut random, 4 * MIB));
    }
}

/// Each file ends under another name, by chains, swaps, into folders and over others; a file becomes a folder and a folder a
/// file. Returns how much was appended meanwhile.
fn storm(leader: &TestLeader, random: &mut Rng) -> u64 {
    let mut appended = 0;
    let mut append = |name: &str| {
        let length = random.usize(1..20_000);
        appended += length as u64;
        leader.append(name, &noise_of(random, length));
    };
    // A chain, as log rotation has it.
    leader.rename("c", "c.1");
    leader.rename("b", "c");
    leader.rename("a", "b");
    append("a");
    append("b");
    // A swap.
    leader.rename("b", "swap");
    leader.rename("c", "b");
    leader.rename("swap", "c");
    append("c");
    // Over another.
    append("over");
    leader.rename("folder/d", "over");
    if leader.len("folder/new").is_some() {
        leader.delete("folder/new");
    }
    remove_empty_folder(leader, "folder");
    // A folder comes where a file was, and the file into it.
    leader.rename("c.1", "deep");
    leader.rename("deep", "aside");
    leader.rename("aside", "deep/er/c");
    append("deep/er/c");
    // And a file where a folder was.
    leader.rename("over", "folder/d");
    leader.rename("deep/er/c", "folder/e");
    remove_empty_folder(leader, "deep/er");
    remove_empty_folder(leader, "deep");
    leader.rename("a", "deep");
    append("folder/new");
    // Back to how it was, with the contents elsewhere.
    leader.rename("deep", "a.old");
    leader.rename("b", "a");
    leader.rename("c", "b");
    leader.rename("folder/e", "c");
    appended
}

#[test]
fn a_storm_of_renames_moves_names_only() {
    let leader = TestLeader::with(patient);
    with_large_files(&leader);
    let relay = Relay::start(leader.address);
    let (attached, returning) = (leader.follower(), TestFollower::on(relay.address, tempfile::tempdir().unwrap()));
    leader.wait_in_sync(2);
    let before = leader.status(attached.id()).unwrap().sent_bytes;
    let left = leader.status(returning.id()).unwrap().address;
    relay.hold();
    relay.cut();
    wait_until("it is gone", || leader.status(returning.id()).is_none_or(|status| status.address != left));
    let mut random = Rng::with_seed(2);
    let appended: u64 = (0..3).map(|_| storm(&leader, &mut random)).sum();
    leader.wait_until_in_sync(attached.id());
    let moved = leader.status(attached.id()).unwrap().sent_bytes - before;
    assert!(moved < appended * 11 / 10 + (64 << 10), "in the stream {moved} moved for {appended}");
    relay.release();
    leader.assert_copies(&[&attached, &returning]);
    let status = leader.status(returning.id()).unwrap();
    assert!(status.sent_bytes < appended * 11 / 10 + MIB as u64, "on return, for {appended}: {status:?}");
    leader.shut_down();
}

impl TestLeader {
    fn wait_until_in_sync(&self, id: paceline::NodeId) {
        wait_until("it has acknowledged everything", || {
            self.status(id).is_some_and(|status| status.acknowledged == Some(self.leader.position()))
        });
    }
}

#[test]
fn a_storm_of_renames_during_a_join_moves_each_file_once() {
    let leader = TestLeader::with(|config| {
        patient(config);
        config.queue_bytes = 1 << 20;
    });
    with_large_files(&leader);
    let relay = Relay::start(leader.address);
    relay.hold();
    let joining = TestFollower::on(relay.address, tempfile::tempdir().unwrap());
    let mut random = Rng::with_seed(3);
    let mut appended = 0;
    // The files were listed and are being sent: 1 MiB at a time.
    for _ in 0..8 {
        relay.allow(MIB as u64);
        wait_until("something of it has come", || {
            leader.status(joining.id()).is_some_and(|status| status.sent_bytes > 0)
        });
        appended += storm(&leader, &mut random);
    }
    relay.release();
    leader.assert_copies(&[&joining]);
    let status = leader.status(joining.id()).unwrap();
    let exists = 16 * MIB as u64 + appended;
    assert!(status.sent_bytes < exists * 11 / 10 + MIB as u64, "{exists} exist: {status:?}");
    leader.shut_down();
}

#[test]
fn truncated_and_emptied_in_the_stream_in_rounds_and_on_return() {
    let leader = TestLeader::with(|config| {
        patient(config);
        config.on_full = OnFull::CatchUp;
        config.queue_bytes = 1 << 20;
    });
    let mut random = Rng::with_seed(4);
    let names = ["to-0", "to-1", "to-a-chunk", "to-within", "emptied", "empty", "grown"];
    let reset = |random: &mut Rng| {
        for name in names {
            if leader.len(name).is_some() {
                leader.delete(name);
            }
            let length = if name.starts_with("empty") || name == "grown" { 0 } else { 700_000 };
            leader.append(name, &noise_of(random, length));
        }
        leader.append("emptied", b"something");
    };
    let reshape = |random: &mut Rng| {
        leader.truncate("to-0", 0);
        leader.truncate("to-1", 1);
        leader.truncate("to-a-chunk", 512 << 10);
        leader.truncate("to-within", 600_001);
        leader.append("to-within", &noise_of(random, 50));
        leader.truncate("to-within", 600_011);
        leader.replace("emptied", b"");
        leader.append("another-empty", b"");
        leader.delete("empty");
        leader.append("empty", b"");
        leader.append("grown", b"grown");
        leader.truncate("grown", 3);
    };
    reset(&mut random);
    let relay = Relay::start(leader.address);
    let follower = TestFollower::on(relay.address, tempfile::tempdir().unwrap());
    let id = follower.id();
    leader.wait_in_sync(1);
    // In the stream.
    let before = leader.status(id).unwrap();
    reshape(&mut random);
    leader.assert_copies(&[&follower]);
    let after = leader.status(id).unwrap();
    assert!(after.sent_bytes - before.sent_bytes < 10_000 && after.address == before.address, "{after:?}");
    // In the rounds after its queue was full.
    reset(&mut random);
    leader.wait_in_sync(1);
    relay.hold();
    reshape(&mut random);
    wait_until("it is demoted", || {
        leader.append("filler", &noise_of(&mut random, 100_000));
        leader.status(id).is_some_and(|status| status.demotions > 0)
    });
    leader.delete("another-empty");
    leader.append("late-empty", b"");
    leader.truncate("to-1", 0);
    relay.release();
    leader.assert_copies(&[&follower]);
    assert_eq!(leader.status(id).unwrap().address, before.address, "it connected again");
    // On return.
    reset(&mut random);
    leader.wait_in_sync(1);
    let dir = follower.stop();
    wait_until("it has gone", || leader.leader.followers().is_empty());
    reshape(&mut random);
    let follower = TestFollower::on(relay.address, dir);
    leader.assert_copies(&[&follower]);
    let sync = follower.follower.status().sync;
    // What is kept of the last chunk of a file that was cut within one.
    let kept = 1 + 600_011 % (256 << 10) + 3;
    assert_eq!(sync.bytes_received, kept, "{sync:?}");
    assert!(leader.leader.evictions().is_empty());
    leader.shut_down();
}

#[test]
fn followers_of_both_protocols_are_exact_whatever_is_done_to_files() {
    let leader = TestLeader::with(|config| {
        patient(config);
        config.on_full = OnFull::CatchUp;
        config.queue_bytes = 4 << 20;
    });
    let v1 = TestFollower::v1(leader.address);
    let extended = leader.follower();
    let done = AtomicBool::new(false);
    let dirs = std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            let (leader, done) = (&leader, &done);
            scope.spawn(move || {
                let mut random = Rng::with_seed(thread);
                let name = |random: &mut Rng| format!("{thread}/{}/{}", random.u8(..3), random.u8(..6));
                for _ in 0..2_000 {
                    let (one, other) = (name(&mut random), name(&mut random));
                    let len = leader.len(&one);
                    match (random.u8(..20), len) {
                        (0 | 1, Some(_)) => leader.rename(&one, &other),
                        (2, Some(len)) => leader.truncate(&one, random.u64(..=len)),
                        (3, Some(_)) => leader.delete(&one),
                        (4, _) => leader.replace(&one, b""),
                        (5, _) => {
                            let length = random.usize(1..300_000);
                            leader.replace(&one, &noise_of(&mut random, length));
                        }
                        (6, None) => leader.append(&one, b""),
                        _ => {
                            let length = random.usize(1..20_000);
                            leader.append(&one, &noise_of(&mut random, length));
                        }
                    }
                    leader.leader.wait_for_window(&Window::new(1 << 20), PATIENCE);
                }
                done.store(true, Ordering::Relaxed);
            });
        }
        // Others come and go meanwhile.
        let mut dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
        while !done.load(Ordering::Relaxed) {
            for (at, dir) in dirs.iter_mut().enumerate() {
                let taken = std::mem::replace(dir, tempfile::tempdir().unwrap());
                let follower = TestFollower::with(leader.address, taken, |config| {
                    config.protocol = if at == 0 { Protocol::Auto } else { Protocol::V1 };
                });
                wait_until("it is in sync", || {
                    done.load(Ordering::Relaxed)
                        || leader.status(follower.id()).is_some_and(|status| status.state == FollowerState::InSync)
                });
                *dir = follower.stop();
            }
        }
        dirs
    });
    wait_until("those that left are gone", || leader.leader.followers().len() == 2);
    for follower in [&extended, &v1] {
        let status = follower.follower.status();
        assert_eq!(status.connections, 1, "{status:?}");
    }
    leader.wait_in_sync(2);
    assert_exact(leader.dir.path(), extended.dir.path());
    assert_same(leader.dir.path(), v1.dir.path());
    let [dir, v1_dir] = <[_; 2]>::try_from(dirs).unwrap();
    let back = TestFollower::on(leader.address, dir);
    // A copy by 1.0.0 that goes on with the extension gets its empty files.
    let changed = TestFollower::on(leader.address, v1_dir);
    leader.wait_in_sync(4);
    for follower in [&back, &changed] {
        assert_exact(leader.dir.path(), follower.dir.path());
    }
    assert!(leader.leader.evictions().is_empty(), "{:?}", leader.leader.evictions());
    leader.shut_down();
}

#[test]
fn a_file_that_begins_empty_is_there_at_once_and_may_be_renamed() {
    let leader = TestLeader::with(patient);
    let (extended, v1) = (leader.follower(), TestFollower::v1(leader.address));
    leader.wait_in_sync(2);
    // Not by way of a handle, which announces what it finds.
    let begin_empty = |name: &str| {
        fs::write(leader.dir.path().join(name), b"").unwrap();
        leader.leader.append(&path(name), 0, b"").unwrap();
    };
    for name in ["stays", "moved", "grows"] {
        begin_empty(name);
    }
    fs::write(leader.dir.path().join("by reference"), b"").unwrap();
    leader.leader.append_from_file(&path("by reference"), 0, 0).unwrap();
    leader.wait_in_sync(2);
    assert_exact(leader.dir.path(), extended.dir.path());
    leader.rename("moved", "there");
    leader.append("grows", b"grown");
    leader.leader.append(&path("stays"), 0, b"").unwrap();
    leader.wait_in_sync(2);
    assert_exact(leader.dir.path(), extended.dir.path());
    assert_same(leader.dir.path(), v1.dir.path());
    for follower in [&extended, &v1] {
        assert_eq!(follower.follower.status().connections, 1);
    }
    leader.shut_down();
}
