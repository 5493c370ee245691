//! The thread that digests in the background what the stream has written, and keeps on disk what is known: so that who returns to a leader, or leads
//! next, has little left to read.
//!
//! `paceline-digest` lives as long as the follower. First it loads what was kept, while others connect and look at the files. Then it is not to be felt: after each piece it waits nine times as long as that took, so it takes a tenth
//! of a core, and of a disk, at most; and it stands aside while a sync is under way. (No niceness, see `leader/peers/admission.rs`.) A stop
//! ends it between two pieces, and between two files that it saves. What it cannot read it leaves: the next comparison tells.
//!
//! What a sync brings of small files that were not here is digested as it comes, and saved soon after the sync.
//!
//! Saving looks at every file and syncs the file systems. In the background it is done when much would have to be read again, or after a while, not
//! while a sync is under way, and not more often than every minute, nor for more than a fiftieth of the time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::digests::{Digests, Undigested};
use super::dir::{Dir, Here};
use super::shared::Shared;
use crate::digests::file::{self, Who, Writer};
use crate::digests::{ChunkBuffer, Digested, SETTLED, Stamps};
use crate::error::Error;
use crate::own_folder::OwnFolder;
use crate::protocol::extension::ChunkDigest;
use crate::reader::Reader;
use crate::sys::hash::HashMap;
use crate::sys::rustix::fs::OFlags;
use crate::sys::thread;
use crate::sys::time::Instant;
use crate::types::RelPath;

/// How often it looks for something to do.
const TICK: Duration = Duration::from_secs(1);

/// It waits so many times as long as it has worked.
const WAITS: u32 = 9;
const SAVE_WAITS: u32 = 49;

/// What the system takes longer for has another cause than us.
const WAIT_MAX: Duration = Duration::from_secs(5);

const SAVE_FIRST: Duration = Duration::from_secs(5);
const SAVE_EVERY_MIN: Duration = Duration::from_secs(60);

/// It is saved when it would take a while to read this again; anyhow after a while.
const SAVE_BYTES_MIN: u64 = 256 << 20;
const SAVE_EVERY: Duration = Duration::from_secs(600);

/// See the module's documentation.
pub(super) struct Digester {
    pub(super) dir: Arc<Dir>,
    pub(super) digests: Arc<Digests>,
    pub(super) shared: Arc<Shared>,
    pub(super) own: OwnFolder,
    /// Whether what was kept on disk is to be believed.
    pub(super) who: Who,
}

impl Digester {
    /// The thread's life. What was kept on disk is loaded first: [`Digests::begin_load`] is to be called before.
    pub(super) fn run(&self) {
        self.load();
        let mut buffer = ChunkBuffer::default();
        let mut save_at = Instant::now() + SAVE_FIRST;
        let mut save_anyhow_at = Instant::now() + SAVE_EVERY;
        let mut pause = TICK;
        while self.shared.goes_on_after(pause) {
            pause = TICK;
            let stands_aside = self.shared.is_syncing();
            if !stands_aside && let Some(undigested) = self.digests.next_due(Instant::now()) {
                if !self.digest(&undigested, &mut buffer) {
                    return;
                }
                pause = Duration::ZERO;
            }
            let now = Instant::now();
            let saves = now >= save_at && !stands_aside && self.shared.is_ours();
            let lost = self.digests.unsaved().filter(|_| saves);
            if lost.is_some_and(|lost| lost >= SAVE_BYTES_MIN || now >= save_anyhow_at) {
                self.save(&|| self.shared.stopping());
                let took = now.elapsed();
                save_at = Instant::now() + SAVE_EVERY_MIN.max(took * SAVE_WAITS);
                save_anyhow_at = Instant::now() + SAVE_EVERY.max(took * SAVE_WAITS);
            }
        }
    }

    /// Takes up what was kept. Nothing is there yet of which it might be wrong: the files are looked at when they are compared.
    fn load(&self) {
        let mut loading = Loading { digests: &self.digests, files: HashMap::default() };
        let Some(kept) = file::Reader::open(&self.own, self.who) else { return };
        loading.files.reserve(kept.files_about());
        for known in kept {
            match known {
                Ok((path, known)) => drop(loading.files.insert(path, known)),
                Err(error) => {
                    log::warn!("cannot read what was kept of the digests: {error}");
                    return loading.files.clear();
                }
            }
        }
    }

    /// False: the follower ends.
    fn digest(&self, undigested: &Undigested, buffer: &mut ChunkBuffer) -> bool {
        let Undigested { path, stamps, from, to } = undigested;
        let Ok(Some(file)) = self.dir.open_file(path, OFlags::RDONLY) else { return true };
        // It may have grown, but not be another one.
        let is_same = |now: Stamps| (now.dev, now.ino) == (stamps.dev, stamps.ino) && now.size >= *to;
        if !Stamps::of_file(&file).is_ok_and(is_same) {
            return true;
        }
        let mut file = Reader::uncached(file);
        file.seek(*from);
        while file.offset() < *to {
            let (began, at) = (Instant::now(), file.offset());
            // It may have been cut.
            let Ok(chunks) = buffer.next(&mut file, *to) else { return true };
            let digests: Vec<ChunkDigest> = chunks.digested().map(|chunk| chunk.digest).collect();
            if !self.digests.add(path, at, chunks.bytes(), &digests) {
                return true;
            }
            if !self.shared.goes_on_after((began.elapsed() * WAITS).min(WAIT_MAX)) {
                return false;
            }
            if self.shared.is_syncing() {
                return true;
            }
        }
        true
    }

    /// Saves what is known, unless it ends before. Nothing depends on it.
    fn save(&self, ends: &dyn Fn() -> bool) {
        if let Err(error) = save(&self.own, &self.dir, &self.digests, ends) {
            self.digests.not_saved();
            log::debug!("the digests of {} were not saved: {error}", self.dir.path().display());
        }
    }

    /// Saves what has changed since it was last saved, at the end of the follower.
    pub(super) fn save_at_end(&self) {
        if self.digests.unsaved().is_some() && self.shared.is_ours() && !self.shared.hurries() {
            // What was written last has to settle.
            let settled = self.digests.last_written().map(|at| at + SETTLED + SETTLED / 2);
            thread::sleep(settled.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now())));
            self.save(&|| self.shared.hurries());
        }
    }
}

/// However loading ends, nobody waits for it any more.
struct Loading<'a> {
    digests: &'a Digests,
    files: HashMap<RelPath, Digested>,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.digests.end_load(std::mem::take(&mut self.files));
    }
}

fn save(own: &OwnFolder, dir: &Dir, digests: &Digests, ends: &dyn Fn() -> bool) -> Result<(), Error> {
    let who = digests.who();
    let mut writer = Writer::begin(own, who)?;
    // Whoever writes in place for the first time after this makes an end of what is being written here.
    if digests.who() != who {
        return Err(Error::io(
            "save the digests in",
            dir.path(),
            io::Error::other("files are written to in place from now on"),
        ));
    }
    digests.begin_save();
    let mut files = dir.inventory()?.files;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    for Here { path, stamps: looks, .. } in &files {
        if ends() {
            return Err(Error::ShuttingDown);
        }
        if let Some(known) = digests.get(path, looks) {
            writer.push(path, looks, &known)?;
        }
    }
    // Also where the last flush has failed it says so, and nothing is vouched for.
    dir.check_flushed()?;
    dir.flush()?;
    writer.finish()
}
