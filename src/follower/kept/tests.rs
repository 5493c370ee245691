use std::fs;

use super::*;
use crate::datadir::DirLock;
use crate::follower::flush::tests::opened as opened_and_noted;

const ALL: Bounds = Bounds { age: Duration::from_secs(60), bytes: 1 << 20 };

fn path(name: &str) -> RelPath {
    RelPath::new(name).unwrap()
}

fn opened() -> (tempfile::TempDir, Dir) {
    let root = tempfile::tempdir().unwrap();
    for name in ["a/b", "c", "d"] {
        fs::create_dir_all(root.path().join(name).parent().unwrap()).unwrap();
        fs::write(root.path().join(name), format!("of {name}")).unwrap();
    }
    let dir = Dir::open(root.path()).unwrap();
    (root, dir)
}

#[test]
fn what_a_sync_takes_away_is_kept_and_comes_back_but_over_nothing_that_is_there() {
    let (root, dir) = opened();
    let mut keeper = Keeper::new(&dir, ALL);
    assert!(keeper.take(&path("a/b")) && !keeper.take(&path("gone")));
    keeper.link(&path("c"));
    keeper.range(&path("d"), 1, 3);
    fs::write(root.path().join("new"), "new").unwrap();
    fs::rename(root.path().join("new"), root.path().join("c")).unwrap();
    // What this sync itself put there is not what was there before it.
    keeper.link(&path("c"));
    assert!(!root.path().join("a/b").exists());
    let kept = Kept::of(root.path()).unwrap();
    let times = kept.times().unwrap();
    let (time, found) = times.iter().next().unwrap();
    let names: Vec<_> = found.files.iter().map(|(name, len)| (name.as_str(), *len)).collect();
    assert_eq!(names, [("a/b", 6), ("c", 4), ("d.from-1", 3)]);
    let said = kept.restore(time, None, false).unwrap_err().to_string();
    assert!(said.contains("--overwrite") && !root.path().join("a/b").exists(), "{said}");
    assert!(kept.restore(time, Some("../c"), true).is_err() && kept.restore("x", None, true).is_err());
    assert_eq!(kept.restore(time, Some("a/b"), false).unwrap(), 1);
    assert_eq!(kept.restore(time, None, true).unwrap(), 2);
    for (name, content) in [("a/b", "of a/b"), ("c", "of c"), ("d.from-1", "f d")] {
        assert_eq!(fs::read_to_string(root.path().join(name)).unwrap(), content);
    }
    assert!(kept.times().unwrap().is_empty());
    let _held = DirLock::take(root.path()).unwrap();
    assert!(matches!(kept.restore(time, None, true), Err(Error::InUse(_))));
}

#[test]
fn the_oldest_goes_first_and_nothing_leads_outside() {
    let (root, dir) = opened();
    let kept = root.path().join(".paceline/kept");
    for time in ["2020-01-01T000000Z", "2021-01-01T000000Z"] {
        fs::create_dir_all(kept.join(time)).unwrap();
        fs::write(kept.join(time).join("x"), [0; 100]).unwrap();
    }
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "intact").unwrap();
    std::os::unix::fs::symlink(outside.path(), kept.join("2020-01-01T000000Z/link")).unwrap();
    let mut keeper = Keeper::new(&dir, Bounds { bytes: 110, ..ALL });
    assert!(keeper.take(&path("c")));
    let times = dir.kept_times().unwrap();
    assert_eq!((times.len(), times.values().map(|time| time.bytes).sum::<u64>()), (2, 104));
    assert!(!Keeper::new(&dir, Bounds { bytes: 3, ..ALL }).take(&path("d")));
    dir.expire_kept(ALL).unwrap();
    assert_eq!(dir.kept_times().unwrap().len(), 1);
    assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "intact");
}

#[test]
fn a_part_is_durable_before_the_file_changes() {
    let (root, noted, dir) = opened_and_noted();
    fs::write(root.path().join("d"), "0123").unwrap();
    let mut keeper = Keeper::new(&dir, ALL);
    keeper.range(&path("d"), 1, 3);
    assert_eq!(noted.calls.lock().as_str(), "fdddd", "the part, and the folders that it is in");
    assert_eq!(keeper.count(), 1);
}

#[test]
fn what_cannot_be_kept_under_its_name_is_counted_and_parts_are_in_no_files_way() {
    let (root, dir) = opened();
    let long = "x".repeat(250);
    for name in [&long, "d.from-1", "c.from-0"] {
        fs::write(root.path().join(name), "of a file").unwrap();
    }
    let mut keeper = Keeper::new(&dir, ALL);
    assert!(keeper.take(&path("d.from-1")));
    keeper.range(&path("d"), 1, 3);
    let kept = || Kept::of(root.path()).unwrap().times().unwrap().into_values().next().unwrap();
    let names: Vec<_> = kept().files.into_iter().collect();
    assert_eq!(names, [("d.from-1".to_owned(), 9), ("d.from-1-2".to_owned(), 3)]);
    assert_eq!((keeper.count(), keeper.failed), (2, 0));
    // The other way round the file has lost its name.
    keeper.range(&path("c"), 0, 2);
    assert!(!keeper.take(&path("c.from-0")));
    keeper.range(&path(&long), 0, 2);
    assert_eq!((keeper.count(), keeper.failed), (3, 2));
    keeper.bounds.bytes = 1;
    assert!(!keeper.take(&path("a/b")));
    assert_eq!(keeper.unfit, 1);
    keeper.report();
    assert_eq!(kept().why.as_deref(), Some("1 deleted, 2 cut or changed in part"));
}

#[test]
fn bounds_hold_and_nothing_is_left_of_what_was_dropped() {
    let (root, dir) = opened();
    for (name, bytes) in [("a/b", 4), ("c", 2), ("d", 0)] {
        let mut keeper = Keeper::new(&dir, ALL);
        assert!(keeper.take(&path(name)));
        keeper.report();
        assert_eq!(
            dir.kept_times().unwrap().values().filter(|time| time.why.is_some()).count(),
            dir.kept_times().unwrap().len()
        );
        expire(root.path(), Bounds { bytes, ..ALL }).unwrap();
        let kept: u64 = dir.kept_times().unwrap().values().map(|time| time.bytes).sum();
        assert!(kept <= bytes, "{kept} of {bytes}");
    }
    assert_eq!(fs::read_dir(root.path().join(".paceline/kept")).unwrap().count(), 0);
}
