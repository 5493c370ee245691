//! What the network consists of: sockets, packets under way, links. Pure state that moves when time does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ::rustix::io::Errno;

use super::super::world::{Key, ProcessId};
use super::driver::{Connection, Link, Name, NetSettings};
use super::path::Stall;

pub(in super::super) type SocketId = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum State {
    /// New, or over.
    Closed,
    Listening,
    SynSent,
    SynReceived,
    Open,
}

#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Keepalive {
    pub time: Duration,
    pub interval: Duration,
    pub retries: u32,
}

impl Default for Keepalive {
    /// Linux's.
    fn default() -> Self {
        Self { time: Duration::from_secs(7200), interval: Duration::from_secs(75), retries: 9 }
    }
}

/// What `setsockopt` sets.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Options {
    pub reuse: bool,
    pub nonblocking: bool,
    pub nodelay: bool,
    pub read_timeout: Option<Duration>,
    pub write_timeout: Option<Duration>,
    pub linger: Option<Duration>,
    pub keepalive: Keepalive,
    pub keeps_alive: bool,
    pub user_timeout: Option<Duration>,
}

pub(in super::super) struct Socket {
    pub owner: ProcessId,
    pub host: IpAddr,
    /// Descriptors that name it. Without one it lives on until all is sent.
    pub handles: usize,
    pub state: State,
    pub local: Option<SocketAddr>,
    pub remote: Option<SocketAddr>,
    pub peer: Option<SocketId>,
    pub options: Options,
    /// To be reported by the next call.
    pub error: Option<Errno>,
    pub shut_read: bool,
    pub shut_write: bool,
    /// Whoever reads or accepts waits for this.
    pub readable: Key,
    /// Whoever writes or connects waits for this.
    pub writable: Key,
    /// For the other end, which is made when a packet arrives.
    pub peer_keys: Option<(Key, Key)>,

    pub backlog: usize,
    /// Connections that can be accepted.
    pub ready: VecDeque<SocketId>,
    /// Until it is accepted: by which socket.
    pub listener: Option<SocketId>,

    /// From `acked` to `written`.
    pub sending: VecDeque<u8>,
    /// The end of what the peer has; with a FIN, it counts as one byte.
    pub acked: u64,
    /// What is sent next.
    pub next: u64,
    pub written: u64,
    /// How far the peer lets us send.
    pub edge: u64,
    /// A FIN follows what was written.
    pub fin: bool,
    /// When the latest packet sent arrives: later ones do not overtake it.
    pub last_arrival: Duration,
    pub stall: Option<Stall>,
    /// Since when the peer has had no room for what is to be sent.
    pub no_room_since: Option<Duration>,

    pub received: VecDeque<u8>,
    /// What has arrived in order; a FIN counts as one byte.
    pub arrived: u64,
    /// What was read of it.
    pub taken: u64,
    /// How far the peer was told it may send.
    pub told: u64,
    pub got_fin: bool,

    pub heard: Duration,
    /// Grows when the path comes back, so that what was planned while it was down is off.
    pub path_generation: u64,
    /// Something on the way does not know this connection any more.
    pub forgotten: bool,
    /// In the list of connections, and whether it is the client's end.
    pub connection: Option<(usize, bool)>,
}

impl Socket {
    pub fn new(owner: ProcessId, host: IpAddr, keys: (Key, Key)) -> Self {
        Self {
            owner,
            host,
            handles: 0,
            state: State::Closed,
            local: None,
            remote: None,
            peer: None,
            options: Options::default(),
            error: None,
            shut_read: false,
            shut_write: false,
            readable: keys.0,
            writable: keys.1,
            peer_keys: None,
            backlog: 0,
            ready: VecDeque::new(),
            listener: None,
            sending: VecDeque::new(),
            acked: 0,
            next: 0,
            written: 0,
            edge: 0,
            fin: false,
            last_arrival: Duration::ZERO,
            stall: None,
            no_room_since: None,
            received: VecDeque::new(),
            arrived: 0,
            taken: 0,
            told: 0,
            got_fin: false,
            heard: Duration::ZERO,
            path_generation: 0,
            forgotten: false,
            connection: None,
        }
    }

    /// No process has it or will get it.
    pub fn is_orphan(&self) -> bool {
        self.handles == 0 && self.listener.is_none()
    }

    /// Sent or to be sent, and not acknowledged.
    pub fn is_owed(&self) -> bool {
        self.acked < self.written + u64::from(self.fin)
    }
}

pub(super) enum Packet {
    Syn,
    SynAck,
    /// With no bytes and no FIN, a probe: it asks for an acknowledgement.
    Data {
        at: u64,
        bytes: Vec<u8>,
        fin: bool,
    },
    Ack {
        upto: u64,
        edge: u64,
    },
    Reset,
}

/// A packet under way. The end it comes from may be gone when it arrives.
pub(super) struct Flight {
    pub from: SocketId,
    pub to: SocketId,
    pub from_host: IpAddr,
    pub to_host: IpAddr,
    pub packet: Packet,
}

pub(super) enum Event {
    Arrive(Flight),
    Retransmit(SocketId),
    /// The longest time without an acknowledgement may have passed.
    GiveUp(SocketId),
    /// The path was down, in this generation: keepalive has found out.
    KeepaliveEnds(SocketId, u64),
    /// A keepalive probe that matters, in this generation.
    Probe(SocketId, u64),
}

pub(super) struct Core {
    pub now: Duration,
    pub rng: fastrand::Rng,
    pub settings: NetSettings,
    pub hosts: BTreeMap<ProcessId, IpAddr>,
    pub off: BTreeSet<IpAddr>,
    pub names: BTreeMap<String, Name>,
    pub links: BTreeMap<(IpAddr, IpAddr), Link>,
    /// When a link has sent all that it was given.
    pub free_at: BTreeMap<(IpAddr, IpAddr), Duration>,
    pub sockets: BTreeMap<SocketId, Socket>,
    /// Ends that closed as they should, and their hosts: for a FIN that is sent again.
    pub time_wait: BTreeMap<SocketId, IpAddr>,
    pub connections: Vec<Connection>,
    pub descriptors: BTreeMap<ProcessId, usize>,
    pub limits: BTreeMap<ProcessId, usize>,
    pub queue: BTreeMap<(Duration, u64), Event>,
    pub woken: Vec<Key>,
    pub lines: Vec<String>,
    tracing: bool,
    last_socket: SocketId,
    last_event: u64,
    last_port: u16,
}

pub(super) const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const FIRST_EPHEMERAL: u16 = 32768;

impl Core {
    pub fn new(seed: u64, tracing: bool) -> Self {
        Self {
            now: Duration::ZERO,
            rng: fastrand::Rng::with_seed(seed),
            settings: NetSettings::default(),
            hosts: BTreeMap::new(),
            off: BTreeSet::new(),
            names: BTreeMap::new(),
            links: BTreeMap::new(),
            free_at: BTreeMap::new(),
            sockets: BTreeMap::new(),
            time_wait: BTreeMap::new(),
            connections: Vec::new(),
            descriptors: BTreeMap::new(),
            limits: BTreeMap::new(),
            queue: BTreeMap::new(),
            woken: Vec::new(),
            lines: Vec::new(),
            tracing,
            last_socket: 0,
            last_event: 0,
            last_port: FIRST_EPHEMERAL,
        }
    }

    /// Lets happen what is due.
    pub fn advance(&mut self, now: Duration) {
        while let Some(first) = self.queue.first_entry() {
            let (at, _) = *first.key();
            if at > now {
                break;
            }
            let event = first.remove();
            self.now = self.now.max(at);
            match event {
                Event::Arrive(flight) => self.arrive(flight),
                Event::Retransmit(id) => self.retransmit(id),
                Event::GiveUp(id) => self.give_up(id),
                Event::KeepaliveEnds(id, generation) => self.keepalive_ends(id, generation),
                Event::Probe(id, generation) => self.probe(id, generation),
            }
        }
        self.now = self.now.max(now);
    }

    pub fn at(&mut self, at: Duration, event: Event) {
        self.last_event += 1;
        self.queue.insert((at, self.last_event), event);
    }

    pub fn add(&mut self, socket: Socket) -> SocketId {
        self.last_socket += 1;
        self.sockets.insert(self.last_socket, socket);
        self.last_socket
    }

    pub fn host_of(&self, process: ProcessId) -> IpAddr {
        self.hosts.get(&process).copied().unwrap_or(LOCALHOST)
    }

    pub fn wake_both(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.get(&id) {
            self.woken.extend([socket.readable, socket.writable]);
        }
    }

    pub fn say(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.tracing && self.settings.trace {
            let line = line(self);
            self.lines.push(line);
        }
    }

    /// `client > server`, as it is shown in the trace.
    pub fn name_of(&self, id: SocketId) -> String {
        let Some(socket) = self.sockets.get(&id) else { return "a socket that is gone".into() };
        match (socket.local, socket.remote) {
            (Some(local), Some(remote)) => format!("{local} > {remote}"),
            (Some(local), None) => format!("{local}"),
            _ => "a new socket".into(),
        }
    }

    /// One more descriptor of a process, if it may have one.
    pub fn open_descriptor(&mut self, process: ProcessId) -> Result<(), Errno> {
        let open = self.descriptors.entry(process).or_default();
        if self.limits.get(&process).is_some_and(|limit| *open >= *limit) {
            return Err(Errno::MFILE);
        }
        *open += 1;
        Ok(())
    }

    pub fn close_descriptor(&mut self, process: ProcessId) {
        if let Some(open) = self.descriptors.get_mut(&process) {
            *open = open.saturating_sub(1);
        }
    }

    /// Whether a socket may have an address beside the others that have it: with all willing, and nobody listening.
    pub fn is_free(&self, id: SocketId, address: SocketAddr) -> bool {
        let Some(me) = self.sockets.get(&id) else { return false };
        self.sockets.iter().filter(|(other, _)| **other != id).all(|(_, other)| {
            let Some(local) = other.local else { return true };
            let overlaps = other.host == me.host
                && local.port() == address.port()
                && (local.ip() == address.ip() || local.ip().is_unspecified() || address.ip().is_unspecified());
            let willing = other.options.reuse && me.options.reuse && other.state != State::Listening;
            !overlaps || willing
        })
    }

    pub fn bind(&mut self, id: SocketId, mut address: SocketAddr) -> Result<(), Errno> {
        let host = self.sockets.get(&id).ok_or(Errno::BADF)?.host;
        if !address.ip().is_unspecified() && !address.ip().is_loopback() && address.ip() != host {
            return Err(Errno::ADDRNOTAVAIL);
        }
        if address.port() == 0 {
            address.set_port(self.free_port(id).ok_or(Errno::ADDRINUSE)?);
        } else if !self.is_free(id, address) {
            return Err(Errno::ADDRINUSE);
        }
        let socket = self.sockets.get_mut(&id).ok_or(Errno::BADF)?;
        if socket.local.is_some() {
            return Err(Errno::INVAL);
        }
        socket.local = Some(address);
        Ok(())
    }

    /// A port that no socket of the host has at all.
    fn free_port(&mut self, id: SocketId) -> Option<u16> {
        let host = self.sockets.get(&id)?.host;
        for _ in FIRST_EPHEMERAL..=u16::MAX {
            self.last_port = self.last_port.checked_add(1).unwrap_or(FIRST_EPHEMERAL);
            let port = self.last_port;
            let taken = |other: &Socket| other.host == host && other.local.is_some_and(|local| local.port() == port);
            if !self.sockets.values().any(taken) {
                return Some(port);
            }
        }
        None
    }

    pub fn listen(&mut self, id: SocketId, backlog: usize) -> Result<(), Errno> {
        let local = self.sockets.get(&id).ok_or(Errno::BADF)?.local;
        match local {
            Some(local) if !self.is_free(id, local) => return Err(Errno::ADDRINUSE),
            Some(_) => {}
            None => self.bind(id, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0))?,
        }
        let socket = self.sockets.get_mut(&id).ok_or(Errno::BADF)?;
        if !matches!(socket.state, State::Closed | State::Listening) {
            return Err(Errno::INVAL);
        }
        (socket.state, socket.backlog) = (State::Listening, backlog);
        (socket.shut_read, socket.shut_write) = (false, false);
        Ok(())
    }
}
