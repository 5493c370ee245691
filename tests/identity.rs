//! What a directory knows about itself keeps it from being deleted by mistake: by a leader on an empty folder, at a wrong address, on
//! half of what there was; and keeps nobody from what is meant.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

mod support;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use paceline::follower::State;
use paceline::leader::FollowerState;
use paceline::{Adopt, Error, Follower, FollowerConfig, Leader, LeaderConfig, Protocol};
use support::processes::{Stage, run, wait_same};
use support::{TestFollower, TestLeader, all_contents, assert_exact, logs, path, secret, wait_until};
use tempfile::TempDir;

const ID_FILE: &str = ".paceline/data-set";

/// So many files of 10 bytes.
fn files(count: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    add_files(dir.path(), count);
    dir
}

fn add_files(dir: &Path, count: usize) {
    fs::create_dir_all(dir.join("segments")).unwrap();
    for number in 0..count {
        fs::write(dir.join(format!("segments/{number}")), format!("{number:10}")).unwrap();
    }
}

fn data_set(dir: &Path) -> String {
    fs::read_to_string(dir.join(ID_FILE)).unwrap().lines().next().unwrap().to_owned()
}

/// A copy of `leader`'s directory, whose follower has ended.
fn copy_of(leader: &TestLeader) -> TempDir {
    let follower = leader.follower();
    leader.assert_copies(&[&follower]);
    follower.stop()
}

fn paceline(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paceline"));
    command.args(arguments).env("PACELINE_SECRET", "the tests' secret").stdin(Stdio::null());
    command
}

/// Runs to its end, which must be a failure, and returns its last line.
#[track_caller]
fn fails(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let line = said.lines().last().unwrap_or_default();
    assert!(!line.contains("  "), "{line}");
    line.to_owned()
}

fn lead(dir: &Path) -> Result<Leader, Error> {
    Leader::open(LeaderConfig::new(dir, secret()))
}

/// Waits until the follower refuses its leader; returns what it says.
#[track_caller]
fn wait_refused(follower: &Follower) -> String {
    wait_until("it refuses its leader", || follower.status().state == State::Refusing);
    let why = follower.status().last_disconnect.unwrap();
    assert!(!why.contains("  "), "{why}");
    why
}

// --- A leader that is not the right one -------------------------------------------------------------------------------

#[test]
fn a_leader_on_an_empty_directory_empties_no_follower() {
    let stage = Stage::new();
    let volume = stage.folder("volume");
    add_files(&volume, 30);
    let mut leader = stage.leader(&volume, &[]);
    let mut followers = stage.followers(2, leader.address);
    leader.wait_copies(&followers);
    let address = leader.address.to_string();
    leader.process.stop();
    let before = followers.iter().map(|follower| all_contents(&follower.dir)).collect::<Vec<_>>();

    // The volume is not mounted.
    let unmounted = stage.folder("unmounted");
    let mut wrong = stage.leader_at(&address, &unmounted, &[]);
    let (ours, theirs) = (data_set(&volume), data_set(&unmounted));
    for follower in &followers {
        let remedy = format!("--adopt={ours}");
        wait_until("it says so", || {
            let log = follower.process.log();
            log.lines().any(|line| [&ours, &theirs, &remedy].iter().all(|said| line.contains(*said)))
        });
    }
    wait_until("the leader says so", || {
        wrong.process.log().lines().any(|line| line.contains(&ours) && line.contains(&theirs))
    });
    wrong.process.stop();
    let now = followers.iter().map(|follower| all_contents(&follower.dir)).collect::<Vec<_>>();
    assert!(now == before, "a copy was changed");

    // It is again: nobody has to do anything.
    fs::write(volume.join("more"), "since").unwrap();
    let mut leader = stage.leader_at(&address, &volume, &[]);
    leader.end(&mut followers);
}

#[test]
fn in_1_0_0_an_empty_leader_is_braked_and_the_copy_stays_until_it_is_allowed() {
    let first = TestLeader::on(files(20), |_| ());
    let copy = copy_of(&first);
    let before = all_contents(copy.path());
    first.shut_down();
    let empty = TestLeader::start();
    let follower = TestFollower::with(empty.address, copy, |config| config.protocol = Protocol::V1);
    let why = wait_refused(&follower.follower);
    assert!(why.contains("20 of the 20 files") && why.contains("--max-delete"), "{why}");
    wait_until("it tries again", || follower.follower.status().connections > 2);
    let copy = follower.stop();
    assert!(all_contents(copy.path()) == before && !copy.path().join(".paceline/incomplete").exists());

    let allow = |config: &mut FollowerConfig| (config.protocol, config.max_delete) = (Protocol::V1, 1.0);
    let follower = TestFollower::with(empty.address, copy, allow);
    wait_until("it follows", || follower.follower.status().state == State::Streaming);
    assert_eq!(follower.follower.status().sync.files_deleted, 20);
    assert!(all_contents(follower.dir.path()).is_empty());
    assert_eq!(data_set(follower.dir.path()), first.leader.data_set().to_string(), "1.0.0 has no other to take over");
    empty.shut_down();
}

#[test]
fn in_1_0_0_what_was_compacted_or_drained_in_part_is_no_reason_to_brake() {
    let leader = TestLeader::on(files(20), |_| ());
    let v1 = |config: &mut FollowerConfig| config.protocol = Protocol::V1;
    let follower = TestFollower::with(leader.address, tempfile::tempdir().unwrap(), v1);
    leader.assert_copies(&[&follower]);
    let copy = follower.stop();
    wait_until("it has gone", || leader.leader.followers().is_empty());
    (0..17).for_each(|number| leader.delete(&format!("segments/{number}")));
    let follower = TestFollower::with(leader.address, copy, v1);
    leader.assert_copies(&[&follower]);
    let copy = follower.stop();
    wait_until("it has gone", || leader.leader.followers().is_empty());
    // All files but a large one.
    leader.append("segments/17", &[1; 1000]);
    (18..20).for_each(|number| leader.delete(&format!("segments/{number}")));
    let follower = TestFollower::with(leader.address, copy, v1);
    leader.assert_copies(&[&follower]);
    leader.shut_down();
}

#[test]
fn with_the_same_data_set_a_queue_that_was_drained_needs_no_word() {
    let leader = TestLeader::on(files(20), |_| ());
    let copy = copy_of(&leader);
    wait_until("it has gone", || leader.leader.followers().is_empty());
    (0..20).for_each(|number| leader.delete(&format!("segments/{number}")));
    let follower = TestFollower::on(leader.address, copy);
    leader.assert_copies(&[&follower]);
    let address = follower.follower.status().data_set.unwrap().to_string();
    assert_eq!(address, leader.leader.data_set().to_string());
    wait_until("it is counted", || follower.follower.status().sync.files_deleted == 20);
    assert!(!logs::lines(&["sync done", "20 deleted"]).is_empty());
    leader.shut_down();
}

#[test]
fn following_once_at_a_wrong_address_fails_and_changes_nothing() {
    let (ours, theirs) = (TestLeader::on(files(3), |_| ()), TestLeader::on(files(2), |_| ()));
    let copy = copy_of(&ours);
    let before = all_contents(copy.path());
    let (address, dir) = (theirs.address.to_string(), copy.path().to_str().unwrap());
    let arguments = ["follow", &address, "--once", "--data-dir", dir];
    let [held, other] = [&ours, &theirs].map(|leader| leader.leader.data_set().to_string());
    let line = fails(&mut paceline(&arguments));
    assert!(line.contains(&held) && line.contains(&other) && line.contains(&format!("--adopt={held}")), "{line}");
    // Neither a word that names nothing, nor one that names something else, opens this door.
    fails(paceline(&arguments).arg("--adopt"));
    fails(paceline(&arguments).arg(format!("--adopt={other}")));
    assert!(all_contents(copy.path()) == before);
    assert!(theirs.leader.other_data_sets() >= 3);

    let once = paceline(&arguments).arg(format!("--adopt={held}")).output().unwrap();
    assert!(once.status.success(), "{}", String::from_utf8_lossy(&once.stderr));
    assert_exact(theirs.dir.path(), copy.path());
    assert_eq!(data_set(copy.path()), other);
    // Left in a unit file it opens no other door.
    let (third, back) = (TestLeader::on(files(1), |_| ()), ours);
    for leader in [third, back] {
        let address = leader.address.to_string();
        let arguments = ["follow", &address, "--once", "--data-dir", dir, &format!("--adopt={held}")];
        let line = fails(&mut paceline(&arguments));
        assert!(line.contains(&format!("--adopt={other}")), "{line}");
    }
}

#[test]
fn a_directory_that_led_is_not_deleted_because_it_has_a_node_id() {
    let led = files(5);
    lead(led.path()).unwrap().shutdown(Duration::ZERO);
    assert!(led.path().join(".clustering_id").exists());
    let before = all_contents(led.path());
    let (other, empty) = (TestLeader::on(files(1), |_| ()), TestLeader::start());
    for (leader, protocol) in [(&other, Protocol::Auto), (&empty, Protocol::V1)] {
        let mut config = FollowerConfig::new(leader.address.to_string(), led.path(), secret());
        (config.protocol, config.once) = (protocol, true);
        let error = Follower::start(config).unwrap().wait(None).unwrap().unwrap_err();
        assert!(error.to_string().contains("nothing was changed"), "{error}");
        assert!(all_contents(led.path()) == before);
        leader.shut_down();
    }
}

#[test]
fn a_copy_of_before_there_were_ids_takes_its_leaders_and_brakes_for_another() {
    let leader = TestLeader::on(files(20), |_| ());
    let copy = copy_of(&leader);
    fs::remove_file(copy.path().join(ID_FILE)).unwrap();
    let empty = TestLeader::start();
    let follower = TestFollower::on(empty.address, copy);
    let why = wait_refused(&follower.follower);
    assert!(why.contains("20 of the 20 files"), "{why}");
    let copy = follower.stop();
    assert_eq!(all_contents(copy.path()).len(), 20);
    assert!(!copy.path().join(ID_FILE).exists() && !copy.path().join(".paceline/incomplete").exists());

    leader.delete("segments/0");
    leader.append("segments/1", b"more");
    let follower = TestFollower::on(leader.address, copy);
    leader.assert_copies(&[&follower]);
    wait_until("it is one from now on", || follower.follower.status().data_set == Some(leader.leader.data_set()));
    let copy = follower.stop();
    assert_eq!(data_set(copy.path()), leader.leader.data_set().to_string());
    let follower = TestFollower::on(empty.address, copy);
    assert!(wait_refused(&follower.follower).contains("--adopt="));
    leader.shut_down();
    empty.shut_down();
}

#[test]
fn an_adopted_directory_is_its_leaders_and_no_others() {
    let stranger = files(3);
    fs::write(stranger.path().join("precious"), "x").unwrap();
    let (leader, other) = (TestLeader::on(files(2), |_| ()), TestLeader::start());
    let adopt = |config: &mut FollowerConfig| config.adopt = Adopt::Nobodys;
    let follower = TestFollower::with(leader.address, stranger, adopt);
    leader.assert_copies(&[&follower]);
    let follower = TestFollower::with(other.address, follower.stop(), adopt);
    wait_refused(&follower.follower);
    assert_eq!(all_contents(follower.dir.path()).len(), 2);
    leader.shut_down();
    other.shut_down();
}

#[test]
fn an_empty_directory_belongs_to_whoever_fills_it() {
    let (first, second) = (TestLeader::on(files(1), |_| ()), TestLeader::on(files(2), |_| ()));
    let copy = copy_of(&first);
    fs::remove_dir_all(copy.path().join("segments")).unwrap();
    let follower = TestFollower::on(second.address, copy);
    second.assert_copies(&[&follower]);
    assert_eq!(data_set(follower.dir.path()), second.leader.data_set().to_string());
}

#[test]
fn a_follower_of_another_data_set_takes_nobodys_place_at_the_leader() {
    let (ours, theirs) = (TestLeader::on(files(1), |_| ()), TestLeader::on(files(1), |_| ()));
    let stranger = copy_of(&theirs);
    let id = "strang".parse().unwrap();
    let follower = TestFollower::with(ours.address, tempfile::tempdir().unwrap(), |config| config.id = Some(id));
    ours.wait_state(id, FollowerState::InSync);
    let address = ours.status(id).unwrap().address;
    let namesake = TestFollower::with(ours.address, stranger, |config| config.id = Some(id));
    wait_refused(&namesake.follower);
    assert_eq!(ours.status(id).unwrap().address, address);
    assert!(ours.leader.evictions().is_empty() && ours.leader.other_data_sets() > 0);
    drop(follower);
}

#[test]
fn an_id_that_was_damaged_is_said_and_not_taken_for_none() {
    let leader = TestLeader::on(files(1), |_| ());
    let copy = copy_of(&leader);
    fs::write(copy.path().join(ID_FILE), "").unwrap();
    let follow = Follower::start(FollowerConfig::new(leader.address.to_string(), copy.path(), secret()));
    for error in [follow.err().unwrap(), lead(copy.path()).err().unwrap()] {
        assert!(matches!(error, Error::Damaged { .. }) && error.to_string().contains("data-set"), "{error}");
    }
    leader.shut_down();
}

// --- What needs no word -----------------------------------------------------------------------------------------------

#[test]
fn swapped_roles_and_a_fail_over_by_hand_need_no_flag() {
    let leader = TestLeader::on(files(40), |_| ());
    let copy = copy_of(&leader);
    leader.append("segments/0", b"a tail that nobody else has");
    leader.shut_down();
    let TestLeader { leader: stopped, dir: old, .. } = leader;
    let id = stopped.data_set();
    drop(stopped);

    // The copy leads, and most of its files go meanwhile.
    let second = TestLeader::on(copy, |_| ());
    assert_eq!(second.leader.data_set(), id);
    (3..40).for_each(|number| second.delete(&format!("segments/{number}")));
    let follower = TestFollower::on(second.address, old);
    second.assert_copies(&[&follower]);
    let old = follower.stop();
    second.shut_down();
    let TestLeader { dir: copy, leader: stopped, .. } = second;
    drop(stopped);

    // And back: what it had when it last led is no matter.
    let third = TestLeader::on(old, |_| ());
    let follower = TestFollower::on(third.address, copy);
    third.assert_copies(&[&follower]);
    assert_eq!(third.leader.data_set(), id);
    third.shut_down();
}

// --- A leader that should not -----------------------------------------------------------------------------------------

#[test]
fn a_leader_whose_port_is_taken_leaves_the_directory_as_it_was() {
    let dir = files(3);
    let before = all_contents(dir.path());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let line = fails(&mut paceline(&["leader", "--listen", &address, "--data-dir", dir.path().to_str().unwrap()]));
    assert!(line.contains(&address), "{line}");
    assert!(!dir.path().join(".clustering_id").exists() && !dir.path().join(ID_FILE).exists());
    // So nobody takes it for a copy.
    let leader = TestLeader::on(files(1), |_| ());
    let address = leader.address.to_string();
    let line = fails(&mut paceline(&["follow", &address, "--once", "--data-dir", dir.path().to_str().unwrap()]));
    assert!(line.contains("--adopt"), "{line}");
    assert!(all_contents(dir.path()) == before);
    leader.shut_down();
}

#[test]
fn a_copy_that_is_marked_incomplete_is_not_served() {
    for mark in ["incomplete", "suspect"] {
        let dir = files(26);
        let mark = dir.path().join(".paceline").join(mark);
        fs::create_dir(mark.parent().unwrap()).unwrap();
        fs::write(&mark, "").unwrap();
        let refused = lead(dir.path()).err().unwrap();
        assert!(matches!(refused, Error::Incomplete(_) | Error::Suspect(_)), "{refused}");
        let arguments = ["leader", "--listen", "127.0.0.1:0", "--data-dir", dir.path().to_str().unwrap()];
        let line = fails(&mut paceline(&arguments));
        assert!(
            line.contains("leader with it") && line.contains(mark.to_str().unwrap().rsplit_once("/.").unwrap().1),
            "{line}"
        );
        assert!(mark.exists() && !dir.path().join(ID_FILE).exists(), "the mark was erased");
        // A leader makes it whole.
        let leader = TestLeader::on(files(60), |_| ());
        fs::write(dir.path().join(".clustering_id"), "abc").unwrap();
        let follower = TestFollower::on(leader.address, dir);
        leader.assert_copies(&[&follower]);
        wait_until("it is whole", || !mark.exists());
        leader.shut_down();
        lead(follower.stop().path()).unwrap();
    }
}

#[test]
fn a_leader_that_finds_more_than_half_gone_asks_first() {
    let dir = files(60);
    lead(dir.path()).unwrap().shutdown(Duration::ZERO);
    (0..30).for_each(|number| fs::remove_file(dir.path().join(format!("segments/{number}"))).unwrap());
    lead(dir.path()).unwrap().shutdown(Duration::ZERO);
    (30..50).for_each(|number| fs::remove_file(dir.path().join(format!("segments/{number}"))).unwrap());
    let arguments = ["leader", "--listen", "127.0.0.1:0", "--data-dir", dir.path().to_str().unwrap()];
    let line = fails(&mut paceline(&arguments));
    assert!(line.contains("10 of 30 files") && line.contains("--accept-missing"), "{line}");
    // What is put back is enough.
    add_files(dir.path(), 20);
    lead(dir.path()).unwrap().shutdown(Duration::ZERO);
    fs::remove_dir_all(dir.path().join("segments")).unwrap();
    assert!(matches!(lead(dir.path()), Err(Error::Missing { .. })));
    let mut config = LeaderConfig::new(dir.path(), secret());
    config.accept_missing = true;
    Leader::open(config).unwrap().shutdown(Duration::ZERO);
    lead(dir.path()).unwrap();
}

#[test]
fn a_queue_that_was_drained_before_a_crash_keeps_no_leader_from_starting() {
    let stage = Stage::new();
    let data = stage.folder("data");
    add_files(&data, 20);
    let mut leader = stage.leader(&data, &[]);
    (0..20).for_each(|number| fs::remove_file(data.join(format!("segments/{number}"))).unwrap());
    wait_until("it is noted", || {
        fs::read_to_string(data.join(".paceline/last-led")).is_ok_and(|kept| kept.contains("files 0\n"))
    });
    leader.process.kill();
    let mut leader = stage.leader(&data, &[]);
    leader.process.stop();
}

#[test]
fn a_leader_below_which_a_file_system_is_missing_asks_first() {
    let stage = Stage::new();
    let data = stage.folder("data");
    fs::write(data.join("a"), "large enough to be more than half").unwrap();
    let script = stage.path("script");
    let paceline = env!("CARGO_BIN_EXE_paceline");
    let data = data.display();
    // Each is stopped as soon as it leads, if it does.
    let lead = format!(
        "lead() {{\nrm -f {data}.log # what the one before said\n{paceline} leader --listen 127.0.0.1:0 --data-dir {data} $1 > {data}.log 2>&1 & p=$!\n\
         until grep -q ' replicates ' {data}.log || ! kill -0 $p; do sleep 0.02; done 2> /dev/null\n\
         kill $p 2> /dev/null; wait $p; ended=$?; cat {data}.log; return $ended; }}\n"
    );
    let mount = format!("mkdir -p {data}/wal && mount -t tmpfs none {data}/wal && lead || exit 7\n");
    let gone = format!("umount {data}/wal && lead && exit 8\nlead --accept-missing || exit 9\nlead\n");
    fs::write(&script, lead + &mount + &gone).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh"]).arg(&script).env("PACELINE_SECRET", "s3cret");
    let said = run(&mut command);
    assert!(said.contains("wal was a file system of its own") && said.contains("--accept-missing"), "{said}");
    assert!(said.matches(" replicates ").count() == 3, "{said}");
}

#[test]
fn what_a_directory_knows_about_itself_is_not_replicated() {
    let leader = TestLeader::on(files(1), |_| ());
    fs::write(leader.dir.path().join(".clustering_id.new"), "left by an earlier version").unwrap();
    let leader = leader.restart(|_| (), |_| ());
    assert_eq!(leader.leader.files(), [(path("segments/0"), 10)]);
    let address: SocketAddr = leader.address;
    let follower = TestFollower::on(address, tempfile::tempdir().unwrap());
    leader.assert_copies(&[&follower]);
    assert!(!follower.dir.path().join(".paceline/last-led").exists());
    wait_same(leader.dir.path(), follower.dir.path());
    leader.shut_down();
}
