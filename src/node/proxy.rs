//! A proxy: clients connect to any node of the cluster, and reach the program on the one that leads.
//!
//! It is told when to be open and to which host to connect ([`Proxy::open`]), and when not to be
//! ([`Proxy::close`]). Its port is bound from the start by a socket that never listens, so that a port in use is noticed then,
//! and no connection of another program gets the port by chance. A closed proxy refuses connections.
//!
//! # Threads
//!
//! `proxy PORT` accepts while the proxy is open. Each connection has two threads, `client` and `server`, one for each
//! direction: they copy with blocking reads and writes, so whoever reads slowly slows the other side and costs a buffer. An
//! end of one direction is passed on as such, and the other direction goes on; an error in one ends both.
//!
//! # Locks and the end
//!
//! One lock, a leaf, for the state and the list of connections; nothing is waited for under it. Closing flips the state and
//! shuts all sockets down, which ends every accept, connect, read and write. Dropping the proxy closes it and joins the threads,
//! for 5 s at most: one that resolves a name cannot be woken, and ends by itself.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::error::Error;
use crate::thread::{DROP_JOIN_MAX, Group};

/// How long connecting to the leader's host may take, for each of its addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Read from one side before it is written to the other.
const BUFFER_BYTES: usize = 16 << 10;
const BACKLOG: i32 = 1024;
/// A side that is silent for so long is probed, so that connections of vanished clients do not stay for ever.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Refused connections, and failures to accept or to connect, are logged at most so often.
const LOG_EVERY: Duration = Duration::from_secs(10);

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
    /// Connections at once; one more is closed as soon as it is accepted. Defaults to 4096: each takes two threads.
    pub connections_max: usize,
}

impl ProxyConfig {
    /// A proxy with the defaults.
    pub fn new(listen: impl Into<String>, port: u16) -> Self {
        Self { listen: listen.into(), port, proxy_protocol: false, connections_max: 4096 }
    }
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
    threads: Arc<Group>,
}

struct Shared {
    config: ProxyConfig,
    /// As bound: of interest for port 0.
    address: SocketAddr,
    /// Keeps the port.
    _bound: Socket,
    state: Mutex<State>,
    logged: Mutex<Option<Instant>>,
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
    server: Option<Arc<Socket>>,
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
    /// Binds the port. Clients are refused until [`open`](Self::open).
    pub(crate) fn bind(config: ProxyConfig) -> Result<Self, Error> {
        let resolved = config.listen.to_socket_addrs().map_err(|error| cannot_listen(&config, error))?.next();
        let address = resolved.ok_or_else(|| cannot_listen(&config, io::Error::other("the name has no address")))?;
        let (socket, address) = bind(address).map_err(|error| cannot_listen(&config, error))?;
        let state = State { listener: None, host: None, opened: 0, connections: HashMap::new(), last_key: 0 };
        let shared = Shared { config, address, _bound: socket, state: Mutex::new(state), logged: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), threads: Arc::default() })
    }

    /// The address clients connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Accepts clients and connects them to `host`; does nothing if it does so already. Open to another host, it is closed
    /// first. Never blocks.
    pub(crate) fn open(&self, host: &str) -> Result<(), Error> {
        if self.shared.state.lock().host.as_deref() == Some(host) {
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
        let (shared, threads) = (self.shared.clone(), self.threads.clone());
        let name = format!("proxy {}", self.shared.address.port());
        self.threads.spawn(name, move || accept(&shared, &threads, &listener, opened)).map_err(|error| {
            self.close();
            failed(error)
        })?;
        log::info!("clients at {} are connected to {}", self.address(), show_target(host, self.shared.config.port));
        Ok(())
    }

    /// Refuses clients, and cuts all connections. Never blocks.
    pub(crate) fn close(&self) {
        let cut = {
            let mut state = self.shared.state.lock();
            state.host = None;
            let Some(listener) = state.listener.take() else { return };
            // A blocked `accept` returns.
            let _ = listener.shutdown(Shutdown::Both);
            state.connections.values().for_each(Sockets::shut_down);
            state.connections.len()
        };
        log::info!("clients at {} are refused; {cut} connections were cut", self.address());
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
        self.threads.join(Instant::now() + DROP_JOIN_MAX);
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

/// The accept thread's life: until the proxy is closed.
fn accept(shared: &Arc<Shared>, threads: &Arc<Group>, listener: &TcpListener, opened: u64) {
    /// Accepting fails for want of file descriptors, mostly: they come back when something is closed.
    const RETRY: Duration = Duration::from_millis(100);
    loop {
        let accepted = listener.accept();
        if !shared.is_open(opened) {
            return;
        }
        let started = accepted.and_then(|(client, from)| {
            let Some(connection) = Connection::register(shared, client, from, opened) else { return Ok(()) };
            let threads_of_server = threads.clone();
            threads.spawn("client", move || connection.run(&threads_of_server))
        });
        if let Err(error) = started {
            shared.warn(format_args!("cannot accept a client: {error}; trying again"));
            std::thread::park_timeout(RETRY);
        }
    }
}

impl Shared {
    fn is_open(&self, opened: u64) -> bool {
        let state = self.state.lock();
        state.host.is_some() && state.opened == opened
    }

    /// Clients may come by the thousand: says no more than a line each [`LOG_EVERY`].
    fn warn(&self, what: fmt::Arguments<'_>) {
        let now = Instant::now();
        let due = {
            let mut logged = self.logged.lock();
            let due = logged.is_none_or(|at| now >= at + LOG_EVERY);
            if due {
                *logged = Some(now);
            }
            due
        };
        if due {
            log::warn!("proxy at {}: {what}", self.address);
        }
    }
}

/// A client's connection; off the list when both its threads have dropped it.
struct Connection {
    shared: Arc<Shared>,
    key: u64,
    opened: u64,
    client: Arc<TcpStream>,
    from: SocketAddr,
    host: Arc<str>,
}

impl Connection {
    fn register(shared: &Arc<Shared>, client: TcpStream, from: SocketAddr, opened: u64) -> Option<Arc<Self>> {
        let client = Arc::new(client);
        let most = shared.config.connections_max;
        let mut state = shared.state.lock();
        let host = state.host.clone().filter(|_| state.opened == opened)?;
        if state.connections.len() >= most {
            drop(state);
            shared.warn(format_args!("there are {most} connections already: closing those that come"));
            return None;
        }
        state.last_key += 1;
        let key = state.last_key;
        state.connections.insert(key, Sockets { client: client.clone(), server: None });
        drop(state);
        Some(Arc::new(Self { shared: shared.clone(), key, opened, client, from, host }))
    }

    /// The life of the thread that copies what the client sends.
    fn run(self: Arc<Self>, threads: &Group) {
        let server = match self.connect() {
            Ok(server) => Arc::new(server),
            Err(error) => {
                let target = show_target(&self.host, self.shared.config.port);
                self.shared.warn(format_args!("cannot connect a client to {target}: {error}"));
                return;
            }
        };
        let (connection, of_thread) = (self.clone(), server.clone());
        if let Err(error) = threads.spawn("server", move || copy(&of_thread, &connection.client)) {
            self.shared.warn(format_args!("cannot start a thread for a client: {error}"));
            return;
        }
        copy(&self.client, &server);
    }

    /// To the first of the host's addresses that answers.
    fn connect(&self) -> io::Result<TcpStream> {
        prepare(&SockRef::from(&*self.client))?;
        let mut last = io::Error::other("the name has no address");
        for address in (&*self.host, self.shared.config.port).to_socket_addrs()? {
            match self.connect_to(address) {
                Ok(server) => return Ok(server),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = Arc::new(Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?);
        {
            let mut state = self.shared.state.lock();
            // Closed meanwhile: the list may have been walked already.
            if state.host.is_none() || state.opened != self.opened {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            if let Some(sockets) = state.connections.get_mut(&self.key) {
                sockets.server = Some(socket.clone());
            }
        }
        socket.connect_timeout(&SockAddr::from(address), CONNECT_TIMEOUT)?;
        prepare(&SockRef::from(&*socket))?;
        let mut server = TcpStream::from(socket.try_clone()?);
        if self.shared.config.proxy_protocol {
            server.write_all(proxy_header(self.from, self.client.local_addr()?).as_bytes())?;
        }
        Ok(server)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let removed = self.shared.state.lock().connections.remove(&self.key);
        drop(removed);
    }
}

fn prepare(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL))
}

/// Copies until `from` ends, and passes the end on. An error ends both directions.
fn copy(from: &TcpStream, to: &TcpStream) {
    let (mut reader, mut writer) = (from, to);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut step = || -> io::Result<bool> {
        let count = match reader.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
            read => read?,
        };
        writer.write_all(&buffer[..count])?;
        Ok(count > 0)
    };
    let ended = loop {
        match step() {
            Ok(true) => {}
            Ok(false) => break to.shutdown(Shutdown::Write),
            Err(error) => break Err(error),
        }
    };
    if ended.is_err() {
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

/// The header of the PROXY protocol, version 1: at most 107 bytes.
fn proxy_header(from: SocketAddr, to: SocketAddr) -> String {
    let family = match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => "TCP4",
        (IpAddr::V6(_), IpAddr::V6(_)) => "TCP6",
        _ => return "PROXY UNKNOWN\r\n".to_owned(),
    };
    let (source, destination) = (from.ip().to_canonical(), to.ip().to_canonical());
    format!("PROXY {family} {source} {destination} {} {}\r\n", from.port(), to.port())
}

#[cfg(test)]
mod tests;
