//! Reading files of the directory as they were announced.

use std::io;
use std::io::Read;
use std::time::Duration;

use crate::error::AppendError;
use crate::index::FileId;
use crate::leader::core::Core;
use crate::leader::stream::Content;
use crate::leader::stream::INLINE_BYTES_MAX;
use crate::sys::fs::File;
use crate::sys::fs::Metadata;
use crate::sys::fs::MetadataExt;
use crate::sys::thread;
use crate::sys::time::Instant;
use crate::types::RelPath;
use crate::types::StreamPosition;

/// How long a host may take to announce what it has put in a file's place, before it is taken as it is found; and how often that is looked at meanwhile.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(1);

const ANNOUNCED_LOOK_EVERY: Duration = Duration::from_millis(2);

impl Core {
    /// Opens the file of a generation, announced as `path` at some time; `None` if there is none, or not with `len` bytes.
    ///
    /// If another file than the one that was announced is in its place, or none, its host is about to say so: waits for that, up to [`ANNOUNCED_WITHIN`]. Otherwise
    /// some of the new content would go as if it were all of the old; or followers would delete what the host has renamed, and be in sync without it.
    pub(in crate::leader) fn open_announced(
        &self,
        path: &RelPath,
        generation: u64,
        len: u64,
    ) -> io::Result<Option<File>> {
        let until = Instant::now() + ANNOUNCED_WITHIN;
        loop {
            // Bytes below an announced length are on disk before they are announced: a file opened after this look has
            // them, or is newer, and then the index will say so.
            let Some(path) = self.stream.find(path, generation) else { return Ok(None) };
            let Some(file) = self.dir.root().file(&path)? else {
                if Instant::now() >= until {
                    return Ok(None);
                }
                thread::park_timeout(ANNOUNCED_LOOK_EVERY);
                continue;
            };
            let meta = file.metadata()?;
            // It may be there for a moment only, in another one's place. Is it still, now that it is noted which one is read,
            // then whoever moves it away finds the note after that.
            let id = id_of(&meta);
            let (now, announced) = self.stream.announced(&path);
            let is_another = now.generation == generation && announced.is_some_and(|announced| announced != id);
            if is_another && Instant::now() < until {
                thread::park_timeout(ANNOUNCED_LOOK_EVERY);
                continue;
            }
            if meta.len() < len {
                return Ok(None);
            }
            if self.stream.reads(&path, generation, id) {
                let now = self.dir.root().metadata(&path)?;
                if now.is_some_and(|now| id_of(&now) == id) {
                    return Ok(Some(file));
                }
            }
        }
    }

    /// Announces the file's content as it is on disk.
    ///
    /// Refused, where announcements are held back, if it was not `admitted` before. Reading and announcing are one step under the file's lock, which the caller holds: whoever reads last announces last.
    pub(in crate::leader) fn announce_locked(
        &self,
        path: &RelPath,
        admitted: bool,
    ) -> Result<StreamPosition, AppendError> {
        let failed = |source| AppendError::Io { doing: "read", path: path.clone(), source };
        let announce = |content: Content<'_>, file| match admitted {
            true => self.stream.replace(path, content, file),
            false => self.stream.replace_at_once(path, content, file),
        };
        let opened = self.dir.root().file(path).map_err(failed)?;
        let file = opened.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let meta = file.metadata().map_err(failed)?;
        let length = meta.len();
        if length > INLINE_BYTES_MAX {
            return announce(Content::OnDisk(length), id_of(&meta));
        }
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes).map_err(failed)?;
        let announced = announce(Content::Bytes(&bytes), id_of(&meta))?;
        if self.blocks.is_watched() {
            self.blocks.sent(path, self.stream.version(path).generation, &bytes);
        }
        Ok(announced)
    }
}

pub(in crate::leader) fn id_of(meta: &Metadata) -> FileId {
    (meta.dev(), meta.ino())
}
