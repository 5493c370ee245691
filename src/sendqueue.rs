//! What a socket has sent and the peer's system has not taken yet: it tells a peer that is stuck from a network that is.

#[cfg(feature = "simulate")]
pub(crate) use crate::sys::net::send_queue_bytes;
#[cfg(not(feature = "simulate"))]
use crate::sys::{fs, net::TcpStream, rustix};

/// Bytes in the socket's send queue that the peer's system has not acknowledged, as Linux shows them in `/proc`; `None`
/// where it does not.
///
/// Looked up only when a peer is suspected of being stuck: a slow link empties the queue while it lasts, a dead peer does
/// not. Reads a table of all connections.
#[cfg(not(feature = "simulate"))]
pub(crate) fn send_queue_bytes(socket: &TcpStream) -> Option<u64> {
    let inode = rustix::fs::fstat(socket).ok()?.st_ino;
    let table = if socket.local_addr().ok()?.is_ipv4() { "tcp" } else { "tcp6" };
    queued(&fs::read_to_string(format!("/proc/self/net/{table}")).ok()?, inode)
}

#[cfg(any(not(feature = "simulate"), feature = "fuzzing"))]
pub(crate) fn queued(table: &str, inode: u64) -> Option<u64> {
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
    use std::io::Write;
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
