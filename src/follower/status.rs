//! What a follower tells of itself.

/// A snapshot of a follower.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// How often it has connected and been accepted.
    pub connections: u64,
    /// Why the last connection, or the last attempt at one, ended.
    pub last_disconnect: Option<String>,
    /// The full sync under way, or the last one.
    pub sync: SyncProgress,
    /// Action bytes applied since the stream began on the present or last connection (framing included).
    pub applied_bytes: u64,
    /// Of these, acknowledged. An acknowledgement says *written*, not on disk.
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
    /// Files the leader listed; in round 2 anew.
    pub files_listed: u64,
    /// Local files hashed so far, to compare them.
    pub files_hashed: u64,
    /// Files asked for, both rounds.
    pub files_requested: u64,
    /// Of these, files received.
    pub files_received: u64,
    /// Content bytes received, both rounds.
    pub bytes_received: u64,
    /// Bytes of the file being received that are still to come.
    pub bytes_remaining_in_file: u64,
    /// Files deleted because the leader did not list them.
    pub files_deleted: u64,
}
