//! Who shows less than was committed does not lead: an older copy of a node's directory that was put back, with real nodes and a real etcd.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use paceline::EpochPosition;
use paceline::coordinator::Coordinator;
use support::etcd::Etcd;
use support::processes::{Process, wait_same};
use support::wait_until;

const PORT: u16 = 5688;
const BEHIND: &str = "does not stand for election: it shows that it has";

/// Nodes end before what they use.
struct Cluster {
    nodes: Vec<Node>,
    etcd: Etcd,
    /// Another one for each cluster of this process: the addresses of its nodes begin there.
    hosts: usize,
}

struct Node {
    process: Process,
    /// How much it had logged before it was started.
    logged: usize,
}

impl Node {
    fn said(&self) -> String {
        self.process.log()[self.logged..].to_owned()
    }

    #[track_caller]
    fn wait_says(&self, what: &str) {
        wait_until(&format!("it says {what:?}"), || self.said().contains(what));
    }
}

impl Cluster {
    /// Two nodes that have led in turns; node 1 has an older copy of its directory, from before the last turn, put back, and nobody runs.
    fn with_an_older_copy() -> Self {
        static HOSTS: AtomicUsize = AtomicUsize::new(40);
        let hosts = HOSTS.fetch_add(10, Ordering::Relaxed);
        let mut cluster = Self { nodes: Vec::new(), etcd: Etcd::start(), hosts };
        cluster.start(1, &[]).wait_says("node 1 is leading");
        cluster.start(2, &[]);
        cluster.wait_in_sync(1);
        fs::write(cluster.dir(1).join("a"), "old").unwrap();
        wait_same(&cluster.dir(1), &cluster.dir(2));
        while let Some(mut node) = cluster.nodes.pop() {
            node.process.stop();
        }
        let older = cluster.etcd.stage.path("older");
        copy(&cluster.dir(1), &older);

        let before = cluster.committed();
        cluster.start(1, &[]).wait_says("node 1 is leading");
        cluster.start(2, &[]);
        cluster.wait_in_sync(before.epoch + 1);
        fs::write(cluster.dir(1).join("a"), "new").unwrap();
        wait_same(&cluster.dir(1), &cluster.dir(2));
        // The leader first: it cannot record who is gone.
        cluster.nodes.drain(..).for_each(|mut node| node.process.kill());
        fs::remove_dir_all(cluster.dir(1)).unwrap();
        copy(&older, &cluster.dir(1));
        cluster
    }

    fn dir(&self, number: usize) -> PathBuf {
        self.etcd.stage.path(&format!("node{number}"))
    }

    fn start(&mut self, number: usize, more: &[&str]) -> &Node {
        let (name, process) = (format!("node{number}"), std::process::id().to_le_bytes());
        let host = format!("127.{}.{}.{}", process[0].max(1), process[1], self.hosts + number);
        let logged = fs::read_to_string(self.etcd.stage.path(&format!("{name}.log"))).unwrap_or_default().len();
        let dir = self.dir(number);
        let (listen, advertise) = (format!("{host}:{PORT}"), format!("tcp://{host}:{PORT}"));
        let (id, etcd) = (number.to_string(), self.etcd.url(0));
        let mut args = vec!["node", "--id", &id, "--data-dir", dir.to_str().unwrap(), "--lease-ttl", "3s"];
        args.extend(["--listen", &listen, "--advertise", &advertise, "--etcd", &etcd]);
        args.extend(more);
        let process = self.etcd.stage.start(&name, env!("CARGO_BIN_EXE_paceline"), args);
        self.nodes.push(Node { process, logged });
        self.nodes.last().unwrap()
    }

    /// What is recorded, and counts.
    fn committed(&self) -> EpochPosition {
        self.etcd.coordinator().committed().unwrap().expect("something is recorded")
    }

    /// Both are in the recorded set, in this term or a later one, and beside it is what both have.
    fn wait_in_sync(&self, term: u64) {
        wait_until("both are in sync", || {
            // In this order: of a term there is a record before both are in the set again.
            let recorded = self.etcd.coordinator().committed().unwrap();
            let both = self.etcd.get("lavinmq/isr").first().is_some_and(|(_, set)| set == "1,2");
            both && recorded.is_some_and(|committed| committed.epoch >= term)
        });
    }

    fn stands(&self, number: usize) -> bool {
        !self.etcd.get(&format!("lavinmq/leader/{number}")).is_empty()
    }
}

/// With times, as a backup has them.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn an_older_copy_that_was_put_back_leads_only_by_a_persons_word_or_once_it_has_caught_up() {
    let mut cluster = Cluster::with_an_older_copy();
    let committed = cluster.committed().to_string();
    let restored = cluster.start(1, &[]);
    restored.wait_says(BEHIND);
    restored.wait_says("nobody leads, and node 1 may not: it shows that it has");
    let said = restored.said();
    assert!(said.contains(&format!("had {committed} at least")) && said.contains("--accept-loss"), "{said}");
    assert_eq!(said.matches(BEHIND).count(), 1, "{said}");
    assert!(!cluster.stands(1) && !said.contains("node 1 is leading"));

    // The other one has everything, and needs no word.
    cluster.start(2, &[]).wait_says("node 2 is leading");
    cluster.nodes[0].wait_says("shows all that was committed");
    wait_until("it stands", || cluster.stands(1));
    assert_eq!(fs::read_to_string(cluster.dir(1).join("a")).unwrap(), "new");
}

#[test]
fn an_older_copy_that_a_person_accepts_leads_and_what_the_others_had_more_is_kept() {
    let mut cluster = Cluster::with_an_older_copy();
    let committed = cluster.committed();
    let restored = cluster.start(1, &["--accept-loss"]);
    restored.wait_says("node 1 is leading");
    let said = restored.said();
    assert!(
        said.contains("(--accept-loss), though it shows that it has")
            && said.contains(&format!("had {committed} at least")),
        "{said}"
    );
    wait_until("it is recorded", || cluster.committed().epoch > committed.epoch);
    cluster.start(2, &[]);
    wait_until("both are in sync", || cluster.etcd.get("lavinmq/isr").first().is_some_and(|(_, set)| set == "1,2"));
    for number in [1, 2] {
        assert_eq!(fs::read_to_string(cluster.dir(number).join("a")).unwrap(), "old");
    }
    let kept = walk(&cluster.dir(2).join(".paceline/kept"));
    assert!(kept.iter().any(|file| fs::read(file).is_ok_and(|content| content == b"new")), "{kept:?}");
}

fn walk(dir: &std::path::Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn a_set_that_was_deleted_opens_no_door_and_one_that_lavinmq_wrote_bars_nobody() {
    let mut cluster = Cluster::with_an_older_copy();
    cluster.etcd.delete("lavinmq/isr");
    let restored = cluster.start(1, &[]);
    restored.wait_says(BEHIND);
    wait_until("what it left when it was killed is gone", || !cluster.stands(1));
    // As LavinMQ's leader does, which writes nothing beside it.
    cluster.etcd.put("lavinmq/isr", "1,2");
    assert_eq!(cluster.etcd.coordinator().committed().unwrap(), None);
    cluster.nodes[0].wait_says("node 1 is leading");
}
