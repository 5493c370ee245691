//! The command line: flags, secrets, logging, signals, exit codes. What the commands do is in a module each.
//!
//! The main thread runs the command; a thread receives signals (`signals`), and two write what is printed and logged (`output`).

mod demo;
mod descriptors;
mod etcd;
mod follow;
mod forget;
mod guard;
mod kept;
mod leader;
mod node;
mod output;
mod signals;
mod units;
mod verify;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use paceline::{Error, NodeId, Secret};

pub(crate) use self::output::{bars, print, say, start_logging};
pub(crate) use self::signals::signals;

/// The environment variable that may hold the secret. Not a flag: other users see those in the list of processes.
const SECRET_VARIABLE: &str = "PACELINE_SECRET";

const AFTER_HELP: &str = "\
Examples:
  paceline demo
      See it work: a leader, three followers, one of them stopped and resumed. Needs nothing.
  paceline leader --data-dir /var/lib/app --listen 0.0.0.0:5679 --secret-file /etc/paceline.secret
      Replicate a directory that other programs write.
  paceline follow db1:5679 --data-dir /var/lib/app-copy --secret-file /etc/paceline.secret
      Keep a copy of it.
  paceline follow db1:5679 --data-dir backup --secret-file secret --once
      Bring a copy up to date, and end.

Environment:
  PACELINE_SECRET  the secret, instead of --secret-file
  RUST_LOG         what is logged to stderr (error, warn, info, debug); info by default

Exit codes:
  0  done, or ended by SIGTERM or SIGINT
  1  it failed while starting or running; one line on stderr says why
  2  the command line, a setting or the secret is wrong; no file was touched
  130, 143  a second SIGINT or SIGTERM came before the end was clean";

/// Replicates a data directory from one leader to many followers over TCP; a slow follower never slows the leader.
#[derive(Parser)]
#[command(name = "paceline", version, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Replicate a directory that other programs write, to any number of followers
    Leader(leader::Options),
    /// Keep a copy of a leader's directory
    Follow(follow::Options),
    /// Be a node of a cluster: follow the elected leader, and run a program where this node leads
    Node(Box<node::Options>),
    /// Take a node that is gone for good out of a cluster's in-sync set, so that elections do not wait for it
    Forget(forget::Options),
    /// Show what syncs have deleted or overwritten in a copy, and bring it back
    Kept(kept::Options),
    /// Compare a copy with the directory or the live leader that it is a copy of, byte for byte; nothing is changed
    Verify(verify::Options),
    /// Show replication live, in temporary directories: a follower is stopped, evicted, resumed and rejoins (20 s)
    Demo(demo::Options),
    /// The leader process of the demo
    #[command(hide = true)]
    DemoLeader(demo::LeaderOptions),
    /// The process between a node and its program
    #[command(hide = true)]
    Guard(guard::GuardOptions),
    /// The program, before it becomes that
    #[command(hide = true)]
    Guarded(guard::GuardedOptions),
}

/// What both kinds of node are given.
#[derive(Args)]
pub(crate) struct NodeOptions {
    /// File with the secret that leader and followers share; one newline at its end is not part of it
    /// [or: the secret itself in PACELINE_SECRET]
    #[arg(long, value_name = "FILE", env = "PACELINE_SECRET_FILE", hide_env_values = true)]
    secret_file: Option<PathBuf>,
    /// This node's id, 1 to zik0zj in base 36 [default: the one kept in .clustering_id, made at the first start]
    #[arg(long, value_name = "BASE36", env = "PACELINE_ID")]
    pub(crate) id: Option<NodeId>,
}

impl NodeOptions {
    pub(crate) fn secret(&self) -> Result<Secret, Failure> {
        secret_from(self.secret_file.as_deref(), SECRET_VARIABLE, "secret", "--secret-file")
    }
}

/// What must not be on a command line: from a file if one is given, or else from the environment.
fn secret_from(file: Option<&Path>, variable: &str, what: &str, flag: &str) -> Result<Secret, Failure> {
    if let Some(file) = file {
        let named = format!("{what} file {}", file.display());
        let bytes = std::fs::read(file)
            .map_err(|error| Failure::usage(format!("read {named}: {error}; give a readable {flag}")))?;
        return Secret::from_file_bytes(&bytes).map_err(|error| Failure::usage(format!("{named}: {error}")));
    }
    let Some(value) = std::env::var_os(variable) else {
        return Err(Failure::usage(format!("no {what} was given; give {flag} FILE, or set {variable}")));
    };
    Secret::new(value.into_vec()).map_err(|error| Failure::usage(format!("{variable}: {error}")))
}

/// Why the process ends with another code than 0.
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    pub(crate) fn runtime(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::SecretRefused => Self::usage(error.to_string()),
            _ => Self::runtime(error.to_string()),
        }
    }
}

/// Runs the command that the arguments name.
pub(crate) fn main() -> ExitCode {
    let done = match Cli::try_parse() {
        Ok(cli) => match cli.command {
            Command::Leader(options) => leader::run(options),
            Command::Follow(options) => follow::run(options),
            Command::Node(options) => node::run(&options),
            Command::Forget(options) => forget::run(&options),
            Command::Kept(options) => kept::run(&options),
            Command::Verify(options) => verify::run(&options),
            Command::Demo(options) => demo::run(&options),
            Command::DemoLeader(options) => demo::run_leader(&options),
            Command::Guard(options) => guard::run_guard(&options),
            Command::Guarded(options) => Err(guard::run_guarded(&options)),
        },
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                let _ = error.print();
                return ExitCode::SUCCESS;
            }
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                let _ = error.print();
                return ExitCode::from(2);
            }
            _ => Err(Failure::usage(one_line(&error, std::env::args_os().nth(1).as_deref()))),
        },
    };
    let code = match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            // A peer or a file name may have put line breaks into it.
            let message = message.replace(['\n', '\r'], " ");
            output::say_error(&format!("paceline: error: {message}"));
            ExitCode::from(code)
        }
    };
    output::flush(output::FLUSH_MAX);
    code
}

/// clap's message without its layout: what is wrong; what would be right. `command` is the first argument, perhaps a command.
fn one_line(error: &clap::Error, command: Option<&OsStr>) -> String {
    let text = error.render().to_string();
    let message = text.strip_prefix("error: ").unwrap_or(&text);
    let message = message.split("\n\nUsage:").next().unwrap_or_default();
    let message = message.split("\n\nFor more information").next().unwrap_or_default();
    let parts: Vec<_> =
        message.split("\n\n").map(|part| part.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    if message.contains("; ") || parts.len() > 1 {
        return parts.join("; ");
    }
    let known = command.and_then(OsStr::to_str).filter(|name| Cli::command().find_subcommand(name).is_some());
    let options_of = known.map_or("paceline".to_owned(), |name| format!("paceline {name}"));
    format!("{}; see {options_of} --help", parts.join("; "))
}

/// Fails with a clear message unless `dir` is a folder.
pub(crate) fn require_folder(dir: &Path) -> Result<(), Failure> {
    match std::fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(Failure::runtime(format!("{} is not a directory; give one with --data-dir", dir.display()))),
        Err(error) => {
            let remedy = "create it, or give another --data-dir";
            Err(Failure::runtime(format!("data directory {}: {error}; {remedy}", dir.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mistakes_are_told_on_one_line() {
        for (arguments, remedy) in [
            (&["leader"][..], "see paceline leader --help"),
            (&["leader", "--data-dri", "x"], "--data-dir"),
            (&["follow", "nowhere", "--data-dir", "x"], "write HOST:PORT"),
            (&["follow", "a:1", "--data-dir", "x", "--id", "?"], "base 36"),
            (&["follow", "a:1", "--data-dir"], "see paceline follow --help"),
            (&["leader", "--data-dir", "x", "--listen", "a:1", "--queue-bytes", "many"], "64MiB"),
            (&["node", "--data-dir", "x", "--wrong"], "see paceline node --help"),
            (&["--wrong"], "see paceline --help"),
            (&["leed"], "leader"),
        ] {
            let error = Cli::try_parse_from([&["paceline"], arguments].concat()).err().expect("was taken");
            let line = one_line(&error, arguments.first().map(OsStr::new));
            assert!(!line.contains('\n') && !line.contains("Usage") && line.contains(';'), "{arguments:?}: {line}");
            assert!(line.contains(remedy), "{arguments:?}: {line}");
        }
    }

    /// A heading that one group of options sets holds for all that come after it.
    #[test]
    fn options_are_under_their_own_heading_in_every_help() {
        for command in Cli::command().get_subcommands_mut() {
            command.build();
            for option in command.get_opts() {
                let long = option.get_long().unwrap_or_default();
                let of_etcd = long.starts_with("etcd") || long == "lease-ttl";
                let general = ["data-dir", "listen", "advertise", "id", "secret-file", "adopt", "exclude", "once"];
                match option.get_help_heading() {
                    Some("etcd") => assert!(of_etcd, "{}: --{long} is no option of etcd", command.get_name()),
                    heading => {
                        assert!(!of_etcd, "{}: --{long} is under {heading:?}", command.get_name());
                        assert!(!general.contains(&long) || heading.is_none(), "--{long} is under {heading:?}");
                    }
                }
            }
        }
    }
}
