//! The handshake with whoever connects, of protocol 1.0.0 or of the extension.
//!
//! It runs in the connection's own thread, within one deadline for all of it. What it refuses is answered as far as the protocol
//! has an answer, and closed.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use crate::leader::core::Core;
use crate::leader::peers::admission::admitted_in;
use crate::protocol::extension::{Fields, Start, VERSION, field};
use crate::protocol::{ACCEPTED, ProtocolError, REFUSED, START_HEADER, read_node_id, read_secret};
use crate::sys::net::{Shutdown, TcpStream};
use crate::sys::time::Instant;
use crate::types::{DataSetId, NodeId};

/// What a peer sends that is no follower, in one line.
#[derive(Debug, thiserror::Error)]
pub(in crate::leader) enum Refusal {
    #[error("{0}; answered with the header of protocol 1.0.0")]
    Header(ProtocolError),
    #[error("wrong secret")]
    Secret,
    #[error("it has the leader's own id {0}: give it another")]
    OwnId(NodeId),
    #[error(
        "follower {id} has a copy of data set {theirs}, and this is {ours}: it is told so, and keeps its copy as it is; its own log says what to do"
    )]
    OtherDataSet {
        id: NodeId,
        theirs: DataSetId,
        ours: DataSetId,
        /// It was said not long ago.
        known: bool,
    },
    #[error("did not authenticate within {0:?}")]
    Deadline(Duration),
    #[error("the connection ended before it had authenticated")]
    Ended,
    #[error(transparent)]
    Protocol(ProtocolError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Refusal {
    /// Whether the same was said not long ago.
    pub(in crate::leader) fn is_known(&self) -> bool {
        matches!(self, Self::OtherDataSet { known: true, .. })
    }
}

/// Who has authenticated, and what it speaks.
pub(in crate::leader) struct Shaken {
    pub(in crate::leader) id: NodeId,
    pub(in crate::leader) extension: bool,
}

/// Blocks until `handshake_timeout` has passed, all in all.
pub(in crate::leader) fn shake(core: &Core, socket: &TcpStream) -> Result<Shaken, Refusal> {
    let limit = core.config.handshake_timeout;
    let mut peer = WithDeadline { socket, deadline: Instant::now() + limit };
    let timed_out = |error| match error {
        ProtocolError::Io(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Refusal::Deadline(limit)
        }
        ProtocolError::Io(error) if error.kind() == ErrorKind::UnexpectedEof => Refusal::Ended,
        error => Refusal::Protocol(error),
    };
    socket.set_write_timeout(Some(limit))?;
    socket.set_nodelay(true)?;
    let extension = match Start::read(&mut peer) {
        Ok(Start::V1) => false,
        Ok(Start::Extension(version)) => {
            peer.socket.write_all(&Start::Extension(version.min(VERSION)).header())?;
            true
        }
        Err(error @ ProtocolError::StartHeader(_)) => {
            answer_and_close(&mut peer, &START_HEADER);
            return Err(Refusal::Header(error));
        }
        Err(error) => return Err(timed_out(error)),
    };
    let refusal = match read_secret(&mut peer) {
        Ok(secret) if core.config.secret.matches(&secret) => None,
        Ok(_) => Some(Refusal::Secret),
        Err(error @ ProtocolError::EmptySecret) => Some(Refusal::Protocol(error)),
        Err(error) => return Err(timed_out(error)),
    };
    if let Some(refusal) = refusal {
        answer_and_close(&mut peer, &[REFUSED]);
        return Err(refusal);
    }
    peer.socket.write_all(&[ACCEPTED])?;
    let told = match extension {
        false => read_node_id(&mut peer).map(|id| (id, None)),
        true => Fields::read(&mut peer).and_then(|fields| Ok((fields.id()?, fields.data_set()))),
    };
    let (id, data_set) = told.map_err(timed_out)?;
    if id == core.dir.id() {
        return Err(Refusal::OwnId(id));
    }
    if extension {
        about_us(core, id).write(&mut peer.socket)?;
    }
    if let Some(theirs) = data_set.filter(|theirs| *theirs != core.data_set) {
        // Not one of ours: it must not take the place of a follower that has its id, nor count for anything.
        let known = core.strangers.note(id, theirs);
        answer_and_close(&mut peer, &[]);
        return Err(Refusal::OtherDataSet { id, theirs, ours: core.data_set, known });
    }
    Ok(Shaken { id, extension })
}

/// What we tell a follower that knows the extension.
fn about_us(core: &Core, follower: NodeId) -> Fields {
    let heartbeat_ms = u32::try_from(core.config.heartbeat_interval.as_millis()).unwrap_or(u32::MAX);
    let fields = Fields::default()
        .with(field::ID, &core.dir.id().get().to_le_bytes())
        .with(field::DATA_SET, &core.data_set.to_bytes())
        .with(field::EPOCH, &core.epoch.to_le_bytes())
        .with(field::HEARTBEAT_MS, &heartbeat_ms.to_le_bytes());
    let fields = match core.term {
        Some(term) => fields.with(field::TERM, &term.to_le_bytes()),
        None => fields,
    };
    let fields = match admitted_in(&core.config, &core.history, follower) {
        Duration::ZERO => fields,
        delay => {
            let delay_ms = u32::try_from(delay.as_millis()).unwrap_or(u32::MAX);
            fields.with(field::ADMITTED_IN_MS, &delay_ms.to_le_bytes())
        }
    };
    if core.clashes.is_one(follower) {
        let text = format!(
            "another follower has the id {follower} too: give each its own (of a copied directory, delete .clustering_id)"
        );
        return fields.with(field::LAST_EVICTION, text.as_bytes());
    }
    match core.history.last_of(follower) {
        None => fields,
        Some(last) => {
            let ago = last.at.elapsed().unwrap_or_default().as_secs();
            fields.with(field::LAST_EVICTION, format!("{} ({ago} s ago)", last.reason).as_bytes())
        }
    }
}

/// Closing with bytes unread would reset the connection, and the peer might never see the answer: reads them first, for
/// a moment, if the peer does not close itself.
fn answer_and_close(peer: &mut WithDeadline<'_>, answer: &[u8]) {
    const UNREAD_BYTES_MAX: u64 = 4096;
    const UNREAD_FOR_MAX: Duration = Duration::from_millis(500);
    peer.deadline = peer.deadline.min(Instant::now() + UNREAD_FOR_MAX);
    if peer.socket.write_all(answer).and_then(|()| peer.socket.shutdown(Shutdown::Write)).is_ok() {
        let _ = io::copy(&mut peer.take(UNREAD_BYTES_MAX), &mut io::sink());
    }
}

struct WithDeadline<'a> {
    socket: &'a TcpStream,
    deadline: Instant,
}

impl Read for WithDeadline<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        self.socket.read(buffer)
    }
}
