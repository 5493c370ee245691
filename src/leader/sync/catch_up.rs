//! Catching up: from a view of what a follower has to the stream, for who has just synced.
//!
//! In *rounds*: what changed since the last one began is read from disk and sent, as ordinary actions. In each the follower attaches to
//! the stream at the very moment of the cut; if what is then left to catch up with is more than a quarter of its queue could
//! hold up for, it is detached again, and the next round is shorter. A round ends when it is acknowledged.
//!
//! What was written in place since is read after the cut, and so is all of it and perhaps more: what is sent of it too early comes once more.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::Error;
use crate::index::Version;
use crate::leader::batch::Step;
use crate::leader::core::Core;
use crate::leader::link::frame::Frame;
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::gone::{broken, gone};
use crate::leader::peers::status::{CatchUpStatus, EvictionReason};
use crate::leader::stream::{AttachedQueue, Attachment, Changes, Joining, Rewritten};
use crate::leader::sync::ranges::Ranges;
use crate::leader::sync::view::View;
use crate::protocol::extension::Control;
use crate::sys::hash::HashSet;
use crate::sys::time::Instant;
use crate::types::{RelPath, StreamPosition};

pub(in crate::leader) struct CatchUp<'a> {
    pub(in crate::leader) core: &'a Arc<Core>,
    pub(in crate::leader) follower: &'a Arc<FollowerHandle>,
    pub(in crate::leader) frame: &'a mut Frame,
    pub(in crate::leader) ranges: Ranges<'a>,
    pub(in crate::leader) view: View,
    /// How long it may acknowledge nothing of a round; `None` if the ack thread watches that.
    pub(in crate::leader) ack_timeout: Option<Duration>,
    /// Begun before any of its files was looked at: what was written in place since is told.
    pub(in crate::leader) joining: Joining<'a>,
    /// What a follower of 1.0.0 has as it was before that: it gets these files whole once it is attached. Sent again in each round, a large file that is written to all the time would
    /// keep it from ever being.
    pub(in crate::leader) owed: BTreeSet<RelPath>,
    /// Folders and links that it has; of one that knows the extension. Those that go meanwhile would be in the way of what comes; the others are told once it is attached.
    pub(in crate::leader) items: Vec<RelPath>,
}

impl<'a> CatchUp<'a> {
    /// Blocks until the follower is attached, with little left to send. What it lacks of `changes` comes first, and then what changed
    /// since.
    pub(in crate::leader) fn run(mut self, changes: Changes) -> Result<CaughtUp, Error> {
        let config = &self.core.config;
        let quarter = config.queue_bytes.min(config.lag_bytes_max()) / 4;
        self.follower.catches_up(self.core.stream.position());
        self.wait_acknowledged()?;
        let mut last_bytes = 0;
        let mut since = changes.as_of;
        if !changes.files.is_empty() {
            let steps = self.view.plan(changes, &Rewritten::default());
            self.round(steps, &mut last_bytes)?;
        }
        loop {
            // What changed during a round is some part of what the round moved, if the follower is faster than the writers.
            if last_bytes > quarter {
                self.round_since(&mut since, &mut last_bytes)?;
                continue;
            }
            let Attachment { changes, position, queue } = self.core.stream.attach(self.follower, since);
            let rewritten = self.joining.rewritten(since);
            let steps = changes.map(|changes| self.plan(changes, &rewritten));
            let bytes = |steps: &Vec<Step>| steps.iter().map(Step::bytes).sum::<u64>();
            match steps {
                Some(steps) if bytes(&steps) <= quarter => {
                    if self.follower.extension {
                        self.core.looks.joined(self.joining.since, self.items_gone());
                    }
                    let owed = self.owed.into_iter().collect();
                    return Ok(CaughtUp { steps, position, queue, owed });
                }
                steps => {
                    self.core.stream.detach(self.follower);
                    drop(queue.batches);
                    // If it was full already, the demotion thread is at it: nobody may be when it attaches again.
                    let _ = queue.emptied.recv();
                    self.follower.detached();
                    match steps {
                        Some(steps) => {
                            since = position;
                            self.round(steps, &mut last_bytes)?;
                        }
                        None => self.round_since(&mut since, &mut last_bytes)?,
                    }
                }
            }
        }
    }

    fn round_since(&mut self, since: &mut StreamPosition, last_bytes: &mut u64) -> Result<(), Error> {
        let changes = self.core.stream.changes(*since);
        let rewritten = self.joining.rewritten(*since);
        *since = changes.as_of;
        let steps = self.plan(changes, &rewritten);
        self.round(steps, last_bytes)
    }

    fn plan(&mut self, changes: Changes, rewritten: &Rewritten) -> Vec<Step> {
        if !self.follower.extension {
            let is_owed = |(_, version): &&(RelPath, Version)| version.exists() && rewritten.is_of(version.generation);
            self.owed.extend(changes.files.iter().filter(is_owed).map(|(path, _)| path.clone()));
        }
        let steps = self.view.plan(changes, rewritten);
        let gone = self.items_gone();
        gone.into_iter().map(|path| Step::Control(Control::RemoveItem(path))).chain(steps).collect()
    }

    /// Folders and links that it has, and that are not announced any more. The innermost first.
    fn items_gone(&self) -> Vec<RelPath> {
        if self.items.is_empty() {
            return Vec::new();
        }
        let there: HashSet<RelPath> =
            self.core.stream.items(StreamPosition(0)).into_iter().map(|(path, _)| path).collect();
        let mut gone: Vec<_> = self.items.iter().filter(|path| !there.contains(*path)).cloned().collect();
        gone.sort_unstable_by(|a, b| b.cmp(a));
        gone
    }

    fn round(&mut self, steps: Vec<Step>, last_bytes: &mut u64) -> Result<(), Error> {
        let bytes = steps.iter().map(Step::bytes).sum::<u64>();
        let before = self.follower.catch_up_round(self.core.stream.position(), bytes);
        self.report(bytes, *last_bytes, before);
        *last_bytes = bytes;
        let turn = self.core.admission.catch_ups.acquire(self.follower)?;
        for step in steps {
            if let Err(path) = self.ranges.send_step(self.frame, &step)? {
                self.view.void(&path);
            }
            self.ranges.beat(self.frame)?;
        }
        self.frame.flush().map_err(broken)?;
        self.follower.written();
        drop(turn);
        self.wait_acknowledged()
    }

    fn report(&self, bytes: u64, last_bytes: u64, before: Option<CatchUpStatus>) {
        let FollowerHandle { id, address, .. } = &**self.follower;
        let missing = format!("follower {id} at {address} catches up: {bytes} bytes are missing");
        let Some(CatchUpStatus { rate_bytes_per_s, append_bytes_per_s, estimated, .. }) = before else {
            log::info!("{missing}");
            return;
        };
        let rates = format!("{rate_bytes_per_s} bytes/s against {append_bytes_per_s} bytes/s appended");
        match estimated {
            Some(time) if bytes < last_bytes => log::info!("{missing}, {rates}: about {:.1} s", time.as_secs_f64()),
            _ => log::warn!(
                "{missing}, {rates}: it never ends unless writers append less, or the follower or its link gets faster"
            ),
        }
    }

    fn wait_acknowledged(&mut self) -> Result<(), Error> {
        if self.follower.wait_acknowledged(self.ack_timeout) {
            return Ok(());
        }
        self.follower.evict_at(EvictionReason::NoSyncProgress, self.core.stream.position());
        Err(gone())
    }
}

/// A follower that is attached to the stream, and what it still lacks of what came before.
pub(in crate::leader) struct CaughtUp {
    steps: Vec<Step>,
    position: StreamPosition,
    queue: AttachedQueue,
    owed: Vec<RelPath>,
}

impl CaughtUp {
    /// Sends what is left: in time, for its queue fills meanwhile. Returns the queue.
    pub(in crate::leader) fn finish(
        self,
        core: &Arc<Core>,
        follower: &Arc<FollowerHandle>,
        frame: &mut Frame,
    ) -> Result<AttachedQueue, Error> {
        let mut ranges = Ranges::new(core, follower);
        for step in &self.steps {
            // What mends a void file is in the queue already.
            let _ = ranges.send_step(frame, step)?;
        }
        for path in &self.owed {
            follower.void(path, StreamPosition(0), self.position);
        }
        core.stream.owes(&self.owed);
        // What follows are the batches from here on.
        follower.owed_position.store(follower.extension, Ordering::Relaxed);
        ranges.tell_whole(frame, self.position)?;
        frame.flush().map_err(broken)?;
        follower.written();
        // Before it may be in sync: it is never seen as both.
        follower.caught_up();
        follower.sending(0, Some(self.position), Instant::now());
        core.passed(follower);
        core.progress.changed();
        log::info!("follower {} at {} follows the stream", follower.id, follower.address);
        Ok(self.queue)
    }
}
