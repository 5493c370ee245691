//! Waiting for followers, for hosts that would rather do that than have a healthy one evicted.

use std::time::Duration;

use crate::leader::Leader;
use crate::leader::peers::follower::FollowerHandle;
use crate::thread::deadline;
use crate::types::StreamPosition;

/// A bounded window of unacknowledged bytes; see [`Leader::wait_for_window`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Window {
    /// The most action bytes that followers may leave unacknowledged.
    pub bytes: u64,
    /// A follower that acknowledged nothing for this long does not hold the window up: it is on its way to being evicted.
    /// Defaults to 100 ms.
    pub stall_grace: Duration,
}

impl Window {
    /// A window of this many bytes. Choose less than `queue_bytes`.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self { bytes, stall_grace: Duration::from_millis(100) }
    }
}

impl Leader {
    /// Waits until every follower that keeps up has acknowledged all but `window.bytes`; for hosts that would rather wait
    /// than have a healthy follower evicted by sheer speed. Call it between appends.
    ///
    /// Returns `true` within the window, `false` after `timeout`. Who waits is woken when half of the window is free.
    pub fn wait_for_window(&self, window: &Window, timeout: Duration) -> bool {
        let stream = &self.core.stream;
        let full = |bytes: u64| {
            let now = stream.position();
            let behind = |follower: &FollowerHandle| follower.is_behind_but_moving(now, bytes, window.stall_grace);
            stream.any_attached(behind).then(|| StreamPosition(now.0.saturating_sub(bytes)))
        };
        if full(window.bytes).is_none() {
            return true;
        }
        self.core.progress.wait(deadline(timeout), window.stall_grace, || full(window.bytes / 2))
    }
}
