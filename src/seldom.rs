//! What may happen by the thousand and is logged now and then. A leaf; its lock is held for a comparison.

use std::fmt;
use std::time::Duration;

use crate::sys::sync::Mutex;
use crate::sys::time::Instant;

/// How often at most, unless it is said otherwise.
const EVERY: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);

/// Lets one thing be said at most every 10 s, or as often as is said, and counts what was not.
#[derive(Debug)]
pub(crate) struct Seldom {
    every: Duration,
    state: Mutex<State>,
}

impl Default for Seldom {
    fn default() -> Self {
        Self { every: EVERY, state: Mutex::default() }
    }
}

#[derive(Debug, Default)]
struct State {
    said: Option<Instant>,
    unsaid: u64,
}

/// To be put at the end of the line: how many were not said before it, if any were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unsaid(u64);

impl fmt::Display for Unsaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, " ({} more since this was last logged)", self.0) }
    }
}

impl Seldom {
    /// Of what goes on until somebody does something about it.
    pub(crate) fn each_minute() -> Self {
        Self { every: MINUTE, ..Self::default() }
    }

    /// Whether it is time to say it, and how often it was not since it last was. Never blocks.
    pub(crate) fn is_due(&self) -> Option<Unsaid> {
        self.is_due_at(Instant::now())
    }

    fn is_due_at(&self, now: Instant) -> Option<Unsaid> {
        let mut state = self.state.lock();
        if state.said.is_some_and(|at| now < at + self.every) {
            state.unsaid += 1;
            return None;
        }
        state.said = Some(now);
        Some(Unsaid(std::mem::take(&mut state.unsaid)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_too_soon_is_counted_and_told_with_the_next() {
        let (seldom, now) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.is_due_at(now), Some(Unsaid(0)));
        assert_eq!(seldom.is_due_at(now), None);
        assert_eq!(seldom.is_due_at(now + EVERY / 2), None);
        let later = seldom.is_due_at(now + EVERY).unwrap();
        assert_eq!(later.to_string(), " (2 more since this was last logged)");
        assert_eq!(seldom.is_due_at(now + EVERY * 2).unwrap().to_string(), "");
        let seldom = Seldom::each_minute();
        assert!(seldom.is_due_at(now).is_some() && seldom.is_due_at(now + MINUTE / 2).is_none());
        assert!(seldom.is_due_at(now + MINUTE).is_some());
    }
}
