//! What a connection remembers of the changes it makes: which files and folders are not durable yet, and
//! which digests are still true. Owned by the reader; 1.0.0 needs it only to acknowledge what is durable.

use std::sync::Arc;

use super::digests::Digests;
use super::flush::{Changed, FILES_KEPT_MAX, Unflushed};
use crate::digests::{Chunked, ON_THE_WAY_BYTES_MAX};
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
    /// Files written to since the last [`settle`](Self::settle).
    written: HashMap<RelPath, Written>,
    /// The file that was last appended to in bulk, and what came of it, if that is all of it.
    filled: Option<(RelPath, Chunked)>,
    filling: Option<RelPath>,
}

struct Written {
    file: Arc<File>,
    /// The lowest offset.
    from: u64,
    /// How long it was, until something is appended in bulk.
    len: Option<u64>,
    /// All that came of it, if it was filled since it was empty.
    filled: Option<Chunked>,
}

impl Track {
    /// `unflushed` is from before.
    pub(super) fn new(digests: Arc<Digests>, unflushed: Unflushed) -> Self {
        Self {
            digests,
            unflushed,
            changed: HashMap::default(),
            written: HashMap::default(),
            filled: None,
            filling: None,
        }
    }

    /// A file is about to be written to, at or behind `offset`.
    pub(super) fn writes(&mut self, path: &RelPath, file: &Arc<File>, offset: u64) {
        if let Some(written) = self.written.get_mut(path) {
            written.from = offset.min(written.from);
            written.filled = written.filled.take().filter(|_| offset == u64::MAX);
            return;
        }
        let len = self.digests.check(path, file);
        self.changes(path, file);
        let filled = self.filled.take_if(|(filled, _)| filled == path).map(|(_, filled)| filled);
        let filled = filled.filter(|filled| offset == u64::MAX && len == Some(filled.bytes()));
        self.written.insert(path.clone(), Written { file: file.clone(), from: offset, len, filled });
    }

    /// A file was appended to in bulk. All of a small file that was empty is digested as it comes: it would be read again to be compared.
    pub(super) fn appended(&mut self, path: &RelPath, bytes: &[u8]) {
        let Some(written) = self.written.get_mut(path) else { return };
        if written.len.take() == Some(0) && written.from == u64::MAX {
            written.filled = Some(Chunked::default());
        }
        if let Some(filled) = &mut written.filled {
            if filled.bytes() + bytes.len() as u64 > ON_THE_WAY_BYTES_MAX {
                written.filled = None;
                return;
            }
            filled.update(bytes);
            if self.filling.as_ref() != Some(path) {
                self.filling = Some(path.clone());
            }
        }
    }

    /// What it knows of digests in the end.
    #[cfg(test)]
    pub(super) fn into_digests(mut self) -> Arc<Digests> {
        self.settle();
        self.digests
    }

    fn changes(&mut self, path: &RelPath, file: &Arc<File>) {
        if self.unflushed.is_all() || self.changed.contains_key(path) {
            return;
        }
        self.changed.insert(path.clone(), Changed { path: path.clone(), file: file.clone(), is_whole: false });
        if self.changed.len() > FILES_KEPT_MAX {
            self.unflushed.everything();
            self.changed.clear();
        }
    }

    /// Notes how the files written to are now. To be called whenever a block is done, and before a name changes.
    pub(super) fn settle(&mut self) {
        for (path, Written { file, from, mut filled, .. }) in std::mem::take(&mut self.written) {
            self.digests.changed(&path, &file, from, filled.as_mut());
            if let Some(filled) = filled
                && self.filling.as_ref() == Some(&path)
            {
                self.filled = Some((path, filled));
            }
        }
    }

    /// Its mode or its times are about to be set.
    pub(super) fn sets_attributes(&mut self, path: &RelPath, file: &Arc<File>) {
        self.changes(path, file);
        if let Some(changed) = self.changed.get_mut(path) {
            changed.is_whole = true;
        }
    }

    /// A folder was made, or its mode set.
    pub(super) fn folder(&mut self, path: &RelPath) {
        self.unflushed.add_folder(path);
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
        self.digests.changed(to, file, u64::MAX, None);
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
