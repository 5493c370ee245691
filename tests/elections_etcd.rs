//! Real nodes and a real etcd: a member that is stopped while its leader writes, and goes on when that has been killed, is next in turn and does not lead.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

mod support;

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use paceline::coordinator::{Candidate, Coordinator};
use rustix::process::Signal;
use support::etcd::Etcd;
use support::processes::{Process, wait_same};
use support::wait_until;

const NODES: usize = 3;
const ROUNDS: usize = 3;
const PORT: u16 = 5687;
/// More than sockets hold.
const BURST_BYTES: usize = 24 << 20;

/// Nodes end before what they use.
struct Cluster {
    nodes: Vec<Member>,
    etcd: Etcd,
}

struct Member {
    process: Process,
    dir: PathBuf,
    /// How much it had logged before it was started.
    logged: usize,
}

impl Member {
    fn says(&self, what: &str) -> bool {
        self.process.log()[self.logged..].contains(what)
    }

    fn bytes(&self) -> u64 {
        fs::metadata(self.dir.join("log")).map_or(0, |meta| meta.len())
    }
}

impl Cluster {
    fn start() -> Self {
        let mut cluster = Self { nodes: Vec::new(), etcd: Etcd::start() };
        for index in 0..NODES {
            let node = cluster.launch(index);
            cluster.nodes.push(node);
            // One after the other, so that all turns are known.
            wait_until("it stands", || cluster.turns().len() == index + 1);
        }
        cluster
    }

    fn launch(&self, index: usize) -> Member {
        let (name, process) = (format!("node{}", index + 1), std::process::id().to_le_bytes());
        let host = format!("127.{}.{}.{}", process[0].max(1), process[1], 30 + index);
        let dir = self.etcd.stage.path(&name);
        let logged = fs::read_to_string(self.etcd.stage.path(&format!("{name}.log"))).unwrap_or_default().len();
        let (listen, advertise) = (format!("{host}:{PORT}"), format!("tcp://{host}:{PORT}"));
        let args =
            ["node", "--id", &(index + 1).to_string(), "--data-dir", dir.to_str().unwrap(), "--run", "exec sleep 1000"]
                .map(str::to_owned)
                .into_iter()
                .chain(["--listen", &listen, "--advertise", &advertise, "--etcd", &self.etcd.url(0)].map(str::to_owned))
                .collect::<Vec<_>>();
        let process = self.etcd.stage.start(&name, env!("CARGO_BIN_EXE_paceline"), args);
        Member { process, dir, logged }
    }

    /// All that stand, in their order; the first one leads.
    fn candidates(&self) -> Vec<Candidate> {
        self.etcd.coordinator().candidates().unwrap()
    }

    /// Their places in `nodes`.
    fn turns(&self) -> Vec<usize> {
        let ids = self.candidates().into_iter().filter_map(|candidate| candidate.id);
        ids.map(|id| usize::try_from(id.get()).unwrap() - 1).collect()
    }

    fn wait_all_stand(&self) {
        wait_until("all are in sync and stand", || {
            self.etcd.get("lavinmq/isr").first().is_some_and(|(_, set)| set == "1,2,3") && self.turns().len() == NODES
        });
    }
}

#[test]
fn a_member_that_was_stopped_and_is_next_in_turn_does_not_lead_in_place_of_one_that_has_everything() {
    let mut cluster = Cluster::start();
    let mut written = 0;
    for round in 1..=ROUNDS {
        cluster.wait_all_stand();
        let turns = cluster.turns();
        let [leads, lags, has_all] = turns[..] else { panic!("{turns:?}") };
        let term = cluster.candidates()[0].term;
        cluster.nodes[lags].process.signal(Signal::STOP);
        let mut log =
            fs::OpenOptions::new().create(true).append(true).open(cluster.nodes[leads].dir.join("log")).unwrap();
        log.write_all(&support::noise(BURST_BYTES)).unwrap();
        written += BURST_BYTES as u64;
        wait_until("one has everything", || cluster.nodes[has_all].bytes() == written);
        let lagged = written - cluster.nodes[lags].bytes();
        cluster.nodes[leads].process.kill();
        cluster.nodes[lags].process.signal(Signal::CONT);
        wait_until("another leads", || cluster.candidates().first().is_some_and(|first| first.term > term));
        let is_next = cluster.turns()[0] == lags;
        wait_until("it serves", || cluster.nodes[has_all].says(&format!("node {} is leading", has_all + 1)));
        assert_eq!(cluster.nodes[has_all].bytes(), written, "round {round}");
        wait_same(&cluster.nodes[has_all].dir, &cluster.nodes[lags].dir);
        println!("round {round}: node {} lagged by {lagged} bytes, was elected first: {is_next}", lags + 1);
        cluster.nodes[leads] = cluster.launch(leads);
        cluster.nodes[has_all].logged = cluster.nodes[has_all].process.log().len();
    }
    cluster.wait_all_stand();
    let leader = cluster.turns()[0];
    for index in (0..NODES).filter(|index| *index != leader) {
        wait_same(&cluster.nodes[leader].dir, &cluster.nodes[index].dir);
        assert_eq!(cluster.nodes[index].bytes(), written);
    }
    let gave_way = cluster.nodes.iter().filter(|node| node.process.log().contains("gives way to node")).count();
    println!("{gave_way} of the nodes gave way");
    for mut node in cluster.nodes {
        node.process.stop();
    }
}
