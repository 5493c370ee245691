//! skeleton
use crate::config::FollowerConfig;
use crate::error::Error;
use crate::types::NodeId;
use std::time::Duration;

/// A running follower: its threads connect, sync, apply, acknowledge and reconnect until it is stopped.
pub struct Follower {}

#[allow(missing_docs, unused_variables)]
impl Follower {
    /// Checks the settings, creates the directory (0700) if absent, takes its `.lock`, and starts the threads.
    pub fn start(config: FollowerConfig) -> Result<Self, Error> {
        todo!()
    }
    pub fn id(&self) -> NodeId {
        todo!()
    }
    /// A snapshot; never blocks for long.
    pub fn status(&self) -> Status {
        todo!()
    }
    /// Blocks until the follower has ended: stopped (Ok), synced with `FollowerConfig::once` (Ok), or failed in a way that
    /// trying again would not mend (secret refused, same id, foreign directory, local I/O).
    /// `None` after `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<Result<(), Error>> {
        todo!()
    }
    /// Stops and joins all threads.
    pub fn stop(&self) {
        todo!()
    }
}

/// What a follower tells of itself.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// How often it has connected and been accepted.
    pub connections: u64,
    /// Why the last connection ended.
    pub last_disconnect: Option<String>,
    /// The full sync under way, or the last one.
    pub sync: SyncProgress,
    /// Action bytes applied since the stream began (framing included).
    pub applied_bytes: u64,
    /// Of these, acknowledged.
    pub acknowledged_bytes: u64,
}

/// What a follower is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Connecting, or waiting to.
    #[default]
    Connecting,
    /// Accepted; waiting for the leader's list (one follower is synced at a time).
    Waiting,
    /// In round 1 or 2 of a full sync.
    Syncing,
    /// Applying the stream.
    Streaming,
    /// Ended.
    Stopped,
}

/// How far a full sync has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncProgress {
    /// Files the leader listed.
    pub files_listed: u64,
    /// Local files hashed so far, to compare them.
    pub files_hashed: u64,
    /// Files asked for, both rounds.
    pub files_requested: u64,
    /// Of these, files received.
    pub files_received: u64,
    /// Content bytes received.
    pub bytes_received: u64,
    /// Bytes of the file being received that are still to come.
    pub bytes_remaining_in_file: u64,
    /// Files deleted because the leader did not list them.
    pub files_deleted: u64,
}
