//! Back-pressure: appends that wait rather than lose a replica, if the host asks for it
//! ([`LeaderConfig::back_pressure`](crate::LeaderConfig::back_pressure)).
//!
//! A follower is *protected* while evicting it would leave fewer followers of the stream in sync than `min_in_sync`. When the
//! queue of a protected one is full, or it is too far behind, it is not evicted; instead new announcements are held back, before the critical section
//! and with no lock held, until its queue is a quarter empty, or for as long as the host allows: then it is evicted
//! after all. What is on its way already still goes into its queue, which is why that may exceed its limit by
//! [`OVERRUN_BYTES_MAX`].
//!
//! The leader thread alone decides when it is over: it looks at each nap, and counts the naps, so that a stopped process finds
//! one of them gone. Who is held back waits for a condition on a leaf lock. While nobody is, all an append does
//! is to look at a flag.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::announce::SEALED_BYTES_MAX;
use super::{Limits, Queue, Stream};
use crate::config::BackPressure;
use crate::error::AppendError;
use crate::leader::batch::BATCH_BYTES_MAX;
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::status::{EvictionReason, FollowerState};
use crate::sys::sync::{Condvar, Mutex};
use crate::sys::time::Instant;

/// What may be pushed to a full queue before whoever appends is held back: what is sealed, a batch, and a record of each of a
/// few threads.
pub(super) const OVERRUN_BYTES_MAX: u64 = 2 * SEALED_BYTES_MAX;

const _: () = assert!(OVERRUN_BYTES_MAX > SEALED_BYTES_MAX + BATCH_BYTES_MAX as u64);

/// The longest that one look at a full queue counts for.
const LOOK_MAX: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct Pressure {
    is_on: AtomicBool,
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Default)]
struct State {
    /// How long it has been on, and when that was last looked at.
    on_for: Duration,
    looked_at: Option<Instant>,
}

impl Pressure {
    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }

    pub(super) fn begin(&self) {
        self.is_on.store(true, Ordering::Release);
    }

    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        *state = State::default();
        self.is_on.store(false, Ordering::Release);
        self.released.notify_all();
    }

    /// How long it has been on, by our own looks.
    fn look(&self) -> Duration {
        let mut state = self.state.lock();
        let now = Instant::now();
        let since = state.looked_at.replace(now).map_or(Duration::ZERO, |before| now - before);
        state.on_for += since.min(LOOK_MAX);
        state.on_for
    }
}

impl Stream {
    /// Whether announcements are held back.
    pub(in crate::leader) fn is_holding_back(&self) -> bool {
        self.pressure.is_on()
    }

    /// Holds an announcement back while that is called for.
    pub(in crate::leader) fn admit(&self) -> Result<(), AppendError> {
        if !self.pressure.is_on() {
            return Ok(());
        }
        if let BackPressure::WouldBlock(_) = self.limits.back_pressure {
            return Err(AppendError::WouldBlock);
        }
        let mut state = self.pressure.state.lock();
        while self.pressure.is_on() && !self.stopped.load(Ordering::Acquire) {
            self.pressure.released.wait(&mut state);
        }
        Ok(())
    }

    /// Whether evicting one more follower of the stream that is in sync would leave too few.
    pub(super) fn protects<'a>(&self, followers: impl Iterator<Item = &'a FollowerHandle>) -> bool {
        self.limits.back_pressure.longest().is_some()
            && followers.filter(|it| is_in_sync(it)).count() <= self.limits.min_in_sync
    }

    /// Whether a queue is filled to so many quarters of what it may hold, or its follower so far behind.
    pub(super) fn is_crowded(&self, queue: &Queue, quarters: u64) -> bool {
        let Limits { queue_bytes, lag_bytes, queue_batches, .. } = self.limits;
        let bytes = queue.follower.queue.bytes();
        let is_behind = queue.follower.counted_lag() > lag_bytes / 4 * quarters;
        is_behind
            || bytes > queue_bytes / 4 * quarters
            || queue.sender.len() as u64 >= queue_batches as u64 / 4 * quarters.min(3)
    }

    /// Ends the pressure if the queues allow it, or it has lasted long enough. Called by the leader thread.
    pub(super) fn relieve(&self) {
        if !self.pressure.is_on() {
            return;
        }
        let on_for = self.pressure.look();
        let patience = self.limits.back_pressure.longest().unwrap_or_default();
        let attached = self.attached.lock();
        let here = attached.followers.iter().filter(|queue| !queue.follower.has_ended());
        let crowded: Vec<_> = here.filter(|queue| self.is_crowded(queue, 3)).collect();
        if on_for >= patience {
            let position = self.position();
            for queue in crowded.iter().filter(|queue| self.is_crowded(queue, 4)) {
                let is_behind = queue.follower.counted_lag() > self.limits.lag_bytes;
                let reason = if is_behind { EvictionReason::TooFarBehind } else { EvictionReason::QueueFull };
                queue.follower.evict_at(reason, position);
            }
        }
        if crowded.is_empty() || on_for >= patience {
            self.pressure.end();
        }
    }
}

pub(super) fn is_in_sync(follower: &FollowerHandle) -> bool {
    follower.state() == FollowerState::InSync && !follower.has_ended()
}
