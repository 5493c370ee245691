//! Demoting a follower: from a full queue, or from too far behind, back to a sync, on the same connection
//! ([`OnFull::CatchUp`](crate::config::OnFull::CatchUp)).
//!
//! 1. Whoever pushes finds the queue full. The follower leaves the stream at once (`FollowerHandle::demoted`), as if it were evicted.
//! 2. The *demotion thread* (`demotion`, one a leader, only with this setting) takes it out of the in-sync set and empties its queue, whatever the writer is
//!    blocked in: memory is given back now and not when the follower moves.
//! 3. The writer thread finishes the batch it is at and takes no more. What the follower lacks is found out as on any return (`sync/resume.rs`): by content.
//!
//! So nothing has to be known of what was discarded, nor of what the follower had: it costs what a return costs, less the connection. A follower of 1.0.0,
//! which can be asked nothing in the middle of a stream, is evicted.
//!
//! What the writer takes it takes in order: it looks at the flag and takes a batch in one step (`FollowerHandle::take`), and of this thread's
//! first look into the queue no such step is under way any more (`FollowerHandle::taken_over`).

use crate::leader::core::Core;
use crate::leader::peers::status::{EvictionReason, FollowerStatus};
use crate::leader::stream::Demoted;

/// The demotion thread's life: ends when the stream is stopped.
pub(in crate::leader) fn run(core: &Core) {
    while let Some(demoted) = core.stream.wait_demoted() {
        for Demoted { follower, status, reason, batches, handled } in demoted {
            core.commits.joins(&follower);
            follower.taken_over();
            batches.try_iter().for_each(|batch| follower.queue.remove(batch.cost()));
            log::warn!("{}", line(&status, &reason));
            drop(handled);
        }
        // Who waits for followers does not wait for these.
        core.progress.changed();
    }
}

/// Like an eviction's.
fn line(status: &FollowerStatus, reason: &EvictionReason) -> String {
    let lag = match (status.lag_bytes, status.lag) {
        (Some(bytes), Some(time)) => format!("{bytes} bytes / {:.3} s", time.as_secs_f64()),
        _ => "unknown".to_owned(),
    };
    format!(
        "demoted follower: {reason}; address {}, id {}, {}, lag {lag}, queue {} batches / {} bytes; it syncs anew, on \
         the same connection",
        status.address, status.id, status.state, status.queued_batches, status.queued_bytes
    )
}
