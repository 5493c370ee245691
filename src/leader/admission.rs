//! Who may read and move content in bulk, and when.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::follower::FollowerHandle;
use super::ranges::gone;
use crate::error::Error;

/// Whose full sync reads or moves content: one at a time, as long as something moves.
///
/// A holder that hardly moves (it stopped reading, or its link is slow) loses the slot to the next that waits, and goes on without
/// it: the slot spares the leader's disk, and such a holder costs it nothing.
#[derive(Default)]
pub(super) struct BulkSlot {
    holder: Mutex<Option<Arc<FollowerHandle>>>,
    given_back: Condvar,
}

pub(super) struct InBulk<'a> {
    slot: &'a BulkSlot,
    follower: &'a Arc<FollowerHandle>,
}

/// A holder keeps the slot if it moves this much ...
const MOVED_BYTES_MIN: u64 = 512 << 10;
/// ... in each such interval.
const MOVED_INTERVAL: Duration = Duration::from_secs(2);

impl BulkSlot {
    /// Waits for its turn; fails if the follower ends first, or with `idle`, which is called now and then meanwhile.
    pub(super) fn acquire<'a>(
        &'a self,
        follower: &'a Arc<FollowerHandle>,
        idle: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<InBulk<'a>, Error> {
        /// An end is not notified here: look now and then.
        const LOOK: Duration = Duration::from_millis(100);
        let mut watched: Option<(Arc<FollowerHandle>, u64, Instant)> = None;
        let mut holder = self.holder.lock();
        while let Some(current) = &*holder {
            if follower.has_ended() {
                return Err(gone());
            }
            match &watched {
                Some((whom, moved, since)) if Arc::ptr_eq(whom, current) => {
                    if since.elapsed() >= MOVED_INTERVAL {
                        if current.moved_bytes() < moved + MOVED_BYTES_MIN {
                            break;
                        }
                        watched = None;
                    }
                }
                _ => watched = Some((current.clone(), current.moved_bytes(), Instant::now())),
            }
            self.given_back.wait_for(&mut holder, LOOK);
            parking_lot::MutexGuard::unlocked(&mut holder, &mut *idle)?;
        }
        *holder = Some(follower.clone());
        Ok(InBulk { slot: self, follower })
    }
}

impl Drop for InBulk<'_> {
    fn drop(&mut self) {
        let mut holder = self.slot.holder.lock();
        if holder.as_ref().is_some_and(|holder| Arc::ptr_eq(holder, self.follower)) {
            *holder = None;
            self.slot.given_back.notify_one();
        }
    }
}
