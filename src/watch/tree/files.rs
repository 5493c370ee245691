//! Files: what is announced of one, from what it was and what it is.

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::{Survey, Tree, Trouble};
use crate::digests::Stamps;
use crate::error::AppendError;
use crate::sys::fs::File;
use crate::sys::time::Instant;
use crate::tail::{Tail, read_range};
use crate::types::RelPath;
use crate::watch::announce::Announce;
use crate::watch::file::{By, Known, Seen, Verdict};

/// Growth from here up is announced by reference: the leader's writers read it from the file.
pub(in crate::watch) const BY_REFERENCE_BYTES_MIN: u64 = 256 << 10;
/// A file that is replaced over and over is announced at this rate at most.
const REPLACE_BYTES_PER_S: u64 = 100_000_000;

impl<A: Announce> Tree<A> {
    pub(super) fn look_at_file(
        &mut self,
        path: &RelPath,
        seen: &Seen,
        survey: Survey,
        at_once: bool,
    ) -> Result<(), Trouble> {
        if !self.announce.replicates(path) {
            return Ok(());
        }
        let leader_len = self.announce.file_len(path);
        if let Some(known) = self.files.get(path)
            && known.is_unchanged(seen)
            && leader_len == Some(known.announced)
            && self.is_vouched_for(path, seen)
        {
            return Ok(());
        }
        let file = self.open_file(path)?;
        let seen = Seen::of(&file.metadata()?);
        if survey.is_outdated(Some(seen.id())) {
            self.dirty.insert(path.clone());
            return Ok(());
        }
        let now = Instant::now();
        let vouched = self.is_vouched_for(path, &seen);
        self.read_end(path, &file, &seen)?;
        let may_be_another = match leader_len {
            Some(len) if len <= seen.len && !self.files.has(path.as_str()) => self.may_be_another(path, &file, len)?,
            _ => false,
        };
        let verdict = match (self.files.get_mut(path), leader_len) {
            _ if !vouched => Verdict::Changed("the leader may have read something else of it"),
            (Some(known), leader_len) if leader_len == Some(known.announced) => {
                known.judge(&seen, &file, now, at_once)?
            }
            (Some(_), _) => Verdict::Changed("the leader has another length of it"),
            (None, Some(leader_len)) if leader_len > seen.len => Verdict::Changed("shorter than the leader has it"),
            (None, Some(_)) if may_be_another => {
                Verdict::Changed("it changed before it was watched, and may have been read before that")
            }
            (None, None) if seen.len == 0 => Verdict::Changed("new and empty"),
            (None, _) => Verdict::Grown,
        };
        match verdict {
            Verdict::Unchanged => Ok(()),
            Verdict::LookAgain(at) => Err(Trouble::Later(at)),
            Verdict::Grown => self.append(path, &file, seen, leader_len.unwrap_or(0)),
            Verdict::Emptied => self.empty(path, seen),
            Verdict::Changed(why) => {
                match self.files.get_mut(path) {
                    Some(known) if known.replace_after > now && !at_once => {
                        known.must_replace = true;
                        return Err(Trouble::Later(known.replace_after));
                    }
                    _ => log::debug!("replace {path}: {why}"),
                }
                self.replace(path, &file, seen)
            }
        }
    }

    /// Reads the end of a file of which none was read, before it is judged by it.
    pub(super) fn read_end(&mut self, path: &RelPath, file: &File, seen: &Seen) -> io::Result<()> {
        let Self { files, announce, .. } = self;
        match files.get_mut(path) {
            Some(known) if seen.len >= known.announced && !known.is_unchanged(seen) => {
                known.read_end(file, || announce.digested(path))
            }
            _ => Ok(()),
        }
    }

    /// Whether what somebody has read of a file that is not known yet may be something else than what it begins with.
    fn may_be_another(&self, path: &RelPath, file: &File, leader_len: u64) -> io::Result<bool> {
        let is_as_found = |stamps: &Stamps| self.announce.as_found(path.as_str(), stamps).is_some();
        if !self.announce.may_be_read(path) || is_as_found(&Stamps::of_file(file)?) {
            return Ok(false);
        }
        if let Some(tail) = self.announce.tail_found(path) {
            return Ok(!tail.still_there(file)?);
        }
        // It was found as it looked when it was digested, and has only grown since.
        let held = self.announce.digested(path).filter(|held| held.bytes == leader_len && is_as_found(&held.stamps));
        let tail = held.map(|held| Tail::verified(file, &held)).transpose()?;
        Ok(tail.flatten().is_none())
    }

    /// Whether the leader found the file under that name whenever it read it. A file that was moved away and back looks as it
    /// did, but the leader may have looked in between.
    fn is_vouched_for(&self, path: &RelPath, seen: &Seen) -> bool {
        self.announce.vouches_for(path, seen.id().dev, seen.id().ino)
    }

    /// Announces `from..seen.len`; nothing if that is empty (a file that the leader found by itself).
    pub(in crate::watch) fn append(
        &mut self,
        path: &RelPath,
        file: &File,
        seen: Seen,
        from: u64,
    ) -> Result<(), Trouble> {
        let growth = seen.len - from;
        let tail_start = Tail::start(seen.len);
        let (tail, announced) = if growth < BY_REFERENCE_BYTES_MIN {
            let start = tail_start.min(from);
            let bytes = read_range(file, start, seen.len)?;
            // Looked at once more: what it was before is not what these follow if it was changed before they were read.
            if let Some(known) = self.files.get(path)
                && !known.tail_is_there(file)?
            {
                return self.replace(path, file, seen);
            }
            let new = &bytes[usize::try_from(from - start).map_err(io::Error::other)?..];
            let announced = if new.is_empty() { Ok(()) } else { self.announce.append(path, from, new) };
            (Tail::of(file, seen.len, &bytes)?, announced)
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
        // if it had shrunk, nothing is known. If another one had come there, the leader does not vouch for this.
        let announced = self.announce.file_len(path).unwrap_or(0);
        let tail = (announced >= seen.len).then_some(tail);
        let pause = Duration::from_millis(announced / (REPLACE_BYTES_PER_S / 1000));
        self.files.insert(path.clone(), Known::new(seen, announced, tail, By::Replace, Instant::now() + pause));
        self.pace(announced);
        Ok(())
    }

    fn empty(&mut self, path: &RelPath, seen: Seen) -> Result<(), Trouble> {
        self.announce.truncate(path, 0)?;
        let replace_after = self.files.get(path).map_or_else(Instant::now, |known| known.replace_after);
        let known = Known::new(seen, 0, Some(Tail::empty()), By::Append, replace_after);
        self.files.insert(path.clone(), known);
        Ok(())
    }

    pub(super) fn delete(&mut self, path: &RelPath) -> Result<(), Trouble> {
        // Also of what is in the way of a file that came where a folder with a file system in it was.
        self.dir.check_mounted(path)?;
        let known = self.files.remove(path).is_some();
        self.later.remove(path);
        self.readable(path);
        if known || self.announce.file_len(path).is_some() {
            self.announce.delete(path)?;
        }
        Ok(())
    }

    /// Opens a file to look at it.
    pub(super) fn open_file(&self, path: &RelPath) -> io::Result<File> {
        // It was there a moment ago: look again.
        self.dir.file(path)?.ok_or_else(|| ErrorKind::NotFound.into())
    }
}
