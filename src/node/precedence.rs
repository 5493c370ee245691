//! Who is elected is who has most: a winner looks whether another candidate has more, and gives way to it.
//!
//! ```text
//!   leader lost ─▶ each node stops applying ─▶ and bids what it has ─┐
//!                    the first candidate is elected ─▶ waits for the bids ─▶ has most: leads
//!                                                                       └─▶ another has more: gives way, and stands again behind it
//! ```
//!
//! A bid names the elected leader that its node knows of, so one from before the election counts for nothing: the node may have applied more since. Waiting ends after
//! [`BIDS_MAX_WAIT`]: a member that died together with the leader is a candidate until its lease ends. Not waited for is who does not bid (LavinMQ, earlier versions), nor
//! anybody behind one who does not: giving way would elect that one. Not given way to is who is not in the recorded set: it could not lead.
//!
//! The order of positions is total and equal ones do not give way, so who has most never does; whoever does is behind it after that. So it ends. A winner that has no
//! position (its leader was LavinMQ, or it is the first of all) knows of nobody that has more. One that was given way to and cannot serve stands back from elections, and the next
//! one finds it gone.
//!
//! Pure: it is told what is so.

use std::time::Duration;

use crate::coordinator::Candidate;
use crate::position::EpochPosition;
use crate::types::NodeId;

/// How long a winner waits for what the other candidates have. A live one tells it within milliseconds, unless its disk is stuck.
pub(super) const BIDS_MAX_WAIT: Duration = Duration::from_secs(5);

/// What a winner does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Leads,
    /// For these, who have not said yet what they have.
    Waits(Vec<NodeId>),
    GivesWay {
        to: NodeId,
        has: EpochPosition,
    },
}

/// What the winner of `term` does that has this, among `candidates` in their order; `may_lead` says who is in the recorded set.
pub(super) fn judge(
    term: u64,
    has: Option<EpochPosition>,
    candidates: &[Candidate],
    may_lead: impl Fn(NodeId) -> bool,
) -> Verdict {
    let Some(has) = has else { return Verdict::Leads };
    let (mut most, mut waits) = (None, Vec::new());
    for candidate in candidates.iter().filter(|candidate| candidate.term > term) {
        let Some(bid) = candidate.bid else { break };
        let Some(id) = candidate.id.filter(|id| may_lead(*id)) else { continue };
        match bid.position {
            _ if bid.term < term => waits.push(id),
            Some(theirs) if theirs > has => most = most.max(Some((theirs, id))),
            _ => {}
        }
    }
    match most {
        Some((has, to)) => Verdict::GivesWay { to, has },
        None if waits.is_empty() => Verdict::Leads,
        None => Verdict::Waits(waits),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::coordinator::Bid;
    use crate::types::StreamPosition;

    fn at(epoch: u64, position: u64) -> Option<EpochPosition> {
        Some(EpochPosition { epoch, position: StreamPosition(position) })
    }

    fn id(id: i32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn candidate(node: i32, term: u64, bid: Option<(u64, Option<EpochPosition>)>) -> Candidate {
        Candidate { id: Some(id(node)), term, bid: bid.map(|(term, position)| Bid { term, position }) }
    }

    fn judged(has: Option<EpochPosition>, others: &[Candidate]) -> Verdict {
        let own = candidate(1, 10, Some((0, None)));
        judge(10, has, &[&[own], others].concat(), |node| node != id(9))
    }

    #[test]
    fn a_winner_gives_way_to_who_has_most_and_waits_for_who_has_not_said() {
        let less = candidate(2, 11, Some((10, at(5, 60))));
        let equal = candidate(3, 12, Some((10, at(5, 70))));
        let more = candidate(4, 13, Some((10, at(5, 80))));
        let later = candidate(5, 14, Some((12, at(6, 1))));
        let of_old = candidate(6, 15, Some((9, at(6, 99))));
        let unknown = candidate(7, 16, Some((10, None)));
        let gives_way = |to: i32, has: Option<EpochPosition>| Verdict::GivesWay { to: id(to), has: has.unwrap() };
        assert_eq!(judged(at(5, 70), &[less, equal, unknown]), Verdict::Leads);
        assert_eq!(judged(at(5, 70), &[less, more, equal]), gives_way(4, at(5, 80)));
        assert_eq!(judged(at(5, 70), &[more, later]), gives_way(5, at(6, 1)));
        assert_eq!(judged(at(5, 70), &[less, of_old]), Verdict::Waits(vec![id(6)]));
        assert_eq!(judged(at(5, 70), &[more, of_old]), gives_way(4, at(5, 80)), "enough is known");
        assert_eq!(judged(None, &[more, of_old]), Verdict::Leads);
    }

    #[test]
    fn nobody_gives_way_to_who_could_not_lead_nor_past_one_who_says_nothing() {
        let silent = candidate(2, 11, None);
        let more = candidate(4, 13, Some((10, at(5, 80))));
        let of_old = candidate(6, 15, Some((9, at(6, 99))));
        let not_in_set = candidate(9, 16, Some((10, at(9, 9))));
        assert_eq!(judged(at(5, 70), &[silent, more, of_old]), Verdict::Leads);
        assert_eq!(judged(at(5, 70), &[not_in_set]), Verdict::Leads);
        assert!(matches!(judged(at(5, 70), &[more, silent, of_old]), Verdict::GivesWay { .. }));
        // Who is before it leads, or is gone: what is known of the election is of old.
        let before = candidate(8, 9, Some((10, at(7, 7))));
        assert_eq!(judge(10, at(5, 70), &[before], |_| true), Verdict::Leads);
    }

    proptest! {
        /// Each that gives way stands again, at the end.
        #[test]
        fn however_they_stand_who_has_most_leads_in_the_end(positions in prop::collection::vec((0_u64..3, 1_u64..4), 1..6)) {
            let has = |index: usize| at(positions[index].0, positions[index].1);
            let most = (0..positions.len()).filter_map(has).max();
            let mut queue: Vec<(usize, u64)> = (0..positions.len()).map(|index| (index, index as u64 + 1)).collect();
            for turn in 0.. {
                prop_assert!(turn <= positions.len(), "it does not end");
                let (winner, term) = queue.remove(0);
                let others: Vec<_> =
                    queue.iter().map(|&(index, its)| candidate(i32::try_from(index).unwrap() + 1, its, Some((term, has(index))))).collect();
                match judge(term, has(winner), &others, |_| true) {
                    Verdict::Leads => {
                        prop_assert_eq!(has(winner), most);
                        break;
                    }
                    Verdict::GivesWay { .. } => queue.push((winner, 100 + turn as u64)),
                    Verdict::Waits(_) => prop_assert!(false, "all have said it"),
                }
            }
        }
    }
}
