//! One client's connection: first it connects to the leader's host, then it passes bytes and ends on, in both directions.
//!
//! Nothing here waits. What one side sent and the other does not take yet is kept, up to [`BUFFER_BYTES`], and no more is read
//! meanwhile: so whoever reads slowly slows the other side. Epoll is asked for what can be used, and no more: of a side that
//! is idle nothing is kept.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::Shared;
use super::mover::{CONNECT_TIMEOUT, Joining};
use crate::descriptors::{For, is_kept_for_others};
use crate::sys::time::Instant;

/// Read from one side before it is written to the other.
pub(super) const BUFFER_BYTES: usize = 16 << 10;
/// Buffers that one event moves at most: then it is the turn of others.
const ROUNDS_MAX: usize = 4;
/// A side that is silent for so long is probed, so that connections of vanished clients do not stay for ever.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Client,
    Server,
}

impl Which {
    /// Key and side, as events are marked with them.
    pub(super) fn of_number(number: u64) -> (u64, Self) {
        (number >> 1, if number & 1 == 0 { Self::Client } else { Self::Server })
    }

    fn number(self, key: u64) -> EventData {
        EventData::new_u64(key << 1 | u64::from(self == Self::Server))
    }
}

/// What an event came to.
pub(super) enum Outcome {
    GoesOn,
    /// The host does not answer at this one.
    NextAddress,
    /// In order, or because a side broke.
    Ended,
}

pub(super) struct Connection {
    key: u64,
    pub(super) opened: u64,
    client: Side,
    /// Once it is being connected to.
    server: Option<Side>,
    /// Until it is connected.
    connecting: Option<Connecting>,
}

struct Connecting {
    from: SocketAddr,
    addresses: Arc<[SocketAddr]>,
    next: usize,
    deadline: Instant,
    last_error: Option<io::Error>,
}

struct Side {
    which: Which,
    socket: Arc<TcpStream>,
    /// As epoll has it, if it has it.
    interest: Option<EventFlags>,
    /// What is left to write, from `written` on.
    pending: Vec<u8>,
    written: usize,
    /// Nothing more comes from it.
    has_ended: bool,
    /// It was told that nothing more goes to it.
    was_told_end: bool,
}

impl Connection {
    pub(super) fn new(of: Joining) -> Self {
        let connecting =
            Connecting { from: of.from, addresses: of.addresses, next: 0, deadline: Instant::now(), last_error: None };
        let client = Side::new(Which::Client, of.client);
        Self { key: of.key, opened: of.opened, client, server: None, connecting: Some(connecting) }
    }

    /// Begins to connect to the first of the addresses that are left, and says until when that may take. The error of the last
    /// one when none is.
    pub(super) fn connect(&mut self, shared: &Shared, epoll: &OwnedFd) -> io::Result<Instant> {
        let Some(connecting) = &mut self.connecting else { return Err(ErrorKind::InvalidInput.into()) };
        if let Some(server) = self.server.take() {
            server.forget(epoll);
        }
        while let Some(address) = connecting.addresses.get(connecting.next) {
            connecting.next += 1;
            match begin(*address) {
                Ok(socket) => {
                    let server = Arc::new(socket);
                    if !shared.set_server(self.key, self.opened, &server) {
                        return Err(ErrorKind::ConnectionAborted.into());
                    }
                    let mut server = Side::new(Which::Server, server);
                    server.ask(self.key, epoll, EventFlags::OUT)?;
                    self.server = Some(server);
                    connecting.deadline = Instant::now() + CONNECT_TIMEOUT;
                    return Ok(connecting.deadline);
                }
                Err(error) => connecting.last_error = Some(error),
            }
        }
        Err(connecting.last_error.take().unwrap_or_else(|| ErrorKind::TimedOut.into()))
    }

    /// Whether it still connects, and to the address whose time was up then.
    pub(super) fn is_late(&self, deadline: Instant) -> bool {
        self.connecting.as_ref().is_some_and(|connecting| connecting.deadline == deadline)
    }

    /// Moves what can be moved.
    pub(super) fn on_event(
        &mut self,
        which: Which,
        flags: EventFlags,
        shared: &Shared,
        epoll: &OwnedFd,
        buffer: &mut [u8],
    ) -> Outcome {
        let Some(server) = &mut self.server else { return Outcome::Ended };
        if let Some(connecting) = &mut self.connecting {
            if let Err(error) = server.socket.take_error().and_then(|error| error.map_or(Ok(()), Err)) {
                connecting.last_error = Some(error);
                return Outcome::NextAddress;
            }
            if flags.contains(EventFlags::HUP) {
                // Shut down by us.
                return Outcome::Ended;
            }
            if shared.config.proxy_protocol {
                let Ok(to) = self.client.socket.local_addr() else { return Outcome::Ended };
                server.pending = proxy_header(connecting.from, to).into_bytes();
            }
            self.connecting = None;
            let prepared = prepare(&self.client.socket).and_then(|()| prepare(&server.socket));
            if prepared.and_then(|()| server.flush()).is_err() {
                return Outcome::Ended;
            }
        } else {
            let (side, other) = match which {
                Which::Client => (&mut self.client, server),
                Which::Server => (server, &mut self.client),
            };
            if side.on_event(other, flags, epoll, buffer).is_err() {
                return Outcome::Ended;
            }
        }
        self.ask_for_what_can_be_used(epoll)
    }

    fn ask_for_what_can_be_used(&mut self, epoll: &OwnedFd) -> Outcome {
        let Some(server) = &mut self.server else { return Outcome::Ended };
        let client = &mut self.client;
        if client.was_told_end && server.was_told_end {
            return Outcome::Ended;
        }
        let asked = [client.wanted(server), server.wanted(client)];
        let asked = client.ask(self.key, epoll, asked[0]).and_then(|()| server.ask(self.key, epoll, asked[1]));
        if asked.is_ok() { Outcome::GoesOn } else { Outcome::Ended }
    }

    /// Ends both directions, if they have not ended.
    pub(super) fn close(self, epoll: &OwnedFd) {
        for side in [Some(self.client), self.server].into_iter().flatten() {
            if !(side.has_ended && side.was_told_end) {
                let _ = side.socket.shutdown(Shutdown::Both);
            }
            side.forget(epoll);
        }
    }
}

impl Side {
    fn new(which: Which, socket: Arc<TcpStream>) -> Self {
        let (pending, written) = (Vec::new(), 0);
        Self { which, socket, interest: None, pending, written, has_ended: false, was_told_end: false }
    }

    /// An error ends the connection.
    fn on_event(&mut self, other: &mut Self, flags: EventFlags, epoll: &OwnedFd, buffer: &mut [u8]) -> io::Result<()> {
        self.flush()?;
        if other.has_ended && self.pending.is_empty() {
            self.tell_end()?;
        }
        if !self.has_ended && other.pending.is_empty() {
            return self.pass_on(other, buffer);
        }
        if flags.contains(EventFlags::ERR) {
            // Reading would tell, but nothing can be read now.
            return Err(self.socket.take_error()?.unwrap_or_else(|| ErrorKind::ConnectionReset.into()));
        }
        if flags.contains(EventFlags::HUP) && self.wanted(other).is_empty() {
            // Epoll would say so again and again.
            self.interest = None;
            epoll::delete(epoll, &*self.socket)?;
        }
        Ok(())
    }

    /// Reads, and writes to the other side, until one of them would have to wait, or it is the turn of others.
    fn pass_on(&mut self, other: &mut Self, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..ROUNDS_MAX {
            let count = match (&*self.socket).read(buffer) {
                Ok(count) => count,
                Err(error) if is_no_news(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
            if count == 0 {
                self.has_ended = true;
                return other.tell_end();
            }
            other.send(&buffer[..count])?;
            if count < buffer.len() || !other.pending.is_empty() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Writes what it takes, and keeps the rest. Nothing is pending before.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let count = match (&*self.socket).write(bytes) {
            Ok(count) => count,
            Err(error) if is_no_news(&error) => 0,
            Err(error) => return Err(error),
        };
        self.pending.extend_from_slice(&bytes[count..]);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.written < self.pending.len() {
            match (&*self.socket).write(&self.pending[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if is_no_news(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // The memory too: most connections are idle most of the time.
        (self.pending, self.written) = (Vec::new(), 0);
        Ok(())
    }

    fn tell_end(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.was_told_end, true) {
            self.socket.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    fn wanted(&self, other: &Self) -> EventFlags {
        let mut wanted = EventFlags::empty();
        wanted.set(EventFlags::IN, !self.has_ended && other.pending.is_empty());
        wanted.set(EventFlags::OUT, !self.pending.is_empty());
        wanted
    }

    fn ask(&mut self, key: u64, epoll: &OwnedFd, wanted: EventFlags) -> io::Result<()> {
        if self.interest == Some(wanted) {
            return Ok(());
        }
        if wanted.is_empty() && self.interest.is_none() {
            return Ok(());
        }
        let (socket, number) = (&*self.socket, self.which.number(key));
        match self.interest {
            None => epoll::add(epoll, socket, number, wanted)?,
            Some(_) => epoll::modify(epoll, socket, number, wanted)?,
        }
        self.interest = Some(wanted);
        Ok(())
    }

    /// The socket may stay open for a moment longer: the list of what closing ends has it too.
    fn forget(self, epoll: &OwnedFd) {
        if self.interest.is_some() {
            let _ = epoll::delete(epoll, &*self.socket);
        }
    }
}

fn is_no_news(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn begin(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if is_kept_for_others(socket.as_raw_fd(), For::Client) {
        return Err(io::Error::other("the other file descriptors are kept for replication"));
    }
    match socket.connect(&SockAddr::from(address)) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(socket.into()),
    }
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL))
}

/// The header of the PROXY protocol, version 1: at most 107 bytes.
pub(super) fn proxy_header(from: SocketAddr, to: SocketAddr) -> String {
    let family = match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => "TCP4",
        (IpAddr::V6(_), IpAddr::V6(_)) => "TCP6",
        _ => return "PROXY UNKNOWN\r\n".to_owned(),
    };
    let (source, destination) = (from.ip().to_canonical(), to.ip().to_canonical());
    format!("PROXY {family} {source} {destination} {} {}\r\n", from.port(), to.port())
}
