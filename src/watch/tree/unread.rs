//! The files that were at rest at the first look, of which nothing was read: some 60 bytes each.
//!
//! They are sorted once. None is added: one that changes becomes one of those that are known better.

use crate::first_look::{RestingFile, RestingFiles};
use crate::types::RelPath;
use crate::watch::file::{Identity, Known, Seen};

#[derive(Default)]
pub(super) struct Unread {
    /// By path.
    files: Vec<RestingFile>,
    /// Where they stand, by inode.
    by_inode: Vec<u32>,
    devices: Vec<u64>,
}

/// The device of a file that is not here any more.
const NOWHERE: u16 = u16::MAX;

impl Unread {
    pub(super) fn of(RestingFiles { mut files, devices }: RestingFiles) -> Self {
        // Stable, which is quick for what is nearly in order.
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files.shrink_to_fit();
        let count = u32::try_from(files.len()).expect("fewer files than 2^32, as in the index");
        let mut by_inode: Vec<_> = (0..count).collect();
        by_inode.sort_unstable_by_key(|at| files[*at as usize].ino);
        Self { files, by_inode, devices }
    }

    fn at(&self, path: &str) -> Option<usize> {
        let at = self.files.binary_search_by(|file| file.path.as_str().cmp(path)).ok();
        at.filter(|at| is_here(&self.files[*at]))
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.at(path).is_some()
    }

    pub(super) fn name(&self, path: &str) -> Option<&RelPath> {
        self.at(path).map(|at| &self.files[at].path)
    }

    pub(super) fn get(&self, path: &str) -> Option<Known> {
        self.at(path).map(|at| self.known(&self.files[at]))
    }

    /// What it was.
    pub(super) fn take(&mut self, path: &str) -> Option<Known> {
        let at = self.at(path)?;
        let known = self.known(&self.files[at]);
        self.files[at].device = NOWHERE;
        Some(known)
    }

    pub(super) fn find(&self, id: Identity) -> Option<&RelPath> {
        let file = |at: &u32| &self.files[*at as usize];
        let from = self.by_inode.partition_point(|at| file(at).ino < id.ino);
        let same = self.by_inode[from..].iter().map(file).take_while(|file| file.ino == id.ino);
        same.filter(|file| is_here(file)).find(|file| self.id(file) == id).map(|file| &file.path)
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &RelPath> {
        self.files.iter().filter(|file| is_here(file)).map(|file| &file.path)
    }

    pub(super) fn count(&self) -> usize {
        self.files.len()
    }

    /// Those behind a path, in order.
    pub(super) fn after(&self, path: Option<&RelPath>) -> impl Iterator<Item = &RelPath> {
        let from = path.map_or(0, |path| self.files.partition_point(|file| file.path.as_str() <= path.as_str()));
        self.files[from..].iter().filter(|file| is_here(file)).map(|file| &file.path)
    }

    /// Those below `folder`.
    pub(super) fn below(&self, folder: &RelPath) -> impl Iterator<Item = &RelPath> {
        let prefix = format!("{folder}/");
        let from = self.files.partition_point(|file| file.path.as_str() < prefix.as_str());
        let below = self.files[from..].iter().take_while(move |file| file.path.as_str().starts_with(&prefix));
        below.filter(|file| is_here(file)).map(|file| &file.path)
    }

    fn id(&self, file: &RestingFile) -> Identity {
        Identity { dev: self.devices[usize::from(file.device)], ino: file.ino, born: file.born() }
    }

    fn known(&self, file: &RestingFile) -> Known {
        let &RestingFile { len, changed, .. } = file;
        // No birth comes again before the last change of a file at rest.
        let unique = file.born().is_some_and(|born| born <= changed);
        Known::new(Seen { id: self.id(file), len, changed, settled: true, unique }, len)
    }
}

fn is_here(file: &RestingFile) -> bool {
    file.device != NOWHERE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beneath::FileLooks;
    use crate::digests::Stamps;

    fn path(name: &str) -> RelPath {
        RelPath::new(name).unwrap()
    }

    fn id(dev: u64, ino: u64) -> Identity {
        Identity { dev, ino, born: Some(1) }
    }

    #[test]
    fn files_are_found_by_path_by_inode_and_by_folder_until_they_are_taken() {
        let mut found = RestingFiles::default();
        let files = [("b", 1, 1), ("a/x", 1, 3), ("a-b", 1, 4), ("a/b/c", 2, 3), ("a", 1, 3)];
        for (name, dev, ino) in files {
            let stamps = Stamps { dev, ino, size: 1, mtime: 1, ctime: 1 };
            assert!(found.push(&path(name), &FileLooks { stamps, born: Some(1) }));
        }
        let mut unread = Unread::of(found);
        for (name, dev, ino) in files {
            assert_eq!(unread.get(name).map(|known| known.id()), Some(id(dev, ino)));
        }
        let below = |unread: &Unread| unread.below(&path("a")).map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(below(&unread), ["a/b/c", "a/x"]);
        assert_eq!(unread.find(id(2, 3)), Some(&path("a/b/c")));
        assert_eq!(unread.find(id(3, 3)), None);
        assert_eq!(unread.find(id(1, 3)), Some(&path("a")), "the first of two names");
        assert!(unread.take("a").is_some() && unread.take("a").is_none() && !unread.has("a"));
        assert_eq!(unread.find(id(1, 3)), Some(&path("a/x")));
        assert!(unread.take("a/x").is_some());
        assert_eq!((below(&unread), unread.find(id(1, 3))), (vec!["a/b/c".to_owned()], None));
        assert_eq!(unread.paths().map(RelPath::as_str).collect::<Vec<_>>(), ["a-b", "a/b/c", "b"]);
    }
}
