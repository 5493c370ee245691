//! File descriptors: the last of those that may be open are kept for replication.
//!
//! Linux gives a new descriptor the lowest free number, so the number itself tells how many are open at least, whoever opened
//! them: other connections, files of a sync, or the process that embeds us. Nothing has to be counted. A leaf.

use crate::sys::rustix::process::{Resource, getrlimit};

/// Who asks for a descriptor, the least trusted last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// A follower that has not said the secret yet: leaves an eighth to replication, and 2,048 at most.
    Stranger,
    /// A client of the program: leaves a quarter, and 4,096 at most.
    Client,
}

/// Whether the descriptor of this number, just opened, is one of those kept for others: it is to be closed again.
pub(crate) fn is_kept_for_others(descriptor: i32, who: For) -> bool {
    let Ok(number) = u64::try_from(descriptor) else { return true };
    getrlimit(Resource::Nofile).current.is_some_and(|limit| number >= limit - kept(limit, who))
}

fn kept(limit: u64, who: For) -> u64 {
    match who {
        For::Stranger => (limit / 8).min(2048),
        For::Client => (limit / 4).min(4096),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_keeps_a_part_and_a_high_one_a_fixed_number() {
        assert_eq!((kept(1024, For::Client), kept(1024, For::Stranger)), (256, 128));
        assert_eq!((kept(1 << 20, For::Client), kept(1 << 20, For::Stranger)), (4096, 2048));
    }
}
