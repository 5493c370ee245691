//! Announcing: the critical section of every append, replace, delete, rename and truncation, and what they are encoded as.

use std::sync::Arc;

use super::{After, Ordered, Sleep, Stream};
use crate::error::AppendError;
use crate::index::{FileId, Index, Slot, Unsynced, Version};
use crate::leader::batch::{BATCH_BYTES_MAX, Batch, ControlAction, FileRange, RangeKind, Step, control_bytes};
use crate::protocol::extension::Control;
use crate::protocol::{APPEND_BYTES_MAX, ActionKind, encode_action_header, framing_bytes};
use crate::sys::sync::MutexGuard;
use crate::types::{RelPath, StreamPosition};

/// What may be sealed and not yet pushed before the appender pushes itself.
pub(super) const SEALED_BYTES_MAX: u64 = 4 << 20;

/// Content up to this size goes through memory; beyond it by reference to the file.
pub(in crate::leader) const INLINE_BYTES_MAX: u64 = 256 << 10;

impl Stream {
    /// Announces `bytes` at `offset`, the announced length of `path`. `None`: it is unknown, and begins with these; see
    /// [`create`](Self::create).
    pub(in crate::leader) fn append(
        &self,
        path: &RelPath,
        offset: u64,
        bytes: Content<'_>,
    ) -> Result<Option<StreamPosition>, AppendError> {
        let mut ordered = self.enter()?;
        let slot = ordered.index.slot(path.as_str());
        let version = slot.map_or(Version::ABSENT, |slot| ordered.index.version_at(slot));
        if version.len != offset {
            return Err(AppendError::Offset { path: path.clone(), offset, length: version.len });
        }
        let Some(slot) = slot.filter(|_| version.exists()) else { return Ok(None) };
        ordered.append(path, slot, bytes);
        Ok(Some(self.finish(ordered)))
    }

    /// Announces bytes at the end of a file as it was `announced`. Never held back: see [`admit`](Self::admit), which was to be
    /// called before they were written.
    pub(in crate::leader) fn append_to(
        &self,
        path: &RelPath,
        announced: Version,
        bytes: Content<'_>,
    ) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.ordered.lock();
        if ordered.closed.is_some() {
            return Err(AppendError::ShuttingDown);
        }
        let slot = ordered.index.slot(path.as_str());
        match slot.map(|slot| (slot, ordered.index.version_at(slot))) {
            Some((slot, now)) if now == announced => ordered.append(path, slot, bytes),
            now => {
                let (offset, length) = (announced.len, now.map_or(0, |(_, now)| now.len));
                return Err(AppendError::Offset { path: path.clone(), offset, length });
            }
        }
        Ok(self.finish(ordered))
    }

    /// Announces that `path`, so far unknown, begins with `bytes`. `file` is which one it is on disk, if that is known; `whole`:
    /// some followers may have another one under that name.
    pub(in crate::leader) fn create(
        &self,
        path: &RelPath,
        bytes: Content<'_>,
        file: Option<FileId>,
        whole: bool,
    ) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.enter()?;
        let version = ordered.index.get(path.as_str());
        if version.len > 0 {
            return Err(AppendError::Offset { path: path.clone(), offset: 0, length: version.len });
        }
        if (bytes.len() == 0 || whole) && !version.exists() {
            ordered.put(path, bytes, file);
            return Ok(self.finish(ordered));
        }
        if !version.exists() {
            let change = ordered.change();
            ordered.index.put(path, 0, file, change);
        }
        let slot = ordered.index.slot(path.as_str()).expect("just put");
        ordered.append(path, slot, bytes);
        Ok(self.finish(ordered))
    }

    /// Announces that `path` has new content, that of this file.
    pub(in crate::leader) fn replace(
        &self,
        path: &RelPath,
        content: Content<'_>,
        file: FileId,
    ) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.enter()?;
        ordered.put(path, content, Some(file));
        Ok(self.finish(ordered))
    }

    /// The same for a thread that must not be held back: [`AppendError::WouldBlock`] instead.
    pub(in crate::leader) fn replace_at_once(
        &self,
        path: &RelPath,
        content: Content<'_>,
        file: FileId,
    ) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.enter_at_once()?;
        ordered.put(path, content, Some(file));
        Ok(self.finish(ordered))
    }

    /// Announces that `path` has gone. For an unknown file there is nothing to announce.
    pub(in crate::leader) fn delete(&self, path: &RelPath) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.enter()?;
        if ordered.index.get(path.as_str()).exists() {
            ordered.remove(path);
        }
        Ok(self.finish(ordered))
    }

    /// Announces that a file has gone that some followers may have and nobody else knows. Never held back, but refused.
    pub(in crate::leader) fn delete_kept(&self, path: &RelPath) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.enter_at_once()?;
        if !ordered.index.get(path.as_str()).exists() {
            ordered.encode(path, ActionKind::Delete, &[]);
        }
        Ok(self.finish(ordered))
    }

    /// Notes that a generation, once under `path`, cannot be read as it was announced; see
    /// [`Index::doubt`](crate::index::Index::doubt). What it returns is for [`mend`](Self::mend), after a look at the disk.
    pub(in crate::leader) fn doubt(&self, path: &RelPath, generation: u64) -> Option<(RelPath, Version)> {
        self.ordered.lock().index.doubt(path, generation)
    }

    /// Announces what is left of a file that was `doubted`: so many bytes were `found` on disk after that, or no file. Does
    /// nothing if the host has announced what became of it. It stays in doubt.
    ///
    /// Neither held back nor refused at the end, as what a host announces is: this is our own repair, and what was sent in place of the
    /// content counts for it once this is announced. Who calls is a follower's writer, which must not wait for its own queue.
    pub(in crate::leader) fn mend(&self, path: &RelPath, doubted: Version, found: Option<u64>) {
        let mut ordered = self.ordered.lock();
        let now = ordered.index.get(path.as_str());
        if now.generation != doubted.generation {
            return;
        }
        match found {
            None if now == doubted => ordered.remove(path),
            Some(found) if now == doubted => ordered.put_doubted(path, found.min(now.len)),
            // Appended to since: all of it is there then (I2).
            _ => ordered.put_doubted(path, now.len),
        }
        ordered.closed = ordered.closed.map(|_| ordered.position);
        if ordered.durable_at_end {
            ordered.encode_control(Control::MakeDurable, 0, Vec::new());
        }
        self.finish(ordered);
    }

    /// Announces that `from` was renamed to `to`, over whatever that was. `None`: `from` is unknown, or another file than this
    /// was read in its name; nothing was announced.
    pub(in crate::leader) fn rename(
        &self,
        from: &RelPath,
        to: &RelPath,
        file: Option<FileId>,
    ) -> Result<Option<StreamPosition>, AppendError> {
        let mut ordered = self.enter()?;
        if !ordered.index.get(from.as_str()).exists() || !ordered.index.only_read_from(from, file) {
            return Ok(None);
        }
        if from != to {
            let (was, change) = (ordered.index.get(to.as_str()), ordered.change());
            let version = ordered.index.rename(from, to, change);
            let mut instead = vec![Step::Delete(from.clone())];
            if version.len > 0 {
                instead.extend(ordered.replace_steps(to, version));
            } else if was.len > 0 {
                instead.push(Step::Delete(to.clone()));
            }
            ordered.encode_control(Control::Rename { from: from.clone(), to: to.clone() }, version.len, instead);
        }
        Ok(Some(self.finish(ordered)))
    }

    /// Asks all followers that know the extension to make durable what came before this.
    pub(in crate::leader) fn request_durable(&self) -> Result<StreamPosition, AppendError> {
        self.ask_for_durable(|_| ()).map(|(position, ())| position)
    }

    /// The same, and takes what has to be made durable here for that: see [`Index::take_unsynced`](crate::index::Index::take_unsynced).
    pub(in crate::leader) fn make_durable(&self) -> Result<(StreamPosition, Unsynced), AppendError> {
        self.ask_for_durable(Index::take_unsynced)
    }

    fn ask_for_durable<T>(&self, take: impl FnOnce(&mut Index) -> T) -> Result<(StreamPosition, T), AppendError> {
        // Not held back: it is what makes room.
        let mut ordered = self.ordered.lock();
        if ordered.closed.is_some() {
            return Err(AppendError::ShuttingDown);
        }
        ordered.encode_control(Control::MakeDurable, 0, Vec::new());
        let taken = take(&mut ordered.index);
        Ok((self.finish(ordered), taken))
    }

    /// What of the last turn is to be synced; see [`Index::syncing`](crate::index::Index::syncing).
    pub(in crate::leader) fn syncing(&self, unsynced: &Unsynced) -> Option<Vec<(RelPath, FileId)>> {
        self.ordered.lock().index.syncing(unsynced)
    }

    /// Announces that `path` ends at `len` from now on, which is less than its announced length.
    pub(in crate::leader) fn truncate(&self, path: &RelPath, len: u64) -> Result<StreamPosition, AppendError> {
        let mut ordered = self.enter()?;
        let was = ordered.index.get(path.as_str());
        if was.len < len {
            return Err(AppendError::Offset { path: path.clone(), offset: len, length: was.len });
        }
        if was.len > len {
            let change = ordered.change();
            let version = ordered.index.truncate(path, len, change);
            let instead = match len {
                0 => vec![Step::Delete(path.clone())],
                _ => ordered.replace_steps(path, version),
            };
            ordered.encode_control(Control::Truncate { path: path.clone(), len }, was.len, instead);
        }
        Ok(self.finish(ordered))
    }

    /// Begins the critical section, unless nothing may be announced any more, or not now.
    fn enter(&self) -> Result<MutexGuard<'_, Ordered>, AppendError> {
        self.admit()?;
        self.entered()
    }

    fn enter_at_once(&self) -> Result<MutexGuard<'_, Ordered>, AppendError> {
        if self.pressure.is_on() { Err(AppendError::WouldBlock) } else { self.entered() }
    }

    fn entered(&self) -> Result<MutexGuard<'_, Ordered>, AppendError> {
        let ordered = self.ordered.lock();
        if ordered.closed.is_some() { Err(AppendError::ShuttingDown) } else { Ok(ordered) }
    }

    /// Ends it, and does what it left to do.
    fn finish(&self, mut ordered: MutexGuard<'_, Ordered>) -> StreamPosition {
        let after = ordered.after();
        drop(ordered);
        if after.wake {
            self.wake_leader();
        }
        if after.push {
            self.push();
        }
        StreamPosition(after.position)
    }

    pub(in crate::leader) fn position(&self) -> StreamPosition {
        StreamPosition(self.ordered.lock().position)
    }

    /// Where the file of this generation is now that was under `path`; `None` if there is none any more.
    pub(in crate::leader) fn find(&self, path: &RelPath, generation: u64) -> Option<RelPath> {
        self.ordered.lock().index.find(path, generation)
    }

    /// Whether nothing but this file was read for `path`, and nothing of it is in doubt; see
    /// [`Index::only_read_from`](crate::index::Index::only_read_from).
    pub(in crate::leader) fn only_read_from(&self, path: &RelPath, file: FileId) -> bool {
        self.ordered.lock().index.only_read_from(path, Some(file))
    }

    /// Notes which file is read for a generation; see [`Index::reads`](crate::index::Index::reads).
    pub(in crate::leader) fn reads(&self, path: &RelPath, generation: u64, file: FileId) -> bool {
        self.ordered.lock().index.reads(path, generation, file)
    }

    /// What `path` is now, and which file on disk, if that is sure.
    pub(in crate::leader) fn announced(&self, path: &RelPath) -> (Version, Option<FileId>) {
        self.ordered.lock().index.announced(path.as_str())
    }

    /// The file of this name, if it is surely this one: its name, and what it is now.
    pub(in crate::leader) fn find_file(&self, path: &str, file: FileId) -> Option<(RelPath, Version)> {
        self.ordered.lock().index.find_file(path, file)
    }

    /// What `path` is now.
    pub(in crate::leader) fn version(&self, path: &RelPath) -> Version {
        self.ordered.lock().index.get(path.as_str())
    }

    /// Refuses whatever a host announces from now on, and returns the last position. With `durable`, the last that is announced is
    /// the request to make everything so.
    pub(in crate::leader) fn close(&self, durable: bool) -> StreamPosition {
        let mut ordered = self.ordered.lock();
        if ordered.closed.is_none() {
            ordered.closed = Some(ordered.position);
            if durable {
                ordered.encode_control(Control::MakeDurable, 0, Vec::new());
                ordered.durable_at_end = true;
            }
        }
        StreamPosition(ordered.position)
    }

    /// The position; once a host announces nothing any more, that after the last that changed a file. Who has all up to here
    /// lacks nothing.
    pub(in crate::leader) fn end(&self) -> StreamPosition {
        let ordered = self.ordered.lock();
        StreamPosition(ordered.closed.unwrap_or(ordered.position))
    }

    /// All files and their lengths, read in portions.
    pub(in crate::leader) fn files(&self) -> Vec<(RelPath, Version)> {
        self.all().files
    }
}

/// Bytes announced.
#[derive(Clone, Copy)]
pub(in crate::leader) enum Content<'a> {
    Bytes(&'a [u8]),
    /// This many bytes, to be read from the file when a writer gets there.
    OnDisk(u64),
}

impl Content<'_> {
    fn len(self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::OnDisk(len) => len,
        }
    }
}

impl Ordered {
    /// The number of the change that is announced next.
    fn change(&self) -> u64 {
        self.position + 1
    }

    /// Makes `path` a new file with this content.
    fn put(&mut self, path: &RelPath, content: Content<'_>, file: Option<FileId>) {
        let was = self.index.get(path.as_str());
        let version = self.index.put(path, content.len(), file, self.position + 1);
        if version.len == 0 {
            // To a 1.0.0 follower an empty file and none are the same: it may hold either.
            let instead = if was.len > 0 { vec![Step::Delete(path.clone())] } else { Vec::new() };
            self.encode_control(Control::Empty(path.clone()), was.len, instead);
        } else {
            self.encode_replace(path, version, content);
        }
    }

    /// The same with what is on disk, whatever file that is.
    fn put_doubted(&mut self, path: &RelPath, len: u64) {
        self.put(path, Content::OnDisk(len), None);
    }

    /// Adds bytes to a file that exists.
    fn append(&mut self, path: &RelPath, slot: Slot, bytes: Content<'_>) {
        self.index.grow(slot, bytes.len(), self.change());
        match bytes {
            Content::Bytes(bytes) => {
                for piece in bytes.chunks(APPEND_BYTES_MAX) {
                    self.encode(path, ActionKind::Append(piece.len() as u64), piece);
                }
            }
            Content::OnDisk(len) => {
                let Version { generation, len: end } = self.index.version_at(slot);
                let (path, offset) = (path.clone(), end - len);
                self.encode_range(FileRange { path, generation, kind: RangeKind::Append, offset, len });
            }
        }
    }

    fn remove(&mut self, path: &RelPath) {
        self.index.remove(path.as_str(), self.change());
        self.encode(path, ActionKind::Delete, &[]);
    }

    fn encode(&mut self, path: &RelPath, kind: ActionKind, payload: &[u8]) {
        let length = framing_bytes(path) + payload.len() as u64;
        if self.queues == 0 {
            self.position += length;
            return;
        }
        let room = BATCH_BYTES_MAX - self.open.len();
        if length > room as u64 {
            // Rather than let the buffer grow: moving it costs as much as all the appends in it.
            self.seal();
        }
        self.position += length;
        if length > BATCH_BYTES_MAX as u64 {
            let mut raw = Vec::with_capacity(payload.len() + 4096);
            encode_action_header(&mut raw, path, kind);
            raw.extend_from_slice(payload);
            self.push_sealed(raw);
            return;
        }
        if self.open.capacity() == 0 {
            self.open = self.spares.pop().unwrap_or_else(|| Vec::with_capacity(BATCH_BYTES_MAX));
        }
        encode_action_header(&mut self.open, path, kind);
        self.open.extend_from_slice(payload);
    }

    /// A range is a batch of its own.
    fn encode_range(&mut self, range: FileRange) {
        if range.len == 0 {
            return;
        }
        if self.queues > 0 {
            self.seal();
        }
        self.position += range.action_bytes();
        if self.queues > 0 {
            self.sealed.push(Arc::new(Batch::file(self.position, range)));
        }
    }

    /// What 1.0.0 has no words for is a batch of its own.
    /// `had` is the length of its file before.
    fn encode_control(&mut self, control: Control, had: u64, instead: Vec<Step>) {
        if self.queues > 0 {
            self.seal();
        }
        self.position += control_bytes(&control);
        if self.queues > 0 {
            self.sealed.push(Arc::new(Batch::control(self.position, ControlAction { control, had, instead })));
        }
    }

    /// A replace by reference, as 1.0.0 followers need it. A LavinMQ follower replaces `x` by way of `x.tmp`, and so destroys a
    /// replicated file of that name: that one goes first, and comes back after.
    fn replace_steps(&self, path: &RelPath, version: Version) -> Vec<Step> {
        let temporary = temporary_of(path)
            .map(|temporary| (self.index.get(temporary.as_str()), temporary))
            .filter(|(version, _)| version.exists());
        let mut steps = vec![Step::Send(whole(path, version))];
        if let Some((version, temporary)) = temporary {
            steps.insert(0, Step::Delete(temporary.clone()));
            if version.len > 0 {
                // As an append to the deleted file: a replace would go by way of a temporary file again.
                steps.push(Step::Send(FileRange { kind: RangeKind::Append, ..whole(&temporary, version) }));
            }
        }
        steps
    }

    /// The same with the content at hand.
    fn encode_replace(&mut self, path: &RelPath, version: Version, content: Content<'_>) {
        for step in self.replace_steps(path, version) {
            match (step, content) {
                (Step::Delete(temporary), _) => self.encode(&temporary, ActionKind::Delete, &[]),
                (Step::Send(range), Content::Bytes(bytes)) if range.kind == RangeKind::Replace => {
                    self.encode(path, ActionKind::Replace(version.len), bytes);
                }
                (Step::Send(range), _) => self.encode_range(range),
                (Step::Control(_), _) => {}
            }
        }
    }

    /// What is in the open batch, which is empty after.
    pub(super) fn take_open(&mut self) -> Vec<u8> {
        if self.open.is_empty() {
            return Vec::new();
        }
        std::mem::take(&mut self.open)
    }

    pub(super) fn seal(&mut self) {
        let raw = self.take_open();
        if !raw.is_empty() {
            self.push_sealed(raw);
        }
    }

    fn push_sealed(&mut self, raw: Vec<u8>) {
        let batch = Batch::actions(self.position, raw);
        self.sealed_bytes += batch.cost();
        self.sealed.push(Arc::new(batch));
    }

    /// To be called last in the critical section.
    pub(super) fn after(&mut self) -> After {
        let wake = match self.sleep {
            Sleep::Awake => false,
            Sleep::UntilAppend => !self.open.is_empty() || !self.sealed.is_empty(),
            Sleep::UntilSealed => !self.sealed.is_empty(),
        };
        if wake {
            self.sleep = Sleep::Awake;
        }
        After { position: self.position, wake, push: self.sealed_bytes > SEALED_BYTES_MAX }
    }
}

/// All of a file, as one replace.
pub(in crate::leader) fn whole(path: &RelPath, version: Version) -> FileRange {
    FileRange {
        path: path.clone(),
        generation: version.generation,
        kind: RangeKind::Replace,
        offset: 0,
        len: version.len,
    }
}

/// What a LavinMQ follower writes a replacement of `path` to, if that can be a replicated file's name.
pub(in crate::leader) fn temporary_of(path: &RelPath) -> Option<RelPath> {
    RelPath::new(&format!("{path}.tmp")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BackPressure, LeaderConfig};
    use crate::types::Secret;
    use std::time::{Duration, Instant};

    const FILE: FileId = (1, 2);

    /// A stream with one file of 8 bytes.
    fn with_file() -> (Stream, RelPath) {
        with_file_under(BackPressure::Off)
    }

    fn with_file_under(back_pressure: BackPressure) -> (Stream, RelPath) {
        let config = LeaderConfig { back_pressure, ..LeaderConfig::new("unused", Secret::new("secret").unwrap()) };
        let stream = Stream::new(&config);
        let path = RelPath::new("f").unwrap();
        stream.replace(&path, Content::OnDisk(8), FILE).unwrap();
        (stream, path)
    }

    fn len(stream: &Stream, path: &RelPath) -> Option<u64> {
        let version = stream.version(path);
        version.exists().then_some(version.len)
    }

    fn doubt(stream: &Stream, path: &RelPath) -> Version {
        stream.doubt(path, stream.version(path).generation).unwrap().1
    }

    #[test]
    fn a_file_in_doubt_is_announced_as_it_was_found() {
        for (found, left) in
            [(None, None), (Some(0), Some(0)), (Some(3), Some(3)), (Some(8), Some(8)), (Some(9), Some(8))]
        {
            let (stream, path) = with_file();
            let doubted = doubt(&stream, &path);
            stream.mend(&path, doubted, found);
            assert_eq!(len(&stream, &path), left, "found {found:?}");
            assert_ne!(stream.version(&path).generation, doubted.generation, "what was sent of it is void");
            stream.mend(&path, doubted, None);
            assert_eq!(len(&stream, &path), left, "whoever else finds out does not do it again");
        }
    }

    #[test]
    fn what_is_left_of_a_file_is_announced_under_pressure_and_after_the_end() {
        const LONG: Duration = Duration::from_secs(3600);
        for pressure in [BackPressure::Wait(LONG), BackPressure::WouldBlock(LONG)] {
            let (stream, path) = with_file_under(pressure);
            let doubted = doubt(&stream, &path);
            stream.pressure.begin();
            std::thread::scope(|scope| {
                let mending = scope.spawn(|| stream.mend(&path, doubted, Some(3)));
                let deadline = Instant::now() + Duration::from_secs(60);
                while !mending.is_finished() && Instant::now() < deadline {
                    std::thread::yield_now();
                }
                let waits = !mending.is_finished();
                stream.pressure.end();
                assert!(!waits, "a follower's writer waits for its own queue");
            });
            assert_eq!(len(&stream, &path), Some(3), "{pressure:?}");
        }
        for durable in [false, true] {
            let (stream, path) = with_file();
            let doubted = doubt(&stream, &path);
            let end = stream.close(durable);
            stream.mend(&path, doubted, None);
            let mended = stream.position().since(end);
            assert_eq!(len(&stream, &path), None);
            let asks = control_bytes(&Control::MakeDurable);
            assert_eq!(mended, framing_bytes(&path) + if durable { asks } else { 0 });
            assert!(stream.replace(&path, Content::OnDisk(5), FILE).is_err());
        }
    }

    #[test]
    fn who_must_not_be_held_back_is_refused_for_now() {
        let (stream, path) = with_file_under(BackPressure::Wait(Duration::from_secs(3600)));
        stream.pressure.begin();
        let refused = stream.replace_at_once(&path, Content::OnDisk(9), FILE);
        assert!(matches!(refused, Err(AppendError::WouldBlock)) && len(&stream, &path) != Some(9));
        assert!(matches!(stream.delete_kept(&path), Err(AppendError::WouldBlock)));
        stream.pressure.end();
        assert!(stream.replace_at_once(&path, Content::OnDisk(9), FILE).is_ok());
        assert_eq!(len(&stream, &path), Some(9));
    }

    #[test]
    fn what_followers_kept_and_is_gone_is_not_taken_for_deleted_there_while_nothing_may_be_announced() {
        let (stream, path) = with_file_under(BackPressure::WouldBlock(Duration::from_secs(3600)));
        stream.delete(&path).unwrap();
        let before = stream.position();
        stream.pressure.begin();
        assert!(stream.delete_kept(&path).is_err() && stream.position() == before);
        stream.pressure.end();
        assert!(stream.delete_kept(&path).is_ok() && stream.position() > before);
    }

    #[test]
    fn what_is_announced_after_the_doubt_holds() {
        let (stream, path) = with_file();
        let other = RelPath::new("g").unwrap();
        for found in [None, Some(3)] {
            let doubted = doubt(&stream, &path);
            let before = stream.version(&path).len;
            stream.append(&path, before, Content::OnDisk(1)).unwrap().unwrap();
            stream.mend(&path, doubted, found);
            assert_eq!(len(&stream, &path), Some(before + 1), "appended to meanwhile");
        }
        let doubted = doubt(&stream, &path);
        stream.replace(&path, Content::OnDisk(5), FILE).unwrap();
        stream.mend(&path, doubted, None);
        assert_eq!(len(&stream, &path), Some(5), "replaced meanwhile");
        let doubted = doubt(&stream, &path);
        stream.truncate(&path, 4).unwrap();
        stream.mend(&path, doubted, None);
        assert_eq!(len(&stream, &path), Some(4), "truncated meanwhile");
        stream.replace(&path, Content::OnDisk(5), FILE).unwrap();
        let generation = stream.version(&path).generation;
        assert!(stream.rename(&path, &other, Some(FILE)).unwrap().is_some());
        let (found_as, doubted) = stream.doubt(&path, generation).unwrap();
        assert_eq!(found_as, other, "renamed before");
        stream.mend(&found_as, doubted, None);
        assert_eq!((len(&stream, &path), len(&stream, &other)), (None, None));
        assert_eq!(stream.doubt(&path, generation), None, "gone for good");
    }

    #[test]
    fn a_doubt_lasts_until_the_file_is_announced_anew() {
        let (stream, path) = with_file();
        let other = RelPath::new("g").unwrap();
        assert!(stream.only_read_from(&path, FILE) && !stream.only_read_from(&path, (1, 3)));
        let doubted = doubt(&stream, &path);
        assert!(!stream.only_read_from(&path, FILE));
        assert_eq!(stream.rename(&path, &other, Some(FILE)).unwrap(), None, "what followers have is not moved");
        stream.mend(&path, doubted, Some(8));
        assert!(!stream.only_read_from(&path, FILE), "found, but perhaps for a moment only");
        stream.truncate(&path, 7).unwrap();
        stream.append(&path, 7, Content::OnDisk(1)).unwrap().unwrap();
        assert!(!stream.only_read_from(&path, FILE));
        stream.replace(&path, Content::OnDisk(8), FILE).unwrap();
        assert!(stream.only_read_from(&path, FILE));
        doubt(&stream, &path);
        stream.delete(&path).unwrap();
        assert_eq!(stream.append(&path, 0, Content::OnDisk(1)).unwrap(), None);
        stream.create(&path, Content::OnDisk(1), Some(FILE), false).unwrap();
        assert!(stream.only_read_from(&path, FILE));
    }
}
