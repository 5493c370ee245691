//! Folders that are away for a moment, which the watcher does not see but the leader does: with a real leader and followers.

use std::net::SocketAddr;

use super::*;
use crate::leader::Leader;
use crate::watch::announce::Paced;
use crate::{Follower, FollowerConfig, LeaderConfig, Protocol, Secret};

/// A watcher without its thread, so that it looks when it is told to, on a leader that listens.
struct Led {
    dir: tempfile::TempDir,
    leader: Arc<Leader>,
    address: SocketAddr,
    tree: Tree<Paced>,
}

fn secret() -> Secret {
    Secret::new("the tests' secret").unwrap()
}

/// Longer than what the leader holds in memory.
const LARGE: usize = 600_000;

impl Led {
    /// With a folder `d` of files that are announced, and another one of the same files with other content, which is not.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (folder, content) in [("d", 1), ("$other", 2)] {
            fs::create_dir_all(dir.path().join(folder).join("e")).unwrap();
            fs::write(dir.path().join(folder).join("large"), vec![content; LARGE]).unwrap();
            fs::write(dir.path().join(folder).join("e/small"), [content; 10]).unwrap();
        }
        pass_tick();
        let leader = Arc::new(Leader::open(LeaderConfig::new(dir.path(), secret())).unwrap());
        leader.note_reads();
        let address = leader.listen("127.0.0.1:0").unwrap();
        let tree = Tree::open(dir.path(), Paced { leader: leader.clone(), window: None }).unwrap();
        let mut led = Self { dir, leader, address, tree };
        led.look();
        led
    }

    fn look(&mut self) {
        self.tree.collect().unwrap();
        assert!(self.tree.announce_dirty(true, &|| true).is_ok());
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.dir.path().join(from), self.dir.path().join(to)).unwrap();
    }

    fn follower(&self, protocol: Protocol) -> (Follower, tempfile::TempDir) {
        let copy = tempfile::tempdir().unwrap();
        let mut config = FollowerConfig::new(self.address.to_string(), copy.path(), secret());
        config.protocol = protocol;
        (Follower::start(config).unwrap(), copy)
    }

    #[track_caller]
    fn wait_in_sync(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let is_in_sync = || {
            let followers = self.leader.followers();
            followers.len() == 1 && followers[0].acknowledged == Some(self.leader.position())
        };
        while !is_in_sync() {
            assert!(Instant::now() < deadline, "it does not get in sync");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn what_was_away_when_a_follower_joined_arrives_when_it_is_back() {
    for protocol in [Protocol::V1, Protocol::Auto] {
        let mut led = Led::new();
        led.rename("d", "$away");
        let (follower, copy) = led.follower(protocol);
        led.wait_in_sync();
        assert_eq!(led.leader.files(), [], "what cannot be read is announced as gone");
        led.rename("$away", "d");
        led.look();
        led.wait_in_sync();
        assert!(contents(led.dir.path()) == contents(copy.path()), "the copy differs: {:?}", led.leader.files());
        follower.stop();
    }
}

#[test]
fn what_a_follower_that_joined_was_sent_of_another_file_is_put_right() {
    for protocol in [Protocol::V1, Protocol::Auto] {
        let mut led = Led::new();
        led.rename("d", "$away");
        led.rename("$other", "d");
        let (follower, copy) = led.follower(protocol);
        led.wait_in_sync();
        assert!(contents(led.dir.path()) == contents(copy.path()), "it was sent something else than is there");
        led.rename("d", "$other");
        led.rename("$away", "d");
        led.look();
        led.wait_in_sync();
        assert!(contents(led.dir.path()) == contents(copy.path()), "the copy differs");
        follower.stop();
    }
}
