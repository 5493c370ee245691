//! What the tests share. Each test binary uses a part of it.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use paceline::leader::{Eviction, EvictionReason, FollowerState, FollowerStatus};
use paceline::{AppendError, Follower, FollowerConfig, Leader, LeaderConfig, NodeId, Protocol, RelPath, Secret};
use tempfile::TempDir;

use self::fake_follower::FakeFollower;

#[cfg(feature = "etcd")]
pub mod etcd;
pub mod extension_leader;
pub mod fake_disk;
pub mod fake_follower;
pub mod fake_leader;
pub mod inject;
pub mod lavinmq;
pub mod logs;
pub mod netns;
pub mod processes;
pub mod relay;
pub mod tree;
pub mod volume;

/// How long anything may take before a test calls it a failure. Nothing is expected to take a fraction of it.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn secret() -> Secret {
    Secret::new("the tests' secret").unwrap()
}

pub fn path(name: &str) -> RelPath {
    RelPath::new(name).unwrap()
}

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(length as u64).fill(&mut bytes);
    bytes
}

/// The same, other bytes for each `random`.
pub fn noise_of(random: &mut fastrand::Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

/// Call it first in a test: logs go to the test's output, and a deadlock among the crate's locks ends the process.
pub fn begin() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        logs::begin();
        end_on_deadlock();
    });
}

/// A deadlock among the crate's locks ends the process from now on, where it is built to look for them.
pub fn end_on_deadlock() {
    #[cfg(feature = "deadlock-detection")]
    std::thread::spawn(|| {
        loop {
            std::thread::park_timeout(Duration::from_millis(500));
            let deadlocks = parking_lot::deadlock::check_deadlock();
            for thread in deadlocks.iter().flatten() {
                eprintln!("deadlock: thread {:?}\n{:?}", thread.thread_id(), thread.backtrace());
            }
            if !deadlocks.is_empty() {
                std::process::abort();
            }
        }
    });
}

/// Waits until `condition`, and panics with `what` if it does not come.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: did not come within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Ends the writers of a test, also of one that fails.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A leader on a directory of its own, listening on loopback.
pub struct TestLeader {
    pub leader: std::sync::Arc<Leader>,
    pub dir: TempDir,
    pub address: SocketAddr,
}

impl TestLeader {
    pub fn start() -> Self {
        Self::with(|_| ())
    }

    pub fn with(change: impl FnOnce(&mut LeaderConfig)) -> Self {
        Self::on(tempfile::tempdir().unwrap(), change)
    }

    /// On a directory that may hold something already.
    pub fn on(dir: TempDir, change: impl FnOnce(&mut LeaderConfig)) -> Self {
        begin();
        let mut config = LeaderConfig::new(dir.path(), secret());
        change(&mut config);
        let leader = Leader::open(config).unwrap();
        let address = leader.listen("127.0.0.1:0").unwrap();
        Self { leader: leader.into(), dir, address }
    }

    /// Writes to the local file and announces it, as a host does: one that was announced anew since it was opened is opened again.
    pub fn append(&self, name: &str, bytes: &[u8]) {
        let append = || self.leader.file(&path(name)).unwrap().append(bytes);
        let appended = match append() {
            Err(AppendError::Offset { .. }) => append(),
            appended => appended,
        };
        appended.unwrap();
    }

    /// Replaces the local file and announces it, as a host does.
    pub fn replace(&self, name: &str, bytes: &[u8]) {
        let full = self.dir.path().join(name);
        fs::create_dir_all(full.parent().unwrap()).unwrap();
        let new = self.dir.path().join(format!("${:?}", std::thread::current().id()));
        fs::write(&new, bytes).unwrap();
        fs::rename(new, full).unwrap();
        self.leader.replace(&path(name)).unwrap();
    }

    /// Gives the local file another name and announces it, as a host does.
    pub fn rename(&self, from: &str, to: &str) {
        let at = |name: &str| self.dir.path().join(name);
        fs::create_dir_all(at(to).parent().unwrap()).unwrap();
        fs::rename(at(from), at(to)).unwrap();
        self.leader.rename(&path(from), &path(to)).unwrap();
    }

    pub fn delete(&self, name: &str) {
        fs::remove_file(self.dir.path().join(name)).unwrap();
        self.leader.delete(&path(name)).unwrap();
    }

    /// A follower that is connected and has told its id, which is one that no other has.
    pub fn fake(&self) -> FakeFollower {
        FakeFollower::connect(self.address).shake(NodeId::random())
    }

    /// The same, with a small receive buffer.
    pub fn narrow_fake(&self) -> FakeFollower {
        FakeFollower::connect_narrow(self.address).shake(NodeId::random())
    }

    pub fn follower(&self) -> TestFollower {
        TestFollower::on(self.address, tempfile::tempdir().unwrap())
    }

    /// Waits until `count` followers are connected and each has acknowledged everything.
    #[track_caller]
    pub fn wait_in_sync(&self, count: usize) {
        wait_until("all followers in sync", || {
            let followers = self.leader.followers();
            let end = self.leader.position();
            followers.len() == count && followers.iter().all(|follower| follower.acknowledged >= Some(end))
        });
    }

    /// Waits until the follower with this id is in that state.
    #[track_caller]
    pub fn wait_state(&self, id: NodeId, state: FollowerState) {
        wait_until(&format!("follower {id} is {state}"), || {
            self.leader.followers().iter().any(|follower| follower.id == id && follower.state == state)
        });
    }

    /// Waits until the follower with this id was evicted, and checks that this was logged as it should be, once.
    #[track_caller]
    pub fn wait_evicted(&self, id: NodeId) -> Eviction {
        let mut evictions = Vec::new();
        wait_until(&format!("follower {id} is evicted"), || {
            evictions = self.leader.evictions();
            evictions.retain(|eviction| eviction.id == id);
            !evictions.is_empty()
        });
        assert_eq!(evictions.len(), 1, "{evictions:?}");
        let eviction = evictions.remove(0);
        let (named, address) = (format!("id {id},"), format!("address {},", eviction.address));
        let mut lines = logs::lines(&["follower: ", &named, &address]);
        lines.retain(|line| !line.contains("demoted follower"));
        let [line] = &lines[..] else { panic!("logged not once but as {lines:?}") };
        // A clean stop must not set off an alert.
        let said = if eviction.reason == EvictionReason::Shutdown { "INFO let go of" } else { "WARN evicted" };
        assert!(line.starts_with(&format!("{said} follower: {};", eviction.reason)), "{line}");
        assert!(line.contains(", lag ") && line.contains(", queue ") && !line.contains('\n'), "{line}");
        eviction
    }

    #[track_caller]
    pub fn wait_evicted_for(&self, id: NodeId, reason: &EvictionReason) -> Eviction {
        let eviction = self.wait_evicted(id);
        assert_eq!(eviction.reason, *reason);
        eviction
    }

    /// Shuts down, which must leave no thread.
    #[track_caller]
    pub fn shut_down(&self) {
        let report = self.leader.shutdown(Duration::ZERO);
        assert_eq!(report.threads_left, 0, "{report:?}");
    }

    /// Shuts down, lets `meanwhile` change the directory, and starts anew on the same directory and address.
    #[track_caller]
    pub fn restart(self, change: impl FnOnce(&mut LeaderConfig), meanwhile: impl FnOnce(&Path)) -> Self {
        self.shut_down();
        let Self { leader, dir, address } = self;
        assert!(std::sync::Arc::into_inner(leader).is_some(), "the leader is still in use");
        meanwhile(dir.path());
        let mut config = LeaderConfig::new(dir.path(), secret());
        change(&mut config);
        let leader = Leader::open(config).unwrap();
        // Followers that come early hold the port for a moment, without having it.
        wait_until("the leader listens again", || leader.listen(address).is_ok());
        Self { leader: leader.into(), dir, address }
    }

    /// The follower with this id, if it is connected.
    pub fn status(&self, id: NodeId) -> Option<FollowerStatus> {
        self.leader.followers().into_iter().find(|follower| follower.id == id)
    }

    /// Waits until `followers`, and nobody else, are in sync, then compares the copies byte for byte: those that speak 1.0.0
    /// have no empty files.
    #[track_caller]
    pub fn assert_copies(&self, followers: &[&TestFollower]) {
        self.wait_in_sync(followers.len());
        let announced: BTreeMap<_, _> = self.leader.files().into_iter().collect();
        for follower in followers {
            let read = match self.status(follower.follower.id()).and_then(|status| status.marks) {
                Some(_) => all_contents,
                None => contents,
            };
            let differing = differences(&read(self.dir.path()), &read(follower.dir.path()));
            // One that the leader does not know as it is was lost there, any other on the way.
            let lost =
                differing.iter().map(|(name, how)| format!("{how}; announced: {:?}", announced.get(&path(name))));
            assert!(differing.is_empty(), "the copy differs:\n{}", lost.collect::<Vec<_>>().join("\n"));
            // It is equal, and becomes durable before it may be served from.
            let mark = follower.dir.path().join(".paceline/incomplete");
            wait_until("the copy may be served from", || !mark.exists());
        }
    }
}

/// A follower on a directory of its own.
pub struct TestFollower {
    pub follower: Follower,
    pub dir: TempDir,
}

impl TestFollower {
    pub fn on(leader: SocketAddr, dir: TempDir) -> Self {
        Self::with(leader, dir, |_| ())
    }

    /// One that speaks 1.0.0 only.
    pub fn v1(leader: SocketAddr) -> Self {
        Self::with(leader, tempfile::tempdir().unwrap(), |config| config.protocol = Protocol::V1)
    }

    pub fn with(leader: SocketAddr, dir: TempDir, change: impl FnOnce(&mut FollowerConfig)) -> Self {
        begin();
        let mut config = FollowerConfig::new(leader.to_string(), dir.path(), secret());
        config.retry_delay_max = Duration::from_millis(200);
        change(&mut config);
        Self { follower: Follower::start(config).unwrap(), dir }
    }

    pub fn id(&self) -> NodeId {
        self.follower.id()
    }

    /// Stops it; its directory is left.
    pub fn stop(self) -> TempDir {
        self.follower.stop();
        self.dir
    }
}

/// A directory that has nothing yet, but knows that it is a copy of this one.
pub fn copy_to_be(of: &Path) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(".paceline")).unwrap();
    fs::copy(of.join(".paceline/data-set"), dir.path().join(".paceline/data-set")).unwrap();
    dir
}

/// All replicated files below `root`. An empty one is left out: protocol 1.0.0 cannot tell it from none.
pub fn contents(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = all_contents(root);
    found.retain(|_, bytes| !bytes.is_empty());
    found
}

/// All replicated files below `root`.
pub fn all_contents(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let full = entry.unwrap().path();
            let name = full.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if RelPath::new(&name).unwrap().is_reserved() {
                continue;
            }
            if full.is_dir() {
                folders.push(full);
            } else {
                found.insert(name, fs::read(full).unwrap());
            }
        }
    }
    found
}

/// Compares two directories byte for byte, but for empty files, and says where they differ without printing their bytes.
#[track_caller]
pub fn assert_same(leader: &Path, follower: &Path) {
    assert_equal(&contents(leader), &contents(follower));
}

/// The same, with empty files.
#[track_caller]
pub fn assert_exact(leader: &Path, follower: &Path) {
    assert_equal(&all_contents(leader), &all_contents(follower));
}

#[track_caller]
fn assert_equal(ours: &BTreeMap<String, Vec<u8>>, theirs: &BTreeMap<String, Vec<u8>>) {
    let differing: Vec<_> = differences(ours, theirs).into_iter().map(|(_, how)| how).collect();
    assert!(differing.is_empty(), "the copy differs:\n{}", differing.join("\n"));
}

/// Names of files that differ, and how.
fn differences(ours: &BTreeMap<String, Vec<u8>>, theirs: &BTreeMap<String, Vec<u8>>) -> Vec<(String, String)> {
    let names: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    names
        .into_iter()
        .filter(|name| ours.get(*name) != theirs.get(*name))
        .map(|name| {
            let len = |side: &BTreeMap<String, Vec<u8>>| side.get(name).map(Vec::len);
            let first =
                ours.get(name).zip(theirs.get(name)).map(|(a, b)| a.iter().zip(b).take_while(|(a, b)| a == b).count());
            let how = format!(
                "{name}: {:?} bytes at the leader, {:?} at the follower, equal up to {first:?}",
                len(ours),
                len(theirs)
            );
            (name.clone(), how)
        })
        .collect()
}
