//! Folders and symbolic links that are announced. No locks, no I/O.
//!
//! A name is a file's, in the index, or an item's, here, and never both: whoever adds the one removes the other
//! ([`in_the_way`](Items::in_the_way)). Who joins compares all of them, and what changed meanwhile is announced once more (`tasks/attributes.rs`): so there is no exact moment to be kept of
//! them, as there is of files. Ordered maps: no step takes longer than some hundred nanoseconds, however many there are.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::protocol::extension::Item;
use crate::types::RelPath;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Items {
    /// With the number of the last change.
    there: BTreeMap<RelPath, (Item, u64)>,
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

    pub(crate) fn remove(&mut self, path: &RelPath) {
        self.there.remove(path);
    }

    /// What cannot be there any more once a file has this name: an item of that name, and a link above. (What is below the item is found to be gone after that.)
    pub(crate) fn in_the_way(&self, path: &RelPath) -> Vec<RelPath> {
        if self.there.is_empty() {
            return Vec::new();
        }
        let above = path.as_str().match_indices('/').map(|(end, _)| &path.as_str()[..end]);
        let links = above.filter_map(|above| self.there.get_key_value(above));
        let links = links.filter(|(_, (item, _))| matches!(item, Item::Link { .. }));
        links.chain(self.there.get_key_value(path)).map(|(path, _)| path.clone()).collect()
    }

    /// Some of the items in a folder and in those within, in the order of their names, from behind one on.
    pub(crate) fn below(&self, folder: &RelPath, behind: Option<&RelPath>, most: usize) -> Vec<RelPath> {
        // '0' is what follows '/'.
        let (first, end) = (format!("{folder}/"), format!("{folder}0"));
        let from = behind.map_or(Bound::Included(first.as_str()), |behind| Bound::Excluded(behind.as_str()));
        let below = self.there.range::<str, _>((from, Bound::Excluded(end.as_str())));
        below.take(most).map(|(path, _)| path.clone()).collect()
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::extension::Attributes;

    fn path(name: &str) -> RelPath {
        RelPath::new(name).unwrap()
    }

    fn items(folders: &[&str], links: &[&str]) -> Items {
        let mut items = Items::default();
        for (at, name) in (1..).zip(folders) {
            items.put(&path(name), Item::Folder(Attributes::UNKNOWN), at);
        }
        for (at, name) in (100..).zip(links) {
            items.put(&path(name), Item::link(b"x").unwrap(), at);
        }
        items
    }

    fn words(paths: &[RelPath]) -> String {
        paths.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn where_a_file_comes_no_item_of_that_name_stays_nor_a_link_above() {
        let items = items(&["a", "a/b", "a-b", "d"], &["a/link", "d/link"]);
        let in_the_way = |name: &str| words(&items.in_the_way(&path(name)));
        assert_eq!(in_the_way("a"), "a");
        assert_eq!(in_the_way("a/b/c/file"), "");
        assert_eq!(in_the_way("d/link/x/y"), "d/link");
        assert_eq!(in_the_way("d/link"), "d/link");
        assert_eq!(in_the_way("new"), "");
    }

    #[test]
    fn what_changed_and_what_is_below_is_found_portion_by_portion() {
        let mut items = items(&["a", "b", "b/c", "b/c/d", "b-c"], &["b/link"]);
        let changed = |items: &Items, since: u64| {
            let (mut found, mut behind) = (Vec::new(), None);
            while let Some(last) = items.walk(since, behind.as_ref(), 2, &mut found) {
                behind = Some(last);
            }
            words(&found.into_iter().map(|(path, _)| path).collect::<Vec<_>>())
        };
        assert_eq!(changed(&items, 0), "a b b-c b/c b/c/d b/link");
        assert_eq!(changed(&items, 3), "b-c b/c/d b/link");
        assert_eq!(words(&items.below(&path("b"), None, 2)), "b/c b/c/d");
        assert_eq!(words(&items.below(&path("b"), Some(&path("b/c/d")), 2)), "b/link");
        items.remove(&path("b/c"));
        assert_eq!((changed(&items, 0), items.len()), ("a b b-c b/c/d b/link".into(), 5));
    }
}
