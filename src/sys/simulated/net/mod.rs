//! `std::net`'s TCP in a simulated world: sockets are pairs of buffers, with links between them that delay, cut and forget.
//!
//! The programs' side is here and in [`socket2`](super::socket2), the driver's is [`Network`]. Packets travel in virtual time; the
//! scheduler lets them arrive, so that they need no thread.
//!
//! A model of Linux where programs can tell: connecting before `accept`, the backlog, `FIN` and `RST`, both buffers, a blocked writer that
//! goes on when a third is free, timeouts, keepalive. Not modelled: congestion, `TIME_WAIT` of ports, UDP.

mod call;
mod close;
mod core;
mod driver;
mod name;
mod path;
mod tcp;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::time::Duration;

use ::rustix::io::Errno;

pub use std::net::{AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV4, SocketAddrV6};

pub(super) use self::call::Descriptor;
pub use self::driver::{Connection, Link, Moved, Name, NetSettings, Network};
pub use self::name::ToSocketAddrs;
use super::socket2::Socket;

const BACKLOG: usize = 128;

/// What `setsockopt` takes for a timeout.
pub(super) fn checked_timeout(timeout: Option<Duration>) -> io::Result<Option<Duration>> {
    match timeout {
        Some(Duration::ZERO) => Err(io::Error::new(io::ErrorKind::InvalidInput, "cannot set a 0 duration timeout")),
        timeout => Ok(timeout),
    }
}

/// Tries each address until one will do.
fn each<T>(addresses: impl ToSocketAddrs, mut each: impl FnMut(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    let mut failed = io::Error::new(io::ErrorKind::InvalidInput, "could not resolve to any addresses");
    for address in addresses.to_socket_addrs()? {
        match each(address) {
            Ok(done) => return Ok(done),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Bytes that the peer's system has not acknowledged.
pub fn send_queue_bytes(socket: &TcpStream) -> Option<u64> {
    super::world::step();
    socket.0.0.look(|socket| socket.sending.len() as u64).ok()
}

/// As [`std::net::TcpStream`].
pub struct TcpStream(pub(super) Socket);

/// The lowest free number, as far as it is known: how many sockets the process has.
impl super::fd::AsRawFd for TcpStream {
    fn as_raw_fd(&self) -> super::fd::RawFd {
        let world = super::world::current();
        i32::try_from(world.network().open_sockets(world.process())).unwrap_or(i32::MAX)
    }
}

impl TcpStream {
    #[track_caller]
    pub fn connect(addresses: impl ToSocketAddrs) -> io::Result<Self> {
        each(addresses, |address| {
            let socket = Descriptor::socket()?;
            socket.connect(address, None)?;
            Ok(Self(Socket(socket)))
        })
    }

    #[track_caller]
    pub fn connect_timeout(address: &SocketAddr, timeout: Duration) -> io::Result<Self> {
        checked_timeout(Some(timeout))?;
        let socket = Descriptor::socket()?;
        socket.connect(*address, Some(timeout))?;
        Ok(Self(Socket(socket)))
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        local_addr(&self.0.0)
    }

    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        peer_addr(&self.0.0)
    }

    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.0.0.shutdown(how)
    }

    #[track_caller]
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.0.read(&mut [IoSliceMut::new(buffer)], true)
    }

    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = checked_timeout(timeout)?;
        self.0.0.set(|options| options.read_timeout = timeout)
    }

    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = checked_timeout(timeout)?;
        self.0.0.set(|options| options.write_timeout = timeout)
    }

    pub fn read_timeout(&self) -> io::Result<Option<Duration>> {
        self.0.0.look(|socket| socket.options.read_timeout)
    }

    pub fn write_timeout(&self) -> io::Result<Option<Duration>> {
        self.0.0.look(|socket| socket.options.write_timeout)
    }

    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.0.0.set(|options| options.nonblocking = nonblocking)
    }

    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.0.0.set(|options| options.nodelay = nodelay)
    }

    pub fn nodelay(&self) -> io::Result<bool> {
        self.0.0.look(|socket| socket.options.nodelay)
    }

    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.0.0.take_error()
    }
}

pub(super) fn local_addr(descriptor: &Descriptor) -> io::Result<SocketAddr> {
    let unspecified = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    descriptor.look(|socket| socket.local.unwrap_or(unspecified))
}

pub(super) fn peer_addr(descriptor: &Descriptor) -> io::Result<SocketAddr> {
    use self::core::State;
    let connected = |state| matches!(state, State::Open | State::SynReceived);
    let remote = descriptor.look(|socket| if connected(socket.state) { socket.remote } else { None })?;
    remote.ok_or_else(|| Errno::NOTCONN.into())
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TcpStream").field(&self.0).finish()
    }
}

impl Read for &TcpStream {
    #[track_caller]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.0.read(&mut [IoSliceMut::new(buffer)], false)
    }

    #[track_caller]
    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.0.0.read(buffers, false)
    }
}

impl Write for &TcpStream {
    #[track_caller]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.0.write(&[IoSlice::new(bytes)])
    }

    #[track_caller]
    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.0.write(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for TcpStream {
    #[track_caller]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }

    #[track_caller]
    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(buffers)
    }
}

impl Write for TcpStream {
    #[track_caller]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    #[track_caller]
    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// As [`std::net::TcpListener`].
pub struct TcpListener(pub(super) Socket);

impl TcpListener {
    pub fn bind(addresses: impl ToSocketAddrs) -> io::Result<Self> {
        each(addresses, |address| {
            let socket = Descriptor::socket()?;
            socket.set(|options| options.reuse = true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)?;
            Ok(Self(Socket(socket)))
        })
    }

    #[track_caller]
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (socket, address) = self.0.0.accept()?;
        Ok((TcpStream(Socket(socket)), address))
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        local_addr(&self.0.0)
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.0.0.set(|options| options.nonblocking = nonblocking)
    }

    pub fn incoming(&self) -> impl Iterator<Item = io::Result<TcpStream>> + '_ {
        std::iter::repeat_with(|| self.accept().map(|(socket, _)| socket))
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TcpListener").field(&self.0).finish()
    }
}
