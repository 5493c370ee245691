//! The two hidden commands between a node and the program it manages: see [`paceline::node::guard`].

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use paceline::node::guard;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Failure;

/// What [`super::node`] starts its guard with, and the guard the program: this executable, also when it was replaced on disk.
pub(crate) const GUARD: [&str; 2] = ["/proc/self/exe", "guard"];
const GUARDED: [&str; 2] = ["/proc/self/exe", "guarded"];

#[derive(Args)]
pub(crate) struct GuardOptions {
    /// How many files the program may have open, before it raises that itself
    #[arg(long)]
    descriptors: Option<u64>,
    command: String,
    grace_ms: u64,
}

#[derive(Args)]
pub(crate) struct GuardedOptions {
    guard: i32,
    command: String,
}

/// Ends when the program has, not on a signal.
pub(crate) fn run_guard(options: &GuardOptions) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::runtime(format!("the guard of the program: {error}"));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::default()).map_err(failed)?;
    }
    if let Some(descriptors) = options.descriptors {
        super::descriptors::set(descriptors).map_err(failed)?;
    }
    guard::run(&GUARDED, &options.command, Duration::from_millis(options.grace_ms)).map_err(failed)
}

/// Becomes the program.
pub(crate) fn run_guarded(options: &GuardedOptions) -> Failure {
    Failure::runtime(format!("cannot start the program: {}", guard::exec(options.guard, &options.command)))
}
