//! The host: threads that write to the leader's directory, announce it, and commit, with the pauses users make.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use paceline::config::Durability;
use paceline::leader::{CommitLevel, Quorum};
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
    /// Set by the driver: the threads end.
    pub(crate) stop: AtomicBool,
    /// Of each writer: the next record and state, across processes.
    pub(crate) writers: Vec<Writer>,
    /// The longest commit that was confirmed, in ns, since this was last taken.
    pub(crate) longest_commit: AtomicU64,
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
const QUICK_MAX: u64 = 400;
const TIRED: Duration = Duration::from_millis(5);

/// What a writer has done since its last confirmed commit.
#[derive(Default)]
struct Pending {
    position: StreamPosition,
    what: Vec<Confirmed>,
}

impl Host {
    /// Starts the threads, in the process that leads; they end when `stop` is set, or the leader is closed.
    pub(crate) fn start(
        self: &Arc<Self>,
        leader: &Arc<Leader>,
        dir: &Path,
        stop: &Arc<AtomicBool>,
    ) -> Vec<thread::JoinHandle<()>> {
        let term = self.model.begin(&tree_of(dir));
        let threads = (0..self.writers.len()).map(|number| {
            let writing =
                Writing { host: self.clone(), leader: leader.clone(), dir: dir.to_owned(), stop: stop.clone(), term };
            let body = move || {
                while let Err(error) = writing.write(number) {
                    world::current().trace(|| format!("writer {number}: {error}"));
                    if matches!(error, AppendError::ShuttingDown) {
                        break;
                    }
                    thread::sleep(Duration::from_millis(20));
                }
            };
            thread::Builder::new().name(format!("writer-{number}")).spawn(body)
        });
        threads.filter_map(Result::ok).collect()
    }
}

impl Host {
    /// Starts threads that write to a watched directory and tell nobody.
    pub(crate) fn start_unheard(self: &Arc<Self>, dir: &Path, stop: &Arc<AtomicBool>) -> Vec<thread::JoinHandle<()>> {
        let term = self.model.begin(&tree_of(dir));
        let threads = (0..self.writers.len()).map(|number| {
            let (host, dir, stop) = (self.clone(), dir.to_owned(), stop.clone());
            let body = move || {
                let unheard = Unheard { host: &host, dir: &dir, stop: &stop, term };
                while let Err(error) = unheard.write(number) {
                    world::current().trace(|| format!("program {number}: {error}"));
                    thread::sleep(Duration::from_millis(20));
                }
            };
            thread::Builder::new().name(format!("program-{number}")).spawn(body)
        });
        threads.filter_map(Result::ok).collect()
    }
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
                0..60 => {
                    let tag = model::tag(number, writer.records.fetch_add(1, Ordering::Relaxed));
                    let record = model::record(&tag, length(size, kind));
                    let file =
                        fs::File::options().write(true).create(true).truncate(false).open(self.dir.join(&log))?;
                    let at = file.metadata()?.len();
                    files.appended(self.term, &log, &record);
                    file.write_all_at(&record, at)?;
                }
                60..75 => {
                    let state = writer.states.fetch_add(1, Ordering::Relaxed) + 1;
                    let (name, bytes) = (format!("{folder}/state"), model::state(state, length(size, kind)));
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
            thread::sleep(host.pause.max(Duration::from_micros(200)));
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
}

impl Writing {
    fn write(&self, number: usize) -> Result<(), AppendError> {
        let Self { host, leader, .. } = self;
        let files = &host.model;
        let world = world::current();
        let writer = &host.writers[number];
        let folder = format!("w{number}");
        let log = path(&format!("{folder}/log"));
        // What is there when the leader starts is announced by that: the first commit of something confirms it, too.
        let what = model::records_in(&tree_of(&self.dir), &folder);
        let mut pending = Pending { position: StreamPosition::default(), what };
        while !self.stop.load(Ordering::Relaxed) && !host.stop.load(Ordering::Relaxed) {
            let (choice, size, kind) = world.chance_of_process(|rng| (rng.u8(..100), rng.u32(..), rng.u8(..100)));
            match choice {
                0..45 => {
                    let tag = model::tag(number, writer.records.fetch_add(1, Ordering::Relaxed));
                    let record = model::record(&tag, length(size, kind));
                    let mut file = leader.file(&log)?;
                    // It may be there in part, should this fail.
                    files.appended(self.term, log.as_str(), &record);
                    let appended = admitted(|| file.append(&record));
                    pending.position = appended.inspect_err(|_| self.look_again(log.as_str()))?;
                    pending.what.push(Confirmed::Record(tag));
                }
                45..55 => {
                    let state = writer.states.fetch_add(1, Ordering::Relaxed) + 1;
                    let name = path(&format!("{folder}/state"));
                    let bytes = model::state(state, length(size, kind));
                    let temporary = self.dir.join(format!("{folder}/state.new"));
                    self.folder(&folder)?;
                    write_new(&temporary, &bytes).map_err(|source| failed("write", &name, source))?;
                    fs::rename(&temporary, self.dir.join(name.as_str()))
                        .map_err(|source| failed("rename", &name, source))?;
                    files.replaced(self.term, name.as_str(), bytes);
                    pending.position = announced(|| leader.replace(&name))?;
                    pending.what.push(Confirmed::State { name: name.as_str().to_owned(), number: state });
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
                    pending.position = announced(|| leader.rename(&log, &to))?;
                }
                62..78 => self.scratch(&folder, size, kind)?,
                _ => self.commit(&mut pending, kind),
            }
            let done = writer.done.fetch_add(1, Ordering::Relaxed);
            let pause = if done > QUICK_MAX { host.pause.max(TIRED) } else { host.pause };
            if !pause.is_zero() {
                thread::sleep(pause);
            }
        }
        Ok(())
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
                let bytes = vec![size.to_le_bytes()[0]; length(size, kind)];
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
                if let Some(wait) = waits.iter().find(|wait| wait.what != What::Lock) {
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

    fn commit(&self, pending: &mut Pending, kind: u8) {
        if pending.what.is_empty() || pending.position == StreamPosition::default() {
            return;
        }
        let durable = kind < 85;
        let durability = if durable { Durability::Durable } else { Durability::Written };
        let level = CommitLevel { durability, quorum: Quorum::All };
        let began = Instant::now();
        let outcome = self.leader.commit_at(pending.position, level, Duration::from_secs(5));
        if !outcome.is_committed() {
            world::current().trace(|| format!("commit of {}: {outcome}", pending.position));
            return;
        }
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.host.longest_commit.fetch_max(took, Ordering::Relaxed);
        world::current().trace(|| format!("confirmed up to {}, {durability}: {:?}", pending.position, pending.what));
        if durable {
            self.host.model.confirmed(std::mem::take(&mut pending.what));
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

fn length(size: u32, kind: u8) -> usize {
    let most = match kind {
        0..70 => 200,
        70..98 => 8 << 10,
        _ => 300 << 10,
    };
    1 + size as usize % most
}

fn path(name: &str) -> RelPath {
    RelPath::new(name).expect("a good name")
}

fn failed(doing: &'static str, path: &RelPath, source: std::io::Error) -> AppendError {
    AppendError::Io { doing, path: path.clone(), source }
}
