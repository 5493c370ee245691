//! What whoever watches the directory asks a leader, beyond what any host may: what it found at its start, and what followers were sent.

use std::sync::atomic::Ordering;

use crate::digests::Stamps;
use crate::error::AppendError;
use crate::first_look::FirstLook;
use crate::index::Version;
use crate::index::blocks::Blocks;
use crate::leader::Leader;
use crate::leader::stream::News;
use crate::protocol::extension::Attributes;
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

    /// A file has these permissions, and content is about to be announced of it that was written after they were given: followers are told before that, if they were told of others.
    pub(crate) fn has_mode(&self, path: &RelPath, mode: u32) -> Result<(), AppendError> {
        let Some((described, announced)) = self.core.stream.described(path) else { return Ok(()) };
        let mode = u16::try_from(mode & u32::from(Attributes::MODE_BITS)).unwrap_or_default();
        if announced == Attributes::UNKNOWN || announced.mode == mode {
            return Ok(());
        }
        let now = Attributes { mode, mtime: Attributes::NO_TIME };
        self.core.stream.announce_news(vec![News::Attributes(path.clone(), now, described)])
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

    /// What was looked at and watched when the leader was opened, if it was to be; once. What was announced otherwise since wants another look.
    pub(crate) fn take_first_look(&self) -> Option<FirstLook> {
        let mut look = self.core.first_look.lock().take()?;
        if let Some((_, position)) = self.core.read_at.get() {
            look.others.extend(self.core.stream.changes(*position).files.into_iter().map(|(path, _)| path));
        }
        look.others.extend(self.core.unreadable.all().into_iter().map(|noted| noted.path));
        Some(look)
    }

    /// Whether a file that looks like this has not changed since before the leader was opened, and was announced as nothing else since.
    pub(crate) fn was_found_as(&self, path: &RelPath, looks: &Stamps) -> bool {
        let Some((began, position)) = self.core.read_at.get() else { return false };
        let found = self.core.stream.find_file(path.as_str(), (looks.dev, looks.ino));
        let is_same = |version: Version| version.generation <= position.0 && version.len == looks.size;
        found.is_some_and(|(_, version)| is_same(version))
            && looks.settled(*began)
            && !self.core.unreadable.is_noted(path)
    }

    /// How many files are announced. O(1).
    pub(crate) fn file_count(&self) -> u64 {
        self.core.stream.totals().0
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use crate::config::LeaderConfig;
    use crate::digests::{Stamps, now};
    use crate::leader::Opening;
    use crate::types::{RelPath, Secret};

    fn path(name: &str) -> RelPath {
        RelPath::new(name).unwrap()
    }

    #[test]
    fn what_was_announced_or_noted_as_unreadable_since_the_first_look_wants_another() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c", "d"] {
            fs::write(dir.path().join(name), "1").unwrap();
        }
        while !Stamps::of_file(fs::File::open(dir.path().join("d")).unwrap()).unwrap().settled(now()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let opening = Opening::new(LeaderConfig::new(dir.path(), Secret::new("known to both").unwrap())).unwrap();
        opening.will_be_watched();
        let leader = opening.open(&mut |_| true).unwrap();
        fs::write(dir.path().join("b"), "22").unwrap();
        leader.append(&path("b"), 1, b"2").unwrap();
        fs::remove_file(dir.path().join("c")).unwrap();
        leader.delete(&path("c")).unwrap();
        leader.is_unreadable(&path("d"), &std::io::Error::other("of the disk"));
        let mut look = leader.take_first_look().unwrap();
        look.others.sort();
        assert_eq!(look.others, ["b", "c", "d"].map(path));
        assert_eq!(look.files.files.len(), 4);
        assert!(leader.take_first_look().is_none());
    }
}
