//! Followers that are not of this leader's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::sync::Mutex;
use crate::sys::time::Instant;
use crate::types::{DataSetId, NodeId};

/// Followers that have a copy of another data set. They come again and again until a person sees to it.
#[derive(Default)]
pub(in crate::leader) struct Strangers {
    /// Their connections.
    count: AtomicU64,
    /// Of whom it was said last, and when.
    said: Mutex<Option<(NodeId, DataSetId, Instant)>>,
}

/// Between two words of the same one.
const SAY_STRANGER_EVERY: Duration = Duration::from_secs(60);

impl Strangers {
    pub(in crate::leader) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Counts one; returns whether that need not be said again.
    pub(in crate::leader) fn note(&self, id: NodeId, theirs: DataSetId) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut said = self.said.lock();
        let known = said.is_some_and(|(known, data_set, at)| {
            (known, data_set) == (id, theirs) && at.elapsed() < SAY_STRANGER_EVERY
        });
        if !known {
            *said = Some((id, theirs, Instant::now()));
        }
        known
    }
}
