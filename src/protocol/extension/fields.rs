//! What a node says of itself.

use std::io::{self, Read, Write};

use super::{FIELDS_BYTES_MAX, printable, read_sized, take, take_slice};
use crate::protocol::ProtocolError;
use crate::types::{DataSetId, NodeId};

/// What a node says of itself: `u32` length, then fields of `u16` tag, `u16` length and content. Unknown tags are skipped; the
/// first field of a tag counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<(u16, Vec<u8>)>);

/// The tags of [`Fields`].
pub mod field {
    /// `i32`: the node's id.
    pub const ID: u16 = 1;
    /// `u64`, leader: chosen at random when it started. Another one is another leader, or the same started anew.
    pub const EPOCH: u16 = 2;
    /// `u32`, leader: milliseconds between two heartbeats, of either side.
    pub const HEARTBEAT_MS: u16 = 3;
    /// Text, leader: why this follower was last let go.
    pub const LAST_EVICTION: u16 = 4;
    /// `u32`, leader: milliseconds until it will be admitted to a sync.
    pub const ADMITTED_IN_MS: u16 = 5;
    /// 16 bytes: which data set the sender's directory is. A follower that has none, or would give up the one it has, leaves it out; one
    /// that says another than the leader's is told the leader's, and the connection ends: it follows no leader of another data set.
    pub const DATA_SET: u16 = 6;
    /// `u64`, leader: the term of the election that it won, which makes the positions of its stream compare with those of other leaders. One outside a cluster leaves it out.
    pub const TERM: u16 = 7;
}

impl Fields {
    /// Adds a field.
    ///
    /// # Panics
    ///
    /// If `content` has more than 65,535 bytes.
    #[must_use]
    pub fn with(mut self, tag: u16, content: &[u8]) -> Self {
        assert!(u16::try_from(content.len()).is_ok(), "a field has at most 65,535 bytes");
        self.0.push((tag, content.to_vec()));
        self
    }

    /// The content of a field; `None` if there is none.
    #[must_use]
    pub fn get(&self, tag: u16) -> Option<&[u8]> {
        self.0.iter().find(|(found, _)| *found == tag).map(|(_, content)| &content[..])
    }

    /// A field of `u32`; `None` if there is none, or of another size.
    #[must_use]
    pub fn u32(&self, tag: u16) -> Option<u32> {
        self.get(tag)?.try_into().ok().map(u32::from_le_bytes)
    }

    /// A field of `u64`; `None` if there is none, or of another size.
    #[must_use]
    pub fn u64(&self, tag: u16) -> Option<u64> {
        self.get(tag)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// A field of text, with what is not UTF-8 or not printable replaced; `None` if there is none.
    #[must_use]
    pub fn text(&self, tag: u16) -> Option<String> {
        Some(printable(self.get(tag)?))
    }

    /// The data set id; `None` if there is none, or of another size.
    #[must_use]
    pub fn data_set(&self) -> Option<DataSetId> {
        self.get(field::DATA_SET)?.try_into().ok().map(DataSetId::from_bytes)
    }

    /// The node's id.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::NodeId`] if it is missing or not 1 or above.
    pub fn id(&self) -> Result<NodeId, ProtocolError> {
        let id = self.get(field::ID).and_then(|id| id.try_into().ok()).map_or(0, i32::from_le_bytes);
        NodeId::new(id).map_err(|_| ProtocolError::NodeId(id))
    }

    /// Writes the record, in one write.
    ///
    /// # Errors
    ///
    /// Those of `peer`.
    pub fn write(&self, peer: &mut impl Write) -> io::Result<()> {
        let mut body = Vec::new();
        for (tag, content) in &self.0 {
            body.extend_from_slice(&tag.to_le_bytes());
            body.extend_from_slice(&u16::try_from(content.len()).map_err(io::Error::other)?.to_le_bytes());
            body.extend_from_slice(content);
        }
        let mut record = u32::try_from(body.len()).map_err(io::Error::other)?.to_le_bytes().to_vec();
        record.extend_from_slice(&body);
        peer.write_all(&record)
    }

    /// Reads a record. Blocks as long as `peer` does.
    ///
    /// # Errors
    ///
    /// A length beyond [`FIELDS_BYTES_MAX`], or a field that reaches beyond its record.
    pub fn read(peer: &mut impl Read) -> Result<Self, ProtocolError> {
        let body = read_sized(peer, "length of fields", FIELDS_BYTES_MAX)?;
        let mut rest = &body[..];
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let tag = u16::from_le_bytes(*take(&mut rest, "field")?);
            let length = u16::from_le_bytes(*take(&mut rest, "field")?);
            fields.push((tag, take_slice(&mut rest, usize::from(length), "field")?.to_vec()));
        }
        Ok(Self(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_and_unknown_ones_skipped() {
        let id = NodeId::new(77).unwrap();
        let fields = Fields::default().with(999, b"later").with(field::ID, &id.get().to_le_bytes());
        let mut wire = Vec::new();
        fields.write(&mut wire).unwrap();
        let read = Fields::read(&mut &wire[..]).unwrap();
        assert_eq!(read.id().unwrap(), id);
        assert_eq!(read.u64(field::EPOCH), None);
        assert!(Fields::default().id().is_err());
    }

    #[test]
    fn each_kind_of_field_is_read_as_what_it_is_or_not_at_all() {
        let fields = Fields::default()
            .with(field::HEARTBEAT_MS, &700_u32.to_le_bytes())
            .with(field::EPOCH, &(1_u64 << 40).to_le_bytes())
            .with(field::LAST_EVICTION, "too\tslow \u{e4}".as_bytes())
            .with(field::DATA_SET, &[3; 16]);
        assert_eq!((fields.u32(field::HEARTBEAT_MS), fields.u32(field::EPOCH)), (Some(700), None));
        assert_eq!((fields.u64(field::EPOCH), fields.u64(field::HEARTBEAT_MS)), (Some(1 << 40), None));
        assert_eq!(fields.text(field::LAST_EVICTION).as_deref(), Some("too\u{fffd}slow \u{e4}"));
        assert_eq!(fields.data_set(), Some(DataSetId::from_bytes([3; 16])));
        let none = Fields::default().with(field::DATA_SET, &[3; 15]);
        assert_eq!((none.text(field::LAST_EVICTION), none.data_set()), (None, None));
    }
}
