//! Telling the other candidates what this node has: a thread, `bids`, so that nothing else waits for the coordinator.
//!
//! It tells the last of what it was given, again until that succeeds. Dropping it waits for the thread, within the coordinator's own bounds. No locks.

use std::sync::Arc;
use std::time::Duration;

use crate::coordinator::{Bid, Coordinator, Stop};
use crate::sys::channel::{Receiver, Sender, TrySendError, bounded};
use crate::sys::time::Instant;
use crate::thread::{DROP_JOIN_MAX, Group};
use crate::types::NodeId;

/// After a coordinator that could not be reached.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Bidder {
    bids: Option<Sender<Bid>>,
    /// To take back what was not told yet.
    untold: Receiver<Bid>,
    stop: Stop,
    threads: Group,
}

impl Bidder {
    pub(super) fn start(coordinator: Arc<dyn Coordinator>, id: NodeId) -> std::io::Result<Self> {
        let ((bids, untold), stop, threads) = (bounded(1), Stop::new(), Group::default());
        let (its, until) = (untold.clone(), stop.clone());
        threads.spawn("bids", move || {
            while let Ok(mut bid) = its.recv() {
                while let Err(error) = coordinator.bid(id, &bid) {
                    log::debug!("could not tell the other candidates what this node has: {error}");
                    if until.wait(RETRY) {
                        return;
                    }
                    bid = its.try_recv().unwrap_or(bid);
                }
            }
        })?;
        Ok(Self { bids: Some(bids), untold, stop, threads })
    }

    /// Tells this soon, in place of what was not told yet. Never blocks.
    pub(super) fn tell(&self, bid: Bid) {
        let Some(bids) = &self.bids else { return };
        let mut sent = bids.try_send(bid);
        while let Err(TrySendError::Full(bid)) = sent {
            // Nobody else puts any in.
            let _ = self.untold.try_recv();
            sent = bids.try_send(bid);
        }
    }
}

impl Drop for Bidder {
    fn drop(&mut self) {
        self.stop.set();
        self.bids = None;
        if self.threads.join(Instant::now() + DROP_JOIN_MAX) > 0 {
            log::warn!("the coordinator does not answer: a thread that tells it something ends when its time is up");
        }
    }
}
