//! Full sync: lists, requests, and the size before each content.

use std::io::{Read, Write};

use super::{NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, ProtocolError, checked_length};
use crate::types::RelPath;

/// The SHA-1 of a file's content.
pub type Sha1Sum = [u8; 20];

/// A file of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// Its name.
    pub path: RelPath,
    /// The SHA-1 of its content.
    pub sha1: Sha1Sum,
}

/// Writes one entry of a list.
pub fn write_list_entry(peer: &mut impl Write, path: &RelPath, sha1: &Sha1Sum) -> std::io::Result<()> {
    write_name(peer, path)?;
    peer.write_all(sha1)
}

/// Reads one entry of a list; `None` is the list's end. Blocks as long as `peer` does.
pub fn read_list_entry(peer: &mut impl Read) -> Result<Option<ListEntry>, ProtocolError> {
    let Some(path) = read_name(peer)? else { return Ok(None) };
    let mut sha1 = [0; 20];
    peer.read_exact(&mut sha1)?;
    Ok(Some(ListEntry { path, sha1 }))
}

/// Writes a name: alone it is a request.
pub fn write_name(peer: &mut impl Write, path: &RelPath) -> std::io::Result<()> {
    let name = path.as_str().as_bytes();
    peer.write_all(&name_length(name.len()).to_le_bytes())?;
    peer.write_all(name)
}

/// Reads a name; `None` is the end of a list or of the requests. Blocks as long as `peer` does.
pub fn read_name(peer: &mut impl Read) -> Result<Option<RelPath>, ProtocolError> {
    let mut length = [0; 4];
    peer.read_exact(&mut length)?;
    let length = i64::from(i32::from_le_bytes(length));
    let length = checked_length("name length", length, NAME_BYTES_MAX as u64)?;
    if length == 0 {
        return Ok(None);
    }
    let mut name = [0; NAME_BYTES_MAX];
    let name = &mut name[..usize::try_from(length).expect("at most NAME_BYTES_MAX")];
    peer.read_exact(name)?;
    Ok(Some(RelPath::from_bytes(name)?))
}

/// Ends a list, or the requests.
pub fn write_end(peer: &mut impl Write) -> std::io::Result<()> {
    peer.write_all(&0_i32.to_le_bytes())
}

/// Reads the size that goes before a requested file's content. Blocks as long as `peer` does.
pub fn read_file_size(peer: &mut impl Read) -> Result<u64, ProtocolError> {
    let mut size = [0; 8];
    peer.read_exact(&mut size)?;
    checked_length("file size", i64::from_le_bytes(size), PAYLOAD_BYTES_MAX)
}

/// The length of a checked name, as it goes over the wire.
pub(super) fn name_length(length: usize) -> i32 {
    i32::try_from(length).expect("a RelPath has at most NAME_BYTES_MAX bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_requests_come_back_as_written() {
        let path = RelPath::new("dir/ä").unwrap();
        let mut wire = Vec::new();
        write_list_entry(&mut wire, &path, &[7; 20]).unwrap();
        write_end(&mut wire).unwrap();
        let mut read = &wire[..];
        assert_eq!(read_list_entry(&mut read).unwrap(), Some(ListEntry { path, sha1: [7; 20] }));
        assert_eq!(read_list_entry(&mut read).unwrap(), None);
        assert!(read.is_empty());
    }

    #[test]
    fn hostile_lengths_allocate_nothing_and_are_refused() {
        for length in [-1, 4097, i32::MAX, i32::MIN] {
            let error = read_name(&mut &length.to_le_bytes()[..]).unwrap_err();
            assert!(matches!(error, ProtocolError::Length { .. }), "{length}: {error}");
        }
        for size in [-1, i64::MAX, i64::MIN] {
            let error = read_file_size(&mut &size.to_le_bytes()[..]).unwrap_err();
            assert!(matches!(error, ProtocolError::Length { .. }), "{size}: {error}");
        }
    }
}
