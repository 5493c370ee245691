//! What is to be looked at besides the content of files, by the `attributes` thread (`tasks/attributes.rs`).

use std::collections::BTreeSet;

use crate::protocol::extension::{Attributes, Item};
use crate::stop::Stop;
use crate::sys::sync::Mutex;
use crate::types::{RelPath, StreamPosition};

/// Names that are kept for the next look; beyond that everything is looked at.
pub(in crate::leader) const WANTED_MAX: usize = 1 << 16;

/// A leaf: its lock is held to put and take.
#[derive(Default)]
pub(in crate::leader) struct Looks {
    wanted: Mutex<Wanted>,
    /// The next look is the last.
    pub(in crate::leader) last: Stop,
    /// It was.
    pub(in crate::leader) done: Stop,
}

/// See the module's documentation.
#[derive(Default)]
pub(in crate::leader) struct Wanted {
    pub(in crate::leader) paths: BTreeSet<RelPath>,
    /// There were more.
    pub(in crate::leader) all: bool,
    /// A follower joined that may lack what was announced since.
    pub(in crate::leader) joined_since: Option<StreamPosition>,
    /// It may have these folders and links, which are not announced any more.
    pub(in crate::leader) not_known: Vec<RelPath>,
    /// Files that some follower has without what was announced of them.
    pub(in crate::leader) forgotten: BTreeSet<RelPath>,
}

impl Looks {
    /// Something other than its content may have changed at this name. Never blocks.
    pub(in crate::leader) fn again(&self, path: &RelPath) {
        let mut wanted = self.wanted.lock();
        if wanted.paths.len() < WANTED_MAX {
            wanted.paths.insert(path.clone());
        } else {
            wanted.all = true;
        }
    }

    /// Something may have changed at any name.
    pub(in crate::leader) fn all_again(&self) {
        self.wanted.lock().all = true;
    }

    /// A follower is attached that compared what there was at this position, or later, and may have these folders and links that are not announced any more.
    pub(in crate::leader) fn joined(&self, since: StreamPosition, mut not_known: Vec<RelPath>) {
        let mut wanted = self.wanted.lock();
        wanted.joined_since = Some(wanted.joined_since.map_or(since, |earlier| earlier.min(since)));
        wanted.not_known.append(&mut not_known);
    }

    /// A follower has this file without what was announced of it.
    pub(in crate::leader) fn forget(&self, path: &RelPath) {
        let mut wanted = self.wanted.lock();
        wanted.forgotten.insert(path.clone());
        wanted.paths.insert(path.clone());
    }

    /// All of it.
    pub(in crate::leader) fn take(&self) -> Wanted {
        std::mem::take(&mut *self.wanted.lock())
    }
}

/// As an item: its owner may read, write and enter a copy of it.
pub(in crate::leader) fn of_folder(attributes: Attributes) -> Item {
    Item::Folder(Attributes { mode: attributes.mode | 0o700, ..attributes })
}
