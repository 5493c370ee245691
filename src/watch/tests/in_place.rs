//! Files that are changed in place, and grow: growth is an append only if nothing else happened to them.

use super::*;

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
