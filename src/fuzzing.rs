//! What the fuzz targets of `tests/fuzz` reach beside the public interface: readers of what others wrote. Nobody's interface: it
//! may change with any version.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[cfg(feature = "etcd")]
pub use crate::coordinator::etcd::fuzzing::{EtcdCalls, read_etcd_answer};
use crate::datadir::DataDir;
use crate::error::Error;
pub use crate::follower::fuzzing::{FromLeader, Stands, follow_extension, follow_v1, kept_at, kept_name};
pub use crate::leader::fuzzing::{exclude, last_led, mount_point};
use crate::protocol::extension::{ChunkDigest, Held};
use crate::types::{DataSetId, NodeId};

/// What a directory says of itself: the id in `.clustering_id`, or a random one, and the data set in `.paceline/`.
pub fn who_is(dir: &Path) -> Result<(NodeId, Option<DataSetId>), Error> {
    DataDir::open_unclaimed(dir, None, None).map(|dir| (dir.id(), dir.data_set()))
}

/// Makes a directory a node's, of this data set, as a leader's first change does.
pub fn becomes(dir: &Path, id: NodeId, data_set: DataSetId) -> Result<(), Error> {
    let mut dir = DataDir::open_unclaimed(dir, Some(id), None)?;
    dir.claim()?;
    dir.keep_data_set(data_set)
}

/// A file of `.paceline/`, as it is read back.
pub fn own_file(dir: &Path, name: &str) -> Result<Option<String>, Error> {
    DataDir::open_unclaimed(dir, None, None)?.own().read(name, "remedy")
}

/// Writes one.
pub fn keep_own_file(dir: &Path, name: &str, content: &str) -> Result<(), Error> {
    DataDir::open_unclaimed(dir, None, None)?.own().write(name, content)
}

/// What `/proc/self/mountinfo` says of a directory.
pub fn mounted(table: &[u8], root: &Path) -> BTreeMap<PathBuf, (u64, String)> {
    crate::mounts::parse(table, root).into_iter().map(|(place, mount)| (place, (mount.id, mount.device))).collect()
}

/// The send queue of a socket in `/proc/self/net/tcp`.
pub fn send_queue(table: &str, inode: u64) -> Option<u64> {
    crate::sendqueue::queued(table, inode)
}

/// The parent in `/proc/PID/stat`.
pub fn parent(stat: &str) -> Option<i32> {
    crate::node::parent_in(stat)
}

/// The version in `/proc/sys/kernel/osrelease`.
pub fn kernel(release: &str) -> Option<(u32, u32)> {
    crate::uncached::version(release)
}

/// What it takes to make a follower's copy equal to the first `len` bytes of a file: where it is cut, and appended to from.
pub fn repair(held: &Held, len: u64, ours: &[ChunkDigest]) -> (Option<u64>, u64) {
    let comparable = crate::index::chunks::comparable_bytes(held, len);
    let repair = crate::index::chunks::compare(held, len, &ours[..chunks(comparable).min(ours.len())]);
    for (offset, bytes) in &repair.patches {
        assert!(offset + bytes <= held.len.min(len), "a patch beyond the file");
    }
    (repair.truncate, repair.append_from)
}

fn chunks(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(crate::protocol::extension::CHUNK_BYTES)).unwrap_or(usize::MAX)
}
