//! The Paceline extension of the replication protocol, version 2: what two Paceline nodes speak, and how they find out.
//!
//! What follows is the protocol itself, for whoever writes another implementation. Why it is so:
//!
//! - *Controls* are appends to reserved names, so that one decoder serves both protocols, and a batch without controls is the same bytes to every follower.
//! - What a follower lacks is found *by content*, whatever became of either side since they last met: restarts, other leaders, other programs, backups put back, directories
//!   copied. With 16 files a bucket or so, what it costs goes with what differs and not with what there is. Either side may keep digests for as long as it
//!   knows that the content is still theirs; how it knows is its own affair (`src/digests`), the other takes no word for it but the digests.
//! - A version that may be talked down to would have every fault of the earlier one: version 1 passed over controls that it did not know, so it is not spoken.
//!
#![doc = include_str!("PROTOCOL.md")]

mod control;
mod fields;
mod item;
mod message;

use std::io::{self, Read};

use super::{ProtocolError, START_HEADER, checked_length};

pub use self::control::Control;
pub use self::fields::{Fields, field};
pub use self::item::{Attributes, Item, TARGET_BYTES_MAX};
pub use self::message::{Held, Marks, Message, chunks_max, split_inventory, split_items};

/// The version we speak.
pub const VERSION: u16 = 2;

const MAGIC: [u8; 6] = *b"PACELN";

/// A chunk of a file with a digest of its own, in bytes.
pub const CHUNK_BYTES: u64 = CHUNK as u64;

/// The same.
pub(crate) const CHUNK: usize = 256 << 10;

/// The SHA-1 of a chunk.
pub type ChunkDigest = [u8; 20];

/// What the files of a bucket come to; all zeros if there are none.
pub type Sum = [u8; 20];

/// There are at most 2^this buckets.
pub const BUCKET_BITS_MAX: u8 = 16;

/// The most buckets that a control asks for.
pub const TELL_MAX: usize = 4000;

/// The longest message of a follower, in bytes: the digests of a file of 800 GiB fit. An inventory goes in as many messages
/// as it needs, mostly far shorter ones.
pub const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// The longest record of fields, in bytes.
pub const FIELDS_BYTES_MAX: u64 = 16 << 10;

/// The longest content of a control that is held in memory, in bytes.
pub const CONTROL_BYTES_MAX: u64 = 16 << 10;

/// How a peer that connects begins, or how a leader answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// 1.0.0's header.
    V1,
    /// The extension, in this version.
    Extension(u16),
}

impl Start {
    /// The header's bytes.
    #[must_use]
    pub fn header(self) -> [u8; 8] {
        match self {
            Self::V1 => START_HEADER,
            Self::Extension(version) => {
                let mut header = [0; 8];
                header[..6].copy_from_slice(&MAGIC);
                header[6..].copy_from_slice(&version.to_le_bytes());
                header
            }
        }
    }

    /// Reads a header. Blocks as long as `peer` does.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::StartHeader`] if it is neither, or version 0.
    pub fn read(peer: &mut impl Read) -> Result<Self, ProtocolError> {
        let mut header = [0; 8];
        peer.read_exact(&mut header)?;
        match header.split_first_chunk::<6>() {
            _ if header == START_HEADER => Ok(Self::V1),
            Some((&MAGIC, version)) if version != [0, 0] => {
                Ok(Self::Extension(u16::from_le_bytes([version[0], version[1]])))
            }
            _ => Err(ProtocolError::StartHeader(header)),
        }
    }
}

/// A peer's text, for a log line.
fn printable(text: &[u8]) -> String {
    const CHARS_MAX: usize = 300;
    let replaced = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    String::from_utf8_lossy(text).chars().take(CHARS_MAX).map(replaced).collect()
}

/// Reads `u32` length and as many bytes.
fn read_sized(peer: &mut impl Read, what: &'static str, max: u64) -> Result<Vec<u8>, ProtocolError> {
    let mut length = [0; 4];
    peer.read_exact(&mut length)?;
    let length = checked_length(what, i64::from(u32::from_le_bytes(length)), max)?;
    let mut body = Vec::new();
    peer.take(length).read_to_end(&mut body)?;
    if body.len() as u64 != length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(body)
}

fn take<'a, const N: usize>(rest: &mut &'a [u8], what: &'static str) -> Result<&'a [u8; N], ProtocolError> {
    let (taken, after) = rest.split_first_chunk().ok_or(ProtocolError::Malformed(what))?;
    *rest = after;
    Ok(taken)
}

fn take_slice<'a>(rest: &mut &'a [u8], length: usize, what: &'static str) -> Result<&'a [u8], ProtocolError> {
    let (taken, after) = rest.split_at_checked(length).ok_or(ProtocolError::Malformed(what))?;
    *rest = after;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RelPath;
    use proptest::prelude::*;

    pub(super) fn any_attributes() -> impl Strategy<Value = Attributes> {
        (0..=Attributes::MODE_BITS, any::<i64>()).prop_map(|(mode, mtime)| Attributes { mode, mtime })
    }

    pub(super) fn any_item() -> impl Strategy<Value = Item> {
        let folder = any_attributes().prop_map(|it| Item::Folder(Attributes { mtime: Attributes::NO_TIME, ..it }));
        let target = prop::collection::vec(1..=u8::MAX, 1..50);
        let link = target.prop_map(|target| Item::link(&target).unwrap());
        prop_oneof![folder, link]
    }

    #[test]
    fn no_link_leads_nowhere() {
        let link = |target: &[u8]| Item::link(target);
        assert!(link(b"").is_none() && link(b"a\0b").is_none() && link(&[b'a'; TARGET_BYTES_MAX + 1]).is_none());
        assert!(link(&[b'a'; TARGET_BYTES_MAX]).is_some());
        let wire = |mode: u16| [&[1, 0, b'a'][..], &mode.to_le_bytes(), &[0; 8]].concat();
        let name = RelPath::new("$paceline/attributes").unwrap();
        assert!(Control::decode(&name, &wire(0o777)).is_ok() && Control::decode(&name, &wire(0o1000)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::read(&mut &bytes[..]);
            let _ = Fields::read(&mut &bytes[..]);
            let _ = Start::read(&mut &bytes[..]);
            for name in ["rename", "truncate", "patch", "hole", "stage", "sync-begins", "position", "heartbeat", "goodbye", "want", "tell", "attributes", "item", "remove-item"] {
                let _ = Control::decode(&RelPath::new(&format!("$paceline/{name}")).unwrap(), &bytes);
            }
        }
    }

    #[test]
    fn starts_are_told_apart() {
        for start in [Start::V1, Start::Extension(1), Start::Extension(0x0203)] {
            assert_eq!(Start::read(&mut &start.header()[..]).unwrap(), start);
        }
        assert!(Start::read(&mut &Start::Extension(0).header()[..]).is_err());
        assert!(Start::read(&mut &b"GET / HT"[..]).is_err());
    }
}
