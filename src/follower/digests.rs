//! The digests of a follower's files, as its own writes leave them: see [`digests`](crate::digests) for what they are worth.
//!
//! An entry holds while the file's stamps are what they were after our own last write; each write of ours looks before it and notes the new ones
//! after it. So of a file that only we changed the chunks below the changes need no reading again. What anybody else changed is read anew. A
//! change by another within the same tick of the file system's clock as a write of ours, which keeps the length, is not seen (kernels since 6.13
//! have no such ticks for files that are looked at).
//!
//! What a sync puts into small files that were empty is digested as it comes ([`Track::appended`](super::track::Track::appended)). What our other writes leave undigested waits here for the [`digester`](super::digester), which takes it when the file has been at rest for [`REST`]; or
//! as much as there is of whole chunks, where it goes on growing.
//!
//! What was kept on disk is loaded while the follower connects and looks at its files; who asks before that is done waits.
//!
//! One lock around all of it, a leaf, held for lookups and never while a file is read.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::dir::Here;
use crate::digests::file::Who;
use crate::digests::{ChunkBuffer, Chunked, Digested, Stamps, digested_bytes_max};
use crate::protocol::extension::{CHUNK_BYTES, ChunkDigest};
use crate::reader::Reader;
use crate::sys::fs::File;
use crate::sys::hash::HashMap;
use crate::sys::sync::{Condvar, Mutex, MutexGuard};
use crate::sys::time::Instant;
use crate::types::RelPath;
use crate::uncached::READ_AT_ONCE_BYTES;

/// A file that was not written to for so long is digested to its end.
pub(super) const REST: Duration = Duration::from_secs(5);

/// One that grows is, when so much is to be read at least.
const GROWN_BYTES_MIN: u64 = READ_AT_ONCE_BYTES as u64;

/// To open a file takes about as long as to read so much of it.
const OPENING_BYTES: u64 = 64 << 10;

/// The digests of all files.
#[derive(Debug, Default)]
pub(super) struct Digests {
    state: Mutex<State>,
    loaded: Condvar,
    /// Files were written to in place of a copy that counts, and may be again: what is kept on disk is not to be believed after a loss of power.
    in_place: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<RelPath, Digested>,
    /// What was kept on disk is not in it yet.
    is_loading: bool,
    /// Files that were written to, when that was last, and when they are due.
    waiting: HashMap<RelPath, (Instant, Instant)>,
    /// The same in the order in which they are due; what `waiting` does not say is not.
    due: VecDeque<(Instant, RelPath)>,
    /// The file that is being digested in the background, as long as nothing happens to it but appends.
    reading: Option<RelPath>,
    /// Bytes of which the digests are not on disk; some for each file of which none are.
    unsaved: u64,
    /// Something has changed since they were saved.
    changed: bool,
    /// When we last wrote to a file.
    written: Option<Instant>,
}

/// What the digester is to do with a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Undigested {
    pub(super) path: RelPath,
    pub(super) stamps: Stamps,
    /// From here ...
    pub(super) from: u64,
    /// ... up to here.
    pub(super) to: u64,
}

impl State {
    fn remove(&mut self, path: &RelPath) -> Option<Digested> {
        self.disturbed(path);
        self.waiting.remove(path);
        let known = self.files.remove(path);
        self.changed |= known.is_some();
        known
    }

    fn insert(&mut self, path: &RelPath, known: Digested) {
        self.disturbed(path);
        self.changed = true;
        self.files.insert(path.clone(), known);
    }

    /// What is being read of a file may be another's by now.
    fn disturbed(&mut self, path: &RelPath) {
        self.reading.take_if(|reading| reading == path);
    }

    fn waits(&mut self, path: &RelPath) {
        let now = Instant::now();
        match self.waiting.get_mut(path) {
            Some((written, _)) => *written = now,
            None => self.put_off(path, now, now + REST),
        }
    }

    fn put_off(&mut self, path: &RelPath, written: Instant, due: Instant) {
        self.waiting.insert(path.clone(), (written, due));
        self.due.push_back((due, path.clone()));
    }
}

impl Digests {
    /// Before what was kept on disk is loaded: who asks for something waits from here on.
    pub(super) fn begin_load(&self) {
        self.state.lock().is_loading = true;
    }

    /// That is what was kept on disk.
    pub(super) fn end_load(&self, files: HashMap<RelPath, Digested>) {
        let mut state = self.state.lock();
        (state.files, state.is_loading) = (files, false);
        self.loaded.notify_all();
    }

    /// Blocks until they are loaded.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        while state.is_loading {
            self.loaded.wait(&mut state);
        }
        state
    }

    /// Before a write of ours: forgets what is known of the file if it is not as our last one left it. Returns how long it is.
    pub(super) fn check(&self, path: &RelPath, file: &File) -> Option<u64> {
        let now = Stamps::of_file(file);
        let mut state = self.state();
        let is_known = state.files.get(path).is_some_and(|known| now.is_ok_and(|now| known.stamps.are(&now)));
        if !is_known {
            state.remove(path);
            if let Ok(now) = now {
                // That from now on only we have changed it.
                state.insert(path, Digested::nothing(now));
            }
        }
        now.ok().map(|now| now.size)
    }

    /// After a write of ours, at or behind `offset`: what is before it is still true. `filled`: what came of the file, if that is all of it.
    pub(super) fn changed(&self, path: &RelPath, file: &File, offset: u64, filled: Option<&mut Chunked>) {
        let now = Stamps::of_file(file);
        let state = &mut *self.state();
        let Some(known) = state.files.get_mut(path) else { return };
        let Ok(now) = now else { return drop(state.remove(path)) };
        state.changed = true;
        state.written = Some(Instant::now());
        let is_append = offset >= known.stamps.size;
        if offset < known.bytes {
            known.cut(offset);
        }
        known.stamps = now;
        let had = known.bytes;
        let is_filled = filled.is_some_and(|filled| known.fill(filled));
        let more = known.bytes.saturating_sub(had);
        if !is_append || is_filled {
            state.disturbed(path);
        }
        if is_filled {
            state.waiting.remove(path);
            state.unsaved += more + if had == 0 { OPENING_BYTES } else { 0 };
        } else {
            state.waits(path);
        }
    }

    /// Nothing of a file was changed but its mode and its times, by us: what is known of it, if it looked so before, stays true.
    pub(super) fn look_otherwise(&self, path: &RelPath, before: &Stamps, now: Stamps) {
        let state = &mut *self.state();
        let known = state.files.get_mut(path).filter(|known| known.stamps.are(before) && before.size == now.size);
        let Some(known) = known else { return };
        if known.stamps.are(&now) {
            return;
        }
        known.stamps = now;
        // What was kept of it was of how it looked before.
        state.unsaved += known.bytes;
        (state.changed, state.written) = (true, Some(Instant::now()));
    }

    /// The file has another name.
    pub(super) fn renamed(&self, from: &RelPath, to: &RelPath) {
        let state = &mut *self.state();
        let waited = state.waiting.contains_key(from);
        let known = state.remove(from);
        state.remove(to);
        if let Some(known) = known {
            state.unsaved += known.bytes;
            state.insert(to, known);
            if waited {
                state.waits(to);
            }
        }
    }

    pub(super) fn forget(&self, path: &RelPath) {
        self.state().remove(path);
    }

    /// After a failed write or flush nothing is believed.
    pub(super) fn forget_all(&self) {
        *self.state() = State { changed: true, ..State::default() };
    }

    /// Keeps only these files, which are sorted.
    pub(super) fn keep(&self, sorted: &[Here]) {
        let state = &mut *self.state();
        let had = state.files.len();
        if sorted.iter().filter(|here| state.files.contains_key(&here.path)).count() == had {
            return;
        }
        state.files.retain(|path, _| sorted.binary_search_by(|here| here.path.cmp(path)).is_ok());
        state.changed |= state.files.len() < had;
    }

    /// Shows the length and the digests of a file that looks like this, if they are known: at most `chunks_max` of them. Returns the length.
    pub(super) fn known(
        &self,
        path: &RelPath,
        looks: &Stamps,
        chunks_max: usize,
        show: impl FnOnce(u64, &[ChunkDigest]),
    ) -> Option<u64> {
        if looks.size == 0 {
            show(0, &[]);
            return Some(0);
        }
        let mut state = self.state();
        let known =
            state.files.get_mut(path).filter(|known| known.stamps.are(looks) && known.is_complete(chunks_max))?;
        known.stamps = *looks;
        let (len, digests) = known.first(chunks_max);
        show(len, digests);
        Some(len)
    }

    /// The length and the digests of a file, at most `chunks_max` of them; what is not known is read, but for holes. `go_on` is asked
    /// now and then, with how many bytes of it were read since it was last: its error ends it.
    pub(super) fn of<E: From<io::Error>>(
        &self,
        path: &RelPath,
        file: &File,
        chunks_max: usize,
        buffer: &mut ChunkBuffer,
        go_on: &mut dyn FnMut(u64) -> Result<(), E>,
    ) -> Result<(u64, Vec<ChunkDigest>), E> {
        let stamps = Stamps::of_file(file).map_err(io::Error::from)?;
        let known = self.state().remove(path).filter(|known| known.stamps.are(&stamps));
        let mut known = Digested { stamps, ..known.unwrap_or(Digested::nothing(stamps)) };
        let mut read = 0;
        if !known.is_complete(chunks_max) {
            known.cut(stamps.size);
            let mut file = Reader::uncached(file);
            file.seek(known.bytes);
            let to = stamps.size.min((chunks_max as u64).saturating_mul(CHUNK_BYTES));
            while known.bytes < to {
                go_on(0)?;
                let chunks = match buffer.next(&mut file, to) {
                    // It was cut meanwhile.
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                    chunks => chunks?,
                };
                for chunk in chunks.digested() {
                    known.chunks.push(chunk.digest);
                    known.bytes += chunk.bytes;
                    read += chunk.read;
                    go_on(chunk.read)?;
                }
            }
            known.chunks.shrink_to_fit();
        }
        let (len, digests) = known.first(chunks_max);
        let told = (len, digests.to_vec());
        // Otherwise it was changed while it was read.
        if Stamps::of_file(file).is_ok_and(|now| now == stamps) {
            let mut state = self.state();
            state.unsaved += read;
            state.insert(path, known);
        }
        Ok(told)
    }

    // ---- for the digester ----

    /// A file that is due, if one is. Until the next one, what happens to it but appends is noted.
    pub(super) fn next_due(&self, now: Instant) -> Option<Undigested> {
        let state = &mut *self.state();
        while state.due.front().is_some_and(|(due, _)| *due <= now) {
            let Some((due, path)) = state.due.pop_front() else { break };
            let waits = state.waiting.get(&path).filter(|(_, valid)| *valid == due);
            let Some(&(written, _)) = waits else { continue };
            let rests = written + REST <= now;
            state.waiting.remove(&path);
            if !rests {
                state.put_off(&path, written, (written + REST).max(now + REST / 5));
            }
            let Some(known) = state.files.get_mut(&path) else { continue };
            if rests {
                // What was kept of it was of how it looked before.
                state.unsaved += known.bytes;
            }
            let stamps = known.stamps;
            let (from, whole) = (known.bytes - known.bytes % CHUNK_BYTES, stamps.size - stamps.size % CHUNK_BYTES);
            let to = digested_bytes_max().min(if rests { stamps.size } else { whole });
            if known.bytes >= to || (!rests && to - from < GROWN_BYTES_MIN) {
                continue;
            }
            known.cut(from);
            state.reading = Some(path.clone());
            return Some(Undigested { path, stamps, from, to });
        }
        None
    }

    /// Adds the digests of the bytes behind those that were known; false: they may be of something else by now.
    pub(super) fn add(&self, path: &RelPath, at: u64, bytes: u64, chunks: &[ChunkDigest]) -> bool {
        let state = &mut *self.state();
        let is_undisturbed = state.reading.as_ref() == Some(path);
        match state.files.get_mut(path).filter(|known| is_undisturbed && known.bytes == at) {
            Some(known) => {
                known.chunks.extend_from_slice(chunks);
                known.bytes += bytes;
                state.unsaved += bytes;
                state.changed = true;
                true
            }
            None => false,
        }
    }

    // ---- for whoever keeps them on disk ----

    /// A file is about to be written to in place. Returns whether that is the first time: then it is to be written down before that what is
    /// kept is not to be believed any more.
    pub(super) fn writes_in_place(&self) -> bool {
        !self.in_place.swap(true, Ordering::SeqCst)
    }

    /// Who has written to the directory, as far as what is kept is concerned.
    pub(super) fn who(&self) -> Who {
        if self.in_place.load(Ordering::SeqCst) { Who::Leader } else { Who::Follower { is_marked: false } }
    }

    /// Bytes that would have to be read again were this process killed; `None`: nothing has changed since they were saved.
    pub(super) fn unsaved(&self) -> Option<u64> {
        let state = self.state();
        state.changed.then_some(state.unsaved)
    }

    /// When we last wrote to a file.
    pub(super) fn last_written(&self) -> Option<Instant> {
        self.state().written
    }

    /// They are being saved: what changes from now on is not.
    pub(super) fn begin_save(&self) {
        let mut state = self.state();
        (state.unsaved, state.changed) = (0, false);
    }

    /// It was in vain.
    pub(super) fn not_saved(&self) {
        self.state().changed = true;
    }

    /// What is known of a file that looks like this.
    pub(super) fn get(&self, path: &RelPath, looks: &Stamps) -> Option<Digested> {
        self.state().files.get(path).filter(|known| known.stamps.are(looks)).cloned()
    }
}

#[cfg(test)]
mod tests;
