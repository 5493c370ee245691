use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use super::super::kept::Bounds;
use super::*;

fn path(name: &str) -> RelPath {
    RelPath::new(name).unwrap()
}

fn folder(mode: u16) -> Item {
    Item::Folder(Attributes { mode, ..Attributes::UNKNOWN })
}

fn link(target: &str) -> Item {
    Item::link(target.as_bytes()).unwrap()
}

struct Tree {
    root: tempfile::TempDir,
    dir: Dir,
}

impl Tree {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        Self { root, dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn mode(&self, name: &str) -> u32 {
        fs::symlink_metadata(self.at(name)).unwrap().permissions().mode() & 0o7777
    }

    fn target(&self, name: &str) -> Option<String> {
        fs::read_link(self.at(name)).ok().map(|target| target.to_str().unwrap().to_owned())
    }

    fn item(&self, name: &str, item: &Item) {
        Actions::new(&self.dir).item(&path(name), item).unwrap();
    }

    fn remove(&self, name: &str) {
        Actions::new(&self.dir).remove_item(&path(name)).unwrap();
    }
}

#[test]
fn folders_are_made_with_their_modes_and_stay_usable_by_their_owner() {
    let tree = Tree::new();
    tree.item("a/b", &folder(0o755));
    tree.item("c", &folder(0o4070));
    assert_eq!(["a", "a/b", "c"].map(|name| tree.mode(name)), [0o700, 0o755, 0o770]);
    // What was inherited of the folder above, or given here, stays.
    fs::set_permissions(tree.at("a"), fs::Permissions::from_mode(0o2700)).unwrap();
    tree.item("a", &folder(0o711));
    assert_eq!(tree.mode("a"), 0o2711);
}

#[test]
fn links_are_made_changed_and_removed_and_never_followed() {
    let (tree, outside) = (Tree::new(), tempfile::tempdir().unwrap());
    fs::write(outside.path().join("victim"), "intact").unwrap();
    let before = fs::metadata(outside.path()).unwrap();
    let outside = outside.path().to_str().unwrap();
    for target in ["elsewhere", "../..", outside, "link"] {
        tree.item("deep/link", &link(target));
        assert_eq!(tree.target("deep/link").as_deref(), Some(target));
    }
    tree.item("deep/link", &link(outside));
    for item in [folder(0o777), link("x")] {
        tree.item("deep/link/below", &item);
    }
    tree.remove("deep/link/victim");
    assert_eq!(fs::read_dir(outside).unwrap().count(), 1);
    assert_eq!(fs::metadata(outside).unwrap().permissions(), before.permissions());
    tree.remove("deep/link");
    tree.remove("deep/link");
    assert!(tree.target("deep/link").is_none() && tree.at("deep").exists());
    // A link in a folder's place.
    tree.item("deep/link", &link(outside));
    tree.item("deep/link", &folder(0o750));
    assert_eq!(tree.mode("deep/link"), 0o750);
    assert_eq!(fs::read_to_string(format!("{outside}/victim")).unwrap(), "intact");
    // Nothing of ours is left.
    assert_eq!(fs::read_dir(tree.at(".paceline")).unwrap().count(), 0);
}

#[test]
fn what_does_not_fit_is_left_and_ends_nothing() {
    let tree = Tree::new();
    fs::create_dir_all(tree.at("full/deep")).unwrap();
    fs::create_dir_all(tree.at("linked/deep")).unwrap();
    fs::create_dir_all(tree.at("empty/very/deep")).unwrap();
    for file in ["file", "full/deep/x"] {
        fs::write(tree.at(file), "content").unwrap();
    }
    symlink("x", tree.at("linked/deep/link")).unwrap();
    for name in ["file", "full", "linked"] {
        tree.item(name, &link("x"));
        tree.remove(name);
    }
    for name in ["file", "file/below", "full/deep/x"] {
        tree.item(name, &folder(0o700));
        tree.item(name, &link("x"));
        tree.remove(name);
    }
    for file in ["file", "full/deep/x"] {
        assert_eq!(fs::read_to_string(tree.at(file)).unwrap(), "content");
    }
    assert_eq!(tree.target("linked/deep/link").as_deref(), Some("x"));
    // Nobody misses folders without files.
    tree.item("empty", &link("x"));
    assert_eq!(tree.target("empty").as_deref(), Some("x"));
    for name in ["none", "none/below"] {
        tree.remove(name);
    }
    assert!(!tree.at("none").exists());
}

#[test]
fn reserved_names_are_refused() {
    let tree = Tree::new();
    let mut actions = Actions::new(&tree.dir);
    for name in [".paceline", ".paceline/x", "deep/.paceline/kept", ".lock", ".clustering_id", "$x"] {
        let name = path(name);
        assert!(actions.item(&name, &folder(0o700)).is_err() && actions.item(&name, &link("x")).is_err());
        assert!(actions.remove_item(&name).is_err());
        assert!(actions.attributes(&name, Attributes::UNKNOWN).is_err());
    }
    assert_eq!(fs::read_dir(tree.root.path()).unwrap().count(), 0);
}

#[test]
fn a_sync_keeps_links_that_it_takes_away() {
    let tree = Tree::new();
    fs::create_dir(tree.at("deep")).unwrap();
    for name in ["removed", "deep/changed", "folder"] {
        symlink(format!("to-{name}"), tree.at(name)).unwrap();
    }
    let mut actions = Actions::new(&tree.dir);
    actions.keeper = Some(Keeper::new(&tree.dir, Bounds { age: Duration::from_secs(1000), bytes: 1000 }));
    actions.remove_item(&path("removed")).unwrap();
    actions.item(&path("deep/changed"), &link("new")).unwrap();
    actions.item(&path("folder"), &folder(0o700)).unwrap();
    assert_eq!(actions.keeper.as_ref().unwrap().count(), 3);
    assert_eq!(tree.target("deep/changed").as_deref(), Some("new"));
    let times = tree.dir.kept_times().unwrap();
    let (time, kept) = times.first_key_value().unwrap();
    assert_eq!(kept.files.keys().collect::<Vec<_>>(), ["deep/changed", "folder", "removed"]);
    for name in ["deep/changed", "folder", "removed"] {
        assert_eq!(tree.target(&format!(".paceline/kept/{time}/{name}")), Some(format!("to-{name}")));
    }
    // It is put back as a file is.
    let time = time.clone();
    drop(actions);
    let kept = super::super::Kept::of(tree.root.path()).unwrap();
    assert!(kept.restore(&time, Some("deep/changed"), false).is_err());
    kept.restore(&time, Some("deep/changed"), true).unwrap();
    kept.restore(&time, Some("removed"), false).unwrap();
    assert_eq!(tree.target("deep/changed").as_deref(), Some("to-deep/changed"));
    assert_eq!(tree.target("removed").as_deref(), Some("to-removed"));
    // Another sync, another time, and both are dropped in the end.
    tree.dir.expire_kept(Bounds { age: Duration::from_secs(1000), bytes: 0 }).unwrap();
    assert!(tree.dir.kept_times().unwrap().is_empty());
}

#[test]
fn an_emptied_folder_is_removed_by_its_own_word_only() {
    let tree = Tree::new();
    fs::create_dir_all(tree.at("a/b")).unwrap();
    fs::write(tree.at("a/b/c"), "").unwrap();
    let mut actions = Actions::new(&tree.dir);
    actions.leaves_folders = true;
    actions.remove_item(&path("a/b")).unwrap();
    actions.begin(path("a/b/c"), crate::protocol::ActionKind::Delete).unwrap();
    assert!(tree.at("a/b").exists() && !tree.at("a/b/c").exists());
    actions.remove_item(&path("a")).unwrap();
    actions.remove_item(&path("a/b")).unwrap();
    assert!(tree.at("a").exists() && !tree.at("a/b").exists());
    actions.remove_item(&path("a")).unwrap();
    assert!(!tree.at("a").exists());
}
