//! What was there when the directory last led, and whether a start finds it: a disk that is not mounted, or a restore that went
//! wrong, looks like so many deletes, and followers would do them.
//!
//! Kept in `.paceline/last-led`: how many files and bytes were announced, which files were excluded, and the mount points below the
//! directory. No names: what a program rotates, compacts or rewrites changes all of them within a minute. A start is refused if fewer than half of
//! the files *and* of the bytes are left, or if a mount point is none any more. Followers forget the file before their leader's
//! first change: from then on what is missing is compared with that leader's.
//!
//! It is written when the first scan is done, at a clean end, and in between when much has changed: within a second when it
//! shrank by a quarter, because a queue that is drained just before a crash must not keep the leader from starting; seldom when
//! it grew, because that can only miss something. What is left is a queue that is drained while no leader runs. That cannot be told from
//! a loss, so a person is asked. Mount points only come off the list by a person's word.
//!
//! One thread, `last-led`, which also keeps how far the directory has come ([`OwnStand`]); it takes the lock of the stream for two numbers, once a second, and writes with none held. It ends when
//! it is told to, after a last write.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::datadir::DataDir;
use crate::error::Error;
use crate::leader::files::exclude::Exclude;
use crate::own_folder::LAST_LED;
use crate::position::{Stand, noted};
use crate::stop::Stop;
use crate::sys::fs;
use crate::sys::time::Instant;
use crate::types::{RelPath, StreamPosition};

/// How often it is looked at whether much has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Between two writes because there is more.
const GROWN_EVERY: Duration = Duration::from_secs(30);

/// Between two notes of how far the directory has come.
const STAND_EVERY: Duration = Duration::from_secs(60);

const MOUNTS: &str = "/proc/self/mountinfo";

const REMEDY: &str = "remove it, and nothing is compared with what was there before";

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::leader) struct LastLed {
    pub(in crate::leader) files: u64,
    pub(in crate::leader) bytes: u64,
    /// Escaped, as are the mount points: no line breaks.
    exclude: Vec<String>,
    mounts: BTreeSet<String>,
}

impl LastLed {
    /// What there is now, of which so much is announced.
    pub(in crate::leader) fn now(
        dir: &Path,
        patterns: &[String],
        exclude: &Exclude,
        (files, bytes): (u64, u64),
    ) -> Result<Self, Error> {
        let exclude_patterns = patterns.iter().map(|pattern| pattern.escape_default().to_string()).collect();
        Ok(Self { files, bytes, exclude: exclude_patterns, mounts: mounts_below(dir, exclude)? })
    }

    /// What was kept; `None`: the directory has not led since it last followed, or not since this is kept.
    pub(in crate::leader) fn kept(dir: &DataDir) -> Result<Option<Self>, Error> {
        let Some(text) = dir.own().read(LAST_LED, REMEDY)? else { return Ok(None) };
        let mut kept = Self::default();
        for line in text.split_terminator('\n') {
            match line.split_once(' ') {
                Some(("files", files)) => kept.files = files.parse().unwrap_or_default(),
                Some(("bytes", bytes)) => kept.bytes = bytes.parse().unwrap_or_default(),
                Some(("exclude", pattern)) => kept.exclude.push(pattern.to_owned()),
                Some(("mount", mount)) => drop(kept.mounts.insert(mount.to_owned())),
                // Of a later version.
                _ => {}
            }
        }
        Ok(Some(kept))
    }

    /// What of it is missing now, in words; `None`: nothing that a program does not do by itself.
    pub(in crate::leader) fn missing(&self, now: &Self) -> Option<String> {
        if let Some(mount) = self.mounts.difference(&now.mounts).next() {
            return Some(format!(
                "{mount} was a file system of its own when this directory last led, and is not mounted"
            ));
        }
        let halved = |then: u64, now: u64| then == 0 || now < then.div_ceil(2);
        // Newly excluded is not lost.
        let lost = self.exclude == now.exclude
            && self.files > 0
            && halved(self.files, now.files)
            && halved(self.bytes, now.bytes);
        lost.then(|| {
            format!(
                "{} of {} files are left, and {} of {} bytes, of what this directory had when it last led",
                now.files, self.files, now.bytes, self.bytes
            )
        })
    }

    /// Whether so much less is left that it is noted before a start might find it missing.
    fn has_shrunk_to(&self, files: u64, bytes: u64) -> bool {
        let less = |then: u64, now: u64| then == 0 || u128::from(now) * 4 < u128::from(then) * 3;
        self.files > 0 && less(self.files, files) && less(self.bytes, bytes)
    }

    pub(in crate::leader) fn keep(&self, dir: &DataDir) -> Result<(), Error> {
        let mut text = format!("files {}\nbytes {}\n", self.files, self.bytes);
        text.extend(self.exclude.iter().map(|pattern| format!("exclude {pattern}\n")));
        text.extend(self.mounts.iter().map(|mount| format!("mount {mount}\n")));
        dir.own().write(LAST_LED, &text)
    }
}

/// How far a leader's directory has come, as it keeps that in a cluster: once a minute, while it moves.
pub(in crate::leader) struct OwnStand {
    term: u64,
    kept: StreamPosition,
    /// When that was written last.
    at: Option<Instant>,
}

impl OwnStand {
    /// As of [`Opening::read`](crate::leader::Opening), which has kept that it leads.
    pub(in crate::leader) fn new(term: u64) -> Self {
        Self { term, kept: StreamPosition::START, at: None }
    }

    /// `durable`: up to where the leader's files are. Returns what is kept now, if that is more than before.
    pub(in crate::leader) fn look(&mut self, dir: &DataDir, durable: StreamPosition) -> Option<StreamPosition> {
        if durable <= self.kept || self.at.is_some_and(|at| at.elapsed() < STAND_EVERY) {
            return None;
        }
        self.at = Some(Instant::now());
        let kept = Stand::of_leader(self.term, durable).keep(dir.own());
        let is_kept = kept.is_ok();
        noted(kept);
        if is_kept {
            self.kept = durable;
        }
        is_kept.then_some(durable)
    }
}

/// Refuses a directory of which much is missing.
pub(in crate::leader) fn check(dir: &DataDir, now: &LastLed) -> Result<(), Error> {
    match LastLed::kept(dir)?.and_then(|kept| kept.missing(now)) {
        None => Ok(()),
        Some(missing) => Err(Error::Missing { dir: dir.path().to_owned(), missing }),
    }
}

/// The thread's life: until `ended`. `totals` are the files and bytes that are announced; `also` is what else is looked at as often.
pub(in crate::leader) fn run(
    dir: &DataDir,
    exclude: &Exclude,
    totals: impl Fn() -> (u64, u64),
    mut kept: LastLed,
    ended: &Stop,
    mut also: impl FnMut(),
) {
    keep(dir, &kept);
    let mut kept_at = Instant::now();
    while !ended.wait(LOOK_EVERY) {
        also();
        let (files, bytes) = totals();
        let grown = files > part(kept.files, 5) || bytes > part(kept.bytes, 5);
        if kept.has_shrunk_to(files, bytes) || (grown && kept_at.elapsed() >= GROWN_EVERY) {
            (kept.files, kept.bytes) = (files, bytes);
            keep(dir, &kept);
            kept_at = Instant::now();
        }
    }
    (kept.files, kept.bytes) = totals();
    match mounts_below(dir.path(), exclude) {
        Ok(mounts) => kept.mounts.extend(mounts),
        Err(error) => log::warn!("{error}"),
    }
    keep(dir, &kept);
}

/// So many quarters of it.
fn part(of: u64, quarters: u64) -> u64 {
    (u128::from(of) * u128::from(quarters) / 4).try_into().unwrap_or(u64::MAX)
}

/// A full disk keeps no leader from serving.
fn keep(dir: &DataDir, kept: &LastLed) {
    if let Err(error) = kept.keep(dir) {
        log::warn!("what this directory holds could not be noted, so a start that finds less does not tell: {error}");
    }
}

/// The mount points below a directory, relative to it and escaped, but for what is never replicated.
fn mounts_below(dir: &Path, exclude: &Exclude) -> Result<BTreeSet<String>, Error> {
    let root = fs::canonicalize(dir).map_err(|error| Error::io("find", dir, error))?;
    let mounts = match fs::read(MOUNTS) {
        // Names of others need not be UTF-8.
        Ok(mounts) => String::from_utf8_lossy(&mounts).into_owned(),
        Err(error) => {
            log::warn!("what is mounted below {} is not known: {MOUNTS}: {error}", dir.display());
            String::new()
        }
    };
    let below = mounts.lines().filter_map(|line| {
        let point = unescape(line.split(' ').nth(4)?);
        let name = Path::new(&point).strip_prefix(&root).ok()?.to_str()?;
        let path = RelPath::new(name).ok()?;
        let replicated = !path.is_reserved() && !exclude.folder(&path);
        replicated.then(|| name.escape_default().to_string())
    });
    Ok(below.collect())
}

/// The kernel writes blanks, tabs, line breaks and backslashes as three octal digits.
pub(in crate::leader) fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led(files: u64, bytes: u64) -> LastLed {
        LastLed { files, bytes, ..LastLed::default() }
    }

    #[test]
    fn more_than_half_of_files_and_of_bytes_gone_is_a_loss() {
        let lost = |then: (u64, u64), now: (u64, u64)| led(then.0, then.1).missing(&led(now.0, now.1)).is_some();
        assert!(lost((60, 600), (26, 260)) && lost((3, 30), (0, 0)) && lost((1, 1), (0, 0)) && lost((9, 0), (4, 0)));
        assert!(!lost((60, 600), (30, 300)) && !lost((0, 0), (0, 0)) && !lost((10, 10), (20, 20)));
        assert!(!lost((60, 600), (10, 500)), "compacted into fewer files");
        assert!(!lost((60, 600), (60, 6)), "compressed, or rewritten");
        let other = LastLed { exclude: vec!["*.log".to_owned()], ..led(1, 1) };
        assert_eq!(led(60, 600).missing(&other), None, "newly excluded");
    }

    #[test]
    fn whatever_a_start_would_find_missing_is_noted_as_gone_by_the_leader_that_saw_it_go() {
        let counts = || (0..9).flat_map(|files| (0..9).map(move |bytes| (files, bytes)));
        for (then, now) in counts().flat_map(|then| counts().map(move |now| (then, now))) {
            let kept = led(then.0, then.1);
            let is_missing = kept.missing(&led(now.0, now.1)).is_some();
            assert!(!is_missing || kept.has_shrunk_to(now.0, now.1), "{then:?}, {now:?}");
        }
    }

    #[test]
    fn a_mount_point_that_is_none_any_more_is_a_loss() {
        let then = LastLed { mounts: ["wal".to_owned()].into(), ..led(1, 1) };
        assert!(then.missing(&led(5, 5)).is_some_and(|missing| missing.contains("wal")));
        assert_eq!(then.missing(&then), None);
        assert_eq!(led(1, 1).missing(&then), None);
    }

    #[test]
    fn what_is_kept_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let dir = DataDir::open(dir.path(), None).unwrap();
        assert_eq!(LastLed::kept(&dir).unwrap(), None);
        let mounts = ["wal".to_owned(), "a b".escape_default().to_string()].into();
        let kept = LastLed { files: 3, bytes: u64::MAX, exclude: vec!["*.tmp".to_owned()], mounts };
        kept.keep(&dir).unwrap();
        assert_eq!(LastLed::kept(&dir).unwrap(), Some(kept));
        dir.own().forget_stand().unwrap();
        assert_eq!(LastLed::kept(&dir).unwrap(), None);
    }

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        assert_eq!(unescape(r"/a\040b\134c\011d"), "/a b\\c\td");
        assert_eq!(unescape(r"/\9"), r"/\9");
        let exclude = Exclude::new(&[]).unwrap();
        assert!(mounts_below(Path::new("/"), &exclude).unwrap().contains("proc"));
        let dir = tempfile::tempdir().unwrap();
        assert!(mounts_below(dir.path(), &exclude).unwrap().is_empty());
    }
}
