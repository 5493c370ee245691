//! The `sync` thread: durability, for all commits that came meanwhile at once.
//!
//! One turn: put "make durable" into the stream, push it, sync our own files while followers sync theirs, say so. The next turn
//! begins after that, so the pace is that of our own disk, and the slower that is, the more commits share a turn.
//!
//! What has to be synced is what the index noted as changed since the last turn: contents with `fdatasync`, folders in which
//! names came or went with `fsync`; the file system of the directory, and those mounted below it, with `syncfs` where that is less work (`follower/flush.rs` has the
//! measurements), and in the first turn, which also covers what was found at the start. A failed sync latches: the system may
//! have dropped what it could not write, and would not say so again, so nothing is called durable any more. A failure is told
//! to whoever syncs first: if that was the host, it knows.
//!
//! No lock is held while it syncs. It ends with [`Commits::stop`], after its turn.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Commits;
use crate::index::Unsynced;
use crate::leader::stream::Stream;
use crate::mounts::Mounts;
use crate::types::StreamPosition;

/// At most so many files are synced one by one, and as many folders; for more, the whole file system is.
const SYNCED_SINGLY_MAX: usize = 8;

impl Commits {
    /// The thread's life.
    pub(in crate::leader) fn run_syncer(&self, stream: &Arc<Stream>, root: &Path) {
        // `syncfs` tells of failures since this was opened.
        let file_systems = FileSystems::of(root);
        while self.wait_to_sync() {
            // Fails only when the stream is closed: nothing can be asked for then.
            let Ok((position, unsynced)) = stream.make_durable() else { return };
            self.asked(position);
            stream.push();
            let synced = match &file_systems {
                Ok(file_systems) => sync(stream, root, file_systems, &unsynced),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            let mut state = self.state.lock();
            match synced {
                Ok(()) => state.rule.local_durable(position.0),
                Err(error) => {
                    state.local_sync_failed = true;
                    self.changed(state);
                    log::error!(
                        "cannot make the files of {} durable: {error}; nothing is confirmed as durable any more: find out why, \
                         then start the leader anew",
                        root.display()
                    );
                    return;
                }
            }
            self.changed(state);
        }
    }

    /// Whoever counted when the turn began is asked to make durable all up to `position`.
    pub(super) fn asked(&self, position: StreamPosition) {
        let mut state = self.state.lock();
        if !state.counted_anew {
            state.requested = position.0;
        }
    }

    /// `false`: it is over.
    pub(super) fn wait_to_sync(&self) -> bool {
        let mut state = self.state.lock();
        while !state.sync_wanted && !state.ended {
            self.to_sync.wait(&mut state);
        }
        state.sync_wanted = false;
        state.counted_anew = false;
        !state.ended
    }
}

/// The file systems that the files may be on.
struct FileSystems {
    root: File,
    below: Mounts,
}

impl FileSystems {
    fn of(root: &Path) -> io::Result<Self> {
        Ok(Self { root: File::open(root)?, below: Mounts::below(root) })
    }

    /// Syncs each of them.
    fn sync(&self) -> io::Result<()> {
        rustix::fs::syncfs(&self.root)?;
        for handle in self.below.handles()? {
            rustix::fs::syncfs(handle)?;
        }
        Ok(())
    }
}

fn sync(stream: &Stream, root: &Path, file_systems: &FileSystems, unsynced: &Unsynced) -> io::Result<()> {
    let sync_all = || file_systems.sync();
    let files = stream.syncing(unsynced);
    let folders: BTreeSet<PathBuf> =
        unsynced.names().iter().filter_map(|name| Some(name.below(root).parent()?.to_owned())).collect();
    if unsynced.others || files.len().max(folders.len()) > SYNCED_SINGLY_MAX {
        return sync_all();
    }
    for path in files {
        match File::open(path.below(root)) {
            Ok(file) => file.sync_data()?,
            // It has another name by now, or is gone: whichever it is, this covers it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return sync_all(),
            Err(error) => return Err(error),
        }
    }
    for folder in folders {
        // A folder that was made for a file is new in the one above it.
        for folder in folder.ancestors().take_while(|folder| folder.starts_with(root)) {
            match File::open(folder) {
                Ok(folder) => folder.sync_all()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return sync_all(),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
