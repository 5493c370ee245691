//! Comparing a copy with what it is a copy of, both being directories here: byte for byte, and nothing is changed.
//!
//! Compared is what is replicated: regular files, but for what each node keeps for itself. Holes are not read. A file that changes while it is compared is compared again, a few
//! times; what differs then and still changes is told apart: of that nobody can say whether the copy is wrong or only late.

use std::io::{self, Read};
use std::path::Path;

use crate::beneath::Beneath;
use crate::datadir::{self, FoundFile, Visitor};
use crate::digests::Stamps;
use crate::error::Error;
use crate::reader::{Reader, Span};
use crate::types::RelPath;
use crate::uncached::READ_AT_ONCE_BYTES;

/// Ranges that differ are told in blocks of so many bytes.
const BLOCK_BYTES: usize = 4 << 10;

/// So many ranges of a file are told.
const RANGES_MAX: usize = 100;

/// How often a file is compared that changes meanwhile.
const TRIES: u32 = 3;

/// How a file of the copy differs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// The copy lacks it.
    Missing,
    /// Only the copy has it.
    Extra,
    /// It has another length, or other bytes.
    Content {
        /// Its length in bytes.
        original: u64,
        /// Its length in the copy.
        copy: u64,
        /// Offset and length of what differs, as far as both have it; the first 100 ranges.
        ranges: Vec<(u64, u64)>,
    },
    /// It differs, and was changing.
    Changing,
    /// One of the two cannot be read, or listed; why.
    Unreadable(String),
}

/// How far a comparison is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compared {
    /// Files dealt with, and how many there are.
    pub files: (u64, u64),
    /// Bytes dealt with, and how many there are: of the original.
    pub bytes: (u64, u64),
}

/// Compares `copy` with `original`, and calls `differs` for each file that differs, in order of names. `go_on` is told how far it is after each megabyte or so, and ends it with
/// `false`. Blocks for as long as it takes to read both.
///
/// # Errors
///
/// One of the directories cannot be opened or listed.
pub fn compare(
    original: &Path,
    copy: &Path,
    differs: &mut dyn FnMut(&RelPath, Difference),
    go_on: &mut dyn FnMut(Compared) -> bool,
) -> Result<Compared, Error> {
    let open = |path: &Path| Beneath::open(path).map_err(|error| Error::io("open", path, error));
    let sides = [open(original)?, open(copy)?];
    let [ours, theirs] = sides.each_ref().map(listed);
    let (ours, theirs) = (ours?, theirs?);
    let mut state = State { done: Compared::default(), go_on, is_over: false };
    state.done.files.1 = ours.files.len() as u64;
    state.done.bytes.1 = ours.files.iter().map(|(_, len)| len).sum();
    for (path, error) in ours.unseen.iter().chain(&theirs.unseen) {
        differs(path, Difference::Unreadable(error.clone()));
    }
    let is_unseen = |path: &RelPath| ours.unseen.iter().chain(&theirs.unseen).any(|(at, _)| is_at_or_in(path, at));
    let mut extra = theirs.files.iter().peekable();
    for (path, len) in &ours.files {
        while let Some((other, _)) = extra.next_if(|(other, _)| other < path) {
            told(&sides, other, Difference::Extra, differs);
        }
        let before = state.done.bytes.0;
        let is_there = extra.next_if(|(other, _)| other == path).is_some();
        let difference = match is_there {
            true => state.file(&sides, path),
            false if is_unseen(path) => None,
            false => Some(Difference::Missing),
        };
        if state.is_over {
            return Ok(state.done);
        }
        if let Some(difference) = difference {
            told(&sides, path, difference, differs);
        }
        state.done.files.0 += 1;
        state.done.bytes.0 = before + len;
    }
    for (other, _) in extra {
        told(&sides, other, Difference::Extra, differs);
    }
    Ok(state.done)
}

/// What came or went meanwhile is changing.
fn told(sides: &[Beneath; 2], path: &RelPath, difference: Difference, differs: &mut dyn FnMut(&RelPath, Difference)) {
    let there =
        sides.each_ref().map(|side| side.metadata(path).is_ok_and(|meta| meta.is_some_and(|meta| meta.is_file())));
    match (&difference, there) {
        (Difference::Missing, [false, false]) | (Difference::Extra, [false, false]) => {}
        (Difference::Missing, [true, false]) | (Difference::Extra, [false, true]) => differs(path, difference),
        (Difference::Missing | Difference::Extra, _) => differs(path, Difference::Changing),
        _ => differs(path, difference),
    }
}

fn is_at_or_in(path: &RelPath, at: &RelPath) -> bool {
    path == at || path.as_str().strip_prefix(at.as_str()).is_some_and(|rest| rest.starts_with('/'))
}

#[derive(Default)]
struct Listed {
    files: Vec<(RelPath, u64)>,
    unseen: Vec<(RelPath, String)>,
}

impl Visitor for Listed {
    fn file(&mut self, file: FoundFile) {
        self.files.push((file.path, file.len));
    }

    fn unseen(&mut self, path: &RelPath, error: Error) -> Result<(), Error> {
        self.unseen.push((path.clone(), error.to_string()));
        Ok(())
    }
}

fn listed(root: &Beneath) -> Result<Listed, Error> {
    let mut listed = Listed::default();
    datadir::walk(root, None, &mut listed)?;
    listed.files.sort_unstable();
    Ok(listed)
}

struct State<'a> {
    done: Compared,
    go_on: &'a mut dyn FnMut(Compared) -> bool,
    is_over: bool,
}

impl State<'_> {
    /// Compares one file.
    fn file(&mut self, sides: &[Beneath; 2], path: &RelPath) -> Option<Difference> {
        let began = self.done.bytes.0;
        for last in (0..TRIES).map(|tries| tries + 1 == TRIES) {
            self.done.bytes.0 = began;
            match self.once(sides, path) {
                Ok(Some((_, true))) if last => return Some(Difference::Changing),
                Ok(Some((_, true))) if !self.is_over => {}
                Ok(difference) => return difference.map(|(difference, _)| difference),
                Err(error) => return Some(Difference::Unreadable(error.to_string())),
            }
        }
        None
    }

    /// How it differs, and whether it changed meanwhile.
    fn once(&mut self, sides: &[Beneath; 2], path: &RelPath) -> io::Result<Option<(Difference, bool)>> {
        let [ours, theirs] = sides.each_ref().map(|side| side.file(path));
        let (Some(ours), Some(theirs)) = (ours?, theirs?) else { return Ok(Some((Difference::Changing, true))) };
        let before = [Stamps::of_file(&ours)?, Stamps::of_file(&theirs)?];
        let [original, copy] = before.map(|stamps| stamps.size);
        let (mut ours, mut theirs) = (Reader::uncached(ours), Reader::uncached(theirs));
        let ranges = self.contents(&mut ours, &mut theirs, original.min(copy));
        let after = [Stamps::of_file(ours.file())?, Stamps::of_file(theirs.file())?];
        let ranges = match ranges {
            // It was cut meanwhile.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(Some((Difference::Changing, true)));
            }
            ranges => ranges?,
        };
        let is_same = original == copy && ranges.is_empty();
        Ok((!is_same).then_some((Difference::Content { original, copy, ranges }, before != after)))
    }

    /// The ranges in which the first `len` bytes differ.
    fn contents(&mut self, ours: &mut Reader, theirs: &mut Reader, len: u64) -> io::Result<Vec<(u64, u64)>> {
        let (mut ranges, mut buffers): (Vec<(u64, u64)>, _) = (Vec::new(), [Vec::new(), Vec::new()]);
        while ours.offset() < len && !self.is_over {
            let at = ours.offset();
            let [our, their] = [ours.next(len, READ_AT_ONCE_BYTES as u64), theirs.next(len, READ_AT_ONCE_BYTES as u64)];
            if let (Span::Hole(ours_bytes), Span::Hole(their_bytes)) = (our, their) {
                let both = ours_bytes.min(their_bytes);
                ours.skip(both);
                theirs.skip(both);
            } else {
                let bytes = usize::try_from(len - at).unwrap_or(usize::MAX).min(READ_AT_ONCE_BYTES);
                for (buffer, file) in buffers.iter_mut().zip([&mut *ours, &mut *theirs]) {
                    buffer.resize(bytes, 0);
                    file.read_exact(buffer)?;
                }
                let blocks = buffers[0].chunks(BLOCK_BYTES).zip(buffers[1].chunks(BLOCK_BYTES)).enumerate();
                for (number, (block, _)) in blocks.filter(|(_, (ours, theirs))| ours != theirs) {
                    let (offset, bytes) = (at + (number * BLOCK_BYTES) as u64, block.len() as u64);
                    let has_room = ranges.len() < RANGES_MAX;
                    match ranges.last_mut() {
                        Some((from, len)) if *from + *len == offset => *len += bytes,
                        _ if has_room => ranges.push((offset, bytes)),
                        _ => {}
                    }
                }
            }
            self.done.bytes.0 += ours.offset() - at;
            self.is_over = !(self.go_on)(self.done);
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn of(dirs: &[tempfile::TempDir; 2]) -> Vec<(String, Difference)> {
        let mut found = Vec::new();
        let mut differs = |path: &RelPath, difference| found.push((path.to_string(), difference));
        compare(dirs[0].path(), dirs[1].path(), &mut differs, &mut |_| true).unwrap();
        found
    }

    fn dirs() -> [tempfile::TempDir; 2] {
        [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]
    }

    #[test]
    fn what_is_missing_extra_or_other_is_told_and_what_is_nobodys_else_is_not() {
        let dirs = dirs();
        for (dir, names) in dirs.iter().zip([["a", "gone", "x/same"], ["a", "more", "x/same"]]) {
            fs::create_dir_all(dir.path().join("x")).unwrap();
            names.iter().for_each(|name| fs::write(dir.path().join(name), [7; 30_000]).unwrap());
        }
        fs::write(dirs[0].path().join(".lock"), "").unwrap();
        let missing = |name: &str, difference| (name.to_owned(), difference);
        assert_eq!(of(&dirs), [missing("gone", Difference::Missing), missing("more", Difference::Extra)]);
        fs::remove_file(dirs[0].path().join("gone")).unwrap();
        fs::remove_file(dirs[1].path().join("more")).unwrap();
        assert_eq!(of(&dirs), []);
        let file = fs::File::options().append(false).write(true).open(dirs[1].path().join("a")).unwrap();
        file.write_all_at(b"!", 4095).unwrap();
        file.write_all_at(b"!", 4096).unwrap();
        file.write_all_at(b"!", 29_999).unwrap();
        let ranges = vec![(0, 8192), (28_672, 1328)];
        assert_eq!(of(&dirs), [missing("a", Difference::Content { original: 30_000, copy: 30_000, ranges })]);
        file.set_len(4000).unwrap();
        let content = Difference::Content { original: 30_000, copy: 4000, ranges: Vec::new() };
        assert_eq!(of(&dirs), [missing("a", content)]);
    }

    #[test]
    fn holes_are_not_read_and_what_is_in_the_midst_of_them_is_seen() {
        const GIB: u64 = 1 << 30;
        let dirs = dirs();
        for dir in &dirs {
            let file = fs::File::create(dir.path().join("sparse")).unwrap();
            file.set_len(64 * GIB).unwrap();
            file.write_all_at(b"here", 9 * GIB + 5).unwrap();
        }
        assert_eq!(of(&dirs), []);
        let file = fs::File::options().write(true).open(dirs[1].path().join("sparse")).unwrap();
        file.write_all_at(b"there", 20 * GIB).unwrap();
        let ranges = vec![(20 * GIB, 4096)];
        let content = Difference::Content { original: 64 * GIB, copy: 64 * GIB, ranges };
        assert_eq!(of(&dirs), [("sparse".to_owned(), content)]);
    }

    #[test]
    fn it_ends_when_told_to() {
        let dirs = dirs();
        dirs.iter().for_each(|dir| fs::write(dir.path().join("a"), vec![1; 5 << 20]).unwrap());
        let mut looks = 0;
        let mut go_on = |_| {
            looks += 1;
            looks < 2
        };
        let done = compare(dirs[0].path(), dirs[1].path(), &mut |_, _| panic!(), &mut go_on).unwrap();
        assert_eq!((done.files, done.bytes), ((0, 1), (2 << 20, 5 << 20)));
    }
}
