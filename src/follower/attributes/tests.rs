use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::super::flush::Unflushed;
use super::super::flush::tests::opened;
use super::super::track::Track;
use super::*;
use crate::digests::ChunkBuffer;
use crate::protocol::ActionKind;
use crate::protocol::extension::CHUNK;

fn path(name: &str) -> RelPath {
    RelPath::new(name).unwrap()
}

fn of(mode: u16, mtime: i64) -> Attributes {
    Attributes { mode, mtime }
}

fn looks(file: &std::path::Path) -> (u32, i64, i64) {
    let meta = fs::metadata(file).unwrap();
    (meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec())
}

#[test]
fn a_file_gets_its_mode_and_its_time_and_no_rights_of_its_owner() {
    let (root, _, dir) = opened();
    let file = root.path().join("deep/a");
    dir.open_append(&path("deep/a")).unwrap().write_all(b"x").unwrap();
    let mut actions = Actions::new(&dir);
    for (mode, mtime, expected) in [
        (0o644, 1_700_000_000_123_456_789, (0o644, 1_700_000_000, 123_456_789)),
        (0o6755, 5, (0o755, 0, 5)),
        (0o444, -1, (0o444, -1, 999_999_999)),
        (0o400, Attributes::NO_TIME, (0o400, -1, 999_999_999)),
    ] {
        actions.attributes(&path("deep/a"), of(mode, mtime)).unwrap();
        assert_eq!(looks(&file), expected);
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4400)).unwrap();
    actions.attributes(&path("deep/a"), of(0o400, Attributes::NO_TIME)).unwrap();
    assert_eq!(looks(&file).0, 0o400);
    // What is so is not touched.
    let before = fs::metadata(&file).unwrap();
    actions.attributes(&path("deep/a"), of(0o400, -1)).unwrap();
    let after = fs::metadata(&file).unwrap();
    assert_eq!((before.ctime(), before.ctime_nsec()), (after.ctime(), after.ctime_nsec()));
    assert_eq!(actions.attributes_refused, 0);
}

#[test]
fn attributes_of_what_is_no_file_do_nothing() {
    let (root, _, dir) = opened();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let before = looks(outside.path());
    std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
    std::os::unix::fs::symlink(outside.path().parent().unwrap(), root.path().join("above")).unwrap();
    fs::create_dir(root.path().join("folder")).unwrap();
    let folder = looks(&root.path().join("folder"));
    let mut actions = Actions::new(&dir);
    let outside_name = outside.path().file_name().unwrap().to_str().unwrap();
    for name in ["link", "folder", "none", "none/below", "link/below", &format!("above/{outside_name}")] {
        actions.attributes(&path(name), of(0o777, 1)).unwrap();
    }
    assert_eq!((looks(outside.path()), looks(&root.path().join("folder"))), (before, folder));
}

/// How many bytes have to be read for all that there is to know of a file.
fn read_anew(dir: &Dir, name: &str) -> u64 {
    let (file, mut read) = (dir.open_file(&path(name), OFlags::RDONLY).unwrap().unwrap(), 0);
    let mut count = |bytes| {
        read += bytes;
        Ok::<_, std::io::Error>(())
    };
    dir.digests.of(&path(name), &file, 100, &mut ChunkBuffer::default(), &mut count).unwrap();
    read
}

#[test]
fn what_is_known_of_the_content_stays_known_unless_somebody_else_wrote() {
    let (root, noted, dir) = opened();
    let mut actions = Actions::new(&dir);
    actions.track = Some(Track::new(dir.digests.clone(), Unflushed::default()));
    let append = |actions: &mut Actions<'_>, bytes: &[u8]| {
        actions.begin(path("a"), ActionKind::Append(bytes.len() as u64)).unwrap();
        actions.payload(bytes, 0).unwrap();
    };
    append(&mut actions, &vec![1; 2 * CHUNK]);
    actions.settle().unwrap();
    read_anew(&dir, "a");
    // Also in one go with an append that is not written yet, and through the handle that is open.
    append(&mut actions, b"more");
    actions.attributes(&path("a"), of(0o640, 77)).unwrap();
    assert_eq!(looks(&root.path().join("a")), (0o640, 0, 77));
    assert_eq!(read_anew(&dir, "a"), 4);
    actions.attributes(&path("a"), of(0o600, 78)).unwrap();
    assert_eq!(read_anew(&dir, "a"), 0);
    // Mode and times are flushed, too.
    actions.unflushed().flush(&dir).unwrap();
    assert!(noted.calls.lock().contains('F'));
    fs::write(root.path().join("a"), vec![2; 2 * CHUNK + 4]).unwrap();
    actions.attributes(&path("a"), of(0o640, 78)).unwrap();
    assert_eq!(read_anew(&dir, "a"), 2 * CHUNK as u64 + 4);
    // Of what nobody has read nothing is to be read for it.
    fs::write(root.path().join("b"), "content").unwrap();
    actions.attributes(&path("b"), of(0o640, 78)).unwrap();
    actions.settle().unwrap();
    let later = crate::sys::time::Instant::now() + std::time::Duration::from_secs(1000);
    while let Some(due) = dir.digests.next_due(later) {
        assert_ne!(due.path, path("b"));
    }
}

#[test]
fn a_copy_in_a_files_place_is_as_it_was() {
    let (root, _, dir) = opened();
    let file = root.path().join("a");
    fs::write(&file, "content").unwrap();
    Actions::new(&dir).attributes(&path("a"), of(0o444, 77)).unwrap();
    let inode = || fs::metadata(&file).unwrap().ino();
    let before = inode();
    dir.mend(&Unflushed::all(), &|| Ok(())).unwrap();
    assert_eq!(looks(&file), (0o444, 0, 77));
    assert_ne!(inode(), before);
    dir.move_across(&path("a"), &path("moved")).unwrap();
    assert_eq!(looks(&root.path().join("moved")), (0o444, 0, 77));
}

#[test]
fn a_mode_that_forbids_it_is_widened_for_the_moment() {
    let (root, _, dir) = opened();
    let mut actions = Actions::new(&dir);
    actions.track = Some(Track::new(dir.digests.clone(), Unflushed::default()));
    actions.begin(path("a"), ActionKind::Append(7)).unwrap();
    actions.payload(b"content", 0).unwrap();
    for mode in [0o444, 0o200, 0] {
        actions.attributes(&path("a"), of(mode, 77)).unwrap();
        read_anew(&dir, "a");
        for flags in [OFlags::RDONLY, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE, OFlags::RDWR] {
            // As root nothing is forbidden: this is what is done where it is.
            let file = dir.open_despite_mode((&dir.top(), "a"), &path("a"), flags).unwrap();
            assert_eq!(looks(&root.path().join("a")), (mode.into(), 0, 77));
            if !flags.contains(OFlags::WRONLY) {
                let mut content = String::new();
                File::from(file).read_to_string(&mut content).unwrap();
                assert_eq!(content, "content");
            }
        }
        assert_eq!(read_anew(&dir, "a"), 0);
    }
    std::os::unix::fs::symlink("a", root.path().join("link")).unwrap();
    fs::create_dir(root.path().join("folder")).unwrap();
    for name in ["link", "folder", "none"] {
        assert!(dir.open_despite_mode((&dir.top(), name), &path(name), OFlags::RDONLY).is_none(), "{name}");
    }
}
