//! Joining while the leader's files are written, replaced, torn and followers come and go: every copy ends exact.
#![allow(missing_docs)]

mod support;

use std::fs::{self, File};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use paceline::leader::{EvictionReason, FollowerState, Window};
use support::fake_follower::FakeFollower;
use support::lavinmq::LavinMq;
use support::{PATIENCE, TestFollower, TestLeader, assert_same, contents, noise, path, wait_until};

/// Writes to `leader` in four threads, within a window, until `meanwhile` returns.
fn under_heavy_writing<T>(leader: &TestLeader, names: &[&str], meanwhile: impl FnOnce() -> T) -> T {
    /// Also if `meanwhile` panics.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stopping = Stop(&stop);
        for thread in 0..4 {
            let stop = &stop;
            // A thread has files of its own, for what a host must not do to one file in two threads at once.
            let own: Vec<_> = names.iter().skip(thread).step_by(4).copied().collect();
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread as u64);
                while !stop.load(Ordering::Relaxed) {
                    let name = *random.choice(&own).unwrap();
                    match random.u8(..100) {
                        0 => leader.replace(name, &vec![random.u8(..); random.usize(1..600_000)]),
                        1..4 => leader.replace(name, &vec![random.u8(..); random.usize(1..3000)]),
                        4..6 if leader.leader.file_len(&path(name)).is_some() => leader.delete(name),
                        6 => leader.append(name, &vec![random.u8(..); random.usize(1..600_000)]),
                        _ => leader.append(name, &vec![random.u8(..); random.usize(1..3000)]),
                    }
                    leader.leader.wait_for_window(&Window::new(1 << 20), PATIENCE);
                }
            });
        }
        let result = meanwhile();
        drop(stopping);
        result
    })
}

#[test]
fn followers_evicted_under_heavy_writing_return_and_end_exact() {
    let leader = TestLeader::with(|config| {
        config.queue_bytes = 4 << 20;
        config.sync_timeout = Duration::from_secs(2);
        config.write_timeout = Duration::from_secs(1);
        config.ack_timeout = Duration::from_secs(1);
    });
    let names = ["a/1", "a/2", "a/3", "a/4", "b/1", "b/2", "b/3", "b/4", "c", "d", "e", "f"];
    let mut followers: Vec<TestFollower> = (0..2).map(|_| leader.follower()).collect();
    under_heavy_writing(&leader, &names, || {
        for round in 0..6 {
            let id = followers[round % 2].follower.id();
            leader.wait_state(id, FollowerState::InSync);
            if round % 3 == 0 {
                // Back with what it has, as a process that was killed.
                let TestFollower { follower, dir } = followers.swap_remove(round % 2);
                drop(follower);
                followers.push(TestFollower::on(leader.address, dir));
            } else {
                // It loses its place to a connection that says nothing and stops, and takes it again.
                let thief = FakeFollower::connect(leader.address).shake(id);
                wait_until("it was replaced", || {
                    leader
                        .leader
                        .evictions()
                        .iter()
                        .filter(|e| e.id == id && e.reason == EvictionReason::Replaced)
                        .count()
                        > 0
                });
                drop(thief);
            }
            let stopped = leader.narrow_fake().join();
            wait_until("who stopped is evicted", || leader.leader.evictions().iter().any(|e| e.id == stopped.id()));
        }
    });
    leader.assert_copies(&followers.iter().collect::<Vec<_>>());
    leader.shut_down();
}

#[test]
fn lavinmq_like_followers_end_exact_with_files_whose_names_are_others_with_tmp() {
    let leader = TestLeader::start();
    // A replacement of the first is written to the second, and so on. One thread has them all.
    let chain = ["x", "o1", "o2", "o3", "x.tmp", "o4", "o5", "o6", "x.tmp.tmp", "o7", "o8", "o9"];
    for round in 0..3 {
        let follower = under_heavy_writing(&leader, &chain, || {
            let follower = LavinMq::start(leader.fake(), tempfile::tempdir().unwrap());
            leader.wait_state(follower.id, FollowerState::InSync);
            let reached = leader.leader.position();
            wait_until("it goes on for a while", || leader.leader.position().since(reached) > 4 << 20);
            follower
        });
        leader.wait_in_sync(1);
        assert_same(leader.dir.path(), follower.dir.path());
        // Once more without haste: which of the two is replaced must not matter.
        for name in ["x", "x.tmp", "x"] {
            leader.replace(name, &[round; 1000]);
            leader.append("x.tmp", b"more");
        }
        leader.wait_in_sync(1);
        assert_same(leader.dir.path(), follower.dir.path());
        follower.stop();
        wait_until("it has gone", || leader.leader.followers().is_empty());
    }
    let evictions = leader.leader.evictions();
    assert!(evictions.is_empty(), "{evictions:?}");
    leader.shut_down();
}

#[test]
fn a_follower_that_asks_while_it_reads_a_long_list_gets_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    let mut name = || std::iter::repeat_with(|| random.alphanumeric()).take(250).collect::<String>();
    for _ in 0..10 {
        let folder = dir.path().join(name());
        fs::create_dir(&folder).unwrap();
        for at in 0..600 {
            fs::write(folder.join(name()), at.to_string()).unwrap();
        }
    }
    let leader = TestLeader::on(dir, |_| ());
    let follower = LavinMq::start(leader.narrow_fake(), tempfile::tempdir().unwrap());
    leader.wait_in_sync(1);
    leader.append("log", b"and the stream");
    leader.wait_in_sync(1);
    assert_eq!(contents(follower.dir.path()).len(), 6001);
    assert_same(leader.dir.path(), follower.dir.path());
    leader.shut_down();
    follower.stop();
}

/// Brings a follower to the middle of a big file's bulk, does something to that file, and lets it go on.
fn during_bulk(leader: &TestLeader, change: impl FnOnce()) -> LavinMq {
    let (go_on, pause) = std::sync::mpsc::channel();
    let follower = LavinMq::start_paused(leader.narrow_fake(), tempfile::tempdir().unwrap(), pause);
    wait_until("its bulk has begun", || {
        leader.leader.followers().iter().any(|other| other.id == follower.id && other.sync.bytes_sent > 0)
    });
    change();
    drop(go_on);
    follower
}

fn leader_with_big_file() -> TestLeader {
    let leader = TestLeader::start();
    leader.append("big", &noise(24 << 20));
    leader.append("small", b"content");
    leader
}

#[test]
fn a_file_cut_short_while_it_is_sent_is_announced_anew() {
    let leader = leader_with_big_file();
    let in_stream = leader.follower();
    leader.wait_in_sync(1);
    let follower = during_bulk(&leader, || {
        File::options().write(true).open(leader.dir.path().join("big")).unwrap().set_len(1000).unwrap();
    });
    // Nobody announces anything: whoever sends the file finds out, and mends all copies at once.
    leader.wait_in_sync(2);
    assert_same(leader.dir.path(), follower.dir.path());
    assert_same(leader.dir.path(), in_stream.dir.path());
    assert_eq!(leader.leader.file_len(&path("big")), Some(1000));
    leader.append("big", b"goes on");
    leader.wait_in_sync(2);
    assert_same(leader.dir.path(), follower.dir.path());
    assert_same(leader.dir.path(), in_stream.dir.path());
}

#[test]
fn a_file_that_was_cut_short_unnoticed_is_announced_anew_when_somebody_joins() {
    for change in [
        (|file: &std::path::Path| File::create(file).map(drop)) as fn(&std::path::Path) -> std::io::Result<()>,
        |file| fs::remove_file(file),
        |file| fs::remove_file(file).and_then(|()| fs::create_dir(file)),
        |file| fs::write(file, b"short"),
    ] {
        let leader = leader_with_big_file();
        leader.append("folder/file", b"content");
        let in_stream = leader.follower();
        leader.wait_in_sync(1);
        change(&leader.dir.path().join("big")).unwrap();
        // A file where a folder was.
        fs::remove_dir_all(leader.dir.path().join("folder")).unwrap();
        fs::write(leader.dir.path().join("folder"), b"now a file").unwrap();
        let follower = leader.follower();
        leader.wait_in_sync(2);
        leader.leader.replace(&path("folder")).unwrap();
        leader.assert_copies(&[&in_stream, &follower]);
        leader.shut_down();
    }
}

#[test]
fn a_file_replaced_deleted_or_made_again_while_it_is_sent_ends_exact() {
    for change in [
        (|leader: &TestLeader| leader.delete("big")) as fn(&TestLeader),
        |leader| leader.replace("big", b"shorter"),
        |leader| leader.replace("big", &noise(25 << 20)),
        |leader| {
            leader.delete("big");
            leader.append("big", b"made again");
        },
        |leader| leader.append("big", &noise(3 << 20)),
    ] {
        let leader = leader_with_big_file();
        let follower = during_bulk(&leader, || change(&leader));
        leader.wait_in_sync(1);
        assert_same(leader.dir.path(), follower.dir.path());
        leader.shut_down();
    }
}

#[test]
fn a_file_that_is_gone_when_it_is_asked_for_is_sent_empty_and_then_deleted() {
    let leader = TestLeader::start();
    leader.append("gone", b"content");
    leader.append("here", b"content");
    let mut peer = leader.fake();
    assert_eq!(peer.list().len(), 2);
    leader.delete("gone");
    peer.request([&path("here"), &path("gone")]);
    assert_eq!(peer.content(), b"content");
    assert_eq!(peer.content(), b"");
    let second: Vec<_> = peer.list().into_iter().map(|entry| entry.path).collect();
    assert_eq!(second, [path("here")], "what is void is not listed, so that it is deleted");
    peer.request([]);
    peer.pass_probe();
    let mut delete = vec![0; 4 + 4 + 8];
    peer.frame.read_exact(&mut delete).unwrap();
    assert_eq!(delete, b"\x04\0\0\0gone\0\0\0\0\0\0\0\0");
}

#[test]
fn no_thread_of_a_leader_gives_way_to_others_for_a_join() {
    // It would, while it holds a lock that an append waits for.
    let leader = TestLeader::start();
    leader.append("log", b"of a leader");
    let joining = leader.fake();
    leader.wait_state(joining.id(), FollowerState::Syncing);
    let niceness = |thread: &str| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
        // What is before the last parenthesis is the thread's name.
        Some(stat.rsplit_once(')')?.1.split_whitespace().nth(16)?.parse().unwrap())
    };
    let ours = niceness(&rustix::thread::gettid().to_string()).unwrap();
    for thread in fs::read_dir("/proc/self/task").unwrap() {
        let thread = thread.unwrap().file_name().into_string().unwrap();
        // Others' tests end meanwhile.
        let its = niceness(&thread).unwrap_or(ours);
        assert_eq!(its, ours, "{:?}", fs::read_to_string(format!("/proc/self/task/{thread}/comm")));
    }
    leader.shut_down();
}
