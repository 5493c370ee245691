//! Nobody leads, and this node may not: it says so, why, and what a person can do, now and then for as long as that is so.
//!
//! It is told the time, takes no lock and has no thread.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::committed::{Behind, REMEDY};
use super::data_set::Bar;
use crate::coordinator::InSyncSet;
use crate::sys::time::Instant;
use crate::types::NodeId;

/// How long nobody must have led before it is said: longer than a hand-over takes.
const SAY_AFTER: Duration = Duration::from_secs(3);
/// Between two such words.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Why a node may not stand for election.
#[derive(Debug)]
pub(super) enum Obstacle<'a> {
    /// The coordinator has not told yet what is recorded.
    NothingObserved,
    /// Who was in sync when that was recorded last is in this set, and this node is not.
    NotInSet {
        own: NodeId,
        set: &'a InSyncSet,
        /// Where the coordinator keeps the set, if that has a name.
        recorded_at: Option<String>,
    },
    /// Its directory is not of the cluster's data set.
    Barred(Bar),
    /// Its directory shows less than was committed.
    Behind(Behind),
    /// Its directory is half of a full sync.
    Incomplete(&'a Path),
    /// A sync of its directory has failed.
    Suspect(&'a Path),
    /// It failed when it led, or was about to.
    StandsBack(Duration),
}

impl fmt::Display for Obstacle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingObserved => {
                f.write_str("the recorded in-sync set, or the cluster's data set, is not known yet")
            }
            Self::NotInSet { own, set, recorded_at } => {
                let who = if set.len() == 1 { "node" } else { "one of the nodes" };
                let ids = set.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
                let record = recorded_at.as_deref().unwrap_or("that record");
                write!(
                    f,
                    "it is not in the recorded in-sync set ({set}), and may lack what was written last; missing is {who} {ids}: start it. \
                     A member that never leads, such as a copy, and is not the last one is taken out with: paceline forget ID. If all \
                     are gone for good, what only they had is lost: stop all nodes, delete {record} (etcdctl del), and start the \
                     node that is to lead, such as {own}, first, with --accept-loss"
                )
            }
            Self::Barred(bar) => bar.fmt(f),
            Self::Behind(behind) => write!(f, "{behind}: {REMEDY}"),
            Self::Incomplete(dir) => write!(
                f,
                "the last full sync of {} did not end, so it is no copy: start another node, one that has everything",
                dir.display()
            ),
            Self::Suspect(dir) => write!(
                f,
                "a sync of {} has failed, so what can be read there may be on no disk: start another node, one that has everything, and \
                 this one follows it and is mended. If there is none: restart this machine, so that all is read from the disk, check the \
                 files, and remove .paceline/suspect in it",
                dir.display()
            ),
            Self::StandsBack(left) => {
                write!(f, "it failed to lead, and stands back for another {:.0} s", left.as_secs_f64())
            }
        }
    }
}

/// When to say it.
#[derive(Default)]
pub(super) struct Leaderless {
    since: Option<Instant>,
    said: Option<Instant>,
}

impl Leaderless {
    /// Whether it is to be said now.
    pub(super) fn is_to_be_said(&mut self, leaderless: bool, now: Instant) -> bool {
        if !leaderless {
            *self = Self::default();
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let due = now >= since + SAY_AFTER && self.said.is_none_or(|said| now >= said + SAY_EVERY);
        if due {
            self.said = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_after_a_moment_and_each_minute_until_somebody_leads() {
        let (began, mut leaderless) = (Instant::now(), Leaderless::default());
        let mut said_within = |seconds: std::ops::Range<u64>, nobody: bool| {
            let at = |second| began + Duration::from_secs(second);
            seconds.filter(|second| leaderless.is_to_be_said(nobody, at(*second))).collect::<Vec<_>>()
        };
        assert_eq!(said_within(0..200, true), [3, 63, 123, 183]);
        assert!(said_within(200..300, false).is_empty());
        assert_eq!(said_within(300..370, true), [303, 363]);
    }

    #[test]
    fn it_names_the_set_who_is_missing_and_what_to_do() {
        let id = |id| NodeId::new(id).unwrap();
        let set = InSyncSet::new([id(1), id(36)]).unwrap();
        let recorded_at = Some("redis/isr".to_owned());
        let text = Obstacle::NotInSet { own: id(7), set: &set, recorded_at }.to_string();
        for part in
            ["set (1,10)", "missing is one of the nodes 1, 10", "paceline forget ID", "delete redis/isr", "such as 7"]
        {
            assert!(text.contains(part), "{text}");
        }
        let text = Obstacle::Suspect(Path::new("/data")).to_string();
        for part in ["/data has failed", "start another node", "remove .paceline/suspect"] {
            assert!(text.contains(part), "{text}");
        }
        let text = Obstacle::Incomplete(Path::new("/data")).to_string();
        assert!(text.contains("/data did not end") && text.contains("start another node"), "{text}");
    }
}
