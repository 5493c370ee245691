//! SHA-1 sums of announced content, computed without any lock and remembered.
//!
//! The state after the last hashed byte is kept, so a file that has grown costs only its growth. The cache's lock guards
//! look-ups and is never held while reading a file.

use std::io::{self, Read};

use sha1::{Digest, Sha1};

use super::Version;
use super::blocks::Notes;
use crate::protocol::Sha1Sum;
use crate::reader::{HOLE_BYTES_MIN, Reader, Span};
use crate::sys::fs::File;
use crate::sys::hash::HashMap;
use crate::sys::sync::Mutex;
use crate::types::RelPath;
use crate::uncached::READ_AT_ONCE_BYTES;

/// Sums computed so far.
#[derive(Default)]
pub(crate) struct HashCache {
    known: Mutex<HashMap<RelPath, Hashed>>,
}

#[derive(Clone)]
struct Hashed {
    version: Version,
    state: Sha1,
}

impl HashCache {
    /// The SHA-1 of the first `version.len` bytes of `path`, which `open` opens; `None` if it has gone or is shorter than that. `version.generation` is to be
    /// another number also once the file was written to in place.
    ///
    /// Blocks for as long as it takes to read what was not hashed before, but for holes; `go_on` is told the bytes of each portion, and its
    /// error ends it.
    pub(crate) fn sum(
        &self,
        open: impl FnOnce() -> io::Result<Option<File>>,
        path: &RelPath,
        version: Version,
        notes: Option<Notes>,
        go_on: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<Option<Sha1Sum>> {
        let known = self.known.lock().get(path).cloned();
        let mut hashed = known
            .filter(|known| known.version.generation == version.generation && known.version.len <= version.len)
            .unwrap_or_else(|| Hashed { version: Version { len: 0, ..version }, state: Sha1::new() });
        if hashed.version.len < version.len {
            let Some(file) = open()? else { return Ok(None) };
            if !hash_up_to(&mut hashed, Reader::uncached(file).noted(notes), version.len, go_on)? {
                return Ok(None);
            }
            self.known.lock().insert(path.clone(), hashed.clone());
        }
        Ok(Some(hashed.state.finalize().into()))
    }

    /// Forgets all files that `keep` refuses.
    pub(crate) fn retain(&self, mut keep: impl FnMut(&RelPath) -> bool) {
        self.known.lock().retain(|path, _| keep(path));
    }
}

fn hash_up_to(
    hashed: &mut Hashed,
    mut file: Reader,
    len: u64,
    go_on: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<bool> {
    file.seek(hashed.version.len);
    let most = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX).min(READ_AT_ONCE_BYTES);
    let mut buffer = vec![0; most(len - hashed.version.len)];
    while hashed.version.len < len {
        let length = match file.next(len, HOLE_BYTES_MIN) {
            Span::Data(bytes) => file.read(&mut buffer[..most(bytes)])?,
            Span::Hole(bytes) => {
                let zeros = &mut buffer[..most(bytes)];
                zeros.fill(0);
                file.skip(zeros.len() as u64);
                zeros.len()
            }
        };
        if length == 0 {
            return Ok(false);
        }
        go_on(length as u64)?;
        hashed.state.update(&buffer[..length]);
        hashed.version.len += length as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_hashed_from_where_it_began_and_a_new_generation_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = RelPath::new("f").unwrap();
        let cache = HashCache::default();
        let root = crate::beneath::Beneath::open(dir.path()).unwrap();
        let open = || root.file(&path);
        let sum = |generation, len| cache.sum(open, &path, Version { generation, len }, None, &mut |_| Ok(())).unwrap();
        let expected = |bytes: &[u8]| -> Option<Sha1Sum> { Some(Sha1::digest(bytes).into()) };
        std::fs::write(dir.path().join("f"), "hello world").unwrap();
        assert_eq!(sum(1, 5), expected(b"hello"));
        // Only what is beyond the fifth byte is read again: the change before it does not show.
        std::fs::write(dir.path().join("f"), "HELLO world").unwrap();
        assert_eq!(sum(1, 11), expected(b"hello world"));
        assert_eq!(sum(1, 5), expected(b"HELLO"));
        assert_eq!(sum(2, 11), expected(b"HELLO world"));
        assert_eq!(sum(2, 12), None, "shorter than announced");
        assert_eq!(sum(3, 0), expected(b""));
        std::fs::remove_file(dir.path().join("f")).unwrap();
        assert_eq!(sum(4, 1), None);
        std::fs::create_dir(dir.path().join("f")).unwrap();
        assert_eq!(sum(4, 1), None, "a folder is no file");
    }

    #[test]
    fn no_more_is_read_than_was_announced_nothing_twice_and_nothing_that_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = RelPath::new("f").unwrap();
        let cache = HashCache::default();
        let content = vec![5; 2 * READ_AT_ONCE_BYTES + 7];
        std::fs::write(dir.path().join("f"), &content).unwrap();
        let sum = |len: usize| {
            let mut read = Vec::new();
            let mut count = |bytes| {
                read.push(bytes);
                Ok(())
            };
            let open = || match File::open(dir.path().join("f")) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                file => file.map(Some),
            };
            let version = Version { generation: 1, len: len as u64 };
            let sum = cache.sum(open, &path, version, None, &mut count).unwrap();
            (sum.map(|sum| sum == *Sha1::digest(&content[..len])), read.iter().sum::<u64>(), read.len())
        };
        assert_eq!(sum(10), (Some(true), 10, 1));
        assert_eq!(sum(13), (Some(true), 3, 1));
        assert_eq!(sum(2 * READ_AT_ONCE_BYTES), (Some(true), 2 * READ_AT_ONCE_BYTES as u64 - 13, 2));
        std::fs::remove_file(dir.path().join("f")).unwrap();
        assert_eq!(sum(2 * READ_AT_ONCE_BYTES), (Some(true), 0, 0), "the file is gone");
        cache.retain(|kept| *kept == path);
        assert_eq!(sum(2 * READ_AT_ONCE_BYTES).0, Some(true));
        cache.retain(|kept| *kept != path);
        assert_eq!(sum(2 * READ_AT_ONCE_BYTES).0, None, "it is forgotten");
    }
}
