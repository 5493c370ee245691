//! Opening a leader: what is in the directory, and the threads.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::config::LeaderConfig;
use crate::config::OnFull;
use crate::coordinator::InSyncSet;
use crate::coordinator::Leadership;
use crate::datadir::DataDir;
use crate::datadir::FoundFile;
use crate::datadir::Visitor;
use crate::datadir::walk;
use crate::digests;
use crate::digests::file::Reader;
use crate::digests::file::Who;
use crate::error::Error;
use crate::flusher::Flusher;
use crate::index::Index;
use crate::index::Version;
use crate::index::chunks::ChunkCache;
use crate::index::hash::HashCache;
use crate::leader::Leader;
use crate::leader::commit::Alone;
use crate::leader::commit::Commits;
use crate::leader::commit::Syncer;
use crate::leader::core::Core;
use crate::leader::files::exclude::Exclude;
use crate::leader::files::found::Found;
use crate::leader::files::last_led;
use crate::leader::files::last_led::LastLed;
use crate::leader::files::locks::FileLocks;
use crate::leader::files::unreadable::Unreadable;
use crate::leader::peers::admission::Admission;
use crate::leader::peers::clash::Clashes;
use crate::leader::peers::history::History;
use crate::leader::peers::progress::Progress;
use crate::leader::peers::strangers::Strangers;
use crate::leader::peers::unauthenticated::Unauthenticated;
use crate::leader::stream::Stream;
use crate::leader::tasks::beats;
use crate::leader::tasks::demotion;
use crate::leader::tasks::digester;
use crate::leader::tasks::directory;
use crate::own_folder::OwnFolder;
use crate::own_folder::is_incomplete;
use crate::own_folder::is_suspect;
use crate::stop::Stop;
use crate::sys::random;
use crate::sys::sync::Mutex;
use crate::sys::sync::OnceLock;
use crate::thread::Group;
use crate::types::RelPath;

/// What the first walk finds.
struct Scan<'a> {
    index: Index,
    /// Each file that is found is a change.
    found: Found,
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
            let change = self.found.push(&file.stamps);
            self.index.put(&file.path, file.len, Some(file.id), change);
        }
    }

    fn unseen(&mut self, path: &RelPath, error: Error) -> Result<(), Error> {
        self.unreadable.note(self.root, path, &directory::io_of(error), false);
        Ok(())
    }
}

impl Scan<'_> {
    /// The digests that are kept of files that look as they did.
    fn known(&self, own: &OwnFolder) -> ChunkCache {
        let cache = ChunkCache::default();
        for known in Reader::open(own, Who::Leader).into_iter().flatten() {
            // What was found sound can be read.
            let Ok((path, digested)) = known else { break };
            let (Version { generation, len }, file) = self.index.announced(path.as_str());
            let looks = file.and_then(|file| self.found.looks(generation, file, len));
            if looks.is_some_and(|looks| digested.stamps.are(&looks)) {
                cache.know(generation, digested);
            }
        }
        cache
    }
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
            found: Found::none_yet(),
            exclude: &exclude,
            unreadable: &unreadable,
            root: dir.path(),
        };
        walk(dir.root(), None, &mut scan)?;
        let chunks = scan.known(dir.own());
        let (position, index, found) = (scan.found.position(), scan.index, scan.found);
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
            found: Mutex::new(found),
            was_joined: AtomicBool::new(false),
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
        self.core.threads.spawn_until("last-led", told, move || {
            last_led::run(&core.dir, &core.exclude, || core.stream.totals(), led, &core.ended)
        })?;
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
}
