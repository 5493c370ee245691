//! What is remembered of a file, and what a look at it says about what happened since. No lock, no thread, no clock but
//! the one passed in.

use std::io;
use std::time::Duration;

use crate::beneath::FileLooks;
use crate::digests::{Digested, SETTLED_COARSE, Stamps, nanos, now};
use crate::sys::fs::{File, Metadata, MetadataExt};
use crate::sys::rustix;
use crate::sys::time::{Instant, SystemTime};
use crate::tail::Tail;

/// How long after a file's last change another change still could carry the same time: clock ticks of file systems last
/// up to 10 ms, where they do not count seconds.
const TICK_MAX: Duration = Duration::from_millis(12);

/// Whether a time, in nanoseconds since 1970, does not come again. One of whole seconds may be that of a clock which counts no more than those.
fn is_past(at: i64, now: i64) -> bool {
    let tick = if at % 1_000_000_000 == 0 { SETTLED_COARSE } else { TICK_MAX };
    let age = now.checked_sub(at).and_then(|age| u64::try_from(age).ok());
    age.is_some_and(|age| Duration::from_nanos(age) > tick)
}

/// How long a file may look changed without having grown before that is believed. A write sets the time first, then copies,
/// then sets the length: between, an append looks just like a change in place.
pub(super) const SUSPICION: Duration = Duration::from_millis(5);

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
    /// In nanoseconds since 1970.
    pub(super) modified: i64,
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
        Self::at(now(), id, meta.len(), nanos(meta.mtime(), meta.mtime_nsec()))
    }

    /// What was looked at at this time, in nanoseconds since 1970.
    pub(super) fn of_looks(looks: &FileLooks, now: i64) -> Self {
        let FileLooks { stamps, born } = looks;
        Self::at(now, Identity { dev: stamps.dev, ino: stamps.ino, born: *born }, stamps.size, stamps.mtime)
    }

    fn at(now: i64, id: Identity, len: u64, modified: i64) -> Self {
        let unique = id.born.is_some_and(|born| is_past(born, now));
        Self { id, len, modified, settled: is_past(modified, now), unique }
    }

    pub(super) fn id(&self) -> Identity {
        self.id
    }
}

/// What is known of the last bytes of what was announced.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Nothing: any change is a replace.
    Unknown,
    /// Nothing yet, of a file that looks as the leader found it: its digests tell, if there are any.
    Unread,
    Read(Tail),
}

/// How the announced content came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Append,
    Replace,
}

/// A file as it was announced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    seen: Seen,
    pub(super) announced: u64,
    end: End,
    by: By,
    /// When it first looked changed without having grown, and the time it carried then.
    suspected: Option<(Instant, i64)>,
    /// A change was seen that is yet to be announced: whatever the file does meanwhile, it is replaced.
    pub(super) must_replace: bool,
    /// Not replaced again before, so that a big file that changes all the time leaves room for others.
    pub(super) replace_after: Instant,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Unchanged,
    /// It grew, and what was announced is still there.
    Grown,
    /// It has no content any more.
    Emptied,
    /// Its content is another one; why.
    Changed(&'static str),
    /// It may have changed: look again then.
    LookAgain(Instant),
}

impl Known {
    /// `seen` must come from before the content was read for the announcement: a change after that shows later. Without
    /// `tail` any change is a replace.
    pub(super) fn new(seen: Seen, announced: u64, tail: Option<Tail>, by: By, replace_after: Instant) -> Self {
        let end = tail.map_or(End::Unknown, End::Read);
        Self { seen, announced, end, by, suspected: None, must_replace: false, replace_after }
    }

    /// A file that looks as the leader found it. Nothing of it was read.
    pub(super) fn unread(seen: Seen, now: Instant) -> Self {
        let end = if seen.len == 0 { End::Read(Tail::empty()) } else { End::Unread };
        Self { end, ..Self::new(seen, seen.len, None, By::Append, now) }
    }

    /// A file that was announced and cannot be found.
    pub(super) fn lost(announced: u64) -> Self {
        let id = Identity { dev: 0, ino: 0, born: None };
        let seen = Seen { id, len: announced, modified: 0, settled: false, unique: false };
        Self::new(seen, announced, None, By::Append, Instant::now())
    }

    /// Reads what the file ended with, if that was not done, and if these digests of what it held show that it still does. To be called
    /// before it is judged by its end; it is to have its announced length still.
    ///
    /// So no other content is ever taken for what it was: what has changed by now does not have these digests.
    pub(super) fn read_end(&mut self, file: &File, held: impl FnOnce() -> Option<Digested>) -> io::Result<()> {
        if !matches!(self.end, End::Unread) {
            return Ok(());
        }
        let is_of_all = |held: &Digested| held.bytes == self.announced && self.looked(&held.stamps);
        let read = held().filter(is_of_all).map(|held| Tail::verified(file, &held)).transpose()?;
        self.end = read.flatten().map_or(End::Unknown, End::Read);
        Ok(())
    }

    /// Whether it looked like this when it was announced.
    fn looked(&self, stamps: &Stamps) -> bool {
        let id = self.seen.id;
        (id.dev, id.ino, self.announced, self.seen.modified) == (stamps.dev, stamps.ino, stamps.size, stamps.mtime)
    }

    pub(super) fn id(&self) -> Identity {
        self.seen.id
    }

    /// Whether no other file can ever have its identity.
    pub(super) fn is_unique(&self) -> bool {
        self.seen.unique
    }

    /// Whether `seen` is this very file, and not a later one with its inode. Where that cannot be told from its times, the
    /// tail must cover all that was announced, and that something: an empty file looks like any other.
    pub(super) fn is_surely(&self, seen: &Seen) -> bool {
        // Which it may not if it grew between our look and the leader's.
        let is_covered = self.announced > 0 && matches!(&self.end, End::Read(tail) if tail.covers(self.announced));
        self.seen.id == seen.id && (self.seen.unique || is_covered)
    }

    /// Whether `seen` shows for sure that nothing happened. Not once a change was seen: a time can be set back.
    pub(super) fn is_unchanged(&self, seen: &Seen) -> bool {
        !self.must_replace && self.suspected.is_none() && self.seen.settled && self.looks_unchanged(seen)
    }

    fn looks_unchanged(&self, seen: &Seen) -> bool {
        self.seen.id == seen.id && self.announced == seen.len && self.seen.modified == seen.modified
    }

    /// Compares with a look at the open file; `at_once` leaves no time to look again.
    pub(super) fn judge(&mut self, seen: &Seen, file: &File, now: Instant, at_once: bool) -> io::Result<Verdict> {
        if self.seen.id != seen.id {
            return Ok(Verdict::Changed("another file has its name"));
        }
        if seen.len < self.announced {
            return Ok(if seen.len == 0 { Verdict::Emptied } else { Verdict::Changed("shorter") });
        }
        if self.must_replace {
            return Ok(Verdict::Changed("a change that was seen before is yet to be announced"));
        }
        if seen.len > self.announced {
            // One write that was under way when we looked has the time that we saw; after a change in place, growth has its own.
            if self.suspected.is_some_and(|(_, modified)| modified != seen.modified) {
                return Ok(Verdict::Changed("changed without growing, then grew"));
            }
            let kept = self.tail_is_there(file)?;
            return Ok(if kept { Verdict::Grown } else { Verdict::Changed("changed before its old end") });
        }
        self.judge_same_length(seen, file, now, at_once)
    }

    /// Whether what was announced still ends as it did.
    pub(super) fn tail_is_there(&self, file: &File) -> io::Result<bool> {
        match &self.end {
            End::Read(tail) => tail.still_there(file),
            End::Unknown | End::Unread => Ok(false),
        }
    }

    fn judge_same_length(&mut self, seen: &Seen, file: &File, now: Instant, at_once: bool) -> io::Result<Verdict> {
        let same_time = self.suspected.is_none() && self.seen.modified == seen.modified;
        if same_time && self.seen.settled {
            return Ok(Verdict::Unchanged);
        }
        if !self.tail_is_there(file)? {
            return Ok(Verdict::Changed("changed near its end"));
        }
        let all_covered = matches!(&self.end, End::Read(tail) if tail.covers(seen.len));
        // In one clock tick with an append, a change in place is not told from that append's own event.
        if all_covered || same_time && self.by == By::Append {
            self.seen = *seen;
            self.suspected = None;
            return Ok(Verdict::Unchanged);
        }
        if same_time {
            return Ok(Verdict::Changed("perhaps changed in the clock tick of its last replacement"));
        }
        if self.suspected.is_none() && grows_at_once(file, seen)? {
            return Ok(Verdict::LookAgain(now));
        }
        let (suspected, _) = *self.suspected.get_or_insert((now, seen.modified));
        if at_once || now.saturating_duration_since(suspected) >= SUSPICION {
            return Ok(Verdict::Changed("changed without growing"));
        }
        Ok(Verdict::LookAgain(suspected + SUSPICION))
    }
}

/// Whether a file that looks changed without having grown is being appended to: looks until a write that was under way has ended.
fn grows_at_once(file: &File, seen: &Seen) -> io::Result<bool> {
    const LOOKS: u32 = 30;
    for look in 0..=LOOKS {
        if look == LOOKS {
            // Most file systems answer this once no write is under way any more.
            let _ = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(0));
        }
        if file.metadata()?.len() != seen.len {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_clock_that_counts_seconds_another_file_may_be_born_at_the_same_time_for_longer() {
        const SECOND: i64 = 1_000_000_000;
        let seen = |born: i64, now: i64| {
            let stamps = Stamps { dev: 1, ino: 2, size: 3, mtime: born, ctime: born };
            let seen = Seen::of_looks(&FileLooks { stamps, born: Some(born) }, now);
            (seen.settled, seen.unique)
        };
        let born = 1_700_000_000 * SECOND;
        assert_eq!(seen(born, born + SECOND), (false, false));
        assert_eq!(seen(born, born + 6 * SECOND), (true, true));
        assert_eq!(seen(born + 1, born + 13_000_000), (true, true));
        assert_eq!(seen(born + 1, born + 12_000_000), (false, false));
        assert_eq!(seen(born + 1, born), (false, false), "later than now");
    }

    #[test]
    fn where_births_say_nothing_a_file_is_not_known_by_an_end_that_covers_less_or_nothing() {
        let id = Identity { dev: 1, ino: 2, born: Some(0) };
        let seen = Seen { id, len: 0, modified: 0, settled: false, unique: false };
        let known = |announced| Known::new(seen, announced, Some(Tail::empty()), By::Replace, Instant::now());
        assert!(!known(0).is_surely(&seen) && !known(102).is_surely(&seen));
    }
}
