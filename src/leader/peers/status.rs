//! What a leader tells of its followers.

use std::fmt;
use std::time::Duration;

use crate::protocol::extension::Marks;
use crate::sys::net::SocketAddr;
use crate::sys::time::SystemTime;
use crate::types::{NodeId, RelPath, StreamPosition};

/// A follower as it is now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FollowerStatus {
    /// Its id.
    pub id: NodeId,
    /// Where it connected from.
    pub address: SocketAddr,
    /// How far it has come.
    pub state: FollowerState,
    /// How long it has been connected.
    pub connected: Duration,
    /// The stream position up to which it has acknowledged everything; `None` until it is attached to the stream.
    pub acknowledged: Option<StreamPosition>,
    /// Action bytes it has not acknowledged; `None` until it is attached to the stream. Their limit is
    /// [`LeaderConfig::lag_bytes`](crate::LeaderConfig::lag_bytes), towards which one large record does not count in full.
    pub lag_bytes: Option<u64>,
    /// For how long the oldest of them have been on their way; zero if there are none, `None` until it is attached.
    pub lag: Option<Duration>,
    /// How often its queue was full, or it was too far behind, since it connected, and it went back to catching up from disk; always 0 with
    /// [`OnFull::Evict`](crate::config::OnFull::Evict).
    pub demotions: u64,
    /// How it catches up from disk, while it does.
    pub catch_up: Option<CatchUpStatus>,
    /// How long it still waits before its full sync, because it was evicted for being slow several times.
    pub admitted_in: Option<Duration>,
    /// Batches waiting in its queue.
    pub queued_batches: usize,
    /// Bytes of memory they hold; the limit is [`LeaderConfig::queue_bytes`](crate::LeaderConfig::queue_bytes).
    pub queued_bytes: u64,
    /// Bytes written to its socket since it connected, as compressed.
    pub sent_bytes: u64,
    /// The last position of [`Leader::request_durable`](crate::leader::Leader::request_durable) up to which it has made everything
    /// durable; `None` if there is none, or it does not know the extension.
    pub durable: Option<StreamPosition>,
    /// How far it says it has come, if it knows the extension: action bytes since it connected.
    pub marks: Option<Marks>,
    /// What it was sent that was read from files.
    pub sync: SyncSent,
}

/// How a follower catches up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CatchUpStatus {
    /// Action bytes it lacks, more or less: what was missing when the round began, less what it acknowledged, and what was
    /// appended since.
    pub missing_bytes: u64,
    /// Action bytes it acknowledged a second.
    pub rate_bytes_per_s: u64,
    /// Action bytes appended a second meanwhile.
    pub append_bytes_per_s: u64,
    /// When it will have caught up at these rates; `None` if never.
    pub estimated: Option<Duration>,
}

/// How much a follower was sent since it connected that was read from files: in full syncs, while catching up, and large
/// appends and replaces of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncSent {
    /// Files it asked for in full syncs, or that were found to differ.
    pub files_requested: u64,
    /// Of these, files it was sent.
    pub files_sent: u64,
    /// Bytes read from files for it, before compression.
    pub bytes_sent: u64,
}

/// How far a follower has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FollowerState {
    /// Waits for its turn: for another follower's full sync, or because it was evicted for being slow too often.
    Waiting,
    /// Gets the bulk.
    Syncing,
    /// Gets from disk what was appended since; holds no queue.
    CatchingUp,
    /// Attached to the stream, but has not acknowledged all up to where it attached.
    Attached,
    /// Attached, and has acknowledged all up to where it attached.
    InSync,
}

impl fmt::Display for FollowerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Waiting => "waiting",
            Self::Syncing => "syncing",
            Self::CatchingUp => "catching up",
            Self::Attached => "attached",
            Self::InSync => "in sync",
        })
    }
}

/// Why the leader let a follower go.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvictionReason {
    /// Its queue was full, in bytes or in batches.
    QueueFull,
    /// It had more of the stream to acknowledge than it may.
    TooFarBehind,
    /// It took nothing off its socket for the write timeout.
    WriteTimeout,
    /// It was sent everything and acknowledged nothing for the ack timeout.
    NoAckProgress,
    /// It made no progress for the sync timeout while joining.
    NoSyncProgress,
    /// It said nothing at all for too long, not even that it is alive.
    Silent,
    /// It broke the protocol.
    ProtocolViolation(String),
    /// A newer connection came with its id.
    Replaced,
    /// Protocol 1.0.0 has no word for giving up a file that cannot be read on, or was cut short, in the middle of being sent. It
    /// drops what it has of it.
    Unreadable(RelPath),
    /// It could not go on, said why, and left: its disk was full, for example.
    Left(String),
    /// The leader shuts down.
    Shutdown,
}

impl EvictionReason {
    /// Whether something went wrong; nothing did when the leader shuts down.
    pub(in crate::leader) fn is_failure(&self) -> bool {
        *self != Self::Shutdown
    }
}

impl fmt::Display for EvictionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueFull => f.write_str("queue full"),
            Self::TooFarBehind => f.write_str("too far behind"),
            Self::WriteTimeout => f.write_str("write timeout"),
            Self::NoAckProgress => f.write_str("no ack progress"),
            Self::NoSyncProgress => f.write_str("no sync progress"),
            Self::Silent => f.write_str("no heartbeat"),
            Self::ProtocolViolation(what) => write!(f, "protocol violation ({what})"),
            Self::Unreadable(path) => write!(f, "{path} could not be read on in the middle of being sent"),
            Self::Left(why) => write!(f, "it left ({why})"),
            Self::Replaced => f.write_str("replaced by a newer connection"),
            Self::Shutdown => f.write_str("shutdown"),
        }
    }
}

/// An eviction, as kept in the history and logged: as a warning that starts `evicted follower`, but for [`EvictionReason::Shutdown`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Eviction {
    /// When.
    pub at: SystemTime,
    /// Whom.
    pub id: NodeId,
    /// Where it was connected from.
    pub address: SocketAddr,
    /// Why.
    pub reason: EvictionReason,
    /// How far it had come.
    pub state: FollowerState,
    /// Action bytes it had not acknowledged; `None` if it had not been attached to the stream.
    pub lag_bytes: Option<u64>,
    /// For how long the oldest of them had been on their way.
    pub lag: Option<Duration>,
    /// Batches in its queue.
    pub queued_batches: usize,
    /// Bytes they held.
    pub queued_bytes: u64,
}

impl fmt::Display for Eviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A clean stop is no failure of theirs: nobody is to be woken by its lines.
        let what = if self.reason.is_failure() { "evicted follower" } else { "let go of follower" };
        write!(f, "{what}: {}; address {}, id {}, {}", self.reason, self.address, self.id, self.state)?;
        match (self.lag_bytes, self.lag) {
            (Some(bytes), Some(time)) => write!(f, ", lag {bytes} bytes / {:.3} s", time.as_secs_f64())?,
            _ => f.write_str(", lag unknown (not attached yet)")?,
        }
        write!(f, ", queue {} batches / {} bytes", self.queued_batches, self.queued_bytes)
    }
}
