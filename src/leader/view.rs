//! What a follower has, and what it takes to bring it up to a cut of the index.

use std::collections::HashMap;

use super::acks::Offer;
use super::batch::{FileRange, RangeKind};
use super::demotion::{Discarded, Missing};
use super::stream::{temporary_of, whole};
use crate::index::Version;
use crate::protocol::framing_bytes;
use crate::types::RelPath;

/// What a follower has.
pub(super) struct View(HashMap<RelPath, Held, foldhash::fast::RandomState>);

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Held {
    Exact(Version),
    /// Something under that name, but not what any version says.
    Void,
}

/// A step of catching up.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Delete(RelPath),
    Send(FileRange),
}

impl View {
    /// After a full sync the follower has the offer, less what is void.
    pub(super) fn new(offer: &Offer, void: &[bool]) -> Self {
        let held = |(file, void): (&(RelPath, Version), &bool)| {
            (file.0.clone(), if *void { Held::Void } else { Held::Exact(file.1) })
        };
        Self(offer.files.iter().zip(void).map(held).collect())
    }

    /// Of `files` the follower has those that are not among the discarded ones. Returns these too, as of the same cut.
    pub(super) fn behind(files: &[(RelPath, Version)], discarded: Discarded) -> (Self, Vec<(RelPath, Version)>) {
        let mut held: HashMap<_, _, _> =
            files.iter().map(|(path, version)| (path.clone(), Held::Exact(*version))).collect();
        let mut changes = Vec::new();
        for (path, missing) in discarded.into_files() {
            let at_cut = match held.get(&path) {
                Some(Held::Exact(version)) => *version,
                _ => Version::ABSENT,
            };
            let had = match missing {
                Missing::Tail(bytes) if at_cut.exists() && bytes <= at_cut.len => {
                    Held::Exact(Version { len: at_cut.len - bytes, ..at_cut })
                }
                _ => Held::Void,
            };
            changes.push((path.clone(), at_cut));
            held.insert(path, had);
        }
        (Self(held), changes)
    }

    /// What it takes to bring the follower to `changes`, and the view there. Deletes come first: a folder may come where a
    /// file was.
    pub(super) fn plan(&mut self, changes: Vec<(RelPath, Version)>) -> Vec<Step> {
        let at_cut: HashMap<RelPath, Version, foldhash::fast::RandomState> = changes.iter().cloned().collect();
        let mut deletes = Vec::new();
        let mut sends = Vec::new();
        let mut left: std::collections::VecDeque<_> = changes.into();
        while let Some((path, version)) = left.pop_front() {
            let held = self.0.get(&path).copied();
            if !version.exists() {
                if self.0.remove(&path).is_some() {
                    deletes.push(Step::Delete(path));
                }
                continue;
            }
            self.0.insert(path.clone(), Held::Exact(version));
            match held {
                Some(Held::Exact(had)) if had.generation == version.generation && had.len <= version.len => {
                    if had.len < version.len {
                        sends.push(Step::Send(FileRange {
                            kind: RangeKind::Append,
                            offset: had.len,
                            len: version.len - had.len,
                            ..whole(&path, version)
                        }));
                    }
                }
                // Protocol 1.0.0 cannot make an empty file: none stands for it.
                _ if version.len == 0 => deletes.extend(held.map(|_| Step::Delete(path))),
                _ => {
                    sends.push(Step::Send(whole(&path, version)));
                    // A LavinMQ follower writes the replacement to this name: what it has there is lost.
                    let Some(temporary) = temporary_of(&path) else { continue };
                    let Some(Held::Exact(had)) = self.void(&temporary) else { continue };
                    let wanted = at_cut.get(&temporary).copied();
                    deletes.push(Step::Delete(temporary.clone()));
                    // If it is among the changes and its turn is still to come, that brings it back.
                    if wanted.is_none_or(|wanted| wanted == had) {
                        left.push_back((temporary, had));
                    }
                }
            }
        }
        deletes.extend(sends);
        deletes
    }

    /// Notes that the follower's copy is spoiled; returns what it was, if it has one.
    pub(super) fn void(&mut self, path: &RelPath) -> Option<Held> {
        self.0.get_mut(path).map(|held| std::mem::replace(held, Held::Void))
    }
}

impl Step {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Delete(path) => framing_bytes(path),
            Self::Send(range) => range.action_bytes(),
        }
    }
}
