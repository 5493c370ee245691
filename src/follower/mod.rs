//! The follower: keeps a directory a copy of the leader's.
//!
//! ```text
//!                   1.0.0 ┌─▶ handshake ─▶ sync, round 1 ─▶ sync, round 2 ─┐
//!   connect ─▶ ask ───────┤                                                ├─▶ stream
//!      ▲        extension └─▶ introduction ─▶ sums ─▶ sync ───────────┘     │
//!      └───────── delay, growing, half of it chance, or what the leader wants ◀──┘  whatever ended the connection
//! ```
//!
//! `paceline-follow` connects, reads and changes the directory, all of it in order. `paceline-ack` lives for one connection
//! and writes: requests and acknowledgements (`ack`), with a clock beside it (`own_time`), or in the extension inventory, marks and heartbeats (`report`). There
//! `paceline-disk` works beside them for one connection: it reads for sums and inventory and makes durable (`disk`). `paceline-digest` lives as long as the
//! follower, digests what was written and keeps the digests on disk (`digester`). The locks are
//! leaves, described where they are (`shared`, `ack`, `report`, `disk`, `digests`), and nothing is waited for under one.
//!
//! Stopping sets a flag, shuts the socket down, which ends every read, write and connecting, and wakes the delay; being told of
//! another leader does the same. All
//! threads belong to one `Group`, joined by [`Follower::stop`] and by dropping the follower.
//!
//! Before a leader's first change it is asked whether it is the right one (`contact`): one of another data set is refused.
//! Beyond that a leader is not trusted: whatever it sends, nothing outside the directory is touched (`dir`), memory stays bounded,
//! and the worst it can do is what a leader may do, which is to change and delete replicated files.
//!
//! A copy is compared with its live leader by a follower that notes what it would be sent, and does none of it (`dry_run`).
//!
//! While a sync is changing the directory, if it did not end, and after a flush has failed, `.paceline/incomplete` is there: such
//! a directory must not be served from. What durable means here is in `flush`, and what is done when a flush fails in `mend`.

mod ack;
mod apply;
mod attributes;
mod connection;
mod contact;
mod digester;
mod digests;
mod dir;
mod disk;
pub(crate) mod dry_run;
mod extended;
mod flush;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod items;
mod kept;
mod lag;
mod mend;
mod negotiate;
mod own;
mod report;
mod reshape;
mod run;
mod session;
mod shared;
mod stage;
mod status;
mod sync;
mod track;

use std::sync::Arc;
use std::time::Duration;

use self::dir::Dir;
use self::flush::Unflushed;
pub(crate) use self::kept::{Bounds, expire};
pub use self::kept::{Kept, KeptTime};
use self::negotiate::Dialects;
use self::run::Runner;
use self::shared::Shared;
pub use self::status::{State, Status, SyncProgress};
use crate::config::FollowerConfig;
use crate::datadir::{self, DataDir};
use crate::error::Error;
#[doc(hidden)]
pub use crate::flusher::Flusher;
use crate::flusher::SystemFlusher;
use crate::own_folder::is_incomplete;
use crate::position::{EpochPosition, Stand};
use crate::sys::thread;
use crate::sys::time::Instant;
use crate::thread::{DROP_JOIN_MAX, Group};
use crate::types::NodeId;
use crate::uncached;

/// A running follower: its threads connect, sync, apply, acknowledge and reconnect until it is stopped.
///
/// Dropping it stops it, see [`Follower::stop`].
pub struct Follower {
    id: NodeId,
    shared: Arc<Shared>,
    threads: Arc<Group>,
}

impl Follower {
    /// Checks the settings, creates the directory (0700) if absent, takes its `.lock`, and starts the threads.
    ///
    /// Does not wait for the leader. The directory is otherwise left as it is until a leader's list has come, or a
    /// sync begins: only then is the id kept in it, and only if the directory is not a foreign one.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`], [`Error::InUse`], [`Error::InvalidValue`] for a damaged `.clustering_id`, and [`Error::Io`].
    pub fn start(config: FollowerConfig) -> Result<Self, Error> {
        Self::start_flushed_by(config, Arc::new(SystemFlusher))
    }

    /// The same with calls of one's own that make durable. For tests.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    #[doc(hidden)]
    pub fn start_flushed_by(config: FollowerConfig, flusher: Arc<dyn Flusher>) -> Result<Self, Error> {
        config.check()?;
        let path = &config.data_dir;
        datadir::make(path)?;
        let data = DataDir::open_unclaimed(path, config.id, config.lock.clone())?;
        let path = data.path();
        let dir = Dir::open_flushed_by(path, flusher)?;
        if is_incomplete(path) {
            log::warn!("{} is no complete copy: it is one once the next full sync has ended", path.display());
        }
        if !uncached::kernel_is_since(5, 8) {
            log::warn!(
                "this kernel tells nobody of writes that fail in the background (Linux does since 5.8): use a later one"
            );
        }
        let id = data.id();
        let (shared, threads) = (Arc::new(Shared::default()), Arc::new(Group::default()));
        shared.update(|status| status.data_set = data.data_set());
        shared.set_place(Stand::load(data.own()));
        let of_failure = shared.clone();
        threads.on_failure(move |what| of_failure.fail(what));
        shared.follow(Some(&config.leader));
        let dialects = Dialects::new(data.data_set().is_some());
        let follower = Self { id, shared: shared.clone(), threads: threads.clone() };
        let runner = Runner {
            config,
            data,
            digests: dir.digests.clone(),
            dir: Arc::new(dir),
            shared: shared.clone(),
            threads: threads.clone(),
            dialects,
            unflushed: Unflushed::all(),
            away: None,
            refused: None,
        };
        let (root, looking) = (runner.data.root().clone(), shared.clone());
        shared.claimed(runner.data.is_claimed());
        let (dir, keep) = (runner.dir.clone(), runner.keep());
        let looks = threads.spawn("paceline-dir", move || Runner::looks_after(&root, &dir, keep, &looking));
        looks.map_err(|error| Error::connection("could not start its thread", error))?;
        let at_end = FinishAtEnd(shared);
        let spawned = threads.spawn("paceline-follow", move || {
            // By then the runner is gone, and the directory is free for whoever waited for that.
            let outcome = runner.run();
            at_end.0.finish(outcome);
        });
        spawned.map_err(|error| Error::connection("could not start its thread", error))?;
        Ok(follower)
    }

    /// The follower's id: the one that was set, or the directory's, or one made at random.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// A snapshot. Does not wait for any connection or file.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Follows another leader from now on, `HOST:PORT`, or nobody until the next call. Never blocks: the connection there is
    /// is cut. What is known of local files stays known, so that little of them is read again.
    pub fn follow(&self, leader: Option<&str>) {
        self.shared.follow(leader);
    }

    /// How far the directory has come, once nothing of a former leader is applied any more. Blocks until then, at most for `timeout`; `None` after that.
    pub(crate) fn position_at_rest(&self, timeout: Duration) -> Option<Option<EpochPosition>> {
        // In this order: what is told then is the last of it.
        self.shared.wait_at_rest(timeout).then(|| self.shared.status().position)
    }

    /// How far the directory has come, and how much of that is durable.
    pub(crate) fn stand(&self) -> Option<Stand> {
        self.shared.place()
    }

    /// Blocks until the follower has ended: stopped (`Ok`), synced with [`FollowerConfig::once`] (`Ok`), or failed in a
    /// way that trying again would not mend. `None` after `timeout`; without one it waits for as long as it takes.
    ///
    /// When it returns the end, the directory's lock has been given back.
    ///
    /// # Errors
    ///
    /// [`Error::SecretRefused`], [`Error::ForeignDirectory`] and [`Error::DirectoryLost`]; with [`FollowerConfig::once`] whatever failed first. An
    /// error is handed out once: who asks again is told [`Error::ShuttingDown`].
    pub fn wait(&self, timeout: Option<Duration>) -> Option<Result<(), Error>> {
        self.shared.wait(timeout)
    }

    /// Stops, and joins all threads. Harmless when it has ended already.
    ///
    /// Blocks for less than a second as a rule (what is known of the files is kept on disk) and for at most 5 s: a thread that the system does not let go (resolving a
    /// name, flushing a disk) is left to end by itself, and holds the directory's lock until then.
    pub fn stop(&self) {
        self.shared.stop();
        self.join();
    }

    /// The same for who is to lead at once: what is known of the files is not kept once more.
    pub(crate) fn stop_in_a_hurry(&self) {
        self.shared.hurry();
        self.stop();
    }

    fn join(&self) {
        let running = self.threads.join(Instant::now() + DROP_JOIN_MAX);
        if running > 0 {
            log::warn!("{running} threads of the follower are held up by the system; they end by themselves");
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").field("id", &self.id).field("status", &self.status()).finish()
    }
}

/// Ends the wait for the follower also when its thread panicked.
struct FinishAtEnd(Arc<Shared>);

impl Drop for FinishAtEnd {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.finish(Err(Error::ThreadFailed("thread paceline-follow panicked".to_owned())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_ends_the_follower_which_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let leader = nobody.local_addr().unwrap().to_string();
        let config = FollowerConfig::new(leader, dir.path(), crate::Secret::new("s").unwrap());
        let follower = Follower::start(config).unwrap();
        follower.threads.spawn("x", || panic!("on purpose")).unwrap();
        let error = follower.wait(Some(Duration::from_secs(60))).expect("it goes on").unwrap_err().to_string();
        assert!(error.starts_with("thread x panicked: on purpose"), "{error}");
        assert_eq!(follower.status().state, State::Stopped);
    }
}
