//! What all threads of a leader share.

mod failure;
mod reading;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::LeaderConfig;
use crate::datadir::DataDir;
use crate::first_look::FirstLook;
use crate::index::blocks::{Blocks, Notes};
use crate::index::chunks::ChunkCache;
use crate::index::hash::HashCache;
use crate::index::{FileId, Version};
use crate::leader::commit::Commits;
use crate::leader::files::exclude::Exclude;
use crate::leader::files::locks::FileLocks;
use crate::leader::files::looks::Looks;
use crate::leader::files::unreadable::Unreadable;
use crate::leader::peers::admission::Admission;
use crate::leader::peers::clash::Clashes;
use crate::leader::peers::door::Door;
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::history::History;
use crate::leader::peers::progress::Progress;
use crate::leader::peers::status::EvictionReason;
use crate::leader::peers::strangers::Strangers;
use crate::leader::peers::unauthenticated::Unauthenticated;
use crate::leader::stream::Stream;
use crate::stop::Stop;
use crate::sys::net::{Shutdown, TcpListener};
use crate::sys::socket2::SockRef;
use crate::sys::sync::Mutex;
use crate::sys::sync::OnceLock;
use crate::sys::time::Instant;
use crate::thread::Group;
use crate::types::{DataSetId, RelPath, StreamPosition};

pub(in crate::leader) use self::reading::id_of;

/// What all threads of a leader share.
pub(in crate::leader) struct Core {
    pub(in crate::leader) config: LeaderConfig,
    pub(in crate::leader) dir: DataDir,
    pub(in crate::leader) data_set: DataSetId,
    pub(in crate::leader) exclude: Exclude,
    /// What cannot be looked at.
    pub(in crate::leader) unreadable: Unreadable,
    /// How the directory was lost.
    pub(in crate::leader) lost: OnceLock<&'static str>,
    pub(in crate::leader) stream: Arc<Stream>,
    /// Closed until the directory is read.
    pub(in crate::leader) door: Door,
    pub(in crate::leader) file_locks: FileLocks,
    pub(in crate::leader) hashes: HashCache,
    pub(in crate::leader) chunks: ChunkCache,
    /// What is to be looked at besides the content of files.
    pub(in crate::leader) looks: Looks,
    /// What followers were sent, should somebody watch the directory.
    pub(in crate::leader) blocks: Arc<Blocks>,
    /// When the directory was read: before that, in nanoseconds since 1970, and the position after.
    pub(in crate::leader) read_at: OnceLock<(i64, StreamPosition)>,
    /// Until whoever watches the directory takes it over.
    pub(in crate::leader) first_look: Mutex<Option<FirstLook>>,
    /// A follower has come: what was announced may have been read.
    pub(in crate::leader) was_joined: AtomicBool,
    /// Chosen at random at the start: tells followers that know the extension one start from the next.
    pub(in crate::leader) epoch: u64,
    /// Of the election that was won; `None` outside a cluster.
    pub(in crate::leader) term: Option<u64>,
    pub(in crate::leader) admission: Admission,
    /// All that have authenticated, in the order they came.
    pub(in crate::leader) followers: Mutex<Vec<Arc<FollowerHandle>>>,
    pub(in crate::leader) history: History,
    pub(in crate::leader) clashes: Clashes,
    pub(in crate::leader) unauthenticated: Unauthenticated,
    pub(in crate::leader) listeners: Mutex<Vec<TcpListener>>,
    pub(in crate::leader) progress: Progress,
    pub(in crate::leader) commits: Commits,
    pub(in crate::leader) threads: Group,
    pub(in crate::leader) stopping: AtomicBool,
    /// Which thread failed, and how.
    pub(in crate::leader) failure: OnceLock<String>,
    /// Connections of followers that have a copy of another data set.
    pub(in crate::leader) strangers: Strangers,
    /// Nothing is announced any more.
    pub(in crate::leader) ended: Stop,
    /// A shutdown has come to its end.
    pub(in crate::leader) shut_down: AtomicBool,
}

impl Core {
    /// Which file on disk has this name, if one has.
    pub(in crate::leader) fn file_at(&self, path: &RelPath) -> Option<FileId> {
        self.dir.root().metadata(path).ok().flatten().map(|meta| id_of(&meta))
    }

    /// What is read of a file for a follower, or to be digested, is noted with these, should somebody watch the directory.
    pub(in crate::leader) fn notes(&self, path: &RelPath, version: Version) -> Option<Notes> {
        Notes::of(&self.blocks, path, version)
    }

    /// Whether what is in a folder may be replicated. What cannot be looked at may be.
    pub(in crate::leader) fn holds_content(&self, folder: &RelPath) -> bool {
        let is_lost_and_found = || self.dir.root().is_lost_and_found(folder).unwrap_or_default();
        !folder.is_reserved() && !self.exclude.folder(folder) && !is_lost_and_found()
    }

    pub(in crate::leader) fn excludes(&self, path: &RelPath) -> bool {
        path.is_reserved() || self.exclude.file(path)
    }

    /// A follower may have more of the stream than before.
    pub(in crate::leader) fn passed(&self, follower: &FollowerHandle) {
        self.commits.passed(follower);
        if self.stopping.load(Ordering::Relaxed) {
            // Who drains waits for more than positions.
            self.progress.changed();
        } else {
            self.progress.acknowledged(follower.position());
        }
    }

    /// Adds a follower. One that is here with the same id makes way.
    pub(in crate::leader) fn register(&self, follower: &Arc<FollowerHandle>) {
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

    pub(in crate::leader) fn unregister(&self, follower: &Arc<FollowerHandle>) {
        self.followers.lock().retain(|other| !Arc::ptr_eq(other, follower));
    }

    pub(in crate::leader) fn is_shut_down(&self) -> bool {
        self.shut_down.load(Ordering::SeqCst)
    }

    pub(in crate::leader) fn stop_accepting(&self) {
        let listeners = {
            let mut listeners = self.listeners.lock();
            self.stopping.store(true, Ordering::SeqCst);
            std::mem::take(&mut *listeners)
        };
        listeners.iter().for_each(stop_listening);
        self.door.give_up();
        self.unauthenticated.close_all();
    }
}

/// Makes a blocked `accept` return; Linux does that when a listening socket is shut down.
fn stop_listening(listener: &TcpListener) {
    let _ = SockRef::from(listener).shutdown(Shutdown::Both);
}
