//! The accept thread: admits clients, and hands them to the movers with the addresses of the leader's host.
//!
//! It alone looks names up, which may block for as long as the system's resolver likes: meanwhile clients wait to be accepted, and
//! those that are connected notice nothing.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::mover::Joining;
use super::{Shared, show_target};
use crate::descriptors::{For, is_kept_for_others};
use crate::sys::thread;
use crate::sys::time::Instant;

/// Accepting fails for want of file descriptors, mostly: they come back when something is closed.
const RETRY: Duration = Duration::from_millis(100);
/// How long the addresses of the leader's host are taken to be the same.
const RESOLVED_FOR: Duration = Duration::from_secs(1);

/// The thread's life: until the proxy is closed.
pub(super) fn run(shared: &Shared, listener: &TcpListener, host: Arc<str>, opened: u64) {
    let mut target = Target { host, port: shared.config.port, resolved: None };
    loop {
        let accepted = listener.accept();
        if !shared.is_open(opened) {
            return;
        }
        match accepted {
            Ok((client, from)) => admit(shared, client, from, &mut target, opened),
            Err(error) => {
                if let Some(unsaid) = shared.log.not_accepted.is_due() {
                    log::warn!("proxy at {}: cannot accept a client: {error}; trying again{unsaid}", shared.address);
                }
                thread::park_timeout(RETRY);
            }
        }
    }
}

fn admit(shared: &Shared, client: TcpStream, from: SocketAddr, target: &mut Target, opened: u64) {
    if let Some(why) = refusal(shared, &client) {
        shared.refused.fetch_add(1, Ordering::Relaxed);
        if let Some(unsaid) = shared.log.refused.is_due() {
            log::warn!("proxy at {}: {why}: closing those that come{unsaid}", shared.address);
        }
        return;
    }
    let client = Arc::new(client);
    let Some(key) = shared.add(&client, opened) else { return };
    match client.set_nonblocking(true).and_then(|()| target.addresses()) {
        Ok(addresses) => shared.hand_over(Joining { key, opened, client, from, addresses }),
        Err(error) => {
            shared.not_connected(&show_target(&target.host, target.port), &error);
            shared.remove(key);
        }
    }
}

fn refusal(shared: &Shared, client: &TcpStream) -> Option<String> {
    let connections = shared.status().connections;
    if connections >= shared.config.connections_max {
        return Some(format!("there are {connections} connections already"));
    }
    is_kept_for_others(client.as_raw_fd(), For::Client).then(|| {
        format!(
            "there are {connections} connections, and the other file descriptors are kept for replication; raise the limit of \
             open files (ulimit -n, LimitNOFILE=)"
        )
    })
}

/// The leader's host.
struct Target {
    host: Arc<str>,
    port: u16,
    resolved: Option<(Instant, Arc<[SocketAddr]>)>,
}

impl Target {
    /// Blocks while the name is looked up, if that was not done just before.
    fn addresses(&mut self) -> io::Result<Arc<[SocketAddr]>> {
        if let Some((at, addresses)) = &self.resolved
            && at.elapsed() < RESOLVED_FOR
        {
            return Ok(addresses.clone());
        }
        let addresses: Arc<[SocketAddr]> = (&*self.host, self.port).to_socket_addrs()?.collect();
        if addresses.is_empty() {
            return Err(io::Error::other("the name has no address"));
        }
        self.resolved = Some((Instant::now(), addresses.clone()));
        Ok(addresses)
    }
}
