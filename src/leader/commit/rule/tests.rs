//! The rule against a model of the world, over every history of a small cluster: all states that can be reached are.

use std::collections::HashSet;

use super::*;

const LEADER: i32 = 9;
const END_MAX: u64 = 2;
/// One for all: that what is heard late has no effect is another test.
const TICKET: Ticket = 1;

fn id(id: i32) -> NodeId {
    NodeId::new(id).unwrap()
}

/// Of a follower of [`World`].
fn node(at: usize) -> NodeId {
    id(i32::try_from(at).unwrap() + 1)
}

/// What is really the case, next to what the rule believes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    rule: Rule,
    end: u64,
    followers: [Follower; 2],
    /// Sets of which the last that was written is the recorded one, or any that may yet overtake it.
    possible: Vec<Set>,
    writing: Option<Set>,
    /// What was acknowledged to a client as durable on all.
    acknowledged: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Follower {
    connection: Connection,
    /// What is durable on its disk; `None` while a sync has made a mess of it.
    disk: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Connection {
    Gone,
    Joining,
    Attached,
}

/// Takes a change of the world, and what it is called.
type Add<'a> = &'a mut dyn FnMut(String, &dyn Fn(&mut World));

impl World {
    fn new() -> Self {
        let follower = Follower { connection: Connection::Gone, disk: Some(0) };
        // Follower 0 was in sync with an earlier leader.
        let recorded: Set = [id(LEADER), id(1)].into();
        Self {
            rule: Rule::new(id(LEADER), 0, Some(3), recorded.clone()),
            end: 0,
            followers: [follower.clone(), follower],
            possible: vec![recorded],
            writing: None,
            acknowledged: 0,
        }
    }

    /// Every world that may be next.
    fn next(&self) -> Vec<(String, Self)> {
        let mut next = Vec::new();
        let mut add = |what: String, change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            next.push((what, world));
        };
        if self.end < END_MAX {
            add("append".into(), &|world| {
                world.end += 1;
                world.rule.local_durable(world.end);
            });
        }
        add("tick".into(), &|world| world.rule.appended(world.end));
        add("commit".into(), &Self::commit);
        match &self.writing {
            None => add("write".into(), &|world| {
                if let Some(set) = world.rule.next_set() {
                    world.possible.push(set.clone());
                    world.writing = Some(set);
                }
            }),
            Some(set) => {
                add("recorded".into(), &|world| {
                    world.possible = vec![set.clone()];
                    world.writing = None;
                    world.rule.recorded_now();
                });
                add("not recorded".into(), &|world| {
                    world.possible.pop();
                    world.writing = None;
                    world.rule.not_recorded();
                });
                add("perhaps recorded".into(), &|world| {
                    world.possible.sort();
                    world.possible.dedup();
                    world.writing = None;
                    world.rule.perhaps_recorded();
                });
            }
        }
        for at in 0..self.followers.len() {
            self.next_of(at, &mut add);
        }
        next
    }

    fn next_of(&self, at: usize, add: Add<'_>) {
        let node = node(at);
        let follower = &self.followers[at];
        // Also as a newer connection, or demoted.
        add(format!("{node} joins"), &|world| {
            world.followers[at].connection = Connection::Joining;
            world.rule.joins(node, TICKET, true);
        });
        match follower.connection {
            Connection::Gone => {}
            Connection::Joining if !self.rule.may_be_recorded(node) => {
                add(format!("{node} is made to delete"), &|world| world.followers[at].disk = None);
                add(format!("{node} attaches"), &|world| {
                    let follower = &mut world.followers[at];
                    follower.connection = Connection::Attached;
                    follower.disk = Some(world.end);
                });
            }
            Connection::Joining => {}
            Connection::Attached => {
                add(format!("{node} makes durable"), &|world| world.followers[at].disk = Some(world.end));
                // One of them is enough, and takes a third of the time.
                if at == 0 {
                    add(format!("{node} falls behind"), &|world| world.rule.falls_behind(node));
                    add(format!("{node} keeps up"), &|world| _ = world.rule.keeps_up(node));
                }
                add(format!("{node} tells"), &|world| {
                    let has = all(world.followers[at].disk.unwrap_or(0));
                    world.rule.has(node, TICKET, has);
                });
            }
        }
        if follower.connection != Connection::Gone {
            add(format!("{node} leaves"), &|world| {
                world.followers[at].connection = Connection::Gone;
                world.rule.left(node, TICKET, world.end);
            });
        }
    }

    fn commit(&mut self) {
        let committed = self.rule.committed(CommitLevel::ALL_DURABLE, self.end);
        self.acknowledged = self.acknowledged.max(committed);
    }

    /// Whoever may be elected has all that was acknowledged.
    fn check(&self) -> Result<(), String> {
        for set in &self.possible {
            for node in set.iter().filter(|node| **node != id(LEADER)) {
                let disk = self.followers[usize::try_from(node.get()).unwrap() - 1].disk;
                if disk.is_none_or(|disk| disk < self.acknowledged) {
                    return Err(format!("{node} may be elected with {disk:?} of {}", self.acknowledged));
                }
            }
        }
        Ok(())
    }

    fn check_settled(&self) -> Result<(), String> {
        if self.acknowledged != self.end {
            return Err(format!("only {} is ever committed", self.acknowledged));
        }
        if !self.rule.is_settled() {
            return Err("what is in sync is never recorded".to_owned());
        }
        let out =
            |at: &usize| self.followers[*at].connection != Connection::Gone && !self.rule.may_be_recorded(node(*at));
        (0..self.followers.len()).find(out).map_or(Ok(()), |at| Err(format!("{} never gets in", node(at))))
    }

    /// With all that is here working, and nothing else happening, everything gets committed, and is recorded as it is.
    fn settle(mut self) -> Self {
        for _ in 0..8 {
            if self.writing.take().is_some() {
                self.rule.recorded_now();
            }
            self.rule.appended(self.end);
            self.writing = self.rule.next_set();
            for at in 0..self.followers.len() {
                let node = node(at);
                let follower = &mut self.followers[at];
                if follower.connection == Connection::Joining && !self.rule.may_be_recorded(node) {
                    follower.connection = Connection::Attached;
                }
                if follower.connection == Connection::Attached {
                    self.rule.has(node, TICKET, all(self.end));
                    self.rule.keeps_up(node);
                }
            }
            self.commit();
        }
        self
    }
}

#[test]
fn in_every_history_of_a_small_cluster_whoever_may_be_elected_has_all_that_was_acknowledged() {
    // Each world with the one it was reached from, and how.
    let mut worlds = vec![(World::new(), 0, String::new())];
    let mut seen = HashSet::from([World::new()]);
    let history = |worlds: &[(World, usize, String)], mut at: usize, last: &str| {
        let mut steps = vec![last.to_owned()];
        while at > 0 {
            steps.push(worlds[at].2.clone());
            at = worlds[at].1;
        }
        steps.reverse();
        steps
    };
    let mut at = 0;
    while at < worlds.len() {
        for (what, next) in worlds[at].0.clone().next() {
            if !seen.insert(next.clone()) {
                continue;
            }
            // Seeing it settle takes far longer: of one in so many.
            let settles = worlds.len().is_multiple_of(10);
            let checked =
                next.check().and_then(|()| if settles { next.clone().settle().check_settled() } else { Ok(()) });
            if let Err(wrong) = checked {
                panic!("{wrong}, after {:?}", history(&worlds, at, &what));
            }
            worlds.push((next, at, what));
        }
        at += 1;
    }
    assert!(worlds.len() > 10_000, "only {} worlds were seen", worlds.len());
}

fn all(position: u64) -> Has {
    Has { received: position, written: position, durable: position, flushed: true }
}

fn rule(min_in_sync: usize, followers: &[(i32, u64)]) -> Rule {
    let mut rule = Rule::new(id(LEADER), min_in_sync, Some(5), [id(LEADER)].into());
    for &(node, has) in followers {
        rule.joins(id(node), 1, true);
        rule.has(id(node), 1, all(has));
    }
    rule.local_durable(u64::MAX);
    rule
}

fn level(durability: Durability, quorum: Quorum) -> CommitLevel {
    CommitLevel { durability, quorum }
}

#[test]
fn a_quorum_is_of_in_sync_followers_and_a_majority_counts_the_leader() {
    let mut rule = rule(0, &[(1, 10), (2, 20), (3, 30)]);
    let mut committed = |quorum| rule.committed(level(Durability::Written, quorum), 100);
    assert_eq!(committed(Quorum::All), 10);
    assert_eq!(committed(Quorum::Count(1)), 30);
    assert_eq!(committed(Quorum::Count(3)), 10);
    assert_eq!(committed(Quorum::Majority), 20, "two followers and the leader of five");
    let refusal = rule.refusal(level(Durability::Written, Quorum::Count(4)));
    assert_eq!(refusal, Some(Refusal::TooFewInSync { in_sync: 3, wanted: 4 }));
    assert_eq!(rule.who_has(20, Durability::Written), [id(2), id(3)]);
}

#[test]
fn with_no_follower_the_leaders_own_word_is_enough_unless_a_minimum_is_set() {
    let durable = CommitLevel::ALL_DURABLE;
    let mut alone = Rule::new(id(LEADER), 0, None, [id(LEADER)].into());
    assert_eq!((alone.committed(CommitLevel::ALL_WRITTEN, 7), alone.committed(durable, 7)), (7, 0));
    alone.local_durable(5);
    assert_eq!(alone.committed(durable, 7), 5);
    assert_eq!(alone.refusal(level(Durability::Written, Quorum::Majority)), Some(Refusal::NoClusterSize));
    let mut minimum = rule(1, &[]);
    assert_eq!(minimum.refusal(durable), Some(Refusal::TooFewInSync { in_sync: 0, wanted: 1 }));
    assert_eq!(minimum.committed(durable, 7), 0);
}

#[test]
fn who_never_says_durable_blocks_no_commit_it_cannot_take_part_in() {
    let mut rule = rule(0, &[(1, 10)]);
    rule.joins(id(2), 1, false);
    rule.has(id(2), 1, Has { durable: 0, ..all(10) });
    assert_eq!(rule.refusal(CommitLevel::ALL_DURABLE), Some(Refusal::NeverDurable(id(2))));
    assert_eq!(rule.committed(CommitLevel::ALL_WRITTEN, 100), 10);
    let one = level(Durability::Durable, Quorum::Count(1));
    assert_eq!((rule.refusal(one), rule.committed(one, 100)), (None, 10));
    let two = level(Durability::Durable, Quorum::Count(2));
    assert_eq!(rule.refusal(two), Some(Refusal::TooFewInSync { in_sync: 1, wanted: 2 }));
    // Once something was called durable on all, it does not even get in.
    rule.left(id(2), 1, 100);
    rule.recorded_now();
    assert_eq!(rule.committed(CommitLevel::ALL_DURABLE, 100), 10);
    rule.joins(id(2), 2, false);
    rule.has(id(2), 2, Has { durable: 0, ..all(50) });
    assert_eq!(rule.refusal(CommitLevel::ALL_DURABLE), None);
}

#[test]
fn what_is_heard_late_of_a_way_to_the_stream_that_has_ended_has_no_effect() {
    let mut rule = rule(0, &[(1, 10)]);
    rule.joins(id(1), 2, true);
    rule.has(id(1), 1, all(20));
    assert_eq!(rule.in_sync().count(), 0);
    rule.has(id(1), 2, all(20));
    rule.left(id(1), 1, 30);
    assert_eq!(rule.in_sync().collect::<Vec<_>>(), [id(1)]);
}

#[test]
fn who_left_with_everything_stays_until_there_is_more() {
    let mut rule = rule(0, &[(1, 10)]);
    assert!(!rule.lingers());
    rule.left(id(1), 1, 10);
    assert_eq!(rule.in_sync().collect::<Vec<_>>(), [id(1)]);
    rule.appended(10);
    assert!(rule.lingers());
    rule.left(id(1), 1, 10);
    assert!(rule.lingers());
    rule.appended(11);
    assert!(rule.in_sync().count() == 0 && !rule.lingers());
}

#[test]
fn who_left_before_what_it_had_was_durable_holds_up_no_commit_that_waits_for_that() {
    let mut rule = rule(0, &[]);
    rule.joins(id(1), 1, true);
    rule.has(id(1), 1, Has { durable: 9, ..all(10) });
    rule.next_set();
    rule.recorded_now();
    rule.left(id(1), 1, 10);
    rule.awaited(10, CommitLevel::ALL_WRITTEN);
    rule.awaited(9, CommitLevel::ALL_DURABLE);
    assert!(rule.lingers(), "it has that");
    rule.awaited(10, CommitLevel::ALL_DURABLE);
    assert!(!rule.lingers() && rule.in_sync().count() == 0);
    rule.next_set();
    rule.recorded_now();
    rule.local_durable(10);
    assert_eq!(rule.committed(CommitLevel::ALL_DURABLE, 10), 10);
}

#[test]
fn who_leaves_before_it_was_in_sync_is_in_no_set() {
    let mut rule = rule(0, &[]);
    rule.joins(id(1), 1, true);
    rule.left(id(1), 1, 0);
    assert!(rule.in_sync().count() == 0 && rule.counted().is_empty());
}

#[test]
fn what_it_had_is_forgotten_once_it_is_out_of_all_sets() {
    let mut rule = rule(0, &[(1, 10)]);
    rule.next_set();
    rule.recorded_now();
    rule.left(id(1), 1, 11);
    rule.joins(id(1), 2, true);
    assert_eq!(rule.committed(CommitLevel::ALL_DURABLE, 11), 10, "it may be elected, with what it had");
    rule.left(id(1), 2, 11);
    rule.next_set();
    rule.recorded_now();
    rule.joins(id(1), 3, true);
    assert!(rule.finds_recorded([id(LEADER), id(1)].into()));
    assert_eq!(rule.committed(CommitLevel::ALL_DURABLE, 11), 0, "what it has now nobody knows");
}

#[test]
fn no_more_are_in_sync_than_can_be_recorded_and_who_waits_gets_in_when_one_goes() {
    let most = i32::try_from(IN_SYNC_IDS_MAX).unwrap() - 1;
    let followers: Vec<_> = (0..most + 3).map(|at| (LEADER + 1 + at, 10)).collect();
    let mut rule = rule(0, &followers);
    assert_eq!(rule.next_set().unwrap().len(), IN_SYNC_IDS_MAX);
    rule.recorded_now();
    let (first, last) = (id(followers[0].0), id(followers[followers.len() - 1].0));
    assert!(!rule.counted().contains(&last), "commits do not wait for it");
    rule.left(first, 1, 11);
    rule.has(last, 1, all(11));
    let next = rule.next_set().unwrap();
    assert!(next.len() == IN_SYNC_IDS_MAX && next.contains(&last) && !next.contains(&first));
}

#[test]
fn a_newcomer_is_waited_for_as_soon_as_it_is_attached_and_in_sync_once_it_has_what_was_committed() {
    let mut rule = rule(0, &[(1, 30)]);
    assert_eq!(rule.committed(CommitLevel::ALL_DURABLE, 30), 30);
    rule.joins(id(2), 1, true);
    assert!(rule.has(id(2), 1, Has { durable: 0, ..all(20) }));
    assert_eq!(rule.in_sync().collect::<Vec<_>>(), [id(1)]);
    rule.has(id(1), 1, all(40));
    assert_eq!(rule.committed(CommitLevel::ALL_DURABLE, 40), 0, "what is committed already stays so");
    assert!(!rule.has(id(2), 1, all(35)), "it began to be before");
    assert_eq!(rule.in_sync().count(), 2);
    assert_eq!(rule.committed(CommitLevel::ALL_DURABLE, 40), 35);
}

#[test]
fn who_was_synced_under_a_new_leader_is_in_sync_only_once_that_is_durable_whatever_that_leader_committed() {
    let mut rule = rule(0, &[]);
    rule.joins(id(1), 1, true);
    assert!(rule.has(id(1), 1, Has { durable: 0, flushed: false, ..all(0) }), "commits wait for it");
    assert_eq!(rule.in_sync().count(), 0);
    rule.has(id(1), 1, all(0));
    assert_eq!(rule.in_sync().collect::<Vec<_>>(), [id(1)]);
}

#[test]
fn a_set_that_somebody_else_recorded_is_replaced_and_its_members_count_until_then() {
    let mut rule = Rule::new(id(LEADER), 0, None, Set::from([id(LEADER)]));
    assert!(!rule.finds_recorded(Set::from([id(LEADER)])) && rule.next_set().is_none());
    for found in [Set::new(), Set::from([id(1)]), Set::from([id(LEADER), id(1)])] {
        assert!(rule.finds_recorded(found.clone()));
        // It is being seen to.
        assert!(!rule.finds_recorded(found.clone()));
        assert_eq!(rule.counted().contains(&id(1)), found.contains(&id(1)));
        assert_eq!(rule.next_set(), Some(Set::from([id(LEADER)])));
        rule.not_recorded();
        assert_eq!(rule.next_set(), Some(Set::from([id(LEADER)])));
        rule.recorded_now();
        assert!(rule.is_settled() && rule.counted().is_empty());
    }
}

#[test]
fn what_all_of_a_set_keep_is_the_least_of_it_and_nothing_while_one_does_not_say() {
    let mut rule = Rule::new(id(LEADER), 0, None, [id(LEADER)].into());
    let all: Set = [id(LEADER), id(1), id(2)].into();
    for node in [1, 2] {
        rule.joins(id(node), TICKET, true);
        rule.has(id(node), TICKET, Has { received: 50, written: 50, durable: 50, flushed: true });
    }
    assert_eq!(rule.least_kept(&all, 40), None);
    rule.kept(id(1), TICKET, 30);
    assert_eq!((rule.least_kept(&all, 40), rule.least_kept(&[id(LEADER), id(1)].into(), 40)), (None, Some(30)));
    rule.kept(id(2), TICKET, 35);
    rule.kept(id(1), TICKET + 1, 3);
    assert_eq!((rule.least_kept(&all, 40), rule.least_kept(&all, 20)), (Some(30), Some(20)));
    assert_eq!(rule.same_set(), None, "another one is to be written");
    assert_eq!(rule.next_set(), Some(all.clone()));
    assert_eq!(rule.same_set(), None, "it is being written");
    rule.recorded_now();
    assert_eq!((rule.same_set(), rule.next_set()), (Some(all.clone()), None));
    rule.perhaps_recorded();
    assert_eq!(rule.next_set(), Some(all.clone()), "it is not known whether it is recorded");
    rule.recorded_now();
    // It begins anew, and what it kept goes.
    rule.joins(id(1), TICKET + 1, true);
    assert_eq!(rule.least_kept(&all, 40), None);
}
