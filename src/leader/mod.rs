//! skeleton
mod status;
use crate::config::LeaderConfig;
use crate::error::{AppendError, Error};
use crate::types::{NodeId, RelPath, StreamPosition};
pub use status::{Eviction, EvictionReason, FollowerState, FollowerStatus, SyncSent};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// The leader of a data directory. All methods take `&self` and may be called from any number of threads at once.
pub struct Leader {}

#[allow(missing_docs, unused_variables)]
impl Leader {
    /// Takes the directory's `.lock`, scans what is there. Listens to nobody until [`Leader::listen`].
    pub fn open(config: LeaderConfig) -> Result<Self, Error> {
        todo!()
    }
    /// Accepts followers on `address`; returns the address in use.
    pub fn listen(&self, address: impl ToSocketAddrs) -> Result<SocketAddr, Error> {
        todo!()
    }
    pub fn id(&self) -> NodeId {
        todo!()
    }
    /// Announces bytes already written to the file at `offset` (must be its announced length). Never blocks on a follower.
    pub fn append(&self, path: &RelPath, offset: u64, bytes: &[u8]) -> Result<StreamPosition, AppendError> {
        todo!()
    }
    /// Like append, for `length` bytes that are read from the file later, by the writer threads.
    pub fn append_from_file(&self, path: &RelPath, offset: u64, length: u64) -> Result<StreamPosition, AppendError> {
        todo!()
    }
    /// Announces that the file has new content, complete on disk (length as found by fstat). Reads it from disk.
    /// A file that became empty is announced as such (protocol 1.0.0: a delete). Creates it if unknown.
    pub fn replace(&self, path: &RelPath) -> Result<StreamPosition, AppendError> {
        todo!()
    }
    /// Announces that the file is gone. Unknown files: no-op.
    pub fn delete(&self, path: &RelPath) -> Result<StreamPosition, AppendError> {
        todo!()
    }
    /// The announced length of a file.
    pub fn file_len(&self, path: &RelPath) -> Option<u64> {
        todo!()
    }
    /// All announced files and lengths (a copy, made in pieces without holding the append lock for long).
    pub fn files(&self) -> Vec<(RelPath, u64)> {
        todo!()
    }
    /// Whether `path` is replicated: not reserved, not excluded by `LeaderConfig::exclude`.
    pub fn replicates(&self, path: &RelPath) -> bool {
        todo!()
    }
    /// An `io::Write` (and `position()`) that writes the local file and replicates in one go.
    pub fn file(&self, path: &RelPath) -> Result<ReplicatedFile<'_>, AppendError> {
        todo!()
    }
    /// The position after the last action.
    pub fn position(&self) -> StreamPosition {
        todo!()
    }
    pub fn followers(&self) -> Vec<FollowerStatus> {
        todo!()
    }
    /// The last evictions, oldest first (bounded).
    pub fn evictions(&self) -> Vec<Eviction> {
        todo!()
    }
    /// Waits (outside any append) until every follower that keeps up has acknowledged all but `window.bytes`.
    /// true: within the window; false: `timeout` passed.
    pub fn wait_for_window(&self, window: &Window, timeout: Duration) -> bool {
        todo!()
    }
    /// Stops accepting and appending, lets attached followers drain until `drain` has passed, then closes all and joins all threads. Idempotent.
    pub fn shutdown(&self, drain: Duration) -> ShutdownReport {
        todo!()
    }
}
/// A bounded window of unacknowledged bytes.
#[derive(Clone, Debug)]
pub struct Window {
    /// The most action bytes that followers may leave unacknowledged.
    pub bytes: u64,
    /// A follower that acknowledged nothing for this long does not hold the window up. Defaults to 100 ms.
    pub stall_grace: Duration,
}
/// What a shutdown did.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct ShutdownReport {
    /// Followers that had acknowledged everything
    pub drained: Vec<NodeId>,
    /// Followers that had not: id and bytes not acknowledged
    pub undrained: Vec<(NodeId, u64)>,
}
/// See [`Leader::file`].
pub struct ReplicatedFile<'a>(&'a Leader);
