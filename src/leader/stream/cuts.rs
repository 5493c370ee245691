//! What changed since a position, and who begins or ends to get batches at one.

use std::sync::Arc;
use std::time::Duration;

use super::discarded::Discarded;
use super::{Demotable, Lost, Ordered, Queue, Stream};
use crate::config::OnFull;
use crate::index::Version;
use crate::index::recency::{Found, WalkId};
use crate::leader::batch::Batch;
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::stalls::Grace;
use crate::leader::peers::status::{EvictionReason, FollowerStatus};
use crate::sys::channel::{self, Receiver, Sender};
use crate::sys::thread;
use crate::types::{RelPath, StreamPosition};

/// Entries of a walk read within one hold of the `ordered` lock: some ten microseconds.
const WALK_ENTRIES: usize = 128;

/// Between two holds, so that the lock is free most of the time: whoever walks may lose its core while it holds it. Linux adds as much again.
const WALK_PAUSE: Duration = Duration::from_micros(20);

/// Files that changed.
pub(in crate::leader) struct Changes {
    /// Each once; those that went are absent.
    pub(in crate::leader) files: Vec<(RelPath, Version)>,
    /// Whoever has them lacks no more than what changed since this.
    pub(in crate::leader) as_of: StreamPosition,
    /// These are all files there are: it is not known any more what else went.
    pub(in crate::leader) whole: bool,
}

impl Stream {
    /// All files. Each is as it was at some moment since `as_of`.
    pub(in crate::leader) fn all(&self) -> Changes {
        let mut changes = self.walk(StreamPosition(0), None);
        changes.files.retain(|(_, version)| version.exists());
        changes.whole = true;
        changes
    }

    /// What changed since a position, in the same way.
    pub(in crate::leader) fn changes(&self, since: StreamPosition) -> Changes {
        let changes = self.walk(since, None);
        if self.knows_since(since) { changes } else { self.all() }
    }

    /// Whether it is known of all files that went since. To be asked after a walk.
    fn knows_since(&self, since: StreamPosition) -> bool {
        self.ordered.lock().index.complete_since() <= since.0
    }

    fn walk(&self, since: StreamPosition, begun: Option<(WalkId, StreamPosition)>) -> Changes {
        let (walk, as_of) = begun.unwrap_or_else(|| {
            let ordered = &mut *self.ordered.lock();
            (ordered.index.begin_walk(since.0, None), StreamPosition(ordered.position))
        });
        let (mut files, mut portion) = (Vec::new(), Vec::with_capacity(WALK_ENTRIES));
        let file = |found: Found| (found.path, found.version);
        loop {
            let more = self.ordered.lock().index.walk(&walk, WALK_ENTRIES, &mut portion);
            files.extend(portion.drain(..).map(file));
            if !more {
                break;
            }
            thread::park_timeout(WALK_PAUSE);
        }
        let saved = self.ordered.lock().index.end_walk(walk);
        if !saved.is_empty() {
            files.extend(saved.into_iter().flatten().map(file));
            files.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            files.dedup_by(|(a, _), (b, _)| a == b);
        }
        Changes { files, as_of, whole: false }
    }

    /// What changed since a position, exactly as of now, and from this very moment on the follower gets all batches.
    pub(in crate::leader) fn attach(&self, follower: &Arc<FollowerHandle>, since: StreamPosition) -> Attachment {
        let (sender, batches) = channel::bounded(self.limits.queue_batches);
        let (demotion, demotions) = channel::bounded(1);
        let demotable =
            (self.limits.on_full == OnFull::CatchUp).then(|| Demotable { batches: batches.clone(), demotion });
        let _cutting = self.cut.lock();
        let mut attached = self.attached.lock();
        let mut at = None;
        let gone = self.push_locked(&mut attached, |ordered| {
            at = Some(ordered.cut(since));
            ordered.queues += 1;
        });
        let (walk, position) = at.expect("push_locked calls it");
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
        self.provide_spares();
        // Who ended it meanwhile has found nothing to detach, and without that its writer would wait for ever.
        if follower.has_ended() {
            self.detach(follower);
        }
        let changes = Some(self.walk(since, Some((walk, position)))).filter(|_| self.knows_since(since));
        Attachment { changes, position, queue: AttachedQueue { batches, demotions } }
    }
}

impl Ordered {
    /// Begins to read what changed since a position as of this moment.
    fn cut(&mut self, since: StreamPosition) -> (WalkId, StreamPosition) {
        (self.index.begin_walk(since.0, Some(self.position)), StreamPosition(self.position))
    }
}

/// What [`Stream::attach`] gives.
pub(in crate::leader) struct Attachment {
    /// `None`: it is not known any more what went.
    pub(in crate::leader) changes: Option<Changes>,
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

/// What a writer needs to go on from disk.
pub(in crate::leader) struct Demotion {
    /// All files as of the cut.
    pub(in crate::leader) at_cut: Arc<Changes>,
    /// What the follower was not sent up to the cut.
    pub(in crate::leader) discarded: Discarded,
}

/// A follower just taken off the list, to be demoted.
pub(in crate::leader) struct Unqueued {
    pub(in crate::leader) follower: Arc<FollowerHandle>,
    /// As it was when its queue was full, or it was too far behind.
    pub(in crate::leader) status: FollowerStatus,
    pub(in crate::leader) reason: EvictionReason,
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
    pub(in crate::leader) fn unqueue_lost(&self) -> (Vec<Unqueued>, Changes) {
        let _cutting = self.cut.lock();
        let mut attached = self.attached.lock();
        let mut cut = None;
        // Up to this cut its batches are in the queue or among the lost ones.
        let gone = self.push_locked(&mut attached, |ordered| cut = Some(ordered.cut(StreamPosition(0))));
        // Including those whose queues only this push has found full: up to the cut, they too have everything.
        let full: Vec<_> = attached.followers.extract_if(.., |queue| queue.lost.is_some()).collect();
        self.ordered.lock().queues -= full.len();
        drop(attached);
        drop(gone);
        let mut changes = self.walk(StreamPosition(0), cut);
        changes.files.retain(|(_, version)| version.exists());
        (full.into_iter().filter_map(Queue::unqueue).collect(), changes)
    }
}

impl Queue {
    fn unqueue(self) -> Option<Unqueued> {
        let Self { follower, sender, demotable, lost, .. } = self;
        let (Demotable { batches, demotion }, Lost { status, reason, batches: lost, .. }) = demotable.zip(lost)?;
        Some(Unqueued { follower, status, reason, batches, lost, demotion, sender })
    }
}
