//! What fuzz targets reach of the leader's own files and settings.

use std::path::Path;

use super::files::exclude::Exclude;
use super::files::last_led::{LastLed, unescape};
use crate::datadir::DataDir;
use crate::error::Error;
use crate::types::RelPath;

/// What a directory had when it last led: files and bytes. It is kept anew as it was read, and must come back so.
pub fn last_led(dir: &Path) -> Result<Option<(u64, u64)>, Error> {
    let dir = DataDir::open_unclaimed(dir, None, None)?;
    let Some(read) = LastLed::kept(&dir)? else { return Ok(None) };
    let _ = read.missing(&LastLed::default());
    read.keep(&dir)?;
    assert_eq!(LastLed::kept(&dir)?.as_ref(), Some(&read));
    Ok(Some((read.files, read.bytes)))
}

/// A mount point as the kernel writes it.
pub fn mount_point(text: &str) -> String {
    unescape(text)
}

/// Whether globs exclude a file, and a folder of its name.
pub fn exclude(patterns: &[String], path: &RelPath) -> Result<(bool, bool), Error> {
    let exclude = Exclude::new(patterns)?;
    Ok((exclude.file(path), exclude.folder(path)))
}
