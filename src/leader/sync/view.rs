//! What a follower has, and what it takes to bring it up to a cut of the index.

use std::collections::BTreeMap;

use crate::index::Version;
use crate::leader::batch::{FileRange, RangeKind, Step};
use crate::leader::link::acks::Offer;
use crate::leader::stream::{Changes, Rewritten, temporary_of, whole};
use crate::leader::sync::moves::{in_order, is_at_or_below};
use crate::protocol::extension::Control;
use crate::sys::hash::{HashMap, HashSet};
use crate::types::RelPath;

/// What a follower has.
pub(in crate::leader) struct View {
    held: Files<Held>,
    /// Whether it knows the extension, so that renames and empty files can be told.
    extension: bool,
}

type Files<T> = HashMap<RelPath, T>;

#[derive(Clone, Copy, PartialEq)]
pub(in crate::leader) enum Held {
    Exact(Version),
    /// Something under that name, but not what any version says.
    Void,
}

impl View {
    /// After a full sync the follower has the offer, less what is void.
    pub(in crate::leader) fn new(offer: &Offer, void: &[bool], extension: bool) -> Self {
        let held = |(file, void): (&(RelPath, Version), &bool)| {
            (file.0.clone(), if *void { Held::Void } else { Held::Exact(file.1) })
        };
        Self { held: offer.files.iter().zip(void).map(held).collect(), extension }
    }

    /// What a follower that knows the extension has after a sync of these.
    pub(in crate::leader) fn of(files: &[(RelPath, Version)]) -> Self {
        let held = files.iter().map(|(path, version)| (path.clone(), Held::Exact(*version)));
        Self { held: held.collect(), extension: true }
    }

    /// What it takes to bring the follower to `changes`, and the view there, where this was `rewritten` in place since the last time; not what 1.0.0 lacks of that. Renames and
    /// deletes come first: a folder may come where a file was.
    pub(in crate::leader) fn plan(&mut self, changes: Changes, rewritten: &Rewritten) -> Vec<Step> {
        let Changes { files: mut changes, whole: is_all, .. } = changes;
        if is_all {
            let there: HashSet<&RelPath> = changes.iter().map(|(path, _)| path).collect();
            let went: Vec<_> = self.held.keys().filter(|path| !there.contains(path)).cloned().collect();
            changes.extend(went.into_iter().map(|path| (path, Version::ABSENT)));
        }
        self.plan_of(changes, rewritten)
    }

    fn plan_of(&mut self, changes: Vec<(RelPath, Version)>, rewritten: &Rewritten) -> Vec<Step> {
        let mut first = if self.extension { self.renames(&changes) } else { Vec::new() };
        // In order of names: `x` is replaced before the `x.tmp` that it spoils.
        let mut changes: BTreeMap<RelPath, Version> = changes.into_iter().collect();
        self.spoil_temporaries(&mut changes, &mut first);
        let mut sends = Vec::new();
        for (path, version) in changes {
            let held = self.held.get(&path).copied();
            if !version.exists() {
                if self.held.remove(&path).is_some() {
                    first.push(Step::Delete(path));
                }
                continue;
            }
            self.held.insert(path.clone(), Held::Exact(version));
            // For a part of a file 1.0.0 has no words: it gets that later.
            let had = prefix(held, version).filter(|_| !self.extension || !rewritten.is_all_of(version.generation));
            match had {
                Some(had) => {
                    let range =
                        |kind, (offset, len)| Step::Send(FileRange { kind, offset, len, ..whole(&path, version) });
                    let parts = if self.extension { rewritten.ranges(version.generation, had) } else { Vec::new() };
                    sends.extend(parts.into_iter().map(|part| range(RangeKind::Patch, part)));
                    if had < version.len {
                        sends.push(range(RangeKind::Append, (had, version.len - had)));
                    }
                }
                None if version.len > 0 => sends.push(Step::Send(whole(&path, version))),
                None if self.extension => sends.push(Step::Control(Control::Empty(path))),
                // Protocol 1.0.0 cannot make an empty file: none stands for it.
                None => first.extend(held.map(|_| Step::Delete(path))),
            }
        }
        first.extend(sends);
        first
    }

    /// Files that the follower has under another name than the cut: told as renames, and noted in the view. Those that it has and
    /// the cut has not, under no name, go before, so as not to be in the way.
    fn renames(&mut self, changes: &[(RelPath, Version)]) -> Vec<Step> {
        let held: HashMap<u64, &RelPath> = changes
            .iter()
            .filter_map(|(path, _)| match self.held.get(path) {
                Some(Held::Exact(had)) => Some((had.generation, path)),
                _ => None,
            })
            .collect();
        let moved = |(to, version): &(RelPath, Version)| {
            let from = *held.get(&version.generation)?;
            (from != to).then(|| (from.clone(), to.clone()))
        };
        let moves: BTreeMap<RelPath, RelPath> = changes.iter().filter_map(moved).collect();
        if moves.is_empty() {
            return Vec::new();
        }
        let mut steps = Vec::new();
        for (path, _) in changes.iter().filter(|(path, version)| !version.exists() && !moves.contains_key(path)) {
            if self.held.remove(path).is_some() {
                steps.push(Step::Delete(path.clone()));
            }
        }
        let ordered = in_order(moves, |name| self.held.keys().any(|held| is_at_or_below(held, name)));
        for (from, to) in ordered {
            if let Some(file) = self.held.remove(&from) {
                self.held.insert(to.clone(), file);
                steps.push(Step::Control(Control::Rename { from, to }));
            }
        }
        steps
    }

    /// A LavinMQ follower writes a replacement of `x` to `x.tmp`: what it has there is lost, and joins the changes.
    fn spoil_temporaries(&mut self, changes: &mut BTreeMap<RelPath, Version>, deletes: &mut Vec<Step>) {
        if self.extension {
            return;
        }
        let mut left: Vec<RelPath> = changes.keys().cloned().collect();
        while let Some(path) = left.pop() {
            let version = changes[&path];
            if version.len == 0 || prefix(self.held.get(&path).copied(), version).is_some() {
                continue;
            }
            let Some(temporary) = temporary_of(&path) else { continue };
            if let Some(Held::Exact(had)) = self.void(&temporary) {
                deletes.push(Step::Delete(temporary.clone()));
                changes.entry(temporary.clone()).or_insert(had);
                left.push(temporary);
            }
        }
    }

    /// Notes that the follower's copy is spoiled; returns what it was, if it has one.
    pub(in crate::leader) fn void(&mut self, path: &RelPath) -> Option<Held> {
        self.held.get_mut(path).map(|held| std::mem::replace(held, Held::Void))
    }
}

/// How many bytes of `version` a follower has from the beginning; `None` if what it has is something else.
fn prefix(held: Option<Held>, version: Version) -> Option<u64> {
    match held {
        Some(Held::Exact(had)) if had.generation == version.generation && had.len <= version.len => Some(had.len),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Index;
    use proptest::prelude::*;

    fn path(name: u8) -> RelPath {
        RelPath::new(["a", "a.tmp", "b", "b.tmp", "c", "d"][usize::from(name)]).unwrap()
    }

    #[derive(Clone, Debug)]
    enum Change {
        Grow(u8),
        Put(u8, u64),
        Remove(u8),
        Rename(u8, u8),
        /// A round of catching up.
        Round,
    }

    fn any_change() -> impl Strategy<Value = Change> {
        prop_oneof![
            4 => (0..6_u8).prop_map(Change::Grow),
            2 => (0..6_u8, 0..3_u64).prop_map(|(name, len)| Change::Put(name, len)),
            2 => (0..6_u8).prop_map(Change::Remove),
            2 => (0..6_u8, 0..6_u8).prop_map(|(from, to)| Change::Rename(from, to)),
            2 => Just(Change::Round),
        ]
    }

    /// A follower's files: of each, which generation's bytes from the beginning it has.
    type Copy = BTreeMap<RelPath, (u64, u64)>;

    fn apply(copy: &mut Copy, steps: &[Step], lavinmq: bool) {
        for step in steps {
            match step {
                Step::Delete(path) => drop(copy.remove(path)),
                Step::Control(Control::Rename { from, to }) => {
                    let file = copy.remove(from).expect("the renamed file is there");
                    copy.insert(to.clone(), file);
                }
                Step::Control(Control::Empty(path)) => drop(copy.insert(path.clone(), (0, 0))),
                Step::Send(range) if range.kind == RangeKind::Append => {
                    let file = copy.entry(range.path.clone()).or_insert((range.generation, 0));
                    assert_eq!(file.1, range.offset, "appended where it ends");
                    *file = (range.generation, range.offset + range.len);
                }
                Step::Send(range) => {
                    if lavinmq {
                        copy.remove(&temporary_of(&range.path).unwrap());
                    }
                    copy.insert(range.path.clone(), (range.generation, range.len));
                }
                step => panic!("{step:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn rounds_bring_the_follower_to_each_cut(
            changes in prop::collection::vec(any_change(), 0..80), extension in any::<bool>(),
        ) {
            let (mut index, mut at, mut since) = (Index::new(), 0, 0);
            let mut view = View { held: Files::default(), extension };
            let mut copy = Copy::new();
            let mut model: BTreeMap<RelPath, Version> = BTreeMap::new();
            for change in changes.into_iter().chain([Change::Round]) {
                at += 1;
                match change {
                    Change::Grow(name) => if let Some(version) = model.get_mut(&path(name)) {
                        version.len += 1;
                        index.grow(index.slot(path(name).as_str()).unwrap(), 1, at);
                    },
                    Change::Put(name, len) => drop(model.insert(path(name), index.put(&path(name), len, None, at))),
                    Change::Remove(name) => {
                        index.remove(path(name).as_str(), at);
                        model.remove(&path(name));
                    }
                    Change::Rename(from, to) => if from != to && let Some(version) = model.remove(&path(from)) {
                        index.rename(&path(from), &path(to), at);
                        model.insert(path(to), version);
                    },
                    Change::Round => {
                        let (walk, mut found) = (index.begin_walk(since, None), Vec::new());
                        while index.walk(&walk, 3, &mut found) {}
                        index.end_walk(walk);
                        since = at;
                        let changed = found.into_iter().map(|found| (found.path, found.version)).collect();
                        apply(&mut copy, &view.plan_of(changed, &Rewritten::default()), !extension);
                        // Empty files: a generation says nothing; to 1.0.0 they are none.
                        let of_use = |generation: u64, len: u64| (len > 0).then_some((generation, len));
                        let seen = |empty: bool| move |(path, file): (RelPath, Option<(u64, u64)>)| {
                            (empty || file.is_some()).then_some((path, file))
                        };
                        let wanted: BTreeMap<_, _> = model.clone().into_iter()
                            .map(|(path, version)| (path, of_use(version.generation, version.len)))
                            .filter_map(seen(extension)).collect();
                        let got: BTreeMap<_, _> = copy.clone().into_iter()
                            .map(|(path, (generation, len))| (path, of_use(generation, len)))
                            .filter_map(seen(extension)).collect();
                        prop_assert_eq!(got, wanted);
                    }
                }
            }
        }
    }
}
