//! What discarded batches would have changed, folded into one map: for each file, what of the follower's is still in it.
//!
//! A fold is a function from the follower's files to those at its end. Of a file it says that nothing of the follower's is
//! left, or which of its files it was, under whichever name, how much of that was cut off, and how many bytes came after it.
//! One fold after another is a fold ([`Discarded::merge`]); so a rename stays a rename, a truncation a truncation, and no more
//! has to be sent than was discarded. Pure, and no larger than the number of files changed.

use crate::leader::batch::{Batch, Body, ControlAction, RangeKind};
use crate::protocol::extension::Control;
use crate::protocol::{ActionDecoder, ActionKind, Event};
use crate::sys::hash::HashMap;
use crate::types::RelPath;

/// By the files' names at the end; of names that are not here nothing has changed.
#[derive(Debug, Default, PartialEq)]
pub(in crate::leader) struct Discarded(pub(in crate::leader) HashMap<RelPath, Missing>);

/// What a follower lacks of a file.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::leader) enum Missing {
    /// This many bytes were appended, and nothing else happened to the file.
    Tail(u64),
    /// Nothing of what it has under this name is in the file, if there is one.
    Void,
    /// It has the file under another name, or longer.
    Of(Origin),
}

/// Where the beginning of a file is from.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::leader) struct Origin {
    /// The name of the follower's file; among the folded ones, whatever has become of that name.
    pub(in crate::leader) from: RelPath,
    /// If not all of that file is in this one.
    pub(in crate::leader) cut: Option<Cut>,
    /// Bytes after it.
    pub(in crate::leader) tail: u64,
}

/// Of `had` bytes, only the first `kept`, which are fewer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::leader) struct Cut {
    had: u64,
    kept: u64,
}

impl Missing {
    /// `None`: of nothing that the follower has.
    pub(in crate::leader) fn origin(self, path: &RelPath) -> Option<Origin> {
        match self {
            Self::Tail(tail) => Some(Origin { from: path.clone(), cut: None, tail }),
            Self::Void => None,
            Self::Of(origin) => Some(origin),
        }
    }
}

impl Origin {
    /// This, after `first` made the file that it is of. `None`: lengths do not fit, and nothing is known.
    fn after(self, first: Self) -> Option<Self> {
        let Self { cut, tail, .. } = self;
        let Some(Cut { had, kept }) = cut else { return Some(Self { tail: first.tail + tail, ..first }) };
        // How much of the file that `first` made was from before.
        let beginning = had.checked_sub(first.tail)?;
        if kept >= beginning {
            return Some(Self { tail: kept - beginning + tail, ..first });
        }
        let had = first.cut.map_or(beginning, |cut| cut.had);
        Some(Self { from: first.from, cut: Some(Cut { had, kept }), tail })
    }

    fn missing(self, path: &RelPath) -> Missing {
        if self.cut.is_none() && self.from == *path { Missing::Tail(self.tail) } else { Missing::Of(self) }
    }
}

impl Discarded {
    /// Adds the batch that follows those added before.
    pub(in crate::leader) fn add(&mut self, batch: &Batch) {
        match &batch.body {
            Body::Actions(actions) => actions.with_raw(|raw| self.add_actions(raw)),
            Body::File(range) => self.note(
                &range.path,
                match range.kind {
                    RangeKind::Append => Missing::Tail(range.len),
                    RangeKind::Replace | RangeKind::Patch => Missing::Void,
                },
            ),
            Body::Control(action) => self.add_control(action),
        }
    }

    fn add_actions(&mut self, mut raw: &[u8]) {
        let mut decoder = ActionDecoder::new();
        while let Some(event) = decoder.next(&mut raw).expect("our own actions") {
            if let Event::Action { path, kind } = event {
                let missing = match kind {
                    ActionKind::Append(bytes) => Missing::Tail(bytes),
                    ActionKind::Replace(_) | ActionKind::Delete => Missing::Void,
                };
                self.note(&path, missing);
            }
        }
    }

    fn add_control(&mut self, action: &ControlAction) {
        match &action.control {
            Control::Rename { from, to } => {
                let moved = Missing::Of(Origin { from: from.clone(), cut: None, tail: 0 });
                self.merge(Self([(to.clone(), moved), (from.clone(), Missing::Void)].into_iter().collect()));
            }
            Control::Truncate { path, len } => {
                let cut = Some(Cut { had: action.had, kept: *len });
                self.note(path, Missing::Of(Origin { from: path.clone(), cut, tail: 0 }));
            }
            Control::Empty(path) => self.note(path, Missing::Void),
            // The others change no file.
            _ => {}
        }
    }

    /// Adds what was discarded after all that is here.
    pub(in crate::leader) fn merge(&mut self, later: Self) {
        let merged: Vec<_> = later.0.into_iter().map(|(path, missing)| (self.then(&path, missing), path)).collect();
        self.0.extend(merged.into_iter().map(|(missing, path)| (path, missing)));
    }

    fn note(&mut self, path: &RelPath, missing: Missing) {
        match (self.0.get_mut(path), missing) {
            // Most of it all.
            (Some(Missing::Tail(bytes)), Missing::Tail(more)) => *bytes += more,
            (_, missing) => {
                let missing = self.then(path, missing);
                self.0.insert(path.clone(), missing);
            }
        }
    }

    /// What is missing of a file, of which this was missing of what it was by now.
    fn then(&self, path: &RelPath, missing: Missing) -> Missing {
        let Some(origin) = missing.origin(path) else { return Missing::Void };
        let whole = || Origin { from: origin.from.clone(), cut: None, tail: 0 };
        let first = self.0.get(&origin.from).map_or_else(|| Some(whole()), |first| first.clone().origin(&origin.from));
        first.and_then(|first| origin.after(first)).map_or(Missing::Void, |origin| origin.missing(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Version;
    use crate::leader::batch::{FileRange, Step};
    use crate::leader::sync::view::View;
    use crate::protocol::encode_action_header;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Change {
        Append(usize, u8),
        AppendRange(usize, u8),
        Replace(usize, u8),
        Delete(usize),
        Empty(usize),
        Rename(usize, usize),
        /// To a length that is this part of 256.
        Truncate(usize, u8),
    }

    /// Files by name: generation, content.
    type Files = BTreeMap<RelPath, (u64, Vec<u8>)>;

    fn name(at: usize) -> RelPath {
        RelPath::new(["log", "log.1", "log.2", "folder/a", "folder/b"][at]).unwrap()
    }

    fn action(at: u64, path: &RelPath, kind: ActionKind, content: &[u8]) -> Batch {
        let mut raw = Vec::new();
        encode_action_header(&mut raw, path, kind);
        raw.extend_from_slice(content);
        Batch::actions(at, raw)
    }

    fn control(at: u64, control: Control, had: usize) -> Batch {
        Batch::control(at, ControlAction { control, had: had as u64, instead: Vec::new() })
    }

    /// Does it to the leader's files; returns the batch that says so, and how many bytes of content are in it.
    fn change(files: &mut Files, change: &Change, at: u64) -> Option<(Batch, usize)> {
        let bytes =
            |len: u8| (0..=len).map(|byte| byte.wrapping_mul(31) ^ u8::try_from(at).unwrap()).collect::<Vec<_>>();
        match *change {
            Change::Append(file, len) | Change::AppendRange(file, len) => {
                let (path, bytes) = (name(file), bytes(len));
                let len = bytes.len() as u64;
                let (generation, content) = files.entry(path.clone()).or_insert((at, Vec::new()));
                let offset = content.len() as u64;
                content.extend_from_slice(&bytes);
                let batch = if let Change::Append(..) = change {
                    action(at, &path, ActionKind::Append(len), &bytes)
                } else {
                    Batch::file(at, FileRange { path, generation: *generation, kind: RangeKind::Append, offset, len })
                };
                Some((batch, bytes.len()))
            }
            Change::Replace(file, len) => {
                let (path, bytes) = (name(file), bytes(len));
                let batch = action(at, &path, ActionKind::Replace(bytes.len() as u64), &bytes);
                let len = bytes.len();
                files.insert(path, (at, bytes));
                Some((batch, len))
            }
            Change::Delete(file) => {
                files.remove(&name(file))?;
                Some((action(at, &name(file), ActionKind::Delete, b""), 0))
            }
            Change::Empty(file) => {
                let had = files.insert(name(file), (at, Vec::new())).map_or(0, |was| was.1.len());
                Some((control(at, Control::Empty(name(file)), had), 0))
            }
            Change::Rename(from, to) if from == to => None,
            Change::Rename(from, to) => {
                let file = files.remove(&name(from))?;
                let had = file.1.len();
                files.insert(name(to), file);
                Some((control(at, Control::Rename { from: name(from), to: name(to) }, had), 0))
            }
            Change::Truncate(file, part) => {
                let (generation, content) = files.get_mut(&name(file)).filter(|file| !file.1.is_empty())?;
                let had = content.len();
                content.truncate(had * usize::from(part) / 256);
                *generation = at;
                let len = content.len() as u64;
                Some((control(at, Control::Truncate { path: name(file), len }, had), 0))
            }
        }
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let file = || 0..5_usize;
        prop_oneof![
            4 => (file(), any::<u8>()).prop_map(|(file, len)| Change::Append(file, len)),
            1 => (file(), any::<u8>()).prop_map(|(file, len)| Change::AppendRange(file, len)),
            1 => (file(), any::<u8>()).prop_map(|(file, len)| Change::Replace(file, len)),
            1 => file().prop_map(Change::Delete),
            1 => file().prop_map(Change::Empty),
            4 => (file(), file()).prop_map(|(from, to)| Change::Rename(from, to)),
            3 => (file(), any::<u8>()).prop_map(|(file, part)| Change::Truncate(file, part)),
        ]
    }

    /// Takes a step as a follower does; returns the bytes of content it brings.
    fn step(follower: &mut Files, step: Step, leader: &Files) -> u64 {
        match step {
            Step::Delete(path) => drop(follower.remove(&path)),
            Step::Control(Control::Rename { from, to }) => {
                let file = follower.remove(&from).expect("a file to rename is there");
                follower.insert(to, file);
            }
            Step::Control(Control::Truncate { path, len }) => {
                let content = &mut follower.get_mut(&path).expect("a file to cut is there").1;
                assert!(len <= content.len() as u64, "it is long enough");
                content.truncate(usize::try_from(len).unwrap());
            }
            Step::Control(Control::Empty(path)) => drop(follower.insert(path, (0, Vec::new()))),
            Step::Control(control) => panic!("{control:?}"),
            Step::Send(range) => {
                let file = follower.entry(range.path.clone()).or_default();
                if range.kind == RangeKind::Replace {
                    file.1.clear();
                }
                assert_eq!(file.1.len() as u64, range.offset, "{} is appended to where it ends", range.path);
                file.1.extend_from_slice(&leader[&range.path].1[file.1.len()..]);
                assert_eq!(file.1.len() as u64, range.offset + range.len);
                return range.len;
            }
        }
        0
    }

    /// As a follower shows them: to one that knows only 1.0.0, an empty file is none.
    fn shown(files: &Files, extension: bool) -> BTreeMap<&RelPath, &[u8]> {
        let files = files.iter().map(|(path, file)| (path, &file.1[..]));
        files.filter(|(_, content)| extension || !content.is_empty()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn no_more_moves_than_was_discarded(
            changes in prop::collection::vec(any_change(), 0..50), delivered in 0..30_usize, split in 0..50_usize,
            extension in any::<bool>(),
        ) {
            let (mut leader, mut follower) = (Files::new(), Files::new());
            let (mut discarded, mut first, mut later) = (Discarded::default(), Discarded::default(), Discarded::default());
            let mut bytes = 0;
            for (at, one) in changes.iter().enumerate() {
                let batch = change(&mut leader, one, at as u64 + 1);
                if at < delivered {
                    follower = leader.clone();
                } else if let Some((batch, of_content)) = batch {
                    discarded.add(&batch);
                    (if at < split { &mut first } else { &mut later }).add(&batch);
                    bytes += of_content as u64;
                }
            }
            first.merge(later);
            prop_assert_eq!(&first, &discarded, "in parts");
            let version = |file: &(u64, Vec<u8>)| Version { generation: file.0, len: file.1.len() as u64 };
            let at_cut: Vec<_> = leader.iter().map(|(path, file)| (path.clone(), version(file))).collect();
            let (mut view, changes) = View::behind(&at_cut, discarded, extension);
            let moved: u64 = view.plan_of(changes).into_iter().map(|one| {
                assert!(extension || !matches!(one, Step::Control(_)), "{one:?}");
                step(&mut follower, one, &leader)
            }).sum();
            prop_assert_eq!(shown(&follower, extension), shown(&leader, extension));
            prop_assert!(view.plan_of(at_cut).is_empty(), "the view is at the cut");
            prop_assert!(!extension || moved <= bytes, "{} bytes moved, and {} were discarded", moved, bytes);
        }
    }
}
