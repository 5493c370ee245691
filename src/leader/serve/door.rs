//! Waiting for a leader that is still reading its directory: see [`Opening`](crate::leader::Opening).

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::Error;
use crate::leader::batch::Step;
use crate::leader::core::Core;
use crate::leader::link::frame::Frame;
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::gone::{broken, gone};
use crate::leader::sync::ranges::Ranges;
use crate::protocol::extension::Control;
use crate::sys::time::Instant;

/// How often who waits looks whether its follower is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Waits until the directory is read. Fails if that is given up, or the follower ends first.
pub(in crate::leader) fn wait_at_door(
    core: &Arc<Core>,
    follower: &Arc<FollowerHandle>,
    frame: &mut Frame,
) -> Result<(), Error> {
    if !core.door.is_open() {
        wait(core, follower, frame)?;
    }
    core.was_joined.store(true, Ordering::SeqCst);
    Ok(())
}

fn wait(core: &Arc<Core>, follower: &Arc<FollowerHandle>, frame: &mut Frame) -> Result<(), Error> {
    let FollowerHandle { id, address, .. } = &**follower;
    log::info!("follower {id} at {address} waits until the directory is read");
    let every = core.config.heartbeat_interval;
    let mut told: Option<Instant> = None;
    loop {
        if follower.extension && told.is_none_or(|told| told.elapsed() >= every) {
            let opening = Control::Opening(core.door.files.load(Ordering::Relaxed));
            let _ = Ranges::new(core, follower).send_step(frame, &Step::Control(opening))?;
            frame.flush().map_err(broken)?;
            follower.written();
            told = Some(Instant::now());
        }
        match core.door.wait(every.min(LOOK_EVERY)) {
            Some(true) => return Ok(()),
            None if !follower.has_ended() => {}
            _ => return Err(gone()),
        }
    }
}
