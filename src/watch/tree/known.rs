//! The files that were announced, by path and by identity.

use std::collections::BTreeMap;

use super::folders::paths_below;
use crate::sys::hash::HashMap;
use crate::types::RelPath;
use crate::watch::file::{Identity, Known};

/// A file with several names (hard links) is found by one of them.
#[derive(Default)]
pub(super) struct Files {
    known: BTreeMap<RelPath, Known>,
    paths: HashMap<Identity, RelPath>,
}

impl Files {
    pub(super) fn get(&self, path: &RelPath) -> Option<&Known> {
        self.known.get(path)
    }

    /// Its identity must stay what it is.
    pub(super) fn get_mut(&mut self, path: &RelPath) -> Option<&mut Known> {
        self.known.get_mut(path)
    }

    pub(super) fn insert(&mut self, path: RelPath, known: Known) {
        self.remove(&path);
        self.paths.insert(known.id(), path.clone());
        self.known.insert(path, known);
    }

    pub(super) fn remove(&mut self, path: &RelPath) -> Option<Known> {
        let known = self.known.remove(path)?;
        if self.paths.get(&known.id()) == Some(path) {
            self.paths.remove(&known.id());
        }
        Some(known)
    }

    /// The path under which a file was announced.
    pub(super) fn find(&self, id: Identity) -> Option<&RelPath> {
        self.paths.get(&id)
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &RelPath> {
        self.known.keys()
    }

    /// The paths below `folder`.
    pub(super) fn below(&self, folder: &RelPath) -> Vec<RelPath> {
        paths_below(&self.known, folder)
    }

    /// Files known under this path, below it, or where it needs a folder: none of them can stay if a file comes there.
    pub(super) fn in_the_way_of(&self, path: &RelPath) -> Vec<RelPath> {
        let folders = path.as_str().match_indices('/').map(|(end, _)| &path.as_str()[..end]);
        let above = folders.filter_map(|folder| self.known.get_key_value(folder));
        let mut found: Vec<_> = above.chain(self.known.get_key_value(path)).map(|(path, _)| path.clone()).collect();
        found.extend(self.below(path));
        found
    }
}
