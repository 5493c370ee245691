//! What is taken over unread of the files that the leader found, and what is not: from its own look, or from the watcher's.

use std::os::fd::{AsFd, BorrowedFd};

use sha1::{Digest, Sha1};

use super::*;
use crate::datadir::{FoundFile, Visitor, walk};
use crate::digests::now;

/// A directory that was found, and whether it is known what the files hold.
struct Found {
    dir: tempfile::TempDir,
    fake: Fake,
}

/// Writes another byte than any of those that are there.
fn change(path: &Path, at: u64) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[255], at).unwrap();
}

fn stamps(path: &Path) -> Stamps {
    Stamps::of_file(File::open(path).unwrap().as_fd()).unwrap()
}

/// A leader's walk, which stops for a moment in each folder.
struct Walk<'a>(FirstLook, &'a mut dyn FnMut(Option<&RelPath>));

impl Visitor for Walk<'_> {
    fn lists(&mut self, path: Option<&RelPath>, folder: BorrowedFd<'_>) {
        self.0.lists(path, folder);
        self.1(path);
    }

    fn file(&mut self, file: FoundFile) {
        self.0.file(file.path, &file.looks);
    }
}

fn first_look(root: &Path, amid: &mut dyn FnMut(Option<&RelPath>)) -> FirstLook {
    let mut walked = Walk(FirstLook::begin(root).unwrap(), amid);
    walk(&walked.0.dir.clone(), None, &mut walked).unwrap();
    walked.0
}

impl Found {
    fn new(files: &[(&str, usize)], is_digested: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::new(dir.path());
        for (name, len) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            // No two of its bytes that follow each other are the same.
            fs::write(&path, (0..*len).map(|at| u8::try_from(at % 251).unwrap()).collect::<Vec<_>>()).unwrap();
        }
        let mut state = fake.state.lock();
        for (name, content) in contents(dir.path()) {
            state.generation(&name);
            while !stamps(&dir.path().join(&name)).settled(now()) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let looks = stamps(&dir.path().join(&name));
            let chunks = content.chunks(256 << 10).map(|chunk| Sha1::digest(chunk).into()).collect();
            if is_digested {
                state.digested.insert(name.clone(), Digested { stamps: looks, bytes: looks.size, chunks });
            }
            state.found.insert(name.clone(), looks);
            state.files.insert(name, content);
        }
        fake.blocks.make_room(1..state.last_generation + 1);
        state.first_look = Some(first_look(dir.path(), &mut |_| ()));
        drop(state);
        Self { dir, fake }
    }

    /// The leader was not told that it would be watched.
    fn unwatched(self) -> Self {
        self.fake.state.lock().first_look = None;
        self
    }

    fn open(&self) -> Tree<Fake> {
        let mut tree = Tree::open(self.dir.path(), self.fake.clone()).unwrap();
        assert!(tree.announce_dirty(false, &|| true).is_ok());
        tree
    }

    /// A follower that joins reads all that is announced, as far as it is.
    fn is_read(&self) {
        self.fake.note_reads();
        let files: Vec<_> = self.fake.files();
        for (path, len) in files {
            let Version { generation, .. } = self.fake.version(&path).unwrap();
            let file = File::open(path.below(self.dir.path())).unwrap();
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            let reading = self.fake.blocks.begin(&path, generation, 0..len, len).unwrap();
            file.read_exact_at(&mut bytes, 0).unwrap();
            reading.took(&file, &bytes);
            self.fake.state.lock().files.insert(path.to_string(), bytes);
        }
    }

    fn append(&self, name: &str, bytes: &[u8]) {
        OpenOptions::new().append(true).open(self.dir.path().join(name)).unwrap().write_all(bytes).unwrap();
    }

    fn cut(&self, name: &str, len: u64) {
        OpenOptions::new().write(true).open(self.dir.path().join(name)).unwrap().set_len(len).unwrap();
    }

    /// What is announced of what happened; it equals what is there then.
    fn announced(&self, tree: &mut Tree<Fake>) -> Vec<String> {
        loop {
            tree.collect().unwrap();
            assert!(tree.announce_dirty(true, &|| true).is_ok());
            while matches!(tree.compare(), Ok(true)) {}
            match tree.next_look().into_iter().chain(tree.next_comparison()).min() {
                Some(at) => std::thread::sleep(at.saturating_duration_since(Instant::now())),
                None => break,
            }
        }
        assert!(self.fake.state.lock().files == contents(self.dir.path()), "the copy differs");
        self.fake.take_log()
    }
}

#[test]
fn what_is_as_it_was_found_and_grows_is_an_append_where_its_digests_show_what_it_was() {
    for len in [0, 1, 4096, 300_000, 3_000_000] {
        let found = Found::new(&[("d/f", len)], true);
        let mut tree = found.open();
        assert_eq!(found.announced(&mut tree), [""; 0]);
        found.append("d/f", b"more");
        assert_eq!(found.announced(&mut tree), [format!("append d/f {len}+4")]);
        // From then on it is known what it ends with.
        let (was, block) = (len + 4, (len + 4) / 16_384 * 16_384);
        found.cut("d/f", len as u64 + 2);
        found.append("d/f", b"else");
        let announced = [format!("append d/f {was}+2"), format!("write d/f {block}+{}", was - block)];
        assert_eq!(found.announced(&mut tree), announced);
    }
}

#[test]
fn what_changed_before_its_end_before_it_grew_is_told_by_digests_of_what_nobody_had_read() {
    for len in [4, 4096, 300_000] {
        let found = Found::new(&[("f", len)], true);
        let mut tree = found.open();
        found.cut("f", len as u64 - 2);
        found.append("f", b"longer");
        let announced = found.announced(&mut tree);
        let block = len / 16_384 * 16_384;
        assert_eq!(announced[..2], [format!("append f {len}+4"), format!("write f {block}+{}", len - block)]);
        // A chunk is all that is known.
        let rest = if len > 16_384 { vec!["write f 262144+32768"] } else { Vec::new() };
        assert_eq!(announced[2..], rest);
    }
}

#[test]
fn of_what_nobody_has_read_nothing_is_announced_but_what_is_new() {
    let found = Found::new(&[("small", 4096), ("large", 300_000)], false);
    let mut tree = found.open();
    for name in ["small", "large"] {
        change(&found.dir.path().join(name), 5);
        found.append(name, b"more");
    }
    // Whoever reads it reads what is there.
    found.is_read();
    let mut announced = found.announced(&mut tree);
    announced.sort();
    assert_eq!(announced, ["append large 300000+4", "append small 4096+4"]);
}

#[test]
fn what_was_read_before_it_was_changed_is_announced() {
    let found = Found::new(&[("small", 4096), ("large", 300_000)], false);
    let mut tree = found.open();
    found.is_read();
    for name in ["small", "large"] {
        change(&found.dir.path().join(name), 5);
        found.append(name, b"more");
    }
    let mut announced = found.announced(&mut tree);
    announced.sort();
    let expected = ["append large 300000+4", "append small 4096+4", "write large 0+16384", "write small 0+4096"];
    assert_eq!(announced, expected);
}

#[test]
fn what_changed_before_the_watcher_began_is_announced_if_it_was_read() {
    for (is_read, is_watched) in [(true, true), (false, true), (true, false), (false, false)] {
        let mut found = Found::new(&[("f", 50_000), ("grown", 5000)], false);
        if !is_watched {
            found = found.unwatched();
        }
        if is_read {
            found.is_read();
        }
        change(&found.dir.path().join("f"), 5);
        found.append("grown", b"more");
        if !is_read {
            found.is_read();
        }
        let mut tree = found.open();
        let mut announced = found.announced(&mut tree);
        announced.sort();
        let expected = ["append grown 5000+4", "write f 0+16384"];
        assert_eq!(announced, if is_read { &expected[..] } else { &expected[..1] });
    }
}

#[test]
fn what_went_and_what_came_before_the_watcher_began_is_announced() {
    for is_watched in [true, false] {
        let mut found = Found::new(&[("d/a", 1), ("d/b", 1), ("e/c", 1), ("z", 1)], false);
        if !is_watched {
            found = found.unwatched();
        }
        fs::remove_dir_all(found.dir.path().join("d")).unwrap();
        fs::write(found.dir.path().join("d"), "a file").unwrap();
        fs::create_dir(found.dir.path().join("z.d")).unwrap();
        fs::write(found.dir.path().join("z.d/new"), "new").unwrap();
        let mut tree = found.open();
        let mut announced = found.announced(&mut tree);
        announced.sort();
        assert_eq!(announced, ["append d 0+6", "append z.d/new 0+3", "delete d/a", "delete d/b"]);
    }
}

#[test]
fn what_happens_amid_the_leaders_walk_is_announced() {
    let found = Found::new(&[("a", 100), ("d/b", 50_000), ("d/c", 100), ("e/f", 100), ("c/h", 100)], false);
    found.is_read();
    let at = |name: &str| found.dir.path().join(name);
    // It has looked at `a` and at all that is in `c` and `d` when it comes to `e`.
    let look = first_look(found.dir.path(), &mut |path| {
        if path.is_some_and(|path| path.as_str() == "e") {
            found.append("a", b"more");
            change(&at("d/b"), 5);
            fs::remove_file(at("d/c")).unwrap();
            fs::rename(at("c"), at("i")).unwrap();
            fs::create_dir(at("d/new")).unwrap();
            fs::write(at("d/new/j"), "new").unwrap();
        }
    });
    found.fake.state.lock().first_look = Some(look);
    let mut tree = found.open();
    let mut announced = found.announced(&mut tree);
    announced.sort();
    let renamed = "rename c/h i/h";
    let expected = ["append a 100+4", "append d/new/j 0+3", "delete d/c", renamed, "write d/b 0+16384"];
    assert_eq!(announced, expected);
}

#[test]
fn events_that_are_too_many_amid_the_leaders_walk_have_all_looked_at() {
    let found = Found::new(&[("a", 100), ("d/b", 100)], true);
    let mut look = first_look(found.dir.path(), &mut |_| ());
    found.append("d/b", b"more");
    look.inotify.lose_pending();
    found.fake.state.lock().first_look = Some(look);
    let mut tree = found.open();
    assert_eq!(found.announced(&mut tree), ["append d/b 100+4"]);
}

#[test]
fn of_a_file_that_was_not_at_rest_all_is_compared() {
    let found = Found::new(&[("f", 50_000)], false);
    found.is_read();
    change(&found.dir.path().join("f"), 5);
    // It has the time of the change already.
    let look = first_look(found.dir.path(), &mut |_| ());
    assert_eq!((look.files.files.len(), &look.others[..]), (0, &[RelPath::new("f").unwrap()][..]));
    found.fake.state.lock().first_look = Some(look);
    let mut tree = found.open();
    assert_eq!(found.announced(&mut tree), ["write f 0+16384"]);
}

#[test]
fn files_of_which_nothing_was_read_are_renamed_moved_with_their_folder_and_deleted() {
    let found = Found::new(&[("d/a", 100), ("d/b", 100), ("d/c", 5000), ("f", 100)], true);
    let mut tree = found.open();
    let at = |name: &str| found.dir.path().join(name);
    fs::rename(at("d/a"), at("g")).unwrap();
    fs::rename(at("d"), at("e")).unwrap();
    found.append("e/c", b"more");
    fs::remove_file(at("f")).unwrap();
    let mut announced = found.announced(&mut tree);
    announced.sort();
    assert_eq!(announced, ["append e/c 5000+4", "delete f", "rename d/a g", "rename d/b e/b", "rename d/c e/c"]);
}

#[test]
fn all_is_looked_at_after_events_were_lost_also_that_of_which_nothing_was_read() {
    let found = Found::new(&[("a", 100), ("b", 100), ("c", 100)], true);
    let mut tree = found.open();
    found.append("a", b"more");
    fs::remove_file(found.dir.path().join("b")).unwrap();
    tree.lose_pending_events();
    tree.rescan().unwrap();
    assert_eq!(found.announced(&mut tree), ["append a 100+4", "delete b"]);
}
