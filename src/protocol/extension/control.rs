//! What a leader says beside actions.

use super::{Attributes, BUCKET_BITS_MAX, Item, printable, take, take_slice};
use crate::protocol::{ActionKind, PAYLOAD_BYTES_MAX, ProtocolError, encode_action_header};
use crate::types::RelPath;

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
    /// The append to this file that follows (with no other action on a file between) is not to be added at the end but written
    /// at this offset. It ends within the file as it is.
    PatchAt {
        /// The file, which is there.
        path: RelPath,
        /// Where the bytes go.
        offset: u64,
    },
    /// Zeros from here on, which take no room on the disk where that is possible. They begin within the file as it is or at its end, and may go beyond it. While a
    /// file is staged they come at the end of that. One that stands for what counts as something else in positions is followed by a [`Position`](Self::Position).
    Hole {
        /// The file, which is there, or begins with them.
        path: RelPath,
        /// Where they begin.
        offset: u64,
        /// How many; not none.
        len: u64,
    },
    /// The file, which is there, has these from now on.
    Attributes(RelPath, Attributes),
    /// The folder or link is there, and is so; another link of that name is gone.
    Item(RelPath, Item),
    /// There is no folder or link of this name any more. What is not there, a file, and a folder that is not empty are left as they are.
    RemoveItem(RelPath),

    /// Make durable what came before this, and say so by a mark: of all action bytes before this control.
    MakeDurable,

    // ---- of this connection only ----
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
    /// Tell the files of these buckets, at most [`TELL_MAX`](super::TELL_MAX); in ascending order, also from one control to the next.
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
            Self::Hole { .. } => "$paceline/hole",
            Self::Attributes(..) => "$paceline/attributes",
            Self::Item(..) => "$paceline/item",
            Self::RemoveItem(_) => "$paceline/remove-item",
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
        let of_files = matches!(self, Self::Rename { .. } | Self::Truncate { .. } | Self::Empty(_));
        let of_others = matches!(self, Self::Attributes(..) | Self::Item(..) | Self::RemoveItem(_));
        of_files || of_others || matches!(self, Self::PatchAt { .. } | Self::Hole { .. } | Self::MakeDurable)
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
            Self::Hole { path, offset, len } => {
                name(path);
                content.extend_from_slice(&offset.to_le_bytes());
                content.extend_from_slice(&len.to_le_bytes());
            }
            Self::Attributes(path, attributes) => {
                name(path);
                attributes.encode(&mut content);
            }
            Self::Item(path, item) => {
                name(path);
                item.encode(&mut content);
            }
            Self::Empty(path) | Self::Stage(path) | Self::RemoveItem(path) => name(path),
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
            "$paceline/hole" => Self::Hole { path: name(rest)?, offset: u64(rest)?, len: u64(rest)? },
            "$paceline/attributes" => Self::Attributes(name(rest)?, Attributes::take(rest)?),
            "$paceline/item" => Self::Item(name(rest)?, Item::take(rest)?),
            "$paceline/remove-item" => Self::RemoveItem(name(rest)?),
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
        let is_sound = match control {
            Self::Truncate { len: number, .. } | Self::PatchAt { offset: number, .. } => number <= PAYLOAD_BYTES_MAX,
            Self::Hole { offset, len, .. } => {
                len > 0 && offset.checked_add(len).is_some_and(|end| end <= PAYLOAD_BYTES_MAX)
            }
            _ => true,
        };
        if !is_sound {
            return Err(ProtocolError::Malformed(WHAT));
        }
        Ok(Some(control))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::extension::tests::{any_attributes, any_item};
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
            (any_path(), 0..PAYLOAD_BYTES_MAX / 2, 1..PAYLOAD_BYTES_MAX / 2)
                .prop_map(|(path, offset, len)| Control::Hole { path, offset, len }),
            (any_path(), any_attributes()).prop_map(|(path, attributes)| Control::Attributes(path, attributes)),
            (any_path(), any_item()).prop_map(|(path, item)| Control::Item(path, item)),
            any_path().prop_map(Control::RemoveItem),
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
    }

    #[test]
    fn controls_on_files_count_in_positions_and_their_numbers_have_a_bound() {
        let path = RelPath::new("a").unwrap();
        assert!(!Control::is_control(&path));
        let counting = [
            Control::Rename { from: path.clone(), to: path.clone() },
            Control::Truncate { path: path.clone(), len: 0 },
            Control::Empty(path.clone()),
            Control::PatchAt { path: path.clone(), offset: 0 },
            Control::Hole { path: path.clone(), offset: 0, len: 1 },
            Control::Attributes(path.clone(), Attributes::UNKNOWN),
            Control::Item(path.clone(), Item::Folder(Attributes::UNKNOWN)),
            Control::RemoveItem(path.clone()),
            Control::MakeDurable,
        ];
        assert!(counting.iter().all(Control::counts_in_positions));
        let staging = [Control::Stage(path.clone()), Control::Place, Control::Unstage];
        let others = [Control::Want(0), Control::SyncEnds];
        assert!(!staging.iter().any(Control::counts_in_positions));
        assert!(!others.iter().any(Control::counts_in_positions));
        for name in ["truncate", "patch"] {
            let control = RelPath::new(&format!("$paceline/{name}")).unwrap();
            let decode = |number: u64| Control::decode(&control, &[&[1, 0, b'a'][..], &number.to_le_bytes()].concat());
            assert!(decode(PAYLOAD_BYTES_MAX).is_ok());
            assert!(matches!(decode(PAYLOAD_BYTES_MAX + 1), Err(ProtocolError::Malformed(_))));
        }
        let hole = |offset: u64, len: u64| {
            let content = [&[1, 0, b'a'][..], &offset.to_le_bytes(), &len.to_le_bytes()].concat();
            Control::decode(&RelPath::new("$paceline/hole").unwrap(), &content)
        };
        assert!(hole(1, PAYLOAD_BYTES_MAX - 1).is_ok());
        assert!(hole(1, PAYLOAD_BYTES_MAX).is_err() && hole(1, 0).is_err() && hole(u64::MAX, 1).is_err());
        let later = |name: &str| Control::decode(&RelPath::new(name).unwrap(), b"x");
        assert_eq!(later("$paceline/later?").unwrap(), None);
        assert!(matches!(later("$paceline/later"), Err(ProtocolError::OutOfPlace(_))));
    }
}
