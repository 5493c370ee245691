//! What cannot be looked at, and so is not replicated: files and folders of which nobody knows what is in them.
//!
//! Followers are not told that it is gone: who has it keeps it as it is, who joins does not get it. It is said once with its name,
//! counted for the status, and tried again; once it can be read it is announced as it is. What the watcher meets it tries
//! again itself, everything else the thread `directory` does.
//!
//! What may not be read by this user is as good as excluded: who lacks it is in sync. Anything else that cannot be read (an error of
//! the disk, say) was announced and may have been committed: who joins without it is not in sync before it has it.
//!
//! What a follower so keeps is unknown to the index. Should it come to be known again it is announced whole, not as an append to
//! nothing; should it turn out to be gone, it is deleted then.
//!
//! Two locks: `kept`, which is taken first, and `entries`, a leaf.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::sys::sync::Mutex;
use crate::sys::time::{Instant, SystemTime};
use crate::types::RelPath;

/// So many are named in the log; all of them, in the status.
const NAMED_MAX: usize = 100;

/// Pauses before it is tried again: twice as long each time.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A file or folder that is not replicated, because it cannot be looked at.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NotReplicated {
    /// Its name; of a folder, all that is in it is meant.
    pub path: RelPath,
    /// What the system said.
    pub error: String,
    /// Since when.
    pub since: SystemTime,
}

#[derive(Default)]
pub(in crate::leader) struct Unreadable {
    entries: Mutex<BTreeMap<RelPath, Entry>>,
    /// What followers have that was not deleted there because nobody knows whether it is here.
    kept: Mutex<BTreeSet<RelPath>>,
    /// Whether there is anything in it.
    keeps: AtomicBool,
}

struct Entry {
    shown: NotReplicated,
    forbidden: bool,
    /// How often somebody found that it is so.
    times: u64,
    /// When it is tried again, and the pause before; `None` if who noted it does that.
    retry: Option<(Instant, Duration)>,
}

impl Unreadable {
    /// Notes it; `retried`: whoever calls tries it again.
    pub(in crate::leader) fn note(&self, root: &Path, path: &RelPath, error: &io::Error, retried: bool) {
        let shown = NotReplicated { path: path.clone(), error: error.to_string(), since: SystemTime::now() };
        let forbidden = error.kind() == io::ErrorKind::PermissionDenied;
        let (count, folder_is_noted) = {
            let mut entries = self.entries.lock();
            if let Some(entry) = entries.get_mut(path) {
                entry.forbidden = forbidden;
                entry.times += 1;
                entry.retry = entry.retry.filter(|_| !retried);
                return;
            }
            let retry = (!retried).then(|| (Instant::now() + PAUSE_MIN, PAUSE_MIN));
            entries.insert(path.clone(), Entry { shown, forbidden, times: 0, retry });
            (entries.len(), is_in_one_of(path, &entries))
        };
        match count {
            ..=NAMED_MAX if !folder_is_noted => log::warn!(
                "{} is not replicated until it can be read; followers keep what they have of it: {error}",
                path.below(root).display()
            ),
            _ => log::debug!("{path} is not replicated until it can be read: {error}"),
        }
        if count == NAMED_MAX {
            log::warn!("{count} files and folders cannot be read: no more of them are named");
        }
    }

    /// How often it was found to be so, to be passed to [`clear`](Self::clear) if it turns out not to be any more.
    pub(in crate::leader) fn times(&self, path: &RelPath) -> Option<u64> {
        self.entries.lock().get(path).map(|entry| entry.times)
    }

    /// It can be read, or is gone, unless somebody has found that it cannot since it was found so many `times`: it is tried again then.
    pub(in crate::leader) fn clear(&self, path: &RelPath, times: u64) {
        let cleared = {
            let mut entries = self.entries.lock();
            let is_so = entries.get(path).is_some_and(|entry| entry.times == times);
            is_so && entries.remove(path).is_some()
        };
        if cleared {
            log::info!("{path} can be looked at again");
        }
    }

    /// Whether it is noted; then it is as if it had been noted again.
    pub(in crate::leader) fn is_noted_again(&self, path: &RelPath) -> bool {
        self.entries.lock().get_mut(path).map(|entry| entry.times += 1).is_some()
    }

    pub(in crate::leader) fn is_noted(&self, path: &RelPath) -> bool {
        self.entries.lock().contains_key(path)
    }

    /// Whether it is one that this user may not read.
    pub(in crate::leader) fn is_forbidden(&self, path: &RelPath) -> bool {
        self.entries.lock().get(path).is_some_and(|entry| entry.forbidden)
    }

    /// Whether it, or a folder it is in, is one: nobody knows whether it is there.
    pub(in crate::leader) fn covers(&self, path: &RelPath) -> bool {
        let entries = self.entries.lock();
        entries.contains_key(path) || is_in_one_of(path, &entries)
    }

    pub(in crate::leader) fn all(&self) -> Vec<NotReplicated> {
        self.entries.lock().values().map(|entry| entry.shown.clone()).collect()
    }

    /// Notes that a follower keeps what the index does not know.
    pub(in crate::leader) fn keep(&self, path: &RelPath) {
        self.kept.lock().insert(path.clone());
        self.keeps.store(true, Ordering::Release);
    }

    pub(in crate::leader) fn is_kept(&self, path: &RelPath) -> bool {
        self.keeps.load(Ordering::Acquire) && self.kept.lock().contains(path)
    }

    /// It is the same everywhere.
    pub(in crate::leader) fn forget_kept(&self, path: &RelPath) {
        let mut kept = self.kept.lock();
        kept.remove(path);
        self.keeps.store(!kept.is_empty(), Ordering::Release);
    }

    /// What is kept and can be looked at by now.
    pub(in crate::leader) fn kept(&self) -> Vec<RelPath> {
        if !self.keeps.load(Ordering::Acquire) {
            return Vec::new();
        }
        let kept = self.kept.lock();
        let entries = self.entries.lock();
        let is_known = |path: &&RelPath| !entries.contains_key(*path) && !is_in_one_of(path, &entries);
        kept.iter().filter(is_known).cloned().collect()
    }

    /// Not tried again before that, because trying takes long.
    pub(in crate::leader) fn put_off(&self, path: &RelPath, until: Instant) {
        if let Some((at, _)) = self.entries.lock().get_mut(path).and_then(|entry| entry.retry.as_mut()) {
            *at = until.max(*at);
        }
    }

    /// Those to be tried now; their next pause is twice as long.
    pub(in crate::leader) fn due(&self) -> Vec<RelPath> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (path, entry) in self.entries.lock().iter_mut() {
            if let Some((at, pause)) = &mut entry.retry
                && *at <= now
            {
                *pause = (*pause * 2).min(PAUSE_MAX);
                *at = now + *pause;
                due.push(path.clone());
            }
        }
        due
    }
}

fn is_in_one_of(path: &RelPath, entries: &BTreeMap<RelPath, Entry>) -> bool {
    path.as_str().match_indices('/').any(|(end, _)| entries.contains_key(&path.as_str()[..end]))
}
