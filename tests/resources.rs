//! What a process may use runs out: descriptors, threads, the reader of its log, the disk. What is asked for beyond that is refused,
//! and said; replication goes on.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use support::etcd::Etcd;
use support::inject::Injection;
use support::processes::{Process, Stage, wait_same};
use support::volume::Volume;
use support::{PATIENCE, wait_until};

const PACELINE: &str = env!("CARGO_BIN_EXE_paceline");

/// A loopback address of its own for each node.
fn own_host() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(100);
    let process = std::process::id().to_le_bytes();
    format!("127.{}.{}.{}", process[0].max(1), process[1], NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Arguments of a node on a host of its own; clients at its port 7000 reach port 7001.
fn node_args(etcd: &Etcd, dir: &str, host: &str, id: &str) -> Vec<String> {
    let dir = etcd.stage.path(dir).to_str().unwrap().to_owned();
    let (listen, advertise) = (format!("{host}:5681"), format!("tcp://{host}:5681"));
    let proxy = format!("{host}:7000=7001");
    let args = ["node", "--data-dir", &dir, "--listen", &listen, "--advertise", &advertise, "--id", id];
    let more = ["--proxy", &proxy, "--etcd", &etcd.url(0), "--lease-ttl", "3s"];
    args.iter().chain(&more).map(|&arg| arg.to_owned()).collect()
}

#[track_caller]
fn wait_says(process: &mut Process, what: &str) {
    wait_until(&format!("it says {what:?}"), || {
        assert!(!process.has_ended() || process.log().contains(what), "it ended: {}", process.log());
        process.log().contains(what)
    });
}

/// Connects through a proxy, and asks for an echo; `None` if the connection was closed instead.
fn client_of(address: &str) -> Option<TcpStream> {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let echoed = client.write_all(b"x").and_then(|()| client.read_exact(&mut [0]));
    match echoed {
        Ok(()) => Some(client),
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("a client is neither served nor refused"),
        Err(_) => None,
    }
}

/// Answers each client's first byte, and keeps all connections, for as long as the test runs.
fn echo_once(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut byte = [0];
            if client.read_exact(&mut byte).and_then(|()| client.write_all(&byte)).is_ok() {
                kept.push(client);
            }
        }
    });
}

fn threads_of(process: &Process) -> usize {
    fs::read_dir(format!("/proc/{}/task", process.id())).unwrap().count()
}

#[test]
fn clients_beyond_the_descriptors_are_refused_and_a_follower_still_joins() {
    let etcd = Etcd::start();
    let host = own_host();
    echo_once(&format!("{host}:7001"));
    let args = node_args(&etcd, "first", &host, "1");
    let limited = ["-c", "ulimit -n 200; exec \"$0\" \"$@\"", PACELINE];
    let all = limited.iter().map(|&arg| arg.to_owned()).chain(args);
    let mut first = etcd.stage.start("first", "/bin/sh", all);
    wait_says(&mut first, "are connected to");
    let threads = threads_of(&first);

    let clients: Vec<_> = (0..150).map(|_| client_of(&format!("{host}:7000"))).collect();
    let served = clients.iter().flatten().count();
    assert!((40..100).contains(&served), "{served} of 150 clients were served");
    assert_eq!(threads_of(&first), threads, "clients cost threads");
    wait_says(&mut first, "the other file descriptors are kept for replication");
    assert!(first.log().matches("kept for replication").count() < 5, "each refusal is logged");

    let mut second = etcd.stage.start("second", PACELINE, node_args(&etcd, "second", &own_host(), "2"));
    wait_says(&mut second, "following the stream");
    fs::write(etcd.stage.path("first").join("a"), "one").unwrap();
    wait_same(&etcd.stage.path("first"), &etcd.stage.path("second"));

    drop(clients);
    let mut again = None;
    wait_until("there is room again", || {
        again = client_of(&format!("{host}:7000"));
        again.is_some()
    });
    second.stop();
    first.stop();
}

#[test]
fn a_node_that_gets_no_thread_goes_on_leading_and_serving_clients() {
    let etcd = Etcd::start();
    let host = own_host();
    echo_once(&format!("{host}:7001"));
    let none_left = etcd.stage.path("no-threads");
    let injection = Injection::new(&etcd.stage, "threads", &["clone", "clone3"], Errno::AGAIN).while_there(&none_left);
    // With a name for etcd: what looks it up must not want a thread for each request.
    let args = node_args(&etcd, "node", &host, "1").join("\n").replace("http://127.0.0.1", "http://localhost");
    let args: Vec<_> = args.lines().collect();
    let mut node = injection.start(&etcd.stage, "node", Path::new(PACELINE), &args);
    wait_says(&mut node, "are connected to");

    fs::write(&none_left, "").unwrap();
    let clients: Vec<_> = (0..50).map(|_| client_of(&format!("{host}:7000"))).collect();
    assert!(clients.iter().all(Option::is_some), "a client was refused");
    // A follower would take threads: it is refused, and that is said.
    let dir = etcd.stage.path("copy");
    let follow = ["follow", "--etcd", &etcd.url(0), "--data-dir", dir.to_str().unwrap()];
    let mut copy = etcd.stage.start("copy", PACELINE, follow);
    wait_says(&mut node, "was closed: no thread is to be had");
    // Longer than the lease.
    let renewed = || etcd.get("lavinmq/leader/");
    let key = renewed();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(renewed(), key);
    assert!(!node.has_ended() && !node.log().contains("panicked"), "{}", node.log());

    fs::remove_file(&none_left).unwrap();
    wait_says(&mut copy, "following the stream");
    drop(clients);
    copy.stop();
    node.stop();
}

#[test]
fn whichever_thread_a_leader_or_a_follower_does_not_get_it_ends_with_a_reason_or_goes_on() {
    let stage = Stage::new();
    let dir = stage.folder("data");
    fs::write(dir.join("a"), "one").unwrap();
    let none = stage.leader(&dir, &[]);
    let counted = |name: &str, n: u64| Injection::new(&stage, name, &["clone", "clone3"], Errno::AGAIN).at(n, 1);
    for n in 1..=4 {
        let mut copy = counted(&format!("follower-{n}"), n).follower(&stage, &format!("copy-{n}"), none.address);
        wait_until("it follows, or ends", || copy.has_ended() || copy.log().contains("following the stream"));
        assert_ended_well_or_runs(&mut copy);
    }
    drop(none);
    for n in 1..=9 {
        let injection = counted(&format!("leader-{n}"), n);
        let name = format!("leader-{n}");
        let args = ["leader", "--listen", "127.0.0.1:0", "--data-dir", dir.to_str().unwrap()];
        let mut leader = injection.start(&stage, &name, Path::new(PACELINE), &args);
        let address = || {
            let log = fs::read_to_string(stage.path(&format!("{name}.log"))).unwrap();
            log.lines().find_map(|line| line.strip_prefix("listening on ")?.parse().ok())
        };
        // It listens before it has all of its threads.
        wait_until("it has read its directory, or ends", || {
            leader.has_ended() || leader.log().contains(" replicates ")
        });
        if let Some(address) = address().filter(|_| !leader.has_ended()) {
            let mut copy = stage.follower(&format!("copy-of-{n}"), address);
            wait_says(&mut copy.process, "following the stream");
            wait_same(&dir, &copy.dir);
        }
        assert_ended_well_or_runs(&mut leader);
    }
}

#[track_caller]
fn assert_ended_well_or_runs(process: &mut Process) {
    assert!(!process.log().contains("panicked"), "{}", process.log());
    if process.has_ended() {
        assert_eq!(process.wait().code(), Some(1), "{}", process.log());
        let log = process.log();
        let last = log.lines().last().unwrap();
        assert!(last.starts_with("paceline: error: ") && last.contains("thread"), "{last}");
    } else {
        process.stop();
    }
}

/// A process of which nobody reads what it prints, and which is killed if the test ends before it.
struct Unread(std::process::Child);

impl Unread {
    fn start(args: &[String]) -> Self {
        let mut command = Command::new(PACELINE);
        command.args(args).env("RUST_LOG", "trace").env_remove("PACELINE_SECRET");
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_log_that_nobody_reads_stops_neither_clients_nor_the_lease_nor_the_end() {
    let etcd = Etcd::start();
    let host = own_host();
    echo_once(&format!("{host}:7001"));
    let mut node = Unread::start(&node_args(&etcd, "node", &host, "1"));
    wait_until("a client is served", || {
        TcpStream::connect(format!("{host}:7000")).is_ok() && client_of(&format!("{host}:7000")).is_some()
    });
    // Each is logged: far more than a pipe holds.
    for _ in 0..1500 {
        let mut stranger = TcpStream::connect(format!("{host}:5681")).unwrap();
        let _ = stranger.write_all(&[7; 64]);
    }
    let key = etcd.get("lavinmq/leader/");
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(etcd.get("lavinmq/leader/"), key, "the lease was lost");
    assert!(client_of(&format!("{host}:7000")).is_some());
    rustix::process::kill_process(Pid::from_child(&node.0), Signal::TERM).unwrap();
    wait_until("its end", || node.0.try_wait().unwrap().is_some());
    assert!(node.0.wait().unwrap().success());
    assert!(etcd.get("lavinmq/leader/").is_empty(), "leadership was not handed over");
}

#[test]
fn a_disk_that_is_full_for_the_program_costs_the_leadership_and_is_said() {
    let etcd = Etcd::start();
    let volume = Volume::in_memory(&etcd.stage, 16);
    let mut args = node_args(&etcd, volume.mount().join("data").to_str().unwrap(), &own_host(), "1");
    args.extend(["--stall-timeout", "2s"].map(str::to_owned));
    let command: Vec<_> = [PACELINE].into_iter().chain(args.iter().map(String::as_str)).collect();
    let mut node = volume.start("node", &command);
    wait_says(&mut node, "node 1 is leading");
    volume.fill(&volume.path("filler"));
    wait_says(&mut node, "the disk is full, make space");
    wait_says(&mut node, "leadership was lost");
    fs::remove_file(volume.path("filler")).unwrap();
    wait_until("it leads again", || node.log().matches("node 1 is leading").count() == 2);
    node.stop();
}

#[test]
fn a_second_signal_ends_at_once_and_a_hangup_is_ignored_and_said_once() {
    let etcd = Etcd::start();
    let dir = etcd.stage.folder("data");
    let leader = etcd.stage.leader(&dir, &[]);
    let mut follower = etcd.stage.follower("copy", leader.address);
    wait_says(&mut follower.process, "following the stream");
    let mut node = etcd.stage.start("node", PACELINE, {
        let mut args = node_args(&etcd, "node", &own_host(), "1");
        // Its end waits for this program.
        args.extend(["--run", "trap '' TERM; while :; do sleep 1; done", "--stop-grace", "1h"].map(str::to_owned));
        args
    });
    wait_says(&mut node, "node 1 is leading");
    for process in [&leader.process, &follower.process, &node] {
        for _ in 0..3 {
            process.signal(Signal::HUP);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    wait_says(&mut node, "SIGHUP is ignored");
    node.signal(Signal::TERM);
    wait_says(&mut node, "shutting down");
    node.signal(Signal::TERM);
    assert_eq!(node.wait().code(), Some(128 + 15));
    assert_eq!(node.log().matches("SIGHUP is ignored").count(), 1);
    for log in [leader.process.log(), follower.process.log()] {
        assert_eq!(log.matches("SIGHUP is ignored").count(), 1, "{log}");
    }
    follower.process.stop();
}
