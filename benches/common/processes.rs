//! Processes that log, and what the system counts of each.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a process has to end that was asked to.
const END_MAX: Duration = Duration::from_secs(30);

/// Killed when it is dropped.
pub struct Process {
    child: Child,
    pub began: Instant,
    lines: Receiver<(Instant, String)>,
    /// Warnings and errors, and how often each.
    complaints: BTreeMap<String, usize>,
}

/// Why a line did not come.
#[derive(Debug)]
pub enum Missing {
    Late,
    Ended,
}

impl Process {
    /// What it says on both of its outputs is read; it may be told something on its input.
    pub fn start(command: &mut Command) -> Self {
        let began = Instant::now();
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("a process");
        let (sender, lines) = channel();
        collect(child.stdout.take().expect("piped"), sender.clone());
        collect(child.stderr.take().expect("piped"), sender);
        Self { child, began, lines, complaints: BTreeMap::new() }
    }

    /// Waits for a line with this in it; returns when it came, and the line.
    pub fn wait_for(&mut self, what: &str, until: Instant) -> Result<(Instant, String), Missing> {
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((at, line)) => {
                    self.note(&line);
                    if line.contains(what) {
                        return Ok((at, line));
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Err(Missing::Late),
                Err(RecvTimeoutError::Disconnected) => return Err(Missing::Ended),
            }
        }
    }

    fn note(&mut self, line: &str) {
        let is_complaint = [" WARN ", " ERROR ", "error:", "paceline: "].iter().any(|mark| line.contains(mark));
        if is_complaint {
            let text = line.split_once("] ").map_or(line, |(_, text)| text);
            // What differs from time to time would make each another one.
            let text = text.split_once("; next attempt").map_or(text, |(what, _)| what);
            *self.complaints.entry(text.to_owned()).or_default() += 1;
        }
    }

    /// Passes over what was said until now, and forgets its complaints.
    pub fn begin_anew(&mut self) {
        while self.lines.try_recv().is_ok() {}
        self.complaints.clear();
    }

    /// The warnings and errors since it began anew, the most frequent first.
    pub fn complaints(&mut self) -> Vec<String> {
        while let Ok((_, line)) = self.lines.try_recv() {
            self.note(&line);
        }
        let mut all: Vec<_> = self.complaints.iter().collect();
        all.sort_by_key(|(_, times)| std::cmp::Reverse(**times));
        all.into_iter().map(|(text, times)| format!("{times} times: {text}")).collect()
    }

    pub fn tell(&mut self, line: &str) {
        // If it has ended, its answer will be missing.
        let _ = writeln!(self.child.stdin.as_mut().expect("piped"), "{line}");
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        self.wait_end();
    }

    /// Waits until it has ended; it is killed if that takes too long.
    pub fn wait_end(&mut self) {
        let until = Instant::now() + END_MAX;
        while Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        println!("process {} did not end within {END_MAX:?}, and was killed", self.child.id());
        self.kill();
    }

    /// What it used since it was started.
    pub fn usage(&self) -> Usage {
        let (io, status) = (self.proc("io"), self.proc("status"));
        Usage {
            read: field(&io, "rchar:"),
            read_from_disk: field(&io, "read_bytes:"),
            written: field(&io, "wchar:"),
            resident: field(&status, "VmRSS:") << 10,
            peak: field(&status, "VmHWM:") << 10,
            cpu: self.cpu(),
        }
    }

    /// From here on [`Usage::peak`] is that of what follows.
    pub fn forget_peak(&self) {
        let _ = fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5");
    }

    /// CPU time of all its threads.
    pub fn cpu(&self) -> Duration {
        let stat = self.proc("stat");
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        // From the third on: user and system time are the 14th and 15th.
        let ticks: u64 = after_name.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn collect(from: impl Read + Send + 'static, to: Sender<(Instant, String)>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to.send((Instant::now(), line)).is_err() {
                break;
            }
        }
    });
}

fn field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.unwrap_or(0)
}

/// Bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// By system calls that read files (what comes from sockets is received, and does not count), whether they were in the page
    /// cache or not ...
    pub read: u64,
    /// ... and what of it came from the disk.
    pub read_from_disk: u64,
    /// By system calls that write files.
    pub written: u64,
    pub resident: u64,
    /// The most that was resident.
    pub peak: u64,
    /// Time on a core, of all its threads.
    pub cpu: Duration,
}

impl Usage {
    pub fn since(self, before: Self) -> Self {
        let read_from_disk = self.read_from_disk.saturating_sub(before.read_from_disk);
        // It may have ended.
        Self {
            read: self.read.saturating_sub(before.read),
            read_from_disk,
            cpu: self.cpu.saturating_sub(before.cpu),
            ..self
        }
    }
}
