use std::fs;

use super::*;
use crate::types::OWN_FOLDER;
use proptest::prelude::*;

const FOLLOWER: Who = Who::Follower { is_marked: false };
const MARKED: Who = Who::Follower { is_marked: true };

fn own() -> (tempfile::TempDir, OwnFolder) {
    let dir = tempfile::tempdir().unwrap();
    let own = OwnFolder::of(dir.path()).unwrap();
    (dir, own)
}

/// A file that has been at rest for long.
fn known(ino: u64, size: u64, bytes: u64) -> Digested {
    let stamps = Stamps { dev: 3, ino, size, mtime: 1_000_000_007, ctime: 1_000_000_011 };
    Digested {
        stamps,
        bytes,
        chunks: vec![[u8::try_from(ino % 256).unwrap(); 20]; usize::try_from(bytes.div_ceil(CHUNK_BYTES)).unwrap()],
    }
}

fn path(name: &str) -> RelPath {
    RelPath::new(name).unwrap()
}

fn write(own: &OwnFolder, who: Who, boot: Option<u128>, files: &[(RelPath, Digested)]) {
    let mut writer = Writer::begin_in(own, who, boot).unwrap();
    for (path, known) in files {
        assert!(writer.push(path, &known.stamps, known).unwrap());
    }
    writer.finish().unwrap();
}

fn read(own: &OwnFolder, who: Who, now: Option<u128>) -> Option<Vec<(RelPath, Digested)>> {
    let file = own.open(DIGESTS).unwrap()?;
    let kept = Reader::read(file, now, who).ok()??;
    Some(kept.map(|known| known.unwrap()).collect())
}

fn any_known() -> impl Strategy<Value = Digested> {
    let times = (0..i64::MAX / 2, 0..i64::MAX / 2);
    let time = |(a, b): (i64, i64)| (a / 4_000_000_000, b / 4_000_000_000);
    ((any::<u64>(), any::<u64>()), 1..5 * CHUNK_BYTES, 1..=100_u64, times, any::<u8>()).prop_map(
        move |((dev, ino), size, percent, times, seed)| {
            let (mtime, ctime) = time(times);
            let bytes = (size * percent / 100).max(1);
            let count = usize::try_from(bytes.div_ceil(CHUNK_BYTES)).unwrap();
            let stamps = Stamps { dev: dev / 2, ino, size, mtime, ctime };
            Digested { stamps, bytes, chunks: vec![[seed; 20]; count] }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_was_kept_comes_back(files in prop::collection::vec(("[a-c]{1,3}(/[a-c]{1,40})?", any_known()), 0..60)) {
        let (_dir, own) = own();
        let files: Vec<_> = files.into_iter().map(|(name, known)| (path(&name), known)).collect();
        write(&own, Who::Leader, Some(7), &files);
        prop_assert_eq!(read(&own, Who::Leader, Some(7)).unwrap(), files.clone());
        write(&own, FOLLOWER, Some(7), &files);
        let elsewhere = read(&own, FOLLOWER, Some(8)).unwrap();
        prop_assert_eq!(elsewhere.len(), files.len());
        for ((path, kept), (expected, known)) in elsewhere.into_iter().zip(files) {
            prop_assert_eq!(path, expected);
            let on_another = Stamps { dev: 99, ..known.stamps };
            prop_assert!(kept.stamps.are(&on_another));
            prop_assert_eq!((kept.bytes, kept.chunks), (known.bytes, known.chunks));
        }
    }
}

#[test]
fn what_was_written_is_believed_by_whom_it_may_be() {
    let files = [(path("a"), known(1, 10, 10))];
    let (same, other) = (Some(7), Some(8));
    for (written_by, boot, led, read_by, now, is_believed) in [
        (FOLLOWER, same, false, FOLLOWER, same, true),
        (FOLLOWER, same, false, MARKED, same, true),
        (FOLLOWER, same, false, Who::Leader, same, true),
        (FOLLOWER, same, true, FOLLOWER, same, true),
        (Who::Leader, same, false, Who::Leader, same, true),
        (Who::Leader, same, false, FOLLOWER, same, true),
        // Power may have been lost.
        (FOLLOWER, same, false, FOLLOWER, other, true),
        (FOLLOWER, None, false, FOLLOWER, None, true),
        (FOLLOWER, same, false, MARKED, other, false),
        (FOLLOWER, same, false, Who::Leader, other, false),
        (FOLLOWER, None, false, Who::Leader, None, false),
        (FOLLOWER, same, true, FOLLOWER, other, false),
        (Who::Leader, same, false, FOLLOWER, other, false),
        (Who::Leader, None, false, FOLLOWER, None, false),
        (Who::Leader, same, false, Who::Leader, other, false),
    ] {
        let (_dir, own) = own();
        write(&own, written_by, boot, &files);
        if led {
            super::led(&own).unwrap();
        }
        let is = read(&own, read_by, now).is_some();
        assert_eq!(is, is_believed, "{written_by:?} in {boot:?}, led: {led}, by {read_by:?} in {now:?}");
    }
}

#[test]
fn what_a_follower_was_still_writing_is_not_there_for_who_leads() {
    let (_dir, own) = own();
    let files = [(path("a"), known(1, 10, 10))];
    let writer = Writer::begin(&own, FOLLOWER).unwrap();
    super::led(&own).unwrap();
    assert!(writer.finish().is_err());
    write(&own, FOLLOWER, Some(7), &files);
    super::led(&own).unwrap();
    assert!(read(&own, FOLLOWER, Some(8)).is_none() && read(&own, FOLLOWER, Some(7)).is_some());
}

#[test]
fn torn_or_damaged_it_is_absent() {
    let (dir, own) = own();
    assert!(Reader::open(&own, FOLLOWER).is_none());
    super::led(&own).unwrap();
    let files = [(path("a"), known(1, 10, 10)), (path("ab/c"), known(2, CHUNK_BYTES + 1, CHUNK_BYTES))];
    write(&own, FOLLOWER, Some(7), &files);
    let at = dir.path().join(OWN_FOLDER).join(DIGESTS);
    let whole = fs::read(&at).unwrap();
    for len in 0..whole.len() {
        fs::write(&at, &whole[..len]).unwrap();
        assert!(read(&own, FOLLOWER, Some(7)).is_none(), "{len} bytes of it were taken");
        let mut other = whole.clone();
        other[len] ^= 1;
        fs::write(&at, other).unwrap();
        // Who has written since is another's affair.
        assert_eq!(read(&own, FOLLOWER, Some(7)).is_some(), len as u64 == WHO_AT, "byte {len}");
    }
    fs::write(&at, [&whole[..], b"?"].concat()).unwrap();
    assert!(read(&own, FOLLOWER, Some(7)).is_none());
    fs::remove_file(&at).unwrap();
    fs::create_dir(&at).unwrap();
    assert!(Reader::open(&own, FOLLOWER).is_none());
    assert!(super::led(&own).is_err());
}

#[test]
fn only_what_looks_as_it_did_and_has_settled_is_kept_and_only_when_it_is_finished() {
    let (dir, own) = own();
    let mut writer = Writer::begin(&own, FOLLOWER).unwrap();
    let old = known(1, 10, 10);
    let mut fresh = known(2, 10, 10);
    fresh.stamps.mtime = writer.began;
    let mut nearly = fresh.clone();
    nearly.stamps.mtime -= 99_000_000;
    let mut settled = fresh.clone();
    settled.stamps.mtime -= 101_000_000;
    let other = Stamps { ino: 9, ..old.stamps };
    assert!(!writer.push(&path("a"), &other, &old).unwrap());
    assert!(!writer.push(&path("b"), &fresh.stamps, &fresh).unwrap());
    assert!(!writer.push(&path("c"), &nearly.stamps, &nearly).unwrap());
    assert!(!writer.push(&path("d"), &old.stamps, &Digested::nothing(old.stamps)).unwrap());
    assert!(writer.push(&path("e"), &settled.stamps, &settled).unwrap());
    assert!(writer.push(&path("f"), &old.stamps, &Digested { stamps: old.stamps.anywhere(), ..old.clone() }).unwrap());
    drop(writer);
    assert!(Reader::open(&own, FOLLOWER).is_none());
    assert_eq!(fs::read_dir(dir.path().join(OWN_FOLDER)).unwrap().count(), 0, "something is left of it");
    let mut writer = Writer::begin(&own, FOLLOWER).unwrap();
    writer.push(&path("f"), &old.stamps, &Digested { stamps: old.stamps.anywhere(), ..old.clone() }).unwrap();
    writer.finish().unwrap();
    let kept: Vec<_> = Reader::open(&own, FOLLOWER).unwrap().map(|known| known.unwrap()).collect();
    assert_eq!(kept, [(path("f"), old)], "the device it was on is kept");
}
