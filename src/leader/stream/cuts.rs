//! Cuts of the index, and who begins or ends to get batches at one.

use std::sync::Arc;

use super::{Demotable, Lost, Queue, Stream};
use crate::config::OnFull;
use crate::index::{Cut, TrackerId, Version};
use crate::leader::batch::Batch;
use crate::leader::demotion::Demotion;
use crate::leader::follower::FollowerHandle;
use crate::leader::stalls::Grace;
use crate::leader::status::{EvictionReason, FollowerStatus};
use crate::sys::channel::{self, Receiver, Sender};
use crate::types::{RelPath, StreamPosition};

/// Entries of a cut read within one hold of the `ordered` lock: some ten microseconds.
const CUT_ENTRIES: usize = 256;

impl Stream {
    /// Begins to track changes for a joining follower.
    pub(in crate::leader) fn track(self: &Arc<Self>) -> Tracker {
        let id = self.ordered.lock().index.track();
        Tracker { stream: self.clone(), id }
    }

    fn read_cut(&self, cut: &Cut) -> Vec<(RelPath, Version)> {
        let slots = cut.slots();
        let mut files = Vec::with_capacity(slots.len());
        for slots in slots.chunks(CUT_ENTRIES) {
            let ordered = self.ordered.lock();
            files.extend(slots.iter().map(|&slot| {
                let (path, version) = ordered.index.at(cut, slot);
                (path.clone(), version)
            }));
        }
        files
    }
}

/// A joining follower's interest in what changes.
pub(in crate::leader) struct Tracker {
    stream: Arc<Stream>,
    id: TrackerId,
}

impl Tracker {
    /// All files, as of one moment.
    pub(in crate::leader) fn all(&self) -> Vec<(RelPath, Version)> {
        let stream = &self.stream;
        let _reading = stream.cut.lock();
        let cut = stream.ordered.lock().index.cut_all(self.id);
        let mut files = stream.read_cut(&cut);
        files.retain(|(_, version)| version.exists());
        files
    }

    /// The files that changed since the last cut, as of one moment; those that were deleted are absent.
    pub(in crate::leader) fn changes(&self) -> Vec<(RelPath, Version)> {
        let stream = &self.stream;
        let _reading = stream.cut.lock();
        let cut = stream.ordered.lock().index.cut_changed(self.id);
        stream.read_cut(&cut)
    }

    /// Like [`changes`](Self::changes), and from that very moment on the follower gets all batches.
    pub(in crate::leader) fn attach(&self, follower: &Arc<FollowerHandle>) -> Attachment {
        let stream = &self.stream;
        let (sender, batches) = channel::bounded(stream.limits.queue_batches);
        let (demotion, demotions) = channel::bounded(1);
        let demotable =
            (stream.limits.on_full == OnFull::CatchUp).then(|| Demotable { batches: batches.clone(), demotion });
        let _reading = stream.cut.lock();
        let mut attached = stream.attached.lock();
        let mut at = None;
        let gone = stream.push_locked(&mut attached, |ordered| {
            at = Some((ordered.index.cut_changed(self.id), StreamPosition(ordered.position)));
            ordered.queues += 1;
        });
        let (cut, position) = at.expect("push_locked calls it");
        follower.attached_at(position);
        attached.followers.push(Queue {
            follower: follower.clone(),
            sender,
            demotable,
            lost: None,
            over_soft_since: None,
            grace: Grace::default(),
        });
        drop(attached);
        drop(gone);
        // The first is attached before anything is pushed.
        stream.provide_spares();
        // Who ended it meanwhile has found nothing to detach, and without that its writer would wait for ever.
        if follower.has_ended() {
            stream.detach(follower);
        }
        Attachment { changes: stream.read_cut(&cut), position, queue: AttachedQueue { batches, demotions } }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.stream.ordered.lock().index.untrack(self.id);
        while self.stream.ordered.lock().index.sweep(CUT_ENTRIES) {}
    }
}

/// What [`Tracker::attach`] gives.
pub(in crate::leader) struct Attachment {
    pub(in crate::leader) changes: Vec<(RelPath, Version)>,
    /// The moment.
    pub(in crate::leader) position: StreamPosition,
    pub(in crate::leader) queue: AttachedQueue,
}

/// The writer's side of a queue.
pub(in crate::leader) struct AttachedQueue {
    /// All batches from the moment on. They end when the follower is taken off the list ...
    pub(in crate::leader) batches: Receiver<Arc<Batch>>,
    /// ... and then there is something here if it was demoted.
    pub(in crate::leader) demotions: Receiver<Demotion>,
}

/// A follower just taken off the list, to be demoted.
pub(in crate::leader) struct Unqueued {
    pub(in crate::leader) follower: Arc<FollowerHandle>,
    /// As it was when its queue was full, or it was too far behind.
    pub(in crate::leader) status: FollowerStatus,
    pub(in crate::leader) reason: EvictionReason,
    /// What changes from the cut on.
    pub(in crate::leader) tracker: Tracker,
    /// What waited in its queue; its writer may still take some of it.
    pub(in crate::leader) batches: Receiver<Arc<Batch>>,
    /// What came after, up to the cut.
    pub(in crate::leader) lost: Vec<Arc<Batch>>,
    pub(in crate::leader) demotion: Sender<Demotion>,
    /// Its end tells the writer to look for a demotion: dropped after that was sent.
    pub(in crate::leader) sender: Sender<Arc<Batch>>,
}

impl Stream {
    /// Takes all followers whose queues were full off the list, at one cut of everything, and returns the files as of it.
    ///
    /// Blocks while others read cuts, and reads this one; only the list's own lock is held where batches are pushed.
    pub(in crate::leader) fn unqueue_lost(self: &Arc<Self>) -> (Vec<Unqueued>, Vec<(RelPath, Version)>) {
        let _reading = self.cut.lock();
        let mut attached = self.attached.lock();
        let mut cut = None;
        // Up to this cut its batches are in the queue or among the lost ones; from it on, the tracker knows.
        let gone = self.push_locked(&mut attached, |ordered| {
            let id = ordered.index.track();
            cut = Some((id, ordered.index.cut_all(id)));
        });
        let (id, cut) = cut.expect("push_locked calls it");
        let mut trackers = vec![Tracker { stream: self.clone(), id }];
        // Including those whose queues only this push has found full: up to the cut, they too have everything.
        let full: Vec<_> = attached.followers.extract_if(.., |queue| queue.lost.is_some()).collect();
        if !full.is_empty() {
            let mut ordered = self.ordered.lock();
            ordered.queues -= full.len();
            // As good as if these had been there at the cut: changes since it are noted for the first, and nobody cuts now.
            let more = (1..full.len()).map(|_| Tracker { stream: self.clone(), id: ordered.index.track() });
            trackers.extend(more);
        }
        drop(attached);
        drop(gone);
        if full.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let mut files = self.read_cut(&cut);
        files.retain(|(_, version)| version.exists());
        let unqueued = full.into_iter().zip(trackers).filter_map(|(queue, tracker)| queue.unqueue(tracker));
        (unqueued.collect(), files)
    }
}

impl Queue {
    fn unqueue(self, tracker: Tracker) -> Option<Unqueued> {
        let Self { follower, sender, demotable, lost, .. } = self;
        let (Demotable { batches, demotion }, Lost { status, reason, batches: lost, .. }) = demotable.zip(lost)?;
        Some(Unqueued { follower, status, reason, tracker, batches, lost, demotion, sender })
    }
}
