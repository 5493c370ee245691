//! What was kept, for whoever wants it back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{KeptTime, place};
use crate::datadir::DirLock;
use crate::error::Error;
use crate::flusher::SystemFlusher;
use crate::follower::dir::Dir;
use crate::sys::rustix;
use crate::sys::rustix::fs::RenameFlags;
use crate::types::RelPath;

/// What the syncs of a directory have kept, for whoever wants it back.
#[derive(Debug)]
pub struct Kept {
    dir: Dir,
    path: PathBuf,
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
        let there = |path: &RelPath| self.dir.is_anything(path);
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
        let kept = place(self.dir.file_system_of(path)?, time, path.as_str())?;
        let ((from, from_name), (to, to_name)) = (self.dir.parent_made(&kept)?, self.dir.parent_made(path)?);
        let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let moved = rustix::fs::renameat_with(from, from_name, to, to_name, flags);
        moved.map_err(|error| self.dir.failed("restore", path.as_str(), error))?;
        self.dir.remove_emptied(&kept);
        Ok(())
    }
}
