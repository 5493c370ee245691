//! The accept thread, and the bound on connections that have not authenticated.
//!
//! One thread a listener. Each connection gets a thread of its own at once, so a silent one delays nobody; there are at
//! most `unauthenticated_max` of these, and one more closes the oldest. One that would take one of the last file descriptors, which
//! followers and their syncs need, is closed, as is one that gets no thread. It stops when the listener is shut down.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::descriptors::{For, is_kept_for_others};
use crate::leader::core::Core;
use crate::leader::serve::connection::serve;
use crate::seldom::Seldom;
use crate::sys::fd::AsRawFd;
use crate::sys::net::{SocketAddr, TcpListener, TcpStream};
use crate::sys::thread;

/// The accept thread's life.
pub(in crate::leader) fn run(core: &Arc<Core>, listener: &TcpListener) {
    /// Accepting fails for want of file descriptors, mostly: they come back when something is closed.
    const RETRY: Duration = Duration::from_millis(100);
    let (not_accepted, refused) = (Seldom::default(), Seldom::default());
    loop {
        let accepted = listener.accept();
        if core.stopping.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((socket, address)) => {
                if let Err(error) = admit(core, socket, address)
                    && let Some(unsaid) = refused.is_due()
                {
                    log::error!("the connection from {address} was closed: {error}{unsaid}");
                }
            }
            Err(error) => {
                if let Some(unsaid) = not_accepted.is_due() {
                    log::error!("cannot accept a follower: {error}; trying again{unsaid}");
                }
                thread::park_timeout(RETRY);
            }
        }
    }
}

/// An error closes the connection.
fn admit(core: &Arc<Core>, socket: TcpStream, address: SocketAddr) -> io::Result<()> {
    let again = socket.try_clone()?;
    if is_kept_for_others(again.as_raw_fd(), For::Stranger) {
        let remedy = "raise the limit of open files (ulimit -n, LimitNOFILE=)";
        return Err(io::Error::other(format!("the other file descriptors are kept for replication; {remedy}")));
    }
    let key = core.unauthenticated.add(again, core.config.unauthenticated_max);
    // A shutdown that began since the look in `run` may not have found it there.
    if core.stopping.load(Ordering::SeqCst) {
        core.unauthenticated.close_all();
    }
    let connection = core.clone();
    let spawned = core.threads.spawn("follower", move || serve(&connection, socket, address, key));
    spawned.inspect_err(|_| core.unauthenticated.remove(key))
}
