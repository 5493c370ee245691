//! The `attributes` thread: what there is besides the content of files is looked at, and announced.
//!
//! Once a second it looks at each file that changed within the last two, at the folders these are in, and at whatever somebody says may have changed
//! ([`Looks::again`](crate::leader::files::looks::Looks::again): who watches the directory says so of all that is no file). What differs from what was announced is announced: permission bits and owner at once, the time of the last change of
//! a file's content once nothing of it has changed for a second. So that never waits for the disk on a host's thread, and a file that is written to all the time is not told of all the time.
//!
//! Only this thread announces items, after a look, and whoever changes something has it looked at after that: the last word is of what is there. A file's attributes
//! are announced only if it has not changed since before they were looked at.
//!
//! Who joins compares what there was when it began. What changed until it is attached is announced to all once more ([`Looks::joined`](crate::leader::files::looks::Looks::joined)), rather than be known as of a moment.
//!
//! A folder that is gone is told of again with each file in it that goes after that: a copy keeps a folder that is not empty.
//!
//! No more than [`AT_ONCE`] at a time are announced, with a [`PAUSE`] between, and none while announcements are held back. No locks but those of announcing.

use std::sync::Arc;
use std::time::Duration;

use crate::beneath::{Entry, FileLooks};
use crate::digests::now;
use crate::error::AppendError;
use crate::index::recency::Found;
use crate::leader::core::Core;
use crate::leader::files::looks::{WANTED_MAX, Wanted, of_folder};
use crate::leader::stream::News;
use crate::protocol::extension::{Attributes, Item};
use crate::sys::hash::HashSet;
use crate::types::{RelPath, StreamPosition};

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// So many are announced within one hold of the lock of appends: some ten microseconds.
const AT_ONCE: usize = 64;

/// And then comes a pause: some ten thousand a second.
const PAUSE: Duration = Duration::from_millis(5);

/// A file of which nothing changed for so many nanoseconds is at rest: less than between two looks, the second of which finds it so.
const REST: i64 = 900_000_000;

/// The thread's life.
pub(in crate::leader) fn run(core: &Arc<Core>) {
    let begun = core.stream.position();
    // Where the stream was at the look before the last one, and at that.
    let mut looked = (begun, begun);
    while !core.ended.wait(LOOK_EVERY) {
        if core.stream.is_holding_back() {
            continue;
        }
        let mut round = Round { core, wanted: core.looks.take(), news: Vec::new(), folders: HashSet::default() };
        let since = looked.0;
        looked = (looked.1, core.stream.position());
        if round.run(since).is_err() {
            return;
        }
    }
}

struct Round<'a> {
    core: &'a Core,
    wanted: Wanted,
    news: Vec<News>,
    /// Folders of files that were looked at.
    folders: HashSet<RelPath>,
}

impl Round<'_> {
    /// An error ends the thread: nothing is announced any more.
    fn run(&mut self, mut since: StreamPosition) -> Result<(), AppendError> {
        let core = self.core;
        if self.wanted.all {
            since = StreamPosition(0);
            self.wanted.paths.extend(core.stream.items(since).into_iter().map(|(path, _)| path));
        }
        let forgotten = std::mem::take(&mut self.wanted.forgotten);
        forgotten.iter().for_each(|path| core.stream.forget_attributes(path));
        let joined_since = self.wanted.joined_since;
        if let Some(joined) = joined_since {
            since = since.min(joined);
            for path in core.stream.items_gone(joined) {
                self.wanted.paths.insert(path.clone());
                self.tell(News::Gone(path))?;
            }
            for (path, item) in core.stream.items(joined) {
                self.tell(News::Item(path, item))?;
            }
        }
        let mut changed = Vec::new();
        core.stream.each_changed(since, |file| changed.push(file));
        for file in changed {
            let is_told_again = joined_since.is_some_and(|joined| file.changed > joined.0);
            self.look_at_changed(file, is_told_again)?;
        }
        self.look_at_wanted()?;
        self.tell_all()
    }

    fn look_at_changed(&mut self, file: Found, is_told_again: bool) -> Result<(), AppendError> {
        let Found { path, version, changed, attributes } = file;
        self.look_at_folders_of(&path, version.exists())?;
        if !version.exists() {
            return Ok(());
        }
        match self.core.dir.root().look(&path) {
            Ok(Some(Entry::File(looks, seen))) => self.compare(path, changed, attributes, (looks, seen), is_told_again),
            _ => Ok(()),
        }
    }

    /// A file that changed last then, and of which this was announced, has these.
    fn compare(
        &mut self,
        path: RelPath,
        changed: u64,
        announced: Attributes,
        (looks, seen): (FileLooks, Attributes),
        is_told_again: bool,
    ) -> Result<(), AppendError> {
        // By the time that nobody can set.
        let rests = now().checked_sub(looks.stamps.ctime).is_some_and(|age| age >= REST);
        let now = Attributes { mtime: if rests { seen.mtime } else { announced.mtime }, ..seen };
        if now == announced && !is_told_again {
            return Ok(());
        }
        self.tell(News::Attributes(path, now, changed))
    }

    /// The folders above a file: those that nobody was told of, and if it is gone, those that are gone with it.
    fn look_at_folders_of(&mut self, path: &RelPath, is_there: bool) -> Result<(), AppendError> {
        for folder in above(path) {
            if !self.folders.insert(folder.clone()) {
                break;
            }
            let is_announced = self.core.stream.item(folder.as_str()).is_some();
            if is_there && is_announced {
                break;
            }
            if !is_there && !is_announced && matches!(self.core.dir.root().look(&folder), Ok(None)) {
                self.tell(News::Gone(folder))?;
            } else {
                self.wanted.paths.insert(folder);
            }
        }
        Ok(())
    }

    fn look_at_wanted(&mut self) -> Result<(), AppendError> {
        let mut gone = Vec::new();
        for path in std::mem::take(&mut self.wanted.paths) {
            let (announced, described) = (self.core.stream.item(path.as_str()), self.core.stream.described(&path));
            // Whatever cannot be looked at is taken to be as it was.
            let Ok(seen) = self.core.dir.root().look(&path) else { continue };
            let item = match seen {
                Some(Entry::File(looks, seen)) => {
                    if let Some((changed, attributes)) = described {
                        self.compare(path.clone(), changed, attributes, (looks, seen), false)?;
                    }
                    None
                }
                Some(Entry::Folder(seen)) => self.core.holds_content(&path).then(|| of_folder(seen)),
                Some(Entry::Link(target, owner)) if !self.core.excludes(&path) => Item::link(owner, target.as_bytes()),
                _ => None,
            };
            match item {
                Some(item) if announced.as_ref() != Some(&item) => {
                    self.look_at_folders_of(&path, true)?;
                    self.tell(News::Item(path, item))?;
                }
                Some(_) => {}
                None => gone.extend(announced.map(|_| path)),
            }
        }
        // Those that were met on the way are looked at the next time.
        self.wanted.paths.iter().for_each(|path| self.core.looks.again(path));
        // With what is below a folder; the innermost first.
        for path in gone.into_iter().rev() {
            let below = self.core.stream.items_below(&path, WANTED_MAX);
            for path in below.into_iter().rev().chain([path]) {
                self.tell(News::Gone(path))?;
            }
        }
        Ok(())
    }

    fn tell(&mut self, news: News) -> Result<(), AppendError> {
        self.news.push(news);
        if self.news.len() < AT_ONCE {
            return Ok(());
        }
        self.tell_all()?;
        if self.core.ended.wait(PAUSE) { Err(AppendError::ShuttingDown) } else { Ok(()) }
    }

    fn tell_all(&mut self) -> Result<(), AppendError> {
        if self.news.is_empty() {
            return Ok(());
        }
        self.core.stream.announce_news(std::mem::take(&mut self.news))
    }
}

/// The folders that a name is in, the innermost first.
fn above(path: &RelPath) -> impl Iterator<Item = RelPath> {
    path.as_str().rmatch_indices('/').filter_map(|(end, _)| RelPath::new(&path.as_str()[..end]).ok())
}
