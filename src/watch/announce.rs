//! What the watcher asks of a leader, so that its rules can be tested without sockets.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::digests::Stamps;
use crate::error::AppendError;
use crate::first_look::FirstLook;
use crate::index::Version;
use crate::index::blocks::Blocks;
use crate::leader::{Leader, Window};
use crate::protocol::extension::ChunkDigest;
use crate::types::RelPath;

/// The part of [`Leader`]'s API that the watcher uses; each method means what it means there.
pub(super) trait Announce: Send + 'static {
    fn append(&self, path: &RelPath, offset: u64, bytes: &[u8]) -> Result<(), AppendError>;
    fn append_from_file(&self, path: &RelPath, offset: u64, length: u64) -> Result<(), AppendError>;
    fn replace(&self, path: &RelPath) -> Result<(), AppendError>;
    fn delete(&self, path: &RelPath) -> Result<(), AppendError>;
    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<(), AppendError>;
    fn truncate(&self, path: &RelPath, len: u64) -> Result<(), AppendError>;
    fn write_at(&self, path: &RelPath, offset: u64, bytes: &[u8]) -> Result<(), AppendError>;
    fn version(&self, path: &RelPath) -> Option<Version>;
    fn find(&self, path: &RelPath, generation: u64) -> Option<RelPath>;
    fn vouches_for(&self, path: &RelPath, device: u64, inode: u64) -> bool;
    fn files(&self) -> Vec<(RelPath, u64)>;
    fn take_first_look(&self) -> Option<FirstLook>;
    fn was_found_as(&self, path: &RelPath, looks: &Stamps) -> bool;
    fn blocks(&self) -> &Blocks;
    fn note_reads(&self);
    fn proven(&self, generation: u64, looks: Stamps);
    fn forget(&self, generation: u64);
    fn chunk(&self, generation: u64, at: u64, bytes: u64) -> Option<ChunkDigest>;
    fn has_mode(&self, path: &RelPath, mode: u32) -> Result<(), AppendError>;
    fn look_again(&self, path: &RelPath);
    fn replicates(&self, path: &RelPath) -> bool;
    fn enters(&self, folder: &RelPath) -> bool;
    fn is_unreadable(&self, path: &RelPath, error: &io::Error);
    fn is_readable(&self, path: &RelPath);
    /// How much of a core comparing may take.
    fn compare_percent(&self) -> u32;
    /// Announced bytes after which [`pace`](Self::pace) is called.
    fn pace_bytes(&self) -> u64;
    /// Waits a little if followers that keep up have much to acknowledge yet.
    fn pace(&self);
}

/// The window is looked at after this much, or after a quarter of it if that is less: a burst must not fill the queues before.
const PACE_BYTES_MAX: u64 = 8 << 20;

/// How long one [`Announce::pace`] waits at most. With one after every 8 MiB a follower that reads slowly but never stops
/// cannot hold the others below 80 MiB/s, and is evicted as it should be; with a small window it can hold them at
/// a quarter of it each time.
const PACE_MAX: Duration = Duration::from_millis(100);

/// A leader, and the window that the watcher keeps.
pub(super) struct Paced {
    pub(super) leader: Arc<Leader>,
    pub(super) window: Option<Window>,
}

impl Announce for Paced {
    fn append(&self, path: &RelPath, offset: u64, bytes: &[u8]) -> Result<(), AppendError> {
        self.leader.append(path, offset, bytes).map(drop)
    }

    fn append_from_file(&self, path: &RelPath, offset: u64, length: u64) -> Result<(), AppendError> {
        self.leader.append_from_file(path, offset, length).map(drop)
    }

    fn replace(&self, path: &RelPath) -> Result<(), AppendError> {
        self.leader.replace(path).map(drop)
    }

    fn delete(&self, path: &RelPath) -> Result<(), AppendError> {
        self.leader.delete(path).map(drop)
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<(), AppendError> {
        self.leader.rename(from, to).map(drop)
    }

    fn truncate(&self, path: &RelPath, len: u64) -> Result<(), AppendError> {
        self.leader.truncate(path, len).map(drop)
    }

    fn write_at(&self, path: &RelPath, offset: u64, bytes: &[u8]) -> Result<(), AppendError> {
        self.leader.write_at(path, offset, bytes).map(drop)
    }

    fn version(&self, path: &RelPath) -> Option<Version> {
        self.leader.version(path)
    }

    fn find(&self, path: &RelPath, generation: u64) -> Option<RelPath> {
        self.leader.find(path, generation)
    }

    fn vouches_for(&self, path: &RelPath, device: u64, inode: u64) -> bool {
        self.leader.vouches_for(path, device, inode)
    }

    fn files(&self) -> Vec<(RelPath, u64)> {
        self.leader.files()
    }

    fn take_first_look(&self) -> Option<FirstLook> {
        self.leader.take_first_look()
    }

    fn was_found_as(&self, path: &RelPath, looks: &Stamps) -> bool {
        self.leader.was_found_as(path, looks)
    }

    fn blocks(&self) -> &Blocks {
        self.leader.blocks()
    }

    fn note_reads(&self) {
        self.leader.note_reads();
    }

    fn proven(&self, generation: u64, looks: Stamps) {
        self.leader.proven(generation, looks);
    }

    fn forget(&self, generation: u64) {
        self.leader.forget(generation);
    }

    fn chunk(&self, generation: u64, at: u64, bytes: u64) -> Option<ChunkDigest> {
        self.leader.chunk(generation, at, bytes)
    }

    fn has_mode(&self, path: &RelPath, mode: u32) -> Result<(), AppendError> {
        self.leader.has_mode(path, mode)
    }

    fn look_again(&self, path: &RelPath) {
        self.leader.look_again(path);
    }

    fn replicates(&self, path: &RelPath) -> bool {
        self.leader.replicates(path)
    }

    fn enters(&self, folder: &RelPath) -> bool {
        self.leader.enters(folder)
    }

    fn is_unreadable(&self, path: &RelPath, error: &io::Error) {
        self.leader.is_unreadable(path, error);
    }

    fn is_readable(&self, path: &RelPath) {
        self.leader.is_readable(path);
    }

    fn compare_percent(&self) -> u32 {
        self.leader.compare_percent()
    }

    fn pace_bytes(&self) -> u64 {
        self.window.as_ref().map_or(PACE_BYTES_MAX, |window| (window.bytes / 4).clamp(1, PACE_BYTES_MAX))
    }

    fn pace(&self) {
        if let Some(window) = &self.window {
            self.leader.wait_for_window(window, PACE_MAX);
        }
    }
}
