//! What a file has besides its content: its mode, and when that changed last. Part of [`Actions`] and of [`Dir`].
//!
//! Set through a descriptor of the file, never by a name. What is known of the content stays known: only what `stat` says of it
//! is noted anew. Bits of a mode above `0777` are given to no file. That a file system, or the rights of this process, does not let
//! them be set ends nothing: it is counted, and said once a connection.
//!
//! A mode may keep us from a file, unless we are root. It is widened for the moment in which the file is opened, by way of
//! `/proc/self/fd`, since a file that cannot be opened for anything has no other descriptor than one of `O_PATH`. No lock is needed for that: whoever
//! finds the mode as another thread has just widened it changes nothing, and tries again if that came to an end meanwhile.

use std::sync::Arc;

use super::apply::Actions;
use super::dir::{Dir, FILE, Folder};
use super::reshape::unreserved;
use crate::datadir::attributes_of;
use crate::digests::{NANOS, Stamps};
use crate::error::Error;
use crate::protocol::extension::Attributes;
use crate::sys::fd::{AsFd, AsRawFd, OwnedFd};
use crate::sys::fs::File;
use crate::sys::rustix;
use crate::sys::rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use crate::sys::rustix::io::{Errno, Result as Done};
use crate::types::RelPath;

/// So often a file is looked at whose mode others widen and put back meanwhile.
const TRIES: usize = 8;

impl Actions<'_> {
    /// Gives a file these, as far as it has others. Does nothing where there is no file.
    pub(super) fn attributes(&mut self, path: &RelPath, wanted: Attributes) -> Result<(), Error> {
        self.settle()?;
        unreserved(path)?;
        let Some((file, stat)) = self.file_at(path)? else {
            log::debug!("attributes of {path}, which is no file here");
            return Ok(());
        };
        let (before, wanted) = (Stamps::of(&stat), wanted.kept(false));
        let mode = Some(wanted.mode).filter(|mode| attributes_of(&stat).mode != *mode);
        let mtime = Some(wanted.mtime).filter(|mtime| *mtime != Attributes::NO_TIME && *mtime != before.mtime);
        if mode.is_none() && mtime.is_none() {
            return Ok(());
        }
        if let Some(track) = &mut self.track {
            track.sets_attributes(path, &file);
        }
        // In this order: the mode moves no time but that of the change.
        let set = mode.map_or(Ok(()), |mode| rustix::fs::fchmod(&*file, bits(mode)));
        let set = set.and(mtime.map_or(Ok(()), |mtime| set_mtime(&file, mtime)));
        self.dir.look_otherwise(path, &before, &file);
        set.or_else(|errno| self.refused(path, errno))
    }

    /// A file that is here, open for whatever it may be, and how it looks.
    fn file_at(&self, path: &RelPath) -> Result<Option<(Arc<File>, Stat)>, Error> {
        let failed = |errno: Errno| self.dir.failed("stat", path.as_str(), errno);
        let file = match self.opened(path) {
            Some(file) => file,
            None => match self.dir.file_if_any(path)? {
                Some(file) => Arc::new(file),
                None => return Ok(None),
            },
        };
        let stat = rustix::fs::fstat(&*file).map_err(failed)?;
        Ok(Some((file, stat)))
    }

    /// Attributes cannot be set here: nothing ends for that. What is another failure does.
    pub(super) fn refused(&mut self, path: &RelPath, errno: Errno) -> Result<(), Error> {
        match errno {
            Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS => {}
            errno => return Err(self.dir.failed("set the attributes of", path.as_str(), errno)),
        }
        self.attributes_refused += 1;
        if self.attributes_refused == 1 {
            let error = self.dir.failed("set the attributes of", path.as_str(), errno);
            log::warn!(
                "{error}; this copy differs from the leader's files in that, and goes on: have the user that the follower runs as own \
                 the directory, on a file system that has modes, times and links"
            );
        }
        Ok(())
    }
}

fn bits(mode: u16) -> Mode {
    Mode::from_raw_mode(mode.into())
}

fn set_mtime(file: &File, mtime: i64) -> Done<()> {
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let last_modification = Timespec { tv_sec: mtime.div_euclid(NANOS), tv_nsec: mtime.rem_euclid(NANOS) };
    rustix::fs::futimens(file, &Timestamps { last_access, last_modification })
}

/// Gives a copy of a file that takes its place the mode and the time of that, as far as they can be set.
pub(super) fn as_of(file: &File, copy: &File) -> Done<()> {
    let attributes = attributes_of(&rustix::fs::fstat(file)?).kept(false);
    let set = rustix::fs::fchmod(copy, bits(attributes.mode)).and_then(|()| set_mtime(copy, attributes.mtime));
    match set {
        Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        set => set,
    }
}

impl Dir {
    /// What is known of a file's content, which looked like this before, stays known: something else was changed, by us.
    fn look_otherwise(&self, path: &RelPath, before: &Stamps, file: impl AsFd) {
        if let Ok(now) = Stamps::of_file(file) {
            self.digests.look_otherwise(path, before, now);
        }
    }

    /// Opens a file to read; `None` if there is none, whatever else may be there or on the way.
    fn file_if_any(&self, path: &RelPath) -> Result<Option<File>, Error> {
        if let Some(fd) = self.open_at_once(path, OFlags::RDONLY) {
            return Ok(self.regular(path, fd).ok());
        }
        let Some((folder, name)) = self.way_to(path, false)? else { return Ok(None) };
        match self.kind_at(&folder, name, path)? {
            Some(FileType::RegularFile) => self.open_file(path, OFlags::RDONLY),
            _ => Ok(None),
        }
    }

    /// Opens a file whose mode forbids it. `None`: it is not that, or nothing can be done about it.
    pub(super) fn open_despite_mode(
        &self,
        (folder, name): (&Folder<'_>, &str),
        path: &RelPath,
        flags: OFlags,
    ) -> Option<OwnedFd> {
        let looks = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let looked_at = rustix::fs::openat(folder, name, looks, Mode::empty()).ok()?;
        let by_number = format!("/proc/self/fd/{}", looked_at.as_raw_fd());
        let flags = (flags | FILE).difference(OFlags::NOFOLLOW | OFlags::CREATE | OFlags::EXCL);
        let ours = Mode::RUSR | Mode::WUSR;
        let chmod = |mode: Mode| rustix::fs::chmodat(rustix::fs::CWD, &*by_number, mode, AtFlags::empty());
        for _ in 0..TRIES {
            let stat = rustix::fs::fstat(&looked_at).ok()?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return None;
            }
            let mode = Mode::from_raw_mode(stat.st_mode);
            let is_widened = !mode.contains(ours);
            if is_widened {
                chmod(mode | ours).ok()?;
            }
            let opened = rustix::fs::open(&*by_number, flags, Mode::empty());
            if is_widened {
                if let Err(errno) = chmod(mode) {
                    log::warn!("{}", self.failed("put back the mode of", path.as_str(), errno));
                }
                self.look_otherwise(path, &Stamps::of(&stat), &looked_at);
            }
            match opened {
                Ok(fd) => return Some(fd),
                // Another thread has put the mode back.
                Err(Errno::ACCESS) => {}
                Err(_) => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::super::flush::Unflushed;
    use super::super::flush::tests::opened;
    use super::super::track::Track;
    use super::*;
    use crate::digests::ChunkBuffer;
    use crate::protocol::ActionKind;
    use crate::protocol::extension::{CHUNK, Owner};

    fn path(name: &str) -> RelPath {
        RelPath::new(name).unwrap()
    }

    fn of(mode: u16, mtime: i64) -> Attributes {
        Attributes { mode, owner: Owner { user: 7, group: 7 }, mtime }
    }

    fn looks(file: &std::path::Path) -> (u32, i64, i64) {
        let meta = fs::metadata(file).unwrap();
        (meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec())
    }

    #[test]
    fn a_file_gets_its_mode_and_its_time_and_no_rights_of_its_owner() {
        let (root, _, dir) = opened();
        let file = root.path().join("deep/a");
        dir.open_append(&path("deep/a")).unwrap().write_all(b"x").unwrap();
        let mut actions = Actions::new(&dir);
        for (mode, mtime, expected) in [
            (0o644, 1_700_000_000_123_456_789, (0o644, 1_700_000_000, 123_456_789)),
            (0o6755, 5, (0o755, 0, 5)),
            (0o444, -1, (0o444, -1, 999_999_999)),
            (0o400, Attributes::NO_TIME, (0o400, -1, 999_999_999)),
        ] {
            actions.attributes(&path("deep/a"), of(mode, mtime)).unwrap();
            assert_eq!(looks(&file), expected);
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4400)).unwrap();
        actions.attributes(&path("deep/a"), of(0o400, Attributes::NO_TIME)).unwrap();
        assert_eq!(looks(&file).0, 0o400);
        // What is so is not touched.
        let before = fs::metadata(&file).unwrap();
        actions.attributes(&path("deep/a"), of(0o400, -1)).unwrap();
        let after = fs::metadata(&file).unwrap();
        assert_eq!((before.ctime(), before.ctime_nsec()), (after.ctime(), after.ctime_nsec()));
        assert_eq!(actions.attributes_refused, 0);
    }

    #[test]
    fn attributes_of_what_is_no_file_do_nothing() {
        let (root, _, dir) = opened();
        let outside = tempfile::NamedTempFile::new().unwrap();
        let before = looks(outside.path());
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().parent().unwrap(), root.path().join("above")).unwrap();
        fs::create_dir(root.path().join("folder")).unwrap();
        let folder = looks(&root.path().join("folder"));
        let mut actions = Actions::new(&dir);
        let outside_name = outside.path().file_name().unwrap().to_str().unwrap();
        for name in ["link", "folder", "none", "none/below", "link/below", &format!("above/{outside_name}")] {
            actions.attributes(&path(name), of(0o777, 1)).unwrap();
        }
        assert_eq!((looks(outside.path()), looks(&root.path().join("folder"))), (before, folder));
    }

    /// How many bytes have to be read for all that there is to know of a file.
    fn read_anew(dir: &Dir, name: &str) -> u64 {
        let (file, mut read) = (dir.open_file(&path(name), OFlags::RDONLY).unwrap().unwrap(), 0);
        let mut count = |bytes| {
            read += bytes;
            Ok::<_, std::io::Error>(())
        };
        dir.digests.of(&path(name), &file, 100, &mut ChunkBuffer::default(), &mut count).unwrap();
        read
    }

    #[test]
    fn what_is_known_of_the_content_stays_known_unless_somebody_else_wrote() {
        let (root, noted, dir) = opened();
        let mut actions = Actions::new(&dir);
        actions.track = Some(Track::new(dir.digests.clone(), Unflushed::default()));
        let append = |actions: &mut Actions<'_>, bytes: &[u8]| {
            actions.begin(path("a"), ActionKind::Append(bytes.len() as u64)).unwrap();
            actions.payload(bytes, 0).unwrap();
        };
        append(&mut actions, &vec![1; 2 * CHUNK]);
        actions.settle().unwrap();
        read_anew(&dir, "a");
        // Also in one go with an append that is not written yet, and through the handle that is open.
        append(&mut actions, b"more");
        actions.attributes(&path("a"), of(0o640, 77)).unwrap();
        assert_eq!(looks(&root.path().join("a")), (0o640, 0, 77));
        assert_eq!(read_anew(&dir, "a"), 4);
        actions.attributes(&path("a"), of(0o600, 78)).unwrap();
        assert_eq!(read_anew(&dir, "a"), 0);
        // Mode and times are flushed, too.
        actions.unflushed().flush(&dir).unwrap();
        assert!(noted.calls.lock().contains('F'));
        fs::write(root.path().join("a"), vec![2; 2 * CHUNK + 4]).unwrap();
        actions.attributes(&path("a"), of(0o640, 78)).unwrap();
        assert_eq!(read_anew(&dir, "a"), 2 * CHUNK as u64 + 4);
        // Of what nobody has read nothing is to be read for it.
        fs::write(root.path().join("b"), "content").unwrap();
        actions.attributes(&path("b"), of(0o640, 78)).unwrap();
        actions.settle().unwrap();
        let later = crate::sys::time::Instant::now() + std::time::Duration::from_secs(1000);
        while let Some(due) = dir.digests.next_due(later) {
            assert_ne!(due.path, path("b"));
        }
    }

    #[test]
    fn a_copy_in_a_files_place_is_as_it_was() {
        let (root, _, dir) = opened();
        let file = root.path().join("a");
        fs::write(&file, "content").unwrap();
        Actions::new(&dir).attributes(&path("a"), of(0o444, 77)).unwrap();
        let inode = || fs::metadata(&file).unwrap().ino();
        let before = inode();
        dir.mend(&Unflushed::all(), &|| Ok(())).unwrap();
        assert_eq!(looks(&file), (0o444, 0, 77));
        assert_ne!(inode(), before);
        dir.move_across(&path("a"), &path("moved")).unwrap();
        assert_eq!(looks(&root.path().join("moved")), (0o444, 0, 77));
    }

    #[test]
    fn a_mode_that_forbids_it_is_widened_for_the_moment() {
        let (root, _, dir) = opened();
        let mut actions = Actions::new(&dir);
        actions.track = Some(Track::new(dir.digests.clone(), Unflushed::default()));
        actions.begin(path("a"), ActionKind::Append(7)).unwrap();
        actions.payload(b"content", 0).unwrap();
        for mode in [0o444, 0o200, 0] {
            actions.attributes(&path("a"), of(mode, 77)).unwrap();
            read_anew(&dir, "a");
            for flags in [OFlags::RDONLY, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE, OFlags::RDWR] {
                // As root nothing is forbidden: this is what is done where it is.
                let file = dir.open_despite_mode((&dir.top(), "a"), &path("a"), flags).unwrap();
                assert_eq!(looks(&root.path().join("a")), (mode.into(), 0, 77));
                if !flags.contains(OFlags::WRONLY) {
                    let mut content = String::new();
                    File::from(file).read_to_string(&mut content).unwrap();
                    assert_eq!(content, "content");
                }
            }
            assert_eq!(read_anew(&dir, "a"), 0);
        }
        std::os::unix::fs::symlink("a", root.path().join("link")).unwrap();
        fs::create_dir(root.path().join("folder")).unwrap();
        for name in ["link", "folder", "none"] {
            assert!(dir.open_despite_mode((&dir.top(), name), &path(name), OFlags::RDONLY).is_none(), "{name}");
        }
    }
}
