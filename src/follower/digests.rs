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
//! One lock around all of it, a leaf, held for lookups and never while a file is read.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use sha1::{Digest, Sha1};

use crate::digests::{Chunked, Digested, Stamps};
use crate::protocol::extension::{CHUNK, CHUNK_BYTES, ChunkDigest};
use crate::sys::fs::File;
use crate::sys::hash::HashMap;
use crate::sys::sync::Mutex;
use crate::sys::time::Instant;
use crate::types::RelPath;
use crate::uncached::{self, READ_AT_ONCE_BYTES};

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
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<RelPath, Digested>,
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
    /// What was kept on disk.
    pub(super) fn of_before(&self, path: RelPath, known: Digested) {
        self.state.lock().files.insert(path, known);
    }

    /// Before a write of ours: forgets what is known of the file if it is not as our last one left it. Returns how long it is.
    pub(super) fn check(&self, path: &RelPath, file: &File) -> Option<u64> {
        let now = Stamps::of_file(file);
        let mut state = self.state.lock();
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
        let state = &mut *self.state.lock();
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

    /// The file has another name.
    pub(super) fn renamed(&self, from: &RelPath, to: &RelPath) {
        let state = &mut *self.state.lock();
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
        self.state.lock().remove(path);
    }

    /// After a failed write or flush nothing is believed.
    pub(super) fn forget_all(&self) {
        *self.state.lock() = State { changed: true, ..State::default() };
    }

    /// Keeps only these files, which are sorted.
    pub(super) fn keep(&self, sorted: &[(RelPath, Stamps)]) {
        let state = &mut *self.state.lock();
        let had = state.files.len();
        if sorted.iter().filter(|(path, _)| state.files.contains_key(path)).count() == had {
            return;
        }
        state.files.retain(|path, _| sorted.binary_search_by(|(found, _)| found.cmp(path)).is_ok());
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
        let mut state = self.state.lock();
        let known =
            state.files.get_mut(path).filter(|known| known.stamps.are(looks) && known.is_complete(chunks_max))?;
        known.stamps = *looks;
        let (len, digests) = known.first(chunks_max);
        show(len, digests);
        Some(len)
    }

    /// The length and the digests of a file, at most `chunks_max` of them; what is not known is read. `go_on` is asked
    /// now and then, with how many bytes of it were digested since it was last: its error ends it.
    pub(super) fn of<E: From<io::Error>>(
        &self,
        path: &RelPath,
        file: &File,
        chunks_max: usize,
        buffer: &mut ChunkBuffer,
        go_on: &mut dyn FnMut(u64) -> Result<(), E>,
    ) -> Result<(u64, Vec<ChunkDigest>), E> {
        let stamps = Stamps::of_file(file).map_err(io::Error::from)?;
        let known = self.state.lock().remove(path).filter(|known| known.stamps.are(&stamps));
        let mut known = Digested { stamps, ..known.unwrap_or(Digested::nothing(stamps)) };
        let mut read = 0;
        if !known.is_complete(chunks_max) {
            known.cut(stamps.size);
            while known.chunks.len() < chunks_max {
                go_on(0)?;
                let (bytes, at_end) = buffer.read(file, known.bytes)?;
                for chunk in bytes.chunks(CHUNK).take(chunks_max - known.chunks.len()) {
                    known.chunks.push(Sha1::digest(chunk).into());
                    known.bytes += chunk.len() as u64;
                    read += chunk.len() as u64;
                    go_on(chunk.len() as u64)?;
                }
                if at_end {
                    break;
                }
            }
            known.chunks.shrink_to_fit();
        }
        let (len, digests) = known.first(chunks_max);
        let told = (len, digests.to_vec());
        // Otherwise it was changed while it was read.
        if Stamps::of_file(file).is_ok_and(|now| now == stamps) {
            let mut state = self.state.lock();
            state.unsaved += read;
            state.insert(path, known);
        }
        Ok(told)
    }

    // ---- for the digester ----

    /// A file that is due, if one is. Until the next one, what happens to it but appends is noted.
    pub(super) fn next_due(&self, now: Instant) -> Option<Undigested> {
        let state = &mut *self.state.lock();
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
            let to = if rests { stamps.size } else { whole };
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
        let state = &mut *self.state.lock();
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

    /// Bytes that would have to be read again were this process killed; `None`: nothing has changed since they were saved.
    pub(super) fn unsaved(&self) -> Option<u64> {
        let state = self.state.lock();
        state.changed.then_some(state.unsaved)
    }

    /// When we last wrote to a file.
    pub(super) fn last_written(&self) -> Option<Instant> {
        self.state.lock().written
    }

    /// They are being saved: what changes from now on is not.
    pub(super) fn begin_save(&self) {
        let mut state = self.state.lock();
        (state.unsaved, state.changed) = (0, false);
    }

    /// It was in vain.
    pub(super) fn not_saved(&self) {
        self.state.lock().changed = true;
    }

    /// What is known of a file that looks like this.
    pub(super) fn get(&self, path: &RelPath, looks: &Stamps) -> Option<Digested> {
        self.state.lock().files.get(path).filter(|known| known.stamps.are(looks)).cloned()
    }
}

/// Room for some chunks, to be used again.
pub(super) struct ChunkBuffer(Vec<u8>);

impl ChunkBuffer {
    pub(super) fn new() -> Self {
        Self(vec![0; READ_AT_ONCE_BYTES])
    }

    /// Reads as many chunks as fit from `offset` on, or what there is of them; and whether the file ends there.
    pub(super) fn read(&mut self, file: &File, offset: u64) -> io::Result<(&[u8], bool)> {
        let mut filled = 0;
        while filled < self.0.len() {
            match uncached::read_at(file, &mut self.0[filled..], offset + filled as u64) {
                Ok(0) => return Ok((&self.0[..filled], true)),
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok((&self.0, false))
    }
}

#[cfg(test)]
mod tests {
    use super::super::flush::Unflushed;
    use super::super::track::Track;
    use super::*;
    use std::io::Write;
    use std::sync::Arc;

    fn digest(bytes: &[u8]) -> ChunkDigest {
        Sha1::digest(bytes).into()
    }

    /// Tells a file's digests and how many bytes were read for them.
    fn told(digests: &Digests, path: &RelPath, file: &File) -> (u64, Vec<ChunkDigest>, u64) {
        let mut read = 0;
        let (len, told) = digests
            .of::<io::Error>(path, file, 5, &mut ChunkBuffer::new(), &mut |bytes| {
                read += bytes;
                Ok(())
            })
            .unwrap();
        (len, told, read)
    }

    fn opened() -> (tempfile::TempDir, RelPath, File) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = File::options().append(true).read(true).create(true).open(path).unwrap();
        (dir, RelPath::new("a").unwrap(), file)
    }

    #[test]
    fn only_what_we_appended_is_read_again() {
        let (_dir, path, mut file) = opened();
        let digests = Digests::default();
        assert_eq!(told(&digests, &path, &file), (0, vec![], 0));
        file.write_all(&vec![1; CHUNK + 10]).unwrap();
        let first = vec![digest(&vec![1; CHUNK]), digest(&[1; 10])];
        // That was nobody's write: it is read from the beginning.
        assert_eq!(told(&digests, &path, &file), (CHUNK as u64 + 10, first.clone(), CHUNK as u64 + 10));
        assert_eq!(told(&digests, &path, &file), (CHUNK as u64 + 10, first.clone(), 0));
        digests.check(&path, &file);
        file.write_all(&[2; 5]).unwrap();
        digests.changed(&path, &file, CHUNK as u64 + 10, None);
        let mut tail = vec![1; 10];
        tail.extend_from_slice(&[2; 5]);
        let second = vec![first[0], digest(&tail)];
        assert_eq!(told(&digests, &path, &file), (CHUNK as u64 + 15, second, 15));
    }

    #[test]
    fn what_fills_a_file_that_was_empty_is_digested_as_it_comes_and_nothing_else() {
        let (_dir, path, file) = opened();
        let (digests, file) = (Arc::new(Digests::default()), Arc::new(file));
        let mut track = Track::new(digests.clone(), Unflushed::default());
        let mut content = Vec::new();
        let mut append = |bytes: &[u8], in_bulk: bool, track: &mut Track| {
            track.writes(&path, &file, u64::MAX);
            (&*file).write_all(bytes).unwrap();
            content.extend_from_slice(bytes);
            if in_bulk {
                track.appended(&path, bytes);
            }
            content.chunks(CHUNK).map(digest).collect::<Vec<_>>()
        };
        let known = |digests: &Digests| {
            let mut known = None;
            digests
                .known(&path, &Stamps::of_file(&*file).unwrap(), 100, |len, told| known = Some((len, told.to_vec())));
            known.map(|(_, digests)| digests)
        };
        for (at, len) in [10, 20_000, 1, 40_000].into_iter().enumerate() {
            let expected = append(&vec![u8::try_from(at).unwrap(); len], true, &mut track);
            if at != 2 {
                track.settle();
                assert_eq!(known(&digests), Some(expected));
            }
        }
        assert!(digests.next_due(Instant::now() + 2 * REST).is_none(), "it is read again");
        append(&[1; 6000], true, &mut track);
        track.settle();
        assert_eq!(known(&digests), None, "a large one is left to the digester");
        append(b"the stream's", false, &mut track);
        append(b"more", true, &mut track);
        track.settle();
        assert_eq!(known(&digests), None);
        // Of what somebody else has added to it meanwhile nobody knows.
        file.set_len(0).unwrap();
        for foreign in [&b""[..], b"x"] {
            let mut track = Track::new(Arc::new(Digests::default()), Unflushed::default());
            file.set_len(0).unwrap();
            track.writes(&path, &file, u64::MAX);
            (&*file).write_all(&[foreign, b"ours"].concat()).unwrap();
            track.appended(&path, b"ours");
            let digests = track.into_digests();
            assert_eq!(known(&digests).is_some(), foreign.is_empty());
        }
    }

    #[test]
    fn what_another_changed_is_read_from_the_beginning() {
        let (_dir, path, mut file) = opened();
        let digests = Digests::default();
        file.write_all(&vec![1; 2 * CHUNK]).unwrap();
        told(&digests, &path, &file);
        // By another, and then by us: the first write must not vouch for the second.
        file.write_all(b"x").unwrap();
        digests.check(&path, &file);
        file.write_all(b"y").unwrap();
        digests.changed(&path, &file, 2 * CHUNK as u64 + 1, None);
        assert_eq!(told(&digests, &path, &file).2, 2 * CHUNK as u64 + 2);
    }

    #[test]
    fn a_patch_and_a_cut_keep_what_is_before_them_and_a_long_file_is_told_in_part() {
        let (_dir, path, mut file) = opened();
        let digests = Digests::default();
        file.write_all(&vec![1; 7 * CHUNK]).unwrap();
        let all = told(&digests, &path, &file);
        assert_eq!((all.0, all.1.len(), all.2), (5 * CHUNK as u64, 5, 5 * CHUNK as u64));
        digests.check(&path, &file);
        digests.changed(&path, &file, 4 * CHUNK as u64 + 3, None);
        assert_eq!(told(&digests, &path, &file).2, CHUNK as u64);
        digests.check(&path, &file);
        file.set_len(2 * CHUNK as u64 + 9).unwrap();
        digests.changed(&path, &file, 2 * CHUNK as u64 + 9, None);
        let cut = told(&digests, &path, &file);
        assert_eq!((cut.0, cut.1.len(), cut.2), (2 * CHUNK as u64 + 9, 3, 9));
        let other = RelPath::new("b").unwrap();
        digests.renamed(&path, &other);
        assert_eq!(told(&digests, &other, &file).2, 0);
        digests.keep(&[]);
        assert_eq!(told(&digests, &other, &file).2, 2 * CHUNK as u64 + 9);
    }

    /// Does what the digester does with a file that is due at `now`; returns what that was.
    fn digests_due(digests: &Digests, now: Instant, file: &File) -> Option<(u64, u64)> {
        let due = digests.next_due(now)?;
        let (mut buffer, mut at) = (ChunkBuffer::new(), due.from);
        while at < due.to {
            let (read, _) = buffer.read(file, at).unwrap();
            let wanted = read.len().min(usize::try_from(due.to - at).unwrap());
            let chunks: Vec<_> = read[..wanted].chunks(CHUNK).map(digest).collect();
            assert!(digests.add(&due.path, at, wanted as u64, &chunks));
            at += wanted as u64;
        }
        Some((due.from, due.to))
    }

    fn appends(digests: &Digests, path: &RelPath, file: &mut File, bytes: &[u8]) {
        digests.check(path, file);
        file.write_all(bytes).unwrap();
        digests.changed(path, file, u64::MAX, None);
    }

    #[test]
    fn what_rests_is_digested_to_its_end_and_what_grows_by_whole_chunks() {
        let (_dir, path, mut file) = opened();
        let digests = Digests::default();
        appends(&digests, &path, &mut file, &vec![1; 5 * CHUNK + 7]);
        let first = Instant::now();
        assert_eq!(digests_due(&digests, first, &file), None);
        while Instant::now() == first {}
        appends(&digests, &path, &mut file, &[2; 2]);
        let whole = 5 * CHUNK as u64;
        assert_eq!(digests_due(&digests, first + REST, &file), Some((0, whole)));
        assert_eq!(digests_due(&digests, first + REST, &file), None);
        assert_eq!(digests_due(&digests, first + 3 * REST, &file), Some((whole, whole + 9)));
        assert_eq!(digests_due(&digests, first + 9 * REST, &file), None);
        // What was a part of a chunk is digested again with what comes behind it.
        appends(&digests, &path, &mut file, &[3; 2]);
        assert_eq!(digests_due(&digests, Instant::now() + REST, &file), Some((whole, whole + 11)));
        assert_eq!(told(&digests, &path, &file).2, 0);
        let mut tail = vec![1; 7];
        tail.extend_from_slice(&[2, 2, 3, 3]);
        let known = digests.get(&path, &Stamps::of_file(&file).unwrap()).unwrap();
        assert_eq!((known.chunks.len(), known.chunks[5]), (6, digest(&tail)));
    }

    #[test]
    fn what_happens_to_a_file_that_is_being_digested_but_an_append_makes_it_void() {
        type Happens = fn(&Digests, &RelPath, &mut File);
        let happens: [(Happens, bool); 7] = [
            (|_, _, _| {}, true),
            (|digests, path, file| appends(digests, path, file, b"more"), true),
            (|digests, path, file| digests.changed(path, file, 3, None), false),
            (|digests, path, _| digests.forget(path), false),
            (|digests, path, _| digests.renamed(path, &RelPath::new("b").unwrap()), false),
            (|digests, _, _| digests.forget_all(), false),
            (
                |digests, path, file| {
                    // By another, before a write of ours.
                    file.write_all(b"?").unwrap();
                    appends(digests, path, file, b"!");
                },
                false,
            ),
        ];
        for (at, (happens, stays)) in happens.into_iter().enumerate() {
            let (_dir, path, mut file) = opened();
            let digests = Digests::default();
            appends(&digests, &path, &mut file, b"content");
            let due = digests.next_due(Instant::now() + REST).unwrap();
            assert_eq!((due.from, due.to), (0, 7));
            happens(&digests, &path, &mut file);
            assert_eq!(digests.add(&path, 0, 7, &[digest(b"content")]), stays, "{at}");
        }
    }

    #[test]
    fn a_file_that_has_gone_or_has_another_name_is_due_no_more() {
        let (_dir, path, mut file) = opened();
        let digests = Digests::default();
        let later = || Instant::now() + REST;
        appends(&digests, &path, &mut file, b"1");
        digests.forget(&path);
        assert_eq!(digests.next_due(later()), None);
        appends(&digests, &path, &mut file, b"2");
        let other = RelPath::new("b").unwrap();
        digests.renamed(&path, &other);
        assert_eq!(digests.next_due(later()).unwrap().path, other);
        assert_eq!(digests.next_due(later()), None);
        let state = digests.state.lock();
        assert!(state.due.is_empty() && state.waiting.is_empty());
    }
}
