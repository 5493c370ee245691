//! The `sync` thread: durability, for all commits that came meanwhile at once.
//!
//! One turn: put "make durable" into the stream, push it, sync our own files while followers sync theirs, say so. The next turn
//! begins after that, so the pace is that of our own disk, and the slower that is, the more commits share a turn.
//!
//! What has to be synced is what the index noted as changed in the turn: contents with `fdatasync`, folders in which
//! names came or went with `fsync`; the file system of the directory, and those mounted below it, with `syncfs` where that is less work (`follower/flush.rs` has the
//! measurements), and in the first turn, which also covers what was found at the start: before it nothing is durable, not even that.
//!
//! # After a failure
//!
//! A failed sync latches: the system may have dropped what it could not write, and would not say so again, so nothing is called durable
//! any more. A failure is told to whoever syncs first: if that was the host, it knows.
//!
//! The latch ends with the leader, and the page cache does not: to whoever starts in the directory next it shows what never reached the
//! disk, and syncs succeed. So the directory is marked ([`OwnFolder::mark_suspect`]) before anybody is told of the failure. Then
//! nobody leads from it, whoever follows with it copies all files before it compares them (`follower/mend.rs`; all, because files that
//! change after the failure are synced by nobody and may fail as well, while only this leader knows which these are), and a
//! node hands over to another one that is in sync.
//!
//! The mark is made when the sync has failed, and not ahead of it: one from before would be found, too, after a leader without fault was
//! killed. It needs no disk: it has to outlive this process, and no loss of power, after which the cache is empty and what is read
//! is what is on the disk. So the disk that has just failed takes no part in it. Where not even the page cache takes it (no descriptor
//! is left, or no inode), that is said and tried again each second. A file system that has become read-only takes none, and lets
//! nobody write either until it was unmounted, and its cache is gone.
//!
//! What is not covered: a leader that is killed after the system has told it of a failure and before the mark, some microseconds
//! later, is there. That matters where the failed call was a `syncfs`: of a failed `fdatasync` the next leader's first turn is told, because
//! it is a `syncfs`. A process that is killed *within* a `syncfs` ends when that does, and nobody hears what came of it.
//! And so is whoever asks second where another process's `syncfs` was told first.
//!
//! # Names
//!
//! What is to be durable is content, and a name is no more than where to look for it: it may come to mean another file at any
//! time, and on disk it does before anybody announces it. So what is found under a name is taken for the content only if it is the
//! file that was announced as such, and a folder for the one in which names changed only if such a file is in it. Whatever cannot
//! be told so is left to `syncfs`, which covers what was written and renamed before it, under whatever name. It falls to the host
//! that no name is given to what is not durable in place of what is: it syncs a file before it renames it over another.
//!
//! No lock is held while it syncs. It ends with [`Commits::stop`], after its turn.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Commits;
use crate::flusher::Flusher;
use crate::index::Unsynced;
use crate::leader::stream::Stream;
use crate::mounts::Mounts;
use crate::own_folder::OwnFolder;
use crate::seldom::Seldom;
use crate::sys::fd::{AsFd, BorrowedFd, OwnedFd};
use crate::sys::fs::File;
use crate::sys::rustix;
use crate::sys::rustix::fs::{Mode, OFlags};
use crate::sys::time::Instant;
use crate::types::{RelPath, StreamPosition};

/// At most so many files are synced one by one, those that came or went included; for more, the whole file system is.
const SYNCED_SINGLY_MAX: usize = 8;

/// After a sync could not be begun, or a mark not be made.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// The directory, as far as it is to be made durable.
pub(in crate::leader) struct Syncer {
    root: PathBuf,
    /// `syncfs` tells of failures since this was opened.
    folder: OwnedFd,
    /// Other file systems that files may be on.
    mounts: Mounts,
    flusher: Arc<dyn Flusher>,
    cannot_begin: Seldom,
    cannot_mark: Seldom,
}

impl Commits {
    /// The thread's life.
    pub(in crate::leader) fn run_syncer(&self, stream: &Arc<Stream>, syncer: &Syncer, own: &OwnFolder) {
        let mut failed = false;
        while let Some(turn) = self.wait_to_sync() {
            // Both fail only when the stream is closed: nothing can be asked for then.
            if turn == Turn::Ask || failed {
                // Also where this disk has failed: followers may have all that is left, and come to be in sync by making it durable.
                // A commit asks again: it takes what is here, too.
                if stream.request_durable().is_err() {
                    return;
                }
                stream.push();
                continue;
            }
            let Ok((position, unsynced)) = stream.make_durable() else { return };
            self.asked(position);
            stream.push();
            let Some(synced) = self.sync(syncer, stream, &unsynced) else { return };
            match synced {
                Ok(()) => {
                    let mut state = self.state.lock();
                    state.rule.local_durable(position.0);
                    self.changed(state);
                }
                Err(error) => {
                    failed = true;
                    self.sync_failed(&error, syncer, own);
                }
            }
        }
    }

    /// A sync has failed: marks the directory, and tells who waits. Where it cannot be marked, who waits is told all the same, and it is
    /// tried until it can be, or all is over.
    fn sync_failed(&self, error: &io::Error, syncer: &Syncer, own: &OwnFolder) {
        self.unmarked.store(true, Ordering::Release);
        let mut said = false;
        loop {
            let marked = own.mark_suspect(&*syncer.flusher);
            self.unmarked.store(marked.is_err(), Ordering::Release);
            let mut state = self.state.lock();
            state.local_sync_failed = true;
            self.changed(state);
            if !std::mem::replace(&mut said, true) {
                log::error!(
                    "cannot make the files of {} durable: {error}; nothing is confirmed as durable any more, and nobody leads from them \
                     again before they were mended by following: see what is wrong with the disk",
                    syncer.root.display()
                );
            }
            let Err(error) = marked else { return };
            if let Some(unsaid) = syncer.cannot_mark.is_due() {
                log::error!(
                    "the failed sync leaves no mark, tried again each second: {error}{unsaid}; have this process go on until it does: \
                     started anew in this directory it would call durable what is on no disk"
                );
            }
            if !self.wait_to_try_again() {
                return;
            }
        }
    }

    /// `false`: it is over.
    fn wait_to_try_again(&self) -> bool {
        let again = Instant::now() + TRY_AGAIN;
        let mut state = self.state.lock();
        while !state.ended && !self.to_sync.wait_until(&mut state, again).timed_out() {}
        !state.ended
    }

    /// Syncs once it can be begun. `None`: it is over. Not to be able to begin says nothing of the disk.
    fn sync(&self, syncer: &Syncer, stream: &Stream, unsynced: &Unsynced) -> Option<io::Result<()>> {
        loop {
            let error = match syncer.begin(stream, unsynced) {
                Ok(begun) => return Some(syncer.sync(&begun)),
                Err(error) => error,
            };
            if let Some(unsaid) = syncer.cannot_begin.is_due() {
                let root = syncer.root.display();
                log::warn!("cannot make the files of {root} durable, tried again each second: {error}{unsaid}");
            }
            if !self.wait_to_try_again() {
                return None;
            }
        }
    }

    /// Whoever counted when the turn began is asked to make durable all up to `position`.
    pub(super) fn asked(&self, position: StreamPosition) {
        let mut state = self.state.lock();
        if !state.counted_anew {
            state.requested = position.0;
        }
    }

    /// `None`: it is over.
    pub(super) fn wait_to_sync(&self) -> Option<Turn> {
        let mut state = self.state.lock();
        while !state.sync_wanted && !state.ask_wanted && !state.ended {
            self.to_sync.wait(&mut state);
        }
        let turn = if state.sync_wanted { Turn::Sync } else { Turn::Ask };
        (state.sync_wanted, state.ask_wanted, state.counted_anew) = (false, false, false);
        (!state.ended).then_some(turn)
    }
}

/// What is to be made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// What followers have, so that one of them comes to be in sync. This host's files are nobody's concern, and other file systems
    /// below them are not held open for it.
    Ask,
    /// That, and what is here.
    Sync,
}

/// What is about to be synced.
enum Begun {
    Singly(Singly),
    /// The directory's file system, and those below it.
    FileSystems(Vec<Arc<OwnedFd>>),
}

/// What is synced one by one.
#[derive(Default)]
struct Singly {
    files: Vec<OwnedFd>,
    /// By their names, `""` is the root.
    folders: BTreeMap<String, OwnedFd>,
}

impl Syncer {
    pub(in crate::leader) fn new(root: &Path, flusher: Arc<dyn Flusher>) -> io::Result<Self> {
        let folder = File::open(root)?.into();
        let (cannot_begin, cannot_mark) = (Seldom::default(), Seldom::default());
        Ok(Self { root: root.to_owned(), folder, mounts: Mounts::below(root), flusher, cannot_begin, cannot_mark })
    }

    /// Opens what is to be synced. `Err`: that cannot be done now (no descriptor is left, say), and nothing was synced.
    fn begin(&self, stream: &Stream, unsynced: &Unsynced) -> io::Result<Begun> {
        match self.find(stream, unsynced) {
            Some(singly) => Ok(Begun::Singly(singly)),
            None => self.mounts.handles().map(Begun::FileSystems),
        }
    }

    fn sync(&self, begun: &Begun) -> io::Result<()> {
        match begun {
            Begun::Singly(singly) => {
                singly.files.iter().try_for_each(|file| self.flusher.file(file.as_fd()))?;
                singly.folders.values().try_for_each(|folder| self.flusher.folder(folder.as_fd()))
            }
            Begun::FileSystems(mounted) => {
                self.flusher.file_system(self.folder.as_fd())?;
                mounted.iter().try_for_each(|mount| self.flusher.file_system(mount.as_fd()))
            }
        }
    }

    /// Opens what is to be synced one by one. `None`: that is too much, or it is not sure that it would be all.
    fn find(&self, stream: &Stream, unsynced: &Unsynced) -> Option<Singly> {
        if unsynced.others || unsynced.files() > SYNCED_SINGLY_MAX {
            return None;
        }
        let changed: BTreeSet<&str> = unsynced.names().iter().map(folder_of).collect();
        let mut found = Singly::default();
        for (path, id) in stream.syncing(unsynced)? {
            let folder = self.open(self.folder.as_fd(), folder_of(&path), OFlags::DIRECTORY)?;
            let name = path.as_str().rsplit('/').next()?;
            let file = self.open(folder.as_fd(), name, OFlags::NOFOLLOW | OFlags::NONBLOCK)?;
            let stat = rustix::fs::fstat(&file).ok()?;
            if (stat.st_dev, stat.st_ino) != id {
                return None;
            }
            found.files.push(file);
            if changed.contains(folder_of(&path)) {
                found.folders.insert(folder_of(&path).to_owned(), folder);
            }
        }
        if changed.iter().any(|folder| !found.folders.contains_key(*folder)) {
            return None;
        }
        for folder in changed {
            // One that was made for a file is new in the one above it.
            for (at, _) in folder.match_indices('/').chain((!folder.is_empty()).then_some((0, ""))) {
                if !found.folders.contains_key(&folder[..at]) {
                    let above = self.open(self.folder.as_fd(), &folder[..at], OFlags::DIRECTORY)?;
                    found.folders.insert(folder[..at].to_owned(), above);
                }
            }
        }
        Some(found)
    }

    /// `None` for whatever reason: another way is found then.
    fn open(&self, at: BorrowedFd<'_>, name: &str, flags: OFlags) -> Option<OwnedFd> {
        let name = if name.is_empty() { "." } else { name };
        rustix::fs::openat(at, name, flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).ok()
    }
}

/// The folder that a file is in, `""` for the root.
fn folder_of(path: &RelPath) -> &str {
    path.as_str().rsplit_once('/').map_or("", |(folder, _)| folder)
}

#[cfg(test)]
mod tests;
