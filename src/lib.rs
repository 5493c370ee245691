//! Paceline replicates a data directory from one leader to many followers over TCP, with plain threads, and a slow follower
//! never slows the leader.
//!
//! It is for hosts whose files are append-mostly: brokers, logs, storage engines. A [`Leader`] is told what was written to the
//! directory; each [`Follower`] keeps an exact copy of it. Both speak LavinMQ's replication protocol 1.0.0 (see
//! [`protocol`]) and an extension of it, so a LavinMQ node can follow a `Leader`, and a `Follower` can follow a LavinMQ leader. A [`Watcher`] feeds
//! a leader from a directory that other programs write. In a cluster a [`Node`] leads or follows as it is elected.
//!
//! ```
//! use std::io::Write;
//! use std::time::Duration;
//! use paceline::{Follower, FollowerConfig, Leader, LeaderConfig, RelPath, Secret};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (ours, theirs) = (tempfile::tempdir()?, tempfile::tempdir()?);
//! let secret = Secret::new("known to both")?;
//! let leader = Leader::open(LeaderConfig::new(ours.path(), secret.clone()))?;
//! let address = leader.listen("127.0.0.1:0")?;
//!
//! // Elsewhere, mostly:
//! let follower = Follower::start(FollowerConfig::new(address.to_string(), theirs.path(), secret))?;
//!
//! // Write the local file and replicate in one go ...
//! let mut log = leader.file(&RelPath::new("log/0001")?)?;
//! log.write_all(b"hello ")?;
//! // ... or announce what was written already, at the offset it was written to.
//! std::fs::write(ours.path().join("settings"), b"a = 1")?;
//! leader.append(&RelPath::new("settings")?, 0, b"a = 1")?;
//!
//! let report = loop {
//!     let followers = leader.followers();
//!     if followers.iter().any(|follower| follower.acknowledged == Some(leader.position())) {
//!         break leader.shutdown(Duration::from_secs(5));
//!     }
//!     std::thread::yield_now();
//! };
//! assert_eq!(report.drained, [follower.id()]);
//! assert_eq!(std::fs::read(theirs.path().join("log/0001"))?, b"hello ");
//! # Ok(())
//! # }
//! ```
//!
//! # Invariants
//!
//! The code relies on these, and cites them:
//!
//! - **I1** The critical section of an append does no I/O, waits for nothing, and does nothing that grows with the number
//!   of followers or files.
//! - **I2** Bytes below a file's announced length are on disk before they are announced. This is the host's part: it
//!   announces what it has written.
//! - **I3** An announced length advances in the same critical section that puts the bytes into the stream. So a cut of the
//!   index is an exact moment of the stream.
//! - **I4** A batch is a whole number of actions, and followers attach between batches.
//! - **I5** Letting a follower go waits for nothing: a flag, and a shutdown of its socket. Its own threads do the rest.
//! - **I6** No lock is held while a thread is joined, a socket is read or written, or a line is logged.
//! - **I7** A length from a peer is checked against its maximum before anything is allocated for it, and a name from a peer
//!   leads to nothing outside the data directory.
//! - **I8** A follower acknowledges what it has applied (or, as its owner chose, received or made durable), once, in order.
//!   After a failed write or flush it acknowledges nothing until it has synced anew.
//! - **I9** A follower's directory is marked incomplete, durably, before the first step of a full sync that makes it so,
//!   until that sync is complete and durable; with the extension, also what changed during it. (1.0.0 has no word for that.)
//! - **I10** Whoever is in an in-sync set that may be recorded has everything that was confirmed as committed on all, at the
//!   durability it was confirmed with; and is out of all of them before it is made to change a file other than by the stream.
//!
//! # Features
//!
//! - `cli` (on by default) is the `paceline` binary and its dependencies; embedding hosts want `default-features = false`.
//! - `etcd` (on by default) is etcd as the coordinator of a cluster (`coordinator::etcd`), with an HTTP client and TLS.

mod beneath;
pub mod config;
pub mod coordinator;
mod datadir;
mod descriptors;
mod difference;
mod digests;
pub mod error;
mod first_look;
mod flusher;
pub mod follower;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod index;
pub mod leader;
mod mounts;
pub mod node;
mod notify;
mod own_folder;
mod own_time;
mod position;
mod probe;
pub mod protocol;
mod reader;
mod seldom;
mod sendqueue;
mod stop;
mod sums;
#[cfg(not(feature = "simulate"))]
mod sys;
#[cfg(feature = "simulate")]
#[allow(missing_docs, unreachable_pub)]
pub mod sys;
mod thread;
mod types;
mod uncached;
mod unmounted;
pub mod verify;
pub mod watch;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;

pub use config::{Adopt, BackPressure, Durability, FollowerConfig, LeaderConfig, OnFull, Protocol};
pub use error::{AppendError, Error};
pub use follower::Follower;
pub use leader::Leader;
pub use node::Node;
pub use position::EpochPosition;
pub use types::{DataSetId, InvalidValue, NodeId, RelPath, Secret, StreamPosition};
pub use watch::Watcher;
