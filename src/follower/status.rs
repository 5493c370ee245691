//! What a follower tells of itself.

use std::time::Duration;

use crate::position::EpochPosition;
use crate::types::DataSetId;

/// A snapshot of a follower.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// Of which data set the directory is a copy; `None` before its first leader said so (one of 1.0.0 has no word for it).
    pub data_set: Option<DataSetId>,
    /// How far the directory has come, in positions that compare between the nodes of a cluster: it has everything up to here. `None` while a
    /// sync changes it, and after one by a leader that says no term (outside a cluster, or of 1.0.0).
    pub position: Option<EpochPosition>,
    /// How often it has connected and been accepted.
    pub connections: u64,
    /// Why the last connection, or the last attempt at one, ended.
    pub last_disconnect: Option<String>,
    /// The full sync under way, or the last one.
    pub sync: SyncProgress,
    /// Action bytes applied (framing included): with 1.0.0 since the stream began on the present or last connection, with
    /// the extension since that connection did.
    pub applied_bytes: u64,
    /// Of these, acknowledged: with 1.0.0 as [`Durability`](crate::Durability) has it, so that with `Received` they may be more
    /// than were applied; with the extension, written.
    pub acknowledged_bytes: u64,
    /// Said to be durable, with the extension; 0 with 1.0.0, which has no word for it.
    pub durable_bytes: u64,
    /// Bytes of the stream from where this follower is to where the leader said it is; `None` with 1.0.0, and before the
    /// leader has told both.
    pub lag_bytes: Option<u64>,
    /// How long ago the oldest position that is not reached yet was first heard of; zero when there is none, `None` as above.
    pub lag: Option<Duration>,
    /// The leader's clock in its last heartbeat, in microseconds since 1970.
    pub leader_clock_us: Option<u64>,
    /// Why a leader last let this follower go, as far as one said so.
    pub last_eviction: Option<String>,
    /// When the leader said, as the connection began, that it would admit this follower to a sync; `None` once it has.
    pub admitted_in: Option<Duration>,
    /// How many files the leader has found so far that is still reading its directory, as it said last; `None` once it wants to know what is here.
    pub leader_files: Option<u64>,
}

/// What a follower is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Connecting, or waiting to.
    #[default]
    Connecting,
    /// Waiting to try again, because the leader that answers is not the right one or would delete almost everything;
    /// [`Status::last_disconnect`] says which, and what to do. Nothing was changed.
    Refusing,
    /// Accepted; waiting for the leader's list or, with the extension, until it wants the inventory (not all followers are
    /// synced at a time).
    Waiting,
    /// Accepted by a leader that is still reading its directory: what is missing is sent once it has. [`Status::leader_files`] says how far it is. Not with 1.0.0, which has no word
    /// for it.
    LeaderOpening,
    /// In round 1 or 2 of a full sync; with the extension, from the inventory until the copy is whole: what changed during the sync
    /// comes after it.
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
    /// Files to compare: those the leader listed, in round 2 anew; with the extension, those that are here.
    pub files_listed: u64,
    /// Local files hashed so far, to compare them; with the extension, or known from before.
    pub files_hashed: u64,
    /// Bytes read to hash them; counted with the extension only.
    pub bytes_hashed: u64,
    /// Files asked for, both rounds; 0 with the extension.
    pub files_requested: u64,
    /// Files that will be sent, or parts of them, as far as the leader told; `None` with 1.0.0.
    pub files_total: Option<u64>,
    /// Bytes that will be sent, as far as the leader told; `None` with 1.0.0.
    pub bytes_total: Option<u64>,
    /// Files received; with the extension, or parts of them.
    pub files_received: u64,
    /// Content bytes received, both rounds.
    pub bytes_received: u64,
    /// Bytes of the file being received that are still to come.
    pub bytes_remaining_in_file: u64,
    /// Files deleted because the leader did not list them, or said so.
    pub files_deleted: u64,
}
