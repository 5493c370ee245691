//! Nodes of a cluster within one process: which role they take, and in which order things happen when that changes.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use paceline::coordinator::{
    Coordinator, CoordinatorError, InSyncSet, LeaderInfo, Leadership, MemoryCoordinator, Observation, Stop,
};
use paceline::follower::State;
use paceline::leader::{CommitOutcome, Unknown};
use paceline::node::{Host, HostError, Node, NodeConfig, NodeError, ProxyConfig, Role, Term};
use paceline::{DataSetId, Error, Leader, NodeId, Protocol, Secret};
use support::fake_disk::FakeDisk;
use support::{PATIENCE, TestLeader, assert_same, begin, logs, path, wait_until};
use tempfile::TempDir;

const PORT: u16 = 5679;

/// A loopback address of its own for each node: all listen on the same port.
fn own_address() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let process = std::process::id().to_le_bytes();
    format!("127.{}.{}.{}", process[0].max(1), process[1], NEXT.fetch_add(1, Ordering::Relaxed))
}

fn id(id: i32) -> NodeId {
    NodeId::new(id).unwrap()
}

fn set(ids: &[i32]) -> Option<InSyncSet> {
    Some(InSyncSet::new(ids.iter().map(|id| NodeId::new(*id).unwrap())).unwrap())
}

/// What a host was told, in order.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    Prepare,
    Start,
    /// And whether the leader still took announcements.
    Stop {
        leads: bool,
    },
}

/// A host that embeds its node: it appends what it is told to.
struct Embedded {
    told: Sender<Told>,
    leader: Sender<Weak<Leader>>,
    fails: Arc<AtomicBool>,
    fails_to: Arc<Mutex<Option<Told>>>,
    stops_in_vain: Arc<AtomicU32>,
}

impl Embedded {
    fn tell(&self, told: Told) -> Result<(), HostError> {
        let fails = *self.fails_to.lock().unwrap() == Some(told);
        self.told.send(told).unwrap();
        if fails { Err(format!("the test says so, at {told:?}").into()) } else { Ok(()) }
    }
}

impl Host for Embedded {
    fn prepare(&mut self, _: &Term) -> Result<(), HostError> {
        self.tell(Told::Prepare)
    }

    fn start(&mut self, term: &Term) -> Result<(), HostError> {
        self.tell(Told::Start)?;
        let _ = self.leader.send(Arc::downgrade(term.leader()));
        Ok(())
    }

    fn check(&mut self, _: &Term) -> Result<(), HostError> {
        if self.fails.load(Ordering::Relaxed) { Err("the test says so".into()) } else { Ok(()) }
    }

    fn stop(&mut self, term: &Term) -> Result<(), HostError> {
        let leads = term.leader().file(&path("log")).and_then(|mut log| log.append(b"the end\n")).is_ok();
        self.told.send(Told::Stop { leads }).unwrap();
        match self.stops_in_vain.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Err("still active, says the test".into()),
            Err(_) => Ok(()),
        }
    }
}

struct TestNode {
    node: Node,
    dir: TempDir,
    host: String,
    told: Receiver<Told>,
    leader: Receiver<Weak<Leader>>,
    fails: Arc<AtomicBool>,
    fails_to: Arc<Mutex<Option<Told>>>,
    stops_in_vain: Arc<AtomicU32>,
}

fn config(dir: &Path, host: &str, number: i32, secret: Secret) -> NodeConfig {
    let address = format!("{host}:{PORT}");
    let mut config = NodeConfig::new(dir, secret, &address, format!("tcp://{address}"));
    config.leader.id = Some(id(number));
    config
}

impl TestNode {
    fn start(coordinator: impl Coordinator, number: i32) -> Self {
        Self::with(coordinator, number, tempfile::tempdir().unwrap(), |_| ())
    }

    fn with(coordinator: impl Coordinator, number: i32, dir: TempDir, change: impl FnOnce(&mut NodeConfig)) -> Self {
        begin();
        let host = own_address();
        let mut config = config(dir.path(), &host, number, coordinator.secret().unwrap());
        change(&mut config);
        let ((told, was_told), (leaders, leader)) = (unbounded(), unbounded());
        let (fails, stops_in_vain) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
        let fails_to = Arc::<Mutex<Option<Told>>>::default();
        let embedded = Embedded {
            told,
            leader: leaders,
            fails: fails.clone(),
            fails_to: fails_to.clone(),
            stops_in_vain: stops_in_vain.clone(),
        };
        let node = Node::start(config, Arc::new(coordinator), embedded).unwrap();
        Self { node, dir, host, told: was_told, leader, fails, fails_to, stops_in_vain }
    }

    #[track_caller]
    fn wait_role(&self, role: Role) {
        wait_until(&format!("node {} is {role}", self.node.id()), || self.node.status().role == role);
    }

    /// Waits until it is recorded as in sync, so that it may be elected.
    #[track_caller]
    fn wait_in_sync(&self, cluster: &MemoryCoordinator) {
        wait_until(&format!("node {} is in sync", self.node.id()), || {
            cluster.in_sync_set().unwrap().is_some_and(|set| set.contains(self.node.id()))
        });
    }

    #[track_caller]
    fn wait_follows(&self) {
        wait_until(&format!("node {} follows", self.node.id()), || {
            self.node.status().follower.is_some_and(|status| status.state == State::Streaming)
        });
    }

    fn told(&self) -> Told {
        self.told.recv_timeout(PATIENCE).unwrap()
    }

    /// Appends as its host does, once it leads.
    fn append(&self, bytes: &[u8]) {
        let leader = self.leader.recv_timeout(PATIENCE).unwrap().upgrade().unwrap();
        leader.file(&path("log")).unwrap().append(bytes).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// A candidate of the test's own, elected.
fn elected(coordinator: &MemoryCoordinator, number: i32, uri: &str) -> Arc<dyn Leadership> {
    coordinator.campaign(id(number), uri, &Stop::new()).unwrap().unwrap()
}

/// Whether a node with this id campaigns, or leads: then the id is in use.
fn campaigns(cluster: &MemoryCoordinator, number: i32) -> bool {
    let withdrawn = Stop::new();
    withdrawn.set();
    matches!(cluster.clone().campaign(id(number), "", &withdrawn), Err(CoordinatorError::IdInUse { .. }))
}

#[test]
fn one_leads_the_others_follow_and_a_shutdown_hands_over_what_was_written_last() {
    let cluster = MemoryCoordinator::new();
    let first = TestNode::start(cluster.clone(), 1);
    first.wait_role(Role::Leading);
    let others = [TestNode::start(cluster.clone(), 2), TestNode::start(cluster.clone(), 3)];
    first.append(b"a line\n");
    others.iter().for_each(|node| node.wait_in_sync(&cluster));
    first.node.stop().unwrap();
    assert_eq!(first.node.status().role, Role::Stopped);
    assert_eq!([first.told(), first.told(), first.told()], [Told::Prepare, Told::Start, Told::Stop { leads: true }]);
    wait_until("another leads", || others.iter().any(|node| node.node.status().role == Role::Leading));
    for other in &others {
        assert_eq!(other.log(), "a line\nthe end\n");
    }
    let (leads, follows) = match others[0].node.status().role {
        Role::Leading => (&others[0], &others[1]),
        _ => (&others[1], &others[0]),
    };
    leads.append(b"another line\n");
    wait_until("the third has it", || follows.log().ends_with("another line\n"));
    // And back again.
    let first = TestNode::with(cluster.clone(), 1, first.dir, |_| ());
    first.wait_in_sync(&cluster);
    follows.node.stop().unwrap();
    leads.node.stop().unwrap();
    first.wait_role(Role::Leading);
    assert!(first.log().ends_with("another line\nthe end\n"), "{}", first.log());
}

#[test]
fn who_lost_leadership_stops_leading_first_and_follows_only_when_nothing_is_active_any_more() {
    let cluster = MemoryCoordinator::new();
    let node = TestNode::start(cluster.clone(), 1);
    node.wait_role(Role::Leading);
    node.append(b"a line\n");
    assert_eq!([node.told(), node.told()], [Told::Prepare, Told::Start]);
    node.wait_in_sync(&cluster);
    node.stops_in_vain.store(1, Ordering::Relaxed);
    cluster.set_in_sync_set(set(&[1, 2]));
    // Someone else is elected next, and has more.
    let dir = support::copy_to_be(node.dir.path());
    let other = support::TestLeader::on(dir, |config| config.secret = cluster.secret().unwrap());
    other.append("log", b"a line\nanother line\n");
    let withdraw = Stop::new();
    std::thread::scope(|scope| {
        let campaign = scope.spawn(|| cluster.campaign(id(2), &format!("tcp://{}", other.address), &withdraw));
        // Its campaign has begun when its id is in use.
        wait_until("it campaigns", || campaigns(&cluster, 2));
        cluster.expire_leadership();
        let _leadership = campaign.join().unwrap().unwrap().unwrap();
        assert_eq!(node.told(), Told::Stop { leads: false });
        assert_eq!(node.node.status().role, Role::Ending);
        assert!(other.leader.followers().is_empty() && !node.log().contains("another"));
        // The second attempt is not in vain.
        assert_eq!(node.told(), Told::Stop { leads: false });
        other.wait_in_sync(1);
        assert_same(other.dir.path(), node.dir.path());
        node.node.stop().unwrap();
    });
}

#[test]
fn a_node_whose_coordinator_has_lost_a_thread_ends_be_it_leading_or_following() {
    for leads in [true, false] {
        let cluster = MemoryCoordinator::new();
        let first = TestNode::start(cluster.clone(), 1);
        first.wait_role(Role::Leading);
        let second = TestNode::start(cluster.clone(), 2);
        second.wait_in_sync(&cluster);
        let (ends, stays) = if leads { (&first, &second) } else { (&second, &first) };
        stays.node.stop().unwrap();
        cluster.fail();
        assert!(matches!(ends.node.wait(PATIENCE), Some(Err(NodeError::ObservationEnded))));
    }
}

#[test]
fn a_host_that_fails_hands_over_to_another_node() {
    let cluster = MemoryCoordinator::new();
    let first = TestNode::start(cluster.clone(), 1);
    first.wait_role(Role::Leading);
    let second = TestNode::start(cluster.clone(), 2);
    second.wait_in_sync(&cluster);
    first.append(b"a line\n");
    first.fails.store(true, Ordering::Relaxed);
    second.wait_role(Role::Leading);
    assert_eq!([first.told(), first.told(), first.told()], [Told::Prepare, Told::Start, Told::Stop { leads: true }]);
    assert_eq!(second.log(), "a line\nthe end\n");
    first.wait_follows();
    second.append(b"another line\n");
    wait_until("the first has it", || first.log().ends_with("another line\n"));
}

#[test]
fn a_leader_whose_disk_failed_a_sync_hands_over_once_another_is_in_sync_and_is_mended_before_it_leads_again() {
    let (cluster, disk) = (MemoryCoordinator::new(), FakeDisk::new());
    let first = TestNode::with(cluster.clone(), 1, tempfile::tempdir().unwrap(), |config| {
        config.leader = config.leader.clone().flushed_by(disk.clone());
    });
    first.wait_role(Role::Leading);
    let marks = ["suspect", "incomplete"].map(|mark| first.dir.path().join(".paceline").join(mark));
    let inode = || fs::metadata(first.dir.path().join("log")).unwrap().ino();
    let leader = first.leader.recv_timeout(PATIENCE).unwrap().upgrade().unwrap();
    let mut log = leader.file(&path("log")).unwrap();
    assert!(leader.commit(log.append(b"durable\n").unwrap(), PATIENCE).is_committed());
    disk.fail(5);
    let outcome = leader.commit(log.append(b"lost\n").unwrap(), PATIENCE);
    assert_eq!(outcome, CommitOutcome::Unknown(Unknown::LocalSyncFailed));
    assert!(marks[0].exists());
    let before = inode();
    drop(log);
    drop(leader);
    // Nobody else has it: it leads on, and only then hands over.
    let second = TestNode::start(cluster.clone(), 2);
    second.wait_role(Role::Leading);
    assert_eq!([first.told(), first.told(), first.told()], [Told::Prepare, Told::Start, Told::Stop { leads: true }]);
    assert_eq!(second.log(), "durable\nlost\nthe end\n");
    first.wait_in_sync(&cluster);
    first.wait_follows();
    assert!(!marks.iter().any(|mark| mark.exists()) && inode() != before, "it was not mended");
    assert_eq!(first.log(), second.log());
    disk.heal();
    second.node.stop().unwrap();
    first.wait_role(Role::Leading);
}

#[test]
fn a_host_that_fails_leaves_its_leader_to_whoever_is_still_to_get_everything() {
    let cluster = MemoryCoordinator::new();
    let first = TestNode::start(cluster.clone(), 1);
    first.wait_role(Role::Leading);
    first.append(b"a line\n");
    first.fails.store(true, Ordering::Relaxed);
    first.wait_role(Role::Ending);
    let second = TestNode::start(cluster.clone(), 2);
    second.wait_role(Role::Leading);
    assert_eq!(second.log(), "a line\nthe end\n");
}

#[test]
fn a_winner_that_cannot_serve_leaves_the_others_their_right_to_lead() {
    for fails_to in [Told::Prepare, Told::Start] {
        let cluster = MemoryCoordinator::new();
        let first = TestNode::start(cluster.clone(), 1);
        first.wait_role(Role::Leading);
        let second = TestNode::start(cluster.clone(), 2);
        second.wait_in_sync(&cluster);
        wait_until("the second is the next", || campaigns(&cluster, 2));
        let third = TestNode::start(cluster.clone(), 3);
        third.wait_in_sync(&cluster);
        wait_until("the third campaigns", || campaigns(&cluster, 3));
        first.append(b"a line\n");
        *second.fails_to.lock().unwrap() = Some(fails_to);
        // All have as much, and the first does not stand again.
        first.node.stop().unwrap();
        third.wait_role(Role::Leading);
        assert_eq!(second.told(), Told::Prepare, "the second was not elected");
        assert!(cluster.in_sync_set().unwrap().is_some_and(|set| set.contains(id(3))));
        third.append(b"another line\n");
        wait_until("the second follows", || second.log().ends_with("another line\n"));
    }
}

#[test]
fn a_directory_that_cannot_be_opened_to_lead_costs_the_node_its_turn_and_nothing_else() {
    let cluster = MemoryCoordinator::new();
    let first = TestNode::start(cluster.clone(), 1);
    first.wait_role(Role::Leading);
    let broken = TestNode::start(cluster.clone(), 2);
    broken.wait_in_sync(&cluster);
    wait_until("it is the next", || campaigns(&cluster, 2));
    let third = TestNode::start(cluster.clone(), 3);
    third.wait_in_sync(&cluster);
    // What a leader writes before anything else, and cannot.
    let in_its_way = broken.dir.path().join(".clustering_id");
    fs::remove_file(&in_its_way).unwrap();
    fs::create_dir(&in_its_way).unwrap();
    first.node.stop().unwrap();
    third.wait_role(Role::Leading);
    assert!(broken.told.is_empty(), "it did lead");
}

#[test]
fn a_node_is_renewed_only_while_its_data_path_is_alive() {
    let cluster = MemoryCoordinator::new();
    let well = TestNode::start(cluster.clone(), 1);
    well.wait_role(Role::Leading);
    cluster.renew();
    assert_eq!(well.node.status().role, Role::Leading);
    well.node.stop().unwrap();
    let cluster = MemoryCoordinator::new();
    let unwell = TestNode::with(cluster.clone(), 2, tempfile::tempdir().unwrap(), |config| {
        // No disk is as fast as that.
        config.stall_timeout = Duration::from_nanos(1);
    });
    unwell.wait_role(Role::Leading);
    unwell.wait_in_sync(&cluster);
    cluster.set_in_sync_set(set(&[7]));
    cluster.renew();
    unwell.wait_role(Role::Following);
    assert_eq!(
        [unwell.told(), unwell.told(), unwell.told()],
        [Told::Prepare, Told::Start, Told::Stop { leads: false }]
    );
}

#[test]
fn a_node_that_is_not_in_the_recorded_set_never_leads_and_does_once_it_is() {
    let cluster = MemoryCoordinator::new();
    cluster.set_in_sync_set(set(&[7]));
    let node = TestNode::start(cluster.clone(), 1);
    wait_until("it knows the set", || node.node.status().in_sync == set(&[7]));
    // Nobody else campaigns: it would have been elected by now.
    assert_eq!(node.node.wait_for_another_role(Role::Following, Duration::from_millis(300)), Role::Following);
    cluster.set_in_sync_set(set(&[1, 7]));
    node.wait_role(Role::Leading);
}

#[test]
fn a_node_that_may_not_lead_says_so_and_why_while_nobody_leads() {
    let cluster = MemoryCoordinator::new();
    cluster.set_in_sync_set(set(&[777]));
    let _node = TestNode::start(cluster.clone(), 71);
    let (own, missing) = (format!("nobody leads, and node {} may not", id(71)), format!("missing is node {}", id(777)));
    wait_until("it says so", || !logs::lines(&["WARN", &own, &missing, "paceline forget ID"]).is_empty());
}

/// A coordinator whose observed set is stale.
struct Stale {
    cluster: MemoryCoordinator,
    observed: MemoryCoordinator,
    /// The recorded set makes no sense.
    makes_no_sense: bool,
}

impl Coordinator for Stale {
    fn secret(&self) -> Result<Secret, CoordinatorError> {
        self.cluster.secret()
    }

    fn in_sync_set(&self) -> Result<Option<InSyncSet>, CoordinatorError> {
        if self.makes_no_sense {
            return Err(CoordinatorError::Unexpected("the set of the test".into()));
        }
        self.cluster.in_sync_set()
    }

    fn remove_from_in_sync_set(&self, id: NodeId) -> Result<bool, CoordinatorError> {
        self.cluster.remove_from_in_sync_set(id)
    }

    fn campaign(&self, id: NodeId, uri: &str, stop: &Stop) -> Result<Option<Arc<dyn Leadership>>, CoordinatorError> {
        self.cluster.campaign(id, uri, stop)
    }

    fn observe_leader(&self) -> Result<Observation<Option<LeaderInfo>>, CoordinatorError> {
        self.cluster.observe_leader()
    }

    fn observe_in_sync_set(&self) -> Result<Observation<Option<InSyncSet>>, CoordinatorError> {
        self.observed.observe_in_sync_set()
    }

    fn data_set(&self) -> Result<Option<DataSetId>, CoordinatorError> {
        self.cluster.data_set()
    }

    fn observe_data_set(&self) -> Result<Observation<Option<DataSetId>>, CoordinatorError> {
        self.cluster.observe_data_set()
    }
}

/// A coordinator that tells how leadership was given up.
struct GivenUp {
    cluster: MemoryCoordinator,
    how: Sender<&'static str>,
    records: Records,
}

/// What becomes of the cluster's data set.
#[derive(Clone, Copy, PartialEq)]
enum Records {
    Always,
    /// It is lost before it is recorded ...
    Never,
    /// ... or after that.
    WithoutAnAnswer,
}

impl Coordinator for GivenUp {
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
        let elected = self.cluster.campaign(id, uri, stop)?;
        let tells =
            |held| Arc::new(Tells { held, how: self.how.clone(), records: self.records }) as Arc<dyn Leadership>;
        Ok(elected.map(tells))
    }

    fn observe_leader(&self) -> Result<Observation<Option<LeaderInfo>>, CoordinatorError> {
        self.cluster.observe_leader()
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

struct Tells {
    held: Arc<dyn Leadership>,
    how: Sender<&'static str>,
    records: Records,
}

impl Leadership for Tells {
    fn record_data_set(&self, id: DataSetId, replace: bool) -> Result<DataSetId, CoordinatorError> {
        if self.records != Records::Never {
            self.held.record_data_set(id, replace)?;
        }
        if self.records == Records::Always { Ok(id) } else { Err(CoordinatorError::Lost) }
    }

    fn record_in_sync(&self, set: &InSyncSet) -> Result<(), CoordinatorError> {
        self.held.record_in_sync(set)
    }

    fn is_held(&self) -> bool {
        self.held.is_held()
    }

    fn resign(&self) {
        self.how.send("resigned").unwrap();
        self.held.resign();
    }

    fn abandon(&self) {
        self.how.send("abandoned").unwrap();
        self.held.abandon();
    }

    fn set_health(&self, health: Box<dyn Fn() -> bool + Send + Sync>) {
        self.held.set_health(health);
    }

    fn wait_lost(&self, timeout: Duration) -> bool {
        self.held.wait_lost(timeout)
    }
}

#[test]
fn a_node_that_loses_its_directory_hands_over_so_that_its_successor_does_not_wait() {
    let (sender, how) = unbounded();
    let cluster = MemoryCoordinator::new();
    let change = |config: &mut NodeConfig| config.drain_timeout = Duration::from_millis(100);
    let dir = tempfile::tempdir().unwrap();
    let node =
        TestNode::with(GivenUp { cluster: cluster.clone(), how: sender, records: Records::Always }, 1, dir, change);
    node.wait_role(Role::Leading);
    fs::rename(node.dir.path(), node.dir.path().with_extension("away")).unwrap();
    let ended = node.node.wait(PATIENCE).expect("it goes on").unwrap_err().to_string();
    fs::remove_dir_all(node.dir.path().with_extension("away")).unwrap();
    assert!(ended.contains("is lost"), "{ended}");
    assert_eq!(how.try_iter().collect::<Vec<_>>(), ["resigned"]);
}

#[test]
fn a_first_winner_that_is_lost_while_it_says_which_data_set_the_cluster_is_bars_neither_itself_nor_others() {
    for records in [Records::Never, Records::WithoutAnAnswer] {
        let (sender, how) = unbounded();
        let cluster = MemoryCoordinator::new();
        let dir = tempfile::tempdir().unwrap();
        let first = TestNode::with(GivenUp { cluster: cluster.clone(), how: sender, records }, 1, dir, |_| ());
        how.recv_timeout(PATIENCE).unwrap();
        first.node.stop().unwrap();
        let dir = first.dir;
        if records == Records::Never {
            let second = TestNode::start(cluster.clone(), 2);
            second.wait_role(Role::Leading);
            second.append(b"a line\n");
            let first = TestNode::with(cluster.clone(), 1, dir, |_| ());
            first.wait_in_sync(&cluster);
            assert_eq!(first.log(), "a line\n");
        } else {
            let recorded = cluster.data_set().unwrap();
            assert!(recorded.is_some());
            let first = TestNode::with(cluster.clone(), 1, dir, |_| ());
            first.wait_role(Role::Leading);
            assert_eq!(cluster.data_set().unwrap(), recorded);
        }
    }
}

#[test]
fn a_node_that_is_elected_without_being_in_the_set_steps_down_before_it_has_begun() {
    let cluster = MemoryCoordinator::new();
    let observed = MemoryCoordinator::new();
    observed.set_in_sync_set(set(&[1, 7]));
    cluster.set_in_sync_set(set(&[7]));
    let other = elected(&cluster, 7, "tcp://127.0.0.1:1");
    let node = TestNode::start(Stale { cluster: cluster.clone(), observed, makes_no_sense: false }, 1);
    wait_until("it campaigns", || campaigns(&cluster, 1));
    other.resign();
    wait_until("it knows better", || node.node.status().in_sync == set(&[7]));
    // It has given the election up: the next one is elected.
    let again = elected(&cluster, 7, "tcp://127.0.0.1:1");
    assert!(again.is_held() && node.told.is_empty());
    assert_eq!(node.node.status().role, Role::Following);
}

#[test]
fn a_node_that_is_elected_and_cannot_read_the_set_does_not_hold_on_to_that() {
    let cluster = MemoryCoordinator::new();
    let observed = MemoryCoordinator::new();
    observed.set_in_sync_set(set(&[1, 7]));
    let other = elected(&cluster, 7, "tcp://127.0.0.1:1");
    let node = TestNode::start(Stale { cluster: cluster.clone(), observed, makes_no_sense: true }, 1);
    wait_until("it campaigns", || campaigns(&cluster, 1));
    other.resign();
    wait_until("it says why", || !logs::lines(&["ERROR elected, but cannot lead", "the set of the test"]).is_empty());
    let again = elected(&cluster, 7, "tcp://127.0.0.1:1");
    assert!(again.is_held() && node.told.is_empty());
    assert_eq!(node.node.status().role, Role::Following);
}

#[test]
fn a_blank_directory_does_not_lead_by_the_id_that_the_lost_one_had() {
    let cluster = MemoryCoordinator::new();
    let data_set = DataSetId::random().unwrap();
    cluster.set_data_set(Some(data_set));
    cluster.set_in_sync_set(set(&[1]));
    // Its disk is not mounted.
    let blank = TestNode::start(cluster.clone(), 1);
    assert_eq!(blank.node.wait_for_another_role(Role::Following, Duration::from_millis(300)), Role::Following);
    assert!(!campaigns(&cluster, 1) && cluster.in_sync_set().unwrap() == set(&[1]));
    blank.node.stop().unwrap();
    // A LavinMQ's, which was in sync: it knows no data set.
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".clustering_id"), "1").unwrap();
    let node = TestNode::with(cluster.clone(), 1, dir, |_| ());
    node.wait_role(Role::Leading);
    assert_eq!(cluster.data_set().unwrap(), Some(data_set));
    let leader = node.leader.recv_timeout(PATIENCE).unwrap().upgrade().unwrap();
    assert_eq!(leader.data_set(), data_set);
}

#[test]
fn a_node_that_began_blank_and_got_all_from_a_leader_of_1_0_0_may_succeed_it() {
    let cluster = MemoryCoordinator::new();
    let data_set = DataSetId::random().unwrap();
    cluster.set_data_set(Some(data_set));
    cluster.set_in_sync_set(set(&[1, 7]));
    let secret = cluster.secret().unwrap();
    let lavinmqs = TestLeader::with(|config| config.secret = secret);
    lavinmqs.append("log", b"from LavinMQ\n");
    let leads = elected(&cluster, 7, &format!("tcp://{}", lavinmqs.address));
    let v1 = |config: &mut NodeConfig| config.follower.protocol = Protocol::V1;
    let node = TestNode::with(cluster.clone(), 1, tempfile::tempdir().unwrap(), v1);
    node.wait_follows();
    wait_until("it campaigns", || campaigns(&cluster, 1));
    lavinmqs.shut_down();
    leads.resign();
    node.wait_role(Role::Leading);
    assert!(node.log().starts_with("from LavinMQ"));
    let leader = node.leader.recv_timeout(PATIENCE).unwrap().upgrade().unwrap();
    assert_eq!(leader.data_set(), data_set);
}

#[test]
fn a_directory_that_is_half_of_a_full_sync_never_leads() {
    let cluster = MemoryCoordinator::new();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(".paceline")).unwrap();
    fs::write(dir.path().join(".paceline/incomplete"), "").unwrap();
    let node = TestNode::with(cluster.clone(), 1, dir, |_| ());
    assert_eq!(node.node.wait_for_another_role(Role::Following, Duration::from_millis(300)), Role::Following);
    // A leader makes it whole.
    let first = TestNode::start(cluster.clone(), 2);
    node.wait_in_sync(&cluster);
    first.node.stop().unwrap();
    node.wait_role(Role::Leading);
}

#[test]
fn the_first_leader_is_recorded_before_anything_else_so_that_nobody_with_less_succeeds_it() {
    let cluster = MemoryCoordinator::new();
    cluster.hold_writes(true);
    let first = TestNode::start(cluster.clone(), 1);
    wait_until("it records itself", || cluster.writes_waiting() == 1);
    assert!(first.node.status().role == Role::Following && first.told.is_empty());
    let second = TestNode::start(cluster.clone(), 2);
    cluster.hold_writes(false);
    first.wait_role(Role::Leading);
    assert_eq!(cluster.in_sync_set().unwrap().map(|set| set.contains(id(1))), Some(true));
    second.wait_in_sync(&cluster);
}

#[test]
fn nobody_follows_himself() {
    let cluster = MemoryCoordinator::new();
    cluster.set_in_sync_set(set(&[7]));
    let node = TestNode::start(cluster.clone(), 1);
    let own = format!("tcp://{}:{PORT}", node.host);
    for (number, uri) in [(7, own.as_str()), (1, "tcp://127.0.0.1:1")] {
        let _leadership = elected(&cluster, number, uri);
        wait_until("it knows the leader", || node.node.status().leader.is_some_and(|leader| leader.uri == uri));
        let status = node.node.status();
        assert!(status.role == Role::Following && status.follower.is_none_or(|status| status.connections == 0));
    }
}

#[test]
fn a_directory_in_use_and_a_wrong_secret_end_a_node_with_their_reason() {
    let cluster = MemoryCoordinator::new();
    let first = TestNode::start(cluster.clone(), 1);
    first.wait_role(Role::Leading);
    let start = |dir: &Path, secret: Secret| {
        let ((told, _), (leader, _)) = (unbounded(), unbounded());
        let host =
            Embedded { told, leader, fails: Arc::default(), fails_to: Arc::default(), stops_in_vain: Arc::default() };
        Node::start(config(dir, &own_address(), 2, secret), Arc::new(cluster.clone()), host)
    };
    let secret = cluster.secret().unwrap();
    let error = start(first.dir.path(), secret).err().unwrap();
    assert!(matches!(error, NodeError::Replication(Error::InUse(_))), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), Secret::new("another").unwrap()).unwrap();
    let error = node.wait(PATIENCE).unwrap().unwrap_err();
    assert!(matches!(error, NodeError::SecretRefused { .. }), "{error}");
    assert!(node.stop().is_ok());
}

#[test]
fn a_coordinator_that_is_out_of_reach_changes_nothing_and_is_campaigned_at_once_it_is_back() {
    let cluster = MemoryCoordinator::new();
    let first = TestNode::start(cluster.clone(), 1);
    first.wait_role(Role::Leading);
    let second = TestNode::start(cluster.clone(), 2);
    second.wait_in_sync(&cluster);
    cluster.set_reachable(false);
    first.append(b"a line\n");
    wait_until("the second has it", || second.log() == "a line\n");
    assert_eq!((first.node.status().role, second.node.status().role), (Role::Leading, Role::Following));
    cluster.set_reachable(true);
    first.node.stop().unwrap();
    second.wait_role(Role::Leading);
}

/// What a server says to each client that reaches it.
fn serve(listener: TcpListener, word: &'static str) {
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = (&client).write_all(word.as_bytes());
                // Until the client goes.
                let _ = (&client).read(&mut [0]);
            });
        }
    });
}

fn says(address: std::net::SocketAddr) -> Option<String> {
    let mut client = TcpStream::connect(address).ok()?;
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut word = [0; 3];
    client.read_exact(&mut word).ok()?;
    Some(String::from_utf8(word.to_vec()).unwrap())
}

#[test]
fn clients_reach_the_leaders_host_through_any_node_that_is_in_sync() {
    let cluster = MemoryCoordinator::new();
    let with_proxy = |number: i32, port: u16| {
        TestNode::with(cluster.clone(), number, tempfile::tempdir().unwrap(), |config| {
            config.proxies.push(ProxyConfig::new("127.0.0.1:0", port));
        })
    };
    let program = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = program.local_addr().unwrap().port();
    drop(program);
    // In no set with others until it is in sync: it cannot lead.
    cluster.set_in_sync_set(set(&[1]));
    let second = with_proxy(2, port);
    assert_eq!(says(second.node.proxies()[0]), None);
    let first = with_proxy(1, port);
    serve(TcpListener::bind((first.host.as_str(), port)).unwrap(), "one");
    serve(TcpListener::bind((second.host.as_str(), port)).unwrap(), "two");
    first.wait_role(Role::Leading);
    second.wait_in_sync(&cluster);
    second.wait_follows();
    for node in [&first, &second] {
        wait_until("the first node's program is reached", || {
            says(node.node.proxies()[0]).is_some_and(|word| word == "one")
        });
    }
    let mut client = TcpStream::connect(second.node.proxies()[0]).unwrap();
    client.read_exact(&mut [0; 3]).unwrap();
    first.node.stop().unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_or(0), 0, "not cut");
    assert_eq!(says(first.node.proxies()[0]), None);
    wait_until("the second node's program is reached", || {
        says(second.node.proxies()[0]).is_some_and(|word| word == "two")
    });
}
