//! What can go wrong, told apart by who has to act: the peer broke the protocol, the connection went, local I/O failed,
//! a setting is wrong, or we are shutting down.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::protocol::ProtocolError;
use crate::types::{DataSetId, InvalidValue, NodeId, RelPath};

/// Why a call, a connection or a start failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer broke the protocol; the connection was closed.
    #[error("protocol violation: {0}")]
    Protocol(#[from] ProtocolError),
    /// The connection could not be made, or went.
    #[error("connection {doing}: {source}")]
    Connection {
        /// What was being done with it.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// A local file or folder could not be read or written.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An address cannot be listened at.
    #[error("{who} cannot be accepted at {at}: {source}{}", listen_remedy(source))]
    Listen {
        /// Who would have come to it: followers or clients.
        who: &'static str,
        /// `HOST:PORT`, or several of them.
        at: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file of Paceline's own in the data directory is not as it was written.
    #[error("{} is damaged ({fault}): {remedy}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: &'static str,
        /// What can be done.
        remedy: &'static str,
    },
    /// Another process works on the data directory.
    #[error("data directory {} is in use by another process (its .lock is held): stop that process first", .0.display())]
    InUse(PathBuf),
    /// The leader refused the secret.
    #[error("the leader refused the secret: give the leader's own (--secret-file or PACELINE_SECRET)")]
    SecretRefused,
    /// The leader speaks another protocol, or is no leader at all.
    #[error("the peer does not speak replication protocol 1.0.0: it answered {0}; check address and port")]
    NotALeader(String),
    /// The follower's id is the leader's own.
    #[error("the leader has the same id {0}: choose another id for this follower")]
    SameId(NodeId),
    /// The data directory of a follower holds files that did not come from a leader.
    #[error(
        "{} holds {count} files that the leader does not have (such as {example}) and was never a follower's directory; \
         they would be deleted: choose an empty directory, or adopt it (--adopt)",
        dir.display()
    )]
    ForeignDirectory {
        /// The data directory.
        dir: PathBuf,
        /// How many files would be deleted.
        count: usize,
        /// One of them.
        example: RelPath,
    },
    /// The directory of a follower is a copy of another data set than the leader's. Nothing was changed.
    #[error(
        "{} is a copy of data set {ours}, and this leader has {theirs}: nothing was changed; give the address of a leader of {ours}, or, \
         to have what is here replaced by this leader's files, --adopt={ours}",
        dir.display()
    )]
    OtherDataSet {
        /// The data directory.
        dir: PathBuf,
        /// What it is a copy of.
        ours: DataSetId,
        /// What the leader has.
        theirs: DataSetId,
    },
    /// A sync would leave almost nothing, and nothing shows that the leader is the right one. Nothing was changed.
    #[error(
        "this leader's sync would delete {} of the {} files in {} ({} of {} bytes; {example} is one), and the leader has no data set id \
         in common with it: nothing was changed; is its address right, and its disk mounted? If this is meant, start once with \
         --max-delete 100%",
        files.0, files.1, dir.display(), bytes.0, bytes.1
    )]
    TooManyDeletes {
        /// The data directory.
        dir: PathBuf,
        /// How many files would be deleted, of how many.
        files: (u64, u64),
        /// The same in bytes.
        bytes: (u64, u64),
        /// One of the files.
        example: RelPath,
    },
    /// The directory is no complete copy, so it must not be served from.
    #[error(
        "{} is no complete copy (a full sync into it did not end): follow a leader with it until it is in sync; or, if \
         nothing better is left, remove .paceline/incomplete in it and serve what there is",
        .0.display()
    )]
    Incomplete(PathBuf),
    /// A sync of the directory has failed, so it must not be served from before it has followed.
    #[error(
        "a sync of {} has failed, so what can be read there may be on no disk: follow another leader with it, which mends it; if there \
         is none, restart this machine, so that all is read from the disk, check the files, then remove .paceline/suspect in it",
        .0.display()
    )]
    Suspect(PathBuf),
    /// Much of what a leader announced when it last led from this directory is not there.
    #[error(
        "{}: {missing}; is a disk not mounted, or a restore not complete? Followers would delete the rest. If this is meant, start once \
         with --accept-missing",
        dir.display()
    )]
    Missing {
        /// The data directory.
        dir: PathBuf,
        /// What is not there.
        missing: String,
    },
    /// A setting is out of its range.
    #[error("setting {name}: {reason}")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A value was refused.
    #[error(transparent)]
    InvalidValue(#[from] InvalidValue),
    /// A thread panicked, or ended without being told to: what it was part of has closed.
    #[error("{0}: this is a defect, please report it")]
    ThreadFailed(String),
    /// The data directory is not where it was. Nothing more is done with it: what then looks gone was not deleted.
    #[error(
        "data directory {} is lost: {how}; nothing is replicated any more: bring it back, then start anew",
        dir.display()
    )]
    DirectoryLost {
        /// The data directory.
        dir: PathBuf,
        /// What became of it.
        how: &'static str,
    },
    /// The operation was stopped because the leader or follower is shutting down.
    #[error("shutting down")]
    ShuttingDown,
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Io { doing, path: path.as_ref().to_owned(), source: source.into() }
    }

    /// Whether a follower refuses the leader as it is, and waits for it, or another one, to be the right one.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::OtherDataSet { .. } | Self::TooManyDeletes { .. })
    }

    pub(crate) fn connection(doing: impl fmt::Display, source: impl Into<io::Error>) -> Self {
        Self::Connection { doing: doing.to_string(), source: source.into() }
    }
}

/// What helps where an address cannot be listened at, to go behind the system's words.
fn listen_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program has this port: stop that one, or give another port",
        io::ErrorKind::AddrNotAvailable => {
            "; this machine has no such address: give one that it has, or 0.0.0.0 for all (IPv6: [::])"
        }
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root or CAP_NET_BIND_SERVICE: give a higher one",
        // It could not be resolved.
        _ if error.raw_os_error().is_none() => "; give an address of this machine, or 0.0.0.0 for all (IPv6: [::])",
        _ => "",
    }
}

/// Why an append, replace or delete was not taken. Nothing was sent to any follower.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The offset is not the announced length of the file: appends were announced out of order, twice, or one is missing.
    #[error(
        "append to {path} at offset {offset}, but its announced length is {length}: announce appends in file order"
    )]
    Offset {
        /// The file.
        path: RelPath,
        /// Where the append was said to begin.
        offset: u64,
        /// Where it had to begin.
        length: u64,
    },
    /// The name is reserved, or excluded by the settings.
    #[error("{0} is never replicated: the name is reserved or excluded by the settings")]
    NotReplicated(RelPath),
    /// A follower that is needed cannot keep up, and the host asked to be told rather than lose it: try again later. See
    /// [`BackPressure`](crate::config::BackPressure).
    #[error("a follower that is needed cannot keep up: try again later")]
    WouldBlock,
    /// The local file could not be read or written.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// The file.
        path: RelPath,
        /// What the system said.
        source: io::Error,
    },
    /// The leader is shutting down.
    #[error("the leader is shutting down")]
    ShuttingDown,
}
