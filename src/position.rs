//! How far a directory has come: positions that compare between the nodes of a cluster, and the one that a directory keeps.
//!
//! A directory that *has* (epoch, position) has what the leader of that epoch began with, and everything it announced up to that position. It may have more:
//! what a sync read from that leader's disk, or the first half of an action. So among directories of one cluster, who has the greater one lacks nothing that the
//! other has, unless the leaders between them have given it up already.
//!
//! | | has |
//! |---|---|
//! | a leader | all of its own epoch |
//! | a follower in sync | its leader's epoch, up to the last action that it has written to files |
//! | one whose sync has begun and is not complete | none: it must not lead anyway |
//! | one that followed a leader outside a cluster, or of 1.0.0, which does not say its epoch | none, until it is in sync with one that does |
//!
//! It orders candidates in an election ([`node`](crate::node)), and it shows what a directory is at least: of a member of a set whose leader has recorded that all members show this much,
//! one that shows less is an older copy (`node/committed.rs`). More than that it does not prove: another program may have written to the directory since. Who may be elected
//! at all is decided by the recorded in-sync set, the data set, and the marks of an incomplete or suspect directory.
//! A follower that lacks part of a file (*void*, see the leader's in-sync set) counts it all the same, and is out of that set.
//!
//! # What is kept
//!
//! `.paceline/position` has one line: epoch, position, the part of it that is known to survive a loss of power (0: nothing is), and the machine's boot id. After a kill the
//! position holds; after another boot only that part, and that is what a directory *shows* whatever became of the machine. A leader keeps "everything" before it leads, and each minute how much of that
//! is durable; the exact position when it has shut down. A follower keeps its position before it counts as whole (where that fails it does not get there), every
//! [`KEEP_EVERY`] while it moves, and at its end; it tells its leader what it shows. What is read after a kill is a lower bound. The file goes,
//! durably, before a leader's first change on a connection. One that cannot be read counts as absent: the node is one that has no position.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::Error;
use crate::own_folder::{OwnFolder, POSITION};
use crate::types::{InvalidValue, StreamPosition, shorten};

/// How often a follower that moves keeps its position.
pub(crate) const KEEP_EVERY: Duration = Duration::from_secs(10);

/// A moment in the stream of one leader of a cluster, which compares with those of other leaders: first by epoch, then by position.
///
/// As text, `EPOCH:POSITION` in decimal digits; safe to persist, and to read back later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochPosition {
    /// The term of the election that the leader won ([`LeaderInfo::term`](crate::coordinator::LeaderInfo)): greater for each later leader of the cluster.
    pub epoch: u64,
    /// The moment in its stream.
    pub position: StreamPosition,
}

impl fmt::Display for EpochPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.position)
    }
}

impl FromStr for EpochPosition {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let parts = || {
            let (epoch, position) = text.split_once(':')?;
            Some(Self { epoch: number(epoch)?, position: StreamPosition(number(position)?) })
        };
        parts().ok_or_else(|| InvalidValue::new("position", shorten(text), "it is EPOCH:POSITION, two numbers"))
    }
}

/// Digits only: `parse` takes a sign as well.
pub(crate) fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What a directory keeps of how far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stand {
    pub(crate) has: EpochPosition,
    /// In the same epoch; 0 if nothing is known to be durable.
    pub(crate) durable: StreamPosition,
}

impl Stand {
    /// Of a directory that leads: whatever its leader announces is in it. What survives a loss of power is what the leader has made durable; at its start, what it began with.
    pub(crate) fn of_leader(epoch: u64, durable: StreamPosition) -> Self {
        Self { has: EpochPosition { epoch, position: StreamPosition(u64::MAX) }, durable }
    }

    /// A leader has come to its end. One that never got to lead from the directory leaves it what it had; a failure is logged.
    pub(crate) fn led(own: &OwnFolder, epoch: u64, end: StreamPosition) {
        if let Some(kept) = Self::load(own).filter(|stand| stand.has.epoch == epoch) {
            let led = Self { has: EpochPosition { epoch, position: end }, ..kept };
            noted(led.keep(own));
        }
    }

    /// Of one that leads outside a cluster: from here on nothing compares. A failure is logged.
    pub(crate) fn forget(own: &OwnFolder) {
        if Self::load(own).is_some() {
            let nothing = EpochPosition { epoch: 0, position: StreamPosition(0) };
            noted(Self { has: nothing, durable: nothing.position }.keep(own));
        }
    }

    /// What the directory can show that it has, whatever becomes of the machine.
    pub(crate) fn shown(&self) -> EpochPosition {
        EpochPosition { position: self.durable, ..self.has }
    }

    /// Writes it; it is on disk when this returns. One that cannot be written leaves what was there.
    pub(crate) fn keep(&self, own: &OwnFolder) -> Result<(), Error> {
        let boot = own.boot_id().map_or_else(|| "-".to_owned(), |id| format!("{id:032x}"));
        own.write(POSITION, &format!("{} {} {} {boot}\n", self.has.epoch, self.has.position, self.durable))
    }

    /// What was kept, as far as it still holds.
    pub(crate) fn load(own: &OwnFolder) -> Option<Self> {
        let read = own.read(POSITION, "remove it");
        let text =
            read.inspect_err(|error| log::warn!("how far this directory has come is not known: {error}")).ok()??;
        Self::parse(&text, own.boot_id())
    }

    fn parse(text: &str, boot_now: Option<u128>) -> Option<Self> {
        let mut parts = text.trim_end().split(' ');
        let mut next = || number(parts.next()?);
        let (epoch, written, durable) = (next()?, StreamPosition(next()?), StreamPosition(next()?));
        let boot = u128::from_str_radix(parts.next()?, 16).ok();
        let position = if boot.is_some() && boot == boot_now { written } else { durable };
        (position > StreamPosition(0)).then_some(Self { has: EpochPosition { epoch, position }, durable })
    }
}

/// A directory in which that failed is taken for one that has less.
pub(crate) fn noted(kept: Result<(), Error>) {
    if let Err(error) = kept {
        log::warn!("how far this directory has come could not be noted: {error}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(epoch: u64, position: u64) -> EpochPosition {
        EpochPosition { epoch, position: StreamPosition(position) }
    }

    #[test]
    fn a_later_leaders_stream_is_after_an_earlier_ones_however_long_that_was() {
        let ascending = [at(0, 1), at(1, 1), at(1, 2), at(1, u64::MAX), at(2, 0), at(2, 7), at(u64::MAX, 0)];
        assert!(ascending.is_sorted() && ascending.iter().all(|position| position == position));
    }

    proptest! {
        #[test]
        fn text_comes_back_as_the_same_position_and_the_order_is_that_of_the_pair(a in any::<(u64, u64)>(), b in any::<(u64, u64)>()) {
            let (one, other) = (at(a.0, a.1), at(b.0, b.1));
            prop_assert_eq!(one.to_string().parse::<EpochPosition>().unwrap(), one);
            prop_assert_eq!(one.cmp(&other), a.cmp(&b));
        }
    }

    #[test]
    fn text_that_is_no_position_is_refused() {
        for bad in ["", ":", "1", "1:", ":1", "1:2:3", "-1:2", "+1:2", "1: 2", "18446744073709551616:1", "a:b"] {
            assert!(bad.parse::<EpochPosition>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn what_is_kept_holds_after_a_kill_and_only_what_was_durable_after_another_boot() {
        let text = "7 900 300 000000000000000000000000000000ff\n";
        let kept = |position| Some(Stand { has: at(7, position), durable: StreamPosition(300) });
        assert_eq!(Stand::parse(text, Some(0xff)), kept(900));
        for other in [Some(0xfe), None] {
            assert_eq!(Stand::parse(text, other), kept(300));
        }
        assert_eq!(Stand::parse("7 900 300 -\n", None), kept(300), "boots that are not known are not the same");
        assert_eq!(Stand::parse("7 900 0 -\n", Some(1)), None);
        for bad in ["", "\n", "7 900\n", "7 900 300\n", "7 x 300 ff\n"] {
            assert_eq!(Stand::parse(bad, Some(0xff)), None, "{bad:?}");
        }
    }

    #[test]
    fn a_directory_keeps_how_far_it_has_come_until_it_follows_another_leader() {
        let dir = tempfile::tempdir().unwrap();
        let own = OwnFolder::of(dir.path()).unwrap();
        assert_eq!(Stand::load(&own), None);
        let of_leader = |durable| Stand::of_leader(3, StreamPosition(durable));
        for kept in [of_leader(1), Stand { has: at(4, 44), durable: StreamPosition(40) }] {
            kept.keep(&own).unwrap();
            assert_eq!(Stand::load(&own), Some(kept));
        }
        own.forget_stand().unwrap();
        assert_eq!(Stand::load(&own), None);
        own.forget_stand().unwrap();
        of_leader(5).keep(&own).unwrap();
        Stand::led(&own, 4, StreamPosition(7));
        assert_eq!(Stand::load(&own), Some(of_leader(5)), "it did not lead");
        Stand::led(&own, 3, StreamPosition(7));
        assert_eq!(Stand::load(&own), Some(Stand { has: at(3, 7), durable: StreamPosition(5) }));
        Stand::forget(&own);
        assert_eq!(Stand::load(&own), None);
        std::fs::write(dir.path().join(".paceline/position"), "5 50 50 -\n").unwrap();
        assert_eq!(Stand::load(&own), None, "it has no checksum");
    }
}
