//! Files that followers of 1.0.0 get whole because they were written to in place, for which that protocol has no words.
//!
//! Each write would cost them all of the file. So writes are gathered, for a moment and then for as long as the file takes: until all of it is announced
//! to those followers, at its place in the order, what they have of it does not count ([`Instead::Later`]). To who knows the extension that announcement is
//! a delete of a name that is no file.

use std::time::Duration;

use super::{Ordered, Stream};
use crate::leader::batch::{Batch, Instead};
use crate::protocol::{ActionKind, PROBE_NAME, encode_action_header};
use crate::sys::hash::HashMap;
use crate::sys::time::Instant;
use crate::types::RelPath;

/// Writes to a file that come so soon after the first are one.
const GATHER: Duration = Duration::from_millis(20);

/// A file goes again not before so long after, and at this rate at most.
const AGAIN_MIN: Duration = Duration::from_millis(200);
const BYTES_PER_MS: u64 = 100_000;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Owed(HashMap<RelPath, File>);

struct File {
    /// `None`: it went, and nothing was written to it since.
    due: Option<Instant>,
    again: Instant,
}

impl Owed {
    /// When the next one is due.
    fn next(&self) -> Option<Instant> {
        self.0.values().filter_map(|file| file.due).min()
    }
}

impl Ordered {
    /// A file was written to in place.
    pub(super) fn owe(&mut self, path: &RelPath) {
        if self.queues_of_v1 == 0 {
            return;
        }
        let now = Instant::now();
        match self.owed.0.get_mut(path) {
            Some(file) => drop(file.due.get_or_insert((now + GATHER).max(file.again))),
            None => drop(self.owed.0.insert(path.clone(), File { due: Some(now + GATHER), again: now })),
        }
    }

    /// Announces those that are due, or all.
    pub(super) fn settle_owed(&mut self, all: bool) {
        if self.owed.0.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut owed = std::mem::take(&mut self.owed);
        for (path, file) in &mut owed.0 {
            if file.due.take_if(|due| all || *due <= now).is_some() {
                let version = self.index.get(path.as_str());
                let steps = if version.len > 0 { self.replace_steps(path, version) } else { Vec::new() };
                self.encode_now(Instead::Now(path.clone(), steps));
                file.again = now + AGAIN_MIN.max(Duration::from_millis(version.len / BYTES_PER_MS));
            }
        }
        owed.0.retain(|_, file| file.due.is_some() || file.again > now);
        self.owed = owed;
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
        ordered.settle_owed(false);
        ordered.owed.next()
    }
}
