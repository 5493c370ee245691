//! A follower's socket as its writer thread sees it: blocking writes that give up without progress.

use std::io::{self, ErrorKind, IoSlice, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::sys::net::TcpStream;

use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::stalls::{Grace, TICKS, tick};
use crate::leader::peers::status::EvictionReason;
use crate::leader::stream::Stream;
pub(in crate::leader) use crate::sendqueue::send_queue_bytes;

/// Writes to the socket; evicts the follower when it takes nothing for the limit.
///
/// Each call takes all that it is given, which is whole blocks: between two calls a heartbeat may be written (`beats.rs`).
///
/// The kernel's send timeout is a fraction of the limit, and ticks without progress are counted: a leader that was itself
/// stopped for longer than the limit finds one tick gone, not all of them.
///
/// The kernel lets a blocked write go on only once a third of its buffer is free, which takes a slow peer many seconds where
/// the buffer has grown to megabytes: a send queue that has become shorter is progress, too.
pub(in crate::leader) struct SocketWriter {
    socket: TcpStream,
    follower: Arc<FollowerHandle>,
    stream: Arc<Stream>,
    reason: EvictionReason,
    limit: Duration,
    grace: Grace,
}

impl SocketWriter {
    pub(in crate::leader) fn new(
        socket: TcpStream,
        follower: Arc<FollowerHandle>,
        stream: Arc<Stream>,
        limit: Duration,
        reason: EvictionReason,
    ) -> io::Result<Self> {
        let grace = Grace::default();
        let mut writer = Self { socket, follower, stream, reason: reason.clone(), limit, grace };
        writer.set_limit(limit, reason)?;
        Ok(writer)
    }

    /// From now on, no progress for `limit` is a reason to evict.
    pub(in crate::leader) fn set_limit(&mut self, limit: Duration, reason: EvictionReason) -> io::Result<()> {
        self.reason = reason;
        self.limit = limit;
        self.socket.set_write_timeout(Some(tick(limit)))
    }

    /// Calls `write` until it has written something.
    fn write_once(&mut self, mut write: impl FnMut(&mut TcpStream) -> io::Result<usize>) -> io::Result<usize> {
        let mut stalled = 0;
        let mut send_queue = None;
        loop {
            if self.follower.has_ended() {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            match write(&mut self.socket) {
                Ok(written) => {
                    self.grace.moved();
                    self.follower.sent_bytes.fetch_add(written as u64, Ordering::Relaxed);
                    return Ok(written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    stalled += 1;
                    let queued = send_queue_bytes(&self.socket);
                    let moves = matches!((queued, send_queue), (Some(now), Some(before)) if now < before);
                    if moves || self.grace.begins_anew(&self.stream.stalls) {
                        stalled = 1;
                    }
                    send_queue = queued;
                    if stalled < TICKS {
                        continue;
                    }
                    let all_late = || self.stream.all_are_late(&self.follower, self.limit);
                    if self.reason == EvictionReason::WriteTimeout && self.grace.take(all_late) {
                        stalled = 0;
                    } else {
                        self.follower.evict_at(self.reason.clone(), self.stream.position());
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl SocketWriter {
    /// After an error the turn is nobody's any more: the frame is torn.
    fn write_whole(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let follower = self.follower.clone();
        let turn = follower.turn.take();
        let mut written = self.write_once(|socket| socket.write_vectored(slices))?;
        for slice in slices {
            let mut rest = &slice[written.min(slice.len())..];
            written = written.saturating_sub(slice.len());
            while !rest.is_empty() {
                let some = self.write_once(|socket| socket.write(rest))?;
                rest = &rest[some..];
            }
        }
        turn.written();
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }
}

impl Write for SocketWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_whole(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write_whole(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
