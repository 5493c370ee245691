//! Paceline replicates a data directory from one leader to many followers, and a slow follower never slows the leader.

pub mod config;
mod datadir;
pub mod error;
pub mod follower;
mod index;
pub mod leader;
pub mod protocol;
mod thread;
mod types;
pub mod watch;

pub use config::{FollowerConfig, LeaderConfig};
pub use error::{AppendError, Error};
pub use follower::Follower;
pub use leader::Leader;
pub use types::{InvalidValue, NodeId, RelPath, Secret, StreamPosition};
