//! What a host calls.

use std::time::Duration;

use crate::config::{CommitLevel, Durability};
use crate::leader::Leader;
use crate::leader::commit::{CommitOutcome, InSyncStatus, Wanted};
use crate::types::StreamPosition;

impl Leader {
    /// Waits until everything up to `position` is committed at [`commit_level`](crate::LeaderConfig::commit_level), and says what came of it. Blocks
    /// for `timeout` at most, and not at all where the outcome is clear at once. Any number of threads may wait at once: what they
    /// wait for takes one request to the followers and one sync of the disk, for as many as came meanwhile.
    pub fn commit(&self, position: StreamPosition, timeout: Duration) -> CommitOutcome {
        self.commit_at(position, self.core.config.commit_level, timeout)
    }

    /// The same at another level.
    pub fn commit_at(&self, position: StreamPosition, level: CommitLevel, timeout: Duration) -> CommitOutcome {
        let wanted = self.wanted(position, level);
        self.core.commits.wait(wanted, timeout)
    }

    /// The same for who does not want to wait: calls `done` with the outcome, within `timeout`, on a thread of the leader's that
    /// serves all such calls one after another: it must not block. Never blocks itself.
    pub fn commit_then(
        &self,
        position: StreamPosition,
        level: CommitLevel,
        timeout: Duration,
        done: impl FnOnce(CommitOutcome) + Send + 'static,
    ) {
        let wanted = self.wanted(position, level);
        self.core.commits.call(wanted, timeout, Box::new(done));
    }

    fn wanted(&self, position: StreamPosition, level: CommitLevel) -> Wanted {
        if level.durability != Durability::Durable {
            // The thread that asks for durability pushes for all.
            self.core.stream.push_up_to(position);
        }
        Wanted { position, level, end: self.position() }
    }

    /// Up to where everything is committed at this level; 0 once the election is lost. Never waits for anybody.
    ///
    /// Nothing is asked of followers for it: at [`Durable`](Durability::Durable) it moves only as commits ask.
    #[must_use]
    pub fn committed(&self, level: CommitLevel) -> StreamPosition {
        self.core.commits.committed(level, self.position())
    }

    /// Which followers are in sync. Never waits for anybody.
    #[must_use]
    pub fn in_sync(&self) -> InSyncStatus {
        self.core.commits.status(self.core.stream.end())
    }
}
