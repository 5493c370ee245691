//! How something in a copy differs from what it is a copy of ([`verify`](crate::verify)). Values only.

use std::fmt;

use crate::digests::{NANOS, now};
use crate::protocol::extension::Attributes;

/// The time of a file counts once its content has not changed for so long, in nanoseconds.
const REST: u64 = 5 * NANOS.unsigned_abs();

/// How something in the copy differs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// The copy lacks it.
    Missing,
    /// Only the copy has it.
    Extra,
    /// It is something else there.
    Kind {
        /// What it is.
        original: Kind,
        /// What it is in the copy.
        copy: Kind,
    },
    /// A file has another length, or other bytes.
    Content {
        /// Its length in bytes.
        original: u64,
        /// Its length in the copy.
        copy: u64,
        /// Offset and length of what differs, as far as both have it; the first 100 ranges.
        ranges: Vec<(u64, u64)>,
    },
    /// A file or a folder has other permissions.
    Mode {
        /// Its permissions, as a copy is to have them: at most `0777`.
        original: u16,
        /// Its permissions in the copy.
        copy: u16,
    },
    /// A file of the same content changed at another time.
    Time {
        /// When it changed last: nanoseconds since 1970.
        original: i64,
        /// The same of the copy.
        copy: i64,
    },
    /// A link leads elsewhere.
    Target {
        /// Where it leads.
        original: Vec<u8>,
        /// Where it leads in the copy.
        copy: Vec<u8>,
    },
    /// It differs, and was changing.
    Changing,
    /// One of the two cannot be read, or listed; why.
    Unreadable(String),
}

/// What there is in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Folder => "folder",
            Self::Link => "link",
        })
    }
}

/// What the owner of a copy may always do with its folders.
pub(crate) const OWNERS: u16 = 0o700;

/// Whether the time of a file counts.
pub(crate) fn is_at_rest(attributes: &Attributes) -> bool {
    now().abs_diff(attributes.mtime) >= REST
}
