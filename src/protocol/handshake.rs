//! The handshake, the only part of the leader's side that is not within the LZ4 frame.

use std::io::{Read, Write};

use super::ProtocolError;
use crate::types::{NodeId, Secret};

/// What a follower begins with, and what a leader that reads anything else answers: "REPLI", version 1.0.0.
pub const START_HEADER: [u8; 8] = *b"REPLI\x01\x00\x00";
/// The leader's answer to the right secret.
pub const ACCEPTED: u8 = 0;
/// The leader's answer to a wrong secret, after which it closes.
pub const REFUSED: u8 = 1;

/// Leader: reads the start header. Blocks as long as `peer` does.
pub fn read_start_header(peer: &mut impl Read) -> Result<(), ProtocolError> {
    let mut header = [0; 8];
    peer.read_exact(&mut header)?;
    if header != START_HEADER {
        return Err(ProtocolError::StartHeader(header));
    }
    Ok(())
}

/// Leader: reads the secret the follower offers. Blocks as long as `peer` does.
pub fn read_secret(peer: &mut impl Read) -> Result<Vec<u8>, ProtocolError> {
    let mut length = [0];
    peer.read_exact(&mut length)?;
    let mut secret = vec![0; usize::from(length[0])];
    peer.read_exact(&mut secret)?;
    if secret.is_empty() {
        return Err(ProtocolError::EmptySecret);
    }
    Ok(secret)
}

/// Leader: reads the follower's id. Blocks as long as `peer` does.
pub fn read_node_id(peer: &mut impl Read) -> Result<NodeId, ProtocolError> {
    let mut id = [0; 4];
    peer.read_exact(&mut id)?;
    let id = i32::from_le_bytes(id);
    NodeId::new(id).map_err(|_| ProtocolError::NodeId(id))
}

/// Follower: writes start header and secret, in one write.
pub fn write_hello(peer: &mut impl Write, secret: &Secret) -> std::io::Result<()> {
    let secret = secret.as_bytes();
    let mut hello = START_HEADER.to_vec();
    hello.push(u8::try_from(secret.len()).expect("a Secret has at most 255 bytes"));
    hello.extend_from_slice(secret);
    peer.write_all(&hello)
}

/// Follower: writes its id, once it was accepted.
pub fn write_node_id(peer: &mut impl Write, id: NodeId) -> std::io::Result<()> {
    peer.write_all(&id.get().to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_reads_what_the_follower_writes() {
        let mut wire = Vec::new();
        write_hello(&mut wire, &Secret::new("s3cret").unwrap()).unwrap();
        write_node_id(&mut wire, NodeId::new(35).unwrap()).unwrap();
        assert_eq!(wire, b"REPLI\x01\x00\x00\x06s3cret\x23\x00\x00\x00");
        let mut wire = &wire[..];
        read_start_header(&mut wire).unwrap();
        assert_eq!(read_secret(&mut wire).unwrap(), b"s3cret");
        assert_eq!(read_node_id(&mut wire).unwrap().get(), 35);
    }

    #[test]
    fn what_is_not_a_handshake_is_refused() {
        let other = read_start_header(&mut &b"GET / HTTP/1.1"[..]).unwrap_err();
        assert!(matches!(other, ProtocolError::StartHeader(_)) && !other.is_disconnect());
        assert!(matches!(read_secret(&mut &b"\x00"[..]), Err(ProtocolError::EmptySecret)));
        assert!(read_secret(&mut &b"\x05abcd"[..]).unwrap_err().is_disconnect());
        for id in [0, -1, i32::MIN] {
            assert!(matches!(read_node_id(&mut &id.to_le_bytes()[..]), Err(ProtocolError::NodeId(_))));
        }
    }
}
