//! Commits whose callers do not wait but are called; the `commits` thread, which calls them.
//!
//! What is held of one is dropped once it is settled and called, not at its deadline. A callback is the host's: one that panics is
//! said in the log, and the others are called as before. No lock is held while one runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::sys::sync::MutexGuard;
use crate::sys::time::Instant;

use super::{Callback, CommitOutcome, Commits, Unknown, Waiter, Wanted};

/// How often it is looked at, at least, whether the election is still held.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl Commits {
    /// Calls `done` with what comes of it, after `timeout` at the latest, on the thread of callbacks.
    pub(in crate::leader) fn call(&self, wanted: Wanted, timeout: Duration, done: Callback) {
        // A timeout beyond what the clock can count is none.
        let deadline = Instant::now().checked_add(timeout);
        if let Err((Waiter::Callback(done, _), outcome)) = self.begin(wanted, Waiter::Callback(done, deadline)) {
            let mut state = self.state.lock();
            if state.ended {
                drop(state);
                done(outcome);
            } else {
                state.calls.push((done, outcome));
                self.to_call.notify_one();
            }
        }
    }

    /// The thread's life: ends with [`stop`](Self::stop), once all callbacks were called.
    pub(in crate::leader) fn run_callbacks(&self) {
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            while let Some(entry) = state.deadlines.first_entry().filter(|entry| entry.key().0 <= now) {
                let ((_, number), (level, position)) = entry.remove_entry();
                if let Some(Waiter::Callback(done, _)) = state.take(level, (position, number)) {
                    state.calls.push((done, CommitOutcome::Unknown(Unknown::Deadline)));
                }
            }
            let calls = std::mem::take(&mut state.calls);
            if !calls.is_empty() {
                MutexGuard::unlocked(&mut state, || calls.into_iter().for_each(|(done, outcome)| run(done, outcome)));
                continue;
            }
            if state.ended {
                return;
            }
            let deadline = state.deadlines.first_key_value().map(|((deadline, _), _)| *deadline);
            let look = now + LOOK_EVERY;
            self.to_call.wait_until(&mut state, deadline.map_or(look, |deadline| deadline.min(look)));
            if !self.leadership.is_held() {
                self.changed(state);
                state = self.state.lock();
            }
        }
    }
}

fn run(done: Callback, outcome: CommitOutcome) {
    if catch_unwind(AssertUnwindSafe(|| done(outcome))).is_err() {
        log::error!(
            "a callback given to commit_then panicked, which is a defect of the host; the others are called as before"
        );
    }
}
