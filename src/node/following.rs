//! The elected leader as this node follows it, and what is said when that does not work.
//!
//! One [`Follower`] for all leaders that come while the node does not lead: it is told of another leader, and reads no file
//! again for it.

use std::time::Duration;

use super::NodeError;
use super::config::host_of;
use crate::config::FollowerConfig;
use crate::coordinator::LeaderInfo;
use crate::error::Error;
use crate::follower::{Follower, State, Status};
use crate::own_folder::OwnFolder;
use crate::position::{EpochPosition, Stand};
use crate::sys::time::Instant;
use crate::types::NodeId;

/// How long a leader may be out of reach before more is said than that it is, and between two such words.
const REMEDY_AFTER: Duration = Duration::from_secs(15);
const REMEDY_EVERY: Duration = Duration::from_secs(60);

/// Who this node is, for others.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) id: NodeId,
    pub(super) uri: String,
    pub(super) address: String,
}

pub(super) struct Following {
    config: FollowerConfig,
    own: Own,
    follower: Option<Follower>,
    /// How far the directory had come before there was a follower.
    kept: Option<Stand>,
    /// Nobody is followed for now, whoever is elected.
    paused: bool,
    leader: Option<LeaderInfo>,
    /// Whether it may be followed: it has the data of which this is a copy.
    may_follow: bool,
    /// Its `HOST:PORT`, if it is one to be followed.
    address: Option<String>,
    /// Whether the copy has been in sync with this leader.
    synced: bool,
    /// When to say more, unless it works by then.
    remedy_at: Instant,
}

impl Following {
    /// Follows nobody at first. The configuration holds the directory's lock.
    pub(super) fn new(config: FollowerConfig, own: Own) -> Result<Self, NodeError> {
        let kept = Stand::load(&OwnFolder::of(&config.data_dir)?);
        Ok(Self {
            config,
            own,
            follower: None,
            kept,
            paused: false,
            leader: None,
            may_follow: false,
            address: None,
            synced: false,
            remedy_at: Instant::now() + REMEDY_AFTER,
        })
    }

    /// Follows nobody until it is told of a leader.
    pub(super) fn pause(&mut self) {
        if !std::mem::replace(&mut self.paused, true)
            && let Some(follower) = &self.follower
        {
            follower.follow(None);
        }
    }

    /// How far the directory has come, once nothing of a former leader is applied any more. Blocks until then, at most for `timeout`;
    /// `None` after that.
    pub(super) fn position_at_rest(&self, timeout: Duration) -> Option<Option<EpochPosition>> {
        let kept = self.kept.map(|stand| stand.has);
        self.follower.as_ref().map_or(Some(kept), |follower| follower.position_at_rest(timeout))
    }

    /// The same at once, whatever is being applied.
    pub(super) fn position(&self) -> Option<EpochPosition> {
        let kept = self.kept.map(|stand| stand.has);
        self.follower.as_ref().map_or(kept, |follower| follower.status().position)
    }

    /// How much of it the directory could show after any restart.
    pub(super) fn shown(&self) -> Option<EpochPosition> {
        self.follower.as_ref().map_or(self.kept, Follower::stand).map(|stand| stand.shown())
    }

    /// Follows this leader from now on, or nobody.
    pub(super) fn set_leader(&mut self, leader: Option<LeaderInfo>, may_follow: bool) -> Result<(), NodeError> {
        if self.leader == leader && self.may_follow == may_follow && !self.paused {
            return Ok(());
        }
        self.paused = false;
        self.may_follow = may_follow;
        match &leader {
            _ if self.leader == leader => {}
            Some(leader) => log::info!("the elected leader is {leader}"),
            None => log::info!("there is no elected leader"),
        }
        self.address = leader.as_ref().filter(|leader| may_follow && !self.is_own(leader)).and_then(|leader| {
            leader.address().inspect_err(|error| log::error!("the elected leader cannot be followed: {error}")).ok()
        });
        (self.synced, self.remedy_at) = (false, Instant::now() + REMEDY_AFTER);
        self.leader = leader;
        match (&self.follower, &self.address) {
            (Some(follower), address) => follower.follow(address.as_deref()),
            (None, None) => {}
            (None, Some(address)) => {
                self.config.leader.clone_from(address);
                self.follower = Some(Follower::start(self.config.clone())?);
            }
        }
        Ok(())
    }

    /// This node's earlier run, whose leadership has not ended yet, or a mistake: nobody follows himself.
    fn is_own(&self, leader: &LeaderInfo) -> bool {
        leader.id == Some(self.own.id)
            || leader.uri == self.own.uri
            || leader.address().is_ok_and(|address| address == self.own.address)
    }

    /// Follows nobody any more, as quickly as can be.
    pub(super) fn end_to_lead(&mut self) {
        if let Some(follower) = self.follower.take() {
            follower.stop_in_a_hurry();
        }
    }

    /// Looks how it goes. An error is one that trying again would not mend.
    pub(super) fn check(&mut self) -> Result<(), NodeError> {
        let status = match &self.follower {
            Some(follower) => match follower.wait(Some(Duration::ZERO)) {
                Some(Err(Error::SecretRefused)) => {
                    let leader = self.leader.as_ref().map(ToString::to_string).unwrap_or_default();
                    return Err(NodeError::SecretRefused { leader });
                }
                Some(Err(error)) => return Err(error.into()),
                _ => follower.status(),
            },
            None => Status::default(),
        };
        self.synced |= self.address.is_some() && status.state == State::Streaming;
        if status.state != State::Connecting {
            self.remedy_at = Instant::now() + REMEDY_AFTER;
        } else if Instant::now() >= self.remedy_at {
            self.remedy_at = Instant::now() + REMEDY_EVERY;
            self.say_remedy(&status);
        }
        Ok(())
    }

    fn say_remedy(&self, status: &Status) {
        match (&self.leader, &self.address) {
            (Some(leader), None) if self.is_own(leader) => log::error!(
                "the elected leader, {leader}, has the id or the address of this node, which does not lead: it was elected and waits for the \
                 leader before it, or an earlier run's leadership has not ended yet; if neither, another node has the same --id, \
                 --data-dir or --advertise: give each node its own"
            ),
            (Some(leader), Some(address)) => log::error!(
                "the elected leader, {leader}, cannot be followed: {}; its --advertise must lead to its --listen from here",
                status.last_disconnect.as_deref().unwrap_or(address)
            ),
            _ => {}
        }
    }

    /// The leader's host, once the copy has been in sync with it.
    pub(super) fn synced_host(&self) -> Option<&str> {
        self.address.as_deref().filter(|_| self.synced).map(host_of)
    }

    pub(super) fn leader(&self) -> Option<&LeaderInfo> {
        self.leader.as_ref()
    }

    pub(super) fn status(&self) -> Option<Status> {
        self.follower.as_ref().map(Follower::status)
    }
}
