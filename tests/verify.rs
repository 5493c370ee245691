//! `paceline verify HOST:PORT --data-dir COPY`: a copy is compared with its live leader, and nothing in it is changed.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

use std::fs::{self, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use paceline::protocol::START_HEADER;

const PATIENCE: Duration = Duration::from_secs(60);

fn paceline(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paceline"));
    command.args(arguments).env("PACELINE_SECRET", "s3cret").env("RUST_LOG", "warn").stdin(Stdio::null());
    command
}

/// A process that is killed when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn leader(dir: &Path) -> (Running, String) {
    let mut command = paceline(&["leader", "--data-dir", dir.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.strip_prefix("listening on ").expect(&line).trim_end().to_owned();
    (Running(child), address)
}

/// Makes a copy, and ends.
fn copy(address: &str, dir: &Path) {
    let mut command = paceline(&["follow", address, "--once", "--data-dir", dir.to_str().unwrap()]);
    let Output { status, stderr, .. } = command.output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
}

/// Exit code, stdout and stderr.
fn verify(address: &str, dir: &Path) -> (Option<i32>, String, String) {
    of(&mut paceline(&["verify", address, "--data-dir", dir.to_str().unwrap()]))
}

fn of(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// All that is in a directory, its own folder included, with what `stat` says of it, but for when it was read.
fn listing(root: &Path) -> Vec<String> {
    let (mut all, mut left) = (Vec::new(), vec![root.to_owned()]);
    while let Some(at) = left.pop() {
        let meta = fs::symlink_metadata(&at).unwrap();
        let (mtime, ctime) = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
        all.push(format!("{at:?} {} {:o} {} {mtime:?} {ctime:?}", meta.ino(), meta.mode(), meta.len()));
        if meta.is_dir() {
            left.extend(fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    all.sort_unstable();
    all
}

fn set_modified(file: &Path, ago: Duration) {
    OpenOptions::new().write(true).open(file).unwrap().set_modified(SystemTime::now() - ago).unwrap();
}

const LONG_AGO: Duration = Duration::from_secs(1000);
const NOISE: usize = 1_000_000;

fn original() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("folder/empty")).unwrap();
    symlink("folder/log", at("link")).unwrap();
    let noise: Vec<u8> = (0..NOISE).map(|at| ((at * at) >> 7).to_le_bytes()[0]).collect();
    for name in ["folder/log", "large", "gone", "old", "name"] {
        fs::write(at(name), [name.as_bytes(), &noise].concat()).unwrap();
        set_modified(&at(name), LONG_AGO);
    }
    fs::set_permissions(at("folder/log"), Permissions::from_mode(0o640)).unwrap();
    fs::write(at("nothing"), "").unwrap();
    fs::File::create(at("sparse")).unwrap().set_len(8 << 20).unwrap();
    set_modified(&at("nothing"), LONG_AGO);
    set_modified(&at("sparse"), LONG_AGO);
    dir
}

#[test]
fn what_differs_from_the_leader_is_told_and_nothing_in_the_copy_is_changed() {
    let (ours, theirs) = (original(), tempfile::tempdir().unwrap());
    let (_leader, address) = leader(ours.path());
    copy(&address, theirs.path());
    let before = listing(theirs.path());
    let (code, out, err) = verify(&address, theirs.path());
    assert_eq!((code, out.as_str()), (Some(0), "equal: 7 files with 12.8 MiB were compared\n"), "{err}");
    assert_eq!(listing(theirs.path()), before);

    let at = |name: &str| theirs.path().join(name);
    let large = OpenOptions::new().write(true).open(at("large")).unwrap();
    let mut byte = [0];
    fs::File::open(at("large")).unwrap().read_exact_at(&mut byte, 777_777).unwrap();
    large.write_all_at(&[!byte[0]], 777_777).unwrap();
    set_modified(&at("large"), LONG_AGO);
    fs::File::options().write(true).open(at("sparse")).unwrap().write_all_at(b"x", 5_000_000).unwrap();
    set_modified(&at("sparse"), LONG_AGO);
    fs::File::options().write(true).open(at("old")).unwrap().set_len(500_000).unwrap();
    fs::rename(at("name"), at("other-name")).unwrap();
    fs::remove_file(at("gone")).unwrap();
    fs::remove_file(at("nothing")).unwrap();
    fs::create_dir(at("nothing")).unwrap();
    fs::write(at("more"), "x").unwrap();
    fs::remove_dir(at("folder/empty")).unwrap();
    fs::create_dir(at("more-folder")).unwrap();
    fs::remove_file(at("link")).unwrap();
    symlink("elsewhere", at("link")).unwrap();
    fs::set_permissions(at("folder/log"), Permissions::from_mode(0o600)).unwrap();
    let before = listing(theirs.path());
    let (code, out, err) = verify(&address, theirs.path());
    let lines = "missing    folder/empty\n\
                 different  folder/log: mode 600, not 640\n\
                 missing    gone\n\
                 different  large: 1 bytes at 777777\n\
                 different  link: leads to \"elsewhere\", not \"folder/log\"\n\
                 extra      more\n\
                 extra      more-folder\n\
                 missing    name\n\
                 different  nothing: a folder, not a file\n\
                 different  old, 500000 of 1000003 bytes\n\
                 extra      other-name\n\
                 different  sparse: 1 bytes at 5000000\n";
    assert_eq!((code, out.as_str()), (Some(1), lines), "{err}");
    assert!(err.ends_with("files with 11.3 MiB were compared, and 12 differ\n"), "{err}");
    assert_eq!(listing(theirs.path()), before, "something was changed");
}

#[test]
fn a_copy_that_is_followed_while_much_is_appended_is_equal() {
    let (ours, theirs) = (original(), tempfile::tempdir().unwrap());
    let (_leader, address) = leader(ours.path());
    copy(&address, theirs.path());
    let mut follows = paceline(&["follow", &address, "--data-dir", theirs.path().to_str().unwrap()]);
    let _follower = Running(follows.stdout(Stdio::null()).spawn().unwrap());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let appends = scope.spawn(|| {
            let mut log = OpenOptions::new().append(true).open(ours.path().join("folder/log")).unwrap();
            for number in 0_u64.. {
                if is_over.load(Ordering::Relaxed) {
                    return number;
                }
                log.write_all(&number.to_le_bytes().repeat(100)).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
            0
        });
        let len = |dir: &Path| fs::metadata(dir.join("folder/log")).unwrap().len();
        let deadline = Instant::now() + PATIENCE;
        while len(theirs.path()) < NOISE as u64 + 100_000 {
            assert!(Instant::now() < deadline && !appends.is_finished(), "nothing came");
            std::thread::sleep(Duration::from_millis(10));
        }
        // On a machine that is busy the copy may be late for longer than between two looks.
        let looked = [(); 2].map(|()| {
            loop {
                let looked = verify(&address, theirs.path());
                if looked.0 == Some(0) || Instant::now() >= deadline {
                    break looked;
                }
            }
        });
        is_over.store(true, Ordering::Relaxed);
        let appended = appends.join().unwrap();
        for (code, out, err) in looked {
            assert!(code == Some(0) && out.starts_with("equal: 7 files"), "{code:?} after {appended}: {out}{err}");
        }
    });
}

#[test]
fn where_no_leader_can_say_it_nothing_is_known() {
    let (ours, theirs, other) = (original(), tempfile::tempdir().unwrap(), original());
    let (running, address) = leader(ours.path());
    copy(&address, theirs.path());
    let wrong = paceline(&["verify", &address, "--data-dir", theirs.path().to_str().unwrap()])
        .env("PACELINE_SECRET", "wrong")
        .output()
        .unwrap();
    assert!(wrong.status.code() == Some(2) && wrong.stdout.is_empty(), "{wrong:?}");
    let (_other, others_address) = leader(other.path());
    let (code, out, err) = verify(&others_address, theirs.path());
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    assert!(err.contains("data set"), "{err}");
    let old = TcpListener::bind("127.0.0.1:0").unwrap();
    let olds_address = old.local_addr().unwrap().to_string();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut peer, _) = old.accept().unwrap();
            peer.read_exact(&mut [0; 8]).unwrap();
            peer.write_all(&START_HEADER).unwrap();
        });
        let (code, out, err) = verify(&olds_address, theirs.path());
        assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
        assert!(err.contains("give two directories, or a leader that is Paceline's"), "{err}");
    });
    drop(running);
    let (code, out, err) = verify(&address, theirs.path());
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    assert!(err.contains("nothing is known of the copy"), "{err}");
}
