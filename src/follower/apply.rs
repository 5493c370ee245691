//! The stream: actions are decoded and applied, in order, as the blocks arrive.
//!
//! Runs on the reader thread; no locks. Consecutive appends to one file become one write, at the latest at the end of the
//! block that brought them; what is counted as applied is on its way to no buffer of ours any more. The order between
//! files is kept, so that a follower that is killed has a prefix of the stream. A replacement is written to the temporary
//! file and renamed, so its last bytes count only when it is in place.
//!
//! Files that are appended to are kept open, for one connection only: an open file is forgotten when its name is deleted
//! or replaced, and a new connection begins with none. A handle that outlives its name takes appends to nowhere
//! (lavinmq#2160).
//!
//! With the extension, `session` drives the same [`Actions`], and `reshape`, `items` and `attributes` add what 1.0.0 has no words for.
//!
//! A failure ends the connection with nothing acknowledged after it: who applies the stream returns and is dropped.

use std::io::{BufRead, Seek, SeekFrom, Write};
use std::sync::Arc;

use super::ack::Outbox;
use super::connection::lost;
use super::dir::Dir;
use super::flush::Unflushed;
use super::items::FoundLinks;
use super::kept::Keeper;
use super::reshape::{Patch, unfit};
use super::shared::Shared;
use super::stage::Staged;
use super::track::Track;
use crate::config::Durability;
use crate::error::Error;
use crate::protocol::{ActionDecoder, ActionKind, Event, ProtocolError, framing_bytes};
use crate::sys::fs::File;
use crate::sys::hash::HashMap;
use crate::types::RelPath;
use crate::uncached;

/// Files kept open for appending.
const OPEN_FILES_MAX: usize = 256;

/// Appends are gathered up to so many bytes before they are written.
const GATHERED_BYTES_MAX: usize = 64 << 10;

/// A piece of at least so many bytes is written as it is: copying it would cost more than the write it saves.
const WRITTEN_DIRECTLY_BYTES_MIN: usize = 16 << 10;

/// Applies the stream until it ends, which is always an error: a leader never ends it, only the connection.
///
/// What `durability` makes of each block goes to the outbox; with [`Durability::Durable`], `actions` keep track of changes.
pub(super) fn apply_stream(
    reader: &mut impl BufRead,
    actions: &mut Actions<'_>,
    durability: Durability,
    (outbox, shared): (&Outbox, &Shared),
) -> Result<std::convert::Infallible, Error> {
    let mut decoder = ActionDecoder::new();
    loop {
        let block = reader.fill_buf().map_err(|error| lost("in the stream", error.into()))?;
        if block.is_empty() {
            let at = if decoder.is_between_actions() { "in the stream" } else { "in the middle of an action" };
            return Err(lost(at, ProtocolError::Io(std::io::ErrorKind::UnexpectedEof.into())));
        }
        let length = block.len();
        if durability == Durability::Received {
            outbox.done(action_bytes(&decoder, block)?);
        }
        let bytes = apply_block(&mut decoder, actions, block)?;
        reader.consume(length);
        if bytes == 0 {
            continue;
        }
        // In this order: what is acknowledged was counted as applied.
        shared.update(|status| status.applied_bytes += bytes);
        match durability {
            Durability::Received => {}
            Durability::Written => outbox.done(bytes),
            Durability::Durable => outbox.done_when_durable(bytes, actions.unflushed()),
        }
    }
}

/// How many bytes of actions are in a block that nothing was done with yet.
fn action_bytes(decoder: &ActionDecoder, mut block: &[u8]) -> Result<u64, Error> {
    let (mut decoder, mut sum) = (decoder.clone(), 0);
    while let Some(event) = decoder.next(&mut block)? {
        sum += bytes_of(&event);
    }
    Ok(sum)
}

fn bytes_of(event: &Event<'_>) -> u64 {
    match event {
        Event::Action { path, .. } => framing_bytes(path),
        Event::Payload { bytes, .. } => bytes.len() as u64,
        Event::Heartbeat => 0,
    }
}

/// Applies what a block holds; returns how many bytes of actions (framing included) are done with it.
fn apply_block(decoder: &mut ActionDecoder, actions: &mut Actions<'_>, mut block: &[u8]) -> Result<u64, Error> {
    let mut bytes_done = 0;
    while let Some(event) = decoder.next(&mut block)? {
        bytes_done += bytes_of(&event);
        match event {
            Event::Action { path, kind } => actions.begin(path, kind)?,
            Event::Payload { bytes, remaining } => actions.payload(bytes, remaining)?,
            Event::Heartbeat => {}
        }
    }
    actions.settle()?;
    Ok(bytes_done)
}

/// Applies actions.
pub(super) struct Actions<'a> {
    pub(super) dir: &'a Dir,
    /// With the extension, and where changes are made durable.
    pub(super) track: Option<Track>,
    /// Whether what is durable is not to be lost to what is not, see [`flush`](super::flush).
    pub(super) guard: bool,
    /// Whether what comes is content of a sync, which the page cache is to be spared.
    pub(super) in_bulk: bool,
    /// Keeps what is taken away, while that is done by a sync that is not to destroy it.
    pub(super) keeper: Option<Keeper<'a>>,
    /// What the next payload goes to instead of a file's end.
    pub(super) patching: Option<Patch>,
    open: HashMap<RelPath, OpenFile>,
    /// Counts uses of open files, to know which was not used for longest.
    uses: u64,
    /// The file the last append went to.
    appending: Option<RelPath>,
    /// Bytes for the end of that file that are not written yet.
    gathered: Vec<u8>,
    replacing: Option<Replacement>,
    /// Files deleted that were there.
    pub(super) deleted: u64,
    /// Whether folders that are left empty stay: the leader says of each when it goes.
    pub(super) leaves_folders: bool,
    /// Links that go when they are in the way: none with the extension, which has words for them.
    pub(super) links: FoundLinks,
    /// So often attributes could not be set.
    pub(super) attributes_refused: u64,
}

/// A replacement under way.
struct Replacement {
    path: RelPath,
    staged: Staged,
    /// It comes as appends, and is whole when that is said, not with the last byte of an action.
    in_pieces: bool,
}

struct OpenFile {
    file: Arc<File>,
    last_use: u64,
}

impl<'a> Actions<'a> {
    pub(super) fn new(dir: &'a Dir) -> Self {
        Self {
            dir,
            track: None,
            guard: false,
            in_bulk: false,
            keeper: None,
            patching: None,
            open: HashMap::default(),
            uses: 0,
            appending: None,
            gathered: Vec::with_capacity(GATHERED_BYTES_MAX),
            replacing: None,
            deleted: 0,
            leaves_folders: false,
            links: FoundLinks::default(),
            attributes_refused: 0,
        }
    }

    /// An action begins.
    pub(super) fn begin(&mut self, path: RelPath, kind: ActionKind) -> Result<(), Error> {
        if let ActionKind::Append(_) = kind
            && self.appending.as_ref() == Some(&path)
        {
            return Ok(());
        }
        if let Some(replacing) = self.replacing.as_ref().filter(|replacing| replacing.in_pieces) {
            if replacing.path == path && matches!(kind, ActionKind::Append(_)) {
                return Ok(());
            }
            let said = format!("action on {path} within the replacement of {}", replacing.path);
            return Err(ProtocolError::OutOfPlace(said).into());
        }
        if path.is_reserved() {
            // Such a delete may be a request of a later protocol, or a probe: acknowledged, and nothing else.
            if kind == ActionKind::Delete && path.as_str().starts_with('$') {
                return Ok(());
            }
            return Err(ProtocolError::Reserved(path.to_string()).into());
        }
        self.write_gathered()?;
        if self.links.in_the_way_of(&path).is_some() {
            if kind == ActionKind::Delete {
                // It is not here.
                return Ok(());
            }
            if let Some(link) = self.links.clear(self.dir, self.keeper.as_mut(), &path)? {
                self.gone(&link);
            }
        }
        match kind {
            ActionKind::Append(_) => self.appending = Some(path),
            ActionKind::Replace(_) => self.stage(path, false)?,
            ActionKind::Delete => {
                self.forget(&path);
                let kept = self.keeper.as_mut().is_some_and(|keeper| keeper.take(&path));
                if kept || self.dir.remove(&path)? {
                    self.deleted += 1;
                    if !self.leaves_folders {
                        self.dir.remove_emptied(&path);
                    }
                }
                self.gone(&path);
            }
        }
        Ok(())
    }

    /// The next bytes of the action that was begun last.
    pub(super) fn payload(&mut self, bytes: &[u8], remaining: u64) -> Result<(), Error> {
        if self.patching.is_some() {
            return self.patch(bytes, remaining);
        }
        if let Some(Replacement { path, staged, in_pieces }) = &mut self.replacing {
            let written = staged.file.write_all(bytes);
            written.map_err(|error| self.dir.failed("write the replacement of", path.as_str(), error))?;
            return if remaining == 0 && !*in_pieces { self.place() } else { Ok(()) };
        }
        if self.gathered.len() + bytes.len() > GATHERED_BYTES_MAX || bytes.len() >= WRITTEN_DIRECTLY_BYTES_MIN {
            self.write_gathered()?;
        }
        if bytes.len() >= WRITTEN_DIRECTLY_BYTES_MIN {
            return self.append(bytes);
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    fn stage(&mut self, path: RelPath, in_pieces: bool) -> Result<(), Error> {
        self.forget(&path);
        let staged = self.dir.stage(&path)?;
        self.replacing = Some(Replacement { path, staged, in_pieces });
        Ok(())
    }

    /// A replacement begins that comes as appends.
    pub(super) fn begin_pieces(&mut self, path: RelPath) -> Result<(), Error> {
        if path.is_reserved() {
            return Err(ProtocolError::Reserved(path.to_string()).into());
        }
        self.settle()?;
        self.stage(path, true)
    }

    /// So many zeros come next of it.
    pub(super) fn stage_hole(&mut self, path: &RelPath, offset: u64, len: u64) -> Result<(), Error> {
        let Some(Replacement { path: replacing, staged, .. }) = &mut self.replacing else { return Ok(()) };
        let failed = |error| self.dir.failed("write the replacement of", path.as_str(), error);
        let had = staged.file.metadata().map_err(failed)?.len();
        if *path != *replacing || offset != had {
            return Err(unfit(format!("hole in {path} at {offset} within the replacement of {replacing}, at {had}")));
        }
        staged.file.set_len(had + len).and_then(|()| staged.file.seek(SeekFrom::End(0))).map_err(failed)?;
        Ok(())
    }

    /// Whether one is under way.
    pub(super) fn is_in_pieces(&self) -> bool {
        self.replacing.as_ref().is_some_and(|replacing| replacing.in_pieces)
    }

    /// The replacement is whole.
    pub(super) fn place(&mut self) -> Result<(), Error> {
        let Some(Replacement { path, staged, .. }) = self.replacing.take() else { return Ok(()) };
        if self.guard && self.dir.holds(&path)? {
            self.dir.flush_file(path.as_str(), &staged.file)?;
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.link(&path);
        }
        let file = self.dir.place(staged, &path)?;
        self.gone(&path);
        self.writes(&path, &Arc::new(file), 0);
        Ok(())
    }

    /// It never will be.
    pub(super) fn unstage(&mut self) -> Result<(), Error> {
        self.replacing.take().map_or(Ok(()), |replacing| self.dir.unstage(&replacing.staged))
    }

    /// Leaves nothing of a block unwritten.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        self.write_gathered()?;
        if let Some(track) = &mut self.track {
            track.settle();
        }
        Ok(())
    }

    /// What was changed and is not durable, if that is kept track of.
    pub(super) fn unflushed(&mut self) -> Unflushed {
        self.track.as_mut().map(Track::take).unwrap_or_default()
    }

    fn write_gathered(&mut self) -> Result<(), Error> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let mut gathered = std::mem::take(&mut self.gathered);
        self.append(&gathered)?;
        gathered.clear();
        self.gathered = gathered;
        Ok(())
    }

    /// Writes to the end of the file that is being appended to.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let path = self.appending.clone().expect("payload comes after its action");
        self.uses += 1;
        let file = match self.open.get_mut(&path) {
            Some(open) => {
                open.last_use = self.uses;
                open.file.clone()
            }
            None => self.open(&path)?,
        };
        self.writes(&path, &file, u64::MAX);
        let written = if self.in_bulk { uncached::append(&file, bytes) } else { (&*file).write_all(bytes) };
        written.map_err(|error| self.dir.failed("append to", path.as_str(), error))?;
        if self.in_bulk
            && let Some(track) = &mut self.track
        {
            track.appended(&path, bytes);
        }
        Ok(())
    }

    /// Opens a file to append to, and keeps it open.
    fn open(&mut self, path: &RelPath) -> Result<Arc<File>, Error> {
        let file = Arc::new(self.dir.open_append(path)?);
        if let Some(track) = &mut self.track {
            // It may have been made.
            track.folders_of(path);
        }
        if self.open.len() == OPEN_FILES_MAX {
            // A look at all of them costs far less than the open that made it necessary.
            let oldest = self.open.iter().min_by_key(|(_, open)| open.last_use).map(|(path, _)| path.clone());
            oldest.and_then(|oldest| self.open.remove(&oldest));
        }
        self.open.insert(path.clone(), OpenFile { file: file.clone(), last_use: self.uses });
        Ok(file)
    }

    /// Says, where it is kept track of, that a file is about to be written to at or behind `offset`.
    pub(super) fn writes(&mut self, path: &RelPath, file: &Arc<File>, offset: u64) {
        if let Some(track) = &mut self.track {
            track.writes(path, file, offset);
        }
    }

    /// Says, where it is kept track of, that a name means no file any more, or another one.
    pub(super) fn gone(&mut self, path: &RelPath) {
        if let Some(track) = &mut self.track {
            track.gone(path);
        }
    }

    /// A file that is open to append to.
    pub(super) fn opened(&self, path: &RelPath) -> Option<Arc<File>> {
        self.open.get(path).map(|open| open.file.clone())
    }

    /// Closes what is open under a name that is about to go or to mean another file.
    pub(super) fn forget(&mut self, path: &RelPath) {
        self.open.remove(path);
        self.appending = None;
    }
}

#[cfg(test)]
mod tests;
