use super::*;
use crate::protocol::encode_action_header;
use std::fs;

fn action(wire: &mut Vec<u8>, name: &str, kind: ActionKind, payload: &[u8]) {
    encode_action_header(wire, &RelPath::new(name).unwrap(), kind);
    wire.extend_from_slice(payload);
}

fn append(wire: &mut Vec<u8>, name: &str, payload: &[u8]) {
    action(wire, name, ActionKind::Append(payload.len() as u64), payload);
}

fn replace(wire: &mut Vec<u8>, name: &str, payload: &[u8]) {
    action(wire, name, ActionKind::Replace(payload.len() as u64), payload);
}

fn delete(wire: &mut Vec<u8>, name: &str) {
    action(wire, name, ActionKind::Delete, b"");
}

/// Applies `wire` in blocks of `size` bytes; returns the bytes done.
fn apply(dir: &Dir, wire: &[u8], size: usize) -> Result<u64, Error> {
    let (mut decoder, mut actions) = (ActionDecoder::new(), Actions::new(dir));
    wire.chunks(size).map(|block| apply_block(&mut decoder, &mut actions, block)).sum()
}

#[test]
fn blocks_cut_anywhere_give_the_same_files_and_the_same_count() {
    let mut wire = Vec::new();
    append(&mut wire, "log/a", b"one ");
    append(&mut wire, "log/a", b"two ");
    wire.extend_from_slice(&[0; 4]);
    append(&mut wire, "log/b", &[b'b'; 100]);
    replace(&mut wire, "log/a", b"new ");
    append(&mut wire, "log/a", b"three");
    append(&mut wire, "gone/x/y", b"z");
    delete(&mut wire, "gone/x/y");
    delete(&mut wire, "$probe");
    delete(&mut wire, "never/was");
    delete(&mut wire, "log/b");
    append(&mut wire, "log/b", &[b'c'; 40_000]);
    for size in [1, 2, 3, 7, 50, 1000, wire.len()] {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        assert_eq!(apply(&dir, &wire, size).unwrap(), wire.len() as u64 - 4);
        assert_eq!(fs::read_to_string(root.path().join("log/a")).unwrap(), "new three", "blocks of {size}");
        assert_eq!(fs::read(root.path().join("log/b")).unwrap(), [b'c'; 40_000]);
        let left = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.filter(|name| *name != crate::types::OWN_FOLDER).collect();
        assert_eq!(left.pop().as_deref(), Some("log".as_ref()));
        assert!(left.is_empty(), "a folder that was emptied is there");
    }
}

#[test]
fn a_replacement_is_seen_only_whole() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a"), "old").unwrap();
    let dir = Dir::open(root.path()).unwrap();
    let mut wire = Vec::new();
    replace(&mut wire, "a", b"replaced");
    let (mut decoder, mut actions) = (ActionDecoder::new(), Actions::new(&dir));
    let (most, last) = wire.split_at(wire.len() - 1);
    assert_eq!(apply_block(&mut decoder, &mut actions, most).unwrap(), most.len() as u64);
    assert_eq!(fs::read_to_string(root.path().join("a")).unwrap(), "old");
    assert_eq!(apply_block(&mut decoder, &mut actions, last).unwrap(), 1);
    assert_eq!(fs::read_to_string(root.path().join("a")).unwrap(), "replaced");
}

#[test]
fn reserved_names_are_refused_and_change_nothing() {
    for name in [".lock", ".clustering_id", ".paceline/incomplete", "checksums.sha1", "backups/a", "$x"] {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        for kind in [ActionKind::Append(1), ActionKind::Replace(1), ActionKind::Delete] {
            let mut wire = Vec::new();
            action(&mut wire, name, kind, if kind == ActionKind::Delete { b"" } else { b"x" });
            match apply(&dir, &wire, wire.len()) {
                Err(Error::Protocol(ProtocolError::Reserved(_))) => {}
                Ok(_) => assert!(name == "$x" && kind == ActionKind::Delete, "{kind:?} of {name} was taken"),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}

#[test]
fn more_files_than_may_be_open_are_all_appended_to() {
    let root = tempfile::tempdir().unwrap();
    let dir = Dir::open(root.path()).unwrap();
    let (mut decoder, mut actions) = (ActionDecoder::new(), Actions::new(&dir));
    for round in [b"1", b"2"] {
        for file in 0..OPEN_FILES_MAX + 10 {
            let mut wire = Vec::new();
            append(&mut wire, &file.to_string(), round);
            apply_block(&mut decoder, &mut actions, &wire).unwrap();
            assert!(actions.open.len() <= OPEN_FILES_MAX);
        }
    }
    for file in 0..OPEN_FILES_MAX + 10 {
        assert_eq!(fs::read_to_string(root.path().join(file.to_string())).unwrap(), "12");
    }
}
