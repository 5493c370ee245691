//! From a path to an inode, as the kernel goes: through folders, links and mounts.

use ::rustix::io::Errno;

use super::super::world::ProcessId;
use super::state::{Place, State, Stop};
use super::volume::{Kind, Live};

/// What a walk may do.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct How {
    /// Follows a link that the last name is.
    pub(in super::super) follow: bool,
    /// Never leaves the folder it started in (`RESOLVE_BENEATH`).
    pub(in super::super) beneath: bool,
    /// Takes that folder for the top of all (`RESOLVE_IN_ROOT`).
    pub(in super::super) in_root: bool,
    /// Follows no link (`RESOLVE_NO_SYMLINKS`).
    pub(in super::super) no_links: bool,
    /// Makes a file of the last name, which therefore may have no slash after it.
    pub(in super::super) makes_file: bool,
    /// Enters no other mount (`RESOLVE_NO_XDEV`).
    pub(in super::super) one_mount: bool,
}

impl How {
    pub(in super::super) const FOLLOW: Self =
        Self { follow: true, beneath: false, in_root: false, no_links: false, makes_file: false, one_mount: false };
    pub(in super::super) const NO_FOLLOW: Self = Self { follow: false, ..Self::FOLLOW };
}

/// Where a path leads.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The folder and the name in it; `None`: the path ends in `.`, `..` or `/`.
    pub(super) name: Option<(Place, Vec<u8>)>,
    /// `None`: there is nothing of that name.
    pub(super) place: Option<Place>,
    /// The path ends in a slash.
    pub(super) slash: bool,
    /// It ends in `.` or `..`.
    pub(super) last: Last,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    Name,
    Dot,
    DotDot,
    Root,
}

const NAME_BYTES_MAX: usize = 255;
const PATH_BYTES_MAX: usize = 4096;
const LINKS_MAX: usize = 40;

fn names_of(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').rev().filter(|name| !name.is_empty()).map(<[u8]>::to_vec)
}

impl State {
    pub(super) fn walk(&mut self, who: ProcessId, start: Place, path: &[u8], how: How) -> Result<Found, Stop> {
        if path.is_empty() {
            return Err(Errno::NOENT.into());
        }
        if path.len() >= PATH_BYTES_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let top = if how.in_root { start } else { self.top() };
        let (mut at, mut slash, mut links) = (start, path.ends_with(b"/"), 0);
        let mut rest: Vec<Vec<u8>> = names_of(path).collect();
        if path[0] == b'/' {
            at = self.jump_to(top, start, how)?;
        }
        let mut last = Last::Root;
        while let Some(name) = rest.pop() {
            let here = self.folder(at)?;
            let may_search = self.may(who, here, 1);
            let entry = here.node.entries().and_then(|entries| entries.get(&name)).copied();
            if !may_search {
                return Err(Errno::ACCESS.into());
            }
            last = match &name[..] {
                b"." => Last::Dot,
                b".." => {
                    at = self.step_up(at, start, how)?;
                    Last::DotDot
                }
                _ => Last::Name,
            };
            if last != Last::Name {
                continue;
            }
            if name.len() > NAME_BYTES_MAX {
                return Err(Errno::NAMETOOLONG.into());
            }
            if rest.is_empty() && slash && how.makes_file {
                return Err(Errno::ISDIR.into());
            }
            let Some(id) = entry else {
                if rest.is_empty() {
                    return Ok(Found { name: Some((at, name)), place: None, slash, last });
                }
                return Err(Errno::NOENT.into());
            };
            let next = self.cross(Place { id, ..at });
            if how.one_mount && next.mount != at.mount {
                return Err(Errno::XDEV.into());
            }
            match &self.live(next)?.node.kind {
                Kind::Link(target) if !rest.is_empty() || how.follow || slash => {
                    links += 1;
                    if how.no_links || links > LINKS_MAX {
                        return Err(Errno::LOOP.into());
                    }
                    let target = target.clone();
                    if target.starts_with(b"/") {
                        at = self.jump_to(top, start, how)?;
                        last = Last::Root;
                    }
                    slash |= rest.is_empty() && target.ends_with(b"/");
                    rest.extend(names_of(&target));
                }
                _ if rest.is_empty() => return Ok(Found { name: Some((at, name)), place: Some(next), slash, last }),
                _ => at = next,
            }
        }
        self.folder(at)?;
        Ok(Found { name: None, place: Some(at), slash, last })
    }

    /// What a path leads to.
    pub(super) fn find(&mut self, who: ProcessId, start: Place, path: &[u8], how: How) -> Result<Place, Stop> {
        let found = self.walk(who, start, path, how)?;
        let place = found.place.ok_or(Errno::NOENT)?;
        if found.slash && !self.live(place)?.node.is_folder() {
            return Err(Errno::NOTDIR.into());
        }
        Ok(place)
    }

    fn jump_to(&self, top: Place, start: Place, how: How) -> Result<Place, Errno> {
        match (how.beneath, how.one_mount && top.mount != start.mount) {
            (false, false) => Ok(top),
            _ => Err(Errno::XDEV),
        }
    }

    fn step_up(&self, at: Place, start: Place, how: How) -> Result<Place, Errno> {
        if at == start && (how.beneath || how.in_root) {
            return if how.beneath { Err(Errno::XDEV) } else { Ok(at) };
        }
        let up = self.parent(at);
        if how.one_mount && up.mount != at.mount { Err(Errno::XDEV) } else { Ok(up) }
    }

    fn folder(&self, at: Place) -> Result<&Live, Stop> {
        let live = self.live(at)?;
        if live.node.is_folder() { Ok(live) } else { Err(Errno::NOTDIR.into()) }
    }

    /// Whether a process may do that: 4 to read, 2 to write, 1 to enter. Everything belongs to everybody's user.
    pub(super) fn may(&self, who: ProcessId, live: &Live, wanted: u32) -> bool {
        !self.unprivileged.contains(&who) || live.node.mode >> 6 & wanted == wanted
    }

    /// The folder above, also of a mount.
    pub(super) fn parent(&self, at: Place) -> Place {
        let mut at = at;
        while at.id == self.volumes[at.volume].root
            && let Some(place) = self.mounts.get(&at.mount).and_then(|mount| mount.at)
        {
            at = place;
        }
        let parent = self.volumes[at.volume].live.get(&at.id).map_or(at.id, |live| live.parent);
        self.cross(Place { id: parent, ..at })
    }

    /// The top of what is mounted there, if anything is.
    pub(super) fn cross(&self, at: Place) -> Place {
        let mut at = at;
        while let Some((id, mount)) = self.mounts.iter().rev().find(|(_, mount)| mount.at == Some(at)) {
            at = Place { volume: mount.volume, id: self.volumes[mount.volume].root, mount: *id };
        }
        at
    }

    /// The absolute path of a folder, or of a file in it.
    pub(super) fn path_of(&self, at: Place, name: Option<&[u8]>) -> Vec<u8> {
        let mut parts: Vec<Vec<u8>> = name.map(<[u8]>::to_vec).into_iter().collect();
        let mut at = at;
        loop {
            let up = self.parent(at);
            if up == at {
                break;
            }
            let mut below = at;
            while below.id == self.volumes[below.volume].root
                && let Some(place) = self.mounts.get(&below.mount).and_then(|mount| mount.at)
            {
                below = place;
            }
            let entries = self.volumes[up.volume].live.get(&up.id).and_then(|live| live.node.entries());
            let named = entries.and_then(|entries| entries.iter().find(|(_, id)| **id == below.id));
            parts.push(named.map_or_else(|| b"?".to_vec(), |(name, _)| name.clone()));
            at = up;
        }
        parts.iter().rev().fold(Vec::new(), |path, part| [&path[..], b"/", part].concat())
    }
}
