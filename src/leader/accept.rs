//! The accept thread, and the bound on connections that have not authenticated.
//!
//! One thread a listener. Each connection gets a thread of its own at once, so a silent one delays nobody; there are at
//! most `unauthenticated_max` of these, and one more closes the oldest. One that would take one of the last file descriptors, which
//! followers and their syncs need, is closed, as is one that gets no thread. It stops when the listener is shut down.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Core;
use super::connection::serve;
use crate::descriptors::{For, is_kept_for_others};
use crate::seldom::Seldom;
use crate::sys::fd::AsRawFd;
use crate::sys::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use crate::sys::socket2::SockRef;
use crate::sys::sync::Mutex;
use crate::sys::thread;

/// Connections that have not authenticated, the oldest first.
#[derive(Default)]
pub(super) struct Unauthenticated {
    closed: Seldom,
    connections: Mutex<(u64, VecDeque<(u64, TcpStream)>)>,
}

impl Unauthenticated {
    /// Adds one; beyond `most`, the oldest is closed.
    fn add(&self, socket: TcpStream, most: usize) -> u64 {
        let (key, oldest) = {
            let (last, connections) = &mut *self.connections.lock();
            *last += 1;
            connections.push_back((*last, socket));
            (*last, if connections.len() > most { connections.pop_front() } else { None })
        };
        if let Some((_, socket)) = oldest {
            if let Some(unsaid) = self.closed.is_due() {
                log::warn!("more than {most} connections have not authenticated: closing the oldest{unsaid}");
            }
            let _ = socket.shutdown(Shutdown::Both);
        }
        key
    }

    pub(super) fn remove(&self, key: u64) {
        let mut connections = self.connections.lock();
        if let Some(at) = connections.1.iter().position(|(found, _)| *found == key) {
            let removed = connections.1.remove(at);
            drop(connections);
            drop(removed);
        }
    }

    pub(super) fn close_all(&self) {
        let all = std::mem::take(&mut self.connections.lock().1);
        for (_, socket) in all {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Makes a blocked `accept` return; Linux does that when a listening socket is shut down.
pub(super) fn stop_listening(listener: &TcpListener) {
    let _ = SockRef::from(listener).shutdown(Shutdown::Both);
}

/// The accept thread's life.
pub(super) fn run(core: &Arc<Core>, listener: &TcpListener) {
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
