//! A disk that can lose its power, in place of the calls that make durable: it looks on, and keeps of each file and folder what
//! was in it when it was last flushed. That, and nothing else, is what a power loss leaves, as POSIX has it: a file's content does
//! not come with its folder's flush, nor its name with its own.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use paceline::follower::Flusher;
use parking_lot::{Condvar, Mutex};
use rustix::fs::{Dir, FileType, Mode, OFlags};

use super::fake_leader::{Files, PATIENCE};

type Inode = u64;

/// Names, and what they mean.
type Entries = BTreeMap<String, (Inode, bool)>;

/// A call that makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    File,
    Folder,
    FileSystem,
}

#[derive(Debug, Default)]
pub(crate) struct FakeDisk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The handles keep inodes from being used again.
    files: HashMap<Inode, (OwnedFd, Vec<u8>)>,
    folders: HashMap<Inode, (OwnedFd, Entries)>,
    calls: Vec<Call>,
    held: bool,
    waiting: usize,
    failing: Option<i32>,
}

/// What else than the durable a power loss leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    /// All names as they are, instead of only those that were flushed: a journal is written in order.
    pub(crate) names: bool,
    /// Of what is not durable of a file, so many hundredths of its end.
    pub(crate) tails: usize,
}

impl FakeDisk {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From now on calls wait, but for those of the follower's reader.
    pub(crate) fn hold(&self) {
        self.state.lock().held = true;
    }

    pub(crate) fn release(&self) {
        self.state.lock().held = false;
        self.changed.notify_all();
    }

    /// Waits until a call waits.
    #[track_caller]
    pub(crate) fn wait_held(&self) {
        let mut state = self.state.lock();
        while state.waiting == 0 {
            assert!(!self.changed.wait_for(&mut state, PATIENCE).timed_out(), "nothing was flushed");
        }
    }

    /// From now on calls fail with this, and what they were to make durable is on no disk, and never will be unless it is
    /// written again.
    pub(crate) fn fail(&self, errno: i32) {
        self.state.lock().failing = Some(errno);
    }

    pub(crate) fn heal(&self) {
        self.state.lock().failing = None;
    }

    /// The calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state.lock().calls.clone()
    }

    fn call(&self, call: Call, flush: impl FnOnce(&mut State)) -> io::Result<()> {
        let mut state = self.state.lock();
        state.calls.push(call);
        self.changed.notify_all();
        let reader = std::thread::current().name() == Some("paceline-follow");
        if state.held && !reader {
            state.waiting += 1;
            self.changed.notify_all();
            while state.held {
                self.changed.wait_for(&mut state, Duration::from_secs(1));
            }
            state.waiting -= 1;
        }
        if let Some(errno) = state.failing {
            return Err(io::Error::from_raw_os_error(errno));
        }
        flush(&mut state);
        Ok(())
    }

    /// The files in this directory after a power loss at this moment, with the follower's own folder.
    pub(crate) fn after_power_loss(&self, root: &Path, left: Left) -> Files {
        let (state, mut files) = (self.state.lock(), Files::new());
        let root = open_folder(root).unwrap();
        state.collect(&root, "", left, &mut files);
        files
    }
}

impl Flusher for FakeDisk {
    fn file(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.call(Call::File, |state| {
            if state.held {
                // Of the reader, between changes. A journal keeps their order: those of names before it come with it.
                let roots: Vec<_> = state.folders.values().filter_map(|(handle, _)| handle.try_clone().ok()).collect();
                roots.iter().for_each(|folder| state.flush_names(folder.as_fd()));
            }
            state.flush_file(file);
        })
    }

    fn whole_file(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.file(file)
    }

    fn folder(&self, folder: BorrowedFd<'_>) -> io::Result<()> {
        self.call(Call::Folder, |state| state.flush_folder(folder))
    }

    fn file_system(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        self.call(Call::FileSystem, |state| state.flush_all(directory))
    }
}

impl State {
    fn flush_file(&mut self, file: BorrowedFd<'_>) {
        self.files.insert(inode(file), (file.try_clone_to_owned().unwrap(), content(file)));
    }

    fn flush_folder(&mut self, folder: BorrowedFd<'_>) {
        self.folders.insert(inode(folder), (folder.try_clone_to_owned().unwrap(), entries(folder)));
    }

    fn flush_names(&mut self, folder: BorrowedFd<'_>) {
        self.flush_folder(folder);
        for (name, (_, is_folder)) in entries(folder) {
            if is_folder && let Ok(folder) = open_in(folder, &name, true) {
                self.flush_names(folder.as_fd());
            }
        }
    }

    fn flush_all(&mut self, folder: BorrowedFd<'_>) {
        // All of it at one moment, though the follower goes on changing it.
        let opened = loop {
            let found = entries(folder);
            let opened: Vec<_> = found
                .iter()
                .filter_map(|(name, &(number, is_folder))| {
                    let entry = open_in(folder, name, is_folder).ok()?;
                    (inode(&entry) == number).then_some((entry, is_folder))
                })
                .collect();
            if opened.len() == found.len() && entries(folder) == found {
                self.folders.insert(inode(folder), (folder.try_clone_to_owned().unwrap(), found));
                break opened;
            }
        };
        for (entry, is_folder) in opened {
            if is_folder { self.flush_all(entry.as_fd()) } else { self.flush_file(entry.as_fd()) }
        }
    }

    fn collect(&self, folder: &OwnedFd, at: &str, left: Left, files: &mut Files) {
        let durable = self.folders.get(&inode(folder.as_fd())).map(|(_, entries)| entries.clone()).unwrap_or_default();
        let found = if left.names { entries(folder.as_fd()) } else { durable };
        for (name, (inode, is_folder)) in found {
            let path = if at.is_empty() { name.clone() } else { format!("{at}/{name}") };
            if is_folder {
                match self.folders.get(&inode) {
                    Some((handle, _)) => self.collect(handle, &path, left, files),
                    None if left.names => self.collect(&open_in(folder, &name, true).unwrap(), &path, left, files),
                    None => {}
                }
                continue;
            }
            let (mut bytes, now) = match self.files.get(&inode) {
                Some((handle, bytes)) => (bytes.clone(), content(handle.as_fd())),
                // Never flushed; if it has gone as well, nobody knows its content.
                None => {
                    (Vec::new(), open_in(folder, &name, false).map(|file| content(file.as_fd())).unwrap_or_default())
                }
            };
            if now.starts_with(&bytes) {
                bytes.extend_from_slice(&now[bytes.len()..][..(now.len() - bytes.len()) * left.tails / 100]);
            }
            files.insert(path, bytes);
        }
    }
}

fn inode(fd: impl AsFd) -> Inode {
    rustix::fs::fstat(fd).unwrap().st_ino
}

/// Also of a file that was opened for writing only.
fn content(file: BorrowedFd<'_>) -> Vec<u8> {
    std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}

fn entries(folder: BorrowedFd<'_>) -> Entries {
    let mut found = Entries::new();
    for entry in Dir::read_from(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap();
        if ![".", ".."].contains(&name) {
            found.insert(name.to_owned(), (entry.ino(), entry.file_type() == FileType::Directory));
        }
    }
    found
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(File::open(path)?.into())
}

fn open_in(folder: impl AsFd, name: &str, is_folder: bool) -> io::Result<OwnedFd> {
    let flags = if is_folder { OFlags::DIRECTORY } else { OFlags::NOFOLLOW };
    Ok(rustix::fs::openat(folder, name, flags | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}
