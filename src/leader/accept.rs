//! The accept thread, and the bound on connections that have not authenticated.
//!
//! One thread a listener. Each connection gets a thread of its own at once, so a silent one delays nobody; there are at
//! most `unauthenticated_max` of these, and one more closes the oldest. It stops when the listener is shut down.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use socket2::SockRef;

use super::Core;
use super::connection::serve;

/// Connections that have not authenticated, the oldest first.
#[derive(Default)]
pub(super) struct Unauthenticated {
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
            log::warn!("more than {most} connections have not authenticated: closing the oldest");
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
    loop {
        let accepted = listener.accept();
        if core.stopping.load(Ordering::SeqCst) {
            return;
        }
        let started = accepted.and_then(|(socket, address)| {
            let key = core.unauthenticated.add(socket.try_clone()?, core.config.unauthenticated_max);
            // A shutdown that began since the look above may not have found it there.
            if core.stopping.load(Ordering::SeqCst) {
                core.unauthenticated.close_all();
            }
            let connection = core.clone();
            let spawned = core.threads.spawn("follower", move || serve(&connection, socket, address, key));
            if spawned.is_err() {
                core.unauthenticated.remove(key);
            }
            spawned
        });
        if let Err(error) = started {
            log::error!("cannot accept a follower: {error}; trying again");
            std::thread::park_timeout(RETRY);
        }
    }
}
