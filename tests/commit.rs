//! Commits: what is confirmed, what is refused, what is not known, and who is in sync meanwhile.
#![allow(missing_docs)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use paceline::config::Durability;
use paceline::coordinator::memory::WriteFault;
use paceline::coordinator::{Coordinator, InSyncSet, Leadership, MemoryCoordinator, Stop};
use paceline::leader::{BelowMin, CommitLevel, CommitOutcome, EvictionReason, FollowerState, Quorum, Refusal, Unknown};
use paceline::{Leader, LeaderConfig, NodeId, StreamPosition};
use support::{PATIENCE, TestFollower, TestLeader, logs, noise, wait_until};
use tempfile::TempDir;

const SHORT: Duration = Duration::from_millis(200);

fn level(durability: Durability, quorum: Quorum) -> CommitLevel {
    CommitLevel { durability, quorum }
}

/// Waits until exactly these followers are in sync.
#[track_caller]
fn wait_in_sync(leader: &Leader, mut ids: Vec<NodeId>) {
    ids.sort();
    wait_until(&format!("{ids:?} are in sync"), || leader.in_sync().followers == ids);
}

#[track_caller]
fn followers_of(outcome: &CommitOutcome) -> Vec<NodeId> {
    let CommitOutcome::Committed(committed) = outcome else { panic!("{outcome}") };
    committed.followers.clone()
}

#[test]
fn a_commit_says_who_has_it_and_how_safe_it_is() {
    let leader = TestLeader::start();
    let followers = [leader.follower(), leader.follower()];
    let mut ids = followers.iter().map(TestFollower::id).collect::<Vec<_>>();
    ids.sort();
    wait_in_sync(&leader.leader, ids.clone());
    for durability in [Durability::Received, Durability::Written, Durability::Durable] {
        for quorum in [Quorum::All, Quorum::Count(2)] {
            leader.append("log", &noise(1000));
            let position = leader.leader.position();
            let outcome = leader.leader.commit_at(position, level(durability, quorum), PATIENCE);
            assert_eq!(followers_of(&outcome), ids, "{outcome}");
            assert!(leader.leader.committed(level(durability, quorum)) >= position);
        }
    }
    let outcome = leader.leader.commit(StreamPosition(leader.leader.position().0 + 1), PATIENCE);
    assert_eq!(outcome, CommitOutcome::Refused(Refusal::NotAppended));
    leader.shut_down();
}

#[test]
fn many_threads_commit_at_once() {
    let leader = TestLeader::start();
    let follower = leader.follower();
    wait_in_sync(&leader.leader, vec![follower.id()]);
    std::thread::scope(|scope| {
        for thread in 0..32 {
            let (leader, follower) = (&leader, &follower);
            scope.spawn(move || {
                for _ in 0..5 {
                    let name = support::path(&format!("log-{thread}"));
                    let position = leader.leader.file(&name).unwrap().append(b"a record").unwrap();
                    assert!(leader.leader.commit(position, PATIENCE).is_committed());
                    assert!(leader.status(follower.id()).unwrap().durable.unwrap() >= position);
                }
            });
        }
    });
    leader.assert_copies(&[&follower]);
    leader.shut_down();
}

#[test]
fn a_host_that_does_not_want_to_wait_is_called() {
    let leader = TestLeader::with(|config| config.v1_acks = Durability::Durable);
    let mut fake = leader.fake().join();
    wait_in_sync(&leader.leader, vec![fake.id()]);
    let (sender, outcomes) = crossbeam_channel::unbounded();
    let call = |what: &'static str, timeout| {
        leader.append("log", b"0123456789");
        let (sender, position) = (sender.clone(), leader.leader.position());
        let done = move |outcome: CommitOutcome| sender.send((what, outcome)).unwrap();
        leader.leader.commit_then(position, CommitLevel::ALL_DURABLE, timeout, done);
    };
    call("late", SHORT);
    assert_eq!(outcomes.recv().unwrap(), ("late", CommitOutcome::Unknown(Unknown::Deadline)));
    call("in time", PATIENCE);
    let mut both = [0; 2 * (4 + 3 + 8 + 10)];
    std::io::Read::read_exact(&mut fake.frame, &mut both).unwrap();
    fake.ack(both.len() as u64);
    let (what, outcome) = outcomes.recv().unwrap();
    assert_eq!((what, followers_of(&outcome)), ("in time", vec![fake.id()]));
    call("at the end", PATIENCE);
    leader.shut_down();
    assert_eq!(outcomes.recv().unwrap(), ("at the end", CommitOutcome::ShutDown));
    leader.leader.commit_then(StreamPosition(0), CommitLevel::ALL_WRITTEN, PATIENCE, move |outcome| {
        sender.send(("after it", outcome)).unwrap();
    });
    assert_eq!(outcomes.recv().unwrap(), ("after it", CommitOutcome::ShutDown));
}

#[test]
fn a_commit_that_is_not_confirmed_in_time_may_still_come_true() {
    let leader = TestLeader::start();
    let mut fake = leader.fake().join();
    wait_in_sync(&leader.leader, vec![fake.id()]);
    leader.append("log", b"0123456789");
    let position = leader.leader.position();
    let outcome = leader.leader.commit_at(position, CommitLevel::ALL_WRITTEN, SHORT);
    assert_eq!(outcome, CommitOutcome::Unknown(Unknown::Deadline));
    assert!(leader.leader.committed(CommitLevel::ALL_WRITTEN) < position);
    std::io::Read::read_exact(&mut fake.frame, &mut [0; 4 + 3 + 8 + 10]).unwrap();
    fake.ack(4 + 3 + 8 + 10);
    wait_until("it is committed", || leader.leader.committed(CommitLevel::ALL_WRITTEN) >= position);
    assert!(leader.leader.commit_at(position, CommitLevel::ALL_WRITTEN, Duration::ZERO).is_committed());
    leader.shut_down();
}

#[test]
fn a_follower_that_goes_while_it_is_behind_holds_up_nobody_after_that() {
    let leader = TestLeader::with(|config| config.in_sync_timeout = PATIENCE);
    let healthy = leader.follower();
    let fake = leader.fake().join();
    wait_in_sync(&leader.leader, vec![healthy.id(), fake.id()]);
    leader.append("log", b"content");
    let position = leader.leader.position();
    let outcome = std::thread::scope(|scope| {
        let commit = scope.spawn(|| leader.leader.commit_at(position, CommitLevel::ALL_WRITTEN, PATIENCE));
        wait_until("only it is missing", || {
            leader.status(healthy.id()).is_some_and(|status| status.acknowledged >= Some(position))
        });
        assert!(!commit.is_finished());
        drop(fake);
        commit.join().unwrap()
    });
    assert_eq!(followers_of(&outcome), [healthy.id()]);
    leader.shut_down();
}

#[test]
fn who_holds_commits_up_leaves_the_set_keeps_its_connection_and_comes_back() {
    // Nobody is let go for being late.
    let leader = TestLeader::with(|config| (config.ack_timeout, config.write_timeout) = (PATIENCE, PATIENCE));
    let healthy = leader.follower();
    let mut fake = leader.fake().join();
    wait_in_sync(&leader.leader, vec![healthy.id(), fake.id()]);
    leader.append("log", b"content");
    let outcome = leader.leader.commit_at(leader.leader.position(), CommitLevel::ALL_WRITTEN, PATIENCE);
    assert_eq!(followers_of(&outcome), [healthy.id()]);
    wait_in_sync(&leader.leader, vec![healthy.id()]);
    // Those after it do not wait for it at all, and it is here all the time.
    leader.append("log", b" and more");
    assert!(leader.leader.commit_at(leader.leader.position(), CommitLevel::ALL_WRITTEN, PATIENCE).is_committed());
    assert!(leader.status(fake.id()).is_some() && leader.leader.evictions().is_empty());
    for bytes in [7, 9] {
        let action = 4 + 3 + 8 + bytes;
        std::io::copy(&mut std::io::Read::take(&mut fake.frame, action), &mut std::io::sink()).unwrap();
        fake.ack(action);
    }
    wait_in_sync(&leader.leader, vec![healthy.id(), fake.id()]);
    leader.shut_down();
}

#[test]
fn below_the_minimum_everything_works_but_commits_which_are_refused() {
    let leader = TestLeader::with(|config| config.min_in_sync = 1);
    leader.append("log", b"content");
    let position = leader.leader.position();
    let refused = CommitOutcome::Refused(Refusal::TooFewInSync { in_sync: 0, wanted: 1 });
    for level in [CommitLevel::ALL_DURABLE, level(Durability::Received, Quorum::Count(0))] {
        assert_eq!(leader.leader.commit_at(position, level, PATIENCE), refused);
    }
    assert!(!leader.leader.in_sync().is_satisfied());
    let mut fake = leader.fake().join();
    wait_in_sync(&leader.leader, vec![fake.id()]);
    assert!(leader.leader.in_sync().is_satisfied());
    assert!(leader.leader.commit_at(position, CommitLevel::ALL_WRITTEN, PATIENCE).is_committed());
    // One that is waited for when it comes to that is not hung up on.
    leader.append("log", b"more");
    let position = leader.leader.position();
    let outcome = std::thread::scope(|scope| {
        let commit = scope.spawn(|| leader.leader.commit_at(position, CommitLevel::ALL_WRITTEN, PATIENCE));
        std::io::Read::read_exact(&mut fake.frame, &mut [0; 4 + 3 + 8 + 4]).unwrap();
        drop(fake);
        commit.join().unwrap()
    });
    assert!(matches!(outcome, CommitOutcome::Unknown(Unknown::TooFewInSync) | CommitOutcome::Refused(_)), "{outcome}");
    leader.shut_down();
}

#[test]
fn below_the_minimum_commits_can_wait_for_a_follower_to_come() {
    let leader = TestLeader::with(|config| {
        config.min_in_sync = 1;
        config.below_min = BelowMin::Wait;
    });
    leader.append("log", b"content");
    let position = leader.leader.position();
    assert_eq!(leader.leader.commit(position, SHORT), CommitOutcome::Unknown(Unknown::Deadline));
    let (outcome, follower) = std::thread::scope(|scope| {
        let commit = scope.spawn(|| leader.leader.commit(position, PATIENCE));
        let follower = leader.follower();
        (commit.join().unwrap(), follower)
    });
    assert_eq!(followers_of(&outcome), [follower.id()]);
    leader.shut_down();
}

#[test]
fn a_1_0_0_follower_is_durable_only_if_that_is_declared() {
    for (declared, expected) in [(Durability::Written, false), (Durability::Durable, true)] {
        let leader = TestLeader::with(|config| config.v1_acks = declared);
        let follower = TestFollower::v1(leader.address);
        wait_in_sync(&leader.leader, vec![follower.id()]);
        leader.append("log", b"content");
        let position = leader.leader.position();
        let outcome = leader.leader.commit(position, PATIENCE);
        match expected {
            true => assert_eq!(followers_of(&outcome), [follower.id()]),
            false => assert_eq!(outcome, CommitOutcome::Refused(Refusal::NeverDurable(follower.id()))),
        }
        assert!(leader.leader.commit_at(position, CommitLevel::ALL_WRITTEN, PATIENCE).is_committed());
        leader.shut_down();
    }
}

#[test]
fn a_clean_shutdown_makes_everything_durable_at_followers_and_says_who_lacks_what() {
    let leader = TestLeader::start();
    let follower = leader.follower();
    let slow = leader.fake().join();
    wait_in_sync(&leader.leader, vec![follower.id(), slow.id()]);
    // Its first flush is of all the file system, whoever else writes to that.
    let position = leader.leader.request_durable().unwrap();
    leader.leader.commit_at(position, level(Durability::Durable, Quorum::Count(1)), PATIENCE);
    leader.append("log", &noise(100_000));
    let report = leader.leader.shutdown(SHORT);
    assert_eq!(report.drained, [follower.id()]);
    let [(id, Some(lacking))] = report.undrained[..] else { panic!("{report:?}") };
    assert!(id == slow.id() && lacking >= 100_000, "{report:?}");
    assert_eq!(report.threads_left, 0);
    assert!(support::contents(follower.dir.path()).contains_key("log"));
}

// ---- with a coordinator ----

struct Elected {
    cluster: MemoryCoordinator,
    leader: TestLeader,
}

/// A leader that won an election of a cluster in which `recorded` are recorded, besides itself.
fn elected(recorded: &[NodeId], change: impl FnOnce(&mut LeaderConfig)) -> Elected {
    support::begin();
    let id = NodeId::random();
    let cluster = MemoryCoordinator::new();
    let set = InSyncSet::new(recorded.iter().copied().chain([id])).unwrap();
    cluster.set_in_sync_set(Some(set.clone()));
    let leadership = cluster.campaign(id, "tcp://127.0.0.1:1", &Stop::new()).unwrap().unwrap();
    let (dir, leader) = open(id, leadership, &set, change);
    let address = leader.listen("127.0.0.1:0").unwrap();
    Elected { cluster, leader: TestLeader { leader: leader.into(), dir, address } }
}

fn open(
    id: NodeId,
    leadership: Arc<dyn Leadership>,
    recorded: &InSyncSet,
    change: impl FnOnce(&mut LeaderConfig),
) -> (TempDir, Leader) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = LeaderConfig::new(dir.path(), support::secret());
    config.id = Some(id);
    change(&mut config);
    (dir, Leader::open_elected(config, leadership, Some(recorded)).unwrap())
}

impl Elected {
    fn recorded(&self) -> Vec<NodeId> {
        self.cluster.in_sync_set().unwrap().unwrap().iter().collect()
    }

    /// Waits until the leader and exactly these are recorded.
    #[track_caller]
    fn wait_recorded(&self, followers: &[NodeId]) {
        let mut expected: Vec<_> = followers.iter().copied().chain([self.leader.leader.id()]).collect();
        expected.sort();
        wait_until(&format!("{expected:?} are recorded"), || self.recorded() == expected);
    }
}

#[test]
fn the_recorded_set_follows_who_is_in_sync() {
    let gone = NodeId::random();
    let scene = elected(&[gone], |_| ());
    scene.wait_recorded(&[]);
    let follower = scene.leader.follower();
    scene.wait_recorded(&[follower.id()]);
    let id = follower.id();
    let dir = follower.stop();
    // It has everything: should the leader go now, it may take over.
    assert_eq!(scene.leader.leader.in_sync().followers, [id]);
    scene.leader.append("log", b"more");
    scene.wait_recorded(&[]);
    let follower = TestFollower::on(scene.leader.address, dir);
    scene.wait_recorded(&[id]);
    scene.leader.append("log", b"and more");
    let report = scene.leader.leader.shutdown(PATIENCE);
    assert_eq!(report.drained, [id], "{report:?}");
    scene.wait_recorded(&[id]);
    drop(follower);
}

#[test]
fn what_somebody_else_recorded_is_replaced_by_what_is_so() {
    let scene = elected(&[], |_| ());
    let follower = scene.leader.follower();
    let id = follower.id();
    scene.wait_recorded(&[id]);
    assert!(scene.cluster.remove_from_in_sync_set(id).unwrap());
    scene.wait_recorded(&[id]);
    scene.cluster.set_in_sync_set(None);
    wait_until("something is recorded", || scene.cluster.in_sync_set().unwrap().is_some());
    scene.wait_recorded(&[id]);
    scene.cluster.set_in_sync_set(Some(InSyncSet::of(NodeId::random())));
    scene.wait_recorded(&[id]);
    // It is not so any more.
    drop(follower.stop());
    scene.leader.append("log", b"more");
    scene.wait_recorded(&[]);
}

#[test]
fn what_is_announced_last_of_all_takes_out_of_the_set_who_was_gone_by_then() {
    let scene = elected(&[], |_| ());
    let follower = scene.leader.follower();
    let id = follower.id();
    scene.wait_recorded(&[id]);
    drop(follower.stop());
    wait_until("it is gone", || scene.leader.leader.followers().is_empty());
    assert_eq!(scene.leader.leader.in_sync().followers, [id]);
    // Its program's last words, on its way out.
    scene.leader.append("log", b"the last record");
    let report = scene.leader.leader.shutdown(PATIENCE);
    assert_eq!((report.drained.len(), report.undrained.len()), (0, 0), "{report:?}");
    assert_eq!(scene.recorded(), [scene.leader.leader.id()]);
}

#[test]
fn who_left_with_everything_may_still_take_over_after_a_clean_end() {
    let scene = elected(&[], |_| ());
    let follower = scene.leader.follower();
    scene.wait_recorded(&[follower.id()]);
    let id = follower.id();
    drop(follower.stop());
    wait_until("it is gone", || scene.leader.leader.followers().is_empty());
    scene.leader.leader.shutdown(PATIENCE);
    scene.wait_recorded(&[id]);
}

#[test]
fn a_commit_waits_for_whoever_may_be_recorded_and_a_joiner_until_it_is_not() {
    let scene = elected(&[], |_| ());
    let mut fake = scene.leader.fake().join();
    scene.wait_recorded(&[fake.id()]);
    let id = fake.id();
    scene.cluster.hold_writes(true);
    scene.leader.append("log", b"content");
    let position = scene.leader.leader.position();
    drop(fake);
    wait_until("its removal is being written", || scene.cluster.writes_waiting() == 1);
    let commit = |timeout| scene.leader.leader.commit_at(position, CommitLevel::ALL_WRITTEN, timeout);
    assert_eq!(commit(SHORT), CommitOutcome::Unknown(Unknown::Deadline));
    // It is back, and may still be elected: it is not made to delete anything.
    fake = support::fake_follower::FakeFollower::connect(scene.leader.address).shake(id);
    scene.leader.wait_state(id, FollowerState::Waiting);
    assert_eq!(commit(SHORT), CommitOutcome::Unknown(Unknown::Deadline));
    scene.cluster.hold_writes(false);
    assert!(commit(PATIENCE).is_committed());
    let fake = fake.join();
    scene.wait_recorded(&[id]);
    drop(fake);
    scene.leader.shut_down();
}

#[test]
fn who_goes_while_it_may_be_recorded_is_let_go_at_once() {
    // Its writer waits for as long as the coordinator does not answer, and looks up at each heartbeat: here, at none.
    let scene = elected(&[], |config| config.heartbeat_interval = Duration::from_secs(600));
    let follower = scene.leader.follower();
    let id = follower.id();
    scene.wait_recorded(&[id]);
    scene.cluster.hold_writes(true);
    let is_logged = |what: &'static str, times| {
        wait_until(what, || logs::lines(&[&format!("follower {id} at"), what]).len() == times);
    };
    let dir = follower.stop();
    is_logged("disconnected", 1);
    let follower = TestFollower::on(scene.leader.address, dir);
    wait_until("it waits", || follower.follower.status().state == paceline::follower::State::Syncing);
    follower.stop();
    is_logged("disconnected", 2);
    let connect = || support::fake_follower::FakeFollower::connect(scene.leader.address).shake(id);
    let replaced = connect();
    scene.leader.wait_state(id, FollowerState::Waiting);
    let _another = connect();
    scene.leader.wait_evicted_for(id, &EvictionReason::Replaced);
    drop(replaced);
    scene.cluster.hold_writes(false);
    scene.leader.shut_down();
}

#[test]
fn what_is_not_known_to_be_recorded_counts_until_it_is_known() {
    let scene = elected(&[], |_| ());
    let fake = scene.leader.fake().join();
    scene.wait_recorded(&[fake.id()]);
    for fault in [WriteFault::UnknownNotDone, WriteFault::UnknownDone, WriteFault::NotRecorded] {
        scene.cluster.set_write_fault(Some(fault));
        let second = scene.leader.fake().join();
        let id = second.id();
        // Recorded or not, it counts from before the write on.
        wait_until("it is counted", || scene.leader.leader.in_sync().counted.contains(&id));
        drop(second);
        scene.leader.append("log", b"x");
        wait_until("it is not in sync any more", || !scene.leader.leader.in_sync().followers.contains(&id));
        if !matches!(fault, WriteFault::NotRecorded) {
            assert!(scene.leader.leader.in_sync().counted.contains(&id), "nobody knows that it is not recorded");
        }
        scene.cluster.set_write_fault(None);
        wait_until("it is not counted any more", || !scene.leader.leader.in_sync().counted.contains(&id));
    }
    drop(fake);
    scene.leader.shut_down();
}

#[test]
fn nothing_is_confirmed_once_the_election_is_lost() {
    let scene = elected(&[], |_| ());
    let fake = scene.leader.fake().join();
    scene.wait_recorded(&[fake.id()]);
    scene.leader.append("log", b"content");
    let position = scene.leader.leader.position();
    let commit = || scene.leader.leader.commit_at(position, CommitLevel::ALL_WRITTEN, PATIENCE);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(commit);
        wait_until("it waits", || scene.leader.status(fake.id()).is_some_and(|status| status.lag_bytes > Some(0)));
        scene.cluster.expire_leadership();
        let outcome = waiting.join().unwrap();
        assert!(
            matches!(
                outcome,
                CommitOutcome::Unknown(Unknown::NotElected) | CommitOutcome::Refused(Refusal::NotElected)
            ),
            "{outcome}"
        );
    });
    assert_eq!(commit(), CommitOutcome::Refused(Refusal::NotElected));
    assert_eq!(scene.leader.leader.committed(CommitLevel::ALL_WRITTEN), StreamPosition(0));
    // What is appended still goes to followers; and stopping waits for nobody.
    scene.leader.append("log", b"more");
    scene.leader.shut_down();
}

#[test]
fn falling_below_the_minimum_and_coming_back_are_logged() {
    let scene = elected(&[], |config| config.min_in_sync = 1);
    let fake = scene.leader.fake().join();
    scene.wait_recorded(&[fake.id()]);
    drop(fake);
    scene.leader.append("log", b"x");
    scene.wait_recorded(&[]);
    wait_until("it is logged", || {
        !logs::lines(&["WARN", "only 0 followers are in sync, fewer than the minimum of 1"]).is_empty()
            && !logs::lines(&["INFO", "1 followers are in sync, the minimum is 1"]).is_empty()
    });
    scene.leader.shut_down();
}
