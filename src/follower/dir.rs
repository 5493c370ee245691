//! Files beneath the data directory, for names that a leader chose.
//!
//! A name is resolved part by part from the directory's descriptor, and no symbolic link is ever followed, neither on the
//! way nor as the file itself: whatever a name is, nothing outside the directory is read, written or removed. What is
//! neither a file nor a folder is refused as well. Each resolution starts at the top: descriptors of folders are not
//! kept, so none can outlive its folder. Where the kernel can do all that in one step (`openat2`), files are opened so.
//! (Files that are appended to are kept open, see [`apply`](super::apply).)
//!
//! Other parts of [`Dir`] are in [`own`](super::own), the follower's own folder; [`flush`](super::flush), what makes durable;
//! [`mend`](super::mend), [`stage`](super::stage), [`reshape`](super::reshape), [`items`](super::items), folders and links, and
//! [`attributes`](super::attributes), modes and times. No threads, and one lock, a leaf but for that of the digests.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use sha1::{Digest, Sha1};

use super::digests::Digests;
use super::own::Own;
use crate::beneath::Beneath;
use crate::datadir::{self, FoundFile, Visitor};
use crate::digests::Stamps;
use crate::error::Error;
use crate::flusher::Flusher;
use crate::mounts::Mounts;
use crate::own_folder::is_suspect;
use crate::protocol::Sha1Sum;
use crate::protocol::extension::{Attributes, Item};
use crate::sys::fd::{AsFd, BorrowedFd, OwnedFd};
use crate::sys::fs::File;
use crate::sys::rustix;
use crate::sys::rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use crate::sys::rustix::io::Errno;
use crate::sys::sync::Mutex;
use crate::types::RelPath;

const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
pub(super) const FOLDER_MODE: Mode = Mode::RWXU;
/// What `open_file`'s way step by step sees to.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
pub(super) const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// `NONBLOCK` matters to what is not a regular file: opening a FIFO must not wait for its other end.
pub(super) const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// The data directory, through its descriptor.
#[derive(Debug)]
pub(super) struct Dir {
    root: OwnedFd,
    path: PathBuf,
    pub(super) own: Own,
    pub(super) flusher: Arc<dyn Flusher>,
    pub(super) mounts: Mounts,
    /// Which [`changes`](Mounts::changes) the connection under way began with.
    pub(super) mounts_seen: AtomicU64,
    /// A flush has failed, and what it may have lost was not mended.
    pub(super) suspect: AtomicBool,
    /// Held while a file has another mode than it is to have, so as to be opened; and while one is given a mode.
    pub(super) widening: Mutex<()>,
    /// Nothing is to be changed here, not even for a moment.
    pub(super) changes_nothing: bool,
    /// What is known of the files.
    pub(super) digests: Arc<Digests>,
}

/// A file that is here, and how it looked.
pub(super) struct Here {
    pub(super) path: RelPath,
    pub(super) stamps: Stamps,
    pub(super) mode: u16,
}

/// What is in a data directory.
#[derive(Default)]
pub(super) struct Inventory {
    pub(super) files: Vec<Here>,
    /// Folders and links.
    pub(super) items: Vec<(RelPath, Item)>,
}

impl Visitor for Inventory {
    fn folder(&mut self, path: &RelPath, attributes: Attributes) -> bool {
        self.items.push((path.clone(), Item::Folder(attributes)));
        true
    }

    fn file(&mut self, file: FoundFile) {
        self.files.push(Here { path: file.path, stamps: file.looks.stamps, mode: file.attributes.mode });
    }

    fn link(&mut self, path: RelPath, target: &[u8]) {
        self.items.extend(Item::link(target).map(|link| (path, link)));
    }

    fn other(&mut self, path: &RelPath) {
        log::debug!("passed over {path}, which is neither file, folder nor link");
    }

    fn unseen(&mut self, path: &RelPath, error: Error) -> Result<(), Error> {
        match &error {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                log::warn!("left alone with all that is in it: {error}");
                self.items.retain(|(folder, _)| folder != path);
                Ok(())
            }
            _ => Err(error),
        }
    }
}

/// A folder on the way to a file; `None` is the data directory itself.
pub(super) struct Folder<'a> {
    root: &'a OwnedFd,
    pub(super) own: Option<OwnedFd>,
}

impl AsFd for Folder<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.own.as_ref().unwrap_or(self.root).as_fd()
    }
}

impl Dir {
    /// Of tests.
    #[cfg(test)]
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        Self::open_flushed_by(path, Arc::new(crate::flusher::SystemFlusher))
    }

    pub(super) fn open_flushed_by(path: &Path, flusher: Arc<dyn Flusher>) -> Result<Self, Error> {
        // The directory itself may be reached through a link: its owner chose that, no leader did.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| Error::io("open", path, error))?;
        let suspect = AtomicBool::new(is_suspect(path));
        let mounts = Mounts::below(path);
        let (own, mounts_seen, digests) = (Own::new()?, AtomicU64::default(), Arc::default());
        Ok(Self {
            root,
            path: path.to_owned(),
            own,
            flusher,
            mounts,
            mounts_seen,
            suspect,
            digests,
            widening: Mutex::default(),
            changes_nothing: false,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory itself, to go down from.
    pub(super) fn top(&self) -> Folder<'_> {
        Folder { root: &self.root, own: None }
    }

    /// All files, folders and links that are here. A folder that may not be listed is left out, with all in it: it is not this
    /// follower's, and nothing in it is deleted. Whatever else cannot be looked at is an error, so that no file is ever taken for
    /// missing that is not.
    pub(super) fn inventory(&self) -> Result<Inventory, Error> {
        let root = Beneath::open(&self.path).map_err(|error| Error::io("open", &self.path, error))?;
        let mut found = Inventory::default();
        datadir::walk(&root, None, &mut found)?;
        Ok(found)
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a file to append to; it and its folders are made if absent.
    pub(super) fn open_append(&self, path: &RelPath) -> Result<File, Error> {
        self.open_made(path, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE)
    }

    /// The SHA-1 of a file's content; `None` if it is not there. With `flush` it is made durable as well. `go_on` is asked
    /// before each piece: false ends it.
    pub(super) fn hash(
        &self,
        path: &RelPath,
        buffer: &mut [u8],
        flush: bool,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Sha1Sum>, Error> {
        let Some(mut file) = self.open_file(path, OFlags::RDONLY)? else { return Ok(None) };
        let mut sha1 = Sha1::new();
        loop {
            if !go_on() {
                return Err(Error::ShuttingDown);
            }
            match file.read(buffer) {
                Ok(0) => break,
                Ok(length) => sha1.update(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("read", path.as_str(), error)),
            }
        }
        if flush {
            self.flush_file(path.as_str(), &file)?;
        }
        Ok(Some(sha1.finalize().into()))
    }

    /// Removes a file. Returns whether it was there.
    pub(super) fn remove(&self, path: &RelPath) -> Result<bool, Error> {
        let Some((folder, name)) = self.parent(path, false)? else { return Ok(false) };
        match self.kind_of(&folder, name, path)? {
            // A folder of that name says that the file is not there.
            None | Some(FileType::Directory) => return Ok(false),
            Some(_) => {}
        }
        match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(self.failed("remove", path.as_str(), error)),
        }
        Ok(true)
    }

    /// Removes the folders above a file that are empty: with 1.0.0, where they are no content.
    pub(super) fn remove_emptied(&self, path: &RelPath) {
        let mut above = path.as_str();
        while let Some((folder, _)) = above.rsplit_once('/') {
            if !self.remove_folder(folder) {
                break;
            }
            above = folder;
        }
    }

    /// Removes a folder if it is empty; returns whether it did.
    pub(super) fn remove_folder(&self, path: &str) -> bool {
        match self.parent_of(path, false) {
            Ok(Some((above, name))) => rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR).is_ok(),
            _ => false,
        }
    }

    /// A local I/O error that names its file; without a name, the directory.
    pub(super) fn failed(&self, doing: &'static str, path: &str, error: impl Into<io::Error>) -> Error {
        if path.is_empty() {
            Error::io(doing, &self.path, error)
        } else {
            Error::io(doing, self.path.join(path), error)
        }
    }

    pub(super) fn refused(&self, path: &str, why: &'static str) -> Error {
        self.failed("refused to use", path, io::Error::other(why))
    }

    pub(super) fn open_made(&self, path: &RelPath, flags: OFlags) -> Result<File, Error> {
        const TRIES: usize = 100;
        // With CREATE it is only absent if somebody else removed its folder between two steps.
        for _ in 0..TRIES {
            if let Some(file) = self.open_file(path, flags)? {
                return Ok(file);
            }
        }
        Err(self.failed("make", path.as_str(), Errno::NOENT))
    }

    pub(super) fn open_file(&self, path: &RelPath, flags: OFlags) -> Result<Option<File>, Error> {
        let make = flags.contains(OFlags::CREATE);
        if let Some(fd) = self.open_at_once(path, flags) {
            return self.regular(path, fd).map(Some);
        }
        let Some((folder, name)) = self.parent(path, make)? else { return Ok(None) };
        let mut opened = rustix::fs::openat(&folder, name, flags | FILE, FILE_MODE);
        if opened.as_ref().is_err_and(|error| *error == Errno::ACCESS)
            && let Some(fd) = self.open_despite_mode((&folder, name), path, flags)
        {
            opened = Ok(fd);
        }
        let fd = match opened {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            // Nobody misses a folder without files. (Then it is tried again.)
            Err(Errno::ISDIR) if make && self.clear_folders(path.as_str())? => return Ok(None),
            Err(error) => {
                // A link, a FIFO or a socket says so in its own way: find out which it was.
                self.kind_of(&folder, name, path)?;
                return Err(self.failed("open", path.as_str(), error));
            }
        };
        self.regular(path, fd).map(Some)
    }

    /// The same in one system call instead of two for each folder on the way; `None` where that fails: the steps one by one tell
    /// why, make the folders, and do on kernels that know no `openat2`.
    pub(super) fn open_at_once(&self, path: &RelPath, flags: OFlags) -> Option<OwnedFd> {
        let mode = if flags.contains(OFlags::CREATE) { FILE_MODE } else { Mode::empty() };
        rustix::fs::openat2(&self.root, path.as_str(), flags | FILE, mode, BENEATH).ok()
    }

    pub(super) fn regular(&self, path: &RelPath, fd: OwnedFd) -> Result<File, Error> {
        let stat = rustix::fs::fstat(&fd).map_err(|error| self.failed("stat", path.as_str(), error))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(File::from(fd)),
            _ => Err(self.refused(path.as_str(), NOT_A_FILE)),
        }
    }

    /// Whether there is a file of that name.
    pub(super) fn holds(&self, path: &RelPath) -> Result<bool, Error> {
        let Some((folder, name)) = self.parent(path, false)? else { return Ok(false) };
        Ok(self.kind_of(&folder, name, path)? == Some(FileType::RegularFile))
    }

    /// Whether there is a file or a folder of that name. A link, or anything else, is an error.
    pub(super) fn kind_of(&self, folder: &Folder<'_>, name: &str, path: &RelPath) -> Result<Option<FileType>, Error> {
        match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.failed("stat", path.as_str(), error)),
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                kind @ (FileType::RegularFile | FileType::Directory) => Ok(Some(kind)),
                FileType::Symlink => Err(self.refused(path.as_str(), A_LINK)),
                _ => Err(self.refused(path.as_str(), NOT_A_FILE)),
            },
        }
    }

    pub(super) fn parent_made<'a>(&self, path: &'a RelPath) -> Result<(Folder<'_>, &'a str), Error> {
        self.parent(path, true)?.ok_or_else(|| self.failed("make the folder of", path.as_str(), Errno::NOENT))
    }

    pub(super) fn parent<'a>(&self, path: &'a RelPath, make: bool) -> Result<Option<(Folder<'_>, &'a str)>, Error> {
        self.parent_of(path.as_str(), make)
    }

    /// The folder a name lies in, and its last part. `None`: there is no such folder, and it was not to be made.
    pub(super) fn parent_of<'a>(&self, path: &'a str, make: bool) -> Result<Option<(Folder<'_>, &'a str)>, Error> {
        let mut folder = self.top();
        let mut start = 0;
        while let Some(length) = path[start..].find('/') {
            let end = start + length;
            match self.enter(&folder, &path[start..end], &path[..end], make)? {
                Some(fd) => folder.own = Some(fd),
                None => return Ok(None),
            }
            start = end + 1;
        }
        Ok(Some((folder, &path[start..])))
    }

    /// Opens a folder; `None` if it is not there.
    pub(super) fn open_folder(&self, path: &str) -> Result<Option<OwnedFd>, Error> {
        match self.parent_of(path, false)? {
            Some((above, name)) => self.enter(&above, name, path, false),
            None => Ok(None),
        }
    }

    pub(super) fn enter(
        &self,
        at: &Folder<'_>,
        part: &str,
        so_far: &str,
        make: bool,
    ) -> Result<Option<OwnedFd>, Error> {
        let mut opened = rustix::fs::openat(at, part, FOLDER, Mode::empty());
        if make && matches!(opened, Err(Errno::NOENT)) {
            match rustix::fs::mkdirat(at, part, FOLDER_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(self.failed("make the folder", so_far, error)),
            }
            opened = rustix::fs::openat(at, part, FOLDER, Mode::empty());
        }
        match opened {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let stat = rustix::fs::statat(at, part, AtFlags::SYMLINK_NOFOLLOW);
                match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                    Ok(FileType::Symlink) => Err(self.refused(so_far, A_LINK)),
                    // What is to be below a file is not there.
                    Ok(_) if !make => Ok(None),
                    _ => Err(self.refused(so_far, "is no folder, and the leader has one there")),
                }
            }
            Err(error) => Err(self.failed("open the folder", so_far, error)),
        }
    }
}

const A_LINK: &str = "is a symbolic link, and none is ever followed: remove it";
const NOT_A_FILE: &str = "is not a regular file: remove it";

#[cfg(test)]
mod tests;
