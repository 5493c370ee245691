//! Feeds a leader from a directory that other programs write.
//!
//! *Content is the truth; events only decide what to look at first.* One thread, `watch`, announces what the leader does not know yet; then it waits for inotify events, reads
//! all that are pending, looks once at each path they name, and between such rounds compares files that may have changed. (Followers may join before it has looked at all there
//! is: it is a host that is about to announce something.)
//!
//! | a file that | is announced as |
//! |---|---|
//! | has another name | rename |
//! | grew | append of what is new, at once |
//! | became empty | truncation |
//! | shrank, or is another inode | replace |
//! | holds something else than followers were sent | the blocks of 16 KiB that differ, written in place; replace if that is most of it |
//! | is gone, or is no longer a regular file | delete |
//!
//! A rename is found by the file's identity (device, inode and time of birth): what was announced under one path, is no longer
//! there and is found at another has been renamed, with what it grew by since; so have all files of a renamed folder. Nobody
//! resends them where followers know the extension. Of files that changed names in a circle, all but one are renamed. A file
//! is announced anew where its identity is not certain: on file systems without a time of birth, and within one clock tick of
//! it, unless it is one block at most.
//!
//! # Comparing
//!
//! inotify says *that* something was written, never *where*. So a file is *under suspicion* from the moment that anything of it moved (length, time of change), also if it
//! only grew; that ends with a comparison of all that followers have of it with what is there (`compare.rs`), and with nothing else. What they have is known as
//! digests of blocks (`src/index/blocks.rs`): of what was announced, and of everything that was ever read for a follower.
//!
//! - It is proven by a circle through the file during which it looked the same, begun when the clock of files had gone on since its last change, and in which nobody else was
//!   reading, for the first time, what was compared (`suspects.rs`).
//! - Files take turns, slice by slice; what is new is announced in between. Comparing takes a quarter of a core at most, or what the leader's settings say; a file that never rests is compared less
//!   and less often as long as nothing is found. A file at rest is compared 15 ms after its last change: 1 GiB in the page cache takes 1.3 s. [`Watcher::unproven_for`] says for how long the
//!   first of them has waited.
//! - Around where a file differed last it is compared at each look: a log that was allocated before it is written arrives as it is written.
//! - Writes that raise no event show in a sweep: all files are looked at, each within 30 s where they are 300,000 at most (`sweep.rs`).
//! - A pure log costs one more read of what was written, when it comes to rest.
//!
//! # Histories that would lose something, and why they do not
//!
//! | history | what is done |
//! |---|---|
//! | a block is changed and the file grows, in one look or one tick of the clock | growth is sent; the file is under suspicion all the same |
//! | A, B, A in place; a follower that joins reads B | its read is noted: B is not what others have, the block is *torn*, announced again |
//! | it reads B, A is back and compared, then its read is noted | a known block: the note brings the file under suspicion. An unknown one: it was *pending*, and the file not proven |
//! | digests are made of B, by which a follower that has A is told that it lacks the chunk, or one that has B that it does not | digesting is reading |
//! | a range is announced by reference, and changed before it is read | unknown until it is read; what is read is what is compared |
//! | it grows while a range up to its old end is read | the block is noted to the end that it has by then: the rest is read as well |
//! | the last block grows while nobody has its beginning | it is noted as it is read now; whoever reads its beginning later is compared with that |
//! | what was noted could not be announced, or not of that generation | torn |
//! | the leader was started anew; followers were found equal by digests kept on disk, without a read | the first comparison of a file takes those digests for what followers have: a chunk that differs is torn. So it is before the chunk grows |
//! | followers joined a leader that nobody watched then | all there was when it was watched is torn ([`Opening::will_be_watched`](crate::leader::Opening::will_be_watched) prevents it) |
//! | the time of a file is set back | the time of change counts, which nobody can set |
//! | a long write sets its times when it begins, and raises its event when it ends | each event brings the file under suspicion, however it looks |
//! | it is changed after the look and before the leader reads it for a replace | it is under suspicion from each announcement on |
//! | another file is in its place while it is compared | the file is looked at first: identity, length, and what the leader read of it |
//! | it cannot be read | it stays under suspicion, and is tried again |
//! | it is cut short and grows again between two looks | growth, and blocks that differ |
//! | it is cut short | replace, and not a truncation: with that the file would get another generation, of which nobody knew what those have who were amid reading the last |
//! | a follower of 1.0.0 | gets the file whole for blocks, gathered by the leader |
//! | followers do not keep up | announcements wait as before (`Window`); comparisons find the same later |
//! | the watcher stops | it waits for all to be proven; what is still written to a second later is left, and said |
//!
//! # The first look
//!
//! Who starts has much to look at that did not change: a start reads no content, and looks at each file once. A leader that
//! [will be watched](crate::leader::Opening::will_be_watched) sets a watch on each folder before it lists it, in the walk that it is opened with, and the watcher takes that over
//! (`first_look.rs`): what happens after the look at a file raises an event, so a file at rest is as it was announced until an event, or the sweep, says otherwise.
//!
//! | a file that | is |
//! |---|---|
//! | changed so shortly before the look that one more change could carry the same time | under suspicion from the start |
//! | changed, came or went after the look | in an event that is kept until the watcher begins |
//! | is in a folder that was moved, removed or made anew amid the walk | in an event of the folder it is in, which was watched before |
//! | is in a folder for which there is no watch | looked at with the first round of those |
//! | could not be looked at, or was announced otherwise by the leader or the host meanwhile | looked at when the watcher begins, and under suspicion: whoever read it in between is known |
//! | is none of these, but events were lost, as they were too many | looked at when the watcher begins: whether it looks as it did |
//!
//! A leader that was not told, or is watched for a second time, has none to take over: then the watcher walks itself, in the same way, and what was at rest since before the leader was opened, and is as long, is taken for what was announced.
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
//! The watcher is a client of the leader's API and nothing more. It takes no lock of its own that another thread
//! takes while waiting: only its failure, its state, and what it leaves, are behind one. [`Watcher::stop`] wakes the thread, which takes a last
//! look, compares what is left, and ends; events are kept after that, so that [`Watcher::is_complete`] can tell whether there were any.
//!
//! # What it cannot see
//!
//! - Writes that raise no event, before the next sweep: through `mmap`, asynchronous I/O, a hard link that is outside the directory or another name in it, by
//!   other machines on a network file system. Stores into a mapped page that leave no trace in any time (on tmpfs, where a page stays dirty for longer than 45 s, in a file that changed last within 45 s before the start, or while more
//!   than 50,000 files change within 45 s) show only when something else is written to the file.
//! - A file that is replaced or changed continuously is seen as often as it can be read, not in each of its versions; until it rests a copy may hold a mixture of them.
//!
//! Each folder takes a watch. Those for which the system has none left are looked at once a second at most.
//!
//! What it cannot read it says once, takes to be as it was, and tries again after 1 s to 10 s. Symbolic links are never followed.
//!
//! # What is not content
//!
//! Folders, links, permissions and times are the leader's own affair (`tasks/attributes.rs`): the watcher tells it which names to look at again, and, before content
//! is announced of a file that has other permissions now, of those.

mod announce;
mod file;
mod suspects;
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
use tree::{Share, Tree, Trouble};

/// How long the last look, at what was pending when the watcher was told to stop, may take.
const LAST_LOOK_MAX: Duration = Duration::from_secs(10);

/// How long events gather after a look: many writes to a file are one look then.
const GATHER: Duration = Duration::from_millis(1);

/// How long files are compared before events are looked for again.
const COMPARE_AT_ONCE: Duration = Duration::from_millis(1);

/// Who is still writing so long after the watcher was told to stop is not waited for.
const LAST_CHANGE_MAX: Duration = Duration::from_secs(1);

/// A directory being watched. Dropping it stops it.
pub struct Watcher {
    shared: Arc<Shared>,
    threads: Group,
}

struct Shared {
    stopping: AtomicBool,
    /// Wakes the thread's `poll`. The leader has it as well, and nothing else of this: what is left may keep a leader.
    wake: Arc<OwnedFd>,
    failure: Mutex<Option<Error>>,
    /// Once the last look is done: whether what it saw is announced, and whether nothing was changed since.
    rest: Mutex<Option<Rest>>,
    begun: Mutex<Begun>,
    changed: Condvar,
    /// Since when the oldest change has not been proven to be announced.
    unproven: Mutex<Option<Instant>>,
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

/// What is left of the thread once it has ended.
struct Rest {
    is_complete: bool,
    is_settled: Box<dyn FnMut() -> bool + Send>,
}

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
        Self::begin_with(Paced { leader, window }, &theirs)
    }

    fn begin_with(announce: impl Announce, data_dir: &Path) -> Result<Self, Error> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::io("watch", data_dir, errno))?;
        let shared = Arc::new(Shared {
            stopping: AtomicBool::new(false),
            wake: Arc::new(wake),
            failure: Mutex::new(None),
            rest: Mutex::new(None),
            begun: Mutex::new(Begun::NotYet),
            changed: Condvar::new(),
            unproven: Mutex::new(None),
        });
        announce.note_reads();
        let woken = shared.wake.clone();
        announce.blocks().wake_with(move || wake_up(&woken));
        let threads = Group::default();
        let dir = data_dir.to_owned();
        let (of_thread, of_failure) = (shared.clone(), shared.clone());
        threads.on_failure(move |what| *of_failure.failure.lock() = Some(Error::ThreadFailed(what.to_owned())));
        threads
            .spawn("watch", move || {
                let _told = EndsWithThread(of_thread.clone());
                let ended = Tree::open(&dir, announce).and_then(|mut tree| Ok((of_thread.run(&mut tree)?, tree)));
                match ended {
                    // Kept in any case: to free what is known of very many files takes long, and who stops waits for this thread.
                    Ok((is_complete, mut tree)) => {
                        let is_settled = Box::new(move || is_complete && tree.is_settled());
                        *of_thread.rest.lock() = Some(Rest { is_complete, is_settled });
                    }
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

    /// For how long the change that was seen first has not been proven to be announced; `None`: all there is is, as far as is known. Never blocks.
    #[must_use]
    pub fn unproven_for(&self) -> Option<Duration> {
        let since = *self.shared.unproven.lock();
        since.map(|since| since.elapsed())
    }

    /// Announces what is pending, compares what may have changed, then ends. Blocks up to 15 s for that: usually for some 20 ms after the last change, and as long as reading those files takes. Idempotent.
    ///
    /// Returns whether all that had changed by then is announced, and proven to be: not so if watching had ended by itself, if that took too long, or
    /// if something could not be read.
    pub fn stop(&self) -> bool {
        self.shared.stopping.store(true, Ordering::Release);
        wake_up(&self.shared.wake);
        self.threads.join(Instant::now() + LAST_LOOK_MAX + DROP_JOIN_MAX);
        self.shared.rest.lock().as_ref().is_some_and(|rest| rest.is_complete)
    }

    /// Once it is stopped: whether all that is in the directory now was announced: what [`stop`](Self::stop) returned, and nothing
    /// was written since. Never blocks.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let rest = self.shared.rest.lock().take();
        let Some(mut rest) = rest else { return false };
        let complete = (rest.is_settled)();
        *self.shared.rest.lock() = Some(rest);
        complete
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Wakes the thread that polls it.
fn wake_up(fd: &OwnedFd) {
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
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
    fn run<A: Announce>(&self, tree: &mut Tree<A>) -> Result<bool, Error> {
        match tree.announce_dirty(false, &|| !self.stopping.load(Ordering::Acquire)) {
            Ok(()) => self.has_begun(Begun::Yes),
            Err(Trouble::Fatal(error)) => return Err(error),
            Err(_) => return Ok(false),
        }
        let mut share = Share::new(tree.compare_percent(), Instant::now());
        let go_on = || !self.stopping.load(Ordering::Acquire);
        while go_on() {
            let now = Instant::now();
            let compare = tree.next_comparison().map(|due| share.is_left(now).map_or_else(|at| at.max(due), |()| due));
            let next = tree.next_look().into_iter().chain(compare).chain([tree.next_sweep()]).min();
            self.wait(tree, next)?;
            tree.collect()?;
            tree.sweep(Instant::now());
            match tree.announce_dirty(false, &go_on).and_then(|()| self.compare(tree, &mut share)) {
                Ok(()) => self.gather()?,
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(_) => return Ok(false),
            }
        }
        self.finish(tree)
    }

    /// Compares files for a moment.
    fn compare<A: Announce>(&self, tree: &mut Tree<A>, share: &mut Share) -> Result<(), Trouble> {
        let began = Instant::now();
        let mut now = began;
        while share.is_left(now).is_ok() && now.saturating_duration_since(began) < COMPARE_AT_ONCE && tree.compare()? {
            let then = Instant::now();
            share.uses(then.saturating_duration_since(now));
            now = then;
        }
        *self.unproven.lock() = tree.unproven_since();
        Ok(())
    }

    /// The last look, and the last comparisons. Returns whether nothing was left to be announced, and all of it is proven.
    fn finish<A: Announce>(&self, tree: &mut Tree<A>) -> Result<bool, Error> {
        let began = Instant::now();
        let deadline = began + LAST_LOOK_MAX;
        let go_on = || Instant::now() < deadline;
        tree.hurry();
        loop {
            self.drain_wake();
            tree.collect()?;
            let looked = tree.announce_dirty(true, &go_on).and_then(|()| {
                while go_on() && tree.compare()? {}
                Ok(())
            });
            match looked {
                Ok(()) => {}
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(_) => return Ok(false),
            }
            // What cannot be read is not waited for.
            let (now, next) = (Instant::now(), tree.next_comparison_of_readable());
            let is_written = now > began + LAST_CHANGE_MAX && tree.has_changed_since(began + LAST_CHANGE_MAX);
            match next {
                Some(next) if next < deadline && !is_written => self.wait(tree, Some(next))?,
                _ => break,
            }
        }
        *self.unproven.lock() = tree.unproven_since();
        Ok(tree.has_looked())
    }

    /// What woke the thread is dealt with.
    fn drain_wake(&self) {
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
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
    fn wait<A: Announce>(&self, tree: &Tree<A>, until: Option<Instant>) -> Result<(), Error> {
        let timeout = until.map(|at| {
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
        self.drain_wake();
        Ok(())
    }
}
