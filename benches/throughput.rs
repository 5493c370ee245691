//! What goes through, end to end, and what it costs the leader.
//!
//! # What is measured
//!
//! One thread writes pieces of one size to a local file and announces each with [`Leader::append`](paceline::Leader::append); the time runs until
//! every follower has acknowledged everything, which it does once it has written it to its own file. The writer keeps a
//! window with [`Leader::wait_for_window`](paceline::Leader::wait_for_window), so that no follower is evicted for being slower than it. Followers
//! are processes of their own on this same machine, so that the CPU time of the leader's process (writer, leader thread,
//! the two threads of each connection, and what the system does for them) is the leader's alone.
//!
//! # The baseline
//!
//! The same thread writes the same bytes in the same pieces to the same kind of file, and to as many plain loopback sockets,
//! whose other ends write what they read to files; the time runs until they have said that they did. It neither batches nor
//! compresses, and nothing in it can tell where a slow reader ends.
//!
//! # How to read it
//!
//! MB/s are 10^6 bytes of content a second, counted once whatever the number of followers. CPU is in seconds per GiB of
//! content. Cases and baseline take turns; figures are medians over the rounds; MB/s have their lowest and highest. The last
//! table is the leader's CPU with 8 followers against 1: compression is done once for all of them. *Replication* is
//! what is left of it without the writer's thread, which mostly writes the local file.
//! A run in which a follower was evicted is invalid, says so, and exits with 1.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people to read"
)]

mod common;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use common::children::{ChildProcess, PlainReaders, run_if_child};
use common::data::{Kind, Pieces};
use common::table::{Table, ratio, size};
use common::{
    BenchLeader, Log, Options, PATIENCE, PlainFile, finish, machine, median, process_cpu, thread_cpu, wait_joined,
};
use paceline::NodeId;
use paceline::leader::Window;

/// What followers may lack: a quarter of the queue's default.
const WINDOW_BYTES: u64 = 16 << 20;
/// The window is looked at each time so much was appended.
const WINDOW_STEP_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Way {
    Paceline,
    Baseline,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Cell {
    kind: Kind,
    size: usize,
    followers: usize,
}

/// Of one run.
struct Figures {
    bytes: usize,
    took: Duration,
    cpu: Duration,
    /// Of `cpu`, that of the thread that writes and announces.
    writer_cpu: Duration,
    /// Bytes on the wire to one follower over bytes of content.
    wire: f64,
}

impl Figures {
    fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.took.as_secs_f64()
    }

    fn cpu_per_gib(&self) -> f64 {
        self.cpu.as_secs_f64() / self.bytes as f64 * f64::from(1 << 30)
    }

    fn replication_cpu_per_gib(&self) -> f64 {
        self.cpu.saturating_sub(self.writer_cpu).as_secs_f64() / self.bytes as f64 * f64::from(1 << 30)
    }
}

type Results = HashMap<(usize, Way), Vec<Figures>>;

fn main() {
    run_if_child();
    let options = Options::parse(5, 0);
    println!(
        "throughput: written at the leader until acknowledged by every follower, window {} MiB",
        WINDOW_BYTES >> 20
    );
    println!("{}", machine());
    let kind = if options.sinks { "sinks (nothing written)" } else { "followers writing to files" };
    println!("followers: processes on this machine, {kind}; {} rounds\n", options.rounds);

    let pools = [(Kind::Random, Kind::Random.pool()), (Kind::Json, Kind::Json.pool())];
    let cells = cells(&options);
    let mut results = Results::new();
    let mut invalid = Vec::new();
    for round in 0..options.rounds {
        for (number, cell) in cells.iter().enumerate() {
            let pool = &pools.iter().find(|(kind, _)| *kind == cell.kind).expect("of each kind").1;
            let mut ways = vec![Way::Paceline];
            if cell.followers <= 3 && options.baseline {
                ways.insert(round % 2, Way::Baseline);
            }
            for way in ways {
                let figures = match way {
                    Way::Paceline => paceline(cell, pool, &options),
                    Way::Baseline => Ok(baseline(cell, pool, &options)),
                };
                match figures {
                    Ok(figures) => results.entry((number, way)).or_default().push(figures),
                    Err(why) => invalid.push(why),
                }
            }
        }
    }
    print(&cells, &results);
    print_many(&cells, &results);
    finish(&invalid);
}

fn cells(options: &Options) -> Vec<Cell> {
    let mut cells = Vec::new();
    for kind in [Kind::Random, Kind::Json] {
        for size in [100, 1024, 64 << 10] {
            for followers in [1, 3, 8] {
                let wanted = followers < 8 || (kind == Kind::Json && size == 1024);
                if wanted && options.has_size(size) && options.has_followers(followers) {
                    cells.push(Cell { kind, size, followers });
                }
            }
        }
    }
    cells
}

/// Bytes of a run: enough for a good part of a second.
fn total(cell: &Cell, options: &Options) -> usize {
    let bytes = match cell.size {
        ..1024 => 24 << 20,
        1024 => 128 << 20,
        _ => 384 << 20,
    };
    if options.quick { bytes / 8 } else { bytes }
}

fn paceline(cell: &Cell, pool: &[u8], options: &Options) -> Result<Figures, String> {
    let leader = BenchLeader::start(|_| ());
    let children: Vec<_> =
        (0..cell.followers).map(|number| ChildProcess::follower(leader.address, number, options.sinks)).collect();
    wait_joined(&leader, cell.followers);
    let ids: Vec<NodeId> = children.iter().map(|child| child.id).collect();

    let bytes = total(cell, options);
    let mut window = Window::new(WINDOW_BYTES);
    // All are healthy, however long a busy machine leaves one without a core.
    window.stall_grace = PATIENCE;
    let mut log = Log::new(&leader, "log");
    let mut pieces = Pieces::new(pool, cell.size, 0);
    let (began, cpu, writer_cpu) = (Instant::now(), process_cpu(), thread_cpu());
    let (mut done, mut step) = (0, 0);
    while done < bytes {
        let piece = pieces.next_piece();
        log.write(piece);
        log.announce(piece);
        done += piece.len();
        step += piece.len();
        if step >= WINDOW_STEP_BYTES {
            step = 0;
            log.rotate();
            if !leader.leader.wait_for_window(&window, PATIENCE) {
                return Err(format!("followers stayed behind for {PATIENCE:?}"));
            }
        }
    }
    let writer_cpu = thread_cpu().saturating_sub(writer_cpu);
    leader.wait_acknowledged(&ids)?;
    let (took, cpu) = (began.elapsed(), process_cpu().saturating_sub(cpu));
    leader.healthy(&ids)?;
    let sent = leader.leader.followers().iter().map(|follower| follower.sent_bytes).max().unwrap_or(0);
    leader.leader.shutdown(Duration::ZERO);
    Ok(Figures { bytes: done, took, cpu, writer_cpu, wire: sent as f64 / done as f64 })
}

fn baseline(cell: &Cell, pool: &[u8], options: &Options) -> Figures {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut readers = PlainReaders::start(cell.followers);
    let bytes = total(cell, options);
    let mut file = PlainFile::new(dir.path().join("log"));
    let mut pieces = Pieces::new(pool, cell.size, 0);
    let (began, cpu) = (Instant::now(), process_cpu());
    let mut done = 0;
    while done < bytes {
        let piece = pieces.next_piece();
        file.write(piece);
        readers.write(piece);
        done += piece.len();
    }
    readers.finish();
    let (took, cpu) = (began.elapsed(), process_cpu().saturating_sub(cpu));
    Figures { bytes: done, took, cpu, writer_cpu: cpu, wire: 1.0 }
}

fn of(results: &Results, number: usize, way: Way, figure: impl Fn(&Figures) -> f64) -> Vec<f64> {
    results.get(&(number, way)).map_or_else(Vec::new, |runs| runs.iter().map(figure).collect())
}

fn print(cells: &[Cell], results: &Results) {
    let mut table = Table::new(&[
        "data",
        "piece",
        "followers",
        "MB/s",
        "min-max",
        "actions/s",
        "wire",
        "CPU s/GiB",
        "| baseline MB/s",
        "min-max",
        "CPU s/GiB",
        "| ratio MB/s",
        "CPU",
    ]);
    let mut worst = f64::INFINITY;
    for (number, cell) in cells.iter().enumerate().filter(|(_, cell)| cell.followers <= 3) {
        if cell.followers == 1 {
            table.gap();
        }
        let rates = |way| of(results, number, way, Figures::megabytes_per_second);
        let cpus = |way| median(of(results, number, way, Figures::cpu_per_gib));
        let span = |rates: &[f64]| {
            let pick = |pick: fn(f64, f64) -> f64| rates.iter().copied().reduce(pick).unwrap_or(f64::NAN);
            format!("{:.0}-{:.0}", pick(f64::min), pick(f64::max))
        };
        let (ours, plain) = (rates(Way::Paceline), rates(Way::Baseline));
        let (rate, plain_rate) = (median(ours.iter().copied()), median(plain.iter().copied()));
        if cell.size == 1024 {
            worst = worst.min(rate / plain_rate);
        }
        table.row(vec![
            cell.kind.name().into(),
            size(cell.size),
            cell.followers.to_string(),
            format!("{rate:.0}"),
            span(&ours),
            format!("{:.0}", rate * 1e6 / cell.size as f64),
            format!("{:.2}", median(of(results, number, Way::Paceline, |run| run.wire))),
            format!("{:.2}", cpus(Way::Paceline)),
            format!("| {plain_rate:.0}"),
            span(&plain),
            format!("{:.2}", cpus(Way::Baseline)),
            format!("| {}", ratio(rate / plain_rate)),
            ratio(cpus(Way::Paceline) / cpus(Way::Baseline)),
        ]);
    }
    table.print();
    println!("\nlowest MB/s at 1 KiB over the baseline's: {} (aim: over 0.5)", ratio(worst));
}

/// The leader's CPU with many followers.
fn print_many(cells: &[Cell], results: &Results) {
    let of_count = |followers| {
        let mine = |cell: &Cell| cell.kind == Kind::Json && cell.size == 1024 && cell.followers == followers;
        cells.iter().position(mine)
    };
    let (Some(one), Some(many)) = (of_count(1), of_count(8)) else { return };
    println!("\nleader's CPU on JSON lines in pieces of 1 KiB:\n");
    let mut table = Table::new(&["followers", "MB/s", "CPU s/GiB", "of it replication"]);
    let figure = |number, figure: fn(&Figures) -> f64| median(of(results, number, Way::Paceline, figure));
    for number in [one, many] {
        table.row(vec![
            cells[number].followers.to_string(),
            format!("{:.0}", figure(number, Figures::megabytes_per_second)),
            format!("{:.2}", figure(number, Figures::cpu_per_gib)),
            format!("{:.2}", figure(number, Figures::replication_cpu_per_gib)),
        ]);
    }
    table.print();
    let grown = |of: fn(&Figures) -> f64| ratio(figure(many, of) / figure(one, of));
    println!(
        "\nwith 8 followers over with 1: {} (aim: under 2), of it replication {}",
        grown(Figures::cpu_per_gib),
        grown(Figures::replication_cpu_per_gib)
    );
}
