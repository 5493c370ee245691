//! Campaigning beside following: a thread, `campaign`, blocks in the coordinator until the node is elected or withdraws.
//!
//! There is one campaign at a time, because its id is also its lease: one that was withdrawn is waited for before the next.
//! Before each one it is looked whether the directory shows what is recorded as committed (`committed.rs`); if not, that is looked at again each second. After a failure the next one waits a little. Dropping it withdraws, and waits for the thread within the coordinator's own
//! bounds. One lock, for what that look found, a leaf.

use std::sync::Arc;
use std::time::Duration;

use super::NodeError;
use super::committed::Behind;
use crate::coordinator::{Bid, Coordinator, CoordinatorError, Leadership, Stop};
use crate::position::EpochPosition;
use crate::sys::channel::{Receiver, TryRecvError, bounded, never};
use crate::sys::sync::Mutex;
use crate::sys::time::Instant;
use crate::thread::{DROP_JOIN_MAX, Group};
use crate::types::NodeId;

/// After a coordinator that could not be reached, and after one that does not want us.
const RETRY_UNAVAILABLE: Duration = Duration::from_secs(1);
const RETRY_REFUSED: Duration = Duration::from_secs(10);
/// While the directory shows less than was committed, which is why a campaign ends that was not withdrawn.
const RETRY_BEHIND: Duration = Duration::from_secs(1);

/// What the directory shows of how far it has come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shows {
    /// `None`: nothing.
    Position(Option<EpochPosition>),
    /// A person says that it is enough.
    Enough,
}

type Outcome = Result<Option<Arc<dyn Leadership>>, CoordinatorError>;

pub(super) struct Candidacy {
    coordinator: Arc<dyn Coordinator>,
    id: NodeId,
    uri: String,
    /// What the node has: said before it stands, so that whoever is elected knows that there is something to wait for.
    bid: Bid,
    /// What the last campaign found before it began.
    behind: Arc<Mutex<Option<Behind>>>,
    campaign: Option<Campaign>,
    not_before: Instant,
    never: Receiver<Outcome>,
}

struct Campaign {
    withdraw: Stop,
    outcome: Receiver<Outcome>,
    thread: Group,
}

impl Candidacy {
    pub(super) fn new(coordinator: Arc<dyn Coordinator>, id: NodeId, uri: &str, bid: Bid) -> Self {
        let uri = uri.to_owned();
        let (behind, not_before) = (Arc::default(), Instant::now());
        Self { coordinator, id, uri, bid, behind, campaign: None, not_before, never: never() }
    }

    /// Later campaigns begin with this.
    pub(super) fn set_bid(&mut self, bid: Bid) {
        self.bid = bid;
    }

    /// Why the last campaign did not begin, if it did not.
    pub(super) fn behind(&self) -> Option<Behind> {
        self.behind.lock().clone()
    }

    /// Campaigns if it is `wanted`, and withdraws if not. Never blocks. A campaign begins if the directory, which shows this, is not behind what is recorded.
    pub(super) fn update(&mut self, wanted: bool, shows: Shows) {
        match &self.campaign {
            Some(campaign) if !wanted => campaign.withdraw.set(),
            None if wanted && Instant::now() >= self.not_before => self.begin(shows),
            _ => {}
        }
    }

    fn begin(&mut self, shows: Shows) {
        let (withdraw, thread) = (Stop::new(), Group::default());
        let (sender, outcome) = bounded(1);
        let (coordinator, id, uri, until) = (self.coordinator.clone(), self.id, self.uri.clone(), withdraw.clone());
        let (bid, found) = (self.bid, self.behind.clone());
        let stand = move || {
            coordinator.bid(id, &bid)?;
            let behind = match shows {
                Shows::Position(shows) => Behind::of(shows, coordinator.committed()?),
                Shows::Enough => None,
            };
            let is_behind = behind.is_some();
            // Beside a set that it is not in, as it is about to hear, what it lacks is no news.
            let is_in = !is_behind || coordinator.in_sync_set()?.is_none_or(|set| set.contains(id));
            *found.lock() = behind.filter(|_| is_in);
            if is_behind { Ok(None) } else { coordinator.campaign(id, &uri, &until) }
        };
        let spawned = thread.spawn("campaign", move || {
            let _ = sender.send(stand());
        });
        match spawned {
            Ok(()) => self.campaign = Some(Campaign { withdraw, outcome, thread }),
            Err(error) => self.failed(&CoordinatorError::Thread(error)),
        }
    }

    /// Where the end of the campaign arrives, for [`take`](Self::take).
    pub(super) fn outcome(&self) -> &Receiver<Outcome> {
        self.campaign.as_ref().map_or(&self.never, |campaign| &campaign.outcome)
    }

    /// What came out of [`outcome`](Self::outcome), if something did: the leadership, if the node was elected and still wants to be.
    /// Never blocks.
    ///
    /// # Errors
    ///
    /// Its thread failed.
    pub(super) fn take(&mut self) -> Result<Option<Arc<dyn Leadership>>, NodeError> {
        let Some(outcome) = observed(self.outcome())? else { return Ok(None) };
        let withdrawn = self.campaign.take().is_some_and(|campaign| campaign.withdraw.is_set());
        match outcome {
            Ok(Some(leadership)) if withdrawn => {
                leadership.resign();
                Ok(None)
            }
            Ok(elected) => {
                if elected.is_none() && !withdrawn {
                    self.not_before = Instant::now() + RETRY_BEHIND;
                }
                Ok(elected)
            }
            Err(error) => {
                self.failed(&error);
                Ok(None)
            }
        }
    }

    fn failed(&mut self, error: &CoordinatorError) {
        let delay = match error {
            CoordinatorError::Unavailable(_) => RETRY_UNAVAILABLE,
            _ => RETRY_REFUSED,
        };
        match error {
            CoordinatorError::Unavailable(_) => log::warn!("cannot campaign: {error}; trying again in {delay:?}"),
            _ => log::error!("cannot campaign: {error}; trying again in {delay:?}"),
        }
        self.not_before = Instant::now() + delay;
    }
}

/// The next thing that was observed, if there is one.
///
/// # Errors
///
/// The thread that observes ended.
pub(super) fn observed<T>(states: &Receiver<T>) -> Result<Option<T>, NodeError> {
    match states.try_recv() {
        Ok(state) => Ok(Some(state)),
        Err(TryRecvError::Empty) => Ok(None),
        Err(TryRecvError::Disconnected) => Err(NodeError::ObservationEnded),
    }
}

impl Drop for Campaign {
    fn drop(&mut self) {
        self.withdraw.set();
        if self.thread.join(Instant::now() + DROP_JOIN_MAX) > 0 {
            log::warn!("the coordinator does not answer: a campaign that was withdrawn ends when its time is up");
        }
        // A leadership nobody wants any more.
        if let Ok(Ok(Some(leadership))) = self.outcome.try_recv() {
            leadership.resign();
        }
    }
}
