//! `paceline node`: a node of a cluster on etcd, until a signal, or a failure that trying again would not mend.
//!
//! The node's own threads do the work; the main thread says which role it has.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use paceline::NodeId;
use paceline::node::{Node, NodeConfig, OnExit, ProgramConfig, ProxyConfig, Role, WatchedConfig, WatchedProgram};

use super::descriptors;
use super::etcd::{EtcdOptions, secret_of};
use super::follow::GivingUp;
use super::guard::GUARD;
use super::kept::KeepOptions;
use super::leader::Limits;
use super::units::{parse_address, parse_duration};
use super::{Failure, say, signals, start_logging};

/// The default of `--lease-ttl`.
const LEASE_TTL: Duration = Duration::from_secs(10);
/// What leases must leave beside the hook: see [`WatchedConfig::stop_margin`].
const BEFORE_HOOK: Duration = Duration::from_secs(1);

/// How often signals are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(crate) struct Options {
    /// Directory that is a copy of the leader's, and the program's where this node leads; made if it does not exist
    #[arg(long, value_name = "DIR", env = "PACELINE_DATA_DIR")]
    data_dir: PathBuf,
    /// Address to accept followers on while this node leads
    #[arg(long, value_name = "HOST:PORT", env = "PACELINE_LISTEN", value_parser = parse_address)]
    listen: String,
    /// Where other nodes reach that address; proxies find the program on the same host
    #[arg(long, value_name = "tcp://HOST:PORT", env = "PACELINE_ADVERTISE")]
    advertise: String,
    /// This node's id, 1 to zik0zj in base 36 [default: the one kept in .clustering_id, made at the first start]
    #[arg(long, value_name = "BASE36", env = "PACELINE_ID")]
    id: Option<NodeId>,
    #[command(flatten)]
    giving_up: GivingUp,
    /// This directory is the truth: if etcd names another data set, the cluster is this directory's from now on. To be given once, to
    /// one node, while no other one leads
    #[arg(long)]
    found: bool,
    /// Stand for election though this directory shows less than was committed: what the others had is given up. To be given once, to
    /// one node, when none that has more can be started
    #[arg(long)]
    accept_loss: bool,
    #[command(flatten)]
    keep: KeepOptions,
    #[command(flatten)]
    etcd: EtcdOptions,
    /// How long a leader that is dead or cut off stays leader; whole seconds [default: 10s]
    #[arg(long, value_name = "DUR", env = "PACELINE_LEASE_TTL", value_parser = parse_duration, help_heading = "etcd")]
    lease_ttl: Option<Duration>,
    /// Program to run where this node leads, by 'sh -c', in the foreground
    #[arg(long, value_name = "CMD", help_heading = "Program")]
    run: Option<String>,
    /// What happens when it ends by itself
    #[arg(long, value_name = "WHAT", default_value = "hand-over", help_heading = "Program")]
    on_exit: WhenItEnds,
    /// How long the program may take to end when it is asked to (SIGTERM), before it is killed
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = parse_duration, help_heading = "Program")]
    stop_grace: Duration,
    /// Command to run, by 'sh -c', once this node was elected, before the program is started; if it fails, leadership is
    /// handed over
    #[arg(long, value_name = "CMD", help_heading = "Program")]
    on_elected: Option<String>,
    /// Command to run once this node leads no more; until it succeeds, this node does not follow
    #[arg(long, value_name = "CMD", help_heading = "Program")]
    on_lost: Option<String>,
    /// How long such a command may run before it is killed, and has failed. With --on-lost, leadership is given up so long before
    /// another node can have it: at most half of --lease-ttl, less 1s [default: 60s; with --on-lost that most: 4s]
    #[arg(long, value_name = "DUR", value_parser = parse_duration, help_heading = "Program")]
    hook_timeout: Option<Duration>,
    /// Connect clients that come to LISTEN with PORT on the leader's host; with ',proxy-protocol' the program is told who
    /// they are (PROXY protocol, version 1); may be given several times
    #[arg(long, value_name = "LISTEN=PORT", help_heading = "Program")]
    proxy: Vec<ProxyConfig>,
    /// How long the disk may hang before leadership is given up
    #[arg(long, value_name = "DUR", env = "PACELINE_STALL_TIMEOUT", default_value = "10s", value_parser = parse_duration, help_heading = "Limits")]
    stall_timeout: Duration,
    #[command(flatten)]
    limits: Limits,
}

/// The values of `--on-exit`.
#[derive(Clone, Copy, ValueEnum)]
enum WhenItEnds {
    /// Leadership is handed over to another node
    HandOver,
    /// It is started again, with growing delays
    Restart,
}

impl Options {
    fn config(&self, secret: paceline::Secret) -> Result<NodeConfig, Failure> {
        let mut config = NodeConfig::new(&self.data_dir, secret, &self.listen, &self.advertise);
        config.leader.id = self.id;
        self.limits.apply(&mut config.leader);
        self.giving_up.apply(&mut config.follower);
        config.found = self.found;
        config.accept_loss = self.accept_loss;
        (config.follower.keep, config.follower.keep_bytes) = self.keep.bounds();
        (config.leader.keep, config.leader.keep_bytes) = self.keep.bounds();
        config.proxies.clone_from(&self.proxy);
        config.drain_timeout = self.limits.drain_timeout;
        config.stall_timeout = self.stall_timeout;
        config.check().map_err(|error| Failure::usage(error.to_string()))?;
        Ok(config)
    }

    fn lease_ttl(&self) -> Duration {
        self.lease_ttl.unwrap_or(LEASE_TTL)
    }

    /// What leases leave for the hook.
    fn on_lost_max(&self) -> Duration {
        (self.lease_ttl() / 2).saturating_sub(BEFORE_HOOK)
    }

    /// Fails where another node could be active before the hook has stopped what is active here.
    fn check_on_lost(&self) -> Result<(), Failure> {
        let (most, ttl) = (self.on_lost_max(), self.lease_ttl());
        let timeout = self.hook_timeout.unwrap_or(most);
        if self.on_lost.is_none() || (!timeout.is_zero() && timeout <= most) {
            return Ok(());
        }
        let twice = timeout.max(BEFORE_HOOK).saturating_add(BEFORE_HOOK).saturating_mul(2);
        let ttl_min = Duration::from_secs(twice.as_secs().saturating_add(u64::from(twice.subsec_nanos() > 0)));
        Err(Failure::usage(format!(
            "--on-lost may take {timeout:?} (--hook-timeout), and a leader that is cut off is replaced after {ttl:?} (--lease-ttl): what it \
             is to stop could be active on two nodes; give a --lease-ttl of at least {ttl_min:?}, or a --hook-timeout of at most {most:?}"
        )))
    }

    /// `descriptors`: how many files what is started may have open.
    fn watched(&self, descriptors: Option<u64>) -> WatchedConfig {
        let mut config = WatchedConfig::default();
        config.on_elected.clone_from(&self.on_elected);
        config.on_lost.clone_from(&self.on_lost);
        config.descriptors = descriptors;
        if let Some(timeout) = self.hook_timeout.or(self.on_lost.as_ref().map(|_| self.on_lost_max())) {
            config.hook_timeout = timeout;
        }
        config.program = self.run.as_ref().map(|command| {
            let mut guard: Vec<OsString> = GUARD.map(Into::into).to_vec();
            guard.extend(descriptors.map(|limit| format!("--descriptors={limit}").into()));
            let mut program = ProgramConfig::new(command, guard);
            program.stop_grace = self.stop_grace;
            program
        });
        config.on_exit = match self.on_exit {
            WhenItEnds::HandOver => OnExit::HandOver,
            WhenItEnds::Restart => OnExit::Restart,
        };
        config
    }
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    // What is wrong with the command line is said before etcd is waited for.
    options.config(paceline::Secret::new("not the cluster's").map_err(|error| Failure::usage(error.to_string()))?)?;
    options.check_on_lost()?;
    let coordinator = options.etcd.coordinator(options.lease_ttl, options.watched(None).stop_margin())?;
    start_logging();
    let descriptors = descriptors::raise();
    let signals = signals()?;
    let Some(secret) = secret_of(&coordinator, &signals)? else { return Ok(()) };
    let failed = |error: paceline::node::NodeError| Failure::runtime(error.to_string());
    let host = WatchedProgram::new(options.watched(descriptors));
    let node = Node::start(options.config(secret)?, Arc::new(coordinator), host).map_err(failed)?;
    let id = node.id();
    log::info!("node {id} keeps {}", options.data_dir.display());
    let mut role = Role::Following;
    say(&format!("node {id} is {role}"));
    while signals.try_recv().is_err() {
        let now = node.wait_for_another_role(role, LOOK_EVERY);
        if now == Role::Stopped {
            break;
        }
        if now != role {
            role = now;
            say(&format!("node {id} is {role}"));
        }
    }
    log::info!("shutting down");
    node.stop().map_err(failed)
}
