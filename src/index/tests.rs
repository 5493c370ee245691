//! The index against a model of it, and by itself.

use super::recency::Found;
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn path(name: u8) -> RelPath {
    RelPath::new(&format!("f{name}")).unwrap()
}

/// An index with the number of its last change.
struct Told {
    index: Index,
    at: u64,
}

impl Told {
    fn change(&mut self) -> u64 {
        self.at += 1;
        self.at
    }

    fn put(&mut self, path: &RelPath, len: u64, file: Option<FileId>) -> Version {
        let change = self.change();
        self.index.put(path, len, file, change)
    }

    fn grow(&mut self, path: &RelPath, length: u64) {
        let (slot, change) = (self.index.slot(path.as_str()).unwrap(), self.change());
        self.index.grow(slot, length, change);
    }

    fn truncate(&mut self, path: &RelPath, len: u64) -> Version {
        let change = self.change();
        self.index.truncate(path, len, change)
    }

    fn rename(&mut self, from: &RelPath, to: &RelPath) -> Version {
        let change = self.change();
        self.index.rename(from, to, change)
    }

    fn remove(&mut self, path: &RelPath) -> Version {
        let change = self.change();
        self.index.remove(path.as_str(), change)
    }
}

impl std::ops::Deref for Told {
    type Target = Index;

    fn deref(&self) -> &Index {
        &self.index
    }
}

impl std::ops::DerefMut for Told {
    fn deref_mut(&mut self) -> &mut Index {
        &mut self.index
    }
}

#[derive(Clone, Debug)]
enum Step {
    Grow(u8),
    Put(u8),
    Remove(u8),
    Rename(u8, u8),
    /// Somebody reads what changed since it last did, in portions; after each, one step of the rest happens.
    Walk {
        who: u8,
        exactly: bool,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..8_u8).prop_map(Step::Grow),
        2 => (0..8_u8).prop_map(Step::Put),
        2 => (0..8_u8).prop_map(Step::Remove),
        2 => (0..8_u8, 0..8_u8).prop_map(|(from, to)| Step::Rename(from, to)),
        3 => (0..3_u8, any::<bool>()).prop_map(|(who, exactly)| Step::Walk { who, exactly }),
    ]
}

type Model = BTreeMap<RelPath, Version>;

fn change(index: &mut Told, model: &mut Model, step: &Step) {
    match step {
        Step::Grow(name) => {
            let path = path(*name);
            if let Some(version) = model.get_mut(&path) {
                version.len += 3;
                index.grow(&path, 3);
            }
        }
        Step::Put(name) => {
            let version = index.put(&path(*name), 5, None);
            model.insert(path(*name), version);
        }
        Step::Remove(name) => {
            let was = index.remove(&path(*name));
            assert_eq!(was, model.remove(&path(*name)).unwrap_or_default());
        }
        Step::Rename(from, to) => {
            let (from, to) = (path(*from), path(*to));
            if from != to
                && let Some(version) = model.remove(&from)
            {
                assert_eq!(index.rename(&from, &to), version);
                model.insert(to, version);
            }
        }
        Step::Walk { .. } => {}
    }
}

/// What somebody knows of the files, and since when.
#[derive(Default)]
struct Reader {
    files: Model,
    since: u64,
}

impl Reader {
    /// Reads what changed, while `meanwhile` goes on; returns what the index was at a cut.
    fn walk(&mut self, index: &mut Told, model: &mut Model, exactly: bool, meanwhile: &[Step]) -> Option<Model> {
        let (begun, at_cut) = (index.at, model.clone());
        let walk = index.begin_walk(self.since, exactly.then_some(begun));
        let (mut found, mut meanwhile) = (Vec::new(), meanwhile.iter());
        while index.walk(&walk, 2, &mut found) {
            meanwhile.next().into_iter().for_each(|step| change(index, model, step));
        }
        found.extend(index.end_walk(walk).into_iter().flatten());
        // Of what went before the beginning nothing need be known.
        let is_complete = self.since == 0 || index.complete_since() <= self.since;
        let mut files = std::mem::take(&mut self.files);
        for Found { path, version, changed, .. } in found {
            assert!(changed > self.since && (!exactly || changed <= begun));
            if version.exists() {
                assert!(version.generation <= changed);
                files.insert(path, version);
            } else {
                files.remove(&path);
            }
        }
        // Who does not learn of all that went begins anew.
        (self.files, self.since) = if is_complete { (files, begun) } else { Default::default() };
        (exactly && is_complete).then_some(at_cut)
    }
}

proptest! {
    /// Whatever changes while somebody reads, and however many read: a reader that asks again and again since when it last did knows what the
    /// index was at a cut, and in the end what it is; also where files that went are soon forgotten.
    #[test]
    fn asking_since_again_and_again_tells_the_index(
        steps in prop::collection::vec(any_step(), 0..120), remembered in prop_oneof![Just(1), Just(3), Just(100)],
    ) {
        let mut index = Told { index: Index::new(), at: 0 };
        index.tombstones.most = remembered;
        let mut model = Model::new();
        let mut readers = [const { None }; 3].map(|none: Option<Reader>| none.unwrap_or_default());
        let mut steps = &steps[..];
        while let [step, rest @ ..] = steps {
            steps = rest;
            if let Step::Walk { who, exactly } = step {
                let later = rest.len().min(4);
                let reader = &mut readers[usize::from(*who)];
                if let Some(at_cut) = reader.walk(&mut index, &mut model, *exactly, &rest[..later]) {
                    prop_assert_eq!(&reader.files, &at_cut);
                }
            } else {
                change(&mut index, &mut model, step);
            }
            prop_assert_eq!(index.slots.iter().filter(|slot| index.entries[*slot].now.exists()).count(), model.len());
            for (path, version) in &model {
                prop_assert_eq!(index.get(path.as_str()), *version);
                prop_assert_eq!(index.find(&self::path(0), version.generation).or_else(|| index.find(path, version.generation)), Some(path.clone()));
            }
            for (generation, path) in index.renamed.iter() {
                prop_assert_eq!(index.get(path.as_str()).generation, *generation);
            }
            prop_assert!(index.tombstones.slots.len() <= remembered);
        }
        for mut reader in readers {
            reader.walk(&mut index, &mut model, false, &[]);
            if reader.since == 0 && index.at > 0 {
                reader.walk(&mut index, &mut model, false, &[]);
            }
            prop_assert_eq!(&reader.files, &model);
        }
        prop_assert!(index.entries.len() <= model.len() + remembered + 1 + index.free.len());
    }
}

const A: FileId = (1, 10);
const B: FileId = (1, 11);

/// With nothing to be made durable from before.
fn index() -> Told {
    let mut index = Told { index: Index::new(), at: 0 };
    assert!(index.take_unsynced().others, "nobody knows what of the files found at the start is durable");
    index
}

#[test]
fn totals_follow_every_change() {
    let mut index = index();
    index.put(&path(1), 5, None);
    index.grow(&path(1), 3);
    index.put(&path(2), 2, None);
    assert_eq!(index.totals(), (2, 10));
    index.put(&path(2), 4, None);
    assert_eq!(index.totals(), (2, 12));
    index.truncate(&path(1), 1);
    assert_eq!(index.totals(), (2, 5));
    index.rename(&path(2), &path(1));
    assert_eq!(index.totals(), (1, 4));
    index.remove(&path(1));
    assert_eq!(index.totals(), (0, 0));
}

#[test]
fn what_is_beside_the_one_before_is_found_and_so_is_any_other() {
    let mut index = index();
    let file = |name: u8| (1, u64::from(name));
    for name in 0..10 {
        index.put(&path(name), u64::from(name), Some(file(name)));
    }
    let mut at = 0;
    for name in (0..10).chain((0..10).rev()).chain([3, 9, 9, 0, 1]) {
        let (version, found) = index.announced_beside(path(name).as_str(), &mut at);
        assert_eq!((version, found), index.announced(path(name).as_str()));
        assert_eq!(found, Some(file(name)));
    }
    assert_eq!(index.announced_beside("none", &mut at), (Version::ABSENT, None));
}

#[test]
fn what_a_slot_holds_is_known_by_the_slot() {
    let mut index = index();
    let first = index.put(&path(1), 5, None);
    let second = index.put(&path(2), 6, None);
    assert_eq!([1, 2].map(|name| index.version_at(index.slot(path(name).as_str()).unwrap())), [first, second]);
}

#[test]
fn a_turn_names_each_file_that_changed_once_and_those_that_came_or_went() {
    let mut index = index();
    index.put(&path(1), 5, None);
    index.put(&path(1), 6, None);
    index.put(&path(2), 5, None);
    let turn = index.take_unsynced();
    assert_eq!((turn.files(), turn.names(), turn.others), (2, &[path(1), path(2)][..], false));
    for _ in 0..2 {
        index.grow(&path(1), 1);
        index.grow(&path(1), 1);
        let turn = index.take_unsynced();
        assert_eq!((turn.files(), turn.names()), (1, &[][..]));
    }
    assert_eq!(index.take_unsynced().files(), 0);
    // The slot of the one is used again for the other, and is noted already.
    index.tombstones.most = 0;
    index.remove(&path(1));
    index.put(&path(3), 1, None);
    let turn = index.take_unsynced();
    assert_eq!((turn.files(), turn.names()), (1, &[path(1), path(3)][..]));
}

#[test]
fn beyond_so_many_names_a_turn_says_only_that_there_are_others() {
    let mut index = index();
    for name in 0..UNSYNCED_NAMES_MAX {
        index.put(&RelPath::new(&format!("f{name}")).unwrap(), 1, Some(A));
    }
    assert!(!index.unsynced.others);
    let turn = index.take_unsynced();
    for name in 0..=UNSYNCED_NAMES_MAX {
        index.put(&RelPath::new(&format!("g{name}")).unwrap(), 1, Some(A));
    }
    assert!(index.unsynced.others && index.unsynced.names().len() == UNSYNCED_NAMES_MAX);
    assert_eq!(index.syncing(&turn), None, "one of the others may be of this turn");
}

#[test]
fn a_turns_files_are_known_until_one_is_renamed_replaced_deleted_or_in_doubt() {
    let begun = || {
        let mut index = index();
        let generation = index.put(&path(1), 5, Some(A)).generation;
        index.put(&path(2), 5, Some(B));
        index.put(&path(3), 5, None);
        index.remove(&path(3));
        let turn = index.take_unsynced();
        (index, turn, generation)
    };
    let (mut index, turn, _) = begun();
    index.grow(&path(1), 1);
    assert_eq!(index.syncing(&turn), Some(vec![(path(1), A), (path(2), B)]));
    let changes: [fn(&mut Told, u64); 4] = [
        |index, _| _ = index.rename(&path(2), &path(5)),
        |index, _| _ = index.put(&path(1), 5, Some(A)),
        |index, _| _ = index.remove(&path(2)),
        |index, generation| _ = index.doubt(&path(1), generation).unwrap(),
    ];
    for change in changes {
        let (mut index, turn, generation) = begun();
        change(&mut index, generation);
        assert_eq!(index.syncing(&turn), None);
    }
}

#[test]
fn a_file_is_the_one_announced_for_as_long_as_nothing_else_is_read_for_it() {
    let mut index = index();
    assert!(index.only_read_from(&path(1), Some(A)), "there is none");
    let first = index.put(&path(1), 5, Some(A)).generation;
    let is = |index: &Told, id| index.only_read_from(&path(1), id);
    assert!(is(&index, Some(A)) && is(&index, None) && !is(&index, Some(B)));
    assert!(index.reads(&path(1), first, A) && is(&index, Some(A)));
    assert!(!index.reads(&path(1), first + 1, B) && is(&index, Some(A)), "of another generation");
    // What is cut off is the same file, of a new generation.
    let cut = index.truncate(&path(1), 2).generation;
    assert!(cut != first && is(&index, Some(A)));
    assert!(index.reads(&path(1), cut, B));
    assert!(!is(&index, Some(A)) && !is(&index, Some(B)) && !is(&index, None));
    index.put(&path(1), 5, Some(B));
    assert!(is(&index, Some(B)), "announced anew");
    index.rename(&path(1), &path(2));
    assert!(index.only_read_from(&path(2), Some(B)) && !index.only_read_from(&path(2), Some(A)));
}

#[test]
fn what_is_in_doubt_is_found_under_its_new_name_and_stays_in_doubt() {
    let mut index = index();
    let version = index.put(&path(1), 5, Some(A));
    index.rename(&path(1), &path(2));
    assert_eq!(index.doubt(&path(1), version.generation), Some((path(2), version)));
    assert!(!index.only_read_from(&path(2), None));
    assert_eq!(index.doubt(&path(1), version.generation + 1), None);
}

#[test]
fn files_that_went_are_remembered_up_to_a_bound_and_it_is_said_since_when() {
    let mut index = index();
    index.tombstones.most = 2;
    for name in 0..5 {
        index.put(&path(name), 1, None);
    }
    for name in 0..4 {
        index.remove(&path(name));
    }
    assert_eq!((index.complete_since(), index.free.len()), (7, 2));
    assert!(index.slot("f0").is_none() && index.slot("f3").is_some());
    // One that is back is none of them, and does not count when its turn comes.
    index.put(&path(2), 1, None);
    index.put(&path(0), 1, None);
    index.remove(&path(0));
    assert_eq!(index.complete_since(), 7);
    assert!(index.get("f2").exists());
}
