//! Stores of other programs in a watched directory, each written by the program itself, and its copy, checked by the program itself: an LSM tree that uses its logs again, a tree in a mapped file,
//! a cluster's store, a version control system. (`postgres.rs`, `sqlite.rs` and `redis.rs` are about theirs.)
#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::etcd::Etcd;
use support::processes::{FollowerProcess, LeaderProcess, Stage, find, run, wait_same};

/// A directory, its leader, and its copy from the beginning; another joins at [`joined`](Self::joined).
struct Scene {
    leader: LeaderProcess,
    followers: Vec<FollowerProcess>,
    /// Last, so that it goes last: the processes' logs are in it.
    stage: Stage,
}

impl Scene {
    fn begin() -> Self {
        let stage = Stage::new();
        let dir = stage.folder("data");
        let leader = stage.leader(&dir, &[]);
        let followers = vec![stage.follower("first", leader.address)];
        Self { leader, followers, stage }
    }

    fn joined(&mut self) {
        self.followers.push(self.stage.follower("second", self.leader.address));
    }

    /// What each copy shows at rest is what the original shows.
    #[track_caller]
    fn show_the_same(self, shows: impl Fn(&Path) -> String) {
        let shown = shows(&self.leader.dir);
        assert!(!shown.is_empty());
        for follower in self.followers {
            wait_same(&self.leader.dir, &follower.dir);
            let copy = follower.dir.clone();
            drop(follower);
            assert!(shows(&copy) == shown, "{} shows something else", copy.display());
        }
    }
}

#[test]
fn an_lsm_tree_that_recycles_its_logs() {
    support::begin();
    let mut scene = Scene::begin();
    let at = scene.leader.dir.join("rocks");
    let options = scene.stage.path("options");
    let settings = "[Version]\nrocksdb_version=7.8.3\noptions_file_version=1.1\n[DBOptions]\ncreate_if_missing=true\n\
                    recycle_log_file_num=4\nmax_total_wal_size=1048576\n[CFOptions \"default\"]\nwrite_buffer_size=262144\n\
                    [TableOptions/BlockBasedTable \"default\"]\n";
    fs::write(&options, settings).unwrap();
    let bench = |benchmarks: &str, again: bool| {
        let mut bench = Command::new(find("db_bench", "rocksdb-tools"));
        bench.arg(format!("--db={}", at.display())).arg(format!("--options_file={}", options.display()));
        bench.args([&format!("--benchmarks={benchmarks}"), "--num=20000", "--threads=2", "--seed=7"]);
        run(bench.arg(format!("--use_existing_db={again}")))
    };
    bench("fillrandom", false);
    scene.joined();
    bench("overwrite,deleterandom,compact", true);
    bench("overwrite", true);
    scene.show_the_same(|dir| {
        let db = format!("--db={}", dir.join("rocks").display());
        // What is not in a table yet is read from the log. Nothing is written.
        let checked = run(Command::new(find("ldb", "rocksdb-tools")).args([&db, "checkconsistency"]));
        assert!(checked.starts_with("OK"), "{checked}");
        run(Command::new(find("ldb", "rocksdb-tools")).args([&db, "scan", "--hex"]))
    });
}

#[test]
fn a_tree_in_a_mapped_file() {
    support::begin();
    let mut scene = Scene::begin();
    let at = scene.leader.dir.join("lmdb");
    fs::create_dir(&at).unwrap();
    for round in 0..4 {
        let mut dump = String::from("VERSION=3\nformat=print\ntype=btree\nmapsize=67108864\nHEADER=END\n");
        for key in (0..2000).map(|key| key * 7 % 2003) {
            dump.push_str(&format!(" key{key:05}\n value {round} of {key}\n"));
        }
        dump.push_str("DATA=END\n");
        let from = scene.stage.path("dump");
        fs::write(&from, dump).unwrap();
        run(Command::new(find("mdb_load", "lmdb-utils")).arg("-f").arg(&from).arg(&at));
        if round == 1 {
            scene.joined();
        }
    }
    scene.show_the_same(|dir| run(Command::new(find("mdb_dump", "lmdb-utils")).arg("-p").arg(dir.join("lmdb"))));
}

#[test]
fn a_version_control_system() {
    support::begin();
    let mut scene = Scene::begin();
    let at = scene.leader.dir.join("work");
    fs::create_dir(&at).unwrap();
    let git = |at: &Path, args: &[&str]| {
        let settings = ["user.name=tests", "user.email=tests@localhost", "gc.auto=0", "commit.gpgsign=false"];
        let settings = settings.iter().flat_map(|setting| ["-c", setting]);
        run(Command::new(find("git", "git")).current_dir(at).env("HOME", at).args(settings).args(args))
    };
    git(&at, &["init", "-q"]);
    for round in 0..20 {
        fs::create_dir_all(at.join(format!("folder{}", round % 3))).unwrap();
        fs::write(at.join(format!("folder{}/file{round}", round % 3)), support::noise(1000 * (round + 1))).unwrap();
        fs::write(at.join("always"), format!("{round}")).unwrap();
        git(&at, &["add", "-A"]);
        git(&at, &["commit", "-q", "-m", &format!("round {round}")]);
        if round == 10 {
            scene.joined();
            git(&at, &["gc", "-q"]);
        }
    }
    git(&at, &["checkout", "-q", "-b", "branch", "HEAD~5"]);
    git(&at, &["checkout", "-q", "-"]);
    scene.show_the_same(|dir| {
        let at = dir.join("work");
        git(&at, &["fsck", "--full", "--strict"]);
        assert_eq!(git(&at, &["status", "--porcelain"]), "");
        git(&at, &["log", "--format=%H %s"]) + &git(&at, &["branch", "-v"])
    });
}

#[test]
fn a_clusters_store() {
    support::begin();
    let mut etcd = Etcd::start();
    let is_its = |name: &str| name.starts_with("etcd") && !name.ends_with(".log");
    let names =
        fs::read_dir(etcd.stage.path(".")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let dir = etcd.stage.path(&names.filter(|name| is_its(name)).max().unwrap());
    let leader = etcd.stage.leader(&dir, &[]);
    let follower = etcd.stage.follower("copy", leader.address);
    for key in 0..300 {
        etcd.put(&format!("key{key:03}"), &format!("value {key}"));
    }
    let kept = etcd.get("key");
    assert_eq!(kept.len(), 300);
    wait_same(&dir, &follower.dir);
    let copy = follower.dir.clone();
    drop((follower, leader));
    etcd.kill(0);
    fs::remove_dir_all(&dir).unwrap();
    fs::rename(copy, &dir).unwrap();
    etcd.restart(0);
    assert_eq!(etcd.get("key"), kept);
}
