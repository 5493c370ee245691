//! The reader's side of a connection of the extension: one stream of actions, and what the controls among them ask for.
//!
//! Runs on the reader thread; locks nothing for longer than a put. What takes long (an inventory, a flush) is handed to the
//! thread of `disk`, so that the stream goes on; only the beginning of a sync waits, for its mark to be on disk.
//!
//! ```text
//!   (opening ─▶) want ─▶ sums told ─▶ tell … tell ends ─▶ inventory told ─┐
//!               │ (all are equal)                            ▼
//!               └─────────────────────────────────────▶ sync begins ─▶ actions ─▶ sync ends ─▶ actions ─▶ position ─▶ actions …
//!    ▲                                                                                                                │
//!    └──────────────────────── the leader has thrown away what it should have sent ◀──────────────────────────────────┘
//! ```
//!
//! A sync moves files while they change: some of them it leaves empty, missing, or half of one content and half of another, and
//! what is sent after its end brings them. So the copy is whole, and its mark goes, not when the sync ends but when the leader
//! first says at which position of the stream it is.
//!
//! Whatever comes in another order, or does not fit the files here, ends the connection: the next one compares anew.
//!
//! Where the leader is not trusted (see [`contact`](super::contact)), the directory is neither claimed nor marked before the first
//! change, and what the leader deletes before that is held back until it was counted. The marks do not wait for it: what counts
//! for the leader is the end of the sync.

mod claim;
mod dialogue;

use std::io::{self, BufRead};

use super::apply::Actions;
use super::connection::lost;
use super::contact::{Change, Contact, Limit};
use super::digests::Digests;
use super::dir::Dir;
use super::disk::{Job, Jobs};
use super::flush::Unflushed;
use super::kept::Bounds;
use super::lag::Lag;
use super::report::Report;
use super::reshape::unreserved;
use super::shared::Shared;
use super::track::Track;
use crate::datadir::DataDir;
use crate::digests;
use crate::error::Error;
use crate::position::EpochPosition;
use crate::protocol::extension::{CONTROL_BYTES_MAX, Control, Item};
use crate::protocol::{ActionDecoder, ActionKind, Event, ProtocolError, framing_bytes};
use crate::seldom::Seldom;
use crate::sys::channel::Receiver;
use crate::sys::time::Instant;
use crate::types::{DataSetId, RelPath, StreamPosition};

/// Bytes that a sync writes before they are made durable in the background, so that its end has little left to flush.
const UNFLUSHED_BYTES_MAX: u64 = 64 << 20;

/// What a session works with.
pub(super) struct Parts<'a> {
    pub(super) data: &'a mut DataDir,
    /// What the leader may delete ...
    pub(super) limit: Limit,
    /// ... and its data set, if it said so.
    pub(super) theirs: Option<DataSetId>,
    /// The term of the election that it won, if it said one.
    pub(super) term: Option<u64>,
    pub(super) once: bool,
    pub(super) keep: Bounds,
    pub(super) digests: &'a Digests,
    pub(super) shared: &'a Shared,
    pub(super) report: &'a Report,
    pub(super) jobs: &'a Jobs,
}

/// See the module's documentation.
pub(super) struct Session<'a> {
    parts: Parts<'a>,
    actions: Actions<'a>,
    decoder: ActionDecoder,
    /// A control that is coming in.
    control: Option<Incoming>,
    /// Where the next append goes, if not to its file's end.
    patch: Option<(RelPath, u64)>,
    /// Action bytes dealt with.
    total: u64,
    phase: Phase,
    asked: Asked,
    /// Until the first sync of a leader that is not trusted has ended.
    contact: Option<Contact>,
    /// What waits for its first change: files to be cut.
    unready: Vec<(RelPath, u64)>,
    lag: Lag,
    /// What is said while the leader opens.
    waits: Seldom,
    sync: Sync,
    /// The connection is over, as was wanted.
    done: bool,
    /// The leader let us go: when to come back, in milliseconds.
    goodbye: Option<u32>,
}

struct Incoming {
    path: RelPath,
    content: Vec<u8>,
    /// `total` before it.
    before: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No sync has begun.
    Before,
    Syncing,
    /// What a sync left out, because it changed meanwhile, is still to come: the directory stays marked.
    CatchingUp,
    Streaming,
}

/// What the leader wants to know of what is here.
enum Asked {
    Nothing,
    /// The sums of 2^`bits` buckets, and the files of these, as far as it has said which.
    Sums {
        bits: u8,
        buckets: Vec<u32>,
    },
    /// Those were all.
    Files,
}

/// Of the sync under way, not told yet.
#[derive(Default)]
struct Sync {
    bytes: u64,
    files: u64,
    /// The file that the last bytes went to.
    file: Option<RelPath>,
    unflushed_bytes: u64,
}

fn out_of_place(said: impl Into<String>) -> Error {
    ProtocolError::OutOfPlace(said.into()).into()
}

impl<'a> Session<'a> {
    pub(super) fn new(parts: Parts<'a>, dir: &'a Dir, track: Track) -> Self {
        let mut actions = Actions::new(dir);
        actions.track = Some(track);
        actions.leaves_folders = true;
        Self {
            parts,
            actions,
            decoder: ActionDecoder::new(),
            control: None,
            patch: None,
            total: 0,
            phase: Phase::Before,
            asked: Asked::Nothing,
            contact: None,
            unready: Vec::new(),
            lag: Lag::default(),
            waits: Seldom::default(),
            sync: Sync::default(),
            done: false,
            goodbye: None,
        }
    }

    /// Applies the stream until the connection ends. `Ok`: a sync was all that was asked for, and it is done.
    pub(super) fn run(&mut self, reader: &mut impl BufRead) -> Result<(), Error> {
        while !self.done {
            let block = reader.fill_buf().map_err(|error| lost("in the stream", error.into()))?;
            if block.is_empty() {
                let between = self.decoder.is_between_actions();
                let at = if between { "in the stream" } else { "in the middle of an action" };
                return Err(lost(at, ProtocolError::Io(io::ErrorKind::UnexpectedEof.into())));
            }
            let length = block.len();
            self.block(block)?;
            reader.consume(length);
        }
        Ok(())
    }

    /// When the leader said to come back, in milliseconds, if it let us go; and what is not durable.
    pub(super) fn end(mut self) -> (Option<u32>, Unflushed) {
        (self.goodbye, self.actions.unflushed())
    }

    fn block(&mut self, mut block: &[u8]) -> Result<(), Error> {
        while !self.done
            && let Some(event) = self.decoder.next(&mut block)?
        {
            match event {
                Event::Action { path, kind } => self.begin(path, kind)?,
                Event::Payload { bytes, remaining } => self.payload(bytes, remaining)?,
                Event::Heartbeat => {}
            }
        }
        self.settle()
    }

    /// Everything so far is written, and said to be.
    fn settle(&mut self) -> Result<(), Error> {
        self.actions.settle()?;
        let (total, deleted, syncing) = (self.total, self.actions.deleted, self.phase == Phase::Syncing);
        let is_marked = self.phase != Phase::Streaming;
        let (bytes, files) = (self.sync.bytes, self.sync.files);
        if let Some(at) = self.position() {
            self.parts.shared.written_at(at);
        }
        // In this order: what is acknowledged was counted as applied.
        self.parts.shared.update_with_lag(self.lag.now(), |status| {
            status.applied_bytes = total;
            if syncing {
                status.sync.bytes_received = bytes;
                status.sync.files_received = files;
                status.sync.files_deleted = deleted;
            }
        });
        if syncing {
            self.parts.report.written_of_bulk(total);
        } else {
            self.parts.report.written(total);
        }
        if is_marked && self.sync.unflushed_bytes >= UNFLUSHED_BYTES_MAX {
            self.sync.unflushed_bytes = 0;
            // It covers no mark: a replacement may be under way.
            let unflushed = self.actions.unflushed();
            self.parts.jobs.put(Job::Flush(unflushed, 0, None));
        }
        Ok(())
    }

    /// Where the directory is in the stream of a leader in a cluster, once all is there that came before. What was read and not yet
    /// [settled](Self::settle) counts.
    fn position(&self) -> Option<EpochPosition> {
        let (epoch, position) = self.parts.term.zip(self.lag.own()).filter(|_| self.phase == Phase::Streaming)?;
        Some(EpochPosition { epoch, position: StreamPosition(position) })
    }

    /// Tells the actions what the phase means to them. In a sync nobody counts on what is here. Once it has ended somebody may, whoever
    /// made it durable and when; also while the mark is still there, since whoever gets the last thing that it lacked is in sync by
    /// what it has made durable until then.
    fn tell_phase(&mut self) {
        self.actions.in_bulk = self.phase == Phase::Syncing;
        self.actions.guard = matches!(self.phase, Phase::CatchingUp | Phase::Streaming);
    }

    fn begin(&mut self, path: RelPath, kind: ActionKind) -> Result<(), Error> {
        let (before, framing) = (self.total, framing_bytes(&path));
        self.total += framing;
        self.parts.report.received(self.total);
        if let ActionKind::Append(length) = kind
            && Control::is_control(&path)
        {
            if length > CONTROL_BYTES_MAX {
                let value = i64::try_from(length).unwrap_or(i64::MAX);
                return Err(ProtocolError::Length { what: "control's length", value, max: CONTROL_BYTES_MAX }.into());
            }
            self.control = Some(Incoming { path, content: Vec::new(), before });
            return Ok(());
        }
        self.lag.advance(framing);
        let patch = self.patch.take();
        if let Some((patched, _)) = &patch
            && (*patched != path || !matches!(kind, ActionKind::Append(_)))
        {
            return Err(out_of_place(format!("patch of {patched} without its bytes")));
        }
        if !path.is_reserved() {
            let deletes = kind == ActionKind::Delete;
            if let Some(contact) = self.contact.as_mut().filter(|contact| deletes && !contact.begun()) {
                return contact.hold_back(self.parts.data.path(), path);
            }
            self.changes(&path, if deletes { Change::Delete } else { Change::Content })?;
            if !deletes {
                self.syncs(&path, 0);
            }
        }
        match (patch, kind) {
            (Some((path, offset)), ActionKind::Append(length)) => self.actions.begin_patch(&path, offset, length),
            _ => self.actions.begin(path, kind),
        }
    }

    /// Content of a file comes, and so many of its bytes: where that is in a sync, it is counted.
    fn syncs(&mut self, path: &RelPath, bytes: u64) {
        if self.phase != Phase::Syncing {
            return;
        }
        self.sync.bytes += bytes;
        if self.sync.file.as_ref() != Some(path) {
            self.sync.files += 1;
            self.sync.file = Some(path.clone());
        }
    }

    fn payload(&mut self, bytes: &[u8], remaining: u64) -> Result<(), Error> {
        let length = bytes.len() as u64;
        self.total += length;
        self.parts.report.received(self.total);
        let Some(control) = &mut self.control else {
            self.lag.advance(length);
            if self.phase == Phase::Syncing {
                self.sync.bytes += length;
            }
            self.sync.unflushed_bytes += length;
            return self.actions.payload(bytes, remaining);
        };
        control.content.extend_from_slice(bytes);
        match self.control.take_if(|_| remaining == 0) {
            Some(whole) => self.control(&whole),
            None => Ok(()),
        }
    }

    fn control(&mut self, whole: &Incoming) -> Result<(), Error> {
        let Some(control) = Control::decode(&whole.path, &whole.content)? else {
            log::debug!("passed over {}, which a later version knows", whole.path);
            return Ok(());
        };
        if control.counts_in_positions() {
            self.lag.advance(self.total - whole.before);
        }
        if let (Some((patched, _)), true) = (&self.patch, is_of_files(&control)) {
            return Err(out_of_place(format!("patch of {patched} without its bytes")));
        }
        let of_pieces = matches!(control, Control::Place | Control::Unstage);
        let is_anywhere = matches!(control, Control::Heartbeat { .. } | Control::Goodbye { .. } | Control::Hole { .. });
        if !is_anywhere && of_pieces != self.actions.is_in_pieces() {
            return Err(out_of_place(format!("{} within a replacement, or without one", whole.path)));
        }
        match control {
            Control::Stage(path) => {
                self.changes(&path, Change::Content)?;
                self.actions.begin_pieces(path)
            }
            Control::Place => self.actions.place(),
            Control::Unstage => self.actions.unstage(),
            Control::Rename { from, to } => {
                self.changes(&from, Change::RenameAway)?;
                self.changes(&to, Change::Content)?;
                self.actions.rename(&from, &to)
            }
            Control::Truncate { path, len } => {
                self.changes(&path, Change::Content)?;
                self.actions.truncate(&path, len)
            }
            Control::Empty(path) => {
                self.changes(&path, Change::Content)?;
                self.sync.files += 1;
                self.actions.empty(&path)
            }
            Control::PatchAt { path, offset } => {
                writes_in_place(&self.parts, self.phase)?;
                self.patch = Some((path, offset));
                Ok(())
            }
            Control::Hole { path, offset, len } => {
                self.changes(&path, Change::Content)?;
                self.syncs(&path, len);
                let Self { actions, parts, phase, .. } = self;
                actions.hole(&path, offset, len, &mut || writes_in_place(parts, *phase))
            }
            Control::Attributes(path, attributes) => {
                self.changes(&path, Change::Content)?;
                self.actions.attributes(&path, attributes)
            }
            Control::Item(path, item) => {
                // Where a folder is, there is no link and no file.
                let is_folder = matches!(item, Item::Folder(_));
                self.changes(&path, if is_folder { Change::Delete } else { Change::Content })?;
                self.actions.item(&path, &item)
            }
            Control::RemoveItem(path) => {
                unreserved(&path)?;
                if let Some(contact) = self.contact.as_mut().filter(|contact| !contact.begun()) {
                    return contact.hold_back_item(self.parts.data.path(), path);
                }
                self.changes(&path, Change::Delete)?;
                self.actions.remove_item(&path)
            }
            Control::Want(bits) => self.want(bits),
            Control::Tell(buckets) => self.tell(&buckets),
            Control::TellEnds => self.tell_ends(),
            Control::SyncBegins { files, bytes } => self.sync_begins(files, bytes),
            Control::SyncEnds => self.sync_ends(whole.before),
            Control::Position(position) => {
                self.lag.set_own(position);
                if self.phase == Phase::CatchingUp { self.caught_up(whole.before) } else { Ok(()) }
            }
            Control::Heartbeat { position, clock_us } => {
                self.lag.heard(position, Instant::now());
                self.parts.shared.update(|status| status.leader_clock_us = Some(clock_us));
                Ok(())
            }
            Control::MakeDurable => {
                self.written_before(whole)?;
                let unflushed = self.actions.unflushed();
                self.parts.jobs.put(Job::Flush(unflushed, whole.before, self.position()));
                Ok(())
            }
            Control::Opening(files) => self.opening(files),
            Control::Goodbye { back_in_ms, reason } => Err(self.goodbye(back_in_ms, reason)),
        }
    }

    /// What is to be made durable counts as written first.
    fn written_before(&mut self, control: &Incoming) -> Result<(), Error> {
        self.actions.settle()?;
        self.parts.report.written(control.before);
        Ok(())
    }
}

/// What is written in place may reach the disk without its time. Of a directory that is marked nothing is believed for that; for any other that is
/// written down before the first time.
fn writes_in_place(parts: &Parts<'_>, phase: Phase) -> Result<(), Error> {
    if phase == Phase::Streaming && parts.digests.writes_in_place() {
        digests::file::led(parts.data.own())?;
    }
    Ok(())
}

/// Waits for the answer of the thread that works on the disk.
fn wait(answer: &Receiver<()>) -> Result<(), Error> {
    // Otherwise it has failed, and has said why.
    answer.recv().map_err(|_| Error::connection("ended", io::Error::other("a thread of the follower ended")))
}

fn is_of_files(control: &Control) -> bool {
    control.counts_in_positions() || matches!(control, Control::Stage(_))
}
