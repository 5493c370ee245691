//! One connection's life on the leader's side, from its first byte to its last thread.
//!
//! ```text
//! accepted ─▶ handshake ─▶ registered ─▶ full sync ─▶ catch-up ─▶ attached: writes batches as they come
//!   (within one deadline)      │             (full_sync.rs, catch_up.rs)                       │
//!                              └─ starts the ack thread (acks.rs)            │
//!                                         any of them may end it ────────────┴─▶ cleaned up here
//! ```
//!
//! The thread that shakes hands becomes the follower's *writer thread*; it owns the writing side of the socket and starts
//! the *ack thread*, which owns the reading side. It ends when the connection does: `FollowerHandle`'s end flag is set and the
//! socket shut down by whoever finds a reason, which unblocks both threads; a writer waiting for batches is unblocked by
//! the channel, whose sender is dropped by whoever detaches the follower. It holds no lock while it writes or waits.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::TryRecvError;
use socket2::{SockRef, TcpKeepalive};

use super::Core;
use super::acks::AckThread;
use super::admission::in_background;
use super::batch::Body;
use super::catch_up::CatchUp;
use super::demotion::{Demotion, Discarded};
use super::follower::{End, FollowerHandle};
use super::full_sync::Joiner;
use super::ranges::Ranges;
use super::socket::SocketWriter;
use super::status::EvictionReason;
use super::stream::AttachedQueue;
use crate::error::Error;
use crate::protocol::{
    ACCEPTED, FRAME_HEADER, FrameWriter, ProtocolError, REFUSED, START_HEADER, read_node_id, read_secret,
    read_start_header,
};
use crate::types::NodeId;

/// What the stream of one follower is written to: batches go around the frame writer's buffer, already encoded.
pub(super) type Frame = FrameWriter<SocketWriter>;

/// Serves the connection until it ends.
pub(super) fn serve(core: &Arc<Core>, socket: TcpStream, address: SocketAddr, unauthenticated: u64) {
    let shaken = handshake(core, &socket);
    core.unauthenticated.remove(unauthenticated);
    let id = match shaken {
        Ok(id) => id,
        Err(error) => {
            log::warn!("refused connection from {address}: {error}");
            return;
        }
    };
    let follower = match socket.try_clone() {
        Ok(clone) => Arc::new(FollowerHandle::new(id, address, clone)),
        Err(error) => {
            log::error!("follower {id} at {address}: cannot clone its socket: {error}");
            return;
        }
    };
    core.register(&follower);
    if let Err(error) = follow(core, &follower, socket) {
        // Without effect where whoever shut the socket down has said why.
        match error {
            Error::Protocol(error) if !error.is_disconnect() => {
                follower.evict_at(EvictionReason::ProtocolViolation(error.to_string()), core.stream.position());
            }
            error => follower.disconnected(error.to_string()),
        }
    }
    core.stream.detach(&follower);
    match follower.end() {
        Some(End::Evicted(eviction)) => {
            log::warn!("{eviction}");
            core.history.push(eviction.clone());
        }
        Some(End::Disconnected(why)) => log::info!("follower {id} at {address} disconnected: {why}"),
        None => {}
    }
    core.unregister(&follower);
    core.progress.changed();
}

/// What a peer sends that is no follower, in one line.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}; answered with the header of protocol 1.0.0")]
    Header(ProtocolError),
    #[error("wrong secret")]
    Secret,
    #[error("it has the leader's own id {0}: give it another")]
    OwnId(NodeId),
    #[error("did not authenticate within {0:?}")]
    Deadline(Duration),
    #[error("the connection ended before it had authenticated")]
    Ended,
    #[error(transparent)]
    Protocol(ProtocolError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Blocks until `handshake_timeout` has passed, all in all.
fn handshake(core: &Core, socket: &TcpStream) -> Result<NodeId, Refusal> {
    let limit = core.config.handshake_timeout;
    let mut peer = WithDeadline { socket, deadline: Instant::now() + limit };
    let timed_out = |error| match error {
        ProtocolError::Io(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Refusal::Deadline(limit)
        }
        ProtocolError::Io(error) if error.kind() == ErrorKind::UnexpectedEof => Refusal::Ended,
        error => Refusal::Protocol(error),
    };
    socket.set_write_timeout(Some(limit))?;
    socket.set_nodelay(true)?;
    match read_start_header(&mut peer) {
        Ok(()) => {}
        Err(error @ ProtocolError::StartHeader(_)) => {
            answer_and_close(&mut peer, &START_HEADER);
            return Err(Refusal::Header(error));
        }
        Err(error) => return Err(timed_out(error)),
    }
    let refusal = match read_secret(&mut peer) {
        Ok(secret) if core.config.secret.matches(&secret) => None,
        Ok(_) => Some(Refusal::Secret),
        Err(error @ ProtocolError::EmptySecret) => Some(Refusal::Protocol(error)),
        Err(error) => return Err(timed_out(error)),
    };
    if let Some(refusal) = refusal {
        answer_and_close(&mut peer, &[REFUSED]);
        return Err(refusal);
    }
    peer.socket.write_all(&[ACCEPTED])?;
    let id = read_node_id(&mut peer).map_err(timed_out)?;
    if id == core.dir.id() {
        return Err(Refusal::OwnId(id));
    }
    Ok(id)
}

/// Closing with bytes unread would reset the connection, and the peer might never see the answer: reads them first, for
/// a moment, if the peer does not close itself.
fn answer_and_close(peer: &mut WithDeadline<'_>, answer: &[u8]) {
    const UNREAD_BYTES_MAX: u64 = 4096;
    const UNREAD_FOR_MAX: Duration = Duration::from_millis(500);
    peer.deadline = peer.deadline.min(Instant::now() + UNREAD_FOR_MAX);
    if peer.socket.write_all(answer).and_then(|()| peer.socket.shutdown(Shutdown::Write)).is_ok() {
        let _ = io::copy(&mut peer.take(UNREAD_BYTES_MAX), &mut io::sink());
    }
}

struct WithDeadline<'a> {
    socket: &'a TcpStream,
    deadline: Instant,
}

impl Read for WithDeadline<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        self.socket.read(buffer)
    }
}

/// From the handshake to the end of the connection.
fn follow(core: &Arc<Core>, follower: &Arc<FollowerHandle>, socket: TcpStream) -> Result<(), Error> {
    let broken = |error: io::Error| Error::connection("with a follower", error);
    // A dead peer that owes nothing is noticed by the system.
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    SockRef::from(&socket).set_tcp_keepalive(&keepalive).map_err(broken)?;
    let reading = socket.try_clone().map_err(broken)?;
    let (acks, requests) = AckThread::new(core, follower, reading);
    core.threads.spawn(format!("ack-{}", follower.id), move || acks.run()).map_err(broken)?;

    let limit = core.config.sync_timeout;
    let reason = EvictionReason::NoSyncProgress;
    let mut writer = SocketWriter::new(socket, follower.clone(), core.stream.clone(), limit, reason).map_err(broken)?;
    writer.write_all(&FRAME_HEADER).map_err(broken)?;
    let mut frame = Frame::new(writer);
    let (mut frame, mut caught_up) = in_background(core, follower, move |core, follower| {
        let caught_up = Joiner::new(core, follower, &mut frame, requests).join()?;
        Ok((frame, caught_up))
    })?;
    loop {
        let queue = caught_up.finish(core, follower, &mut frame)?;
        frame.get_mut().set_limit(core.config.write_timeout, EvictionReason::WriteTimeout).map_err(broken)?;
        let Some(demotion) = write_batches(core, follower, &mut frame, &queue)? else { return Ok(()) };
        drop(queue);
        (frame, caught_up) = in_background(core, follower, move |core, follower| {
            let caught_up = CatchUp::after_demotion(core, follower, &mut frame, demotion)?;
            Ok((frame, caught_up))
        })?;
    }
}

/// Writes batches until the channel ends, which is when the follower is detached. Returns how it goes on, if it was only
/// demoted.
fn write_batches(
    core: &Arc<Core>,
    follower: &FollowerHandle,
    frame: &mut Frame,
    queue: &AttachedQueue,
) -> Result<Option<Demotion>, Error> {
    let broken = |error: io::Error| Error::connection("writing to a follower", error);
    let mut scratch = Vec::new();
    let mut ranges = Ranges::new(core, follower);
    let mut discarded = Discarded::default();
    loop {
        let batch = match queue.batches.try_recv() {
            Ok(batch) => batch,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                core.stream.now_hungry();
                let Ok(batch) = queue.batches.recv() else { break };
                batch
            }
        };
        // Not before the batch is taken: see `demotion.rs`.
        if follower.is_demoted() {
            discarded.add(&batch);
            follower.queue.remove(batch.cost());
            continue;
        }
        match &batch.body {
            Body::Actions(actions) => {
                let end = crate::types::StreamPosition(batch.end);
                follower.sending(actions.len(), Some(end), batch.sealed_at);
                frame.get_mut().write_all(actions.blocks(&mut scratch)).map_err(broken)?;
                follower.written();
            }
            Body::File(range) => ranges.send_queued(frame, range, &batch)?,
        }
        follower.queue.remove(batch.cost());
    }
    Ok(queue.demotions.recv().ok().map(|mut demotion| {
        demotion.discarded.merge(discarded);
        demotion
    }))
}
