//! The stream of actions: encoding, and a decoder that takes the bytes in any split.
//!
//! An action is `i32` name length, name, `i64` length: negative appends that many bytes, 0 deletes, positive replaces the
//! whole file with that many. A name length of 0 is a heartbeat: four bytes, not acknowledged.

use super::sync::name_length;
use super::{NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, ProtocolError, checked_length};
use crate::types::RelPath;

/// What an action does to its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionKind {
    /// Adds this many bytes (1 or more) at the end; the file and its folders are made if absent.
    Append(u64),
    /// Replaces the whole file with this many bytes (1 or more).
    Replace(u64),
    /// Removes the file. It cannot be told from a replace by nothing.
    Delete,
}

impl ActionKind {
    /// Bytes of payload behind the header.
    #[must_use]
    pub fn payload_bytes(self) -> u64 {
        match self {
            Self::Append(length) | Self::Replace(length) => length,
            Self::Delete => 0,
        }
    }
}

/// Bytes of an action's header: they count in positions and acknowledgements like the payload does.
#[must_use]
pub fn framing_bytes(path: &RelPath) -> u64 {
    4 + path.as_str().len() as u64 + 8
}

/// Writes an action's header to the end of `out`; the payload follows it.
pub fn encode_action_header(out: &mut Vec<u8>, path: &RelPath, kind: ActionKind) {
    let name = path.as_str().as_bytes();
    out.extend_from_slice(&name_length(name.len()).to_le_bytes());
    out.extend_from_slice(name);
    let signed = |length: u64| i64::try_from(length).expect("payloads are below PAYLOAD_BYTES_MAX");
    let length = match kind {
        ActionKind::Append(length) => -signed(length),
        ActionKind::Replace(length) => signed(length),
        ActionKind::Delete => 0,
    };
    out.extend_from_slice(&length.to_le_bytes());
}

/// A step in the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// An action begins: as many bytes of payload follow as its kind says.
    Action {
        /// The file.
        path: RelPath,
        /// What is done to it.
        kind: ActionKind,
    },
    /// The next bytes of the action's payload, and how many are still to come.
    Payload {
        /// The bytes; never empty.
        bytes: &'a [u8],
        /// Bytes of payload after these.
        remaining: u64,
    },
    /// The leader is alive and has nothing to say.
    Heartbeat,
}

/// Decodes the stream from bytes in whatever pieces they come.
#[derive(Clone, Debug)]
pub struct ActionDecoder {
    /// A header that is not whole yet; at most [`HEADER_BYTES_MAX`].
    partial: Vec<u8>,
    payload_remaining: u64,
    /// The last action's name: most actions go on with the same file, which then costs no allocation.
    last_path: Option<RelPath>,
}

const HEADER_BYTES_MAX: usize = 4 + NAME_BYTES_MAX + 8;

impl Default for ActionDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl ActionDecoder {
    /// A decoder at the beginning of an action.
    #[must_use]
    pub fn new() -> Self {
        Self { partial: Vec::with_capacity(128), payload_remaining: 0, last_path: None }
    }

    /// Whether the bytes so far end with a whole action.
    #[must_use]
    pub fn is_between_actions(&self) -> bool {
        self.partial.is_empty() && self.payload_remaining == 0
    }

    /// Takes the next event off the front of `input`. `None`: the input is used up and the decoder remembers the rest.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, ProtocolError> {
        if self.payload_remaining > 0 {
            return Ok(self.payload(input));
        }
        if self.partial.is_empty() {
            // The common case: the whole header lies in the input.
            let before = *input;
            return match self.header(input)? {
                Some(event) => Ok(Some(event)),
                None => {
                    self.partial.extend_from_slice(before);
                    *input = &[];
                    Ok(None)
                }
            };
        }
        self.header_across_pieces(input)
    }

    fn payload<'a>(&mut self, input: &mut &'a [u8]) -> Option<Event<'a>> {
        let length = usize::try_from(self.payload_remaining).unwrap_or(usize::MAX).min(input.len());
        if length == 0 {
            return None;
        }
        let (bytes, rest) = input.split_at(length);
        *input = rest;
        self.payload_remaining -= length as u64;
        Some(Event::Payload { bytes, remaining: self.payload_remaining })
    }

    /// Completes `partial` with no more of `input` than the header needs.
    fn header_across_pieces<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, ProtocolError> {
        let mut partial = std::mem::take(&mut self.partial);
        let had = partial.len();
        let wanted = (HEADER_BYTES_MAX - had).min(input.len());
        partial.extend_from_slice(&input[..wanted]);
        let mut rest = &partial[..];
        let event = match self.header(&mut rest)? {
            Some(Event::Action { path, kind }) => Event::Action { path, kind },
            Some(_) => Event::Heartbeat,
            None => {
                *input = &input[wanted..];
                self.partial = partial;
                return Ok(None);
            }
        };
        let used = partial.len() - rest.len();
        *input = &input[used - had..];
        partial.clear();
        self.partial = partial;
        Ok(Some(event))
    }

    /// A header at the front of `input`, if it is whole. Its parts are checked as soon as they are there.
    fn header<'a>(&mut self, input: &mut &[u8]) -> Result<Option<Event<'a>>, ProtocolError> {
        let Some((length, rest)) = input.split_first_chunk::<4>() else { return Ok(None) };
        let length = i64::from(i32::from_le_bytes(*length));
        let length = checked_length("name length", length, NAME_BYTES_MAX as u64)?;
        if length == 0 {
            *input = rest;
            return Ok(Some(Event::Heartbeat));
        }
        let length = usize::try_from(length).expect("at most NAME_BYTES_MAX");
        let Some((name, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        let Some((payload, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
        let payload = i64::from_le_bytes(*payload);
        let magnitude = payload.checked_abs().unwrap_or(i64::MAX);
        let bytes = checked_length("payload length", magnitude, PAYLOAD_BYTES_MAX)?;
        let kind = match payload {
            0 => ActionKind::Delete,
            1.. => ActionKind::Replace(bytes),
            _ => ActionKind::Append(bytes),
        };
        let path = match &self.last_path {
            Some(last) if last.as_str().as_bytes() == name => last.clone(),
            _ => self.last_path.insert(RelPath::from_bytes(name)?).clone(),
        };
        self.payload_remaining = bytes;
        *input = rest;
        Ok(Some(Event::Action { path, kind }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug, PartialEq)]
    enum Action {
        Heartbeat,
        Data(String, bool, Vec<u8>),
    }

    fn encode(actions: &[Action]) -> Vec<u8> {
        let mut wire = Vec::new();
        for action in actions {
            match action {
                Action::Heartbeat => wire.extend_from_slice(&[0; 4]),
                Action::Data(name, append, bytes) => {
                    let length = bytes.len() as u64;
                    let kind = match (length, append) {
                        (0, _) => ActionKind::Delete,
                        (_, true) => ActionKind::Append(length),
                        (_, false) => ActionKind::Replace(length),
                    };
                    let path = RelPath::new(name).unwrap();
                    let start = wire.len();
                    encode_action_header(&mut wire, &path, kind);
                    assert_eq!((wire.len() - start) as u64, framing_bytes(&path));
                    wire.extend_from_slice(bytes);
                }
            }
        }
        wire
    }

    fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Action>, ProtocolError> {
        let mut decoder = ActionDecoder::new();
        let mut actions = Vec::new();
        for mut piece in pieces {
            while let Some(event) = decoder.next(&mut piece)? {
                match event {
                    Event::Heartbeat => actions.push(Action::Heartbeat),
                    Event::Action { path, kind } => {
                        let append = !matches!(kind, ActionKind::Replace(_));
                        actions.push(Action::Data(path.to_string(), append, Vec::new()));
                    }
                    Event::Payload { bytes, .. } => match actions.last_mut() {
                        Some(Action::Data(_, _, payload)) => payload.extend_from_slice(bytes),
                        _ => panic!("payload without an action"),
                    },
                }
            }
            assert!(piece.is_empty());
        }
        assert!(decoder.is_between_actions());
        Ok(actions)
    }

    fn any_action() -> impl Strategy<Value = Action> {
        prop_oneof![
            1 => Just(Action::Heartbeat),
            9 => ("[a-c]{1,3}(/[a-z]{1,9}){0,2}", any::<bool>(), prop::collection::vec(any::<u8>(), 0..300))
                .prop_map(|(name, append, bytes)| Action::Data(name, append || bytes.is_empty(), bytes)),
        ]
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_decodes_to_what_was_encoded(
            actions in prop::collection::vec(any_action(), 0..20),
            sizes in prop::collection::vec(1_usize..200, 1..50),
        ) {
            let wire = encode(&actions);
            let mut rest = &wire[..];
            let pieces = sizes.iter().cycle().map_while(|size| {
                let (piece, after) = rest.split_at((*size).min(rest.len()));
                rest = after;
                (!piece.is_empty()).then_some(piece)
            });
            prop_assert_eq!(decode(pieces).unwrap(), actions);
        }

        #[test]
        fn any_bytes_end_in_events_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..2000), size in 1_usize..50) {
            let mut decoder = ActionDecoder::new();
            'pieces: for mut piece in bytes.chunks(size) {
                loop {
                    match decoder.next(&mut piece) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'pieces,
                    }
                }
                prop_assert!(decoder.partial.len() <= HEADER_BYTES_MAX);
            }
        }
    }

    #[test]
    fn each_kind_comes_back_with_as_many_bytes_as_it_says() {
        for (kind, bytes) in [(ActionKind::Append(5), 5), (ActionKind::Replace(6), 6), (ActionKind::Delete, 0)] {
            let mut wire = Vec::new();
            let path = RelPath::new("a").unwrap();
            encode_action_header(&mut wire, &path, kind);
            assert_eq!(ActionDecoder::new().next(&mut &wire[..]).unwrap(), Some(Event::Action { path, kind }));
            assert_eq!(kind.payload_bytes(), bytes);
        }
    }

    #[test]
    fn within_an_action_it_says_what_is_still_to_come() {
        let mut wire = Vec::new();
        encode_action_header(&mut wire, &RelPath::new("a").unwrap(), ActionKind::Append(5));
        let mut decoder = ActionDecoder::new();
        assert_eq!(decoder.next(&mut &wire[..7]).unwrap(), None);
        assert!(!decoder.is_between_actions(), "half a header");
        assert!(matches!(decoder.next(&mut &wire[7..]).unwrap(), Some(Event::Action { .. })));
        assert!(!decoder.is_between_actions(), "no payload");
        for (bytes, remaining) in [(&b"he"[..], 3), (b"llo", 0)] {
            assert_eq!(decoder.next(&mut &*bytes).unwrap(), Some(Event::Payload { bytes, remaining }));
        }
        assert!(decoder.is_between_actions());
    }

    #[test]
    fn the_longest_header_may_be_cut_anywhere_and_no_more_than_a_header_is_remembered() {
        let longest = RelPath::new(&["abc"; NAME_BYTES_MAX / 4].join("/")).unwrap();
        let mut wire = Vec::new();
        encode_action_header(&mut wire, &longest, ActionKind::Replace(1 << 20));
        let header = wire.len();
        wire.resize(header + (1 << 20), 7);
        for cut in (1..header).step_by(61).chain([header - 1]) {
            let mut decoder = ActionDecoder::new();
            assert_eq!(decoder.next(&mut &wire[..cut]).unwrap(), None);
            let mut rest = &wire[cut..];
            assert!(matches!(decoder.next(&mut rest).unwrap(), Some(Event::Action { .. })));
            assert_eq!(rest.len(), 1 << 20);
            assert!(decoder.partial.capacity() < 10_000);
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        let header = |name_length: i32, name: &[u8], payload: i64| {
            [&name_length.to_le_bytes()[..], name, &payload.to_le_bytes()[..]].concat()
        };
        for wire in [
            header(-1, b"", 0),
            header(4097, b"", 0),
            header(i32::MIN, b"", 0),
            header(1, b"a", i64::MIN),
            header(1, b"a", i64::MAX),
            header(4, b"../a", 1),
            header(2, b"/a", -1),
            header(2, b"a\0", 0),
            header(1, b"\xff", 0),
        ] {
            assert!(ActionDecoder::new().next(&mut &wire[..]).is_err(), "{wire:?} was taken");
        }
    }
}
