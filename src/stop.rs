//! Cancellation: one side sets it, others look, wait, or are woken where they wait for something else.
//!
//! A leaf: its lock is held only to move wakers in and out, never while one is called, so a waker may take locks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::sys::sync::{Condvar, Mutex};
use crate::sys::time::Instant;

/// A request to stop. Clones are the same request; once set, it stays set.
#[derive(Clone, Default)]
pub struct Stop {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    set: AtomicBool,
    wakers: Mutex<Wakers>,
    changed: Condvar,
}

#[derive(Default)]
struct Wakers {
    next: u64,
    by_number: BTreeMap<u64, Waker>,
}

type Waker = Box<dyn FnOnce() + Send>;

impl Stop {
    /// One that is not set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everyone to stop. Returns at once; setting it again does nothing.
    pub fn set(&self) {
        let wakers = {
            let mut wakers = self.shared.wakers.lock();
            self.shared.set.store(true, Ordering::Release);
            std::mem::take(&mut wakers.by_number)
        };
        self.shared.changed.notify_all();
        wakers.into_values().for_each(|wake| wake());
    }

    /// Whether it is set. Never blocks.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.shared.set.load(Ordering::Acquire)
    }

    /// Waits until it is set, at most for `timeout`; returns whether it is.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        let mut wakers = self.shared.wakers.lock();
        while !self.is_set() {
            match deadline {
                Some(deadline) if self.shared.changed.wait_until(&mut wakers, deadline).timed_out() => break,
                Some(_) => (),
                None => self.shared.changed.wait(&mut wakers),
            }
        }
        self.is_set()
    }

    /// Has `wake` called once when it is set, by the thread that sets it; at once, by this one, if it is set already.
    /// When the returned value is dropped it is not called any more, but a call may still be under way.
    pub(crate) fn on_set(&self, wake: impl FnOnce() + Send + 'static) -> OnSet {
        let mut wakers = self.shared.wakers.lock();
        let number = wakers.next;
        wakers.next += 1;
        if self.is_set() {
            drop(wakers);
            wake();
        } else {
            wakers.by_number.insert(number, Box::new(wake));
        }
        OnSet { stop: self.clone(), number }
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stop({})", self.is_set())
    }
}

/// Keeps a waker in place.
#[must_use]
pub(crate) struct OnSet {
    stop: Stop,
    number: u64,
}

impl Drop for OnSet {
    fn drop(&mut self) {
        let waker = self.stop.shared.wakers.lock().by_number.remove(&self.number);
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_it_ends_waits_and_wakes_those_who_still_want_to_be_woken() {
        let stop = Stop::new();
        assert!(!stop.wait(Duration::ZERO));
        let (woken, was_woken) = crossbeam_channel::unbounded();
        let wake = |who| {
            let woken = woken.clone();
            stop.on_set(move || woken.send(who).unwrap())
        };
        let before = wake("before");
        drop(wake("no longer"));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stop.wait(Duration::MAX));
            stop.clone().set();
            assert!(waiting.join().unwrap());
        });
        let after = wake("after");
        assert_eq!(was_woken.try_iter().collect::<Vec<_>>(), ["before", "after"]);
        stop.set();
        assert!(stop.is_set() && stop.wait(Duration::MAX) && was_woken.is_empty());
        drop((before, after));
    }
}
