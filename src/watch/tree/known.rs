//! The files that were announced, by path and by identity.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::folders::paths_below;
use super::unread::Unread;
use crate::first_look::RestingFiles;
use crate::sys::hash::HashMap;
use crate::types::RelPath;
use crate::watch::file::{Identity, Known};

/// A file with several names (hard links) is found by one of them.
#[derive(Default)]
pub(super) struct Files {
    known: BTreeMap<RelPath, Known>,
    paths: HashMap<Identity, RelPath>,
    /// Those that are as the first look found them, which is most of them, and takes less room.
    unread: Unread,
}

impl Files {
    /// All that were at rest at the first look.
    pub(super) fn of(files: RestingFiles) -> Self {
        Self { unread: Unread::of(files), ..Self::default() }
    }

    pub(super) fn get(&self, path: &RelPath) -> Option<Known> {
        self.known.get(path).copied().or_else(|| self.unread.get(path.as_str()))
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.known.contains_key(path) || self.unread.has(path)
    }

    /// Its identity must stay what it is.
    pub(super) fn get_mut(&mut self, path: &RelPath) -> Option<&mut Known> {
        if let Some(known) = self.unread.take(path.as_str()) {
            self.paths.insert(known.id(), path.clone());
            self.known.insert(path.clone(), known);
        }
        self.known.get_mut(path)
    }

    pub(super) fn insert(&mut self, path: RelPath, known: Known) {
        self.remove(&path);
        self.paths.insert(known.id(), path.clone());
        self.known.insert(path, known);
    }

    pub(super) fn remove(&mut self, path: &RelPath) -> Option<Known> {
        let Some(known) = self.known.remove(path) else { return self.unread.take(path.as_str()) };
        if self.paths.get(&known.id()) == Some(path) {
            self.paths.remove(&known.id());
        }
        Some(known)
    }

    /// The path under which a file was announced.
    pub(super) fn find(&self, id: Identity) -> Option<&RelPath> {
        self.paths.get(&id).or_else(|| self.unread.find(id))
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &RelPath> {
        self.known.keys().chain(self.unread.paths())
    }

    /// How many there are; a few less, perhaps.
    pub(super) fn count(&self) -> usize {
        self.known.len() + self.unread.count()
    }

    /// The next paths behind one, in order: so many at most.
    pub(super) fn after(&self, path: Option<&RelPath>, most: usize) -> Vec<RelPath> {
        let from = path.map_or(Bound::Unbounded, |path| Bound::Excluded(path.as_str()));
        let known = self.known.range::<str, _>((from, Bound::Unbounded)).map(|(path, _)| path).take(most);
        let mut after: Vec<_> = known.chain(self.unread.after(path).take(most)).cloned().collect();
        after.sort_unstable();
        after.truncate(most);
        after
    }

    /// The paths below `folder`.
    pub(super) fn below(&self, folder: &RelPath) -> Vec<RelPath> {
        let mut below = paths_below(&self.known, folder);
        below.extend(self.unread.below(folder).cloned());
        below
    }

    /// Files known under this path, below it, or where it needs a folder: none of them can stay if a file comes there.
    pub(super) fn in_the_way_of(&self, path: &RelPath) -> Vec<RelPath> {
        let folders = path.as_str().match_indices('/').map(|(end, _)| &path.as_str()[..end]);
        let above = folders.filter_map(|folder| self.name(folder));
        let mut found: Vec<_> = above.chain(self.name(path.as_str())).cloned().collect();
        found.extend(self.below(path));
        found
    }

    fn name(&self, path: &str) -> Option<&RelPath> {
        self.known.get_key_value(path).map(|(path, _)| path).or_else(|| self.unread.name(path))
    }
}
