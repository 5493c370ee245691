//! What the host did to its files, and what was confirmed: outside of all processes, so that it outlives them.
//!
//! The same is looked at over and over: what a file held that has not changed since is kept ([`Looked`], [`Kept`]).
//!
//! Its locks are taken between two scheduling points only, so none of its users is ever killed with one held.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Contents by name.
pub(crate) type Tree = BTreeMap<String, Vec<u8>>;

/// Shows each file: its name, what tells one content from another, and the content.
pub(crate) type See<'a> = dyn FnMut(&str, u64, &[u8]) + 'a;

/// The names in a copy when it was last looked at: which content, and in which incarnation it was for certain.
pub(crate) type Looked = BTreeMap<String, (u64, u64)>;

/// What was confirmed and is in a durable copy, by which content it is in.
#[derive(Default)]
pub(crate) struct Kept {
    files: BTreeMap<(String, u64), Held>,
    /// How much of what was confirmed was there then.
    confirmed: usize,
}

enum Held {
    Records(BTreeSet<Vec<u8>>),
    State(u64),
    Pages(Vec<u8>),
}

/// Pages of a file that is written to in place stand so far apart, with a hole between them.
pub(crate) const PAGE_STRIDE: u64 = 40_000;
pub(crate) const PAGE_BYTES: u64 = 512;
pub(crate) const PAGES_MAX: usize = 16;

/// The part of a file that is a page.
fn page(content: &[u8], number: usize) -> Option<&[u8]> {
    let at = number * usize::try_from(PAGE_STRIDE).expect("small");
    content.get(at..at + usize::try_from(PAGE_BYTES).expect("small"))
}

#[derive(Default)]
pub(crate) struct Model(Mutex<State>);

#[derive(Default)]
struct State {
    files: BTreeMap<String, File>,
    /// Of files of pages: the highest number that was ever written to each page.
    pages: BTreeMap<String, Vec<u8>>,
    terms: usize,
    confirmed: Vec<Confirmed>,
    appends: u64,
    commits: u64,
}

/// The time in which one leader was open. Two may overlap: the one of before does not know yet.
pub(crate) type Term = usize;

/// All that a name stood for, at any leader.
#[derive(Default)]
struct File {
    versions: Vec<Version>,
    /// What it stands for in each term: an index of `versions`.
    now: BTreeMap<Term, usize>,
    /// Rises each time the name ceases to exist, or another term begins.
    incarnation: u64,
}

/// A content that grew: each prefix of it that is at least as long as when it began was a state of the file.
struct Version {
    bytes: Vec<u8>,
    began: usize,
    incarnation: u64,
}

impl File {
    fn is_now(&mut self, term: Term, bytes: Vec<u8>, began: usize) {
        self.versions.push(Version { bytes, began, incarnation: self.incarnation });
        self.now.insert(term, self.versions.len() - 1);
    }

    fn is_gone(&mut self, term: Term) -> Option<&Version> {
        self.incarnation += 1;
        self.now.remove(&term).map(|at| &self.versions[at])
    }
}

/// Something that was confirmed as committed on all, durable.
#[derive(Clone)]
pub(crate) enum Confirmed {
    /// A record that is appended once and never taken away, only renamed with its file.
    Record(Vec<u8>),
    /// At least this state of a file that is only ever replaced by a later one.
    State { name: String, number: u64 },
    /// At least this number in all of a page.
    Page { name: String, page: usize, number: u8 },
}

impl std::fmt::Debug for Confirmed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Record(tag) => f.write_str(&String::from_utf8_lossy(tag)),
            Self::State { name, number } => write!(f, "{name}={number}"),
            Self::Page { name, page, number } => write!(f, "{name}:{page}={number}"),
        }
    }
}

impl Model {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A leader is open, and this is what its host finds.
    pub(crate) fn begin(&self, tree: &Tree) -> Term {
        let mut state = self.lock();
        state.terms += 1;
        let term = state.terms;
        for file in state.files.values_mut() {
            file.incarnation += 1;
        }
        for (name, bytes) in tree {
            state.files.entry(name.clone()).or_default().is_now(term, bytes.clone(), bytes.len());
        }
        term
    }

    /// The file grew, or came to be.
    pub(crate) fn appended(&self, term: Term, name: &str, bytes: &[u8]) {
        let mut state = self.lock();
        state.appends += 1;
        let file = state.files.entry(name.to_owned()).or_default();
        if !file.now.contains_key(&term) {
            file.is_now(term, Vec::new(), 0);
        }
        file.versions[file.now[&term]].bytes.extend_from_slice(bytes);
    }

    /// The name stands for another content.
    pub(crate) fn replaced(&self, term: Term, name: &str, bytes: Vec<u8>) {
        let began = bytes.len();
        self.lock().files.entry(name.to_owned()).or_default().is_now(term, bytes, began);
    }

    /// The next number of a page, which is about to be written; `None`: there are no more.
    pub(crate) fn next_page(&self, name: &str, page: usize) -> Option<u8> {
        let pages = &mut self.lock().pages;
        let pages = pages.entry(name.to_owned()).or_default();
        pages.resize(pages.len().max(page + 1), 0);
        pages[page] = pages[page].checked_add(1)?;
        Some(pages[page])
    }

    pub(crate) fn deleted(&self, term: Term, name: &str) {
        if let Some(file) = self.lock().files.get_mut(name) {
            file.is_gone(term);
        }
    }

    pub(crate) fn renamed(&self, term: Term, from: &str, to: &str) {
        let mut state = self.lock();
        let Some(old) = state.files.get_mut(from).and_then(|file| file.is_gone(term)) else { return };
        // What is still on the way at a copy may arrive under the new name, grown or not.
        let bytes = old.bytes.clone();
        state.files.entry(to.to_owned()).or_default().is_now(term, bytes, 0);
    }

    pub(crate) fn confirmed(&self, what: Vec<Confirmed>) {
        let mut state = self.lock();
        state.commits += 1;
        state.confirmed.extend(what);
    }

    pub(crate) fn counts(&self) -> (u64, u64) {
        let state = self.lock();
        (state.appends, state.commits)
    }

    /// What is wrong with a copy that may be behind, but never holds what never was (if it is to be `exact`), and lacks nothing that it
    /// had and that is there at the leader.
    pub(crate) fn check_states(
        &self,
        look: impl FnOnce(&mut See<'_>),
        exact: bool,
        looked: &mut Looked,
    ) -> Option<String> {
        let state = self.lock();
        let (mut now, mut wrong) = (Looked::new(), None);
        look(&mut |name, version, content| {
            let known = looked.get(name).filter(|(known, _)| *known == version).map(|(_, incarnation)| *incarnation);
            match known.map_or_else(|| state.incarnation(name, content), Ok) {
                Ok(incarnation) => drop(now.insert(name.to_owned(), (version, incarnation))),
                // Not known to be of any incarnation.
                Err(_) if !exact => drop(now.insert(name.to_owned(), (version, u64::MAX))),
                Err(error) => drop(wrong.get_or_insert(error)),
            }
        });
        let lost =
            looked.iter().find(|(name, (_, incarnation))| !now.contains_key(*name) && state.exists(name, *incarnation));
        if let (None, Some((name, _))) = (&wrong, lost) {
            wrong = Some(format!("{name} was in the copy, and exists at the leader, and is missing"));
        }
        *looked = now;
        wrong
    }

    /// What was confirmed and is not here.
    pub(crate) fn check_confirmed(&self, look: impl FnOnce(&mut See<'_>), kept: &mut Kept) -> Option<String> {
        let state = self.lock();
        let (mut files, mut is_new) = (BTreeMap::new(), kept.confirmed != state.confirmed.len());
        look(&mut |name, version, content| {
            let held = kept.files.remove(&(name.to_owned(), version)).or_else(|| {
                is_new = true;
                Held::of(name, content)
            });
            files.extend(held.map(|held| ((name.to_owned(), version), held)));
        });
        is_new |= !kept.files.is_empty();
        (kept.files, kept.confirmed) = (files, state.confirmed.len());
        if is_new { state.confirmed.iter().find_map(|confirmed| kept.lacks(confirmed)) } else { None }
    }
}

impl State {
    /// Whether it is there, and has been since that incarnation, at the leader of the last term: one of before may not know that it is none.
    fn exists(&self, name: &str, incarnation: u64) -> bool {
        self.files.get(name).is_some_and(|file| file.incarnation == incarnation && file.now.contains_key(&self.terms))
    }

    fn check_pages(&self, name: &str, content: &[u8]) -> Result<(), String> {
        let written = self.pages.get(name).map(Vec::as_slice).unwrap_or_default();
        let stride = usize::try_from(PAGE_STRIDE).expect("small");
        for (number, page) in content.chunks(stride).enumerate() {
            let (page, hole) = page.split_at(page.len().min(usize::try_from(PAGE_BYTES).expect("small")));
            let most = written.get(number).copied().unwrap_or(0);
            if let Some(byte) = page.iter().find(|byte| **byte > most).or(hole.iter().find(|byte| **byte > 0)) {
                return Err(format!("{name} has {byte} at page {number}, where {most} was written last"));
            }
        }
        Ok(())
    }

    /// The first incarnation in which the name stood for this.
    fn incarnation(&self, name: &str, content: &[u8]) -> Result<u64, String> {
        if name.ends_with("/pages") {
            // Any mixture of what was written; it is there for good.
            return self.check_pages(name, content).map(|()| 0);
        }
        let Some(file) = self.files.get(name) else { return Err(format!("{name} never was at the leader")) };
        let was = file.versions.iter().find(|version| version.was(content));
        was.map(|version| version.incarnation).ok_or_else(|| {
            let len = content.len();
            let near: Vec<_> = file.versions.iter().rev().take(3).map(|near| differs(&near.bytes, content)).collect();
            format!("{name} has {len} bytes that it never had at the leader ({})", near.join("; "))
        })
    }
}

impl Held {
    fn of(name: &str, content: &[u8]) -> Option<Self> {
        if name.contains("/log") {
            return Some(Self::Records(records(content).into_iter().map(<[u8]>::to_vec).collect()));
        }
        if name.ends_with("/pages") {
            return Some(Self::Pages(content.to_vec()));
        }
        name.ends_with("/state").then(|| Self::State(state_number(content)))
    }
}

impl Kept {
    fn lacks(&self, confirmed: &Confirmed) -> Option<String> {
        match confirmed {
            Confirmed::Record(tag) => {
                let is_in = |held: &Held| matches!(held, Held::Records(tags) if tags.contains(tag));
                let found = self.files.values().any(is_in);
                (!found).then(|| format!("record {} is missing", String::from_utf8_lossy(tag)))
            }
            Confirmed::Page { name, page: at, number } => {
                let held = self.files.iter().find_map(|((of, _), held)| match held {
                    Held::Pages(content) if of == name => Some(content),
                    _ => None,
                });
                let found = held.and_then(|content| page(content, *at));
                let is_there = found.is_some_and(|page| page.iter().all(|byte| byte >= number));
                let least = found.and_then(|page| page.iter().min());
                (!is_there).then(|| format!("{name}:{at} is at {least:?}, and {number} was confirmed"))
            }
            Confirmed::State { name, number } => {
                let is = self.files.iter().find_map(|((of, _), held)| match held {
                    Held::State(is) if of == name => Some(*is),
                    _ => None,
                });
                let found = is.is_some_and(|is| is >= *number);
                (!found).then(|| format!("{name} is at {is:?}, and {number} was confirmed"))
            }
        }
    }
}

impl Version {
    fn was(&self, content: &[u8]) -> bool {
        content.len() >= self.began && self.bytes.starts_with(content)
    }
}

/// How two contents differ, in a few words.
pub(crate) fn differs(expected: &[u8], found: &[u8]) -> String {
    let at = expected.iter().zip(found).position(|(a, b)| a != b);
    match at {
        Some(at) => format!("differs from {} bytes at {at}", expected.len()),
        None => format!("{} of {} bytes", found.len(), expected.len()),
    }
}

/// The bytes of a record before its payload: `[tag]`, of a fixed length.
pub(crate) const TAG_BYTES: usize = 18;

/// A record: its tag, the length of its payload, the payload.
pub(crate) fn record(tag: &[u8], payload: usize) -> Vec<u8> {
    assert_eq!(tag.len(), TAG_BYTES);
    let mut record = tag.to_vec();
    record.extend_from_slice(&u32::try_from(payload).expect("small").to_le_bytes());
    let fill = tag[TAG_BYTES - 2];
    record.resize(record.len() + payload, fill);
    record
}

pub(crate) fn tag(writer: usize, number: u64) -> Vec<u8> {
    format!("[w{writer:02}-{number:012}]").into_bytes()
}

/// The tags of the whole records in a log. Between them may be what a power cut left of others.
fn records(log: &[u8]) -> Vec<&[u8]> {
    let mut tags = Vec::new();
    let mut at = 0;
    while let Some(found) = log[at..].iter().position(|byte| *byte == b'[') {
        at += found;
        let is_whole = log[at..].split_at_checked(TAG_BYTES + 4).is_some_and(|(head, rest)| {
            let payload = u32::from_le_bytes(head[TAG_BYTES..].try_into().expect("four bytes")) as usize;
            let fill = head[TAG_BYTES - 2];
            head[TAG_BYTES - 1] == b']' && rest.get(..payload).is_some_and(|rest| rest.iter().all(|byte| *byte == fill))
        });
        if is_whole {
            tags.push(&log[at..at + TAG_BYTES]);
        }
        at += 1;
    }
    tags
}

/// The records in all logs of a folder.
pub(crate) fn records_in(tree: &Tree, folder: &str) -> Vec<Confirmed> {
    let logs = tree.iter().filter(|(name, _)| name.starts_with(&format!("{folder}/log")));
    logs.flat_map(|(_, content)| records(content)).map(|tag| Confirmed::Record(tag.to_vec())).collect()
}

/// A content of a file that is replaced: its number, and as many bytes as follow from that.
pub(crate) fn state(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(8 + len, number.to_le_bytes()[0]);
    bytes
}

fn state_number(content: &[u8]) -> u64 {
    content.first_chunk().map_or(0, |number| u64::from_le_bytes(*number))
}
