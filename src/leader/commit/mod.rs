//! Commits: waiting until followers have something, and who of them is in sync.
//!
//! What is committed and who is in sync is for [`rule`] to say. Around it are here: the callers that wait, and three
//! threads. `in-sync` writes the set to the coordinator (`recorder.rs`); `sync` makes the leader's own files durable and asks
//! followers to do the same (`syncer.rs`): one request and one flush for all the commits that came meanwhile; `commits` runs
//! callbacks and ends what has waited long enough (`callbacks.rs`), while callers that block see to their own deadline.
//!
//! Ack threads bring what followers have; whoever brings what completes a commit wakes its caller. Nothing of this is on an
//! append's path: an append does not know of commits.
//!
//! # Locks
//!
//! `state` is taken by those threads, by callers of commits and by the threads of followers, never while another lock is
//! held. While it is, nothing is written or logged, and nothing locked but what a follower has in flight, which is a leaf.
//! Callbacks are called, and callers woken, without it.
//!
//! # How it stops
//!
//! [`Commits::close`] ends all that waits as [`CommitOutcome::ShutDown`], and [`Commits::stop`] the threads; before that,
//! [`Commits::settle`] gives the recorder time to record who had everything at the end.

mod callbacks;
mod holdups;
mod outcome;
mod recorder;
mod rule;
mod syncer;
mod waiters;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use self::holdups::HoldUps;
pub use self::outcome::{CommitOutcome, Committed, InSyncStatus, Refusal, Unknown};
pub(super) use self::recorder::Alone;
use self::rule::{Rule, Set};
pub(super) use self::syncer::Syncer;
use self::waiters::Settled;
use crate::config::{BelowMin, CommitLevel, Durability, LeaderConfig};
use crate::coordinator::{InSyncSet, Leadership};
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::has::Ticket;
use crate::sys::channel::Sender;
use crate::sys::sync::{Condvar, Mutex};
use crate::sys::time::Instant;
use crate::types::{NodeId, StreamPosition};

/// See the module's documentation.
pub(super) struct Commits {
    leadership: Arc<dyn Leadership>,
    min_in_sync: usize,
    in_sync_timeout: Duration,
    below_min: BelowMin,
    v1_acks: Durability,
    state: Mutex<State>,
    /// Something for the recorder to do, or for the syncer, or for the thread of callbacks.
    to_record: Condvar,
    to_sync: Condvar,
    to_call: Condvar,
    /// Another set is recorded, or is surely not.
    recorded: Condvar,
    /// A sync has failed, and the directory does not say so. Outlives the leader for who is to do something about it.
    unmarked: Arc<AtomicBool>,
}

struct State {
    rule: Rule,
    hold_ups: HoldUps,
    /// The stream's end, as far as anybody here has heard of it.
    end: u64,
    last_ticket: Ticket,
    waiting: BTreeMap<CommitLevel, BTreeMap<(u64, u64), Waiter>>,
    last_waiter: u64,
    /// When those of them end that have nobody to see to it.
    deadlines: BTreeMap<(Instant, u64), (CommitLevel, u64)>,
    calls: Vec<(Callback, CommitOutcome)>,
    /// All followers that count were asked to make durable all up to here ...
    requested: u64,
    /// ... and are to be asked again.
    sync_wanted: bool,
    /// One began to be counted, or came to have what it lacked, and is to be asked at least.
    ask_wanted: bool,
    /// One began to count since the syncer last began a turn: whether it is asked in that turn is not known.
    counted_anew: bool,
    local_sync_failed: bool,
    /// The coordinator said so to a write of the set: nothing is recorded any more.
    is_lost: bool,
    /// Whether the recorded set may be changed yet.
    recording: bool,
    /// Up to where the leader's own directory keeps that it has the stream.
    own_kept: u64,
    /// What was recorded beside the set last.
    recorded_position: Option<u64>,
    /// Nothing is confirmed any more.
    closed: bool,
    /// The threads are to end.
    ended: bool,
}

/// How often who waits for a record looks whether its follower is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Callback = Box<dyn FnOnce(CommitOutcome) + Send>;

enum Waiter {
    Thread(Sender<CommitOutcome>),
    /// With its deadline, if it has one.
    Callback(Callback, Option<Instant>),
}

/// What a caller wants committed.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) position: StreamPosition,
    pub(super) level: CommitLevel,
    /// The stream's end.
    pub(super) end: StreamPosition,
}

impl Commits {
    /// `recorded`: the in-sync set that the coordinator has; `recording`: whether another one may be recorded from the start.
    pub(super) fn new(
        config: &LeaderConfig,
        leader: NodeId,
        leadership: Arc<dyn Leadership>,
        recorded: Option<&InSyncSet>,
        recording: bool,
    ) -> Self {
        let recorded: Set = recorded.map_or(Set::from([leader]), |set| set.iter().collect());
        Self {
            leadership,
            min_in_sync: config.min_in_sync,
            in_sync_timeout: config.in_sync_timeout,
            below_min: config.below_min,
            v1_acks: config.v1_acks,
            state: Mutex::new(State {
                rule: Rule::new(leader, config.min_in_sync, config.cluster_size, recorded),
                hold_ups: HoldUps::new(config.in_sync_timeout),
                end: 0,
                last_ticket: 0,
                waiting: BTreeMap::new(),
                last_waiter: 0,
                deadlines: BTreeMap::new(),
                calls: Vec::new(),
                requested: 0,
                sync_wanted: false,
                ask_wanted: false,
                counted_anew: false,
                local_sync_failed: false,
                is_lost: false,
                recording,
                own_kept: 0,
                recorded_position: None,
                closed: false,
                ended: false,
            }),
            to_record: Condvar::new(),
            to_sync: Condvar::new(),
            to_call: Condvar::new(),
            recorded: Condvar::new(),
            unmarked: Arc::default(),
        }
    }

    // ---- followers ----

    /// A follower begins its way to the stream, or begins it anew: it is not in sync from here on.
    ///
    /// Of a connection that has ended this says nothing any more. One that another takes the place of is ended before that other
    /// joins, so it never takes the place of its successor here.
    pub(super) fn joins(&self, follower: &FollowerHandle) {
        let mut state = self.state.lock();
        if follower.has_ended() {
            return;
        }
        state.last_ticket += 1;
        let ticket = state.last_ticket;
        let says_durable = follower.extension || self.v1_acks == Durability::Durable;
        state.rule.joins(follower.id, ticket, says_durable);
        follower.joins(ticket);
        self.changed(state);
    }

    /// A follower may have more of the stream than before.
    ///
    /// Reading what it has and noting that are one step: its two threads come here, and the one that read first and notes last
    /// would take back what the other has noted. Nobody would come again before the follower's next word, which without another
    /// commit is the answer to a heartbeat.
    pub(super) fn passed(&self, follower: &FollowerHandle) {
        let mut state = self.state.lock();
        let Some((ticket, has)) = follower.has() else { return };
        if state.rule.is_joining(follower.id, ticket) && follower.lacks_from_before() {
            // It would hold up all commits until a disk can be read again.
            return;
        }
        state.end = state.end.max(has.received);
        let mut begins = state.rule.has(follower.id, ticket, has);
        let oldest = follower.owes_for();
        if state.rule.behind().any(|id| id == follower.id)
            && state.hold_ups.is_back(&state.rule, follower.id, oldest, Instant::now())
        {
            begins = state.rule.keeps_up(follower.id);
        }
        if begins {
            // It was not asked with the others.
            state.requested = 0;
            state.counted_anew = true;
            let waiting = state.waiting.keys().any(|level| level.durability == Durability::Durable);
            state.sync_wanted |= waiting;
            state.ask_wanted = true;
        }
        state.ask_wanted |= follower.is_to_flush();
        self.changed(state);
    }

    /// A follower's directory keeps that it has the stream up to there.
    pub(super) fn kept(&self, follower: &FollowerHandle, position: StreamPosition) {
        let ticket = follower.ticket();
        self.state.lock().rule.kept(follower.id, ticket, position.0);
    }

    /// The leader's own does.
    pub(super) fn own_kept(&self, position: StreamPosition) {
        self.state.lock().own_kept = position.0;
    }

    /// Up to where the leader's own files are durable.
    pub(super) fn locally_durable(&self) -> StreamPosition {
        StreamPosition(self.state.lock().rule.locally_durable())
    }

    /// A follower's connection has ended. `end` is the stream's.
    pub(super) fn left(&self, follower: &FollowerHandle, end: StreamPosition) {
        // It was let go because it had everything, perhaps before the thread that reads from it came to say so here.
        self.passed(follower);
        let ticket = follower.ticket();
        let mut state = self.state.lock();
        {
            let State { rule, waiting, .. } = &mut *state;
            rule.left(follower.id, ticket, end.0);
            for (level, waiters) in waiting {
                if let Some(((position, _), _)) = waiters.last_key_value() {
                    rule.awaited(*position, *level);
                }
            }
        }
        self.changed(state);
    }

    /// Waits until no set may be recorded that this follower is in: before that it must not be made to change anything.
    /// Blocks while the coordinator does. `false`: it ended first.
    pub(super) fn wait_out(&self, follower: &FollowerHandle) -> bool {
        let mut state = self.state.lock();
        while state.rule.may_be_recorded(follower.id) && !follower.has_ended() && !state.ended {
            self.recorded.wait_for(&mut state, LOOK_EVERY);
        }
        !follower.has_ended() && !state.ended
    }

    /// A follower's connection is about to end: who waits for something on its behalf looks up.
    pub(super) fn ending(&self) {
        // With the lock taken once, a waiter has either seen that or sleeps, and is woken.
        drop(self.state.lock());
        self.recorded.notify_all();
    }

    /// The in-sync set as it is now.
    pub(super) fn status(&self, end: StreamPosition) -> InSyncStatus {
        let mut state = self.state.lock();
        state.rule.appended(end.0);
        let (followers, counted) = (state.rule.in_sync().collect(), state.rule.counted().into_iter().collect());
        InSyncStatus { followers, counted, min_in_sync: self.min_in_sync }
    }

    /// From now on the recorded set is kept as it should be.
    pub(super) fn begin_recording(&self) {
        if !std::mem::replace(&mut self.state.lock().recording, true) {
            self.to_record.notify_one();
        }
    }

    pub(super) fn is_recording(&self) -> bool {
        self.state.lock().recording
    }

    // ---- commits ----

    /// Up to where all is committed at this level. `end` is the stream's.
    pub(super) fn committed(&self, level: CommitLevel, end: StreamPosition) -> StreamPosition {
        let mut state = self.state.lock();
        state.end = state.end.max(end.0);
        if !self.leadership.is_held() {
            return StreamPosition(0);
        }
        let end = state.end;
        StreamPosition(state.rule.committed(level, end))
    }

    // ---- the end ----

    /// Ends whatever waits, and confirms nothing any more: before followers are let go, lest what they lack be confirmed
    /// without them.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let mut settled = Settled(Vec::new());
        for (_, waiters) in std::mem::take(&mut state.waiting) {
            for (at, waiter) in waiters {
                state.settle(at.1, waiter, CommitOutcome::ShutDown, &mut settled);
            }
        }
        self.to_call.notify_all();
        drop(state);
        drop(settled);
    }

    /// Waits until it is recorded who is in sync now that the stream has come to its `end`, up to `deadline`. `false`: it is not.
    pub(super) fn settle(&self, end: StreamPosition, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        state.rule.appended(end.0);
        self.to_record.notify_one();
        while state.recording && !state.rule.is_settled() && self.leadership.is_held() {
            if state.ended {
                return false;
            }
            if self.recorded.wait_until(&mut state, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// Whether its threads may have ended: they were told to, there is nothing to record any more, or the disk has failed, which
    /// is said.
    pub(super) fn may_threads_end(&self) -> bool {
        let state = self.state.lock();
        state.ended || state.local_sync_failed || state.is_lost || !self.leadership.is_held()
    }

    /// Whether nothing is called durable any more because a sync of the leader's own files has failed.
    pub(super) fn has_sync_failed(&self) -> bool {
        self.state.lock().local_sync_failed
    }

    pub(super) fn unmarked(&self) -> Arc<AtomicBool> {
        self.unmarked.clone()
    }

    /// Ends the threads.
    pub(super) fn stop(&self) {
        self.close();
        self.state.lock().ended = true;
        for wake in [&self.to_record, &self.to_sync, &self.to_call, &self.recorded] {
            wake.notify_all();
        }
    }
}

#[cfg(test)]
mod tests;
