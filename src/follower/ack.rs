//! The thread that writes to the leader: requests, and acknowledgements.
//!
//! It is not the thread that reads, because leaders up to LavinMQ 2.4.5 answer each request as it arrives: who writes all
//! requests before reading any answer would block, and block that leader too.
//!
//! The reader puts names and applied bytes into the [`Outbox`]; the thread takes all that is there and writes it. So one
//! acknowledgement covers what was applied while the last one was written, and nothing is ever held back for more.
//! An acknowledgement says that the bytes were written to the files, not that they are on disk.
//!
//! One thread a connection. One lock, the outbox's, held only to put and take, never while writing. It stops when the
//! outbox is closed, or when a write fails; a blocked write fails because who closes the outbox shuts the socket down.

use std::collections::VecDeque;
use std::io::{self, BufWriter, Write};

use parking_lot::{Condvar, Mutex};

use super::shared::Shared;
use crate::protocol::{write_end, write_name};
use crate::types::RelPath;

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
    /// Bytes applied and not acknowledged.
    applied: u64,
    closed: bool,
    finishing: bool,
    failure: Option<io::Error>,
}

enum Work {
    Requests(Vec<RelPath>),
    Acknowledge(u64),
}

impl Outbox {
    /// Asks for these files, in this order, and says that these are all of the round.
    pub(super) fn request(&self, names: Vec<RelPath>) {
        self.state.lock().requests.push_back(names);
        self.changed.notify_one();
    }

    /// Says that so many more bytes of actions have been applied.
    pub(super) fn applied(&self, bytes: u64) {
        self.state.lock().applied += bytes;
        self.changed.notify_one();
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

    /// Why writing failed, if that was what ended the connection.
    pub(super) fn failure(&self) -> Option<io::Error> {
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
            if state.applied > 0 {
                return Some(Work::Acknowledge(std::mem::take(&mut state.applied)));
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
pub(super) fn run(outbox: &Outbox, mut socket: impl Write, shared: &Shared) {
    while let Some(work) = outbox.take() {
        let written = match work {
            Work::Requests(names) => write_requests(&mut socket, &names),
            Work::Acknowledge(bytes) => acknowledge(&mut socket, bytes, shared),
        };
        if let Err(error) = written {
            let mut state = outbox.state.lock();
            if !state.closed {
                state.failure = Some(error);
            }
            return;
        }
    }
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
        (1..=3).for_each(|bytes| outbox.applied(bytes));
        let mut socket = ClosesAfterOne(&outbox, Vec::new());
        run(&outbox, &mut socket, &shared);
        assert_eq!(socket.1, 6_i64.to_le_bytes());
        assert_eq!(shared.status().acknowledged_bytes, 6);
    }

    #[test]
    fn finishing_writes_what_is_there() {
        let (outbox, shared, mut socket) = (Outbox::default(), Shared::default(), Vec::new());
        outbox.request(Vec::new());
        outbox.applied(1);
        outbox.finish();
        run(&outbox, &mut socket, &shared);
        assert_eq!(socket, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn nothing_is_written_after_closing_and_a_failure_is_kept() {
        let (outbox, shared) = (Outbox::default(), Shared::default());
        outbox.applied(7);
        let mut full: &mut [u8] = &mut [0; 3];
        run(&outbox, &mut full, &shared);
        assert!(outbox.failure().is_some());
        outbox.request(vec![RelPath::new("a").unwrap()]);
        outbox.close();
        let mut socket = Vec::new();
        run(&outbox, &mut socket, &shared);
        assert!(socket.is_empty());
    }
}
