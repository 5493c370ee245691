//! Runs histories of the real code in a simulated world, from seeds.
//!
//! ```text
//! cargo run --release --features simulate --bin simulate -- [--seconds S | --histories N] [--from SEED] [--jobs J]
//! cargo run --release --features simulate --bin simulate -- --seed N [--trace] [--without 1,4]
//! ```
//!
//! Without `--seed` it runs fresh ones, in as many processes as there are cores, shrinks each that fails, and ends with a line
//! `N histories, M failed`; exit code 1 if any did. A process runs a few dozen of them and is replaced then: the threads of killed
//! simulated processes stay until it ends.

mod coordinator;
mod history;
mod host;
mod machine;
mod model;
mod plan;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::panic::Location;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use paceline::sys::world::{self, Outcome, Settings, What};

use crate::plan::Plan;

/// Histories a process runs before another takes its place.
const HISTORIES_A_PROCESS: u64 = 24;
/// A history that takes longer, in real time, hangs.
const REAL_TIME_MAX: Duration = Duration::from_secs(60);

struct Options {
    seed: Option<u64>,
    seconds: Option<u64>,
    histories: Option<u64>,
    from: Option<u64>,
    jobs: usize,
    trace: bool,
    without: BTreeSet<usize>,
    worker: bool,
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("simulate: {error}; see the head of src/bin/simulate/main.rs for the options");
            return ExitCode::from(2);
        }
    };
    world::judge_blocking(may_block);
    log::set_logger(&TRACE).expect("the first");
    log::set_max_level(log::LevelFilter::Debug);
    std::panic::set_hook(Box::new(|panic| {
        if world::is_inside() {
            world::current().trace(|| format!("PANIC {panic}"));
            world::current().note_panic(panic.to_string());
        } else {
            eprintln!("{panic}");
        }
    }));
    match (options.worker, options.seed) {
        (true, _) => work(&options),
        (_, Some(seed)) => replay(seed, &options),
        _ => run_many(&options),
    }
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        seed: None,
        seconds: None,
        histories: None,
        from: None,
        jobs: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        trace: false,
        without: BTreeSet::new(),
        worker: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text} is no number"));
        match arg.as_str() {
            "--seed" => options.seed = Some(number(value()?)?),
            "--seconds" => options.seconds = Some(number(value()?)?),
            "--histories" => options.histories = Some(number(value()?)?),
            "--from" => options.from = Some(number(value()?)?),
            "--jobs" => options.jobs = usize::try_from(number(value()?)?.max(1)).unwrap_or(1),
            "--trace" => options.trace = true,
            "--without" => {
                for text in value()?.split(',') {
                    options.without.insert(usize::try_from(number(text.to_owned())?).unwrap_or(usize::MAX));
                }
            }
            "--worker" => options.worker = true,
            other => return Err(format!("{other} is no option")),
        }
    }
    Ok(options)
}

fn run_one(plan: &Plan, trace: bool) -> Outcome {
    let settings = Settings { seed: plan.seed, policy: plan.policy.clone(), trace };
    let plan = plan.clone();
    world::run(settings, move || history::run(plan))
}

/// One seed, with all there is to say.
fn replay(seed: u64, options: &Options) -> ExitCode {
    let plan = Plan::new(seed).without(&options.without);
    println!("{plan}");
    for (at, event) in plan.events.iter().enumerate() {
        println!("  {at}: {event}");
    }
    let outcome = run_one(&plan, options.trace);
    let mut out = std::io::stdout().lock();
    for line in &outcome.trace {
        if writeln!(out, "{line}").is_err() {
            break;
        }
    }
    println!(
        "{} steps, {:.3} s of virtual time, digest {:016x}",
        outcome.steps,
        outcome.time.as_secs_f64(),
        outcome.digest
    );
    end(1, u64::from(outcome.failure.is_some()), outcome.failure.as_deref())
}

fn end(histories: u64, failed: u64, failure: Option<&str>) -> ExitCode {
    if let Some(failure) = failure {
        println!("FAILED: {failure}");
    }
    println!("{histories} histories, {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

/// A process of many: seeds come in by lines, and a line goes out for each.
fn work(_: &Options) -> ExitCode {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let Ok(seed) = line.trim().parse() else { return ExitCode::from(2) };
        let outcome = run_one(&Plan::new(seed), false);
        match outcome.failure {
            None => println!("ok {seed} {} {}", outcome.steps, outcome.time.as_millis()),
            Some(failure) => println!("failed {seed} {}", failure.replace('\n', " ")),
        }
    }
    ExitCode::SUCCESS
}

fn run_many(options: &Options) -> ExitCode {
    let began = Instant::now();
    let seconds = options.seconds.or(options.histories.is_none().then_some(60));
    let first = options.from.unwrap_or_else(|| {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |since| since.as_secs() * 1_000_000)
    });
    println!("seeds from {first} on");
    let next = AtomicU64::new(first);
    let (ran, steps) = (AtomicU64::new(0), AtomicU64::new(0));
    let failures = Mutex::new(Vec::new());
    let is_over = || {
        let taken = next.load(Ordering::Relaxed) - first;
        seconds.is_some_and(|seconds| began.elapsed() >= Duration::from_secs(seconds))
            || options.histories.is_some_and(|histories| taken >= histories)
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                while !is_over() {
                    let batch = || next.fetch_add(1, Ordering::Relaxed);
                    run_batch(batch, &is_over, &|seed, line| {
                        ran.fetch_add(1, Ordering::Relaxed);
                        match line.split_once(' ') {
                            Some(("ok", rest)) => {
                                let of = rest.split(' ').nth(1).and_then(|steps| steps.parse().ok()).unwrap_or(0);
                                steps.fetch_add(of, Ordering::Relaxed);
                            }
                            _ => {
                                let failure = line.splitn(3, ' ').nth(2).unwrap_or(line).to_owned();
                                println!("seed {seed}: {failure}");
                                failures.lock().expect("no panic").push((seed, failure));
                            }
                        }
                        if std::io::stdout().is_terminal() {
                            print!("\r{} histories ", ran.load(Ordering::Relaxed));
                            let _ = std::io::stdout().flush();
                        }
                    });
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic");
    for (seed, failure) in failures.iter().take(5) {
        shrink(*seed, failure);
    }
    let (ran, steps) = (ran.into_inner(), steps.into_inner());
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    println!("{:.0} histories a minute, {} steps in each on average", ran as f64 / minutes, steps / ran.max(1));
    end(ran, failures.len() as u64, None)
}

/// Runs some histories in a process of their own, and tells of each.
fn run_batch(next: impl Fn() -> u64, is_over: &dyn Fn() -> bool, tell: &dyn Fn(u64, &str)) {
    let exe = std::env::current_exe().expect("a program knows where it is");
    let child = Command::new(exe).arg("--worker").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("a process is to be had");
    let (mut to, from) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let (answers, answered) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                if answers.send(line).is_err() {
                    break;
                }
            }
        });
        for _ in 0..HISTORIES_A_PROCESS {
            if is_over() {
                break;
            }
            let seed = next();
            if writeln!(to, "{seed}").is_err() {
                tell(seed, &format!("failed {seed} the process ended"));
                break;
            }
            match answered.recv_timeout(REAL_TIME_MAX) {
                Ok(line) => tell(seed, &line),
                Err(error) => {
                    tell(seed, &format!("failed {seed} no answer ({error}): it hangs, or its process ended"));
                    break;
                }
            }
        }
        drop(to);
        let _ = child.kill();
        let _ = child.wait();
    });
}

/// Leaves out what does not matter to a failure, one event after the other, and says what is left.
fn shrink(seed: u64, failure: &str) {
    let whole = Plan::new(seed);
    let mut left_out = BTreeSet::new();
    for at in 0..whole.events.len() {
        left_out.insert(at);
        if run_one(&whole.without(&left_out), false).failure.is_none() {
            left_out.remove(&at);
        }
    }
    let plan = whole.without(&left_out);
    let without: Vec<String> = left_out.iter().map(ToString::to_string).collect();
    let option = if without.is_empty() { String::new() } else { format!(" --without {}", without.join(",")) };
    println!("--seed {seed}{option}: {failure}");
    println!("  {plan}");
    for event in &plan.events {
        println!("  {event}");
    }
}

/// P3 and I6: no lock is held at a blocking call. A disk is the exception: a file's own locks are held while it is written, but never
/// the ordering lock.
fn may_block(what: What, _: &'static Location<'static>, held: &[&'static Location<'static>]) -> bool {
    what == What::Disk && !held.iter().any(|held| held.file().starts_with("src/leader/stream"))
}

struct Trace;

static TRACE: Trace = Trace;

impl log::Log for Trace {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        world::is_inside()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !world::is_inside() {
            return;
        }
        world::current().trace(|| format!("{} {}", record.level(), record.args()));
        if let [first, ..] = world::held_locks()[..] {
            world::current()
                .fail(format!("I6: \"{}\" is logged with a lock held that was taken at {first}", record.args()));
        }
    }

    fn flush(&self) {}
}
