//! The Paceline extension of the replication protocol, version 2: what two Paceline nodes speak, and how they find out.
//!
//! # Finding out
//!
//! A follower asks with a start header of its own, [`Start`], and sends nothing more until it is answered. A 1.0.0 leader
//! answers its own header and closes, as it does with any header it does not know: the follower connects again and speaks
//! 1.0.0. A leader that knows the extension answers a `Start` with the version to use: the lower of both sides' highest. Who does not
//! speak that version any more takes the other for one that knows 1.0.0 only; so it is with version 1, which had no [sums](#resuming) and passed over what it
//! did not know. So a later version needs no new trick, and neither does a later field:
//! what both sides say about themselves is a [`Fields`] record, whose unknown fields are skipped.
//!
//! ```text
//! follower                                            leader
//!   "PACELN", u16 highest version ─────────────────────▶         plain
//!              ◀───────────────────── "PACELN", u16 version
//!   u8 secret length, secret ──────────────────────────▶
//!              ◀───────────────────────── 0 accepted | 1 refused
//!   fields: id, data set, … ───────────────────────────▶
//!              ◀──────── fields: id, data set, heartbeat interval, …
//!              ◀────── frame: controls "opening", …, "want", …   LZ4 frame
//!   messages: sums, sums' end ─────────────────────────▶         plain
//!              ◀──────────────────── control "tell", "tell ends"
//!   messages: inventory, inventory's end ──────────────▶
//!              ◀──── control "sync begins", actions, "sync ends", actions …
//!   messages: marks, heartbeats ───────────────────────▶
//! ```
//!
//! # The leader's side: one stream of actions
//!
//! From the fields on, all the leader says is one LZ4 frame, as in 1.0.0, and in it one stream of actions in 1.0.0's form. There
//! are no rounds of a full sync. What 1.0.0 has no words for is said by *controls*: appends to reserved names that
//! begin with `$`, whose payload is the control's content. So one decoder serves both protocols, and a batch without controls
//! is the same bytes to every follower.
//!
//! A control that a follower does not know ends the connection, because it may change files; but for those whose names end with `?`: whoever adds one that may be
//! passed over gives it such a name.
//!
//! Some controls are part of the one order of all followers, and count in stream positions: rename, truncate, empty, make
//! durable. The others concern this connection only, and do not. Every byte of every action, control or not, counts
//! in the marks below.
//!
//! # The follower's side: messages
//!
//! A message is `u8` kind, `u32` length (at most [`MESSAGE_BYTES_MAX`]) and as many bytes. *Marks* take the place of 1.0.0's
//! acknowledgements: totals, not increments, of action bytes received, written and durable since the connection began. A mark
//! never goes back, and received ≥ written ≥ durable.
//!
//! # Silence
//!
//! From the fields on either side says something in every phase, whatever it is at: at least every two heartbeat's intervals (the leader's fields tell how long one is). The follower
//! says a message, if only a heartbeat. The leader says an action, or an *empty block* of the LZ4 frame: a raw one of no bytes, [`EMPTY_BLOCK`](super::EMPTY_BLOCK), which may stand between any two
//! blocks, so within an action too. Who hears nothing for three intervals and 2 s may end the connection; time in which it does not read does not count.
//! The control *heartbeat* is no sign of life but news: of the leader's position, from which the follower's lag follows, and of its clock.
//!
//! # Resuming
//!
//! What a follower lacks is found by content, whatever became of either side since they last met: restarts, other leaders, other programs, backups put back, directories
//! copied. Files are spread over 2^`bits` *buckets* by the SHA-1 of their names. The leader *wants* the *sum* of each, which is one over the names, lengths and content of the
//! files in it (`src/sums.rs` says how it is made); it asks for the files of those that differ from its own. The follower answers with name, length, and the digest of each chunk of
//! [`CHUNK_BYTES`], the last one of what there is of it. So a prefix is verified wherever it ends, and the leader sends only what is
//! missing or differs: appends from where the follower's file ends, patches for chunks that differ, truncations, deletes, and
//! whole files where nothing helps. With 16 files a bucket or so, what that costs goes with what differs, and not with what there is.
//!
//! Either side may keep digests for as long as it knows that the content is still theirs. How it knows is its own affair
//! (`src/digests`); the other takes no word for it but the digests.

use std::io::{self, Read, Write};

use super::action::{ActionKind, encode_action_header};
use super::{NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, ProtocolError, START_HEADER, checked_length};
use crate::types::{DataSetId, NodeId, RelPath};

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

/// What a follower says once the fields were exchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The sums of buckets, in order, from the one that comes after those told before.
    Sums(Vec<Sum>),
    /// All are told.
    SumsEnd,
    /// Files it has, of the buckets that it was asked for.
    Inventory(Vec<Held>),
    /// There are no more.
    InventoryEnd,
    /// How far it has come.
    Marks(Marks),
    /// It is alive: sent when nothing else was for a heartbeat's interval. With it, how many bytes of its files it has digested on this connection: as
    /// long as that grows, it is at work.
    Heartbeat(u64),
    /// It cannot go on, for this reason, and leaves: the last that it says. Earlier versions pass over it.
    Farewell(String),
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
}

impl Held {
    fn encoded_bytes(&self) -> usize {
        2 + self.path.as_str().len() + 8 + self.digests.len() * size_of::<ChunkDigest>()
    }
}

/// The most chunks of one file in an inventory: what fits a message with its name. A longer file is told up to there, and the
/// follower cuts it there when the sync begins.
#[must_use]
pub fn chunks_max() -> usize {
    const OTHERS: usize = 2 + NAME_BYTES_MAX + 8;
    (usize::try_from(MESSAGE_BYTES_MAX).unwrap_or(usize::MAX) - OTHERS) / size_of::<ChunkDigest>()
}

impl Message {
    const INVENTORY: u8 = 1;
    const INVENTORY_END: u8 = 2;
    const MARKS: u8 = 3;
    const HEARTBEAT: u8 = 4;
    const FAREWELL: u8 = 5;
    const SUMS: u8 = 6;
    const SUMS_END: u8 = 7;

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
                }
                Self::INVENTORY
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
    Ok(Held { path, len, digests })
}

/// The most that a message of several files holds, in bytes.
const INVENTORY_BYTES_MAX: usize = 512 << 10;

/// Splits an inventory into messages that fit.
pub fn split_inventory(files: impl IntoIterator<Item = Held>) -> impl Iterator<Item = Message> {
    let mut files = files.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let mut some = Vec::new();
        while let Some(file) = files.next_if(|file| some_fits(bytes, file)) {
            bytes += file.encoded_bytes();
            some.push(file);
        }
        (!some.is_empty()).then_some(Message::Inventory(some))
    })
}

fn some_fits(bytes: usize, file: &Held) -> bool {
    bytes == 0 || bytes + file.encoded_bytes() <= INVENTORY_BYTES_MAX
}

/// What 1.0.0 has no words for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    // ---- of the one order of all followers: they count in positions ----
    /// The file has another name from now on; a file that had it is gone.
    Rename {
        /// Its name before.
        from: RelPath,
        /// Its name after.
        to: RelPath,
    },
    /// The file ends here from now on.
    Truncate {
        /// The file.
        path: RelPath,
        /// Its length in bytes; less than it was.
        len: u64,
    },
    /// The file is there, and empty.
    Empty(RelPath),

    /// Make durable what came before this, and say so by a mark: of all action bytes before this control.
    MakeDurable,

    // ---- of this connection only ----
    /// The append to this file that follows (with no other action on a file between) is not to be added at the end but written
    /// at this offset: the patch of a chunk. It ends within the file as it is. Only from when a sync begins until the first position after its end,
    /// while the follower's copy counts as incomplete. The append counts in positions like any other.
    PatchAt {
        /// The file, which is there.
        path: RelPath,
        /// Where the bytes go.
        offset: u64,
    },
    /// The file gets a new content: the appends to it that follow, with nothing in between but heartbeats, go to a file beside it, up to
    /// [`Place`](Self::Place) or [`Unstage`](Self::Unstage). So a replacement can be sent in pieces, and given up in the middle. The
    /// appends do not count in positions as what they stand for does: a position follows.
    Stage(RelPath),
    /// What was staged is all of it: it takes the file's place.
    Place,
    /// The rest cannot be sent. What was staged is dropped, and the file stays as it is.
    Unstage,
    /// Tell the sums of 2^this buckets, at most [`BUCKET_BITS_MAX`]. Once a connection, before anything else.
    Want(u8),
    /// Tell the files of these buckets, at most [`TELL_MAX`]; in ascending order, also from one control to the next.
    Tell(Vec<u32>),
    /// Those are all.
    TellEnds,
    /// A sync begins: the copy is incomplete until it ends. The first one of a connection comes after the inventory's end (or that of the sums, if all
    /// are equal), and before any action on a file; another one may come after the last has ended.
    SyncBegins {
        /// Files that will be sent, or parts of them.
        files: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// All of the sync was sent before this.
    SyncEnds,
    /// The position in the stream of what follows: what counts in positions adds up from here. It may be before what has added up:
    /// a leader that cannot send an action any more may send something longer in its place.
    ///
    /// The first one after a sync has ended also says that the copy is whole: nothing is void any more that changed during it.
    Position(u64),
    /// News of the leader.
    Heartbeat {
        /// Its stream position now.
        position: u64,
        /// Its clock: microseconds since 1970.
        clock_us: u64,
    },
    /// The leader is still reading its directory, and has found so many files; it says nothing else before it has read it. May be passed over.
    Opening(u64),
    /// The leader lets the follower go.
    Goodbye {
        /// When to come back, in milliseconds.
        back_in_ms: u32,
        /// Why.
        reason: String,
    },
}

const CONTROL_PREFIX: &str = "$paceline/";

impl Control {
    fn name(&self) -> &'static str {
        match self {
            Self::Rename { .. } => "$paceline/rename",
            Self::Truncate { .. } => "$paceline/truncate",
            Self::Empty(_) => "$paceline/empty",
            Self::PatchAt { .. } => "$paceline/patch",
            Self::Stage(_) => "$paceline/stage",
            Self::Place => "$paceline/place",
            Self::Unstage => "$paceline/unstage",
            Self::Want(_) => "$paceline/want",
            Self::Tell(_) => "$paceline/tell",
            Self::TellEnds => "$paceline/tell-ends",
            Self::SyncBegins { .. } => "$paceline/sync-begins",
            Self::SyncEnds => "$paceline/sync-ends",
            Self::Position(_) => "$paceline/position",
            Self::Heartbeat { .. } => "$paceline/heartbeat",
            Self::MakeDurable => "$paceline/make-durable",
            Self::Opening(_) => "$paceline/opening?",
            Self::Goodbye { .. } => "$paceline/goodbye",
        }
    }

    /// Whether a name is that of a control, known or not.
    #[must_use]
    pub fn is_control(path: &RelPath) -> bool {
        path.as_str().starts_with(CONTROL_PREFIX)
    }

    /// Whether it is part of the one order of all followers, and counts in positions.
    #[must_use]
    pub fn counts_in_positions(&self) -> bool {
        matches!(self, Self::Rename { .. } | Self::Truncate { .. } | Self::Empty(_) | Self::MakeDurable)
    }

    /// Adds the control to the end of `out`, as an action.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut content = Vec::new();
        let mut name = |path: &RelPath| {
            let length = u16::try_from(path.as_str().len()).expect("names have at most 4096 bytes");
            content.extend_from_slice(&length.to_le_bytes());
            content.extend_from_slice(path.as_str().as_bytes());
        };
        match self {
            Self::Rename { from, to } => {
                name(from);
                name(to);
            }
            Self::Truncate { path, len: number } | Self::PatchAt { path, offset: number } => {
                name(path);
                content.extend_from_slice(&number.to_le_bytes());
            }
            Self::Empty(path) | Self::Stage(path) => name(path),
            // An append of nothing would be a delete.
            Self::TellEnds | Self::SyncEnds | Self::MakeDurable | Self::Place | Self::Unstage => content.push(0),
            Self::Want(bits) => content.push(*bits),
            Self::Tell(buckets) => buckets.iter().for_each(|bucket| content.extend_from_slice(&bucket.to_le_bytes())),
            Self::SyncBegins { files: one, bytes: other } | Self::Heartbeat { position: one, clock_us: other } => {
                content.extend_from_slice(&one.to_le_bytes());
                content.extend_from_slice(&other.to_le_bytes());
            }
            Self::Position(number) | Self::Opening(number) => content.extend_from_slice(&number.to_le_bytes()),
            Self::Goodbye { back_in_ms, reason } => {
                content.extend_from_slice(&back_in_ms.to_le_bytes());
                content.extend_from_slice(reason.as_bytes());
            }
        }
        let path = RelPath::new(self.name()).expect("a control's name is a name");
        encode_action_header(out, &path, ActionKind::Append(content.len() as u64));
        out.extend_from_slice(&content);
    }

    /// The control of this name and content; `None` if this version does not know the name, and it may be passed over.
    ///
    /// # Errors
    ///
    /// If the content does not fit the name, or if the name is not known.
    pub fn decode(path: &RelPath, content: &[u8]) -> Result<Option<Self>, ProtocolError> {
        const WHAT: &str = "control";
        let mut rest = content;
        let rest = &mut rest;
        let name = |rest: &mut &[u8]| {
            let length = usize::from(u16::from_le_bytes(*take(rest, WHAT)?));
            Ok::<_, ProtocolError>(RelPath::from_bytes(take_slice(rest, length, WHAT)?)?)
        };
        let u64 = |rest: &mut &[u8]| Ok::<_, ProtocolError>(u64::from_le_bytes(*take(rest, WHAT)?));
        let control = match path.as_str() {
            "$paceline/rename" => Self::Rename { from: name(rest)?, to: name(rest)? },
            "$paceline/truncate" => Self::Truncate { path: name(rest)?, len: u64(rest)? },
            "$paceline/empty" => Self::Empty(name(rest)?),
            "$paceline/patch" => Self::PatchAt { path: name(rest)?, offset: u64(rest)? },
            "$paceline/stage" => Self::Stage(name(rest)?),
            "$paceline/place" => Self::Place,
            "$paceline/unstage" => Self::Unstage,
            "$paceline/want" => match take::<1>(rest, WHAT)? {
                [bits] if *bits <= BUCKET_BITS_MAX => Self::Want(*bits),
                _ => return Err(ProtocolError::Malformed(WHAT)),
            },
            "$paceline/tell" => {
                let (buckets, left) = rest.as_chunks();
                if !left.is_empty() || !buckets.is_sorted_by_key(|bucket| u32::from_le_bytes(*bucket)) {
                    return Err(ProtocolError::Malformed(WHAT));
                }
                *rest = left;
                Self::Tell(buckets.iter().map(|bucket| u32::from_le_bytes(*bucket)).collect())
            }
            "$paceline/tell-ends" => Self::TellEnds,
            "$paceline/sync-begins" => Self::SyncBegins { files: u64(rest)?, bytes: u64(rest)? },
            "$paceline/sync-ends" => Self::SyncEnds,
            "$paceline/position" => Self::Position(u64(rest)?),
            "$paceline/heartbeat" => Self::Heartbeat { position: u64(rest)?, clock_us: u64(rest)? },
            "$paceline/make-durable" => Self::MakeDurable,
            "$paceline/opening?" => Self::Opening(u64(rest)?),
            "$paceline/goodbye" => {
                let back_in_ms = u32::from_le_bytes(*take(rest, WHAT)?);
                Self::Goodbye { back_in_ms, reason: printable(std::mem::take(rest)) }
            }
            name if name.ends_with('?') => return Ok(None),
            name => return Err(ProtocolError::OutOfPlace(format!("control {name}, which this version does not know"))),
        };
        // What a later version adds behind is passed over.
        if let Self::Truncate { len: number, .. } | Self::PatchAt { offset: number, .. } = control
            && number > PAYLOAD_BYTES_MAX
        {
            return Err(ProtocolError::Malformed(WHAT));
        }
        Ok(Some(control))
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
    use crate::protocol::{ActionDecoder, Event};
    use proptest::prelude::*;

    fn any_path() -> impl Strategy<Value = RelPath> {
        "[a-z]{1,9}(/[a-z]{1,9}){0,2}".prop_map(|name| RelPath::new(&name).unwrap())
    }

    fn any_control() -> impl Strategy<Value = Control> {
        let number = 0..PAYLOAD_BYTES_MAX;
        prop_oneof![
            (any_path(), any_path()).prop_map(|(from, to)| Control::Rename { from, to }),
            (any_path(), number.clone()).prop_map(|(path, len)| Control::Truncate { path, len }),
            any_path().prop_map(Control::Empty),
            (any_path(), number.clone()).prop_map(|(path, offset)| Control::PatchAt { path, offset }),
            any_path().prop_map(Control::Stage),
            Just(Control::Place),
            Just(Control::Unstage),
            (0..=BUCKET_BITS_MAX).prop_map(Control::Want),
            prop::collection::btree_set(any::<u32>(), 1..50).prop_map(|set| Control::Tell(set.into_iter().collect())),
            Just(Control::TellEnds),
            (number.clone(), number.clone()).prop_map(|(files, bytes)| Control::SyncBegins { files, bytes }),
            Just(Control::SyncEnds),
            number.clone().prop_map(Control::Position),
            number.clone().prop_map(Control::Opening),
            (number.clone(), number).prop_map(|(position, clock_us)| Control::Heartbeat { position, clock_us }),
            Just(Control::MakeDurable),
            (any::<u32>(), "[a-z ]{0,40}").prop_map(|(back_in_ms, reason)| Control::Goodbye { back_in_ms, reason }),
        ]
    }

    fn any_held() -> impl Strategy<Value = Held> {
        (any_path(), 0_u64..CHUNK_BYTES * 5, any::<u8>()).prop_map(|(path, len, byte)| {
            let chunks = usize::try_from(len.div_ceil(CHUNK_BYTES)).unwrap();
            Held { path, len, digests: vec![[byte; 20]; chunks] }
        })
    }

    proptest! {
        #[test]
        fn controls_come_back_as_encoded(control in any_control()) {
            let mut wire = Vec::new();
            control.encode(&mut wire);
            let (mut decoder, mut input) = (ActionDecoder::new(), &wire[..]);
            let Some(Event::Action { path, kind }) = decoder.next(&mut input).unwrap() else { panic!() };
            prop_assert!(Control::is_control(&path) && path.is_reserved());
            prop_assert_eq!(kind, ActionKind::Append(input.len() as u64));
            prop_assert_eq!(Control::decode(&path, input).unwrap(), Some(control));
        }

        #[test]
        fn messages_come_back_as_encoded(files in prop::collection::vec(any_held(), 0..200), marks in any::<[u64; 3]>()) {
            let marks = Marks { received: marks[0], written: marks[1], durable: marks[2] };
            let sums = Message::Sums(vec![[7; 20], [8; 20]]);
            let others = [Message::InventoryEnd, Message::Marks(marks), Message::Heartbeat(marks.written), sums, Message::SumsEnd];
            let messages: Vec<_> = split_inventory(files.clone()).chain(others).collect();
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

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::read(&mut &bytes[..]);
            let _ = Fields::read(&mut &bytes[..]);
            let _ = Start::read(&mut &bytes[..]);
            for name in ["rename", "truncate", "patch", "stage", "sync-begins", "position", "heartbeat", "goodbye", "want", "tell"] {
                let _ = Control::decode(&RelPath::new(&format!("$paceline/{name}")).unwrap(), &bytes);
            }
        }
    }

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
        let bytes = |chunks: usize| (2 + NAME_BYTES_MAX + 8 + chunks * 20) as u64;
        assert!(bytes(chunks_max()) <= MESSAGE_BYTES_MAX && bytes(chunks_max() + 1) > MESSAGE_BYTES_MAX);
    }

    #[test]
    fn controls_on_files_count_in_positions_and_their_numbers_have_a_bound() {
        let path = RelPath::new("a").unwrap();
        assert!(!Control::is_control(&path));
        let counting = [
            Control::Rename { from: path.clone(), to: path.clone() },
            Control::Truncate { path: path.clone(), len: 0 },
            Control::Empty(path.clone()),
            Control::MakeDurable,
        ];
        assert!(counting.iter().all(Control::counts_in_positions));
        let staging = [Control::Stage(path.clone()), Control::Place, Control::Unstage];
        let others = [Control::PatchAt { path: path.clone(), offset: 0 }, Control::Want(0), Control::SyncEnds];
        assert!(!staging.iter().any(Control::counts_in_positions));
        assert!(!others.iter().any(Control::counts_in_positions));
        for name in ["truncate", "patch"] {
            let control = RelPath::new(&format!("$paceline/{name}")).unwrap();
            let decode = |number: u64| Control::decode(&control, &[&[1, 0, b'a'][..], &number.to_le_bytes()].concat());
            assert!(decode(PAYLOAD_BYTES_MAX).is_ok());
            assert!(matches!(decode(PAYLOAD_BYTES_MAX + 1), Err(ProtocolError::Malformed(_))));
        }
        let later = |name: &str| Control::decode(&RelPath::new(name).unwrap(), b"x");
        assert_eq!(later("$paceline/later?").unwrap(), None);
        assert!(matches!(later("$paceline/later"), Err(ProtocolError::OutOfPlace(_))));
    }

    #[test]
    fn starts_are_told_apart() {
        for start in [Start::V1, Start::Extension(1), Start::Extension(0x0203)] {
            assert_eq!(Start::read(&mut &start.header()[..]).unwrap(), start);
        }
        assert!(Start::read(&mut &Start::Extension(0).header()[..]).is_err());
        assert!(Start::read(&mut &b"GET / HT"[..]).is_err());
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
