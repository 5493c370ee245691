//! A cluster of three machines on etcd with Redis as the program: its leader is killed, frozen and cut off, again and again,
//! while clients write through every node.
//!
//! Redis' writes are no commits: what its clients were told may be lost with a leader. What had arrived at all followers of the
//! recorded in-sync set may not.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::etcd::Etcd;
use support::netns::{HUB, Machine, in_own_network};
use support::processes::{Process, RedisClient, find, wait_same};
use support::{StopOnDrop, wait_until};

const NODES: usize = 3;
const ROUNDS: usize = 10;
/// What the program listens on, and what clients connect to.
const PROGRAM_PORT: u16 = 6380;
const CLIENT_PORT: u16 = 6379;

/// A node, on its machine.
struct ClusterNode {
    number: usize,
    machine: Machine,
    dir: PathBuf,
    process: Option<Process>,
    /// What it had logged before it was started the last time.
    logged: usize,
}

struct Cluster {
    nodes: Vec<ClusterNode>,
    etcd: Etcd,
}

impl Cluster {
    fn start() -> Self {
        let etcd = Etcd::start_at(HUB);
        let nodes = (1..=NODES).map(|number| ClusterNode {
            number,
            machine: Machine::new(u8::try_from(number).unwrap()),
            dir: etcd.stage.path(&format!("data{number}")),
            process: None,
            logged: 0,
        });
        let mut cluster = Self { nodes: nodes.collect(), etcd };
        for index in 0..NODES {
            cluster.launch(index);
        }
        cluster
    }

    /// Starts a node; again, as a supervisor does, while what is left of its former program has not ended.
    fn launch(&mut self, index: usize) {
        let (etcd, stage) = (self.etcd.url(0), &self.etcd.stage);
        let node = &mut self.nodes[index];
        let (host, dir) = (node.machine.address(), node.dir.to_str().unwrap().to_owned());
        let redis = find("redis-server", "redis-server");
        let program = format!(
            "exec {} --bind 0.0.0.0 --port {PROGRAM_PORT} --protected-mode no --dir {dir} --appendonly yes --save '' \
             --auto-aof-rewrite-percentage 0",
            redis.display()
        );
        let own: Vec<String> = [
            env!("CARGO_BIN_EXE_paceline"),
            "node",
            "--data-dir",
            &dir,
            "--id",
            &node.number.to_string(),
            "--listen",
            "0.0.0.0:5679",
            "--advertise",
            &format!("tcp://{host}:5679"),
            "--etcd",
            &etcd,
            "--lease-ttl",
            "5s",
            "--run",
            &program,
            "--proxy",
            &format!("0.0.0.0:{CLIENT_PORT}={PROGRAM_PORT}"),
        ]
        .map(str::to_owned)
        .to_vec();
        let command = [node.machine.enter(), own].concat();
        let name = format!("node{}", node.number);
        wait_until("the node starts", || {
            node.logged = fs::read_to_string(stage.path(&format!("{name}.log"))).unwrap_or_default().len();
            let mut process = stage.start(&name, &command[0], &command[1..]);
            wait_until("the node says something", || {
                process.has_ended() || process.log()[node.logged..].contains(" is following")
            });
            if process.has_ended() {
                assert!(process.log()[node.logged..].contains("is in use"), "the node ended");
                return false;
            }
            node.process = Some(process);
            true
        });
    }

    /// The node that leads, of these.
    fn leader(&self, among: &[usize]) -> Option<usize> {
        among.iter().copied().find(|&index| self.nodes[index].is("leading"))
    }

    /// Waits until one of these leads.
    fn wait_leader(&self, among: &[usize]) -> usize {
        wait_until("a node leads", || self.leader(among).is_some());
        self.leader(among).unwrap()
    }

    fn wait_in_sync(&self, leader: usize) {
        let all: Vec<_> = (1..=NODES).map(|number| number.to_string()).collect();
        wait_until("all nodes are in the recorded in-sync set", || {
            self.etcd.get("lavinmq/isr").first().is_some_and(|(_, set)| *set == all.join(","))
        });
        assert!(self.nodes[leader].is("leading"));
    }

    fn others(&self, than: usize) -> Vec<usize> {
        (0..NODES).filter(|index| *index != than).collect()
    }

    fn client(&self, index: usize, timeout: Duration) -> std::io::Result<RedisClient> {
        RedisClient::connect(self.nodes[index].clients(), timeout)
    }
}

impl ClusterNode {
    fn clients(&self) -> SocketAddr {
        (self.machine.address(), CLIENT_PORT).into()
    }

    /// The role that it said last.
    fn is(&self, role: &str) -> bool {
        let log = self.process.as_ref().unwrap().log();
        let said = format!("node {} is ", self.number);
        log[self.logged..].lines().rev().find_map(|line| line.strip_prefix(&said)) == Some(role)
    }

    /// All processes of its program.
    fn programs(&self) -> Vec<Pid> {
        let of_redis = |pid: &Pid| {
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.to_string_lossy().contains("redis"))
                && fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&self.dir))
        };
        let pids =
            fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(Pid::from_raw).filter(of_redis).collect()
    }

    fn signal(&self, signal: Signal) {
        self.process.as_ref().unwrap().signal(signal);
    }
}

/// A key that a client wrote: `key:CLIENT:COUNT`.
type Key = (usize, usize);

/// The keys that are whole in the files of a Redis.
fn written(dir: &Path) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    for file in fs::read_dir(dir.join("appendonlydir")).into_iter().flatten().flatten() {
        if !file.file_name().to_string_lossy().ends_with(".incr.aof") {
            continue;
        }
        let text = fs::read_to_string(file.path()).unwrap_or_default();
        for command in text.split("*3\r\n") {
            let parts: Vec<_> = command.split("\r\n").collect();
            let key = parts.get(3).and_then(|key| key.strip_prefix("key:")?.split_once(':'));
            let Some((client, count)) = key else { continue };
            let (client, count) = (client.parse().unwrap(), count.parse().unwrap());
            if parts.len() > 6 && parts[5] == value(client, count) {
                keys.insert((client, count));
            }
        }
    }
    keys
}

fn value(client: usize, count: usize) -> String {
    format!("value {client} {count} ").repeat(1 + count % 7)
}

/// Writes key after key through one node, whichever leads; one that was not acknowledged is written again.
fn write_until(node: SocketAddr, index: usize, stop: &AtomicBool) {
    const PATIENT: Duration = Duration::from_millis(500);
    let mut client = None;
    let mut count = 1;
    while !stop.load(Ordering::Relaxed) {
        if client.is_none() {
            client = RedisClient::connect(node, PATIENT).ok();
        }
        let key = format!("key:{index}:{count}");
        let set = |client: &mut RedisClient| client.command(&["SET", &key, &value(index, count)]);
        match client.as_mut().map(set) {
            Some(Ok(_)) => count += 1,
            _ => client = None,
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// How a leader is lost.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Loss {
    /// Its process is killed.
    Killed,
    /// Its process is frozen, and the program goes on.
    Frozen,
    /// All of its machine is frozen.
    AllFrozen,
    CutOff,
}

impl Loss {
    const ALL: [Self; 4] = [Self::Killed, Self::Frozen, Self::CutOff, Self::AllFrozen];

    fn inflict(self, node: &ClusterNode) {
        match self {
            Self::Killed => node.signal(Signal::KILL),
            Self::Frozen => node.signal(Signal::STOP),
            Self::AllFrozen => {
                node.signal(Signal::STOP);
                node.everything().into_iter().for_each(|pid| kill_process(pid, Signal::STOP).unwrap());
            }
            Self::CutOff => node.machine.connect(false),
        }
    }

    fn heal(self, cluster: &mut Cluster, index: usize) {
        let node = &mut cluster.nodes[index];
        match self {
            Self::Killed => {
                node.process.take().unwrap().wait();
                cluster.launch(index);
            }
            Self::Frozen => node.signal(Signal::CONT),
            Self::AllFrozen => {
                node.everything().into_iter().for_each(|pid| kill_process(pid, Signal::CONT).unwrap());
                node.signal(Signal::CONT);
            }
            Self::CutOff => node.machine.connect(true),
        }
    }
}

impl ClusterNode {
    /// All processes that descend from the node's own.
    fn everything(&self) -> Vec<Pid> {
        let mut found = vec![self.process.as_ref().unwrap().pid()];
        let mut at = 0;
        while let Some(parent) = found.get(at) {
            let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)));
            at += 1;
        }
        found.split_off(1)
    }
}

/// The keys that are at both followers.
fn present_at_followers(cluster: &Cluster, leader: usize) -> BTreeSet<Key> {
    let followers = cluster.others(leader).into_iter().map(|index| written(&cluster.nodes[index].dir));
    followers.reduce(|one, other| one.intersection(&other).copied().collect()).unwrap()
}

/// Waits until every client has written something that is at both followers, and was not before.
fn wait_progress(cluster: &Cluster, leader: usize) {
    const KEYS: usize = 20;
    let counts = || {
        let present = present_at_followers(cluster, leader);
        (0..NODES).map(|client| present.iter().filter(|key| key.0 == client).count()).collect::<Vec<_>>()
    };
    let before = counts();
    wait_until("every client's writes arrive at the followers", || {
        counts().iter().zip(&before).all(|(now, before)| *now > before + KEYS)
    });
}

/// These keys are at this node's program, with their values.
fn assert_all_there(cluster: &Cluster, leader: usize, keys: &BTreeSet<Key>) {
    let mut client = cluster.client(leader, support::PATIENCE).unwrap();
    for (writer, count) in keys {
        client.send(&["GET", &format!("key:{writer}:{count}")]).unwrap();
    }
    for (writer, count) in keys {
        assert_eq!(client.answer().ok(), Some(value(*writer, *count)), "key:{writer}:{count}");
    }
}

fn lose_leader(cluster: &mut Cluster, loss: Loss) -> Duration {
    let all: Vec<_> = (0..NODES).collect();
    let leader = cluster.wait_leader(&all);
    cluster.wait_in_sync(leader);
    wait_progress(cluster, leader);
    let present = present_at_followers(cluster, leader);
    let lost_at = Instant::now();
    loss.inflict(&cluster.nodes[leader]);

    let survivors = cluster.others(leader);
    let next = cluster.wait_leader(&survivors);
    for &survivor in &survivors {
        wait_until("clients of the survivors are served", || {
            let client = cluster.client(survivor, Duration::from_millis(500));
            client.is_ok_and(|mut client| client.command(&["PING"]).is_ok_and(|answer| answer == "PONG"))
        });
    }
    let took = lost_at.elapsed();
    assert!(loss == Loss::AllFrozen || cluster.nodes[leader].programs().is_empty(), "the former program still runs");
    assert_all_there(cluster, next, &present);

    loss.heal(cluster, leader);
    wait_until("the former leader follows", || cluster.nodes[leader].is("following"));
    assert!(cluster.nodes[leader].programs().is_empty(), "the former program still runs");
    cluster.wait_in_sync(next);
    took
}

#[test]
fn a_leader_lost_in_any_way_is_succeeded_and_nothing_is_missing_that_was_on_the_in_sync_set() {
    let test = "a_leader_lost_in_any_way_is_succeeded_and_nothing_is_missing_that_was_on_the_in_sync_set";
    in_own_network(test, || {
        let stop = AtomicBool::new(false);
        let mut cluster = Cluster::start();
        let clients: Vec<_> = (0..NODES).map(|index| cluster.nodes[index].clients()).collect();
        std::thread::scope(|scope| {
            let stopping = StopOnDrop(&stop);
            for (index, address) in clients.into_iter().enumerate() {
                let stop = &stop;
                scope.spawn(move || write_until(address, index, stop));
            }
            for round in 0..ROUNDS {
                let loss = Loss::ALL[round % Loss::ALL.len()];
                let took = lose_leader(&mut cluster, loss);
                println!("round {round}: leader {loss:?}, clients served again after {:.2} s", took.as_secs_f64());
            }
            drop(stopping);
        });
        let all: Vec<_> = (0..NODES).collect();
        let leader = cluster.wait_leader(&all);
        for follower in cluster.others(leader) {
            wait_same(&cluster.nodes[leader].dir, &cluster.nodes[follower].dir);
        }
        // In this order no other leads in between.
        for index in cluster.others(leader).into_iter().chain([leader]) {
            cluster.nodes[index].process.take().unwrap().stop();
        }
    });
}
