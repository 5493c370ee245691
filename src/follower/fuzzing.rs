//! What fuzz targets reach of a follower's side: all that it does with what a leader says after the handshake, against a directory.

use std::convert::Infallible;
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::ack::Outbox;
use super::apply::{Actions, apply_stream};
use super::contact::{Limit, Standing};
use super::dir::Dir;
use super::disk::{Jobs, Worker};
use super::flush::Unflushed;
use super::kept::{Bounds, Keeper};
use super::report::Report;
use super::session::{Parts, Session};
use super::shared::Shared;
use super::status::State;
use super::sync::Sync;
use super::track::Track;
use crate::config::Durability;
use crate::datadir::DataDir;
use crate::error::Error;
use crate::flusher::Flusher;
use crate::sys::fd::BorrowedFd;
use crate::sys::thread;
use crate::thread::{Group, deadline};

/// How a leader stands to the directory.
#[derive(Clone, Copy, Debug)]
pub enum Stands {
    /// Its data set is the directory's.
    Trusted,
    /// It may delete most of it.
    Unproven,
    /// It may delete nothing.
    Guest,
}

/// What a leader says, in blocks of a size.
pub struct FromLeader<'a> {
    /// The bytes.
    pub said: &'a [u8],
    /// Bytes of a block; 1 at least.
    pub block_bytes: usize,
    /// How it stands to the directory.
    pub stands: Stands,
    /// Whether the follower makes durable what it acknowledges with 1.0.0; with the extension, whether it ends after a sync.
    pub other: bool,
}

impl FromLeader<'_> {
    fn limit(&self) -> Limit {
        let standing = match self.stands {
            Stands::Trusted => Standing::Trusted,
            Stands::Unproven => Standing::Unproven,
            Stands::Guest => Standing::Guest,
        };
        Limit { standing, max_delete: 0.9 }
    }
}

const KEEP: Bounds = Bounds { age: Duration::from_secs(3600), bytes: 1 << 20 };

/// Few: a leader can have made files of any size, which are holes.
const CHUNKS_MAX: usize = 1 << 10;

/// No disk is meant.
#[derive(Debug)]
struct NoFlush;

impl Flusher for NoFlush {
    fn file(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn whole_file(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn folder(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn file_system(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// A connection of 1.0.0 from the first list on, to its end, which is an error.
pub fn follow_v1(path: &Path, leader: &FromLeader<'_>) -> Result<Infallible, Error> {
    let mut data = DataDir::open_unclaimed(path, None, None)?;
    let dir = Dir::open_flushed_by(data.path(), Arc::new(NoFlush))?;
    let (outbox, shared) = (Outbox::default(), Shared::default());
    let mut reader = Blocks { left: leader.said, block_bytes: leader.block_bytes, before_block: || {} };
    let durability = if leader.other { Durability::Durable } else { Durability::Written };
    let flush = leader.other.then_some(true);
    let sync = Sync::new(&mut reader, Keeper::new(&dir, KEEP), (&outbox, &shared), flush);
    let links = sync.run(&mut data, leader.limit())?;
    let mut actions = Actions::new(&dir);
    actions.links = links;
    if leader.other {
        actions.track = Some(Track::new(Arc::default(), Unflushed::default()));
        actions.guard = true;
    }
    apply_stream(&mut reader, &mut actions, durability, (&outbox, &shared))
}

/// A connection of the extension from the leader's first action on, to its end.
pub fn follow_extension(path: &Path, leader: &FromLeader<'_>) -> Result<(), Error> {
    let mut data = DataDir::open_unclaimed(path, None, None)?;
    let dir = Arc::new(Dir::open_flushed_by(data.path(), Arc::new(NoFlush))?);
    let (shared, report, jobs) = (Arc::<Shared>::default(), Arc::<Report>::default(), Arc::<Jobs>::default());
    let worker = Worker {
        jobs: jobs.clone(),
        dir: dir.clone(),
        digests: dir.digests.clone(),
        report: report.clone(),
        shared: shared.clone(),
        chunks_max: CHUNKS_MAX,
    };
    let digests = worker.digests.clone();
    // A leader goes on when it was told what it asked for.
    let all_told = || {
        let wanted = || {
            let status = shared.status();
            status.state == State::Syncing && status.sync.files_total.is_none()
        };
        while wanted() && !jobs.is_idle() {
            report.drop_messages();
            thread::yield_now();
        }
    };
    let mut reader = Blocks { left: leader.said, block_bytes: leader.block_bytes, before_block: all_told };
    let threads = Group::default();
    let spawned = threads.spawn("paceline-disk", move || worker.run());
    spawned.map_err(|error| Error::connection("could not start its thread", error))?;
    let parts = Parts {
        data: &mut data,
        limit: leader.limit(),
        theirs: None,
        term: Some(1),
        once: leader.other,
        keep: KEEP,
        digests: &digests,
        shared: &shared,
        report: &report,
        jobs: &jobs,
    };
    let mut session = Session::new(parts, &dir, Track::new(digests.clone(), Unflushed::default()));
    let result = session.run(&mut reader);
    let _ = session.end();
    report.close();
    jobs.close();
    let left = threads.join(deadline(Duration::from_secs(20)));
    assert_eq!(left, 0, "the thread of the disk does not end");
    result
}

/// Bytes in blocks; one that asks for something to be told ends with the question.
struct Blocks<'a, F> {
    left: &'a [u8],
    block_bytes: usize,
    before_block: F,
}

impl<F: Fn()> BufRead for Blocks<'_, F> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        const ASKS: [&[u8]; 2] = [b"$paceline/want", b"$paceline/tell-ends"];
        (self.before_block)();
        let block = &self.left[..self.block_bytes.max(1).min(self.left.len())];
        let end_of = |name: &[u8]| block.windows(name.len()).position(|bytes| bytes == name).map(|at| at + name.len());
        // Behind the name come the content's length, and its one byte.
        let end = ASKS.into_iter().filter_map(end_of).min();
        Ok(end.and_then(|at| block.get(..at + 9)).unwrap_or(block))
    }

    fn consume(&mut self, bytes: usize) {
        self.left = &self.left[bytes..];
    }
}

impl<F: Fn()> Read for Blocks<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

/// The moment that a folder of what is kept is named after, in seconds since 1970.
pub fn kept_at(name: &str) -> Option<u64> {
    super::kept::kept_at(name)
}

/// The name for such a moment.
pub fn kept_name(seconds: u64) -> String {
    super::kept::kept_name(seconds)
}
