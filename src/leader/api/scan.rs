//! The first walk through a leader's directory.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::datadir::{ASK_EVERY, FoundFile, Visitor};
use crate::digests::file::{Reader, Who};
use crate::error::Error;
use crate::first_look::FirstLook;
use crate::index::blocks::Blocks;
use crate::index::chunks::ChunkCache;
use crate::index::{Index, Items, Version};
use crate::leader::files::exclude::Exclude;
use crate::leader::files::found::Found;
use crate::leader::files::looks::of_folder;
use crate::leader::files::unreadable::Unreadable;
use crate::leader::tasks::directory;
use crate::own_folder::OwnFolder;
use crate::protocol::extension::{Attributes, Item};
use crate::sys::fd::BorrowedFd;
use crate::sys::time::Instant;
use crate::types::{RelPath, StreamPosition};

/// Between two words about how far the directory is read.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// What the first walk finds.
pub(super) struct Scan<'a> {
    pub(super) index: Index,
    pub(super) items: Items,
    /// Each file that is found is a change.
    pub(super) found: Found,
    /// For who will watch the directory.
    pub(super) look: Option<FirstLook>,
    pub(super) exclude: &'a Exclude,
    pub(super) unreadable: &'a Unreadable,
    pub(super) root: &'a Path,
    pub(super) files: &'a AtomicU64,
    pub(super) go_on: &'a mut dyn FnMut(u64) -> bool,
    /// It is not to go on.
    pub(super) ended: bool,
    pub(super) said: Instant,
}

impl Visitor for Scan<'_> {
    fn goes_on(&mut self) -> bool {
        if let Some(look) = &mut self.look {
            look.keep_events();
        }
        let files = self.index.totals().0;
        self.files.store(files, Ordering::Relaxed);
        if self.said.elapsed() >= SAY_EVERY {
            self.said = Instant::now();
            log::info!("reading {}: {files} files so far", self.root.display());
        }
        self.ended = self.ended || !(self.go_on)(files);
        !self.ended
    }

    fn folder(&mut self, path: &RelPath, attributes: Attributes) -> bool {
        let is_content = !self.exclude.folder(path);
        if is_content {
            self.items.put(path, of_folder(attributes), StreamPosition::START.0);
        }
        is_content
    }

    fn link(&mut self, path: RelPath, target: &[u8]) {
        if !self.exclude.file(&path)
            && let Some(link) = Item::link(target)
        {
            self.items.put(&path, link, StreamPosition::START.0);
        }
    }

    fn lists(&mut self, path: Option<&RelPath>, folder: BorrowedFd<'_>) {
        if let Some(look) = &mut self.look {
            look.lists(path, folder);
        }
    }

    fn file(&mut self, file: FoundFile) {
        if self.exclude.file(&file.path) {
            return;
        }
        let change = self.found.push(&file.looks.stamps);
        self.index.put(&file.path, file.len, Some(file.id), change);
        self.index.describe(file.path.as_str(), file.attributes);
        if let Some(look) = &mut self.look {
            look.file(file.path, &file.looks);
        }
    }

    fn unseen(&mut self, path: &RelPath, error: Error) -> Result<(), Error> {
        // Whoever takes over the look asks what is noted.
        self.unreadable.note(self.root, path, &directory::io_of(error), false);
        Ok(())
    }
}

impl Scan<'_> {
    /// Takes up the digests that are kept of files that look as they did.
    pub(super) fn know(&mut self, own: &OwnFolder, chunks: &ChunkCache, blocks: &Blocks) {
        let generations = StreamPosition::START.0 + 1..self.found.position().0 + 1;
        blocks.make_room(generations.clone());
        chunks.make_room(generations);
        let mut beside = 0;
        for (at, known) in Reader::open(own, Who::Leader).into_iter().flatten().enumerate() {
            // What was found sound can be read.
            let Ok((path, digested)) = known else { break };
            if at % ASK_EVERY == 0 && !self.goes_on() {
                break;
            }
            let (Version { generation, len }, file) = self.index.announced_beside(path.as_str(), &mut beside);
            let looks = file.and_then(|file| self.found.looks(generation, file, len));
            if looks.is_some_and(|looks| digested.stamps.are(&looks)) {
                chunks.know(generation, digested);
            }
        }
    }
}
