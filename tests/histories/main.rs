//! Random histories of a leader and a follower with real files, processes and connections, against a model.
//!
//! ```text
//! cargo test --release --test histories -- --for 10m     # or 90s, 1h
//! cargo test --release --test histories -- --seed 7      # that history again; with --for, again and again
//! ```
//!
//! Two directories, one of which leads; each is a process of its own (`machine.rs`: this program started anew, which embeds a `Leader` or a
//! `Follower`). In a history (`history.rs`) the host, two threads of the leader's process, appends, replaces by a rename and in place, renames, cuts, deletes and commits,
//! and announces at once or a while after the files have changed. In the midst of that either process is killed or ends, or both, or the connection is lost, or held up until a follower with a
//! small queue is demoted; or who followed leads from its copy, and who led, perhaps with more than it ever sent, follows. Meanwhile the host goes on, or files are changed while nobody leads.
//!
//! Checked at rest: the leader's files and the copy are what the host made them, name for name, byte for byte; no more moved than was missed and announced, plus what `moved.rs`
//! derives; and what a change of the leader took away is in `.paceline/kept`. Checked of a copy whose connection was lost, if it is not marked as incomplete: each file is a state that it was in, not older
//! than what a commit confirmed.
//!
//! A seed says what is planned, not how threads take turns: a history that failed may have to be repeated to fail again. Without options a hundred fresh histories run, which takes
//! some 25 s on two cores.
#![allow(missing_docs, unreachable_pub)]

mod history;
mod host;
mod machine;
mod model;
mod moved;
mod plan;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use self::history::Tally;

/// How many run if nothing else is said.
const HISTORIES: u64 = 100;
/// So many run at once: most of the time they wait.
const AT_ONCE: usize = 8;
/// Beyond it, fresh ones are of no use.
const FAILURES_MAX: u64 = 5;

#[derive(Default)]
struct Options {
    lasts: Option<Duration>,
    seed: Option<u64>,
    /// Other tests are meant.
    is_left_out: bool,
}

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == machine::LEAD || first == machine::FOLLOW) {
        machine::run(&args);
    }
    match options(&args) {
        Ok(Options { is_left_out: true, .. }) => ExitCode::SUCCESS,
        Ok(options) => run(&options),
        Err(wrong) => {
            eprintln!("histories: {wrong}; write --for 10m (or 90s, 1h), --seed NUMBER, or both");
            ExitCode::from(2)
        }
    }
}

/// Options of a test runner are no concern of ours, but for names of tests.
fn options(args: &[String]) -> Result<Options, String> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(name) = args.next() {
        match &**name {
            "--for" => {
                let value = args.next().map_or("", String::as_str);
                options.lasts = Some(duration(value).ok_or(format!("--for is {value}"))?);
            }
            "--seed" => {
                let value = args.next().map_or("", String::as_str);
                options.seed = Some(value.parse().map_err(|_| format!("--seed is {value}"))?);
            }
            "--test-threads" | "--skip" | "--format" | "--color" | "--logfile" => drop(args.next()),
            "--list" | "--ignored" => options.is_left_out = true,
            name if !name.starts_with('-') => options.is_left_out |= !"histories".contains(name),
            _ => {}
        }
    }
    Ok(options)
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

/// What all who run histories share.
struct Shared {
    next: AtomicU64,
    failed: AtomicU64,
    done: Mutex<(u64, Tally)>,
}

fn run(options: &Options) -> ExitCode {
    let begun = Instant::now();
    let first = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    let most = match (options.lasts, options.seed) {
        (Some(_), _) => u64::MAX,
        (None, Some(_)) => 1,
        (None, None) => HISTORIES,
    };
    let shared = Shared { next: AtomicU64::new(0), failed: AtomicU64::new(0), done: Mutex::default() };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = shared.next.fetch_add(1, Ordering::Relaxed);
                    let is_over = options.lasts.is_some_and(|lasts| begun.elapsed() > lasts);
                    if number >= most || is_over || shared.failed.load(Ordering::Relaxed) >= FAILURES_MAX {
                        break;
                    }
                    one(if options.seed.is_some() { first } else { first + number }, &shared);
                }
            });
        }
    });
    let (done, tally) = *shared.done.lock();
    let failed = shared.failed.into_inner();
    println!("{tally:?}");
    println!("{done} histories in {:.1} s from seed {first}, {failed} failed", begun.elapsed().as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(seed: u64, shared: &Shared) {
    let place = tempfile::tempdir().unwrap();
    let outcome = history::run(seed, place.path());
    let mut done = shared.done.lock();
    done.0 += 1;
    match outcome {
        Ok(tally) => done.1.add(&tally),
        Err(told) => {
            shared.failed.fetch_add(1, Ordering::Relaxed);
            println!("{told}\nlogs and directories are in {}", place.keep().display());
            println!("once more: cargo test --release --test histories -- --seed {seed}\n");
        }
    }
}
