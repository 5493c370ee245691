//! The follower against a leader that speaks the extension, and does what it should.

mod support;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use paceline::follower::State;
use paceline::protocol::extension::{CHUNK_BYTES, Control, Fields, Message, Start, VERSION, field};
use paceline::protocol::{ACCEPTED, REFUSED, read_node_id, read_secret};
use paceline::{EpochPosition, Error, Follower, FollowerConfig, Protocol, Secret, StreamPosition};
use support::extension_leader::{LONG, about, encoded, held, path};
use support::fake_leader::{FakeLeader, Files, append, config, delete, eventually, files, files_in, replace, started};
use tempfile::TempDir;

const CHUNK: usize = 256 << 10;

fn incomplete(dir: &TempDir) -> bool {
    dir.path().join(".paceline/incomplete").exists()
}

#[track_caller]
fn stops_promptly(follower: &Follower) {
    let began = Instant::now();
    follower.stop();
    assert!(began.elapsed() < Duration::from_secs(5), "stopping took {:?}", began.elapsed());
}

#[track_caller]
fn says(follower: &Follower, why: &str) {
    eventually(why, || follower.status().last_disconnect.is_some_and(|said| said.contains(why)));
}

// --- Negotiation ------------------------------------------------------------------------------------------------------

#[test]
fn a_leader_that_closes_without_an_answer_is_not_taken_for_one_of_1_0_0() {
    let (leader, dir) = (TcpListener::bind("127.0.0.1:0").unwrap(), TempDir::new().unwrap());
    let mut config =
        FollowerConfig::new(leader.local_addr().unwrap().to_string(), dir.path(), Secret::new("s").unwrap());
    (config.retry_delay_min, config.retry_delay_max) = (Duration::from_millis(1), Duration::from_millis(20));
    let follower = Follower::start(config).unwrap();
    for _ in 0..3 {
        let (mut killed, _) = leader.accept().unwrap();
        assert_eq!(Start::read(&mut killed).unwrap(), Start::Extension(VERSION));
    }
    stops_promptly(&follower);
}

#[test]
fn both_sides_introduce_themselves() {
    let (leader, _dir, follower) = started();
    let fields = about(LONG)
        .with(field::LAST_EVICTION, b"its queue\nwas full")
        .with(field::ADMITTED_IN_MS, &1500_u32.to_le_bytes());
    let mut connection = leader.accept_extension(&fields);
    assert_eq!(connection.secret, b"s3cret");
    assert_eq!(connection.fields.id().unwrap(), follower.id());
    eventually("waiting", || follower.status().state == State::Waiting);
    let status = follower.status();
    assert_eq!(status.last_eviction.as_deref(), Some("its queue\u{fffd}was full"));
    assert_eq!((status.admitted_in, status.connections), (Some(Duration::from_millis(1500)), 1));
    assert!(connection.inventory().is_empty());
    assert_eq!(follower.status().admitted_in, None);
    stops_promptly(&follower);
}

#[test]
fn a_leader_that_does_not_know_the_extension_is_spoken_to_in_1_0_0_at_once_and_asked_again() {
    let listed = files(&[("a", b"1")]);
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    let mut config = config(&leader, dir.path());
    // Falling back is no failure.
    config.retry_delay_min = LONG;
    config.retry_delay_max = LONG;
    config.once = true;
    // Some end a frame that they never began.
    for end in [&[][..], &[0; 4]] {
        let follower = Follower::start(config.clone()).unwrap();
        let mut socket = leader.accept_extension_start();
        socket.write_all(&Start::V1.header()).unwrap();
        socket.write_all(end).unwrap();
        drop(socket);
        leader.accept().sync(&listed);
        follower.wait(None).unwrap().unwrap();
    }
    assert_eq!(files_in(dir.path()), listed);
}

#[test]
fn what_a_leader_speaks_is_remembered_until_a_connection_in_sync_ends() {
    let (leader, _dir, follower) = started();
    let mut socket = leader.accept_extension_start();
    socket.write_all(&Start::V1.header()).unwrap();
    for attempt in 0..3 {
        // Not asked again after a failure, and then ...
        let mut socket = leader.accept_raw();
        assert_eq!(Start::read(&mut socket).unwrap(), Start::V1, "attempt {attempt}");
    }
    let mut connection = leader.accept();
    connection.sync(&Files::new());
    eventually("streaming", || follower.status().state == State::Streaming);
    assert_eq!((follower.status().lag_bytes, follower.status().durable_bytes), (None, 0));
    connection.close();
    // ... when it may have been started anew.
    leader.accept_in_sync();
}

#[test]
fn a_leader_of_an_earlier_version_is_spoken_to_in_1_0_0() {
    let (leader, _dir, follower) = started();
    let mut socket = leader.accept_extension_start();
    socket.write_all(&Start::Extension(VERSION - 1).header()).unwrap();
    let mut connection = leader.accept();
    connection.sync(&Files::new());
    eventually("streaming", || follower.status().state == State::Streaming);
}

#[test]
fn who_has_spoken_the_extension_is_talked_down_for_one_connection_only_and_not_at_all_if_it_is_not_to_be() {
    let (leader, dir, follower) = started();
    let mut connection = leader.accept_extension(&about(LONG).with(field::DATA_SET, &[7; 16]));
    connection.inventory();
    connection.sync(b"");
    drop(connection);
    let answers_1_0_0 = || leader.accept_extension_start().write_all(&Start::V1.header()).unwrap();
    let speaks_1_0_0 = || assert_eq!(Start::read(&mut leader.accept_raw()).unwrap(), Start::V1);
    for _ in 0..2 {
        answers_1_0_0();
        speaks_1_0_0();
    }
    stops_promptly(&follower);
    let follower = Follower::start(config(&leader, dir.path())).unwrap();
    for _ in 0..2 {
        answers_1_0_0();
        speaks_1_0_0();
    }
    stops_promptly(&follower);
    let mut config = config(&leader, dir.path());
    config.protocol = Protocol::Extension;
    let follower = Follower::start(config).unwrap();
    for _ in 0..3 {
        answers_1_0_0();
    }
    says(&follower, "only that is to be spoken");
}

#[test]
fn the_extension_can_be_switched_off() {
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    let mut config = config(&leader, dir.path());
    config.protocol = Protocol::V1;
    let _follower = Follower::start(config).unwrap();
    assert_eq!(Start::read(&mut leader.accept_raw()).unwrap(), Start::V1);
}

#[test]
fn a_later_version_that_was_not_offered_and_the_own_id_are_refused() {
    let (leader, _dir, follower) = started();
    let mut socket = leader.accept_extension_start();
    socket.write_all(&Start::Extension(VERSION + 1).header()).unwrap();
    says(&follower, &format!("version {}", VERSION + 1));
    let mut socket = leader.accept_extension_start();
    socket.write_all(b"HTTP/1.1").unwrap();
    says(&follower, "does not speak");
    leader.accept_extension(&Fields::default().with(field::ID, &follower.id().get().to_le_bytes()));
    says(&follower, "same id");
    let mut socket = leader.accept_extension_start();
    socket.write_all(&Start::Extension(VERSION).header()).unwrap();
    read_secret(&mut socket).unwrap();
    socket.write_all(&[REFUSED]).unwrap();
    assert!(matches!(follower.wait(None), Some(Err(Error::SecretRefused))));
}

#[test]
fn a_leader_that_spoke_the_extension_and_then_only_closes_is_not_asked_for_less() {
    let (leader, _dir, follower) = started();
    let (connection, _) = leader.accept_in_sync();
    drop(connection);
    drop(leader.accept_extension_start());
    leader.accept_in_sync();
    drop(follower);
}

#[test]
fn a_plain_handshake_follows_a_fallback() {
    let (leader, _dir, follower) = started();
    let mut socket = leader.accept_start();
    assert_eq!(read_secret(&mut socket).unwrap(), b"s3cret");
    socket.write_all(&[ACCEPTED]).unwrap();
    assert_eq!(read_node_id(&mut socket).unwrap(), follower.id());
}

// --- Inventory and sync -----------------------------------------------------------------------------------------------

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(length as u64).fill(&mut bytes);
    bytes
}

/// Changes a byte of a file in its place, as often as it takes for its times to change.
fn damage(file: &Path, at: usize) {
    let before = fs::metadata(file).unwrap();
    let mut bytes = fs::read(file).unwrap();
    eventually("another time of change", || {
        bytes[at] = bytes[at].wrapping_add(1);
        let mut out = fs::File::options().write(true).open(file).unwrap();
        out.write_all(&bytes).unwrap();
        let now = fs::metadata(file).unwrap();
        (now.mtime_nsec(), now.ctime_nsec()) != (before.mtime_nsec(), before.ctime_nsec())
    });
}

#[test]
fn an_inventory_tells_every_file_and_what_is_known_is_not_read_again() {
    let (leader, dir, follower) = started();
    let (one, two) = (noise(3 * CHUNK + 5), noise(CHUNK));
    let mut connection = leader.accept_extension(&about(LONG));
    assert!(connection.inventory().is_empty());
    connection
        .sync(&[append("logs/one", &one), append("two", &two), encoded(&[Control::Empty(path("none"))])].concat());
    let told = vec![held("logs/one", &one), held("none", b""), held("two", &two)];
    drop(connection);
    let all = (one.len() + two.len()) as u64;
    for hashed in [all, 0] {
        let (mut connection, inventory) = leader.accept_in_sync();
        assert_eq!(inventory, told);
        let sync = follower.status().sync;
        assert_eq!((sync.bytes_hashed, sync.files_hashed, sync.files_listed), (hashed, 3, 3));
        connection.control(Control::Goodbye { back_in_ms: 0, reason: String::new() });
    }
    // What was appended since: the part of a chunk before it is read again, and it.
    let (mut connection, _) = leader.accept_in_sync();
    connection.stream(&append("logs/one", b"more"));
    connection.stream(&encoded(&[Control::Rename { from: path("two"), to: path("three") }]));
    drop(connection);
    let (_connection, inventory) = leader.accept_in_sync();
    let grown = [&one[..], b"more"].concat();
    assert_eq!(inventory, [held("logs/one", &grown), held("none", b""), held("three", &two)]);
    assert_eq!(follower.status().sync.bytes_hashed, 9);
    drop(follower);
    assert_eq!(files_in(dir.path()), files(&[("logs/one", &grown), ("none", b""), ("three", &two)]));
}

#[test]
fn damage_by_hand_is_told_and_mended_by_a_patch() {
    let (leader, dir, follower) = started();
    let content = noise(4 * CHUNK);
    let mut connection = leader.accept_extension(&about(LONG));
    connection.inventory();
    connection.sync(&append("a", &content));
    drop(connection);
    let (mut connection, _) = leader.accept_in_sync();
    // While the file is open, between two appends of ours.
    connection.stream(&append("a", b"x"));
    damage(&dir.path().join("a"), CHUNK + 3);
    connection.stream(&append("a", b"y"));
    drop(connection);
    let mut connection = leader.accept_extension(&about(LONG));
    let [told] = &connection.inventory()[..] else { panic!("one file") };
    let whole = [&content[..], b"xy"].concat();
    let whole = held("a", &whole);
    let differing: Vec<_> = (0..5).filter(|&chunk| told.digests[chunk] != whole.digests[chunk]).collect();
    assert_eq!((differing, told.len), (vec![1], whole.len));
    assert_eq!(follower.status().sync.bytes_hashed, whole.len);
    let patch = encoded(&[Control::PatchAt { path: path("a"), offset: CHUNK_BYTES }]);
    connection.sync(&[patch, append("a", &content[CHUNK..2 * CHUNK])].concat());
    drop(connection);
    let (_connection, inventory) = leader.accept_in_sync();
    assert_eq!(inventory, [whole]);
    // What comes before the patch was not read again.
    assert_eq!(follower.status().sync.bytes_hashed, 3 * CHUNK_BYTES + 2);
}

#[test]
fn a_change_that_shows_in_no_length_and_no_time_of_change_is_found_by_a_follower_that_was_started_anew() {
    let (leader, dir, follower) = started();
    let content = noise(2 * CHUNK + 1);
    let mut connection = leader.accept_extension(&about(LONG));
    connection.inventory();
    connection.sync(&append("a", &content));
    drop(connection);
    leader.accept_in_sync();
    stops_promptly(&follower);
    // All that anybody can set is as it was.
    let modified = fs::metadata(dir.path().join("a")).unwrap().modified().unwrap();
    damage(&dir.path().join("a"), CHUNK);
    fs::File::options().write(true).open(dir.path().join("a")).unwrap().set_modified(modified).unwrap();
    let follower = Follower::start(config(&leader, dir.path())).unwrap();
    let (_connection, inventory) = leader.accept_in_sync();
    assert_ne!(inventory, [held("a", &content)]);
    assert_eq!(follower.status().sync.bytes_hashed, content.len() as u64);
}

#[test]
fn what_is_staged_takes_the_files_place_when_it_is_whole_or_never_does() {
    let (leader, dir, follower) = started();
    let (mut connection, _) = leader.accept_in_sync();
    let content = || fs::read_to_string(dir.path().join("a")).unwrap();
    connection.stream(&append("a", b"as it was"));
    let begun = [encoded(&[Control::Stage(path("a"))]), append("a", b"new "), append("a", b"content")].concat();
    connection.stream(&begun);
    assert_eq!(content(), "as it was");
    connection.stream(&encoded(&[Control::Unstage]));
    connection.stream(&append("a", b", and more"));
    assert_eq!(content(), "as it was, and more");
    assert!(!dir.path().join(".paceline/incoming").exists());
    connection.stream(&[begun.clone(), encoded(&[Control::Place]), append("a", b".")].concat());
    assert_eq!(content(), "new content.");
    // Cut off in the middle.
    connection.stream(&begun);
    drop(connection);
    let (mut connection, inventory) = leader.accept_in_sync();
    assert_eq!(inventory, [held("a", b"new content.")]);
    // Nothing comes in between.
    connection.send(&[begun.clone(), append("b", b"of another")].concat());
    connection.wait_closed();
    says(&follower, "within the replacement of a");
    for control in [Control::Empty(path("a")), Control::MakeDurable, Control::Stage(path("b"))] {
        let (mut connection, _) = leader.accept_in_sync();
        connection.send(&[begun.clone(), encoded(&[control])].concat());
        connection.wait_closed();
        says(&follower, "within a replacement, or without one");
    }
    let (mut connection, inventory) = leader.accept_in_sync();
    assert_eq!(inventory, [held("a", b"new content.")]);
    connection.send(&encoded(&[Control::Place]));
    connection.wait_closed();
}

#[test]
fn the_directory_is_marked_from_the_beginning_of_a_sync_until_it_is_durable() {
    let (leader, dir, follower) = started();
    let mut connection = leader.accept_extension(&about(LONG));
    connection.inventory();
    assert_eq!(follower.status().state, State::Syncing);
    assert!(!incomplete(&dir));
    let begin = connection.control(Control::SyncBegins { files: 2, bytes: 30 });
    connection.wait_written(begin + 1);
    assert!(incomplete(&dir));
    connection.stream(&[append("a", b"0123456789"), append("deep/b", b"0123")].concat());
    let sync = follower.status().sync;
    assert_eq!((sync.files_total, sync.bytes_total), (Some(2), Some(30)));
    assert_eq!((sync.files_received, sync.bytes_received), (2, 14));
    connection.stream(&[delete("deep/b"), encoded(&[Control::RemoveItem(path("deep"))])].concat());
    assert_eq!(follower.status().sync.files_deleted, 1);
    // A connection that is lost leaves the mark, and so does a stop.
    drop(connection);
    let mut connection = leader.accept_extension(&about(LONG));
    assert_eq!(connection.inventory(), [held("a", b"0123456789")]);
    assert!(incomplete(&dir));
    stops_promptly(&follower);
    assert!(incomplete(&dir));
    let follower = Follower::start(config(&leader, dir.path())).unwrap();
    let (mut connection, _) = leader.accept_in_sync();
    eventually("in sync", || follower.status().state == State::Streaming);
    assert!(!incomplete(&dir));
    // A leader that asks again, on the same connection.
    assert_eq!(connection.inventory(), [held("a", b"0123456789")]);
    connection.sync(&append("a", b"!"));
    assert!(!incomplete(&dir));
    assert_eq!(files_in(dir.path()), files(&[("a", b"0123456789!")]));
}

#[test]
fn once_ends_when_the_sync_is_durable_and_its_marks_are_sent() {
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    let mut config = config(&leader, dir.path());
    config.once = true;
    let follower = Follower::start(config).unwrap();
    let mut connection = leader.accept_extension(&about(LONG));
    connection.inventory();
    connection.sync(&append("a", b"1"));
    follower.wait(None).unwrap().unwrap();
    assert!(!incomplete(&dir));
    assert_eq!(files_in(dir.path()), files(&[("a", b"1")]));
}

#[test]
fn empty_folders_make_room_for_files() {
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
    let _follower = Follower::start(config(&leader, dir.path())).unwrap();
    let mut connection = leader.accept_extension(&about(LONG));
    connection.inventory();
    connection.sync(&append("a", b"a file"));
    assert_eq!(files_in(dir.path()), files(&[("a", b"a file")]));
}

#[test]
fn a_large_inventory_goes_out_while_heartbeats_come_in() {
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    leader.shrink_buffers();
    let folder = vec!["x".repeat(250); 4].join("/");
    fs::create_dir_all(dir.path().join(&folder)).unwrap();
    for n in 0..1500 {
        fs::write(dir.path().join(format!("{folder}/{n:05}")), "").unwrap();
    }
    fs::write(dir.path().join(".clustering_id"), "abc").unwrap();
    let _follower = Follower::start(config(&leader, dir.path())).unwrap();
    let mut connection = leader.accept_extension(&about(LONG));
    connection.control(Control::Want(0));
    connection.control(Control::Tell(vec![0]));
    connection.control(Control::TellEnds);
    // More than the sockets hold, and none of it read: only a follower that reads on takes all of them.
    let heartbeats: Vec<_> = (0..200).map(|at| Control::Heartbeat { position: at, clock_us: at }).collect();
    for _ in 0..200 {
        connection.send(&encoded(&heartbeats));
    }
    let mut told = 0;
    loop {
        match connection.message() {
            Message::Inventory(files) => told += files.len(),
            Message::InventoryEnd => break,
            _ => {}
        }
    }
    assert_eq!(told, 1500);
    connection.sync(b"");
}

// --- Foreign directories ----------------------------------------------------------------------------------------------

#[test]
fn a_foreign_directory_is_refused_before_a_file_of_it_goes() {
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    let mine = files(&[("letters", b"dear mum"), ("checksums.sha1", b"?")]);
    for (name, content) in &mine {
        fs::write(dir.path().join(name), content).unwrap();
    }
    for _ in 0..2 {
        let follower = Follower::start(config(&leader, dir.path())).unwrap();
        let mut connection = leader.accept_extension(&about(LONG));
        assert_eq!(connection.inventory().len(), 1);
        connection.control(Control::SyncBegins { files: 0, bytes: 0 });
        connection.send(&delete("letters"));
        match follower.wait(None).unwrap() {
            Err(Error::ForeignDirectory { example, .. }) => assert_eq!(example.as_str(), "letters"),
            other => panic!("{other:?}"),
        }
        assert_eq!(files_in(dir.path()), mine, "and no mark");
        assert!(!dir.path().join(".clustering_id").exists());
    }
    let mut config = config(&leader, dir.path());
    config.adopt = paceline::Adopt::Nobodys;
    let _follower = Follower::start(config).unwrap();
    let mut connection = leader.accept_extension(&about(LONG));
    connection.inventory();
    connection.sync(&delete("letters"));
    assert_eq!(files_in(dir.path()), Files::new());
}

#[test]
fn a_seed_copy_becomes_the_followers() {
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    fs::write(dir.path().join("a"), "seed").unwrap();
    fs::write(dir.path().join("checksums.sha1"), "stale").unwrap();
    let follower = Follower::start(config(&leader, dir.path())).unwrap();
    let mut connection = leader.accept_extension(&about(LONG));
    connection.inventory();
    let begin = connection.control(Control::SyncBegins { files: 2, bytes: 2 });
    connection.wait_written(begin + 1);
    assert!(!incomplete(&dir), "marked before the first change");
    // The leader's own files come and go.
    connection
        .stream(&[append("a", b"!"), append("b", b"?"), delete("b"), delete("a"), append("a", b"seed!")].concat());
    assert!(incomplete(&dir));
    let end = connection.control(Control::SyncEnds);
    connection.wait_durable(end);
    assert!(incomplete(&dir), "the mark has gone before what changed during the sync has come");
    connection.stream(&append("b", b"new"));
    assert!(incomplete(&dir) && follower.status().state == State::Syncing);
    let end = connection.control(Control::Position(7));
    connection.wait_durable(end);
    assert!(!incomplete(&dir) && dir.path().join(".clustering_id").exists());
    assert_eq!(files_in(dir.path()), files(&[("a", b"seed!"), ("b", b"new")]));
}

// --- The stream -------------------------------------------------------------------------------------------------------

#[test]
fn every_action_of_the_extension_is_applied() {
    let (leader, dir, follower) = started();
    let (mut connection, _) = leader.accept_in_sync();
    let rename = |from: &str, to: &str| encoded(&[Control::Rename { from: path(from), to: path(to) }]);
    let truncate = |name: &str, len| encoded(&[Control::Truncate { path: path(name), len }]);
    let empty = |name: &str| encoded(&[Control::Empty(path(name))]);
    let actions = [
        append("log", b"first file"),
        // Handles of both names are forgotten.
        append("old/deep/1", b"goes"),
        rename("log", "old/deep/1"),
        append("log", b"second file"),
        append("old/deep/1", b", renamed"),
        truncate("log", 6),
        append("log", b"!"),
        append("log", b"."),
        empty("new/empty"),
        append("filled", b"x"),
        empty("filled"),
        append("filled", b"anew"),
        replace("again", b"replaced"),
        rename("again", "again"),
    ]
    .concat();
    let content = files(&[
        ("old/deep/1", b"first file, renamed"),
        ("log", b"second!."),
        ("new/empty", b""),
        ("filled", b"anew"),
        ("again", b"replaced"),
    ]);
    for size in [actions.len(), 1, 7] {
        for piece in actions.chunks(size) {
            connection.send(piece);
        }
        connection.wait_written(connection.sent);
        assert_eq!(files_in(dir.path()), content, "pieces of {size}");
        let gone: Vec<u8> = content.keys().flat_map(|name| delete(name)).collect();
        let folders = ["old/deep", "old", "new"].map(|name| Control::RemoveItem(path(name)));
        connection.stream(&[gone, encoded(&folders)].concat());
        assert_eq!(files_in(dir.path()), Files::new());
    }
    connection.stream(&[append("$paceline/of-a-later-version?", b"?"), delete("$probe")].concat());
    eventually("counted", || follower.status().applied_bytes == connection.sent);
}

#[test]
fn durable_is_what_was_asked_to_be_and_no_more() {
    let (leader, dir, follower) = started();
    let (mut connection, _) = leader.accept_in_sync();
    let synced = connection.marks.durable;
    connection.stream(&[append("a", b"1"), replace("deep/b", b"2"), append("c", b"3"), delete("c")].concat());
    assert_eq!(connection.marks.durable, synced, "nobody asked");
    let mut asked = Vec::new();
    for n in 0..50 {
        connection.send(&append(&format!("many/{n}"), b"x"));
        asked.push(connection.control(Control::MakeDurable));
        connection.send(&append("a", b"later"));
    }
    let mut seen = Vec::new();
    while connection.marks.durable < asked[49] {
        connection.message();
        seen.push(connection.marks.durable);
    }
    assert!(seen.iter().all(|mark| *mark == synced || asked.contains(mark)), "{seen:?} of {asked:?}");
    connection.wait_written(connection.sent);
    assert_eq!(connection.marks.durable, asked[49]);
    eventually("told", || follower.status().durable_bytes == asked[49]);
    assert_eq!(fs::read_dir(dir.path().join("many")).unwrap().count(), 50);
    // More files than are flushed one by one.
    let many: Vec<u8> = (0..300).flat_map(|n| append(&format!("more/{}/{n}", n % 7), b"x")).collect();
    connection.send(&many);
    let mark = connection.control(Control::MakeDurable);
    connection.wait_durable(mark);
}

#[test]
fn marks_of_many_small_blocks_add_up() {
    let (leader, _dir, follower) = started();
    let (mut connection, _) = leader.accept_in_sync();
    for n in 0..3000_u32 {
        connection.send(&append(&format!("f{}", n % 7), &n.to_le_bytes()));
    }
    connection.wait_written(connection.sent);
    assert_eq!((connection.marks.received, connection.marks.written), (connection.sent, connection.sent));
    eventually("told", || follower.status().acknowledged_bytes == connection.sent);
}

#[test]
fn a_failed_write_ends_the_connection_and_nothing_after_it_is_called_written() {
    let (leader, dir, follower) = started();
    let (mut connection, _) = leader.accept_in_sync();
    connection.stream(&append("a", b"1"));
    fs::create_dir(dir.path().join("b")).unwrap();
    fs::write(dir.path().join("b/full"), "").unwrap();
    let written = connection.marks.written;
    connection.send(&append("b", b"x"));
    connection.wait_closed();
    assert_eq!(connection.marks.written, written);
    says(&follower, "/b: ");
    // The folder is in nobody's way when it is empty.
    let mut connection = leader.accept_extension(&about(LONG));
    assert_eq!(connection.inventory(), [held("a", b"1"), held("b/full", b"")]);
    connection.sync(&[delete("b/full"), append("b", b"x")].concat());
    assert_eq!(files_in(dir.path()), files(&[("a", b"1"), ("b", b"x")]));
}

#[test]
fn lag_is_known_in_bytes_and_time() {
    let (leader, _dir, follower) = started();
    let mut connection = leader.accept_extension(&about(LONG));
    connection.inventory();
    connection.stream(&encoded(&[Control::Heartbeat { position: 1000, clock_us: 5 }]));
    assert_eq!((follower.status().lag_bytes, follower.status().lag), (None, None), "where it is was not told");
    assert_eq!(follower.status().leader_clock_us, Some(5));
    connection.sync(&[]);
    connection.stream(&encoded(&[Control::Position(700)]));
    assert_eq!(follower.status().lag_bytes, Some(300));
    let first = follower.status().lag.unwrap();
    eventually("time passes", || follower.status().lag.unwrap() > first);
    let action = append("a", &[1; 100]);
    let rename = encoded(&[Control::Rename { from: path("a"), to: path("b") }]);
    connection.stream(&action);
    connection.stream(&rename);
    assert_eq!(follower.status().lag_bytes, Some(300 - (action.len() + rename.len()) as u64));
    connection.stream(&append("b", &[1; 300]));
    assert_eq!((follower.status().lag_bytes, follower.status().lag), (Some(0), Some(Duration::ZERO)));
    drop(connection);
    let _connection = leader.accept_extension(&about(LONG));
    eventually("a new connection", || follower.status().connections == 2);
    assert_eq!(follower.status().lag_bytes, None);
}

// --- Heartbeats, silence and goodbyes ---------------------------------------------------------------------------------

#[test]
fn heartbeats_are_sent_when_nothing_else_is() {
    let (leader, _dir, _follower) = started();
    let mut connection = leader.accept_extension(&about(Duration::from_millis(20)));
    while connection.heartbeats < 3 {
        connection.message();
    }
}

#[test]
fn a_silent_leader_is_given_up_and_one_that_sends_heartbeats_is_not() {
    let (leader, _dir, follower) = started();
    let mut connection = leader.accept_extension(&about(Duration::from_millis(20)));
    // For longer than silence would be borne.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        connection.control(Control::Heartbeat { position: 0, clock_us: 0 });
        connection.message();
    }
    assert_eq!(follower.status().last_disconnect, None);
    connection.wait_closed();
    says(&follower, "the leader is stalled: its system answers, it does not");
}

#[test]
fn a_goodbye_says_why_and_when_to_come_back() {
    let (leader, _dir, follower) = started();
    let (mut connection, _) = leader.accept_in_sync();
    let began = Instant::now();
    connection.control(Control::Goodbye { back_in_ms: 700, reason: "the queue is full".into() });
    connection.wait_closed();
    says(&follower, "the leader let this follower go: the queue is full");
    assert_eq!(follower.status().last_eviction.as_deref(), Some("the queue is full"));
    let _connection = leader.accept_extension(&about(LONG));
    assert!(began.elapsed() >= Duration::from_millis(700), "back after {:?}", began.elapsed());
    // It is kept, whatever comes.
    assert_eq!(follower.status().last_eviction.as_deref(), Some("the queue is full"));
}

#[test]
fn stopping_is_prompt_at_every_stage() {
    let (leader, _dir, follower) = started();
    let _socket = leader.accept_extension_start();
    stops_promptly(&follower);

    let (leader, _dir, follower) = started();
    let _connection = leader.accept_extension(&about(LONG));
    eventually("waiting", || follower.status().state == State::Waiting);
    stops_promptly(&follower);

    // While it tells an inventory that nobody reads.
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    leader.shrink_buffers();
    // It takes little room, and long to read: something is in each of its chunks.
    let sparse = fs::File::create(dir.path().join("sparse")).unwrap();
    (0..16_384).for_each(|chunk| sparse.write_all_at(b"x", chunk * (256 << 10)).unwrap());
    let follower = Follower::start(config(&leader, dir.path())).unwrap();
    let mut connection = leader.accept_extension(&about(LONG));
    connection.control(Control::Want(0));
    eventually("hashing", || follower.status().sync.bytes_hashed > 0);
    stops_promptly(&follower);

    let (leader, _dir, follower) = started();
    let (mut connection, _) = leader.accept_in_sync();
    connection.stream(&append("a", b"1"));
    stops_promptly(&follower);

    // While it stays away.
    let (leader, _dir, follower) = started();
    let (mut connection, _) = leader.accept_in_sync();
    connection.control(Control::Goodbye { back_in_ms: u32::MAX, reason: String::new() });
    says(&follower, "let this follower go");
    stops_promptly(&follower);
}

// --- Positions --------------------------------------------------------------------------------------------------------

#[test]
fn how_far_the_copy_has_come_counts_from_a_whole_sync_on_and_only_in_the_stream_of_a_leader_that_says_its_term() {
    let (leader, dir, follower) = started();
    let at = |position| Some(EpochPosition { epoch: 7, position: StreamPosition(position) });
    let kept = dir.path().join(".paceline/position");
    let mut connection = leader.accept_extension(&about(LONG).with(field::TERM, &7_u64.to_le_bytes()));
    assert!(connection.inventory().is_empty());
    connection.control(Control::SyncBegins { files: 1, bytes: 0 });
    connection.stream(&append("log", b"1234"));
    connection.control(Control::SyncEnds);
    assert_eq!(follower.status().position, None, "what changed during the sync is not there yet");
    let end = connection.control(Control::Position(1000));
    connection.wait_durable(end);
    assert_eq!((follower.status().position, kept.exists()), (at(1000), true));
    // Heartbeats are no part of the stream.
    let more = append("log", b"56");
    connection.control(Control::Heartbeat { position: 5000, clock_us: 0 });
    connection.stream(&more);
    assert_eq!(follower.status().position, at(1000 + more.len() as u64));
    connection.inventory();
    connection.control(Control::SyncBegins { files: 0, bytes: 0 });
    eventually("a sync has begun", || follower.status().position.is_none());
    connection.control(Control::SyncEnds);
    let end = connection.control(Control::Position(2000));
    connection.wait_durable(end);
    assert_eq!(follower.status().position, at(2000));
    drop(connection);
    follower.stop();
    drop(follower);
    let follower = Follower::start(config(&leader, dir.path())).unwrap();
    assert_eq!(follower.status().position, at(2000), "it was stopped");
    let mut connection = leader.accept_extension(&about(LONG));
    assert_eq!(connection.inventory(), [held("log", b"123456")]);
    assert_eq!((follower.status().position, kept.exists()), (at(2000), true), "nothing has changed yet");
    connection.sync(b"");
    assert_eq!((follower.status().position, kept.exists()), (None, false));
    stops_promptly(&follower);
}
