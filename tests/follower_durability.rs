//! What an acknowledgement of a follower is worth: when it comes, what a power loss leaves of what was acknowledged as durable,
//! and what becomes of one whose disk fails.

mod support;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use paceline::protocol::extension::{CHUNK_BYTES, Control};
use paceline::{Durability, Follower, FollowerConfig, Protocol};
use proptest::prelude::*;
use support::extension_leader::{encoded, held, path};
use support::fake_disk::{Call, FakeDisk, Left};
use support::fake_leader::{
    Connection, FakeLeader, Files, append, config, delete, eventually, files, files_in, replace,
};
use support::{TestFollower, TestLeader, begin, wait_until};
use tempfile::TempDir;

const EIO: i32 = 5;

/// A follower on a disk of which a test can tell, or can make, what it wants.
struct Scene {
    leader: FakeLeader,
    dir: TempDir,
    disk: Arc<FakeDisk>,
    follower: Follower,
    /// Other names of files as they were.
    untouched: TempDir,
}

impl Scene {
    fn new(change: impl FnOnce(&mut FollowerConfig)) -> Self {
        begin();
        let (leader, dir, disk) = (FakeLeader::new(), TempDir::new().unwrap(), FakeDisk::new());
        let mut config = config(&leader, dir.path());
        change(&mut config);
        let follower = Follower::start_flushed_by(config, disk.clone()).unwrap();
        Self { leader, dir, disk, follower, untouched: TempDir::new().unwrap() }
    }

    fn of(durability: Durability) -> Self {
        Self::new(|config| config.durability = durability)
    }

    #[track_caller]
    fn wait_applied(&self, bytes: usize) {
        eventually("applied", || self.follower.status().applied_bytes == bytes as u64);
    }

    fn is_marked(&self, mark: &str) -> bool {
        self.dir.path().join(".paceline").join(mark).exists()
    }

    fn as_it_was(&self, name: &str) -> PathBuf {
        self.untouched.path().join(name.replace('/', " "))
    }

    /// From now on it shows whether a file is written to, or replaced.
    fn set_untouched(&self, name: &str) {
        std::fs::hard_link(self.dir.path().join(name), self.as_it_was(name)).unwrap();
        let file = File::options().append(true).open(self.dir.path().join(name)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }

    fn is_untouched(&self, name: &str) -> bool {
        let now = std::fs::metadata(self.dir.path().join(name)).unwrap();
        let same = now.ino() == std::fs::metadata(self.as_it_was(name)).unwrap().ino();
        same && now.modified().unwrap() == SystemTime::UNIX_EPOCH
    }

    #[track_caller]
    fn says(&self, why: &str) {
        eventually(why, || self.follower.status().last_disconnect.is_some_and(|said| said.contains(why)));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.disk.release();
    }
}

/// Reads one acknowledgement.
#[track_caller]
fn acknowledgement(socket: &mut TcpStream) -> usize {
    let mut count = [0; 8];
    socket.read_exact(&mut count).unwrap();
    usize::try_from(i64::from_le_bytes(count)).unwrap()
}

#[track_caller]
fn assert_silent(connection: &mut Connection) {
    connection.socket.set_nonblocking(true).unwrap();
    assert_eq!(connection.socket.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    connection.socket.set_nonblocking(false).unwrap();
}

// --- Levels -----------------------------------------------------------------------------------------------------------

#[test]
fn what_is_acknowledged_as_durable_was_flushed_and_all_that_came_meanwhile_is_acknowledged_at_once() {
    let scene = Scene::new(|_| ());
    let mut connection = scene.leader.accept();
    connection.sync(&files(&[("a", b"1")]));
    scene.disk.hold();
    let first = append("a", b"2");
    connection.send(&first);
    scene.disk.wait_held();
    // The stream goes on while the disk is at work.
    let rest = [append("a", b"3"), append("deep/er/b", b"4"), replace("c", b"5"), delete("never"), delete("deep/er/b")];
    rest.iter().for_each(|action| connection.send(action));
    let bytes = rest.concat().len();
    scene.wait_applied(first.len() + bytes);
    assert_silent(&mut connection);
    scene.disk.release();
    assert_eq!(acknowledgement(&mut connection.socket), first.len());
    assert_eq!(acknowledgement(&mut connection.socket), bytes, "not in one");
    let left = scene.disk.after_power_loss(scene.dir.path(), Left { names: false, tails: 0 });
    assert_eq!((&left["a"][..], &left["c"][..]), (&b"123"[..], &b"5"[..]));
    assert!(!left.contains_key("deep/er/b"));
    eventually("told", || scene.follower.status().acknowledged_bytes == (first.len() + bytes) as u64);
}

#[test]
fn a_leader_that_is_faster_than_the_disk_is_held_up_before_too_much_is_to_be_flushed_at_once() {
    const MIB: usize = 1 << 20;
    for fails in [false, true] {
        let scene = Scene::new(|_| ());
        let mut connection = scene.leader.accept();
        connection.sync(&Files::new());
        scene.disk.hold();
        let first = append("a", b"1");
        connection.send(&first);
        scene.disk.wait_held();
        let large = append("a", &vec![7; MIB]);
        let mut out = connection.out;
        let applied = || usize::try_from(scene.follower.status().applied_bytes).unwrap();
        std::thread::scope(|scope| {
            // It fails if the follower closes.
            let sending = scope.spawn(|| (0..100).try_for_each(|_| out.write_all(&large).and_then(|()| out.flush())));
            eventually("as much as may be", || applied() > first.len() + 64 * MIB);
            if fails {
                scene.disk.fail(EIO);
            }
            assert!(applied() < first.len() + 66 * MIB, "{}", applied());
            scene.disk.release();
            if fails {
                scene.says("flush");
                return;
            }
            let mut left = first.len() + 100 * large.len();
            while left > 0 {
                left -= acknowledgement(&mut connection.socket);
            }
            sending.join().unwrap().unwrap();
        });
    }
}

#[test]
fn what_is_acknowledged_as_written_or_received_waits_for_no_disk() {
    for durability in [Durability::Written, Durability::Received] {
        let scene = Scene::of(durability);
        let mut connection = scene.leader.accept();
        connection.sync(&files(&[("a", b"1")]));
        let probe = delete("$probe");
        connection.stream(&probe);
        let calls = scene.disk.calls();
        let large = vec![7; 300_000];
        let actions =
            [append("a", b"2"), replace("b", &large), append("c/d", &large), delete("b"), vec![0; 4]].concat();
        connection.send(&actions);
        connection.acknowledged(actions.len() - 4);
        scene.wait_applied(probe.len() + actions.len() - 4);
        assert_eq!(scene.disk.calls(), calls, "{durability:?}");
        assert_eq!(files_in(scene.dir.path()), files(&[("a", b"12"), ("c/d", &large)]));
        // As ever, a sync is durable in the end.
        connection.close();
        let mut connection = scene.leader.accept();
        connection.sync(&files(&[("a", b"12"), ("c/d", &large), ("new", b"3")]));
        connection.stream(&append("a", b"3"));
        assert_ne!(scene.disk.calls(), calls);
    }
}

#[test]
fn a_sync_that_changes_nothing_makes_durable_what_the_connection_before_left() {
    let scene = Scene::new(|_| ());
    let mut connection = scene.leader.accept();
    connection.sync(&files(&[("a", b"1"), ("b", b"2")]));
    scene.disk.hold();
    let first = append("e", b"0");
    connection.send(&first);
    scene.disk.wait_held();
    let actions = [append("a", b"1"), append("d/c", b"3"), delete("b"), delete("e")].concat();
    connection.send(&actions);
    scene.wait_applied(first.len() + actions.len());
    connection.socket.shutdown(Shutdown::Write).unwrap();
    assert!(connection.is_closed_silently());
    // Only the first is still flushed.
    scene.disk.release();
    let now = files(&[("a", b"11"), ("d/c", b"3")]);
    let mut connection = scene.leader.accept();
    assert_eq!(connection.sync(&now), [""; 0]);
    connection.stream(&delete("$probe"));
    let mut left = scene.disk.after_power_loss(scene.dir.path(), Left { names: false, tails: 0 });
    left.retain(|name, _| !name.starts_with('.'));
    assert_eq!(left, now);
}

#[test]
fn a_leader_of_the_extension_is_told_all_three_whatever_is_set() {
    for durability in [Durability::Received, Durability::Written, Durability::Durable] {
        let leader = TestLeader::start();
        let follower =
            TestFollower::with(leader.address, TempDir::new().unwrap(), |config| config.durability = durability);
        leader.wait_in_sync(1);
        let status = || leader.status(follower.id()).unwrap();
        // It is asked once as it attaches.
        wait_until("durable", || status().durable.is_some());
        leader.append("a", b"one");
        leader.replace("b", b"two");
        leader.wait_in_sync(1);
        let marks = status().marks.unwrap();
        assert_eq!(marks.received, marks.written, "{durability:?}");
        let durable = status().durable.unwrap();
        assert!(
            durable < leader.leader.position() && marks.durable < marks.written,
            "{durability:?}: nobody asked since it attached"
        );
        let asked = leader.leader.request_durable().unwrap();
        wait_until("durable", || status().durable == Some(asked));
        wait_until("told", || follower.follower.status().durable_bytes > marks.durable);
        leader.assert_copies(&[&follower]);
        follower.stop();
        leader.shut_down();
    }
}

#[test]
fn our_leader_takes_each_level_in_1_0_0() {
    for durability in [Durability::Received, Durability::Written, Durability::Durable] {
        let leader = TestLeader::start();
        let follower = TestFollower::with(leader.address, TempDir::new().unwrap(), |config| {
            config.durability = durability;
            config.protocol = Protocol::V1;
        });
        leader.wait_in_sync(1);
        for n in 0..50 {
            leader.append(&format!("log/{}", n % 3), &vec![b'x'; 100 * n]);
            leader.replace("state", n.to_string().as_bytes());
        }
        leader.delete("log/1");
        leader.wait_in_sync(1);
        // What is only received is not here yet.
        wait_until("applied", || {
            let status = follower.follower.status();
            status.applied_bytes == status.acknowledged_bytes
        });
        leader.assert_copies(&[&follower]);
        follower.stop();
        leader.shut_down();
    }
}

// --- Power loss -------------------------------------------------------------------------------------------------------

/// An action on files named by numbers.
#[derive(Clone, Debug)]
enum Step {
    Append(usize, usize),
    Replace(usize, usize),
    Delete(usize),
    Rename(usize, usize),
    Truncate(usize, usize),
    Empty(usize),
    /// A sync that patches a file.
    Patch(usize),
    /// The leader asks for all so far to be made durable.
    Durable,
}

const NAMES: [&str; 7] = ["a", "b", "d/a", "d/b", "d/e/a", "f/a", "f/b"];

/// Content, and how much of it is there for sure after a power loss.
type Model = std::collections::BTreeMap<&'static str, (Vec<u8>, usize)>;

/// Does a step to the model; returns its wire, or nothing if it does not apply.
fn apply(step: &Step, at: usize, model: &mut Model) -> Option<Vec<u8>> {
    let bytes = |length: usize| (0..length).map(|n| (n * 31 + at * 7).to_le_bytes()[0]).collect::<Vec<u8>>();
    match *step {
        Step::Append(name, length) => {
            let more = bytes(length);
            model.entry(NAMES[name]).or_default().0.extend_from_slice(&more);
            Some(append(NAMES[name], &more))
        }
        Step::Replace(name, length) => {
            let new = bytes(length);
            // Where it takes a file's place it is flushed before.
            let sure = if model.contains_key(NAMES[name]) { length } else { 0 };
            model.insert(NAMES[name], (new.clone(), sure));
            Some(replace(NAMES[name], &new))
        }
        Step::Delete(name) => {
            model.remove(NAMES[name]);
            Some(delete(NAMES[name]))
        }
        Step::Rename(from, to) => {
            if from == to {
                return None;
            }
            let (content, sure) = model.remove(NAMES[from])?;
            let sure = if model.contains_key(NAMES[to]) { content.len() } else { sure };
            model.insert(NAMES[to], (content, sure));
            Some(encoded(&[Control::Rename { from: path(NAMES[from]), to: path(NAMES[to]) }]))
        }
        Step::Truncate(name, hundredths) => {
            let (content, sure) = model.get_mut(NAMES[name])?;
            let len = content.len() * hundredths / 100;
            if len < content.len() {
                (*content).truncate(len);
                *sure = len;
            }
            Some(encoded(&[Control::Truncate { path: path(NAMES[name]), len: len as u64 }]))
        }
        Step::Empty(name) => {
            model.insert(NAMES[name], (Vec::new(), 0));
            Some(encoded(&[Control::Empty(path(NAMES[name]))]))
        }
        Step::Patch(name) => {
            let (content, _) = model.get_mut(NAMES[name])?;
            let offset = content.len() / 3;
            let patch = bytes((content.len() - offset) / 2 + 1);
            if offset + patch.len() > content.len() {
                return None;
            }
            content[offset..][..patch.len()].copy_from_slice(&patch);
            let begins = [
                Control::SyncBegins { files: 1, bytes: 0 },
                Control::PatchAt { path: path(NAMES[name]), offset: offset as u64 },
            ];
            Some(
                [encoded(&begins), append(NAMES[name], &patch), encoded(&[Control::SyncEnds, Control::Position(0)])]
                    .concat(),
            )
        }
        Step::Durable => Some(encoded(&[Control::MakeDurable])),
    }
}

/// Whether each file is as it was at one of these moments, but for what was not sure of its end.
fn check(left: &Files, moments: &[Model]) -> Result<(), TestCaseError> {
    for name in NAMES {
        let is_allowed = moments.iter().any(|moment| match (left.get(name), moment.get(name)) {
            (None, None) => true,
            (Some(found), Some((content, sure))) => found.len() >= *sure && content.starts_with(found),
            _ => false,
        });
        let found = left.get(name).map(Vec::as_slice);
        let then = moments.iter().map(|moment| {
            moment.get(name).map(|(content, sure)| {
                let same = content.iter().zip(found.unwrap_or_default()).take_while(|(a, b)| a == b).count();
                format!("{} bytes, {sure} for sure, equal up to {same}", content.len())
            })
        });
        let then: Vec<_> = then.collect();
        prop_assert!(is_allowed, "{name} has {:?} bytes and had {then:?}", found.map(<[u8]>::len));
    }
    Ok(())
}

/// Loses the power and looks at what is left, in all ways.
fn lose_power(scene: &Scene, moments: &[Model]) -> Result<(), TestCaseError> {
    for (names, tails) in [(false, 0), (true, 0), (true, 37), (true, 100)] {
        check(&scene.disk.after_power_loss(scene.dir.path(), Left { names, tails }), moments)?;
    }
    Ok(())
}

/// A step that does something, its number, and what it sends.
type Sent<'a> = (usize, &'a Step, Vec<u8>);

/// The model when `durable` was, and after each later step.
fn moments(durable: &[Sent<'_>], later: &[Sent<'_>]) -> Vec<Model> {
    let mut model = Model::new();
    for (at, step, _) in durable {
        apply(step, *at, &mut model);
    }
    model.values_mut().for_each(|(content, sure)| *sure = content.len());
    let mut moments = vec![model.clone()];
    for (at, step, _) in later {
        apply(step, *at, &mut model);
        moments.push(model.clone());
    }
    moments
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..NAMES.len();
    let length = || prop_oneof![4 => 1..200_usize, 1 => 20_000..40_000_usize];
    prop_oneof![
        6 => (name(), length()).prop_map(|(name, length)| Step::Append(name, length)),
        3 => (name(), length()).prop_map(|(name, length)| Step::Replace(name, length)),
        2 => name().prop_map(Step::Delete),
        3 => (name(), name()).prop_map(|(from, to)| Step::Rename(from, to)),
        2 => (name(), 0..=100_usize).prop_map(|(name, hundredths)| Step::Truncate(name, hundredths)),
        1 => name().prop_map(Step::Empty),
        1 => name().prop_map(Step::Patch),
        2 => Just(Step::Durable),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..40)
}

/// The length of the last action of a sync: a mark is what came before it.
const POSITION: u64 = 4 + "$paceline/position".len() as u64 + 8 + 8;

/// The steps that do something, and what they send.
fn applicable<'a>(steps: impl IntoIterator<Item = &'a Step>) -> Vec<Sent<'a>> {
    let mut model = Model::new();
    let wires = steps.into_iter().enumerate().map(|(at, step)| (at, step, apply(step, at, &mut model)));
    wires.filter_map(|(at, step, wire)| wire.map(|wire| (at, step, wire))).collect()
}

/// Sends `steps`, of which the first `wanted` are made durable, as far as a step does that; once they are, the disk stands still,
/// and after the last step the power goes.
fn power_loss_in_the_extension(steps: &[Step], wanted: usize) -> Result<(), TestCaseError> {
    let scene = Scene::new(|_| ());
    let (mut connection, _) = scene.leader.accept_in_sync();
    let mut mark = 0;
    // A sync would wait for its mark on disk.
    let later = steps.iter().enumerate().filter(|(at, step)| *at < wanted || !matches!(step, Step::Patch(_)));
    let steps = applicable(later.map(|(_, step)| step));
    let asks = |(_, step, _): &Sent<'_>| matches!(step, Step::Durable | Step::Patch(_));
    let durable = steps.iter().take(wanted).rposition(asks).map_or(0, |last| last + 1);
    let (durable, later) = steps.split_at(durable);
    for (_, step, wire) in durable {
        if matches!(step, Step::Patch(_)) {
            // A sync comes after what is here was told.
            connection.inventory();
        }
        let before = connection.send(wire);
        match step {
            Step::Durable => mark = before,
            Step::Patch(_) => mark = connection.sent - POSITION,
            _ => {}
        }
    }
    connection.wait_durable(mark);
    scene.disk.hold();
    for (.., wire) in later {
        connection.send(wire);
    }
    connection.wait_written(connection.sent);
    lose_power(&scene, &moments(durable, later))
}

/// The same in 1.0.0, where each acknowledgement says durable.
fn power_loss_in_1_0_0(steps: &[Step], durable: usize) -> Result<(), TestCaseError> {
    let scene = Scene::of(Durability::Durable);
    let mut connection = scene.leader.accept();
    connection.sync(&Files::new());
    let known = |step: &&Step| matches!(step, Step::Append(..) | Step::Replace(..) | Step::Delete(_));
    let steps = applicable(steps.iter().filter(known));
    let (durable, later) = steps.split_at(durable.min(steps.len()));
    let bytes = |steps: &[Sent<'_>]| steps.iter().map(|(.., wire)| wire.len()).sum::<usize>();
    for (.., wire) in durable {
        connection.send(wire);
    }
    connection.acknowledged(bytes(durable));
    scene.disk.hold();
    for (.., wire) in later {
        connection.send(wire);
    }
    scene.wait_applied(bytes(&steps));
    lose_power(&scene, &moments(durable, later))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_power_loss_leaves_what_was_made_durable_when_asked(steps in steps(), durable in 0..40_usize) {
        power_loss_in_the_extension(&steps, durable)?;
    }

    #[test]
    fn a_power_loss_leaves_what_was_acknowledged_as_durable(steps in steps(), durable in 0..40_usize) {
        power_loss_in_1_0_0(&steps, durable)?;
    }
}

#[test]
fn what_a_sync_made_durable_stays_so_though_the_leader_never_asks_for_anything_durable() {
    let steps = [Step::Replace(0, 10), Step::Replace(2, 10), Step::Patch(0), Step::Replace(0, 20), Step::Rename(0, 2)];
    power_loss_in_the_extension(&steps, 3).unwrap();
}

#[test]
fn many_files_are_durable_too() {
    for count in [3, 40, 300] {
        let scene = Scene::new(|_| ());
        let (mut connection, _) = scene.leader.accept_in_sync();
        let all: Vec<u8> = (0..count).flat_map(|n| append(&format!("d{}/{n}", n % 5), b"x")).collect();
        connection.send(&all);
        let calls = scene.disk.calls().len();
        let mark = connection.control(Control::MakeDurable);
        connection.wait_durable(mark);
        let left = scene.disk.after_power_loss(scene.dir.path(), Left { names: false, tails: 0 });
        assert!((0..count).all(|n| left[&format!("d{}/{n}", n % 5)] == b"x"));
        let calls = &scene.disk.calls()[calls..];
        assert_eq!(calls.contains(&Call::FileSystem), count > 3, "{calls:?}");
    }
}

// --- A disk that fails ------------------------------------------------------------------------------------------------

#[test]
fn after_a_flush_has_failed_nothing_is_acknowledged_until_all_was_written_again_and_compared() {
    let scene = Scene::new(|_| ());
    let mut connection = scene.leader.accept();
    connection.sync(&files(&[("a", b"1"), ("b", b"2")]));
    connection.stream(&append("a", b"1"));
    scene.disk.fail(EIO);
    connection.send(&append("a", b"1"));
    assert!(connection.is_closed_silently(), "acknowledged what is not durable");
    scene.says("flush");
    assert!(scene.is_marked("suspect"));
    // While the disk fails there is nothing to be had from the leader.
    let attempts = scene.disk.calls().len();
    eventually("tries again", || scene.disk.calls().len() > attempts + 6);
    assert_eq!(scene.follower.status().connections, 1);
    ["a", "b"].iter().for_each(|name| scene.set_untouched(name));
    scene.disk.heal();
    let mut connection = scene.leader.accept();
    assert!(!scene.is_marked("suspect") && scene.is_marked("incomplete"));
    assert_eq!(["a", "b"].map(|name| scene.is_untouched(name)), [false, true], "which was not durable is known");
    connection.sync(&files(&[("a", b"111"), ("b", b"2")]));
    connection.stream(&append("a", b"1"));
    assert!(!scene.is_marked("incomplete"));
    let left = scene.disk.after_power_loss(scene.dir.path(), Left { names: false, tails: 0 });
    assert_eq!(left["a"], b"1111");
}

#[test]
fn with_the_extension_too_a_failed_flush_is_no_mark_and_is_mended_before_the_next_connection() {
    let scene = Scene::new(|_| ());
    let (mut connection, _) = scene.leader.accept_in_sync();
    let content = vec![7; usize::try_from(CHUNK_BYTES).unwrap() + 10];
    connection.stream(&append("a", &content));
    scene.disk.fail(EIO);
    let mark = connection.control(Control::MakeDurable);
    connection.wait_closed();
    assert!(connection.marks.durable < mark);
    scene.says("flush");
    assert!(scene.is_marked("suspect"));
    scene.disk.heal();
    let (mut connection, inventory) = scene.leader.accept_in_sync();
    assert_eq!(inventory, [held("a", &content)]);
    assert!(!scene.is_marked("incomplete") && !scene.is_marked("suspect"));
    connection.stream(&append("a", b"."));
    let mark = connection.control(Control::MakeDurable);
    connection.wait_durable(mark);
}

#[test]
fn a_follower_started_anew_knows_that_a_flush_had_failed() {
    let scene = Scene::new(|_| ());
    let mut connection = scene.leader.accept();
    connection.sync(&files(&[("a", b"1"), ("d/b", b"2")]));
    scene.disk.fail(EIO);
    connection.send(&append("a", b"1"));
    assert!(connection.is_closed_silently());
    scene.says("flush");
    scene.follower.stop();
    ["a", "d/b"].iter().for_each(|name| scene.set_untouched(name));
    let disk = FakeDisk::new();
    let again = Follower::start_flushed_by(config(&scene.leader, scene.dir.path()), disk.clone()).unwrap();
    let mut connection = scene.leader.accept();
    assert!(!scene.is_marked("suspect") && scene.is_marked("incomplete"));
    // Which files it was about is not known any more.
    assert!(!scene.is_untouched("a") && !scene.is_untouched("d/b"));
    let now = files(&[("a", b"11"), ("d/b", b"2")]);
    connection.sync(&now);
    connection.stream(&append("a", b"1"));
    assert!(!scene.is_marked("incomplete"));
    let left = disk.after_power_loss(scene.dir.path(), Left { names: false, tails: 0 });
    assert_eq!(left["a"], b"111");
    again.stop();
}

#[test]
fn a_failed_flush_of_the_reader_stops_acknowledgements_as_well() {
    let scene = Scene::new(|_| ());
    let mut connection = scene.leader.accept();
    connection.sync(&files(&[("a", b"1")]));
    scene.disk.hold();
    let first = append("b", b"2");
    connection.send(&first);
    scene.disk.wait_held();
    scene.disk.fail(EIO);
    // It takes the place of a durable file, and is flushed by the reader.
    connection.send(&replace("a", b"3"));
    eventually("marked", || scene.is_marked("suspect"));
    // The flush under way finds a disk that is well again, and is not believed.
    scene.disk.heal();
    scene.disk.release();
    assert!(connection.is_closed_silently());
    let mut connection = scene.leader.accept();
    connection.sync(&files(&[("a", b"3"), ("b", b"2")]));
    connection.stream(&append("a", b"4"));
}
