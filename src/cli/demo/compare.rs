//! Compares a follower's directory with the leader's, byte for byte.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use paceline::RelPath;

/// The replicated files below `root` and their lengths.
fn files(root: &Path) -> io::Result<BTreeMap<RelPath, u64>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let name = format!("{folder}{}", entry.file_name().to_string_lossy());
            let path = RelPath::new(&name).map_err(io::Error::other)?;
            let meta = entry.metadata()?;
            if path.is_reserved() {
                continue;
            }
            if meta.is_dir() {
                folders.push(format!("{name}/"));
            } else {
                found.insert(path, meta.len());
            }
        }
    }
    Ok(found)
}

/// What two directories have in common.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Equal {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
}

/// `Ok(Err(difference))` names the first difference.
///
/// A file that is empty at the leader may be absent at the follower: protocol 1.0.0 cannot express it.
pub(crate) fn compare(leader: &Path, follower: &Path) -> io::Result<Result<Equal, String>> {
    let (ours, mut theirs) = (files(leader)?, files(follower)?);
    let mut equal = Equal { files: 0, bytes: 0 };
    for (path, len) in ours {
        match theirs.remove(&path) {
            None if len == 0 => continue,
            None => return Ok(Err(format!("{path} is missing"))),
            Some(their_len) if their_len != len => {
                return Ok(Err(format!("{path} has {their_len} bytes instead of {len}")));
            }
            Some(_) => {}
        }
        if let Some(at) = first_difference(&path.below(leader), &path.below(follower))? {
            return Ok(Err(format!("{path} differs from byte {at} on")));
        }
        equal.files += 1;
        equal.bytes += len;
    }
    match theirs.keys().next() {
        Some(path) => Ok(Err(format!("{path} is not at the leader"))),
        None => Ok(Ok(equal)),
    }
}

/// Of two files of one length.
fn first_difference(ours: &Path, theirs: &Path) -> io::Result<Option<u64>> {
    const CHUNK_BYTES: usize = 256 << 10;
    let (mut ours, mut theirs) = (File::open(ours)?, File::open(theirs)?);
    let (mut our_chunk, mut their_chunk) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut at = 0;
    loop {
        let n = ours.read(&mut our_chunk)?;
        if n == 0 {
            return Ok(None);
        }
        theirs.read_exact(&mut their_chunk[..n])?;
        if let Some(differs) = (0..n).find(|&i| our_chunk[i] != their_chunk[i]) {
            return Ok(Some(at + differs as u64));
        }
        at += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found_and_bookkeeping_is_passed_over() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, theirs) = (ours.path(), theirs.path());
        let difference = || compare(ours, theirs).unwrap();
        for dir in [ours, theirs] {
            fs::create_dir(dir.join("d")).unwrap();
            fs::write(dir.join("d/x"), vec![1; 300_000]).unwrap();
            fs::write(dir.join(".clustering_id"), dir.as_os_str().as_encoded_bytes()).unwrap();
        }
        fs::write(ours.join("empty"), "").unwrap();
        assert_eq!(difference(), Ok(Equal { files: 1, bytes: 300_000 }));
        let mut changed = vec![1; 300_000];
        changed[299_999] = 2;
        fs::write(theirs.join("d/x"), changed).unwrap();
        assert_eq!(difference(), Err("d/x differs from byte 299999 on".to_owned()));
        fs::write(theirs.join("d/x"), "1").unwrap();
        assert_eq!(difference(), Err("d/x has 1 bytes instead of 300000".to_owned()));
        fs::remove_file(theirs.join("d/x")).unwrap();
        assert_eq!(difference(), Err("d/x is missing".to_owned()));
        fs::remove_file(ours.join("d/x")).unwrap();
        fs::write(theirs.join("more"), "1").unwrap();
        assert_eq!(difference(), Err("more is not at the leader".to_owned()));
    }
}
