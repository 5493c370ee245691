//! A node's lease in etcd: as long as it lasts, so does the node's key in the election.
//!
//! One thread renews it, every third of its time. Whether it is held is judged by the moment *before* the last successful
//! renewal was sent, its time, and a margin of a fifth, or more if what is active takes longer to stop (then it is renewed more
//! often): so it stops being held here well before etcd lets it go, also when this process or its machine stood still. A renewal counts
//! only if the node's key is still there, which etcd decides by majority, under the same leader of its own that renewed: one that was
//! stuck goes on renewing what the next one lets go (etcd#15247).
//!
//! A lease's id is the node's, so a late message about an earlier lease would hit a later one. Hence giving up deletes the key,
//! if it is the very key that was created with this lease, and only then revokes, once.
//!
//! Locks: `health` and `changed` for moments; `release` for moments. None of them within another. [`Lease::give_up`] ends the
//! thread and joins it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::json;

use super::client::{CallError, Client, Kind, Limit};
use super::config::Span;
use super::leader_in;
use super::tenure::{Reading, Tenure, now};
use super::wire::{
    Done, KeepAliveAnswer, Keys, LeaseAnswer, RangeAnswer, Revision, TimeToLiveAnswer, TxnAnswer, compare, delete,
};
use crate::coordinator::CoordinatorError;
use crate::stop::Stop;
use crate::thread::{DROP_JOIN_MAX, Group};
use crate::types::NodeId;

pub(super) struct Lease {
    core: Arc<Core>,
    threads: Group,
    release: Mutex<Release>,
    released: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Release {
    NotYet,
    Underway,
    Done,
}

/// What the renewing thread shares.
struct Core {
    client: Arc<Client>,
    id: NodeId,
    /// The node's key in the election.
    key: String,
    span: Span,
    tenure: Tenure,
    /// The revision that created the key; 0 before that is known.
    created: AtomicI64,
    is_elected: AtomicBool,
    health: Mutex<Option<Arc<Health>>>,
    stop: Stop,
    changed: Mutex<()>,
    was_lost: Condvar,
}

type Health = dyn Fn() -> bool + Send + Sync;

/// What etcd may let a lease live beyond its time: it looks twice a second, and not at all while it elects a leader.
const EXPIRY_LATE_MAX: Duration = Duration::from_secs(2);

/// Longer than any lease that was asked for.
const LEASE_TTL_SECONDS_MAX: i64 = 24 * 3600;

/// While an id is in use.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// More than this, and a wait or a clock is remarkable.
const JUMP_MIN: Duration = Duration::from_secs(1);

/// Gets the lease that has the node's id, for the node's keys in the election. An id in use is waited for as long as the lease there may last without its holder: a
/// crashed node finds its own. Returns `None` when `stop` is set.
pub(super) fn grant(
    client: &Arc<Client>,
    id: NodeId,
    (key, bid): (&str, &str),
    span: Span,
    stop: &Stop,
) -> Result<Option<Arc<Lease>>, CoordinatorError> {
    let request = json!({"ID": id.get().to_string(), "TTL": span.ttl.as_secs().to_string()});
    let mut patience = None;
    loop {
        let sent = now();
        match client.call::<LeaseAnswer>("lease/grant", &request, client.limit(stop)) {
            Ok(granted) => {
                let span = Span { ttl: seconds(granted.ttl), ..span };
                return Lease::start(client, id, key, span, sent).map(Some);
            }
            Err(error) => match &error.kind {
                Kind::Stopped => return Ok(None),
                Kind::Refused(refusal) if refusal.message.contains("lease already exists") => (),
                _ => return Err(error.of_read()),
            },
        }
        let deadline = match patience {
            Some(deadline) => deadline,
            None => {
                let there = look_at(client, id, stop)?;
                if let Some(key) = there.keys().find(|held| held != key && held != bid) {
                    return Err(CoordinatorError::IdInOtherCluster { id, key });
                }
                // It answers in whole seconds, rounded down.
                let left = seconds(there.lease.ttl) + Duration::from_secs(1);
                log::info!("id {id} is in use in etcd, as after a crash of this node: waiting {} s", left.as_secs());
                *patience.insert(Instant::now() + left + EXPIRY_LATE_MAX)
            }
        };
        if Instant::now() >= deadline {
            return Err(CoordinatorError::IdInUse { id, uri: announced(client, key, stop) });
        }
        if stop.wait(LOOK_AGAIN) {
            return Ok(None);
        }
    }
}

/// How long the lease there lasts if nobody renews it, and what was put there with it, as far as we may know that.
fn look_at(client: &Client, id: NodeId, stop: &Stop) -> Result<TimeToLiveAnswer, CoordinatorError> {
    let ask = |keys: bool| {
        let request = json!({"ID": id.get().to_string(), "keys": keys});
        client.call("lease/timetolive", &request, client.limit(stop))
    };
    match ask(true) {
        // A user of etcd's is told no names of keys that it may not read.
        Err(error) if matches!(error.kind, Kind::Denied(_)) => ask(false).map_err(CallError::of_read),
        answer => answer.map_err(CallError::of_read),
    }
}

fn announced(client: &Client, key: &str, stop: &Stop) -> Option<String> {
    let answer = client.call::<RangeAnswer>("kv/range", &Keys::One(key.into()).range(), client.limit(stop)).ok()?;
    Some(leader_in(answer.kvs.first()?).ok()?.uri)
}

/// Whatever etcd answers, no more than can be reckoned with; taking a lease to be shorter than it is does no harm.
pub(super) fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl.min(LEASE_TTL_SECONDS_MAX)).unwrap_or(0))
}

impl Lease {
    fn start(
        client: &Arc<Client>,
        id: NodeId,
        key: &str,
        span: Span,
        sent: Duration,
    ) -> Result<Arc<Self>, CoordinatorError> {
        let core = Arc::new(Core {
            client: client.clone(),
            id,
            key: key.to_owned(),
            span,
            tenure: Tenure::new(sent + span.held_for()),
            created: AtomicI64::new(0),
            is_elected: AtomicBool::new(false),
            health: Mutex::default(),
            stop: Stop::new(),
            changed: Mutex::default(),
            was_lost: Condvar::new(),
        });
        let lease = Arc::new(Self {
            core: core.clone(),
            threads: Group::default(),
            release: Mutex::new(Release::NotYet),
            released: Condvar::new(),
        });
        let of_failure = core.clone();
        lease.threads.on_failure(move |_| of_failure.lose("the thread that renews it has failed"));
        if let Err(error) = lease.threads.spawn("etcd-lease", move || core.renew_until_lost()) {
            lease.give_up();
            return Err(CoordinatorError::Thread(error));
        }
        Ok(lease)
    }

    pub(super) fn id(&self) -> NodeId {
        self.core.id
    }

    /// As etcd granted it.
    pub(super) fn ttl(&self) -> Duration {
        self.core.span.ttl
    }

    pub(super) fn key(&self) -> &str {
        &self.core.key
    }

    /// The revision that created the node's key.
    pub(super) fn created(&self) -> i64 {
        self.core.created.load(Ordering::Acquire)
    }

    pub(super) fn set_created(&self, revision: i64) {
        self.core.created.store(revision, Ordering::Release);
    }

    pub(super) fn set_elected(&self) {
        self.core.is_elected.store(true, Ordering::Release);
    }

    pub(super) fn set_health(&self, health: Arc<Health>) {
        let before = self.core.health.lock().replace(health);
        // It is somebody else's: not dropped under the lock.
        drop(before);
    }

    /// Never blocks.
    pub(super) fn is_held(&self) -> bool {
        self.core.is_held()
    }

    /// How much longer it is held unless it is renewed; `None` if it is not. Never blocks.
    pub(super) fn remaining(&self) -> Option<Duration> {
        self.core.tenure.remaining(now())
    }

    /// Waits until it is not held, at most for `timeout`; returns whether that is so.
    pub(super) fn wait_lost(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        let mut changed = self.core.changed.lock();
        loop {
            let Some(held) = self.core.tenure.remaining(now()) else { return true };
            let left = deadline.map_or(held, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            // Condition variables wait by a clock that stands still while the machine sleeps: look again now and then.
            self.core.was_lost.wait_for(&mut changed, left.min(held).min(JUMP_MIN));
        }
    }

    /// etcd said that this node's key is not there, or not its own.
    pub(super) fn lose(&self, reason: &str) {
        self.core.lose(reason);
    }

    /// Takes the node's key out of the election and revokes the lease. Blocks within bounds; a second call waits for the first.
    pub(super) fn give_up(&self) {
        self.end(None);
    }

    /// The same, after a transaction that tells the next leader that nothing of this one is active any more.
    pub(super) fn hand_over(&self, mark: &serde_json::Value) {
        self.end(Some(mark));
    }

    fn end(&self, mark: Option<&serde_json::Value>) {
        {
            let mut release = self.release.lock();
            if *release != Release::NotYet {
                while *release != Release::Done {
                    self.released.wait(&mut release);
                }
                return;
            }
            *release = Release::Underway;
        }
        let was_held = self.is_held();
        self.core.end();
        self.core.stop.set();
        if let Some(mark) = mark {
            self.core.mark(mark);
        }
        self.core.release(was_held);
        let health = self.core.health.lock().take();
        drop(health);
        if self.threads.join(Instant::now() + DROP_JOIN_MAX) > 0 {
            log::warn!(
                "the thread that renews node {} in etcd ends late: its health check does not return",
                self.core.id
            );
        }
        *self.release.lock() = Release::Done;
        self.released.notify_all();
    }
}

fn warn_if_set(clock_set_by: Duration) {
    if clock_set_by > JUMP_MIN {
        log::warn!(
            "the system's clock was set by {:.1} s: leadership does not depend on it, but certificates and logs do; let an NTP \
             client keep it (a virtual machine that was paused looks the same)",
            clock_set_by.as_secs_f64()
        );
    }
}

/// Why a renewal failed.
enum NotRenewed {
    /// The lease, or the key, is gone: nothing brings it back.
    Gone(&'static str),
    /// It may work the next time.
    Failed(String),
}

impl Core {
    fn renew_until_lost(&self) {
        let interval = self.span.renewed_every();
        let mut before = Reading::now();
        let mut pause = interval;
        let mut last_failure = None;
        while let Some(left) = self.tenure.remaining(now()) {
            if self.stop.wait(pause.min(left)) {
                return;
            }
            let after = Reading::now();
            warn_if_set(after.set_by(&before));
            let still = after.since(&before).saturating_sub(pause.min(left)).as_secs_f64();
            if still > JUMP_MIN.as_secs_f64() {
                last_failure = Some(format!("this process, or its machine, stood still for {still:.1} s"));
            }
            if !self.is_held() {
                break;
            }
            pause = match self.renew() {
                Ok(()) => {
                    if last_failure.take().is_some() {
                        log::info!("node {} is renewed in etcd again", self.id);
                    }
                    interval
                }
                Err(NotRenewed::Gone(reason)) => return self.lose(reason),
                Err(NotRenewed::Failed(_)) if self.stop.is_set() => return,
                Err(NotRenewed::Failed(cause)) => {
                    if last_failure.is_none() {
                        log::warn!("node {} is not renewed in etcd: {cause}", self.id);
                    }
                    last_failure = Some(cause);
                    self.span.ttl / 20
                }
            };
            before = Reading::now();
        }
        let cause = last_failure.unwrap_or_else(|| "the renewal came late".into());
        self.lose(&format!("it was not renewed in time: {cause}"));
    }

    fn is_held(&self) -> bool {
        self.tenure.remaining(now()).is_some()
    }

    fn renew(&self) -> Result<(), NotRenewed> {
        let health = self.health.lock().clone();
        if health.is_some_and(|is_well| !is_well()) {
            return Err(NotRenewed::Failed("this node says that it is not well".into()));
        }
        let sent = now();
        let Some(left) = self.tenure.remaining(sent) else { return Err(NotRenewed::Failed("it is late".into())) };
        let limit = Limit { deadline: Instant::now() + left, stop: &self.stop };
        let failed = |error: CallError| NotRenewed::Failed(error.to_string());
        let request = json!({"ID": self.id.get().to_string()});
        let answer: KeepAliveAnswer = self.client.call("lease/keepalive", &request, limit).map_err(failed)?;
        if answer.result.ttl <= 0 {
            return Err(NotRenewed::Gone("etcd let its lease go: it expired, or someone revoked it"));
        }
        let created = self.created.load(Ordering::Acquire);
        if created != 0 {
            let found: RangeAnswer =
                self.client.call("kv/range", &Keys::One(self.key.clone()).range(), limit).map_err(failed)?;
            if found.kvs.first().is_none_or(|kv| kv.create_revision != created) {
                return Err(NotRenewed::Gone("its key is no longer in etcd: someone deleted it"));
            }
            if found.header.raft_term != answer.result.header.raft_term {
                return Err(NotRenewed::Failed("etcd's members elect a leader of their own".into()));
            }
        }
        if self.tenure.extend(now(), sent + Span { ttl: seconds(answer.result.ttl), ..self.span }.held_for()) {
            Ok(())
        } else {
            Err(NotRenewed::Failed("etcd answered late".into()))
        }
    }

    fn end(&self) {
        self.tenure.end();
        drop(self.changed.lock());
        self.was_lost.notify_all();
    }

    fn lose(&self, reason: &str) {
        self.end();
        if self.stop.is_set() {
            return;
        }
        if self.is_elected.load(Ordering::Acquire) {
            log::warn!("node {} is no longer leader: {reason}", self.id);
        } else {
            log::info!("node {} is no longer a candidate: {reason}", self.id);
        }
    }

    fn mark(&self, mark: &serde_json::Value) {
        let stop = Stop::new();
        if let Err(error) = self.client.call::<TxnAnswer>("kv/txn", mark, self.client.limit(&stop)) {
            let ttl = self.span.ttl.as_secs();
            log::warn!(
                "could not tell the next leader that node {} is through: it may wait {ttl} s ({error})",
                self.id
            );
        }
    }

    fn release(&self, was_held: bool) {
        let stop = Stop::new();
        if let Err(cause) = self.try_release(was_held, self.client.limit(&stop)) {
            let ttl = self.span.ttl.as_secs();
            log::warn!(
                "node {} could not be taken out of the election ({cause}): its lease ends within {ttl} s",
                self.id
            );
        }
    }

    fn try_release(&self, was_held: bool, limit: Limit<'_>) -> Result<(), String> {
        let text = |error: CallError| error.to_string();
        let mut created = self.created.load(Ordering::Acquire);
        if created == 0 {
            // It is not known whether the key was created; if the lease is not ours any more, nor is any key.
            if !was_held {
                return Ok(());
            }
            let found: RangeAnswer =
                self.client.call("kv/range", &Keys::One(self.key.clone()).range(), limit).map_err(text)?;
            let ours = found.kvs.first().filter(|kv| kv.lease == i64::from(self.id.get()));
            created = ours.map_or(0, |kv| kv.create_revision);
        }
        if created != 0 {
            let request = json!({
                "compare": [compare(&self.key, Revision::Create(created))],
                "success": [delete(&self.key)],
            });
            let answer: TxnAnswer = self.client.call("kv/txn", &request, limit).map_err(text)?;
            if !answer.succeeded {
                // The key went with the lease, or the lease lives on without a key.
                return Ok(());
            }
        }
        let request = json!({"ID": self.id.get().to_string()});
        if let Err(cause) = self.client.call_once::<Done>("lease/revoke", &request) {
            let ttl = self.span.ttl.as_secs();
            log::info!("the lease of node {} could not be revoked ({cause}): the id is free within {ttl} s", self.id);
        }
        Ok(())
    }
}
