//! Waiting for the place of another connection with the same id.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::leader::core::Core;
use crate::sys::net::{SocketAddr, TcpStream};
use crate::sys::thread;
use crate::sys::time::Instant;
use crate::types::NodeId;

/// How often who waits looks whether its way is free.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Waits until this connection may take the place of the one that is here with its id. `false`: it went, another one came, or the
/// leader shuts down.
pub(in crate::leader) fn may_take_the_place(core: &Core, id: NodeId, address: SocketAddr, socket: &TcpStream) -> bool {
    let here = || core.followers.lock().iter().find(|other| other.id == id && !other.has_ended()).cloned();
    let Some(other) = here() else { return true };
    let now = Instant::now();
    let Some((wait, ticket, is_due)) = core.clashes.begin(id, now) else { return true };
    if is_due {
        log::error!(
            "two followers have the id {id}, at {} and at {address}: give each its own (of a directory that was copied, delete \
             .clustering_id in the copy); the newer one waits",
            other.address
        );
    }
    while now.elapsed() < wait && here().is_some() {
        if core.stopping.load(Ordering::SeqCst) || !core.clashes.is_latest(id, ticket) || has_closed(socket) {
            return false;
        }
    }
    true
}

/// Blocks for [`LOOK_EVERY`], unless the peer has closed the connection.
fn has_closed(socket: &TcpStream) -> bool {
    if socket.set_read_timeout(Some(LOOK_EVERY)).is_err() {
        return true;
    }
    match socket.peek(&mut [0]) {
        Ok(0) => true,
        Ok(_) => {
            thread::park_timeout(LOOK_EVERY);
            false
        }
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted),
    }
}
