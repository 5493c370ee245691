//! Everything that is in a directory, and whether its copies have it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::fake_leader::sha1;

/// Everything below a directory, in words.
pub fn described(dir: &Path) -> BTreeMap<String, String> {
    fn describe(dir: &Path, folder: &Path, all: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if [".paceline", ".lock", ".clustering_id"].iter().any(|own| name == *own) {
                continue;
            }
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let mode = meta.mode() & 0o777;
            let words = if meta.is_symlink() {
                format!("link to {}", fs::read_link(&path).unwrap_or_default().display())
            } else if meta.is_dir() {
                describe(dir, &path, all);
                // Who has a copy may always read, write and enter its folders.
                format!("folder {:o}", mode | 0o700)
            } else if meta.is_file() {
                let content = fs::read(&path).unwrap_or_default();
                let [first, second, ..] = sha1(&content);
                let mtime = (meta.mtime(), meta.mtime_nsec());
                format!("file {mode:o} {}.{:09}, {} bytes {first:02x}{second:02x}", mtime.0, mtime.1, content.len())
            } else {
                continue;
            };
            all.insert(path.strip_prefix(dir).unwrap().to_string_lossy().into_owned(), words);
        }
    }
    let mut all = BTreeMap::new();
    describe(dir, dir, &mut all);
    all
}

/// Waits until these copies have what the original has, and the original is the same before and after that look.
#[track_caller]
pub fn wait_same_tree(original: &Path, copies: &[&Path], when: &str) {
    for copy in copies {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (before, there) = (described(original), described(copy));
            let sides = (described(original), there);
            let names: BTreeSet<_> = sides.0.keys().chain(sides.1.keys()).collect();
            let differ = |name: &&&String| sides.0.get(**name) != sides.1.get(**name);
            let told = |name: &String| format!("{name}: {:?}, in the copy {:?}", sides.0.get(name), sides.1.get(name));
            let differing: Vec<_> = names.iter().filter(differ).map(|name| told(name)).collect();
            if differing.is_empty() && before == sides.0 {
                break;
            }
            assert!(Instant::now() < deadline, "{when}, {}: {differing:#?}", copy.display());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}
