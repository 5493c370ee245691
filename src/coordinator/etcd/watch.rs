//! Watching keys: their state, read anew whenever something may have changed.
//!
//! What a watch of etcd says is used only as a hint to read. So a lost connection, a restart of etcd, a compaction, a torn or
//! overlong line all come to the same: read, then watch from the revision after the one that was read. A stream that says
//! nothing for some seconds is treated alike, for its member may be cut off. Runs on its caller's thread.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::client::{CallError, Client};
use super::http::Lines;
use super::wire::{Keys, RangeAnswer, Refusal, WatchLine};
use crate::stop::Stop;

/// After failures, one after another.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

pub(super) struct Watch {
    client: Arc<Client>,
    keys: Keys,
    stop: Stop,
    /// The revision after the one that was read last; `None` before anything was.
    next_revision: Option<i64>,
    stream: Option<Lines>,
    pause: Duration,
}

impl Watch {
    pub(super) fn new(client: Arc<Client>, keys: Keys, stop: Stop) -> Self {
        Self { client, keys, stop, next_revision: None, stream: None, pause: PAUSE_MIN }
    }

    /// The state of the keys: at first as it is, then whenever it may have changed, and now and then besides. Blocks until
    /// then, or until the stop is set (an error of that kind).
    ///
    /// After an error it can be called again, and reads at once.
    pub(super) fn next(&mut self) -> Result<RangeAnswer, CallError> {
        if let Some(revision) = self.next_revision.take() {
            self.wait_for_change(revision);
        }
        if self.stop.is_set() {
            return Err(CallError::stopped());
        }
        let read = self.client.call("kv/range", &self.keys.range(), self.client.limit(&self.stop));
        let answer: RangeAnswer = read.inspect_err(|_| self.wait_a_little())?;
        self.next_revision = Some(answer.header.revision.saturating_add(1));
        Ok(answer)
    }

    fn wait_for_change(&mut self, revision: i64) {
        if self.stream.is_none() {
            match self.client.open("watch", &self.keys.watch(revision), &self.stop) {
                Ok(stream) => self.stream = Some(stream),
                Err(cause) => return self.failed(&cause),
            }
        }
        let Some(stream) = &mut self.stream else { return };
        match until_change(stream) {
            Ok(()) => self.pause = PAUSE_MIN,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => self.stream = None,
            Err(error) => self.failed(&error.to_string()),
        }
    }

    fn failed(&mut self, cause: &str) {
        self.stream = None;
        if !self.stop.is_set() {
            log::debug!("watch of etcd ended: {cause}; reading and watching anew");
        }
        self.wait_a_little();
    }

    /// So that what fails at once does not fail thousands of times a second.
    fn wait_a_little(&mut self) {
        let _ = self.stop.wait(self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

fn until_change(stream: &mut Lines) -> io::Result<()> {
    while !tells_a_change(&stream.next()?)? {}
    Ok(())
}

/// An error ends the watch.
pub(super) fn tells_a_change(line: &[u8]) -> io::Result<bool> {
    if let Some(refusal) = Refusal::in_answer(line) {
        return Err(io::Error::other(refusal.message));
    }
    let result = serde_json::from_slice::<WatchLine>(line).map_err(io::Error::other)?.result;
    if result.compact_revision > 0 {
        return Err(io::Error::other(format!("etcd forgot all before revision {}", result.compact_revision)));
    }
    if result.canceled {
        return Err(io::Error::other(format!("etcd cancelled it: {}", result.cancel_reason)));
    }
    Ok(!result.events.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_watch_tell_changes_or_end_it() {
        let tells = |line: &str| tells_a_change(line.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(tells(r#"{"result":{"header":{"revision":"3"},"created":true}}"#), Ok(false));
        assert_eq!(tells(r#"{"result":{"events":[{"kv":{"key":"YQ=="}},{"type":"DELETE"}]}}"#), Ok(true));
        let compacted = r#"{"result":{"canceled":true,"compact_revision":"7","cancel_reason":"compacted"}}"#;
        assert!(tells(compacted).unwrap_err().contains("revision 7"));
        assert!(tells(r#"{"result":{"canceled":true,"cancel_reason":"not you"}}"#).unwrap_err().contains("not you"));
        assert_eq!(tells(r#"{"error":{"grpc_code":14,"message":"gone"}}"#), Err("gone".into()));
        assert!(tells("nonsense").is_err());
    }
}
