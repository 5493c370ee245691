//! Heartbeats, in every phase, to followers that know the extension: whatever a follower's writer is at, the thread `beats`, one a leader, says to each that the leader is
//! alive when nothing was written to it for a while.
//!
//! What it writes is an empty block of the frame. That may stand between any two blocks, so also within an action whose bytes are still being read from a disk that hangs: no
//! loop of a writer has to think of it, and none can forget it. It is not an action, and counts nowhere. Writers themselves send a
//! [heartbeat](crate::protocol::extension::Control::Heartbeat) with the position from time to time, which is news and not a sign of life.
//!
//! Whose *turn* it is to write is told by a token. A writer takes it for a write of whole blocks, however long that blocks; the thread only tries to. If it gets none, something
//! is being written, which is life enough: either bytes are on their way, or the follower has more than it reads. If it gets one, it writes four bytes, and only where the system has nothing
//! left to send, so that there is room: it waits for nothing, and a writer that waits for its turn waits for that. So there is no lock at a write (I6).

use std::io::Write;

use crate::leader::core::Core;
use crate::leader::link::socket::send_queue_bytes;
use crate::leader::peers::follower::FollowerHandle;
use crate::protocol::EMPTY_BLOCK;

/// The thread's life.
pub(in crate::leader) fn run(core: &Core) {
    let interval = core.config.heartbeat_interval;
    // Where the stream flows, or its writer sends heartbeats, nothing is left to be done here.
    let silent = interval + interval / 2;
    while !core.ended.wait(interval / 2) {
        let followers = core.followers.lock().clone();
        for follower in followers.iter().filter(|follower| follower.extension && !follower.has_ended()) {
            if follower.turn.silent_us() >= u64::try_from(silent.as_micros()).unwrap_or(u64::MAX) {
                beat(follower);
            }
        }
    }
}

fn beat(follower: &FollowerHandle) {
    let Some(turn) = follower.turn.try_take() else { return };
    // What is on its way says as much.
    if send_queue_bytes(&follower.socket).is_none_or(|queued| queued == 0) {
        match (&follower.socket).write(&EMPTY_BLOCK) {
            Ok(written) if written == EMPTY_BLOCK.len() => return turn.written(),
            Ok(_) => follower.disconnected("its connection took part of four bytes"),
            // Whoever writes next finds out why, if there is a reason.
            Err(_) => {}
        }
    }
    turn.give_back();
}
