//! What the demo's leader process tells its parent on stdout, a line a message, fields parted by tabs; and what it is told
//! on stdin, a word a line.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// Latencies of appends, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Latency {
    pub(crate) appends: u64,
    pub(crate) p50: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

/// A follower as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FollowerNow {
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) lag_bytes: Option<u64>,
    /// In sync, and everything up to the leader's position acknowledged.
    pub(crate) drained: bool,
}

impl FollowerNow {
    pub(crate) fn in_sync(&self) -> bool {
        self.state == "in sync"
    }
}

/// What the leader process says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Where followers can connect.
    Listening(SocketAddr),
    /// A second has passed: bytes appended in it.
    Second { bytes: u64, latency: Latency },
    /// All followers as they are now (several times a second).
    Followers(Vec<FollowerNow>),
    /// A follower was evicted.
    Evicted { id: String, reason: String, lag_bytes: u64, queued_bytes: u64 },
    /// A phase has ended: all bytes appended in it, how long it was.
    Phase { name: String, bytes: u64, time: Duration, latency: Latency },
}

/// What the leader process is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Begin to write; the phase of healthy followers begins.
    Healthy,
    /// A follower is stopped now.
    Stopped,
    /// It is resumed now.
    Resumed,
    /// Write slowly from now on.
    Slow,
    /// End the last phase, stop writing.
    Cease,
    /// Shut down and exit.
    Quit,
}

impl Order {
    const ALL: [Self; 6] = [Self::Healthy, Self::Stopped, Self::Resumed, Self::Slow, Self::Cease, Self::Quit];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Stopped => "stopped",
            Self::Resumed => "resumed",
            Self::Slow => "slow",
            Self::Cease => "cease",
            Self::Quit => "quit",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|order| order.word() == word)
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\t{}\t{}\t{}", self.appends, self.p50, self.p999, self.max)
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listening(address) => write!(f, "listening\t{address}"),
            Self::Second { bytes, latency } => write!(f, "second\t{bytes}\t{latency}"),
            Self::Followers(followers) => {
                write!(f, "followers")?;
                followers.iter().try_for_each(|follower| {
                    let lag = follower.lag_bytes.map_or("-".to_owned(), |lag| lag.to_string());
                    let drained = if follower.drained { "drained" } else { "-" };
                    write!(f, "\t{}\t{}\t{lag}\t{drained}", follower.id, follower.state)
                })
            }
            Self::Evicted { id, reason, lag_bytes, queued_bytes } => {
                write!(f, "evicted\t{id}\t{}\t{lag_bytes}\t{queued_bytes}", reason.replace(['\t', '\n'], " "))
            }
            Self::Phase { name, bytes, time, latency } => {
                write!(f, "phase\t{name}\t{bytes}\t{}\t{latency}", time.as_millis())
            }
        }
    }
}

impl Message {
    /// `None` for a line that is no message.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split('\t').collect();
        match *fields.as_slice() {
            ["listening", address] => Some(Self::Listening(address.parse().ok()?)),
            ["second", bytes, ref latency @ ..] => {
                Some(Self::Second { bytes: bytes.parse().ok()?, latency: parse_latency(latency)? })
            }
            ["followers", ref fields @ ..] => {
                fields.chunks(4).map(parse_follower).collect::<Option<_>>().map(Self::Followers)
            }
            ["evicted", id, reason, lag_bytes, queued_bytes] => Some(Self::Evicted {
                id: id.to_owned(),
                reason: reason.to_owned(),
                lag_bytes: lag_bytes.parse().ok()?,
                queued_bytes: queued_bytes.parse().ok()?,
            }),
            ["phase", name, bytes, ms, ref latency @ ..] => Some(Self::Phase {
                name: name.to_owned(),
                bytes: bytes.parse().ok()?,
                time: Duration::from_millis(ms.parse().ok()?),
                latency: parse_latency(latency)?,
            }),
            _ => None,
        }
    }
}

fn parse_latency(fields: &[&str]) -> Option<Latency> {
    let [appends, p50, p999, max] = *fields else { return None };
    Some(Latency {
        appends: appends.parse().ok()?,
        p50: p50.parse().ok()?,
        p999: p999.parse().ok()?,
        max: max.parse().ok()?,
    })
}

fn parse_follower(fields: &[&str]) -> Option<FollowerNow> {
    let [id, state, lag, drained] = *fields else { return None };
    let lag_bytes = if lag == "-" { None } else { Some(lag.parse().ok()?) };
    Some(FollowerNow { id: id.to_owned(), state: state.to_owned(), lag_bytes, drained: drained == "drained" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in() {
        let latency = Latency { appends: 5, p50: 100, p999: 2_000, max: 30_000 };
        let follower = |id: &str, lag_bytes| FollowerNow {
            id: id.to_owned(),
            state: "catching up".to_owned(),
            lag_bytes,
            drained: lag_bytes == Some(0),
        };
        for message in [
            Message::Listening("127.0.0.1:5679".parse().unwrap()),
            Message::Second { bytes: 1, latency },
            Message::Followers(vec![]),
            Message::Followers(vec![follower("a", None), follower("b", Some(0))]),
            Message::Evicted { id: "b".into(), reason: "queue full".into(), lag_bytes: 7, queued_bytes: 8 },
            Message::Phase { name: "healthy".into(), bytes: 9, time: Duration::from_millis(10), latency },
        ] {
            assert_eq!(Message::parse(&message.to_string()), Some(message));
        }
        for bad in ["", "second", "second\t1\t2", "followers\ta", "listening\tx", "other"] {
            assert_eq!(Message::parse(bad), None, "{bad}");
        }
        assert!(Order::ALL.into_iter().all(|order| Order::parse(order.word()) == Some(order)));
    }
}
