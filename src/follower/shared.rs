//! What the owner of a follower and its threads share: the order to stop, how it ended, and the status.
//!
//! Two locks, never held together, and never while a socket, a file or a thread is waited for. `control` guards the order
//! to stop and the socket that a stop shuts down; `status` guards the numbers, and is taken once for a file, a piece of
//! one, or a block of the stream, not for each action.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::status::{State, Status};
use crate::error::Error;
use crate::position::{EpochPosition, Stand};
use crate::sys::net::Shutdown;
use crate::sys::socket2::Socket;
use crate::sys::sync::{Condvar, Mutex};
use crate::sys::time::Instant;
use crate::types::StreamPosition;

#[derive(Default)]
pub(super) struct Shared {
    control: Mutex<Control>,
    /// An order to stop was given, or the follower ended.
    changed: Condvar,
    status: Mutex<Told>,
    /// The directory is this node's.
    ours: AtomicBool,
    /// The end is not to wait for what can be done without.
    hurry: AtomicBool,
}

#[derive(Default)]
struct Told {
    status: Status,
    /// Since when the follower has been behind, by its own clock.
    behind_since: Option<Instant>,
    place: Place,
}

/// How far the directory has come.
#[derive(Default)]
struct Place {
    /// All up to here is written ...
    has: Option<EpochPosition>,
    /// ... and durable up to here, in the same epoch.
    durable: StreamPosition,
    /// Nothing of a sync is missing: it counts.
    counts: bool,
}

#[derive(Default)]
struct Control {
    stopping: bool,
    /// Whom to follow; nobody for the time being if there is none.
    leader: Option<String>,
    /// That is news to the reader thread: what it has at hand is a connection to another leader.
    moved: bool,
    /// The socket in use, from before it is connected: shutting it down ends every wait on it, that for the connection
    /// included.
    socket: Option<Arc<Socket>>,
    outcome: Outcome,
    /// Which thread failed, and how.
    failure: Option<String>,
}

#[derive(Default)]
enum Outcome {
    #[default]
    Running,
    Done,
    Failed(Error),
    /// The error was handed out.
    Told,
}

impl Shared {
    pub(super) fn stopping(&self) -> bool {
        self.control.lock().stopping
    }

    /// `Err` once a stop was asked for.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.stopping() { Err(Error::ShuttingDown) } else { Ok(()) }
    }

    /// Tells the threads to stop. Never blocks.
    pub(super) fn stop(&self) {
        self.interrupt(|control| {
            control.stopping = true;
            true
        });
    }

    /// The stop that follows is to be quick.
    pub(super) fn hurry(&self) {
        self.hurry.store(true, Ordering::Release);
    }

    pub(super) fn hurries(&self) -> bool {
        self.hurry.load(Ordering::Acquire)
    }

    /// Whether the directory is this node's, so that something may be kept in it.
    pub(super) fn claimed(&self, ours: bool) {
        self.ours.store(ours, Ordering::Release);
    }

    pub(super) fn is_ours(&self) -> bool {
        self.ours.load(Ordering::Acquire)
    }

    /// A thread has failed: stops, and that is why. Never blocks.
    pub(super) fn fail(&self, what: &str) {
        self.interrupt(|control| {
            control.stopping = true;
            control.failure.get_or_insert_with(|| what.to_owned());
            true
        });
    }

    /// Has the reader thread follow another leader, or nobody. Never blocks.
    pub(super) fn follow(&self, leader: Option<&str>) {
        self.interrupt(|control| {
            let moved = control.leader.as_deref() != leader;
            control.leader = leader.map(str::to_owned);
            control.moved |= moved;
            moved
        });
    }

    /// Ends every wait of the reader thread, if `change` says so.
    fn interrupt(&self, change: impl FnOnce(&mut Control) -> bool) {
        let socket = {
            let mut control = self.control.lock();
            if !change(&mut control) {
                return;
            }
            control.socket.clone()
        };
        self.changed.notify_all();
        if let Some(socket) = socket {
            // An error says that the socket is not connected (any more).
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Waits until there is a leader to follow; `None` once a stop was asked for.
    pub(super) fn leader(&self) -> Option<String> {
        let mut control = self.control.lock();
        loop {
            control.moved = false;
            self.changed.notify_all();
            match &control.leader {
                _ if control.stopping => return None,
                Some(leader) => return Some(leader.clone()),
                None => self.changed.wait(&mut control),
            }
        }
    }

    /// Whether another leader is to be followed than the one that [`leader`](Self::leader) told last.
    pub(super) fn moved(&self) -> bool {
        self.control.lock().moved
    }

    /// Waits, at most for `timeout`, until nothing of a former leader is applied any more: the reader thread has heard of the last
    /// [`follow`](Self::follow), or has ended. Returns whether that is so.
    pub(super) fn wait_at_rest(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut control = self.control.lock();
        while control.moved && matches!(control.outcome, Outcome::Running) {
            if self.changed.wait_until(&mut control, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// Waits for `pause`; `false` once a stop was asked for, or it has ended.
    pub(super) fn goes_on_after(&self, pause: Duration) -> bool {
        let deadline = Instant::now() + pause;
        let mut control = self.control.lock();
        loop {
            if control.stopping || !matches!(control.outcome, Outcome::Running) {
                return false;
            }
            if self.changed.wait_until(&mut control, deadline).timed_out() {
                return true;
            }
        }
    }

    /// Cuts the connection there is.
    pub(super) fn cut(&self) {
        self.interrupt(|_| true);
    }

    /// Makes `socket` the one that a stop shuts down; refused when a stop came first, or another leader.
    pub(super) fn register(&self, socket: Arc<Socket>) -> Result<(), Error> {
        let mut control = self.control.lock();
        if control.stopping || control.moved {
            return Err(Error::ShuttingDown);
        }
        control.socket = Some(socket);
        Ok(())
    }

    pub(super) fn unregister(&self) {
        let socket = self.control.lock().socket.take();
        drop(socket);
    }

    /// Waits for `delay`, or until there is another leader, or a stop is asked for.
    pub(super) fn sleep(&self, delay: Duration) {
        let deadline = Instant::now() + delay;
        let mut control = self.control.lock();
        while !control.stopping && !control.moved {
            if self.changed.wait_until(&mut control, deadline).timed_out() {
                return;
            }
        }
    }

    /// Says how the follower ended. Only the first word counts.
    pub(super) fn finish(&self, outcome: Result<(), Error>) {
        self.update(|status| status.state = State::Stopped);
        let mut control = self.control.lock();
        if matches!(control.outcome, Outcome::Running) {
            let outcome = control.failure.take().map_or(outcome, |what| Err(Error::ThreadFailed(what)));
            control.outcome = outcome.map_or_else(Outcome::Failed, |()| Outcome::Done);
        }
        self.changed.notify_all();
    }

    /// Waits for the end; `None` after `timeout`. An error is handed out once.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> Option<Result<(), Error>> {
        // A timeout beyond what the clock can count is none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut control = self.control.lock();
        while matches!(control.outcome, Outcome::Running) {
            match deadline {
                None => self.changed.wait(&mut control),
                Some(deadline) if self.changed.wait_until(&mut control, deadline).timed_out() => break,
                Some(_) => {}
            }
        }
        match &control.outcome {
            Outcome::Running => None,
            Outcome::Done => Some(Ok(())),
            Outcome::Told => Some(Err(Error::ShuttingDown)),
            Outcome::Failed(_) => match std::mem::replace(&mut control.outcome, Outcome::Told) {
                Outcome::Failed(error) => Some(Err(error)),
                _ => None,
            },
        }
    }

    pub(super) fn status(&self) -> Status {
        let told = self.status.lock();
        let mut status = told.status.clone();
        status.position = told.place.has.filter(|_| told.place.counts);
        status.lag = status.lag_bytes.map(|_| told.behind_since.map_or(Duration::ZERO, |since| since.elapsed()));
        status
    }

    /// Whether files are compared or sent.
    pub(super) fn is_syncing(&self) -> bool {
        self.status.lock().status.state == State::Syncing
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock().status);
    }

    /// What the directory has is what was kept.
    pub(super) fn set_place(&self, kept: Option<Stand>) {
        let durable = kept.map(|kept| kept.durable).unwrap_or_default();
        self.status.lock().place = Place { has: kept.map(|kept| kept.has), durable, counts: kept.is_some() };
    }

    /// It is about to be changed in a way that no position stands for.
    pub(super) fn leave_place(&self) {
        self.status.lock().place = Place::default();
    }

    /// A sync is whole, and durable up to there: positions count from now on.
    pub(super) fn reach_place(&self, at: Option<EpochPosition>) {
        let place = &mut self.status.lock().place;
        // The reader has gone on meanwhile.
        place.has = place.has.max(at);
        place.durable = at.map(|at| at.position).unwrap_or_default();
        place.counts = true;
    }

    /// It is durable up to there.
    pub(super) fn durable_at(&self, at: Option<EpochPosition>) {
        let place = &mut self.status.lock().place;
        if let Some(at) = at.filter(|at| place.counts && place.has.is_some_and(|has| has.epoch == at.epoch)) {
            place.durable = at.position.max(place.durable);
        }
    }

    /// What is to be kept of it, if it has come to anything.
    pub(super) fn place(&self) -> Option<Stand> {
        let place = &self.status.lock().place;
        let has = place.has.filter(|_| place.counts)?;
        Some(Stand { has, durable: place.durable })
    }

    /// Everything up to there is written. Counts once [`reach_place`](Self::reach_place) was called.
    pub(super) fn written_at(&self, at: EpochPosition) {
        self.status.lock().place.has = Some(at);
    }

    /// Bytes behind the leader, and since when; `None`: that is not known.
    pub(super) fn update_with_lag(&self, lag: Option<(u64, Option<Instant>)>, change: impl FnOnce(&mut Status)) {
        let mut told = self.status.lock();
        told.status.lag_bytes = lag.map(|(bytes, _)| bytes);
        told.behind_since = lag.and_then(|(_, since)| since);
        change(&mut told.status);
    }
}
