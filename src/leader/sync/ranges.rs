//! Ranges of files, read from disk for one follower; and what becomes of a copy whose range cannot be read.
//!
//! A range is announced once, and read by each writer when it gets there. By then the file may be gone or cut short behind the leader's back, or the disk may
//! fail. No follower gets anything else in its place, because nobody can tell such a copy from one that is exact, and who has it may be elected: a copy
//! stays *as it was* until all of the file comes.
//!
//! - A piece is read before its action begins. So an append ends where it could be read no further, which is a state that the file was in.
//! - A replacement goes in pieces, too, to a follower that knows the extension: it is staged there, and dropped if it does not come to an end. Protocol
//!   1.0.0 says at its beginning how long it is, and has no word for giving it up; such a follower is let go before the first byte that could not be read
//!   ([`EvictionReason::Unreadable`](crate::leader::EvictionReason)). It drops an action that never ended, ours as LavinMQ's. If not even the first piece can be read nothing was begun, and it stays.
//! - What is appended after that has no place in the copy. The file is *spoiled* from there on, and each writer leaves out, of ranges and
//!   of the batches that all share, what is appended to a file that is spoiled for its follower ([`Actions::applicable`]). It ends with what does
//!   not build on the copy: a replacement, a delete, another file renamed over it. In place of cutting it, and before it is renamed, it is replaced.
//!
//! What it has counts as far as it has come for as long ([`FollowerHandle::void`]), and what is in doubt is announced anew: at once if it is gone or
//! shorter, and when it can be read again if it cannot (`files/unreadable.rs`). All others go on.

mod controls;
mod lost;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::digests::{Chunked, ON_THE_WAY_BYTES_MAX, Stamps, now};
use crate::error::Error;
use crate::index::Version;
use crate::leader::batch::{Actions, Batch, FileRange, RangeKind, Step};
use crate::leader::core::Core;
use crate::leader::link::frame::Frame;
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::gone::{broken, gone};
use crate::protocol::extension::Control;
use crate::protocol::{APPEND_BYTES_MAX, ActionKind, encode_action_header};
use crate::reader::{HOLE_BYTES_MIN, Reader, Span};
use crate::sys::time::Instant;
use crate::types::{RelPath, StreamPosition};

/// Sends ranges of files: those of catch-up rounds, and those that stand in batches.
pub(in crate::leader) struct Ranges<'a> {
    core: &'a Arc<Core>,
    follower: &'a FollowerHandle,
    buffer: Vec<u8>,
    /// Of what was read so far of the file at hand.
    digest: Option<Chunked>,
    /// Reads at the pace of all syncs together, and leaves nothing in the page cache.
    in_bulk: bool,
    /// The position before what is being sent: from there on it is void, should it be.
    before: StreamPosition,
    /// An action was begun that cannot be ended.
    is_cut_off: bool,
    /// Of what was sent last some went as holes, which are not what it counts for in positions.
    has_holes: bool,
    last_beat: Instant,
}

impl<'a> Ranges<'a> {
    pub(in crate::leader) fn new(core: &'a Arc<Core>, follower: &'a FollowerHandle) -> Self {
        Self {
            core,
            follower,
            buffer: Vec::new(),
            digest: None,
            in_bulk: false,
            before: StreamPosition(0),
            is_cut_off: false,
            has_holes: false,
            last_beat: Instant::now(),
        }
    }

    /// For a follower that is not attached to the stream: reads at the pace of all of them together, and leaves nothing in the
    /// page cache.
    pub(in crate::leader) fn in_bulk(core: &'a Arc<Core>, follower: &'a FollowerHandle) -> Self {
        Self { in_bulk: true, ..Self::new(core, follower) }
    }

    /// Sends a range that stands in the stream.
    pub(in crate::leader) fn send_queued(
        &mut self,
        frame: &mut Frame,
        range: &FileRange,
        batch: &Batch,
    ) -> Result<(), Error> {
        let begin = batch.end - batch.bytes;
        let whole = self.send(frame, range, |done| Some((StreamPosition(begin + done), batch.sealed_at)))?;
        if !whole || range.kind == RangeKind::Replace || self.has_holes {
            self.tell_position(frame, batch)?;
        }
        self.sent(frame, batch)
    }

    /// The actions of a batch less those that a spoiled file has no place for; `None`: it goes as it is.
    pub(in crate::leader) fn applicable(&self, actions: &Actions) -> Option<Vec<u8>> {
        let mut spoiled = std::mem::take(&mut *self.follower.spoiled.lock());
        if spoiled.is_empty() {
            return None;
        }
        let applicable = actions.applicable(&mut spoiled);
        *self.follower.spoiled.lock() = spoiled;
        applicable
    }

    /// Sends these actions of a batch in place of all.
    pub(in crate::leader) fn send_some(
        &mut self,
        frame: &mut Frame,
        actions: &[u8],
        batch: &Batch,
    ) -> Result<(), Error> {
        self.follower.sending(actions.len() as u64, None, batch.sealed_at);
        frame.write_all(actions).map_err(broken)?;
        self.tell_position(frame, batch)?;
        self.sent(frame, batch)
    }

    /// All of a batch that stands in the stream was written.
    fn sent(&self, frame: &mut Frame, batch: &Batch) -> Result<(), Error> {
        frame.flush().map_err(broken)?;
        self.follower.sending(0, Some(StreamPosition(batch.end)), batch.sealed_at);
        self.follower.written();
        self.core.passed(self.follower);
        Ok(())
    }

    /// Sends a step that stands outside the stream; `Err` within is the file that is void after it.
    pub(in crate::leader) fn send_step(
        &mut self,
        frame: &mut Frame,
        step: &Step,
    ) -> Result<Result<(), RelPath>, Error> {
        let mut action = Vec::new();
        match step {
            Step::Delete(path) => {
                self.follower.spoiled.lock().remove(path);
                encode_action_header(&mut action, path, ActionKind::Delete);
            }
            Step::Control(control) => {
                if let Control::Rename { to: path, .. } | Control::Empty(path) = control {
                    self.follower.spoiled.lock().remove(path);
                }
                control.encode(&mut action);
            }
            Step::Send(range) => {
                let intact = self.send(frame, range, |_| None)?;
                return Ok(if intact { Ok(()) } else { Err(range.path.clone()) });
            }
        }
        self.follower.sending(action.len() as u64, None, Instant::now());
        frame.write_all(&action).map_err(broken)?;
        Ok(Ok(()))
    }

    /// Writes the range as actions; `at` tells the position after so many of its action bytes. `false`: it is void, and not all of it
    /// was sent.
    pub(in crate::leader) fn send(
        &mut self,
        frame: &mut Frame,
        range: &FileRange,
        at: impl Fn(u64) -> Option<(StreamPosition, Instant)>,
    ) -> Result<bool, Error> {
        self.send_as(frame, range, &range.path, at)
    }

    /// The same. To a follower that knows the extension a replacement goes under this `name`.
    fn send_as(
        &mut self,
        frame: &mut Frame,
        range: &FileRange,
        name: &RelPath,
        at: impl Fn(u64) -> Option<(StreamPosition, Instant)>,
    ) -> Result<bool, Error> {
        let version = Version { generation: range.generation, len: range.end() };
        self.has_holes = false;
        if range.kind != RangeKind::Replace && self.follower.spoiled.lock().contains_key(&range.path) {
            return Ok(false);
        }
        self.before = at(0).map_or(StreamPosition(0), |(position, _)| position);
        let is_added = range.kind == RangeKind::Patch || range.kind == RangeKind::Append && range.offset > 0;
        let Some(mut file) = self.open(&range.path, version)? else {
            let is_new = self.spoil(&range.path, is_added);
            if at(0).is_some() && is_new && self.core.unreadable.is_noted(&range.path) {
                log::warn!(
                    "follower {} at {} is not in sync until {} can be read: it was announced, and could not be sent",
                    self.follower.id,
                    self.follower.address,
                    range.path
                );
            }
            if at(0).is_some() || !self.core.unreadable.is_forbidden(&range.path) {
                self.follower.void(&range.path, self.before, self.core.stream.position());
            }
            self.mend(&range.path, version);
            return Ok(false);
        };
        file.seek(range.offset);
        let looked = self.begin_digest(range, &file);
        let sent = match range.kind {
            RangeKind::Append | RangeKind::Patch => self.send_pieces(frame, range, &mut file, at)?,
            RangeKind::Replace if self.follower.extension => self.send_staged(frame, range, name, &mut file, at)?,
            RangeKind::Replace => self.send_replace(frame, range, &mut file, at)?,
        };
        if !self.in_bulk {
            // There may be no other for long.
            self.buffer = Vec::new();
        }
        if range.kind == RangeKind::Replace && sent.is_ok() {
            self.follower.spoiled.lock().remove(&range.path);
        }
        let digest = self.digest.take();
        let Err(error) = sent else {
            if let (Some(read), Some(looked)) = (digest, looked) {
                self.core.chunks.was_read(range.generation, read, looked, file.file());
            }
            return Ok(true);
        };
        self.spoil(&range.path, is_added);
        self.void(&range.path, version, &error);
        if self.is_cut_off { self.let_go(range.path.clone()) } else { Ok(false) }
    }

    /// As actions of a piece each. `Err` within: those before what could not be read.
    fn send_pieces(
        &mut self,
        frame: &mut Frame,
        range: &FileRange,
        file: &mut Reader,
        at: impl Fn(u64) -> Option<(StreamPosition, Instant)>,
    ) -> Result<io::Result<()>, Error> {
        let mut action = Vec::new();
        while file.offset() < range.end() {
            action.clear();
            if let Err(error) = self.piece(file, range, &mut action)? {
                return Ok(Err(error));
            }
            let (position, since) = at(range.action_bytes_up_to(file.offset())).unzip();
            let bytes = (action.len() + self.buffer.len()) as u64;
            self.follower.sending(bytes, position, since.unwrap_or_else(Instant::now));
            frame.write_all(&action).map_err(broken)?;
            self.write(frame)?;
            self.before = position.unwrap_or_default();
        }
        Ok(Ok(()))
    }

    /// As pieces that are staged; given up where one cannot be read.
    fn send_staged(
        &mut self,
        frame: &mut Frame,
        range: &FileRange,
        name: &RelPath,
        file: &mut Reader,
        at: impl Fn(u64) -> Option<(StreamPosition, Instant)>,
    ) -> Result<io::Result<()>, Error> {
        let (mut action, mut is_staged) = (Vec::new(), false);
        let since = at(0).map_or_else(Instant::now, |(_, since)| since);
        let staged = FileRange { path: name.clone(), kind: RangeKind::Append, ..range.clone() };
        while file.offset() < range.end() {
            action.clear();
            if !is_staged {
                Control::Stage(name.clone()).encode(&mut action);
            }
            if let Err(error) = self.piece(file, &staged, &mut action)? {
                if is_staged {
                    let _ = self.send_step(frame, &Step::Control(Control::Unstage))?;
                }
                return Ok(Err(error));
            }
            is_staged = true;
            self.follower.sending((action.len() + self.buffer.len()) as u64, None, since);
            frame.write_all(&action).map_err(broken)?;
            self.write(frame)?;
        }
        action.clear();
        Control::Place.encode(&mut action);
        let position = at(range.action_bytes()).map(|(position, _)| position);
        self.follower.sending(action.len() as u64, position, since);
        frame.write_all(&action).map_err(broken)?;
        Ok(Ok(()))
    }

    /// As one action, which cannot be given up: if it comes to an end before it, the follower has to be let go.
    fn send_replace(
        &mut self,
        frame: &mut Frame,
        range: &FileRange,
        file: &mut Reader,
        at: impl Fn(u64) -> Option<(StreamPosition, Instant)>,
    ) -> Result<io::Result<()>, Error> {
        for (number, piece) in range.parts(self.piece_bytes()).enumerate() {
            if let Err(error) = self.read(file, piece.1)? {
                self.is_cut_off = number > 0;
                return Ok(Err(error));
            }
            if number == 0 {
                let mut header = Vec::new();
                range.encode_header(&mut header, (0, range.len));
                let bytes = range.action_bytes();
                let (position, since) = at(bytes).unzip();
                self.follower.sending(bytes, position, since.unwrap_or_else(Instant::now));
                frame.write_all(&header).map_err(broken)?;
            }
            self.write(frame)?;
        }
        Ok(Ok(()))
    }

    /// All of a small file that is read in bulk is digested on the way, unless that was done: it would be read again to be compared. Returns how it looks now.
    fn begin_digest(&mut self, range: &FileRange, file: &Reader) -> Option<(Stamps, i64, u64)> {
        let is_small = range.offset == 0 && range.len <= ON_THE_WAY_BYTES_MAX;
        let is_wanted = self.in_bulk && is_small && self.core.chunks.digested(range.generation) < range.len;
        let (began, rewrites) = (now(), self.core.chunks.rewrites());
        let looks = is_wanted.then(|| Stamps::of_file(file.file()).ok()).flatten();
        self.digest = looks.map(|_| Chunked::default());
        looks.map(|looks| (looks, began, rewrites))
    }

    /// How many bytes of a range are read before any of them is sent.
    pub(in crate::leader) fn piece_bytes(&self) -> u64 {
        let most = if self.in_bulk { self.core.admission.portion_bytes() } else { APPEND_BYTES_MAX };
        most.clamp(1, APPEND_BYTES_MAX) as u64
    }

    /// Reads the next piece of a range that is not a replacement, and adds to `action` what goes before it; that is all if it is a hole, for which there is a control.
    fn piece(&mut self, file: &mut Reader, range: &FileRange, action: &mut Vec<u8>) -> Result<io::Result<()>, Error> {
        let (offset, most) = (file.offset(), self.piece_bytes());
        let left = range.end() - offset;
        match if self.follower.extension { file.next(range.end(), HOLE_BYTES_MIN) } else { Span::Data(left) } {
            Span::Data(data) => {
                let len = data.min(most - (offset - range.offset) % most);
                range.encode_header(action, (offset, len));
                self.read(file, len)
            }
            Span::Hole(len) => {
                Control::Hole { path: range.path.clone(), offset, len }.encode(action);
                file.skip(len);
                self.buffer.clear();
                self.has_holes = true;
                Ok(Ok(()))
            }
        }
    }

    /// Reads the next piece of a file, for [`write`](Self::write). `Err` within: it cannot be read, or, as `UnexpectedEof`, is not there.
    pub(in crate::leader) fn read(&mut self, file: &mut Reader, len: u64) -> Result<io::Result<()>, Error> {
        if self.in_bulk && !self.core.admission.pace(len, self.follower) {
            return Err(gone());
        }
        self.pad(len);
        let read = file.read_exact(&mut self.buffer);
        if let (Some(digest), Ok(())) = (&mut self.digest, &read) {
            digest.update(&self.buffer);
        }
        Ok(read)
    }

    /// Zeros in place of a piece.
    pub(in crate::leader) fn pad(&mut self, len: u64) {
        self.buffer.clear();
        self.buffer.resize(usize::try_from(len).expect("a piece"), 0);
    }

    /// Writes what was read.
    pub(in crate::leader) fn write(&mut self, frame: &mut Frame) -> Result<(), Error> {
        frame.write_all(&self.buffer).map_err(broken)?;
        self.follower.sync.bytes_sent.fetch_add(self.buffer.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
