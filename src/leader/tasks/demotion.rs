//! Demoting a follower: from a full queue, or from too far behind, back to catching up from disk, on the same connection
//! ([`OnFull::CatchUp`](crate::config::OnFull::CatchUp)).
//!
//! 1. Whoever pushes finds the queue full. The follower leaves the stream at once (`FollowerHandle::demoted`), and what would
//!    have come next is kept aside (`Lost` in `stream/`), so that nothing is missing up to the cut:
//! 2. The *demotion thread* (`demotion`, one a leader, only with this setting) makes a cut of the index, takes the queue off the
//!    list at that very moment, and empties it, whatever the writer is blocked in: memory is given back now and not
//!    when the follower moves. Of the discarded batches only [`Discarded`] is left: how much of which file.
//! 3. The writer thread finishes the batch it is at, takes no more, and waits for the [`Demotion`]. The files as of the cut,
//!    less what was discarded, are what the follower has: from there it goes on as after a full sync (`sync/catch_up.rs`).
//!
//! So a batch is either written or discarded as a whole, and what is discarded is discarded by this thread alone, in order:
//! the writer looks at the flag and takes a batch in one step (`FollowerHandle::take`), and of this thread's first look into
//! the queue no such step is under way any more (`FollowerHandle::taken_over`). In order, because a rename stays a rename
//! then, and a truncation a truncation (`stream/discarded.rs`).
//!
//! Followers whose queues are full at the same time share one cut. The thread takes the stream's locks (`cut`, `attached`,
//! `ordered`), none while it folds, logs or hands over; it ends with the leader thread.

use std::sync::Arc;

use crate::leader::core::Core;
use crate::leader::peers::status::{EvictionReason, FollowerStatus};
use crate::leader::stream::discarded::Discarded;
use crate::leader::stream::{Changes, Demotion, Unqueued};

/// The demotion thread's life: ends when the stream is stopped.
pub(in crate::leader) fn run(core: &Core) {
    let stream = &core.stream;
    while stream.wait_to_demote() {
        let (unqueued, at_cut) = stream.unqueue_lost();
        let at_cut = Arc::new(at_cut);
        for unqueued in unqueued {
            core.commits.joins(&unqueued.follower);
            demote(unqueued, at_cut.clone());
        }
        // Who waits for followers does not wait for these.
        core.progress.changed();
    }
}

fn demote(unqueued: Unqueued, at_cut: Arc<Changes>) {
    let Unqueued { follower, status, reason, batches, lost, demotion, sender } = unqueued;
    let mut discarded = Discarded::default();
    follower.taken_over();
    for batch in batches.try_iter() {
        discarded.add(&batch);
        follower.queue.remove(batch.cost());
    }
    for batch in lost {
        discarded.add(&batch);
    }
    log::warn!("{}", line(&status, &reason, discarded.0.len()));
    // Fails if the connection has ended meanwhile.
    let _ = demotion.send(Demotion { at_cut, discarded });
    drop(sender);
}

/// Like an eviction's.
fn line(status: &FollowerStatus, reason: &EvictionReason, files: usize) -> String {
    let lag = match (status.lag_bytes, status.lag) {
        (Some(bytes), Some(time)) => format!("{bytes} bytes / {:.3} s", time.as_secs_f64()),
        _ => "unknown".to_owned(),
    };
    format!(
        "demoted follower: {reason}; address {}, id {}, {}, lag {lag}, queue {} batches / {} bytes; it catches up from disk, with \
         {files} files to begin with",
        status.address, status.id, status.state, status.queued_batches, status.queued_bytes
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Version;
    use crate::leader::batch::{Batch, Body, Buffers, FileRange, RangeKind, Step};
    use crate::leader::stream::discarded::Missing;
    use crate::leader::sync::view::View;
    use crate::protocol::{ActionKind, BlockEncoder, encode_action_header};
    use crate::types::RelPath;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Change {
        Append(u8, u8),
        /// By reference.
        AppendRange(u8, u8),
        Replace(u8, u8),
        ReplaceRange(u8, u8),
        Delete(u8),
        /// Makes an empty file of it, where there is none or one that is empty: nothing of that is in the stream.
        Empty(u8),
    }

    /// Files by name: generation, content. What is empty stands for what is not there.
    type Files = BTreeMap<RelPath, (u64, Vec<u8>)>;

    fn name(name: u8) -> RelPath {
        RelPath::new(&format!("f{name}")).unwrap()
    }

    /// Does it to the leader's files, and returns the batch that says so.
    fn change(files: &mut Files, change: &Change, at: u64) -> Option<Batch> {
        let (Change::Append(file, len)
        | Change::AppendRange(file, len)
        | Change::Replace(file, len)
        | Change::ReplaceRange(file, len)) = change
        else {
            return without_content(files, change, at);
        };
        let path = name(*file);
        let bytes: Vec<u8> = (0..=*len).map(|byte| byte ^ u8::try_from(at % 251).unwrap()).collect();
        let bytes_len = bytes.len() as u64;
        let append = matches!(change, Change::Append(..) | Change::AppendRange(..));
        let entry = files.entry(path.clone()).or_insert((at, Vec::new()));
        let offset = if append { entry.1.len() as u64 } else { 0 };
        if append {
            entry.1.extend_from_slice(&bytes);
        } else {
            *entry = (at, bytes.clone());
        }
        let generation = entry.0;
        let kind = if append { RangeKind::Append } else { RangeKind::Replace };
        Some(match change {
            Change::AppendRange(..) | Change::ReplaceRange(..) => {
                Batch::file(at, FileRange { path, generation, kind, offset, len: bytes_len })
            }
            _ => {
                let kind = if append { ActionKind::Append(bytes_len) } else { ActionKind::Replace(bytes_len) };
                let mut raw = Vec::new();
                encode_action_header(&mut raw, &path, kind);
                raw.extend_from_slice(&bytes);
                Batch::actions(at, raw)
            }
        })
    }

    fn without_content(files: &mut Files, change: &Change, at: u64) -> Option<Batch> {
        match change {
            Change::Empty(file) => {
                let path = name(*file);
                if files.get(&path).is_none_or(|file| file.1.is_empty()) {
                    files.insert(path, (at, Vec::new()));
                }
                None
            }
            Change::Delete(file) => {
                let path = name(*file);
                files.remove(&path)?;
                let mut raw = Vec::new();
                encode_action_header(&mut raw, &path, ActionKind::Delete);
                Some(Batch::actions(at, raw))
            }
            _ => unreachable!("it has content"),
        }
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let file = || 0..5_u8;
        prop_oneof![
            4 => (file(), any::<u8>()).prop_map(|(file, len)| Change::Append(file, len)),
            2 => (file(), any::<u8>()).prop_map(|(file, len)| Change::AppendRange(file, len)),
            1 => (file(), any::<u8>()).prop_map(|(file, len)| Change::Replace(file, len)),
            1 => (file(), any::<u8>()).prop_map(|(file, len)| Change::ReplaceRange(file, len)),
            2 => file().prop_map(Change::Delete),
            1 => file().prop_map(Change::Empty),
        ]
    }

    fn not_empty(files: &Files) -> BTreeMap<&RelPath, &[u8]> {
        files.iter().filter(|(_, file)| !file.1.is_empty()).map(|(path, file)| (path, &file.1[..])).collect()
    }

    proptest! {
        /// Whatever was delivered and whatever discarded, whoever discarded it and in whichever form: the steps planned from
        /// the view bring the follower to the cut.
        #[test]
        fn what_is_discarded_is_made_up_for(
            changes in prop::collection::vec(any_change(), 0..60),
            delivered in 0..60_usize,
            by_writer in any::<u64>(),
        ) {
            let mut leader = Files::new();
            let mut follower = Files::new();
            let (mut discarded, mut by_the_writer) = (Discarded::default(), Discarded::default());
            for (at, one) in changes.iter().enumerate() {
                let batch = change(&mut leader, one, at as u64 + 1);
                if at < delivered {
                    follower = leader.clone();
                } else if let Some(batch) = batch {
                    if let (true, Body::Actions(actions)) = (at % 2 == 0, &batch.body) {
                        actions.blocks(&mut BlockEncoder::default(), &Buffers::default());
                    }
                    let writers = by_writer >> (at % 64) & 1 == 1;
                    (if writers { &mut by_the_writer } else { &mut discarded }).add(&batch);
                }
            }
            discarded.merge(by_the_writer);
            let version = |file: &(u64, Vec<u8>)| Version { generation: file.0, len: file.1.len() as u64 };
            let at_cut: Vec<_> = leader.iter().map(|(path, file)| (path.clone(), version(file))).collect();
            let (mut view, changes) = View::behind(&at_cut, discarded, false);
            for step in view.plan_of(changes) {
                match step {
                    Step::Delete(path) => drop(follower.remove(&path)),
                    Step::Control(control) => panic!("{control:?}"),
                    Step::Send(range) => {
                        let content = &leader[&range.path].1;
                        let offset = usize::try_from(range.offset).unwrap();
                        prop_assert_eq!(range.offset + range.len, content.len() as u64);
                        let file = follower.entry(range.path.clone()).or_default();
                        match range.kind {
                            RangeKind::Append => prop_assert_eq!(file.1.len(), offset, "{}", range.path),
                            RangeKind::Replace => file.1.clear(),
                            RangeKind::Patch => panic!("nothing to patch"),
                        }
                        file.1.extend_from_slice(&content[offset..]);
                    }
                }
            }
            prop_assert_eq!(not_empty(&follower), not_empty(&leader));
            prop_assert!(view.plan_of(at_cut).is_empty(), "the view is at the cut");
        }
    }

    #[test]
    fn only_appends_leave_something_to_build_on() {
        let mut raw = Vec::new();
        for (file, kind) in [
            (0, ActionKind::Append(3)),
            (1, ActionKind::Append(4)),
            (1, ActionKind::Delete),
            (0, ActionKind::Append(5)),
            (1, ActionKind::Append(6)),
        ] {
            encode_action_header(&mut raw, &name(file), kind);
            raw.resize(raw.len() + usize::try_from(kind.payload_bytes()).unwrap(), b'x');
        }
        let mut discarded = Discarded::default();
        discarded.add(&Batch::actions(1, raw));
        assert_eq!(discarded.0.get(&name(0)), Some(&Missing::Tail(8)));
        assert_eq!(discarded.0.get(&name(1)), Some(&Missing::Void));
    }
}
