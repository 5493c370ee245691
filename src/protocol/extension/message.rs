//! What a follower says.

use std::io::Read;

use super::{
    Attributes, CHUNK_BYTES, ChunkDigest, Item, MESSAGE_BYTES_MAX, Sum, printable, read_sized, take, take_slice,
};
use crate::protocol::{NAME_BYTES_MAX, ProtocolError};
use crate::types::RelPath;

/// What a follower says once the fields were exchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The sums of buckets, in order, from the one that comes after those told before.
    Sums(Vec<Sum>),
    /// All are told.
    SumsEnd,
    /// Files it has, of the buckets that it was asked for.
    Inventory(Vec<Held>),
    /// Folders and links it has, of the buckets that it was asked for.
    Items(Vec<(RelPath, Item)>),
    /// There are no more, neither files nor items.
    InventoryEnd,
    /// How far it has come.
    Marks(Marks),
    /// It is alive: sent when nothing else was for a heartbeat's interval. With it, how many bytes of its files it has digested on this connection: as
    /// long as that grows, it is at work.
    Heartbeat(u64),
    /// It cannot go on, for this reason, and leaves: the last that it says. Earlier versions pass over it.
    Farewell(String),
    /// Up to which position of this leader's stream its directory says of itself, from here on and after any restart, that it has everything. Earlier versions never say
    /// it, and pass over it.
    Kept(u64),
}

/// Totals of action bytes since the connection began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Read off the connection.
    pub received: u64,
    /// Written to files; with the leader's 1.0.0 word, acknowledged.
    pub written: u64,
    /// Known to survive a loss of power.
    pub durable: u64,
}

/// A file that a follower has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its name.
    pub path: RelPath,
    /// Its length in bytes.
    pub len: u64,
    /// The digests of its chunks, in order; as many as the length has chunks.
    pub digests: Vec<ChunkDigest>,
    /// What it has besides.
    pub attributes: Attributes,
}

/// What a file takes in a message besides its name and its digests.
const OTHERS_OF_HELD: usize = 2 + 8 + Attributes::BYTES;

impl Held {
    fn encoded_bytes(&self) -> usize {
        OTHERS_OF_HELD + self.path.as_str().len() + self.digests.len() * size_of::<ChunkDigest>()
    }
}

/// The most chunks of one file in an inventory: what fits a message with its name. A longer file is told up to there, and the
/// follower cuts it there when the sync begins.
#[must_use]
pub fn chunks_max() -> usize {
    (usize::try_from(MESSAGE_BYTES_MAX).unwrap_or(usize::MAX) - OTHERS_OF_HELD - NAME_BYTES_MAX)
        / size_of::<ChunkDigest>()
}

impl Message {
    const INVENTORY: u8 = 1;
    const INVENTORY_END: u8 = 2;
    const MARKS: u8 = 3;
    const HEARTBEAT: u8 = 4;
    const FAREWELL: u8 = 5;
    const SUMS: u8 = 6;
    const SUMS_END: u8 = 7;
    const ITEMS: u8 = 9;
    const KEPT: u8 = 8;

    /// Adds the message to the end of `out`.
    ///
    /// # Panics
    ///
    /// If an inventory does not fit a message: see [`split_inventory`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        let kind = match self {
            Self::Inventory(files) => {
                for file in files {
                    let name = file.path.as_str().as_bytes();
                    let length = u16::try_from(name.len()).expect("names have at most 4096 bytes");
                    body.extend_from_slice(&length.to_le_bytes());
                    body.extend_from_slice(name);
                    body.extend_from_slice(&file.len.to_le_bytes());
                    file.digests.iter().for_each(|digest| body.extend_from_slice(digest));
                    file.attributes.encode(&mut body);
                }
                Self::INVENTORY
            }
            Self::Items(items) => {
                for (path, item) in items {
                    let name = path.as_str().as_bytes();
                    let length = u16::try_from(name.len()).expect("names have at most 4096 bytes");
                    body.extend_from_slice(&length.to_le_bytes());
                    body.extend_from_slice(name);
                    item.encode(&mut body);
                }
                Self::ITEMS
            }
            Self::InventoryEnd => Self::INVENTORY_END,
            Self::Sums(sums) => {
                sums.iter().for_each(|sum| body.extend_from_slice(sum));
                Self::SUMS
            }
            Self::SumsEnd => Self::SUMS_END,
            Self::Marks(marks) => {
                for mark in [marks.received, marks.written, marks.durable] {
                    body.extend_from_slice(&mark.to_le_bytes());
                }
                Self::MARKS
            }
            Self::Heartbeat(digested) => {
                body.extend_from_slice(&digested.to_le_bytes());
                Self::HEARTBEAT
            }
            Self::Farewell(why) => {
                body.extend_from_slice(printable(why.as_bytes()).as_bytes());
                Self::FAREWELL
            }
            Self::Kept(position) => {
                body.extend_from_slice(&position.to_le_bytes());
                Self::KEPT
            }
        };
        assert!(body.len() as u64 <= MESSAGE_BYTES_MAX, "a message has at most 64 MiB");
        out.push(kind);
        out.extend_from_slice(&u32::try_from(body.len()).expect("checked above").to_le_bytes());
        out.extend_from_slice(&body);
    }

    /// Reads a message; `None` is one of a kind that this version does not know, to be passed over. Blocks as long as `peer`
    /// does.
    ///
    /// # Errors
    ///
    /// A message that is too long, or whose content does not fit its kind.
    pub fn read(peer: &mut impl Read) -> Result<Option<Self>, ProtocolError> {
        let mut kind = [0];
        peer.read_exact(&mut kind)?;
        let body = read_sized(peer, "message length", MESSAGE_BYTES_MAX)?;
        let mut rest = &body[..];
        let message = match kind[0] {
            Self::INVENTORY => {
                let mut files = Vec::new();
                while !rest.is_empty() {
                    files.push(take_held(&mut rest)?);
                }
                Self::Inventory(files)
            }
            Self::ITEMS => {
                let mut items = Vec::new();
                while !rest.is_empty() {
                    let length = usize::from(u16::from_le_bytes(*take(&mut rest, "items")?));
                    let path = RelPath::from_bytes(take_slice(&mut rest, length, "items")?)?;
                    items.push((path, Item::take(&mut rest)?));
                }
                Self::Items(items)
            }
            Self::INVENTORY_END => Self::InventoryEnd,
            Self::MARKS => {
                let mut mark = || take(&mut rest, "marks").copied().map(u64::from_le_bytes);
                Self::Marks(Marks { received: mark()?, written: mark()?, durable: mark()? })
            }
            Self::HEARTBEAT => Self::Heartbeat(u64::from_le_bytes(*take(&mut rest, "heartbeat")?)),
            Self::SUMS => {
                let (sums, left) = rest.as_chunks();
                rest = left;
                Self::Sums(sums.to_vec())
            }
            Self::SUMS_END => Self::SumsEnd,
            Self::KEPT => Self::Kept(u64::from_le_bytes(*take(&mut rest, "kept")?)),
            Self::FAREWELL => Self::Farewell(printable(std::mem::take(&mut rest))),
            _ => return Ok(None),
        };
        if !rest.is_empty() {
            return Err(ProtocolError::Malformed("message"));
        }
        Ok(Some(message))
    }
}

fn take_held(rest: &mut &[u8]) -> Result<Held, ProtocolError> {
    let length = usize::from(u16::from_le_bytes(*take(rest, "inventory")?));
    let path = RelPath::from_bytes(take_slice(rest, length, "inventory")?)?;
    let len = u64::from_le_bytes(*take(rest, "inventory")?);
    // What is not there cannot be allocated for: the digests are taken off the message. So no length is believed that is not
    // borne out by digests, of which there are at most as many as fit a message.
    let mut digests = Vec::new();
    for _ in 0..len.div_ceil(CHUNK_BYTES) {
        digests.push(*take(rest, "inventory")?);
    }
    Ok(Held { path, len, digests, attributes: Attributes::take(rest)? })
}

/// The most that a message of several files holds, in bytes.
const INVENTORY_BYTES_MAX: usize = 512 << 10;

/// Splits an inventory into messages that fit.
pub fn split_inventory(files: impl IntoIterator<Item = Held>) -> impl Iterator<Item = Message> {
    split(files, Held::encoded_bytes).map(Message::Inventory)
}

/// Splits items into messages that fit.
pub fn split_items(items: impl IntoIterator<Item = (RelPath, Item)>) -> impl Iterator<Item = Message> {
    split(items, |(path, item)| 2 + path.as_str().len() + item.encoded_bytes()).map(Message::Items)
}

fn split<T>(all: impl IntoIterator<Item = T>, bytes_of: impl Fn(&T) -> usize) -> impl Iterator<Item = Vec<T>> {
    let mut all = all.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let mut some = Vec::new();
        while let Some(one) = all.next_if(|one| bytes == 0 || bytes + bytes_of(one) <= INVENTORY_BYTES_MAX) {
            bytes += bytes_of(&one);
            some.push(one);
        }
        (!some.is_empty()).then_some(some)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::extension::tests::{any_attributes, any_item};
    use proptest::prelude::*;

    fn any_path() -> impl Strategy<Value = RelPath> {
        "[a-z]{1,9}(/[a-z]{1,9}){0,2}".prop_map(|name| RelPath::new(&name).unwrap())
    }

    fn any_held() -> impl Strategy<Value = Held> {
        (any_path(), 0_u64..CHUNK_BYTES * 5, any::<u8>(), any_attributes()).prop_map(|(path, len, byte, attributes)| {
            let chunks = usize::try_from(len.div_ceil(CHUNK_BYTES)).unwrap();
            Held { path, len, digests: vec![[byte; 20]; chunks], attributes }
        })
    }

    proptest! {
        #[test]
        fn messages_come_back_as_encoded(
            files in prop::collection::vec(any_held(), 0..200),
            items in prop::collection::vec((any_path(), any_item()), 0..50),
            marks in any::<[u64; 3]>(),
        ) {
            let marks = Marks { received: marks[0], written: marks[1], durable: marks[2] };
            let sums = Message::Sums(vec![[7; 20], [8; 20]]);
            let others = [Message::InventoryEnd, Message::Marks(marks), Message::Heartbeat(marks.written), Message::Kept(marks.durable), sums, Message::SumsEnd];
            let messages: Vec<_> = split_inventory(files.clone()).chain(split_items(items)).chain(others).collect();
            let mut wire = Vec::new();
            messages.iter().for_each(|message| message.encode(&mut wire));
            let mut input = &wire[..];
            let mut read = Vec::new();
            while !input.is_empty() {
                read.push(Message::read(&mut input).unwrap().unwrap());
            }
            prop_assert_eq!(&read, &messages);
            let told: Vec<_> = read.into_iter().filter_map(|message| match message {
                Message::Inventory(files) => Some(files),
                _ => None,
            }).flatten().collect();
            prop_assert_eq!(told, files);
        }
    }

    #[test]
    fn messages_of_later_versions_are_passed_over_and_what_does_not_fit_its_kind_is_refused() {
        let mut wire = Vec::new();
        Message::Farewell("the disk is full".to_owned()).encode(&mut wire);
        wire.extend_from_slice(&[99, 2, 0, 0, 0, 7, 7]);
        wire.extend_from_slice(&[Message::HEARTBEAT, 9, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 7]);
        let mut wire = &wire[..];
        assert_eq!(Message::read(&mut wire).unwrap(), Some(Message::Farewell("the disk is full".to_owned())));
        assert_eq!(Message::read(&mut wire).unwrap(), None);
        assert!(matches!(Message::read(&mut wire), Err(ProtocolError::Malformed(_))));
        assert!(Message::read(&mut &[Message::HEARTBEAT, 1, 0, 0, 0][..]).unwrap_err().is_disconnect(), "cut off");
    }

    #[test]
    fn an_inventory_goes_in_messages_that_are_as_full_as_they_may_be() {
        let held = |chunks: u64| Held {
            path: RelPath::new("file").unwrap(),
            len: chunks * CHUNK_BYTES,
            digests: vec![[1; 20]; usize::try_from(chunks).unwrap()],
            attributes: Attributes::UNKNOWN,
        };
        let mut wire = Vec::new();
        Message::Inventory(vec![held(3)]).encode(&mut wire);
        assert_eq!(wire.len(), 5 + held(3).encoded_bytes());
        // Of the first three exactly as many bytes as go in one.
        let rest = INVENTORY_BYTES_MAX - held(1).encoded_bytes() - held(0).encoded_bytes() * 2;
        let most = u64::try_from(rest / 20).unwrap();
        let split = |chunks: [u64; 5]| {
            let files = |message| match message {
                Message::Inventory(files) => files.len(),
                _ => 0,
            };
            split_inventory(chunks.map(held)).map(files).collect::<Vec<_>>()
        };
        assert_eq!(split([1, most, 0, 1, 100_000]), [3, 1, 1]);
        assert_eq!(split([1, most + 1, 0, 1, 1]), [2, 3]);
        assert_eq!(split([100_000, 1, 1, 1, 1]), [1, 4]);
    }

    #[test]
    fn the_most_chunks_of_a_file_fit_a_message_and_not_one_more() {
        let bytes = |chunks: usize| (2 + NAME_BYTES_MAX + 8 + chunks * 20 + 10) as u64;
        assert!(bytes(chunks_max()) <= MESSAGE_BYTES_MAX && bytes(chunks_max() + 1) > MESSAGE_BYTES_MAX);
    }

    #[test]
    fn an_inventory_claims_no_more_than_it_brings() {
        // One file, said to have 2^50 bytes, with one digest.
        let mut body = vec![1, 0, b'a'];
        body.extend_from_slice(&(1_u64 << 50).to_le_bytes());
        body.extend_from_slice(&[0; 20]);
        let mut wire = vec![Message::INVENTORY];
        wire.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
        wire.extend_from_slice(&body);
        assert!(Message::read(&mut &wire[..]).is_err());
    }
}
