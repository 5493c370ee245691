//! A follower's socket as its writer thread sees it: blocking writes that give up without progress.

use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::follower::FollowerHandle;
use super::status::EvictionReason;
use super::stream::Stream;

/// Writes to the socket; evicts the follower when it takes nothing for the limit.
///
/// The kernel's send timeout is a fraction of the limit, and ticks without progress are counted: a leader that was itself
/// stopped for longer than the limit finds one tick gone, not all of them.
///
/// The kernel lets a blocked write go on only once a third of its buffer is free, which takes a slow peer many seconds where
/// the buffer has grown to megabytes: a send queue that has become shorter is progress, too.
pub(super) struct SocketWriter {
    socket: TcpStream,
    follower: Arc<FollowerHandle>,
    stream: Arc<Stream>,
    reason: EvictionReason,
}

/// Ticks without progress until the limit is reached.
pub(super) const TICKS: u32 = 4;

impl SocketWriter {
    pub(super) fn new(
        socket: TcpStream,
        follower: Arc<FollowerHandle>,
        stream: Arc<Stream>,
        limit: Duration,
        reason: EvictionReason,
    ) -> io::Result<Self> {
        let mut writer = Self { socket, follower, stream, reason: EvictionReason::WriteTimeout };
        writer.set_limit(limit, reason)?;
        Ok(writer)
    }

    /// From now on, no progress for `limit` is a reason to evict.
    pub(super) fn set_limit(&mut self, limit: Duration, reason: EvictionReason) -> io::Result<()> {
        self.reason = reason;
        self.socket.set_write_timeout(Some(tick(limit)))
    }
}

/// A fraction of the limit that the kernel takes for a timeout (zero would be none).
pub(super) fn tick(limit: Duration) -> Duration {
    (limit / TICKS).max(Duration::from_millis(1))
}

impl Write for SocketWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stalled = 0;
        let mut send_queue = None;
        loop {
            if self.follower.has_ended() {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            match self.socket.write(bytes) {
                Ok(written) => {
                    self.follower.sent_bytes.fetch_add(written as u64, Ordering::Relaxed);
                    return Ok(written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    stalled += 1;
                    let queued = send_queue_bytes(&self.socket);
                    if matches!((queued, send_queue), (Some(now), Some(before)) if now < before) {
                        stalled = 1;
                    }
                    send_queue = queued;
                    if stalled == TICKS {
                        self.follower.evict_at(self.reason.clone(), self.stream.position());
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes in the socket's send queue that the peer's system has not taken yet, as Linux shows them in `/proc`; `None` where
/// it does not.
///
/// Looked up only when a follower is suspected of being stuck: a slow link empties the queue while it lasts, a dead
/// peer does not.
pub(super) fn send_queue_bytes(socket: &TcpStream) -> Option<u64> {
    let inode = rustix::fs::fstat(socket).ok()?.st_ino;
    let table = if socket.local_addr().ok()?.is_ipv4() { "tcp" } else { "tcp6" };
    let table = std::fs::read_to_string(format!("/proc/self/net/{table}")).ok()?;
    table.lines().skip(1).find_map(|line| {
        // sl local remote st tx:rx tr:when retrnsmt uid timeout inode …
        let mut fields = line.split_whitespace();
        let queues = fields.nth(4)?;
        let found: u64 = fields.nth(4)?.parse().ok()?;
        (found == inode).then(|| u64::from_str_radix(queues.split_once(':')?.0, 16).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn the_send_queue_shows_what_the_peer_has_not_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _far = listener.accept().unwrap();
        assert_eq!(send_queue_bytes(&near), Some(0));
        near.set_nonblocking(true).unwrap();
        while near.write(&[0; 65536]).is_ok() {}
        assert!(send_queue_bytes(&near).unwrap() > 0);
    }
}
