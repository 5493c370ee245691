//! The `digests` thread: digests what was announced, so that little is left to be read when a follower comes; and keeps that on disk.
//!
//! A file is digested when it has been at rest for a while, one that grows by whole chunks. Both are mostly in the page cache then. Whoever writes files has
//! announced by then what it did to them: how a file looks that is at rest is how what was announced looks. It takes about a tenth of a core at most, and so a
//! tenth of what a disk can do: what it has not come to when a follower asks is read for that one.
//!
//! Digests that outlive the process are of a file that looked the same for so long before it was read that every change since shows, and after. What was read of it
//! earlier, while it grew, is taken for what it was: its host announces what it changes of it within seconds, and of what programs change the watcher has to have found that all of it is
//! announced ([`ChunkCache::proven`](crate::index::chunks::ChunkCache::proven)). Who changes files so that nobody can see it deceives the digests, here as in memory.
//!
//! It takes the lock of the stream for portions of the index, opens files as they were announced or not at all, and notes what it reads where the directory is watched: by that followers are
//! found equal. It ends with the leader, after it has written what it knows.

use std::io::{self, ErrorKind};
use std::time::Duration;

use crate::digests::file::{self, Who};
use crate::digests::{SETTLED_COARSE, Stamps, digested_bytes_max, now};
use crate::error::Error;
use crate::leader::core::Core;
use crate::leader::core::id_of;
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

/// Not before so long after the start.
const WRITE_FIRST: Duration = Duration::from_secs(5);
/// At least so long between two writes of what is known, and so many times what the last one took.
const WRITE_EVERY: Duration = Duration::from_secs(60);
const WRITE_REST: u32 = 50;

/// The thread's life.
pub(in crate::leader) fn run(core: &Core) {
    let mut digester = Digester::new(core);
    while !core.ended.wait(LOOK_EVERY) {
        digester.look();
        digester.digest();
        digester.write_in_time();
    }
    digester.write();
}

struct Digester<'a> {
    core: &'a Core,
    /// What changed up to here is in `due`, or was digested.
    since: StreamPosition,
    /// Files that changed, and when that was seen last.
    due: HashMap<RelPath, Instant>,
    works_since: Option<Instant>,
    /// What [`ChunkCache::learned`](crate::index::chunks::ChunkCache::learned) was when it was last written.
    written: u64,
    write_at: Instant,
}

impl<'a> Digester<'a> {
    fn new(core: &'a Core) -> Self {
        let write_at = Instant::now() + WRITE_FIRST;
        Self { core, since: StreamPosition(0), due: HashMap::default(), works_since: None, written: 0, write_at }
    }

    fn look(&mut self) {
        let changes = self.core.stream.changes(self.since);
        self.since = changes.as_of;
        let now = Instant::now();
        for (path, version) in changes.files {
            if version.exists() && !self.core.chunks.is_kept(version.generation) {
                self.due.insert(path, now);
            } else {
                self.due.remove(&path);
            }
        }
    }

    fn digest(&mut self) {
        // Since the last time it has rested.
        self.works_since = None;
        let due: Vec<_> = self.due.iter().map(|(path, seen)| (path.clone(), *seen)).collect();
        for (path, seen) in due {
            if self.core.ended.is_set() {
                return;
            }
            let is_at_rest = seen.elapsed() > self.core.chunks.rest();
            // Whoever needs it will find the same, and say so.
            if let Err(error) = self.digest_file(&path, is_at_rest, now()) {
                log::debug!("{path} cannot be digested now: {error}");
            }
            if is_at_rest {
                self.due.remove(&path);
            }
            if self.rest().is_err() {
                return;
            }
            self.write_in_time();
        }
    }

    /// Others digest as well, for followers.
    fn write_in_time(&mut self) {
        let began = Instant::now();
        if began >= self.write_at && self.core.chunks.learned() > self.written {
            self.write();
            self.write_at = Instant::now() + WRITE_EVERY.max(began.elapsed() * WRITE_REST);
        }
    }

    /// `now` is the time, in nanoseconds since 1970.
    fn digest_file(&mut self, path: &RelPath, is_at_rest: bool, now: i64) -> io::Result<()> {
        let core = self.core;
        let (version, announced) = core.stream.announced(path);
        let whole = version.len - version.len % CHUNK_BYTES;
        let is_done = match is_at_rest {
            true => core.chunks.is_kept(version.generation),
            false => core.chunks.digested(version.generation) >= whole,
        };
        if !version.exists() || is_done || version.len > digested_bytes_max() {
            return Ok(());
        }
        let Some(file) = core.dir.root().file(path)? else { return Ok(()) };
        if announced != Some(id_of(&file.metadata()?)) {
            return Ok(());
        }
        let (stamps, len) = (Stamps::of_file(&file)?, if is_at_rest { version.len } else { whole });
        let reading = file.try_clone()?;
        let noted = core.notes(path, version);
        core.chunks.digests(|| Ok(Some(reading)), version.generation, len, noted, &mut |_| self.rest())?;
        if is_at_rest && stamps.settled_for(SETTLED_COARSE, now) && Stamps::of_file(&file)? == stamps {
            core.chunks.is_at_rest(version.generation, stamps);
        }
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
        self.written = self.core.chunks.learned();
        match self.core.keep_digests() {
            Ok(files) => log::debug!("the digests of {files} files are kept"),
            Err(error) => {
                log::warn!("cannot keep the digests of the files; they are read again after a restart: {error}")
            }
        }
    }
}

impl Core {
    /// Writes what is known of the files, for the next start. Returns of how many.
    fn keep_digests(&self) -> Result<u64, Error> {
        let mut writer = file::Writer::begin(self.dir.own(), Who::Leader)?;
        let mut files = 0;
        for (path, version) in self.stream.all().files {
            if self.chunks.is_kept(version.generation)
                && let (now, Some(file)) = self.stream.announced(&path)
                && now.generation == version.generation
                && let Some(known) = self.chunks.kept(version.generation, file)
            {
                files += u64::from(writer.push(&path, &known.stamps, &known)?);
            }
        }
        // What a leader keeps is not believed after a loss of power: nothing has to be synced for it.
        writer.finish()?;
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::LeaderConfig;
    use crate::leader::Leader;
    use crate::types::Secret;

    const TEN_SECONDS: i64 = 10_000_000_000;

    fn open(dir: &std::path::Path) -> Leader {
        Leader::open(LeaderConfig::new(dir, Secret::new("secret").unwrap())).unwrap()
    }

    fn digest(leader: &Leader, name: &str, now: i64) {
        let mut digester = Digester::new(&leader.core);
        digester.digest_file(&RelPath::new(name).unwrap(), true, now).unwrap();
    }

    fn is_kept(leader: &Leader, name: &str) -> bool {
        let (version, _) = leader.core.stream.announced(&RelPath::new(name).unwrap());
        leader.core.chunks.is_kept(version.generation)
    }

    #[test]
    fn what_was_digested_at_rest_outlives_the_leader_and_what_looks_changed_does_not() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["same", "changed", "young"] {
            fs::write(dir.path().join(name), "content").unwrap();
        }
        let leader = open(dir.path());
        for name in ["same", "changed"] {
            digest(&leader, name, now() + TEN_SECONDS);
        }
        digest(&leader, "young", now());
        assert_eq!(["same", "changed", "young"].map(|name| is_kept(&leader, name)), [true, true, false]);
        // Not before the file system's clock has gone on.
        while leader.core.keep_digests().unwrap() < 2 {
            std::thread::yield_now();
        }
        drop(leader);
        fs::write(dir.path().join("changed"), "CONTENT").unwrap();
        let leader = open(dir.path());
        assert_eq!(["same", "changed", "young"].map(|name| is_kept(&leader, name)), [true, false, false]);
    }

    #[test]
    fn a_file_of_which_only_a_part_is_ever_told_is_not_digested() {
        let dir = tempfile::tempdir().unwrap();
        fs::File::create(dir.path().join("long")).unwrap().set_len(digested_bytes_max() + 1).unwrap();
        let leader = open(dir.path());
        digest(&leader, "long", now() + TEN_SECONDS);
        assert!(!is_kept(&leader, "long"));
    }

    #[test]
    fn another_file_in_the_place_of_the_announced_one_is_not_digested() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "announced").unwrap();
        let leader = open(dir.path());
        fs::write(dir.path().join("b"), "not announced").unwrap();
        fs::rename(dir.path().join("b"), dir.path().join("a")).unwrap();
        digest(&leader, "a", now() + TEN_SECONDS);
        assert!(!is_kept(&leader, "a"));
    }
}
