//! The thread that works on the disk while the reader goes on: tells sums and inventory, makes durable, sets and clears the mark of
//! a sync.
//!
//! One thread a connection of the extension. Jobs are done in the order they came; of those that make durable, which wait
//! behind one another, one is made, so that a slow disk flushes less often and not later and later. One lock, the jobs', held
//! to put and take only. It stops when the jobs are closed: between two chunks that it reads, but not within a flush. A
//! failure is left in the report and ends the connection: after a failed flush nothing is called durable, and no digest
//! is believed (see `mend`).

use std::collections::VecDeque;
use std::sync::Arc;

use super::digests::Digests;
use super::dir::{Dir, Here, Inventory};
use super::flush::Unflushed;
use super::report::Report;
use super::shared::Shared;
use super::status::State;
use crate::digests::{ChunkBuffer, Stamps};
use crate::error::Error;
use crate::own_folder::OwnFolder;
use crate::position::{EpochPosition, KEEP_EVERY, Stand, noted};
use crate::protocol::extension::{Attributes, Held, Item, Message, split_inventory, split_items};
use crate::sums::{Sums, bucket_of};
use crate::sys::channel::Sender;
use crate::sys::fs::MetadataExt;
use crate::sys::hash::HashSet;
use crate::sys::rustix::fs::OFlags;
use crate::sys::sync::{Condvar, Mutex};
use crate::sys::time::Instant;
use crate::types::RelPath;

/// What the reader has for the thread.
pub(super) enum Job {
    /// Tell the sums of 2^`bits` buckets; note what is here with its names if not all of it may be deleted.
    Sums { bits: u8, names: bool },
    /// Tell the files of these buckets, which are sorted.
    Inventory { bits: u8, buckets: Vec<u32> },
    /// Make these changes durable, and say that all up to this mark are, which is this position.
    Flush(Unflushed, u64, Option<EpochPosition>),
    /// A sync begins: set its mark, and answer.
    Mark(Sender<()>),
    /// What a sync began is whole: make it durable, clear the mark, and answer.
    Synced(Unflushed, u64, Option<EpochPosition>, Sender<()>),
    /// Keep how far the directory has come.
    Keep,
}

/// What was found here: before any change.
#[derive(Default)]
pub(super) struct Told {
    /// All files and their lengths, and all links, if they were asked for.
    pub(super) names: Vec<(RelPath, u64)>,
    /// How many files and links.
    pub(super) files: usize,
    /// Files that are longer than was told, and how much of them was.
    pub(super) cut: Vec<(RelPath, u64)>,
}

/// What is here, from when its sums are told until it is known which of it is to be.
#[derive(Default)]
pub(super) struct Found {
    pub(super) files: Vec<RelPath>,
    pub(super) items: Vec<(RelPath, Item)>,
}

/// What waits to be done.
#[derive(Default)]
pub(super) struct Jobs {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    told: Option<Told>,
    /// The inventory was told, too.
    told_files: bool,
    synced: bool,
    /// A job is being done.
    busy: bool,
    closed: bool,
    /// The thread has ended.
    ended: bool,
    left: Unflushed,
}

impl Waiting {
    /// Nobody does these jobs any more; whoever waits for an answer is let go.
    fn leave(&mut self) {
        for job in self.jobs.drain(..) {
            if let Job::Flush(unflushed, ..) | Job::Synced(unflushed, ..) = job {
                self.left.merge(unflushed);
            }
        }
    }
}

/// Lets go whoever waits for the thread, also when it panicked.
struct AtEnd<'a>(&'a Jobs);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.ended = true;
        state.leave();
    }
}

impl Jobs {
    /// Never blocks. The reader waits for the answer to a mark, and jobs to flush become one, so few wait.
    pub(super) fn put(&self, job: Job) {
        let mut state = self.state.lock();
        match (state.jobs.back_mut(), job) {
            (Some(Job::Flush(earlier, mark, at)), Job::Flush(later, later_mark, later_at)) => {
                earlier.merge(later);
                *mark = later_mark.max(*mark);
                *at = later_at.max(*at);
            }
            (_, job) => state.jobs.push_back(job),
        }
        if state.ended {
            state.leave();
        }
        self.changed.notify_one();
    }

    /// What the thread, which has ended, did not make durable.
    pub(super) fn left(&self) -> Unflushed {
        std::mem::take(&mut self.state.lock().left)
    }

    /// What was found, once all sums were told; and, if `with_files`, once the inventory was.
    pub(super) fn told(&self, with_files: bool) -> Option<Told> {
        let mut state = self.state.lock();
        if with_files && !state.told_files { None } else { state.told.take() }
    }

    /// Whether there is nothing to wait for: all is done, or nobody does anything any more.
    #[cfg(feature = "fuzzing")]
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.ended || (!state.busy && state.jobs.is_empty())
    }

    /// Whether a sync has ended, with what it left out, and is durable.
    pub(super) fn synced(&self) -> bool {
        self.state.lock().synced
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_one();
    }

    /// The next one; what there always is, at `keep_at`.
    fn take(&self, keep_at: Instant) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            let job = state.jobs.pop_front();
            state.busy = job.is_some();
            if job.is_some() {
                return job;
            }
            if self.changed.wait_until(&mut state, keep_at).timed_out() {
                return Some(Job::Keep);
            }
        }
    }
}

/// The thread.
pub(super) struct Worker {
    pub(super) jobs: Arc<Jobs>,
    pub(super) dir: Arc<Dir>,
    pub(super) digests: Arc<Digests>,
    pub(super) report: Arc<Report>,
    pub(super) shared: Arc<Shared>,
    /// The most chunks of a file that are told.
    pub(super) chunks_max: usize,
}

impl Worker {
    /// The thread's life.
    pub(super) fn run(&self) {
        let _at_end = AtEnd(&self.jobs);
        let mut found = Found::default();
        let mut keeping = Keeping { kept: None, is_of_this_leader: false, at: Instant::now() + KEEP_EVERY };
        while let Some(job) = self.jobs.take(keeping.at) {
            if let Err(error) = self.work(job, &mut found, &mut keeping) {
                self.report.fail(error);
                return;
            }
        }
    }

    fn work(&self, job: Job, found: &mut Found, keeping: &mut Keeping) -> Result<(), Error> {
        match job {
            Job::Sums { bits, names } => {
                *found = self.sums(bits, names)?;
                Ok(())
            }
            Job::Inventory { bits, buckets } => {
                let of_these = |path: &RelPath| buckets.binary_search(&bucket_of(path, bits)).is_ok();
                let Found { files, items } = std::mem::take(found);
                let items = items.into_iter().filter(|(path, _)| of_these(path));
                self.inventory(files.into_iter().filter(of_these), items, &mut |_, _| {})
            }
            Job::Flush(unflushed, mark, at) => {
                self.flush(unflushed)?;
                self.report.durable(mark);
                self.shared.durable_at(at);
                Ok(())
            }
            Job::Mark(answer) => {
                self.shared.leave_place();
                // Nor is it in the directory any more.
                (keeping.kept, keeping.is_of_this_leader) = (None, false);
                self.dir.mark_incomplete()?;
                // Nobody waits for it when the connection has ended.
                let _ = answer.send(());
                Ok(())
            }
            Job::Synced(unflushed, mark, at, answer) => {
                self.flush(unflushed)?;
                self.shared.reach_place(at);
                // In this order: no directory counts as complete that has an old position, or none where there should be one. And what it keeps is told before the
                // mark by which this node is in sync: what a cluster takes all members of its set to keep is kept.
                keeping.is_of_this_leader = true;
                // Said again also if it is what was kept.
                keeping.kept = None;
                self.keep(keeping)?;
                self.dir.clear_incomplete()?;
                self.report.durable(mark);
                self.jobs.state.lock().synced = true;
                self.shared.update(|status| status.state = State::Streaming);
                log::info!("in sync, following the stream");
                let _ = answer.send(());
                Ok(())
            }
            Job::Keep => {
                noted(self.keep(keeping));
                Ok(())
            }
        }
    }

    fn keep(&self, keeping: &mut Keeping) -> Result<(), Error> {
        keeping.at = Instant::now() + KEEP_EVERY;
        let place = self.shared.place();
        if place == keeping.kept {
            return Ok(());
        }
        keeping.kept = place;
        let Some(place) = place else { return Ok(()) };
        place.keep(&OwnFolder::of(self.dir.path())?)?;
        if keeping.is_of_this_leader {
            self.report.kept(place.durable.0);
        }
        Ok(())
    }

    fn flush(&self, unflushed: Unflushed) -> Result<(), Error> {
        let flushed = unflushed.flush(&self.dir);
        if flushed.is_err() {
            self.jobs.state.lock().left.merge(unflushed);
        }
        flushed
    }

    /// Tells the sums of all that is here, and returns it.
    pub(super) fn sums(&self, bits: u8, names: bool) -> Result<Found, Error> {
        {
            let mut state = self.jobs.state.lock();
            // Of the sync before.
            (state.told, state.told_files) = (None, false);
        }
        let Inventory { mut files, items } = self.dir.inventory()?;
        // Stable, which is quick for what is nearly in order.
        files.sort_by(|a, b| a.path.cmp(&b.path));
        // Nobody's content is taken for nothing because it is all links.
        let links = || items.iter().filter(|(_, item)| matches!(item, Item::Link { .. })).map(|(path, _)| path);
        let mut told = Told { files: files.len() + links().count(), ..Told::default() };
        if names {
            let files = files.iter().map(|file| (file.path.clone(), file.stamps.size));
            told.names = files.chain(links().map(|path| (path.clone(), 0))).collect();
        }
        self.shared.update(|status| status.sync.files_listed = files.len() as u64);
        self.digests.keep(&files);
        let (mut sums, mut buffer) = (Sums::new(bits), ChunkBuffer::default());
        items.iter().for_each(|(path, item)| sums.add_item(path, item));
        for (at, Here { path, stamps, mode }) in files.iter().enumerate() {
            let attributes = attributes(*mode, stamps);
            let known = self
                .digests
                .known(path, stamps, self.chunks_max, |len, digests| sums.add(path, len, digests, attributes));
            match known {
                Some(len) if len < stamps.size => told.cut.push((path.clone(), len)),
                Some(_) => {}
                None => {
                    if let Some(held) = self.held(path, &mut buffer, &mut told.cut)? {
                        sums.add(path, held.len, &held.digests, held.attributes);
                    }
                    self.shared.update(|status| status.sync.files_hashed = at as u64 + 1);
                }
            }
        }
        self.shared.update(|status| status.sync.files_hashed = files.len() as u64);
        for some in sums.finish().chunks(SUMS_IN_A_MESSAGE) {
            self.put(Message::Sums(some.to_vec()))?;
        }
        // In this order: whoever was told the end may begin at once.
        self.jobs.state.lock().told = Some(told);
        self.put(Message::SumsEnd)?;
        Ok(Found { files: files.into_iter().map(|file| file.path).collect(), items })
    }

    /// Tells these files as they are now, and folders and links as they were found. What is known of files is not read, unless they have changed since.
    /// `note` is told the length of each file.
    pub(super) fn inventory(
        &self,
        files: impl Iterator<Item = RelPath>,
        items: impl Iterator<Item = (RelPath, Item)>,
        note: &mut dyn FnMut(&RelPath, u64),
    ) -> Result<(), Error> {
        let (mut failed, mut buffer, mut cut) = (None, ChunkBuffer::default(), Vec::new());
        let mut told = HashSet::default();
        let held = files.map_while(|path| {
            let held = self.held(&path, &mut buffer, &mut cut);
            if let Ok(Some(held)) = &held {
                note(&held.path, held.len);
            }
            told.insert(path);
            held.map_err(|error| failed = Some(error)).ok()
        });
        split_inventory(held.flatten()).try_for_each(|message| self.put(message))?;
        split_items(items).try_for_each(|message| self.put(message))?;
        if let Some(error) = failed {
            return Err(error);
        }
        {
            let mut state = self.jobs.state.lock();
            state.told_files = true;
            if let Some(all) = &mut state.told {
                all.cut.retain(|(path, _)| !told.contains(path));
                all.cut.append(&mut cut);
            }
        }
        self.put(Message::InventoryEnd)
    }

    fn put(&self, message: Message) -> Result<(), Error> {
        if self.report.put(message) { Ok(()) } else { Err(Error::ShuttingDown) }
    }

    /// A file as it is now; `None` if it has gone.
    fn held(
        &self,
        path: &RelPath,
        buffer: &mut ChunkBuffer,
        cut: &mut Vec<(RelPath, u64)>,
    ) -> Result<Option<Held>, Error> {
        let go_on = || if self.report.is_closed() || self.shared.stopping() { Err(Stopped::ByUs) } else { Ok(()) };
        let told = go_on().map(|()| self.dir.open_file(path, OFlags::RDONLY));
        let Some(file) = told.unwrap_or(Err(Error::ShuttingDown))? else { return Ok(None) };
        let told = self.digests.of(path, &file, self.chunks_max, buffer, &mut |bytes| {
            self.report.digested(bytes);
            self.shared.update(|status| status.sync.bytes_hashed += bytes);
            go_on()
        });
        let (len, digests) = told.map_err(|error| match error {
            Stopped::ByUs => Error::ShuttingDown,
            Stopped::By(error) => self.dir.failed("read", path.as_str(), error),
        })?;
        let meta = file.metadata().map_err(|error| self.dir.failed("stat", path.as_str(), error))?;
        if meta.len() > len {
            cut.push((path.clone(), len));
        }
        let mode = u16::try_from(meta.mode() & 0o777).unwrap_or_default();
        let attributes = attributes(mode, &Stamps::of_metadata(&meta));
        Ok(Some(Held { path: path.clone(), len, digests, attributes }))
    }
}

/// As a copy tells them that keeps no owners.
fn attributes(mode: u16, stamps: &Stamps) -> Attributes {
    Attributes { mode, mtime: stamps.mtime }
}

/// What was kept last of how far the directory has come, and when it is looked at next.
struct Keeping {
    kept: Option<Stand>,
    /// A sync with this leader is whole: positions are its own.
    is_of_this_leader: bool,
    at: Instant,
}

/// Some 64 KB.
const SUMS_IN_A_MESSAGE: usize = 3200;

/// What ended reading a file.
enum Stopped {
    ByUs,
    By(std::io::Error),
}

impl From<std::io::Error> for Stopped {
    fn from(error: std::io::Error) -> Self {
        Self::By(error)
    }
}

#[cfg(test)]
mod tests;
