//! Files that are changed in place, and grow: growth is an append only if nothing else happened to them.

use std::process::Command;

use super::*;
use crate::watch::file::Seen;

fn change_in_place(path: &Path, at: u64) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"!", at).unwrap();
}

impl Stepped {
    /// What a look that does not wait for another one announces.
    fn look(&mut self) -> Vec<String> {
        self.tree.collect().unwrap();
        assert!(self.tree.announce_dirty(false, &|| true).is_ok());
        self.fake.take_log()
    }

    /// Has changes seen and believed in the pause before the file is replaced once more. A slow machine may come too late for it,
    /// whereupon the file is replaced, and another pause begins.
    fn changed_in_the_pause(&mut self, change: impl Fn(u64)) {
        for attempt in 0.. {
            change(attempt);
            let announced = self.look();
            std::thread::sleep(Duration::from_millis(10));
            if announced.is_empty() && self.look().is_empty() {
                return;
            }
        }
    }
}

#[test]
fn a_change_in_place_that_was_seen_is_not_forgotten_when_the_file_grows() {
    // Its end is no run of equal bytes, which takes longer to look at.
    let mut content = vec![1; 20_000_000];
    content[19_999_000] = 2;
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), &content).unwrap());
    let file = watch.root().join("a");
    pass_tick();
    // Seen, but not believed yet.
    change_in_place(&file, 5);
    assert_eq!(watch.look(), [""; 0]);
    append(file.clone(), b"+");
    watch.assert_announced(&["replace a 20000001"]);
    watch.changed_in_the_pause(|attempt| change_in_place(&file, 6 + attempt));
    append(file, b"+");
    watch.assert_announced(&["replace a 20000002"]);
}

#[test]
fn a_change_near_the_end_that_was_seen_is_not_forgotten_when_the_end_is_as_it_was_again() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), vec![1; 20_000_000]).unwrap());
    let file = watch.root().join("a");
    change_in_place(&file, 5);
    watch.step();
    watch.changed_in_the_pause(|attempt| {
        change_in_place(&file, 6 + attempt);
        change_in_place(&file, 19_999_990);
    });
    OpenOptions::new().write(true).open(&file).unwrap().write_all_at(&[1], 19_999_990).unwrap();
    append(file, b"+");
    watch.assert_announced(&["replace a 20000001"]);
}

#[test]
fn a_change_in_place_that_was_seen_is_not_forgotten_when_the_time_is_set_back() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), vec![1; 20_000_000]).unwrap());
    let file = watch.root().join("a");
    pass_tick();
    append(file.clone(), b"+");
    pass_tick();
    watch.step();
    let set_back = |to| File::open(&file).unwrap().set_modified(to).unwrap();
    let before = fs::metadata(&file).unwrap().modified().unwrap();
    change_in_place(&file, 5);
    assert_eq!(watch.look(), [""; 0]);
    set_back(before);
    watch.assert_announced(&["replace a 20000001"]);
    pass_tick();
    let before = fs::metadata(&file).unwrap().modified().unwrap();
    watch.changed_in_the_pause(|attempt| change_in_place(&file, 6 + attempt));
    set_back(before);
    watch.assert_announced(&["replace a 20000001"]);
}

#[test]
fn what_is_inserted_into_a_file_that_ends_in_zeros_is_no_append() {
    let mut content = vec![7; 100_000];
    content.resize(168_000, 0);
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), &content).unwrap());
    pass_tick();
    // As `fallocate --insert-range` leaves it, which not all file systems can.
    content.splice(4096..4096, [0; 4096]);
    let file = OpenOptions::new().write(true).open(watch.root().join("a")).unwrap();
    file.write_all_at(&content, 0).unwrap();
    watch.assert_announced(&["replace a 172096"]);
    append(watch.root().join("a"), &[0; 5000]);
    watch.assert_announced(&["append a 172096+5000"]);
}

#[test]
fn a_large_file_that_was_changed_in_place_and_grew_soon_after_is_announced_as_it_is() {
    const LEN: usize = 200_000_000;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a");
    // All zeros, and on no disk.
    File::create(&file).unwrap().set_len(LEN as u64).unwrap();
    append(file.clone(), &[1; 5_000]);
    pass_tick();
    let fake = Fake::new(dir.path());
    let watcher = Watcher::begin_with(fake.clone(), dir.path(), || ()).unwrap().begun().unwrap();
    change_in_place(&file, 5);
    wait_until_equal(&fake, "after it was changed");
    // The watcher sees this, and leaves a pause of two seconds before it replaces such a file once more.
    change_in_place(&file, 6);
    std::thread::sleep(Duration::from_millis(700));
    append(file, b"+");
    wait_until_equal(&fake, "after it grew");
    watcher.stop();
}

#[test]
fn what_was_there_is_looked_at_once_more_when_what_was_added_has_been_read() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), vec![1; 10_000]).unwrap());
    let (path, full) = (RelPath::new("a").unwrap(), watch.root().join("a"));
    append(full.clone(), b"+");
    let file = File::open(&full).unwrap();
    let seen = Seen::of(&file.metadata().unwrap());
    // It was found to have grown, and this comes before what it grew by is read.
    change_in_place(&full, 9_990);
    assert!(watch.tree.append(&path, &file, seen, 10_000).is_ok());
    assert_eq!(watch.fake.take_log(), ["replace a 10001"]);
    assert!(contents(watch.root()) == watch.fake.state.lock().files, "the copy differs");
}

/// Runs SQLite's shell to its end.
fn sqlite(database: &Path, statements: &str) -> String {
    let shell = Command::new("sqlite3").arg(database).arg(statements).output();
    let output = shell.expect("install Debian's package sqlite3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_page_that_sqlite_changes_before_it_adds_one_is_not_forgotten() {
    for journal in ["delete", "wal"] {
        let mut watch = Stepped::new(|_| {});
        let (database, copies) = (watch.root().join("data"), tempfile::tempdir().unwrap());
        // A row takes most of a page, so that another one leaves the last page as it is.
        sqlite(
            &database,
            &format!(
                "PRAGMA journal_mode = {journal}; CREATE TABLE t (number, text);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20)
                 INSERT INTO t SELECT 0, hex(zeroblob(1500)) FROM n;"
            ),
        );
        watch.step();
        for transaction in 1..=5 {
            pass_tick();
            sqlite(&database, &format!("UPDATE t SET number = {transaction} WHERE rowid = 3;"));
            watch.look();
            sqlite(&database, "INSERT INTO t SELECT 0, hex(zeroblob(1500));");
            watch.step();
            let copy = copies.path().join(transaction.to_string());
            fs::write(&copy, &watch.fake.state.lock().files["data"]).unwrap();
            let shows = |database| sqlite(database, "SELECT count(*), sum(number) FROM t; PRAGMA integrity_check;");
            assert_eq!(shows(&copy), format!("{}|{transaction}\nok\n", 20 + transaction), "{journal}");
            assert!(contents(watch.root()) == watch.fake.state.lock().files, "{journal}: the copy differs");
        }
    }
}
