//! What the crate logs: kept for tests to look at, and shown with the output of a test that fails.
//!
//! Tests of one binary run at once and share it: look for lines by an id or an address of your own.

use std::sync::OnceLock;

use log::{LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

struct Kept {
    lines: Mutex<Vec<String>>,
    shown: env_logger::Logger,
}

static KEPT: OnceLock<Kept> = OnceLock::new();

/// Begins to keep lines.
pub fn begin() {
    let shown = env_logger::builder().is_test(true).filter_level(LevelFilter::Info).build();
    let kept = KEPT.get_or_init(|| Kept { lines: Mutex::default(), shown });
    if log::set_logger(kept).is_ok() {
        // More than is shown: what must never be logged must not be logged at any level.
        log::set_max_level(LevelFilter::Trace);
    }
}

impl Log for Kept {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // All bytes of every exchange with etcd, which the binary never shows.
        if record.target().starts_with("ureq_proto") {
            return;
        }
        self.lines.lock().push(format!("{} {}", record.level(), record.args()));
        self.shown.log(record);
    }

    fn flush(&self) {}
}

/// All lines with every one of `parts` in them, each with its level in front.
pub fn lines(parts: &[&str]) -> Vec<String> {
    let kept = KEPT.get().expect("a test calls begin() first").lines.lock();
    kept.iter().filter(|line| parts.iter().all(|part| line.contains(part))).cloned().collect()
}
