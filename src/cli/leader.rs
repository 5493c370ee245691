//! `paceline leader`: a leader and a watcher on one directory, until a signal.
//!
//! The port is taken first, and followers are accepted from then on: they wait until the directory is scanned, and then get what there is, while the watcher begins. A signal ends
//! each of these steps. At the end the watcher goes on while followers acknowledge what is left: who
//! writes to the directory is perhaps told to end in the same moment, and writes its last then. The last look comes when they
//! have everything and nothing was written for [`QUIET`].

use std::net::{TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use paceline::leader::{Opening, Window};
use paceline::watch::Watcher;
use paceline::{Error, Leader, LeaderConfig, OnFull};

use super::kept::KeepOptions;
use super::units::{parse_address, parse_duration, parse_size};
use super::{Failure, NodeOptions, require_folder, say, signals, start_logging};

/// How often the watcher is asked whether it still watches.
const CHECK_EVERY: Duration = Duration::from_millis(200);

/// A change that was not compared for so long is worth a word, now and then.
const LATE_MIN: Duration = Duration::from_secs(120);
const SAY_LATE_EVERY: Duration = Duration::from_secs(600);

/// How long nothing must have been written for the last look to be taken.
const QUIET: Duration = Duration::from_millis(500);

/// How often that, and whether followers have everything, is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Args)]
pub(crate) struct Options {
    /// Directory to replicate; it must exist
    #[arg(long, value_name = "DIR", env = "PACELINE_DATA_DIR")]
    data_dir: PathBuf,
    /// Address to accept followers on; port 0 takes a free one, and the one in use is printed
    #[arg(long, value_name = "HOST:PORT", env = "PACELINE_LISTEN", value_parser = parse_address)]
    listen: String,
    #[command(flatten)]
    node: NodeOptions,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    keep: KeepOptions,
}

impl Options {
    fn config(&self) -> Result<LeaderConfig, Failure> {
        let mut config = LeaderConfig::new(&self.data_dir, self.node.secret()?);
        config.id = self.node.id;
        self.limits.apply(&mut config);
        (config.keep, config.keep_bytes) = self.keep.bounds();
        config.check().map_err(|error| Failure::usage(error.to_string()))?;
        Ok(config)
    }
}

/// What is replicated, and the limits of doing so.
#[derive(Args)]
pub(crate) struct Limits {
    /// Files not to replicate, such as '*.tmp' or 'cache/**'; may be given several times
    #[arg(long, value_name = "GLOB", help_heading = None::<&str>)]
    exclude: Vec<String>,
    /// Start although more than half of what was last announced from the directory is gone, or a file system below it is not mounted:
    /// followers delete it. For one start
    #[arg(long, help_heading = None::<&str>)]
    accept_missing: bool,
    /// Bytes held for a follower that cannot keep up, before it is evicted [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "PACELINE_QUEUE_BYTES", value_parser = parse_size, help_heading = "Limits")]
    queue_bytes: Option<u64>,
    /// Bytes a follower may be behind, what it gets from files included, before it counts as full [default: 8 times --queue-bytes, at least 16MiB]
    #[arg(long, value_name = "SIZE", env = "PACELINE_LAG_BYTES", value_parser = parse_size, help_heading = "Limits")]
    lag_bytes: Option<u64>,
    /// What becomes of a follower whose queue is full, or that is too far behind: 'evict' lets it go, and it syncs anew when it returns; 'catch-up' keeps its
    /// connection, and syncs it anew at once (not with 1.0.0)
    #[arg(long, value_name = "WHAT", env = "PACELINE_ON_FULL", value_parser = parse_on_full, default_value = "evict", help_heading = "Limits")]
    on_full: OnFull,
    /// Followers that should be in sync, without this leader: falling below it, and coming back, are logged. Nothing waits for it
    #[arg(long, value_name = "COUNT", env = "PACELINE_MIN_IN_SYNC", help_heading = "Limits")]
    min_in_sync: Option<usize>,
    /// How many full syncs read or move content at once [default: 1]
    #[arg(long, value_name = "COUNT", env = "PACELINE_SYNCS_MAX", help_heading = "Limits")]
    syncs_max: Option<usize>,
    /// Bytes a second that full syncs and catching up read from the directory, all together, such as 100MiB; at least 1MiB [default: no limit]
    #[arg(long, value_name = "SIZE", env = "PACELINE_SYNC_RATE", value_parser = parse_size, help_heading = "Limits")]
    sync_rate: Option<u64>,
    /// How much of a core, in percent, comparing takes at most: files that were written to, with what followers were sent [default: 25]
    #[arg(long, value_name = "PERCENT", env = "PACELINE_COMPARE_PERCENT", value_parser = clap::value_parser!(u32).range(1..=100), help_heading = "Limits")]
    compare_percent: Option<u32>,
    /// How long a follower may take nothing off its connection [default: 5s]
    #[arg(long, value_name = "DUR", env = "PACELINE_WRITE_TIMEOUT", value_parser = parse_duration, help_heading = "Limits")]
    write_timeout: Option<Duration>,
    /// How long a follower may acknowledge nothing of what it was sent [default: 10s]
    #[arg(long, value_name = "DUR", env = "PACELINE_ACK_TIMEOUT", value_parser = parse_duration, help_heading = "Limits")]
    ack_timeout: Option<Duration>,
    /// How long a follower may hold up commits on all, before they do not wait for it any more [default: 500ms]
    #[arg(long, value_name = "DUR", env = "PACELINE_IN_SYNC_TIMEOUT", value_parser = parse_duration, help_heading = "Limits")]
    in_sync_timeout: Option<Duration>,
    /// How long a joining follower may make no progress, such as while it hashes its files [default: 10m]
    #[arg(long, value_name = "DUR", env = "PACELINE_SYNC_TIMEOUT", value_parser = parse_duration, help_heading = "Limits")]
    sync_timeout: Option<Duration>,
    /// How long followers get at the end to acknowledge everything
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = parse_duration, help_heading = "Limits")]
    pub(crate) drain_timeout: Duration,
}

impl Limits {
    pub(crate) fn apply(&self, config: &mut LeaderConfig) {
        config.exclude.clone_from(&self.exclude);
        config.accept_missing = self.accept_missing;
        config.queue_bytes = self.queue_bytes.unwrap_or(config.queue_bytes);
        config.lag_bytes = self.lag_bytes;
        config.on_full = self.on_full;
        config.min_in_sync = self.min_in_sync.unwrap_or(config.min_in_sync);
        config.syncs_max = self.syncs_max.unwrap_or(config.syncs_max);
        config.sync_rate = self.sync_rate;
        config.compare_percent = self.compare_percent.unwrap_or(config.compare_percent);
        config.write_timeout = self.write_timeout.unwrap_or(config.write_timeout);
        config.ack_timeout = self.ack_timeout.unwrap_or(config.ack_timeout);
        config.in_sync_timeout = self.in_sync_timeout.unwrap_or(config.in_sync_timeout);
        config.sync_timeout = self.sync_timeout.unwrap_or(config.sync_timeout);
    }
}

fn bind(address: &str) -> Result<TcpListener, Failure> {
    let unresolved = |error| Failure::runtime(format!("--listen {address}: {error}; give an address of this machine"));
    let addresses: Vec<_> = address.to_socket_addrs().map_err(unresolved)?.collect();
    Ok(Leader::bind(&addresses[..])?)
}

fn parse_on_full(text: &str) -> Result<OnFull, String> {
    match text {
        "evict" => Ok(OnFull::Evict),
        "catch-up" => Ok(OnFull::CatchUp),
        _ => Err("write evict or catch-up".to_owned()),
    }
}

pub(crate) fn run(options: Options) -> Result<(), Failure> {
    let config = options.config()?;
    require_folder(&options.data_dir)?;
    start_logging();
    super::descriptors::raise();
    let signals = signals()?;
    // Half of the queue: the watcher pauses before a follower that keeps up is anywhere near eviction.
    let window = Window::new(config.queue_bytes / 2);
    // First: a leader that cannot be reached must not leave a directory that looks as if it had led.
    let listener = bind(&options.listen)?;
    let opening = Opening::new(config)?;
    opening.will_be_watched();
    let address = opening.listen_on(listener)?;
    say(&format!("listening on {address}"));
    let leader = match opening.open(&mut |_| signals.is_empty()) {
        Ok(leader) => Arc::new(leader),
        Err(Error::ShuttingDown) => {
            log::info!("ended before the directory was read");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let watcher = Watcher::begin(leader.clone(), &options.data_dir, Some(window))?;
    log::info!("leader {} replicates {}, {} files", leader.id(), options.data_dir.display(), leader.files().len());

    let (mut watches, mut said_late) = (false, None::<Instant>);
    let failure = loop {
        if !watches && watcher.wait(Duration::ZERO) {
            watches = true;
            log::info!("all there is is watched");
        }
        match signals.recv_timeout(CHECK_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => break None,
        }
        if let Some(late) = watcher.unproven_for().filter(|late| *late >= LATE_MIN)
            && said_late.is_none_or(|at| at.elapsed() >= SAY_LATE_EVERY)
            && leader.not_replicated().is_empty()
        {
            said_late = Some(Instant::now());
            log::warn!(
                "copies may differ from files that are written to all the time: a change of {} s ago was not compared yet; give comparing more of a \
                 core with --compare-percent",
                late.as_secs()
            );
        }
        if let Some(failure) = leader.failure().or_else(|| watcher.take_failure()) {
            break Some(failure);
        }
    };
    let (drain, began) = (options.limits.drain_timeout, Instant::now());
    log::info!("shutting down; followers have {drain:?} to acknowledge what is left");
    if failure.is_none() {
        settle(&leader, &signals, drain);
    }
    watcher.stop();
    let report = leader.shutdown(drain.saturating_sub(began.elapsed()));
    for (id, bytes) in &report.undrained {
        let lack = bytes.map_or("was still joining".to_owned(), |bytes| format!("had not acknowledged {bytes} bytes"));
        log::warn!("follower {id} {lack}; it gets what it lacks when it reconnects");
    }
    match (report.drained.len(), watcher.is_complete()) {
        (drained, true) => {
            log::info!("ended; {drained} {} everything", if drained == 1 { "follower has" } else { "followers have" })
        }
        (_, false) => log::warn!(
            "ended; not all that changed in {} was read and sent: it was written to until the end, or could not be read; followers get the \
             rest once a leader runs there again",
            options.data_dir.display()
        ),
    }
    // To free what is known of very many files takes seconds. Nothing else is left of them, and the process ends.
    std::mem::forget((watcher, leader));
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

/// Waits until followers have everything and nothing was announced for [`QUIET`]: up to `drain`, half of it while something is
/// written all the time, or until another signal.
fn settle(leader: &Leader, signals: &Receiver<i32>, drain: Duration) {
    let began = Instant::now();
    let (mut position, mut since) = (leader.position(), began);
    loop {
        let lags: Vec<_> = leader.followers().iter().filter_map(|follower| follower.lag_bytes).collect();
        let now = leader.position();
        if now != position {
            (position, since) = (now, Instant::now());
        }
        let is_quiet = since.elapsed() >= QUIET;
        let is_over = lags.is_empty() || is_quiet && lags.iter().all(|lag| *lag == 0);
        let patience = if is_quiet { drain } else { drain / 2 };
        if is_over || began.elapsed() >= patience || signals.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout)
        {
            return;
        }
    }
}
