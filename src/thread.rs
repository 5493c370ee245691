//! The one way to start a thread: named, joined by the group that owns it, and never gone unnoticed.
//!
//! A thread that panics, or one that is to last and ends without being told to, fails its owner at once: the group calls what the
//! owner gave it for that ([`Group::on_failure`]), on the thread that failed, and only then is it logged and counts as ended.
//! So nothing goes on half alive.
//!
//! A [`Group`]'s lock is held only to move handles in and out of it, never while joining, so a thread may spawn into
//! the group that another one is joining.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::sys::sync::{Condvar, Mutex, OnceLock};
use crate::sys::thread::{Builder, JoinHandle};
use crate::sys::time::Instant;

/// Threads with one owner.
#[derive(Default)]
pub(crate) struct Group {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    threads: Mutex<Threads>,
    ended: Condvar,
    on_failure: OnceLock<Box<OnFailure>>,
}

/// What becomes of the owner; told which thread failed, and how.
type OnFailure = dyn Fn(&str) + Send + Sync;

#[derive(Default)]
struct Threads {
    running: usize,
    handles: Vec<JoinHandle<()>>,
}

/// Says that its thread has ended, whatever happened.
struct Ended(Arc<State>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.threads.lock().running -= 1;
        self.0.ended.notify_all();
    }
}

impl Group {
    /// Has this called when a thread fails, by that thread: it must not wait, nor join. Without it a failure is only logged.
    /// Once for a group.
    pub(crate) fn on_failure(&self, fail_owner: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.state.on_failure.set(Box::new(fail_owner));
    }

    /// Starts a thread, which may end whenever its work is done. Threads that ended meanwhile are reaped.
    pub(crate) fn spawn(&self, name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.spawn_until(name, || true, body)
    }

    /// Starts a thread that lasts: when it ends, `is_told` says whether it was told to.
    pub(crate) fn spawn_until(
        &self,
        name: impl Into<String>,
        is_told: impl FnOnce() -> bool + Send + 'static,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let name = name.into();
        let ended = {
            self.state.threads.lock().running += 1;
            Ended(self.state.clone())
        };
        let builder = Builder::new().name(name.clone());
        let handle = builder.spawn(move || {
            let ended = ended;
            // What the panic left half done is not used again: the owner fails.
            let how = match catch_unwind(AssertUnwindSafe(body)) {
                Ok(()) if is_told() => return,
                Ok(()) => "ended without being told to".to_owned(),
                Err(panic) => format!("panicked: {}", message(&*panic)),
            };
            ended.0.failed(&format!("thread {name} {how}"));
        });
        let handle = handle.map_err(none_to_have)?;
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

impl State {
    fn failed(&self, what: &str) {
        if let Some(fail_owner) = self.on_failure.get() {
            fail_owner(what);
        }
        log::error!("{what}: this is a defect, please report it");
    }
}

/// With the remedy: the system's own word for it is "temporarily unavailable".
fn none_to_have(error: io::Error) -> io::Error {
    let remedy = "raise the limit of threads (ulimit -u, TasksMax=)";
    io::Error::new(error.kind(), format!("no thread is to be had: {error}; {remedy}"))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("for an unknown reason")
}

fn join(handle: JoinHandle<()>) {
    // Panics were seen to by the thread itself.
    let _ = handle.join();
}

/// The moment after this time from now; a century hence for longer ones, which no clock need count.
pub(crate) fn deadline(after: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    Instant::now() + after.min(CENTURY)
}

/// How long a `Drop` waits for threads that were told to stop.
pub(crate) const DROP_JOIN_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn group_and_failures() -> (Arc<Group>, crossbeam_channel::Receiver<String>) {
        let (group, (failed, failures)) = (Arc::new(Group::default()), crossbeam_channel::unbounded());
        group.on_failure(move |what| failed.send(what.to_owned()).unwrap());
        (group, failures)
    }

    #[test]
    fn joining_waits_for_threads_that_threads_started_and_survives_a_panic() {
        let (group, failures) = group_and_failures();
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
        // The owner knew before anybody could take the thread for ended.
        assert_eq!(failures.try_iter().collect::<Vec<_>>(), ["thread outer panicked: on purpose"]);
    }

    #[test]
    fn a_thread_that_is_to_last_and_ends_by_itself_fails_its_owner() {
        let (group, failures) = group_and_failures();
        group.spawn_until("told", || true, || ()).unwrap();
        group.spawn_until("lasting", || false, || ()).unwrap();
        assert_eq!(group.join(Instant::now() + Duration::from_secs(60)), 0);
        assert_eq!(failures.try_iter().collect::<Vec<_>>(), ["thread lasting ended without being told to"]);
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
