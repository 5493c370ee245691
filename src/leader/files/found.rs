//! How files looked when the leader was opened: what whoever watches the directory compares its own first look with.
//!
//! A file that looks the same at both, and was at rest at the first, was not touched in between: what was announced of it, and what is
//! known of its content, is true of what is there.

use crate::digests::{Stamps, now};
use crate::index::FileId;
use crate::types::StreamPosition;

/// Nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Times {
    mtime: i64,
    ctime: i64,
}

/// The files of the first walk. Each was a change, so its generation says which one it was.
#[derive(Debug, Default)]
pub(in crate::leader) struct Found {
    /// When the walk began, in nanoseconds since 1970.
    began: i64,
    files: Vec<Times>,
}

impl Found {
    /// Before the walk.
    pub(in crate::leader) fn none_yet() -> Self {
        Self { began: now(), files: Vec::new() }
    }

    /// The next one; returns its generation.
    pub(in crate::leader) fn push(&mut self, looks: &Stamps) -> u64 {
        self.files.push(Times { mtime: looks.mtime, ctime: looks.ctime });
        self.position().0
    }

    /// After the last one.
    pub(in crate::leader) fn position(&self) -> StreamPosition {
        StreamPosition(StreamPosition::START.0 + self.files.len() as u64)
    }

    /// How the file of a generation looked, which is this one and so long.
    pub(in crate::leader) fn looks(&self, generation: u64, (dev, ino): FileId, size: u64) -> Option<Stamps> {
        let at = usize::try_from(generation.checked_sub(StreamPosition::START.0 + 1)?).ok()?;
        self.files.get(at).map(|&Times { mtime, ctime }| Stamps { dev, ino, size, mtime, ctime })
    }

    /// Whether every change since the walk shows in what a file looked like then.
    pub(in crate::leader) fn had_settled(&self, looks: &Stamps) -> bool {
        looks.settled(self.began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_by_its_generation_and_by_no_other() {
        let mut found = Found::none_yet();
        let looks = |mtime| Stamps { dev: 1, ino: 2, size: 3, mtime, ctime: mtime + 1 };
        let [first, second] = [10, 20].map(|mtime| found.push(&looks(mtime)));
        assert_eq!((second, found.position()), (first + 1, StreamPosition(second)));
        assert_eq!([first, second].map(|it| found.looks(it, (1, 2), 3)), [10, 20].map(|mtime| Some(looks(mtime))));
        assert_eq!([0, first - 1, second + 1].map(|it| found.looks(it, (1, 2), 3)), [None; 3]);
        assert!(found.had_settled(&looks(10)) && !found.had_settled(&looks(now())));
    }
}
