//! File systems that were mounted below a data directory and are not any more. Of what was on them nobody knows whether it is there:
//! it is not there under its name, and yet not deleted.
//!
//! Known is what was mounted when the table was last read, and it is read whenever it has changed: by whoever watches the
//! directory, and by whoever is about to take something for gone. A place where something else is mounted than was, or nothing,
//! counts as one whose file system is gone, with all below it and also if its mount point is removed or renamed, until what was there is
//! mounted there again. A mount that moved with a folder that was renamed has not gone. Told by place, device, and which part of
//! it is mounted, so that it works for parts of one file system (`mount --bind`) too.
//!
//! Not seen is a file system that another one takes the place of, with its device number, between two looks.
//!
//! No threads; one lock, a leaf but for the reading of the table. Where there is no `/proc` nothing is known.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::mounts::{Mount, Table, relative};
use crate::sys::fd::{AsFd, BorrowedFd};
use crate::sys::sync::Mutex;
use crate::types::RelPath;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Unmounted {
    root: PathBuf,
    table: Option<Table>,
    state: Mutex<State>,
    /// Whether there is anything in `gone`.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Whether it was ever asked to look; nothing is gone before.
    looks: bool,
    mounted: BTreeMap<RelPath, Mount>,
    /// What was mounted there.
    gone: BTreeMap<RelPath, Mount>,
    /// Places that have changed since somebody asked.
    changed: BTreeSet<RelPath>,
}

impl Unmounted {
    /// From the first [`look`](Self::look) on. `root` has no links on the way.
    pub(crate) fn below(root: &Path) -> Self {
        let table = Table::open()
            .inspect_err(|error| log::debug!("what is mounted below {} is not known: {error}", root.display()));
        Self { root: root.to_owned(), table: table.ok(), state: Mutex::default(), any: AtomicBool::new(false) }
    }

    /// What a `poll` for `PRI` tells changes of; whoever does that calls [`has_changed`](Self::has_changed) then.
    pub(crate) fn table(&self) -> Option<BorrowedFd<'_>> {
        self.table.as_ref().map(AsFd::as_fd)
    }

    /// A `poll` of others has told of a change.
    pub(crate) fn has_changed(&self) {
        if let Some(table) = &self.table {
            table.has_changed();
        }
    }

    /// Looks what is mounted now. Returns the places where that is something else than when this was last called. Cheap unless
    /// something was mounted or unmounted, anywhere.
    pub(crate) fn look(&self) -> io::Result<BTreeSet<RelPath>> {
        let mut state = self.state.lock();
        state.looks = true;
        self.read(&mut state)?;
        Ok(std::mem::take(&mut state.changed))
    }

    /// The place that `path` is at, or below, whose file system is gone. Looks, if it was ever asked to.
    pub(crate) fn covering(&self, path: &str) -> io::Result<Option<RelPath>> {
        let mut state = self.state.lock();
        if state.looks {
            self.read(&mut state)?;
        }
        Ok(state.covering(path))
    }

    /// Whether there is any such place, as of the last look.
    pub(crate) fn is_any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    fn read(&self, state: &mut State) -> io::Result<()> {
        let Some(table) = &self.table else { return Ok(()) };
        let Some(mounted) = table.read(&self.root)? else { return Ok(()) };
        let named = |(place, mount): (PathBuf, Mount)| Some((relative(&self.root, &place)?, mount));
        state.note(mounted.into_iter().filter_map(named).collect());
        self.any.store(!state.gone.is_empty(), Ordering::Release);
        Ok(())
    }
}

impl State {
    fn covering(&self, path: &str) -> Option<RelPath> {
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        ends.filter_map(|end| self.gone.get_key_value(&path[..end])).map(|(place, _)| place.clone()).next()
    }

    fn note(&mut self, now: BTreeMap<RelPath, Mount>) {
        let new = now.iter().filter(|(place, is)| self.mounted.get(*place) != Some(is));
        self.changed.extend(new.map(|(place, _)| place.clone()));
        for (place, was) in std::mem::take(&mut self.mounted) {
            if now.get(&place).is_some_and(|is| is.is_same(&was)) {
                continue;
            }
            let has_moved = now.values().any(|is| *is == was);
            self.changed.insert(place.clone());
            if !has_moved {
                self.gone.entry(place).or_insert(was);
            }
        }
        self.gone.retain(|place, was| !now.get(place).is_some_and(|is| is.is_same(was)));
        self.mounted = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By place, id and device.
    fn mounted(mounts: &[(&str, u64, &str)]) -> BTreeMap<RelPath, Mount> {
        let mount = |(place, id, device): &(&str, u64, &str)| {
            let mount = Mount { id: *id, device: (*device).to_owned(), part: "/".to_owned() };
            (RelPath::new(place).unwrap(), mount)
        };
        mounts.iter().map(mount).collect()
    }

    fn covered(state: &State, path: &str) -> Option<String> {
        state.covering(path).map(|place| place.to_string())
    }

    #[test]
    fn what_was_mounted_covers_what_is_below_its_place_until_it_is_mounted_there_again() {
        let mut state = State::default();
        let changed = |state: &mut State, mounts: &[(&str, u64, &str)]| {
            state.note(mounted(mounts));
            std::mem::take(&mut state.changed).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(changed(&mut state, &[("a/b", 1, "8:1"), ("c", 2, "8:2")]), ["a/b", "c"]);
        assert_eq!(covered(&state, "a/b/x"), None);
        assert_eq!(changed(&mut state, &[("c", 2, "8:2")]), ["a/b"]);
        for (path, by) in [("a/b", Some("a/b")), ("a/b/x/y", Some("a/b")), ("a", None), ("a/bc", None), ("c/x", None)] {
            assert_eq!(covered(&state, path).as_deref(), by, "{path}");
        }
        // Another one in its place is not what was there.
        assert_eq!(changed(&mut state, &[("a/b", 1, "8:3"), ("c", 2, "8:2")]), ["a/b"]);
        assert_eq!(covered(&state, "a/b/x").as_deref(), Some("a/b"));
        changed(&mut state, &[("c", 2, "8:2")]);
        assert_eq!(changed(&mut state, &[("a/b", 7, "8:1"), ("c", 2, "8:2")]), ["a/b"]);
        assert_eq!(covered(&state, "a/b/x"), None);
    }

    #[test]
    fn a_mount_that_moved_with_its_folder_has_not_gone() {
        let mut state = State::default();
        state.note(mounted(&[("a/b", 1, "8:1"), ("c", 2, "8:2")]));
        state.note(mounted(&[("d/b", 1, "8:1"), ("c", 2, "8:2")]));
        assert_eq!((covered(&state, "a/b/x"), covered(&state, "d/b/x")), (None, None));
        // Mounted elsewhere too is not moved.
        state.note(mounted(&[("e", 3, "8:1"), ("c", 2, "8:2")]));
        assert_eq!(covered(&state, "d/b/x").as_deref(), Some("d/b"));
    }
}
