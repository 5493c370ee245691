//! Files of random bytes, and whether two directories have the same.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Fills a file with what no compression shrinks.
pub fn random_file(path: &Path, bytes: u64, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut file = File::create(path).expect("a new file");
    let mut buffer = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let part = &mut buffer[..usize::try_from(left).unwrap_or(usize::MAX).min(1 << 20)];
        random.fill(part);
        file.write_all(part).expect("space on disk");
        left -= part.len() as u64;
    }
}

/// The first of `files` that is not the same beneath both.
pub fn first_difference<'a>(a: &Path, b: &Path, files: &'a [PathBuf]) -> Option<&'a Path> {
    let mut buffers = (vec![0; 1 << 20], vec![0; 1 << 20]);
    files.iter().map(PathBuf::as_path).find(|file| !same(&a.join(file), &b.join(file), &mut buffers))
}

fn same(a: &Path, b: &Path, buffers: &mut (Vec<u8>, Vec<u8>)) -> bool {
    let (Ok(mut a), Ok(mut b)) = (File::open(a), File::open(b)) else { return false };
    let length = |file: &File| file.metadata().map(|meta| meta.len()).ok();
    if length(&a) != length(&b) {
        return false;
    }
    loop {
        let Ok(length) = a.read(&mut buffers.0) else { return false };
        if length == 0 {
            return true;
        }
        if b.read_exact(&mut buffers.1[..length]).is_err() || buffers.0[..length] != buffers.1[..length] {
            return false;
        }
    }
}

/// Ends the process if there is not that much space where temporary directories are made.
pub fn require_space(bytes: u64) {
    let dir = std::env::temp_dir();
    let free = rustix::fs::statvfs(&dir).map_or(u64::MAX, |stat| stat.f_bavail * stat.f_frsize);
    // Others write there too.
    let wanted = bytes + (2 << 30);
    if free < wanted {
        let (dir, free, wanted) = (dir.display(), free >> 20, wanted >> 20);
        println!("INVALID RUN: {free} MiB are free in {dir}, {wanted} are needed: set TMPDIR, or say less with --mib");
        std::process::exit(1);
    }
}

/// Makes durable all that was written to the file system of `dir`.
pub fn flush(dir: &Path) {
    rustix::fs::syncfs(File::open(dir).expect("a directory")).expect("a disk");
}
