//! One history: machines with a disk, an address and a process each; what happens to them; and what has to hold.
//!
//! The driver is a process of its own. It calls nothing of the others' objects: they post what it wants to know, and it tells them
//! to stop, through plain values that no process can leave locked.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use paceline::coordinator::{Coordinator, InSyncSet};
use paceline::leader::Opening;
use paceline::node::{Host as NodeHost, HostError, NodeConfig, Term};
use paceline::sys::thread;
use paceline::sys::world::{self, Fault as CallFault, ProcessId, World};
use paceline::watch::Watcher;
use paceline::{BackPressure, Follower, FollowerConfig, Leader, LeaderConfig, Node, NodeId, OnFull};

use crate::coordinator::{Cluster, secret};
use crate::host::{Calm, CalmOutcome, Host, Writer, Writers};
use crate::machine::{Machine, SUSPECT};
use crate::model::{Kept, Looked, Model, See, Tree, differs};
use crate::plan::{Event, Fault, Kind, Plan};

const PORT: u16 = 5679;
/// With all faults over, everybody is in sync by then.
const REST_MAX: Duration = Duration::from_secs(120);
/// Where nothing happens, no commit takes longer than this, and so many syncs of a disk.
const QUIET_COMMIT_MAX: Duration = Duration::from_millis(200);
const QUIET_COMMIT_SYNCS: u32 = 24;

/// A machine's part in the history.
struct Member {
    id: NodeId,
    machine: Machine,
    process: Option<ProcessId>,
    /// What its process posts and is told.
    post: Arc<Post>,
    /// Its copy when it was last looked at, and what of it was durable.
    looked: Looked,
    kept: Kept,
    /// It has lost power, and has not followed since: what is in its files may be anything.
    torn: bool,
    /// A system call has failed: a sync, perhaps, which marks its copy as one that is not complete.
    failed: bool,
    /// Until when nobody may start it.
    down_until: Duration,
    /// A person has looked at the files of its suspect directory, and takes the mark away before it starts.
    cleared: bool,
}

#[derive(Default)]
struct Post {
    /// The process is to stop as it should.
    stop: AtomicBool,
    state: Mutex<Posted>,
}

#[derive(Clone, Debug, Default)]
struct Posted {
    /// Its main function has returned.
    ended: bool,
    /// What it last said of itself.
    says: String,
    /// It leads, and so many followers have everything.
    drained: Option<usize>,
    leads: bool,
    streaming: bool,
    /// It led and has stopped as it should, when this was recorded as in sync.
    left: Option<InSyncSet>,
}

impl Post {
    fn update(&self, change: impl FnOnce(&mut Posted)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn read(&self) -> Posted {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_told_to_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// What is the same for all processes of a history.
struct Shared {
    plan: Plan,
    cluster: Arc<Cluster>,
    host: Arc<Host>,
}

/// Runs it in the world of this thread; a fault ends the world.
pub(crate) fn run(plan: Plan) {
    let mut history = History::new(plan);
    history.run();
}

struct History {
    world: Arc<World>,
    shared: Arc<Shared>,
    members: Vec<Member>,
    /// Faults that are not over: when they are, and what then.
    over: Vec<(Duration, usize, Fault)>,
}

impl History {
    fn new(plan: Plan) -> Self {
        let world = world::current();
        let host = Arc::new(Host {
            model: Model::default(),
            pause: plan.pause,
            commits: plan.commits,
            large: plan.large,
            in_place: plan.in_place,
            commits_call: plan.commits_call,
            appends_wait: plan.appends_wait,
            stop: AtomicBool::new(false),
            writers: (0..plan.writers).map(|_| Writer::default()).collect(),
            longest_commit: AtomicU64::new(0),
            calm: Calm::default(),
        });
        let members = (0..=plan.followers)
            .map(|number| Member {
                id: NodeId::new(i32::try_from(number).expect("few") + 1).expect("positive"),
                machine: Machine::new(number, plan.followers + 1, &world, plan.file_clock),
                process: None,
                post: Arc::default(),
                looked: Looked::new(),
                kept: Kept::default(),
                torn: false,
                failed: false,
                down_until: Duration::ZERO,
                cleared: false,
            })
            .collect();
        world.trace(|| plan.to_string());
        let shared = Arc::new(Shared { plan, cluster: Cluster::new(), host });
        Self { world, shared, members, over: Vec::new() }
    }

    fn run(&mut self) {
        for number in 0..self.members.len() {
            self.start(number);
        }
        let mut events = self.shared.plan.events.clone();
        events.reverse();
        let end = self.world.now() + self.shared.plan.length;
        while self.world.now() < end || !events.is_empty() || !self.over.is_empty() {
            let now = self.world.now();
            while events.last().is_some_and(|event| event.at <= now) {
                let event = events.pop().expect("there is one");
                self.begin(&event);
            }
            self.end_faults(now);
            self.look_after_processes();
            self.check();
            let next = events.last().map(|event| event.at).into_iter().chain(self.over.iter().map(|(at, ..)| *at));
            let next = next.min().unwrap_or(end).saturating_sub(self.world.now());
            thread::sleep(next.clamp(Duration::from_micros(100), self.shared.plan.look_every));
        }
        self.shared.host.stop.store(true, Ordering::Relaxed);
        self.rest();
    }

    fn member(&self, number: usize) -> &Member {
        &self.members[number]
    }

    fn start(&mut self, number: usize) {
        let shared = self.shared.clone();
        let member = &mut self.members[number];
        member.post = Arc::default();
        let process = self.world.new_process(&format!("node{}", member.id));
        member.machine.hosts(&self.world, process);
        member.process = Some(process);
        let (post, id, dir, address) = (member.post.clone(), member.id, member.machine.dir(), member.machine.address());
        let cleared = member.cleared;
        self.world.start_process(process, move || {
            if cleared {
                clear_mark(&dir);
            }
            let result = match shared.plan.kind {
                Kind::Cluster => shared.run_node(id, &dir, address, &post),
                _ if number == 0 => shared.run_leader(id, &dir, address, &post),
                _ => shared.run_follower(id, &dir, &post),
            };
            world::current().trace(|| format!("ends: {result:?}"));
            post.update(|posted| {
                posted.ended = true;
                posted.leads = false;
                posted.streaming = false;
                posted.says = format!("{result:?}");
            });
        });
    }

    /// Starts again what was killed or ended.
    fn look_after_processes(&mut self) {
        let now = self.world.now();
        for number in 0..self.members.len() {
            let member = &mut self.members[number];
            if member.process.is_some() && member.post.read().ended {
                let left = member.post.read().left;
                if let Some(wrong) = left.and_then(|set| self.lacks(number, &set)) {
                    self.world.fail(format!("P5: after a clean stop of the leader {wrong}"));
                }
                let member = &mut self.members[number];
                // As a service manager does.
                let process = member.process.take().expect("it has one");
                self.world.kill(process);
                member.down_until = member.down_until.max(now + Duration::from_millis(300));
            }
            self.act_as_a_person(number);
            if self.members[number].process.is_none() && self.members[number].down_until <= now {
                self.start(number);
            }
        }
    }

    /// Where nobody can lead because syncs have failed: restarts a machine, so that all is read from the disk, and has the mark taken away.
    fn act_as_a_person(&mut self, number: usize) {
        let suspect = |member: &Member| member.machine.is_suspect();
        let stuck = if self.shared.plan.kind == Kind::Cluster {
            let set = self.shared.cluster.in_sync();
            let in_set = |member: &&Member| set.as_ref().is_some_and(|set| set.contains(member.id));
            let mut in_set = self.members.iter().filter(in_set).peekable();
            in_set.peek().is_some()
                && in_set.all(|member| member.machine.is_incomplete() || suspect(member))
                && !self.members.iter().any(|member| member.post.read().leads)
        } else {
            number == 0 && self.members[0].process.is_none()
        };
        let member = &mut self.members[number];
        if member.cleared {
            member.cleared = suspect(member);
        } else if stuck && suspect(member) {
            member.cleared = true;
            let until = member.down_until;
            self.power_cut(number, until);
        }
    }

    fn begin(&mut self, event: &Event) {
        let Event { node, fault, lasts, .. } = event;
        self.members[*node].failed |= matches!(fault, Fault::Errors { .. });
        let (node, until) = (*node, self.world.now() + *lasts);
        self.world.trace(|| format!("EVENT {event}"));
        match fault {
            Fault::Kill => self.kill(node, until),
            Fault::PowerCut => self.power_cut(node, until),
            Fault::PowerCutOfAll => {
                for node in 0..self.members.len() {
                    self.kill(node, until);
                }
                for member in &mut self.members {
                    member.machine.power_cut(&self.world);
                    member.torn = true;
                }
                self.check_members();
            }
            Fault::Stop => {
                self.member(node).post.stop.store(true, Ordering::Relaxed);
                self.members[node].down_until = until;
            }
            fault => {
                self.set(node, fault, true);
                self.over.push((until, node, fault.clone()));
            }
        }
    }

    fn end_faults(&mut self, now: Duration) {
        let (over, left) = std::mem::take(&mut self.over).into_iter().partition(|(until, ..)| *until <= now);
        self.over = left;
        let over: Vec<_> = over;
        for (_, node, fault) in over {
            self.set(node, &fault, false);
        }
    }

    /// Begins or ends what lasts.
    fn set(&mut self, node: usize, fault: &Fault, on: bool) {
        let (world, member) = (&self.world, &self.members[node]);
        if !on {
            world.trace(|| format!("OVER for node {node}: {fault:?}"));
        }
        match fault {
            Fault::Freeze => {
                if let Some(process) = member.process {
                    world.freeze(process, on);
                }
            }
            Fault::Cut { to, from } => member.machine.cut(world, *to && on, *from && on),
            Fault::Slow { rate } => member.machine.slow(world, on.then_some(*rate)),
            Fault::Reset => member.machine.reset(world),
            Fault::DiskStall => member.machine.stall(on),
            Fault::DiskFull => member.machine.fill(on),
            Fault::Errors { call, errno, probability, left } => {
                let (call, errno, probability, left) = (*call, *errno, *probability, *left);
                let faults = if on { vec![CallFault { call, errno, probability, left }] } else { Vec::new() };
                if let Some(process) = member.process {
                    world.set_faults(process, faults);
                }
            }
            Fault::CutFromCoordinator => self.shared.cluster.set_cut(member.id, on),
            Fault::Kill | Fault::Stop | Fault::PowerCut | Fault::PowerCutOfAll => {}
        }
    }

    fn kill(&mut self, node: usize, until: Duration) {
        let member = &mut self.members[node];
        if let Some(process) = member.process.take() {
            self.world.kill(process);
            // Nobody posts what it said last any more.
            member.post = Arc::default();
        }
        member.down_until = until;
    }

    fn power_cut(&mut self, node: usize, until: Duration) {
        self.kill(node, until);
        let member = &mut self.members[node];
        member.machine.power_cut(&self.world);
        member.torn = true;
    }

    // ---- checks ----

    /// What holds at every step, looked at now and then.
    fn check(&mut self) {
        self.check_members();
        for at in 0..self.members.len() {
            let member = &mut self.members[at];
            let posted = member.post.read();
            // A copy in a sync is none; what leads is the host's own.
            let is_hosts = posted.leads || self.shared.plan.kind != Kind::Cluster && at == 0;
            member.torn &= !posted.streaming;
            if is_hosts || member.torn || member.machine.is_incomplete() {
                member.looked.clear();
                continue;
            }
            let look = |see: &mut See<'_>| member.machine.look(see);
            // What is watched is announced as it was found, which may be a mixture of two states until the next look.
            let exact = self.shared.plan.kind != Kind::Watched;
            let wrong = self.shared.host.model.check_states(look, exact, &mut member.looked);
            if let Some(wrong) = wrong {
                let id = member.id;
                self.world.fail(format!("P4: the copy of node {id}: {wrong}"));
            }
        }
    }

    /// P5: whoever may be elected has what was confirmed, also should all machines lose power now.
    fn check_members(&mut self) {
        let Some(set) = self.shared.cluster.in_sync() else { return };
        for member in self.members.iter_mut().filter(|member| set.contains(member.id)) {
            if member.machine.is_incomplete() && !member.failed {
                self.world
                    .fail(format!("P5: node {}, in sync as recorded ({set}), is in the midst of a sync", member.id));
            }
            let look = |see: &mut See<'_>| member.machine.look_at_durable(see);
            if let Some(wrong) = self.shared.host.model.check_confirmed(look, &mut member.kept) {
                self.world.fail(format!("P5: node {}, in sync as recorded ({set}): {wrong}", member.id));
            }
        }
    }

    /// With all faults over: everybody comes to be in sync, and all copies are equal.
    fn rest(&mut self) {
        let began = self.world.now();
        for member in &mut self.members {
            member.down_until = began;
        }
        for look in 0.. {
            self.look_after_processes();
            // Whole trees are compared: not each time.
            if look % 20 == 0 {
                self.check();
            }
            let everybody = self.members.len() - 1;
            let leader = self.members.iter().find(|member| member.post.read().drained == Some(everybody));
            // What is watched may not be announced yet.
            let wrong =
                leader.filter(|_| self.shared.plan.kind == Kind::Watched).and_then(|leader| self.unequal(leader));
            // Who was told to stop, and is at it, is in sync until it has.
            let stops = self.members.iter().any(|member| member.process.is_some() && member.post.is_told_to_stop());
            if leader.is_some() && wrong.is_none() && !stops && self.shared.cluster.is_renewed() {
                break;
            }
            if let (Some(wrong), true) = (wrong, self.world.now() > began + REST_MAX) {
                self.world.fail(format!("P4: {wrong}, {REST_MAX:?} after the last change"));
            }
            if self.world.now() > began + REST_MAX {
                let says = |member: &Member| format!("node {}: {:?}", member.id, member.post.read());
                let all: Vec<String> = self.members.iter().map(says).collect();
                self.world.fail(format!("liveness: not in sync {REST_MAX:?} after all faults: {}", all.join("; ")));
            }
            thread::sleep(Duration::from_millis(50));
        }
        let leader = self.members.iter().find(|member| member.post.read().leads).expect("somebody leads");
        if let Some(wrong) = self.unequal(leader) {
            self.world.fail(format!("P4: at rest {wrong}"));
        }
        let look = |see: &mut See<'_>| leader.machine.look(see);
        if let Some(wrong) = self.shared.host.model.check_confirmed(look, &mut Kept::default()) {
            self.world.fail(format!("P5: at rest, with node {} as leader: {wrong}", leader.id));
        }
        let outcome = self.calm();
        let longest = Duration::from_nanos(self.shared.host.longest_commit.load(Ordering::Relaxed));
        let slowest = self.members.iter().map(|member| member.machine.longest_sync()).max().unwrap_or_default();
        let bound = QUIET_COMMIT_MAX + QUIET_COMMIT_SYNCS * slowest;
        let is_quiet = self.shared.plan.events.is_empty() && self.shared.plan.kind == Kind::Group;
        let in_calm = if let CalmOutcome::Committed(longest) = outcome { longest } else { Duration::ZERO };
        let longest = if is_quiet { longest.max(in_calm) } else { in_calm };
        if longest > bound {
            self.world.fail(format!("a commit took {longest:?} where nothing happened and a sync takes {slowest:?}"));
        }
        let (appends, commits) = self.shared.host.model.counts();
        self.world.trace(|| format!("at rest: {appends} appends, {commits} commits, the longest took {longest:?}"));
    }
}

impl History {
    /// Some commits while nothing happens, each of all there is: then whoever is recorded has all of it, also should all machines lose
    /// power now.
    fn calm(&mut self) -> CalmOutcome {
        let calm = &self.shared.host.calm;
        calm.wanted.store(true, Ordering::Relaxed);
        let began = self.world.now();
        let outcome = loop {
            if let Some(outcome) = self.shared.host.calm.outcome.lock().unwrap_or_else(PoisonError::into_inner).take() {
                break outcome;
            }
            if self.world.now() > began + REST_MAX {
                self.world.fail(format!("liveness: no commit {REST_MAX:?} after all was in sync"));
            }
            self.look_after_processes();
            thread::sleep(Duration::from_millis(20));
        };
        match &outcome {
            CalmOutcome::Committed(_) => {}
            CalmOutcome::LocalSyncFailed => return outcome,
            CalmOutcome::Other(wrong) => {
                self.world.fail(format!("liveness: a commit where nothing happens and all are in sync: {wrong}"));
            }
        }
        self.check_members();
        let set = self.shared.cluster.in_sync();
        let leader = self.members.iter().find(|member| member.post.read().leads).expect("somebody leads");
        let original = leader.machine.tree();
        for member in self.members.iter().filter(|member| set.as_ref().is_some_and(|set| set.contains(member.id))) {
            if let Some(wrong) = compare(&original, &member.machine.durable_tree()) {
                self.world
                    .fail(format!("P5: all is confirmed as durable, and at node {} it is not: {wrong}", member.id));
            }
        }
        outcome
    }

    /// Who of a set lacks something of a leader that has stopped, and what.
    fn lacks(&self, leader: usize, set: &InSyncSet) -> Option<String> {
        let original = self.members[leader].machine.tree();
        // What lost power may have lost what was not durable yet.
        let members = self.members.iter().filter(|member| set.contains(member.id) && !member.torn);
        members.into_iter().find_map(|member| {
            let wrong = compare(&original, &member.machine.tree())?;
            Some(format!("node {}, in sync as recorded ({set}), has less: {wrong}", member.id))
        })
    }

    /// Whose copy is not equal to the leader's, and where.
    fn unequal(&self, leader: &Member) -> Option<String> {
        let original = leader.machine.tree();
        self.members.iter().find_map(|member| {
            let wrong = compare(&original, &member.machine.tree())?;
            Some(format!("the copy of node {} is not equal: {wrong}", member.id))
        })
    }
}

fn clear_mark(dir: &Path) {
    use paceline::sys::fs::{File, remove_file};
    let _ = remove_file(dir.join(SUSPECT));
    let _ = File::open(dir.join(".paceline")).and_then(|folder| folder.sync_all());
}

fn compare(original: &Tree, copy: &Tree) -> Option<String> {
    let names: std::collections::BTreeSet<&String> = original.keys().chain(copy.keys()).collect();
    names.into_iter().find_map(|name| match (original.get(name), copy.get(name)) {
        (Some(a), Some(b)) if a == b => None,
        (Some(a), Some(b)) => Some(format!("{name} {}", differs(a, b))),
        (Some(_), None) => Some(format!("{name} is missing")),
        (None, _) => Some(format!("{name} is there, and not at the leader")),
    })
}

impl Shared {
    fn leader_config(&self, id: NodeId, dir: &Path) -> LeaderConfig {
        let mut config = LeaderConfig::new(dir, secret());
        config.id = Some(id);
        config.readmit_delay_min = Duration::from_millis(200);
        config.readmit_delay_max = Duration::from_secs(2);
        config.accept_missing = true;
        config.on_full = if self.plan.catch_up { OnFull::CatchUp } else { OnFull::Evict };
        if self.plan.small_queue {
            config.queue_bytes = 256 << 10;
        }
        if self.plan.back_pressure {
            config.min_in_sync = 1;
            let longest = Duration::from_secs(3);
            config.back_pressure = match self.plan.appends_wait {
                true => BackPressure::Wait(longest),
                false => BackPressure::WouldBlock(longest),
            };
        }
        config
    }

    fn follower_config(&self, id: NodeId, dir: &Path) -> FollowerConfig {
        let mut config = FollowerConfig::new(format!("10.0.0.1:{PORT}"), dir, secret());
        config.id = Some(id);
        config.retry_delay_min = Duration::from_millis(50);
        config.retry_delay_max = Duration::from_secs(1);
        config
    }

    fn run_leader(
        self: &Arc<Self>,
        id: NodeId,
        dir: &Path,
        address: IpAddr,
        post: &Post,
    ) -> Result<(), Box<dyn std::error::Error>> {
        // As a host makes it: a directory that a power cut takes away would be another one when it is back.
        if paceline::sys::fs::create_dir(dir).is_ok() {
            let above = dir.parent().expect("it is below its disk");
            paceline::sys::fs::File::open(above)?.sync_all()?;
        }
        let handle = self.cluster.handle(id);
        let leadership =
            handle.campaign(id, &format!("tcp://{address}:{PORT}"), &paceline::coordinator::Stop::new())?;
        let Some(leadership) = leadership else { return Ok(()) };
        let recorded = handle.in_sync_set()?;
        let opening = Opening::elected(self.leader_config(id, dir), leadership.clone(), recorded.as_ref())?;
        if self.plan.kind == Kind::Watched {
            opening.will_be_watched();
        }
        let leader = Arc::new(opening.open(&mut |_| true)?);
        let watcher = match self.plan.kind {
            Kind::Watched => Some(Watcher::start(leader.clone(), dir, None)?),
            _ => None,
        };
        leader.listen((address, PORT))?;
        let writers = match watcher {
            Some(_) => self.host.start_unheard(&leader, dir),
            None => self.host.start(&leader, dir),
        };
        post.update(|posted| posted.leads = true);
        let failed = || watcher.as_ref().and_then(Watcher::take_failure);
        while !post.is_told_to_stop() && leadership.is_held() {
            if let Some(failure) = failed() {
                return Err(failure.into());
            }
            self.post_leader(&leader, post, writers.are_idle());
            thread::sleep(Duration::from_millis(5));
        }
        writers.stop();
        drop(watcher);
        leader.shutdown(Duration::from_secs(2));
        if leadership.is_held() && self.plan.stops_are_clean() {
            let set = self.cluster.in_sync();
            post.update(|posted| posted.left = set);
        }
        leadership.resign();
        Ok(())
    }

    /// `idle`: the host writes no more.
    fn post_leader(&self, leader: &Leader, post: &Post, idle: bool) {
        if !idle {
            return;
        }
        let position = leader.position();
        let in_sync = leader.in_sync().followers;
        let followers = leader.followers();
        let drained = followers
            .iter()
            .filter(|follower| follower.acknowledged == Some(position) && in_sync.contains(&follower.id))
            .count();
        post.update(|posted| {
            posted.drained = Some(drained);
            posted.says = format!("at {position}: {followers:?}");
        });
    }

    fn run_follower(&self, id: NodeId, dir: &Path, post: &Post) -> Result<(), Box<dyn std::error::Error>> {
        let follower = Follower::start(self.follower_config(id, dir))?;
        while !post.is_told_to_stop() {
            if let Some(ended) = follower.wait(Some(Duration::from_millis(20))) {
                return Ok(ended?);
            }
            let status = follower.status();
            post.update(|posted| {
                posted.streaming = status.state == paceline::follower::State::Streaming;
                posted.says = format!("{:?}, {:?}", status.state, status.last_disconnect);
            });
        }
        follower.stop();
        Ok(())
    }

    fn run_node(
        self: &Arc<Self>,
        id: NodeId,
        dir: &Path,
        address: IpAddr,
        post: &Arc<Post>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let at = format!("{address}:{PORT}");
        let mut config = NodeConfig::new(dir, secret(), &at, format!("tcp://{at}"));
        config.leader = self.leader_config(id, dir);
        config.leader.min_in_sync = 1;
        config.follower = self.follower_config(id, dir);
        config.follower.leader.clear();
        let active = Active { shared: self.clone(), post: post.clone(), dir: dir.to_owned(), running: None };
        let node = Node::start(config, self.cluster.handle(id), active)?;
        while !post.is_told_to_stop() {
            if let Some(ended) = node.wait(Duration::from_millis(20)) {
                return Ok(ended?);
            }
            let status = node.status();
            if !post.read().leads {
                post.update(|posted| {
                    let state = status.follower.as_ref().map(|follower| follower.state);
                    posted.streaming = state == Some(paceline::follower::State::Streaming);
                    posted.says = format!("{}, {:?}", status.role, status.follower);
                });
            }
        }
        Ok(node.stop()?)
    }
}

/// What is active at the node that leads: the host's threads.
struct Active {
    shared: Arc<Shared>,
    post: Arc<Post>,
    dir: PathBuf,
    running: Option<Writers>,
}

impl NodeHost for Active {
    fn start(&mut self, term: &Term) -> Result<(), HostError> {
        self.running = Some(self.shared.host.start(term.leader(), &self.dir));
        self.post.update(|posted| posted.leads = true);
        Ok(())
    }

    fn check(&mut self, term: &Term) -> Result<(), HostError> {
        self.shared.post_leader(term.leader(), &self.post, self.running.as_ref().is_none_or(Writers::are_idle));
        Ok(())
    }

    fn stop(&mut self, _: &Term) -> Result<(), HostError> {
        self.running.take().into_iter().for_each(Writers::stop);
        self.post.update(|posted| {
            posted.leads = false;
            posted.drained = None;
        });
        Ok(())
    }
}
