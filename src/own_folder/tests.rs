use super::*;
use std::fs;

const REMEDY: &str = "mend it";

#[test]
fn what_is_kept_comes_back_and_nothing_is_made_by_looking() {
    let dir = tempfile::tempdir().unwrap();
    let own = OwnFolder::of(dir.path()).unwrap();
    assert_eq!(own.data_set().unwrap(), None);
    own.tidy().unwrap();
    assert!(!dir.path().join(OWN_FOLDER).exists());
    let (first, second) = (DataSetId::random().unwrap(), DataSetId::random().unwrap());
    for id in [first, second] {
        own.keep_data_set(id).unwrap();
        assert_eq!(OwnFolder::of(dir.path()).unwrap().data_set().unwrap(), Some(id));
    }
    let shown = fs::read_to_string(dir.path().join(OWN_FOLDER).join(DATA_SET)).unwrap();
    assert_eq!(shown.lines().next(), Some(&*second.to_string()), "it is not for people to read");
}

#[test]
fn what_is_torn_or_cannot_be_read_is_never_taken_for_absent() {
    let dir = tempfile::tempdir().unwrap();
    let own = OwnFolder::of(dir.path()).unwrap();
    own.write("x", "one\ntwo\n").unwrap();
    assert_eq!(own.read("x", REMEDY).unwrap().as_deref(), Some("one\ntwo\n"));
    let file = dir.path().join(OWN_FOLDER).join("x");
    let whole = fs::read(&file).unwrap();
    for len in 0..whole.len() {
        fs::write(&file, &whole[..len]).unwrap();
        assert!(matches!(own.read("x", REMEDY), Err(Error::Damaged { .. })), "{len} bytes of it were taken");
        let mut other = whole.clone();
        other[len] ^= 1;
        fs::write(&file, other).unwrap();
        assert!(matches!(own.read("x", REMEDY), Err(Error::Damaged { .. })), "another byte {len} was taken");
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(matches!(own.read("x", REMEDY), Err(Error::Io { .. })));
    fs::remove_dir_all(dir.path().join(OWN_FOLDER)).unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join(OWN_FOLDER)).unwrap();
    assert!(own.data_set().is_err() && own.keep_data_set(DataSetId::random().unwrap()).is_err());
}

#[test]
fn a_directory_whose_sync_failed_is_marked_though_its_disk_still_fails() {
    #[derive(Debug)]
    struct Failing;
    impl Flusher for Failing {
        fn file(&self, _: crate::sys::fd::BorrowedFd<'_>) -> io::Result<()> {
            Err(Errno::IO.into())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let own = OwnFolder::of(dir.path()).unwrap();
    assert!(!is_suspect(dir.path()));
    own.mark_suspect(&Failing).unwrap();
    own.mark_suspect(&Failing).unwrap();
    assert!(is_suspect(dir.path()));
    let suspect = dir.path().join(OWN_FOLDER).join(SUSPECT_MARK);
    fs::remove_file(&suspect).unwrap();
    std::os::unix::fs::symlink("elsewhere", &suspect).unwrap();
    assert!(own.mark_suspect(&Failing).is_err());
}

#[test]
fn only_what_was_being_written_is_tidied_away() {
    let dir = tempfile::tempdir().unwrap();
    let own = OwnFolder::of(dir.path()).unwrap();
    own.keep_data_set(DataSetId::random().unwrap()).unwrap();
    let folder = dir.path().join(OWN_FOLDER);
    for name in [INCOMPLETE_MARK, SUSPECT_MARK, INCOMING, "data-set.tmp", "clustering_id.tmp", "of-a-later-version"] {
        fs::write(folder.join(name), "").unwrap();
    }
    fs::create_dir(folder.join("kept")).unwrap();
    own.tidy().unwrap();
    let mut left: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, [DATA_SET, INCOMPLETE_MARK, "kept", "of-a-later-version", SUSPECT_MARK]);
}
