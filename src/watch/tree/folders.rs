//! Folders: each is watched, then listed.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::Path;

use super::{AGAIN, Kind, Tree, Trouble};
use crate::beneath;
use crate::datadir::{FoundFile, Visitor, walk};
use crate::error::Error;
use crate::first_look::{FirstLook, WatchedFolder};
use crate::protocol::extension::Attributes;
use crate::sys::fd::BorrowedFd;
use crate::sys::fs::MetadataExt;
use crate::sys::rustix;
use crate::sys::rustix::fd::OwnedFd;
use crate::sys::rustix::io::Errno;
use crate::sys::time::Instant;
use crate::types::RelPath;
use crate::watch::announce::Announce;
use crate::watch::file::Known;

/// A folder that is known.
#[derive(Clone, Copy)]
pub(super) struct Folder {
    /// `None`: it has none, and is polled.
    pub(super) watch: Option<i32>,
    dev: u64,
    ino: u64,
}

impl<A: Announce> Tree<A> {
    /// Lists a folder; watches it before, unless it is watched already. That one is listed all the same: it may have been away
    /// for a moment, and what is in it looked for then, by us or by the leader.
    pub(super) fn look_at_folder(&mut self, path: &RelPath) -> Result<(), Trouble> {
        self.announce.look_again(path);
        let Some(folder) = self.dir.folder(Some(path))? else { return Err(Trouble::Later(Instant::now() + AGAIN)) };
        let stat = rustix::fs::fstat(&folder).map_err(io::Error::from)?;
        let now = Folder { watch: None, dev: stat.st_dev, ino: stat.st_ino };
        let known = self.folders.get(path).copied();
        if known.is_some_and(|known| known.dev != now.dev) && !self.files.below(path).is_empty() {
            return Err(other_file_system().into());
        }
        if known.is_none_or(|known| known.watch.is_none() || (known.dev, known.ino) != (now.dev, now.ino)) {
            self.watch_folder(path, now)?;
        }
        if known.is_some_and(|known| known.watch.is_none()) {
            self.mark_known(path);
        }
        Ok(self.mark(Some(path), folder)?)
    }

    /// Takes over what the first look found, but for the files at rest; what wants another look is marked.
    pub(super) fn take_over(&mut self, folders: Vec<WatchedFolder>, others: Vec<RelPath>) {
        for WatchedFolder { path, dev, ino, watch } in folders {
            let Some(path) = path else { continue };
            if let Err(trouble) = self.is_watched(&path, Folder { watch: None, dev, ino }, watch) {
                log::debug!("{path} was not watched: {trouble:?}");
                self.dirty.insert(path);
            }
        }
        for path in others {
            // It is not known what the leader has of it.
            self.files.remove(&path);
            self.dirty.insert(path);
        }
    }

    /// Takes the first look, for a leader that did not.
    pub(super) fn look_first(root: &Path, announce: &A) -> Result<FirstLook, Error> {
        let mut own = OwnLook { look: FirstLook::begin(root)?, announce };
        walk(&own.look.dir.clone(), None, &mut own)?;
        Ok(own.look)
    }

    /// Marks what is announced and was not found by the first look.
    pub(super) fn mark_unfound(&mut self) {
        let unfound: Vec<_> =
            self.announce.files().into_iter().filter(|(path, _)| !self.files.has(path.as_str())).collect();
        let is_file = |path: &RelPath| matches!(self.kind_of(path), Ok(Kind::File(_)));
        let is_in_a_file = |path: &RelPath| above(path).any(|above| self.dirty.get(above).is_some_and(is_file));
        let (in_files, _): (Vec<_>, Vec<_>) = unfound.iter().cloned().partition(|(path, _)| is_in_a_file(path));
        for (path, len) in in_files {
            // So that it is announced as gone before the file that is in its folder's place.
            self.files.insert(path, Known::lost(len));
        }
        self.dirty.extend(unfound.into_iter().map(|(path, _)| path));
    }

    /// Marks what was in a folder: while there was no watch, no event told what is gone.
    fn mark_known(&mut self, folder: &RelPath) {
        let name_at = folder.as_str().len() + 1;
        let below = self.files.below(folder).into_iter().chain(paths_below(&self.folders, folder));
        self.dirty.extend(below.filter(|path| !path.as_str()[name_at..].contains('/')));
    }

    fn watch_folder(&mut self, path: &RelPath, now: Folder) -> Result<(), Trouble> {
        if self.folders.get(path).is_some_and(|known| (known.dev, known.ino) != (now.dev, now.ino)) {
            self.forget_folder(path);
        }
        let watch = self.inotify.add(&path.below(self.dir.path()));
        self.is_watched(path, now, watch)
    }

    /// A folder was to be watched, and that is what came of it.
    fn is_watched(&mut self, path: &RelPath, now: Folder, watch: Result<i32, Errno>) -> Result<(), Trouble> {
        let watch = match watch {
            // Its events come under one name. The other is polled, lest each takes the watch from the other for ever.
            Ok(watch) if self.has_another_name(watch, path, now) => None,
            Ok(watch) => Some(watch),
            Err(errno @ (Errno::NOSPC | Errno::NOMEM)) => {
                if self.unwatched.is_empty() {
                    let error = watch_error(&path.below(self.dir.path()), errno);
                    log::warn!("folders are looked at once a second at most, rather than watched: {error}");
                }
                None
            }
            Err(errno) => return Err(io::Error::from(errno).into()),
        };
        match watch {
            None => drop(self.unwatched.insert(path.clone())),
            Some(watch) => {
                if self.unwatched.remove(path) && self.unwatched.is_empty() {
                    log::info!("all folders are watched again");
                }
                // A folder that was moved here keeps its watch: it belongs to the new name alone from now on.
                if let Some(Some(old)) = self.watches.insert(watch, Some(path.clone()))
                    && old != *path
                {
                    self.folders.remove(&old);
                    self.unwatched.remove(&old);
                    self.dirty.insert(old);
                }
            }
        }
        self.folders.insert(path.clone(), Folder { watch, ..now });
        Ok(())
    }

    /// Whether a watch is that of the same folder under another name, which it has still (`mount --bind`).
    fn has_another_name(&self, watch: i32, path: &RelPath, now: Folder) -> bool {
        let other = match self.watches.get(&watch) {
            Some(Some(other)) if other != path => Some(other),
            // The directory itself, bound into itself.
            Some(None) => return true,
            _ => return false,
        };
        let opened = self.dir.folder(other).ok().flatten();
        let stat = opened.and_then(|folder| rustix::fs::fstat(folder).ok());
        stat.is_some_and(|stat| (stat.st_dev, stat.st_ino) == (now.dev, now.ino))
    }

    /// `Err` if a folder above `path` is on another file system than it was: then nothing is gone that is not there.
    pub(super) fn check_mounts(&self, path: &RelPath) -> io::Result<()> {
        for above in above(path) {
            let Some((above, known)) = self.folders.get_key_value(above) else { continue };
            match self.dir.metadata(above)? {
                Some(meta) if meta.dev() != known.dev => return Err(other_file_system()),
                Some(_) => return Ok(()),
                None => {}
            }
        }
        Ok(())
    }

    /// Marks what is in a folder as wanting a look.
    pub(super) fn list(&mut self, folder: Option<&RelPath>) -> io::Result<()> {
        match self.dir.folder(folder)? {
            Some(opened) => self.mark(folder, opened),
            None => Ok(()),
        }
    }

    fn mark(&mut self, folder: Option<&RelPath>, opened: OwnedFd) -> io::Result<()> {
        for entry in beneath::entries(opened)? {
            if let Some(path) = entry_path(self.dir.path(), folder, entry?.file_name().to_bytes(), true) {
                self.dirty.insert(path);
            }
        }
        Ok(())
    }

    /// Forgets the watches of a folder and of those below. The files in them want a look: they may be elsewhere now.
    pub(super) fn forget_folder(&mut self, path: &RelPath) {
        let mut folders = paths_below(&self.folders, path);
        folders.push(path.clone());
        for folder in folders {
            self.unwatched.remove(&folder);
            if let Some(Folder { watch: Some(watch), .. }) = self.folders.remove(&folder)
                // It may belong to another name by now.
                && self.watches.get(&watch).is_some_and(|owner| owner.as_ref() == Some(&folder))
            {
                self.watches.remove(&watch);
                self.inotify.remove(watch);
            }
        }
        self.dirty.extend(self.files.below(path));
        self.announce.look_again(path);
    }
}

/// The watcher's own walk.
struct OwnLook<'a, A> {
    look: FirstLook,
    announce: &'a A,
}

impl<A: Announce> Visitor for OwnLook<'_, A> {
    fn goes_on(&mut self) -> bool {
        self.look.keep_events();
        true
    }

    fn folder(&mut self, path: &RelPath, _: Attributes) -> bool {
        self.announce.look_again(path);
        self.announce.enters(path)
    }

    fn link(&mut self, path: RelPath, _: &[u8]) {
        self.announce.look_again(&path);
    }

    fn lists(&mut self, path: Option<&RelPath>, folder: BorrowedFd<'_>) {
        self.look.lists(path, folder);
    }

    fn file(&mut self, file: FoundFile) {
        if self.announce.was_found_as(&file.path, &file.looks.stamps) {
            self.look.file(file.path, &file.looks);
        } else {
            self.look.others.push(file.path);
        }
    }

    fn unseen(&mut self, path: &RelPath, _: Error) -> Result<(), Error> {
        self.look.others.push(path.clone());
        Ok(())
    }
}

fn other_file_system() -> io::Error {
    let what = "another file system is there than before, and nothing of what was there counts as gone: mount what was, or \
                start the leader anew";
    io::Error::other(what)
}

/// The folders that a path is in, the innermost first.
fn above(path: &RelPath) -> impl Iterator<Item = &str> {
    path.as_str().rmatch_indices('/').map(|(end, _)| &path.as_str()[..end])
}

/// The path of a folder's entry; `None` if its name cannot be sent, with a warning when it appears.
pub(super) fn entry_path(root: &Path, folder: Option<&RelPath>, name: &[u8], appeared: bool) -> Option<RelPath> {
    let path = match folder {
        None => RelPath::from_bytes(name),
        Some(folder) => RelPath::from_bytes(&[folder.as_str().as_bytes(), b"/", name].concat()),
    };
    match path {
        Ok(path) => Some(path),
        Err(error) => {
            let level = if appeared { log::Level::Warn } else { log::Level::Debug };
            log::log!(level, "not replicated, in {}: {error}", root.display());
            None
        }
    }
}

/// The keys below `folder`.
pub(super) fn paths_below<V>(map: &BTreeMap<RelPath, V>, folder: &RelPath) -> Vec<RelPath> {
    let (from, to) = (format!("{folder}/"), format!("{folder}0")); // '0' is what follows '/'
    map.range::<str, _>((Bound::Included(from.as_str()), Bound::Excluded(to.as_str())))
        .map(|(path, _)| path.clone())
        .collect()
}

pub(super) fn watch_error(folder: &Path, errno: Errno) -> Error {
    if errno != Errno::NOSPC {
        return Error::io("watch", folder, errno);
    }
    let reason = format!(
        "this user has no inotify watch left for {}, one is needed for each folder: raise it (sysctl -w \
         fs.inotify.max_user_watches=1048576)",
        folder.display()
    );
    Error::Setting { name: "fs.inotify.max_user_watches", reason }
}
