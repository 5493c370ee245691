//! Whether it is us who stalled, and not a follower.
//!
//! Deadlines count ticks of the thread that watches, so a process that was stopped finds one tick gone and not all of them. Two
//! more cases are told apart here: the leader thread notices that it was not scheduled for long (a stopped process, a
//! starved host), and then every deadline begins anew; and if all followers of the stream miss their deadline together,
//! that is more likely our network or our host than all of theirs: each gets one more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::sync::Mutex;
use crate::sys::time::Instant;

/// How much later than it should the leader thread may look again before that is a stall.
const LATE_MAX: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(in crate::leader) struct Stalls {
    /// How often we stalled.
    seen: AtomicU64,
    /// When it was last said that all followers are late. A leaf lock.
    said: Mutex<Option<Instant>>,
}

impl Stalls {
    /// Of who rested from `since` on, for `rest` at most.
    pub(in crate::leader) fn rested(&self, since: Instant, rest: Duration) {
        let late = since.elapsed().saturating_sub(rest);
        if late > LATE_MAX {
            self.seen.fetch_add(1, Ordering::Relaxed);
            log::warn!(
                "this process was not scheduled for {:.1} s: no follower is blamed for that, their deadlines begin anew",
                late.as_secs_f64()
            );
        }
    }

    /// Changes whenever we stalled.
    pub(in crate::leader) fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Says, once for all of them, that all followers have missed a deadline.
    pub(in crate::leader) fn all_are_late(&self, deadline: Duration) {
        let mut said = self.said.lock();
        let lately = said.is_some_and(|when| when.elapsed() < deadline);
        if !lately {
            *said = Some(Instant::now());
        }
        drop(said);
        if !lately {
            log::warn!(
                "all followers have missed their deadline of {deadline:?} together: perhaps it is this host, or its network; they \
                 get one more"
            );
        }
    }
}

/// One follower's grace: once for each time that it stood still.
#[derive(Default)]
pub(in crate::leader) struct Grace {
    stalls: u64,
    used: bool,
}

impl Grace {
    /// Whether a deadline begins anew because we stalled.
    pub(in crate::leader) fn begins_anew(&mut self, stalls: &Stalls) -> bool {
        let seen = stalls.seen();
        std::mem::replace(&mut self.stalls, seen) != seen
    }

    /// It moved.
    pub(in crate::leader) fn moved(&mut self) {
        self.used = false;
    }

    /// Whether one that missed its deadline gets another; `all_late` says whether all did.
    pub(in crate::leader) fn take(&mut self, all_late: impl FnOnce() -> bool) -> bool {
        !self.used && {
            self.used = all_late();
            self.used
        }
    }
}

/// Ticks without progress until the limit is reached.
pub(in crate::leader) const TICKS: u32 = 4;

/// A fraction of the limit that the kernel takes for a timeout (zero would be none).
pub(in crate::leader) fn tick(limit: Duration) -> Duration {
    (limit / TICKS).max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_that_is_late_with_all_others_gets_one_more_deadline_until_it_moves() {
        let mut grace = Grace::default();
        assert!(!grace.take(|| false) && grace.take(|| true) && !grace.take(|| true));
        grace.moved();
        assert!(grace.take(|| true));
    }

    #[test]
    fn a_thread_that_was_not_scheduled_is_noticed_once() {
        let (stalls, mut grace) = (Stalls::default(), Grace::default());
        let now = Instant::now();
        stalls.rested(now, Duration::from_secs(1));
        assert!(!grace.begins_anew(&stalls));
        stalls.rested(now.checked_sub(Duration::from_secs(3)).unwrap(), Duration::from_secs(1));
        assert!(grace.begins_anew(&stalls) && !grace.begins_anew(&stalls));
    }
}
