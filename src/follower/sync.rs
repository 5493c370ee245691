//! The full sync: two rounds of list, comparison, requests and content.
//!
//! Runs on the reader thread; no locks but the status'. Of a round, the whole list is read before anything else is done:
//! a leader that waits for its list to be taken must not wait for our hashing. What is local is hashed in round 1 only;
//! what is received is hashed as it comes. So round 2, during which a LavinMQ leader publishes nothing, compares from
//! memory.
//!
//! Folders and symbolic links are no content here, and stay as they are; but for empty folders, and for a link in the way of a file that is listed:
//! that one goes to what is kept.
//!
//! A file is received into the temporary file and renamed, so the old copy stays until the new one is whole. Its SHA-1
//! may differ from the listed one because the leader's file grew meanwhile: the second round tells.
//!
//! Before the first change the directory is claimed and, durably, marked as incomplete; the mark is taken away when both
//! rounds are on disk. Content is flushed as it comes, [`UNFLUSHED_BYTES_MAX`] at a time, so that no flush keeps a leader
//! waiting for long, neither in round 2 nor for the first acknowledgement. Large files, and all if they are few, are
//! flushed one by one: flushing the whole file system waits for everybody else's writes too. Only for many files that is
//! the faster way. That goes for what is hashed as well: the stream's appends need not be on disk yet.

use std::io::{self, BufRead, Read};

use sha1::{Digest, Sha1};

use super::ack::Outbox;
use super::connection::lost;
use super::contact::{Amount, Limit};
use super::dir::{Dir, Here, Inventory};
use super::items::FoundLinks;
use super::kept::Keeper;
use super::shared::Shared;
use super::status::{State, SyncProgress};
use crate::datadir::DataDir;
use crate::error::Error;
use crate::own_folder::is_incomplete;
use crate::protocol::extension::Item;
use crate::protocol::{
    LIST_FILES_MAX, LIST_NAME_BYTES_MAX, ListEntry, ProtocolError, Sha1Sum, read_file_size, read_list_entry,
};
use crate::sys::fs::File;
use crate::sys::hash::{HashMap, HashSet};
use crate::types::RelPath;
use crate::uncached;

/// Bytes received before they are made durable.
const UNFLUSHED_BYTES_MAX: u64 = 64 << 20;

/// At most so many hashed files, and files that a round changes, are made durable one by one.
const FLUSHED_SINGLY_FILES_MAX: usize = 256;

/// A file of at least so many bytes is always made durable by itself.
const FLUSHED_SINGLY_BYTES_MIN: u64 = 1 << 20;

/// Bytes of a local file read at once, to hash it.
const HASH_BUFFER_BYTES: usize = 256 << 10;

/// What a sync works with.
pub(super) struct Sync<'a, R> {
    pub(super) reader: &'a mut R,
    pub(super) dir: &'a Dir,
    keeper: Keeper<'a>,
    pub(super) outbox: &'a Outbox,
    pub(super) shared: &'a Shared,
    /// The SHA-1 of each file that is here.
    known: HashMap<RelPath, Sha1Sum>,
    /// The links that are here.
    links: FoundLinks,
    marked: bool,
    /// Whether all that is here is to be durable in the end, also if nothing had to change.
    durable: bool,
    /// Whether files are here that may not be durable and were not made so one by one.
    flush_all: bool,
    /// Whether the files at hand are made durable one by one.
    singly: bool,
    /// The folders in which that was done, and those above them: they have to follow.
    unflushed_folders: HashSet<String>,
    /// Bytes of files that are not made durable one by one.
    unflushed_bytes: u64,
}

impl<'a, R: BufRead> Sync<'a, R> {
    /// `flush`: whether all that is here is to be durable in the end, also if nothing has to change; and if so, whether
    /// anything may not be so now.
    pub(super) fn new(
        reader: &'a mut R,
        keeper: Keeper<'a>,
        (outbox, shared): (&'a Outbox, &'a Shared),
        flush: Option<bool>,
    ) -> Self {
        Self {
            reader,
            dir: keeper.dir,
            keeper,
            outbox,
            shared,
            known: HashMap::default(),
            links: FoundLinks::default(),
            marked: false,
            durable: flush.is_some(),
            flush_all: flush.unwrap_or_default(),
            singly: false,
            unflushed_folders: HashSet::default(),
            unflushed_bytes: 0,
        }
    }

    /// Both rounds. `data` is claimed, unless that would delete more than `limit` allows. Returns the links that are here. Blocks as long as the leader
    /// is silent.
    pub(super) fn run(mut self, data: &mut DataDir, limit: Limit) -> Result<FoundLinks, Error> {
        self.shared.update(|status| status.state = State::Waiting);
        let waiting = "while waiting for the leader's list (if each time: does the leader have the same id?)";
        let list = read_list(self.reader, self.shared, waiting)?;
        // From a sync that did not end: this one ends it.
        self.marked = is_incomplete(self.dir.path());
        self.flush_all |= self.marked;
        let (unlisted, folders) = self.compare_local(&list, data, limit)?;
        self.round(list, &unlisted, folders)?;

        let list = read_list(self.reader, self.shared, "while waiting for the leader's second list")?;
        let names: HashSet<&RelPath> = list.iter().map(|entry| &entry.path).collect();
        let unlisted: Vec<RelPath> = self.known.keys().filter(|path| !names.contains(path)).cloned().collect();
        drop(names);
        self.round(list, &unlisted, Vec::new())?;
        if self.marked {
            self.dir.clear_incomplete()?;
        }
        self.keeper.report();
        Ok(self.links)
    }

    /// Claims the directory and hashes the local files that are listed. Returns those that are not, and all folders.
    fn compare_local(
        &mut self,
        list: &[ListEntry],
        data: &mut DataDir,
        limit: Limit,
    ) -> Result<(Vec<RelPath>, Vec<RelPath>), Error> {
        let Inventory { files, items } = self.dir.inventory()?;
        self.links = FoundLinks::new(&items);
        let in_the_way: HashSet<_> = list.iter().filter_map(|entry| self.links.in_the_way_of(&entry.path)).collect();
        let no_bytes = || in_the_way.iter().map(|_| 0);
        let here = Amount::of(files.iter().map(|file| file.stamps.size).chain(no_bytes()));
        let listed: HashSet<&RelPath> = list.iter().map(|entry| &entry.path).collect();
        let (listed, unlisted): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| listed.contains(&file.path));
        if let Some(example) = unlisted.first().map(|file| &file.path).or(in_the_way.iter().next().copied()) {
            let gone = Amount::of(unlisted.iter().map(|file| file.stamps.size).chain(no_bytes()));
            limit.check(data.path(), gone, example, here)?;
        }
        drop(in_the_way);
        let paths = |files: Vec<Here>| files.into_iter().map(|file| file.path).collect::<Vec<_>>();
        let is_folder = |item: &Item| matches!(item, Item::Folder(_));
        let folders = items.into_iter().filter(|(_, item)| is_folder(item)).map(|(path, _)| path).collect();
        let (listed, unlisted) = (paths(listed), paths(unlisted));
        self.shared.leave_place();
        data.follow(None)?;
        data.claim()?;
        self.singly = listed.len() <= FLUSHED_SINGLY_FILES_MAX;
        self.flush_all |= !self.singly;
        let mut buffer = vec![0; HASH_BUFFER_BYTES];
        for path in listed {
            let sha1 = self.dir.hash(&path, &mut buffer, self.singly, &|| !self.shared.stopping())?;
            self.note_folders(&path);
            self.known.extend(sha1.map(|sha1| (path, sha1)));
            self.shared.update(|status| status.sync.files_hashed += 1);
        }
        Ok((unlisted, folders))
    }

    /// Deletes what is not listed, requests what is missing or differs, and receives it.
    fn round(&mut self, list: Vec<ListEntry>, unlisted: &[RelPath], mut folders: Vec<RelPath>) -> Result<(), Error> {
        let differs = |entry: &ListEntry| self.known.get(&entry.path) != Some(&entry.sha1);
        let wanted: Vec<RelPath> = list.into_iter().filter(differs).map(|entry| entry.path).collect();
        let changes = unlisted.len() + wanted.len();
        if changes > 0 && !self.marked {
            self.dir.mark_incomplete()?;
            self.marked = true;
        }
        self.singly = changes <= FLUSHED_SINGLY_FILES_MAX;
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
            if self.keeper.take(path) || self.dir.remove(path)? {
                self.dir.remove_emptied(path);
                log::debug!("deleted {path}, which the leader does not have");
                self.note_folders(path);
                self.shared.update(|status| status.sync.files_deleted += 1);
            }
        }
        Ok(())
    }

    fn receive(&mut self, path: RelPath) -> Result<(), Error> {
        let length = read_file_size(self.reader).map_err(|error| gone(&path, error))?;
        if let Some(link) = self.links.clear(self.dir, Some(&mut self.keeper), &path)? {
            self.note_folders(&link);
        }
        let mut staged = self.dir.stage(&path)?;
        let sha1 = self.receive_content(&path, &mut staged.file, length)?;
        self.keeper.link(&path);
        self.dir.place(staged, &path)?;
        self.note_folders(&path);
        self.known.insert(path, sha1);
        self.shared.update(|status| status.sync.files_received += 1);
        Ok(())
    }

    fn receive_content(&mut self, path: &RelPath, file: &mut File, length: u64) -> Result<Sha1Sum, Error> {
        let flush = |file: &File| self.dir.flush_file(path.as_str(), file);
        let singly = self.singly || length >= FLUSHED_SINGLY_BYTES_MIN;
        let (mut remaining, mut unflushed) = (length, 0);
        let mut sha1 = Sha1::new();
        self.shared.update(|status| status.sync.bytes_remaining_in_file = length);
        while remaining > 0 {
            let block = self.reader.fill_buf().map_err(|error| gone(path, error.into()))?;
            if block.is_empty() {
                return Err(gone(path, io::Error::from(io::ErrorKind::UnexpectedEof).into()));
            }
            let block = &block[..usize::try_from(remaining).unwrap_or(usize::MAX).min(block.len())];
            uncached::append(file, block).map_err(|error| self.dir.failed("write", path.as_str(), error))?;
            sha1.update(block);
            let taken = block.len();
            self.reader.consume(taken);
            remaining -= taken as u64;
            unflushed += taken as u64;
            self.shared.update(|status| {
                status.sync.bytes_received += taken as u64;
                status.sync.bytes_remaining_in_file = remaining;
            });
            if singly && unflushed >= UNFLUSHED_BYTES_MAX {
                flush(file)?;
                unflushed = 0;
            }
        }
        if singly {
            flush(file)?;
        } else {
            self.unflushed_bytes += unflushed;
            if self.unflushed_bytes >= UNFLUSHED_BYTES_MAX {
                self.dir.flush()?;
                self.unflushed_bytes = 0;
            }
        }
        Ok(sha1.finalize().into())
    }

    /// A file was put into, or taken out of, its folder; folders may have been made, or removed, on the way.
    fn note_folders(&mut self, path: &RelPath) {
        let mut above = path.as_str();
        while self.singly {
            let Some((folder, _)) = above.rsplit_once('/') else { return };
            above = folder;
            if !self.unflushed_folders.contains(folder) {
                self.unflushed_folders.insert(folder.to_owned());
            }
        }
    }

    /// Makes a round durable, and what was here before it, unless nothing has changed so far and nobody counts on it.
    fn flush(&mut self) -> Result<(), Error> {
        if !self.marked && !self.durable {
            return Ok(());
        }
        if self.flush_all || !self.singly || self.keeper.count() > 0 {
            self.dir.flush()?;
        } else {
            self.dir.flush_folders(self.unflushed_folders.iter().map(String::as_str))?;
        }
        self.flush_all = false;
        self.unflushed_folders.clear();
        self.unflushed_bytes = 0;
        Ok(())
    }
}

fn gone(path: &RelPath, error: ProtocolError) -> Error {
    lost(format_args!("while receiving {path}"), error)
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
    let (mut list, mut listed) = (Vec::new(), HashSet::<RelPath>::default());
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
