//! The addresses of etcd's members: looked up by a thread that is there from the start.
//!
//! The system's resolver blocks for as long as it likes, so whoever asks waits for the thread, within the time there is for the request;
//! the HTTP client's own way is to start a thread for each request, and to panic where the system has none to give. Addresses
//! that are not names need no thread. What a name last meant is kept: when nobody answers, that is taken.
//!
//! One lock, a leaf. The thread ends with the last of those who ask: one that is held up by the system ends by itself.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use parking_lot::{Condvar, Mutex};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::{Error, Timeout};

use crate::coordinator::CoordinatorError;
use crate::thread::Group;

/// Names that wait to be looked up; beyond that nothing is asked, and whoever does is told that there was no answer.
const ASKED_MAX: usize = 256;
/// How long an answer is taken to hold.
const HOLDS_FOR: Duration = Duration::from_secs(1);

/// Clones share the thread, and what it found.
#[derive(Clone)]
pub(super) struct Names {
    asked: Sender<String>,
    found: Arc<Found>,
    _thread: Arc<Group>,
}

#[derive(Default)]
struct Found {
    by_name: Mutex<HashMap<String, Answer>>,
    changed: Condvar,
}

#[derive(Clone)]
struct Answer {
    at: Instant,
    /// The last there were.
    addresses: Vec<SocketAddr>,
    /// Whether the last look found them.
    is_current: bool,
}

impl Names {
    /// `failed` is set should the thread fail.
    pub(super) fn start(failed: Arc<AtomicBool>) -> Result<Self, CoordinatorError> {
        Self::start_with(failed, |name| name.to_socket_addrs().map(Iterator::collect).unwrap_or_default())
    }

    fn start_with(
        failed: Arc<AtomicBool>,
        look_up: impl Fn(&str) -> Vec<SocketAddr> + Send + 'static,
    ) -> Result<Self, CoordinatorError> {
        let (asked, names) = bounded::<String>(ASKED_MAX);
        let (found, thread) = (Arc::new(Found::default()), Arc::new(Group::default()));
        let of_thread = found.clone();
        let life = move || {
            for name in names {
                if of_thread.fresh(&name).is_none() {
                    let addresses = look_up(&name);
                    of_thread.note(name, addresses);
                }
            }
        };
        thread.on_failure(move |_| failed.store(true, Ordering::Relaxed));
        thread.spawn("etcd-names", life).map_err(CoordinatorError::Thread)?;
        Ok(Self { asked, found, _thread: thread })
    }

    /// `HOST:PORT`; waits for `timeout` at most. Empty: there is no such name; `None`: no answer.
    fn addresses(&self, name: &str, timeout: Duration) -> Option<Vec<SocketAddr>> {
        if let Ok(address) = name.parse() {
            return Some(vec![address]);
        }
        if let Some(addresses) = self.found.fresh(name) {
            return Some(addresses);
        }
        let began = Instant::now();
        let deadline = began.checked_add(timeout);
        let is_asked = self.asked.try_send(name.to_owned()).is_ok();
        let mut by_name = self.found.by_name.lock();
        loop {
            let answer = by_name.get(name);
            if let Some(answer) = answer.filter(|answer| answer.at + HOLDS_FOR >= began) {
                return Some(answer.addresses.clone());
            }
            let late = match deadline {
                _ if !is_asked => true,
                Some(deadline) => self.found.changed.wait_until(&mut by_name, deadline).timed_out(),
                None => {
                    self.found.changed.wait(&mut by_name);
                    false
                }
            };
            if late {
                return by_name.get(name).map(|answer| answer.addresses.clone()).filter(|known| !known.is_empty());
            }
        }
    }
}

impl Found {
    fn fresh(&self, name: &str) -> Option<Vec<SocketAddr>> {
        let by_name = self.by_name.lock();
        let answer = by_name.get(name).filter(|answer| answer.is_current && answer.at.elapsed() < HOLDS_FOR)?;
        Some(answer.addresses.clone())
    }

    fn note(&self, name: String, addresses: Vec<SocketAddr>) {
        let mut by_name = self.by_name.lock();
        let is_current = !addresses.is_empty();
        let known = by_name.remove(&name).map(|answer| answer.addresses).unwrap_or_default();
        let addresses = if is_current { addresses } else { known };
        by_name.insert(name, Answer { at: Instant::now(), addresses, is_current });
        drop(by_name);
        self.changed.notify_all();
    }
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, _config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else { return Err(Error::HostNotFound) };
        let name = DefaultResolver::host_and_port(scheme, authority).ok_or(Error::HostNotFound)?;
        let found = self.addresses(&name, *timeout.after).ok_or(Error::Timeout(Timeout::Resolve))?;
        let mut addresses = self.empty();
        // Room for 16.
        found.into_iter().take(16).for_each(|address| addresses.push(address));
        if addresses.is_empty() { Err(Error::HostNotFound) } else { Ok(addresses) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn addresses_are_taken_as_they_are_and_names_are_looked_up_once_in_a_while() {
        let looks = Arc::new(AtomicUsize::new(0));
        let of_thread = looks.clone();
        let address: SocketAddr = "10.0.0.1:2379".parse().unwrap();
        let names = Names::start_with(Arc::default(), move |name| {
            of_thread.fetch_add(1, Ordering::Relaxed);
            if name == "etcd1:2379" { vec![address] } else { Vec::new() }
        })
        .unwrap();
        assert_eq!(names.addresses("[::1]:7", Duration::ZERO), Some(vec!["[::1]:7".parse().unwrap()]));
        assert_eq!(looks.load(Ordering::Relaxed), 0);
        assert_eq!(names.addresses("etcd1:2379", LONG), Some(vec![address]));
        assert_eq!(names.addresses("nobody:2379", LONG), Some(Vec::new()));
    }

    #[test]
    fn a_resolver_that_panics_fails_whoever_relies_on_it() {
        let failed = Arc::<AtomicBool>::default();
        let names = Names::start_with(failed.clone(), |_| panic!("on purpose")).unwrap();
        let _ = names.addresses("etcd1:2379", Duration::from_millis(20));
        names._thread.join(Instant::now() + LONG);
        assert!(failed.load(Ordering::Relaxed));
        assert_eq!(names.addresses("etcd1:2379", LONG), None);
    }

    #[test]
    fn a_resolver_that_hangs_costs_the_time_there_is_and_what_was_known_is_taken() {
        let (go_on, wait) = bounded::<()>(0);
        let address: SocketAddr = "10.0.0.1:2379".parse().unwrap();
        let names = Names::start_with(Arc::default(), move |_| {
            let _ = wait.recv();
            vec![address]
        })
        .unwrap();
        assert_eq!(names.addresses("etcd1:2379", Duration::from_millis(20)), None);
        go_on.send(()).unwrap();
        assert_eq!(names.addresses("etcd1:2379", LONG), Some(vec![address]));
        // Long ago, as far as the thread knows.
        names.found.by_name.lock().get_mut("etcd1:2379").unwrap().at -= HOLDS_FOR * 3;
        assert_eq!(names.addresses("etcd1:2379", Duration::from_millis(20)), Some(vec![address]));
    }
}
