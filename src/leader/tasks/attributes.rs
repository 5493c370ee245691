//! The `attributes` thread: what there is besides the content of files is looked at, and announced.
//!
//! Once a second it looks at each file that changed within the last two, at the folders these are in, and at whatever somebody says may have changed
//! ([`Looks::again`](crate::leader::files::looks::Looks::again): who watches the directory says so of all that is no file). What differs from what was announced is announced: permissions at once, the time of the last change of
//! a file's content once nothing of it has changed for a second. So that never waits for the disk on a host's thread, and a file that is written to all the time is not told of all the time.
//!
//! Only this thread announces items, after a look, and whoever changes something has it looked at after that: the last word is of what is there. A file's permissions
//! are announced only if it is still the file that was looked at, and its time only if it has not changed since.
//!
//! Who joins compares what there was when it began. What changed until it is attached is announced to all once more ([`Looks::joined`](crate::leader::files::looks::Looks::joined)), rather than be known as of a moment.
//!
//! What is said of items need not fit what a copy has at that moment: files are announced by others, at other times, and a copy makes the folders that a file is in. A copy leaves what
//! does not fit: a folder that is to go and is not empty, a link where a file is. So what was said of a name is said again, as it is then, [`ECHO`] later, when the files are what they are. And
//! it is said of every folder above that nobody was told of.
//!
//! A leader that is shut down orderly has a last look taken before it announces nothing more.
//!
//! No more than [`AT_ONCE`] at a time are announced, with a [`PAUSE`] between, and none while announcements are held back. No locks but those of announcing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::beneath::{Entry, FileLooks};
use crate::datadir::{self, FoundFile, Visitor};
use crate::digests::now;
use crate::error::{AppendError, Error};
use crate::index::recency::Found;
use crate::leader::core::Core;
use crate::leader::files::looks::{WANTED_MAX, Wanted, of_folder};
use crate::leader::stream::{Described, News};
use crate::protocol::extension::{Attributes, Item};
use crate::sys::hash::HashSet;
use crate::sys::time::Instant;
use crate::types::{RelPath, StreamPosition};

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// So many are announced within one hold of the lock of appends: some ten microseconds.
const AT_ONCE: usize = 64;

/// And then comes a pause: some ten thousand a second.
const PAUSE: Duration = Duration::from_millis(5);

/// A file of which nothing changed for so many nanoseconds is at rest: less than between two looks, the second of which finds it so.
const REST: i64 = 900_000_000;

/// What was said of a folder or a link is said again after this.
const ECHO: Duration = Duration::from_secs(3);

/// The thread's life.
pub(in crate::leader) fn run(core: &Arc<Core>) {
    let begun = core.stream.position();
    // Where the stream was at the look before the last one, and at that.
    let mut looked = (begun, begun);
    let mut echoes = VecDeque::new();
    loop {
        let is_last = core.looks.last.wait(LOOK_EVERY);
        if core.ended.is_set() {
            return;
        }
        if core.stream.is_holding_back() && !is_last {
            continue;
        }
        let since = looked.0;
        looked = (looked.1, core.stream.position());
        let (names, folders, news) = (BTreeMap::new(), HashSet::default(), Vec::new());
        let mut round = Round { core, echoes: &mut echoes, names, folders, news, is_last };
        if round.run(since, core.looks.take()).is_err() || is_last {
            return core.looks.done.set();
        }
    }
}

struct Round<'a> {
    core: &'a Core,
    /// What was said of these is to be said again.
    echoes: &'a mut VecDeque<(Instant, RelPath)>,
    /// Names to be looked at, and why.
    names: BTreeMap<RelPath, Why>,
    /// Folders in which a file that is there was met.
    folders: HashSet<RelPath>,
    news: Vec<News>,
    /// Whatever is not at rest is told as it is.
    is_last: bool,
}

/// Why a name is looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    /// Something may have changed.
    MayHaveChanged,
    /// What was said is said again, whatever it is by now.
    Echo,
    /// Copies may have something there that nobody was told of.
    NotKnown,
}

impl Round<'_> {
    /// An error ends the thread: nothing is announced any more.
    fn run(&mut self, mut since: StreamPosition, wanted: Wanted) -> Result<(), AppendError> {
        let core = self.core;
        let stream = &core.stream;
        wanted.forgotten.iter().for_each(|path| stream.forget_attributes(path));
        if wanted.all {
            since = StreamPosition(0);
            stream.items(since).into_iter().for_each(|(path, _)| self.look(path, Why::MayHaveChanged));
            if let Err(error) = datadir::walk(core.dir.root(), None, self) {
                // What is there and not announced is found the next time.
                log::debug!("{error}");
                core.looks.all_again();
            }
        }
        for path in wanted.paths {
            self.look_above(&path, false);
            self.look(path, Why::MayHaveChanged);
        }
        let now = Instant::now();
        while self.echoes.front().is_some_and(|(due, _)| *due <= now)
            && let Some((_, path)) = self.echoes.pop_front()
        {
            self.look_above(&path, false);
            self.look(path, Why::Echo);
        }
        if let Some(joined) = wanted.joined_since {
            since = since.min(joined);
            stream.items(joined).into_iter().for_each(|(path, _)| self.look(path, Why::NotKnown));
            wanted.not_known.into_iter().for_each(|path| self.look(path, Why::NotKnown));
        }
        let mut changed = Vec::new();
        stream.each_changed(since, |file| changed.push(file));
        for file in changed {
            let is_told_again = wanted.joined_since.is_some_and(|joined| file.changed > joined.0);
            self.look_at_changed(file, is_told_again)?;
        }
        self.look_at_names()?;
        self.tell_all()
    }

    fn look(&mut self, path: RelPath, why: Why) {
        let known = self.names.entry(path).or_insert(why);
        *known = why.max(*known);
    }

    /// The folders above a name: those that nobody was told of, and if it may be gone, the others as well.
    fn look_above(&mut self, path: &RelPath, is_there: bool) {
        for (end, _) in path.as_str().rmatch_indices('/') {
            let above = &path.as_str()[..end];
            if is_there && self.folders.contains(above) {
                return;
            }
            let Ok(folder) = RelPath::new(above) else { return };
            let is_announced = self.core.stream.item(above).is_some();
            if is_there {
                self.folders.insert(folder.clone());
                if is_announced {
                    return;
                }
            }
            self.look(folder, if is_announced { Why::MayHaveChanged } else { Why::NotKnown });
        }
    }

    fn look_at_changed(&mut self, file: Found, is_told_again: bool) -> Result<(), AppendError> {
        let Found { path, version, changed, attributes } = file;
        let described = Described { generation: version.generation, changed };
        self.look_above(&path, version.exists());
        if !version.exists() {
            return Ok(());
        }
        if self.core.stream.has_items_below(&path) {
            // It came in the place of a folder.
            self.look(path.clone(), Why::MayHaveChanged);
        }
        match self.core.dir.root().look(&path) {
            Ok(Some(Entry::File(looks, seen))) => {
                self.compare(path, described, attributes, (looks, seen), is_told_again)
            }
            _ => Ok(()),
        }
    }

    /// A file that changed last then, and of which this was announced, has these.
    fn compare(
        &mut self,
        path: RelPath,
        described: Described,
        announced: Attributes,
        (looks, seen): (FileLooks, Attributes),
        is_told_again: bool,
    ) -> Result<(), AppendError> {
        // By the time that nobody can set.
        let rests = self.is_last || now().checked_sub(looks.stamps.ctime).is_some_and(|age| age >= REST);
        let now = Attributes { mtime: if rests { seen.mtime } else { announced.mtime }, ..seen };
        if !rests && seen.mtime != announced.mtime {
            // Nothing but the time may have been set.
            self.core.looks.again(&path);
        }
        if now == announced && !is_told_again {
            return Ok(());
        }
        self.tell(News::Attributes(path, now, described))
    }

    fn look_at_names(&mut self) -> Result<(), AppendError> {
        let (mut gone, mut there) = (BTreeMap::new(), Vec::new());
        for (path, why) in std::mem::take(&mut self.names) {
            let (announced, described) = (self.core.stream.item(path.as_str()), self.core.stream.described(&path));
            // Whatever cannot be looked at is taken to be as it was.
            let Ok(seen) = self.core.dir.root().look(&path) else { continue };
            let item = match seen {
                Some(Entry::File(looks, seen)) => {
                    if let Some((described, attributes)) = described {
                        self.compare(path.clone(), described, attributes, (looks, seen), false)?;
                    }
                    None
                }
                Some(Entry::Folder(seen)) => self.core.holds_content(&path).then(|| of_folder(seen)),
                Some(Entry::Link(target)) if !self.core.excludes(&path) => Item::link(target.as_bytes()),
                _ => None,
            };
            if !matches!(item, Some(Item::Folder(_))) {
                // Nothing is below it any more.
                let below = self.core.stream.items_below(&path);
                gone.extend(below.into_iter().map(|path| (path, why)));
            }
            if item == announced && why == Why::MayHaveChanged {
                continue;
            }
            match item {
                Some(item) => there.push((path, item, why)),
                None => drop(gone.insert(path, why)),
            }
        }
        // What is below a folder first; and then folders before what is in them.
        for (path, why) in gone.into_iter().rev() {
            self.tell_of(path.clone(), News::Gone(path), why)?;
        }
        there.into_iter().try_for_each(|(path, item, why)| self.tell_of(path.clone(), News::Item(path, item), why))
    }

    fn tell_of(&mut self, path: RelPath, news: News, why: Why) -> Result<(), AppendError> {
        if why != Why::Echo && self.echoes.len() < WANTED_MAX {
            self.echoes.push_back((Instant::now() + ECHO, path));
        }
        self.tell(news)
    }

    fn tell(&mut self, news: News) -> Result<(), AppendError> {
        self.news.push(news);
        if self.news.len() < AT_ONCE {
            return Ok(());
        }
        self.tell_all()?;
        while self.core.stream.is_holding_back() && !self.is_last {
            if self.core.ended.wait(LOOK_EVERY) {
                return Err(AppendError::ShuttingDown);
            }
        }
        if self.core.ended.wait(PAUSE) { Err(AppendError::ShuttingDown) } else { Ok(()) }
    }

    fn tell_all(&mut self) -> Result<(), AppendError> {
        if self.news.is_empty() {
            return Ok(());
        }
        self.core.stream.announce_news(std::mem::take(&mut self.news))
    }
}

/// Of all there is: folders and links.
impl Visitor for Round<'_> {
    fn goes_on(&mut self) -> bool {
        !self.core.ended.is_set()
    }

    fn folder(&mut self, path: &RelPath, _: Attributes) -> bool {
        self.look(path.clone(), Why::MayHaveChanged);
        self.core.holds_content(path)
    }

    fn file(&mut self, _: FoundFile) {}

    fn link(&mut self, path: RelPath, _: &[u8]) {
        self.look(path, Why::MayHaveChanged);
    }

    fn other(&mut self, _: &RelPath) {}

    fn unseen(&mut self, _: &RelPath, _: Error) -> Result<(), Error> {
        Ok(())
    }
}
