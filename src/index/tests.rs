//! The index against a model of it, and by itself.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn path(name: u8) -> RelPath {
    RelPath::new(&format!("f{name}")).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Grow(u8),
    Put(u8),
    Remove(u8),
    Rename(u8, u8),
    Track,
    Untrack(u8),
    /// Cut by a tracker; this many steps of the rest happen before it is read.
    Cut(u8, u8),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..8_u8).prop_map(Step::Grow),
        2 => (0..8_u8).prop_map(Step::Put),
        2 => (0..8_u8).prop_map(Step::Remove),
        2 => (0..8_u8, 0..8_u8).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => Just(Step::Track),
        1 => (0..4_u8).prop_map(Step::Untrack),
        3 => (0..4_u8, 0..6_u8).prop_map(|(who, later)| Step::Cut(who, later)),
    ]
}

type Model = BTreeMap<RelPath, Version>;

fn change(index: &mut Index, model: &mut Model, step: &Step) {
    match step {
        Step::Grow(name) => {
            let path = path(*name);
            if let Some(version) = model.get_mut(&path) {
                version.len += 3;
                index.grow(index.slot(path.as_str()).unwrap(), 3);
            }
        }
        Step::Put(name) => {
            let version = index.put(&path(*name), 5, None);
            model.insert(path(*name), version);
        }
        Step::Remove(name) => {
            let was = index.remove(path(*name).as_str());
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
        _ => {}
    }
}

proptest! {
    /// Whatever happens between a cut and its reading, and whoever else tracks: a tracker that follows its cuts knows
    /// exactly what the index was at the last one.
    #[test]
    fn following_the_cuts_tells_the_index_as_of_each_cut(steps in prop::collection::vec(any_step(), 0..120)) {
        let mut index = Index::new();
        let mut model = Model::new();
        let mut views: Vec<(TrackerId, Option<Model>)> = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            match step {
                Step::Track if views.len() < 4 => views.push((index.track(), None)),
                Step::Untrack(who) if usize::from(*who) < views.len() => {
                    let (id, _) = views.remove(usize::from(*who));
                    index.untrack(id);
                    while index.sweep(2) {}
                }
                Step::Cut(who, later) if usize::from(*who) < views.len() => {
                    let (id, view) = &mut views[usize::from(*who)];
                    let first = view.is_none();
                    let cut = if first { index.cut_all(*id) } else { index.cut_changed(*id) };
                    let at_cut = model.clone();
                    let after = steps[at + 1..].iter().take(usize::from(*later));
                    after.for_each(|step| change(&mut index, &mut model, step));
                    let view = view.get_or_insert_default();
                    for slot in cut.slots() {
                        let (path, version) = index.at(&cut, slot);
                        if version.exists() {
                            view.insert(path.clone(), version);
                        } else if !first {
                            // In a cut of everything, absent ones are free slots too, whatever they were last.
                            view.remove(path);
                        }
                    }
                    prop_assert_eq!(&*view, &at_cut);
                }
                step => change(&mut index, &mut model, step),
            }
            for (path, version) in &model {
                prop_assert_eq!(index.get(path.as_str()), *version);
                prop_assert_eq!(index.find(&self::path(0), version.generation).or_else(|| index.find(path, version.generation)), Some(path.clone()));
            }
            for (generation, path) in &index.renamed {
                prop_assert_eq!(index.get(path.as_str()).generation, *generation);
            }
        }
        for (id, _) in views {
            index.untrack(id);
        }
        while index.sweep(3) {}
        prop_assert_eq!(index.slots.len(), model.len(), "deleted files are forgotten");
        prop_assert!(index.closed.is_empty() && index.changed.is_empty());
    }
}

const A: FileId = (1, 10);
const B: FileId = (1, 11);

/// With nothing to be made durable from before.
fn index() -> Index {
    let mut index = Index::new();
    assert!(index.take_unsynced().others, "nobody knows what of the files found at the start is durable");
    index
}

#[test]
fn totals_follow_every_change() {
    let mut index = index();
    index.put(&path(1), 5, None);
    index.grow(index.slot("f1").unwrap(), 3);
    index.put(&path(2), 2, None);
    assert_eq!(index.totals(), (2, 10));
    index.put(&path(2), 4, None);
    assert_eq!(index.totals(), (2, 12));
    index.truncate(&path(1), 1);
    assert_eq!(index.totals(), (2, 5));
    index.rename(&path(2), &path(1));
    assert_eq!(index.totals(), (1, 4));
    index.remove("f1");
    assert_eq!(index.totals(), (0, 0));
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
        let slot = index.slot("f1").unwrap();
        index.grow(slot, 1);
        index.grow(slot, 1);
        let turn = index.take_unsynced();
        assert_eq!((turn.files(), turn.names()), (1, &[][..]));
    }
    assert_eq!(index.take_unsynced().files(), 0);
    // The slot of the one is used again for the other, and is noted already.
    index.remove("f1");
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
        index.remove("f3");
        let turn = index.take_unsynced();
        (index, turn, generation)
    };
    let (mut index, turn, _) = begun();
    index.grow(index.slot("f1").unwrap(), 1);
    assert_eq!(index.syncing(&turn), Some(vec![(path(1), A), (path(2), B)]));
    let changes: [fn(&mut Index, u64); 4] = [
        |index, _| _ = index.rename(&path(2), &path(5)),
        |index, _| _ = index.put(&path(1), 5, Some(A)),
        |index, _| _ = index.remove("f2"),
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
    let is = |index: &Index, id| index.only_read_from(&path(1), id);
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
fn while_somebody_tracks_deleted_files_stay_and_then_go_a_few_at_a_time() {
    let mut index = index();
    let tracker = index.track();
    for name in 0..5 {
        index.put(&path(name), 1, None);
        index.remove(path(name).as_str());
    }
    assert!(!index.sweep(9) && index.slots.len() == 5);
    index.untrack(tracker);
    assert!(index.sweep(2) && index.slots.len() == 3);
    assert!(index.sweep(2) && index.slots.len() == 1);
    assert!(!index.sweep(2) && index.slots.is_empty() && index.free.len() == 5);
}
