//! The node's own thread: which role it has, and the way from one to the next. See [`super`] for the drawing.

mod lead;
mod stand;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::bidder::Bidder;
use super::candidacy::{Candidacy, observed};
use super::committed::Behind;
use super::config::NodeConfig;
use super::data_set::Bar;
use super::following::{Following, Own};
use super::host::{Host, HostError, Term};
use super::leaderless::Leaderless;
use super::port::Port;
use super::precedence::BIDS_MAX_WAIT;
use super::proxy::Proxy;
use super::{NodeError, Role, Shared};
use crate::coordinator::{
    Bid, Candidate, Coordinator, CoordinatorError, InSyncSet, LeaderInfo, Leadership, Observation,
};
use crate::datadir::DirLock;
use crate::seldom::Seldom;
use crate::sys::channel::{Receiver, Select, TryRecvError};
use crate::sys::net::TcpListener;
use crate::sys::thread;
use crate::sys::time::Instant;
use crate::thread::{DROP_JOIN_MAX, deadline};
use crate::types::DataSetId;

/// How often the follower, the host and the proxies are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Between two attempts to open a proxy whose port is in use.
const OPEN_AGAIN: Duration = Duration::from_secs(1);

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

    fn data_dir(&self) -> &std::path::Path {
        &self.config.leader.data_dir
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
