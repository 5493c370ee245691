//! Folders: each is watched, then listed.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Tree, Trouble};
use crate::error::Error;
use crate::types::RelPath;
use crate::watch::announce::Announce;

/// A folder that is watched.
#[derive(Clone, Copy)]
pub(super) struct Folder {
    watch: i32,
    dev: u64,
    ino: u64,
}

impl<A: Announce> Tree<A> {
    /// Lists a folder; watches it before, unless it is watched already. That one is listed all the same: it may have been away
    /// for a moment, and what is in it looked for then, by us or by the leader.
    pub(super) fn look_at_folder(&mut self, path: &RelPath) -> Result<(), Trouble> {
        let meta = self.open_entry(path, OFlags::DIRECTORY)?.metadata()?;
        let known = self.folders.get(path).copied();
        if known.is_none_or(|known| (known.dev, known.ino) != (meta.dev(), meta.ino())) {
            self.watch_folder(path, &meta)?;
        }
        if let Err(error) = self.list(Some(path)) {
            // Not listed, so not known: it is tried again as a whole.
            self.forget_folder(path);
            return Err(error.into());
        }
        Ok(())
    }

    fn watch_folder(&mut self, path: &RelPath, meta: &Metadata) -> Result<(), Trouble> {
        self.forget_folder(path);
        let full_path = path.below(&self.root);
        let watch = match self.inotify.add(&full_path) {
            Ok(watch) => watch,
            Err(errno @ (Errno::NOSPC | Errno::NOMEM)) => return Err(Trouble::Fatal(watch_error(&full_path, errno))),
            Err(errno) => return Err(io::Error::from(errno).into()),
        };
        // A folder that was moved here keeps its watch: it belongs to the new name alone from now on.
        if let Some(Some(old)) = self.watches.insert(watch, Some(path.clone()))
            && old != *path
        {
            self.folders.remove(&old);
            self.dirty.insert(old);
        }
        self.folders.insert(path.clone(), Folder { watch, dev: meta.dev(), ino: meta.ino() });
        Ok(())
    }

    /// Marks what is in a folder as wanting a look.
    pub(super) fn list(&mut self, folder: Option<&RelPath>) -> io::Result<()> {
        let path = folder.map_or_else(|| self.root.clone(), |folder| folder.below(&self.root));
        for entry in fs::read_dir(path)? {
            let name = entry?.file_name();
            if let Some(path) = entry_path(&self.root, folder, name.as_encoded_bytes(), true) {
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
            if let Some(Folder { watch, .. }) = self.folders.remove(&folder)
                // It may belong to another name by now.
                && self.watches.get(&watch).is_some_and(|owner| owner.as_ref() == Some(&folder))
            {
                self.watches.remove(&watch);
                self.inotify.remove(watch);
            }
        }
        self.dirty.extend(self.files.below(path));
    }
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
