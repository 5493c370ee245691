//! Folders and symbolic links that are announced. No locks, no I/O.
//!
//! A name is a file's, in the index, or an item's, here, and never both: whoever adds the one removes the other
//! ([`in_the_way`](Items::in_the_way)). Who joins compares all of them, and what changed meanwhile is announced once more (`tasks/attributes.rs`): so there is no exact moment to be kept of
//! them, as there is of files. Ordered maps: no step takes longer than some hundred nanoseconds, however many there are.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use crate::protocol::extension::Item;
use crate::types::RelPath;

/// Names of items that are gone which are known.
const GONE_MAX: usize = 1 << 16;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Items {
    /// With the number of the last change.
    there: BTreeMap<RelPath, (Item, u64)>,
    /// With the number of that change, the oldest first.
    gone: VecDeque<(u64, RelPath)>,
}

impl Items {
    pub(crate) fn len(&self) -> usize {
        self.there.len()
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Item> {
        self.there.get(path).map(|(item, _)| item)
    }

    /// `change` is the number of the change, here and below.
    pub(crate) fn put(&mut self, path: &RelPath, item: Item, change: u64) {
        self.there.insert(path.clone(), (item, change));
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, path: &RelPath, change: u64) -> bool {
        let was_there = self.there.remove(path).is_some();
        if was_there {
            self.gone.push_back((change, path.clone()));
            if self.gone.len() > GONE_MAX {
                self.gone.pop_front();
            }
        }
        was_there
    }

    /// What cannot be there any more once a file has this name: an item of that name, those below, and a link above. The innermost first.
    pub(crate) fn in_the_way(&self, path: &RelPath) -> Vec<RelPath> {
        if self.there.is_empty() {
            return Vec::new();
        }
        let above = path.as_str().match_indices('/').map(|(end, _)| &path.as_str()[..end]);
        let links = above.filter_map(|above| self.there.get_key_value(above));
        let links = links.filter(|(_, (item, _))| matches!(item, Item::Link { .. })).map(|(path, _)| path);
        let own = self.there.get_key_value(path).map(|(path, _)| path);
        // Only below a folder is anything.
        let below = own.into_iter().flat_map(|own| self.below(own));
        let mut in_the_way: Vec<_> = links.chain(own).cloned().chain(below.map(|(path, _)| path.clone())).collect();
        in_the_way.reverse();
        in_the_way
    }

    /// The items in a folder and in those within.
    pub(crate) fn below(&self, folder: &RelPath) -> impl Iterator<Item = (&RelPath, &Item)> {
        // '0' is what follows '/'.
        let (from, to) = (format!("{folder}/"), format!("{folder}0"));
        let range = self.there.range::<str, _>((Bound::Included(from.as_str()), Bound::Excluded(to.as_str())));
        range.map(|(path, (item, _))| (path, item))
    }

    /// Some that changed after `since`, in the order of their names, from behind a name on; and the last name looked at, unless those were all.
    pub(crate) fn walk(
        &self,
        since: u64,
        behind: Option<&RelPath>,
        most: usize,
        found: &mut Vec<(RelPath, Item)>,
    ) -> Option<RelPath> {
        let from = behind.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (path, (item, changed)) in self.there.range::<RelPath, _>((from, Bound::Unbounded)).take(most) {
            if *changed > since {
                found.push((path.clone(), item.clone()));
            }
            last = Some(path);
        }
        last.cloned()
    }

    /// Some that went after `since`, and the number of the last change looked at, unless those were all. Some may be there again.
    pub(crate) fn walk_gone(&self, since: u64, most: usize, found: &mut Vec<RelPath>) -> Option<u64> {
        let from = self.gone.partition_point(|(change, _)| *change <= since);
        let mut last = None;
        for (change, path) in self.gone.range(from..).take(most) {
            found.push(path.clone());
            last = Some(*change);
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::extension::{Attributes, Owner};

    fn path(name: &str) -> RelPath {
        RelPath::new(name).unwrap()
    }

    fn items(folders: &[&str], links: &[&str]) -> Items {
        let mut items = Items::default();
        for (at, name) in (1..).zip(folders) {
            items.put(&path(name), Item::Folder(Attributes::UNKNOWN), at);
        }
        for (at, name) in (100..).zip(links) {
            items.put(&path(name), Item::link(Owner::default(), b"x").unwrap(), at);
        }
        items
    }

    #[test]
    fn where_a_file_comes_no_item_stays_that_it_cannot_be_beside() {
        let items = items(&["a", "a/b", "a/b/c", "a-b", "d"], &["a/link", "d/link"]);
        let in_the_way =
            |name: &str| items.in_the_way(&path(name)).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(in_the_way("a"), "a/link a/b/c a/b a");
        assert_eq!(in_the_way("a/b/c/file"), "");
        assert_eq!(in_the_way("d/link/x/y"), "d/link");
        assert_eq!(in_the_way("d/link"), "d/link");
        assert_eq!(in_the_way("new"), "");
    }

    #[test]
    fn what_changed_and_what_went_is_found_portion_by_portion() {
        let mut items = items(&["a", "b", "c", "d", "e"], &[]);
        let changed = |items: &Items, since: u64| {
            let (mut found, mut behind) = (Vec::new(), None);
            while let Some(last) = items.walk(since, behind.as_ref(), 2, &mut found) {
                behind = Some(last);
            }
            found.into_iter().map(|(path, _)| path.to_string()).collect::<String>()
        };
        let gone = |items: &Items, mut since: u64| {
            let mut found = Vec::new();
            while let Some(last) = items.walk_gone(since, 2, &mut found) {
                since = last;
            }
            found.into_iter().map(|path| path.to_string()).collect::<String>()
        };
        assert_eq!(
            (changed(&items, 0), changed(&items, 3), changed(&items, 5)),
            ("abcde".into(), "de".into(), "".into())
        );
        for (change, name) in (10..).zip(["c", "a", "nothing", "e"]) {
            items.remove(&path(name), change);
        }
        assert_eq!((changed(&items, 0), items.len()), ("bd".into(), 2));
        assert_eq!((gone(&items, 0), gone(&items, 10), gone(&items, 13)), ("cae".into(), "ae".into(), "".into()));
    }
}
