//! The election, and what a won one allows.
//!
//! It is etcd's own election, step by step, as its election service does it: each candidate has a key below `P/leader/`, named
//! after its lease, and the one that was created first is elected. Done here rather than by that service, a campaign can be
//! ended at any moment without a request that goes on in etcd and wins later. LavinMQ's nodes take part in it.
//!
//! Whoever is elected takes over when the one before it is through: `former.rs` says how that is known.
//!
//! Runs on its caller's thread; what is recorded is fenced by the revision that created the won key, and ordered by the revision
//! of what was recorded before.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{CallError, Client, Kind};
use super::config::Span;
use super::former::{Lookout, Term};
use super::lease::{self, Lease};
use super::watch::Watch;
use super::wire::{
    KeyValue, Keys, RangeAnswer, Revision, TxnAnswer, compare, compare_value, delete, get, put, put_leased,
};
use super::{Names, data_set_in, in_sync_in, leader_in};
use crate::coordinator::{Bid, CoordinatorError, InSyncSet, Leadership};
use crate::position::EpochPosition;
use crate::stop::Stop;
use crate::types::{DataSetId, NodeId};

/// A node that wants to lead.
pub(super) struct Candidate<'a> {
    pub(super) client: &'a Arc<Client>,
    pub(super) names: &'a Arc<Names>,
    pub(super) id: NodeId,
    pub(super) uri: &'a str,
    pub(super) span: Span,
    pub(super) stop: &'a Stop,
    /// What the node has, as it said last.
    pub(super) bid: &'a dyn Fn() -> Option<Bid>,
}

/// How a candidacy ended that was not won.
enum Ended {
    Stopped,
    /// The lease or the key was lost; another attempt may do better.
    Lapsed,
    Failed(CoordinatorError),
}

impl Ended {
    fn of(error: CallError) -> Self {
        match error.kind {
            Kind::Stopped => Self::Stopped,
            _ => Self::Failed(error.of_read()),
        }
    }
}

impl Candidate<'_> {
    /// Blocks until elected, stopped (`None`) or failed. `keep` gets each lease as soon as there is one.
    pub(super) fn run(&self, mut keep: impl FnMut(Arc<Lease>)) -> Result<Option<EtcdLeadership>, CoordinatorError> {
        let (key, bid) = (self.names.candidate(self.id), self.names.bid(self.id));
        let mut lookout = Lookout::start(self.client, self.names.term())?;
        while !self.stop.is_set() {
            // It may be this node's own, from before a crash, which is waited for next.
            let range = self.names.leaders().range();
            let leaders = self.client.call::<RangeAnswer>("kv/range", &range, self.client.limit(self.stop));
            leaders.iter().filter_map(|answer| answer.kvs.first()).for_each(|leader| lookout.sees(leader));
            let Some(lease) = lease::grant(self.client, self.id, (&key, &bid), self.span, self.stop)? else { break };
            keep(lease.clone());
            let ended = match self.stand(&lease, &mut lookout).and_then(|()| self.take_over(&lease, &lookout)) {
                // Whoever no longer wants it does not get it.
                Ok(_) if self.stop.is_set() => Ended::Stopped,
                Ok(term) => {
                    lease.set_elected();
                    log::info!("node {} is leader, at {}", self.id, self.uri);
                    let (client, names) = (self.client.clone(), self.names.clone());
                    return Ok(Some(EtcdLeadership { client, names, lease, term, recorded: AtomicI64::new(0) }));
                }
                Err(ended) => ended,
            };
            lease.give_up();
            match ended {
                Ended::Stopped => break,
                Ended::Failed(error) => return Err(error),
                Ended::Lapsed => {
                    log::info!("node {} campaigns anew", self.id);
                    // If it is lost at once each time, that must not keep etcd busy.
                    let _ = self.stop.wait(CAMPAIGN_PAUSE);
                }
            }
        }
        Ok(None)
    }

    /// Puts the key there and waits until it is the first.
    fn stand(&self, lease: &Lease, lookout: &mut Lookout) -> Result<(), Ended> {
        let bid = (self.bid)();
        let created = self.create_key(lease, bid)?;
        lease.set_created(created);
        let said = (self.bid)().filter(|said| Some(*said) != bid);
        if let Some(said) = said {
            // Meanwhile, when it was not known yet beside what.
            let request = json!({
                "compare": [compare(lease.key(), Revision::Create(created))],
                "success": [self.put_bid(lease, said)],
            });
            self.txn(lease, &request)?;
        }
        let mut watch = Watch::new(self.client.clone(), self.names.leaders(), self.stop.clone());
        let mut leader = None;
        let mut is_out_of_reach = false;
        loop {
            let first = match watch.next() {
                Ok(answer) => answer.kvs.into_iter().next(),
                Err(error) if matches!(error.kind, Kind::Unavailable(_)) && lease.is_held() => {
                    if !is_out_of_reach {
                        log::warn!("the election is out of reach: {error}");
                    }
                    is_out_of_reach = true;
                    continue;
                }
                Err(error) => return Err(Ended::of(error)),
            };
            is_out_of_reach = false;
            let Some(first) = first.filter(|first| first.create_revision <= created) else {
                lease.lose("its key is no longer in etcd");
                return Err(Ended::Lapsed);
            };
            if !lease.is_held() {
                return Err(Ended::Lapsed);
            }
            if first.create_revision == created {
                return Ok(());
            }
            lookout.sees(&first);
            let now = leader_in(&first).map_or_else(|error| error.to_string(), |leader| format!("leader is {leader}"));
            if leader.as_ref() != Some(&now) {
                log::info!("node {} waits to be elected; {now}", self.id);
                leader = Some(now);
            }
        }
    }

    /// Waits for as long as the one before may believe that it leads, and writes down that this one does from now on.
    fn take_over(&self, lease: &Lease, lookout: &Lookout) -> Result<Term, Ended> {
        let elected = Instant::now();
        let mut waits_for = None;
        loop {
            match self.last_term() {
                Ok(record) => match lookout.believes_for(record.as_ref(), self.span.ttl) {
                    Some(left) if elected.elapsed() < left => {
                        if waits_for.replace(left) != Some(left) {
                            let left = left.as_secs();
                            log::warn!(
                                "node {} is elected, and waits for up to {left} s: the leader before has not handed over, and its \
                                 lease was not seen to run out, so it may still be active",
                                self.id
                            );
                        }
                    }
                    _ => break,
                },
                Err(error) if matches!(error.kind, Kind::Unavailable(_)) => {}
                Err(error) => return Err(Ended::of(error)),
            }
            if self.stop.wait(LOOK_AGAIN) {
                return Err(Ended::Stopped);
            }
            if !lease.is_held() {
                return Err(Ended::Lapsed);
            }
        }
        let term = Term { created: lease.created(), ttl: lease.ttl(), is_over: false };
        let request = json!({
            "compare": [compare(lease.key(), Revision::Create(lease.created()))],
            "success": [put(&self.names.term(), term.to_string())],
        });
        if self.txn(lease, &request)?.succeeded {
            return Ok(term);
        }
        lease.lose("its key is no longer in etcd");
        Err(Ended::Lapsed)
    }

    fn last_term(&self) -> Result<Option<KeyValue>, CallError> {
        let range = Keys::One(self.names.term()).range();
        let answer: RangeAnswer = self.client.call("kv/range", &range, self.client.limit(self.stop))?;
        Ok(answer.kvs.into_iter().next())
    }

    /// Creates the node's key, or finds it created by an earlier attempt. Returns the revision that did.
    fn create_key(&self, lease: &Lease, bid: Option<Bid>) -> Result<i64, Ended> {
        let key = lease.key();
        let lease_id = i64::from(lease.id().get());
        // In one step: whoever is elected sees no candidate without its bid, unless it is one that makes none.
        let bid = bid.map(|bid| self.put_bid(lease, bid));
        let puts: Vec<_> = [Some(put_leased(key, self.uri, lease_id)), bid].into_iter().flatten().collect();
        let create = json!({
            "compare": [compare(key, Revision::Create(0))],
            "success": puts,
            "failure": [get(key)],
        });
        let answer = self.txn(lease, &create)?;
        if answer.succeeded {
            return Ok(answer.header.revision);
        }
        // It went in between.
        let Some(found) = answer.found(0) else { return Err(Ended::Lapsed) };
        let created = found.create_revision;
        if found.value == self.uri.as_bytes() && found.lease == lease_id {
            return Ok(created);
        }
        let replace = json!({
            "compare": [compare(key, Revision::Create(created))],
            "success": puts,
        });
        if self.txn(lease, &replace)?.succeeded { Ok(created) } else { Err(Ended::Lapsed) }
    }

    fn put_bid(&self, lease: &Lease, bid: Bid) -> serde_json::Value {
        put_leased(&self.names.bid(self.id), bid.to_string(), i64::from(lease.id().get()))
    }

    fn txn(&self, lease: &Lease, request: &serde_json::Value) -> Result<TxnAnswer, Ended> {
        self.client.call("kv/txn", request, self.client.limit(self.stop)).map_err(|error| match &error.kind {
            Kind::Refused(refusal) if refusal.message.contains("lease not found") => {
                lease.lose("etcd let its lease go");
                Ended::Lapsed
            }
            _ => Ended::of(error),
        })
    }
}

/// An election won in etcd.
pub(super) struct EtcdLeadership {
    client: Arc<Client>,
    names: Arc<Names>,
    lease: Arc<Lease>,
    /// As it was written down.
    term: Term,
    /// The revision that recorded the in-sync set last, as far as is known.
    recorded: AtomicI64,
}

/// How often a write begins anew because somebody else recorded meanwhile: nobody does, but for an operator.
const ATTEMPTS_MAX: u32 = 16;

/// Whether the former leader is through by now.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Between two campaigns of a candidate whose lease or key was lost.
const CAMPAIGN_PAUSE: Duration = Duration::from_millis(200);

impl Leadership for EtcdLeadership {
    fn record_in_sync(&self, set: &InSyncSet) -> Result<(), CoordinatorError> {
        self.record(set, None)
    }

    fn record(&self, set: &InSyncSet, committed: Option<EpochPosition>) -> Result<(), CoordinatorError> {
        let (key, created) = (self.lease.key(), self.lease.created());
        let (in_sync, beside) = (self.names.in_sync(), self.names.committed());
        let committed = committed.map(|committed| committed.to_string());
        let put_beside = committed.as_ref().map_or_else(|| delete(&beside), |committed| put(&beside, committed));
        let stop = Stop::new();
        let limit = self.client.limit(&stop);
        for _ in 0..ATTEMPTS_MAX {
            if !self.is_held() {
                return Err(CoordinatorError::Lost);
            }
            let before = self.recorded.load(Ordering::Acquire);
            // Being conditional on what was recorded before, a request that was held up on its way cannot undo a later one.
            let request = json!({
                "compare": [compare(key, Revision::Create(created)), compare(&in_sync, Revision::Mod(before))],
                "success": [put(&in_sync, set.to_string()), put_beside],
                "failure": [get(key), get(&in_sync), get(&beside)],
            });
            let answer: TxnAnswer = self.client.call("kv/txn", &request, limit).map_err(CallError::of_write)?;
            if answer.succeeded {
                self.recorded.store(answer.header.revision, Ordering::Release);
                return Ok(());
            }
            if answer.found(0).is_none_or(|kv| kv.create_revision != created) {
                self.lease.lose("its key is no longer in etcd");
                return Err(CoordinatorError::Lost);
            }
            let found = answer.found(1);
            self.recorded.store(found.map_or(0, |kv| kv.mod_revision), Ordering::Release);
            // An attempt whose answer was lost did it.
            let is_set = found.is_some_and(|kv| kv.value == set.to_string().as_bytes());
            let there = answer.found(2).map(|kv| &kv.value[..]);
            let together =
                committed.is_none() || found.map(|kv| kv.mod_revision) == answer.found(2).map(|kv| kv.mod_revision);
            if is_set && together && there == committed.as_ref().map(|committed| committed.as_bytes()) {
                return Ok(());
            }
        }
        Err(CoordinatorError::NotRecorded(format!("somebody else keeps writing {in_sync} in etcd")))
    }

    fn record_data_set(&self, id: DataSetId, replace: bool) -> Result<DataSetId, CoordinatorError> {
        let (key, created) = (self.lease.key(), self.lease.created());
        let data_set = self.names.data_set();
        let mut conditions = vec![compare(key, Revision::Create(created))];
        if !replace {
            conditions.push(compare(&data_set, Revision::Create(0)));
        }
        let request = json!({
            "compare": conditions,
            "success": [put(&data_set, id.to_string())],
            "failure": [get(key), get(&data_set)],
        });
        let stop = Stop::new();
        let limit = self.client.limit(&stop);
        let answer: TxnAnswer = self.client.call("kv/txn", &request, limit).map_err(CallError::of_write)?;
        if answer.succeeded {
            return Ok(id);
        }
        if answer.found(0).is_none_or(|kv| kv.create_revision != created) {
            self.lease.lose("its key is no longer in etcd");
            return Err(CoordinatorError::Lost);
        }
        match answer.found(1) {
            Some(kv) => data_set_in(kv),
            None => Err(CoordinatorError::Unavailable(format!("{data_set} in etcd comes and goes"))),
        }
    }

    fn in_sync_set(&self) -> Result<Option<InSyncSet>, CoordinatorError> {
        let stop = Stop::new();
        let range = Keys::One(self.names.in_sync()).range();
        let answer: RangeAnswer =
            self.client.call("kv/range", &range, self.client.limit(&stop)).map_err(CallError::of_read)?;
        answer.kvs.first().map(in_sync_in).transpose()
    }

    fn term(&self) -> Option<u64> {
        u64::try_from(self.lease.created()).ok()
    }

    fn is_held(&self) -> bool {
        self.lease.is_held()
    }

    fn held_until(&self) -> Option<Instant> {
        let now = Instant::now();
        Some(now + self.lease.remaining().unwrap_or_default())
    }

    fn resign(&self) {
        let key = self.names.term();
        self.lease.hand_over(&json!({
            "compare": [compare_value(&key, self.term.to_string())],
            "success": [put(&key, self.term.clone().over().to_string())],
        }));
    }

    fn abandon(&self) {
        self.lease.give_up();
    }

    fn set_health(&self, health: Box<dyn Fn() -> bool + Send + Sync>) {
        self.lease.set_health(health.into());
    }

    fn wait_lost(&self, timeout: Duration) -> bool {
        self.lease.wait_lost(timeout)
    }
}

impl Drop for EtcdLeadership {
    fn drop(&mut self) {
        self.lease.give_up();
    }
}
