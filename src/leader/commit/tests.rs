use std::net::{TcpListener, TcpStream};

use super::*;
use crate::types::Secret;

fn commits() -> Commits {
    let config = LeaderConfig::new("unused", Secret::new("secret").unwrap());
    Commits::new(&config, NodeId::random(), Arc::new(Alone), None, true)
}

/// One that has all of the stream up to `position`, and has not told so.
fn follower(commits: &Commits, position: StreamPosition) -> FollowerHandle {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let follower = FollowerHandle::new(NodeId::random(), address, TcpStream::connect(address).unwrap(), None);
    commits.joins(&follower);
    follower.attached_at(position);
    follower.sending(0, Some(position), Instant::now());
    follower
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
fn who_begins_to_count_while_others_are_asked_for_durability_is_asked_after_them() {
    let commits = commits();
    commits.state.lock().sync_wanted = true;
    assert!(commits.wait_to_sync());
    // The request is in the stream; this one attaches behind it.
    let follower = follower(&commits, StreamPosition(100));
    commits.passed(&follower);
    commits.asked(StreamPosition(90));
    let wanted = Wanted { position: StreamPosition(80), level: CommitLevel::ALL_DURABLE, end: StreamPosition(100) };
    assert_eq!(commits.wait(wanted, Duration::ZERO), CommitOutcome::Unknown(Unknown::Deadline));
    assert!(commits.state.lock().sync_wanted, "nobody would ask it");
}
