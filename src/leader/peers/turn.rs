//! Whose turn it is to write to a follower: its writer's, or that of who says that the leader is alive (`tasks/beats.rs`).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::channel::{self, Receiver, Sender};
use crate::sys::time::Instant;

/// See the module's documentation.
pub(in crate::leader) struct Turn {
    /// One token at most.
    free: (Sender<()>, Receiver<()>),
    began: Instant,
    /// When something was written last, in microseconds since `began`; [`NEVER`].
    written_us: AtomicU64,
}

const NEVER: u64 = u64::MAX;

/// Whoever has this writes.
#[must_use]
pub(in crate::leader) struct Writing<'a>(&'a Turn);

impl Turn {
    pub(in crate::leader) fn new() -> Self {
        let free = channel::bounded(1);
        let _ = free.0.try_send(());
        Self { free, began: Instant::now(), written_us: AtomicU64::new(NEVER) }
    }

    /// Blocks for as long as a heartbeat is being written.
    pub(in crate::leader) fn take(&self) -> Writing<'_> {
        // Never disconnected: both ends are here.
        let _ = self.free.1.recv();
        Writing(self)
    }

    pub(in crate::leader) fn try_take(&self) -> Option<Writing<'_>> {
        self.free.1.try_recv().ok().map(|()| Writing(self))
    }

    /// For how long nothing was written; 0 before the first write, which is the frame's header.
    pub(in crate::leader) fn silent_us(&self) -> u64 {
        match self.written_us.load(Ordering::Acquire) {
            NEVER => 0,
            written_us => self.now_us().saturating_sub(written_us),
        }
    }

    pub(in crate::leader) fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(NEVER - 1)
    }
}

impl Writing<'_> {
    /// Whole blocks were written.
    pub(in crate::leader) fn written(self) {
        self.0.written_us.store(self.0.now_us(), Ordering::Release);
        self.give_back();
    }

    pub(in crate::leader) fn give_back(self) {
        let _ = self.0.free.0.try_send(());
    }
}
