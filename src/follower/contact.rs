//! Whether a leader may change this directory: what is asked before its first change on a connection.
//!
//! A wrong leader (another cluster's, one on an empty folder where its disk should be mounted, one on a volume just made) looks like any
//! other, and its list says: delete everything. What tells it from the right one is the data set id, which a directory gets when
//! it first leads and which each copy takes over, durably, before the leader's first change:
//!
//! | this directory | the leader | |
//! |---|---|---|
//! | has an id | has the same | is trusted: a role swap, a fail-over, a queue that was drained while we were away need no flag |
//! | has an id | has another | is refused, whatever is in `.clustering_id`, unless a person gave up *that* id (`--adopt=ID`), or there is no file here |
//! | has an id | says none (1.0.0) | is *unproven*; the id stays |
//! | no id, but a node's (`.clustering_id`) | any | is unproven. So are copies made before there were ids, and directories of LavinMQ, which shares its leadership with nodes of ours: they must be able to follow without a word from a person, and nothing in them says what they are |
//! | no id, nobody's | any | may complete it, and delete nothing of it, unless a person gave it up (`--adopt`) |
//!
//! An *unproven* leader meets the brake: a sync that would leave less than a tenth of the files and of the bytes that are here stops
//! before anything was touched. Both, because compaction and rewriting leave few files or few bytes, but seldom few of both. What is
//! kept counts by name: a log that has grown is not the same content, and yet not lost. A false alarm waits and says what to do;
//! a miss cannot be undone. With 1.0.0 the first list tells before anything is done (what is missing in the second one went while
//! the leader was at work, as in the stream). With the extension the leader deletes first, so
//! deletes are held back until something else comes, and counted on from there. So are removals of folders and links; a link
//! counts as a file without bytes, a folder as nothing.
//!
//! No threads, no locks.

use std::path::Path;

use crate::config::{Adopt, FollowerConfig};
use crate::datadir::{self, DataDir};
use crate::error::Error;
use crate::protocol::{LIST_FILES_MAX, ProtocolError};
use crate::sys::hash::HashMap;
use crate::types::{DataSetId, RelPath};

/// What a leader may do here; see the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Whatever it says.
    Trusted,
    /// Not leave almost nothing.
    Unproven,
    /// Delete nothing: the directory is nobody's.
    Guest,
}

/// What of the directory's id a leader is told: nothing, if this directory would follow one that has another.
pub(super) fn id_to_tell(data: &DataDir, adopt: Adopt) -> Result<Option<DataSetId>, Error> {
    match data.data_set() {
        Some(ours) if adopt != Adopt::DataSet(ours) && datadir::holds_files(data.root())? => Ok(Some(ours)),
        _ => Ok(None),
    }
}

/// How a leader of this data set stands to the directory. An error: it is refused.
pub(super) fn standing(data: &DataDir, config: &FollowerConfig, theirs: Option<DataSetId>) -> Result<Standing, Error> {
    match (data.data_set(), theirs) {
        (Some(ours), Some(theirs)) if ours != theirs && id_to_tell(data, config.adopt)?.is_some() => {
            Err(Error::OtherDataSet { dir: data.path().to_owned(), ours, theirs })
        }
        (Some(_), Some(_)) => Ok(Standing::Trusted),
        (None, None) if data.is_claimed() => Ok(Standing::Unproven),
        (None, _) if config.adopt == Adopt::Nobodys => Ok(Standing::Trusted),
        (None, _) if !data.is_claimed() => Ok(Standing::Guest),
        _ => Ok(Standing::Unproven),
    }
}

/// Files, and bytes in them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Amount {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

impl Amount {
    pub(super) fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }

    pub(super) fn of(lens: impl Iterator<Item = u64>) -> Self {
        let mut amount = Self::default();
        lens.for_each(|len| amount.add(len));
        amount
    }
}

/// What a leader of some standing may take away.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) standing: Standing,
    /// Of an unproven leader: the share of what is here; see [`FollowerConfig::max_delete`].
    pub(super) max_delete: f64,
}

impl Limit {
    /// Refuses to delete `gone`, of which `example` is one, out of `here`. Nothing must have been touched yet.
    pub(super) fn check(self, dir: &Path, gone: Amount, example: &RelPath, here: Amount) -> Result<(), Error> {
        let dir = dir.to_owned();
        // Exact enough: beyond 2^53 bytes nobody counts them.
        let too_many = |gone: u64, here: u64| here == 0 || gone as f64 > self.max_delete * here as f64;
        match self.standing {
            Standing::Guest if gone.files > 0 => {
                let count = usize::try_from(gone.files).unwrap_or(usize::MAX);
                Err(Error::ForeignDirectory { dir, count, example: example.clone() })
            }
            Standing::Unproven
                if gone.files > 0 && too_many(gone.files, here.files) && too_many(gone.bytes, here.bytes) =>
            {
                Err(Error::TooManyDeletes {
                    dir,
                    files: (gone.files, here.files),
                    bytes: (gone.bytes, here.bytes),
                    example: example.clone(),
                })
            }
            _ => Ok(()),
        }
    }
}

/// The first sync of a leader of the extension that is not trusted.
pub(super) struct Contact {
    limit: Limit,
    /// Files and links that were here before and that the leader has not shown to have as well, with their lengths.
    here: HashMap<RelPath, u64>,
    all: Amount,
    gone: Amount,
    /// What it said to delete and is still here.
    held_back: Vec<HeldBack>,
    begun: bool,
}

/// A delete that waits.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeldBack {
    /// Of a file.
    File(RelPath),
    /// Of a folder or a link.
    Item(RelPath),
}

/// What is done with a file, or a link.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It gets content, another length, or attributes.
    Content,
    /// It gets another name: of a directory that is nobody's this takes a file away, as a delete does.
    RenameAway,
    Delete,
}

impl Contact {
    pub(super) fn new(limit: Limit, here: Vec<(RelPath, u64)>) -> Self {
        let all = Amount::of(here.iter().map(|(_, len)| *len));
        let here = here.into_iter().collect();
        Self { limit, here, all, gone: Amount::default(), held_back: Vec::new(), begun: false }
    }

    /// Whether anything was changed.
    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    /// A delete before anything else was changed: it waits. (Of what is not here nothing is to be done.)
    pub(super) fn hold_back(&mut self, dir: &Path, path: RelPath) -> Result<(), Error> {
        if let Some(len) = self.here.remove(&path) {
            self.gone.add(len);
            if self.limit.standing == Standing::Guest {
                // Enough is known.
                self.limit.check(dir, self.gone, &path, self.all)?;
            }
            self.held_back.push(HeldBack::File(path));
        }
        Ok(())
    }

    /// The same of a folder or a link.
    pub(super) fn hold_back_item(&mut self, dir: &Path, path: RelPath) -> Result<(), Error> {
        self.changes(dir, &path, Change::Delete)?;
        if self.held_back.len() >= LIST_FILES_MAX {
            return Err(ProtocolError::ListTooLong.into());
        }
        self.held_back.push(HeldBack::Item(path));
        Ok(())
    }

    pub(super) fn holds_back(&self) -> bool {
        !self.held_back.is_empty()
    }

    /// Something is about to be changed, for the first time. Returns what is to be deleted before.
    pub(super) fn begin(&mut self, dir: &Path) -> Result<Vec<HeldBack>, Error> {
        if let Some(HeldBack::File(example) | HeldBack::Item(example)) = self.held_back.first() {
            self.limit.check(dir, self.gone, example, self.all)?;
        }
        self.begun = true;
        Ok(std::mem::take(&mut self.held_back))
    }

    /// A file is about to be changed; the first time, before [`begin`](Self::begin).
    pub(super) fn changes(&mut self, dir: &Path, path: &RelPath, change: Change) -> Result<(), Error> {
        let Some(len) = self.here.remove(path) else { return Ok(()) };
        let takes_away = match change {
            Change::Content => false,
            Change::RenameAway => self.limit.standing == Standing::Guest,
            Change::Delete => true,
        };
        if takes_away {
            self.gone.add(len);
            self.limit.check(dir, self.gone, path, self.all)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> RelPath {
        RelPath::new(name).unwrap()
    }

    fn allows(standing: Standing, max_delete: f64, gone: (u64, u64), here: (u64, u64)) -> bool {
        let amount = |(files, bytes)| Amount { files, bytes };
        Limit { standing, max_delete }.check(Path::new("/d"), amount(gone), &path("a"), amount(here)).is_ok()
    }

    #[test]
    fn the_brake_stops_what_leaves_under_a_tenth_of_files_and_of_bytes() {
        let unproven = |gone, here| allows(Standing::Unproven, 0.9, gone, here);
        assert!(unproven((0, 0), (0, 0)) && unproven((0, 0), (10, 100)));
        assert!(unproven((9, 90), (10, 100)), "a tenth is left");
        assert!(!unproven((10, 100), (10, 100)) && !unproven((1, 5), (1, 5)) && !unproven((91, 91), (100, 100)));
        assert!(unproven((99, 500), (100, 1000)), "one large file is left");
        assert!(unproven((50, 999), (100, 1000)), "many small files are left");
        assert!(!unproven((20, 0), (20, 0)), "empty files are files");
        assert!(allows(Standing::Unproven, 1.0, (10, 100), (10, 100)));
        assert!(!allows(Standing::Unproven, 0.0, (1, 1), (10, 100)));
        assert!(allows(Standing::Trusted, 0.9, (10, 100), (10, 100)));
        assert!(!allows(Standing::Guest, 1.0, (1, 1), (10, 100)));
    }

    #[test]
    fn deletes_wait_until_the_first_other_change_and_count_on_from_there() {
        let limit = Limit { standing: Standing::Unproven, max_delete: 0.5 };
        let here: Vec<_> = ["a", "b", "c", "d"].map(|name| (path(name), 10)).to_vec();
        let mut contact = Contact::new(limit, here);
        let dir = Path::new("/d");
        for name in ["a", "a", "not-here", "b"] {
            contact.hold_back(dir, path(name)).unwrap();
        }
        assert!(contact.holds_back() && !contact.begun());
        contact.hold_back_item(dir, path("folder")).unwrap();
        let held_back = [HeldBack::File(path("a")), HeldBack::File(path("b")), HeldBack::Item(path("folder"))];
        assert_eq!(contact.begin(dir).unwrap(), held_back);
        contact.changes(dir, &path("made"), Change::Delete).unwrap();
        contact.changes(dir, &path("c"), Change::Content).unwrap();
        contact.changes(dir, &path("c"), Change::Delete).unwrap();
        assert!(matches!(contact.changes(dir, &path("d"), Change::Delete), Err(Error::TooManyDeletes { .. })));
    }
}
