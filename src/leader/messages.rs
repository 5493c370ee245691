//! The ack thread of a follower that knows the extension: reads its messages.
//!
//! It hands an inventory to the writer thread, which is bounded: it is taken once, after it was asked for, up to
//! [`INVENTORY_BYTES_MAX`]. Marks and heartbeats it deals with itself. It ends like the ack thread of a 1.0.0 follower
//! (`acks.rs`), and holds no lock while reading.

use std::convert::Infallible;
use std::io::{self, BufReader, ErrorKind, Read};
use std::sync::Arc;
use std::time::Duration;

use super::Core;
use super::acks::{Watch, connection_ended};
use super::follower::FollowerHandle;
use super::stalls::Grace;
use super::status::EvictionReason;
use crate::protocol::ProtocolError;
use crate::protocol::extension::{Held, Message};
use crate::sys::channel::{self, Receiver, Sender};
use crate::sys::net::TcpStream;

/// The most an inventory may hold in memory, in bytes: 4 TiB in chunks, or a million files with long names.
const INVENTORY_BYTES_MAX: usize = 512 << 20;

pub(super) struct MessageThread {
    core: Arc<Core>,
    follower: Arc<FollowerHandle>,
    socket: TcpStream,
    inventory: Sender<Option<Vec<Held>>>,
}

impl MessageThread {
    /// With the thread comes the inventory, in parts; `None` ends it.
    pub(super) fn new(
        core: &Arc<Core>,
        follower: &Arc<FollowerHandle>,
        socket: TcpStream,
    ) -> (Self, Receiver<Option<Vec<Held>>>) {
        // Bounded by what an inventory may hold: see the module's documentation.
        let (inventory, parts) = channel::unbounded();
        (Self { core: core.clone(), follower: follower.clone(), socket, inventory }, parts)
    }

    pub(super) fn run(self) {
        let Err(ended) = self.read_all();
        connection_ended(&self.core, &self.follower, Err(ended));
    }

    /// Ends with the connection.
    fn read_all(&self) -> Result<Infallible, ProtocolError> {
        let watched = Watched::new(&self.core, &self.follower, &self.socket)?;
        let mut reader = BufReader::with_capacity(64 << 10, watched);
        let mut inventory_bytes = Some(0);
        loop {
            match (Message::read(&mut reader)?, &mut inventory_bytes) {
                (Some(Message::Inventory(files)), Some(bytes)) => {
                    *bytes += files.iter().map(held_bytes).sum::<usize>();
                    if *bytes > INVENTORY_BYTES_MAX {
                        return Err(ProtocolError::Malformed("inventory: it is too long"));
                    }
                    let _ = self.inventory.send(Some(files));
                }
                (Some(Message::InventoryEnd), Some(_)) => {
                    inventory_bytes = None;
                    let _ = self.inventory.send(None);
                }
                (Some(Message::Inventory(_) | Message::InventoryEnd), None) => {
                    return Err(ProtocolError::Malformed("inventory: it was not asked for"));
                }
                (Some(Message::Marks(marks)), _) => {
                    self.follower.take_marks(marks)?;
                    self.core.passed(&self.follower);
                }
                (Some(Message::Farewell(why)), _) => {
                    self.follower.evict_at(EvictionReason::Left(why), self.core.stream.position());
                }
                // Of a kind that a later version knows.
                (Some(Message::Heartbeat) | None, _) => {}
            }
        }
    }
}

fn held_bytes(held: &Held) -> usize {
    size_of::<Held>() + held.path.as_str().len() + size_of_val(&held.digests[..])
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
