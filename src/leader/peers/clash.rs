//! Two followers with one id: each connection would take the other's place, and each time the in-sync set would be recorded.
//!
//! A follower that lost its connection and comes back takes the place of what it left here at once. When that happens again and again
//! to connections that work, there are two, and the one that is here stays for a while: the newer one waits, longer each time, and
//! both are told. It waits in its connection's own thread, one for each id, before it is registered.
//!
//! One lock, a leaf.

use std::time::Duration;

use crate::sys::hash::HashMap;
use crate::sys::sync::Mutex;
use crate::sys::time::Instant;
use crate::types::NodeId;

/// Replacements within such a time belong together.
const WINDOW: Duration = Duration::from_secs(120);
/// So many take their place at once: a link that is cut twice may be bad luck.
const AT_ONCE: u32 = 2;
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Between two words about one id.
const SAY_EVERY: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(in crate::leader) struct Clashes(Mutex<HashMap<NodeId, Clash>>);

struct Clash {
    replaced: u32,
    last: Instant,
    said: Option<Instant>,
    /// Which connection waits: the latest one.
    ticket: u64,
}

impl Clash {
    fn is_one(&self, now: Instant) -> bool {
        self.replaced >= AT_ONCE && now < self.last + WINDOW
    }

    /// How long the next one has to wait.
    fn wait(&self, now: Instant) -> Duration {
        if !self.is_one(now) {
            return Duration::ZERO;
        }
        WAIT_MIN.saturating_mul(1 << (self.replaced - AT_ONCE).min(16)).min(WAIT_MAX)
    }
}

impl Clashes {
    /// A connection of this follower that worked was replaced.
    pub(in crate::leader) fn replaced(&self, id: NodeId, now: Instant) {
        let mut clashes = self.0.lock();
        clashes.retain(|_, clash| now < clash.last + WINDOW);
        let clash = clashes.entry(id).or_insert(Clash { replaced: 0, last: now, said: None, ticket: 0 });
        (clash.replaced, clash.last) = (clash.replaced.saturating_add(1), now);
    }

    /// Whether two followers seem to have this id.
    pub(in crate::leader) fn is_one(&self, id: NodeId) -> bool {
        self.0.lock().get(&id).is_some_and(|clash| clash.is_one(Instant::now()))
    }

    /// How long a new connection has to wait, its ticket, and whether that is to be said.
    pub(in crate::leader) fn begin(&self, id: NodeId, now: Instant) -> Option<(Duration, u64, bool)> {
        let mut clashes = self.0.lock();
        let clash = clashes.get_mut(&id)?;
        let wait = clash.wait(now);
        if wait.is_zero() {
            return None;
        }
        let is_due = clash.said.is_none_or(|said| now >= said + SAY_EVERY);
        if is_due {
            clash.said = Some(now);
        }
        clash.ticket += 1;
        Some((wait, clash.ticket, is_due))
    }

    pub(in crate::leader) fn is_latest(&self, id: NodeId, ticket: u64) -> bool {
        self.0.lock().get(&id).is_none_or(|clash| clash.ticket == ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_replaced_again_and_again_keeps_its_place_for_longer_each_time() {
        let (clashes, id) = (Clashes::default(), NodeId::new(1).unwrap());
        let began = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..10 {
            waits.push(clashes.begin(id, began).map_or(0, |(wait, ..)| wait.as_secs()));
            clashes.replaced(id, began);
        }
        assert_eq!(waits, [0, 0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(clashes.is_one(id) && !clashes.is_one(NodeId::new(2).unwrap()));
        // Bad luck is forgotten, and so are ids that nobody has any more.
        let later = began + WINDOW;
        assert!(clashes.begin(id, later).is_none());
        clashes.replaced(NodeId::new(2).unwrap(), later);
        assert_eq!(clashes.0.lock().len(), 1);
    }

    #[test]
    fn a_clash_is_said_now_and_then_and_only_the_latest_waits() {
        let (clashes, id) = (Clashes::default(), NodeId::new(1).unwrap());
        let began = Instant::now();
        (0..AT_ONCE).for_each(|_| clashes.replaced(id, began));
        let (_, first, is_due) = clashes.begin(id, began).unwrap();
        assert!(is_due && clashes.is_latest(id, first));
        let (_, second, is_due) = clashes.begin(id, began).unwrap();
        assert!(!is_due && !clashes.is_latest(id, first) && clashes.is_latest(id, second));
        assert!(clashes.begin(id, began + SAY_EVERY).unwrap().2);
    }
}
