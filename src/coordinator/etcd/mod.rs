//! etcd as the coordinator, through its v3 JSON gateway (etcd 3.4 or later), with LavinMQ's keys.
//!
//! With prefix P: `P/leader/<node id in hex>` are the candidates, each with what it announces (`tcp://HOST:PORT`); `P/isr` is
//! the recorded in-sync set, ids in base 36 joined by `,`; `P/clustering_secret` the secret. Nodes of LavinMQ and ours can be in one
//! cluster. Below `P/paceline/` are keys of our own, which LavinMQ ignores: `term` says who leads or led last (`former.rs`), `data_set`
//! of which data set the cluster is, in hexadecimal; `committed`, as `EPOCH:POSITION`, what each of the in-sync set can show that it has, which counts while `P/isr` was last written
//! together with it, or is not there; `positions/<node id in hex>`, with the lease of a candidate, what that has ([`Bid`] as text).
//!
//! Threads: one for each lease (`etcd-lease`), one for each candidate that waits (`etcd-lookout`) and one for each observation, ended and joined by whoever holds those. Locks:
//! `leases` here, the token's in `client`, those of a lease; each for moments, none within another, none while etcd is asked.
//!
//! At level `trace`, the HTTP library's own logs (target `ureq_proto`) show all bytes, passwords and secrets among them: keep it
//! at `debug` or below.

mod campaign;
mod client;
mod config;
mod former;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod http;
mod lease;
mod names;
mod tenure;
mod watch;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;

use self::campaign::Candidate as Standing;
use self::client::{CallError, Client, Kind};
use self::config::Span;
use self::lease::Lease;
use self::watch::Watch;
use self::wire::{
    KeyValue, Keys, RangeAnswer, Revision, TxnAnswer, base64, compare, get, get_all, list_names, one_line, put,
    put_leased,
};
use super::{
    Bid, Candidate, Coordinator, CoordinatorError, InSyncSet, LeaderInfo, Leadership, Observation, random_bytes,
};
use crate::position::EpochPosition;
use crate::stop::Stop;
use crate::types::{DataSetId, NodeId, Secret};

pub use self::config::{EtcdConfig, EtcdEndpoint, EtcdUser};

/// A cluster's coordinator in etcd.
pub struct EtcdCoordinator {
    client: Arc<Client>,
    names: Arc<Names>,
    span: Span,
    leases: Mutex<BTreeMap<NodeId, Held>>,
    /// What was said last of what each node has.
    bids: Mutex<BTreeMap<NodeId, Bid>>,
}

/// What this handle has of an id.
enum Held {
    /// A campaign runs, with this lease once there is one.
    Campaign(Option<Arc<Lease>>),
    /// The lease that a campaign left, held or not.
    Lease(Arc<Lease>),
}

/// The names of keys.
struct Names {
    prefix: String,
}

impl Names {
    fn leaders(&self) -> Keys {
        Keys::FirstBelow(format!("{}/leader/", self.prefix))
    }

    fn candidate(&self, id: NodeId) -> String {
        format!("{}/leader/{:x}", self.prefix, id.get())
    }

    fn candidates(&self) -> Keys {
        Keys::AllBelow(format!("{}/leader/", self.prefix))
    }

    fn bids(&self) -> Keys {
        Keys::AllBelow(format!("{}/paceline/positions/", self.prefix))
    }

    fn bid(&self, id: NodeId) -> String {
        format!("{}/paceline/positions/{:x}", self.prefix, id.get())
    }

    fn in_sync(&self) -> String {
        format!("{}/isr", self.prefix)
    }

    fn committed(&self) -> String {
        format!("{}/paceline/committed", self.prefix)
    }

    fn secret(&self) -> String {
        format!("{}/clustering_secret", self.prefix)
    }

    fn data_set(&self) -> String {
        format!("{}/paceline/data_set", self.prefix)
    }

    fn term(&self) -> String {
        format!("{}/paceline/term", self.prefix)
    }
}

impl EtcdCoordinator {
    /// Checks the settings and reads the file of certificates. Asks etcd nothing yet.
    pub fn new(config: &EtcdConfig) -> Result<Self, CoordinatorError> {
        Ok(Self {
            client: Arc::new(Client::new(config)?),
            names: Arc::new(Names { prefix: config.prefix.clone() }),
            span: config.span(),
            leases: Mutex::default(),
            bids: Mutex::default(),
        })
    }

    /// Makes sure that this handle's last lease with this id is given up, and that no other campaign runs with it.
    fn begin_campaign(&self, id: NodeId, uri: &str) -> Result<(), CoordinatorError> {
        let earlier = {
            let mut leases = self.leases.lock();
            if let Some(Held::Campaign(_)) = leases.get(&id) {
                return Err(CoordinatorError::IdInUse { id, uri: Some(uri.to_owned()) });
            }
            leases.insert(id, Held::Campaign(None))
        };
        if let Some(Held::Lease(lease)) = earlier {
            lease.give_up();
        }
        Ok(())
    }

    fn observe<T: PartialEq + Clone + Send + 'static>(
        &self,
        name: &'static str,
        keys: Keys,
        read: fn(&KeyValue) -> Result<T, CoordinatorError>,
    ) -> Result<Observation<Option<T>>, CoordinatorError> {
        self.observe_all(name, keys, move |answer, _, _| answer.kvs.first().map(read).transpose())
    }

    fn observe_all<T: PartialEq + Clone + Send + 'static>(
        &self,
        name: &'static str,
        keys: Keys,
        read: impl Fn(&RangeAnswer, &Client, &Stop) -> Result<T, CoordinatorError> + Send + 'static,
    ) -> Result<Observation<T>, CoordinatorError> {
        let client = self.client.clone();
        Observation::start(name, move |latest, stop| {
            let mut watch = Watch::new(client.clone(), keys, stop.clone());
            let mut outage = Outage::default();
            let mut last = None;
            loop {
                let state = match watch.next() {
                    Ok(answer) => read(&answer, &client, &stop),
                    Err(error) if matches!(error.kind, Kind::Stopped) => return,
                    Err(error) => Err(error.of_read()),
                };
                match state {
                    Ok(state) => {
                        outage.is_over(name);
                        if last.as_ref() != Some(&state) {
                            latest.put(state.clone());
                            last = Some(state);
                        }
                    }
                    Err(error) => outage.goes_on(name, &error),
                }
            }
        })
    }

    /// Creates the secret, or finds the one that another node has just created.
    fn create_secret(&self) -> Result<Secret, CoordinatorError> {
        let key = self.names.secret();
        let made = base64(random_bytes()?);
        let request = json!({
            "compare": [compare(&key, Revision::Create(0))],
            "success": [put(&key, &made)],
            "failure": [get(&key)],
        });
        let answer: TxnAnswer = self.call("kv/txn", &request)?;
        if answer.succeeded {
            log::info!("etcd had no secret at {key}: this is a new cluster, and a secret was made");
            self.warn_of_other_clusters();
            return secret_in(made.as_bytes(), &key);
        }
        let found =
            answer.found(0).ok_or_else(|| CoordinatorError::Unavailable(format!("{key} in etcd comes and goes")))?;
        secret_in(&found.value, &key)
    }

    /// Who begins a new cluster beside another one has perhaps mistaken the prefix.
    fn warn_of_other_clusters(&self) {
        const NAMES_MAX: u32 = 1000;
        let Ok(answer) = self.call::<RangeAnswer>("kv/range", &list_names(NAMES_MAX)) else { return };
        let names = answer.kvs.iter().filter_map(|kv| std::str::from_utf8(&kv.key).ok());
        let prefixes = names.filter_map(|name| name.strip_suffix("/clustering_secret"));
        let others: Vec<_> = prefixes.filter(|prefix| *prefix != self.names.prefix).map(one_line).take(5).collect();
        if !others.is_empty() {
            log::warn!(
                "nothing was recorded in etcd below {}/, but there are clusters below {}: if this node belongs to one of them, \
                 set that prefix",
                self.names.prefix,
                others.join(", ")
            );
        }
    }

    fn one(&self, key: &str) -> Result<Option<KeyValue>, CoordinatorError> {
        let answer: RangeAnswer = self.call("kv/range", &Keys::One(key.into()).range())?;
        Ok(answer.kvs.into_iter().next())
    }

    fn call<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<T, CoordinatorError> {
        let stop = Stop::new();
        self.client.call(path, body, self.client.limit(&stop)).map_err(CallError::of_read)
    }
}

impl Coordinator for EtcdCoordinator {
    fn secret(&self) -> Result<Secret, CoordinatorError> {
        let key = self.names.secret();
        match self.one(&key)? {
            Some(kv) => secret_in(&kv.value, &key),
            None => self.create_secret(),
        }
    }

    fn in_sync_set(&self) -> Result<Option<InSyncSet>, CoordinatorError> {
        self.one(&self.names.in_sync())?.map(|kv| in_sync_in(&kv)).transpose()
    }

    fn in_sync_set_name(&self) -> Option<String> {
        Some(self.names.in_sync())
    }

    fn remove_from_in_sync_set(&self, id: NodeId) -> Result<bool, CoordinatorError> {
        const ATTEMPTS_MAX: u32 = 16;
        let key = self.names.in_sync();
        let mut was_in = false;
        for _ in 0..ATTEMPTS_MAX {
            let Some(kv) = self.one(&key)? else { return Ok(was_in) };
            let set = in_sync_in(&kv)?;
            if !set.contains(id) {
                return Ok(was_in);
            }
            was_in = true;
            let rest = set.without(id).ok_or(CoordinatorError::LastInSync(id))?;
            let mut puts = vec![put(&key, rest.to_string())];
            // What each of a set can show each of a smaller one can. It is written with the set only, so it is still this one where the set is.
            let beside = self.one(&self.names.committed())?.filter(|beside| beside.mod_revision == kv.mod_revision);
            puts.extend(beside.map(|beside| put(&self.names.committed(), beside.value)));
            let request = json!({
                "compare": [compare(&key, Revision::Mod(kv.mod_revision))],
                "success": puts,
            });
            let stop = Stop::new();
            let answer: TxnAnswer =
                self.client.call("kv/txn", &request, self.client.limit(&stop)).map_err(CallError::of_write)?;
            if answer.succeeded {
                return Ok(true);
            }
        }
        Err(CoordinatorError::NotRecorded(format!("a leader keeps writing {key} in etcd: try again")))
    }

    fn campaign(&self, id: NodeId, uri: &str, stop: &Stop) -> Result<Option<Arc<dyn Leadership>>, CoordinatorError> {
        let announced = LeaderInfo { uri: uri.to_owned(), id: Some(id), term: 0 };
        announced
            .address()
            .map_err(|error| CoordinatorError::Setting { name: "advertised URI", reason: error.to_string() })?;
        self.begin_campaign(id, uri)?;
        let bid = || self.bids.lock().get(&id).copied();
        let candidate =
            Standing { client: &self.client, names: &self.names, id, uri, span: self.span, stop, bid: &bid };
        let mut last = None;
        let outcome = candidate.run(|lease| {
            self.leases.lock().insert(id, Held::Campaign(Some(lease.clone())));
            last = Some(lease);
        });
        match last {
            Some(lease) => self.leases.lock().insert(id, Held::Lease(lease)),
            None => self.leases.lock().remove(&id),
        };
        Ok(outcome?.map(|leadership| Arc::new(leadership) as Arc<dyn Leadership>))
    }

    fn stop_margin(&self) -> Duration {
        self.span.margin()
    }

    fn has_failed(&self) -> bool {
        self.client.has_failed()
    }

    fn observe_leader(&self) -> Result<Observation<Option<LeaderInfo>>, CoordinatorError> {
        self.observe("etcd-leader", self.names.leaders(), leader_in)
    }

    fn observe_in_sync_set(&self) -> Result<Observation<Option<InSyncSet>>, CoordinatorError> {
        self.observe("etcd-in-sync", Keys::One(self.names.in_sync()), in_sync_in)
    }

    fn bid(&self, id: NodeId, bid: &Bid) -> Result<(), CoordinatorError> {
        self.bids.lock().insert(id, *bid);
        let lease = match self.leases.lock().get(&id) {
            Some(Held::Campaign(Some(lease)) | Held::Lease(lease)) => lease.clone(),
            _ => return Ok(()),
        };
        let created = lease.created();
        if created == 0 || !lease.is_held() {
            // It goes with the key.
            return Ok(());
        }
        let request = json!({
            "compare": [compare(lease.key(), Revision::Create(created))],
            "success": [put_leased(&self.names.bid(id), bid.to_string(), i64::from(id.get()))],
        });
        let stop = Stop::new();
        let answer = self.client.call::<TxnAnswer>("kv/txn", &request, self.client.limit(&stop));
        answer.map(drop).map_err(CallError::of_write)
    }

    fn candidates(&self) -> Result<Vec<Candidate>, CoordinatorError> {
        candidates(&self.client, &self.names, &Stop::new())
    }

    fn observe_candidates(&self) -> Result<Observation<Vec<Candidate>>, CoordinatorError> {
        let names = self.names.clone();
        self.observe_all("etcd-candidates", self.names.bids(), move |_, client, stop| candidates(client, &names, stop))
    }

    fn committed(&self) -> Result<Option<EpochPosition>, CoordinatorError> {
        let request = json!({"success": [get(&self.names.in_sync()), get(&self.names.committed())]});
        let answer: TxnAnswer = self.call("kv/txn", &request)?;
        let counts = |beside: &&KeyValue| answer.found(0).is_none_or(|set| set.mod_revision == beside.mod_revision);
        answer.found(1).filter(counts).map(position_in).transpose()
    }

    fn data_set(&self) -> Result<Option<DataSetId>, CoordinatorError> {
        self.one(&self.names.data_set())?.map(|kv| data_set_in(&kv)).transpose()
    }

    fn observe_data_set(&self) -> Result<Observation<Option<DataSetId>>, CoordinatorError> {
        self.observe("etcd-data-set", Keys::One(self.names.data_set()), data_set_in)
    }
}

impl std::fmt::Debug for EtcdCoordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdCoordinator").field("prefix", &self.names.prefix).finish_non_exhaustive()
    }
}

fn secret_in(value: &[u8], key: &str) -> Result<Secret, CoordinatorError> {
    Secret::new(value).map_err(|error| CoordinatorError::Unexpected(format!("{key} in etcd: {error}")))
}

fn leader_in(kv: &KeyValue) -> Result<LeaderInfo, CoordinatorError> {
    const URI_BYTES_MAX: usize = 1024;
    let key = String::from_utf8_lossy(&kv.key);
    let uri = std::str::from_utf8(&kv.value)
        .ok()
        .filter(|uri| uri.len() <= URI_BYTES_MAX && !uri.chars().any(char::is_control));
    let Some(uri) = uri else {
        let key = one_line(&key);
        return Err(CoordinatorError::Unexpected(format!("{key} in etcd is not the URI of a leader")));
    };
    Ok(LeaderInfo { uri: uri.to_owned(), id: node_of(kv), term: term_of(kv) })
}

/// A lease that got its id from etcd has a far greater one than a node.
fn node_of(kv: &KeyValue) -> Option<NodeId> {
    i32::try_from(kv.lease).ok().and_then(|id| NodeId::new(id).ok())
}

fn term_of(kv: &KeyValue) -> u64 {
    u64::try_from(kv.create_revision).unwrap_or(0)
}

/// All at one revision.
fn candidates(client: &Client, names: &Names, stop: &Stop) -> Result<Vec<Candidate>, CoordinatorError> {
    let request = json!({"success": [get_all(&names.candidates()), get_all(&names.bids())]});
    client.call("kv/txn", &request, client.limit(stop)).map(|answer| candidates_in(&answer)).map_err(CallError::of_read)
}

fn candidates_in(answer: &TxnAnswer) -> Vec<Candidate> {
    let bid_of = |lease| {
        let bid = answer.all_found(1).iter().find(|bid| bid.lease == lease)?;
        // One of a later version that says it in another way is not waited for.
        std::str::from_utf8(&bid.value).ok()?.parse().ok()
    };
    let told = |kv: &KeyValue| Candidate { id: node_of(kv), term: term_of(kv), bid: bid_of(kv.lease) };
    answer.all_found(0).iter().map(told).collect()
}

fn in_sync_in(kv: &KeyValue) -> Result<InSyncSet, CoordinatorError> {
    let key = String::from_utf8_lossy(&kv.key);
    let text = String::from_utf8_lossy(&kv.value);
    text.parse().map_err(|error| CoordinatorError::Unexpected(format!("{key} in etcd: {error}")))
}

fn position_in(kv: &KeyValue) -> Result<EpochPosition, CoordinatorError> {
    let key = String::from_utf8_lossy(&kv.key);
    let text = String::from_utf8_lossy(&kv.value);
    text.parse().map_err(|error| CoordinatorError::Unexpected(format!("{key} in etcd: {error}")))
}

fn data_set_in(kv: &KeyValue) -> Result<DataSetId, CoordinatorError> {
    let key = String::from_utf8_lossy(&kv.key);
    let text = String::from_utf8_lossy(&kv.value);
    text.parse().map_err(|error| CoordinatorError::Unexpected(format!("{key} in etcd: {error}")))
}

/// Logs a failure when it begins, now and then while it lasts, and when it is over.
#[derive(Default)]
struct Outage {
    began: Option<Instant>,
    logged: Option<Instant>,
}

impl Outage {
    fn goes_on(&mut self, who: &str, error: &CoordinatorError) {
        const SAY_AGAIN: Duration = Duration::from_secs(60);
        self.began.get_or_insert_with(Instant::now);
        if self.logged.is_none_or(|logged| logged.elapsed() >= SAY_AGAIN) {
            log::warn!("{who}: {error}");
            self.logged = Some(Instant::now());
        }
    }

    fn is_over(&mut self, who: &str) {
        self.logged = None;
        if let Some(began) = self.began.take() {
            log::info!("{who}: etcd is well again, after {} s", began.elapsed().as_secs());
        }
    }
}
