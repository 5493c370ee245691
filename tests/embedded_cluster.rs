//! A cluster of hosts that embed a node and commit: three processes, which are this test program started anew, on a real etcd.
//! Leaders are killed and frozen; whatever any of them confirmed is there after each fail-over. All are killed at once, and lead again without a word; an older copy of one
//! that is put back does not.
#![cfg(feature = "etcd")]
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use paceline::NodeId;
use paceline::coordinator::{Coordinator, EtcdConfig, EtcdCoordinator, EtcdEndpoint};
use paceline::node::{Host, HostError, Node, NodeConfig, Term};
use rustix::process::Signal;
use support::etcd::Etcd;
use support::processes::{Process, Stage};
use support::{contents, path, wait_until};

const THREADS: usize = 4;
const LEASE_TTL: Duration = Duration::from_secs(3);

// ---- the host ----

/// Appends records to logs, and says on stdout which are confirmed.
struct Committing {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Host for Committing {
    fn start(&mut self, term: &Term) -> Result<(), HostError> {
        self.stop.store(false, Ordering::Relaxed);
        for thread in 0..THREADS {
            let (leader, stop) = (term.leader().clone(), self.stop.clone());
            self.threads.push(std::thread::spawn(move || {
                let name = path(&format!("log-{thread}"));
                let Ok(mut log) = leader.file(&name) else { return };
                // It goes on where the last leader was.
                for number in leader.file_len(&name).unwrap_or_default() / 8.. {
                    let Ok(position) = log.append(&number.to_le_bytes()) else { return };
                    if leader.commit(position, Duration::from_secs(5)).is_committed() {
                        println!("confirmed {thread} {number}");
                    }
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            }));
        }
        Ok(())
    }

    fn stop(&mut self, _: &Term) -> Result<(), HostError> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        Ok(())
    }
}

/// Does nothing unless it is started as a host.
#[test]
fn host() {
    let Ok(settings) = std::env::var("TEST_HOST") else { return };
    let [id, listen, etcd, dir] = settings.split(' ').collect::<Vec<_>>()[..] else { panic!("{settings}") };
    env_logger::builder().filter_level(log::LevelFilter::Info).init();
    let mut config = EtcdConfig::new([etcd.parse::<EtcdEndpoint>().unwrap()]);
    config.lease_ttl = LEASE_TTL;
    config.answer_timeout = LEASE_TTL / 3;
    let coordinator = Arc::new(EtcdCoordinator::new(&config).unwrap());
    let secret = coordinator.secret().unwrap();
    let mut config = NodeConfig::new(dir, secret, listen, format!("tcp://{listen}"));
    let id: NodeId = id.parse().unwrap();
    (config.leader.id, config.follower.id) = (Some(id), Some(id));
    config.leader.min_in_sync = 1;
    let node = Node::start(config, coordinator, Committing { stop: Arc::default(), threads: Vec::new() }).unwrap();
    while node.wait(Duration::from_secs(3600)).is_none() {}
}

// ---- the test ----

struct Member {
    number: usize,
    listen: String,
    dir: PathBuf,
    process: Process,
    /// Up to where its log was read.
    read: usize,
}

impl Member {
    fn start(etcd: &Etcd, number: usize) -> Self {
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let dir = etcd.stage.folder(&format!("data{number}"));
        let process = Self::launch(etcd, &etcd.stage, number, &listen, &dir);
        Self { number, listen, dir, process, read: 0 }
    }

    fn launch(etcd: &Etcd, stage: &Stage, number: usize, listen: &str, dir: &Path) -> Process {
        let settings = format!("TEST_HOST={number} {listen} {} {}", etcd.url(0), dir.display());
        let exe = std::env::current_exe().unwrap();
        let args = [&settings, exe.to_str().unwrap(), "--exact", "host", "--nocapture", "--test-threads", "1"];
        stage.start(&format!("host{number}"), "/usr/bin/env", args)
    }

    /// What it has confirmed since it was last asked: thread and record.
    fn confirmed(&mut self) -> Vec<(usize, u64)> {
        let log = self.process.log();
        let whole = log.rfind('\n').map_or(0, |end| end + 1);
        let new = &log[self.read.min(whole)..whole];
        self.read = whole;
        let words = |line: &str| {
            let mut words = line.strip_prefix("confirmed ")?.split(' ').map(|word| word.parse::<u64>().unwrap());
            Some((usize::try_from(words.next()?).unwrap(), words.next()?))
        };
        new.lines().filter_map(words).collect()
    }
}

/// Members end before what they use.
struct Cluster {
    members: Vec<Member>,
    etcd: Etcd,
    /// Of each thread, how many records are there at least.
    confirmed: BTreeMap<usize, u64>,
}

impl Cluster {
    /// Waits until a member other than those has confirmed so many records, and returns which.
    fn wait_confirmed(&mut self, records: usize, but: &[usize]) -> usize {
        let mut counts = vec![0; self.members.len()];
        let mut found = None;
        wait_until("records are confirmed", || {
            for (at, member) in self.members.iter_mut().enumerate() {
                for (thread, record) in member.confirmed() {
                    counts[at] += 1;
                    let there = self.confirmed.entry(thread).or_default();
                    *there = (record + 1).max(*there);
                }
            }
            found = (0..counts.len()).find(|at| counts[*at] >= records && !but.contains(at));
            found.is_some()
        });
        found.unwrap()
    }

    /// With what they have confirmed until then.
    fn kill_all(&mut self) {
        self.members.iter_mut().for_each(|member| member.process.kill());
        for member in &mut self.members {
            for (thread, record) in member.confirmed() {
                let there = self.confirmed.entry(thread).or_default();
                *there = (record + 1).max(*there);
            }
        }
    }

    fn restart(&mut self, at: usize) {
        let Self { etcd, members, .. } = self;
        let member = &mut members[at];
        member.process = Member::launch(etcd, &etcd.stage, member.number, &member.listen, &member.dir);
    }

    /// Whoever may be elected now has all that was ever confirmed.
    fn assert_all_there(&self) {
        let set = self.etcd.coordinator().in_sync_set().unwrap().expect("a set is recorded");
        for member in &self.members {
            if !set.contains(member.number.to_string().parse().unwrap()) {
                continue;
            }
            let contents = contents(&member.dir);
            for (thread, records) in &self.confirmed {
                let whole: Vec<u8> = (0..*records).flat_map(u64::to_le_bytes).collect();
                let log = &contents[&format!("log-{thread}")];
                assert!(log.starts_with(&whole), "node {}: {} of {} bytes", member.number, log.len(), whole.len());
            }
        }
    }
}

#[test]
fn what_was_confirmed_before_each_fail_over_is_there_after_it() {
    support::begin();
    let etcd = Etcd::start();
    let members = (1..=3).map(|number| Member::start(&etcd, number)).collect();
    let mut cluster = Cluster { etcd, members, confirmed: BTreeMap::new() };
    for round in 0..4 {
        let leader = cluster.wait_confirmed(100, &[]);
        if round % 2 == 0 {
            cluster.members[leader].process.kill();
            cluster.wait_confirmed(20, &[leader]);
            cluster.restart(leader);
        } else {
            cluster.members[leader].process.signal(Signal::STOP);
            cluster.wait_confirmed(20, &[leader]);
            // It must not confirm what it was at.
            cluster.members[leader].process.signal(Signal::CONT);
        }
    }
    cluster.wait_confirmed(100, &[]);
    // All at once: what is on their disks is all there is.
    cluster.kill_all();
    assert_eq!(cluster.confirmed.len(), THREADS);
    cluster.assert_all_there();
    // And is enough to go on with.
    (0..cluster.members.len()).for_each(|at| cluster.restart(at));
    cluster.wait_confirmed(20, &[]);
    for member in &cluster.members {
        let log = member.process.log();
        assert_eq!(log.lines().find(|line| line.contains(BEHIND)), None, "node {} was killed, no more", member.number);
    }
}

const BEHIND: &str = "does not stand for election: it";

/// Up to where the directory of a member says that it is durable.
fn durable(dir: &Path) -> u64 {
    let text = std::fs::read_to_string(dir.join(".paceline/position")).unwrap_or_default();
    text.split(' ').nth(2).map_or(0, |durable| durable.parse().unwrap())
}

#[test]
fn a_copy_from_earlier_in_a_leaders_term_does_not_lead_and_any_other_member_does_when_all_were_killed() {
    support::begin();
    let etcd = Etcd::start();
    let mut cluster = Cluster { members: vec![Member::start(&etcd, 1)], etcd, confirmed: BTreeMap::new() };
    wait_until("the first leads", || cluster.members[0].process.log().contains("elected: 1 leads"));
    let member = Member::start(&cluster.etcd, 2);
    cluster.members.push(member);
    cluster.wait_confirmed(1, &[]);
    let (dir, older) = (cluster.members[1].dir.clone(), cluster.etcd.stage.path("older"));
    let copy = |from: &Path, to: &Path| {
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    cluster.members[1].process.signal(Signal::STOP);
    copy(&dir, &older);
    cluster.members[1].process.signal(Signal::CONT);
    let before = durable(&older);
    assert!(before > 0);
    for at in [0, 1] {
        wait_until("it keeps more", || durable(&cluster.members[at].dir) > before);
    }
    // With another set what all keep is recorded at once.
    let member = Member::start(&cluster.etcd, 3);
    cluster.members.push(member);
    let committed = || cluster.etcd.coordinator().committed().unwrap();
    wait_until("that is recorded", || committed().is_some_and(|committed| committed.position.0 > before));
    cluster.kill_all();
    std::fs::remove_dir_all(&dir).unwrap();
    copy(&older, &dir);
    cluster.restart(1);
    wait_until("it does not stand", || cluster.members[1].process.log().contains(BEHIND));
    cluster.restart(2);
    wait_until("the third leads", || cluster.members[2].process.log().contains("elected: 3 leads"));
    wait_until("the second has caught up", || {
        cluster.members[1].process.log().contains("shows all that was committed")
    });
    assert!(!cluster.members[2].process.log().contains(BEHIND));
    assert_eq!(cluster.wait_confirmed(20, &[]), 2);
    cluster.members.remove(0);
    cluster.kill_all();
    cluster.assert_all_there();
}
