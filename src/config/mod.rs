//! Settings: plain structs with defaults and a check.

mod commit_level;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::datadir::DirLock;
use crate::error::Error;
use crate::flusher::{Flusher, SystemFlusher};
use crate::types::{DataSetId, NodeId, Secret};

pub use self::commit_level::{BelowMin, CommitLevel, Quorum};

/// Of what syncs take away.
const KEEP: Duration = Duration::from_secs(7 * 86_400);
const KEEP_BYTES: u64 = 16 << 30;

/// Settings of a [`Leader`](crate::Leader).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LeaderConfig {
    /// The directory that is replicated.
    pub data_dir: PathBuf,
    /// What followers must present.
    pub secret: Secret,
    /// The leader's own id. Defaults to `None`: the one kept in `.clustering_id`, made at random if there is none.
    pub id: Option<NodeId>,
    /// Bytes held for one follower before it is evicted for a full queue; batches are shared, so this bounds the sum of
    /// all followers too. Defaults to 64 MiB: at 500 MB/s an eighth of a second of a follower standing still. At least 256 KiB.
    pub queue_bytes: u64,
    /// Bytes of the stream that one follower may have yet to acknowledge before it goes the way of a full queue. `queue_bytes` is
    /// memory; of content that is read from files when a follower gets there (what is announced at once with more than 256 KiB, and
    /// most of what a [`Watcher`](crate::watch::Watcher) finds) none is held, and this is its limit. One record counts for no more than
    /// `queue_bytes`, nor for more than half of this: one of any size passes. Defaults to `None`: eight times `queue_bytes`, and 16 MiB at least.
    pub lag_bytes: Option<u64>,
    /// Bytes held for one follower for longer than `queue_soft_time` before its queue counts as full: lower than `queue_bytes`, it
    /// lets bursts pass and catches who is slow for good. Defaults to `None`: there is no such limit.
    pub queue_soft_bytes: Option<u64>,
    /// See `queue_soft_bytes`. Defaults to 10 s.
    pub queue_soft_time: Duration,
    /// Whether appends wait rather than lose a follower that `min_in_sync` needs. Defaults to [`BackPressure::Off`].
    pub back_pressure: BackPressure,
    /// What becomes of a follower whose queue is full. Defaults to [`OnFull::Evict`].
    pub on_full: OnFull,
    /// Batches held for one follower. Defaults to 65,536, wide enough that bytes decide: a follower that stands still
    /// while another is idle makes batches tiny.
    pub queue_batches: usize,
    /// How long a follower in the stream may take no byte at all off its socket. Defaults to 5 s.
    pub write_timeout: Duration,
    /// How long a follower that is or was in sync may leave what it was sent without any acknowledgement. Defaults to 10 s.
    pub ack_timeout: Duration,
    /// How long a follower may hold up commits on all, before it leaves the in-sync set: those commits wait for the others then. It keeps its connection, and is in sync again
    /// as soon as it keeps up; if it leaves again and again, later each time. Where all followers are late together, they stay. Defaults to 500 ms.
    pub in_sync_timeout: Duration,
    /// How long a joining follower may make no progress between two steps of a full sync or of catching up. Defaults to
    /// 10 min: a follower may hash its files for minutes between the list and its first request.
    pub sync_timeout: Duration,
    /// How many full syncs read or move content at once. Defaults to 1: two at once make each other slow, and a disk more so.
    pub syncs_max: usize,
    /// How many followers that are not attached to the stream catch up from disk at once. Defaults to 4: what they read is recent,
    /// and mostly still cached.
    pub catch_ups_max: usize,
    /// Bytes a second that full syncs and catching up read from the data directory, all together: what they hash, and what
    /// they send before it is compressed. At least 1 MiB. Defaults to `None`: as fast as disk and network go.
    pub sync_rate: Option<u64>,
    /// How much of a core, in percent, a [`Watcher`](crate::Watcher) takes at most to compare files that were written to with what followers were sent; 1 to 100. With less, a copy
    /// of a file that never rests is put right later ([`Watcher::unproven_for`](crate::Watcher::unproven_for)). Defaults to 25.
    pub compare_percent: u32,
    /// How long a follower waits, connected, for its next full sync when it was evicted for being slow a second time within
    /// `readmit_window`; twice as long each time after. The first eviction costs nothing. Up to half is added at
    /// random. Defaults to 1 s.
    pub readmit_delay_min: Duration,
    /// The longest such delay. Defaults to 60 s.
    pub readmit_delay_max: Duration,
    /// How long an eviction counts towards such delays. Defaults to 10 min.
    pub readmit_window: Duration,
    /// The deadline of the whole handshake. Defaults to 5 s, LavinMQ's own.
    pub handshake_timeout: Duration,
    /// How often the leader says that it is alive, and followers do, where both know the extension of the protocol; a follower
    /// that says nothing for three of these and 2 s more is let go. Defaults to 1 s.
    pub heartbeat_interval: Duration,
    /// How many connections may be unauthenticated at once; beyond it the oldest is closed. Defaults to 64.
    pub unauthenticated_max: usize,
    /// What a commit asks for that does not say otherwise. Defaults to [`CommitLevel::ALL_DURABLE`].
    pub commit_level: CommitLevel,
    /// How many followers must be in sync, without the leader, for a commit to be confirmed, at every level. It guards commits
    /// only: never start-up, the listener or an append. Defaults to 0.
    pub min_in_sync: usize,
    /// What becomes of commits while there are fewer. Defaults to [`BelowMin::Refuse`].
    pub below_min: BelowMin,
    /// How many nodes there are in all, the leader included; for [`Quorum::Majority`]. Defaults to
    /// `None`: not known.
    pub cluster_size: Option<usize>,
    /// What followers that speak protocol 1.0.0 say with an acknowledgement: LavinMQ up to 2.8 does not sync its disk before, 2.9
    /// does unless it is configured not to, and they cannot be told apart. Defaults to [`Durability::Written`].
    pub v1_acks: Durability,
    /// Files not to replicate, as globs on names relative to the data directory (`*.tmp`, `cache/**`; `*` does not cross a
    /// `/`, `**` does). Defaults to none.
    pub exclude: Vec<String>,
    /// Whether to start also where more than half of the files and of the bytes that were last announced from the directory are gone, or
    /// a file system that was mounted below it is not. Followers delete what is gone. Defaults to false: a start is then refused
    /// with [`Error::Missing`]. For one start: set for good, it protects from nothing.
    pub accept_missing: bool,
    /// How long what syncs took away stays in `.paceline/kept`, in a directory that followed before it led. Defaults to 7 days, as
    /// [`FollowerConfig::keep`].
    pub keep: Duration,
    /// How many bytes of that. Defaults to 16 GiB.
    pub keep_bytes: u64,
    /// The directory's lock, where who starts the leader has it.
    pub(crate) lock: Option<DirLock>,
    /// What makes the leader's own files durable: the system, but for tests.
    pub(crate) flusher: Arc<dyn Flusher>,
}

/// Two full batches, raw and compressed: one is written while the next waits.
const QUEUE_BYTES_LEAST: u64 = 256 << 10;

/// What `lag_bytes` is, in times of `queue_bytes`, if it is not set.
const LAG_OVER_QUEUE: u64 = 8;

/// And the least: some of this is in the system's buffers, and no queue of ours.
const LAG_BYTES_LEAST: u64 = 16 << 20;

/// What becomes of a follower whose queue is full, in bytes or in batches, or that is too far behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnFull {
    /// It is evicted. When it comes back it syncs anew.
    #[default]
    Evict,
    /// It is *demoted*: its queue is thrown away, and it syncs anew at once, on the connection that it has: what moves is what it missed.
    /// It counts as in sync only after that. A follower whose connection makes no progress at all is evicted
    /// nevertheless, after the write or the ack timeout; and so is one of protocol 1.0.0, which cannot sync in the middle of a stream.
    CatchUp,
}

/// How safe bytes are at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// They have arrived in the node's memory. Lost when its process ends.
    Received,
    /// They are written to its files, but perhaps only in the system's page cache. Lost when its host loses power or crashes.
    Written,
    /// They survive a loss of power.
    Durable,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Received => "received",
            Self::Written => "written",
            Self::Durable => "durable",
        })
    }
}

/// What appends do when the queue of a follower is full, or one is too far behind, whose eviction would leave fewer than
/// [`LeaderConfig::min_in_sync`] in sync. Up to another 8 MiB may be held for such a follower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackPressure {
    /// They go on, and it is evicted: no append ever waits for a follower.
    #[default]
    Off,
    /// They fail with [`AppendError::WouldBlock`](crate::AppendError::WouldBlock) until there is room; after so long the follower is
    /// evicted after all.
    WouldBlock(Duration),
    /// They block until there is room; after so long the follower is evicted after all.
    Wait(Duration),
}

impl BackPressure {
    /// How long it may last.
    pub(crate) fn longest(self) -> Option<Duration> {
        match self {
            Self::Off => None,
            Self::WouldBlock(longest) | Self::Wait(longest) => Some(longest),
        }
    }
}

impl LeaderConfig {
    /// With calls of one's own that make durable. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn flushed_by(self, flusher: Arc<dyn Flusher>) -> Self {
        Self { flusher, ..self }
    }

    /// The defaults, for this directory and secret.
    pub fn new(data_dir: impl Into<PathBuf>, secret: Secret) -> Self {
        Self {
            data_dir: data_dir.into(),
            secret,
            id: None,
            queue_bytes: 64 << 20,
            lag_bytes: None,
            queue_soft_bytes: None,
            queue_soft_time: Duration::from_secs(10),
            back_pressure: BackPressure::Off,
            on_full: OnFull::Evict,
            queue_batches: 65_536,
            write_timeout: Duration::from_secs(5),
            ack_timeout: Duration::from_secs(10),
            in_sync_timeout: Duration::from_millis(500),
            sync_timeout: Duration::from_secs(600),
            syncs_max: 1,
            catch_ups_max: 4,
            sync_rate: None,
            compare_percent: 25,
            readmit_delay_min: Duration::from_secs(1),
            readmit_delay_max: Duration::from_secs(60),
            readmit_window: Duration::from_secs(600),
            handshake_timeout: Duration::from_secs(5),
            heartbeat_interval: Duration::from_secs(1),
            unauthenticated_max: 64,
            commit_level: CommitLevel::ALL_DURABLE,
            min_in_sync: 0,
            below_min: BelowMin::Refuse,
            cluster_size: None,
            v1_acks: Durability::Written,
            exclude: Vec::new(),
            accept_missing: false,
            keep: KEEP,
            keep_bytes: KEEP_BYTES,
            lock: None,
            flusher: Arc::new(SystemFlusher),
        }
    }

    /// How far a follower may be behind: `lag_bytes`, or its default.
    pub(crate) fn lag_bytes_max(&self) -> u64 {
        self.lag_bytes.unwrap_or(self.queue_bytes.saturating_mul(LAG_OVER_QUEUE).max(LAG_BYTES_LEAST))
    }

    /// Checks every setting.
    pub fn check(&self) -> Result<(), Error> {
        at_least("queue_bytes", self.queue_bytes, QUEUE_BYTES_LEAST)?;
        at_least("lag_bytes", self.lag_bytes.unwrap_or(u64::MAX), 64 << 10)?;
        at_least("queue_batches", self.queue_batches as u64, 1)?;
        at_least("unauthenticated_max", self.unauthenticated_max as u64, 1)?;
        at_least("syncs_max", self.syncs_max as u64, 1)?;
        at_least("catch_ups_max", self.catch_ups_max as u64, 1)?;
        at_least("sync_rate", self.sync_rate.unwrap_or(u64::MAX), 1 << 20)?;
        if !(1..=100).contains(&self.compare_percent) {
            return Err(Error::Setting { name: "compare_percent", reason: "must be 1 to 100".into() });
        }
        // A queue's slots are allocated up front.
        if self.queue_batches > 1 << 24 {
            return Err(Error::Setting { name: "queue_batches", reason: "must be at most 16777216".into() });
        }
        if self.back_pressure != BackPressure::Off && self.min_in_sync == 0 {
            let reason = "must be at least 1 with back-pressure, which protects so many followers".into();
            return Err(Error::Setting { name: "min_in_sync", reason });
        }
        if self.commit_level.quorum == Quorum::Majority && self.cluster_size.is_none() {
            return Err(Error::Setting {
                name: "cluster_size",
                reason: "must be set for commits on a majority".into(),
            });
        }
        positive("write_timeout", self.write_timeout)?;
        positive("ack_timeout", self.ack_timeout)?;
        positive("in_sync_timeout", self.in_sync_timeout)?;
        positive("sync_timeout", self.sync_timeout)?;
        positive("heartbeat_interval", self.heartbeat_interval)?;
        positive("handshake_timeout", self.handshake_timeout)?;
        countable("queue_soft_time", self.queue_soft_time)?;
        countable("readmit_delay_min", self.readmit_delay_min)?;
        countable("readmit_delay_max", self.readmit_delay_max)?;
        countable("readmit_window", self.readmit_window)?;
        countable("back_pressure", self.back_pressure.longest().unwrap_or_default())
    }
}

/// What a follower speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// Paceline's extension if the leader knows it, 1.0.0 if not.
    #[default]
    Auto,
    /// 1.0.0 only, without asking for more.
    V1,
    /// Paceline's extension only: a leader that does not know it is not followed.
    Extension,
}

/// What of a directory may be given up for a leader that has it not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Adopt {
    /// Nothing.
    #[default]
    Nothing,
    /// The files of a directory that has no data set id: it was never a leader's, nor a copy since there are such ids.
    Nobodys,
    /// What is here of this data set, if it is the directory's: then any leader's may take its place. To name it keeps the word, left in
    /// a configuration, from giving up anything else later.
    DataSet(DataSetId),
}

/// Settings of a [`Follower`](crate::Follower).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FollowerConfig {
    /// The leader's address, `HOST:PORT`. Resolved anew at each attempt.
    pub leader: String,
    /// The directory that becomes a copy of the leader's.
    pub data_dir: PathBuf,
    /// What the leader wants to see.
    pub secret: Secret,
    /// The follower's own id. Defaults to `None`: the one kept in `.clustering_id`, made at random if there is none.
    pub id: Option<NodeId>,
    /// Whose files in the directory may be given up. Defaults to [`Adopt::Nothing`].
    pub adopt: Adopt,
    /// The largest share, 0 to 1, of the files and of the bytes in the directory that a sync may delete where nothing shows that the
    /// leader is the right one: it speaks 1.0.0, or the directory has no data set id yet. A sync that would delete more of both
    /// stops before it changes anything ([`Error::TooManyDeletes`]), and is tried again later. 1 allows everything. Defaults to 0.9: what was
    /// compacted, or drained a little, goes through, and a leader whose disk is not mounted does not.
    pub max_delete: f64,
    /// Whether to end after one full sync instead of following the stream. Defaults to false.
    pub once: bool,
    /// What to speak. Defaults to [`Protocol::Auto`]: asking costs a leader of 1.0.0 one more connection.
    pub protocol: Protocol,
    /// What an acknowledgement says of bytes to a leader of 1.0.0, which knows one kind. (A leader of the extension is told all
    /// three by marks, whatever is set here; durable is what it asked to be made so.)
    ///
    /// Defaults to [`Durability::Durable`]: that is what LavinMQ's own followers have meant by it since 2.9, and what a leader
    /// relies on that confirms to its clients by it. The stream goes on while the disk is at work, by up to 64 MiB, and what is
    /// applied meanwhile is made durable and acknowledged together. `Written` is what followers up to 2.8 meant, and quicker with
    /// leaders up to 2.8, which send nothing more until all is acknowledged. LavinMQ 2.9 drops a follower after about 3 s without
    /// an acknowledgement: where the disk may take longer, only `Written` helps.
    pub durability: Durability,
    /// How long connecting and each step of the handshake may take. Defaults to 5 s.
    pub connect_timeout: Duration,
    /// The first delay before connecting again; it doubles with each failure, and half of it is jitter. Defaults to 100 ms.
    pub retry_delay_min: Duration,
    /// The longest such delay. Defaults to 10 s.
    pub retry_delay_max: Duration,
    /// How long what a sync deletes, overwrites or cuts is kept in `.paceline/kept`, see [`Kept`](crate::follower::Kept). Zero: it is
    /// not. Defaults to 7 days: a wrong leader is noticed after a weekend, too.
    pub keep: Duration,
    /// How many bytes of that are kept at most. It takes no room that a sync needs: on a full disk it is dropped. Defaults to 16 GiB;
    /// to get a whole directory back, as much as that has.
    pub keep_bytes: u64,
    /// The directory's lock, where who starts the follower has it.
    pub(crate) lock: Option<DirLock>,
}

impl FollowerConfig {
    /// The defaults, for this leader, directory and secret.
    pub fn new(leader: impl Into<String>, data_dir: impl Into<PathBuf>, secret: Secret) -> Self {
        Self {
            leader: leader.into(),
            data_dir: data_dir.into(),
            secret,
            id: None,
            adopt: Adopt::Nothing,
            max_delete: 0.9,
            once: false,
            protocol: Protocol::default(),
            durability: Durability::Durable,
            connect_timeout: Duration::from_secs(5),
            retry_delay_min: Duration::from_millis(100),
            retry_delay_max: Duration::from_secs(10),
            keep: KEEP,
            keep_bytes: KEEP_BYTES,
            lock: None,
        }
    }

    /// Checks every setting.
    pub fn check(&self) -> Result<(), Error> {
        positive("connect_timeout", self.connect_timeout)?;
        positive("retry_delay_min", self.retry_delay_min)?;
        if !(0.0..=1.0).contains(&self.max_delete) {
            return Err(Error::Setting { name: "max_delete", reason: "must be within 0 and 1".into() });
        }
        countable("retry_delay_max", self.retry_delay_max)?;
        if self.retry_delay_max < self.retry_delay_min {
            let reason = format!("must be at least retry_delay_min ({:?})", self.retry_delay_min);
            return Err(Error::Setting { name: "retry_delay_max", reason });
        }
        Ok(())
    }
}

fn at_least(name: &'static str, value: u64, min: u64) -> Result<(), Error> {
    if value < min {
        return Err(Error::Setting { name, reason: format!("is {value}, must be at least {min}") });
    }
    Ok(())
}

/// The longest time that a setting may be.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

pub(crate) fn positive(name: &'static str, value: Duration) -> Result<(), Error> {
    if value.is_zero() {
        return Err(Error::Setting { name, reason: "must be longer than 0 s".into() });
    }
    countable(name, value)
}

/// Fails for a time so long that adding it to the clock's, or a few of it, might overflow.
pub(crate) fn countable(name: &'static str, value: Duration) -> Result<(), Error> {
    if value > DURATION_MAX {
        return Err(Error::Setting { name, reason: "must be at most 365 days".into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_no_clock_can_count_are_refused() {
        let secret = || Secret::new("secret").unwrap();
        type Set = fn(&mut LeaderConfig);
        let leader: [(&str, Set); 11] = [
            ("write_timeout", |config| config.write_timeout = Duration::MAX),
            ("ack_timeout", |config| config.ack_timeout = Duration::MAX),
            ("in_sync_timeout", |config| config.in_sync_timeout = Duration::MAX),
            ("sync_timeout", |config| config.sync_timeout = Duration::MAX),
            ("heartbeat_interval", |config| config.heartbeat_interval = Duration::MAX),
            ("handshake_timeout", |config| config.handshake_timeout = Duration::MAX),
            ("queue_soft_time", |config| config.queue_soft_time = Duration::MAX),
            ("readmit_delay_min", |config| config.readmit_delay_min = Duration::MAX),
            ("readmit_delay_max", |config| config.readmit_delay_max = Duration::MAX),
            ("readmit_window", |config| config.readmit_window = Duration::MAX),
            ("back_pressure", |config| {
                (config.back_pressure, config.min_in_sync) = (BackPressure::Wait(Duration::MAX), 1);
            }),
        ];
        for (name, set) in leader {
            let mut config = LeaderConfig::new("unused", secret());
            set(&mut config);
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("365 days"), "{error}");
        }
        for name in ["connect_timeout", "retry_delay_max"] {
            let mut config = FollowerConfig::new("unused", "unused", secret());
            match name {
                "connect_timeout" => config.connect_timeout = Duration::MAX,
                _ => config.retry_delay_max = Duration::MAX,
            }
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("365 days"), "{error}");
        }
    }
}
