//! What whoever watches the directory asks a leader, beyond what any host may: what it found at its start, and what is known of content.

use std::sync::atomic::Ordering;

use crate::digests::Digested;
use crate::digests::Stamps;
use crate::leader::Leader;
use crate::leader::files::found::Found;
use crate::tail::Tail;
use crate::types::RelPath;

impl Leader {
    /// A file that looks as it did when the leader was opened, was at rest then, and was announced as nothing else since: its name, and
    /// whether it is known what it holds.
    pub(crate) fn as_found(&self, path: &str, looks: &Stamps) -> Option<(RelPath, bool)> {
        let (path, version) = self.core.stream.find_file(path, (looks.dev, looks.ino))?;
        let then = {
            let found = self.core.found.lock();
            let then = found.looks(version.generation, (looks.dev, looks.ino), version.len)?;
            if found.had_settled(&then) { then } else { return None }
        };
        let is_as_found = then == *looks && !self.core.unreadable.is_noted(&path);
        is_as_found.then(|| (path, self.core.chunks.is_kept(version.generation)))
    }

    /// What a file ended with when the leader was opened, if it had changed just before.
    pub(crate) fn tail_found(&self, path: &RelPath) -> Option<Tail> {
        let version = self.core.stream.version(path);
        self.core.found.lock().tail(version.generation, version.len)
    }

    /// That is not asked any more.
    pub(crate) fn forget_found(&self) {
        *self.core.found.lock() = Found::default();
    }

    /// What the file holds, and how it looked then, if it was at rest as it was announced.
    pub(crate) fn digested(&self, path: &RelPath) -> Option<Digested> {
        let (version, file) = self.core.stream.announced(path);
        self.core.chunks.kept(version.generation, file?)
    }

    /// Whether anybody may have read of the file what was announced.
    pub(crate) fn may_be_read(&self, path: &RelPath) -> bool {
        let generation = self.core.stream.version(path).generation;
        self.core.was_joined.load(Ordering::SeqCst) || self.core.chunks.digested(generation) > 0
    }

    /// How many files are announced. O(1).
    pub(crate) fn file_count(&self) -> u64 {
        self.core.stream.totals().0
    }
}
