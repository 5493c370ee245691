//! Files that are changed in place, and grow: growth is an append only if nothing else happened to them.

use std::process::Command;

use super::*;

fn change_in_place(path: &Path, at: u64) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"!", at).unwrap();
}

/// 1 MB, no two blocks of which are equal.
fn content() -> Vec<u8> {
    (0..1_000_000_u32).map(|at| u8::try_from(at / 4 % 251).unwrap()).collect()
}

impl Stepped {
    /// What a look that does not wait for another one announces.
    fn look(&mut self) -> Vec<String> {
        self.tree.collect().unwrap();
        assert!(self.tree.announce_dirty(false, &|| true).is_ok());
        self.fake.take_log()
    }

    fn generation(&self, name: &str) -> u64 {
        self.fake.version(&RelPath::new(name).unwrap()).unwrap().generation
    }

    /// A follower reads a range of a file, and has it then.
    fn read(&self, name: &str, range: std::ops::Range<u64>) {
        let path = RelPath::new(name).unwrap();
        let (generation, file) = (self.generation(name), File::open(self.root().join(name)).unwrap());
        let reading = self.fake.blocks.begin(&path, generation, range.clone(), range.end).unwrap();
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        file.read_exact_at(&mut bytes, range.start).unwrap();
        self.got(name, range.start, &bytes);
        reading.took(&file, &bytes);
    }

    fn got(&self, name: &str, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).unwrap();
        let mut state = self.fake.state.lock();
        state.files.get_mut(name).unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[test]
fn a_change_in_place_is_announced_as_the_block_that_it_is_in() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), content()).unwrap());
    let file = watch.root().join("a");
    change_in_place(&file, 500_000);
    watch.assert_announced(&["write a 491520+16384"]);
    change_in_place(&file, 999_999);
    watch.assert_announced(&["write a 999424+576"]);
    // The last of one and the first of the next.
    OpenOptions::new().write(true).open(&file).unwrap().write_all_at(b"##", 16_383).unwrap();
    watch.assert_announced(&["write a 0+32768"]);
}

#[test]
fn a_change_in_place_is_not_forgotten_when_the_file_grows() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), content()).unwrap());
    let file = watch.root().join("a");
    change_in_place(&file, 5);
    append(file.clone(), b"+");
    watch.assert_announced(&["append a 1000000+1", "write a 0+16384"]);
    // Seen, but not compared yet.
    change_in_place(&file, 500_000);
    assert_eq!(watch.look(), [""; 0]);
    append(file.clone(), b"+");
    watch.assert_announced(&["append a 1000001+1", "write a 491520+16384"]);
    // In the block that it grows in.
    change_in_place(&file, 999_999);
    append(file, b"+");
    watch.assert_announced(&["append a 1000002+1", "write a 999424+578"]);
}

#[test]
fn a_change_in_place_is_not_forgotten_when_the_time_is_set_back() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), content()).unwrap());
    let file = watch.root().join("a");
    pass_tick();
    watch.step();
    let before = fs::metadata(&file).unwrap().modified().unwrap();
    change_in_place(&file, 5);
    File::open(&file).unwrap().set_modified(before).unwrap();
    watch.assert_announced(&["write a 0+16384"]);
}

#[test]
fn what_a_follower_reads_while_it_is_changed_and_changed_back_is_announced_again() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), content()).unwrap());
    let file = watch.root().join("a");
    let before = content()[5];
    for is_seen in [true, false] {
        change_in_place(&file, 5);
        watch.read("a", 0..100);
        OpenOptions::new().write(true).open(&file).unwrap().write_all_at(&[before], 5).unwrap();
        if is_seen {
            watch.assert_announced(&["write a 0+16384"]);
        } else {
            // No event told.
            watch.tree.lose_pending_events();
            watch.assert_announced(&["write a 0+16384"]);
        }
    }
}

#[test]
fn a_file_is_not_proven_while_it_is_read_for_the_first_time() {
    let mut watch = Stepped::new(|_| {});
    let (path, file) = (RelPath::new("a").unwrap(), watch.root().join("a"));
    fs::write(&file, content()).unwrap();
    watch.look();
    // By reference: a follower has it when it has been read, which is being done.
    let generation = watch.generation("a");
    let blocks = watch.fake.blocks.clone();
    blocks.forget(generation);
    let reading = blocks.begin(&path, generation, 0..16_384, 1_000_000).unwrap();
    let read = content();
    watch.got("a", 0, &read[..16_384]);
    change_in_place(&file, 5);
    watch.look();
    for _ in 0..20 {
        let due = watch.tree.next_comparison().expect("it is not proven");
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        assert!(watch.tree.compare().is_ok());
    }
    assert_eq!(watch.fake.take_log(), [""; 0]);
    reading.took(&File::open(&file).unwrap(), &read[..16_384]);
    watch.assert_announced(&["write a 0+16384"]);
}

#[test]
fn a_file_of_which_most_differs_is_replaced() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), content()).unwrap());
    let file = OpenOptions::new().write(true).open(watch.root().join("a")).unwrap();
    file.write_all_at(&vec![7; 1_000_000], 0).unwrap();
    watch.assert_announced(&["replace a 1000000"]);
    // Not where all of the beginning does.
    file.write_all_at(&vec![8; 300_000], 0).unwrap();
    let announced = watch.step();
    assert!(announced.iter().all(|line| line.starts_with("write")), "{announced:?}");
}

#[test]
fn what_is_inserted_into_a_file_that_ends_in_zeros_arrives() {
    let mut content = vec![7; 100_000];
    content.resize(168_000, 0);
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), &content).unwrap());
    pass_tick();
    // As `fallocate --insert-range` leaves it, which not all file systems can.
    content.splice(4096..4096, [0; 4096]);
    let file = OpenOptions::new().write(true).open(watch.root().join("a")).unwrap();
    file.write_all_at(&content, 0).unwrap();
    watch.assert_announced(&["append a 168000+4096", "write a 0+16384", "write a 98304+16384"]);
    append(watch.root().join("a"), &[0; 5000]);
    watch.assert_announced(&["append a 172096+5000"]);
}

#[test]
fn a_preallocated_log_that_is_written_in_order_arrives_as_it_is_written() {
    let mut watch = Stepped::new(|root| File::create(root.join("a")).unwrap().set_len(8 << 20).unwrap());
    let file = OpenOptions::new().write(true).open(watch.root().join("a")).unwrap();
    let mut written = 0;
    for number in 0..40_u64 {
        file.write_all_at(&[u8::try_from(number + 1).unwrap(); 4096], number * 4096).unwrap();
        for line in watch.step() {
            assert!(line.starts_with("write a "), "{line}");
            written += line.rsplit('+').next().unwrap().parse::<u64>().unwrap();
        }
    }
    assert!(contents(watch.root()) == watch.fake.state.lock().files, "the copy differs");
    assert!(written <= 4 * 40 * 4096, "{written} bytes announced for {}", 40 * 4096);
}

#[test]
fn a_file_that_is_changed_all_the_time_is_compared_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, content()).unwrap();
    let fake = Fake::new(dir.path());
    let watcher = Watcher::begin_with(fake.clone(), dir.path()).unwrap().begun().unwrap();
    change_in_place(&path, 900_000);
    let deadline = Instant::now() + Duration::from_secs(20);
    // Elsewhere, without a moment's rest.
    while fake.state.lock().files["a"][900_000] != b'!' {
        change_in_place(&path, 5);
        assert!(Instant::now() < deadline, "it was not found: {:?}", watcher.unproven_for());
    }
    wait_until_equal(&fake, "at rest");
    assert!(watcher.stop());
    assert_eq!(watcher.unproven_for(), None);
}

#[test]
fn what_no_event_told_is_found_by_the_sweep_and_compared_until_nothing_can_be_missed() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), content()).unwrap());
    let outside = tempfile::tempdir().unwrap();
    let other = outside.path().join("a");
    fs::hard_link(watch.root().join("a"), &other).unwrap();
    change_in_place(&other, 500_000);
    watch.assert_announces_nothing();
    assert!(watch.tree.sweep_some());
    assert_eq!(watch.compared(), ["write a 491520+16384"]);
    assert!(watch.tree.next_comparison().is_some(), "more may have been stored without a trace");
    // Nobody told of this either, and it is found before the next sweep.
    change_in_place(&other, 900_000);
    watch.tree.hurry();
    assert_eq!(watch.step(), ["write a 884736+16384"]);
    fs::remove_file(watch.root().join("a")).unwrap();
    watch.tree.lose_pending_events();
    assert!(watch.tree.sweep_some());
    assert_eq!(watch.step(), ["delete a"]);
}

impl Stepped {
    #[track_caller]
    fn assert_announces_nothing(&mut self) {
        assert_eq!(self.step(), [""; 0]);
    }

    /// Looks and compares until there is nothing more to be compared within a second.
    fn compared(&mut self) -> Vec<String> {
        let mut announced = self.look();
        while let Some(due) = self.tree.next_comparison()
            && let wait = due.saturating_duration_since(Instant::now())
            && wait < Duration::from_secs(1)
        {
            std::thread::sleep(wait);
            assert!(self.tree.compare().is_ok());
        }
        announced.extend(self.fake.take_log());
        announced
    }
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

#[test]
fn what_is_noted_in_the_midst_of_a_circle_begins_it_anew() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), content()).unwrap());
    let (path, name) = (RelPath::new("a").unwrap(), watch.root().join("a"));
    pass_tick();
    watch.step();
    let before = content()[5];
    change_in_place(&name, 5);
    let blocks = watch.fake.blocks.clone();
    let file = File::open(&name).unwrap();
    let reading = blocks.begin(&path, watch.generation("a"), 0..16_384, 1_000_000).unwrap();
    let mut bytes = vec![0; 16_384];
    file.read_exact_at(&mut bytes, 0).unwrap();
    watch.got("a", 0, &bytes);
    OpenOptions::new().write(true).open(&name).unwrap().write_all_at(&[before], 5).unwrap();
    assert_eq!(watch.look(), [""; 0]);
    pass_tick();
    while !matches!(watch.tree.compare(), Ok(true)) {
        std::thread::yield_now();
    }
    assert!(watch.tree.next_comparison().is_some(), "it is proven after one part");
    reading.took(&file, &bytes);
    watch.assert_announced(&["write a 0+16384"]);
}

#[test]
fn what_another_file_took_the_place_of_is_forgotten() {
    let mut watch = Stepped::new(|root| fs::write(root.join("a"), content()).unwrap());
    watch.step();
    let before = watch.fake.blocks.files();
    for _ in 0..3 {
        fs::write(watch.root().join("a.tmp"), content()).unwrap();
        watch.step();
        pass_tick();
        fs::rename(watch.root().join("a.tmp"), watch.root().join("a")).unwrap();
        assert_eq!(watch.step(), ["rename a.tmp a"]);
    }
    assert_eq!(watch.fake.blocks.files(), before);
}
