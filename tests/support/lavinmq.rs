//! A follower that does what LavinMQ 2.5 to 2.8 do: one thread, blocking; it writes each request before it reads the next
//! entry of the list, replaces a file by way of `<name>.tmp`, and acknowledges each action once it is wholly done.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use paceline::protocol::{self, ProtocolError};
use paceline::{NodeId, RelPath};
use sha1::{Digest, Sha1};
use tempfile::TempDir;

use super::contents;
use super::fake_follower::FakeFollower;

pub struct LavinMq {
    pub id: NodeId,
    pub dir: TempDir,
    socket: TcpStream,
    thread: JoinHandle<ProtocolError>,
}

impl LavinMq {
    /// Goes on until the connection ends.
    pub fn start(peer: FakeFollower, dir: TempDir) -> Self {
        Self::start_paused(peer, dir, channel().1)
    }

    /// Reads nothing of what it asked for in the first round until the other end of `pause` is gone.
    pub fn start_paused(peer: FakeFollower, dir: TempDir, pause: Receiver<()>) -> Self {
        let root = dir.path().to_owned();
        let (id, socket) = (peer.id(), peer.socket.try_clone().unwrap());
        Self { id, dir, socket, thread: std::thread::spawn(move || follow(peer, &root, &pause).unwrap_err()) }
    }

    /// Ends the connection, if the leader has not; nothing it sent may have been the reason.
    pub fn stop(self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        let error = self.thread.join().unwrap();
        assert!(error.is_disconnect(), "{error}");
    }
}

fn follow(mut peer: FakeFollower, root: &Path, pause: &Receiver<()>) -> Result<(), ProtocolError> {
    for _ in 0..2 {
        round(&mut peer, root, pause)?;
    }
    loop {
        let Some(path) = protocol::read_name(&mut peer.frame)? else { continue };
        let mut length = [0; 8];
        peer.frame.read_exact(&mut length)?;
        let length = i64::from_le_bytes(length);
        let full = path.below(root);
        match length {
            0 => drop(fs::remove_file(full)),
            ..0 => {
                fs::create_dir_all(full.parent().unwrap())?;
                copy(&mut peer, length, File::options().append(true).create(true).open(full)?)?;
            }
            1.. => {
                fs::create_dir_all(full.parent().unwrap())?;
                let temporary = root.join(format!("{path}.tmp"));
                copy(&mut peer, length, File::create(&temporary)?)?;
                fs::rename(temporary, full)?;
            }
        }
        let done = (4 + path.as_str().len() + 8) as u64 + length.unsigned_abs();
        peer.socket.write_all(&done.to_le_bytes())?;
    }
}

fn round(peer: &mut FakeFollower, root: &Path, pause: &Receiver<()>) -> Result<(), ProtocolError> {
    let mut missing: Vec<RelPath> = Vec::new();
    let mut listed = HashSet::new();
    while let Some(entry) = protocol::read_list_entry(&mut peer.frame)? {
        let same = fs::read(entry.path.below(root)).is_ok_and(|had| *Sha1::digest(had) == entry.sha1);
        if !same {
            protocol::write_name(&mut peer.socket, &entry.path)?;
            missing.push(entry.path.clone());
        }
        listed.insert(entry.path.to_string());
    }
    protocol::write_end(&mut peer.socket)?;
    for name in contents(root).into_keys().filter(|name| !listed.contains(name)) {
        fs::remove_file(root.join(name))?;
    }
    let _ = pause.recv();
    for path in missing {
        let size = protocol::read_file_size(&mut peer.frame)?;
        let full = path.below(root);
        fs::create_dir_all(full.parent().unwrap())?;
        let _ = fs::remove_file(&full);
        copy(peer, size.cast_signed(), File::create(full)?)?;
    }
    Ok(())
}

fn copy(peer: &mut FakeFollower, length: i64, mut file: File) -> Result<(), ProtocolError> {
    let copied = io::copy(&mut (&mut peer.frame).take(length.unsigned_abs()), &mut file)?;
    if copied < length.unsigned_abs() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(())
}
