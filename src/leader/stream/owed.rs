//! Files that followers of 1.0.0 get whole because they were written to in place, for which that protocol has no words.
//!
//! Each write would cost them all of the file. So writes are gathered, for a moment and then for as long as the files take: until all of it is announced
//! to those followers, at its place in the order, what they have of it does not count ([`Instead::Later`]). To who knows the extension that announcement is
//! a delete of a name that is no file.
//!
//! All files are due at one time, and announced one right after the other: what a follower has counts only while it lacks nothing of any of them, and of several files that are written to
//! all the time one would nearly always be missing.

use std::time::Duration;

use super::{Ordered, Stream};
use crate::leader::batch::{Batch, Instead};
use crate::protocol::{ActionKind, PROBE_NAME, encode_action_header};
use crate::sys::hash::HashSet;
use crate::sys::time::Instant;
use crate::types::RelPath;

/// Writes that come so soon after the first are one.
const GATHER: Duration = Duration::from_millis(20);

/// Files go again not before so long after, and at this rate at most, all of them together.
const AGAIN_MIN: Duration = Duration::from_millis(200);
const BYTES_PER_MS: u64 = 100_000;

/// So many are announced at once, which takes a millisecond or so.
const AT_ONCE: usize = 512;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Owed {
    files: HashSet<RelPath>,
    /// When they are announced, if there are any.
    due: Option<Instant>,
    /// Not before that.
    again: Option<Instant>,
}

impl Ordered {
    /// A file was written to in place.
    pub(super) fn owe(&mut self, path: &RelPath) {
        if self.queues_of_v1 == 0 {
            return;
        }
        let owed = &mut self.owed;
        if !owed.files.contains(path) {
            owed.files.insert(path.clone());
        }
        if owed.due.is_none() {
            let due = Instant::now() + GATHER;
            owed.due = Some(owed.again.map_or(due, |again| due.max(again)));
        }
    }

    /// Announces files, if they are due.
    fn settle_due(&mut self) {
        if self.owed.due.is_some_and(|due| due <= Instant::now()) {
            self.settle_owed(AT_ONCE);
        }
    }

    /// Announces so many.
    pub(super) fn settle_owed(&mut self, most: usize) {
        let files: Vec<RelPath> = self.owed.files.iter().take(most).cloned().collect();
        let mut bytes = 0;
        for path in files {
            self.owed.files.remove(&path);
            let version = self.index.get(path.as_str());
            bytes += version.len;
            let steps = if version.len > 0 { self.replace_steps(&path, version) } else { Vec::new() };
            self.encode_now(Instead::Now(path, steps));
        }
        let now = Instant::now();
        self.owed.due = (!self.owed.files.is_empty()).then_some(now);
        self.owed.again = Some(now + AGAIN_MIN.max(Duration::from_millis(bytes / BYTES_PER_MS)));
    }

    fn encode_now(&mut self, instead: Instead) {
        let mut raw = Vec::new();
        let nothing = RelPath::new(PROBE_NAME).expect("a name");
        encode_action_header(&mut raw, &nothing, ActionKind::Delete);
        if self.queues > 0 {
            self.seal();
        }
        self.position += raw.len() as u64;
        if self.queues > 0 {
            self.push_sealed_instead(Batch::actions(self.position, raw), Some(instead));
        }
    }
}

impl Stream {
    /// Announces what is due to followers of 1.0.0, and says when that is to be looked at again.
    pub(super) fn announce_owed(&self) -> Option<Instant> {
        let mut ordered = self.ordered.lock();
        ordered.settle_due();
        ordered.owed.due
    }

    /// A follower of 1.0.0 was attached that has files as they were before they were written to in place.
    pub(in crate::leader) fn owes(&self, paths: &[RelPath]) {
        for some in paths.chunks(AT_ONCE) {
            let mut ordered = self.ordered.lock();
            some.iter().for_each(|path| ordered.owe(path));
        }
        self.wake_leader();
    }
}
