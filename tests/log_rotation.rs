//! A real logrotate turns over log files that are being written in the leader's directory, and `mv` and `rm` move whole
//! folders about: the followers' copies come out equal.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use support::processes::{Stage, find, run};
use support::wait_until;

/// A log as a daemon keeps it open.
struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    fn open(path: &Path) -> Self {
        let file = File::options().append(true).create(true).open(path).unwrap();
        Self { path: path.to_owned(), file }
    }

    /// Opens the file anew once its name is given to another one. Never makes one itself: between renaming and creating that
    /// would put logrotate to the rescue of a file it did not expect.
    fn reopen_if_rotated(&mut self) {
        let ours = self.file.metadata().unwrap().ino();
        if let Ok(file) = File::options().append(true).open(&self.path)
            && file.metadata().unwrap().ino() != ours
        {
            self.file = file;
        }
    }

    /// Writes a line; its length varies.
    fn line(&mut self, writer: u32, number: u32) {
        let filling = "lorem ipsum dolor sit amet ".repeat((number % 13) as usize);
        self.file.write_all(format!("{writer} {number} {filling}\n").as_bytes()).unwrap();
    }
}

/// Has several threads write lines to `log` for as long as `meanwhile` runs. A file that was rotated away is written to for
/// some lines more, as daemons do until they are told. Returns how many lines each wrote.
fn write_lines(log: &Path, reopens: bool, meanwhile: impl FnOnce(&dyn Fn() -> u32)) -> Vec<u32> {
    const WRITERS: u32 = 3;
    const LINES_BETWEEN_LOOKS: u32 = 40;
    let stop = AtomicBool::new(false);
    let written = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (stop, written) = (&stop, &written);
                scope.spawn(move || {
                    let mut log = Log::open(log);
                    let mut number = 0;
                    while !stop.load(Ordering::Relaxed) {
                        for _ in 0..LINES_BETWEEN_LOOKS {
                            log.line(writer, number);
                            number += 1;
                        }
                        written.fetch_add(LINES_BETWEEN_LOOKS, Ordering::Relaxed);
                        if reopens {
                            log.reopen_if_rotated();
                        }
                        std::thread::yield_now();
                    }
                    number
                })
            })
            .collect();
        let stop_at_end = StopAtEnd(&stop);
        meanwhile(&|| written.load(Ordering::Relaxed));
        drop(stop_at_end);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    })
}

/// Stops the writers also when the test fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A configuration of logrotate for one log.
struct Rotation<'a> {
    stage: &'a Stage,
    config: PathBuf,
}

impl<'a> Rotation<'a> {
    fn new(stage: &'a Stage, log: &Path, how: &str) -> Self {
        let config = stage.path("logrotate.conf");
        fs::write(&config, format!("{} {{\n{how}\n}}\n", log.display())).unwrap();
        // It refuses what others could have written.
        fs::set_permissions(&config, PermissionsExt::from_mode(0o600)).unwrap();
        Self { stage, config }
    }

    fn rotate(&self) {
        let logrotate = find("logrotate", "logrotate");
        run(Command::new(logrotate).arg("--force").arg("--state").arg(self.stage.path("state")).arg(&self.config));
    }

    /// Rotates again and again, each time after some more lines were written.
    fn rotate_often(&self, times: u32, lines_written: &dyn Fn() -> u32) {
        const LINES_BETWEEN: u32 = 2_000;
        for _ in 0..times {
            let before = lines_written();
            wait_until("the writers go on", || lines_written().wrapping_sub(before) >= LINES_BETWEEN);
            self.rotate();
        }
    }
}

/// All lines in all files of a folder, as writer and number.
fn lines_in(folder: &Path) -> Vec<(u32, u32)> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        for line in fs::read_to_string(entry.unwrap().path()).unwrap().lines() {
            let mut words = line.split(' ').map(|word| word.parse().ok());
            lines.push((words.next().flatten().expect(line), words.next().flatten().expect(line)));
        }
    }
    lines
}

#[test]
fn a_log_rotated_by_renaming_and_creating_arrives_with_every_line_once() {
    let stage = Stage::new();
    let dir = stage.folder("data");
    let logs = dir.join("logs");
    fs::create_dir(&logs).unwrap();
    let log = logs.join("app.log");
    let mut leader = stage.leader(&dir, &[]);
    let mut followers = stage.followers(2, leader.address);
    let rotation = Rotation::new(&stage, &log, "create\nrotate 100\nnocompress");
    let wrote = write_lines(&log, true, |lines_written| rotation.rotate_often(20, lines_written));
    leader.end(&mut followers);
    for follower in &followers {
        let lines = lines_in(&follower.dir.join("logs"));
        let distinct: BTreeSet<_> = lines.iter().copied().collect();
        let expected: BTreeSet<_> =
            (0..).zip(&wrote).flat_map(|(writer, count)| (0..*count).map(move |number| (writer, number))).collect();
        assert!(distinct == expected && lines.len() == expected.len(), "lines are missing, or there twice");
    }
}

#[test]
fn a_log_rotated_by_renaming_with_old_ones_compressed_and_removed_arrives() {
    let stage = Stage::new();
    let dir = stage.folder("data");
    let log = dir.join("app.log");
    let mut leader = stage.leader(&dir, &[]);
    let mut followers = stage.followers(2, leader.address);
    let rotation = Rotation::new(&stage, &log, "create\nrotate 3\ncompress\ndelaycompress");
    write_lines(&log, true, |lines_written| rotation.rotate_often(12, lines_written));
    // Nobody writes any more: what is new is empty.
    rotation.rotate();
    leader.end(&mut followers);
    assert!(followers[0].dir.join("app.log.3.gz").exists());
}

#[test]
fn a_log_rotated_by_copying_and_truncating_arrives() {
    let stage = Stage::new();
    let dir = stage.folder("data");
    let log = dir.join("app.log");
    let mut leader = stage.leader(&dir, &[]);
    let mut followers = stage.followers(2, leader.address);
    let rotation = Rotation::new(&stage, &log, "copytruncate\nrotate 4\nnocompress");
    write_lines(&log, false, |lines_written| rotation.rotate_often(20, lines_written));
    leader.wait_copies(&followers);
    // Truncated, and nothing written after.
    rotation.rotate();
    leader.end(&mut followers);
    assert_eq!(fs::metadata(followers[0].dir.join("app.log")).unwrap().len(), 0);
}

#[test]
fn folders_moved_removed_and_made_anew_while_they_are_written_arrive() {
    let stage = Stage::new();
    let dir = stage.folder("data");
    let log = dir.join("steady.log");
    let mut leader = stage.leader(&dir, &[]);
    let mut followers = stage.followers(2, leader.address);
    let shell = |script: &str| run(Command::new("sh").arg("-euc").arg(script).current_dir(&dir));
    write_lines(&log, true, |_| {
        for round in 0..15 {
            // A tree is made and filled while it is found, moved while it is read, taken apart while it is moved.
            shell(&format!(
                "mkdir -p new/a/b/c
                 for i in 1 2 3 4 5; do
                     echo {round} $i > new/a/file$i; seq $i 3000 > new/a/b/file$i; echo {round} >> new/a/b/c/file$i
                 done
                 mv new/a/b new/b
                 rm -rf old; mv new old
                 mkdir new; echo {round} > new/a
                 mv old/b/c new/c; echo moved >> new/c/file1
                 mv new swap; mv old new; mv swap old
                 rm new/a/file3; mkdir new/a/file3; echo folder > new/a/file3/inside
                 rm -rf old/c; echo file > old/c
                 mv old/c new/a/file1
                 rm -rf new/b; mkdir new/b; echo {round} again > new/b/file1
                 mkdir -p kept; mv new kept/$(printf %03d {round})
                 rm -rf kept/*5"
            ));
        }
        // One name goes round.
        for _ in 0..30 {
            shell(
                "for i in 1 2 3; do echo $i >> turn; mv turn turn.$i; cp turn.$i turn; mv turn.$i other; mv other turn; done",
            );
        }
    });
    leader.end(&mut followers);
}
