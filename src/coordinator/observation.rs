//! Watching a value of the coordinator: a thread feeds the latest state into a channel of one place.

use super::CoordinatorError;
use crate::stop::Stop;
use crate::sys::channel::{Receiver, Sender, TrySendError, bounded};
use crate::sys::time::Instant;
use crate::thread::{DROP_JOIN_MAX, Group};

/// A value of the coordinator being watched. It ends, with its thread, when this is dropped; that takes a moment, or as long as
/// a coordinator that does not answer is waited for.
///
/// The first thing received is the state there is, then each change. A state that was not received before the next came is
/// left out: only the latest matters.
pub struct Observation<T> {
    states: Receiver<T>,
    stop: Stop,
    threads: Group,
}

impl<T: Send + 'static> Observation<T> {
    /// Starts a thread that runs `watch` with where to put states, and with what tells it to stop; for who implements a
    /// [`Coordinator`](super::Coordinator). Never blocks.
    ///
    /// # Errors
    ///
    /// [`CoordinatorError::Thread`].
    pub fn start(name: &str, watch: impl FnOnce(Latest<T>, Stop) + Send + 'static) -> Result<Self, CoordinatorError> {
        let (sender, states) = bounded(1);
        let latest = Latest { sender, states: states.clone() };
        let observation = Self { states, stop: Stop::new(), threads: Group::default() };
        let stop = observation.stop.clone();
        observation.threads.spawn(name, move || watch(latest, stop)).map_err(CoordinatorError::Thread)?;
        Ok(observation)
    }
}

impl<T> Observation<T> {
    /// Where the states arrive; for `recv`, `recv_timeout` and `select!`.
    #[must_use]
    pub fn receiver(&self) -> &Receiver<T> {
        &self.states
    }
}

impl<T> Drop for Observation<T> {
    fn drop(&mut self) {
        self.stop.set();
        let left = self.threads.join(Instant::now() + DROP_JOIN_MAX);
        if left > 0 {
            log::warn!("a watch of the coordinator ends late: its thread still waits for an answer");
        }
    }
}

impl<T> std::fmt::Debug for Observation<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observation").finish_non_exhaustive()
    }
}

/// Where the thread puts states: the next takes the place of one that was not received.
pub struct Latest<T> {
    sender: Sender<T>,
    states: Receiver<T>,
}

impl<T> Latest<T> {
    /// Never blocks.
    pub fn put(&self, mut state: T) {
        // Nobody else sends, so making room once is enough; whoever received meanwhile made it too.
        while let Err(TrySendError::Full(back)) = self.sender.try_send(state) {
            let _ = self.states.try_recv();
            state = back;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_the_latest_state_is_kept_and_dropping_it_ends_its_thread() {
        let (done, is_done) = bounded(0);
        let (ended, has_ended) = bounded::<()>(0);
        let observation = Observation::start("observer", move |latest: Latest<i32>, stop| {
            (1..=3).for_each(|state| latest.put(state));
            done.send(()).unwrap();
            assert!(stop.wait(Duration::MAX));
            drop(ended);
        })
        .unwrap();
        is_done.recv().unwrap();
        assert_eq!(observation.receiver().try_iter().collect::<Vec<_>>(), [3]);
        drop(observation);
        assert!(has_ended.try_recv().unwrap_err().is_disconnected());
    }
}
