//! Kept, not destroyed: what the first sync of a connection deletes, overwrites or cuts is there for a while, in case the leader was
//! the wrong one.
//!
//! `.paceline/kept/TIME/NAME`, on the file system that the file is on, so that keeping it is a rename (what is deleted) or a second
//! link (what is replaced: its name is never missing). Of what a sync cuts off a file or patches in it, the range is copied, to
//! `NAME.from-OFFSET`. Each sync has a time of its own, also two in one second. What the stream deletes is not kept: nor what later
//! syncs of a connection do, which only bring what the stream would have.
//!
//! Bounded by age and by bytes, the oldest time dropped first; and whenever a disk is full, one time after the other is dropped
//! before the follower waits. What does not fit the bounds, or cannot be kept, is destroyed as it was before there was this.
//!
//! Nothing here follows a symbolic link: names are resolved by [`Dir`]. Never replicated, and no part of the copy. No threads and no
//! locks: whoever writes here holds the directory's `.lock`.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::dir::Dir;
use crate::datadir::DirLock;
use crate::error::Error;
use crate::flusher::SystemFlusher;
use crate::sys::fs::FileExt;
use crate::sys::rustix;
use crate::sys::rustix::fs::{AtFlags, Dir as Entries, FileType, OFlags, RenameFlags};
use crate::sys::rustix::io::Errno;
use crate::sys::time::{SystemTime, UNIX_EPOCH};
use crate::types::{OWN_FOLDER, RelPath};

/// The name, within a folder of ours, of what is kept.
const KEPT: &str = "kept";

/// More syncs than this within one second keep nothing.
const SYNCS_IN_A_SECOND_MAX: u32 = 99;

const SECONDS_OF_A_DAY: u64 = 86_400;

/// What is kept, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) age: Duration,
    pub(super) bytes: u64,
}

/// Keeps what one sync takes away.
pub(super) struct Keeper<'a> {
    pub(super) dir: &'a Dir,
    bounds: Bounds,
    /// Since the first file.
    time: Option<String>,
    /// Kept in all.
    bytes: u64,
    /// Files and ranges kept by this sync.
    pub(super) count: u64,
    /// Those that could not be kept.
    failed: u64,
}

impl<'a> Keeper<'a> {
    pub(super) fn new(dir: &'a Dir, bounds: Bounds) -> Self {
        Self { dir, bounds, time: None, bytes: 0, count: 0, failed: 0 }
    }

    /// Says in the log what there is now.
    pub(super) fn report(&self) {
        if self.failed > 1 {
            log::warn!("{} files, or parts of files, could not be kept", self.failed);
        }
        if let Some(time) = self.time.as_ref().filter(|_| self.count > 0) {
            log::warn!(
                "{} files, or parts of files, that were here and that the leader does not have are kept under {time}; see \
                 paceline kept {}",
                self.count,
                self.dir.path().display()
            );
        }
    }

    /// Takes a file away from its place. False: it could not be kept, and is still there, or it was not there.
    pub(super) fn take(&mut self, path: &RelPath) -> bool {
        self.kept(path, |dir, to| {
            let ((from, name), (folder, kept)) = (dir.parent_made(path)?, dir.parent_made(to)?);
            let moved = rustix::fs::renameat(from, name, folder, kept);
            moved.map_err(|error| dir.failed("keep", path.as_str(), error))?;
            dir.remove_emptied(path);
            Ok(())
        })
    }

    /// Keeps a file that is about to be replaced.
    pub(super) fn link(&mut self, path: &RelPath) {
        self.kept(path, |dir, to| {
            let ((from, name), (folder, kept)) = (dir.parent_made(path)?, dir.parent_made(to)?);
            let linked = rustix::fs::linkat(from, name, folder, kept, AtFlags::empty());
            linked.map_err(|error| dir.failed("keep", path.as_str(), error))
        });
    }

    /// Keeps a range that is about to be overwritten or cut off.
    pub(super) fn range(&mut self, path: &RelPath, offset: u64, len: u64) {
        let Ok(name) = RelPath::new(&format!("{path}.from-{offset}")) else { return };
        let dir = self.dir;
        self.keep(&name, len, |to| {
            let copied = dir.copy_range(path, offset..offset + len, to);
            if copied.is_err() {
                // Half of it would pass for what was there, and be in the way of another try.
                dir.remove_own(to)?;
            }
            copied
        });
    }

    fn kept(&mut self, path: &RelPath, keep: impl Fn(&Dir, &RelPath) -> Result<(), Error>) -> bool {
        let dir = self.dir;
        let len = match dir.open_file(path, OFlags::RDONLY).map(|file| file.map(|file| file.metadata())) {
            Ok(Some(Ok(meta))) => meta.len(),
            // It is not there, or whoever deletes it will say what is wrong.
            _ => return false,
        };
        self.keep(path, len, |to| keep(dir, to))
    }

    /// Finds room for a file, and keeps it. A full disk costs the oldest time that is kept, again and again.
    fn keep(&mut self, name: &RelPath, len: u64, keep: impl Fn(&RelPath) -> Result<(), Error>) -> bool {
        if self.bounds.age.is_zero() || len > self.bounds.bytes {
            return false;
        }
        loop {
            match self.place_of(name, len).and_then(|to| to.map(|to| keep(&to)).transpose()) {
                Ok(Some(())) => {
                    (self.bytes, self.count) = (self.bytes + len, self.count + 1);
                    return true;
                }
                Ok(None) => return false,
                Err(Error::Io { source, .. }) if is_full(&source) && self.drop_one() => {}
                Err(error) => {
                    self.failed += 1;
                    if self.failed == 1 {
                        log::warn!("not kept: {error}");
                    }
                    return false;
                }
            }
        }
    }

    /// Where a file is kept; `None`: it has no room, or this sync has kept what was there before it already.
    fn place_of(&mut self, name: &RelPath, len: u64) -> Result<Option<RelPath>, Error> {
        let time = match &self.time {
            Some(time) => time.clone(),
            None => {
                let times = self.dir.kept_times()?;
                self.bytes = times.values().map(|time| time.bytes).sum();
                let Some(time) = new_time(SystemTime::now(), &times) else { return Ok(None) };
                self.time.insert(time).clone()
            }
        };
        while self.bytes.saturating_add(len) > self.bounds.bytes {
            if !self.drop_one() {
                return Ok(None);
            }
        }
        let top = self.dir.file_system_of(name)?;
        let below = name.as_str().strip_prefix(top).unwrap_or(name.as_str()).trim_start_matches('/');
        let slash = if top.is_empty() { "" } else { "/" };
        let Ok(to) = RelPath::new(&format!("{top}{slash}{OWN_FOLDER}/{KEPT}/{time}/{below}")) else { return Ok(None) };
        Ok((!self.dir.holds(&to)?).then_some(to))
    }

    /// Drops the oldest time, other than this sync's own.
    fn drop_one(&mut self) -> bool {
        match self.dir.drop_oldest_kept(self.time.as_deref()) {
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
}

impl Dir {
    /// Copies a part of a file to a new one.
    fn copy_range(&self, from: &RelPath, range: Range<u64>, to: &RelPath) -> Result<(), Error> {
        let Some(file) = self.open_file(from, OFlags::RDONLY)? else { return Ok(()) };
        let mut copy = self.open_made(to, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        let failed = |error| self.failed("keep a part of", from.as_str(), error);
        let mut buffer = vec![0; 256 << 10];
        let mut at = range.start;
        while at < range.end {
            let most = usize::try_from(range.end - at).unwrap_or(buffer.len()).min(buffer.len());
            let read = file.read_at(&mut buffer[..most], at).map_err(failed)?;
            if read == 0 {
                break;
            }
            copy.write_all(&buffer[..read]).map_err(failed)?;
            at += read as u64;
        }
        Ok(())
    }

    fn kept_tops(&self) -> Vec<String> {
        let below = self.mounts.places();
        std::iter::once(String::new()).chain(below.iter().map(|top| format!("{top}/"))).collect()
    }

    /// All that is kept, by time.
    pub(super) fn kept_times(&self) -> Result<BTreeMap<String, KeptTime>, Error> {
        let mut times = BTreeMap::<String, KeptTime>::new();
        for top in self.kept_tops() {
            let kept = format!("{top}{OWN_FOLDER}/{KEPT}");
            for time in self.folder_names(&kept)? {
                let found = times.entry(time.clone()).or_default();
                let at = format!("{kept}/{time}");
                self.kept_below(&at, &mut |name, len| {
                    let Some(len) = len else { return };
                    found.bytes += len;
                    found.files.insert(format!("{top}{}", name.trim_start_matches(&at).trim_start_matches('/')), len);
                })?;
            }
        }
        times.retain(|_, time| !time.files.is_empty());
        Ok(times)
    }

    /// What is below a folder, without following any link: files with their lengths, and other things. Returns the folders, each
    /// before those in it.
    fn kept_below(&self, folder: &str, found: &mut dyn FnMut(&str, Option<u64>)) -> Result<Vec<String>, Error> {
        let (mut folders, mut seen) = (vec![folder.to_owned()], Vec::new());
        while let Some(at) = folders.pop() {
            seen.push(at.clone());
            let Some(opened) = self.open_folder(&at)? else { continue };
            let failed = |error: Errno| self.failed("list", &at, error);
            for entry in Entries::read_from(&opened).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let Ok(name) = entry.file_name().to_str() else { continue };
                if matches!(name, "." | "..") {
                    continue;
                }
                let Ok(stat) = rustix::fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => folders.push(format!("{at}/{name}")),
                    FileType::RegularFile => found(&format!("{at}/{name}"), u64::try_from(stat.st_size).ok()),
                    _ => found(&format!("{at}/{name}"), None),
                }
            }
        }
        Ok(seen)
    }

    /// The folders in a folder that have a time for a name.
    fn folder_names(&self, folder: &str) -> Result<Vec<String>, Error> {
        let Some(opened) = self.open_folder(folder)? else { return Ok(Vec::new()) };
        let failed = |error: Errno| self.failed("list", folder, error);
        let mut names = Vec::new();
        for entry in Entries::read_from(&opened).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            names.extend(entry.file_name().to_str().ok().filter(|name| seconds_of(name).is_some()).map(str::to_owned));
        }
        Ok(names)
    }

    /// Drops the oldest time but `except`. Returns its bytes; `None`: there is none.
    pub(super) fn drop_oldest_kept(&self, except: Option<&str>) -> Result<Option<u64>, Error> {
        let times = self.kept_times()?;
        let Some((time, kept)) = times.iter().find(|(time, _)| Some(time.as_str()) != except) else { return Ok(None) };
        log::info!("drops what was kept at {time}: {} files, {} bytes", kept.files.len(), kept.bytes);
        self.drop_kept(time)?;
        Ok(Some(kept.bytes))
    }

    fn drop_kept(&self, time: &str) -> Result<(), Error> {
        for top in self.kept_tops() {
            let kept = format!("{top}{OWN_FOLDER}/{KEPT}");
            let mut files = Vec::new();
            let folders = self.kept_below(&format!("{kept}/{time}"), &mut |name, _| files.push(name.to_owned()))?;
            // A failure ends it: whoever drops one time after the other must not come back to this one for ever.
            files.iter().try_for_each(|file| self.remove_own(&RelPath::new(file)?))?;
            for folder in folders.iter().rev() {
                self.remove_folder(folder);
            }
        }
        Ok(())
    }

    /// Drops what is older than the bounds say.
    pub(super) fn expire_kept(&self, bounds: Bounds) -> Result<(), Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        for top in self.kept_tops() {
            for time in self.folder_names(&format!("{top}{OWN_FOLDER}/{KEPT}"))? {
                let age = now.saturating_sub(seconds_of(&time).unwrap_or_default());
                if age > bounds.age.as_secs() {
                    log::info!("drops what was kept at {time}: that is long enough ago");
                    self.drop_kept(&time)?;
                }
            }
        }
        Ok(())
    }
}

/// A name for a sync that begins now. After each second's first one they have a number.
fn new_time(now: SystemTime, times: &BTreeMap<String, KeptTime>) -> Option<String> {
    let time = shown(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    let numbered = (2..=SYNCS_IN_A_SECOND_MAX).map(|number| format!("{time}-{number:02}"));
    std::iter::once(time.clone()).chain(numbered).find(|name| !times.contains_key(name))
}

/// Seconds since 1970, UTC, as `2026-11-26T21:30:00Z` without colons.
fn shown(seconds: u64) -> String {
    let (days, second) = (seconds / SECONDS_OF_A_DAY, seconds % SECONDS_OF_A_DAY);
    // The days of the civil calendar, in years that begin in March (H. Hinnant, "chrono-compatible low-level date algorithms").
    let (era, of_era) = ((days + 719_468) / 146_097, (days + 719_468) % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let (month, day) = ((5 * of_year + 2) / 153, of_year - (153 * ((5 * of_year + 2) / 153) + 2) / 5 + 1);
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + later;
    format!("{year:04}-{month:02}-{day:02}T{:02}{:02}{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// The other way; `None` if it is no such name.
fn seconds_of(name: &str) -> Option<u64> {
    let time = name.get(..18)?;
    if name.len() > 18 && !(name[18..].starts_with('-') && name[19..].bytes().all(|digit| digit.is_ascii_digit())) {
        return None;
    }
    let number = |from: usize, to: usize| {
        let digits = time.get(from..to)?;
        digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse::<u64>().ok())?
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(13, 15)?, number(15, 17)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 59
    {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_era = (year % 400) * 365 + year % 400 / 4 - year % 400 / 100 + (153 * month + 2) / 5 + day - 1;
    let days = year / 400 * 146_097 + of_era - 719_468;
    let seconds = days * SECONDS_OF_A_DAY + hour * 3600 + minute * 60 + second;
    (shown(seconds) == time).then_some(seconds)
}

/// What the syncs of a directory have kept, for whoever wants it back.
#[derive(Debug)]
pub struct Kept {
    dir: Dir,
    path: std::path::PathBuf,
}

impl Kept {
    /// Of a data directory, also while it is in use. Nothing is changed.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn of(dir: &Path) -> Result<Self, Error> {
        let opened = Dir::open_flushed_by(dir, Arc::new(SystemFlusher))?;
        opened.note_mounts()?;
        Ok(Self { dir: opened, path: dir.to_owned() })
    }

    /// All that is kept: by time, the oldest first.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn times(&self) -> Result<BTreeMap<String, KeptTime>, Error> {
        self.dir.kept_times()
    }

    /// Puts files of a time back in their places, or the one with that name; what was kept is not kept any more. With `overwrite`
    /// files that are there now are lost; without it nothing is done if there are any. Returns how many it was.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] while anybody works on the directory, and [`Error::Io`].
    pub fn restore(&self, time: &str, name: Option<&str>, overwrite: bool) -> Result<usize, Error> {
        let _lock = DirLock::take(&self.path)?;
        let refused = |name: &str, why: &'static str| self.dir.refused(name, why);
        let times = self.times()?;
        let kept = times.get(time).ok_or_else(|| refused(time, "nothing was kept then: see paceline kept DIR"))?;
        let names: Vec<RelPath> = match name {
            None => kept.files.keys().map(|name| RelPath::new(name)).collect::<Result<_, _>>()?,
            Some(name) if kept.files.contains_key(name) => vec![RelPath::new(name)?],
            Some(name) => return Err(refused(name, "was not kept then: see paceline kept DIR")),
        };
        let there = |path: &RelPath| self.dir.holds(path);
        if !overwrite
            && let Some(name) = names.iter().find_map(|path| there(path).map(|is| is.then_some(path)).transpose())
        {
            return Err(refused(
                name?.as_str(),
                "is there now; nothing was restored: move it away, or add --overwrite",
            ));
        }
        for path in &names {
            self.restore_file(time, path, overwrite)?;
        }
        self.dir.flush()?;
        Ok(names.len())
    }

    fn restore_file(&self, time: &str, path: &RelPath, overwrite: bool) -> Result<(), Error> {
        let top = self.dir.file_system_of(path)?;
        let below = path.as_str().strip_prefix(top).unwrap_or(path.as_str()).trim_start_matches('/');
        let slash = if top.is_empty() { "" } else { "/" };
        let kept = RelPath::new(&format!("{top}{slash}{OWN_FOLDER}/{KEPT}/{time}/{below}"))?;
        let ((from, from_name), (to, to_name)) = (self.dir.parent_made(&kept)?, self.dir.parent_made(path)?);
        let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let moved = rustix::fs::renameat_with(from, from_name, to, to_name, flags);
        moved.map_err(|error| self.dir.failed("restore", path.as_str(), error))?;
        self.dir.remove_emptied(&kept);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ALL: Bounds = Bounds { age: Duration::from_secs(60), bytes: 1 << 20 };

    fn path(name: &str) -> RelPath {
        RelPath::new(name).unwrap()
    }

    fn opened() -> (tempfile::TempDir, Dir) {
        let root = tempfile::tempdir().unwrap();
        for name in ["a/b", "c", "d"] {
            fs::create_dir_all(root.path().join(name).parent().unwrap()).unwrap();
            fs::write(root.path().join(name), format!("of {name}")).unwrap();
        }
        let dir = Dir::open(root.path()).unwrap();
        (root, dir)
    }

    #[test]
    fn times_are_named_in_order_and_read_again() {
        for (seconds, name) in
            [(0, "1970-01-01T000000Z"), (951_782_400, "2000-02-29T000000Z"), (1_795_728_600, "2026-11-26T213000Z")]
        {
            assert_eq!((shown(seconds).as_str(), seconds_of(name)), (name, Some(seconds)));
        }
        for other in
            ["2026-02-30T000000Z", "2026-11-26T213000", "incoming", "2026-11-26T213000Z-x", "2026-11-26T21300éZ"]
        {
            assert_eq!(seconds_of(other), None, "{other}");
        }
        let mut times = BTreeMap::new();
        let mut names = Vec::new();
        while let Some(name) = new_time(UNIX_EPOCH, &times) {
            assert_eq!(seconds_of(&name), Some(0));
            times.insert(name.clone(), KeptTime::default());
            names.push(name);
        }
        assert!(names.is_sorted() && names.len() == 99, "two syncs in one second were one");
    }

    #[test]
    fn what_a_sync_takes_away_is_kept_and_comes_back_but_over_nothing_that_is_there() {
        let (root, dir) = opened();
        let mut keeper = Keeper::new(&dir, ALL);
        assert!(keeper.take(&path("a/b")) && !keeper.take(&path("gone")));
        keeper.link(&path("c"));
        keeper.range(&path("d"), 1, 3);
        fs::write(root.path().join("new"), "new").unwrap();
        fs::rename(root.path().join("new"), root.path().join("c")).unwrap();
        // What this sync itself put there is not what was there before it.
        keeper.link(&path("c"));
        assert!(!root.path().join("a").exists());
        let kept = Kept::of(root.path()).unwrap();
        let times = kept.times().unwrap();
        let (time, found) = times.iter().next().unwrap();
        let names: Vec<_> = found.files.iter().map(|(name, len)| (name.as_str(), *len)).collect();
        assert_eq!(names, [("a/b", 6), ("c", 4), ("d.from-1", 3)]);
        let said = kept.restore(time, None, false).unwrap_err().to_string();
        assert!(said.contains("--overwrite") && !root.path().join("a").exists(), "{said}");
        assert!(kept.restore(time, Some("../c"), true).is_err() && kept.restore("x", None, true).is_err());
        assert_eq!(kept.restore(time, Some("a/b"), false).unwrap(), 1);
        assert_eq!(kept.restore(time, None, true).unwrap(), 2);
        for (name, content) in [("a/b", "of a/b"), ("c", "of c"), ("d.from-1", "f d")] {
            assert_eq!(fs::read_to_string(root.path().join(name)).unwrap(), content);
        }
        assert!(kept.times().unwrap().is_empty());
        let _held = DirLock::take(root.path()).unwrap();
        assert!(matches!(kept.restore(time, None, true), Err(Error::InUse(_))));
    }

    #[test]
    fn the_oldest_goes_first_and_nothing_leads_outside() {
        let (root, dir) = opened();
        let kept = root.path().join(".paceline/kept");
        for time in ["2020-01-01T000000Z", "2021-01-01T000000Z"] {
            fs::create_dir_all(kept.join(time)).unwrap();
            fs::write(kept.join(time).join("x"), [0; 100]).unwrap();
        }
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("victim"), "intact").unwrap();
        std::os::unix::fs::symlink(outside.path(), kept.join("2020-01-01T000000Z/link")).unwrap();
        let mut keeper = Keeper::new(&dir, Bounds { bytes: 110, ..ALL });
        assert!(keeper.take(&path("c")));
        let times = dir.kept_times().unwrap();
        assert_eq!((times.len(), times.values().map(|time| time.bytes).sum::<u64>()), (2, 104));
        assert!(!Keeper::new(&dir, Bounds { bytes: 3, ..ALL }).take(&path("d")));
        dir.expire_kept(ALL).unwrap();
        assert_eq!(dir.kept_times().unwrap().len(), 1);
        assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "intact");
    }
}
