//! `.paceline/`, what a data directory knows about itself. Never listed, never replicated; once made, it stays.
//!
//! | name | says |
//! |---|---|
//! | `data-set` | of which data set the directory is a copy, see [`DataSetId`] |
//! | `data-set-proposed` | which data set it is to be once its cluster says so; forgotten when it is of any |
//! | `digests` | the digests of its files, see `digests/file.rs`; large, so it is streamed; absent where it is torn |
//! | `last-led` | what there was when it last led, see `leader/files/last_led.rs`; gone once it follows |
//! | `position` | how far it has come, see `position.rs`; gone before another leader changes it |
//! | `incomplete` (a mark) | a full sync began and did not end: nobody is to serve from here |
//! | `suspect` (a mark) | a sync has failed, of a follower or a leader: not all is on disk that can be read from here |
//! | `incoming` | a file that a follower is receiving; what is left of it goes at the next start |
//! | `kept` (a folder) | what syncs took away, see `follower/kept/mod.rs`, which drops it in time |
//! | `*.tmp` | a file below this folder that is being written; the same |
//!
//! All else is left alone: later versions keep more here, and what is kept must outlive an older version's start.
//!
//! Where content matters ([`OwnFolder::write`]) it ends with a checksum and is written to a temporary name, flushed, renamed, and the
//! folder flushed. Only what is *not there* is absent: what cannot be read, or is torn, is an error that says so. Whoever took
//! it for absent would take a directory that is somebody's for nobody's.
//!
//! The folder is reached through the descriptor of the data directory, and no symbolic link is followed. No threads, no locks: whoever
//! writes here holds the directory's `.lock`.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha1::{Digest, Sha1};

use crate::digests::Stamps;
use crate::error::Error;
use crate::flusher::Flusher;
use crate::sys::fd::{AsFd, OwnedFd};
use crate::sys::fs::{self, File};
use crate::sys::process;
use crate::sys::rustix;
use crate::sys::rustix::fs::{AtFlags, Dir as Entries, Mode, OFlags};
use crate::sys::rustix::io::Errno;
use crate::types::{DataSetId, OWN_FOLDER};

/// The mark of a directory in which a full sync began and did not end.
pub(crate) const INCOMPLETE_MARK: &str = "incomplete";

/// The same, of a directory of which not all is on disk that can be read from it.
pub(crate) const SUSPECT_MARK: &str = "suspect";

/// What a follower is receiving.
pub(crate) const INCOMING: &str = "incoming";

const DATA_SET: &str = "data-set";
const DATA_SET_PROPOSED: &str = "data-set-proposed";

/// What there was when the directory last led.
pub(crate) const LAST_LED: &str = "last-led";

/// How far it has come.
pub(crate) const POSITION: &str = "position";

/// The digests of its files.
pub(crate) const DIGESTS: &str = "digests";

const TEMPORARY_SUFFIX: &str = ".tmp";

/// Nothing that is written here comes near it.
const FILE_BYTES_MAX: u64 = 1 << 20;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// The own folder of a data directory, whether it is there already or not.
#[derive(Debug)]
pub(crate) struct OwnFolder {
    root: OwnedFd,
    path: PathBuf,
}

impl OwnFolder {
    /// That of `dir`, which must exist. Nothing is made.
    pub(crate) fn of(dir: &Path) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir, flags, Mode::empty()).map_err(|error| Error::io("open", dir, error))?;
        Ok(Self { root, path: dir.join(OWN_FOLDER) })
    }

    /// Of which data set the directory is a copy; `None` if it was never said.
    pub(crate) fn data_set(&self) -> Result<Option<DataSetId>, Error> {
        let remedy = "bring it back from a backup, or remove it, and the directory counts as nobody's";
        let Some(text) = self.read(DATA_SET, remedy)? else { return Ok(None) };
        match text.trim_end().parse() {
            Ok(id) => Ok(Some(id)),
            Err(_) => Err(self.damaged(DATA_SET, "holds no data set id", remedy)),
        }
    }

    /// Keeps that the directory is a copy of this data set; it is on disk when this returns.
    pub(crate) fn keep_data_set(&self, id: DataSetId) -> Result<(), Error> {
        self.write(DATA_SET, &format!("{id}\n"))?;
        if let Some(folder) = self.folder()? {
            // Without meaning from here on.
            let _ = rustix::fs::unlinkat(&folder, DATA_SET_PROPOSED, AtFlags::empty());
        }
        Ok(())
    }

    /// Which data set the directory is to be, if that was noted. One that is damaged was never told to anybody.
    pub(crate) fn proposed_data_set(&self) -> Option<DataSetId> {
        self.read(DATA_SET_PROPOSED, "").ok().flatten()?.trim_end().parse().ok()
    }

    /// Notes which it is to be; that is on disk when this returns.
    pub(crate) fn propose_data_set(&self, id: DataSetId) -> Result<(), Error> {
        self.write(DATA_SET_PROPOSED, &format!("{id}\n"))
    }

    /// Forgets that the directory led, and how far it has come; durably.
    pub(crate) fn forget_stand(&self) -> Result<(), Error> {
        let Some(folder) = self.folder()? else { return Ok(()) };
        let mut removed = false;
        for name in [LAST_LED, POSITION] {
            match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
                Ok(()) => removed = true,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(Error::io("remove", self.path.join(name), error)),
            }
        }
        let synced = if removed { rustix::fs::fsync(&folder) } else { Ok(()) };
        synced.map_err(|error| Error::io("sync", &self.path, error))
    }

    /// The content of a file that [`write`](Self::write) wrote; `None` only if it is not there. `remedy` is for one that is damaged.
    pub(crate) fn read(&self, name: &str, remedy: &'static str) -> Result<Option<String>, Error> {
        let failed = |error: io::Error| Error::io("read", self.path.join(name), error);
        let Some(folder) = self.folder()? else { return Ok(None) };
        let file = match rustix::fs::openat(&folder, name, OFlags::RDONLY | FILE, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        };
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
        match unsealed(bytes) {
            Some(content) => Ok(Some(content)),
            None => Err(self.damaged(name, "its checksum does not fit", remedy)),
        }
    }

    /// Writes a file whole, with a checksum; it is on disk when this returns. `content` ends with a newline.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<(), Error> {
        debug_assert!(content.ends_with('\n') && (content.len() as u64) < FILE_BYTES_MAX / 2);
        let failed = |error: io::Error| Error::io("write", self.path.join(name), error);
        let folder = self.folder_made()?;
        let temporary = format!("{name}{TEMPORARY_SUFFIX}");
        let write = || {
            place(&folder, &temporary, sealed(content).as_bytes(), &folder, name)?;
            rustix::fs::fsync(&folder)
        };
        write().map_err(|error| failed(error.into()))
    }

    /// A file of any length, to be read; whoever wrote it sees to it that torn ones are told. `None` only if it is not there.
    pub(crate) fn open(&self, name: &str) -> Result<Option<File>, Error> {
        let Some(folder) = self.folder()? else { return Ok(None) };
        match rustix::fs::openat(&folder, name, OFlags::RDONLY | FILE, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Error::io("open", self.path.join(name), error)),
        }
    }

    /// Begins a file of any length that takes the place of `name` once it is written, see [`Replacement`].
    pub(crate) fn replace(&self, name: &'static str) -> Result<Replacement, Error> {
        let path = self.path.join(name);
        let folder = self.folder_made()?;
        match new_file(&folder, &format!("{name}{TEMPORARY_SUFFIX}")) {
            Ok(file) => Ok(Replacement { folder, file, name, path, is_placed: false }),
            Err(error) => Err(Error::io("write", path, error)),
        }
    }

    /// Changes a file in its place, if it is there; durably. Where that fails the file goes instead. One that is being written to take its
    /// place, by a thread that has not ended yet, does not any more.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&File) -> io::Result<()>) -> Result<(), Error> {
        let Some(folder) = self.folder()? else { return Ok(()) };
        match rustix::fs::unlinkat(&folder, format!("{name}{TEMPORARY_SUFFIX}"), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(Error::io("remove", self.path.join(name), error)),
        }
        let changed = match rustix::fs::openat(&folder, name, OFlags::WRONLY | FILE, Mode::empty()) {
            Ok(fd) => {
                let file = File::from(fd);
                change(&file).and_then(|()| file.sync_data())
            }
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => Err(error.into()),
        };
        if changed.is_ok() {
            return Ok(());
        }
        let removed = rustix::fs::unlinkat(&folder, name, AtFlags::empty()).and_then(|()| rustix::fs::fsync(&folder));
        removed.map_err(|error| Error::io("remove", self.path.join(name), error))
    }

    /// Another one whenever the machine that this runs on has started anew; `None`: that cannot be told.
    pub(crate) fn boot_id(&self) -> Option<u128> {
        process::boot_id(&self.root)
    }

    /// Writes a file of the data directory itself in the same way, but without a checksum, and with its temporary file in here.
    pub(crate) fn write_beside(&self, name: &str, content: &str) -> Result<(), Error> {
        let folder = self.folder_made()?;
        let temporary = format!("{}{TEMPORARY_SUFFIX}", name.trim_start_matches('.'));
        let write = || {
            place(&folder, &temporary, content.as_bytes(), &self.root, name)?;
            rustix::fs::fsync(&self.root)
        };
        write().map_err(|error| Error::io("write", self.path.with_file_name(name), error))
    }

    /// A sync of the directory has failed: marks it, so that nobody serves from it before it has followed a leader, and who follows with
    /// it copies what is here first. The mark is there when this returns, and on disk if that can be done.
    pub(crate) fn mark_suspect(&self, flusher: &dyn Flusher) -> Result<(), Error> {
        let folder = self.folder_made()?;
        let how = OFlags::WRONLY | OFlags::CREATE | FILE;
        let mark = rustix::fs::openat(&folder, SUSPECT_MARK, how, Mode::RUSR | Mode::WUSR)
            .map_err(|error| Error::io("make", self.path.join(SUSPECT_MARK), error))?;
        // A disk that has just failed may do so again; the mark is there, and tells whom the cache would deceive.
        let _ = flusher.file(mark.as_fd());
        let _ = flusher.folder(folder.as_fd());
        let _ = flusher.folder(self.root.as_fd());
        Ok(())
    }

    /// Removes what an earlier run was writing when it ended.
    pub(crate) fn tidy(&self) -> Result<(), Error> {
        let Some(folder) = self.folder()? else { return Ok(()) };
        let failed = |error: Errno| Error::io("list", &self.path, error);
        for entry in Entries::read_from(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy();
            if name != INCOMING && !name.ends_with(TEMPORARY_SUFFIX) {
                continue;
            }
            match rustix::fs::unlinkat(&folder, entry.file_name(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                // Not ours to take apart, and in nobody's way.
                Err(Errno::ISDIR | Errno::PERM) => log::warn!("left alone: {}", self.path.join(&*name).display()),
                Err(error) => return Err(Error::io("remove", self.path.join(&*name), error)),
            }
        }
        Ok(())
    }

    fn damaged(&self, name: &str, fault: &'static str, remedy: &'static str) -> Error {
        Error::Damaged { path: self.path.join(name), fault, remedy }
    }

    /// `None` only if it is not there.
    fn folder(&self) -> Result<Option<OwnedFd>, Error> {
        match rustix::fs::openat(&self.root, OWN_FOLDER, FOLDER, Mode::empty()) {
            Ok(folder) => Ok(Some(folder)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let why = "is a symbolic link, or no folder: remove it";
                Err(Error::io("refused to use", &self.path, io::Error::other(why)))
            }
            Err(error) => Err(Error::io("open the folder", &self.path, error)),
        }
    }

    fn folder_made(&self) -> Result<OwnedFd, Error> {
        let failed = |error: Errno| Error::io("make the folder", &self.path, error);
        if let Some(folder) = self.folder()? {
            return Ok(folder);
        }
        match rustix::fs::mkdirat(&self.root, OWN_FOLDER, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(error)),
        }
        rustix::fs::fsync(&self.root).map_err(failed)?;
        self.folder()?.ok_or_else(|| failed(Errno::NOENT))
    }
}

/// A file that is being written to a temporary name, of which it takes no memory how long it is. Dropped, it was never there.
#[derive(Debug)]
pub(crate) struct Replacement {
    folder: OwnedFd,
    file: File,
    name: &'static str,
    path: PathBuf,
    is_placed: bool,
}

impl Replacement {
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|error| Error::io("write", &self.path, error))
    }

    /// When it was last written to, in nanoseconds since 1970 by the clock of its file system.
    pub(crate) fn written_at(&self) -> Result<i64, Error> {
        let stamps = Stamps::of_file(&self.file).map_err(|error| Error::io("stat", &self.path, error))?;
        Ok(stamps.mtime)
    }

    /// Makes what was written durable, and gives it its name; that is on disk when this returns.
    pub(crate) fn place(mut self) -> Result<(), Error> {
        let temporary = self.temporary();
        let mut place = || {
            rustix::fs::fsync(self.file.as_fd())?;
            rustix::fs::renameat(&self.folder, &temporary, &self.folder, self.name)?;
            self.is_placed = true;
            rustix::fs::fsync(&self.folder)
        };
        place().map_err(|error| Error::io("write", &self.path, error))
    }

    fn temporary(&self) -> String {
        format!("{}{TEMPORARY_SUFFIX}", self.name)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.is_placed {
            // Or the next start sees to it.
            let _ = rustix::fs::unlinkat(&self.folder, self.temporary(), AtFlags::empty());
        }
    }
}

/// A new file under a temporary name. What a failed attempt left is never written to again: its pages may count as clean though
/// they are on no disk.
fn new_file(folder: &OwnedFd, temporary: &str) -> Result<File, Errno> {
    match rustix::fs::unlinkat(folder, temporary, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | FILE;
    rustix::fs::openat(folder, temporary, flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

/// Writes `bytes` to a new file, makes them durable, and only then gives it its name.
fn place(folder: &OwnedFd, temporary: &str, bytes: &[u8], to: &OwnedFd, name: &str) -> Result<(), Errno> {
    let mut file = new_file(folder, temporary)?;
    file.write_all(bytes).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    rustix::fs::fsync(file.as_fd())?;
    rustix::fs::renameat(folder, temporary, to, name)
}

fn sealed(content: &str) -> String {
    format!("{content}sha1 {}\n", hex(&Sha1::digest(content)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `None` if it is not what [`sealed`] made.
fn unsealed(bytes: Vec<u8>) -> Option<String> {
    let mut text = String::from_utf8(bytes).ok()?;
    let end = text.strip_suffix('\n')?.rfind('\n')? + 1;
    let seal = text.split_off(end);
    (seal == format!("sha1 {}\n", hex(&Sha1::digest(&text)))).then_some(text)
}

/// Whether the directory is no copy until the next full sync has ended: the last one did not, or a flush has failed.
pub(crate) fn is_incomplete(root: &Path) -> bool {
    is_marked(root, INCOMPLETE_MARK) || is_suspect(root)
}

/// Whether a sync of it has failed, and what may be on no disk was not copied since.
pub(crate) fn is_suspect(root: &Path) -> bool {
    is_marked(root, SUSPECT_MARK)
}

/// Where it cannot be told, it is.
fn is_marked(root: &Path, mark: &str) -> bool {
    let found = fs::symlink_metadata(root.join(OWN_FOLDER).join(mark));
    !found.is_err_and(|error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
}

#[cfg(test)]
mod tests;
