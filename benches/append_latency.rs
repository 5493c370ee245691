//! How long [`Leader::append`] takes, whatever the followers do: it must not matter whether one of them stands still.
//!
//! # What is measured
//!
//! The announcement alone. A burst of 64 KiB is written to the file first, then announced piece by piece in a tight loop,
//! and only [`Leader::append`] is between two looks at the clock, whose own cost is printed and not taken off. Between
//! bursts, outside of what is timed, the writer waits until its rate allows the next and healthy followers lack less than a
//! window. All cases are offered the same rate (`--rate`, in MiB/s): as fast as each case goes (`--rate 0`) would compare a writer
//! that mostly waits for the window with one that, for want of healthy followers, never does.
//!
//! Healthy followers are [`Follower`](paceline::Follower)s on temporary directories, in processes of their own, on this same machine: its
//! scheduler's time slices are in p99.9 and the maximum, in *all* cases. With `--sinks` they decode and acknowledge but write
//! nothing, which is nearer to followers on other machines.
//!
//! One of the followers then is ill. *Stopped*: it joined, and reads nothing any more. *Slow*: it reads and acknowledges
//! 1 MiB/s. Both make the leader's queue run full: in each interval they are there, their queue fills, they are evicted
//! about half-way, and the rest goes on without them. How many were evicted is printed.
//!
//! Or all are healthy, and one more *joins*: with nothing, again and again, all the time that is measured. The leader then
//! has 256 MiB of files besides (in memory, most likely), which it sends each time; the healthy followers have them from the
//! beginning. It is a follower of the extension in a process of its own, with the lowest priority, for it stands for a
//! machine of its own; what it writes goes to this one's disk, but for `--sinks`. In how many intervals it joined to the end
//! is printed.
//!
//! Beside that, the same follower joins *another leader* of the same files, in a process of its own. It takes the cores, the
//! caches and the disk of this machine just as much, and shares no lock and no memory with the leader that is measured. So what
//! a join costs an append over that is the leader's doing, and the rest is the small machine's.
//!
//! The window is over the healthy followers by name. [`Leader::wait_for_window`] is not used: it waits for whoever still
//! acknowledges anything, and would run at the pace of the slow one.
//!
//! # How to read it
//!
//! Cases take turns, and each is repeated; every figure is the median over the rounds, and the ratio is that to the healthy
//! case of the same size, followers and threads. A ratio of 1 says that an ill follower costs an append nothing.
//! A run in which a healthy follower was evicted is invalid, says so, and exits with 1.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people to read"
)]

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use common::children::{ChildProcess, IllFollower, Illness, id, link_files, run_if_child};
use common::data::{Kind, Pieces};
use common::files::random_file;
use common::table::{Table, nanos, ratio, size};
use common::{BenchLeader, Log, Options, PATIENCE, finish, machine, median, timer_cost_ns, wait_joined};
use hdrhistogram::Histogram;
use paceline::leader::FollowerState;
use paceline::{Leader, NodeId};

const BURST_BYTES: usize = 64 << 10;
/// What healthy followers may lack.
const WINDOW_BYTES: u64 = 4 << 20;
/// Less than is written in an interval (but a quick one), so that whoever stands still is evicted within it.
const QUEUE_BYTES: u64 = 16 << 20;
/// What who joins is sent.
const BALLAST_BYTES: u64 = 256 << 20;
const BALLAST_FILES: u64 = 4;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Case {
    Healthy,
    Stopped,
    Slow,
    Joining,
    Beside,
}

impl Case {
    const ALL: [Self; 5] = [Self::Healthy, Self::Stopped, Self::Slow, Self::Joining, Self::Beside];

    fn name(self) -> &'static str {
        match self {
            Self::Healthy => "all healthy",
            Self::Stopped => "one stopped",
            Self::Slow => "one at 1 MiB/s",
            Self::Joining => "while a follower joins",
            Self::Beside => "while it joins another leader",
        }
    }

    fn illness(self) -> Option<Illness> {
        match self {
            Self::Healthy | Self::Joining | Self::Beside => None,
            Self::Stopped => Some(Illness::Stopped),
            Self::Slow => Some(Illness::Slow(1 << 20)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Cell {
    size: usize,
    followers: usize,
    threads: usize,
    case: Case,
}

/// Of one interval.
struct Figures {
    percentiles: [f64; 4],
    evicted: bool,
    /// Somebody was joining this leader from the beginning to the end.
    joining: bool,
}

const PERCENTILES: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

fn main() {
    run_if_child();
    let options = Options::parse(9, 64);
    println!("append_latency: the time of Leader::append, JSON lines, window {} MiB", WINDOW_BYTES >> 20);
    println!("{}", machine());
    let kind = if options.sinks { "sinks (nothing written)" } else { "followers writing to files" };
    println!("followers: processes on this machine, {kind}; {} rounds", options.rounds);
    match options.rate {
        0 => println!("offered: as much as goes"),
        rate => println!("offered: {rate} MiB/s in bursts of {} KiB", BURST_BYTES >> 10),
    }
    println!("a look at the clock costs {} ns, which is in every figure\n", timer_cost_ns());

    let pool = Kind::Json.pool();
    let ballast = tempfile::tempdir().expect("a temporary directory");
    for number in 0..BALLAST_FILES {
        let bytes = BALLAST_BYTES / BALLAST_FILES / if options.quick { 8 } else { 1 };
        random_file(&ballast.path().join(format!("ballast-{number}")), bytes, number);
    }
    let mut results: HashMap<Cell, Vec<Figures>> = HashMap::new();
    let mut invalid = Vec::new();
    let groups = groups(&options);
    for round in 0..options.rounds {
        for group in &groups {
            for turn in 0..group.len() {
                let cell = group[(turn + round) % group.len()];
                match measure(cell, &pool, ballast.path(), &options) {
                    Ok(figures) => results.entry(cell).or_default().push(figures),
                    Err(why) => invalid.push(why),
                }
            }
        }
    }
    print(&groups, &results);
    summary(&groups, &results);
    // It would outlive the process.
    drop(ballast);
    finish(&invalid);
}

/// The cells, those that are compared with each other together.
fn groups(options: &Options) -> Vec<Vec<Cell>> {
    let mut groups = Vec::new();
    for size in [256, 4096].into_iter().filter(|&size| options.has_size(size)) {
        for followers in [0, 1, 3, 8].into_iter().filter(|&followers| options.has_followers(followers)) {
            for threads in [1, 4].into_iter().filter(|&threads| options.has_threads(threads)) {
                let cases = if followers == 0 { &Case::ALL[..1] } else { &Case::ALL[..] };
                groups.push(cases.iter().map(|&case| Cell { size, followers, threads, case }).collect());
            }
        }
    }
    groups
}

/// One interval, with a leader and followers of its own.
fn measure(cell: Cell, pool: &[u8], ballast: &Path, options: &Options) -> Result<Figures, String> {
    // As many samples as p99.9 needs, and more bytes than a queue and the system's buffers hold.
    let total = match (options.quick, cell.size) {
        (true, _) => 2 << 20,
        (false, 256) => 32 << 20,
        (false, _) => 64 << 20,
    };
    let joins = cell.case == Case::Joining;
    let leader = BenchLeader::start(|config| {
        config.queue_bytes = QUEUE_BYTES;
        if joins {
            link_files(ballast, &config.data_dir);
        }
    });
    let ill = cell.case.illness();
    let healthy = cell.followers - usize::from(ill.is_some());
    let child = |number| match (joins, options.sinks) {
        (true, false) => ChildProcess::follower_with(leader.address, number, ballast),
        _ => ChildProcess::follower(leader.address, number, options.sinks),
    };
    let children: Vec<_> = (0..healthy).map(child).collect();
    wait_joined(&leader, healthy);
    let ill = ill.map(|illness| IllFollower::join(leader.address, healthy, illness));
    wait_joined(&leader, healthy + usize::from(ill.is_some()));
    let joiner = match cell.case {
        Case::Joining => vec![ChildProcess::joining(leader.address, options.sinks)],
        Case::Beside => ChildProcess::joining_another(ballast, options.sinks).into(),
        _ => Vec::new(),
    };
    if joins {
        wait_joining(&leader)?;
    }

    let rate = options.rate * (1 << 20) / cell.threads;
    let healthy: Vec<NodeId> = children.iter().map(|child| child.id).collect();
    let histogram = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..cell.threads)
            .map(|thread| {
                let (leader, healthy) = (&leader, &healthy[..]);
                scope.spawn(move || {
                    Writer { leader, healthy, thread, cell, bytes: total / cell.threads, pool, rate }.run()
                })
            })
            .collect();
        let mut all = new_histogram();
        for writer in writers {
            all += writer.join().unwrap_or_else(|panic| Err(panicked(&*panic)))?;
        }
        Ok::<_, String>(all)
    })?;
    // A short while is between two joins.
    let joining = joins && wait_joining(&leader).is_ok();
    leader.wait_acknowledged(&healthy)?;
    let evicted = leader.leader.evictions().iter().any(|eviction| eviction.id == id(healthy.len()));
    drop((ill, joiner));
    leader.leader.shutdown(Duration::ZERO);
    drop(children);
    let percentiles = PERCENTILES.map(|(_, percentile)| histogram.value_at_quantile(percentile) as f64);
    Ok(Figures { percentiles, evicted, joining })
}

/// Waits until a follower is being sent what it lacks.
fn wait_joining(leader: &BenchLeader) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    while !leader.leader.followers().iter().any(|follower| follower.state == FollowerState::Syncing) {
        if Instant::now() > deadline {
            return Err(format!("no follower was joining within {PATIENCE:?}"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What a writer has to say that could not go on.
fn panicked(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("a writer panicked: {}", text.unwrap_or("it does not say why"))
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("good bounds")
}

/// A thread that writes and announces.
struct Writer<'a> {
    leader: &'a BenchLeader,
    healthy: &'a [NodeId],
    thread: usize,
    cell: Cell,
    bytes: usize,
    pool: &'a [u8],
    /// Bytes a second; 0: as fast as it can.
    rate: usize,
}

impl Writer<'_> {
    fn run(self) -> Result<Histogram<u64>, String> {
        /// What is announced before anything is timed: caches, buffers and socket buffers grow meanwhile.
        const WARM_UP_PARTS: usize = 16;
        let mut log = Log::new(self.leader, &format!("thread-{}", self.thread));
        let mut bursts = Pieces::new(self.pool, BURST_BYTES, self.thread << 20);
        let mut histogram = new_histogram();
        let mut done = 0;
        let started = Instant::now();
        while done < self.bytes {
            if self.rate > 0 {
                let due = Duration::from_secs_f64(done as f64 / self.rate as f64);
                std::thread::sleep(due.saturating_sub(started.elapsed()));
            }
            within_window(&self.leader.leader, self.healthy)?;
            let burst = bursts.next_piece();
            log.write(burst);
            let timed = done > self.bytes / WARM_UP_PARTS;
            for piece in burst.chunks(self.cell.size) {
                let began = Instant::now();
                log.announce(piece);
                let nanos = began.elapsed().as_nanos() as u64;
                if timed {
                    histogram.saturating_record(nanos);
                }
            }
            log.rotate();
            done += burst.len();
        }
        Ok(histogram)
    }
}

/// Waits while a healthy follower lacks more than the window; then until half of it is free.
fn within_window(leader: &Leader, healthy: &[NodeId]) -> Result<(), String> {
    let lag = || {
        let followers = leader.followers();
        let healthy = followers.iter().filter(|follower| healthy.contains(&follower.id));
        healthy.filter_map(|follower| follower.lag_bytes).max().unwrap_or(0)
    };
    if lag() <= WINDOW_BYTES {
        return Ok(());
    }
    let deadline = Instant::now() + PATIENCE;
    while lag() > WINDOW_BYTES / 2 {
        if Instant::now() > deadline {
            return Err(format!("a healthy follower stayed behind for {PATIENCE:?}"));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

fn medians(figures: &[Figures]) -> [f64; 4] {
    std::array::from_fn(|at| median(figures.iter().map(|figures| figures.percentiles[at])))
}

fn print(groups: &[Vec<Cell>], results: &HashMap<Cell, Vec<Figures>>) {
    let mut table = Table::new(&[
        "append",
        "followers",
        "threads",
        "case",
        "p50",
        "p99",
        "p99.9",
        "max",
        "ratio p50",
        "p99",
        "p99.9",
        "max",
        "p99.9 min-max",
        "evicted or joining",
    ]);
    for group in groups {
        table.gap();
        let healthy = results.get(&group[0]).map(|figures| medians(figures));
        for cell in group {
            let Some(figures) = results.get(cell) else { continue };
            let medians = medians(figures);
            let mut row =
                vec![size(cell.size), cell.followers.to_string(), cell.threads.to_string(), cell.case.name().into()];
            row.extend(medians.map(nanos));
            let ratios = (0..4).map(|at| healthy.map_or(f64::NAN, |healthy| medians[at] / healthy[at]));
            row.extend(ratios.map(ratio));
            let of = |pick: fn(f64, f64) -> f64| figures.iter().map(|it| it.percentiles[2]).reduce(pick);
            row.push(format!("{}-{}", nanos(of(f64::min).unwrap_or(0.0)), nanos(of(f64::max).unwrap_or(0.0))));
            row.push(match cell.case {
                Case::Healthy => "-".into(),
                Case::Joining => format!("{}/{}", figures.iter().filter(|it| it.joining).count(), figures.len()),
                _ => format!("{}/{}", figures.iter().filter(|it| it.evicted).count(), figures.len()),
            });
            table.row(row);
        }
    }
    table.print();
}

/// The aims, and what came of them.
fn summary(groups: &[Vec<Cell>], results: &HashMap<Cell, Vec<Figures>>) {
    let at = |cell: &Cell| results.get(cell).map(|figures| medians(figures));
    let small = groups.iter().flatten().filter(|cell| cell.size == 256 && cell.threads == 1);
    let worst = small.filter_map(|cell| at(cell).map(|medians| medians[0])).fold(0.0, f64::max);
    println!("\nhighest p50 at 256 B from one thread: {} (aim: under 150 ns)", nanos(worst));
    let healthy = [Case::Stopped, Case::Slow, Case::Joining, Case::Beside].map(|case| (case, Case::Healthy));
    for (case, base) in healthy.into_iter().chain([(Case::Joining, Case::Beside)]) {
        let of = |group: &[Cell], case| at(group.iter().find(|cell| cell.case == case)?);
        for (column, name) in [(2, "p99.9"), (3, "max")] {
            let ratios = groups.iter().filter_map(|group| Some(of(group, case)?[column] / of(group, base)?[column]));
            let ratios: Vec<f64> = ratios.collect();
            let worst = ratios.iter().copied().fold(f64::NAN, f64::max);
            let (case, base) = (case.name(), base.name());
            println!("{case}, over {base}: {name} median {}, highest {}", ratio(median(ratios)), ratio(worst));
        }
    }
    println!("aim: p99.9 up to 1.1 of all healthy");
}
