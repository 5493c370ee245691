//! A node of a cluster: it keeps a directory on several machines, and what writes to it active on the one that leads.
//!
//! ```text
//!            ┌──────────────────────── following ◀───────────────────────────┐
//!            │        follows whoever is elected; campaigns while it is in    │
//!            │        the recorded in-sync set, or none is recorded, and its  │
//!            │        directory is no half of a full sync                     │
//!            │                                                                │
//!      elected, that still holds,                            nothing is active here any more,
//!      and nobody has more                                   and leadership is given up
//!            ▼                                                                │
//!        starting ──▶ leading ──────────────────────▶ ending ─────────────────┘
//!       │  nothing follows;       │ leadership lost: the leader is shut down, then the host stopped
//!       │  leader opened,         │ host failed, or shutting down: the host is stopped, followers drained,
//!       │  host started           │   and only then leadership resigned
//!       └─────────────────────────┘
//! ```
//!
//! What is active where the node leads is its [`Host`]: a program that is only watched ([`WatchedProgram`]), or the process that
//! embeds the node and announces what it writes through [`Term::leader`].
//!
//! # What can be relied on
//!
//! - Nothing of the host is active while the node follows, and nothing else works on the directory while the host is: its lock
//!   is held from start to end, by the guard of a managed program too.
//! - A node leads only while its leadership is held, by its own clock; a managed program is killed when that runs out, also when the
//!   node is frozen or killed ([`guard`]).
//! - Only a directory of the cluster's data set follows and leads (`data_set.rs`): one of another cluster, or a blank one, is neither
//!   wiped nor does it wipe.
//! - A node stands for election only if its directory shows what the cluster has recorded as committed, unless a person accepts the loss (`committed.rs`).
//! - A node that was elected leads only if no other candidate has more than it, as far as they say so in time (`precedence.rs`).
//! - A node that was elected without being in the recorded in-sync set steps down before it has opened its directory.
//! - What a node needs to serve it holds from its start, or tries before the recorded set is touched: the set stays as the election
//!   found it until the directory is open, followers are accepted, and the host is active ([`Host::is_up`]). A node that fails before
//!   that leaves the others their right to lead, and stands back from elections, each time for longer.
//! - Leadership is renewed only while the disk takes writes and the leader dispatches.
//! - A node that leads and whose disk fails a sync hands over once another one is in sync, and follows, which mends its directory;
//!   until that is done it does not campaign. Alone in the set it goes on leading, and confirms nothing as durable.
//!
//! # Threads
//!
//! `node` has the role, and calls the host; `campaign` blocks in the coordinator while the node follows (`candidacy.rs`);
//! `bids` tells the other candidates what it has (`bidder.rs`); `watchdog` is there while it leads (`health.rs`); the coordinator's four observations have one each. Followers, leaders,
//! proxies and programs have theirs.
//!
//! # Locks and the end
//!
//! One lock, for the status and the outcome, a leaf. [`Node::stop`] sets a flag that every wait of the thread looks at or is woken
//! by, and waits for the end: a node that leads hands over first, which takes as long as its host takes to stop and followers to
//! drain.

mod bidder;
mod candidacy;
mod committed;
mod config;
mod data_set;
mod error;
mod following;
mod health;
mod hook;
mod host;
mod leaderless;
mod port;
mod precedence;
#[cfg_attr(feature = "simulate", allow(unused_imports))]
mod program;
mod proxy;
mod run;
mod watched;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use self::config::NodeConfig;
pub use self::error::NodeError;
use self::following::Own;
pub use self::host::{Host, HostError, Term};
use self::port::Port;
#[cfg(feature = "fuzzing")]
pub(crate) use self::program::guard::parent_in;
pub use self::program::{ProgramConfig, guard};
use self::proxy::Proxy;
pub use self::proxy::{ProxyConfig, ProxyStatus};
use self::run::Runner;
pub use self::watched::{OnExit, WatchedConfig, WatchedProgram};
use crate::coordinator::{Coordinator, InSyncSet, LeaderInfo, Stop};
use crate::datadir::{self, DataDir, DirLock};
use crate::error::Error;
use crate::follower;
use crate::position::EpochPosition;
use crate::seldom::Seldom;
use crate::sys::channel;
use crate::sys::sync::{Condvar, Mutex};
use crate::sys::thread;
use crate::sys::time::Instant;
use crate::thread::{DROP_JOIN_MAX, Group};
use crate::types::NodeId;

/// A running node. Dropping it stops it, as [`Node::stop`] does, but waits for 5 s at most.
pub struct Node {
    id: NodeId,
    proxies: Vec<Arc<proxy::Shared>>,
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    threads: Group,
}

/// What a node does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// It follows whoever is elected, or waits for somebody to be.
    #[default]
    Following,
    /// It was elected, and its host is being started.
    Starting,
    /// It leads, and its host is active.
    Leading,
    /// It leads no more, or is about to hand over; its host is being stopped.
    Ending,
    /// It has ended.
    Stopped,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Following => "following",
            Self::Starting => "starting to lead",
            Self::Leading => "leading",
            Self::Ending => "ceasing to lead",
            Self::Stopped => "stopped",
        })
    }
}

/// A snapshot of a node.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct NodeStatus {
    /// What it does.
    pub role: Role,
    /// The elected leader, as last observed.
    pub leader: Option<LeaderInfo>,
    /// The recorded in-sync set, as last observed.
    pub in_sync: Option<InSyncSet>,
    /// How far the directory has come, as last seen, in positions that compare between the nodes of the cluster: in an election who has most
    /// leads. `None` if that is not known.
    pub position: Option<EpochPosition>,
    /// Of the follower, as last seen; there is one once there was a leader to follow.
    pub follower: Option<follower::Status>,
    /// In the order of [`NodeConfig::proxies`].
    pub proxies: Vec<ProxyStatus>,
}

struct Shared {
    stop: Stop,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    status: NodeStatus,
    /// How the node ended, until somebody was told.
    outcome: Option<Result<(), NodeError>>,
}

impl Shared {
    fn set_role(&self, role: Role) {
        self.state.lock().status.role = role;
        self.changed.notify_all();
    }

    fn note(&self, leader: Option<&LeaderInfo>, in_sync: Option<InSyncSet>, follower: Option<follower::Status>) {
        let status = &mut self.state.lock().status;
        status.leader = leader.cloned();
        status.in_sync = in_sync;
        status.follower = follower;
    }

    fn note_position(&self, position: Option<EpochPosition>) {
        self.state.lock().status.position = position;
    }

    fn finish(&self, outcome: Result<(), NodeError>) {
        let mut state = self.state.lock();
        if state.status.role != Role::Stopped {
            state.status.role = Role::Stopped;
            state.outcome = Some(outcome);
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl Node {
    /// Takes the directory (made, 0700, if absent), binds the port for followers and the proxies', and starts. Does not wait for
    /// the coordinator.
    ///
    /// # Errors
    ///
    /// A setting is out of range, the directory is in use ([`Error::InUse`]) or not usable, an address cannot be listened on.
    pub fn start(config: NodeConfig, coordinator: Arc<dyn Coordinator>, host: impl Host) -> Result<Self, NodeError> {
        config.check()?;
        let (needed, there_is) = (host.stop_max(), coordinator.stop_margin());
        if needed > there_is {
            return Err(NodeError::StopsTooLate { needed, there_is });
        }
        let dir = &config.leader.data_dir;
        datadir::make(dir)?;
        let lock = DirLock::take(dir)?;
        let data = DataDir::open_unclaimed(dir, config.leader.id, Some(lock.clone()))?;
        let (id, was_a_nodes, ours) = (data.id(), data.is_claimed(), data.data_set());
        let proposed = data.own().proposed_data_set();
        drop(data);
        let unusable = |source| Error::Listen { who: "followers", at: config.listen.clone(), source };
        let port = Port::hold(&config.listen).map_err(unusable)?;
        let proxies = config.proxies.iter().cloned().map(Proxy::bind).collect::<Result<Vec<_>, _>>()?;
        let announced = LeaderInfo { uri: config.advertise.clone(), id: Some(id), term: 0 };
        let own = Own { id, uri: announced.uri.clone(), address: announced.address()? };
        let (running, stopped) = channel::bounded(0);
        let shared = Arc::new(Shared { stop: Stop::new(), state: Mutex::default(), changed: Condvar::new() });
        let node = Self {
            id,
            proxies: proxies.iter().map(Proxy::shared).collect(),
            addresses: proxies.iter().map(Proxy::address).collect(),
            shared: shared.clone(),
            threads: Group::default(),
        };
        let runner = Runner {
            leaders: coordinator.observe_leader()?,
            sets: coordinator.observe_in_sync_set()?,
            data_sets: coordinator.observe_data_set()?,
            candidates: coordinator.observe_candidates()?,
            config,
            own,
            lock,
            coordinator,
            host: Box::new(host),
            proxies,
            port,
            in_sync: None,
            clusters: None,
            was_a_nodes,
            ours,
            proposed,
            barred: None,
            behind: None,
            leader: None,
            observes: true,
            stopped,
            shared: shared.clone(),
            stay_out: Duration::from_millis(500),
            stay_out_until: Instant::now(),
            open_again: Instant::now(),
            not_opened: Seldom::each_minute(),
        };
        let finish = FinishAtEnd(shared.clone());
        let spawned = node.threads.spawn("node", move || {
            let _wake = shared.stop.on_set(move || drop(running));
            let outcome = runner.run();
            finish.0.finish(outcome);
        });
        spawned.map_err(|error| Error::connection("of the node: its thread could not be started", error))?;
        Ok(node)
    }

    /// The node's id: the one that was set, or the directory's, or one made at random.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Where clients connect, in the order of [`NodeConfig::proxies`].
    #[must_use]
    pub fn proxies(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// A snapshot. Does not wait for anything.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let status = self.shared.state.lock().status.clone();
        NodeStatus { proxies: self.proxies.iter().map(|proxy| proxy.status()).collect(), ..status }
    }

    /// Blocks until the node has another role than `than`, at most for `timeout`, and returns the one it has.
    #[must_use]
    pub fn wait_for_another_role(&self, than: Role, timeout: Duration) -> Role {
        self.wait_until(Instant::now().checked_add(timeout), |role| role != than)
    }

    /// Stops: one that leads hands over. Blocks until that is done, which takes as long as its host takes to stop, and
    /// followers to get what they lack.
    ///
    /// # Errors
    ///
    /// Why the node ended by itself, if it did, or could not end well. Told once.
    pub fn stop(&self) -> Result<(), NodeError> {
        self.shared.stop.set();
        self.outcome(None)
    }

    /// Blocks until the node has ended by itself, at most for `timeout`; `None` if it has not.
    ///
    /// # Errors
    ///
    /// Why it ended. Told once.
    pub fn wait(&self, timeout: Duration) -> Option<Result<(), NodeError>> {
        self.wait_for_end(Instant::now().checked_add(timeout)).then(|| self.outcome(None))
    }

    fn outcome(&self, deadline: Option<Instant>) -> Result<(), NodeError> {
        self.wait_for_end(deadline);
        self.threads.join(Instant::now() + DROP_JOIN_MAX);
        self.shared.state.lock().outcome.take().unwrap_or(Ok(()))
    }

    fn wait_for_end(&self, deadline: Option<Instant>) -> bool {
        self.wait_until(deadline, |role| role == Role::Stopped) == Role::Stopped
    }

    fn wait_until(&self, deadline: Option<Instant>, is_so: impl Fn(Role) -> bool) -> Role {
        let mut state = self.shared.state.lock();
        while !is_so(state.status.role) {
            match deadline {
                None => self.shared.changed.wait(&mut state),
                Some(deadline) if self.shared.changed.wait_until(&mut state, deadline).timed_out() => break,
                Some(_) => {}
            }
        }
        state.status.role
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shared.stop.set();
        self.threads.join(Instant::now() + DROP_JOIN_MAX);
    }
}

/// Ends the wait for the node also when its thread panicked.
struct FinishAtEnd(Arc<Shared>);

impl Drop for FinishAtEnd {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.finish(Err(Error::ThreadFailed("thread node panicked".to_owned()).into()));
        }
    }
}
