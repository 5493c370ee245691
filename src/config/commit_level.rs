//! What has to hold before something is called committed.

use std::fmt;

use super::Durability;

/// What has to hold before something is called committed.
///
/// Only [`Durable`](Durability::Durable) on [`All`](Quorum::All) survives every fail-over: an election picks *any* member of the
/// in-sync set, not the one that has most. What each weaker level does not promise is said with its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitLevel {
    /// How safe it has to be at each of the followers. With [`Durable`](Durability::Durable) the leader's own files are synced as well,
    /// at the same time.
    ///
    /// [`Written`](Durability::Written) does not survive a loss of power at all the nodes together, nor at the only one left;
    /// [`Received`](Durability::Received) does not even survive the end of their processes.
    pub durability: Durability,
    /// How many followers have to have it.
    pub quorum: Quorum,
}

impl CommitLevel {
    /// Durable on all in-sync followers: the default.
    pub const ALL_DURABLE: Self = Self { durability: Durability::Durable, quorum: Quorum::All };
    /// Written on all in-sync followers.
    pub const ALL_WRITTEN: Self = Self { durability: Durability::Written, quorum: Quorum::All };
}

impl fmt::Display for CommitLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quorum {
            Quorum::All => write!(f, "{} on all", self.durability),
            Quorum::Count(count) => write!(f, "{} on {count}", self.durability),
            Quorum::Majority => write!(f, "{} on a majority", self.durability),
        }
    }
}

/// How many followers have to have something before it is committed. Whatever this says, it is never fewer than
/// [`LeaderConfig::min_in_sync`](crate::LeaderConfig::min_in_sync).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Quorum {
    /// Every member of the in-sync set, as recorded: whoever may be elected has it.
    All,
    /// So many in-sync followers. Another one may be elected, which does not have it: then it is gone.
    Count(usize),
    /// With the leader more than half of [`LeaderConfig::cluster_size`](crate::LeaderConfig::cluster_size). Another one may be
    /// elected, as above.
    Majority,
}

/// What becomes of commits while fewer followers are in sync than
/// [`LeaderConfig::min_in_sync`](crate::LeaderConfig::min_in_sync), or than a level asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BelowMin {
    /// They are refused at once; those that are waited for end as unknown.
    #[default]
    Refuse,
    /// They wait until their deadline for followers to come.
    Wait,
}
