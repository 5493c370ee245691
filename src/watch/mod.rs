//! Feeds a leader from a directory that other programs write.
//!
//! One thread, `watch`, announces what the leader does not know yet; then it waits for inotify events, reads
//! all that are pending, and looks once at each path they name. (Followers may join before it has looked at all there is: it is a host that is about to announce
//! something.)
//!
//! | a file that | is announced as |
//! |---|---|
//! | has another name | rename |
//! | grew, its last 4 KiB before the old length as they were | append of what is new |
//! | became empty | truncation |
//! | shrank, is another inode, changed before its end or without growing | replace |
//! | is gone, or is no longer a regular file | delete |
//!
//! A rename is found by the file's identity (device, inode and time of birth): what was announced under one path, is no longer
//! there and is found at another has been renamed, with what it grew by since; so have all files of a renamed folder. Nobody
//! resends them where followers know the extension. Of files that changed names in a circle, all but one are renamed. A file
//! is announced anew where its identity is not certain: on file systems without a time of birth, and within one clock tick of
//! it, unless it has 4 KiB at most.
//!
//! # The first look
//!
//! Who starts has much to look at that did not change: a start reads no content, and looks at each file once. The leader has walked the directory
//! just before. A file that still looks as it did then (device, inode, length, both times), and had been at rest by then, is taken for what was announced,
//! without being opened. Why that is safe, and where it ends:
//!
//! - It is watched before it is looked at: what happens after the look raises an event. What happened between the walk and the look shows in how the
//!   file looks, because it was at rest at the walk (see `src/digests` for what that takes); so it does if another file has its name.
//!   Times that come again, and writes through `mmap`, are not seen at any other time either.
//! - What looks different was perhaps read for a follower, or digested, as it was at the walk. It is announced as replaced then, unless what it ended with at the
//!   walk, which is remembered of files that were being written to, or its digests, made of how it looked at the walk, show that it has only grown. If nobody can have read it, what there is now is what was announced.
//! - What was announced and is not found is looked at like all else.
//! - That a file has changed before its old end, and grown as well, shows in its last 4 KiB, which nobody has read. The leader's digests tell instead:
//!   those of how it looked when it was taken over, and of no other moment, since the digester may have come between the change and us. The end of the file
//!   is read with the first change, and has to have these digests. Where there are none, any change is a replace: of files of 4 KiB
//!   at most, which costs no more than to read all of them. The ends of larger ones are read at the start.
//!
//! Events that come within a millisecond of the last look are looked at together; the first after a pause at once.
//!
//! A folder that appears is watched first and listed after, so that nothing created meanwhile is lost; one that goes takes
//! all its files along. What was moved away and back before it was looked at is as it was, but the leader may have read it, or
//! missed it, meanwhile: the watcher asks ([`Leader::vouches_for`]), and announces it again if so.
//!
//! After a queue overflow everything is looked at. A file that changed several times before it was looked at is announced once;
//! one that is replaced all the time is announced at 100 MB/s at most. With a [`Window`] the watcher waits, briefly, for
//! followers that keep up; the programs that write never wait for it.
//!
//! The watcher is a client of the leader's public API and nothing more. It takes no lock of its own that another thread
//! takes while waiting: only its failure, and what it leaves, are behind one. [`Watcher::stop`] wakes the thread, which takes a last
//! look and ends; events are kept after that, so that [`Watcher::is_complete`] can tell whether there were any.
//!
//! # What it cannot see
//!
//! - Writes through `mmap`: they raise no event.
//! - Changes in place that keep both length and modification time.
//! - A change in place more than 4 KiB before the end that comes together with growth (between the same two looks, or
//!   within one clock tick of the file system).
//! - Writes to a file under a hard link that is outside the directory, or under another name in it.
//! - Writes that other machines make on a network file system.
//! - A file that is replaced continuously is seen as often as it can be read, not in each of its versions.
//!
//! Each folder takes a watch. Those for which the system has none left are looked at once a second at most.
//!
//! What it cannot read it says once, takes to be as it was, and tries again after 1 s to 10 s. Symbolic links are never followed, nor replicated.

mod announce;
mod file;
mod notify;
#[cfg(test)]
mod tests;
mod tree;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::Error;
use crate::leader::{Leader, Window};
use crate::sys::rustix;
use crate::sys::rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use crate::sys::rustix::fd::{AsFd, OwnedFd};
use crate::sys::rustix::io::Errno;
use crate::sys::sync::{Condvar, Mutex};
use crate::sys::time::Instant;
use crate::thread::{DROP_JOIN_MAX, Group};
use announce::{Announce, Paced};
use tree::{Tree, Trouble};

/// How long the last look, at what was pending when the watcher was told to stop, may take.
const LAST_LOOK_MAX: Duration = Duration::from_secs(10);

/// How long events gather after a look: many writes to a file are one look then.
const GATHER: Duration = Duration::from_millis(1);

/// A directory being watched. Dropping it stops it.
pub struct Watcher {
    shared: Arc<Shared>,
    threads: Group,
}

struct Shared {
    stopping: AtomicBool,
    /// Wakes the thread's `poll`.
    wake: OwnedFd,
    failure: Mutex<Option<Error>>,
    /// Once the last look is done, and what it saw is announced: whether nothing was changed since.
    rest: Mutex<Option<Rest>>,
    begun: Mutex<Begun>,
    changed: Condvar,
}

/// How far the thread is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begun {
    /// It looks at all there is.
    NotYet,
    /// What there was is announced.
    Yes,
    /// It ended before that.
    Ended,
}

/// Whoever waits for the thread learns of its end.
struct EndsWithThread(Arc<Shared>);

impl Drop for EndsWithThread {
    fn drop(&mut self) {
        self.0.has_begun(Begun::Ended);
    }
}

type Rest = Box<dyn FnMut() -> bool + Send>;

impl Watcher {
    /// Announces to `leader` what is in its directory `data_dir` and not known to it yet, then keeps announcing what changes.
    ///
    /// Blocks until the first scan is announced. With `window` the watcher waits a little, again
    /// and again, while followers that keep up have more than that to acknowledge.
    ///
    /// # Errors
    ///
    /// The directory cannot be read or watched, or is another one than the leader's; [`Error::Setting`] names the limit when the system has no watch left.
    pub fn start(leader: Arc<Leader>, data_dir: impl AsRef<Path>, window: Option<Window>) -> Result<Self, Error> {
        Self::begin(leader, data_dir, window)?.begun()
    }

    /// Like [`start`](Self::start), but does not wait for the first scan: [`wait`](Self::wait) does, and [`take_failure`](Self::take_failure) says how it failed.
    ///
    /// # Errors
    ///
    /// The directory is another one than the leader's, or there is no thread to be had.
    pub fn begin(leader: Arc<Leader>, data_dir: impl AsRef<Path>, window: Option<Window>) -> Result<Self, Error> {
        // A link may lead elsewhere by now, and what is there is not the leader's.
        let (theirs, data_dir) = (leader.data_dir().to_owned(), data_dir.as_ref());
        let id = |dir: &Path| rustix::fs::stat(dir).map(|stat| (stat.st_dev, stat.st_ino));
        if id(data_dir).map_err(|errno| Error::io("watch", data_dir, errno))? != id(&theirs).unwrap_or_default() {
            let how = "it is not the one that its leader has";
            return Err(Error::DirectoryLost { dir: data_dir.to_owned(), how });
        }
        let of_thread = leader.clone();
        Self::begin_with(Paced { leader, window }, &theirs, move || of_thread.forget_found())
    }

    /// `looked` is called after the first scan.
    fn begin_with(
        announce: impl Announce,
        data_dir: &Path,
        looked: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::io("watch", data_dir, errno))?;
        let shared = Arc::new(Shared {
            stopping: AtomicBool::new(false),
            wake,
            failure: Mutex::new(None),
            rest: Mutex::new(None),
            begun: Mutex::new(Begun::NotYet),
            changed: Condvar::new(),
        });
        let threads = Group::default();
        let dir = data_dir.to_owned();
        let (of_thread, of_failure) = (shared.clone(), shared.clone());
        threads.on_failure(move |what| *of_failure.failure.lock() = Some(Error::ThreadFailed(what.to_owned())));
        threads
            .spawn("watch", move || {
                let _told = EndsWithThread(of_thread.clone());
                let ended =
                    Tree::open(&dir, announce).and_then(|mut tree| Ok((of_thread.run(&mut tree, looked)?, tree)));
                match ended {
                    Ok((true, mut tree)) => *of_thread.rest.lock() = Some(Box::new(move || tree.is_settled())),
                    Ok((false, _)) => {}
                    Err(error) => {
                        log::error!("the directory is no longer watched: {error}");
                        *of_thread.failure.lock() = Some(error);
                    }
                }
            })
            .map_err(|error| Error::io("watch", data_dir, error))?;
        Ok(Self { shared, threads })
    }

    /// Waits for the first scan.
    fn begun(self) -> Result<Self, Error> {
        while !self.wait(Duration::MAX) {
            if *self.shared.begun.lock() == Begun::Ended {
                return Err(self.take_failure().unwrap_or(Error::ShuttingDown));
            }
        }
        Ok(self)
    }

    /// Blocks until the first scan is announced, at most for `timeout`; returns whether it is. `false` at once where watching has ended before.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        let mut begun = self.shared.begun.lock();
        while *begun == Begun::NotYet {
            match deadline {
                None => self.shared.changed.wait(&mut begun),
                Some(deadline) if self.shared.changed.wait_until(&mut begun, deadline).timed_out() => break,
                Some(_) => {}
            }
        }
        *begun == Begun::Yes
    }

    /// Takes the reason why watching ended by itself, if it has; never blocks.
    pub fn take_failure(&self) -> Option<Error> {
        self.shared.failure.lock().take()
    }

    /// Announces what is pending, then ends. Blocks up to 15 s for that (usually milliseconds). Idempotent.
    ///
    /// Returns whether all that had changed by then is announced: not so if watching had ended by itself, if that took too long, or
    /// if something could not be read.
    pub fn stop(&self) -> bool {
        self.shared.stopping.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
        self.threads.join(Instant::now() + LAST_LOOK_MAX + DROP_JOIN_MAX);
        self.shared.rest.lock().is_some()
    }

    /// Once it is stopped: whether all that is in the directory now was announced: what [`stop`](Self::stop) returned, and nothing
    /// was written since. Never blocks.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let rest = self.shared.rest.lock().take();
        let Some(mut is_settled) = rest else { return false };
        let complete = is_settled();
        *self.shared.rest.lock() = Some(is_settled);
        complete
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// The first word counts.
    fn has_begun(&self, how: Begun) {
        {
            let mut begun = self.begun.lock();
            if *begun == Begun::NotYet {
                *begun = how;
            }
        }
        self.changed.notify_all();
    }

    /// Until it is told to stop; returns whether nothing was left to be announced.
    fn run<A: Announce>(&self, tree: &mut Tree<A>, looked: impl FnOnce()) -> Result<bool, Error> {
        match tree.announce_dirty(false, &|| !self.stopping.load(Ordering::Acquire)) {
            Ok(()) => {
                looked();
                self.has_begun(Begun::Yes);
            }
            Err(Trouble::Fatal(error)) => return Err(error),
            Err(_) => return Ok(false),
        }
        loop {
            self.wait(tree)?;
            let stopping = self.stopping.load(Ordering::Acquire);
            tree.collect()?;
            let deadline = Instant::now() + LAST_LOOK_MAX;
            let go_on = || match stopping {
                true => Instant::now() < deadline,
                false => !self.stopping.load(Ordering::Acquire),
            };
            match tree.announce_dirty(stopping, &go_on) {
                Ok(()) if stopping => return Ok(tree.has_looked()),
                Ok(()) => self.gather()?,
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(_) => return Ok(false),
            }
        }
    }

    /// Blocks for [`GATHER`], or until the watcher is to stop.
    fn gather(&self) -> Result<(), Error> {
        let timeout = Timespec { tv_sec: 0, tv_nsec: GATHER.subsec_nanos().into() };
        let wake = self.wake.as_fd();
        match poll(&mut [PollFd::new(&wake, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::io("poll", "a wake-up", errno)),
        }
    }

    /// Blocks until there is an event, a path wants another look, or the watcher is to stop.
    fn wait<A: Announce>(&self, tree: &Tree<A>) -> Result<(), Error> {
        let timeout = tree.next_look().map(|at| {
            let wait = at.saturating_duration_since(Instant::now());
            Timespec { tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX), tv_nsec: wait.subsec_nanos().into() }
        });
        let (events, wake) = (tree.inotify(), self.wake.as_fd());
        // Without a table of mounts, the same once more.
        let mounts = tree.mounts().map_or((wake, PollFlags::IN), |table| (table, PollFlags::PRI));
        let mut fds =
            [PollFd::new(&events, PollFlags::IN), PollFd::new(&wake, PollFlags::IN), PollFd::new(&mounts.0, mounts.1)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io("poll", "inotify", errno)),
        }
        if !fds[2].revents().is_empty() {
            tree.mounts_have_changed();
        }
        Ok(())
    }
}
