//! What only the extension can say of a file: another name, a smaller length, none at all, other bytes in its middle, zeros.
//!
//! Part of [`Actions`] and of [`Dir`]: the same rules hold for names, and the same handles are forgotten. All of these are
//! about files that are there, of a length that fits: if not, the copy is not what the leader takes it for, and the
//! connection ends, so that the next one compares.

use std::io;
use std::sync::Arc;

use super::apply::Actions;
use super::dir::Dir;
use crate::error::Error;
use crate::protocol::ProtocolError;
use crate::sys::fs::{File, FileExt};
use crate::sys::rustix;
use crate::sys::rustix::fs::{FallocateFlags, OFlags};
use crate::sys::rustix::io::Errno;
use crate::types::RelPath;

/// A patch under way.
pub(super) struct Patch {
    path: RelPath,
    file: Arc<File>,
    offset: u64,
}

/// What the leader said does not fit the file.
pub(super) fn unfit(said: impl Into<String>) -> Error {
    ProtocolError::OutOfPlace(said.into()).into()
}

pub(super) fn unreserved(path: &RelPath) -> Result<(), Error> {
    if path.is_reserved() {
        return Err(ProtocolError::Reserved(path.to_string()).into());
    }
    Ok(())
}

impl Actions<'_> {
    /// Gives a file another name; a file that had it is gone.
    pub(super) fn rename(&mut self, from: &RelPath, to: &RelPath) -> Result<(), Error> {
        self.settle()?;
        unreserved(from)?;
        unreserved(to)?;
        self.forget(from);
        self.forget(to);
        let Some(file) = self.dir.open_file(from, OFlags::RDONLY)? else {
            return Err(unfit(format!("rename of {from}, which is not here")));
        };
        if from == to {
            return Ok(());
        }
        if self.guard && self.dir.holds(to)? {
            self.dir.flush_file(from.as_str(), &file)?;
        }
        if let Some(track) = &mut self.track {
            track.renames(from, &file);
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.link(to);
        }
        if let Some(copied) = self.dir.rename(from, to)? {
            self.gone(from);
            self.gone(to);
            self.writes(to, &Arc::new(copied), 0);
        } else if let Some(track) = &mut self.track {
            track.renamed(from, to, &file);
        }
        Ok(())
    }

    /// Cuts a file to a length that it has.
    pub(super) fn truncate(&mut self, path: &RelPath, len: u64) -> Result<(), Error> {
        self.settle()?;
        let (file, had) = self.open_to_change(path, "truncation")?;
        if len > had {
            return Err(unfit(format!("truncation of {path} to {len} bytes, which has {had}")));
        }
        match &mut self.keeper {
            // All of it can be kept as it is, and another made.
            Some(_) if len == 0 => return self.empty(path),
            Some(keeper) if len < had => keeper.range(path, len, had - len),
            _ => {}
        }
        self.cut(path, &Arc::new(file), len)
    }

    /// Makes a file that is empty.
    pub(super) fn empty(&mut self, path: &RelPath) -> Result<(), Error> {
        self.settle()?;
        unreserved(path)?;
        if let Some(keeper) = &mut self.keeper
            && keeper.take(path)
        {
            self.gone(path);
        }
        let (file, _) = self.open_or_make(path)?;
        self.cut(path, &Arc::new(file), 0)
    }

    fn cut(&mut self, path: &RelPath, file: &Arc<File>, len: u64) -> Result<(), Error> {
        self.writes(path, file, len);
        let failed = |error| self.dir.failed("truncate", path.as_str(), error);
        let shrinks = self.guard && file.metadata().map_err(failed)?.len() > len;
        file.set_len(len).map_err(failed)?;
        if shrinks { self.dir.flush_file(path.as_str(), file) } else { Ok(()) }
    }

    /// The payload to come, of `len` bytes, goes to `offset` in the file instead of to its end.
    pub(super) fn begin_patch(&mut self, path: &RelPath, offset: u64, len: u64) -> Result<(), Error> {
        self.settle()?;
        let (file, had) = self.open_to_change(path, "patch")?;
        if offset.checked_add(len).is_none_or(|end| end > had) {
            return Err(unfit(format!("patch of {len} bytes at {offset} of {path}, which has {had}")));
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.range(path, offset, len);
        }
        self.patching = Some(Patch { path: path.clone(), file: Arc::new(file), offset });
        Ok(())
    }

    pub(super) fn patch(&mut self, bytes: &[u8], remaining: u64) -> Result<(), Error> {
        let Some(mut patch) = self.patching.take() else { return Ok(()) };
        self.writes(&patch.path, &patch.file, patch.offset);
        let written = patch.file.write_all_at(bytes, patch.offset);
        written.map_err(|error| self.dir.failed("patch", patch.path.as_str(), error))?;
        patch.offset += bytes.len() as u64;
        self.patching = (remaining > 0).then_some(patch);
        Ok(())
    }

    /// Zeros from `offset` on, where the file may end, or begin if it is not here, which take no room on the disk if that is possible. `in_place` comes before what is
    /// there is changed.
    pub(super) fn hole(
        &mut self,
        path: &RelPath,
        offset: u64,
        len: u64,
        in_place: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.settle()?;
        if self.is_in_pieces() {
            return self.stage_hole(path, offset, len);
        }
        let (file, had) = if offset == 0 { self.open_or_make(path)? } else { self.open_to_change(path, "hole")? };
        let end = offset.checked_add(len).filter(|_| offset <= had);
        let Some(end) = end else {
            return Err(unfit(format!("hole of {len} bytes at {offset} of {path}, which has {had}")));
        };
        let within = len.min(had - offset);
        if within > 0 {
            in_place()?;
        }
        if let Some(keeper) = &mut self.keeper
            && within > 0
        {
            keeper.range(path, offset, within);
        }
        let file = Arc::new(file);
        self.writes(path, &file, offset);
        let failed = |error| self.dir.failed("make a hole in", path.as_str(), error);
        if within > 0 {
            punch(&file, offset, within).map_err(failed)?;
        }
        if end > had { file.set_len(end).map_err(failed) } else { Ok(()) }
    }

    fn open_or_make(&mut self, path: &RelPath) -> Result<(File, u64), Error> {
        unreserved(path)?;
        self.forget(path);
        let file = self.dir.open_made(path, OFlags::WRONLY | OFlags::CREATE)?;
        if let Some(track) = &mut self.track {
            track.folders_of(path);
        }
        self.with_length(path, file)
    }

    fn open_to_change(&mut self, path: &RelPath, what: &str) -> Result<(File, u64), Error> {
        unreserved(path)?;
        self.forget(path);
        let Some(file) = self.dir.open_file(path, OFlags::WRONLY)? else {
            return Err(unfit(format!("{what} of {path}, which is not here")));
        };
        self.with_length(path, file)
    }

    fn with_length(&self, path: &RelPath, file: File) -> Result<(File, u64), Error> {
        let len = file.metadata().map_err(|error| self.dir.failed("stat", path.as_str(), error))?.len();
        Ok((file, len))
    }
}

/// Makes a hole within a file; zeros, where its file system has none.
fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    const ZEROS: [u8; 4 << 10] = [0; 4 << 10];
    match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    let mut at = offset;
    while at < offset + len {
        let piece = usize::try_from(offset + len - at).unwrap_or(usize::MAX).min(ZEROS.len());
        file.write_all_at(&ZEROS[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}

impl Dir {
    /// Gives a file another name, in one step. `Some`: the name is on another file system, and this copy has it.
    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<Option<File>, Error> {
        let (to_folder, to_name) = self.parent_made(to)?;
        self.make_way(&to_folder, to_name, to)?;
        let (from_folder, from_name) = self.parent_made(from)?;
        match rustix::fs::renameat(from_folder, from_name, to_folder, to_name) {
            Ok(()) => Ok(None),
            Err(Errno::XDEV) => self.move_across(from, to).map(Some),
            Err(error) => Err(self.failed("rename", from.as_str(), error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ActionKind;
    use std::fs;

    fn path(name: &str) -> RelPath {
        RelPath::new(name).unwrap()
    }

    #[test]
    fn files_get_names_lengths_and_bytes() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("old/deep")).unwrap();
        fs::create_dir_all(at("new/x/y")).unwrap();
        fs::write(at("old/deep/a"), "0123456789").unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let mut actions = Actions::new(&dir);
        actions.rename(&path("old/deep/a"), &path("new/x/y")).unwrap();
        assert!(at("old/deep").exists(), "an emptied folder is the leader's to remove");
        actions.truncate(&path("new/x/y"), 6).unwrap();
        actions.begin_patch(&path("new/x/y"), 2, 4).unwrap();
        actions.patch(b"ab", 2).unwrap();
        actions.patch(b"cd", 0).unwrap();
        assert_eq!(fs::read_to_string(at("new/x/y")).unwrap(), "01abcd");
        actions.hole(&path("new/x/y"), 1, 2, &mut || Ok(())).unwrap();
        actions.hole(&path("new/x/y"), 5, 3, &mut || Ok(())).unwrap();
        assert_eq!(fs::read(at("new/x/y")).unwrap(), b"0\0\0bc\0\0\0");
        actions.empty(&path("made/here")).unwrap();
        actions.empty(&path("new/x/y")).unwrap();
        assert!(fs::read(at("made/here")).unwrap().is_empty() && fs::read(at("new/x/y")).unwrap().is_empty());
    }

    #[test]
    fn a_hole_comes_where_a_file_begins_ends_or_has_something_or_is_staged() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let dir = Dir::open(root.path()).unwrap();
        let mut actions = Actions::new(&dir);
        let mut in_place = 0;
        let mut hole = |actions: &mut Actions<'_>, offset: u64, len: u64| {
            let mut count = || {
                in_place += 1;
                Ok(())
            };
            actions.hole(&path("deep/a"), offset, len, &mut count)
        };
        let append = |actions: &mut Actions<'_>, bytes: &[u8]| {
            actions.begin(path("deep/a"), ActionKind::Append(bytes.len() as u64)).unwrap();
            actions.payload(bytes, 0).unwrap();
        };
        hole(&mut actions, 0, 3).unwrap();
        append(&mut actions, b"ab");
        hole(&mut actions, 5, 2).unwrap();
        append(&mut actions, b"c");
        actions.settle().unwrap();
        assert_eq!(fs::read(at("deep/a")).unwrap(), b"\0\0\0ab\0\0c");
        actions.begin_pieces(path("deep/a")).unwrap();
        append(&mut actions, b"new");
        hole(&mut actions, 3, 2).unwrap();
        append(&mut actions, b"er");
        assert!(hole(&mut actions, 6, 1).is_err() && hole(&mut actions, 8, 1).is_err());
        let other = actions.hole(&path("b"), 7, 1, &mut || Ok(()));
        assert!(other.is_err());
        hole(&mut actions, 7, 1 << 40).unwrap();
        actions.place().unwrap();
        assert_eq!(fs::metadata(at("deep/a")).unwrap().len(), 7 + (1 << 40));
        actions.truncate(&path("deep/a"), 8).unwrap();
        assert_eq!(fs::read(at("deep/a")).unwrap(), b"new\0\0er\0");
        hole(&mut actions, 1, 4).unwrap();
        assert_eq!(fs::read(at("deep/a")).unwrap(), b"n\0\0\0\0er\0");
        assert_eq!(in_place, 1, "what is added is not in place");
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a"), "0123").unwrap();
        fs::create_dir_all(root.path().join("folder")).unwrap();
        fs::write(root.path().join("folder/full"), "").unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let mut actions = Actions::new(&dir);
        assert!(actions.rename(&path("b"), &path("c/d")).is_err());
        assert!(actions.rename(&path("a"), &path("folder")).is_err());
        assert!(actions.rename(&path("a"), &path("folder/full/x")).is_err());
        assert!(actions.truncate(&path("a"), 5).is_err() && actions.truncate(&path("b"), 0).is_err());
        assert!(
            actions.begin_patch(&path("a"), 2, 3).is_err() && actions.begin_patch(&path("a"), u64::MAX, 2).is_err()
        );
        assert!(
            actions.hole(&path("a"), 5, 1, &mut || Ok(())).is_err()
                && actions.hole(&path("a"), 1, u64::MAX, &mut || Ok(())).is_err()
        );
        for name in [".lock", "$x", ".paceline/incomplete"] {
            let (name, a) = (path(name), path("a"));
            assert!(actions.rename(&a, &name).is_err() && actions.rename(&name, &a).is_err());
            assert!(actions.truncate(&name, 0).is_err() && actions.empty(&name).is_err());
            assert!(actions.begin_patch(&name, 0, 1).is_err() && actions.hole(&name, 0, 1, &mut || Ok(())).is_err());
        }
        assert_eq!(fs::read_to_string(root.path().join("a")).unwrap(), "0123");
        assert!(!root.path().join("c").exists());
    }
}
