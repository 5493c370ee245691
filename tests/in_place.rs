//! What a host writes in place, at followers that know the extension and at those that do not: in the stream, while they join, and when they come back.
#![allow(missing_docs)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use paceline::error::AppendError;
use paceline::leader::{CommitLevel, FollowerState, Quorum};
use paceline::{Durability, LeaderConfig, OnFull};
use support::relay::Relay;
use support::{PATIENCE, StopOnDrop, TestFollower, TestLeader, noise, noise_of, path, wait_until};

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

fn patient(config: &mut LeaderConfig) {
    config.write_timeout = PATIENCE;
    config.ack_timeout = PATIENCE;
}

fn open(leader: &TestLeader, name: &str) -> File {
    File::options().write(true).open(leader.dir.path().join(name)).unwrap()
}

/// Writes to the local file and announces it, as a host does.
fn write_at(leader: &TestLeader, name: &str, offset: usize, bytes: &[u8]) {
    open(leader, name).write_all_at(bytes, offset as u64).unwrap();
    leader.leader.write_at(&path(name), offset as u64, bytes).unwrap();
}

fn sent(leader: &TestLeader, follower: &TestFollower) -> u64 {
    leader.status(follower.id()).unwrap().sent_bytes
}

#[test]
fn pages_are_written_in_place_and_nothing_else_moves() {
    let leader = TestLeader::with(patient);
    leader.append("db", &noise(16 * MIB));
    let followers = [leader.follower(), leader.follower()];
    leader.wait_in_sync(2);
    let before: Vec<_> = followers.iter().map(|follower| sent(&leader, follower)).collect();
    let mut random = Rng::with_seed(3);
    for _ in 0..500 {
        write_at(&leader, "db", random.usize(0..16 * MIB / PAGE) * PAGE, &noise_of(&mut random, PAGE));
        if random.u8(..) < 20 {
            leader.append("db", &noise_of(&mut random, PAGE / 3));
        }
    }
    // Up to the last byte, across pieces, and by reference.
    let end = usize::try_from(leader.leader.file_len(&path("db")).unwrap()).unwrap();
    write_at(&leader, "db", end - 1, b"!");
    write_at(&leader, "db", 3 * MIB - 5, &noise_of(&mut random, 2 * MIB));
    leader.assert_copies(&followers.each_ref());
    for (follower, before) in followers.iter().zip(before) {
        let moved = sent(&leader, follower) - before;
        assert!(moved < 5 * MIB as u64, "{moved} bytes for 2 MiB of pages and 2 MiB at once");
    }
    leader.shut_down();
}

#[test]
fn what_is_not_within_the_file_is_refused() {
    let leader = TestLeader::start();
    leader.append("a", b"0123");
    for (name, offset, bytes) in [("a", 2, &b"xxx"[..]), ("a", 5, b""), ("b", 0, b"x"), ("a", u64::MAX, b"x")] {
        let refused = leader.leader.write_at(&path(name), offset, bytes);
        assert!(matches!(refused, Err(AppendError::Offset { .. })), "{name} {offset}: {refused:?}");
        let refused = leader.leader.punch_hole(&path(name), offset, bytes.len() as u64);
        assert!(matches!(refused, Err(AppendError::Offset { .. })), "{name} {offset}: {refused:?}");
    }
    let before = leader.leader.position();
    assert_eq!(leader.leader.write_at(&path("a"), 4, b"").unwrap(), before);
    leader.shut_down();
}

/// Pages go on being written at random, and now and then something is appended, until it is told to stop.
fn write_pages(leader: &TestLeader, stop: &AtomicBool, seed: u64) {
    let mut random = Rng::with_seed(seed);
    while !stop.load(Ordering::Relaxed) {
        let len = usize::try_from(leader.leader.file_len(&path("db")).unwrap()).unwrap();
        write_at(leader, "db", random.usize(0..len - PAGE), &noise_of(&mut random, PAGE));
        if random.u8(..) < 10 {
            leader.append("db", &noise_of(&mut random, 3 * PAGE));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn who_joins_while_pages_are_written_gets_those_and_not_the_file_again() {
    let leader = TestLeader::with(|config| {
        patient(config);
        config.queue_bytes = 1 << 20;
        config.on_full = OnFull::CatchUp;
    });
    leader.append("db", &noise(8 * MIB));
    leader.append("other", b"x");
    let relay = Relay::start(leader.address);
    let stop = AtomicBool::new(false);
    let joiner = std::thread::scope(|scope| {
        let _stops = StopOnDrop(&stop);
        scope.spawn(|| write_pages(&leader, &stop, 4));
        // It is held up in the midst of the file, while pages before and behind that are written.
        relay.allow(3 * MIB as u64);
        let joiner = TestFollower::on(relay.address, tempfile::tempdir().unwrap());
        wait_until("some of the file has come", || {
            fs::metadata(joiner.dir.path().join("db")).is_ok_and(|file| file.len() > MIB as u64)
        });
        let at = leader.leader.position();
        wait_until("pages were written meanwhile", || leader.leader.position().since(at) > 2 * MIB as u64);
        relay.release();
        wait_until("it follows the stream", || {
            leader.status(joiner.id()).is_some_and(|status| status.state == FollowerState::InSync)
        });
        joiner
    });
    leader.assert_copies(&[&joiner]);
    leader.shut_down();
}

#[test]
fn who_comes_back_gets_the_chunks_that_were_written_to() {
    let leader = TestLeader::with(patient);
    leader.append("db", &noise(16 * MIB));
    let relay = Relay::start(leader.address);
    let follower = TestFollower::on(relay.address, tempfile::tempdir().unwrap());
    leader.assert_copies(&[&follower]);
    let mut random = Rng::with_seed(5);
    for _ in 0..2 {
        let left = leader.status(follower.id()).unwrap().address;
        relay.hold();
        relay.cut();
        wait_until("it is gone", || leader.status(follower.id()).is_none_or(|status| status.address != left));
        // One is known by its digest from before, and is not any more.
        for page in [7, 900, 3333] {
            write_at(&leader, "db", page * PAGE, &noise_of(&mut random, PAGE));
        }
        relay.release();
        leader.assert_copies(&[&follower]);
        let moved = sent(&leader, &follower);
        assert!(moved < MIB as u64, "{moved} bytes for three chunks");
    }
    leader.shut_down();
}

#[test]
fn who_speaks_1_0_0_gets_the_file_whole_once_for_many_writes_and_counts_after_that() {
    let leader = TestLeader::with(|config| {
        patient(config);
        config.min_in_sync = 1;
        config.in_sync_timeout = PATIENCE;
    });
    leader.append("db", &noise(4 * MIB));
    leader.append("log", b"begins\n");
    let follower = TestFollower::v1(leader.address);
    leader.wait_in_sync(1);
    let before = sent(&leader, &follower);
    let mut random = Rng::with_seed(6);
    for _ in 0..200 {
        write_at(&leader, "db", random.usize(0..4 * MIB / PAGE) * PAGE, &noise_of(&mut random, PAGE));
        leader.append("db", b"grows");
        leader.append("log", b"a line\n");
    }
    let level = CommitLevel { durability: Durability::Received, quorum: Quorum::All };
    let outcome = leader.leader.commit_at(leader.leader.position(), level, PATIENCE);
    assert!(outcome.is_committed(), "{outcome}");
    let copy = follower.dir.path();
    for name in ["db", "log"] {
        assert!(
            fs::read(leader.dir.path().join(name)).unwrap() == fs::read(copy.join(name)).unwrap(),
            "{name} differs"
        );
    }
    let moved = sent(&leader, &follower) - before;
    assert!(moved < 40 * MIB as u64, "{moved} bytes: as often as it was written to");
    // What it is owed at the end comes before the end.
    write_at(&leader, "db", 0, b"the last");
    leader.leader.shutdown(PATIENCE);
    assert!(fs::read(copy.join("db")).unwrap().starts_with(b"the last"));
}

#[test]
fn holes_take_no_room() {
    const GIB: u64 = 1 << 30;
    let leader = TestLeader::with(patient);
    let follower = leader.follower();
    let v1 = TestFollower::v1(leader.address);
    leader.append("sparse", b"begin");
    leader.append("zeros", &noise(4 * MIB));
    leader.wait_in_sync(2);
    open(&leader, "sparse").set_len(64 * MIB as u64).unwrap();
    leader.leader.truncate(&path("sparse"), 64 * MIB as u64).unwrap();
    leader.append("sparse", b"end");
    let file = open(&leader, "zeros");
    rustix::fs::fallocate(
        &file,
        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
        MIB as u64,
        2 * MIB as u64,
    )
    .unwrap();
    leader.leader.punch_hole(&path("zeros"), MIB as u64, 2 * MIB as u64).unwrap();
    leader.assert_copies(&[&follower, &v1]);
    let blocks = |name: &str| fs::metadata(follower.dir.path().join(name)).unwrap().blocks() * 512;
    assert!(
        blocks("sparse") < MIB as u64 && blocks("zeros") < 3 * MIB as u64,
        "{} {}",
        blocks("sparse"),
        blocks("zeros")
    );
    drop(v1);
    // Nobody reads what is not there.
    let before = sent(&leader, &follower);
    open(&leader, "sparse").set_len(GIB).unwrap();
    leader.leader.truncate(&path("sparse"), GIB).unwrap();
    wait_until("it has all of it", || {
        leader.status(follower.id()).is_some_and(|status| status.acknowledged == Some(leader.leader.position()))
    });
    assert_eq!(fs::metadata(follower.dir.path().join("sparse")).unwrap().len(), GIB);
    assert!(sent(&leader, &follower) - before < 1000 && blocks("sparse") < MIB as u64);
    leader.shut_down();
}

const ALL_RECEIVED: CommitLevel = CommitLevel { durability: Durability::Received, quorum: Quorum::All };

/// A leader that confirms what a follower of 1.0.0 has, for as long as that takes.
fn that_waits_for_one(config: &mut LeaderConfig) {
    patient(config);
    config.min_in_sync = 1;
    config.in_sync_timeout = PATIENCE;
}

#[test]
fn what_is_written_to_several_files_at_once_counts_at_1_0_0_while_that_goes_on() {
    let leader = TestLeader::with(that_waits_for_one);
    let names = ["a", "b", "c"];
    names.iter().for_each(|name| leader.append(name, &noise(MIB)));
    let _follower = TestFollower::v1(leader.address);
    leader.wait_in_sync(1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stops = StopOnDrop(&stop);
        for (number, name) in names.iter().enumerate() {
            let (leader, stop) = (&leader, &stop);
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(70 * number as u64));
                while !stop.load(Ordering::Relaxed) {
                    write_at(leader, name, PAGE, &noise(PAGE));
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
        for _ in 0..5 {
            let outcome = leader.leader.commit_at(leader.leader.position(), ALL_RECEIVED, PATIENCE);
            assert!(outcome.is_committed(), "{outcome}");
        }
    });
    leader.shut_down();
}

#[test]
fn who_speaks_1_0_0_joins_while_a_file_is_written_to_that_no_queue_holds() {
    let leader = TestLeader::with(|config| {
        that_waits_for_one(config);
        config.queue_bytes = 1 << 20;
    });
    leader.append("db", &noise(8 * MIB));
    leader.append("small", &noise(PAGE));
    let stop = AtomicBool::new(false);
    let joiner = std::thread::scope(|scope| {
        let _stops = StopOnDrop(&stop);
        scope.spawn(|| {
            let mut random = Rng::with_seed(7);
            while !stop.load(Ordering::Relaxed) {
                write_at(&leader, "db", random.usize(0..8 * MIB - PAGE), &noise_of(&mut random, PAGE));
                write_at(&leader, "small", 1, &noise_of(&mut random, 100));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let joiner = TestFollower::v1(leader.address);
        let is_attached = |state| matches!(state, FollowerState::Attached | FollowerState::InSync);
        wait_until("it is attached", || leader.status(joiner.id()).is_some_and(|status| is_attached(status.state)));
        joiner
    });
    // What it has of the files from before it was attached counts when it has them whole.
    wait_until("it counts", || {
        leader.leader.commit_at(leader.leader.position(), ALL_RECEIVED, PATIENCE).is_committed()
    });
    for name in ["db", "small"] {
        let at = |dir: &tempfile::TempDir| fs::read(dir.path().join(name)).unwrap();
        assert!(at(&leader.dir) == at(&joiner.dir), "{name} differs");
    }
    leader.shut_down();
}

#[test]
fn a_file_counts_at_1_0_0_though_the_one_that_its_replacement_spoils_is_gone() {
    let leader = TestLeader::with(that_waits_for_one);
    for name in ["x", "x.tmp"] {
        leader.append(name, &noise(PAGE));
    }
    leader.append("log", b"begin");
    let relay = Relay::start(leader.address);
    let _follower = TestFollower::v1(relay.address);
    leader.wait_in_sync(1);
    relay.hold();
    (0..32).for_each(|_| leader.append("log", &noise(MIB)));
    let before = leader.leader.position();
    write_at(&leader, "x", 7, b"other");
    let written = leader.leader.position();
    wait_until("all of it is announced", || leader.leader.position() > written);
    assert!(written > before);
    fs::remove_file(leader.dir.path().join("x.tmp")).unwrap();
    leader.leader.delete(&path("x.tmp")).unwrap();
    relay.release();
    let outcome = leader.leader.commit_at(leader.leader.position(), ALL_RECEIVED, PATIENCE);
    assert!(outcome.is_committed(), "{outcome}");
    leader.shut_down();
}

#[test]
fn a_queue_holds_as_much_of_pages_and_small_records_in_turn_as_of_anything() {
    let leader = TestLeader::with(|config| {
        patient(config);
        config.queue_bytes = 8 << 20;
    });
    leader.append("db", &noise(MIB));
    leader.append("log", b"begin");
    let relay = Relay::start(leader.address);
    let follower = TestFollower::on(relay.address, tempfile::tempdir().unwrap());
    leader.wait_in_sync(1);
    relay.hold();
    let queued = || leader.status(follower.id()).map(|status| status.queued_bytes);
    while queued().is_some_and(|queued| queued < MIB as u64) {
        leader.append("log", &noise(64 << 10));
    }
    let before = queued().unwrap();
    for _ in 0..500 {
        leader.append("log", &[b'x'; 100]);
        write_at(&leader, "db", PAGE, &noise(PAGE));
    }
    // The system may have taken some of it meanwhile.
    let held = queued().expect("it was evicted").saturating_sub(before);
    assert!(held < 4 << 20, "{held} bytes are held for 2 MiB");
    relay.release();
    leader.assert_copies(&[&follower]);
    leader.shut_down();
}

#[test]
fn a_hole_of_any_size_is_one_change() {
    let leader = TestLeader::with(patient);
    leader.append("db", &noise(MIB));
    let follower = leader.follower();
    leader.wait_in_sync(1);
    let len = 1_u64 << 40;
    open(&leader, "db").set_len(len).unwrap();
    leader.leader.truncate(&path("db"), len).unwrap();
    let before = leader.leader.position();
    rustix::fs::fallocate(
        open(&leader, "db"),
        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
        PAGE as u64,
        len - PAGE as u64,
    )
    .unwrap();
    leader.leader.punch_hole(&path("db"), PAGE as u64, len - PAGE as u64).unwrap();
    assert!(leader.leader.position().since(before) < 100);
    wait_until("it has all of it", || {
        leader.status(follower.id()).is_some_and(|status| status.acknowledged == Some(leader.leader.position()))
    });
    let copy = fs::metadata(follower.dir.path().join("db")).unwrap();
    assert!(copy.len() == len && copy.blocks() * 512 < 64 << 10, "{copy:?}");
    leader.shut_down();
}
