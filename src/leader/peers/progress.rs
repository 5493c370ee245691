//! Waiting for followers, for whoever asks to: the window of unacknowledged bytes, and draining at shutdown.
//!
//! Ack threads wake the waiters, and only once the position waited for is reached, so that an acknowledgement costs
//! an atomic load while nobody waits. The lock guards nothing but the sleep; what is waited for is looked at with it held, so
//! it comes before the stream's.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use crate::sys::sync::{Condvar, Mutex};
use crate::sys::time::Instant;
use crate::types::StreamPosition;

/// Nobody waits.
const NOBODY: u64 = u64::MAX;

pub(in crate::leader) struct Progress {
    /// The least position anybody waits for.
    wanted: AtomicU64,
    sleepers: Mutex<()>,
    changed: Condvar,
}

impl Default for Progress {
    fn default() -> Self {
        Self { wanted: AtomicU64::new(NOBODY), sleepers: Mutex::new(()), changed: Condvar::new() }
    }
}

impl Progress {
    /// A follower has acknowledged everything up to `position`.
    pub(in crate::leader) fn acknowledged(&self, position: Option<StreamPosition>) {
        // The position was stored before this, and is looked at after `wanted` is: one of the two sees the other.
        fence(Ordering::SeqCst);
        if position.is_some_and(|position| position.0 >= self.wanted.load(Ordering::SeqCst)) {
            self.changed();
        }
    }

    /// A follower came or went.
    pub(in crate::leader) fn changed(&self) {
        let _sleepers = self.sleepers.lock();
        // All are woken; who is not content states its wish anew.
        self.wanted.store(NOBODY, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Waits until `done`, which is asked anew whenever a follower came, went or reached the position it returned; at least
    /// every `look` (what stands still makes no noise). `false`: `deadline` came first.
    pub(in crate::leader) fn wait(
        &self,
        deadline: Instant,
        look: Duration,
        mut done: impl FnMut() -> Option<StreamPosition>,
    ) -> bool {
        loop {
            let Some(position) = done() else { return true };
            let now = Instant::now();
            if now >= deadline {
                return false;
            }
            let mut sleepers = self.sleepers.lock();
            self.wanted.fetch_min(position.0, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // It may have been reached before that was to be seen.
            if done().is_none() {
                return true;
            }
            self.changed.wait_for(&mut sleepers, look.min(deadline - now));
        }
    }
}
