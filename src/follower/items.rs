//! Folders and symbolic links, which only the extension has words for. Part of [`Actions`] and of [`Dir`].
//!
//! They are made, changed and removed as the leader says, and not by the follower itself: with the extension an emptied folder stays until
//! it is said to be gone. A link is a name with a text in it, which is never followed: wherever it leads, nothing is read or
//! written there.
//!
//! What the leader says of items is not as exact, while much changes, as what it says of files, and is put right by what it says next. So what does not
//! fit is left, and ends nothing: a file is never replaced by an item, nor is a folder that holds anything but folders. Only what cannot be done
//! for want of room, or because the disk has failed, is an error.

use super::apply::Actions;
use super::dir::{Dir, FOLDER, FOLDER_MODE, Folder};
use super::kept::Keeper;
use super::reshape::unreserved;
use super::stage::{above, incoming};
use crate::beneath::entries;
use crate::error::Error;
use crate::protocol::extension::{Attributes, Item};
use crate::sys::fd::OwnedFd;
use crate::sys::hash::HashSet;
use crate::sys::rustix;
use crate::sys::rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use crate::sys::rustix::io::Errno;
use crate::types::RelPath;

impl Actions<'_> {
    /// A folder or a link is there from now on, and is so.
    pub(super) fn item(&mut self, path: &RelPath, item: &Item) -> Result<(), Error> {
        self.settle()?;
        unreserved(path)?;
        let Some(at) = self.dir.way_to(path, true)? else { return left(path) };
        match item {
            Item::Folder(attributes) => self.folder(path, &at, *attributes),
            Item::Link { target, .. } => self.link(path, &at, target),
        }
    }

    fn folder(&mut self, path: &RelPath, at: &(Folder<'_>, &str), attributes: Attributes) -> Result<(), Error> {
        let (dir, (folder, name)) = (self.dir, at);
        let mut changes = false;
        match dir.kind_at(folder, name, path)? {
            Some(FileType::Directory) => {}
            Some(FileType::Symlink) if !self.link_goes(path, at) => return left(path),
            None | Some(FileType::Symlink) => {
                changes = true;
                match rustix::fs::mkdirat(folder, *name, FOLDER_MODE) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(dir.failed("make the folder", path.as_str(), errno)),
                }
            }
            Some(_) => return left(path),
        }
        let opened = match rustix::fs::openat(folder, *name, FOLDER, Mode::empty()) {
            Ok(opened) => opened,
            Err(errno) => return self.refused(path, errno),
        };
        let stat = rustix::fs::fstat(&opened).map_err(|errno| dir.failed("stat", path.as_str(), errno))?;
        let (now, wanted) =
            (Mode::from_raw_mode(stat.st_mode), Mode::from_raw_mode((attributes.mode & Attributes::MODE_BITS).into()));
        // Its owner may always use it. What it has beyond is of those that it lies in here, or was given to it here.
        let permissions = Mode::RWXU | Mode::RWXG | Mode::RWXO;
        let mode = wanted | Mode::RWXU | now.difference(permissions);
        if now != mode {
            changes = true;
            if let Err(errno) = rustix::fs::fchmod(&opened, mode) {
                self.refused(path, errno)?;
            }
        }
        if let Some(track) = &mut self.track
            && changes
        {
            track.folder(path);
        }
        Ok(())
    }

    fn link(&mut self, path: &RelPath, at: &(Folder<'_>, &str), target: &[u8]) -> Result<(), Error> {
        let (dir, (folder, name)) = (self.dir, at);
        let mut is_over = false;
        match dir.kind_at(folder, name, path)? {
            None => {}
            Some(FileType::Symlink) => {
                if dir.target_at(at).is_some_and(|now| now == target) {
                    return Ok(());
                }
                is_over = !self.keeper.as_mut().is_some_and(|keeper| keeper.take_link(path));
            }
            Some(FileType::Directory) if dir.clear_folders(path.as_str())? => {}
            Some(_) => return left(path),
        }
        match dir.make_link(path, at, target, is_over)? {
            Ok(()) => {}
            // Something came into its way.
            Err(Errno::EXIST | Errno::ISDIR) => return left(path),
            Err(errno) => return self.refused(path, errno),
        }
        self.gone(path);
        Ok(())
    }

    /// There is no folder or link of this name any more. Whatever else is there is left.
    pub(super) fn remove_item(&mut self, path: &RelPath) -> Result<(), Error> {
        self.settle()?;
        unreserved(path)?;
        let Some(at) = self.dir.way_to(path, false)? else { return Ok(()) };
        let is_gone = match self.dir.kind_at(&at.0, at.1, path)? {
            Some(FileType::Symlink) => self.link_goes(path, &at),
            Some(FileType::Directory) => match rustix::fs::unlinkat(&at.0, at.1, AtFlags::REMOVEDIR) {
                Ok(()) => true,
                Err(errno) => {
                    log::debug!("the folder {path} stays: {errno}");
                    false
                }
            },
            _ => false,
        };
        if is_gone {
            self.gone(path);
        }
        Ok(())
    }

    fn link_goes(&mut self, path: &RelPath, at: &(Folder<'_>, &str)) -> bool {
        let is_sync = self.keeper.is_some();
        self.dir.link_goes(self.keeper.as_mut(), is_sync, path, at)
    }
}

fn left(path: &RelPath) -> Result<(), Error> {
    log::debug!("something else is in the place of {path}, or on the way to it: it is left");
    Ok(())
}

/// The links that were found here when 1.0.0, which has no word for links, began: those of an earlier leader that had words for them, or whoever made them. They stay
/// until a file is to be where one is, or beyond one.
#[derive(Debug, Default)]
pub(super) struct FoundLinks(HashSet<RelPath>);

impl FoundLinks {
    pub(super) fn new(items: &[(RelPath, Item)]) -> Self {
        let links = items.iter().filter(|(_, item)| matches!(item, Item::Link { .. }));
        Self(links.map(|(path, _)| path.clone()).collect())
    }

    /// The one that is in the way of a file.
    pub(super) fn in_the_way_of(&self, path: &RelPath) -> Option<&RelPath> {
        if self.0.is_empty() {
            return None;
        }
        std::iter::once(path.as_str()).chain(above(path)).find_map(|name| self.0.get(name))
    }

    /// It goes, to what is kept if it can; returns which it was.
    pub(super) fn clear(
        &mut self,
        dir: &Dir,
        keeper: Option<&mut Keeper<'_>>,
        path: &RelPath,
    ) -> Result<Option<RelPath>, Error> {
        let Some(link) = self.in_the_way_of(path).cloned() else { return Ok(None) };
        if let Some(at) = dir.way_to(&link, false)?
            && dir.kind_at(&at.0, at.1, &link)? == Some(FileType::Symlink)
        {
            dir.link_goes(keeper, true, &link, &at);
        }
        self.0.remove(&link);
        Ok(Some(link))
    }
}

impl Dir {
    /// The folder that a name lies in, and its last part. `None`: there is no such folder, and it was not to be made, or something else is on the
    /// way.
    pub(super) fn way_to<'a>(&self, path: &'a RelPath, make: bool) -> Result<Option<(Folder<'_>, &'a str)>, Error> {
        let path_bytes = path.as_str();
        let (mut folder, mut start) = (self.top(), 0);
        while let Some(length) = path_bytes[start..].find('/') {
            let end = start + length;
            let (part, so_far) = (&path_bytes[start..end], &path_bytes[..end]);
            let makes = match self.kind_at(&folder, part, path)? {
                Some(FileType::Directory) => false,
                None if make => true,
                _ => return Ok(None),
            };
            let Some(opened) = self.enter(&folder, part, so_far, makes)? else { return Ok(None) };
            folder.own = Some(opened);
            start = end + 1;
        }
        Ok(Some((folder, &path_bytes[start..])))
    }

    /// Opens a folder; `None` if something else is there, or on the way, or nothing.
    pub(super) fn folder_if_any(&self, path: &str) -> Result<Option<OwnedFd>, Error> {
        let path = RelPath::new(path)?;
        let Some((folder, name)) = self.way_to(&path, false)? else { return Ok(None) };
        match rustix::fs::openat(&folder, name, FOLDER, Mode::empty()) {
            Ok(opened) => Ok(Some(opened)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(self.failed("open the folder", path.as_str(), errno)),
        }
    }

    /// What has this name in a folder, whatever it is.
    pub(super) fn kind_at(&self, folder: &Folder<'_>, name: &str, path: &RelPath) -> Result<Option<FileType>, Error> {
        match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("stat", path.as_str(), errno)),
        }
    }

    /// Where a link leads.
    pub(super) fn target_at(&self, (folder, name): &(Folder<'_>, &str)) -> Option<Vec<u8>> {
        rustix::fs::readlinkat(folder, *name, Vec::new()).ok().map(|target| target.into_bytes())
    }

    /// Takes a link away: to what is kept, if there is somebody to keep it. Returns whether it is gone.
    fn link_goes(
        &self,
        keeper: Option<&mut Keeper<'_>>,
        is_said: bool,
        path: &RelPath,
        at: &(Folder<'_>, &str),
    ) -> bool {
        if keeper.is_some_and(|keeper| keeper.take_link(path)) {
            return true;
        }
        let target = self.target_at(at).unwrap_or_default();
        match rustix::fs::unlinkat(&at.0, at.1, AtFlags::empty()) {
            Ok(()) if is_said => {
                log::info!("the link {path} is gone, and not kept; it led to {}", target.escape_ascii())
            }
            Ok(()) => {}
            Err(errno) => {
                log::debug!("the link {path} stays: {errno}");
                return false;
            }
        }
        true
    }

    /// Makes a link, in one step: over another one, or over nothing. The inner error: it cannot be.
    fn make_link(
        &self,
        path: &RelPath,
        (folder, name): &(Folder<'_>, &str),
        target: &[u8],
        is_over: bool,
    ) -> Result<Result<(), Errno>, Error> {
        let staged = incoming(self.file_system_of(path)?)?;
        self.remove_own(&staged)?;
        let (from, from_name) = self.parent_made(&staged)?;
        let failed = |errno: Errno| match errno {
            Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::NAMETOOLONG => Ok(Err(errno)),
            Errno::EXIST | Errno::ISDIR => Ok(Err(errno)),
            errno => Err(self.failed("make the link", path.as_str(), errno)),
        };
        if let Err(errno) = rustix::fs::symlinkat(target, &from, from_name) {
            return failed(errno);
        }
        let renamed = || rustix::fs::renameat(&from, from_name, folder, *name);
        let mut moved = match is_over {
            true => renamed(),
            false => match rustix::fs::renameat_with(&from, from_name, folder, *name, RenameFlags::NOREPLACE) {
                // The file system knows no such thing. Nobody else makes anything here.
                Err(Errno::INVAL | Errno::NOSYS) => renamed(),
                moved => moved,
            },
        };
        if moved.is_ok() {
            return Ok(Ok(()));
        }
        self.remove_own(&staged)?;
        if moved == Err(Errno::XDEV) {
            // Staged on the wrong side of a mount: a link is little, and is made where it is to be.
            let removed = if is_over { rustix::fs::unlinkat(folder, *name, AtFlags::empty()) } else { Ok(()) };
            moved = removed.and_then(|()| rustix::fs::symlinkat(target, folder, *name));
        }
        moved.map_or_else(failed, |()| Ok(Ok(())))
    }

    /// Removes a folder that holds nothing but folders. Returns whether it did: otherwise nothing was changed, or nothing but folders is gone.
    pub(super) fn clear_folders(&self, path: &str) -> Result<bool, Error> {
        let is_below = |place: &RelPath| {
            place.as_str().strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if self.mounts.places().iter().any(is_below) {
            // Somebody counts on those.
            return Ok(false);
        }
        let (mut folders, mut at) = (vec![path.to_owned()], 0);
        while let Some(folder) = folders.get(at).cloned() {
            at += 1;
            let failed = |error| self.failed("list", &folder, error);
            let Some(opened) = self.open_folder(&folder)? else { return Ok(false) };
            let listed = opened.try_clone().map_err(failed)?;
            for entry in entries(listed).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let stat = rustix::fs::statat(&opened, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
                let is_folder = stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
                match entry.file_name().to_str() {
                    Ok(name) if is_folder => folders.push(format!("{folder}/{name}")),
                    _ => return Ok(false),
                }
            }
        }
        // Those within others first.
        Ok(folders.iter().rev().all(|folder| self.remove_folder(folder)))
    }
}

#[cfg(test)]
mod tests;
