//! What is on its way to one follower, and up to where it has the stream. No locks, no clocks but those passed in.
//!
//! A follower acknowledges action bytes, counted since its connection began. What was sent before it attached (catching up)
//! counts in that too, so bytes are mapped back to positions of the stream piece by piece: each piece sent is remembered with
//! where it ended in both.
//!
//! A range of a file may be gone by the time it is to be sent, or unreadable. Then the follower goes on without it, until the whole
//! file comes further on in the stream: a *hold* on what counts as its own, from there to there.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::Durability;
use crate::leader::peers::has::{Has, Ticket};
use crate::protocol::ProtocolError;
use crate::sys::hash::HashMap;
use crate::sys::time::Instant;
use crate::types::RelPath;

/// Pieces remembered singly; beyond it they are merged, and acknowledged positions get coarser.
const PIECES_MAX: usize = 65_536;

/// See the module's documentation.
pub(in crate::leader) struct InFlight {
    pieces: VecDeque<Piece>,
    /// How many of them it has received, but not written.
    received: usize,
    /// Where it was asked to make everything durable and has not said that it has: `sent` before that, and the stream position
    /// after.
    durable_points: VecDeque<(u64, u64)>,
    durable: Option<u64>,
    /// Up to where it has received and written the stream; `None` until it has written all up to where it attached.
    reached: Option<Reached>,
    /// Of batches taken from its queue that it has not acknowledged: the position after each, and what it counts for.
    batches: VecDeque<(u64, u64)>,
    holds: Vec<Hold>,
    /// From where on something is void that is not made up for yet ...
    void_from: Option<u64>,
    /// ... and the files that are, each with the stream's position when that was noticed last.
    voided: HashMap<RelPath, u64>,
    /// Its way to the stream, as commits know it.
    ticket: Ticket,
    /// What its acknowledgements say if it knows 1.0.0 only.
    v1_acks: Option<Durability>,
    /// Action bytes that were or are about to be written.
    pub(in crate::leader) sent: u64,
    /// Whether pieces stand for positions. Not while it is detached: what was on its way when it was demoted must not bring it
    /// in sync when it is acknowledged.
    attached: bool,
    /// Action bytes of pieces that are wholly written.
    written: u64,
    pub(in crate::leader) acknowledged: u64,
    /// Whether it acknowledged anything, or had nothing to acknowledge, since [`is_stuck`](Self::is_stuck) last looked.
    pub(in crate::leader) progress: bool,
    /// When it last acknowledged anything, or was sent something while it had acknowledged everything.
    progress_at: Instant,
}

/// A part of the stream on its way.
struct Piece {
    /// `sent` after it.
    sent_after: u64,
    /// The stream position after it; `None` while catching up.
    position: Option<u64>,
    since: Instant,
}

#[derive(Clone, Copy)]
struct Reached {
    received: u64,
    written: u64,
}

/// What it has beyond `from` counts only once it has all up to `until`.
struct Hold {
    from: u64,
    until: u64,
}

impl InFlight {
    /// `v1_acks`: what it says with an acknowledgement, if it knows 1.0.0 only.
    pub(in crate::leader) fn new(v1_acks: Option<Durability>, now: Instant) -> Self {
        Self {
            pieces: VecDeque::new(),
            received: 0,
            durable_points: VecDeque::new(),
            durable: None,
            reached: None,
            batches: VecDeque::new(),
            holds: Vec::new(),
            void_from: None,
            voided: HashMap::default(),
            ticket: 0,
            v1_acks,
            sent: 0,
            attached: false,
            written: 0,
            acknowledged: 0,
            progress: true,
            progress_at: now,
        }
    }

    /// It begins its way to the stream anew.
    pub(in crate::leader) fn joins(&mut self, ticket: Ticket) {
        self.ticket = ticket;
    }

    pub(in crate::leader) fn attached(&mut self) {
        self.attached = true;
    }

    /// It is not attached any more; what it made durable says nothing about what it is sent to catch up.
    pub(in crate::leader) fn detached(&mut self) {
        self.attached = false;
        self.reached = None;
        self.durable = None;
        self.durable_points.clear();
        self.batches.clear();
        // What it lacks, it lacks from before where it attaches next.
        self.void_from = self.void_from.map(|_| 0);
        self.holds.iter_mut().for_each(|hold| hold.from = 0);
    }

    /// All that it has is compared with what there is: what it was not sent before says nothing any more.
    pub(in crate::leader) fn compared(&mut self) {
        self.void_from = None;
        self.voided.clear();
        self.holds.clear();
    }

    // ---- sending ----

    /// A batch was taken from its queue; see [`FollowerHandle::taken`](crate::leader::peers::follower::FollowerHandle::taken).
    pub(in crate::leader) fn taken(&mut self, end: u64, counts: u64) {
        // One that was taken just before it was demoted stands for no position.
        if !self.attached {
            return;
        }
        let full = self.batches.len() >= PIECES_MAX;
        match self.batches.back_mut() {
            Some(last) if full => *last = (end, last.1.saturating_add(counts)),
            _ => self.batches.push_back((end, counts)),
        }
    }

    /// Action bytes are about to be written; see [`FollowerHandle::sending`](crate::leader::peers::follower::FollowerHandle::sending).
    pub(in crate::leader) fn sending(&mut self, bytes: u64, position: Option<u64>, since: Instant, now: Instant) {
        if self.acknowledged == self.sent {
            self.progress_at = now;
        }
        self.sent += bytes;
        let (sent_after, full) = (self.sent, self.pieces.len() >= PIECES_MAX);
        match self.pieces.back_mut() {
            Some(last) if full || bytes == 0 => {
                last.sent_after = sent_after;
                last.position = position.or(last.position);
                self.received = self.received.min(self.pieces.len() - 1);
            }
            None if bytes == 0 => self.passed(position, position),
            _ => self.pieces.push_back(Piece { sent_after, position, since }),
        }
    }

    /// It is about to be asked to make durable what was sent so far: all up to `position` but for that request.
    pub(in crate::leader) fn asking_for_durable(&mut self, position: u64) {
        if self.durable_points.len() >= PIECES_MAX {
            // The last counts: without it nothing would be called durable up to there.
            self.durable_points.pop_back();
        }
        self.durable_points.push_back((self.sent, position));
    }

    /// All that was being sent is written to its socket.
    pub(in crate::leader) fn written(&mut self) {
        if self.written <= self.acknowledged {
            self.progress = true;
        }
        self.written = self.sent;
    }

    /// What it has of a file is not what it should be, from here on; see [`FollowerHandle::void`](super::follower::FollowerHandle::void) ...
    pub(in crate::leader) fn void(&mut self, path: &RelPath, from: u64, noticed: u64) {
        self.voided.insert(path.clone(), noticed);
        self.void_from = Some(self.void_from.map_or(from, |before| before.min(from)));
    }

    /// ... until it has all up to `until`, which the file was announced in after `since`. What was noticed later may be of that very announcement.
    pub(in crate::leader) fn mended(&mut self, path: &RelPath, since: u64, until: u64) {
        if self.voided.get(path).is_none_or(|noticed| *noticed <= since) {
            self.voided.remove(path);
        }
        if let Some(from) = self.void_from.take_if(|_| self.voided.is_empty()) {
            self.holds.push(Hold { from, until });
        }
    }

    /// Whether it has written all of a hold, and has to be asked to make that durable: all that it was asked before was of less.
    pub(in crate::leader) fn is_to_flush(&self) -> bool {
        let written = self.reached.map_or(0, |reached| reached.written);
        let is_over = |hold: &Hold| written >= hold.until && self.outlasts(hold);
        let last_asked = self.durable_points.back().map(|&(_, position)| position).or(self.durable);
        self.holds.iter().any(|hold| is_over(hold) && last_asked.is_some_and(|asked| asked < hold.until))
    }

    /// Whether what it makes durable before it has all of a hold, and says only then, would count for more than it has.
    fn outlasts(&self, hold: &Hold) -> bool {
        let is_within = |position: u64| (hold.from + 1..hold.until).contains(&position);
        self.durable.is_some_and(is_within) || self.durable_points.iter().any(|&(_, position)| is_within(position))
    }

    // ---- acknowledging ----

    /// It has dealt with so many more bytes.
    pub(in crate::leader) fn acknowledge(&mut self, bytes: u64, now: Instant) -> Result<(), ProtocolError> {
        let acknowledged = self.acknowledged.saturating_add(bytes);
        if acknowledged > self.sent {
            return Err(ProtocolError::AckedTooMuch { acknowledged, sent: self.sent });
        }
        self.acknowledged = acknowledged;
        self.progress = true;
        self.progress_at = now;
        let mut position = None;
        while self.pieces.front().is_some_and(|piece| piece.sent_after <= acknowledged) {
            position = self.pieces.pop_front().and_then(|piece| piece.position).or(position);
            self.received = self.received.saturating_sub(1);
        }
        self.passed(position, position);
        Ok(())
    }

    /// It has received so many bytes in all.
    pub(in crate::leader) fn received(&mut self, bytes: u64) -> Result<(), ProtocolError> {
        if bytes > self.sent {
            return Err(ProtocolError::AckedTooMuch { acknowledged: bytes, sent: self.sent });
        }
        let mut position = None;
        while let Some(piece) = self.pieces.get(self.received).filter(|piece| piece.sent_after <= bytes) {
            position = piece.position.or(position);
            self.received += 1;
        }
        self.passed(position, None);
        Ok(())
    }

    /// What those batches count for that it has acknowledged since the last call.
    pub(in crate::leader) fn take_acknowledged(&mut self) -> u64 {
        let written = self.position();
        let mut counted = 0;
        while let Some(&(end, counts)) = self.batches.front()
            && Some(end) <= written
        {
            self.batches.pop_front();
            counted += counts;
        }
        counted
    }

    /// So many bytes in all are durable.
    pub(in crate::leader) fn durable(&mut self, bytes: u64) {
        while let Some(&(sent, position)) = self.durable_points.front()
            && sent <= bytes
        {
            self.durable_points.pop_front();
            self.durable = Some(position);
        }
    }

    fn passed(&mut self, received: Option<u64>, written: Option<u64>) {
        if !self.attached {
            return;
        }
        if let Some(written) = written {
            let received = self.reached.map_or(written, |reached| reached.received.max(written));
            self.reached = Some(Reached { received, written });
        }
        if let (Some(reached), Some(received)) = (&mut self.reached, received) {
            reached.received = reached.received.max(received);
        }
        let written = self.reached.map_or(0, |reached| reached.written);
        let mut holds = std::mem::take(&mut self.holds);
        holds.retain(|hold| written < hold.until || self.outlasts(hold));
        self.holds = holds;
    }

    // ---- looking ----

    /// The position up to which it has acknowledged everything since it attached; `None` until it has up to there.
    pub(in crate::leader) fn position(&self) -> Option<u64> {
        self.reached.map(|reached| reached.written)
    }

    /// The last position up to which it was asked to make everything durable, and has.
    pub(in crate::leader) fn durable_position(&self) -> Option<u64> {
        self.durable
    }

    /// What of the stream it has that counts; `None` until it has everything up to where it attached.
    pub(in crate::leader) fn has(&self) -> Option<(Ticket, Has)> {
        let reached = self.reached?;
        let durable = match self.v1_acks {
            Some(Durability::Durable) => reached.written,
            _ => self.durable.unwrap_or(0),
        };
        let received = if self.v1_acks == Some(Durability::Received) { reached.written } else { reached.received };
        let written = if self.v1_acks == Some(Durability::Received) { 0 } else { reached.written };
        // What is durable is written: only the request to make it so may not be acknowledged yet.
        let written = written.max(durable);
        let received = received.max(written);
        let held = |mark: u64| {
            let holds = self.holds.iter().filter(|hold| mark < hold.until).map(|hold| hold.from);
            holds.chain(self.void_from).fold(mark, u64::min)
        };
        let flushed = self.v1_acks.is_some() || self.durable.is_some();
        Some((self.ticket, Has { received: held(received), written: held(written), durable: held(durable), flushed }))
    }

    /// Whether something is void of what it had to have when it attached.
    pub(in crate::leader) fn lacks_from_before(&self) -> bool {
        let written = self.reached.map_or(0, |reached| reached.written);
        self.void_from == Some(0) || self.holds.iter().any(|hold| hold.from == 0 && written < hold.until)
    }

    /// Whether what it was sent, up to this position of the stream, makes up for all that was void of what it had to have when it
    /// attached.
    pub(in crate::leader) fn is_whole_at(&self, sent: u64) -> bool {
        self.void_from != Some(0) && self.holds.iter().all(|hold| hold.from > 0 || hold.until <= sent)
    }

    /// Its way to the stream.
    pub(in crate::leader) fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// For how long the oldest piece has been on its way.
    pub(in crate::leader) fn oldest(&self) -> Option<Instant> {
        self.pieces.front().map(|piece| piece.since)
    }

    /// Whether it has left something wholly written unacknowledged, and acknowledged nothing since the last call.
    pub(in crate::leader) fn is_stuck(&mut self) -> bool {
        let outstanding = self.acknowledged < self.written;
        !std::mem::replace(&mut self.progress, false) && outstanding
    }

    /// For how long it has acknowledged nothing of what it was sent; zero if there is nothing.
    pub(in crate::leader) fn silent_for(&self) -> Duration {
        if self.acknowledged == self.sent { Duration::ZERO } else { self.progress_at.elapsed() }
    }
}

#[cfg(test)]
mod tests;
