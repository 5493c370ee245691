//! What a connection of the extension remembers of the changes it makes: which files and folders are not durable yet, and
//! which digests are still true. Owned by the reader; 1.0.0 needs none of it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::digests::Digests;
use super::dir::Dir;
use crate::error::Error;
use crate::types::RelPath;

/// At most so many files are made durable one by one; beyond it the file system is flushed. Their handles are kept open: what
/// was written under a name is not to be found by it any more once it was renamed.
const FLUSHED_SINGLY_FILES_MAX: usize = 64;
const FLUSHED_SINGLY_FOLDERS_MAX: usize = 256;

/// Changes that are not durable yet.
#[derive(Debug, Default)]
pub(super) struct Unflushed {
    files: Vec<(RelPath, Arc<File>)>,
    folders: HashSet<String, RandomState>,
    /// The directory itself.
    top: bool,
    /// More than can be told.
    all: bool,
}

impl Unflushed {
    /// Whatever is on the file system.
    pub(super) fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// Adds later ones.
    pub(super) fn merge(&mut self, later: Self) {
        self.files.extend(later.files);
        self.folders.extend(later.folders);
        self.top |= later.top;
        self.all |= later.all;
        self.bound();
    }

    /// All that was here before.
    pub(super) fn everything(&mut self) {
        self.all = true;
        self.bound();
    }

    fn bound(&mut self) {
        self.all |= self.files.len() > FLUSHED_SINGLY_FILES_MAX || self.folders.len() > FLUSHED_SINGLY_FOLDERS_MAX;
        if self.all {
            self.files.clear();
            self.folders.clear();
        }
    }

    /// Makes them durable. Blocks as long as the disk takes.
    pub(super) fn flush(&self, dir: &Dir) -> Result<(), Error> {
        if self.all {
            return dir.flush();
        }
        for (path, file) in &self.files {
            file.sync_data().map_err(|error| dir.failed("flush", path.as_str(), error))?;
        }
        if self.top || !self.folders.is_empty() {
            dir.flush_folders(self.folders.iter().map(String::as_str))?;
        }
        Ok(())
    }
}

/// See the module's documentation.
pub(super) struct Track {
    digests: Arc<Digests>,
    unflushed: Unflushed,
    /// The place in `unflushed` of each file there, by its present name.
    places: HashMap<RelPath, usize, RandomState>,
    /// Files written to since the last [`settle`](Self::settle), and the lowest offset.
    written: HashMap<RelPath, (Arc<File>, u64), RandomState>,
}

impl Track {
    /// `unflushed` is from before.
    pub(super) fn new(digests: Arc<Digests>, unflushed: Unflushed) -> Self {
        Self { digests, unflushed, places: HashMap::default(), written: HashMap::default() }
    }

    /// A file is about to be written to, at or behind `offset`.
    pub(super) fn writes(&mut self, path: &RelPath, file: &Arc<File>, offset: u64) {
        if let Some((_, lowest)) = self.written.get_mut(path) {
            *lowest = offset.min(*lowest);
            return;
        }
        self.digests.check(path, file);
        self.written.insert(path.clone(), (file.clone(), offset));
    }

    /// Notes how the files written to are now. To be called whenever a block is done, and before a name changes.
    pub(super) fn settle(&mut self) {
        for (path, (file, offset)) in std::mem::take(&mut self.written) {
            self.digests.changed(&path, &file, offset);
            if self.unflushed.all {
                continue;
            }
            match self.places.get(&path) {
                Some(&place) => self.unflushed.files[place].1 = file,
                None => {
                    self.places.insert(path.clone(), self.unflushed.files.len());
                    self.unflushed.files.push((path, file));
                }
            }
            self.unflushed.bound();
        }
    }

    /// A name was put into its folder, or taken out of it; folders may have been made, or removed, on the way.
    pub(super) fn folders_of(&mut self, path: &RelPath) {
        if self.unflushed.all {
            return;
        }
        let mut above = path.as_str();
        while let Some((folder, _)) = above.rsplit_once('/') {
            above = folder;
            if !self.unflushed.folders.insert(folder.to_owned()) {
                return;
            }
        }
        // Of the directory itself, which is flushed with any folder.
        self.unflushed.top = true;
        self.unflushed.bound();
    }

    /// The name means no file any more, or another one.
    pub(super) fn gone(&mut self, path: &RelPath) {
        self.written.remove(path);
        // Its place stays taken: flushing what has no name costs little, and places do not move.
        self.places.remove(path);
        self.digests.forget(path);
        self.folders_of(path);
    }

    /// A file, of which `file` is a handle, is about to get another name.
    pub(super) fn renames(&mut self, from: &RelPath, file: &File) {
        self.settle();
        self.digests.check(from, file);
    }

    /// It has it.
    pub(super) fn renamed(&mut self, from: &RelPath, to: &RelPath, file: &File) {
        self.places.remove(to);
        if let Some(place) = self.places.remove(from) {
            self.places.insert(to.clone(), place);
        }
        self.digests.renamed(from, to);
        self.digests.changed(to, file, u64::MAX);
        self.folders_of(from);
        self.folders_of(to);
    }

    /// Hands out what is not durable, to be made so.
    pub(super) fn take(&mut self) -> Unflushed {
        self.settle();
        self.places.clear();
        std::mem::take(&mut self.unflushed)
    }
}
