//! What a follower lacks, from what it tells of its files in those buckets that differ: which of its files are ours, as they are, under another name, or in part.
//!
//! Pure, but for the digests of our files, which are asked for as they are needed.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::index::Version;
use crate::index::chunks::{comparable_bytes, compare};
use crate::leader::batch::{FileRange, RangeKind, Step};
use crate::leader::stream::whole;
use crate::leader::sync::moves::{in_order, is_at_or_below};
use crate::protocol::ProtocolError;
use crate::protocol::extension::{Attributes, CHUNK_BYTES, ChunkDigest, Control, Held};
use crate::sys::hash::HashMap;
use crate::types::RelPath;

/// The most digests that are kept of files that may have another name here: 20 bytes each, for 256 KiB of theirs.
const DIGESTS_KEPT_MAX: usize = 4 << 20;

/// The digests of the first so many bytes of a file of ours; `None` if they cannot be read as announced.
pub(super) type OurDigests<'a> = dyn FnMut(&RelPath, Version, u64) -> Result<Option<Vec<ChunkDigest>>, Error> + 'a;

/// The files in question: ours, and theirs.
pub(super) struct Comparison<'a> {
    files: &'a [(RelPath, Version)],
    ours: HashMap<&'a RelPath, Version>,
    theirs: HashMap<RelPath, Copy>,
    /// Digests that are kept.
    kept: usize,
}

/// A file of the follower, in question.
struct Copy {
    len: u64,
    /// If it may be another file of ours; else none are kept.
    digests: Vec<ChunkDigest>,
    /// What makes it equal to ours of that name; `None` if there is none, or it cannot be read.
    repair: Option<Vec<Step>>,
    /// Something of it is of the file of that name.
    is_at_home: bool,
}

/// What came of it.
pub(super) struct Lacking {
    /// Its files that are none of ours.
    pub(super) gone: Vec<RelPath>,
    /// What it takes to make its files equal to ours, once those are deleted: renames first.
    pub(super) steps: Vec<Step>,
    /// Files of ours that could not be compared, and it has something in their place.
    pub(super) unread: Vec<(RelPath, Version)>,
}

impl<'a> Comparison<'a> {
    /// With these files of ours.
    pub(super) fn of(files: &'a [(RelPath, Version)]) -> Self {
        let ours = files.iter().map(|(path, version)| (path, *version)).collect();
        Self { files, ours, theirs: HashMap::default(), kept: 0 }
    }

    /// A file of the follower: compared with ours of that name at once.
    pub(super) fn told(&mut self, mut file: Held, digests: &mut OurDigests<'_>) -> Result<(), Error> {
        if self.theirs.contains_key(&file.path) {
            return Err(ProtocolError::NotOffered(file.path.to_string()).into());
        }
        let path = file.path.clone();
        let (mut repair, mut is_at_home) = (None, false);
        if let Some(version) = self.ours.get(&path)
            && let Some(ours) = digests(&path, *version, comparable_bytes(&file, version.len))?
        {
            is_at_home = file.digests.iter().zip(&ours).any(|(theirs, ours)| theirs == ours);
            repair = Some(steps_of(&path, *version, &file, &ours));
        }
        if is_at_home || self.kept + file.digests.len() > DIGESTS_KEPT_MAX {
            file.digests = Vec::new();
        }
        self.kept += file.digests.len();
        self.theirs.insert(path, Copy { len: file.len, digests: file.digests, repair, is_at_home });
        Ok(())
    }

    /// Once all are told.
    pub(super) fn lacking(mut self, digests: &mut OurDigests<'_>) -> Result<Lacking, Error> {
        let mut steps = self.renames(digests)?;
        let mut unread = Vec::new();
        for (path, version) in self.files {
            match self.theirs.remove(path) {
                None if version.len == 0 => steps.push(Step::Control(Control::Empty(path.clone()))),
                None => steps.push(Step::Send(FileRange { kind: RangeKind::Append, ..whole(path, *version) })),
                Some(Copy { repair: Some(repair), .. }) => steps.extend(repair),
                Some(_) => unread.push((path.clone(), *version)),
            }
        }
        Ok(Lacking { gone: self.theirs.into_keys().collect(), steps, unread })
    }

    /// Files that the follower has under another name, which their first chunk tells: as renames, and noted in what it has. Files of
    /// less than a chunk are not worth it.
    fn renames(&mut self, ours: &mut OurDigests<'_>) -> Result<Vec<Step>, Error> {
        let theirs = &mut self.theirs;
        let is_at_home = |path: &RelPath| theirs.get(path).is_some_and(|copy| copy.is_at_home);
        let mut homeless: Vec<_> =
            self.ours.iter().filter(|(path, version)| version.len >= CHUNK_BYTES && !is_at_home(path)).collect();
        homeless.sort_unstable_by_key(|(path, _)| *path);
        let mut elsewhere: HashMap<ChunkDigest, Vec<(&RelPath, &Copy)>> = HashMap::default();
        for (path, copy) in theirs.iter().filter(|(_, copy)| copy.len >= CHUNK_BYTES && !copy.is_at_home) {
            if let Some(first) = copy.digests.first() {
                elsewhere.entry(*first).or_default().push((path, copy));
            }
        }
        let mut moves = BTreeMap::new();
        for (path, version) in homeless {
            if elsewhere.is_empty() {
                break;
            }
            let Some(first) = ours(path, *version, CHUNK_BYTES)?.and_then(|digests| digests.first().copied()) else {
                continue;
            };
            let Some(copies) = elsewhere.get_mut(&first) else { continue };
            // The longest that only lacks a tail, if there are several.
            let fitness = |copy: &Copy| if copy.len <= version.len { copy.len + 1 } else { 0 };
            let best = (0..copies.len()).max_by_key(|&at| fitness(copies[at].1)).expect("none is left empty");
            moves.insert(copies.swap_remove(best).0.clone(), (*path).clone());
            if copies.is_empty() {
                elsewhere.remove(&first);
            }
        }
        let steps = in_order(moves.clone(), |name| theirs.keys().any(|held| is_at_or_below(held, name)));
        let moved: Vec<_> = moves.into_iter().filter_map(|(from, to)| Some((to, theirs.remove(&from)?))).collect();
        for (to, mut copy) in moved {
            let version = self.ours[&to];
            let held = Held {
                path: to.clone(),
                len: copy.len,
                digests: std::mem::take(&mut copy.digests),
                attributes: Attributes::UNKNOWN,
            };
            let digests = ours(&to, version, comparable_bytes(&held, version.len))?;
            copy.repair = digests.map(|digests| steps_of(&to, version, &held, &digests));
            // What had that name is renamed over.
            theirs.insert(to, copy);
        }
        Ok(steps.into_iter().map(|(from, to)| Step::Control(Control::Rename { from, to })).collect())
    }
}

/// The steps that make a copy equal to our file of that name, whose comparable bytes have the digests `ours`.
fn steps_of(path: &RelPath, version: Version, copy: &Held, ours: &[ChunkDigest]) -> Vec<Step> {
    let repair = compare(copy, version.len, ours);
    let range = |kind, offset, len| Step::Send(FileRange { kind, offset, len, ..whole(path, version) });
    let mut steps: Vec<_> = repair.patches.iter().map(|&(offset, len)| range(RangeKind::Patch, offset, len)).collect();
    steps.extend(repair.truncate.map(|len| Step::Control(Control::Truncate { path: path.clone(), len })));
    if repair.append_from < version.len {
        steps.push(range(RangeKind::Append, repair.append_from, version.len - repair.append_from));
    }
    steps
}

#[cfg(test)]
mod tests;
