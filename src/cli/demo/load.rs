//! The demo's leader process: embeds the library, appends from several threads as fast as a window over the healthy
//! followers lets it, and measures each append.
//!
//! Threads: writers (one a file each, rotating through segments); `orders` reads stdin; the main thread reports. A writer's
//! histogram is behind a lock that only the reporter takes besides, once a second, outside what is measured. The end of
//! stdin, which is also the parent's end, ends the process.

use std::fs::{self, File};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use hdrhistogram::Histogram;
use paceline::leader::{FollowerState, Window};
use paceline::{Leader, LeaderConfig, RelPath};

use super::link::{FollowerNow, Latency, Message, Order};
use super::processes::end_with_parent;
use crate::cli::{Failure, NodeOptions, say, start_logging};

const WRITERS: u64 = 4;
const RECORD_BYTES: u64 = 1024;
/// With the number kept this bounds the directory to 192 MiB.
const SEGMENT_BYTES: u64 = 8 << 20;
const SEGMENTS_KEPT: u64 = 5;
/// A quarter of the default queue, and a longer grace than the default: all processes share this machine's processors, and
/// a healthy follower that gets none for a while must not be evicted. A stopped one holds the writers up once, that long.
const WINDOW_BYTES: u64 = 16 << 20;
const STALL_GRACE: Duration = Duration::from_millis(500);
/// Records between two looks at the window.
const RECORDS_PER_LOOK: u64 = 64;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// At each look at the window, when told to write slowly: some 50 MB/s in all.
const SLOW_PAUSE: Duration = Duration::from_millis(5);

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    data_dir: PathBuf,
    #[command(flatten)]
    node: NodeOptions,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    start_logging();
    end_with_parent()?;
    let mut config = LeaderConfig::new(&options.data_dir, options.node.secret()?);
    config.id = options.node.id;
    let leader = Leader::open(config)?;
    let address = leader.listen("127.0.0.1:0")?;
    say(&Message::Listening(address).to_string());
    let orders = read_orders()?;
    let load = Load::default();
    thread::scope(|scope| {
        let mut reporter = Reporter::new(&leader, &load);
        let result = loop {
            match orders.recv_timeout(LOOK_EVERY) {
                Ok(order @ (Order::Healthy | Order::Stopped | Order::Resumed | Order::Slow)) => {
                    load.slow.store(order == Order::Slow, Ordering::Relaxed);
                    reporter.begin_phase(order);
                    if order == Order::Healthy {
                        for writer in 0..WRITERS {
                            let (leader, load, dir) = (&leader, &load, &options.data_dir);
                            scope.spawn(move || load.note(Writer::new(leader, load, writer, dir).run()));
                        }
                    }
                }
                Ok(Order::Cease) => {
                    reporter.end_phase();
                    load.ceased.store(true, Ordering::Relaxed);
                }
                Ok(Order::Quit) | Err(RecvTimeoutError::Disconnected) => break Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            reporter.report();
            if let Some(failure) = load.failure() {
                break Err(Failure::runtime(failure));
            }
        };
        load.ceased.store(true, Ordering::Relaxed);
        result
    })?;
    leader.shutdown(Duration::from_secs(5));
    Ok(())
}

fn read_orders() -> Result<Receiver<Order>, Failure> {
    let (tx, rx) = bounded(8);
    let read = move || {
        let lines = std::io::stdin().lock().lines().map_while(Result::ok);
        for order in lines.filter_map(|line| Order::parse(line.trim())) {
            if tx.send(order).is_err() {
                return;
            }
        }
    };
    let spawned = thread::Builder::new().name("orders".into()).spawn(read);
    spawned.map(|_| rx).map_err(|error| Failure::runtime(format!("cannot start a thread: {error}")))
}

/// What writers and reporter share.
#[derive(Default)]
struct Load {
    ceased: AtomicBool,
    slow: AtomicBool,
    bytes: AtomicU64,
    latencies: [Mutex<Option<Histogram<u64>>>; 4],
    failure: Mutex<Option<String>>,
}

impl Load {
    fn note(&self, result: Result<(), String>) {
        if let Err(failure) = result {
            *lock(&self.failure) = Some(failure);
        }
    }

    fn failure(&self) -> Option<String> {
        lock(&self.failure).take()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Three digits, up to a minute.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000_000, 3).unwrap_or_else(|_| unreachable!("these limits are valid"))
}

/// One thread's files: `<writer>/<number>.log`, of which the last few are kept.
struct Writer<'a> {
    leader: &'a Leader,
    load: &'a Load,
    writer: u64,
    dir: &'a std::path::Path,
    window: Window,
    records: u64,
}

impl<'a> Writer<'a> {
    fn new(leader: &'a Leader, load: &'a Load, writer: u64, dir: &'a std::path::Path) -> Self {
        let mut window = Window::new(WINDOW_BYTES);
        window.stall_grace = STALL_GRACE;
        Self { leader, load, writer, dir, window, records: 0 }
    }

    fn run(mut self) -> Result<(), String> {
        fs::create_dir_all(self.dir.join(self.writer.to_string())).map_err(|error| error.to_string())?;
        for segment in 0.. {
            if !self.fill(segment)? {
                return Ok(());
            }
            if let Some(old) = segment.checked_sub(SEGMENTS_KEPT) {
                let path = self.path(old)?;
                fs::remove_file(path.below(self.dir)).map_err(|error| format!("remove {path}: {error}"))?;
                self.leader.delete(&path).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    fn path(&self, segment: u64) -> Result<RelPath, String> {
        RelPath::new(&format!("{}/{segment:08}.log", self.writer)).map_err(|error| error.to_string())
    }

    /// Writes a segment to its end; false if told to cease before.
    fn fill(&mut self, segment: u64) -> Result<bool, String> {
        let path = self.path(segment)?;
        let mut file = File::create(path.below(self.dir)).map_err(|error| format!("create {path}: {error}"))?;
        let mut record = Vec::new();
        for offset in (0..SEGMENT_BYTES).step_by(1024) {
            if self.records.is_multiple_of(RECORDS_PER_LOOK) {
                while !self.leader.wait_for_window(&self.window, LOOK_EVERY) && !self.ceased() {}
                if self.ceased() {
                    return Ok(false);
                }
                if self.load.slow.load(Ordering::Relaxed) {
                    thread::sleep(SLOW_PAUSE);
                }
            }
            self.write_record(&mut record);
            file.write_all(&record).map_err(|error| format!("write {path}: {error}"))?;
            let begun = Instant::now();
            self.leader.append(&path, offset, &record).map_err(|error| error.to_string())?;
            let took = begun.elapsed();
            self.note(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
        Ok(true)
    }

    fn ceased(&self) -> bool {
        self.load.ceased.load(Ordering::Relaxed)
    }

    /// A line of JSON, a kibibyte with its line break.
    fn write_record(&mut self, record: &mut Vec<u8>) {
        self.records += 1;
        let wide = usize::try_from(RECORD_BYTES).unwrap_or(1024);
        record.clear();
        let _ = write!(record, r#"{{"writer":{},"record":{},"values":["#, self.writer, self.records);
        let mut value = self.records.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        while record.len() < wide - 24 {
            value = value.rotate_left(7).wrapping_mul(31);
            let _ = write!(record, "{},", value % 1_000_000);
        }
        record.resize(wide - 3, b'0');
        record.extend_from_slice(b"]}\n");
    }

    fn note(&self, nanoseconds: u64) {
        self.load.bytes.fetch_add(RECORD_BYTES, Ordering::Relaxed);
        let slot = &self.load.latencies[usize::try_from(self.writer).unwrap_or(0)];
        lock(slot).get_or_insert_with(histogram).saturating_record(nanoseconds);
    }
}

/// Says once a second how fast it went, and ten times a second how followers are.
struct Reporter<'a> {
    leader: &'a Leader,
    load: &'a Load,
    second: Instant,
    bytes: u64,
    phase: Option<Phase>,
    last_eviction: SystemTime,
}

struct Phase {
    name: &'static str,
    began: Instant,
    bytes_before: u64,
    latency: Histogram<u64>,
}

impl<'a> Reporter<'a> {
    fn new(leader: &'a Leader, load: &'a Load) -> Self {
        let last_eviction = SystemTime::UNIX_EPOCH;
        Self { leader, load, second: Instant::now(), bytes: 0, phase: None, last_eviction }
    }

    fn begin_phase(&mut self, order: Order) {
        self.end_phase();
        let (name, began) = (order.word(), Instant::now());
        let bytes_before = self.load.bytes.load(Ordering::Relaxed);
        self.phase = Some(Phase { name, began, bytes_before, latency: histogram() });
    }

    fn end_phase(&mut self) {
        self.say_second();
        if let Some(phase) = self.phase.take() {
            let bytes = self.load.bytes.load(Ordering::Relaxed) - phase.bytes_before;
            let (name, time) = (phase.name.to_owned(), phase.began.elapsed());
            say(&Message::Phase { name, bytes, time, latency: latency(&phase.latency) }.to_string());
        }
    }

    fn report(&mut self) {
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.say_second();
        }
        for eviction in self.leader.evictions() {
            if eviction.at > self.last_eviction {
                self.last_eviction = eviction.at;
                let message = Message::Evicted {
                    id: eviction.id.to_string(),
                    reason: eviction.reason.to_string(),
                    lag_bytes: eviction.lag_bytes.unwrap_or(0),
                    queued_bytes: eviction.queued_bytes,
                };
                say(&message.to_string());
            }
        }
        let position = self.leader.position();
        let followers = self.leader.followers().into_iter().map(|follower| FollowerNow {
            id: follower.id.to_string(),
            state: follower.state.to_string(),
            lag_bytes: follower.lag_bytes,
            drained: follower.state == FollowerState::InSync && follower.acknowledged >= Some(position),
        });
        say(&Message::Followers(followers.collect()).to_string());
    }

    fn say_second(&mut self) {
        let elapsed = self.second.elapsed();
        self.second = Instant::now();
        let mut all = histogram();
        for slot in &self.load.latencies {
            if let Some(one) = lock(slot).take() {
                let _ = all.add(one);
            }
        }
        if let Some(phase) = &mut self.phase {
            let _ = phase.latency.add(&all);
        }
        let bytes = self.load.bytes.load(Ordering::Relaxed);
        let new = std::mem::replace(&mut self.bytes, bytes);
        // The rest of a second, at the end of a phase, counts towards the phase only.
        if elapsed >= Duration::from_millis(900) {
            say(&Message::Second { bytes: bytes - new, latency: latency(&all) }.to_string());
        }
    }
}

fn latency(histogram: &Histogram<u64>) -> Latency {
    Latency {
        appends: histogram.len(),
        p50: histogram.value_at_quantile(0.5),
        p999: histogram.value_at_quantile(0.999),
        max: histogram.max(),
    }
}
