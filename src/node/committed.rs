//! Whether a directory shows what its cluster has recorded as committed: who shows less does not stand for election.
//!
//! A leader records beside the in-sync set a (term, position) that the directory of each member of that very set keeps, durably, before it is recorded
//! (`leader/commit/recorder.rs`, [`Stand`](crate::position)). So a member that is what it was shows as much after any kill and any loss of power, whatever was lost besides, and
//! one that shows less is something else. The rule is the same for all, in the set or not, alone in it or not; it takes no clock and no other node.
//!
//! | history | stands |
//! |---|---|
//! | all nodes are killed, or lose power, at once; one of them is all that comes back | yes: all members kept as much |
//! | an older copy of a directory was put back: from before the last change of leaders, or from before its term's record moved last | no |
//! | an older copy of all of them | no, none: a person chooses |
//! | the set was deleted, and a node that had fallen behind starts first | no |
//! | the directory led outside the cluster, or followed a leader that is not in it | no: its position says nothing any more |
//! | it caught up with a leader since | yes |
//! | the data set is founded anew (`found`) | yes: that is another word |
//! | nothing is recorded: a new cluster, etcd was wiped, a member that does not say what it keeps (LavinMQ, a follower of 1.0.0) was in the set when it was written last, or LavinMQ or an earlier version wrote it last | yes |
//!
//! What it does not catch: a copy that is younger than the record, which moves once a minute and no faster than followers note what they have (10 s), and only with what
//! commits made durable; where nobody asks for that, it tells leaders' terms apart and nothing within one. A copy that was put back into the directory of a node that runs. An etcd that was itself put back.
//! What was acknowledged at weaker levels. A cluster in which somebody elects himself without a [`Node`](super::Node).
//!
//! Whom it bars wrongly: a member that has followed a LavinMQ leader which was lost for good before it wrote the set or anything else; and one whose `.paceline/position` cannot be read.
//!
//! Pure: it is told what is so.

use std::fmt;

use crate::position::EpochPosition;

/// A directory shows less than was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    /// `None`: it shows nothing.
    pub(super) shows: Option<EpochPosition>,
    pub(super) committed: EpochPosition,
}

impl Behind {
    /// `None`: the directory shows all that is recorded.
    pub(super) fn of(shows: Option<EpochPosition>, committed: Option<EpochPosition>) -> Option<Self> {
        let committed = committed?;
        (shows < Some(committed)).then_some(Self { shows, committed })
    }
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shows {
            Some(shows) => write!(f, "it shows that it has {shows} (term and position), and ")?,
            None => f.write_str("it does not show how far it has come, and ")?,
        }
        write!(f, "all members of the in-sync set had {} at least", self.committed)
    }
}

/// What a person can do about it.
pub(super) const REMEDY: &str = "an older copy was put back, or another node has more: start that one, and this one follows, catches up, and may lead again. If there is none, \
                                 what is missing here is lost: start the one node that is to lead with --accept-loss";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::StreamPosition;

    fn at(epoch: u64, position: u64) -> Option<EpochPosition> {
        Some(EpochPosition { epoch, position: StreamPosition(position) })
    }

    #[test]
    fn who_shows_less_than_was_committed_is_behind_and_nobody_is_where_nothing_is_recorded() {
        for (shows, committed, is_behind) in [
            (None, None, false),
            (at(3, 7), None, false),
            (None, at(3, 1), true),
            (at(3, 6), at(3, 7), true),
            (at(3, 7), at(3, 7), false),
            (at(3, 8), at(3, 7), false),
            (at(2, 900), at(3, 7), true),
            (at(4, 1), at(3, 7), false),
        ] {
            assert_eq!(Behind::of(shows, committed).is_some(), is_behind, "{shows:?} {committed:?}");
        }
        let said = |shows| Behind::of(shows, at(3, 7)).map(|behind| behind.to_string()).unwrap_or_default();
        assert!(said(at(2, 9)).contains("has 2:9 ") && said(at(2, 9)).contains("had 3:7 "), "{}", said(at(2, 9)));
        assert!(said(None).contains("does not show") && REMEDY.contains("--accept-loss"));
    }
}
