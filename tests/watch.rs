//! Watcher, leader and followers together: a directory that is changed at random by several threads, and its copies.
#![allow(missing_docs)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use paceline::leader::Window;
use paceline::watch::Watcher;
use support::TestLeader;

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
        match self.random.u8(..14) {
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
            9 => drop(fs::rename(name, other)),
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
}
