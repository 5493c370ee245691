//! Network namespaces: a test that runs in one of its own, and machines connected to it that can be cut off, one way or both, or
//! slowed down.
//!
//! [`in_own_network`] runs the test again as a process in a new namespace, where only the test is, with root's rights over it
//! (in a user namespace, if we are not root); [`become_own_network`] does so with a whole program. All of it is gone when that
//! process is.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, getuid, kill_process};

use super::processes::{find, run};
use super::wait_until;

const INSIDE: &str = "PACELINE_TEST_OWN_NETWORK";

/// The test's own address in its network.
pub const HUB: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

/// Runs `body` in a network of its own. `test` is the name of the calling test.
#[track_caller]
pub fn in_own_network(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        set_up();
        return body();
    }
    let mut again = Command::new(find("setpriv", "util-linux"));
    again.args(["--pdeathsig", "KILL", "--"]).args(unshare());
    again.arg(std::env::current_exe().unwrap()).args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    let status = again.stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{test} failed in its own network: {status}");
}

/// Begins this program anew, as the same process, in a network of its own; returns where it is in one.
pub fn become_own_network() {
    if std::env::var_os(INSIDE).is_some() {
        return set_up();
    }
    let unshare = unshare();
    let mut again = Command::new(&unshare[0]);
    again.args(&unshare[1..]).arg(std::env::current_exe().unwrap()).args(std::env::args_os().skip(1));
    panic!("{again:?}: {}", again.env(INSIDE, "1").exec());
}

/// What runs a command in a new namespace.
fn unshare() -> Vec<OsString> {
    let user: &[&str] = if getuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
    let program = find("unshare", "util-linux").into_os_string();
    [program].into_iter().chain(["--net"].iter().chain(user).map(OsString::from)).collect()
}

fn set_up() {
    ip(&["link", "set", "lo", "up"]);
    ip(&["link", "add", "hub", "type", "bridge"]);
    ip(&["addr", "add", &format!("{HUB}/24"), "dev", "hub"]);
    ip(&["link", "set", "hub", "up"]);
}

fn ip(args: &[&str]) {
    ip_tool("ip", args);
}

fn ip_tool(tool: &str, args: &[&str]) {
    run(Command::new(find(tool, "iproute2")).args(args));
}

/// A machine, as far as the network is concerned; it is gone when this is dropped.
pub struct Machine {
    number: u8,
    address: Ipv4Addr,
    link: String,
    /// Lives in the namespace, and keeps it.
    holder: Child,
}

impl Machine {
    /// One with the address 10.0.0.`number`.
    pub fn new(number: u8) -> Self {
        let mut hold = Command::new(find("setpriv", "util-linux"));
        hold.args(["--pdeathsig", "KILL", "--"]).arg(find("unshare", "util-linux")).args(["--net", "sleep", "1000000"]);
        let holder = hold.process_group(0).stdin(Stdio::null()).spawn().unwrap();
        let machine = Self { number, address: Ipv4Addr::new(10, 0, 0, number), link: format!("to{number}"), holder };
        wait_until("the machine is there", || machine.namespace().is_ok_and(|its| its != namespace("self").unwrap()));
        let pid = machine.holder.id().to_string();
        ip(&["link", "add", &machine.link, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
        ip(&["link", "set", &machine.link, "master", "hub", "up"]);
        machine.run(&["ip", "addr", "add", &format!("{}/24", machine.address), "dev", "eth0"]);
        machine.run(&["ip", "link", "set", "eth0", "up"]);
        machine.run(&["ip", "link", "set", "lo", "up"]);
        machine
    }

    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    fn namespace(&self) -> std::io::Result<std::path::PathBuf> {
        namespace(&self.holder.id().to_string())
    }

    /// What runs a command there: put it before the command.
    pub fn enter(&self) -> Vec<String> {
        let nsenter = find("nsenter", "util-linux").to_str().unwrap().to_owned();
        vec![nsenter, format!("--net=/proc/{}/ns/net", self.holder.id()), "--".into()]
    }

    fn run(&self, command: &[&str]) {
        let enter = self.enter();
        run(Command::new(&enter[0]).args(&enter[1..]).args(command));
    }

    /// Pulls its cable, or puts it back.
    pub fn connect(&self, connected: bool) {
        ip(&["link", "set", &self.link, if connected { "up" } else { "down" }]);
    }

    /// Its cable takes so many kbit/s each way from now on; `None`: as many as it can.
    pub fn set_rate(&self, kilobits: Option<u32>) {
        let Some(kilobits) = kilobits else {
            ip_tool("tc", &["qdisc", "del", "dev", &self.link, "root"]);
            return self.run(&["tc", "qdisc", "del", "dev", "eth0", "root"]);
        };
        let rate = format!("{kilobits}kbit");
        let limit = ["root", "tbf", "rate", &rate, "burst", "16kb", "latency", "300ms"];
        ip_tool("tc", &[&["qdisc", "replace", "dev", &self.link], &limit[..]].concat());
        self.run(&[&["tc", "qdisc", "replace", "dev", "eth0"], &limit[..]].concat());
    }
}

/// Who hears nothing of whom: machines by their number, and the hub.
#[derive(Default)]
pub struct Cuts(BTreeSet<(End, End)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Hub,
    Machine(u8),
}

impl From<&Machine> for End {
    fn from(machine: &Machine) -> Self {
        Self::Machine(machine.number)
    }
}

impl Cuts {
    /// Of all that is sent from the first to the second of these pairs nothing arrives from now on, silently; all else does.
    pub fn set(&mut self, cuts: BTreeSet<(End, End)>) {
        if self.0 == cuts {
            return;
        }
        let rules = |hook: &str, rule: fn(End, End) -> Option<String>| {
            let rules: Vec<_> = cuts.iter().filter_map(|(from, to)| rule(*from, *to)).collect();
            format!("chain {hook} {{ type filter hook {hook} priority 0; {} }}\n", rules.join(" "))
        };
        let table = [
            rules("forward", |from, to| match (from, to) {
                (End::Machine(from), End::Machine(to)) => Some(format!("iifname to{from} oifname to{to} drop;")),
                _ => None,
            }),
            rules("input", |from, to| match (from, to) {
                (End::Machine(from), End::Hub) => Some(format!("iifname to{from} drop;")),
                _ => None,
            }),
            rules("output", |from, to| match (from, to) {
                (End::Hub, End::Machine(to)) => Some(format!("oifname to{to} drop;")),
                _ => None,
            }),
        ];
        // At once: there is no moment without either.
        let script =
            format!("table bridge cuts {{}}\ndelete table bridge cuts\ntable bridge cuts {{\n{}}}\n", table.concat());
        let mut nft = Command::new(find("nft", "nftables")).args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        nft.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success(), "nft refused\n{script}");
        self.0 = cuts;
    }
}

fn namespace(process: &str) -> std::io::Result<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{process}/ns/net"))
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.holder), Signal::KILL);
        let _ = self.holder.wait();
    }
}
