//! Settings of the connection to etcd.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::coordinator::CoordinatorError;
use crate::types::{InvalidValue, Secret, shorten};

/// Settings of an [`EtcdCoordinator`](super::EtcdCoordinator).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EtcdConfig {
    /// The members of etcd to ask, each when the one before does not answer. At least one; name them all.
    pub endpoints: Vec<EtcdEndpoint>,
    /// What all keys of the cluster begin with, before a `/`. Defaults to `lavinmq`, as LavinMQ's.
    pub prefix: String,
    /// Who we are to etcd. Defaults to `None`: etcd does not ask.
    pub user: Option<EtcdUser>,
    /// A file of certificates (PEM), one of which must have signed etcd's, for `https`. Defaults to `None`: the well-known
    /// authorities.
    pub ca_file: Option<PathBuf>,
    /// How long a leadership that is not renewed lasts; whole seconds. Defaults to 10 s, LavinMQ's own. etcd raises what is
    /// shorter than one and a half of its election timeouts.
    pub lease_ttl: Duration,
    /// How long before another node may be elected a leadership that is not renewed ends here: the time there is to stop what is
    /// active. At most half of `lease_ttl`, and never less than a fifth, which is the default.
    pub stop_margin: Duration,
    /// How long one member may take to answer, before another is asked. Defaults to 2 s; at most a third of `lease_ttl` (less where
    /// `stop_margin` is more than a fifth), so that a silent one does not cost the leadership. With a user it may take twice as long where it logs in anew.
    pub answer_timeout: Duration,
    /// How long a call tries, all members together, before it fails. A call ends at most `answer_timeout` later (or twice that, see there). Defaults to 5 s:
    /// the election of another leader among etcd's members takes 1 to 3 s.
    pub call_timeout: Duration,
}

impl EtcdConfig {
    /// The defaults, for these members.
    pub fn new(endpoints: impl IntoIterator<Item = EtcdEndpoint>) -> Self {
        Self {
            endpoints: endpoints.into_iter().collect(),
            prefix: "lavinmq".into(),
            user: None,
            ca_file: None,
            lease_ttl: Duration::from_secs(10),
            stop_margin: Duration::ZERO,
            answer_timeout: Duration::from_secs(2),
            call_timeout: Duration::from_secs(5),
        }
    }

    /// Checks every setting.
    pub fn check(&self) -> Result<(), CoordinatorError> {
        if self.endpoints.is_empty() || self.endpoints.len() > ENDPOINTS_MAX {
            let reason = format!("has {} members of etcd, must have 1 to {ENDPOINTS_MAX}", self.endpoints.len());
            return fault("endpoints", reason);
        }
        let prefix_ok = |c: char| !c.is_control() && !c.is_whitespace();
        let trimmed = self.prefix.trim_matches('/');
        if trimmed.is_empty()
            || trimmed != self.prefix
            || self.prefix.len() > 255
            || !self.prefix.chars().all(prefix_ok)
        {
            let shown = shorten(&self.prefix);
            return fault(
                "prefix",
                format!("is {shown:?}, must be 1 to 255 bytes without spaces, not begin or end with /"),
            );
        }
        if self.lease_ttl.subsec_nanos() > 0 || !(1..=LEASE_TTL_SECONDS_MAX).contains(&self.lease_ttl.as_secs()) {
            return fault("lease_ttl", format!("must be a whole number of seconds, 1 to {LEASE_TTL_SECONDS_MAX}"));
        }
        if self.stop_margin > self.lease_ttl / 2 {
            let reason = format!("is {:?}, must be at most half of lease_ttl, {:?}", self.stop_margin, self.lease_ttl);
            return fault("stop_margin", reason);
        }
        let most = self.span().renewed_every();
        if self.answer_timeout.is_zero() || self.answer_timeout > most {
            return fault("answer_timeout", format!("must be above 0 s, and at most {most:?} with this lease_ttl"));
        }
        if self.call_timeout < self.answer_timeout || self.call_timeout > CALL_TIMEOUT_MAX {
            let most = CALL_TIMEOUT_MAX.as_secs();
            return fault("call_timeout", format!("must be at least answer_timeout, and at most {most} s"));
        }
        self.user.as_ref().map_or(Ok(()), EtcdUser::check)
    }

    /// The longest [`answer_timeout`](Self::answer_timeout) that these leases leave.
    #[must_use]
    pub fn answer_timeout_max(&self) -> Duration {
        self.span().renewed_every()
    }

    pub(super) fn span(&self) -> Span {
        Span { ttl: self.lease_ttl, margin: self.stop_margin }
    }
}

/// How long a lease lasts, and how long before its end it counts no more here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) ttl: Duration,
    pub(super) margin: Duration,
}

impl Span {
    pub(super) fn margin(self) -> Duration {
        self.margin.max(self.ttl / 5)
    }

    /// From the moment before a renewal was sent to the end that counts for us.
    pub(super) fn held_for(self) -> Duration {
        self.ttl.saturating_sub(self.margin())
    }

    /// Twice within that, and some time to spare: a third of a lease with the least margin.
    pub(super) fn renewed_every(self) -> Duration {
        self.held_for() * 5 / 12
    }
}

const ENDPOINTS_MAX: usize = 64;
const LEASE_TTL_SECONDS_MAX: u64 = 3600;
const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

fn fault(name: &'static str, reason: String) -> Result<(), CoordinatorError> {
    Err(CoordinatorError::Setting { name, reason })
}

/// A user of etcd.
#[derive(Clone, Debug)]
pub struct EtcdUser {
    /// The name.
    pub name: String,
    /// The password; never shown. Take it from a file or the environment: a command line is seen by everyone.
    pub password: Secret,
}

impl EtcdUser {
    fn check(&self) -> Result<(), CoordinatorError> {
        if self.name.is_empty() || self.name.len() > 255 || self.name.chars().any(char::is_control) {
            return fault("user", "must be a name of 1 to 255 bytes".into());
        }
        if std::str::from_utf8(self.password.as_bytes()).is_err() {
            return fault("password", "is not UTF-8, which etcd's passwords are".into());
        }
        Ok(())
    }
}

/// Where a member of etcd listens for clients: `[http[s]://]HOST[:PORT]`, by default `http` and port 2379.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdEndpoint {
    url: String,
}

impl EtcdEndpoint {
    /// Takes apart a list of endpoints, joined by `,`.
    pub fn parse_list(list: &str) -> Result<Vec<Self>, InvalidValue> {
        list.split(',').map(|endpoint| endpoint.trim().parse()).collect()
    }

    /// Without a `/` at its end.
    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

impl FromStr for EtcdEndpoint {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        // Someone put a password there; it must not come up in an error either.
        if text.contains('@') {
            let remedy = "give etcd's user and password as settings of their own";
            return Err(InvalidValue::new("etcd endpoint", "(with a user)", remedy));
        }
        let invalid = || InvalidValue::new("etcd endpoint", shorten(text), "it is [http[s]://]HOST[:PORT]");
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        if !matches!(scheme, "http" | "https") || text.len() > 512 {
            return Err(invalid());
        }
        let address = crate::types::host_and_port(rest.strip_suffix('/').unwrap_or(rest), 2379).ok_or_else(invalid)?;
        Ok(Self { url: format!("{scheme}://{address}") })
    }
}

impl fmt::Display for EtcdEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_or_shorter() {
        for (text, url) in [
            ("etcd1", "http://etcd1:2379"),
            ("etcd1:1", "http://etcd1:1"),
            ("https://10.0.0.1", "https://10.0.0.1:2379"),
            ("http://[::1]:7/", "http://[::1]:7"),
        ] {
            assert_eq!(text.parse::<EtcdEndpoint>().unwrap().url(), url);
        }
        for bad in ["", "ftp://a", "http://", "a:b", "a b", "http://a/b", "http://a?b", "a:65536", "a,b"] {
            assert!(bad.parse::<EtcdEndpoint>().is_err(), "{bad:?} was taken");
        }
        assert_eq!(EtcdEndpoint::parse_list("a, b:1").unwrap().len(), 2);
        assert!(EtcdEndpoint::parse_list("a,").is_err());
        let error = "http://root:hunter2@etcd1".parse::<EtcdEndpoint>().unwrap_err().to_string();
        assert!(!error.contains("hunter2") && error.contains("settings of their own"), "{error}");
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let good = EtcdConfig::new(EtcdEndpoint::parse_list("a").unwrap());
        good.check().unwrap();
        let faulty = |change: fn(&mut EtcdConfig)| {
            let mut config = good.clone();
            change(&mut config);
            match config.check() {
                Err(CoordinatorError::Setting { name, .. }) => name,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(faulty(|config| config.endpoints.clear()), "endpoints");
        for prefix in ["", "/", "a/", "/a", "a b", "a\n"] {
            let mut config = good.clone();
            config.prefix = prefix.into();
            assert!(config.check().is_err(), "{prefix:?} was taken");
        }
        assert_eq!(faulty(|config| config.lease_ttl = Duration::from_millis(1500)), "lease_ttl");
        assert_eq!(faulty(|config| config.lease_ttl = Duration::ZERO), "lease_ttl");
        assert_eq!(faulty(|config| config.answer_timeout = Duration::from_secs(4)), "answer_timeout");
        assert_eq!(faulty(|config| config.call_timeout = Duration::from_secs(1)), "call_timeout");
        let user =
            |name: &str, password: &[u8]| EtcdUser { name: name.into(), password: Secret::new(password).unwrap() };
        let mut config = good.clone();
        config.user = Some(user("root", b"hunter2"));
        config.check().unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        config.user = Some(user("", b"a"));
        assert!(config.check().is_err());
        config.user = Some(user("root", b"\xff"));
        assert!(config.check().is_err());
    }
}
