//! Files: what is announced of one at once, from what it was and what it is. Its content is compared after that (`compare.rs`).

use std::io::{self, ErrorKind};

use super::{Survey, Tree, Trouble};
use crate::error::AppendError;
use crate::index::Version;
use crate::index::blocks::{BLOCK_BYTES, End};
use crate::sys::fs::{File, FileExt, MetadataExt};
use crate::sys::time::Instant;
use crate::types::RelPath;
use crate::watch::announce::Announce;
use crate::watch::file::{Known, Seen};

/// Growth from here up is announced by reference: the leader's writers read it from the file.
pub(in crate::watch) const BY_REFERENCE_BYTES_MIN: u64 = 256 << 10;

/// The block that an offset is in begins there.
fn block_start(offset: u64) -> u64 {
    offset - offset % BLOCK_BYTES
}

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
        let version = self.announce.version(path);
        let len_is = |announced| version.is_some_and(|version| version.len == announced);
        if let Some(known) = self.files.get(path)
            && known.is_unchanged(seen)
            && len_is(known.announced)
            && self.is_vouched_for(path, seen)
        {
            return Ok(());
        }
        let file = self.open_file(path)?;
        let meta = file.metadata()?;
        // What others may not read any more is not written to a copy that they may.
        self.announce.has_mode(path, meta.mode())?;
        let seen = Seen::of(&meta);
        if survey.is_outdated(Some(seen.id())) {
            self.dirty.insert(path.clone());
            return Ok(());
        }
        let known = self.files.get(path);
        let why = match (&known, version) {
            _ if !self.is_vouched_for(path, &seen) => Some("the leader may have read something else of it"),
            (None, None) if seen.len == 0 => Some("new and empty"),
            (None, Some(version)) if version.len > seen.len => Some("shorter than the leader has it"),
            (None, _) => None,
            (Some(known), _) if known.id() != seen.id() => Some("another file has its name"),
            (Some(known), _) if !len_is(known.announced) => Some("the leader has another length of it"),
            (Some(known), _) if seen.len < known.announced && seen.len > 0 => Some("shorter"),
            (Some(_), _) => None,
        };
        if let Some(why) = why {
            if let Some(until) = self.suspects.held(path, Instant::now()).filter(|_| !at_once) {
                return Err(Trouble::Later(until));
            }
            log::debug!("replace {path}: {why}");
            return self.replace(path, seen);
        }
        let Some(version) = version else { return self.create(path, &file, seen) };
        if seen.len == 0 && version.len > 0 {
            return self.empty(path, seen);
        }
        let is_as_it_was = known.is_some_and(|known| known.seen.settled && known.seen.looks_like(&seen));
        self.files.insert(path.clone(), Known::new(seen, version.len));
        if !is_as_it_was {
            self.suspects.has_changed(path, Instant::now());
            if seen.len == version.len {
                // Nothing but its times may have changed.
                self.announce.look_again(path);
            }
        }
        self.grow(path, &file, seen, version)?;
        self.compare_hot(path, &file)
    }

    /// Whether the leader found the file under that name whenever it read it. A file that was moved away and back looks as it
    /// did, but the leader may have looked in between.
    pub(super) fn is_vouched_for(&self, path: &RelPath, seen: &Seen) -> bool {
        self.announce.vouches_for(path, seen.id().dev, seen.id().ino)
    }

    /// Announces a new file that has content.
    fn create(&mut self, path: &RelPath, file: &File, seen: Seen) -> Result<(), Trouble> {
        // By reference up to a whole block, so that nobody reads the beginning of one for what comes behind it.
        let by_reference = if seen.len < BY_REFERENCE_BYTES_MIN { 0 } else { block_start(seen.len) };
        let announced = if by_reference > 0 {
            self.announce.append_from_file(path, 0, by_reference)
        } else {
            let bytes = read_range(file, 0, seen.len)?;
            let announced = self.announce.append(path, 0, &bytes);
            if announced.is_ok()
                && let Some(version) = self.announce.version(path)
            {
                self.announce.blocks().sent(path, version.generation, &bytes);
            }
            announced
        };
        match announced {
            Ok(()) => {}
            Err(AppendError::Offset { .. }) => return self.replace(path, seen),
            Err(error) => return Err(error.into()),
        }
        let version = self.announce.version(path).unwrap_or_default();
        self.files.insert(path.clone(), Known::new(seen, version.len));
        self.suspects.has_changed(path, Instant::now());
        self.pace(version.len);
        self.grow(path, file, seen, version)
    }

    /// Announces what a file has grown by: up to the end of a block by value, then by reference if that is much, then the rest.
    fn grow(&mut self, path: &RelPath, file: &File, seen: Seen, version: Version) -> Result<(), Trouble> {
        let Version { generation, len: from } = version;
        if seen.len <= from {
            return Ok(());
        }
        self.know_last_chunk(file, generation, from)?;
        let (first, last) = match seen.len - from >= BY_REFERENCE_BYTES_MIN {
            true => (block_start(from + BLOCK_BYTES - 1), block_start(seen.len)),
            false => (seen.len, seen.len),
        };
        let parts = [from..first, first..last, last..seen.len];
        for (part, range) in parts.into_iter().enumerate().filter(|(_, range)| !range.is_empty()) {
            let grown = range.end - range.start;
            let announced = match part {
                1 => self.announce.append_from_file(path, range.start, grown),
                _ => self.append(path, file, generation, range.clone())?,
            };
            match announced {
                Ok(()) => {}
                // The leader has found it shorter meanwhile, and announced it as it found it.
                Err(AppendError::Offset { .. }) => return self.replace(path, seen),
                Err(error) => return Err(error.into()),
            }
            if let Some(known) = self.files.get_mut(path) {
                known.announced = range.end;
            }
            self.still_is(path, generation, block_start(range.start)..range.end);
            self.pace(grown);
        }
        Ok(())
    }

    /// Announces what is read of a range now. The block in which it begins is read from its beginning: what it was before is announced anew if that is not
    /// what followers have.
    fn append(
        &mut self,
        path: &RelPath,
        file: &File,
        generation: u64,
        range: std::ops::Range<u64>,
    ) -> Result<Result<(), AppendError>, Trouble> {
        let start = block_start(range.start);
        let bytes = read_range(file, start, range.end)?;
        let (before, new) = bytes.split_at(usize::try_from(range.start - start).map_err(io::Error::other)?);
        let blocks = self.announce.blocks();
        let is_other = !before.is_empty() && blocks.end(generation, range.start, before) == End::Other;
        blocks.set(generation, start, &bytes);
        let announced = self.announce.append(path, range.start, new);
        if announced.is_err() {
            // What was noted before it was announced is not what followers have.
            self.announce.blocks().tear(generation, start..range.start, range.start);
        } else if is_other {
            self.write_at(path, start, before)?;
        }
        Ok(announced)
    }

    /// Announces bytes of a file in place: whole blocks, or what there was of the last one.
    pub(super) fn write_at(&mut self, path: &RelPath, offset: u64, bytes: &[u8]) -> Result<(), Trouble> {
        let written = self.announce.write_at(path, offset, bytes);
        if written.is_err()
            && let Some(Version { generation, len }) = self.announce.version(path)
        {
            self.announce.blocks().tear(generation, offset..offset + bytes.len() as u64, len);
        }
        match written {
            Ok(()) => {}
            // It is shorter by now, as the leader found.
            Err(AppendError::Offset { .. }) => drop(self.dirty.insert(path.clone())),
            Err(error) => return Err(error.into()),
        }
        self.pace(bytes.len() as u64);
        Ok(())
    }

    /// After what was noted of a generation was announced: should it have become another one, nobody knows what was announced of that.
    pub(super) fn still_is(&mut self, path: &RelPath, generation: u64, range: std::ops::Range<u64>) {
        if let Some(now) = self.announce.version(path)
            && now.generation != generation
        {
            self.announce.blocks().tear(now.generation, range, now.len);
            self.dirty.insert(path.clone());
        }
    }

    pub(super) fn replace(&mut self, path: &RelPath, seen: Seen) -> Result<(), Trouble> {
        let was = self.announce.version(path);
        // The leader looks later than we did: what changes between the two shows when it is compared. If another file had come
        // there, the leader does not vouch for this.
        self.announce.replace(path)?;
        self.forget(was);
        let announced = self.announce.version(path).unwrap_or_default().len;
        let now = Instant::now();
        self.suspects.hold(path, announced, now);
        self.files.insert(path.clone(), Known::new(seen, announced));
        self.suspects.has_changed(path, now);
        self.pace(announced);
        Ok(())
    }

    /// What was announced as this is no more.
    pub(super) fn forget(&self, was: Option<Version>) {
        if let Some(was) = was {
            self.announce.forget(was.generation);
        }
    }

    fn empty(&mut self, path: &RelPath, seen: Seen) -> Result<(), Trouble> {
        let was = self.announce.version(path);
        self.announce.truncate(path, 0)?;
        self.forget(was);
        self.files.insert(path.clone(), Known::new(seen, 0));
        self.suspects.has_changed(path, Instant::now());
        Ok(())
    }

    pub(super) fn delete(&mut self, path: &RelPath) -> Result<(), Trouble> {
        // Also of what is in the way of a file that came where a folder with a file system in it was.
        self.dir.check_mounted(path)?;
        let known = self.files.remove(path).is_some();
        self.suspects.remove(path);
        self.later.remove(path);
        self.readable(path);
        let was = self.announce.version(path);
        if known || was.is_some() {
            self.announce.delete(path)?;
            self.forget(was);
        }
        Ok(())
    }

    /// Opens a file to look at it.
    pub(super) fn open_file(&self, path: &RelPath) -> io::Result<File> {
        // It was there a moment ago: look again.
        self.dir.file(path)?.ok_or_else(|| ErrorKind::NotFound.into())
    }
}

/// Reads exactly `from..to`; `UnexpectedEof` if the file has become shorter.
pub(super) fn read_range(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(to.saturating_sub(from)).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes)
}
