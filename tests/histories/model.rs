//! What the files hold, and held since the copy was last known to be equal.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::host::Op;

pub type Bytes = Rc<Vec<u8>>;
/// Contents by name.
pub type Tree = BTreeMap<String, Bytes>;

#[derive(Default)]
pub struct Model {
    pub now: Tree,
    /// What a name may stand for in a copy: the states since it was equal, or since what a commit confirmed.
    past: BTreeMap<String, Vec<State>>,
    /// Rewritten in place since: whoever reads such a file may read any mixture, until all of it comes.
    mixed: BTreeSet<String>,
}

/// A content of at least so many bytes and at most all of them; or none.
#[derive(Clone)]
struct State {
    bytes: Option<Bytes>,
    least: usize,
}

impl Model {
    pub fn of(now: Tree) -> Self {
        let mut model = Self { now, ..Self::default() };
        model.is_equal();
        model
    }

    /// The copy is what the files are now.
    pub fn is_equal(&mut self) {
        self.mixed.clear();
        self.past = self.now.iter().map(|(name, bytes)| (name.clone(), vec![whole(Some(bytes))])).collect();
    }

    /// What is in this lane's files now is committed.
    pub fn is_committed(&mut self, is_of_lane: impl Fn(&str) -> bool) {
        for (name, states) in self.past.iter_mut().filter(|(name, _)| is_of_lane(name)) {
            *states = vec![whole(self.now.get(name))];
        }
    }

    pub fn has_done(&mut self, op: &Op) {
        let before = self.now.clone();
        apply(op, &mut self.now);
        let after = self.now.clone();
        self.note(op, &before, &after);
    }

    fn note(&mut self, op: &Op, before: &Tree, after: &Tree) {
        match op {
            Op::Append { name, .. } => {
                let least = before.get(name).map_or(0, |bytes| bytes.len());
                self.push(name, State { least, ..whole(after.get(name)) });
            }
            Op::Replace { name, in_place, .. } => {
                if *in_place {
                    self.mixed.insert(name.clone());
                }
                self.push(name, whole(after.get(name)));
            }
            Op::Truncate { name, .. } | Op::Delete { name, .. } => self.push(name, whole(after.get(name))),
            Op::Rename { from, to, .. } => {
                if self.mixed.contains(from) {
                    self.mixed.insert(to.clone());
                }
                // What is still on its way at a copy may come under the new name.
                let states = self.past.get(from).cloned().unwrap_or_default();
                states.into_iter().for_each(|state| self.push(to, state));
                self.push(from, whole(None));
            }
            Op::Commit | Op::Pause(_) => {}
        }
    }

    fn push(&mut self, name: &str, state: State) {
        self.past.entry(name.to_owned()).or_insert_with(|| vec![whole(None)]).push(state);
    }

    /// Its process was killed while these were, perhaps, being done: takes what is on disk, if they can have made it so.
    pub fn killed_at(&mut self, ops: &[Op], disk: Tree) -> Result<(), String> {
        for op in ops {
            let mut after = self.now.clone();
            apply(op, &mut after);
            for name in names_of(op) {
                let (old, new, is) = (self.now.get(name), after.get(name), disk.get(name));
                let is_part = match op {
                    Op::Append { .. } => {
                        let least = old.map_or(0, |old| old.len());
                        is.zip(new).is_some_and(|(is, new)| is.len() >= least && new.starts_with(is))
                    }
                    Op::Replace { in_place: true, .. } => is.zip(new).is_some_and(|(is, new)| new.starts_with(is)),
                    _ => false,
                };
                if is != old && is != new && !is_part {
                    return Err(format!("{name} is on disk what {op:?} never made it"));
                }
            }
            // A copy may have it, or not.
            self.note(op, &self.now.clone(), &after);
        }
        let touched: BTreeSet<_> = ops.iter().flat_map(names_of).map(str::to_owned).collect();
        for name in self.now.keys().chain(disk.keys()).filter(|name| !touched.contains(*name)) {
            if self.now.get(name) != disk.get(name) {
                return Err(format!("{name} changed on disk, and nobody did that"));
            }
        }
        for name in touched {
            self.push(&name, State { least: 0, ..whole(disk.get(&name)) });
        }
        self.now = disk;
        Ok(())
    }

    /// What in a copy was no state of the leader's file, or is older than what was committed.
    pub fn check_copy(&self, copy: &Tree) -> Result<(), String> {
        let names: BTreeSet<_> = self.past.keys().chain(copy.keys()).collect();
        for name in names.into_iter().filter(|name| !self.mixed.contains(*name)) {
            let is = copy.get(name);
            let fits = |state: &State| match (&state.bytes, is) {
                (None, None) => true,
                (Some(bytes), Some(is)) => is.len() >= state.least && bytes.starts_with(is),
                _ => false,
            };
            if !self.past.get(name).map_or(is.is_none(), |states| states.iter().any(fits)) {
                let known = self.past.get(name).into_iter().flatten();
                let known: Vec<_> =
                    known.map(|state| (state.least, state.bytes.as_ref().map(|all| all.len()))).collect();
                let len = is.map(|is| is.len());
                return Err(format!("{name} ({len:?} bytes) is in the copy as it never was since; it was {known:?}"));
            }
        }
        Ok(())
    }
}

fn whole(bytes: Option<&Bytes>) -> State {
    State { least: bytes.map_or(0, |bytes| bytes.len()), bytes: bytes.cloned() }
}

fn names_of(op: &Op) -> Vec<&str> {
    match op {
        Op::Append { name, .. } | Op::Replace { name, .. } | Op::Truncate { name, .. } | Op::Delete { name, .. } => {
            vec![name]
        }
        Op::Rename { from, to, .. } => vec![from, to],
        Op::Commit | Op::Pause(_) => Vec::new(),
    }
}

fn apply(op: &Op, tree: &mut Tree) {
    match op {
        Op::Append { name, content, .. } => {
            let bytes = Rc::make_mut(tree.entry(name.clone()).or_default());
            bytes.extend_from_slice(&content.bytes());
        }
        Op::Replace { name, content, .. } => drop(tree.insert(name.clone(), content.bytes().into())),
        Op::Rename { from, to, .. } => {
            let bytes = tree.remove(from).expect("it is planned with what is there");
            tree.insert(to.clone(), bytes);
        }
        Op::Truncate { name, len, .. } => Rc::make_mut(tree.get_mut(name).unwrap()).truncate(*len),
        Op::Delete { name, .. } => drop(tree.remove(name)),
        Op::Commit | Op::Pause(_) => {}
    }
}
