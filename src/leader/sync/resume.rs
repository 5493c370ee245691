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

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::Error;
use crate::index::Version;
use crate::index::chunks::{comparable_bytes, compare};
use crate::leader::batch::{FileRange, RangeKind, Step};
use crate::leader::core::Core;
use crate::leader::link::frame::Frame;
use crate::leader::link::messages::{Answers, Told};
use crate::leader::peers::admission::wait_admitted;
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::gone::{broken, gone};
use crate::leader::peers::status::FollowerState;
use crate::leader::stream::{Changes, whole};
use crate::leader::sync::catch_up::{CatchUp, CaughtUp};
use crate::leader::sync::moves::{in_order, is_at_or_below};
use crate::leader::sync::ranges::Ranges;
use crate::leader::sync::view::View;
use crate::protocol::ProtocolError;
use crate::protocol::extension::{CHUNK_BYTES, ChunkDigest, Control, Held, Sum, TELL_MAX};
use crate::sums::{Sums, bits_for, bucket_of, differing};
use crate::sys::hash::{HashMap, HashSet};
use crate::sys::time::Instant;
use crate::types::RelPath;

/// The most digests that are kept of files that may have another name here: 20 bytes each, for 256 KiB of theirs.
const DIGESTS_KEPT_MAX: usize = 4 << 20;

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

/// A file of the follower, in question.
struct Copy {
    len: u64,
    /// If it may be another file of ours; else none are kept.
    digests: Vec<ChunkDigest>,
    /// What makes it equal to ours of that name; `None` if there is none, or it cannot be read.
    repair: Option<Vec<Step>>,
    /// Something of it is of the file of that name.
    is_at_home: bool,
}

/// The files in question: ours, and theirs.
struct Question<'a> {
    ours: HashMap<&'a RelPath, Version>,
    theirs: HashMap<RelPath, Copy>,
}

/// Our side of the comparison, as far as nothing has to be read for it.
struct Ours {
    all: Changes,
    /// What a follower has that got all of it.
    view: View,
    sums: Sums,
    /// Where those files stand of which it is not known what they hold.
    unknown: Vec<usize>,
}

impl Ours {
    fn known(core: &Core, bits: u8) -> Self {
        let all = core.stream.all();
        let mut sums = Sums::new(bits);
        let is_unknown = |(path, version): &(RelPath, Version)| {
            let Version { generation, len } = *version;
            !core.chunks.show(generation, len, |digests| sums.add(path, len, digests))
        };
        let numbered = all.files.iter().map(is_unknown).enumerate();
        let unknown = numbered.filter_map(|(at, is_unknown)| is_unknown.then_some(at)).collect();
        if core.chunks.later_files() > all.files.len() / 8 + FORGOTTEN_MIN {
            let alive: HashSet<u64> = all.files.iter().map(|(_, version)| version.generation).collect();
            core.chunks.retain(|generation| alive.contains(&generation));
        }
        Self { view: View::of(&all.files), all, sums, unknown }
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
        let bits = bits_for(core.stream.totals().0);
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
        let Ours { mut all, mut view, sums, unknown } = ours.unwrap_or_else(|| Ours::known(core, bits));
        let buckets = self.differing(&all.files, unknown, sums, &theirs, bits)?;
        let steps = self.plan(&all.files, &buckets, bits, &mut view)?;
        all.files = Vec::new();
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
        CatchUp { core, follower, frame, ranges, view, ack_timeout }.run(all)
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
        files: &[(RelPath, Version)],
        unknown: Vec<usize>,
        mut sums: Sums,
        theirs: &[Sum],
        bits: u8,
    ) -> Result<Vec<u32>, Error> {
        let is_empty = |bucket: u32| theirs[bucket as usize] == Sum::default();
        for at in unknown {
            let (path, version) = &files[at];
            // Of what it has none of, nothing has to be read to know.
            let digests = match is_empty(bucket_of(path, bits)) {
                true => Some(Vec::new()),
                false => self.ours(path, *version, version.len)?,
            };
            if let Some(digests) = digests {
                sums.add(path, version.len, &digests);
            }
        }
        Ok(differing(&sums.finish(), theirs))
    }

    /// What it takes to make the follower's files equal to `files`, deletes first, then renames. What cannot be read is void in
    /// the view.
    fn plan(
        &mut self,
        files: &[(RelPath, Version)],
        buckets: &[u32],
        bits: u8,
        view: &mut View,
    ) -> Result<Vec<Step>, Error> {
        if buckets.is_empty() {
            return Ok(Vec::new());
        }
        let is_asked = |path: &RelPath| buckets.binary_search(&bucket_of(path, bits)).is_ok();
        let in_question: Vec<_> = files.iter().filter(|(path, _)| is_asked(path)).cloned().collect();
        let ours = in_question.iter().map(|(path, version)| (path, *version)).collect();
        let mut question = Question { ours, theirs: HashMap::default() };
        self.answers.await_files();
        for some in buckets.chunks(TELL_MAX) {
            self.tell(&Control::Tell(some.to_vec()))?;
        }
        self.tell(&Control::TellEnds)?;
        self.receive_files(&mut question, is_asked)?;
        let renames = self.renames(&mut question)?;
        let Question { ours: _, mut theirs } = question;
        let mut steps = Vec::new();
        for (path, version) in &in_question {
            match theirs.remove(path) {
                None if version.len == 0 => steps.push(Step::Control(Control::Empty(path.clone()))),
                None => steps.push(Step::Send(FileRange { kind: RangeKind::Append, ..whole(path, *version) })),
                Some(Copy { repair: Some(repair), .. }) => steps.extend(repair),
                Some(_) => {
                    view.void(path);
                    self.ranges.joins_without(path);
                    self.ranges.mend(path, *version);
                }
            }
        }
        // Where we cannot look it may be here as well.
        let unreadable = &self.core.unreadable;
        let (kept, mut gone): (Vec<_>, Vec<_>) = theirs.into_keys().partition(|path| unreadable.covers(path));
        kept.iter().for_each(|path| unreadable.keep(path));
        gone.sort_unstable();
        Ok(gone.into_iter().map(Step::Delete).chain(renames).chain(steps).collect())
    }

    /// Takes what the follower tells of its files, and compares each with ours of that name.
    fn receive_files(&mut self, question: &mut Question<'_>, is_asked: impl Fn(&RelPath) -> bool) -> Result<(), Error> {
        let mut kept = 0;
        loop {
            let files = match self.answer()? {
                Told::Files(files) => files,
                Told::End => return Ok(()),
                Told::Sums(_) => return Err(ProtocolError::Malformed("inventory: sums are in it").into()),
            };
            for mut file in files.into_iter().filter(|file| !file.path.is_reserved()) {
                if !is_asked(&file.path) || question.theirs.contains_key(&file.path) {
                    return Err(ProtocolError::NotOffered(file.path.to_string()).into());
                }
                let path = file.path.clone();
                let (mut repair, mut is_at_home) = (None, false);
                if let Some(version) = question.ours.get(&path)
                    && let Some(ours) = self.ours(&path, *version, comparable_bytes(&file, version.len))?
                {
                    is_at_home = file.digests.iter().zip(&ours).any(|(theirs, ours)| theirs == ours);
                    repair = Some(steps_of(&path, *version, &file, &ours));
                }
                if is_at_home || kept + file.digests.len() > DIGESTS_KEPT_MAX {
                    file.digests = Vec::new();
                }
                kept += file.digests.len();
                question.theirs.insert(path, Copy { len: file.len, digests: file.digests, repair, is_at_home });
            }
        }
    }

    /// Files that the follower has under another name, which their first chunk tells: as renames, and noted in what it has. Files of
    /// less than a chunk are not worth it.
    fn renames(&mut self, question: &mut Question<'_>) -> Result<Vec<Step>, Error> {
        let Question { ours, theirs } = question;
        let is_at_home = |path: &RelPath| theirs.get(path).is_some_and(|copy| copy.is_at_home);
        let mut homeless: Vec<_> =
            ours.iter().filter(|(path, version)| version.len >= CHUNK_BYTES && !is_at_home(path)).collect();
        homeless.sort_unstable_by_key(|(path, _)| *path);
        let mut elsewhere: HashMap<ChunkDigest, Vec<(&RelPath, &Copy)>> = HashMap::default();
        for (path, copy) in theirs.iter().filter(|(_, copy)| copy.len >= CHUNK_BYTES && !copy.is_at_home) {
            if let Some(first) = copy.digests.first() {
                elsewhere.entry(*first).or_default().push((path, copy));
            }
        }
        let mut moves = BTreeMap::new();
        for (path, version) in homeless {
            if elsewhere.is_empty() {
                break;
            }
            let Some(first) = self.ours(path, *version, CHUNK_BYTES)?.and_then(|ours| ours.first().copied()) else {
                continue;
            };
            let Some(copies) = elsewhere.get_mut(&first) else { continue };
            // The longest that only lacks a tail, if there are several.
            let fitness = |copy: &Copy| if copy.len <= version.len { copy.len + 1 } else { 0 };
            let best = (0..copies.len()).max_by_key(|&at| fitness(copies[at].1)).expect("none is left empty");
            moves.insert(copies.swap_remove(best).0.clone(), (*path).clone());
            if copies.is_empty() {
                elsewhere.remove(&first);
            }
        }
        let steps = in_order(moves.clone(), |name| theirs.keys().any(|held| is_at_or_below(held, name)));
        let moved: Vec<_> = moves.into_iter().filter_map(|(from, to)| Some((to, theirs.remove(&from)?))).collect();
        for (to, mut copy) in moved {
            let version = ours[&to];
            let held = Held { path: to.clone(), len: copy.len, digests: std::mem::take(&mut copy.digests) };
            let digests = self.ours(&to, version, comparable_bytes(&held, version.len))?;
            copy.repair = digests.map(|digests| steps_of(&to, version, &held, &digests));
            // What had that name is renamed over.
            theirs.insert(to, copy);
        }
        Ok(steps.into_iter().map(|(from, to)| Step::Control(Control::Rename { from, to })).collect())
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
        match core.chunks.digests(open, version.generation, len, &mut go_on) {
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

/// The steps that make a copy equal to our file of that name, whose comparable bytes have the digests `ours`.
fn steps_of(path: &RelPath, version: Version, copy: &Held, ours: &[ChunkDigest]) -> Vec<Step> {
    let repair = compare(copy, version.len, ours);
    let range = |kind, offset, len| Step::Send(FileRange { kind, offset, len, ..whole(path, version) });
    let mut steps: Vec<_> = repair.patches.iter().map(|&(offset, len)| range(RangeKind::Patch, offset, len)).collect();
    steps.extend(repair.truncate.map(|len| Step::Control(Control::Truncate { path: path.clone(), len })));
    if repair.append_from < version.len {
        steps.push(range(RangeKind::Append, repair.append_from, version.len - repair.append_from));
    }
    steps
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
