//! The files of the first look that are as the leader found them, of which nothing was read: some 60 bytes each.
//!
//! They are collected, then sorted once. After that none is added: one that changes becomes one of those that are known better.

use crate::types::RelPath;
use crate::watch::file::{Identity, Known, Seen};

#[derive(Default)]
pub(super) struct Unread {
    /// By path, once they are sorted.
    files: Vec<File>,
    /// Where they stand, by inode.
    by_inode: Vec<u32>,
    devices: Vec<u64>,
}

struct File {
    path: RelPath,
    ino: u64,
    born: Option<i64>,
    len: u64,
    changed: i64,
    /// Which of the devices it is on.
    device: u16,
    unique: bool,
    is_gone: bool,
}

impl Unread {
    /// What does not fit is left out: nobody misses it.
    pub(super) fn push(&mut self, path: RelPath, seen: &Seen) {
        let device = self.devices.iter().position(|device| *device == seen.id.dev).unwrap_or_else(|| {
            self.devices.push(seen.id.dev);
            self.devices.len() - 1
        });
        let Seen { id: Identity { ino, born, .. }, len, changed, unique, .. } = *seen;
        if let Ok(device) = u16::try_from(device) {
            self.files.push(File { path, ino, born, len, changed, device, unique, is_gone: false });
        }
    }

    /// Returns how many there are.
    pub(super) fn sort(&mut self) -> u64 {
        // Stable, which is quick for what is nearly in order.
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        self.files.shrink_to_fit();
        let count = u32::try_from(self.files.len()).expect("fewer files than 2^32, as in the index");
        self.by_inode = (0..count).collect();
        self.by_inode.sort_unstable_by_key(|at| self.files[*at as usize].ino);
        count.into()
    }

    fn at(&self, path: &str) -> Option<usize> {
        let at = self.files.binary_search_by(|file| file.path.as_str().cmp(path)).ok();
        at.filter(|at| !self.files[*at].is_gone)
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
        self.files[at].is_gone = true;
        Some(self.known(&self.files[at]))
    }

    pub(super) fn find(&self, id: Identity) -> Option<&RelPath> {
        let file = |at: &u32| &self.files[*at as usize];
        let from = self.by_inode.partition_point(|at| file(at).ino < id.ino);
        let same = self.by_inode[from..].iter().map(file).take_while(|file| file.ino == id.ino);
        same.filter(|file| !file.is_gone).find(|file| self.id(file) == id).map(|file| &file.path)
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &RelPath> {
        self.files.iter().filter(|file| !file.is_gone).map(|file| &file.path)
    }

    pub(super) fn count(&self) -> usize {
        self.files.len()
    }

    /// Those behind a path, in order.
    pub(super) fn after(&self, path: Option<&RelPath>) -> impl Iterator<Item = &RelPath> {
        let from = path.map_or(0, |path| self.files.partition_point(|file| file.path.as_str() <= path.as_str()));
        self.files[from..].iter().filter(|file| !file.is_gone).map(|file| &file.path)
    }

    /// Those below `folder`.
    pub(super) fn below(&self, folder: &RelPath) -> impl Iterator<Item = &RelPath> {
        let prefix = format!("{folder}/");
        let from = self.files.partition_point(|file| file.path.as_str() < prefix.as_str());
        let below = self.files[from..].iter().take_while(move |file| file.path.as_str().starts_with(&prefix));
        below.filter(|file| !file.is_gone).map(|file| &file.path)
    }

    fn id(&self, file: &File) -> Identity {
        Identity { dev: self.devices[usize::from(file.device)], ino: file.ino, born: file.born }
    }

    fn known(&self, file: &File) -> Known {
        let &File { len, changed, unique, .. } = file;
        // Only what had settled is here.
        Known::new(Seen { id: self.id(file), len, changed, settled: true, unique }, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> RelPath {
        RelPath::new(name).unwrap()
    }

    fn seen(dev: u64, ino: u64) -> Seen {
        Seen { id: Identity { dev, ino, born: Some(1) }, len: 1, changed: 1, settled: true, unique: true }
    }

    #[test]
    fn files_are_found_by_path_by_inode_and_by_folder_until_they_are_taken() {
        let mut unread = Unread::default();
        let files = [("b", 1, 1), ("a/x", 1, 3), ("a-b", 1, 4), ("a/b/c", 2, 3), ("a", 1, 3)];
        for (name, dev, ino) in files {
            unread.push(path(name), &seen(dev, ino));
        }
        assert_eq!(unread.sort(), 5);
        for (name, dev, ino) in files {
            assert_eq!(unread.get(name).map(|known| known.id()), Some(seen(dev, ino).id));
        }
        let below = |unread: &Unread| unread.below(&path("a")).map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(below(&unread), ["a/b/c", "a/x"]);
        assert_eq!(unread.find(seen(2, 3).id), Some(&path("a/b/c")));
        assert_eq!(unread.find(seen(3, 3).id), None);
        assert_eq!(unread.find(seen(1, 3).id), Some(&path("a")), "the first of two names");
        assert!(unread.take("a").is_some() && unread.take("a").is_none() && !unread.has("a"));
        assert_eq!(unread.find(seen(1, 3).id), Some(&path("a/x")));
        assert!(unread.take("a/x").is_some());
        assert_eq!((below(&unread), unread.find(seen(1, 3).id)), (vec!["a/b/c".to_owned()], None));
        assert_eq!(unread.paths().map(RelPath::as_str).collect::<Vec<_>>(), ["a-b", "a/b/c", "b"]);
    }
}
