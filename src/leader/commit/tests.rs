//! Commits without a leader around them.

use std::net::{TcpListener, TcpStream};

use super::syncer::Turn;
use super::*;
use crate::leader::peers::status::EvictionReason;
use crate::protocol::extension::Marks;
use crate::types::{RelPath, Secret};

fn commits() -> Arc<Commits> {
    let config = LeaderConfig::new("unused", Secret::new("secret").unwrap());
    Arc::new(Commits::new(&config, NodeId::new(9).unwrap(), Arc::new(Alone), None, true))
}

/// One that knows the extension, and has all of the stream up to `position`, where it attached, durable.
fn attached(position: StreamPosition) -> FollowerHandle {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let follower = FollowerHandle::new(NodeId::new(1).unwrap(), address, TcpStream::connect(address).unwrap(), None);
    follower.attached_at(position);
    follower.sending(0, Some(position), Instant::now());
    follower.asking_for_durable(position);
    follower.take_marks(Marks::default()).unwrap();
    follower
}

/// The same, and has not told so.
fn follower(commits: &Commits, position: StreamPosition) -> FollowerHandle {
    let follower = attached(position);
    commits.joins(&follower);
    follower
}

fn wanted(position: u64) -> Wanted {
    let position = StreamPosition(position);
    Wanted { position, level: CommitLevel::ALL_DURABLE, end: position }
}

#[test]
fn what_a_follower_has_is_read_and_noted_in_one_step() {
    let commits = commits();
    let follower = follower(&commits, StreamPosition(100));
    std::thread::scope(|scope| {
        let held = follower.hold();
        scope.spawn(|| commits.passed(&follower));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !commits.state.is_locked() {
            assert!(Instant::now() < deadline, "it reads first, and notes when others may have noted what is newer");
            std::thread::yield_now();
        }
        drop(held);
    });
    assert_eq!(commits.status(StreamPosition(100)).followers, [follower.id]);
}

#[test]
fn who_joins_without_a_file_that_cannot_be_read_holds_up_no_commit_and_is_in_sync_once_it_has_it() {
    let commits = commits();
    let (bad, of_others) = (RelPath::new("bad").unwrap(), RelPath::new("other").unwrap());
    let follower = follower(&commits, StreamPosition(100));
    follower.void(&bad, StreamPosition(0), StreamPosition(0));
    follower.mended(&of_others, StreamPosition(0), StreamPosition(100));
    commits.passed(&follower);
    let status = commits.status(StreamPosition(100));
    assert!(status.counted.is_empty() && status.followers.is_empty());
    follower.mended(&bad, StreamPosition(0), StreamPosition(100));
    commits.passed(&follower);
    assert_eq!(commits.status(StreamPosition(100)).followers, [follower.id]);
}

#[test]
fn who_begins_to_count_while_others_are_asked_for_durability_is_asked_after_them() {
    let commits = commits();
    commits.state.lock().sync_wanted = true;
    assert_eq!(commits.wait_to_sync(), Some(Turn::Sync));
    // The request is in the stream; this one attaches behind it.
    let follower = follower(&commits, StreamPosition(100));
    commits.passed(&follower);
    commits.asked(StreamPosition(90));
    let wanted = Wanted { position: StreamPosition(80), level: CommitLevel::ALL_DURABLE, end: StreamPosition(100) };
    assert_eq!(commits.wait(wanted, Duration::ZERO), CommitOutcome::Unknown(Unknown::Deadline));
    assert!(commits.state.lock().sync_wanted, "nobody would ask it");
}

#[test]
fn who_joins_is_asked_for_durability_and_nothing_is_synced_here_for_that() {
    let commits = commits();
    commits.passed(&follower(&commits, StreamPosition(100)));
    assert_eq!(commits.wait_to_sync(), Some(Turn::Ask));
    assert_eq!(commits.wait(wanted(100), Duration::ZERO), CommitOutcome::Unknown(Unknown::Deadline));
    assert_eq!(commits.wait_to_sync(), Some(Turn::Sync), "what is here was not synced with it");
}

#[test]
fn a_connection_that_was_replaced_does_not_take_the_place_of_its_successor() {
    let (commits, old, new) = (commits(), attached(StreamPosition(0)), attached(StreamPosition(0)));
    commits.joins(&old);
    old.evict_at(EvictionReason::Replaced, StreamPosition(0));
    commits.joins(&new);
    // It was demoted, or so its thread thinks.
    commits.joins(&old);
    commits.passed(&new);
    assert_eq!(commits.status(StreamPosition(0)).followers, [new.id]);
    commits.left(&old, StreamPosition(5));
    assert_eq!(commits.status(StreamPosition(0)).followers, [new.id]);
}

#[test]
fn who_leaves_while_a_commit_waits_for_it_to_be_durable_lingers_in_no_set() {
    let commits = commits();
    let follower = follower(&commits, StreamPosition(100));
    commits.passed(&follower);
    commits.call(wanted(101), Duration::from_secs(3600), Box::new(|_| ()));
    follower.sending(1, Some(StreamPosition(101)), Instant::now());
    follower.take_marks(Marks { received: 1, written: 1, durable: 0 }).unwrap();
    commits.passed(&follower);
    assert_eq!(commits.status(StreamPosition(101)).followers, [follower.id]);
    commits.left(&follower, StreamPosition(101));
    assert!(commits.status(StreamPosition(101)).followers.is_empty());
}

#[test]
fn nothing_is_held_of_a_commit_that_was_called() {
    let commits = commits();
    let (sender, outcomes) = crossbeam_channel::unbounded();
    for position in 1..=100 {
        let sender = sender.clone();
        let hours = Duration::from_secs(3600);
        commits.call(wanted(position), hours, Box::new(move |outcome| sender.send(outcome.is_committed()).unwrap()));
    }
    assert_eq!(commits.state.lock().deadlines.len(), 100);
    {
        let mut state = commits.state.lock();
        state.rule.local_durable(60);
        commits.changed(state);
    }
    assert_eq!(commits.state.lock().deadlines.len(), 40);
    commits.stop();
    commits.run_callbacks();
    assert!(commits.state.lock().deadlines.is_empty() && commits.state.lock().waiting.is_empty());
    assert_eq!((outcomes.len(), outcomes.try_iter().filter(|committed| *committed).count()), (100, 60));
}

#[test]
fn a_callback_that_panics_takes_no_other_with_it() {
    let commits = commits();
    let (sender, outcomes) = crossbeam_channel::unbounded();
    commits.call(wanted(1), Duration::MAX, Box::new(|_| panic!("on purpose")));
    commits.call(wanted(1), Duration::MAX, Box::new(move |outcome| sender.send(outcome).unwrap()));
    commits.stop();
    commits.run_callbacks();
    assert_eq!(outcomes.try_recv(), Ok(CommitOutcome::ShutDown));
}

#[test]
fn once_nobody_records_any_more_nobody_waits_for_it() {
    let commits = commits();
    let follower = follower(&commits, StreamPosition(0));
    commits.passed(&follower);
    commits.stop();
    let (sender, settled) = crossbeam_channel::bounded(1);
    let late = Instant::now() + Duration::from_secs(3600);
    std::thread::spawn(move || sender.send(commits.settle(StreamPosition(0), late)));
    assert_eq!(settled.recv_timeout(Duration::from_secs(60)), Ok(false));
}
