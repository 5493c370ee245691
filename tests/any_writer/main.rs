//! Programs that write to a watched directory in every way that Linux has, and its copies: at rest they are equal. See `writers.c` for what each of them does.
#![allow(missing_docs)]

#[path = "../support/mod.rs"]
mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use support::processes::{Process, Stage, find};
use support::tree::wait_same_tree;
use support::wait_until;

/// What the system tells of, under the name that is replicated.
const HEARD: [&str; 13] = [
    "pages",
    "header",
    "ring",
    "preallocated",
    "holes",
    "ranges",
    "truncates",
    "times",
    "copies",
    "exchanges",
    "appenders",
    "replaces",
    "folders",
];

/// What it says nothing of: those are found by looking at all files in turn.
const UNHEARD: [&str; 6] = ["mmap-synced", "mmap-unsynced", "aio", "linked", "twins", "unnamed"];

/// What a writer ends with where the file system does not have what it does.
const NOT_SUPPORTED: i32 = 77;

/// The program, built when it is first needed.
fn writers() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let at = folder.join(format!("writers.{}", std::process::id()));
        let mut cc = Command::new(find("cc", "gcc libc6-dev"));
        cc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-x", "c", "-", "-o"]).arg(&at).stdin(Stdio::piped());
        let mut cc = cc.spawn().unwrap();
        cc.stdin.take().unwrap().write_all(include_bytes!("writers.c")).unwrap();
        assert!(cc.wait().unwrap().success(), "writers.c does not compile");
        at
    })
}

/// All of these write at once to one directory, and again after a pause; one copy follows from the beginning, one joins in between.
fn write_all(names: &[&str], seed: u64) {
    support::begin();
    let stage = Stage::new();
    // Not in the system's folder for that, which may be in memory: there mapped pages leave no trace.
    let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = data.path();
    let mut leader = stage.leader(dir, &[]);
    let mut followers = vec![stage.follower("first", leader.address)];
    leader.wait_joined(1);
    for round in 0..2 {
        let seed = (seed + round).to_string();
        let start = |name: &&str| stage.start(name, writers(), [name, dir.to_str().unwrap(), &seed]);
        let mut running: Vec<Process> = names.iter().map(start).collect();
        if round == 0 {
            followers.push(stage.follower("second", leader.address));
        }
        for (process, name) in running.iter_mut().zip(names) {
            wait_until(&format!("{name} ends"), || process.has_ended());
            match process.wait().code() {
                Some(0) => {}
                Some(NOT_SUPPORTED) => eprintln!("{name}: the file system does not have that: {}", process.log()),
                status => panic!("{name} ended with {status:?}: {}", process.log()),
            }
        }
        leader.wait_copies(&followers);
    }
    leader.end(&mut followers);
}

#[test]
fn copies_are_exact_however_files_are_written() {
    write_all(&HEARD, 1);
}

#[test]
fn copies_are_exact_where_nothing_tells_of_what_is_written() {
    write_all(&UNHEARD, 2);
}

/// How many storms, if other than a few: `STORMS=1000 cargo test --test any_writer storm`.
const STORMS: &str = "STORMS";

#[test]
fn copies_have_everything_after_each_storm_of_random_operations() {
    support::begin();
    let storms = std::env::var(STORMS).map_or(3, |storms| storms.parse().expect("a number of storms"));
    let stage = Stage::new();
    let dir = stage.folder("data");
    let leader = stage.leader(&dir, &[]);
    let mut followers = vec![stage.follower("first", leader.address)];
    for seed in 0..storms {
        let start = |process: u64| {
            let seed = (1000 * seed + process).to_string();
            stage.start("storm", writers(), ["storm", dir.to_str().unwrap(), &seed])
        };
        let mut running: Vec<Process> = (0..3).map(start).collect();
        // One follows from the beginning, the other joins in each storm.
        followers.truncate(1);
        followers.push(stage.follower("second", leader.address));
        running.iter_mut().for_each(|process| assert!(process.wait().success(), "{}", process.log()));
        let copies: Vec<_> = followers.iter().map(|follower| &*follower.dir).collect();
        wait_same_tree(&dir, &copies, &format!("storm {seed}"));
    }
}
