//! A term as leader, from its beginning to its end. Part of [`Runner`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::config::host_of;
use super::super::health::Health;
use super::super::host::{HostError, Term};
use super::super::{NodeError, Role};
use super::{End, Runner, TICK};
use crate::config::LeaderConfig;
use crate::coordinator::{InSyncSet, Leadership};
use crate::error::Error;
use crate::leader::{Leader, Opening};
use crate::own_folder::OwnFolder;
use crate::sys::net::TcpListener;
use crate::sys::time::Instant;
use crate::thread::deadline;

/// Between two attempts to stop a host that says it is still active.
const STOP_AGAIN: Duration = Duration::from_secs(5);
/// How long a node that handed leadership over because something failed stays out of elections; each time twice as long.
const STAY_OUT_MIN: Duration = Duration::from_secs(1);
const STAY_OUT_MAX: Duration = Duration::from_secs(60);

impl Runner {
    // ---- leading ----

    /// Leads until that is over, and returns when nothing is active here any more. An error ends the node.
    pub(super) fn lead(
        &mut self,
        leadership: &Arc<dyn Leadership>,
        listener: io::Result<TcpListener>,
    ) -> Result<(), NodeError> {
        self.shared.set_role(Role::Starting);
        log::info!("elected: {} leads", self.own.id);
        let mut unmarked = Arc::default();
        let led = self.lead_while_held(leadership, listener, &mut unmarked);
        // The next one is elected at once, and waits if something here may still be active: also a node that ends because it lost
        // its directory, or a thread, has stopped its host by now.
        match &led {
            Err(NodeError::StillActive(_)) => leadership.abandon(),
            _ => leadership.resign(),
        }
        led?;
        self.wait_for_directory("the leader")?;
        self.wait_for_mark(&unmarked);
        Ok(())
    }

    /// A sync may have failed that the directory does not tell of: it must before anybody follows, who would take what is there for
    /// durable, or campaigns.
    fn wait_for_mark(&self, unmarked: &AtomicBool) {
        while unmarked.load(Ordering::Acquire) {
            let marked = OwnFolder::of(self.data_dir()).and_then(|own| own.mark_suspect(&*self.config.leader.flusher));
            let Err(error) = marked else { return };
            log::error!("does not follow before the directory can be marked, of which a sync has failed: {error}");
            if self.shared.stop.wait(STOP_AGAIN) {
                return;
            }
        }
    }

    /// `unmarked`: as of [`Leader::unmarked`].
    fn lead_while_held(
        &mut self,
        leadership: &Arc<dyn Leadership>,
        listener: io::Result<TcpListener>,
        unmarked: &mut Arc<AtomicBool>,
    ) -> Result<(), NodeError> {
        // Before anything that a disk could hold up.
        let health = Health::start(self.lock.disk_probe(self.data_dir()), self.config.stall_timeout)?;
        leadership.set_health(health.check());
        self.wait_for_directory("the follower")?;
        let mut config = self.config.leader.clone();
        (config.id, config.lock) = (Some(self.own.id), Some(self.lock.clone()));
        // The set is as `may_take` found it.
        let recorded = self.in_sync.as_ref().and_then(Option::as_ref);
        let leader = match self.open(config, leadership, recorded, listener) {
            Ok(leader) => Arc::new(leader),
            Err(Error::ShuttingDown) if !leadership.is_held() => {
                log::warn!("leadership was lost before the directory was read");
                return Ok(());
            }
            Err(Error::ShuttingDown) => {
                log::info!("hands leadership over, to shut down, before the directory is read");
                return Ok(());
            }
            Err(error) => {
                log::error!("hands leadership over, cannot lead: {error}");
                self.stand_back(Duration::ZERO);
                return Ok(());
            }
        };
        health.watch(&leader);
        *unmarked = leader.unmarked();
        let term = Term::new(leader, leadership.clone(), self.lock.clone(), self.shared.stop.clone());
        let began = Instant::now();
        let end = self.serve(&term, &health).unwrap_or_else(|error| match () {
            () if !term.is_held() => End::Lost,
            () if self.shared.stop.is_set() => End::ShuttingDown,
            () => End::Failed(error),
        });
        self.close_proxies();
        self.shared.set_role(Role::Ending);
        let failed = self.check_threads(Some(&term));
        self.end(&term, end, began.elapsed())?;
        failed
    }

    /// Accepts followers, and then reads the directory, for as long as that makes sense: they wait meanwhile.
    pub(super) fn open(
        &self,
        config: LeaderConfig,
        leadership: &Arc<dyn Leadership>,
        recorded: Option<&InSyncSet>,
        listener: io::Result<TcpListener>,
    ) -> Result<Leader, Error> {
        let opening = Opening::standing_by(config, leadership.clone(), recorded)?;
        if self.host.will_watch() {
            opening.will_be_watched();
        }
        let unusable = |source| Error::Listen { who: "followers", at: self.config.listen.clone(), source };
        opening.listen_on(listener.map_err(unusable)?)?;
        log::info!("followers are accepted at {}", self.port.address());
        let began = Instant::now();
        let leader = opening.read(&mut |_| leadership.is_held() && !self.shared.stop.is_set())?;
        log::info!("{} files are there; that took {:.1?}", leader.file_count(), began.elapsed());
        Ok(leader)
    }

    /// Leads, until it should not.
    fn serve(&mut self, term: &Term, health: &Health) -> Result<End, HostError> {
        self.host.prepare(term)?;
        term.leader.let_in();
        self.host.start(term)?;
        self.shared.note_position(term.leader.epoch_position());
        self.shared.set_role(Role::Leading);
        let own_host = host_of(&self.own.address).to_owned();
        let pulse = health.pulse();
        loop {
            pulse.beat();
            if term.leadership.wait_lost(TICK) {
                return Ok(End::Lost);
            }
            if self.shared.stop.is_set() {
                // It may have written in the moment before it has shown that it is up: followers get that.
                term.leader.begin_recording();
                return Ok(End::ShuttingDown);
            }
            self.check_threads(Some(term))?;
            self.host.check(term)?;
            if self.host.is_up(term) {
                term.leader.begin_recording();
            }
            self.open_proxies(Some(&own_host), false);
            self.observe();
            self.shared.note_position(term.leader.epoch_position());
            if term.leader.has_sync_failed() && self.has_successor(&term.leader) {
                return Err("a sync of its own disk has failed, and another node is in sync".into());
            }
        }
    }

    /// Whether somebody is here who may lead next.
    fn has_successor(&self, leader: &Leader) -> bool {
        let Some(set) = self.in_sync.as_ref().and_then(Option::as_ref) else { return false };
        let in_sync = leader.in_sync().followers;
        leader.followers().iter().any(|follower| in_sync.contains(&follower.id) && set.contains(follower.id))
    }

    /// Ends what `serve` began, in the order that the end asks for: who lost leadership stops leading before anything that takes
    /// time; who hands it over keeps it until nobody writes any more and followers have everything.
    fn end(&mut self, term: &Term, end: End, led_for: Duration) -> Result<(), NodeError> {
        match end {
            End::Lost => {
                log::warn!("leadership was lost: stops leading");
                term.leader.shutdown(Duration::ZERO);
                self.stop_host(term)
            }
            End::ShuttingDown => {
                log::info!("hands leadership over, to shut down");
                let stopped = self.stop_host(term);
                self.drain(term);
                stopped
            }
            End::Failed(error) => {
                log::error!("hands leadership over: {error}");
                let stopped = self.stop_host(term);
                self.wait_for_successor(term);
                self.drain(term);
                self.stand_back(led_for);
                stopped
            }
        }
    }

    /// So that another node leads, if one may, and not this one again and again.
    pub(super) fn stand_back(&mut self, led_for: Duration) {
        self.stay_out = if led_for > STAY_OUT_MAX { STAY_OUT_MIN } else { (self.stay_out * 2).min(STAY_OUT_MAX) };
        self.stay_out_until = Instant::now() + self.stay_out;
        log::info!("does not stand for election for {:?}", self.stay_out);
    }

    /// There is nobody to hand over to unless somebody has everything: followers may still get it.
    fn wait_for_successor(&mut self, term: &Term) {
        self.observe();
        if self.in_sync.iter().flatten().all(|set| set.len() == 1) {
            // Nobody loses the right to lead by that, and somebody may gain it.
            term.leader.begin_recording();
        }
        let deadline = deadline(self.config.drain_timeout);
        loop {
            self.observe();
            let others = self.in_sync.as_ref().and_then(Option::as_ref).map_or(0, InSyncSet::len);
            let over = others > 1 || self.shared.stop.is_set() || Instant::now() >= deadline;
            if over || term.leadership.wait_lost(TICK) {
                return;
            }
        }
    }

    fn drain(&self, term: &Term) {
        // Before anything is recorded nobody of the set is let in: whoever leads next has what it had.
        let drains = term.is_held() && term.leader.is_recording();
        let timeout = if drains { self.config.drain_timeout } else { Duration::ZERO };
        for (id, bytes) in &term.leader.shutdown(timeout).undrained {
            let lack = bytes.map_or("was joining".to_owned(), |bytes| format!("lacks {bytes} bytes"));
            log::warn!("follower {id} {lack}");
        }
    }

    /// Returns when the host is not active any more. An error: the node shuts down, and the host may be so still.
    fn stop_host(&mut self, term: &Term) -> Result<(), NodeError> {
        while let Err(error) = self.host.stop(term) {
            if self.shared.stop.is_set() {
                return Err(NodeError::StillActive(error));
            }
            log::error!(
                "does not follow before what was active here has ended: {error}; trying again in {STOP_AGAIN:?}"
            );
            let _ = self.shared.stop.wait(STOP_AGAIN);
        }
        Ok(())
    }
}
