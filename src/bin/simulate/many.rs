//! Many histories: those that were kept, fresh ones, and those with a fault put back.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Options;
use crate::plan::Plan;
use crate::worker::{Answer, HISTORIES_A_PROCESS, Worker};

/// Plans that failed once, each with what it found.
const KEPT: &str = include_str!("kept.txt");

/// In every second process, the history that comes as the twentieth is run once more, as the first of another.
const RUN_TWICE: u64 = 20;

/// Of so many that failed, the first are shrunk.
const SHRUNK_MAX: usize = 5;

struct Many<'a> {
    options: &'a Options,
    began: Instant,
    ran: AtomicU64,
    steps: AtomicU64,
    processes: AtomicU64,
    failed: Mutex<Vec<(Plan, Answer)>>,
    enough: AtomicBool,
}

/// The histories that were kept, if asked for, and fresh ones.
pub(crate) fn run(options: &Options) -> ExitCode {
    let kept = if options.kept { kept() } else { Vec::new() };
    let first = options.from.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |since| since.as_secs() * 1_000_000)
    });
    let only_kept = options.kept && options.seconds.is_none() && options.histories.is_none();
    let histories = options.histories.or(only_kept.then_some(0)).unwrap_or(u64::MAX);
    let seconds = options.seconds.or((histories == u64::MAX).then_some(60)).unwrap_or(u64::MAX);
    if histories > 0 {
        println!("{} kept, then seeds from {first} on", kept.len());
    }
    let many = Many {
        options,
        began: Instant::now(),
        ran: AtomicU64::new(0),
        steps: AtomicU64::new(0),
        processes: AtomicU64::new(0),
        failed: Mutex::default(),
        enough: AtomicBool::new(false),
    };
    let next = AtomicU64::new(0);
    let plans = || {
        let at = next.fetch_add(1, Ordering::Relaxed);
        if let Some(plan) = kept.get(usize::try_from(at).unwrap_or(usize::MAX)) {
            return Some(plan.clone());
        }
        let fresh = at - kept.len() as u64;
        let is_over = fresh >= histories
            || many.began.elapsed() >= Duration::from_secs(seconds)
            || many.enough.load(Ordering::Relaxed);
        (!is_over).then(|| Plan::new(first + fresh))
    };
    let plans: &(dyn Fn() -> Option<Plan> + Sync) = &plans;
    std::thread::scope(|scope| {
        for core in 0..options.jobs {
            let many = &many;
            scope.spawn(move || while many.run_process(core, plans) {});
        }
    });
    many.end()
}

fn kept() -> Vec<Plan> {
    let lines =
        KEPT.lines().map(|line| line.split('#').next().unwrap_or_default()).filter(|line| !line.trim().is_empty());
    lines.map(|line| line.parse().unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

impl Many<'_> {
    /// Runs some in a process of their own; `false` when there are no more.
    fn run_process(&self, core: usize, plans: &dyn Fn() -> Option<Plan>) -> bool {
        let fault = self.options.fault.as_deref();
        let is_compared = self.processes.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        let mut worker = Worker::start(core, fault);
        for at in 0..HISTORIES_A_PROCESS {
            let Some(plan) = plans() else { return false };
            let mut answer = worker.ask(&plan);
            let ran = self.ran.fetch_add(1, Ordering::Relaxed) + 1;
            self.steps.fetch_add(answer.steps, Ordering::Relaxed);
            if is_compared && at == RUN_TWICE && answer.failure.is_none() {
                let alone = Worker::start(core, fault).ask(&plan);
                if (alone.digest, alone.steps) != (answer.digest, answer.steps) {
                    answer.failure = Some(format!("not deterministic: {} and {} steps", answer.steps, alone.steps));
                }
            }
            if std::io::stdout().is_terminal() {
                print!("\r{ran} histories ");
                let _ = std::io::stdout().flush();
            }
            if answer.failure.is_some() {
                self.failed(core, plan, answer);
            }
            if worker.is_over {
                break;
            }
        }
        true
    }

    fn failed(&self, core: usize, plan: Plan, answer: Answer) {
        // What fails without the fault is not found by it, nor is it by a process that a busy machine let wait for too long.
        let is_found =
            self.options.fault.is_some() && answer.steps > 0 && Worker::start(core, None).ask(&plan).failure.is_none();
        if self.options.fault.is_some() {
            if !is_found || self.enough.swap(true, Ordering::Relaxed) {
                return;
            }
            let (ran, seconds) = (self.ran.load(Ordering::Relaxed), self.began.elapsed().as_secs());
            println!("found\t{ran}\t{seconds}\t{}", answer.failure.as_deref().unwrap_or_default());
            println!("by\t{plan}");
        } else {
            println!("{plan}\n  {}", answer.failure.as_deref().unwrap_or_default());
        }
        self.failed.lock().expect("no panic").push((plan, answer));
    }

    fn end(self) -> ExitCode {
        let failed = self.failed.into_inner().expect("no panic");
        let (ran, steps) = (self.ran.into_inner(), self.steps.into_inner());
        let minutes = self.began.elapsed().as_secs_f64() / 60.0;
        // That a fault is found is all there is to know of one that was put there.
        for (plan, answer) in failed.iter().take(if self.options.fault.is_none() { SHRUNK_MAX } else { 0 }) {
            shrink(plan, answer);
        }
        println!("{:.0} histories a minute, {} steps in each on average", ran as f64 / minutes, steps / ran.max(1));
        if self.options.fault.is_some() {
            return ExitCode::from(u8::from(failed.is_empty()));
        }
        crate::end(ran, failed.len() as u64, None)
    }
}

/// Leaves out and makes smaller what does not matter to a failure, one after the other, and says what is left.
fn shrink(plan: &Plan, answer: &Answer) {
    let (mut plan, mut answer) = (plan.clone(), answer.clone());
    'smaller: loop {
        for smaller in plan.smaller() {
            let its = Worker::start(0, None).ask(&smaller);
            if its.class() == answer.class() {
                (plan, answer) = (smaller, its);
                continue 'smaller;
            }
        }
        break;
    }
    println!("shrunk, to be run with --plan:\n{plan} # {}", answer.failure.unwrap_or_default());
}
