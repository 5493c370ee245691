//! Joining: what brings a follower from whatever it has to the stream, without the leader noticing.
//!
//! A joiner is a [`View`]: for each file, what the follower has of it. Nothing is queued for it in memory; everything is
//! read from disk, up to the lengths of a cut of the index, with no lock held. In order:
//!
//! 1. *Two rounds of full sync*, both listing one cut. One follower at a time reads or moves content ([`BulkSlot`]); it does
//!    not hold the slot while the follower thinks, nor while it takes nothing.
//! 2. A *probe*, because protocol 1.0.0 acknowledges nothing of a full sync: its acknowledgement says that all before it is
//!    dealt with.
//! 3. *Catch-up rounds*: what changed since the last cut, as ordinary actions. In each the follower attaches to the stream
//!    at the very moment of the cut; if what is then left to catch up with is more than a quarter of its queue could hold up
//!    for, it is detached again, and the next round is shorter. A round ends when it is acknowledged.
//!
//! A file may be replaced, deleted or cut short between the moment of a cut and the moment its bytes are read. Then what the
//! follower was sent of it is *void*. If the index knows a newer generation, a later round (or the stream) brings that. If
//! the index still believes in the old one, the file shrank behind the leader's back: it is announced anew from what is on
//! disk, which mends all followers at once. Lengths that were declared are kept by padding with zeros.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::{Condvar, Mutex};

use super::Core;
use super::acks::{Offer, Rounds};
use super::batch::{Batch, FileRange, RangeKind};
use super::connection::Frame;
use super::follower::FollowerHandle;
use super::status::{EvictionReason, FollowerState};
use super::stream::{Tracker, temporary_of, whole};
use crate::error::{AppendError, Error};
use crate::index::Version;
use crate::protocol::{
    ActionKind, PROBE_NAME, Sha1Sum, encode_action_header, framing_bytes, write_end, write_list_entry,
};
use crate::types::{RelPath, StreamPosition};

/// Whose full sync reads or moves content: one at a time, as long as something moves.
///
/// A holder that hardly moves (it stopped reading, or its link is slow) loses the slot to the next that waits, and goes on without
/// it: the slot spares the leader's disk, and such a holder costs it nothing.
#[derive(Default)]
pub(super) struct BulkSlot {
    holder: Mutex<Option<Arc<FollowerHandle>>>,
    given_back: Condvar,
}

struct InBulk<'a> {
    slot: &'a BulkSlot,
    follower: &'a Arc<FollowerHandle>,
}

/// A holder keeps the slot if it moves this much ...
const MOVED_BYTES_MIN: u64 = 512 << 10;
/// ... in each such interval.
const MOVED_INTERVAL: Duration = Duration::from_secs(2);

impl BulkSlot {
    /// Waits for its turn; `None` if the follower ends first.
    fn acquire<'a>(&'a self, follower: &'a Arc<FollowerHandle>) -> Option<InBulk<'a>> {
        /// An end is not notified here: look now and then.
        const LOOK: Duration = Duration::from_millis(100);
        let mut watched: Option<(Arc<FollowerHandle>, u64, Instant)> = None;
        let mut holder = self.holder.lock();
        while let Some(current) = &*holder {
            if follower.has_ended() {
                return None;
            }
            match &watched {
                Some((whom, moved, since)) if Arc::ptr_eq(whom, current) => {
                    if since.elapsed() >= MOVED_INTERVAL {
                        if current.moved_bytes() < moved + MOVED_BYTES_MIN {
                            break;
                        }
                        watched = None;
                    }
                }
                _ => watched = Some((current.clone(), current.moved_bytes(), Instant::now())),
            }
            self.given_back.wait_for(&mut holder, LOOK);
        }
        *holder = Some(follower.clone());
        Some(InBulk { slot: self, follower })
    }
}

impl Drop for InBulk<'_> {
    fn drop(&mut self) {
        let mut holder = self.slot.holder.lock();
        if holder.as_ref().is_some_and(|holder| Arc::ptr_eq(holder, self.follower)) {
            *holder = None;
            self.slot.given_back.notify_one();
        }
    }
}

pub(super) struct Joiner<'a> {
    core: &'a Arc<Core>,
    follower: &'a Arc<FollowerHandle>,
    frame: &'a mut Frame,
    rounds: Rounds,
    ranges: Ranges<'a>,
}

fn broken(error: io::Error) -> Error {
    Error::connection("while a follower joins", error)
}

/// The connection ended while we waited for something; why is noted already, or follows from here.
fn gone() -> Error {
    broken(ErrorKind::ConnectionAborted.into())
}

impl<'a> Joiner<'a> {
    pub(super) fn new(
        core: &'a Arc<Core>,
        follower: &'a Arc<FollowerHandle>,
        frame: &'a mut Frame,
        rounds: Rounds,
    ) -> Self {
        Self { core, follower, frame, rounds, ranges: Ranges::new(core, follower) }
    }

    /// Blocks until the follower is attached and was sent all that came before; returns what comes after.
    pub(super) fn join(mut self) -> Result<Receiver<Arc<Batch>>, Error> {
        let begun = Instant::now();
        let slot = self.core.bulk.acquire(self.follower).ok_or_else(gone)?;
        self.follower.set_state(FollowerState::Syncing);
        let tracker = self.core.stream.track();
        let offer = Arc::new(Offer::new(tracker.all()));
        self.core.hashes.retain(|path| offer.contains(path));
        let view = self.full_sync(slot, &offer)?;
        drop(offer);
        self.probe()?;
        let Self { core, follower, frame, rounds, ranges } = self;
        // The ack thread reads acknowledgements from here on.
        drop(rounds);
        let synced = &follower.sync;
        log::info!(
            "follower {} at {}: full sync done: {} files, {} bytes in {:.1} s",
            follower.id,
            follower.address,
            synced.files_sent.load(Ordering::Relaxed),
            synced.bytes_sent.load(Ordering::Relaxed),
            begun.elapsed().as_secs_f64(),
        );
        CatchUp { core, follower, frame, ranges, view }.run(&tracker)
    }

    fn full_sync(&mut self, slot: InBulk<'a>, offer: &Arc<Offer>) -> Result<View, Error> {
        let mut slot = Some(slot);
        let mut void = vec![false; offer.files.len()];
        for _round in 0..2 {
            let turn = slot.take().or_else(|| self.core.bulk.acquire(self.follower)).ok_or_else(gone)?;
            self.rounds.offers.send(offer.clone()).map_err(|_| gone())?;
            self.list(offer, &mut void)?;
            drop(turn);
            let requests = self.requests()?;
            if requests.is_empty() {
                continue;
            }
            let _turn = self.core.bulk.acquire(self.follower).ok_or_else(gone)?;
            for at in requests {
                let (path, version) = &offer.files[at];
                void[at] |= !self.content(path, *version)?;
            }
            self.frame.flush().map_err(broken)?;
        }
        Ok(View::new(offer, &void))
    }

    /// Lists all that is not void. A follower deletes what is not listed.
    fn list(&mut self, offer: &Offer, void: &mut [bool]) -> Result<(), Error> {
        for ((path, version), void) in offer.files.iter().zip(void) {
            if *void {
                continue;
            }
            match self.sum(path, *version)? {
                Some(sum) => write_list_entry(self.frame, path, &sum).map_err(broken)?,
                None => {
                    *void = true;
                    self.ranges.mend(path, *version)?;
                }
            }
        }
        write_end(self.frame).and_then(|()| self.frame.flush()).map_err(broken)
    }

    fn sum(&self, path: &RelPath, version: Version) -> Result<Option<Sha1Sum>, Error> {
        let follower = self.follower;
        let mut go_on = |bytes| {
            follower.sync.bytes_hashed.fetch_add(bytes, Ordering::Relaxed);
            if follower.has_ended() { Err(ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
        };
        let root = self.core.dir.path();
        self.core
            .hashes
            .sum(root, path, version, &mut go_on)
            .map_err(|error| Error::io("read", path.below(root), error))
    }

    /// The round's requests, in the order asked. The deadline begins anew with each.
    fn requests(&mut self) -> Result<Vec<usize>, Error> {
        let timeout = self.core.config.sync_timeout;
        let mut requests = Vec::new();
        loop {
            match self.rounds.requests.recv_timeout(timeout) {
                Ok(Some(at)) => requests.push(at as usize),
                Ok(None) => break,
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return Err(gone()),
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {
                    self.follower.evict_at(EvictionReason::NoSyncProgress, self.core.stream.position());
                    return Err(gone());
                }
            }
        }
        self.follower.sync.files_requested.fetch_add(requests.len() as u64, Ordering::Relaxed);
        Ok(requests)
    }

    /// Sends size and content; `false`: it is void.
    fn content(&mut self, path: &RelPath, version: Version) -> Result<bool, Error> {
        let file = self.ranges.open(path, version, version.len)?;
        let size = if file.is_some() { version.len } else { 0 };
        let declared = i64::try_from(size).expect("files are shorter than 2^63 bytes");
        self.frame.write_all(&declared.to_le_bytes()).map_err(broken)?;
        let whole = match file {
            None => false,
            Some(mut file) => self.ranges.copy(self.frame, path, &mut file, size)?,
        };
        if !whole {
            self.ranges.mend(path, version)?;
        }
        self.follower.sync.files_sent.fetch_add(1, Ordering::Relaxed);
        Ok(whole)
    }

    /// Waits until the follower has dealt with the full sync.
    fn probe(&mut self) -> Result<(), Error> {
        let path = RelPath::new(PROBE_NAME)?;
        let mut header = Vec::new();
        encode_action_header(&mut header, &path, ActionKind::Delete);
        self.follower.sending(header.len() as u64, None, Instant::now());
        self.frame.write_all(&header).and_then(|()| self.frame.flush()).map_err(broken)?;
        Ok(())
    }
}

/// What a follower has.
struct View(HashMap<RelPath, Held, foldhash::fast::RandomState>);

#[derive(Clone, Copy, PartialEq)]
enum Held {
    Exact(Version),
    /// Something under that name, but not what any version says.
    Void,
}

/// A step of catching up.
#[derive(Debug, PartialEq)]
enum Step {
    Delete(RelPath),
    Send(FileRange),
}

impl View {
    /// After a full sync the follower has the offer, less what is void.
    fn new(offer: &Offer, void: &[bool]) -> Self {
        let held = |(file, void): (&(RelPath, Version), &bool)| {
            (file.0.clone(), if *void { Held::Void } else { Held::Exact(file.1) })
        };
        Self(offer.files.iter().zip(void).map(held).collect())
    }

    /// What it takes to bring the follower to `changes`, and the view there. Deletes come first: a folder may come where a
    /// file was.
    fn plan(&mut self, changes: Vec<(RelPath, Version)>) -> Vec<Step> {
        let at_cut: HashMap<RelPath, Version, foldhash::fast::RandomState> = changes.iter().cloned().collect();
        let mut deletes = Vec::new();
        let mut sends = Vec::new();
        let mut left: std::collections::VecDeque<_> = changes.into();
        while let Some((path, version)) = left.pop_front() {
            let held = self.0.get(&path).copied();
            if !version.exists() {
                if self.0.remove(&path).is_some() {
                    deletes.push(Step::Delete(path));
                }
                continue;
            }
            self.0.insert(path.clone(), Held::Exact(version));
            match held {
                Some(Held::Exact(had)) if had.generation == version.generation && had.len <= version.len => {
                    if had.len < version.len {
                        sends.push(Step::Send(FileRange {
                            kind: RangeKind::Append,
                            offset: had.len,
                            len: version.len - had.len,
                            ..whole(&path, version)
                        }));
                    }
                }
                // Protocol 1.0.0 cannot make an empty file: none stands for it.
                _ if version.len == 0 => deletes.extend(held.map(|_| Step::Delete(path))),
                _ => {
                    sends.push(Step::Send(whole(&path, version)));
                    // A LavinMQ follower writes the replacement to this name: what it has there is lost.
                    let Some(temporary) = temporary_of(&path) else { continue };
                    let Some(Held::Exact(had)) = self.void(&temporary) else { continue };
                    let wanted = at_cut.get(&temporary).copied();
                    deletes.push(Step::Delete(temporary.clone()));
                    // If it is among the changes and its turn is still to come, that brings it back.
                    if wanted.is_none_or(|wanted| wanted == had) {
                        left.push_back((temporary, had));
                    }
                }
            }
        }
        deletes.extend(sends);
        deletes
    }

    /// Notes that the follower's copy is spoiled; returns what it was, if it has one.
    fn void(&mut self, path: &RelPath) -> Option<Held> {
        self.0.get_mut(path).map(|held| std::mem::replace(held, Held::Void))
    }
}

impl Step {
    fn bytes(&self) -> u64 {
        match self {
            Self::Delete(path) => framing_bytes(path),
            Self::Send(range) => range.action_bytes(),
        }
    }
}

struct CatchUp<'a> {
    core: &'a Arc<Core>,
    follower: &'a Arc<FollowerHandle>,
    frame: &'a mut Frame,
    ranges: Ranges<'a>,
    view: View,
}

impl CatchUp<'_> {
    fn run(mut self, tracker: &Tracker) -> Result<Receiver<Arc<Batch>>, Error> {
        let quarter = self.core.config.queue_bytes / 4;
        self.follower.set_state(FollowerState::CatchingUp);
        self.wait_acknowledged()?;
        let mut last_bytes = 0;
        loop {
            // What changed during a round is some part of what the round moved, if the follower is faster than the writers.
            if last_bytes <= quarter {
                let attachment = tracker.attach(self.follower);
                let steps = self.view.plan(attachment.changes);
                let bytes = steps.iter().map(Step::bytes).sum::<u64>();
                if bytes <= quarter {
                    self.send(steps, Some(attachment.position))?;
                    self.follower.sending(0, Some(attachment.position), Instant::now());
                    self.core.progress.changed();
                    log::info!("follower {} at {} follows the stream", self.follower.id, self.follower.address);
                    return Ok(attachment.batches);
                }
                self.core.stream.detach(self.follower);
                self.follower.detached();
                drop(attachment.batches);
                self.round(steps, &mut last_bytes)?;
            } else {
                let steps = self.view.plan(tracker.changes());
                self.round(steps, &mut last_bytes)?;
            }
        }
    }

    fn round(&mut self, steps: Vec<Step>, last_bytes: &mut u64) -> Result<(), Error> {
        let bytes = steps.iter().map(Step::bytes).sum::<u64>();
        let FollowerHandle { id, address, .. } = &**self.follower;
        if *last_bytes > 0 && bytes >= *last_bytes {
            log::warn!(
                "follower {id} at {address} catches up no faster than writers append: {bytes} bytes are missing"
            );
        } else {
            log::info!("follower {id} at {address} catches up: {bytes} bytes are missing");
        }
        *last_bytes = bytes;
        self.send(steps, None)?;
        self.wait_acknowledged()
    }

    fn send(&mut self, steps: Vec<Step>, attached: Option<StreamPosition>) -> Result<(), Error> {
        let mut header = Vec::new();
        for step in steps {
            match step {
                Step::Delete(path) => {
                    header.clear();
                    encode_action_header(&mut header, &path, ActionKind::Delete);
                    self.follower.sending(header.len() as u64, None, Instant::now());
                    self.frame.write_all(&header).map_err(broken)?;
                }
                Step::Send(range) => {
                    // Once attached, what mends it is in the queue already.
                    if !self.ranges.send(self.frame, &range, |_| None)? && attached.is_none() {
                        self.view.void(&range.path);
                    }
                }
            }
        }
        self.frame.flush().map_err(broken)?;
        self.follower.written();
        Ok(())
    }

    fn wait_acknowledged(&mut self) -> Result<(), Error> {
        if self.follower.wait_acknowledged(self.core.config.sync_timeout) {
            return Ok(());
        }
        self.follower.evict_at(EvictionReason::NoSyncProgress, self.core.stream.position());
        Err(gone())
    }
}

/// Sends ranges of files: those of catch-up rounds, and those that stand in batches.
pub(super) struct Ranges<'a> {
    core: &'a Arc<Core>,
    follower: &'a FollowerHandle,
    buffer: Vec<u8>,
}

impl<'a> Ranges<'a> {
    pub(super) fn new(core: &'a Arc<Core>, follower: &'a FollowerHandle) -> Self {
        Self { core, follower, buffer: Vec::new() }
    }

    /// Sends a range that stands in the stream.
    pub(super) fn send_queued(&mut self, frame: &mut Frame, range: &FileRange, batch: &Batch) -> Result<(), Error> {
        let begin = batch.end - range.action_bytes();
        self.send(frame, range, |done| Some((StreamPosition(begin + done), batch.sealed_at)))?;
        frame.flush().map_err(broken)?;
        self.follower.sending(0, Some(StreamPosition(batch.end)), batch.sealed_at);
        self.follower.written();
        Ok(())
    }

    /// Writes the range as actions; `at` tells the position after so many of its action bytes. `false`: it is void, and
    /// was not sent or ends in zeros.
    fn send(
        &mut self,
        frame: &mut Frame,
        range: &FileRange,
        at: impl Fn(u64) -> Option<(StreamPosition, Instant)>,
    ) -> Result<bool, Error> {
        let version = Version { generation: range.generation, len: range.offset + range.len };
        let Some(mut file) = self.open(&range.path, version, version.len)? else {
            self.mend(&range.path, version)?;
            return Ok(false);
        };
        file.seek(SeekFrom::Start(range.offset)).map_err(|error| self.unreadable(&range.path, error))?;
        let framing = framing_bytes(&range.path);
        let mut done = 0;
        let mut header = Vec::new();
        let mut intact = true;
        for len in range.pieces() {
            let kind = match range.kind {
                RangeKind::Append => ActionKind::Append(len),
                RangeKind::Replace => ActionKind::Replace(len),
            };
            header.clear();
            encode_action_header(&mut header, &range.path, kind);
            done += framing + len;
            let (position, since) = at(done).unzip();
            self.follower.sending(framing + len, position, since.unwrap_or_else(Instant::now));
            frame.write_all(&header).map_err(broken)?;
            intact &= self.copy(frame, &range.path, &mut file, len)?;
        }
        if !intact {
            self.mend(&range.path, version)?;
        }
        Ok(intact)
    }

    /// Opens the file if it is still what `version` says, with at least `len` bytes.
    fn open(&self, path: &RelPath, version: Version, len: u64) -> Result<Option<File>, Error> {
        // Bytes below an announced length are on disk before they are announced: a file opened after this look has them, or
        // is newer, and then the index will say so.
        if self.core.stream.version(path).generation != version.generation {
            return Ok(None);
        }
        let opened = File::open(path.below(self.core.dir.path()))
            .and_then(|file| file.metadata().map(|meta| (meta.is_file() && meta.len() >= len).then_some(file)));
        match opened {
            Ok(file) => Ok(file),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(self.unreadable(path, error)),
        }
    }

    /// Copies `len` bytes, with zeros for what is not there. `false`: some were not.
    fn copy(&mut self, frame: &mut Frame, path: &RelPath, file: &mut File, len: u64) -> Result<bool, Error> {
        const BUFFER_BYTES: usize = 256 << 10;
        self.buffer.resize(BUFFER_BYTES, 0);
        let mut left = len;
        let mut intact = true;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER_BYTES);
            let mut length = 0;
            if intact {
                length = file.read(&mut self.buffer[..want]).map_err(|error| self.unreadable(path, error))?;
            }
            if length == 0 {
                self.buffer.fill(0);
                intact = false;
                length = want;
            }
            frame.write_all(&self.buffer[..length]).map_err(broken)?;
            self.follower.sync.bytes_sent.fetch_add(length as u64, Ordering::Relaxed);
            left -= length as u64;
        }
        Ok(intact)
    }

    /// Announces a file anew that is not on disk what the index believes it to be, unless the index knows by now.
    fn mend(&self, path: &RelPath, believed: Version) -> Result<(), Error> {
        if self.core.stream.version(path).generation != believed.generation {
            return Ok(());
        }
        log::info!("{path} is shorter on disk than the {} bytes announced: announcing it anew", believed.len);
        match self.core.announce_from_disk(path, Some(believed.generation)) {
            Ok(_) | Err(AppendError::ShuttingDown) => Ok(()),
            Err(AppendError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                // Refused only when shutting down.
                let _ = self.core.stream.delete(path, Some(believed.generation));
                Ok(())
            }
            Err(AppendError::Io { source, .. }) => Err(self.unreadable(path, source)),
            Err(error) => Err(self.unreadable(path, io::Error::other(error))),
        }
    }

    fn unreadable(&self, path: &RelPath, error: io::Error) -> Error {
        Error::io("read", path.below(self.core.dir.path()), error)
    }
}
