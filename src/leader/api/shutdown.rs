//! The end of a leader.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::config::Durability;
use crate::leader::Leader;
use crate::leader::core::Core;
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::status::EvictionReason;
use crate::position::Stand;
use crate::sys::time::Instant;
use crate::thread::DROP_JOIN_MAX;
use crate::thread::deadline;
use crate::types::NodeId;
use crate::types::StreamPosition;

/// How long a shutdown waits until it is recorded who was in sync at the end.
const RECORD_MAX: Duration = Duration::from_secs(2);

/// How long a shutdown waits until it was looked what changed just before besides contents.
const LAST_LOOK_MAX: Duration = Duration::from_secs(1);

/// How long a shutdown waits until followers are told of it.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// What a shutdown left undone.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Followers that have acknowledged everything, as durable if commits ask for that and the follower ever says so.
    pub drained: Vec<NodeId>,
    /// Followers that have not, and how many action bytes they had not acknowledged (0: what they have is perhaps not durable);
    /// `None` if they were still joining.
    pub undrained: Vec<(NodeId, Option<u64>)>,
    /// Threads that did not end in time; always 0 unless the disk hangs.
    pub threads_left: usize,
}

impl Leader {
    /// Refuses further announcements, lets attached followers acknowledge everything for up to `drain`, at the durability that
    /// commits ask for, then closes all connections and joins all threads. Who has everything stays recorded as in sync. Blocks
    /// for `drain` and 9 s at most. What is done already is not done again.
    pub fn shutdown(&self, drain: Duration) -> ShutdownReport {
        let core = &self.core;
        core.stop_accepting();
        // What is not waited for need not be asked for.
        let durability = if drain.is_zero() { Durability::Written } else { core.config.commit_level.durability };
        if !drain.is_zero() && core.door.is_open() {
            core.looks.last.set();
            let _ = core.looks.done.wait(drain.min(LAST_LOOK_MAX));
        }
        let end = core.stream.close(durability == Durability::Durable);
        core.stream.push();
        let deadline = deadline(drain);
        // Wakes at each step of the slowest: drains are rare, and short.
        core.progress.wait(deadline, Duration::from_millis(100), || {
            let behind = |follower: &FollowerHandle| !follower.has_ended() && !follower.has_all(end, durability);
            core.stream.any_attached(behind).then_some(end)
        });
        core.commits.close();
        let report = core.evict_all(end, durability);
        // Before the directory is read nobody was in sync, and nobody records.
        let settles = core.door.is_open() && !core.is_shut_down();
        if settles && !core.commits.settle(core.stream.end(), Instant::now() + RECORD_MAX) {
            log::warn!("who was in sync at the end could not be recorded within {RECORD_MAX:?}");
        }
        core.commits.stop();
        core.stream.stop();
        core.ended.set();
        core.looks.last.set();
        let threads_left = core.threads.join(Instant::now() + DROP_JOIN_MAX);
        // One of them keeps how far the directory has come, and nobody else may meanwhile.
        if let Some(term) = core.term.filter(|_| !core.is_shut_down() && threads_left == 0) {
            Stand::led(core.dir.own(), term, core.stream.end());
        }
        core.shut_down.store(true, Ordering::SeqCst);
        ShutdownReport { threads_left, ..report }
    }
}

impl Drop for Leader {
    /// Shuts down without draining, unless that was done.
    fn drop(&mut self) {
        if !self.core.is_shut_down() {
            self.shutdown(Duration::ZERO);
        }
    }
}

impl Core {
    /// Lets all go. Who has everything and knows the extension is told so first, for up to [`GOODBYE_MAX`].
    fn evict_all(&self, end: StreamPosition, durability: Durability) -> ShutdownReport {
        let mut report = ShutdownReport::default();
        let followers = self.followers.lock().clone();
        for follower in followers.iter().filter(|follower| !follower.has_ended()) {
            let drained = follower.has_all(end, durability);
            if drained {
                report.drained.push(follower.id);
            } else {
                report.undrained.push((follower.id, follower.status(end).lag_bytes));
            }
            if !(drained && follower.extension) {
                follower.evict_at(EvictionReason::Shutdown, end);
            }
            // Its writer finds the queue's end, and says goodbye if there is no other end yet.
            self.stream.detach(follower);
        }
        self.commits.ending();
        self.progress.wait(Instant::now() + GOODBYE_MAX, Duration::from_millis(10), || {
            (!self.followers.lock().is_empty()).then_some(StreamPosition(u64::MAX))
        });
        for follower in followers {
            follower.evict_at(EvictionReason::Shutdown, end);
            follower.hang_up();
            // Its own thread may come to say so too late for the record.
            self.commits.left(&follower, self.stream.end());
        }
        report
    }
}
