//! The watcher's rules, without its thread: folders and their watches, files and what was announced of them, the paths
//! that want a look.
//!
//! Nothing is concluded from an event but that its path wants a look ([`Tree::collect`]); what to announce follows from
//! what is there ([`Tree::announce_dirty`]). So events may come late, twice, out of order or under a name that a folder
//! no longer has.
//!
//! A watch is set before its folder is listed: what is created between shows in both.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::announce::Announce;
use super::file::{By, Known, Seen, Tail, Verdict, read_range};
use super::notify::{Event, Inotify};
use crate::error::{AppendError, Error};
use crate::types::RelPath;

/// Growth from here up is announced by reference: the leader's writers read it from the file.
pub(super) const BY_REFERENCE_BYTES_MIN: u64 = 256 << 10;
/// Announced bytes after which the window is looked at.
pub(super) const PACE_BYTES: u64 = 8 << 20;
/// How long after it vanished or shrank under our hands a file is looked at again.
const AGAIN: Duration = Duration::from_millis(10);
/// How long after it could not be read a file is tried again.
const AFTER_IO_ERROR: Duration = Duration::from_secs(5);
/// A file that is replaced over and over is announced at this rate at most.
const REPLACE_BYTES_PER_S: u64 = 100_000_000;

/// Why a look at a path came to nothing.
pub(super) enum Trouble {
    /// Look again then.
    Later(Instant),
    /// It cannot be read now; tried again later.
    Io(io::Error),
    /// The leader shuts down.
    Stop,
    /// Watching is over.
    Fatal(Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::UnexpectedEof => {
                Self::Later(Instant::now() + AGAIN)
            }
            _ => Self::Io(error),
        }
    }
}

impl From<AppendError> for Trouble {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::ShuttingDown => Self::Stop,
            AppendError::Io { source, .. } => source.into(),
            error => Self::Io(io::Error::other(error)),
        }
    }
}

/// A folder that is watched.
#[derive(Clone, Copy)]
struct Folder {
    watch: i32,
    dev: u64,
    ino: u64,
}

pub(super) struct Tree<A> {
    root: PathBuf,
    root_fd: OwnedFd,
    root_watch: i32,
    announce: A,
    inotify: Inotify,
    folders: BTreeMap<RelPath, Folder>,
    /// Which folder a watch belongs to; `None` is the root.
    watches: HashMap<i32, Option<RelPath>>,
    files: BTreeMap<RelPath, Known>,
    /// Wants a look. In order, so that a folder is looked at before what is in it.
    dirty: BTreeSet<RelPath>,
    /// Wants a look then.
    later: BTreeMap<RelPath, Instant>,
    /// Files that could not be read, to say so once.
    unreadable: BTreeSet<RelPath>,
    overflowed: bool,
    root_lost: bool,
    /// Announced since the window was looked at.
    unpaced: u64,
}

impl<A: Announce> Tree<A> {
    /// Sets the first watch and marks everything, on disk or known to the leader, as wanting a look.
    pub(super) fn open(root: &Path, announce: A) -> Result<Self, Error> {
        let inotify = Inotify::new()?;
        let root_fd = File::open(root).map_err(|error| Error::io("open", root, error))?.into();
        let root_watch = inotify.add(root).map_err(|errno| watch_error(root, errno))?;
        let mut tree = Self {
            root: root.to_owned(),
            root_fd,
            root_watch,
            announce,
            inotify,
            folders: BTreeMap::new(),
            watches: HashMap::from([(root_watch, None)]),
            files: BTreeMap::new(),
            dirty: BTreeSet::new(),
            later: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            overflowed: false,
            root_lost: false,
            unpaced: 0,
        };
        tree.rescan()?;
        Ok(tree)
    }

    pub(super) fn inotify(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// When the next path wants another look; `None` if none does.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.later.values().min().copied()
    }

    /// Reads the pending events and marks what they are about; never blocks. After an overflow marks everything.
    pub(super) fn collect(&mut self) -> Result<(), Error> {
        let Self { inotify, watches, folders, dirty, overflowed, root_lost, root, root_watch, .. } = self;
        inotify
            .read(&mut |event| match event {
                Event::Overflow => *overflowed = true,
                Event::Moved { watch } | Event::Ended { watch } if watch == *root_watch => *root_lost = true,
                Event::Moved { .. } => {} // its parent's events say where it went
                Event::Ended { watch } => {
                    if let Some(Some(path)) = watches.remove(&watch) {
                        folders.remove(&path);
                        dirty.insert(path);
                    }
                }
                Event::Entry { watch, name, appeared } => {
                    if let Some(folder) = watches.get(&watch)
                        && let Some(path) = entry_path(root, folder.as_ref(), name, appeared)
                    {
                        dirty.insert(path);
                    }
                }
            })
            .map_err(|errno| Error::io("read the inotify events of", &self.root, errno))?;
        if self.root_lost {
            let gone = io::Error::new(ErrorKind::NotFound, "it was moved, deleted or unmounted; start the leader anew");
            return Err(Error::io("watch", &self.root, gone));
        }
        if std::mem::take(&mut self.overflowed) {
            log::warn!("events were lost (fs.inotify.max_queued_events is small for this load): scanning all files");
            self.rescan()?;
        }
        Ok(())
    }

    /// What a queue overflow does.
    #[cfg(test)]
    pub(super) fn lose_pending_events(&mut self) {
        self.inotify.read(&mut |_| {}).unwrap();
    }

    /// Marks everything known and everything there.
    pub(super) fn rescan(&mut self) -> Result<(), Error> {
        self.dirty.extend(self.files.keys().cloned());
        self.dirty.extend(self.folders.keys().cloned());
        self.dirty.extend(self.announce.files().into_iter().map(|(path, _)| path));
        self.list(None).map_err(|error| Error::io("list", &self.root, error))?;
        for folder in self.folders.keys().cloned().collect::<Vec<_>>() {
            // One that is gone or cannot be listed shows when it is looked at.
            let _ = self.list(Some(&folder));
        }
        Ok(())
    }

    /// Looks at every marked path, and those found on the way, and announces what happened; `go_on` is asked before each.
    ///
    /// `at_once`: also those that were to be looked at later, for a last look before the end.
    pub(super) fn announce_dirty(&mut self, at_once: bool, go_on: &dyn Fn() -> bool) -> Result<(), Trouble> {
        let now = Instant::now();
        let Self { later, dirty, .. } = self;
        later.retain(|path, at| {
            let due = at_once || *at <= now;
            if due {
                dirty.insert(path.clone());
            }
            !due
        });
        if !self.dirty.is_empty() {
            self.pace(PACE_BYTES);
        }
        while go_on()
            && let Some(path) = self.dirty.pop_first()
        {
            match self.look_at(&path, at_once) {
                Ok(()) => {
                    self.unreadable.remove(&path);
                }
                Err(Trouble::Later(at)) => self.look_later(path, at),
                Err(Trouble::Io(error)) => {
                    if self.unreadable.insert(path.clone()) {
                        let file = path.below(&self.root);
                        log::warn!("not replicated for now, tried again later: read {}: {error}", file.display());
                    }
                    self.look_later(path, Instant::now() + AFTER_IO_ERROR);
                }
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(())
    }

    fn look_later(&mut self, path: RelPath, at: Instant) {
        self.later.entry(path).and_modify(|earlier| *earlier = at.min(*earlier)).or_insert(at);
    }

    fn look_at(&mut self, path: &RelPath, at_once: bool) -> Result<(), Trouble> {
        if path.is_reserved() {
            return Ok(());
        }
        let in_known_folder =
            path.as_str().rsplit_once('/').is_none_or(|(folder, _)| self.folders.contains_key(folder));
        let meta = match fs::symlink_metadata(path.below(&self.root)) {
            _ if !in_known_folder => None,
            Ok(meta) => Some(meta),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
            Err(error) => return Err(Trouble::Io(error)),
        };
        match meta {
            Some(meta) if meta.is_file() => {
                self.forget_folder(path)?;
                self.look_at_file(path, &Seen::of(&meta), at_once)
            }
            Some(meta) if meta.is_dir() => {
                self.delete(path)?;
                self.look_at_folder(path)
            }
            other => {
                if other.is_some() {
                    log::debug!("not replicated, neither file nor folder: {path}");
                }
                self.forget_folder(path)?;
                self.delete(path)
            }
        }
    }

    // --- folders ---

    fn look_at_folder(&mut self, path: &RelPath) -> Result<(), Trouble> {
        let meta = self.open_entry(path, OFlags::DIRECTORY)?.metadata()?;
        let known = self.folders.get(path).copied();
        if known.is_some_and(|known| (known.dev, known.ino) == (meta.dev(), meta.ino())) {
            return Ok(());
        }
        self.forget_folder(path)?;
        let full_path = path.below(&self.root);
        let watch = match self.inotify.add(&full_path) {
            Ok(watch) => watch,
            Err(errno @ (Errno::NOSPC | Errno::NOMEM)) => return Err(Trouble::Fatal(watch_error(&full_path, errno))),
            Err(errno) => return Err(io::Error::from(errno).into()),
        };
        // A folder that was moved here keeps its watch: it belongs to the new name alone from now on.
        if let Some(Some(old)) = self.watches.insert(watch, Some(path.clone()))
            && old != *path
        {
            self.folders.remove(&old);
            self.dirty.insert(old);
        }
        self.folders.insert(path.clone(), Folder { watch, dev: meta.dev(), ino: meta.ino() });
        if let Err(error) = self.list(Some(path)) {
            // Not listed, so not known: it is tried again as a whole.
            self.forget_folder(path)?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Marks what is in a folder as wanting a look.
    fn list(&mut self, folder: Option<&RelPath>) -> io::Result<()> {
        let path = folder.map_or_else(|| self.root.clone(), |folder| folder.below(&self.root));
        for entry in fs::read_dir(path)? {
            let name = entry?.file_name();
            if let Some(path) = entry_path(&self.root, folder, name.as_encoded_bytes(), true) {
                self.dirty.insert(path);
            }
        }
        Ok(())
    }

    /// Forgets the watches of a folder and of those below, and deletes the files in them.
    fn forget_folder(&mut self, path: &RelPath) -> Result<(), Trouble> {
        let mut folders = paths_below(&self.folders, path);
        folders.push(path.clone());
        for folder in folders {
            if let Some(Folder { watch, .. }) = self.folders.remove(&folder)
                // It may belong to another name by now.
                && self.watches.get(&watch).is_some_and(|owner| owner.as_ref() == Some(&folder))
            {
                self.watches.remove(&watch);
                self.inotify.remove(watch);
            }
        }
        for file in paths_below(&self.files, path) {
            self.delete(&file)?;
        }
        Ok(())
    }

    // --- files ---

    fn look_at_file(&mut self, path: &RelPath, seen: &Seen, at_once: bool) -> Result<(), Trouble> {
        if !self.announce.replicates(path) {
            return Ok(());
        }
        let leader_len = self.announce.file_len(path);
        if let Some(known) = self.files.get(path)
            && known.is_unchanged(seen)
            && known.announced == leader_len.unwrap_or(0)
        {
            return Ok(());
        }
        let file = self.open_entry(path, OFlags::empty())?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(Trouble::Later(Instant::now()));
        }
        let seen = Seen::of(&meta);
        let now = Instant::now();
        let verdict = match (self.files.get_mut(path), leader_len) {
            (Some(known), leader_len) if known.announced == leader_len.unwrap_or(0) => {
                known.judge(&seen, &file, now, at_once)?
            }
            (Some(_), _) => Verdict::Changed("the leader has another length of it"),
            (None, Some(leader_len)) if leader_len > seen.len => Verdict::Changed("shorter than the leader has it"),
            (None, None) if seen.len == 0 => Verdict::Changed("new and empty"),
            (None, _) => Verdict::Grown,
        };
        match verdict {
            Verdict::Unchanged => Ok(()),
            Verdict::LookAgain(at) => Err(Trouble::Later(at)),
            Verdict::Grown => self.append(path, &file, seen, leader_len.unwrap_or(0)),
            Verdict::Changed(why) => {
                match self.files.get(path) {
                    Some(known) if known.replace_after > now && !at_once => {
                        return Err(Trouble::Later(known.replace_after));
                    }
                    _ => log::debug!("replace {path}: {why}"),
                }
                self.replace(path, &file, seen)
            }
        }
    }

    /// Announces `from..seen.len`; nothing if that is empty (a file that the leader found by itself).
    fn append(&mut self, path: &RelPath, file: &File, seen: Seen, from: u64) -> Result<(), Trouble> {
        let growth = seen.len - from;
        let tail_start = Tail::start(seen.len);
        let (tail, announced) = if growth < BY_REFERENCE_BYTES_MIN {
            let start = tail_start.min(from);
            let bytes = read_range(file, start, seen.len)?;
            let new = &bytes[usize::try_from(from - start).map_err(io::Error::other)?..];
            let announced = if new.is_empty() { Ok(()) } else { self.announce.append(path, from, new) };
            (Tail::of(seen.len, &bytes), announced)
        } else {
            let tail = Tail::read(file, seen.len)?;
            (tail, self.announce.append_from_file(path, from, growth))
        };
        match announced {
            Ok(()) => {}
            Err(AppendError::Offset { .. }) => return self.replace(path, file, seen),
            Err(error) => return Err(error.into()),
        }
        let replace_after = self.files.get(path).map_or_else(Instant::now, |known| known.replace_after);
        self.files.insert(path.clone(), Known::new(seen, seen.len, Some(tail), By::Append, replace_after));
        self.pace(growth);
        Ok(())
    }

    fn replace(&mut self, path: &RelPath, file: &File, seen: Seen) -> Result<(), Trouble> {
        // Read before the leader reads: what changes between the two shows at the next look.
        let tail = Tail::read(file, seen.len)?;
        self.announce.replace(path)?;
        // The leader looked later than we did. If the file had grown by then, our tail is still before what it announced;
        // if it had shrunk, nothing is known.
        let announced = self.announce.file_len(path).unwrap_or(0);
        let tail = (announced >= seen.len).then_some(tail);
        let pause = Duration::from_millis(announced / (REPLACE_BYTES_PER_S / 1000));
        self.files.insert(path.clone(), Known::new(seen, announced, tail, By::Replace, Instant::now() + pause));
        self.pace(announced);
        Ok(())
    }

    fn delete(&mut self, path: &RelPath) -> Result<(), Trouble> {
        let known = self.files.remove(path).is_some();
        self.later.remove(path);
        self.unreadable.remove(path);
        if known || self.announce.file_len(path).is_some() {
            self.announce.delete(path)?;
        }
        Ok(())
    }

    /// Opens what is at `path` without following a symbolic link at any part of it, and without waiting for a FIFO's writer.
    fn open_entry(&self, path: &RelPath, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened = match rustix::fs::openat2(&self.root_fd, path.as_str(), flags, Mode::empty(), resolve) {
            // Before Linux 5.6, and in old sandboxes.
            Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(&self.root_fd, path.as_str(), flags, Mode::empty()),
            opened => opened,
        };
        match opened {
            Ok(fd) => Ok(File::from(fd)),
            // It was another kind of thing a moment ago: look again.
            Err(Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Err(ErrorKind::NotFound.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn pace(&mut self, announced: u64) {
        self.unpaced = self.unpaced.saturating_add(announced);
        if self.unpaced >= PACE_BYTES {
            self.unpaced = 0;
            self.announce.pace();
        }
    }
}

/// The path of a folder's entry; `None` if its name cannot be sent, with a warning when it appears.
fn entry_path(root: &Path, folder: Option<&RelPath>, name: &[u8], appeared: bool) -> Option<RelPath> {
    let path = match folder {
        None => RelPath::from_bytes(name),
        Some(folder) => RelPath::from_bytes(&[folder.as_str().as_bytes(), b"/", name].concat()),
    };
    match path {
        Ok(path) => Some(path),
        Err(error) => {
            let level = if appeared { log::Level::Warn } else { log::Level::Debug };
            log::log!(level, "not replicated, in {}: {error}", root.display());
            None
        }
    }
}

/// The keys below `folder`.
fn paths_below<V>(map: &BTreeMap<RelPath, V>, folder: &RelPath) -> Vec<RelPath> {
    let (from, to) = (format!("{folder}/"), format!("{folder}0")); // '0' is what follows '/'
    map.range::<str, _>((Bound::Included(from.as_str()), Bound::Excluded(to.as_str())))
        .map(|(path, _)| path.clone())
        .collect()
}

fn watch_error(folder: &Path, errno: Errno) -> Error {
    if errno != Errno::NOSPC {
        return Error::io("watch", folder, errno);
    }
    let reason = format!(
        "this user has no inotify watch left for {}, one is needed for each folder: raise it (sysctl -w \
         fs.inotify.max_user_watches=1048576)",
        folder.display()
    );
    Error::Setting { name: "fs.inotify.max_user_watches", reason }
}
