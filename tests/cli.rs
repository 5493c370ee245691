//! The binary as its users meet it: one clear line and the documented exit code when something is wrong, clean ends on
//! signals, and a live directory on a follower.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use paceline::RelPath;
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take before a test calls it a failure.
const PATIENCE: Duration = Duration::from_secs(60);

fn paceline(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paceline"));
    command.args(arguments).env_remove("PACELINE_SECRET").env("RUST_LOG", "warn").stdin(Stdio::null());
    command
}

/// Runs to the end; returns exit code, stdout, and stderr.
fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[track_caller]
fn assert_fails(command: &mut Command, code: i32, says: &str) {
    let (exit, stdout, stderr) = run(command);
    let line = stderr.lines().last().unwrap_or_default();
    assert!(line.starts_with("paceline: error: ") && line.contains(says), "{stderr}");
    assert_eq!(stderr.lines().filter(|line| line.starts_with("paceline: error")).count(), 1, "{stderr}");
    assert_eq!((exit, stdout.as_str()), (Some(code), ""), "{stderr}");
}

/// A process that is killed when the test ends.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout }
    }

    /// Starts a leader; returns it and the address it says.
    fn leader(dir: &Path, more: &[&str]) -> (Self, String) {
        let mut command = paceline(&["leader", "--data-dir", dir.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
        let mut leader = Self::start(command.args(more).env("PACELINE_SECRET", "s3cret"));
        let mut line = String::new();
        leader.stdout.read_line(&mut line).unwrap();
        let address = line.strip_prefix("listening on ").expect(&line).trim_end().to_owned();
        (leader, address)
    }

    fn follower(address: &str, dir: &Path) -> Self {
        let mut command = paceline(&["follow", address, "--data-dir", dir.to_str().unwrap()]);
        Self::start(command.env("PACELINE_SECRET", "s3cret"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    #[track_caller]
    fn assert_ends_well_on(mut self, signal: Signal) {
        self.signal(signal);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(0), "{status}");
                return;
            }
            assert!(Instant::now() < deadline, "did not end on {signal:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The replicated files of a directory; what vanishes meanwhile is left out, as are empty files, which protocol 1.0.0
/// cannot express.
fn contents(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![String::new()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).into_iter().flatten().flatten() {
            let name = format!("{folder}{}", entry.file_name().to_str().unwrap());
            match entry.file_type() {
                _ if RelPath::new(&name).unwrap().is_reserved() => {}
                Ok(kind) if kind.is_dir() => folders.push(format!("{name}/")),
                _ => drop(fs::read(entry.path()).map(|content| files.insert(name, content))),
            }
        }
    }
    files.retain(|_, content| !content.is_empty());
    files
}

#[track_caller]
fn wait_until_equal(ours: &Path, theirs: &Path) {
    let deadline = Instant::now() + PATIENCE;
    let lens = |dir| contents(dir).into_iter().map(|(name, content)| (name, content.len())).collect::<Vec<_>>();
    while contents(ours) != contents(theirs) {
        assert!(Instant::now() < deadline, "leader {:?}, follower {:?}", lens(ours), lens(theirs));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn wrong_command_lines_are_told_on_one_line_with_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let leader = ["leader", "--data-dir", dir, "--listen", "127.0.0.1:0"];
    let with = |more: &[&str]| {
        let mut command = paceline(&leader);
        command.args(more).env("PACELINE_SECRET", "s");
        command
    };
    assert_fails(&mut paceline(&["leed"]), 2, "leed");
    assert_fails(&mut paceline(&["leader"]), 2, "--data-dir");
    assert_fails(&mut paceline(&["follow", "nowhere", "--data-dir", dir]), 2, "HOST:PORT");
    for nowhere in ["http://db1:5679", "db1..lan:5679", "127.0.0.1:0", "::1:5679"] {
        assert_fails(&mut paceline(&["follow", nowhere, "--data-dir", dir]), 2, "HOST:PORT");
    }
    assert_fails(&mut paceline(&["leader", "--data-dir", dir, "--listen", "tcp://127.0.0.1:1"]), 2, "HOST:PORT");
    assert_fails(&mut with(&["--wrong"]), 2, "see paceline leader --help");
    assert_fails(&mut with(&["--queue-bytes", "64MIB"]), 2, "64MiB");
    assert_fails(&mut with(&["--queue-bytes", "1KiB"]), 2, "queue_bytes");
    assert_fails(&mut with(&["--write-timeout", "3"]), 2, "500ms");
    assert_fails(&mut with(&["--id", "0"]), 2, "zik0zj");
    let (exit, _, stderr) = run(&mut paceline(&[]));
    assert!(exit == Some(2) && stderr.contains("Usage"), "{stderr}");
    let (exit, stdout, _) = run(&mut paceline(&["--help"]));
    assert!(exit == Some(0) && stdout.contains("Examples:") && stdout.contains("Exit codes:"), "{stdout}");
    let (_, stdout, _) = run(paceline(&["leader", "--help"]).env("PACELINE_SECRET", "hush"));
    assert!(!stdout.contains("hush"));
}

#[test]
fn a_missing_or_wrong_secret_is_told_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("secret"));
    let follow = ["follow", "127.0.0.1:1", "--data-dir", data.to_str().unwrap()];
    assert_fails(&mut paceline(&follow), 2, "PACELINE_SECRET");
    let mut with_file = paceline(&follow);
    with_file.args(["--secret-file", file.to_str().unwrap()]);
    assert_fails(&mut with_file, 2, "--secret-file");
    fs::write(&file, "\n").unwrap();
    assert_fails(&mut with_file, 2, "1 to 255 bytes");
    assert_fails(paceline(&follow).env("PACELINE_SECRET", "x".repeat(256)), 2, "1 to 255 bytes");
    assert!(!data.exists(), "something was started");
}

#[test]
fn a_leader_that_cannot_start_says_why_with_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    let leader = |data: &Path, listen: &str| {
        let mut command = paceline(&["leader", "--data-dir", data.to_str().unwrap(), "--listen", listen]);
        command.env("PACELINE_SECRET", "s3cret");
        command
    };
    assert_fails(&mut leader(&dir.path().join("absent"), "127.0.0.1:0"), 1, "create it");
    fs::write(dir.path().join("file"), "").unwrap();
    assert_fails(&mut leader(&dir.path().join("file"), "127.0.0.1:0"), 1, "not a directory");
    let (_running, address) = Running::leader(dir.path(), &[]);
    assert_fails(&mut leader(dir.path(), "127.0.0.1:0"), 1, "in use");
    let other = tempfile::tempdir().unwrap();
    assert_fails(&mut leader(other.path(), &address), 1, &format!("{address}: Address already in use"));
    assert_fails(&mut leader(other.path(), "192.0.2.1:5679"), 1, "192.0.2.1:5679: Cannot assign requested address");
    assert_fails(&mut leader(other.path(), "nowhere.invalid:5679"), 1, "--listen nowhere.invalid:5679: ");
}

#[test]
fn a_live_directory_is_copied_until_signals_end_both_cleanly() {
    let (source, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, copy) = (source.path(), copy.path());
    fs::create_dir(source.join("there")).unwrap();
    fs::write(source.join("there/before"), "1").unwrap();
    let (leader, address) = Running::leader(source, &["--exclude", "*.skip", "--queue-bytes", "1.5MiB"]);
    let follower = Running::follower(&format!("tcp://{address}"), copy);
    wait_until_equal(source, copy);
    // As programs do: logs that grow, are rotated both ways, folders that come and go, files renamed into place.
    let mut log = OpenOptions::new().append(true).create(true).open(source.join("log")).unwrap();
    for round in 0u32..200 {
        writeln!(log, "line {round} {}", "x".repeat(3000)).unwrap();
        if round % 50 == 20 {
            fs::copy(source.join("log"), source.join(format!("log.{round}"))).unwrap();
            log.set_len(0).unwrap();
        }
        if round % 50 == 40 {
            fs::rename(source.join("log"), source.join("log.old")).unwrap();
            log = OpenOptions::new().append(true).create(true).open(source.join("log")).unwrap();
        }
        if round % 20 == 0 {
            let folder = source.join(format!("d/{round}/e"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("at once"), vec![1; 300_000]).unwrap();
            fs::write(source.join("new.skip"), round.to_string()).unwrap();
            fs::rename(source.join("new.skip"), source.join("state")).unwrap();
        }
        if round % 40 == 0 {
            fs::remove_dir_all(source.join(format!("d/{round}"))).unwrap();
        }
    }
    wait_until_equal(source, copy);
    // The last appends before the end arrive too.
    log.write_all(&[7; 100_000]).unwrap();
    leader.assert_ends_well_on(Signal::TERM);
    wait_until_equal(source, copy);
    follower.assert_ends_well_on(Signal::INT);
}

#[test]
fn following_once_syncs_says_what_it_did_and_ends() {
    let (source, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(source.path().join("d")).unwrap();
    for (name, len) in [("a", 10), ("d/b", 300_000)] {
        fs::write(source.path().join(name), vec![1; len]).unwrap();
    }
    let (leader, address) = Running::leader(source.path(), &[]);
    let data = copy.path().join("new/copy");
    let secret_file = copy.path().join("secret");
    fs::write(&secret_file, "s3cret\n").unwrap();
    let mut once = paceline(&["follow", &address, "--once", "--data-dir", data.to_str().unwrap()]);
    once.args(["--secret-file", secret_file.to_str().unwrap()]);
    let (exit, stdout, stderr) = run(&mut once);
    assert_eq!(exit, Some(0), "{stderr}");
    assert!(stdout.contains("2 files received (293.0 KiB), 0 deleted"), "{stdout}");
    assert_eq!(contents(source.path()), contents(&data));
    fs::write(source.path().join("a"), "more").unwrap();
    fs::write(data.join("foreign"), "x").unwrap();
    // The watcher announces the change on its own time.
    let deadline = Instant::now() + PATIENCE;
    while contents(source.path()) != contents(&data) {
        assert!(Instant::now() < deadline);
        let (exit, _, stderr) = run(&mut once);
        assert_eq!(exit, Some(0), "{stderr}");
    }
    fs::write(&secret_file, "wrong").unwrap();
    assert_fails(&mut once, 2, "refused the secret");
    let mut lasting = paceline(&["follow", &address, "--data-dir", data.to_str().unwrap()]);
    assert_fails(lasting.env("PACELINE_SECRET", "wrong"), 2, "refused the secret");
    let mut nowhere = paceline(&["follow", "nowhere.invalid:5679", "--once", "--data-dir", data.to_str().unwrap()]);
    let (exit, _, stderr) = run(nowhere.env("PACELINE_SECRET", "s"));
    assert!(exit == Some(1) && (stderr.contains("no such name") || stderr.contains("no name server")), "{stderr}");
    let stranger = tempfile::tempdir().unwrap();
    fs::write(stranger.path().join("precious"), "x").unwrap();
    let mut foreign = paceline(&["follow", &address, "--once", "--data-dir", stranger.path().to_str().unwrap()]);
    assert_fails(foreign.env("PACELINE_SECRET", "s3cret"), 1, "--adopt");
    assert!(stranger.path().join("precious").exists());
    leader.assert_ends_well_on(Signal::INT);
}

#[test]
fn a_leader_whose_directory_goes_away_ends_with_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let mut command = paceline(&["leader", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    command.env("PACELINE_SECRET", "s3cret").env("RUST_LOG", "info").stderr(Stdio::piped());
    let mut leader = Running::start(&mut command);
    let mut line = String::new();
    leader.stdout.read_line(&mut line).unwrap();
    let copy = dir.path().join("copy");
    fs::write(data.join("there"), "1").unwrap();
    let _follower = Running::follower(line.strip_prefix("listening on ").unwrap().trim_end(), &copy);
    wait_until_equal(&data, &copy);
    fs::rename(&data, dir.path().join("elsewhere")).unwrap();
    let mut stderr = String::new();
    leader.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(stderr.contains("not all that changed") && !stderr.contains("everything"), "{stderr}");
    assert!(stderr.contains("moved") && stderr.lines().last().unwrap().starts_with("paceline: error: "), "{stderr}");
    assert_eq!(leader.child.wait().unwrap().code(), Some(1));
}

#[test]
fn what_was_kept_is_shown_to_the_last_file_however_many_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let (data, time) = (dir.path().to_str().unwrap(), "2026-11-26T213000Z");
    let kept = dir.path().join(".paceline/kept").join(time);
    fs::create_dir_all(&kept).unwrap();
    let name = |number: usize| format!("{number:0>200}");
    (0..20_000).for_each(|number| fs::write(kept.join(name(number)), "").unwrap());
    let (exit, stdout, stderr) = run(&mut paceline(&["kept", data, "--files", time]));
    assert_eq!((exit, stdout.lines().count()), (Some(0), 20_000), "{stderr}");
    assert!(stdout.lines().last().unwrap().ends_with(&name(19_999)));
    // Whoever has seen enough closes the pipe.
    let mut child = paceline(&["kept", data, "--files", time]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_copy_is_verified_to_be_equal_or_it_is_said_what_differs() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let paths = dirs.each_ref().map(|dir| dir.path().to_str().unwrap());
    for dir in &dirs {
        fs::write(dir.path().join("same"), "same").unwrap();
        fs::write(dir.path().join("other"), [1; 10_000]).unwrap();
    }
    let (code, out, err) = run(&mut paceline(&["verify", paths[0], paths[1]]));
    assert_eq!((code, out.as_str()), (Some(0), "equal: 2 files with 9.8 KiB were compared\n"), "{err}");
    fs::write(dirs[1].path().join("other"), [[1; 5000], [2; 5000]].concat()).unwrap();
    fs::write(dirs[1].path().join("more"), "").unwrap();
    fs::remove_file(dirs[1].path().join("same")).unwrap();
    let (code, out, err) = run(&mut paceline(&["verify", paths[0], paths[1]]));
    let lines = "extra      more\ndifferent  other: 5904 bytes at 4096\nmissing    same\n";
    assert_eq!((code, out.as_str()), (Some(1), lines), "{err}");
    assert!(err.ends_with("error: 2 files with 9.8 KiB were compared, and 3 differ\n"), "{err}");
    assert_fails(&mut paceline(&["verify", paths[0], "/nowhere"]), 2, "/nowhere");
}

#[test]
fn what_a_copy_has_besides_content_is_verified() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for (dir, (mode, target, seconds)) in
        dirs.iter().zip([(0o640, "here", 1_700_000_000), (0o600, "there", 1_700_000_002)])
    {
        let at = |name: &str| dir.path().join(name);
        fs::write(at("both"), "x").unwrap();
        let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
        fs::File::options().write(true).open(at("both")).unwrap().set_modified(time).unwrap();
        fs::set_permissions(at("both"), fs::Permissions::from_mode(mode)).unwrap();
        symlink(target, at("link")).unwrap();
    }
    fs::create_dir(dirs[0].path().join("empty")).unwrap();
    fs::create_dir(dirs[0].path().join("other")).unwrap();
    fs::write(dirs[1].path().join("other"), "x").unwrap();
    let (code, out, err) = run(paceline(&["verify"]).args(dirs.each_ref().map(|dir| dir.path())));
    let lines = "different  both: mode 600, not 640\ndifferent  both: its time is 2s later\nmissing    empty\n\
                 different  link: leads to \"there\", not \"here\"\ndifferent  other: a file, not a folder\n";
    assert_eq!((code, out.as_str()), (Some(1), lines), "{err}");
    assert!(err.ends_with("error: 1 files with 1 B were compared, and 4 differ\n"), "{err}");
}
