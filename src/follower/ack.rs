//! The thread that writes to the leader: requests, and acknowledgements.
//!
//! It is not the thread that reads, because leaders up to LavinMQ 2.4.5 answer each request as it arrives: who writes all
//! requests before reading any answer would block, and block that leader too.
//!
//! The reader puts names and applied bytes into the [`Outbox`]; the thread takes all that is there and writes it. So one
//! acknowledgement covers what was applied while the last one was written, and nothing is ever held back for more.
//! What an acknowledgement says is [`Durability`](crate::Durability): the reader puts bytes here when that is so, or, for those
//! that are to be durable, together with the changes that are not. Then the thread makes those durable first, all that have come
//! at once. When that fails it acknowledges nothing more.
//!
//! One thread a connection. One lock, the outbox's, held only to put and take, never while writing. It stops when the
//! outbox is closed, or when a write fails; a blocked write fails because who closes the outbox shuts the socket down.

use std::collections::VecDeque;
use std::io::{self, BufWriter, Write};
use std::time::Duration;

use super::dir::Dir;
use super::flush::Unflushed;
use super::shared::Shared;
use crate::error::Error;
use crate::own_time::OwnTime;
use crate::protocol::{write_end, write_name};
use crate::sys::sync::{Condvar, Mutex};
use crate::types::RelPath;

/// Bytes applied that wait to be made durable, beside those that are being; the reader waits when there are more. Otherwise a leader
/// that is faster than the disk would have ever more to be flushed at once, and wait ever longer for an acknowledgement.
const UNFLUSHED_BYTES_MAX: u64 = 64 << 20;

/// A disk that takes so long is worth a warning: LavinMQ 2.9 drops a follower after 3 s.
const SLOW: Duration = Duration::from_secs(1);

/// What is to be written.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The requests of a round each; at most two, since a round's answers are awaited before the next.
    requests: VecDeque<Vec<RelPath>>,
    /// Bytes not acknowledged.
    done: u64,
    /// Changes to be made durable before those bytes are acknowledged.
    unflushed: Unflushed,
    closed: bool,
    finishing: bool,
    /// The thread has ended.
    ended: bool,
    failure: Option<Error>,
}

enum Work {
    Requests(Vec<RelPath>),
    Acknowledge(u64, Unflushed),
}

impl Outbox {
    /// Asks for these files, in this order, and says that these are all of the round.
    pub(super) fn request(&self, names: Vec<RelPath>) {
        self.state.lock().requests.push_back(names);
        self.changed.notify_one();
    }

    /// So many more bytes of actions are to be acknowledged.
    pub(super) fn done(&self, bytes: u64) {
        self.state.lock().done += bytes;
        self.changed.notify_one();
    }

    /// The same, when these changes are durable. Blocks while the disk has too much to do.
    pub(super) fn done_when_durable(&self, bytes: u64, changes: Unflushed) {
        let mut state = self.state.lock();
        state.done += bytes;
        state.unflushed.merge(changes);
        // Nobody else waits then: the thread has something to do.
        self.changed.notify_one();
        while state.done > UNFLUSHED_BYTES_MAX && !state.ended {
            self.changed.wait(&mut state);
        }
    }

    /// What the thread, which has ended, did not make durable.
    pub(super) fn left(&self) -> Unflushed {
        std::mem::take(&mut self.state.lock().unflushed)
    }

    /// Ends the thread. What was not written yet is dropped: after a failed write to a file nothing is acknowledged.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_one();
    }

    /// Ends the thread when all that is here has been written.
    pub(super) fn finish(&self) {
        self.state.lock().finishing = true;
        self.changed.notify_one();
    }

    /// What the thread failed at, if that was what ended the connection.
    pub(super) fn failure(&self) -> Option<Error> {
        self.state.lock().failure.take()
    }

    fn take(&self) -> Option<Work> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(names) = state.requests.pop_front() {
                return Some(Work::Requests(names));
            }
            if state.done > 0 {
                self.changed.notify_one();
                let state = &mut *state;
                let (bytes, changes) = (std::mem::take(&mut state.done), std::mem::take(&mut state.unflushed));
                return Some(Work::Acknowledge(bytes, changes));
            }
            if state.finishing {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }
}

/// The thread's life: writes to `socket` until the outbox is closed. A failure is left in the outbox, for the reader,
/// which the caller must wake.
pub(super) fn run(outbox: &Outbox, mut socket: impl Write, dir: &Dir, shared: &Shared, own_time: &OwnTime) {
    let _at_end = AtEnd(outbox);
    let mut warned = false;
    while let Some(work) = outbox.take() {
        let done = match work {
            Work::Requests(names) => write_requests(&mut socket, &names).map_err(lost),
            Work::Acknowledge(bytes, changes) => make_durable(outbox, changes, dir, (own_time, &mut warned))
                .and_then(|()| acknowledge(&mut socket, bytes, shared).map_err(lost)),
        };
        if let Err(error) = done {
            let mut state = outbox.state.lock();
            if !state.closed {
                state.failure = Some(error);
            }
            return;
        }
    }
}

/// Lets go the reader that waits for the thread, also when it panicked.
struct AtEnd<'a>(&'a Outbox);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.state.lock().ended = true;
        self.0.changed.notify_one();
    }
}

fn lost(error: io::Error) -> Error {
    Error::connection("lost while writing", error)
}

fn make_durable(
    outbox: &Outbox,
    changes: Unflushed,
    dir: &Dir,
    (own_time, warned): (&OwnTime, &mut bool),
) -> Result<(), Error> {
    if changes.is_empty() {
        return dir.check_flushed();
    }
    // While this process was stopped, the disk was not at work for it.
    let began = own_time.now();
    let flushed = changes.flush(dir);
    if flushed.is_err() {
        outbox.state.lock().unflushed.merge(changes);
    }
    let took = own_time.now().saturating_sub(began);
    if took >= SLOW && !std::mem::replace(warned, true) {
        log::warn!(
            "it took the disk {took:.1?} to make changes durable, and the leader waited for their acknowledgement so long; \
             LavinMQ lets a follower go after about 3 s: a faster disk helps, or a weaker durability (written)"
        );
    }
    flushed
}

fn write_requests(socket: &mut impl Write, names: &[RelPath]) -> io::Result<()> {
    let mut buffered = BufWriter::with_capacity(64 << 10, socket);
    for name in names {
        write_name(&mut buffered, name)?;
    }
    write_end(&mut buffered)?;
    buffered.flush()
}

fn acknowledge(socket: &mut impl Write, bytes: u64, shared: &Shared) -> io::Result<()> {
    let count = i64::try_from(bytes).map_err(io::Error::other)?;
    socket.write_all(&count.to_le_bytes())?;
    shared.update(|status| status.acknowledged_bytes += bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thread::Group;

    fn run(outbox: &Outbox, socket: impl Write, dir: &Dir, shared: &Shared) {
        let threads = Group::default();
        super::run(outbox, socket, dir, shared, &OwnTime::start(&threads).unwrap());
    }

    fn opened() -> (tempfile::TempDir, Dir) {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        (root, dir)
    }

    /// Writes are collected; the outbox is closed after the first.
    struct ClosesAfterOne<'a>(&'a Outbox, Vec<u8>);

    impl Write for ClosesAfterOne<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.extend_from_slice(bytes);
            self.0.close();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_accumulated_is_acknowledged_in_one_write() {
        let (outbox, shared) = (Outbox::default(), Shared::default());
        (1..=3).for_each(|bytes| outbox.done(bytes));
        let mut socket = ClosesAfterOne(&outbox, Vec::new());
        run(&outbox, &mut socket, &opened().1, &shared);
        assert_eq!(socket.1, 6_i64.to_le_bytes());
        assert_eq!(shared.status().acknowledged_bytes, 6);
    }

    #[test]
    fn finishing_writes_what_is_there() {
        let (outbox, shared, mut socket) = (Outbox::default(), Shared::default(), Vec::new());
        outbox.request(Vec::new());
        outbox.done(1);
        outbox.finish();
        run(&outbox, &mut socket, &opened().1, &shared);
        assert_eq!(socket, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn nothing_is_written_after_closing_and_a_failure_is_kept() {
        let (outbox, shared) = (Outbox::default(), Shared::default());
        outbox.done(7);
        let mut full: &mut [u8] = &mut [0; 3];
        run(&outbox, &mut full, &opened().1, &shared);
        assert!(outbox.failure().is_some());
        outbox.request(vec![RelPath::new("a").unwrap()]);
        outbox.close();
        let mut socket = Vec::new();
        run(&outbox, &mut socket, &opened().1, &shared);
        assert!(socket.is_empty());
    }
}
