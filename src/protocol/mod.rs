//! Replication protocol 1.0.0, as LavinMQ 2.x nodes speak it, and Paceline's own [`extension`]: bytes in, values out. No
//! sockets, clocks or logging here.
//!
//! The facts were read from LavinMQ's sources (`src/lavinmq/clustering/`, v2.0.0 to v2.9.1). Every integer is
//! little-endian.
//!
//! ```text
//! follower                                 leader
//!   start header, secret ────────────────▶               plain        handshake
//!               ◀──────────────── 0 accepted | 1 refused
//!   node id ─────────────────────────────▶
//!               ◀──────────── list: (name, SHA-1)*, end   LZ4 frame    round 1: the bulk
//!   requests: (name)*, end ──────────────▶               plain
//!               ◀──────────── (size, content)*
//!               ◀──────────── list …                                  round 2: what changed during round 1
//!   requests … ──────────────────────────▶
//!               ◀──────────── (size, content)*
//!               ◀──────────── actions …                               the stream, without a marker before it
//!   acknowledgements: i64 action bytes ──▶
//! ```
//!
//! From the first list on, everything the leader sends is one LZ4 frame, never ended, only cut; everything the follower
//! sends is plain. Nothing read is trusted: each length has a maximum here, checked before anything is allocated, and
//! names become [`RelPath`](crate::RelPath)s, which can name nothing outside the data directory.

mod action;
pub mod extension;
mod handshake;
mod lz4;
mod sync;

use std::io;

use crate::types::InvalidValue;

pub use action::{ActionDecoder, ActionKind, Event, encode_action_header, framing_bytes};
pub use handshake::{
    ACCEPTED, REFUSED, START_HEADER, read_node_id, read_secret, read_start_header, write_hello, write_node_id,
};
pub use lz4::{
    BLOCK_BYTES_MAX, BlockEncoder, Blocks, EMPTY_BLOCK, FRAME_HEADER, FrameReader, FrameWriter, frame_reader,
};
pub use sync::{
    ListEntry, Sha1Sum, read_file_size, read_list_entry, read_name, write_end, write_list_entry, write_name,
};

/// The longest name taken from the wire or from a host, in bytes: Linux's own `PATH_MAX`.
pub const NAME_BYTES_MAX: usize = 4096;

/// The most files in one list. Beyond it a peer is taken for hostile.
pub const LIST_FILES_MAX: usize = 1 << 24;

/// The most bytes of names in one list: a list is held in memory, and must not be what a hostile leader fills it with.
/// It is room for two and a half million names of a hundred bytes.
pub const LIST_NAME_BYTES_MAX: u64 = 256 << 20;

/// The largest payload of one append we send, in bytes. A follower up to LavinMQ 2.8 is silent until a whole action is
/// done, so a longer append is cut. What we *take* is only bounded by [`PAYLOAD_BYTES_MAX`].
pub const APPEND_BYTES_MAX: usize = 1 << 20;

/// The largest file or payload taken from the wire, in bytes. Nothing of that size is ever held in memory: it bounds the
/// arithmetic, and tells a length from noise.
pub const PAYLOAD_BYTES_MAX: u64 = 1 << 56;

/// The name whose delete we send as a probe: reserved, so it never exists, and yet every follower acknowledges it, which
/// says that all before it has been dealt with. (Protocol 1.0.0 acknowledges nothing of a full sync.)
pub const PROBE_NAME: &str = "$paceline-probe";

/// How a peer broke the protocol, or why its bytes could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The connection was cut, or could not be read; not a violation.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer's first bytes are not the start header of protocol 1.0.0.
    #[error("unknown start header {0:02x?}")]
    StartHeader([u8; 8]),
    /// A secret of no bytes.
    #[error("empty secret")]
    EmptySecret,
    /// A node id below 1.
    #[error("node id {0} is not 1 or above")]
    NodeId(i32),
    /// A length that is negative or beyond its maximum.
    #[error("{what} of {value} is not within 0 to {max}")]
    Length {
        /// What the length is of.
        what: &'static str,
        /// The length as it came.
        value: i64,
        /// The most that is taken.
        max: u64,
    },
    /// A name that is no relative path.
    #[error(transparent)]
    Name(#[from] InvalidValue),
    /// More list entries than [`LIST_FILES_MAX`].
    #[error("the list has more than {LIST_FILES_MAX} files")]
    ListTooLong,
    /// More bytes of names in one list than [`LIST_NAME_BYTES_MAX`].
    #[error("the list has more than {LIST_NAME_BYTES_MAX} bytes of names")]
    ListNamesTooLong,
    /// A list names the same file twice.
    #[error("{0:?} is listed twice")]
    ListedTwice(String),
    /// The follower asks for a file that this connection was not offered, or twice for the same.
    #[error("request for {0:?}, which is not open to this connection")]
    NotOffered(String),
    /// More acknowledged than was sent.
    #[error("acknowledged {acknowledged} bytes when only {sent} were sent")]
    AckedTooMuch {
        /// Sum of all acknowledgements.
        acknowledged: u64,
        /// Sum of all action bytes sent.
        sent: u64,
    },
    /// A message, field or control of the extension whose content does not fit its kind.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// A control, or an action, that does not fit where it stands or the file it is about.
    #[error("{0}")]
    OutOfPlace(String),
    /// The stream names a file that is never replicated.
    #[error("action on {0:?}, which is a reserved name")]
    Reserved(String),
}

impl ProtocolError {
    /// Whether the connection failed, rather than the peer's bytes being wrong.
    #[must_use]
    pub fn is_disconnect(&self) -> bool {
        matches!(self, Self::Io(_))
    }
}

/// Checks a length from the wire against its maximum.
fn checked_length(what: &'static str, value: i64, max: u64) -> Result<u64, ProtocolError> {
    match u64::try_from(value) {
        Ok(length) if length <= max => Ok(length),
        _ => Err(ProtocolError::Length { what, value, max }),
    }
}

#[cfg(test)]
mod tests {
    use super::extension::{CHUNK_BYTES, CONTROL_BYTES_MAX, FIELDS_BYTES_MAX, MESSAGE_BYTES_MAX};
    use super::*;

    #[test]
    fn limits_are_what_nodes_of_other_versions_go_by() {
        assert_eq!((LIST_FILES_MAX, LIST_NAME_BYTES_MAX), (16_777_216, 268_435_456));
        assert_eq!((APPEND_BYTES_MAX, PAYLOAD_BYTES_MAX), (1_048_576, 72_057_594_037_927_936));
        assert_eq!((CHUNK_BYTES, MESSAGE_BYTES_MAX), (262_144, 67_108_864));
        assert_eq!((FIELDS_BYTES_MAX, CONTROL_BYTES_MAX), (16_384, 16_384));
    }
}
