//! Decoders of bytes, at tens of thousands of inputs a second. They are a program of their own because the engine looks at the counters of
//! a whole program after each input, and this one is small.
#![no_main]

mod tables;
mod wire;

use libfuzzer_sys::fuzz_target;
use paceline_fuzz::{Target, chosen};

const TARGETS: [(&str, Target); 7] = [
    ("actions", wire::actions),
    ("controls", wire::controls),
    ("handshake", wire::handshake),
    ("lists", wire::lists),
    ("lz4", wire::lz4),
    ("messages", wire::messages),
    ("tables", tables::tables),
];

fuzz_target!(|input: &[u8]| chosen(&TARGETS)(input));
