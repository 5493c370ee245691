//! A real PostgreSQL writes in the leader's directory, and another one recovers from each copy, as it would from the disk of a machine that lost its power.
#![allow(missing_docs)]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Signal, geteuid};
use support::processes::{Process, Stage, find, run, wait_same};
use support::wait_until;

/// Who it runs as where we are root, whom it refuses.
const USER: u32 = 65534;

/// A program of the newest version there is.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.map(|version| version.path().join("bin").join(name)).filter(|program| program.exists()).max();
    newest.unwrap_or_else(|| find(name, "postgresql"))
}

/// What runs one of them.
fn command(name: &str, args: &[&str]) -> Vec<String> {
    let mut command = Vec::new();
    if geteuid().is_root() {
        let (user, group) = (format!("--reuid={USER}"), format!("--regid={USER}"));
        command = [find("setpriv", "util-linux").to_str().unwrap(), &user, &group, "--clear-groups"]
            .map(str::to_owned)
            .into();
    }
    command.push(program(name).to_str().unwrap().to_owned());
    command.extend(args.iter().map(|arg| (*arg).to_owned()));
    command
}

fn run_to_end(name: &str, args: &[&str]) -> String {
    let command = command(name, args);
    run(Command::new(&command[0]).args(&command[1..]).current_dir("/"))
}

/// A server on a directory, without a network.
struct Server {
    process: Process,
    sockets: String,
}

impl Server {
    fn start(stage: &Stage, name: &str, dir: &Path) -> Self {
        let sockets = stage.folder(&format!("{name}-sockets"));
        fs::set_permissions(&sockets, Permissions::from_mode(0o777)).unwrap();
        let sockets = sockets.to_str().unwrap().to_owned();
        // Checkpoints, and files of its log that are used again, within seconds.
        let settings = ["-c", "listen_addresses=", "-c", "max_wal_size=64MB", "-c", "wal_segment_size=16MB"];
        let args = [&["-D", dir.to_str().unwrap(), "-k", &sockets], &settings[..4]].concat();
        let command = command("postgres", &args);
        let server = Self { process: stage.start(name, &command[0], &command[1..]), sockets };
        let log = stage.path(&format!("{name}.log"));
        wait_until("the server accepts connections", || {
            fs::read_to_string(&log).is_ok_and(|log| log.contains("ready to accept connections"))
        });
        server
    }

    fn asked(&self, question: &str) -> String {
        run_to_end("psql", &["-h", &self.sockets, "-U", "tests", "-d", "postgres", "-Atc", question])
    }

    /// What the benchmark has left.
    fn figures(&self) -> String {
        self.asked(
            "SELECT count(*), sum(abalance) FROM pgbench_accounts; SELECT sum(bbalance) FROM pgbench_branches; \
             SELECT sum(tbalance) FROM pgbench_tellers; SELECT count(*), sum(delta) FROM pgbench_history",
        )
    }

    fn benchmark(&self, stage: &Stage, seconds: &str) -> Process {
        let args = ["-h", &self.sockets, "-U", "tests", "-n", "-c", "4", "-T", seconds, "postgres"];
        let command = command("pgbench", &args);
        stage.start("pgbench", &command[0], &command[1..])
    }

    /// Orderly, with a checkpoint.
    fn stop(mut self) {
        self.process.signal(Signal::INT);
        self.process.wait();
    }
}

fn give_away(path: &Path) {
    if !geteuid().is_root() {
        return;
    }
    lchown(path, Some(USER), Some(USER)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).unwrap().for_each(|entry| give_away(&entry.unwrap().path()));
    }
}

#[test]
fn from_each_copy_of_a_database_that_was_running_another_one_starts() {
    support::begin();
    let stage = Stage::new();
    fs::set_permissions(stage.path("."), Permissions::from_mode(0o711)).unwrap();
    let dir = stage.folder("data");
    give_away(&dir);
    let at = dir.to_str().unwrap();
    run_to_end("initdb", &["-D", at, "-U", "tests", "-A", "trust", "--data-checksums", "--no-sync"]);
    let leader = stage.leader(&dir, &[]);
    let mut followers = vec![stage.follower("first", leader.address)];
    let server = Server::start(&stage, "original", &dir);
    run_to_end("pgbench", &["-h", &server.sockets, "-U", "tests", "-q", "-i", "-s", "2", "postgres"]);
    let mut benchmark = server.benchmark(&stage, "6");
    // One joins under load.
    followers.push(stage.follower("second", leader.address));
    benchmark.wait();
    let figures = server.figures();
    for (number, follower) in followers.into_iter().enumerate() {
        wait_same(&dir, &follower.dir);
        let copy = follower.dir.clone();
        drop(follower);
        // It says who runs on the original.
        fs::remove_file(copy.join("postmaster.pid")).unwrap();
        give_away(&copy);
        let restored = Server::start(&stage, &format!("restored{number}"), &copy);
        assert_eq!(restored.figures(), figures);
        restored.stop();
        run_to_end("pg_checksums", &["--check", "-D", copy.to_str().unwrap()]);
    }
    server.stop();
}
