use super::*;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};

fn path(name: &str) -> RelPath {
    RelPath::new(name).unwrap()
}

fn opened() -> (tempfile::TempDir, Dir) {
    let temporary = tempfile::tempdir().unwrap();
    let dir = Dir::open(temporary.path()).unwrap();
    (temporary, dir)
}

fn place(dir: &Dir, name: &str, content: &str) -> Result<(), Error> {
    let mut staged = dir.stage(&path(name))?;
    staged.file.write_all(content.as_bytes()).unwrap();
    dir.place(staged, &path(name)).map(drop)
}

#[test]
fn files_and_folders_are_private_and_emptied_folders_go_with_1_0_0() {
    let (root, dir) = opened();
    dir.open_append(&path("a/b/c")).unwrap().write_all(b"x").unwrap();
    place(&dir, "a/d", "y").unwrap();
    let mode = |name: &str| fs::metadata(root.path().join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("a/b/c"), mode("a/d"), mode("a/b"), mode("a")), (0o600, 0o600, 0o700, 0o700));
    assert!(dir.remove(&path("a/b/c")).unwrap() && root.path().join("a/b").exists());
    dir.remove_emptied(&path("a/b/c"));
    assert!(!root.path().join("a/b").exists() && root.path().join("a/d").exists());
    assert!(dir.remove(&path("a/d")).unwrap());
    dir.remove_emptied(&path("a/d"));
    assert!(!root.path().join("a").exists());
    assert!(!dir.remove(&path("a/d")).unwrap(), "an absent file was removed");
    let left: Vec<_> = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [crate::types::OWN_FOLDER]);
}

#[test]
fn no_link_is_followed_and_nothing_outside_changes() {
    let (root, dir) = opened();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "intact").unwrap();
    symlink(outside.path(), root.path().join("folder")).unwrap();
    symlink(outside.path().join("victim"), root.path().join("file")).unwrap();
    symlink(outside.path().join("new"), root.path().join("dangling")).unwrap();
    for name in ["folder/victim", "folder/new", "folder/deep/new", "file", "dangling", "file/below"] {
        let name = path(name);
        for error in [
            dir.open_append(&name).err(),
            dir.remove(&name).err(),
            dir.hash(&name, &mut [0; 10], true, &|| true).err(),
            place(&dir, name.as_str(), "evil").err(),
        ] {
            let said = error.unwrap_or_else(|| panic!("{name} was taken")).to_string();
            assert!(said.contains("symbolic link"), "{said}");
        }
    }
    assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "intact");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn special_files_and_files_in_the_way_are_refused() {
    let (root, dir) = opened();
    rustix::fs::mknodat(rustix::fs::CWD, root.path().join("fifo"), FileType::Fifo, FILE_MODE, 0).unwrap();
    for name in ["folder/deep/full", "linked/deep"] {
        fs::create_dir_all(root.path().join(name)).unwrap();
    }
    fs::write(root.path().join("folder/deep/full/x"), "").unwrap();
    symlink("x", root.path().join("linked/deep/link")).unwrap();
    fs::write(root.path().join("plain"), "").unwrap();
    assert!(dir.open_append(&path("fifo")).is_err() && dir.remove(&path("fifo")).is_err());
    assert!(dir.hash(&path("fifo"), &mut [0; 10], true, &|| true).is_err());
    assert!(place(&dir, "fifo", "").is_err() && place(&dir, "folder", "").is_err());
    assert!(dir.open_append(&path("folder")).is_err() && dir.open_append(&path("plain/x")).is_err());
    assert!(place(&dir, "linked", "").is_err() && dir.open_append(&path("linked")).is_err());
    assert!(!dir.remove(&path("folder")).unwrap() && !dir.remove(&path("plain/x")).unwrap());
    assert!(root.path().join("folder/deep/full/x").exists() && root.path().join("linked/deep/link").is_symlink());
}

#[test]
fn folders_without_files_are_in_no_files_way() {
    let (root, dir) = opened();
    for name in ["appended", "placed"] {
        for deep in ["a/b", "c", "d/e/f"] {
            fs::create_dir_all(root.path().join(name).join(deep)).unwrap();
        }
    }
    dir.open_append(&path("appended")).unwrap().write_all(b"x").unwrap();
    place(&dir, "placed", "y").unwrap();
    for (name, content) in [("appended", "x"), ("placed", "y")] {
        assert_eq!(fs::read_to_string(root.path().join(name)).unwrap(), content);
    }
}
