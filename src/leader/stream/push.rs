//! How batches reach the followers' queues, and what becomes of a follower whose queue is full.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::encode::is_mostly_empty;
use super::pressure::{OVERRUN_BYTES_MAX, is_in_sync};
use super::{Attached, Demoted, Limits, Ordered, Queue, SPARES, Stream};
use crate::leader::batch::Batch;
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::stalls::Stalls;
use crate::leader::peers::status::EvictionReason;
use crate::sys::channel::{Receiver, Sender, TrySendError};
use crate::sys::time::Instant;
use crate::types::StreamPosition;

impl Queue {
    /// Whether it has held more than the soft limit for as long as that may be, if it holds `bytes` now.
    fn is_over_soft_for_long(&mut self, bytes: u64, limits: &Limits, stalls: &Stalls) -> bool {
        let since = self.over_soft_since.filter(|_| !self.grace.begins_anew(stalls));
        self.over_soft_since = (bytes > limits.queue_soft_bytes).then(|| since.unwrap_or_else(Instant::now));
        self.over_soft_since.is_some_and(|since| since.elapsed() >= limits.queue_soft_time)
    }
}

impl Stream {
    /// Seals the open batch and pushes all that is sealed. Whose queue is full is evicted, and gone from the list; or it is
    /// demoted, which the demotion thread completes.
    pub(in crate::leader) fn push(&self) {
        let mut attached = self.attached.lock();
        let gone = self.push_locked(&mut attached, |_| ());
        drop(attached);
        // The last sender frees what is queued: not under the lock.
        drop(gone);
    }

    /// The same, unless everything up to `position` was pushed already.
    pub(in crate::leader) fn push_up_to(&self, position: StreamPosition) {
        let is_pushed = || self.pushed.load(Ordering::Acquire) >= position.0;
        if is_pushed() {
            return;
        }
        let mut attached = self.attached.lock();
        // Of many who ask at once, one pushes.
        let gone = if is_pushed() { Vec::new() } else { self.push_locked(&mut attached, |_| ()) };
        drop(attached);
        drop(gone);
    }

    /// Pushes what comes before the moment at which `at_cut` is called with everything locked.
    pub(super) fn push_locked(&self, attached: &mut Attached, at_cut: impl FnOnce(&mut Ordered)) -> Vec<Queue> {
        let Attached { followers, taken } = attached;
        let (open, end, missing) = {
            let mut ordered = self.ordered.lock();
            let open = ordered.take_open();
            if !open.is_empty() || !ordered.sealed.is_empty() {
                // Not later: a writer that gets hungry after this must not be overlooked.
                self.hungry.store(false, Ordering::SeqCst);
            }
            std::mem::swap(&mut ordered.sealed, taken);
            ordered.sealed_bytes = 0;
            at_cut(&mut ordered);
            let missing = if ordered.queues > 0 { SPARES - ordered.spares.len() } else { 0 };
            (open, ordered.position, missing)
        };
        let mut spare = None;
        if !open.is_empty() {
            let raw = if is_mostly_empty(&open) {
                // It may wait in a queue for long, next to many others: it holds, and counts for, what it needs. Else a host that keeps to half
                // of what a queue holds could fill it.
                let small = open.as_slice().to_vec();
                spare = Some(open);
                small
            } else {
                open
            };
            taken.push(Arc::new(Batch::actions(end, raw)));
        }
        let mut gone = Vec::new();
        for batch in taken.drain(..) {
            let protects = self.protects(followers.iter().map(|queue| &*queue.follower));
            gone.extend(followers.extract_if(.., |queue| !self.push_to(queue, &batch, protects)));
        }
        self.pushed.store(end, Ordering::Release);
        if !gone.is_empty() {
            self.ordered.lock().left(&gone);
        }
        if missing > 0 {
            self.refill_spares(missing, spare, || self.buffers.take());
        }
        gone
    }

    /// Whether the follower stays. `protects`: there are none too many.
    fn push_to(&self, queue: &mut Queue, batch: &Arc<Batch>, protects: bool) -> bool {
        let follower = &queue.follower;
        if follower.has_ended() {
            return false;
        }
        let (cost, counts) = (batch.cost(), self.counts(batch));
        // One batch larger than the whole budget passes alone.
        let held = follower.queue.bytes();
        let protected = protects && is_in_sync(follower);
        let most = self.limits.queue_bytes + if protected { OVERRUN_BYTES_MAX } else { 0 };
        let too_long = queue.is_over_soft_for_long(held + cost, &self.limits, &self.stalls);
        let is_behind = queue.follower.counted_lag() + counts > self.limits.lag_bytes;
        let is_full = too_long || held > 0 && held + cost > self.limits.queue_bytes;
        if protected && (is_full || is_behind || self.is_crowded(queue, 4)) {
            self.pressure.begin();
        }
        let follower = &queue.follower;
        let has_room = held == 0 || held + cost <= most && (protected || !too_long);
        let fits = has_room && (protected || !is_behind);
        let reason = if has_room && !fits { EvictionReason::TooFarBehind } else { EvictionReason::QueueFull };
        follower.queue.add(cost);
        follower.dispatched(counts);
        match if fits { queue.sender.try_send(batch.clone()) } else { Err(TrySendError::Full(batch.clone())) } {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                match queue.demotable.take() {
                    Some((batches, handled)) => self.demote(follower, batch, reason, (batches, handled)),
                    None => follower.evict_at(reason, StreamPosition(batch.end)),
                }
                false
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }

    /// What a batch counts for towards a follower's lag: of one record, however large, no more than leaves room for others.
    pub(in crate::leader) fn counts(&self, batch: &Batch) -> u64 {
        batch.bytes.min(self.limits.batch_lag_bytes)
    }

    /// Has a follower leave the stream for which there is no room for `batch`. The demotion thread does the rest.
    fn demote(
        &self,
        follower: &Arc<FollowerHandle>,
        batch: &Batch,
        reason: EvictionReason,
        (batches, handled): (Receiver<Arc<Batch>>, Sender<()>),
    ) {
        let status = follower.status(StreamPosition(batch.end));
        follower.queue.remove(batch.cost());
        follower.demoted();
        if let Some(demoted) = &mut *self.demoted.lock() {
            demoted.push(Demoted { follower: follower.clone(), status, reason, batches, handled });
        }
        self.demotion_thread.wake();
    }

    /// Provides what buffers are missing, from the system if need be. Not called where an append waits.
    pub(super) fn provide_spares(&self) {
        let missing = {
            let ordered = self.ordered.lock();
            if ordered.queues > 0 { SPARES - ordered.spares.len() } else { 0 }
        };
        if missing > 0 {
            self.refill_spares(missing, None, || Some(self.buffers.take_or_allocate()));
        }
    }

    fn refill_spares(&self, missing: usize, returned: Option<Vec<u8>>, next: impl FnMut() -> Option<Vec<u8>>) {
        let returned = returned.map(|mut returned| {
            returned.clear();
            returned
        });
        let spares: Vec<_> = returned.into_iter().chain(std::iter::from_fn(next)).take(missing).collect();
        let mut ordered = self.ordered.lock();
        // Others may have pushed meanwhile.
        let missing = SPARES - ordered.spares.len();
        let mut spares = spares.into_iter();
        ordered.spares.extend(spares.by_ref().take(missing));
        drop(ordered);
        spares.for_each(|spare| self.buffers.give(spare));
    }
}
