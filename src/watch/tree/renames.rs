//! Renames: a known file that is found under another name, and no longer under its own.
//!
//! Nothing is concluded from pairs of events. Before anything is announced, all paths that want a look are surveyed: which
//! file is there now? What is at one path and was announced under another was renamed, be it alone, over another file, in a
//! chain (`log.1` to `log.2`, `log` to `log.1`) or with its folder. A known file that is no longer where it was, and was not
//! found elsewhere, may be in events that came meanwhile: they are read before it is given up.

use std::collections::BTreeMap;

use super::files::read_range;
use super::{Kind, Tree, Trouble};
use crate::index::Version;
use crate::index::blocks::BLOCK_BYTES;
use crate::sys::fs::File;
use crate::types::RelPath;
use crate::watch::announce::Announce;
use crate::watch::file::{Identity, Known, Seen};

/// How often events are read once more to find what has vanished.
const SEARCHES_MAX: u32 = 3;

/// The paths that want a look, and which file was there; `None`: no file.
pub(super) type Surveyed = BTreeMap<RelPath, Option<Identity>>;

/// Renames, from old to new names.
type Moves = BTreeMap<RelPath, RelPath>;

impl<A: Announce> Tree<A> {
    /// Surveys everything that wants a look, lists new folders on the way, and announces renames.
    pub(super) fn find_renames(&mut self, go_on: &dyn Fn() -> bool) -> Result<Surveyed, Trouble> {
        let mut surveyed = Surveyed::new();
        for search in 0.. {
            while go_on()
                && let Some(path) = self.dirty.pop_first()
            {
                let found = self.survey(&path);
                if let Some(found) = self.settle(&path, found)? {
                    surveyed.insert(path, found);
                }
            }
            let moves = self.moves(&surveyed);
            let vanished = |(path, found): (&RelPath, &Option<Identity>)| {
                self.files.get(path).is_some_and(|known| *found != Some(known.id())) && !moves.contains_key(path)
            };
            if go_on() && search < SEARCHES_MAX && surveyed.iter().any(vanished) {
                self.collect().map_err(Trouble::Fatal)?;
                if !self.dirty.is_empty() {
                    continue;
                }
            }
            if go_on() {
                self.announce_moves(moves)?;
            }
            break;
        }
        Ok(surveyed)
    }

    /// Which file is at `path`. A folder is listed if it is new, and forgotten if there is none any more.
    fn survey(&mut self, path: &RelPath) -> Result<Option<Identity>, Trouble> {
        match self.kind_of(path)? {
            Kind::Folder => {
                self.look_at_folder(path)?;
                Ok(None)
            }
            Kind::File(seen) => {
                self.forget_folder(path);
                Ok(Some(seen.id()))
            }
            Kind::Other => {
                self.forget_folder(path);
                Ok(None)
            }
        }
    }

    fn moves(&self, surveyed: &Surveyed) -> Moves {
        let moved = |(to, found): (&RelPath, &Option<Identity>)| {
            let id = (*found)?;
            let from = self.files.find(id)?;
            if from == to || self.files.get(to).is_some_and(|known| known.id() == id) || !self.announce.replicates(to) {
                return None;
            }
            let at_old_name = match surveyed.get(from) {
                Some(found) => *found,
                None => match self.kind_of(from) {
                    Ok(Kind::File(seen)) => Some(seen.id()),
                    Ok(_) => None,
                    Err(_) => return None,
                },
            };
            // Where another file has the old name, and births say nothing, it may be the one that was there, with an inode that has come back: then there
            // was no moment without it, and there is to be none in the copies.
            let is_sure = at_old_name.is_none() || self.files.get(from).is_some_and(|known| known.is_unique());
            (at_old_name != Some(id) && is_sure).then(|| (from.clone(), to.clone()))
        };
        surveyed.iter().filter_map(moved).collect()
    }

    /// Announces them, each after those that its new name has to wait for. Of a circle, one is left to be announced anew.
    fn announce_moves(&mut self, mut moves: Moves) -> Result<(), Trouble> {
        while let Some(first) = moves.keys().next().cloned() {
            let mut chain = vec![first];
            while let Some(from) = chain.last() {
                let in_the_way = self.files.in_the_way_of(&moves[from]);
                match in_the_way.into_iter().find(|path| moves.contains_key(path)) {
                    Some(next) if !chain.contains(&next) => chain.push(next),
                    circle => {
                        if let Some((from, to)) = chain.pop().and_then(|from| moves.remove_entry(&from))
                            && circle.is_none()
                        {
                            let announced = self.announce_move(&from, &to);
                            // What failed shows again when the two names are looked at.
                            if let Err(trouble @ (Trouble::Stop | Trouble::Fatal(_))) = announced {
                                return Err(trouble);
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Announces a rename if it is surely the file that was announced. What it holds is compared after that, under its new name.
    fn announce_move(&mut self, from: &RelPath, to: &RelPath) -> Result<(), Trouble> {
        let file = self.open_file(to)?;
        let seen = Seen::of(&file.metadata()?);
        let (Some(known), Some(version)) = (self.files.get(from), self.announce.version(from)) else { return Ok(()) };
        if !self.is_surely(&known, &seen, &file, version)? || version.len != known.announced {
            return Ok(());
        }
        if 0 < seen.len && seen.len < known.announced {
            log::debug!("{from} is {to} now, but announced anew: it is shorter");
            return Ok(());
        }
        for other in self.files.in_the_way_of(to) {
            if other != *to {
                self.delete(&other)?;
            }
        }
        let over = self.announce.version(to);
        self.announce.rename(from, to)?;
        self.forget(over);
        log::debug!("renamed {from} to {to}");
        self.files.remove(from);
        self.suspects.rename(from, to);
        for path in [from, to] {
            self.later.remove(path);
            self.readable(path);
        }
        // Whatever is under it now, if anything, is another file.
        self.dirty.insert(from.clone());
        // Under its new name it is looked at next, and mended if the leader had something else under the old one.
        self.files.insert(to.clone(), known);
        Ok(())
    }

    /// Whether what was seen is this very file, and not a later one with its inode. Where that cannot be told from its times, all of it must be what was announced, and
    /// that something: an empty file looks like any other.
    fn is_surely(&self, known: &Known, seen: &Seen, file: &File, version: Version) -> std::io::Result<bool> {
        if known.id() != seen.id() || known.is_unique() {
            return Ok(known.id() == seen.id());
        }
        let Version { generation, len } = version;
        if len == 0 || len > BLOCK_BYTES || len > seen.len || self.announce.blocks().is_unknown(generation, &(0..len)) {
            return Ok(false);
        }
        Ok(self.announce.blocks().compare(generation, 0, &read_range(file, 0, len)?).differs.is_empty())
    }
}
