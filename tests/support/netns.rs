//! Network namespaces: a test that runs in one of its own, and machines connected to it that can be cut off.
//!
//! [`in_own_network`] runs the test again as a process in a new namespace, where only the test is, with root's rights over it
//! (in a user namespace, if we are not root). All of it is gone when that process is.

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
        ip(&["link", "set", "lo", "up"]);
        ip(&["link", "add", "hub", "type", "bridge"]);
        ip(&["addr", "add", &format!("{HUB}/24"), "dev", "hub"]);
        ip(&["link", "set", "hub", "up"]);
        return body();
    }
    let mut again = Command::new(find("setpriv", "util-linux"));
    again.args(["--pdeathsig", "KILL", "--"]).arg(find("unshare", "util-linux")).arg("--net");
    if !getuid().is_root() {
        again.args(["--user", "--map-root-user"]);
    }
    again.arg(std::env::current_exe().unwrap()).args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    let status = again.stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{test} failed in its own network: {status}");
}

fn ip(args: &[&str]) {
    run(Command::new(find("ip", "iproute2")).args(args));
}

/// A machine, as far as the network is concerned; it is gone when this is dropped.
pub struct Machine {
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
        let machine = Self { address: Ipv4Addr::new(10, 0, 0, number), link: format!("to{number}"), holder };
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
