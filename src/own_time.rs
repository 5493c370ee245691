//! Time as this process lived it: what others may be blamed for.
//!
//! A process that was stopped (SIGSTOP, a frozen control group, a paused machine) or not scheduled finds much time gone, and
//! whatever it was waiting for looks slow. Here time is counted by a thread's own ticks, each for no more than it may last: of the
//! time for which the thread stood still, with all others of the process, one tick is left.
//!
//! One thread, `own-time`, which does nothing else; dropping the clock ends it. One lock, a leaf.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::stop::Stop;
use crate::sys::sync::Mutex;
use crate::sys::time::Instant;
use crate::thread::Group;

/// Between two ticks.
const TICK: Duration = Duration::from_millis(250);
/// A tick counts for no more. A busy system is often this late, and that is no standstill.
const TICK_MAX: Duration = Duration::from_millis(500);

/// A clock that stands still while this process does.
pub(crate) struct OwnTime {
    counted: Arc<Mutex<Counted>>,
    stop: Stop,
}

struct Counted {
    up_to_tick: Duration,
    ticked: Instant,
}

impl Counted {
    fn at(&self, now: Instant) -> Duration {
        self.up_to_tick + now.saturating_duration_since(self.ticked).min(TICK_MAX)
    }

    fn tick(&mut self, now: Instant) {
        (self.up_to_tick, self.ticked) = (self.at(now), now);
    }
}

impl OwnTime {
    /// Starts its thread, one of `threads`.
    pub(crate) fn start(threads: &Group) -> io::Result<Self> {
        let counted = Counted { up_to_tick: Duration::ZERO, ticked: Instant::now() };
        let clock = Self { counted: Arc::new(Mutex::new(counted)), stop: Stop::new() };
        let (counted, stop, told) = (clock.counted.clone(), clock.stop.clone(), clock.stop.clone());
        let tick = move || {
            while !stop.wait(TICK) {
                counted.lock().tick(Instant::now());
            }
        };
        threads.spawn_until("own-time", move || told.is_set(), tick)?;
        Ok(clock)
    }

    /// Ends its thread; it stands still from then on. For owners that the thread's group keeps alive.
    pub(crate) fn stop(&self) {
        self.stop.set();
    }

    /// Since it was started; never less than before. Never blocks.
    pub(crate) fn now(&self) -> Duration {
        self.counted.lock().at(Instant::now())
    }
}

impl Drop for OwnTime {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_stopped_blames_nobody_for_the_time_that_is_gone() {
        let began = Instant::now();
        let mut clock = Counted { up_to_tick: Duration::ZERO, ticked: began };
        for ticks in 1..=8 {
            clock.tick(began + TICK * ticks);
        }
        assert_eq!(clock.at(began + TICK * 8), Duration::from_secs(2));
        // Five seconds stopped, whoever looks first afterwards: the thread that ticks, or another.
        let resumed = began + Duration::from_secs(7);
        assert_eq!(clock.at(resumed), Duration::from_secs(2) + TICK_MAX);
        clock.tick(resumed);
        assert_eq!(clock.at(resumed + TICK), Duration::from_secs(2) + TICK_MAX + TICK);
    }

    #[test]
    fn it_goes_on_while_the_process_does() {
        let clock = OwnTime::start(&Group::default()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        // More than could be counted without its thread.
        while clock.now() < TICK_MAX * 2 {
            assert!(Instant::now() < deadline, "it stands still");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}
