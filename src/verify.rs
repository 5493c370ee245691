//! Comparing a copy with what it is a copy of, which is a directory, too, or a live leader ([`compare_with_leader`]): byte for byte, and nothing is changed.
//!
//! Compared is what is replicated, but for what each node keeps for itself: regular files with their permissions and the times of their last change, folders with their
//! permissions, symbolic links with where they lead. Permissions are compared as a copy has them: it has none above `0777`, and may always use its folders. Holes are not read.
//!
//! What changes while it is compared is compared again, a few times; what differs then and still changes is told apart: of that nobody can say whether the copy is wrong or only
//! late. A leader announces the time of a change once nothing has changed for a while, so times count only of files that have been at rest for a while longer.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::beneath::{Beneath, Entry};
use crate::config::FollowerConfig;
use crate::datadir::{self, FoundFile, Visitor, attributes_of};
pub use crate::difference::{Difference, Kind};
use crate::difference::{OWNERS, is_at_rest};
use crate::digests::Stamps;
use crate::error::Error;
use crate::follower::dry_run::{DryRun, Look, both_times};
use crate::protocol::extension::Attributes;
use crate::reader::{Reader, Span};
use crate::sys::channel::{self, RecvTimeoutError};
use crate::sys::rustix::fs::fstat;
use crate::sys::time::Instant;
use crate::thread::{DROP_JOIN_MAX, Group};
use crate::types::{RelPath, Secret};
use crate::uncached::READ_AT_ONCE_BYTES;

/// Ranges that differ are told in blocks of so many bytes.
const BLOCK_BYTES: usize = 4 << 10;

/// So many ranges of a file are told.
const RANGES_MAX: usize = 100;

/// How often a file is compared that changes meanwhile.
const TRIES: u32 = 3;

/// How far a comparison is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compared {
    /// Files dealt with, and how many there are.
    pub files: (u64, u64),
    /// Bytes dealt with, and how many there are: of the original.
    pub bytes: (u64, u64),
}

/// Compares `copy` with `original`, and calls `differs` for each way in which something differs, in order of names. `go_on` is told how far it is after each megabyte or so, and
/// ends it with `false`. Blocks for as long as it takes to read both.
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
    let files = || ours.there.iter().filter(|found| found.what == What::File);
    state.done.files.1 = files().count() as u64;
    state.done.bytes.1 = files().map(|found| found.len).sum();
    let unseen: Vec<_> = ours.unseen.into_iter().chain(theirs.unseen).collect();
    unseen.iter().for_each(|(path, error)| differs(path, Difference::Unreadable(error.clone())));
    for (path, [our, their]) in in_turn(ours.there, theirs.there) {
        let before = state.done.bytes.0;
        let file = our.as_ref().filter(|our| our.what == What::File).map(|our| our.len);
        let found = match [our, their].map(|found| found.map(|found| found.what)) {
            [Some(What::File), Some(What::File)] => state.file(&sides, &path),
            [Some(_), None] | [None, Some(_)] if unseen.iter().any(|(at, _)| is_at_or_in(&path, at)) => Vec::new(),
            listed => looked_again(&sides, &path, &listed).into_iter().collect(),
        };
        if state.is_over {
            return Ok(state.done);
        }
        found.into_iter().for_each(|difference| differs(&path, difference));
        if let Some(len) = file {
            state.done.files.0 += 1;
            state.done.bytes.0 = before + len;
        }
    }
    Ok(state.done)
}

/// Compares `copy` with what its leader at `leader` (`HOST:PORT`) has, and calls `differs` for each way in which something differs, in order of names. The leader has to speak
/// Paceline's extension. `go_on` is told some times a second how many files were dealt with, and ends it with `false`. Nothing is changed in `copy`, which may be followed meanwhile; what differs is
/// sent by the leader, and dropped. Blocks for as long as it takes to read the copy, and some seconds more if anything differs at first.
///
/// # Errors
///
/// The leader cannot be reached, refuses, speaks only 1.0.0, or has another data set; or the copy cannot be read.
pub fn compare_with_leader(
    leader: &str,
    copy: &Path,
    secret: Secret,
    differs: &mut dyn FnMut(&RelPath, Difference),
    go_on: &mut dyn FnMut(Compared) -> bool,
) -> Result<Compared, Error> {
    let dry_run = Arc::new(DryRun::new(FollowerConfig::new(leader, copy, secret))?);
    let (threads, (told, looked)) = (Group::default(), channel::bounded(1));
    let its = dry_run.clone();
    let spawned = threads.spawn("paceline-verify", move || {
        // Somebody waits for it.
        let _ = told.send(look_twice(&its));
    });
    spawned.map_err(|error| Error::connection("could not start its thread", error))?;
    let looked = loop {
        match looked.recv_timeout(ASK_EVERY) {
            Ok(looked) => break looked,
            Err(RecvTimeoutError::Timeout) => {
                if !go_on(Compared { files: dry_run.files(), bytes: (0, 0) }) {
                    dry_run.stop();
                }
            }
            Err(RecvTimeoutError::Disconnected) => break Err(Error::ShuttingDown),
        }
    };
    threads.join(Instant::now() + DROP_JOIN_MAX);
    let (found, compared) = looked?;
    found.into_iter().for_each(|(path, difference)| differs(&path, difference));
    Ok(compared)
}

/// How often who waits for a comparison with a leader is asked whether to go on.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// What differs, and what was compared.
fn look_twice(dry_run: &DryRun) -> Result<(Vec<(RelPath, Difference)>, Compared), Error> {
    let compared = |look: &Look| Compared { files: (look.files, look.files), bytes: (look.bytes(), look.bytes()) };
    let first = dry_run.look()?;
    if first.is_equal() {
        return Ok((Vec::new(), compared(&first)));
    }
    dry_run.pause();
    let second = dry_run.look()?;
    let compared = compared(&second);
    Ok((both_times(&first, second), compared))
}

/// How these differ, as far as it shows without reading files.
fn difference(sides: &[Option<What>; 2]) -> Option<Difference> {
    match sides {
        [Some(_), None] => Some(Difference::Missing),
        [None, Some(_)] => Some(Difference::Extra),
        [Some(What::Folder(original)), Some(What::Folder(copy))] => {
            (original != copy).then_some(Difference::Mode { original: *original, copy: *copy })
        }
        [Some(What::Link(original)), Some(What::Link(copy))] => {
            (original != copy).then(|| Difference::Target { original: original.clone(), copy: copy.clone() })
        }
        [Some(original), Some(copy)] if original.kind() != copy.kind() => {
            Some(Difference::Kind { original: original.kind(), copy: copy.kind() })
        }
        _ => None,
    }
}

/// How these differ, if they still do; what came, went or changed meanwhile is changing.
fn looked_again(sides: &[Beneath; 2], path: &RelPath, listed: &[Option<What>; 2]) -> Option<Difference> {
    let difference_listed = difference(listed)?;
    let now = match sides.each_ref().map(|side| side.look(path)) {
        [Ok(our), Ok(their)] => [our, their].map(|entry| entry.and_then(What::of)),
        [Err(error), _] | [_, Err(error)] => return Some(Difference::Unreadable(error.to_string())),
    };
    match &now {
        now if now == listed => Some(difference_listed),
        [Some(What::File), Some(What::File)] => Some(Difference::Changing),
        now => difference(now).map(|_| Difference::Changing),
    }
}

fn is_at_or_in(path: &RelPath, at: &RelPath) -> bool {
    path == at || path.as_str().strip_prefix(at.as_str()).is_some_and(|rest| rest.starts_with('/'))
}

/// What is at a name.
#[derive(Debug, PartialEq, Eq)]
enum What {
    File,
    /// With its permissions, as a copy has them.
    Folder(u16),
    /// Where it leads.
    Link(Vec<u8>),
}

impl What {
    fn folder(attributes: Attributes) -> Self {
        Self::Folder(attributes.mode | OWNERS)
    }

    /// `None` of what is not replicated.
    fn of(entry: Entry) -> Option<Self> {
        match entry {
            Entry::File(..) => Some(Self::File),
            Entry::Folder(attributes) => Some(Self::folder(attributes)),
            Entry::Link(target) => Some(Self::Link(target.into_bytes())),
            Entry::Other => None,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::File => Kind::File,
            Self::Folder(_) => Kind::Folder,
            Self::Link(_) => Kind::Link,
        }
    }
}

struct Found {
    path: RelPath,
    what: What,
    /// Of a file: its length in bytes.
    len: u64,
}

#[derive(Default)]
struct Listed {
    there: Vec<Found>,
    unseen: Vec<(RelPath, String)>,
}

impl Visitor for Listed {
    fn folder(&mut self, path: &RelPath, attributes: Attributes) -> bool {
        self.there.push(Found { path: path.clone(), what: What::folder(attributes), len: 0 });
        true
    }

    fn file(&mut self, file: FoundFile) {
        self.there.push(Found { path: file.path, what: What::File, len: file.len });
    }

    fn link(&mut self, path: RelPath, target: &[u8]) {
        self.there.push(Found { path, what: What::Link(target.to_owned()), len: 0 });
    }

    fn unseen(&mut self, path: &RelPath, error: Error) -> Result<(), Error> {
        self.unseen.push((path.clone(), error.to_string()));
        Ok(())
    }
}

/// All that is there, in the order of names.
fn listed(root: &Beneath) -> Result<Listed, Error> {
    let mut listed = Listed::default();
    datadir::walk(root, None, &mut listed)?;
    listed.there.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(listed)
}

/// Each name that is in one of two lists, or in both.
fn in_turn(ours: Vec<Found>, theirs: Vec<Found>) -> impl Iterator<Item = (RelPath, [Option<Found>; 2])> {
    let (mut ours, mut theirs) = (ours.into_iter().peekable(), theirs.into_iter().peekable());
    std::iter::from_fn(move || {
        let path = [ours.peek(), theirs.peek()].into_iter().flatten().map(|found| &found.path).min()?.clone();
        let found = [ours.next_if(|found| found.path == path), theirs.next_if(|found| found.path == path)];
        Some((path, found))
    })
}

struct State<'a> {
    done: Compared,
    go_on: &'a mut dyn FnMut(Compared) -> bool,
    is_over: bool,
}

impl State<'_> {
    /// Compares one file.
    fn file(&mut self, sides: &[Beneath; 2], path: &RelPath) -> Vec<Difference> {
        let began = self.done.bytes.0;
        for _ in 0..TRIES {
            self.done.bytes.0 = began;
            match self.once(sides, path) {
                Ok(Some(differences)) => return differences,
                Ok(None) if self.is_over => return Vec::new(),
                Ok(None) => {}
                Err(error) => return vec![Difference::Unreadable(error.to_string())],
            }
        }
        vec![Difference::Changing]
    }

    /// How it differs; `None` if it does, and changed meanwhile.
    fn once(&mut self, sides: &[Beneath; 2], path: &RelPath) -> io::Result<Option<Vec<Difference>>> {
        let [ours, theirs] = sides.each_ref().map(|side| side.file(path));
        let (Some(ours), Some(theirs)) = (ours?, theirs?) else { return Ok(None) };
        let before = [Stamps::of_file(&ours)?, Stamps::of_file(&theirs)?];
        let [original, copy] = before.map(|stamps| stamps.size);
        let (mut ours, mut theirs) = (Reader::uncached(ours), Reader::uncached(theirs));
        let ranges = self.contents(&mut ours, &mut theirs, original.min(copy));
        let stats = [fstat(ours.file())?, fstat(theirs.file())?];
        let after = stats.each_ref().map(Stamps::of);
        let ranges = match ranges {
            // It was cut meanwhile.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            ranges => ranges?,
        };
        let mut found = Vec::new();
        let is_same = original == copy && ranges.is_empty();
        if !is_same {
            found.push(Difference::Content { original, copy, ranges });
        }
        let [our, their] = stats.each_ref().map(attributes_of);
        if our.mode != their.mode {
            found.push(Difference::Mode { original: our.mode, copy: their.mode });
        }
        if is_same && our.mtime != their.mtime && is_at_rest(&our) && is_at_rest(&their) {
            found.push(Difference::Time { original: our.mtime, copy: their.mtime });
        }
        Ok((found.is_empty() || before == after).then_some(found))
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
    use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

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

    fn path_of(dirs: &[tempfile::TempDir; 2], side: usize, name: &str) -> std::path::PathBuf {
        dirs[side].path().join(name)
    }

    #[test]
    fn folders_links_and_kinds_are_compared() {
        let dirs = dirs();
        let of_both = |make: &dyn Fn(usize)| (0..2).for_each(make);
        let at = |side, name: &str| path_of(&dirs, side, name);
        of_both(&|side| {
            fs::create_dir(at(side, "empty")).unwrap();
            fs::create_dir(at(side, "same")).unwrap();
            symlink("empty", at(side, "link")).unwrap();
        });
        assert_eq!(of(&dirs), []);
        fs::create_dir_all(at(0, "gone/within")).unwrap();
        fs::create_dir(at(1, "more")).unwrap();
        fs::remove_file(at(1, "link")).unwrap();
        symlink("elsewhere", at(1, "link")).unwrap();
        symlink("nowhere", at(1, "more-link")).unwrap();
        fs::remove_dir(at(1, "empty")).unwrap();
        fs::write(at(1, "empty"), "a file").unwrap();
        let target = Difference::Target { original: b"empty".to_vec(), copy: b"elsewhere".to_vec() };
        let all = [
            ("empty", Difference::Kind { original: Kind::Folder, copy: Kind::File }),
            ("gone", Difference::Missing),
            ("gone/within", Difference::Missing),
            ("link", target),
            ("more", Difference::Extra),
            ("more-link", Difference::Extra),
        ];
        assert_eq!(of(&dirs), all.map(|(name, difference)| (name.to_owned(), difference)));
    }

    #[test]
    fn permissions_are_compared_as_a_copy_has_them() {
        let dirs = dirs();
        let set = |side, name: &str, mode| {
            fs::set_permissions(path_of(&dirs, side, name), fs::Permissions::from_mode(mode)).unwrap();
        };
        for (side, dir) in dirs.iter().enumerate() {
            fs::create_dir(dir.path().join("folder")).unwrap();
            fs::write(dir.path().join("file"), "same").unwrap();
            set(side, "file", [0o4640, 0o640][side]);
            set(side, "folder", [0o2550, 0o750][side]);
        }
        assert_eq!(of(&dirs), []);
        set(1, "file", 0o600);
        set(1, "folder", 0o755);
        let mode = |name: &str, original, copy| (name.to_owned(), Difference::Mode { original, copy });
        assert_eq!(of(&dirs), [mode("file", 0o640, 0o600), mode("folder", 0o750, 0o755)]);
    }

    #[test]
    fn times_count_of_files_that_are_at_rest_and_equal() {
        let dirs = dirs();
        let set = |side, seconds_ago| {
            let file = fs::File::options().write(true).open(path_of(&dirs, side, "a")).unwrap();
            let time = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds_ago);
            file.set_modified(time).unwrap();
            i64::try_from(time.duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()).unwrap()
        };
        dirs.iter().for_each(|dir| fs::write(dir.path().join("a"), "same").unwrap());
        set(0, 1000);
        assert_eq!(of(&dirs), [], "the copy has just been written to");
        let (original, copy) = (set(0, 1000), set(1, 2000));
        assert_eq!(of(&dirs), [("a".to_owned(), Difference::Time { original, copy })]);
        fs::write(path_of(&dirs, 1, "a"), "other").unwrap();
        set(1, 2000);
        let content = Difference::Content { original: 4, copy: 5, ranges: vec![(0, 4)] };
        assert_eq!(of(&dirs), [("a".to_owned(), content)]);
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
