//! The reader thread: connects, syncs, applies, and starts over when the connection ends.
//!
//! It asks a leader for the extension, and goes on there (`extended`) or in 1.0.0. For each connection of 1.0.0 it starts the
//! thread that writes (see `ack`), and outlives it. It ends when it is
//! told to stop, after one sync if that was asked for, or when trying again would not mend what failed.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::ack::{self, Outbox};
use super::apply::{Actions, apply_stream};
use super::connection::{bound_unanswered, connect, handshake};
use super::contact::{Limit, standing};
use super::digester::Digester;
use super::digests::Digests;
use super::dir::Dir;
use super::flush::Unflushed;
use super::kept::{Bounds, Keeper};
use super::negotiate::{Answer, Dialects, negotiate};
use super::shared::Shared;
use super::status::State;
use super::sync::Sync;
use super::track::Track;
use crate::beneath::Beneath;
use crate::config::{Durability, FollowerConfig, Protocol};
use crate::datadir::DataDir;
use crate::digests::file::Who;
use crate::error::Error;
use crate::own_folder::{OwnFolder, is_incomplete};
use crate::own_time::OwnTime;
use crate::position::noted;
use crate::protocol::extension::VERSION;
use crate::protocol::{ProtocolError, frame_reader};
use crate::sys::channel;
use crate::sys::net::{Shutdown, TcpStream};
use crate::sys::random;
use crate::sys::rustix;
use crate::sys::time::Instant;
use crate::thread::Group;

/// Between two words of the same refusal.
const SAY_REFUSED_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked whether the directory is where it was.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked what was kept for long enough.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

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
    /// Why a leader was refused, and when that was last said.
    pub(super) refused: Option<(String, Instant)>,
}

impl Runner {
    /// The thread's life.
    pub(super) fn run(mut self) -> Result<(), Error> {
        let (running, ended) = channel::bounded::<()>(0);
        let own = OwnFolder::of(self.data.path())?;
        let (dir, digests, shared) = (self.dir.clone(), self.digests.clone(), self.shared.clone());
        // As an earlier run left it: from here on we mark it ourselves.
        let who = Who::Follower { is_marked: is_incomplete(self.dir.path()) };
        let digester = Arc::new(Digester { dir, digests, shared, own, who });
        self.digests.begin_load();
        let its = digester.clone();
        let spawned = self.threads.spawn("paceline-digest", move || {
            let _running = running;
            its.run();
        });
        spawned.map_err(|error| Error::connection("could not start its thread", error))?;
        let outcome = self.connections();
        // It ends with everything else.
        self.shared.stop();
        let _ = ended.recv();
        if !matches!(outcome, Err(Error::DirectoryLost { .. })) {
            digester.save_at_end();
            if let Some(place) = self.shared.place().filter(|_| !self.shared.hurries()) {
                noted(place.keep(self.data.own()));
            }
        }
        outcome
    }

    /// One after another.
    fn connections(&mut self) -> Result<(), Error> {
        let mut delays = Delays::new(self.config.retry_delay_min, self.config.retry_delay_max);
        let mut full_delays = Delays::new(FULL_DELAY_MIN, FULL_DELAY_MAX);
        while let Some(leader) = self.shared.leader() {
            if leader != self.config.leader {
                // It was not this one that could not be reached.
                delays.reset();
                self.config.leader = leader;
            }
            let mut in_sync = false;
            let Err(mut error) = self.connection(&mut in_sync) else { return Ok(()) };
            if let Some(lost) = self.data.lost() {
                // Whatever failed, failed for that.
                error = lost;
            }
            self.shared.unregister();
            if self.shared.stopping() {
                return Ok(());
            }
            let leader = self.config.leader.clone();
            let why = error.to_string();
            let moved = self.shared.moved();
            let fatal =
                matches!(error, Error::SecretRefused | Error::ForeignDirectory { .. } | Error::DirectoryLost { .. })
                    || self.config.once;
            if in_sync && matches!(error, Error::Connection { .. }) {
                // A full disk, or a leader that breaks the protocol, would have us sync again and again without pause.
                delays.reset();
                full_delays.reset();
            }
            let full = full_at(&error);
            // Grows also while the disk is full: room that is made again and again is not to be used up without pause.
            let retry = delays.next();
            let usual = if full.is_some() { full_delays.next() } else { retry };
            let delay = usual.max(self.away.take().unwrap_or_default());
            match &error {
                _ if moved => log::info!("no longer follows {leader}"),
                _ if error.is_refusal() && !fatal && !self.refused_anew(&why) => {
                    log::debug!("refused {leader} again; next attempt in {delay:.1?}");
                }
                _ if fatal => log::error!("ended, disconnected from {leader}: {why}"),
                Error::Io { source, .. } => {
                    let remedy = remedy(source);
                    log::error!("disconnected from {leader}: {why}; next attempt in {delay:.1?}; {remedy}");
                }
                _ => log::warn!("disconnected from {leader}: {why}; next attempt in {delay:.1?}"),
            }
            self.shared.update(|status| {
                status.state = if error.is_refusal() { State::Refusing } else { State::Connecting };
                (status.last_disconnect, status.leader_files) = (Some(why), None);
            });
            if moved {
                continue;
            }
            if fatal {
                return Err(error);
            }
            match full {
                Some(path) => self.wait_for_room(path, delay, retry),
                None => self.shared.sleep(delay),
            }
        }
        Ok(())
    }

    pub(super) fn keep(&self) -> Bounds {
        Bounds { age: self.config.keep, bytes: self.config.keep_bytes }
    }

    /// Drops something that is kept on that disk and waits for `retry`, or waits until there is more room where a file did not fit, or for
    /// `delay`: a quota, or room that others take, does not show.
    fn wait_for_room(&self, path: &Path, delay: Duration, retry: Duration) {
        let name = path.strip_prefix(self.dir.path()).ok().and_then(Path::to_str).unwrap_or_default();
        match self.dir.drop_oldest_kept(None, &self.dir.kept_tops_beside(name)) {
            Ok(None) => {}
            // What the next sync keeps may fill the disk again.
            Ok(Some(_)) => return self.shared.sleep(retry),
            Err(error) => log::warn!("cannot drop what is kept: {error}"),
        }
        let until = Instant::now() + delay;
        let had = room(path, self.dir.path());
        while Instant::now() < until && !self.shared.stopping() && !self.shared.moved() {
            self.shared.sleep(FULL_LOOK_EVERY.min(until.saturating_duration_since(Instant::now())));
            if room(path, self.dir.path()) >= had.saturating_add(FULL_ROOM_MIN_BYTES) {
                log::info!("there is room again for {}", path.display());
                return;
            }
        }
    }

    /// Whether it is time to say that a leader was refused: it may stay so for days.
    fn refused_anew(&mut self, why: &str) -> bool {
        let anew = self.refused.as_ref().is_none_or(|(said, at)| said != why || at.elapsed() >= SAY_REFUSED_EVERY);
        if anew {
            self.refused = Some((why.to_owned(), Instant::now()));
        }
        anew
    }

    /// What the thread does that looks after the directory: it cuts the connection should that be lost, and drops what was kept for
    /// long enough.
    pub(super) fn looks_after(root: &Beneath, dir: &Dir, keep: Bounds, shared: &Shared) {
        let mut expired: Option<Instant> = None;
        loop {
            if root.is_lost().is_some() {
                // Each time: a connection may just be beginning.
                shared.cut();
            } else if expired.is_none_or(|at| at.elapsed() >= EXPIRE_EVERY) {
                // Nothing else depends on it.
                if let Err(error) = dir.expire_kept(keep) {
                    log::warn!("cannot drop what was kept for long enough: {error}");
                }
                expired = Some(Instant::now());
            }
            if !shared.goes_on_after(LOOK_EVERY) {
                return;
            }
        }
    }

    /// One connection, from connecting to its end. `Ok`: a sync was all that was asked for, and it is done.
    fn connection(&mut self, in_sync: &mut bool) -> Result<(), Error> {
        if let Some(lost) = self.data.lost() {
            return Err(lost);
        }
        self.dir.note_mounts()?;
        // Of a connection that was cut while a file was coming.
        self.data.own().tidy()?;
        self.dir.tidy()?;
        self.mend()?;
        let (mut socket, mut address) = connect(&self.config, &self.shared)?;
        if self.dialects.ask(self.config.protocol, address) {
            let answer = negotiate(&socket, &self.config)?;
            self.dialects.note(address, answer);
            if answer == Answer::Extension {
                return self.extended(socket, address, in_sync);
            }
            if self.config.protocol == Protocol::Extension {
                let said = format!(
                    "the leader at {address} does not speak version {VERSION} of Paceline's extension, and only that is to be spoken"
                );
                return Err(ProtocolError::OutOfPlace(said).into());
            }
            log::debug!("the leader at {address} does not know the extension: 1.0.0 it is");
            drop(socket);
            (socket, address) = connect(&self.config, &self.shared)?;
        }
        handshake(&socket, &self.config, self.data.id())?;
        log::info!("connected to the leader at {address}; it speaks 1.0.0");
        self.shared.update_with_lag(None, |status| status.connections += 1);
        let writer = Writer::start(self, Arc::new(socket))?;
        let result = self.follow(&writer, in_sync);
        if *in_sync {
            self.dialects.ended();
        }
        let outbox = writer.outbox.clone();
        let result = writer.end(result);
        self.unflushed.merge(outbox.left());
        result
    }

    /// After a failed flush, of this process or one before: see [`mend`](super::mend).
    fn mend(&mut self) -> Result<(), Error> {
        if !self.dir.is_suspect() {
            return Ok(());
        }
        log::info!(
            "a flush has failed: the files that were not durable are copied before they are compared with the leader's"
        );
        self.digests.forget_all();
        let bytes = self.dir.mend(&self.unflushed, &|| self.shared.check())?;
        self.unflushed = Unflushed::default();
        log::info!("{bytes} bytes were copied, and are durable");
        Ok(())
    }

    fn follow(&mut self, writer: &Writer, in_sync: &mut bool) -> Result<(), Error> {
        let mut reader = frame_reader(&*writer.socket);
        let began = Instant::now();
        let durable = self.config.durability == Durability::Durable;
        // Until it is known better.
        let unflushed = std::mem::replace(&mut self.unflushed, Unflushed::all());
        let flush = durable.then(|| !unflushed.is_empty());
        let keeper = Keeper::new(&self.dir, self.keep());
        let sync = Sync::new(&mut reader, keeper, (&writer.outbox, &self.shared), flush);
        let standing = standing(&self.data, &self.config, None)?;
        let links = sync.run(&mut self.data, Limit { standing, max_delete: self.config.max_delete })?;
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
        let mut actions = Actions::new(&self.dir);
        // Whatever this leader is told: what is here may have been made durable for another one.
        actions.guard = true;
        actions.links = links;
        if durable {
            actions.track = Some(Track::new(self.digests.clone(), Unflushed::default()));
        }
        let tell = (&*writer.outbox, &*self.shared);
        let Err(ended) = apply_stream(&mut reader, &mut actions, self.config.durability, tell);
        if durable {
            self.unflushed = actions.unflushed();
        }
        Err(ended)
    }
}

/// Delays before a follower whose disk is full tries again by itself. Each try may move much in vain.
const FULL_DELAY_MIN: Duration = Duration::from_secs(5);
const FULL_DELAY_MAX: Duration = Duration::from_secs(300);
/// How often it looks whether there is room meanwhile, and how much more that must be.
const FULL_LOOK_EVERY: Duration = Duration::from_millis(500);
const FULL_ROOM_MIN_BYTES: u64 = 1 << 20;

/// The file that did not fit, if that is what went wrong.
fn full_at(error: &Error) -> Option<&Path> {
    match error {
        Error::Io { path, source, .. }
            if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
        {
            Some(path)
        }
        _ => None,
    }
}

/// Bytes that are free where a file is, or would be; `root` is where it would be at the least.
fn room(path: &Path, root: &Path) -> u64 {
    let stat = path.ancestors().take_while(|above| above.starts_with(root)).find_map(|at| rustix::fs::statvfs(at).ok());
    stat.map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What a person can do about a failed write or flush.
fn remedy(error: &io::Error) -> &'static str {
    const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::StorageFull | ErrorKind::QuotaExceeded, _) => {
            "nothing is acknowledged until there is space; make some, and the follower goes on by itself"
        }
        (ErrorKind::ReadOnlyFilesystem, _) => {
            "nothing is acknowledged until the file system can be written to; if a failure of the disk made it read-only, the \
             kernel's log says so"
        }
        (_, Some(EIO)) => {
            "the disk has failed, see the kernel's log; nothing is acknowledged until it can be written to; a file that cannot be \
             read any more may be removed and will be sent again"
        }
        _ => "nothing is acknowledged until it succeeds",
    }
}

/// A connection's writing thread, as its reader holds it.
struct Writer {
    socket: Arc<TcpStream>,
    outbox: Arc<Outbox>,
    /// Disconnected when the thread has ended.
    ended: channel::Receiver<()>,
}

impl Writer {
    fn start(runner: &Runner, socket: Arc<TcpStream>) -> Result<Self, Error> {
        let (outbox, dir, shared) = (Arc::new(Outbox::default()), runner.dir.clone(), runner.shared.clone());
        let (running, ended) = channel::bounded(0);
        let its = (socket.clone(), outbox.clone());
        let not_started = |error| Error::connection("could not start its thread", error);
        let own_time = OwnTime::start(&runner.threads).map_err(not_started)?;
        let spawned = runner.threads.spawn("paceline-ack", move || {
            let ((socket, outbox), _running) = (its, running);
            ack::run(&outbox, &*socket, &dir, &shared, &own_time);
            // Whoever reads has to hear of a failure.
            let _ = socket.shutdown(Shutdown::Both);
        });
        spawned.map_err(not_started)?;
        Ok(Self { socket, outbox, ended })
    }

    /// Ends the thread and the connection, and says why that was: what the thread failed at is what the reader saw as a close.
    fn end(self, result: Result<(), Error>) -> Result<(), Error> {
        if result.is_ok() {
            // The end of the last requests may still have to be written: the leader is not to take this for a failure.
            self.outbox.finish();
            let _ = self.ended.recv();
        }
        let failure = self.outbox.failure();
        drop(self);
        match (result, failure) {
            (Err(Error::Connection { .. }), Some(failure)) => Err(failure),
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
        half + half.mul_f64(random::f64())
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
