//! The watcher against a model of a follower: what is announced is applied to it, and it must come to equal the directory.

mod away;
mod first_look;
mod in_place;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Error as IoError, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Watcher;
use super::announce::Announce;
use super::tree::{BY_REFERENCE_BYTES_MIN, Tree, Trouble};
use crate::digests::{Digested, Stamps};
use crate::error::AppendError;
use crate::first_look::FirstLook;
use crate::index::Version;
use crate::index::blocks::Blocks;
use crate::protocol::extension::ChunkDigest;
use crate::types::RelPath;

type Model = BTreeMap<String, Vec<u8>>;

/// A leader that applies what it is told to a model at once.
#[derive(Clone)]
struct Fake {
    root: PathBuf,
    state: Arc<Mutex<State>>,
    blocks: Arc<Blocks>,
}

#[derive(Default)]
struct State {
    files: Model,
    /// Device and inode of what was read from disk of a file; `None`: something else than was announced.
    read: BTreeMap<String, Option<(u64, u64)>>,
    /// What was announced, as words.
    log: Vec<String>,
    /// Names to be looked at for what is no content.
    looked_at_again: BTreeSet<String>,
    /// The look at all there was that was taken at the start.
    first_look: Option<FirstLook>,
    /// How files looked that were found then ...
    found: BTreeMap<String, Stamps>,
    /// ... and what is known of what they held.
    digested: BTreeMap<String, Digested>,
    generations: BTreeMap<String, u64>,
    last_generation: u64,
}

impl State {
    fn generation(&mut self, path: &str) -> u64 {
        if !self.generations.contains_key(path) {
            self.begins_anew(path);
        }
        self.generations[path]
    }

    fn begins_anew(&mut self, path: &str) {
        self.last_generation += 1;
        self.generations.insert(path.to_owned(), self.last_generation);
    }

    /// Notes which file was read, as a leader does.
    fn reads(&mut self, path: &RelPath, file: Option<(u64, u64)>) {
        let read = self.read.entry(path.to_string()).or_insert(file);
        *read = read.filter(|read| Some(*read) == file);
    }

    /// A follower could not make it so.
    fn assert_no_file_is_a_folder(&self, path: &RelPath) {
        let below = format!("{path}/");
        let (path, files) = (path.as_str(), &self.files);
        let above = path.match_indices('/').find(|(end, _)| files.contains_key(&path[..*end]));
        let below = files.range(below.clone()..).next().filter(|(other, _)| other.starts_with(&below));
        assert!(
            above.is_none() && below.is_none(),
            "{path}: {above:?} {:?}; {:#?}",
            below.map(|(path, _)| path),
            self.log
        );
    }
}

impl Fake {
    fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), state: Arc::default(), blocks: Arc::default() }
    }

    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().log)
    }

    fn append_to_model(&self, path: &RelPath, offset: u64, bytes: &[u8]) -> Result<(), AppendError> {
        let mut state = self.state.lock();
        state.generation(path.as_str());
        let file = state.files.entry(path.to_string()).or_default();
        let length = file.len() as u64;
        if length != offset {
            return Err(AppendError::Offset { path: path.clone(), offset, length });
        }
        file.extend_from_slice(bytes);
        state.assert_no_file_is_a_folder(path);
        Ok(())
    }
}

impl Announce for Fake {
    fn append(&self, path: &RelPath, offset: u64, bytes: &[u8]) -> Result<(), AppendError> {
        self.state.lock().log.push(format!("append {path} {offset}+{}", bytes.len()));
        self.append_to_model(path, offset, bytes)
    }

    fn append_from_file(&self, path: &RelPath, offset: u64, length: u64) -> Result<(), AppendError> {
        self.state.lock().log.push(format!("reference {path} {offset}+{length}"));
        // Padded where the file has become shorter, as a leader does.
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        let mut read = None;
        if let Ok(file) = File::open(path.below(&self.root)) {
            let generation = self.state.lock().generation(path.as_str());
            let reading = self.blocks.begin(path, generation, offset..offset + length, offset + length);
            let mut done = 0;
            while let Ok(n @ 1..) = file.read_at(&mut bytes[done..], offset + done as u64) {
                done += n;
            }
            read = (done == bytes.len()).then(|| id_of(&file));
            if let (Some(reading), Some(_)) = (reading, read) {
                reading.took(&file, &bytes);
            }
        }
        self.append_to_model(path, offset, &bytes)?;
        self.state.lock().reads(path, read);
        Ok(())
    }

    fn replace(&self, path: &RelPath) -> Result<(), AppendError> {
        let failed = |source: IoError| AppendError::Io { doing: "read", path: path.clone(), source };
        let mut file = File::open(path.below(&self.root)).map_err(failed)?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(failed)?;
        let mut state = self.state.lock();
        state.log.push(format!("replace {path} {}", content.len()));
        state.begins_anew(path.as_str());
        self.blocks.sent(path, state.generation(path.as_str()), &content);
        state.files.insert(path.to_string(), content);
        state.read.insert(path.to_string(), Some(id_of(&file)));
        state.assert_no_file_is_a_folder(path);
        Ok(())
    }

    fn delete(&self, path: &RelPath) -> Result<(), AppendError> {
        let mut state = self.state.lock();
        state.log.push(format!("delete {path}"));
        state.read.remove(path.as_str());
        state.generations.remove(path.as_str());
        assert!(state.files.remove(path.as_str()).is_some(), "{path} was deleted but is not known");
        Ok(())
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<(), AppendError> {
        let found = fs::symlink_metadata(to.below(&self.root)).map_err(|source| AppendError::Io {
            doing: "look at",
            path: to.clone(),
            source,
        })?;
        if !self.vouches_for(from, found.dev(), found.ino()) {
            self.delete(from)?;
            return self.replace(to);
        }
        let mut state = self.state.lock();
        let read = state.read.remove(from.as_str());
        state.read.remove(to.as_str());
        state.read.extend(read.map(|read| (to.to_string(), read)));
        let generation = state.generation(from.as_str());
        state.generations.remove(from.as_str());
        state.generations.insert(to.to_string(), generation);
        state.log.push(format!("rename {from} {to}"));
        let file = state.files.remove(from.as_str()).unwrap_or_else(|| panic!("{from} was renamed but is not known"));
        state.files.insert(to.to_string(), file);
        state.assert_no_file_is_a_folder(to);
        Ok(())
    }

    fn truncate(&self, path: &RelPath, len: u64) -> Result<(), AppendError> {
        let mut state = self.state.lock();
        state.log.push(format!("truncate {path} {len}"));
        state.begins_anew(path.as_str());
        let file = state.files.get_mut(path.as_str()).unwrap();
        file.truncate(usize::try_from(len).unwrap());
        Ok(())
    }

    fn write_at(&self, path: &RelPath, offset: u64, bytes: &[u8]) -> Result<(), AppendError> {
        let mut state = self.state.lock();
        state.log.push(format!("write {path} {offset}+{}", bytes.len()));
        let file = state.files.get_mut(path.as_str()).unwrap();
        let at = usize::try_from(offset).unwrap();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn version(&self, path: &RelPath) -> Option<Version> {
        let mut state = self.state.lock();
        let len = state.files.get(path.as_str())?.len() as u64;
        Some(Version { generation: state.generation(path.as_str()), len })
    }

    fn find(&self, path: &RelPath, generation: u64) -> Option<RelPath> {
        let is_it = |(_, its): &(&String, &u64)| **its == generation;
        let state = self.state.lock();
        let found = state.generations.iter().find(is_it).map(|(path, _)| RelPath::new(path).unwrap());
        found.filter(|_| path.as_str() != "")
    }

    fn vouches_for(&self, path: &RelPath, device: u64, inode: u64) -> bool {
        self.state.lock().read.get(path.as_str()).is_none_or(|read| *read == Some((device, inode)))
    }

    fn files(&self) -> Vec<(RelPath, u64)> {
        let state = self.state.lock();
        state.files.iter().map(|(path, file)| (RelPath::new(path).unwrap(), file.len() as u64)).collect()
    }

    fn take_first_look(&self) -> Option<FirstLook> {
        self.state.lock().first_look.take()
    }

    fn was_found_as(&self, path: &RelPath, looks: &Stamps) -> bool {
        self.state.lock().found.get(path.as_str()) == Some(looks)
    }

    fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    fn note_reads(&self) {
        self.blocks.watch(|| None);
    }

    fn proven(&self, _: u64, _: Stamps) {}

    fn forget(&self, generation: u64) {
        self.blocks.forget(generation);
    }

    fn chunk(&self, generation: u64, at: u64, bytes: u64) -> Option<ChunkDigest> {
        let state = self.state.lock();
        let (path, _) = state.generations.iter().find(|(_, its)| **its == generation)?;
        let digested = state.digested.get(path)?;
        let is_of = digested.bytes.saturating_sub(at * (256 << 10)).min(256 << 10) == bytes;
        digested.chunks.get(usize::try_from(at).unwrap()).copied().filter(|_| is_of)
    }

    fn has_mode(&self, _: &RelPath, _: u32) -> Result<(), AppendError> {
        Ok(())
    }

    fn look_again(&self, path: &RelPath) {
        self.state.lock().looked_at_again.insert(path.to_string());
    }

    fn replicates(&self, path: &RelPath) -> bool {
        !path.is_reserved() && !path.as_str().ends_with(".excluded")
    }

    fn enters(&self, folder: &RelPath) -> bool {
        self.replicates(folder)
    }

    fn is_unreadable(&self, _: &RelPath, _: &IoError) {}

    fn is_readable(&self, _: &RelPath) {}

    fn compare_percent(&self) -> u32 {
        25
    }

    fn pace_bytes(&self) -> u64 {
        1
    }

    fn pace(&self) {}
}

fn id_of(file: &File) -> (u64, u64) {
    let meta = file.metadata().unwrap();
    (meta.dev(), meta.ino())
}

fn contents(root: &Path) -> Model {
    let mut files = Model::new();
    struct Found<'a>(&'a Path, &'a mut Model);
    impl crate::datadir::Visitor for Found<'_> {
        fn file(&mut self, found: crate::datadir::FoundFile) {
            self.1.insert(found.path.to_string(), fs::read(found.path.below(self.0)).unwrap());
        }
    }
    let dir = crate::beneath::Beneath::open(root).unwrap();
    crate::datadir::walk(&dir, None, &mut Found(root, &mut files)).unwrap();
    files
}

/// Blocks until the model equals the directory, or says in what they differ.
fn wait_until_equal(fake: &Fake, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let expected = contents(&fake.root);
    while fake.state.lock().files != expected {
        if Instant::now() > deadline {
            let state = fake.state.lock();
            let differing: Vec<_> = expected
                .keys()
                .chain(state.files.keys())
                .filter(|path| expected.get(*path) != state.files.get(*path))
                .map(|path| (path, expected.get(path).map(Vec::len), state.files.get(path).map(Vec::len)))
                .collect();
            let tail = &state.log[state.log.len().saturating_sub(30)..];
            panic!("{what}: (path, on disk, announced) {differing:?}; last announced: {tail:#?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A watcher's rules without its thread, for tests that say what was announced.
struct Stepped {
    dir: tempfile::TempDir,
    fake: Fake,
    tree: Tree<Fake>,
}

impl Stepped {
    fn new(prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let fake = Fake::new(dir.path());
        let tree = Tree::open(dir.path(), fake.clone()).unwrap();
        let mut stepped = Self { dir, fake, tree };
        stepped.step();
        stepped
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Announces all that happened; returns it as words.
    fn step(&mut self) -> Vec<String> {
        loop {
            self.tree.collect().unwrap();
            match self.tree.announce_dirty(false, &|| true).and_then(|()| self.tree.compare()) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(Trouble::Fatal(error)) => panic!("{error}"),
                Err(_) => panic!("stopped"),
            }
            match self.tree.next_look().into_iter().chain(self.tree.next_comparison()).min() {
                Some(at) => std::thread::sleep(at.saturating_duration_since(Instant::now())),
                None => return self.fake.take_log(),
            }
        }
    }
}

fn append(path: PathBuf, bytes: &[u8]) {
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn growth_is_announced_as_appends_and_by_reference_when_large() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), "there before").unwrap());
    append(watch.root().join("a"), b", more");
    assert_eq!(watch.step(), ["append a 12+6"]);
    let large = vec![7; usize::try_from(BY_REFERENCE_BYTES_MIN).unwrap()];
    append(watch.root().join("a"), &large);
    // By reference from one whole block to another.
    assert_eq!(watch.step(), ["append a 18+16366", "reference a 16384+245760", "append a 262144+18"]);
    append(watch.root().join("a"), b"x");
    assert_eq!(watch.step(), [format!("append a {}+1", 18 + large.len())]);
    assert_eq!(watch.step(), [""; 0]);
}

#[test]
fn every_other_change_is_announced_as_what_it_is() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), vec![1; 10_000]).unwrap());
    let file = watch.root().join("a");
    fs::write(&file, vec![2; 9_000]).unwrap();
    assert_eq!(watch.step(), ["replace a 9000"], "truncated and written anew");
    fs::write(&file, vec![3; 12_000]).unwrap();
    let announced = ["append a 9000+3000", "write a 0+9000"];
    assert_eq!(watch.step(), announced, "truncated and grown beyond its old length");
    OpenOptions::new().write(true).open(&file).unwrap().write_all_at(b"x", 5).unwrap();
    assert_eq!(watch.step(), ["replace a 12000"], "changed in place, and of no more than a block");
    fs::write(watch.root().join("b.excluded"), vec![4; 12_001]).unwrap();
    fs::rename(watch.root().join("b.excluded"), &file).unwrap();
    assert_eq!(watch.step(), ["replace a 12001"], "renamed over");
    File::create(&file).unwrap();
    assert_eq!(watch.step(), ["truncate a 0"], "emptied");
    fs::remove_file(&file).unwrap();
    assert_eq!(watch.step(), ["delete a"]);
    assert_eq!(contents(watch.root()), watch.fake.state.lock().files);
}

#[test]
fn small_files_whose_time_alone_changed_are_not_announced() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), "same").unwrap());
    fs::write(watch.root().join("a"), "same").unwrap();
    let announced = watch.step();
    assert!(announced.is_empty() || announced == ["truncate a 0", "append a 0+4"], "{announced:?}");
    File::open(watch.root().join("a")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(watch.step(), [""; 0]);
}

#[test]
fn a_file_deleted_and_made_again_is_replaced_even_with_its_old_inode_and_beginning() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), vec![1; 5000]).unwrap());
    fs::remove_file(watch.root().join("a")).unwrap();
    fs::write(watch.root().join("a"), vec![1; 6000]).unwrap();
    assert_eq!(watch.step(), ["replace a 6000"]);
}

#[test]
fn folders_are_found_with_what_is_in_them_and_go_with_it() {
    let mut watch = Stepped::new(|_| {});
    fs::create_dir_all(watch.root().join("x/y/z")).unwrap();
    fs::write(watch.root().join("x/y/z/deep"), "1").unwrap();
    assert_eq!(watch.step(), ["append x/y/z/deep 0+1"]);
    append(watch.root().join("x/y/z/deep"), b"2");
    assert_eq!(watch.step(), ["append x/y/z/deep 1+1"]);
    fs::rename(watch.root().join("x/y"), watch.root().join("w")).unwrap();
    assert_eq!(watch.step(), ["rename x/y/z/deep w/z/deep"]);
    append(watch.root().join("w/z/deep"), b"3");
    assert_eq!(watch.step(), ["append w/z/deep 2+1"], "the watch went with the folder");
    let outside = tempfile::tempdir().unwrap();
    fs::rename(watch.root().join("w"), outside.path().join("w")).unwrap();
    assert_eq!(watch.step(), ["delete w/z/deep"]);
    append(outside.path().join("w/z/deep"), b"4");
    assert_eq!(watch.step(), [""; 0], "what left the directory is not watched");
    fs::rename(outside.path().join("w"), watch.root().join("w")).unwrap();
    assert_eq!(watch.step(), ["append w/z/deep 0+4"]);
    fs::remove_dir_all(watch.root().join("w")).unwrap();
    assert_eq!(watch.step(), ["delete w/z/deep"]);
}

/// Past the clock tick in which a file's identity is not certain yet.
fn pass_tick() {
    std::thread::sleep(Duration::from_millis(15));
}

/// Files of more than a tail, each with content of its own, announced when their identity is certain.
fn with_files(names: &[&str]) -> Stepped {
    let mut watch = Stepped::new(|root| {
        for (number, name) in (1..).zip(names) {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), vec![number; 10_000 + usize::from(number)]).unwrap();
        }
        pass_tick();
    });
    watch.step();
    watch
}

impl Stepped {
    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.root().join(from), self.root().join(to)).unwrap();
    }

    /// Announces all that happened, after which the copy must be equal.
    #[track_caller]
    fn assert_announced(&mut self, expected: &[&str]) {
        assert_eq!(self.step(), expected);
        assert!(contents(self.root()) == self.fake.state.lock().files, "the copy differs");
    }
}

#[test]
fn a_renamed_file_is_announced_as_that_with_what_it_grew_by() {
    let mut watch = with_files(&["a", "z"]);
    watch.rename("a", "b");
    watch.assert_announced(&["rename a b"]);
    append(watch.root().join("b"), b"+");
    watch.rename("b", "a");
    append(watch.root().join("a"), b"+");
    watch.assert_announced(&["rename b a", "append a 10001+2"]);
    watch.rename("a", "z");
    watch.assert_announced(&["rename a z"]);
    watch.rename("z", "y");
    watch.rename("y", "x");
    watch.rename("x", "w");
    watch.assert_announced(&["rename z w"]);
    watch.rename("w", "v");
    watch.rename("v", "w");
    watch.assert_announced(&[]);
    fs::hard_link(watch.root().join("w"), watch.root().join("x")).unwrap();
    watch.assert_announced(&["append x 0+10003"]);
    fs::remove_file(watch.root().join("w")).unwrap();
    watch.assert_announced(&["delete w"]);
}

#[test]
fn chains_of_renames_are_announced_from_their_end() {
    let mut watch = with_files(&["log", "log.1", "log.2", "log.3"]);
    for (from, to) in [("log.2", "log.3"), ("log.1", "log.2"), ("log", "log.1")] {
        watch.rename(from, to);
    }
    fs::write(watch.root().join("log"), "new").unwrap();
    watch.assert_announced(&["rename log.2 log.3", "rename log.1 log.2", "rename log log.1", "append log 0+3"]);
    let mut watch = with_files(&["c", "b", "a"]);
    for (from, to) in [("c", "d"), ("b", "c"), ("a", "b")] {
        watch.rename(from, to);
    }
    watch.assert_announced(&["rename c d", "rename b c", "rename a b"]);
}

#[test]
fn of_files_that_change_names_in_a_circle_one_is_announced_anew() {
    let mut watch = with_files(&["a", "b"]);
    for (from, to) in [("a", "c"), ("b", "a"), ("c", "b")] {
        watch.rename(from, to);
    }
    watch.assert_announced(&["rename a b", "append a 0+10002"]);
    for (from, to) in [("a", "c"), ("b", "a"), ("c", "b")] {
        watch.rename(from, to);
    }
    fs::create_dir(watch.root().join("d")).unwrap();
    watch.rename("b", "d/b");
    watch.rename("a", "b");
    watch.rename("d/b", "a");
    watch.assert_announced(&[]);
}

#[test]
fn a_renamed_file_that_changed_as_well_is_renamed_unless_it_is_shorter() {
    let mut watch = with_files(&["a", "b", "c"]);
    let rewrite = |name: &str, len| fs::write(watch.dir.path().join(name), vec![9; len]).unwrap();
    rewrite("a", 12_000);
    rewrite("b", 9_000);
    rewrite("c", 0);
    for (from, to) in [("a", "x"), ("b", "y"), ("c", "z")] {
        watch.rename(from, to);
    }
    let announced = [
        "rename a x",
        "rename c z",
        "delete b",
        "append x 10001+1999",
        "write x 0+10001",
        "append y 0+9000",
        "truncate z 0",
    ];
    watch.assert_announced(&announced);
}

#[test]
fn a_file_made_and_renamed_at_once_arrives() {
    let mut watch = with_files(&["a"]);
    let temporary = watch.root().join("temporary");
    fs::write(&temporary, vec![8; 20_000]).unwrap();
    watch.rename("temporary", "a");
    watch.assert_announced(&["replace a 20000"]);
    fs::write(&temporary, vec![7; 20_000]).unwrap();
    pass_tick();
    watch.assert_announced(&["append temporary 0+20000"]);
    watch.rename("temporary", "a");
    watch.assert_announced(&["rename temporary a"]);
}

#[test]
fn files_that_are_not_replicated_are_new_where_they_appear() {
    let mut watch = with_files(&["a", "b.excluded"]);
    assert_eq!(watch.fake.state.lock().files.len(), 1);
    watch.rename("a", "a.excluded");
    assert_eq!(watch.step(), ["delete a"]);
    watch.rename("a.excluded", "a");
    assert_eq!(watch.step(), ["append a 0+10001"]);
    watch.rename("b.excluded", "a");
    assert_eq!(watch.step(), ["replace a 10002"]);
}

#[test]
fn files_of_a_renamed_folder_are_renamed_and_still_watched() {
    let mut watch = with_files(&["d/a", "d/e/a", "d/e/b", "z/c"]);
    watch.rename("d", "y");
    watch.assert_announced(&["rename d/a y/a", "rename d/e/a y/e/a", "rename d/e/b y/e/b"]);
    append(watch.root().join("y/e/b"), b"+");
    watch.assert_announced(&["append y/e/b 10003+1"]);
    watch.rename("y/e", "e");
    watch.rename("y", "e/y");
    watch.rename("e", "d");
    watch.assert_announced(&["rename y/a d/y/a", "rename y/e/a d/a", "rename y/e/b d/b"]);
    append(watch.root().join("d/y/a"), b"+");
    watch.assert_announced(&["append d/y/a 10001+1"]);
}

#[test]
fn what_the_leader_lost_while_a_folder_was_away_is_announced_when_it_is_back() {
    let mut watch = with_files(&["d/a", "d/e/b", "d/e/c"]);
    watch.rename("d", "$away");
    for name in ["d/a", "d/e/b"] {
        watch.fake.state.lock().files.remove(name);
    }
    watch.rename("$away", "d");
    watch.assert_announced(&["replace d/a 10001", "replace d/e/b 10002"]);
}

#[test]
fn what_the_leader_read_from_another_file_meanwhile_is_announced_again() {
    let mut watch = with_files(&["a", "d/b", "z"]);
    let swap = |watch: &Stepped| {
        watch.rename("d", "$away");
        watch.rename("a", "$a");
        fs::create_dir(watch.root().join("d")).unwrap();
        watch.rename("z", "a");
        fs::copy(watch.root().join("a"), watch.root().join("d/b")).unwrap();
    };
    let swap_back = |watch: &Stepped| {
        fs::remove_dir_all(watch.root().join("d")).unwrap();
        watch.rename("$away", "d");
        watch.rename("a", "z");
        watch.rename("$a", "a");
    };
    swap(&watch);
    swap_back(&watch);
    watch.assert_announced(&[]);
    swap(&watch);
    for name in ["a", "d/b"] {
        // A follower joins: as long as the file was announced, from what is there.
        let path = RelPath::new(name).unwrap();
        let len = watch.fake.state.lock().files.remove(name).unwrap().len();
        watch.fake.append_from_file(&path, 0, len as u64).unwrap();
    }
    watch.fake.take_log();
    swap_back(&watch);
    watch.assert_announced(&["replace a 10001", "replace d/b 10002"]);
}

#[test]
fn files_and_folders_that_take_each_others_names_arrive() {
    let mut watch = with_files(&["a", "d/b", "e/f/c"]);
    // A file gets the name of its folder.
    watch.rename("d/b", "b");
    fs::remove_dir(watch.root().join("d")).unwrap();
    watch.rename("b", "d");
    // A folder gets the name of the file that is moved into it.
    watch.rename("a", "b");
    fs::create_dir(watch.root().join("a")).unwrap();
    watch.rename("b", "a/b");
    // A file gets the name of a folder that was renamed.
    watch.rename("e", "g");
    fs::write(watch.root().join("e"), "e").unwrap();
    let announced = watch.step();
    assert!(announced.contains(&"rename e/f/c g/f/c".into()), "{announced:?}");
    assert!(contents(watch.root()) == watch.fake.state.lock().files);
}

#[test]
fn a_file_that_becomes_a_folder_or_a_link_is_deleted() {
    let mut watch = Stepped::new(|root| {
        fs::write(root.join("a"), "1").unwrap();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/x"), "1").unwrap();
    });
    fs::remove_file(watch.root().join("a")).unwrap();
    fs::create_dir(watch.root().join("a")).unwrap();
    fs::write(watch.root().join("a/x"), "2").unwrap();
    fs::rename(watch.root().join("d"), watch.root().join("backups")).unwrap();
    symlink("/etc", watch.root().join("d")).unwrap();
    symlink("/etc/passwd", watch.root().join("link")).unwrap();
    assert_eq!(watch.step(), ["delete a", "append a/x 0+1", "delete d/x"]);
}

#[test]
fn after_lost_events_everything_is_looked_at() {
    let mut watch = Stepped::new(|root| {
        fs::create_dir_all(root.join("d/e")).unwrap();
        for name in ["grown", "gone", "d/e/changed", "d/gone"] {
            fs::write(root.join(name), "before").unwrap();
        }
    });
    append(watch.root().join("grown"), b"+");
    fs::remove_file(watch.root().join("gone")).unwrap();
    fs::rename(watch.root().join("d"), watch.root().join("f")).unwrap();
    fs::write(watch.root().join("f/e/changed"), "after!!").unwrap();
    fs::remove_file(watch.root().join("f/gone")).unwrap();
    watch.tree.lose_pending_events();
    assert_eq!(watch.step(), [""; 0], "the events were not lost");
    watch.tree.rescan().unwrap();
    let mut announced = watch.step();
    announced.sort();
    let expected = [
        "append f/e/changed 6+1",
        "append grown 6+1",
        "delete d/gone",
        "delete gone",
        "rename d/e/changed f/e/changed",
        "write f/e/changed 0+6",
    ];
    assert_eq!(announced, expected);
    append(watch.root().join("f/e/changed"), b"+");
    assert_eq!(watch.step(), ["append f/e/changed 7+1"], "the moved folder is still watched");
}

#[test]
fn a_leader_with_another_length_is_brought_back_in_step() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), "12345").unwrap());
    watch.fake.state.lock().files.insert("a".into(), b"12".to_vec());
    append(watch.root().join("a"), b"6");
    assert_eq!(watch.step(), ["replace a 6"]);
}

#[test]
fn what_the_leader_knows_already_is_not_announced_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("same"), "12345").unwrap();
    fs::write(dir.path().join("grown"), "12345").unwrap();
    let fake = Fake::new(dir.path());
    for (name, content) in [("same", "12345"), ("grown", "123"), ("gone", "1")] {
        fake.state.lock().files.insert(name.into(), content.into());
    }
    let watcher = Watcher::begin_with(fake.clone(), dir.path()).unwrap().begun().unwrap();
    assert_eq!(fake.take_log(), ["delete gone", "append grown 3+2"], "start returned before the first scan");
    append(dir.path().join("same"), b"6");
    watcher.stop();
    assert_eq!(fake.take_log(), ["append same 5+1"], "the last look came before the end");
}

#[test]
fn a_directory_that_vanishes_ends_the_watching_and_deletes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("data");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a"), "1").unwrap();
    let fake = Fake::new(&root);
    let watcher = Watcher::begin_with(fake.clone(), &root).unwrap().begun().unwrap();
    fs::rename(&root, dir.path().join("elsewhere")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let failure = loop {
        match watcher.take_failure() {
            Some(failure) => break failure.to_string(),
            None => assert!(Instant::now() < deadline, "no failure"),
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    assert!(failure.contains("moved"), "{failure}");
    assert_eq!(fake.take_log(), ["append a 0+1"]);
}

/// Operations at random, as fast as they go, from a seed.
struct Storm {
    root: PathBuf,
    random: fastrand::Rng,
}

impl Storm {
    fn name(&mut self, folders: u8) -> PathBuf {
        let mut path = self.root.clone();
        for _ in 0..self.random.u8(..=folders) {
            path.push(["d", "e", "f"][self.random.usize(..3)]);
        }
        path.push(["a", "b", "c", "d"][self.random.usize(..4)]);
        path
    }

    fn bytes(&mut self) -> Vec<u8> {
        let most = [10, 5_000, 40_000, 300_000][self.random.usize(..4)];
        let mut bytes = vec![0; self.random.usize(1..most)];
        self.random.fill(&mut bytes);
        bytes
    }

    /// Whatever fails (the name is a folder, the folder is not there) is passed over.
    fn operation(&mut self) {
        let (name, other, bytes) = (self.name(2), self.name(2), self.bytes());
        match self.random.u8(..20) {
            0..=5 => {
                let _ =
                    OpenOptions::new().append(true).create(true).open(name).and_then(|mut file| {
                        bytes.chunks(bytes.len() / 3 + 1).try_for_each(|chunk| file.write_all(chunk))
                    });
            }
            6 => drop(fs::write(name, bytes)),
            7 => {
                if let Ok(file) = OpenOptions::new().write(true).open(name) {
                    let len = file.metadata().unwrap().len();
                    file.set_len(self.random.u64(..=len)).unwrap();
                }
            }
            8 => {
                let _ = fs::write(&other, bytes).and_then(|()| fs::rename(&other, name));
            }
            9 | 16 => drop(fs::rename(name, other)),
            17 => {
                let between = self.root.join("between");
                let _ = fs::rename(&name, &between).and_then(|()| fs::rename(&other, &name));
                let _ = fs::rename(between, other);
            }
            18 => {
                let turn = ["a", "b", "c", "d"].map(|last| name.with_file_name(last));
                turn.windows(2).rev().for_each(|names| drop(fs::rename(&names[0], &names[1])));
            }
            19 => {
                if let (Some(folder), Some(to)) = (name.parent(), other.parent()) {
                    let _ = fs::rename(folder, to.join("e"));
                }
            }
            10 => drop(fs::remove_file(name)),
            11 => drop(fs::remove_dir_all(name)),
            12 | 13 => {
                let _ = fs::create_dir_all(&name);
                let _ = fs::write(name.join("immediate"), bytes);
            }
            14 => drop(File::create(name)),
            _ => {
                let _ = symlink(other, name);
            }
        }
    }
}

#[test]
fn a_storm_of_operations_leaves_an_equal_copy() {
    for seed in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::new(dir.path());
        let watcher = Watcher::begin_with(fake.clone(), dir.path()).unwrap().begun().unwrap();
        let mut storm = Storm { root: dir.path().to_owned(), random: fastrand::Rng::with_seed(seed) };
        for round in 0..6 {
            for _ in 0..storm.random.usize(1..120) {
                storm.operation();
                if storm.random.u8(..8) == 0 {
                    std::thread::sleep(Duration::from_micros(storm.random.u64(..2000)));
                }
            }
            wait_until_equal(&fake, &format!("seed {seed}, round {round}"));
        }
        watcher.stop();
    }
}

#[test]
fn an_appender_that_is_never_idle_causes_no_replace() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path());
    let watcher = Watcher::begin_with(fake.clone(), dir.path()).unwrap().begun().unwrap();
    let mut file = File::create(dir.path().join("log")).unwrap();
    for _ in 0..2_000 {
        file.write_all(&[9; 20_000]).unwrap();
    }
    wait_until_equal(&fake, "after appending");
    watcher.stop();
    let replaces = fake.take_log().into_iter().filter(|line| line.starts_with("replace")).collect::<Vec<_>>();
    assert!(replaces.len() <= 1, "{replaces:?}"); // one, if it was still empty when it was found
}
