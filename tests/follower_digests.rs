//! What a follower that was started anew knows of its files without reading them.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use paceline::follower::State;
use paceline::protocol::extension::{Control, Held};
use paceline::{Follower, FollowerConfig, Secret};
use support::extension_leader::{LONG, about, encoded, held};
use support::fake_leader::{FakeLeader, append, eventually};
use tempfile::TempDir;

const CHUNK: usize = 256 << 10;

struct Scene {
    leader: FakeLeader,
    dir: TempDir,
    contents: Vec<(String, Vec<u8>)>,
}

impl Scene {
    /// A follower has got some files, and has stopped.
    fn new() -> Self {
        let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
        let bytes = |length: usize| (0..length).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect::<Vec<_>>();
        let contents: Vec<_> = [("a", 10), ("deep/er/b", 2 * CHUNK + 5), ("c", CHUNK), ("empty", 0), ("z", 7)]
            .map(|(name, length)| (name.to_owned(), bytes(length)))
            .into();
        let scene = Self { leader, dir, contents };
        let follower = scene.start();
        let mut connection = scene.leader.accept_extension(&about(LONG));
        assert!(connection.inventory().is_empty());
        let actions = scene.contents.iter().map(|(name, bytes)| match bytes.len() {
            0 => encoded(&[Control::Empty(support::extension_leader::path(name))]),
            _ => append(name, bytes),
        });
        connection.sync(&actions.collect::<Vec<_>>().concat());
        eventually("in sync", || follower.status().state == State::Streaming);
        connection.close_now();
        // Small ones were digested as they came. As for the others nobody waits until the background has done so.
        let (_connection, _) = scene.leader.accept_in_sync();
        eventually("in sync", || follower.status().state == State::Streaming);
        let large: usize = scene.contents.iter().map(|(_, bytes)| bytes.len()).filter(|len| *len > 64 << 10).sum();
        assert_eq!(follower.status().sync.bytes_hashed, large as u64);
        follower.stop();
        assert!(scene.kept().exists());
        scene
    }

    fn start(&self) -> Follower {
        let mut config = FollowerConfig::new(self.leader.address(), self.dir.path(), Secret::new("s3cret").unwrap());
        config.retry_delay_min = Duration::from_millis(1);
        config.retry_delay_max = Duration::from_millis(20);
        Follower::start(config).unwrap()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn kept(&self) -> PathBuf {
        self.at(".paceline/digests")
    }

    fn all_bytes(&self) -> u64 {
        self.contents.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    fn expected(&self) -> Vec<Held> {
        let mut held: Vec<_> = self.contents.iter().map(|(name, bytes)| held(name, bytes)).collect();
        held.sort_by(|a, b| a.path.cmp(&b.path));
        held
    }

    /// What a follower that starts now tells, and how many bytes it reads for that.
    #[track_caller]
    fn starts_and_reads(&self, bytes: u64) {
        // What has just changed when the follower stops is not kept.
        eventually("settled", || {
            self.contents.iter().all(|(name, _)| {
                let meta = fs::metadata(self.at(name)).unwrap();
                let changed = UNIX_EPOCH + Duration::new(meta.ctime().cast_unsigned(), 0);
                changed.elapsed().is_ok_and(|since| since > Duration::from_secs(2))
            })
        });
        let follower = self.start();
        let (_connection, inventory) = self.leader.accept_in_sync();
        assert_eq!(inventory, self.expected());
        eventually("in sync", || follower.status().state == State::Streaming);
        let sync = follower.status().sync;
        assert_eq!((sync.bytes_hashed, sync.files_hashed), (bytes, self.contents.len() as u64));
        follower.stop();
    }
}

fn writes(path: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn what_has_not_changed_is_not_read_again() {
    let scene = Scene::new();
    scene.starts_and_reads(0);
    // Nor after it was only looked at.
    scene.starts_and_reads(0);
}

#[test]
fn what_has_changed_is_read_alone() {
    let mut scene = Scene::new();
    fs::File::options().append(true).open(scene.at("c")).unwrap().write_all(b"more").unwrap();
    scene.contents[2].1.extend_from_slice(b"more");
    scene.starts_and_reads(CHUNK as u64 + 4);
    // Of the same length; its time of change put back.
    let modified = fs::metadata(scene.at("deep/er/b")).unwrap().modified().unwrap();
    writes(&scene.at("deep/er/b"), 3, b"!");
    fs::File::options().write(true).open(scene.at("deep/er/b")).unwrap().set_modified(modified).unwrap();
    scene.contents[1].1[3] = b'!';
    scene.starts_and_reads(2 * CHUNK as u64 + 5);
    // Another file of the same content.
    fs::write(scene.at("new"), fs::read(scene.at("z")).unwrap()).unwrap();
    fs::rename(scene.at("new"), scene.at("z")).unwrap();
    scene.starts_and_reads(7);
    fs::remove_file(scene.at("z")).unwrap();
    scene.contents.pop();
    scene.starts_and_reads(0);
}

#[test]
fn what_was_kept_counts_as_absent_when_it_is_torn() {
    let scene = Scene::new();
    let whole = fs::read(scene.kept()).unwrap();
    for torn in [&whole[..whole.len() / 2], &whole[..whole.len() - 1], &[]] {
        fs::write(scene.kept(), torn).unwrap();
        scene.starts_and_reads(scene.all_bytes());
        assert_eq!(fs::read(scene.kept()).unwrap().len(), whole.len(), "it was not kept anew");
    }
}

#[test]
fn what_is_kept_is_older_than_the_files_after_a_kill() {
    let scene = Scene::new();
    let before = fs::read(scene.kept()).unwrap();
    let follower = scene.start();
    let (mut connection, _) = scene.leader.accept_in_sync();
    connection.stream(&append("a", b"more"));
    follower.stop();
    fs::write(scene.kept(), before).unwrap();
    let mut scene = scene;
    scene.contents[0].1.extend_from_slice(b"more");
    scene.starts_and_reads(14);
}

#[test]
fn what_is_kept_is_of_no_later_boot_once_something_was_written_in_place() {
    let mut scene = Scene::new();
    /// Where it says who has written to the directory: 0, a follower alone, as followers do.
    const WHO_AT: usize = 19;
    let who = |scene: &Scene| fs::read(scene.kept()).unwrap()[WHO_AT];
    assert_eq!(who(&scene), 0);
    let follower = scene.start();
    let (mut connection, _) = scene.leader.accept_in_sync();
    let patch = encoded(&[Control::PatchAt { path: support::extension_leader::path("c"), offset: 5 }]);
    connection.stream(&[patch, append("c", b"in place")].concat());
    eventually("written", || fs::read(scene.at("c")).unwrap()[5..].starts_with(b"in place"));
    // Before it was written, and when it is kept anew.
    assert_eq!(who(&scene), 1);
    follower.stop();
    assert_eq!(who(&scene), 1);
    scene.contents[2].1[5..13].copy_from_slice(b"in place");
    scene.starts_and_reads(CHUNK as u64);
}

#[test]
fn nothing_is_kept_in_a_directory_that_is_somebodys() {
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    fs::write(dir.path().join("mine"), "mine").unwrap();
    let config = FollowerConfig::new(leader.address(), dir.path(), Secret::new("s3cret").unwrap());
    let follower = Follower::start(config).unwrap();
    let mut connection = leader.accept_extension(&about(LONG));
    assert_eq!(connection.inventory(), [held("mine", b"mine")]);
    follower.stop();
    assert!(!dir.path().join(".paceline").exists());
}

#[test]
fn only_the_files_of_the_buckets_that_were_asked_for_are_told() {
    let (leader, dir) = (FakeLeader::new(), TempDir::new().unwrap());
    let mut all: Vec<_> = (0..40).map(|n| held(&format!("f{n}"), b"x")).collect();
    all.sort_by(|a, b| a.path.cmp(&b.path));
    (0..40).for_each(|n| fs::write(dir.path().join(format!("f{n}")), "x").unwrap());
    let mut config = FollowerConfig::new(leader.address(), dir.path(), Secret::new("s3cret").unwrap());
    config.retry_delay_min = Duration::from_millis(1);
    config.retry_delay_max = Duration::from_millis(20);
    let _follower = Follower::start(config).unwrap();
    let mut told = Vec::new();
    for buckets in [&[0][..], &[1, 3], &[2], &[]] {
        let mut connection = leader.accept_extension(&about(LONG));
        let sums = connection.sums(2);
        assert!(sums.iter().all(|sum| *sum != [0; 20]) && sums[0] != sums[1]);
        let files = connection.files_of(buckets);
        assert_eq!(files.is_empty(), buckets.is_empty());
        told.extend(files);
    }
    told.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(told, all);
    // None at all, when all is the same.
    let mut connection = leader.accept_extension(&about(LONG));
    assert_eq!(connection.sums(0).len(), 1);
    connection.sync(b"");
}
