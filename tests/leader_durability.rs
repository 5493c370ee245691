//! What a leader says of its own disk: the calls that make durable go to a disk that can lose its power.
#![allow(missing_docs)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use paceline::follower::Flusher;
use paceline::leader::{CommitLevel, CommitOutcome, Refusal, Unknown};
use paceline::{Error, Leader, LeaderConfig, StreamPosition};
use support::fake_disk::{FakeDisk, Left};
use support::{PATIENCE, StopOnDrop, logs, path, secret, wait_until};
use tempfile::TempDir;

/// Nothing but what was flushed.
const NOTHING: Left = Left { names: false, tails: 0 };

/// A leader on such a disk, which has everything by now.
struct OnDisk {
    dir: TempDir,
    disk: Arc<FakeDisk>,
    leader: Leader,
}

impl OnDisk {
    /// With these files, of one byte.
    fn with(files: &[&str]) -> Self {
        support::begin();
        let (dir, disk) = (tempfile::tempdir().unwrap(), FakeDisk::new());
        let leader = Leader::open_flushed_by(LeaderConfig::new(dir.path(), secret()), disk.clone()).unwrap();
        let this = Self { dir, disk, leader };
        for file in files {
            this.append(file, b"0");
        }
        this.commit();
        this
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }

    fn append(&self, name: &str, bytes: &[u8]) -> StreamPosition {
        self.leader.file(&path(name)).unwrap().append(bytes).unwrap()
    }

    /// Makes all that was announced durable.
    #[track_caller]
    fn commit(&self) {
        self.commit_at(self.leader.position());
    }

    #[track_caller]
    fn commit_at(&self, position: StreamPosition) {
        let outcome = self.leader.commit(position, PATIENCE);
        assert!(outcome.is_committed(), "{outcome}");
    }

    /// The content that a file of one of these names has after a power loss.
    fn left(&self, names: &[&str]) -> Vec<Vec<u8>> {
        let left = self.disk.after_power_loss(self.root(), NOTHING);
        names.iter().filter_map(|name| left.get(*name).cloned()).collect()
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.root().join(from), self.root().join(to)).unwrap();
    }
}

#[test]
fn what_is_renamed_while_its_turn_is_under_way_is_durable_when_that_is_said() {
    let on = OnDisk::with(&["a", "log"]);
    on.append("a", b"1");
    on.append("log", b"1");
    on.disk.hold();
    std::thread::scope(|scope| {
        let committing = scope.spawn(|| on.commit());
        on.disk.wait_held();
        on.rename("log", "log.1");
        on.leader.rename(&path("log"), &path("log.1")).unwrap();
        on.append("log", b"new");
        on.disk.release();
        committing.join().unwrap();
    });
    let left = on.left(&["log", "log.1"]);
    assert!(left.contains(&b"01".to_vec()), "{left:?}");
}

#[test]
fn what_has_another_name_that_is_not_announced_yet_is_durable_when_that_is_said() {
    let on = OnDisk::with(&["log"]);
    on.append("log", b"1");
    on.rename("log", "log.1");
    fs::write(on.root().join("log"), "new").unwrap();
    on.commit();
    let left = on.left(&["log", "log.1"]);
    assert!(left.contains(&b"01".to_vec()), "{left:?}");
}

#[test]
fn what_came_and_went_in_a_folder_that_was_moved_is_durable_when_that_is_said() {
    let on = OnDisk::with(&["folder/kept", "folder/gone"]);
    fs::remove_file(on.root().join("folder/gone")).unwrap();
    on.leader.delete(&path("folder/gone")).unwrap();
    on.rename("folder", "moved");
    fs::create_dir(on.root().join("folder")).unwrap();
    on.commit();
    let gone = on.left(&["folder/gone", "moved/gone"]);
    assert!(gone.is_empty(), "{gone:?}");
}

#[test]
fn what_a_leader_finds_is_durable_only_once_it_was_synced() {
    support::begin();
    for asked in [None, Some(StreamPosition::default())] {
        let (dir, disk) = (tempfile::tempdir().unwrap(), FakeDisk::new());
        fs::write(dir.path().join("found"), "0").unwrap();
        let leader = Leader::open_flushed_by(LeaderConfig::new(dir.path(), secret()), disk.clone()).unwrap();
        let position = asked.unwrap_or_else(|| leader.position());
        assert!(leader.committed(CommitLevel::ALL_DURABLE) < leader.position());
        let outcome = leader.commit(position, PATIENCE);
        assert!(outcome.is_committed(), "{outcome}");
        assert_eq!(disk.after_power_loss(dir.path(), NOTHING).get("found"), Some(&b"0".to_vec()));
        assert!(leader.committed(CommitLevel::ALL_DURABLE) == leader.position());
    }
}

fn is_marked(root: &Path) -> bool {
    root.join(".paceline/suspect").is_file()
}

#[test]
fn nobody_leads_where_a_leader_failed_to_sync_though_the_disk_works_again() {
    let on = OnDisk::with(&["log"]);
    let failed = |outcome| matches!(outcome, CommitOutcome::Unknown(Unknown::LocalSyncFailed));
    on.disk.fail(5);
    assert!(!is_marked(on.root()) && failed(on.leader.commit(on.append("log", b"1"), PATIENCE)));
    assert!(is_marked(on.root()), "it was told before the directory was marked");
    on.disk.heal();
    let outcome = on.leader.commit(on.append("log", b"2"), PATIENCE);
    assert_eq!(outcome, CommitOutcome::Refused(Refusal::LocalSyncFailed));
    let OnDisk { dir, disk, leader } = on;
    drop(leader);
    let refused = Leader::open_flushed_by(LeaderConfig::new(dir.path(), secret()), disk).err().unwrap();
    assert!(matches!(refused, Error::Suspect(_)), "{refused}");
    let (said, remedies) = (refused.to_string(), ["follow another leader", ".paceline/suspect"]);
    assert!(!said.contains('\n') && remedies.iter().all(|remedy| said.contains(remedy)), "{said}");
}

#[test]
fn a_directory_that_cannot_be_marked_is_as_soon_as_it_can() {
    let on = OnDisk::with(&["log"]);
    let mark = on.root().join(".paceline/suspect");
    std::os::unix::fs::symlink("nowhere", &mark).unwrap();
    on.disk.fail(5);
    let outcome = on.leader.commit(on.append("log", b"1"), PATIENCE);
    assert_eq!(outcome, CommitOutcome::Unknown(Unknown::LocalSyncFailed));
    wait_until("it is said", || !logs::lines(&["ERROR", "the failed sync leaves no mark"]).is_empty());
    fs::remove_file(mark).unwrap();
    wait_until("it is marked", || is_marked(on.root()));
}

/// A host that replaces a file as one does (written beside it, flushed, renamed over it), one that rotates logs, and others that
/// only append, each committing what it wrote.
#[test]
fn whatever_is_renamed_beside_commits_what_is_said_to_be_durable_is() {
    let on = OnDisk::with(&["state", "log", "x", "y"]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (on, done) = (&on, &done);
        let _stop = StopOnDrop(done);
        for name in ["x", "y"] {
            scope.spawn(move || {
                let mut content = b"0".to_vec();
                while !done.load(Ordering::Relaxed) {
                    content.push(b'1');
                    let position = on.append(name, b"1");
                    on.commit_at(position);
                    assert_eq!(on.left(&[name])[0].len(), content.len());
                }
            });
        }
        scope.spawn(move || {
            for round in 1_u32.. {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                let record = round.to_le_bytes();
                let position = on.append("log", &record);
                on.rename("log", "log.1");
                fs::write(on.root().join("log"), "").unwrap();
                on.leader.rename(&path("log"), &path("log.1")).unwrap();
                on.leader.replace(&path("log")).unwrap();
                on.commit_at(position);
                let left = on.left(&["log", "log.1"]);
                assert!(left.iter().any(|content| content.ends_with(&record)), "{round}: {left:?}");
            }
        });
        for round in 0_u32..150 {
            let (new, content) = (on.root().join("$new"), round.to_le_bytes());
            let mut file = File::create(&new).unwrap();
            file.write_all(&content).unwrap();
            on.disk.file(file.as_fd()).unwrap();
            fs::rename(&new, on.root().join("state")).unwrap();
            let position = on.leader.replace(&path("state")).unwrap();
            on.commit_at(position);
            assert_eq!(on.left(&["state"]), [content], "{round}");
        }
    });
}
