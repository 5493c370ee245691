//! What became of followers: the last evictions, which slow ones are delayed for. One leaf lock.

use std::collections::VecDeque;
use std::time::Duration;

use crate::leader::peers::admission;
use crate::leader::peers::status::Eviction;
use crate::sys::hash::HashMap;
use crate::sys::sync::Mutex;
use crate::types::NodeId;

/// How many evictions [`Leader::evictions`](crate::leader::Leader::evictions) remembers.
pub const EVICTIONS_KEPT: usize = 256;

/// The oldest first.
#[derive(Default)]
pub(in crate::leader) struct History(Mutex<VecDeque<Eviction>>);

impl History {
    /// When it is full, the oldest goes of the follower that has most: one that comes back and is evicted again and again makes
    /// nobody forget what others did.
    pub(in crate::leader) fn push(&self, eviction: Eviction) {
        let mut history = self.0.lock();
        if history.len() == EVICTIONS_KEPT {
            let mut counts = HashMap::<NodeId, usize>::default();
            history.iter().for_each(|kept| *counts.entry(kept.id).or_default() += 1);
            let most = counts.values().copied().max();
            if let Some(at) = history.iter().position(|kept| counts.get(&kept.id).copied() == most) {
                history.remove(at);
            }
        }
        history.push_back(eviction);
    }

    pub(in crate::leader) fn all(&self) -> Vec<Eviction> {
        self.0.lock().iter().cloned().collect()
    }

    /// How long ago the follower was evicted for being slow, each time that is remembered.
    pub(in crate::leader) fn slow_evictions(&self, id: NodeId) -> Vec<Duration> {
        let history = self.0.lock();
        let slow = history.iter().filter(|eviction| eviction.id == id && admission::is_for_slowness(&eviction.reason));
        slow.map(|eviction| eviction.at.elapsed().unwrap_or_default()).collect()
    }

    pub(in crate::leader) fn last_of(&self, id: NodeId) -> Option<Eviction> {
        self.0.lock().iter().rev().find(|eviction| eviction.id == id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leader::peers::status::{EvictionReason, FollowerState};
    use std::time::SystemTime;

    fn eviction(id: i32, reason: EvictionReason) -> Eviction {
        Eviction {
            at: SystemTime::now(),
            id: NodeId::new(id).unwrap(),
            address: ([127, 0, 0, 1], 1).into(),
            reason,
            state: FollowerState::InSync,
            lag_bytes: None,
            lag: None,
            queued_batches: 0,
            queued_bytes: 0,
        }
    }

    #[test]
    fn one_that_is_evicted_again_and_again_makes_nobody_forget_what_others_did() {
        let history = History::default();
        let slow = || eviction(1, EvictionReason::QueueFull);
        (0..3).for_each(|_| history.push(slow()));
        for _ in 0..2 * EVICTIONS_KEPT {
            history.push(eviction(2, EvictionReason::ProtocolViolation("on purpose".to_owned())));
        }
        assert_eq!(history.slow_evictions(slow().id).len(), 3);
        assert_eq!(history.all().len(), EVICTIONS_KEPT);
        assert!(history.last_of(slow().id).is_some());
    }
}
