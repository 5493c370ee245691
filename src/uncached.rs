//! Reading and writing in bulk without spoiling the page cache for the programs that use the files.
//!
//! Linux can read through the cache and keep nothing of it that was not there before (`RWF_DONTCACHE`): what the host has
//! cached stays, what a sync brings in goes. It is used from Linux 6.16 on: it came with 6.14, and as others write to the very
//! files that are read, it is given two releases to mature. Where the kernel or the file system does not know it, files
//! are read as usual and what was read is left to the kernel, which takes back first what was read but once. The other way,
//! `posix_fadvise` with `POSIX_FADV_DONTNEED`, is not taken: it would also drop what the host had cached, which costs the
//! host more than a full cache does.
//!
//! What is written so is on its way to the disk at once, and out of the cache when it is there. So a file that is filled keeps
//! to few pages of memory, used again and again, instead of taking new ones for all of it.

use std::io::{self, IoSlice, IoSliceMut, Write};

use crate::sys::fs::{self, File, FileExt};
use crate::sys::rustix;
use crate::sys::rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};
use crate::sys::sync::OnceLock;

const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Less than this is written as usual: each write that is not cached is one to the disk. Measured until all was durable: 1.4
/// times the rate of cached writes with 256 KiB, which is what our leaders send; with 64 KiB, as LavinMQ's do, 0.8 to 0.9 times.
const WRITTEN_UNCACHED_BYTES_MIN: usize = 128 << 10;

/// How much is best read at once: a disk that is asked for less has nothing to do in between. Measured on files that were not
/// cached: 0.9 GB/s, and 0.55 with a quarter of it.
pub(crate) const READ_AT_ONCE_BYTES: usize = 1 << 20;

/// Reads at an offset, and leaves nothing in the page cache that was not there, if possible.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    if is_supported() {
        match preadv2(file, &mut [IoSliceMut::new(buffer)], offset, DONTCACHE) {
            Ok(length) => return Ok(length),
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    file.read_at(buffer, offset)
}

/// Writes at a file's end, where it stands, and leaves only the pages in the cache that `bytes` do not fill, if possible:
/// those must not be read again for what comes next.
pub(crate) fn append(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() < WRITTEN_UNCACHED_BYTES_MIN || !is_supported() {
        return file.write_all(bytes);
    }
    let page = rustix::param::page_size();
    let filled = usize::try_from(file.metadata()?.len() % page as u64).expect("less than a page");
    let (first, rest) = bytes.split_at((page - filled) % page);
    let (mut pages, last) = rest.split_at(rest.len() / page * page);
    file.write_all(first)?;
    while !pages.is_empty() {
        match pwritev2(file, &[IoSlice::new(pages)], WHERE_IT_STANDS, DONTCACHE) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => pages = &pages[written..],
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                file.write_all(pages)?;
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    file.write_all(last)
}

/// The offset that says so: -1.
const WHERE_IT_STANDS: u64 = u64::MAX;

fn is_supported() -> bool {
    if cfg!(feature = "simulate") {
        // What is remembered here would go on from one simulated world to the next.
        return kernel_is_since(6, 16);
    }
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| kernel_is_since(6, 16))
}

/// Whether this is Linux of that version or a later one; if that cannot be told, it is not.
pub(crate) fn kernel_is_since(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    version(&release).is_some_and(|version| version >= (major, minor))
}

pub(crate) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|byte: char| !byte.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_are_appended_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..=250).cycle().take(WRITTEN_UNCACHED_BYTES_MIN * 2).collect();
        let pieces =
            [1, WRITTEN_UNCACHED_BYTES_MIN, 5000, WRITTEN_UNCACHED_BYTES_MIN * 2 - 7, 3, bytes.len(), bytes.len()];
        for append_mode in [true, false] {
            let path = dir.path().join(append_mode.to_string());
            let file = File::options().create(true).append(append_mode).write(true).open(&path).unwrap();
            let mut expected = Vec::new();
            for piece in pieces {
                append(&file, &bytes[..piece]).unwrap();
                expected.extend_from_slice(&bytes[..piece]);
            }
            assert!(std::fs::read(&path).unwrap() == expected);
        }
    }

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(version("6.16.3-amd64\n"), Some((6, 16)));
        assert_eq!(version("5.4"), Some((5, 4)));
        assert_eq!(version("none"), None);
    }
}
