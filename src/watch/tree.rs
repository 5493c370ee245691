//! The watcher's rules, without its thread: folders and their watches, files and what was announced of them, the paths
//! that want a look.
//!
//! Nothing is concluded from an event but that its path wants a look ([`Tree::collect`]); what to announce follows from
//! what is there ([`Tree::announce_dirty`]). So events may come late, twice, out of order or under a name that a folder
//! no longer has.
//!
//! Only what is known to be gone is announced as that (`beneath.rs`): what cannot be looked at is taken to be as it was, and looked
//! at again after a pause that grows.
//!
//! A watch is set before its folder is listed: what is created between shows in both.
//!
//! A look has two parts. First all paths are surveyed, for renames (`renames.rs`); then each is looked at on its own. What
//! changed hands between the two is left to the next look, so that no file is announced as gone that was only renamed.

mod compare;
mod files;
mod folders;
mod known;
mod renames;
mod sweep;
mod unread;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use self::folders::{Folder, entry_path, watch_error};
use self::known::Files;
use self::sweep::Sweep;
use super::announce::Announce;
use super::file::{Identity, Seen};
use super::suspects::Suspects;
use crate::beneath::Beneath;
use crate::error::{AppendError, Error};
use crate::first_look::FirstLook;
use crate::notify::{Event, Inotify};
use crate::seldom::Seldom;
use crate::sys::hash::HashMap;
use crate::sys::rustix::fd::{AsFd, BorrowedFd};
use crate::sys::rustix::io::Errno;
use crate::sys::time::Instant;
use crate::types::RelPath;

pub(super) use self::compare::Share;
#[cfg(test)]
pub(super) use self::files::BY_REFERENCE_BYTES_MIN;

/// How long after it vanished or shrank under our hands a file is looked at again.
const AGAIN: Duration = Duration::from_millis(10);
/// How long after it could not be looked at a file or folder is tried again: twice as long each time.
const AFTER_IO_ERROR_MIN: Duration = Duration::from_secs(1);
const AFTER_IO_ERROR_MAX: Duration = Duration::from_secs(10);

/// Why a look at a path came to nothing.
#[derive(Debug)]
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
            AppendError::WouldBlock => Self::Later(Instant::now() + AGAIN),
            AppendError::Io { source, .. } => source.into(),
            error => Self::Io(io::Error::other(error)),
        }
    }
}

pub(super) struct Tree<A> {
    dir: Arc<Beneath>,
    root_watch: i32,
    announce: A,
    inotify: Inotify,
    folders: BTreeMap<RelPath, Folder>,
    /// Which folder a watch belongs to; `None` is the root.
    watches: HashMap<i32, Option<RelPath>>,
    files: Files,
    /// Those that may differ from what was announced.
    suspects: Suspects,
    sweep: Sweep,
    /// Wants a look. In order, so that a folder is looked at before what is in it.
    dirty: BTreeSet<RelPath>,
    /// Wants a look then.
    later: BTreeMap<RelPath, Instant>,
    /// What could not be looked at. It is taken to be as it was.
    unreadable: BTreeMap<RelPath, Unseen>,
    /// Folders without a watch, for want of one: looked at again and again.
    unwatched: BTreeSet<RelPath>,
    next_poll: Instant,
    overflowed: bool,
    /// When everything is to be looked at, because that could not be done when it had to be.
    rescan_at: Option<Instant>,
    root_lost: bool,
    cannot_list: Seldom,
    /// Announced since the window was looked at.
    unpaced: u64,
    /// After so many the window is looked at.
    pace_bytes: u64,
}

impl<A: Announce> Tree<A> {
    /// Takes over the leader's first look, or takes it: what is not surely as the leader has it is marked as wanting another.
    pub(super) fn open(root: &Path, announce: A) -> Result<Self, Error> {
        announce.note_reads();
        let of_leader = announce.take_first_look();
        let is_of_leader = of_leader.is_some();
        let look = of_leader.map_or_else(|| Self::look_first(root, &announce), Ok)?;
        let FirstLook { dir, inotify, folders, files, others, .. } = look;
        let pace_bytes = announce.pace_bytes();
        let watch = folders.first().map_or(Err(Errno::NOENT), |root| root.watch);
        let root_watch = watch.map_err(|errno| watch_error(root, errno))?;
        let mut tree = Self {
            dir,
            root_watch,
            announce,
            inotify,
            folders: BTreeMap::new(),
            watches: HashMap::from_iter([(root_watch, None)]),
            files: Files::of(files),
            suspects: Suspects::default(),
            sweep: Sweep::begin(),
            dirty: BTreeSet::new(),
            later: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            unwatched: BTreeSet::new(),
            next_poll: Instant::now(),
            overflowed: false,
            rescan_at: None,
            root_lost: false,
            cannot_list: Seldom::each_minute(),
            unpaced: 0,
            pace_bytes,
        };
        tree.take_over(folders, others);
        if !is_of_leader {
            tree.mark_unfound();
        }
        tree.collect()?;
        Ok(tree)
    }

    pub(super) fn compare_percent(&self) -> u32 {
        self.announce.compare_percent()
    }

    pub(super) fn inotify(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// What a `poll` for `PRI` tells of mounts that come or go; [`mounts_have_changed`](Self::mounts_have_changed) is to be told.
    pub(super) fn mounts(&self) -> Option<BorrowedFd<'_>> {
        self.dir.mounts()
    }

    pub(super) fn mounts_have_changed(&self) {
        self.dir.mounts_have_changed();
    }

    /// When the next path wants another look; `None` if none does.
    pub(super) fn next_look(&self) -> Option<Instant> {
        if !self.dirty.is_empty() {
            return Some(Instant::now());
        }
        let poll = (!self.unwatched.is_empty()).then_some(self.next_poll);
        self.later.values().copied().chain(poll).chain(self.rescan_at).min()
    }

    /// Reads the pending events and marks what they are about; never blocks. After an overflow marks everything.
    pub(super) fn collect(&mut self) -> Result<(), Error> {
        let Self {
            announce,
            inotify,
            watches,
            folders,
            files,
            suspects,
            dirty,
            overflowed,
            root_lost,
            dir,
            root_watch,
            ..
        } = self;
        let now = Instant::now();
        inotify
            .read(&mut |event| match event {
                Event::Overflow => *overflowed = true,
                Event::Moved { watch } | Event::Ended { watch } if watch == *root_watch => *root_lost = true,
                Event::Moved { .. } => {} // its parent's events say where it went
                Event::Ended { watch } => {
                    if let Some(Some(path)) = watches.remove(&watch) {
                        // What it was is kept: should it be another file system's now, it is not gone.
                        if let Some(folder) = folders.get_mut(&path) {
                            folder.watch = None;
                        }
                        dirty.insert(path);
                    }
                }
                Event::Attributes { watch, name } => {
                    if let Some(folder) = watches.get(&watch)
                        && let Some(path) = entry_path(dir.path(), folder.as_ref(), &name, false)
                    {
                        announce.look_again(&path);
                    }
                }
                Event::Entry { watch, name, appeared } => {
                    if let Some(folder) = watches.get(&watch)
                        && let Some(path) = entry_path(dir.path(), folder.as_ref(), &name, appeared)
                    {
                        if !appeared && files.has(path.as_str()) {
                            // Also if it looks as it did: a long write sets its times when it begins, and is told of when it ends.
                            suspects.has_changed(&path, now);
                        }
                        dirty.insert(path);
                    }
                }
            })
            .map_err(|errno| Error::io("read the inotify events of", self.dir.path(), errno))?;
        self.collect_mounts();
        if std::mem::take(&mut self.root_lost) {
            if let Some(how) = self.dir.is_lost() {
                return Err(Error::DirectoryLost { dir: self.dir.path().to_owned(), how });
            }
            // Away for a moment.
            let watch = self.inotify.add(self.dir.path()).map_err(|errno| watch_error(self.dir.path(), errno))?;
            self.watches.insert(watch, None);
            self.root_watch = watch;
            self.rescan_at = Some(Instant::now());
        }
        if std::mem::take(&mut self.overflowed) {
            log::warn!("events were lost (fs.inotify.max_queued_events is small for this load): scanning all files");
            self.rescan_at = Some(Instant::now());
        }
        if self.rescan_at.is_some_and(|at| at <= Instant::now()) {
            self.rescan_at = None;
            if let Err(error) = self.rescan() {
                if let Some(unsaid) = self.cannot_list.is_due() {
                    log::warn!("cannot list {}, tried again each second: {error}{unsaid}", self.dir.path().display());
                }
                self.rescan_at = Some(Instant::now() + AFTER_IO_ERROR_MIN);
            }
        }
        Ok(())
    }

    /// Marks what was mounted or unmounted, and what is known below: no event says what is there instead.
    fn collect_mounts(&mut self) {
        match self.dir.look_at_mounts() {
            Ok(changed) => {
                for place in changed {
                    self.dirty.extend(self.files.below(&place));
                    self.dirty.insert(place);
                }
            }
            // Whoever finds something gone asks again, and does not believe it either.
            Err(error) => log::debug!("what is mounted below {} is not known: {error}", self.dir.path().display()),
        }
    }

    /// Whether all that wanted a look has had it, and is proven.
    pub(super) fn has_looked(&self) -> bool {
        self.dirty.is_empty() && self.later.is_empty() && self.rescan_at.is_none() && self.suspects.is_empty()
    }

    /// When the next files are to be swept.
    pub(super) fn next_sweep(&self) -> Instant {
        self.suspects.next_again().map_or(self.sweep.due(), |again| again.min(self.sweep.due()))
    }

    /// Since when the file has not been proven that has not for longest.
    pub(super) fn unproven_since(&self) -> Option<Instant> {
        self.suspects.oldest()
    }

    /// What is to be proven is, without delay, before the end.
    pub(super) fn hurry(&mut self) {
        self.suspects.hurry(Instant::now());
    }

    /// Whether a file that is to be proven was changed after that.
    pub(super) fn has_changed_since(&self, since: Instant) -> bool {
        self.suspects.has_changed_since(since)
    }

    /// Whether nothing is left to look at, and nothing has changed since. Of folders without a watch nobody knows.
    pub(super) fn is_settled(&mut self) -> bool {
        self.collect().is_ok()
            && self.unwatched.is_empty()
            && !self.dirty.iter().chain(self.later.keys()).any(|path| self.announce.replicates(path))
    }

    /// What a queue overflow does.
    #[cfg(test)]
    pub(super) fn lose_pending_events(&mut self) {
        self.inotify.read(&mut |_| {}).unwrap();
    }

    /// Marks everything known and everything there.
    pub(super) fn rescan(&mut self) -> io::Result<()> {
        self.dirty.extend(self.files.paths().cloned());
        self.dirty.extend(self.folders.keys().cloned());
        self.dirty.extend(self.announce.files().into_iter().map(|(path, _)| path));
        self.list(None)
    }

    /// Looks at every marked path, and those found on the way, and announces what happened; `go_on` is asked before each.
    ///
    /// `at_once`: also those that were to be looked at later, for a last look before the end.
    pub(super) fn announce_dirty(&mut self, at_once: bool, go_on: &dyn Fn() -> bool) -> Result<(), Trouble> {
        let now = Instant::now();
        let polls = !self.unwatched.is_empty() && (at_once || self.next_poll <= now);
        let Self { later, dirty, .. } = self;
        later.retain(|path, at| {
            let due = at_once || *at <= now;
            if due {
                dirty.insert(path.clone());
            }
            !due
        });
        if polls {
            self.dirty.extend(self.unwatched.iter().cloned());
        }
        for round in 0.. {
            if self.dirty.is_empty() || !go_on() {
                break;
            }
            self.pace(u64::MAX);
            let mut surveyed = self.find_renames(go_on)?;
            while go_on()
                && let Some((path, found)) = surveyed.pop_first()
            {
                let survey = Survey { found, patient: round < PATIENT_ROUNDS };
                let looked = self.look_at(&path, survey, at_once);
                if self.settle(&path, looked)?.is_some() {
                    self.readable(&path);
                    // It is known what the file is: another look for what was suspected before would replace it once more.
                    self.later.remove(&path);
                }
            }
            self.dirty.extend(surveyed.into_keys());
        }
        if polls {
            self.next_poll = Instant::now() + POLL_EVERY_MIN.max(now.elapsed() * POLL_PAUSE);
        }
        Ok(())
    }

    /// Notes what a look came to; an error is one that ends all.
    fn settle<T>(&mut self, path: &RelPath, looked: Result<T, Trouble>) -> Result<Option<T>, Trouble> {
        match looked {
            Ok(found) => return Ok(Some(found)),
            Err(Trouble::Later(at)) => self.look_later(path, at),
            Err(Trouble::Io(error)) => {
                // All that is on a file system is looked at again with its place, once that is mounted.
                let place = self.dir.unmounted_above(path);
                let path = place.as_ref().unwrap_or(path);
                self.announce.is_unreadable(path, &error);
                let now = Instant::now();
                let before = self.unreadable.get(path);
                let unseen = Unseen {
                    since: before.map_or(now, |before| before.since),
                    forbidden: error.kind() == ErrorKind::PermissionDenied,
                    is_gone: false,
                    pause: before.map_or(AFTER_IO_ERROR_MIN, |before| (before.pause * 2).min(AFTER_IO_ERROR_MAX)),
                };
                self.unreadable.insert(path.clone(), unseen);
                self.look_later(path, now + unseen.pause);
            }
            Err(trouble) => return Err(trouble),
        }
        Ok(None)
    }

    /// Whether what is not where it was may be where we could not look just now. What may not be read is not waited for, nor what
    /// has been in this state for long: others would never be deleted.
    fn may_have_moved_unseen(&self) -> bool {
        let may_be_there =
            |unseen: &Unseen| !unseen.forbidden && !unseen.is_gone && unseen.since.elapsed() < UNSEEN_MAX;
        self.unreadable.values().any(may_be_there)
    }

    /// Notes that a look at it succeeded.
    pub(super) fn readable(&mut self, path: &RelPath) {
        if self.unreadable.remove(path).is_some() {
            self.announce.is_readable(path);
        }
    }

    fn look_later(&mut self, path: &RelPath, at: Instant) {
        self.later.entry(path.clone()).and_modify(|earlier| *earlier = at.min(*earlier)).or_insert(at);
    }

    /// Announces what happened to the file at `path`. Folders were looked at in the survey.
    fn look_at(&mut self, path: &RelPath, survey: Survey, at_once: bool) -> Result<(), Trouble> {
        let kind = self.kind_of(path)?;
        let found = match &kind {
            Kind::File(seen) => Some(seen.id()),
            _ => None,
        };
        if survey.is_outdated(found) {
            self.dirty.insert(path.clone());
            return Ok(());
        }
        let Kind::File(seen) = kind else {
            self.announce.look_again(path);
            if let Some(unseen) = self.unreadable.get_mut(path) {
                unseen.is_gone = true;
            }
            if self.files.get(path).is_some() && self.may_have_moved_unseen() {
                return Err(Trouble::Later(Instant::now() + AFTER_IO_ERROR_MIN));
            }
            return self.delete(path);
        };
        for file in self.files.below(path) {
            self.delete(&file)?;
        }
        self.look_at_file(path, &seen, survey, at_once)
    }

    fn kind_of(&self, path: &RelPath) -> io::Result<Kind> {
        if path.is_reserved() {
            return Ok(Kind::Other);
        }
        match self.dir.metadata(path)? {
            Some(meta) if meta.is_file() => Ok(Kind::File(Seen::of(&meta))),
            Some(meta) if meta.is_dir() => Ok(if self.enters(path)? { Kind::Folder } else { Kind::Other }),
            Some(_) => {
                log::debug!("not replicated, neither file nor folder: {path}");
                Ok(Kind::Other)
            }
            None => self.check_mounts(path).map(|()| Kind::Other),
        }
    }

    /// Whether what is in a folder may be replicated.
    fn enters(&self, folder: &RelPath) -> io::Result<bool> {
        Ok(self.announce.enters(folder) && !self.dir.is_lost_and_found(folder)?)
    }

    /// Looks at the window if enough was announced since, or anything at all before a round (`u64::MAX`).
    fn pace(&mut self, announced: u64) {
        self.unpaced = self.unpaced.saturating_add(announced);
        if self.unpaced >= self.pace_bytes {
            self.unpaced = 0;
            self.announce.pace();
        }
    }
}

/// Folders without a watch are looked at this often, with a pause of so many times what that took.
const POLL_EVERY_MIN: Duration = Duration::from_secs(1);
const POLL_PAUSE: u32 = 9;

/// What cannot be looked at.
#[derive(Clone, Copy)]
struct Unseen {
    since: Instant,
    /// This user may not read it.
    forbidden: bool,
    /// By now it is known that no file is there.
    is_gone: bool,
    /// Before it is tried again.
    pause: Duration,
}

/// For so long nothing is taken for gone that may have been moved to where we cannot look.
const UNSEEN_MAX: Duration = Duration::from_secs(60);

/// What is at a path.
enum Kind {
    File(Seen),
    Folder,
    /// Nothing, or something that is not replicated.
    Other,
}

/// What the survey of a round found at a path.
#[derive(Clone, Copy)]
struct Survey {
    found: Option<Identity>,
    /// Whether another file at the path now is left to the next round.
    patient: bool,
}

impl Survey {
    fn is_outdated(self, found: Option<Identity>) -> bool {
        self.patient && self.found != found
    }
}

/// Rounds in one go after which a file that is another one at each look is announced as it is.
const PATIENT_ROUNDS: u32 = 8;
