//! Whether a node's directory and its cluster are of one data set: who may follow, and who may lead.
//!
//! The cluster's data set is what its first leader recorded with the coordinator. A directory of another one belongs to another
//! cluster (a wrong prefix), or the coordinator has lost its keys and a blank node was started first: whoever followed or led then
//! would have somebody's data deleted. So such a node does neither, says which data set it has and which the cluster has, and waits.
//!
//! | directory | cluster | follows | stands for election |
//! |---|---|---|---|
//! | any | has none yet | yes | yes |
//! | has the cluster's | has one | yes | yes |
//! | has none | has one | yes | if it was a node's when this one started, or in sync with a leader since, and that node is in the recorded set: LavinMQ and earlier versions know no more |
//! | has another | has one | if this very one is given up (`adopt`) | if it is declared to be the truth (`found`) |
//!
//! Neither word opens another door when it is left in a configuration: the one names what it gives up, the other does nothing once the
//! cluster has the directory's data set. Pure: it is told what is so.

use std::fmt;

use crate::config::Adopt;
use crate::types::DataSetId;

/// What a node knows of its directory and of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// The directory's data set.
    pub(super) ours: Option<DataSetId>,
    /// The cluster's.
    pub(super) clusters: Option<DataSetId>,
    /// The directory was a node's when this one started, or in sync with a leader since, and that node is in the recorded in-sync set.
    pub(super) was_in_sync: bool,
    pub(super) adopt: Adopt,
    pub(super) found: bool,
}

/// Why a node does not lead, or does not even follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bar {
    Another { ours: DataSetId, clusters: DataSetId },
    Blank { clusters: DataSetId },
}

impl Standing {
    /// Whether this directory's data set is to take the place of the cluster's.
    pub(super) fn founds(&self) -> bool {
        self.found && self.another().is_some()
    }

    /// Why it must not follow.
    pub(super) fn bars_following(&self) -> Option<Bar> {
        let (ours, clusters) = self.another()?;
        let is_given_up = self.adopt == Adopt::DataSet(ours) && !self.found;
        (!is_given_up).then_some(Bar::Another { ours, clusters })
    }

    /// Why it must not lead.
    pub(super) fn bars_leading(&self) -> Option<Bar> {
        match (self.ours, self.clusters) {
            (Some(ours), Some(clusters)) if ours != clusters => {
                (!self.founds()).then_some(Bar::Another { ours, clusters })
            }
            (None, Some(clusters)) => (!self.was_in_sync).then_some(Bar::Blank { clusters }),
            _ => None,
        }
    }

    fn another(&self) -> Option<(DataSetId, DataSetId)> {
        self.ours.zip(self.clusters).filter(|(ours, clusters)| ours != clusters)
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Another { ours, clusters } => write!(
                f,
                "this directory holds data set {ours}, and the cluster's is {clusters}: the node neither follows nor leads, and \
                 nothing is changed; give it the prefix of its own cluster, or, if the cluster's data may replace what is here, \
                 --adopt={ours}, or, if what is here is to replace the cluster's data, --found"
            ),
            Self::Blank { clusters } => write!(
                f,
                "this directory holds no data set, and the cluster's is {clusters}: the node does not lead before it has followed a \
                 leader; if the data should be here, see whether its disk is mounted; if this is all there is, such as a backup that was \
                 put back, stop all nodes, delete isr and paceline/data_set below the cluster's prefix in etcd (etcdctl del), and \
                 start this node first, with --accept-loss"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_of_the_clusters_data_set_follows_and_leads_unless_a_person_says_so() {
        let [a, b] = [1, 2].map(|byte| DataSetId::from_bytes([byte; 16]));
        let none = Standing { ours: None, clusters: None, was_in_sync: false, adopt: Adopt::Nothing, found: false };
        let of = |ours, clusters| Standing { ours, clusters, ..none };
        let adopts = |adopt, standing| Standing { adopt, ..standing };
        let found = |standing| Standing { found: true, ..standing };
        let other = of(Some(a), Some(b));
        for (standing, follows, leads) in [
            (none, true, true),
            (of(Some(a), None), true, true),
            (of(Some(a), Some(a)), true, true),
            (of(None, Some(a)), true, false),
            (Standing { was_in_sync: true, ..of(None, Some(a)) }, true, true),
            (other, false, false),
            (Standing { was_in_sync: true, ..other }, false, false),
            (adopts(Adopt::Nobodys, other), false, false),
            (adopts(Adopt::DataSet(a), other), true, false),
            // It was left there, and gave up something else.
            (adopts(Adopt::DataSet(b), other), false, false),
            (found(other), false, true),
            (found(adopts(Adopt::DataSet(a), other)), false, true),
            // There is nothing here that could be the truth.
            (found(of(None, Some(a))), true, false),
            (found(of(Some(a), Some(a))), true, true),
            (found(of(Some(a), None)), true, true),
        ] {
            let bars = (standing.bars_following().is_none(), standing.bars_leading().is_none());
            assert_eq!(bars, (follows, leads), "{standing:?}");
            assert_eq!(standing.founds(), standing.found && standing.ours == Some(a) && standing.clusters == Some(b));
        }
        let said = other.bars_following().map(|bar| bar.to_string()).unwrap_or_default();
        assert!(
            said.contains(&a.to_string()) && said.contains(&b.to_string()) && said.contains(&format!("--adopt={a}"))
        );
    }
}
