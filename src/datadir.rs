//! What leader and follower do alike with a data directory: take its lock, keep its id, list its files.

use std::ffi::CStr;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use crate::beneath::{self, Beneath, Entry, FileLooks};
use crate::digests::Stamps;
use crate::error::Error;
use crate::own_folder::OwnFolder;
use crate::probe::Probe;
use crate::protocol::extension::Attributes;
use crate::sys::fd::{AsFd, BorrowedFd};
use crate::sys::fs::{self, DirBuilder, DirBuilderExt, File, FileExt, OpenOptionsExt, TryLockError};
use crate::sys::process;
use crate::sys::rustix::fs::Stat;
use crate::types::{DataSetId, NodeId, RelPath};

/// Keeps the node's id, in base 36.
const ID_FILE: &str = ".clustering_id";

/// An id has 6 digits at most.
const ID_FILE_BYTES_MAX: u64 = 64;

/// A data directory that this process alone works on, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    root: Arc<Beneath>,
    /// What `.clustering_id` said when the directory was opened, or what was written to it since.
    kept_id: Option<NodeId>,
    /// Whether `.clustering_id` was there already: then the directory has been a node's before.
    had_id: bool,
    id: NodeId,
    /// What `.paceline/` says, or what was written to it since.
    data_set: Option<DataSetId>,
    own: OwnFolder,
    _lock: DirLock,
}

/// The flock on a directory's `.lock`, held as long as a clone of it lives, here or in a process that was given one.
#[derive(Clone, Debug)]
pub(crate) struct DirLock(Arc<File>);

impl DirLock {
    /// Takes it for this process.
    pub(crate) fn take(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(".lock");
        let lock = private(File::options().write(true).create(true).truncate(false))
            .open(&path)
            .map_err(|error| Error::io("open", &path, error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self(Arc::new(lock))),
            Err(TryLockError::WouldBlock) => Err(Error::InUse(dir.to_owned())),
            Err(TryLockError::Error(error)) => Err(Error::io("lock", &path, error)),
        }
    }

    /// For a watchdog, which has no better way to learn whether the disk works: writes to the lock file of `dir` who holds it, as
    /// LavinMQ does, and something new beside it, and returns once that is on the disk. Does not hold the lock between calls, and
    /// does nothing once that is free.
    pub(crate) fn disk_probe(&self, dir: &Path) -> impl Fn() -> std::io::Result<()> + Send + 'static {
        let (lock, probe) = (Arc::downgrade(&self.0), Probe::new(dir));
        move || {
            let Some(lock) = lock.upgrade() else { return Ok(()) };
            let holder = format!("PID {}", process::id());
            lock.set_len(holder.len() as u64)?;
            lock.write_all_at(holder.as_bytes(), 0)?;
            lock.sync_data()?;
            probe.run()
        }
    }

    /// Whether anything else in this process holds a clone.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl AsFd for DirLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A regular file found in a data directory.
#[derive(Debug)]
pub(crate) struct FoundFile {
    pub(crate) path: RelPath,
    pub(crate) len: u64,
    /// Its device and inode.
    pub(crate) id: (u64, u64),
    pub(crate) looks: FileLooks,
    pub(crate) attributes: Attributes,
}

/// What `stat` says of a file.
pub(crate) fn attributes_of(stat: &Stat) -> Attributes {
    let mode = u16::try_from(stat.st_mode & u32::from(Attributes::MODE_BITS)).unwrap_or_default();
    Attributes { mode, mtime: Stamps::of(stat).mtime }
}

impl DataDir {
    /// Takes the `.lock` of an existing directory and makes it this node's own, see [`claim`](Self::claim).
    #[cfg(test)]
    pub(crate) fn open(path: &Path, id: Option<NodeId>) -> Result<Self, Error> {
        let mut dir = Self::open_unclaimed(path, id, None)?;
        dir.claim()?;
        Ok(dir)
    }

    /// Takes the `.lock` of an existing directory, unless it comes with the call, and finds or chooses its id. Nothing but the lock file is made or
    /// changed: a directory that turns out not to be ours must not look like a node's the next time.
    pub(crate) fn open_unclaimed(path: &Path, id: Option<NodeId>, lock: Option<DirLock>) -> Result<Self, Error> {
        // Resolved once: should a link on the way lead elsewhere later, this is the directory all the same.
        let root = Arc::new(Beneath::open(path).map_err(|error| Error::io("open", path, error))?);
        let path = &root.path().to_owned();
        let lock = match lock {
            Some(lock) => lock,
            None => DirLock::take(path)?,
        };
        let id_path = path.join(ID_FILE);
        let text = match read_id(&id_path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("read", &id_path, error)),
        };
        let had_id = text.is_some();
        let kept_id: Option<NodeId> = match (text, id) {
            (Some(text), None) => Some(text.trim().parse()?),
            // A damaged id does not matter when another one is wanted.
            (Some(text), Some(_)) => text.trim().parse().ok(),
            (None, _) => None,
        };
        let id = id.or(kept_id).unwrap_or_else(NodeId::random);
        let own = OwnFolder::of(path)?;
        let data_set = own.data_set()?;
        Ok(Self { root, kept_id, had_id, id, data_set, own, _lock: lock })
    }

    /// Keeps the id in `.clustering_id`, and removes `checksums.sha1`: a LavinMQ node that later starts here believes it
    /// blindly. To be done before the first change to the directory; does nothing when done before.
    pub(crate) fn claim(&mut self) -> Result<(), Error> {
        self.note_claim()?;
        self.kept_id = Some(self.id);
        Ok(())
    }

    /// The same on disk only.
    pub(crate) fn note_claim(&self) -> Result<(), Error> {
        self.forget_checksums()?;
        if self.kept_id == Some(self.id) { Ok(()) } else { self.own.write_beside(ID_FILE, &self.id.to_string()) }
    }

    /// Removes `checksums.sha1`, as [`claim`](Self::claim) does.
    pub(crate) fn forget_checksums(&self) -> Result<(), Error> {
        for left in ["checksums.sha1", "checksums.sha1.tmp"] {
            remove_if_there(&self.path().join(left))?;
        }
        Ok(())
    }

    /// Whether the directory is a node's: it was before, or it was claimed since.
    pub(crate) fn is_claimed(&self) -> bool {
        self.had_id || self.kept_id.is_some()
    }

    /// Of which data set the directory is; `None` if it never led, nor followed a leader that said so.
    pub(crate) fn data_set(&self) -> Option<DataSetId> {
        self.data_set
    }

    /// Keeps of which data set the directory is from now on; that is on disk when this returns. Does nothing when done before.
    pub(crate) fn keep_data_set(&mut self, id: DataSetId) -> Result<(), Error> {
        if self.data_set != Some(id) {
            self.own.keep_data_set(id)?;
            self.data_set = Some(id);
        }
        Ok(())
    }

    /// A leader is followed from now on, of this data set if it said so: that is on disk when this returns, and that the directory once
    /// led, and how far it has come, is forgotten. To be done before that leader's first change.
    ///
    /// Where another data set is given up the directory must be marked as incomplete by then: half of the one under the name of
    /// the other would pass for a copy.
    pub(crate) fn follow(&mut self, theirs: Option<DataSetId>) -> Result<(), Error> {
        self.own.forget_stand()?;
        match theirs {
            Some(theirs) => self.keep_data_set(theirs),
            None => Ok(()),
        }
    }

    /// The data set of a directory that is to lead: what it is, or else is to be. Nothing is kept of it yet.
    pub(crate) fn data_set_to_be(&self) -> Result<DataSetId, Error> {
        match self.data_set.or_else(|| self.own.proposed_data_set()) {
            Some(id) => Ok(id),
            None => DataSetId::random().map_err(|error| Error::io("make a data set id for", self.path(), error)),
        }
    }

    /// It leads, and is this data set: that is on disk when this returns.
    pub(crate) fn leads_as(&self, id: DataSetId) -> Result<(), Error> {
        if self.data_set != Some(id) {
            self.own.keep_data_set(id)?;
            log::info!("{} leads for the first time: it is data set {id} from now on", self.path().display());
        }
        Ok(())
    }

    /// Its data set, or the one that it is to be if a cluster takes it: the same each time. That is on disk when this returns.
    pub(crate) fn data_set_to_propose(&self) -> Result<DataSetId, Error> {
        let id = self.data_set_to_be()?;
        if self.data_set.is_none() && self.own.proposed_data_set() != Some(id) {
            self.own.propose_data_set(id)?;
        }
        Ok(id)
    }

    /// What the directory knows about itself.
    pub(crate) fn own(&self) -> &OwnFolder {
        &self.own
    }

    /// Its path, without links.
    pub(crate) fn path(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn root(&self) -> &Arc<Beneath> {
        &self.root
    }

    /// Why nothing may be done with the directory any more, if it is lost.
    pub(crate) fn lost(&self) -> Option<Error> {
        self.root.is_lost().map(|how| Error::DirectoryLost { dir: self.path().to_owned(), how })
    }

    pub(crate) fn id(&self) -> NodeId {
        self.id
    }
}

/// Makes a data directory (0700), and those above it, if absent; that they are there is on disk when this returns.
///
/// Also for those that were there: whoever made them may have been killed before that was on disk. A folder above them that cannot
/// be opened was made by somebody else.
pub(crate) fn make(path: &Path) -> Result<(), Error> {
    let failed = |error| Error::io("make the folder", path, error);
    let absent = path.ancestors().take_while(|above| matches!(fs::exists(above), Ok(false))).count();
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    for (at, made) in path.ancestors().take_while(|made| !made.as_os_str().is_empty()).enumerate() {
        let above = made.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(above).and_then(|above| above.sync_all());
        if at < absent {
            synced.map_err(failed)?;
        }
    }
    Ok(())
}

/// Options that make files with mode 0600.
pub(crate) fn private(options: &mut fs::OpenOptions) -> &mut fs::OpenOptions {
    OpenOptionsExt::mode(options, 0o600)
}

/// What `.clustering_id` says, whatever was put there: what is no text, or too long, is no id.
fn read_id(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(ID_FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Whether there is any file, or link, that could be replicated. What cannot be looked at may be one.
pub(crate) fn holds_files(root: &Beneath) -> Result<bool, Error> {
    struct Any(bool);
    impl Visitor for Any {
        fn goes_on(&mut self) -> bool {
            !self.0
        }

        fn file(&mut self, _: FoundFile) {
            self.0 = true;
        }

        fn link(&mut self, _: RelPath, _: &[u8]) {
            self.0 = true;
        }

        fn unseen(&mut self, _: &RelPath, _: Error) -> Result<(), Error> {
            self.0 = true;
            Ok(())
        }
    }
    let mut any = Any(false);
    walk(root, None, &mut any)?;
    Ok(any.0)
}

/// How many entries of a folder a [`walk`] shows before it asks whether to go on.
pub(crate) const ASK_EVERY: usize = 64;

/// What a [`walk`] meets.
pub(crate) trait Visitor {
    /// Asked now and then, and before each folder; `false`: it has seen enough.
    fn goes_on(&mut self) -> bool {
        true
    }

    /// A folder, before what is in it; `false`: it is not entered.
    fn folder(&mut self, path: &RelPath, attributes: Attributes) -> bool {
        let _ = (path, attributes);
        true
    }

    /// A folder that was opened, before it is listed; `None` is the top of all.
    fn lists(&mut self, path: Option<&RelPath>, folder: BorrowedFd<'_>) {
        let _ = (path, folder);
    }

    /// A regular file.
    fn file(&mut self, file: FoundFile);

    /// A symbolic link, and where it leads.
    fn link(&mut self, path: RelPath, target: &[u8]) {
        let _ = (path, target);
    }

    /// A socket, a FIFO, a device.
    fn other(&mut self, path: &RelPath) {
        log::warn!("not replicated, neither file, folder nor link: {path}");
    }

    /// A file or folder of which nobody knows what it is, or what is in it.
    ///
    /// # Errors
    ///
    /// They end the walk.
    fn unseen(&mut self, path: &RelPath, error: Error) -> Result<(), Error> {
        let _ = path;
        Err(error)
    }
}

/// Shows `visitor` everything below `top` (`None` is the directory itself), reserved names left out, and the `lost+found` of a file
/// system. No link is followed.
///
/// Files of a folder come in order of their names, then what is in its folders: there is little left to sort.
///
/// Names that are not UTF-8 are passed over with a warning. What vanishes meanwhile is passed over.
pub(crate) fn walk(root: &Beneath, top: Option<&RelPath>, visitor: &mut impl Visitor) -> Result<(), Error> {
    let mut folders = vec![top.cloned()];
    while visitor.goes_on()
        && let Some(at) = folders.pop()
    {
        let listed = list(root, at.as_ref(), visitor, &mut folders);
        match (listed, at) {
            (Ok(()), _) => {}
            (Err(error @ Error::Io { .. }), Some(at)) if top != Some(&at) => visitor.unseen(&at, error)?,
            (Err(error), _) => return Err(error),
        }
    }
    Ok(())
}

fn list(
    root: &Beneath,
    at: Option<&RelPath>,
    visitor: &mut impl Visitor,
    folders: &mut Vec<Option<RelPath>>,
) -> Result<(), Error> {
    let full = at.map_or_else(|| root.path().to_owned(), |at| at.below(root.path()));
    let failed = |error: std::io::Error| Error::io("list", &full, error);
    let Some(folder) = root.folder(at).map_err(failed)? else { return Ok(()) };
    visitor.lists(at, folder.as_fd());
    let listed = folder.try_clone().map_err(failed)?;
    // All in one piece of memory.
    let (mut text, mut names) = (Vec::new(), Vec::new());
    for entry in beneath::entries(listed).map_err(failed)? {
        let start = text.len();
        text.extend_from_slice(entry.map_err(failed)?.file_name().to_bytes_with_nul());
        names.push(start..text.len());
    }
    names.sort_unstable_by(|a, b| text[a.clone()].cmp(&text[b.clone()]));
    let mut path = at.map_or_else(String::new, |at| format!("{at}/"));
    let (name_at, folders_at) = (path.len(), folders.len());
    for (number, name) in names.iter().enumerate() {
        if (number + 1) % ASK_EVERY == 0 && !visitor.goes_on() {
            return Ok(());
        }
        let name = CStr::from_bytes_with_nul(&text[name.clone()]).expect("as it was listed");
        path.truncate(name_at);
        let path = name.to_str().ok().and_then(|name| {
            path.push_str(name);
            RelPath::new(&path).ok()
        });
        let shown = || full.join(name.to_string_lossy().as_ref());
        let Some(path) = path else {
            log::warn!("not replicated, its name cannot be sent: {}", shown().display());
            continue;
        };
        if path.is_reserved() {
            continue;
        }
        match beneath::look_in(&folder, name) {
            Ok(Entry::File(looks, attributes)) => {
                let Stamps { dev, ino, size, .. } = looks.stamps;
                visitor.file(FoundFile { path, len: size, id: (dev, ino), looks, attributes });
            }
            Ok(Entry::Folder(attributes)) => {
                let is_content = !root.is_lost_and_found(&path).map_err(failed)?;
                if is_content && visitor.folder(&path, attributes) {
                    folders.push(Some(path));
                }
            }
            Ok(Entry::Link(target)) => visitor.link(path, target.as_bytes()),
            Ok(Entry::Other) => visitor.other(&path),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => visitor.unseen(&path, Error::io("stat", shown(), error))?,
        }
    }
    // The last one is next.
    folders[folders_at..].reverse();
    Ok(())
}

#[cfg(test)]
mod tests;
