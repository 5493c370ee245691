//! Opening a leader in one, and its threads.

use std::io;
use std::sync::Arc;

use super::opening::Opening;
use crate::config::{LeaderConfig, OnFull};
use crate::coordinator::{InSyncSet, Leadership};
use crate::error::Error;
use crate::flusher::Flusher;
use crate::leader::Leader;
use crate::leader::commit::Syncer;
use crate::leader::files::last_led;
use crate::leader::files::last_led::{LastLed, OwnStand};
use crate::leader::tasks::{attributes, demotion, digester, directory};

impl Leader {
    /// Takes the directory's `.lock`, scans what is there, and starts. Nobody is listened to until [`listen`](Self::listen),
    /// so a host may first put its own files right; with an [`Opening`] followers are accepted before the scan.
    ///
    /// Blocks while the directory is walked. All that is in it is announced with the length it has.
    ///
    /// # Errors
    ///
    /// If a setting is out of range; if the directory is missing, in use or cannot be read; [`Error::Incomplete`] if it is a copy that is
    /// not complete, [`Error::Suspect`] if a sync of it has failed, and [`Error::Missing`] if much of what was last announced from it is gone. The directory is as it was then.
    pub fn open(config: LeaderConfig) -> Result<Self, Error> {
        Opening::new(config)?.open(&mut |_| true)
    }

    /// The same with calls of one's own that make durable. For tests.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open).
    #[doc(hidden)]
    pub fn open_flushed_by(config: LeaderConfig, flusher: Arc<dyn Flusher>) -> Result<Self, Error> {
        Self::open(config.flushed_by(flusher))
    }

    /// Like [`open`](Self::open), for a node of a cluster that has won an election: what follows in sync is recorded with the
    /// coordinator by a thread of its own, and nothing is confirmed as committed once the election is not held any more.
    /// `recorded` is the in-sync set as the coordinator has it, which this node should be in.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open).
    pub fn open_elected(
        config: LeaderConfig,
        leadership: Arc<dyn Leadership>,
        recorded: Option<&InSyncSet>,
    ) -> Result<Self, Error> {
        Opening::elected(config, leadership, recorded)?.open(&mut |_| true)
    }

    /// Whoever waited while the directory was read goes on. Does nothing when done before.
    pub(crate) fn let_in(&self) {
        self.core.door.open();
    }

    pub(super) fn start_threads(&self, led: LastLed) -> io::Result<()> {
        let core = self.core.clone();
        self.core
            .threads
            .spawn_until("in-sync", self.core.is_told_to_end(), move || core.commits.run_recorder(&core.stream))?;
        let (core, syncer) = (self.core.clone(), Syncer::new(self.core.dir.path(), self.core.config.flusher.clone())?);
        self.core.threads.spawn_until("sync", self.core.is_told_to_end(), move || {
            core.commits.run_syncer(&core.stream, &syncer, core.dir.own());
        })?;
        let core = self.core.clone();
        self.core.threads.spawn_until("commits", self.core.is_told_to_end(), move || core.commits.run_callbacks())?;
        let core = self.core.clone();
        let told = self.core.is_told_to_end();
        let mut stand = core.term.map(OwnStand::new);
        self.core.threads.spawn_until("last-led", told, move || {
            let keep_stand = || {
                let durable = core.commits.locally_durable();
                if let Some(kept) = stand.as_mut().and_then(|stand| stand.look(&core.dir, durable)) {
                    core.commits.own_kept(kept);
                }
            };
            last_led::run(&core.dir, &core.exclude, || core.stream.totals(), led, &core.ended, keep_stand)
        })?;
        let core = self.core.clone();
        self.core.threads.spawn_until("digests", self.core.is_told_to_end(), move || digester::run(&core))?;
        let core = self.core.clone();
        self.core.threads.spawn_until("attributes", self.core.is_told_to_end(), move || attributes::run(&core))?;
        let core = self.core.clone();
        self.core.threads.spawn_until("directory", self.core.is_told_to_end(), move || directory::run(&core))?;
        if self.core.config.on_full == OnFull::CatchUp {
            let core = self.core.clone();
            self.core.threads.spawn_until("demotion", self.core.is_told_to_end(), move || demotion::run(&core))?;
        }
        Ok(())
    }
}
