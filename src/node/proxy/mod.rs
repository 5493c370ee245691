//! A proxy: clients connect to any node of the cluster, and reach the program on the one that leads.
//!
//! It is told when to be open and to which host to connect ([`Proxy::open`]), and when not to be
//! ([`Proxy::close`]). Its port is bound from the start by a socket that never listens, so that a port in use is noticed then,
//! and no connection of another program gets the port by chance. A closed proxy refuses connections.
//!
//! # Threads
//!
//! `proxy PORT` accepts while the proxy is open, and looks up the host's name (`accept.rs`). A few threads named `clients`, which
//! are there from the start, move the bytes of all connections (`mover.rs`, `connection.rs`): none of them ever waits for one
//! connection, and a client costs two descriptors and, unless its other side reads slowly, no buffer. An end of one direction
//! is passed on as such, and the other direction goes on; an error in one ends both.
//!
//! # Locks and the end
//!
//! Leaves, all of them: one for the state and the list of connections, one for each mover's inbox; nothing is waited for under them.
//! Closing flips the state and shuts all sockets down, so no byte moves once it returns; the movers drop what was shut down.
//! Dropping the proxy closes it and joins the threads, for 5 s at most: one that resolves a name cannot be woken, and
//! ends by itself.

mod accept;
mod connection;
mod mover;

use std::fmt;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use self::mover::{Inbox, Mover};
use crate::error::Error;
use crate::seldom::Seldom;
use crate::sys::hash::HashMap;
use crate::sys::sync::{Mutex, OnceLock};
use crate::sys::thread;
use crate::sys::time::Instant;
use crate::thread::{DROP_JOIN_MAX, Group};

const BACKLOG: i32 = 1024;
/// Threads that move bytes, at most: one keeps a network of 10 Gbit/s busy or nearly so.
const MOVERS_MAX: usize = 4;

/// Where a proxy listens, and what it connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxyConfig {
    /// Where clients connect, `HOST:PORT`.
    pub listen: String,
    /// The port on the leader's host.
    pub port: u16,
    /// Whether the program is told the client's address in a header of the PROXY protocol, version 1. Defaults to false: a
    /// program that does not expect the header takes it for garbage.
    pub proxy_protocol: bool,
    /// Connections at once; one more is closed as soon as it is accepted. Defaults to 16,384. Each takes two file descriptors, and
    /// up to 32 KiB while a side reads slowly. It is also closed where it would take one of the last quarter of the descriptors
    /// that the process may have open (of the last 4,096, where that is less): replication needs them.
    pub connections_max: usize,
}

impl ProxyConfig {
    /// A proxy with the defaults.
    pub fn new(listen: impl Into<String>, port: u16) -> Self {
        Self { listen: listen.into(), port, proxy_protocol: false, connections_max: 16_384 }
    }
}

/// A snapshot of a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxyStatus {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Connections there are.
    pub connections: usize,
    /// Connections that were closed as soon as they were accepted, since the start: there were too many, or too few file
    /// descriptors left.
    pub refused: u64,
}

/// `LISTEN=PORT[,proxy-protocol]`
impl FromStr for ProxyConfig {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let remedy = "write LISTEN=PORT[,proxy-protocol], such as 0.0.0.0:6379=6380";
        let (listen, rest) = text.split_once('=').ok_or(remedy)?;
        let (port, option) = rest.split_once(',').map_or((rest, None), |(port, option)| (port, Some(option)));
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(remedy)?;
        let listens =
            listen.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        let known = matches!(option, None | Some("proxy-protocol"));
        if !listens || !known {
            return Err(remedy);
        }
        Ok(Self { proxy_protocol: option.is_some(), ..Self::new(listen, port) })
    }
}

impl fmt::Display for ProxyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}{}", self.listen, self.port, if self.proxy_protocol { ",proxy-protocol" } else { "" })
    }
}

/// See the module's documentation. Closed at first.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    threads: Group,
}

/// What the proxy, its threads, and who asks for its status share.
pub(super) struct Shared {
    config: ProxyConfig,
    /// As bound: of interest for port 0.
    address: SocketAddr,
    /// Keeps the port.
    _bound: Socket,
    state: Mutex<State>,
    inboxes: Vec<Inbox>,
    /// The movers' end.
    stopping: AtomicBool,
    refused: AtomicU64,
    /// Which thread failed, and how.
    failure: OnceLock<String>,
    log: Log,
}

/// Clients may come by the thousand: of each of these there is a line now and then.
#[derive(Default)]
struct Log {
    not_accepted: Seldom,
    refused: Seldom,
    not_connected: Seldom,
}

struct State {
    /// While the proxy is open.
    listener: Option<Socket>,
    /// The leader's host, while the proxy is open.
    host: Option<Arc<str>>,
    /// One more each time the proxy is opened: connections of an earlier time are refused.
    opened: u64,
    connections: HashMap<u64, Sockets>,
    last_key: u64,
}

/// What has to be shut down to end a connection.
struct Sockets {
    client: Arc<TcpStream>,
    server: Option<Arc<TcpStream>>,
}

impl Sockets {
    fn shut_down(&self) {
        // An error says that the socket is not connected (any more).
        let _ = self.client.shutdown(Shutdown::Both);
        if let Some(server) = &self.server {
            let _ = server.shutdown(Shutdown::Both);
        }
    }
}

impl Proxy {
    /// Binds the port, and starts what moves bytes. Clients are refused until [`open`](Self::open).
    pub(crate) fn bind(config: ProxyConfig) -> Result<Self, Error> {
        let failed = |error| cannot_listen(&config, error);
        let resolved = config.listen.to_socket_addrs().map_err(failed)?.next();
        let address = resolved.ok_or_else(|| failed(io::Error::other("the name has no address")))?;
        let (socket, address) = bind(address).map_err(failed)?;
        let movers = thread::available_parallelism().map_or(1, |cores| cores.get().min(MOVERS_MAX));
        let inboxes = (0..movers).map(|_| Inbox::new()).collect::<io::Result<_>>().map_err(failed)?;
        let state = State { listener: None, host: None, opened: 0, connections: HashMap::default(), last_key: 0 };
        let shared = Arc::new(Shared {
            config: config.clone(),
            address,
            _bound: socket,
            state: Mutex::new(state),
            inboxes,
            stopping: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            failure: OnceLock::new(),
            log: Log::default(),
        });
        let proxy = Self { shared, threads: Group::default() };
        let of_failure = proxy.shared.clone();
        proxy.threads.on_failure(move |what| {
            let _ = of_failure.failure.set(what.to_owned());
            of_failure.close();
        });
        for which in 0..movers {
            let mover = Mover::new(&proxy.shared, which).map_err(failed)?;
            let of_thread = proxy.shared.clone();
            let is_told = move || of_thread.stopping.load(Ordering::Acquire);
            proxy.threads.spawn_until("clients", is_told, move || mover.run()).map_err(failed)?;
        }
        Ok(proxy)
    }

    /// The address clients connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// For who asks for its status.
    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Accepts clients and connects them to `host`; does nothing if it does so already. Open to another host, it is closed
    /// first. Never blocks.
    pub(crate) fn open(&self, host: &str) -> Result<(), Error> {
        if self.shared.state.lock().host.as_deref() == Some(host) || self.shared.failure.get().is_some() {
            return Ok(());
        }
        self.close();
        let failed = |error| cannot_listen(&self.shared.config, error);
        let socket = bind(self.shared.address).map_err(failed)?.0;
        socket.listen(BACKLOG).map_err(failed)?;
        let listener = TcpListener::from(socket.try_clone().map_err(failed)?);
        let opened = {
            let mut state = self.shared.state.lock();
            state.listener = Some(socket);
            state.host = Some(host.into());
            state.opened += 1;
            state.opened
        };
        let (shared, told, host_of_thread) = (self.shared.clone(), self.shared.clone(), Arc::from(host));
        let name = format!("proxy {}", self.shared.address.port());
        let spawned = self.threads.spawn_until(
            name,
            move || !told.is_open(opened),
            move || accept::run(&shared, &listener, host_of_thread, opened),
        );
        spawned.map_err(|error| {
            self.close();
            failed(error)
        })?;
        log::info!("clients at {} are connected to {}", self.address(), show_target(host, self.shared.config.port));
        Ok(())
    }

    /// Refuses clients, and cuts all connections. Never blocks.
    pub(crate) fn close(&self) {
        self.shared.close();
    }

    /// Why it is closed for good, if a thread of it failed.
    pub(super) fn failure(&self) -> Option<Error> {
        self.shared.failure.get().cloned().map(Error::ThreadFailed)
    }

    /// Whether the program listens on this very port where its node leads: then there is nothing to open meanwhile. It gets the
    /// port although it is bound, as all servers do that set `SO_REUSEADDR`.
    pub(crate) fn is_the_programs(&self) -> bool {
        self.address().port() == self.shared.config.port
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.close();
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.inboxes.iter().for_each(Inbox::wake);
        self.threads.join(Instant::now() + DROP_JOIN_MAX);
    }
}

impl Shared {
    /// Never blocks.
    pub(super) fn status(&self) -> ProxyStatus {
        let connections = self.state.lock().connections.len();
        ProxyStatus { address: self.address, connections, refused: self.refused.load(Ordering::Relaxed) }
    }

    fn close(&self) {
        let cut = {
            let mut state = self.state.lock();
            state.host = None;
            let Some(listener) = state.listener.take() else { return };
            // A blocked `accept` returns.
            let _ = listener.shutdown(Shutdown::Both);
            state.connections.values().for_each(Sockets::shut_down);
            state.connections.len()
        };
        self.inboxes.iter().for_each(Inbox::wake);
        log::info!("clients at {} are refused; {cut} connections were cut", self.address);
    }

    fn is_open(&self, opened: u64) -> bool {
        let state = self.state.lock();
        state.host.is_some() && state.opened == opened
    }

    /// Puts a client on the list of what closing ends, unless the proxy was closed meanwhile, and names it.
    fn add(&self, client: &Arc<TcpStream>, opened: u64) -> Option<u64> {
        let mut state = self.state.lock();
        if state.host.is_none() || state.opened != opened {
            return None;
        }
        state.last_key += 1;
        let key = state.last_key;
        state.connections.insert(key, Sockets { client: client.clone(), server: None });
        Some(key)
    }

    /// Has closing end the server's side too; `false` if the proxy was closed meanwhile: the list may have been walked already.
    fn set_server(&self, key: u64, opened: u64, server: &Arc<TcpStream>) -> bool {
        let mut state = self.state.lock();
        let is_open = state.host.is_some() && state.opened == opened;
        // What was there before is closed only once the lock is released.
        let _before = match state.connections.get_mut(&key).filter(|_| is_open) {
            Some(sockets) => sockets.server.replace(server.clone()),
            None => return false,
        };
        drop(state);
        true
    }

    fn remove(&self, key: u64) {
        let removed = self.state.lock().connections.remove(&key);
        drop(removed);
    }
}

fn cannot_listen(config: &ProxyConfig, source: io::Error) -> Error {
    Error::Listen { who: "clients", at: format!("{} (--proxy {config})", config.listen), source }
}

/// `HOST:PORT`, with the brackets that an IPv6 address needs.
fn show_target(host: &str, port: u16) -> String {
    match host.parse() {
        Ok(IpAddr::V6(_)) => format!("[{host}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

fn bind(address: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier time linger in the system and would refuse us the port.
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(address))?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((socket, bound))
}

#[cfg(test)]
mod tests;
