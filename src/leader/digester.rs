//! The `digests` thread: digests what was announced, so that little is left to be read when a follower comes; and keeps that on disk.
//!
//! A file is digested when it has been at rest for a while, one that grows by whole chunks. Both are mostly in the page cache then. Whoever writes files has
//! announced by then what it did to them: how a file looks that is at rest is how what was announced looks. It takes about a tenth of a core at most, and so a
//! tenth of what a disk can do: what it has not come to when a follower asks is read for that one.
//!
//! It takes the lock of the stream for portions of the index, opens files as they were announced or not at all, and notes nothing: what it reads nobody is sent. It
//! ends with the leader, after it has written what it knows.

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::Core;
use super::id_of;
use crate::digests::file::{self, Who};
use crate::digests::{SETTLED_COARSE, Stamps};
use crate::error::Error;
use crate::protocol::extension::CHUNK_BYTES;
use crate::sys::hash::HashMap;
use crate::sys::time::Instant;
use crate::types::{RelPath, StreamPosition};

/// How often it looks what has changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// For so many times as long as it works, it rests.
const REST: u32 = 9;

/// It rests when it has worked for so long.
const WORK: Duration = Duration::from_millis(2);

/// At least so long between two writes of what is known, and so many times what the last one took.
const WRITE_EVERY: Duration = Duration::from_secs(60);
const WRITE_REST: u32 = 50;

/// The thread's life.
pub(super) fn run(core: &Core) {
    let mut digester =
        Digester { core, since: StreamPosition(0), due: HashMap::default(), works_since: None, unwritten: 0 };
    let mut write_at = Instant::now() + WRITE_EVERY;
    while !core.ended.wait(LOOK_EVERY) {
        digester.look();
        digester.digest();
        if digester.unwritten > 0 && Instant::now() >= write_at {
            let began = Instant::now();
            digester.write();
            write_at = Instant::now() + WRITE_EVERY.max(began.elapsed() * WRITE_REST);
        }
    }
    digester.look();
    digester.write();
}

struct Digester<'a> {
    core: &'a Core,
    /// What changed up to here is in `due`, or was digested.
    since: StreamPosition,
    /// Files that changed, and when that was seen last.
    due: HashMap<RelPath, Instant>,
    works_since: Option<Instant>,
    /// Files digested and not written since.
    unwritten: u64,
}

impl Digester<'_> {
    fn look(&mut self) {
        let changes = self.core.stream.changes(self.since);
        self.since = changes.as_of;
        let now = Instant::now();
        for (path, version) in changes.files {
            if version.exists() {
                self.due.insert(path, now);
            } else {
                self.due.remove(&path);
            }
        }
    }

    fn digest(&mut self) {
        let due: Vec<_> = self.due.iter().map(|(path, seen)| (path.clone(), *seen)).collect();
        for (path, seen) in due {
            if self.core.ended.is_set() {
                return;
            }
            let is_at_rest = seen.elapsed() > SETTLED_COARSE;
            // Whoever needs it will find the same, and say so.
            if let Err(error) = self.digest_file(&path, is_at_rest) {
                log::debug!("{path} cannot be digested now: {error}");
            }
            if is_at_rest {
                self.due.remove(&path);
            }
        }
    }

    fn digest_file(&mut self, path: &RelPath, is_at_rest: bool) -> io::Result<()> {
        let core = self.core;
        let (version, announced) = core.stream.announced(path);
        let whole = version.len - version.len % CHUNK_BYTES;
        if !version.exists() || !is_at_rest && core.chunks.digested(version.generation) >= whole {
            return Ok(());
        }
        let Some(file) = core.dir.root().file(path)? else { return Ok(()) };
        if announced != Some(id_of(&file.metadata()?)) {
            return Ok(());
        }
        let (stamps, len) = (Stamps::of_file(&file)?, if is_at_rest { version.len } else { whole });
        core.chunks.digests(|| Ok(Some(file)), version.generation, len, &mut |_| self.rest())?;
        if is_at_rest && stamps.size == len {
            core.chunks.is_at_rest(version.generation, stamps);
        }
        self.unwritten += 1;
        Ok(())
    }

    /// Rests, if it has worked for long enough.
    fn rest(&mut self) -> io::Result<()> {
        let worked = self.works_since.get_or_insert_with(Instant::now).elapsed();
        if worked < WORK {
            return Ok(());
        }
        let ended = self.core.ended.wait(worked * REST);
        self.works_since = None;
        if ended { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
    }

    fn write(&mut self) {
        match self.core.keep_digests() {
            Ok(files) => log::debug!("the digests of {files} files are kept"),
            Err(error) => {
                log::warn!("cannot keep the digests of the files; they are read again after a restart: {error}")
            }
        }
        self.unwritten = 0;
    }
}

impl Core {
    /// Writes what is known of the files, for the next start. Returns of how many.
    fn keep_digests(&self) -> Result<u64, Error> {
        let mut writer = file::Writer::begin(self.dir.own(), Who::Leader)?;
        let mut files = 0;
        for (path, version) in self.stream.all().files {
            if let Some(known) = self.chunks.kept(version.generation) {
                files += u64::from(writer.push(&path, &known.stamps, &known)?);
            }
        }
        // What a leader keeps is not believed after a loss of power: nothing has to be synced for it.
        writer.finish()?;
        Ok(files)
    }
}
