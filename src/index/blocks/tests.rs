use std::fs::OpenOptions;

use super::*;

const GENERATION: u64 = 9;

fn path() -> RelPath {
    RelPath::new("f").unwrap()
}

fn watched() -> Blocks {
    let blocks = Blocks::default();
    blocks.watch(|| None);
    blocks
}

/// A file on disk of so many bytes.
struct Disk {
    _dir: tempfile::TempDir,
    file: File,
    path: std::path::PathBuf,
}

impl Disk {
    fn new(content: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, content).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        Self { _dir: dir, file, path }
    }

    fn read(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        self.file.read_exact_at(&mut bytes, range.start).unwrap();
        bytes
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).unwrap();
    }

    fn len(&self) -> u64 {
        std::fs::metadata(&self.path).unwrap().len()
    }
}

fn read(blocks: &Blocks, disk: &Disk, range: Range<u64>) {
    let path = path();
    let reading = blocks.begin(&path, GENERATION, range.clone(), disk.len()).unwrap();
    reading.took(&disk.file, &disk.read(range));
}

/// Where each range begins and ends that is to be announced.
fn differs(blocks: &Blocks, disk: &Disk) -> Vec<(u64, u64)> {
    compare(blocks, &disk.read(0..disk.len()))
}

fn compare(blocks: &Blocks, bytes: &[u8]) -> Vec<(u64, u64)> {
    blocks.compare(GENERATION, 0, bytes).differs.into_iter().map(|range| (range.start, range.end)).collect()
}

#[test]
fn what_was_read_is_known_and_what_nobody_has_read_is_not() {
    let (blocks, disk) = (watched(), Disk::new(&[1; 50_000]));
    read(&blocks, &disk, 20_000..50_000);
    disk.write(0, &[2; 50_000]);
    assert_eq!(differs(&blocks, &disk), [(16_384, 50_000)], "the second block also where it was not read");
    assert!(blocks.is_unknown(GENERATION, &(0..16_384)) && !blocks.is_unknown(GENERATION, &(16_384..16_385)));
    assert_eq!(blocks.take_suspects().len(), 0);
    read(&blocks, &disk, 40_000..40_001);
    assert_eq!(blocks.take_suspects().into_keys().collect::<Vec<_>>(), [GENERATION]);
    disk.write(0, &[1; 50_000]);
    assert_eq!(differs(&blocks, &disk), [(32_768, 49_152)], "torn");
    blocks.set(GENERATION, 32_768, &[1; 16_384]);
    assert_eq!(differs(&blocks, &disk), []);
}

#[test]
fn whoever_reads_up_to_an_earlier_end_reads_the_rest_of_the_block_as_well() {
    let (blocks, disk) = (watched(), Disk::new(&[1; 10_000]));
    blocks.sent(&path(), GENERATION, &disk.read(0..10_000));
    disk.write(10_000, &[2; 100]);
    blocks.set(GENERATION, 0, &disk.read(0..10_100));
    let path = path();
    let reading = blocks.begin(&path, GENERATION, 0..10_000, 10_000).unwrap();
    reading.took(&disk.file, &disk.read(0..10_000));
    assert_eq!((differs(&blocks, &disk), blocks.take_suspects().len()), (vec![], 0));
    // It grows while it is read.
    let reading = blocks.begin(&path, GENERATION, 0..10_000, 10_000).unwrap();
    let bytes = disk.read(0..10_000);
    disk.write(10_100, &[3; 100]);
    blocks.set(GENERATION, 0, &disk.read(0..10_200));
    reading.took(&disk.file, &bytes);
    assert_eq!((differs(&blocks, &disk), blocks.take_suspects().len()), (vec![], 0));
}

#[test]
fn the_end_of_a_file_is_nobodys_the_same_or_another() {
    let blocks = watched();
    assert_eq!(blocks.end(GENERATION, 16_390, &[1; 6]), End::Nobody);
    blocks.set(GENERATION, 16_384, &[1; 6]);
    assert_eq!(blocks.end(GENERATION, 16_390, &[1; 6]), End::Same);
    assert_eq!(blocks.end(GENERATION, 16_390, &[2; 6]), End::Other);
    blocks.tear(GENERATION, 16_384..16_390, 16_390);
    assert_eq!(blocks.end(GENERATION, 16_390, &[1; 6]), End::Other);
}

#[test]
fn what_could_not_be_read_is_torn() {
    let (blocks, disk) = (watched(), Disk::new(&[1; 100]));
    let path = path();
    let reading = blocks.begin(&path, GENERATION, 0..100, 100);
    assert!(blocks.compare(GENERATION, 0, &disk.read(0..100)).is_pending);
    drop(reading);
    assert_eq!(differs(&blocks, &disk), [(0, 100)]);
}

#[test]
fn of_what_was_read_before_anybody_noted_it_all_is_torn() {
    let (blocks, disk) = (Blocks::default(), Disk::new(&[1; 100]));
    assert!(blocks.begin(&path(), GENERATION, 0..100, 100).is_none());
    blocks.watch(|| Some(GENERATION));
    assert_eq!(differs(&blocks, &disk), [(0, 100)]);
    assert_eq!(blocks.compare(GENERATION + 1, 0, &[1; 100]), Compared::default());
}

#[test]
fn files_found_at_the_start_are_known_in_one_place_or_the_other() {
    let (blocks, disk) = (watched(), Disk::new(&[1; 20_000]));
    blocks.make_room(GENERATION..GENERATION + 1);
    assert!(!blocks.is_founded(GENERATION) && blocks.is_founded(GENERATION + 1));
    let path = path();
    blocks.begin(&path, GENERATION, 0..100, 100).unwrap().took(&disk.file, &disk.read(0..100));
    assert_eq!(blocks.files(), 0);
    assert_eq!(blocks.compare(GENERATION, 0, &[1; 100]), Compared::default());
    assert_eq!(compare(&blocks, &[2; 100]), [(0, 100)]);
    read(&blocks, &disk, 0..20_000);
    assert_eq!(blocks.files(), 1);
    blocks.founded(GENERATION, 20_000);
    assert!(blocks.is_founded(GENERATION));
    blocks.forget(GENERATION);
    assert!(blocks.is_unknown(GENERATION, &(0..20_000)) && blocks.files() == 0);
}

/// A reader of a follower.
struct Reader<'a> {
    reading: Reading<'a>,
    follower: usize,
    range: Range<u64>,
    bytes: Option<Vec<u8>>,
}

/// Whatever is changed, read and compared, and in which order: what is proven is what every follower has.
#[test]
fn what_is_proven_every_follower_has() {
    const LEN: u64 = 2 * BLOCK_BYTES + 100;
    const MOST: u64 = LEN + 200;
    for seed in 0..400 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (blocks, disk, path) = (watched(), Disk::new(&vec![0; usize::try_from(LEN).unwrap()]), path());
        let mut announced = LEN;
        let mut followers = [const { Vec::<Option<u8>>::new() }; 3];
        followers.iter_mut().for_each(|copy| copy.resize(usize::try_from(MOST).unwrap(), None));
        let mut readers: Vec<Reader<'_>> = Vec::new();
        // Blocks compared since anything was seen to change, from there around; `None`: proven.
        let (mut next, mut compared) = (0, Some(0));
        let at = |offset: u64| usize::try_from(offset).unwrap();
        let have = |copy: &mut Vec<Option<u8>>, start: u64, bytes: &[u8], all: bool| {
            let changing = (0..3).flat_map(|block| block * BLOCK_BYTES..block * BLOCK_BYTES + 400);
            for offset in changing.filter(|at| (start..start + bytes.len() as u64).contains(at)) {
                // An announcement is no use to who has nothing there.
                let (copy, byte) = (&mut copy[at(offset)], bytes[at(offset - start)]);
                *copy = if all || copy.is_some() { Some(byte) } else { None };
            }
        };
        for step in 0..80 {
            let is_end = step >= 60;
            match if is_end { random.u8(3..6) } else { random.u8(..7) } {
                0 => {
                    let block = random.u64(..3);
                    let offset = block * BLOCK_BYTES + random.u64(..100);
                    disk.write(offset, &[random.u8(..2)]);
                    compared = Some(0);
                }
                1 if readers.len() < 3 => {
                    let from = [0, 50, BLOCK_BYTES, BLOCK_BYTES + 50][random.usize(..4)];
                    let to = [BLOCK_BYTES, BLOCK_BYTES + 60, announced][random.usize(..3)].max(from + 1);
                    let reading = blocks.begin(&path, GENERATION, from..to, announced).unwrap();
                    let follower = random.usize(..3);
                    readers.push(Reader { reading, follower, range: from..to, bytes: None });
                }
                2 if announced < MOST => {
                    let end = announced + random.u64(1..100).min(MOST - announced);
                    let start = announced - announced % BLOCK_BYTES;
                    disk.write(announced, &vec![random.u8(..2); at(end - announced)]);
                    let (old, now) = (disk.read(start..announced), disk.read(start..end));
                    let is_other = blocks.end(GENERATION, announced, &old) == End::Other;
                    blocks.set(GENERATION, start, &now);
                    for copy in &mut followers {
                        // Who has the block to its end gets what it grows by.
                        have(copy, announced, &now[at(announced - start)..], true);
                        if is_other {
                            have(copy, start, &old, false);
                        }
                    }
                    announced = end;
                    compared = Some(0);
                }
                3 | 4 => {
                    if let Some(reader) = (!readers.is_empty()).then(|| random.usize(..readers.len())) {
                        if readers[reader].bytes.is_none() {
                            let Reader { follower, range, bytes, .. } = &mut readers[reader];
                            let read = disk.read(range.clone());
                            have(&mut followers[*follower], range.start, &read, true);
                            *bytes = Some(read);
                        } else {
                            let Reader { reading, bytes, .. } = readers.swap_remove(reader);
                            reading.took(&disk.file, &bytes.unwrap());
                        }
                    }
                }
                _ => {
                    if !blocks.take_suspects().is_empty() {
                        compared = Some(0);
                    }
                    let range = next * BLOCK_BYTES..((next + 1) * BLOCK_BYTES).min(announced);
                    let bytes = disk.read(range.clone());
                    let result = blocks.compare(GENERATION, range.start, &bytes);
                    for differs in result.differs {
                        let bytes = &bytes[at(differs.start - range.start)..at(differs.end - range.start)];
                        blocks.set(GENERATION, differs.start, bytes);
                        followers.iter_mut().for_each(|copy| have(copy, differs.start, bytes, false));
                    }
                    next = (next + 1) % 3;
                    compared = match compared {
                        _ if result.is_pending => Some(0),
                        Some(2) | None => None,
                        Some(done) => Some(done + 1),
                    };
                    if compared.is_none() && blocks.take_suspects().is_empty() {
                        let disk = disk.read(0..announced);
                        for (number, copy) in followers.iter().enumerate() {
                            // Whose read is not noted yet comes under suspicion when it is.
                            let wrong =
                                copy.iter().zip(&disk).position(|(copy, disk)| copy.is_some_and(|copy| copy != *disk));
                            let in_flight = readers.iter().any(|reader| reader.bytes.is_some());
                            assert!(wrong.is_none() || in_flight, "seed {seed}: follower {number} at {wrong:?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_block_far_out_does_not_take_more_than_there_is_room_for() {
    let blocks = Blocks::default();
    blocks.watch(|| None);
    // At 2 TiB: twice the digests that may be held.
    blocks.set(7, 2 << 40, &[1; 100]);
    assert!(blocks.is_lost(7) && blocks.table.lock().held == 0);
    blocks.set(8, 1 << 30, &[1; 100]);
    assert!(!blocks.is_lost(8) && blocks.table.lock().held == (1 << 16) + 1);
}
