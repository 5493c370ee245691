use super::*;
use crate::config::LeaderConfig;
use crate::flusher::SystemFlusher;
use crate::index::FileId;
use crate::leader::stream::Content;
use crate::types::Secret;
use std::fs;
use std::os::unix::fs::MetadataExt;

const BYTE: Content<'_> = Content::OnDisk(1);

struct Host {
    dir: tempfile::TempDir,
    stream: Stream,
    syncer: Syncer,
}

impl Host {
    /// With files `folder/log` and `folder/other` that are durable.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        let stream = Stream::new(&LeaderConfig::new("unused", Secret::new("secret").unwrap()));
        let syncer = Syncer::new(dir.path(), Arc::new(SystemFlusher)).unwrap();
        let this = Self { dir, stream, syncer };
        this.create("log");
        this.create("other");
        this.stream.make_durable().unwrap();
        this
    }

    fn path(name: &str) -> RelPath {
        RelPath::new(&format!("folder/{name}")).unwrap()
    }

    fn id(&self, name: &str) -> FileId {
        let meta = fs::metadata(Self::path(name).below(self.dir.path())).unwrap();
        (meta.dev(), meta.ino())
    }

    fn create(&self, name: &str) {
        fs::write(Self::path(name).below(self.dir.path()), "0").unwrap();
        self.stream.create(&Self::path(name), BYTE, Some(self.id(name)), false).unwrap();
    }

    fn append(&self, name: &str) {
        let offset = self.stream.version(&Self::path(name)).len;
        self.stream.append(&Self::path(name), offset, BYTE).unwrap().unwrap();
    }

    /// How many files and folders a turn syncs one by one, in which `changed` comes before what is made durable and
    /// `later` after it; `None`: all of the file system.
    fn turn(&self, changed: impl FnOnce(&Self), later: impl FnOnce(&Self)) -> Option<(usize, usize)> {
        changed(self);
        let (_, unsynced) = self.stream.make_durable().unwrap();
        later(self);
        let found = self.syncer.find(&self.stream, &unsynced);
        self.stream.make_durable().unwrap();
        found.map(|found| (found.files.len(), found.folders.len()))
    }
}

#[test]
fn what_is_where_it_was_announced_is_synced_one_by_one() {
    let host = Host::new();
    let no = |_: &Host| ();
    assert_eq!(host.turn(no, no), Some((0, 0)));
    assert_eq!(host.turn(|host| host.append("log"), |host| host.append("log")), Some((1, 0)));
    assert_eq!(host.turn(|host| host.create("new"), no), Some((1, 2)), "its folder, and the root");
    let delete = |host: &Host| assert!(host.stream.delete(&Host::path("new")).is_ok());
    assert_eq!(host.turn(delete, no), None, "nothing says that this is still the folder");
    host.create("new");
    let both = |host: &Host| {
        delete(host);
        host.append("log");
    };
    assert_eq!(host.turn(both, no), Some((1, 2)));
}

#[test]
fn what_lost_its_place_after_its_turn_began_is_left_to_syncfs() {
    let host = Host::new();
    let (log, moved) = (Host::path("log"), Host::path("log.1"));
    let later: [&dyn Fn(&Host); 4] = [
        &|host| assert!(host.stream.rename(&log, &moved, Some(host.id("log"))).unwrap().is_some()),
        &|host| assert!(host.stream.replace(&log, BYTE, host.id("log")).is_ok()),
        &|host| assert!(host.stream.rename(&Host::path("other"), &log, None).unwrap().is_some()),
        &|host| assert!(host.stream.delete(&log).is_ok()),
    ];
    for (at, later) in later.iter().enumerate() {
        if !host.stream.version(&log).exists() {
            host.create("log");
        }
        assert_eq!(host.turn(|host| host.append("log"), later), None, "{at}");
    }
}

#[test]
fn what_is_another_file_on_disk_is_left_to_syncfs() {
    let host = Host::new();
    let on_disk = |name: &str| Host::path(name).below(host.dir.path());
    fs::rename(on_disk("log"), on_disk("log.1")).unwrap();
    assert_eq!(host.turn(|host| host.append("log"), |_| ()), None, "it is not there");
    fs::write(on_disk("log"), "new").unwrap();
    assert_eq!(host.turn(|host| host.append("log"), |_| ()), None);
    fs::rename(on_disk("log.1"), on_disk("log")).unwrap();
    assert_eq!(host.turn(|host| host.append("log"), |_| ()), Some((1, 0)));
    let generation = host.stream.version(&Host::path("log")).generation;
    host.stream.doubt(&Host::path("log"), generation).unwrap();
    assert_eq!(host.turn(|host| host.append("log"), |_| ()), None, "in doubt");
}
