//! What the watcher asks of a leader, so that its rules can be tested without sockets.

use std::sync::Arc;
use std::time::Duration;

use crate::error::AppendError;
use crate::leader::{Leader, Window};
use crate::types::RelPath;

/// The part of [`Leader`]'s public API that the watcher uses; each method means what it means there.
pub(super) trait Announce: Send + 'static {
    fn append(&self, path: &RelPath, offset: u64, bytes: &[u8]) -> Result<(), AppendError>;
    fn append_from_file(&self, path: &RelPath, offset: u64, length: u64) -> Result<(), AppendError>;
    fn replace(&self, path: &RelPath) -> Result<(), AppendError>;
    fn delete(&self, path: &RelPath) -> Result<(), AppendError>;
    fn file_len(&self, path: &RelPath) -> Option<u64>;
    fn files(&self) -> Vec<(RelPath, u64)>;
    fn replicates(&self, path: &RelPath) -> bool;
    /// Waits a little if followers that keep up have much to acknowledge yet.
    fn pace(&self);
}

/// How long one [`Announce::pace`] waits at most. With one after every [`super::tree::PACE_BYTES`] a follower that reads
/// slowly but never stops cannot hold the others below 80 MiB/s, and is evicted as it should be.
const PACE_MAX: Duration = Duration::from_millis(100);

/// A leader, and the window that the watcher keeps.
pub(super) struct Paced {
    pub(super) leader: Arc<Leader>,
    pub(super) window: Option<Window>,
}

impl Announce for Paced {
    fn append(&self, path: &RelPath, offset: u64, bytes: &[u8]) -> Result<(), AppendError> {
        self.leader.append(path, offset, bytes).map(drop)
    }

    fn append_from_file(&self, path: &RelPath, offset: u64, length: u64) -> Result<(), AppendError> {
        self.leader.append_from_file(path, offset, length).map(drop)
    }

    fn replace(&self, path: &RelPath) -> Result<(), AppendError> {
        self.leader.replace(path).map(drop)
    }

    fn delete(&self, path: &RelPath) -> Result<(), AppendError> {
        self.leader.delete(path).map(drop)
    }

    fn file_len(&self, path: &RelPath) -> Option<u64> {
        self.leader.file_len(path)
    }

    fn files(&self) -> Vec<(RelPath, u64)> {
        self.leader.files()
    }

    fn replicates(&self, path: &RelPath) -> bool {
        self.leader.replicates(path)
    }

    fn pace(&self) {
        if let Some(window) = &self.window {
            self.leader.wait_for_window(window, PACE_MAX);
        }
    }
}
