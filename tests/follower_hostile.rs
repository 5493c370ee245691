//! The follower against a leader that is broken, or an enemy: nothing outside its directory changes, it survives, says
//! why, and comes back.

mod support;

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use paceline::follower::State;
use paceline::protocol::extension::{CONTROL_BYTES_MAX, Control, Start, VERSION};
use paceline::protocol::{self, FRAME_HEADER, read_node_id, read_secret};
use paceline::{Follower, FollowerConfig, Secret};
use support::extension_leader::{Extension, LONG, about, encoded, path};
use support::fake_leader::{Connection, FakeLeader, Files, append, delete, eventually, files, files_in, replace};
use tempfile::TempDir;

/// A follower whose directory lies beside files that are not its business.
struct Scene {
    leader: FakeLeader,
    outside: TempDir,
    follower: Follower,
}

impl Scene {
    fn new() -> Self {
        Self::prepared(|_, _| {})
    }

    /// `prepare` is given the data directory and the folder beside it.
    fn prepared(prepare: impl FnOnce(&Path, &Path)) -> Self {
        let (leader, outside) = (FakeLeader::new(), TempDir::new().unwrap());
        let data = outside.path().join("data");
        let beside = outside.path().join("beside");
        fs::create_dir(&data).unwrap();
        fs::create_dir(&beside).unwrap();
        fs::write(beside.join("victim"), "intact").unwrap();
        prepare(&data, &beside);
        let mut config = FollowerConfig::new(leader.address(), &data, Secret::new("s3cret").unwrap());
        config.retry_delay_min = Duration::from_millis(1);
        config.retry_delay_max = Duration::from_millis(10);
        // The leader that comes in the end has nothing of what those before it had.
        config.max_delete = 1.0;
        Self { follower: Follower::start(config).unwrap(), leader, outside }
    }

    fn in_stream(&self) -> Connection {
        let mut connection = self.leader.accept();
        connection.sync(&Files::new());
        connection
    }

    /// The follower closes, says `why`, and has touched nothing outside.
    #[track_caller]
    fn refused(&self, mut connection: Connection, why: &str) {
        assert!(connection.is_closed_silently(), "the follower went on: {why}");
        let mut said = String::new();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !said.contains(why) {
            said = self.follower.status().last_disconnect.unwrap_or_default();
            assert!(std::time::Instant::now() < deadline, "it said {said:?} and not {why:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.nothing_outside_changed();
    }

    #[track_caller]
    fn nothing_outside_changed(&self) {
        let names = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(self.outside.path()), ["beside", "data"]);
        assert_eq!(names(&self.outside.path().join("beside")), ["victim"]);
        assert_eq!(fs::read_to_string(self.outside.path().join("beside/victim")).unwrap(), "intact");
    }

    /// It comes back, and works.
    #[track_caller]
    fn comes_back(&self) {
        let listed = files(&[("good", b"content")]);
        let mut connection = self.leader.accept();
        connection.sync(&listed);
        eventually("good again", || self.follower.status().state == State::Streaming);
        connection.stream(&append("good", b"!"));
        assert_eq!(fs::read(self.outside.path().join("data/good")).unwrap(), b"content!");
    }
}

#[test]
fn hostile_names_in_a_list_are_refused() {
    let scene = Scene::new();
    for (name, why) in [
        (&b"../beside/victim"[..], "`..`"),
        (b"a/../../beside/new", "`..`"),
        (b"..", "`..`"),
        (b"./a", "`.`"),
        (b"a//b", "empty"),
        (b"/etc/paceline-was-here", "absolute"),
        (b"a\0b", "NUL"),
        (b"\xff\xfe", "not UTF-8"),
        (&[b'x'; 300], "longer than 255 bytes"),
    ] {
        let mut connection = scene.leader.accept();
        connection.raw_list(&[b"fine", name]);
        scene.refused(connection, why);
    }
    let mut connection = scene.leader.accept();
    connection.raw_list(&[b"twice", b"twice"]);
    scene.refused(connection, "listed twice");
    scene.comes_back();
}

#[test]
fn hostile_lengths_are_refused() {
    let scene = Scene::new();
    for length in [-1, 4097, i32::MAX, i32::MIN] {
        let mut connection = scene.leader.accept();
        connection.send(&length.to_le_bytes());
        scene.refused(connection, "name length");
    }
    for size in [-1, i64::MAX, i64::MIN] {
        let mut connection = scene.leader.accept();
        connection.list(&files(&[("a", b"1")]));
        connection.requests();
        connection.send(&size.to_le_bytes());
        scene.refused(connection, "file size");
    }
    for (length, payload, why) in
        [(-1, 0, "name length"), (5000, 0, "name length"), (1, i64::MIN, "payload"), (1, i64::MAX, "payload")]
    {
        let mut connection = scene.in_stream();
        connection.send(&[&i32::to_le_bytes(length)[..], b"a", &i64::to_le_bytes(payload)].concat());
        scene.refused(connection, why);
    }
    // A size that is allowed and never comes takes no room.
    let mut connection = scene.leader.accept();
    connection.list(&files(&[("a", b"1")]));
    connection.requests();
    connection.send(&(1_u64 << 55).to_le_bytes());
    connection.send(b"only this");
    eventually("waiting for the rest", || scene.follower.status().sync.bytes_received == 9);
    connection.close();
    scene.comes_back();
}

/// A copy, so that a leader may delete, with links in it.
fn with_links() -> Scene {
    Scene::prepared(|data, beside| {
        fs::write(data.join(".clustering_id"), "abc").unwrap();
        symlink(beside, data.join("folder")).unwrap();
        symlink(beside.join("victim"), data.join("file")).unwrap();
        symlink(beside.join("new"), data.join("dangling")).unwrap();
        symlink("/", data.join("root")).unwrap();
    })
}

#[test]
fn no_symbolic_link_is_followed_from_a_list_and_what_is_in_the_way_is_kept() {
    for name in ["folder/victim", "folder/new", "folder/new/er", "file", "dangling", "root/etc/passwd"] {
        let scene = with_links();
        let mut connection = scene.leader.accept();
        connection.sync(&files(&[(name, b"evil")]));
        connection.stream(&append(name, b"!"));
        assert_eq!(fs::read(scene.data(name)).unwrap(), b"evil!");
        scene.nothing_outside_changed();
        scene.follower.stop();
        let kept = paceline::follower::Kept::of(&scene.data("")).unwrap().times().unwrap();
        let (time, kept) = kept.first_key_value().unwrap();
        let link = name.split('/').next().unwrap();
        assert_eq!(kept.files.keys().collect::<Vec<_>>(), [link]);
        assert!(scene.data(&format!(".paceline/kept/{time}/{link}")).is_symlink());
        for other in ["folder", "file", "dangling", "root"] {
            assert_eq!(scene.data(other).is_symlink(), other != link);
        }
    }
}

#[test]
fn a_link_in_the_way_is_no_guests_to_remove() {
    let scene = Scene::prepared(|data, beside| symlink(beside, data.join("folder")).unwrap());
    let mut connection = scene.leader.accept();
    connection.list(&files(&[("folder/new", b"evil")]));
    match scene.follower.wait(Some(Duration::from_secs(60))).expect("it goes on") {
        Err(paceline::Error::ForeignDirectory { example, .. }) => assert_eq!(example.as_str(), "folder"),
        other => panic!("{other:?}"),
    }
    assert!(scene.data("folder").is_symlink());
    scene.nothing_outside_changed();
}

#[test]
fn no_symbolic_link_is_followed_from_the_stream_and_what_was_there_makes_room() {
    for name in ["folder/victim", "folder/new", "file", "dangling"] {
        for action in [append(name, b"evil"), replace(name, b"evil")] {
            let scene = with_links();
            let mut connection = scene.in_stream();
            connection.stream(&delete(name));
            assert!(scene.data(name.split('/').next().unwrap()).is_symlink());
            connection.stream(&action);
            assert_eq!(fs::read(scene.data(name)).unwrap(), b"evil");
            scene.nothing_outside_changed();
        }
    }
}

#[test]
fn a_symbolic_link_that_somebody_makes_meanwhile_is_not_followed_from_the_stream() {
    let scene = Scene::new();
    let links = ["folder", "file"].map(|name| scene.data(name));
    for name in ["folder/victim", "folder/new", "file"] {
        for action in [append(name, b"evil"), replace(name, b"evil"), delete(name)] {
            let mut connection = scene.in_stream();
            eventually("in sync", || scene.follower.status().state == State::Streaming);
            symlink(scene.outside.path().join("beside"), &links[0]).unwrap();
            symlink(scene.outside.path().join("beside/victim"), &links[1]).unwrap();
            connection.send(&action);
            scene.refused(connection, "symbolic link");
            links.iter().for_each(|link| fs::remove_file(link).unwrap());
        }
    }
    scene.comes_back();
}

#[test]
fn an_own_folder_that_leads_outside_is_refused() {
    let scene = Scene::new();
    let root = scene.outside.path();
    let connection = scene.leader.accept_raw();
    symlink(root.join("beside"), root.join("data/.paceline")).unwrap();
    drop(connection);
    eventually("said", || scene.follower.status().last_disconnect.is_some_and(|why| why.contains("symbolic link")));
    scene.nothing_outside_changed();
    fs::remove_file(scene.outside.path().join("data/.paceline")).unwrap();
    scene.comes_back();
}

#[test]
fn hostile_names_in_the_stream_are_refused() {
    let scene = Scene::new();
    for name in [".lock", ".clustering_id", ".paceline/incomplete", "checksums.sha1", "backups/a", "$x"] {
        let mut connection = scene.in_stream();
        connection.send(&append(name, b"x"));
        scene.refused(connection, "reserved name");
    }
    for name in ["../beside/victim", "/etc/passwd", "a/../../x"] {
        let mut connection = scene.in_stream();
        let length = i32::try_from(name.len()).unwrap();
        connection.send(&[&length.to_le_bytes()[..], name.as_bytes(), &0_i64.to_le_bytes()].concat());
        scene.refused(connection, "invalid file name");
    }
    scene.comes_back();
}

#[test]
fn bytes_that_are_no_frame_are_a_disconnect() {
    let scene = Scene::new();
    for garbage in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0xff; 100], &[0x50, 0x2A, 0x4D, 0x18, 0, 0, 0, 0]] {
        let mut connection = scene.leader.accept_without_frame();
        connection.socket.write_all(garbage).unwrap();
        scene.refused(connection, "LZ4");
    }
    // A block larger than the frame allows; one whose bytes are no LZ4.
    for block in [&0x0100_0000_u32.to_le_bytes()[..], b"\x04\0\0\0\xff\xff\xff\xff"] {
        let mut connection = scene.in_stream();
        connection.socket.write_all(block).unwrap();
        scene.refused(connection, "connection lost");
    }
    scene.comes_back();
}

#[test]
fn a_frame_torn_anywhere_is_a_disconnect() {
    let scene = Scene::new();
    let listed = files(&[("a", b"0123456789")]);
    for stage in 0..6 {
        let mut connection = scene.leader.accept_without_frame();
        match stage {
            0 => {}
            1 => connection.socket.write_all(&FRAME_HEADER[..5]).unwrap(),
            _ => {
                connection.socket.write_all(&FRAME_HEADER).unwrap();
                match stage {
                    2 => connection.send(&[5, 0, 0]),
                    // Within a block's header, and within a block.
                    3 => connection.socket.write_all(&[9, 0]).unwrap(),
                    4 => connection.socket.write_all(&[9, 0, 0, 0, 1, 2]).unwrap(),
                    _ => {
                        connection.list(&listed);
                        connection.requests();
                        connection.content(b"0123456789");
                        connection.list(&listed);
                    }
                }
            }
        }
        eventually("accepted", || scene.follower.status().connections == stage + 1);
        connection.close();
    }
    scene.comes_back();
    assert!(scene.follower.status().last_disconnect.unwrap().contains("the leader closed it"));
}

#[test]
fn an_old_leaders_end_mark_in_place_of_an_answer_is_a_disconnect() {
    let scene = Scene::new();
    let mut socket = scene.leader.accept_start();
    socket.write_all(&[0; 4]).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    eventually("said", || scene.follower.status().last_disconnect.is_some_and(|why| why.contains("closed")));
    scene.comes_back();
}

#[test]
fn what_is_no_leader_is_told_apart() {
    let scene = Scene::new();
    for (answer, why) in [(&b"REPLI\x02\0\0"[..], "[52, 45, 50, 4c, 49, 02, 00, 00]"), (b"HTTP/1.1", "[48]")] {
        let mut socket = scene.leader.accept_start();
        read_secret(&mut socket).unwrap();
        socket.write_all(answer).unwrap();
        eventually("said", || scene.follower.status().last_disconnect.is_some_and(|said| said.contains(why)));
        assert!(scene.follower.status().last_disconnect.unwrap().contains("does not speak"));
    }
    scene.comes_back();
}

// --- The extension ----------------------------------------------------------------------------------------------------

impl Scene {
    /// As [`refused`](Self::refused), whatever the follower still says.
    #[track_caller]
    fn ends(&self, mut connection: Extension, why: &str) {
        connection.wait_closed();
        eventually(why, || self.follower.status().last_disconnect.is_some_and(|said| said.contains(why)));
        self.nothing_outside_changed();
    }

    #[track_caller]
    fn in_extended_stream(&self, actions: &[u8]) -> Extension {
        let (mut connection, _) = self.leader.accept_in_sync();
        connection.stream(actions);
        connection
    }

    /// The same, and another sync has begun: what is patched is patched there.
    #[track_caller]
    fn in_extended_sync(&self, actions: &[u8]) -> Extension {
        let mut connection = self.in_extended_stream(actions);
        connection.inventory();
        connection.control(Control::SyncBegins { files: 1, bytes: 1 });
        connection
    }

    fn data(&self, name: &str) -> std::path::PathBuf {
        self.outside.path().join("data").join(name)
    }
}

fn rename(from: &str, to: &str) -> Vec<u8> {
    encoded(&[Control::Rename { from: path(from), to: path(to) }])
}

/// Everything that the extension can do with a file.
fn all_with(name: &str) -> Vec<Vec<u8>> {
    vec![
        rename(name, "elsewhere"),
        rename("good", name),
        encoded(&[Control::Truncate { path: path(name), len: 0 }]),
        encoded(&[Control::Empty(path(name))]),
        [encoded(&[Control::PatchAt { path: path(name), offset: 0 }]), append(name, b"x")].concat(),
        encoded(&[Control::Hole { path: path(name), offset: 0, len: 1 }]),
    ]
}

#[test]
fn controls_on_reserved_names_are_refused() {
    let scene = Scene::new();
    for name in [".lock", ".clustering_id", ".paceline/incomplete", "checksums.sha1", "backups/a", "$x"] {
        for actions in all_with(name) {
            let mut connection = scene.in_extended_sync(&[delete("good"), append("good", b"good")].concat());
            connection.send(&actions);
            scene.ends(connection, "reserved name");
        }
        assert_eq!(fs::read_to_string(scene.data("good")).unwrap(), "good");
    }
    scene.leader.accept_in_sync();
}

#[test]
fn no_symbolic_link_is_followed_by_a_control() {
    let scene = Scene::prepared(|data, beside| {
        symlink(beside, data.join("folder")).unwrap();
        symlink(beside.join("victim"), data.join("file")).unwrap();
        symlink("/", data.join("root")).unwrap();
    });
    for name in ["folder/victim", "file", "root/etc/passwd", "folder/new"] {
        for actions in all_with(name) {
            let mut connection = scene.in_extended_sync(&[delete("good"), append("good", b"good")].concat());
            connection.send(&actions);
            scene.ends(connection, "symbolic link");
        }
    }
    assert!(scene.data("file").is_symlink());
    scene.leader.accept_in_sync();
}

#[test]
fn controls_that_do_not_fit_the_files_here_end_the_connection_and_change_nothing() {
    let scene = Scene::new();
    let patch = |offset, bytes: &[u8]| {
        [encoded(&[Control::PatchAt { path: path("good"), offset }]), append("good", bytes)].concat()
    };
    let truncate = |name: &str, len| encoded(&[Control::Truncate { path: path(name), len }]);
    for (actions, why) in [
        (patch(3, b"xx"), "patch of 2 bytes at 3"),
        (patch(5, b"x"), "patch of 1 bytes at 5"),
        (patch(0, &[1; 5]), "patch of 5 bytes at 0"),
        (encoded(&[Control::PatchAt { path: path("none"), offset: 0 }]), ""),
        (
            [encoded(&[Control::PatchAt { path: path("good"), offset: 0 }]), delete("good")].concat(),
            "without its bytes",
        ),
        (
            [encoded(&[Control::PatchAt { path: path("good"), offset: 0 }]), append("x", b"x")].concat(),
            "without its bytes",
        ),
        (
            [encoded(&[Control::PatchAt { path: path("good"), offset: 0 }]), truncate("good", 1)].concat(),
            "without its bytes",
        ),
        (truncate("good", 5), "truncation of good to 5 bytes"),
        (truncate("none", 0), "truncation of none, which is not here"),
        (rename("none", "good"), "rename of none, which is not here"),
        (rename("good", "good/below"), "no folder"),
    ] {
        let mut connection = scene.in_extended_sync(&[delete("good"), append("good", b"good")].concat());
        if why.is_empty() {
            // Until its bytes come it is only a word.
            connection.stream(&actions);
            connection.send(&append("none", b"x"));
            scene.ends(connection, "patch of none, which is not here");
            continue;
        }
        connection.send(&actions);
        scene.ends(connection, why);
        let marked = files(&[("good", b"good"), (".paceline/incomplete", b"")]);
        assert_eq!(files_in(&scene.data("")), marked, "{why}");
    }
    scene.leader.accept_in_sync();
}

#[test]
fn controls_out_of_order_end_the_connection() {
    let scene = Scene::new();
    let begins = || Control::SyncBegins { files: 1, bytes: 1 };
    let tell = |buckets: &[u32]| Control::Tell(buckets.to_vec());
    let (synced, fresh) = (true, false);
    for (in_sync, actions, why) in [
        (synced, encoded(&[Control::Want(0), Control::Want(0)]), "asked for out of turn"),
        (fresh, encoded(&[Control::Want(0), Control::Want(0)]), "asked for out of turn"),
        (synced, encoded(&[tell(&[0])]), "out of turn"),
        (synced, encoded(&[Control::TellEnds]), "out of turn"),
        (fresh, encoded(&[tell(&[0])]), "out of turn"),
        (fresh, encoded(&[Control::TellEnds]), "out of turn"),
        (fresh, encoded(&[Control::Want(3), tell(&[8])]), "bucket 8, which is none"),
        (fresh, encoded(&[Control::Want(3), tell(&[1, 1])]), "not the next"),
        (fresh, encoded(&[Control::Want(3), tell(&[1, 5]), tell(&[2])]), "not the next"),
        (fresh, encoded(&[Control::Want(3), tell(&[1]), Control::TellEnds, tell(&[2])]), "out of turn"),
        (fresh, encoded(&[begins()]), "before all was told"),
        (fresh, encoded(&[Control::Want(3), tell(&[1]), begins()]), "before all was told"),
        (fresh, append("$paceline/of-a-later-version", b"x"), "which this version does not know"),
        (fresh, append("a", b"x"), "before a sync began"),
        (fresh, encoded(&[Control::Empty(path("a"))]), "before a sync began"),
        (synced, encoded(&[Control::SyncEnds]), "that had not begun"),
        (
            synced,
            encoded(&[Control::PatchAt { path: path("none"), offset: 0 }, Control::MakeDurable]),
            "without its bytes",
        ),
        (synced, encoded(&[begins()]), "before all was told"),
    ] {
        let mut connection = match in_sync {
            true => scene.leader.accept_in_sync().0,
            false => scene.leader.accept_extension(&about(LONG)),
        };
        connection.send(&actions);
        scene.ends(connection, why);
        assert!(!scene.data("a").exists());
    }
    scene.leader.accept_in_sync();
}

#[test]
fn controls_with_bad_content_are_refused() {
    let scene = Scene::new();
    let named = |name: &[u8], rest: &[u8]| [&u16::try_from(name.len()).unwrap().to_le_bytes()[..], name, rest].concat();
    for (name, content, why) in [
        ("rename", named(b"a", &[]), "malformed control"),
        ("rename", named(b"../beside/victim", &named(b"a", &[])), "`..`"),
        ("rename", named(b"a", &named(b"/etc/passwd", &[])), "absolute"),
        ("empty", named(b"a/../../beside/new", &[]), "`..`"),
        ("truncate", named(b"good", &u64::MAX.to_le_bytes()), "malformed control"),
        ("patch", named(b"good", &u64::MAX.to_le_bytes()), "malformed control"),
        ("patch", named(b"\xff", &[0; 8]), "not UTF-8"),
        ("heartbeat", vec![0; 15], "malformed control"),
        ("goodbye", vec![0; 3], "malformed control"),
        ("position", vec![], ""),
    ] {
        let mut connection = scene.in_extended_stream(&[delete("good"), append("good", b"good")].concat());
        let name = format!("$paceline/{name}");
        if content.is_empty() {
            // A delete of it is a request of nothing.
            connection.stream(&delete(&name));
            connection.close_now();
            continue;
        }
        connection.send(&append(&name, &content));
        scene.ends(connection, why);
    }
    // None is held that is too long, known or not.
    for name in ["$paceline/goodbye", "$paceline/unknown"] {
        let mut connection = scene.in_extended_stream(b"");
        let length = protocol::ActionKind::Append(CONTROL_BYTES_MAX + 1);
        let mut header = Vec::new();
        protocol::encode_action_header(&mut header, &path(name), length);
        connection.send(&header);
        scene.ends(connection, "control's length");
    }
    let mut connection = scene.in_extended_stream(b"");
    connection.send(&replace("$paceline/want", b"x"));
    scene.ends(connection, "reserved name");
    // A reason is one line.
    let mut connection = scene.in_extended_stream(b"");
    connection.control(Control::Goodbye { back_in_ms: 0, reason: "a\nb".into() });
    scene.ends(connection, "a\u{fffd}b");
    scene.leader.accept_in_sync();
}

#[test]
fn any_damage_to_the_extensions_stream_is_survived() {
    let scene = Scene::new();
    let good = [
        encoded(&[Control::Want(1), Control::Tell(vec![0, 1]), Control::TellEnds]),
        encoded(&[Control::SyncBegins { files: 1, bytes: 1 }]),
        append("a", &[b'a'; 300]),
        rename("a", "b/c"),
        encoded(&[Control::PatchAt { path: path("b/c"), offset: 7 }]),
        append("b/c", b"patch"),
        encoded(&[Control::SyncEnds, Control::Position(5), Control::MakeDurable]),
        encoded(&[Control::Truncate { path: path("b/c"), len: 5 }, Control::Empty(path("d"))]),
        replace("e", b"whole"),
    ]
    .concat();
    let mut random = fastrand::Rng::with_seed(2);
    for _ in 0..100 {
        let mut bytes = good.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(bytes.len() / 2..=bytes.len()));
        let mut connection = scene.leader.accept_extension(&about(LONG));
        // The inventory is told by then, or it is out of order: both are to be survived.
        let _ = connection.out.write_all(&bytes).and_then(|()| connection.out.flush());
        let _ = connection.socket.shutdown(Shutdown::Write);
    }
    scene.nothing_outside_changed();
    scene.leader.accept_in_sync();
}

#[test]
fn an_introduction_that_is_none_is_refused() {
    let scene = Scene::new();
    for (said, why) in [
        (&u32::MAX.to_le_bytes()[..], "length of fields"),
        (&[3, 0, 0, 0, 1, 0, 9], "malformed field"),
        (&[0, 0, 0, 0], "node id 0"),
    ] {
        let mut socket = scene.leader.accept_extension_start();
        socket.write_all(&Start::Extension(VERSION).header()).unwrap();
        read_secret(&mut socket).unwrap();
        socket.write_all(&[protocol::ACCEPTED]).unwrap();
        socket.write_all(said).unwrap();
        eventually(why, || scene.follower.status().last_disconnect.is_some_and(|said| said.contains(why)));
    }
    scene.leader.accept_in_sync();
}

#[test]
fn any_damage_to_a_capture_is_survived() {
    let scene = Scene::new();
    let said = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/lavinmq-2.9.1-leader.bin")).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..150 {
        let mut bytes = said[1..].to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(bytes.len() / 2..=bytes.len()));
        let mut socket = scene.leader.accept_start();
        read_secret(&mut socket).unwrap();
        socket.write_all(&[protocol::ACCEPTED]).unwrap();
        read_node_id(&mut socket).unwrap();
        // It may close as soon as it sees the damage.
        let _ = socket.write_all(&bytes);
        let _ = socket.shutdown(Shutdown::Write);
    }
    scene.nothing_outside_changed();
    scene.comes_back();
    assert_eq!(files_in(&scene.outside.path().join("data")).len(), 1);
}
