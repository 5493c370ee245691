//! Files that are read back.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use paceline::follower::Kept;
use paceline::fuzzing::{becomes, keep_own_file, kept_at, kept_name, last_led, own_file, who_is};
use paceline::{DataSetId, NodeId};
use sha1::{Digest, Sha1};
use tempfile::TempDir;

use paceline_fuzz::{bounded, folder, input};

/// What `.paceline/` ends its files with.
fn sealed(content: &[u8]) -> Vec<u8> {
    let sum: String = Sha1::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    [content, format!("sha1 {sum}\n").as_bytes()].concat()
}

/// Buffers, tables of mounts, and a file of `.paceline/`, which is a megabyte at most.
const FILES_BYTES_MAX: usize = 8 << 20;

pub fn own(input: &[u8]) {
    thread_local! {
        static DIR: RefCell<Option<TempDir>> = const { RefCell::new(None) };
    }
    let rest = &mut &input[..];
    let kind = input::byte(rest);
    let content = *rest;
    DIR.with_borrow_mut(|dir| {
        let dir = dir.get_or_insert_with(folder).path();
        fs::create_dir_all(dir.join(".paceline")).unwrap();
        let file = if kind & 0x80 == 0 { sealed(content) } else { content.to_vec() };
        bounded(FILES_BYTES_MAX + input.len() * 64, 64 << 10, || read_back(dir, kind % 5, content, &file));
        for name in ["data-set", "last-led", "x"] {
            let _ = fs::remove_file(dir.join(".paceline").join(name));
        }
        let _ = fs::remove_file(dir.join(".clustering_id"));
        let _ = fs::remove_dir_all(dir.join(".paceline/kept"));
    });
}

fn read_back(dir: &Path, kind: u8, content: &[u8], file: &[u8]) {
    match kind {
        0 => {
            fs::write(dir.join(".clustering_id"), content).unwrap();
            let _ = who_is(dir).map_err(|error| error.to_string());
            // Whatever was there, it can be made a node's.
            let (id, data_set) = (NodeId::new(36).unwrap(), DataSetId::from_bytes([content.len() as u8; 16]));
            becomes(dir, id, data_set).unwrap();
            assert_eq!(who_is(dir).unwrap(), (id, Some(data_set)));
        }
        1 => {
            fs::write(dir.join(".paceline/data-set"), file).unwrap();
            if let Ok((_, Some(id))) = who_is(dir).map_err(|error| error.to_string()) {
                assert!(String::from_utf8_lossy(content).trim_end().eq_ignore_ascii_case(&id.to_string()));
            }
        }
        2 => {
            fs::write(dir.join(".paceline/last-led"), file).unwrap();
            let _ = last_led(dir).map_err(|error| error.to_string());
        }
        3 => {
            fs::write(dir.join(".paceline/x"), file).unwrap();
            if let Ok(Some(text)) = own_file(dir, "x").map_err(|error| error.to_string()) {
                keep_own_file(dir, "x", &text).unwrap();
                assert_eq!(own_file(dir, "x").unwrap(), Some(text));
            }
        }
        _ => kept(dir, content),
    }
}

/// Names of folders of what is kept.
fn kept(dir: &Path, content: &[u8]) {
    if let Ok(seconds) = <[u8; 8]>::try_from(content).map(u64::from_le_bytes) {
        // Up to the year 9999.
        let seconds = seconds % 253_402_300_800;
        assert_eq!(kept_at(&kept_name(seconds)), Some(seconds));
    }
    let Ok(name) = std::str::from_utf8(content) else { return };
    let at = kept_at(name);
    if let Some(at) = at {
        assert_eq!(Some(&*kept_name(at)), name.get(..18));
    }
    if name.contains(['/', '\0']) || matches!(name, "" | "." | "..") || name.len() > 255 {
        return;
    }
    let folder = dir.join(".paceline/kept").join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("file"), "kept").unwrap();
    let times = Kept::of(dir).and_then(|kept| kept.times()).unwrap();
    assert_eq!(times.len(), usize::from(at.is_some()));
}
