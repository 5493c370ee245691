//! The watchdog of a node that leads: its leadership is renewed only while its data path is alive, and so is the thread that would
//! give it up.
//!
//! One thread, `watchdog`, writes to the disk of the data directory and looks whether the leader dispatches, again and again,
//! and notes when it last got through. Whatever hangs holds it up, and soon nobody finds the node well: [`Health::check`] is what
//! the renewals ask. One lock, that of `own_time`, a leaf. Dropping it stops the thread,
//! and does not wait for a disk.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::coordinator::Stop;
use crate::error::Error;
use crate::leader::Leader;
use crate::own_time::OwnTime;
use crate::sys::sync::OnceLock;
use crate::thread::Group;

/// Between two looks, if nothing hangs; shorter where the timeout is.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Of a thread whose pulse is not asked for.
const NOT_ASKED: u64 = u64::MAX;

pub(super) struct Health {
    shared: Arc<Shared>,
    stop: Stop,
    _thread: Group,
}

struct Shared {
    /// A node that was stopped itself does not blame its disk for it.
    own_time: OwnTime,
    /// When all was last found well, in milliseconds of that time.
    well_ms: AtomicU64,
    leader: OnceLock<Weak<Leader>>,
    timeout: Duration,
    /// When the node's own thread was last known to go on, likewise; [`NOT_ASKED`]: it may take its time.
    pulse_ms: AtomicU64,
    /// Nobody looks any more.
    failed: AtomicBool,
}

impl Health {
    /// Begins to look; until it has, the node is taken to be well.
    pub(super) fn start(
        disk: impl Fn() -> std::io::Result<()> + Send + 'static,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let not_started = |error| Error::connection("of the watchdog: its thread could not be started", error);
        let (stop, thread) = (Stop::new(), Group::default());
        let own_time = OwnTime::start(&thread).map_err(not_started)?;
        let shared = Arc::new(Shared {
            own_time,
            well_ms: AtomicU64::new(0),
            leader: OnceLock::new(),
            timeout,
            pulse_ms: AtomicU64::new(NOT_ASKED),
            failed: AtomicBool::new(false),
        });
        let (of_thread, until) = (shared.clone(), stop.clone());
        let (of_failure, told) = (shared.clone(), stop.clone());
        thread.on_failure(move |_| of_failure.failed.store(true, Ordering::Relaxed));
        let look = move || of_thread.run(&disk, &until);
        thread.spawn_until("watchdog", move || told.is_set(), look).map_err(not_started)?;
        Ok(Self { shared, stop, _thread: thread })
    }

    /// What a renewal asks. Never blocks.
    pub(super) fn check(&self) -> Box<dyn Fn() -> bool + Send + Sync> {
        let shared = self.shared.clone();
        Box::new(move || shared.is_well())
    }

    /// The node's own thread has a pulse from now on: where it stops, the node is not well.
    pub(super) fn pulse(&self) -> Pulse {
        let pulse = Pulse(self.shared.clone());
        pulse.beat();
        pulse
    }

    /// Looks at this leader too.
    pub(super) fn watch(&self, leader: &Arc<Leader>) {
        let _ = self.shared.leader.set(Arc::downgrade(leader));
    }
}

/// The pulse of the node's own thread, asked for while this lives.
pub(super) struct Pulse(Arc<Shared>);

impl Pulse {
    /// Never blocks.
    pub(super) fn beat(&self) {
        self.0.pulse_ms.store(self.0.now_ms(), Ordering::Relaxed);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.0.pulse_ms.store(NOT_ASKED, Ordering::Relaxed);
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.stop.set();
        // The clock's thread, by what is to be done when it fails, holds what holds the clock.
        self.shared.own_time.stop();
    }
}

impl Shared {
    fn is_well(&self) -> bool {
        let now = self.own_time.now();
        let is_recent = |ms| now.saturating_sub(Duration::from_millis(ms)) < self.timeout;
        let pulse = self.pulse_ms.load(Ordering::Relaxed);
        let has_pulse = pulse == NOT_ASKED || is_recent(pulse);
        has_pulse && is_recent(self.well_ms.load(Ordering::Relaxed)) && !self.failed.load(Ordering::Relaxed)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.own_time.now().as_millis()).unwrap_or(NOT_ASKED - 1)
    }

    fn run(&self, disk: &dyn Fn() -> std::io::Result<()>, stop: &Stop) {
        let mut was_well = true;
        loop {
            let began = self.own_time.now();
            let found = self.look(disk);
            match &found {
                Ok(()) => {
                    self.well_ms.store(self.now_ms(), Ordering::Relaxed);
                }
                Err(what) if was_well => log::error!("{what}: leadership ends if that does not change"),
                Err(_) => {}
            }
            was_well = found.is_ok();
            let took = self.own_time.now().saturating_sub(began);
            if took >= self.timeout / 2 {
                log::warn!("a write to the data directory and a look at the leader took {took:.1?}");
            }
            if stop.wait(LOOK_EVERY.min(self.timeout / 4)) {
                return;
            }
        }
    }

    fn look(&self, disk: &dyn Fn() -> std::io::Result<()>) -> Result<(), String> {
        disk().map_err(|error| match error.kind() {
            ErrorKind::StorageFull => {
                format!("the disk is full, make space: the data directory takes nothing new ({error})")
            }
            ErrorKind::QuotaExceeded => format!("the disk quota is used up, raise it or make space ({error})"),
            _ => format!("the data directory cannot be written: {error}"),
        })?;
        match self.leader.get().and_then(Weak::upgrade) {
            Some(leader) if !leader.is_dispatching(self.timeout) => {
                Err("the leader dispatches nothing: this is a defect, please report it".to_owned())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "{what}: did not come");
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_disk_that_hangs_or_fails_makes_the_node_unwell_until_it_works_again() {
        let (hangs, fails) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let of_disk = (hangs.clone(), fails.clone());
        let disk = move || {
            while of_disk.0.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            if of_disk.1.load(Ordering::Relaxed) { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        };
        let health = Health::start(disk, Duration::from_millis(500)).unwrap();
        let is_well = health.check();
        assert!(is_well());
        for fault in [&hangs, &fails] {
            fault.store(true, Ordering::Relaxed);
            wait_until("unwell", || !is_well());
            fault.store(false, Ordering::Relaxed);
            wait_until("well again", &is_well);
        }
        hangs.store(true, Ordering::Relaxed);
        wait_until("unwell", || !is_well());
        // Does not wait for the disk.
        let shared = Arc::downgrade(&health.shared);
        drop(health);
        assert!(!is_well());
        hangs.store(false, Ordering::Relaxed);
        drop(is_well);
        wait_until("its threads have ended", || shared.strong_count() == 0);
    }

    #[test]
    fn a_node_whose_own_thread_does_not_go_on_is_unwell_while_it_should() {
        let health = Health::start(|| Ok(()), Duration::from_millis(300)).unwrap();
        let is_well = health.check();
        let pulse = health.pulse();
        wait_until("unwell", || !is_well());
        pulse.beat();
        wait_until("well again", &is_well);
        wait_until("unwell again", || !is_well());
        drop(pulse);
        wait_until("well, for it may take its time", &is_well);
    }

    #[test]
    fn a_watchdog_that_panics_makes_the_node_unwell_at_once() {
        let health = Health::start(|| panic!("on purpose"), PATIENCE * 10).unwrap();
        wait_until("unwell", || !health.check()());
    }

    #[test]
    fn a_leader_that_dispatches_is_well_and_one_that_was_shut_down_is_not_held() {
        let dir = tempfile::tempdir().unwrap();
        let secret = crate::Secret::new("s").unwrap();
        let leader = Arc::new(Leader::open(crate::LeaderConfig::new(dir.path(), secret)).unwrap());
        let looked = Arc::new(AtomicU64::new(0));
        let of_disk = looked.clone();
        let disk = move || {
            of_disk.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let health = Health::start(disk, Duration::from_secs(10)).unwrap();
        health.watch(&leader);
        wait_until("a look at it", || looked.load(Ordering::Relaxed) > 2);
        assert!(health.check()() && leader.is_dispatching(PATIENCE));
        leader.shutdown(Duration::ZERO);
        assert!(leader.is_dispatching(Duration::ZERO));
        wait_until("nobody else holds it", || Arc::strong_count(&leader) == 1);
    }
}
