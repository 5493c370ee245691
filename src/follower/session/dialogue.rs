//! What a leader asks, and its syncs. Part of [`Session`].

use std::io;

use super::super::contact::{Contact, Standing};
use super::super::disk::{Job, Told};
use super::super::kept::Keeper;
use super::super::status::{State, SyncProgress};
use super::{Asked, Phase, Session, Sync, out_of_place, wait};
use crate::error::Error;
use crate::sys::channel;

impl Session<'_> {
    /// The leader is not ready yet.
    pub(super) fn opening(&mut self, files: u64) -> Result<(), Error> {
        if self.phase != Phase::Before || !matches!(self.asked, Asked::Nothing) {
            return Err(out_of_place("the leader opens after it had begun"));
        }
        if let Some(_unsaid) = self.waits.is_due() {
            log::info!("the leader is reading its directory, {files} files so far: waiting until it has");
        }
        self.parts.shared.update(|status| {
            status.state = State::LeaderOpening;
            status.leader_files = Some(files);
        });
        Ok(())
    }

    /// What is here, before a sync. In the stream as well: the leader has thrown away what it should have sent.
    pub(super) fn want(&mut self, bits: u8) -> Result<(), Error> {
        if self.phase == Phase::Syncing || !matches!(self.asked, Asked::Nothing) {
            return Err(out_of_place("the sums were asked for out of turn"));
        }
        // What came before is told of.
        self.settle()?;
        self.asked = Asked::Sums { bits, buckets: Vec::new() };
        self.parts.shared.update(|status| {
            status.state = State::Syncing;
            status.sync = SyncProgress::default();
            (status.admitted_in, status.leader_files) = (None, None);
        });
        let names = self.parts.limit.standing != Standing::Trusted;
        self.parts.jobs.put(Job::Sums { bits, names });
        Ok(())
    }

    /// There are never more of them than buckets.
    pub(super) fn tell(&mut self, more: &[u32]) -> Result<(), Error> {
        let Asked::Sums { bits, buckets } = &mut self.asked else {
            return Err(out_of_place("files were asked for out of turn"));
        };
        for bucket in more {
            if u64::from(*bucket) >> *bits != 0 || buckets.last().is_some_and(|last| last >= bucket) {
                return Err(out_of_place(format!("files of bucket {bucket}, which is none, or not the next")));
            }
            buckets.push(*bucket);
        }
        Ok(())
    }

    pub(super) fn tell_ends(&mut self) -> Result<(), Error> {
        let Asked::Sums { bits, buckets } = std::mem::replace(&mut self.asked, Asked::Files) else {
            return Err(out_of_place("files were asked for out of turn"));
        };
        self.parts.jobs.put(Job::Inventory { bits, buckets });
        Ok(())
    }

    /// What is here, once all was told of it that was asked for.
    fn told(&self) -> Option<Told> {
        match &self.asked {
            Asked::Sums { buckets, .. } if buckets.is_empty() => self.parts.jobs.told(false),
            Asked::Files => self.parts.jobs.told(true),
            _ => None,
        }
    }

    pub(super) fn sync_begins(&mut self, files: u64, bytes: u64) -> Result<(), Error> {
        let Some(told) = self.told().filter(|_| self.phase != Phase::Syncing) else {
            return Err(out_of_place("a sync began before all was told that was asked for"));
        };
        self.asked = Asked::Nothing;
        if told.files == 0 {
            // Of what is not there nothing has to be made durable.
            self.actions.unflushed();
        }
        self.unready = told.cut;
        let is_first = self.phase == Phase::Before;
        if !is_first || self.parts.limit.standing == Standing::Trusted || told.files == 0 {
            self.take_over()?;
        } else {
            self.contact = Some(Contact::new(self.parts.limit, told.names));
        }
        self.actions.keeper = Some(Keeper::new(self.actions.dir, self.parts.keep));
        self.phase = Phase::Syncing;
        self.tell_phase();
        self.sync = Sync::default();
        self.actions.deleted = 0;
        if self.contact.is_none() {
            self.make_ready()?;
        }
        log::info!("the leader sends {bytes} bytes of {files} files");
        self.parts.shared.update(|status| {
            status.state = State::Syncing;
            status.sync.files_total = Some(files);
            status.sync.bytes_total = Some(bytes);
            (status.sync.files_received, status.sync.bytes_received, status.sync.files_deleted) = (0, 0, 0);
        });
        Ok(())
    }

    pub(super) fn sync_ends(&mut self, mark: u64) -> Result<(), Error> {
        if self.phase != Phase::Syncing {
            return Err(out_of_place("a sync ended that had not begun"));
        }
        if self.contact.as_ref().is_some_and(Contact::holds_back) || !self.unready.is_empty() {
            self.begin_contact()?;
        }
        self.settle()?;
        if self.contact.take().is_some() {
            self.unready.clear();
            self.belong()?;
        }
        let mut unflushed = self.actions.unflushed();
        if let Some(keeper) = self.actions.keeper.take() {
            if keeper.count() > 0 {
                // Also what was kept.
                unflushed.everything();
            }
            keeper.report();
        }
        self.parts.jobs.put(Job::Flush(unflushed, mark, None));
        self.phase = Phase::CatchingUp;
        self.tell_phase();
        let sync = self.parts.shared.status().sync;
        log::info!(
            "sync done: {} files received with {} bytes; {} deleted",
            sync.files_received,
            sync.bytes_received,
            sync.files_deleted
        );
        Ok(())
    }

    /// Nothing that the last sync left out is missing any more.
    pub(super) fn caught_up(&mut self, mark: u64) -> Result<(), Error> {
        self.settle()?;
        let (answer, synced) = channel::bounded(1);
        let unflushed = self.actions.unflushed();
        self.phase = Phase::Streaming;
        self.tell_phase();
        self.parts.jobs.put(Job::Synced(unflushed, mark, self.position(), answer));
        if self.parts.once {
            wait(&synced)?;
            self.done = true;
        }
        Ok(())
    }

    /// Marks the directory as incomplete; waits until that is on disk.
    pub(super) fn mark(&self) -> Result<(), Error> {
        let (answer, marked) = channel::bounded(1);
        self.parts.jobs.put(Job::Mark(answer));
        wait(&marked)
    }

    pub(super) fn goodbye(&mut self, back_in_ms: u32, reason: String) -> Error {
        log::warn!("the leader lets this follower go: {reason}; back in {back_in_ms} ms");
        let said = format!("the leader let this follower go: {reason}");
        self.parts.shared.update(|status| status.last_eviction = Some(reason));
        self.goodbye = Some(back_in_ms);
        Error::connection("ended", io::Error::other(said))
    }
}
