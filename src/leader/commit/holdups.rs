//! Who holds commits up, and for how long: whoever does so for [`in_sync_timeout`](crate::LeaderConfig::in_sync_timeout) leaves the in-sync set for a while.
//!
//! The recorder looks, five times within that time, and only while something waits to be committed on all. It counts its own looks: a leader that was
//! stopped itself finds one of them gone. What counts is the oldest commit that waits: as long as such are settled, however late, nobody falls
//! behind. If all followers hold it up, and there are several, nobody does either: that is the leader's own fault, or its network's.
//!
//! Who fell behind is back once it has what was committed meanwhile, and owes nothing that is half as old. The first time that is at once; who falls behind again and again
//! stays away for twice as long each time, because each way out and back is two writes to the coordinator.

use std::collections::BTreeMap;
use std::time::Duration;

use super::rule::Rule;
use crate::config::{CommitLevel, Quorum};
use crate::sys::time::Instant;
use crate::types::NodeId;

/// How often it is looked within the time allowed.
const LOOKS: u32 = 5;

/// The longest that one stays away who keeps up by now.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// See the module's documentation.
pub(super) struct HoldUps {
    allowed: Duration,
    /// When it is looked again.
    look_at: Instant,
    /// Who holds up which commit, and for how many looks.
    held: BTreeMap<NodeId, (CommitLevel, u64, u32)>,
    falls: BTreeMap<NodeId, Falls>,
}

#[derive(Clone, Copy)]
struct Falls {
    count: u32,
    last: Instant,
}

impl Falls {
    fn away(self, allowed: Duration) -> Duration {
        let again = self.count.saturating_sub(1);
        if again == 0 { Duration::ZERO } else { allowed.saturating_mul(1 << again.min(16)).min(AWAY_MAX) }
    }
}

impl HoldUps {
    pub(super) fn new(allowed: Duration) -> Self {
        Self { allowed, look_at: Instant::now(), held: BTreeMap::new(), falls: BTreeMap::new() }
    }

    /// When it is to be looked next.
    pub(super) fn next_look(&self) -> Instant {
        self.look_at
    }

    /// Looks, if it is time to: `oldest` is the oldest commit that waits at each level. Returns who just fell behind.
    pub(super) fn look(&mut self, rule: &mut Rule, oldest: &[(CommitLevel, u64)], now: Instant) -> Vec<NodeId> {
        if now < self.look_at {
            return Vec::new();
        }
        self.look_at = now + self.allowed / LOOKS;
        let mut held = BTreeMap::new();
        for &(level, position) in oldest.iter().filter(|(level, _)| level.quorum == Quorum::All) {
            let (holding, counted) = rule.holding_up(position, level.durability);
            if holding.len() == counted && counted > 1 {
                continue;
            }
            for id in holding {
                let looks = match self.held.get(&id) {
                    Some(&(before, at, looks)) if (before, at) == (level, position) => looks + 1,
                    _ => 0,
                };
                held.insert(id, (level, position, looks));
            }
        }
        let fallen: Vec<_> = held.iter().filter(|(_, (.., looks))| *looks >= LOOKS).map(|(id, _)| *id).collect();
        held.retain(|_, (.., looks)| *looks < LOOKS);
        self.held = held;
        self.falls.retain(|_, falls| now.duration_since(falls.last) < AWAY_MAX * 2);
        for id in &fallen {
            rule.falls_behind(*id);
            let falls = self.falls.entry(*id).or_insert(Falls { count: 0, last: now });
            *falls = Falls { count: falls.count + 1, last: now };
        }
        fallen
    }

    /// Whether one that fell behind, and has left nothing unacknowledged for longer than `oldest`, is back: it has what was committed without it, and has been away for
    /// long enough.
    pub(super) fn is_back(&self, rule: &Rule, id: NodeId, oldest: Duration, now: Instant) -> bool {
        let away = self.falls.get(&id).is_none_or(|falls| now.duration_since(falls.last) >= falls.away(self.allowed));
        away && oldest < self.allowed / 2 && rule.has_committed(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leader::peers::has::Has;

    const ALLOWED: Duration = Duration::from_millis(500);
    const LEVEL: CommitLevel = CommitLevel::ALL_DURABLE;

    fn id(id: i32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn has(position: u64) -> Has {
        Has { received: position, written: position, durable: position, flushed: true }
    }

    struct Scene {
        rule: Rule,
        holdups: HoldUps,
        now: Instant,
    }

    impl Scene {
        /// With so many followers, which have all up to 10.
        fn new(followers: i32) -> Self {
            let mut rule = Rule::new(id(9), 0, None, [id(9)].into());
            for follower in 1..=followers {
                rule.joins(id(follower), 1, true);
                rule.has(id(follower), 1, has(10));
            }
            rule.local_durable(100);
            Self { rule, holdups: HoldUps::new(ALLOWED), now: Instant::now() }
        }

        /// So many looks while that commit waits.
        fn looks(&mut self, count: u32, position: u64) -> Vec<NodeId> {
            let mut fallen = Vec::new();
            for _ in 0..count {
                self.now += ALLOWED / LOOKS;
                fallen.extend(self.holdups.look(&mut self.rule, &[(LEVEL, position)], self.now));
                // Not twice at one time.
                assert!(self.holdups.look(&mut self.rule, &[(LEVEL, position)], self.now).is_empty());
            }
            fallen
        }
    }

    #[test]
    fn who_holds_a_commit_up_for_too_long_falls_behind_and_the_others_do_not() {
        let mut scene = Scene::new(3);
        scene.rule.has(id(1), 1, has(20));
        scene.rule.has(id(2), 1, has(20));
        assert!(scene.looks(LOOKS, 20).is_empty(), "not yet");
        assert_eq!(scene.looks(1, 20), [id(3)]);
        assert_eq!((scene.rule.behind().collect::<Vec<_>>(), scene.rule.in_sync().count()), (vec![id(3)], 2));
        assert!(scene.looks(LOOKS * 2, 20).is_empty());
    }

    #[test]
    fn nobody_falls_behind_as_long_as_commits_are_settled_or_if_all_are_late_or_the_leader_is() {
        let mut scene = Scene::new(2);
        scene.rule.has(id(1), 1, has(60));
        for position in 20..40 {
            assert!(scene.looks(2, position).is_empty(), "the oldest is another one each time");
        }
        assert!(scene.looks(LOOKS * 3, 70).is_empty(), "both lack it");
        let mut scene = Scene::new(2);
        scene.rule.has(id(1), 1, has(200));
        assert!(scene.looks(LOOKS * 3, 150).is_empty(), "the leader's own disk is late as well");
        assert_eq!(Scene::new(1).looks(LOOKS + 1, 20), [id(1)], "a single one is no reason to think so");
    }

    #[test]
    fn who_keeps_up_is_back_later_each_time() {
        let mut scene = Scene::new(1);
        let mut away = Vec::new();
        for round in 1..=9 {
            assert_eq!(scene.looks(LOOKS + 1, 10 + round), [id(1)]);
            assert!(!scene.holdups.is_back(&scene.rule, id(1), ALLOWED, scene.now), "it owes something");
            let fell = scene.now;
            while !scene.holdups.is_back(&scene.rule, id(1), Duration::ZERO, scene.now) {
                scene.now += Duration::from_millis(500);
            }
            away.push((scene.now - fell).as_millis());
            assert!(scene.rule.keeps_up(id(1)));
            scene.rule.has(id(1), 1, has(10 + round));
        }
        assert_eq!(away, [0, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
    }

    #[test]
    fn who_lacks_what_was_committed_without_it_is_not_back() {
        let mut scene = Scene::new(2);
        scene.rule.has(id(1), 1, has(20));
        assert_eq!(scene.looks(LOOKS + 1, 20), [id(2)]);
        assert!(scene.rule.next_set().is_some());
        scene.rule.recorded_now();
        assert_eq!(scene.rule.committed(LEVEL, 20), 20);
        assert!(!scene.holdups.is_back(&scene.rule, id(2), Duration::ZERO, scene.now));
        scene.rule.has(id(2), 1, has(20));
        assert!(scene.holdups.is_back(&scene.rule, id(2), Duration::ZERO, scene.now));
    }
}
