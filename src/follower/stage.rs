//! Staging: what becomes a file in one step is written elsewhere before, where a rename can take it to its place.
//!
//! A rename does not leave its file system, nor, on the same one, its mount; and other file systems may be mounted below the data
//! directory, or appear there. So each of them has a folder of ours at its top, `.paceline`, and what is received for a file is
//! staged there. What that cannot know (limits of a project quota, a mount that appeared a moment ago) shows when the rename
//! fails with `EXDEV`: then the content is copied into the very folder of the file, and renamed there.
//!
//! A *rename* from one file system to another is a copy as well: staged, durable, put in its place, that durable, and only then
//! the source goes. A crash between leaves both names, of which the next sync deletes the one that the leader does not have.
//! It takes as long as reading and writing the file does.
//!
//! What a crash leaves staged goes when the next connection begins, or when the next file is staged there. Part of [`Dir`]; runs
//! on the reader thread. One file is staged at a time.

use std::io::{self, Read, Seek, SeekFrom};

use super::attributes::as_of;
use super::dir::{Dir, Folder};
use crate::error::Error;
use crate::own_folder::INCOMING;
use crate::reader::{HOLE_BYTES_MIN, Reader, Span};
use crate::sys::fs::File;
use crate::sys::rustix;
use crate::sys::rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use crate::sys::rustix::io::Errno;
use crate::types::{OWN_FOLDER, RelPath};

/// A file that is being received, for a place that it does not have yet.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) file: File,
    at: RelPath,
}

/// A mount: a rename does not leave it.
type Mount = (u32, u32, u64);

/// The name of what is staged for files in a folder, or in those below; the directory itself is "".
pub(super) fn incoming(folder: &str) -> Result<RelPath, Error> {
    let slash = if folder.is_empty() { "" } else { "/" };
    Ok(RelPath::new(&format!("{folder}{slash}{OWN_FOLDER}/{INCOMING}"))?)
}

fn folder_of(path: &RelPath) -> &str {
    path.as_str().rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl Dir {
    /// A new, empty file that can become the content of `path`.
    pub(super) fn stage(&self, path: &RelPath) -> Result<Staged, Error> {
        self.stage_at(incoming(self.file_system_of(path)?)?)
    }

    fn stage_at(&self, at: RelPath) -> Result<Staged, Error> {
        self.remove_own(&at)?;
        let file = self.open_made(&at, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        Ok(Staged { file, at })
    }

    /// Drops what was staged.
    pub(super) fn unstage(&self, staged: &Staged) -> Result<(), Error> {
        self.remove_own(&staged.at)
    }

    /// Makes what was staged the content of `path`, in one step: nobody sees a part of it. Returns the file that is there now.
    pub(super) fn place(&self, staged: Staged, path: &RelPath) -> Result<File, Error> {
        let (folder, name) = self.parent_made(path)?;
        self.make_way(&folder, name, path)?;
        let (from, from_name) = self.parent_made(&staged.at)?;
        match rustix::fs::renameat(&from, from_name, &folder, name) {
            Ok(()) => Ok(staged.file),
            Err(Errno::XDEV) => self.place_copied(&staged.at, path),
            Err(error) => Err(self.failed("replace", path.as_str(), error)),
        }
    }

    /// Nothing is in the way of a file but another one, or something that is an error: a folder without files is removed.
    pub(super) fn make_way(&self, folder: &Folder<'_>, name: &str, path: &RelPath) -> Result<(), Error> {
        if self.kind_of(folder, name, path)? == Some(FileType::Directory) && !self.clear_folders(path.as_str())? {
            return Err(self.refused(path.as_str(), "is a folder that is not empty, and the leader has a file there"));
        }
        Ok(())
    }

    /// Puts a durable copy of what was staged in the place of `path`, by way of its own folder.
    fn place_copied(&self, staged: &RelPath, path: &RelPath) -> Result<File, Error> {
        let beside = self.stage_at(incoming(folder_of(path))?)?;
        self.copy_into(staged, &beside)?;
        let ((from, from_name), (folder, name)) = (self.parent_made(&beside.at)?, self.parent_made(path)?);
        rustix::fs::renameat(from, from_name, folder, name)
            .map_err(|error| self.failed("replace", path.as_str(), error))?;
        self.remove_own(staged)?;
        // It is no place to come back to, and would keep the file's folder when that is emptied.
        if let Some((own, _)) = beside.at.as_str().rsplit_once('/') {
            self.remove_folder(own);
        }
        Ok(beside.file)
    }

    /// Takes a file to another file system. Returns the file that is there now.
    pub(super) fn move_across(&self, from: &RelPath, to: &RelPath) -> Result<File, Error> {
        let staged = self.stage(to)?;
        self.copy_into(from, &staged)?;
        let file = self.place(staged, to)?;
        // Whatever is durable of the old name is so of the new one before the old one goes.
        self.flush_folders(above(to))?;
        self.remove_own(from)?;
        Ok(file)
    }

    /// Copies a file's content, mode and time, and makes it durable.
    fn copy_into(&self, from: &RelPath, to: &Staged) -> Result<(), Error> {
        let source = self.open_file(from, OFlags::RDONLY)?;
        let source = source.ok_or_else(|| self.failed("copy", from.as_str(), Errno::NOENT))?;
        let copied = copy(&source, &to.file).and_then(|()| Ok(as_of(&source, &to.file)?));
        copied.map_err(|error| self.failed("copy", from.as_str(), error))?;
        self.flush_whole_file(to.at.as_str(), &to.file)
    }

    /// The top of the file system that a name is on, or would be: a folder on the way to it, or "" for the directory itself.
    pub(super) fn file_system_of<'a>(&self, path: &'a RelPath) -> Result<&'a str, Error> {
        let path = path.as_str();
        let (mut folder, mut top, mut start) = (self.top(), "", 0);
        let mut mount = self.mount_of(&folder, "")?;
        while let Some(length) = path[start..].find('/') {
            let end = start + length;
            let Some(fd) = self.enter(&folder, &path[start..end], &path[..end], false)? else { break };
            folder.own = Some(fd);
            let below = self.mount_of(&folder, &path[..end])?;
            if std::mem::replace(&mut mount, below) != below {
                top = &path[..end];
            }
            start = end + 1;
        }
        Ok(top)
    }

    /// Which mount a folder is on. Before Linux 5.8 only the device is known.
    fn mount_of(&self, folder: &Folder<'_>, path: &str) -> Result<Mount, Error> {
        match rustix::fs::statx(folder, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE | StatxFlags::MNT_ID) {
            Ok(stat) => Ok((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_mnt_id)),
            Err(Errno::NOSYS | Errno::PERM) => Ok((0, 0, 0)),
            Err(error) => Err(self.failed("stat", path, error)),
        }
    }

    /// Removes what an earlier connection left staged on the file systems below the directory; in its own folder that is seen to by
    /// [`own_folder`](crate::own_folder).
    pub(super) fn tidy(&self) -> Result<(), Error> {
        self.mounts.places().iter().try_for_each(|top| self.remove_own(&incoming(top.as_str())?))
    }
}

/// Copies a file to one that is empty, with its holes.
fn copy(mut source: &File, mut to: &File) -> io::Result<()> {
    let len = source.metadata()?.len();
    let mut spans = Reader::new(source);
    while spans.offset() < len {
        let bytes = match spans.next(len, HOLE_BYTES_MIN) {
            Span::Hole(bytes) => {
                to.set_len(spans.offset() + bytes)?;
                to.seek(SeekFrom::End(0))?;
                bytes
            }
            Span::Data(bytes) => {
                source.seek(SeekFrom::Start(spans.offset()))?;
                if io::copy(&mut source.take(bytes), &mut to)? < bytes {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                bytes
            }
        };
        spans.skip(bytes);
    }
    Ok(())
}

/// The folders that a name lies in, the innermost first.
pub(super) fn above(path: &RelPath) -> impl Iterator<Item = &str> {
    std::iter::successors(path.as_str().rsplit_once('/'), |(folder, _)| folder.rsplit_once('/'))
        .map(|(folder, _)| folder)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_of_a_sparse_file_is_sparse() {
        let [mut source, mut copied] = [(); 2].map(|()| tempfile::tempfile().unwrap());
        source.write_all(&[1; 5000]).unwrap();
        source.seek(SeekFrom::Start(1 << 30)).unwrap();
        source.write_all(b"end").unwrap();
        source.set_len(2 << 30).unwrap();
        copy(&source, &copied).unwrap();
        let meta = copied.metadata().unwrap();
        assert!(meta.len() == 2 << 30 && meta.blocks() * 512 < 1 << 20, "{meta:?}");
        for (offset, bytes) in [(0, &[1; 5000][..]), (5000, &[0; 100]), (1 << 30, b"end\0")] {
            copied.seek(SeekFrom::Start(offset)).unwrap();
            let mut read = vec![1; bytes.len()];
            copied.read_exact(&mut read).unwrap();
            assert!(read == bytes);
        }
    }

    #[test]
    fn where_a_rename_does_not_go_a_copy_does_and_nothing_of_ours_stays() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let path = |name: &str| RelPath::new(name).unwrap();
        dir.open_append(&path("deep/er/b")).unwrap().write_all(b"old").unwrap();
        let mut staged = dir.stage(&path("deep/er/b")).unwrap();
        staged.file.write_all(b"new").unwrap();
        let mut placed = dir.place_copied(&staged.at, &path("deep/er/b")).unwrap();
        placed.write_all(b" and more").unwrap();
        assert_eq!(fs::read_to_string(root.path().join("deep/er/b")).unwrap(), "new and more");
        dir.move_across(&path("deep/er/b"), &path("else/where")).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("else/where")).unwrap(), "new and more");
        for (folder, entries) in [("deep/er", 0), (".paceline", 0), ("else", 1)] {
            assert_eq!(fs::read_dir(root.path().join(folder)).unwrap().count(), entries, "{folder}");
        }
        assert_eq!(above(&path("a/b/c")).collect::<Vec<_>>(), ["a/b", "a"]);
    }
}
