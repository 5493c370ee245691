//! A follower's ack thread: reads everything it sends, the requests of a full sync and then acknowledgements.
//!
//! It reads at all times, because followers up to LavinMQ 2.8.1 send requests while they still read the list: were nobody
//! reading, both sides would block on full buffers. What it hands to the writer thread is bounded by the list: each file
//! may be asked for once a round, and nothing else.
//!
//! It ends with the connection: a read returns once the socket is shut down, and whatever it hands over fails once the
//! writer thread has gone. It holds no lock while reading.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::Core;
use super::follower::FollowerHandle;
use super::socket::{TICKS, send_queue_bytes, tick};
use super::status::EvictionReason;
use crate::index::Version;
use crate::protocol::{ProtocolError, read_name};
use crate::types::RelPath;

/// What a round of a full sync offers.
pub(super) struct Offer {
    pub(super) files: Vec<(RelPath, Version)>,
    by_path: HashMap<RelPath, u32, foldhash::fast::RandomState>,
}

impl Offer {
    pub(super) fn new(files: Vec<(RelPath, Version)>) -> Self {
        let by_path = files.iter().zip(0..).map(|((path, _), at)| (path.clone(), at)).collect();
        Self { files, by_path }
    }

    pub(super) fn contains(&self, path: &RelPath) -> bool {
        self.by_path.contains_key(path)
    }
}

/// The writer thread's side of a full sync's rounds.
pub(super) struct Rounds {
    pub(super) offers: Sender<Arc<Offer>>,
    /// Indices into the offer's files; `None` ends the round.
    pub(super) requests: Receiver<Option<u32>>,
}

pub(super) struct AckThread {
    core: Arc<Core>,
    follower: Arc<FollowerHandle>,
    socket: TcpStream,
    offers: Receiver<Arc<Offer>>,
    requests: Sender<Option<u32>>,
}

impl AckThread {
    pub(super) fn new(core: &Arc<Core>, follower: &Arc<FollowerHandle>, socket: TcpStream) -> (Self, Rounds) {
        let (offers, offers_in) = crossbeam_channel::bounded(1);
        // Not bounded by the channel but by what may be requested: see the module's documentation.
        let (requests_out, requests) = crossbeam_channel::unbounded();
        let this =
            Self { core: core.clone(), follower: follower.clone(), socket, offers: offers_in, requests: requests_out };
        (this, Rounds { offers, requests })
    }

    pub(super) fn run(self) {
        let ended = self.read_all();
        let stream = &self.core.stream;
        match ended {
            Ok(()) => {}
            Err(ProtocolError::Io(error)) if error.kind() == ErrorKind::UnexpectedEof => {
                self.follower.disconnected("it closed the connection");
            }
            Err(ProtocolError::Io(error)) => self.follower.disconnected(error.to_string()),
            Err(violation) => {
                let reason = EvictionReason::ProtocolViolation(violation.to_string());
                self.follower.evict_at(reason, stream.position());
            }
        }
        stream.detach(&self.follower);
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

    /// Reads acknowledgements, `partial` first. Once the follower is in sync, watches that they come.
    fn read_acks(&self, mut partial: Vec<u8>) -> Result<(), ProtocolError> {
        let limit = self.core.config.ack_timeout;
        self.socket.set_read_timeout(Some(tick(limit)))?;
        let mut watch = Watch { stuck_ticks: 0, send_queue: None };
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
            if bytes > 0 && self.follower.acknowledge(bytes)?.is_some() {
                self.core.progress.acknowledged(self.follower.position());
            }
            match (&self.socket).read(&mut buffer) {
                Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(length) => partial.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if watch.is_overdue(&self.follower, &self.socket) {
                        self.follower.evict_at(EvictionReason::NoAckProgress, self.core.stream.position());
                        return Ok(());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Tells a follower that stands still from one behind a slow link.
struct Watch {
    stuck_ticks: u32,
    send_queue: Option<u64>,
}

impl Watch {
    /// Called once a tick in which nothing was acknowledged.
    fn is_overdue(&mut self, follower: &FollowerHandle, socket: &TcpStream) -> bool {
        if !follower.is_stuck() || follower.position().is_none() {
            *self = Self { stuck_ticks: 0, send_queue: None };
            return false;
        }
        let queued = send_queue_bytes(socket);
        if matches!((queued, self.send_queue), (Some(now), Some(before)) if now < before) {
            self.stuck_ticks = 0;
        }
        self.send_queue = queued;
        self.stuck_ticks += 1;
        self.stuck_ticks >= TICKS
    }
}
