//! A follower joins a directory of very many files while others append. In a binary of its own, because it looks at the process's
//! memory.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use paceline::leader::FollowerState;
use support::{StopOnDrop, TestFollower, TestLeader};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// The most memory that was resident at once so far.
fn resident_max() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// A file system in memory with room for both copies. Making and removing so many files takes a busy disk far longer than all
/// the rest: there it is a fifth of them.
fn in_memory() -> Option<&'static str> {
    const MEMORY: &str = "/dev/shm";
    let free = rustix::fs::statvfs(MEMORY).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    (free > 4096 * MIB).then_some(MEMORY)
}

fn temporary() -> TempDir {
    in_memory().map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap()
}

#[test]
fn a_hundred_thousand_files_are_joined_under_appends() {
    let (folders, files_a_folder) = if in_memory().is_some() { (100, 1000) } else { (100, 200) };
    let dir = temporary();
    for folder in 0..folders {
        let folder = dir.path().join(format!("folder{folder}"));
        fs::create_dir(&folder).unwrap();
        for file in 0..files_a_folder {
            fs::write(folder.join(format!("file{file}")), [u8::try_from(file % 256).unwrap(); 10]).unwrap();
        }
    }
    let leader = TestLeader::on(dir, |config| config.queue_bytes = 8 * MIB);
    let before = resident_max();
    let stop = AtomicBool::new(false);
    let follower = std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            let (leader, stop) = (&leader, &stop);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                while !stop.load(Ordering::Relaxed) {
                    let name = format!(
                        "folder{}/file{}",
                        random.u64(..folders / 2) * 2 + thread,
                        random.u64(..files_a_folder)
                    );
                    leader.append(&name, &[7; 1000]);
                    // A rate that any follower can apply.
                    std::thread::park_timeout(Duration::from_millis(1));
                }
            });
        }
        let _stop = StopOnDrop(&stop);
        let follower = TestFollower::on(leader.address, temporary());
        leader.wait_state(follower.follower.id(), FollowerState::InSync);
        follower
    });
    // Views, lists and indices of both sides, some hundred bytes a file; and one queue.
    let grown = resident_max() - before;
    assert!(grown < 100 * MIB, "{} MiB more than before", grown / MIB);
    println!("{} MiB more than before", grown / MIB);
    leader.assert_copies(&[&follower]);
    leader.shut_down();
}
