//! The full sync: two rounds of list, comparison, requests and content.
//!
//! Runs on the reader thread; no locks but the status'. Of a round, the whole list is read before anything else is done:
//! a leader that waits for its list to be taken must not wait for our hashing. What is local is hashed in round 1 only;
//! what is received is hashed as it comes. So round 2, during which a LavinMQ leader publishes nothing, compares from
//! memory.
//!
//! A file is received into the temporary file and renamed, so the old copy stays until the new one is whole. Its SHA-1
//! may differ from the listed one because the leader's file grew meanwhile: the second round tells.
//!
//! Before the first change the directory is claimed and, durably, marked as incomplete; the mark is taken away when both
//! rounds are on disk. In between everything is flushed every [`UNFLUSHED_BYTES_MAX`], so that no flush keeps a leader
//! waiting for long, neither in round 2 nor for the first acknowledgement.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Read, Write};

use foldhash::fast::RandomState;
use sha1::{Digest, Sha1};

use super::ack::Outbox;
use super::connection::lost;
use super::dir::Dir;
use super::shared::Shared;
use super::status::{State, SyncProgress};
use crate::datadir::{self, DataDir};
use crate::error::Error;
use crate::protocol::{
    LIST_FILES_MAX, LIST_NAME_BYTES_MAX, ListEntry, ProtocolError, Sha1Sum, read_file_size, read_list_entry,
};
use crate::types::RelPath;

/// Bytes received before they are made durable.
const UNFLUSHED_BYTES_MAX: u64 = 64 << 20;

/// Bytes of a local file read at once, to hash it.
const HASH_BUFFER_BYTES: usize = 256 << 10;

/// What a sync works with.
pub(super) struct Sync<'a, R> {
    pub(super) reader: &'a mut R,
    pub(super) dir: &'a Dir,
    pub(super) outbox: &'a Outbox,
    pub(super) shared: &'a Shared,
    /// The SHA-1 of each file that is here.
    known: HashMap<RelPath, Sha1Sum, RandomState>,
    marked: bool,
    unflushed_bytes: u64,
}

impl<'a, R: BufRead> Sync<'a, R> {
    pub(super) fn new(reader: &'a mut R, dir: &'a Dir, outbox: &'a Outbox, shared: &'a Shared) -> Self {
        Self { reader, dir, outbox, shared, known: HashMap::default(), marked: false, unflushed_bytes: 0 }
    }

    /// Both rounds. `claim` makes the directory this node's own, and `adopt` allows that for one with foreign files.
    pub(super) fn run(mut self, data: &mut DataDir, adopt: bool) -> Result<(), Error> {
        self.shared.update(|status| status.state = State::Waiting);
        let waiting = "while waiting for the leader's list (if each time: does the leader have the same id?)";
        let list = read_list(self.reader, self.shared, waiting)?;
        // From a sync that did not end: this one ends it.
        self.marked = datadir::is_incomplete(self.dir.path());
        let (unlisted, folders) = self.compare_local(&list, data, adopt)?;
        self.round(list, &unlisted, folders)?;

        let list = read_list(self.reader, self.shared, "while waiting for the leader's second list")?;
        let names: HashSet<&RelPath, RandomState> = list.iter().map(|entry| &entry.path).collect();
        let unlisted: Vec<RelPath> = self.known.keys().filter(|path| !names.contains(path)).cloned().collect();
        drop(names);
        self.round(list, &unlisted, Vec::new())?;
        if self.marked {
            self.dir.clear_incomplete()?;
        }
        Ok(())
    }

    /// Claims the directory and hashes the local files that are listed. Returns those that are not, and all folders.
    fn compare_local(
        &mut self,
        list: &[ListEntry],
        data: &mut DataDir,
        adopt: bool,
    ) -> Result<(Vec<RelPath>, Vec<RelPath>), Error> {
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        datadir::walk(self.dir.path(), None, &mut |folder| folders.extend(folder.cloned()), &mut |file| {
            files.push(file.path);
        })?;
        let listed: HashSet<&RelPath, RandomState> = list.iter().map(|entry| &entry.path).collect();
        let (listed, unlisted): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| listed.contains(path));
        if let Some(example) = unlisted.first()
            && !(data.is_claimed() || adopt)
        {
            let dir = data.path().to_owned();
            return Err(Error::ForeignDirectory { dir, count: unlisted.len(), example: example.clone() });
        }
        data.claim()?;
        let mut buffer = vec![0; HASH_BUFFER_BYTES];
        for path in listed {
            let sha1 = self.dir.hash(&path, &mut buffer, &|| !self.shared.stopping())?;
            self.known.extend(sha1.map(|sha1| (path, sha1)));
            self.shared.update(|status| status.sync.files_hashed += 1);
        }
        Ok((unlisted, folders))
    }

    /// Deletes what is not listed, requests what is missing or differs, and receives it.
    fn round(&mut self, list: Vec<ListEntry>, unlisted: &[RelPath], mut folders: Vec<RelPath>) -> Result<(), Error> {
        let differs = |entry: &ListEntry| self.known.get(&entry.path) != Some(&entry.sha1);
        let wanted: Vec<RelPath> = list.into_iter().filter(differs).map(|entry| entry.path).collect();
        if !(unlisted.is_empty() && wanted.is_empty()) {
            self.mark()?;
        }
        self.delete(unlisted)?;
        // Empty folders are no content, and one may be in the place of a file. Those within others come first.
        folders.sort_unstable_by(|a, b| b.cmp(a));
        for folder in folders {
            self.dir.remove_folder(folder.as_str());
        }
        self.shared.update(|status| status.sync.files_requested += wanted.len() as u64);
        self.outbox.request(wanted.clone());
        for path in wanted {
            self.receive(path)?;
        }
        self.flush()
    }

    fn delete(&mut self, unlisted: &[RelPath]) -> Result<(), Error> {
        for path in unlisted {
            self.shared.check()?;
            self.known.remove(path);
            if self.dir.remove(path)? {
                log::debug!("deleted {path}, which the leader does not have");
                self.shared.update(|status| status.sync.files_deleted += 1);
            }
        }
        Ok(())
    }

    fn mark(&mut self) -> Result<(), Error> {
        if !self.marked {
            self.dir.mark_incomplete()?;
            self.marked = true;
        }
        Ok(())
    }

    fn receive(&mut self, path: RelPath) -> Result<(), Error> {
        let gone = |error| lost(format_args!("while receiving {path}"), error);
        let mut remaining = read_file_size(self.reader).map_err(gone)?;
        self.shared.update(|status| status.sync.bytes_remaining_in_file = remaining);
        let mut file = self.dir.create_temporary()?;
        let mut sha1 = Sha1::new();
        while remaining > 0 {
            let block = self.reader.fill_buf().map_err(|error| gone(error.into()))?;
            if block.is_empty() {
                return Err(gone(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
            }
            let length = usize::try_from(remaining).unwrap_or(usize::MAX).min(block.len());
            file.write_all(&block[..length]).map_err(|error| self.dir.failed("write", path.as_str(), error))?;
            sha1.update(&block[..length]);
            self.reader.consume(length);
            let length = length as u64;
            remaining -= length;
            self.shared.update(|status| {
                status.sync.bytes_received += length;
                status.sync.bytes_remaining_in_file = remaining;
            });
            self.unflushed_bytes += length;
            if self.unflushed_bytes >= UNFLUSHED_BYTES_MAX {
                self.flush()?;
            }
        }
        self.dir.place_temporary(&path)?;
        self.known.insert(path, sha1.finalize().into());
        self.shared.update(|status| status.sync.files_received += 1);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.unflushed_bytes = 0;
        if self.marked { self.dir.flush() } else { Ok(()) }
    }
}

/// Reads a list, and says in the status that the sync has begun.
fn read_list(reader: &mut impl Read, shared: &Shared, waiting: &'static str) -> Result<Vec<ListEntry>, Error> {
    let list = read_list_within(reader, waiting, LIST_FILES_MAX, LIST_NAME_BYTES_MAX)?;
    shared.update(|status| {
        if status.state == State::Waiting {
            status.state = State::Syncing;
            status.sync = SyncProgress::default();
        }
        status.sync.files_listed = list.len() as u64;
    });
    Ok(list)
}

/// Reads a list; reserved names are left out: they are neither asked for nor deleted. They count like all others, so that
/// no leader keeps us reading for ever.
fn read_list_within(
    reader: &mut impl Read,
    waiting: &'static str,
    files_max: usize,
    name_bytes_max: u64,
) -> Result<Vec<ListEntry>, Error> {
    let (mut list, mut listed) = (Vec::new(), HashSet::<RelPath, RandomState>::default());
    let (mut files, mut name_bytes) = (0, 0);
    let mut when = waiting;
    while let Some(entry) = read_list_entry(reader).map_err(|error| lost(when, error))? {
        when = "while reading the leader's list";
        files += 1;
        if files > files_max {
            return Err(ProtocolError::ListTooLong.into());
        }
        name_bytes += entry.path.as_str().len() as u64;
        if name_bytes > name_bytes_max {
            return Err(ProtocolError::ListNamesTooLong.into());
        }
        if entry.path.is_reserved() {
            log::debug!("the leader lists {}, which is never replicated: ignored", entry.path);
            continue;
        }
        if !listed.insert(entry.path.clone()) {
            return Err(ProtocolError::ListedTwice(entry.path.to_string()).into());
        }
        list.push(entry);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{write_end, write_list_entry};

    #[test]
    fn a_list_has_bounds_and_names_a_file_once() {
        let read = |names: &[&str], files_max, name_bytes_max| {
            let mut wire = Vec::new();
            for name in names {
                write_list_entry(&mut wire, &RelPath::new(name).unwrap(), &[0; 20]).unwrap();
            }
            write_end(&mut wire).unwrap();
            read_list_within(&mut &wire[..], "", files_max, name_bytes_max)
        };
        let protocol = |list: Result<_, _>| match list {
            Err(Error::Protocol(error)) => error,
            other => panic!("{other:?}"),
        };
        assert_eq!(read(&["a", "bb", ".lock"], 3, 8).unwrap().len(), 2);
        assert!(matches!(protocol(read(&["a", "b", ".lock"], 2, 9)), ProtocolError::ListTooLong));
        assert!(matches!(protocol(read(&["a", "bb"], 3, 2)), ProtocolError::ListNamesTooLong));
        assert!(matches!(protocol(read(&["a", "b", "a"], 9, 9)), ProtocolError::ListedTwice(_)));
    }
}
