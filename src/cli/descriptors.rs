//! How many files the process may have open: as many as the system lets it.
//!
//! The soft limit is low by custom (1,024), for the sake of programs that use `select`; whoever does not is expected to raise
//! it. Programs that we start get back what we were started with.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one; returns what it was, if it was lower. That it cannot be raised is no reason not to go on.
pub(crate) fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return None;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => current,
        Err(error) => {
            log::warn!("cannot raise the limit of open files: {error}");
            None
        }
    }
}

/// Sets the soft limit, for this process and those it starts.
pub(crate) fn set(current: u64) -> std::io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum })?)
}
