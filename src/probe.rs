//! Whether a disk takes something new: the probe of a watchdog.
//!
//! Overwriting in place succeeds on a full disk, so each probe allocates, writes new blocks, makes them durable and gives them back, in
//! a file without a name, so that nobody sees it and nothing is left after a crash. Where the file system knows no such files it has
//! one, in `.paceline/`, for a moment. No threads, no locks; not to be shared.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};

use crate::sys::fs::{File, FileExt};
use crate::sys::random;
use crate::sys::rustix;
use crate::sys::rustix::fs::{CWD, FallocateFlags, Mode, OFlags, fallocate, mkdirat, openat, unlinkat};
use crate::sys::rustix::io::Errno;

/// What has to be there for the disk not to be called full: more than a record of most programs, and little of any disk.
const ROOM_BYTES: u64 = 1 << 20;
/// Really written, each time with other bytes: file systems that compress, or find equal blocks, take no zeros for content.
const WRITTEN_BYTES: usize = 4096;

pub(crate) struct Probe {
    dir: PathBuf,
    /// Kept open: a process that has no descriptor left has a disk all the same.
    file: RefCell<Option<File>>,
}

impl Probe {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), file: RefCell::default() }
    }

    /// Blocks for as long as the disk does.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::StorageFull`] and [`io::ErrorKind::QuotaExceeded`] where there is no room.
    pub(crate) fn run(&self) -> io::Result<()> {
        let mut kept = self.file.borrow_mut();
        let file = match &mut *kept {
            Some(file) => file,
            None => kept.insert(open(&self.dir)?),
        };
        let done = allocate(file).and_then(|()| {
            let mut bytes = [0; WRITTEN_BYTES];
            random::fill(&mut bytes);
            file.write_all_at(&bytes, 0)?;
            file.sync_data()
        });
        // Given back also by a probe that failed.
        done.and(file.set_len(0))
    }
}

fn allocate(file: &File) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, ROOM_BYTES) {
        // The file system allocates nothing ahead: what is written tells.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(()),
        done => Ok(done?),
    }
}

fn open(dir: &Path) -> io::Result<File> {
    let (flags, mode) = (OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    match openat(CWD, dir, flags | OFlags::TMPFILE, mode) {
        Ok(file) => Ok(file.into()),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let own = dir.join(".paceline");
            match mkdirat(CWD, &own, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let name = own.join("probe");
            let file = openat(CWD, &name, flags | OFlags::CREATE | OFlags::NOFOLLOW, mode)?;
            unlinkat(CWD, &name, rustix::fs::AtFlags::empty())?;
            Ok(file.into())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let probe = Probe::new(dir.path());
        for _ in 0..3 {
            probe.run().unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
        assert_eq!(probe.file.borrow().as_ref().unwrap().metadata().unwrap().len(), 0);
    }
}
