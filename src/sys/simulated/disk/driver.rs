//! What the driver of a history does to disks, and sees of them. None of it is a scheduling point.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::world::{self, ProcessId};
use super::content::{Content, survivor};
use super::state::{Mount, Place, State, Stop};
use super::volume::{DiskSettings, Id, Kind, NamesAtPowerCut, Node, Volume, with_dependencies};
use super::walk::How;
use super::watch::WatchLimits;

/// A disk of this world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Disk(usize);

/// What was on a disk at some moment.
#[derive(Clone, Debug)]
pub struct Snapshot(BTreeMap<Id, Node>);

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Folder,
    File(Vec<u8>),
    /// A symbolic link, to that.
    Link(PathBuf),
    Fifo,
}

fn with<R>(use_them: impl FnOnce(&mut State) -> R) -> R {
    world::current().with_disks(use_them)
}

/// A new and empty disk that is mounted nowhere. The first, [`Disk`] number 0, is there from the beginning, at `/`.
pub fn add(settings: DiskSettings) -> Disk {
    let key = world::current().new_key();
    with(|state| Disk(state.add_volume(settings, key)))
}

/// Changes how a disk behaves from now on.
pub fn settings(disk: Disk, change: impl FnOnce(&mut DiskSettings)) {
    with(|state| change(&mut state.volumes[disk.0].settings));
}

/// Mounts a disk at a folder, which is made if need be (on the disk that is there; durably).
///
/// # Panics
///
/// The path is not absolute, or there is something else.
pub fn mount(disk: Disk, at: impl AsRef<Path>) {
    let path = at.as_ref().as_os_str().as_bytes().to_vec();
    world::current().trace(|| format!("mounts {disk:?} at {}", at.as_ref().display()));
    with(|state| {
        let nobody = ProcessId(usize::MAX);
        let mut made = Vec::new();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            made.extend([b"/", name].concat());
            match state.mkdirat(nobody, super::AT_FDCWD, &made, 0o755) {
                Ok(()) | Err(Stop::Errno(::rustix::io::Errno::EXIST)) => {}
                Err(error) => panic!("no folder to mount at: {error:?}"),
            }
        }
        let top = state.top();
        let Ok(place) = state.find(nobody, top, &path, How::FOLLOW) else { panic!("nothing to mount at") };
        let volume = &mut state.volumes[place.volume];
        volume.sync_names(None, volume.seq);
        let id = state.next_mount;
        state.next_mount += 1;
        let path = state.path_of(place, None);
        let mount = Mount { volume: disk.0, parent: place.mount, at: Some(place), path };
        state.mounts.insert(id, mount);
        state.mount_changes += 1;
        world::wake(state.mounts_key);
    });
}

/// Ends the mount at a path (`umount -l`): what is open there stays so. `false`: nothing is mounted there.
pub fn unmount(at: impl AsRef<Path>) -> bool {
    world::current().trace(|| format!("unmounts {}", at.as_ref().display()));
    let path = at.as_ref().as_os_str().as_bytes();
    with(|state| {
        let Some(id) = state.mounts.iter().rev().find(|(_, mount)| mount.path == path).map(|(id, _)| *id) else {
            return false;
        };
        let Some(gone) = state.mounts.remove(&id) else { return false };
        state.mount_changes += 1;
        world::wake(state.mounts_key);
        let used = |state: &State| {
            state.mounts.values().any(|mount| mount.volume == gone.volume)
                || state.volumes[gone.volume].live.values().any(|live| live.opens > 0)
        };
        if !used(state) {
            state.watches.unmounted(gone.volume);
        }
        true
    })
}

/// Takes the power of the machine that a disk is in: of what was not synced, any part is left that a real file system could leave.
///
/// Kill the processes of the machine first: what is open afterwards answers `ESTALE` where the file is no more.
pub fn power_cut(disk: Disk) {
    world::current().trace(|| format!("takes the power of {disk:?}"));
    let mut rng = world::current().chance(fastrand::Rng::fork);
    with(|state| {
        let volume = &mut state.volumes[disk.0];
        volume.power_cuts += 1;
        cut_files(volume, &mut rng);
        cut_names(volume, &mut rng);
        let durable = std::mem::take(&mut volume.durable);
        volume.adopt(durable);
    });
}

fn cut_files(volume: &mut Volume, rng: &mut fastrand::Rng) {
    for (id, live) in &volume.live {
        let Some(node) = volume.durable.get_mut(id) else { continue };
        if node.mode != live.node.mode && rng.bool() {
            node.mode = live.node.mode;
        }
        let times = (node.modified, node.changed);
        let Some(durable) = node.content_mut().filter(|_| !live.pending.is_empty()) else { continue };
        let (content, times) = survivor(rng, durable, times, &live.pending);
        *durable = content;
        (node.modified, node.changed) = times;
    }
}

fn cut_names(volume: &mut Volume, rng: &mut fastrand::Rng) {
    let names = std::mem::take(&mut volume.names);
    let style = match volume.settings.names {
        NamesAtPowerCut::Prefix => rng.u8(..3),
        NamesAtPowerCut::Any => rng.u8(..6),
    };
    let chosen: Vec<bool> = match style {
        0 if rng.bool() => vec![false; names.len()],
        1 if rng.bool() => vec![true; names.len()],
        0..=2 => {
            let first = rng.usize(..=names.len());
            (0..names.len()).map(|at| at < first).collect()
        }
        _ => {
            let likely = [0.1, 0.5, 0.9][rng.usize(..3)];
            names.iter().map(|_| rng.f64() < likely).collect()
        }
    };
    let chosen = with_dependencies(&names, chosen);
    for (change, _) in names.iter().zip(chosen).filter(|(_, chosen)| *chosen) {
        volume.apply(change);
    }
}

/// All that is on a disk as programs see it now, to be put back with [`restore`].
pub fn snapshot(disk: Disk) -> Snapshot {
    with(|state| {
        let live = &state.volumes[disk.0].live;
        Snapshot(live.iter().map(|(id, live)| (*id, live.node.clone())).collect())
    })
}

/// All that is on a disk for certain: what a power cut leaves that loses the most.
pub fn durable_snapshot(disk: Disk) -> Snapshot {
    with(|state| Snapshot(state.volumes[disk.0].durable.clone()))
}

/// Puts back what was on a disk, durably.
pub fn restore(disk: Disk, snapshot: Snapshot) {
    world::current().trace(|| format!("restores {disk:?}"));
    with(|state| state.volumes[disk.0].adopt(snapshot.0));
}

/// Each call that touches a disk waits until then, on the world's clock. `Some(Duration::MAX)`: until told otherwise; `None`: none
/// waits any more.
pub fn stall(disk: Disk, until: Option<Duration>) {
    world::current().trace(|| format!("{disk:?} stalls until {until:?}"));
    with(|state| {
        let volume = &mut state.volumes[disk.0];
        volume.stalled = until.map(|until| Some(until).filter(|until| *until < Duration::MAX));
        world::wake(volume.key);
    });
}

/// Brings all of a disk to the medium, as if the system had done so by itself.
pub fn sync_all(disk: Disk) {
    with(|state| {
        let volume = &mut state.volumes[disk.0];
        volume.sync_all(volume.seq);
    });
}

/// How many descriptors a process may have (`RLIMIT_NOFILE`); 1024 until it is set.
pub fn set_descriptors_max(process: ProcessId, most: u64) {
    with(|state| state.limits.insert(process, most));
}

/// Whether a process is root, as all are until it is set: the modes of files mean nothing to it.
pub fn set_privileged(process: ProcessId, privileged: bool) {
    with(|state| match privileged {
        true => drop(state.unprivileged.remove(&process)),
        false => drop(state.unprivileged.insert(process)),
    });
}

/// Sets how many events wait at most for a reader, and how many watches there are.
pub fn set_watch_limits(limits: WatchLimits) {
    with(|state| state.watches.limits = limits);
}

/// All below a folder as programs see it, across mounts; empty if there is no such folder. Paths are relative to it.
pub fn tree(folder: impl AsRef<Path>) -> BTreeMap<PathBuf, Entry> {
    with(|state| {
        let mut found = BTreeMap::new();
        let top = state.top();
        let path = folder.as_ref().as_os_str().as_bytes();
        if let Ok(place) = unstalled(state, |state| state.find(ProcessId(usize::MAX), top, path, How::FOLLOW)) {
            walk(state, place, Path::new(""), &mut |path, node| drop(found.insert(path.to_owned(), entry(node))));
        }
        found
    })
}

/// The content of a file as programs see it.
pub fn content(file: impl AsRef<Path>) -> Option<Vec<u8>> {
    with(|state| {
        let top = state.top();
        let path = file.as_ref().as_os_str().as_bytes();
        let place = unstalled(state, |state| state.find(ProcessId(usize::MAX), top, path, How::FOLLOW)).ok()?;
        let live = state.volumes[place.volume].live.get(&place.id)?;
        live.node.content().map(Content::to_vec)
    })
}

/// All that is on a disk for certain: what a power cut leaves that loses the most.
pub fn durable_tree(disk: Disk) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    with(|state| {
        walk_durable(&state.volumes[disk.0], &mut |path, node| drop(found.insert(path.to_owned(), entry(node))))
    });
    found
}

/// A regular file as it is looked at.
#[derive(Debug)]
pub struct Seen<'a>(&'a Content);

impl Seen<'_> {
    /// If it is the same as another, so are the bytes.
    pub fn version(&self) -> u64 {
        self.0.version()
    }

    pub fn bytes(&self) -> Cow<'_, [u8]> {
        self.0.bytes()
    }
}

/// Shows the regular files below a folder as programs see them; as [`tree`], without a copy of each. Nothing of the disks may be called
/// meanwhile.
pub fn visit(folder: impl AsRef<Path>, mut see: impl FnMut(&Path, &Seen<'_>)) {
    with(|state| {
        let top = state.top();
        let path = folder.as_ref().as_os_str().as_bytes();
        if let Ok(place) = unstalled(state, |state| state.find(ProcessId(usize::MAX), top, path, How::FOLLOW)) {
            walk(state, place, Path::new(""), &mut |path, node| show(path, node, &mut see));
        }
    });
}

/// The same of what is on a disk for certain; as [`durable_tree`].
pub fn visit_durable(disk: Disk, mut see: impl FnMut(&Path, &Seen<'_>)) {
    with(|state| walk_durable(&state.volumes[disk.0], &mut |path, node| show(path, node, &mut see)));
}

fn show(path: &Path, node: &Node, see: &mut impl FnMut(&Path, &Seen<'_>)) {
    if let Some(content) = node.content() {
        see(path, &Seen(content));
    }
}

fn walk_durable(volume: &Volume, see: &mut dyn FnMut(&Path, &Node)) {
    let mut folders = vec![(volume.root, PathBuf::new())];
    while let Some((folder, path)) = folders.pop() {
        for (name, id) in volume.durable.get(&folder).and_then(Node::entries).into_iter().flatten() {
            let Some(node) = volume.durable.get(id) else { continue };
            let path = path.join(std::ffi::OsStr::from_bytes(name));
            see(&path, node);
            if node.is_folder() {
                folders.push((*id, path));
            }
        }
    }
}

fn walk(state: &State, folder: Place, path: &Path, see: &mut dyn FnMut(&Path, &Node)) {
    let live = &state.volumes[folder.volume].live;
    for (name, id) in live.get(&folder.id).and_then(|live| live.node.entries()).into_iter().flatten() {
        let path = path.join(std::ffi::OsStr::from_bytes(name));
        let place = state.cross(Place { id: *id, ..folder });
        let Some(live) = state.volumes[place.volume].live.get(&place.id) else { continue };
        see(&path, &live.node);
        if live.node.is_folder() {
            walk(state, place, &path, see);
        }
    }
}

fn entry(node: &Node) -> Entry {
    match &node.kind {
        Kind::Folder(_) => Entry::Folder,
        Kind::File(content) => Entry::File(content.to_vec()),
        Kind::Link(to) => Entry::Link(PathBuf::from(std::ffi::OsStr::from_bytes(to))),
        Kind::Fifo => Entry::Fifo,
    }
}

/// What the driver looks at does not stall.
fn unstalled<T>(state: &mut State, look: impl FnOnce(&mut State) -> T) -> T {
    let stalled: Vec<_> = state.volumes.iter_mut().map(|volume| volume.stalled.take()).collect();
    let seen = look(state);
    for (volume, stalled) in state.volumes.iter_mut().zip(stalled) {
        volume.stalled = stalled;
    }
    seen
}

impl State {
    /// How likely the call that was made last takes its time, and how much.
    pub(super) fn slowness(&self) -> Option<(f64, Duration, Duration)> {
        let (likely, time) = &self.volumes[self.touched?].settings.slow_call;
        (*likely > 0.0).then_some((*likely, time.start, time.end))
    }
}
