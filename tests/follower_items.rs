//! What a follower does with attributes, folders and links, against a leader of the extension that says what it should.

mod support;

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use paceline::follower::State;
use paceline::protocol::extension::{Attributes, Control, Item, field};
use paceline::{Error, Follower, RelPath};
use support::extension_leader::{Extension, LONG, about, encoded, held, path};
use support::fake_leader::{FakeLeader, append, config, delete, eventually, replace, started};
use support::processes::{Stage, find, without_privileges};
use tempfile::TempDir;

const CHUNK: usize = 256 << 10;

fn attributes(name: &str, mode: u16, mtime: i64) -> Control {
    Control::Attributes(path(name), Attributes { mode, mtime })
}

fn as_folder(mode: u16) -> Item {
    Item::Folder(Attributes { mode, ..Attributes::UNKNOWN })
}

fn as_link(target: &str) -> Item {
    Item::link(target.as_bytes()).unwrap()
}

fn folder(name: &str, mode: u16) -> Control {
    Control::Item(path(name), as_folder(mode))
}

fn link(name: &str, target: &str) -> Control {
    Control::Item(path(name), as_link(target))
}

fn removed(name: &str) -> Control {
    Control::RemoveItem(path(name))
}

fn mode(dir: &Path, name: &str) -> u32 {
    fs::symlink_metadata(dir.join(name)).unwrap().permissions().mode() & 0o7777
}

fn target(dir: &Path, name: &str) -> Option<String> {
    fs::read_link(dir.join(name)).ok().map(|target| target.to_str().unwrap().to_owned())
}

type ToldFile = (String, u16, i64);

/// What a connection is told: files by their modes and times, and items.
#[track_caller]
fn told(connection: &mut Extension) -> (Vec<ToldFile>, Vec<(RelPath, Item)>) {
    connection.sums(1);
    let (files, mut items) = connection.all_of(&[0, 1]);
    let mut files: Vec<_> =
        files.into_iter().map(|file| (file.path.to_string(), file.attributes.mode, file.attributes.mtime)).collect();
    files.sort();
    items.sort_by(|(a, _), (b, _)| a.cmp(b));
    (files, items)
}

#[test]
fn attributes_folders_and_links_become_as_the_leader_says_and_are_told() {
    let (leader, dir, _follower) = started();
    let (mut connection, _) = leader.accept_in_sync();
    let first = [
        append("deep/a", b"content"),
        encoded(&[
            folder("deep", 0o755),
            folder("empty/one", 0),
            link("deep/link", "../outside"),
            link("absolute", "/etc/passwd"),
            attributes("deep/a", 0o754, 1_700_000_000_123_456_789),
            attributes("none", 0o777, 0),
            attributes("absolute", 0o777, 0),
        ]),
        append("b", b"content"),
    ];
    connection.stream(&first.concat());
    assert_eq!(
        ["deep/a", "b", "deep", "empty/one", "empty"].map(|name| mode(dir.path(), name)),
        [0o754, 0o600, 0o755, 0o700, 0o700]
    );
    let modified = fs::metadata(dir.path().join("deep/a")).unwrap().modified().unwrap();
    assert_eq!(modified, UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789));
    assert_eq!(target(dir.path(), "deep/link").as_deref(), Some("../outside"));
    let b = fs::metadata(dir.path().join("b")).unwrap();
    drop(connection);

    let mut connection = leader.accept_extension(&about(LONG));
    let (files, items) = told(&mut connection);
    let b = ("b".to_owned(), 0o600, b.mtime() * 1_000_000_000 + b.mtime_nsec());
    assert_eq!(files, [b, ("deep/a".to_owned(), 0o754, 1_700_000_000_123_456_789)]);
    let expected = [
        ("absolute", as_link("/etc/passwd")),
        ("deep", as_folder(0o755)),
        ("deep/link", as_link("../outside")),
        ("empty", as_folder(0o700)),
        ("empty/one", as_folder(0o700)),
    ];
    assert_eq!(items, expected.map(|(name, item)| (path(name), item)));
    connection.sync(&encoded(&[removed("empty/one"), removed("empty"), removed("absolute"), removed("deep")]));
    assert!(!dir.path().join("empty").exists() && target(dir.path(), "absolute").is_none());
    assert!(dir.path().join("deep/a").exists());
}

#[test]
fn the_sums_of_a_copy_tell_of_each_attribute_and_item() {
    let (leader, dir, follower) = started();
    let (mut connection, _) = leader.accept_in_sync();
    connection.stream(
        &[append("a", b"content"), encoded(&[attributes("a", 0o640, 5), folder("f", 0o750), link("l", "x")])].concat(),
    );
    drop(connection);
    let sums = || leader.accept_extension(&about(LONG)).sums(0);
    let before = sums();
    let at = |name: &str| dir.path().join(name);
    let set_mode = |name: &str, mode| fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
    let relink = |target: &str| {
        fs::remove_file(at("l")).unwrap();
        symlink(target, at("l")).unwrap();
    };
    let changes: [&dyn Fn(bool); 4] = [
        &|undo| set_mode("a", if undo { 0o640 } else { 0o644 }),
        &|undo| set_mode("f", if undo { 0o750 } else { 0o700 }),
        &|undo| if undo { fs::remove_dir(at("new")).unwrap() } else { fs::create_dir(at("new")).unwrap() },
        &|undo| relink(if undo { "x" } else { "y" }),
    ];
    for change in changes {
        for undo in [false, true] {
            change(undo);
            assert_eq!(sums() == before, undo);
        }
    }
    drop(follower);
}

#[test]
fn nothing_is_read_again_for_an_attribute() {
    let (leader, dir, follower) = started();
    let content = vec![7; 3 * CHUNK + 5];
    let mut connection = leader.accept_extension(&about(LONG));
    connection.inventory();
    connection.sync(&append("deep/a", &content));
    connection.stream(&encoded(&[attributes("deep/a", 0o440, 77)]));
    drop(connection);
    // In the same process, and in the next one.
    for (follower, read) in [(Some(follower), content.len() as u64), (None, 0)] {
        let follower = follower.unwrap_or_else(|| Follower::start(config(&leader, dir.path())).unwrap());
        let (mut connection, inventory) = leader.accept_in_sync();
        assert_eq!(inventory, [held("deep/a", &content)]);
        eventually("in sync", || follower.status().state == State::Streaming);
        assert_eq!(follower.status().sync.bytes_hashed, read);
        for attribute in [attributes("deep/a", 0o640, 78), attributes("deep/a", 0o600, Attributes::NO_TIME)] {
            connection.stream(&encoded(&[attribute]));
        }
        drop(connection);
        let (mut connection, inventory) = leader.accept_in_sync();
        assert_eq!(inventory, [held("deep/a", &content)]);
        eventually("in sync", || follower.status().state == State::Streaming);
        assert_eq!(follower.status().sync.bytes_hashed, 0);
        // The last word before it stops.
        connection.stream(&encoded(&[attributes("deep/a", 0o444, 79)]));
        follower.stop();
    }
}

#[test]
fn an_emptied_folder_stays_until_it_is_said_to_go_and_makes_room_for_a_file_or_a_link() {
    let (leader, dir, follower) = started();
    let (mut connection, _) = leader.accept_in_sync();
    let rename = encoded(&[Control::Rename { from: path("old/deep/a"), to: path("new/a") }]);
    connection.stream(&[append("old/deep/a", b"1"), append("gone/b", b"2"), rename, delete("gone/b")].concat());
    assert!(dir.path().join("old/deep").is_dir() && dir.path().join("gone").is_dir());
    connection.stream(&encoded(&[removed("gone"), removed("old")]));
    assert!(dir.path().join("old/deep").is_dir() && !dir.path().join("gone").exists());
    fs::create_dir_all(dir.path().join("appended/x/y")).unwrap();
    fs::create_dir_all(dir.path().join("linked/x/y")).unwrap();
    connection.stream(
        &[replace("old", b"a file"), append("appended", b"a file"), encoded(&[link("linked", "old")])].concat(),
    );
    for name in ["old", "appended", "linked"] {
        assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), "a file");
    }
    assert_eq!(follower.status().last_disconnect, None);
}

#[test]
fn what_does_not_fit_ends_nothing_and_reserved_names_end_the_connection() {
    let (leader, dir, follower) = started();
    let (mut connection, _) = leader.accept_in_sync();
    connection.stream(&[append("a", b"1"), append("deep/b", b"2")].concat());
    let unfit = [
        folder("a", 0o700),
        link("a", "x"),
        link("deep", "x"),
        folder("a/below", 0o700),
        removed("a"),
        removed("deep"),
        removed("deep/b"),
        removed("a/below"),
        removed("none/at/all"),
    ];
    connection.stream(&encoded(&unfit));
    assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "1");
    assert_eq!(fs::read_to_string(dir.path().join("deep/b")).unwrap(), "2");
    assert_eq!(follower.status().last_disconnect, None);
    drop(connection);
    for name in [".paceline/x", "deep/.paceline/x", ".lock", ".clustering_id"] {
        for control in [attributes(name, 0o777, 0), folder(name, 0o777), link(name, "x"), removed(name)] {
            let (mut connection, _) = leader.accept_in_sync();
            connection.control(control);
            connection.wait_closed();
            eventually("why", || follower.status().last_disconnect.is_some_and(|said| said.contains(name)));
        }
    }
}

#[test]
fn a_sync_keeps_the_links_that_it_takes_away() {
    let (leader, dir, follower) = started();
    let (mut connection, _) = leader.accept_in_sync();
    connection.stream(&encoded(&[link("deep/one", "1"), link("two", "2"), link("three", "3")]));
    drop(connection);
    let mut connection = leader.accept_extension(&about(LONG));
    connection.inventory();
    connection.sync(&encoded(&[removed("deep/one"), removed("deep"), link("two", "other")]));
    assert_eq!(
        ["deep/one", "two", "three"].map(|name| target(dir.path(), name)),
        [None, Some("other".to_owned()), Some("3".to_owned())]
    );
    // Not what the stream removes.
    connection.stream(&encoded(&[removed("three")]));
    follower.stop();
    let kept = paceline::follower::Kept::of(dir.path()).unwrap().times().unwrap();
    let (time, kept) = kept.first_key_value().unwrap();
    assert_eq!(kept.files.keys().collect::<Vec<_>>(), ["deep/one", "two"]);
    assert_eq!(target(dir.path(), &format!(".paceline/kept/{time}/deep/one")).as_deref(), Some("1"));
}

#[test]
fn links_of_a_foreign_directory_are_files_that_no_leader_may_remove() {
    for with_file in [false, true] {
        let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
        symlink("/somewhere", dir.path().join("link")).unwrap();
        if with_file {
            fs::write(dir.path().join("a"), "").unwrap();
        }
        for change in [removed("link"), folder("link", 0o700)] {
            let follower = Follower::start(config(&leader, dir.path())).unwrap();
            let mut connection = leader.accept_extension(&about(LONG).with(field::DATA_SET, &[7; 16]));
            connection.inventory();
            connection.control(Control::SyncBegins { files: 0, bytes: 0 });
            connection.control(change);
            match follower.wait(Some(support::PATIENCE)).expect("it goes on") {
                Err(Error::ForeignDirectory { example, .. }) => assert_eq!(example.as_str(), "link"),
                other => panic!("{other:?}"),
            }
            assert_eq!(target(dir.path(), "link").as_deref(), Some("/somewhere"));
            assert!(!dir.path().join(".clustering_id").exists());
        }
    }
}

#[test]
fn what_an_unproven_leader_removes_first_waits_for_something_else_and_then_goes() {
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    fs::create_dir_all(dir.path().join("empty/deep")).unwrap();
    symlink("x", dir.path().join("link")).unwrap();
    for name in [".clustering_id", "a", "b", "c"] {
        fs::write(dir.path().join(name), "abc").unwrap();
    }
    let _follower = Follower::start(config(&leader, dir.path())).unwrap();
    let mut connection = leader.accept_extension(&about(LONG));
    connection.inventory();
    connection.control(Control::SyncBegins { files: 0, bytes: 0 });
    connection.stream(&encoded(&[removed("link"), removed("empty/deep"), removed("empty")]));
    assert!(target(dir.path(), "link").is_some() && dir.path().join("empty/deep").exists());
    connection.stream(&encoded(&[attributes("a", 0o640, 5)]));
    assert!(target(dir.path(), "link").is_none() && !dir.path().join("empty").exists());
    assert_eq!(mode(dir.path(), "a"), 0o640);
    connection.control(Control::SyncEnds);
    let end = connection.control(Control::Position(0));
    connection.wait_durable(end);
}

#[test]
fn a_follower_that_is_not_root_writes_and_reads_files_whose_modes_forbid_it() {
    let (leader, stage) = (FakeLeader::new(), Stage::new());
    let (data, address) = (stage.path("data"), leader.address());
    let follow = [env!("CARGO_BIN_EXE_paceline"), "follow", &address, "--data-dir", data.to_str().unwrap()];
    let setpriv = || vec![find("setpriv", "util-linux").into_os_string(), "--".into()];
    let command: Vec<OsString> =
        Some(without_privileges()).filter(|command| !command.is_empty()).unwrap_or_else(setpriv);
    let command = [command, follow.map(OsString::from).to_vec()].concat();
    let mut follower = stage.start("follower", &command[0], &command[1..]);
    let (mut connection, _) = leader.accept_in_sync();
    let names = [("readable", 0o444), ("writable", 0o200), ("neither", 0)];
    for (name, mode) in names {
        connection.stream(&[append(name, b"some"), encoded(&[attributes(name, mode, 77)])].concat());
    }
    drop(connection);
    // Each is read for the inventory, and written to by other handles.
    let (mut connection, inventory) = leader.accept_in_sync();
    assert_eq!(inventory, ["neither", "readable", "writable"].map(|name| held(name, b"some")));
    for (name, expected) in names {
        assert_eq!(mode(&data, name), u32::from(expected), "{name}");
        let patch = encoded(&[Control::PatchAt { path: path(name), offset: 0 }]);
        connection.stream(&[append(name, b" more"), patch, append(name, b"S")].concat());
        assert_eq!(mode(&data, name), u32::from(expected), "{name}");
        connection.stream(&encoded(&[attributes(name, expected, 78)]));
    }
    let renamed = Control::Rename { from: path("neither"), to: path("moved") };
    connection.stream(&encoded(&[renamed, folder("closed", 0)]));
    assert_eq!((mode(&data, "moved"), mode(&data, "closed")), (0, 0o700));
    drop(connection);
    let mut connection = leader.accept_extension(&about(LONG));
    let (files, _) = told(&mut connection);
    let expected = [("moved", 0, 78), ("readable", 0o444, 78), ("writable", 0o200, 78)];
    assert_eq!(files, expected.map(|(name, mode, mtime)| (name.to_owned(), mode, mtime)));
    follower.stop();
    for name in ["moved", "readable", "writable"] {
        fs::set_permissions(data.join(name), Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fs::read_to_string(data.join(name)).unwrap(), "Some more");
    }
}
