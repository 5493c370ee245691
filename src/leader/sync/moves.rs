//! The order of renames that come all at once, each from what a follower has now to what it shall have.

use std::collections::BTreeMap;

use crate::sys::hash::HashSet;
use crate::types::RelPath;

/// Puts renames (from, to) in an order in which no file is in the way of one that comes before it: a chain goes from its end
/// (`log.1` to `log.2`, then `log` to `log.1`), and of a circle one file goes by way of a name that is free. A file is also in
/// the way of a folder of its name, and the files of a folder in the way of a file. No two may have the same `to`.
///
/// `is_taken` tells of a name whether a file or a folder has it.
pub(in crate::leader) fn in_order(
    mut left: BTreeMap<RelPath, RelPath>,
    is_taken: impl Fn(&str) -> bool,
) -> Vec<(RelPath, RelPath)> {
    let mut ordered = Vec::with_capacity(left.len());
    let mut free = (1_u64..)
        .map(|number| RelPath::new(&format!("paceline-moving-{number}")).expect("it is a name"))
        .filter(|name| !is_taken(name.as_str()));
    while let Some((first, _)) = left.first_key_value() {
        let mut waiting = vec![first.clone()];
        let mut known: HashSet<RelPath> = waiting.iter().cloned().collect();
        while let Some(from) = waiting.last() {
            match in_the_way(&left, &left[from]) {
                None => {
                    let (from, to) = left.remove_entry(from).expect("just found");
                    ordered.push((from, to));
                    waiting.pop();
                }
                Some(other) if known.insert(other.clone()) => waiting.push(other),
                Some(other) => {
                    let aside = free.next().expect("there is always another");
                    let to = left.remove(&other).expect("just found");
                    ordered.push((other, aside.clone()));
                    left.insert(aside, to);
                    // What waited for it goes next.
                    break;
                }
            }
        }
    }
    ordered
}

/// A file still to be renamed that has to go before another can come to `to`.
fn in_the_way(left: &BTreeMap<RelPath, RelPath>, to: &RelPath) -> Option<RelPath> {
    let name = to.as_str();
    let above = name.match_indices('/').map(|(end, _)| &name[..end]);
    let at_or_above = above.chain([name]).find_map(|name| left.get_key_value(name));
    let below = || {
        let folder = format!("{name}/");
        let next = left.range::<str, _>((std::ops::Bound::Excluded(&*folder), std::ops::Bound::Unbounded)).next();
        next.filter(|(from, _)| from.as_str().starts_with(&folder))
    };
    at_or_above.or_else(below).map(|(from, _)| from.clone())
}

/// Whether a file has this name, or is in a folder of this name.
pub(in crate::leader) fn is_at_or_below(path: &RelPath, name: &str) -> bool {
    path.as_str().strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: [&str; 8] = ["a", "a/b", "a/c", "b", "c/d/e", "c/d", "c/d-e", "f"];

    /// Whether files of these names can be there at once.
    fn is_tree(names: &[&str]) -> bool {
        let within = |one: &str, other: &str| one.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
        names.iter().all(|one| names.iter().all(|other| !within(one, other)))
    }

    proptest! {
        #![proptest_config(ProptestConfig { max_global_rejects: 20_000, ..ProptestConfig::with_cases(1000) })]
        #[test]
        fn every_file_comes_to_its_name(
            from in prop::sample::subsequence(&NAMES[..], 0..8), to in prop::sample::subsequence(&NAMES[..], 8).prop_shuffle(),
        ) {
            let to: Vec<_> = to[..from.len()].to_vec();
            prop_assume!(is_tree(&from) && is_tree(&to));
            let moves: BTreeMap<_, _> = from.iter().zip(&to).filter(|(from, to)| from != to)
                .map(|(from, to)| (RelPath::new(from).unwrap(), RelPath::new(to).unwrap())).collect();
            let stay: Vec<_> = from.iter().zip(&to).filter(|(from, to)| from == to).map(|(from, _)| *from).collect();
            // File by name: the name it had at first.
            let mut files: BTreeMap<String, String> = from.iter().map(|name| (name.to_string(), name.to_string())).collect();
            let steps = in_order(moves.clone(), |name| name == "paceline-moving-1");
            prop_assert!(steps.len() <= moves.len() * 2);
            for (from, to) in steps {
                let file = files.remove(from.as_str()).expect("it is there");
                prop_assert!(files.insert(to.to_string(), file).is_none());
                prop_assert!(is_tree(&files.keys().map(String::as_str).collect::<Vec<_>>()));
            }
            let wanted: BTreeMap<String, String> = moves.iter().map(|(from, to)| (to.to_string(), from.to_string()))
                .chain(stay.iter().map(|name| (name.to_string(), name.to_string()))).collect();
            prop_assert_eq!(files, wanted);
        }
    }

    #[test]
    fn only_a_circle_takes_a_step_more() {
        let name = |name: &str| RelPath::new(name).unwrap();
        let order = |moves: &[(&str, &str)]| {
            let moves = moves.iter().map(|(from, to)| (name(from), name(to))).collect();
            let steps = in_order(moves, |_| false);
            steps.into_iter().map(|(from, to)| format!("{from}>{to}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(order(&[("log", "log.1"), ("log.1", "log.2")]), "log.1>log.2 log>log.1");
        assert_eq!(order(&[("a", "b"), ("b", "a")]), "a>paceline-moving-1 b>a paceline-moving-1>b");
        assert_eq!(order(&[("a", "a/b")]), "a>paceline-moving-1 paceline-moving-1>a/b");
        let many: BTreeMap<_, _> =
            (0..2000).map(|at| (name(&format!("{at:05}")), name(&format!("{:05}", at + 1)))).collect();
        assert_eq!(in_order(many, |_| false).len(), 2000);
    }
}
