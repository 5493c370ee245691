//! `paceline follow`: a follower, until a signal, a failure that trying again would not mend, or with `--once` until it
//! has synced. It is told its leader, or follows whoever is elected in etcd.
//!
//! The follower's own threads do the work; the main thread looks at its status a few times a second and shows the
//! progress of a full sync: as a bar on a terminal, as a log line every few seconds elsewhere.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use indicatif::{ProgressBar, ProgressStyle};
use paceline::coordinator::{Coordinator, EtcdCoordinator, LeaderInfo, Observation};
use paceline::follower::{State, Status, SyncProgress};
use paceline::{Adopt, Durability, Error, Follower, FollowerConfig, InvalidValue, Protocol, Secret};

use super::etcd::{EtcdOptions, secret_of};
use super::kept::KeepOptions;
use super::units::{parse_leader, parse_share, show_bytes, show_rate};
use super::{Failure, NodeOptions, bars, say, signals, start_logging};

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often a long sync is logged where there is no terminal.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// How long a sync must have gone on before its rate is shown.
const RATE_AFTER: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(crate) struct Options {
    /// Address of the leader [or: --etcd, and whoever is elected there is followed, without ever standing for election]
    #[arg(value_name = "HOST:PORT", env = "PACELINE_LEADER", value_parser = parse_leader)]
    leader: Option<String>,
    /// Directory that becomes a copy of the leader's; made if it does not exist
    #[arg(long, value_name = "DIR", env = "PACELINE_DATA_DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    node: NodeOptions,
    /// Sync, print what was done, and end
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    giving_up: GivingUp,
    /// What to speak: Paceline's extension if the leader knows it and 1.0.0 if not, or only one of them
    #[arg(long, value_name = "PROTOCOL", default_value = "auto", env = "PACELINE_PROTOCOL")]
    protocol: Speaks,
    /// When to acknowledge to a leader of 1.0.0: what has come, is written, or is on disk (Paceline's extension tells all three)
    #[arg(long, value_name = "LEVEL", default_value = "durable", env = "PACELINE_DURABILITY")]
    durability: Level,
    #[command(flatten)]
    keep: KeepOptions,
    #[command(flatten)]
    etcd: EtcdOptions,
    /// End with the process that started this one
    #[arg(long, hide = true)]
    end_with_parent: bool,
}

/// What of a directory may be deleted because a leader does not have it.
#[derive(Args)]
pub(crate) struct GivingUp {
    /// Take over a directory that holds other files and never was a copy, nor a leader's; they are deleted. With ID, one that is a copy
    /// of that data set, when the leader has another: ID is what is given up, as the refusal and .paceline/data-set name it
    #[arg(long, value_name = "ID", num_args = 0..=1, require_equals = true, default_missing_value = NOBODYS, value_parser = parse_adopt)]
    adopt: Option<Adopt>,
    /// Share of the files and of the bytes here that a sync may delete where nothing shows that the leader is the right one (it speaks
    /// 1.0.0, or the directory has no data set id yet); one that would delete more of both stops before, and is tried again
    #[arg(long, value_name = "SHARE", env = "PACELINE_MAX_DELETE", default_value = "90%", value_parser = parse_share)]
    max_delete: f64,
}

/// The value of an `--adopt` that names nothing.
const NOBODYS: &str = "nobodys";

impl GivingUp {
    pub(crate) fn apply(&self, config: &mut FollowerConfig) {
        config.adopt = self.adopt.unwrap_or_default();
        config.max_delete = self.max_delete;
    }
}

fn parse_adopt(text: &str) -> Result<Adopt, String> {
    if text == NOBODYS {
        return Ok(Adopt::Nobodys);
    }
    text.parse().map(Adopt::DataSet).map_err(|error: InvalidValue| error.to_string())
}

/// The values of `--protocol`.
#[derive(Clone, Copy, ValueEnum)]
enum Speaks {
    Auto,
    #[value(name = "1.0.0")]
    V1,
    Extension,
}

/// The values of `--durability`.
#[derive(Clone, Copy, ValueEnum)]
enum Level {
    Received,
    Written,
    Durable,
}

impl Options {
    fn config(&self, leader: &str, secret: Secret) -> Result<FollowerConfig, Failure> {
        let mut config = FollowerConfig::new(leader, &self.data_dir, secret);
        config.id = self.node.id;
        self.giving_up.apply(&mut config);
        config.once = self.once;
        (config.keep, config.keep_bytes) = self.keep.bounds();
        config.protocol = match self.protocol {
            Speaks::Auto => Protocol::Auto,
            Speaks::V1 => Protocol::V1,
            Speaks::Extension => Protocol::Extension,
        };
        config.durability = match self.durability {
            Level::Received => Durability::Received,
            Level::Written => Durability::Written,
            Level::Durable => Durability::Durable,
        };
        config.check().map_err(|error| Failure::usage(error.to_string()))?;
        Ok(config)
    }
}

/// The elected leader, as it is observed.
struct Elected {
    observation: Observation<Option<LeaderInfo>>,
    /// `HOST:PORT`, if there is one that can be followed.
    now: Option<String>,
}

impl Elected {
    /// Waits up to [`LOOK_EVERY`] for news; returns whether there was some.
    fn update(&mut self) -> Result<bool, Failure> {
        let leader = match self.observation.receiver().recv_timeout(LOOK_EVERY) {
            Ok(leader) => leader,
            Err(RecvTimeoutError::Timeout) => return Ok(false),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::runtime("the election is observed no more: this is a defect, please report it"));
            }
        };
        match &leader {
            Some(leader) => log::info!("the elected leader is {leader}"),
            None => log::info!("there is no elected leader"),
        }
        self.now = leader.and_then(|leader| {
            leader.address().inspect_err(|error| log::error!("the elected leader cannot be followed: {error}")).ok()
        });
        Ok(true)
    }
}

pub(crate) fn run(options: Options) -> Result<(), Failure> {
    let coordinator = match (&options.leader, options.etcd.etcd.is_empty()) {
        (Some(_), true) => None,
        (None, false) => Some(options.etcd.coordinator(None, Duration::ZERO)?),
        _ => return Err(Failure::usage("give either the leader's HOST:PORT or --etcd URL[,URL]")),
    };
    if coordinator.is_some() && options.node.secret_file.is_some() {
        return Err(Failure::usage(
            "a cluster's secret is kept in etcd: leave --secret-file (PACELINE_SECRET_FILE) out",
        ));
    }
    let told = options.leader.clone().map(|leader| Ok::<_, Failure>((leader, options.node.secret()?))).transpose()?;
    if let Some((leader, secret)) = &told {
        options.config(leader, secret.clone())?;
    }
    start_logging();
    super::descriptors::raise();
    let signals = signals()?;
    if options.end_with_parent {
        super::demo::end_with_parent()?;
    }
    let started = Instant::now();
    let (mut elected, address, secret) = match (told, coordinator) {
        (Some((address, secret)), _) => (None, address, secret),
        (None, Some(coordinator)) => match find_leader(&coordinator, &signals)? {
            Some((elected, address, secret)) => (Some(elected), address, secret),
            None => return Ok(()),
        },
        (None, None) => return Ok(()),
    };
    let follower = Follower::start(options.config(&address, secret)?)?;
    log::info!("follower {} follows {address} into {}", follower.id(), options.data_dir.display());
    let mut show = Show::new();
    loop {
        let pause = match &mut elected {
            None => LOOK_EVERY,
            Some(elected) => {
                if elected.update()? {
                    follower.follow(elected.now.as_deref());
                }
                Duration::ZERO
            }
        };
        let ended = follower.wait(Some(pause));
        show.update(&follower.status());
        match ended {
            Some(Ok(())) => break,
            Some(Err(error)) => {
                show.clear();
                return Err(failed(error, elected.as_ref()));
            }
            None if signals.try_recv().is_ok() => {
                show.clear();
                log::info!("shutting down");
                follower.stop();
                return Ok(());
            }
            None => {}
        }
    }
    show.clear();
    if options.once {
        say(&summary(&address, &follower.status().sync, started.elapsed()));
    }
    follower.stop();
    Ok(())
}

/// Waits until a leader is elected. `None` if a signal came first.
fn find_leader(
    coordinator: &EtcdCoordinator,
    signals: &Receiver<i32>,
) -> Result<Option<(Elected, String, Secret)>, Failure> {
    let Some(secret) = secret_of(coordinator, signals)? else { return Ok(None) };
    let observation = coordinator.observe_leader().map_err(|error| Failure::runtime(error.to_string()))?;
    let mut elected = Elected { observation, now: None };
    while signals.try_recv().is_err() {
        elected.update()?;
        if let Some(address) = elected.now.clone() {
            return Ok(Some((elected, address, secret)));
        }
    }
    Ok(None)
}

/// Where the secret was taken from etcd, nobody gave a wrong one.
fn failed(error: Error, elected: Option<&Elected>) -> Failure {
    match (error, elected) {
        (Error::SecretRefused, Some(elected)) => Failure::runtime(format!(
            "the elected leader {} refused the secret that is recorded in etcd: it is of another cluster (see --etcd-prefix), or the \
             recorded secret was changed while it ran",
            elected.now.as_deref().unwrap_or_default()
        )),
        (error, _) => error.into(),
    }
}

/// What `--once` did, on one line.
fn summary(leader: &str, sync: &SyncProgress, time: Duration) -> String {
    let (received, bytes) = (sync.files_received, show_bytes(sync.bytes_received));
    // With the extension nobody lists what is the same on both sides.
    let unchanged = match sync.files_total {
        None => format!("{} unchanged, ", sync.files_listed.saturating_sub(received)),
        Some(_) => String::new(),
    };
    let (seconds, deleted) = (time.as_secs_f64(), sync.files_deleted);
    format!("synced from {leader} in {seconds:.1} s: {received} files received ({bytes}), {unchanged}{deleted} deleted")
}

/// Shows the full sync under way.
struct Show {
    on_terminal: bool,
    bar: Option<ProgressBar>,
    began: Option<Instant>,
    logged: Instant,
    connections: u64,
}

impl Show {
    fn new() -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        Self { on_terminal, bar: None, began: None, logged: Instant::now(), connections: 0 }
    }

    fn update(&mut self, status: &Status) {
        let syncing = status.state == State::Syncing;
        if !syncing || status.connections != self.connections {
            self.end();
            self.connections = status.connections;
        }
        if !syncing {
            self.lag(status);
            return;
        }
        let began = *self.began.get_or_insert_with(Instant::now);
        if self.on_terminal {
            self.bar.get_or_insert_with(new_bar);
        }
        if let Some(bar) = &self.bar {
            let sync = &status.sync;
            let (done, total) = match sync.bytes_total {
                Some(total) => (sync.bytes_received, total),
                None => (sync.files_received, sync.files_requested),
            };
            bar.set_length(total.max(1));
            bar.set_position(done.min(total));
            bar.set_message(progress(sync, began.elapsed()));
            // Not by a thread of the bar's own: where the system has none to give, that panics.
            bar.tick();
        } else if self.logged.elapsed() >= LOG_EVERY {
            self.logged = Instant::now();
            log::info!("sync: {}", progress(&status.sync, began.elapsed()));
        }
    }

    /// How far behind a follower in sync is, now and then.
    fn lag(&mut self, status: &Status) {
        if let (State::Streaming, Some(bytes), Some(lag)) = (status.state, status.lag_bytes, status.lag)
            && self.logged.elapsed() >= LOG_EVERY
        {
            self.logged = Instant::now();
            log::debug!("{} behind the leader, {lag:.1?}", show_bytes(bytes));
        }
    }

    /// Of a sync; the follower itself says what it came to.
    fn end(&mut self) {
        self.clear();
        self.logged = Instant::now();
        self.began = None;
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} full sync [{bar:24}] {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    bars().add(ProgressBar::new(1).with_style(style))
}

/// Files, bytes, rate, and the time left if it can be told.
fn progress(sync: &SyncProgress, elapsed: Duration) -> String {
    let files = sync.files_total.unwrap_or(sync.files_requested);
    if files == 0 && sync.files_total.is_none() {
        return format!("{} of {} files compared", sync.files_hashed, sync.files_listed);
    }
    let received = sync.files_received;
    let mut text = format!("{received} of {files} files, {}", show_bytes(sync.bytes_received));
    if let Some(total) = sync.bytes_total {
        text += &format!(" of {}", show_bytes(total));
    }
    // What the socket held already says nothing of the rate.
    if elapsed < RATE_AFTER && received < files {
        return text;
    }
    text += &format!(", {}", show_rate(sync.bytes_received, elapsed));
    if let Some(left) = time_left(sync, elapsed) {
        text += &format!(", ~{} s left", left.as_secs() + 1);
    }
    text
}

/// With the extension the leader has said how much comes. With 1.0.0 it is an estimate: the leader's list has no sizes, so
/// files to come are taken for as large as those that came.
fn time_left(sync: &SyncProgress, elapsed: Duration) -> Option<Duration> {
    let received = sync.bytes_received;
    let bytes_left = match sync.bytes_total {
        Some(total) => total.saturating_sub(received) as f64,
        None => {
            let to_come = sync.files_requested.saturating_sub(sync.files_received);
            // The one being received has told its size.
            let in_file = u64::from(sync.bytes_remaining_in_file > 0);
            let mean = received as f64 / (sync.files_received + in_file).max(1) as f64;
            let bytes_left = sync.bytes_remaining_in_file as f64 + mean * to_come.saturating_sub(in_file) as f64;
            if to_come == 0 { 0.0 } else { bytes_left }
        }
    };
    if received == 0 || bytes_left == 0.0 {
        return None;
    }
    Duration::try_from_secs_f64(elapsed.as_secs_f64() * bytes_left / received as f64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::field_reassign_with_default)] // it is non-exhaustive
    fn progress_tells_files_bytes_rate_and_time_left() {
        let mut sync = SyncProgress::default();
        sync.files_listed = 20;
        sync.files_hashed = 7;
        let elapsed = Duration::from_secs(2);
        assert_eq!(progress(&sync, elapsed), "7 of 20 files compared");
        sync.files_requested = 10;
        sync.files_received = 4;
        sync.bytes_received = 40_000_000;
        assert_eq!(progress(&sync, elapsed), "4 of 10 files, 38.1 MiB, 20.0 MB/s, ~4 s left");
        sync.files_received = 10;
        assert_eq!(progress(&sync, elapsed), "10 of 10 files, 38.1 MiB, 20.0 MB/s");
        sync.files_total = Some(12);
        sync.bytes_total = Some(50_000_000);
        assert_eq!(progress(&sync, elapsed), "10 of 12 files, 38.1 MiB of 47.7 MiB, 20.0 MB/s, ~1 s left");
    }
}
