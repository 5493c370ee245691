//! What the demo prints: one line a second in aligned columns, remarks between them, a table at the end. Plain text, so
//! that it reads the same in a terminal and in a file.

use std::time::Duration;

use super::link::{FollowerNow, Latency};
use crate::cli::say;
use crate::cli::units::{show_bytes, show_latency, show_rate};

const CELL: usize = 24;

pub(crate) fn header(ids: &[&str]) {
    let followers: String = ids.iter().map(|id| format!("  {:<CELL$}", format!("follower {id}: state, lag"))).collect();
    say(format!("{:>4}  {:>10}  {:>8}  {:>8}  {:>8}{}", "time", "written", "p50", "p99.9", "max", followers).trim_end());
}

/// One second.
pub(crate) fn row(time: Duration, bytes: u64, latency: &Latency, ids: &[&str], followers: &[FollowerNow]) {
    let cells: String = ids
        .iter()
        .map(|id| format!("  {:<CELL$}", cell(followers.iter().find(|follower| follower.id == *id))))
        .collect();
    let shown = |value| if latency.appends == 0 { "-".to_owned() } else { show_latency(value) };
    let line = format!(
        "{:>2} s  {:>10}  {:>8}  {:>8}  {:>8}{cells}",
        time.as_secs(),
        show_rate(bytes, Duration::from_secs(1)),
        shown(latency.p50),
        shown(latency.p999),
        shown(latency.max),
    );
    say(line.trim_end());
}

fn cell(follower: Option<&FollowerNow>) -> String {
    match follower {
        None => "not connected".to_owned(),
        Some(FollowerNow { state, lag_bytes: None, .. }) => state.clone(),
        Some(FollowerNow { state, lag_bytes: Some(lag), .. }) => format!("{state}, {}", show_bytes(*lag)),
    }
}

/// Something that happened between two seconds.
pub(crate) fn remark(text: &str) {
    say(&format!("      * {text}"));
}

/// How appends did in one phase.
pub(crate) fn phase(what: &str, bytes: u64, time: Duration, latency: &Latency) {
    say(&format!(
        "  {what:<34}{:>9} {:>9} {:>9} {:>12}",
        show_latency(latency.p50),
        show_latency(latency.p999),
        show_latency(latency.max),
        show_rate(bytes, time),
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_fits_its_column() {
        let follower =
            |state: &str, lag_bytes| FollowerNow { id: "a".into(), state: state.into(), lag_bytes, drained: false };
        assert_eq!(cell(Some(&follower("in sync", Some(1536)))), "in sync, 1.5 KiB");
        for state in ["waiting", "syncing", "catching up", "attached", "in sync"] {
            assert!(cell(Some(&follower(state, Some(1023 << 20)))).len() <= CELL);
        }
        assert_eq!(cell(None), "not connected");
    }
}
