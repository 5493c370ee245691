//! How far behind the leader this follower is, in bytes and in time. A calculator: no locks, no clock of its own.
//!
//! The time is how long ago the oldest position not yet reached was first heard of, on our own clock: the leader's may be set
//! wrong.

use std::collections::VecDeque;

use crate::sys::time::Instant;

/// Positions kept that are not reached yet. Beyond it later ones are not noted until some are reached: the oldest is what
/// counts.
const HEARD_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Lag {
    /// Ours, once the leader has told where we are.
    own: Option<u64>,
    /// The highest heard of.
    leader: u64,
    /// Not reached yet, ascending, and when they were first heard of.
    heard: VecDeque<(u64, Instant)>,
}

impl Lag {
    /// What follows is at this position. It may be before the one counted: where the leader sent a file whole in place of an
    /// action that no longer fits, it took more bytes than the action counts for.
    pub(super) fn set_own(&mut self, position: u64) {
        self.own = Some(position);
        self.reached();
    }

    /// So many more bytes were dealt with.
    pub(super) fn advance(&mut self, bytes: u64) {
        if let Some(own) = &mut self.own {
            *own = own.saturating_add(bytes);
        }
        self.reached();
    }

    /// The leader is there.
    pub(super) fn heard(&mut self, position: u64, now: Instant) {
        self.leader = self.leader.max(position);
        let last = self.heard.back().map_or(0, |(last, _)| *last);
        if position > last && self.own.is_none_or(|own| position > own) && self.heard.len() < HEARD_MAX {
            self.heard.push_back((position, now));
        }
    }

    fn reached(&mut self) {
        while let (Some(own), Some((position, _))) = (self.own, self.heard.front())
            && *position <= own
        {
            self.heard.pop_front();
        }
    }

    /// Our own position, once the leader has told where we are.
    pub(super) fn own(&self) -> Option<u64> {
        self.own
    }

    /// Bytes to where the leader was last heard to be, and since when we have been behind; `None` until the own position is
    /// known.
    pub(super) fn now(&self) -> Option<(u64, Option<Instant>)> {
        let own = self.own?;
        Some((self.leader.saturating_sub(own), self.heard.front().map(|(_, at)| *at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn lag_is_to_the_last_position_heard_and_since_the_oldest_not_reached() {
        let (mut lag, start) = (Lag::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        lag.heard(100, at(0));
        assert_eq!(lag.now(), None);
        lag.set_own(40);
        assert_eq!((lag.now(), lag.own()), (Some((60, Some(at(0)))), Some(40)));
        lag.heard(100, at(1));
        lag.heard(150, at(2));
        lag.advance(59);
        assert_eq!(lag.now(), Some((51, Some(at(0)))));
        lag.advance(1);
        assert_eq!(lag.now(), Some((50, Some(at(2)))));
        lag.advance(70);
        assert_eq!(lag.now(), Some((0, None)));
        lag.heard(160, at(3));
        assert_eq!(lag.now(), Some((0, None)), "heard of what was passed");
        lag.set_own(169);
        assert_eq!(lag.now(), Some((0, None)), "told to be before what was counted");
        lag.set_own(170);
        for position in 171..10_000 {
            lag.heard(position, at(4));
        }
        assert_eq!((lag.heard.len(), lag.now()), (HEARD_MAX, Some((9_999 - 170, Some(at(4))))));
    }
}
