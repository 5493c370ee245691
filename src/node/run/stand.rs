//! Whether this node stands for election, and may take one that it won. Part of [`Runner`].

use std::time::Duration;

use super::super::candidacy::{Candidacy, Shows};
use super::super::committed::{Behind, REMEDY};
use super::super::data_set::Standing;
use super::super::following::Following;
use super::super::leaderless::{Leaderless, Obstacle};
use super::super::precedence::{BIDS_MAX_WAIT, Verdict, judge};
use super::{Runner, TICK, Won};
use crate::coordinator::{Bid, CoordinatorError, InSyncSet, Leadership};
use crate::datadir::DataDir;
use crate::error::Error;
use crate::own_folder::{is_incomplete, is_suspect};
use crate::position::EpochPosition;
use crate::sys::time::Instant;
use crate::types::NodeId;

/// How often it is said that the directory is of another data set.
const SAY_BARRED: Duration = Duration::from_secs(60);

impl Runner {
    /// What this node has at the election of a leader that is another one than its last bid was for, once nothing of those before is applied any more.
    pub(super) fn next_bid(&self, last: Bid, following: &Following) -> Option<Bid> {
        let term = self.leader.as_ref()?.term;
        let position = if term == last.term { None } else { following.position_at_rest(TICK) };
        position.map(|position| Bid { term, position })
    }

    /// Whether a leadership that was won is to be taken: not if another candidate has more. `None`: it is still waited for what others have.
    pub(super) fn takes(&self, won: &mut Won, following: &Following) -> Option<bool> {
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
    pub(super) fn stand(
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
    pub(super) fn standing(&self) -> Option<Standing> {
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
    pub(super) fn say_barred(&mut self, standing: Option<Standing>) {
        let bar = standing.filter(|standing| !standing.founds()).and_then(|standing| standing.bars_following());
        let said = self.barred.filter(|(said, at)| Some(*said) == bar && at.elapsed() < SAY_BARRED);
        self.barred = said.or_else(|| {
            let bar = bar?;
            log::error!("{bar}");
            Some((bar, Instant::now()))
        });
    }

    /// Says that the directory shows too little, once, and again when that has changed.
    pub(super) fn say_behind(&mut self, behind: Option<Behind>) {
        if self.behind == behind {
            return;
        }
        match &behind {
            Some(behind) => log::warn!("{} does not stand for election: {behind}; {REMEDY}", self.data_dir().display()),
            None => log::info!("{} shows all that was committed", self.data_dir().display()),
        }
        self.behind = behind;
    }

    /// Looks anew, after the election: what was observed before may have been overtaken. While nothing is recorded anybody may be
    /// elected, so this node is, as the first thing it does: who has less than it must not succeed it.
    pub(super) fn may_take(&mut self, leadership: &dyn Leadership, shown: Option<EpochPosition>) -> bool {
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
}
