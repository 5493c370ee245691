//! What a connection remembers of the changes it makes: which files and folders are not durable yet, and
//! which digests are still true. Owned by the reader; 1.0.0 needs it only to acknowledge what is durable.

use std::sync::Arc;

use super::digests::Digests;
use super::flush::{Changed, FILES_KEPT_MAX, Unflushed};
use crate::sys::fs::File;
use crate::sys::hash::HashMap;
use crate::types::RelPath;

/// See the module's documentation.
pub(super) struct Track {
    digests: Arc<Digests>,
    /// Without the files in `changed`.
    unflushed: Unflushed,
    /// Files that are not durable, by their present names. What has no name any more is let go: nobody needs its content, and
    /// an open handle would keep it on the disk.
    changed: HashMap<RelPath, Changed>,
    /// Files written to since the last [`settle`](Self::settle), and the lowest offset.
    written: HashMap<RelPath, (Arc<File>, u64)>,
}

impl Track {
    /// `unflushed` is from before.
    pub(super) fn new(digests: Arc<Digests>, unflushed: Unflushed) -> Self {
        Self { digests, unflushed, changed: HashMap::default(), written: HashMap::default() }
    }

    /// A file is about to be written to, at or behind `offset`.
    pub(super) fn writes(&mut self, path: &RelPath, file: &Arc<File>, offset: u64) {
        if let Some((_, lowest)) = self.written.get_mut(path) {
            *lowest = offset.min(*lowest);
            return;
        }
        self.digests.check(path, file);
        self.changes(path, file);
        self.written.insert(path.clone(), (file.clone(), offset));
    }

    fn changes(&mut self, path: &RelPath, file: &Arc<File>) {
        if self.unflushed.is_all() || self.changed.contains_key(path) {
            return;
        }
        self.changed.insert(path.clone(), Changed { path: path.clone(), file: file.clone() });
        if self.changed.len() > FILES_KEPT_MAX {
            self.unflushed.everything();
            self.changed.clear();
        }
    }

    /// Notes how the files written to are now. To be called whenever a block is done, and before a name changes.
    pub(super) fn settle(&mut self) {
        for (path, (file, offset)) in std::mem::take(&mut self.written) {
            self.digests.changed(&path, &file, offset);
        }
    }

    /// A name was put into its folder, or taken out of it; folders may have been made, or removed, on the way.
    pub(super) fn folders_of(&mut self, path: &RelPath) {
        self.unflushed.add_folders_of(path);
    }

    /// The name means no file any more, or another one.
    pub(super) fn gone(&mut self, path: &RelPath) {
        self.written.remove(path);
        self.changed.remove(path);
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
        self.changed.remove(to);
        if let Some(changed) = self.changed.remove(from) {
            self.changed.insert(to.clone(), changed);
        }
        self.digests.renamed(from, to);
        self.digests.changed(to, file, u64::MAX);
        self.folders_of(from);
        self.folders_of(to);
    }

    /// Hands out what is not durable, to be made so.
    pub(super) fn take(&mut self) -> Unflushed {
        self.settle();
        let mut unflushed = std::mem::take(&mut self.unflushed);
        unflushed.add_files(std::mem::take(&mut self.changed).into_values());
        unflushed
    }
}
