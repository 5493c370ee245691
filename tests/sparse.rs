//! Sparse files: what they hold is what moves, is read, and is taken on the disk of a copy.
#![allow(missing_docs)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use paceline::LeaderConfig;
use paceline::watch::Watcher;
use rustix::fs::{SeekFrom, seek};
use support::{StopOnDrop, TestFollower, TestLeader, noise, path, wait_until};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// What a test reads is what this process reads: they go one by one.
static ALONE: Mutex<()> = Mutex::new(());

/// Bytes that this process has read from files.
fn read_so_far() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

fn allocated(file: &Path) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

/// Makes a file of so many bytes, with 4 KiB of data at each of these offsets.
fn make(file: &Path, len: u64, data: &[u64]) {
    let file = File::options().create(true).truncate(false).write(true).open(file).unwrap();
    file.set_len(len).unwrap();
    data.iter().for_each(|offset| file.write_all_at(&noise(4096), *offset).unwrap());
}

fn are_same(one: &Path, other: &Path) -> bool {
    let files = [one, other].map(|file| File::open(file).unwrap());
    let [len, other_len] = files.each_ref().map(|file| file.metadata().unwrap().len());
    let mut at = 0;
    while at < len && len == other_len {
        // What is a hole in both need not be read, which would take long.
        let data = files.each_ref().map(|file| seek(file, SeekFrom::Data(at)).unwrap_or(len));
        at = data[0].min(data[1]);
        let mut pieces = [[0; 1 << 16], [1; 1 << 16]];
        let piece = usize::try_from(len - at).unwrap().min(1 << 16);
        for (file, bytes) in files.iter().zip(&mut pieces) {
            file.read_exact_at(&mut bytes[..piece], at).unwrap();
        }
        if pieces[0][..piece] != pieces[1][..piece] {
            return false;
        }
        at += piece as u64;
    }
    len == other_len
}

/// Does something after which the follower is in sync with a copy that is right; it may move, read and take so little.
fn little_for(what: &str, leader: &TestLeader, act: impl FnOnce() -> TestFollower) -> TestFollower {
    little_with(4 * MIB, what, leader, act)
}

/// The same, but for how much may be read.
fn little_with(most: u64, what: &str, leader: &TestLeader, act: impl FnOnce() -> TestFollower) -> TestFollower {
    let read = read_so_far();
    let follower = act();
    wait_until("in sync", || {
        let status = leader.status(follower.id());
        status.is_some_and(|status| status.acknowledged >= Some(leader.leader.position()))
    });
    // That what it knows of its own position is right, too, once it has heard of the leader's.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    wait_until(&format!("{what}: no lag"), || {
        let status = follower.follower.status();
        status.leader_clock_us.is_some_and(|clock| u128::from(clock) > now) && status.lag_bytes == Some(0)
    });
    let read = read_so_far() - read;
    let (sent, copy) = (leader.status(follower.id()).unwrap().sent_bytes, follower.dir.path().join("sparse"));
    assert!(sent < 64 << 10, "{what}: {sent} bytes were sent");
    assert!(read < most, "{what}: {read} bytes were read");
    assert!(allocated(&copy) < MIB / 2, "{what}: the copy takes {} bytes", allocated(&copy));
    assert!(are_same(&leader.dir.path().join("sparse"), &copy), "{what}: the copy is another");
    follower
}

fn beat(config: &mut LeaderConfig) {
    config.heartbeat_interval = Duration::from_millis(50);
}

#[test]
fn a_sparse_file_costs_what_it_holds() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let sparse = dir.path().join("sparse");
    make(&sparse, 2 * GIB, &[GIB]);
    let start = |leader: &TestLeader, dir| TestFollower::on(leader.address, dir);
    let leader = TestLeader::on(dir, beat);
    let follower = little_for("first sync", &leader, || start(&leader, tempfile::tempdir().unwrap()));
    let copy = follower.stop();
    // Where the copy has something that is not in the file any more, and where it lacks something.
    make(&copy.path().join("sparse"), 2 * GIB, &[7 * MIB, 9 * MIB]);
    make(&sparse, 2 * GIB + 5, &[100 * MIB]);
    leader.leader.replace(&path("sparse")).unwrap();
    let follower = little_for("return", &leader, || start(&leader, copy));
    let copy = follower.stop();
    let leader = leader.restart(beat, |_| ());
    let follower = little_for("another leader", &leader, || start(&leader, copy));
    let follower = little_for("append", &leader, || {
        make(&sparse, 4 * GIB + 5, &[3 * GIB, 4 * GIB - 4096]);
        leader.leader.append_from_file(&path("sparse"), 2 * GIB + 5, 2 * GIB).unwrap();
        follower
    });
    let follower = little_for("replace", &leader, || {
        fs::remove_file(&sparse).unwrap();
        make(&sparse, 3 * GIB, &[0, GIB, 3 * GIB - 5000]);
        leader.leader.replace(&path("sparse")).unwrap();
        leader.append("after", b"all that");
        follower
    });
    drop(follower);
    leader.shut_down();
}

#[test]
fn a_sparse_file_may_be_longer_than_a_follower_tells() {
    const TIB: u64 = 1 << 40;
    // What is told of it is kept by both sides, 67 MB each, and read twice.
    const KEPT: u64 = 300 * MIB;
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    make(&dir.path().join("sparse"), 4 * TIB, &[TIB, 3 * TIB]);
    let leader = TestLeader::on(dir, beat);
    let follower = little_with(KEPT, "first sync", &leader, || leader.follower());
    let copy = follower.stop();
    little_with(KEPT, "return", &leader, || TestFollower::on(leader.address, copy));
    leader.shut_down();
}

#[test]
fn a_follower_of_1_0_0_gets_zeros() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let sparse = dir.path().join("sparse");
    make(&sparse, 9 * MIB, &[MIB]);
    let leader = TestLeader::on(dir, |_| ());
    let follower = TestFollower::v1(leader.address);
    leader.assert_copies(&[&follower]);
    make(&sparse, 20 * MIB, &[18 * MIB]);
    leader.leader.append_from_file(&path("sparse"), 9 * MIB, 11 * MIB).unwrap();
    leader.assert_copies(&[&follower]);
    leader.leader.replace(&path("sparse")).unwrap();
    leader.assert_copies(&[&follower]);
    leader.shut_down();
}

#[test]
fn a_copy_is_right_at_rest_of_a_file_whose_holes_were_written_to_while_it_was_sent() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let sparse = dir.path().join("sparse");
    make(&sparse, 64 * MIB, &[MIB]);
    let leader = TestLeader::on(dir, |_| ());
    let watcher = Watcher::start(leader.leader.clone(), leader.dir.path(), None).unwrap();
    let mut followers = vec![leader.follower()];
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ended = StopOnDrop(&ends);
        scope.spawn(|| {
            let (file, mut random) = (File::options().write(true).open(&sparse).unwrap(), fastrand::Rng::with_seed(1));
            while !ends.load(Ordering::Relaxed) {
                let announced = leader.leader.position();
                for _ in 0..10 {
                    file.write_all_at(&[random.u8(1..); 512], random.u64(..64 * MIB - 512)).unwrap();
                }
                let is_announced = || leader.leader.position() > announced && watcher.unproven_for().is_none();
                wait_until("all of it is announced", || ends.load(Ordering::Relaxed) || is_announced());
            }
        });
        for _ in 0..3 {
            followers.push(leader.follower());
            leader.wait_in_sync(followers.len());
        }
    });
    for follower in &followers {
        wait_until("the copy is right", || are_same(&sparse, &follower.dir.path().join("sparse")));
    }
    drop(watcher);
    leader.shut_down();
}
