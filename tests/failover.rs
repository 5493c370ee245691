//! Commits of hosts that embed a node, whose leases are revoked under them: the next leader is elected before the last one knows,
//! against what its clock says, and nothing is confirmed then that the next one lacks. And hand-overs in the midst of commits.
#![cfg(feature = "etcd")]
#![allow(missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use paceline::coordinator::{Coordinator, EtcdCoordinator};
use paceline::node::{Host, HostError, Node, NodeConfig, Role, Term};
use paceline::{Leader, NodeId};
use parking_lot::Mutex;
use support::etcd::Etcd;
use support::{path, wait_until};

const NODES: i32 = 3;
const ROUNDS: usize = 12;

/// What all hosts share: the records that were confirmed, and what went wrong.
#[derive(Default)]
struct Ledger {
    next: AtomicU64,
    confirmed: Mutex<BTreeSet<u64>>,
    faults: Mutex<Vec<String>>,
}

impl Ledger {
    /// Everything that was confirmed so far is in this directory.
    fn check(&self, node: i32, dir: &Path) {
        let confirmed = self.confirmed.lock().clone();
        let log = fs::read(dir.join("log")).unwrap_or_default();
        let there: BTreeSet<_> = log.as_chunks::<8>().0.iter().map(|record| u64::from_le_bytes(*record)).collect();
        let missing = confirmed.difference(&there).count();
        if missing > 0 {
            let said = format!("node {node} leads without {missing} of {} confirmed records", confirmed.len());
            self.faults.lock().push(said);
        }
    }

    fn confirmed(&self) -> usize {
        self.confirmed.lock().len()
    }
}

/// Where its node leads it commits record after record, from a thread of its own.
struct Committing {
    node: i32,
    dir: PathBuf,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Host for Committing {
    fn start(&mut self, term: &Term) -> Result<(), HostError> {
        self.ledger.check(self.node, &self.dir);
        let (leader, ledger) = (term.leader().clone(), self.ledger.clone());
        self.stop = Arc::default();
        let stop = self.stop.clone();
        self.thread = Some(std::thread::spawn(move || commit_until(&leader, &ledger, &stop)));
        Ok(())
    }

    fn stop(&mut self, _: &Term) -> Result<(), HostError> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(Ok(()), |thread| thread.join().map_err(|_| "its thread panicked".into()))
    }
}

fn commit_until(leader: &Arc<Leader>, ledger: &Ledger, stop: &AtomicBool) {
    let Ok(mut log) = leader.file(&path("log")) else { return };
    while !stop.load(Ordering::Relaxed) {
        let record = ledger.next.fetch_add(1, Ordering::Relaxed);
        let Ok(position) = log.append(&record.to_le_bytes()) else { return };
        if leader.commit(position, Duration::from_millis(500)).is_committed() {
            ledger.confirmed.lock().insert(record);
        }
    }
}

struct Cluster {
    etcd: Etcd,
    ledger: Arc<Ledger>,
    nodes: Vec<Option<Node>>,
}

impl Cluster {
    fn start() -> Self {
        support::begin();
        let mut cluster = Self { etcd: Etcd::start(), ledger: Arc::default(), nodes: Vec::new() };
        for number in 1..=NODES {
            let node = cluster.node(number);
            cluster.nodes.push(Some(node));
        }
        cluster
    }

    fn node(&self, number: i32) -> Node {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let process = std::process::id().to_le_bytes();
        let host = format!("127.{}.{}.{}", process[0].max(1), process[1], NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = self.etcd.stage.path(&format!("node{number}"));
        let coordinator = EtcdCoordinator::new(&self.etcd.brief_config()).unwrap();
        let (listen, secret) = (format!("{host}:5682"), coordinator.secret().unwrap());
        let mut config = NodeConfig::new(&dir, secret, &listen, format!("tcp://{listen}"));
        config.leader.id = NodeId::new(number).ok();
        // A leader that nobody follows any more, and does not know of it, is to confirm nothing.
        config.leader.min_in_sync = 1;
        let (ledger, stop) = (self.ledger.clone(), Arc::default());
        let host = Committing { node: number, dir, ledger, stop, thread: None };
        Node::start(config, Arc::new(coordinator), host).unwrap()
    }

    fn wait_leader(&self) -> usize {
        let leader = || {
            let leads = |node: &Option<Node>| node.as_ref().is_some_and(|node| node.status().role == Role::Leading);
            self.nodes.iter().position(leads)
        };
        wait_until("a node leads", || leader().is_some());
        leader().unwrap()
    }

    /// Waits until all nodes are in sync, and something was confirmed with all of them.
    fn wait_confirmed(&self) {
        let all: Vec<_> = (1..=NODES).map(|number| number.to_string()).collect();
        wait_until("all nodes are in sync", || {
            self.etcd.get("lavinmq/isr").first().is_some_and(|(_, set)| *set == all.join(","))
        });
        let before = self.ledger.confirmed();
        wait_until("records are confirmed", || self.ledger.confirmed() > before + 20);
    }
}

#[test]
fn what_was_confirmed_is_with_every_leader_after_the_one_that_confirmed_it() {
    let mut cluster = Cluster::start();
    for round in 0..ROUNDS {
        let leader = cluster.wait_leader();
        cluster.wait_confirmed();
        let id = cluster.nodes[leader].as_ref().unwrap().id().get();
        if round % 3 == 2 {
            // It hands over.
            cluster.nodes[leader].take().unwrap().stop().unwrap();
            cluster.wait_leader();
            cluster.nodes[leader] = Some(cluster.node(id));
        } else {
            // Another is elected before it knows.
            cluster.etcd.revoke(id);
            let node = cluster.nodes[leader].as_ref().unwrap();
            wait_until("it leads no more", || node.status().role != Role::Leading);
        }
    }
    cluster.wait_leader();
    cluster.wait_confirmed();
    println!("{} records were confirmed by {} leaders", cluster.ledger.confirmed(), ROUNDS + 1);
    for node in cluster.nodes.iter().flatten() {
        node.stop().unwrap();
    }
    assert_eq!(*cluster.ledger.faults.lock(), [""; 0]);
}
