//! A data directory in which other file systems are mounted: names that change between them, files staged on each, and what
//! is durable on all of them.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use paceline::leader::CommitLevel;
use paceline::{Leader, LeaderConfig, StreamPosition};
use rustix::io::Errno;

use support::inject::Injection;
use support::processes::{Process, Stage, find};
use support::volume::Volume;
use support::{TestLeader, assert_exact, assert_same, begin, noise, path, secret, wait_until};

/// A directory to follow into, with another file system at `wal`.
fn two_in_memory(stage: &Stage) -> Volume<'_> {
    let volume = Volume::in_memory(stage, 32);
    volume.run(&format!(
        "mkdir -p {0}/data/wal && mount -t tmpfs -o size=16m none {0}/data/wal",
        volume.mount().display()
    ));
    volume
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

/// Replaces and renames between the root's file system and that of `wal`, while a follower follows; it never has to reconnect.
fn changes_between(leader: &TestLeader, copy: &Path, connections: impl Fn() -> usize) {
    for n in 0..3 {
        leader.replace("wal/state", format!("state {n}").as_bytes());
        leader.replace("state", format!("state {n}").as_bytes());
    }
    leader.append("log", &noise(3 << 20));
    leader.rename("log", "wal/old/log");
    leader.append("wal/old/log", b"more");
    leader.append("wal/2", b"2");
    leader.rename("wal/2", "deep/er/2");
    leader.append("deep/er/2", b"more");
    leader.rename("wal/state", "state");
    leader.rename("wal/old/log", "wal/log");
    let end = leader.leader.request_durable().unwrap();
    wait_until("durable", || leader.leader.followers().iter().any(|status| status.durable >= Some(end)));
    assert_eq!(connections(), 1, "it had to connect again");
    assert_exact(leader.dir.path(), copy);
    // An emptied folder is there as long as the leader's is.
    assert!(is_empty(&copy.join("wal/.paceline")) && is_empty(&copy.join("wal/old")) && copy.join("wal/old").exists());
}

/// Where a folder of the same file system is mounted at `wal`.
fn bound(stage: &Stage) -> Volume<'_> {
    let volume = Volume::in_memory(stage, 32);
    volume.run(&format!(
        "mkdir -p {0}/data/wal {0}/bound && mount --bind {0}/bound {0}/data/wal",
        volume.mount().display()
    ));
    volume
}

fn changes_are_followed_in(directory: fn(&Stage) -> Volume<'_>) {
    let (stage, leader) = (Stage::new(), TestLeader::start());
    leader.append("wal/1", b"1");
    let volume = directory(&stage);
    let mut follower = volume.follower("data", leader.address, &[]);
    leader.wait_in_sync(1);
    changes_between(&leader, &volume.path("data"), || follower.log().matches("connected to").count());
    follower.stop();
    leader.shut_down();
}

#[test]
fn files_are_replaced_and_renamed_across_the_file_systems_of_a_copy() {
    changes_are_followed_in(two_in_memory);
}

#[test]
fn a_folder_that_is_bound_from_the_same_file_system_is_another_place_to_rename() {
    changes_are_followed_in(bound);
}

#[test]
fn a_leader_of_1_0_0_fills_and_replaces_files_on_another_file_system() {
    let (stage, leader) = (Stage::new(), TestLeader::start());
    leader.append("wal/1", &noise(1 << 20));
    leader.append("1", b"1");
    let volume = two_in_memory(&stage);
    fs::write(volume.path("data/wal/1"), b"another").unwrap();
    let mut follower = volume.follower("data", leader.address, &["--protocol", "1.0.0", "--adopt"]);
    leader.wait_in_sync(1);
    leader.replace("wal/1", b"replaced");
    leader.rename("1", "wal/2");
    leader.wait_in_sync(1);
    assert_eq!(follower.log().matches("connected to").count(), 1, "it had to connect again");
    assert_same(leader.dir.path(), &volume.path("data"));
    follower.stop();
    leader.shut_down();
}

#[test]
fn what_is_mounted_while_a_follower_follows_is_compared_and_filled() {
    let (stage, leader) = (Stage::new(), TestLeader::start());
    leader.append("wal/1", b"1");
    leader.append("2", b"2");
    let volume = Volume::in_memory(&stage, 32);
    let mut follower = volume.follower("data", leader.address, &[]);
    leader.wait_in_sync(1);
    volume.run(&format!("mount -t tmpfs -o size=16m none {}/data/wal", volume.mount().display()));
    leader.append("wal/1", b" and more");
    leader.leader.request_durable().unwrap();
    wait_until("it says so", || follower.log().contains("a file system was mounted or unmounted below it"));
    leader.wait_in_sync(1);
    assert_exact(leader.dir.path(), &volume.path("data"));
    follower.stop();
    leader.shut_down();
}

/// What a sync takes away is kept on each file system, and comes back.
fn kept(options: &[&str], names: &[&str]) {
    let (stage, leader) = (Stage::new(), TestLeader::start());
    leader.append("log", b"0123");
    leader.append("wal/1", b"1");
    let volume = two_in_memory(&stage);
    leader.append("long", &noise(1 << 19));
    for (name, content) in [("log", "0123 and a tail"), ("gone", "gone"), ("wal/old", "precious")] {
        fs::write(volume.path("data").join(name), content).unwrap();
    }
    fs::write(volume.path("data/long"), [noise(1 << 19), b"the tail".to_vec()].concat()).unwrap();
    let mut follower = volume.follower("data", leader.address, &[options, &["--adopt"]].concat());
    leader.wait_in_sync(1);
    assert_same(leader.dir.path(), &volume.path("data"));
    // The stream's own deletions and replacements are not kept.
    leader.append("brief", b"x");
    leader.replace("wal/1", b"2");
    leader.delete("brief");
    leader.wait_in_sync(1);
    let ours = format!("{} kept {}/data", env!("CARGO_BIN_EXE_paceline"), volume.mount().display());
    let table = volume.run(&ours);
    let time = table.lines().nth(1).and_then(|line| line.split_whitespace().next()).unwrap_or_default();
    assert!(table.lines().count() == 2 && table.contains("deleted"), "{table}");
    let files = volume.run(&format!("{ours} --files {time}"));
    assert!(names.iter().all(|name| files.contains(name)) && files.lines().count() == names.len(), "{files}");
    let busy = volume.run(&format!("{ours} --restore {time} 2>&1 || true"));
    assert!(busy.contains("is in use by another process"), "{busy}");
    follower.stop();
    let restored = volume.run(&format!("{ours} wal/old --restore {time} 2>&1"));
    assert!(restored.contains("restored 1 file of"), "{restored}");
    assert_eq!(fs::read_to_string(volume.path("data/wal/old")).unwrap(), "precious");
    leader.shut_down();
}

#[test]
fn what_a_sync_takes_away_is_kept_and_comes_back() {
    kept(&[], &["gone", "log", "long.from-524288", "wal/old"]);
}

#[test]
fn what_a_sync_in_1_0_0_takes_away_is_kept_and_comes_back() {
    kept(&["--protocol", "1.0.0"], &["gone", "log", "long", "wal/old"]);
}

#[test]
fn a_full_disk_costs_what_is_kept_on_it_and_nothing_else() {
    let (stage, leader) = (Stage::new(), TestLeader::start());
    leader.append("wal/1", &noise(9 << 20));
    let volume = two_in_memory(&stage);
    // The older one is on the other disk.
    volume.run(&format!(
        "cd {}/data; for of in '.paceline/kept/2 1024' 'wal/.paceline/kept/1 9000000'; do set -- $of; \
         at=${{1%/*}}/$(date -u -d \"-${{1##*/}} day\" +%Y-%m-%dT%H%M%SZ); mkdir -p $at; head -c $2 /dev/zero > $at/old; done",
        volume.mount().display()
    ));
    let mut follower = volume.follower("data", leader.address, &["--adopt"]);
    leader.wait_in_sync(1);
    let kept = volume.run(&format!("find {}/data -name old", volume.mount().display()));
    assert!(kept.lines().count() == 1 && kept.contains("/data/.paceline/kept/"), "{kept}");
    follower.stop();
    leader.shut_down();
}

/// So many that the file systems are synced as a whole.
const FILES: usize = 20;

fn content(number: usize) -> Vec<u8> {
    format!("{number} ").repeat(2000).into_bytes()
}

fn assert_all_there(folder: &Path) {
    for number in 0..FILES {
        let found = fs::read(folder.join(number.to_string())).unwrap_or_default();
        assert!(found == content(number), "{number} has {} bytes", found.len());
    }
}

#[test]
#[ignore = "needs root and loop devices"]
fn what_is_durable_at_a_follower_is_so_on_the_file_systems_below_its_directory() {
    let (stage, leader) = (Stage::new(), TestLeader::start());
    let volume = Volume::ext4(&stage, 90);
    let mut follower = volume.follower("..", leader.address, &[]);
    leader.wait_in_sync(1);
    // What is synced first is all that was here before.
    leader.append("volume/before", b"x");
    let end = leader.leader.request_durable().unwrap();
    wait_until("durable", || leader.leader.followers().iter().any(|status| status.durable >= Some(end)));
    for number in 0..FILES {
        leader.append(&format!("volume/{number}"), &content(number));
    }
    let end = leader.leader.request_durable().unwrap();
    wait_until("durable", || leader.leader.followers().iter().any(|status| status.durable >= Some(end)));
    volume.lose_power(&mut follower);
    assert_all_there(&volume.path(""));
    leader.shut_down();
}

const HOST_DIR: &str = "PACELINE_TEST_HOST_DIR";

/// Leads a directory, and says when its files are durable. Does nothing unless it is started as such.
#[test]
fn host() {
    let Some(dir) = std::env::var_os(HOST_DIR) else { return };
    begin();
    let leader = Leader::open(LeaderConfig::new(dir, secret())).unwrap();
    let commit = |position: StreamPosition| {
        let outcome = leader.commit_at(position, CommitLevel::ALL_DURABLE, Duration::from_secs(60));
        assert!(outcome.is_committed(), "{outcome}");
    };
    commit(leader.file(&path("volume/before")).unwrap().append(b"x").unwrap());
    let mut position = StreamPosition::default();
    for number in 0..FILES {
        position = leader.file(&path(&format!("volume/{number}"))).unwrap().append(&content(number)).unwrap();
    }
    commit(position);
    println!("durable");
    std::thread::sleep(Duration::from_secs(120));
}

/// Changes files for as long as it runs, and says whether that is durable. Does nothing unless it is started as such.
#[test]
fn host_that_goes_on() {
    let Some(dir) = std::env::var_os(HOST_DIR) else { return };
    begin();
    let leader = Leader::open(LeaderConfig::new(dir, secret())).unwrap();
    loop {
        leader.file(&path("file")).unwrap().append(b"x").unwrap();
        // What left a folder is left to the file systems' sync.
        let position = leader.delete(&path("file")).unwrap();
        let outcome = leader.commit_at(position, CommitLevel::ALL_DURABLE, Duration::from_secs(1));
        println!("{}", if outcome.is_committed() { "durable" } else { "not durable" });
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_leader_that_cannot_open_what_is_mounted_confirms_nothing_as_durable_until_it_can() {
    let stage = Stage::new();
    let volume = Volume::in_memory(&stage, 16);
    volume.run(&format!("mkdir -p {}/data/later", volume.mount().display()));
    let (armed, host) = (stage.path("armed"), std::env::current_exe().unwrap());
    let failing = Injection::new(&stage, "mounts", &["open", "openat", "openat2"], Errno::MFILE).about("/data/later");
    let set = format!("{HOST_DIR}={}/data", volume.mount().display());
    let program = ["env", &set, host.to_str().unwrap(), "host_that_goes_on", "--exact", "--nocapture"];
    let args: Vec<_> = volume.enter().into_iter().chain(program.map(str::to_owned)).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let failing = failing.while_there(&armed);
    let host = failing.start(&stage, "host", &find("nsenter", "util-linux"), &args);
    let said = |host: &Process, what: &str| host.log().lines().filter(|line| *line == what).count();
    wait_until("it is durable", || said(&host, "durable") > 1);
    fs::write(&armed, "").unwrap();
    volume.run(&format!("mount -t tmpfs none {}/data/later", volume.mount().display()));
    wait_until("it is not", || said(&host, "not durable") > 1);
    assert!(failing.failed() > 0);
    fs::remove_file(&armed).unwrap();
    let before = said(&host, "durable");
    wait_until("it is again", || said(&host, "durable") > before);
}

#[test]
#[ignore = "needs root and loop devices"]
fn what_is_committed_as_durable_is_so_on_the_file_systems_below_the_leaders_directory() {
    let stage = Stage::new();
    let volume = Volume::ext4(&stage, 90);
    let (set, host) = (format!("{HOST_DIR}={}", volume.above().display()), std::env::current_exe().unwrap());
    let mut host = volume.start("host", &["env", &set, host.to_str().unwrap(), "host", "--exact", "--nocapture"]);
    wait_until("durable", || {
        assert!(!host.has_ended(), "{}", host.log());
        host.log().contains("durable")
    });
    volume.lose_power(&mut host);
    assert_all_there(&volume.path(""));
}
