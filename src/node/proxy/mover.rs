//! A mover: one thread that moves the bytes of many connections, and waits for all of them at once with epoll.
//!
//! Its connections are its own, without a lock; new ones come through its [`Inbox`]. It stops when the proxy says so, and drops
//! connections of an earlier opening whenever it is woken.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use crate::sys::hash::HashMap;
use crate::sys::sync::Mutex;
use crate::sys::time::Instant;

use super::connection::{BUFFER_BYTES, Connection, Outcome, Which};
use super::{Shared, show_target};

/// How long connecting to the leader's host may take, for each of its addresses.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Events taken from the system at once.
const EVENTS_MAX: usize = 256;
/// What the events of the inbox are marked with; connections have other numbers.
const INBOX: u64 = 0;

/// A client that was accepted.
pub(super) struct Joining {
    pub(super) key: u64,
    pub(super) opened: u64,
    pub(super) client: Arc<TcpStream>,
    pub(super) from: SocketAddr,
    pub(super) addresses: Arc<[SocketAddr]>,
}

/// How other threads reach a mover.
pub(super) struct Inbox {
    joining: Mutex<Vec<Joining>>,
    bell: OwnedFd,
    /// How often the mover was awake, for tests.
    #[cfg(test)]
    rounds: std::sync::atomic::AtomicU64,
}

impl Inbox {
    pub(super) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            joining: Mutex::default(),
            bell,
            #[cfg(test)]
            rounds: std::sync::atomic::AtomicU64::default(),
        })
    }

    /// Has the mover look at its inbox, and whether its connections are still wanted. Never blocks.
    pub(super) fn wake(&self) {
        // Full means that it is awake anyway.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    #[cfg(test)]
    pub(super) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    fn take(&self) -> Vec<Joining> {
        // Emptied before it is looked into: what comes in between rings again.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        std::mem::take(&mut *self.joining.lock())
    }
}

impl Shared {
    pub(super) fn hand_over(&self, joining: Joining) {
        let movers = self.inboxes.len() as u64;
        let Some(inbox) = usize::try_from(joining.key % movers).ok().and_then(|which| self.inboxes.get(which)) else {
            return;
        };
        inbox.joining.lock().push(joining);
        inbox.wake();
    }

    pub(super) fn not_connected(&self, target: &str, error: &io::Error) {
        if let Some(unsaid) = self.log.not_connected.is_due() {
            log::warn!("proxy at {}: cannot connect a client to {target}: {error}{unsaid}", self.address);
        }
    }
}

pub(super) struct Mover {
    shared: Arc<Shared>,
    which: usize,
    epoll: OwnedFd,
    connections: HashMap<u64, Connection>,
    /// Of those that connect, the earliest first.
    deadlines: VecDeque<(Instant, u64)>,
    buffer: Box<[u8]>,
}

impl Mover {
    pub(super) fn new(shared: &Arc<Shared>, which: usize) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &shared.inboxes[which].bell, EventData::new_u64(INBOX), EventFlags::IN)?;
        Ok(Self {
            shared: shared.clone(),
            which,
            epoll,
            connections: HashMap::default(),
            deadlines: VecDeque::new(),
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
        })
    }

    /// The thread's life.
    pub(super) fn run(mut self) {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS_MAX);
        while !self.shared.stopping.load(Ordering::Acquire) {
            #[cfg(test)]
            self.shared.inboxes[self.which].rounds.fetch_add(1, Ordering::Relaxed);
            let wait = self.time_left().and_then(|left| Timespec::try_from(left).ok());
            match epoll::wait(&self.epoll, spare_capacity(&mut events), wait.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return log::error!("proxy at {}: cannot wait for clients: {error}", self.shared.address),
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    INBOX => self.look_around(),
                    number => self.move_on(number, event.flags),
                }
            }
            self.give_up_late_ones();
        }
        let keys: Vec<_> = self.connections.keys().copied().collect();
        keys.into_iter().for_each(|key| self.drop_connection(key));
    }

    fn time_left(&self) -> Option<Duration> {
        let (deadline, _) = self.deadlines.front()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// Takes in what came, and drops what the proxy was closed for.
    fn look_around(&mut self) {
        let joining = self.shared.inboxes[self.which].take();
        let stale: Vec<_> = {
            let state = self.shared.state.lock();
            let opened = state.host.is_some().then_some(state.opened);
            let is_stale = |connection: &Connection| Some(connection.opened) != opened;
            self.connections.iter().filter(|(_, at)| is_stale(at)).map(|(key, _)| *key).collect()
        };
        stale.into_iter().for_each(|key| self.drop_connection(key));
        for client in joining {
            let key = client.key;
            self.connections.insert(key, Connection::new(client));
            self.connect(key);
        }
    }

    /// To the next of the host's addresses.
    fn connect(&mut self, key: u64) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        match connection.connect(&self.shared, &self.epoll) {
            Ok(deadline) => self.deadlines.push_back((deadline, key)),
            Err(error) => {
                // Of a proxy that was closed there is nothing to say.
                if self.shared.is_open(connection.opened) {
                    let port = self.shared.config.port;
                    let host = self.shared.state.lock().host.clone().unwrap_or_default();
                    self.shared.not_connected(&show_target(&host, port), &error);
                }
                self.drop_connection(key);
            }
        }
    }

    fn move_on(&mut self, number: u64, flags: EventFlags) {
        let (key, which) = Which::of_number(number);
        // Dropped by an event before this one.
        let Some(connection) = self.connections.get_mut(&key) else { return };
        match connection.on_event(which, flags, &self.shared, &self.epoll, &mut self.buffer) {
            Outcome::GoesOn => {}
            Outcome::NextAddress => self.connect(key),
            Outcome::Ended => self.drop_connection(key),
        }
    }

    fn give_up_late_ones(&mut self) {
        while let Some(&(deadline, key)) = self.deadlines.front()
            && deadline <= Instant::now()
        {
            self.deadlines.pop_front();
            // It may be connected long since, or connect to another address since.
            let late = self.connections.get_mut(&key).is_some_and(|at| at.is_late(deadline));
            if late {
                self.connect(key);
            }
        }
    }

    fn drop_connection(&mut self, key: u64) {
        if let Some(connection) = self.connections.remove(&key) {
            connection.close(&self.epoll);
            self.shared.remove(key);
        }
    }
}
