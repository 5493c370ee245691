//! Commits of a host that is killed, or stopped: a process of its own, which is this test program started anew. And commits with
//! pauses, none of which may get lost.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use paceline::leader::{CommitLevel, CommitOutcome, Unknown};
use paceline::{Leader, LeaderConfig};
use rustix::process::{Pid, Signal, kill_process};
use support::processes::Stage;
use support::volume::Volume;
use support::{PATIENCE, TestFollower, TestLeader, contents, path, secret, wait_until};

const HOST_DIR: &str = "PACELINE_TEST_HOST_DIR";
const THREADS: usize = 8;

/// The host: commits records in several threads, and says on stdout which are confirmed. Does nothing unless it is started as
/// such.
#[test]
fn host() {
    let Some(dir) = std::env::var_os(HOST_DIR) else { return };
    env_logger::builder().filter_level(log::LevelFilter::Warn).init();
    let mut config = LeaderConfig::new(dir, secret());
    config.min_in_sync = 2;
    config.ack_timeout = Duration::from_millis(500);
    config.write_timeout = Duration::from_millis(500);
    let leader = Leader::open(config).unwrap();
    println!("listening on {}", leader.listen("127.0.0.1:0").unwrap());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let leader = &leader;
            scope.spawn(move || {
                let mut log = leader.file(&path(&format!("log-{thread}"))).unwrap();
                for number in 0.. {
                    let position = log.append(&record(number)).unwrap();
                    // What is not confirmed is appended all the same: records stay in order.
                    if leader.commit(position, Duration::from_secs(5)).is_committed() {
                        println!("confirmed {thread} {number}");
                    }
                }
            });
        }
    });
}

fn record(number: u64) -> [u8; 8] {
    number.to_le_bytes()
}

struct Host {
    child: Child,
    out: BufReader<ChildStdout>,
    /// How many records of each thread are confirmed, from the first on or with gaps.
    confirmed: BTreeMap<usize, u64>,
    count: u64,
}

impl Host {
    fn start(dir: &Path) -> (Self, SocketAddr) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "host", "--nocapture", "--test-threads", "1"])
            .env(HOST_DIR, dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut this = Self { child, out, confirmed: BTreeMap::new(), count: 0 };
        loop {
            let line = this.line().expect("the host says where it listens");
            // The test runner's own words come before it on one line.
            if let Some((_, address)) = line.split_once("listening on ") {
                return (this, address.parse().unwrap());
            }
        }
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let length = self.out.read_line(&mut line).unwrap();
        (length > 0 && line.ends_with('\n')).then(|| line.trim_end().to_owned())
    }

    /// Reads until so many more are confirmed, or the host has ended.
    fn read(&mut self, most: u64) {
        let goal = self.count.saturating_add(most);
        while self.count < goal {
            let Some(line) = self.line() else { return };
            let mut words = line.split(' ');
            if words.next() == Some("confirmed") {
                let mut number = || words.next().unwrap().parse::<u64>().unwrap();
                let (thread, number) = (usize::try_from(number()).unwrap(), number());
                self.confirmed.insert(thread, number + 1);
                self.count += 1;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every confirmed record is in this copy.
fn assert_has_confirmed(host: &Host, copy: &Path) {
    let contents = contents(copy);
    assert!(host.confirmed.len() == THREADS, "{:?}", host.confirmed);
    for (thread, records) in &host.confirmed {
        let log = &contents[&format!("log-{thread}")];
        let whole: Vec<_> = (0..*records).flat_map(record).collect();
        assert!(log.starts_with(&whole), "of {records} records of thread {thread} there are {} bytes", log.len());
    }
}

#[test]
fn whatever_was_confirmed_before_a_leader_was_killed_is_on_every_follower_in_sync() {
    support::begin();
    for _ in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let (mut host, address) = Host::start(dir.path());
        let followers = [(); 3].map(|()| TestFollower::on(address, tempfile::tempdir().unwrap()));
        host.read(300);
        // One goes: the others are enough, and it is out of the set before anything else is confirmed.
        let [first, second, third] = followers;
        drop(third.stop());
        host.read(300);
        host.signal(Signal::KILL);
        host.read(u64::MAX);
        for follower in [first, second] {
            assert_has_confirmed(&host, follower.stop().path());
        }
    }
}

#[test]
fn a_leader_stopped_for_longer_than_its_deadlines_blames_no_follower() {
    support::begin();
    let dir = tempfile::tempdir().unwrap();
    let (mut host, address) = Host::start(dir.path());
    let followers = [(); 2].map(|()| TestFollower::on(address, tempfile::tempdir().unwrap()));
    host.read(200);
    for _ in 0..2 {
        host.signal(Signal::STOP);
        // Four times both of its deadlines, and less than followers take for silence.
        let until = Instant::now() + Duration::from_secs(2);
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(left);
        }
        host.signal(Signal::CONT);
        host.read(200);
    }
    for follower in &followers {
        let status = follower.follower.status();
        assert_eq!((status.connections, status.last_eviction), (1, None));
    }
    host.signal(Signal::KILL);
    host.read(u64::MAX);
    for follower in followers {
        assert_has_confirmed(&host, follower.stop().path());
    }
}

#[test]
#[ignore = "needs root and loop devices"]
fn while_the_leaders_disk_stalls_appends_go_on_and_nothing_is_confirmed_as_durable() {
    let stage = Stage::new();
    let volume = Volume::that_stalls(&stage);
    let leader = Leader::open(LeaderConfig::new(volume.path(""), secret())).unwrap();
    let address = leader.listen("127.0.0.1:0").unwrap();
    let follower = TestFollower::on(address, tempfile::tempdir().unwrap());
    wait_until("the follower is in sync", || leader.in_sync().followers == [follower.id()]);
    let mut log = leader.file(&path("log")).unwrap();
    let first = log.append(b"first ").unwrap();
    assert!(leader.commit(first, PATIENCE).is_committed());
    let stall = volume.stall();
    let second = log.append(b"second ").unwrap();
    let short = Duration::from_millis(300);
    assert_eq!(leader.commit(second, short), CommitOutcome::Unknown(Unknown::Deadline));
    // Nothing else waits for the disk.
    let third = log.append(b"third").unwrap();
    assert!(leader.commit_at(third, CommitLevel::ALL_WRITTEN, PATIENCE).is_committed());
    assert!(leader.committed(CommitLevel::ALL_DURABLE) < second);
    drop(stall);
    assert!(leader.commit(third, PATIENCE).is_committed());
    assert_eq!(contents(follower.dir.path())["log"], b"first second third");
    drop(log);
    assert_eq!(leader.shutdown(PATIENCE).threads_left, 0);
}

#[test]
fn no_commit_waits_for_a_heartbeat() {
    // A mark that is noted and then lost is made up for by the next one, which a heartbeat brings at the latest: here, none comes.
    let leader = TestLeader::with(|config| config.heartbeat_interval = Duration::from_secs(600));
    let followers = [leader.follower(), leader.follower()];
    wait_until("both are in sync", || leader.leader.in_sync().followers.len() == followers.len());
    let mut log = leader.leader.file(&path("log")).unwrap();
    for commit in 0..2000 {
        let position = log.append(&[b'x'; 256]).unwrap();
        let outcome = leader.leader.commit_at(position, CommitLevel::ALL_DURABLE, PATIENCE);
        assert!(outcome.is_committed(), "commit {commit}: {outcome}");
        std::thread::sleep(Duration::from_micros(fastrand::u64(..1000)));
    }
    leader.shut_down();
}
