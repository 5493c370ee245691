//! `socket2`'s sockets in a simulated world.

use std::io;
use std::ops::Deref;
use std::time::Duration;

use ::rustix::io::Errno;

pub use ::socket2::{Domain, Protocol, SockAddr, Type};

use super::net::{self, Descriptor, Shutdown, TcpListener, TcpStream};

/// As [`socket2::TcpKeepalive`](::socket2::TcpKeepalive), whose values cannot be read.
#[derive(Clone, Debug, Default)]
pub struct TcpKeepalive {
    time: Option<Duration>,
    interval: Option<Duration>,
    retries: Option<u32>,
}

impl TcpKeepalive {
    #[must_use]
    pub const fn new() -> Self {
        Self { time: None, interval: None, retries: None }
    }

    #[must_use]
    pub const fn with_time(self, time: Duration) -> Self {
        Self { time: Some(time), ..self }
    }

    #[must_use]
    pub const fn with_interval(self, interval: Duration) -> Self {
        Self { interval: Some(interval), ..self }
    }

    #[must_use]
    pub const fn with_retries(self, retries: u32) -> Self {
        Self { retries: Some(retries), ..self }
    }
}

/// As [`socket2::Socket`](::socket2::Socket); TCP only.
#[derive(Debug)]
pub struct Socket(pub(super) Descriptor);

impl Socket {
    pub fn new(_: Domain, kind: Type, _: Option<Protocol>) -> io::Result<Self> {
        if kind != Type::STREAM {
            return Err(Errno::PROTONOSUPPORT.into());
        }
        Descriptor::socket().map(Self)
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    pub fn bind(&self, address: &SockAddr) -> io::Result<()> {
        self.0.bind(inet(address)?)
    }

    pub fn listen(&self, backlog: i32) -> io::Result<()> {
        self.0.listen(usize::try_from(backlog).unwrap_or(usize::MAX))
    }

    #[track_caller]
    pub fn connect(&self, address: &SockAddr) -> io::Result<()> {
        self.0.connect(inet(address)?, None)
    }

    #[track_caller]
    pub fn connect_timeout(&self, address: &SockAddr, timeout: Duration) -> io::Result<()> {
        self.0.connect(inet(address)?, Some(timeout))
    }

    #[track_caller]
    pub fn accept(&self) -> io::Result<(Self, SockAddr)> {
        let (socket, address) = self.0.accept()?;
        Ok((Self(socket), address.into()))
    }

    pub fn local_addr(&self) -> io::Result<SockAddr> {
        net::local_addr(&self.0).map(SockAddr::from)
    }

    pub fn peer_addr(&self) -> io::Result<SockAddr> {
        net::peer_addr(&self.0).map(SockAddr::from)
    }

    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.0.shutdown(how)
    }

    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.0.take_error()
    }

    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.0.set(|options| options.nonblocking = nonblocking)
    }

    pub fn set_reuse_address(&self, reuse: bool) -> io::Result<()> {
        self.0.set(|options| options.reuse = reuse)
    }

    pub fn set_tcp_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.0.set(|options| options.nodelay = nodelay)
    }

    pub fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        self.0.set(|options| options.linger = linger)
    }

    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.set(|options| options.read_timeout = timeout.filter(|timeout| !timeout.is_zero()))
    }

    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.set(|options| options.write_timeout = timeout.filter(|timeout| !timeout.is_zero()))
    }

    pub fn set_keepalive(&self, keeps_alive: bool) -> io::Result<()> {
        self.0.set(|options| options.keeps_alive = keeps_alive)
    }

    pub fn set_tcp_keepalive(&self, keepalive: &TcpKeepalive) -> io::Result<()> {
        self.0.set(|options| {
            options.keeps_alive = true;
            let set = &mut options.keepalive;
            set.time = keepalive.time.unwrap_or(set.time);
            set.interval = keepalive.interval.unwrap_or(set.interval);
            set.retries = keepalive.retries.unwrap_or(set.retries);
        })
    }

    pub fn set_tcp_user_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.set(|options| options.user_timeout = timeout.filter(|timeout| !timeout.is_zero()))
    }
}

fn inet(address: &SockAddr) -> io::Result<net::SocketAddr> {
    address.as_socket().ok_or_else(|| Errno::AFNOSUPPORT.into())
}

impl From<Socket> for TcpStream {
    fn from(socket: Socket) -> Self {
        Self(socket)
    }
}

impl From<Socket> for TcpListener {
    fn from(socket: Socket) -> Self {
        Self(socket)
    }
}

impl From<TcpStream> for Socket {
    fn from(socket: TcpStream) -> Self {
        socket.0
    }
}

impl From<TcpListener> for Socket {
    fn from(socket: TcpListener) -> Self {
        socket.0
    }
}

/// As [`socket2::SockRef`](::socket2::SockRef).
#[derive(Debug)]
pub struct SockRef<'a>(&'a Socket);

impl Deref for SockRef<'_> {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        self.0
    }
}

impl<'a> From<&'a Socket> for SockRef<'a> {
    fn from(socket: &'a Socket) -> Self {
        Self(socket)
    }
}

impl<'a> From<&'a TcpStream> for SockRef<'a> {
    fn from(socket: &'a TcpStream) -> Self {
        Self(&socket.0)
    }
}

impl<'a> From<&'a TcpListener> for SockRef<'a> {
    fn from(socket: &'a TcpListener) -> Self {
        Self(&socket.0)
    }
}
