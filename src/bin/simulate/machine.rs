//! What a node runs on: a disk and an address of its own.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use paceline::RelPath;
use paceline::sys::disk::{self, Disk, DiskSettings, NamesAtPowerCut, Seen};
use paceline::sys::world::{ProcessId, World};

use crate::model::{See, Tree};

/// More than any history writes.
const DISK_BYTES: u64 = 1 << 30;
/// Below the data directory, while a sync is under way.
const INCOMPLETE: &str = ".paceline/incomplete";
/// From when a sync has failed until that is mended.
pub(crate) const SUSPECT: &str = ".paceline/suspect";

pub(crate) struct Machine {
    number: u8,
    machines: u8,
    disk: Disk,
    longest_sync: Duration,
    powered: bool,
}

impl Machine {
    /// One of several that are linked with each other.
    pub(crate) fn new(number: usize, machines: usize, world: &World, file_clock: Duration) -> Self {
        let (slow, names) = world.chance(|rng| (rng.u8(..100), rng.bool()));
        let (number, machines) = (u8::try_from(number).expect("few"), u8::try_from(machines).expect("few"));
        let micros = Duration::from_micros;
        let sync_time = match slow {
            0..60 => micros(20)..micros(400),
            60..90 => micros(500)..micros(8_000),
            _ => micros(5_000)..micros(60_000),
        };
        let longest_sync = sync_time.end;
        let disk = disk::add(DiskSettings {
            clock_tick: file_clock,
            sync_time,
            capacity_bytes: DISK_BYTES,
            names: if names { NamesAtPowerCut::Any } else { NamesAtPowerCut::Prefix },
            ..DiskSettings::default()
        });
        let machine = Self { number, machines, disk, longest_sync, powered: true };
        disk::mount(disk, machine.mount());
        machine
    }

    fn mount(&self) -> PathBuf {
        format!("/node{}", self.number + 1).into()
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.mount().join("data")
    }

    pub(crate) fn address(&self) -> IpAddr {
        address(self.number)
    }

    /// How long a sync of its disk takes at most.
    pub(crate) fn longest_sync(&self) -> Duration {
        self.longest_sync
    }

    fn others(&self) -> impl Iterator<Item = IpAddr> + '_ {
        (0..self.machines).filter(|other| *other != self.number).map(address)
    }

    /// A process that runs on it from now on.
    pub(crate) fn hosts(&mut self, world: &World, process: ProcessId) {
        if !std::mem::replace(&mut self.powered, true) {
            world.network().power_on(self.address());
        }
        world.network().set_host(process, self.address());
    }

    /// Its process has been killed.
    pub(crate) fn power_cut(&mut self, world: &World) {
        world.network().power_cut(self.address());
        self.powered = false;
        disk::stall(self.disk, None);
        disk::power_cut(self.disk);
    }

    pub(crate) fn cut(&self, world: &World, to: bool, from: bool) {
        for other in self.others() {
            world.network().set_link(other, self.address(), |link| link.cut = to);
            world.network().set_link(self.address(), other, |link| link.cut = from);
        }
    }

    pub(crate) fn slow(&self, world: &World, rate: Option<u64>) {
        for other in self.others() {
            world.network().set_links(self.address(), other, |link| link.bandwidth = rate);
        }
    }

    pub(crate) fn reset(&self, world: &World) {
        self.others().for_each(|other| world.network().reset(self.address(), other));
    }

    pub(crate) fn stall(&self, on: bool) {
        disk::stall(self.disk, on.then_some(Duration::MAX));
    }

    pub(crate) fn fill(&self, on: bool) {
        disk::settings(self.disk, |settings| settings.capacity_bytes = if on { 0 } else { DISK_BYTES });
    }

    pub(crate) fn is_incomplete(&self) -> bool {
        disk::content(self.dir().join(INCOMPLETE)).is_some()
    }

    pub(crate) fn is_suspect(&self) -> bool {
        disk::content(self.dir().join(SUSPECT)).is_some()
    }

    /// What is replicated of its directory, as programs see it.
    pub(crate) fn tree(&self) -> Tree {
        tree_of(&self.dir())
    }

    /// The same as it is for certain after a loss of power.
    pub(crate) fn durable_tree(&self) -> Tree {
        let mut tree = Tree::new();
        self.look_at_durable(&mut |name, _, content| drop(tree.insert(name.to_owned(), content.to_vec())));
        tree
    }

    /// The same, shown file by file.
    pub(crate) fn look(&self, see: &mut See<'_>) {
        disk::visit(self.dir(), |path, file| show(path, file, see));
    }

    /// The same as it is for certain after that.
    pub(crate) fn look_at_durable(&self, see: &mut See<'_>) {
        disk::visit_durable(self.disk, |path, file| {
            if let Ok(path) = path.strip_prefix("data") {
                show(path, file, see);
            }
        });
    }
}

fn address(number: u8) -> IpAddr {
    [10, 0, 0, number + 1].into()
}

/// What is replicated of a directory, as programs see it.
pub(crate) fn tree_of(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    disk::visit(dir, |path, file| {
        show(path, file, &mut |name, _, content| drop(tree.insert(name.to_owned(), content.to_vec())));
    });
    tree
}

fn show(path: &Path, file: &Seen<'_>, see: &mut See<'_>) {
    let Some(name) = path.to_str() else { return };
    // The host's own, announced by nobody.
    let is_unannounced = name.ends_with(".new");
    if !is_unannounced && RelPath::new(name).is_ok_and(|path| !path.is_reserved()) {
        see(name, file.version(), &file.bytes());
    }
}
