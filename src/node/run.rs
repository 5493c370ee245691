//! The node's own thread: which role it has, and the way from one to the next. See [`super`] for the drawing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::bidder::Bidder;
use super::candidacy::{Candidacy, Shows, observed};
use super::committed::{Behind, REMEDY};
use super::config::{NodeConfig, host_of};
use super::data_set::{Bar, Standing};
use super::following::{Following, Own};
use super::health::Health;
use super::host::{Host, HostError, Term};
use super::leaderless::{Leaderless, Obstacle};
use super::port::Port;
use super::precedence::{BIDS_MAX_WAIT, Verdict, judge};
use super::proxy::Proxy;
use super::{NodeError, Role, Shared};
use crate::config::LeaderConfig;
use crate::coordinator::{
    Bid, Candidate, Coordinator, CoordinatorError, InSyncSet, LeaderInfo, Leadership, Observation,
};
use crate::datadir::{DataDir, DirLock};
use crate::error::Error;
use crate::leader::{Leader, Opening};
use crate::own_folder::{OwnFolder, is_incomplete, is_suspect};
use crate::position::EpochPosition;
use crate::seldom::Seldom;
use crate::sys::channel::{Receiver, Select, TryRecvError};
use crate::sys::net::TcpListener;
use crate::sys::thread;
use crate::sys::time::Instant;
use crate::thread::{DROP_JOIN_MAX, deadline};
use crate::types::{DataSetId, NodeId};

/// How often the follower, the host and the proxies are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Between two attempts to stop a host that says it is still active.
const STOP_AGAIN: Duration = Duration::from_secs(5);
/// How long a node that handed leadership over because something failed stays out of elections; each time twice as long.
const STAY_OUT_MIN: Duration = Duration::from_secs(1);
const STAY_OUT_MAX: Duration = Duration::from_secs(60);
/// Between two attempts to open a proxy whose port is in use.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// How often it is said that the directory is of another data set.
const SAY_BARRED: Duration = Duration::from_secs(60);

/// Why the node ceases to lead.
enum End {
    Lost,
    ShuttingDown,
    Failed(HostError),
}

/// A won election, before it is known whether somebody else has more.
struct Won {
    leadership: Arc<dyn Leadership>,
    /// Since then: whoever else has heard of the election comes now, and waits rather than being refused.
    listener: io::Result<TcpListener>,
    /// How long the others are waited for.
    until: Instant,
    /// Something may have changed since they were looked at.
    look: bool,
}

/// An election that may be taken, and what listens for followers since.
type Taken = (Arc<dyn Leadership>, io::Result<TcpListener>);

/// All that the node's thread owns.
pub(super) struct Runner {
    pub(super) config: NodeConfig,
    pub(super) own: Own,
    pub(super) lock: DirLock,
    pub(super) coordinator: Arc<dyn Coordinator>,
    pub(super) host: Box<dyn Host>,
    pub(super) proxies: Vec<Proxy>,
    /// Where followers are accepted while the node leads.
    pub(super) port: Port,
    pub(super) leaders: Observation<Option<LeaderInfo>>,
    pub(super) sets: Observation<Option<InSyncSet>>,
    pub(super) data_sets: Observation<Option<DataSetId>>,
    pub(super) candidates: Observation<Vec<Candidate>>,
    /// As last observed; `None`: nothing was observed yet.
    pub(super) in_sync: Option<Option<InSyncSet>>,
    /// Of which data set the cluster is, in the same way.
    pub(super) clusters: Option<Option<DataSetId>>,
    /// Of which the directory is.
    pub(super) ours: Option<DataSetId>,
    /// Whether the directory had a node's id when this one started, or has been in sync with a leader since.
    pub(super) was_a_nodes: bool,
    /// Why the node does not take part, and when that was said.
    pub(super) barred: Option<(Bar, Instant)>,
    /// What the directory lacks of what was committed, as it was said last.
    pub(super) behind: Option<Behind>,
    pub(super) leader: Option<LeaderInfo>,
    /// Whether the threads that observe the coordinator are there.
    pub(super) observes: bool,
    /// Disconnected once the node is to stop.
    pub(super) stopped: Receiver<()>,
    pub(super) shared: Arc<Shared>,
    pub(super) stay_out: Duration,
    pub(super) stay_out_until: Instant,
    /// Which data set this node would make the cluster.
    pub(super) proposed: Option<DataSetId>,
    pub(super) open_again: Instant,
    pub(super) not_opened: Seldom,
}

impl Runner {
    /// The thread's life: it follows and leads in turns, until it is told to stop or cannot go on.
    pub(super) fn run(mut self) -> Result<(), NodeError> {
        while let Some((leadership, listener)) = self.follow()? {
            self.lead(&leadership, listener)?;
        }
        Ok(())
    }

    // ---- following ----

    /// Follows whoever is elected, and campaigns while it may. Returns the leadership that was won and may be taken, when
    /// nothing follows any more; `None` to stop.
    fn follow(&mut self) -> Result<Option<Taken>, NodeError> {
        if self.shared.stop.is_set() {
            return Ok(None);
        }
        let mut won = None;
        let taken = self.follow_until_elected(&mut won);
        if let Some(won) = won {
            won.leadership.resign();
        }
        taken
    }

    /// `won` is what is left of an election when this ends otherwise.
    fn follow_until_elected(&mut self, won: &mut Option<Won>) -> Result<Option<Taken>, NodeError> {
        self.shared.set_role(Role::Following);
        let mut config = self.config.follower.clone();
        (config.id, config.lock) = (Some(self.own.id), Some(self.lock.clone()));
        let mut following = Following::new(config, self.own.clone())?;
        let mut bid = Bid { term: 0, position: following.position() };
        let mut candidacy = Candidacy::new(self.coordinator.clone(), self.own.id, &self.own.uri, bid);
        let bidder = Bidder::start(self.coordinator.clone(), self.own.id).map_err(CoordinatorError::Thread)?;
        let mut leaderless = Leaderless::default();
        while !self.shared.stop.is_set() {
            self.ours = following.status().and_then(|status| status.data_set).or(self.ours);
            // Who has got all there is from a leader that names no data set (LavinMQ) is one like those that did so earlier.
            self.was_a_nodes |= following.synced_host().is_some();
            let standing = self.standing();
            self.say_barred(standing);
            let may_follow = standing.is_some_and(|standing| standing.bars_following().is_none());
            match won {
                Some(_) => following.pause(),
                None => following.set_leader(self.leader.clone(), may_follow)?,
            }
            following.check()?;
            self.check_threads(None)?;
            self.shared.note(following.leader(), self.in_sync.clone().flatten(), following.status());
            self.shared.note_position(following.position());
            self.open_proxies(following.synced_host().map(str::to_owned).as_deref(), true);
            if let Some(next) = self.next_bid(bid, &following) {
                bid = next;
                candidacy.set_bid(bid);
                bidder.tell(bid);
            }
            let takes = won.as_mut().and_then(|won| self.takes(won, &following));
            if let Some(Won { leadership, listener, .. }) = won.take_if(|_| takes.is_some()) {
                if takes == Some(true) && self.may_take(&*leadership, following.shown()) {
                    self.close_proxies();
                    following.end_to_lead();
                    return Ok(Some((leadership, listener)));
                }
                leadership.resign();
                continue;
            }
            self.stand(&mut candidacy, &mut leaderless, following.shown(), won.is_some());
            self.say_behind(candidacy.behind());
            let (leaders, sets) = (self.leaders.receiver().clone(), self.sets.receiver().clone());
            let data_sets = self.data_sets.receiver().clone();
            let candidates = self.candidates.receiver().clone();
            let mut select = Select::new();
            select.recv(&leaders);
            select.recv(&sets);
            select.recv(&data_sets);
            select.recv(&candidates);
            select.recv(candidacy.outcome());
            select.recv(&self.stopped);
            let _ = select.ready_timeout(TICK);
            drop(select);
            if let Some(leader) = observed(&leaders)? {
                self.leader = leader;
                self.close_proxies();
            }
            self.in_sync = observed(&sets)?.or(self.in_sync.take());
            self.clusters = observed(&data_sets)?.or(self.clusters.take());
            if let Some(candidates) = observed(&candidates)? {
                let own = candidates.iter().find(|candidate| candidate.id == Some(self.own.id));
                // A campaign began with what it had before.
                if own.and_then(|own| own.bid).is_some_and(|told| told != bid) {
                    bidder.tell(bid);
                }
                won.iter_mut().for_each(|won| won.look = true);
            }
            if let Some(leadership) = candidacy.take()? {
                *won = Some(Won {
                    leadership,
                    listener: self.port.listen(),
                    until: Instant::now() + BIDS_MAX_WAIT,
                    look: true,
                });
            }
        }
        Ok(None)
    }

    /// What this node has at the election of a leader that is another one than its last bid was for, once nothing of those before is applied any more.
    fn next_bid(&self, last: Bid, following: &Following) -> Option<Bid> {
        let term = self.leader.as_ref()?.term;
        let position = if term == last.term { None } else { following.position_at_rest(TICK) };
        position.map(|position| Bid { term, position })
    }

    /// Whether a leadership that was won is to be taken: not if another candidate has more. `None`: it is still waited for what others have.
    fn takes(&self, won: &mut Won, following: &Following) -> Option<bool> {
        let Some(term) = won.leadership.term() else { return Some(true) };
        let is_late = Instant::now() >= won.until;
        if !won.leadership.is_held() {
            return Some(false);
        }
        let Some(has) = following.position_at_rest(TICK) else { return is_late.then_some(true) };
        if !std::mem::take(&mut won.look) && !is_late {
            return None;
        }
        let candidates = match self.retry(&*won.leadership, || self.coordinator.candidates()) {
            Ok(candidates) => candidates,
            Err(error) => {
                log::warn!("elected, and it is not known what the other candidates have: {error}");
                return Some(true);
            }
        };
        let set = self.in_sync.as_ref().and_then(Option::as_ref);
        match judge(term, has, &candidates, |id| set.is_none_or(|set| set.contains(id))) {
            Verdict::Leads => Some(true),
            Verdict::GivesWay { to, has: theirs } => {
                let ours = has.map(|has| has.to_string()).unwrap_or_default();
                log::info!("elected, but gives way to node {to}, which has more: {theirs}, and this one {ours}");
                Some(false)
            }
            Verdict::Waits(ids) if is_late => {
                let ids = ids.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ");
                log::warn!(
                    "elected, and leads though it is not known what {ids} has: it did not say so within {BIDS_MAX_WAIT:?}"
                );
                Some(true)
            }
            Verdict::Waits(_) => None,
        }
    }

    /// Why this node may not stand for election, if it may not: only one in the recorded set has what was committed, and who is told
    /// nothing yet does not know.
    fn obstacle(&self) -> Option<Obstacle<'_>> {
        let own = self.own.id;
        let Some(standing) = self.standing() else { return Some(Obstacle::NothingObserved) };
        if let Some(bar) = standing.bars_leading() {
            return Some(Obstacle::Barred(bar));
        }
        let stands_back = self.stay_out_until.saturating_duration_since(Instant::now());
        match &self.in_sync {
            None => Some(Obstacle::NothingObserved),
            Some(Some(set)) if !standing.founds() && !set.contains(own) => {
                Some(Obstacle::NotInSet { own, set, recorded_at: self.coordinator.in_sync_set_name() })
            }
            _ if is_suspect(self.data_dir()) => Some(Obstacle::Suspect(self.data_dir())),
            _ if is_incomplete(self.data_dir()) => Some(Obstacle::Incomplete(self.data_dir())),
            _ => (!stands_back.is_zero()).then_some(Obstacle::StandsBack(stands_back)),
        }
    }

    /// Campaigns if it may; says why not while nobody leads.
    fn stand(
        &self,
        candidacy: &mut Candidacy,
        leaderless: &mut Leaderless,
        shown: Option<EpochPosition>,
        has_won: bool,
    ) {
        let obstacle = self.obstacle();
        let is_enough = self.config.accept_loss || self.standing().is_some_and(|standing| standing.founds());
        let shows = if is_enough { Shows::Enough } else { Shows::Position(shown) };
        candidacy.update(obstacle.is_none() && !has_won, shows);
        let obstacle = obstacle.or_else(|| candidacy.behind().map(Obstacle::Behind));
        if leaderless.is_to_be_said(self.leader.is_none() && obstacle.is_some(), Instant::now())
            && let Some(obstacle) = obstacle
        {
            log::warn!("nobody leads, and node {} may not: {obstacle}", self.own.id);
        }
    }

    fn is_in(&self, set: Option<&InSyncSet>) -> bool {
        set.is_none_or(|set| set.contains(self.own.id))
    }

    /// How the directory stands to the cluster; `None` before that is known.
    fn standing(&self) -> Option<Standing> {
        let in_sync = self.in_sync.as_ref()?;
        Some(Standing {
            // What it proposed, and the cluster took, is its own even if nobody came to write that down.
            ours: self.ours.or(self.proposed.filter(|proposed| self.clusters == Some(Some(*proposed)))),
            clusters: self.clusters?,
            was_in_sync: self.was_a_nodes && in_sync.as_ref().is_some_and(|set| set.contains(self.own.id)),
            adopt: self.config.follower.adopt,
            found: self.config.found,
        })
    }

    /// Says why the node does not take part, again and again while that is so.
    fn say_barred(&mut self, standing: Option<Standing>) {
        let bar = standing.filter(|standing| !standing.founds()).and_then(|standing| standing.bars_following());
        let said = self.barred.filter(|(said, at)| Some(*said) == bar && at.elapsed() < SAY_BARRED);
        self.barred = said.or_else(|| {
            let bar = bar?;
            log::error!("{bar}");
            Some((bar, Instant::now()))
        });
    }

    /// Says that the directory shows too little, once, and again when that has changed.
    fn say_behind(&mut self, behind: Option<Behind>) {
        if self.behind == behind {
            return;
        }
        match &behind {
            Some(behind) => log::warn!("{} does not stand for election: {behind}; {REMEDY}", self.data_dir().display()),
            None => log::info!("{} shows all that was committed", self.data_dir().display()),
        }
        self.behind = behind;
    }

    fn data_dir(&self) -> &std::path::Path {
        &self.config.leader.data_dir
    }

    /// Looks anew, after the election: what was observed before may have been overtaken. While nothing is recorded anybody may be
    /// elected, so this node is, as the first thing it does: who has less than it must not succeed it.
    fn may_take(&mut self, leadership: &dyn Leadership, shown: Option<EpochPosition>) -> bool {
        let coordinator = &self.coordinator;
        let recorded = self
            .retry(leadership, || Ok((coordinator.in_sync_set()?, coordinator.committed()?, coordinator.data_set()?)));
        let (set, committed, clusters) = match recorded {
            Ok(recorded) => recorded,
            Err(error) => return self.cannot_take(&error),
        };
        (self.in_sync, self.clusters) = (Some(set.clone()), Some(clusters));
        let Some(standing) = self.standing() else { return false };
        if let Some(bar) = standing.bars_leading() {
            log::warn!("elected, but steps down: {bar}");
            return false;
        }
        if !standing.founds() && !self.is_in(set.as_ref()) {
            let recorded = set.map_or_else(String::new, |set| set.to_string());
            log::warn!("elected, but {} is not in the recorded in-sync set ({recorded}): steps down", self.own.id);
            return false;
        }
        if is_incomplete(self.data_dir()) {
            log::warn!("elected, but {} is no complete copy: steps down", self.data_dir().display());
            return false;
        }
        let behind = Behind::of(shown, committed).filter(|_| !standing.founds());
        if let Some(behind) = behind {
            if !self.config.accept_loss {
                log::warn!("elected, but steps down: {behind}");
                return false;
            }
            log::warn!(
                "elected, and leads with what is here (--accept-loss), though {behind}: what lies between is given up; take --accept-loss away"
            );
        }
        // Should this end in between: whoever founds a cluster anew is in its set before the others are out of it, and the first
        // leader of all has said of which data set it is before anybody may have more than it.
        if standing.founds() {
            self.record_alone(leadership, None) && self.record_data_set(leadership, standing)
        } else {
            self.record_data_set(leadership, standing) && (set.is_some() || self.record_alone(leadership, committed))
        }
    }

    /// `committed`: what holds on until it leads.
    fn record_alone(&mut self, leadership: &dyn Leadership, committed: Option<EpochPosition>) -> bool {
        let own = InSyncSet::of(self.own.id);
        if let Err(error) = self.retry(leadership, || leadership.record(&own, committed)) {
            return self.cannot_take(&error);
        }
        self.in_sync = Some(Some(own));
        true
    }

    /// From here on directory and cluster are of one data set. The directory only notes what it proposes before the cluster has it:
    /// should this end in between, it is either of none, or of the cluster's.
    fn record_data_set(&mut self, leadership: &dyn Leadership, standing: Standing) -> bool {
        let of_cluster = standing.clusters.filter(|_| standing.ours.is_none());
        let proposed = self.in_directory(|data| of_cluster.map_or_else(|| data.data_set_to_propose(), Ok));
        let Some(proposed) = proposed else { return false };
        self.proposed = Some(proposed);
        let recorded = match self.retry(leadership, || leadership.record_data_set(proposed, standing.founds())) {
            Ok(recorded) => recorded,
            Err(error) => return self.cannot_take(&error),
        };
        self.clusters = Some(Some(recorded));
        if recorded != proposed || self.in_directory(|data| data.keep_data_set(recorded)).is_none() {
            // Somebody was quicker, or it cannot lead.
            return false;
        }
        self.ours = Some(recorded);
        if standing.founds() {
            log::warn!(
                "the cluster is data set {recorded} from now on (--found), and no more what it was: take --found away"
            );
        }
        true
    }

    /// `None`: that failed, and this node hands over.
    fn in_directory<T>(&mut self, work: impl FnOnce(&mut DataDir) -> Result<T, Error>) -> Option<T> {
        let data = DataDir::open_unclaimed(self.data_dir(), Some(self.own.id), Some(self.lock.clone()));
        let done = data.and_then(|mut data| work(&mut data));
        done.inspect_err(|error| {
            log::error!("hands leadership over, cannot lead: {error}");
            self.stand_back(Duration::ZERO);
        })
        .ok()
    }

    /// Until it succeeds, leadership is lost, or the node is to stop; or until it fails as it would again.
    fn retry<T>(
        &self,
        leadership: &dyn Leadership,
        ask: impl Fn() -> Result<T, CoordinatorError>,
    ) -> Result<T, CoordinatorError> {
        let mut told = false;
        loop {
            match ask() {
                Err(error) if !error.may_pass() || !leadership.is_held() || self.shared.stop.wait(TICK) => {
                    return Err(error);
                }
                Err(error) if !std::mem::replace(&mut told, true) => {
                    log::warn!("elected, and cannot go on yet: {error}; trying again");
                }
                Err(_) => {}
                answer => return answer,
            }
        }
    }

    fn cannot_take(&mut self, error: &CoordinatorError) -> bool {
        if error.may_pass() || matches!(error, CoordinatorError::Lost) {
            log::warn!("elected, but could not go on: {error}");
        } else {
            log::error!("elected, but cannot lead: {error}");
            // Holding on would keep everybody else from leading, and mend nothing.
            self.stand_back(Duration::ZERO);
        }
        false
    }

    // ---- leading ----

    /// Leads until that is over, and returns when nothing is active here any more. An error ends the node.
    fn lead(&mut self, leadership: &Arc<dyn Leadership>, listener: io::Result<TcpListener>) -> Result<(), NodeError> {
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
    fn open(
        &self,
        config: LeaderConfig,
        leadership: &Arc<dyn Leadership>,
        recorded: Option<&InSyncSet>,
        listener: io::Result<TcpListener>,
    ) -> Result<Leader, Error> {
        let opening = Opening::standing_by(config, leadership.clone(), recorded)?;
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

    /// A node that lacks a thread does not go on without it: what it would miss, nobody knows.
    fn check_threads(&self, term: Option<&Term>) -> Result<(), NodeError> {
        if let Some(failure) = term.and_then(|term| term.leader.failure()) {
            return Err(failure.into());
        }
        if let Some(failure) = self.proxies.iter().find_map(Proxy::failure) {
            return Err(failure.into());
        }
        if self.coordinator.has_failed() {
            return Err(NodeError::ObservationEnded);
        }
        if self.observes { Ok(()) } else { Err(NodeError::ObservationEnded) }
    }

    /// What the coordinator has to say meanwhile.
    fn observe(&mut self) {
        match self.leaders.receiver().try_recv() {
            Ok(leader) => self.leader = leader,
            Err(TryRecvError::Disconnected) => self.observes = false,
            Err(TryRecvError::Empty) => {}
        }
        match self.sets.receiver().try_recv() {
            Ok(set) => self.in_sync = Some(set),
            Err(TryRecvError::Disconnected) => self.observes = false,
            Err(TryRecvError::Empty) => {}
        }
        match self.data_sets.receiver().try_recv() {
            Ok(id) => self.clusters = Some(id),
            Err(TryRecvError::Disconnected) => self.observes = false,
            Err(TryRecvError::Empty) => {}
        }
        self.shared.note(self.leader.as_ref(), self.in_sync.clone().flatten(), None);
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
    fn stand_back(&mut self, led_for: Duration) {
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

    /// The role before has let go of the directory: nobody else may touch it until then.
    fn wait_for_directory(&self, who: &'static str) -> Result<(), NodeError> {
        // The watchdog's look at the disk holds it as well, and may take as long as a leader's disk may.
        let deadline = deadline(DROP_JOIN_MAX.max(self.config.stall_timeout));
        while self.lock.is_shared() {
            if Instant::now() >= deadline {
                return Err(NodeError::HeldUp(who));
            }
            thread::park_timeout(Duration::from_millis(1));
        }
        Ok(())
    }

    // ---- proxies ----

    /// To this host; `None` closes them. Where its program has the port of a proxy, a node that leads leaves that closed.
    fn open_proxies(&mut self, host: Option<&str>, following: bool) {
        let Some(host) = host else { return self.close_proxies() };
        if Instant::now() < self.open_again {
            return;
        }
        for proxy in self.proxies.iter().filter(|proxy| following || !proxy.is_the_programs()) {
            if let Err(error) = proxy.open(host) {
                if let Some(unsaid) = self.not_opened.is_due() {
                    log::error!("{error}; tried again each second{unsaid}");
                }
                self.open_again = Instant::now() + OPEN_AGAIN;
            }
        }
    }

    fn close_proxies(&self) {
        self.proxies.iter().for_each(Proxy::close);
    }
}
