//! The file systems that are mounted below a data directory: what has to be synced besides its own.
//!
//! `syncfs` covers one file system, and files may be on several. Which they are is read from `/proc/self/mountinfo` each time all
//! of them are synced; a change of that table also shows in a `poll`, so that it can be looked for often. A handle of each is kept
//! for as long as it is mounted: `syncfs` tells of the failures since its handle was opened. (It also keeps the file system from
//! being unmounted, other than lazily, while somebody relies on it.) Subvolumes of btrfs need none of this: they are not in the
//! table, and are synced together.
//!
//! The table is read through a descriptor that is open from the beginning: that takes none that might not be to be had.
//!
//! One lock, a leaf, around what is known; nothing is read or opened under it. Where there is no `/proc` only the directory's own
//! file system is known.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::fd::{AsFd, BorrowedFd, OwnedFd};
use crate::sys::fs::{self, File, FileExt};
use crate::sys::hash::HashSet;
use crate::sys::rustix;
use crate::sys::rustix::event::{PollFd, PollFlags, Timespec, poll};
use crate::sys::rustix::fs::{FileType, Mode, OFlags};
use crate::sys::rustix::io::Errno;
use crate::sys::sync::Mutex;
use crate::types::RelPath;

const TABLE: &str = "/proc/self/mountinfo";

/// So often the table is read in a row, while it changes.
const READS_MAX: usize = 8;

/// At most so many file systems below a directory: each takes a handle.
const FILE_SYSTEMS_MAX: usize = 256;

/// What is mounted somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) id: u64,
    pub(crate) device: String,
    /// Which folder of it; escaped as in the table.
    pub(crate) part: String,
}

impl Mount {
    /// Whether the same is to be found there, though perhaps by another mount.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.device, &self.part) == (&other.device, &other.part)
    }
}

/// The table of all mounts.
#[derive(Debug)]
pub(crate) struct Table {
    file: File,
    /// Since it was last read.
    changed: AtomicBool,
}

impl Table {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { file: File::open(TABLE)?, changed: AtomicBool::new(true) })
    }

    /// It is to be read again, whatever it says itself.
    pub(crate) fn has_changed(&self) {
        self.changed.store(true, Ordering::Release);
    }

    /// What is mounted below `root`, by place; `None`: that has not changed since it was last read. One caller at a time.
    pub(crate) fn read(&self, root: &Path) -> io::Result<Option<BTreeMap<PathBuf, Mount>>> {
        let mut found = None;
        // One that changes while it is read may come out with a mount missing.
        for _ in 0..READS_MAX {
            let mut changed = [PollFd::new(&self.file, PollFlags::PRI)];
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            let is_new = poll(&mut changed, Some(&at_once))? > 0;
            if !self.changed.swap(false, Ordering::AcqRel) && !is_new {
                return Ok(found);
            }
            let text = self.text().inspect_err(|_| self.has_changed())?;
            found = Some(parse(&text, root));
        }
        self.has_changed();
        Err(io::Error::other(format!("{TABLE} changes all the time")))
    }

    fn text(&self) -> io::Result<Vec<u8>> {
        let mut text = vec![0; 16 << 10];
        let mut len = 0;
        loop {
            match self.file.read_at(&mut text[len..], len as u64)? {
                0 => break,
                read => len += read,
            }
            if len == text.len() {
                text.resize(2 * len, 0);
            }
        }
        text.truncate(len);
        Ok(text)
    }
}

impl AsFd for Table {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What is mounted below one directory.
#[derive(Debug)]
pub(crate) struct Mounts {
    /// The directory, without links on the way.
    root: PathBuf,
    /// The device it is on.
    own: String,
    table: Option<Table>,
    /// Held while the table is read and what it says is noted. Taken before `known`.
    reading: Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By place.
    mounted: BTreeMap<PathBuf, Mount>,
    /// A handle for each device but the directory's own.
    handles: BTreeMap<String, Arc<OwnedFd>>,
    /// Of devices that are not mounted any more, and not yet synced since.
    gone: Vec<Arc<OwnedFd>>,
    /// How often `mounted` has changed.
    changes: u64,
}

impl Mounts {
    pub(crate) fn below(root: &Path) -> Self {
        let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
        let stat = rustix::fs::stat(&root);
        let own = stat.map(|stat| format!("{}:{}", rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)));
        let table = Table::open();
        if let Err(error) = &table {
            log::warn!("cannot tell what is mounted below {}: {TABLE}: {error}", root.display());
        }
        Self {
            root,
            own: own.unwrap_or_default(),
            table: table.ok(),
            reading: Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// The places where something is mounted, relative to the directory.
    pub(crate) fn places(&self) -> Vec<RelPath> {
        self.known.lock().mounted.keys().filter_map(|place| relative(&self.root, place)).collect()
    }

    /// A number that is another one whenever something was mounted or unmounted below the directory. Cheap unless something was,
    /// anywhere.
    pub(crate) fn changes(&self) -> io::Result<u64> {
        self.refresh()?;
        Ok(self.known.lock().changes)
    }

    /// A handle of each file system below the directory, also of those that went since the last call. A failure says nothing about
    /// any of them: it is to be tried again.
    pub(crate) fn handles(&self) -> io::Result<Vec<Arc<OwnedFd>>> {
        self.refresh()?;
        let mut known = self.known.lock();
        let gone = std::mem::take(&mut known.gone);
        Ok(known.handles.values().cloned().chain(gone).collect())
    }

    /// Reads the table, if it has changed.
    pub(crate) fn refresh(&self) -> io::Result<()> {
        let Some(table) = &self.table else { return Ok(()) };
        let _one_at_a_time = self.reading.lock();
        match table.read(&self.root)? {
            Some(mounted) => self.note(mounted).inspect_err(|_| table.has_changed()),
            None => Ok(()),
        }
    }

    fn note(&self, mounted: BTreeMap<PathBuf, Mount>) -> io::Result<()> {
        let devices = mounted.values().map(|mount| &mount.device);
        let devices: HashSet<String> = devices.filter(|device| **device != self.own).cloned().collect();
        if devices.len() > FILE_SYSTEMS_MAX {
            return Err(io::Error::other(format!("more than {FILE_SYSTEMS_MAX} file systems are mounted below it")));
        }
        let new: Vec<(String, PathBuf)> = {
            let known = self.known.lock();
            if known.mounted == mounted {
                return Ok(());
            }
            let is_new = |device: &String| devices.contains(device) && !known.handles.contains_key(device);
            let new = mounted.iter().filter(|(_, mount)| is_new(&mount.device));
            new.map(|(place, mount)| (mount.device.clone(), place.clone())).collect()
        };
        let mut opened = BTreeMap::new();
        for (device, place) in new {
            if let Some(handle) = open(&place)? {
                opened.insert(device, Arc::new(handle));
            }
        }
        let mut known = self.known.lock();
        known.handles.extend(opened);
        let gone: Vec<String> = known.handles.keys().filter(|device| !devices.contains(*device)).cloned().collect();
        for device in gone {
            let handle = known.handles.remove(&device);
            known.gone.extend(handle);
        }
        known.mounted = mounted;
        known.changes += 1;
        Ok(())
    }
}

/// Opens what is mounted somewhere; `None` if it is nothing that holds replicated files, or has gone.
fn open(place: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let kind = rustix::fs::lstat(place).map(|stat| FileType::from_raw_mode(stat.st_mode));
    let opened = match kind {
        Ok(FileType::Directory | FileType::RegularFile) => rustix::fs::open(place, flags, Mode::empty()),
        Ok(_) => return Ok(None),
        Err(error) => Err(error),
    };
    match opened {
        Ok(handle) => Ok(Some(handle)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
        Err(error) => {
            let error = io::Error::from(error);
            Err(io::Error::new(error.kind(), format!("cannot open {}: {error}", place.display())))
        }
    }
}

/// The mounts below `root` that are not for reserved names, by place. Of several in one place the last one counts: it hides the
/// others.
pub(crate) fn parse(table: &[u8], root: &Path) -> BTreeMap<PathBuf, Mount> {
    let mut mounted = BTreeMap::new();
    for line in table.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let (id, device, part, place) = (fields.next(), fields.nth(1), fields.next(), fields.next());
        let (Some(id), Some(device), Some(part), Some(place)) = (id, device, part, place) else { continue };
        let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
        let place = unescaped(place);
        if let Some(id) = id
            && relative(root, &place).is_some_and(|name| !name.is_reserved())
        {
            let text = |field| String::from_utf8_lossy(field).into_owned();
            mounted.insert(place, Mount { id, device: text(device), part: text(part) });
        }
    }
    mounted
}

pub(crate) fn relative(root: &Path, place: &Path) -> Option<RelPath> {
    RelPath::new(place.strip_prefix(root).ok()?.to_str()?).ok()
}

/// Blanks, newlines and backslashes are three octal digits behind a backslash there.
fn unescaped(field: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), field);
    while let Some((first, others)) = rest.split_first() {
        rest = others;
        let octal = others.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &others[3..];
            }
            _ => bytes.push(*first),
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_for_what_is_mounted_below_a_directory() {
        let table = b"22 27 0:21 / /proc rw - proc proc rw\n\
            30 27 8:1 / /data rw,relatime shared:1 - ext4 /dev/a rw\n\
            31 30 8:2 / /data/wal rw - ext4 /dev/b rw\n\
            32 30 8:3 /x /data/a\\040b\\134 rw - ext4 /dev/c rw\n\
            33 31 8:4 / /data/wal rw - ext4 /dev/d rw\n\
            34 30 8:5 / /data/backups rw - ext4 /dev/e rw\n\
            35 27 8:6 / /database rw - ext4 /dev/f rw\nodd\n";
        let mounted = parse(table, Path::new("/data"));
        let mounted: Vec<_> =
            mounted.iter().map(|(at, is)| (at.to_str().unwrap(), is.id, &is.device[..], &is.part[..])).collect();
        assert_eq!(mounted, [("/data/a b\\", 32, "8:3", "/x"), ("/data/wal", 33, "8:4", "/")]);
    }

    #[test]
    fn a_directory_without_mounts_has_none_and_the_root_has_some() {
        let dir = tempfile::tempdir().unwrap();
        let none = Mounts::below(dir.path());
        assert!(none.handles().unwrap().is_empty() && none.changes().unwrap() == none.changes().unwrap());
        let all = Mounts::below(Path::new("/"));
        all.refresh().unwrap();
        assert!(all.places().iter().any(|place| place.as_str() == "proc"), "{:?}", all.places());
    }
}
