use std::path::Path;

use super::*;
use crate::protocol::extension::{Attributes, CHUNK};
use crate::sys::fs::FileExt;
use crate::types::RelPath;
use crate::uncached::READ_AT_ONCE_BYTES;
use proptest::prelude::*;
use sha1::{Digest, Sha1};

fn open(file: &Path) -> io::Result<Option<File>> {
    File::open(file).map(Some)
}

fn held_of(bytes: &[u8]) -> Held {
    let digests = bytes.chunks(CHUNK).map(|chunk| Sha1::digest(chunk).into()).collect();
    Held { path: RelPath::new("f").unwrap(), len: bytes.len() as u64, digests, attributes: Attributes::UNKNOWN }
}

/// What a follower makes of its copy.
fn repaired(copy: &[u8], file: &[u8], repair: &Repair) -> Vec<u8> {
    let mut copy = copy.to_vec();
    for &(offset, len) in &repair.patches {
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
        copy[range.clone()].copy_from_slice(&file[range]);
    }
    if let Some(len) = repair.truncate {
        assert!(len < copy.len() as u64);
        copy.truncate(usize::try_from(len).unwrap());
    }
    assert_eq!(copy.len() as u64, repair.append_from);
    copy.extend_from_slice(&file[copy.len()..]);
    copy
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_repaired_copy_is_the_file(
        len in 0_usize..2_000_000, copy_len in 0_usize..2_000_000,
        damage in prop::collection::vec(0_usize..2_000_000, 0..4),
        diverged_at in prop::option::of(0_usize..2_000_000),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let byte = |at: usize| u8::try_from(at * 31 % 251).unwrap();
        let file: Vec<u8> = (0..len).map(byte).collect();
        let mut copy: Vec<u8> = (0..copy_len).map(byte).collect();
        damage.iter().filter(|at| **at < copy_len).for_each(|at| copy[*at] ^= 1);
        if let Some(from) = diverged_at {
            copy.iter_mut().skip(from).for_each(|byte| *byte ^= 0x80);
        }
        std::fs::write(dir.path().join("f"), &file).unwrap();
        let held = held_of(&copy);
        let cache = ChunkCache::default();
        let comparable = comparable_bytes(&held, len as u64);
        for _twice in 0..2 {
            let ours = cache.digests(|| open(&dir.path().join("f")), 1, comparable, None, &mut |_| Ok(())).unwrap().unwrap();
            let repair = compare(&held, len as u64, &ours);
            prop_assert!(repaired(&copy, &file, &repair) == file);
            let intact = damage.iter().all(|at| *at >= copy_len) && diverged_at.is_none_or(|from| from >= copy_len);
            if intact && copy_len <= len {
                prop_assert_eq!(repair, Repair { append_from: copy_len as u64, ..Repair::default() });
            }
        }
    }
}

#[test]
fn chunks_that_were_written_to_are_read_again_also_if_that_was_while_they_were_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let mut content: Vec<u8> = (0..5 * CHUNK + 9).map(|at| u8::try_from(at % 251).unwrap()).collect();
    std::fs::write(&path, &content).unwrap();
    let (cache, len) = (ChunkCache::default(), content.len() as u64);
    let read = |len: u64, meanwhile: &mut dyn FnMut(u64)| {
        let mut read = 0;
        let mut go_on = |bytes: u64| {
            read += bytes;
            meanwhile(read);
            Ok(())
        };
        let digests = cache.digests(|| open(&path), 1, len, None, &mut go_on).unwrap().unwrap();
        (digests, read)
    };
    let expected = |content: &[u8]| held_of(content).digests;
    let write = |content: &mut Vec<u8>, at: usize| {
        content[at] ^= 1;
        std::fs::write(&path, &*content).unwrap();
        cache.rewritten(1, at as u64, 1);
    };
    assert_eq!(read(len, &mut |_| ()), (expected(&content), len));
    // The last byte of one, and the last one, which is a part of one.
    write(&mut content, CHUNK - 1);
    write(&mut content, 5 * CHUNK + 8);
    assert!(!cache.show(1, len, |_| ()), "unknown is known");
    // Some are asked for, which says nothing of the last.
    assert_eq!(read(2 * CHUNK as u64, &mut |_| ()), (expected(&content[..2 * CHUNK]), CHUNK as u64));
    assert_eq!(read(len, &mut |_| ()), (expected(&content), 9));
    assert!(cache.show(1, len, |digests| assert_eq!(digests, expected(&content))));
    // While it is read: before that is come to, and behind it.
    write(&mut content, 0);
    write(&mut content, 3 * CHUNK);
    let mut changed = content.clone();
    let (_, first) = read(len, &mut |done| {
        if done == CHUNK as u64 {
            write(&mut changed, 1);
            write(&mut changed, 3 * CHUNK + 1);
        }
    });
    assert_eq!(first, 2 * CHUNK as u64);
    assert!(!cache.show(1, len, |_| ()), "what was read before it was written is taken for what is there");
    assert_eq!(read(len, &mut |_| ()).0, expected(&changed));
}

#[test]
fn what_programs_changed_unannounced_is_not_kept_for_what_the_file_holds_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let mut content = vec![7; 2 * CHUNK];
    std::fs::write(&path, &content).unwrap();
    for is_watched in [false, true] {
        let cache = ChunkCache::default();
        if is_watched {
            cache.watch();
        }
        let digest = |len: usize| cache.digests(|| open(&path), 1, len as u64, None, &mut |_| Ok(())).unwrap().unwrap();
        digest(CHUNK);
        content[0] ^= 1;
        std::fs::write(&path, &content).unwrap();
        let stamps = Stamps::of_file(File::open(&path).unwrap()).unwrap();
        digest(2 * CHUNK);
        cache.is_at_rest(1, stamps);
        assert_eq!(cache.is_kept(1), !is_watched);
        cache.rewritten(1, 0, 1);
        digest(2 * CHUNK);
        cache.is_at_rest(1, stamps);
        assert_eq!(cache.is_kept(1), !is_watched);
        cache.proven(1, Stamps { ctime: stamps.ctime - 1, ..stamps });
        cache.is_at_rest(1, stamps);
        assert_eq!(cache.is_kept(1), !is_watched);
        cache.proven(1, stamps);
        cache.is_at_rest(1, stamps);
        assert!(cache.is_kept(1));
    }
}

#[test]
fn a_single_damaged_chunk_is_all_that_moves() {
    let file = vec![7; 10 * CHUNK + 5];
    let mut copy = file.clone();
    copy[3 * CHUNK + 1] = 0;
    let ours = held_of(&file).digests;
    let repair = compare(&held_of(&copy), file.len() as u64, &ours);
    let expected =
        Repair { patches: vec![(3 * CHUNK_BYTES, CHUNK_BYTES)], truncate: None, append_from: file.len() as u64 };
    assert_eq!(repair, expected);
}

#[test]
fn a_whole_chunk_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    std::fs::write(&file, vec![1; 3 * CHUNK + 9]).unwrap();
    let cache = ChunkCache::default();
    let read = |len: u64| {
        let mut read = 0;
        let mut count = |bytes| {
            read += bytes;
            Ok(())
        };
        cache.digests(|| open(&file), 1, len, None, &mut count).unwrap().map(|digests| (digests.len(), read))
    };
    assert_eq!(read(2 * CHUNK_BYTES + 5), Some((3, 2 * CHUNK_BYTES + 5)));
    assert_eq!(read(3 * CHUNK_BYTES + 9), Some((4, CHUNK_BYTES + 9)));
    assert_eq!(read(3 * CHUNK_BYTES + 9), Some((4, 0)));
    assert_eq!(read(3 * CHUNK_BYTES), Some((3, 0)));
    assert_eq!(read(4 * CHUNK_BYTES), None, "it is shorter");
}

#[test]
fn what_was_read_for_another_reason_is_known_and_kept_if_it_was_at_rest() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("f");
    let content: Vec<u8> = (0..CHUNK + 9).map(|at| u8::try_from(at % 251).unwrap()).collect();
    std::fs::write(&at, &content).unwrap();
    let (file, mut read) = (File::open(&at).unwrap(), Chunked::default());
    let (looks, later) = (Stamps::of_file(&file).unwrap(), now() + 6_000_000_000);
    read.update(&content);
    let cache = ChunkCache::default();
    cache.was_read(1, read.clone(), (looks, later, 0), &file);
    cache.was_read(2, read.clone(), (looks, now(), 0), &file);
    std::fs::write(&at, "changed").unwrap();
    cache.was_read(3, read, (looks, later, 0), &file);
    assert_eq!([1, 2, 3].map(|generation| cache.is_kept(generation)), [true, false, false]);
    for generation in 1..4 {
        let digests = cache.digests(|| Ok(None), generation, content.len() as u64, None, &mut |_| Ok(())).unwrap();
        assert_eq!(digests, Some(held_of(&content).digests));
    }
    assert_eq!(cache.learned(), 1);
}

#[test]
fn what_is_known_takes_no_file_until_it_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    std::fs::write(&file, vec![1; 3 * CHUNK]).unwrap();
    let cache = ChunkCache::default();
    let digests = |len: u64, there: bool| {
        let open = || if there { open(&file) } else { Ok(None) };
        cache.digests(open, 1, len, None, &mut |_| Ok(())).unwrap().map(|digests| digests.len())
    };
    assert_eq!(digests(3 * CHUNK_BYTES, true), Some(3));
    // What is asked of a part of it is no reason to forget what is beyond.
    assert_eq!(digests(CHUNK_BYTES + 1, true), Some(2));
    assert_eq!(digests(CHUNK_BYTES + 1, false), None);
    assert_eq!(digests(3 * CHUNK_BYTES, false), Some(3));
    cache.retain(|generation| generation == 1);
    assert_eq!([0, 1, 3].map(|chunks| digests(chunks * CHUNK_BYTES, false)), [Some(0), Some(1), Some(3)]);
    cache.retain(|generation| generation != 1);
    assert_eq!(digests(CHUNK_BYTES, false), None);
    assert!(
        cache.digests(|| open(dir.path()), 2, 5, None, &mut |_| Ok(())).is_err(),
        "a folder, not a file that is shorter"
    );
}

#[test]
fn a_long_file_is_read_in_portions_and_each_chunk_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    let content: Vec<u8> = (0..2 * READ_AT_ONCE_BYTES + 3).map(|at| u8::try_from(at / CHUNK % 251).unwrap()).collect();
    std::fs::write(&file, &content).unwrap();
    let mut told = Vec::new();
    let mut tell = |bytes| {
        told.push(bytes);
        Ok(())
    };
    let digests = ChunkCache::default().digests(|| open(&file), 1, content.len() as u64, None, &mut tell).unwrap();
    assert_eq!(digests, Some(held_of(&content).digests));
    assert_eq!(told.pop(), Some(3));
    assert_eq!(told, vec![CHUNK_BYTES; 2 * READ_AT_ONCE_BYTES / CHUNK]);
}

#[test]
fn of_a_sparse_file_only_what_it_holds_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::options().create(true).truncate(true).write(true).open(dir.path().join("f")).unwrap();
    let len = 100 * CHUNK_BYTES + 9;
    file.set_len(len).unwrap();
    for chunk in [7, 50] {
        file.write_all_at(b"data", chunk * CHUNK_BYTES + 5).unwrap();
    }
    let mut content = vec![0; usize::try_from(len).unwrap()];
    for chunk in [7, 50] {
        content[chunk * CHUNK + 5..][..4].copy_from_slice(b"data");
    }
    let mut read = 0;
    let mut count = |bytes| {
        read += bytes;
        Ok(())
    };
    let digests = ChunkCache::default().digests(|| open(&dir.path().join("f")), 1, len, None, &mut count).unwrap();
    assert_eq!(digests, Some(held_of(&content).digests));
    assert_eq!(read, 2 * CHUNK_BYTES);
    let longer =
        ChunkCache::default().digests(|| open(&dir.path().join("f")), 1, len + 1, None, &mut |_| Ok(())).unwrap();
    assert_eq!(longer, None, "it is shorter");
}

#[test]
fn a_copy_is_patched_up_to_half_of_it_and_beyond_that_cut_off_where_it_differs() {
    let file = vec![7; 4 * CHUNK];
    let ours = held_of(&file).digests;
    let damaged = |chunks: &[usize]| {
        let mut copy = file.clone();
        chunks.iter().for_each(|chunk| copy[chunk * CHUNK] = 0);
        compare(&held_of(&copy), file.len() as u64, &ours)
    };
    let patches = vec![(CHUNK_BYTES, CHUNK_BYTES), (3 * CHUNK_BYTES, CHUNK_BYTES)];
    assert_eq!(damaged(&[1, 3]), Repair { patches, truncate: None, append_from: 4 * CHUNK_BYTES });
    let cut = Repair { patches: Vec::new(), truncate: Some(CHUNK_BYTES), append_from: CHUNK_BYTES };
    assert_eq!(damaged(&[1, 2, 3]), cut);
    let short = vec![7; 3 * CHUNK + 9];
    let mut copy = short.clone();
    copy[3 * CHUNK] = 0;
    let repair = compare(&held_of(&copy), short.len() as u64, &held_of(&short).digests);
    assert_eq!(repair.patches, [(3 * CHUNK_BYTES, 9)], "no further than the copy goes");
}

#[test]
fn a_copy_is_compared_as_far_as_its_digests_tell_of_the_file() {
    let held = |len: u64, chunks: usize| Held {
        path: RelPath::new("f").unwrap(),
        len,
        digests: vec![[0; 20]; chunks],
        attributes: Attributes::UNKNOWN,
    };
    assert_eq!(comparable_bytes(&held(CHUNK_BYTES + 5, 2), CHUNK_BYTES + 5), CHUNK_BYTES + 5);
    assert_eq!(comparable_bytes(&held(CHUNK_BYTES + 5, 1), CHUNK_BYTES + 5), CHUNK_BYTES);
    assert_eq!(comparable_bytes(&held(3 * CHUNK_BYTES, 3), 2 * CHUNK_BYTES + 5), 2 * CHUNK_BYTES);
}
