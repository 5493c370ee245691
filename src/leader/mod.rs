//! The leader: announces what is written to a data directory to any number of followers, and never waits for one.
//!
//! ```text
//! host threads ── append/replace/delete ──▶ [ordered: index + open batch]     api/, stream/
//!                                              │ sealed: Arc<Batch>           batch.rs
//!                                         leader thread                       stream/
//!               try_send ┌────────────────────┼────────────────────┐
//!                        ▼                    ▼                    ▼
//!                  bounded channel      bounded channel      bounded channel  peers/
//!                        ▼                    ▼                    ▼
//!                  writer thread        writer thread        writer thread    serve/, sync/, link/
//!                  ack thread           ack thread           ack thread       link/
//! ```
//!
//! # Rooms
//!
//! Each uses only those above it; a test sees to that.
//!
//! | room | what it is |
//! |---|---|
//! | `batch.rs` | what goes through queues |
//! | `peers/` | what there is of each follower: its handle, where it is, what became of it before, when it may come |
//! | `stream/` | one order for all: the index, the open batch, queues, cuts |
//! | `commit/` | who is in sync, and what is committed |
//! | `files/` | what is excluded or cannot be read, what was there when it last led, who changes a file |
//! | `core/` | all of that, shared by the threads; reading files as they were announced; what becomes of it if a thread fails |
//! | `link/` | one follower's connection: what is written and read |
//! | `sync/` | what a follower lacks, and bringing it: by a full sync (`full_sync.rs`) or, with the extension, by sums (`resume.rs`), then by catching up (`catch_up.rs`) until it can attach to the stream; one that is demoted begins there again |
//! | `serve/` | a connection from its arrival to its end |
//! | `tasks/` | what a leader does by itself |
//! | `api/` | what a host calls |
//!
//! # Threads
//!
//! `leader` seals and pushes batches; `accept` takes connections (one a listener); `beats` tells followers that the leader is alive; `follower` and `ack-ID` are the two of each connection; `in-sync`, `sync`
//! and `commits` are those of commits; `last-led` notes what there is; `directory`, `digests` and `demotion` (if so set) are in `tasks/`. All belong to one
//! group, joined by [`Leader::shutdown`] with no lock held.
//!
//! # Locks
//!
//! In the order they are taken: that of commits (`commit/`), with nothing else; a file's lock (`files/locks.rs`) or a waiter's (`peers/progress.rs`), then those of the stream: `cut`,
//! `attached`, `ordered` (`stream/`). All others are leaves: nothing is locked while one of them is held. None of them is
//! held while a thread is joined, a socket read or written, or a line logged (I6).

mod api;
mod batch;
mod commit;
mod core;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod link;
mod peers;
mod serve;
mod stream;
mod sync;
mod tasks;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use self::core::Core;
use crate::error::Error;
use crate::position::EpochPosition;
use crate::types::{DataSetId, NodeId, RelPath, StreamPosition};

pub use self::api::{Opening, ReplicatedFile, ShutdownReport, Window};
pub use self::commit::{CommitOutcome, Committed, InSyncStatus, Refusal, Unknown};
pub use self::files::unreadable::NotReplicated;
pub use self::peers::history::EVICTIONS_KEPT;
pub use self::peers::status::{CatchUpStatus, Eviction, EvictionReason, FollowerState, FollowerStatus, SyncSent};
pub use crate::config::{BelowMin, CommitLevel, Quorum};

/// The leader of a data directory.
///
/// All methods take `&self` and may be called from any number of threads at once. None of them waits for a follower, but
/// those that say so: [`wait_for_window`](Self::wait_for_window) and [`shutdown`](Self::shutdown).
pub struct Leader {
    core: Arc<Core>,
}

impl Leader {
    /// Who is in sync is recorded from now on. Never blocks; does nothing when done before.
    pub(crate) fn begin_recording(&self) {
        self.core.commits.begin_recording();
    }

    /// Whether it is.
    pub(crate) fn is_recording(&self) -> bool {
        self.core.commits.is_recording()
    }

    /// Whether a sync of its own files has failed: it calls nothing durable any more, and its directory is marked so that nobody leads
    /// from it before it has followed.
    pub(crate) fn has_sync_failed(&self) -> bool {
        self.core.commits.has_sync_failed()
    }

    /// Is true while that is so and the mark could not be made. Outlives the leader.
    pub(crate) fn unmarked(&self) -> Arc<AtomicBool> {
        self.core.commits.unmarked()
    }

    /// The leader's own id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.core.dir.id()
    }

    /// Which data set the directory is. Made when it leads for the first time, and kept in it; a copy has that of its leader.
    #[must_use]
    pub fn data_set(&self) -> DataSetId {
        self.core.data_set
    }

    /// How often a follower connected, and was refused, that has a copy of another data set.
    #[must_use]
    pub fn other_data_sets(&self) -> u64 {
        self.core.strangers.count()
    }

    /// The directory it replicates.
    pub(crate) fn data_dir(&self) -> &Path {
        self.core.dir.path()
    }

    /// The bound of what is held for a follower.
    pub(crate) fn queue_bytes(&self) -> u64 {
        self.core.config.queue_bytes
    }

    /// How much of a core comparing may take.
    pub(crate) fn compare_percent(&self) -> u32 {
        self.core.config.compare_percent
    }

    /// The announced length of a file; `None` if it was not announced.
    #[must_use]
    pub fn file_len(&self, path: &RelPath) -> Option<u64> {
        let version = self.core.stream.version(path);
        version.exists().then_some(version.len)
    }

    /// Whether followers have of `path`, as far as it was announced, what is in the file with this device and inode. Never
    /// blocks.
    ///
    /// `false` if another file was read under that name since it was announced, or if it was found gone or too short, and
    /// announced as it was found. Such a moment leaves no trace where a file, or a folder with it, is moved away and back: who
    /// finds a file as it was asks this after that, and announces it with [`replace`](Self::replace) if it is not so.
    #[must_use]
    pub fn vouches_for(&self, path: &RelPath, device: u64, inode: u64) -> bool {
        // One that could not be read was perhaps not sent.
        !self.core.unreadable.is_noted(path) && self.core.stream.only_read_from(path, (device, inode))
    }

    /// All announced files and their lengths, as of one moment.
    #[must_use]
    pub fn files(&self) -> Vec<(RelPath, u64)> {
        self.core.stream.files().into_iter().map(|(path, version)| (path, version.len)).collect()
    }

    /// Whether files of this name are replicated: it is neither reserved nor excluded by the settings.
    #[must_use]
    pub fn replicates(&self, path: &RelPath) -> bool {
        !self.core.excludes(path)
    }

    /// Whether there may be files in this folder that are replicated.
    #[must_use]
    pub fn enters(&self, folder: &RelPath) -> bool {
        !folder.is_reserved() && !self.core.exclude.folder(folder)
    }

    /// Says that something may have changed at this name besides the content of a file: permissions, the time of the last change; a folder or a symbolic link that came or went. The leader
    /// looks at it within about a second, and announces what it finds. Files that are announced, and the folders they are in, are looked at anyway. Never blocks.
    pub fn look_again(&self, path: &RelPath) {
        self.core.looks.again(path);
    }

    /// Files and folders that are not replicated, because they cannot be read; they are tried again.
    #[must_use]
    pub fn not_replicated(&self) -> Vec<NotReplicated> {
        self.core.unreadable.all()
    }

    /// The stream position after the last action.
    #[must_use]
    pub fn position(&self) -> StreamPosition {
        self.core.stream.position()
    }

    /// The same in positions that compare between the nodes of a cluster; `None` outside one.
    #[must_use]
    pub fn epoch_position(&self) -> Option<EpochPosition> {
        Some(EpochPosition { epoch: self.core.term?, position: self.position() })
    }

    /// All connected followers, in the order they came.
    #[must_use]
    pub fn followers(&self) -> Vec<FollowerStatus> {
        let followers = self.core.followers.lock().clone();
        let now = self.position();
        followers.iter().filter(|follower| !follower.has_ended()).map(|follower| follower.status(now)).collect()
    }

    /// The last evictions, oldest first; [`EVICTIONS_KEPT`] at most. For a further one, the oldest goes of the follower that has most.
    #[must_use]
    pub fn evictions(&self) -> Vec<Eviction> {
        self.core.history.all()
    }

    /// Why the leader closed by itself, if it did: a thread of it panicked, or its directory is lost
    /// ([`Error::DirectoryLost`]). Nothing is taken or confirmed any more then, and all followers were let go. Never blocks.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        let lost = self.core.lost.get();
        let lost = lost.map(|how| Error::DirectoryLost { dir: self.core.dir.path().to_owned(), how });
        lost.or_else(|| self.core.failure.get().cloned().map(Error::ThreadFailed))
    }

    /// For a watchdog: whether announcements are taken and dispatched. Blocks up to `within`, and for as long as the critical
    /// section of appends is held, which is nothing unless there is a defect.
    pub(crate) fn is_dispatching(&self, within: Duration) -> bool {
        let _ = self.position();
        self.core.stream.is_dispatching(within)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// Each uses only those before it.
    const ROOMS: [&str; 11] =
        ["batch", "peers", "stream", "commit", "files", "core", "link", "sync", "serve", "tasks", "api"];

    fn sources(of: &Path) -> Vec<PathBuf> {
        if of.is_file() {
            return vec![of.to_owned()];
        }
        fs::read_dir(of).unwrap().flat_map(|entry| sources(&entry.unwrap().path())).collect()
    }

    #[test]
    fn rooms_are_used_in_one_direction() {
        let leader = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/leader");
        for (at, room) in ROOMS.iter().enumerate() {
            let folder = leader.join(room);
            let files = sources(&if folder.is_dir() { folder } else { leader.join(format!("{room}.rs")) });
            for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
                let text = fs::read_to_string(file).unwrap();
                let code = text.split("\nmod tests {").next().unwrap();
                let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
                for (line, used) in lines.filter_map(|line| Some((line, line.split("crate::leader::").nth(1)?))) {
                    let name = used.split(|c: char| !c.is_ascii_lowercase()).next().unwrap();
                    let is_above = ROOMS[..=at].contains(&name) || (*room == "api" && used.starts_with("Leader"));
                    let is_visibility = line.contains("in crate::leader)");
                    assert!(is_above || is_visibility, "{}: {line}", file.display());
                }
            }
        }
    }
}
