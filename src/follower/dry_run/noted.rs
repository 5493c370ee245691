//! What a sync would have done to a copy, and what follows from two of them.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use sha1::{Digest, Sha1};

use super::out_of_place;
use crate::beneath::{Beneath, Entry};
use crate::difference::{Difference, Kind, OWNERS, is_at_rest};
use crate::digests::Stamps;
use crate::error::Error;
use crate::protocol::extension::{Attributes, Control, Item};
use crate::protocol::{ActionKind, Sha1Sum};
use crate::reader::{HOLE_BYTES_MIN, Reader, Span};
use crate::sys::fs::{File, FileExt};
use crate::sys::hash::HashMap;
use crate::types::RelPath;
use crate::uncached::READ_AT_ONCE_BYTES;

/// Bytes that differ are told as one range with those between, if those are fewer than so many.
const GAP_BYTES_MAX: u64 = 4 << 10;

/// So many ranges of a file are kept; then the last one grows.
const RANGES_KEPT_MAX: usize = 10_000;

/// What the copy has in a range of at most so many bytes is looked at twice.
const HELD_BYTES_MAX: u64 = 1 << 20;

/// So many are told.
const RANGES_MAX: usize = 100;

/// What one sync would have done.
#[derive(Default)]
pub(crate) struct Look {
    /// Files of the copy.
    pub(crate) files: u64,
    /// The lengths of the copy's files and links, before anything was compared.
    pub(crate) lens: HashMap<RelPath, u64>,
    seen: BTreeMap<RelPath, Seen>,
}

impl Look {
    /// Whether the copy is equal.
    pub(crate) fn is_equal(&self) -> bool {
        self.seen.is_empty()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.lens.values().sum()
    }
}

/// How something differs.
#[derive(Default)]
struct Seen {
    /// But for content.
    others: Vec<Difference>,
    content: Option<Content>,
}

#[derive(Default)]
struct Content {
    original: u64,
    copy: u64,
    /// Offsets and lengths, in order once they are sorted; also of what only one of both has.
    ranges: Vec<(u64, u64)>,
    /// How the copy looked in the end.
    stamps: Option<Stamps>,
    /// What the copy had there in the end: of some ranges.
    held: Vec<((u64, u64), Sha1Sum)>,
}

impl Content {
    fn add(&mut self, offset: u64, len: u64) {
        let is_full = self.ranges.len() >= RANGES_KEPT_MAX;
        match self.ranges.last_mut() {
            Some((from, has)) if *from <= offset && (is_full || offset <= *from + *has) => {
                *has = (offset + len - *from).max(*has);
            }
            _ => self.ranges.push((offset, len)),
        }
    }
}

/// How the copy differs, in order of names: in what it did both times.
pub(crate) fn both_times(first: &Look, second: Look) -> Vec<(RelPath, Difference)> {
    let mut all = Vec::new();
    for (path, Seen { others, content }) in second.seen {
        let before = first.seen.get(&path);
        let mut is_changing = false;
        let mut found = Vec::new();
        if let Some(content) = content {
            let had = before.and_then(|before| before.content.as_ref());
            let stays = had.map_or_else(Vec::new, |had| staying(had, &content));
            // What both had at the first look. Beyond that the copy may be late.
            let known = had.map(|had| had.original.min(had.copy)).or_else(|| first.lens.get(&path).copied());
            if stays.is_empty() {
                let is_behind =
                    had.is_some_and(|had| !is_same_file(had, &content) || !common(had, &content).is_empty());
                is_changing |= is_behind || content.ranges.iter().any(|(offset, _)| *offset < known.unwrap_or(0));
            } else {
                let Content { original, copy, .. } = content;
                let end = original.min(copy);
                let of_both = stays.into_iter().filter(|(offset, _)| *offset < end);
                let ranges = of_both.map(|(offset, len)| (offset, len.min(end - offset))).take(RANGES_MAX).collect();
                found.push(Difference::Content { original, copy, ranges });
            }
        }
        for other in others {
            if before.is_some_and(|before| before.others.contains(&other)) {
                found.push(other);
            } else {
                is_changing = true;
            }
        }
        if found.is_empty() && is_changing {
            found.push(Difference::Changing);
        }
        all.extend(found.into_iter().map(|difference| (path.clone(), difference)));
    }
    all
}

/// Whether the copy's file is the one that it was, and no shorter.
fn is_same_file(before: &Content, now: &Content) -> bool {
    let is_it =
        |(before, now): (Stamps, Stamps)| before.dev == now.dev && before.ino == now.ino && before.size <= now.size;
    before.stamps.zip(now.stamps).is_some_and(is_it)
}

/// Where the copy differs, and is not being brought up to date: all that differs both times if nothing has changed in it since the first, or else where the same bytes are that were there then. A
/// place that is written to all the time differs each time, too.
fn staying(before: &Content, now: &Content) -> Vec<(u64, u64)> {
    if now.stamps.is_some() && before.stamps == now.stamps {
        return common(before, now);
    }
    let held = now.held.iter().filter(|held| is_same_file(before, now) && before.held.contains(held));
    held.map(|(range, _)| *range).collect()
}

/// What ranges both have in common.
fn common(one: &Content, other: &Content) -> Vec<(u64, u64)> {
    let (mut one, mut other) = (one.ranges.iter().peekable(), other.ranges.iter().peekable());
    let mut all = Vec::new();
    while let (Some((a, a_len)), Some((b, b_len))) = (one.peek(), other.peek()) {
        let (from, to) = (*a.max(b), (a + a_len).min(b + b_len));
        if from < to {
            all.push((from, to - from));
        }
        let _ = if a + a_len <= b + b_len { one.next() } else { other.next() };
    }
    all
}

/// Takes what comes in place of a copy.
pub(super) struct Noted<'a> {
    copy: &'a Beneath,
    pub(super) look: Look,
    /// How long files are that were told, as the leader has it at each moment.
    lens: HashMap<RelPath, u64>,
    /// Under which name files are in the copy that got this one.
    moved: HashMap<RelPath, RelPath>,
    gone: Vec<RelPath>,
    patch: Option<(RelPath, u64)>,
    staged: Option<RelPath>,
    open: Option<Open>,
    buffer: Vec<u8>,
}

/// The file that content comes for.
struct Open {
    path: RelPath,
    /// The copy's, if there is one to be compared.
    file: Option<File>,
    at: u64,
}

impl<'a> Noted<'a> {
    pub(super) fn new(copy: &'a Beneath) -> Self {
        Self {
            copy,
            look: Look::default(),
            lens: HashMap::default(),
            moved: HashMap::default(),
            gone: Vec::new(),
            patch: None,
            staged: None,
            open: None,
            buffer: Vec::new(),
        }
    }

    /// The copy has told this file.
    pub(super) fn told(&mut self, path: &RelPath, len: u64) {
        self.lens.insert(path.clone(), len);
    }

    pub(super) fn action(&mut self, path: RelPath, kind: ActionKind) -> Result<(), Error> {
        let patch = self.patch.take();
        if path.is_reserved() {
            self.open = None;
            return Ok(());
        }
        match kind {
            ActionKind::Delete => {
                self.lens.remove(&path);
                self.gone.push(path);
            }
            ActionKind::Replace(len) => self.content(&path, 0, Some(len))?,
            ActionKind::Append(len) => match patch {
                Some((patched, offset)) if patched == path => self.content(&path, offset, None)?,
                Some(_) => return Err(out_of_place("a patch without its bytes")),
                None => {
                    let at = self.lens.get(&path).copied().unwrap_or(0);
                    self.content(&path, at, Some(at + len))?;
                }
            },
        }
        Ok(())
    }

    /// Content comes for a file, from there on; it is to have this length then, or keeps the one that it has.
    fn content(&mut self, path: &RelPath, at: u64, len: Option<u64>) -> Result<(), Error> {
        let had = self.lens.get(path).copied().unwrap_or(0);
        self.lens.insert(path.clone(), len.unwrap_or(had));
        if let Some(open) = self.open.as_mut().filter(|open| open.path == *path) {
            open.at = at;
            return Ok(());
        }
        let file = if self.moved.contains_key(path) { None } else { self.opened(path)? };
        if file.is_some() {
            self.seen(path).content.get_or_insert_default();
        }
        self.open = Some(Open { path: path.clone(), file, at });
        Ok(())
    }

    /// The copy's file; if there is none that is noted.
    fn opened(&mut self, path: &RelPath) -> Result<Option<File>, Error> {
        let opened = self.copy.file(path).map_err(|error| self.failed("open", path, error))?;
        if opened.is_none() {
            let difference = match self.kind(path)? {
                Some(Kind::File) => Difference::Changing,
                Some(copy) => Difference::Kind { original: Kind::File, copy },
                None => Difference::Missing,
            };
            self.note(path, difference);
        }
        Ok(opened)
    }

    fn kind(&self, path: &RelPath) -> Result<Option<Kind>, Error> {
        Ok(self.entry(path)?.and_then(|entry| match entry {
            Entry::File(..) => Some(Kind::File),
            Entry::Folder(_) => Some(Kind::Folder),
            Entry::Link(_) => Some(Kind::Link),
            Entry::Other => None,
        }))
    }

    fn entry(&self, path: &RelPath) -> Result<Option<Entry>, Error> {
        self.copy.look(path).map_err(|error| self.failed("look at", path, error))
    }

    fn failed(&self, doing: &'static str, path: &RelPath, error: std::io::Error) -> Error {
        Error::io(doing, path.below(self.copy.path()), error)
    }

    fn seen(&mut self, path: &RelPath) -> &mut Seen {
        self.look.seen.entry(path.clone()).or_default()
    }

    fn note(&mut self, path: &RelPath, difference: Difference) {
        let others = &mut self.seen(path).others;
        if !others.contains(&difference) {
            others.push(difference);
        }
    }

    /// The next bytes of what came last.
    pub(super) fn payload(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Some(Open { path, file: Some(file), at }) = &mut self.open else { return Ok(()) };
        let offset = *at;
        *at += bytes.len() as u64;
        self.buffer.resize(bytes.len(), 0);
        let read = read_up_to(file, &mut self.buffer, offset);
        let path = path.clone();
        let read = read.map_err(|error| self.failed("read", &path, error))?;
        let mut differing = Content::default();
        differ(&bytes[..read], &self.buffer[..read], offset, &mut differing);
        if read < bytes.len() {
            differing.add(offset + read as u64, (bytes.len() - read) as u64);
        }
        let content = self.seen(&path).content.get_or_insert_default();
        differing.ranges.into_iter().for_each(|(offset, len)| content.add(offset, len));
        Ok(())
    }

    /// Zeros come.
    fn zeros(&mut self, len: u64) -> Result<(), Error> {
        let Some(Open { path, file: Some(file), at }) = &mut self.open else { return Ok(()) };
        let (path, from, end) = (path.clone(), *at, *at + len);
        let file = file.try_clone().map_err(|error| Error::io("open", path.below(self.copy.path()), error))?;
        let size = Stamps::of_file(&file).map_err(|error| self.failed("stat", &path, error.into()))?.size;
        let mut reader = Reader::new(file);
        reader.seek(from);
        while reader.offset() < end.min(size) {
            match reader.next(end.min(size), HOLE_BYTES_MIN) {
                Span::Hole(hole) => {
                    reader.skip(hole);
                    if let Some(open) = &mut self.open {
                        open.at += hole;
                    }
                }
                Span::Data(data) => {
                    let some = usize::try_from(data).unwrap_or(usize::MAX).min(READ_AT_ONCE_BYTES);
                    self.payload(&vec![0; some])?;
                    reader.skip(some as u64);
                }
            }
        }
        if end > size.max(from) {
            let missing = size.max(from);
            self.seen(&path).content.get_or_insert_default().add(missing, end - missing);
        }
        if let Some(open) = &mut self.open {
            open.at = end;
        }
        Ok(())
    }

    pub(super) fn control(&mut self, control: Control) -> Result<(), Error> {
        match control {
            Control::PatchAt { path, offset } => self.patch = Some((path, offset)),
            Control::Truncate { path, len } => self.content(&path, len, Some(len))?,
            Control::Empty(path) => self.content(&path, 0, Some(0))?,
            Control::Stage(path) => {
                self.content(&path, 0, Some(0))?;
                self.staged = Some(path);
            }
            Control::Place => self.staged = None,
            Control::Unstage => {
                if let Some(path) = self.staged.take() {
                    self.note(&path, Difference::Unreadable("the leader cannot read it".to_owned()));
                }
            }
            Control::Hole { path, offset, len } => {
                let had = self.lens.get(&path).copied().unwrap_or(0);
                let offset = if self.staged.as_ref() == Some(&path) { had } else { offset };
                self.content(&path, offset, Some(had.max(offset + len)))?;
                self.zeros(len)?;
            }
            Control::Rename { from, to } => {
                let original = self.moved.remove(&from).unwrap_or_else(|| from.clone());
                self.moved.insert(to.clone(), original);
                if let Some(len) = self.lens.remove(&from) {
                    self.lens.insert(to, len);
                }
            }
            Control::Attributes(path, attributes) => self.attributes(&path, attributes)?,
            Control::Item(path, item) => self.item(&path, item)?,
            Control::RemoveItem(path) => self.gone.push(path),
            _ => return Err(out_of_place("a control that does not belong in a sync")),
        }
        Ok(())
    }

    fn attributes(&mut self, path: &RelPath, original: Attributes) -> Result<(), Error> {
        if self.moved.contains_key(path) {
            return Ok(());
        }
        // What is missing, or something else, was noted as that.
        let Some(Entry::File(_, copy)) = self.entry(path)? else { return Ok(()) };
        if original.mode != copy.mode {
            self.note(path, Difference::Mode { original: original.mode, copy: copy.mode });
        }
        let is_told = original.mtime != Attributes::NO_TIME && original.mtime != copy.mtime;
        if is_told && is_at_rest(&original) && is_at_rest(&copy) {
            self.note(path, Difference::Time { original: original.mtime, copy: copy.mtime });
        }
        Ok(())
    }

    fn item(&mut self, path: &RelPath, item: Item) -> Result<(), Error> {
        let kind = if matches!(item, Item::Folder(_)) { Kind::Folder } else { Kind::Link };
        let difference = match (item, self.entry(path)?) {
            (Item::Folder(original), Some(Entry::Folder(copy))) => {
                let [original, copy] = [original, copy].map(|attributes| attributes.mode | OWNERS);
                (original != copy).then_some(Difference::Mode { original, copy })
            }
            (Item::Link { target }, Some(Entry::Link(copy))) => {
                let copy = copy.into_bytes();
                (*target != *copy).then(|| Difference::Target { original: target.into(), copy })
            }
            _ => Some(match self.kind(path)? {
                Some(copy) => Difference::Kind { original: kind, copy },
                None => Difference::Missing,
            }),
        };
        if let Some(difference) = difference {
            self.note(path, difference);
        }
        Ok(())
    }

    /// All of it came.
    pub(super) fn end(mut self) -> Result<Look, Error> {
        self.moves()?;
        for path in std::mem::take(&mut self.gone) {
            if !self.look.seen.contains_key(&path) && self.kind(&path)?.is_some() {
                self.note(&path, Difference::Extra);
            }
        }
        let Self { copy, mut look, lens, .. } = self;
        for (path, seen) in &mut look.seen {
            let Some(content) = &mut seen.content else { continue };
            content.original = lens.get(path).copied().unwrap_or(0);
            let failed = |error| Error::io("read", path.below(copy.path()), error);
            let file = copy.file(path).map_err(failed)?;
            content.stamps = file.as_ref().and_then(|file| Stamps::of_file(file).ok());
            content.copy = content.stamps.map_or(0, |stamps| stamps.size);
            let (from, to) = (content.original.min(content.copy), content.original.max(content.copy));
            if from < to {
                content.ranges.push((from, to - from));
            }
            content.ranges.sort_unstable();
            let (size, ranges) = (content.copy, content.ranges.iter().take(RANGES_MAX));
            for (offset, len) in ranges.filter(|(offset, len)| *len <= HELD_BYTES_MAX && offset + len <= size) {
                let Some(file) = &file else { break };
                let mut bytes = vec![0; usize::try_from(*len).unwrap_or_default()];
                let read = read_up_to(file, &mut bytes, *offset).map_err(failed)?;
                content.held.push(((*offset, *len), Sha1::digest(&bytes[..read]).into()));
            }
            if content.ranges.is_empty() {
                seen.content = None;
            } else {
                seen.others.retain(|other| !matches!(other, Difference::Time { .. }));
            }
        }
        look.seen.retain(|_, seen| seen.content.is_some() || !seen.others.is_empty());
        Ok(look)
    }

    /// What has another name in the copy is extra under that, and missing under this; or something else is there.
    fn moves(&mut self) -> Result<(), Error> {
        for (to, from) in std::mem::take(&mut self.moved) {
            if to == from {
                continue;
            }
            self.gone.push(from);
            match self.kind(&to)? {
                Some(Kind::File) => {
                    let len = self.lens.get(&to).copied().unwrap_or(0).max(1);
                    self.seen(&to).content.get_or_insert_default().add(0, len);
                }
                Some(copy) => self.note(&to, Difference::Kind { original: Kind::File, copy }),
                None => self.note(&to, Difference::Missing),
            }
        }
        Ok(())
    }
}

/// Reads until the buffer is full or the file ends; returns how much.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Where these bytes, which begin at `offset`, are not the same.
fn differ(ours: &[u8], theirs: &[u8], offset: u64, differing: &mut Content) {
    const BLOCK: usize = 512;
    let blocks = ours.chunks(BLOCK).zip(theirs.chunks(BLOCK)).enumerate();
    for (number, (ours, theirs)) in blocks.filter(|(_, (ours, theirs))| ours != theirs) {
        let is_other = |at: &usize| ours[*at] != theirs[*at];
        let (Some(first), Some(last)) = ((0..ours.len()).find(is_other), (0..ours.len()).rfind(is_other)) else {
            continue;
        };
        let from = offset + (number * BLOCK + first) as u64;
        let end = from + (last - first + 1) as u64;
        match differing.ranges.last_mut() {
            Some((before, len)) if from - (*before + *len) < GAP_BYTES_MAX => *len = end - *before,
            _ => differing.add(from, end - from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> RelPath {
        RelPath::new(name).unwrap()
    }

    fn look(original: u64, copy: u64, ranges: &[(u64, u64)]) -> Look {
        let stamps = Some(Stamps { dev: 1, ino: 2, size: copy, mtime: 0, ctime: 0 });
        let held = ranges.iter().filter(|(offset, len)| offset + len <= copy).map(|range| (*range, [7; 20])).collect();
        let content = Some(Content { original, copy, ranges: ranges.to_vec(), stamps, held });
        let seen = BTreeMap::from([(path("a"), Seen { others: Vec::new(), content })]);
        Look { files: 1, lens: HashMap::from_iter([(path("a"), copy)]), seen }
    }

    fn of(first: &Look, second: Look) -> Vec<Difference> {
        both_times(first, second).into_iter().map(|(_, difference)| difference).collect()
    }

    #[test]
    fn what_is_late_is_equal_and_what_stays_behind_is_not() {
        let late = || look(2000, 1000, &[(1000, 1000)]);
        assert_eq!(of(&late(), look(5000, 4000, &[(4000, 1000)])), [], "it grows, and is late");
        assert_eq!(of(&late(), look(4000, 5000, &[(4000, 1000)])), [], "the copy was looked at later");
        let behind = Difference::Content { original: 5000, copy: 1000, ranges: Vec::new() };
        assert_eq!(of(&late(), look(5000, 1000, &[(1000, 4000)])), [behind]);
        assert_eq!(of(&late(), look(2000, 2000, &[(10, 5)])), [Difference::Changing], "another place each time");
        let differs = Difference::Content { original: 3000, copy: 3000, ranges: vec![(12, 3)] };
        assert_eq!(of(&look(3000, 3000, &[(10, 5)]), look(3000, 3000, &[(12, 9)])), [differs]);
        let differs = Difference::Content { original: 4000, copy: 4000, ranges: vec![(10, 5)] };
        assert_eq!(
            of(&look(3000, 3000, &[(10, 5)]), look(4000, 4000, &[(10, 5)])),
            [differs],
            "it grows, and is wrong"
        );
        let changed = |change: fn(&mut Content)| {
            let mut second = look(4000, 4000, &[(10, 5)]);
            second.seen.values_mut().filter_map(|seen| seen.content.as_mut()).for_each(change);
            of(&look(3000, 3000, &[(10, 5)]), second)
        };
        assert_eq!(changed(|now| now.held[0].1 = [8; 20]), [Difference::Changing], "it is written to there");
        assert_eq!(changed(|now| now.stamps.as_mut().unwrap().ino = 3), [Difference::Changing], "it is another file");
        let moves = look(3000, 1500, &[(1500, 1500)]);
        assert_eq!(of(&late(), moves), [Difference::Changing], "it comes, and is late for long");
        let equal = Look { lens: HashMap::from_iter([(path("a"), 1000)]), ..Look::default() };
        assert_eq!(of(&equal, look(2000, 1000, &[(1000, 1000)])), [], "it has grown since");
        assert_eq!(of(&equal, look(2000, 1000, &[(0, 1)])), [Difference::Changing]);
    }

    #[test]
    fn bytes_that_differ_are_told_as_ranges_with_the_few_between() {
        let (ours, mut theirs) = (vec![1; 20_000], vec![1; 20_000]);
        [3, 1000, 9000].iter().for_each(|at: &usize| theirs[*at] = 2);
        let mut content = Content::default();
        differ(&ours, &theirs, 100, &mut content);
        assert_eq!(content.ranges, [(103, 998), (9100, 1)]);
    }
}
