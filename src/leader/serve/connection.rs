//! One connection's life on the leader's side, from its first byte to its last thread.
//!
//! ```text
//! accepted ─▶ handshake ─▶ registered ─▶ door ─▶ full sync or resume ─▶ catch-up ─▶ attached: writes batches as they come
//!          (handshake.rs,      │        (full_sync.rs, resume.rs)  ▲  (catch_up.rs)     │             │
//!           one deadline)      └─ starts the ack thread            └──── demoted ───────┘             │
//!                                 (acks.rs, messages.rs)   any of them may end it ─────▶ cleaned up here
//! ```
//!
//! The thread that shakes hands becomes the follower's *writer thread*; it owns the writing side of the socket and starts
//! the *ack thread*, which owns the reading side. It ends when the connection does: `FollowerHandle`'s end flag is set and the
//! socket shut down by whoever finds a reason, which unblocks both threads; a writer waiting for batches is unblocked by
//! the channel, whose sender is dropped by whoever detaches the follower. It holds no lock while it writes or waits.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use super::door::wait_at_door;
use super::place::may_take_the_place;
use crate::error::Error;
use crate::leader::batch::Body;
use crate::leader::core::Core;
use crate::leader::link::acks::AckThread;
use crate::leader::link::frame::Frame;
use crate::leader::link::messages::MessageThread;
use crate::leader::link::socket::SocketWriter;
use crate::leader::peers::follower::{End, FollowerHandle};
use crate::leader::peers::status::EvictionReason;
use crate::leader::serve::handshake::{Shaken, shake};
use crate::leader::stream::AttachedQueue;
use crate::leader::sync::full_sync::Joiner;
use crate::leader::sync::ranges::Ranges;
use crate::leader::sync::resume::Resumer;
use crate::protocol::FRAME_HEADER;
use crate::sys::channel::{Select, TryRecvError};
use crate::sys::net::{SocketAddr, TcpStream};
use crate::sys::socket2::{SockRef, TcpKeepalive};
use crate::types::StreamPosition;

/// How long a follower may take to read that we shut down.
const GOODBYE_READ_MAX: Duration = Duration::from_millis(500);

/// Serves the connection until it ends.
pub(in crate::leader) fn serve(core: &Arc<Core>, socket: TcpStream, address: SocketAddr, unauthenticated: u64) {
    let shaken = shake(core, &socket);
    core.unauthenticated.remove(unauthenticated);
    let Shaken { id, extension } = match shaken {
        Ok(shaken) => shaken,
        Err(error) => {
            let level = if error.is_known() { log::Level::Debug } else { log::Level::Warn };
            log::log!(level, "refused connection from {address}: {error}");
            return;
        }
    };
    let follower = match socket.try_clone() {
        Ok(clone) => {
            let v1_acks = (!extension).then_some(core.config.v1_acks);
            Arc::new(FollowerHandle::new(id, address, clone, v1_acks))
        }
        Err(error) => {
            log::error!("follower {id} at {address}: cannot clone its socket: {error}");
            return;
        }
    };
    if !may_take_the_place(core, id, address, &socket) {
        log::info!("connection from {address} is closed: another one with the id {id} is here");
        return;
    }
    core.register(&follower);
    if let Err(error) = follow(core, &follower, socket) {
        // Without effect where whoever shut the socket down has said why.
        match error {
            Error::Protocol(error) if !error.is_disconnect() => {
                follower.evict_at(EvictionReason::ProtocolViolation(error.to_string()), core.stream.position());
            }
            // Ours to put right: followers come back and fail again until it is.
            error @ Error::Io { .. } if !follower.has_ended() => {
                log::error!("cannot serve follower {id} at {address}: {error}");
                follower.disconnected("the leader cannot read its own files");
            }
            error => follower.disconnected(error.to_string()),
        }
    }
    follower.hang_up();
    core.stream.detach(&follower);
    match follower.end() {
        Some(End::Evicted(eviction)) => {
            let level = if eviction.reason.is_failure() { log::Level::Warn } else { log::Level::Info };
            log::log!(level, "{eviction}");
            core.history.push(eviction.clone());
        }
        Some(End::Disconnected(why)) => log::info!("follower {id} at {address} disconnected: {why}"),
        None => {}
    }
    core.commits.left(&follower, core.stream.end());
    core.unregister(&follower);
    core.progress.changed();
}

/// From the handshake to the end of the connection.
fn follow(core: &Arc<Core>, follower: &Arc<FollowerHandle>, socket: TcpStream) -> Result<(), Error> {
    let broken = |error: io::Error| Error::connection("with a follower", error);
    // A dead peer that owes nothing is noticed by the system.
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    SockRef::from(&socket).set_tcp_keepalive(&keepalive).map_err(broken)?;
    let reading = socket.try_clone().map_err(broken)?;
    let limit = core.config.sync_timeout;
    let reason = EvictionReason::NoSyncProgress;
    let mut writer = SocketWriter::new(socket, follower.clone(), core.stream.clone(), limit, reason).map_err(broken)?;
    writer.write_all(&FRAME_HEADER).map_err(broken)?;
    let mut frame = Frame::new(writer);
    let name = format!("ack-{}", follower.id);
    let mut reader_ended = None;
    let mut caught_up = if follower.extension {
        let (messages, answers) = MessageThread::new(core, follower, reading);
        core.threads.spawn(name, move || messages.run()).map_err(broken)?;
        wait_at_door(core, follower, &mut frame)?;
        Resumer::new(core, follower, &mut frame, reader_ended.insert(answers)).join()?
    } else {
        let (acks, requests) = AckThread::new(core, follower, reading);
        core.threads.spawn(name, move || acks.run()).map_err(broken)?;
        wait_at_door(core, follower, &mut frame)?;
        Joiner::new(core, follower, &mut frame, requests).join()?
    };
    loop {
        let queue = caught_up.finish(core, follower, &mut frame)?;
        frame.get_mut().set_limit(core.config.write_timeout, EvictionReason::WriteTimeout).map_err(broken)?;
        write_batches(core, follower, &mut frame, &queue)?;
        drop(queue.batches);
        let _ = queue.emptied.recv();
        let Some(answers) = reader_ended.as_ref().filter(|_| follower.is_demoted()) else { break };
        caught_up = Resumer::new(core, follower, &mut frame, answers).join()?;
    }
    if let Some(reader_ended) = reader_ended.filter(|_| !follower.has_ended()) {
        // Detached without an end: we shut down, and it has everything.
        Ranges::new(core, follower).goodbye(&mut frame, "the leader shuts down")?;
        follower.evict_gently(EvictionReason::Shutdown, core.stream.position());
        // It closes once it has read that; should we close first, with something of it unread, it might not get to read it.
        reader_ended.wait_for_end(GOODBYE_READ_MAX);
    }
    Ok(())
}

/// Writes batches until the channel ends, which is when the follower is detached or demoted.
fn write_batches(
    core: &Arc<Core>,
    follower: &FollowerHandle,
    frame: &mut Frame,
    queue: &AttachedQueue,
) -> Result<(), Error> {
    let broken = |error: io::Error| Error::connection("writing to a follower", error);
    let mut ranges = Ranges::new(core, follower);
    let mut arrival = Select::new();
    arrival.recv(&queue.batches);
    loop {
        let batch = match follower.take(&queue.batches) {
            Ok(batch) => {
                follower.taken(batch.end, core.stream.counts(&batch));
                batch
            }
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                core.stream.now_hungry();
                if arrival.ready_timeout(core.config.heartbeat_interval).is_err() {
                    ranges.beat(frame)?;
                }
                continue;
            }
        };
        ranges.beat(frame)?;
        let instead = batch.instead.as_ref().filter(|_| !follower.extension);
        match (&batch.body, instead) {
            (_, Some(instead)) => ranges.send_instead(frame, instead, &batch)?,
            (Body::Actions(actions), None) => match ranges.applicable(actions) {
                Some(some) => ranges.send_some(frame, &some, &batch)?,
                None => {
                    let end = StreamPosition(batch.end);
                    follower.sending(actions.len(), Some(end), batch.sealed_at);
                    let blocks = actions.blocks(frame.encoder(), &core.stream.buffers);
                    frame.get_mut().write_all(blocks).map_err(broken)?;
                    follower.written();
                }
            },
            (Body::File(range), None) => ranges.send_queued(frame, range, &batch)?,
            (Body::Control(control), None) => ranges.send_control(frame, control, &batch)?,
        }
        ranges.tell_whole(frame, StreamPosition(batch.end))?;
        follower.queue.remove(batch.cost());
    }
    Ok(())
}
