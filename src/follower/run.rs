//! The reader thread: connects, syncs, applies, and starts over when the connection ends.
//!
//! It asks a leader for the extension, and goes on there (`extended`) or in 1.0.0. For each connection of 1.0.0 it starts the
//! thread that writes (see `ack`), and outlives it. It ends when it is
//! told to stop, after one sync if that was asked for, or when trying again would not mend what failed.

use std::io::ErrorKind;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ack::{self, Outbox};
use super::apply::apply_stream;
use super::connection::{bound_unanswered, connect, handshake, lost};
use super::digests::Digests;
use super::dir::Dir;
use super::negotiate::{Answer, Dialects, negotiate};
use super::shared::Shared;
use super::status::State;
use super::sync::Sync;
use super::track::Unflushed;
use crate::config::FollowerConfig;
use crate::datadir::DataDir;
use crate::error::Error;
use crate::protocol::{ProtocolError, frame_reader};
use crate::thread::Group;

/// All that the reader thread owns. Dropping it gives the directory's lock back.
pub(super) struct Runner {
    pub(super) config: FollowerConfig,
    pub(super) data: DataDir,
    pub(super) dir: Arc<Dir>,
    pub(super) shared: Arc<Shared>,
    pub(super) threads: Arc<Group>,
    /// Which leaders do not know the extension.
    pub(super) dialects: Dialects,
    /// Digests of local files, from the connections before.
    pub(super) digests: Arc<Digests>,
    /// What the connections before did not make durable.
    pub(super) unflushed: Unflushed,
    /// The leader let us go, and wants us to stay away for so long.
    pub(super) away: Option<Duration>,
}

impl Runner {
    /// The thread's life.
    pub(super) fn run(mut self) -> Result<(), Error> {
        let mut delays = Delays::new(self.config.retry_delay_min, self.config.retry_delay_max);
        while let Some(leader) = self.shared.leader() {
            if leader != self.config.leader {
                // It was not this one that could not be reached.
                delays.reset();
                self.config.leader = leader;
            }
            let mut in_sync = false;
            let Err(error) = self.connection(&mut in_sync) else { return Ok(()) };
            self.shared.unregister();
            if self.shared.stopping() {
                return Ok(());
            }
            let leader = &self.config.leader;
            let why = error.to_string();
            let moved = self.shared.moved();
            let fatal = matches!(error, Error::SecretRefused | Error::ForeignDirectory { .. }) || self.config.once;
            if in_sync && matches!(error, Error::Connection { .. }) {
                // A full disk, or a leader that breaks the protocol, would have us sync again and again without pause.
                delays.reset();
            }
            let delay = delays.next().max(self.away.take().unwrap_or_default());
            match &error {
                _ if moved => log::info!("no longer follows {leader}"),
                _ if fatal => log::error!("ended, disconnected from {leader}: {why}"),
                Error::Io { .. } => log::error!("disconnected from {leader}: {why}; next attempt in {delay:.1?}"),
                _ => log::warn!("disconnected from {leader}: {why}; next attempt in {delay:.1?}"),
            }
            self.shared.update(|status| {
                status.state = State::Connecting;
                status.last_disconnect = Some(why);
            });
            if moved {
                continue;
            }
            if fatal {
                return Err(error);
            }
            self.shared.sleep(delay);
        }
        Ok(())
    }

    /// One connection, from connecting to its end. `Ok`: a sync was all that was asked for, and it is done.
    fn connection(&mut self, in_sync: &mut bool) -> Result<(), Error> {
        // Of a connection that was cut while a file was coming.
        self.dir.tidy()?;
        let (mut socket, mut address) = connect(&self.config, &self.shared)?;
        if self.dialects.ask(self.config.protocol, address) {
            let answer = negotiate(&socket, &self.config)?;
            if !self.dialects.note(address, answer) {
                return Err(lost("in the handshake", ProtocolError::Io(ErrorKind::UnexpectedEof.into())));
            }
            if answer == Answer::Extension {
                log::info!("connected to the leader at {address}");
                return self.extended(socket, in_sync);
            }
            log::debug!("the leader at {address} does not know the extension ({answer:?}): 1.0.0 it is");
            drop(socket);
            (socket, address) = connect(&self.config, &self.shared)?;
        }
        handshake(&socket, &self.config, self.data.id())?;
        log::info!("connected to the leader at {address}; it speaks 1.0.0");
        self.shared.update_with_lag(None, |status| status.connections += 1);
        // It does not keep account of them.
        self.unflushed = Unflushed::all();
        let writer = Writer::start(&self.threads, Arc::new(socket), self.shared.clone())?;
        let result = self.follow(&writer, in_sync);
        if *in_sync {
            self.dialects.ended();
        }
        writer.end(result)
    }

    fn follow(&mut self, writer: &Writer, in_sync: &mut bool) -> Result<(), Error> {
        let mut reader = frame_reader(&*writer.socket);
        let began = Instant::now();
        Sync::new(&mut reader, &self.dir, &writer.outbox, &self.shared).run(&mut self.data, self.config.adopt)?;
        let sync = self.shared.status().sync;
        log::info!(
            "full sync done: {} files, of which {} received with {} bytes; {} deleted; in {:.1?}",
            sync.files_listed,
            sync.files_received,
            sync.bytes_received,
            sync.files_deleted,
            began.elapsed()
        );
        if self.config.once {
            return Ok(());
        }
        bound_unanswered(&writer.socket)?;
        self.shared.update(|status| {
            status.state = State::Streaming;
            (status.applied_bytes, status.acknowledged_bytes, status.durable_bytes) = (0, 0, 0);
        });
        log::info!("in sync, following the stream");
        *in_sync = true;
        let (shared, outbox) = (&self.shared, &writer.outbox);
        let never = apply_stream(&mut reader, &self.dir, &mut |bytes| {
            // In this order: what is acknowledged was counted as applied.
            shared.update(|status| status.applied_bytes += bytes);
            outbox.applied(bytes);
        })?;
        match never {}
    }
}

/// A connection's writing thread, as its reader holds it.
struct Writer {
    socket: Arc<TcpStream>,
    outbox: Arc<Outbox>,
    /// Disconnected when the thread has ended.
    ended: crossbeam_channel::Receiver<()>,
}

impl Writer {
    fn start(threads: &Group, socket: Arc<TcpStream>, shared: Arc<Shared>) -> Result<Self, Error> {
        let outbox = Arc::new(Outbox::default());
        let (running, ended) = crossbeam_channel::bounded(0);
        let its = (socket.clone(), outbox.clone());
        let spawned = threads.spawn("paceline-ack", move || {
            let ((socket, outbox), _running) = (its, running);
            ack::run(&outbox, &*socket, &shared);
            // Whoever reads has to hear of a failed write.
            let _ = socket.shutdown(Shutdown::Both);
        });
        spawned.map_err(|error| Error::connection("could not start its thread", error))?;
        Ok(Self { socket, outbox, ended })
    }

    /// Ends the thread and the connection, and says why that was: a failed write is what the reader saw as a close.
    fn end(self, result: Result<(), Error>) -> Result<(), Error> {
        if result.is_ok() {
            // The end of the last requests may still have to be written: the leader is not to take this for a failure.
            self.outbox.finish();
            let _ = self.ended.recv();
        }
        let failure = self.outbox.failure();
        drop(self);
        match (result, failure) {
            (Err(Error::Connection { .. }), Some(failure)) => Err(Error::connection("lost while writing", failure)),
            (result, _) => result,
        }
    }
}

/// The thread ends also when the reader's panicked.
impl Drop for Writer {
    fn drop(&mut self) {
        self.outbox.close();
        let _ = self.socket.shutdown(Shutdown::Both);
        // Disconnected: its end is all there is to wait for.
        let _ = self.ended.recv();
    }
}

/// Delays between attempts: they double up to a maximum, and the half of each is chance, so that followers that lost
/// their leader at the same moment do not all come back at the same moment.
struct Delays {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Delays {
    fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    fn next(&mut self) -> Duration {
        let half = self.next / 2;
        self.next = self.next.saturating_mul(2).min(self.max);
        half + half.mul_f64(fastrand::f64())
    }

    /// After a connection that was good.
    fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_their_maximum_with_half_of_each_by_chance() {
        let mut delays = Delays::new(Duration::from_millis(100), Duration::from_millis(350));
        for whole in [100, 200, 350, 350] {
            let delay = delays.next();
            let whole = Duration::from_millis(whole);
            assert!(delay >= whole / 2 && delay <= whole, "{delay:?} of {whole:?}");
        }
        delays.reset();
        assert!(delays.next() <= Duration::from_millis(100));
    }
}
