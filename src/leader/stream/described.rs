//! What there is besides the content of files, as it is announced: their attributes, folders, links.
//!
//! Many at once, as one batch, of which a follower of 1.0.0 gets nothing.

use super::cuts::{WALK_ENTRIES, WALK_PAUSE};
use super::{Ordered, Stream};
use crate::error::AppendError;
use crate::index::recency::Found;
use crate::leader::batch::{BATCH_BYTES_MAX, Batch, Instead};
use crate::protocol::extension::{Attributes, Control, Item};
use crate::sys::thread;
use crate::types::{RelPath, StreamPosition};

/// What is announced.
pub(in crate::leader) enum News {
    /// A file of this generation has these; the time if it has not changed since it changed last at this position.
    Attributes(RelPath, Attributes, Described),
    /// There is this folder or link; not announced where there is a file of that name, or above it, or a link above it.
    Item(RelPath, Item),
    /// There is none of that name; also if none was announced.
    Gone(RelPath),
}

/// A file, and when it changed last.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::leader) struct Described {
    pub(in crate::leader) generation: u64,
    pub(in crate::leader) changed: u64,
}

impl Stream {
    /// Announces a few of these. Never held back.
    pub(in crate::leader) fn announce_news(&self, news: Vec<News>) -> Result<(), AppendError> {
        let mut ordered = self.ordered.lock();
        if ordered.closed.is_some() {
            return Err(AppendError::ShuttingDown);
        }
        ordered.announce_news(news);
        self.finish(ordered);
        Ok(())
    }

    /// Shows what changed since a position, the latest first. What changes meanwhile is shown as it was, or not.
    pub(in crate::leader) fn each_changed(&self, since: StreamPosition, each: impl FnMut(Found)) {
        if self.last_change() > since.0 {
            self.walk(since, None, each);
        }
    }

    fn last_change(&self) -> u64 {
        self.ordered.lock().index.last_change()
    }

    /// Which file it is, and which attributes were announced of it; `None` if there is none.
    pub(in crate::leader) fn described(&self, path: &RelPath) -> Option<(Described, Attributes)> {
        self.ordered.lock().described(path)
    }

    /// Some follower has another file of this name than the one whose attributes were announced.
    pub(in crate::leader) fn forget_attributes(&self, path: &RelPath) {
        self.ordered.lock().index.describe(path.as_str(), Attributes::UNKNOWN);
    }

    /// The folder or link of this name, as it was announced.
    pub(in crate::leader) fn item(&self, path: &str) -> Option<Item> {
        self.ordered.lock().items.get(path).cloned()
    }

    /// How many there are. O(1).
    pub(in crate::leader) fn item_count(&self) -> u64 {
        self.ordered.lock().items.len() as u64
    }

    /// All that changed since a position.
    pub(in crate::leader) fn items(&self, since: StreamPosition) -> Vec<(RelPath, Item)> {
        let (mut found, mut behind) = (Vec::new(), None);
        loop {
            behind = self.ordered.lock().items.walk(since.0, behind.as_ref(), WALK_ENTRIES, &mut found);
            if behind.is_none() {
                return found;
            }
            thread::park_timeout(WALK_PAUSE);
        }
    }

    pub(in crate::leader) fn has_items_below(&self, path: &RelPath) -> bool {
        !self.ordered.lock().items.below(path, None, 1).is_empty()
    }

    /// Those in a folder, and in the folders in it.
    pub(in crate::leader) fn items_below(&self, folder: &RelPath) -> Vec<RelPath> {
        let mut found: Vec<RelPath> = Vec::new();
        loop {
            let some = self.ordered.lock().items.below(folder, found.last(), WALK_ENTRIES);
            let is_over = some.len() < WALK_ENTRIES;
            found.extend(some);
            if is_over {
                return found;
            }
            thread::park_timeout(WALK_PAUSE);
        }
    }
}

impl Ordered {
    fn announce_news(&mut self, news: Vec<News>) {
        self.seal_for_queues();
        let mut raw = Vec::new();
        for one in news {
            let change = self.position + 1;
            let control = match one {
                News::Attributes(path, mut attributes, described) => {
                    match self.described(&path) {
                        Some((now, _)) if now == described => {}
                        Some((now, _)) if now.generation == described.generation => {
                            attributes.mtime = Attributes::NO_TIME;
                        }
                        _ => continue,
                    }
                    self.index.attribute(path.as_str(), attributes, change);
                    Control::Attributes(path, attributes)
                }
                News::Item(path, item) => {
                    if !self.has_place_for_item(&path) {
                        continue;
                    }
                    self.items.put(&path, item.clone(), change);
                    Control::Item(path, item)
                }
                News::Gone(path) => {
                    self.items.remove(&path);
                    Control::RemoveItem(path)
                }
            };
            self.add_control(&mut raw, &control);
        }
        self.push_controls(raw);
    }

    fn described(&self, path: &RelPath) -> Option<(Described, Attributes)> {
        let (generation, changed, attributes) = self.index.described(path.as_str())?;
        Some((Described { generation, changed }, attributes))
    }

    fn has_place_for_item(&self, path: &RelPath) -> bool {
        let name = path.as_str();
        let above = || name.match_indices('/').map(|(end, _)| &name[..end]);
        let is_link = |above: &str| matches!(self.items.get(above), Some(Item::Link { .. }));
        !above().chain([name]).any(|at| self.index.get(at).exists()) && !above().any(is_link)
    }

    /// Before a file comes to a name where there was none: what cannot be there then goes.
    pub(super) fn clear_the_way(&mut self, path: &RelPath) {
        let in_the_way = self.items.in_the_way(path);
        if in_the_way.is_empty() {
            return;
        }
        self.seal_for_queues();
        let mut raw = Vec::new();
        for item in in_the_way {
            self.items.remove(&item);
            self.add_control(&mut raw, &Control::RemoveItem(item));
        }
        self.push_controls(raw);
    }

    /// What comes next counts at once: what is in the open batch goes before it.
    fn seal_for_queues(&mut self) {
        if self.queues > 0 {
            self.seal();
        }
    }

    /// Adds one to those that make a batch.
    fn add_control(&mut self, raw: &mut Vec<u8>, control: &Control) {
        let before = raw.len();
        control.encode(raw);
        let bytes = raw.len() - before;
        if raw.len() > BATCH_BYTES_MAX && before > 0 {
            let last = raw.split_off(before);
            self.push_controls(std::mem::replace(raw, last));
        }
        self.position += bytes as u64;
    }

    /// Puts controls, whose bytes count already, into the stream.
    fn push_controls(&mut self, raw: Vec<u8>) {
        if self.queues == 0 || raw.is_empty() {
            return;
        }
        self.push_sealed_instead(Batch::actions(self.position, raw), Some(Instead::Steps(Vec::new())));
    }
}
