//! What decides roles: an election, the recorded in-sync set, the shared secret.
//!
//! [`Coordinator`] is a trait. [`MemoryCoordinator`] is for tests and for groups within one process; for clusters there is
//! etcd (`EtcdCoordinator`, feature `etcd`), with LavinMQ's keys. Calls block, within bounds: none belongs on an append path or under a lock (I6).
//!
//! An elected node is leader for as long as its [`Leadership`] is held. That is judged by the node's own clock, from before
//! the last successful renewal was sent, so it stops being held before the coordinator gives it to anyone else. What must
//! not be written by a leader of the past is fenced by the coordinator besides: [`Leadership::record_in_sync`].

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::position::EpochPosition;
use crate::sys::rustix;
use crate::sys::time::Instant;
use crate::types::{DataSetId, InvalidValue, NodeId, Secret, host_and_port, shorten};

mod candidates;
#[cfg(all(feature = "etcd", not(feature = "simulate")))]
pub mod etcd;
mod in_sync_set;
pub mod memory;
mod observation;

pub use self::candidates::{Bid, Candidate};
#[cfg(all(feature = "etcd", not(feature = "simulate")))]
pub use self::etcd::{EtcdConfig, EtcdCoordinator, EtcdEndpoint, EtcdUser};
pub use self::in_sync_set::{IN_SYNC_IDS_MAX, InSyncSet};
pub use self::memory::MemoryCoordinator;
pub use self::observation::{Latest, Observation};
pub use crate::stop::Stop;

/// What decides roles. Handles of one cluster, in one process or many, see the same.
pub trait Coordinator: Send + Sync + 'static {
    /// The cluster's shared secret; made from 32 random bytes if there is none. Blocks, within bounds.
    fn secret(&self) -> Result<Secret, CoordinatorError>;

    /// The recorded in-sync set as it is now, `None` if none is recorded. Blocks, within bounds.
    fn in_sync_set(&self) -> Result<Option<InSyncSet>, CoordinatorError>;

    /// What a person finds the recorded set under, if it has a name. Never blocks. Defaults to none.
    fn in_sync_set_name(&self) -> Option<String> {
        None
    }

    /// Takes an id out of the recorded set and nothing else (what is recorded beside it stays): an operator's command. Returns whether it was in it. The last
    /// one is not taken out ([`CoordinatorError::LastInSync`]). Blocks, within bounds.
    ///
    /// A leader that runs may record the id again.
    fn remove_from_in_sync_set(&self, id: NodeId) -> Result<bool, CoordinatorError>;

    /// Campaigns: blocks until elected, or until `stop` is set (`None`). `uri` is what others connect to
    /// (`tcp://HOST:PORT`).
    ///
    /// Whoever was not elected leaves nothing behind that could be elected later. A leadership won earlier with this id
    /// through the same handle is given up first.
    fn campaign(&self, id: NodeId, uri: &str, stop: &Stop) -> Result<Option<Arc<dyn Leadership>>, CoordinatorError>;

    /// For how long nobody else is elected after a leadership has ceased to be held without being given up: the time there is to
    /// stop what is active. Defaults to [`Duration::MAX`], for leaderships that do not run out.
    fn stop_margin(&self) -> Duration {
        Duration::MAX
    }

    /// Whether a thread that it needs has failed, which was logged: who relies on it ends. Never blocks. Defaults to no.
    fn has_failed(&self) -> bool {
        false
    }

    /// Watches who is leader, `None` for nobody. The watch survives failures of the coordinator: it reports the state
    /// there is once that can be reached again. Never blocks.
    fn observe_leader(&self) -> Result<Observation<Option<LeaderInfo>>, CoordinatorError>;

    /// Watches the recorded in-sync set in the same way.
    fn observe_in_sync_set(&self) -> Result<Observation<Option<InSyncSet>>, CoordinatorError>;

    /// Says what the node with this id has, to be seen beside the candidacies that it has through this handle: one that there is, and those that begin
    /// later. Returns once it can be seen, if there is one. Blocks, within bounds.
    ///
    /// Defaults to nothing: nobody waits for a candidate that says nothing.
    fn bid(&self, id: NodeId, bid: &Bid) -> Result<(), CoordinatorError> {
        let _ = (id, bid);
        Ok(())
    }

    /// Who stands for election now, in the order in which they are elected; the first one is. Blocks, within bounds. Defaults to nobody.
    fn candidates(&self) -> Result<Vec<Candidate>, CoordinatorError> {
        Ok(Vec::new())
    }

    /// Watches that in the same way as the others; a change of those who do not bid may not be seen. Defaults to saying nothing.
    fn observe_candidates(&self) -> Result<Observation<Vec<Candidate>>, CoordinatorError> {
        Observation::start("no-candidates", |_latest, stop| {
            let _ = stop.wait(Duration::MAX);
        })
    }

    /// What is recorded beside the in-sync set ([`Leadership::record`]): each of its members could show that it has this much when it was recorded. `None` if nothing is, or
    /// if the set was recorded by somebody since who recorded nothing beside it (LavinMQ, earlier versions); it outlives a set that was deleted. Blocks, within bounds.
    ///
    /// Defaults to none, for a coordinator that does not keep it.
    fn committed(&self) -> Result<Option<EpochPosition>, CoordinatorError> {
        Ok(None)
    }

    /// Of which data set the cluster is, `None` if no leader said so yet. Blocks, within bounds.
    fn data_set(&self) -> Result<Option<DataSetId>, CoordinatorError>;

    /// Watches that in the same way as the others.
    fn observe_data_set(&self) -> Result<Observation<Option<DataSetId>>, CoordinatorError>;
}

/// A won election.
///
/// Dropping it gives it up, like [`abandon`](Self::abandon).
pub trait Leadership: Send + Sync + 'static {
    /// Records the in-sync set, only if this election is still held when the coordinator gets to it. Sets are recorded in
    /// the order of calls: one whose call ended in [`CoordinatorError::Unknown`] never replaces one of a later call that
    /// succeeded. Blocks, within bounds.
    ///
    /// [`CoordinatorError::Lost`]: this election is over, nothing can be recorded any more.
    /// [`CoordinatorError::Unknown`]: the set may have been recorded, or may be yet, until a later call succeeds.
    /// Any other error, [`CoordinatorError::NotRecorded`] above all: it surely was not.
    fn record_in_sync(&self, set: &InSyncSet) -> Result<(), CoordinatorError>;

    /// The same, and beside it, in the same step, what each of its members can show that it has; `None`: nothing is recorded beside it.
    /// Defaults to recording the set alone.
    fn record(&self, set: &InSyncSet, committed: Option<EpochPosition>) -> Result<(), CoordinatorError> {
        let _ = committed;
        self.record_in_sync(set)
    }

    /// Records of which data set the cluster is, only if this election is still held when the coordinator gets to it, and only if none
    /// is recorded, unless it is to `replace` another. Returns what is recorded then. Doing it again does no harm. Blocks, within
    /// bounds.
    ///
    /// [`CoordinatorError::Lost`]: this election is over. Defaults to nothing, for a leadership without a cluster.
    fn record_data_set(&self, id: DataSetId, replace: bool) -> Result<DataSetId, CoordinatorError> {
        let _ = replace;
        Ok(id)
    }

    /// The recorded in-sync set as it is now, whoever recorded it; `None` if none is. Blocks, within bounds.
    ///
    /// [`CoordinatorError::Unexpected`]: what is recorded is no such set. Defaults to [`CoordinatorError::Unavailable`], for a
    /// leadership that nobody else records beside.
    fn in_sync_set(&self) -> Result<Option<InSyncSet>, CoordinatorError> {
        Err(CoordinatorError::Unavailable("it does not say what is recorded".into()))
    }

    /// The term of this election, as [`LeaderInfo::term`] has it: positions in the stream of the one leader that it is used for compare with
    /// those of other leaders. Defaults to none, for a leadership without a cluster. Never blocks.
    fn term(&self) -> Option<u64> {
        None
    }

    /// Whether it is still held. Once it is not, it never is again. Never blocks.
    fn is_held(&self) -> bool;

    /// Until when it is held if it is not renewed again, by our own clock; `None` if it needs no renewal. Whatever must not go
    /// on without it is told this. The clock stands still while the machine sleeps: ask [`is_held`](Self::is_held) after that. Never
    /// blocks.
    fn held_until(&self) -> Option<Instant> {
        None
    }

    /// Gives it up, so that someone else's campaign wins at once; also frees the id if it was lost before. The caller vouches that
    /// nothing that asked for leadership is active any more: whoever leads next does not wait. Blocks, within bounds. Doing it again
    /// does nothing.
    fn resign(&self);

    /// Gives it up as [`resign`](Self::resign) does, where something may still be active: whoever leads next waits for as long
    /// as that may believe itself to be a leader's. Defaults to `resign`, for coordinators where nobody can.
    fn abandon(&self) {
        self.resign();
    }

    /// From now on it is renewed only while `health` says that the node is alive; a renewal that `health` holds up does
    /// not happen either. Called by a thread that does nothing else, a few times in the time a leadership lasts.
    fn set_health(&self, health: Box<dyn Fn() -> bool + Send + Sync>);

    /// Waits until it is no longer held, at most for `timeout`; returns whether that is so.
    fn wait_lost(&self, timeout: Duration) -> bool;
}

/// The elected leader.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaderInfo {
    /// What it announced for others to connect to; [`address`](Self::address) takes it apart.
    pub uri: String,
    /// Its id, if what it announced tells it.
    pub id: Option<NodeId>,
    /// The election it won: greater for each later one.
    pub term: u64,
}

impl LeaderInfo {
    /// For who implements a [`Coordinator`].
    #[must_use]
    pub fn new(uri: impl Into<String>, id: Option<NodeId>, term: u64) -> Self {
        Self { uri: uri.into(), id, term }
    }

    /// `HOST:PORT` of its URI; 5679 if the URI names no port.
    pub fn address(&self) -> Result<String, InvalidValue> {
        let invalid = || InvalidValue::new("leader URI", shorten(&self.uri), "it is tcp://HOST:PORT");
        let rest = self.uri.strip_prefix("tcp://").ok_or_else(invalid)?;
        host_and_port(rest.strip_suffix('/').unwrap_or(rest), DEFAULT_PORT).ok_or_else(invalid)
    }
}

/// LavinMQ's port for replication.
const DEFAULT_PORT: u16 = 5679;

impl fmt::Display for LeaderInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id {
            Some(id) => write!(f, "{id} at {}", self.uri),
            None => f.write_str(&self.uri),
        }
    }
}

/// Why the coordinator did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoordinatorError {
    /// It cannot be reached, or cannot decide at the moment. Nothing was changed, or trying again does no harm.
    #[error("the coordinator is not available: {0}")]
    Unavailable(String),
    /// It does not let us in.
    #[error("the coordinator refuses us: {0}")]
    Refused(String),
    /// Another node campaigns, or leads, with the same id.
    #[error(
        "node id {id} is in use by another node{}: give each node an id, and a data directory, of its own",
        uri.as_ref().map(|uri| format!(" ({uri})")).unwrap_or_default()
    )]
    IdInUse {
        /// The id.
        id: NodeId,
        /// What the other node announced, if it did.
        uri: Option<String>,
    },
    /// A node of another cluster, which shares the coordinator, has this id.
    #[error(
        "node id {id} is in use by a node of another cluster, which has {key}: ids are lease ids, and all clusters in one etcd \
         share them; give each node an id of its own (one that is made at random hardly meets another)"
    )]
    IdInOtherCluster {
        /// The id.
        id: NodeId,
        /// What the other node has in the coordinator.
        key: String,
    },
    /// The election is no longer held, and never will be again.
    #[error("leadership was lost: another node may lead")]
    Lost,
    /// The write surely did not happen.
    #[error("not recorded: {0}")]
    NotRecorded(String),
    /// The write may have happened, or may happen yet.
    #[error("it is not known whether this was recorded: {0}")]
    Unknown(String),
    /// The only member cannot be taken out of the in-sync set.
    #[error("{0} is the only node in the in-sync set: without it no node could ever become leader")]
    LastInSync(NodeId),
    /// What the coordinator holds or answers makes no sense.
    #[error("the coordinator holds or answers what it should not: {0}")]
    Unexpected(String),
    /// A setting is out of its range.
    #[error("setting {name}: {reason}")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A thread could not be started.
    #[error("start a thread: {0}; raise the limit of processes")]
    Thread(#[source] io::Error),
}

impl CoordinatorError {
    /// Whether waiting, and doing nothing else, may mend it.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::NotRecorded(_) | Self::Unknown(_) | Self::Thread(_))
    }
}

/// What a new secret is made of.
fn random_bytes() -> Result<[u8; 32], CoordinatorError> {
    let mut bytes = [0; 32];
    let filled = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|error| CoordinatorError::Unavailable(format!("the system gives no random bytes: {error}")))?;
    // The system gives so few at once; a part of them would make a weak secret.
    if filled < bytes.len() {
        return Err(CoordinatorError::Unavailable("the system gives too few random bytes".into()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaders_uri_is_taken_apart() {
        let address = |uri: &str| LeaderInfo { uri: uri.to_owned(), id: None, term: 1 }.address().ok();
        for (uri, expected) in [
            ("tcp://host:5679", "host:5679"),
            ("tcp://10.0.0.1:1/", "10.0.0.1:1"),
            ("tcp://host", "host:5679"),
            ("tcp://[::1]:7", "[::1]:7"),
            ("tcp://[::1]", "[::1]:5679"),
        ] {
            assert_eq!(address(uri).as_deref(), Some(expected), "{uri}");
        }
        for bad in ["", "host:1", "tcp://", "tcp://:1", "tcp://h:", "tcp://h:65536", "tcp://a b:1", "tcp://::1:1"] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }
}
