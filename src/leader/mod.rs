//! The leader: announces what is written to a data directory to any number of followers, and never waits for one.
//!
//! ```text
//! host threads ── append/replace/delete ──▶ [ordered: index + open batch]     stream.rs, stream/announce.rs
//!                                              │ sealed: Arc<Batch>           batch.rs
//!                                         leader thread
//!               try_send ┌────────────────────┼────────────────────┐
//!                        ▼                    ▼                    ▼
//!                  bounded channel      bounded channel      bounded channel
//!                        ▼                    ▼                    ▼
//!                  writer thread        writer thread        writer thread    connection.rs, socket.rs
//!                  ack thread           ack thread           ack thread       acks.rs, messages.rs
//! ```
//!
//! A follower joins by a full sync (`full_sync.rs`) or, with the extension, by resuming (`resume.rs`), and then catches up
//! (`catch_up.rs`) until it can attach to the stream; one that is demoted begins there again (`demotion.rs`).
//!
//! # Threads
//!
//! `leader` seals and pushes batches; `demotion` takes full queues away (`demotion.rs`, if so set); `accept` takes connections
//! (one a listener); `beats` tells followers that the leader is alive (`beats.rs`); `follower` and `ack-ID` are the two of each connection; `directory` looks after the directory (`directory.rs`); `in-sync`, `sync` and `commits` are those of commits (`commit/`); `last-led` notes what there is (`last_led.rs`). All belong to one group, joined by [`Leader::shutdown`] with no lock held.
//!
//! # Locks
//!
//! In the order they are taken: that of commits (`commit/`), with nothing else; a file's lock (`file.rs`) or a waiter's (`progress.rs`), then those of the stream: `cut`,
//! `attached`, `ordered` (`stream.rs`). All others are leaves: nothing is locked while one of them is held. None of them is
//! held while a thread is joined, a socket read or written, or a line logged (I6).

mod accept;
mod acks;
mod admission;
mod batch;
mod beats;
mod catch_up;
mod clash;
mod commit;
mod connection;
mod demotion;
mod digester;
mod directory;
mod discarded;
mod exclude;
mod failure;
mod file;
mod follower;
mod full_sync;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod handshake;
mod history;
mod in_flight;
mod last_led;
mod messages;
mod meter;
mod moves;
mod progress;
mod ranges;
mod resume;
mod socket;
mod stalls;
mod status;
mod stream;
mod unreadable;
mod view;

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use self::accept::Unauthenticated;
use self::admission::Admission;
use self::clash::Clashes;
use self::commit::{Alone, Commits, Syncer};
use self::exclude::Exclude;
use self::file::FileLocks;
use self::follower::FollowerHandle;
use self::handshake::Strangers;
use self::history::History;
use self::last_led::LastLed;
use self::progress::Progress;
use self::stream::{Content, INLINE_BYTES_MAX, Stream};
use self::unreadable::Unreadable;
use crate::config::{Durability, LeaderConfig, OnFull};
use crate::coordinator::{InSyncSet, Leadership};
use crate::datadir::{DataDir, FoundFile, Visitor, walk};
use crate::digests::file::{Reader, Who};
use crate::digests::{self, Stamps};
use crate::error::{AppendError, Error};
use crate::flusher::Flusher;
use crate::index::chunks::ChunkCache;
use crate::index::hash::HashCache;
use crate::index::{FileId, Index};
use crate::own_folder::{OwnFolder, is_incomplete, is_suspect};
use crate::stop::Stop;
use crate::sys::fs::{File, Metadata, MetadataExt};
use crate::sys::hash::HashMap;
use crate::sys::net::{SocketAddr, TcpListener, ToSocketAddrs};
use crate::sys::random;
use crate::sys::sync::{Mutex, OnceLock};
use crate::sys::thread;
use crate::sys::time::Instant;
use crate::thread::{DROP_JOIN_MAX, Group, deadline};
use crate::types::{DataSetId, NodeId, RelPath, StreamPosition};

pub use self::commit::{BelowMin, CommitLevel, CommitOutcome, Committed, InSyncStatus, Quorum, Refusal, Unknown};
pub use self::file::ReplicatedFile;
pub use self::history::EVICTIONS_KEPT;
pub use self::status::{CatchUpStatus, Eviction, EvictionReason, FollowerState, FollowerStatus, SyncSent};
pub use self::unreadable::NotReplicated;

/// The leader of a data directory.
///
/// All methods take `&self` and may be called from any number of threads at once. None of them waits for a follower, but
/// those that say so: [`wait_for_window`](Self::wait_for_window) and [`shutdown`](Self::shutdown).
pub struct Leader {
    core: Arc<Core>,
}

/// How long a host may take to announce what it has put in a file's place, before it is taken as it is found; and how often that is looked at meanwhile.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(1);
const ANNOUNCED_LOOK_EVERY: Duration = Duration::from_millis(2);

/// What all threads of a leader share.
struct Core {
    config: LeaderConfig,
    dir: DataDir,
    data_set: DataSetId,
    exclude: Exclude,
    /// What cannot be looked at.
    unreadable: Unreadable,
    /// How the directory was lost.
    lost: OnceLock<&'static str>,
    stream: Arc<Stream>,
    file_locks: FileLocks,
    hashes: HashCache,
    chunks: ChunkCache,
    /// Chosen at random at the start: tells followers that know the extension one start from the next.
    epoch: u64,
    admission: Admission,
    /// All that have authenticated, in the order they came.
    followers: Mutex<Vec<Arc<FollowerHandle>>>,
    history: History,
    clashes: Clashes,
    unauthenticated: Unauthenticated,
    listeners: Mutex<Vec<TcpListener>>,
    progress: Progress,
    commits: Commits,
    threads: Group,
    stopping: AtomicBool,
    /// Which thread failed, and how.
    failure: OnceLock<String>,
    /// Connections of followers that have a copy of another data set.
    strangers: Strangers,
    /// Nothing is announced any more.
    ended: Stop,
    /// A shutdown has come to its end.
    shut_down: AtomicBool,
}

/// What the first walk finds.
struct Scan<'a> {
    index: Index,
    /// How each file looked, and which generation it is.
    looks: HashMap<RelPath, (Stamps, u64)>,
    /// Each file that is found is a change.
    position: u64,
    exclude: &'a Exclude,
    unreadable: &'a Unreadable,
    root: &'a Path,
}

impl Visitor for Scan<'_> {
    fn folder(&mut self, path: &RelPath) -> bool {
        !self.exclude.folder(path)
    }

    fn file(&mut self, file: FoundFile) {
        if !self.exclude.file(&file.path) {
            self.position += 1;
            self.looks.insert(file.path.clone(), (file.stamps, self.position));
            self.index.put(&file.path, file.len, Some(file.id), self.position);
        }
    }

    fn unseen(&mut self, path: &RelPath, error: Error) -> Result<(), Error> {
        self.unreadable.note(self.root, path, &directory::io_of(error), false);
        Ok(())
    }
}

impl Scan<'_> {
    /// The digests that are kept of files that look as they did.
    fn known(&mut self, own: &OwnFolder) -> ChunkCache {
        let (cache, looks) = (ChunkCache::default(), std::mem::take(&mut self.looks));
        for known in Reader::open(own, Who::Leader).into_iter().flatten() {
            // What was found sound can be read.
            let Ok((path, digested)) = known else { break };
            if let Some((stamps, generation)) = looks.get(&path)
                && digested.stamps.are(stamps)
            {
                cache.know(*generation, digested);
            }
        }
        cache
    }
}

/// A bounded window of unacknowledged bytes; see [`Leader::wait_for_window`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Window {
    /// The most action bytes that followers may leave unacknowledged.
    pub bytes: u64,
    /// A follower that acknowledged nothing for this long does not hold the window up: it is on its way to being evicted.
    /// Defaults to 100 ms.
    pub stall_grace: Duration,
}

impl Window {
    /// A window of this many bytes. Choose less than `queue_bytes`.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self { bytes, stall_grace: Duration::from_millis(100) }
    }
}

/// What a shutdown left undone.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Followers that have acknowledged everything, as durable if commits ask for that and the follower ever says so.
    pub drained: Vec<NodeId>,
    /// Followers that have not, and how many action bytes they had not acknowledged (0: what they have is perhaps not durable);
    /// `None` if they were still joining.
    pub undrained: Vec<(NodeId, Option<u64>)>,
    /// Threads that did not end in time; always 0 unless the disk hangs.
    pub threads_left: usize,
}

impl Leader {
    /// Takes the directory's `.lock`, scans what is there, and starts. Nobody is listened to until [`listen`](Self::listen),
    /// so a host may first put its own files right.
    ///
    /// Blocks while the directory is walked. All that is in it is announced with the length it has.
    ///
    /// # Errors
    ///
    /// If a setting is out of range; if the directory is missing, in use or cannot be read; [`Error::Incomplete`] if it is a copy that is
    /// not complete, [`Error::Suspect`] if a sync of it has failed, and [`Error::Missing`] if much of what was last announced from it is gone. The directory is as it was then.
    pub fn open(config: LeaderConfig) -> Result<Self, Error> {
        Self::open_with(config, Arc::new(Alone), None, true)
    }

    /// The same with calls of one's own that make durable. For tests.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open).
    #[doc(hidden)]
    pub fn open_flushed_by(config: LeaderConfig, flusher: Arc<dyn Flusher>) -> Result<Self, Error> {
        Self::open(config.flushed_by(flusher))
    }

    /// Like [`open`](Self::open), for a node of a cluster that has won an election: what follows in sync is recorded with the
    /// coordinator by a thread of its own, and nothing is confirmed as committed once the election is not held any more.
    /// `recorded` is the in-sync set as the coordinator has it, which this node should be in.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open).
    pub fn open_elected(
        config: LeaderConfig,
        leadership: Arc<dyn Leadership>,
        recorded: Option<&InSyncSet>,
    ) -> Result<Self, Error> {
        Self::open_with(config, leadership, recorded, true)
    }

    /// Like [`open_elected`](Self::open_elected), but leaves the recorded in-sync set as it is until
    /// [`begin_recording`](Self::begin_recording), or until something is to be committed on all: a node that turns out not to be
    /// able to serve must not have taken from others the right to lead.
    pub(crate) fn open_standing_by(
        config: LeaderConfig,
        leadership: Arc<dyn Leadership>,
        recorded: Option<&InSyncSet>,
    ) -> Result<Self, Error> {
        Self::open_with(config, leadership, recorded, false)
    }

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

    fn open_with(
        config: LeaderConfig,
        leadership: Arc<dyn Leadership>,
        recorded: Option<&InSyncSet>,
        recording: bool,
    ) -> Result<Self, Error> {
        config.check()?;
        let (exclude, unreadable) = (Exclude::new(&config.exclude)?, Unreadable::default());
        let mut dir = DataDir::open_unclaimed(&config.data_dir, config.id, config.lock.clone())?;
        if is_suspect(dir.path()) {
            return Err(Error::Suspect(dir.path().to_owned()));
        }
        if is_incomplete(dir.path()) {
            return Err(Error::Incomplete(dir.path().to_owned()));
        }
        let looked = dir.root().look_at_mounts();
        looked.map_err(|error| Error::io("look at the mounts below", dir.path(), error))?;
        let mut scan = Scan {
            index: Index::new(),
            looks: HashMap::default(),
            position: StreamPosition::START.0,
            exclude: &exclude,
            unreadable: &unreadable,
            root: dir.path(),
        };
        walk(dir.root(), None, &mut scan)?;
        let chunks = scan.known(dir.own());
        let (index, position) = (scan.index, StreamPosition(scan.position));
        let led = LastLed::now(dir.path(), &config.exclude, &exclude, index.totals())?;
        if !config.accept_missing {
            last_led::check(&dir, &led)?;
        }
        // Before the id, by which an earlier version knows a directory that may be deleted from.
        let data_set = dir.data_set_to_lead()?;
        dir.claim()?;
        dir.own().tidy()?;
        digests::file::led(dir.own())?;
        let core = Arc::new(Core {
            stream: Arc::new(Stream::new(index, position, &config)),
            exclude,
            unreadable,
            lost: OnceLock::new(),
            commits: Commits::new(&config, dir.id(), leadership, recorded, recording),
            dir,
            data_set,
            admission: Admission::new(&config),
            config,
            file_locks: FileLocks::default(),
            hashes: HashCache::default(),
            chunks,
            epoch: random::u64(1..),
            followers: Mutex::default(),
            history: History::default(),
            clashes: Clashes::default(),
            unauthenticated: Unauthenticated::default(),
            listeners: Mutex::default(),
            progress: Progress::default(),
            threads: Group::default(),
            stopping: AtomicBool::new(false),
            failure: OnceLock::new(),
            strangers: Strangers::default(),
            ended: Stop::new(),
            shut_down: AtomicBool::new(false),
        });
        core.close_if_a_thread_fails();
        let leader = Self { core };
        leader.start_threads(led).map_err(|error| Error::io("start a thread for", leader.core.dir.path(), error))?;
        Ok(leader)
    }

    fn start_threads(&self, led: LastLed) -> io::Result<()> {
        let stream = self.core.stream.clone();
        self.core.threads.spawn_until("leader", self.core.is_told_to_end(), move || stream.run_leader())?;
        let core = self.core.clone();
        self.core.threads.spawn_until("beats", self.core.is_told_to_end(), move || beats::run(&core))?;
        let core = self.core.clone();
        self.core
            .threads
            .spawn_until("in-sync", self.core.is_told_to_end(), move || core.commits.run_recorder(&core.stream))?;
        let (core, syncer) = (self.core.clone(), Syncer::new(self.core.dir.path(), self.core.config.flusher.clone())?);
        self.core.threads.spawn_until("sync", self.core.is_told_to_end(), move || {
            core.commits.run_syncer(&core.stream, &syncer, core.dir.own());
        })?;
        let core = self.core.clone();
        self.core.threads.spawn_until("commits", self.core.is_told_to_end(), move || core.commits.run_callbacks())?;
        let core = self.core.clone();
        let told = self.core.is_told_to_end();
        self.core.threads.spawn_until("last-led", told, move || last_led::run(&core, led, &core.ended))?;
        let core = self.core.clone();
        self.core.threads.spawn_until("digests", self.core.is_told_to_end(), move || digester::run(&core))?;
        let core = self.core.clone();
        self.core.threads.spawn_until("directory", self.core.is_told_to_end(), move || directory::run(&core))?;
        if self.core.config.on_full == OnFull::CatchUp {
            let core = self.core.clone();
            self.core.threads.spawn_until("demotion", self.core.is_told_to_end(), move || demotion::run(&core))?;
        }
        Ok(())
    }

    /// Accepts followers on `address` from now on; may be called for several. Returns the address in use, of interest for
    /// port 0.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound, or the leader is shut down.
    pub fn listen(&self, address: impl ToSocketAddrs) -> Result<SocketAddr, Error> {
        self.listen_on(Self::bind(address)?)
    }

    /// Binds the address of a leader that is not open yet, for [`listen_on`](Self::listen_on): so that a port that is taken is known
    /// before the directory becomes a leader's.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound.
    pub fn bind(address: impl ToSocketAddrs) -> Result<TcpListener, Error> {
        let failed = |at: String, source: io::Error| Error::Listen { who: "followers", at, source };
        let addresses: Vec<_> = address
            .to_socket_addrs()
            .map_err(|error| failed("the address that was given".to_owned(), error))?
            .collect();
        let shown = || addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let failed = |error| failed(shown(), error);
        TcpListener::bind(&addresses[..]).map_err(failed)
    }

    /// Like [`listen`](Self::listen), on a socket that listens already.
    ///
    /// # Errors
    ///
    /// If the system refuses, or the leader is shut down.
    pub fn listen_on(&self, listener: TcpListener) -> Result<SocketAddr, Error> {
        let failed = |source| Error::Listen { who: "followers", at: "its address".to_owned(), source };
        let bound = listener.local_addr().map_err(failed)?;
        let kept = listener.try_clone().map_err(failed)?;
        {
            let mut listeners = self.core.listeners.lock();
            // Looked at under the lock: a shutdown either sees this listener or is seen here.
            if self.core.stopping.load(Ordering::SeqCst) {
                return Err(Error::ShuttingDown);
            }
            listeners.push(kept);
        }
        let core = self.core.clone();
        self.core
            .threads
            .spawn_until("accept", self.core.is_told_to_end(), move || accept::run(&core, &listener))
            .map_err(failed)?;
        Ok(bound)
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
    pub(crate) fn data_dir(&self) -> &std::path::Path {
        self.core.dir.path()
    }

    /// The bound of what is held for a follower.
    pub(crate) fn queue_bytes(&self) -> u64 {
        self.core.config.queue_bytes
    }

    /// Announces `bytes` that are already written to the file at `offset`, and returns the stream position after them.
    ///
    /// Never blocks on a follower; the cost does not depend on what any of them does. More than 256 KiB are not copied but read
    /// from the file again, when each follower gets there. Empty `bytes` make the file known, should it not be.
    ///
    /// # Errors
    ///
    /// If `offset` is not the file's announced length, which means that appends were announced out of order; if the name is
    /// never replicated; if the leader is shut down. Nothing was announced then.
    pub fn append(&self, path: &RelPath, offset: u64, bytes: &[u8]) -> Result<StreamPosition, AppendError> {
        self.announce_append(path, offset, content_of(bytes))
    }

    /// Like [`append`](Self::append), for `length` bytes that the caller does not hold: all are read from the file, when each
    /// follower gets there. Looks whether the file is as long.
    ///
    /// # Errors
    ///
    /// As of [`append`](Self::append); and [`AppendError::Io`] if the file is not there, or shorter than that.
    pub fn append_from_file(&self, path: &RelPath, offset: u64, length: u64) -> Result<StreamPosition, AppendError> {
        let failed = |source| AppendError::Io { doing: "append from", path: path.clone(), source };
        let on_disk = self.core.dir.root().metadata(path).map_err(failed)?;
        let on_disk = on_disk.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?.len();
        if offset.checked_add(length).is_none_or(|end| end > on_disk) {
            let short = format!("{length} bytes at {offset} were announced, but the file ends at {on_disk}");
            return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, short)));
        }
        self.announce_append(path, offset, Content::OnDisk(length))
    }

    fn announce_append(
        &self,
        path: &RelPath,
        offset: u64,
        content: Content<'_>,
    ) -> Result<StreamPosition, AppendError> {
        if let Some(position) = self.core.stream.append(path, offset, content)? {
            return Ok(position);
        }
        if !self.replicates(path) {
            return Err(AppendError::NotReplicated(path.clone()));
        }
        self.core.stream.create(path, content, self.core.file_at(path), self.core.unreadable.is_kept(path))
    }

    /// Announces that the file has new content, complete on disk, and returns the stream position after it.
    ///
    /// Reads up to 256 KiB of it here; more is read when each follower gets there. Never blocks on a follower. Protocol 1.0.0
    /// cannot say that a file became empty: followers delete it then, until it has content again.
    ///
    /// For a commit to outlive a power loss of this host, it syncs new content before it renames it over what was committed.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, the name is never replicated, or the leader is shut down. Nothing was announced then.
    pub fn replace(&self, path: &RelPath) -> Result<StreamPosition, AppendError> {
        if !self.replicates(path) {
            return Err(AppendError::NotReplicated(path.clone()));
        }
        let announced = {
            let _one_at_a_time = self.core.file_locks.of(path).lock();
            self.core.announce_locked(path, true)
        };
        if announced.is_ok() {
            self.core.can_read(path);
        }
        announced
    }

    /// Announces that the file is gone, and returns the stream position after that. Never blocks on a follower. Does nothing
    /// for a file that was not announced.
    ///
    /// The file must be gone, and not be made again until this returns.
    ///
    /// # Errors
    ///
    /// If the leader is shut down.
    pub fn delete(&self, path: &RelPath) -> Result<StreamPosition, AppendError> {
        let _one_at_a_time = self.core.file_locks.of(path).lock();
        self.core.stream.delete(path)
    }

    /// Announces that a file was renamed, over whatever the new name was, and returns the stream position after it. Never blocks
    /// on a follower. Followers that know the extension rename theirs; others get it whole under the new name.
    ///
    /// The file must have its new name already. Where only one of the names is replicated, this is a delete or a replace; so it
    /// is where the old name was another file's, or none's, when it was read for a follower.
    ///
    /// # Errors
    ///
    /// If the file was not announced and cannot be read under its new name, or the leader is shut down.
    pub fn rename(&self, from: &RelPath, to: &RelPath) -> Result<StreamPosition, AppendError> {
        if !self.replicates(to) {
            return self.delete(from);
        }
        let _one_at_a_time = self.core.file_locks.both(from, to);
        match self.core.stream.rename(from, to, self.core.file_at(to))? {
            Some(position) => Ok(position),
            None => {
                self.core.stream.delete(from)?;
                self.core.announce_locked(to, true)
            }
        }
    }

    /// Announces that the file ends at `len` from now on, and returns the stream position after it. Never blocks on a follower.
    /// Followers that know the extension cut theirs off; others get it whole.
    ///
    /// # Errors
    ///
    /// If `len` is beyond the announced length, or the leader is shut down.
    pub fn truncate(&self, path: &RelPath, len: u64) -> Result<StreamPosition, AppendError> {
        let _one_at_a_time = self.core.file_locks.of(path).lock();
        self.core.stream.truncate(path, len)
    }

    /// Asks followers that know the extension to make durable everything announced so far, and returns the stream position that
    /// [`FollowerStatus::durable`] reaches once they have. Never blocks on a follower. So followers sync their disks when
    /// the host needs it, and not at the pace of the stream.
    ///
    /// # Errors
    ///
    /// If the leader is shut down.
    pub fn request_durable(&self) -> Result<StreamPosition, AppendError> {
        self.core.stream.request_durable()
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

    /// For a host that announces what others write: says that it cannot tell what is at `path`, or in it, for now. Followers
    /// are not told that it is gone. Call [`is_readable`](Self::is_readable) once that is over.
    pub fn is_unreadable(&self, path: &RelPath, error: &io::Error) {
        self.core.unreadable.note(self.core.dir.path(), path, error, true);
    }

    /// Ends what [`is_unreadable`](Self::is_unreadable) began.
    pub fn is_readable(&self, path: &RelPath) {
        self.core.can_read(path);
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

    /// Waits until every follower that keeps up has acknowledged all but `window.bytes`; for hosts that would rather wait
    /// than have a healthy follower evicted by sheer speed. Call it between appends.
    ///
    /// Returns `true` within the window, `false` after `timeout`. Who waits is woken when half of the window is free.
    pub fn wait_for_window(&self, window: &Window, timeout: Duration) -> bool {
        let stream = &self.core.stream;
        let full = |bytes: u64| {
            let now = stream.position();
            let behind = |follower: &FollowerHandle| follower.is_behind_but_moving(now, bytes, window.stall_grace);
            stream.any_attached(behind).then(|| StreamPosition(now.0.saturating_sub(bytes)))
        };
        if full(window.bytes).is_none() {
            return true;
        }
        self.core.progress.wait(deadline(timeout), window.stall_grace, || full(window.bytes / 2))
    }

    /// For a watchdog: whether announcements are taken and dispatched. Blocks up to `within`, and for as long as the critical
    /// section of appends is held, which is nothing unless there is a defect.
    pub(crate) fn is_dispatching(&self, within: Duration) -> bool {
        let _ = self.position();
        self.core.stream.is_dispatching(within)
    }

    /// Refuses further announcements, lets attached followers acknowledge everything for up to `drain`, at the durability that
    /// commits ask for, then closes all connections and joins all threads. Who has everything stays recorded as in sync. Blocks
    /// for `drain` and 8 s at most. What is done already is not done again.
    pub fn shutdown(&self, drain: Duration) -> ShutdownReport {
        let core = &self.core;
        core.stop_accepting();
        // What is not waited for need not be asked for.
        let durability = if drain.is_zero() { Durability::Written } else { core.config.commit_level.durability };
        let end = core.stream.close(durability == Durability::Durable);
        core.stream.push();
        let deadline = deadline(drain);
        // Wakes at each step of the slowest: drains are rare, and short.
        core.progress.wait(deadline, Duration::from_millis(100), || {
            let behind = |follower: &FollowerHandle| !follower.has_ended() && !follower.has_all(end, durability);
            core.stream.any_attached(behind).then_some(end)
        });
        core.commits.close();
        let report = core.evict_all(end, durability);
        if !core.commits.settle(core.stream.end(), Instant::now() + RECORD_MAX) && !core.is_shut_down() {
            log::warn!("who was in sync at the end could not be recorded within {RECORD_MAX:?}");
        }
        core.commits.stop();
        core.stream.stop();
        core.ended.set();
        let threads_left = core.threads.join(Instant::now() + DROP_JOIN_MAX);
        core.shut_down.store(true, Ordering::SeqCst);
        ShutdownReport { threads_left, ..report }
    }
}

impl Drop for Leader {
    /// Shuts down without draining, unless that was done.
    fn drop(&mut self) {
        if !self.core.is_shut_down() {
            self.shutdown(Duration::ZERO);
        }
    }
}

impl Core {
    /// Which file on disk has this name, if one has.
    fn file_at(&self, path: &RelPath) -> Option<FileId> {
        self.dir.root().metadata(path).ok().flatten().map(|meta| id_of(&meta))
    }

    /// Opens the file of a generation, announced as `path` at some time; `None` if there is none, or not with `len` bytes.
    ///
    /// If another file than the one that was announced is in its place, its host is about to say so: waits for that, up to [`ANNOUNCED_WITHIN`]. Otherwise
    /// some of the new content would go as if it were all of the old.
    fn open_announced(&self, path: &RelPath, generation: u64, len: u64) -> io::Result<Option<File>> {
        let until = Instant::now() + ANNOUNCED_WITHIN;
        loop {
            // Bytes below an announced length are on disk before they are announced: a file opened after this look has
            // them, or is newer, and then the index will say so.
            let Some(path) = self.stream.find(path, generation) else { return Ok(None) };
            let Some(file) = self.dir.root().file(&path)? else { return Ok(None) };
            let meta = file.metadata()?;
            // It may be there for a moment only, in another one's place. Is it still, now that it is noted which one is read,
            // then whoever moves it away finds the note after that.
            let id = id_of(&meta);
            let (now, announced) = self.stream.announced(&path);
            let is_another = now.generation == generation && announced.is_some_and(|announced| announced != id);
            if is_another && Instant::now() < until {
                thread::park_timeout(ANNOUNCED_LOOK_EVERY);
                continue;
            }
            if meta.len() < len {
                return Ok(None);
            }
            if self.stream.reads(&path, generation, id) {
                let now = self.dir.root().metadata(&path)?;
                if now.is_some_and(|now| id_of(&now) == id) {
                    return Ok(Some(file));
                }
            }
        }
    }

    /// Announces the file's content as it is on disk.
    ///
    /// Held back, where that is called for, only if it `waits`. Reading and announcing are one step under the file's lock, which the caller holds: whoever reads last announces last.
    fn announce_locked(&self, path: &RelPath, waits: bool) -> Result<StreamPosition, AppendError> {
        let failed = |source| AppendError::Io { doing: "read", path: path.clone(), source };
        let announce = |content: Content<'_>, file| match waits {
            true => self.stream.replace(path, content, file),
            false => self.stream.replace_at_once(path, content, file),
        };
        let opened = self.dir.root().file(path).map_err(failed)?;
        let file = opened.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let meta = file.metadata().map_err(failed)?;
        let length = meta.len();
        if length > INLINE_BYTES_MAX {
            return announce(Content::OnDisk(length), id_of(&meta));
        }
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes).map_err(failed)?;
        announce(Content::Bytes(&bytes), id_of(&meta))
    }

    fn excludes(&self, path: &RelPath) -> bool {
        path.is_reserved() || self.exclude.file(path)
    }

    /// A follower may have more of the stream than before.
    fn passed(&self, follower: &FollowerHandle) {
        self.commits.passed(follower);
        if self.stopping.load(Ordering::Relaxed) {
            // Who drains waits for more than positions.
            self.progress.changed();
        } else {
            self.progress.acknowledged(follower.position());
        }
    }

    /// Adds a follower. One that is here with the same id makes way.
    fn register(&self, follower: &Arc<FollowerHandle>) {
        let replaced: Vec<_> = {
            let mut followers = self.followers.lock();
            let replaced = followers.iter().filter(|other| other.id == follower.id).cloned().collect();
            followers.push(follower.clone());
            replaced
        };
        // Before this one joins: see there.
        for other in replaced {
            if !other.has_ended() {
                self.clashes.replaced(other.id, Instant::now());
            }
            other.evict_at(EvictionReason::Replaced, self.stream.position());
            self.stream.detach(&other);
            self.commits.ending();
        }
        self.commits.joins(follower);
        let (id, address) = (follower.id, follower.address);
        match self.history.last_of(id) {
            Some(last) => {
                let ago = last.at.elapsed().unwrap_or_default().as_secs_f64();
                log::info!("follower {id} at {address} is back; evicted {ago:.1} s ago: {}", last.reason);
            }
            None => log::info!("follower {id} at {address} connected"),
        }
        if self.stopping.load(Ordering::SeqCst) {
            follower.evict_at(EvictionReason::Shutdown, self.stream.position());
        }
    }

    fn unregister(&self, follower: &Arc<FollowerHandle>) {
        self.followers.lock().retain(|other| !Arc::ptr_eq(other, follower));
    }

    fn stop_accepting(&self) {
        let listeners = {
            let mut listeners = self.listeners.lock();
            self.stopping.store(true, Ordering::SeqCst);
            std::mem::take(&mut *listeners)
        };
        listeners.iter().for_each(accept::stop_listening);
        self.unauthenticated.close_all();
    }

    /// Lets all go. Who has everything and knows the extension is told so first, for up to [`GOODBYE_MAX`].
    fn evict_all(&self, end: StreamPosition, durability: Durability) -> ShutdownReport {
        let mut report = ShutdownReport::default();
        let followers = self.followers.lock().clone();
        for follower in followers.iter().filter(|follower| !follower.has_ended()) {
            let drained = follower.has_all(end, durability);
            if drained {
                report.drained.push(follower.id);
            } else {
                report.undrained.push((follower.id, follower.status(end).lag_bytes));
            }
            if !(drained && follower.extension) {
                follower.evict_at(EvictionReason::Shutdown, end);
            }
            // Its writer finds the queue's end, and says goodbye if there is no other end yet.
            self.stream.detach(follower);
        }
        self.commits.ending();
        self.progress.wait(Instant::now() + GOODBYE_MAX, Duration::from_millis(10), || {
            (!self.followers.lock().is_empty()).then_some(StreamPosition(u64::MAX))
        });
        for follower in followers {
            follower.evict_at(EvictionReason::Shutdown, end);
            follower.hang_up();
            // Its own thread may come to say so too late for the record.
            self.commits.left(&follower, self.stream.end());
        }
        report
    }

    fn is_shut_down(&self) -> bool {
        self.shut_down.load(Ordering::SeqCst)
    }
}

/// How these bytes, which are on disk, get to followers.
fn content_of(bytes: &[u8]) -> Content<'_> {
    let length = bytes.len() as u64;
    if length > INLINE_BYTES_MAX { Content::OnDisk(length) } else { Content::Bytes(bytes) }
}

fn id_of(meta: &Metadata) -> FileId {
    (meta.dev(), meta.ino())
}

/// How long a shutdown waits until it is recorded who was in sync at the end.
const RECORD_MAX: Duration = Duration::from_secs(2);

/// How long a shutdown waits until followers are told of it.
const GOODBYE_MAX: Duration = Duration::from_secs(1);
