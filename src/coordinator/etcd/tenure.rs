//! Until when something that must be renewed is held, by our own clock.
//!
//! The clock is the one that goes on while the machine sleeps or this process is stopped, and that nobody can set. Pure
//! otherwise: it is told the time, and takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Time since the machine started.
pub(super) fn now() -> Duration {
    duration(clock_gettime(ClockId::Boottime))
}

/// What two clocks say at one moment: the one that goes on whatever happens, and the one that can be set.
pub(super) struct Reading {
    running: Duration,
    wall: Duration,
}

impl Reading {
    pub(super) fn now() -> Self {
        Self { running: now(), wall: duration(clock_gettime(ClockId::Realtime)) }
    }

    pub(super) fn since(&self, earlier: &Self) -> Duration {
        self.running.saturating_sub(earlier.running)
    }

    /// By how much the clock on the wall was set since, forward or back.
    pub(super) fn set_by(&self, earlier: &Self) -> Duration {
        (self.wall + earlier.running).abs_diff(earlier.wall + self.running)
    }
}

fn duration(time: Timespec) -> Duration {
    // Neither clock is ever negative, nor are its nanoseconds beyond a second.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// It is held up to a moment that renewals move; once that has passed it is over for good, whatever comes later.
pub(super) struct Tenure {
    /// In nanoseconds; [`OVER`] when it is.
    until: AtomicU64,
}

const OVER: u64 = 0;

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Tenure {
    pub(super) fn new(until: Duration) -> Self {
        Self { until: AtomicU64::new(nanoseconds(until)) }
    }

    /// Until when, in the future; `None` if it is over. Never blocks.
    pub(super) fn remaining(&self, now: Duration) -> Option<Duration> {
        self.settle(now, None)
    }

    /// Moves the end, unless it is over. Returns whether it is held.
    pub(super) fn extend(&self, now: Duration, until: Duration) -> bool {
        self.settle(now, Some(nanoseconds(until))).is_some()
    }

    pub(super) fn end(&self) {
        self.until.store(OVER, Ordering::SeqCst);
    }

    /// Ends it if its time is up; else sets the new end. What is left until then.
    fn settle(&self, now: Duration, new: Option<u64>) -> Option<Duration> {
        let now = nanoseconds(now);
        let settled = self.until.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |until| match new {
            _ if until == OVER => None,
            _ if until <= now => Some(OVER),
            // A late answer to an early renewal moves nothing back.
            Some(new) if new > until => Some(new),
            _ => None,
        });
        let until = match settled {
            Ok(before) if before <= now => OVER,
            Ok(before) => new.unwrap_or(before),
            Err(unchanged) => unchanged,
        };
        (until > now).then(|| Duration::from_nanos(until - now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_is_held_until_its_time_is_up_and_renewals_move_that() {
        let tenure = Tenure::new(s(10));
        assert_eq!(tenure.remaining(s(4)), Some(s(6)));
        assert!(tenure.extend(s(4), s(14)) && tenure.extend(s(5), s(12)));
        assert_eq!(tenure.remaining(s(13)), Some(s(1)));
        assert_eq!(tenure.remaining(s(14)), None);
    }

    #[test]
    fn once_its_time_was_up_no_renewal_brings_it_back() {
        // Nobody looked in between.
        let tenure = Tenure::new(s(10));
        assert!(!tenure.extend(s(10), s(20)));
        assert_eq!(tenure.remaining(s(11)), None);
        // The clock of another thread was read earlier.
        assert_eq!(tenure.remaining(s(9)), None);
        let ended = Tenure::new(s(10));
        ended.end();
        assert!(!ended.extend(s(1), s(20)) && ended.remaining(s(1)).is_none());
    }

    #[test]
    fn setting_the_clock_is_told_from_time_that_passes() {
        let reading = |running, wall| Reading { running: s(running), wall: s(wall) };
        let before = reading(100, 5000);
        for (after, since, set_by) in [
            (reading(103, 5003), 3, 0),
            (reading(103, 5010), 3, 7),
            (reading(103, 4000), 3, 1003),
            (reading(100, 5000), 0, 0),
        ] {
            assert_eq!((after.since(&before), after.set_by(&before)), (s(since), s(set_by)));
        }
        let (earlier, later) = (Reading::now(), Reading::now());
        assert!(later.running >= earlier.running && later.wall > s(1_700_000_000));
    }
}
