//! A connected follower as the leader knows it: shared by its own two threads and by whoever pushes or evicts.
//!
//! Letting a follower go is one step that never waits (I5): the first caller sets [`end`](FollowerHandle::end) and shuts the
//! socket down. The follower's own threads notice, clean up, log why and leave; nobody joins them while holding a lock.
//!
//! What is on its way to it, and what it has, is in `in_flight.rs`. Its lock is a leaf: nothing is locked or awaited while it is
//! held, except the condition that somebody acknowledged.

mod end;
mod looks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::config::Durability;
use crate::leader::batch::Batch;
use crate::leader::peers::has::{Has, Ticket};
use crate::leader::peers::in_flight::InFlight;
use crate::leader::peers::meter::Meter;
use crate::leader::peers::stalls::tick;
use crate::leader::peers::status::{Eviction, FollowerState};
use crate::leader::peers::turn::Turn;
use crate::protocol::ProtocolError;
use crate::protocol::extension::Marks;
use crate::sys::channel::{Receiver, TryRecvError};
use crate::sys::hash::HashMap;
use crate::sys::net::{SocketAddr, TcpStream};
#[cfg(test)]
use crate::sys::sync::MutexGuard;
use crate::sys::sync::{Condvar, Mutex, OnceLock};
use crate::sys::time::Instant;
use crate::types::{NodeId, RelPath, StreamPosition};

/// See the module's documentation.
pub(in crate::leader) struct FollowerHandle {
    pub(in crate::leader) id: NodeId,
    pub(in crate::leader) address: SocketAddr,
    /// Whether it speaks the extension, or 1.0.0.
    pub(in crate::leader) extension: bool,
    /// Files of which it lacks something that could not be sent, and whether it surely has something under that name; nothing is added to them before
    /// they come whole (`ranges.rs`). Its writer's.
    pub(in crate::leader) spoiled: Mutex<HashMap<RelPath, bool>>,
    /// Whether it is still to be told that it is whole, and at which position. Its writer's.
    pub(in crate::leader) owed_position: AtomicBool,
    connected_at: Instant,
    /// For shutting it down, and for heartbeats; its own threads have clones to read and write.
    pub(in crate::leader) socket: TcpStream,
    /// Whose it is to write to it.
    pub(in crate::leader) turn: Turn,
    state: AtomicU8,
    end: OnceLock<End>,
    /// Says the same as `end`, cheaper to look at.
    ended: AtomicBool,
    pub(in crate::leader) queue: QueueDepth,
    /// What counts towards its lag of that was dispatched to it: added to before a batch is queued, taken from once the batch is
    /// acknowledged, with `in_flight` locked.
    lag: AtomicU64,
    in_flight: Mutex<InFlight>,
    acknowledged: Condvar,
    /// Where it attached; [`NOWHERE`] before.
    attached_at: AtomicU64,
    /// Everything up to here is acknowledged; [`NOWHERE`] until it has acknowledged all up to where it attached.
    position: AtomicU64,
    pub(in crate::leader) sent_bytes: AtomicU64,
    pub(in crate::leader) sync: SyncCounters,
    /// Of a follower that knows the extension.
    marks: Mutex<Marks>,
    /// Its queue was full, and it is to go on from disk: what is still there is discarded.
    demoted: AtomicBool,
    /// Held by its writer while it looks at that and takes a batch. A leaf lock, of nobody who appends.
    taking: Mutex<()>,
    demotions: AtomicU64,
    /// Until when it waits for its next full sync, because it was evicted for being slow too often.
    admitted_at: Mutex<Option<Instant>>,
    /// When it last waited for the rate of syncs.
    throttled_at: Mutex<Option<Instant>>,
    /// While it catches up. A leaf lock, like those above.
    meter: Mutex<Option<Meter>>,
    was_in_sync: AtomicBool,
}

const NOWHERE: u64 = u64::MAX;

/// How often who waits without a limit looks up: every end wakes it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a follower is gone.
#[derive(Clone, Debug)]
pub(in crate::leader) enum End {
    /// We let it go.
    Evicted(Eviction),
    /// It went.
    Disconnected(String),
}

/// What waits in its channel or is being written.
#[derive(Default)]
pub(in crate::leader) struct QueueDepth {
    batches: AtomicUsize,
    bytes: AtomicU64,
}

impl QueueDepth {
    pub(in crate::leader) fn add(&self, cost: u64) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(cost, Ordering::Relaxed);
    }

    pub(in crate::leader) fn remove(&self, cost: u64) {
        self.batches.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(cost, Ordering::Relaxed);
    }

    fn clear(&self) {
        self.batches.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }

    pub(in crate::leader) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Counters behind [`SyncSent`](super::status::SyncSent).
#[derive(Default)]
pub(in crate::leader) struct SyncCounters {
    pub(in crate::leader) bytes_hashed: AtomicU64,
    /// What the follower has digested of its files on this connection, as it said last.
    pub(in crate::leader) bytes_digested_there: AtomicU64,
    pub(in crate::leader) files_requested: AtomicU64,
    pub(in crate::leader) files_sent: AtomicU64,
    pub(in crate::leader) bytes_sent: AtomicU64,
}

impl FollowerHandle {
    /// `v1_acks`: what it says with its acknowledgements, if it does not know the extension.
    pub(in crate::leader) fn new(
        id: NodeId,
        address: SocketAddr,
        socket: TcpStream,
        v1_acks: Option<Durability>,
    ) -> Self {
        let now = Instant::now();
        Self {
            id,
            address,
            extension: v1_acks.is_none(),
            spoiled: Mutex::default(),
            owed_position: AtomicBool::new(false),
            connected_at: now,
            socket,
            turn: Turn::new(),
            state: AtomicU8::new(FollowerState::Waiting as u8),
            end: OnceLock::new(),
            ended: AtomicBool::new(false),
            queue: QueueDepth::default(),
            lag: AtomicU64::new(0),
            in_flight: Mutex::new(InFlight::new(v1_acks, now)),
            acknowledged: Condvar::new(),
            attached_at: AtomicU64::new(NOWHERE),
            position: AtomicU64::new(NOWHERE),
            sent_bytes: AtomicU64::new(0),
            sync: SyncCounters::default(),
            marks: Mutex::default(),
            demoted: AtomicBool::new(false),
            taking: Mutex::default(),
            demotions: AtomicU64::new(0),
            admitted_at: Mutex::default(),
            throttled_at: Mutex::default(),
            meter: Mutex::default(),
            was_in_sync: AtomicBool::new(false),
        }
    }

    // ---- state ----

    pub(in crate::leader) fn state(&self) -> FollowerState {
        const STATES: [FollowerState; 5] = [
            FollowerState::Waiting,
            FollowerState::Syncing,
            FollowerState::CatchingUp,
            FollowerState::Attached,
            FollowerState::InSync,
        ];
        STATES[usize::from(self.state.load(Ordering::Acquire))]
    }

    pub(in crate::leader) fn set_state(&self, state: FollowerState) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// It gets all batches from `position` on. Called with the stream locked.
    pub(in crate::leader) fn attached_at(&self, position: StreamPosition) {
        let mut in_flight = self.in_flight.lock();
        in_flight.attached();
        self.demoted.store(false, Ordering::Release);
        self.attached_at.store(position.0, Ordering::Release);
        self.set_state(FollowerState::Attached);
    }

    /// It does not after all: what is left to catch up with is too much. Nobody pushes to its queue any more.
    pub(in crate::leader) fn detached(&self) {
        self.leave_stream();
        self.queue.clear();
    }

    /// It does not any more, and catches up from disk again: its queue was full. Called with the stream locked, before
    /// anything is taken out of the queue but by its writer.
    pub(in crate::leader) fn demoted(&self) {
        self.demoted.store(true, Ordering::Release);
        self.demotions.fetch_add(1, Ordering::Relaxed);
        self.leave_stream();
    }

    /// All that it has is about to be compared with what there is: what it was not sent before says nothing any more.
    pub(in crate::leader) fn compared(&self) {
        self.spoiled.lock().clear();
        self.in_flight.lock().compared();
    }

    fn leave_stream(&self) {
        let mut in_flight = self.in_flight.lock();
        in_flight.detached();
        self.lag.store(0, Ordering::Relaxed);
        self.attached_at.store(NOWHERE, Ordering::Release);
        self.position.store(NOWHERE, Ordering::Release);
        self.set_state(FollowerState::CatchingUp);
    }

    /// The next batch of its queue, for its writer; none, as if nobody pushed any more, from when it was demoted.
    pub(in crate::leader) fn take(&self, batches: &Receiver<Arc<Batch>>) -> Result<Arc<Batch>, TryRecvError> {
        let _one_step = self.taking.lock();
        if self.demoted.load(Ordering::Acquire) { Err(TryRecvError::Disconnected) } else { batches.try_recv() }
    }

    /// A batch is about to be queued, that counts for so much. Called with the stream locked.
    pub(in crate::leader) fn dispatched(&self, counts: u64) {
        self.lag.fetch_add(counts, Ordering::Relaxed);
    }

    /// A batch that counted for so much was taken from its queue, up to the position `end`.
    pub(in crate::leader) fn taken(&self, end: u64, counts: u64) {
        self.in_flight.lock().taken(end, counts);
    }

    /// What counts towards its lag of that was dispatched to it and is not acknowledged.
    pub(in crate::leader) fn counted_lag(&self) -> u64 {
        self.lag.load(Ordering::Relaxed)
    }

    /// When this returns, its writer takes no batch any more. To be called once it is demoted.
    pub(in crate::leader) fn taken_over(&self) {
        debug_assert!(self.demoted.load(Ordering::Acquire));
        drop(self.taking.lock());
    }

    /// Whether it ever was: then the first, and longest, flush of what it was sent is behind it.
    pub(in crate::leader) fn was_in_sync(&self) -> bool {
        self.was_in_sync.load(Ordering::Acquire)
    }

    /// Whether it was demoted since it was attached.
    pub(in crate::leader) fn is_demoted(&self) -> bool {
        self.demoted.load(Ordering::Acquire)
    }

    /// How often it was demoted.
    pub(in crate::leader) fn demotions(&self) -> u64 {
        self.demotions.load(Ordering::Relaxed)
    }

    // ---- what is on its way ----

    /// Notes action bytes that are about to be written: before the write, or a quick acknowledgement looks excessive. With
    /// no bytes it only says which position is reached once all that was sent is acknowledged.
    pub(in crate::leader) fn sending(&self, bytes: u64, position: Option<StreamPosition>, since: Instant) {
        let mut in_flight = self.in_flight.lock();
        in_flight.sending(bytes, position.map(|position| position.0), since, Instant::now());
        self.passed(&mut in_flight);
    }

    /// Notes that it is about to be asked to make durable what was sent so far, which is all that counts up to `position`.
    pub(in crate::leader) fn asking_for_durable(&self, position: StreamPosition) {
        self.in_flight.lock().asking_for_durable(position.0);
    }

    /// Whether nothing is void of what it had to have when it attached, once it has the stream up to this position.
    pub(in crate::leader) fn is_whole_at(&self, position: StreamPosition) -> bool {
        self.in_flight.lock().is_whole_at(position.0)
    }

    /// Notes that all that was being sent is written.
    pub(in crate::leader) fn written(&self) {
        self.in_flight.lock().written();
    }

    /// Notes that what it has of a file is void after `from` in the stream; position 0: it joined without. That was noticed when the stream was at `noticed` ...
    pub(in crate::leader) fn void(&self, path: &RelPath, from: StreamPosition, noticed: StreamPosition) {
        self.in_flight.lock().void(path, from.0, noticed.0);
    }

    /// ... until it has all up to `until`, if all of the file was announced after `since` and that was noticed before. Commits are to be told that it
    /// [passed](crate::leader::core::Core::passed).
    pub(in crate::leader) fn mended(&self, path: &RelPath, since: StreamPosition, until: StreamPosition) {
        self.in_flight.lock().mended(path, since.0, until.0);
    }

    /// Whether what it came to have late counts only once it is asked to make that durable, and it was not.
    pub(in crate::leader) fn is_to_flush(&self) -> bool {
        self.in_flight.lock().is_to_flush()
    }

    /// Takes an acknowledgement.
    pub(in crate::leader) fn acknowledge(&self, bytes: u64) -> Result<(), ProtocolError> {
        let mut in_flight = self.in_flight.lock();
        in_flight.acknowledge(bytes, Instant::now())?;
        // Who waits for a part of what is on its way waits for no more than that.
        self.acknowledged.notify_all();
        self.passed(&mut in_flight);
        Ok(())
    }

    /// Takes the marks of a follower that knows the extension, as [`acknowledge`](Self::acknowledge) does.
    pub(in crate::leader) fn take_marks(&self, marks: Marks) -> Result<(), ProtocolError> {
        let before = std::mem::replace(&mut *self.marks.lock(), marks);
        let in_order = marks.durable <= marks.written && marks.written <= marks.received;
        let forward = marks.durable >= before.durable && marks.received >= before.received;
        if !in_order || !forward || marks.written < before.written {
            return Err(ProtocolError::Malformed("marks"));
        }
        {
            let mut in_flight = self.in_flight.lock();
            in_flight.received(marks.received)?;
            in_flight.durable(marks.durable);
        }
        match marks.written - before.written {
            0 => Ok(()),
            bytes => self.acknowledge(bytes),
        }
    }

    /// Called with `in_flight` locked, after it may have moved.
    fn passed(&self, in_flight: &mut InFlight) {
        let Some(position) = in_flight.position() else { return };
        self.lag.fetch_sub(in_flight.take_acknowledged(), Ordering::Relaxed);
        self.position.store(position, Ordering::Release);
        if self.state() == FollowerState::Attached {
            self.set_state(FollowerState::InSync);
            self.was_in_sync.store(true, Ordering::Release);
        }
    }

    /// Waits until everything sent so far is acknowledged. `false`: it ended, or acknowledged nothing for `timeout` (of which
    /// a leader that was itself stopped for longer finds one tick gone, not all). Without one somebody else watches it.
    pub(in crate::leader) fn wait_acknowledged(&self, timeout: Option<Duration>) -> bool {
        let slice = timeout.map_or(LOOK_EVERY, tick);
        let mut left = timeout;
        let mut in_flight = self.in_flight.lock();
        let wanted = in_flight.sent;
        while in_flight.acknowledged < wanted && !self.has_ended() && left != Some(Duration::ZERO) {
            if timeout.is_some() {
                in_flight.progress = false;
            }
            self.acknowledged.wait_for(&mut in_flight, slice);
            left = if in_flight.progress { timeout } else { left.map(|left| left.saturating_sub(slice)) };
        }
        in_flight.acknowledged >= wanted && !self.has_ended()
    }

    /// Whether it has left something wholly written unacknowledged, and acknowledged nothing since the last call.
    ///
    /// Called at intervals, it counts our own clock's ticks rather than time: a leader that was itself stopped for longer
    /// than every deadline finds one tick gone, not all of them.
    pub(in crate::leader) fn is_stuck(&self) -> bool {
        self.in_flight.lock().is_stuck()
    }

    /// Nobody learns what it has before this is dropped.
    #[cfg(test)]
    pub(in crate::leader) fn hold(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock()
    }

    // ---- commits ----

    /// It begins its way to the stream anew.
    pub(in crate::leader) fn joins(&self, ticket: Ticket) {
        self.in_flight.lock().joins(ticket);
    }

    /// Its way to the stream, and what of that it has; see [`InFlight::has`].
    pub(in crate::leader) fn has(&self) -> Option<(Ticket, Has)> {
        self.in_flight.lock().has()
    }

    /// Whether it joined without something, and has not come to have it since.
    pub(in crate::leader) fn lacks_from_before(&self) -> bool {
        self.in_flight.lock().lacks_from_before()
    }

    /// Whether it has everything up to `end`: durable, if that is asked for and it ever says so.
    pub(in crate::leader) fn has_all(&self, end: StreamPosition, durability: Durability) -> bool {
        let has_all = |has: Has| match durability {
            Durability::Durable if self.extension => has.durable >= end.0,
            _ if self.extension => has.written >= end.0,
            // Whatever its acknowledgements say.
            _ => has.received >= end.0,
        };
        self.has().is_some_and(|(_, has)| has_all(has))
    }

    pub(in crate::leader) fn ticket(&self) -> Ticket {
        self.in_flight.lock().ticket()
    }
}
