//! `paceline kept`: what syncs have taken away from a copy, and how to bring it back.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use paceline::follower::Kept;

use super::units::{parse_duration, parse_size, show_bytes};
use super::{Failure, print, require_folder, say, start_logging};

#[derive(Args)]
pub(crate) struct Options {
    /// The data directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Show the files that were kept at this time, as the table names it
    #[arg(long, value_name = "TIME", conflicts_with = "restore")]
    files: Option<String>,
    /// Put what was kept at this time back in its place: all of it, or the one FILE. A follower that follows afterwards deletes
    /// it again if its leader does not have it
    #[arg(long, value_name = "TIME")]
    restore: Option<String>,
    /// The file to restore, as --files shows it
    #[arg(value_name = "FILE", requires = "restore")]
    file: Option<String>,
    /// Restore also over files that are there now, which are lost
    #[arg(long, requires = "restore")]
    overwrite: bool,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    require_folder(&options.dir)?;
    start_logging();
    let kept = Kept::of(&options.dir)?;
    if let Some(time) = &options.restore {
        let count = kept.restore(time, options.file.as_deref(), options.overwrite)?;
        let files = if count == 1 { "file" } else { "files" };
        say(&format!("restored {count} {files} of {time} in {}", options.dir.display()));
        return Ok(());
    }
    let times = kept.times()?;
    if let Some(time) = &options.files {
        let found = times.get(time);
        let found = found
            .ok_or_else(|| Failure::runtime(format!("nothing was kept at {time}; leave --files out to see when")))?;
        return show(found.files.iter().map(|(name, len)| format!("{:>12}  {name}", show_bytes(*len))));
    }
    if times.is_empty() {
        say(&format!("nothing is kept in {}", options.dir.display()));
        return Ok(());
    }
    let head = format!("{:<22}{:>10}{:>12}  {}", "kept by the sync of", "files", "bytes", "what it did to them");
    let rows = times.iter().map(|(time, found)| {
        let bytes = show_bytes(found.bytes);
        let why = found.why.as_deref().unwrap_or("it did not get to its end");
        format!("{time:<22}{:>10}{bytes:>12}  {why}", found.files.len())
    });
    show(std::iter::once(head).chain(rows))
}

fn show(table: impl Iterator<Item = String>) -> Result<(), Failure> {
    print(table).map_err(|error| Failure::runtime(format!("write to stdout: {error}")))
}

/// What a follower keeps, and who leads has kept since it followed.
#[derive(Args)]
pub(crate) struct KeepOptions {
    /// How long to keep what a sync deletes or overwrites, see 'paceline kept'; 0s: not at all
    #[arg(long, value_name = "DUR", default_value = "7d", value_parser = parse_duration, env = "PACELINE_KEEP")]
    keep: Duration,
    /// How much of that to keep at most; on a full disk it is dropped
    #[arg(long, value_name = "SIZE", default_value = "16GiB", value_parser = parse_size, env = "PACELINE_KEEP_BYTES")]
    keep_bytes: u64,
}

impl KeepOptions {
    pub(crate) fn bounds(&self) -> (Duration, u64) {
        (self.keep, self.keep_bytes)
    }
}
