//! The one order of all actions: the index and the open batch, and how batches reach the followers' queues (invariants I1,
//! I3 and I4).
//!
//! # Locks, in the order they are taken
//!
//! 1. `cut` — held by a joining follower's thread, or by the demotion thread, while it reads the index as of one moment. Appenders
//!    never take it.
//! 2. `attached` — who gets batches. Held while batches are taken from the stream and pushed, so that every queue has them
//!    in order. Within it only `try_send`, flags and socket shutdowns: nothing that waits.
//! 3. `ordered` — index, position and open batch: the critical section of every append. Nothing is awaited within it, and
//!    no memory is freed or file opened.
//!
//! # When a batch is sealed
//!
//! The *leader thread* seals and pushes: when a batch is full, when a writer has nothing left to write (`hungry`), or when
//! asked to. Waking a thread costs whoever does it microseconds, and a hundred of them where the thread that is woken, and
//! the writers it wakes in turn, take the core: an append itself takes some tens of nanoseconds. So the leader thread is
//! seldom woken. After each push it naps for [`NAP`] before it looks again, and goes on looking, a little more seldom, for some
//! milliseconds after the last append; only then does it sleep until it is woken. An append that comes while it naps wakes
//! nobody, and under load none does. The price is that it lingers until the end of the nap: [`NAP_MAX`] at most. The
//! first append after a pause goes out at once. Batches are the larger for it, which saves every writer and follower system
//! calls. Hunger wakes the leader thread only where it sleeps with something in the open batch.
//!
//! What is sealed and not yet pushed is bounded: at [`SEALED_BYTES_MAX`] the appender pushes itself, which again is only
//! `try_send`.
//!
//! # Buffers
//!
//! An append finds a buffer for the open batch at hand, whose memory the system has provided: fresh memory costs a page
//! fault for every 4 KiB, which is a hundred times what the append takes. Where a core is scarce, as while a follower joins on
//! a small host, it was just that which showed in the slowest of a thousand appends. Only the leader thread, and who
//! attaches a follower, gets memory from the system. Whoever else pushes makes do with buffers that came back from writers.

mod announce;
mod cuts;
mod described;
mod encode;
mod owed;
mod pressure;
mod push;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Duration;

use self::announce::SEALED_BYTES_MAX;
pub(in crate::leader) use self::cuts::{AttachedQueue, Attachment, Changes, Demoted, Joining, Rewritten};
pub(in crate::leader) use self::described::{Described, News};
pub(in crate::leader) use self::encode::{Content, INLINE_BYTES_MAX, temporary_of, whole};
use self::owed::Owed;
use self::pressure::Pressure;
use crate::config::{BackPressure, LeaderConfig, OnFull};
use crate::index::{Index, Items};
use crate::leader::batch::{BATCH_BYTES_MAX, Batch, Buffers};
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::stalls::{Grace, Stalls};
use crate::sys::channel::{Receiver, Sender};
use crate::sys::sync::{Mutex, OnceLock};
use crate::sys::thread::{self, Thread};
use crate::sys::time::Instant;
use crate::thread::deadline;
use crate::types::StreamPosition;

/// Empty buffers at hand for what is appended until the leader thread comes again. On a busy host that may take it many
/// milliseconds, and appends that wait for a core meanwhile come all at once; so there are enough for all that may be
/// sealed before an appender pushes itself.
const SPARES: usize = 64;

const _: () = assert!((SPARES * BATCH_BYTES_MAX) as u64 >= SEALED_BYTES_MAX);

/// How long the leader thread rests after a push, and so how long an append may linger under load; Linux adds about as much
/// again. Each nap after which nothing was there to push is followed by one of twice the length, up to [`NAP_MAX`].
const NAP: Duration = Duration::from_micros(50);

/// How long an append may linger that follows another within some 2 ms.
const NAP_MAX: Duration = Duration::from_micros(200);

/// Naps after which nothing was there to push, until the leader thread sleeps: some 2 ms in all. Each costs about as much CPU as
/// the wake-up that it saves an append, so more of them would show in the load of a host that appends now and then.
const IDLE_LOOKS: u32 = 8;

/// How long the leader thread sleeps when nothing wakes it. Every wake-up is explicit: this is for it to see that the process was
/// stopped.
const TICK: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub(in crate::leader) struct Stream {
    cut: Mutex<()>,
    attached: Mutex<Attached>,
    ordered: Mutex<Ordered>,
    /// A writer has nothing left to write.
    hungry: AtomicBool,
    /// The leader thread sleeps until that is so.
    awaits_hunger: AtomicBool,
    leader_thread: Parked,
    /// Of the leader thread, so that a watchdog sees that it goes on.
    rounds: AtomicU64,
    stopped: AtomicBool,
    pub(in crate::leader) buffers: Buffers,
    limits: Limits,
    pressure: Pressure,
    pub(in crate::leader) stalls: Stalls,
    /// Parked until there is one in `demoted`; there is a thread with [`OnFull::CatchUp`].
    demotion_thread: Parked,
    /// Followers whose queues were full, off the list already. A leaf. `None` once nobody takes them any more.
    demoted: Mutex<Option<Vec<Demoted>>>,
    /// Everything up to this position was pushed.
    pushed: AtomicU64,
}

/// Of every follower's queue; see [`LeaderConfig`].
struct Limits {
    queue_bytes: u64,
    lag_bytes: u64,
    /// What one batch counts for towards `lag_bytes` at most.
    batch_lag_bytes: u64,
    queue_batches: usize,
    queue_soft_bytes: u64,
    queue_soft_time: Duration,
    on_full: OnFull,
    back_pressure: BackPressure,
    min_in_sync: usize,
}

struct Attached {
    followers: Vec<Queue>,
    /// Batches taken from the stream, about to be pushed; kept for its capacity.
    taken: Vec<Arc<Batch>>,
}

struct Queue {
    follower: Arc<FollowerHandle>,
    sender: Sender<Arc<Batch>>,
    /// With [`OnFull::CatchUp`], of a follower that knows the extension: the other end of `sender`, so that its queue is emptied at once,
    /// whatever its writer is at; and what that waits for after it was.
    demotable: Option<(Receiver<Arc<Batch>>, Sender<()>)>,
    /// Since when it holds more than the soft limit, as of the last push.
    over_soft_since: Option<Instant>,
    grace: Grace,
}

struct Ordered {
    index: Index,
    items: Items,
    /// Position after all that was announced.
    position: u64,
    /// Actions not sealed yet.
    open: Vec<u8>,
    /// Empty buffers for the next open batches: [`SPARES`] of [`BATCH_BYTES_MAX`], unless they were used up.
    spares: Vec<Vec<u8>>,
    sealed: Vec<Arc<Batch>>,
    sealed_bytes: u64,
    /// Queues there are. While there is none, actions are only counted.
    queues: usize,
    /// Those of followers of 1.0.0.
    queues_of_v1: usize,
    /// Files that those are to get whole.
    owed: Owed,
    /// Nothing is announced by a host any more: the position after the last that changed a file.
    closed: Option<u64>,
    /// The last that is announced asks to make everything durable.
    durable_at_end: bool,
    sleep: Sleep,
}

impl Ordered {
    /// These get no batches any more.
    fn left(&mut self, gone: &[Queue]) {
        self.queues -= gone.len();
        self.queues_of_v1 -= gone.iter().filter(|queue| !queue.follower.extension).count();
    }
}

/// What the leader thread sleeps for.
#[derive(Clone, Copy, PartialEq)]
enum Sleep {
    Awake,
    UntilAppend,
    UntilSealed,
}

/// A thread that parks until it is woken. Who wakes it has said before what for, and it looks at that after it has
/// entered: one of the two sees the other.
#[derive(Default)]
struct Parked(OnceLock<Thread>);

impl Parked {
    /// Called by the thread itself, first.
    fn enter(&self) {
        self.0.get_or_init(thread::current);
        fence(Ordering::SeqCst);
    }

    fn wake(&self) {
        fence(Ordering::SeqCst);
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }
}

/// What to do after the `ordered` lock was given back.
#[must_use]
struct After {
    position: u64,
    wake: bool,
    push: bool,
}

impl Stream {
    /// One of nothing.
    pub(in crate::leader) fn new(config: &LeaderConfig) -> Self {
        Self {
            cut: Mutex::new(()),
            attached: Mutex::new(Attached { followers: Vec::new(), taken: Vec::new() }),
            ordered: Mutex::new(Ordered {
                index: Index::new(),
                items: Items::default(),
                position: StreamPosition::START.0,
                open: Vec::new(),
                spares: Vec::with_capacity(SPARES),
                sealed: Vec::new(),
                sealed_bytes: 0,
                queues: 0,
                queues_of_v1: 0,
                owed: Owed::default(),
                closed: None,
                durable_at_end: false,
                sleep: Sleep::Awake,
            }),
            hungry: AtomicBool::new(false),
            awaits_hunger: AtomicBool::new(false),
            leader_thread: Parked::default(),
            rounds: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            buffers: Buffers::default(),
            limits: Limits {
                queue_bytes: config.queue_bytes,
                lag_bytes: config.lag_bytes_max(),
                batch_lag_bytes: config.queue_bytes.min(config.lag_bytes_max() / 2),
                queue_batches: config.queue_batches,
                queue_soft_bytes: config.queue_soft_bytes.unwrap_or(u64::MAX),
                queue_soft_time: config.queue_soft_time,
                on_full: config.on_full,
                back_pressure: config.back_pressure,
                min_in_sync: config.min_in_sync,
            },
            pressure: Pressure::default(),
            stalls: Stalls::default(),
            demotion_thread: Parked::default(),
            demoted: Mutex::new(Some(Vec::new())),
            pushed: AtomicU64::new(StreamPosition::START.0),
        }
    }

    /// It begins with these files and items, at the position after that. Before anything is announced, or anybody attached.
    pub(in crate::leader) fn begin(&self, index: Index, items: Items, position: StreamPosition) {
        let nothing = {
            let mut ordered = self.ordered.lock();
            debug_assert!(ordered.index.totals() == (0, 0) && ordered.queues == 0);
            ordered.position = position.0;
            ordered.items = items;
            std::mem::replace(&mut ordered.index, index)
        };
        self.pushed.store(position.0, Ordering::Release);
        drop(nothing);
    }

    // ---- the leader thread ----

    /// The leader thread's life: ends after [`stop`](Self::stop).
    pub(in crate::leader) fn run_leader(&self) {
        self.leader_thread.enter();
        let mut idle_looks = 0;
        while !self.stopped.load(Ordering::Acquire) {
            self.rounds.fetch_add(1, Ordering::Relaxed);
            self.relieve();
            let owed_at = self.announce_owed();
            let before_sleep = idle_looks == IDLE_LOOKS && !self.pressure.is_on();
            if self.something_to_push(before_sleep) {
                self.push();
                self.provide_spares();
                idle_looks = 0;
            } else if before_sleep {
                // A wake-up between the look and here makes this return at once.
                self.rest(owed_at.map_or(TICK, |at| TICK.min(at.saturating_duration_since(Instant::now()))));
                continue;
            } else {
                idle_looks = (idle_looks + 1).min(IDLE_LOOKS);
            }
            // Still `Awake`: nobody wakes it now but who stops it.
            self.rest((NAP * (1 << idle_looks)).min(NAP_MAX));
        }
    }

    fn rest(&self, at_most: Duration) {
        let since = Instant::now();
        thread::park_timeout(at_most);
        self.stalls.rested(since, at_most);
    }

    /// If not, and `before_sleep`, whoever brings something wakes the leader thread.
    fn something_to_push(&self, before_sleep: bool) -> bool {
        // Before the look at `hungry`, which a writer sets before it looks at this: one of the two sees the other.
        self.awaits_hunger.store(before_sleep, Ordering::SeqCst);
        let hungry = self.hungry.load(Ordering::SeqCst);
        let something = {
            let mut ordered = self.ordered.lock();
            let something = !ordered.sealed.is_empty() || (hungry && !ordered.open.is_empty());
            ordered.sleep = match hungry {
                _ if something || !before_sleep => Sleep::Awake,
                true => Sleep::UntilAppend,
                false => Sleep::UntilSealed,
            };
            something
        };
        if something || hungry {
            self.awaits_hunger.store(false, Ordering::Relaxed);
        }
        something
    }

    fn wake_leader(&self) {
        self.leader_thread.wake();
    }

    /// How many files are announced, and how many bytes in them.
    pub(in crate::leader) fn totals(&self) -> (u64, u64) {
        self.ordered.lock().index.totals()
    }

    /// Whether the leader thread goes on, or has been stopped. Blocks up to `within`.
    pub(in crate::leader) fn is_dispatching(&self, within: Duration) -> bool {
        let deadline = deadline(within);
        let before = self.rounds.load(Ordering::Relaxed);
        self.wake_leader();
        while self.rounds.load(Ordering::Relaxed) == before && !self.stopped.load(Ordering::Acquire) {
            if Instant::now() >= deadline {
                return false;
            }
            thread::park_timeout(Duration::from_millis(1));
        }
        true
    }

    pub(in crate::leader) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.pressure.end();
        self.wake_leader();
        self.demotion_thread.wake();
    }

    /// A writer has nothing left to write: what is in the open batch should come.
    pub(in crate::leader) fn now_hungry(&self) {
        if !self.hungry.swap(true, Ordering::SeqCst) && self.awaits_hunger.load(Ordering::SeqCst) {
            self.wake_leader();
        }
    }

    /// Of a follower that has missed a deadline: whether all others of the stream, and there are some, are late with it. They need
    /// not have begun at one moment: half of the deadline is enough.
    pub(in crate::leader) fn all_are_late(&self, follower: &FollowerHandle, deadline: Duration) -> bool {
        let all = {
            let attached = self.attached.lock();
            let followers = attached.followers.iter().map(|queue| &*queue.follower);
            let mut others = followers.filter(|other| other.id != follower.id).peekable();
            others.peek().is_some() && others.all(|other| other.silent_for() >= deadline / 2)
        };
        if all {
            self.stalls.all_are_late(deadline);
        }
        all
    }

    // ---- the demotion thread ----

    /// Waits until followers were demoted. `None`: [`stop`](Self::stop) was called.
    pub(in crate::leader) fn wait_demoted(&self) -> Option<Vec<Demoted>> {
        self.demotion_thread.enter();
        loop {
            let stopped = self.stopped.load(Ordering::Acquire);
            let mut waiting = self.demoted.lock();
            let demoted = waiting.as_mut().map(std::mem::take).filter(|demoted| !demoted.is_empty());
            if stopped && demoted.is_none() {
                *waiting = None;
                return None;
            }
            drop(waiting);
            if demoted.is_some() {
                return demoted;
            }
            thread::park();
        }
    }

    /// Takes a follower that has ended off the list, so that its writer sees the channel's end.
    pub(in crate::leader) fn detach(&self, follower: &Arc<FollowerHandle>) {
        let mut attached = self.attached.lock();
        let at = attached.followers.iter().position(|queue| Arc::ptr_eq(&queue.follower, follower));
        let gone = at.map(|at| attached.followers.swap_remove(at));
        self.ordered.lock().left(gone.as_slice());
        drop(attached);
        drop(gone);
    }

    /// Whether `is_so` of any follower that gets batches now.
    pub(in crate::leader) fn any_attached(&self, mut is_so: impl FnMut(&FollowerHandle) -> bool) -> bool {
        self.attached.lock().followers.iter().any(|queue| is_so(&queue.follower))
    }
}
