//! The thread that writes to a leader of the extension: sums and inventory, marks, and heartbeats. It also watches for silence.
//!
//! Marks are totals, so what was done while the last ones were written goes into one message, and nothing is held back but
//! for a few milliseconds in the midst of a sync, where a mark for each block would cost both sides a wake-up.
//! When nothing else was said for a heartbeat's interval, a heartbeat is (or marks, if only what was received has changed:
//! that alone is not worth a message). A heartbeat also says how many bytes were digested on this connection: who sees that grow
//! waits on.
//!
//! *Silence* is a read that gets no byte for [`Silence::limit`]. Time in which nobody reads, because the disk is slow, does not
//! count; and it is counted in quarters, so that a process that was itself stopped blames nobody. Then the send queue
//! tells a leader that is stalled (its system takes what we send) from a network that is (nobody does). A read timeout would
//! not do: an LZ4 frame cannot be read on after one.
//!
//! One thread a connection. One lock, the report's, held to put and take only. It stops when the report is closed, or when
//! something fails, here or in the thread that works on the disk: the first failure is kept for the reader.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::shared::Shared;
use crate::error::Error;
use crate::protocol::extension::{Marks, Message};
use crate::sendqueue::send_queue_bytes;
use crate::sys::net::TcpStream;
use crate::sys::sync::{Condvar, Mutex};
use crate::sys::thread;
use crate::sys::time::Instant;

/// Messages of sums or an inventory that wait to be written; who makes them waits when there are more.
const MESSAGES_MAX: usize = 2;

/// Between two marks of a sync's bulk.
const BULK_PAUSE: Duration = Duration::from_millis(5);

/// Quarters of the limit.
const QUARTERS: u32 = 4;

/// Until the send queue is judged, what was just sent has so long to be acknowledged.
const GRACE: Duration = Duration::from_millis(500);

/// What is to be said.
pub(super) struct Report {
    state: Mutex<State>,
    changed: Condvar,
    /// Action bytes read off the connection.
    received: AtomicU64,
    /// Bytes of files digested.
    digested: AtomicU64,
    /// When the read under way began, in microseconds after `began` and above 0; 0: none is.
    reading_since: AtomicU64,
    began: Instant,
}

#[derive(Default)]
struct State {
    messages: VecDeque<Message>,
    written: u64,
    durable: u64,
    /// What the directory keeps of this leader's stream, if that is to be said.
    kept: Option<u64>,
    /// What was said last ...
    said: Marks,
    said_digested: u64,
    /// ... and when.
    said_at: Option<Instant>,
    /// What was written last was a sync's bulk.
    of_bulk: bool,
    closed: bool,
    finishing: bool,
    failure: Option<Error>,
    /// A message was written in part: nothing can be said after it.
    torn: bool,
}

enum Next {
    Say(Message),
    /// It is time to look whether the leader is silent, or to say that we are not.
    Look,
    End,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            received: AtomicU64::new(0),
            digested: AtomicU64::new(0),
            reading_since: AtomicU64::new(0),
            began: Instant::now(),
        }
    }
}

impl Report {
    /// Puts a message of the sums or the inventory; blocks while there are enough, except with their end. False: the report is closed.
    pub(super) fn put(&self, message: Message) -> bool {
        let is_end = matches!(message, Message::SumsEnd | Message::InventoryEnd);
        let mut state = self.state.lock();
        while !is_end && state.messages.len() >= MESSAGES_MAX && !state.closed {
            self.changed.wait(&mut state);
        }
        state.messages.push_back(message);
        self.changed.notify_all();
        !state.closed
    }

    /// Takes what waits to be written, where nobody writes it.
    #[cfg(feature = "fuzzing")]
    pub(super) fn drop_messages(&self) {
        self.state.lock().messages.clear();
        self.changed.notify_all();
    }

    /// The total of action bytes read.
    pub(super) fn received(&self, total: u64) {
        self.received.store(total, Ordering::Release);
    }

    /// So many bytes more were digested.
    pub(super) fn digested(&self, bytes: u64) {
        self.digested.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The total of action bytes written to files.
    pub(super) fn written(&self, total: u64) {
        let mut state = self.state.lock();
        state.written = total.max(state.written);
        state.of_bulk = false;
        if state.written > state.said.written {
            self.changed.notify_all();
        }
    }

    /// The same while more is sure to come, as in the midst of a sync: it may go with what is written within [`BULK_PAUSE`].
    pub(super) fn written_of_bulk(&self, total: u64) {
        let mut state = self.state.lock();
        let waits_already = state.written > state.said.written;
        state.written = total.max(state.written);
        state.of_bulk = true;
        if !waits_already && state.written > state.said.written {
            self.changed.notify_all();
        }
    }

    /// The total of action bytes that are durable; never more than is written.
    pub(super) fn durable(&self, total: u64) {
        let mut state = self.state.lock();
        debug_assert!(total <= state.written);
        if total > state.durable {
            state.durable = total;
            state.of_bulk = false;
            self.changed.notify_all();
        }
    }

    /// The directory says of itself that it has this leader's stream up to there. Told before whatever becomes durable after this.
    pub(super) fn kept(&self, position: u64) {
        let mut state = self.state.lock();
        state.kept = Some(position);
        self.changed.notify_all();
    }

    /// Keeps the first failure, and ends the threads.
    pub(super) fn fail(&self, error: Error) {
        let mut state = self.state.lock();
        if !state.closed {
            state.closed = true;
            state.failure = Some(error);
        }
        self.changed.notify_all();
    }

    /// Ends the threads. What was not said yet is dropped.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// Ends the writing thread when all was said.
    pub(super) fn finish(&self) {
        self.state.lock().finishing = true;
        self.changed.notify_all();
    }

    /// Whether another message can follow what was written, once the thread has ended.
    pub(super) fn is_whole(&self) -> bool {
        !self.state.lock().torn
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// What ended the connection, if it was a thread of ours.
    pub(super) fn failure(&self) -> Option<Error> {
        self.state.lock().failure.take()
    }

    fn marks(&self, state: &State) -> Marks {
        // In this order: what is written was received before.
        Marks { received: self.received.load(Ordering::Acquire), written: state.written, durable: state.durable }
    }

    /// The next message but for marks; `None`: nothing more is said.
    #[cfg(test)]
    pub(super) fn message(&self) -> Option<Message> {
        loop {
            match self.next(Instant::now() + Duration::from_secs(60)) {
                Next::End => return None,
                Next::Say(Message::Marks(_)) | Next::Look => {}
                Next::Say(message) => return Some(message),
            }
        }
    }

    fn next(&self, until: Instant) -> Next {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return Next::End;
            }
            if let Some(message) = state.messages.pop_front() {
                self.changed.notify_all();
                return Next::Say(message);
            }
            if let Some(kept) = state.kept.take() {
                return Next::Say(Message::Kept(kept));
            }
            let (written, durable) = (state.written, state.durable);
            if (written, durable) != (state.said.written, state.said.durable) {
                let now = Instant::now();
                let due = state.said_at.filter(|_| state.of_bulk).map_or(now, |at| at + BULK_PAUSE);
                if due <= now {
                    state.said = self.marks(&state);
                    state.said_at = Some(now);
                    return Next::Say(Message::Marks(state.said));
                }
                if until <= now {
                    return Next::Look;
                }
                let _ = self.changed.wait_until(&mut state, due.min(until));
                continue;
            }
            if state.finishing {
                return Next::End;
            }
            if self.changed.wait_until(&mut state, until).timed_out() {
                return Next::Look;
            }
        }
    }

    /// What is said when there was nothing to say. Not marks alone for as long as something is digested: the leader's heartbeats change those.
    fn heartbeat(&self) -> Vec<Message> {
        let mut state = self.state.lock();
        let (marks, digested) = (self.marks(&state), self.digested.load(Ordering::Relaxed));
        let mut messages = Vec::new();
        if digested != state.said_digested || marks == state.said {
            messages.push(Message::Heartbeat(digested));
        }
        if marks != state.said {
            messages.push(Message::Marks(marks));
        }
        (state.said, state.said_digested) = (marks, digested);
        messages
    }
}

/// Says when the reader is reading.
pub(super) struct Watched<'a, R>(pub(super) R, pub(super) &'a Report);

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        // What is shut down is still read while something comes.
        if self.1.is_closed() {
            return Ok(0);
        }
        let now = u64::try_from(self.1.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.1.reading_since.store(now.max(1), Ordering::Relaxed);
        let read = self.0.read(bytes);
        self.1.reading_since.store(0, Ordering::Relaxed);
        read
    }
}

/// Looks for a read that gets nothing.
struct Silence {
    limit: Option<Duration>,
    look_at: Instant,
    read: u64,
    quarters: u32,
}

impl Silence {
    fn new(limit: Option<Duration>) -> Self {
        Self { limit, look_at: Instant::now() + quarter(limit), read: 0, quarters: 0 }
    }

    /// Whether the leader has been silent for the limit.
    fn look(&mut self, report: &Report) -> bool {
        let now = Instant::now();
        if now < self.look_at {
            return false;
        }
        self.look_at = now + quarter(self.limit);
        let read = report.reading_since.load(Ordering::Relaxed);
        if read == 0 || read != self.read {
            (self.read, self.quarters) = (read, 0);
            return false;
        }
        self.quarters += 1;
        self.quarters >= QUARTERS && self.limit.is_some()
    }

    fn check(&mut self, report: &Report, socket: &TcpStream) -> Option<Error> {
        if self.look(report) { self.judge(report, socket) } else { None }
    }

    /// Why, once it has: `None` if it is not silent after all.
    fn judge(&mut self, report: &Report, socket: &TcpStream) -> Option<Error> {
        let limit = self.limit?;
        let deadline = Instant::now() + GRACE;
        let queue = loop {
            match send_queue_bytes(socket) {
                Some(bytes) if bytes > 0 && Instant::now() < deadline && !report.is_closed() => {
                    thread::sleep(GRACE / 20);
                }
                queue => break queue,
            }
        };
        if report.reading_since.load(Ordering::Relaxed) != self.read {
            self.quarters = 0;
            return None;
        }
        let who = match queue {
            Some(0) => "the leader is stalled: its system answers, it does not",
            Some(_) => "the network to the leader is stalled: nothing that we send is answered",
            None => "the leader, or the network to it, is stalled",
        };
        let why = format!("nothing was heard for {limit:.1?}; {who}");
        Some(Error::connection("given up", io::Error::new(ErrorKind::TimedOut, why)))
    }
}

fn quarter(limit: Option<Duration>) -> Duration {
    limit.unwrap_or(Duration::from_secs(3600)) / QUARTERS
}

/// The thread that writes.
pub(super) struct Speaker<'a> {
    pub(super) report: &'a Report,
    pub(super) socket: &'a TcpStream,
    pub(super) shared: &'a Shared,
    /// Between heartbeats.
    pub(super) interval: Duration,
    /// How long the leader may be silent; `None`: it sends no heartbeats.
    pub(super) silence: Option<Duration>,
}

impl Speaker<'_> {
    /// The thread's life: until the report is closed or finished, or something failed, which it notes there.
    pub(super) fn run(&self) {
        let mut silence = Silence::new(self.silence);
        // A leader that does not read must not keep us from seeing that it does not speak either.
        if let Err(error) = self.socket.set_write_timeout(Some(quarter(self.silence))) {
            self.report.fail(Error::connection("could not be set up", error));
            return;
        }
        let mut wire = Vec::new();
        let mut speak_at = Instant::now() + self.interval;
        loop {
            let next = self.report.next(speak_at.min(silence.look_at));
            // Before anything is said: what was just sent would be taken for unanswered.
            if let Some(error) = silence.check(self.report, self.socket) {
                self.report.fail(error);
                return;
            }
            let messages = match next {
                Next::End => return,
                Next::Say(message) => vec![message],
                Next::Look if Instant::now() < speak_at => continue,
                Next::Look => self.report.heartbeat(),
            };
            wire.clear();
            messages.iter().for_each(|message| message.encode(&mut wire));
            if let Err(error) = self.write(&wire, &mut silence) {
                self.report.state.lock().torn = true;
                self.report.fail(error);
                return;
            }
            speak_at = Instant::now() + self.interval;
            if let Some(Message::Marks(marks)) = messages.last() {
                self.shared.update(|status| {
                    status.acknowledged_bytes = marks.written;
                    status.durable_bytes = marks.durable;
                });
            }
        }
    }

    fn write(&self, mut bytes: &[u8], silence: &mut Silence) -> Result<(), Error> {
        let lost = |error| Error::connection("lost while writing", error);
        let mut socket = self.socket;
        while !bytes.is_empty() {
            match socket.write(bytes) {
                Ok(0) => return Err(lost(ErrorKind::WriteZero.into())),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.report.is_closed() {
                        return Err(lost(ErrorKind::ConnectionAborted.into()));
                    }
                    if let Some(error) = silence.check(self.report, self.socket) {
                        return Err(error);
                    }
                }
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
