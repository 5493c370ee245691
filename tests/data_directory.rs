//! A data directory in which something cannot be looked at, or that is lost itself: what nobody can see is not gone, and one thing
//! in the way stops nothing else.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

mod support;

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::Signal;
use support::inject::Injection;
use support::processes::{
    FollowerProcess, LeaderProcess, Process, Stage, wait_same, wait_same_within, without_privileges,
};
use support::volume::Volume;
use support::{PATIENCE, TestLeader, assert_exact, noise, path, wait_until};

/// Files below `folder`, each with content of its own.
fn fill(folder: &Path, count: usize) {
    fs::create_dir_all(folder).unwrap();
    for number in 0..count {
        fs::write(folder.join(format!("{number}")), format!("content of {number}")).unwrap();
    }
}

/// A leader on a folder that was made so, and a follower that has all that is in it.
fn leader_and_copy(stage: &Stage, make: impl FnOnce(&Path)) -> (PathBuf, LeaderProcess, FollowerProcess) {
    let data = stage.folder("data");
    make(&data);
    let leader = stage.leader(&data, &[]);
    let follower = stage.follower("copy", leader.address);
    wait_same(&data, &follower.dir);
    (data, leader, follower)
}

fn rename_away_and_back(folder: &Path) {
    let away = folder.with_extension("away");
    fs::rename(folder, &away).unwrap();
    fs::rename(away, folder).unwrap();
}

#[test]
fn a_folder_that_cannot_be_listed_is_not_deleted() {
    let stage = Stage::new();
    let data = stage.folder("data");
    fill(&data.join("folder"), 50);
    let armed = stage.path("armed");
    let failing = Injection::new(&stage, "list", &["getdents64"], Errno::NFILE).about("folder").while_there(&armed);
    let mut leader = failing.leader(&stage, &data, &[]);
    let mut follower = stage.follower("copy", leader.address);
    wait_same(&data, &follower.dir);

    fs::write(&armed, "").unwrap();
    rename_away_and_back(&data.join("folder"));
    wait_until("listing failed", || failing.failed() > 0);
    fs::write(data.join("after"), "after").unwrap();
    wait_until("the next change came", || follower.dir.join("after").exists());
    assert_eq!(fs::read_dir(follower.dir.join("folder")).unwrap().count(), 50, "files were deleted");

    fs::remove_file(armed).unwrap();
    fs::write(data.join("folder/new"), "new").unwrap();
    wait_same(&data, &follower.dir);
    leader.end(std::slice::from_mut(&mut follower));
}

/// Looks all the time whether files that are never deleted are in the copy, once they were.
struct NothingVanishes {
    stop: Arc<AtomicBool>,
    looking: Option<JoinHandle<Vec<String>>>,
}

impl NothingVanishes {
    fn from(copy: &Path, names: Vec<String>) -> Self {
        let (stop, copy) = (Arc::new(AtomicBool::new(false)), copy.to_owned());
        let stopped = stop.clone();
        let looking = thread::spawn(move || {
            let mut vanished = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                // It may have its other name, and change it while we look.
                let is_there = |name: &String| {
                    let other = name.replacen("/", ".away/", 1);
                    (0..5).any(|_| copy.join(name).exists() || copy.join(&other).exists())
                };
                vanished.extend(names.iter().filter(|name| !is_there(name)).cloned());
                thread::park_timeout(Duration::from_millis(1));
            }
            vanished
        });
        Self { stop, looking: Some(looking) }
    }

    #[track_caller]
    fn end(mut self, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let vanished = self.looking.take().unwrap().join().unwrap();
        assert!(vanished.is_empty(), "{what}: missing for a time: {:?}", &vanished[..vanished.len().min(5)]);
    }
}

/// Which calls fail, at whom.
#[derive(Clone, Copy, Debug)]
struct Case {
    at_leader: bool,
    calls: &'static [&'static str],
    errno: Errno,
    first: u64,
    times: u64,
}

/// A second follower joins, files are appended to and a folder is looked at anew, while the calls fail: the copies come to equal
/// the directory, and nothing is ever missing in the one that had all.
fn survives(case: Case) {
    let what = format!("{case:?}");
    let stage = Stage::new();
    let data = stage.folder("data");
    fill(&data.join("folder/deep"), 8);
    fill(&data.join("kept"), 8);
    fs::write(data.join("large"), noise(600_000)).unwrap();
    let armed = stage.path("armed");
    let injection = Injection::new(&stage, "calls", case.calls, case.errno).at(case.first, case.times);
    let injection = injection.about(if case.at_leader { "/data/" } else { "/copy/" }).while_there(&armed);
    let mut leader = if case.at_leader { injection.leader(&stage, &data, &[]) } else { stage.leader(&data, &[]) };
    let copy = stage.path("copy");
    let mut follower = match case.at_leader {
        true => stage.follower("copy", leader.address).process,
        false => injection.follower(&stage, "copy", leader.address),
    };
    if !case.at_leader {
        // Its own joining may fail; its start may not, or it ends and says why.
        wait_until("it has started", || follower.log().contains("follower "));
        fs::write(&armed, "").unwrap();
    }
    // A follower whose disk is full four times in a row, and stays as full, tries again after up to 5, 10, 20 and 40 s.
    wait_same_within(PATIENCE * 2, &data, &copy);
    let mut names: Vec<_> = (0..8).map(|number| format!("kept/{number}")).collect();
    // Whoever comes back while a folder is away does not get what is in it.
    names.extend((0..8).filter(|_| case.at_leader).map(|number| format!("folder/deep/{number}")));
    let watch = NothingVanishes::from(&copy, names);

    fs::write(&armed, "").unwrap();
    let mut second = stage.follower("second", leader.address);
    for round in 0..8 {
        let bytes = noise(if round % 2 == 0 { 10 } else { 300_000 });
        for name in ["large", "kept/0"] {
            File::options().append(true).open(data.join(name)).unwrap().write_all(&bytes).unwrap();
        }
        fs::write(data.join(format!("kept/new{round}")), "new").unwrap();
        thread::park_timeout(Duration::from_millis(20));
    }
    wait_same(&data, &copy);
    wait_same(&data, &second.dir);
    for _ in 0..4 {
        rename_away_and_back(&data.join("folder"));
        File::options().append(true).open(data.join("folder/deep/1")).unwrap().write_all(b"more").unwrap();
        thread::park_timeout(Duration::from_millis(20));
    }
    wait_same(&data, &copy);
    wait_same(&data, &second.dir);
    watch.end(&what);
    if case.first == 1 {
        assert!(injection.failed() > 0, "{what}: nothing failed, of {} calls", injection.counted());
    }
    leader.process.stop();
    follower.stop();
    second.process.stop();
    for copy in [&copy, &second.dir] {
        assert_exact(&data, copy);
    }
}

fn all_survive(cases: impl Iterator<Item = Case> + Send) {
    let cases = Mutex::new(cases);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let Some(case) = cases.lock().next() else { return };
                    survives(case);
                }
            });
        }
    });
}

#[test]
fn whatever_look_fails_at_the_leader_nothing_is_taken_for_gone() {
    let kinds: [(&[&str], Errno); 4] = [
        (&["openat", "openat2"], Errno::MFILE),
        (&["getdents64"], Errno::IO),
        (&["newfstatat", "statx"], Errno::STALE),
        (&["openat", "openat2", "getdents64", "statx", "newfstatat", "pread64", "read"], Errno::NOMEM),
    ];
    // Each call by itself, and several in a row: some fail once more when they are tried again.
    let runs = || (1..=12).map(|first| (first, 1)).chain([(4, 3), (9, 6)]);
    let cases = kinds.into_iter().flat_map(|(calls, errno)| {
        runs().map(move |(first, times)| Case { at_leader: true, calls, errno, first, times })
    });
    all_survive(cases);
}

#[test]
fn whatever_call_fails_at_a_follower_its_copy_comes_to_be_whole_and_keeps_what_it_has() {
    let kinds: [(&[&str], Errno); 4] = [
        (&["openat", "openat2"], Errno::MFILE),
        (&["fdatasync", "fsync", "syncfs"], Errno::IO),
        (&["write", "pwrite64", "writev"], Errno::NOSPC),
        (&["getdents64", "newfstatat", "renameat", "renameat2", "unlinkat"], Errno::IO),
    ];
    let runs = || (1..=12).map(|first| (first, 1)).chain([(6, 4)]);
    let cases = kinds.into_iter().flat_map(|(calls, errno)| {
        runs().map(move |(first, times)| Case { at_leader: false, calls, errno, first, times })
    });
    all_survive(cases);
}

/// Makes it another user's, whom nobody else may read, where we are root; ours and unreadable otherwise.
fn forbid(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap();
    let _ = std::os::unix::fs::chown(path, Some(65534), Some(65534));
}

fn allow(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_may_not_be_read_is_skipped_and_said_once_and_arrives_when_it_may_be() {
    let stage = Stage::new();
    let data = stage.folder("data");
    fill(&data.join("open"), 3);
    fill(&data.join("closed"), 3);
    fill(&data.join("excluded"), 3);
    fs::write(data.join("secret"), noise(400_000)).unwrap();
    forbid(&data.join("closed"));
    forbid(&data.join("excluded"));
    forbid(&data.join("secret"));
    let mut leader = stage.leader_under(&without_privileges(), &data, &["--exclude", "excluded"]);
    let follower = stage.follower("copy", leader.address);
    leader.wait_joined(1);
    wait_until("what can be read", || follower.dir.join("open/2").exists());
    // Later as at the start.
    fill(&data.join("open/later"), 3);
    forbid(&data.join("open/later"));
    fs::write(data.join("open/secret"), noise(400_000)).unwrap();
    forbid(&data.join("open/secret"));
    File::options().append(true).open(data.join("open/1")).unwrap().write_all(b"more").unwrap();
    let second = stage.follower("second", leader.address);
    leader.wait_joined(2);
    let is_equal = |copy: &Path| fs::read(copy.join("open/1")).ok() == fs::read(data.join("open/1")).ok();
    wait_until("the rest goes on", || is_equal(&follower.dir) && is_equal(&second.dir));
    // Of a folder that may not be listed it is known that it is there.
    assert!(!second.dir.join("closed/0").exists() && !second.dir.join("secret").exists());

    let said = |log: &str, name: &str| log.matches(&format!("data/{name} is not replicated")).count();
    wait_until("each is said", || {
        let log = leader.process.log();
        ["closed", "secret"].iter().all(|name| said(&log, name) > 0)
    });
    for name in ["closed", "secret", "open/later", "open/secret"] {
        allow(&data.join(name));
    }
    fs::remove_dir_all(data.join("excluded")).unwrap();
    wait_same(&data, &follower.dir);
    wait_same(&data, &second.dir);
    let log = leader.process.log();
    for name in ["closed", "secret"] {
        assert_eq!(said(&log, name), 1, "{name}");
    }
    assert!(!log.contains("excluded"), "an excluded folder was looked at");
    assert_eq!(leader.evictions(), [""; 0]);
    leader.end(&mut [follower, second]);
}

#[test]
fn a_follower_with_a_folder_that_it_may_not_list_comes_back() {
    let stage = Stage::new();
    let (data, mut leader, mut follower) = leader_and_copy(&stage, |data| fill(&data.join("folder"), 3));
    follower.process.stop();
    let closed = follower.dir.join("closed");
    fill(&closed, 1);
    forbid(&closed);
    fs::write(data.join("folder/new"), "new").unwrap();
    let (program, address) = (env!("CARGO_BIN_EXE_paceline"), leader.address.to_string());
    let follow = [program, "follow", &address, "--data-dir", follower.dir.to_str().unwrap()].map(OsString::from);
    let command = [without_privileges(), follow.to_vec()].concat();
    let mut again = stage.start("again", &command[0], &command[1..]);
    wait_until("the next file comes", || follower.dir.join("folder/new").exists());
    again.stop();
    allow(&closed);
    assert_eq!(fs::read_dir(&closed).unwrap().count(), 1);
    leader.process.stop();
}

#[test]
fn a_follower_that_may_not_write_a_file_says_which_at_both_ends_and_waits_until_it_may() {
    let stage = Stage::new();
    let data = stage.folder("data");
    fill(&data.join("folder"), 3);
    let mut leader = stage.leader(&data, &[]);
    let mut follower = stage.follower("copy", leader.address);
    wait_same(&data, &follower.dir);
    follower.process.stop();
    let closed = follower.dir.join("folder/1");
    forbid(&closed);
    File::options().append(true).open(data.join("folder/1")).unwrap().write_all(b"more").unwrap();
    let (program, address) = (env!("CARGO_BIN_EXE_paceline"), leader.address.to_string());
    let follow = [program, "follow", &address, "--data-dir", follower.dir.to_str().unwrap()].map(OsString::from);
    let command = [without_privileges(), follow.to_vec()].concat();
    let before = leader.process.log().len();
    let mut again = stage.start("again", &command[0], &command[1..]);
    let says = |log: &str| log.contains("folder/1") && log.contains("Permission denied");
    wait_until("the follower says so", || says(&again.log()));
    wait_until("the leader says so", || says(&leader.process.log()[before..]));
    assert!(!leader.process.log()[before..].contains("follows the stream"));
    std::os::unix::fs::chown(&closed, Some(rustix::process::geteuid().as_raw()), None).unwrap();
    allow(&closed);
    wait_same(&data, &follower.dir);
    assert!(again.log().matches("disconnected from").count() < 20, "it spins: {}", again.log());
    again.stop();
    leader.process.stop();
}

#[test]
fn a_file_that_may_not_be_read_any_more_when_a_follower_gets_there_is_said_to_keep_that_out_of_sync() {
    let stage = Stage::new();
    let data = stage.folder("data");
    fill(&data.join("folder"), 3);
    let mut leader = stage.leader_under(&without_privileges(), &data, &[]);
    let (mut follower, mut second) = (stage.follower("copy", leader.address), stage.follower("second", leader.address));
    wait_same(&data, &follower.dir);
    leader.wait_joined(2);
    follower.process.signal(Signal::STOP);
    // More than sockets hold.
    fs::write(data.join("large"), noise(24 << 20)).unwrap();
    fs::write(data.join("secret"), noise(400_000)).unwrap();
    fs::write(data.join("folder/after"), "x").unwrap();
    // Whoever goes on gets all of it.
    wait_same(&data, &second.dir);
    forbid(&data.join("secret"));
    follower.process.signal(Signal::CONT);
    wait_until("it is said", || leader.process.log().contains("is not in sync until secret can be read"));
    allow(&data.join("secret"));
    wait_same(&data, &follower.dir);
    leader.process.stop();
    follower.process.stop();
    second.process.stop();
}

#[test]
fn what_cannot_be_kept_nor_dropped_stops_no_follower_and_is_said_once() {
    let stage = Stage::new();
    let (data, copy, outside) = (stage.folder("data"), stage.folder("copy"), stage.folder("outside"));
    fill(&data.join("folder"), 3);
    fill(&copy.join("gone"), 3);
    fill(&outside.join("2020-01-01T000000Z"), 2);
    fs::create_dir(copy.join(".paceline")).unwrap();
    symlink(&outside, copy.join(".paceline/kept")).unwrap();
    let mut leader = stage.leader(&data, &[]);
    let (program, address) = (env!("CARGO_BIN_EXE_paceline"), leader.address.to_string());
    let mut follower =
        stage.start("copy", program, ["follow", &address, "--data-dir", copy.to_str().unwrap(), "--adopt"]);
    wait_same(&data, &copy);
    wait_until("it says so", || follower.log().contains("3 files, or parts of files, could not be kept"));
    assert_eq!(follower.log().matches("not kept: ").count(), 1, "{}", follower.log());
    assert_eq!(fs::read_dir(outside.join("2020-01-01T000000Z")).unwrap().count(), 2);
    follower.stop();
    leader.process.stop();
}

#[test]
fn who_got_late_what_could_not_be_read_is_in_sync_then_and_not_before_beside_what_may_not_be_read() {
    for protocol in ["auto", "1.0.0"] {
        let stage = Stage::new();
        let data = stage.folder("data");
        fs::write(data.join("secret"), "secret").unwrap();
        fs::write(data.join("file"), noise(400_000)).unwrap();
        forbid(&data.join("secret"));
        let (armed, copy) = (stage.path("armed"), stage.path("copy"));
        let failing = Injection::new(&stage, "open", &["openat", "openat2"], Errno::IO).about("/data/file");
        let mut leader = failing.while_there(&armed).leader_under(&without_privileges(), &stage, &data, &[]);
        fs::write(&armed, "").unwrap();
        let args = ["--data-dir", copy.to_str().unwrap(), "--protocol", protocol];
        let address = leader.address.to_string();
        let args = ["follow", &address].into_iter().chain(args);
        let mut follower = stage.start("copy", Path::new(env!("CARGO_BIN_EXE_paceline")), args);
        leader.wait_joined(1);
        let in_sync = || {
            let log = leader.process.log();
            log.lines().any(|line| line.split_once("the leader included: ").is_some_and(|(_, ids)| ids.contains(',')))
        };
        wait_until("it is said", || leader.process.log().contains("data/file is not replicated"));
        // It has acknowledged all that came after.
        fs::write(data.join("after"), "after").unwrap();
        wait_until("the next file came", || copy.join("after").exists());
        assert!(!in_sync(), "it lacks a file: {}", leader.process.log());
        fs::remove_file(armed).unwrap();
        wait_until("it is in sync", in_sync);
        assert_eq!(fs::read(copy.join("file")).unwrap().len(), 400_000);
        leader.process.stop();
        follower.stop();
    }
}

#[test]
fn a_copy_keeps_what_its_leader_may_not_read_any_more() {
    let stage = Stage::new();
    let (data, mut leader, mut follower) = leader_and_copy(&stage, |data| {
        fill(&data.join("folder"), 3);
        fs::write(data.join("file"), noise(300_000)).unwrap();
    });
    leader.process.stop();
    follower.process.stop();
    forbid(&data.join("folder"));
    forbid(&data.join("file"));
    let mut leader = stage.leader_under(&without_privileges(), &data, &[]);
    let mut follower = stage.follower("copy", leader.address);
    leader.wait_joined(1);
    fs::write(data.join("new"), "new").unwrap();
    wait_until("the next file came", || follower.dir.join("new").exists());
    assert_eq!(fs::read_dir(follower.dir.join("folder")).unwrap().count(), 3);
    assert_eq!(fs::read(follower.dir.join("file")).unwrap().len(), 300_000);
    allow(&data.join("folder"));
    allow(&data.join("file"));
    wait_same(&data, &follower.dir);
    leader.end(std::slice::from_mut(&mut follower));
}

#[test]
fn what_syncs_took_away_goes_in_time_also_where_the_directory_leads() {
    let stage = Stage::new();
    let data = stage.folder("data");
    fill(&data.join(".paceline/kept/2020-01-01T000000Z"), 3);
    fill(&data.join(".paceline/kept/2999-01-01T000000Z"), 3);
    let mut leader = stage.leader(&data, &["--keep", "1d"]);
    wait_until("the old ones go", || !data.join(".paceline/kept/2020-01-01T000000Z").exists());
    assert_eq!(fs::read_dir(data.join(".paceline/kept/2999-01-01T000000Z")).unwrap().count(), 3);
    leader.process.stop();
    let mut leader = stage.leader(&data, &["--keep-bytes", "20B"]);
    wait_until("and what is too much", || !data.join(".paceline/kept/2999-01-01T000000Z").exists());
    leader.process.stop();
}

#[test]
fn lost_and_found_at_the_top_of_a_file_system_is_nobodys_content() {
    let stage = Stage::new();
    let data = stage.folder("data");
    fill(&data.join("lost+found"), 1); // in the midst of a file system it is a folder like any other
    fs::write(data.join("file"), "1").unwrap();
    let mut leader = stage.leader(&data, &[]);
    let volume = Volume::in_memory(&stage, 16);
    volume.run(&format!("mkdir {0}/lost+found; echo found > {0}/lost+found/1", volume.mount().display()));
    let mut follower = volume.follower("", leader.address, &[]);
    let is_whole = || volume.path("file").exists() && !volume.path(".paceline/incomplete").exists();
    wait_until("the file comes, and that was all", is_whole);
    assert_eq!(fs::read_to_string(volume.path("lost+found/1")).unwrap(), "found\n");
    follower.stop();
    leader.process.stop();

    let mut leader = volume.leader("", &[]);
    let mut copy = stage.follower("copy", leader.address);
    wait_until("the file comes", || copy.dir.join("file").exists());
    assert!(!copy.dir.join("lost+found").exists());
    copy.process.stop();
    leader.process.stop();
}

#[test]
fn a_data_directory_may_be_a_symbolic_link() {
    let stage = Stage::new();
    fill(&stage.path("real/folder"), 3);
    fs::create_dir(stage.path("real copy")).unwrap();
    let (data, copy) = (stage.path("data"), stage.path("copy"));
    symlink(stage.path("real"), &data).unwrap();
    symlink("real copy", &copy).unwrap();
    let mut leader = stage.leader(&data, &[]);
    let mut follower = stage.follower("copy", leader.address);
    wait_same(&data, &copy);
    // It was resolved when they started.
    fs::remove_file(&data).unwrap();
    fs::write(stage.path("real/folder/new"), "new").unwrap();
    wait_same(&stage.path("real"), &stage.path("real copy"));
    leader.process.stop();
    follower.process.stop();
}

/// Waits until it has ended with exit code 1, and says why.
#[track_caller]
fn assert_lost(process: &mut Process) {
    let status = process.wait();
    let log = process.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.lines().last().unwrap().contains("is lost: "), "{log}");
}

#[test]
fn a_data_directory_that_is_lost_ends_the_leader_and_costs_the_copy_nothing() {
    for volume_goes in [false, true] {
        let stage = Stage::new();
        let volume = Volume::in_memory(&stage, 16);
        let data = volume.path("data");
        fill(&data.join("folder"), 20);
        let mut leader = volume.leader("data", &[]);
        let mut follower = stage.follower("copy", leader.address);
        wait_until("the copy is whole", || {
            fs::read_dir(follower.dir.join("folder")).is_ok_and(|folder| folder.count() == 20)
        });
        let (top, data) = (volume.mount(), volume.mount().join("data"));
        volume.run(&match volume_goes {
            // Mounted over.
            true => format!("mount -t tmpfs none {}", top.display()),
            // Another one has its name.
            false => format!("mv {0} {0}.old; mkdir {0}; touch {0}/file", data.display()),
        });
        assert_lost(&mut leader.process);
        assert_eq!(fs::read_dir(follower.dir.join("folder")).unwrap().count(), 20);
        follower.process.stop();
    }
}

#[test]
fn a_data_directory_that_is_removed_ends_who_works_on_it() {
    let stage = Stage::new();
    let (data, mut leader, mut follower) = leader_and_copy(&stage, |data| fill(&data.join("folder"), 3));
    fs::remove_dir_all(&follower.dir).unwrap();
    fs::create_dir(&follower.dir).unwrap();
    assert_lost(&mut follower.process);
    // It may be writing to its own folder.
    wait_until("it is removed", || fs::remove_dir_all(&data).is_ok());
    assert_lost(&mut leader.process);
}

#[test]
fn a_host_makes_no_file_where_a_lost_directory_was() {
    let leader = TestLeader::start();
    leader.append("log", b"a line\n");
    let (lost, away) = (leader.dir.path().to_owned(), tempfile::tempdir().unwrap());
    fs::rename(&lost, away.path().join("data")).unwrap();
    let refused = leader.leader.file(&path("folder/log")).err().unwrap().to_string();
    assert!(refused.contains("moved or removed"), "{refused}");
    assert!(!lost.exists());
    fs::rename(away.path().join("data"), lost).unwrap();
}

#[test]
fn a_file_system_below_that_is_unmounted_takes_no_file_along() {
    let stage = Stage::new();
    let volume = Volume::in_memory(&stage, 16);
    let top = volume.mount();
    let wal = top.join("data/wal");
    volume.run(&format!("mkdir -p {0}; mount -t tmpfs none {0}; echo 1 > {0}/1; echo 2 > {0}/2", wal.display()));
    let mut leader = volume.leader("data", &[]);
    let mut follower = stage.follower("copy", leader.address);
    wait_until("the copy is whole", || follower.dir.join("wal/2").exists());
    volume.run(&format!("umount {0}; echo after > {1}/data/after", wal.display(), top.display()));
    wait_until("it goes on", || follower.dir.join("after").exists());
    assert!(follower.dir.join("wal/1").exists() && follower.dir.join("wal/2").exists());
    wait_until("it is said", || leader.process.log().contains("wal was a file system of its own"));
    leader.process.stop();
    follower.process.stop();
}

/// A file system that is unmounted, and its mount point removed, by `unmount`: nothing of what was on it is gone. Mounted again,
/// it is as it is.
fn mount_point_goes_too(mount: &str, unmount: &str) {
    let stage = Stage::new();
    let volume = Volume::in_memory(&stage, 16);
    let at = |script: &str| volume.run(&format!("cd {}; {script}", volume.mount().display()));
    at(&format!("mkdir -p data other elsewhere; mount -t tmpfs -o size=1m none other; {mount}"));
    at("mkdir data/db/wal/deep; for n in 1 2 3; do echo $n > data/db/wal/$n; echo $n > data/db/wal/deep/$n; done");
    let data = volume.path("data");
    let mut leader = volume.leader("data", &[]);
    let mut follower = stage.follower("copy", leader.address);
    wait_same(&data, &follower.dir);
    at(&format!("{unmount}; echo after > data/after"));
    wait_until("it goes on", || follower.dir.join("after").exists());
    let has_all = |copy: &Path| {
        (1..4).all(|n| copy.join(format!("db/wal/{n}")).exists() && copy.join(format!("db/wal/deep/{n}")).exists())
    };
    wait_until("it is said", || leader.process.log().contains("data/db/wal is not replicated"));
    assert!(has_all(&follower.dir), "files were deleted");
    at("echo later > data/later");
    wait_until("it goes on", || follower.dir.join("later").exists());
    assert!(has_all(&follower.dir), "files were deleted");
    let log = leader.process.log();
    assert_eq!(log.matches("data/db/wal is not replicated").count(), 1, "it is said once");
    assert!(!log.contains("data/db/wal/"), "it is said of each file");
    // What is not there cannot be sent, and counts as missing at whoever lacks it.
    let mut second = stage.follower("second", leader.address);
    wait_until("the rest is sent", || second.dir.join("later").exists());
    assert!(has_all(&follower.dir), "files were deleted");

    at(&format!("{mount}; rm data/db/wal/2 data/db/wal/deep/3; echo more >> data/db/wal/1; echo 4 > data/db/wal/4"));
    wait_same(&data, &follower.dir);
    wait_same(&data, &second.dir);
    leader.wait_joined(2);
    leader.process.stop();
    follower.process.stop();
    second.process.stop();
}

#[test]
fn a_file_system_that_is_unmounted_and_its_mount_point_removed_takes_no_file_along() {
    let mount = "mkdir -p data/db/wal; mount --bind other data/db/wal";
    mount_point_goes_too(mount, "umount data/db/wal; rmdir data/db/wal");
    mount_point_goes_too(mount, "umount data/db/wal; rm -r data/db");
    mount_point_goes_too(mount, "umount data/db/wal; rm -r data/db; echo a file > data/db; rm data/db");
}

#[test]
fn a_folder_bound_from_the_same_file_system_that_is_unmounted_takes_no_file_along() {
    let mount = "mkdir -p data/db/wal; mount --bind elsewhere data/db/wal";
    mount_point_goes_too(mount, "umount data/db/wal");
    mount_point_goes_too(mount, "umount data/db/wal; rmdir data/db/wal");
}

#[test]
fn a_folder_with_two_names_is_replicated_under_both_and_keeps_the_watcher_from_nothing() {
    let stage = Stage::new();
    let volume = Volume::in_memory(&stage, 16);
    let at = |script: &str| volume.run(&format!("cd {}; {script}", volume.mount().display()));
    at("mkdir -p data/one/deep data/other; echo 1 > data/one/deep/1; mount --bind data/one data/other");
    let data = volume.path("data");
    let mut leader = volume.leader("data", &[]);
    let mut follower = stage.follower("copy", leader.address);
    wait_same(&data, &follower.dir);
    at("echo 2 > data/one/2; echo 3 > data/other/deep/3; echo more >> data/one/deep/1; rm -f data/3; echo 4 > data/4");
    wait_same(&data, &follower.dir);
    at("rm data/other/2 data/one/deep/3");
    wait_same(&data, &follower.dir);
    leader.process.stop();
    follower.process.stop();
}

#[test]
fn a_folder_that_is_renamed_with_a_file_system_in_it_is_renamed_and_what_is_mounted_later_is_found() {
    let stage = Stage::new();
    let volume = Volume::in_memory(&stage, 16);
    let at = |script: &str| volume.run(&format!("cd {}; {script}", volume.mount().display()));
    at("mkdir -p data/db/wal; mount -t tmpfs -o size=1m none data/db/wal; echo 1 > data/db/wal/1");
    let data = volume.path("data");
    let mut leader = volume.leader("data", &[]);
    let mut follower = stage.follower("copy", leader.address);
    wait_same(&data, &follower.dir);
    at("mv data/db data/base");
    wait_same(&data, &follower.dir);
    at("rm data/base/wal/1; echo 2 > data/base/wal/2");
    wait_same(&data, &follower.dir);
    at("mkdir data/new other; mount -t tmpfs -o size=1m none other; echo 3 > other/3; mount --bind other data/new");
    wait_same(&data, &follower.dir);
    at("rm data/new/3; echo 4 > data/new/4");
    wait_same(&data, &follower.dir);
    leader.process.stop();
    follower.process.stop();
}

#[test]
fn folders_for_which_no_watch_is_left_are_looked_at_now_and_then() {
    let stage = Stage::new();
    let data = stage.folder("data");
    fill(&data.join("watched"), 1);
    let full = Injection::new(&stage, "watches", &["inotify_add_watch"], Errno::NOSPC).about("/data/later");
    let mut leader = full.leader(&stage, &data, &[]);
    let mut follower = stage.follower("copy", leader.address);
    wait_same(&data, &follower.dir);
    fill(&data.join("later/deep"), 3);
    wait_same(&data, &follower.dir);
    assert!(leader.process.log().contains("sysctl -w fs.inotify.max_user_watches="));
    for round in 0..2 {
        File::options().append(true).open(data.join("later/deep/1")).unwrap().write_all(b"more").unwrap();
        fs::write(data.join(format!("later/{round}")), "new").unwrap();
        wait_same(&data, &follower.dir);
    }
    fs::remove_file(data.join("later/0")).unwrap();
    fs::remove_file(data.join("later/deep/1")).unwrap();
    wait_same(&data, &follower.dir);
    fs::remove_dir_all(data.join("later/deep")).unwrap();
    wait_same(&data, &follower.dir);
    leader.end(std::slice::from_mut(&mut follower));
}
