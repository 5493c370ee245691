//! The bound on connections that have not authenticated.

use std::collections::VecDeque;

use crate::seldom::Seldom;
use crate::sys::net::{Shutdown, TcpStream};
use crate::sys::sync::Mutex;

/// Connections that have not authenticated, the oldest first.
#[derive(Default)]
pub(in crate::leader) struct Unauthenticated {
    closed: Seldom,
    connections: Mutex<(u64, VecDeque<(u64, TcpStream)>)>,
}

impl Unauthenticated {
    /// Adds one; beyond `most`, the oldest is closed.
    pub(in crate::leader) fn add(&self, socket: TcpStream, most: usize) -> u64 {
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

    pub(in crate::leader) fn remove(&self, key: u64) {
        let mut connections = self.connections.lock();
        if let Some(at) = connections.1.iter().position(|(found, _)| *found == key) {
            let removed = connections.1.remove(at);
            drop(connections);
            drop(removed);
        }
    }

    pub(in crate::leader) fn close_all(&self) {
        let all = std::mem::take(&mut self.connections.lock().1);
        for (_, socket) in all {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}
