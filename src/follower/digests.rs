//! The digests of local files, chunk by chunk, and what of them is still true when the next leader wants them.
//!
//! Digests are kept in memory only, from one connection to the next. An entry holds while the file's inode, length and times
//! are what they were after our own last write; each write of ours looks before it and notes the new ones after it. So
//! of a file that only we appended to, the whole chunks need no reading again. What anybody else changed, and everything after
//! a restart, is read anew: verified, not believed. A change by another within the same tick of the file system's clock as
//! a write of ours, which keeps the length, is not seen (kernels since 6.13 have no such ticks for files that are looked at).
//!
//! One lock around the map, a leaf, held for lookups and never while a file is read.

use std::io;

use sha1::{Digest, Sha1};

use crate::protocol::extension::{CHUNK, CHUNK_BYTES, ChunkDigest};
use crate::sys::fs::{File, MetadataExt};
use crate::sys::hash::HashMap;
use crate::sys::sync::Mutex;
use crate::types::RelPath;
use crate::uncached::{self, READ_AT_ONCE_BYTES};

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            file: (meta.dev(), meta.ino()),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

#[derive(Debug)]
struct Entry {
    stamp: Stamp,
    digests: Vec<ChunkDigest>,
    /// Bytes that the digests are of; the last one may be of a part of a chunk.
    digested: u64,
}

impl Entry {
    /// Keeps the digests of the whole chunks below `len`.
    fn cut(&mut self, len: u64) {
        let whole = self.digested.min(len) / CHUNK_BYTES;
        self.digests.truncate(usize::try_from(whole).unwrap_or(usize::MAX));
        self.digested = self.digests.len() as u64 * CHUNK_BYTES;
    }
}

/// The digests of all files.
#[derive(Debug, Default)]
pub(super) struct Digests {
    files: Mutex<HashMap<RelPath, Entry>>,
}

impl Digests {
    /// Before a write of ours: forgets the file if it is not as our last one left it.
    pub(super) fn check(&self, path: &RelPath, file: &File) {
        let mut files = self.files.lock();
        if files.get(path).is_some_and(|entry| Stamp::of(file).ok() != Some(entry.stamp)) {
            files.remove(path);
        }
    }

    /// After a write of ours, at or behind `offset`: what is before it is still true.
    pub(super) fn changed(&self, path: &RelPath, file: &File, offset: u64) {
        let mut files = self.files.lock();
        let Some(entry) = files.get_mut(path) else { return };
        match Stamp::of(file) {
            Ok(stamp) => {
                if offset < entry.digested {
                    entry.cut(offset);
                }
                entry.stamp = stamp;
            }
            Err(_) => drop(files.remove(path)),
        }
    }

    /// The file has another name.
    pub(super) fn renamed(&self, from: &RelPath, to: &RelPath) {
        let mut files = self.files.lock();
        match files.remove(from) {
            Some(entry) => drop(files.insert(to.clone(), entry)),
            None => drop(files.remove(to)),
        }
    }

    pub(super) fn forget(&self, path: &RelPath) {
        self.files.lock().remove(path);
    }

    /// After a failed write or flush nothing is believed.
    pub(super) fn forget_all(&self) {
        self.files.lock().clear();
    }

    /// Keeps only these files, which are sorted.
    pub(super) fn keep(&self, sorted: &[RelPath]) {
        self.files.lock().retain(|path, _| sorted.binary_search(path).is_ok());
    }

    /// The length and the digests of a file, at most `chunks_max` of them; what is not known is read. `go_on` is asked
    /// now and then, with how many bytes of it were digested since it was last: its error ends it.
    pub(super) fn of<E: From<io::Error>>(
        &self,
        path: &RelPath,
        file: &File,
        chunks_max: usize,
        buffer: &mut ChunkBuffer,
        go_on: &mut dyn FnMut(u64) -> Result<(), E>,
    ) -> Result<(u64, Vec<ChunkDigest>), E> {
        let stamp = Stamp::of(file)?;
        let known = self.files.lock().remove(path).filter(|entry| entry.stamp == stamp);
        let mut entry = known.unwrap_or(Entry { stamp, digests: Vec::new(), digested: 0 });
        if entry.digested != stamp.len {
            entry.cut(stamp.len);
            while entry.digests.len() < chunks_max {
                go_on(0)?;
                let (bytes, at_end) = buffer.read(file, entry.digested)?;
                for chunk in bytes.chunks(CHUNK).take(chunks_max - entry.digests.len()) {
                    entry.digests.push(Sha1::digest(chunk).into());
                    entry.digested += chunk.len() as u64;
                    go_on(chunk.len() as u64)?;
                }
                if at_end {
                    break;
                }
            }
        }
        let told = (entry.digested, entry.digests.clone());
        // Otherwise it was changed while it was read.
        if Stamp::of(file)? == stamp {
            self.files.lock().insert(path.clone(), entry);
        }
        Ok(told)
    }
}

/// Room for some chunks, to be used again.
pub(super) struct ChunkBuffer(Vec<u8>);

impl ChunkBuffer {
    pub(super) fn new() -> Self {
        Self(vec![0; READ_AT_ONCE_BYTES])
    }

    /// Reads as many chunks as fit from `offset` on, or what there is of them; and whether the file ends there.
    fn read(&mut self, file: &File, offset: u64) -> io::Result<(&[u8], bool)> {
        let mut filled = 0;
        while filled < self.0.len() {
            match uncached::read_at(file, &mut self.0[filled..], offset + filled as u64) {
                Ok(0) => return Ok((&self.0[..filled], true)),
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok((&self.0, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn digest(bytes: &[u8]) -> ChunkDigest {
        Sha1::digest(bytes).into()
    }

    /// Tells a file's digests and how many bytes were read for them.
    fn told(digests: &Digests, path: &RelPath, file: &File) -> (u64, Vec<ChunkDigest>, u64) {
        let mut read = 0;
        let (len, told) = digests
            .of::<io::Error>(path, file, 5, &mut ChunkBuffer::new(), &mut |bytes| {
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
        digests.changed(&path, &file, CHUNK as u64 + 10);
        let mut tail = vec![1; 10];
        tail.extend_from_slice(&[2; 5]);
        let second = vec![first[0], digest(&tail)];
        assert_eq!(told(&digests, &path, &file), (CHUNK as u64 + 15, second, 15));
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
        digests.changed(&path, &file, 2 * CHUNK as u64 + 1);
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
        digests.changed(&path, &file, 4 * CHUNK as u64 + 3);
        assert_eq!(told(&digests, &path, &file).2, CHUNK as u64);
        digests.check(&path, &file);
        file.set_len(2 * CHUNK as u64 + 9).unwrap();
        digests.changed(&path, &file, 2 * CHUNK as u64 + 9);
        let cut = told(&digests, &path, &file);
        assert_eq!((cut.0, cut.1.len(), cut.2), (2 * CHUNK as u64 + 9, 3, 9));
        let other = RelPath::new("b").unwrap();
        digests.renamed(&path, &other);
        assert_eq!(told(&digests, &other, &file).2, 0);
        digests.keep(&[]);
        assert_eq!(told(&digests, &other, &file).2, 2 * CHUNK as u64 + 9);
    }
}
