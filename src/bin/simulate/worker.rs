//! Processes that run histories: threads of killed simulated processes stay until the real process ends, so each runs a few dozen.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::plan::Plan;

/// Histories a process runs before another takes its place.
pub(crate) const HISTORIES_A_PROCESS: u64 = 24;
/// A history that takes longer, in real time, hangs.
const REAL_TIME_MAX: Duration = Duration::from_secs(120);

/// What came of a history.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) failure: Option<String>,
    pub(crate) digest: u64,
    pub(crate) steps: u64,
}

impl Answer {
    /// What a failure begins with: which promise, or what kind of thing.
    pub(crate) fn class(&self) -> Option<&str> {
        self.failure.as_deref().map(|failure| failure.split([':', ' ']).next().unwrap_or_default())
    }
}

/// One such process.
pub(crate) struct Worker {
    child: Child,
    to: ChildStdin,
    answers: Receiver<String>,
    /// Nothing more is to be had of it.
    pub(crate) is_over: bool,
}

impl Worker {
    /// On the core of that number among those there are, so that threads that hand on the token do not move; with a fault put back.
    pub(crate) fn start(core: usize, fault: Option<&str>) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a program knows where it is"));
        command.arg("--worker").arg(core.to_string());
        if let Some(fault) = fault {
            command.args(["--fault", fault]);
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("a process is to be had");
        let (to, from) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let (told, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                if told.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, to, answers, is_over: false }
    }

    pub(crate) fn ask(&mut self, plan: &Plan) -> Answer {
        let asked = writeln!(self.to, "{plan}");
        let answer = self.answers.recv_timeout(REAL_TIME_MAX);
        let failure = match (asked, answer.as_deref().map(parse)) {
            (Ok(()), Ok(Some(answer))) => return answer,
            (_, Ok(_)) => "no answer that is one".to_owned(),
            (_, Err(error)) => format!("no answer ({error}): it hangs, or its process ended"),
        };
        self.is_over = true;
        Answer { failure: Some(failure), ..Answer::default() }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Digest, steps, and what failed, if anything did.
fn parse(line: &str) -> Option<Answer> {
    let mut words = line.splitn(3, ' ');
    let digest = u64::from_str_radix(words.next()?, 16).ok()?;
    let steps = words.next()?.parse().ok()?;
    let failure = words.next().filter(|failure| !failure.is_empty()).map(str::to_owned);
    Some(Answer { failure, digest, steps })
}

/// The process itself: plans come in by lines, and a line goes out for each.
pub(crate) fn work(core: usize) -> ExitCode {
    pin(core);
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let plan: Plan = match line.parse() {
            Ok(plan) => plan,
            Err(error) => {
                eprintln!("simulate: {error}");
                return ExitCode::from(2);
            }
        };
        let outcome = crate::run_one(&plan, false);
        let failure = outcome.failure.unwrap_or_default().replace('\n', " ");
        println!("{:016x} {} {failure}", outcome.digest, outcome.steps);
    }
    ExitCode::SUCCESS
}

fn pin(core: usize) {
    let Ok(may) = sched_getaffinity(None) else { return };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| may.is_set(*core)).collect();
    let mut set = CpuSet::new();
    set.set(cores[core % cores.len()]);
    // Without it, it is slower and nothing else.
    let _ = sched_setaffinity(None, &set);
}
