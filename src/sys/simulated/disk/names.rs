//! System calls that open, make, move and remove names.

use ::rustix::fs::inotify::ReadFlags;
use ::rustix::fs::{FileType, OFlags, RenameFlags};
use ::rustix::io::Errno;

use super::super::world::ProcessId;
use super::content::Content;
use super::open::{Object, OpenFile};
use super::state::{Place, State, Stop};
use super::volume::Kind;
use super::walk::{Found, How, Last};

const UMASK: u32 = 0o022;
const MOUNT_TABLE: &[u8] = b"/proc/self/mountinfo";

/// Paths of which nothing is said but that they are not there, at once and without fail: what a program reads of them it may keep
/// for longer than a world lasts.
pub(in super::super) fn is_proc(path: &[u8]) -> bool {
    path.starts_with(b"/proc/") && path != MOUNT_TABLE
}

impl State {
    pub(in super::super) fn openat(
        &mut self,
        who: ProcessId,
        at: i32,
        path: &[u8],
        flags: OFlags,
        mode: u32,
        how: How,
    ) -> Result<i32, Stop> {
        self.free_number(who)?;
        if path == MOUNT_TABLE {
            let object = Object::Mounts { seen: self.mount_changes, text: self.mount_table() };
            return Ok(self.add_open(who, OpenFile::new(object, flags, path))?);
        }
        if is_proc(path) {
            return Err(Errno::NOENT.into());
        }
        let scoped = how.beneath || how.in_root;
        let start = self.start_of(who, at, if scoped { b"." } else { path })?;
        let flags = match flags.contains(OFlags::PATH) {
            true => flags & (OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC),
            false => flags,
        };
        if flags.contains(OFlags::CREATE | OFlags::DIRECTORY) && !flags.contains(OFlags::TMPFILE) {
            return Err(Errno::INVAL.into());
        }
        let follow = !flags.contains(OFlags::NOFOLLOW) && !flags.contains(OFlags::CREATE | OFlags::EXCL);
        if flags.contains(OFlags::TMPFILE) {
            let folder = self.find(who, start, path, How { follow, ..how })?;
            return self.open_unnamed(who, folder, path, flags, mode);
        }
        let makes_file = flags.contains(OFlags::CREATE);
        let found = self.walk(who, start, path, How { follow, makes_file, ..how })?;
        match found.place {
            Some(place) => self.open_there(who, &found, place, path, flags),
            None if flags.contains(OFlags::CREATE) => self.open_new(who, &found, path, flags, mode),
            None => Err(Errno::NOENT.into()),
        }
    }

    fn open_unnamed(
        &mut self,
        who: ProcessId,
        folder: Place,
        path: &[u8],
        flags: OFlags,
        mode: u32,
    ) -> Result<i32, Stop> {
        if flags & OFlags::ACCMODE == OFlags::RDONLY {
            return Err(Errno::INVAL.into());
        }
        if !self.live(folder)?.node.is_folder() {
            return Err(Errno::NOTDIR.into());
        }
        if !self.volumes[folder.volume].settings.has_tmpfile {
            return Err(Errno::OPNOTSUPP.into());
        }
        self.may_change(who, folder)?;
        let now = self.now;
        let id = self.volume(folder)?.make(Kind::File(Content::default()), mode & !UMASK, folder.id, now);
        Ok(self.add_open(who, OpenFile::new(Object::Inode(Place { id, ..folder }), flags, path))?)
    }

    fn open_new(&mut self, who: ProcessId, found: &Found, path: &[u8], flags: OFlags, mode: u32) -> Result<i32, Stop> {
        let Some((folder, name)) = &found.name else { return Err(Errno::ISDIR.into()) };
        if found.slash {
            return Err(Errno::ISDIR.into());
        }
        let id = self.make(who, *folder, name, Kind::File(Content::default()), mode)?;
        let mut file = OpenFile::new(Object::Inode(Place { id, ..*folder }), flags, path);
        file.name = Some((folder.volume, folder.id, name.clone()));
        Ok(self.add_open(who, file)?)
    }

    fn open_there(
        &mut self,
        who: ProcessId,
        found: &Found,
        place: Place,
        path: &[u8],
        flags: OFlags,
    ) -> Result<i32, Stop> {
        if flags.contains(OFlags::CREATE | OFlags::EXCL) {
            return Err(Errno::EXIST.into());
        }
        if found.slash && flags.contains(OFlags::CREATE) {
            return Err(Errno::ISDIR.into());
        }
        let live = self.live(place)?;
        let (kind, is_folder) = (live.node.kind.file_type(), live.node.is_folder());
        let (reads, writes) = match flags & OFlags::ACCMODE {
            OFlags::WRONLY => (false, true),
            OFlags::RDWR => (true, true),
            _ => (true, flags.contains(OFlags::TRUNC)),
        };
        if is_folder && flags.contains(OFlags::CREATE) {
            return Err(Errno::ISDIR.into());
        }
        if !is_folder && (flags.contains(OFlags::DIRECTORY) || found.slash) {
            return Err(Errno::NOTDIR.into());
        }
        let object = if flags.contains(OFlags::PATH) {
            Object::Path(place)
        } else {
            let wanted = if reads { 4 } else { 0 } | if writes { 2 } else { 0 };
            match kind {
                FileType::Symlink => return Err(Errno::LOOP.into()),
                FileType::Directory if writes => return Err(Errno::ISDIR.into()),
                _ if !self.may(who, live, wanted) => return Err(Errno::ACCESS.into()),
                FileType::Fifo if writes && !reads => return Err(Errno::NXIO.into()),
                FileType::RegularFile if writes && self.volumes[place.volume].settings.read_only => {
                    return Err(Errno::ROFS.into());
                }
                _ => Object::Inode(place),
            }
        };
        let truncates = flags.contains(OFlags::TRUNC) && kind == FileType::RegularFile;
        let mut file = OpenFile::new(object, flags, path);
        file.name = found.name.as_ref().map(|(folder, name)| (folder.volume, folder.id, name.clone()));
        let number = self.add_open(who, file)?;
        if truncates && !flags.contains(OFlags::PATH) {
            self.set_len_of(who, number, place, 0)?;
        }
        Ok(number)
    }

    /// Makes something of a name that is free.
    fn make(&mut self, who: ProcessId, folder: Place, name: &[u8], kind: Kind, mode: u32) -> Result<u64, Stop> {
        self.may_change(who, folder)?;
        let (now, is_folder) = (self.now, matches!(kind, Kind::Folder(_)));
        let mode = if matches!(kind, Kind::Link(_)) { 0o777 } else { mode & 0o7777 & !UMASK };
        let id = self.volume(folder)?.make(kind, mode, folder.id, now);
        self.set_names(folder.volume, vec![(folder.id, name.to_vec(), Some(id))]);
        let flags = if is_folder { ReadFlags::CREATE | ReadFlags::ISDIR } else { ReadFlags::CREATE };
        self.watches.tell(folder.volume, folder.id, flags, 0, Some(name));
        Ok(id)
    }

    fn make_at(&mut self, who: ProcessId, at: i32, path: &[u8], kind: Kind, mode: u32) -> Result<(), Stop> {
        let start = self.start_of(who, at, path)?;
        let found = self.walk_for_new(who, start, path)?;
        let Some((folder, name)) = found.name.filter(|_| found.place.is_none()) else {
            return Err(Errno::EXIST.into());
        };
        if found.slash && !matches!(kind, Kind::Folder(_)) {
            return Err(Errno::NOENT.into());
        }
        self.make(who, folder, &name, kind, mode)?;
        Ok(())
    }

    /// A walk to a name that is to be made: a link of that name is not followed, even if a slash comes after it.
    fn walk_for_new(&mut self, who: ProcessId, start: Place, path: &[u8]) -> Result<Found, Stop> {
        let bare = match path.iter().rposition(|byte| *byte != b'/') {
            Some(last) => &path[..=last],
            None => path,
        };
        let found = self.walk(who, start, bare, How::NO_FOLLOW)?;
        Ok(Found { slash: bare.len() < path.len(), ..found })
    }

    pub(in super::super) fn mkdirat(&mut self, who: ProcessId, at: i32, path: &[u8], mode: u32) -> Result<(), Stop> {
        self.make_at(who, at, path, Kind::Folder(Default::default()), mode & 0o1777)
    }

    pub(in super::super) fn mkfifoat(&mut self, who: ProcessId, at: i32, path: &[u8], mode: u32) -> Result<(), Stop> {
        self.make_at(who, at, path, Kind::Fifo, mode)
    }

    pub(in super::super) fn symlinkat(&mut self, who: ProcessId, to: &[u8], at: i32, path: &[u8]) -> Result<(), Stop> {
        if to.is_empty() {
            return Err(Errno::NOENT.into());
        }
        self.make_at(who, at, path, Kind::Link(to.to_vec()), 0o777)
    }

    pub(in super::super) fn linkat(
        &mut self,
        who: ProcessId,
        (from_at, from): (i32, &[u8]),
        (to_at, to): (i32, &[u8]),
        follow: bool,
    ) -> Result<(), Stop> {
        let start = self.start_of(who, from_at, from)?;
        let source = self.find(who, start, from, How { follow, ..How::FOLLOW })?;
        let start = self.start_of(who, to_at, to)?;
        let found = self.walk_for_new(who, start, to)?;
        let Some((folder, name)) = found.name.filter(|_| found.place.is_none()) else {
            return Err(Errno::EXIST.into());
        };
        if found.slash {
            return Err(Errno::NOENT.into());
        }
        if source.mount != folder.mount {
            return Err(Errno::XDEV.into());
        }
        self.may_change(who, folder)?;
        let live = self.live(source)?;
        if live.node.is_folder() {
            return Err(Errno::PERM.into());
        }
        if live.links == 0 {
            return Err(Errno::NOENT.into());
        }
        self.set_names(folder.volume, vec![(folder.id, name.clone(), Some(source.id))]);
        self.watches.tell(folder.volume, folder.id, ReadFlags::CREATE, 0, Some(&name));
        Ok(())
    }

    pub(in super::super) fn unlinkat(&mut self, who: ProcessId, at: i32, path: &[u8], rmdir: bool) -> Result<(), Stop> {
        let start = self.start_of(who, at, path)?;
        let found = self.walk_for_new(who, start, path)?;
        let Some((folder, name)) = found.name else {
            return Err(match (rmdir, found.last) {
                (false, _) => Errno::ISDIR,
                (true, Last::Dot) => Errno::INVAL,
                (true, Last::DotDot) => Errno::NOTEMPTY,
                (true, _) => Errno::BUSY,
            }
            .into());
        };
        let place = found.place.ok_or(Errno::NOENT)?;
        let live = self.live(place)?;
        let (is_folder, is_empty) =
            (live.node.is_folder(), live.node.entries().is_none_or(std::collections::BTreeMap::is_empty));
        if !rmdir && found.slash {
            return Err(if is_folder { Errno::ISDIR } else { Errno::NOTDIR }.into());
        }
        self.may_change(who, folder)?;
        match (rmdir, is_folder) {
            (false, true) => return Err(Errno::ISDIR.into()),
            (true, false) => return Err(Errno::NOTDIR.into()),
            _ if self.is_mount_point(place) => return Err(Errno::BUSY.into()),
            (true, true) if !is_empty => return Err(Errno::NOTEMPTY.into()),
            _ => {}
        }
        let flags = if is_folder { ReadFlags::DELETE | ReadFlags::ISDIR } else { ReadFlags::DELETE };
        let open = self.volumes[place.volume].get(place.id)?.opens > 0;
        let tell = |state: &mut Self| state.watches.tell(folder.volume, folder.id, flags, 0, Some(&name));
        // The kernel says first that the inode is gone, if it is.
        if open {
            tell(self);
        }
        self.set_names(folder.volume, vec![(folder.id, name.clone(), None)]);
        if !open {
            tell(self);
        }
        Ok(())
    }

    pub(in super::super) fn renameat(
        &mut self,
        who: ProcessId,
        (from_at, from): (i32, &[u8]),
        (to_at, to): (i32, &[u8]),
        flags: RenameFlags,
    ) -> Result<(), Stop> {
        let start = self.start_of(who, from_at, from)?;
        let source = self.walk_for_new(who, start, from)?;
        let start = self.start_of(who, to_at, to)?;
        let target = self.walk_for_new(who, start, to)?;
        let (exchange, no_replace) = (flags.contains(RenameFlags::EXCHANGE), flags.contains(RenameFlags::NOREPLACE));
        if exchange && no_replace {
            return Err(Errno::INVAL.into());
        }
        let above =
            |found: &Found| found.name.as_ref().map(|(folder, _)| folder.mount).or(found.place.map(|at| at.mount));
        if above(&source) != above(&target) {
            return Err(Errno::XDEV.into());
        }
        let Some((from_folder, from_name)) = source.name else { return Err(Errno::BUSY.into()) };
        let Some((to_folder, to_name)) = target.name else {
            return Err(if no_replace { Errno::EXIST } else { Errno::BUSY }.into());
        };
        let moved = source.place.ok_or(Errno::NOENT)?;
        let is_folder = self.live(moved)?.node.is_folder();
        if no_replace && target.place.is_some() {
            return Err(Errno::EXIST.into());
        }
        if exchange && target.place.is_none() {
            return Err(Errno::NOENT.into());
        }
        let replaced = target.place;
        let to_is_folder = replaced.map(|at| self.live(at).map(|live| live.node.is_folder())).transpose()?;
        if !is_folder && (source.slash || !exchange && target.slash)
            || exchange && target.slash && to_is_folder == Some(false)
        {
            return Err(Errno::NOTDIR.into());
        }
        if is_folder && self.is_within(to_folder, moved) {
            return Err(Errno::INVAL.into());
        }
        if let Some(over) = replaced
            && self.is_within(from_folder, over)
        {
            return Err(if exchange { Errno::INVAL } else { Errno::NOTEMPTY }.into());
        }
        if replaced.is_some_and(|over| over == moved) {
            return Ok(());
        }
        self.may_change(who, from_folder)?;
        self.may_change(who, to_folder)?;
        match to_is_folder {
            Some(true) if !is_folder && !exchange => return Err(Errno::ISDIR.into()),
            Some(false) if is_folder && !exchange => return Err(Errno::NOTDIR.into()),
            _ => {}
        }
        if self.is_mount_point(moved) || replaced.is_some_and(|over| self.is_mount_point(over)) {
            return Err(Errno::BUSY.into());
        }
        if let Some(over) = replaced.filter(|_| !exchange)
            && self.live(over)?.node.entries().is_some_and(|entries| !entries.is_empty())
        {
            return Err(Errno::NOTEMPTY.into());
        }
        let back = replaced.filter(|_| exchange);
        let sets = vec![
            (from_folder.id, from_name.clone(), back.map(|over| over.id)),
            (to_folder.id, to_name.clone(), Some(moved.id)),
        ];
        let (from, to) = ((from_folder, &from_name[..]), (to_folder, &to_name[..]));
        self.rename_open(moved, from, to);
        if let Some(over) = back {
            self.rename_open(over, to, from);
        }
        self.tell_moved(moved, is_folder, from, to);
        if let Some(over) = back {
            self.tell_moved(over, to_is_folder == Some(true), to, from);
        }
        self.set_names(from_folder.volume, sets);
        Ok(())
    }

    /// Whether a folder is another, or below it.
    fn is_within(&self, folder: Place, other: Place) -> bool {
        let mut at = folder;
        loop {
            if at == other {
                return true;
            }
            let up = self.parent(at);
            if up == at {
                return false;
            }
            at = up;
        }
    }

    /// What is open keeps the name of the inode, for events.
    fn rename_open(&mut self, moved: Place, from: (Place, &[u8]), to: (Place, &[u8])) {
        for file in self.open.values_mut() {
            let is_it = matches!(file.object, Object::Inode(at) if (at.volume, at.id) == (moved.volume, moved.id));
            if let Some((volume, folder, name)) = &mut file.name
                && is_it
                && (*volume, *folder, &name[..]) == (from.0.volume, from.0.id, from.1)
            {
                (*folder, *name) = (to.0.id, to.1.to_vec());
            }
        }
    }

    fn tell_moved(&mut self, moved: Place, is_folder: bool, from: (Place, &[u8]), to: (Place, &[u8])) {
        let cookie = self.watches.new_cookie();
        let kind = if is_folder { ReadFlags::ISDIR } else { ReadFlags::empty() };
        self.watches.tell(from.0.volume, from.0.id, ReadFlags::MOVED_FROM | kind, cookie, Some(from.1));
        self.watches.tell(to.0.volume, to.0.id, ReadFlags::MOVED_TO | kind, cookie, Some(to.1));
        self.watches.tell(moved.volume, moved.id, ReadFlags::MOVE_SELF, 0, None);
    }
}

impl Kind {
    pub(super) fn file_type(&self) -> FileType {
        match self {
            Self::Folder(_) => FileType::Directory,
            Self::File(_) => FileType::RegularFile,
            Self::Link(_) => FileType::Symlink,
            Self::Fifo => FileType::Fifo,
        }
    }
}
