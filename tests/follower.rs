//! The follower against a leader that does what it should.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use paceline::follower::State;
use paceline::protocol::{self, read_name, read_node_id, read_secret, read_start_header};
use paceline::{Error, Follower, FollowerConfig, Protocol, Secret};
use support::fake_leader::{
    FakeLeader, Files, append, config, delete, eventually, files, files_in, replace, sha1, started,
};
use tempfile::TempDir;

fn write(root: &Path, name: &str, content: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn incomplete(dir: &TempDir) -> bool {
    dir.path().join(".paceline/incomplete").exists()
}

#[track_caller]
fn stops_promptly(follower: &Follower) {
    let began = Instant::now();
    follower.stop();
    // Of these seconds a busy machine may need some; a thread that hangs needs more.
    assert!(began.elapsed() < Duration::from_secs(5), "stopping took {:?}", began.elapsed());
    assert!(matches!(follower.wait(Some(Duration::ZERO)), Some(Ok(()))));
    assert_eq!(follower.status().state, State::Stopped);
}

#[test]
fn a_directory_that_is_lost_between_two_connections_is_not_followed_into() {
    let (leader, above) = (TcpListener::bind("127.0.0.1:0").unwrap(), TempDir::new().unwrap());
    let dir = above.path().join("copy");
    let address = leader.local_addr().unwrap().to_string();
    let mut config = FollowerConfig::new(address, &dir, Secret::new("s3cret").unwrap());
    config.protocol = Protocol::V1;
    (config.retry_delay_min, config.retry_delay_max) = (Duration::from_secs(4), Duration::from_secs(4));
    let follower = Follower::start(config).unwrap();
    drop(leader.accept().unwrap());
    eventually("the connection ends", || follower.status().last_disconnect.is_some());
    fs::rename(&dir, above.path().join("away")).unwrap();
    fs::create_dir(&dir).unwrap();
    let ended = follower.wait(Some(Duration::from_secs(60)));
    assert!(matches!(ended, Some(Err(Error::DirectoryLost { .. }))), "{ended:?}");
    leader.set_nonblocking(true).unwrap();
    assert!(leader.accept().is_err(), "it connected");
}

// --- Captures of real nodes -------------------------------------------------------------------------------------------

fn vector(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

/// What the real follower said: requests of both rounds, and the sum of its acknowledgements.
fn real_followers_words(version: &str) -> ([Vec<String>; 2], usize) {
    let bytes = fs::read(vector(&format!("lavinmq-{version}-follower.bin"))).unwrap();
    let mut rest = &bytes[..];
    read_start_header(&mut rest).unwrap();
    read_secret(&mut rest).unwrap();
    read_node_id(&mut rest).unwrap();
    let rounds = [read_requests(&mut rest), read_requests(&mut rest)];
    assert_eq!(rest.len() % 8, 0);
    let acknowledged = rest.chunks(8).map(|count| u64::from_le_bytes(count.try_into().unwrap())).sum::<u64>();
    (rounds, usize::try_from(acknowledged).unwrap())
}

fn read_requests(from: &mut impl Read) -> Vec<String> {
    std::iter::from_fn(|| read_name(from).unwrap()).map(|name| name.to_string()).collect()
}

/// Name, length and SHA-1 of each file of a `*-result.json`: two strings and a number a file, without escapes.
fn expected(version: &str) -> Vec<(String, usize, String)> {
    let text = fs::read_to_string(vector(&format!("lavinmq-{version}-result.json"))).unwrap();
    let parts: Vec<&str> = text.split('"').collect();
    let file = |file: &[&str]| {
        let length = file[1].trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
        (file[0].to_owned(), length, file[2].to_owned())
    };
    parts[1..].chunks_exact(4).map(file).collect()
}

fn replay(version: &str) {
    let (leader, dir, follower) = started();
    let mut socket = leader.accept_start();
    let said = fs::read(vector(&format!("lavinmq-{version}-leader.bin"))).unwrap();
    let (answer, frame) = said.split_first().unwrap();
    assert_eq!(read_secret(&mut socket).unwrap(), b"s3cret");
    socket.write_all(&[*answer]).unwrap();
    assert_eq!(read_node_id(&mut socket).unwrap(), follower.id());
    socket.write_all(frame).unwrap();
    // The content is in the order of the real follower's requests, which is the list's: so must ours be.
    let (rounds, acknowledged) = real_followers_words(version);
    assert_eq!([read_requests(&mut socket), read_requests(&mut socket)], rounds);
    let mut rest = acknowledged;
    while rest > 0 {
        let mut count = [0; 8];
        socket.read_exact(&mut count).unwrap();
        rest = rest.checked_sub(usize::try_from(i64::from_le_bytes(count)).unwrap()).expect("acknowledged too much");
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let found: Vec<_> =
        files_in(dir.path()).into_iter().map(|(name, content)| (name, content.len(), hex(&sha1(&content)))).collect();
    assert_eq!(found, expected(version));
    assert_eq!(follower.status().applied_bytes, acknowledged as u64);
    follower.stop();
    let mut more = Vec::new();
    socket.read_to_end(&mut more).unwrap();
    assert!(more.is_empty(), "acknowledged more than there was");
}

#[test]
fn a_capture_of_lavinmq_2_9_1_gives_exactly_its_files() {
    assert_eq!(real_followers_words("2.9.1").1, 105_463);
    replay("2.9.1");
}

#[test]
fn a_capture_of_lavinmq_2_7_3_gives_exactly_its_files() {
    replay("2.7.3");
}

// --- Full sync --------------------------------------------------------------------------------------------------------

#[test]
fn a_sync_moves_only_what_differs_and_deletes_what_is_not_listed() {
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    for (name, content) in [
        ("same", "same"),
        ("deep/same", "same too"),
        ("deep/old", "old"),
        ("extra/x/y", "?"),
        ("was-folder/x", "?"),
        ("was-file", "?"),
    ] {
        write(dir.path(), name, content);
    }
    fs::create_dir_all(dir.path().join("empty/folder")).unwrap();
    let mut config = config(&leader, dir.path());
    config.adopt = paceline::Adopt::Nobodys;
    let follower = Follower::start(config).unwrap();
    let listed = files(&[
        ("same", b"same"),
        ("deep/same", b"same too"),
        ("deep/old", b"new"),
        ("was-folder", b"a file"),
        ("was-file/x/y", b"in folders"),
        ("empty", b"a file as well"),
        ("nothing", b""),
        ("large", &vec![7; 300_000]),
    ]);
    let mut connection = leader.accept();
    assert_eq!((&connection.secret[..], connection.id), (&b"s3cret"[..], follower.id()));
    let asked = connection.sync(&listed);
    let mut wanted: Vec<_> = listed.keys().filter(|name| !name.ends_with("same")).cloned().collect();
    wanted.sort();
    assert_eq!(asked, wanted, "in the list's order");
    eventually("streaming", || follower.status().state == State::Streaming);
    assert_eq!(files_in(dir.path()), listed);
    let sync = follower.status().sync;
    assert_eq!((sync.files_listed, sync.files_hashed, sync.files_requested, sync.files_received), (8, 3, 6, 6));
    assert_eq!((sync.files_deleted, sync.bytes_remaining_in_file), (3, 0));
    assert_eq!(sync.bytes_received, wanted.iter().map(|name| listed[name].len() as u64).sum::<u64>());
}

#[test]
fn the_second_round_takes_what_changed_during_the_first() {
    let (leader, dir, follower) = started();
    let mut connection = leader.accept();
    connection.list(&files(&[("grows", b"1"), ("goes", b"2"), ("stays", b"3")]));
    assert_eq!(connection.requests(), ["goes", "grows", "stays"]);
    // Gone meanwhile, grown meanwhile: neither is what was listed.
    connection.content(b"");
    connection.content(b"12");
    connection.content(b"3");
    let second = files(&[("grows", b"123"), ("stays", b"3"), ("new/one", b"4")]);
    assert_eq!(connection.round(&second), ["grows", "new/one"]);
    eventually("streaming", || follower.status().state == State::Streaming);
    assert_eq!(files_in(dir.path()), second);
    assert_eq!(follower.status().sync.files_hashed, 0, "what was received was read again");
}

#[test]
fn the_directory_is_marked_while_a_sync_changes_it_and_the_old_copy_stays_until_the_new_is_whole() {
    let (leader, dir, follower) = started();
    let old = files(&[("a", b"old"), ("b", b"old")]);
    let mut connection = leader.accept();
    connection.sync(&old);
    eventually("streaming", || follower.status().state == State::Streaming);
    assert!(!incomplete(&dir));
    connection.close();

    let new = files(&[("a", b"new"), ("b", &vec![b'n'; 100_000])]);
    let mut connection = leader.accept();
    connection.list(&new);
    assert_eq!(connection.requests(), ["a", "b"]);
    connection.content(&new["a"]);
    connection.send(&100_000_u64.to_le_bytes());
    connection.send(&[b'n'; 50_000]);
    eventually("half of it received", || follower.status().sync.bytes_received == 50_003);
    assert!(incomplete(&dir));
    assert_eq!(fs::read(dir.path().join("b")).unwrap(), b"old");
    // The leader vanishes in the middle of a file.
    connection.close();

    let mut connection = leader.accept();
    assert!(incomplete(&dir), "the mark went with the connection");
    assert_eq!(connection.sync(&new), ["b"]);
    eventually("streaming", || follower.status().state == State::Streaming);
    assert!(!incomplete(&dir));
    assert_eq!(files_in(dir.path()), new);
}

#[test]
fn the_mark_outlives_the_follower_and_goes_with_the_next_whole_sync() {
    let (leader, dir, follower) = started();
    let listed = files(&[("a", b"1")]);
    let mut connection = leader.accept();
    connection.list(&listed);
    connection.requests();
    connection.content(b"1");
    eventually("received", || follower.status().sync.files_received == 1);
    stops_promptly(&follower);
    assert!(incomplete(&dir));

    let follower = Follower::start(config(&leader, dir.path())).unwrap();
    let mut connection = leader.accept();
    assert_eq!(connection.sync(&listed), [""; 0]);
    eventually("synced", || !incomplete(&dir));
    drop(follower);
    assert_eq!(files_in(dir.path()), listed);
}

#[test]
fn a_leader_that_answers_each_request_as_it_arrives_is_not_blocked() {
    let (leader, dir, follower) = started();
    // More bytes of requests, and of answers, than the sockets hold.
    leader.shrink_buffers();
    let folder = vec!["x".repeat(250); 4].join("/");
    let listed: Files = (0..1500).map(|n| (format!("{folder}/{n:05}"), vec![b'c'; 1000])).collect();
    let mut connection = leader.accept();
    connection.list(&listed);
    let mut answered = 0;
    while let Some(name) = read_name(&mut connection.socket).unwrap() {
        connection.content(&listed[name.as_str()]);
        answered += 1;
    }
    assert_eq!(answered, listed.len());
    assert_eq!(connection.round(&listed), [""; 0]);
    eventually("streaming", || follower.status().state == State::Streaming);
    assert!(files_in(dir.path()) == listed);
}

#[test]
fn reserved_names_are_neither_asked_for_nor_deleted() {
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    write(dir.path(), "backups/mine", "kept");
    write(dir.path(), "$mine", "kept");
    let follower = Follower::start(config(&leader, dir.path())).unwrap();
    let mut connection = leader.accept();
    let listed = files(&[(".lock", b"x"), (".clustering_id", b"x"), (".paceline/incomplete", b"x"), ("a", b"1")]);
    assert_eq!(connection.sync(&listed), ["a"]);
    eventually("streaming", || follower.status().state == State::Streaming);
    assert_eq!(files_in(dir.path()), files(&[("a", b"1"), ("backups/mine", b"kept"), ("$mine", b"kept")]));
    assert_eq!(fs::read_to_string(dir.path().join(".clustering_id")).unwrap(), follower.id().to_string());
}

#[test]
fn once_ends_after_one_sync_and_at_the_first_error() {
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    let mut config = config(&leader, &dir.path().join("made/by/it"));
    config.once = true;
    let follower = Follower::start(config.clone()).unwrap();
    let listed = files(&[("a/b", b"1")]);
    leader.accept().sync(&listed);
    follower.wait(None).unwrap().unwrap();
    assert_eq!((follower.status().state, follower.status().sync.files_received), (State::Stopped, 1));
    assert_eq!(files_in(&config.data_dir), listed);

    // The end gave the directory back, though the first follower still lives.
    let again = Follower::start(config.clone()).unwrap();
    leader.accept().close();
    assert!(matches!(again.wait(None).unwrap(), Err(Error::Connection { .. })));
    assert!(matches!(again.wait(None).unwrap(), Err(Error::ShuttingDown)));

    drop(leader);
    let nobody = Follower::start(config).unwrap();
    assert!(matches!(nobody.wait(None).unwrap(), Err(Error::Connection { .. })));
}

// --- Foreign directories ----------------------------------------------------------------------------------------------

#[test]
fn a_foreign_directory_is_refused_and_left_as_it_is_however_often() {
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    let mine = files(&[("letters/mum", b"dear mum"), ("listed", b"mine"), ("checksums.sha1", b"?")]);
    for (name, content) in &mine {
        write(dir.path(), name, std::str::from_utf8(content).unwrap());
    }
    let listed = files(&[("listed", b"theirs")]);
    for _ in 0..2 {
        let follower = Follower::start(config(&leader, dir.path())).unwrap();
        let mut connection = leader.accept();
        connection.list(&listed);
        match follower.wait(None).unwrap() {
            Err(Error::ForeignDirectory { count: 1, example, .. }) => assert_eq!(example.as_str(), "letters/mum"),
            other => panic!("{other:?}"),
        }
        assert!(follower.status().last_disconnect.unwrap().contains("letters/mum"));
        assert_eq!(files_in(dir.path()), mine);
        assert!(!dir.path().join(".clustering_id").exists());
    }
    // A follower that was stopped before any list came has not made it its own either.
    let follower = Follower::start(config(&leader, dir.path())).unwrap();
    let connection = leader.accept();
    drop(follower);
    drop(connection);
    assert!(!dir.path().join(".clustering_id").exists());

    let mut config = config(&leader, dir.path());
    config.adopt = paceline::Adopt::Nobodys;
    let follower = Follower::start(config).unwrap();
    let mut connection = leader.accept();
    connection.sync(&listed);
    eventually("adopted", || follower.status().state == State::Streaming);
    assert_eq!(files_in(dir.path()), listed);
}

#[test]
fn a_directory_without_foreign_files_becomes_the_followers_and_stays_it() {
    let (leader, dir, follower) = started();
    let mut connection = leader.accept();
    connection.sync(&files(&[("a", b"1"), ("b", b"2")]));
    eventually("streaming", || follower.status().state == State::Streaming);
    let id = follower.id();
    drop(follower);
    drop(connection);
    let follower = Follower::start(config(&leader, dir.path())).unwrap();
    assert_eq!(follower.id(), id);
    let mut connection = leader.accept();
    connection.sync(&files(&[("a", b"1")]));
    eventually("streaming", || follower.status().state == State::Streaming);
    assert_eq!(files_in(dir.path()), files(&[("a", b"1")]));
}

// --- The stream -------------------------------------------------------------------------------------------------------

#[test]
fn every_kind_of_action_is_applied_and_acknowledged_to_the_byte() {
    let (leader, dir, follower) = started();
    let mut connection = leader.accept();
    connection.sync(&files(&[("log", b"0"), ("goes", b"x")]));
    connection.stream(&[append("log", b"1"), append("log", b"2"), append("new/deep/file", b"n")].concat());
    assert_eq!(files_in(dir.path()), files(&[("log", b"012"), ("goes", b"x"), ("new/deep/file", b"n")]));
    connection.stream(&[delete("goes"), delete("new/deep/file"), delete("$probe"), delete("never/was")].concat());
    assert_eq!(files_in(dir.path()), files(&[("log", b"012")]));
    connection.send(&[0; 8]);
    connection.stream(&[replace("log", b"fresh"), append("log", b"!")].concat());
    assert_eq!(files_in(dir.path()), files(&[("log", b"fresh!")]));
    // What is larger than any block, and cut anywhere.
    let large: Vec<u8> = (0..1_000_003_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let actions = [append("log", &large), replace("big", &large), delete("log")].concat();
    for piece in actions.chunks(33_333) {
        connection.send(piece);
    }
    connection.acknowledged(actions.len());
    assert_eq!(files_in(dir.path()), files(&[("big", &large)]));
    eventually("counted", || follower.status().acknowledged_bytes == follower.status().applied_bytes);
    drop(follower);
    assert!(connection.is_closed_silently(), "something was acknowledged twice");
}

#[test]
fn a_replacements_end_is_acknowledged_only_when_it_is_in_place() {
    let (leader, dir, _follower) = started();
    let mut connection = leader.accept();
    connection.sync(&files(&[("a", b"old")]));
    let action = replace("a", b"the new content");
    let (most, last) = action.split_at(action.len() - 1);
    connection.stream(most);
    assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"old");
    connection.stream(last);
    assert_eq!(files_in(dir.path()), files(&[("a", b"the new content")]));
}

#[test]
fn a_resync_after_the_leader_vanished_forgets_open_files_and_halves() {
    let (leader, dir, follower) = started();
    let mut connection = leader.accept();
    connection.sync(&Files::new());
    connection.stream(&append("log", b"of the first leader"));
    let torn = replace("other", &[1; 1000]);
    connection.stream(&torn[..500]);
    connection.close();
    // The file is replaced by the sync: a handle from before would append to the old one (lavinmq#2160).
    let mut connection = leader.accept();
    assert_eq!(connection.sync(&files(&[("log", b"anew ")])), ["log"]);
    connection.stream(&append("log", b"and on"));
    assert_eq!(files_in(dir.path()), files(&[("log", b"anew and on")]));
    let status = follower.status();
    assert_eq!(status.connections, 2);
    assert_eq!(status.applied_bytes, append("log", b"and on").len() as u64, "counted from the stream's begin");
    assert!(status.last_disconnect.unwrap().contains("middle of an action"));
}

#[test]
fn a_failed_write_ends_the_connection_unacknowledged_and_is_mended_by_a_sync() {
    let (leader, dir, follower) = started();
    let mut connection = leader.accept();
    connection.sync(&files(&[("a", b"1")]));
    connection.stream(&append("a", b"2"));
    // A folder that is not the leader's, and not empty, is in the way.
    fs::create_dir(dir.path().join("b")).unwrap();
    fs::write(dir.path().join("b/full"), "").unwrap();
    connection.send(&[append("b", b"x"), append("a", b"3")].concat());
    assert!(connection.is_closed_silently(), "acknowledged what was not written");
    eventually("said", || follower.status().last_disconnect.is_some_and(|why| why.contains("/b: ")));
    let mut connection = leader.accept();
    let listed = files(&[("a", b"123"), ("b", b"x")]);
    connection.sync(&listed);
    eventually("mended", || follower.status().state == State::Streaming);
    assert_eq!(files_in(dir.path()), listed);
}

#[test]
fn acknowledgements_of_many_small_blocks_add_up() {
    let (leader, dir, _follower) = started();
    let mut connection = leader.accept();
    connection.sync(&Files::new());
    let mut sent = 0;
    for n in 0..5000_u32 {
        let action = append(&format!("f{}", n % 7), &n.to_le_bytes());
        sent += action.len();
        connection.send(&action);
    }
    connection.acknowledged(sent);
    assert_eq!(files_in(dir.path()).values().map(Vec::len).sum::<usize>(), 20_000);
}

// --- Refusals and stopping --------------------------------------------------------------------------------------------

#[test]
fn a_refused_secret_ends_the_follower_and_is_not_told() {
    let (leader, _dir, follower) = started();
    let mut socket = leader.accept_start();
    read_secret(&mut socket).unwrap();
    socket.write_all(&[protocol::REFUSED]).unwrap();
    assert!(matches!(follower.wait(None), Some(Err(Error::SecretRefused))));
    let status = follower.status();
    assert_eq!((status.state, status.connections), (State::Stopped, 0));
    assert!(!format!("{status:?}{follower:?}").contains("s3cret"));
}

#[test]
fn a_directory_has_one_follower() {
    let (leader, dir, _follower) = started();
    assert!(matches!(Follower::start(config(&leader, dir.path())), Err(Error::InUse(_))));
}

#[test]
fn stopping_is_prompt_at_every_stage() {
    let (leader, _dir, follower) = started();
    let _socket = leader.accept_raw();
    stops_promptly(&follower); // In the handshake.

    let (leader, _dir, follower) = started();
    let _connection = leader.accept_without_frame();
    eventually("accepted", || follower.status().state == State::Waiting);
    stops_promptly(&follower);

    let (leader, _dir, follower) = started();
    let mut connection = leader.accept();
    connection.list(&files(&[("a", b"1")]));
    connection.requests();
    connection.send(&1000_u64.to_le_bytes());
    connection.send(&[1; 10]);
    eventually("in a file", || follower.status().sync.bytes_received == 10);
    stops_promptly(&follower);

    let (leader, _dir, follower) = started();
    let mut connection = leader.accept();
    connection.sync(&Files::new());
    connection.stream(&append("a", b"1"));
    stops_promptly(&follower);
    assert!(connection.is_closed_silently());

    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    let mut long = config(&leader, dir.path());
    drop(leader);
    long.retry_delay_min = Duration::from_secs(3600);
    long.retry_delay_max = long.retry_delay_min;
    let follower = Follower::start(long).unwrap();
    eventually("waiting to try again", || follower.status().last_disconnect.is_some());
    assert!(follower.wait(Some(Duration::from_millis(1))).is_none());
    stops_promptly(&follower);
}

#[test]
fn stopping_is_prompt_while_connecting_to_where_nobody_answers() {
    // A listener whose queue is full drops what comes.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut fillers = Vec::new();
    while let Ok(filler) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        fillers.push(filler);
    }
    let dir = TempDir::new().unwrap();
    let mut config = FollowerConfig::new(address.to_string(), dir.path(), Secret::new("s").unwrap());
    config.connect_timeout = Duration::from_secs(3600);
    let follower = Follower::start(config).unwrap();
    assert!(follower.wait(Some(Duration::from_millis(50))).is_none());
    assert_eq!(follower.status().last_disconnect, None, "somebody answered");
    stops_promptly(&follower);
}
