//! A coordinator in memory: for groups within one process, and for tests, which can make it fail.
//!
//! One lock holds everything and is held for moments only; calls that wait do so on its condition variable. No threads but
//! those of observations. A leadership lasts until it is resigned, or ended by [`MemoryCoordinator::expire_leadership`]: in
//! memory nothing comes between a node and the coordinator, so there is nothing to renew by the clock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Bid, Coordinator, CoordinatorError, InSyncSet, LeaderInfo, Leadership, Observation, random_bytes};
use crate::position::EpochPosition;
use crate::stop::Stop;
use crate::sys::sync::{Condvar, Mutex, MutexGuard};
use crate::sys::time::Instant;
use crate::types::{DataSetId, NodeId, Secret};

/// A handle of a cluster in memory. Each clone is a handle of its own of the same cluster, as another node would have.
#[derive(Default)]
pub struct MemoryCoordinator {
    cluster: Arc<Cluster>,
    /// Tells handles apart.
    number: u64,
}

#[derive(Default)]
struct Cluster {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    secret: Option<Secret>,
    in_sync: Option<InSyncSet>,
    /// What was recorded beside it.
    committed: Option<EpochPosition>,
    data_set: Option<DataSetId>,
    /// In the order they came; the first is elected.
    candidates: VecDeque<Arc<Candidate>>,
    /// By handle and id.
    bids: BTreeMap<(u64, NodeId), Bid>,
    last_term: u64,
    last_handle: u64,
    unreachable: bool,
    writes_held: bool,
    writes_waiting: usize,
    fault: Option<WriteFault>,
    failed: bool,
}

struct Candidate {
    term: u64,
    handle: u64,
    id: NodeId,
    uri: String,
    /// It was taken out of the candidates.
    over: AtomicBool,
    health: Mutex<Option<Arc<Health>>>,
}

type Health = dyn Fn() -> bool + Send + Sync;

/// What becomes of writes of the in-sync set while it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteFault {
    /// They fail with [`CoordinatorError::NotRecorded`].
    NotRecorded,
    /// They fail with [`CoordinatorError::Unknown`], and did not happen.
    UnknownNotDone,
    /// They fail with [`CoordinatorError::Unknown`], and did happen.
    UnknownDone,
}

impl MemoryCoordinator {
    /// A cluster with nothing recorded.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the leadership there is, as if it had not been renewed in time; the next candidate is elected.
    pub fn expire_leadership(&self) {
        let mut state = self.cluster.state.lock();
        if let Some(leader) = state.candidates.front().cloned() {
            self.cluster.remove(&mut state, &leader);
        }
    }

    /// Does what a renewal does: asks the leader's health check, if there is one, and ends the leadership if it says no.
    pub fn renew(&self) {
        let leader = self.cluster.state.lock().candidates.front().cloned();
        let Some(leader) = leader else { return };
        let health = leader.health.lock().clone();
        if health.is_some_and(|is_alive| !is_alive()) {
            self.cluster.remove(&mut self.cluster.state.lock(), &leader);
        }
    }

    /// Records an in-sync set, with nothing beside it, or deletes the one there is, without anybody's election.
    pub fn set_in_sync_set(&self, set: Option<InSyncSet>) {
        let mut state = self.cluster.state.lock();
        state.committed = state.committed.filter(|_| set.is_none());
        state.in_sync = set;
        drop(state);
        self.cluster.changed.notify_all();
    }

    /// Records this beside the in-sync set, or nothing, without anybody's election.
    pub fn set_committed(&self, committed: Option<EpochPosition>) {
        self.cluster.state.lock().committed = committed;
    }

    /// Records of which data set the cluster is, or of none, without anybody's election.
    pub fn set_data_set(&self, id: Option<DataSetId>) {
        self.cluster.state.lock().data_set = id;
        self.cluster.changed.notify_all();
    }

    /// What becomes of leaders' writes of the in-sync set from now on; `None` lets them succeed.
    pub fn set_write_fault(&self, fault: Option<WriteFault>) {
        self.cluster.state.lock().fault = fault;
    }

    /// While held, leaders' writes of the in-sync set do not return: they reach the cluster when they are let go.
    pub fn hold_writes(&self, held: bool) {
        self.cluster.state.lock().writes_held = held;
        self.cluster.changed.notify_all();
    }

    /// How many writes are being held.
    #[must_use]
    pub fn writes_waiting(&self) -> usize {
        self.cluster.state.lock().writes_waiting
    }

    /// While it cannot be reached calls fail, those that wait go on waiting, and leaderships stay.
    pub fn set_reachable(&self, reachable: bool) {
        self.cluster.state.lock().unreachable = !reachable;
        self.cluster.changed.notify_all();
    }

    /// From now on it says that a thread of its own has failed.
    pub fn fail(&self) {
        self.cluster.state.lock().failed = true;
    }

    fn observe<T: PartialEq + Clone + Send + 'static>(
        &self,
        name: &str,
        get: fn(&State) -> T,
    ) -> Result<Observation<T>, CoordinatorError> {
        let cluster = self.cluster.clone();
        Observation::start(name, move |latest, stop| {
            let _wake = cluster.wake_on(&stop);
            let mut last = None;
            let mut state = cluster.state.lock();
            while !stop.is_set() {
                let now = Some(get(&state));
                if now != last && !state.unreachable {
                    last.clone_from(&now);
                    MutexGuard::unlocked(&mut state, || now.into_iter().for_each(|now| latest.put(now)));
                } else {
                    cluster.changed.wait(&mut state);
                }
            }
        })
    }
}

impl Clone for MemoryCoordinator {
    fn clone(&self) -> Self {
        let mut state = self.cluster.state.lock();
        state.last_handle += 1;
        Self { cluster: self.cluster.clone(), number: state.last_handle }
    }
}

impl Cluster {
    fn reach(&self) -> Result<MutexGuard<'_, State>, CoordinatorError> {
        let state = self.state.lock();
        if state.unreachable {
            return Err(CoordinatorError::Unavailable("it was made unreachable".into()));
        }
        Ok(state)
    }

    fn remove(&self, state: &mut State, candidate: &Arc<Candidate>) {
        state.candidates.retain(|other| !Arc::ptr_eq(other, candidate));
        candidate.over.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Wakes who waits for changes when `stop` is set. The lock is taken so that nobody is between its look at `stop` and
    /// its wait.
    fn wake_on(self: &Arc<Self>, stop: &Stop) -> crate::stop::OnSet {
        let cluster = self.clone();
        stop.on_set(move || {
            drop(cluster.state.lock());
            cluster.changed.notify_all();
        })
    }
}

impl State {
    fn leader(&self) -> Option<LeaderInfo> {
        let leader = self.candidates.front()?;
        Some(LeaderInfo { uri: leader.uri.clone(), id: Some(leader.id), term: leader.term })
    }

    fn candidates(&self) -> Vec<super::Candidate> {
        let told = |candidate: &Arc<Candidate>| super::Candidate {
            id: Some(candidate.id),
            term: candidate.term,
            bid: self.bids.get(&(candidate.handle, candidate.id)).copied(),
        };
        self.candidates.iter().map(told).collect()
    }

    /// Makes room for a candidate with this id: a leadership of the same handle is given up.
    fn admit(&mut self, cluster: &Cluster, id: NodeId, handle: u64) -> Result<(), CoordinatorError> {
        let Some(index) = self.candidates.iter().position(|other| other.id == id) else { return Ok(()) };
        let other = self.candidates[index].clone();
        if index > 0 || other.handle != handle {
            return Err(CoordinatorError::IdInUse { id, uri: Some(other.uri.clone()) });
        }
        cluster.remove(self, &other);
        Ok(())
    }
}

impl Coordinator for MemoryCoordinator {
    fn has_failed(&self) -> bool {
        self.cluster.state.lock().failed
    }

    fn secret(&self) -> Result<Secret, CoordinatorError> {
        let made = Secret::new(random_bytes()?).map_err(|error| CoordinatorError::Unexpected(error.to_string()))?;
        Ok(self.cluster.reach()?.secret.get_or_insert(made).clone())
    }

    fn in_sync_set(&self) -> Result<Option<InSyncSet>, CoordinatorError> {
        Ok(self.cluster.reach()?.in_sync.clone())
    }

    fn remove_from_in_sync_set(&self, id: NodeId) -> Result<bool, CoordinatorError> {
        let mut state = self.cluster.reach()?;
        let Some(set) = state.in_sync.as_ref().filter(|set| set.contains(id)) else { return Ok(false) };
        state.in_sync = Some(set.without(id).ok_or(CoordinatorError::LastInSync(id))?);
        self.cluster.changed.notify_all();
        Ok(true)
    }

    fn campaign(&self, id: NodeId, uri: &str, stop: &Stop) -> Result<Option<Arc<dyn Leadership>>, CoordinatorError> {
        let _wake = self.cluster.wake_on(stop);
        let mut state = self.cluster.reach()?;
        state.admit(&self.cluster, id, self.number)?;
        state.last_term += 1;
        let candidate = Arc::new(Candidate {
            term: state.last_term,
            handle: self.number,
            id,
            uri: uri.to_owned(),
            over: AtomicBool::new(false),
            health: Mutex::new(None),
        });
        state.candidates.push_back(candidate.clone());
        self.cluster.changed.notify_all();
        let is_elected = |state: &State| state.candidates.front().is_some_and(|first| Arc::ptr_eq(first, &candidate));
        while !stop.is_set() && (state.unreachable || !is_elected(&state)) {
            self.cluster.changed.wait(&mut state);
        }
        if stop.is_set() {
            self.cluster.remove(&mut state, &candidate);
            return Ok(None);
        }
        drop(state);
        Ok(Some(Arc::new(MemoryLeadership { cluster: self.cluster.clone(), candidate })))
    }

    fn observe_leader(&self) -> Result<Observation<Option<LeaderInfo>>, CoordinatorError> {
        self.observe("leader-observer", State::leader)
    }

    fn observe_in_sync_set(&self) -> Result<Observation<Option<InSyncSet>>, CoordinatorError> {
        self.observe("in-sync-observer", |state| state.in_sync.clone())
    }

    fn bid(&self, id: NodeId, bid: &Bid) -> Result<(), CoordinatorError> {
        self.cluster.reach()?.bids.insert((self.number, id), *bid);
        self.cluster.changed.notify_all();
        Ok(())
    }

    fn candidates(&self) -> Result<Vec<super::Candidate>, CoordinatorError> {
        Ok(self.cluster.reach()?.candidates())
    }

    fn observe_candidates(&self) -> Result<Observation<Vec<super::Candidate>>, CoordinatorError> {
        self.observe("candidates-observer", State::candidates)
    }

    fn committed(&self) -> Result<Option<EpochPosition>, CoordinatorError> {
        Ok(self.cluster.reach()?.committed)
    }

    fn data_set(&self) -> Result<Option<DataSetId>, CoordinatorError> {
        Ok(self.cluster.reach()?.data_set)
    }

    fn observe_data_set(&self) -> Result<Observation<Option<DataSetId>>, CoordinatorError> {
        self.observe("data-set-observer", |state| state.data_set)
    }
}

struct MemoryLeadership {
    cluster: Arc<Cluster>,
    candidate: Arc<Candidate>,
}

impl Leadership for MemoryLeadership {
    fn record_in_sync(&self, set: &InSyncSet) -> Result<(), CoordinatorError> {
        self.record(set, None)
    }

    fn record(&self, set: &InSyncSet, committed: Option<EpochPosition>) -> Result<(), CoordinatorError> {
        let mut state = self.cluster.state.lock();
        state.writes_waiting += 1;
        while state.writes_held {
            self.cluster.changed.wait(&mut state);
        }
        state.writes_waiting -= 1;
        if state.unreachable {
            return Err(CoordinatorError::NotRecorded("the coordinator was made unreachable".into()));
        }
        if !self.is_held() {
            return Err(CoordinatorError::Lost);
        }
        let fault = state.fault;
        if matches!(fault, None | Some(WriteFault::UnknownDone)) {
            (state.in_sync, state.committed) = (Some(set.clone()), committed);
            self.cluster.changed.notify_all();
        }
        match fault {
            None => Ok(()),
            Some(WriteFault::NotRecorded) => Err(CoordinatorError::NotRecorded("a fault was set".into())),
            Some(_) => Err(CoordinatorError::Unknown("a fault was set".into())),
        }
    }

    fn record_data_set(&self, id: DataSetId, replace: bool) -> Result<DataSetId, CoordinatorError> {
        let mut state = self.cluster.reach()?;
        if !self.is_held() {
            return Err(CoordinatorError::Lost);
        }
        let recorded = state.data_set.filter(|_| !replace).unwrap_or(id);
        state.data_set = Some(recorded);
        self.cluster.changed.notify_all();
        Ok(recorded)
    }

    fn in_sync_set(&self) -> Result<Option<InSyncSet>, CoordinatorError> {
        Ok(self.cluster.reach()?.in_sync.clone())
    }

    fn term(&self) -> Option<u64> {
        Some(self.candidate.term)
    }

    fn is_held(&self) -> bool {
        !self.candidate.over.load(Ordering::Acquire)
    }

    fn resign(&self) {
        self.cluster.remove(&mut self.cluster.state.lock(), &self.candidate);
    }

    fn set_health(&self, health: Box<dyn Fn() -> bool + Send + Sync>) {
        *self.candidate.health.lock() = Some(health.into());
    }

    fn wait_lost(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.cluster.state.lock();
        while self.is_held() {
            match deadline {
                Some(deadline) if self.cluster.changed.wait_until(&mut state, deadline).timed_out() => break,
                Some(_) => (),
                None => self.cluster.changed.wait(&mut state),
            }
        }
        !self.is_held()
    }
}

impl Drop for MemoryLeadership {
    fn drop(&mut self) {
        self.resign();
    }
}

#[cfg(test)]
mod tests;
