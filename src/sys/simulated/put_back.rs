//! Faults of the past that were put back into the code (`tests/known_faults`), each behind a switch, so that one build has them all.

use std::sync::OnceLock;

static SWITCHED_ON: OnceLock<String> = OnceLock::new();

/// Switches one on, for all worlds of this process.
pub fn put_back(fault: &str) {
    let _ = SWITCHED_ON.set(fault.to_owned());
}

/// Whether this fault is to be there.
#[must_use]
pub fn is_put_back(fault: &str) -> bool {
    SWITCHED_ON.get().is_some_and(|on| on == fault)
}
