//! What a commit may ask for, and what may come of it.

use std::fmt;

use crate::config::Durability;
use crate::types::{NodeId, StreamPosition};

/// What came of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommitOutcome {
    /// It is as safe as asked for.
    Committed(Committed),
    /// It cannot be now, and was not waited for. What was appended is sent to followers all the same.
    Refused(Refusal),
    /// It was not confirmed in time. It may be safe already, or become so, or be lost.
    Unknown(Unknown),
    /// The leader shuts down. As [`Unknown`](Self::Unknown).
    ShutDown,
}

impl CommitOutcome {
    /// Whether it is committed.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        matches!(self, Self::Committed(_))
    }
}

impl fmt::Display for CommitOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Committed(committed) => {
                write!(f, "committed: {} on {} followers", committed.durability, committed.followers.len())
            }
            Self::Refused(refusal) => write!(f, "refused: {refusal}"),
            Self::Unknown(unknown) => write!(f, "unknown: {unknown}"),
            Self::ShutDown => f.write_str("unknown: the leader shuts down"),
        }
    }
}

/// By whom, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The stream position that was asked for.
    pub position: StreamPosition,
    /// In-sync followers that have it, in order of their ids. The leader has it too.
    pub followers: Vec<NodeId>,
    /// How safe it is at each of them.
    pub durability: Durability,
}

/// Why a commit was not even waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Fewer followers are in sync than it takes.
    TooFewInSync {
        /// So many are.
        in_sync: usize,
        /// So many it takes.
        wanted: usize,
    },
    /// This follower speaks protocol 1.0.0, whose acknowledgements do not say that anything is durable. Ask for less, or declare that
    /// they do with [`LeaderConfig::v1_acks`](crate::LeaderConfig::v1_acks).
    NeverDurable(NodeId),
    /// A majority of how many nodes is not known: set [`LeaderConfig::cluster_size`](crate::LeaderConfig::cluster_size).
    NoClusterSize,
    /// The position is beyond what was appended.
    NotAppended,
    /// The election is lost: another node may lead by now.
    NotElected,
    /// The leader's own files could not be made durable. Nothing can be called durable by this leader any more, and nobody can lead
    /// from its directory before it has followed another one.
    LocalSyncFailed,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFewInSync { in_sync, wanted } => {
                write!(f, "{in_sync} followers are in sync, it takes {wanted}")
            }
            Self::NeverDurable(id) => {
                write!(f, "follower {id} speaks protocol 1.0.0 and never says that anything is durable")
            }
            Self::NoClusterSize => f.write_str("a majority was asked for, but the cluster's size is not set"),
            Self::NotAppended => f.write_str("the position is beyond what was appended"),
            Self::NotElected => f.write_str("the election is lost"),
            Self::LocalSyncFailed => f.write_str("the leader's own files could not be made durable"),
        }
    }
}

/// Why it is not known whether something is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unknown {
    /// The deadline passed.
    Deadline,
    /// While it was waited for, fewer followers came to be in sync than it takes.
    TooFewInSync,
    /// While it was waited for, the election was lost.
    NotElected,
    /// While it was waited for, the leader's own files could not be made durable.
    LocalSyncFailed,
    /// A follower that speaks protocol 1.0.0 came to be in sync, and never says that anything is durable.
    NeverDurable(NodeId),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline => f.write_str("the deadline passed"),
            Self::TooFewInSync => f.write_str("too few followers stayed in sync"),
            Self::NotElected => f.write_str("the election was lost"),
            Self::LocalSyncFailed => f.write_str("the leader's own files could not be made durable"),
            Self::NeverDurable(id) => {
                write!(f, "follower {id} speaks protocol 1.0.0 and never says that anything is durable")
            }
        }
    }
}

impl From<&Refusal> for Unknown {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::TooFewInSync { .. } => Self::TooFewInSync,
            Refusal::NeverDurable(id) => Self::NeverDurable(*id),
            Refusal::NotElected => Self::NotElected,
            Refusal::LocalSyncFailed => Self::LocalSyncFailed,
            // Neither comes while something is waited for.
            Refusal::NoClusterSize | Refusal::NotAppended => Self::Deadline,
        }
    }
}

/// The in-sync set as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InSyncStatus {
    /// In-sync followers, in order of their ids; those included that are gone but have all that was appended.
    pub followers: Vec<NodeId>,
    /// Nodes, the leader included, that commits at level [`Quorum::All`](crate::config::Quorum::All) wait for: the followers above, those about to
    /// become in sync, and those that may still be recorded as being so.
    pub counted: Vec<NodeId>,
    /// As configured.
    pub min_in_sync: usize,
}

impl InSyncStatus {
    /// Whether as many followers are in sync as configured.
    #[must_use]
    pub fn is_satisfied(&self) -> bool {
        self.followers.len() >= self.min_in_sync
    }
}
