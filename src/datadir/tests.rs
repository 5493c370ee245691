use super::*;
use crate::sys::rustix::fs::Mode;

#[test]
fn a_directory_that_was_not_claimed_does_not_look_like_a_nodes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("checksums.sha1"), "").unwrap();
    drop(DataDir::open_unclaimed(dir.path(), NodeId::new(5).ok(), None).unwrap());
    let mut again = DataDir::open_unclaimed(dir.path(), None, None).unwrap();
    assert!(!again.is_claimed() && dir.path().join("checksums.sha1").exists());
    again.claim().unwrap();
    again.claim().unwrap();
    let id = again.id();
    drop(again);
    assert!(!dir.path().join("checksums.sha1").exists());
    let claimed = DataDir::open_unclaimed(dir.path(), None, None).unwrap();
    assert!(claimed.is_claimed() && claimed.id() == id);
}

#[test]
fn an_id_is_made_once_and_a_wanted_one_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let first = DataDir::open(dir.path(), None).unwrap();
    let id = first.id();
    assert!(first.is_claimed());
    assert!(matches!(DataDir::open(dir.path(), None), Err(Error::InUse(_))), "two took one directory");
    drop(first);
    let again = DataDir::open(dir.path(), None).unwrap();
    assert!(again.is_claimed() && again.id() == id);
    drop(again);
    let wanted = "abc".parse().unwrap();
    assert_eq!(DataDir::open(dir.path(), Some(wanted)).unwrap().id(), wanted);
    assert_eq!(fs::read_to_string(dir.path().join(".clustering_id")).unwrap(), "abc");
}

#[test]
fn whatever_is_in_the_place_of_an_id_does_not_matter_when_one_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = NodeId::new(5).unwrap();
    for kept in [&b"\xff:\x8a"[..], b"not an id", b"", &[b'1'; 1000]] {
        fs::write(dir.path().join(".clustering_id"), kept).unwrap();
        let refused = DataDir::open(dir.path(), None).unwrap_err();
        assert!(matches!(refused, Error::InvalidValue(_)) && refused.to_string().len() < 300, "{refused}");
        assert_eq!(DataDir::open(dir.path(), Some(wanted)).unwrap().id(), wanted);
    }
}

#[test]
fn a_directory_that_led_stays_the_same_data_set() {
    let dir = tempfile::tempdir().unwrap();
    let first = DataDir::open(dir.path(), None).unwrap();
    assert_eq!(first.data_set(), None);
    let id = first.data_set_to_be().unwrap();
    first.leads_as(id).unwrap();
    drop(first);
    let again = DataDir::open(dir.path(), None).unwrap();
    assert_eq!((again.data_set(), again.data_set_to_be().unwrap()), (Some(id), id));
}

#[test]
fn a_data_directory_is_made_with_those_above_it() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("a/b/c");
    make(&deep).unwrap();
    make(&deep).unwrap();
    assert!(deep.is_dir());
}

#[test]
fn walking_shows_files_folders_and_links_as_they_are() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::create_dir_all(root.join("backups")).unwrap();
    for name in ["top", "a/b/deep", ".lock", "backups/old", "$x"] {
        fs::write(root.join(name), name).unwrap();
    }
    for (name, mode) in [("a", 0o2750), ("a/b", 0o700), ("top", 0o400), ("a/b/deep", 0o640)] {
        std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    // Everything in it is shown once, whatever a link leads to.
    std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
    std::os::unix::fs::symlink("..", root.join("a/up")).unwrap();
    let fifo = Mode::RUSR | Mode::WUSR;
    crate::sys::rustix::fs::mkfifoat(crate::sys::rustix::fs::CWD, root.join("fifo"), fifo).unwrap();
    #[derive(Default)]
    struct Found {
        folders: Vec<(String, u16)>,
        files: Vec<(String, u64, u16)>,
        links: Vec<(String, String)>,
        others: Vec<String>,
    }
    impl Visitor for Found {
        fn folder(&mut self, path: &RelPath, attributes: Attributes) -> bool {
            assert_eq!(attributes.mtime, Attributes::NO_TIME);
            self.folders.push((path.to_string(), attributes.mode));
            true
        }

        fn file(&mut self, file: FoundFile) {
            assert_eq!(file.attributes.mtime, file.looks.stamps.mtime);
            self.files.push((file.path.to_string(), file.len, file.attributes.mode));
        }

        fn link(&mut self, path: RelPath, target: &[u8]) {
            self.links.push((path.to_string(), String::from_utf8(target.to_vec()).unwrap()));
        }

        fn other(&mut self, path: &RelPath) {
            self.others.push(path.to_string());
        }
    }
    let mut found = Found::default();
    walk(&Beneath::open(root).unwrap(), None, &mut found).unwrap();
    found.files.sort();
    assert_eq!(found.files, [("a/b/deep".to_owned(), 8, 0o640), ("top".to_owned(), 3, 0o400)]);
    assert_eq!(found.folders, [("a".to_owned(), 0o750), ("a/b".to_owned(), 0o700)]);
    assert_eq!(found.links, [("link", "/etc/passwd"), ("a/up", "..")].map(|(at, to)| (at.to_owned(), to.to_owned())));
    assert_eq!(found.others, ["fifo"]);
}
