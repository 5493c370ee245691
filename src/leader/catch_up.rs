//! Catching up.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;

use super::Core;
use super::batch::{Batch, Step};
use super::connection::Frame;
use super::follower::FollowerHandle;
use super::ranges::{Ranges, broken, gone};
use super::status::{EvictionReason, FollowerState};
use super::stream::Tracker;
use super::view::View;
use crate::error::Error;
use crate::types::StreamPosition;

pub(super) struct CatchUp<'a> {
    pub(super) core: &'a Arc<Core>,
    pub(super) follower: &'a Arc<FollowerHandle>,
    pub(super) frame: &'a mut Frame,
    pub(super) ranges: Ranges<'a>,
    pub(super) view: View,
}

impl CatchUp<'_> {
    pub(super) fn run(mut self, tracker: &Tracker) -> Result<Receiver<Arc<Batch>>, Error> {
        let quarter = self.core.config.queue_bytes / 4;
        self.follower.set_state(FollowerState::CatchingUp);
        self.wait_acknowledged()?;
        let mut last_bytes = 0;
        loop {
            // What changed during a round is some part of what the round moved, if the follower is faster than the writers.
            if last_bytes <= quarter {
                let attachment = tracker.attach(self.follower);
                let steps = self.view.plan(attachment.changes);
                let bytes = steps.iter().map(Step::bytes).sum::<u64>();
                if bytes <= quarter {
                    self.send(steps, Some(attachment.position))?;
                    self.follower.sending(0, Some(attachment.position), Instant::now());
                    self.core.progress.changed();
                    return Ok(attachment.batches);
                }
                self.core.stream.detach(self.follower);
                self.follower.detached();
                drop(attachment.batches);
                self.round(steps, &mut last_bytes)?;
            } else {
                let steps = self.view.plan(tracker.changes());
                self.round(steps, &mut last_bytes)?;
            }
        }
    }

    fn round(&mut self, steps: Vec<Step>, last_bytes: &mut u64) -> Result<(), Error> {
        let bytes = steps.iter().map(Step::bytes).sum::<u64>();
        let FollowerHandle { id, address, .. } = &**self.follower;
        if *last_bytes > 0 && bytes >= *last_bytes {
            log::warn!(
                "follower {id} at {address} catches up no faster than writers append: {bytes} bytes are missing"
            );
        } else {
            log::info!("follower {id} at {address} catches up: {bytes} bytes are missing");
        }
        *last_bytes = bytes;
        self.send(steps, None)?;
        self.wait_acknowledged()
    }

    fn send(&mut self, steps: Vec<Step>, attached: Option<StreamPosition>) -> Result<(), Error> {
        for step in steps {
            // Once attached, what mends a void file is in the queue already.
            if let Err(path) = self.ranges.send_step(self.frame, &step)?
                && attached.is_none()
            {
                self.view.void(&path);
            }
        }
        self.frame.flush().map_err(broken)?;
        self.follower.written();
        Ok(())
    }

    fn wait_acknowledged(&mut self) -> Result<(), Error> {
        if self.follower.wait_acknowledged(self.core.config.sync_timeout) {
            return Ok(());
        }
        self.follower.evict_at(EvictionReason::NoSyncProgress, self.core.stream.position());
        Err(gone())
    }
}
