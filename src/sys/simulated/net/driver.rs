//! What the driver of a simulation does to the network, and sees of it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::rustix::io::Errno;

use super::super::world::{self, Key, ProcessId, World};
use super::core::{Core, Socket, SocketId, State};

/// Limits and times of all hosts' TCP.
#[derive(Clone, Debug)]
pub struct NetSettings {
    /// Bytes that a socket takes before they are acknowledged.
    pub send_buffer: usize,
    /// Bytes that wait to be read.
    pub receive_buffer: usize,
    /// Between hosts, if nothing else was set for the two.
    pub link: Link,
    /// Within a host, likewise.
    pub local_link: Link,
    /// After which `connect` gives up by itself.
    pub connect_max: Duration,
    /// How long a connection may stay half made at the listener.
    pub handshake_max: Duration,
    /// How long nothing may be acknowledged, unless `TCP_USER_TIMEOUT` says it.
    pub retransmission_max: Duration,
    /// The pause before something lost is sent again; it doubles each time ...
    pub retry_first: Duration,
    /// ... up to this.
    pub retry_max: Duration,
    /// Connections, their ends, and what the driver does are in the trace.
    pub trace: bool,
    /// Reads and writes of at most so many bytes are in it, too.
    pub trace_bytes: usize,
}

impl Default for NetSettings {
    fn default() -> Self {
        let micros = Duration::from_micros;
        Self {
            send_buffer: 64 << 10,
            receive_buffer: 64 << 10,
            link: Link { latency: (micros(100), micros(2000)), ..Link::default() },
            local_link: Link::default(),
            connect_max: Duration::from_secs(127),
            handshake_max: Duration::from_secs(63),
            retransmission_max: Duration::from_secs(15 * 60),
            retry_first: Duration::from_millis(200),
            retry_max: Duration::from_secs(120),
            trace: true,
            trace_bytes: 0,
        }
    }
}

/// One direction of what connects two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Drawn for each packet; packets of a connection do not overtake each other.
    pub latency: (Duration, Duration),
    /// Bytes a second, for all connections together.
    pub bandwidth: Option<u64>,
    /// Bytes of a connection that travel together at most.
    pub segment: usize,
    /// A pause before each packet with data.
    pub gap: Duration,
    /// Nothing arrives. What is lost is sent again when this is over.
    pub cut: bool,
}

impl Default for Link {
    fn default() -> Self {
        let latency = (Duration::from_micros(5), Duration::from_micros(50));
        Self { latency, bandwidth: None, segment: 16 << 10, gap: Duration::ZERO, cut: false }
    }
}

impl Link {
    pub(super) fn time_for(&self, bytes: u64) -> Duration {
        let of = |bandwidth: u64| Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / bandwidth.max(1));
        self.bandwidth.map_or(Duration::ZERO, of)
    }
}

/// What looking up a name gives.
#[derive(Clone, Debug)]
pub struct Name {
    /// None: there is no such name.
    pub addresses: Vec<IpAddr>,
    pub takes: Duration,
    /// No name server answers.
    pub no_server: bool,
}

/// One direction of a connection, in bytes of payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Taken from the program.
    pub written: u64,
    /// Sent, each time anew that it was sent.
    pub on_the_wire: u64,
    /// Arrived in order at the other host.
    pub arrived: u64,
    /// Given to the program.
    pub read: u64,
}

/// A connection that there is, was, or that was tried.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    pub client: SocketAddr,
    pub server: SocketAddr,
    pub began: Duration,
    pub established: bool,
    /// When the first of its ends was over.
    pub closed: Option<Duration>,
    pub to_server: Moved,
    pub to_client: Moved,
}

impl Connection {
    pub(super) fn new(began: Duration, client: SocketAddr, server: SocketAddr) -> Self {
        let (to_server, to_client) = (Moved::default(), Moved::default());
        Self { client, server, began, established: false, closed: None, to_server, to_client }
    }

    pub(super) fn direction(&mut self, to_server: bool) -> &mut Moved {
        if to_server { &mut self.to_server } else { &mut self.to_client }
    }
}

/// All hosts' sockets, and what is between them. Its methods are for the world's threads.
pub struct Network {
    core: Mutex<Core>,
}

/// What moved when time did.
pub(in super::super) struct Due {
    pub(in super::super) wake: Vec<Key>,
    pub(in super::super) lines: Vec<String>,
}

impl World {
    /// For the driver.
    pub fn network(&self) -> &Network {
        &self.network
    }
}

impl Network {
    pub(in super::super) fn new(seed: u64, tracing: bool) -> Self {
        Self { core: Mutex::new(Core::new(seed ^ 0x6e65_7477_6f72_6b00, tracing)) }
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the scheduler: lets happen what has happened by now.
    pub(in super::super) fn due(&self, now: Duration) -> Option<Due> {
        let mut core = self.lock();
        if core.queue.first_key_value().is_none_or(|((at, _), _)| *at > now) {
            return None;
        }
        core.advance(now);
        Some(Due { wake: std::mem::take(&mut core.woken), lines: std::mem::take(&mut core.lines) })
    }

    /// For the scheduler: when something happens next by itself.
    pub(in super::super) fn next_event(&self) -> Option<Duration> {
        self.lock().queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// Does something now, and wakes whom it concerns.
    pub(super) fn act<R>(&self, act: impl FnOnce(&mut Core) -> R) -> R {
        let world = world::current();
        let now = world.now();
        let (result, due) = {
            let mut core = self.lock();
            core.advance(now);
            let result = act(&mut core);
            (result, Due { wake: std::mem::take(&mut core.woken), lines: std::mem::take(&mut core.lines) })
        };
        for line in due.lines {
            world.trace(|| line);
        }
        due.wake.into_iter().for_each(world::wake);
        result
    }

    /// Changes limits and times: of connections made later, mostly.
    pub fn configure(&self, change: impl FnOnce(&mut NetSettings)) {
        self.act(|core| change(&mut core.settings));
    }

    /// The address of the host that a process runs on, before it opens a socket. Several may share one.
    pub fn set_host(&self, process: ProcessId, host: IpAddr) {
        self.act(|core| core.hosts.insert(process, host));
    }

    /// How many sockets a process may have open; `EMFILE` beyond.
    pub fn set_socket_limit(&self, process: ProcessId, limit: Option<usize>) {
        self.act(|core| match limit {
            Some(limit) => core.limits.insert(process, limit),
            None => core.limits.remove(&process),
        });
    }

    /// How many it has, each clone counted.
    pub fn open_sockets(&self, process: ProcessId) -> usize {
        self.act(|core| core.descriptors.get(&process).copied().unwrap_or(0))
    }

    /// What a name means from now on.
    pub fn set_name(&self, name: &str, meaning: Name) {
        self.act(|core| core.names.insert(name.to_owned(), meaning));
    }

    /// The link from one host to another as it is.
    pub fn link(&self, from: IpAddr, to: IpAddr) -> Link {
        self.act(|core| core.link(from, to))
    }

    /// Changes one direction.
    pub fn set_link(&self, from: IpAddr, to: IpAddr, change: impl FnOnce(&mut Link)) {
        self.act(|core| {
            let mut link = core.link(from, to);
            let before = link;
            change(&mut link);
            core.links.insert((from, to), link);
            if link.bandwidth != before.bandwidth {
                core.send_again(from, to);
            }
            core.say(|_| format!("link {from} > {to}: {link:?}"));
            if link.cut != before.cut {
                core.path_changed(&[from, to], link.cut);
            }
        });
    }

    /// Changes both directions.
    pub fn set_links(&self, one: IpAddr, other: IpAddr, change: impl Fn(&mut Link)) {
        self.set_link(one, other, &change);
        self.set_link(other, one, &change);
    }

    /// From now on nothing arrives either way, also of what is under way.
    pub fn cut(&self, one: IpAddr, other: IpAddr) {
        self.set_links(one, other, |link| link.cut = true);
    }

    /// Ends a cut, of one direction or both.
    pub fn heal(&self, one: IpAddr, other: IpAddr) {
        self.set_links(one, other, |link| link.cut = false);
    }

    /// Bytes arrive a few at a time, with pauses, in one direction.
    pub fn trickle(&self, from: IpAddr, to: IpAddr, bytes: usize, every: Duration) {
        self.set_link(from, to, |link| (link.segment, link.gap) = (bytes, every));
    }

    /// Something between two hosts resets all of their connections.
    pub fn reset(&self, one: IpAddr, other: IpAddr) {
        self.act(|core| {
            core.say(|_| format!("resets all between {one} and {other}"));
            for id in core.between(one, other) {
                core.die(id, Some(Errno::CONNRESET));
            }
        });
    }

    /// Something between two hosts forgets their connections: nothing of them arrives any more, and nobody is told.
    pub fn forget(&self, one: IpAddr, other: IpAddr) {
        self.act(|core| {
            core.say(|_| format!("forgets all between {one} and {other}"));
            for id in core.between(one, other) {
                if let Some(socket) = core.sockets.get_mut(&id) {
                    socket.forgotten = true;
                }
                core.path_went_down(id);
            }
        });
    }

    /// A host loses power: its processes are killed, and nothing is sent. For others it is as if its links were cut, until
    /// [`power_on`](Self::power_on): from then on it does not know the connections.
    pub fn power_cut(&self, host: IpAddr) {
        let world = world::current();
        let processes: Vec<ProcessId> = self.act(|core| {
            core.say(|_| format!("{host} loses power"));
            core.off.insert(host);
            core.sockets.retain(|_, socket| socket.host != host);
            core.time_wait.retain(|_, of| *of != host);
            core.path_changed(&[host], true);
            core.hosts.iter().filter(|(_, of)| **of == host).map(|(process, _)| *process).collect()
        });
        let own = world.process();
        for process in processes.into_iter().filter(|process| *process != own && world.is_alive(*process)) {
            world.kill(process);
        }
    }

    /// The host is back, without a process.
    pub fn power_on(&self, host: IpAddr) {
        self.act(|core| {
            core.say(|_| format!("{host} has power"));
            core.off.remove(&host);
            core.path_changed(&[host], false);
        });
    }

    /// All connections since the world began, in the order of their beginning.
    pub fn connections(&self) -> Vec<Connection> {
        self.act(|core| core.connections.clone())
    }

    /// As the kernel does: what was written is still sent, with a FIN, or a reset where something was left unread.
    pub(in super::super) fn process_ended(&self, _: &World, process: ProcessId) {
        self.act(|core| {
            let own = |socket: &Socket| socket.owner == process && (socket.handles > 0 || socket.listener.is_some());
            let all: Vec<SocketId> = core.sockets.iter().filter(|(_, one)| own(one)).map(|(id, _)| *id).collect();
            for id in all {
                if core.sockets.get(&id).is_some_and(|socket| socket.listener.is_none()) {
                    core.close(id);
                }
            }
            core.descriptors.remove(&process);
        });
    }
}

impl Core {
    fn between(&self, one: IpAddr, other: IpAddr) -> Vec<SocketId> {
        let is_it = |socket: &Socket| {
            let peer = self.peer_host(socket);
            socket.state != State::Listening
                && (socket.host == one && peer == Some(other) || socket.host == other && peer == Some(one))
        };
        self.sockets.iter().filter(|(_, socket)| is_it(socket)).map(|(id, _)| *id).collect()
    }

    /// Something changed on the way to or from these hosts.
    fn path_changed(&mut self, hosts: &[IpAddr], down: bool) {
        let concerns = |core: &Self, socket: &Socket| {
            core.peer_host(socket).is_some_and(|peer| hosts.iter().all(|host| *host == peer || *host == socket.host))
        };
        let all: Vec<SocketId> =
            self.sockets.iter().filter(|(_, socket)| concerns(self, socket)).map(|(id, _)| *id).collect();
        for id in all {
            if down {
                self.path_went_down(id);
            } else {
                self.path_came_back(id);
            }
        }
    }
}
