//! The other program under test: one that knows nothing of replication, run and watched by `paceline node`.
//!
//! This program started anew, with [`PROGRAM`] as its first argument. It counts in a journal, which it renames away and begins anew now
//! and then, and in a state that it replaces. It says in a file outside the node's directory, a line each:
//!
//! - `began LAST`: it runs, and this is the last number in its directory
//! - `two`: another one runs
//! - `idle PAUSE LAST`: writes nothing while that pause lasts

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ledger::Reader;

/// The first argument of its process.
pub const PROGRAM: &str = "program";
/// The journal's length when it is renamed away.
const JOURNAL_BYTES: u64 = 1 << 20;

/// Where it works, and where it says what.
#[derive(Clone)]
pub struct Settings {
    pub dir: PathBuf,
    pub told: PathBuf,
    pub pause: PathBuf,
    /// Held by the one that runs, wherever that is.
    pub lock: PathBuf,
}

impl Settings {
    pub fn args(&self) -> Vec<String> {
        let paths = [&self.dir, &self.told, &self.pause, &self.lock].map(|path| path.to_str().unwrap().to_owned());
        [PROGRAM.to_owned()].into_iter().chain(paths).collect()
    }

    fn of(args: &[String]) -> Self {
        let [_, dir, told, pause, lock] = args else { panic!("{args:?}") };
        Self { dir: dir.into(), told: told.into(), pause: pause.into(), lock: lock.into() }
    }
}

/// The process's life, which ends with a signal.
pub fn run(args: &[String]) -> ! {
    let settings = Settings::of(args);
    let mut told = File::options().append(true).create(true).open(&settings.told).unwrap();
    let mut say = |line: String| told.write_all(format!("{line}\n").as_bytes()).unwrap();
    let lock = File::options().write(true).create(true).truncate(false).open(&settings.lock).unwrap();
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => say("two".to_owned()),
        Err(TryLockError::Error(error)) => panic!("{error}"),
    }
    let mut last = last_number(&settings.dir).unwrap();
    say(format!("began {last}"));
    let (mut random, mut paused) = (fastrand::Rng::new(), String::new());
    loop {
        match fs::read_to_string(&settings.pause) {
            Ok(pause) if pause != paused => {
                say(format!("idle {pause} {last}"));
                paused = pause;
            }
            Ok(_) => {}
            // A full disk, most of the time: what is half there is passed over when it is read.
            Err(_) => match write(&settings.dir, last + 1, &mut random) {
                Ok(()) => last += 1,
                Err(error) => eprintln!("{error}"),
            },
        }
        std::thread::sleep(Duration::from_micros(random.u64(500..10_000)));
    }
}

fn write(dir: &Path, number: u64, random: &mut fastrand::Rng) -> io::Result<()> {
    let mut journal = File::options().append(true).create(true).open(dir.join("journal"))?;
    let length = random.usize(1..500);
    let line: String = std::iter::repeat_with(|| random.alphanumeric()).take(length).collect();
    // The first newline ends what may be half there.
    journal.write_all(format!("\n{number} {line}\n").as_bytes())?;
    if journal.metadata()?.len() > JOURNAL_BYTES {
        fs::rename(dir.join("journal"), dir.join("journal.1"))?;
    }
    if random.u32(..50) == 0 {
        let new = dir.join("state.new");
        fs::write(&new, vec![random.u8(..); random.usize(1..100_000)])?;
        fs::rename(new, dir.join("state"))?;
    }
    Ok(())
}

fn last_number(dir: &Path) -> io::Result<u64> {
    for name in ["journal", "journal.1"] {
        let text = match fs::read(dir.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => String::from_utf8_lossy(&text?).into_owned(),
        };
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let number = |line: &str| line.split(' ').next().and_then(|number| number.parse::<u64>().ok());
        if let Some(number) = whole.lines().rev().find_map(number) {
            return Ok(number);
        }
    }
    Ok(0)
}

/// What the programs have said, of all nodes.
#[derive(Default)]
pub struct Programs {
    /// The last number that was in all copies when they were last compared.
    everywhere: u64,
    /// In which pause one rests, at which number.
    idle: Option<(String, u64)>,
    pub runs: u64,
}

impl Programs {
    /// Takes in what a node's program has said since. An error: it must not be so.
    pub fn read(&mut self, node: usize, reader: &mut Reader) -> Result<(), String> {
        let node = node + 1;
        for line in reader.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["began", last] => {
                    self.runs += 1;
                    let last: u64 = last.parse().unwrap();
                    if last < self.everywhere {
                        let everywhere = self.everywhere;
                        return Err(format!(
                            "the program of node {node} begins at {last}, and {everywhere} was everywhere"
                        ));
                    }
                }
                ["idle", pause, last] => self.idle = Some((pause.to_owned(), last.parse().unwrap())),
                ["two"] => return Err(format!("a program runs at node {node} while another one does")),
                _ => return Err(format!("the program of node {node} said {line:?}")),
            }
        }
        Ok(())
    }

    pub fn is_idle(&self, pause: &str) -> bool {
        self.idle.as_ref().is_some_and(|(idle, _)| idle == pause)
    }

    /// All copies are equal in this pause.
    pub fn are_equal(&mut self) {
        self.everywhere = self.idle.as_ref().map_or(0, |(_, last)| *last);
    }
}
