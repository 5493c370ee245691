//! Files that may differ from what was announced: since when, and when each is compared next. No I/O.
//!
//! A file is compared in *circles*: from wherever it was read last, once around. It is proven when one circle went around since anything was seen
//! to change, which began when the clock of files had gone on, and in which nothing was left to be read by others. So what changes in the
//! midst of a circle costs one more from there, and not two.
//!
//! A file at rest is compared soon after its last change. One that never comes to rest is compared now and then: with a pause that
//! is in proportion to what a circle cost, and twice as long after each that found nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::file::Seen;
use crate::digests::DIRTY_MAX;
use crate::sys::hash::HashMap;
use crate::sys::time::Instant;
use crate::types::RelPath;

/// How long after its last change that was seen a file is taken to be at rest. More than a tick of most clocks of files.
const REST: Duration = Duration::from_millis(15);

/// Between two circles of a file that does not come to rest: so long at least, so many times as long as one took, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE: u32 = 9;
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Files that are compared once more at most: where so many change within so short a time, few are mapped.
const AGAIN_MAX: usize = 50_000;

/// Between the first two comparisons of a file that was changed so; twice as long each time.
const UNHEARD_PAUSE: Duration = Duration::from_secs(5);

/// A file that differs all the time is announced at this rate at most.
const BYTES_PER_MS: u64 = 100_000;

/// A file under suspicion.
#[derive(Debug)]
pub(super) struct Suspect {
    /// When it was first seen to have changed since it was proven.
    since: Instant,
    due: Instant,
    /// When a change of it was seen last.
    changed: Instant,
    /// Not compared before, unless it has come to rest.
    not_before: Instant,
    /// Circles in a row that found nothing.
    quiet: u32,
    /// How it looked, and its generation, when nothing had been seen to change since.
    pub(super) looks: Option<(Seen, u64)>,
    /// Where it is read next.
    pub(super) next: u64,
    /// How much of it has been read since that.
    pub(super) read: u64,
    /// Somebody else was reading it meanwhile.
    pub(super) is_disturbed: bool,
    /// Of this circle: how much was read, how long that took, how much was announced.
    circle: u64,
    spent: Duration,
    announced: u64,
    /// Where it differed last.
    pub(super) hot: Option<u64>,
    /// No event said that it had changed; how often it was compared since.
    unheard: Option<u32>,
    /// It could not be read when it was to be compared.
    is_unreadable: bool,
}

/// All of them.
#[derive(Default)]
pub(super) struct Suspects {
    files: HashMap<RelPath, Suspect>,
    due: BTreeSet<(Instant, RelPath)>,
    since: BTreeSet<(Instant, RelPath)>,
    /// Files that much was just announced of, and until when no more is.
    held: BTreeMap<RelPath, Instant>,
    /// Files that were proven so shortly after their last change that a mapped page may be changed without a trace, and when they are compared once more.
    again: HashMap<RelPath, Instant>,
    /// The same in the order in which they are due; what `again` does not say is not.
    again_due: BTreeSet<(Instant, RelPath)>,
    hurries: bool,
}

impl Suspects {
    /// So many bytes of a file were announced, which leave room for others before it is announced again.
    pub(super) fn hold(&mut self, path: &RelPath, bytes: u64, now: Instant) {
        let until = now + Duration::from_millis(bytes / BYTES_PER_MS);
        if until > now && !self.hurries {
            self.held.retain(|_, until| *until > now);
            self.held.insert(path.clone(), until);
        }
    }

    /// Until when it is held back, if it is.
    pub(super) fn held(&self, path: &RelPath, now: Instant) -> Option<Instant> {
        self.held.get(path).copied().filter(|until| *until > now)
    }

    /// A change of a file was seen.
    pub(super) fn has_changed(&mut self, path: &RelPath, now: Instant) {
        if !self.files.contains_key(path) {
            let suspect = Suspect {
                since: now,
                due: now,
                changed: now,
                not_before: now + PAUSE_MIN,
                quiet: 0,
                looks: None,
                next: 0,
                read: 0,
                is_disturbed: false,
                circle: 0,
                spent: Duration::ZERO,
                announced: 0,
                hot: None,
                unheard: None,
                is_unreadable: false,
            };
            self.since.insert((now, path.clone()));
            self.files.insert(path.clone(), suspect);
        }
        let suspect = self.files.get_mut(path).expect("just added");
        suspect.changed = now;
        // In the midst of a circle it goes on; and whose turn it is keeps it.
        let due = if suspect.circle > 0 {
            suspect.due
        } else if suspect.not_before <= now {
            suspect.due.min(now)
        } else {
            suspect.not_before.min(now + REST)
        };
        self.plan(path, due);
    }

    /// It has changed, and no event said so.
    pub(super) fn has_changed_unheard(&mut self, path: &RelPath, now: Instant) {
        self.has_changed(path, now);
        if let Some(suspect) = self.files.get_mut(path) {
            suspect.unheard = Some(0);
        }
    }

    /// Whether a file that would be proven may have changed without a trace, as it changed so short a time ago and nobody was told. It is compared again then.
    pub(super) fn may_change_unheard(&mut self, path: &RelPath, age: Duration, now: Instant) -> bool {
        let Some(Suspect { unheard: Some(times), .. }) = self.files.get_mut(path) else { return false };
        if self.hurries || age >= DIRTY_MAX {
            return false;
        }
        let due = now + (UNHEARD_PAUSE * (1 << (*times).min(8))).min(DIRTY_MAX - age + REST);
        *times += 1;
        self.plan(path, due);
        true
    }

    /// A file is proven that changed so long ago, as far as that shows. Returns whether nothing can change in it that does not show; if not, it is compared once more when that is so.
    pub(super) fn is_proven(&mut self, path: &RelPath, age: Duration, now: Instant) -> bool {
        self.remove(path);
        let is_clean = age >= DIRTY_MAX;
        if !is_clean && !self.hurries && self.again.len() < AGAIN_MAX {
            self.again_at(path, now + (DIRTY_MAX - age) + REST);
        }
        is_clean
    }

    fn again_at(&mut self, path: &RelPath, due: Instant) {
        if let Some(before) = self.again.insert(path.clone(), due) {
            self.again_due.remove(&(before, path.clone()));
        }
        self.again_due.insert((due, path.clone()));
    }

    /// Files are compared once more whose time has come.
    pub(super) fn compare_those_again(&mut self, now: Instant) {
        while let Some((_, path)) = self.again_due.first().filter(|(due, _)| *due <= now).cloned() {
            self.not_again(&path);
            self.has_changed(&path, now);
        }
    }

    fn not_again(&mut self, path: &RelPath) -> Option<Instant> {
        let due = self.again.remove(path)?;
        self.again_due.remove(&(due, path.clone()));
        Some(due)
    }

    fn plan(&mut self, path: &RelPath, due: Instant) {
        let due = self.held.get(path).map_or(due, |until| due.max(*until));
        if let Some(suspect) = self.files.get_mut(path) {
            let was = std::mem::replace(&mut suspect.due, due);
            self.due.remove(&(was, path.clone()));
            self.due.insert((due, path.clone()));
        }
    }

    pub(super) fn get(&self, path: &RelPath) -> Option<&Suspect> {
        self.files.get(path)
    }

    pub(super) fn get_mut(&mut self, path: &RelPath) -> Option<&mut Suspect> {
        self.files.get_mut(path)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// When the next is to be compared.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// When files are to be compared once more.
    pub(super) fn next_again(&self) -> Option<Instant> {
        self.again_due.first().map(|(due, _)| *due)
    }

    /// The same of those that could be read.
    pub(super) fn next_due_readable(&self) -> Option<Instant> {
        let is_readable = |path: &RelPath| self.files.get(path).is_some_and(|suspect| !suspect.is_unreadable);
        self.due.iter().find(|(_, path)| is_readable(path)).map(|(due, _)| *due)
    }

    /// The one that is to be compared next, if that is now.
    pub(super) fn first_due(&self, now: Instant) -> Option<RelPath> {
        self.due.first().filter(|(due, _)| *due <= now).map(|(_, path)| path.clone())
    }

    /// Since when the one has not been proven that has not for longest.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.since.first().map(|(since, _)| *since)
    }

    /// Nothing is held back, nor put off that has come to rest.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.held.clear();
        self.hurries = true;
        let planned = self.files.iter_mut().map(|(path, suspect)| {
            let settles = suspect.looks.map_or(REST, |(seen, _)| seen.settles_after());
            suspect.due = suspect.due.min(now.max(suspect.changed + settles));
            (suspect.due, path.clone())
        });
        // All at once: there may be very many.
        self.due = planned.collect();
    }

    /// Whether one of them was seen to change after that.
    pub(super) fn has_changed_since(&self, since: Instant) -> bool {
        self.files.values().any(|suspect| suspect.changed > since)
    }

    /// It is proven, or no more.
    pub(super) fn remove(&mut self, path: &RelPath) -> Option<Suspect> {
        let suspect = self.files.remove(path)?;
        self.due.remove(&(suspect.due, path.clone()));
        self.since.remove(&(suspect.since, path.clone()));
        Some(suspect)
    }

    pub(super) fn rename(&mut self, from: &RelPath, to: &RelPath) {
        self.remove(to);
        if let Some(due) = self.not_again(from) {
            self.again_at(to, due);
        }
        if let Some(suspect) = self.remove(from) {
            self.due.insert((suspect.due, to.clone()));
            self.since.insert((suspect.since, to.clone()));
            self.files.insert(to.clone(), suspect);
        }
    }

    /// It could not be compared: that is tried again then.
    pub(super) fn put_off(&mut self, path: &RelPath, until: Instant) {
        self.plan(path, until);
    }

    /// It cannot be read: that is tried again then.
    pub(super) fn is_unreadable(&mut self, path: &RelPath, until: Instant) {
        if let Some(suspect) = self.files.get_mut(path) {
            suspect.is_unreadable = true;
        }
        self.plan(path, until);
    }

    /// Notes a part of a circle of a file of `len` bytes.
    pub(super) fn has_read(&mut self, path: &RelPath, bytes: u64, announced: u64, spent: Duration) {
        if let Some(suspect) = self.files.get_mut(path) {
            suspect.is_unreadable = false;
            suspect.circle += bytes;
            suspect.read += bytes;
            suspect.announced += announced;
            suspect.spent += spent;
        }
    }

    /// All of a file is to be compared once more.
    pub(super) fn begins_anew(&mut self, path: &RelPath) {
        if let Some(suspect) = self.files.get_mut(path) {
            (suspect.read, suspect.circle, suspect.spent, suspect.announced) = (0, 0, Duration::ZERO, 0);
        }
    }

    /// What comes after a part of a circle of a file that is not proven yet: the next part, after those of others; or a pause.
    pub(super) fn goes_on(&mut self, path: &RelPath, len: u64, now: Instant) {
        let Some(suspect) = self.files.get_mut(path) else { return };
        if suspect.circle < len && suspect.read < len {
            return self.plan(path, now);
        }
        suspect.quiet = if suspect.announced == 0 { (suspect.quiet + 1).min(16) } else { 0 };
        let pause = (suspect.spent * PAUSE).max(PAUSE_MIN) * (1 << suspect.quiet.saturating_sub(1));
        suspect.not_before = now + pause.min(PAUSE_MAX);
        (suspect.circle, suspect.spent, suspect.announced) = (0, Duration::ZERO, 0);
        let settles = suspect.looks.map_or(REST, |(seen, _)| seen.settles_after());
        let rests = suspect.changed + settles.max(REST);
        // Not at once: what was in the way of a proof is there still. A reader will be done; a time of change that is yet to come may be there for long.
        let due = if rests > now {
            rests.min(suspect.not_before)
        } else if suspect.is_disturbed || self.hurries || suspect.quiet <= 1 {
            now + REST
        } else {
            suspect.not_before.max(now + REST)
        };
        self.plan(path, due);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn path(name: &str) -> RelPath {
        RelPath::new(name).unwrap()
    }

    #[test]
    fn a_file_that_cannot_be_proven_is_compared_less_and_less_often() {
        let (mut suspects, a, mut now) = (Suspects::default(), path("a"), Instant::now());
        suspects.has_changed(&a, now);
        let (mut circles, until) = (0, now + Duration::from_secs(60));
        loop {
            now = suspects.next_due().unwrap().max(now);
            if now >= until {
                break;
            }
            suspects.has_read(&a, 1000, 0, MS);
            suspects.goes_on(&a, 1000, now);
            suspects.begins_anew(&a);
            circles += 1;
        }
        assert!(circles < 20, "{circles} circles in a minute");
    }

    #[test]
    fn a_small_file_that_changes_all_the_time_has_its_turn_beside_a_large_one() {
        let (mut suspects, big, small) = (Suspects::default(), path("big"), path("small"));
        let (mut now, mut turns) = (Instant::now(), 0);
        suspects.has_changed(&big, now);
        for _ in 0..5_000 {
            now += 4 * MS;
            suspects.has_changed(&small, now);
            let Some(next) = suspects.first_due(now) else { continue };
            let len = if next == big { 10_000 } else { 1 };
            turns += u32::from(next == small);
            suspects.has_read(&next, 1, 0, MS);
            suspects.goes_on(&next, len, now);
            if next == small {
                suspects.begins_anew(&small);
            }
        }
        assert!(turns > 4, "{turns} turns");
    }

    #[test]
    fn at_the_end_what_has_come_to_rest_is_due_at_once() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        for name in ["a", "b", "c"] {
            suspects.has_changed(&path(name), now);
            suspects.hold(&path(name), 100_000_000, now);
            suspects.goes_on(&path(name), 0, now);
        }
        let end = now + Duration::from_millis(500);
        assert!(suspects.first_due(end).is_none(), "it is held");
        suspects.hurry(end);
        for _ in 0..3 {
            let due = suspects.first_due(end).unwrap();
            suspects.remove(&due);
        }
        assert_eq!(suspects.next_due(), None);
    }

    #[test]
    fn what_was_proven_while_a_page_may_be_dirty_is_compared_once_more_under_whatever_name() {
        let (mut suspects, a, b, now) = (Suspects::default(), path("a"), path("b"), Instant::now());
        suspects.has_changed(&a, now);
        assert!(!suspects.is_proven(&a, 20 * MS, now) && suspects.is_empty());
        suspects.rename(&a, &b);
        suspects.compare_those_again(now + DIRTY_MAX / 2);
        assert!(suspects.is_empty());
        let due = suspects.next_again().unwrap();
        assert!(due >= now + DIRTY_MAX - 20 * MS);
        suspects.compare_those_again(due);
        assert!(suspects.get(&b).is_some() && suspects.next_again().is_none());
        assert!(suspects.is_proven(&b, DIRTY_MAX, due) && suspects.next_again().is_none());
    }
}
