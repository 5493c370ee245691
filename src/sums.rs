//! What files, folders and links come to: one sum for many, so that two directories of a million files find out what differs in two short exchanges.
//!
//! They are spread over *buckets* by their names. The sum of a bucket is over the names, lengths, contents and attributes of all in it: SHA-1, as of the
//! chunks, because content may be anybody's, who must not be able to make two that are taken for one. Sums that are equal say that
//! the files are. Pure; no files, no locks.

use sha1::{Digest, Sha1};

use crate::protocol::extension::{Attributes, BUCKET_BITS_MAX, ChunkDigest, Item, Sum};
use crate::types::RelPath;

/// About as many files are in a bucket.
const FILES_A_BUCKET: u64 = 16;

/// How many bits make about the right number of buckets for so many files.
pub(crate) fn bits_for(files: u64) -> u8 {
    let buckets = (files / FILES_A_BUCKET).max(1);
    u8::try_from(buckets.ilog2()).unwrap_or(BUCKET_BITS_MAX).min(BUCKET_BITS_MAX)
}

/// Which of 2^`bits` buckets a file is in.
pub(crate) fn bucket_of(path: &RelPath, bits: u8) -> u32 {
    let digest = Sha1::digest(path.as_str());
    let first = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    first.checked_shr(u32::BITS - u32::from(bits)).unwrap_or(0)
}

/// In the place of a file's length, where there is none.
const NO_FILE: u64 = u64::MAX;

/// The sums of all buckets, as they are being made.
pub(crate) struct Sums {
    bits: u8,
    files: Vec<(u32, Sum)>,
}

impl Sums {
    /// With no files.
    pub(crate) fn new(bits: u8) -> Self {
        Self { bits, files: Vec::new() }
    }

    /// Adds a file. `digests` are those of its `len` bytes, chunk by chunk.
    pub(crate) fn add(&mut self, path: &RelPath, len: u64, digests: &[ChunkDigest], attributes: Attributes) {
        let mut sum = begin(path, len);
        digests.iter().for_each(|digest| sum.update(digest));
        attributes.add_to(&mut sum);
        self.files.push((bucket_of(path, self.bits), sum.finalize().into()));
    }

    /// Adds a folder or a link.
    pub(crate) fn add_item(&mut self, path: &RelPath, item: &Item) {
        let mut sum = begin(path, NO_FILE);
        let mut bytes = Vec::new();
        item.encode(&mut bytes);
        sum.update(bytes);
        self.files.push((bucket_of(path, self.bits), sum.finalize().into()));
    }

    /// The sum of each bucket, in order.
    pub(crate) fn finish(mut self) -> Vec<Sum> {
        self.files.sort_unstable();
        let mut sums = vec![Sum::default(); 1 << self.bits];
        for bucket in self.files.chunk_by(|(a, _), (b, _)| a == b) {
            let mut sum = Sha1::new();
            bucket.iter().for_each(|(_, file)| sum.update(file));
            sums[bucket[0].0 as usize] = sum.finalize().into();
        }
        sums
    }
}

/// Each name is followed by as many bytes as the length says: no two files, or items, are the same bytes.
fn begin(path: &RelPath, len: u64) -> Sha1 {
    let mut sum = Sha1::new();
    sum.update((path.as_str().len() as u64).to_le_bytes());
    sum.update(path.as_str());
    sum.update(len.to_le_bytes());
    sum
}

/// The buckets of which these sums are not the same.
pub(crate) fn differing(ours: &[Sum], theirs: &[Sum]) -> Vec<u32> {
    (0..).zip(ours.iter().zip(theirs)).filter(|(_, (ours, theirs))| ours != theirs).map(|(bucket, _)| bucket).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use proptest::prelude::*;

    type Files = BTreeMap<RelPath, (u64, Vec<ChunkDigest>)>;

    fn any_files() -> impl Strategy<Value = Files> {
        let name = "[a-d]{1,3}".prop_map(|name| RelPath::new(&name).unwrap());
        let digests = prop::collection::vec((0..2_u8).prop_map(|byte| [byte; 20]), 0..3);
        prop::collection::btree_map(name, (0..3_u64, digests), 0..60)
    }

    fn sums(files: &Files, bits: u8) -> Vec<Sum> {
        let mut sums = Sums::new(bits);
        // In any order.
        files.iter().rev().for_each(|(path, (len, digests))| sums.add(path, *len, digests, Attributes::UNKNOWN));
        sums.finish()
    }

    proptest! {
        #[test]
        fn the_buckets_that_differ_are_those_in_which_a_file_does(a in any_files(), b in any_files(), bits in 0..9_u8) {
            let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
            let expected: BTreeSet<u32> =
                names.into_iter().filter(|path| a.get(*path) != b.get(*path)).map(|path| bucket_of(path, bits)).collect();
            let found = differing(&sums(&a, bits), &sums(&b, bits));
            prop_assert!(found.is_sorted());
            prop_assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
        }
    }

    #[test]
    fn there_are_about_as_many_buckets_as_keep_each_small_and_a_bucket_without_files_is_zero() {
        assert_eq!([0, 1, 31, 32, 1_000_000, u64::MAX].map(bits_for), [0, 0, 0, 1, 15, BUCKET_BITS_MAX]);
        assert_eq!(Sums::new(1).finish(), [Sum::default(); 2]);
        let path = RelPath::new("a").unwrap();
        assert_eq!(bucket_of(&path, 0), 0);
        assert!(bucket_of(&path, 16) < 1 << 16);
        let empty = |attributes| {
            let mut sums = Sums::new(0);
            sums.add(&path, 0, &[], attributes);
            sums.finish()
        };
        assert_ne!(empty(Attributes::UNKNOWN), [Sum::default()], "an empty file is one");
        let item = |item| {
            let mut sums = Sums::new(0);
            sums.add_item(&path, &item);
            sums.finish()
        };
        let of = |mode, mtime| Attributes { mode, mtime };
        assert!(empty(of(0o600, 5)) != empty(of(0o700, 5)) && empty(of(0o600, 5)) != empty(of(0o600, 6)));
        let folder = |mode| item(Item::Folder(of(mode, Attributes::NO_TIME)));
        let link = |target| item(Item::link(target).unwrap());
        assert!(folder(0o600) != folder(0o700) && link(b"a") != link(b"b") && link(b"a") != folder(0));
    }
}
