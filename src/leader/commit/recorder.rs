//! The `in-sync` thread: records the in-sync set with the coordinator, one write at a time, and says what changed.
//!
//! It holds no lock while it writes. What cannot be recorded is tried again, with growing delays; commits that need it
//! wait meanwhile, appends do not. What it recorded it looks at again once a second: if somebody else changed that (`forget` of a node
//! that runs, a deleted key, nonsense), it is recorded anew, and looked at more and more rarely for as long as somebody keeps changing it.
//! It ends with [`Commits::stop`], or when the election is lost.
//!
//! # What is recorded beside the set
//!
//! A (term, position) that is committed in the strictest sense: the directories of *all* members of the very set that is written, the leader's included, keep durably that they have
//! the stream up to there, so each of them can show it after any kill and any loss of power. Whoever cannot is not what was in sync ([`node`](crate::node)). So it says less than was
//! acknowledged: followers note what they have every [`KEEP_EVERY`](crate::position::KEEP_EVERY), the leader and this thread once a minute; it moves only as commits ask for what is durable, at
//! whatever level; without any it is the term. It is nothing while a member does not say what it keeps (LavinMQ, other followers of 1.0.0), and outside a cluster.

use std::sync::Arc;
use std::time::Duration;

use super::{Commits, Set, State};
use crate::config::Quorum;
use crate::coordinator::{CoordinatorError, IN_SYNC_IDS_MAX, InSyncSet, Leadership};
use crate::leader::stream::Stream;
use crate::position::EpochPosition;
use crate::sys::sync::MutexGuard;
use crate::sys::thread;
use crate::sys::time::Instant;
use crate::types::{NodeId, StreamPosition};

/// Between two writes of a set that has not changed, because more is committed.
const AGAIN_EVERY: Duration = Duration::from_secs(60);

/// How often it looks whether the stream has grown beyond what a node has that is gone but in sync.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Between two looks at what is recorded; twice as long after each that found something else.
const CHECK_MIN: Duration = Duration::from_secs(1);
const CHECK_MAX: Duration = Duration::from_secs(60);

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The leadership of a leader that has no coordinator: always held, and what it records needs no writing.
pub(in crate::leader) struct Alone;

impl Leadership for Alone {
    fn record_in_sync(&self, _: &InSyncSet) -> Result<(), CoordinatorError> {
        Ok(())
    }

    fn is_held(&self) -> bool {
        true
    }

    fn resign(&self) {}

    fn set_health(&self, _: Box<dyn Fn() -> bool + Send + Sync>) {}

    fn wait_lost(&self, timeout: Duration) -> bool {
        thread::sleep(timeout);
        false
    }
}

impl Commits {
    /// The thread's life.
    pub(in crate::leader) fn run_recorder(&self, stream: &Arc<Stream>) {
        let mut delay = RETRY_MIN;
        let mut report = Report::new(self.min_in_sync);
        let mut check = Check { every: CHECK_MIN, at: Instant::now() + CHECK_MIN };
        let mut again_at = Instant::now();
        while let Some(step) = self.next_step(stream, check.at, again_at) {
            let (set, committed) = match step {
                Step::Write(set, committed) => {
                    report.in_sync(&set);
                    (set, committed)
                }
                Step::WriteAgain(set, committed) => (set, committed),
                Step::Check => {
                    self.check_recorded(&mut check);
                    continue;
                }
                Step::Fallen(ids) => {
                    let ids = ids.iter().map(NodeId::to_string).collect::<Vec<_>>().join(",");
                    log::warn!(
                        "{ids} held commits up for {:?} and is not waited for; it is in sync again once it keeps up",
                        self.in_sync_timeout
                    );
                    continue;
                }
            };
            // The rule keeps to what can be recorded.
            let Ok(to_record) = InSyncSet::new(set.iter().copied()) else { return };
            let written = self.leadership.record(&to_record, committed);
            again_at = Instant::now() + AGAIN_EVERY;
            let failed = match &written {
                Ok(()) => {
                    delay = RETRY_MIN;
                    None
                }
                Err(error) => Some(error.to_string()),
            };
            let is_lost = self.note_written(written, committed);
            match failed {
                Some(error) if is_lost => {
                    log::warn!("the in-sync set is not recorded: {error}");
                    return;
                }
                Some(error) => {
                    log::warn!("cannot record the in-sync set ({to_record}), trying again: {error}");
                    self.rest(delay);
                    delay = (delay * 2).min(RETRY_MAX);
                }
                None => {}
            }
        }
    }

    /// Looks whether what was recorded is there.
    fn check_recorded(&self, check: &mut Check) {
        let found = match self.leadership.in_sync_set() {
            Ok(found) => Ok(found.map_or_else(Set::new, |set| set.iter().collect())),
            Err(CoordinatorError::Unexpected(what)) => Err(what),
            // Nobody can record anything else meanwhile either, or the election is lost.
            Err(_) => return check.again(CHECK_MIN),
        };
        let (set, shown) = match found {
            Ok(set) if set.is_empty() => (set, "it was deleted".to_owned()),
            Ok(set) => {
                let shown = set.iter().map(NodeId::to_string).collect::<Vec<_>>().join(",");
                (set, format!("it is {shown}"))
            }
            Err(what) => (Set::new(), what),
        };
        let is_other = self.state.lock().rule.finds_recorded(set);
        if is_other {
            log::warn!("somebody else changed the recorded in-sync set ({shown}): it is recorded again");
            return check.again((check.every * 2).min(CHECK_MAX));
        }
        check.again(CHECK_MIN);
    }

    /// Waits for a set to write, or for the time to look at what is recorded; `None`: it is over.
    fn next_step(&self, stream: &Arc<Stream>, check_at: Instant, again_at: Instant) -> Option<Step> {
        let mut state = self.state.lock();
        loop {
            if state.ended {
                return None;
            }
            if state.recording
                && let Some(set) = state.rule.next_set()
            {
                let committed = self.committed_of(&state, &set);
                return Some(Step::Write(set, committed));
            }
            if state.recording
                && Instant::now() >= again_at
                && let Some(again) = self.write_again(&mut state)
            {
                return Some(again);
            }
            if state.recording && Instant::now() >= check_at {
                return Some(Step::Check);
            }
            let wake_at = match self.look_for_hold_ups(&mut state) {
                HoldUp::Fallen(ids) => return Some(Step::Fallen(ids)),
                HoldUp::Back => continue,
                HoldUp::LookAt(at) => at.map_or(check_at, |at| at.min(check_at)),
            };
            if state.rule.lingers() {
                // Somebody is gone who has all there was: is there more?
                self.to_record.wait_for(&mut state, LOOK_EVERY);
                let end = MutexGuard::unlocked(&mut state, || stream.end());
                state.rule.appended(end.0);
            } else if state.recording {
                self.to_record.wait_until(&mut state, wake_at);
            } else {
                self.to_record.wait(&mut state);
            }
        }
    }

    /// What all of a set keep, in this leader's term.
    fn committed_of(&self, state: &State, set: &Set) -> Option<EpochPosition> {
        let epoch = self.leadership.term()?;
        let position = state.rule.least_kept(set, state.own_kept).filter(|position| *position > 0)?;
        Some(EpochPosition { epoch, position: StreamPosition(position) })
    }

    fn write_again(&self, state: &mut State) -> Option<Step> {
        let committed = self.committed_of(state, &state.rule.wanted())?;
        let is_more = state.recorded_position < Some(committed.position.0);
        let set = if is_more { state.rule.same_set() } else { None };
        set.map(|set| Step::WriteAgain(set, Some(committed)))
    }

    /// Looks who holds commits up, and who does so no more.
    fn look_for_hold_ups(&self, state: &mut State) -> HoldUp {
        let State { rule, hold_ups, waiting, end, .. } = state;
        let oldest: Vec<_> = waiting
            .iter()
            .filter_map(|(level, waiting)| Some((*level, waiting.keys().next()?.0)))
            .filter(|(level, _)| level.quorum == Quorum::All)
            .collect();
        let now = Instant::now();
        let fallen = hold_ups.look(rule, &oldest, now);
        if !fallen.is_empty() {
            return HoldUp::Fallen(fallen);
        }
        // Who has all there is says nothing more.
        let back = rule.behind().find(|id| rule.has_all(*id, *end) && hold_ups.is_back(rule, *id, Duration::ZERO, now));
        if let Some(id) = back {
            rule.keeps_up(id);
            // It was not asked with the others.
            (state.requested, state.counted_anew, state.ask_wanted) = (0, true, true);
            self.to_sync.notify_one();
            return HoldUp::Back;
        }
        let is_worth_it = !oldest.is_empty() || rule.behind().next().is_some();
        HoldUp::LookAt(is_worth_it.then(|| hold_ups.next_look()))
    }

    /// Notes what came of a write. Returns whether the election is lost.
    fn note_written(&self, written: Result<(), CoordinatorError>, committed: Option<EpochPosition>) -> bool {
        let mut state = self.state.lock();
        let mut is_lost = false;
        match written {
            Ok(()) => {
                state.rule.recorded_now();
                state.recorded_position = committed.map(|committed| committed.position.0);
            }
            Err(CoordinatorError::Unknown(_)) => state.rule.perhaps_recorded(),
            Err(CoordinatorError::Lost) => {
                state.rule.not_recorded();
                is_lost = true;
            }
            Err(_) => state.rule.not_recorded(),
        }
        state.is_lost |= is_lost;
        self.recorded.notify_all();
        self.changed(state);
        is_lost
    }

    /// Waits, unless it is over.
    fn rest(&self, delay: Duration) {
        let mut state = self.state.lock();
        if !state.ended {
            self.recorded.wait_for(&mut state, delay);
        }
    }
}

/// What the recorder does next.
enum Step {
    /// With what is committed.
    Write(Set, Option<EpochPosition>),
    /// The set that is recorded, because of that.
    WriteAgain(Set, Option<EpochPosition>),
    Check,
    /// Say who fell behind.
    Fallen(Vec<NodeId>),
}

enum HoldUp {
    Fallen(Vec<NodeId>),
    /// Somebody is back.
    Back,
    /// Look again at this time, if there is something to look for.
    LookAt(Option<Instant>),
}

/// When it looks at what is recorded.
struct Check {
    every: Duration,
    at: Instant,
}

impl Check {
    fn again(&mut self, every: Duration) {
        self.every = every;
        self.at = Instant::now() + every;
    }
}

/// Says in the log when the set falls below the minimum, and when it is back.
struct Report {
    min_in_sync: usize,
    is_below: bool,
}

impl Report {
    fn new(min_in_sync: usize) -> Self {
        // Nobody can be in sync at the start.
        Self { min_in_sync, is_below: true }
    }

    fn in_sync(&mut self, set: &Set) {
        let followers = set.len() - 1;
        if set.len() == IN_SYNC_IDS_MAX {
            log::warn!("{followers} followers are in sync, and no more can be: others stay out until one of them goes");
        }
        let ids = set.iter().map(NodeId::to_string).collect::<Vec<_>>().join(",");
        log::info!("in sync, the leader included: {ids}");
        let min = self.min_in_sync;
        let is_below = followers < min;
        if is_below && !std::mem::replace(&mut self.is_below, true) {
            log::warn!(
                "only {followers} followers are in sync, fewer than the minimum of {min}: commits are not confirmed"
            );
        } else if !is_below && std::mem::replace(&mut self.is_below, false) && min > 0 {
            log::info!("{followers} followers are in sync, the minimum is {min}: commits are confirmed");
        }
    }
}
