//! How fast a follower catches up, how fast writers append meanwhile, and what follows from that. No clocks, no locks.

use std::time::Duration;

use crate::sys::time::Instant;

use crate::leader::peers::status::CatchUpStatus;

/// What is looked at, at a moment.
#[derive(Clone, Copy)]
pub(in crate::leader) struct Moment {
    pub(in crate::leader) at: Instant,
    /// The stream's position.
    pub(in crate::leader) position: u64,
    /// Action bytes the follower has acknowledged.
    pub(in crate::leader) acknowledged: u64,
}

/// Of one catching up. Rates are those since the last round but one ended: a long round says more than what was before it.
pub(in crate::leader) struct Meter {
    since: Moment,
    round: Moment,
    /// What was missing when the round began; `None` before the first.
    bytes: Option<u64>,
}

impl Meter {
    /// Catching up begins.
    pub(in crate::leader) fn new(now: Moment) -> Self {
        Self { since: now, round: now, bytes: None }
    }

    /// A round begins, with this much missing.
    pub(in crate::leader) fn round(&mut self, now: Moment, bytes: u64) {
        self.since = self.round;
        self.round = now;
        self.bytes = Some(bytes);
    }

    /// `now` may have been looked at before a round that began meanwhile.
    pub(in crate::leader) fn status(&self, now: Moment) -> Option<CatchUpStatus> {
        let bytes = self.bytes?;
        // A moment that was looked at before a round began may come here after.
        let caught_up = now.acknowledged.saturating_sub(self.since.acknowledged);
        let appended = now.position.saturating_sub(self.since.position);
        let elapsed = now.at.duration_since(self.since.at);
        let in_round = now.acknowledged.saturating_sub(self.round.acknowledged);
        let missing_bytes = bytes.saturating_sub(in_round) + now.position.saturating_sub(self.round.position);
        let (rate_bytes_per_s, append_bytes_per_s) = (per_second(caught_up, elapsed), per_second(appended, elapsed));
        let gain = rate_bytes_per_s.saturating_sub(append_bytes_per_s);
        let estimated = (gain > 0).then(|| Duration::from_secs_f64(missing_bytes as f64 / gain as f64));
        Some(CatchUpStatus { missing_bytes, rate_bytes_per_s, append_bytes_per_s, estimated })
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let per_second = u128::from(bytes) * 1_000_000_000 / time.as_nanos().max(1);
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_what_is_missing_over_what_is_gained() {
        let zero = Instant::now();
        let moment = |s, position, acknowledged| Moment { at: zero + Duration::from_secs(s), position, acknowledged };
        let mut meter = Meter::new(moment(0, 1000, 500));
        assert_eq!(meter.status(moment(0, 1000, 500)), None, "nothing is known yet");
        meter.round(moment(0, 1000, 500), 9000);
        let status = meter.status(moment(10, 2000, 3500)).unwrap();
        assert_eq!((status.rate_bytes_per_s, status.append_bytes_per_s), (300, 100));
        assert_eq!(status.missing_bytes, 9000 - 3000 + 1000);
        assert_eq!(status.estimated, Some(Duration::from_secs(35)));
        assert!(meter.status(moment(0, 900, 400)).is_some(), "of a moment before the round");
        // The next round goes by this one and itself.
        meter.round(moment(30, 4000, 9500), 3000);
        meter.round(moment(40, 8000, 12_500), 4000);
        let status = meter.status(moment(40, 8000, 12_500)).unwrap();
        assert_eq!((status.rate_bytes_per_s, status.append_bytes_per_s), (300, 400));
        assert_eq!((status.missing_bytes, status.estimated), (4000, None), "it never ends at these rates");
        assert_eq!(meter.status(moment(5, 100, 100)).unwrap().missing_bytes, 4000, "a moment from before");
    }
}
