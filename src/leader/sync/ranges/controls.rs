//! What is told a follower beside the ranges. Part of [`Ranges`].

use std::io::Write;
use std::sync::atomic::Ordering;

use super::Ranges;
use crate::error::Error;
use crate::leader::batch::{Batch, FileRange, Instead, Step};
use crate::leader::link::frame::Frame;
use crate::leader::peers::gone::{broken, gone};
use crate::protocol::extension::Control;
use crate::sys::time::{Instant, SystemTime};
use crate::types::{RelPath, StreamPosition};

/// When a follower may come back after a shutdown: a leader that is started anew is there by then.
const BACK_IN_MS: u32 = 1000;

impl Ranges<'_> {
    /// Tells a follower that knows the extension where the stream is, and our clock, once a heartbeat's interval. It is not what tells that we are alive: that is done in
    /// every phase (`beats.rs`).
    pub(in crate::leader) fn beat(&mut self, frame: &mut Frame) -> Result<(), Error> {
        if !self.follower.extension || self.last_beat.elapsed() < self.core.config.heartbeat_interval {
            return Ok(());
        }
        self.last_beat = Instant::now();
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let clock_us = u64::try_from(clock.as_micros()).unwrap_or(u64::MAX);
        let beat = Control::Heartbeat { position: self.core.stream.position().0, clock_us };
        let _ = self.send_step(frame, &Step::Control(beat))?;
        frame.flush().map_err(broken)?;
        self.follower.written();
        Ok(())
    }

    /// Waits until no node can be elected for having been in sync that is about to be made to change its files in any
    /// other way than by the stream. Blocks while the coordinator cannot be reached.
    pub(in crate::leader) fn wait_out_of_sync(&self) -> Result<(), Error> {
        if self.core.commits.wait_out(self.follower) { Ok(()) } else { Err(gone()) }
    }

    /// Tells a follower that knows the extension that it is let go.
    pub(in crate::leader) fn goodbye(&mut self, frame: &mut Frame, reason: &str) -> Result<(), Error> {
        let goodbye = Control::Goodbye { back_in_ms: BACK_IN_MS, reason: reason.to_owned() };
        let _ = self.send_step(frame, &Step::Control(goodbye))?;
        frame.flush().map_err(broken)
    }

    /// Sends a follower of 1.0.0 what it gets instead of a batch.
    pub(in crate::leader) fn send_instead(
        &mut self,
        frame: &mut Frame,
        instead: &Instead,
        batch: &Batch,
    ) -> Result<(), Error> {
        let (begin, end) = (StreamPosition(batch.end - batch.bytes), StreamPosition(batch.end));
        match instead {
            Instead::Steps(steps) => {
                for step in steps {
                    let _ = self.send_step(frame, step)?;
                }
            }
            Instead::Later(path) => self.follower.void(path, begin, end),
            Instead::Now(path, steps) => {
                let mut is_whole = true;
                for step in steps {
                    match step {
                        // In the stream: if it cannot be read, that is so from here on.
                        Step::Send(range) if range.path == *path => {
                            is_whole =
                                self.send(frame, range, |done| (done == 0).then_some((begin, batch.sealed_at)))?;
                        }
                        step => drop(self.send_step(frame, step)?),
                    }
                }
                if is_whole {
                    self.follower.mended(path, begin, end);
                }
            }
        }
        self.sent(frame, batch)
    }

    /// Sends a control that stands in the stream to a follower that knows the extension.
    pub(in crate::leader) fn send_control(
        &mut self,
        frame: &mut Frame,
        control: &Control,
        batch: &Batch,
    ) -> Result<(), Error> {
        // Should it be so just now, it is asked to make durable what follows here.
        self.tell_whole(frame, StreamPosition(batch.end - batch.bytes))?;
        let instead = match &batch.instead {
            Some(Instead::Steps(steps)) => &steps[..],
            _ => &[],
        };
        if let Control::Hole { path, .. } = control
            && self.follower.spoiled.lock().contains_key(path)
        {
            // It comes whole, with its holes.
            self.tell_position(frame, batch)?;
            return self.sent(frame, batch);
        }
        // A rename or truncation of what a void range left incomplete would not make it whole.
        let spoiled = match control {
            Control::Rename { from: path, .. } | Control::Truncate { path, .. } => {
                self.follower.spoiled.lock().remove(path)
            }
            _ => None,
        };
        match (control, spoiled) {
            (Control::Rename { from, to }, Some(has)) => {
                self.rename_spoiled(frame, (from, has), to, instead)?;
                self.tell_position(frame, batch)?;
            }
            (Control::Truncate { path, .. }, Some(_)) => {
                match whole_of(path, instead) {
                    Some(range) => drop(self.send(frame, range, |_| None)?),
                    None => drop(self.send_step(frame, &Step::Control(Control::Empty(path.clone())))?),
                }
                self.tell_position(frame, batch)?;
            }
            _ => {
                // Of a copy that was not told to be whole nothing is durable that counts: its mark is still there when it answers.
                let is_told_whole = !self.follower.owed_position.load(Ordering::Relaxed);
                if *control == Control::MakeDurable && is_told_whole {
                    self.follower.asking_for_durable(StreamPosition(batch.end));
                }
                let _ = self.send_step(frame, &Step::Control(control.clone()))?;
            }
        }
        self.sent(frame, batch)
    }

    /// Renames a spoiled file. It may hold what was committed, so it is made whole under the name that it has, and then renamed: should the power go, there is one of
    /// the two. If it cannot be read, what the follower has of it is renamed as it is, and stays spoiled. Where it may have nothing there is no rename that fits: what the
    /// host has taken away meanwhile goes, and who lacks what only cannot be read is let go.
    fn rename_spoiled(
        &mut self,
        frame: &mut Frame,
        (from, has): (&RelPath, bool),
        to: &RelPath,
        instead: &[Step],
    ) -> Result<(), Error> {
        let content = whole_of(to, instead);
        let is_whole = match content {
            Some(range) => self.send_as(frame, range, from, |_| None)?,
            None => self.send_step(frame, &Step::Control(Control::Empty(from.clone())))?.is_ok(),
        };
        if !is_whole && !has && self.core.unreadable.is_noted(to) {
            return self.let_go(to.clone());
        }
        let step = if is_whole || has {
            Step::Control(Control::Rename { from: from.clone(), to: to.clone() })
        } else {
            Step::Delete(from.clone())
        };
        let _ = self.send_step(frame, &step)?;
        // It was made anew there, with none of them.
        self.core.looks.forget(to);
        if !is_whole {
            // Also if that was noted under this name while it could not be sent.
            self.follower.spoiled.lock().insert(to.clone(), has);
        }
        Ok(())
    }

    /// Tells a follower that counts positions the one after `batch`, which was not sent as it counts.
    pub(super) fn tell_position(&mut self, frame: &mut Frame, batch: &Batch) -> Result<(), Error> {
        // Not the first one, which says more.
        if self.follower.extension && !self.follower.owed_position.load(Ordering::Relaxed) {
            let _ = self.send_step(frame, &Step::Control(Control::Position(batch.end)))?;
        }
        Ok(())
    }

    /// Tells a follower that it is whole, and at this position, as soon as that is so: what was void when it attached is made up for by
    /// what is in its queue.
    pub(in crate::leader) fn tell_whole(&mut self, frame: &mut Frame, position: StreamPosition) -> Result<(), Error> {
        let owed = &self.follower.owed_position;
        if !owed.load(Ordering::Relaxed) || !self.follower.is_whole_at(position) {
            return Ok(());
        }
        owed.store(false, Ordering::Relaxed);
        let _ = self.send_step(frame, &Step::Control(Control::Position(position.0)))?;
        frame.flush().map_err(broken)?;
        self.follower.written();
        Ok(())
    }
}

/// All of a file, as it goes instead of a control; `None`: it is empty, which 1.0.0 has no word for.
fn whole_of<'a>(path: &RelPath, instead: &'a [Step]) -> Option<&'a FileRange> {
    instead.iter().find_map(|step| match step {
        Step::Send(range) if range.path == *path => Some(range),
        _ => None,
    })
}
