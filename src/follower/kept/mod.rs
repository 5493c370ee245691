//! Kept, not destroyed: what the first sync of a connection deletes, overwrites or cuts is there for a while, in case the leader was
//! the wrong one.
//!
//! `.paceline/kept/TIME/NAME`, on the file system that the file is on, so that keeping it is a rename (what is deleted) or a second
//! link (what is replaced: its name is never missing). A symbolic link is kept as what it is. Of what a sync cuts off a file or patches in it, the range is copied, to
//! `NAME.from-OFFSET`, and durable before the file changes. Each sync has a time of its own, also two in one second, and a line in
//! `TIME.why` that says what was done to the files. What the stream deletes is not kept: nor what later
//! syncs of a connection do, which only bring what the stream would have.
//!
//! Bounded by age and by bytes, the oldest time dropped first, also while the directory leads; and whenever a disk is full, one time
//! after the other is dropped of what is kept on that disk before the follower waits. What does not fit the bounds, or cannot be
//! kept, is destroyed as it was before there was this, and counted in the log.
//!
//! Nothing here follows a symbolic link: names are resolved by [`Dir`]. Never replicated, and no part of the copy. No threads and no
//! locks: whoever writes here holds the directory's `.lock`.

mod folder;
mod restore;
mod times;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use self::restore::Kept;
use self::times::new_time;
#[cfg(feature = "fuzzing")]
pub(super) use self::times::{seconds_of as kept_at, shown as kept_name};
use super::dir::Dir;
use crate::error::Error;
use crate::flusher::SystemFlusher;
use crate::sys::hash::HashSet;
use crate::sys::rustix;
use crate::sys::rustix::fs::{AtFlags, OFlags};
use crate::sys::time::SystemTime;
use crate::types::{OWN_FOLDER, RelPath};

/// The name, within a folder of ours, of what is kept.
const KEPT: &str = "kept";

/// So many parts of one file, from one offset, have names.
const PARTS_MAX: u32 = 9;

/// The longest line that says why.
const WHY_BYTES_MAX: u64 = 1000;

/// What is kept, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) age: Duration,
    pub(crate) bytes: u64,
}

/// Drops what is kept in a directory beyond the bounds. Whoever calls holds its `.lock`.
pub(crate) fn expire(dir: &Path, bounds: Bounds) -> Result<(), Error> {
    let dir = Dir::open_flushed_by(dir, Arc::new(SystemFlusher))?;
    dir.note_mounts()?;
    dir.expire_kept(bounds)
}

/// How many files a sync did something to.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    deleted: u64,
    replaced: u64,
    parts: u64,
}

impl Counts {
    fn all(self) -> u64 {
        self.deleted + self.replaced + self.parts
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [(self.deleted, "deleted"), (self.replaced, "replaced"), (self.parts, "cut or changed in part")];
        let told: Vec<_> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(n, what)| format!("{n} {what}")).collect();
        f.write_str(&told.join(", "))
    }
}

/// Keeps what one sync takes away.
pub(super) struct Keeper<'a> {
    pub(super) dir: &'a Dir,
    bounds: Bounds,
    /// Since the first file.
    time: Option<String>,
    /// Kept in all.
    bytes: u64,
    counts: Counts,
    /// The names of parts: no files.
    parts: HashSet<RelPath>,
    /// Those that could not be kept.
    failed: u64,
    /// Those that do not fit.
    unfit: u64,
}

/// Where something is to be kept.
enum Place {
    At(RelPath),
    /// What was there before this sync is kept already.
    Kept,
    NoRoom,
}

impl<'a> Keeper<'a> {
    pub(super) fn new(dir: &'a Dir, bounds: Bounds) -> Self {
        let (counts, parts) = (Counts::default(), HashSet::default());
        Self { dir, bounds, time: None, bytes: 0, counts, parts, failed: 0, unfit: 0 }
    }

    /// Files and parts of files kept by this sync.
    pub(super) fn count(&self) -> u64 {
        self.counts.all()
    }

    /// Says in the log what there is now, and leaves word why.
    pub(super) fn report(&self) {
        if self.failed > 1 {
            log::warn!("{} files, or parts of files, could not be kept", self.failed);
        }
        if self.unfit > 0 {
            log::warn!(
                "{} files, or parts of files, were not kept: there is no room for them (--keep-bytes)",
                self.unfit
            );
        }
        if let Some(time) = self.time.as_ref().filter(|_| self.count() > 0) {
            if let Err(error) = self.dir.say_why(time, &self.counts.to_string()) {
                log::warn!("it could not be noted why it was kept: {error}");
            }
            log::warn!(
                "files, or parts of files, that were here and that the leader does not have are kept under {time}: {}; see \
                 paceline kept {}",
                self.counts,
                self.dir.path().display()
            );
        }
    }

    /// Takes a file away from its place. False: it could not be kept, and is still there, or it was not there.
    pub(super) fn take(&mut self, path: &RelPath) -> bool {
        let taken = self.kept(path, |dir, to| dir.move_aside(path, to));
        self.counts.deleted += u64::from(taken);
        taken
    }

    /// Takes a symbolic link away from its place. False: it could not be kept, and is still there.
    pub(super) fn take_link(&mut self, path: &RelPath) -> bool {
        let dir = self.dir;
        let len = match dir.parent(path, false) {
            Ok(Some(at)) => dir.target_at(&at).map_or(0, |target| target.len() as u64),
            _ => return false,
        };
        let taken = self.keep(&mut |keeper| keeper.place_of(path, len), len, |to| dir.move_aside(path, to)).is_some();
        self.counts.deleted += u64::from(taken);
        taken
    }

    /// Keeps a file that is about to be replaced.
    pub(super) fn link(&mut self, path: &RelPath) {
        let linked = self.kept(path, |dir, to| {
            let ((from, name), (folder, kept)) = (dir.parent_made(path)?, dir.parent_made(to)?);
            let linked = rustix::fs::linkat(from, name, folder, kept, AtFlags::empty());
            linked.map_err(|error| dir.failed("keep", path.as_str(), error))
        });
        self.counts.replaced += u64::from(linked);
    }

    /// Keeps a range that is about to be overwritten or cut off; it is durable when this returns.
    pub(super) fn range(&mut self, path: &RelPath, offset: u64, len: u64) {
        let dir = self.dir;
        let names = |number| match number {
            1 => format!("{path}.from-{offset}"),
            number => format!("{path}.from-{offset}-{number}"),
        };
        let kept = self.keep(&mut |keeper| keeper.place_of_part(path, len, &names), len, |to| {
            let copied = dir.copy_range(path, offset..offset + len, to);
            if copied.is_err() {
                // Half of it would pass for what was there, and be in the way of another try.
                dir.remove_own(to)?;
            }
            copied
        });
        self.counts.parts += u64::from(kept.is_some());
        self.parts.extend(kept);
    }

    fn kept(&mut self, path: &RelPath, keep: impl Fn(&Dir, &RelPath) -> Result<(), Error>) -> bool {
        let dir = self.dir;
        let len = match dir.open_file(path, OFlags::RDONLY).map(|file| file.map(|file| file.metadata())) {
            Ok(Some(Ok(meta))) => meta.len(),
            // It is not there, or whoever deletes it will say what is wrong.
            _ => return false,
        };
        self.keep(&mut |keeper| keeper.place_of(path, len), len, |to| keep(dir, to)).is_some()
    }

    /// Finds room for something, and keeps it; returns where. A full disk costs the oldest time that is kept on it, again and again.
    fn keep(
        &mut self,
        place_of: &mut dyn FnMut(&mut Self) -> Result<Place, Error>,
        len: u64,
        keep: impl Fn(&RelPath) -> Result<(), Error>,
    ) -> Option<RelPath> {
        if self.bounds.age.is_zero() {
            return None;
        }
        loop {
            let (place, full) = match place_of(self) {
                Ok(Place::At(to)) => match keep(&to) {
                    Ok(()) => {
                        self.bytes += len;
                        return Some(to);
                    }
                    Err(error) => (error, to.to_string()),
                },
                Ok(Place::Kept) => return None,
                Ok(Place::NoRoom) => {
                    self.unfit += 1;
                    return None;
                }
                Err(error) => (error, String::new()),
            };
            match place {
                Error::Io { source, .. } if is_full(&source) && self.drop_one(&self.dir.kept_tops_beside(&full)) => {}
                error => {
                    self.failed += 1;
                    if self.failed == 1 {
                        log::warn!("not kept: {error}");
                    }
                    return None;
                }
            }
        }
    }

    /// Where a file is kept.
    fn place_of(&mut self, path: &RelPath, len: u64) -> Result<Place, Error> {
        let Some(time) = self.room(len)? else { return Ok(Place::NoRoom) };
        let to = place(self.dir.file_system_of(path)?, &time, path.as_str())?;
        if self.parts.contains(&to) {
            return Err(self.dir.refused(path.as_str(), "has the name of a part of another file that is kept"));
        }
        Ok(if self.dir.is_anything(&to)? { Place::Kept } else { Place::At(to) })
    }

    /// Where a part of a file is kept: under a name that nothing has.
    fn place_of_part(&mut self, path: &RelPath, len: u64, names: &dyn Fn(u32) -> String) -> Result<Place, Error> {
        let Some(time) = self.room(len)? else { return Ok(Place::NoRoom) };
        let top = self.dir.file_system_of(path)?;
        for number in 1..=PARTS_MAX {
            let to = place(top, &time, &names(number))?;
            if !self.dir.is_anything(&to)? {
                return Ok(Place::At(to));
            }
        }
        Err(self.dir.refused(path.as_str(), "has a part that cannot be kept: its name is taken"))
    }

    /// The time of this sync, with room for so many bytes; `None`: there is none.
    fn room(&mut self, len: u64) -> Result<Option<String>, Error> {
        if len > self.bounds.bytes {
            return Ok(None);
        }
        let time = match &self.time {
            Some(time) => time.clone(),
            None => {
                let times = self.dir.kept_times()?;
                self.bytes = times.values().map(|time| time.bytes).sum();
                let names = self.dir.kept_names(&self.dir.kept_tops())?.into_keys().collect();
                let Some(time) = new_time(SystemTime::now(), &names) else { return Ok(None) };
                self.time.insert(time).clone()
            }
        };
        while self.bytes.saturating_add(len) > self.bounds.bytes {
            if !self.drop_one(&self.dir.kept_tops()) {
                return Ok(None);
            }
        }
        Ok(Some(time))
    }

    /// Drops the oldest time, other than this sync's own, of what is kept at these tops.
    fn drop_one(&mut self, tops: &[String]) -> bool {
        match self.dir.drop_oldest_kept(self.time.as_deref(), tops) {
            Ok(dropped) => {
                self.bytes = self.bytes.saturating_sub(dropped.unwrap_or_default());
                dropped.is_some()
            }
            Err(error) => {
                log::warn!("cannot drop what is kept: {error}");
                false
            }
        }
    }
}

/// Where `name` is kept, if `top` is the top of its file system.
fn place(top: &str, time: &str, name: &str) -> Result<RelPath, Error> {
    let below = name.strip_prefix(top).unwrap_or(name).trim_start_matches('/');
    let slash = if top.is_empty() { "" } else { "/" };
    Ok(RelPath::new(&format!("{top}{slash}{OWN_FOLDER}/{KEPT}/{time}/{below}"))?)
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// What is kept of one sync.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeptTime {
    /// Names in the data directory, and bytes.
    pub files: BTreeMap<String, u64>,
    /// All of them.
    pub bytes: u64,
    /// What the sync did to them, in words; `None` if it did not get to its end.
    pub why: Option<String>,
}

fn why_of(time: &str) -> Result<RelPath, Error> {
    Ok(RelPath::new(&format!("{OWN_FOLDER}/{KEPT}/{time}.why"))?)
}

#[cfg(test)]
mod tests;
