//! What is said on stdout and logged to stderr, without ever waiting for whoever reads it.
//!
//! A pipe that nobody empties blocks who writes to it, and a terminal that was stopped does; a thread that renews a lease must not
//! wait for those. So lines go into a bounded queue, and a thread of each output's own, `stdout` and `stderr`, writes them. What
//! finds the queue full is dropped, counted, and told of when there is room again. The end waits for what is queued, for
//! [`FLUSH_MAX`]. Where there is no thread to be had lines are written at once, as they always were.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{BufWriter, ErrorKind, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use indicatif::MultiProgress;

/// Lines that wait to be written.
const LINES_MAX: usize = 4096;
/// How long the end of the process waits for lines to be written.
pub(crate) const FLUSH_MAX: Duration = Duration::from_secs(1);

static STDOUT: OnceLock<Output> = OnceLock::new();
static STDERR: OnceLock<Output> = OnceLock::new();

struct Output {
    /// None: write at once.
    queue: Option<Sender<Item>>,
    write: fn(&[u8]),
    dropped: Arc<AtomicU64>,
}

enum Item {
    Line(Vec<u8>),
    /// Disconnected once all before it was written.
    Mark(#[expect(dead_code, reason = "dropping it is all")] Sender<()>),
}

/// Writes a line to stdout; nobody reading it is no reason to stop, nor to wait.
pub(crate) fn say(line: &str) {
    stdout().put(format!("{line}\n").into_bytes());
}

/// Writes what a person asked for to stdout, however much that is, and waits for whoever reads it. Who reads no further has enough.
pub(crate) fn print(lines: impl IntoIterator<Item = String>) -> std::io::Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let written = lines.into_iter().try_for_each(|line| writeln!(out, "{line}")).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Logs to stderr, from `info` up unless RUST_LOG says otherwise; panics too.
pub(crate) fn start_logging() {
    let mut builder = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"));
    builder.format_timestamp_millis();
    // At `trace` it would show all bytes it sends to etcd, passwords among them.
    builder.filter_module("ureq_proto", log::LevelFilter::Warn);
    builder.target(env_logger::Target::Pipe(Box::new(Log)));
    builder.init();
    std::panic::set_hook(Box::new(log_panic));
}

/// The last word: written after all that was logged, if anybody reads it in time.
pub(crate) fn say_error(line: &str) {
    stderr().put(format!("{line}\n").into_bytes());
}

/// Waits until all is written, for `at_most`.
pub(crate) fn flush(at_most: Duration) {
    let deadline = Instant::now() + at_most;
    for output in [STDERR.get(), STDOUT.get()].into_iter().flatten() {
        output.flush(deadline);
    }
}

/// The progress bars on stderr; log lines go above them.
pub(crate) fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

fn stdout() -> &'static Output {
    STDOUT.get_or_init(|| {
        Output::start("stdout", |line| {
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(line).and_then(|()| out.flush());
        })
    })
}

fn stderr() -> &'static Output {
    STDERR.get_or_init(|| {
        Output::start("stderr", |line| {
            let write = || {
                let _ = std::io::stderr().write_all(line);
            };
            if std::io::stderr().is_terminal() { bars().suspend(write) } else { write() }
        })
    })
}

/// The standard library's own hook would wait for the pipe, with the thread that failed.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let text = panic.to_string().replace('\n', " ");
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => log::error!("thread {:?} {text}\n{backtrace}", thread.name()),
        _ => log::error!("thread {:?} {text}", thread.name()),
    }
    if thread.name() == Some("main") {
        flush(FLUSH_MAX);
    }
}

/// Where the logger writes: a line each time.
struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        stderr().put(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Output {
    fn start(name: &'static str, write: fn(&[u8])) -> Self {
        let (queue, items) = bounded(LINES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let of_thread = dropped.clone();
        let life = move || {
            for item in &items {
                if let Item::Line(line) = item {
                    write(&line);
                    tell_dropped(name, &of_thread, &items);
                }
            }
        };
        let spawned = std::thread::Builder::new().name(name.into()).spawn(life);
        Self { queue: spawned.is_ok().then_some(queue), write, dropped }
    }

    fn put(&self, line: Vec<u8>) {
        let Some(queue) = &self.queue else { return (self.write)(&line) };
        match queue.try_send(Item::Line(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    fn flush(&self, deadline: Instant) {
        let Some(queue) = &self.queue else { return };
        let (mark, written) = bounded(0);
        if queue.send_deadline(Item::Mark(mark), deadline).is_ok() {
            let _ = written.recv_deadline(deadline);
        }
    }
}

/// Once there is room for that too.
fn tell_dropped(name: &str, dropped: &AtomicU64, items: &Receiver<Item>) {
    if items.len() > LINES_MAX / 2 {
        return;
    }
    let count = dropped.swap(0, Ordering::Relaxed);
    if count > 0 {
        log::warn!("{count} lines for {name} were dropped: nobody read them in time");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn lines_that_nobody_reads_are_dropped_and_counted_and_nobody_waits() {
        static READER: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
        let reading = READER.lock().unwrap();
        let output = Output::start("a pipe", |line| READER.lock().unwrap().push(line.to_vec()));
        for n in 0..LINES_MAX + 100 {
            output.put(n.to_string().into_bytes());
        }
        // One may be on its way to the reader.
        assert!((99..=100).contains(&output.dropped.load(Ordering::Relaxed)));
        output.flush(Instant::now());
        drop(reading);
        output.flush(Instant::now() + Duration::from_secs(60));
        let read = READER.lock().unwrap();
        assert_eq!(read[7], b"7");
        assert!(read.len() >= LINES_MAX && read.len() <= LINES_MAX + 1);
        assert_eq!(output.dropped.load(Ordering::Relaxed), 0, "it was not told");
    }
}
