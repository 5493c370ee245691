//! Watcher, leader and followers together: a directory that is changed at random by several threads, and its copies.
#![allow(missing_docs)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use paceline::leader::Window;
use paceline::watch::Watcher;
use support::lavinmq::LavinMq;
use support::{TestFollower, TestLeader, assert_same, noise, path, wait_until};

/// Operations at random on one folder, as fast as they go, from a seed; what fails is passed over.
struct Storm {
    root: PathBuf,
    random: fastrand::Rng,
}

impl Storm {
    fn name(&mut self) -> PathBuf {
        let folder = ["", "d", "d/e", "f"][self.random.usize(..4)];
        self.root.join(folder).join(["a", "b", "c", "d"][self.random.usize(..4)])
    }

    fn bytes(&mut self) -> Vec<u8> {
        let most = [10, 5_000, 40_000, 1_000_000][self.random.usize(..4)];
        let mut bytes = vec![0; self.random.usize(1..most)];
        self.random.fill(&mut bytes);
        bytes
    }

    fn operation(&mut self) {
        let (name, other, bytes) = (self.name(), self.name(), self.bytes());
        match self.random.u8(..18) {
            0..=5 => {
                let _ =
                    OpenOptions::new().append(true).create(true).open(name).and_then(|mut file| {
                        bytes.chunks(bytes.len() / 3 + 1).try_for_each(|chunk| file.write_all(chunk))
                    });
            }
            6 => drop(fs::write(name, bytes)),
            7 => {
                if let Ok(file) = OpenOptions::new().write(true).open(name) {
                    let len = file.metadata().unwrap().len();
                    file.set_len(self.random.u64(..=len)).unwrap();
                }
            }
            8 => drop(fs::write(&other, bytes).and_then(|()| fs::rename(&other, name))),
            9 | 13 => drop(fs::rename(name, other)),
            14 => {
                let names = ["a", "b", "c", "d"].map(|last| name.with_file_name(last));
                names.windows(2).rev().for_each(|pair| drop(fs::rename(&pair[0], &pair[1])));
            }
            15 => {
                let between = self.root.join("between");
                let _ = fs::rename(&name, &between).and_then(|()| fs::rename(&other, &name));
                let _ = fs::rename(between, other);
            }
            16 => drop(fs::rename(self.root.join("d"), self.root.join("f"))),
            10 => drop(fs::remove_file(name)),
            11 => drop(fs::remove_dir_all(name)),
            12 => {
                let _ = fs::create_dir_all(&name);
                let _ = fs::write(name.join("immediate"), bytes);
            }
            _ => drop(File::create(name)),
        }
    }
}

fn storm(root: &Path, seed: u64) {
    let mut storm = Storm { root: root.join(seed.to_string()), random: fastrand::Rng::with_seed(seed) };
    fs::create_dir_all(&storm.root).unwrap();
    for _ in 0..400 {
        storm.operation();
        if storm.random.u8(..16) == 0 {
            thread::sleep(Duration::from_micros(storm.random.u64(..5000)));
        }
    }
}

#[test]
fn nothing_but_the_leaders_directory_is_watched_for_it() {
    let leader = TestLeader::start();
    let (links, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let link = links.path().join("data");
    std::os::unix::fs::symlink(leader.dir.path(), &link).unwrap();
    drop(Watcher::start(leader.leader.clone(), &link, None).unwrap());
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(other.path(), &link).unwrap();
    fs::write(other.path().join("file"), "of another directory").unwrap();
    assert!(Watcher::start(leader.leader.clone(), &link, None).is_err());
    assert_eq!(leader.leader.files(), []);
    leader.shut_down();
}

#[test]
fn copies_of_a_directory_in_a_storm_are_exact_also_those_that_join_in_it() {
    let leader = TestLeader::start();
    let watcher = Watcher::start(leader.leader.clone(), leader.dir.path(), Some(Window::new(16 << 20))).unwrap();
    let early = leader.follower();
    let late = thread::scope(|scope| {
        for seed in 0..4 {
            let root = leader.dir.path();
            scope.spawn(move || storm(root, seed));
        }
        thread::sleep(Duration::from_millis(100)); // anywhere in the storm will do
        leader.follower()
    });
    // Its last look sees all that was done before.
    watcher.stop();
    leader.assert_copies(&[&early, &late]);
    // Neither was told what does not fit what it has.
    assert_eq!([&early, &late].map(|follower| follower.follower.status().connections), [1, 1]);
}

/// A watched directory, a follower that knows the extension and one of 1.0.0.
struct Watched {
    leader: TestLeader,
    watcher: Watcher,
    follower: TestFollower,
    old: LavinMq,
}

impl Watched {
    /// On a directory with these files, once the followers have them and their identities are certain.
    fn with(files: &[(&str, usize)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, length) in files {
            fs::write(dir.path().join(name), noise(*length)).unwrap();
        }
        thread::sleep(Duration::from_millis(20)); // past the clock tick of their birth
        let leader = TestLeader::on(dir, |_| ());
        let watcher = Watcher::start(leader.leader.clone(), leader.dir.path(), None).unwrap();
        let follower = leader.follower();
        let old = LavinMq::start(leader.fake(), tempfile::tempdir().unwrap());
        leader.wait_in_sync(2);
        Self { leader, watcher, follower, old }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.leader.dir.path().join(name)
    }

    /// Stream positions, and bytes sent to the follower that knows the extension.
    fn moved(&self) -> (u64, u64) {
        let id = self.follower.follower.id();
        let followers = self.leader.leader.followers();
        let sent = followers.iter().find(|follower| follower.id == id).unwrap().sent_bytes;
        (self.leader.leader.position().0, sent)
    }

    /// Does it, and waits until both copies equal the directory. At most so many bytes may be announced, or sent to the
    /// follower that knows the extension.
    #[track_caller]
    fn assert_moves(&self, bytes: u64, change: impl FnOnce()) {
        let before = self.moved();
        change();
        let root = self.leader.dir.path();
        let names = || support::all_contents(root).into_iter().map(|(name, bytes)| (path(&name), bytes.len() as u64));
        wait_until("everything is announced", || {
            let mut announced = self.leader.leader.files();
            announced.sort();
            announced.into_iter().eq(names())
        });
        self.leader.wait_in_sync(2);
        support::assert_exact(root, self.follower.dir.path());
        assert_same(root, self.old.dir.path());
        let after = self.moved();
        let moved = (after.0 - before.0, after.1 - before.1);
        assert!(moved.0 <= bytes && moved.1 <= bytes, "{moved:?} bytes announced and sent");
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    fn end(self) {
        self.watcher.stop();
        self.leader.shut_down();
        self.old.stop();
    }
}

#[test]
fn renaming_moves_no_content() {
    let watched = Watched::with(&[("large", 8 << 20), ("other", 1 << 20)]);
    watched.assert_moves(500, || watched.rename("large", "renamed"));
    watched.assert_moves(500, || watched.rename("renamed", "other"));
    fs::create_dir(watched.path("folder")).unwrap();
    watched.assert_moves(500, || watched.rename("other", "folder/other"));
    watched.assert_moves(500, || watched.rename("folder", "renamed"));
    watched.assert_moves(500, || {
        watched.rename("renamed/other", "large");
        OpenOptions::new().append(true).open(watched.path("large")).unwrap().write_all(b"and grown").unwrap();
    });
    watched.end();
}

#[test]
fn rotating_logs_moves_no_content() {
    let names = ["log", "log.1", "log.2", "log.3", "log.4"];
    let watched = Watched::with(&names.map(|name| (name, (2 << 20) + name.len())));
    for round in 0..10 {
        watched.assert_moves(1_500, || {
            for pair in names.windows(2).rev() {
                watched.rename(pair[0], pair[1]);
            }
            fs::write(watched.path("log"), if round % 2 == 0 { "" } else { "a new line" }).unwrap();
        });
    }
    watched.end();
}

#[test]
fn copying_and_truncating_a_log_moves_the_copy_alone() {
    let watched = Watched::with(&[("log", 4 << 20)]);
    watched.assert_moves((4 << 20) + 100_000, || assert!(fs::copy(watched.path("log"), watched.path("log.1")).is_ok()));
    watched.assert_moves(500, || drop(File::create(watched.path("log")).unwrap()));
    watched.assert_moves(500, || fs::write(watched.path("log"), "a new line").unwrap());
    watched.assert_moves(500, || drop(File::create(watched.path("empty")).unwrap()));
    watched.end();
}

/// A watched directory with one file, and a follower that has it.
struct InPlace {
    leader: TestLeader,
    watcher: Watcher,
    follower: TestFollower,
    file: File,
}

impl InPlace {
    fn with(bytes: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), noise(bytes)).unwrap();
        let leader = TestLeader::on(dir, |_| ());
        let watcher = Watcher::start(leader.leader.clone(), leader.dir.path(), None).unwrap();
        let follower = leader.follower();
        leader.wait_in_sync(1);
        let file = OpenOptions::new().read(true).write(true).open(leader.dir.path().join("file")).unwrap();
        Self { leader, watcher, follower, file }
    }

    /// Blocks until the copy has what was written, and nothing is left to be compared. Returns how far the stream is.
    #[track_caller]
    fn arrived(&self) -> u64 {
        let copy = self.follower.dir.path().join("file");
        let same = || fs::read(&copy).unwrap() == fs::read(self.leader.dir.path().join("file")).unwrap();
        wait_until("the copy is exact", || self.watcher.unproven_for().is_none() && same());
        self.leader.leader.position().0
    }

    fn end(self) {
        assert!(self.watcher.stop() && self.watcher.is_complete());
        self.leader.shut_down();
    }
}

#[test]
fn pages_that_are_written_in_order_cost_a_few_times_what_they_are() {
    const WRITES: u64 = 100;
    let at = InPlace::with(16 << 20);
    let before = at.arrived();
    for number in 0..WRITES {
        at.file.write_all_at(&[u8::try_from(number).unwrap(); 4096], number * 4096).unwrap();
        // Each is seen alone, which costs most.
        wait_until("it is announced", || at.leader.leader.position().0 >= before + (number + 1) * 4096);
    }
    let moved = at.arrived() - before;
    assert!(moved <= WRITES * 4096 * 5, "{moved} bytes announced of {}", WRITES * 4096);
    at.end();
}

#[test]
fn a_counter_at_the_beginning_of_a_file_that_grows_arrives() {
    let at = InPlace::with(1_000_000);
    let before = at.arrived();
    let mut len = 1_000_000;
    for number in 0..50_u64 {
        at.file.write_all_at(&number.to_le_bytes(), 0).unwrap();
        at.file.write_all_at(&noise(100), len).unwrap();
        len += 100;
        if number % 10 == 0 {
            at.arrived();
        }
    }
    let moved = at.arrived() - before;
    assert!(moved < 1_000_000, "{moved} bytes announced");
    at.end();
}

#[test]
fn what_was_changed_arrives_also_if_its_time_is_set_back() {
    let at = InPlace::with(1_000_000);
    at.arrived();
    let before = at.file.metadata().unwrap().modified().unwrap();
    for number in 0..20_u64 {
        at.file.write_all_at(&number.to_le_bytes(), number * 40_000).unwrap();
        at.file.set_modified(before).unwrap();
        at.arrived();
    }
    at.end();
}

#[test]
fn a_follower_that_joins_while_a_file_is_changed_and_changed_back_gets_what_is_there() {
    let at = InPlace::with(8 << 20);
    let was = noise(8 << 20);
    for round in 0..5_usize {
        let joined = thread::scope(|scope| {
            let joins = scope.spawn(|| at.leader.follower());
            for page in (0..8_u64 << 20).step_by(4096) {
                at.file.write_all_at(&[u8::try_from(round).unwrap(); 4096], page).unwrap();
            }
            at.file.write_all_at(&was, 0).unwrap();
            joins.join().unwrap()
        });
        at.arrived();
        at.leader.assert_copies(&[&at.follower, &joined]);
        joined.stop();
        at.leader.wait_in_sync(1);
    }
    at.end();
}

#[test]
fn a_rename_does_not_keep_what_was_read_from_another_file_under_the_old_name() {
    let leader = TestLeader::start();
    leader.append("a", &noise(1 << 20));
    // The leader is not told at once, and a follower that joins meanwhile finds another file.
    fs::rename(leader.dir.path().join("a"), leader.dir.path().join("b")).unwrap();
    fs::write(leader.dir.path().join("a"), noise(2 << 20)).unwrap();
    let follower = leader.follower();
    leader.wait_in_sync(1);
    leader.leader.rename(&path("a"), &path("b")).unwrap();
    leader.leader.replace(&path("a")).unwrap();
    leader.assert_copies(&[&follower]);
    leader.shut_down();
}

#[test]
fn a_watcher_that_was_stopped_knows_whether_anything_was_left_out() {
    let leader = TestLeader::start();
    let watcher = Watcher::start(leader.leader.clone(), leader.dir.path(), None).unwrap();
    assert!(!watcher.is_complete(), "it has not taken its last look");
    fs::write(leader.dir.path().join("log"), "before").unwrap();
    watcher.stop();
    assert_eq!(leader.leader.file_len(&path("log")), Some(6));
    assert!(watcher.is_complete());
    fs::write(leader.dir.path().join("log"), "after").unwrap();
    assert!(!watcher.is_complete());
    leader.shut_down();
}
