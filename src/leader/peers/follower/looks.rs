//! What there is to be seen of a follower, and how its catching up goes. Part of [`FollowerHandle`].

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{FollowerHandle, NOWHERE};
use crate::leader::peers::meter::{Meter, Moment};
use crate::leader::peers::status::{CatchUpStatus, FollowerState, FollowerStatus, SyncSent};
use crate::sys::time::Instant;
use crate::types::StreamPosition;

impl FollowerHandle {
    /// Bytes read from disk or written to its socket for its sake so far: says whether a full sync moves.
    pub(in crate::leader) fn moved_bytes(&self) -> u64 {
        self.sync.bytes_hashed.load(Ordering::Relaxed) + self.sent_bytes.load(Ordering::Relaxed)
    }

    /// How long ago the oldest of what it has not acknowledged was sealed; zero if there is nothing.
    pub(in crate::leader) fn owes_for(&self) -> Duration {
        self.in_flight.lock().oldest().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// For how long it has acknowledged nothing of what it was sent; zero if there is nothing.
    pub(in crate::leader) fn silent_for(&self) -> Duration {
        self.in_flight.lock().silent_for()
    }

    /// Everything up to here is acknowledged, once it is in sync.
    pub(in crate::leader) fn position(&self) -> Option<StreamPosition> {
        let position = self.position.load(Ordering::Acquire);
        (position != NOWHERE).then_some(StreamPosition(position))
    }

    /// Whether it leaves more than `bytes` before `now` unacknowledged, although it acknowledged something within `grace`.
    pub(in crate::leader) fn is_behind_but_moving(&self, now: StreamPosition, bytes: u64, grace: Duration) -> bool {
        let reached = self.position().map_or(self.attached_at.load(Ordering::Acquire), |position| position.0);
        if self.has_ended() || now.since(StreamPosition(reached)) <= bytes {
            return false;
        }
        self.in_flight.lock().silent_for() < grace
    }

    /// A snapshot. `now` is the stream's position.
    pub(in crate::leader) fn status(&self, now: StreamPosition) -> FollowerStatus {
        let attached_at = self.attached_at.load(Ordering::Acquire);
        let attached = attached_at != NOWHERE;
        let acknowledged = self.position();
        let lag_bytes = attached.then(|| now.since(acknowledged.unwrap_or(StreamPosition(attached_at))));
        let (oldest, durable) = {
            let in_flight = self.in_flight.lock();
            (in_flight.oldest(), in_flight.durable_position())
        };
        let lag = lag_bytes.map(|bytes| match oldest {
            Some(since) if bytes > 0 => since.elapsed(),
            _ => Duration::ZERO,
        });
        let admitted_in = self.admitted_at.lock().map(|when| when.saturating_duration_since(Instant::now()));
        let moment = self.moment(now);
        let catch_up = self.meter.lock().as_ref().and_then(|meter| meter.status(moment));
        FollowerStatus {
            id: self.id,
            address: self.address,
            state: self.state(),
            connected: self.connected_at.elapsed(),
            acknowledged,
            lag_bytes,
            lag,
            demotions: self.demotions(),
            catch_up,
            admitted_in,
            queued_batches: self.queue.batches.load(Ordering::Relaxed),
            queued_bytes: self.queue.bytes(),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            durable: durable.map(StreamPosition),
            marks: self.extension.then(|| *self.marks.lock()),
            sync: SyncSent {
                files_requested: self.sync.files_requested.load(Ordering::Relaxed),
                files_sent: self.sync.files_sent.load(Ordering::Relaxed),
                bytes_sent: self.sync.bytes_sent.load(Ordering::Relaxed),
            },
        }
    }

    /// Begins to catch up. `now` is the stream's position, here and below.
    pub(in crate::leader) fn catches_up(&self, now: StreamPosition) {
        let moment = self.moment(now);
        *self.meter.lock() = Some(Meter::new(moment));
        self.set_state(FollowerState::CatchingUp);
    }

    /// A round begins, with this much missing. Returns what is known from those before, if there were any.
    pub(in crate::leader) fn catch_up_round(&self, now: StreamPosition, bytes: u64) -> Option<CatchUpStatus> {
        let moment = self.moment(now);
        let mut meter = self.meter.lock();
        let meter = meter.as_mut()?;
        let before = meter.status(moment);
        meter.round(moment, bytes);
        before.map(|before| CatchUpStatus { missing_bytes: bytes, ..before })
    }

    pub(in crate::leader) fn caught_up(&self) {
        *self.meter.lock() = None;
    }

    fn moment(&self, now: StreamPosition) -> Moment {
        Moment { at: Instant::now(), position: now.0, acknowledged: self.in_flight.lock().acknowledged }
    }
}
