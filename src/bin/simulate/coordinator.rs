//! A coordinator that the world's nodes share: leases in virtual time, fenced writes, answers that take time or are lost.
//!
//! It is no process of the world: its state changes between two scheduling points, so that a node which is killed in the middle of a
//! call leaves nothing half done.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use paceline::coordinator::{
    self, Bid, Coordinator, CoordinatorError, InSyncSet, LeaderInfo, Leadership, Observation, Stop,
};
use paceline::sys::thread;
use paceline::sys::time::Instant;
use paceline::sys::world;
use paceline::{DataSetId, EpochPosition, NodeId, Secret};

/// For how long a lease lasts without renewal.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// A node counts on this much less, and renews so often.
const MARGIN: Duration = Duration::from_millis(600);
const RENEW_EVERY: Duration = Duration::from_millis(600);
/// How long a node waits for an answer that does not come.
const PATIENCE: Duration = Duration::from_secs(1);

/// What all nodes share.
pub(crate) struct Cluster {
    state: Mutex<State>,
    key: world::Key,
}

#[derive(Default)]
struct State {
    in_sync: Option<InSyncSet>,
    /// What was recorded beside it.
    committed: Option<EpochPosition>,
    data_set: Option<DataSetId>,
    /// In the order they came; the first is elected.
    candidates: VecDeque<Candidate>,
    /// What nodes said last that they have: seen beside their candidacies.
    bids: BTreeMap<NodeId, Bid>,
    term: u64,
    /// Nodes that cannot reach it.
    cut: BTreeSet<NodeId>,
    /// Sets that were recorded, for the trace and the checks.
    recorded: u64,
    changes: u64,
    /// Writes of sets that nobody waits for any more: they get there when their node is not cut off any more.
    late: Vec<(NodeId, Write)>,
}

/// A write of the set: done only for who is elected, and if nobody has written since it was sent, as with etcd.
#[derive(Clone)]
struct Write {
    term: u64,
    after: u64,
    set: InSyncSet,
    committed: Option<EpochPosition>,
}

impl State {
    fn told(&self) -> Vec<coordinator::Candidate> {
        let told = |candidate: &Candidate| coordinator::Candidate {
            id: Some(candidate.id),
            term: candidate.term,
            bid: self.bids.get(&candidate.id).copied(),
        };
        self.candidates.iter().map(told).collect()
    }

    /// Whether it is done; `None`: its election is over.
    fn record(&mut self, write: &Write) -> Option<bool> {
        if self.candidates.front().is_none_or(|front| front.term != write.term) {
            return None;
        }
        let is_next = self.recorded == write.after;
        if is_next {
            (self.in_sync, self.committed) = (Some(write.set.clone()), write.committed);
            self.recorded += 1;
            let beside = || write.committed.map(|committed| format!(", who have {committed}")).unwrap_or_default();
            world::current().trace(|| format!("recorded as in sync: {}{}", write.set, beside()));
        }
        Some(is_next)
    }
}

struct Candidate {
    id: NodeId,
    uri: String,
    term: u64,
    /// When the lease runs out, in the world's time.
    until: Duration,
}

impl Cluster {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), key: world::current().new_key() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = world::current().now();
        let before = state.candidates.len();
        state.candidates.retain(|candidate| candidate.until > now);
        if state.candidates.len() != before {
            state.changes += 1;
        }
        state
    }

    fn changed(&self, mut state: MutexGuard<'_, State>) {
        state.changes += 1;
        drop(state);
        world::wake(self.key);
    }

    /// The recorded in-sync set.
    pub(crate) fn in_sync(&self) -> Option<InSyncSet> {
        self.lock().in_sync.clone()
    }

    /// Whether who leads has renewed its lease not long ago: who was cut off for long may find out after that that it does not lead any more.
    pub(crate) fn is_renewed(&self) -> bool {
        let now = world::current().now();
        self.lock().candidates.front().is_some_and(|front| front.until > now + LEASE - 2 * RENEW_EVERY)
    }

    /// Whether a node can reach it.
    pub(crate) fn set_cut(&self, id: NodeId, cut: bool) {
        let mut state = self.lock();
        if cut {
            state.cut.insert(id);
        } else if state.cut.remove(&id) {
            let (arrived, late) = std::mem::take(&mut state.late).into_iter().partition(|(of, _)| *of == id);
            state.late = late;
            let arrived: Vec<_> = arrived;
            for (_, write) in arrived {
                state.record(&write);
            }
        }
        self.changed(state);
    }

    /// As a process that was killed leaves it: its leases run out by themselves.
    pub(crate) fn handle(self: &Arc<Self>, id: NodeId) -> Arc<Handle> {
        Arc::new(Handle { cluster: self.clone(), id })
    }
}

/// One node's way to it.
pub(crate) struct Handle {
    cluster: Arc<Cluster>,
    id: NodeId,
}

impl Handle {
    /// A request on its way, or its answer: takes a moment, and never arrives while the node is cut off.
    fn travel(&self) -> Result<(), CoordinatorError> {
        let delay =
            world::current().chance(|rng| if rng.u8(..) < 8 { rng.u64(1..200_000) } else { rng.u64(50..2_000) });
        thread::sleep(Duration::from_micros(delay));
        if self.cluster.lock().cut.contains(&self.id) {
            thread::sleep(PATIENCE);
            return Err(CoordinatorError::Unavailable("no answer in time".into()));
        }
        Ok(())
    }

    /// Does something there: not done if the request is lost, done but unknown if the answer is.
    fn ask<R>(&self, act: impl FnOnce(&mut State) -> R) -> Result<R, Lost> {
        self.travel().map_err(Lost::Request)?;
        let mut state = self.cluster.lock();
        let result = act(&mut state);
        self.cluster.changed(state);
        self.travel().map_err(Lost::Answer)?;
        Ok(result)
    }

    fn observe<T: Clone + PartialEq + Send + 'static>(
        &self,
        name: &str,
        look: impl Fn(&State) -> T + Send + 'static,
    ) -> Result<Observation<T>, CoordinatorError> {
        let handle = Self { cluster: self.cluster.clone(), id: self.id };
        Observation::start(name, move |latest, stop| {
            let mut last = None;
            while !stop.is_set() {
                if handle.travel().is_err() {
                    continue;
                }
                let (now, seen) = {
                    let state = handle.cluster.lock();
                    (look(&state), state.changes)
                };
                if last.as_ref() != Some(&now) {
                    latest.put(now.clone());
                    last = Some(now);
                }
                // Its end is looked for now and then: it is told by nobody.
                let world = world::current();
                let deadline = world.now() + Duration::from_millis(100);
                let changed = || (handle.cluster.lock().changes != seen).then_some(());
                world::wait(world::What::Channel, &[handle.cluster.key], Some(deadline), changed);
            }
        })
    }
}

enum Lost {
    Request(CoordinatorError),
    Answer(CoordinatorError),
}

impl From<Lost> for CoordinatorError {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Request(error) | Lost::Answer(error) => error,
        }
    }
}

impl Coordinator for Handle {
    fn secret(&self) -> Result<Secret, CoordinatorError> {
        Ok(secret())
    }

    fn in_sync_set(&self) -> Result<Option<InSyncSet>, CoordinatorError> {
        Ok(self.ask(|state| state.in_sync.clone())?)
    }

    fn remove_from_in_sync_set(&self, _: NodeId) -> Result<bool, CoordinatorError> {
        Err(CoordinatorError::Refused("nobody does this here".into()))
    }

    fn campaign(&self, id: NodeId, uri: &str, stop: &Stop) -> Result<Option<Arc<dyn Leadership>>, CoordinatorError> {
        let sent = Instant::now();
        let mut until = world::current().now() + LEASE;
        let term = self.ask(|state| {
            state.candidates.retain(|candidate| candidate.id != id);
            state.term += 1;
            let term = state.term;
            state.candidates.push_back(Candidate { id, uri: uri.to_owned(), term, until });
            term
        })?;
        let mut held = sent + (LEASE - MARGIN);
        let leave = |cluster: &Cluster| {
            let mut state = cluster.lock();
            state.candidates.retain(|candidate| candidate.term != term);
            cluster.changed(state);
        };
        loop {
            if stop.is_set() {
                leave(&self.cluster);
                return Ok(None);
            }
            let (first, seen, there) = {
                let state = self.cluster.lock();
                let there = state.candidates.iter().any(|candidate| candidate.term == term);
                (state.candidates.front().is_some_and(|front| front.term == term), state.changes, there)
            };
            if !there {
                return Err(CoordinatorError::Unavailable("the lease ran out".into()));
            }
            if first {
                break;
            }
            let world = world::current();
            let deadline = world.now() + Duration::from_millis(200);
            let changed = || (self.cluster.lock().changes != seen).then_some(());
            world::wait(world::What::Channel, &[self.cluster.key], Some(deadline), changed);
            // Renewed while it waits.
            let sent = Instant::now();
            let renewed = world.now() + LEASE;
            if self.travel().is_ok() {
                until = renewed;
                held = sent + (LEASE - MARGIN);
                let mut state = self.cluster.lock();
                if let Some(own) = state.candidates.iter_mut().find(|candidate| candidate.term == term) {
                    own.until = until;
                }
            }
        }
        let election = Arc::new(Election {
            handle: Handle { cluster: self.cluster.clone(), id },
            term,
            held: Mutex::new(Some(held)),
            health: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let renewing = Arc::downgrade(&election);
        let renew = move || {
            loop {
                thread::sleep(RENEW_EVERY);
                match renewing.upgrade() {
                    Some(election) if election.renew() => {}
                    _ => return,
                }
            }
        };
        thread::Builder::new().name("lease".into()).spawn(renew).map_err(CoordinatorError::Thread)?;
        Ok(Some(election))
    }

    fn stop_margin(&self) -> Duration {
        MARGIN
    }

    fn observe_leader(&self) -> Result<Observation<Option<LeaderInfo>>, CoordinatorError> {
        self.observe("leader", |state| {
            state.candidates.front().map(|front| LeaderInfo::new(front.uri.clone(), Some(front.id), front.term))
        })
    }

    fn observe_in_sync_set(&self) -> Result<Observation<Option<InSyncSet>>, CoordinatorError> {
        self.observe("in-sync-set", |state| state.in_sync.clone())
    }

    fn bid(&self, id: NodeId, bid: &Bid) -> Result<(), CoordinatorError> {
        self.ask(|state| state.bids.insert(id, *bid))?;
        Ok(())
    }

    fn candidates(&self) -> Result<Vec<coordinator::Candidate>, CoordinatorError> {
        Ok(self.ask(|state| state.told())?)
    }

    fn observe_candidates(&self) -> Result<Observation<Vec<coordinator::Candidate>>, CoordinatorError> {
        self.observe("candidates", State::told)
    }

    fn committed(&self) -> Result<Option<EpochPosition>, CoordinatorError> {
        Ok(self.ask(|state| state.committed)?)
    }

    fn data_set(&self) -> Result<Option<DataSetId>, CoordinatorError> {
        Ok(self.ask(|state| state.data_set)?)
    }

    fn observe_data_set(&self) -> Result<Observation<Option<DataSetId>>, CoordinatorError> {
        self.observe("data-set", |state| state.data_set)
    }
}

/// A won election.
struct Election {
    handle: Handle,
    term: u64,
    /// Until when by the node's own clock; `None` once it is lost.
    held: Mutex<Option<Instant>>,
    health: Mutex<Option<Arc<Health>>>,
    over: AtomicBool,
}

type Health = dyn Fn() -> bool + Send + Sync;

impl Election {
    /// Renews it once; `false` if it is over.
    fn renew(&self) -> bool {
        if !self.is_held() {
            return false;
        }
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if health.is_some_and(|is_alive| !is_alive()) {
            return true;
        }
        let (sent, until) = (Instant::now(), world::current().now() + LEASE);
        let term = self.term;
        let renewed = self.handle.ask(|state| match state.candidates.front_mut() {
            Some(front) if front.term == term => {
                front.until = front.until.max(until);
                true
            }
            _ => false,
        });
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match renewed {
            Ok(true) if held.is_some_and(|held| Instant::now() < held) => *held = Some(sent + (LEASE - MARGIN)),
            Ok(true) | Err(_) => {}
            Ok(false) => *held = None,
        }
        true
    }

    fn leave(&self) {
        self.over.store(true, Ordering::Relaxed);
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let mut state = self.handle.cluster.lock();
        state.candidates.retain(|candidate| candidate.term != self.term);
        self.handle.cluster.changed(state);
    }
}

impl Leadership for Election {
    fn record_in_sync(&self, set: &InSyncSet) -> Result<(), CoordinatorError> {
        self.record(set, None)
    }

    fn record(&self, set: &InSyncSet, committed: Option<EpochPosition>) -> Result<(), CoordinatorError> {
        let write = Write { term: self.term, after: self.handle.cluster.lock().recorded, set: set.clone(), committed };
        match self.handle.ask(|state| state.record(&write)) {
            Ok(Some(true)) => Ok(()),
            Ok(Some(false)) => Err(CoordinatorError::NotRecorded("somebody else has written it".into())),
            Ok(None) => Err(CoordinatorError::Lost),
            Err(Lost::Request(_)) if world::current().chance(fastrand::Rng::bool) => {
                Err(CoordinatorError::NotRecorded("no answer".into()))
            }
            // What is on its way may get there long after.
            Err(Lost::Request(_)) => {
                self.handle.cluster.lock().late.push((self.handle.id, write));
                Err(CoordinatorError::Unknown("no answer".into()))
            }
            Err(Lost::Answer(_)) => Err(CoordinatorError::Unknown("no answer".into())),
        }
    }

    fn record_data_set(&self, id: DataSetId, replace: bool) -> Result<DataSetId, CoordinatorError> {
        let term = self.term;
        let recorded = self.handle.ask(|state| {
            if state.candidates.front().is_none_or(|front| front.term != term) {
                return None;
            }
            if replace || state.data_set.is_none() {
                state.data_set = Some(id);
            }
            state.data_set
        })?;
        recorded.ok_or(CoordinatorError::Lost)
    }

    fn in_sync_set(&self) -> Result<Option<InSyncSet>, CoordinatorError> {
        Ok(self.handle.ask(|state| state.in_sync.clone())?)
    }

    fn term(&self) -> Option<u64> {
        Some(self.term)
    }

    fn is_held(&self) -> bool {
        let held = *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.is_some_and(|held| Instant::now() < held)
    }

    fn held_until(&self) -> Option<Instant> {
        Some(self.held.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(Instant::now))
    }

    fn resign(&self) {
        if !self.over.load(Ordering::Relaxed) && self.handle.travel().is_ok() {
            self.leave();
        }
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn abandon(&self) {
        // Nobody is told: the lease runs out by itself.
        self.over.store(true, Ordering::Relaxed);
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn set_health(&self, health: Box<dyn Fn() -> bool + Send + Sync>) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::from(health));
    }

    fn wait_lost(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        while self.is_held() && Instant::now() < end {
            thread::sleep(Duration::from_millis(50).min(timeout));
        }
        !self.is_held()
    }
}

pub(crate) fn secret() -> Secret {
    Secret::new("known to all of this world").expect("a good secret")
}
