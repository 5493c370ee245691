//! Connecting, and the handshake.
//!
//! The socket is registered before it is connected, so that a stop ends the wait for the connection too. Both parts are
//! bounded by the connect timeout; after the handshake nothing here is, because a leader may be silent for as long as another
//! follower's sync takes, and because an LZ4 frame cannot be read on after a timeout. TCP's own keepalive notices a peer
//! that is gone.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use crate::config::FollowerConfig;
use crate::error::Error;
use crate::protocol::{ACCEPTED, ProtocolError, REFUSED, START_HEADER, write_hello, write_node_id};
use crate::sys::net::{SocketAddr, TcpStream, ToSocketAddrs};
use crate::sys::socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use crate::types::NodeId;

/// A leader that is silent for so long is probed; it is given up after four probes without an answer: after 30 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 4;
/// In the stream, how long an acknowledgement may stay without one of TCP's own.
const UNANSWERED_MAX: Duration = Duration::from_secs(30);

/// Connects to the first of the leader's addresses that answers. Blocks up to the connect timeout for each, and as long
/// as resolving the name takes.
pub(super) fn connect(config: &FollowerConfig, shared: &Shared) -> Result<(TcpStream, SocketAddr), Error> {
    let unresolved =
        |error: io::Error| Error::connection(format_args!("to {}", config.leader), explain_unresolved(&error));
    let mut last = None;
    for address in config.leader.to_socket_addrs().map_err(unresolved)? {
        shared.check()?;
        match connect_to(address, config.connect_timeout, shared) {
            Ok(stream) => return Ok((stream, address)),
            Err(error @ Error::ShuttingDown) => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| unresolved(io::Error::other("the name has no address"))))
}

/// A name may come to exist, so it is asked for again either way; what helps meanwhile is not the same.
fn explain_unresolved(error: &io::Error) -> io::Error {
    let text = error.to_string();
    // There is no other way to tell: the standard library keeps the words of the C library, and not its code.
    let hint = match ["Temporary failure", "Try again"].iter().any(|words| text.contains(words)) {
        true => "no name server answers: see /etc/resolv.conf",
        false => "there is no such name at present: check how it is written",
    };
    io::Error::new(error.kind(), format!("{text}; {hint}"))
}

fn connect_to(address: SocketAddr, timeout: Duration, shared: &Shared) -> Result<TcpStream, Error> {
    let failed = |error: io::Error| Error::connection(format_args!("to {address}"), error);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).map_err(failed)?;
    let socket = Arc::new(socket);
    shared.register(socket.clone())?;
    socket.connect_timeout(&SockAddr::from(address), timeout).map_err(failed)?;
    prepare(&socket).map_err(failed)?;
    Ok(TcpStream::from(socket.try_clone().map_err(failed)?))
}

fn prepare(socket: &Socket) -> io::Result<()> {
    // Without it each step of a sync waits 40 ms for the peer's delayed TCP acknowledgement.
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_PROBES))
}

/// Notices in the stream that the leader is gone also while acknowledgements are under way, when keepalive is silent.
///
/// Not before: during a sync a leader may leave our requests unread for as long as it sends a file.
pub(super) fn bound_unanswered(socket: &TcpStream) -> Result<(), Error> {
    SockRef::from(socket)
        .set_tcp_user_timeout(Some(UNANSWERED_MAX))
        .map_err(|error| Error::connection("could not be set up", error))
}

/// Presents secret and id. Each read and write blocks up to `timeout`.
pub(super) fn handshake(mut socket: &TcpStream, config: &FollowerConfig, id: NodeId) -> Result<(), Error> {
    let failed = |error: io::Error| lost("in the handshake", timed_out(error).into());
    let timeouts = |timeout| socket.set_read_timeout(timeout).and_then(|()| socket.set_write_timeout(timeout));
    timeouts(Some(config.connect_timeout)).map_err(failed)?;
    write_hello(&mut socket, &config.secret).map_err(failed)?;
    let mut answer = [0];
    socket.read_exact(&mut answer).map_err(failed)?;
    answered(socket, answer[0])?;
    write_node_id(&mut socket, id).map_err(failed)?;
    timeouts(None).map_err(failed)
}

/// What a leader said to our secret.
pub(super) fn answered(socket: &TcpStream, answer: u8) -> Result<(), Error> {
    match answer {
        ACCEPTED => Ok(()),
        REFUSED => Err(Error::SecretRefused),
        other => Err(Error::NotALeader(rest_of_answer(socket, other))),
    }
}

/// A leader that does not know our header answers with its own, of 8 bytes.
fn rest_of_answer(mut socket: &TcpStream, first: u8) -> String {
    let mut answer = vec![first];
    if first == START_HEADER[0] {
        // What does not come is not shown.
        let _ = socket.by_ref().take(7).read_to_end(&mut answer);
    }
    format!("{answer:02x?}")
}

/// A blocking socket says that a timeout passed as if it were a non-blocking one.
pub(super) fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "the peer was silent for too long"),
        _ => error,
    }
}

/// What reading from the leader came to: it broke the protocol, or the connection went (`when` says at which point).
pub(super) fn lost(when: impl fmt::Display, error: ProtocolError) -> Error {
    let doing = format_args!("lost {when}");
    match error {
        ProtocolError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Error::connection(doing, io::Error::new(error.kind(), "the leader closed it"))
        }
        ProtocolError::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<lz4_flex::frame::Error>()) => {
            Error::connection(doing, io::Error::new(error.kind(), format!("not an LZ4 frame: {error}")))
        }
        ProtocolError::Io(error) => Error::connection(doing, error),
        broken => Error::Protocol(broken),
    }
}
