//! `paceline verify`: whether a copy is equal to what it is a copy of.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use paceline::RelPath;
use paceline::verify::{Compared, Difference, compare, compare_with_leader};

use super::units::{parse_leader, show_bytes};
use super::{Failure, SECRET_VARIABLE, bars, print, say, secret_from, start_logging};

#[derive(Args)]
#[command(
    after_help = "Compared are files with their content, permissions and times, folders with their permissions, and where links lead; owners are not, nor \
        permissions beyond rwxrwxrwx and those of the owner for folders, nor the time of a file that has changed in the last 5 s. With a leader, what differs is looked at a second time 2 s later, and told if it still does.\n\n\
        Exit codes: 0 they are equal; 1 they differ; 2 that cannot be said: something cannot be read, changed all the time, or the leader \
        cannot be reached, refuses, or speaks only 1.0.0"
)]
pub(crate) struct Options {
    /// The directory that was copied; or, with --data-dir, the address of the leader that has it
    #[arg(value_name = "ORIGINAL|HOST:PORT")]
    original: PathBuf,
    /// Its copy
    #[arg(value_name = "COPY", required_unless_present = "data_dir", conflicts_with = "data_dir")]
    copy: Option<PathBuf>,
    /// The copy that is compared with a live leader. Nothing in it is changed, and it may be followed meanwhile. The leader sends what differs, which is dropped
    #[arg(long, value_name = "COPY")]
    data_dir: Option<PathBuf>,
    /// File with the secret of the leader; one newline at its end is not part of it [or: the secret itself in PACELINE_SECRET]
    #[arg(long, value_name = "FILE", env = "PACELINE_SECRET_FILE", hide_env_values = true)]
    secret_file: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    start_logging();
    let with_leader = options.data_dir.as_ref();
    let bar = std::io::stderr().is_terminal().then(|| {
        let style = match with_leader {
            Some(_) => ProgressStyle::with_template("{bar:20} {percent}%  {pos} of {len} files of the copy"),
            None => ProgressStyle::with_template(
                "{bar:20} {percent}%  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left",
            ),
        };
        bars().add(ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
    });
    let mut go_on = |Compared { bytes, files, .. }: Compared| {
        let (done, all) = if with_leader.is_some() { files } else { bytes };
        if let Some(bar) = &bar {
            bar.set_length(all);
            bar.set_position(done);
        }
        true
    };
    let mut findings = Findings::default();
    let mut differs = |path: &RelPath, difference: Difference| findings.add(path, &difference);
    let compared = match (with_leader, &options.copy) {
        (Some(copy), _) => {
            let leader = options.original.to_str().map(parse_leader);
            let leader = leader.unwrap_or_else(|| Err("is no address".to_owned())).map_err(Failure::usage)?;
            let secret = secret_from(options.secret_file.as_deref(), SECRET_VARIABLE, "secret", "--secret-file")?;
            compare_with_leader(&leader, copy, secret, &mut differs, &mut go_on)
        }
        (None, Some(copy)) => compare(&options.original, copy, &mut differs, &mut go_on),
        (None, None) => return Err(Failure::usage("no copy was given; give COPY, or --data-dir COPY")),
    };
    let compared = compared.map_err(|error| Failure::usage(format!("{error}; nothing is known of the copy")))?;
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
