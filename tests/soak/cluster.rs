//! The machines, what runs on them, and what is done to them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use paceline::NodeId;
use paceline::coordinator::{Coordinator, EtcdCoordinator};
use rustix::process::Signal;

use crate::host::{self, Settings};
use crate::plan::{Class, Fault, Kind};
use crate::program;
use crate::support::etcd::Etcd;
use crate::support::netns::{Cuts, End, HUB, Machine};
use crate::support::processes::{Process, Stage, run};
use crate::support::volume::Volume;

pub const NODES: usize = 3;
const PORT: u16 = 5679;
/// Each node's file system, in memory.
const DISK_MIB: u32 = 64;
/// What is left of a node that was killed holds its directory for so long at most: the guard has its program end.
const IN_USE_MAX: Duration = Duration::from_secs(20);
/// After so long, also where each core has much to do, a process listens for signals.
const UP_MAX: Duration = Duration::from_secs(20);
/// A clean stop, with a drain of followers that may be cut off, and an etcd that does not answer.
const STOP_MAX: Duration = Duration::from_secs(60);

/// A machine.
pub struct Node<'a> {
    pub number: u8,
    stage: &'a Stage,
    machine: Machine,
    volume: Volume<'a>,
    /// The host that embeds a node, and `paceline node`.
    members: [Member; 2],
}

/// A process that is a node of one of the two clusters.
struct Member {
    name: &'static str,
    id: NodeId,
    command: Vec<String>,
    /// The name of its directory.
    folder: &'static str,
    process: Option<Process>,
    /// When it was asked to stop.
    stopping: Option<Instant>,
    /// When it was first started, after it last ran; how much it had logged when it was last started.
    started: Instant,
    logged: usize,
}

/// What the processes of a machine use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub resident_kib: u64,
    pub descriptors: usize,
}

/// Of the host's directory, and of the watched one.
pub const FOLDERS: [&str; 2] = ["data", "watched"];
const NAMES: [&str; 2] = ["host", "node"];
/// What the keys of the second cluster begin with.
const WATCHED_PREFIX: &str = "watched";

/// Whose logs there are in a machine's stage, and where.
pub fn logs(stage: &Stage) -> [(&'static str, PathBuf); 2] {
    NAMES.map(|name| (name, stage.path(&format!("{name}.log"))))
}

impl<'a> Node<'a> {
    fn new(number: u8, top: &Stage, stage: &'a Stage, etcd: &str, seed: u64) -> Self {
        let (volume, machine) = (Volume::in_memory(stage, DISK_MIB), Machine::new(number));
        let exe = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
        let pause = top.path("pause");
        let ids = [number, 10 + number].map(|id| NodeId::new(id.into()).unwrap());
        let dirs = FOLDERS.map(|folder| volume.mount().join(folder));
        let host = Settings {
            id: ids[0],
            listen: format!("{}:{PORT}", machine.address()),
            etcd: etcd.to_owned(),
            dir: dirs[0].clone(),
            told: stage.path("told"),
            pause: pause.clone(),
            seed,
        };
        let (told, lock) = (stage.path("told-by-program"), top.path("lock"));
        let program = program::Settings { dir: dirs[1].clone(), told, pause, lock };
        let run = format!("exec {exe} {}", program.args().join(" "));
        let listen = format!("{}:{}", machine.address(), PORT + 1);
        let dir = dirs[1].to_str().unwrap();
        let (advertise, ttl) = (format!("tcp://{listen}"), format!("{}s", host::LEASE_TTL.as_secs()));
        let node =
            ["--data-dir", dir, "--listen", &listen, "--advertise", &advertise, "--etcd", etcd, "--lease-ttl", &ttl];
        let (id, prefix) = (ids[1].to_string(), ["--etcd-prefix", WATCHED_PREFIX]);
        let node = [&node[..], &prefix, &["--id", &id, "--queue-bytes", "1MiB", "--keep-bytes", "4MiB", "--run", &run]]
            .concat();
        let node = [env!("CARGO_BIN_EXE_paceline"), "node"].into_iter().chain(node).map(str::to_owned);
        let commands = [[exe].into_iter().chain(host.args()).collect::<Vec<_>>(), node.collect()];
        let mut commands = commands.into_iter();
        let members = std::array::from_fn(|index| Member {
            name: NAMES[index],
            id: ids[index],
            command: [machine.enter(), commands.next().unwrap()].concat(),
            folder: FOLDERS[index],
            process: None,
            stopping: None,
            started: Instant::now(),
            logged: 0,
        });
        Self { number, stage, machine, volume, members }
    }

    /// One of its directories, as it is reached from outside.
    pub fn dir(&self, folder: &str) -> PathBuf {
        self.volume.path(folder)
    }

    fn start(&mut self) {
        for member in &mut self.members {
            member.started = Instant::now();
            member.start(self.stage, &self.volume);
        }
    }

    fn kill(&mut self) {
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                process.kill();
            }
        }
    }

    fn signal(&self, signal: Signal) {
        self.members.iter().filter_map(|member| member.process.as_ref()).for_each(|process| process.signal(signal));
    }

    fn ask_to_stop(&mut self) {
        self.members.iter_mut().for_each(|member| member.stopping = Some(Instant::now()));
        self.signal(Signal::TERM);
    }

    /// Whether its processes have ended, having been asked to. An error: one ended by itself, or badly.
    fn has_ended(&mut self, stops: &mut Vec<(u8, &'static str, Duration)>) -> Result<bool, String> {
        let mut all = true;
        for member in &mut self.members {
            let Some(process) = &mut member.process else { continue };
            if !process.has_ended() {
                all = false;
                continue;
            }
            let status = process.wait();
            let log = process.log();
            let in_use = log[member.logged..].contains("is in use by another process");
            if member.stopping.is_none() && in_use && member.started.elapsed() < IN_USE_MAX {
                member.start(self.stage, &self.volume);
                all = false;
            } else if !(member.stopping.is_some() && (status.success() || member.was_not_up(status))) {
                return Err(format!("{} of node {} ended with {status}", member.name, self.number));
            } else {
                member.process = None;
                stops.extend(member.stopping.map(|asked| (self.number, member.name, asked.elapsed())));
            }
        }
        Ok(all)
    }

    /// Of the host.
    fn usage(&self) -> Option<Usage> {
        let proc = PathBuf::from(format!("/proc/{}", self.members[0].process.as_ref()?.id()));
        let status = fs::read_to_string(proc.join("status")).ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let resident_kib = resident.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(Usage { resident_kib, descriptors: fs::read_dir(proc.join("fd")).ok()?.count() })
    }

    fn end(&self) -> End {
        End::from(&self.machine)
    }
}

impl Member {
    /// It was asked to stop before it had come to listen for that.
    fn was_not_up(&self, status: ExitStatus) -> bool {
        status.signal() == Some(Signal::TERM.as_raw()) && self.started.elapsed() < UP_MAX
    }

    fn start(&mut self, stage: &Stage, volume: &Volume<'_>) {
        self.logged = fs::read(stage.path(&format!("{}.log", self.name))).map_or(0, |log| log.len());
        let command: Vec<_> = self.command.iter().map(String::as_str).collect();
        self.process = Some(volume.start(self.name, &command));
        self.stopping = None;
    }
}

/// A fault that lasts.
struct Active {
    fault: Fault,
    /// Which node, or which member of etcd.
    of: usize,
    until: Instant,
    began: Instant,
}

pub struct Cluster<'a> {
    pub nodes: Vec<Node<'a>>,
    etcd: Etcd,
    /// Of the two clusters.
    coordinators: [EtcdCoordinator; 2],
    members: usize,
    cuts: Cuts,
    active: Vec<Active>,
    /// How long the clean stops took.
    pub stops: Vec<(u8, &'static str, Duration)>,
    pause: PathBuf,
}

impl<'a> Cluster<'a> {
    /// `stages`: one for each node.
    pub fn start(top: &Stage, stages: &'a [Stage], members: usize, seed: u64) -> Self {
        let etcd = Etcd::start_members_at(top.inner("etcd"), HUB, members);
        let urls: Vec<_> = (0..members).map(|member| etcd.url(member)).collect();
        let pause = top.path("pause");
        let nodes = (1..).zip(stages).map(|(number, stage)| Node::new(number, top, stage, &urls.join(","), seed));
        let mut nodes: Vec<_> = nodes.collect();
        nodes.iter_mut().for_each(Node::start);
        let coordinators = ["lavinmq", WATCHED_PREFIX].map(|prefix| {
            let mut config = etcd.config();
            config.prefix = prefix.to_owned();
            // It is asked between other things.
            (config.answer_timeout, config.call_timeout) = (Duration::from_millis(300), Duration::from_secs(1));
            EtcdCoordinator::new(&config).unwrap()
        });
        Self { nodes, etcd, coordinators, members, cuts: Cuts::default(), active: Vec::new(), stops: Vec::new(), pause }
    }

    /// From now on nobody writes, or all that may.
    pub fn pause(&self, pause: Option<&str>) {
        match pause {
            // In one step: half a number is another one.
            Some(pause) => {
                let new = self.pause.with_extension("new");
                fs::write(&new, pause).unwrap();
                fs::rename(new, &self.pause).unwrap();
            }
            None => fs::remove_file(&self.pause).unwrap(),
        }
    }

    /// Whether all nodes are in the recorded in-sync sets. Etcd may be away.
    pub fn all_in_sync(&self) -> bool {
        let is_all = |coordinator: &EtcdCoordinator| {
            coordinator.in_sync_set().is_ok_and(|set| set.is_some_and(|set| set.len() == NODES))
        };
        self.coordinators.iter().all(is_all)
    }

    pub fn in_sync(&self) -> String {
        let sets = self.coordinators.iter().map(|coordinator| match coordinator.in_sync_set() {
            Ok(set) => set.map_or("none".into(), |set| set.to_string()),
            Err(error) => error.to_string(),
        });
        sets.collect::<Vec<_>>().join(" and ")
    }

    pub fn usage(&self) -> Vec<Option<Usage>> {
        self.nodes.iter().map(Node::usage).collect()
    }

    /// Keeps what there is, for later.
    pub fn take_copies(&self) {
        for node in &self.nodes {
            let copies = node.stage.path("copies");
            let _ = fs::remove_dir_all(&copies);
            fs::create_dir(&copies).unwrap();
            run(Command::new("cp").arg("-a").args(FOLDERS.map(|folder| node.dir(folder))).arg(copies));
        }
    }

    // ---- faults ----

    /// `None`: it cannot come now, because another one like it lasts.
    pub fn begin(&mut self, fault: Fault, victim: usize) -> Option<String> {
        let class = fault.kind.class();
        let of = if class == Class::Etcd { victim % self.members } else { victim };
        let clashes = self.active.iter().any(|active| match (class, active.fault.kind.class()) {
            (Class::Etcd, Class::Etcd) | (Class::AllProcesses, Class::Process | Class::AllProcesses) => true,
            (Class::Process, Class::AllProcesses) => true,
            (one, other) => one == other && active.of == of,
        });
        if clashes {
            return None;
        }
        let node = &mut self.nodes[if class == Class::Etcd { 0 } else { of }];
        match fault.kind {
            Kind::Kill => node.kill(),
            Kind::KillAll => self.nodes.iter_mut().for_each(Node::kill),
            Kind::Freeze => node.signal(Signal::STOP),
            Kind::Restart | Kind::PutBack | Kind::Wipe => {
                node.ask_to_stop();
            }
            Kind::Unplug => node.machine.connect(false),
            Kind::SlowLink => node.machine.set_rate(Some(if victim == 0 { 200 } else { 2000 })),
            Kind::FillDisk => node.volume.fill(&node.volume.path("filler")),
            Kind::KillEtcd => self.etcd.kill(of),
            Kind::FreezeEtcd => self.etcd.signal(of, Signal::STOP),
            Kind::KillAllEtcd => (0..self.members).for_each(|member| self.etcd.kill(member)),
            Kind::Isolate | Kind::Mute | Kind::Deafen | Kind::CutFromEtcd | Kind::CutFromOne | Kind::Split => {}
        }
        let began = Instant::now();
        self.active.push(Active { fault, of, until: began + fault.lasts, began });
        self.cut();
        Some(match class {
            Class::AllProcesses => String::new(),
            Class::Etcd if fault.kind == Kind::KillAllEtcd => String::new(),
            Class::Etcd => format!(" member {}", of + 1),
            _ => format!(" of node {}", of + 1),
        })
    }

    pub fn is_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// Ends what has lasted long enough, or all of it; looks whether all runs that should.
    pub fn tick(&mut self, end_all: bool) -> Result<(), String> {
        let now = Instant::now();
        for node in &mut self.nodes {
            node.has_ended(&mut self.stops)?;
        }
        let (ended, mut active): (Vec<_>, _) =
            std::mem::take(&mut self.active).into_iter().partition(|active| end_all || active.until <= now);
        for ended in ended {
            if !self.end(&ended)? {
                active.push(ended);
            }
        }
        self.active = active;
        self.cut();
        Ok(())
    }

    /// `false`: not yet.
    fn end(&mut self, active: &Active) -> Result<bool, String> {
        let (of, kind) = (active.of, active.fault.kind);
        let node = &mut self.nodes[if kind.class() == Class::Etcd { 0 } else { of }];
        match kind {
            Kind::Kill => node.start(),
            Kind::KillAll => {
                // Any of them first.
                (0..NODES).for_each(|index| self.nodes[(of + index) % NODES].start());
            }
            Kind::Freeze => node.signal(Signal::CONT),
            Kind::Restart | Kind::PutBack | Kind::Wipe => {
                if !node.has_ended(&mut self.stops)? {
                    let late = active.began.elapsed() > STOP_MAX;
                    return if late { Err(format!("node {} does not stop", node.number)) } else { Ok(false) };
                }
                if kind == Kind::PutBack && node.volume.path("filler").exists() {
                    // A copy does not fit a disk that is full.
                    return Ok(false);
                }
                if kind != Kind::Restart {
                    self.replace(of, kind == Kind::Wipe);
                }
                self.nodes[of].start();
            }
            Kind::Unplug => node.machine.connect(true),
            Kind::SlowLink => node.machine.set_rate(None),
            Kind::FillDisk => fs::remove_file(node.volume.path("filler")).unwrap(),
            Kind::KillEtcd => self.etcd.restart_closed(of),
            Kind::FreezeEtcd => self.etcd.signal(of, Signal::CONT),
            Kind::KillAllEtcd => (0..self.members).for_each(|member| self.etcd.restart_closed(member)),
            Kind::Isolate | Kind::Mute | Kind::Deafen | Kind::CutFromEtcd | Kind::CutFromOne | Kind::Split => {}
        }
        Ok(true)
    }

    /// Puts its directories back to what they were at the last rest, or to nothing: those whose cluster does not count on it.
    fn replace(&mut self, of: usize, wipe: bool) {
        let node = &self.nodes[of];
        for (member, coordinator) in node.members.iter().zip(&self.coordinators) {
            let set = coordinator.in_sync_set().ok().flatten();
            let is_out = set.is_some_and(|set| !set.contains(member.id));
            let copy = node.stage.path("copies").join(member.folder);
            if !is_out || !copy.exists() {
                continue;
            }
            let dir = node.dir(member.folder);
            fs::remove_dir_all(&dir).unwrap();
            if !wipe {
                run(Command::new("cp").arg("-a").arg(copy).arg(dir));
            }
        }
    }

    /// Has the network be as the faults that last want it.
    fn cut(&mut self) {
        let mut cuts = BTreeSet::new();
        for active in &self.active {
            let own = self.nodes[active.of].end();
            let others = (0..NODES).filter(|index| *index != active.of).map(|index| self.nodes[index].end());
            let all: Vec<_> = others.chain([End::Hub]).collect();
            let (from, to): (&[End], &[End]) = match active.fault.kind {
                Kind::Isolate => (&all, &all),
                Kind::Mute => (&[], &all),
                Kind::Deafen => (&all, &[]),
                Kind::CutFromEtcd => (&[End::Hub], &[End::Hub]),
                Kind::CutFromOne => (&all[..1], &all[..1]),
                Kind::Split => (&all[1..], &all[1..]),
                _ => continue,
            };
            cuts.extend(from.iter().map(|end| (*end, own)));
            cuts.extend(to.iter().map(|end| (own, *end)));
            if active.fault.kind == Kind::Split {
                // The other one on this side.
                cuts.extend(all[1..].iter().flat_map(|end| [(*end, all[0]), (all[0], *end)]));
            }
        }
        self.cuts.set(cuts);
    }

    // ---- the end ----

    /// Stops this node, and waits until it has stopped.
    pub fn stop(&mut self, index: usize) -> Result<(), String> {
        let node = &mut self.nodes[index];
        node.ask_to_stop();
        let deadline = Instant::now() + STOP_MAX;
        while !node.has_ended(&mut self.stops)? {
            if Instant::now() >= deadline {
                return Err(format!("node {} does not stop", node.number));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends all of it, and keeps the directories as they are then, beside the logs.
    pub fn keep(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill);
        for node in &self.nodes {
            for folder in FOLDERS.into_iter().filter(|folder| node.dir(folder).exists()) {
                run(Command::new("cp").arg("-a").arg(node.dir(folder)).arg(node.stage.path("")));
            }
        }
    }
}
