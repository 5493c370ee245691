//! What there is besides the content of files: their attributes, folders, symbolic links.

use sha1::{Digest, Sha1};

use super::{take, take_slice};
use crate::protocol::ProtocolError;

/// The longest target of a symbolic link, in bytes: Linux has none that are longer.
pub const TARGET_BYTES_MAX: usize = 4095;

/// What a file or a folder has besides its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The permission bits, without those for set-user-id, set-group-id and sticky: at most [`MODE_BITS`](Self::MODE_BITS).
    pub mode: u16,
    /// When its content changed last, in nanoseconds since 1970; of a folder, and where it is not known, [`NO_TIME`](Self::NO_TIME).
    pub mtime: i64,
}

impl Attributes {
    /// All that a mode may have.
    pub const MODE_BITS: u16 = 0o777;
    /// A time that is not told.
    pub const NO_TIME: i64 = i64::MIN;
    /// Those of something that nobody looked at.
    pub const UNKNOWN: Self = Self { mode: 0, mtime: Self::NO_TIME };

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.mode.to_le_bytes());
        out.extend_from_slice(&self.mtime.to_le_bytes());
    }

    pub(super) fn take(rest: &mut &[u8]) -> Result<Self, ProtocolError> {
        let mode = u16::from_le_bytes(*take(rest, WHAT)?);
        if mode > Self::MODE_BITS {
            return Err(ProtocolError::Malformed(WHAT));
        }
        Ok(Self { mode, mtime: i64::from_le_bytes(*take(rest, WHAT)?) })
    }

    /// Adds them to the sum of a file.
    pub(crate) fn add_to(&self, sum: &mut Sha1) {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        self.encode(&mut bytes);
        sum.update(bytes);
    }

    pub(super) const BYTES: usize = 2 + 8;
}

/// A folder, or a symbolic link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A folder; without a time.
    Folder(Attributes),
    /// A link, which nobody follows.
    Link {
        /// Where it leads: 1 to [`TARGET_BYTES_MAX`] bytes, without NUL.
        target: Box<[u8]>,
    },
}

const WHAT: &str = "attributes";
const FOLDER: u8 = 1;
const LINK: u8 = 2;

impl Item {
    /// A link to this target; `None` if no link can have it.
    #[must_use]
    pub fn link(target: &[u8]) -> Option<Self> {
        let is_sound = (1..=TARGET_BYTES_MAX).contains(&target.len()) && !target.contains(&0);
        is_sound.then(|| Self::Link { target: target.into() })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Folder(attributes) => {
                out.push(FOLDER);
                out.extend_from_slice(&attributes.mode.to_le_bytes());
            }
            Self::Link { target } => {
                out.push(LINK);
                let length = u16::try_from(target.len()).expect("a target has at most 4095 bytes");
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(target);
            }
        }
    }

    pub(super) fn take(rest: &mut &[u8]) -> Result<Self, ProtocolError> {
        match take::<1>(rest, WHAT)? {
            [FOLDER] => {
                let mode = u16::from_le_bytes(*take(rest, WHAT)?);
                if mode > Attributes::MODE_BITS {
                    return Err(ProtocolError::Malformed(WHAT));
                }
                Ok(Self::Folder(Attributes { mode, mtime: Attributes::NO_TIME }))
            }
            [LINK] => {
                let length = usize::from(u16::from_le_bytes(*take(rest, WHAT)?));
                Self::link(take_slice(rest, length, WHAT)?).ok_or(ProtocolError::Malformed(WHAT))
            }
            _ => Err(ProtocolError::Malformed(WHAT)),
        }
    }

    pub(super) fn encoded_bytes(&self) -> usize {
        match self {
            Self::Folder(_) => 1 + 2,
            Self::Link { target, .. } => 1 + 2 + target.len(),
        }
    }
}
