//! Coverage-guided fuzz targets of all that Paceline reads from others: peers, etcd, files, the kernel, people.
//!
//! ```text
//! tests/fuzz/run                       all targets, for 4 s each, on the kept corpus (what CI does)
//! tests/fuzz/run --for 10m             the same for longer
//! tests/fuzz/run TARGET --for 1h       one target; what it finds of use joins its corpus in target/corpus
//! tests/fuzz/run TARGET FILE           one input: a crash that was kept, or a file of the corpus
//! tests/fuzz/run TARGET --keep         adds what was found since to the kept corpus, minimised
//! ```
//!
//! It takes a stable Rust and a C++ compiler. The engine is LLVM's libFuzzer, from the crate `libfuzzer-sys`: `run` builds all with the
//! flags of rustc that count which edges are taken. `run` tells a program which target by an environment variable.
//!
//! # What is shown of each input
//!
//! - No panic, in whatever thread; debug assertions and overflow checks are on.
//! - No hang: an input takes at most 25 s of a busy machine.
//! - Bounded memory: beyond what a target says (`bounded`), an allocation fails, and that ends the process. So nothing is
//!   allocated for a length that was only claimed.
//! - What there is an encoder for comes back as it was written. What is decoded in pieces is what is decoded at once.
//! - A follower changes nothing outside its data directory. A leader serves the next connection.
//!
//! # Targets
//!
//! | target | reads | inputs so far |
//! |---|---|---|
//! | `handshake` | start headers, secrets, ids, fields, of 1.0.0 and the extension | 40,420,547 |
//! | `actions` | the stream of actions, in any pieces | 1,315,303 |
//! | `controls` | controls of a leader of the extension | 19,774,593 |
//! | `messages` | a follower's messages: inventories, marks, farewells; what a leader makes of an inventory | 5,010,330 |
//! | `lists` | lists, requests and sizes of a full sync | 20,147,111 |
//! | `lz4` | LZ4 frames | 370,987 |
//! | `tables` | mount table, socket table and other files in `/proc` | 10,652,485 |
//! | `follower_v1` | a follower's full sync and stream of 1.0.0, with a directory | 83,311 |
//! | `follower_extension` | a follower's session of the extension, with a directory and the thread of its disk | 96,133 |
//! | `follower_connection` | a whole follower, from the start header on, over TCP | 6,116 |
//! | `leader_connection` | a whole leader, from the start header on, over TCP, by followers that know how far it is | 4,702 |
//! | `etcd_answers` | etcd's answers as JSON, and the values of the keys | 1,647,493 |
//! | `etcd_http` | the same over HTTP: answers and streams of a member | 13,526 |
//! | `own_files` | `.clustering_id`, the files in `.paceline/`, names of what is kept | 312,413 |
//! | `text` | names, ids, sets, addresses, sizes, durations, globs: what people type or others record | 424,898 |
//!
//! That is 100 million inputs in all, on machines that were busy with much else, a part of them before version 2 of the extension and before its last controls. A second of a
//! processor's own time is some 50,000 inputs of the decoders, or 1,000 sessions of a follower.
//!
//! # What they found
//!
//! Each is an input in `found`, which every run begins with:
//!
//! - `an-id-that-is-no-text`: a `.clustering_id` of other bytes kept a node from starting also where its id was given by hand.
//! - `a-mount-point-that-ends-with-a-carriage-return`: read back from `last-led` without it. No version writes such a line.
//!
//! # Layout
//!
//! `src/decoders` and `src/sessions` are the two programs, and say why there are two. `corpus` is what is kept of the inputs that led to new
//! code; `target/corpus` is what this machine has found beyond that. What the targets reach of Paceline beside its public interface
//! is in `src/fuzzing.rs`, behind the feature `fuzzing`.

mod bounded;
pub mod input;
mod scene;

use std::sync::OnceLock;

pub use bounded::{bounded, for_each_byte};
pub use scene::{Scene, folder};

/// The variable that names the target.
const TARGET: &str = "PACELINE_FUZZ_TARGET";

/// Reads an input.
pub type Target = fn(&[u8]);

/// The target that was chosen, of those of a program.
pub fn chosen(targets: &[(&str, Target)]) -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var(TARGET).unwrap_or_default();
        let Some((_, target)) = targets.iter().find(|(target, _)| *target == name) else {
            let names: Vec<_> = targets.iter().map(|(target, _)| *target).collect();
            eprintln!("{TARGET} must be one of {}", names.join(", "));
            std::process::exit(2);
        };
        bounded::log_to_nowhere();
        bounded::unbounded_panics();
        *target
    })
}
