//! Why a node ended.

use std::time::Duration;

use crate::coordinator::CoordinatorError;
use crate::error::Error;
use crate::node::HostError;
use crate::types::InvalidValue;

/// Why a node could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Leading or following failed.
    #[error(transparent)]
    Replication(#[from] Error),
    /// The leader refused the secret that the coordinator holds.
    #[error(
        "the leader {leader} refused the secret that is recorded for this cluster: is it of another cluster, or was the recorded \
         secret changed while nodes ran? Restart all nodes of this cluster, and give each cluster a prefix of its own"
    )]
    SecretRefused {
        /// Who refused.
        leader: String,
    },
    /// The coordinator cannot be worked with.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    /// A thread that observes the coordinator, or campaigns there, has failed, and was logged with the reason.
    #[error("a thread that talks to the coordinator has failed: this is a defect, please report it")]
    ObservationEnded,
    /// What is active may be so still when another node is elected.
    #[error(
        "when leadership is lost, stopping what is active here may take {needed:?}, and another node may be active after {there_is:?}: \
         make the leases longer, or the time to stop shorter"
    )]
    StopsTooLate {
        /// How long it may take.
        needed: Duration,
        /// How long nobody else is elected.
        there_is: Duration,
    },
    /// The node shut down, and what was active here may be so still.
    #[error("the program may still run, and write to the directory: {0}")]
    StillActive(#[source] HostError),
    /// A thread that was told to stop holds the directory: the disk hangs, or a host kept the leader.
    #[error("{0} does not let go of the directory: if its disk hangs, mend that and restart this node")]
    HeldUp(&'static str),
}

impl From<InvalidValue> for NodeError {
    fn from(error: InvalidValue) -> Self {
        Self::Replication(error.into())
    }
}
