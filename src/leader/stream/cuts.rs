//! What changed since a position, and who begins or ends to get batches at one.

use std::sync::Arc;
use std::time::Duration;

use super::{Ordered, Queue, Stream};
use crate::config::OnFull;
use crate::index::Version;
use crate::index::recency::{Found, WalkId};
use crate::index::rewrites::range_of;
use crate::leader::batch::Batch;
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::stalls::Grace;
use crate::leader::peers::status::{EvictionReason, FollowerStatus};
use crate::protocol::extension::Attributes;
use crate::sys::channel::{self, Receiver, Sender};
use crate::sys::hash::{HashMap, HashSet};
use crate::sys::thread;
use crate::types::{RelPath, StreamPosition};

/// Entries of a walk read within one hold of the `ordered` lock: some ten microseconds.
pub(super) const WALK_ENTRIES: usize = 128;

/// Between two holds, so that the lock is free most of the time: whoever walks may lose its core while it holds it. Linux adds as much again.
pub(super) const WALK_PAUSE: Duration = Duration::from_micros(20);

/// Files that changed.
pub(in crate::leader) struct Changes {
    /// Each once; those that went are absent.
    pub(in crate::leader) files: Vec<(RelPath, Version)>,
    /// What was announced of each, if these are all.
    pub(in crate::leader) attributes: Vec<Attributes>,
    /// Whoever has them lacks no more than what changed since this.
    pub(in crate::leader) as_of: StreamPosition,
    /// These are all files there are: it is not known any more what else went.
    pub(in crate::leader) whole: bool,
}

/// Somebody joins, until this is dropped; see [`rewrites`](crate::index::rewrites).
pub(in crate::leader) struct Joining<'a> {
    stream: &'a Stream,
    /// Where the stream was then.
    pub(in crate::leader) since: StreamPosition,
}

impl Joining<'_> {
    /// What was written in place since a position, after this began; and perhaps more, up to now.
    pub(in crate::leader) fn rewritten(&self, since: StreamPosition) -> Rewritten {
        let mut rewritten = Rewritten::default();
        let (mut from, mut is_over) = ((since.0, u64::MAX, u64::MAX), false);
        while !is_over {
            let parts = self.stream.ordered.lock().index.rewritten(from, WALK_ENTRIES);
            // Then these were the last, at this moment. One that is changed again goes behind all others, and is met there: something else of it may have been changed before.
            is_over = parts.len() < WALK_ENTRIES;
            from = parts.last().copied().unwrap_or(from);
            for (_, generation, part) in parts {
                rewritten.parts.entry(generation).or_default().push(part);
            }
            thread::park_timeout(WALK_PAUSE);
        }
        for parts in rewritten.parts.values_mut() {
            parts.sort_unstable();
            parts.dedup();
        }
        let parts_are_known = self.stream.ordered.lock().index.rewritten_complete_since() <= since.0;
        let mut from = 0;
        loop {
            let files = self.stream.ordered.lock().index.rewritten_files(from, parts_are_known, WALK_ENTRIES);
            let Some((last, _)) = files.last() else { break };
            from = *last + 1;
            let changed = files.into_iter().filter(|(_, change)| *change > since.0);
            rewritten.files.extend(changed.map(|(generation, _)| generation));
            thread::park_timeout(WALK_PAUSE);
        }
        rewritten
    }
}

impl Drop for Joining<'_> {
    fn drop(&mut self) {
        let forgotten = self.stream.ordered.lock().index.end_join();
        drop(forgotten);
    }
}

/// What was written in place since a position.
#[derive(Default)]
pub(in crate::leader) struct Rewritten {
    /// Parts of files, ascending, by generation.
    parts: HashMap<u64, Vec<u64>>,
    /// Files of which not all parts are known.
    files: HashSet<u64>,
}

impl Rewritten {
    /// Whether anything of a generation was.
    pub(in crate::leader) fn is_of(&self, generation: u64) -> bool {
        self.parts.contains_key(&generation) || self.is_all_of(generation)
    }

    /// Whether any part of a generation may have been.
    pub(in crate::leader) fn is_all_of(&self, generation: u64) -> bool {
        self.files.contains(&generation)
    }

    /// Ranges, offset and length, of the first `len` bytes of a generation: those that were written to.
    pub(in crate::leader) fn ranges(&self, generation: u64, len: u64) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for part in self.parts.get(&generation).into_iter().flatten() {
            let (offset, bytes) = range_of(*part);
            let end = len.min(offset + bytes);
            match ranges.last_mut() {
                _ if offset >= end => {}
                // A small part may be within a large one.
                Some((at, len)) if *at + *len >= offset => *len = (end - *at).max(*len),
                _ => ranges.push((offset, end - offset)),
            }
        }
        ranges
    }
}

impl Stream {
    /// Before a follower's files are looked at that joins.
    pub(in crate::leader) fn begin_join(&self) -> Joining<'_> {
        let mut ordered = self.ordered.lock();
        let position = ordered.position;
        ordered.index.begin_join(position);
        Joining { stream: self, since: StreamPosition(position) }
    }

    /// All files. Each is as it was at some moment since `as_of`.
    pub(in crate::leader) fn all(&self) -> Changes {
        let (mut files, mut attributes) = (Vec::new(), Vec::new());
        let (as_of, _) = self.walk(StreamPosition(0), None, |found| {
            if found.version.exists() {
                files.push((found.path, found.version));
                attributes.push(found.attributes);
            }
        });
        Changes { files, attributes, as_of, whole: true }
    }

    /// What changed since a position, in the same way.
    pub(in crate::leader) fn changes(&self, since: StreamPosition) -> Changes {
        let changes = self.changed(since, None);
        if self.knows_since(since) { changes } else { self.all() }
    }

    /// Whether it is known of all files that went since. To be asked after a walk.
    fn knows_since(&self, since: StreamPosition) -> bool {
        self.ordered.lock().index.complete_since() <= since.0
    }

    fn changed(&self, since: StreamPosition, begun: Option<(WalkId, StreamPosition)>) -> Changes {
        let file = |found: Found| (found.path, found.version);
        let mut files = Vec::new();
        let (as_of, saved) = self.walk(since, begun, |found| files.push(file(found)));
        if !saved.is_empty() {
            files.extend(saved.into_iter().flatten().map(file));
            files.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            files.dedup_by(|(a, _), (b, _)| a == b);
        }
        Changes { files, attributes: Vec::new(), as_of, whole: false }
    }

    pub(super) fn walk(
        &self,
        since: StreamPosition,
        begun: Option<(WalkId, StreamPosition)>,
        mut found: impl FnMut(Found),
    ) -> (StreamPosition, Vec<Vec<Found>>) {
        let (walk, as_of) = begun.unwrap_or_else(|| {
            let ordered = &mut *self.ordered.lock();
            (ordered.index.begin_walk(since.0, None), StreamPosition(ordered.position))
        });
        let mut portion = Vec::with_capacity(WALK_ENTRIES);
        loop {
            let more = self.ordered.lock().index.walk(&walk, WALK_ENTRIES, &mut portion);
            portion.drain(..).for_each(&mut found);
            if !more {
                break;
            }
            thread::park_timeout(WALK_PAUSE);
        }
        (as_of, self.ordered.lock().index.end_walk(walk))
    }

    /// What changed since a position, exactly as of now, and from this very moment on the follower gets all batches.
    pub(in crate::leader) fn attach(&self, follower: &Arc<FollowerHandle>, since: StreamPosition) -> Attachment {
        let (sender, batches) = channel::bounded(self.limits.queue_batches);
        let (handled, emptied) = channel::bounded(0);
        let may_be_demoted = self.limits.on_full == OnFull::CatchUp && follower.extension;
        let demotable = may_be_demoted.then(|| (batches.clone(), handled));
        let _cutting = self.cut.lock();
        let mut attached = self.attached.lock();
        let mut at = None;
        let gone = self.push_locked(&mut attached, |ordered| {
            at = Some(ordered.cut(since));
            ordered.queues += 1;
            ordered.queues_of_v1 += usize::from(!follower.extension);
        });
        let (walk, position) = at.expect("push_locked calls it");
        follower.attached_at(position);
        attached.followers.push(Queue {
            follower: follower.clone(),
            sender,
            demotable,
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
        let changes = Some(self.changed(since, Some((walk, position)))).filter(|_| self.knows_since(since));
        Attachment { changes, position, queue: AttachedQueue { batches, emptied } }
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
    /// ... and this ends when nobody but its writer takes any out of it.
    pub(in crate::leader) emptied: Receiver<()>,
}

/// A follower just taken off the list, because its queue was full or it was too far behind, to catch up on the same connection.
pub(in crate::leader) struct Demoted {
    pub(in crate::leader) follower: Arc<FollowerHandle>,
    /// As it was before that.
    pub(in crate::leader) status: FollowerStatus,
    pub(in crate::leader) reason: EvictionReason,
    /// What waits in its queue; its writer may still take some of it.
    pub(in crate::leader) batches: Receiver<Arc<Batch>>,
    /// Its end tells its writer that the queue is empty.
    pub(in crate::leader) handled: Sender<()>,
}
