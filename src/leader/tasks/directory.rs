//! The `directory` thread: whether the data directory is still there, and what of it can be read again; and what is kept
//! there since it was a copy is dropped in time.
//!
//! Once a second it compares the directory's path with the one that is open. Should they differ, nothing more is announced: what
//! then looks gone was not deleted. It takes no lock but those of announcing, and ends with the leader.

use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use std::time::Duration;

use crate::datadir::{self, FoundFile, Visitor};
use crate::error::{AppendError, Error};
use crate::follower::{self, Bounds};
use crate::leader::core::Core;
use crate::protocol::extension::Attributes;
use crate::reader::Reader;
use crate::sys::time::Instant;
use crate::types::{RelPath, StreamPosition};
use crate::uncached::READ_AT_ONCE_BYTES;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What took long to find unreadable is left alone for so many times as long.
const TRY_PAUSE: u32 = 9;

/// How often it is looked what the directory, which was a copy, has kept for long enough.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

/// The thread's life.
pub(in crate::leader) fn run(core: &Arc<Core>) {
    let mut expired: Option<Instant> = None;
    while !core.ended.wait(LOOK_EVERY) {
        if let Some(how) = core.dir.root().is_lost() {
            let _ = core.lost.set(how);
            // Before anything that is not there can be announced as gone.
            core.close_at_once();
            log::error!("{}", Error::DirectoryLost { dir: core.dir.path().to_owned(), how });
            return;
        }
        // Before anybody asks: what was never seen mounted is not missed.
        if let Err(error) = core.dir.root().look_at_mounts() {
            log::debug!("what is mounted below {} is not known: {error}", core.dir.path().display());
        }
        if expired.is_none_or(|at| at.elapsed() >= EXPIRE_EVERY) {
            let bounds = Bounds { age: core.config.keep, bytes: core.config.keep_bytes };
            if let Err(error) = follower::expire(core.dir.path(), bounds) {
                log::warn!("cannot drop what was kept for long enough: {error}");
            }
            expired = Some(Instant::now());
        }
        for path in core.unreadable.due() {
            core.try_again(&path);
        }
        for path in core.unreadable.kept() {
            core.settle_kept(&path);
        }
    }
}

impl Core {
    /// Announces what could not be read, if it can be now.
    fn try_again(&self, path: &RelPath) {
        let (began, noted) = (Instant::now(), self.noted(path));
        let found = match self.dir.root().metadata(path) {
            Ok(Some(meta)) if meta.is_dir() => self.read_folder(path),
            Ok(Some(meta)) if meta.is_file() && !self.excludes(path) => self.read_file(path),
            // The host is about to say what became of it.
            Ok(None) if self.stream.version(path).exists() => Err(ErrorKind::NotFound.into()),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = found {
            self.cannot_read(path, &error);
            return self.unreadable.put_off(path, Instant::now() + began.elapsed() * TRY_PAUSE);
        }
        self.can_read(path, noted);
    }

    /// Has followers delete what they kept, if it is gone.
    fn settle_kept(&self, path: &RelPath) {
        let settled = match self.dir.root().metadata(path) {
            Ok(Some(meta)) if meta.is_file() => self.stream.version(path).exists(),
            Ok(_) => self.stream.delete_kept(path).is_ok(),
            Err(_) => false,
        };
        if settled {
            self.unreadable.forget_kept(path);
        }
    }

    /// All of it: announced is what can be sent.
    fn read_file(&self, path: &RelPath) -> io::Result<()> {
        let Some(file) = self.dir.root().file(path)? else { return Err(ErrorKind::NotFound.into()) };
        let (mut file, mut buffer) = (Reader::uncached(file), vec![0; READ_AT_ONCE_BYTES]);
        while !self.ended.is_set() && file.read(&mut buffer)? > 0 {}
        let _one_at_a_time = self.file_locks.of(path).lock();
        // Who looks whether the directory is there must not wait for a follower.
        match self.announce_locked(path, false) {
            Err(AppendError::Io { source, .. }) => Err(source),
            Err(AppendError::WouldBlock) => Err(ErrorKind::WouldBlock.into()),
            Ok(_) | Err(AppendError::NotReplicated(_)) => Ok(()),
            // It was not announced, and will not be: who lacks something of it goes on lacking it.
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// What is in a folder that was not known because of it.
    fn read_folder(&self, path: &RelPath) -> io::Result<()> {
        let mut found = Unknown { core: self, files: Vec::new() };
        datadir::walk(self.dir.root(), Some(path), &mut found).map_err(io_of)?;
        let new = found.files.iter().filter(|file| !self.stream.version(file).exists());
        new.for_each(|file| {
            if let Err(error) = self.read_file(file) {
                self.cannot_read(file, &error);
            }
        });
        Ok(())
    }

    /// What is known before a file that is noted as unreadable is announced: how often it was, and where the stream is.
    pub(in crate::leader) fn noted(&self, path: &RelPath) -> Option<(u64, StreamPosition)> {
        self.unreadable.times(path).map(|times| (times, self.stream.position()))
    }

    /// Notes that what is at `path`, or that it is gone, is known and was announced after it was `noted`.
    pub(in crate::leader) fn can_read(&self, path: &RelPath, noted: Option<(u64, StreamPosition)>) {
        let Some((times, since)) = noted else { return };
        // Whoever was not sent something of it has all of it once it has what was announced so far. But for those who could not be sent that: they are
        // noted before the file is, so that it stays noted and is announced once more.
        let position = self.stream.position();
        let followers = self.followers.lock().clone();
        followers.iter().for_each(|follower| follower.mended(path, since, position));
        self.unreadable.clear(path, times);
        followers.iter().for_each(|follower| self.passed(follower));
    }

    /// Notes that nobody knows what is at `path`, or in it.
    pub(in crate::leader) fn cannot_read(&self, path: &RelPath, error: &io::Error) {
        self.unreadable.note(self.dir.path(), path, error, false);
    }
}

/// What the system said.
pub(in crate::leader) fn io_of(error: Error) -> io::Error {
    match error {
        Error::Io { source, .. } => source,
        error => io::Error::other(error),
    }
}

struct Unknown<'a> {
    core: &'a Core,
    files: Vec<RelPath>,
}

impl Visitor for Unknown<'_> {
    fn folder(&mut self, path: &RelPath, _: Attributes) -> bool {
        !self.core.exclude.folder(path)
    }

    fn unseen(&mut self, path: &RelPath, error: Error) -> Result<(), Error> {
        self.core.cannot_read(path, &io_of(error));
        Ok(())
    }

    fn file(&mut self, file: FoundFile) {
        if !self.core.exclude.file(&file.path) {
            self.files.push(file.path);
        }
    }
}
