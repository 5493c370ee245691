//! The ack thread of a follower that knows the extension: reads its messages.
//!
//! What is told of its files it hands to the writer thread, which takes it as it comes: a few messages wait, and then the follower does. None is taken before it was
//! asked for, nor after the last. Marks and heartbeats it deals with itself. It ends like the ack thread of a 1.0.0 follower
//! (`acks.rs`), and holds no lock while reading.

use std::convert::Infallible;
use std::io::{self, BufReader, ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::error::Error;
use crate::leader::core::Core;
use crate::leader::link::acks::{Watch, connection_ended};
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::gone::gone;
use crate::leader::peers::stalls::Grace;
use crate::leader::peers::stalls::{TICKS, tick};
use crate::leader::peers::status::EvictionReason;
use crate::protocol::ProtocolError;
use crate::protocol::extension::{Held, Item, Message, Sum};
use crate::sys::channel::{self, Receiver, RecvTimeoutError, Sender};
use crate::sys::net::TcpStream;
use crate::types::{RelPath, StreamPosition};

/// Messages that wait for the writer thread.
const WAITING_MAX: usize = 4;

/// What a follower tells of its files.
pub(in crate::leader) enum Told {
    Sums(Vec<Sum>),
    Files(Vec<Held>),
    Items(Vec<(RelPath, Item)>),
    /// That was all of the one or the other.
    End,
}

/// What was asked for, and is not told to its end.
mod awaited {
    pub(super) const NOTHING: u8 = 0;
    pub(super) const SUMS: u8 = 1;
    pub(super) const FILES: u8 = 2;
}

const NOT_ASKED: ProtocolError = ProtocolError::Malformed("inventory: it was not asked for");

pub(in crate::leader) struct MessageThread {
    core: Arc<Core>,
    follower: Arc<FollowerHandle>,
    socket: TcpStream,
    told: Sender<Told>,
    awaited: Arc<AtomicU8>,
}

/// What a follower tells, for the writer thread.
pub(in crate::leader) struct Answers {
    told: Receiver<Told>,
    awaited: Arc<AtomicU8>,
}

impl Answers {
    /// The sums of all buckets are about to be asked for.
    pub(in crate::leader) fn await_sums(&self) {
        self.awaited.store(awaited::SUMS, Ordering::Release);
    }

    /// Files are.
    pub(in crate::leader) fn await_files(&self) {
        self.awaited.store(awaited::FILES, Ordering::Release);
    }

    /// The next part. Blocks until it comes. Who tells nothing for `sync_timeout`, and has not digested anything either, is evicted.
    pub(in crate::leader) fn next(&self, core: &Core, follower: &FollowerHandle) -> Result<Told, Error> {
        let timeout = core.config.sync_timeout;
        let slice = tick(timeout);
        let digested = || follower.sync.bytes_digested_there.load(Ordering::Relaxed);
        let (mut waited, mut before) = (0, digested());
        loop {
            match self.told.recv_timeout(slice) {
                Ok(told) => return Ok(told),
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
                Err(RecvTimeoutError::Timeout) => {
                    waited = if digested() > before { 0 } else { waited + 1 };
                    before = digested();
                    if waited >= TICKS {
                        follower.evict_at(EvictionReason::NoSyncProgress, core.stream.position());
                        return Err(gone());
                    }
                }
            }
        }
    }

    /// Waits until the message thread has ended, `at_most` so long. To be called when nothing is asked for any more.
    pub(in crate::leader) fn wait_for_end(&self, at_most: Duration) {
        let _ = self.told.recv_timeout(at_most);
    }
}

impl MessageThread {
    pub(in crate::leader) fn new(
        core: &Arc<Core>,
        follower: &Arc<FollowerHandle>,
        socket: TcpStream,
    ) -> (Self, Answers) {
        let (told, parts) = channel::bounded(WAITING_MAX);
        let awaited = Arc::new(AtomicU8::new(awaited::NOTHING));
        let answers = Answers { told: parts, awaited: awaited.clone() };
        (Self { core: core.clone(), follower: follower.clone(), socket, told, awaited }, answers)
    }

    pub(in crate::leader) fn run(self) {
        let Err(ended) = self.read_all();
        connection_ended(&self.core, &self.follower, Err(ended));
    }

    /// Ends with the connection.
    fn read_all(&self) -> Result<Infallible, ProtocolError> {
        let watched = Watched::new(&self.core, &self.follower, &self.socket)?;
        let mut reader = BufReader::with_capacity(64 << 10, watched);
        loop {
            match (Message::read(&mut reader)?, self.awaited.load(Ordering::Acquire)) {
                (Some(Message::Sums(sums)), awaited::SUMS) => self.hand_over(Told::Sums(sums))?,
                (Some(Message::Inventory(files)), awaited::FILES) => self.hand_over(Told::Files(files))?,
                (Some(Message::Items(items)), awaited::FILES) => self.hand_over(Told::Items(items))?,
                (Some(Message::SumsEnd), awaited::SUMS) | (Some(Message::InventoryEnd), awaited::FILES) => {
                    // Before the writer thread, which then may ask for more, hears of it.
                    self.awaited.store(awaited::NOTHING, Ordering::Release);
                    self.hand_over(Told::End)?;
                }
                (Some(Message::Sums(_) | Message::SumsEnd), _)
                | (Some(Message::Inventory(_) | Message::Items(_) | Message::InventoryEnd), _) => {
                    return Err(NOT_ASKED);
                }
                (Some(Message::Marks(marks)), _) => {
                    self.follower.take_marks(marks)?;
                    self.core.passed(&self.follower);
                }
                (Some(Message::Heartbeat(digested)), _) => {
                    self.follower.sync.bytes_digested_there.store(digested, Ordering::Relaxed);
                }
                (Some(Message::Kept(position)), _) => self.core.commits.kept(&self.follower, StreamPosition(position)),
                (Some(Message::Farewell(why)), _) => {
                    self.follower.evict_at(EvictionReason::Left(why), self.core.stream.position());
                }
                // Of a kind that a later version knows.
                (None, _) => {}
            }
        }
    }

    /// Waits for the writer thread, which may be reading our own files.
    fn hand_over(&self, told: Told) -> Result<(), ProtocolError> {
        // Fails once the writer thread has gone, which ends when the connection does.
        self.told.send(told).map_err(|_| io::Error::from(ErrorKind::ConnectionAborted).into())
    }
}

/// Reads from the socket, and evicts the follower when it is silent or stands still.
struct Watched<'a> {
    core: &'a Core,
    follower: &'a FollowerHandle,
    socket: &'a TcpStream,
    watch: Watch,
    /// Ticks until silence is an end; ticks of silence so far. Our own clock's, as everywhere: a leader that was itself
    /// stopped finds one tick gone.
    silent_ticks_max: u32,
    silent_ticks: u32,
    grace: Grace,
}

impl<'a> Watched<'a> {
    fn new(core: &'a Core, follower: &'a FollowerHandle, socket: &'a TcpStream) -> io::Result<Self> {
        let silence = core.config.heartbeat_interval * 3 + Duration::from_secs(2);
        let watch = Watch::new(&core.config, silence);
        socket.set_read_timeout(Some(watch.tick))?;
        let silent_ticks_max = watch.ticks(silence);
        Ok(Self { core, follower, socket, watch, silent_ticks_max, silent_ticks: 0, grace: Grace::default() })
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let overdue = self.watch.overdue(&self.core.stream, self.follower, self.socket);
            if self.grace.begins_anew(&self.core.stream.stalls) {
                self.silent_ticks = 0;
            }
            let silent = (self.silent_ticks >= self.silent_ticks_max).then_some(EvictionReason::Silent);
            if let Some(reason) = overdue.or(silent) {
                self.follower.evict_at(reason, self.core.stream.position());
                return Err(ErrorKind::ConnectionAborted.into());
            }
            match self.socket.read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.watch.is_due = true;
                    self.silent_ticks += 1;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => {
                    self.silent_ticks = 0;
                    return read;
                }
            }
        }
    }
}
