//! What becomes of a file that cannot be read as it was announced. Part of [`Ranges`].

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::Ranges;
use crate::error::Error;
use crate::index::Version;
use crate::leader::peers::gone::gone;
use crate::leader::peers::status::EvictionReason;
use crate::reader::Reader;
use crate::sys::fs::Metadata;
use crate::sys::thread;
use crate::types::{RelPath, StreamPosition};

/// Pauses before a file is opened once more that could not be: twice as long each time, a second in all.
const OPEN_PAUSE_MIN: Duration = Duration::from_millis(8);
const OPEN_PAUSE_MAX: Duration = Duration::from_millis(512);

impl Ranges<'_> {
    /// Lets the follower go, because this file cannot be read and it has to stay as it is.
    pub(in crate::leader::sync) fn let_go<T>(&self, path: RelPath) -> Result<T, Error> {
        self.follower.evict_at(EvictionReason::Unreadable(path), self.core.stream.position());
        Err(gone())
    }

    /// Notes that nothing is added to a file before it comes whole; `has`: the follower surely has something under that name. Returns whether that is new.
    pub(super) fn spoil(&self, path: &RelPath, has: bool) -> bool {
        let mut spoiled = self.follower.spoiled.lock();
        let before = spoiled.len();
        spoiled.entry(path.clone()).or_insert(has);
        spoiled.len() > before
    }

    /// What the follower has of a file, or lacks, stays as it is from here on, until all of it comes.
    pub(in crate::leader) fn void(&mut self, path: &RelPath, version: Version, error: &io::Error) {
        // Before anything that comes after it can be acknowledged.
        self.follower.void(path, self.before, self.core.stream.position());
        if error.kind() != ErrorKind::UnexpectedEof {
            self.core.cannot_read(path, error);
        }
        self.spoil(path, false);
        self.mend(path, version);
    }

    /// Opens the file if it is still what `version` says. `None`: it is not, or cannot be opened, which is noted then.
    ///
    /// Blocks a little if that may pass.
    pub(in crate::leader) fn open(&self, path: &RelPath, version: Version) -> Result<Option<Reader>, Error> {
        let mut pause = OPEN_PAUSE_MIN;
        loop {
            match self.core.open_announced(path, version.generation, version.len) {
                Ok(file) => {
                    let file = file.map(if self.in_bulk { Reader::uncached } else { Reader::new });
                    return Ok(file.map(|file| file.noted(self.core.notes(path, version))));
                }
                Err(error) if pause > OPEN_PAUSE_MAX || self.may_last(path, &error) => {
                    self.core.cannot_read(path, &error);
                    return Ok(None);
                }
                // Out of descriptors or memory, perhaps.
                Err(_) => thread::park_timeout(pause),
            }
            pause *= 2;
            if self.follower.has_ended() {
                return Err(gone());
            }
        }
    }

    /// Whether what keeps a file from being opened does not pass in a moment.
    fn may_last(&self, path: &RelPath, error: &io::Error) -> bool {
        error.kind() == ErrorKind::PermissionDenied || self.core.dir.root().unmounted_above(path).is_some()
    }

    /// Announces a file anew that is not on disk what the index believes it to be, unless the index knows by now. What was void
    /// at the follower is not once it has all up to where this ends.
    ///
    /// Of a file that cannot be read nothing is known: it is announced when it can be.
    pub(in crate::leader) fn mend(&self, path: &RelPath, believed: Version) {
        if self.core.unreadable.is_noted_again(path) {
            return;
        }
        let before = self.core.stream.position();
        let unread = self.announce_anew(path, believed);
        if unread.as_ref() != Some(path) {
            self.follower.mended(path, before, self.core.stream.position());
            self.core.passed(self.follower);
        }
    }

    /// A follower that joins lacks a file, or part of it, which was not sent. What may not be read is as good as excluded.
    pub(in crate::leader) fn joins_without(&self, path: &RelPath) {
        self.spoil(path, true);
        if self.core.unreadable.is_noted(path) && !self.core.unreadable.is_forbidden(path) {
            self.follower.void(path, StreamPosition(0), self.core.stream.position());
        }
    }

    /// Files are the host's: one that is gone may be back in a moment, with its folder. So the doubt is noted *before* the look
    /// at the disk. What happens to the file after the look is for the host to announce, and when it looks, it finds the doubt
    /// as well ([`Leader::vouches_for`](crate::leader::Leader::vouches_for)).
    ///
    /// Returns where it is, if it cannot be looked at: it is void until it can.
    fn announce_anew(&self, path: &RelPath, believed: Version) -> Option<RelPath> {
        let stream = &self.core.stream;
        let (path, doubted) = stream.doubt(path, believed.generation)?;
        let found = match self.core.dir.root().metadata(&path) {
            Ok(found) => found.filter(Metadata::is_file).map(|meta| meta.len()),
            Err(error) => {
                // Before others can find that it can be read.
                self.follower.void(&path, self.before, stream.position());
                self.core.cannot_read(&path, &error);
                return Some(path);
            }
        };
        log::debug!("{path} could not be read as announced: of {} bytes there are now {found:?}", doubted.len);
        stream.mend(&path, doubted, found);
        None
    }
}
