//! What whoever watches the directory asks a leader, beyond what any host may: what it found at its start, and what followers were sent.

use std::sync::atomic::Ordering;

use crate::digests::Stamps;
use crate::index::Version;
use crate::index::blocks::Blocks;
use crate::leader::Leader;
use crate::leader::files::found::Found;
use crate::protocol::extension::ChunkDigest;
use crate::types::RelPath;

impl Leader {
    /// Notes what is read of each file from now on, for who watches the directory. Never blocks.
    pub(crate) fn note_reads(&self) {
        let core = &self.core;
        core.chunks.watch();
        core.blocks.watch(|| {
            let is_read = core.was_joined.load(Ordering::SeqCst) || core.chunks.later_files() > 0;
            is_read.then(|| core.stream.position().0)
        });
    }

    /// All that a file of this generation holds that looks like this was announced.
    pub(crate) fn proven(&self, generation: u64, looks: Stamps) {
        self.core.chunks.proven(generation, looks);
    }

    /// A generation is no more.
    pub(crate) fn forget(&self, generation: u64) {
        self.core.blocks.forget(generation);
        self.core.chunks.forget(generation);
    }

    /// What followers were sent.
    pub(crate) fn blocks(&self) -> &Blocks {
        &self.core.blocks
    }

    /// The digest of one chunk of a generation, of so many bytes, if it is known.
    pub(crate) fn chunk(&self, generation: u64, at: u64, bytes: u64) -> Option<ChunkDigest> {
        self.core.chunks.chunk(generation, at, bytes)
    }

    /// Which incarnation of the name it is, and how long; `None` if it was not announced.
    pub(crate) fn version(&self, path: &RelPath) -> Option<Version> {
        Some(self.core.stream.version(path)).filter(|version| version.exists())
    }

    /// Where the file of a generation is that was under `path`.
    pub(crate) fn find(&self, path: &RelPath, generation: u64) -> Option<RelPath> {
        self.core.stream.find(path, generation)
    }

    /// A file that looks as it did when the leader was opened, was at rest then, and was announced as nothing else since: its name.
    pub(crate) fn as_found(&self, path: &str, looks: &Stamps) -> Option<RelPath> {
        let (path, version) = self.core.stream.find_file(path, (looks.dev, looks.ino))?;
        let then = {
            let found = self.core.found.lock();
            let then = found.looks(version.generation, (looks.dev, looks.ino), version.len)?;
            if found.had_settled(&then) { then } else { return None }
        };
        (then == *looks && !self.core.unreadable.is_noted(&path)).then_some(path)
    }

    /// That is not asked any more.
    pub(crate) fn forget_found(&self) {
        *self.core.found.lock() = Found::default();
    }

    /// How many files are announced. O(1).
    pub(crate) fn file_count(&self) -> u64 {
        self.core.stream.totals().0
    }
}
