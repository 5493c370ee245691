//! The host: threads that write to the leader's directory, announce it, and commit, with the pauses users make.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use paceline::config::Durability;
use paceline::leader::{CommitLevel, CommitOutcome, Quorum, Refusal, Unknown};
use paceline::sys::fs::{self, FileExt};
use paceline::sys::thread;
use paceline::sys::time::Instant;
use paceline::sys::world::{self, What};
use paceline::{AppendError, Leader, RelPath, StreamPosition};

use crate::machine::tree_of;
use crate::model::{self, Confirmed, Model};

/// What the host's threads share with the driver; outlives the process.
pub(crate) struct Host {
    pub(crate) model: Model,
    pub(crate) pause: Duration,
    /// So many percent of what is done.
    pub(crate) commits: u8,
    /// So many percent of what is written.
    pub(crate) large: u8,
    /// So many percent of what is done otherwise.
    pub(crate) in_place: u8,
    /// They do not wait for commits.
    pub(crate) commits_call: bool,
    /// Whether appends may wait.
    pub(crate) appends_wait: bool,
    /// Set by the driver: the threads end.
    pub(crate) stop: AtomicBool,
    /// Of each writer: the next record and state, across processes.
    pub(crate) writers: Vec<Writer>,
    /// The longest commit that was confirmed, in ns, since this was last taken.
    pub(crate) longest_commit: AtomicU64,
    pub(crate) calm: Calm,
}

/// The end of a history, when nothing happens any more and everybody is in sync: a few more commits, one after the other.
#[derive(Default)]
pub(crate) struct Calm {
    /// Set by the driver.
    pub(crate) wanted: AtomicBool,
    pub(crate) outcome: Mutex<Option<CalmOutcome>>,
}

#[derive(Clone, Debug)]
pub(crate) enum CalmOutcome {
    /// All were committed, durable on all; the longest took this.
    Committed(Duration),
    /// The leader's disk has failed once: it confirms nothing any more.
    LocalSyncFailed,
    /// One was not.
    Other(String),
}

const CALM_COMMITS: u32 = 20;
const CALM_TIMEOUT: Duration = Duration::from_secs(20);

/// The threads of the host while one leader is open.
pub(crate) struct Writers {
    threads: Vec<thread::JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// How many of them write no more.
    resting: Arc<AtomicUsize>,
}

impl Writers {
    pub(crate) fn are_idle(&self) -> bool {
        self.resting.load(Ordering::Relaxed) == self.threads.len()
    }

    /// Tells them to end, and waits until they have.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

#[derive(Default)]
pub(crate) struct Writer {
    records: AtomicU64,
    states: AtomicU64,
    rotations: AtomicU64,
    /// How much it has done.
    done: AtomicU64,
}

/// After so much, a writer pauses at least for so long: histories are to be short, not their files large.
const TIRED: [(u64, Duration); 2] = [(400, Duration::from_millis(40)), (150, Duration::from_millis(8))];

/// What the writers have announced at one leader and is not confirmed: a commit confirms all up to its position, whoever did it.
#[derive(Default)]
struct Pending(Mutex<Vec<(StreamPosition, Confirmed)>>);

impl Pending {
    fn add(&self, position: StreamPosition, what: Confirmed) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((position, what));
    }

    fn take(&self, upto: StreamPosition) -> Vec<Confirmed> {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (confirmed, left) = std::mem::take(&mut *pending).into_iter().partition(|(at, _)| *at <= upto);
        *pending = left;
        let confirmed: Vec<_> = confirmed;
        confirmed.into_iter().map(|(_, what)| what).collect()
    }
}

impl Host {
    /// Starts the threads, in the process that leads; they end when the leader is closed, too.
    pub(crate) fn start(self: &Arc<Self>, leader: &Arc<Leader>, dir: &Path) -> Writers {
        let tree = tree_of(dir);
        let term = self.model.begin(&tree);
        // What is there when the leader starts is announced by that: the first commit confirms it, too.
        let there = (0..self.writers.len()).flat_map(|number| model::records_in(&tree, &folder(number)));
        let there = there.map(|what| (StreamPosition::default(), what)).collect();
        let pending = Arc::new(Pending(Mutex::new(there)));
        self.spawn("writer", |number, stop| {
            let writing = Writing {
                host: self.clone(),
                leader: leader.clone(),
                dir: dir.to_owned(),
                stop: stop.clone(),
                term,
                pending: pending.clone(),
            };
            move || {
                while let Err(error) = writing.write(number) {
                    world::current().trace(|| format!("writer {number}: {error}"));
                    if matches!(error, AppendError::ShuttingDown) {
                        break;
                    }
                    thread::sleep(Duration::from_millis(20));
                }
                move || writing.host.calm(number, &writing.stop, &writing.leader, || writing.calm_record(number))
            }
        })
    }

    /// Starts threads that write to a watched directory and tell nobody.
    pub(crate) fn start_unheard(self: &Arc<Self>, leader: &Arc<Leader>, dir: &Path) -> Writers {
        let term = self.model.begin(&tree_of(dir));
        self.spawn("program", |number, stop| {
            let (host, leader, dir, stop) = (self.clone(), leader.clone(), dir.to_owned(), stop.clone());
            move || {
                let unheard = Unheard { host: &host, dir: &dir, stop: &stop, term };
                while let Err(error) = unheard.write(number) {
                    world::current().trace(|| format!("program {number}: {error}"));
                    thread::sleep(Duration::from_millis(20));
                }
                move || host.calm(number, &stop, &leader, || Ok(leader.position()))
            }
        })
    }

    /// Before what a writer does next.
    fn pause_of(&self, number: usize) -> Duration {
        let done = self.writers[number].done.fetch_add(1, Ordering::Relaxed);
        let tired = TIRED.iter().find(|(from, _)| done >= *from).map_or(Duration::ZERO, |(_, pause)| *pause);
        self.pause.max(tired)
    }

    /// How much is written at once: the largest is not copied into the stream, but read from disk for each follower.
    fn length(&self, size: u32, kind: u8) -> usize {
        let most = match 99 - kind {
            large if large < self.large => 600 << 10,
            0..30 => 8 << 10,
            _ => 200,
        };
        1 + size as usize % most
    }

    /// Each of them writes, and then rests.
    fn spawn<Write, Rest>(&self, name: &str, writing: impl Fn(usize, &Arc<AtomicBool>) -> Write) -> Writers
    where
        Write: FnOnce() -> Rest + Send + 'static,
        Rest: FnOnce(),
    {
        let (stop, resting) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..self.writers.len()).filter_map(|number| {
            let (write, resting) = (writing(number, &stop), resting.clone());
            let body = move || {
                let rest = write();
                resting.fetch_add(1, Ordering::Relaxed);
                rest();
            };
            thread::Builder::new().name(format!("{name}-{number}")).spawn(body).ok()
        });
        Writers { threads: threads.collect(), stop, resting }
    }

    /// The first of the writers, when it writes no more: once the driver wants it, `record` and a commit of it, again and again.
    fn calm(
        &self,
        number: usize,
        stop: &AtomicBool,
        leader: &Leader,
        record: impl Fn() -> Result<StreamPosition, AppendError>,
    ) {
        if number > 0 {
            return;
        }
        while !self.calm.wanted.load(Ordering::Relaxed) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let durable = CommitLevel { durability: Durability::Durable, quorum: Quorum::All };
        let mut longest = Duration::ZERO;
        for _ in 0..CALM_COMMITS {
            let began = Instant::now();
            let outcome = match record() {
                Ok(position) => leader.commit_at(position, durable, CALM_TIMEOUT),
                Err(error) => return self.calm_ends(stop, CalmOutcome::Other(error.to_string())),
            };
            longest = longest.max(began.elapsed());
            match outcome {
                CommitOutcome::Committed(_) => {}
                CommitOutcome::Refused(Refusal::LocalSyncFailed) | CommitOutcome::Unknown(Unknown::LocalSyncFailed) => {
                    return self.calm_ends(stop, CalmOutcome::LocalSyncFailed);
                }
                other => return self.calm_ends(stop, CalmOutcome::Other(other.to_string())),
            }
        }
        self.calm_ends(stop, CalmOutcome::Committed(longest));
    }

    fn calm_ends(&self, stop: &AtomicBool, outcome: CalmOutcome) {
        // Of a leader that ends, the next one tells.
        if !stop.load(Ordering::Relaxed) {
            *self.calm.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        }
    }
}

fn folder(number: usize) -> String {
    format!("w{number}")
}

/// A program that writes to a watched directory.
struct Unheard<'a> {
    host: &'a Host,
    dir: &'a Path,
    stop: &'a AtomicBool,
    term: model::Term,
}

impl Unheard<'_> {
    fn write(&self, number: usize) -> std::io::Result<()> {
        let (host, files, world) = (self.host, &self.host.model, world::current());
        let writer = &host.writers[number];
        let folder = format!("w{number}");
        let log = format!("{folder}/log");
        while !self.stop.load(Ordering::Relaxed) && !host.stop.load(Ordering::Relaxed) {
            let (choice, size, kind) = world.chance_of_process(|rng| (rng.u8(..100), rng.u32(..), rng.u8(..100)));
            fs::create_dir_all(self.dir.join(&folder))?;
            match choice {
                _ if size % 100 < u32::from(host.in_place) => self.page(&folder, size / 100)?,
                0..60 => {
                    let tag = model::tag(number, writer.records.fetch_add(1, Ordering::Relaxed));
                    let record = model::record(&tag, host.length(size, kind));
                    let file =
                        fs::File::options().write(true).create(true).truncate(false).open(self.dir.join(&log))?;
                    let at = file.metadata()?.len();
                    files.appended(self.term, &log, &record);
                    file.write_all_at(&record, at)?;
                }
                60..75 => {
                    let state = writer.states.fetch_add(1, Ordering::Relaxed) + 1;
                    let (name, bytes) = (format!("{folder}/state"), model::state(state, host.length(size, kind)));
                    let temporary = self.dir.join(format!("{name}.new"));
                    write_new(&temporary, &bytes)?;
                    files.replaced(self.term, &name, bytes);
                    fs::rename(&temporary, self.dir.join(&name))?;
                }
                75..85 => {
                    let to = format!("{log}.{}", writer.rotations.fetch_add(1, Ordering::Relaxed));
                    files.renamed(self.term, &log, &to);
                    ignore_missing(fs::rename(self.dir.join(&log), self.dir.join(&to)))?;
                }
                _ => {
                    let name = format!("{folder}/state");
                    files.deleted(self.term, &name);
                    ignore_missing(fs::remove_file(self.dir.join(&name)))?;
                }
            }
            thread::sleep(host.pause_of(number).max(Duration::from_micros(200)));
        }
        Ok(())
    }

    /// A file of pages that are written to in place, often with one more at its end.
    fn page(&self, folder: &str, choice: u32) -> std::io::Result<()> {
        let name = format!("{folder}/pages");
        let file = fs::File::options().write(true).create(true).truncate(false).open(self.dir.join(&name))?;
        let len = file.metadata()?.len();
        let pages = usize::try_from(len.div_ceil(model::PAGE_STRIDE)).expect("few");
        let write = |page: usize| match self.host.model.next_page(&name, page) {
            Some(number) => {
                let bytes = vec![number; usize::try_from(model::PAGE_BYTES).expect("small")];
                file.write_all_at(&bytes, page as u64 * model::PAGE_STRIDE)
            }
            None => Ok(()),
        };
        if pages > 0 {
            write(choice as usize % pages)?;
        }
        if pages < model::PAGES_MAX && !choice.is_multiple_of(3) {
            write(pages)?;
        }
        Ok(())
    }
}

fn ignore_missing(done: std::io::Result<()>) -> std::io::Result<()> {
    done.or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// The host while one leader is open.
struct Writing {
    host: Arc<Host>,
    leader: Arc<Leader>,
    dir: PathBuf,
    stop: Arc<AtomicBool>,
    term: model::Term,
    pending: Arc<Pending>,
}

impl Writing {
    fn write(&self, number: usize) -> Result<(), AppendError> {
        let Self { host, leader, .. } = self;
        let files = &host.model;
        let world = world::current();
        let writer = &host.writers[number];
        let folder = folder(number);
        let log = path(&format!("{folder}/log"));
        let mut last = StreamPosition::default();
        while !self.stop.load(Ordering::Relaxed) && !host.stop.load(Ordering::Relaxed) {
            let (choice, size, kind) = world.chance_of_process(|rng| (rng.u8(..100), rng.u32(..), rng.u8(..100)));
            let others = 100 - host.commits;
            match u32::from(choice) * 78 / u32::from(others) {
                _ if choice >= others => self.commit(last, kind),
                _ if size % 100 < u32::from(host.in_place) => last = self.page(&folder, size / 100)?.unwrap_or(last),
                0..45 => last = self.record(number, host.length(size, kind))?,
                45..55 => {
                    let state = writer.states.fetch_add(1, Ordering::Relaxed) + 1;
                    let name = path(&format!("{folder}/state"));
                    let bytes = model::state(state, host.length(size, kind));
                    let temporary = self.dir.join(format!("{folder}/state.new"));
                    self.folder(&folder)?;
                    write_new(&temporary, &bytes).map_err(|source| failed("write", &name, source))?;
                    fs::rename(&temporary, self.dir.join(name.as_str()))
                        .map_err(|source| failed("rename", &name, source))?;
                    files.replaced(self.term, name.as_str(), bytes);
                    last = announced(|| leader.replace(&name))?;
                    self.pending.add(last, Confirmed::State { name: name.as_str().to_owned(), number: state });
                }
                55..62 => {
                    let rotation = writer.rotations.fetch_add(1, Ordering::Relaxed);
                    let to = path(&format!("{folder}/log.{rotation}"));
                    if leader.file_len(&log).is_none_or(|len| len == 0) {
                        continue;
                    }
                    fs::rename(self.dir.join(log.as_str()), self.dir.join(to.as_str()))
                        .map_err(|source| failed("rename", &log, source))?;
                    files.renamed(self.term, log.as_str(), to.as_str());
                    last = announced(|| leader.rename(&log, &to))?;
                }
                _ => self.scratch(&folder, size, kind)?,
            }
            let pause = host.pause_of(number);
            if !pause.is_zero() {
                thread::sleep(pause);
            }
        }
        Ok(())
    }

    fn record(&self, number: usize, length: usize) -> Result<StreamPosition, AppendError> {
        let log = path(&format!("{}/log", folder(number)));
        let tag = model::tag(number, self.host.writers[number].records.fetch_add(1, Ordering::Relaxed));
        let record = model::record(&tag, length);
        // Also if nothing is in it yet.
        self.host.model.appended(self.term, log.as_str(), &[]);
        let mut file = self.leader.file(&log)?;
        // It may be there in part, should this fail.
        self.host.model.appended(self.term, log.as_str(), &record);
        let appended = admitted(|| file.append(&record));
        let position = appended.inspect_err(|_| self.look_again(log.as_str()))?;
        self.pending.add(position, Confirmed::Record(tag));
        Ok(position)
    }

    fn calm_record(&self, number: usize) -> Result<StreamPosition, AppendError> {
        self.record(number, 10)
    }

    /// A file that grows by announcements of what was written, shrinks, and goes.
    fn scratch(&self, folder: &str, size: u32, kind: u8) -> Result<(), AppendError> {
        let Self { leader, .. } = self;
        let files = &self.host.model;
        let name = path(&format!("{folder}/scratch"));
        let local = self.dir.join(name.as_str());
        let len = leader.file_len(&name);
        match (kind % 10, len) {
            (0, Some(_)) => {
                fs::remove_file(&local).map_err(|source| failed("delete", &name, source))?;
                files.deleted(self.term, name.as_str());
                announced(|| leader.delete(&name))?;
            }
            (1, Some(len)) if len > 0 => {
                let to = u64::from(size) % len;
                let file = fs::File::options().write(true).open(&local);
                let file = file.map_err(|source| failed("open", &name, source))?;
                let kept = fs::read(&local).map_err(|source| failed("read", &name, source))?;
                let to_index = usize::try_from(to).expect("small");
                file.set_len(to).map_err(|source| failed("truncate", &name, source))?;
                files.replaced(self.term, name.as_str(), kept[..to_index].to_vec());
                announced(|| leader.truncate(&name, to))?;
            }
            (_, len) => {
                let at = len.unwrap_or_default();
                self.folder(folder)?;
                let bytes = vec![size.to_le_bytes()[0]; self.host.length(size, kind)];
                let file = fs::File::options().write(true).create(true).truncate(false).open(&local);
                let file = file.map_err(|source| failed("open", &name, source))?;
                files.appended(self.term, name.as_str(), &bytes);
                if let Err(source) = file.write_all_at(&bytes, at) {
                    // What was announced by nobody is taken off again.
                    let _ = if len.is_some() { file.set_len(at) } else { fs::remove_file(&local) };
                    self.look_again(name.as_str());
                    return Err(failed("write", &name, source));
                }
                world::watch_waits();
                let mut appended = leader.append(&name, at, &bytes);
                let waits = world::watched_waits();
                if let Some(wait) = waits.iter().find(|wait| wait.what != What::Lock && !self.host.appends_wait) {
                    world::current().fail(format!("P1: an append waited for {:?} at {}", wait.what, wait.at));
                }
                if matches!(appended, Err(AppendError::WouldBlock)) {
                    appended = admitted(|| leader.append(&name, at, &bytes));
                }
                appended?;
            }
        }
        Ok(())
    }

    /// A file of pages, with holes between them, that are written to in place: each time with a higher number. `None`: nothing was done.
    fn page(&self, folder: &str, choice: u32) -> Result<Option<StreamPosition>, AppendError> {
        let (leader, files) = (&self.leader, &self.host.model);
        let name = path(&format!("{folder}/pages"));
        let (page, len) = (choice as usize % (model::PAGES_MAX + 1), leader.file_len(&name).unwrap_or_default());
        let pages = usize::try_from(len.div_ceil(model::PAGE_STRIDE)).expect("few");
        self.folder(folder)?;
        let file = fs::File::options().write(true).create(true).truncate(false).open(self.dir.join(name.as_str()));
        let file = file.map_err(|source| failed("open", &name, source))?;
        let written = if page < pages {
            let Some(number) = files.next_page(name.as_str(), page) else { return Ok(None) };
            let at = page as u64 * model::PAGE_STRIDE;
            // What is there of a last page that was cut off in the middle of being made.
            let bytes = vec![number; usize::try_from((len - at).min(model::PAGE_BYTES)).expect("a page")];
            let written = file.write_all_at(&bytes, at);
            written.map(|()| (page, number, admitted(|| leader.write_at(&name, at, &bytes))))
        } else if pages < model::PAGES_MAX {
            let Some(number) = files.next_page(name.as_str(), pages) else { return Ok(None) };
            let at = pages as u64 * model::PAGE_STRIDE;
            let bytes = vec![number; usize::try_from(model::PAGE_BYTES).expect("small")];
            let extended = if len == at { Ok(()) } else { file.set_len(at) };
            let written = extended.and_then(|()| file.write_all_at(&bytes, at));
            let announce = || {
                if leader.file_len(&name).is_some_and(|len| len < at) {
                    leader.truncate(&name, at)?;
                }
                leader.append(&name, at, &bytes)
            };
            written.map(|()| (pages, number, admitted(announce)))
        } else {
            // All of it, which is read from the disk.
            let all = fs::read(self.dir.join(name.as_str())).map_err(|source| failed("read", &name, source))?;
            return admitted(|| leader.write_at(&name, 0, &all)).map(Some);
        };
        match written {
            Ok((page, number, Ok(position))) => {
                let is_whole = len == 0 || page < pages - 1 || page == pages;
                if is_whole {
                    self.pending.add(position, Confirmed::Page { name: name.as_str().to_owned(), page, number });
                }
                Ok(Some(position))
            }
            Ok((.., Err(error))) => Err(error),
            // Some of it may be there.
            Err(_) => announced(|| leader.replace(&name)).map(Some),
        }
    }

    /// Of what this writer did last, or of all there is.
    fn commit(&self, last: StreamPosition, kind: u8) {
        let position = if kind.is_multiple_of(2) { last } else { self.leader.position() };
        if position == StreamPosition::default() {
            return;
        }
        let durable = kind < 85;
        let durability = if durable { Durability::Durable } else { Durability::Written };
        let level = CommitLevel { durability, quorum: Quorum::All };
        let (host, pending, began) = (self.host.clone(), self.pending.clone(), Instant::now());
        let done = move |outcome: CommitOutcome| {
            if !outcome.is_committed() {
                world::current().trace(|| format!("commit of {position}: {outcome}"));
                return;
            }
            let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            host.longest_commit.fetch_max(took, Ordering::Relaxed);
            let what = if durable { pending.take(position) } else { Vec::new() };
            world::current().trace(|| format!("confirmed up to {position}, {durability}: {what:?}"));
            host.model.confirmed(what);
        };
        let timeout = Duration::from_secs(5);
        if self.host.commits_call {
            self.leader.commit_then(position, level, timeout, done);
        } else {
            done(self.leader.commit_at(position, level, timeout));
        }
    }

    /// Nobody knows how much of what was written is there.
    fn look_again(&self, name: &str) {
        let files = &self.host.model;
        match tree_of(&self.dir).remove(name) {
            Some(content) => files.replaced(self.term, name, content),
            None => files.deleted(self.term, name),
        }
    }

    fn folder(&self, folder: &str) -> Result<(), AppendError> {
        fs::create_dir_all(self.dir.join(folder)).map_err(|source| failed("make", &path(folder), source))
    }
}

/// What was done to a file has to be announced; where that fails it is done again.
fn announced(announce: impl Fn() -> Result<StreamPosition, AppendError>) -> Result<StreamPosition, AppendError> {
    loop {
        match announce() {
            Err(AppendError::Io { .. } | AppendError::WouldBlock) => thread::sleep(Duration::from_millis(5)),
            done => return done,
        }
    }
}

/// Tried again for as long as there is no room.
fn admitted<T>(mut announce: impl FnMut() -> Result<T, AppendError>) -> Result<T, AppendError> {
    loop {
        match announce() {
            Err(AppendError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
            result => return result,
        }
    }
}

fn write_new(to: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let file = fs::File::options().write(true).create(true).truncate(true).open(to)?;
    file.write_all_at(bytes, 0)?;
    // Else a power cut might leave the new name without the new content, and nothing of the old.
    file.sync_data()
}

fn path(name: &str) -> RelPath {
    RelPath::new(name).expect("a good name")
}

fn failed(doing: &'static str, path: &RelPath, source: std::io::Error) -> AppendError {
    AppendError::Io { doing, path: path.clone(), source }
}
