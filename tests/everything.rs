//! What is in a directory besides the content of files: folders, also empty ones, symbolic links, permissions, times of change. Its copies have all that.
#![allow(missing_docs)]

mod support;

use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use support::noise;
use support::processes::Stage;
use support::tree::wait_same_tree;

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn changed_at(path: &Path, seconds: u64) {
    let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, 123_456_789);
    File::options().write(true).open(path).unwrap().set_times(FileTimes::new().set_modified(at)).unwrap();
}

#[test]
fn a_copy_has_everything_whoever_comes_goes_and_changes_kind() {
    support::begin();
    let stage = Stage::new();
    let dir = stage.folder("data");
    let at = |name: &str| dir.join(name);
    for folder in ["empty/deep", "f/g", "stays"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    fs::write(at("f/x"), "hi").unwrap();
    mode(&at("f/x"), 0o640);
    changed_at(&at("f/x"), 1_577_934_245);
    symlink("../f/x", at("empty/link")).unwrap();
    symlink("/nonexistent", at("dangling")).unwrap();
    symlink("stays", at("to-a-folder")).unwrap();
    fs::write(at("none"), "").unwrap();
    mode(&at("none"), 0o444);
    mode(&at("stays"), 0o1777);
    let mut leader = stage.leader(&dir, &[]);
    let address = leader.address;
    let first = stage.follower("first", address);
    let second = stage.follower("second", address);
    let copies = [first.dir.clone(), second.dir.clone()];
    let both: Vec<&Path> = copies.iter().map(|copy| &**copy).collect();
    wait_same_tree(&dir, &both, "joined");

    fs::create_dir_all(at("new/sub")).unwrap();
    symlink("sub", at("new/link")).unwrap();
    fs::write(at("new/sub/y"), noise(100_000)).unwrap();
    mode(&at("new/sub/y"), 0o4755);
    fs::write(at("f/x"), "longer than it was").unwrap();
    mode(&at("f/x"), 0o600);
    fs::remove_file(at("dangling")).unwrap();
    fs::remove_dir(at("empty/deep")).unwrap();
    mode(&at("empty"), 0o711);
    wait_same_tree(&dir, &both, "changed");

    fs::rename(at("new"), at("moved")).unwrap();
    fs::remove_file(at("moved/link")).unwrap();
    symlink("other", at("moved/link")).unwrap();
    fs::remove_dir_all(at("f")).unwrap();
    fs::write(at("f"), "a file now").unwrap();
    fs::remove_file(at("none")).unwrap();
    fs::create_dir(at("none")).unwrap();
    fs::remove_file(at("to-a-folder")).unwrap();
    fs::write(at("to-a-folder"), "a file, too").unwrap();
    changed_at(&at("moved/sub/y"), 978_307_200);
    wait_same_tree(&dir, &both, "moved");

    drop(second);
    mode(&at("f"), 0o604);
    fs::create_dir(at("away")).unwrap();
    fs::remove_dir(at("none")).unwrap();
    symlink("x", at("none")).unwrap();
    fs::remove_dir_all(at("empty")).unwrap();
    fs::write(at("empty"), "not any more").unwrap();
    fs::rename(at("moved/sub/y"), at("y")).unwrap();
    fs::remove_dir_all(at("moved")).unwrap();
    fs::write(at("moved"), noise(300_000)).unwrap();
    changed_at(&at("y"), 936_835_200);
    wait_same_tree(&dir, &both[..1], "while one was away");
    let second = stage.follower("second", address);
    wait_same_tree(&dir, &both, "came back");

    leader.process.kill();
    fs::create_dir(at("while-dead")).unwrap();
    symlink("q", at("while-dead/q")).unwrap();
    fs::remove_dir(at("away")).unwrap();
    mode(&at("stays"), 0o750);
    let mut leader = stage.leader_at(&address.to_string(), &dir, &[]);
    wait_same_tree(&dir, &both, "the leader was killed");
    fs::write(at("last"), "just before the end").unwrap();
    mode(&at("last"), 0o604);
    fs::create_dir_all(at("last-folder/in")).unwrap();
    symlink("last", at("last-link")).unwrap();
    leader.process.stop();
    wait_same_tree(&dir, &both, "the leader was stopped");
    drop((first, second));
}
