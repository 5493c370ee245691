//! Settings of a node.

use std::path::PathBuf;
use std::time::Duration;

use super::ProxyConfig;
use crate::config::{FollowerConfig, LeaderConfig};
use crate::coordinator::LeaderInfo;
use crate::error::Error;
use crate::sys::net::IpAddr;
use crate::types::Secret;

/// Settings of a [`Node`](super::Node).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NodeConfig {
    /// How it leads. Its directory, id and secret are the node's.
    pub leader: LeaderConfig,
    /// How it follows: all but the leader's address, and directory, id and secret.
    pub follower: FollowerConfig,
    /// Where followers are accepted while the node leads, `HOST:PORT`.
    pub listen: String,
    /// Where other nodes reach that, `tcp://HOST:PORT`. The host is also where proxies find the program.
    pub advertise: String,
    /// Proxies for clients.
    pub proxies: Vec<ProxyConfig>,
    /// Whether the directory is the truth if the cluster is of another data set than it: then the node leads though it is in no
    /// recorded in-sync set, and its data set becomes the cluster's. Followers of the other one give up nothing without being told to.
    /// Does nothing in a cluster of the directory's data set, nor with a directory that has none. Defaults to false.
    pub found: bool,
    /// Whether the node stands for election also if its directory shows less than was committed: what the members of the recorded set had beyond that is given up. To be
    /// set for one start of one node, when no other one has more. Does nothing where the directory shows enough, and does not let a node lead that is not in the recorded set. Defaults to false.
    pub accept_loss: bool,
    /// How long followers get to acknowledge everything before leadership is handed over. Defaults to 10 s.
    pub drain_timeout: Duration,
    /// How long the disk or the leader's dispatch may hang before leadership is no longer renewed. Defaults to 10 s: a busy disk
    /// takes seconds for a flush, and each change of leaders cuts clients off.
    pub stall_timeout: Duration,
}

impl NodeConfig {
    /// The defaults. The secret is the cluster's: see [`Coordinator::secret`](crate::coordinator::Coordinator::secret).
    pub fn new(
        data_dir: impl Into<PathBuf>,
        secret: Secret,
        listen: impl Into<String>,
        advertise: impl Into<String>,
    ) -> Self {
        let data_dir = data_dir.into();
        let mut follower = FollowerConfig::new("", &data_dir, secret.clone());
        // Where a new leader is elected its port opens soon after.
        follower.retry_delay_max = Duration::from_secs(1);
        Self {
            leader: LeaderConfig::new(data_dir, secret),
            follower,
            listen: listen.into(),
            advertise: advertise.into(),
            proxies: Vec::new(),
            found: false,
            accept_loss: false,
            drain_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
        }
    }

    /// Checks every setting.
    pub fn check(&self) -> Result<(), Error> {
        self.leader.check()?;
        self.follower.check()?;
        let wrong =
            |reason: &str| Error::Setting { name: "advertise", reason: format!("is {}; {reason}", self.advertise) };
        let remedy = "write tcp://HOST:PORT, as the other nodes reach this one";
        let announced = LeaderInfo { uri: self.advertise.clone(), id: None, term: 0 };
        let address = announced.address().map_err(|_| wrong(remedy))?;
        let is_unspecified = host_of(&address).parse().is_ok_and(|ip: IpAddr| ip.is_unspecified());
        if is_unspecified || address.ends_with(":0") {
            return Err(wrong(remedy));
        }
        if self.listen.ends_with(":0") {
            let reason =
                format!("is {}; port 0 would be another one each time, and {} is announced", self.listen, address);
            return Err(Error::Setting { name: "listen", reason });
        }
        if self.stall_timeout.is_zero() {
            return Err(Error::Setting { name: "stall_timeout", reason: "must be longer than 0 s".into() });
        }
        Ok(())
    }
}

/// The host of a `HOST:PORT`, without the brackets of an IPv6 address.
pub(super) fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertised_address_must_be_one_that_others_can_reach() {
        let check =
            |advertise: &str| NodeConfig::new("/nowhere", Secret::new("s").unwrap(), "0.0.0.0:5679", advertise).check();
        for good in ["tcp://db1:5679", "tcp://10.0.0.1:1", "tcp://[fe80::1]:5679", "tcp://db1"] {
            check(good).unwrap();
        }
        for bad in ["", "db1:5679", "tcp://0.0.0.0:5679", "tcp://[::]:5679", "tcp://db1:0", "http://db1:1"] {
            let error = check(bad).unwrap_err().to_string();
            assert!(error.contains("advertise") && error.contains("tcp://HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn a_node_listens_at_a_port_that_stays() {
        let config = |listen| NodeConfig::new("/nowhere", Secret::new("s").unwrap(), listen, "tcp://db1:5679");
        config("0.0.0.0:10").check().unwrap();
        assert!(config("0.0.0.0:0").check().unwrap_err().to_string().contains("setting listen: is 0.0.0.0:0; port 0"));
    }

    #[test]
    fn a_host_is_told_without_brackets() {
        for (address, host) in [("db1:5679", "db1"), ("[::1]:7", "::1"), ("10.0.0.1:1", "10.0.0.1")] {
            assert_eq!(host_of(address), host);
        }
    }
}
