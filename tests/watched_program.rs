//! A program that knows nothing of replication, run where its node leads: started, stopped, restarted, and never active on
//! two nodes or on one that follows.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use paceline::NodeId;
use paceline::coordinator::{Coordinator, InSyncSet, MemoryCoordinator};
use paceline::follower::State;
use paceline::node::{Node, NodeConfig, NodeError, OnExit, ProgramConfig, Role, WatchedConfig, WatchedProgram};
use rustix::process::Pid;
use support::processes::Stage;
use support::{logs, wait_until};

/// Nodes whose events are lines of one file.
struct Group {
    stage: Stage,
    cluster: MemoryCoordinator,
    events: PathBuf,
}

impl Group {
    fn new() -> Self {
        let stage = Stage::new();
        let events = stage.path("events");
        fs::write(&events, "").unwrap();
        Self { stage, cluster: MemoryCoordinator::new(), events }
    }

    /// A shell command that adds a line.
    fn event(&self, what: &str) -> String {
        format!("echo {what} >> {}", self.events.display())
    }

    fn events(&self) -> Vec<String> {
        fs::read_to_string(&self.events).unwrap().lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn wait_events(&self, expected: &[&str]) {
        wait_until(&format!("{expected:?}"), || self.events().len() >= expected.len());
        assert_eq!(self.events(), expected);
    }

    /// Waits until the node may be elected.
    #[track_caller]
    fn wait_in_sync(&self, node: &Node) {
        wait_until(&format!("node {} is in sync", node.id()), || {
            self.cluster.in_sync_set().unwrap().is_some_and(|set| set.contains(node.id()))
        });
    }

    /// The node loses leadership, and is not elected again.
    fn depose(&self, leader: &Node) {
        self.wait_in_sync(leader);
        self.cluster.set_in_sync_set(Some(InSyncSet::of(NodeId::new(7).unwrap())));
        self.cluster.expire_leadership();
    }

    fn dir(&self, number: i32) -> PathBuf {
        self.stage.path(&format!("node{number}"))
    }

    /// A program that writes a file in the node's directory, with what it does when it is asked to end.
    fn program(&self, number: i32, asked: &str) -> ProgramConfig {
        let file = self.dir(number).join("log");
        let (started, ended) = (self.event(&format!("program {number}")), self.event(&format!("asked {number}")));
        let command = format!(
            "trap '{ended}; {asked}' TERM; {started}; echo $$ >> {}; while :; do sleep 0.01; done",
            file.display()
        );
        let guard = [env!("CARGO_BIN_EXE_paceline"), "guard"];
        ProgramConfig::new(command, guard.map(Into::into).to_vec())
    }

    fn node(&self, number: i32, change: impl FnOnce(&mut WatchedConfig)) -> Node {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let process = std::process::id().to_le_bytes();
        let address = format!("127.{}.{}.{}:5680", process[0].max(1), process[1], NEXT.fetch_add(1, Ordering::Relaxed));
        let secret = self.cluster.secret().unwrap();
        let mut config = NodeConfig::new(self.dir(number), secret, &address, format!("tcp://{address}"));
        config.leader.id = NodeId::new(number).ok();
        let mut watched = WatchedConfig::default();
        change(&mut watched);
        Node::start(config, Arc::new(self.cluster.clone()), WatchedProgram::new(watched)).unwrap()
    }
}

#[track_caller]
fn wait_role(node: &Node, role: Role) {
    wait_until(&format!("node {} is {role}", node.id()), || node.status().role == role);
}

#[track_caller]
fn wait_follows(node: &Node) {
    wait_until("it follows", || node.status().follower.is_some_and(|status| status.state == State::Streaming));
}

fn pids(dir: &Path) -> Vec<Pid> {
    let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
    log.lines().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect()
}

fn exists(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn the_program_is_active_where_the_node_leads_and_hooks_come_before_and_after_it() {
    let group = Group::new();
    let start = |number: i32| {
        group.node(number, |config| {
            config.on_elected = Some(group.event(&format!("elected {number}")));
            config.on_lost = Some(group.event(&format!("lost {number}")));
            config.program = Some(group.program(number, "exit 0"));
        })
    };
    let first = start(1);
    group.wait_events(&["elected 1", "program 1"]);
    let second = start(2);
    group.wait_in_sync(&second);
    wait_until("the second has what the program wrote", || !pids(&group.dir(2)).is_empty());
    first.stop().unwrap();
    group.wait_events(&["elected 1", "program 1", "asked 1", "lost 1", "elected 2", "program 2"]);
    wait_role(&second, Role::Leading);
    second.stop().unwrap();
    assert!(pids(&group.dir(2)).into_iter().all(|pid| !exists(pid)));
}

#[test]
fn a_program_that_ends_by_itself_hands_leadership_over() {
    let group = Group::new();
    let first = group.node(1, |config| {
        let mut program = group.program(1, "exit 0");
        program.command = format!("{}; read line < {}; exit 3", group.event("program 1"), fifo(&group).display());
        config.program = Some(program);
        config.on_lost = Some(group.event("lost 1"));
    });
    wait_role(&first, Role::Leading);
    let second = group.node(2, |config| config.program = Some(group.program(2, "exit 0")));
    group.wait_in_sync(&second);
    fs::write(fifo(&group), "end\n").unwrap();
    wait_role(&second, Role::Leading);
    group.wait_events(&["program 1", "lost 1", "program 2"]);
    assert_eq!(logs::lines(&["hands leadership over", "exit code 3"]).len(), 1);
    wait_follows(&first);
}

/// Made at the first call.
fn fifo(group: &Group) -> PathBuf {
    let path = group.stage.path("fifo");
    let _ = rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0);
    path
}

#[test]
fn a_program_that_ends_by_itself_is_started_again_if_that_is_wanted() {
    let group = Group::new();
    let node = group.node(1, |config| {
        let mut program = group.program(1, "exit 0");
        program.command = group.event("again");
        config.program = Some(program);
        config.on_exit = OnExit::Restart;
    });
    wait_until("it was started several times", || group.events().len() >= 3);
    assert_eq!(node.status().role, Role::Leading);
    node.stop().unwrap();
    let events = group.events().len();
    assert!(logs::lines(&["ended by itself", "starts it again in 400ms"]).len() == 1, "no delay grows");
    assert_eq!(group.events().len(), events);
}

#[test]
fn a_program_that_does_not_end_when_asked_is_killed_at_once_when_leadership_is_lost() {
    let group = Group::new();
    let node = group.node(1, |config| {
        let mut program = group.program(1, ":");
        program.stop_grace = Duration::from_secs(3600);
        config.program = Some(program);
    });
    wait_until("the program runs", || !pids(&group.dir(1)).is_empty());
    let program = pids(&group.dir(1))[0];
    group.depose(&node);
    wait_role(&node, Role::Following);
    assert!(!exists(program));
    node.stop().unwrap();
}

#[test]
fn what_the_hook_could_not_stop_keeps_the_node_from_following() {
    let group = Group::new();
    let allowed = group.stage.path("allowed");
    let hook = format!("{}; test -e {}", group.event("lost"), allowed.display());
    let node = group.node(1, |config| config.on_lost = Some(hook.clone()));
    wait_role(&node, Role::Leading);
    group.depose(&node);
    group.wait_events(&["lost"]);
    wait_until("its failure is logged", || !logs::lines(&["does not follow before", "exit status: 1"]).is_empty());
    assert_eq!(node.status().role, Role::Ending);
    let error = node.stop().unwrap_err();
    assert!(matches!(&error, NodeError::StillActive(_)) && error.to_string().contains("may still run"), "{error}");
    drop(node);
    // The next run succeeds.
    group.cluster.set_in_sync_set(None);
    let node = group.node(1, |config| config.on_lost = Some(hook));
    wait_role(&node, Role::Leading);
    fs::write(allowed, "").unwrap();
    node.stop().unwrap();
}

#[test]
fn a_hook_that_fails_when_the_node_was_elected_hands_leadership_over_without_starting_the_program() {
    let group = Group::new();
    let first = group.node(1, |config| {
        config.on_elected = Some(format!("{}; exit 1", group.event("elected 1")));
        config.on_lost = Some(group.event("lost 1"));
        config.program = Some(group.program(1, "exit 0"));
    });
    wait_until("it has given up", || group.events().len() >= 2);
    assert_eq!(group.events()[..2], ["elected 1", "lost 1"]);
    let second = group.node(2, |config| config.program = Some(group.program(2, "exit 0")));
    wait_until("one of them runs the program", || group.events().contains(&"program 2".to_owned()));
    assert!(!group.events().contains(&"program 1".to_owned()));
    wait_role(&second, Role::Leading);
    first.stop().unwrap();
}
