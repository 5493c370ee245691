//! A follower's ack thread: reads everything it sends, the requests of a full sync and then acknowledgements.
//!
//! It reads at all times, because followers up to LavinMQ 2.8.1 send requests while they still read the list: were nobody
//! reading, both sides would block on full buffers. What it hands to the writer thread is bounded by the list: each file
//! may be asked for once a round, and nothing else.
//!
//! It ends with the connection: a read returns once the socket is shut down, and whatever it hands over fails once the
//! writer thread has gone. It holds no lock while reading.

use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use std::time::Duration;

use crate::config::LeaderConfig;
use crate::index::Version;
use crate::leader::core::Core;
use crate::leader::link::socket::send_queue_bytes;
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::stalls::{Grace, tick};
use crate::leader::peers::status::{EvictionReason, FollowerState};
use crate::leader::stream::Stream;
use crate::protocol::{ProtocolError, read_name};
use crate::sys::channel::{self, Receiver, Sender};
use crate::sys::hash::HashMap;
use crate::sys::net::TcpStream;
use crate::sys::time::Instant;
use crate::types::RelPath;

/// What a round of a full sync offers.
pub(in crate::leader) struct Offer {
    pub(in crate::leader) files: Vec<(RelPath, Version)>,
    by_path: HashMap<RelPath, u32>,
}

impl Offer {
    pub(in crate::leader) fn new(files: Vec<(RelPath, Version)>) -> Self {
        let by_path = files.iter().zip(0..).map(|((path, _), at)| (path.clone(), at)).collect();
        Self { files, by_path }
    }

    pub(in crate::leader) fn contains(&self, path: &RelPath) -> bool {
        self.by_path.contains_key(path)
    }
}

/// The writer thread's side of a full sync's rounds.
pub(in crate::leader) struct Rounds {
    pub(in crate::leader) offers: Sender<Arc<Offer>>,
    /// Indices into the offer's files; `None` ends the round.
    pub(in crate::leader) requests: Receiver<Option<u32>>,
}

pub(in crate::leader) struct AckThread {
    core: Arc<Core>,
    follower: Arc<FollowerHandle>,
    socket: TcpStream,
    offers: Receiver<Arc<Offer>>,
    requests: Sender<Option<u32>>,
}

impl AckThread {
    pub(in crate::leader) fn new(
        core: &Arc<Core>,
        follower: &Arc<FollowerHandle>,
        socket: TcpStream,
    ) -> (Self, Rounds) {
        let (offers, offers_in) = channel::bounded(1);
        // Not bounded by the channel but by what may be requested: see the module's documentation.
        let (requests_out, requests) = channel::unbounded();
        let this =
            Self { core: core.clone(), follower: follower.clone(), socket, offers: offers_in, requests: requests_out };
        (this, Rounds { offers, requests })
    }

    pub(in crate::leader) fn run(self) {
        let ended = self.read_all();
        connection_ended(&self.core, &self.follower, ended);
    }

    /// `Ok`: the writer thread has gone.
    fn read_all(&self) -> Result<(), ProtocolError> {
        self.socket.set_read_timeout(None)?;
        let mut reader = io::BufReader::with_capacity(8 << 10, &self.socket);
        // The rounds list the same cut; a client that is slow to ask holds up nobody but itself.
        while let Ok(offer) = self.offers.recv() {
            self.read_requests(&mut reader, &offer)?;
        }
        if self.follower.has_ended() {
            return Ok(());
        }
        let left = reader.buffer().to_vec();
        self.read_acks(left)
    }

    fn read_requests(&self, reader: &mut impl Read, offer: &Offer) -> Result<(), ProtocolError> {
        let mut requested = vec![false; offer.files.len()];
        while let Some(path) = read_name(reader)? {
            let at = offer.by_path.get(&path).copied();
            match at.and_then(|at| requested.get_mut(at as usize).map(|requested| (at, requested))) {
                Some((at, requested)) if !*requested => {
                    *requested = true;
                    let _ = self.requests.send(Some(at));
                }
                _ => return Err(ProtocolError::NotOffered(path.to_string())),
            }
        }
        let _ = self.requests.send(None);
        Ok(())
    }

    /// Reads acknowledgements, `partial` first. Once the follower is attached, watches that they come.
    fn read_acks(&self, mut partial: Vec<u8>) -> Result<(), ProtocolError> {
        let mut watch = Watch::new(&self.core.config, self.core.config.ack_timeout);
        self.socket.set_read_timeout(Some(watch.tick))?;
        let mut buffer = [0; 4096];
        loop {
            let mut bytes = 0_u64;
            let whole = partial.len() - partial.len() % 8;
            for ack in partial[..whole].as_chunks::<8>().0 {
                let ack = i64::from_le_bytes(*ack);
                let most = i64::MAX.unsigned_abs();
                let ack = u64::try_from(ack).map_err(|_| ProtocolError::Length {
                    what: "acknowledgement",
                    value: ack,
                    max: most,
                })?;
                bytes = bytes.saturating_add(ack);
            }
            partial.drain(..whole);
            if bytes > 0 {
                self.follower.acknowledge(bytes)?;
                self.core.passed(&self.follower);
            }
            match (&self.socket).read(&mut buffer) {
                Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(length) => partial.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => watch.is_due = true,
                Err(error) => return Err(error.into()),
            }
            if let Some(reason) = watch.overdue(&self.core.stream, &self.follower, &self.socket) {
                self.follower.evict_at(reason, self.core.stream.position());
                return Ok(());
            }
        }
    }
}

/// Notes how a connection ended, as seen by who reads from it.
pub(in crate::leader) fn connection_ended(
    core: &Core,
    follower: &Arc<FollowerHandle>,
    ended: Result<(), ProtocolError>,
) {
    match ended {
        Ok(()) => {}
        Err(ProtocolError::Io(error)) if error.kind() == ErrorKind::UnexpectedEof => {
            follower.disconnected("it closed the connection");
        }
        Err(ProtocolError::Io(error)) => follower.disconnected(error.to_string()),
        Err(violation) => {
            let reason = EvictionReason::ProtocolViolation(violation.to_string());
            follower.evict_at(reason, core.stream.position());
        }
    }
    core.stream.detach(follower);
    core.commits.ending();
}

/// Tells a follower that stands still from one behind a slow link.
pub(in crate::leader) struct Watch {
    pub(in crate::leader) tick: Duration,
    /// Ticks until a follower in sync, and one not yet in sync, is overdue.
    ack_ticks: u32,
    sync_ticks: u32,
    /// A tick has gone.
    pub(in crate::leader) is_due: bool,
    looked_at: Instant,
    stuck_ticks: u32,
    send_queue: Option<u64>,
    grace: Grace,
}

impl Watch {
    /// With ticks that are fine enough for `shortest`, too.
    pub(in crate::leader) fn new(config: &LeaderConfig, shortest: Duration) -> Self {
        let tick = tick(config.ack_timeout.min(config.sync_timeout).min(shortest));
        Self {
            tick,
            ack_ticks: ticks(config.ack_timeout, tick),
            sync_ticks: ticks(config.sync_timeout, tick),
            is_due: false,
            looked_at: Instant::now(),
            stuck_ticks: 0,
            send_queue: None,
            grace: Grace::default(),
        }
    }

    /// Ticks in `limit`.
    pub(in crate::leader) fn ticks(&self, limit: Duration) -> u32 {
        ticks(limit, self.tick)
    }

    /// Why the follower has to go, if it has. Looks once a tick, whatever was read meanwhile: bytes that acknowledge nothing
    /// are no progress.
    pub(in crate::leader) fn overdue(
        &mut self,
        stream: &Stream,
        follower: &FollowerHandle,
        socket: &TcpStream,
    ) -> Option<EvictionReason> {
        if !std::mem::take(&mut self.is_due) && self.looked_at.elapsed() < self.tick {
            return None;
        }
        self.looked_at = Instant::now();
        let (limit, reason) = match follower.state() {
            FollowerState::InSync => (self.ack_ticks, EvictionReason::NoAckProgress),
            // It catches up again, with what was sent.
            FollowerState::CatchingUp | FollowerState::Attached if follower.was_in_sync() => {
                (self.ack_ticks, EvictionReason::NoAckProgress)
            }
            // It has something to catch up with that was sent and not waited for.
            FollowerState::Attached => (self.sync_ticks, EvictionReason::NoSyncProgress),
            // Who joins it waits for its acknowledgements, and has a deadline.
            _ => return self.moves(),
        };
        if !follower.is_stuck() {
            return self.moves();
        }
        let queued = send_queue_bytes(socket);
        let moves = matches!((queued, self.send_queue), (Some(now), Some(before)) if now < before);
        if moves || self.grace.begins_anew(&stream.stalls) {
            self.stuck_ticks = 0;
        }
        self.send_queue = queued;
        self.stuck_ticks += 1;
        if self.stuck_ticks < limit {
            return None;
        }
        if self.grace.take(|| stream.all_are_late(follower, self.tick * limit)) {
            self.stuck_ticks = 0;
            return None;
        }
        Some(reason)
    }

    fn moves(&mut self) -> Option<EvictionReason> {
        self.grace.moved();
        self.stuck_ticks = 0;
        self.send_queue = None;
        None
    }
}

fn ticks(limit: Duration, tick: Duration) -> u32 {
    u32::try_from(limit.as_nanos().div_ceil(tick.as_nanos())).unwrap_or(u32::MAX)
}
