//! Who may read and move content in bulk, when, and how fast: what full syncs and catching up cost the leader is bounded here.
//!
//! - *Slots*: so many full syncs, and so many rounds of catching up, read or move content at once. A holder that hardly
//!   moves (it stopped reading, or its link is slow) loses its slot to the next that waits, and goes on without it: slots
//!   spare the leader's disk, and such a holder costs it nothing.
//! - *Rate*: all of them together read so many bytes a second from the data directory, to hash them or to send them. What goes
//!   to a follower that is attached to the stream already does not count: its queue fills meanwhile.
//! - *Priority*: as everybody's. A thread with a niceness of 10, which these had, is not scheduled for as long as a second where the
//!   cores are busy, also while it holds a lock that an append waits for, and holds up a leader that is to end. What they cost is
//!   bounded by the slots and the rate instead.
//! - *Page cache*: see `crate::uncached`.
//! - *Delays*: a follower that keeps being evicted for being slow waits before its next full sync, longer each time.
//!
//! The locks here are leaves, and nobody who appends takes one. Who waits for a slot or the rate looks up when its follower ends.

use std::sync::Arc;
use std::time::Duration;

use crate::config::LeaderConfig;
use crate::error::Error;
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::gone::gone;
use crate::leader::peers::history::History;
use crate::leader::peers::status::EvictionReason;
use crate::sys::random;
use crate::sys::sync::{Condvar, Mutex};
use crate::sys::time::Instant;
use crate::types::NodeId;
use crate::uncached::READ_AT_ONCE_BYTES;

pub(in crate::leader) struct Admission {
    pub(in crate::leader) syncs: Slots,
    /// Who prepares a comparison before it has a slot: one at a time, since that takes memory for each file.
    pub(in crate::leader) ahead: Slots,
    pub(in crate::leader) catch_ups: Slots,
    rate: Option<u64>,
    throttle: Option<Mutex<Bucket>>,
}

impl Admission {
    pub(in crate::leader) fn new(config: &LeaderConfig) -> Self {
        Self {
            syncs: Slots::new(config.syncs_max),
            ahead: Slots::new(1),
            catch_ups: Slots::new(config.catch_ups_max),
            rate: config.sync_rate,
            throttle: config.sync_rate.map(|rate| Mutex::new(Bucket::new(rate, Instant::now()))),
        }
    }

    /// How much to read at once: of a low rate a fraction of a second, so that something moves all the time.
    pub(in crate::leader) fn portion_bytes(&self) -> usize {
        let eighth = self.rate.map_or(usize::MAX, |rate| usize::try_from(rate / 8).unwrap_or(usize::MAX));
        eighth.min(READ_AT_ONCE_BYTES)
    }

    /// Waits until `bytes` may be read for the follower. `false`: it ended first.
    pub(in crate::leader) fn pace(&self, bytes: u64, follower: &FollowerHandle) -> bool {
        let Some(bucket) = &self.throttle else { return !follower.has_ended() };
        let from = bucket.lock().take(bytes, Instant::now());
        follower.throttled(from)
    }
}

/// Counts bytes against the clock, for who waits in turn.
struct Bucket {
    bytes_per_s: u64,
    /// When all that was taken is paid for.
    paid_at: Instant,
}

impl Bucket {
    /// What an idle time saves up for: short, so that a limit holds for any second.
    const BURST: Duration = Duration::from_millis(100);

    fn new(bytes_per_s: u64, now: Instant) -> Self {
        Self { bytes_per_s, paid_at: now }
    }

    /// Takes `bytes`, and returns when they may go: after all that was taken before is paid for, less the burst.
    fn take(&mut self, bytes: u64, now: Instant) -> Instant {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s);
        let from = self.paid_at.max(now.checked_sub(Self::BURST).unwrap_or(now));
        self.paid_at = from + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        from
    }
}

/// See the module's documentation.
pub(in crate::leader) struct Slots {
    most: usize,
    holders: Mutex<Vec<Holder>>,
    given_back: Condvar,
}

struct Holder {
    follower: Arc<FollowerHandle>,
    /// What it had moved ...
    moved: u64,
    /// ... by then.
    since: Instant,
}

pub(in crate::leader) struct InSlot<'a> {
    slots: &'a Slots,
    follower: &'a Arc<FollowerHandle>,
}

/// A holder keeps its slot if it moves this much ...
const MOVED_BYTES_MIN: u64 = 512 << 10;
/// ... in each such interval, or had to wait for the rate.
const MOVED_INTERVAL: Duration = Duration::from_secs(2);

impl Holder {
    fn new(follower: &Arc<FollowerHandle>, now: Instant) -> Self {
        Self { follower: follower.clone(), moved: follower.moved_bytes(), since: now }
    }

    /// Whether it hardly moved for an interval.
    fn stands(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) < MOVED_INTERVAL {
            return false;
        }
        let before = std::mem::replace(self, Self::new(&self.follower.clone(), now));
        self.moved < before.moved + MOVED_BYTES_MIN && !self.follower.was_throttled_since(before.since)
    }
}

impl Slots {
    fn new(most: usize) -> Self {
        Self { most, holders: Mutex::default(), given_back: Condvar::new() }
    }

    /// Waits for its turn; fails if the follower ends first.
    pub(in crate::leader) fn acquire<'a>(&'a self, follower: &'a Arc<FollowerHandle>) -> Result<InSlot<'a>, Error> {
        /// An end is not notified here: look now and then.
        const LOOK: Duration = Duration::from_millis(100);
        let mut holders = self.holders.lock();
        while holders.len() >= self.most {
            if follower.has_ended() {
                return Err(gone());
            }
            let now = Instant::now();
            if let Some(at) = holders.iter_mut().position(|holder| holder.stands(now)) {
                holders.swap_remove(at);
                break;
            }
            self.given_back.wait_for(&mut holders, LOOK);
        }
        holders.push(Holder::new(follower, Instant::now()));
        Ok(InSlot { slots: self, follower })
    }

    /// The same, if there is one at once.
    pub(in crate::leader) fn try_acquire<'a>(&'a self, follower: &'a Arc<FollowerHandle>) -> Option<InSlot<'a>> {
        let mut holders = self.holders.lock();
        let is_free = holders.len() < self.most;
        is_free.then(|| {
            holders.push(Holder::new(follower, Instant::now()));
            InSlot { slots: self, follower }
        })
    }
}

impl Drop for InSlot<'_> {
    fn drop(&mut self) {
        let mut holders = self.slots.holders.lock();
        if let Some(at) = holders.iter().position(|holder| Arc::ptr_eq(&holder.follower, self.follower)) {
            holders.swap_remove(at);
            self.slots.given_back.notify_one();
        }
    }
}

/// Whether an eviction for this reason counts towards a delay: the follower did not keep up.
pub(in crate::leader) fn is_for_slowness(reason: &EvictionReason) -> bool {
    matches!(
        reason,
        EvictionReason::QueueFull
            | EvictionReason::TooFarBehind
            | EvictionReason::WriteTimeout
            | EvictionReason::NoAckProgress
            | EvictionReason::NoSyncProgress
    )
}

/// How long a follower waits from now before its next full sync, given how long ago it was evicted for being slow, each time.
/// `jitter` (0 to 1) adds up to half, so that those evicted together do not return together.
pub(in crate::leader) fn readmission_delay(config: &LeaderConfig, evicted_ago: &[Duration], jitter: f64) -> Duration {
    let recent = || evicted_ago.iter().filter(|ago| **ago < config.readmit_window);
    let (Some(last), Some(doublings)) = (recent().min(), recent().count().checked_sub(2)) else {
        return Duration::ZERO;
    };
    let factor = 1_u32.checked_shl(u32::try_from(doublings).unwrap_or(u32::MAX)).unwrap_or(u32::MAX);
    let delay = config.readmit_delay_min.saturating_mul(factor).min(config.readmit_delay_max);
    delay.mul_f64(1.0 + jitter / 2.0).saturating_sub(*last)
}

/// How long a follower that comes now waits at least.
pub(in crate::leader) fn admitted_in(config: &LeaderConfig, history: &History, follower: NodeId) -> Duration {
    readmission_delay(config, &history.slow_evictions(follower), 0.0)
}

/// Lets a follower wait that keeps being evicted for being slow. Fails if it ends first.
pub(in crate::leader) fn wait_admitted(
    config: &LeaderConfig,
    history: &History,
    follower: &FollowerHandle,
) -> Result<(), Error> {
    let ago = history.slow_evictions(follower.id);
    let delay = readmission_delay(config, &ago, random::f64());
    if delay.is_zero() {
        return Ok(());
    }
    log::info!(
        "follower {} at {} was evicted {} times for being slow: it is admitted in {:.1} s",
        follower.id,
        follower.address,
        ago.len(),
        delay.as_secs_f64()
    );
    if follower.wait_admitted(Instant::now() + delay) { Ok(()) } else { Err(gone()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Durability;
    use crate::types::Secret;
    use std::net::{TcpListener, TcpStream};
    use std::sync::atomic::{AtomicUsize, Ordering};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_was_taken_is_paid_for_before_more_goes() {
        let zero = Instant::now() + Duration::from_secs(10);
        let mut bucket = Bucket::new(1_000_000, zero);
        assert_eq!(bucket.take(250_000, zero), zero, "nothing was taken before");
        assert_eq!(bucket.take(500_000, zero), zero + 250 * MS);
        assert_eq!(bucket.take(1, zero + 10 * MS), zero + 750 * MS, "also for who comes later");
        // Idle for long: only the burst is saved up.
        let later = zero + Duration::from_secs(60);
        assert_eq!(bucket.take(100_000, later), later - 100 * MS);
        assert_eq!(bucket.take(100_000, later), later);
        assert_eq!(bucket.take(100_000, later), later + 100 * MS);
    }

    #[test]
    fn over_any_time_no_more_goes_than_rate_and_burst_allow() {
        let zero = Instant::now() + Duration::from_secs(10);
        let mut random = fastrand::Rng::with_seed(7);
        let mut bucket = Bucket::new(64 << 10, zero);
        let mut now = zero;
        let mut gone = Vec::new();
        for _ in 0..2000 {
            let bytes = random.u64(1..256 << 10);
            now = now.max(bucket.take(bytes, now));
            gone.push((now, bytes));
            if random.u8(..10) == 0 {
                now += Duration::from_millis(random.u64(..3000));
            }
        }
        for from in 0..gone.len() - 100 {
            // What was taken last is not paid for yet.
            let bytes: u64 = gone[from..from + 99].iter().map(|(_, bytes)| bytes).sum();
            let time = gone[from + 99].0 - gone[from].0 + Bucket::BURST + MS;
            assert!(bytes as f64 <= time.as_secs_f64() * 65_536.0, "{bytes} bytes in {time:?}");
        }
    }

    #[test]
    fn delays_double_and_old_evictions_do_not_count() {
        let config = LeaderConfig::new("/nowhere", Secret::new("x").unwrap());
        let s = Duration::from_secs;
        let delay = |ago: &[u64]| readmission_delay(&config, &ago.iter().map(|ago| s(*ago)).collect::<Vec<_>>(), 0.0);
        assert_eq!(delay(&[]), s(0));
        assert_eq!(delay(&[0]), s(0), "the first costs nothing");
        assert_eq!(delay(&[5, 0]), s(1));
        assert_eq!(delay(&[601, 5, 0]), s(1), "too long ago");
        assert_eq!(delay(&[9, 5, 0]), s(2));
        assert_eq!(delay(&[0; 7]), s(32));
        assert_eq!(delay(&[0; 8]), s(60));
        assert_eq!(delay(&[0; 200]), s(60));
        assert_eq!(delay(&[9, 8, 7, 3]), s(1), "it stayed away for the rest");
        assert_eq!(delay(&[90; 200]), s(0));
        assert_eq!(readmission_delay(&config, &[s(0), s(0)], 1.0), 1500 * MS, "jitter is up to a half");
    }

    fn follower() -> Arc<FollowerHandle> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        Arc::new(FollowerHandle::new(
            NodeId::random(),
            listener.local_addr().unwrap(),
            socket,
            Some(Durability::Written),
        ))
    }

    #[test]
    fn no_more_hold_slots_than_there_are_and_all_get_their_turn() {
        let slots = Slots::new(3);
        let (holding, most, turns) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    let follower = follower();
                    for _ in 0..20 {
                        let slot = slots.acquire(&follower).unwrap();
                        most.fetch_max(holding.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        holding.fetch_sub(1, Ordering::SeqCst);
                        drop(slot);
                        turns.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 3);
        assert_eq!(turns.load(Ordering::SeqCst), 12 * 20);
        assert!(slots.holders.lock().is_empty());
    }

    #[test]
    fn who_waits_and_ends_gets_no_slot() {
        let slots = Slots::new(1);
        let (holder, waiter) = (follower(), follower());
        let _held = slots.acquire(&holder).unwrap();
        waiter.disconnected("on purpose");
        assert!(slots.acquire(&waiter).is_err());
    }

    #[test]
    fn who_waits_for_the_rate_does_not_stand_but_who_moves_nothing_does() {
        let follower = follower();
        let mut holder = Holder::new(&follower, Instant::now());
        let after = |count: u32| Instant::now() + MOVED_INTERVAL * count;
        assert!(!holder.stands(Instant::now()), "it has an interval");
        assert!(holder.stands(after(1)));
        follower.sync.bytes_hashed.fetch_add(MOVED_BYTES_MIN, Ordering::Relaxed);
        assert!(!holder.stands(after(2)));
        // As long as it has to wait, and an interval from there.
        let mut holder = Holder::new(&follower, Instant::now());
        assert!(follower.throttled(Instant::now() + MS));
        assert!(!holder.stands(after(1)));
        assert!(holder.stands(after(2)));
    }
}
