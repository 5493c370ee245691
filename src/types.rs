//! The values everything else is made of. They are checked when made and trusted after.

use std::borrow::Borrow;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use subtle::ConstantTimeEq;

use crate::protocol::NAME_BYTES_MAX;
use crate::sys::random;
use crate::sys::rustix;

/// The id of a node in a group, 1 to `i32::MAX`; people read and write it in base 36.
///
/// It is also the lease id of the node in etcd, where 0 would mean "choose one for me": hence never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(i32);

impl NodeId {
    /// Checks that `id` is 1 or above.
    pub fn new(id: i32) -> Result<Self, InvalidValue> {
        if id < 1 {
            return Err(InvalidValue::new("node id", id.to_string(), "an id is 1 or above"));
        }
        Ok(Self(id))
    }

    /// An id chosen at random, for a node that has none yet.
    #[must_use]
    pub fn random() -> Self {
        Self(random::i32(1..))
    }

    /// The id as it goes over the wire.
    #[must_use]
    pub fn get(self) -> i32 {
        self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut digits = [0u8; 6]; // 36^6 is above i32::MAX
        let mut start = digits.len();
        let mut rest = self.0.unsigned_abs() as usize;
        while rest > 0 {
            start -= 1;
            digits[start] = DIGITS[rest % 36];
            rest /= 36;
        }
        f.pad(std::str::from_utf8(&digits[start..]).unwrap_or_default())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let remedy = "an id is 1 to zik0zj in base 36 (digits and letters)";
        if !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(InvalidValue::new("node id", text, remedy));
        }
        i32::from_str_radix(text, 36)
            .ok()
            .and_then(|id| Self::new(id).ok())
            .ok_or_else(|| InvalidValue::new("node id", text, remedy))
    }
}

/// Which data a directory holds, or is a copy of: 128 random bits, made when a directory leads for the first time, kept in it, and taken
/// over by every follower. People read and write it as 32 hexadecimal digits.
///
/// Directories with one id are copies of each other, older or newer, whoever of them leads. Directories with two have nothing to
/// do with one another, whatever address, secret or name they were reached by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataSetId(u128);

impl DataSetId {
    /// A new one, that no other directory has.
    ///
    /// # Errors
    ///
    /// The system gives no random bytes.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 16];
        let mut filled = 0;
        while filled < bytes.len() {
            match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
                Ok(got) => filled += got,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self::from_bytes(bytes))
    }

    /// The id that came over the wire as these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// The id as it goes over the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for DataSetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:032x}", self.0))
    }
}

impl fmt::Debug for DataSetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataSetId({self})")
    }
}

impl FromStr for DataSetId {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let refused = || InvalidValue::new("data set id", shorten(text), "an id is 32 hexadecimal digits");
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(refused());
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| refused())
    }
}

/// The name of a replicated file: relative to the data directory, parts separated by `/`.
///
/// It can name nothing outside the directory: not empty, not absolute, no empty, `.` or `..` part, no NUL, at most
/// [`NAME_BYTES_MAX`] bytes. Cloning it copies a pointer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Arc<str>);

impl RelPath {
    /// Checks `name`.
    pub fn new(name: &str) -> Result<Self, InvalidValue> {
        match Self::fault(name) {
            None => Ok(Self(Arc::from(name))),
            Some(fault) => Err(InvalidValue::new("file name", shorten(name), fault)),
        }
    }

    /// Checks a name as it came over the wire.
    pub fn from_bytes(name: &[u8]) -> Result<Self, InvalidValue> {
        match std::str::from_utf8(name) {
            Ok(name) => Self::new(name),
            Err(_) => Err(InvalidValue::new("file name", shorten(&String::from_utf8_lossy(name)), "it is not UTF-8")),
        }
    }

    fn fault(name: &str) -> Option<&'static str> {
        if name.is_empty() {
            Some("it is empty")
        } else if name.len() > NAME_BYTES_MAX {
            Some("it is longer than 4096 bytes")
        } else if name.starts_with('/') {
            Some("it is absolute")
        } else if name.contains('\0') {
            Some("it contains NUL")
        } else if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            Some("it has an empty, `.` or `..` part")
        } else if name.split('/').any(|part| part.len() > 255) {
            Some("it has a part longer than 255 bytes")
        } else {
            None
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The file below `dir`.
    #[must_use]
    pub fn below(&self, dir: &Path) -> std::path::PathBuf {
        dir.join(self.as_str())
    }

    /// Whether this name is never replicated: the bookkeeping files of LavinMQ and of Paceline, and names that start
    /// with `$`, which may come to mean requests. Paceline's folder is reserved wherever it is: each file system below the data
    /// directory has its own.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        let first = self.0.split('/').next().unwrap_or_default();
        // The second: what an earlier version left where it ended as it wrote the first.
        matches!(first, ".clustering_id" | ".clustering_id.new")
            || matches!(first, ".lock" | "checksums.sha1" | "checksums.sha1.tmp" | "backups")
            || first.starts_with('$')
            || self.0.split('/').any(|part| part == OWN_FOLDER)
    }
}

/// The folder in a data directory that holds what Paceline knows about it (see [`own_folder`](crate::own_folder)). Each file system
/// below the directory has one at its top, for what is staged there.
pub(crate) const OWN_FOLDER: &str = ".paceline";

impl Borrow<str> for RelPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for RelPath {
    type Err = InvalidValue;

    fn from_str(name: &str) -> Result<Self, InvalidValue> {
        Self::new(name)
    }
}

/// A moment in the stream of actions: the number of action bytes (framing included) before it since the leader started, and one more.
///
/// It means the same moment to every follower. 0 is before all: also before what the leader found in its directory when it started,
/// which nobody may have durably, or at all, until that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamPosition(pub u64);

impl StreamPosition {
    /// Where a stream begins: after what the leader found when it started.
    pub(crate) const START: Self = Self(1);

    /// Bytes from `earlier` to here; 0 if `earlier` is not earlier.
    #[must_use]
    pub fn since(self, earlier: StreamPosition) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for StreamPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The secret that leader and followers share: 1 to 255 bytes. It is never shown.
#[derive(Clone)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Checks the length; the bytes may be anything.
    pub fn new(secret: impl AsRef<[u8]>) -> Result<Self, InvalidValue> {
        let secret = secret.as_ref();
        if secret.is_empty() || secret.len() > 255 {
            let shown = format!("({} bytes)", secret.len());
            return Err(InvalidValue::new("secret", shown, "a secret has 1 to 255 bytes"));
        }
        Ok(Self(Arc::from(secret)))
    }

    /// The secret in a file's bytes: one newline at their end is not part of it.
    pub fn from_file_bytes(bytes: &[u8]) -> Result<Self, InvalidValue> {
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        Self::new(bytes.strip_suffix(b"\r").unwrap_or(bytes))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Compares in a time that does not depend on where the two differ.
    #[must_use]
    pub fn matches(&self, other: &[u8]) -> bool {
        self.0.ct_eq(other).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A value that was refused, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {value:?}: {remedy}")]
pub struct InvalidValue {
    what: &'static str,
    value: String,
    remedy: &'static str,
}

impl InvalidValue {
    pub(crate) fn new(what: &'static str, value: impl Into<String>, remedy: &'static str) -> Self {
        Self { what, value: value.into(), remedy }
    }
}

/// A peer chooses the names in our errors: show no more than fits a line.
pub(crate) fn shorten(name: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 120;
    match name.char_indices().nth(SHOWN_CHARS_MAX) {
        None => name.to_owned(),
        Some((end, _)) => format!("{}…", &name[..end]),
    }
}

/// `HOST:PORT` of `HOST[:PORT]`; the host is a name, an IPv4 address, or an IPv6 address in brackets.
pub(crate) fn host_and_port(text: &str, default_port: u16) -> Option<String> {
    let (host, port) = match text.rsplit_once(':') {
        // A colon within brackets belongs to an IPv6 address.
        Some((_, port)) if port.starts_with('+') => return None,
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (text, default_port),
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let fits = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)),
    };
    fits.then(|| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_are_read_and_shown_in_base_36() {
        assert_eq!(NodeId::new(i32::MAX).unwrap().to_string(), "zik0zj");
        assert_eq!("zik0zj".parse::<NodeId>().unwrap().get(), i32::MAX);
        assert_eq!("A".parse::<NodeId>().unwrap().to_string(), "a");
        for bad in ["", "0", "-1", "+1", "zik0zk", "a b", "ä"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn data_set_ids_are_read_as_they_are_shown() {
        let id = DataSetId::random().unwrap();
        assert_ne!(id, DataSetId::random().unwrap());
        let shown = id.to_string();
        assert_eq!(shown.len(), 32);
        assert_eq!(shown.parse::<DataSetId>().unwrap(), id);
        assert_eq!(shown.to_uppercase().parse::<DataSetId>().unwrap(), id);
        assert_eq!(DataSetId::from_bytes(id.to_bytes()), id);
        for bad in ["", "0", &shown[1..], &format!("{shown}0"), &format!("+{}", &shown[1..]), &"ä".repeat(16)] {
            assert!(bad.parse::<DataSetId>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        let long_part = "x".repeat(256);
        let long_name = "x/".repeat(2049) + "x";
        for bad in ["", "/etc/passwd", "..", "a/../b", "a/..", "./a", "a//b", "a/", "a\0b", &long_part, &long_name] {
            assert!(RelPath::new(bad).is_err(), "{bad:?} was taken");
        }
        assert!(RelPath::from_bytes(b"a\xff").is_err());
        for good in ["a", "a/b", "..a", "a..", "a/.b", "ä ö\n", "a\\b"] {
            assert_eq!(RelPath::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn bookkeeping_files_are_reserved() {
        for name in [
            ".lock",
            ".clustering_id",
            ".clustering_id.new",
            "checksums.sha1",
            "backups/a",
            "$sync",
            ".paceline/tmp",
            "a/b/.paceline/c",
            "a/.paceline",
        ] {
            assert!(RelPath::new(name).unwrap().is_reserved(), "{name}");
        }
        for name in ["a/.lock", "lock", "backups.txt", "a/$b", "a/.paceline.b"] {
            assert!(!RelPath::new(name).unwrap().is_reserved(), "{name}");
        }
    }

    #[test]
    fn a_secret_is_not_shown_and_loses_one_newline() {
        let secret = Secret::from_file_bytes(b"s3cret\n\n").unwrap();
        assert!(secret.matches(b"s3cret\n") && !secret.matches(b"s3cret"));
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert!(Secret::new(b"").is_err() && Secret::new([b'x'; 256]).is_err());
    }
}
