//! What becomes of a leader when one of its threads fails: it closes at once, and says so.
//!
//! Nothing is waited for, since it is the thread that failed which does this. [`Leader::shutdown`](crate::leader::Leader::shutdown) has the threads to join after it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::leader::core::Core;
use crate::leader::peers::status::EvictionReason;

impl Core {
    /// Has a thread's failure close the leader.
    pub(in crate::leader) fn close_if_a_thread_fails(self: &Arc<Self>) {
        let core = Arc::downgrade(self);
        self.threads.on_failure(move |what| {
            if let Some(core) = core.upgrade() {
                core.fail(what);
            }
        });
    }

    fn fail(&self, what: &str) {
        if self.failure.set(what.to_owned()).is_ok() {
            self.close_at_once();
        }
    }

    /// Takes and confirms nothing any more, and lets all followers go.
    pub(in crate::leader) fn close_at_once(&self) {
        self.stop_accepting();
        let end = self.stream.close(false);
        self.commits.close();
        let followers = self.followers.lock().clone();
        for follower in followers {
            follower.evict_at(EvictionReason::Shutdown, end);
            self.stream.detach(&follower);
        }
        self.commits.stop();
        self.stream.stop();
        self.progress.changed();
    }

    /// Whether threads that last were told to end.
    pub(in crate::leader) fn is_told_to_end(self: &Arc<Self>) -> impl FnOnce() -> bool + Send + 'static {
        let core = self.clone();
        move || core.stopping.load(Ordering::SeqCst) || core.commits.may_threads_end()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use crate::config::LeaderConfig;
    use crate::error::AppendError;
    use crate::leader::Leader;
    use crate::types::{RelPath, Secret};

    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}: did not come");
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_thread_that_panics_or_ends_by_itself_closes_the_leader_which_says_so() {
        let path = RelPath::new("a").unwrap();
        for (panics, says) in [(true, "thread x panicked: on purpose"), (false, "thread x ended without being told to")]
        {
            let dir = tempfile::tempdir().unwrap();
            let leader = Leader::open(LeaderConfig::new(dir.path(), Secret::new("s").unwrap())).unwrap();
            leader.listen("127.0.0.1:0").unwrap();
            leader.append(&path, 0, b"").unwrap();
            assert!(leader.failure().is_none());
            let is_told = leader.core.is_told_to_end();
            leader.core.threads.spawn_until("x", is_told, move || assert!(!panics, "on purpose")).unwrap();
            wait_until("the failure", || leader.failure().is_some());
            assert!(leader.failure().unwrap().to_string().starts_with(says));
            wait_until("the end of the stream", || {
                matches!(leader.append(&path, 0, b""), Err(AppendError::ShuttingDown))
            });
            assert!(leader.listen("127.0.0.1:0").is_err());
            assert_eq!(leader.shutdown(Duration::ZERO).threads_left, 0);
        }
    }
}
