//! What is at a name beneath the data directory, and the one rule by which something counts as gone.
//!
//! Every look has three ends: `Ok(Some(_))`, it is there; `Ok(None)`, it is gone; `Err`, nobody knows. Gone is only what the system
//! says is not there, or is another kind of thing, while the directory is still the one that was opened. Whatever else goes wrong
//! (too many open files, no memory, an error of the disk, a lost mount, no permission) says nothing about the file: who meets
//! that keeps what it knows and tries again. So is it with all that is on a file system that was mounted below the directory and is not
//! any more, for who looks at mounts ([`Beneath::look_at_mounts`]).
//!
//! Names are resolved from the directory's descriptor, and no symbolic link is followed. The directory's own path may have links:
//! it is resolved once, when it is opened. No threads, no locks.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io;
use std::path::{Path, PathBuf};

use crate::digests::{Stamps, nanos};
use crate::protocol::extension::Attributes;
use crate::sys::fd::{AsFd, BorrowedFd, OwnedFd};
use crate::sys::fs::{self, File, Metadata, MetadataExt};
use crate::sys::rustix;
use crate::sys::rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use crate::sys::rustix::io::Errno;
use crate::types::RelPath;
use crate::unmounted::Unmounted;

const LOST_AND_FOUND: &str = "lost+found";
/// That of the top of an ext file system, also where it is mounted from further within.
const EXT_TOP_INODE: u64 = 2;

/// A data directory, through a descriptor that stays on it.
#[derive(Debug)]
pub(crate) struct Beneath {
    root: OwnedFd,
    path: PathBuf,
    unmounted: Unmounted,
}

impl Beneath {
    /// Opens the directory at `path`, and resolves that.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let opened = rustix::fs::fstat(&root)?;
        let resolved = fs::canonicalize(path)?;
        let path = match rustix::fs::stat(&resolved) {
            Ok(there) if (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino) => resolved,
            // Not all links are names: `/proc/PID/root` reads as `/`, and leads to what that process has there.
            _ => std::path::absolute(path)?,
        };
        let unmounted = Unmounted::below(&path);
        Ok(Self { root, path, unmounted })
    }

    /// The directory's path: without links, where a path without links leads there.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a regular file to read; without waiting, whatever else it may be.
    pub(crate) fn file(&self, path: &RelPath) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let Some(file) = self.open_at(path.as_str(), flags)?.map(File::from) else { return Ok(None) };
        Ok(file.metadata()?.is_file().then_some(file))
    }

    /// Opens a regular file to write, made with mode 0600 if absent (its folders with 0700); without waiting, whatever else it
    /// may be, and through no link.
    pub(crate) fn file_made(&self, path: &RelPath) -> io::Result<File> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut names = path.as_str().split('/');
        let name = names.next_back().unwrap_or_default();
        let mut folder = self.root.try_clone()?;
        for made in names {
            match rustix::fs::mkdirat(&folder, made, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            folder = rustix::fs::openat(&folder, made, OFlags::PATH | OFlags::DIRECTORY | flags, Mode::empty())?;
        }
        let to_write = OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOCTTY | flags;
        let no_file = || io::Error::other("it is there, and no regular file");
        match rustix::fs::openat(&folder, name, to_write, Mode::RUSR | Mode::WUSR).map(File::from) {
            Ok(file) if file.metadata()?.is_file() => Ok(file),
            Ok(_) | Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => Err(no_file()),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks what is at a name; `None` if it is gone. Needs no permission for what is there.
    pub(crate) fn look(&self, path: &RelPath) -> io::Result<Option<Entry>> {
        let (folder, name) = match path.as_str().rsplit_once('/') {
            Some((folder, name)) => (folder, name),
            None => (".", path.as_str()),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let looked = match self.open_at(folder, flags)? {
            Some(folder) => look_in(&folder, &CString::new(name).map_err(io::Error::other)?).map(Some),
            None => return Ok(None),
        };
        match looked {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.check_gone(path.as_str()).map(|()| None),
            looked => looked,
        }
    }

    /// Whatever is at a name. Needs no permission for what is there.
    pub(crate) fn metadata(&self, path: &RelPath) -> io::Result<Option<Metadata>> {
        self.metadata_at(path.as_str())
    }

    fn metadata_at(&self, path: &str) -> io::Result<Option<Metadata>> {
        self.open_at(path, OFlags::PATH)?.map(|fd| File::from(fd).metadata()).transpose()
    }

    /// Opens a folder to list it; `path` `None` is the directory itself.
    pub(crate) fn folder(&self, path: Option<&RelPath>) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
        self.open_at(path.map_or(".", RelPath::as_str), flags)
    }

    /// Whether a folder is the one in which the check of a file system leaves what it found, at the file system's top: it is no
    /// content, and nobody but root can read it.
    pub(crate) fn is_lost_and_found(&self, path: &RelPath) -> io::Result<bool> {
        let folder = match path.as_str().rsplit_once('/') {
            Some((folder, LOST_AND_FOUND)) => folder,
            None if path.as_str() == LOST_AND_FOUND => ".",
            _ => return Ok(false),
        };
        let Some(top) = self.metadata_at(folder)? else { return Ok(false) };
        let above = match folder.rsplit_once('/') {
            Some((above, _)) => self.metadata_at(above)?.map(|above| above.dev()),
            None if folder == "." => Some(rustix::fs::statat(&self.root, "..", AtFlags::empty())?.st_dev),
            None => self.metadata_at(".")?.map(|above| above.dev()),
        };
        Ok(top.ino() == EXT_TOP_INODE || above.is_some_and(|above| above != top.dev()))
    }

    /// How the directory was lost, if it was: removed, moved, unmounted or mounted over, so that its path leads elsewhere or
    /// nowhere, or lost by its file system. That nobody can tell just now is no loss.
    pub(crate) fn is_lost(&self) -> Option<&'static str> {
        let ours = match rustix::fs::fstat(&self.root) {
            Ok(ours) if ours.st_nlink == 0 => return Some("it was removed"),
            Ok(ours) => ours,
            Err(Errno::STALE) => return Some("its file system knows it no more"),
            Err(_) => return None,
        };
        match rustix::fs::stat(&self.path) {
            Ok(there) if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) => None,
            Ok(there) if there.st_dev != ours.st_dev => {
                Some("another file system is mounted there, or its own is mounted no more")
            }
            Ok(_) => Some("another directory has its name"),
            Err(Errno::NOENT | Errno::NOTDIR) => Some("it was moved or removed, or its file system is mounted no more"),
            Err(_) => None,
        }
    }

    /// Looks what is mounted below the directory: from the first time on, what was and is not any more is not gone with all that was
    /// on it. Returns the places where something was mounted, or unmounted, since the last time. To be called now and then.
    pub(crate) fn look_at_mounts(&self) -> io::Result<BTreeSet<RelPath>> {
        self.unmounted.look()
    }

    /// What a `poll` for `PRI` tells changes of the mounts of.
    pub(crate) fn mounts(&self) -> Option<BorrowedFd<'_>> {
        self.unmounted.table()
    }

    /// Such a `poll` has told of a change.
    pub(crate) fn mounts_have_changed(&self) {
        self.unmounted.has_changed();
    }

    /// `Err` if nobody knows what is at a name because its file system is unmounted.
    pub(crate) fn check_mounted(&self, path: &RelPath) -> io::Result<()> {
        self.unmounted.covering(path.as_str())?.map_or(Ok(()), |place| Err(is_unmounted(&place)))
    }

    /// The place of the unmounted file system that a name is on, if it is on one.
    pub(crate) fn unmounted_above(&self, path: &RelPath) -> Option<RelPath> {
        if !self.unmounted.is_any() {
            return None;
        }
        self.unmounted.covering(path.as_str()).ok().flatten()
    }

    /// `Err` if what is not there is not gone, because the directory is lost, or a file system is unmounted.
    fn check_gone(&self, path: &str) -> io::Result<()> {
        if let Some(how) = self.is_lost() {
            return Err(io::Error::other(format!("the data directory is lost: {how}")));
        }
        self.unmounted.covering(path)?.map_or(Ok(()), |place| Err(is_unmounted(&place)))
    }

    /// Opens what is at a name.
    fn open_at(&self, path: &str, flags: OFlags) -> io::Result<Option<OwnedFd>> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened = match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
            // Before Linux 5.6, and in old sandboxes.
            Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(&self.root, path, flags, Mode::empty()),
            opened => opened,
        };
        match opened {
            // What was hidden until then, or came in its place.
            Ok(fd) if self.unmounted.is_any() => {
                self.unmounted.covering(path)?.map_or(Ok(Some(fd)), |place| Err(is_unmounted(&place)))
            }
            Ok(fd) => Ok(Some(fd)),
            // A link, a folder that is a file by now, a socket.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => self.check_gone(path).map(|()| None),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn is_unmounted(place: &RelPath) -> io::Error {
    let what = "was a file system of its own, and is not mounted any more: nothing of what was on it counts as gone; mount it again, \
                or start the leader anew with --accept-missing";
    io::Error::other(format!("{place} {what}"))
}

impl AsFd for Beneath {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// A regular file, as one look in its folder saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileLooks {
    pub(crate) stamps: Stamps,
    /// When it was made, in nanoseconds since 1970, where the file system knows.
    pub(crate) born: Option<i64>,
}

/// What there is in a folder.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    File(FileLooks, Attributes),
    Folder(Attributes),
    /// Where it leads.
    Link(CString),
    Other,
}

/// What has this name in a folder that was opened with [`Beneath::folder`].
pub(crate) fn look_in(folder: impl AsFd, name: &CStr) -> io::Result<Entry> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    loop {
        let statx = rustix::fs::statx(&folder, name, AtFlags::SYMLINK_NOFOLLOW, wanted)?;
        let mode = statx.stx_mode & Attributes::MODE_BITS;
        let attributes = |mtime| Attributes { mode, mtime };
        return Ok(match FileType::from_raw_mode(statx.stx_mode.into()) {
            FileType::RegularFile => {
                let knows = StatxFlags::from_bits_retain(statx.stx_mask).contains(StatxFlags::BTIME);
                let born = knows.then(|| nanos(statx.stx_btime.tv_sec, statx.stx_btime.tv_nsec.into()));
                let stamps = Stamps::of_statx(&statx);
                Entry::File(FileLooks { stamps, born }, attributes(stamps.mtime))
            }
            FileType::Directory => Entry::Folder(attributes(Attributes::NO_TIME)),
            FileType::Symlink => match rustix::fs::readlinkat(&folder, name, Vec::new()) {
                // It is no link any more.
                Err(Errno::INVAL) => continue,
                target => Entry::Link(target?),
            },
            _ => Entry::Other,
        });
    }
}

/// The names in a folder that was opened with [`Beneath::folder`], but for `.` and `..`.
pub(crate) fn entries(folder: OwnedFd) -> io::Result<impl Iterator<Item = io::Result<rustix::fs::DirEntry>>> {
    let is_own = |entry: &rustix::fs::DirEntry| matches!(entry.file_name().to_bytes(), b"." | b"..");
    let entries = rustix::fs::Dir::new(folder)?.map(|entry| entry.map_err(io::Error::from));
    Ok(entries.filter(move |entry| !entry.as_ref().is_ok_and(is_own)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn path(name: &str) -> RelPath {
        RelPath::new(name).unwrap()
    }

    #[test]
    fn a_file_is_made_through_no_link_and_a_fifo_is_not_waited_for() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("victim"), "intact").unwrap();
        symlink(outside.path(), root.path().join("folder")).unwrap();
        symlink(outside.path().join("victim"), root.path().join("link")).unwrap();
        symlink(outside.path().join("none"), root.path().join("dangling")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.path().join("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
        let dir = Beneath::open(root.path()).unwrap();
        for name in ["folder/victim", "folder/new", "link", "link/below", "dangling", "fifo"] {
            assert!(dir.file_made(&path(name)).is_err(), "{name}");
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        for _ in 0..2 {
            assert!(dir.file_made(&path("a/b/c")).unwrap().metadata().unwrap().is_file());
        }
        assert!(dir.file_made(&path("a/b")).is_err(), "a folder");
    }

    #[test]
    fn only_what_is_not_there_is_gone() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("folder")).unwrap();
        fs::write(root.path().join("file"), "x").unwrap();
        symlink("file", root.path().join("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.path().join("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
        let dir = Beneath::open(root.path()).unwrap();
        assert!(dir.file(&path("file")).unwrap().is_some());
        for name in ["folder", "link", "fifo", "none", "file/below", "none/below", "link/below"] {
            assert!(dir.file(&path(name)).unwrap().is_none(), "{name}");
        }
        assert!(dir.metadata(&path("link")).unwrap().unwrap().is_symlink());
        assert!(matches!(dir.look(&path("link")).unwrap(), Some(Entry::Link(target)) if target.as_bytes() == b"file"));
        assert!(matches!(dir.look(&path("file")).unwrap(), Some(Entry::File(..))));
        assert!(matches!(dir.look(&path("folder")).unwrap(), Some(Entry::Folder(_))));
        assert!(matches!(dir.look(&path("fifo")).unwrap(), Some(Entry::Other)));
        for name in ["none", "file/below", "none/below", "link/below"] {
            assert!(dir.look(&path(name)).unwrap().is_none(), "{name}");
        }
        assert!(dir.folder(None).unwrap().is_some() && dir.folder(Some(&path("folder"))).unwrap().is_some());
        for name in ["file", "link", "fifo", "none", "file/below"] {
            assert!(dir.folder(Some(&path(name))).unwrap().is_none(), "{name}");
        }
    }

    #[test]
    fn nothing_is_gone_from_a_directory_that_is_lost() {
        let above = tempfile::tempdir().unwrap();
        let root = above.path().join("data");
        for make_again in [false, true] {
            fs::create_dir_all(&root).unwrap();
            let dir = Beneath::open(&root).unwrap();
            assert!(dir.is_lost().is_none() && dir.file(&path("none")).unwrap().is_none());
            fs::remove_dir(&root).unwrap();
            if make_again {
                fs::create_dir(&root).unwrap();
            }
            assert!(dir.is_lost().is_some());
            assert!(dir.file(&path("none")).is_err() && dir.metadata(&path("none")).is_err());
            assert!(dir.look(&path("none")).is_err());
        }
    }
}
