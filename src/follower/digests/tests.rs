use super::super::flush::Unflushed;
use super::super::track::Track;
use super::*;
use crate::protocol::extension::CHUNK;
use sha1::{Digest, Sha1};
use std::io::Write;
use std::sync::Arc;

fn digest(bytes: &[u8]) -> ChunkDigest {
    Sha1::digest(bytes).into()
}

/// Tells a file's digests and how many bytes were read for them.
fn told(digests: &Digests, path: &RelPath, file: &File) -> (u64, Vec<ChunkDigest>, u64) {
    let mut read = 0;
    let (len, told) = digests
        .of::<io::Error>(path, file, 5, &mut ChunkBuffer::default(), &mut |bytes| {
            read += bytes;
            Ok(())
        })
        .unwrap();
    (len, told, read)
}

fn opened() -> (tempfile::TempDir, RelPath, File) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let file = File::options().append(true).read(true).create(true).open(path).unwrap();
    (dir, RelPath::new("a").unwrap(), file)
}

#[test]
fn only_what_we_appended_is_read_again() {
    let (_dir, path, mut file) = opened();
    let digests = Digests::default();
    assert_eq!(told(&digests, &path, &file), (0, vec![], 0));
    file.write_all(&vec![1; CHUNK + 10]).unwrap();
    let first = vec![digest(&vec![1; CHUNK]), digest(&[1; 10])];
    // That was nobody's write: it is read from the beginning.
    assert_eq!(told(&digests, &path, &file), (CHUNK as u64 + 10, first.clone(), CHUNK as u64 + 10));
    assert_eq!(told(&digests, &path, &file), (CHUNK as u64 + 10, first.clone(), 0));
    digests.check(&path, &file);
    file.write_all(&[2; 5]).unwrap();
    digests.changed(&path, &file, CHUNK as u64 + 10, None);
    let mut tail = vec![1; 10];
    tail.extend_from_slice(&[2; 5]);
    let second = vec![first[0], digest(&tail)];
    assert_eq!(told(&digests, &path, &file), (CHUNK as u64 + 15, second, 15));
}

#[test]
fn what_fills_a_file_that_was_empty_is_digested_as_it_comes_and_nothing_else() {
    let (_dir, path, file) = opened();
    let (digests, file) = (Arc::new(Digests::default()), Arc::new(file));
    let mut track = Track::new(digests.clone(), Unflushed::default());
    let mut content = Vec::new();
    let mut append = |bytes: &[u8], in_bulk: bool, track: &mut Track| {
        track.writes(&path, &file, u64::MAX);
        (&*file).write_all(bytes).unwrap();
        content.extend_from_slice(bytes);
        if in_bulk {
            track.appended(&path, bytes);
        }
        content.chunks(CHUNK).map(digest).collect::<Vec<_>>()
    };
    let known = |digests: &Digests| {
        let mut known = None;
        digests.known(&path, &Stamps::of_file(&*file).unwrap(), 100, |len, told| known = Some((len, told.to_vec())));
        known.map(|(_, digests)| digests)
    };
    for (at, len) in [10, 20_000, 1, 40_000].into_iter().enumerate() {
        let expected = append(&vec![u8::try_from(at).unwrap(); len], true, &mut track);
        if at != 2 {
            track.settle();
            assert_eq!(known(&digests), Some(expected));
        }
    }
    assert!(digests.next_due(Instant::now() + 2 * REST).is_none(), "it is read again");
    append(&[1; 6000], true, &mut track);
    track.settle();
    assert_eq!(known(&digests), None, "a large one is left to the digester");
    append(b"the stream's", false, &mut track);
    append(b"more", true, &mut track);
    track.settle();
    assert_eq!(known(&digests), None);
    // Of what somebody else has added to it meanwhile nobody knows.
    file.set_len(0).unwrap();
    for foreign in [&b""[..], b"x"] {
        let mut track = Track::new(Arc::new(Digests::default()), Unflushed::default());
        file.set_len(0).unwrap();
        track.writes(&path, &file, u64::MAX);
        (&*file).write_all(&[foreign, b"ours"].concat()).unwrap();
        track.appended(&path, b"ours");
        let digests = track.into_digests();
        assert_eq!(known(&digests).is_some(), foreign.is_empty());
    }
}

#[test]
fn of_a_sparse_file_only_what_it_holds_is_read() {
    let (_dir, path, mut file) = opened();
    let digests = Digests::default();
    digests.check(&path, &file);
    file.write_all(b"data").unwrap();
    file.set_len(9 * CHUNK as u64).unwrap();
    digests.changed(&path, &file, 0, None);
    let mut expected = vec![digest(&vec![0; CHUNK]); 5];
    let mut chunk = vec![0; CHUNK];
    chunk[..4].copy_from_slice(b"data");
    expected[0] = digest(&chunk);
    assert_eq!(told(&digests, &path, &file), (5 * CHUNK as u64, expected, CHUNK as u64));
    assert!(digests.state().unsaved <= CHUNK as u64, "a hole is no work lost");
}

#[test]
fn what_another_changed_is_read_from_the_beginning() {
    let (_dir, path, mut file) = opened();
    let digests = Digests::default();
    file.write_all(&vec![1; 2 * CHUNK]).unwrap();
    told(&digests, &path, &file);
    // By another, and then by us: the first write must not vouch for the second.
    file.write_all(b"x").unwrap();
    digests.check(&path, &file);
    file.write_all(b"y").unwrap();
    digests.changed(&path, &file, 2 * CHUNK as u64 + 1, None);
    assert_eq!(told(&digests, &path, &file).2, 2 * CHUNK as u64 + 2);
}

#[test]
fn a_patch_and_a_cut_keep_what_is_before_them_and_a_long_file_is_told_in_part() {
    let (_dir, path, mut file) = opened();
    let digests = Digests::default();
    file.write_all(&vec![1; 7 * CHUNK]).unwrap();
    let all = told(&digests, &path, &file);
    assert_eq!((all.0, all.1.len(), all.2), (5 * CHUNK as u64, 5, 5 * CHUNK as u64));
    digests.check(&path, &file);
    digests.changed(&path, &file, 4 * CHUNK as u64 + 3, None);
    assert_eq!(told(&digests, &path, &file).2, CHUNK as u64);
    digests.check(&path, &file);
    file.set_len(2 * CHUNK as u64 + 9).unwrap();
    digests.changed(&path, &file, 2 * CHUNK as u64 + 9, None);
    let cut = told(&digests, &path, &file);
    assert_eq!((cut.0, cut.1.len(), cut.2), (2 * CHUNK as u64 + 9, 3, 9));
    let other = RelPath::new("b").unwrap();
    digests.renamed(&path, &other);
    assert_eq!(told(&digests, &other, &file).2, 0);
    digests.keep(&[]);
    assert_eq!(told(&digests, &other, &file).2, 2 * CHUNK as u64 + 9);
}

/// Does what the digester does with a file that is due at `now`; returns what that was.
fn digests_due(digests: &Digests, now: Instant, file: &File) -> Option<(u64, u64)> {
    let due = digests.next_due(now)?;
    let mut file = Reader::new(file);
    file.seek(due.from);
    while file.offset() < due.to {
        let at = file.offset();
        let (mut buffer, to) = (ChunkBuffer::default(), due.to);
        let chunks = buffer.next(&mut file, to).unwrap();
        let digests_of: Vec<_> = chunks.digested().map(|chunk| chunk.digest).collect();
        assert!(digests.add(&due.path, at, chunks.bytes(), &digests_of));
    }
    Some((due.from, due.to))
}

fn appends(digests: &Digests, path: &RelPath, file: &mut File, bytes: &[u8]) {
    digests.check(path, file);
    file.write_all(bytes).unwrap();
    digests.changed(path, file, u64::MAX, None);
}

#[test]
fn of_a_file_of_any_size_no_more_is_digested_than_is_told() {
    let (_dir, path, mut file) = opened();
    let digests = Digests::default();
    file.set_len(8 << 40).unwrap();
    appends(&digests, &path, &mut file, b"end");
    let due = digests.next_due(Instant::now() + 2 * REST).unwrap();
    assert_eq!((due.from, due.to), (0, digested_bytes_max()));
}

#[test]
fn what_rests_is_digested_to_its_end_and_what_grows_by_whole_chunks() {
    let (_dir, path, mut file) = opened();
    let digests = Digests::default();
    appends(&digests, &path, &mut file, &vec![1; 5 * CHUNK + 7]);
    let first = Instant::now();
    assert_eq!(digests_due(&digests, first, &file), None);
    while Instant::now() == first {}
    appends(&digests, &path, &mut file, &[2; 2]);
    let whole = 5 * CHUNK as u64;
    assert_eq!(digests_due(&digests, first + REST, &file), Some((0, whole)));
    assert_eq!(digests_due(&digests, first + REST, &file), None);
    assert_eq!(digests_due(&digests, first + 3 * REST, &file), Some((whole, whole + 9)));
    assert_eq!(digests_due(&digests, first + 9 * REST, &file), None);
    // What was a part of a chunk is digested again with what comes behind it.
    appends(&digests, &path, &mut file, &[3; 2]);
    assert_eq!(digests_due(&digests, Instant::now() + REST, &file), Some((whole, whole + 11)));
    assert_eq!(told(&digests, &path, &file).2, 0);
    let mut tail = vec![1; 7];
    tail.extend_from_slice(&[2, 2, 3, 3]);
    let known = digests.get(&path, &Stamps::of_file(&file).unwrap()).unwrap();
    assert_eq!((known.chunks.len(), known.chunks[5]), (6, digest(&tail)));
}

#[test]
fn what_happens_to_a_file_that_is_being_digested_but_an_append_makes_it_void() {
    type Happens = fn(&Digests, &RelPath, &mut File);
    let happens: [(Happens, bool); 7] = [
        (|_, _, _| {}, true),
        (|digests, path, file| appends(digests, path, file, b"more"), true),
        (|digests, path, file| digests.changed(path, file, 3, None), false),
        (|digests, path, _| digests.forget(path), false),
        (|digests, path, _| digests.renamed(path, &RelPath::new("b").unwrap()), false),
        (|digests, _, _| digests.forget_all(), false),
        (
            |digests, path, file| {
                // By another, before a write of ours.
                file.write_all(b"?").unwrap();
                appends(digests, path, file, b"!");
            },
            false,
        ),
    ];
    for (at, (happens, stays)) in happens.into_iter().enumerate() {
        let (_dir, path, mut file) = opened();
        let digests = Digests::default();
        appends(&digests, &path, &mut file, b"content");
        let due = digests.next_due(Instant::now() + REST).unwrap();
        assert_eq!((due.from, due.to), (0, 7));
        happens(&digests, &path, &mut file);
        assert_eq!(digests.add(&path, 0, 7, &[digest(b"content")]), stays, "{at}");
    }
}

#[test]
fn a_file_that_has_gone_or_has_another_name_is_due_no_more() {
    let (_dir, path, mut file) = opened();
    let digests = Digests::default();
    let later = || Instant::now() + REST;
    appends(&digests, &path, &mut file, b"1");
    digests.forget(&path);
    assert_eq!(digests.next_due(later()), None);
    appends(&digests, &path, &mut file, b"2");
    let other = RelPath::new("b").unwrap();
    digests.renamed(&path, &other);
    assert_eq!(digests.next_due(later()).unwrap().path, other);
    assert_eq!(digests.next_due(later()), None);
    let state = digests.state.lock();
    assert!(state.due.is_empty() && state.waiting.is_empty());
}
