//! How files looked when the leader was opened: what the digests that are kept of them are compared with.

use crate::digests::Stamps;
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
    files: Vec<Times>,
}

impl Found {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_by_its_generation_and_by_no_other() {
        let mut found = Found::default();
        let looks = |mtime| Stamps { dev: 1, ino: 2, size: 3, mtime, ctime: mtime + 1 };
        let [first, second] = [10, 20].map(|mtime| found.push(&looks(mtime)));
        assert_eq!((second, found.position()), (first + 1, StreamPosition(second)));
        assert_eq!([first, second].map(|it| found.looks(it, (1, 2), 3)), [10, 20].map(|mtime| Some(looks(mtime))));
        assert_eq!([0, first - 1, second + 1].map(|it| found.looks(it, (1, 2), 3)), [None; 3]);
    }
}
