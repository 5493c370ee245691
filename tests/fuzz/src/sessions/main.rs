//! Targets with a directory, a peer or a member of etcd behind them, and those that take much code.
#![no_main]

mod etcd;
mod files;
mod follower;
mod leader;
mod text;
#[path = "../../../../src/cli/units.rs"]
#[allow(dead_code, unreachable_pub)]
mod units;

use libfuzzer_sys::fuzz_target;
use paceline_fuzz::{Target, chosen};

const TARGETS: [(&str, Target); 8] = [
    ("etcd_answers", etcd::answers),
    ("etcd_http", etcd::http),
    ("follower_connection", follower::connection),
    ("follower_extension", follower::extension),
    ("follower_v1", follower::v1),
    ("leader_connection", leader::connection),
    ("own_files", files::own),
    ("text", text::text),
];

fuzz_target!(|input: &[u8]| chosen(&TARGETS)(input));
