//! The one way to start a thread: named, and joined by the group that owns it.
//!
//! A [`Group`]'s lock is held only to move handles in and out of it, never while joining, so a thread may spawn into
//! the group that another one is joining.

use std::io;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;

/// Threads with one owner.
#[derive(Default)]
pub(crate) struct Group {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    threads: Mutex<Threads>,
    ended: Condvar,
}

#[derive(Default)]
struct Threads {
    running: usize,
    handles: Vec<JoinHandle<()>>,
}

/// Says that its thread has ended, also when it panicked.
struct Ended(Arc<State>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.threads.lock().running -= 1;
        self.0.ended.notify_all();
    }
}

impl Group {
    /// Starts a thread. Threads that ended meanwhile are reaped.
    pub(crate) fn spawn(&self, name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let ended = {
            self.state.threads.lock().running += 1;
            Ended(self.state.clone())
        };
        let handle = Builder::new().name(name.into()).spawn(move || {
            let _ended = ended;
            body();
        })?;
        let finished: Vec<_> = {
            let mut threads = self.state.threads.lock();
            threads.handles.push(handle);
            threads.handles.extract_if(.., |handle| handle.is_finished()).collect()
        };
        finished.into_iter().for_each(join);
        Ok(())
    }

    /// Waits until every thread has ended, and joins them; at most until `deadline`.
    ///
    /// Returns how many are still running then (they are left alone). Never called by a thread of the group.
    pub(crate) fn join(&self, deadline: Instant) -> usize {
        let (handles, running) = {
            let mut threads = self.state.threads.lock();
            while threads.running > 0 && !self.state.ended.wait_until(&mut threads, deadline).timed_out() {}
            (std::mem::take(&mut threads.handles), threads.running)
        };
        // A thread that has said it ended needs only microseconds more; one that has not is not waited for.
        handles.into_iter().filter(|handle| running == 0 || handle.is_finished()).for_each(join);
        running
    }
}

fn join(handle: JoinHandle<()>) {
    let name = handle.thread().name().unwrap_or_default().to_owned();
    if handle.join().is_err() {
        log::error!("thread {name} panicked: this is a defect, please report it");
    }
}

/// How long a `Drop` waits for threads that were told to stop.
pub(crate) const DROP_JOIN_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_waits_for_threads_that_threads_started_and_survives_a_panic() {
        let group = Arc::new(Group::default());
        let (tx, rx) = crossbeam_channel::bounded(2);
        let inner = group.clone();
        group
            .spawn("outer", move || {
                inner.spawn("inner", move || tx.send(()).unwrap()).unwrap();
                panic!("on purpose");
            })
            .unwrap();
        assert_eq!(group.join(Instant::now() + Duration::from_secs(60)), 0);
        assert_eq!(rx.try_recv(), Ok(()));
    }

    #[test]
    fn joining_gives_up_at_the_deadline() {
        let group = Group::default();
        let (tx, rx) = crossbeam_channel::bounded::<()>(0);
        group.spawn("stuck", move || assert!(rx.recv().is_err())).unwrap();
        assert_eq!(group.join(Instant::now()), 1);
        drop(tx);
    }
}
