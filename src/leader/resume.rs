//! Joining with the extension: what the follower has is told apart from what it lacks chunk by chunk, and only the latter is
//! sent.
//!
//! The follower tells an inventory of its files with digests by chunk; ours are computed from disk, at most once for each chunk
//! that ever was. The difference goes as ordinary actions and controls between "sync begins" and "sync ends": deletes,
//! renames, patches, truncations, appends. From there on it is catching up, as for everybody (`catch_up.rs`). Nothing is sent for
//! what the digests find equal, and nothing the follower has is believed without them.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Core;
use super::admission::wait_admitted;
use super::batch::{FileRange, RangeKind, Step};
use super::catch_up::{CatchUp, CaughtUp};
use super::connection::Frame;
use super::follower::FollowerHandle;
use super::moves::{in_order, is_at_or_below};
use super::ranges::{Ranges, broken, gone};
use super::socket::{TICKS, tick};
use super::status::{EvictionReason, FollowerState};
use super::stream::whole;
use super::view::View;
use crate::error::Error;
use crate::index::Version;
use crate::index::chunks::{comparable_bytes, compare};
use crate::protocol::ProtocolError;
use crate::protocol::extension::{CHUNK_BYTES, ChunkDigest, Control, Held};
use crate::sys::channel::{Receiver, RecvTimeoutError};
use crate::sys::hash::{HashMap, HashSet};
use crate::sys::time::Instant;
use crate::types::RelPath;

pub(super) struct Resumer<'a> {
    core: &'a Arc<Core>,
    follower: &'a Arc<FollowerHandle>,
    frame: &'a mut Frame,
    ranges: Ranges<'a>,
    inventory: Receiver<Option<Vec<Held>>>,
}

impl<'a> Resumer<'a> {
    pub(super) fn new(
        core: &'a Arc<Core>,
        follower: &'a Arc<FollowerHandle>,
        frame: &'a mut Frame,
        inventory: Receiver<Option<Vec<Held>>>,
    ) -> Self {
        Self { core, follower, frame, ranges: Ranges::in_bulk(core, follower), inventory }
    }

    /// Blocks until the follower is attached.
    pub(super) fn join(mut self) -> Result<CaughtUp, Error> {
        let core = self.core;
        let (frame, ranges) = (&mut *self.frame, &mut self.ranges);
        wait_admitted(core, self.follower, &mut || ranges.beat(frame))?;
        let begun = Instant::now();
        self.tell(&Control::Want)?;
        let held = self.receive_inventory()?;
        let (frame, ranges) = (&mut *self.frame, &mut self.ranges);
        ranges.wait_out_of_sync(frame)?;
        let turn = core.admission.syncs.acquire(self.follower, &mut || ranges.beat(frame))?;
        self.follower.set_state(FollowerState::Syncing);
        let tracker = core.stream.track();
        let files = tracker.all();
        let mut view = View::of(&files);
        let steps = self.plan(&files, held, &mut view)?;
        drop(files);
        self.sync(steps, &mut view)?;
        drop(turn);
        let Self { core, follower, frame, ranges, .. } = self;
        log::info!(
            "follower {} at {}: sync sent: {} files or parts of them, {} bytes in {:.1} s",
            follower.id,
            follower.address,
            follower.sync.files_sent.load(Ordering::Relaxed),
            follower.sync.bytes_sent.load(Ordering::Relaxed),
            begun.elapsed().as_secs_f64(),
        );
        CatchUp { core, follower, frame, ranges, view, ack_timeout: Some(core.config.sync_timeout) }
            .run(&tracker, Vec::new())
    }

    fn tell(&mut self, control: &Control) -> Result<(), Error> {
        let _ = self.ranges.send_step(self.frame, &Step::Control(control.clone()))?;
        self.frame.flush().map_err(broken)?;
        self.follower.written();
        Ok(())
    }

    /// What the follower has, by name. The deadline begins anew with each part.
    fn receive_inventory(&mut self) -> Result<HashMap<RelPath, Held>, Error> {
        let timeout = self.core.config.sync_timeout;
        let slice = tick(timeout).min(self.core.config.heartbeat_interval);
        let slices = timeout.div_duration_f64(slice).ceil();
        let mut held = HashMap::default();
        let mut waited = 0.0;
        loop {
            match self.inventory.recv_timeout(slice) {
                Ok(None) => return Ok(held),
                Ok(Some(files)) => {
                    waited = 0.0;
                    for file in files.into_iter().filter(|file| !file.path.is_reserved()) {
                        if let Some(twice) = held.insert(file.path.clone(), file) {
                            return Err(ProtocolError::NotOffered(twice.path.to_string()).into());
                        }
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
                Err(RecvTimeoutError::Timeout) => {
                    waited += 1.0;
                    if waited >= slices.max(f64::from(TICKS)) {
                        self.follower.evict_at(EvictionReason::NoSyncProgress, self.core.stream.position());
                        return Err(gone());
                    }
                    self.ranges.beat(self.frame)?;
                }
            }
        }
    }

    /// What it takes to make the follower's files equal to `files`, deletes first, then renames. What cannot be read is void in
    /// the view.
    fn plan(
        &mut self,
        files: &[(RelPath, Version)],
        mut held: HashMap<RelPath, Held>,
        view: &mut View,
    ) -> Result<Vec<Step>, Error> {
        let alive: HashSet<u64> = files.iter().map(|(_, version)| version.generation).collect();
        self.core.chunks.retain(|generation| alive.contains(&generation));
        let renames = self.renames(files, &mut held)?;
        let mut steps = Vec::new();
        for (path, version) in files {
            match held.remove(path) {
                None if version.len == 0 => steps.push(Step::Control(Control::Empty(path.clone()))),
                None => steps.push(Step::Send(FileRange { kind: RangeKind::Append, ..whole(path, *version) })),
                Some(copy) => match self.repair(path, *version, &copy)? {
                    Some(repair) => steps.extend(repair),
                    None => {
                        view.void(path);
                        self.ranges.joins_without(path);
                        self.ranges.mend(path, *version);
                    }
                },
            }
        }
        // Where we cannot look it may be here as well.
        let unreadable = &self.core.unreadable;
        let (kept, mut gone): (Vec<_>, Vec<_>) = held.into_keys().partition(|path| unreadable.covers(path));
        kept.iter().for_each(|path| unreadable.keep(path));
        gone.sort_unstable();
        Ok(gone.into_iter().map(Step::Delete).chain(renames).chain(steps).collect())
    }

    /// Files that the follower has under another name, which their first chunk tells: as renames, and noted in `held`. Files of
    /// less than a chunk are not worth it.
    fn renames(&mut self, files: &[(RelPath, Version)], held: &mut HashMap<RelPath, Held>) -> Result<Vec<Step>, Error> {
        let mut homeless = Vec::new();
        let mut at_home = HashSet::default();
        for (path, version) in files.iter().filter(|(_, version)| version.len >= CHUNK_BYTES) {
            let is_at_home = match held.get(path) {
                None => false,
                Some(copy) => {
                    let ours = self.ours(path, *version, comparable_bytes(copy, version.len))?.unwrap_or_default();
                    copy.digests.iter().zip(&ours).any(|(theirs, ours)| theirs == ours)
                }
            };
            if is_at_home {
                at_home.insert(path);
            } else {
                homeless.push((path, *version));
            }
        }
        let mut elsewhere: HashMap<ChunkDigest, Vec<&Held>> = HashMap::default();
        for copy in held.values().filter(|copy| copy.len >= CHUNK_BYTES && !at_home.contains(&copy.path)) {
            elsewhere.entry(copy.digests[0]).or_default().push(copy);
        }
        let mut moves = BTreeMap::new();
        for (path, version) in homeless {
            if elsewhere.is_empty() {
                break;
            }
            let Some(first) = self.ours(path, version, CHUNK_BYTES)?.and_then(|ours| ours.first().copied()) else {
                continue;
            };
            let Some(copies) = elsewhere.get_mut(&first) else { continue };
            // The longest that only lacks a tail, if there are several.
            let fitness = |copy: &Held| if copy.len <= version.len { copy.len + 1 } else { 0 };
            let best = (0..copies.len()).max_by_key(|&at| fitness(copies[at])).expect("none is left empty");
            moves.insert(copies.swap_remove(best).path.clone(), path.clone());
            if copies.is_empty() {
                elsewhere.remove(&first);
            }
        }
        let steps = in_order(moves.clone(), |name| held.keys().any(|held| is_at_or_below(held, name)));
        let moved: Vec<_> = moves.into_iter().filter_map(|(from, to)| Some((to, held.remove(&from)?))).collect();
        // What had these names is renamed over.
        held.extend(moved);
        Ok(steps.into_iter().map(|(from, to)| Step::Control(Control::Rename { from, to })).collect())
    }

    /// The steps that make the follower's copy equal to the file; `None` if ours cannot be read as announced.
    fn repair(&mut self, path: &RelPath, version: Version, copy: &Held) -> Result<Option<Vec<Step>>, Error> {
        let Some(ours) = self.ours(path, version, comparable_bytes(copy, version.len))? else { return Ok(None) };
        let repair = compare(copy, version.len, &ours);
        let range = |kind, offset, len| Step::Send(FileRange { kind, offset, len, ..whole(path, version) });
        let mut steps: Vec<_> =
            repair.patches.iter().map(|&(offset, len)| range(RangeKind::Patch, offset, len)).collect();
        steps.extend(repair.truncate.map(|len| Step::Control(Control::Truncate { path: path.clone(), len })));
        if repair.append_from < version.len {
            steps.push(range(RangeKind::Append, repair.append_from, version.len - repair.append_from));
        }
        Ok(Some(steps))
    }

    /// The digests of the first `len` bytes of ours; `None` if they cannot be read as announced.
    fn ours(&mut self, path: &RelPath, version: Version, len: u64) -> Result<Option<Vec<ChunkDigest>>, Error> {
        let (core, follower) = (self.core, self.follower);
        let open = || core.open_announced(path, version.generation, 0);
        let (frame, ranges) = (&mut *self.frame, &mut self.ranges);
        let mut ended = None;
        let mut go_on = |bytes| {
            follower.sync.bytes_hashed.fetch_add(bytes, Ordering::Relaxed);
            let beaten = ranges.beat(frame);
            let going = beaten.and_then(|()| if core.admission.pace(bytes, follower) { Ok(()) } else { Err(gone()) });
            going.map_err(|error| {
                ended = Some(error);
                ErrorKind::ConnectionAborted.into()
            })
        };
        match (core.chunks.digests(open, version.generation, len, &mut go_on), ended) {
            (Ok(digests), _) => Ok(digests),
            (Err(_), Some(ended)) => Err(ended),
            (Err(error), None) => {
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
            self.ranges.beat(self.frame)?;
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
