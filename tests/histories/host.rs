//! What a host does to its files and tells its leader, a line each: planned in one process, done in another.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use paceline::Leader;

use crate::support::path;

/// How long a commit is waited for.
const COMMIT_TIMEOUT: Duration = Duration::from_millis(300);

/// Between a change on disk and its announcement.
pub type Late = Duration;

#[derive(Clone, Debug)]
pub enum Op {
    /// Written and announced by the leader; with a pause between, by the host itself.
    Append {
        name: String,
        content: Content,
        late: Late,
    },
    /// By a rename over it, or in place.
    Replace {
        name: String,
        content: Content,
        in_place: bool,
        late: Late,
    },
    Rename {
        from: String,
        to: String,
        late: Late,
    },
    Truncate {
        name: String,
        len: usize,
        late: Late,
    },
    Delete {
        name: String,
        late: Late,
    },
    /// Of all that was announced.
    Commit,
    Pause(Duration),
}

/// Bytes that do not compress and that no other content has.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    pub seed: u64,
    pub len: usize,
}

impl Content {
    pub fn bytes(self) -> Vec<u8> {
        crate::support::noise_of(&mut fastrand::Rng::with_seed(self.seed), self.len)
    }
}

impl Op {
    pub fn line(&self) -> String {
        match self {
            Self::Append { name, content, late } => {
                format!("append {name} {} {} {}", content.seed, content.len, late.as_micros())
            }
            Self::Replace { name, content, in_place: false, late } => {
                format!("replace {name} {} {} {}", content.seed, content.len, late.as_micros())
            }
            Self::Replace { name, content, in_place: true, late } => {
                format!("rewrite {name} {} {} {}", content.seed, content.len, late.as_micros())
            }
            Self::Rename { from, to, late } => format!("rename {from} {to} {}", late.as_micros()),
            Self::Truncate { name, len, late } => format!("truncate {name} {len} {}", late.as_micros()),
            Self::Delete { name, late } => format!("delete {name} {}", late.as_micros()),
            Self::Commit => "commit".to_owned(),
            Self::Pause(time) => format!("pause {}", time.as_micros()),
        }
    }

    pub fn parse(line: &str) -> Self {
        let words: Vec<_> = line.split(' ').collect();
        let number = |word: &str| word.parse::<u64>().unwrap();
        let micros = |word: &str| Duration::from_micros(number(word));
        let size = |word: &str| word.parse::<usize>().unwrap();
        match words[..] {
            ["append", name, seed, len, late] => Self::Append {
                name: name.to_owned(),
                content: Content { seed: number(seed), len: size(len) },
                late: micros(late),
            },
            [how @ ("replace" | "rewrite"), name, seed, len, late] => Self::Replace {
                name: name.to_owned(),
                content: Content { seed: number(seed), len: size(len) },
                in_place: how == "rewrite",
                late: micros(late),
            },
            ["rename", from, to, late] => Self::Rename { from: from.to_owned(), to: to.to_owned(), late: micros(late) },
            ["truncate", name, len, late] => {
                Self::Truncate { name: name.to_owned(), len: size(len), late: micros(late) }
            }
            ["delete", name, late] => Self::Delete { name: name.to_owned(), late: micros(late) },
            ["commit"] => Self::Commit,
            ["pause", time] => Self::Pause(micros(time)),
            _ => panic!("{line}"),
        }
    }

    /// Changes the file alone: nobody leads.
    pub fn on_disk(&self, dir: &Path) -> io::Result<()> {
        let at = |name: &str| dir.join(name);
        match self {
            Self::Append { name, content, .. } => {
                room(dir, name)?;
                let file = File::options().create(true).truncate(false).write(true).open(at(name))?;
                file.write_all_at(&content.bytes(), file.metadata()?.len())
            }
            Self::Replace { name, content, in_place: true, .. } => {
                room(dir, name)?;
                fs::write(at(name), content.bytes())
            }
            Self::Replace { name, content, in_place: false, .. } => {
                // Beside the directory: who is killed here leaves no file in it.
                let new = dir.with_extension(format!("new-{}", name.replace('/', "-")));
                fs::write(&new, content.bytes())?;
                room(dir, name)?;
                fs::rename(new, at(name))
            }
            Self::Rename { from, to, .. } => {
                room(dir, to)?;
                fs::rename(at(from), at(to))
            }
            Self::Truncate { name, len, .. } => {
                File::options().write(true).open(at(name))?.set_len(u64::try_from(*len).unwrap())
            }
            Self::Delete { name, .. } => fs::remove_file(at(name)),
            Self::Commit | Self::Pause(_) => Ok(()),
        }
    }

    /// Changes the file and announces it. What was done: a commit may have failed.
    pub fn run(&self, leader: &Leader, dir: &Path) -> Result<&'static str, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", self.line());
        match self {
            Self::Append { name, content, late } if late.is_zero() => {
                room(dir, name).map_err(|error| failed(&error))?;
                let appended = leader.file(&path(name)).and_then(|mut file| file.append(&content.bytes()));
                return appended.map(|_| "done").map_err(|error| failed(&error));
            }
            Self::Commit => {
                let outcome = leader.commit(leader.position(), COMMIT_TIMEOUT);
                return Ok(if outcome.is_committed() { "committed" } else { "done" });
            }
            Self::Pause(time) => {
                std::thread::sleep(*time);
                return Ok("done");
            }
            _ => {}
        }
        self.on_disk(dir).map_err(|error| failed(&error))?;
        let (Self::Append { late, .. }
        | Self::Replace { late, .. }
        | Self::Rename { late, .. }
        | Self::Truncate { late, .. }
        | Self::Delete { late, .. }) = self
        else {
            return Ok("done");
        };
        std::thread::sleep(*late);
        let announced = match self {
            Self::Append { name, content, .. } => {
                leader.append(&path(name), leader.file_len(&path(name)).unwrap_or(0), &content.bytes())
            }
            Self::Replace { name, .. } => leader.replace(&path(name)),
            Self::Rename { from, to, .. } => leader.rename(&path(from), &path(to)),
            Self::Truncate { name, len, .. } => leader.truncate(&path(name), u64::try_from(*len).unwrap()),
            Self::Delete { name, .. } => leader.delete(&path(name)),
            Self::Commit | Self::Pause(_) => unreachable!(),
        };
        announced.map(|_| "done").map_err(|error| failed(&error))
    }
}

/// Makes the folders of a file, and takes away the empty ones that have its name.
fn room(dir: &Path, name: &str) -> io::Result<()> {
    fn take_away(folder: &Path) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            take_away(&entry?.path())?;
        }
        fs::remove_dir(folder)
    }
    let full = dir.join(name);
    fs::create_dir_all(full.parent().unwrap())?;
    if full.is_dir() { take_away(&full) } else { Ok(()) }
}
