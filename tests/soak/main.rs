//! A cluster under faults, for as long as you like.
//!
//! ```text
//! cargo test --release --test soak -- --for 1h            # or 10h, 2m
//! cargo test --release --test soak -- --for 10m --seed 7   # those faults again
//! ```
//!
//! Three machines, which are network namespaces, each with a file system of its own in memory, and a real etcd of one or three members.
//! On each machine a host (`host.rs`: this program, started anew) embeds a node, and writes and commits while that leads. By seed
//! (`plan.rs`) nodes are killed, frozen, restarted, put back to an older copy of their directory; links are cut, one way or both, slowed
//! down, pulled; disks are filled; etcd is killed and frozen; one after the other, and some at the same time. After each round of
//! that all faults end, and everything has to come to rest.
//!
//! Checked all the time: what was acknowledged as durable on all is acknowledged once (who succeeds a leader writes no record of
//! that number again), no leader acknowledges what it began after a later one has acknowledged something, no process ends by itself.
//! After each fail-over: all that was acknowledged is in the new leader's directory. At rest: it is in every copy, which equal each
//! other byte for byte. The exit code is 1 if anything was not so; logs and directories are kept then.
//!
//! It needs root, `ip`, `tc`, `nft`, `unshare` and etcd (`.ci/test` installs them), and touches no network but its own. Without `--for` or `--seed` it does
//! nothing: `cargo test` has to be quick.
#![allow(missing_docs, unreachable_pub)]

mod cluster;
mod host;
mod ledger;
mod plan;
mod program;
mod records;
mod report;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;

use self::cluster::{Cluster, FOLDERS, NODES, Usage};
use self::ledger::{Last, Ledger, Reader};
use self::plan::{Fault, Kind, Victim};
use self::program::Programs;
use self::report::{Progress, Table, millis, seconds};
use self::support::processes::Stage;

/// How long all may take to be in sync when no fault lasts any more, and to be equal when nobody writes. Followers that were let go
/// again and again wait for up to [`LeaderConfig::readmit_delay_max`](paceline::LeaderConfig::readmit_delay_max), here 3 s.
const CONVERGE_MAX: Duration = Duration::from_secs(60);
/// An append that takes longer has waited for something: it must not.
const APPEND_MAX: Duration = Duration::from_secs(2);
/// What no host may need at rest: what is held for followers is bounded, and nobody is left but the three.
const RESIDENT_MAX_KIB: u64 = 256 << 10;
const DESCRIPTORS_MAX: usize = 200;
const DEFECTS: [&str; 3] = ["panicked", "is a defect", "deadlock: thread"];
const TICK: Duration = Duration::from_millis(20);

struct Options {
    lasts: Duration,
    seed: u64,
}

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == host::HOST) {
        return ExitCode::from(u8::try_from(host::run(&args)).unwrap());
    }
    if args.first().is_some_and(|first| first == program::PROGRAM) {
        program::run(&args);
    }
    match options(&args) {
        Ok(Some(options)) => {
            if !rustix::process::geteuid().is_root() {
                eprintln!("soak: it makes network and mount namespaces: run it as root");
                return ExitCode::from(2);
            }
            soak(&options)
        }
        Ok(None) => {
            println!("soak: not run; cargo test --release --test soak -- --for 1h [--seed N]");
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            eprintln!("soak: {wrong}; write --for 1h (or 90s, 10m), --seed NUMBER, or both");
            ExitCode::from(2)
        }
    }
}

/// `None`: it was not asked to run. Options of a test runner are no concern of ours then.
fn options(args: &[String]) -> Result<Option<Options>, String> {
    if !args.iter().any(|arg| arg == "--for" || arg == "--seed") {
        return Ok(None);
    }
    let mut options = Options { lasts: Duration::from_secs(3600), seed: fastrand::u64(..1_000_000) };
    for pair in args.chunks(2) {
        match pair {
            [name, value] if name == "--for" => options.lasts = duration(value).ok_or(format!("--for is {value}"))?,
            [name, value] if name == "--seed" => {
                options.seed = value.parse().map_err(|_| format!("--seed is {value}"))?
            }
            _ => return Err(format!("what is {}?", pair.join(" "))),
        }
    }
    Ok(Some(options))
}

fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit).map(Duration::from_secs)
}

fn soak(options: &Options) -> ExitCode {
    support::netns::become_own_network();
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        // A second one ends it on the spot: all of it goes with it but the directory.
        signal_hook::flag::register_conditional_shutdown(signal, 130, asked.clone()).unwrap();
        signal_hook::flag::register(signal, asked.clone()).unwrap();
    }
    let mut random = Rng::with_seed(options.seed);
    let members = if random.bool() { 3 } else { 1 };
    let mut top = Stage::new();
    let stages = [1, 2, 3].map(|node| top.inner(&format!("node{node}")));
    let progress = Progress::new();
    progress.say(&format!(
        "seed {}, for {:?}, {members} of etcd, in {}",
        options.seed,
        options.lasts,
        top.path("").display()
    ));
    let mut soak = Soak {
        cluster: Cluster::start(&top, &stages, members, options.seed),
        readers: stages.each_ref().map(|stage| Reader::open(&stage.path("told"))),
        program_readers: stages.each_ref().map(|stage| Reader::open(&stage.path("told-by-program"))),
        logs: stages.iter().flat_map(cluster::logs).map(|(name, path)| (name, Reader::open(&path))).collect(),
        ledger: Ledger::default(),
        programs: Programs::default(),
        progress,
        asked,
        faults: BTreeMap::new(),
        frozen: Vec::new(),
        lost_leader: None,
        fail_overs: Vec::new(),
        stops: Vec::new(),
        converged: Vec::new(),
        checked: None,
        compared: 0,
        rests: 0,
        usage: Default::default(),
    };
    let outcome = soak.run(options.lasts, &mut random);
    soak.say_table(options);
    let Err(failure) = outcome else { return ExitCode::SUCCESS };
    println!("FAILED: {failure}");
    soak.cluster.keep();
    drop(soak);
    println!("seed {}, logs and directories are in {}", options.seed, top.keep().display());
    ExitCode::FAILURE
}

/// A leader that was taken away.
#[derive(Clone, Copy)]
struct LostLeader {
    node: usize,
    at: u64,
}

struct Soak<'a> {
    cluster: Cluster<'a>,
    /// Of what hosts say, what programs do, and of all logs.
    readers: [Reader; NODES],
    program_readers: [Reader; NODES],
    logs: Vec<(&'static str, Reader)>,
    ledger: Ledger,
    programs: Programs,
    progress: Progress,
    /// Ctrl-C.
    asked: Arc<AtomicBool>,
    faults: BTreeMap<Kind, u64>,
    /// When which node was frozen: what it measured then was not its own.
    frozen: Vec<(usize, u64, u64)>,
    lost_leader: Option<LostLeader>,
    fail_overs: Vec<Duration>,
    stops: Vec<Duration>,
    /// How long it took until all was equal after faults.
    converged: Vec<Duration>,
    /// The leader whose directory was last compared.
    checked: Option<Last>,
    compared: u64,
    rests: u64,
    /// First, highest and last of each node.
    usage: [Option<[Usage; 3]>; NODES],
}

impl Soak<'_> {
    fn run(&mut self, lasts: Duration, random: &mut Rng) -> Result<(), String> {
        let until = Instant::now() + lasts;
        self.rest()?;
        self.converged.clear();
        while Instant::now() < until && !self.is_asked() {
            self.round(&plan::round(random))?;
            self.rest()?;
        }
        if self.is_asked() { Ok(()) } else { self.stop() }
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    // ---- all the time ----

    fn tick(&mut self, end_all: bool) -> Result<(), String> {
        self.cluster.tick(end_all)?;
        for (node, name, took) in self.cluster.stops.drain(..) {
            self.progress.say(&format!("{name} of node {node} stopped in {}", seconds(took)));
            self.stops.push(took);
        }
        self.read()?;
        self.read_logs()?;
        self.look_at_appends()?;
        self.look_for_fail_over()?;
        let (commits, leader) = (self.ledger.commits, self.ledger.leader().map_or(0, |node| node + 1));
        self.progress.status(&format!("node {leader} leads, {commits} commits"));
        std::thread::sleep(TICK);
        Ok(())
    }

    fn read(&mut self) -> Result<(), String> {
        for node in 0..NODES {
            self.ledger.read(node, &mut self.readers[node])?;
            self.programs.read(node, &mut self.program_readers[node])?;
        }
        Ok(())
    }

    /// What no process may ever say.
    fn read_logs(&mut self) -> Result<(), String> {
        for (name, log) in &mut self.logs {
            let defect = |line: &String| DEFECTS.iter().any(|defect| line.contains(defect));
            if let Some(line) = log.lines().into_iter().find(defect) {
                return Err(format!("a {name} said {line:?}"));
            }
        }
        Ok(())
    }

    fn look_at_appends(&mut self) -> Result<(), String> {
        for slow in std::mem::take(&mut self.ledger.slow) {
            let (began, ended) = (slow.began, slow.began + u64::try_from(slow.took.as_nanos()).unwrap());
            if self.frozen.iter().any(|(node, from, to)| *node == slow.node && began < *to && *from < ended) {
                continue;
            }
            self.ledger.longest = self.ledger.longest.max(slow.took);
            if slow.took > APPEND_MAX {
                return Err(format!("an append at node {} took {:.2?}", slow.node + 1, slow.took));
            }
        }
        Ok(())
    }

    /// Another node leads: it has all that was acknowledged before.
    fn look_for_fail_over(&mut self) -> Result<(), String> {
        let Some(now) = self.ledger.last else { return Ok(()) };
        if let Some(lost) = self.lost_leader
            && now.node != lost.node
            && now.began > lost.at
        {
            let took = Duration::from_nanos(now.ended - lost.at);
            self.progress.say(&format!("node {} leads, after {}", now.node + 1, seconds(took)));
            self.fail_overs.push(took);
            self.lost_leader = None;
        }
        if self.checked.is_some_and(|checked| checked.node == now.node) {
            return Ok(());
        }
        let missing = self.missing_in(now.node)?;
        // It may have ceased to lead meanwhile, and be made to follow.
        self.read()?;
        let last = self.ledger.last.expect("it is there");
        if last.node == now.node && last.ended > now.ended {
            self.checked = Some(last);
            return self.lost(now.node, &missing);
        }
        Ok(())
    }

    fn missing_in(&mut self, node: usize) -> Result<Vec<String>, String> {
        let found = match records::look(&self.cluster.nodes[node].dir(FOLDERS[0])) {
            Ok(found) => found,
            // Put back, or wiped.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(format!("node {}: {error}", node + 1)),
        };
        self.compared += 1;
        Ok(self.ledger.missing_in(&found))
    }

    fn lost(&mut self, node: usize, missing: &[String]) -> Result<(), String> {
        let Some(first) = missing.first() else { return Ok(()) };
        self.ledger.lost += missing.len() as u64;
        Err(format!("node {} lacks {} records that were acknowledged: {first}", node + 1, missing.len()))
    }

    // ---- a round ----

    fn round(&mut self, faults: &[Fault]) -> Result<(), String> {
        let began = Instant::now();
        let mut faults = faults.iter().peekable();
        while (faults.peek().is_some() || self.cluster.is_active()) && !self.is_asked() {
            while let Some(fault) = faults.next_if(|fault| began.elapsed() >= fault.begins) {
                self.begin(*fault);
            }
            self.tick(false)?;
        }
        Ok(())
    }

    fn begin(&mut self, fault: Fault) {
        let leader = self.ledger.leader();
        let victim = match fault.victim {
            Victim::Leader => leader.unwrap_or(0),
            Victim::Node(node) => node,
        };
        let alone = !self.cluster.is_active();
        let at = host::now();
        let Some(of) = self.cluster.begin(fault, victim) else { return };
        *self.faults.entry(fault.kind).or_default() += 1;
        if fault.kind == Kind::Freeze {
            // A little longer, until it is found to be over.
            let ends = at + u64::try_from((fault.lasts + Duration::from_secs(2)).as_nanos()).unwrap();
            self.frozen.push((victim, at, ends));
        }
        let takes_it_away = matches!(
            fault.kind,
            Kind::Kill | Kind::Freeze | Kind::Isolate | Kind::Unplug | Kind::CutFromEtcd | Kind::Split
        );
        // With others at the same time it would be theirs that is measured.
        let lost = alone && takes_it_away && leader == Some(victim);
        self.lost_leader = lost.then_some(LostLeader { node: victim, at });
        let leads = if leader == Some(victim) && of.contains("node") { ", which leads," } else { "" };
        self.progress.say(&format!("{}{of}{leads} for {}", fault.kind, seconds(fault.lasts)));
    }

    // ---- at rest ----

    /// Ends all faults; everything is in sync before long, and then equal.
    fn rest(&mut self) -> Result<(), String> {
        self.lost_leader = None;
        let (began, since) = (host::now(), Instant::now());
        let in_sync = self.until("commits go on, and all nodes are in sync", |soak| {
            let commits = soak.ledger.last.is_some_and(|last| last.began > began);
            // What is slow to end, a node that was asked to stop, is waited for.
            !soak.cluster.is_active() && commits && soak.cluster.all_in_sync()
        })?;
        self.rests += 1;
        let pause = self.rests.to_string();
        self.cluster.pause(Some(&pause));
        let at_rest = in_sync
            && self.until("the leader and the program rest", |soak| {
                soak.ledger.is_idle(&pause) && soak.programs.is_idle(&pause)
            })?
            && self.until("all copies are equal", |soak| soak.equal().is_ok_and(|equal| equal))?;
        if !at_rest {
            return Ok(());
        }
        let took = since.elapsed();
        self.converged.push(took);
        self.programs.are_equal();
        for node in 0..NODES {
            let found = records::look(&self.cluster.nodes[node].dir(FOLDERS[0])).map_err(|error| error.to_string())?;
            if let Some(wrong) = found.wrong.first() {
                return Err(format!("node {}: {wrong}", node + 1));
            }
            self.compared += 1;
            let missing = self.ledger.missing_in(&found);
            self.lost(node, &missing)?;
        }
        self.cluster.take_copies();
        self.note_usage()?;
        self.cluster.pause(None);
        let (commits, records, took) = (self.ledger.commits, self.ledger.records, seconds(took));
        self.progress.say(&format!("all equal after {took}; {commits} commits, {records} records so far"));
        Ok(())
    }

    /// `false`: somebody wants the end of it all.
    fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) -> Result<bool, String> {
        let deadline = Instant::now() + CONVERGE_MAX;
        while !condition(self) {
            if self.is_asked() {
                return Ok(false);
            }
            // What has ended by itself is said first.
            self.tick(true)?;
            if Instant::now() >= deadline {
                let sets = self.cluster.in_sync();
                return Err(format!("{what}: not within {CONVERGE_MAX:?}; the recorded in-sync sets are {sets}"));
            }
        }
        Ok(true)
    }

    /// Whether all copies are, byte for byte.
    fn equal(&self) -> std::io::Result<bool> {
        let [first, others @ ..] = &self.cluster.nodes[..] else { unreachable!() };
        for other in others {
            for folder in FOLDERS {
                if !support::processes::same(&first.dir(folder), &other.dir(folder))? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn note_usage(&mut self) -> Result<(), String> {
        for (node, (known, now)) in (1..).zip(self.usage.iter_mut().zip(self.cluster.usage())) {
            let Some(now) = now else { continue };
            if now.resident_kib > RESIDENT_MAX_KIB || now.descriptors > DESCRIPTORS_MAX {
                return Err(format!("node {node} uses {} KiB and {} descriptors", now.resident_kib, now.descriptors));
            }
            let [first, most, _] = known.unwrap_or([now; 3]);
            let most = Usage {
                resident_kib: most.resident_kib.max(now.resident_kib),
                descriptors: most.descriptors.max(now.descriptors),
            };
            *known = Some([first, most, now]);
        }
        Ok(())
    }

    // ---- the end ----

    /// In this order no other leads in between; the last one to stop has everything.
    fn stop(&mut self) -> Result<(), String> {
        let leader = self.ledger.leader().unwrap_or(0);
        for index in (0..NODES).filter(|index| *index != leader).chain([leader]) {
            self.cluster.stop(index)?;
        }
        self.read()?;
        let missing = self.missing_in(leader)?;
        self.lost(leader, &missing)
    }

    fn say_table(&self, options: &Options) {
        let mut table = Table::default();
        println!();
        table.row("seed", options.seed);
        for (kind, count) in &self.faults {
            table.row(format!("fault: {kind}"), count);
        }
        let ledger = &self.ledger;
        table.row("commits acknowledged", format!("{}, of {} records", ledger.commits, ledger.records));
        for (why, count) in &ledger.not {
            table.row(format!("commits {why}"), count);
        }
        table.row("commits lost", ledger.lost);
        table.row("copies compared", format!("{}, {} times at rest", self.compared, self.rests));
        table.row("terms", format!("{}, and {} runs of the program", ledger.terms, self.programs.runs));
        table.row("longest append", millis(ledger.longest));
        let (fail_overs, stops, converged) = (&self.fail_overs, &self.stops, &self.converged);
        for (name, times) in [("fail-over", fail_overs), ("clean stop", stops), ("until all are equal", converged)] {
            let mut times = times.clone();
            times.sort_unstable();
            if let (Some(median), Some(max)) = (times.get(times.len() / 2), times.last()) {
                let (median, max) = (seconds(*median), seconds(*max));
                table.row(name, format!("median {median}, max {max}, of {}", times.len()));
            }
        }
        for (node, usage) in (1..).zip(self.usage) {
            let Some([first, most, last]) = usage else { continue };
            let mib = |usage: Usage| format!("{:.1}", usage.resident_kib as f64 / 1024.0);
            let memory = format!("{} MiB at start, {} at end, {} at most", mib(first), mib(last), mib(most));
            table.row(format!("node {node}: memory"), memory);
            let files =
                format!("{} at start, {} at end, {} at most", first.descriptors, last.descriptors, most.descriptors);
            table.row(format!("node {node}: descriptors"), files);
        }
        table.print();
    }
}
