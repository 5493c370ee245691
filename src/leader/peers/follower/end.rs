//! Letting a follower go, and waiting for something unless it does. Part of [`FollowerHandle`].

use std::sync::atomic::Ordering;

use super::{End, FollowerHandle};
use crate::leader::peers::status::{Eviction, EvictionReason};
use crate::sys::net::Shutdown;
use crate::sys::time::{Instant, SystemTime};
use crate::types::StreamPosition;

impl FollowerHandle {
    pub(in crate::leader) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Why it ended, once it has.
    pub(in crate::leader) fn end(&self) -> Option<&End> {
        self.end.get()
    }

    /// Lets it go, unless it is gone already. Never blocks. `now` is the stream's position.
    pub(in crate::leader) fn evict_at(&self, reason: EvictionReason, now: StreamPosition) {
        self.finish(End::Evicted(self.eviction(reason, now)), Shutdown::Both);
    }

    /// Lets it go once it has read what was written to it: whoever calls this hangs up later.
    pub(in crate::leader) fn evict_gently(&self, reason: EvictionReason, now: StreamPosition) {
        self.finish(End::Evicted(self.eviction(reason, now)), Shutdown::Write);
    }

    /// Closes the connection for good.
    pub(in crate::leader) fn hang_up(&self) {
        // Fails only if the peer was faster.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn eviction(&self, reason: EvictionReason, now: StreamPosition) -> Eviction {
        let status = self.status(now);
        Eviction {
            at: SystemTime::now(),
            id: self.id,
            address: self.address,
            reason,
            state: status.state,
            lag_bytes: status.lag_bytes,
            lag: status.lag,
            queued_batches: status.queued_batches,
            queued_bytes: status.queued_bytes,
        }
    }

    /// Notes that it went, unless it was let go before. Never blocks.
    pub(in crate::leader) fn disconnected(&self, why: impl Into<String>) {
        self.finish(End::Disconnected(why.into()), Shutdown::Both);
    }

    fn finish(&self, end: End, directions: Shutdown) {
        if self.end.set(end).is_ok() {
            self.ended.store(true, Ordering::Release);
            // Fails only if the peer was faster.
            let _ = self.socket.shutdown(directions);
            // With the lock taken once, a waiter has either seen the flag or sleeps, and is woken.
            drop(self.in_flight.lock());
            self.acknowledged.notify_all();
        }
    }

    /// Waits until `when`. `false`: it ended first.
    fn wait_until(&self, when: Instant) -> bool {
        let mut in_flight = self.in_flight.lock();
        while !self.has_ended() && Instant::now() < when {
            self.acknowledged.wait_until(&mut in_flight, when);
        }
        !self.has_ended()
    }

    /// Waits until `when` for its next full sync. `false`: it ended first.
    pub(in crate::leader) fn wait_admitted(&self, when: Instant) -> bool {
        *self.admitted_at.lock() = Some(when);
        let goes_on = self.wait_until(when);
        *self.admitted_at.lock() = None;
        goes_on
    }

    /// Waits until `when` for the rate of syncs. `false`: it ended first.
    pub(in crate::leader) fn throttled(&self, when: Instant) -> bool {
        if when <= Instant::now() {
            return !self.has_ended();
        }
        *self.throttled_at.lock() = Some(when);
        self.wait_until(when)
    }

    /// Whether it waited for the rate of syncs after `since`.
    pub(in crate::leader) fn was_throttled_since(&self, since: Instant) -> bool {
        self.throttled_at.lock().is_some_and(|when| when > since)
    }
}
