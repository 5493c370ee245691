//! `paceline verify`: whether a copy is equal to what it is a copy of.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use paceline::verify::{Compared, Difference, compare};

use super::units::show_bytes;
use super::{Failure, bars, print, say, start_logging};

#[derive(Args)]
#[command(
    after_help = "Exit codes: 0 they are equal; 1 they differ; 2 that cannot be said: something cannot be read, or changed all the time"
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
    let (mut lines, mut unsure) = (Vec::new(), 0_u64);
    let mut differs = |path: &paceline::RelPath, difference: Difference| {
        unsure += u64::from(matches!(difference, Difference::Changing | Difference::Unreadable(_)));
        lines.push(format!("{:<11}{path}{}", kind(&difference), how(&difference)));
    };
    let compared = compare(&options.original, &options.copy, &mut differs, &mut go_on)
        .map_err(|error| Failure::usage(format!("{error}; nothing is known of the copy")))?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let count = lines.len() as u64;
    print(lines).map_err(|error| Failure::runtime(format!("write to stdout: {error}")))?;
    let looked = format!("{} files with {} were compared", compared.files.1, show_bytes(compared.bytes.1));
    match (count, unsure) {
        (0, _) => {
            say(&format!("equal: {looked}"));
            Ok(())
        }
        (_, 0) => Err(Failure::runtime(format!("{looked}, and {count} differ"))),
        _ => Err(Failure::usage(format!(
            "{looked}; {} differ, and of {unsure} it cannot be said: verify again when nothing writes to them, as a user who may read them",
            count - unsure
        ))),
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
        Difference::Unreadable(error) => format!(": {error}"),
        _ => String::new(),
    }
}
