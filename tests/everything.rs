//! What is in a directory besides the content of files: folders, also empty ones, symbolic links, permissions, times of change. Its copies have all that.
#![allow(missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use support::processes::Stage;
use support::{PATIENCE, noise};

/// Everything below a directory, in words.
fn described(dir: &Path) -> BTreeMap<String, String> {
    fn describe(dir: &Path, folder: &Path, all: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if [".paceline", ".lock", ".clustering_id"].iter().any(|own| name == *own) {
                continue;
            }
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let mode = meta.mode() & 0o777;
            let words = if meta.is_symlink() {
                format!("link to {}", fs::read_link(&path).unwrap_or_default().display())
            } else if meta.is_dir() {
                describe(dir, &path, all);
                // Who has a copy may always read, write and enter its folders.
                format!("folder {:o}", mode | 0o700)
            } else if meta.is_file() {
                let content = fs::read(&path).unwrap_or_default();
                format!("file {mode:o} {}.{:09} {:?}", meta.mtime(), meta.mtime_nsec(), content.len())
            } else {
                continue;
            };
            all.insert(path.strip_prefix(dir).unwrap().to_string_lossy().into_owned(), words);
        }
    }
    let mut all = BTreeMap::new();
    describe(dir, dir, &mut all);
    all
}

#[track_caller]
fn wait_same(original: &Path, copies: &[&Path], when: &str) {
    for copy in copies {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let sides = (described(original), described(copy));
            let names: BTreeSet<_> = sides.0.keys().chain(sides.1.keys()).collect();
            let differ = |name: &&&String| sides.0.get(**name) != sides.1.get(**name);
            let told = |name: &String| format!("{name}: {:?}, in the copy {:?}", sides.0.get(name), sides.1.get(name));
            let differing: Vec<_> = names.iter().filter(differ).map(|name| told(name)).collect();
            if differing.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "{when}, {}: {differing:#?}", copy.display());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

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
    wait_same(&dir, &both, "joined");

    fs::create_dir_all(at("new/sub")).unwrap();
    symlink("sub", at("new/link")).unwrap();
    fs::write(at("new/sub/y"), noise(100_000)).unwrap();
    mode(&at("new/sub/y"), 0o4755);
    fs::write(at("f/x"), "longer than it was").unwrap();
    mode(&at("f/x"), 0o600);
    fs::remove_file(at("dangling")).unwrap();
    fs::remove_dir(at("empty/deep")).unwrap();
    mode(&at("empty"), 0o711);
    wait_same(&dir, &both, "changed");

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
    wait_same(&dir, &both, "moved");

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
    wait_same(&dir, &both[..1], "while one was away");
    let second = stage.follower("second", address);
    wait_same(&dir, &both, "came back");

    leader.process.kill();
    fs::create_dir(at("while-dead")).unwrap();
    symlink("q", at("while-dead/q")).unwrap();
    fs::remove_dir(at("away")).unwrap();
    mode(&at("stays"), 0o750);
    let _leader = stage.leader_at(&address.to_string(), &dir, &[]);
    wait_same(&dir, &both, "the leader was killed");
    drop((first, second));
}
