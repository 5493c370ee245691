//! Joining: what brings a follower from whatever it has to the stream, without the leader noticing.
//!
//! A joiner is a [`View`]: for each file, what the follower has of it. Nothing is queued for it in memory; everything is
//! read from disk, up to the lengths of a cut of the index, with no lock held. In order:
//!
//! 1. *Two rounds of full sync*, both listing the same files. So many followers at a time read or move content (`admission.rs`); one does
//!    not hold its slot while the follower thinks, nor while it takes nothing.
//! 2. A *probe*, because protocol 1.0.0 acknowledges nothing of a full sync: its acknowledgement says that all before it is
//!    dealt with.
//! 3. *Catch-up rounds*, see `catch_up.rs`.
//!
//! A file may be replaced, deleted or cut short between the moment of a cut and the moment its bytes are read. Then what the
//! follower was sent of it is *void*. If the index knows a newer generation, a later round (or the stream) brings that. If
//! the index still believes in the old one, the file shrank behind the leader's back: it is announced anew from what is on
//! disk, which mends all followers at once. Content whose length was declared is padded with zeros in the first round: the second does not list it, and the
//! follower deletes it. In the second, where nothing would, the follower is let go.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::Error;
use crate::index::Version;
use crate::leader::core::Core;
use crate::leader::link::acks::{Offer, Rounds};
use crate::leader::link::frame::Frame;
use crate::leader::peers::admission::{InSlot, wait_admitted};
use crate::leader::peers::follower::FollowerHandle;
use crate::leader::peers::gone::{broken, gone};
use crate::leader::peers::status::{EvictionReason, FollowerState};
use crate::leader::stream::whole;
use crate::leader::sync::catch_up::{CatchUp, CaughtUp};
use crate::leader::sync::ranges::Ranges;
use crate::leader::sync::view::View;
use crate::protocol::{ActionKind, PROBE_NAME, Sha1Sum, encode_action_header, write_end, write_list_entry};
use crate::sys::channel;
use crate::sys::time::Instant;
use crate::types::RelPath;

pub(in crate::leader) struct Joiner<'a> {
    core: &'a Arc<Core>,
    follower: &'a Arc<FollowerHandle>,
    frame: &'a mut Frame,
    rounds: Rounds,
    ranges: Ranges<'a>,
}
impl<'a> Joiner<'a> {
    pub(in crate::leader) fn new(
        core: &'a Arc<Core>,
        follower: &'a Arc<FollowerHandle>,
        frame: &'a mut Frame,
        rounds: Rounds,
    ) -> Self {
        Self { core, follower, frame, rounds, ranges: Ranges::in_bulk(core, follower) }
    }

    /// Blocks until the follower is attached.
    pub(in crate::leader) fn join(mut self) -> Result<CaughtUp, Error> {
        wait_admitted(&self.core.config, &self.core.history, self.follower)?;
        self.ranges.wait_out_of_sync()?;
        let slot = self.turn()?;
        let begun = Instant::now();
        let joining = self.core.stream.begin_join();
        let mut all = self.core.stream.all();
        let offer = Arc::new(Offer::new(std::mem::take(&mut all.files)));
        self.core.hashes.retain(|path| offer.contains(path));
        let view = self.full_sync(slot, &offer)?;
        drop(offer);
        self.probe()?;
        let Self { core, follower, frame, rounds, ranges } = self;
        // The ack thread reads acknowledgements from here on.
        drop(rounds);
        let synced = &follower.sync;
        log::info!(
            "follower {} at {}: full sync done: {} files, {} bytes in {:.1} s",
            follower.id,
            follower.address,
            synced.files_sent.load(Ordering::Relaxed),
            synced.bytes_sent.load(Ordering::Relaxed),
            begun.elapsed().as_secs_f64(),
        );
        CatchUp {
            core,
            follower,
            frame,
            ranges,
            view,
            ack_timeout: Some(core.config.sync_timeout),
            joining,
            owed: BTreeSet::new(),
            items: Vec::new(),
        }
        .run(all)
    }

    /// Waits for a slot.
    fn turn(&self) -> Result<InSlot<'a>, Error> {
        self.follower.set_state(FollowerState::Waiting);
        let slot = self.core.admission.syncs.acquire(self.follower)?;
        self.follower.set_state(FollowerState::Syncing);
        Ok(slot)
    }

    fn full_sync(&mut self, slot: InSlot<'a>, offer: &Arc<Offer>) -> Result<View, Error> {
        let mut slot = Some(slot);
        let mut void = vec![false; offer.files.len()];
        for is_last in [false, true] {
            let turn = match slot.take() {
                Some(turn) => turn,
                None => self.turn()?,
            };
            self.rounds.offers.send(offer.clone()).map_err(|_| gone())?;
            self.list(offer, &mut void)?;
            drop(turn);
            let requests = self.requests()?;
            if requests.is_empty() {
                continue;
            }
            let _turn = self.turn()?;
            for at in requests {
                let (path, version) = &offer.files[at];
                void[at] |= !self.content(path, *version, is_last)?;
            }
            self.frame.flush().map_err(broken)?;
        }
        Ok(View::new(offer, &void, false))
    }

    /// Lists all that is not void. A follower deletes what is not listed.
    fn list(&mut self, offer: &Offer, void: &mut [bool]) -> Result<(), Error> {
        for ((path, version), void) in offer.files.iter().zip(void) {
            if *void {
                continue;
            }
            match self.sum(path, *version)? {
                Some(sum) => write_list_entry(self.frame, path, &sum).map_err(broken)?,
                None => {
                    *void = true;
                    self.ranges.joins_without(path);
                    self.ranges.mend(path, *version);
                }
            }
        }
        write_end(self.frame).and_then(|()| self.frame.flush()).map_err(broken)
    }

    fn sum(&self, path: &RelPath, version: Version) -> Result<Option<Sha1Sum>, Error> {
        let (core, follower) = (self.core, self.follower);
        let mut ended = false;
        let mut go_on = |bytes| {
            follower.sync.bytes_hashed.fetch_add(bytes, Ordering::Relaxed);
            ended = !core.admission.pace(bytes, follower);
            if ended { Err(ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
        };
        let open = || core.open_announced(path, version.generation, version.len);
        // Asked before it is read: what is written in place after that gets another number.
        let generation = version.generation.max(core.stream.last_rewrite(version.generation));
        let (sum_of, notes) = (Version { generation, ..version }, core.notes(path, version));
        match core.hashes.sum(open, path, sum_of, notes, &mut go_on) {
            Ok(sum) => Ok(sum),
            Err(_) if ended => Err(gone()),
            // 1.0.0 has no words for a file of which nothing is known.
            Err(error) => {
                core.cannot_read(path, &error);
                Ok(None)
            }
        }
    }

    /// The round's requests, in the order asked. The deadline begins anew with each.
    fn requests(&mut self) -> Result<Vec<usize>, Error> {
        let timeout = self.core.config.sync_timeout;
        let mut requests = Vec::new();
        loop {
            match self.rounds.requests.recv_timeout(timeout) {
                Ok(Some(at)) => requests.push(at as usize),
                Ok(None) => break,
                Err(channel::RecvTimeoutError::Disconnected) => return Err(gone()),
                Err(channel::RecvTimeoutError::Timeout) => {
                    self.follower.evict_at(EvictionReason::NoSyncProgress, self.core.stream.position());
                    return Err(gone());
                }
            }
        }
        self.follower.sync.files_requested.fetch_add(requests.len() as u64, Ordering::Relaxed);
        Ok(requests)
    }

    /// Sends size and content; `false`: it is void.
    fn content(&mut self, path: &RelPath, version: Version, is_last: bool) -> Result<bool, Error> {
        let file = self.ranges.open(path, version)?;
        let size = if file.is_some() { version.len } else { 0 };
        let declared = i64::try_from(size).expect("files are shorter than 2^63 bytes");
        self.frame.write_all(&declared.to_le_bytes()).map_err(broken)?;
        let Some(mut file) = file else {
            self.ranges.joins_without(path);
            self.ranges.mend(path, version);
            self.follower.sync.files_sent.fetch_add(1, Ordering::Relaxed);
            return Ok(false);
        };
        let mut is_whole = true;
        for (_, len) in whole(path, version).parts(self.ranges.piece_bytes()) {
            if is_whole && let Err(error) = self.ranges.read(&mut file, len)? {
                is_whole = false;
                self.ranges.void(path, version, &error);
                if is_last {
                    return self.ranges.let_go(path.clone());
                }
            }
            if !is_whole {
                self.ranges.pad(len);
            }
            self.ranges.write(self.frame)?;
        }
        self.follower.sync.files_sent.fetch_add(1, Ordering::Relaxed);
        Ok(is_whole)
    }

    /// Waits until the follower has dealt with the full sync.
    fn probe(&mut self) -> Result<(), Error> {
        let path = RelPath::new(PROBE_NAME)?;
        let mut header = Vec::new();
        encode_action_header(&mut header, &path, ActionKind::Delete);
        self.follower.sending(header.len() as u64, None, Instant::now());
        self.frame.write_all(&header).and_then(|()| self.frame.flush()).map_err(broken)?;
        Ok(())
    }
}
