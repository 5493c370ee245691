//! What the first look takes over unread of files that are as the leader found them, and what it does not.

use std::os::fd::AsFd;

use sha1::{Digest, Sha1};

use super::*;

/// A directory that was found, and whether it is known what the files hold.
struct Found {
    dir: tempfile::TempDir,
    fake: Fake,
}

fn stamps(path: &Path) -> Stamps {
    Stamps::of_file(File::open(path).unwrap().as_fd()).unwrap()
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
        pass_tick();
        let mut state = fake.state.lock();
        for (name, content) in contents(dir.path()) {
            let looks = stamps(&dir.path().join(&name));
            let chunks = content.chunks(256 << 10).map(|chunk| Sha1::digest(chunk).into()).collect();
            if is_digested {
                state.digested.insert(name.clone(), Digested { stamps: looks, bytes: looks.size, chunks });
            }
            state.found.insert(name.clone(), looks);
            state.files.insert(name, content);
        }
        drop(state);
        Self { dir, fake }
    }

    fn open(&self) -> Tree<Fake> {
        let mut tree = Tree::open(self.dir.path(), self.fake.clone()).unwrap();
        assert!(tree.announce_dirty(false, &|| true).is_ok());
        tree
    }

    fn append(&self, name: &str, bytes: &[u8]) {
        OpenOptions::new().append(true).open(self.dir.path().join(name)).unwrap().write_all(bytes).unwrap();
    }

    fn cut(&self, name: &str, len: u64) {
        OpenOptions::new().write(true).open(self.dir.path().join(name)).unwrap().set_len(len).unwrap();
    }

    /// What is announced of what happened; it equals what is there then.
    fn announced(&self, tree: &mut Tree<Fake>) -> Vec<String> {
        tree.collect().unwrap();
        assert!(tree.announce_dirty(true, &|| true).is_ok());
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
        found.cut("d/f", len as u64 + 2);
        found.append("d/f", b"else");
        assert_eq!(found.announced(&mut tree), [format!("replace d/f {}", len + 6)]);
    }
}

#[test]
fn what_changed_before_its_end_before_it_grew_is_told_by_digests_of_what_nobody_had_read() {
    for len in [4, 4096, 300_000] {
        let found = Found::new(&[("f", len)], true);
        let mut tree = found.open();
        found.cut("f", len as u64 - 2);
        found.append("f", b"longer");
        assert_eq!(found.announced(&mut tree), [format!("replace f {}", len + 4)]);
    }
}

#[test]
fn of_a_small_file_without_digests_nothing_is_read_until_it_changes_and_of_a_large_one_its_end() {
    let found = Found::new(&[("small", 4096), ("large", 4097)], false);
    let mut tree = found.open();
    for name in ["small", "large"] {
        found.append(name, b"more");
    }
    let mut announced = found.announced(&mut tree);
    announced.sort();
    assert_eq!(announced, ["append large 4097+4", "replace small 4100"]);
}

#[test]
fn digests_of_how_a_file_looked_at_another_time_show_nothing() {
    let found = Found::new(&[("f", 10)], true);
    let mut tree = found.open();
    found.append("f", b"more");
    // They were made after it changed, before we looked.
    let now = stamps(&found.dir.path().join("f"));
    let digest = Sha1::digest(&fs::read(found.dir.path().join("f")).unwrap()[..10]).into();
    found.fake.state.lock().digested.insert("f".to_owned(), Digested { stamps: now, bytes: 10, chunks: vec![digest] });
    assert_eq!(found.announced(&mut tree), ["replace f 14"]);
}

#[test]
fn what_changed_between_the_leaders_look_and_ours_is_announced_if_it_may_have_been_read() {
    for is_joined in [true, false] {
        let found = Found::new(&[("f", 5000), ("grown", 5000)], false);
        fs::write(found.dir.path().join("f"), vec![7; 5000]).unwrap();
        found.append("grown", b"more");
        found.fake.state.lock().is_joined = is_joined;
        if !is_joined {
            // Nobody has any of it: what is read later is what is there.
            found.fake.state.lock().files.insert("f".to_owned(), vec![7; 5000]);
        }
        let mut tree = found.open();
        let announced = found.announced(&mut tree);
        let expected = if is_joined { ["replace f 5000", "replace grown 5004"] } else { ["append grown 5000+4"; 2] };
        assert_eq!(announced, expected[usize::from(!is_joined)..]);
    }
}

#[test]
fn what_only_grew_between_the_two_looks_is_an_append_also_where_it_was_read() {
    let found = Found::new(&[("f", 5000)], true);
    found.append("f", b"more");
    found.fake.state.lock().is_joined = true;
    let mut tree = found.open();
    assert_eq!(found.announced(&mut tree), ["append f 5000+4"]);
}

#[test]
fn what_changed_just_before_the_leaders_look_is_known_by_what_it_ended_with() {
    for is_cut in [false, true] {
        let found = Found::new(&[("f", 5000)], false);
        let file = File::open(found.dir.path().join("f")).unwrap();
        let tail = Tail::read(&file, 5000).unwrap();
        found.fake.state.lock().tails.insert("f".to_owned(), tail);
        if is_cut {
            found.cut("f", 4999);
        }
        found.append("f", b"more");
        found.fake.state.lock().is_joined = true;
        let mut tree = found.open();
        let expected = if is_cut { "replace f 5003" } else { "append f 5000+4" };
        assert_eq!(found.announced(&mut tree), [expected]);
    }
}

#[test]
fn what_went_and_what_came_between_the_two_looks_is_announced() {
    let found = Found::new(&[("d/a", 1), ("d/b", 1), ("e/c", 1), ("z", 1)], false);
    fs::remove_dir_all(found.dir.path().join("d")).unwrap();
    fs::write(found.dir.path().join("d"), "a file").unwrap();
    fs::create_dir(found.dir.path().join("z.d")).unwrap();
    fs::write(found.dir.path().join("z.d/new"), "new").unwrap();
    let mut tree = found.open();
    let mut announced = found.announced(&mut tree);
    announced.sort();
    assert_eq!(announced, ["append d 0+6", "append z.d/new 0+3", "delete d/a", "delete d/b"]);
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
