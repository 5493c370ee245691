//! The folder of what is kept. Part of [`Dir`].

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::ops::Range;

use super::times::seconds_of;
use super::{Bounds, KEPT, KeptTime, WHY_BYTES_MAX, why_of};
use crate::error::Error;
use crate::follower::dir::Dir;
use crate::follower::stage::above;
use crate::sys::fd::AsFd;
use crate::sys::fs::FileExt;
use crate::sys::rustix;
use crate::sys::rustix::fs::{AtFlags, Dir as Entries, FileType, OFlags};
use crate::sys::rustix::io::Errno;
use crate::sys::time::{SystemTime, UNIX_EPOCH};
use crate::types::{OWN_FOLDER, RelPath};

impl Dir {
    /// Takes a file or a link from its place to where it is kept.
    pub(super) fn move_aside(&self, path: &RelPath, to: &RelPath) -> Result<(), Error> {
        let ((from, name), (folder, kept)) = (self.parent_made(path)?, self.parent_made(to)?);
        let moved = rustix::fs::renameat(from, name, folder, kept);
        moved.map_err(|error| self.failed("keep", path.as_str(), error))
    }

    /// Whether anything has this name.
    pub(super) fn is_anything(&self, path: &RelPath) -> Result<bool, Error> {
        let Some((folder, name)) = self.parent(path, false)? else { return Ok(false) };
        Ok(self.kind_at(&folder, name, path)?.is_some())
    }

    /// Copies a part of a file to a new one.
    pub(super) fn copy_range(&self, from: &RelPath, range: Range<u64>, to: &RelPath) -> Result<(), Error> {
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
        // What is overwritten after this may be on the disk at any time, and so must this be. It is no replicated content, so
        // nothing is amiss with what is if this fails.
        self.flusher.file(copy.as_fd()).map_err(failed)?;
        for folder in above(to).chain([""]) {
            let opened = if folder.is_empty() { None } else { self.open_folder(folder)? };
            let opened = opened.as_ref().map_or_else(|| self.root(), AsFd::as_fd);
            self.flusher.folder(opened).map_err(failed)?;
        }
        Ok(())
    }

    /// Leaves word why something was kept.
    pub(super) fn say_why(&self, time: &str, why: &str) -> Result<(), Error> {
        let path = why_of(time)?;
        let mut file = self.open_made(&path, OFlags::WRONLY | OFlags::CREATE)?;
        file.write_all(why.as_bytes()).map_err(|error| self.failed("write", path.as_str(), error))
    }

    fn why(&self, time: &str) -> Result<Option<String>, Error> {
        let path = why_of(time)?;
        let Some(file) = self.open_file(&path, OFlags::RDONLY)? else { return Ok(None) };
        let mut why = String::new();
        let read = file.take(WHY_BYTES_MAX).read_to_string(&mut why);
        Ok(read.is_ok().then(|| why.lines().next().unwrap_or_default().to_owned()))
    }

    pub(super) fn kept_tops(&self) -> Vec<String> {
        let below = self.mounts.places();
        std::iter::once(String::new()).chain(below.iter().map(|top| format!("{top}/"))).collect()
    }

    /// Those of them that are on the file system that `path`, a name here or of ours, is on: dropping something there makes room for it.
    pub(in crate::follower) fn kept_tops_beside(&self, path: &str) -> Vec<String> {
        let device = |folder: &str| {
            let opened = if folder.is_empty() { None } else { Some(self.open_folder(folder).ok()??) };
            let stat = rustix::fs::fstat(opened.as_ref().map_or_else(|| self.root(), AsFd::as_fd));
            stat.ok().map(|stat| stat.st_dev)
        };
        let tops = self.kept_tops();
        let Ok(path) = RelPath::new(path) else { return tops };
        let of_path = self.file_system_of(&path).ok().and_then(device);
        tops.into_iter().filter(|top| device(top.trim_end_matches('/')) == of_path).collect()
    }

    /// The times at which something was kept at these tops, and at which of them; the oldest first.
    pub(super) fn kept_names(&self, tops: &[String]) -> Result<BTreeMap<String, Vec<String>>, Error> {
        let mut names = BTreeMap::<String, Vec<String>>::new();
        for top in tops {
            for time in self.folder_names(&format!("{top}{OWN_FOLDER}/{KEPT}"))? {
                names.entry(time).or_default().push(top.clone());
            }
        }
        Ok(names)
    }

    /// All that is kept, by time.
    pub(in crate::follower) fn kept_times(&self) -> Result<BTreeMap<String, KeptTime>, Error> {
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
        for (time, kept) in &mut times {
            kept.why = self.why(time)?;
        }
        Ok(times)
    }

    /// What is below a folder, without following any link: files and links with their lengths, and other things. Returns the folders, each
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
                    FileType::RegularFile | FileType::Symlink => {
                        found(&format!("{at}/{name}"), u64::try_from(stat.st_size).ok())
                    }
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

    /// Drops the oldest time but `except` of what is kept at these tops. Returns its bytes; `None`: there is none.
    pub(in crate::follower) fn drop_oldest_kept(
        &self,
        except: Option<&str>,
        tops: &[String],
    ) -> Result<Option<u64>, Error> {
        for (time, tops) in self.kept_names(tops)? {
            if Some(time.as_str()) == except {
                continue;
            }
            let (files, bytes) = self.drop_kept(&time, &tops)?;
            if files > 0 {
                log::info!("dropped what was kept at {time}: {files} files, {bytes} bytes");
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// Returns how many files there were, and their bytes.
    fn drop_kept(&self, time: &str, tops: &[String]) -> Result<(u64, u64), Error> {
        let (mut count, mut bytes) = (0, 0);
        for top in tops {
            let kept = format!("{top}{OWN_FOLDER}/{KEPT}");
            let mut files = Vec::new();
            let folders = self.kept_below(&format!("{kept}/{time}"), &mut |name, len| {
                bytes += len.unwrap_or_default();
                files.push(name.to_owned());
            })?;
            count += files.len() as u64;
            // A failure ends it: whoever drops one time after the other must not come back to this one for ever.
            files.iter().try_for_each(|file| self.remove_own(&RelPath::new(file)?))?;
            for folder in folders.iter().rev() {
                self.remove_folder(folder);
            }
        }
        if !self.kept_names(&self.kept_tops())?.contains_key(time) {
            self.remove_own(&why_of(time)?)?;
        }
        Ok((count, bytes))
    }

    /// Drops what is beyond the bounds.
    pub(in crate::follower) fn expire_kept(&self, bounds: Bounds) -> Result<(), Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        for (time, tops) in self.kept_names(&self.kept_tops())? {
            let age = now.saturating_sub(seconds_of(&time).unwrap_or_default());
            if age > bounds.age.as_secs() {
                log::info!("drops what was kept at {time}: that is long enough ago");
                self.drop_kept(&time, &tops)?;
            }
        }
        let mut bytes: u64 = self.kept_times()?.values().map(|time| time.bytes).sum();
        while bytes > bounds.bytes {
            let Some(dropped) = self.drop_oldest_kept(None, &self.kept_tops())? else { break };
            bytes = bytes.saturating_sub(dropped);
        }
        Ok(())
    }
}
