//! Opening: followers are accepted at once, and wait while the directory is read, which takes long where there is much.
//!
//! An [`Opening`] is a leader that has the directory's lock and no index yet. Its listeners accept, and whoever authenticates is registered as always, with all that bounds and
//! watches a follower; but its writer waits at the [`Door`] (`serve/door.rs`), before anything of files is said or counted. One that knows the extension is told how far the leader is, and goes
//! on being told that it is alive (`tasks/beats.rs`); one of 1.0.0 is used to a leader that is silent before its list. The door opens once the index is there: then each of them goes on as
//! if it had just come. It is given up where there is to be no leader after all; whoever waits there goes then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::scan::Scan;
use crate::config::LeaderConfig;
use crate::coordinator::{InSyncSet, Leadership};
use crate::datadir::{DataDir, walk};
use crate::digests::{self, now};
use crate::error::Error;
use crate::first_look::FirstLook;
use crate::index::chunks::ChunkCache;
use crate::index::hash::HashCache;
use crate::index::{Index, Items};
use crate::leader::Leader;
use crate::leader::commit::{Alone, Commits};
use crate::leader::core::Core;
use crate::leader::files::exclude::Exclude;
use crate::leader::files::found::Found;
use crate::leader::files::last_led::{self, LastLed};
use crate::leader::files::locks::FileLocks;
use crate::leader::files::looks::Looks;
use crate::leader::files::unreadable::Unreadable;
use crate::leader::peers::admission::Admission;
use crate::leader::peers::clash::Clashes;
use crate::leader::peers::door::Door;
use crate::leader::peers::history::History;
use crate::leader::peers::progress::Progress;
use crate::leader::peers::strangers::Strangers;
use crate::leader::peers::unauthenticated::Unauthenticated;
use crate::leader::stream::Stream;
use crate::leader::tasks::beats;
use crate::own_folder::{is_incomplete, is_suspect};
use crate::position::Stand;
use crate::stop::Stop;
use crate::sys::net::{SocketAddr, TcpListener, ToSocketAddrs};
use crate::sys::random;
use crate::sys::sync::{Mutex, OnceLock};
use crate::sys::time::Instant;
use crate::thread::Group;
use crate::types::{NodeId, StreamPosition};

/// A leader before it has read its directory: it takes followers already, who wait for that.
///
/// [`Leader::open`] does both in one, and is enough where nobody is to connect before. Dropping it closes all connections.
///
/// ```
/// # use paceline::{LeaderConfig, Secret, leader::Opening};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let stopped = std::sync::atomic::AtomicBool::new(false);
/// let opening = Opening::new(LeaderConfig::new(dir.path(), Secret::new("known to both")?))?;
/// let address = opening.listen("127.0.0.1:0")?;
/// let leader = opening.open(&mut |_files_so_far| !stopped.load(std::sync::atomic::Ordering::Relaxed))?;
/// # Ok(())
/// # }
/// ```
pub struct Opening {
    leader: Leader,
    is_watched: AtomicBool,
}

impl Opening {
    /// Takes the directory's `.lock`, and looks whether it may lead. Nothing in it is changed.
    ///
    /// # Errors
    ///
    /// If a setting is out of range; if the directory is missing, in use or cannot be opened; [`Error::Incomplete`] if it is a copy that is
    /// not complete, and [`Error::Suspect`] if a sync of it has failed.
    pub fn new(config: LeaderConfig) -> Result<Self, Error> {
        Self::begin(config, Arc::new(Alone), None, true)
    }

    /// The same for a node of a cluster that has won an election; see [`Leader::open_elected`]. One leader for an election: positions
    /// ([`epoch_position`](Leader::epoch_position)) would not compare if a second one began anew in the same term.
    ///
    /// # Errors
    ///
    /// As of [`new`](Self::new).
    pub fn elected(
        config: LeaderConfig,
        leadership: Arc<dyn Leadership>,
        recorded: Option<&InSyncSet>,
    ) -> Result<Self, Error> {
        Self::begin(config, leadership, recorded, true)
    }

    /// The same, but leaves the recorded in-sync set as it is until [`begin_recording`](Leader::begin_recording), or until something is to be committed on all: a node that
    /// turns out not to be able to serve must not have taken from others the right to lead.
    pub(crate) fn standing_by(
        config: LeaderConfig,
        leadership: Arc<dyn Leadership>,
        recorded: Option<&InSyncSet>,
    ) -> Result<Self, Error> {
        Self::begin(config, leadership, recorded, false)
    }

    /// Says that a [`Watcher`](crate::Watcher) will announce what happens in the directory. Then folders are watched as they are read, and the watcher needs no look at
    /// all of it again; and what followers read until it begins is noted for it. Otherwise it takes all that there was when it began for different from what they have.
    pub fn will_be_watched(&self) {
        self.leader.note_reads();
        self.is_watched.store(true, Ordering::Relaxed);
    }

    fn begin(
        config: LeaderConfig,
        leadership: Arc<dyn Leadership>,
        recorded: Option<&InSyncSet>,
        recording: bool,
    ) -> Result<Self, Error> {
        config.check()?;
        let exclude = Exclude::new(&config.exclude)?;
        let dir = DataDir::open_unclaimed(&config.data_dir, config.id, config.lock.clone())?;
        if is_suspect(dir.path()) {
            return Err(Error::Suspect(dir.path().to_owned()));
        }
        if is_incomplete(dir.path()) {
            return Err(Error::Incomplete(dir.path().to_owned()));
        }
        let looked = dir.root().look_at_mounts();
        looked.map_err(|error| Error::io("look at the mounts below", dir.path(), error))?;
        let term = leadership.term();
        let core = Arc::new(Core {
            stream: Arc::new(Stream::new(&config)),
            door: Door::default(),
            exclude,
            unreadable: Unreadable::default(),
            lost: OnceLock::new(),
            commits: Commits::new(&config, dir.id(), leadership, recorded, recording),
            // Until it is kept it is a word to followers, who keep nothing of it before they are sent something.
            data_set: dir.data_set_to_be()?,
            dir,
            admission: Admission::new(&config),
            config,
            file_locks: FileLocks::default(),
            hashes: HashCache::default(),
            chunks: ChunkCache::default(),
            looks: Looks::default(),
            blocks: Arc::default(),
            read_at: OnceLock::new(),
            first_look: Mutex::default(),
            was_joined: AtomicBool::new(false),
            epoch: random::u64(1..),
            term,
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
        let opening = Self { leader: Leader { core: core.clone() }, is_watched: AtomicBool::new(false) };
        let stream = core.stream.clone();
        let dispatch = core.threads.spawn_until("leader", core.is_told_to_end(), move || stream.run_leader());
        let of_beats = core.clone();
        let beats = || core.threads.spawn_until("beats", core.is_told_to_end(), move || beats::run(&of_beats));
        dispatch.and_then(|()| beats()).map_err(|error| Error::io("start a thread for", core.dir.path(), error))?;
        Ok(opening)
    }

    /// Accepts followers on `address` from now on, as [`Leader::listen`] does: they wait. Returns the address in use.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound.
    pub fn listen(&self, address: impl ToSocketAddrs) -> Result<SocketAddr, Error> {
        self.leader.listen(address)
    }

    /// Like [`listen`](Self::listen), on a socket that listens already; see [`Leader::bind`].
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn listen_on(&self, listener: TcpListener) -> Result<SocketAddr, Error> {
        self.leader.listen_on(listener)
    }

    /// The leader's own id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.leader.id()
    }

    /// Reads the directory, and starts: whoever waits is let in. All that is in the directory is announced with the length it has.
    ///
    /// Blocks while the directory is walked. `go_on` is asked again and again meanwhile, with the number of files found so far; once it says no, nothing is opened.
    ///
    /// # Errors
    ///
    /// [`Error::ShuttingDown`] if `go_on` said no; if the directory cannot be read; [`Error::Missing`] if much of what was last announced from it is gone. It is
    /// as it was then.
    pub fn open(self, go_on: &mut dyn FnMut(u64) -> bool) -> Result<Leader, Error> {
        let leader = self.read(go_on)?;
        leader.let_in();
        Ok(leader)
    }

    /// Like [`open`](Self::open), but whoever waits goes on waiting until [`Leader::let_in`].
    pub(crate) fn read(self, go_on: &mut dyn FnMut(u64) -> bool) -> Result<Leader, Error> {
        let core = &self.leader.core;
        let began = now();
        // Should that fail, so will the watcher, and say why.
        let look = self.is_watched.load(Ordering::Relaxed).then(|| FirstLook::begin(core.dir.path()));
        let mut scan = Scan {
            index: Index::new(),
            items: Items::default(),
            found: Found::default(),
            look: look.and_then(Result::ok),
            exclude: &core.exclude,
            unreadable: &core.unreadable,
            root: core.dir.path(),
            files: &core.door.files,
            go_on,
            ended: false,
            said: Instant::now(),
        };
        walk(core.dir.root(), None, &mut scan)?;
        scan.know(core.dir.own(), &core.chunks, &core.blocks);
        if scan.ended {
            return Err(Error::ShuttingDown);
        }
        let (position, index, items, look) = (scan.found.position(), scan.index, scan.items, scan.look);
        let led = LastLed::now(core.dir.path(), &core.config.exclude, &core.exclude, index.totals())?;
        if !core.config.accept_missing {
            last_led::check(&core.dir, &led)?;
        }
        // Before the id, by which an earlier version knows a directory that may be deleted from.
        core.dir.leads_as(core.data_set)?;
        core.dir.note_claim()?;
        core.dir.own().tidy()?;
        digests::file::led(core.dir.own())?;
        match core.term {
            Some(term) => {
                Stand::of_leader(term, StreamPosition::START).keep(core.dir.own())?;
                core.commits.own_kept(StreamPosition::START);
            }
            None => Stand::forget(core.dir.own()),
        }
        let _ = core.read_at.set((began, position));
        *core.first_look.lock() = look;
        core.stream.begin(index, items, position);
        self.leader.start_threads(led).map_err(|error| Error::io("start a thread for", core.dir.path(), error))?;
        Ok(self.leader)
    }
}

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opening").field("id", &self.id()).finish_non_exhaustive()
    }
}
