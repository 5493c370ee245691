//! Who is elected is who has most: members that lag, that are gone, and that say nothing of what they have.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use paceline::coordinator::{
    Bid, Candidate, Coordinator, CoordinatorError, InSyncSet, LeaderInfo, Leadership, MemoryCoordinator, Observation,
    Stop,
};
use paceline::node::{Host, HostError, NodeConfig, Role, Term};
use paceline::{DataSetId, EpochPosition, Leader, Node, NodeId, Secret, StreamPosition};
use support::relay::Relay;
use support::{PATIENCE, assert_same, begin, logs, path, wait_until};
use tempfile::TempDir;

const PORT: u16 = 5687;

fn id(id: i32) -> NodeId {
    NodeId::new(id).unwrap()
}

fn set(ids: &[i32]) -> Option<InSyncSet> {
    Some(InSyncSet::new(ids.iter().copied().map(id)).unwrap())
}

fn beyond(position: EpochPosition) -> Option<EpochPosition> {
    Some(EpochPosition { position: StreamPosition(position.position.0 + 1), ..position })
}

/// A host that hands out its leader.
struct Active(Sender<Weak<Leader>>);

impl Host for Active {
    fn start(&mut self, term: &Term) -> Result<(), HostError> {
        self.0.send(Arc::downgrade(term.leader()))?;
        Ok(())
    }

    fn stop(&mut self, _: &Term) -> Result<(), HostError> {
        Ok(())
    }
}

struct TestNode {
    node: Node,
    dir: TempDir,
    address: SocketAddr,
    leaders: Receiver<Weak<Leader>>,
}

impl TestNode {
    /// `host`: the last part of its address, which is no other node's of this process.
    fn start(coordinator: impl Coordinator, number: i32, host: u8, dir: TempDir) -> Self {
        begin();
        let process = std::process::id().to_le_bytes();
        let address = SocketAddr::from(([127, process[0].max(1), process[1], host], PORT));
        let secret = coordinator.secret().unwrap();
        let mut config = NodeConfig::new(dir.path(), secret, address.to_string(), format!("tcp://{address}"));
        config.leader.id = Some(id(number));
        let (sender, leaders) = unbounded();
        let node = Node::start(config, Arc::new(coordinator), Active(sender)).unwrap();
        Self { node, dir, address, leaders }
    }

    #[track_caller]
    fn wait_role(&self, role: Role) {
        wait_until(&format!("node {} is {role}", self.node.id()), || self.node.status().role == role);
    }

    #[track_caller]
    fn wait_stands(&self, cluster: &MemoryCoordinator) {
        let stands = |candidate: &Candidate| candidate.id == Some(self.node.id());
        wait_until(&format!("node {} stands", self.node.id()), || {
            cluster.candidates().unwrap().iter().any(stands)
                && cluster.in_sync_set().unwrap().is_some_and(|set| set.contains(self.node.id()))
        });
    }

    /// Appends, once it leads, and returns the position after that.
    fn append(&self, bytes: &[u8]) -> EpochPosition {
        let leader = self.leaders.recv_timeout(PATIENCE).unwrap().upgrade().unwrap();
        leader.file(&path("log")).unwrap().append(bytes).unwrap();
        leader.epoch_position().unwrap()
    }

    fn log_bytes(&self) -> u64 {
        fs::metadata(self.dir.path().join("log")).map_or(0, |meta| meta.len())
    }

    fn position(&self) -> Option<EpochPosition> {
        self.node.status().position
    }
}

/// A node's way to the cluster, where the first leader's address is another one.
struct Through {
    cluster: MemoryCoordinator,
    leader: NodeId,
    at: SocketAddr,
}

impl Coordinator for Through {
    fn secret(&self) -> Result<Secret, CoordinatorError> {
        self.cluster.secret()
    }

    fn in_sync_set(&self) -> Result<Option<InSyncSet>, CoordinatorError> {
        self.cluster.in_sync_set()
    }

    fn remove_from_in_sync_set(&self, id: NodeId) -> Result<bool, CoordinatorError> {
        self.cluster.remove_from_in_sync_set(id)
    }

    fn campaign(&self, id: NodeId, uri: &str, stop: &Stop) -> Result<Option<Arc<dyn Leadership>>, CoordinatorError> {
        self.cluster.campaign(id, uri, stop)
    }

    fn bid(&self, id: NodeId, bid: &Bid) -> Result<(), CoordinatorError> {
        self.cluster.bid(id, bid)
    }

    fn candidates(&self) -> Result<Vec<Candidate>, CoordinatorError> {
        self.cluster.candidates()
    }

    fn observe_candidates(&self) -> Result<Observation<Vec<Candidate>>, CoordinatorError> {
        self.cluster.observe_candidates()
    }

    fn observe_leader(&self) -> Result<Observation<Option<LeaderInfo>>, CoordinatorError> {
        let (leaders, leader, at) = (self.cluster.observe_leader()?, self.leader, self.at);
        Observation::start("through", move |latest, stop| {
            while !stop.is_set() {
                let Ok(mut now) = leaders.receiver().recv_timeout(Duration::from_millis(20)) else { continue };
                if let Some(now) = now.as_mut().filter(|now| now.id == Some(leader)) {
                    now.uri = format!("tcp://{at}");
                }
                latest.put(now);
            }
        })
    }

    fn observe_in_sync_set(&self) -> Result<Observation<Option<InSyncSet>>, CoordinatorError> {
        self.cluster.observe_in_sync_set()
    }

    fn data_set(&self) -> Result<Option<DataSetId>, CoordinatorError> {
        self.cluster.data_set()
    }

    fn observe_data_set(&self) -> Result<Observation<Option<DataSetId>>, CoordinatorError> {
        self.cluster.observe_data_set()
    }
}

#[test]
fn a_member_that_lags_gives_way_to_one_that_has_everything_though_it_is_the_next_in_turn() {
    const BYTES: usize = 4 << 20;
    let cluster = MemoryCoordinator::new();
    let first = TestNode::start(cluster.clone(), 1, 1, tempfile::tempdir().unwrap());
    first.wait_role(Role::Leading);
    let link = Relay::start(first.address);
    let through = Through { cluster: cluster.clone(), leader: id(1), at: link.address };
    let lags = TestNode::start(through, 2, 2, tempfile::tempdir().unwrap());
    lags.wait_stands(&cluster);
    let has_all = TestNode::start(cluster.clone(), 3, 3, tempfile::tempdir().unwrap());
    has_all.wait_stands(&cluster);
    link.hold();
    let all = first.append(&support::noise(BYTES));
    wait_until("one has everything", || has_all.position() == Some(all));
    assert_eq!(has_all.log_bytes(), BYTES as u64);
    assert!(lags.log_bytes() < BYTES as u64 && lags.position() < has_all.position());
    let turns: Vec<_> = cluster.candidates().unwrap().iter().filter_map(|candidate| candidate.id).collect();
    assert_eq!(turns, [1, 2, 3].map(id));
    cluster.expire_leadership();
    has_all.wait_role(Role::Leading);
    link.release();
    wait_until("all have everything", || [&first, &lags].iter().all(|node| node.log_bytes() == BYTES as u64));
    for node in [&first, &lags] {
        assert_same(has_all.dir.path(), node.dir.path());
        wait_until("its position is one of the new leader's", || node.position() == has_all.position());
    }
    assert_eq!(
        cluster.candidates().unwrap().iter().map(|candidate| candidate.term).min(),
        has_all.position().map(|at| at.epoch)
    );
}

/// A node that has led, and stands again, behind a leader of the test's own.
struct Second {
    cluster: MemoryCoordinator,
    leadership: Arc<dyn Leadership>,
    node: TestNode,
    has: EpochPosition,
    /// The id of another candidate, which is no other test's.
    rival: NodeId,
}

fn second(host: u8) -> Second {
    let cluster = MemoryCoordinator::new();
    let node = TestNode::start(cluster.clone(), 1, host, tempfile::tempdir().unwrap());
    node.wait_role(Role::Leading);
    let appended = node.append(b"a line\n");
    node.node.stop().unwrap();
    let leadership = cluster.campaign(id(7), "tcp://127.0.0.1:1", &Stop::new()).unwrap().unwrap();
    let rival = id(i32::from(host) + 100);
    cluster.set_in_sync_set(Some(InSyncSet::new([id(1), id(7), rival]).unwrap()));
    let TestNode { node, dir, .. } = node;
    drop(node);
    let node = TestNode::start(cluster.clone(), 1, host, dir);
    node.wait_stands(&cluster);
    wait_until("it knows what it has", || node.position().is_some());
    let has = node.position().unwrap();
    assert!(has.epoch == appended.epoch && has >= appended, "it has led up to {appended}, and has {has}");
    Second { cluster, leadership, node, has, rival }
}

impl Second {
    /// Another candidate, the last in turn; until `stop`.
    fn rival<'scope>(
        &self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        bid: Option<Bid>,
        stop: &'scope Stop,
    ) -> ScopedJoinHandle<'scope, Option<Arc<dyn Leadership>>> {
        let (handle, number) = (self.cluster.clone(), self.rival);
        bid.iter().for_each(|bid| handle.bid(number, bid).unwrap());
        let campaign = scope.spawn(move || handle.campaign(number, "tcp://127.0.0.1:2", stop).unwrap());
        wait_until("the rival stands", || self.cluster.candidates().unwrap().len() == 3);
        campaign
    }

    fn waited_in_vain(&self) -> bool {
        let unknown = format!("it is not known what {} has", self.rival);
        !logs::lines(&["WARN", &unknown]).is_empty()
    }

    /// The term that the node leads in, or will.
    fn term(&self) -> u64 {
        let candidates = self.cluster.candidates().unwrap();
        candidates.iter().find(|candidate| candidate.id == Some(id(1))).unwrap().term
    }
}

#[test]
fn a_winner_leads_if_no_other_has_more_and_does_not_wait_for_who_says_nothing() {
    for (host, bids) in [(10, true), (11, false)] {
        let second = second(host);
        let equal = Bid { term: u64::MAX, position: Some(second.has) };
        let stop = Stop::new();
        std::thread::scope(|scope| {
            let rival = second.rival(scope, bids.then_some(equal), &stop);
            second.leadership.resign();
            second.node.wait_role(Role::Leading);
            stop.set();
            assert!(rival.join().unwrap().is_none(), "it gave way to who has no more");
        });
        assert!(second.node.position() > Some(second.has));
    }
}

#[test]
fn a_winner_gives_way_to_who_has_more_and_leads_once_that_is_gone() {
    let second = second(12);
    let stop = Stop::new();
    std::thread::scope(|scope| {
        let more = Bid { term: u64::MAX, position: beyond(second.has) };
        let rival = second.rival(scope, Some(more), &stop);
        let before = second.term();
        second.leadership.resign();
        let rival = rival.join().unwrap().expect("it was elected");
        wait_until("the node stands again", || {
            second.cluster.candidates().unwrap().iter().any(|other| other.id == Some(id(1)) && other.term > before)
        });
        assert!(rival.is_held() && second.node.leaders.is_empty());
        rival.resign();
    });
    second.node.wait_role(Role::Leading);
}

#[test]
fn a_winner_waits_for_a_member_that_has_not_said_what_it_has_until_that_is_gone() {
    let second = second(13);
    let stop = Stop::new();
    std::thread::scope(|scope| {
        let of_old = Bid { term: 0, position: Some(second.has) };
        let rival = second.rival(scope, Some(of_old), &stop);
        let term = second.term();
        second.leadership.resign();
        // It is elected, and has said what it has itself.
        wait_until("the node is elected", || {
            let first = second.cluster.candidates().unwrap()[0];
            first.id == Some(id(1)) && first.bid.is_some_and(|bid| bid.term == term)
        });
        assert!(second.node.leaders.is_empty() || second.waited_in_vain(), "it did not wait");
        stop.set();
        assert!(rival.join().unwrap().is_none());
        second.node.wait_role(Role::Leading);
    });
}

#[test]
fn a_winner_does_not_wait_for_ever() {
    let second = second(14);
    let stop = Stop::new();
    std::thread::scope(|scope| {
        let of_old = Bid { term: 0, position: beyond(second.has) };
        let rival = second.rival(scope, Some(of_old), &stop);
        second.leadership.resign();
        second.node.wait_role(Role::Leading);
        assert!(second.waited_in_vain());
        stop.set();
        assert!(rival.join().unwrap().is_none());
    });
}

#[test]
fn a_member_that_is_started_anew_knows_how_far_it_has_come() {
    let cluster = MemoryCoordinator::new();
    let first = TestNode::start(cluster.clone(), 1, 20, tempfile::tempdir().unwrap());
    first.wait_role(Role::Leading);
    let member = TestNode::start(cluster.clone(), 2, 21, tempfile::tempdir().unwrap());
    member.wait_stands(&cluster);
    let has = Some(first.append(b"a line\n"));
    wait_until("it has everything", || member.position() == has);
    member.node.stop().unwrap();
    // Nobody leads whom it could ask.
    let TestNode { node, dir, .. } = member;
    drop(node);
    first.node.stop().unwrap();
    cluster.set_in_sync_set(set(&[1]));
    let member = TestNode::start(cluster.clone(), 2, 21, dir);
    wait_until("it says so", || member.position().is_some());
    assert_eq!(member.position(), has);
    let kept = |dir: &Path| dir.join(".paceline/position").exists();
    assert!(kept(first.dir.path()) && kept(member.dir.path()));
}
