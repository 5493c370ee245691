//! Joining with the extension: what the follower has is told apart from what it lacks by content, and only the latter is sent.
//!
//! In three steps, each over less than the one before: the sums of all files in buckets (`sums.rs`), the digests of the files in those buckets that
//! differ, and what differs in those files. Ours are computed from disk, at most once for each chunk that ever was. The difference
//! goes as ordinary actions and controls between "sync begins" and "sync ends": deletes,
//! renames, patches, truncations, appends. From there on it is catching up, as for everybody (`catch_up.rs`). Nothing is sent for
//! what the digests find equal, and nothing the follower has is believed without them.
//!
//! What was missed is not asked of positions and generations that both kept on disk, though that would read less of files that change all the time. Such a memory has to be right about
//! everything that can have happened to either directory since: what was deleted here and there, other leaders, restored snapshots, programs that wrote
//! meanwhile, renames, actions cut off in the middle; each is a rule of its own, and each rule that is not quite right is a file that differs for good
//! with nobody to notice. Content is what there is now.
//!
//! What is told is compared as it comes, so what is held for a joiner goes with the number of files in question, not with their size.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::digests::digested_bytes_max;
use crate::error::Error;
use crate::index::Version;
use crate::leader::batch::Step;
use crate::leader::core::Core;
use crate::leader::link::frame::Frame;
use crate::leader::link::messages::{Answers, Told};
use crate::leader::peers::admission::wait_admitted;
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::gone::{broken, gone};
use crate::leader::peers::status::FollowerState;
use crate::leader::stream::Changes;
use crate::leader::sync::catch_up::{CatchUp, CaughtUp};
use crate::leader::sync::compare::{Comparison, Lacking};
use crate::leader::sync::others::Others;
use crate::leader::sync::ranges::Ranges;
use crate::leader::sync::view::View;
use crate::protocol::ProtocolError;
use crate::protocol::extension::{Attributes, ChunkDigest, Control, Item, Sum, TELL_MAX};
use crate::sums::{Sums, bits_for, bucket_of, differing};
use crate::sys::hash::HashSet;
use crate::sys::time::Instant;
use crate::types::{RelPath, StreamPosition};

/// What is known of files that are gone is forgotten when something is known of more than so many, and an eighth of all, that were not there at the
/// start.
const FORGOTTEN_MIN: usize = 1000;

pub(in crate::leader) struct Resumer<'a> {
    core: &'a Arc<Core>,
    follower: &'a Arc<FollowerHandle>,
    frame: &'a mut Frame,
    ranges: Ranges<'a>,
    answers: &'a Answers,
}

/// Our side of the comparison, as far as nothing has to be read for it.
struct Ours {
    all: Changes,
    /// What a follower has that got all of it.
    view: View,
    sums: Sums,
    /// Where those files stand of which it is not known what they hold.
    unknown: Vec<usize>,
    items: Vec<(RelPath, Item)>,
}

impl Ours {
    fn known(core: &Core, bits: u8) -> Self {
        let all = core.stream.all();
        let items = core.stream.items(StreamPosition(0));
        let mut sums = Sums::new(bits);
        items.iter().for_each(|(path, item)| sums.add_item(path, item));
        let is_unknown = |((path, version), attributes): (&(RelPath, Version), &Attributes)| {
            let Version { generation, len } = *version;
            !core.chunks.show(generation, len, |digests| sums.add(path, len, digests, *attributes))
        };
        let numbered = all.files.iter().zip(&all.attributes).map(is_unknown).enumerate();
        let unknown = numbered.filter_map(|(at, is_unknown)| is_unknown.then_some(at)).collect();
        if core.chunks.later_files() > all.files.len() / 8 + FORGOTTEN_MIN {
            let alive: HashSet<u64> = all.files.iter().map(|(_, version)| version.generation).collect();
            core.chunks.retain(|generation| alive.contains(&generation));
            core.blocks.retain(|generation| alive.contains(&generation));
        }
        Self { view: View::of(&all.files), all, sums, unknown, items }
    }
}

impl<'a> Resumer<'a> {
    pub(in crate::leader) fn new(
        core: &'a Arc<Core>,
        follower: &'a Arc<FollowerHandle>,
        frame: &'a mut Frame,
        answers: &'a Answers,
    ) -> Self {
        Self { core, follower, frame, ranges: Ranges::in_bulk(core, follower), answers }
    }

    /// Blocks until the follower is attached.
    pub(in crate::leader) fn join(mut self) -> Result<CaughtUp, Error> {
        let core = self.core;
        wait_admitted(&core.config, &core.history, self.follower)?;
        let begun = Instant::now();
        let bits = bits_for(core.stream.totals().0 + core.stream.item_count());
        let joining = core.stream.begin_join();
        self.answers.await_sums();
        self.tell(&Control::Want(bits))?;
        // While the follower is at the same. For one at a time: that is held until it is compared.
        let ahead = core.admission.ahead.try_acquire(self.follower);
        let ours = ahead.as_ref().map(|_| Ours::known(core, bits));
        let theirs = self.receive_sums(bits)?;
        self.ranges.wait_out_of_sync()?;
        let turn = core.admission.syncs.acquire(self.follower)?;
        self.follower.set_state(FollowerState::Syncing);
        self.follower.compared();
        let Ours { mut all, mut view, sums, unknown, items } = ours.unwrap_or_else(|| Ours::known(core, bits));
        let buckets = self.differing(&all, unknown, sums, &theirs, bits)?;
        let steps = self.plan(&all, &items, &buckets, bits, &mut view)?;
        let items: Vec<_> = items.into_iter().map(|(path, _)| path).collect();
        (all.files, all.attributes) = (Vec::new(), Vec::new());
        self.sync(steps, &mut view)?;
        drop((turn, ahead));
        let Self { core, follower, frame, ranges, .. } = self;
        // Who was in sync is watched as in the stream.
        let ack_timeout = (!follower.was_in_sync()).then_some(core.config.sync_timeout);
        log::info!(
            "follower {} at {}: sync sent: {} files or parts of them, {} bytes in {:.1} s",
            follower.id,
            follower.address,
            follower.sync.files_sent.load(Ordering::Relaxed),
            follower.sync.bytes_sent.load(Ordering::Relaxed),
            begun.elapsed().as_secs_f64(),
        );
        let catch_up =
            CatchUp { core, follower, frame, ranges, view, ack_timeout, joining, owed: BTreeSet::new(), items };
        catch_up.run(all)
    }

    fn tell(&mut self, control: &Control) -> Result<(), Error> {
        let _ = self.ranges.send_step(self.frame, &Step::Control(control.clone()))?;
        self.frame.flush().map_err(broken)?;
        self.follower.written();
        Ok(())
    }

    fn answer(&mut self) -> Result<Told, Error> {
        self.answers.next(self.core, self.follower)
    }

    /// The follower's sum of each bucket.
    fn receive_sums(&mut self, bits: u8) -> Result<Vec<Sum>, Error> {
        let mut sums: Vec<Sum> = Vec::new();
        loop {
            match self.answer()? {
                Told::Sums(more) if sums.len() + more.len() <= 1 << bits => sums.extend(more),
                Told::End if sums.len() == 1 << bits => return Ok(sums),
                _ => return Err(ProtocolError::Malformed("sums: not one for each bucket").into()),
            }
        }
    }

    /// The buckets in which anything differs.
    fn differing(
        &mut self,
        all: &Changes,
        unknown: Vec<usize>,
        mut sums: Sums,
        theirs: &[Sum],
        bits: u8,
    ) -> Result<Vec<u32>, Error> {
        let is_empty = |bucket: u32| theirs[bucket as usize] == Sum::default();
        for at in unknown {
            let (path, version) = &all.files[at];
            // Of what it has none of, nothing has to be read to know; nor of what it tells only a part of.
            let digests = match is_empty(bucket_of(path, bits)) || version.len > digested_bytes_max() {
                true => Some(Vec::new()),
                false => self.ours(path, *version, version.len)?,
            };
            if let Some(digests) = digests {
                sums.add(path, version.len, &digests, all.attributes[at]);
            }
        }
        Ok(differing(&sums.finish(), theirs))
    }

    /// What it takes to make the follower's files and items equal to these, deletes first, then renames. What cannot be read is void in
    /// the view.
    fn plan(
        &mut self,
        all: &Changes,
        items: &[(RelPath, Item)],
        buckets: &[u32],
        bits: u8,
        view: &mut View,
    ) -> Result<Vec<Step>, Error> {
        if buckets.is_empty() {
            return Ok(Vec::new());
        }
        let is_asked = |path: &RelPath| buckets.binary_search(&bucket_of(path, bits)).is_ok();
        let is_in_question = |((path, _), _): &(&(RelPath, Version), &Attributes)| is_asked(path);
        let (in_question, attributes): (Vec<_>, Vec<_>) = all
            .files
            .iter()
            .zip(&all.attributes)
            .filter(is_in_question)
            .map(|(file, its)| (file.clone(), *its))
            .unzip();
        let mut comparison = Comparison::of(&in_question);
        let files = in_question.iter().map(|(path, _)| path).zip(attributes);
        let mut others = Others::of(files, items.iter().filter(|(path, _)| is_asked(path)));
        self.answers.await_files();
        for some in buckets.chunks(TELL_MAX) {
            self.tell(&Control::Tell(some.to_vec()))?;
        }
        self.tell(&Control::TellEnds)?;
        self.receive_files(&mut comparison, &mut others, is_asked)?;
        let digests = &mut |path: &RelPath, version, len| self.ours(path, version, len);
        let Lacking { gone, steps, unread } = comparison.lacking(digests)?;
        for (path, version) in &unread {
            view.void(path);
            self.ranges.joins_without(path);
            self.ranges.mend(path, *version);
        }
        // Where we cannot look it may be here as well.
        let unreadable = &self.core.unreadable;
        let (kept, mut gone): (Vec<_>, Vec<_>) = gone.into_iter().partition(|path| unreadable.covers(path));
        kept.iter().for_each(|path| unreadable.keep(path));
        gone.sort_unstable();
        Ok(others.add_to(gone, steps, |path| unreadable.covers(path)))
    }

    /// Takes what the follower tells of its files.
    fn receive_files(
        &mut self,
        comparison: &mut Comparison<'_>,
        others: &mut Others<'_>,
        is_asked: impl Fn(&RelPath) -> bool,
    ) -> Result<(), Error> {
        loop {
            let not_offered = |path: &RelPath| Error::from(ProtocolError::NotOffered(path.to_string()));
            let files = match self.answer()? {
                Told::Files(files) => files,
                Told::Items(items) => {
                    for (path, item) in items.into_iter().filter(|(path, _)| !path.is_reserved()) {
                        if !is_asked(&path) || !others.told_item(path.clone(), item) {
                            return Err(not_offered(&path));
                        }
                    }
                    continue;
                }
                Told::End => return Ok(()),
                Told::Sums(_) => return Err(ProtocolError::Malformed("inventory: sums are in it").into()),
            };
            for file in files.into_iter().filter(|file| !file.path.is_reserved()) {
                if !is_asked(&file.path) {
                    return Err(not_offered(&file.path));
                }
                others.told_file(&file);
                comparison.told(file, &mut |path, version, len| self.ours(path, version, len))?;
            }
        }
    }

    /// The digests of the first `len` bytes of ours; `None` if they cannot be read as announced.
    fn ours(&mut self, path: &RelPath, version: Version, len: u64) -> Result<Option<Vec<ChunkDigest>>, Error> {
        let (core, follower) = (self.core, self.follower);
        let open = || core.open_announced(path, version.generation, 0);
        let mut ended = false;
        let mut go_on = |bytes| {
            follower.sync.bytes_hashed.fetch_add(bytes, Ordering::Relaxed);
            ended = !core.admission.pace(bytes, follower);
            if ended { Err(ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
        };
        match core.chunks.digests(open, version.generation, len, core.notes(path, version), &mut go_on) {
            Ok(digests) => Ok(digests),
            Err(_) if ended => Err(gone()),
            Err(error) => {
                core.cannot_read(path, &error);
                Ok(None)
            }
        }
    }

    fn sync(&mut self, steps: Vec<Step>, view: &mut View) -> Result<(), Error> {
        let counters = &self.follower.sync;
        // As the follower counts them: contents, in as many files as they are of.
        let mut last = None;
        let steps: Vec<_> = steps.into_iter().map(|step| (begins_a_file(&step, &mut last), step)).collect();
        let files = steps.iter().filter(|(begins, _)| *begins).count() as u64;
        let bytes = steps.iter().map(|(_, step)| if let Step::Send(range) = step { range.len } else { 0 }).sum();
        counters.files_requested.fetch_add(files, Ordering::Relaxed);
        self.tell(&Control::SyncBegins { files, bytes })?;
        for (begins, step) in steps {
            if let Err(path) = self.ranges.send_step(self.frame, &step)? {
                view.void(&path);
            }
            self.follower.sync.files_sent.fetch_add(u64::from(begins), Ordering::Relaxed);
        }
        self.tell(&Control::SyncEnds)
    }
}

/// Whether a step sends something of another file than the one before did, which was `last`.
fn begins_a_file(step: &Step, last: &mut Option<RelPath>) -> bool {
    match step {
        Step::Send(range) if last.as_ref() == Some(&range.path) => false,
        Step::Send(range) => {
            *last = Some(range.path.clone());
            true
        }
        Step::Control(control) => matches!(control, Control::Empty(_)),
        Step::Delete(_) => false,
    }
}
