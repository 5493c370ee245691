//! The commands of a cluster as operators meet them: following whoever is elected, taking a node out of the in-sync set, and one
//! clear line for what goes wrong.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use paceline::coordinator::Coordinator;
use rustix::process::Signal;
use support::etcd::Etcd;
use support::processes::{Process, wait_same};
use support::relay::Relay;
use support::{TestLeader, wait_until};

/// A loopback address of its own for each node.
fn own_host() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let process = std::process::id().to_le_bytes();
    format!("127.{}.{}.{}", process[0].max(1), process[1], NEXT.fetch_add(1, Ordering::Relaxed))
}

fn node_args(etcd: &str, dir: &Path, host: &str) -> Vec<String> {
    let (listen, advertise) = (format!("{host}:5681"), format!("tcp://{host}:5681"));
    let args = ["node", "--data-dir", dir.to_str().unwrap(), "--listen", &listen, "--advertise", &advertise];
    args.iter().chain(&["--etcd", etcd, "--lease-ttl", "3s"]).map(|&arg| arg.to_owned()).collect()
}

fn start_node(etcd: &Etcd, name: &str, more: &[&str]) -> Process {
    let mut args = node_args(&etcd.url(0), &etcd.stage.path(name), &own_host());
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    etcd.stage.start(name, env!("CARGO_BIN_EXE_paceline"), args)
}

#[track_caller]
fn wait_says(process: &mut Process, what: &str) {
    wait_until(&format!("it says {what:?}"), || {
        assert!(!process.has_ended() || process.log().contains(what), "it ended: {}", process.log());
        process.log().contains(what)
    });
}

/// Runs to the end; returns exit code, stdout, and the last line of stderr.
fn run(args: &[String]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paceline"));
    let Output { status, stdout, stderr } = command.args(args).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), stderr.lines().last().unwrap_or_default().to_owned())
}

#[track_caller]
fn assert_fails(args: &[String], code: i32, says: &[&str]) {
    let (exit, _, error) = run(args);
    assert!(error.starts_with("paceline: error: ") && says.iter().all(|says| error.contains(says)), "{error}");
    assert_eq!(exit, Some(code), "{error}");
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

#[test]
fn a_follower_without_a_leaders_address_follows_whoever_is_elected_and_never_stands_for_election() {
    let etcd = Etcd::start();
    let mut first = start_node(&etcd, "first", &["--id", "1"]);
    wait_says(&mut first, "node 1 is leading");
    let mut second = start_node(&etcd, "second", &["--id", "2"]);
    wait_says(&mut second, "following the stream");
    let dir = etcd.stage.path("copy");
    let args = ["follow", "--etcd", &etcd.url(0), "--id", "c", "--data-dir", dir.to_str().unwrap()];
    let mut copy = etcd.stage.start("copy", env!("CARGO_BIN_EXE_paceline"), args);
    wait_says(&mut copy, "following the stream");
    fs::write(etcd.stage.path("first").join("a"), "one").unwrap();
    wait_same(&etcd.stage.path("first"), &dir);
    let campaigns = || etcd.get("lavinmq/leader/").into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    // Who follows is in the recorded set a moment later, and stands for election after that.
    wait_until("node 2 is the next", || !etcd.get("lavinmq/leader/2").is_empty());
    assert_eq!(campaigns(), ["lavinmq/leader/1", "lavinmq/leader/2"]);

    first.stop();
    wait_says(&mut second, "node 2 is leading");
    fs::write(etcd.stage.path("second").join("b"), "two").unwrap();
    wait_same(&etcd.stage.path("second"), &dir);
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "one");
    assert_eq!(campaigns(), ["lavinmq/leader/2"]);
    copy.stop();
    second.stop();
    assert!(campaigns().is_empty());
}

#[test]
fn a_copy_is_brought_up_to_date_from_whoever_is_elected_once() {
    let etcd = Etcd::start();
    let mut node = start_node(&etcd, "node", &["--id", "1"]);
    wait_says(&mut node, "node 1 is leading");
    fs::write(etcd.stage.path("node").join("a"), "one").unwrap();
    let dir = etcd.stage.path("copy");
    wait_until("the copy has the file", || {
        let (exit, out, error) =
            run(&strings(&["follow", "--once", "--etcd", &etcd.url(0), "--data-dir", dir.to_str().unwrap()]));
        assert!(exit == Some(0) && out.starts_with("synced from 127."), "{out} {error}");
        dir.join("a").exists()
    });
}

#[test]
fn a_node_is_taken_out_of_the_in_sync_set_but_not_the_last_one() {
    let etcd = Etcd::start();
    etcd.put("mine/isr", "1,2,zz");
    let forget = |id: &str| strings(&["forget", id, "--etcd", &etcd.url(0), "--etcd-prefix", "mine"]);
    let told = |id: &str| {
        let (exit, out, error) = run(&forget(id));
        assert_eq!((exit, error.as_str()), (Some(0), ""), "{out}");
        out
    };
    assert_eq!(told("2"), "2 was taken out of the in-sync set, which is now 1,zz\n");
    assert_eq!(told("2"), "2 was not in the in-sync set, which is 1,zz\n");
    told("1");
    assert_fails(&forget("zz"), 1, &["zz is the only node in the in-sync set"]);
    assert_eq!(etcd.get("mine/isr"), [("mine/isr".to_owned(), "zz".to_owned())]);
}

#[test]
fn what_is_wrong_with_the_command_line_is_said_on_one_line_without_asking_etcd() {
    let stage = support::processes::Stage::new();
    let good = node_args("127.0.0.1:1", &stage.path("data"), "127.0.0.1");
    let with = |flag: &str, value: &str| {
        let mut args = good.clone();
        match args.iter().position(|arg| arg == flag) {
            Some(at) => args[at + 1] = value.to_owned(),
            None => args.extend([flag.to_owned(), value.to_owned()]),
        }
        args
    };
    for (args, says) in [
        (with("--advertise", "tcp://0.0.0.0:5679"), &["advertise", "write tcp://HOST:PORT"][..]),
        (with("--advertise", "db1:5679"), &["advertise", "write tcp://HOST:PORT"]),
        (with("--etcd", "ftp://db1"), &["--etcd", "[http[s]://]HOST[:PORT]"]),
        (with("--etcd-prefix", "a b"), &["prefix"]),
        (with("--etcd-user", "root"), &["no password of etcd's user was given", "--etcd-password-file"]),
        (with("--lease-ttl", "1500ms"), &["lease_ttl", "whole"]),
        (with("--listen", "127.0.0.1:0"), &["listen", "port 0"]),
        (with("--etcd-password-file", "p"), &["--etcd-user"]),
        (with("--proxy", "6379"), &["--proxy", "write LISTEN=PORT"]),
        (
            with("--on-lost", "true").into_iter().chain(strings(&["--hook-timeout", "60s"])).collect(),
            &["--on-lost may take 60s", "--lease-ttl of at least 122s, or a --hook-timeout of at most 500ms"],
        ),
        (with("--on-exit", "nothing"), &["--on-exit", "hand-over"]),
        (strings(&["node", "--data-dir", "x", "--listen", "a:1", "--advertise", "tcp://a:1"]), &["give --etcd"]),
        (strings(&["follow", "--data-dir", "x"]), &["give either", "--etcd"]),
        (strings(&["follow", "a:1", "--etcd", "b", "--data-dir", "x"]), &["give either", "--etcd"]),
        (strings(&["follow", "--etcd", "b", "--data-dir", "x", "--secret-file", "s"]), &["--secret-file", "in etcd"]),
        (strings(&["forget", "1"]), &["give --etcd"]),
        (strings(&["forget", "?", "--etcd", "b"]), &["base 36"]),
    ] {
        assert_fails(&args, 2, says);
    }
    assert!(!stage.path("data").exists());
}

#[test]
fn what_a_node_cannot_have_ends_it_with_a_reason() {
    let etcd = Etcd::start();
    let mut node = start_node(&etcd, "node", &["--id", "1"]);
    wait_says(&mut node, "node 1 is leading");
    let url = etcd.url(0);
    let second = node_args(&url, &etcd.stage.path("node"), &own_host());
    assert_fails(&second, 1, &["is in use by another process", "stop that process"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let mut args = node_args(&url, &etcd.stage.path("other"), &own_host());
    args.extend(["--proxy".to_owned(), format!("{port}=7")]);
    assert_fails(&args, 1, &["--proxy", "in use", "give another port"]);
    args.truncate(args.len() - 2);
    let listen = args.iter().position(|arg| arg == "--listen").unwrap();
    args[listen + 1] = port;
    assert_fails(&args, 1, &["followers cannot be accepted at 127.0.0.1:", "in use", "give another port"]);
    // Files of nobody's are not deleted for a leader's.
    fs::write(etcd.stage.path("other").join("precious"), "").unwrap();
    fs::remove_file(etcd.stage.path("other").join(".lock")).unwrap();
    let foreign = node_args(&url, &etcd.stage.path("other"), &own_host());
    assert_fails(&foreign, 1, &["would be deleted", "--adopt"]);
    assert!(etcd.stage.path("other").join("precious").exists());
}

#[test]
fn neither_the_program_nor_its_hooks_see_what_is_set_for_the_node() {
    let etcd = Etcd::start();
    let names = ["hook", "program"];
    let [hook, program] = names.map(|name| {
        let file = etcd.stage.path(name);
        format!("env > {0}.new && mv {0}.new {0}", file.display())
    });
    let run = format!("{program}; exec sleep 1000");
    // Like all processes of a stage it has a secret in its environment.
    let mut node = start_node(&etcd, "node", &["--on-elected", &hook, "--run", &run]);
    wait_says(&mut node, "is leading");
    for name in names {
        wait_until("it shows its environment", || etcd.stage.path(name).exists());
        let shown = fs::read_to_string(etcd.stage.path(name)).unwrap();
        assert!(shown.contains("PATH=") && !shown.contains("PACELINE_"), "{name}: {shown}");
    }
    node.stop();
}

#[test]
fn a_node_where_the_program_cannot_run_hands_over_and_the_next_one_leads_with_everything() {
    let etcd = Etcd::start();
    let mut first = start_node(&etcd, "first", &["--id", "1", "--run", "exec sleep 1000"]);
    wait_says(&mut first, "node 1 is leading");
    let in_sync = |set: &str| etcd.get("lavinmq/isr").first().is_some_and(|(_, value)| value == set);
    // Not installed here.
    let mut second = start_node(&etcd, "second", &["--id", "2", "--run", "exec no-such-program"]);
    wait_until("the second is the next", || in_sync("1,2") && !etcd.get("lavinmq/leader/2").is_empty());
    let mut third = start_node(&etcd, "third", &["--id", "3", "--run", "exec sleep 1000"]);
    wait_until("all are in sync", || in_sync("1,2,3") && !etcd.get("lavinmq/leader/3").is_empty());
    fs::write(etcd.stage.path("first").join("a"), "one").unwrap();
    wait_same(&etcd.stage.path("first"), &etcd.stage.path("third"));
    first.kill();
    wait_says(&mut third, "node 3 is leading");
    wait_says(&mut second, "no-such-program");
    wait_says(&mut second, "does not stand for election for");
    assert_eq!(fs::read_to_string(etcd.stage.path("third").join("a")).unwrap(), "one");
    wait_until("the second follows", || in_sync("2,3"));
}

#[test]
fn a_lease_revoked_by_hand_never_leaves_two_programs() {
    const ROUNDS: usize = 8;
    let etcd = Etcd::start();
    let (lock, record) = (etcd.stage.path("lock"), etcd.stage.path("record"));
    // It holds the lock for as long as it lives, and says so if another one does.
    let program = format!(
        "exec 9>{}; flock --nonblock 9 || echo two at once >> {1}; echo began >> {1}; exec sleep 1000",
        lock.display(),
        record.display()
    );
    let nodes = [1, 2].map(|node| {
        let name = format!("node{node}");
        let mut process = start_node(&etcd, &name, &["--id", &node.to_string(), "--run", &program]);
        wait_says(&mut process, if node == 1 { "node 1 is leading" } else { "following the stream" });
        process
    });
    let recorded = || fs::read_to_string(&record).unwrap_or_default();
    let coordinator = etcd.coordinator();
    for round in 1..=ROUNDS {
        wait_until("the program runs", || recorded().lines().filter(|line| *line == "began").count() == round);
        // The one before is there at once, and may have more than the next one: then it leads again.
        let leader = coordinator.candidates().unwrap()[0].id.unwrap().get();
        let next = 3 - leader;
        wait_until("the other one is the next", || {
            etcd.get("lavinmq/isr").first().is_some_and(|(_, set)| set == "1,2")
                && !etcd.get(&format!("lavinmq/leader/{next}")).is_empty()
        });
        etcd.revoke(leader);
    }
    wait_until("the program runs", || recorded().lines().count() > ROUNDS);
    assert!(!recorded().contains("two at once"), "{}", recorded());
    drop(nodes);
}

#[test]
fn a_leader_records_its_set_again_whatever_somebody_else_did_to_it() {
    let etcd = Etcd::start();
    let mut first = start_node(&etcd, "first", &["--id", "1"]);
    wait_says(&mut first, "node 1 is leading");
    let _second = start_node(&etcd, "second", &["--id", "2"]);
    let recorded = || etcd.get("lavinmq/isr").first().map(|(_, set)| set.clone());
    let as_it_was = || wait_until("the set is recorded", || recorded().as_deref() == Some("1,2"));
    as_it_was();
    // A node that runs.
    assert_eq!(run(&strings(&["forget", "2", "--etcd", &etcd.url(0)])).0, Some(0));
    as_it_was();
    etcd.delete("lavinmq/isr");
    as_it_was();
    etcd.put("lavinmq/isr", "1;2");
    as_it_was();
    etcd.put("lavinmq/isr", "7");
    as_it_was();
    wait_says(&mut first, "somebody else changed the recorded in-sync set (it is 7)");
}

/// What a node said of two data sets.
fn assert_names_both(node: &Process, ours: &str, clusters: &str) {
    let log = node.log();
    let line = log.lines().rev().find(|line| line.contains("this directory holds data set")).unwrap();
    for part in [ours, clusters, &format!("--adopt={ours}"), "--found"] {
        assert!(line.contains(part), "{part} is missing: {line}");
    }
}

#[test]
fn a_node_started_with_another_clusters_prefix_wipes_nothing() {
    let etcd = Etcd::start();
    let data_set = |prefix: &str| etcd.get(&format!("{prefix}/paceline/data_set")).remove(0).1;
    let mut first = start_node(&etcd, "first", &["--id", "1"]);
    wait_says(&mut first, "node 1 is leading");
    fs::write(etcd.stage.path("first").join("a"), "one").unwrap();
    let mut other = start_node(&etcd, "other", &["--id", "2", "--etcd-prefix", "other"]);
    wait_says(&mut other, "node 2 is leading");
    let precious = etcd.stage.path("other").join("b");
    fs::write(&precious, "two").unwrap();
    other.stop();

    let mut other = start_node(&etcd, "other", &["--id", "2"]);
    wait_says(&mut other, "neither follows nor leads");
    let (ours, clusters) = (data_set("other"), data_set("lavinmq"));
    assert_names_both(&other, &ours, &clusters);
    first.stop();
    // It does not lead either, though nobody else is there.
    wait_says(&mut other, "there is no elected leader");
    assert!(etcd.get("lavinmq/leader/").is_empty());
    other.stop();
    assert_eq!((fs::read_to_string(&precious).unwrap().as_str(), data_set("lavinmq")), ("two", clusters.clone()));
    // Told to give up that data, it follows.
    let mut first = start_node(&etcd, "first", &["--id", "1"]);
    wait_until("it leads again", || first.log().matches("node 1 is leading").count() == 2 || first.has_ended());
    let adopt = format!("--adopt={ours}");
    let _other = start_node(&etcd, "other", &["--id", "2", &adopt]);
    wait_same(&etcd.stage.path("first"), &etcd.stage.path("other"));
    assert!(!precious.exists() && etcd.stage.path("first").join("a").exists());
}

#[test]
fn a_blank_node_started_first_after_etcd_lost_its_keys_wipes_nobody_and_the_data_is_made_the_clusters_again() {
    let etcd = Etcd::start();
    let data_set = || etcd.get("lavinmq/paceline/data_set").remove(0).1;
    let mut nodes = [1, 2].map(|node| {
        let mut process = start_node(&etcd, &format!("node{node}"), &["--id", &node.to_string()]);
        wait_says(&mut process, if node == 1 { "node 1 is leading" } else { "following the stream" });
        process
    });
    fs::write(etcd.stage.path("node1").join("a"), "one").unwrap();
    wait_same(&etcd.stage.path("node1"), &etcd.stage.path("node2"));
    let original = data_set();
    nodes.iter_mut().rev().for_each(Process::stop);
    for (key, _) in etcd.get("lavinmq/") {
        etcd.delete(&key);
    }

    let mut blank = start_node(&etcd, "blank", &["--id", "3"]);
    wait_says(&mut blank, "node 3 is leading");
    let mut first = start_node(&etcd, "node1", &["--id", "1"]);
    wait_says(&mut first, "neither follows nor leads");
    assert_names_both(&first, &original, &data_set());
    assert_eq!(fs::read_to_string(etcd.stage.path("node1").join("a")).unwrap(), "one");
    first.stop();
    blank.stop();

    let mut first = start_node(&etcd, "node1", &["--id", "1", "--found"]);
    wait_says(&mut first, "from now on (--found)");
    wait_until("it leads", || first.log().matches("node 1 is leading").count() == 2);
    assert_eq!(data_set(), original);
    // A copy of it needs no flag.
    let _second = start_node(&etcd, "node2", &["--id", "2"]);
    wait_until("both are in sync", || etcd.get("lavinmq/isr").first().is_some_and(|(_, set)| set == "1,2"));
    assert_eq!(fs::read_to_string(etcd.stage.path("node2").join("a")).unwrap(), "one");
}

#[test]
fn an_id_in_use_is_said_and_the_node_goes_on_following() {
    let etcd = Etcd::start();
    let mut first = start_node(&etcd, "first", &["--id", "1"]);
    wait_says(&mut first, "node 1 is leading");
    // A directory that was copied with all that it knows about itself.
    let [from, to] = ["first", "second"].map(|name| etcd.stage.path(name));
    fs::create_dir_all(to.join(".paceline")).unwrap();
    for name in [".clustering_id", ".paceline/data-set", ".paceline/position"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let mut second = start_node(&etcd, "second", &["--id", "1"]);
    wait_says(&mut second, "node id 1 is in use by another node");
    wait_says(&mut second, "give each node");
    second.stop();
    assert!(!first.has_ended());
}

#[test]
fn a_leader_that_refuses_the_recorded_secret_ends_the_node_with_a_reason() {
    let etcd = Etcd::start();
    // Of another cluster, or so it seems.
    let leader = TestLeader::start();
    let coordinator = etcd.coordinator();
    let uri = format!("tcp://{}", leader.address);
    let stop = paceline::coordinator::Stop::new();
    let id = "7".parse().unwrap();
    let _leadership = paceline::coordinator::Coordinator::campaign(&coordinator, id, &uri, &stop).unwrap();
    let args = node_args(&etcd.url(0), &etcd.stage.path("node"), &own_host());
    assert_fails(&args, 1, &["refused the secret", "prefix of its own"]);
}

#[test]
fn a_node_waits_for_etcd_says_so_and_ends_well_on_a_signal() {
    let mut etcd = Etcd::start();
    etcd.kill(0);
    let mut node = start_node(&etcd, "node", &["--id", "1"]);
    wait_says(&mut node, "trying again");
    etcd.restart(0);
    wait_says(&mut node, "node 1 is leading");
    node.stop();
    etcd.kill(0);
    let mut node = start_node(&etcd, "again", &["--id", "2"]);
    wait_says(&mut node, "trying again");
    node.signal(Signal::INT);
    assert!(node.wait().success());
}

#[test]
fn what_a_slow_hook_stops_has_ended_before_another_node_is_active() {
    let etcd = Etcd::start();
    let relay = Relay::start(etcd.url(0).strip_prefix("http://").unwrap().parse().unwrap());
    let (active, twice) = (etcd.stage.path("active"), etcd.stage.path("twice"));
    let on_elected = format!("mkdir {} || touch {}", active.display(), twice.display());
    // More than a fifth of a lease, and less than half.
    let on_lost = format!("sleep 3.5; rmdir {}", active.display());
    let start = |name: &str, url: &str, id: &str| {
        let mut args = node_args(url, &etcd.stage.path(name), &own_host());
        let lease_ttl = args.iter().position(|arg| arg == "--lease-ttl").unwrap();
        args[lease_ttl + 1] = "10s".to_owned();
        args.extend(strings(&["--id", id, "--on-elected", &on_elected, "--on-lost", &on_lost]));
        etcd.stage.start(name, env!("CARGO_BIN_EXE_paceline"), args)
    };
    let mut first = start("first", &format!("http://{}", relay.address), "1");
    wait_says(&mut first, "node 1 is leading");
    let mut second = start("second", &etcd.url(0), "2");
    wait_until("both are in sync", || etcd.get("lavinmq/isr") == [("lavinmq/isr".to_owned(), "1,2".to_owned())]);
    drop(relay);
    wait_says(&mut second, "node 2 is leading");
    assert!(active.exists() && !twice.exists(), "{}", first.log());
}
