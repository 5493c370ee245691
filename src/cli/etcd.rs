//! etcd, as the commands of a cluster are given it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use paceline::Secret;
use paceline::coordinator::{Coordinator, CoordinatorError, EtcdConfig, EtcdCoordinator, EtcdEndpoint, EtcdUser};

use super::{Failure, secret_from};

/// The environment variable that may hold etcd's password.
const PASSWORD_VARIABLE: &str = "PACELINE_ETCD_PASSWORD";

/// Between two attempts to reach etcd at the start.
const RETRY: Duration = Duration::from_secs(2);

#[derive(Args)]
#[command(next_help_heading = "etcd")]
pub(crate) struct EtcdOptions {
    /// The cluster's etcd; name all its members
    #[arg(long, value_name = "URL[,URL]", env = "PACELINE_ETCD", value_delimiter = ',')]
    pub(crate) etcd: Vec<EtcdEndpoint>,
    /// What the cluster's keys in etcd begin with
    #[arg(long, value_name = "PREFIX", env = "PACELINE_ETCD_PREFIX", default_value = "lavinmq")]
    etcd_prefix: String,
    /// A user of etcd, if it asks for one
    #[arg(long, value_name = "NAME", env = "PACELINE_ETCD_USER")]
    etcd_user: Option<String>,
    /// File with that user's password; one newline at its end is not part of it [or: the password itself in
    /// PACELINE_ETCD_PASSWORD]
    #[arg(long, value_name = "FILE", env = "PACELINE_ETCD_PASSWORD_FILE")]
    etcd_password_file: Option<PathBuf>,
    /// File of certificates (PEM), one of which signed etcd's, for https [default: the well-known authorities]
    #[arg(long, value_name = "FILE", env = "PACELINE_ETCD_CA_FILE")]
    etcd_ca_file: Option<PathBuf>,
}

impl EtcdOptions {
    /// With leases of this length, if it is told, that end here this long before another node may be elected.
    pub(crate) fn coordinator(
        &self,
        lease_ttl: Option<Duration>,
        stop_margin: Duration,
    ) -> Result<EtcdCoordinator, Failure> {
        if self.etcd.is_empty() {
            return Err(Failure::usage("no etcd was given; give --etcd URL[,URL], or set PACELINE_ETCD"));
        }
        let mut config = EtcdConfig::new(self.etcd.iter().cloned());
        config.prefix.clone_from(&self.etcd_prefix);
        config.ca_file.clone_from(&self.etcd_ca_file);
        if let Some(ttl) = lease_ttl {
            config.lease_ttl = ttl;
        }
        config.stop_margin = stop_margin;
        config.answer_timeout = config.answer_timeout.min(config.answer_timeout_max());
        config.user = match &self.etcd_user {
            None if self.etcd_password_file.is_some() => {
                return Err(Failure::usage("--etcd-password-file is whose? Give --etcd-user NAME with it"));
            }
            None => None,
            Some(name) => {
                let password = secret_from(
                    self.etcd_password_file.as_deref(),
                    PASSWORD_VARIABLE,
                    "password of etcd's user",
                    "--etcd-password-file",
                )?;
                Some(EtcdUser { name: name.clone(), password })
            }
        };
        config.check().map_err(|error| Failure::usage(error.to_string()))?;
        EtcdCoordinator::new(&config).map_err(|error| Failure::usage(error.to_string()))
    }
}

/// The cluster's secret; waits for etcd. `None` if a signal came first.
pub(crate) fn secret_of(coordinator: &EtcdCoordinator, signals: &Receiver<i32>) -> Result<Option<Secret>, Failure> {
    loop {
        match coordinator.secret() {
            Ok(secret) => return Ok(Some(secret)),
            Err(error @ CoordinatorError::Unavailable(_)) => log::warn!("{error}; trying again in {RETRY:?}"),
            Err(error) => return Err(Failure::runtime(error.to_string())),
        }
        if signals.recv_timeout(RETRY) != Err(RecvTimeoutError::Timeout) {
            return Ok(None);
        }
    }
}
