//! A port that is this node's own from its start to its end, also while nothing is accepted at it.
//!
//! A socket is bound to it that never listens, so clients are refused at once, and no other program can take the port: it would
//! be missed just when this node is to serve. Whoever listens gets a socket of its own, bound beside that one.

use std::io;

use crate::sys::net::{SocketAddr, TcpListener, ToSocketAddrs};
use crate::sys::socket2::{Domain, Protocol, SockAddr, Socket, Type};

const BACKLOG: i32 = 1024;

pub(super) struct Port {
    held: Socket,
    /// As bound: of interest for port 0.
    address: SocketAddr,
}

impl Port {
    /// Binds the first address of `listen`, `HOST:PORT`, that can be.
    pub(super) fn hold(listen: &str) -> io::Result<Self> {
        let mut failed = io::Error::other("the name has no address");
        for address in listen.to_socket_addrs()? {
            match bind(address) {
                Ok(held) => {
                    let address = held.local_addr()?.as_socket().unwrap_or(address);
                    // Binding again is for what listens here; with the option any server with it could.
                    held.set_reuse_address(false)?;
                    // Some other program may have bound it in the same way, and listen: this is how that shows.
                    let port = Self { held, address };
                    port.listen()?;
                    return Ok(port);
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Listens at the port, until what is returned is closed or shut down. One at a time.
    pub(super) fn listen(&self) -> io::Result<TcpListener> {
        self.held.set_reuse_address(true)?;
        let listening = bind(self.address).and_then(|socket| socket.listen(BACKLOG).map(|()| socket));
        self.held.set_reuse_address(false)?;
        Ok(listening?.into())
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier time linger in the system and would refuse us the port.
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn nobody_else_gets_the_port_before_between_and_after_the_times_it_is_listened_at() {
        let port = Port::hold("127.0.0.1:0").unwrap();
        let is_ours = || {
            // As servers bind, with the option to reuse the address; and anywhere.
            for taken in [port.address(), SocketAddr::from(([0, 0, 0, 0], port.address().port()))] {
                assert_eq!(TcpListener::bind(taken).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            }
            assert_eq!(Port::hold(&port.address().to_string()).err().unwrap().kind(), io::ErrorKind::AddrInUse);
        };
        for _ in 0..2 {
            is_ours();
            assert_eq!(TcpStream::connect(port.address()).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            let listener = port.listen().unwrap();
            let mut client = TcpStream::connect(port.address()).unwrap();
            let server = listener.accept().unwrap().0;
            is_ours();
            drop(listener);
            // The connection of this time lingers.
            drop(server);
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
        is_ours();
    }
}
