//! What a joiner lacks besides the content of files: their attributes, folders, links.
//!
//! Where what it takes comes among what it takes to make contents equal: links that go come first, which may be above a file; folders that go after renames, which may
//! empty them; folders and links that come before contents. A file's attributes come after its content, which moves its time; but if it has another mode by then, that comes
//! before: what others may not read any more is not written to a file that they may. A file that is made anew can be read by nobody else until then.
//!
//! Pure.

use crate::leader::batch::Step;
use crate::protocol::LIST_FILES_MAX;
use crate::protocol::extension::{Attributes, Control, Held, Item};
use crate::sys::hash::HashMap;
use crate::types::RelPath;

/// See the module's documentation. Those in question: ours, and theirs.
pub(super) struct Others<'a> {
    files: HashMap<&'a RelPath, Attributes>,
    their_files: HashMap<RelPath, Attributes>,
    items: HashMap<&'a RelPath, &'a Item>,
    their_items: HashMap<RelPath, Item>,
}

impl<'a> Others<'a> {
    pub(super) fn of(
        files: impl Iterator<Item = (&'a RelPath, Attributes)>,
        items: impl Iterator<Item = &'a (RelPath, Item)>,
    ) -> Self {
        let files: HashMap<_, _> = files.collect();
        // The two were not read in one moment: what follows in the stream tells which it is.
        let items = items.map(|(path, item)| (path, item)).filter(|(path, _)| !files.contains_key(path)).collect();
        Self { files, their_files: HashMap::default(), items, their_items: HashMap::default() }
    }

    /// A file of the follower's.
    pub(super) fn told_file(&mut self, file: &Held) {
        self.their_files.insert(file.path.clone(), file.attributes);
    }

    /// An item of the follower's; `false`: it was told before, or too many were.
    pub(super) fn told_item(&mut self, path: RelPath, item: Item) -> bool {
        self.their_items.len() < LIST_FILES_MAX && self.their_items.insert(path, item).is_none()
    }

    /// All that it takes, where these are its files that are none of ours, and these the steps that make its files equal: renames first. `is_unknown`:
    /// what may be here as well.
    pub(super) fn add_to(
        mut self,
        gone: Vec<RelPath>,
        steps: Vec<Step>,
        is_unknown: impl Fn(&RelPath) -> bool,
    ) -> Vec<Step> {
        let mut all: Vec<_> = gone.into_iter().map(Step::Delete).collect();
        let (mut links, mut folders) = (Vec::new(), Vec::new());
        for (path, theirs) in &self.their_items {
            let kind = std::mem::discriminant(theirs);
            if self.items.get(path).is_some_and(|ours| std::mem::discriminant(*ours) == kind) || is_unknown(path) {
                continue;
            }
            let going = if matches!(theirs, Item::Link { .. }) { &mut links } else { &mut folders };
            going.push(path.clone());
        }
        let removal = |path| Step::Control(Control::RemoveItem(path));
        all.extend(links.into_iter().map(removal));
        let is_rename = |step: &Step| matches!(step, Step::Control(Control::Rename { .. }));
        let mut steps = steps.into_iter().peekable();
        while let Some(rename) = steps.next_if(is_rename) {
            if let Step::Control(Control::Rename { from, to }) = &rename {
                let moved = self.their_files.remove(from);
                self.their_files.remove(to);
                self.their_files.extend(moved.map(|moved| (to.clone(), moved)));
            }
            all.push(rename);
        }
        folders.sort_unstable_by(|a, b| b.cmp(a));
        all.extend(folders.into_iter().map(removal));
        all.extend(self.items_to_come());
        self.add_attributes(&mut all, steps);
        all
    }

    /// Folders before what is in them.
    fn items_to_come(&self) -> impl Iterator<Item = Step> {
        let differs = |(path, item): &(&&RelPath, &&Item)| self.their_items.get(**path) != Some(**item);
        let differing = self.items.iter().filter(differs);
        let mut coming: Vec<_> = differing.map(|(path, item)| ((*path).clone(), (*item).clone())).collect();
        coming.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        coming.into_iter().map(|(path, item)| Step::Control(Control::Item(path, item)))
    }

    fn add_attributes(&mut self, all: &mut Vec<Step>, steps: impl Iterator<Item = Step>) {
        let mut last: Option<RelPath> = None;
        for step in steps {
            let path = path_of(&step);
            if path != last.as_ref() {
                let path = path.cloned();
                all.extend(last.and_then(|last| self.take_after(&last)));
                all.extend(path.as_ref().and_then(|path| self.before(path)));
                last = path;
            }
            all.push(step);
        }
        all.extend(last.and_then(|last| self.take_after(&last)));
        let differs = |(path, ours): &(&&RelPath, &Attributes)| {
            self.their_files.get(**path).is_some_and(|theirs| self.differ(*theirs, **ours))
        };
        let differing = self.files.iter().filter(differs);
        all.extend(differing.map(|(path, ours)| Step::Control(Control::Attributes((*path).clone(), *ours))));
    }

    fn differ(&self, theirs: Attributes, ours: Attributes) -> bool {
        let mtime = if ours.mtime == Attributes::NO_TIME { theirs.mtime } else { ours.mtime };
        ours != Attributes::UNKNOWN && theirs != Attributes { mtime, ..ours }
    }

    /// The mode of a file that is there already.
    fn before(&self, path: &RelPath) -> Option<Step> {
        let ours = Attributes { mtime: Attributes::NO_TIME, ..*self.files.get(path)? };
        let theirs = *self.their_files.get(path)?;
        self.differ(theirs, ours).then(|| Step::Control(Control::Attributes(path.clone(), ours)))
    }

    /// All of a file whose content came.
    fn take_after(&mut self, path: &RelPath) -> Option<Step> {
        let ours = self.files.remove(path).filter(|ours| *ours != Attributes::UNKNOWN)?;
        Some(Step::Control(Control::Attributes(path.clone(), ours)))
    }
}

fn path_of(step: &Step) -> Option<&RelPath> {
    match step {
        Step::Delete(path) | Step::Control(Control::Truncate { path, .. } | Control::Empty(path)) => Some(path),
        Step::Send(range) => Some(&range.path),
        Step::Control(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Version;
    use crate::leader::batch::{FileRange, RangeKind};
    use crate::leader::stream::whole;

    fn path(name: &str) -> RelPath {
        RelPath::new(name).unwrap()
    }

    fn with(mode: u16, mtime: i64) -> Attributes {
        Attributes { mode, mtime }
    }

    fn folder(mode: u16) -> Item {
        Item::Folder(with(mode, Attributes::NO_TIME))
    }

    fn link(target: &str) -> Item {
        Item::link(target.as_bytes()).unwrap()
    }

    fn held(name: &str, attributes: Attributes) -> Held {
        Held { path: path(name), len: 0, digests: Vec::new(), attributes }
    }

    fn send(name: &str, kind: RangeKind) -> Step {
        Step::Send(FileRange { kind, ..whole(&path(name), Version { generation: 1, len: 5 }) })
    }

    fn words(steps: &[Step]) -> Vec<String> {
        let word = |step: &Step| match step {
            Step::Delete(path) => format!("delete {path}"),
            Step::Send(range) => format!("{:?} {}", range.kind, range.path).to_lowercase(),
            Step::Control(Control::Rename { from, to }) => format!("rename {from} {to}"),
            Step::Control(Control::RemoveItem(path)) => format!("remove {path}"),
            Step::Control(Control::Item(path, Item::Folder(attributes))) => {
                format!("folder {path} {:o}", attributes.mode)
            }
            Step::Control(Control::Item(path, Item::Link { .. })) => format!("link {path}"),
            Step::Control(Control::Attributes(path, Attributes { mode, mtime: Attributes::NO_TIME, .. })) => {
                format!("mode {path} {mode:o}")
            }
            Step::Control(Control::Attributes(path, Attributes { mode, mtime, .. })) => {
                format!("{path} has {mode:o} {mtime}")
            }
            step => panic!("{step:?}"),
        };
        steps.iter().map(word).collect()
    }

    #[test]
    fn what_goes_comes_and_has_other_attributes_is_told_in_an_order_that_fits() {
        let files = [("a", with(0o600, 1)), ("b", with(0o644, 2)), ("new", with(0o640, 3)), ("same", with(0o600, 4))];
        let files: Vec<_> = files.map(|(name, attributes)| (path(name), attributes)).into();
        let items = [
            ("d", folder(0o755)),
            ("d/e", folder(0o700)),
            ("d/l", link("x")),
            ("was-link", folder(0o700)),
            ("a", link("y")),
        ];
        let items: Vec<_> = items.map(|(name, item)| (path(name), item)).into();
        let mut others = Others::of(files.iter().map(|(path, its)| (path, *its)), items.iter());
        for (name, attributes) in [("a", with(0o644, 1)), ("old", with(0o600, 9)), ("same", with(0o600, 4))] {
            others.told_file(&held(name, attributes));
        }
        let theirs = [
            ("d", folder(0o700)),
            ("d/l", link("x")),
            ("was-link", link("y")),
            ("gone", folder(0o700)),
            ("gone/in", folder(0o700)),
            ("unknown", link("z")),
        ];
        for (name, item) in theirs {
            assert!(others.told_item(path(name), item));
        }
        assert!(!others.told_item(path("d"), folder(0o700)), "told twice");
        let renamed = Step::Control(Control::Rename { from: path("old"), to: path("b") });
        let steps =
            vec![renamed, send("a", RangeKind::Patch), send("a", RangeKind::Append), send("new", RangeKind::Append)];
        let all = others.add_to(vec![path("stray")], steps, |path| path.as_str() == "unknown");
        let told = [
            "delete stray",
            "remove was-link",
            "rename old b",
            "remove gone/in",
            "remove gone",
            "folder d 755",
            "folder d/e 700",
            "folder was-link 700",
            "mode a 600",
            "patch a",
            "append a",
            "a has 600 1",
            "append new",
            "new has 640 3",
            "b has 644 2",
        ];
        assert_eq!(words(&all), told);
    }

    #[test]
    fn what_nobody_looked_at_is_not_told_and_a_time_that_is_not_known_differs_from_none() {
        let files = [(path("unknown"), Attributes::UNKNOWN), (path("busy"), with(0o600, Attributes::NO_TIME))];
        let mut others = Others::of(files.iter().map(|(path, its)| (path, *its)), [].iter());
        others.told_file(&held("unknown", with(0o644, 5)));
        others.told_file(&held("busy", with(0o600, 5)));
        let steps = vec![send("unknown", RangeKind::Append)];
        assert_eq!(words(&others.add_to(Vec::new(), steps, |_| false)), ["append unknown"]);
    }
}
