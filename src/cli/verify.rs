//! `paceline verify`: whether a copy is equal to what it is a copy of.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use paceline::RelPath;
use paceline::verify::{Compared, Difference, compare};

use super::units::show_bytes;
use super::{Failure, bars, print, say, start_logging};

#[derive(Args)]
#[command(
    after_help = "Compared are files with their content, permissions and times, folders with their permissions, and where links lead; owners are not, nor \
        permissions beyond rwxrwxrwx and those of the owner for folders, nor the time of a file that has changed in the last 5 s.\n\n\
        Exit codes: 0 they are equal; 1 they differ; 2 that cannot be said: something cannot be read, or changed all the time"
)]
pub(crate) struct Options {
    /// The directory that was copied
    #[arg(value_name = "ORIGINAL")]
    original: PathBuf,
    /// Its copy
    #[arg(value_name = "COPY")]
    copy: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    start_logging();
    let bar = std::io::stderr().is_terminal().then(|| {
        let style =
            ProgressStyle::with_template("{bar:20} {percent}%  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left");
        bars().add(ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
    });
    let mut go_on = |Compared { bytes: (done, all), .. }: Compared| {
        if let Some(bar) = &bar {
            bar.set_length(all);
            bar.set_position(done);
        }
        true
    };
    let mut findings = Findings::default();
    let mut differs = |path: &RelPath, difference: Difference| findings.add(path, &difference);
    let compared = compare(&options.original, &options.copy, &mut differs, &mut go_on)
        .map_err(|error| Failure::usage(format!("{error}; nothing is known of the copy")))?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    findings.end(compared)
}

/// What was found to differ.
#[derive(Default)]
struct Findings {
    lines: Vec<String>,
    /// Of which it is told last.
    last: Option<RelPath>,
    /// How many names differ, and of how many nobody can say it.
    different: u64,
    unsure: u64,
}

impl Findings {
    fn add(&mut self, path: &RelPath, difference: &Difference) {
        if self.last.as_ref() != Some(path) {
            let is_unsure = matches!(difference, Difference::Changing | Difference::Unreadable(_));
            *(if is_unsure { &mut self.unsure } else { &mut self.different }) += 1;
            self.last = Some(path.clone());
        }
        self.lines.push(format!("{:<11}{path}{}", kind(difference), how(difference)));
    }

    fn end(self, compared: Compared) -> Result<(), Failure> {
        let Self { lines, different, unsure, .. } = self;
        print(lines).map_err(|error| Failure::runtime(format!("write to stdout: {error}")))?;
        let looked = format!("{} files with {} were compared", compared.files.1, show_bytes(compared.bytes.1));
        match (different, unsure) {
            (0, 0) => {
                say(&format!("equal: {looked}"));
                Ok(())
            }
            (_, 0) => Err(Failure::runtime(format!("{looked}, and {different} differ"))),
            _ => Err(Failure::usage(format!(
                "{looked}; {different} differ, and of {unsure} it cannot be said: verify again when nothing writes to them, as a user who may read them"
            ))),
        }
    }
}

fn kind(difference: &Difference) -> &'static str {
    match difference {
        Difference::Missing => "missing",
        Difference::Extra => "extra",
        Difference::Changing => "changing",
        Difference::Unreadable(_) => "unreadable",
        _ => "different",
    }
}

/// What is told beside the name.
fn how(difference: &Difference) -> String {
    const SHOWN: usize = 3;
    match difference {
        Difference::Content { original, copy, ranges } => {
            let lengths = if original == copy { String::new() } else { format!(", {copy} of {original} bytes") };
            let shown = ranges.iter().take(SHOWN).map(|(offset, bytes)| format!("{bytes} bytes at {offset}"));
            let mut shown: Vec<_> = shown.collect();
            if ranges.len() > SHOWN {
                shown.push(format!("{} more ranges", ranges.len() - SHOWN));
            }
            let ranges = if shown.is_empty() { String::new() } else { format!(": {}", shown.join(", ")) };
            format!("{lengths}{ranges}")
        }
        Difference::Kind { original, copy } => format!(": a {copy}, not a {original}"),
        Difference::Mode { original, copy } => format!(": mode {copy:03o}, not {original:03o}"),
        Difference::Time { original, copy } => {
            let apart = Duration::from_nanos(original.abs_diff(*copy));
            format!(": its time is {apart:?} {}", if copy < original { "earlier" } else { "later" })
        }
        Difference::Target { original, copy } => {
            let [original, copy] = [original, copy].map(|target| String::from_utf8_lossy(target));
            format!(": leads to {copy:?}, not {original:?}")
        }
        Difference::Unreadable(error) => format!(": {error}"),
        _ => String::new(),
    }
}
