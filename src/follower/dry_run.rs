//! What a leader would send a copy, without taking any of it: how a copy is compared with its live leader.
//!
//! It connects as a follower that nobody knows, by an id at random, tells what is in the copy as any follower does, and notes what comes between the beginning of the sync and
//! its end instead of doing it. Then it leaves. It takes no lock of the directory, and changes nothing in it; it never makes anything durable, so it is in sync at no time.
//!
//! What comes is compared with the copy's bytes as they are when it comes, so it is told to the byte what differs. A copy that is followed meanwhile is late by what is on its way: a second look,
//! on a connection of its own and some seconds later, tells what is late from what differs. Only what differs in the same way both times does; a file that changes all the time may be neither.
//!
//! One thread, the caller's, beside the one that writes ([`report`](super::report)). No locks.

mod noted;

use std::io::{self, BufRead};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use self::noted::Noted;
pub(crate) use self::noted::{Look, both_times};
use super::connection::{connect, lost};
use super::dir::Dir;
use super::disk::{Found, Jobs, Worker};
use super::extended::{ShutAtEnd, say_farewell};
use super::negotiate::{Answer, introduce, negotiate};
use super::report::{Report, Speaker, Watched};
use super::shared::Shared;
use crate::beneath::Beneath;
use crate::config::FollowerConfig;
use crate::error::Error;
use crate::flusher::SystemFlusher;
use crate::own_folder::OwnFolder;
use crate::protocol::extension::{CONTROL_BYTES_MAX, Control, VERSION, chunks_max};
use crate::protocol::{ActionDecoder, ActionKind, Event, ProtocolError, frame_reader, framing_bytes};
use crate::sums::bucket_of;
use crate::sys::net::{Shutdown, TcpStream};
use crate::sys::time::Instant;
use crate::thread::{DROP_JOIN_MAX, Group};
use crate::types::{DataSetId, NodeId, RelPath};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);

/// What the leader hears at the end.
const FAREWELL: &str = "it has compared a copy, which is done";

/// A copy, and the leader that it is to be compared with.
pub(crate) struct DryRun {
    config: FollowerConfig,
    copy: Beneath,
    dir: Arc<Dir>,
    data_set: Option<DataSetId>,
    shared: Arc<Shared>,
}

impl DryRun {
    /// Opens the copy, which is [`FollowerConfig::data_dir`].
    pub(crate) fn new(config: FollowerConfig) -> Result<Self, Error> {
        config.check()?;
        let copy = Beneath::open(&config.data_dir).map_err(|error| Error::io("open", &config.data_dir, error))?;
        let path: &Path = copy.path();
        let mut dir = Dir::open_flushed_by(path, Arc::new(SystemFlusher))?;
        dir.changes_nothing = true;
        let data_set = OwnFolder::of(path)?.data_set()?;
        Ok(Self { config, dir: Arc::new(dir), data_set, shared: Arc::default(), copy })
    }

    /// Files of the copy that were dealt with, and how many there are, while it looks.
    pub(crate) fn files(&self) -> (u64, u64) {
        let sync = self.shared.status().sync;
        (sync.files_hashed, sync.files_listed)
    }

    /// Ends it soon, by [`Error::ShuttingDown`] or what comes of it. Never blocks.
    pub(crate) fn stop(&self) {
        self.shared.stop();
    }

    /// Waits until it is time for a second look.
    pub(crate) fn pause(&self) {
        self.shared.sleep(PAUSE);
    }

    /// Looks once. Blocks for as long as it takes to read what is not known yet of the copy, and what the leader sends.
    pub(crate) fn look(&self) -> Result<Look, Error> {
        let (socket, address) = connect(&self.config, &self.shared)?;
        if negotiate(&socket, &self.config)? == Answer::V1 {
            let said = format!(
                "the leader at {address} does not speak version {VERSION} of Paceline's extension, by which a copy is compared: give two directories, or a leader that is Paceline's"
            );
            return Err(ProtocolError::OutOfPlace(said).into());
        }
        let leader = introduce(&socket, &self.config, NodeId::random(), self.data_set)?;
        if let (Some(ours), Some(theirs)) = (self.data_set, leader.data_set)
            && ours != theirs
        {
            return Err(Error::OtherDataSet { dir: self.copy.path().to_owned(), ours, theirs });
        }
        let (socket, report, threads) = (Arc::new(socket), Arc::new(Report::default()), Group::default());
        let (its_socket, its_report, its_shared) = (socket.clone(), report.clone(), self.shared.clone());
        let (interval, silence) = (leader.interval, leader.silence);
        let spawned = threads.spawn("paceline-ack", move || {
            let _socket = ShutAtEnd(its_socket.clone());
            Speaker { report: &its_report, socket: &its_socket, shared: &its_shared, interval, silence }.run();
        });
        spawned.map_err(|error| Error::connection("could not start its thread", error))?;
        let ending = Ending { socket: &socket, report: &report, threads: &threads };
        let worker = Worker {
            jobs: Arc::new(Jobs::default()),
            dir: self.dir.clone(),
            digests: self.dir.digests.clone(),
            report: report.clone(),
            shared: self.shared.clone(),
            chunks_max: chunks_max(),
        };
        let looked = Listener::new(worker, &self.copy).run(&mut frame_reader(Watched(&*socket, &report)));
        drop(ending);
        let looked = match (looked, report.failure()) {
            (Err(Error::Connection { .. }), Some(failure)) => Err(failure),
            (looked, _) => looked,
        };
        if report.is_whole() {
            // It is only for the leader's log.
            let _ = say_farewell(&socket, FAREWELL);
        }
        self.shared.unregister();
        self.shared.check().and(looked)
    }
}

/// Ends the thread that writes.
struct Ending<'a> {
    socket: &'a TcpStream,
    report: &'a Report,
    threads: &'a Group,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.report.close();
        let _ = self.socket.shutdown(Shutdown::Read);
        self.threads.join(Instant::now() + DROP_JOIN_MAX);
    }
}

/// Where the conversation is.
enum Phase {
    Before,
    /// The sums were told of what was found.
    Sums {
        found: Found,
        bits: u8,
        buckets: Vec<u32>,
    },
    Told,
    Syncing,
    Over,
}

/// The reader's side of one connection.
struct Listener<'a> {
    worker: Worker,
    phase: Phase,
    decoder: ActionDecoder,
    /// A control that is coming in.
    control: Option<(RelPath, Vec<u8>)>,
    /// Action bytes dealt with.
    total: u64,
    noted: Noted<'a>,
}

fn out_of_place(said: &str) -> Error {
    ProtocolError::OutOfPlace(said.to_owned()).into()
}

impl<'a> Listener<'a> {
    fn new(worker: Worker, copy: &'a Beneath) -> Self {
        let noted = Noted::new(copy);
        Self { worker, phase: Phase::Before, decoder: ActionDecoder::new(), control: None, total: 0, noted }
    }

    fn run(mut self, reader: &mut impl BufRead) -> Result<Look, Error> {
        while !matches!(self.phase, Phase::Over) {
            let block = reader.fill_buf().map_err(|error| lost("in the sync", error.into()))?;
            if block.is_empty() {
                return Err(lost("in the sync", ProtocolError::Io(io::ErrorKind::UnexpectedEof.into())));
            }
            let length = block.len();
            self.block(block)?;
            reader.consume(length);
        }
        self.noted.end()
    }

    fn block(&mut self, mut block: &[u8]) -> Result<(), Error> {
        while !matches!(self.phase, Phase::Over)
            && let Some(event) = self.decoder.next(&mut block)?
        {
            match event {
                Event::Action { path, kind } => self.begin(path, kind)?,
                Event::Payload { bytes, remaining } => self.payload(bytes, remaining)?,
                Event::Heartbeat => {}
            }
        }
        if matches!(self.phase, Phase::Syncing) {
            // Not so much as that is acknowledged at the end: who was told of no more is not in sync.
            self.worker.report.written_of_bulk(self.total);
        }
        Ok(())
    }

    fn begin(&mut self, path: RelPath, kind: ActionKind) -> Result<(), Error> {
        self.count(framing_bytes(&path));
        if let ActionKind::Append(length) = kind
            && Control::is_control(&path)
        {
            if length > CONTROL_BYTES_MAX {
                let value = i64::try_from(length).unwrap_or(i64::MAX);
                return Err(ProtocolError::Length { what: "control's length", value, max: CONTROL_BYTES_MAX }.into());
            }
            self.control = Some((path, Vec::new()));
            return Ok(());
        }
        if !matches!(self.phase, Phase::Syncing) && !path.is_reserved() {
            return Err(out_of_place("an action on a file before the sync"));
        }
        self.noted.action(path, kind)
    }

    fn payload(&mut self, bytes: &[u8], remaining: u64) -> Result<(), Error> {
        self.count(bytes.len() as u64);
        let Some((_, content)) = &mut self.control else { return self.noted.payload(bytes) };
        content.extend_from_slice(bytes);
        match self.control.take_if(|_| remaining == 0) {
            Some((path, content)) => match Control::decode(&path, &content)? {
                Some(control) => self.control(control),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    fn count(&mut self, bytes: u64) {
        self.total += bytes;
        self.worker.report.received(self.total);
    }

    fn control(&mut self, control: Control) -> Result<(), Error> {
        match (control, &mut self.phase) {
            (Control::Want(bits), Phase::Before) => {
                let found = self.worker.sums(bits, true)?;
                let told = self.worker.jobs.told(false).unwrap_or_default();
                self.noted.look.lens = told.names.into_iter().collect();
                self.noted.look.files = found.files.len() as u64;
                self.phase = Phase::Sums { found, bits, buckets: Vec::new() };
                Ok(())
            }
            (Control::Tell(more), Phase::Sums { buckets, bits, .. }) => {
                buckets.extend(more);
                if buckets.len() > 1 << *bits || !buckets.is_sorted() {
                    return Err(out_of_place("files were asked for of buckets that are none, or not the next"));
                }
                Ok(())
            }
            (Control::TellEnds, Phase::Sums { .. }) => {
                let Phase::Sums { found, bits, buckets } = std::mem::replace(&mut self.phase, Phase::Told) else {
                    return Ok(());
                };
                let of_these = |path: &RelPath| buckets.binary_search(&bucket_of(path, bits)).is_ok();
                let items = found.items.into_iter().filter(|(path, _)| of_these(path));
                let files = found.files.into_iter().filter(of_these);
                let noted = &mut self.noted;
                self.worker.inventory(files, items, &mut |path, len| noted.told(path, len))
            }
            (Control::SyncBegins { .. }, Phase::Sums { .. } | Phase::Told) => {
                self.phase = Phase::Syncing;
                Ok(())
            }
            (Control::SyncEnds, Phase::Syncing) => {
                self.phase = Phase::Over;
                Ok(())
            }
            (Control::Opening(_) | Control::Heartbeat { .. } | Control::Position(_) | Control::MakeDurable, _) => {
                Ok(())
            }
            (Control::Goodbye { reason, .. }, _) => {
                let said = format!("the leader does not let a copy be compared now: {reason}");
                Err(Error::connection("ended", io::Error::other(said)))
            }
            (control, Phase::Syncing) => self.noted.control(control),
            _ => Err(out_of_place("a control that does not belong here")),
        }
    }
}
