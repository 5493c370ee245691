//! What `stat` says of a file: as long as it says the same, the file is the same.
//!
//! That holds only for a file that was at rest when it was looked at. The clock of files ticks every few milliseconds, on some
//! file systems once a second or two: a change within the same tick as the look shows in no time. So only what was *settled* is kept on disk.

use std::time::Duration;

use crate::sys::fd::AsFd;
use crate::sys::fs::{File, Metadata, MetadataExt};
use crate::sys::rustix::fs::{Stat, Statx, fstat, makedev};
use crate::sys::rustix::io::Errno;
use crate::sys::time::SystemTime;

pub(crate) const NANOS: i64 = 1_000_000_000;

/// No device's number.
const ANYWHERE: u64 = u64::MAX;

/// More than a tick of the clock of files, and than it is behind.
pub(crate) const SETTLED: Duration = Duration::from_millis(100);
/// Where it counts whole seconds, or every other one; or where nobody asked it.
pub(crate) const SETTLED_COARSE: Duration = Duration::from_secs(5);

/// For so long stores into a mapped page may come after one that moved a time, and move none: Linux writes a dirty page back after 30 s, and looks for those every 5 s.
pub(crate) const DIRTY_MAX: Duration = Duration::from_secs(45);

/// Nanoseconds since 1970; the end of time for what does not fit.
pub(crate) fn nanos(seconds: i64, nanos: i64) -> i64 {
    seconds.checked_mul(NANOS).and_then(|whole| whole.checked_add(nanos)).unwrap_or(i64::MAX)
}

/// The time, in nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// Which file it is, how long, and when it changed: in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamps {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) ctime: i64,
}

impl Stamps {
    /// Of what `stat` said. A time that does not fit is never settled.
    pub(crate) fn of(stat: &Stat) -> Self {
        let part = |nanos: u64| i64::try_from(nanos).unwrap_or(i64::MAX);
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            mtime: nanos(stat.st_mtime, part(stat.st_mtime_nsec)),
            ctime: nanos(stat.st_ctime, part(stat.st_ctime_nsec)),
        }
    }

    /// Of what `statx` said.
    pub(crate) fn of_statx(statx: &Statx) -> Self {
        Self {
            dev: makedev(statx.stx_dev_major, statx.stx_dev_minor),
            ino: statx.stx_ino,
            size: statx.stx_size,
            mtime: nanos(statx.stx_mtime.tv_sec, statx.stx_mtime.tv_nsec.into()),
            ctime: nanos(statx.stx_ctime.tv_sec, statx.stx_ctime.tv_nsec.into()),
        }
    }

    /// Of what was asked for in another form.
    pub(crate) fn of_metadata(meta: &Metadata) -> Self {
        Self {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.len(),
            mtime: nanos(meta.mtime(), meta.mtime_nsec()),
            ctime: nanos(meta.ctime(), meta.ctime_nsec()),
        }
    }

    pub(crate) fn of_file(file: impl AsFd) -> Result<Self, Errno> {
        fstat(file).map(|stat| Self::of(&stat))
    }

    /// The same, on whatever device it may be.
    pub(crate) fn anywhere(self) -> Self {
        Self { dev: ANYWHERE, ..self }
    }

    /// Whether a file that looks like `now` is the one of which these were kept.
    pub(crate) fn are(&self, now: &Self) -> bool {
        let dev = if self.dev == ANYWHERE { ANYWHERE } else { now.dev };
        *self == Self { dev, ..*now }
    }

    /// Whether every change after `began` shows in them: a moment before they were looked at, on the clock of files. (Which is not
    /// this machine's where the file system is another's.)
    ///
    /// Not if one of their times is later than that: the clock was set back, and they may come again.
    pub(crate) fn settled(&self, began: i64) -> bool {
        let is_coarse = self.mtime % NANOS == 0 && self.ctime % NANOS == 0;
        self.settled_for(if is_coarse { SETTLED_COARSE } else { SETTLED }, began)
    }

    /// Of a file that looked like this before it was read, and is open: these, if it looks so still, is of `len` bytes, and had been at rest when the reading
    /// `began`. Such digests may outlive the process.
    pub(crate) fn at_rest(self, len: u64, began: i64, file: &File) -> Option<Self> {
        let is_at_rest = self.size == len && self.settled_for(SETTLED_COARSE, began);
        (is_at_rest && Self::of_file(file) == Ok(self)).then_some(self)
    }

    /// Whether nothing had changed for so long before `began`.
    pub(crate) fn settled_for(&self, rest: Duration, began: i64) -> bool {
        let age = began.checked_sub(self.mtime.max(self.ctime)).and_then(|age| u64::try_from(age).ok());
        age.is_some_and(|age| Duration::from_nanos(age) >= rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(mtime: i64, ctime: i64) -> Stamps {
        Stamps { dev: 1, ino: 2, size: 3, mtime, ctime }
    }

    #[test]
    fn a_file_that_has_just_changed_or_will_is_not_settled() {
        let now = 1_700_000_000_123_456_789;
        let ago = |nanos: i64| now - nanos;
        let (milli, second) = (1_000_000, NANOS);
        assert!(at(ago(100 * milli), ago(100 * milli)).settled(now));
        for (mtime, ctime) in [(99, 200), (200, 99), (-1, 200), (200, -1), (0, 0)] {
            assert!(!at(ago(mtime * milli), ago(ctime * milli)).settled(now), "{mtime} ms, {ctime} ms");
        }
        let whole = 1_700_000_000 * second;
        assert!(!at(whole - 4 * second, whole - 4 * second).settled(now), "the clock may count seconds");
        assert!(at(whole - 5 * second, whole - 5 * second).settled(now));
        assert!(at(whole - 4 * second, whole - 4 * second + 1).settled(now));
        assert!(!at(i64::MAX, 0).settled(now) && at(i64::MIN, ago(second)).settled(now));
    }

    #[test]
    fn a_device_counts_unless_it_may_have_another_number() {
        let (here, there) = (at(4, 5), Stamps { dev: 7, ..at(4, 5) });
        assert!(here.are(&here) && !here.are(&there) && here.anywhere().are(&there));
        assert!(!here.anywhere().are(&Stamps { ino: 9, ..there }) && !here.are(&at(4, 6)));
    }

    proptest! {
        /// Whatever ticks the clock of files counts: of what was settled at a look, no change after that goes unseen.
        #[test]
        fn no_change_after_a_look_goes_unseen(
            tick in prop::sample::select(vec![1, 4, 10, 100, 1000, 2000]),
            changes in prop::collection::vec(0..20_000_i64, 1..20),
            began in 0..20_000_i64, looked_after in 0..3000_i64,
        ) {
            const START: i64 = 1_700_000_000_000;
            let clock = |at: i64| (START + at) / tick * tick * 1_000_000;
            let last = |until: i64| changes.iter().copied().filter(|at| *at <= until).max().map(clock);
            let looked = began + looked_after;
            let Some(before) = last(looked) else { return Ok(()) };
            let kept = at(before, before);
            if kept.settled(clock(began)) && changes.iter().any(|at| *at > looked) {
                let after = last(i64::MAX).unwrap();
                prop_assert!(!kept.are(&at(after, after)));
            }
        }
    }

    #[test]
    fn they_change_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let look = || Stamps::of_file(std::fs::File::open(&path).unwrap()).unwrap();
        std::fs::write(&path, "a").unwrap();
        let first = look();
        assert_eq!((first.size, look()), (1, first));
        std::fs::write(&path, "ab").unwrap();
        assert_ne!(look(), first);
        std::fs::write(dir.path().join("g"), "a").unwrap();
        std::fs::rename(dir.path().join("g"), &path).unwrap();
        assert_ne!(look().ino, first.ino);
    }
}
