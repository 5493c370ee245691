//! One history: two directories, one of which leads, the link between them, and what becomes of all three.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::host::Op;
use crate::machine::{LANES, Machine};
use crate::model::{Model, Tree};
use crate::moved::{Allowance, lost, missed, tree, whole_if_renamed};
use crate::plan::{Fault, Plan, lane_of};
use crate::support::PATIENCE;
use crate::support::relay::Relay;

const OPS_MAX: usize = 16;
/// What no log may say.
const DEFECTS: [&str; 3] = ["panicked", "is a defect", "deadlock: thread"];

/// What histories came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub ops: u64,
    pub faults: u64,
    pub changes_of_leader: u64,
    pub rests: u64,
    pub commits: u64,
    pub demotions: u64,
    pub missed: u64,
    pub moved: u64,
    pub allowed: u64,
    pub to_leader: u64,
    pub allowed_to_leader: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.ops += other.ops;
        self.faults += other.faults;
        self.changes_of_leader += other.changes_of_leader;
        self.rests += other.rests;
        self.commits += other.commits;
        self.demotions += other.demotions;
        self.missed += other.missed;
        self.moved += other.moved;
        self.allowed += other.allowed;
        self.to_leader += other.to_leader;
        self.allowed_to_leader += other.allowed_to_leader;
    }
}

/// Runs one. What went wrong, if anything did, with what was done until then.
pub fn run(seed: u64, place: &Path) -> Result<Tally, String> {
    let mut plan = Plan { random: Rng::with_seed(seed) };
    let demotes = plan.chance(40);
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let relay = Relay::start(nobody);
    relay.refuse();
    let mut history = History {
        dirs: ["one", "other"].map(|name| place.join(name)),
        logs: ["one.log", "other.log"].map(|name| place.join(name)),
        leader: 0,
        demotes,
        plan,
        relay,
        model: Model::default(),
        leading: None,
        following: None,
        connected: Connected::default(),
        is_anothers: false,
        old: None,
        told: String::new(),
        tally: Tally::default(),
    };
    let outcome = history.live().and_then(|()| history.read_logs());
    outcome.map(|()| history.tally).map_err(|error| format!("{}FAILED: {error}", history.told))
}

struct History {
    dirs: [PathBuf; 2],
    logs: [PathBuf; 2],
    /// Which of them leads.
    leader: usize,
    demotes: bool,
    plan: Plan,
    relay: Relay,
    model: Model,
    leading: Option<(Machine, SocketAddr)>,
    following: Option<Machine>,
    connected: Connected,
    /// The copy is what somebody left who led, until it has followed.
    is_anothers: bool,
    /// What was in it, as long as nobody has taken anything away since.
    old: Option<Tree>,
    told: String,
    tally: Tally,
}

/// Since it was last looked how much moved.
#[derive(Default)]
struct Connected {
    allowed: Allowance,
    before: (u64, [u64; 2]),
    position: u64,
    since: Option<Instant>,
    /// What changes since cost more than their announcement, if they are not told by the stream, but found.
    whole: u64,
    is_attached: bool,
    demotions: u64,
}

impl History {
    fn live(&mut self) -> Result<(), String> {
        std::fs::create_dir(&self.dirs[0]).unwrap();
        self.by_hand()?;
        self.start()?;
        self.open()?;
        self.rest()?;
        for _ in 0..self.plan.random.usize(1..6) {
            if self.demotes && self.plan.chance(50) {
                self.demote()?;
            }
            let fault = self.plan.fault();
            self.fault(fault)?;
            self.start()?;
            self.open()?;
            if self.plan.chance(50) {
                self.host(OPS_MAX, false)?;
            }
            if self.plan.chance(75) {
                self.rest()?;
            }
        }
        self.rest()?;
        self.end()
    }

    fn say(&mut self, what: &str) {
        let _ = writeln!(self.told, "{what}");
    }

    fn leader_dir(&self) -> &Path {
        &self.dirs[self.leader]
    }

    fn copy_dir(&self) -> &Path {
        &self.dirs[1 - self.leader]
    }

    fn is_incomplete(&self) -> bool {
        self.copy_dir().join(".paceline/incomplete").exists()
    }

    // ---- what hosts do ----

    /// Changes files of a leader that is down.
    fn by_hand(&mut self) -> Result<(), String> {
        for (_, op) in self.plan.ops(&self.model.now, OPS_MAX, false) {
            self.say(&format!("by hand: {}", op.line()));
            self.old = None;
            op.on_disk(&self.dirs[self.leader]).map_err(|error| format!("{}: {error}", op.line()))?;
            self.model.has_done(&op);
        }
        Ok(())
    }

    /// Lets the host do something, and waits until it is done.
    fn host(&mut self, most: usize, large: bool) -> Result<(), String> {
        let mut ops = self.begin(most, large);
        while ops.iter().any(|lane| !lane.is_empty()) {
            let line = self.leading.as_mut().expect("somebody leads").0.answer()?;
            self.done(&line, &mut ops)?;
        }
        Ok(())
    }

    /// Returns what is being done, by lane; the last is first.
    fn begin(&mut self, most: usize, large: bool) -> [Vec<Op>; LANES] {
        let mut lanes: [Vec<Op>; LANES] = Default::default();
        for (lane, op) in self.plan.ops(&self.model.now, most, large) {
            self.say(&format!("host: {lane} {}", op.line()));
            self.leading.as_mut().expect("somebody leads").0.tell(&format!("{lane} {}", op.line()));
            self.connected.allowed.changes += 1;
            self.old = None;
            lanes[lane].insert(0, op);
        }
        lanes
    }

    fn done(&mut self, line: &str, ops: &mut [Vec<Op>; LANES]) -> Result<(), String> {
        let (lane, outcome) = line.split_once(' ').ok_or(line)?;
        let lane: usize = lane.parse().map_err(|_| line)?;
        let op = ops[lane].pop().ok_or(line)?;
        self.connected.whole += match &op {
            Op::Truncate { len, .. } => *len as u64,
            Op::Rename { from, .. } => whole_if_renamed(&self.model.now[from]),
            _ => 0,
        };
        self.model.has_done(&op);
        self.tally.ops += 1;
        match outcome {
            "done" => {}
            "committed" => {
                self.tally.commits += 1;
                self.say(&format!("lane {lane} committed"));
                self.model.is_committed(|name| lane_of(name) == lane);
            }
            _ => return Err(line.to_owned()),
        }
        Ok(())
    }

    // ---- what becomes of it ----

    fn demote(&mut self) -> Result<(), String> {
        self.say("held up");
        self.connected.is_attached = false;
        self.relay.hold();
        self.host(3 * OPS_MAX, true)?;
        self.relay.release();
        if self.plan.chance(50) { self.rest() } else { self.host(OPS_MAX, false) }
    }

    /// In the midst of what the host does. After it nobody is connected, and one or both are down.
    fn fault(&mut self, fault: Fault) -> Result<(), String> {
        self.tally.faults += 1;
        let mut ops = self.begin(OPS_MAX, false);
        let moment = self.plan.moment();
        self.say(&format!("{fault:?} after {moment:?}"));
        std::thread::sleep(moment);
        match fault {
            Fault::KillLeader => self.kill_leader(&mut ops)?,
            Fault::KillBoth => {
                drop(self.following.take().expect("somebody follows").kill());
                self.kill_leader(&mut ops)?;
            }
            Fault::KillFollower => drop(self.following.take().expect("somebody follows").kill()),
            Fault::StopFollower => self.following.take().expect("somebody follows").stop()?,
            Fault::Cut | Fault::Change => self.relay.refuse(),
            Fault::StopLeader | Fault::Swap => {}
        }
        while ops.iter().any(|lane| !lane.is_empty()) {
            let line = self.leading.as_mut().expect("it was not killed").0.answer()?;
            self.done(&line, &mut ops)?;
        }
        if matches!(fault, Fault::StopLeader | Fault::Swap) {
            self.leading.take().expect("somebody leads").0.stop()?;
        }
        self.relay.refuse();
        self.wait_apart()?;
        self.look_how_much_moved()?;
        self.check_copy()?;
        let most = if self.plan.chance(70) { OPS_MAX } else { 0 };
        if self.leading.is_none() {
            let swaps = matches!(fault, Fault::Swap);
            return if swaps { self.swap() } else { self.by_hand() };
        }
        self.host(most, false)?;
        if fault == Fault::Change {
            let mut ops = self.begin(OPS_MAX, false);
            std::thread::sleep(self.plan.moment());
            self.kill_leader(&mut ops)?;
            self.swap()?;
        }
        Ok(())
    }

    fn kill_leader(&mut self, ops: &mut [Vec<Op>; LANES]) -> Result<(), String> {
        for line in self.leading.take().expect("somebody leads").0.kill() {
            self.done(&line, ops)?;
        }
        let under_way: Vec<_> = ops.iter_mut().filter_map(Vec::pop).collect();
        for op in &under_way {
            self.say(&format!("killed before or after, or in the midst of: {}", op.line()));
        }
        // What came after it was not begun.
        *ops = Default::default();
        self.model.killed_at(&under_way, tree(&self.dirs[self.leader]))
    }

    /// Who followed leads, if it may.
    fn swap(&mut self) -> Result<(), String> {
        if let Some(follower) = self.following.take() {
            if self.plan.chance(50) { drop(follower.kill()) } else { follower.stop()? }
        }
        self.check_copy()?;
        if self.is_incomplete() {
            self.say("who followed has no complete copy, and does not lead");
            return Ok(());
        }
        self.say("who followed leads");
        self.tally.changes_of_leader += 1;
        (self.is_anothers, self.old) = (true, Some(tree(self.leader_dir())));
        self.leader = 1 - self.leader;
        self.model = Model::of(tree(self.leader_dir()));
        Ok(())
    }

    fn wait_apart(&mut self) -> Result<(), String> {
        let Some(follower) = &mut self.following else { return Ok(()) };
        let answer = follower.ask("apart")?;
        if answer == "apart" { Ok(()) } else { Err(answer) }
    }

    /// Starts whoever is down.
    fn start(&mut self) -> Result<(), String> {
        if self.leading.is_none() {
            let (dir, log) = (&self.dirs[self.leader], &self.logs[self.leader]);
            self.leading = Some(Machine::lead(dir, self.demotes, log)?);
        }
        if self.following.is_none() {
            let copy = 1 - self.leader;
            self.following = Some(Machine::follow(&self.dirs[copy], self.relay.address, &self.logs[copy])?);
        }
        Ok(())
    }

    /// Lets them come together, once it is known what is missing.
    fn open(&mut self) -> Result<(), String> {
        let (ours, copy) = (tree(self.leader_dir()), tree(self.copy_dir()));
        if ours != self.model.now {
            let differ = ours.keys().chain(self.model.now.keys());
            let differ: Vec<_> = differ.filter(|name| ours.get(*name) != self.model.now.get(*name)).collect();
            return Err(format!("the leader's directory is not what its host made it: {differ:?}"));
        }
        let (bytes, files) = missed(&ours, &copy);
        self.say(&format!("connected: {bytes} bytes of {files} files are missing"));
        self.tally.missed += bytes;
        self.connected = Connected { before: self.relay.counts(), since: Some(Instant::now()), ..Connected::default() };
        self.connected.position = self.position()?;
        self.connected.allowed.content = bytes;
        self.connected.allowed.changes = files;
        self.relay.lead_to(self.leading.as_ref().expect("somebody leads").1);
        Ok(())
    }

    fn position(&mut self) -> Result<u64, String> {
        let line = self.leading.as_mut().expect("somebody leads").0.ask("position")?;
        line.parse().map_err(|_| line)
    }

    /// Waits until it is in sync, and compares.
    fn rest(&mut self) -> Result<(), String> {
        let line = self.leading.as_mut().expect("somebody leads").0.ask("rest")?;
        let demotions = line.strip_prefix("rest ").and_then(|rest| rest.split_once(' ')).ok_or(line.clone())?.1;
        let demotions = demotions.parse::<u64>().unwrap();
        self.tally.demotions += demotions - self.connected.demotions;
        self.tally.rests += 1;
        self.is_equal()?;
        let deadline = Instant::now() + PATIENCE;
        while self.is_incomplete() {
            if Instant::now() > deadline {
                return Err("the copy is in sync, and marked as incomplete".to_owned());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.look_how_much_moved()?;
        self.say("at rest");
        if let Some(old) = self.old.take()
            && let Some(name) = lost(&old, self.copy_dir())
        {
            return Err(format!("{name} of who led before is lost: it is not kept"));
        }
        self.model.is_equal();
        self.is_anothers = false;
        self.connected = Connected {
            before: self.relay.counts(),
            since: Some(Instant::now()),
            position: self.position()?,
            is_attached: true,
            demotions,
            ..Connected::default()
        };
        Ok(())
    }

    fn is_equal(&self) -> Result<(), String> {
        let (ours, copy) = (tree(self.leader_dir()), tree(self.copy_dir()));
        for (tree, whose) in [(&ours, "the leader's"), (&copy, "the copy's")] {
            let names = tree.keys().chain(self.model.now.keys());
            let len = |bytes: Option<&crate::model::Bytes>| bytes.map(|bytes| bytes.len());
            let differ = names.filter(|name| tree.get(*name) != self.model.now.get(*name));
            let differ: Vec<_> =
                differ.map(|name| (name, len(tree.get(name)), len(self.model.now.get(name)))).collect();
            if !differ.is_empty() {
                return Err(format!("at rest {whose} files are not what the host made them: {differ:?}"));
            }
        }
        Ok(())
    }

    fn look_how_much_moved(&mut self) -> Result<(), String> {
        let announced = match self.leading {
            Some(_) => self.position()?.checked_sub(self.connected.position),
            None => None,
        };
        let Connected { mut allowed, before, since, whole, is_attached, .. } = self.connected;
        let (connections, [to_follower, to_leader]) = self.relay.counts();
        allowed.connections = connections - before.0;
        allowed.seconds = since.map_or(0, |since| since.elapsed().as_secs() + 1);
        allowed.files = self.model.now.len() as u64;
        allowed.there = self.model.now.values().map(|bytes| bytes.len() as u64).sum();
        let Some(announced) = announced else { return Ok(()) };
        allowed.content += announced + if is_attached { 0 } else { whole };
        let (moved, at_most) = (to_follower - before.1[0], allowed.to_follower());
        let (back, back_at_most) = (to_leader - before.1[1], allowed.to_leader());
        self.say(&format!("{moved} bytes moved, at most {at_most} may; {back} to the leader, at most {back_at_most}"));
        self.tally.moved += moved;
        self.tally.allowed += at_most;
        self.tally.to_leader += back;
        self.tally.allowed_to_leader += back_at_most;
        if moved > at_most || back > back_at_most {
            return Err(format!("too much moved: {allowed:?}"));
        }
        Ok(())
    }

    fn check_copy(&self) -> Result<(), String> {
        if self.is_anothers || self.is_incomplete() { Ok(()) } else { self.model.check_copy(&tree(self.copy_dir())) }
    }

    /// Both end by themselves, and leave their files as they are.
    fn end(&mut self) -> Result<(), String> {
        let (leader, follower) = (self.leading.take(), self.following.take());
        let (Some((leader, _)), Some(follower)) = (leader, follower) else { return Ok(()) };
        leader.stop()?;
        follower.stop()?;
        self.is_equal()
    }

    fn read_logs(&self) -> Result<(), String> {
        for log in &self.logs {
            let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
            if let Some(line) = text.lines().find(|line| DEFECTS.iter().any(|defect| line.contains(defect))) {
                return Err(line.to_owned());
            }
        }
        Ok(())
    }
}
