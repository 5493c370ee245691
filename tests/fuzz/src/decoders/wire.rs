//! Decoders of both protocols.

use std::io::{Read, Write};

use paceline::protocol::extension::{Control, Fields, Message, Start, field, split_inventory};
use paceline::protocol::{
    ActionDecoder, ActionKind, Event, FRAME_HEADER, FrameWriter, ProtocolError, encode_action_header, frame_reader,
    framing_bytes, read_file_size, read_list_entry, read_name, read_node_id, read_secret, read_start_header, write_end,
    write_list_entry, write_name, write_node_id,
};
use paceline::{NodeId, RelPath};

use paceline_fuzz::{bounded, for_each_byte, input};

/// An error that can be shown; whatever could be read.
fn said<T>(read: Result<T, ProtocolError>) -> Option<T> {
    read.map_err(|error| assert!(error.to_string().len() < 4096)).ok()
}

pub fn handshake(input: &[u8]) {
    // A secret's length is one byte, and a record of fields is read as it comes.
    for_each_byte(input, 64, || {
        let _ = said(read_start_header(&mut &input[..]));
        let _ = said(read_secret(&mut &input[..]));
        let rest = &mut &input[..];
        if let Some(start) = said(Start::read(rest)) {
            assert_eq!(start.header(), input[..8]);
        }
        let _ = said(read_secret(rest));
        if let Some(id) = said(read_node_id(&mut &rest[..])) {
            let mut wire = Vec::new();
            write_node_id(&mut wire, id).unwrap();
            assert_eq!(wire, rest[..4]);
            assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
        }
        fields(rest);
        fields(input);
    });
}

fn fields(wire: &[u8]) {
    let rest = &mut &wire[..];
    let Some(fields) = said(Fields::read(rest)) else { return };
    let mut again = Vec::new();
    fields.write(&mut again).unwrap();
    assert_eq!(again, wire[..wire.len() - rest.len()]);
    let _ = fields.id().map_err(|error| error.to_string());
    let _ = (fields.u64(field::EPOCH), fields.u32(field::HEARTBEAT_MS), fields.u32(field::ADMITTED_IN_MS));
    assert!(!fields.text(field::LAST_EVICTION).unwrap_or_default().contains(char::is_control));
    if let Some(id) = fields.data_set() {
        assert_eq!(id.to_string().parse::<paceline::DataSetId>().unwrap(), id);
    }
}

/// What a stream says.
#[derive(Debug, PartialEq)]
enum Said {
    Heartbeat,
    Action(RelPath, ActionKind, Vec<u8>),
}

/// What was understood, and whether the stream broke the protocol.
fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Said>, bool) {
    let (mut decoder, mut all) = (ActionDecoder::new(), Vec::new());
    for mut piece in pieces {
        loop {
            let before = piece.len();
            match decoder.next(&mut piece) {
                Ok(None) => break,
                Ok(Some(Event::Heartbeat)) => all.push(Said::Heartbeat),
                Ok(Some(Event::Action { path, kind })) => all.push(Said::Action(path, kind, Vec::new())),
                Ok(Some(Event::Payload { bytes, remaining })) => {
                    let Some(Said::Action(_, kind, payload)) = all.last_mut() else { panic!("payload of nothing") };
                    payload.extend_from_slice(bytes);
                    assert_eq!(payload.len() as u64 + remaining, kind.payload_bytes());
                }
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    return (all, true);
                }
            }
            assert!(piece.len() <= before);
        }
        assert!(piece.is_empty(), "bytes are left over");
    }
    (all, false)
}

pub fn actions(input: &[u8]) {
    let rest = &mut &input[..];
    let size = usize::from(input::byte(rest)).max(1);
    let wire = *rest;
    for_each_byte(wire, 96, || {
        let (all, broken) = decode([wire].into_iter());
        assert_eq!(decode(wire.chunks(size)), (all, broken));
    });
    let (all, broken) = decode([wire].into_iter());
    let mut again = Vec::new();
    for said in &all {
        match said {
            Said::Heartbeat => again.extend_from_slice(&[0; 4]),
            Said::Action(path, kind, payload) => {
                let start = again.len();
                encode_action_header(&mut again, path, *kind);
                assert_eq!((again.len() - start) as u64, framing_bytes(path));
                again.extend_from_slice(payload);
            }
        }
    }
    assert_eq!(again, wire[..again.len()], "other bytes say the same");
    // What is left is the beginning of a header.
    assert!(broken || wire.len() - again.len() < 4 + 4096 + 8);
}

pub fn controls(input: &[u8]) {
    const NAMES: [&str; 13] = [
        "rename",
        "truncate",
        "empty",
        "patch",
        "hole",
        "want",
        "sync-begins",
        "sync-ends",
        "position",
        "heartbeat",
        "make-durable",
        "goodbye",
        "of-a-later-version",
    ];
    let rest = &mut &input[..];
    let name = NAMES[usize::from(input::byte(rest)) % NAMES.len()];
    let path = RelPath::new(&format!("$paceline/{name}")).unwrap();
    let content = *rest;
    for_each_byte(input, 64, || {
        let Some(Some(control)) = said(Control::decode(&path, content)) else { return };
        let mut wire = Vec::new();
        control.encode(&mut wire);
        let (said, broken) = decode([&wire[..]].into_iter());
        let [Said::Action(named, ActionKind::Append(_), again)] = &said[..] else { panic!("{said:?}") };
        assert!(!broken && Control::is_control(named) && *named == path);
        assert_eq!(Control::decode(named, again).unwrap(), Some(control));
    });
}

pub fn messages(input: &[u8]) {
    let mut held = Vec::new();
    // A file of an inventory has 11 bytes on the wire, and a name of its own and room for digests here.
    for_each_byte(input, 64, || {
        let rest = &mut &input[..];
        loop {
            let before = *rest;
            match said(Message::read(rest)) {
                None => break,
                Some(None) => {}
                Some(Some(message)) => {
                    let wire = &before[..before.len() - rest.len()];
                    let mut again = Vec::new();
                    message.encode(&mut again);
                    let read = Message::read(&mut &again[..]).unwrap();
                    assert_eq!(read.as_ref(), Some(&message));
                    // A farewell is made fit to be shown.
                    assert!(matches!(message, Message::Farewell(_)) || again == wire);
                    if let Message::Inventory(files) = message {
                        held = files;
                    }
                }
            }
        }
    });
    // What a leader makes of it, with files that are a bit shorter or longer.
    for (copy, ours) in held.iter().zip(held.iter().rev()) {
        for len in [copy.len, copy.len / 2, ours.len, copy.len.saturating_add(1 << 18)] {
            let (truncate, append_from) = paceline::fuzzing::repair(copy, len, &ours.digests);
            assert!(truncate.is_none_or(|cut| cut < copy.len) && append_from <= len && append_from <= copy.len);
        }
    }
    let split: Vec<_> = split_inventory(held.iter().cloned()).collect();
    let again = split.into_iter().flat_map(|message| match message {
        Message::Inventory(files) => files,
        other => panic!("{other:?}"),
    });
    assert!(again.eq(held));
}

pub fn lists(input: &[u8]) {
    for_each_byte(input, 8, || {
        let (rest, mut again) = (&mut &input[..], Vec::new());
        while let Some(entry) = said(read_list_entry(rest)) {
            match entry {
                Some(entry) => write_list_entry(&mut again, &entry.path, &entry.sha1).unwrap(),
                None => write_end(&mut again).unwrap(),
            }
            assert_eq!(again.len(), input.len() - rest.len());
        }
        assert_eq!(again, input[..again.len()]);
        let (rest, mut again) = (&mut &input[..], Vec::new());
        while let Some(name) = said(read_name(rest)) {
            match name {
                Some(name) => write_name(&mut again, &name).unwrap(),
                None => write_end(&mut again).unwrap(),
            }
        }
        assert_eq!(again, input[..again.len()]);
        let _ = said(read_file_size(&mut &input[..]));
    });
}

/// The most that a frame header can ask for is blocks of 4 MiB, compressed and not, with what came before.
const FRAME_BYTES_MAX: usize = 20 << 20;

pub fn lz4(input: &[u8]) {
    let rest = &mut &input[..];
    let mode = input::byte(rest);
    let wire = *rest;
    if mode.is_multiple_of(2) {
        let header = if mode.is_multiple_of(4) { &FRAME_HEADER[..] } else { &[] };
        bounded(FRAME_BYTES_MAX, 16 << 10, || {
            let mut reader = frame_reader(header.chain(wire));
            let (mut buffer, mut bytes) = ([0; 4096], 0_usize);
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                bytes += read;
                // LZ4 makes at most 255 bytes of one.
                assert!(bytes <= wire.len() * 255 + 64, "more than is in it");
            }
        });
    } else {
        let piece = usize::from(input::short(rest)).max(1);
        let content = *rest;
        let mut writer = FrameWriter::new(FRAME_HEADER.to_vec());
        for piece in content.chunks(piece) {
            writer.write_all(piece).and_then(|()| writer.flush()).unwrap();
        }
        let mut again = vec![0; content.len()];
        frame_reader(&writer.get_mut()[..]).read_exact(&mut again).unwrap();
        assert!(again == content);
    }
}
