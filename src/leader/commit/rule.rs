//! Who is in sync, and what is committed: a calculator without threads, clocks, sockets or locks.
//!
//! # The set that elections pick from
//!
//! A coordinator keeps the *recorded* in-sync set; whoever is in it may lead next. Between a write of it and the answer several
//! sets *may* be recorded: the last one confirmed, and each sent since, whatever the answers were. What is committed on all
//! must be on every member of all of these (invariant I10): [`Rule::counted`].
//!
//! # A follower's way into it and out of it
//!
//! ```text
//!   joins            attached, has all up to there         has all that was committed
//! ─────────▶ Joining ──────────────────────────────▶ Counted ────────────────────────▶ In
//!                │                                      │                               │ leaves with all there is
//!                ▼                                      ▼     leaves with less, or      ▼
//!               Gone ◀──────────────────────────────────◀────────────────────────── Lingering
//!                                                             there is more by now
//! ```
//!
//! Who is `Counted` or `In` and holds commits up for too long falls `Behind`: it is not wanted in the set, and stops to count once a set without it is
//! confirmed, as one that has gone does. Once it keeps up it is `Counted` again. Its connection has nothing to do with that.
//!
//! - `Counted`: commits on all wait for it, but it is not recorded yet: what was committed without it may be more than it has.
//!   From here on nothing is, so it has everything once it has what was committed up to now. Without this step a follower that
//!   is always a little behind the others would never get in, or one would be recorded that lacks what was committed
//!   between where it attached and now.
//! - `In`: it is wanted in the recorded set, and counts before the write that adds it is sent. It gets here once it has also made durable
//!   what it was synced with: leaders before this one may have called any of that durable on all.
//! - Who leaves stops to count only when a set without it is confirmed. Who had all there was lingers in the set until
//!   there is more, or a commit waits for it to be more durable than it said: after a clean end of the leader it may take over.
//! - Who joins gets out of every set that may be recorded before it is made to change anything:
//!   [`Rule::may_be_recorded`] says when.

use std::collections::{BTreeMap, BTreeSet};

use super::outcome::Refusal;
use crate::config::{CommitLevel, Durability, Quorum};
use crate::coordinator::IN_SYNC_IDS_MAX;
use crate::leader::peers::has::{Has, Ticket};
use crate::types::NodeId;

pub(super) type Set = BTreeSet<NodeId>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Joining,
    Counted,
    In,
    Behind,
    Lingering,
    /// Remembered for as long as it counts.
    Gone,
}

impl Stage {
    /// Whether commits on all wait for it, recorded or not.
    fn counts(self) -> bool {
        matches!(self, Self::Counted | Self::In | Self::Lingering)
    }

    fn is_in_sync(self) -> bool {
        matches!(self, Self::In | Self::Lingering)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Member {
    /// Which of its ways to the stream this is about.
    ticket: Ticket,
    stage: Stage,
    has: Has,
    /// Whether it ever says that something is durable.
    says_durable: bool,
    /// Up to where its directory keeps that it has the stream; `None`: it has not said so on this way to it.
    kept: Option<u64>,
}

impl Member {
    /// If it counts, it is in once it has what was committed without it; and what leaders before this one called durable on all, which is in what it
    /// was synced with.
    fn may_be_in(&mut self, committed: Has) {
        let is_safe = self.has.flushed || !self.says_durable;
        if self.stage == Stage::Counted && is_safe && self.has.reaches(committed) {
            self.stage = Stage::In;
        }
    }
}

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    leader: NodeId,
    min_in_sync: usize,
    cluster_size: Option<usize>,
    members: BTreeMap<NodeId, Member>,
    /// The last set that is known to be recorded ...
    confirmed: Set,
    /// ... the one that is being written ...
    in_flight: Option<Set>,
    /// ... and the members of all written since the first, of which it is not known whether they are recorded.
    unresolved: Set,
    /// Somebody else's set was found in its place.
    is_overwritten: bool,
    /// Up to where the leader's own files are durable.
    local: u64,
    /// The highest positions that were called committed on all.
    committed: Has,
}

impl Rule {
    /// `recorded`: what the coordinator has when the leader starts; the leader alone, if nothing.
    pub(super) fn new(leader: NodeId, min_in_sync: usize, cluster_size: Option<usize>, recorded: Set) -> Self {
        Self {
            leader,
            min_in_sync,
            cluster_size,
            members: BTreeMap::new(),
            confirmed: recorded,
            in_flight: None,
            unresolved: Set::new(),
            is_overwritten: false,
            local: 0,
            committed: Has::default(),
        }
    }

    // ---- followers ----

    /// It begins a sync, or to catch up from disk again: it is not in sync from here on. Tickets are never given twice.
    pub(super) fn joins(&mut self, id: NodeId, ticket: Ticket, says_durable: bool) {
        // Until it is out of all sets it has what it had.
        let has = self.members.get(&id).map(|member| member.has).unwrap_or_default();
        self.members.insert(id, Member { ticket, stage: Stage::Joining, has, says_durable, kept: None });
    }

    /// It is attached to the stream, has acknowledged all up to there, and has this much now. Returns whether it just began to be
    /// counted.
    pub(super) fn has(&mut self, id: NodeId, ticket: Ticket, has: Has) -> bool {
        let committed = self.committed;
        let may_begin = self.is_joining(id, ticket) && !self.is_full();
        let Some(member) = self.member(id, ticket) else { return false };
        member.has = has;
        let begins = may_begin && (member.says_durable || committed.durable == 0);
        if begins {
            member.stage = Stage::Counted;
        }
        member.may_be_in(committed);
        begins
    }

    /// Commits on all have waited for it too long: it is not waited for any more.
    pub(super) fn falls_behind(&mut self, id: NodeId) {
        if let Some(member) = self.members.get_mut(&id).filter(|it| matches!(it.stage, Stage::Counted | Stage::In)) {
            member.stage = Stage::Behind;
        }
    }

    /// Those that fell behind and are here.
    pub(super) fn behind(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members.iter().filter(|(_, member)| member.stage == Stage::Behind).map(|(id, _)| *id)
    }

    /// It keeps up again. Returns whether it begins to be counted.
    pub(super) fn keeps_up(&mut self, id: NodeId) -> bool {
        let (committed, is_full) = (self.committed, self.is_full());
        let Some(member) = self.members.get_mut(&id).filter(|it| it.stage == Stage::Behind && !is_full) else {
            return false;
        };
        member.stage = Stage::Counted;
        member.may_be_in(committed);
        true
    }

    /// Whether it has written all up to `end`.
    pub(super) fn has_all(&self, id: NodeId, end: u64) -> bool {
        self.members.get(&id).is_some_and(|member| member.has.written >= end)
    }

    /// Whether it has all that was committed on all.
    pub(super) fn has_committed(&self, id: NodeId) -> bool {
        self.members.get(&id).is_some_and(|member| member.has.reaches(self.committed))
    }

    /// Those, of all that count and are here, that lack something before a position that the leader's own files are ready for; and how many count.
    pub(super) fn holding_up(&self, position: u64, durability: Durability) -> (Set, usize) {
        let counted = || self.members.iter().filter(|(_, it)| matches!(it.stage, Stage::Counted | Stage::In));
        if durability == Durability::Durable && self.local < position {
            return (Set::new(), counted().count());
        }
        let lacking = counted().filter(|(_, member)| member.has.at(durability) < position);
        (lacking.map(|(id, _)| *id).collect(), counted().count())
    }

    /// Whether it is on this way to the stream, and not counted yet.
    pub(super) fn is_joining(&self, id: NodeId, ticket: Ticket) -> bool {
        self.members.get(&id).is_some_and(|member| member.ticket == ticket && member.stage == Stage::Joining)
    }

    /// Whether as many are in sync, or about to be, as can be recorded: who comes after them has to wait until one goes.
    pub(super) fn is_full(&self) -> bool {
        // The leader is recorded, too.
        self.members.values().filter(|member| member.stage.counts()).count() + 1 >= IN_SYNC_IDS_MAX
    }

    /// Its connection has ended, or the stream has. `end` is the stream's. To say it twice does no harm.
    pub(super) fn left(&mut self, id: NodeId, ticket: Ticket, end: u64) {
        let Some(member) = self.member(id, ticket) else { return };
        let has_all = member.stage.is_in_sync() && member.has.written >= end;
        member.stage = if has_all { Stage::Lingering } else { Stage::Gone };
        self.forget();
    }

    /// The stream has come to `end`: who is gone and has less is out of sync.
    pub(super) fn appended(&mut self, end: u64) {
        for member in self.members.values_mut() {
            if member.stage == Stage::Lingering && member.has.written < end {
                member.stage = Stage::Gone;
            }
        }
        self.forget();
    }

    /// A commit waits for everything up to `position`: who is gone and never says that it has that is out of sync. To be said of each commit as it begins to wait, and of
    /// all that wait when somebody has left.
    pub(super) fn awaited(&mut self, position: u64, level: CommitLevel) {
        for member in self.members.values_mut() {
            let is_missing = member.has.at(level.durability) < position;
            if level.quorum == Quorum::All && member.stage == Stage::Lingering && is_missing {
                member.stage = Stage::Gone;
            }
        }
        self.forget();
    }

    /// Whether anybody is in the set who is gone.
    pub(super) fn lingers(&self) -> bool {
        self.members.values().any(|member| member.stage == Stage::Lingering)
    }

    /// Whether a set may be recorded that this node is in. While it may not be, what it had does not count.
    pub(super) fn may_be_recorded(&self, id: NodeId) -> bool {
        self.recorded().any(|recorded| recorded == id)
    }

    fn member(&mut self, id: NodeId, ticket: Ticket) -> Option<&mut Member> {
        self.members.get_mut(&id).filter(|member| member.ticket == ticket)
    }

    /// Drops what is remembered of nodes that are gone and do not count any more.
    fn forget(&mut self) {
        let recorded: Set = self.recorded().collect();
        self.members.retain(|id, member| member.stage != Stage::Gone || recorded.contains(id));
    }

    // ---- the recorded set ----

    /// The members of all sets that may be recorded.
    fn recorded(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.confirmed.iter().chain(self.in_flight.iter().flatten()).chain(&self.unresolved).copied()
    }

    /// Its directory keeps, and will show after any restart, that it has the stream up to there.
    pub(super) fn kept(&mut self, id: NodeId, ticket: Ticket, position: u64) {
        if let Some(member) = self.member(id, ticket) {
            member.kept = Some(position);
        }
    }

    /// The least that the directories of all members of a set keep; `None` if one of them does not say. `own`: what the leader's does.
    pub(super) fn least_kept(&self, set: &Set, own: u64) -> Option<u64> {
        let others = set.iter().filter(|id| **id != self.leader);
        others.map(|id| self.members.get(id)?.kept).try_fold(own, |least, kept| Some(least.min(kept?)))
    }

    /// The set that is recorded, to be written again for what is recorded beside it; `None` while another one is to be.
    pub(super) fn same_set(&mut self) -> Option<Set> {
        self.is_settled().then(|| self.in_flight.insert(self.confirmed.clone()).clone())
    }

    /// Up to where the leader's own files are durable.
    pub(super) fn locally_durable(&self) -> u64 {
        self.local
    }

    /// What should be written, if that is not known to be recorded already. Until the caller says what came of it, nothing
    /// else is.
    pub(super) fn next_set(&mut self) -> Option<Set> {
        if self.in_flight.is_some() || self.is_settled() {
            return None;
        }
        let wanted = self.wanted();
        self.in_flight = Some(wanted.clone());
        Some(wanted)
    }

    /// Whether what should be recorded is known to be.
    pub(super) fn is_settled(&self) -> bool {
        let is_known = self.in_flight.is_none() && self.unresolved.is_empty() && !self.is_overwritten;
        is_known && self.wanted() == self.confirmed
    }

    pub(super) fn wanted(&self) -> Set {
        self.in_sync().chain([self.leader]).collect()
    }

    /// It is recorded, and none written before will take its place.
    pub(super) fn recorded_now(&mut self) {
        if let Some(set) = self.in_flight.take() {
            self.confirmed = set;
            self.unresolved.clear();
            self.is_overwritten = false;
            self.forget();
        }
    }

    /// This is recorded, whoever did it; nothing, if it is empty. Returns whether it is not what it should be: then it is to be written
    /// again. Whoever is in it may be elected by it until that is confirmed, and counts.
    pub(super) fn finds_recorded(&mut self, found: Set) -> bool {
        let is_other = self.is_settled() && found != self.confirmed;
        if is_other {
            self.unresolved.extend(found);
            self.is_overwritten = true;
        }
        is_other
    }

    /// It is surely not.
    pub(super) fn not_recorded(&mut self) {
        self.in_flight = None;
        self.forget();
    }

    /// It may be, or come to be.
    pub(super) fn perhaps_recorded(&mut self) {
        self.unresolved.extend(self.in_flight.take().into_iter().flatten());
    }

    // ---- what is committed ----

    /// In-sync followers.
    pub(super) fn in_sync(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.in_sync_members().map(|(id, _)| id)
    }

    fn in_sync_members(&self) -> impl Iterator<Item = (NodeId, &Member)> + '_ {
        self.members.iter().filter(|(_, member)| member.stage.is_in_sync()).map(|(id, member)| (*id, member))
    }

    /// Those that commits on all wait for, besides the leader.
    pub(super) fn counted(&self) -> Set {
        let staged = self.members.iter().filter(|(_, member)| member.stage.counts()).map(|(id, _)| *id);
        staged.chain(self.recorded()).filter(|id| *id != self.leader).collect()
    }

    /// How many in-sync followers it takes.
    fn needed(&self, quorum: Quorum) -> Result<usize, Refusal> {
        let needed = match quorum {
            Quorum::All => 0,
            Quorum::Count(count) => count,
            // With the leader they are more than half.
            Quorum::Majority => self.cluster_size.ok_or(Refusal::NoClusterSize)? / 2,
        };
        Ok(needed.max(self.min_in_sync))
    }

    /// Why nothing can be committed at this level as things are.
    pub(super) fn refusal(&self, level: CommitLevel) -> Option<Refusal> {
        let wanted = match self.needed(level.quorum) {
            Ok(needed) => needed,
            Err(refusal) => return Some(refusal),
        };
        let durable = level.durability == Durability::Durable;
        let mute = |member: &Member| durable && !member.says_durable;
        let in_sync = self.in_sync_members().filter(|(_, member)| !mute(member)).count();
        let counted = || self.members.iter().find(|(_, member)| member.stage.counts() && mute(member));
        match level.quorum {
            Quorum::All if counted().is_some() => counted().map(|(id, _)| Refusal::NeverDurable(*id)),
            _ if in_sync < wanted => Some(Refusal::TooFewInSync { in_sync, wanted }),
            _ => None,
        }
    }

    /// Up to where all is committed at this level, at most `end`. The caller goes by it: no follower that lacks any of what is
    /// committed on all becomes in sync after this.
    pub(super) fn committed(&mut self, level: CommitLevel, end: u64) -> u64 {
        let Ok(needed) = self.needed(level.quorum) else { return 0 };
        let mut committed = end;
        if let Some(last) = needed.checked_sub(1) {
            let mut has: Vec<u64> = self.in_sync_members().map(|(_, member)| member.has.at(level.durability)).collect();
            has.sort_unstable_by(|a, b| b.cmp(a));
            committed = committed.min(has.get(last).copied().unwrap_or(0));
        }
        if level.quorum == Quorum::All {
            let has = |id| self.members.get(id).map_or(0, |member: &Member| member.has.at(level.durability));
            committed = self.counted().iter().map(has).fold(committed, u64::min);
        }
        if level.durability == Durability::Durable {
            committed = committed.min(self.local);
        }
        if level.quorum == Quorum::All {
            self.committed.raise(level.durability, committed);
        }
        committed
    }

    /// In-sync followers that have all up to `position`.
    pub(super) fn who_has(&self, position: u64, durability: Durability) -> Vec<NodeId> {
        let has = self.in_sync_members().filter(|(_, member)| member.has.at(durability) >= position);
        has.map(|(id, _)| id).collect()
    }

    /// The leader's own files are durable up to there.
    pub(super) fn local_durable(&mut self, position: u64) {
        self.local = self.local.max(position);
    }
}

#[cfg(test)]
mod tests;
