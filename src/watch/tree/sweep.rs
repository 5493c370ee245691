//! Looking at all files in turn, for writes that raise no event: through `mmap`, by asynchronous I/O, under another name, by another machine.
//!
//! One of which anything has moved, or that is not there any more, is looked at as if an event had said so, and comes under suspicion. Stores into a mapped page move the time of its file only
//! when that page was clean before; after that they move none until it has been written to the disk. So what has moved without an event is compared again and again
//! until its last change is older than a page ever stays dirty; and any other file that was proven sooner than that, once more then: it may be mapped as well.

use std::time::Duration;

use super::Tree;
use crate::sys::time::Instant;
use crate::types::RelPath;
use crate::watch::announce::Announce;
use crate::watch::file::Seen;

/// All files are looked at within this time, where they are no more than [`AT_ONCE`] each [`PAUSE_MIN`] makes: 300,000.
const EVERY: Duration = Duration::from_secs(25);
/// So many at once, which takes a millisecond or two.
const AT_ONCE: usize = 600;
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// How far it is.
pub(super) struct Sweep {
    /// The last one that was looked at.
    at: Option<RelPath>,
    due: Instant,
}

impl Sweep {
    pub(super) fn begin() -> Self {
        Self { at: None, due: Instant::now() + EVERY }
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }
}

impl<A: Announce> Tree<A> {
    /// Looks at the next files, if they are due. What has moved is marked as wanting a look.
    pub(in crate::watch) fn sweep(&mut self, now: Instant) {
        self.suspects.compare_those_again(now);
        if self.sweep.due > now {
            return;
        }
        self.sweep_some();
        let portions = u32::try_from(self.files.count().div_ceil(AT_ONCE)).unwrap_or(u32::MAX).max(1);
        self.sweep.due = now + (EVERY / portions).max(PAUSE_MIN);
    }

    /// Returns whether that was the last of all.
    pub(in crate::watch) fn sweep_some(&mut self) -> bool {
        let files = self.files.after(self.sweep.at.as_ref(), AT_ONCE);
        for path in &files {
            // It waits for a look, or is compared, as it is.
            if self.dirty.contains(path) || self.later.contains_key(path) || self.suspects.get(path).is_some() {
                continue;
            }
            let Some(known) = self.files.get(path) else { continue };
            let is_as_it_was = match self.dir.metadata(path) {
                Ok(Some(meta)) => meta.is_file() && known.seen.looks_like(&Seen::of(&meta)),
                Ok(None) => false,
                // Whoever looks at it says why.
                Err(_) => false,
            };
            if !is_as_it_was {
                log::debug!("{path} has changed, and no event said so");
                self.suspects.has_changed_unheard(path, Instant::now());
                self.dirty.insert(path.clone());
            }
        }
        let is_last = files.len() < AT_ONCE;
        self.sweep.at = files.into_iter().last().filter(|_| !is_last);
        is_last
    }
}
