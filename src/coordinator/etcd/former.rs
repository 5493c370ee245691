//! Who led before, and whether it may still believe that it leads.
//!
//! A node believes by its own clock, and gives up well before its lease can *run out* in etcd. But a lease may also go early: somebody
//! revokes it, the key is deleted, or etcd lets go of it wrongly, as releases before 3.4.31 and 3.5.13 do when their leader was
//! stuck (etcd#12528, etcd#15247; later ones do it more rarely). Then the next candidate is elected while the former
//! leader goes on, for up to the time of its lease. So who is elected takes over at once only if it *knows* that the former leader
//! is through, and waits for that long otherwise.
//!
//! # How it is known
//!
//! - *Marked.* Whoever takes over says so first in `P/paceline/term`, fenced by its key in the election: the revision that created that
//!   key, its lease's time in seconds, and `leads`. Once nothing is active at it any more it makes that `over`, also when it has
//!   lost its lease. A candidate that never wrote it never was active. LavinMQ ignores the key.
//! - *Run out.* A renewal counts only if it is confirmed before four fifths of the lease's time have passed since the last one
//!   was sent (see [`super::lease`]): one that counts finds more than a fifth left. So once a candidate has seen that less than a
//!   fifth is left, the leader is through, or is when that is seen. Each candidate asks etcd for what is left of the leader's lease, just when
//!   it would be less: a leader that crashed is succeeded when its lease ends, and no later. What is answered counts if etcd's own
//!   leader was the same afterwards, as a read by majority shows; a stuck one answers of old. etcd counts in whole seconds: with
//!   leases below 5 s this is never seen, and a crash costs up to twice their time.
//!
//! A leader that writes no such key (LavinMQ, Paceline 0.1.0) is one that was seen first in the election and is no part of the
//! record: it is waited for, unless its lease was seen to run out.
//!
//! # Threads
//!
//! `etcd-lookout` asks, while its candidate waits. One lock, a leaf. It ends when the [`Lookout`] is dropped, which joins it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use parking_lot::Mutex;
use serde_json::json;

use super::client::Client;
use super::wire::{KeyValue, Keys, LeaseAnswer, RangeAnswer};
use crate::coordinator::CoordinatorError;
use crate::stop::Stop;
use crate::thread::{DROP_JOIN_MAX, Group};

/// A time for which somebody leads, as `P/paceline/term` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Term {
    /// The revision that created the leader's key.
    pub(super) created: i64,
    pub(super) ttl: Duration,
    pub(super) is_over: bool,
}

impl Term {
    /// `None`: that is no term.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(text).ok()?.split(' ');
        let (created, ttl, state) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
        let is_over = match state {
            "leads" => false,
            "over" => true,
            _ => return None,
        };
        let known = parts.next().is_none() && ttl <= TTL_SECONDS_MAX;
        known.then_some(Self { created, ttl: Duration::from_secs(ttl), is_over })
    }

    pub(super) fn over(self) -> Self {
        Self { is_over: true, ..self }
    }
}

impl std::fmt::Display for Term {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = if self.is_over { "over" } else { "leads" };
        write!(f, "{} {} {state}", self.created, self.ttl.as_secs())
    }
}

/// Longer than any lease; nobody is waited for longer, whatever the record says.
const TTL_SECONDS_MAX: u64 = 24 * 3600;

/// More leaders than one candidate sees come and go.
const SEEN_MAX: usize = 64;

/// Between two looks when the moment is near.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// When there is nothing to be learnt.
const LOOK_LATER: Duration = Duration::from_secs(3600);

/// What a candidate has seen of those before it.
pub(super) struct Lookout {
    seen: Arc<Mutex<BTreeMap<i64, Seen>>>,
    /// Of whom the thread was told.
    looks_at: Option<Target>,
    targets: Sender<Target>,
    stop: Stop,
    threads: Group,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Target {
    created: i64,
    lease: i64,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    /// The time of its lease, if it is known.
    ttl: Option<Duration>,
    has_run_out: bool,
}

impl Lookout {
    pub(super) fn start(client: &Arc<Client>, key: String) -> Result<Self, CoordinatorError> {
        let (targets, receiver) = unbounded();
        let lookout =
            Self { seen: Arc::default(), looks_at: None, targets, stop: Stop::new(), threads: Group::default() };
        let thread = Thread { client: client.clone(), key, seen: lookout.seen.clone(), stop: lookout.stop.clone() };
        let of_failure = client.clone();
        lookout.threads.on_failure(move |_| of_failure.fail());
        lookout.threads.spawn("etcd-lookout", move || thread.run(&receiver)).map_err(CoordinatorError::Thread)?;
        Ok(lookout)
    }

    /// This one is elected, before the candidate.
    pub(super) fn sees(&mut self, leader: &KeyValue) {
        let target = Target { created: leader.create_revision, lease: leader.lease };
        if self.looks_at.replace(target) == Some(target) {
            return;
        }
        let mut seen = self.seen.lock();
        seen.entry(target.created).or_default();
        if seen.len() > SEEN_MAX {
            seen.pop_first();
        }
        drop(seen);
        let _ = self.targets.send(target);
    }

    /// How long, from its end on, who led before may believe that it still does; `None`: not at all. `record` is what
    /// `P/paceline/term` holds; `ttl` is the time of a lease of which nothing is known.
    pub(super) fn believes_for(&self, record: Option<&KeyValue>, ttl: Duration) -> Option<Duration> {
        let seen = self.seen.lock();
        let last = match record.map(|kv| Term::parse(&kv.value)) {
            // Nobody can tell what it means.
            Some(None) => return Some(ttl),
            Some(Some(term)) => Some(term),
            None => None,
        };
        let of_record =
            last.as_ref().filter(|term| !term.is_over && !seen.get(&term.created).is_some_and(|it| it.has_run_out));
        let since = last.as_ref().map_or(0, |term| term.created);
        let others = seen.range(since.saturating_add(1)..).map(|(_, seen)| seen).filter(|seen| !seen.has_run_out);
        others.map(|seen| seen.ttl.unwrap_or(ttl)).chain(of_record.map(|term| term.ttl)).max()
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.stop.set();
        // Ends the wait for another leader.
        self.targets = unbounded().0;
        self.threads.join(Instant::now() + DROP_JOIN_MAX);
    }
}

struct Thread {
    client: Arc<Client>,
    /// Any key: what matters is that it is read by majority.
    key: String,
    seen: Arc<Mutex<BTreeMap<i64, Seen>>>,
    stop: Stop,
}

impl Thread {
    fn run(&self, targets: &Receiver<Target>) {
        let (mut target, mut pause) = (None, LOOK_LATER);
        while !self.stop.is_set() {
            match targets.recv_timeout(pause) {
                Ok(next) => target = Some(next),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            pause = target.map_or(LOOK_LATER, |target| self.look_at(target));
        }
    }

    /// Returns when to look again.
    fn look_at(&self, target: Target) -> Duration {
        let request = json!({"ID": target.lease.to_string()});
        let limit = || self.client.limit(&self.stop);
        let Ok(lease) = self.client.call::<LeaseAnswer>("lease/timetolive", &request, limit()) else {
            return LOOK_AGAIN;
        };
        // Gone.
        let (Ok(left), Ok(ttl)) = (u64::try_from(lease.ttl), u64::try_from(lease.granted_ttl)) else {
            return LOOK_AGAIN;
        };
        let ttl = ttl.min(TTL_SECONDS_MAX);
        let pause = look_again_in(left, ttl);
        let mut has_run_out = false;
        if pause.is_none() {
            let read = self.client.call::<RangeAnswer>("kv/range", &Keys::One(self.key.clone()).range(), limit());
            has_run_out = read.is_ok_and(|read| read.header.raft_term == lease.header.raft_term);
        }
        if let Some(seen) = self.seen.lock().get_mut(&target.created) {
            seen.ttl = Some(Duration::from_secs(ttl));
            seen.has_run_out |= has_run_out;
        }
        if has_run_out { LOOK_LATER } else { pause.unwrap_or(LOOK_AGAIN) }
    }
}

/// When to look again at a lease of which `left` seconds are left, rounded down; `None` when less than a fifth is.
fn look_again_in(left: u64, ttl: u64) -> Option<Duration> {
    if left.saturating_add(1).saturating_mul(5) <= ttl {
        return None;
    }
    let wanted = (ttl / 5).saturating_sub(1);
    match left.saturating_sub(wanted.saturating_add(1)) {
        0 => Some(LOOK_AGAIN),
        far => Some(Duration::from_secs(far)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_term_is_written_and_read() {
        let term = Term { created: 17, ttl: s(10), is_over: false };
        assert_eq!((term.to_string().as_str(), Term::parse(b"17 10 leads")), ("17 10 leads", Some(term.clone())));
        assert_eq!(Term::parse(b"17 10 over"), Some(term.over()));
        for bad in
            ["", "17", "17 10", "17 10 ", "17 10 leads ", "x 10 over", "17 -1 over", "17 99999999 leads", "17 10 lead"]
        {
            assert_eq!(Term::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_lease_is_looked_at_again_when_less_than_a_fifth_of_it_may_be_left() {
        for (left, ttl, again) in [
            (9, 10, Some(s(7))),
            (3, 10, Some(s(1))),
            (2, 10, Some(LOOK_AGAIN)),
            (1, 10, None),
            (0, 10, None),
            (1, 5, Some(LOOK_AGAIN)),
            (0, 5, None),
            (0, 4, Some(LOOK_AGAIN)),
            (59, 60, Some(s(47))),
            (11, 60, None),
            (u64::MAX, 10, Some(s(u64::MAX - 2))),
        ] {
            assert_eq!(look_again_in(left, ttl), again, "{left} of {ttl}");
        }
    }

    #[test]
    fn whoever_led_before_is_waited_for_unless_it_is_marked_as_over_or_its_lease_ran_out() {
        let record = |text: &str| KeyValue { value: text.into(), ..KeyValue::default() };
        let lookout = |seen: &[(i64, Option<Duration>, bool)]| Lookout {
            seen: Arc::new(Mutex::new(
                seen.iter().map(|&(created, ttl, has_run_out)| (created, Seen { ttl, has_run_out })).collect(),
            )),
            looks_at: None,
            targets: unbounded().0,
            stop: Stop::new(),
            threads: Group::default(),
        };
        for (seen, text, believes) in [
            // The first of a new cluster.
            (&[][..], None, None),
            (&[], Some("7 10 over"), None),
            (&[], Some("7 10 leads"), Some(s(10))),
            (&[], Some("nonsense"), Some(s(3))),
            (&[(7, Some(s(10)), false)], Some("7 10 leads"), Some(s(10))),
            (&[(7, Some(s(10)), true)], Some("7 10 leads"), None),
            (&[(7, Some(s(10)), false)], Some("7 10 over"), None),
            // One that writes no record, before the first that does, and after.
            (&[(7, Some(s(20)), false)], None, Some(s(20))),
            (&[(7, None, false)], None, Some(s(3))),
            (&[(7, Some(s(20)), true)], None, None),
            (&[(7, None, false), (9, Some(s(20)), false)], Some("8 10 over"), Some(s(20))),
            (&[(7, None, false), (9, Some(s(20)), true)], Some("8 10 over"), None),
            (&[(9, Some(s(20)), true)], Some("8 10 leads"), Some(s(10))),
        ] {
            let record = text.map(record);
            assert_eq!(lookout(seen).believes_for(record.as_ref(), s(3)), believes, "{text:?}");
        }
    }
}
