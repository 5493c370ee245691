//! Leader and follower together: what one has, the other gets, byte for byte.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use support::{TestFollower, TestLeader, noise, path, wait_until};

#[test]
fn what_is_there_and_what_is_done_later_arrives() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("queues")).unwrap();
    fs::write(dir.path().join("queues/old"), b"from before").unwrap();
    let leader = TestLeader::on(dir, |_| ());
    let first = leader.follower();
    leader.wait_in_sync(1);
    leader.append("log", b"one ");
    leader.append("log", b"two ");
    leader.append("queues/new", &[7; 100_000]);
    leader.replace("settings.json", b"{}");
    leader.replace("queues/old", b"replaced");
    leader.assert_copies(&[&first]);
    let second = leader.follower();
    leader.delete("queues/new");
    leader.replace("queues/old", &[9; 3_000_000]);
    leader.append("log", b"three");
    leader.assert_copies(&[&first, &second]);
}

#[test]
fn an_append_larger_than_the_queue_arrives_and_evicts_nobody() {
    let leader = TestLeader::with(|config| config.queue_bytes = 1 << 20);
    let follower = leader.follower();
    leader.wait_in_sync(1);
    let mut random = fastrand::Rng::with_seed(1);
    let record: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(20 << 20).collect();
    leader.append("log", b"before ");
    leader.append("log", &record);
    leader.append("log", b" after");
    leader.assert_copies(&[&follower]);
    assert!(leader.leader.evictions().is_empty());
}

#[test]
fn joining_under_heavy_appends_gets_every_byte_once() {
    let leader = TestLeader::start();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (leader, stop) = (&leader, &stop);
            scope.spawn(move || {
                let window = paceline::leader::Window::new(8 << 20);
                let mut random = fastrand::Rng::with_seed(thread);
                let name = |at: u64| format!("dir{}/file{at}", at % 3);
                while !stop.load(Ordering::Relaxed) {
                    let at = thread * 10 + random.u64(..10);
                    match random.u8(..100) {
                        0 => leader.replace(&name(at), &vec![random.u8(..); random.usize(1..300_000)]),
                        1 if leader.leader.file_len(&path(&name(at))).is_some() => leader.delete(&name(at)),
                        _ => leader.append(&name(at), &vec![random.u8(..); random.usize(1..3000)]),
                    }
                    leader.leader.wait_for_window(&window, support::PATIENCE);
                }
            });
        }
        let mut followers: Vec<TestFollower> = Vec::new();
        for round in 0..12 {
            let follower = leader.follower();
            wait_until("the joiner is in sync", || {
                leader.leader.followers().iter().any(|status| {
                    status.id == follower.follower.id() && status.state == paceline::leader::FollowerState::InSync
                })
            });
            if round % 3 == 0 {
                followers.push(follower);
            }
        }
        stop.store(true, Ordering::Relaxed);
        wait_until("those that left are gone", || leader.leader.followers().len() == followers.len());
        leader.assert_copies(&followers.iter().collect::<Vec<_>>());
    });
    let evictions = leader.leader.evictions();
    assert!(evictions.is_empty(), "{evictions:?}");
}

#[test]
fn more_than_a_file_has_is_not_announced() {
    let leader = TestLeader::start();
    let follower = leader.follower();
    let log = path("log");
    let announce = |offset, length| leader.leader.append_from_file(&log, offset, length);
    assert!(announce(0, 1).is_err(), "there is no such file");
    fs::write(leader.dir.path().join("log"), [7; 1000]).unwrap();
    for (offset, length) in [(0, 1001), (0, u64::MAX), (1, u64::MAX)] {
        let refused = announce(offset, length).unwrap_err().to_string();
        assert!(refused.contains("ends at 1000"), "{refused}");
    }
    assert_eq!(leader.leader.file_len(&log), None);
    announce(0, 600).unwrap();
    assert!(announce(600, 401).is_err());
    announce(600, 400).unwrap();
    leader.assert_copies(&[&follower]);
}

#[test]
fn a_write_that_fails_takes_nothing_off_that_another_thread_announced_meanwhile() {
    let leader = TestLeader::start();
    let (name, full) = (path("log"), leader.dir.path().join("log"));
    let bytes = noise(8 << 20);
    let mut begin = 0;
    wait_until("a part of what is being written is announced by somebody else", || {
        let mut log = leader.leader.file(&name).unwrap();
        begin = leader.leader.file_len(&name).unwrap();
        std::thread::scope(|scope| {
            let written = scope.spawn(|| log.append(&bytes).is_ok());
            // What it finds it announces, as a watcher does.
            while !written.is_finished() && fs::metadata(&full).unwrap().len() == begin {}
            let announced = leader.leader.append(&name, begin, &bytes[..10]).is_ok();
            assert_ne!(written.join().unwrap(), announced, "both announced the same");
            announced
        })
    });
    assert_eq!(leader.leader.file_len(&name), Some(begin + 10));
    let on_disk = fs::read(&full).unwrap();
    let begin = usize::try_from(begin).unwrap();
    assert_eq!(on_disk.get(begin..begin + 10), Some(&bytes[..10]), "of {} bytes", on_disk.len());
    leader.shut_down();
}
