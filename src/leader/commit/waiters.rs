//! Who waits for a commit, and what each is told.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{CommitOutcome, Commits, Committed, Refusal, State, Unknown, Waiter, Wanted};
use crate::config::{BelowMin, CommitLevel, Durability, Quorum};
use crate::sys::channel::{self, Sender};
use crate::sys::sync::MutexGuard;
use crate::types::StreamPosition;

/// Outcomes on their way to who waits for them.
#[must_use]
pub(super) struct Settled(pub(super) Vec<(Sender<CommitOutcome>, CommitOutcome)>);

impl Drop for Settled {
    fn drop(&mut self) {
        for (caller, outcome) in self.0.drain(..) {
            // Fails if it gave up meanwhile.
            let _ = caller.try_send(outcome);
        }
    }
}

impl Commits {
    /// Blocks until it is known what comes of it, up to `timeout`.
    pub(in crate::leader) fn wait(&self, wanted: Wanted, timeout: Duration) -> CommitOutcome {
        let (sender, outcome) = channel::bounded(1);
        let at = match self.begin(wanted, Waiter::Thread(sender)) {
            Ok(at) => at,
            Err((_, outcome)) => return outcome,
        };
        if let Ok(outcome) = outcome.recv_timeout(timeout) {
            return outcome;
        }
        let gave_up = self.state.lock().take(wanted.level, at).is_some();
        // If not, somebody has just settled it, and says so now.
        let settled = (!gave_up).then(|| outcome.recv().ok()).flatten();
        settled.unwrap_or(CommitOutcome::Unknown(Unknown::Deadline))
    }

    /// Registers who waits, unless the outcome is clear at once.
    pub(super) fn begin(&self, wanted: Wanted, waiter: Waiter) -> Result<(u64, u64), (Waiter, CommitOutcome)> {
        let Wanted { position, level, end } = wanted;
        // What was found at the start is the least that can be meant.
        let position = position.max(StreamPosition::START);
        let mut state = self.state.lock();
        state.end = state.end.max(end.0);
        if position > end {
            return Err((waiter, CommitOutcome::Refused(Refusal::NotAppended)));
        }
        // Who is gone and has less than this does not hold it up.
        state.rule.appended(position.0);
        if let Some(outcome) = self.outcome_now(&mut state, position, level) {
            return Err((waiter, outcome));
        }
        state.rule.awaited(position.0, level);
        state.last_waiter += 1;
        let number = state.last_waiter;
        let at = (position.0, number);
        if let Waiter::Callback(_, Some(deadline)) = &waiter {
            state.deadlines.insert((*deadline, number), (level, position.0));
            self.to_call.notify_one();
        }
        if level.quorum == Quorum::All && !state.waiting.keys().any(|waiting| waiting.quorum == Quorum::All) {
            // It begins to look who holds commits up.
            self.to_record.notify_one();
        }
        state.waiting.entry(level).or_default().insert(at, waiter);
        state.sync_wanted |= level.durability == Durability::Durable && position.0 > state.requested;
        // A member that is not here holds it up until a set without it is recorded.
        state.recording |= level.quorum == Quorum::All;
        self.changed(state);
        Ok(at)
    }

    /// The outcome, if it is clear without waiting.
    pub(super) fn outcome_now(
        &self,
        state: &mut State,
        position: StreamPosition,
        level: CommitLevel,
    ) -> Option<CommitOutcome> {
        if state.closed {
            return Some(CommitOutcome::ShutDown);
        }
        if let Some(refusal) = self.refusal(state, level) {
            return Some(CommitOutcome::Refused(refusal));
        }
        let end = state.end;
        (state.rule.committed(level, end) >= position.0).then(|| state.committed(position.0, level))
    }

    /// Why nothing at this level is worth waiting for.
    pub(super) fn refusal(&self, state: &State, level: CommitLevel) -> Option<Refusal> {
        if !self.leadership.is_held() {
            return Some(Refusal::NotElected);
        }
        if state.local_sync_failed && level.durability == Durability::Durable {
            return Some(Refusal::LocalSyncFailed);
        }
        let waits =
            |refusal: &Refusal| self.below_min == BelowMin::Wait && matches!(refusal, Refusal::TooFewInSync { .. });
        state.rule.refusal(level).filter(|refusal| !waits(refusal))
    }

    /// To be called last with whatever may have changed what is committed or who is in sync.
    pub(super) fn changed(&self, mut state: MutexGuard<'_, State>) {
        let settled = self.settle_waiters(&mut state);
        if state.rule.lingers() || state.recording && !state.rule.is_settled() {
            self.to_record.notify_one();
        }
        if state.sync_wanted || state.ask_wanted {
            self.to_sync.notify_one();
        }
        if !state.calls.is_empty() {
            self.to_call.notify_one();
        }
        drop(state);
        drop(settled);
    }

    pub(super) fn settle_waiters(&self, state: &mut State) -> Settled {
        let mut settled = Settled(Vec::new());
        let levels: Vec<_> = state.waiting.keys().copied().collect();
        for level in levels {
            // Looked at first: what is called committed below was so while the election was held.
            let refusal = self.refusal(state, level);
            let end = state.end;
            let committed = state.rule.committed(level, end);
            let waiters = state.waiting.get_mut(&level).expect("just listed");
            let left = waiters.split_off(&(committed + 1, 0));
            let done = std::mem::replace(waiters, left);
            let (mut outcomes, lost) = (Vec::new(), matches!(refusal, Some(Refusal::NotElected)));
            for (at, waiter) in done {
                let outcome =
                    if lost { CommitOutcome::Unknown(Unknown::NotElected) } else { state.committed(at.0, level) };
                outcomes.push((at, waiter, outcome));
            }
            if let Some(refusal) = refusal {
                let unknown = Unknown::from(&refusal);
                let left = state.waiting.remove(&level).unwrap_or_default();
                outcomes.extend(left.into_iter().map(|(at, waiter)| (at, waiter, CommitOutcome::Unknown(unknown))));
            }
            if state.waiting.get(&level).is_some_and(BTreeMap::is_empty) {
                state.waiting.remove(&level);
            }
            for (at, waiter, outcome) in outcomes {
                state.settle(at.1, waiter, outcome, &mut settled);
            }
        }
        settled
    }
}

impl State {
    pub(super) fn committed(&self, position: u64, level: CommitLevel) -> CommitOutcome {
        let followers = self.rule.who_has(position, level.durability);
        let position = StreamPosition(position);
        CommitOutcome::Committed(Committed { position, followers, durability: level.durability })
    }

    pub(super) fn take(&mut self, level: CommitLevel, at: (u64, u64)) -> Option<Waiter> {
        let waiters = self.waiting.get_mut(&level)?;
        let waiter = waiters.remove(&at);
        if waiters.is_empty() {
            self.waiting.remove(&level);
        }
        waiter
    }

    /// Of one that was taken out of `waiting`.
    pub(super) fn settle(&mut self, number: u64, waiter: Waiter, outcome: CommitOutcome, settled: &mut Settled) {
        match waiter {
            Waiter::Thread(caller) => settled.0.push((caller, outcome)),
            Waiter::Callback(done, deadline) => {
                deadline.and_then(|deadline| self.deadlines.remove(&(deadline, number)));
                self.calls.push((done, outcome));
            }
        }
    }
}
