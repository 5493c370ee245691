//! System calls on what is open: reading, writing, listing, looking, syncing.

use std::time::Duration;

use ::rustix::event::PollFlags;
use ::rustix::fs::inotify::ReadFlags;
use ::rustix::fs::{FileType, OFlags, SeekFrom};
use ::rustix::io::Errno;

use super::super::world::{self, ProcessId};
use super::content::Change;
use super::open::{Listing, Object};
use super::state::{Place, State, Stop};
use super::volume::{Kind, Live};

/// What `stat` says of an inode.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Looks {
    pub(in super::super) dev: (u32, u32),
    pub(in super::super) number: u64,
    pub(in super::super) mount: u64,
    /// With the kind of file.
    pub(in super::super) mode: u32,
    /// Ids of user and group.
    pub(in super::super) owner: (u32, u32),
    pub(in super::super) links: u32,
    pub(in super::super) size: u64,
    pub(in super::super) allocated: u64,
    pub(in super::super) modified: Duration,
    pub(in super::super) changed: Duration,
    pub(in super::super) born: Duration,
}

/// What a sync has to bring to the medium.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Sync {
    place: Place,
    kind: SyncKind,
    upto: u64,
    /// How long that takes, at least and less than.
    pub(in super::super) time: (Duration, Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum SyncKind {
    /// `fdatasync`
    Data,
    /// `fsync`
    All,
    /// `syncfs`
    Disk,
}

const FOLDER_BYTES: u64 = 4096;
const READ_AT_ONCE_MAX: usize = 0x7fff_f000;

impl State {
    pub(in super::super) fn fstat(&mut self, who: ProcessId, number: i32) -> Result<Looks, Stop> {
        match self.file(who, number)?.object {
            Object::Inode(_) | Object::Path(_) => {
                let place = self.place_of(who, number)?;
                self.looks(place)
            }
            Object::Mounts { .. } => Ok(self.looks_of_other(FileType::RegularFile, 1)),
            _ => Ok(self.looks_of_other(FileType::Unknown, 1)),
        }
    }

    /// Of the machine that a descriptor's disk is in: which disk, and how often it lost power.
    pub(in super::super) fn boots(&mut self, who: ProcessId, number: i32) -> Result<u128, Stop> {
        let volume = self.place_of(who, number)?.volume;
        Ok((volume as u128) << 64 | u128::from(self.volumes[volume].power_cuts))
    }

    fn looks_of_other(&self, kind: FileType, number: u64) -> Looks {
        let (size, allocated, at) = (0, 0, self.now);
        let mode = kind.as_raw_mode() | 0o444;
        let times = (at, at, at);
        let (modified, changed, born) = times;
        let owner = (0, 0);
        Looks { dev: (0, 9), number, mount: 0, mode, owner, links: 1, size, allocated, modified, changed, born }
    }

    pub(in super::super) fn looks(&mut self, place: Place) -> Result<Looks, Stop> {
        self.touched = Some(place.volume);
        let live = self.live(place)?;
        let node = &live.node;
        let (size, allocated) = match &node.kind {
            Kind::Folder(_) => (FOLDER_BYTES, FOLDER_BYTES),
            Kind::File(content) => (content.len(), content.allocated()),
            Kind::Link(to) => (to.len() as u64, 0),
            Kind::Fifo => (0, 0),
        };
        Ok(Looks {
            dev: self.volumes[place.volume].dev,
            number: node.number,
            mount: place.mount,
            mode: node.mode | node.kind.file_type().as_raw_mode(),
            owner: node.owner,
            links: self.links(place, live),
            size,
            allocated,
            modified: node.modified,
            changed: node.changed,
            born: node.born,
        })
    }

    /// A folder has its name, its `.`, and the `..` of each folder in it.
    fn links(&self, place: Place, live: &Live) -> u32 {
        let Some(entries) = live.node.entries().filter(|_| live.links > 0) else { return live.links };
        let all = &self.volumes[place.volume].live;
        let folders = entries.values().filter(|id| all.get(id).is_some_and(|live| live.node.is_folder())).count();
        2 + u32::try_from(folders).unwrap_or(u32::MAX - 2)
    }

    pub(in super::super) fn statat(
        &mut self,
        who: ProcessId,
        at: i32,
        path: &[u8],
        (follow, empty_path): (bool, bool),
    ) -> Result<Looks, Stop> {
        if path.is_empty() && empty_path && at != super::open::AT_FDCWD {
            return self.fstat(who, at);
        }
        if super::names::is_proc(path) {
            return Err(Errno::NOENT.into());
        }
        let start = self.start_of(who, at, path)?;
        let how = super::walk::How { follow, ..super::walk::How::FOLLOW };
        let place = self.find(who, start, path, how)?;
        self.looks(place)
    }

    /// Reads at an offset, or where the file stands.
    pub(in super::super) fn read(
        &mut self,
        who: ProcessId,
        number: i32,
        at: Option<u64>,
        buffer: &mut [u8],
    ) -> Result<usize, Stop> {
        let file = self.file(who, number)?;
        if !file.reads() {
            return Err(Errno::BADF.into());
        }
        let offset = at.unwrap_or(file.offset);
        if let Object::Event { count, .. } = &mut file.object {
            if *count == 0 {
                return Err(Errno::AGAIN.into());
            }
            let told = std::mem::take(count).to_ne_bytes();
            buffer.get_mut(..8).ok_or(Errno::INVAL)?.copy_from_slice(&told);
            return Ok(8);
        }
        let table = if offset == 0 { Some(self.mount_table()) } else { None };
        let file = self.file(who, number)?;
        let length = match &mut file.object {
            Object::Mounts { text, .. } => {
                *text = table.unwrap_or_else(|| std::mem::take(text));
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
                let length = buffer.len().min(text.len() - from);
                buffer[..length].copy_from_slice(&text[from..from + length]);
                length
            }
            _ => {
                let place = self.inode_of(who, number)?;
                let most = buffer.len().min(READ_AT_ONCE_MAX);
                match &self.live(place)?.node.kind {
                    Kind::File(content) => content.read(offset, &mut buffer[..most]),
                    Kind::Folder(_) => return Err(Errno::ISDIR.into()),
                    _ => 0,
                }
            }
        };
        if at.is_none() {
            self.file(who, number)?.offset = offset + length as u64;
        }
        Ok(length)
    }

    /// Writes at an offset, or where the file stands; `O_APPEND` goes before both.
    pub(in super::super) fn write(
        &mut self,
        who: ProcessId,
        number: i32,
        at: Option<u64>,
        bytes: &[u8],
    ) -> Result<usize, Stop> {
        let file = self.file(who, number)?;
        if let Object::Event { count, key } = &mut file.object {
            let more: [u8; 8] = bytes.get(..8).and_then(|bytes| bytes.try_into().ok()).ok_or(Errno::INVAL)?;
            *count = count.saturating_add(u64::from_ne_bytes(more));
            world::wake(*key);
            return Ok(8);
        }
        if !file.writes() || matches!(file.object, Object::Path(_)) {
            return Err(Errno::BADF.into());
        }
        let (append, stands) = (file.flags.contains(OFlags::APPEND), file.offset);
        let place = self.inode_of(who, number)?;
        let now = self.now;
        let volume = self.volume(place)?;
        let available = volume.available();
        let live = volume.get_mut(place.id)?;
        let content = live.node.content_mut().ok_or(Errno::INVAL)?;
        let offset = if append { content.len() } else { at.unwrap_or(stands) };
        if bytes.is_empty() {
            return Ok(0);
        }
        if i64::try_from(offset.saturating_add(bytes.len() as u64)).is_err() {
            return Err(Errno::FBIG.into());
        }
        let fits = content.fits(offset, bytes.len() as u64, available);
        let length = usize::try_from(fits).unwrap_or(usize::MAX).min(bytes.len());
        if length == 0 {
            return Err(Errno::NOSPC.into());
        }
        content.write(offset, &bytes[..length]);
        volume.push(place.id, Change::Write { at: offset, bytes: bytes[..length].to_vec() }, now);
        if at.is_none() {
            self.file(who, number)?.offset = offset + length as u64;
        }
        self.tell_modified(who, number, place);
        Ok(length)
    }

    pub(in super::super) fn fchmod(&mut self, who: ProcessId, number: i32, mode: u32) -> Result<(), Stop> {
        self.set_attributes(who, number, |live| live.node.mode = mode & 0o7777)
    }

    pub(in super::super) fn futimens(&mut self, who: ProcessId, number: i32, at: Duration) -> Result<(), Stop> {
        self.set_attributes(who, number, |live| live.node.modified = at)
    }

    fn set_attributes(&mut self, who: ProcessId, number: i32, set: impl FnOnce(&mut Live)) -> Result<(), Stop> {
        let place = self.inode_of(who, number)?;
        let now = self.now;
        if self.volumes[place.volume].settings.read_only {
            return Err(Errno::ROFS.into());
        }
        let volume = self.volume(place)?;
        set(volume.get_mut(place.id)?);
        volume.push_attributes(place.id, now);
        self.watches.tell(place.volume, place.id, ReadFlags::ATTRIB, 0, None);
        let name = self.file(who, number).ok().and_then(|file| file.name.clone());
        if let Some((volume, folder, name)) = name {
            self.watches.tell(volume, folder, ReadFlags::ATTRIB, 0, Some(&name));
        }
        Ok(())
    }

    pub(in super::super) fn ftruncate(&mut self, who: ProcessId, number: i32, len: u64) -> Result<(), Stop> {
        let file = self.file(who, number)?;
        if !file.writes() || i64::try_from(len).is_err() {
            return Err(Errno::INVAL.into());
        }
        let place = self.inode_of(who, number)?;
        self.set_len_of(who, number, place, len)
    }

    pub(super) fn set_len_of(&mut self, who: ProcessId, number: i32, place: Place, len: u64) -> Result<(), Stop> {
        let now = self.now;
        let volume = self.volume(place)?;
        volume.get_mut(place.id)?.node.content_mut().ok_or(Errno::INVAL)?.set_len(len);
        volume.push(place.id, Change::Length, now);
        self.tell_modified(who, number, place);
        Ok(())
    }

    pub(in super::super) fn fallocate(
        &mut self,
        who: ProcessId,
        number: i32,
        (at, length): (u64, u64),
        keep_size: bool,
    ) -> Result<(), Stop> {
        let file = self.file(who, number)?;
        if !file.writes() {
            return Err(Errno::BADF.into());
        }
        let end = at.checked_add(length).filter(|_| length > 0).ok_or(Errno::INVAL)?;
        let place = self.inode_of(who, number)?;
        let now = self.now;
        let volume = self.volume(place)?;
        let available = volume.available();
        let content = volume.get_mut(place.id)?.node.content_mut().ok_or(Errno::NODEV)?;
        if content.fits(0, end, available) < end {
            return Err(Errno::NOSPC.into());
        }
        content.reserve(end);
        if !keep_size && end > content.len() {
            content.set_len(end);
            volume.push(place.id, Change::Length, now);
            self.tell_modified(who, number, place);
        }
        Ok(())
    }

    /// Makes a hole. A power cut may leave some of it as it was, as of a write.
    pub(in super::super) fn punch(&mut self, who: ProcessId, number: i32, at: u64, length: u64) -> Result<(), Stop> {
        let file = self.file(who, number)?;
        if !file.writes() {
            return Err(Errno::BADF.into());
        }
        at.checked_add(length).filter(|_| length > 0).ok_or(Errno::INVAL)?;
        let place = self.inode_of(who, number)?;
        let now = self.now;
        let volume = self.volume(place)?;
        let content = volume.get_mut(place.id)?.node.content_mut().ok_or(Errno::NODEV)?;
        let bytes = vec![0; usize::try_from(content.written(at, length)).expect("what is in memory")];
        content.write(at, &bytes);
        volume.push(place.id, Change::Write { at, bytes }, now);
        self.tell_modified(who, number, place);
        Ok(())
    }

    fn tell_modified(&mut self, who: ProcessId, number: i32, place: Place) {
        self.watches.tell(place.volume, place.id, ReadFlags::MODIFY, 0, None);
        let name = self.file(who, number).ok().and_then(|file| file.name.clone());
        if let Some((volume, folder, name)) = name {
            self.watches.tell(volume, folder, ReadFlags::MODIFY, 0, Some(&name));
        }
    }

    pub(in super::super) fn seek(&mut self, who: ProcessId, number: i32, to: SeekFrom) -> Result<u64, Stop> {
        let stands = self.file(who, number)?.offset;
        let is_of_disk = !matches!(self.file(who, number)?.object, Object::Mounts { .. });
        let place = if is_of_disk { Some(self.inode_of(who, number)?) } else { None };
        let len = place.map_or(Ok(0), |place| self.looks(place).map(|looks| looks.size))?;
        let content = match place {
            Some(place) => match &self.live(place)?.node.kind {
                Kind::File(content) => Some(content),
                _ => None,
            },
            None => None,
        };
        let offset = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => stands.checked_add_signed(by),
            SeekFrom::End(by) => len.checked_add_signed(by),
            SeekFrom::Data(at) | SeekFrom::Hole(at) if at >= len => return Err(Errno::NXIO.into()),
            SeekFrom::Data(at) => Some(content.map_or(Some(at), |content| content.data_from(at)).ok_or(Errno::NXIO)?),
            SeekFrom::Hole(at) => Some(content.map_or(len, |content| content.hole_from(at))),
        };
        let offset = offset.filter(|offset| i64::try_from(*offset).is_ok()).ok_or(Errno::INVAL)?;
        self.file(who, number)?.offset = offset;
        Ok(offset)
    }

    /// Takes the lock of a file, unless another has it.
    pub(in super::super) fn flock(&mut self, who: ProcessId, number: i32, locks: bool) -> Result<(), Stop> {
        let place = self.inode_of(who, number)?;
        let (open, of) = (self.open_id(who, number)?, (place.volume, place.id));
        match self.locks.get(&of) {
            Some(holder) if *holder != open && locks => return Err(Errno::WOULDBLOCK.into()),
            Some(holder) if *holder == open && !locks => drop(self.locks.remove(&of)),
            None if locks => drop(self.locks.insert(of, open)),
            _ => {}
        }
        Ok(())
    }

    /// Some names of a folder that were not told before; none: that was all.
    ///
    /// What is made or removed meanwhile is told, or not.
    pub(in super::super) fn list(
        &mut self,
        who: ProcessId,
        number: i32,
        rng: &mut fastrand::Rng,
    ) -> Result<Vec<(Vec<u8>, FileType, u64)>, Stop> {
        let place = self.inode_of(who, number)?;
        let live = self.live(place)?;
        let entries = live.node.entries().ok_or(Errno::NOTDIR)?.clone();
        if live.links == 0 {
            return Err(Errno::NOENT.into());
        }
        let above = self.parent(place);
        let file = self.file(who, number)?;
        let first = file.listing.is_none();
        let listing = file.listing.get_or_insert_with(Listing::default);
        for name in entries.keys() {
            if listing.known.insert(name.clone()) && (first || rng.bool()) {
                listing.left.push(name.clone());
            }
        }
        if first {
            listing.left.extend([b".".to_vec(), b"..".to_vec()]);
            rng.shuffle(&mut listing.left);
        }
        let count = if rng.u8(..4) == 0 { rng.usize(1..=4) } else { usize::MAX }.min(listing.left.len());
        let names: Vec<_> = listing.left.drain(..count).collect();
        let mut told = Vec::new();
        for name in names {
            let id = match &name[..] {
                b"." => place.id,
                b".." => above.id,
                _ => match entries.get(&name) {
                    Some(id) => *id,
                    None if rng.bool() => continue,
                    None => 0,
                },
            };
            let live = self.volumes[place.volume].live.get(&id);
            let (kind, inode) =
                live.map_or((FileType::RegularFile, 1), |live| (live.node.kind.file_type(), live.node.number));
            told.push((name, kind, inode));
        }
        if told.is_empty() && !self.file(who, number)?.listing.as_ref().is_none_or(|listing| listing.left.is_empty()) {
            return self.list(who, number, rng);
        }
        Ok(told)
    }

    /// A sync begins: what was done until now is what it brings to the medium.
    pub(in super::super) fn begin_sync(&mut self, who: ProcessId, number: i32, kind: SyncKind) -> Result<Sync, Stop> {
        let place = match kind {
            SyncKind::Disk => self.place_of(who, number)?,
            _ => self.inode_of(who, number)?,
        };
        if matches!(self.file(who, number)?.object, Object::Path(_)) {
            return Err(Errno::BADF.into());
        }
        let volume = self.volume(place)?;
        let time = (volume.settings.sync_time.start, volume.settings.sync_time.end);
        Ok(Sync { place, kind, upto: volume.seq, time })
    }

    pub(in super::super) fn end_sync(&mut self, who: ProcessId, number: i32, sync: Sync) -> Result<(), Stop> {
        let volume = self.volume(sync.place)?;
        let is_folder = volume.get(sync.place.id)?.node.is_folder();
        match sync.kind {
            SyncKind::Disk => volume.sync_all(sync.upto),
            kind if is_folder => {
                volume.sync_names(Some(sync.place.id), sync.upto);
                volume.sync_file(sync.place.id, sync.upto, kind == SyncKind::All);
            }
            kind => volume.sync_file(sync.place.id, sync.upto, kind == SyncKind::All),
        }
        self.tell_of_failures(who, number, sync)
    }

    /// A sync failed: what is dirty counts as clean from then on.
    pub(in super::super) fn fail_sync(&mut self, who: ProcessId, number: i32, sync: Sync) {
        let only = (sync.kind != SyncKind::Disk).then_some(sync.place.id);
        let volume = &mut self.volumes[sync.place.volume];
        volume.lose_dirty(only);
        volume.failures.another();
        // Told by this call.
        let _ = self.tell_of_failures(who, number, sync);
    }

    /// `syncfs` tells of what failed in the file system, other syncs of what did in their file, by whichever of the two.
    fn tell_of_failures(&mut self, who: ProcessId, number: i32, sync: Sync) -> Result<(), Stop> {
        let file = self.file(who, number)?;
        let is_of_disk = sync.kind == SyncKind::Disk;
        let mut told = if is_of_disk { file.disk_failures_told } else { file.failures_told };
        let volume = &mut self.volumes[sync.place.volume];
        let failures = if is_of_disk { &mut volume.failures } else { &mut volume.get_mut(sync.place.id)?.failures };
        let result = failures.tell(&mut told);
        let file = self.file(who, number)?;
        *(if is_of_disk { &mut file.disk_failures_told } else { &mut file.failures_told }) = told;
        Ok(result?)
    }

    pub(in super::super) fn readlink(&mut self, who: ProcessId, at: i32, path: &[u8]) -> Result<Vec<u8>, Stop> {
        let start = self.start_of(who, at, path)?;
        let place = self.find(who, start, path, super::walk::How::NO_FOLLOW)?;
        match &self.live(place)?.node.kind {
            Kind::Link(to) => Ok(to.clone()),
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// The path of what a path leads to, without links.
    pub(in super::super) fn realpath(&mut self, who: ProcessId, path: &[u8]) -> Result<Vec<u8>, Stop> {
        let start = self.top();
        let found = self.walk(who, start, path, super::walk::How::FOLLOW)?;
        let place = found.place.ok_or(Errno::NOENT)?;
        let path = match found.name {
            Some((folder, name)) => self.path_of(folder, Some(&name)),
            None => self.path_of(place, None),
        };
        Ok(if path.is_empty() { b"/".to_vec() } else { path })
    }

    /// Bytes that there are, and that are free, where a path leads.
    pub(in super::super) fn statvfs(&mut self, who: ProcessId, path: &[u8]) -> Result<(u64, u64), Stop> {
        let start = self.top();
        let place = self.find(who, start, path, super::walk::How::FOLLOW)?;
        let volume = self.volume(place)?;
        Ok((volume.settings.capacity_bytes, volume.available()))
    }

    /// What can be waited for with a descriptor, if anything can.
    pub(in super::super) fn poll_key(&mut self, who: ProcessId, number: i32) -> Result<Option<world::Key>, Errno> {
        let mounts = self.mounts_key;
        match &self.file(who, number)?.object {
            Object::Event { key, .. } => Ok(Some(*key)),
            Object::Mounts { .. } => Ok(Some(mounts)),
            Object::Inotify(instance) => {
                let instance = *instance;
                Ok(self.watches.key(instance))
            }
            _ => Ok(None),
        }
    }

    /// What of that can be done with a descriptor now.
    pub(in super::super) fn poll(&mut self, who: ProcessId, number: i32, wanted: PollFlags) -> PollFlags {
        let changes = self.mount_changes;
        let Ok(file) = self.file(who, number) else { return PollFlags::NVAL };
        let (reads, writes) = (PollFlags::IN, PollFlags::OUT);
        match &mut file.object {
            Object::Event { count: 0, .. } => writes & wanted,
            Object::Mounts { seen, .. } if *seen != changes => {
                *seen = changes;
                (reads | writes | PollFlags::PRI) & wanted | PollFlags::ERR
            }
            Object::Inotify(instance) => {
                let instance = *instance;
                if self.watches.has_events(instance) { reads & wanted } else { PollFlags::empty() }
            }
            _ => (reads | writes) & wanted,
        }
    }
}
