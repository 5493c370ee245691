//! What is remembered of a file, and what one look saw. No lock, no thread, no clock but the one passed in.

use std::time::Duration;

use crate::digests::{SETTLED_COARSE, nanos, now};
use crate::sys::fs::{Metadata, MetadataExt};
use crate::sys::time::SystemTime;

/// How long after a file's last change another change still could carry the same time: clock ticks of file systems last
/// up to 10 ms, where they do not count seconds.
const TICK_MAX: Duration = Duration::from_millis(12);

/// For how long a time, in nanoseconds since 1970, may come again after it. One of whole seconds may be that of a clock which counts no more than those.
fn tick(at: i64) -> Duration {
    if at % 1_000_000_000 == 0 { SETTLED_COARSE } else { TICK_MAX }
}

/// Whether a time, in nanoseconds since 1970, does not come again.
fn is_past(at: i64, now: i64) -> bool {
    let age = now.checked_sub(at).and_then(|age| u64::try_from(age).ok());
    age.is_some_and(|age| Duration::from_nanos(age) > tick(at))
}

/// Which file it is: inode numbers come back at once, with their birth time they do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) dev: u64,
    pub(super) ino: u64,
    /// In nanoseconds since 1970, where the file system knows.
    pub(super) born: Option<i64>,
}

/// A file as one look saw it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) id: Identity,
    pub(super) len: u64,
    /// When anything of it changed last, in nanoseconds since 1970. Nobody can set it.
    pub(super) changed: i64,
    /// Whether a change after this look is sure to carry another time.
    pub(super) settled: bool,
    /// Whether a file that gets this inode later is sure to be born at another time.
    pub(super) unique: bool,
}

impl Seen {
    pub(super) fn of(meta: &Metadata) -> Self {
        let since = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let born = meta.created().ok().and_then(|born| i64::try_from(since(born).as_nanos()).ok());
        let id = Identity { dev: meta.dev(), ino: meta.ino(), born };
        Self::at(now(), id, meta.len(), nanos(meta.ctime(), meta.ctime_nsec()))
    }

    fn at(now: i64, id: Identity, len: u64, changed: i64) -> Self {
        let unique = id.born.is_some_and(|born| is_past(born, now));
        Self { id, len, changed, settled: is_past(changed, now), unique }
    }

    pub(super) fn id(&self) -> Identity {
        self.id
    }

    /// Whether nothing shows that the file has changed between the two.
    pub(super) fn looks_like(&self, other: &Self) -> bool {
        let looks = |seen: &Self| (seen.id, seen.len, seen.changed);
        looks(self) == looks(other)
    }

    /// How long ago it changed.
    pub(super) fn age(&self) -> Duration {
        let age = now().checked_sub(self.changed).and_then(|age| u64::try_from(age).ok());
        Duration::from_nanos(age.unwrap_or_default())
    }

    /// How long after its last change it is settled at the latest.
    pub(super) fn settles_after(&self) -> Duration {
        tick(self.changed)
    }
}

/// A file as it was announced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// How it looked before it was read for that, or when it was last proven.
    pub(super) seen: Seen,
    pub(super) announced: u64,
}

impl Known {
    /// `seen` must come from before the content was read for the announcement: a change after that shows later.
    pub(super) fn new(seen: Seen, announced: u64) -> Self {
        Self { seen, announced }
    }

    /// A file that was announced and cannot be found.
    pub(super) fn lost(announced: u64) -> Self {
        let id = Identity { dev: 0, ino: 0, born: None };
        Self::new(Seen { id, len: announced, changed: 0, settled: false, unique: false }, announced)
    }

    pub(super) fn id(&self) -> Identity {
        self.seen.id
    }

    /// Whether no other file can ever have its identity.
    pub(super) fn is_unique(&self) -> bool {
        self.seen.unique
    }

    /// Whether `seen` shows for sure that nothing happened.
    pub(super) fn is_unchanged(&self, seen: &Seen) -> bool {
        self.seen.settled && self.announced == seen.len && self.seen.looks_like(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_clock_that_counts_seconds_another_file_may_be_born_at_the_same_time_for_longer() {
        const SECOND: i64 = 1_000_000_000;
        let seen = |born: i64, now: i64| {
            let seen = Seen::at(now, Identity { dev: 1, ino: 2, born: Some(born) }, 3, born);
            (seen.settled, seen.unique)
        };
        let born = 1_700_000_000 * SECOND;
        assert_eq!(seen(born, born + SECOND), (false, false));
        assert_eq!(seen(born, born + 6 * SECOND), (true, true));
        assert_eq!(seen(born + 1, born + 13_000_000), (true, true));
        assert_eq!(seen(born + 1, born + 12_000_000), (false, false));
        assert_eq!(seen(born + 1, born), (false, false), "later than now");
    }
}
